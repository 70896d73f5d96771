//! Walks against a list of topics that is searched from end to end.

use std::collections::BTreeMap;

use super::super::name::TopicName;
use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Value(String, u32);

impl Retained for Value {
    fn topic(&self) -> &str {
        &self.0
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// All texts of one to `depth` of these levels, but the empty one.
fn texts(levels: &[&str], depth: usize) -> Vec<String> {
    let mut all: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
    let mut longest = all.clone();
    for _ in 1..depth {
        longest = longest
            .iter()
            .flat_map(|text| levels.iter().map(move |level| format!("{text}/{level}")))
            .collect();
        all.extend(longest.iter().cloned());
    }
    all.retain(|text| !text.is_empty());
    all
}

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text, 100).unwrap()
}

fn matches(filter: TopicFilter<'_>, topic: &str) -> bool {
    filter.matches(TopicName::parse(topic, 100).unwrap())
}

/// Takes everything; returns the topics and the number of slices.
fn walk(tree: &RetainedTree<Value>, cursor: &mut RetainedCursor, steps_max: usize) -> (Vec<String>, usize) {
    let mut found = Vec::new();
    let mut slices = 1;
    while tree.visit(cursor, &mut { steps_max }, |value| {
        found.push(value.0.clone());
        Visit::Next
    }) != Progress::Done
    {
        slices += 1;
        assert!(slices <= 4 * tree.len() + 4, "the walk gets on");
    }
    (found, slices)
}

#[test]
fn topics_sort_level_by_level() {
    let sorted = ["", "$a", "$a/b", "%", "a", "a/", "a//", "a/b", "a/b/c", "a/b\u{1}", "a\0", "a\u{1}", "a!"];
    let long = |text: &&str| format!("a common beginning{text}");
    let longer = |text: &&str| format!("a beginning that has more than 32 bytes{text}");
    let at_the_end = |text: &&str| format!("a beginning that has 31 bytes..{text}");
    for texts in [
        sorted.map(str::to_owned),
        sorted.each_ref().map(long),
        sorted.each_ref().map(longer),
        sorted.each_ref().map(at_the_end),
    ] {
        for (index, left) in texts.iter().enumerate() {
            for (other, right) in texts.iter().enumerate() {
                assert_eq!(
                    compare(left.as_bytes(), right.as_bytes()),
                    index.cmp(&other),
                    "{left:?} {right:?}"
                );
                if !left.contains('\0') && !right.contains('\0') {
                    let keys = [left, right].map(|text| SortKey::of(text.as_bytes()));
                    assert_eq!(keys[0].cmp(&keys[1]), index.cmp(&other), "{left:?} {right:?}");
                }
            }
        }
    }
}

#[test]
fn a_tree_of_many_values_is_the_one_that_they_make_one_by_one() {
    let mut topics = texts(&["a", "", "b!", "a level of twenty bytes"], 4);
    let mut random = Random(7);
    for at in (1..topics.len()).rev() {
        topics.swap(at, random.below(at + 1));
    }
    let values: Vec<Value> =
        topics.into_iter().zip(0..).map(|(topic, number)| Value(topic, number)).collect();
    let mut one_by_one = RetainedTree::default();
    for value in values.clone() {
        assert_eq!(one_by_one.insert(value), None);
    }
    let mut whole = RetainedTree::default();
    values[..3].iter().for_each(|value| assert_eq!(whole.insert(value.clone()), None));
    whole.fill(values[3..].to_vec()).expect("each topic is there once");
    let content = |tree: &RetainedTree<Value>| -> Vec<Value> {
        tree.entries.iter().map(|Entry(value)| value.clone()).collect()
    };
    assert_eq!(content(&whole), content(&one_by_one));
    for value in &values {
        assert_eq!(whole.find(&value.0), Some(value));
    }
    let again = Value(values[3].0.clone(), 1_000_000);
    let twice = [values.clone(), vec![again.clone()]].concat();
    assert_eq!(RetainedTree::default().fill(twice), Err(again.clone()));
    assert_eq!(whole.fill(vec![again.clone()]), Err(again));
}

#[test]
fn every_small_filter_finds_what_it_matches_in_any_slices() {
    // [MQTT-3.3.1-6] [MQTT-4.7.2-1]
    let names = texts(&["a", "b!", "", "$", "~"], 3);
    let mut tree = RetainedTree::default();
    // Not all of them, so that walks meet gaps.
    for name in names.iter().enumerate().filter(|(number, _)| number % 3 != 0).map(|(_, name)| name) {
        assert_eq!(tree.insert(Value(name.clone(), 0)), None);
    }
    for text in texts(&["a", "b!", "+", "#", "", "$", "zz"], 3) {
        let Ok(parsed) = TopicFilter::parse(&text, 10) else { continue };
        let expected: Vec<&str> =
            tree.entries.iter().map(|entry| entry.0.topic()).filter(|name| matches(parsed, name)).collect();
        for steps_max in [1, 2, 7, 1_000] {
            let mut cursor = RetainedCursor::new(parsed);
            assert_eq!(tree.visit(&mut cursor, &mut 0, |_| unreachable!()), Progress::Paused);
            assert_eq!(walk(&tree, &mut cursor, steps_max).0, expected, "{text} in slices of {steps_max}");
            assert!(names.iter().all(|name| cursor.has_passed(name)));
            assert_eq!(tree.visit(&mut cursor, &mut { steps_max }, |_| unreachable!()), Progress::Done);
        }
    }
}

#[test]
fn walks_survive_changes_between_their_slices() {
    let names = texts(&["a", "b", "a.", "", "$"], 3);
    let filters = texts(&["a", "b", "+", "#", "$"], 3);
    let mut random = Random(42);
    let mut tree = RetainedTree::default();
    let mut model: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..400 {
        let text = &filters[random.below(filters.len())];
        let Ok(parsed) = TopicFilter::parse(text, 10) else { continue };
        let mut cursor = RetainedCursor::new(parsed);
        let mut offered: BTreeMap<String, u32> = BTreeMap::new();
        // What the walk still owes: no more and no less than what it has not passed.
        let mut owed: BTreeMap<String, u32> = model.clone();
        owed.retain(|name, _| matches(parsed, name));
        let mut last: Option<String> = None;
        loop {
            let mut room = random.below(4);
            let progress = tree.visit(&mut cursor, &mut random.below(12), |value: &Value| {
                if room == 0 {
                    return Visit::Stop;
                }
                room -= 1;
                assert_eq!(owed.remove(&value.0), Some(value.1), "{text}");
                assert_eq!(offered.insert(value.0.clone(), value.1), None, "nothing is taken twice");
                assert!(
                    last.as_ref()
                        .is_none_or(|last| compare(last.as_bytes(), value.topic_bytes()) == Ordering::Less),
                    "in order"
                );
                last = Some(value.0.clone());
                Visit::Next
            });
            assert!(owed.keys().all(|name| !cursor.has_passed(name)), "{text}");
            assert!(offered.keys().all(|name| cursor.has_passed(name)), "{text}");
            if progress == Progress::Done {
                break;
            }
            for _ in 0..random.below(4) {
                let name = &names[random.below(names.len())];
                if random.below(3) == 0 {
                    assert_eq!(tree.remove(name).map(|value| value.1), model.remove(name));
                    owed.remove(name);
                } else {
                    let replaced = tree.insert(Value(name.clone(), round)).map(|value| value.1);
                    assert_eq!(replaced, model.insert(name.clone(), round));
                    if matches(parsed, name) && !cursor.has_passed(name) {
                        owed.insert(name.clone(), round);
                    }
                }
            }
        }
        assert!(owed.is_empty(), "none is left out");
        assert_eq!(tree.len(), model.len());
    }
}

#[test]
fn a_sparse_filter_jumps() {
    let mut tree = RetainedTree::default();
    for device in 0..100 {
        for field in 0..100 {
            tree.insert(Value(format!("d/{device}/{field}"), 0));
            tree.insert(Value(format!("$d/{device}/{field}"), 0));
        }
    }
    for (text, count, slices_max) in [
        ("#", 10_000, 103),
        ("d/+/7", 100, 10),
        ("+/55/+", 100, 3),
        ("+/+/7", 100, 10),
        ("d/55/#", 100, 3),
        ("d/55/7/#", 1, 1),
        ("e/+", 0, 1),
        ("+/+", 0, 10),
    ] {
        let (found, slices) = walk(&tree, &mut RetainedCursor::new(filter(text)), 100);
        assert_eq!(found.len(), count, "{text}");
        assert!(slices <= slices_max, "{text}: {slices} slices of 100 steps");
    }
}

#[test]
fn long_topics_are_walked() {
    let mut tree = RetainedTree::default();
    let slashes = "/".repeat(65_535);
    tree.insert(Value(slashes.clone(), 0));
    tree.insert(Value(slashes[1..].to_owned(), 0));
    for (text, count) in [("#", 2), ("+/#", 2), ("/+/#", 2), ("//+", 0), (&*"+/".repeat(32_767), 0)] {
        let filter = TopicFilter::parse(text, 1 << 16).unwrap();
        assert_eq!(walk(&tree, &mut RetainedCursor::new(filter), 5).0.len(), count);
    }
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
