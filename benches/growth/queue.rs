//! Messages that wait for a client that is away: they join its queue one by one, and when it comes back it acknowledges
//! each of them.
//!
//! A figure is that of all steps on the way to a queue of this length, or back.

use std::io;
use std::time::Duration;

use broker::codec::QoS;

use crate::chart::Chart;
use crate::clients::{
    PUBLISHER, connect_bytes, core_with_publisher, disconnect_bytes, publish_bytes, subscribe_bytes,
};
use crate::core::Core;
use crate::{BATCHES, SIZES, nanos_each, timed};

const SUBSCRIBER: u32 = 1;

const TOPIC: &str = "site/17/device/1717/temperature";

/// In a batch, so many messages come and go at least.
const MESSAGES_MIN: u64 = 100_000;

/// A core with a subscriber that has left.
pub(crate) fn with_absent_subscriber() -> Core {
    let mut core = core_with_publisher();
    core.open(SUBSCRIBER, &connect_bytes("subscriber", true));
    core.exchange(SUBSCRIBER, &subscribe_bytes(&[TOPIC.to_owned()], QoS::AtLeastOnce));
    core.exchange(SUBSCRIBER, &disconnect_bytes());
    core
}

/// What makes one more message wait for it.
pub(crate) fn message_bytes() -> Vec<u8> {
    publish_bytes(TOPIC, QoS::AtLeastOnce, false)
}

pub(crate) fn run() -> io::Result<()> {
    let mut chart = Chart::new("queue", "Messages for a client that is away", "messages in its queue");
    let mut core = with_absent_subscriber();
    let publish = message_bytes();
    let connect = connect_bytes("subscriber", true);
    for size in SIZES {
        let rounds = (MESSAGES_MIN / size).max(1);
        let (queued, delivered): (Vec<_>, Vec<_>) = (0..BATCHES)
            .map(|_| {
                let (mut queued, mut delivered) = (Duration::ZERO, Duration::ZERO);
                for _ in 0..rounds {
                    queued += timed(|| (0..size).for_each(|_| core.exchange(PUBLISHER, &publish)));
                    core.deliveries = 0;
                    delivered += timed(|| core.open(SUBSCRIBER, &connect));
                    assert_eq!(core.deliveries, size);
                    core.exchange(SUBSCRIBER, &disconnect_bytes());
                }
                (queued, delivered)
            })
            .unzip();
        chart.add("queue", size, nanos_each(rounds * size, queued));
        chart.add("deliver and acknowledge", size, nanos_each(rounds * size, delivered));
    }
    chart.publish()
}
