//! What one packet of each type costs to decode and to encode, and what a read full of packets costs to split.
//!
//! ```text
//! cargo bench --bench codec                 all of it
//! cargo bench --bench codec -- decode       only what has this in its name
//! ```
//!
//! Decoding is measured with `frame::split` before it, because no packet comes without. Encoding goes into a buffer
//! that has its size already, as those of the broker have in the steady state.
//!
//! Deliberately not here: packets cut into pieces, which the fuzz targets and the tests of `Inbox` are about, and what
//! a packet does (see `broker`).

use std::hint::black_box;

use broker::codec::packet::{Ack, Connack, Connect, Disconnect, Publish, SubscriptionOptions, Will};
use broker::codec::{Inbox, Packet, PacketId, Properties, Protocol, QoS, ReasonCode, decode, encode, frame};
use criterion::{BenchmarkId, Criterion, Throughput};

const PROTOCOL: Protocol = Protocol::Mqtt311;

const PACKET_SIZE_MAX: u32 = 268_435_455;

/// Bytes in one read of the server.
const READ_BYTES: usize = 64 * 1024;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let samples = samples();
    decode_each(&mut criterion, &samples);
    encode_each(&mut criterion, &samples);
    split_a_read(&mut criterion);
    criterion.final_summary();
}

fn bytes_of(packet: Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(&packet, PROTOCOL, &mut bytes).expect("it has a form on the wire");
    bytes
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

fn publish(qos: QoS, payload: &[u8]) -> Vec<u8> {
    let packet_id = (qos > QoS::AtMostOnce).then_some(PacketId::FIRST);
    bytes_of(Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: "site/17/device/4711/temperature",
        packet_id,
        properties: Properties::NONE,
        payload,
    }))
}

fn subscribe(out: &mut Vec<u8>, requests: &[(&str, SubscriptionOptions)]) {
    encode::subscribe(out, PROTOCOL, PacketId::FIRST, Properties::NONE, requests);
}

/// One packet of each type, in the sizes that clients really send.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let connect = Connect {
        protocol: Protocol::Mqtt311,
        clean_start: true,
        keep_alive_secs: 60,
        properties: Properties::NONE,
        client_id: "device-4711",
        will: None,
        username: None,
        password: None,
    };
    let will = Will {
        topic: "site/17/gone",
        payload: b"4711",
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: Properties::NONE,
    };
    let full = Connect {
        will: Some(will),
        username: Some("somebody"),
        password: Some(b"a secret of theirs"),
        ..connect
    };
    let ack = Ack::success(PacketId::FIRST);
    let connack =
        Connack { session_present: false, reason: ReasonCode::Success, properties: Properties::NONE };
    let filters: Vec<String> = (0..8).map(|number| format!("site/{number}/+/temperature/#")).collect();
    let requests: Vec<(&str, SubscriptionOptions)> =
        filters.iter().map(|filter| (filter.as_str(), QoS::AtLeastOnce.into())).collect();
    let names: Vec<&str> = filters.iter().map(String::as_str).collect();
    let granted = [ReasonCode::GrantedQoS1; 8];
    vec![
        ("CONNECT", bytes_of(Packet::Connect(connect))),
        ("CONNECT with everything", bytes_of(Packet::Connect(full))),
        ("CONNACK", bytes_of(Packet::Connack(connack))),
        ("PUBLISH QoS 0, 64 bytes", publish(QoS::AtMostOnce, &[b'x'; 64])),
        ("PUBLISH QoS 1, 64 bytes", publish(QoS::AtLeastOnce, &[b'x'; 64])),
        ("PUBLISH QoS 2, 4096 bytes", publish(QoS::ExactlyOnce, &[b'x'; 4096])),
        ("PUBACK", bytes_of(Packet::Puback(ack))),
        ("PUBREC", bytes_of(Packet::Pubrec(ack))),
        ("PUBREL", bytes_of(Packet::Pubrel(ack))),
        ("PUBCOMP", bytes_of(Packet::Pubcomp(ack))),
        ("SUBSCRIBE 1 filter", written(|out| subscribe(out, &requests[..1]))),
        ("SUBSCRIBE 8 filters", written(|out| subscribe(out, &requests))),
        ("SUBACK 8 filters", written(|out| encode::suback(out, PROTOCOL, PacketId::FIRST, &granted))),
        (
            "UNSUBSCRIBE 8 filters",
            written(|out| encode::unsubscribe(out, PROTOCOL, PacketId::FIRST, Properties::NONE, &names)),
        ),
        ("UNSUBACK", written(|out| encode::unsuback(out, PROTOCOL, PacketId::FIRST, &[]))),
        ("PINGREQ", bytes_of(Packet::Pingreq)),
        ("PINGRESP", bytes_of(Packet::Pingresp)),
        ("DISCONNECT", bytes_of(Packet::Disconnect(Disconnect::NORMAL))),
    ]
}

fn decoded(bytes: &[u8]) -> Packet<'_> {
    match frame::split(bytes, PROTOCOL, PACKET_SIZE_MAX) {
        Ok(frame::Split::Complete { frame, .. }) => decode::decode(frame, PROTOCOL).expect("a packet"),
        _ => panic!("a whole packet"),
    }
}

fn decode_each(criterion: &mut Criterion, samples: &[(&'static str, Vec<u8>)]) {
    let mut group = criterion.benchmark_group("decode");
    for (name, bytes) in samples {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), bytes, |bencher, bytes| {
            // By reference: the broker does not move packets about either.
            bencher.iter(|| {
                black_box(&decoded(black_box(bytes)));
            });
        });
    }
    group.finish();
}

fn encode_each(criterion: &mut Criterion, samples: &[(&'static str, Vec<u8>)]) {
    let mut group = criterion.benchmark_group("encode");
    for (name, bytes) in samples {
        // The lists of some packets can only be made by decoding them.
        let packet = decoded(bytes);
        let mut out = Vec::with_capacity(2 * bytes.len() + 1024);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode::encode(black_box(&packet), PROTOCOL, &mut out).expect("it has a form on the wire");
                black_box(out.len())
            });
        });
        assert_eq!(out, *bytes, "what was decoded encodes to the same bytes");
    }
    group.finish();
}

/// A read buffer full of small packets, as a busy connection fills it; per packet.
fn split_a_read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a read of 64 KiB");
    let ack = bytes_of(Packet::Puback(Ack::success(PacketId::FIRST)));
    for (name, packet) in [("PUBLISH, 64 bytes", publish(QoS::AtLeastOnce, &[b'x'; 64])), ("PUBACK", ack)] {
        let count = READ_BYTES / packet.len();
        let read = packet.repeat(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), &read, |bencher, read| {
            let mut inbox = Inbox::default();
            bencher.iter(|| {
                let mut input = black_box(read.as_slice());
                let mut packets = 0;
                while let Some(frame) = inbox.next(&mut input, PROTOCOL, PACKET_SIZE_MAX).expect("packets") {
                    black_box(&decode::decode(frame, PROTOCOL).expect("a packet"));
                    packets += 1;
                }
                assert_eq!(packets, count);
            });
        });
    }
    group.finish();
}
