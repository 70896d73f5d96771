//! What it costs that state outlives the process, and how soon it is back.
//!
//! ```text
//! cargo bench --bench durable                   throughput, bystander, clean
//! cargo bench --bench durable -- recovery       only that, which takes some gigabytes and minutes
//! ```
//!
//! * `throughput`: QoS 1 to one subscriber with a stored session, that is there or away; with a store that is
//!   synchronized before every acknowledgement, without one, and what the disk would give to a program that does
//!   nothing but write.
//! * `bystander`: how long others' QoS 0 messages take while that goes on.
//! * `clean`: what a store costs those that store nothing.
//! * `recovery`: from the start of the process until it listens, with much in the store.
//!
//! From the environment:
//!
//! * `DURABLE_ROUNDS` (3), `DURABLE_SECONDS` (2).
//! * `DURABLE_CONCURRENCY`: only this many messages on their way, instead of 1, 16, 256 and 4096.
//! * `DURABLE_DIRECTORY`: where stores are made, instead of a folder under `target`. It should be on the disk in question;
//!   what is made there is removed again.
//! * `DURABLE_PINNING`: 0 leaves broker and load on whatever cores the system likes. Otherwise, where there are two cores
//!   and `taskset`, the broker has the first, all its threads together, and the load the second.
//!
//! A broker is started afresh on an empty store for each measurement, and rounds go from one thing to the next, so that a
//! change of the machine's mood meets all of them. Every figure is the median of its rounds. Every acknowledgement is
//! checked, and so is every delivery; those to a subscriber that was away after it has come back, before the broker ends.
//!
//! Deliberately not here: power cuts (see the tests), and other brokers (see `versus`).

mod bystander;
mod clean;
#[path = "../load/mod.rs"]
mod load;
#[path = "../versus/measure.rs"]
mod measure;
mod place;
mod raw;
mod recovery;
mod running;
mod stored_flow;
mod table;
mod throughput;
mod times;

use std::io;
use std::time::Duration;

use broker::server::raise_descriptor_limit;

use place::Place;

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// A broker that does nothing for so long, while something is on its way, has lost it.
const PATIENCE: Duration = Duration::from_secs(20);

const PAYLOAD_BYTES: usize = 64;

/// What all measurements have in common.
struct Settings {
    rounds: u64,
    time: Duration,
    /// The only concurrency that is wanted, if there is one.
    concurrency: Option<u64>,
    is_pinned: bool,
    place: Place,
}

/// The name of a section, whether it is run if none is named, and what runs it.
type Section = (&'static str, bool, fn(&Settings) -> io::Result<()>);

const SECTIONS: [Section; 4] = [
    ("throughput", true, throughput::run),
    ("bystander", true, bystander::run),
    ("clean", true, clean::run),
    ("recovery", false, recovery::run),
];

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test` runs benches to see that they start.
        return Ok(());
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let sections: Vec<Section> = SECTIONS
        .into_iter()
        .filter(|(name, is_default, _)| {
            (filters.is_empty() && *is_default) || filters.iter().any(|filter| name.contains(filter.as_str()))
        })
        .collect();
    let descriptors = raise_descriptor_limit().unwrap_or_else(|error| error.to_string());
    let settings = Settings {
        rounds: setting("DURABLE_ROUNDS").unwrap_or(3).max(1),
        time: Duration::from_secs(setting("DURABLE_SECONDS").unwrap_or(2).max(1)),
        concurrency: setting("DURABLE_CONCURRENCY"),
        is_pinned: setting("DURABLE_PINNING") != Some(0) && measure::pin(),
        place: Place::new()?,
    };
    println!(
        "{} rounds of {} s; {}; {descriptors} descriptors; payloads of {PAYLOAD_BYTES} bytes; stores on {}",
        settings.rounds,
        settings.time.as_secs(),
        if settings.is_pinned { "broker on core 0, load on core 1" } else { "nothing is pinned to a core" },
        settings.place.description(),
    );
    for (name, _, run) in sections {
        println!("\n## {name}\n");
        run(&settings)?;
    }
    Ok(())
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(error) => {
            eprintln!("{name}: {error}; the default is used");
            None
        }
    }
}
