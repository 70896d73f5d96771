//! Connecting among sessions of clients that are away, each with a subscription.

use std::io;

use broker::clock::Duration;
use broker::codec::QoS;

use crate::chart::Chart;
use crate::clients::{connect_bytes, core_with_publisher, disconnect_bytes, subscribe_bytes};
use crate::core::Core;
use crate::{BATCHES, SIZES, nanos_each, scattered, timed};

const CLIENT: u32 = 1;

const VISITS_PER_BATCH: u64 = 10_000;

/// From one client to the next.
const INTERVAL: Duration = Duration(1);

pub(crate) fn run() -> io::Result<()> {
    let mut chart =
        Chart::new("sessions", "Connecting and disconnecting", "sessions of clients that are away");
    let mut core = core_with_publisher();
    let mut number = 0;
    for size in SIZES {
        while number < size {
            leave_session(&mut core, number);
            core.now = core.now + INTERVAL;
            number += 1;
        }
        let new: Vec<Vec<u8>> =
            (0..VISITS_PER_BATCH).map(|number| connect_bytes(&format!("visitor-{number}"), false)).collect();
        let known: Vec<Vec<u8>> = (0..VISITS_PER_BATCH)
            .map(|step| connect_bytes(&client_id(scattered(step, size)), true))
            .collect();
        for (name, connects) in [("a new client", new), ("a client that comes back", known)] {
            let times = (0..BATCHES).map(|_| timed(|| visit(&mut core, &connects)));
            chart.add(name, size, nanos_each(VISITS_PER_BATCH, times));
        }
        assert_eq!(core.broker.status().sessions_absent as u64, size);
    }
    chart.publish()
}

pub(crate) fn client_id(number: u64) -> String {
    format!("absent-{number}")
}

pub(crate) fn inbox(number: u64) -> String {
    format!("client/{number}/inbox")
}

pub(crate) fn inbox_subscribe_bytes(number: u64) -> Vec<u8> {
    subscribe_bytes(&[inbox(number)], QoS::AtLeastOnce)
}

/// A client comes, subscribes, and goes, but its session stays.
pub(crate) fn leave_session(core: &mut Core, number: u64) {
    core.open(CLIENT, &connect_bytes(&client_id(number), true));
    core.exchange(CLIENT, &inbox_subscribe_bytes(number));
    core.exchange(CLIENT, &disconnect_bytes());
}

/// Clients come and go, one after the other.
fn visit(core: &mut Core, connects: &[Vec<u8>]) {
    let disconnect = disconnect_bytes();
    for connect in connects {
        core.open(CLIENT, connect);
        core.exchange(CLIENT, &disconnect);
        core.now = core.now + INTERVAL;
    }
}
