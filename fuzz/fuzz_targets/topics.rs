//! Operations on the subscription tree and the retained tree give what lists that are searched from end to end give.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use broker::codec::QoS;
use broker::topics::retained_tree::{Progress, Retained, RetainedCursor, Visit};
use broker::topics::{RetainedTree, SubscriberId, SubscriptionTree, TopicFilter, TopicName};
use libfuzzer_sys::fuzz_target;

const LEVELS_MAX: u32 = 16;

#[derive(Clone)]
struct Value(String);

impl Retained for Value {
    fn topic(&self) -> &str {
        &self.0
    }
}

/// Topics of few different levels, so that they meet.
fn text(bytes: &[u8]) -> String {
    let levels: Vec<&str> =
        bytes.iter().map(|byte| ["a", "b", "", "+", "#", "$a", "a!", "c"][usize::from(byte % 8)]).collect();
    levels.join("/")
}

fuzz_target!(|bytes: &[u8]| {
    let mut tree = SubscriptionTree::new(7);
    let mut subscriptions: BTreeMap<(u32, String), QoS> = BTreeMap::new();
    let mut retained = RetainedTree::default();
    let mut topics: BTreeSet<String> = BTreeSet::new();
    let mut rest = bytes;
    while let [operation, length, tail @ ..] = rest {
        let (levels, later) = tail.split_at(usize::from(length % 6).min(tail.len()));
        rest = later;
        let text = text(levels);
        let subscriber = u32::from(operation >> 4) % 5;
        if let Ok(filter) = TopicFilter::parse(&text, LEVELS_MAX) {
            match operation & 0x03 {
                0 | 1 => {
                    let qos = QoS::new(length % 3).expect("below 3");
                    let previous = tree.subscribe(SubscriberId(subscriber), filter, qos);
                    assert_eq!(previous, subscriptions.insert((subscriber, text.clone()), qos));
                }
                2 => {
                    let removed = tree.unsubscribe(SubscriberId(subscriber), &text);
                    assert_eq!(removed, subscriptions.remove(&(subscriber, text.clone())).is_some());
                }
                _ => {
                    tree.remove_subscriber(SubscriberId(subscriber));
                    subscriptions.retain(|(owner, _), _| *owner != subscriber);
                }
            }
            let mut cursor = RetainedCursor::new(filter);
            let mut found = BTreeSet::new();
            while retained.visit(&mut cursor, usize::from(length % 4) + 1, |value: &Value| {
                assert!(found.insert(value.0.clone()), "each once");
                Visit::Next
            }) != Progress::Done
            {}
            let expected: BTreeSet<String> = topics
                .iter()
                .filter(|topic| filter.matches(TopicName::parse(topic, LEVELS_MAX).expect("a name")))
                .cloned()
                .collect();
            assert_eq!(found, expected);
        }
        if let Ok(name) = TopicName::parse(&text, LEVELS_MAX) {
            let matches = tree.matches(name);
            let found: BTreeMap<u32, QoS> =
                matches.iter().map(|subscriber| (subscriber.id.0, subscriber.qos)).collect();
            assert_eq!(found.len(), matches.len(), "each once");
            tree.put_back(matches);
            let mut expected: BTreeMap<u32, QoS> = BTreeMap::new();
            for ((subscriber, filter), qos) in &subscriptions {
                if TopicFilter::parse(filter, LEVELS_MAX).expect("a filter").matches(name) {
                    let highest = expected.entry(*subscriber).or_insert(*qos);
                    *highest = (*highest).max(*qos);
                }
            }
            assert_eq!(found, expected);
            if operation & 0x08 == 0 {
                assert_eq!(retained.insert(Value(text.clone())).is_some(), !topics.insert(text));
            } else {
                assert_eq!(retained.remove(&text).is_some(), topics.remove(&text));
            }
        }
    }
    tree.check_invariants();
    assert_eq!((tree.len(), retained.len()), (subscriptions.len(), topics.len()));
});
