//! The core without sockets: bytes of a publisher in, bytes for all subscribers out, and their answers in again.
//!
//! ```text
//! cargo bench --bench broker                   all of it
//! cargo bench --bench broker -- 'QoS 1'        only what has this in its name
//! ```
//!
//! The figures are per delivered message. At QoS 1 and 2 every subscriber acknowledges, so those figures hold all packets
//! of a delivery.
//!
//! Deliberately not here: sockets (see `tcp`), and clients that do not keep up.

#[path = "operations/core.rs"]
mod core;
#[path = "operations/publication.rs"]
mod publication;

use broker::codec::{Protocol, QoS};
use criterion::{BenchmarkId, Criterion, Throughput};

use publication::Publication;

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

fn fan_out(criterion: &mut Criterion, protocol: Protocol, qos: QoS, payload_bytes: usize, messages: u16) {
    let version = if protocol.has_properties() { "5.0 " } else { "" };
    let name = format!("{version}QoS {}, {payload_bytes} bytes, {messages} messages a read", qos.number());
    let mut group = criterion.benchmark_group(name);
    for subscribers in [1, 100, 1_000] {
        let publication = Publication {
            protocol,
            qos,
            retain: false,
            payload_bytes,
            messages,
            subscribers,
            are_absent: false,
            has_store: false,
            has_idle_store: false,
        };
        group.throughput(Throughput::Elements(u64::from(subscribers) * u64::from(messages)));
        group.bench_function(BenchmarkId::from_parameter(subscribers), |bencher| {
            bencher.iter(publication.prepare());
        });
    }
    group.finish();
}
