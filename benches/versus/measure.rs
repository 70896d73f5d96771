//! Processor time and memory of a process, as the system tells them, and cores for broker and load.

use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::Faults;

/// What a clock tick of `/proc/PID/stat` is on every Linux of today.
const TICK: Duration = Duration::from_millis(10);

/// What one round of one scenario gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Messages delivered, or connections served.
    pub(crate) count: u64,
    pub(crate) time: Duration,
    /// Of the broker.
    pub(crate) processor_time: Duration,
    /// Of the load.
    pub(crate) own_processor_time: Duration,
    pub(crate) faults: Faults,
}

/// The beginning of a measurement.
pub(crate) struct Stopwatch {
    pid: u32,
    count: u64,
    began: Instant,
    processor_time: Duration,
    own_processor_time: Duration,
}

impl Stopwatch {
    pub(crate) fn start(pid: u32, count: u64) -> io::Result<Self> {
        Ok(Self {
            pid,
            count,
            processor_time: processor_time(pid)?,
            own_processor_time: processor_time(std::process::id())?,
            began: Instant::now(),
        })
    }

    pub(crate) fn stop(self, count: u64) -> io::Result<Sample> {
        let time = self.began.elapsed();
        Ok(Sample {
            count: count - self.count,
            time,
            processor_time: processor_time(self.pid)?.saturating_sub(self.processor_time),
            own_processor_time: processor_time(std::process::id())?.saturating_sub(self.own_processor_time),
            faults: Faults::default(),
        })
    }
}

/// Processor time of all threads of a process.
fn processor_time(pid: u32) -> io::Result<Duration> {
    scheduled_time(pid).or_else(|_| accounted_time(pid))
}

/// By the scheduler, in nanoseconds.
fn scheduled_time(pid: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        total += Duration::from_nanos(number(text.split_whitespace().next())?);
    }
    Ok(total)
}

/// In ticks, for kernels that do not tell the above.
fn accounted_time(pid: u32) -> io::Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program may contain anything, so fields are counted from its closing bracket.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: u64 = number(fields.next())? + number(fields.next())?;
    Ok(TICK * u32::try_from(ticks).map_err(io::Error::other)?)
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = number(line.and_then(|line| line.split_whitespace().next()))?;
    Ok(kib * 1024)
}

fn number(text: Option<&str>) -> io::Result<u64> {
    text.unwrap_or("").parse().map_err(|error| io::Error::other(format!("{text:?}: {error}")))
}

/// Gives this process the second core, if brokers can be given the first; false if not.
pub(crate) fn pin() -> bool {
    let succeeds = |arguments: &[&str]| {
        Command::new("taskset")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    succeeds(&["-c", "0", "true"]) && succeeds(&["-p", "-c", "1", &std::process::id().to_string()])
}
