//! Instructions of each operation of the core, beside those that are kept in `counts.txt`.
//!
//! ```text
//! cargo bench --bench instructions                   all operations; fails if one takes over 5 % more
//! cargo bench --bench instructions -- 'QoS 1'        only those with this in their name
//! cargo bench --bench instructions -- --record       keeps the new counts
//! ```
//!
//! Unlike times, counts are the same in every run, whatever else the machine does. They say nothing about caches, branches
//! and the system.
//!
//! Deliberately not here: times (see `codec`, `topics` and `broker`, which have most operations in common with this).

mod callgrind;
#[path = "../operations/core.rs"]
mod core;
mod counts;
mod operations;
#[path = "../operations/packets.rs"]
mod packets;
#[path = "../operations/publication.rs"]
mod publication;
#[path = "../operations/topics.rs"]
mod topics;

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use counts::{Counts, Row, TOLERANCE_PERCENT};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [first, name, times] if first == callgrind::REPEAT => repeat(name, times),
        _ => count(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What is counted: one operation, again and again.
fn repeat(name: &str, times: &str) -> io::Result<()> {
    let times = times.parse().map_err(io::Error::other)?;
    let operation = operations::all().into_iter().find(|operation| operation.name == name);
    (operation.ok_or_else(|| io::Error::other("no such operation"))?.repeat)(times);
    Ok(())
}

/// Counts all that is asked for, and looks at what is kept, or keeps it.
fn count(arguments: &[String]) -> io::Result<()> {
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test` runs benches to see that they start.
        return Ok(());
    }
    let is_recording = arguments.iter().any(|argument| argument == "--record");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    if is_recording && !filters.is_empty() {
        return Err(io::Error::other("--record keeps the counts of all operations"));
    }
    let names = operations::all().into_iter().map(|operation| operation.name);
    let names = names
        .filter(|name| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())));
    let kept = Counts::read()?;
    let mut counted = Counts { origin: callgrind::origin()?, rows: BTreeMap::new() };
    for name in names {
        let count = callgrind::count(&name)?;
        println!("{}", kept.beside(&name, count));
        counted.rows.insert(name, count);
    }
    if is_recording { counted.write() } else { judge(&kept, &counted, filters.is_empty()) }
}

/// Whether the counts may stay as they are.
fn judge(kept: &Counts, counted: &Counts, are_all: bool) -> io::Result<()> {
    let rows = || counted.rows.iter().map(|(name, count)| kept.beside(name, *count));
    if rows().any(|row| row.is_gain()) {
        println!("over {TOLERANCE_PERCENT} % fewer somewhere: --record keeps the gain");
    }
    let gone = kept.rows.keys().filter(|name| are_all && !counted.rows.contains_key(*name));
    let gone = gone.map(|name| format!("{name}: no operation any more"));
    let failures: Vec<String> =
        rows().filter(Row::is_failure).map(|row| row.to_string()).chain(gone).collect();
    if failures.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "failed, with over {TOLERANCE_PERCENT} % more instructions than are kept, or with nothing to compare:\n{}\n\
         kept:    {}\ncounted: {}\n\
         `cargo bench --bench instructions -- --record` keeps the new counts, if they are meant to be.",
        failures.join("\n"),
        kept.origin,
        counted.origin
    )))
}
