//! A client that comes back to a long queue, and takes and acknowledges all of it.

use std::io;

use broker::codec::QoS;

use crate::PATIENCE;
use crate::load::{Plan, Shape};
use crate::measure::{Absentee, Process, Stopwatch};
use crate::outcome::Outcome;
use crate::preparation::Preparation;

const MESSAGES: u64 = 200_000;

pub(crate) fn run(process: &Process) -> io::Result<Outcome> {
    let shape = Shape { publishers: 1, subscribers: 1 };
    let plan = Plan { is_absent: true, ..Plan::new(shape, QoS::AtLeastOnce, 100, 25) };
    let absentee = Absentee::leave(process.address, &plan, 0)?;
    Preparation::begin().send(process.address, plan, MESSAGES)?;
    let stopwatch = Stopwatch::start(process.pid(), 0)?;
    let (_, faults) = absentee.come_back(MESSAGES, PATIENCE)?;
    let sample = stopwatch.stop(MESSAGES)?;
    let figures = vec![sample.per_second(), 1e6 / sample.micros_each()];
    Ok(Outcome { figures, sample: Some(sample), faults, note: None })
}
