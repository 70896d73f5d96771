//! What was acknowledged is there afterwards: the built program with a data directory, killed, stopped, started again,
//! and with every trouble that a disk can make short of a power cut (for that see `power_cuts.rs`).
//!
//! `DURABILITY_ROUNDS=n` kills the broker under load n times instead of ten, `DURABILITY_SEED=n` has the same random
//! choices made again.

#![cfg(feature = "persistence")]

mod connection;
mod damage;
mod folder;
mod kills;
mod process;
mod publisher;
mod random;
mod restart;
mod subscriber;
mod trouble;
mod whereabouts;

use std::time::{Duration, Instant};

/// Long enough for a slow machine: only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at something that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Waits until something holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK_AGAIN);
    }
}
