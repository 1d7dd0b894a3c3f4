//! Checks the structure that ARCHITECTURE.md describes, in the source itself: which room may use which, and how large
//! files and functions may be.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of the engine, each with the other rooms that it may use: only rooms further down this list.
const ENGINE: [(&str, &[&str]); 7] = [
    ("model", &["spec", "device", "text", "picture", "file", "error"]),
    ("spec", &["device", "picture", "file", "error"]),
    ("device", &["file", "error"]),
    ("text", &["file", "error"]),
    ("picture", &["error"]),
    ("file", &["error"]),
    ("error", &[]),
];

/// Rooms of the tool.
const TOOL: [(&str, &[&str]); 6] = [
    ("commands", &["measure", "native", "convert", "checkpoint", "files"]),
    ("measure", &["native", "convert", "checkpoint", "files"]),
    ("native", &["files"]),
    ("convert", &["checkpoint", "files"]),
    ("checkpoint", &["files"]),
    ("files", &[]),
];

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file below `folder`, with its text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&entry).unwrap();
            found.push((entry, text));
        }
    }
    found.sort();
    found
}

/// The rooms that a file names by `crate::room`, with the lines that do; a glob of the crate's root would hide others
/// and counts as one.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| {
        line.match_indices("crate::").filter_map(move |(at, path)| {
            let rest = &line[at + path.len()..];
            let is_own = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            is_own.then_some((&rest[..end], line))
        })
    })
}

/// Asserts that no file uses a room that its own room may not use.
fn check(src: &Path, rooms: &[(&str, &[&str])]) {
    let mut n_named = 0;
    for (path, text) in sources(src) {
        let inside = path.strip_prefix(src).unwrap();
        let first = inside.iter().next().unwrap().to_str().unwrap();
        let room = first.strip_suffix(".rs").unwrap_or(first);
        if matches!(room, "lib" | "main") {
            continue;
        }
        let (_, allowed) =
            rooms.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{inside:?} is in no room"));
        for (used, line) in named(&text) {
            let is_room = rooms.iter().any(|(name, _)| *name == used);
            assert!(!is_room || used == room || allowed.contains(&used), "{inside:?} uses {used}: {line}");
            n_named += is_room as usize;
        }
    }
    assert!(n_named > 10, "{src:?}: only {n_named} uses were found");
}

#[test]
fn imports_of_the_engine_go_one_way() {
    check(&root().join("crate/src"), &ENGINE);
}

#[test]
fn imports_of_the_tool_go_one_way() {
    check(&root().join("quantize/src"), &TOOL);
}

/// Name and number of lines of each function, found by rustfmt's indentation.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let starts = lines.iter().enumerate().filter_map(|(idx, line)| {
        let code = line.trim_start();
        let words: Vec<&str> = code.split(' ').take_while(|word| !word.contains('(')).collect();
        let is_function =
            !code.starts_with("//") && words.iter().all(|word| !word.contains('"')) && words.contains(&"fn")
                || code.starts_with("fn ");
        is_function.then_some((idx, line.len() - code.len()))
    });
    starts
        .map(|(start, indent)| {
            // A body ends with a brace, a declaration in a trait with a semicolon.
            let is_end = |line: &&str| {
                line.len() - line.trim_start().len() == indent
                    && (line.trim_start() == "}" || line.trim_start().starts_with(')') && line.ends_with(';'))
            };
            let is_one_line = lines[start].ends_with('}') || lines[start].ends_with(';');
            let n_lines = if is_one_line { 1 } else { lines[start..].iter().position(is_end).unwrap_or(0) + 1 };
            (lines[start].trim(), n_lines)
        })
        .collect()
}

#[test]
fn files_and_functions_can_be_read_at_once() {
    let mut n_functions = 0;
    for folder in ["crate", "quantize/src", "web", "tests/src", "tools"] {
        for (path, text) in sources(&root().join(folder)) {
            let n_lines = text.lines().count();
            assert!(n_lines <= MAX_FILE_LINES, "{path:?} has {n_lines} lines; {MAX_FILE_LINES} at most");
            for (name, n_lines) in functions(&text) {
                n_functions += 1;
                assert!(
                    n_lines <= MAX_FUNCTION_LINES,
                    "{path:?}: {n_lines} lines of {name}; {MAX_FUNCTION_LINES} at most"
                );
            }
        }
    }
    assert!(n_functions > 1000, "only {n_functions} functions were found");
}
