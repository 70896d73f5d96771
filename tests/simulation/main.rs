//! The simulator: seeded worlds of clients around one core, and a model that knows MQTT and not the core's structures.
//!
//! A failure names its seed, and `SIMULATION_SEED=n cargo test --test simulation worlds` replays it.
//! `SIMULATION_SEEDS=n` and `SIMULATION_STEPS=n` make a longer run: a million steps are 1,000 seeds of 1,000.

mod client;
mod model;
mod random;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Packet, Protocol, Will};
use broker::codec::{PacketId, QoS, decode, encode, frame};

use model::Coverage;
use random::Random;
use world::World;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn worlds() {
    let steps = setting("SIMULATION_STEPS").unwrap_or(400) as usize;
    let (first, count) = match setting("SIMULATION_SEED") {
        Some(seed) => (seed, 1),
        None => (0, setting("SIMULATION_SEEDS").unwrap_or(600)),
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
                        let lived = catch_unwind(AssertUnwindSafe(|| World::new(seed).live(steps)));
                        match lived {
                            Ok((_, coverage)) => coverages.push(coverage),
                            Err(_) => {
                                panic!("seed {seed} failed: SIMULATION_SEED={seed} SIMULATION_STEPS={steps}")
                            }
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
        for what in [
            "QoS 0 delivery",
            "QoS 1 delivery",
            "QoS 2 delivery",
            "repetition",
            "repeated QoS 2 PUBLISH",
            "retained delivery",
            "will",
            "take-over",
            "session resumed",
            "session expired or evicted",
            "keep-alive timeout",
            "stalled reader closed",
            "queue full",
        ] {
            assert!(seen.counts.get(what).is_some_and(|count| *count >= 10), "hardly ever: {what}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in 0..20 {
        let (first, _) = World::new(seed).live(300);
        let (second, _) = World::new(seed).live(300);
        assert_eq!(first, second, "seed {seed}");
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
        let will = Will { topic: "w", payload: client_id.as_bytes(), qos: QoS::AtLeastOnce, retain: false };
        broker.handle_packet(
            now,
            id,
            Packet::Connect(Connect {
                protocol: Protocol::Mqtt311,
                clean_start: true,
                keep_alive_secs: 60,
                client_id: &client_id,
                will: Some(will),
                username: None,
                password: None,
            }),
        );
        let mut bytes = Vec::new();
        let filters = [format!("{number}/+"), format!("a/{number}"), "w".to_owned()];
        let requests: Vec<(&str, QoS)> =
            filters.iter().map(|filter| (filter.as_str(), QoS::AtLeastOnce)).collect();
        encode::subscribe(&mut bytes, PacketId::FIRST, &requests);
        let Ok(frame::Split::Complete { frame, .. }) = frame::split(&bytes, Protocol::Mqtt311, 1_000) else {
            panic!("a SUBSCRIBE");
        };
        broker.handle_packet(now, id, decode::decode(frame).expect("a SUBSCRIBE"));
        if number % 2 == 0 {
            broker.handle_lost(now, id, false);
        } else {
            broker.handle_packet(
                now,
                id,
                Packet::Disconnect(broker::codec::packet::Disconnect {
                    reason: broker::codec::ReasonCode::Success,
                }),
            );
        }
        while let Some(id) = broker.poll_close() {
            broker.handle_closed(id);
        }
        while broker.poll_event().is_some() {}
        while broker.poll_flush().is_some() {}
    }
    broker.check_invariants();
    let status = broker.status();
    assert_eq!((status.sessions, status.subscriptions, status.message_bytes), (0, 0, 0));
    assert_eq!((broker.connections(), broker.timers_armed()), (0, 0));
}
