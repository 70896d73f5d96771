//! Counting: this program runs itself below `valgrind --tool=callgrind`, which sees every instruction.
//!
//! Deliberately not here: what is counted (see `operations`).

use std::io;
use std::path::Path;
use std::process::{Command, Output};

/// Repetitions that are counted.
pub(crate) const REPETITIONS: u32 = 256;

/// The argument that has this program repeat an operation.
pub(crate) const REPEAT: &str = "--repeat";

/// Instructions of one repetition. Of two runs one repeats more often and does nothing else besides, so the difference holds
/// neither the start of the process, nor getting ready, nor the first repetitions, when caches and buffers grow.
pub(crate) fn count(name: &str) -> io::Result<u64> {
    let (fewer, more) = (run(name, 2 * REPETITIONS)?, run(name, 3 * REPETITIONS)?);
    Ok(more.saturating_sub(fewer) / u64::from(REPETITIONS))
}

fn run(name: &str, times: u32) -> io::Result<u64> {
    let own = std::env::current_exe()?;
    let (Some(folder), Some(file)) = (own.parent(), own.file_name()) else {
        return Err(io::Error::other("this program has no path"));
    };
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    // Named from its folder: the length of its path would move what is on the heap, and copying counts differently then.
    command.current_dir(folder).arg(Path::new(".").join(file)).args([REPEAT, name, &times.to_string()]);
    let said = said(command.output(), "valgrind")?;
    let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected
        .ok_or_else(|| io::Error::other(format!("{name}: valgrind does not say what it counted: {said}")))
}

/// What the counts depend on.
pub(crate) fn origin() -> io::Result<String> {
    let valgrind = said(Command::new("valgrind").arg("--version").output(), "valgrind")?;
    let rustc = said(Command::new("rustc").arg("-vV").output(), "rustc")?;
    let fact = |name| rustc.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown");
    let (host, release) = (fact("host: "), fact("release: "));
    Ok(format!("the bench profile, {host}, rustc {release}, {}", valgrind.trim()))
}

/// All that a program said, if it did what it was to do.
fn said(output: io::Result<Output>, program: &str) -> io::Result<String> {
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other(format!("{program} is missing: without it nothing can be counted"))
        }
        _ => error,
    })?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(said) } else { Err(io::Error::other(format!("{program}: {said}"))) }
}
