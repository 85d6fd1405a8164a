//! The shipped programs: small, with line tables beside them that tools find.
use std::path::Path;
use std::process::Command;

use crate::cli::API;

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Finds file and line of the program's `main`.
fn place_of_main(program: &str) -> String {
    let symbols = output("nm", &["--demangle", program]);
    let main = symbols.lines().find(|line| line.ends_with(" forebay_api::main")).expect("a symbol");
    let address = main.split(' ').next().expect("an address");
    output("addr2line", &["-e", program, address])
}

#[test]
fn a_program_is_shipped_without_its_line_tables_and_finds_them_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/ship");
    let folder_text = folder.path().to_str().expect("text");
    output(script.to_str().expect("text"), &["--split", API, folder_text]);
    let shipped = folder.path().join("forebay-api");
    let bytes = |path: &Path| std::fs::metadata(path).expect("a file").len();
    assert!(bytes(&shipped) * 4 < bytes(Path::new(API)) * 3, "{} bytes", bytes(&shipped));
    let shipped = shipped.to_str().expect("text");
    assert!(output(shipped, &["--version"]).starts_with("forebay-api "));
    assert!(place_of_main(shipped).contains("api/src/main.rs:"), "{}", place_of_main(shipped));
    std::fs::remove_file(folder.path().join("forebay-api.debug")).expect("it is there");
    assert!(place_of_main(shipped).starts_with("??"), "the place was in the program itself");
}
