//! The simulator: seeded worlds of clients around one core, and a model that knows MQTT and not the core's structures.
//!
//! In some worlds state is stored and the process crashes; in those of `worlds_on_disk` the broker's own store does that,
//! on a disk that loses its power: the whole way of an acknowledgement, from the core to the disk and back.
//!
//! A failure names its seed and its test, and `SIMULATION_SEED=n cargo test --test simulation -- --exact TEST` replays it.
//! `SIMULATION_TRACE=1` with it prints every event and every packet that a client hears.
//! `SIMULATION_SEEDS=n` and `SIMULATION_STEPS=n` make a longer run: a million steps are 1,000 seeds of 1,000.

mod client;
#[cfg(feature = "persistence")]
#[path = "../support/disk.rs"]
mod disk;
mod model;
#[path = "../support/random.rs"]
mod random;
mod store;
mod world;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Packet, Protocol, Will};
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Properties, QoS, decode, encode, frame};

use client::{Delivery, Ear, Heard, Unacknowledged, ack, bytes_of, publish_bytes};
#[cfg(feature = "persistence")]
use model::coverage::EXPECTED_ON_DISK;
use model::coverage::{Coverage, EXPECTED, EXPECTED_OF_CRASHES};
use random::Random;
use world::World;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Worlds live, each of its own seed, and see all that they should.
fn live(test: &str, seeds: u64, make: fn(u64) -> World, expected: &[&[&str]]) {
    let steps = setting("SIMULATION_STEPS").unwrap_or(400) as usize;
    let (first, count) = match setting("SIMULATION_SEED") {
        Some(seed) => (seed, 1),
        None => (0, setting("SIMULATION_SEEDS").unwrap_or(seeds)),
    };
    let next = AtomicU64::new(first);
    let coverages: Vec<Coverage> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut coverages = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            return coverages;
                        }
                        let lived = catch_unwind(AssertUnwindSafe(|| make(seed).live(steps)));
                        match lived {
                            Ok((_, coverage)) => coverages.push(coverage),
                            Err(_) => panic!(
                                "seed {seed} of {test} failed: SIMULATION_SEED={seed} SIMULATION_STEPS={steps}"
                            ),
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a seed failed, see above")).collect()
    });
    let mut seen = Coverage::default();
    for coverage in coverages {
        for (what, count) in coverage.counts {
            *seen.counts.entry(what).or_default() += count;
        }
    }
    println!("{:#?}", seen.counts);
    if count >= 100 {
        for what in expected.iter().copied().flatten() {
            assert!(seen.counts.get(what).is_some_and(|count| *count >= 10), "hardly ever: {what}");
        }
    }
}

#[test]
fn worlds() {
    live("worlds", 800, World::new, &[EXPECTED, EXPECTED_OF_CRASHES]);
}

#[cfg(feature = "persistence")]
#[test]
fn worlds_on_disk() {
    live("worlds_on_disk", 400, World::on_disk, &[EXPECTED_OF_CRASHES, EXPECTED_ON_DISK]);
}

fn check_replay(seeds: u64, make: fn(u64) -> World) {
    for seed in 0..seeds {
        let (first, _) = make(seed).live(300);
        let (second, _) = make(seed).live(300);
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    check_replay(20, World::new);
}

#[cfg(feature = "persistence")]
#[test]
fn the_same_seed_gives_the_same_bytes_on_disk() {
    check_replay(10, World::on_disk);
}

/// A subscriber that answers nothing until every packet identifier is in use, and then answers nearly in order, a few
/// messages not before the end, while the identifiers go round three times.
#[test]
fn packet_identifiers_run_out_and_go_round() {
    const MESSAGES: u32 = 260_000;
    let mut random = Random::new(3);
    let now = Instant(0);
    let options = Options {
        seed: 1,
        in_flight_max: u16::MAX,
        queued_messages_max: MESSAGES,
        outbox_bytes_max: 1 << 30,
        sys_interval: None,
        ..Options::default()
    };
    let mut broker = Broker::new(options, now);
    let id = ConnectionId { slot: 0, generation: 1 };
    broker.handle_open(now, id);
    let mut say = Vec::new();
    let connect = Connect {
        protocol: Protocol::Mqtt311,
        clean_start: true,
        keep_alive_secs: 0,
        properties: Properties::NONE,
        client_id: "c",
        will: None,
        username: None,
        password: None,
    };
    encode::encode(&Packet::Connect(connect), Protocol::Mqtt311, &mut say).expect("a CONNECT");
    encode::subscribe(
        &mut say,
        Protocol::Mqtt311,
        PacketId::FIRST,
        Properties::NONE,
        &[("t", QoS::AtLeastOnce.into())],
    );
    let mut ear = Ear::default();
    let mut published = 0;
    let mut heard_next = 0;
    let mut in_use: VecDeque<PacketId> = VecDeque::new();
    let mut is_in_use = vec![false; 1 << 16];
    while heard_next < MESSAGES || !in_use.is_empty() {
        let mut bytes = say.as_slice();
        while let Ok(frame::Split::Complete { frame, length }) = frame::split(bytes, Protocol::Mqtt311, 1_000)
        {
            broker.handle_packet(now, id, decode::decode(frame, Protocol::Mqtt311).expect("a packet"));
            bytes = &bytes[length..];
        }
        assert!(bytes.is_empty());
        say.clear();
        for heard in ear.hear(&take_all(&mut broker, now, id)) {
            match heard {
                Heard::Publish(Delivery { payload, packet_id: Some(packet_id), dup, .. }) => {
                    assert_eq!(payload, heard_next.to_string(), "in order [MQTT-4.6.0-6]");
                    heard_next += 1;
                    assert!(!dup);
                    let used = &mut is_in_use[usize::from(packet_id.number())];
                    assert!(!std::mem::replace(used, true), "{packet_id} is in use [MQTT-2.3.1-4]");
                    in_use.push_back(packet_id);
                }
                Heard::Puback(..) | Heard::Connack { .. } | Heard::Suback(..) => {}
                other => panic!("{other:?}"),
            }
        }
        if published < 70_000 {
            assert!(published < 65_535 || in_use.len() == 65_535, "all are used, and no more");
        }
        let answers = if published < 70_000 { 0 } else { in_use.len().min(20_000) };
        for _ in 0..answers {
            // More than the few that are left unanswered, which gather at the front.
            let at = random.below(in_use.len().min(16));
            if in_use[at].number() % 10_000 == 7 && heard_next < MESSAGES {
                continue;
            }
            let answered = in_use.remove(at).expect("it is in use");
            is_in_use[usize::from(answered.number())] = false;
            say.extend(bytes_of(&Packet::Puback(ack(answered)), Protocol::Mqtt311));
        }
        for _ in 0..MESSAGES.saturating_sub(published).min(10_000) {
            let message = Unacknowledged {
                topic: "t".to_owned(),
                payload: published.to_string(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: PropertyList::default(),
                received: false,
            };
            say.extend(publish_bytes(Protocol::Mqtt311, Some(PacketId::FIRST), &message, false, None));
            published += 1;
        }
    }
    assert_eq!(heard_next, MESSAGES);
    broker.check_invariants();
}

fn take_all(broker: &mut Broker, now: Instant, id: ConnectionId) -> Vec<u8> {
    while broker.poll_flush().is_some() {}
    let mut taken = Vec::new();
    loop {
        let mut slices = [std::io::IoSlice::new(&[]); 8];
        let filled = broker.outbox(id).expect("it is open").slices(&mut slices);
        let length = slices[..filled].iter().map(|slice| slice.len()).sum();
        if length == 0 {
            return taken;
        }
        slices[..filled].iter().for_each(|slice| taken.extend_from_slice(slice));
        broker.handle_written(now, id, length, false);
    }
}

#[test]
fn nothing_is_left_of_ten_thousand_clients() {
    let mut random = Random::new(1);
    let mut broker = Broker::new(Options { seed: 1, sys_interval: None, ..Options::default() }, Instant(0));
    for number in 0..10_000_u32 {
        let id = ConnectionId { slot: number % 50, generation: number };
        let now = Instant(u64::from(number));
        let client_id = format!("{:x}-{number}", random.below(1 << 30));
        broker.handle_open(now, id);
        let will = Will {
            topic: "w",
            payload: client_id.as_bytes(),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Properties::NONE,
        };
        broker.handle_packet(
            now,
            id,
            Packet::Connect(Connect {
                protocol: Protocol::Mqtt311,
                clean_start: true,
                keep_alive_secs: 60,
                properties: Properties::NONE,
                client_id: &client_id,
                will: Some(will),
                username: None,
                password: None,
            }),
        );
        let mut bytes = Vec::new();
        let filters = [format!("{number}/+"), format!("a/{number}"), "w".to_owned()];
        let requests: Vec<_> =
            filters.iter().map(|filter| (filter.as_str(), QoS::AtLeastOnce.into())).collect();
        encode::subscribe(&mut bytes, Protocol::Mqtt311, PacketId::FIRST, Properties::NONE, &requests);
        let Ok(frame::Split::Complete { frame, .. }) = frame::split(&bytes, Protocol::Mqtt311, 1_000) else {
            panic!("a SUBSCRIBE");
        };
        broker.handle_packet(now, id, decode::decode(frame, Protocol::Mqtt311).expect("a SUBSCRIBE"));
        if number % 2 == 0 {
            broker.handle_lost(now, id, false);
        } else {
            broker.handle_packet(now, id, Packet::Disconnect(broker::codec::packet::Disconnect::NORMAL));
        }
        while let Some(id) = broker.poll_close() {
            broker.handle_closed(id);
        }
        while broker.poll_event().is_some() {}
        while broker.poll_flush().is_some() {}
        // A turn, in which what has been left behind is let go.
        broker.handle_timeout(now);
    }
    broker.check_invariants();
    let status = broker.status();
    assert_eq!((status.sessions, status.subscriptions, status.message_bytes), (0, 0, 0));
    assert_eq!((broker.connections(), broker.timers_armed()), (0, 0));
}
