//! The layout of the crates: files do not import each other in circles, and rooms import downwards only.
//!
//! Sources are read as text, without comments, strings, tests and `main.rs`; each path leads to the deepest
//! file that it names.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Files in the largest circle that is allowed.
const CIRCLE_FILES_MAX: usize = 2;

/// Rooms (top folders) of each crate, read from top to bottom: a room imports those of the lines above
/// its own.
const ROOMS: &[(&str, &[&[&str]])] = &[
    (
        "shared",
        &[&["model"], &["runtime"], &["config"], &["amqp"], &["queue", "store", "event"], &["program"]],
    ),
    (
        "consumer",
        &[&["metrics", "low_watermark"], &["status"], &["ingest"], &["dead_letters"], &["retention"]],
    ),
    (
        "api",
        &[
            &["metrics", "rfc3339", "store_breaker", "keys_command", "banner", "target"],
            &["admission"],
            &["wait"],
            &["receipt"],
            &["http"],
            &["read"],
            &["batcher"],
            &["state"],
            &["health", "event_feed", "write"],
            &["routes"],
            &["server"],
        ],
    ),
];

/// Sources by module: `store::rules::plan`; the root is the empty name.
type Sources = BTreeMap<String, String>;

/// The files that each file imports.
type Arrows = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_circle_of_files_is_larger_than_two() {
    for (krate, _) in ROOMS {
        let arrows = arrows(&sources(krate));
        for circle in circles(&arrows) {
            let line = |file| format!("{file} -> {:?}\n", &arrows[file] & &circle);
            let found: String = circle.iter().map(line).collect();
            assert!(circle.len() <= CIRCLE_FILES_MAX, "{krate}: {} files\n{found}", circle.len());
        }
    }
}

#[test]
fn rooms_import_downwards_only() {
    for (krate, lines) in ROOMS {
        assert_eq!(upwards(&arrows(&sources(krate)), lines), BTreeSet::new(), "{krate}");
    }
}

/// Arrows between rooms that do not lead downwards, and those of rooms that no line names.
fn upwards(arrows: &Arrows, lines: &[&[&str]]) -> BTreeSet<String> {
    let room = |file: &String| file.split("::").next().unwrap_or_default().to_owned();
    let line = |room: &str| lines.iter().position(|line| line.contains(&room));
    let arrows = arrows.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to)));
    let is_up = |(from, to): &(&String, &String)| match (line(&room(from)), line(&room(to))) {
        (Some(own), Some(other)) => room(from) != room(to) && own <= other,
        (own, _) => own.is_some() || !from.is_empty(),
    };
    arrows.filter(is_up).map(|(from, to)| format!("{from} -> {to}")).collect()
}

fn sources(krate: &str) -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(krate).join("src");
    let (mut sources, mut folders) = (Sources::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("sources are there") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(&root).expect("within").to_str().expect("a name").replace('/', "::");
            if let Some(module) = name.strip_suffix(".rs") {
                let module = if module == "lib" { "" } else { module };
                sources.insert(module.into(), std::fs::read_to_string(path).expect("text"));
            } else {
                folders.push(path);
            }
        }
    }
    sources.retain(|module, _| module != "main" && !module.ends_with("::tests"));
    assert!(sources.len() > 5, "{krate} has sources");
    sources
}

fn arrows(sources: &Sources) -> Arrows {
    let imports = |(here, source): (&String, &String)| {
        let files = paths(&code(source)).into_iter().filter_map(|path| file_of(&path, here, sources));
        (here.clone(), files.filter(|file| file != here && !file.is_empty()).collect())
    };
    sources.iter().map(imports).collect()
}

/// The deepest file that a path names; `None` for one that leads out of the crate.
fn file_of(path: &str, here: &str, sources: &Sources) -> Option<String> {
    let below =
        |file: &str, step: &str| if file.is_empty() { step.into() } else { format!("{file}::{step}") };
    let first = path.split("::").next()?;
    let is_ours = ["crate", "self", "super"].contains(&first) || sources.contains_key(&below(here, first));
    let mut file = is_ours.then(|| here.to_owned())?;
    for step in path.split("::") {
        match step {
            "crate" => file = String::new(),
            "self" => {}
            "super" => file = file.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned()),
            _ if sources.contains_key(&below(&file, step)) => file = below(&file, step),
            _ => break,
        }
    }
    Some(file)
}

/// The source without comments, strings, and tests, which rustfmt closes at the beginning of a line.
fn code(source: &str) -> String {
    let (mut code, mut rest) = (String::new(), source);
    while let Some(first) = rest.chars().next() {
        let until = |end: &str, from| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
        let closes = |at: &usize| rest[..*at].bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 0;
        let mut quotes = rest.match_indices('"').map(|(at, _)| at).skip(1);
        let skipped = match first {
            '/' if rest.starts_with("//") => until("\n", 0),
            '"' => quotes.find(closes).map_or(rest.len(), |at| at + 1),
            'r' if rest.starts_with("r#\"") => until("\"#", 3),
            '\'' if rest.starts_with("'\"'") => 3,
            '#' if rest.starts_with("#[cfg(test)]\nmod tests {") => until("\n}", 0),
            _ => 0,
        };
        code.extend((skipped == 0).then_some(first));
        rest = &rest[skipped.max(first.len_utf8())..];
    }
    code
}

/// Paths of more than one step, and those of `use` trees.
fn paths(code: &str) -> Vec<String> {
    let is_path = |character: char| character.is_alphanumeric() || "_:".contains(character);
    let (mut paths, mut rest) = (Vec::new(), code);
    while let Some(start) = rest.find(is_path) {
        rest = rest[start..].trim_start_matches(':');
        let (path, behind) = rest.split_at(rest.find(|character| !is_path(character)).unwrap_or(rest.len()));
        rest = behind;
        if path == "use" {
            let (tree, behind) = rest.split_once(';').unwrap_or((rest, ""));
            unfold("", tree, &mut paths);
            rest = behind;
        } else if path.contains("::") {
            paths.push(path.to_owned());
        }
    }
    paths
}

/// `a::{self, b::{c, d as e}}` as `a`, `a::b::c` and `a::b::d`.
fn unfold(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((before, inner)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default().trim();
        return paths.push(format!("{prefix}{name}").trim_end_matches("::self").to_owned());
    };
    let (prefix, mut depth) = (format!("{prefix}{}", before.trim()), 0);
    let ends = |c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth < 0 || c == ',' && depth == 0
    };
    for part in inner.split(ends).filter(|part| !part.trim().is_empty()) {
        unfold(&prefix, part, paths);
    }
}

/// Files that reach each other, two or more.
fn circles(arrows: &Arrows) -> BTreeSet<BTreeSet<String>> {
    let mut reached = arrows.clone();
    for (file, all) in &mut reached {
        let mut next = vec![file];
        while let Some(from) = next.pop() {
            next.extend(arrows[from].iter().filter(|to| all.insert((*to).clone()) || from == file));
        }
    }
    let circle = |file: &String| {
        reached[file].iter().filter(|other| reached[*other].contains(file)).cloned().collect()
    };
    reached.keys().map(circle).filter(|circle: &BTreeSet<_>| circle.len() > 1).collect()
}

#[test]
fn imports_are_read_however_they_are_spelt() {
    let read = |text: &str| paths(&code(text)).join(" ");
    assert_eq!(read("use a::{self, b::{c, d as e}, f::*};\ng::h()"), "a a::b::c a::b::d a::f::* g::h");
    assert_eq!(read("super::T, \"\\\" crate::a\", '\"', r#\"\"crate::b\"# child::y"), "super::T child::y");
    assert_eq!(read("// crate::a\n#[cfg(test)]\nmod tests {\n    use crate::b;\n}\nself::c();"), "self::c");
}

#[test]
fn a_circle_of_three_files_and_an_arrow_upwards_are_found() {
    let files = [("low", ""), ("low::a", "use crate::{low::b::B};"), ("low::b", "super::c::f()")];
    let mut sources = Sources::from(files.map(|(file, text)| (file.into(), text.into())));
    assert_eq!(circles(&arrows(&sources)), BTreeSet::new());
    sources.insert("low::c".into(), "use super::a::{A, C};".into());
    let circle = BTreeSet::from(["low::a", "low::b", "low::c"].map(String::from));
    assert_eq!(circles(&arrows(&sources)), BTreeSet::from([circle]));
    sources.insert("top".into(), "use crate::low::a;".into());
    assert_eq!(upwards(&arrows(&sources), &[&["low"], &["top"]]), BTreeSet::new());
    assert_eq!(upwards(&arrows(&sources), &[&["top"], &["low"]]), BTreeSet::from(["top -> low::a".into()]));
}
