//! One round: a load at work, measured in the middle.

use std::io;
use std::time::{Duration, Instant};

use super::{Process, Sample, Stopwatch};
use crate::load::{Faults, Flow};

/// Before anything is measured.
pub(crate) const WARM_UP: Duration = Duration::from_millis(500);

/// Drives a load for so long. A broker that does nothing for as long as `patience`, while something is on its way, has
/// lost it.
pub(crate) fn round(
    process: &Process,
    flow: &mut Flow,
    time: Duration,
    patience: Duration,
) -> io::Result<(Sample, Faults)> {
    let drive_for = |flow: &mut Flow, time| {
        let end = Instant::now() + time;
        flow.drive(patience, |_| Instant::now() >= end)
    };
    flow.set_limit(u64::MAX);
    let mut is_alive = drive_for(flow, WARM_UP)?;
    let stopwatch = Stopwatch::start(process.pid(), flow.delivered())?;
    is_alive &= drive_for(flow, time)?;
    let sample = stopwatch.stop(flow.delivered())?;
    flow.set_limit(0);
    is_alive &= flow.drive(patience, Flow::is_quiet)?;
    let mut faults = flow.faults();
    if !is_alive {
        faults.lost += flow.missing();
        // An answer that never comes is a fault too, even if all deliveries came.
        faults.strange += 1;
    }
    Ok((sample, faults))
}
