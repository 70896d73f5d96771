//! The tree against a list of subscriptions that is searched from end to end.

use std::collections::BTreeMap;

use super::*;

/// A small generator of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

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
    all
}

fn matched(tree: &mut SubscriptionTree, topic: &str) -> BTreeMap<u32, QoS> {
    let matches = tree.matches(TopicName::parse(topic, 1 << 20).unwrap());
    let found: BTreeMap<u32, QoS> =
        matches.iter().map(|subscriber| (subscriber.id.0, subscriber.qos)).collect();
    assert_eq!(found.len(), matches.len(), "each subscriber once");
    tree.put_back(matches);
    found
}

fn naive(subscriptions: &BTreeMap<(u32, String), QoS>, topic: &str) -> BTreeMap<u32, QoS> {
    let name = TopicName::parse(topic, 1 << 20).unwrap();
    let mut found: BTreeMap<u32, QoS> = BTreeMap::new();
    for ((subscriber, filter), qos) in subscriptions {
        if TopicFilter::parse(filter, 1 << 20).unwrap().matches(name) {
            let highest = found.entry(*subscriber).or_insert(*qos);
            *highest = (*highest).max(*qos);
        }
    }
    found
}

#[test]
fn every_small_filter_against_every_small_topic() {
    // [MQTT-3.3.2-3] [MQTT-3.3.5-1]
    let topics: Vec<String> =
        texts(&["a", "b", "", "$x"], 3).into_iter().filter(|topic| !topic.is_empty()).collect();
    let filters: Vec<String> = texts(&["a", "", "+", "#", "$x"], 3)
        .into_iter()
        .filter(|filter| TopicFilter::parse(filter, 10).is_ok())
        .collect();
    let mut tree = SubscriptionTree::new(1);
    let mut subscriptions = BTreeMap::new();
    for (number, filter) in filters.iter().enumerate() {
        // Each filter has a subscriber of its own and one of a few who have many.
        for subscriber in [number as u32, 1_000 + number as u32 % 7] {
            let qos = QoS::new((number % 3) as u8).unwrap();
            tree.subscribe(SubscriberId(subscriber), TopicFilter::parse(filter, 10).unwrap(), qos);
            subscriptions.insert((subscriber, filter.clone()), qos);
        }
    }
    tree.check_invariants();
    for topic in &topics {
        assert_eq!(matched(&mut tree, topic), naive(&subscriptions, topic), "{topic}");
    }
}

#[test]
fn random_changes_never_leave_a_stale_match() {
    let topics = texts(&["a", "b", "$"], 2);
    let filters: Vec<String> = texts(&["a", "b", "+", "#", "$"], 2)
        .into_iter()
        .filter(|filter| TopicFilter::parse(filter, 10).is_ok())
        .collect();
    for seed in 1..=20 {
        let mut random = Random(seed);
        let mut tree = SubscriptionTree::new(seed);
        let mut subscriptions = BTreeMap::new();
        for _ in 0..600 {
            let subscriber = random.below(6) as u32;
            let filter = filters[random.below(filters.len())].clone();
            match random.below(10) {
                0..=4 => {
                    let qos = QoS::new(random.below(3) as u8).unwrap();
                    let parsed = TopicFilter::parse(&filter, 10).unwrap();
                    let previous = tree.subscribe(SubscriberId(subscriber), parsed, qos);
                    assert_eq!(previous, subscriptions.insert((subscriber, filter), qos));
                }
                5..=8 => {
                    let removed = tree.unsubscribe(SubscriberId(subscriber), &filter);
                    assert_eq!(removed, subscriptions.remove(&(subscriber, filter)).is_some());
                }
                _ => {
                    tree.remove_subscriber(SubscriberId(subscriber));
                    subscriptions.retain(|(owner, _), _| *owner != subscriber);
                }
            }
            for _ in 0..4 {
                let topic = &topics[random.below(topics.len())];
                assert_eq!(matched(&mut tree, topic), naive(&subscriptions, topic), "seed {seed}: {topic}");
            }
            assert_eq!(tree.len(), subscriptions.len());
        }
        tree.check_invariants();
        for subscriber in 0..6 {
            tree.remove_subscriber(SubscriberId(subscriber));
        }
        assert!(tree.is_empty() && tree.filters.is_empty() && tree.edges.is_empty());
        assert_eq!(tree.nodes.len(), 1, "only the root is left");
    }
}

#[test]
fn a_list_lent_during_a_change_is_not_kept() {
    let mut tree = SubscriptionTree::new(1);
    let topic = TopicName::parse("a/b", 10).unwrap();
    for filter in ["a/b", "a/+"] {
        let matches = tree.matches(topic);
        tree.subscribe(
            SubscriberId(filter.len() as u32),
            TopicFilter::parse(filter, 10).unwrap(),
            QoS::AtMostOnce,
        );
        tree.unsubscribe(SubscriberId(filter.len() as u32), filter);
        tree.subscribe(SubscriberId(7), TopicFilter::parse(filter, 10).unwrap(), QoS::AtMostOnce);
        tree.put_back(matches);
        assert_eq!(matched(&mut tree, "a/b").len(), 1);
    }
}

#[test]
fn hostile_shapes_are_walked_once() {
    let mut tree = SubscriptionTree::new(1);
    let slashes = "/".repeat(65_535);
    tree.subscribe(SubscriberId(0), TopicFilter::parse(&slashes, 1 << 20).unwrap(), QoS::AtMostOnce);
    tree.subscribe(
        SubscriberId(1),
        TopicFilter::parse(&"+/".repeat(32_767), 1 << 20).unwrap(),
        QoS::AtMostOnce,
    );
    for bits in 0..1_u32 << 12 {
        let filter: Vec<&str> = (0..12).map(|bit| if bits >> bit & 1 == 1 { "a" } else { "+" }).collect();
        let filter = filter.join("/");
        tree.subscribe(SubscriberId(2 + bits), TopicFilter::parse(&filter, 100).unwrap(), QoS::AtMostOnce);
    }
    assert_eq!(matched(&mut tree, &slashes).len(), 1);
    assert_eq!(matched(&mut tree, &"/".repeat(32_767)).len(), 1);
    assert_eq!(matched(&mut tree, &["a"; 12].join("/")).len(), 1 << 12);
    assert_eq!(matched(&mut tree, &["a"; 13].join("/")).len(), 0);
}
