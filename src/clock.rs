//! Time as plain integers, and the one reader of the operating system's clock.
//!
//! The core is handed an [`Instant`] with every input and never asks for the time itself; only the server loop owns
//! a [`Clock`]. An `Instant` can be built from a number, so a simulation can invent time.
//!
//! A [`Clock`] begins with the time of the wall clock and goes on with the monotonic one, which does not jump: nothing
//! expires early because somebody corrected the date, and yet a time that was stored means the same to the next process.

use std::ops::{Add, Sub};
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time: milliseconds since an origin that the owner of the clock chose. A server's is the beginning of 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

/// A span of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub u64);

impl Instant {
    /// The time that passed since `earlier`, or zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
}

impl Duration {
    /// A span of whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000))
    }

    /// Whole seconds, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates: a time so far away that it does not fit never comes.
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

/// The clock of the operating system. What a turn of the loop does happens at one time, read once.
#[derive(Debug)]
pub struct Clock {
    origin: std::time::Instant,
    /// What the wall clock said then.
    started_at: Instant,
}

impl Clock {
    /// A clock that begins now.
    pub fn new() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: std::time::Instant::now(), started_at: Instant(since_1970.as_millis() as u64) }
    }

    /// When it began.
    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.started_at + Duration(self.origin.elapsed().as_millis() as u64)
    }

    /// Microseconds since the clock was made: for measuring the loop itself and how long it stays at one thing, not for what
    /// is due.
    pub fn now_micros(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
