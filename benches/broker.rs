//! The core without sockets: bytes of a publisher in, bytes for all subscribers out, and their answers in again.
//!
//! ```text
//! cargo bench --bench broker                   all of it
//! cargo bench --bench broker -- 'QoS 1'        only what has this in its name
//! ```
//!
//! One iteration takes as many turns as the messages need until nothing moves any more; a turn is that of the server's
//! loop without its calls to the system. The figures are per delivered message. At QoS 1 and 2 every subscriber
//! acknowledges, so those figures hold all packets of a delivery.
//!
//! Deliberately not here: sockets (see `tcp`), and clients that do not keep up.

use std::io::IoSlice;

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Publish};
use broker::codec::property::PropertyList;
use broker::codec::{
    Inbox, Packet, PacketId, Properties, Property, Protocol, QoS, ReasonCode, decode, encode,
};
use criterion::{BenchmarkId, Criterion, Throughput};

const TOPIC: &str = "bench/core/17";

/// Pieces of an outbox that one write of the server can name.
const SLICES_MAX: usize = 64;

const NOW: Instant = Instant(1_000);

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for (payload_bytes, messages) in [(64, 1), (64, 50), (4_096, 1)] {
            fan_out(&mut criterion, Protocol::Mqtt311, qos, payload_bytes, messages);
        }
        for messages in [1, 50] {
            fan_out(&mut criterion, Protocol::Mqtt5, qos, 64, messages);
        }
    }
    criterion.final_summary();
}

/// With 5.0 every message has properties, and every subscription an identifier.
fn fan_out(criterion: &mut Criterion, protocol: Protocol, qos: QoS, payload_bytes: usize, messages: u16) {
    let version = if protocol.has_properties() { "5.0 " } else { "" };
    let name = format!("{version}QoS {}, {payload_bytes} bytes, {messages} messages a read", qos.number());
    let mut group = criterion.benchmark_group(name);
    for subscribers in [1, 100, 1_000] {
        group.throughput(Throughput::Elements(u64::from(subscribers) * u64::from(messages)));
        group.bench_function(BenchmarkId::from_parameter(subscribers), |bencher| {
            let mut core = Core::new(protocol, subscribers, qos);
            let publishes = publishes(protocol, qos, payload_bytes, messages);
            let releases = releases(qos, messages);
            let deliveries = u64::from(subscribers) * u64::from(messages);
            bencher.iter(|| {
                core.deliveries = 0;
                core.input(0, &publishes);
                core.settle();
                if !releases.is_empty() {
                    core.input(0, &releases);
                    core.settle();
                }
                assert_eq!(core.deliveries, deliveries, "every subscriber gets every message");
            });
            let metrics = core.broker.metrics();
            assert_eq!((metrics.in_flight_messages, metrics.dropped_total()), (0, 0), "all is acknowledged");
        });
    }
    group.finish();
}

/// Identifiers may be the same in every iteration, because each iteration completes them.
fn publishes(protocol: Protocol, qos: QoS, payload_bytes: usize, messages: u16) -> Vec<u8> {
    let payload = vec![b'x'; payload_bytes];
    let list =
        list(protocol, &[Property::ContentType("text/plain"), Property::UserProperty("unit", "kelvin")]);
    let mut bytes = Vec::new();
    for number in 1..=messages {
        let packet_id = PacketId::new(number).filter(|_| qos > QoS::AtMostOnce);
        let publish = Publish {
            dup: false,
            qos,
            retain: false,
            topic: TOPIC,
            packet_id,
            properties: list.as_properties(),
            payload: &payload,
        };
        encode::encode(&Packet::Publish(publish), protocol, &mut bytes).expect("it has a form on the wire");
    }
    bytes
}

/// Properties where there are any.
fn list(protocol: Protocol, properties: &[Property<'_>]) -> PropertyList {
    properties.iter().copied().filter(|_| protocol.has_properties()).collect()
}

fn releases(qos: QoS, messages: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet_id in (1..=messages).filter_map(PacketId::new).filter(|_| qos == QoS::ExactlyOnce) {
        encode::pubrel(&mut bytes, packet_id, ReasonCode::Success);
    }
    bytes
}

struct Core {
    broker: Broker,
    inboxes: Vec<Inbox>,
    /// What the subscriber in hand answers.
    answers: Vec<u8>,
    deliveries: u64,
}

impl Core {
    /// A core with one publisher, which is client 0, and subscribers to its topic.
    fn new(protocol: Protocol, subscribers: u32, qos: QoS) -> Self {
        let options = Options { seed: 1, sys_interval: None, ..Options::default() };
        let broker = Broker::new(options, NOW);
        let mut core = Self { broker, inboxes: Vec::new(), answers: Vec::new(), deliveries: 0 };
        for slot in 0..=subscribers {
            core.broker.handle_open(NOW, id(slot));
            core.inboxes.push(Inbox::default());
            let connect = Connect {
                protocol,
                clean_start: true,
                keep_alive_secs: 0,
                properties: Properties::NONE,
                client_id: &format!("client-{slot}"),
                will: None,
                username: None,
                password: None,
            };
            let mut bytes = Vec::new();
            encode::encode(&Packet::Connect(connect), protocol, &mut bytes)
                .expect("it has a form on the wire");
            if slot > 0 {
                let requests = [(TOPIC, qos.into())];
                let list = list(protocol, &[Property::SubscriptionId(7)]);
                let properties = list.as_properties();
                encode::subscribe(&mut bytes, protocol, PacketId::FIRST, properties, &requests);
            }
            core.input(slot, &bytes);
            core.settle();
        }
        core
    }

    /// What the server's loop does with the bytes of one read.
    fn input(&mut self, slot: u32, bytes: &[u8]) {
        let Self { broker, inboxes, .. } = self;
        let inbox = &mut inboxes[slot as usize];
        let mut input = bytes;
        broker.metrics_mut().bytes_received += bytes.len() as u64;
        let (mut protocol, mut packet_size_max) = broker.reading_terms(id(slot));
        while let Some(frame) = inbox.next(&mut input, protocol, packet_size_max).expect("packets") {
            let packet = decode::decode(frame, protocol).expect("a packet");
            broker.handle_packet(NOW, id(slot), packet);
            if matches!(packet, Packet::Connect(_)) {
                (protocol, packet_size_max) = broker.reading_terms(id(slot));
            }
            assert!(broker.wants_input(id(slot)), "nobody here is slow");
        }
    }

    /// Turns until nothing moves any more.
    fn settle(&mut self) {
        loop {
            self.broker.handle_timeout(NOW);
            if self.broker.dirty_len() == 0 {
                break;
            }
            for _ in 0..self.broker.dirty_len() {
                let Some(id) = self.broker.poll_flush() else { break };
                self.flush(id);
            }
            while self.broker.poll_event().is_some() {}
        }
    }

    /// Takes all that waits for one client and has a subscriber answer it at once.
    fn flush(&mut self, id: ConnectionId) {
        let Self { broker, answers, deliveries, .. } = self;
        let Some(outbox) = broker.outbox(id) else { return };
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = outbox.slices(&mut slices);
        let length = slices[..filled].iter().map(|slice| slice.len()).sum();
        answers.clear();
        if id.slot > 0 {
            *deliveries += answer(&slices[..filled], answers);
        }
        broker.handle_written(NOW, id, length, false);
        if !self.answers.is_empty() {
            let answers = std::mem::take(&mut self.answers);
            self.input(id.slot, &answers);
            self.answers = answers;
        }
    }
}

fn id(slot: u32) -> ConnectionId {
    ConnectionId { slot, generation: 1 }
}

/// Reads as little as an answer needs, so that the figure is that of the core. Returns how many messages came.
fn answer(slices: &[IoSlice<'_>], answers: &mut Vec<u8>) -> u64 {
    let mut deliveries = 0;
    // Where a payload is a slice of its own, the packet in hand ends in it.
    let mut skip = 0;
    for slice in slices {
        let mut bytes = &slice[..];
        while !bytes.is_empty() {
            if skip > 0 {
                let step = skip.min(bytes.len());
                bytes = &bytes[step..];
                skip -= step;
                continue;
            }
            let (length, header_length) = match *bytes {
                [_, low, ..] if low < 0x80 => (usize::from(low), 2),
                [_, low, high, ..] => (usize::from(low & 0x7F) | usize::from(high) << 7, 3),
                _ => panic!("a fixed header stands in one slice"),
            };
            let packet_id = |at: usize| {
                PacketId::new(u16::from_be_bytes([bytes[at], bytes[at + 1]])).expect("identifiers are not 0")
            };
            match bytes[0] {
                0x30 => deliveries += 1,
                0x32 => {
                    deliveries += 1;
                    encode::puback(answers, packet_id(header_length + 2 + TOPIC.len()), ReasonCode::Success);
                }
                0x34 => {
                    deliveries += 1;
                    encode::pubrec(answers, packet_id(header_length + 2 + TOPIC.len()), ReasonCode::Success);
                }
                0x62 => encode::pubcomp(answers, packet_id(header_length), ReasonCode::Success),
                _ => {}
            }
            skip = header_length + length;
        }
    }
    deliveries
}
