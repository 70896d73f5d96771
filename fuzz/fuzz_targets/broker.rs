//! Operations of a few clients on the core, well-formed packets and any bytes, with every invariant checked after each.

#![no_main]

use std::io::IoSlice;

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Connect, Packet, Publish, QoS, Will};
use broker::codec::{Inbox, PacketId, Protocol, decode, encode};
use libfuzzer_sys::fuzz_target;

const CLIENTS: usize = 4;

struct World {
    broker: Broker,
    now: Instant,
    generation: u32,
    connections: [Option<(ConnectionId, Inbox)>; CLIENTS],
}

impl World {
    fn send(&mut self, slot: usize, bytes: &[u8]) {
        let Self { broker, now, connections, generation, .. } = self;
        let (id, inbox) = connections[slot].get_or_insert_with(|| {
            *generation += 1;
            let id = ConnectionId { slot: slot as u32, generation: *generation };
            broker.handle_open(*now, id);
            (id, Inbox::default())
        });
        let mut input = bytes;
        while broker.wants_input(*id) {
            let (protocol, packet_size_max) = broker.reading_terms(*id);
            match inbox.next(&mut input, protocol, packet_size_max) {
                Ok(None) => break,
                Ok(Some(frame)) => match decode::decode(frame) {
                    Ok(packet) => broker.handle_packet(*now, *id, packet),
                    Err(error) => broker.handle_malformed(*now, *id, error),
                },
                Err(error) => broker.handle_malformed(*now, *id, error),
            }
        }
        inbox.stash(input);
    }

    /// The shell's share of a turn: some bytes go out, what ended is freed.
    fn turn(&mut self, write_max: usize) {
        self.broker.handle_timeout(self.now);
        for _ in 0..self.broker.dirty_len() {
            let Some(id) = self.broker.poll_flush() else { break };
            self.flush(id, write_max);
        }
        while let Some(id) = self.broker.poll_close() {
            self.connections[id.slot as usize] = None;
            self.broker.handle_closed(id);
        }
        while self.broker.poll_event().is_some() {}
        self.broker.check_invariants();
    }

    fn flush(&mut self, id: ConnectionId, write_max: usize) {
        let Some(outbox) = self.broker.outbox(id) else { return };
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = outbox.slices(&mut slices);
        let length: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
        let count = length.min(write_max);
        self.broker.handle_written(self.now, id, count, count < length);
    }
}

fn packet(operation: u8, argument: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let topic = ["a", "a/b", "b", "a/b/c"][usize::from(argument % 4)];
    let filter = ["a", "#", "+/b", "a/+/c"][usize::from(argument % 4)];
    let packet_id = PacketId::new(u16::from(argument >> 4) + 1).expect("not 0");
    let qos = QoS::new((argument >> 2) % 3).expect("below 3");
    let long = [b'x'; 700];
    match operation % 12 {
        0 | 1 => {
            let will = Will { topic, payload: b"will", qos, retain: argument & 0x40 != 0 };
            let connect = Connect {
                protocol: Protocol::Mqtt311,
                clean_start: argument & 1 == 0,
                keep_alive_secs: u16::from(argument >> 4),
                client_id: ["x", "y", "z"][usize::from(argument % 3)],
                will: (argument & 0x20 != 0).then_some(will),
                username: None,
                password: None,
            };
            encode::encode(&Packet::Connect(connect), &mut bytes).expect("a CONNECT");
        }
        2 | 3 => encode::subscribe(&mut bytes, packet_id, &[(filter, qos), (topic, QoS::AtLeastOnce)]),
        4 => encode::unsubscribe(&mut bytes, packet_id, &[filter]),
        5..=7 => {
            let publish = Publish {
                dup: false,
                qos,
                retain: operation & 0x10 != 0,
                topic,
                packet_id: (qos > QoS::AtMostOnce).then_some(packet_id),
                payload: if operation & 0x20 != 0 { &long } else { &long[..usize::from(argument % 3)] },
            };
            encode::encode(&Packet::Publish(publish), &mut bytes).expect("a PUBLISH");
        }
        8 => encode::puback(&mut bytes, packet_id),
        9 => encode::pubrec(&mut bytes, packet_id),
        10 => encode::pubcomp(&mut bytes, packet_id),
        _ => encode::pubrel(&mut bytes, packet_id),
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let options = Options {
        seed: 1,
        in_flight_max: 3,
        queued_messages_max: 4,
        queued_bytes_max: 2_000,
        outbox_bytes_max: 4_096,
        retained_messages_max: 3,
        sessions_max: 3,
        subscriptions_max: 4,
        session_expiry: Some(Duration(5_000)),
        sys_interval: None,
        ..Options::default()
    };
    let now = Instant(1);
    let mut world = World {
        broker: Broker::new(options, now),
        now,
        generation: 0,
        connections: [const { None }; CLIENTS],
    };
    let mut rest = bytes;
    while let [operation, argument, tail @ ..] = rest {
        rest = tail;
        let slot = usize::from(operation >> 6);
        match operation & 0x3F {
            0x3F => {
                if let Some((id, _)) = world.connections[slot].take() {
                    world.broker.handle_lost(world.now, id, false);
                }
            }
            0x3E => world.now = world.now + Duration(u64::from(*argument) * 50),
            0x3D => {
                // What follows goes in as it is.
                let (raw, tail) = tail.split_at(usize::from(*argument).min(tail.len()));
                rest = tail;
                world.send(slot, raw);
            }
            0x3C => {
                if let Some((id, _)) = world.connections[slot] {
                    world.flush(id, usize::MAX);
                }
            }
            operation => world.send(slot, &packet(operation, *argument)),
        }
        world.turn(if argument & 0x80 == 0 { usize::MAX } else { usize::from(*argument) });
    }
    world.broker.handle_shutdown(world.now);
    world.turn(usize::MAX);
    world.now = world.now + Duration::from_secs(60);
    world.turn(usize::MAX);
    let status = world.broker.status();
    assert_eq!((status.sessions, status.subscriptions, world.broker.connections()), (0, 0, 0));
    assert_eq!(status.message_bytes, status.retained_bytes);
});
