//! Faults of a database that is there and cannot be used for a while, made by statements of an administrator.
use crate::{admin_database_url, execute};

/// A fault; each statement runs on a session of its own.
pub struct Trouble {
    begins: Vec<Statement>,
    ends: Vec<Statement>,
}

enum Statement {
    /// A statement in the database of the test.
    Within(String),
    /// A statement from another database, needed where it concerns the whole of it.
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

/// Name of the database in a URL.
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
    /// Refuses all writes.
    pub fn read_only(database_url: &str) -> Self {
        let database = name_of(database_url);
        let alter = |what| Statement::About(format!("alter database \"{database}\" {what}"));
        Self {
            begins: vec![alter("set default_transaction_read_only = on"), cut(database_url)],
            ends: vec![alter("reset default_transaction_read_only"), cut(database_url)],
        }
    }

    /// Refuses connections of `role`, which is one of [`crate::role`].
    pub fn no_connections(database_url: &str, role: &str) -> Self {
        let limit = |limit| Statement::About(format!("alter role \"{role}\" connection limit {limit}"));
        Self { begins: vec![limit(0), cut(database_url)], ends: vec![limit(-1)] }
    }

    /// Renames a table that everything needs.
    pub fn other_schema() -> Self {
        let rename = |from, to| Statement::Within(format!("alter table {from} rename to {to}"));
        Self { begins: vec![rename("counters", "gone")], ends: vec![rename("gone", "counters")] }
    }

    /// Lets no transaction find space.
    pub fn full_disk() -> Self {
        let begins = [
            "create function refuse() returns trigger language plpgsql as \
             $$ begin raise exception 'could not extend file' using errcode = '53100'; end $$",
            "create trigger full_disk before insert on applied_message for each statement execute function refuse()",
        ];
        let begins = begins.map(|statement| Statement::Within(statement.into())).into();
        Self { begins, ends: vec![Statement::Within("drop trigger full_disk on applied_message".into())] }
    }

    /// Makes a transaction with this counter take longer than any client waits.
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

/// Checks that a session of this database is in the middle of a [`Trouble::heavy`] transaction.
pub async fn is_sleeping(database_url: &str) -> bool {
    let database = name_of(database_url);
    let raise = format!(
        "do $$ begin if not exists (select from pg_stat_activity \
         where datname = '{database}' and wait_event = 'PgSleep') then raise exception 'nobody'; end if; end $$"
    );
    execute(&admin_database_url(), raise).await.is_ok()
}
