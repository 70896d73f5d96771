//! The core with clients and without sockets: bytes in, bytes for all subscribers out, and their answers in again.
//!
//! Client 0 publishes, the others subscribe to its topic and acknowledge what comes. A turn is that of the server's loop
//! without its calls to the system; a store, if there is one, has stored a batch by the next turn.
//!
//! Deliberately not here: what is measured of it (see `broker` and `instructions`), and clients that do not keep up.

use std::io::IoSlice;

use broker::broker::options::Durability;
use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Disconnect, Publish};
use broker::codec::property::PropertyList;
use broker::codec::{Inbox, Packet, PacketId, Property, Protocol, QoS, ReasonCode, decode, encode};

const TOPIC: &str = "bench/core/17";

/// Pieces of an outbox that one write of the server can name.
const SLICES_MAX: usize = 64;

const NOW: Instant = Instant(1_000);

/// Messages of one publisher, and who gets them.
#[derive(Clone, Copy)]
pub(crate) struct Publication {
    /// With 5.0 every message has properties, and every subscription an identifier.
    pub(crate) protocol: Protocol,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) payload_bytes: usize,
    /// Messages that come in one read.
    pub(crate) messages: u16,
    pub(crate) subscribers: u32,
    /// Whether the subscribers have gone and left their sessions.
    pub(crate) are_absent: bool,
    /// Whether there is a store, and the subscribers' sessions are in it.
    pub(crate) has_store: bool,
}

impl Publication {
    /// Gets ready for it. Each call of what comes back is all messages, and takes as many turns as they need until
    /// nothing moves any more.
    pub(crate) fn prepare(self) -> impl FnMut() {
        let mut core = self.core();
        let (publishes, releases) = (self.publishes(), self.releases());
        let subscribers = if self.are_absent { 0 } else { u64::from(self.subscribers) };
        let deliveries = subscribers * u64::from(self.messages);
        move || {
            core.deliveries = 0;
            core.exchange(0, &publishes);
            if !releases.is_empty() {
                core.exchange(0, &releases);
            }
            assert_eq!(core.deliveries, deliveries, "every subscriber gets every message");
            assert_eq!(core.broker.metrics().in_flight_messages, 0, "all is acknowledged");
        }
    }

    fn core(self) -> Core {
        let Self { protocol, qos, subscribers, are_absent, has_store, .. } = self;
        let mut core = Core::new(has_store);
        core.open(0, &connect(protocol, 0, false));
        let list = list(protocol, &[Property::SubscriptionId(7)]);
        for slot in 1..=subscribers {
            core.open(slot, &connect(protocol, slot, has_store || are_absent));
            let mut bytes = Vec::new();
            let requests = [(TOPIC, qos.into())];
            encode::subscribe(&mut bytes, protocol, PacketId::FIRST, list.as_properties(), &requests);
            if are_absent {
                bytes.extend(disconnect(protocol));
            }
            core.exchange(slot, &bytes);
        }
        core
    }

    /// Identifiers may be the same in every call, because each call completes them.
    fn publishes(self) -> Vec<u8> {
        let Self { protocol, qos, retain, payload_bytes, messages, .. } = self;
        let payload = vec![b'x'; payload_bytes];
        let list =
            list(protocol, &[Property::ContentType("text/plain"), Property::UserProperty("unit", "kelvin")]);
        let publish = |number| {
            let publish = Publish {
                dup: false,
                qos,
                retain,
                topic: TOPIC,
                packet_id: PacketId::new(number).filter(|_| qos > QoS::AtMostOnce),
                properties: list.as_properties(),
                payload: &payload,
            };
            bytes_of(protocol, Packet::Publish(publish))
        };
        (1..=messages).flat_map(publish).collect()
    }

    fn releases(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let packet_ids = (1..=self.messages).filter_map(PacketId::new);
        for packet_id in packet_ids.filter(|_| self.qos == QoS::ExactlyOnce) {
            encode::pubrel(&mut bytes, packet_id, ReasonCode::Success);
        }
        bytes
    }
}

/// What a client says first. Its session outlives the connection if it is kept.
pub(crate) fn connect(protocol: Protocol, slot: u32, is_kept: bool) -> Vec<u8> {
    let list =
        if is_kept { list(protocol, &[Property::SessionExpirySecs(3_600)]) } else { list(protocol, &[]) };
    let connect = Connect {
        protocol,
        clean_start: !is_kept,
        keep_alive_secs: 0,
        properties: list.as_properties(),
        client_id: &format!("client-{slot}"),
        will: None,
        username: None,
        password: None,
    };
    bytes_of(protocol, Packet::Connect(connect))
}

/// What it says last.
pub(crate) fn disconnect(protocol: Protocol) -> Vec<u8> {
    bytes_of(protocol, Packet::Disconnect(Disconnect::NORMAL))
}

fn bytes_of(protocol: Protocol, packet: Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(&packet, protocol, &mut bytes).expect("it has a form on the wire");
    bytes
}

/// Properties where there are any.
fn list(protocol: Protocol, properties: &[Property<'_>]) -> PropertyList {
    properties.iter().copied().filter(|_| protocol.has_properties()).collect()
}

/// The core and its clients.
pub(crate) struct Core {
    broker: Broker,
    inboxes: Vec<Inbox>,
    /// What the subscriber in hand answers.
    answers: Vec<u8>,
    deliveries: u64,
}

impl Core {
    /// A core without clients.
    pub(crate) fn new(has_store: bool) -> Self {
        let durability = if has_store { Durability::BeforeReply } else { Durability::None };
        let options = Options { seed: 1, sys_interval: None, durability, ..Options::default() };
        let broker = Broker::new(options, NOW);
        Self { broker, inboxes: Vec::new(), answers: Vec::new(), deliveries: 0 }
    }

    /// Opens a connection, whose client says this.
    pub(crate) fn open(&mut self, slot: u32, bytes: &[u8]) {
        self.broker.handle_open(NOW, id(slot));
        if self.inboxes.len() <= slot as usize {
            self.inboxes.resize_with(slot as usize + 1, Inbox::default);
        }
        self.exchange(slot, bytes);
    }

    /// The client says this, and nothing moves any more when all is said that follows from it.
    pub(crate) fn exchange(&mut self, slot: u32, bytes: &[u8]) {
        self.input(slot, bytes);
        while self.turn() {}
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
            let wants_input = broker.wants_input(id(slot)) || matches!(packet, Packet::Disconnect(_));
            assert!(wants_input, "nobody here is slow");
        }
    }

    /// Whether anything moved.
    fn turn(&mut self) -> bool {
        self.broker.handle_timeout(NOW);
        let batch = self.broker.poll_journal();
        let dirty = self.broker.dirty_len();
        for _ in 0..dirty {
            let Some(id) = self.broker.poll_flush() else { break };
            self.flush(id);
        }
        while self.broker.poll_event().is_some() {}
        while let Some(id) = self.broker.poll_close() {
            self.broker.handle_closed(id);
        }
        if let Some(batch) = &batch {
            self.broker.handle_stored(NOW, batch.last());
        }
        dirty > 0 || batch.is_some()
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
