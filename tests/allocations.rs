//! A QoS 0 message costs no heap allocation once its way is known, counted by an allocator.

#![allow(unsafe_code)] // An allocator that counts cannot be written without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Packet, Protocol, Publish};
use broker::codec::property::PropertyList;
use broker::codec::{Inbox, PacketId, Properties, Property, QoS, decode, encode};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory of its callers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above, for a pointer that came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
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
}

impl World {
    /// With these properties in CONNECT and SUBSCRIBE.
    fn new(protocol: Protocol, connect: Properties<'_>, subscribe: Properties<'_>) -> Self {
        let options = Options { sys_interval: None, ..Options::default() };
        let broker = Broker::new(options, Instant(0));
        let ids: Vec<ConnectionId> = (0..20).map(|slot| ConnectionId { slot, generation: 1 }).collect();
        let mut world = Self { broker, protocol, ids };
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
            let requests = ["topic/+", "topic/1"].map(|filter| (filter, QoS::AtMostOnce.into()));
            encode::subscribe(&mut bytes, protocol, PacketId::FIRST, subscribe, &requests);
            world.feed(id, &bytes);
        }
        while world.broker.poll_event().is_some() {}
        world
    }

    fn feed(&mut self, id: ConnectionId, bytes: &[u8]) {
        let Self { broker, protocol, .. } = self;
        let mut inbox = Inbox::default();
        let mut input = bytes;
        while let Some(frame) = inbox.next(&mut input, *protocol, u32::MAX).expect("packets") {
            broker.handle_packet(Instant(1), id, decode::decode(frame, *protocol).expect("packets"));
        }
        while let Some(id) = broker.poll_flush() {
            let pending = broker.outbox(id).map_or(0, broker::broker::Outbox::pending);
            broker.handle_written(Instant(1), id, pending, false);
        }
    }

    /// Asserts that messages with these properties allocate nothing once their way is known.
    fn check(&mut self, properties: Properties<'_>) {
        let mut bytes = Vec::new();
        for topic in ["topic/1", "topic/2", "topic/3"] {
            let publish = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain: false,
                topic,
                packet_id: None,
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
        World::new(protocol, Properties::NONE, Properties::NONE).check(Properties::NONE);
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
    let mut world = World::new(Protocol::Mqtt5, connect.as_properties(), subscribe.as_properties());
    world.check(publish.as_properties());
}
