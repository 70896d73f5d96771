//! Connections over sockets to a broker that is a process of its own, so that each side has its own limit on descriptors.
//!
//! What counts is the processor time of the broker, as the system tells it: that of the load is not in it.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use broker::codec::{Packet, QoS};
use broker::server::raise_descriptor_limit;

use crate::clients::ping_bytes;
use crate::limits::LIMITS;
use crate::load::client::Client;
use crate::load::{Faults, Flow, Plan, Shape};
use crate::process::Process;
use crate::system::{processor_time, resident_bytes};
use crate::table::median;
use crate::{BATCHES, nanos_each};

const SIZES: [u64; 3] = [1_000, 5_000, 19_000];

/// Descriptors that are needed for something else.
const RESERVE: u64 = 200;

/// How long a batch of messages takes.
const BATCH: Duration = Duration::from_millis(400);

/// For what a broker does behind its last answer.
const SETTLING: Duration = Duration::from_millis(20);

const PINGS_PER_BATCH: u64 = 40_000;

/// A broker that does nothing for so long, while something is on its way, has lost it.
const PATIENCE: Duration = Duration::from_secs(10);

const READ_BUFFER_BYTES: usize = 4_096;

/// A message at a time from one client to another.
const PAIR: Plan = Plan::new(Shape { publishers: 1, subscribers: 1 }, QoS::AtMostOnce, 1, 1);

/// What is measured with so many connections.
pub(crate) struct Sample {
    pub(crate) size: u64,
    /// Processor time of the broker for each message of a pair, in nanoseconds.
    pub(crate) message_nanos: f64,
    /// And for each keep-alive of all others.
    pub(crate) ping_nanos: f64,
    /// Resident memory of the broker for each connection.
    pub(crate) bytes_each: u64,
}

/// As many connections as the limit on descriptors allows.
pub(crate) fn run() -> io::Result<Vec<Sample>> {
    let descriptors = raise_descriptor_limit()?.parse().unwrap_or(u64::MAX);
    let process = Process::start(|address| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_broker"));
        command.args(["-q", "--host=127.0.0.1"]).arg(format!("--port={}", address.port())).args(LIMITS);
        Ok(command)
    })?;
    let empty_bytes = resident_bytes(process.pid())?;
    let mut flow = Flow::start(process.address, PAIR)?;
    let mut crowd = Vec::new();
    let mut samples = Vec::new();
    for size in SIZES {
        let size = size.min(descriptors.saturating_sub(RESERVE));
        for number in crowd.len() as u64..size {
            let filter = format!("crowd/{}/{number}", number / 100);
            let filters = [(filter.as_str(), QoS::AtLeastOnce)];
            crowd.push(Client::connect(process.address, &format!("crowd-{number}"), &filters)?);
        }
        std::thread::sleep(SETTLING);
        let bytes_each = resident_bytes(process.pid())?.saturating_sub(empty_bytes) / size;
        let message_nanos = messages(&process, &mut flow)?;
        let ping_nanos = pings(&process, &mut crowd)?;
        samples.push(Sample { size, message_nanos, ping_nanos, bytes_each });
    }
    Ok(samples)
}

fn messages(process: &Process, flow: &mut Flow) -> io::Result<f64> {
    let mut nanos = Vec::new();
    for _ in 0..BATCHES {
        let (used, delivered) = (processor_time(process.pid())?, flow.delivered());
        let end = Instant::now() + BATCH;
        flow.set_limit(u64::MAX);
        let mut is_alive = flow.drive(PATIENCE, |_| Instant::now() >= end)?;
        flow.set_limit(0);
        is_alive &= flow.drive(PATIENCE, Flow::is_quiet)?;
        if !is_alive || flow.faults() != Faults::default() {
            return Err(io::Error::other(format!("{} missing, {}", flow.missing(), flow.faults())));
        }
        std::thread::sleep(SETTLING);
        let used = processor_time(process.pid())?.saturating_sub(used);
        nanos.push(used.as_nanos() as f64 / (flow.delivered() - delivered) as f64);
    }
    Ok(median(&nanos, |nanos| *nanos))
}

fn pings(process: &Process, crowd: &mut [Client]) -> io::Result<f64> {
    let rounds = (PINGS_PER_BATCH / crowd.len() as u64).max(1);
    let mut times = Vec::new();
    for _ in 0..BATCHES {
        let used = processor_time(process.pid())?;
        for _ in 0..rounds {
            ping_all(crowd)?;
        }
        std::thread::sleep(SETTLING);
        times.push(processor_time(process.pid())?.saturating_sub(used));
    }
    Ok(nanos_each(rounds * crowd.len() as u64, times))
}

/// Everybody asks, and then hears its answer.
fn ping_all(crowd: &mut [Client]) -> io::Result<()> {
    let ping = ping_bytes();
    for client in &mut *crowd {
        client.out.extend_from_slice(&ping);
        client.flush()?;
    }
    let began = Instant::now();
    let mut buffer = [0; READ_BUFFER_BYTES];
    for client in crowd {
        let mut is_answered = false;
        while !is_answered {
            client.read(&mut buffer, |packet, _| is_answered = matches!(packet, Packet::Pingresp))?;
            if began.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a ping that is not answered"));
            }
            if !is_answered {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
    Ok(())
}
