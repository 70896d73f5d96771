//! Walks against a list of topics that is searched from end to end.

use super::super::name::TopicName;
use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Value(String, u32);

impl Retained for Value {
    fn topic(&self) -> &str {
        &self.0
    }
}

fn topics(levels: &[&str], depth: usize) -> Vec<String> {
    let mut all: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
    let mut longest = all.clone();
    for _ in 1..depth {
        longest = longest
            .iter()
            .flat_map(|text| levels.iter().map(move |level| format!("{text}/{level}")))
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text, 100).unwrap()
}

#[test]
fn every_small_filter_finds_what_it_matches_in_any_slices() {
    // [MQTT-3.3.1-6] [MQTT-4.7.2-1]
    let names = topics(&["a", "b!", "", "$", "~"], 3);
    let mut tree = RetainedTree::default();
    for (number, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        // Not all of them, so that walks meet gaps.
        if number % 3 != 0 {
            assert_eq!(tree.insert(Value(name.clone(), 0)), None);
        }
    }
    for text in topics(&["a", "b!", "+", "#", "", "$", "zz"], 3) {
        let Ok(parsed) = TopicFilter::parse(&text, 10) else { continue };
        let mut expected: Vec<&str> = tree.entries.iter().map(|entry| entry.0.topic()).collect();
        expected.retain(|name| parsed.matches(TopicName::parse(name, 10).unwrap()));
        for steps_max in [1, 2, 7, 1_000] {
            let mut cursor = RetainedCursor::new(parsed);
            let mut found = Vec::new();
            let mut rounds = 0;
            loop {
                let progress = tree.visit(&mut cursor, steps_max, |value| {
                    found.push(value.topic().to_owned());
                    Visit::Next
                });
                rounds += 1;
                assert!(rounds <= 2 * tree.len() + 10, "{text}: the walk gets on");
                if progress == Progress::Done {
                    break;
                }
                assert_eq!(progress, Progress::Paused);
            }
            assert_eq!(found, expected, "{text} in steps of {steps_max}");
            assert!(names.iter().all(|name| cursor.has_passed(name)));
        }
    }
}

#[test]
fn a_walk_survives_changes_between_its_steps() {
    let mut tree = RetainedTree::default();
    for number in 0..100 {
        tree.insert(Value(format!("t/{number:02}"), 0));
    }
    let mut cursor = RetainedCursor::new(filter("t/#"));
    let mut found = Vec::new();
    let mut step = 0;
    loop {
        let mut budget = 3;
        let progress = tree.visit(&mut cursor, 1_000, |value| {
            if budget == 0 {
                return Visit::Stop;
            }
            budget -= 1;
            found.push((value.topic().to_owned(), value.1));
            Visit::Next
        });
        if progress == Progress::Done {
            break;
        }
        assert_eq!(progress, Progress::Stopped);
        // Behind and ahead: one goes, one is replaced, one comes.
        tree.remove(&format!("t/{:02}", step * 3 + 4));
        tree.insert(Value(format!("t/{:02}", step * 3 + 5), 1));
        tree.insert(Value(format!("t/{:02}x", step * 3 + 2), 2));
        step += 1;
    }
    assert!(found.is_sorted_by(|left, right| compare(&left.0, &right.0) == Ordering::Less), "none twice");
    assert!(found.iter().any(|(_, version)| *version == 1), "a replaced value is read when it is its turn");
    assert!(!found.iter().any(|(topic, _)| topic == "t/04"));
}

#[test]
fn a_sparse_filter_jumps() {
    let mut tree = RetainedTree::default();
    for device in 0..100 {
        for field in 0..100 {
            tree.insert(Value(format!("d/{device}/{field}"), 0));
        }
    }
    let mut cursor = RetainedCursor::new(filter("d/+/7"));
    let mut found = 0;
    let mut slices = 0;
    while tree.visit(&mut cursor, 100, |_| {
        found += 1;
        Visit::Next
    }) != Progress::Done
    {
        slices += 1;
    }
    assert_eq!(found, 100);
    assert!(slices <= 6, "about four steps for each of 100 devices, not 10,000");
}

#[test]
fn values_are_found_replaced_and_removed_by_topic() {
    let mut tree = RetainedTree::default();
    assert_eq!(tree.insert(Value("a/b".into(), 1)), None);
    assert_eq!(tree.insert(Value("a/b".into(), 2)), Some(Value("a/b".into(), 1)));
    assert_eq!(tree.find("a/b").map(|value| value.1), Some(2));
    assert_eq!(tree.find("a"), None);
    assert_eq!(tree.remove("a/b"), Some(Value("a/b".into(), 2)));
    assert!(tree.is_empty() && tree.remove("a/b").is_none());
}
