//! What one packet of each type costs to decode and to encode, and what a read full of packets costs to split.
//!
//! ```text
//! cargo bench --bench codec                 all of it
//! cargo bench --bench codec -- decode       only what has this in its name
//! ```
//!
//! Deliberately not here: packets cut into pieces, which the fuzz targets and the tests of `Inbox` are about, and what
//! a packet does (see `broker`).

#[path = "operations/packets.rs"]
mod packets;

use std::hint::black_box;

use broker::codec::{Inbox, Protocol, decode};
use criterion::{BenchmarkId, Criterion, Throughput};

use packets::Sample;

/// Bytes in one read of the server.
const READ_BYTES: usize = 64 * 1024;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let samples = packets::samples();
    decode_each(&mut criterion, &samples);
    encode_each(&mut criterion, &samples);
    split_a_read(&mut criterion, &samples);
    criterion.final_summary();
}

fn decode_each(criterion: &mut Criterion, samples: &[Sample]) {
    let mut group = criterion.benchmark_group("decode");
    for sample in samples {
        group.throughput(Throughput::Bytes(sample.bytes.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(sample.name), |bencher| {
            bencher.iter(sample.decoding());
        });
    }
    group.finish();
}

fn encode_each(criterion: &mut Criterion, samples: &[Sample]) {
    let mut group = criterion.benchmark_group("encode");
    for sample in samples {
        group.throughput(Throughput::Bytes(sample.bytes.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(sample.name), |bencher| {
            bencher.iter(sample.encoding());
        });
    }
    group.finish();
}

/// A read buffer full of small packets, as a busy connection fills it; per packet.
fn split_a_read(criterion: &mut Criterion, samples: &[Sample]) {
    let mut group = criterion.benchmark_group("a read of 64 KiB");
    for name in ["PUBLISH QoS 1, 64 bytes", "PUBACK"] {
        let sample = samples.iter().find(|sample| sample.name == name).expect("it is among the samples");
        let count = READ_BYTES / sample.bytes.len();
        let read = sample.bytes.repeat(count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), &read, |bencher, read| {
            let mut inbox = Inbox::default();
            bencher.iter(|| {
                let mut input = black_box(read.as_slice());
                let mut packets = 0;
                while let Some(frame) =
                    inbox.next(&mut input, Protocol::Mqtt311, READ_BYTES as u32).expect("packets")
                {
                    black_box(&decode::decode(frame, Protocol::Mqtt311).expect("a packet"));
                    packets += 1;
                }
                assert_eq!(packets, count);
            });
        });
    }
    group.finish();
}
