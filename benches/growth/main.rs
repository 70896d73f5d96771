//! How cost grows with size: what the thousandth costs and what the millionth does.
//!
//! ```text
//! cargo bench --bench growth                 all of it: a few minutes and gigabytes
//! cargo bench --bench growth -- queue        only sections with this in their name
//! ```
//!
//! * `filters`: publishing, subscribing and unsubscribing among filters that do not match.
//! * `connections`: publishing and keep-alive among connections that are idle, with and without sockets.
//! * `retained`: setting retained messages, and subscribing to one and to all of them.
//! * `queue`: messages that wait for a client that is away.
//! * `sessions`: connecting among sessions of clients that are away.
//! * `longest`: the longest single call into the core when much ends or comes at once.
//!
//! It prints tables in Markdown and draws the same figures into `docs/growth`. All is measured on the core without
//! sockets, but where the table says otherwise; every operation is one packet and the turns that it takes. A figure is the
//! median of seven batches, in processor time, and that of the longest calls in time. What grows like the logarithm of the
//! size, or less, is as it should be; beside that, caches of the processor hold less and less of what is looked up.
//!
//! Deliberately not here: other brokers (see `versus`), and storing (see `durable`).

mod chart;
mod clients;
mod connections;
#[path = "../operations/core.rs"]
mod core;
mod crowd;
mod filters;
#[path = "../measure/limits.rs"]
mod limits;
#[path = "../load/mod.rs"]
mod load;
mod longest;
#[path = "../measure/process.rs"]
mod process;
mod queue;
mod retained;
mod sessions;
#[path = "../measure/system.rs"]
mod system;
#[path = "../measure/table.rs"]
mod table;
#[path = "../measure/words.rs"]
mod words;

use std::io;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use load::plan::PAYLOAD_BYTES;
use table::median;

/// What there is of whatever is in question.
const SIZES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// Batches of which the median counts.
const BATCHES: u64 = 7;

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// The name of a section, and what runs it.
type Section = (&'static str, fn() -> io::Result<()>);

const SECTIONS: [Section; 6] = [
    ("filters", filters::run),
    ("connections", connections::run),
    ("retained", retained::run),
    ("queue", queue::run),
    ("sessions", sessions::run),
    ("longest", longest::run),
];

fn main() -> io::Result<()> {
    let Some(words) = words::words() else { return Ok(()) };
    warm_up();
    for (name, run) in SECTIONS {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            let began = Instant::now();
            run()?;
            eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// A processor that was idle is slow at first.
fn warm_up() {
    let began = Instant::now();
    while began.elapsed() < WARM_UP {
        std::hint::spin_loop();
    }
}

/// Processor time of this thread, because others use the machine as well.
fn timed(work: impl FnOnce()) -> Duration {
    let before = own_time();
    work();
    own_time().saturating_sub(before)
}

fn own_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("it is not negative")
}

/// Nanoseconds for each of so many operations, which every batch does and times.
fn nanos_each(operations: u64, batches: impl IntoIterator<Item = Duration>) -> f64 {
    let times: Vec<Duration> = batches.into_iter().collect();
    median(&times, |time| time.as_nanos() as f64 / operations as f64)
}

/// A number below `of` for each step: every one once before they repeat, in an order that no processor foresees.
fn scattered(step: u64, of: u64) -> u64 {
    // By a prime stride.
    step * 7_919 % of
}
