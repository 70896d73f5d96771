//! Publishing, subscribing and unsubscribing among filters that do not match.
//!
//! One subscriber gets every message. What is published is either a topic that was published before, or one of so many
//! in turn that no match is remembered. All other filters are those of others, a hundred each.

use std::io;

use broker::codec::QoS;

use crate::chart::Chart;
use crate::clients::{
    PUBLISHER, connect_bytes, core_with_publisher, publish_bytes, subscribe_bytes, topic, unsubscribe_bytes,
};
use crate::{BATCHES, SIZES, nanos_each, timed};

const SUBSCRIBER: u32 = 1;

/// Who subscribes and unsubscribes while that is measured.
const NEWCOMER: u32 = 2;

const FIRST_OTHER: u32 = 3;

const FILTERS_PER_OTHER: u64 = 100;

/// Numbers from here on belong to topics that no filter of the others is about.
const UNKNOWN: u64 = 2_000_000;

/// And from here on to filters of the newcomer.
const NEW: u64 = 3_000_000;

/// Far more than the broker remembers.
const TOPICS: u64 = 65_536;

const PUBLISHES_PER_BATCH: u64 = 100_000;

const FILTERS_PER_BATCH: u64 = 10_000;

/// Every level has its turn.
fn with_plus(number: u64) -> String {
    let site = number / 100;
    match number % 4 {
        0 => format!("+/{site}/device/{number}/temperature"),
        1 => format!("site/+/device/{number}/temperature"),
        2 => format!("site/{site}/+/{number}/temperature"),
        _ => format!("site/{site}/device/{number}/+"),
    }
}

fn with_hash(number: u64) -> String {
    let site = number / 100;
    match number % 2 {
        0 => format!("site/{site}/device/{number}/#"),
        _ => format!("site/{site}/device/{number}/temperature/#"),
    }
}

pub(crate) fn run() -> io::Result<()> {
    let sizes_of = "filters that do not match";
    let mut publishing = Chart::new("publish", "Publishing to one subscriber", sizes_of);
    let mut subscribing = Chart::new("subscribe", "Subscribing and unsubscribing", "filters of others");
    measure("exact", topic, &mut publishing, &mut subscribing);
    measure("+", with_plus, &mut publishing, &mut subscribing);
    measure("#", with_hash, &mut publishing, &mut subscribing);
    publishing.publish()?;
    subscribing.publish()
}

fn measure(kind: &str, filter: fn(u64) -> String, publishing: &mut Chart, subscribing: &mut Chart) {
    let mut core = core_with_publisher();
    core.open(SUBSCRIBER, &connect_bytes("subscriber", false));
    core.exchange(SUBSCRIBER, &subscribe_bytes(&["site/#".to_owned()], QoS::AtMostOnce));
    core.open(NEWCOMER, &connect_bytes("newcomer", false));
    let publishes: Vec<Vec<u8>> =
        (0..TOPICS).map(|number| publish_bytes(&topic(UNKNOWN + number), QoS::AtMostOnce, false)).collect();
    let mut turns = publishes.iter().cycle();
    let new: Vec<[String; 1]> = (0..FILTERS_PER_BATCH).map(|number| [filter(NEW + number)]).collect();
    let subscribes: Vec<Vec<u8>> = new.iter().map(|new| subscribe_bytes(new, QoS::AtMostOnce)).collect();
    let unsubscribes: Vec<Vec<u8>> = new.iter().map(|new| unsubscribe_bytes(new)).collect();
    let mut number = 0;
    for size in SIZES {
        while number < size {
            let slot = FIRST_OTHER + (number / FILTERS_PER_OTHER) as u32;
            let filters: Vec<String> = (number..number + FILTERS_PER_OTHER).map(filter).collect();
            core.open(slot, &connect_bytes(&format!("other-{slot}"), false));
            core.exchange(slot, &subscribe_bytes(&filters, QoS::AtMostOnce));
            number += FILTERS_PER_OTHER;
        }
        let before = core.deliveries;
        let mut publish = |publish: &Vec<u8>| core.exchange(PUBLISHER, publish);
        let known = (0..BATCHES).map(|_| {
            let known = std::iter::repeat_n(&publishes[0], PUBLISHES_PER_BATCH as usize);
            timed(|| known.for_each(&mut publish))
        });
        publishing.add(&format!("{kind}, known topic"), size, nanos_each(PUBLISHES_PER_BATCH, known));
        let new = (0..BATCHES)
            .map(|_| timed(|| turns.by_ref().take(PUBLISHES_PER_BATCH as usize).for_each(&mut publish)));
        publishing.add(&format!("{kind}, new topic"), size, nanos_each(PUBLISHES_PER_BATCH, new));
        let expected = 2 * BATCHES * PUBLISHES_PER_BATCH;
        assert_eq!(core.deliveries - before, expected, "the subscriber gets all, and nobody else does");

        let mut request = |request: &Vec<u8>| core.exchange(NEWCOMER, request);
        let (made, removed): (Vec<_>, Vec<_>) = (0..BATCHES)
            .map(|_| {
                let made = timed(|| subscribes.iter().for_each(&mut request));
                (made, timed(|| unsubscribes.iter().for_each(&mut request)))
            })
            .unzip();
        subscribing.add(&format!("SUBSCRIBE, {kind}"), size, nanos_each(FILTERS_PER_BATCH, made));
        subscribing.add(&format!("UNSUBSCRIBE, {kind}"), size, nanos_each(FILTERS_PER_BATCH, removed));
    }
}
