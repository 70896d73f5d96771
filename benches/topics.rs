//! What it costs to find out who gets a message, and to walk the retained messages.
//!
//! ```text
//! cargo bench --bench topics                    all of it: building a million filters takes a while
//! cargo bench --bench topics -- 'match/exact'   only what has this in its name
//! ```
//!
//! Every topic asked for matches something. "cached" asks for few topics over and over; "new" never asks for a topic
//! that the cache still holds: whenever all topics have had their turn, a wildcard subscription changes, which makes
//! the cache worthless. That change is in the figure, divided by all those topics.
//!
//! Deliberately not here: what is done with the subscribers found (see `broker`).

use std::hint::black_box;

use broker::codec::QoS;
use broker::topics::retained_tree::{Progress, Retained, RetainedCursor, Visit};
use broker::topics::{RetainedTree, SubscriberId, SubscriptionTree, TopicFilter, TopicName};
use criterion::{BenchmarkId, Criterion, Throughput};

const LEVELS_MAX: u32 = 200;

/// Devices that share a site.
const DEVICES_PER_SITE: usize = 100;

/// Topics that take turns where the cache is to hold them all.
const CACHED_TOPICS: usize = 64;

/// Topics that take turns where the cache is to hold none, at most.
const NEW_TOPICS_MAX: usize = 65_536;

/// Entries one turn of the broker looks at.
const STEPS_PER_TURN: usize = 2_000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for count in [1_000, 100_000, 1_000_000] {
        matching(&mut criterion, "exact", count, exact_filter);
        matching(&mut criterion, "mixed", count, mixed_filter);
    }
    odd_shapes(&mut criterion);
    subscribing(&mut criterion);
    retained_walk(&mut criterion);
    criterion.final_summary();
}

fn topic(number: usize) -> String {
    format!("site/{}/device/{number}/temperature", number / DEVICES_PER_SITE)
}

fn exact_filter(number: usize) -> String {
    topic(number)
}

/// Half of the filters are exact, the others have `+`, `#` or both, at levels of every depth. A topic matches its own
/// filter and those of its site that are wide.
fn mixed_filter(number: usize) -> String {
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

fn subscriber(number: usize) -> SubscriberId {
    SubscriberId(u32::try_from(number).expect("fewer subscribers than 2^32"))
}

fn tree(count: usize, filter: fn(usize) -> String) -> SubscriptionTree {
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

fn matched(tree: &mut SubscriptionTree, text: &str) -> usize {
    let matches = tree.matches(TopicName::parse(black_box(text), LEVELS_MAX).expect("a topic name"));
    let found = matches.iter().map(|subscriber| subscriber.qos.number() as usize).sum();
    tree.put_back(matches);
    found
}

fn matching(criterion: &mut Criterion, kind: &str, count: usize, filter: fn(usize) -> String) {
    let mut group = criterion.benchmark_group(format!("match/{kind}"));
    let mut tree: Option<SubscriptionTree> = None;
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("cached", count), |bencher| {
        let tree = tree.get_or_insert_with(|| self::tree(count, filter));
        let topics = topics(CACHED_TOPICS, count);
        let mut turns = topics.iter().cycle();
        bencher.iter(|| {
            let topic = turns.next().expect("it never ends");
            assert!(matched(tree, topic) > 0);
        });
    });
    group.bench_function(BenchmarkId::new("new", count), |bencher| {
        let tree = tree.get_or_insert_with(|| self::tree(count, filter));
        let topics = topics(NEW_TOPICS_MAX, count);
        let changing = TopicFilter::parse("nobody/+/asks", LEVELS_MAX).expect("a filter");
        let mut turns = topics.iter();
        bencher.iter(|| {
            let topic = turns.next().unwrap_or_else(|| {
                tree.subscribe(subscriber(0), changing, QoS::AtMostOnce);
                tree.unsubscribe(subscriber(0), changing.as_str());
                turns = topics.iter();
                turns.next().expect("there are topics")
            });
            assert!(matched(tree, topic) > 0);
        });
    });
    group.finish();
}

/// A new topic of twelve levels among the filters of somebody who mixes texts and `+` in every way there is, and knows
/// some of the topic's levels or none.
fn odd_shapes(criterion: &mut Criterion) {
    const LEVELS: usize = 14;
    const TOPIC: &str = "city/3/shop/17/floor/2/till/5/sale/8/item/total";
    let mut group = criterion.benchmark_group(format!("match/odd shapes of {LEVELS} levels"));
    for known in [0, 4, 8, 12] {
        let mut tree = tree(1_000, mixed_filter);
        for shape in 0..1_usize << LEVELS {
            let texts = TOPIC.split('/').take(known).chain(std::iter::repeat("unknown"));
            let levels: Vec<&str> = (0..LEVELS)
                .zip(texts)
                .map(|(level, text)| if shape >> level & 1 == 1 { text } else { "+" })
                .collect();
            let text = levels.join("/");
            let filter = TopicFilter::parse(&text, LEVELS_MAX).expect("a filter");
            tree.subscribe(subscriber(2_000), filter, QoS::AtMostOnce);
        }
        let changing = TopicFilter::parse("nobody/+/asks", LEVELS_MAX).expect("a filter");
        group.bench_function(BenchmarkId::new("levels known", known), |bencher| {
            bencher.iter(|| {
                tree.subscribe(subscriber(0), changing, QoS::AtMostOnce);
                tree.unsubscribe(subscriber(0), changing.as_str());
                assert_eq!(matched(&mut tree, TOPIC), 0);
            });
        });
    }
    group.finish();
}

/// One subscription made and removed again among a hundred thousand.
fn subscribing(criterion: &mut Criterion) {
    const COUNT: usize = 100_000;
    let mut group = criterion.benchmark_group("subscribe and unsubscribe among 100000");
    for (name, text) in [("exact", "site/5/device/none/temperature"), ("wildcards", "site/5/+/none/#")] {
        group.bench_function(name, |bencher| {
            let mut tree = tree(COUNT, mixed_filter);
            let filter = TopicFilter::parse(text, LEVELS_MAX).expect("a filter");
            bencher.iter(|| {
                tree.subscribe(subscriber(COUNT), black_box(filter), QoS::AtLeastOnce);
                assert!(tree.unsubscribe(subscriber(COUNT), black_box(text)));
            });
        });
    }
    group.finish();
}

struct Value(String);

impl Retained for Value {
    fn topic(&self) -> &str {
        &self.0
    }
}

/// All that a new subscription gets out of ten thousand retained messages, in the steps of the broker.
fn retained_walk(criterion: &mut Criterion) {
    const COUNT: usize = 10_000;
    let mut tree = RetainedTree::default();
    for number in 0..COUNT {
        tree.insert(Value(topic(number)));
    }
    let mut group = criterion.benchmark_group("retained walk of 10000");
    for (text, expected) in [
        ("#", COUNT),
        ("site/+/device/+/temperature", COUNT),
        ("site/17/#", DEVICES_PER_SITE),
        ("site/+/device/4711/temperature", 1),
        ("site/47/device/4711/temperature", 1),
        ("site/+/device/none/#", 0),
    ] {
        let filter = TopicFilter::parse(text, LEVELS_MAX).expect("a filter");
        group.bench_function(text, |bencher| {
            bencher.iter(|| {
                let mut cursor = RetainedCursor::new(black_box(filter));
                let mut found = 0;
                let mut offer = |value: &Value| {
                    black_box(value.topic());
                    found += 1;
                    Visit::Next
                };
                while tree.visit(&mut cursor, STEPS_PER_TURN, &mut offer) != Progress::Done {}
                assert_eq!(found, expected);
            });
        });
    }
    group.finish();
}
