//! The layout that ARCHITECTURE.md promises, checked on the source itself.

use std::path::{Path, PathBuf};

/// The order of DESIGN's core: a module of `src/` uses only what stands before it.
const ORDER: [&str; 9] =
    ["id", "hash", "codec", "seal", "file", "meta", "ledger", "cluster", "wire"];

/// What the core never touches: it decides, the daemon acts.
const IMPURE: [&str; 14] = [
    "tokio::",
    "reqwest::",
    "fuser::",
    "axum::",
    "hyper::",
    "rustls::",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "SystemTime::now",
    "Instant::now",
    "getrandom::",
];

/// One file syncs and renames, so that the order of durability is read in one place.
const DURABLE: &str = "daemon/store/durable.rs";
const DURABLE_CALLS: [&str; 9] = [
    ".sync_all(",
    ".sync_data(",
    "fs::rename(",
    "libc::fsync(",
    "libc::fdatasync(",
    "fs::fsync(",
    "fs::fdatasync(",
    "syncfs(",
    "renameat",
];

/// Files above this are split by promise.
const LINES_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

/// Every Rust file below `dir`, as (path from the root, text).
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("UTF-8 source");
                let name = path.strip_prefix(root()).expect("below the root");
                found.push((name.to_string_lossy().into_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} has no sources");
    found
}

fn all() -> Vec<(String, String)> {
    ["src", "mount", "daemon", "tests"].into_iter().flat_map(sources).collect()
}

/// Source lines without comments and without the tests at the foot.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let text = text.split("#[cfg(test)]").next().unwrap_or(text);
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn a_core_module_uses_only_what_stands_before_it() {
    for (name, text) in sources("src") {
        let module = name.trim_start_matches("src/").split(['/', '.']).next().expect("a module");
        let Some(own) = ORDER.iter().position(|m| *m == module) else {
            assert_eq!(module, "lib", "{name} is not in the order of modules");
            continue;
        };
        for later in &ORDER[own + 1..] {
            let path = format!("crate::{later}");
            let uses = |line: &&str| {
                line.split(&path)
                    .skip(1)
                    .any(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            };
            let line = code(&text).find(uses);
            assert_eq!(line, None, "{name}: `{module}` must not use the later `{later}`");
        }
    }
}

#[test]
fn the_core_is_pure() {
    for (name, text) in sources("src") {
        for word in IMPURE {
            let line = code(&text).find(|line| line.contains(word));
            assert_eq!(line, None, "{name} must not touch {word}");
        }
    }
}

#[test]
fn crates_depend_in_one_direction() {
    for (dir, banned) in [("mount", "mictlan_daemon"), ("src", "mictlan_mount")] {
        for (name, text) in sources(dir) {
            assert!(!text.contains(banned), "{name} must not use {banned}");
        }
    }
}

#[test]
fn one_file_syncs_and_renames() {
    for (name, text) in sources("daemon").into_iter().chain(sources("mount")) {
        if name == DURABLE {
            continue;
        }
        for call in DURABLE_CALLS {
            let line = code(&text).find(|line| line.contains(call));
            assert_eq!(line, None, "{name} calls {call} outside {DURABLE}");
        }
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for (name, text) in all() {
        assert!(text.starts_with("//!"), "{name} does not open with a module doc");
    }
}

#[test]
fn no_file_outgrows_a_reader() {
    for (name, text) in all() {
        assert!(text.lines().count() <= LINES_MAX, "{name} has over {LINES_MAX} lines");
    }
}

#[test]
fn nothing_is_left_half_done() {
    let marks =
        [concat!("#[ig", "nore"), concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    for (name, text) in all() {
        for mark in marks {
            assert!(!text.contains(mark), "{name} has a {mark}");
        }
    }
}

/// What git leaves in a file when two changes meet is nobody's text.
#[test]
fn no_page_has_two_versions_of_itself() {
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).expect("a readable directory") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().expect("an entry has a name").to_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    open.push(path);
                }
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                let mark =
                    |line: &str| line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ");
                let line = text.lines().position(mark).map(|at| at + 1);
                assert_eq!(line, None, "{} has a mark of a conflict", path.display());
            }
        }
    }
}

/// The names between backticks in the last column of PROMISES.md's tables.
fn promised() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("tests/PROMISES.md")).expect("a table");
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let last = rows.filter_map(|row| row.trim_end_matches('|').rsplit('|').next());
    let names = last.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let sources = all();
    let names = promised();
    assert!(names.len() > 50, "the table was not understood");
    for name in names {
        let function = format!("fn {name}(");
        let there = match name.contains('/') {
            true => root().join(&name).exists(),
            false => sources.iter().any(|(_, text)| text.contains(&function)),
        };
        assert!(there, "tests/PROMISES.md names {name}, which is no test");
    }
}

#[test]
fn every_bad_case_is_in_the_table_of_promises() {
    let names = promised();
    for (file, text) in sources("tests").into_iter().filter(|(name, _)| name.contains("/bad_")) {
        let tests = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
        for test in tests {
            assert!(names.iter().any(|name| name == test), "{file}: {test} is not in the table");
        }
    }
}
