//! Ways in which a database is there and cannot be used, for a while: statements of an administrator.
use crate::{admin_database_url, execute};

/// Each statement runs on a session of its own.
pub struct Trouble {
    begins: Vec<Statement>,
    ends: Vec<Statement>,
}

enum Statement {
    /// In the database of the test.
    Within(String),
    /// From another database, as what concerns the whole of it must.
    About(String),
}

impl Statement {
    async fn run(&self, database_url: &str) {
        let done = match self {
            Self::Within(statement) => execute(database_url, statement.clone()).await,
            Self::About(statement) => execute(&admin_database_url(), statement.clone()).await,
        };
        done.expect("the administrator may do that");
    }
}

/// Of the database that a URL names.
fn name_of(database_url: &str) -> &str {
    database_url.rsplit_once('/').expect("a database URL has a path").1
}

/// Ends all sessions: settings of a database or a role hold for later ones only.
fn cut(database_url: &str) -> Statement {
    let database = name_of(database_url);
    Statement::About(format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
    ))
}

impl Trouble {
    /// Nothing can be written.
    pub fn read_only(database_url: &str) -> Self {
        let database = name_of(database_url);
        let alter = |what| Statement::About(format!("alter database \"{database}\" {what}"));
        Self {
            begins: vec![alter("set default_transaction_read_only = on"), cut(database_url)],
            ends: vec![alter("reset default_transaction_read_only"), cut(database_url)],
        }
    }

    /// For `role`, which the one of [`crate::role`] is.
    pub fn no_connections(database_url: &str, role: &str) -> Self {
        let limit = |limit| Statement::About(format!("alter role \"{role}\" connection limit {limit}"));
        Self { begins: vec![limit(0), cut(database_url)], ends: vec![limit(-1)] }
    }

    /// A table that everything needs has another name.
    pub fn other_schema() -> Self {
        let rename = |from, to| Statement::Within(format!("alter table {from} rename to {to}"));
        Self { begins: vec![rename("counters", "gone")], ends: vec![rename("gone", "counters")] }
    }

    /// No transaction finds room.
    pub fn full_disk() -> Self {
        let begins = [
            "create function refuse() returns trigger language plpgsql as \
             $$ begin raise exception 'could not extend file' using errcode = '53100'; end $$",
            "create trigger full_disk before insert on applied_message for each statement execute function refuse()",
        ];
        let begins = begins.map(|statement| Statement::Within(statement.into())).into();
        Self { begins, ends: vec![Statement::Within("drop trigger full_disk on applied_message".into())] }
    }

    /// A transaction with this counter takes longer than anybody waits.
    pub fn heavy(counter: &str) -> Self {
        let begins = [
            format!(
                "create function sleep() returns trigger language plpgsql as $$ begin \
                 if new.name = '{counter}' then perform pg_sleep(600); end if; return new; end $$"
            ),
            "create trigger heavy before insert or update on counters for each row execute function sleep()"
                .to_owned(),
        ];
        let begins = begins.map(Statement::Within).into();
        Self { begins, ends: vec![Statement::Within("drop trigger heavy on counters".into())] }
    }

    pub async fn begin(&self, database_url: &str) {
        for statement in &self.begins {
            statement.run(database_url).await;
        }
    }

    pub async fn end(&self, database_url: &str) {
        for statement in &self.ends {
            statement.run(database_url).await;
        }
    }
}

/// Gives the database to `role`; returns the URL with which the role reaches it.
pub async fn give_to(database_url: &str, role: &str) -> String {
    let owned = format!("alter database \"{}\" owner to \"{role}\"", name_of(database_url));
    Statement::About(owned).run(database_url).await;
    let server = database_url.rsplit_once('@').map_or(database_url, |(_, server)| server);
    format!("postgres://{role}:{role}@{server}")
}

/// Whether a session of this database is in the middle of a [`Trouble::heavy`] transaction.
pub async fn is_sleeping(database_url: &str) -> bool {
    let database = name_of(database_url);
    let raise = format!(
        "do $$ begin if not exists (select from pg_stat_activity \
         where datname = '{database}' and wait_event = 'PgSleep') then raise exception 'nobody'; end if; end $$"
    );
    execute(&admin_database_url(), raise).await.is_ok()
}
