//! Data directories that are odd: each start serves from them, or says plainly what is wrong.
use std::path::Path;
use std::process::Command;

use crate::cli::{API, Serving, command_of};

fn command(work: &Path, data: &str) -> Command {
    let mut command = command_of(API, work, &[]);
    for setting in ["FOREBAY__QUEUE__URL", "FOREBAY__STORE__URL"] {
        command.env(setting, format!("embedded:{data}"));
    }
    command
}

/// Starts the program, which must fail; returns its error output.
fn refused(work: &Path, data: &str) -> String {
    let output = command(work, data).output().expect("it runs");
    let reported = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{data}: {reported}");
    assert!(reported.contains(data.rsplit('/').next().expect("a name")), "{data} is named: {reported}");
    assert!(!reported.contains("panicked"), "{reported}");
    reported
}

fn served(work: &Path, data: &str) {
    assert!(Serving::of(command(work, data), work).stop(), "{data}");
}

#[test]
fn a_file_in_the_way_is_named() {
    let work = tempfile::tempdir().expect("a directory");
    std::fs::write(work.path().join("taken"), "no directory").expect("is written");
    for data in ["taken", "taken/below"] {
        let reported = refused(work.path(), data);
        assert!(reported.contains("cannot create the data directory taken"), "{reported}");
    }
    assert_eq!(std::fs::read_to_string(work.path().join("taken")).expect("is there"), "no directory");
}

/// The superuser cannot make files there either.
#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let work = tempfile::tempdir().expect("a directory");
    let reported = refused(work.path(), "/proc/self");
    assert!(reported.contains("cannot write to the data directory /proc/self"), "{reported}");
    let reported = refused(work.path(), "/proc/self/forebay-data");
    assert!(reported.contains("cannot create the data directory /proc/self/forebay-data"), "{reported}");
}

#[test]
fn spaces_and_other_characters_are_a_part_of_the_name() {
    let work = tempfile::tempdir().expect("a directory");
    for data in ["my data", "./a/b c/../ü?mode=memory#x%20y"] {
        served(work.path(), data);
        assert!(work.path().join(data).join("store.db").exists(), "{data}");
        served(work.path(), data);
    }
}

#[test]
fn a_link_leads_to_the_directory_and_to_its_lock() {
    let work = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(work.path().join("real")).expect("is made");
    std::os::unix::fs::symlink("real", work.path().join("link")).expect("is made");
    let serving = Serving::of(command(work.path(), "link"), work.path());
    assert!(work.path().join("real/queue.db").exists());
    assert!(refused(work.path(), "real").contains("in use by another process"));
    assert!(serving.stop());
    served(work.path(), "real");
    std::os::unix::fs::symlink("nowhere", work.path().join("dangling")).expect("is made");
    assert!(refused(work.path(), "dangling").contains("cannot create the data directory"));
}

/// Serves once, changes the directory by `spoil`, and returns the refusal of the next start.
async fn spoiled(spoil: impl AsyncFn(&Path)) -> String {
    let work = tempfile::tempdir().expect("a directory");
    served(work.path(), "data");
    spoil(&work.path().join("data")).await;
    refused(work.path(), "data")
}

#[tokio::test]
async fn files_of_a_newer_version_are_left_alone() {
    let execute = async |file: &Path, statement: &str| {
        testkit::sqlite::execute(file, statement.to_owned()).await.expect("is executed");
    };
    let reported =
        spoiled(async |data| execute(&data.join("queue.db"), "pragma user_version = 99").await).await;
    assert!(reported.contains("was written by a newer build (layout 99"), "{reported}");
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
        values (99, 'later', true, x'00', 0)";
    let reported = spoiled(async |data| execute(&data.join("store.db"), newer).await).await;
    assert!(
        reported.contains("schema version 99 is newer than") && reported.contains("newer build"),
        "{reported}"
    );
}

#[tokio::test]
async fn files_that_are_something_else_are_named() {
    for (file, expected) in
        [("queue.db", "queue.db"), ("store.db", "store.db"), ("ids.secret", "hexadecimal digits")]
    {
        let reported = spoiled(async |data| {
            std::fs::write(data.join(file), "something else, long enough to be no database of any kind")
                .expect("is written");
        });
        let reported = reported.await;
        assert!(reported.contains(expected), "{file}: {reported}");
        let reported = spoiled(async |data| {
            std::fs::remove_file(data.join(file)).expect("is there");
            std::fs::create_dir(data.join(file)).expect("is made");
        });
        let reported = reported.await;
        assert!(reported.contains(file), "{file}: {reported}");
    }
}
