//! Setting retained messages, and subscribing to one and to all of them.

use std::io;

use broker::codec::QoS;

use crate::chart::Chart;
use crate::clients::{
    PUBLISHER, clear_bytes, connect_bytes, core_with_publisher, publish_bytes, subscribe_bytes, topic,
    unsubscribe_bytes,
};
use crate::core::Core;
use crate::{BATCHES, SIZES, nanos_each, scattered, timed};

const SUBSCRIBER: u32 = 1;

const MESSAGES_PER_BATCH_MAX: u64 = 10_000;

/// Whoever subscribes to all does so until so many messages have come.
const DELIVERIES_PER_BATCH: u64 = 100_000;

pub(crate) fn run() -> io::Result<()> {
    let mut chart = Chart::new("retained", "Retained messages", "retained messages");
    let mut core = core_with_publisher();
    core.open(SUBSCRIBER, &connect_bytes("subscriber", false));
    let mut number = 0;
    for size in SIZES {
        while number < size {
            core.exchange(PUBLISHER, &publish_bytes(&topic(number), QoS::AtMostOnce, true));
            number += 1;
        }
        measure(&mut core, size, &mut chart);
    }
    chart.publish()
}

fn measure(core: &mut Core, size: u64, chart: &mut Chart) {
    let count = MESSAGES_PER_BATCH_MAX.min(size);
    let known: Vec<String> = (0..count).map(|step| topic(scattered(step, size))).collect();
    let new: Vec<String> = known.iter().map(|topic| format!("{topic}/new")).collect();
    let retain = |topic: &String| publish_bytes(topic, QoS::AtMostOnce, true);
    let filter = |topic: &String| [topic.clone()];

    let publishes: Vec<Vec<u8>> = known.iter().map(retain).collect();
    let times = (0..BATCHES).map(|_| timed(|| say(core, PUBLISHER, &publishes)));
    chart.add("set anew", size, nanos_each(count, times));

    let publishes: Vec<Vec<u8>> = new.iter().map(retain).collect();
    let clears: Vec<Vec<u8>> = new.iter().map(|topic| clear_bytes(topic)).collect();
    let (set, cleared): (Vec<_>, Vec<_>) = (0..BATCHES)
        .map(|_| {
            let set = timed(|| say(core, PUBLISHER, &publishes));
            (set, timed(|| say(core, PUBLISHER, &clears)))
        })
        .unzip();
    chart.add("set the first time", size, nanos_each(count, set));
    chart.add("clear", size, nanos_each(count, cleared));

    let subscribes: Vec<Vec<u8>> =
        known.iter().map(|topic| subscribe_bytes(&filter(topic), QoS::AtMostOnce)).collect();
    let unsubscribes: Vec<Vec<u8>> = known.iter().map(|topic| unsubscribe_bytes(&filter(topic))).collect();
    core.deliveries = 0;
    let times = (0..BATCHES).map(|_| {
        let time = timed(|| say(core, SUBSCRIBER, &subscribes));
        say(core, SUBSCRIBER, &unsubscribes);
        time
    });
    chart.add("subscribe to one", size, nanos_each(count, times));
    assert_eq!(core.deliveries, BATCHES * count);

    let all = ["#".to_owned()];
    let rounds = (DELIVERIES_PER_BATCH / size).max(1);
    let subscribes = vec![subscribe_bytes(&all, QoS::AtMostOnce); rounds as usize];
    core.deliveries = 0;
    let times = (0..BATCHES).map(|_| timed(|| say(core, SUBSCRIBER, &subscribes)));
    chart.add("#, for each message", size, nanos_each(rounds * size, times));
    assert_eq!(core.deliveries, BATCHES * rounds * size);
    core.exchange(SUBSCRIBER, &unsubscribe_bytes(&all));
}

fn say(core: &mut Core, slot: u32, packets: &[Vec<u8>]) {
    packets.iter().for_each(|packet| core.exchange(slot, packet));
}
