//! What it costs that state outlives the process, and how soon it is back.
//!
//! ```text
//! cargo bench --bench durable                   throughput, bystander, clean
//! cargo bench --bench durable -- recovery       only that, which takes some gigabytes and minutes
//! ```
//!
//! * `throughput`: QoS 1 to one subscriber with a stored session, that is there or away; with a store that is
//!   synchronized before every acknowledgement, without one, what the disk would give to a program that does
//!   nothing but write, and what sockets and disk together give to a server that does nothing but store.
//! * `bystander`: how long others' QoS 0 messages take while that goes on.
//! * `clean`: what a store costs those that store nothing.
//! * `recovery`: from the start of the process until it listens, with much in the store.
//!
//! From the environment:
//!
//! * `DURABLE_ROUNDS` (3), `DURABLE_SECONDS` (2).
//! * `DURABLE_BROKER`: another program in the broker's place, such as an earlier build.
//! * `DURABLE_CONCURRENCY`: only this many messages on their way, instead of 1, 16, 256 and 4096.
//! * `DURABLE_DIRECTORY`: where stores are made, instead of a folder under `target`. It should be on the disk in question;
//!   what is made there is removed again.
//! * `DURABLE_PINNING`: where there are two cores and `taskset`, the broker has the first, all its threads together, and the load
//!   the second, which is kept awake for `throughput` and `bystander`; 0 leaves them on whatever cores the system likes, and 1
//!   nowhere else. If it is not set, `throughput` alone is left so: on one core a store's threads could not do beside each
//!   other what they are there for, and the bare disk has no such limit.
//!
//! A broker is started afresh on an empty store for each measurement, and rounds go from one thing to the next, so that a
//! change of the machine's mood meets all of them. Every figure is the median of its rounds. Every acknowledgement is
//! checked, and so is every delivery; those to a subscriber that was away after it has come back, before the broker ends.
//!
//! Deliberately not here: power cuts (see the tests), and other brokers (see `versus`).

mod bare;
mod bystander;
mod clean;
#[path = "../load/mod.rs"]
mod load;
#[path = "../measure/mod.rs"]
mod measure;
mod place;
mod raw;
mod recovery;
mod running;
mod stored_flow;
mod throughput;

use std::io;
use std::time::Duration;

use broker::server::raise_descriptor_limit;

use load::plan::PAYLOAD_BYTES;
use measure::setting;
use place::Place;

/// A broker that does nothing for so long, while something is on its way, has lost it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all measurements have in common.
struct Settings {
    rounds: u64,
    time: Duration,
    /// The only concurrency that is wanted, if there is one.
    concurrency: Option<u64>,
    is_pinned: bool,
    place: Place,
}

/// Something to be measured.
struct Section {
    name: &'static str,
    /// Whether it is run if none is named.
    is_default: bool,
    /// Whether broker and load have a core each. Those without come first: nobody is given more cores again.
    is_pinned: bool,
    run: fn(&Settings) -> io::Result<()>,
}

const SECTIONS: [Section; 4] = [
    Section { name: "throughput", is_default: true, is_pinned: false, run: throughput::run },
    Section { name: "bystander", is_default: true, is_pinned: true, run: bystander::run },
    Section { name: "clean", is_default: true, is_pinned: true, run: clean::run },
    Section { name: "recovery", is_default: false, is_pinned: true, run: recovery::run },
];

fn main() -> io::Result<()> {
    bare::serve_if_asked()?;
    let Some(words) = measure::words() else { return Ok(()) };
    let is_wanted = |section: &Section| {
        (words.is_empty() && section.is_default)
            || words.iter().any(|word| section.name.contains(word.as_str()))
    };
    let descriptors = raise_descriptor_limit().unwrap_or_else(|error| error.to_string());
    let mut settings = Settings {
        rounds: setting("DURABLE_ROUNDS").unwrap_or(3).max(1),
        time: Duration::from_secs(setting("DURABLE_SECONDS").unwrap_or(2).max(1)),
        concurrency: setting("DURABLE_CONCURRENCY"),
        is_pinned: false,
        place: Place::new()?,
    };
    println!(
        "{} rounds of {} s; {descriptors} descriptors; payloads of {PAYLOAD_BYTES} bytes; stores on {}",
        settings.rounds,
        settings.time.as_secs(),
        settings.place.description(),
    );
    let pinning: Option<u64> = setting("DURABLE_PINNING");
    for section in SECTIONS.iter().filter(|section| is_wanted(section)) {
        let is_to_pin = pinning.map_or(section.is_pinned, |number| number > 0);
        settings.is_pinned = is_to_pin && (settings.is_pinned || measure::pin());
        let cores = if settings.is_pinned {
            "broker on core 0, load on core 1"
        } else {
            "nothing is pinned to a core"
        };
        println!("\n## {}: {cores}\n", section.name);
        (section.run)(&settings)?;
    }
    Ok(())
}
