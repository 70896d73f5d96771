//! Long work in small bites.
//!
//! The thread that takes segments into the base may share a core with the loop. A scheduler lets a thread go on for
//! milliseconds once it has picked it, however low its rank, and messages wait that long. So that thread stops by itself,
//! again and again, for as short as it can: what else wants the core has it then.

use std::thread;
use std::time::{Duration, Instant};

/// After so long it is time for a pause.
const BITE: Duration = Duration::from_micros(150);

/// The system makes more of it: about 50 us.
const PAUSE: Duration = Duration::from_micros(1);

/// How long work goes on.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the bite began; `None` if there are no pauses.
    began: Option<Instant>,
    steps: u32,
}

impl Pace {
    /// Without a pause: nobody else has anything to do.
    pub(super) const fn hurried() -> Self {
        Self { began: None, steps: 0 }
    }

    /// With pauses.
    pub(super) fn polite() -> Self {
        Self { began: Some(Instant::now()), steps: 0 }
    }

    /// One of many small steps has been made; so many of them take some microseconds.
    pub(super) fn step(&mut self, steps_between_looks: u32) {
        self.steps += 1;
        if self.steps >= steps_between_looks {
            self.look();
        }
    }

    /// A step that took some microseconds by itself has been made.
    pub(super) fn look(&mut self) {
        self.steps = 0;
        if let Some(began) = &mut self.began
            && began.elapsed() >= BITE
        {
            thread::sleep(PAUSE);
            *began = Instant::now();
        }
    }
}
