//! Processor time and memory of a process, as the system tells them.

use std::io;
use std::time::Duration;

/// What a clock tick of `/proc/PID/stat` is on every Linux of today.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of all threads of a process.
pub(super) fn processor_time(pid: u32) -> io::Result<Duration> {
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
