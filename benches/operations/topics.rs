//! Filters and topics of many sites with devices, and how a tree of those filters is asked for those topics.
//!
//! Every topic asked for matches something. "cached" asks for few topics over and over; "new" never asks for a topic
//! that the cache still holds: whenever all topics have had their turn, a wildcard subscription changes, which makes
//! the cache worthless. That change is in the figure, divided by all those topics.
//!
//! Deliberately not here: what is measured of it (see `topics` and `instructions`).

use std::hint::black_box;

use broker::codec::QoS;
use broker::topics::{SubscriberId, SubscriptionTree, TopicFilter, TopicName};

pub(crate) const LEVELS_MAX: u32 = 200;

/// Devices that share a site.
pub(crate) const DEVICES_PER_SITE: usize = 100;

/// Topics that take turns where the cache is to hold them all.
const CACHED_TOPICS: usize = 64;

pub(crate) fn topic(number: usize) -> String {
    format!("site/{}/device/{number}/temperature", number / DEVICES_PER_SITE)
}

pub(crate) fn exact_filter(number: usize) -> String {
    topic(number)
}

/// Half of the filters are exact, the others have `+`, `#` or both, at levels of every depth. A topic matches its own
/// filter and those of its site that are wide.
pub(crate) fn mixed_filter(number: usize) -> String {
    let site = number / DEVICES_PER_SITE;
    match number % DEVICES_PER_SITE {
        0 => format!("site/{site}/#"),
        1 => format!("site/{site}/+/+/temperature"),
        2 => format!("+/{site}/device/{number}/#"),
        rest if rest % 2 == 1 => format!("site/+/device/{number}/temperature"),
        rest if rest % 10 == 0 => format!("site/{site}/device/{number}/#"),
        _ => topic(number),
    }
}

pub(crate) fn subscriber(number: usize) -> SubscriberId {
    SubscriberId(u32::try_from(number).expect("fewer subscribers than 2^32"))
}

pub(crate) fn tree(count: usize, filter: fn(usize) -> String) -> SubscriptionTree {
    let mut tree = SubscriptionTree::new(1);
    for number in 0..count {
        let text = filter(number);
        let filter = TopicFilter::parse(&text, LEVELS_MAX).expect("a filter");
        tree.subscribe(subscriber(number), filter, QoS::AtLeastOnce);
    }
    tree
}

/// `count` topics spread over all there are, in an order that no processor foresees.
fn topics(count: usize, of: usize) -> Vec<String> {
    // A prime stride visits every number once before it repeats.
    (0..count.min(of)).map(|step| topic(step * 7_919 % of)).collect()
}

pub(crate) fn matched(tree: &mut SubscriptionTree, text: &str) -> usize {
    let matches = tree.matches(TopicName::parse(black_box(text), LEVELS_MAX).expect("a topic name"));
    let found = matches.iter().map(|subscriber| subscriber.qos.number() as usize).sum();
    tree.put_back(matches);
    found
}

/// Asks for few topics over and over.
pub(crate) fn ask_cached(tree: &mut SubscriptionTree, count: usize) -> impl FnMut() {
    let topics = topics(CACHED_TOPICS, count);
    let mut turn = 0;
    move || {
        assert!(matched(tree, &topics[turn]) > 0);
        turn = if turn + 1 < topics.len() { turn + 1 } else { 0 };
    }
}

/// Never asks for a topic that the cache still holds. At most so many take turns.
pub(crate) fn ask_new(tree: &mut SubscriptionTree, count: usize, topics_max: usize) -> impl FnMut() {
    let topics = topics(topics_max, count);
    let mut turn = 0;
    move || {
        if turn == topics.len() {
            forget(tree);
            turn = 0;
        }
        assert!(matched(tree, &topics[turn]) > 0);
        turn += 1;
    }
}

/// Makes the cache worthless.
pub(crate) fn forget(tree: &mut SubscriptionTree) {
    let changing = TopicFilter::parse("nobody/+/asks", LEVELS_MAX).expect("a filter");
    tree.subscribe(subscriber(0), changing, QoS::AtMostOnce);
    tree.unsubscribe(subscriber(0), changing.as_str());
}
