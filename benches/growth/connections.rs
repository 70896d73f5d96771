//! Publishing and keep-alive among connections that are idle: in the core, and over sockets.

use std::io;

use broker::clock::Duration;
use broker::codec::QoS;

use crate::chart::Chart;
use crate::clients::{
    PROTOCOL, PUBLISHER, connect_bytes, core_with_publisher, ping_bytes, publish_bytes, subscribe_bytes,
};
use crate::core::{Core, connect};
use crate::{BATCHES, SIZES, crowd, nanos_each, scattered, timed};

const SUBSCRIBER: u32 = 1;

const FIRST_IDLE: u32 = 2;

const TOPIC: &str = "site/17/device/1717/temperature";

const PUBLISHES_PER_BATCH: u64 = 100_000;

const PINGS_PER_BATCH: u64 = 100_000;

const KEEP_ALIVE_SECS: u16 = 60;

/// How long it takes all that are new to connect: so short that nobody is taken for dead before its first keep-alive.
const ARRIVAL: Duration = Duration::from_secs(20);

const INTERVAL: Duration = Duration::from_secs(KEEP_ALIVE_SECS as u64);

pub(crate) fn run() -> io::Result<()> {
    let mut chart = Chart::new("connections", "Among idle connections", "connections");
    let mut core = core_with_publisher();
    core.open(SUBSCRIBER, &connect_bytes("subscriber", false));
    core.exchange(SUBSCRIBER, &subscribe_bytes(&[TOPIC.to_owned()], QoS::AtMostOnce));
    let publish = publish_bytes(TOPIC, QoS::AtMostOnce, false);
    let ping = ping_bytes();
    let mut connected = 0;
    for size in SIZES {
        // Nobody is to be taken for dead while others arrive.
        (0..connected).for_each(|number| core.exchange(idle(number), &ping));
        let began = core.now;
        for number in connected..size {
            core.now = began + part(ARRIVAL, number - connected, size - connected);
            let connect = connect(PROTOCOL, &format!("idle-{number}"), false, KEEP_ALIVE_SECS);
            core.open(idle(number), &connect);
        }
        connected = size;
        let times = (0..BATCHES)
            .map(|_| timed(|| (0..PUBLISHES_PER_BATCH).for_each(|_| core.exchange(PUBLISHER, &publish))));
        chart.add("message", size, nanos_each(PUBLISHES_PER_BATCH, times));
        chart.add("keep-alive", size, keep_alive_nanos(&mut core, size, &ping));
        assert_eq!(core.broker.metrics().clients_connected, size + u64::from(FIRST_IDLE));
    }
    let samples = crowd::run()?;
    for sample in &samples {
        chart.add("message, over sockets", sample.size, sample.message_nanos);
        chart.add("keep-alive, over sockets", sample.size, sample.ping_nanos);
    }
    chart.publish()?;
    for crowd::Sample { size, bytes_each, .. } in samples {
        println!("{size} connections over sockets: {bytes_each} bytes of resident memory for each");
    }
    Ok(())
}

/// What it costs that somebody asks. Everybody does once in an interval, at an even pace, so what it takes to watch over
/// that is in the figure.
fn keep_alive_nanos(core: &mut Core, size: u64, ping: &[u8]) -> f64 {
    let began = core.now;
    let mut numbers = 0_u64..;
    let mut ask = |count: u64| {
        for number in numbers.by_ref().take(count as usize) {
            core.now = began + part(INTERVAL, number, size);
            core.exchange(idle(scattered(number, size)), ping);
        }
    };
    // Until everybody has its place.
    ask(size);
    let times = (0..BATCHES).map(|_| timed(|| ask(PINGS_PER_BATCH)));
    nanos_each(PINGS_PER_BATCH, times)
}

/// The slot of an idle client.
fn idle(number: u64) -> u32 {
    FIRST_IDLE + number as u32
}

fn part(span: Duration, numerator: u64, denominator: u64) -> Duration {
    Duration(span.0 * numerator / denominator)
}
