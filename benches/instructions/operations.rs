//! The operations that are counted.
//!
//! Deliberately not here: how they are done, where another benchmark measures them as well (see `benches/operations`).

use std::hint::black_box;

use broker::clock::{Duration, Instant};
use broker::codec::{Packet, PacketId, Properties, Protocol, QoS, encode};
use broker::wheel::Wheel;

use crate::callgrind::REPETITIONS;
use crate::core::{Core, connect, disconnect};
use crate::packets;
use crate::publication::Publication;
use crate::topics::{ask_cached, ask_new, exact_filter, mixed_filter, tree};

/// Of all packets those that are frequent, and CONNECT.
const PACKETS: [&str; 10] = [
    "CONNECT",
    "PUBLISH QoS 0, 64 bytes",
    "PUBLISH QoS 1, 64 bytes",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "5.0 CONNECT with 3 properties",
    "5.0 PUBLISH QoS 0 with 3 properties",
    "5.0 PUBLISH with 3 properties",
    "5.0 PUBACK with a reason",
];

const FILTERS: usize = 100_000;

/// Each has its turn once in a count, and so has the change that makes the cache worthless.
const NEW_TOPICS: usize = REPETITIONS as usize;

/// Timers that stand in the wheel.
const TIMERS: u64 = 1_000;

/// From one to the next, a little more than a tick of the wheel.
const TICK: Duration = Duration(70);

const ONE_MESSAGE: Publication = Publication {
    protocol: Protocol::Mqtt311,
    qos: QoS::AtMostOnce,
    retain: false,
    payload_bytes: 64,
    messages: 1,
    subscribers: 1,
    are_absent: false,
    has_store: false,
    has_idle_store: false,
};

/// Something to be counted.
pub(crate) struct Operation {
    pub(crate) name: String,
    /// Does it so many times, after it has got ready.
    pub(crate) repeat: Box<dyn Fn(u32)>,
}

/// All operations.
pub(crate) fn all() -> Vec<Operation> {
    let mut all = Vec::new();
    let mut add = |name: String, repeat: Box<dyn Fn(u32)>| all.push(Operation { name, repeat });
    for (name, publication) in publications() {
        add(name, Box::new(move |times| repeat(times, publication.prepare())));
    }
    for (name, bytes) in requests() {
        let name = format!("core: {name}");
        add(name, Box::new(move |times| repeat(times, exchange(&bytes))));
    }
    for (version, protocol) in [("", Protocol::Mqtt311), ("5.0 ", Protocol::Mqtt5)] {
        let name = format!("core: {version}connect and disconnect");
        add(name, Box::new(move |times| repeat(times, come_and_go(protocol))));
    }
    for name in PACKETS {
        let sample = || packets::samples().into_iter().find(|sample| sample.name == name);
        let [decoded, encoded] = [sample(), sample()].map(|found| found.expect("it is among the samples"));
        add(format!("decode {name}"), Box::new(move |times| repeat(times, decoded.decoding())));
        add(format!("encode {name}"), Box::new(move |times| repeat(times, encoded.encoding())));
    }
    for (kind, filter) in [("exact", exact_filter as fn(usize) -> String), ("mixed", mixed_filter)] {
        let cached = move |times| repeat(times, ask_cached(&mut tree(FILTERS, filter), FILTERS));
        add(format!("match a cached topic among {FILTERS} {kind} filters"), Box::new(cached));
        let new = move |times| repeat(times, ask_new(&mut tree(FILTERS, filter), FILTERS, NEW_TOPICS));
        add(format!("match a new topic among {FILTERS} {kind} filters"), Box::new(new));
    }
    add("wheel: arm two timers, cancel one, fire one".to_owned(), Box::new(|times| repeat(times, timers())));
    all
}

fn repeat(times: u32, mut operation: impl FnMut()) {
    for _ in 0..times {
        operation();
    }
}

/// Messages to subscribers who are there, to sessions whose clients are not, to nobody.
fn publications() -> Vec<(String, Publication)> {
    let mut all = Vec::new();
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut add = |what: &str, publication| {
            all.push((format!("core: a message at QoS {}{what}", qos.number()), publication));
        };
        let one = Publication { qos, ..ONE_MESSAGE };
        add(" to 1 subscriber", one);
        add(" to 1 subscriber, 5.0", Publication { protocol: Protocol::Mqtt5, ..one });
        add(" to 100 subscribers", Publication { subscribers: 100, ..one });
        let stored = Publication { has_store: true, ..one };
        add(" to 1 stored session", stored);
        if qos == QoS::AtLeastOnce {
            let many = Publication { messages: 100, ..one };
            add(", 100 at once, to 1 subscriber", many);
            add(
                ", 100 at once, to 1 subscriber beside a store",
                Publication { has_idle_store: true, ..many },
            );
            let absent = Publication { are_absent: true, has_store: true, ..many };
            add(", 100 at once, to 1 absent stored session", absent);
        }
        if qos > QoS::AtMostOnce {
            add(" to 100 stored sessions", Publication { subscribers: 100, ..stored });
            add(" to 1 absent session", Publication { are_absent: true, ..one });
            add(" to 1 absent stored session", Publication { are_absent: true, ..stored });
        }
    }
    all.push((
        "core: set a retained message".to_owned(),
        Publication { retain: true, subscribers: 0, ..ONE_MESSAGE },
    ));
    all
}

/// What a client that stays connected says.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let both = |filter| {
        let (protocol, packet_id) = (Protocol::Mqtt311, PacketId::FIRST);
        let mut bytes = Vec::new();
        let requests = [(filter, QoS::AtLeastOnce.into())];
        encode::subscribe(&mut bytes, protocol, packet_id, Properties::NONE, &requests);
        encode::unsubscribe(&mut bytes, protocol, packet_id, Properties::NONE, &[filter]);
        bytes
    };
    let mut ping = Vec::new();
    encode::encode(&Packet::Pingreq, Protocol::Mqtt311, &mut ping).expect("it has a form on the wire");
    vec![
        ("PINGREQ", ping),
        ("subscribe and unsubscribe, exact", both("site/5/device/none/temperature")),
        ("subscribe and unsubscribe, wildcards", both("site/5/+/none/#")),
    ]
}

fn exchange(bytes: &[u8]) -> impl FnMut() {
    let mut core = Core::new(false);
    core.open(0, &connect(Protocol::Mqtt311, "client-0", false, 0));
    move || core.exchange(0, bytes)
}

fn come_and_go(protocol: Protocol) -> impl FnMut() {
    let mut core = Core::new(false);
    let bytes = [connect(protocol, "client-0", false, 0), disconnect(protocol)].concat();
    move || core.open(0, &bytes)
}

/// Each time one is due.
fn timers() -> impl FnMut() {
    let mut now = Instant(1_000);
    let mut wheel = Wheel::new(now);
    for tick in 1..=TIMERS {
        wheel.insert(now + Duration(tick * TICK.0), ());
    }
    move || {
        now = now + TICK;
        wheel.insert(now + Duration(TIMERS * TICK.0), ());
        let cancelled = wheel.insert(now + TICK, ());
        assert!(wheel.cancel(black_box(cancelled)).is_some());
        assert!(wheel.pop(now).is_some(), "one is due");
        assert!(wheel.pop(now).is_none(), "no other is");
    }
}
