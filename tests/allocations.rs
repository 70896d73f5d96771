//! A QoS 0 message costs no heap allocation once its way is known, counted by an allocator.

#![allow(unsafe_code)] // An allocator that counts cannot be written without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Packet, Protocol, Publish};
use broker::codec::{Inbox, PacketId, Properties, QoS, decode, encode};

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

fn feed(broker: &mut Broker, id: ConnectionId, bytes: &[u8]) {
    let mut inbox = Inbox::default();
    let mut input = bytes;
    while let Some(frame) = inbox.next(&mut input, Protocol::Mqtt311, u32::MAX).expect("packets") {
        broker.handle_packet(Instant(1), id, decode::decode(frame, Protocol::Mqtt311).expect("packets"));
    }
    while let Some(id) = broker.poll_flush() {
        let pending = broker.outbox(id).map_or(0, broker::broker::Outbox::pending);
        broker.handle_written(Instant(1), id, pending, false);
    }
}

#[test]
fn a_qos_0_message_allocates_nothing_in_the_steady_state() {
    let options = Options { sys_interval: None, ..Options::default() };
    let mut broker = Broker::new(options, Instant(0));
    let ids: Vec<ConnectionId> = (0..20).map(|slot| ConnectionId { slot, generation: 1 }).collect();
    for id in &ids {
        broker.handle_open(Instant(0), *id);
        let mut bytes = Vec::new();
        let client_id = format!("c{}", id.slot);
        let connect = Connect {
            protocol: Protocol::Mqtt311,
            clean_start: true,
            keep_alive_secs: 60,
            properties: Properties::NONE,
            client_id: &client_id,
            will: None,
            username: None,
            password: None,
        };
        encode::encode(&Packet::Connect(connect), Protocol::Mqtt311, &mut bytes).expect("a CONNECT");
        let requests = ["t/+", "t/1"].map(|filter| (filter, QoS::AtMostOnce.into()));
        encode::subscribe(&mut bytes, Protocol::Mqtt311, PacketId::FIRST, Properties::NONE, &requests);
        feed(&mut broker, *id, &bytes);
    }
    while broker.poll_event().is_some() {}
    let mut bytes = Vec::new();
    for topic in ["t/1", "t/2", "t/3"] {
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic,
            packet_id: None,
            properties: Properties::NONE,
            payload: &[7; 64],
        };
        encode::encode(&Packet::Publish(publish), Protocol::Mqtt311, &mut bytes).expect("a PUBLISH");
    }
    let mut count = |rounds: usize| {
        let before = ALLOCATIONS.with(Cell::get);
        for _ in 0..rounds {
            feed(&mut broker, ids[0], &bytes);
        }
        ALLOCATIONS.with(Cell::get) - before
    };
    assert!(count(10) > 0, "the counter counts: buffers and caches grow at first");
    assert_eq!(count(1_000), 0);
    assert_eq!(broker.metrics().publish_sent, 1_010 * 3 * 20);
}
