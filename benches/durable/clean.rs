//! What a store costs those that store nothing.
//!
//! Sessions that end with their connections, so that not one record is written. What differs is the code on the way, and
//! that is little beside what the machine does meanwhile: the spread of the rounds says how little can be seen.

use std::io;

use broker::codec::QoS;

use crate::load::{Faults, Flow, Plan, Shape};
use crate::measure::{Sample, Table, median, round};
use crate::running::Running;
use crate::{PATIENCE, Settings};

const PLAN: Plan = Plan::new(Shape { publishers: 10, subscribers: 10 }, QoS::AtLeastOnce, 100, 25);

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
    let base = median(&samples[0], Sample::micros_each);
    let mut table =
        Table::new(&["store", "messages/s", "CPU us/message", "least", "most", "x without a store"]);
    for (name, samples) in ["no", "yes"].into_iter().zip(&samples) {
        let each = samples.iter().map(Sample::micros_each);
        table.add(vec![
            name.to_owned(),
            format!("{:.0}", median(samples, Sample::per_second)),
            format!("{:.3}", median(samples, Sample::micros_each)),
            format!("{:.3}", each.clone().fold(f64::INFINITY, f64::min)),
            format!("{:.3}", each.fold(0.0, f64::max)),
            format!("{:.3}", median(samples, Sample::micros_each) / base),
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
    let mut flow = Flow::start(running.process.address, PLAN)?;
    let (sample, faults) = round(&running.process, &mut flow, settings.time, PATIENCE)?;
    if faults != Faults::default() {
        return Err(io::Error::other(format!("faults of the broker: {faults}")));
    }
    if is_durable {
        assert_eq!(running.usage()?.log_bytes, 0, "nothing of this is stored");
    }
    Ok(sample)
}
