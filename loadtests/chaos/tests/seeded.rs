//! The seeded bugs, which prove that the suite can fail, must fit the code as it is.
use std::path::Path;
use std::process::Command;

#[test]
fn every_seeded_bug_applies_to_the_code() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("loadtests/chaos lies in the workspace");
    let mut patches = 0;
    for file in std::fs::read_dir(here.join("seeded")).expect("the folder of patches") {
        let path = file.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            patches += 1;
            let check = Command::new("git").current_dir(root).args(["apply", "--check"]).arg(&path).output();
            let check = check.expect("git runs");
            let said = String::from_utf8_lossy(&check.stderr);
            assert!(check.status.success(), "{}: {said}", path.display());
        }
    }
    assert!(patches >= 11, "only {patches} patches");
}
