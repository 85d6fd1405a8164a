//! The language of the sources: doc comments open with a noun or a verb, comments name their subject, and a
//! type name has one meaning. Shares instead of bans: a sentence that needs a word may have it.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Openers that leave the subject out.
const OPENERS: [&str; 5] = ["Of", "What", "Whether", "Who", "By"];

/// Words that stand for a subject which has a name.
const RIDDLES: [&str; 4] = ["told", "hear", "who", "nobody"];

const OPENERS_PERCENT_MAX: usize = 5;
const RIDDLES_PER_1000_LINES_MAX: usize = 5;
const TWO_MEANINGS_PERCENT_MAX: usize = 5;

#[test]
fn doc_comments_open_with_a_noun_or_a_verb() {
    let openers: Vec<_> = sources().iter().flat_map(|(_, text)| openers(text)).collect();
    let bad: Vec<_> = openers.iter().filter(|word| OPENERS.contains(&word.as_str())).collect();
    assert!(openers.len() > 1_000, "comments are found");
    assert!(bad.len() * 100 <= openers.len() * OPENERS_PERCENT_MAX, "{} of {}", bad.len(), openers.len());
}

#[test]
fn comments_name_their_subject() {
    let sources = sources();
    let lines: Vec<_> =
        sources.iter().flat_map(|(path, text)| comments(text).map(move |line| (path, line))).collect();
    let is_riddle = |line: &str| words(line).any(|word| RIDDLES.contains(&word.to_lowercase().as_str()));
    let bad: Vec<_> = lines.iter().filter(|(_, line)| is_riddle(line)).collect();
    assert!(bad.len() * 1_000 <= lines.len() * RIDDLES_PER_1000_LINES_MAX, "{bad:#?}");
}

#[test]
fn a_type_name_has_one_meaning() {
    let mut types: BTreeMap<String, BTreeSet<PathBuf>> = BTreeMap::new();
    for (path, text) in sources() {
        for name in text.lines().filter_map(type_name) {
            types.entry(name.to_owned()).or_default().insert(path.clone());
        }
    }
    let twice: Vec<_> = types.iter().filter(|(_, paths)| paths.len() > 1).collect();
    assert!(twice.len() * 100 <= types.len() * TWO_MEANINGS_PERCENT_MAX, "{twice:#?}");
}

/// Product sources with their paths, without tests.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<_> = ["api", "consumer", "shared"].map(|krate| root.join(krate).join("src")).into();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("sources are there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
                sources.push((path, product));
            }
        }
    }
    sources
}

/// First words of the doc comments.
fn openers(text: &str) -> Vec<String> {
    let docs = text.lines().map(|line| {
        let line = line.trim_start();
        line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
    });
    let mut is_first = true;
    let mut openers = Vec::new();
    for doc in docs {
        openers.extend(doc.filter(|_| is_first).and_then(|doc| words(doc).next()).map(str::to_owned));
        is_first = doc.is_none();
    }
    openers
}

fn comments(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| line.starts_with("//"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty())
}

/// Name of a type that a line at the beginning of a file's nesting defines.
fn type_name(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(super) ")).unwrap_or(line);
    let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
    let rest = ["struct ", "enum ", "trait ", "type "].iter().find_map(|word| line.strip_prefix(word))?;
    words(rest).next()
}

#[test]
fn openers_and_names_are_found() {
    assert_eq!(openers("//! One.\n//! Two.\nuse a;\n    /// Three of it.\n///  Four"), ["One", "Three"]);
    assert_eq!(type_name("pub struct Name<T>;"), Some("Name"));
    assert_eq!(type_name("    type Item = u8;"), None);
    assert_eq!(comments("let a = 1;\n  // who").collect::<Vec<_>>(), ["// who"]);
}
