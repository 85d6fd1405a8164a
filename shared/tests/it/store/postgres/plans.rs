//! Query plans of the server: along keys, whatever the tables hold.
use std::path::Path;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::sent::point;
use crate::store::{Messages, NOON_MS, apply, postgres, postgres_config};

use super::{DAY_MS, dated, execute, session};

/// Finds the checked statement of the store that holds these words.
fn statement(words: &[&str]) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.sqlx");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the checked queries") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("is read");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let query = json["query"].as_str().expect("a query");
        found.extend(words.iter().all(|word| query.contains(word)).then(|| query.to_owned()));
    }
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// Reads the plan that a session of the store uses after it ran the statement some times.
async fn plan(session: &mut PgConnection, words: &[&str], parameters: &str) -> String {
    execute(session, &format!("prepare looked_at as {}", statement(words))).await;
    for _ in 0..7 {
        execute(session, &format!("execute looked_at({parameters})")).await;
    }
    let explain = format!("explain (costs off) execute looked_at({parameters})");
    let lines: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(&mut *session).await.expect("is explained");
    execute(session, "deallocate looked_at").await;
    lines.join("\n")
}

fn assert_by_keys(plan: &str) {
    for scan in ["Seq Scan", "Sort", "Bitmap", "Hash", "Merge"] {
        assert!(!plan.contains(scan), "{scan}:\n{plan}");
    }
    assert!(plan.contains("Index"), "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_documents_are_read_along_their_keys() {
    testkit::isolated("pages", async |isolated| {
        let url = isolated.database_url;
        postgres(&postgres_config(&url)).await;
        let mut session = session(&url).await;
        // The rows: keyed ones, deleted ones, a value that all have, one that many, and one that few have.
        execute(
            &mut session,
            "insert into documents select 'c', lpad(to_hex(n), 32, '0')::uuid,
                 case n % 10 when 0 then md5(n::text)::uuid end,
                 case n % 7 when 0 then null else repeat('x', 200) end, now()
             from generate_series(1, 40000) as n;
             insert into documents select 'd' || n % 50, lpad(to_hex(n), 32, '0')::uuid, null, '{}', now()
             from generate_series(1, 10000) as n;
             insert into keyed_writes select md5(n::text)::uuid, '0123456789abcdef', now()
             from generate_series(1, 60000) as n;
             insert into document_fields select 'c', field, case field when 'all' then '1'
                 when 'some' then (n % 5)::text else (n % 2000)::text end, lpad(to_hex(n), 32, '0')::uuid
             from generate_series(1, 40000) as n, unnest(array['all', 'some', 'few']) as field;
             analyze",
        )
        .await;
        let last = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";
        let first = "'00000000-0000-0000-0000-000000000000'";
        let words = ["from documents as document", "place < $2"];
        let pages = plan(&mut session, &words, &format!("'c', {last}, 100, {first}")).await;
        assert_by_keys(&pages);
        // Both ends of an interval are ends of the walk: nothing outside of it is read.
        assert!(
            pages.contains("Index Cond: ((collection = $1) AND (place < $2) AND (place >= $4))"),
            "{pages}"
        );
        let words = ["with recursive walk"];
        for (fields, values) in
            [("{all}", "{1}"), ("{all,few}", "{1,7}"), ("{some,all,few}", "{1,1,1}"), ("{few,some}", "{1,1}")]
        {
            let parameters = format!("'c', '{fields}', '{values}', {last}, 100, 10000, 500, {first}");
            let search = plan(&mut session, &words, &parameters).await;
            assert_by_keys(&search);
            let ends =
                search.lines().any(|line| line.contains("Index Cond") && line.contains("(place >= $8)"));
            assert!(ends, "{search}");
        }
        // Documents are read one by one, and where housekeeping looks for old ones.
        let words = ["from documents as document left join keyed_writes"];
        assert_by_keys(&plan(&mut session, &words, &format!("'c', {last}")).await);
        let words = ["cross join lateral", "bound.collection"];
        let bounds = format!("array['c', 'd1'], array[{last}::uuid, {last}::uuid]");
        assert_by_keys(&plan(&mut session, &words, &bounds).await);
        let words = ["with recursive pair"];
        let steps = plan(&mut session, &words, "null, 100").await;
        assert!(!steps.contains("Seq Scan on document_fields"), "{steps}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fates_are_looked_up_by_key_however_many_are_asked_for() {
    testkit::isolated("fates", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        for day in 0..20 {
            apply(&store, &[dated(NOON_MS + day * DAY_MS, &[("a", 1)])]).await;
        }
        let mut session = session(&url).await;
        execute(
            &mut session,
            &format!(
                "insert into applied_message
                 select (lpad(to_hex({NOON_MS} + n::int8 * {DAY_MS} / 5000), 12, '0') || '80008000' || lpad(to_hex(n), 12, '0'))::uuid,
                     '', now() from generate_series(1, 19 * 5000) as n;
                 insert into keyed_writes select md5(n::text)::uuid, '0123456789abcdef', now() - n * interval '3 s'
                 from generate_series(1, 50000) as n;
                 insert into dead_letters select md5(n::text)::uuid, '', '', '', '', now(), now()
                 from generate_series(1, 50000) as n;
                 analyze"
            ),
        )
        .await;
        let thousand = "(select array_agg(id) from (select id from applied_message limit 1000) as picked)";
        execute(&mut session, &format!("create temporary table asked as select {thousand} as ids")).await;
        let ids: String =
            sqlx::query_scalar("select ids::text from asked").fetch_one(&mut session).await.expect("ids");
        let (first, last): (uuid::Uuid, uuid::Uuid) =
            sqlx::query_as("select id[1], id[cardinality(id)] from (select array_agg(id order by id) from (
                select unnest(ids) from asked) as each (id)) as sorted (id)")
                .fetch_one(&mut session).await.expect("ends");
        let words = ["with ordinality as item (id, number)"];
        let plan = plan(&mut session, &words, &format!("'{ids}', '{ids}', '{first}', '{last}'")).await;
        for table in ["applied_message", "keyed_writes", "dead_letters"] {
            assert!(plan.contains(&format!("Index Scan using {table}")), "{plan}");
        }
        let others = plan.replace("Seq Scan on ledger_floor", "the one row");
        for scan in ["Seq Scan", "Hash", "Merge"] {
            assert!(!others.contains(scan), "{plan}");
        }
        // They are of one day or two, out of twenty and those ahead.
        let days = plan.lines().filter(|line| line.contains(" on applied_message_")).count();
        assert!((1..=2).contains(&days), "{plan}");
        // The floor is one row, which the ledger's insert reads once.
        let words = ["insert into applied_message", "is_too_old!"];
        let insert = self::plan(&mut session, &words, "'{}', '{}'").await;
        assert!(insert.contains("InitPlan") && insert.contains("on ledger_floor"), "{insert}");
        // Keys are pruned along their age, each with a check for its dead letter.
        let words = ["delete from keyed_writes", "with page"];
        let behind = "now() - interval '2 days', '00000000-0000-0000-0000-000000000000'";
        let prune = format!("now() - interval '1 day', {behind}, 1000");
        let prune = self::plan(&mut session, &words, &prune).await;
        for index in ["keyed_writes_applied_at", "dead_letters_pkey"] {
            assert!(prune.contains(&format!("using {index}")), "{prune}");
        }
        assert!(!prune.contains("Join") && !prune.contains("Seq Scan"), "{prune}");
        let sorted = prune.lines().find(|line| line.contains("Incremental Sort"));
        assert!(sorted.is_some(), "only keys of the same moment are sorted: {prune}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_and_what_they_keep_are_found_by_key() {
    testkit::isolated("letters", async |isolated| {
        let url = isolated.database_url;
        postgres(&postgres_config(&url)).await;
        let mut session = session(&url).await;
        execute(
            &mut session,
            "insert into dead_letters select md5(n::text)::uuid, 'point', 'unreadable', '', '', now(), now(),
                 case n % 9 when 0 then now() end
             from generate_series(1, 40000) as n;
             insert into keyed_writes select md5(n::text)::uuid, '0123456789abcdef', now() - interval '1 day'
             from generate_series(1, 60000) as n;
             analyze",
        )
        .await;
        let first = "'00000000-0000-0000-0000-000000000000'";
        let last = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";
        let words = ["from dead_letters", "limit $6"];
        for filter in ["null, null", "'point', null", "'point', 'unreadable'"] {
            let parameters = format!("{first}, {last}, false, {filter}, 100, 8000000");
            assert_by_keys(&plan(&mut session, &words, &parameters).await);
        }
        let ids = "(select array_agg(id) from (select id from dead_letters limit 100) as picked)";
        let ids: String = sqlx::query_scalar(AssertSqlSafe(format!("select {ids}::text")))
            .fetch_one(&mut session)
            .await
            .expect("ids");
        for (words, more) in [
            (vec!["from dead_letters", "for update skip locked", "order by id"], ""),
            (vec!["delete from dead_letters", "any($1)"], ""),
            (vec!["update keyed_writes", "any($1)"], ", now()"),
        ] {
            let plan = plan(&mut session, &words, &format!("'{ids}'{more}")).await;
            assert!(plan.contains("_pkey") && !plan.contains("Seq Scan"), "{plan}");
        }
        let words = ["update dead_letters as letter"];
        let (reasons, details) = ("array_fill('a'::text, array[100])", "array_fill('b'::text, array[100])");
        let plan_of_update = plan(&mut session, &words, &format!("'{ids}', {reasons}, {details}")).await;
        assert!(!plan_of_update.contains("Seq Scan on dead_letters"), "{plan_of_update}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_are_found_by_key() {
    testkit::isolated("rollups", async |isolated| {
        let url = isolated.database_url;
        let store = postgres(&postgres_config(&url)).await;
        apply(&store, &[Messages::new().of(&[point("t0", NOON_MS, 1.0)])]).await;
        let mut session = session(&url).await;
        execute(
            &mut session,
            "insert into metric_types (name) select 't' || n from generate_series(1, 200) as n;
             insert into rollups select 0, type, period, '' from generate_series(1, 200) as type,
                 generate_series(29393900, 29393999) as period;
             insert into rollups select 1, type, period, '' from generate_series(1, 200) as type,
                 generate_series(490000, 490400) as period;
             insert into rollups select 2, type, period, '' from generate_series(1, 200) as type,
                 generate_series(20500, 20600) as period;
             analyze",
        )
        .await;
        assert_by_keys(
            &plan(
                &mut session,
                &["for no key update", "lateral"],
                "'{1,1,2}', '{1,2,1}', '{490000,490001,20400}', 1000000",
            )
            .await,
        );
        let range =
            plan(&mut session, &["from rollups", "period >= $3"], "'t5', 1, 490000, 490010, 1000000").await;
        assert!(!range.contains("Seq Scan on rollups"), "{range}");
        // Where no rollup is old, only one place per type is read.
        let prune = statement(&["delete from rollups_hour"]);
        execute(&mut session, &format!("prepare looked_at as {prune}")).await;
        let explain = "explain (analyze, costs off, timing off, summary off) execute looked_at(490000, 1000)";
        let lines: Vec<String> =
            sqlx::query_scalar(explain).fetch_all(&mut session).await.expect("is explained");
        let lines = lines.join("\n");
        let looked_up =
            lines.lines().any(|line| line.contains("rollups_hour_pkey") && line.contains("loops=201"));
        assert!(looked_up, "{lines}");
    })
    .await;
}
