//! Operations on the subscription tree and the retained tree give what lists that are searched from end to end give.

#![no_main]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use broker::codec::QoS;
use broker::topics::match_cache::Matches;
use broker::topics::retained_tree::{Progress, Retained, RetainedCursor, Visit};
use broker::topics::{
    Grant, RetainedTree, Subscriber, SubscriberId, SubscriptionTree, TopicFilter, TopicName,
};
use libfuzzer_sys::fuzz_target;

const LEVELS_MAX: u32 = 16;

/// So few subscribers that they meet, and so many that a list of them grows long.
const SUBSCRIBERS: u32 = 32;

struct Value {
    topic: String,
    number: usize,
}

impl Retained for Value {
    fn topic(&self) -> &str {
        &self.topic
    }
}

/// A walk, and what it still has to offer.
struct Walk {
    filter: String,
    cursor: RetainedCursor,
    owed: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Model {
    /// The filters of each subscriber, in the order of subscribing.
    subscriptions: BTreeMap<u32, Vec<(String, Grant)>>,
    retained: BTreeMap<String, usize>,
}

impl Model {
    fn subscribe(&mut self, subscriber: u32, filter: &str, grant: Grant) -> Option<Grant> {
        let list = self.subscriptions.entry(subscriber).or_default();
        if let Some((_, present)) = list.iter_mut().find(|(text, _)| text == filter) {
            return Some(std::mem::replace(present, grant));
        }
        list.push((filter.to_owned(), grant));
        None
    }

    fn unsubscribe(&mut self, subscriber: u32, filter: &str) -> bool {
        let list = self.subscriptions.entry(subscriber).or_default();
        let len = list.len();
        list.retain(|(text, _)| text != filter);
        list.len() < len
    }

    fn matched(&self, topic: TopicName<'_>) -> BTreeMap<u32, Found> {
        let mut all = BTreeMap::new();
        for (subscriber, list) in &self.subscriptions {
            let mut matching = list.iter().filter(|(text, _)| matches(text, topic.as_str())).peekable();
            if matching.peek().is_some() {
                all.insert(*subscriber, Found::of(matching.map(|(_, grant)| *grant)));
            }
        }
        all
    }
}

/// What all matching subscriptions of one subscriber grant together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    qos: QoS,
    retain_as_published: bool,
    /// Whether one of them has neither No Local nor an identifier: those may be merged.
    plain: bool,
    /// The others, sorted.
    others: Vec<(Option<NonZeroU32>, bool, QoS, bool)>,
}

impl Found {
    fn of(grants: impl IntoIterator<Item = Grant>) -> Self {
        let mut found = Self::default();
        for Grant { qos, no_local, retain_as_published, subscription_id } in grants {
            found.qos = found.qos.max(qos);
            found.retain_as_published |= retain_as_published;
            if !no_local && subscription_id.is_none() {
                found.plain = true;
            } else {
                found.others.push((subscription_id, no_local, qos, retain_as_published));
            }
        }
        found.others.sort_unstable();
        found
    }
}

/// What the tree found for each subscriber.
fn found(matches: &Matches) -> BTreeMap<u32, Found> {
    let mut all = BTreeMap::new();
    for subscriber in matches.iter() {
        let Subscriber { id, qos, retain_as_published, .. } = subscriber;
        let found = if subscriber.is_detailed() {
            Found::of(matches.grants(subscriber))
        } else {
            Found::of([Grant { qos, retain_as_published, ..Grant::default() }])
        };
        assert_eq!((found.qos, found.retain_as_published), (qos, retain_as_published));
        all.insert(id.0, found);
    }
    assert_eq!(all.len(), matches.len(), "each once");
    all
}

/// Half of the operations that subscribe ask for what 3.1.1 has, the others for all there is.
fn grant(operation: u8, argument: u8) -> Grant {
    let plain = Grant::from(QoS::new(argument % 3).expect("below 3"));
    if operation & 0x01 == 0 {
        return plain;
    }
    Grant {
        no_local: argument & 0x04 != 0,
        retain_as_published: argument & 0x08 != 0,
        subscription_id: NonZeroU32::new(u32::from(argument >> 3 & 0x03)),
        ..plain
    }
}

fn matches(filter: &str, topic: &str) -> bool {
    let filter = TopicFilter::parse(filter, LEVELS_MAX).expect("a filter");
    filter.matches(TopicName::parse(topic, LEVELS_MAX).expect("a topic name"))
}

/// Topics of few different levels, so that they meet; one of the levels is long.
fn text(bytes: &[u8]) -> String {
    let long = "x".repeat(400);
    let levels = ["a", "b", "", "+", "#", "$a", "a!", "c", "+", "a", "b", "", "#", "d", "\u{1}", &*long];
    bytes.iter().map(|byte| levels[usize::from(byte % 16)]).collect::<Vec<&str>>().join("/")
}

fuzz_target!(|bytes: &[u8]| {
    let mut tree = SubscriptionTree::new(7);
    let mut retained = RetainedTree::default();
    let mut model = Model::default();
    let mut lent: Vec<Matches> = Vec::new();
    let mut walks: Vec<Walk> = Vec::new();
    let mut rest = bytes;
    let mut number = 0;
    while let [operation, argument, tail @ ..] = rest {
        number += 1;
        let (levels, later) = tail.split_at(usize::from(argument >> 5).min(tail.len()));
        rest = later;
        let text = text(levels);
        let subscriber = u32::from(operation >> 3) % SUBSCRIBERS;
        let id = SubscriberId(subscriber);
        let filter = TopicFilter::parse(&text, LEVELS_MAX);
        let name = TopicName::parse(&text, LEVELS_MAX);
        match (operation & 0x07, filter, name) {
            (0..=2, Ok(filter), _) => {
                let grant = grant(*operation, *argument);
                assert_eq!(tree.subscribe(id, filter, grant), model.subscribe(subscriber, &text, grant));
                assert!(tree.contains(id, &text));
            }
            // Whatever the text, it is no subscription that nobody made.
            (3, ..) => assert_eq!(tree.unsubscribe(id, &text), model.unsubscribe(subscriber, &text)),
            (4, ..) => {
                let at_most = usize::from(argument % 4);
                let list = model.subscriptions.entry(subscriber).or_default();
                list.drain(..at_most.min(list.len()));
                assert_eq!(tree.remove_some(id, at_most), list.is_empty());
            }
            (5, Ok(filter), _) if walks.len() < 3 => {
                let mut owed = model.retained.clone();
                owed.retain(|topic, _| matches(&text, topic));
                walks.push(Walk { cursor: RetainedCursor::new(filter), filter: text.clone(), owed });
            }
            (6, _, Ok(_)) => {
                let value = Value { topic: text.clone(), number };
                let replaced = retained.insert(value).map(|value| value.number);
                assert_eq!(replaced, model.retained.insert(text.clone(), number));
                for walk in &mut walks {
                    if matches(&walk.filter, &text) && !walk.cursor.has_passed(&text) {
                        walk.owed.insert(text.clone(), number);
                    }
                }
            }
            (7, ..) => {
                let removed = retained.remove(&text).map(|value| value.number);
                assert_eq!(removed, model.retained.remove(&text));
                for walk in &mut walks {
                    walk.owed.remove(&text);
                }
            }
            _ => {}
        }
        walks.retain_mut(|Walk { cursor, owed, .. }| {
            let mut room = argument % 3;
            let progress = retained.visit(cursor, &mut usize::from(argument % 5), |value| {
                if room == 0 {
                    return Visit::Stop;
                }
                room -= 1;
                assert_eq!(owed.remove(&value.topic), Some(value.number));
                Visit::Next
            });
            assert!(progress != Progress::Done || owed.is_empty());
            progress != Progress::Done
        });
        if let Ok(name) = name {
            let matches = tree.matches(name);
            assert_eq!(found(&matches), model.matched(name));
            // Some lists stay lent while subscriptions change.
            lent.push(matches);
            if lent.len() > usize::from(argument % 4) {
                tree.put_back(lent.remove(0));
            }
            lent.truncate(4);
        }
    }
    // The rest of every walk in one go.
    for Walk { mut cursor, mut owed, .. } in walks {
        let progress = retained.visit(&mut cursor, &mut { usize::MAX }, |value| {
            assert_eq!(owed.remove(&value.topic), Some(value.number));
            Visit::Next
        });
        assert_eq!(progress, Progress::Done);
        assert!(owed.is_empty());
    }
    for (subscriber, list) in &model.subscriptions {
        let id = SubscriberId(*subscriber);
        assert!(tree.subscriptions(id).eq(list.iter().map(|(text, grant)| (text.as_str(), *grant))));
        assert_eq!(tree.subscription_count(id) as usize, list.len());
    }
    assert_eq!(tree.len(), model.subscriptions.values().map(Vec::len).sum::<usize>());
    assert_eq!(retained.len(), model.retained.len());
    for (topic, number) in &model.retained {
        assert_eq!(retained.find(topic).map(|value| value.number), Some(*number));
    }
    tree.check_invariants();
    for subscriber in model.subscriptions.keys() {
        tree.remove_subscriber(SubscriberId(*subscriber));
    }
    assert!(tree.is_empty());
    tree.check_invariants();
});
