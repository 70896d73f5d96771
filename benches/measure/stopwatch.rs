//! What a broker and its load have used between two points in time.

use std::io;
use std::time::{Duration, Instant};

use super::system::processor_time;

/// From this share of its core on somebody has nothing left.
pub(crate) const BUSY: f64 = 0.9;

/// What was done, and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Messages delivered, or connections served.
    pub(crate) count: u64,
    pub(crate) time: Duration,
    /// Of the broker.
    pub(crate) processor_time: Duration,
    /// Of the load.
    pub(crate) own_processor_time: Duration,
}

impl Sample {
    pub(crate) fn per_second(&self) -> f64 {
        self.count as f64 / self.time.as_secs_f64()
    }

    /// Processor time of the broker, in microseconds, for each that was counted.
    pub(crate) fn micros_each(&self) -> f64 {
        self.processor_time.as_secs_f64() * 1e6 / self.count.max(1) as f64
    }

    /// How much of its core the broker had.
    pub(crate) fn broker_share(&self) -> f64 {
        self.processor_time.as_secs_f64() / self.time.as_secs_f64()
    }

    /// The same of the load.
    pub(crate) fn load_share(&self) -> f64 {
        self.own_processor_time.as_secs_f64() / self.time.as_secs_f64()
    }
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
        })
    }
}
