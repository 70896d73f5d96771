//! What a store costs those that store nothing.
//!
//! Sessions that end with their connections, so that not one record is written. What differs is the code on the way, and
//! that is little beside what the machine does meanwhile: the spread of the rounds says how little can be seen.

use std::io;

use broker::codec::QoS;

use crate::load::{Faults, Flow, Plan, Shape};
use crate::measure::{Sample, Stopwatch};
use crate::running::Running;
use crate::table::{Table, median};
use crate::{PATIENCE, PAYLOAD_BYTES, Settings, WARM_UP};

const PLAN: Plan = Plan {
    shape: Shape { publishers: 10, subscribers: 10 },
    qos: QoS::AtLeastOnce,
    window: 100,
    batch: 25,
    payload_bytes: PAYLOAD_BYTES,
    is_stored: false,
    is_absent: false,
};

/// As many times the usual rounds.
const ROUNDS_FACTOR: u64 = 3;

pub(crate) fn run(settings: &Settings) -> io::Result<()> {
    let mut samples: [Vec<Sample>; 2] = Default::default();
    let rounds = settings.rounds * ROUNDS_FACTOR;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}: clean sessions");
        // Each goes first as often as the other.
        let order = if round % 2 == 0 { [false, true] } else { [true, false] };
        for is_durable in order {
            samples[usize::from(is_durable)].push(measure(settings, is_durable)?);
        }
    }
    let micros = |sample: &Sample| sample.processor_time.as_secs_f64() * 1e6 / sample.count.max(1) as f64;
    let base = median(&samples[0], micros);
    let mut table =
        Table::new(&["store", "messages/s", "CPU us/message", "least", "most", "x without a store"]);
    for (name, samples) in ["no", "yes"].into_iter().zip(&samples) {
        let each = samples.iter().map(micros);
        table.add(vec![
            name.to_owned(),
            format!("{:.0}", median(samples, |sample| sample.count as f64 / sample.time.as_secs_f64())),
            format!("{:.3}", median(samples, micros)),
            format!("{:.3}", each.clone().fold(f64::INFINITY, f64::min)),
            format!("{:.3}", each.fold(0.0, f64::max)),
            format!("{:.3}", median(samples, micros) / base),
        ]);
    }
    println!(
        "10 pairs at QoS 1 with sessions that are not stored, {} on their way each; {rounds} rounds\n\n{table}",
        PLAN.window
    );
    Ok(())
}

fn measure(settings: &Settings, is_durable: bool) -> io::Result<Sample> {
    let running = Running::start(settings, is_durable)?;
    let mut flow = Flow::start(running.address, PLAN)?;
    flow.set_limit(u64::MAX);
    let drive_for = |flow: &mut Flow, time| {
        let end = std::time::Instant::now() + time;
        flow.drive(PATIENCE, |_| std::time::Instant::now() >= end)
    };
    let mut is_alive = drive_for(&mut flow, WARM_UP)?;
    let stopwatch = Stopwatch::start(running.pid(), flow.delivered())?;
    is_alive &= drive_for(&mut flow, settings.time)?;
    let sample = stopwatch.stop(flow.delivered())?;
    flow.set_limit(0);
    is_alive &= flow.drive(PATIENCE, Flow::is_quiet)?;
    if !is_alive || flow.faults() != Faults::default() {
        let (missing, faults) = (flow.missing(), flow.faults());
        return Err(io::Error::other(format!("faults of the broker: {missing} missing, {faults}")));
    }
    if is_durable {
        assert_eq!(running.usage()?.log_bytes, 0, "nothing of this is stored");
    }
    Ok(sample)
}
