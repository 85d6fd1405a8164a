//! An item that every API accepts and the store refuses. A trigger stands for the objections of an
//! operator, an encoding or an index. The item must be dead-lettered alone; the rest of its message
//! must be applied.
use crate::kind::Kind;

/// Number in a document that the trigger refuses. The traffic draws no such number.
pub const NUMBER: i64 = 13;

/// Trigger that fails with a code about the item, not about the server.
pub const TRIGGER: &str = r#"
    create or replace function forebay_chaos_refuse() returns trigger language plpgsql as $$ begin
        if new.data = '{"number":13}' then
            raise exception 'not with me' using errcode = '22001';
        end if;
        return new;
    end $$;
    create or replace trigger forebay_chaos_refuse before insert or update on documents
    for each row execute function forebay_chaos_refuse()"#;

pub fn is_refused(kind: Kind, number: i64) -> bool {
    kind == Kind::Document && number == NUMBER
}
