//! What it costs to find out who gets a message, and to walk the retained messages.
//!
//! ```text
//! cargo bench --bench topics                    all of it: building a million filters takes a while
//! cargo bench --bench topics -- 'match/exact'   only what has this in its name
//! ```
//!
//! What "cached" and "new" ask for stands in `operations/topics.rs`.
//!
//! Deliberately not here: what is done with the subscribers found (see `broker`).

#[path = "operations/topics.rs"]
mod topics;

use std::hint::black_box;

use broker::codec::QoS;
use broker::topics::retained_tree::{Progress, Retained, RetainedCursor, Visit};
use broker::topics::{RetainedTree, SubscriptionTree, TopicFilter};
use criterion::{BenchmarkId, Criterion, Throughput};

use topics::{
    DEVICES_PER_SITE, LEVELS_MAX, ask_cached, ask_new, exact_filter, forget, matched, mixed_filter,
    subscriber, topic, tree,
};

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

fn matching(criterion: &mut Criterion, kind: &str, count: usize, filter: fn(usize) -> String) {
    let mut group = criterion.benchmark_group(format!("match/{kind}"));
    let mut tree: Option<SubscriptionTree> = None;
    group.throughput(Throughput::Elements(1));
    group.bench_function(BenchmarkId::new("cached", count), |bencher| {
        bencher.iter(ask_cached(tree.get_or_insert_with(|| self::tree(count, filter)), count));
    });
    group.bench_function(BenchmarkId::new("new", count), |bencher| {
        let tree = tree.get_or_insert_with(|| self::tree(count, filter));
        bencher.iter(ask_new(tree, count, NEW_TOPICS_MAX));
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
        group.bench_function(BenchmarkId::new("levels known", known), |bencher| {
            bencher.iter(|| {
                forget(&mut tree);
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
                while tree.visit(&mut cursor, &mut { STEPS_PER_TURN }, &mut offer) != Progress::Done {}
                assert_eq!(found, expected);
            });
        });
    }
    group.finish();
}
