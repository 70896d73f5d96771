//! A message costs no heap allocation once its way is known, counted by an allocator; and a large one is not copied.

#![allow(unsafe_code)] // An allocator that counts cannot be written without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::IoSlice;

use broker::broker::options::Durability;
use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Packet, Protocol, Publish};
use broker::codec::property::PropertyList;
use broker::codec::{Inbox, PacketId, Properties, Property, QoS, ReasonCode, decode, encode};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static LARGEST_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    ALLOCATIONS.with(|count| count.set(count.get() + 1));
    LARGEST_BYTES.with(|largest| largest.set(largest.get().max(bytes)));
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory of its callers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above, for a pointer that came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Clients who all publish and subscribe to the same topics.
struct World {
    broker: Broker,
    protocol: Protocol,
    ids: Vec<ConnectionId>,
    /// What a client was sent, and what it answers.
    sent: Vec<u8>,
    answers: Vec<u8>,
}

/// The core takes what came of a client.
fn take(broker: &mut Broker, id: ConnectionId, mut bytes: &[u8]) {
    let mut terms = broker.reading_terms(id);
    while broker.handle_next(Instant(1), id, &mut terms, &mut Inbox::default(), &mut bytes) {}
    assert!(bytes.is_empty(), "packets");
}

impl World {
    /// With these properties in CONNECT and SUBSCRIBE.
    fn new(protocol: Protocol, qos: QoS, connect: Properties<'_>, subscribe: Properties<'_>) -> Self {
        let options = Options { sys_interval: None, ..Options::default() };
        Self::with_options(options, protocol, qos, connect, subscribe)
    }

    fn with_options(
        options: Options,
        protocol: Protocol,
        qos: QoS,
        connect: Properties<'_>,
        subscribe: Properties<'_>,
    ) -> Self {
        let broker = Broker::new(options, Instant(0));
        let ids: Vec<ConnectionId> = (0..20).map(|slot| ConnectionId { slot, generation: 1 }).collect();
        let mut world = Self { broker, protocol, ids, sent: Vec::new(), answers: Vec::new() };
        for id in world.ids.clone() {
            world.broker.handle_open(Instant(0), id);
            let mut bytes = Vec::new();
            let client_id = format!("c{}", id.slot);
            let connect = Connect {
                protocol,
                clean_start: true,
                keep_alive_secs: 60,
                properties: connect,
                client_id: &client_id,
                will: None,
                username: None,
                password: None,
            };
            encode::encode(&Packet::Connect(connect), protocol, &mut bytes).expect("a CONNECT");
            let requests = ["topic/+", "topic/1"].map(|filter| (filter, qos.into()));
            encode::subscribe(&mut bytes, protocol, PacketId::FIRST, subscribe, &requests);
            world.feed(id, &bytes);
        }
        while world.broker.poll_event().is_some() {}
        world
    }

    fn feed(&mut self, id: ConnectionId, bytes: &[u8]) {
        take(&mut self.broker, id, bytes);
        while let Some(id) = self.broker.poll_flush() {
            self.flush(id);
        }
    }

    /// A client takes all that waits for it, and acknowledges it.
    fn flush(&mut self, id: ConnectionId) {
        let Self { broker, protocol, sent, answers, .. } = self;
        sent.clear();
        answers.clear();
        let Some(outbox) = broker.outbox(id) else { return };
        let mut slices = [IoSlice::new(&[]); 64];
        let filled = outbox.slices(&mut slices);
        slices[..filled].iter().for_each(|slice| sent.extend_from_slice(slice));
        broker.handle_written(Instant(1), id, sent.len(), false);
        let mut inbox = Inbox::default();
        let mut input = sent.as_slice();
        while let Some(frame) = inbox.next(&mut input, *protocol, u32::MAX).expect("packets") {
            if let Packet::Publish(Publish { packet_id: Some(packet_id), .. }) =
                decode::decode(frame, *protocol).expect("packets")
            {
                encode::puback(answers, packet_id, ReasonCode::Success);
            }
        }
        take(broker, id, answers);
    }

    /// Asserts that messages with these properties allocate nothing once their way is known.
    fn check(&mut self, qos: QoS, properties: Properties<'_>) {
        let mut bytes = Vec::new();
        for (topic, number) in [("topic/1", 1), ("topic/2", 2), ("topic/3", 3)] {
            let publish = Publish {
                dup: false,
                qos,
                retain: false,
                topic,
                packet_id: PacketId::new(number).filter(|_| qos > QoS::AtMostOnce),
                properties,
                payload: &[7; 64],
            };
            encode::encode(&Packet::Publish(publish), self.protocol, &mut bytes).expect("a PUBLISH");
        }
        let publisher = self.ids[0];
        let mut count = |rounds: usize| {
            let before = ALLOCATIONS.with(Cell::get);
            for _ in 0..rounds {
                self.feed(publisher, &bytes);
            }
            ALLOCATIONS.with(Cell::get) - before
        };
        assert!(count(10) > 0, "the counter counts: buffers and caches grow at first");
        assert_eq!(count(1_000), 0);
        assert_eq!(self.broker.metrics().publish_sent, 1_010 * 3 * 20);
    }
}

#[test]
fn a_qos_0_message_allocates_nothing_in_the_steady_state() {
    for protocol in [Protocol::Mqtt311, Protocol::Mqtt5] {
        World::new(protocol, QoS::AtMostOnce, Properties::NONE, Properties::NONE)
            .check(QoS::AtMostOnce, Properties::NONE);
    }
}

#[test]
fn nor_does_one_at_qos_1() {
    for protocol in [Protocol::Mqtt311, Protocol::Mqtt5] {
        World::new(protocol, QoS::AtLeastOnce, Properties::NONE, Properties::NONE)
            .check(QoS::AtLeastOnce, Properties::NONE);
    }
}

#[test]
fn nor_does_it_with_properties_aliases_and_subscription_identifiers() {
    let connect = PropertyList::from_iter([Property::TopicAliasMaximum(2)]);
    let subscribe = PropertyList::from_iter([Property::SubscriptionId(300)]);
    let publish = PropertyList::from_iter([
        Property::MessageExpirySecs(60),
        Property::ContentType("text"),
        Property::UserProperty("name", "value"),
    ]);
    let mut world =
        World::new(Protocol::Mqtt5, QoS::AtMostOnce, connect.as_properties(), subscribe.as_properties());
    world.check(QoS::AtMostOnce, publish.as_properties());
}

#[test]
fn a_large_message_is_not_copied() {
    const READ_BYTES: usize = 64 * 1024;
    let payload = vec![7; (1 << 20) + 100_000];
    let expiring = PropertyList::from_iter([Property::MessageExpirySecs(60), Property::ContentType("text")]);
    let without_topic = PropertyList::from_iter([Property::TopicAlias(1)]);
    let text = PropertyList::from_iter([Property::PayloadIsText(true)]);
    for (protocol, topic, properties) in [
        (Protocol::Mqtt311, "topic/1", Properties::NONE),
        (Protocol::Mqtt5, "topic/1", expiring.as_properties()),
        (Protocol::Mqtt5, "topic/1", text.as_properties()),
        (Protocol::Mqtt5, "", without_topic.as_properties()),
    ] {
        let has_alias = topic.is_empty();
        let mut world = World::new(protocol, QoS::AtLeastOnce, Properties::NONE, Properties::NONE);
        let publisher = world.ids[0];
        let mut bytes = Vec::new();
        let mut publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: "topic/1",
            packet_id: Some(PacketId::FIRST),
            properties: if has_alias { properties } else { Properties::NONE },
            payload: b"sets the alias",
        };
        encode::encode(&Packet::Publish(publish), protocol, &mut bytes).expect("a PUBLISH");
        world.feed(publisher, &bytes);
        bytes.clear();
        (publish.topic, publish.properties, publish.payload) = (topic, properties, &payload);
        encode::encode(&Packet::Publish(publish), protocol, &mut bytes).expect("a PUBLISH");
        let mut inbox = Inbox::default();
        let mut terms = world.broker.reading_terms(publisher);
        let mut is_taken = false;
        for mut read in bytes.chunks(READ_BYTES) {
            LARGEST_BYTES.with(|largest| largest.set(0));
            is_taken = world.broker.handle_next(Instant(1), publisher, &mut terms, &mut inbox, &mut read);
        }
        assert!(is_taken);
        // Text is looked at in several turns.
        while world.broker.poll_timeout() == Some(Instant(0)) && !world.broker.wants_input(publisher) {
            world.broker.handle_timeout(Instant(1));
        }
        // The last read takes it, and makes room for no more than the end of the packet.
        assert!(LARGEST_BYTES.with(Cell::get) < payload.len(), "{protocol}: {topic:?}");
        while let Some(id) = world.broker.poll_flush() {
            world.flush(id);
            assert!(world.sent.ends_with(&payload) || id == publisher);
        }
        assert_eq!(world.broker.metrics().publish_sent, 2 * 20);
    }
}

#[test]
fn nor_is_one_that_has_to_wait() {
    let options = Options { steps_per_turn: 4, sys_interval: None, ..Options::default() };
    let none = Properties::NONE;
    let mut world = World::with_options(options, Protocol::Mqtt311, QoS::AtLeastOnce, none, none);
    let payload = vec![7; (1 << 20) + 100_000];
    let mut taken = 0;
    for (slot, payload) in [(0, b"to many".as_slice()), (1, &payload)] {
        let mut bytes = Vec::new();
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: "topic/1",
            packet_id: Some(PacketId::FIRST),
            properties: Properties::NONE,
            payload,
        };
        encode::encode(&Packet::Publish(publish), Protocol::Mqtt311, &mut bytes).expect("a PUBLISH");
        let id = world.ids[slot];
        let mut terms = world.broker.reading_terms(id);
        let mut inbox = Inbox::default();
        for mut read in bytes.chunks(64 * 1024) {
            taken += u32::from(world.broker.handle_next(Instant(1), id, &mut terms, &mut inbox, &mut read));
        }
    }
    assert!(taken == 2 && !world.broker.wants_input(world.ids[1]), "it waits for the other one");
    LARGEST_BYTES.with(|largest| largest.set(0));
    for _ in 0..100 {
        world.broker.handle_timeout(Instant(1));
    }
    assert!(LARGEST_BYTES.with(Cell::get) < payload.len());
    assert_eq!(world.broker.metrics().publish_sent, 2 * 20);
}

#[test]
fn nor_is_one_that_is_stored() {
    let options = Options { durability: Durability::BeforeReply, sys_interval: None, ..Options::default() };
    let connect = PropertyList::from_iter([Property::SessionExpirySecs(60)]);
    let (properties, none) = (connect.as_properties(), Properties::NONE);
    let mut world = World::with_options(options, Protocol::Mqtt5, QoS::AtLeastOnce, properties, none);
    let payload = vec![7; (1 << 20) + 100_000];
    let publish = Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "topic/1",
        packet_id: Some(PacketId::FIRST),
        properties: none,
        payload: &payload,
    };
    let mut bytes = Vec::new();
    encode::encode(&Packet::Publish(publish), Protocol::Mqtt5, &mut bytes).expect("a PUBLISH");
    let publisher = world.ids[0];
    let mut terms = world.broker.reading_terms(publisher);
    let mut inbox = Inbox::default();
    for mut read in bytes.chunks(64 * 1024) {
        LARGEST_BYTES.with(|largest| largest.set(0));
        world.broker.handle_next(Instant(1), publisher, &mut terms, &mut inbox, &mut read);
    }
    let batches: Vec<_> = std::iter::from_fn(|| {
        let batch = world.broker.poll_journal(Instant(1))?;
        world.broker.handle_stored(Instant(1), batch.last());
        Some(batch)
    })
    .collect();
    assert!(LARGEST_BYTES.with(Cell::get) < payload.len());
    let stored: usize = batches.iter().map(|batch| batch.length()).sum();
    assert!((payload.len()..payload.len() + 10_000).contains(&stored), "it is stored once");
    let last = batches.last().expect("it is stored").to_bytes();
    assert!(last.windows(1_000).any(|window| window == &payload[..1_000]));
}
