//! End to end over loopback: a server on a thread of this process, and all its clients on another.
//!
//! ```text
//! cargo bench --bench tcp                  all of it
//! cargo bench --bench tcp -- 'pair'        only what has this in its name
//! ```
//!
//! One iteration is one message of each publisher; the figures are per delivery. Both threads share the machine, so a
//! figure holds the work of the clients too, and of the system between them: to be compared with an earlier figure of
//! the same machine, not with another broker (see `versus`).
//!
//! Deliberately not here: processor time by process, other brokers, connecting (see `versus`).

mod load;

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use broker::codec::QoS;
use broker::server::{Handle, Options, Server, raise_descriptor_limit};
use criterion::{BenchmarkId, Criterion, Throughput};

use load::{Faults, Flow, Plan, Shape};

/// Only a broken server takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

/// One publisher and its subscriber.
const PAIR: Shape = Shape { publishers: 1, subscribers: 1 };

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    // A thousand subscribers need two descriptors each, and what the limit is shows soon enough.
    let _ = raise_descriptor_limit();
    for qos in ALL_QOS {
        run(&mut criterion, "a pair, 1 on its way", PAIR, qos, 1);
    }
    for qos in ALL_QOS {
        run(&mut criterion, "a pair, 100 on their way", PAIR, qos, 100);
    }
    for subscribers in [1, 10, 100, 1_000] {
        let shape = Shape { publishers: 1, subscribers };
        run(&mut criterion, "fan-out", shape, QoS::AtMostOnce, 10);
        run(&mut criterion, "fan-out", shape, QoS::AtLeastOnce, 10);
    }
    for qos in ALL_QOS {
        run(&mut criterion, "fan-in of 100", Shape { publishers: 100, subscribers: 1 }, qos, 10);
    }
    criterion.final_summary();
}

/// A server on a thread of its own; dropping it stops it.
struct Running {
    address: SocketAddr,
    handle: Handle,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Running {
    fn start() -> Self {
        let addresses = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        let server =
            Server::bind(Options { addresses, ..Options::default() }).expect("a free port can be bound");
        let address = server.local_addresses()[0];
        let handle = server.handle();
        Self { address, handle, thread: Some(std::thread::spawn(move || server.run())) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the loop does not panic").expect("the loop does not fail");
        }
    }
}

fn run(criterion: &mut Criterion, name: &str, shape: Shape, qos: QoS, window: u64) {
    let plan = Plan::new(shape, qos, window, 1);
    let deliveries = plan.publishers() as u64 * plan.receivers();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(deliveries));
    let parameter = match shape.receivers() {
        1 => format!("QoS {}", qos.number()),
        receivers => format!("QoS {} to {receivers}", qos.number()),
    };
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        let server = Running::start();
        let mut flow = Flow::start(server.address, plan).expect("the server accepts");
        let mut messages = 0;
        bencher.iter_custom(|iterations| {
            let before = flow.delivered();
            let began = Instant::now();
            messages += iterations;
            flow.set_limit(messages);
            let quiet = flow.drive(PATIENCE, Flow::is_quiet).expect("the server does not hang up");
            let elapsed = began.elapsed();
            assert!(quiet, "{} deliveries are missing", flow.missing());
            assert_eq!(flow.delivered() - before, iterations * deliveries);
            elapsed
        });
        assert_eq!(flow.faults(), Faults::default());
    });
    group.finish();
}
