//! Every statement of the standard that a server must meet is proven by a test that names it, or waived by name with a
//! reason.
//!
//! `tests/conformance/*.txt` list the ids, `tests/conformance/waivers.txt` the waivers. A proof is a tag such as
//! `[MQTT-3.1.0-1]` in a dialog or in test code; tags in the product stand at the rule and prove nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const LISTS: [&str; 3] = ["mqtt-3.1.1.txt", "mqtt-5.0.txt", "beyond-the-text.txt"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a list without comments and empty ones.
fn lines(name: &str) -> Vec<String> {
    let text = read(&root().join("tests/conformance").join(name));
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the project") {
        let path = entry.expect("its entries can be read").path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// Every id in square brackets.
fn tags(text: &str) -> impl Iterator<Item = String> {
    text.split('[')
        .skip(1)
        .filter_map(|rest| rest.split(']').next())
        .filter(|tag| ["MQTT-", "MQTT5-", "B-"].iter().any(|kind| tag.starts_with(kind)))
        .map(str::to_owned)
}

/// The ids that tests name.
fn proven() -> BTreeSet<String> {
    let mut proven = BTreeSet::new();
    let mut found = Vec::new();
    files(&root().join("tests"), &mut found);
    for path in &found {
        let is_test = path.extension().is_some_and(|extension| extension == "rs" || extension == "mqtt");
        if is_test && path.file_name().is_some_and(|name| name != "conformance.rs") {
            proven.extend(tags(&read(path)));
        }
    }
    let mut sources = Vec::new();
    files(&root().join("src"), &mut sources);
    for path in sources.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let text = read(path);
        if path.file_name().is_some_and(|name| name == "tests.rs") {
            proven.extend(tags(&text));
        } else if let Some((_, tests)) = text.split_once("#[cfg(test)]\nmod tests {") {
            proven.extend(tags(tests));
        }
    }
    proven
}

fn waivers() -> BTreeMap<String, String> {
    lines("waivers.txt")
        .into_iter()
        .map(|line| {
            let (id, reason) = line.split_once(": ").unwrap_or_else(|| panic!("no reason: {line}"));
            assert!(reason.len() > 20, "a reason says why: {line}");
            (id.to_owned(), reason.to_owned())
        })
        .collect()
}

#[test]
fn every_statement_is_proven_or_waived() {
    let (proven, waivers) = (proven(), waivers());
    for list in LISTS {
        let ids = lines(list);
        assert!(ids.len() > 80, "{list} is complete");
        let missing: Vec<&String> =
            ids.iter().filter(|id| !proven.contains(*id) && !waivers.contains_key(*id)).collect();
        assert!(missing.is_empty(), "{list}: neither proven nor waived: {missing:?}");
    }
}

#[test]
fn waivers_and_tags_name_statements_that_exist() {
    let known: BTreeSet<String> = LISTS.iter().flat_map(|list| lines(list)).collect();
    let (proven, waivers) = (proven(), waivers());
    let unknown: Vec<&String> =
        proven.iter().chain(waivers.keys()).filter(|id| !known.contains(*id)).collect();
    assert!(unknown.is_empty(), "no such statement: {unknown:?}");
    let both: Vec<&String> = waivers.keys().filter(|id| proven.contains(*id)).collect();
    assert!(both.is_empty(), "proven, so not to be waived: {both:?}");
}
