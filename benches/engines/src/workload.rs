//! The messages that come and go, and the loops that are measured, each in a process of its own.

use std::io::{Write, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::{Engine, Kind, Operation, Outcome};
use crate::usage::{Usage, bytes_on_disk, resident_peak};

/// Persistent sessions, which the messages go to in turn.
const SESSIONS: u64 = 1000;
/// Bytes of a body.
const BODY_BYTES: usize = 120;
/// Bytes of the value of a queue entry.
const ENTRY_BYTES: usize = 16;
/// Messages in a commit while live messages are put in beforehand.
const FILL_MESSAGES: u64 = 256;
/// The fewest commits a measurement consists of.
const FEWEST_COMMITS: usize = 20;
/// The messages after which a measurement ends early, for each second it may take: an engine that
/// is fast must not fill the caches of the disk and slow down the one whose turn is next.
const ENOUGH_MESSAGES: u64 = 500_000;

/// The messages: which are alive, and noise that no engine can compress.
struct Workload {
    /// The oldest message alive.
    first: u64,
    /// The message that comes next.
    next: u64,
    /// The noise that bodies and entries are cut from.
    noise: Vec<u8>,
}

impl Workload {
    /// Messages of this range are alive.
    fn new(first: u64, next: u64) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise = (0..64 * 1024)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        Self { first, next, noise }
    }

    /// The next messages come; as many of the oldest go, if any are to go.
    fn batch(&mut self, messages: u64, deletes: bool) -> Vec<Operation<'_>> {
        let incoming = self.next..self.next + messages;
        let outgoing = self.first..self.first + if deletes { messages } else { 0 };
        self.next = incoming.end;
        self.first = outgoing.end;
        let noise = &self.noise;
        let mut batch = Vec::with_capacity(2 * messages as usize);
        batch.extend(incoming.map(|message| {
            let start = (message.wrapping_mul(7919) % (noise.len() - BODY_BYTES) as u64) as usize;
            Operation::Insert {
                message,
                session: message % SESSIONS,
                sequence: message / SESSIONS,
                body: &noise[start..start + BODY_BYTES],
                entry: &noise[start..start + ENTRY_BYTES],
            }
        }));
        batch.extend(outgoing.map(|message| Operation::Delete {
            message,
            session: message % SESSIONS,
            sequence: message / SESSIONS,
        }));
        batch
    }

    /// Inserts messages until this many are alive.
    fn fill(&mut self, engine: &mut dyn Engine, live: u64) -> Outcome<()> {
        while self.next - self.first < live {
            let messages = FILL_MESSAGES.min(live - (self.next - self.first));
            engine.commit(&self.batch(messages, false))?;
        }
        Ok(())
    }
}

/// Writes the numbers a child measured to the parent that waits for them.
fn report(numbers: &[f64]) -> Outcome<()> {
    let words: Vec<String> = numbers.iter().map(f64::to_string).collect();
    let mut output = stdout().lock();
    writeln!(output, "{}", words.join(" "))?;
    output.flush()?;
    Ok(())
}

/// Commits for some seconds and reports what each commit took, and what the process used.
pub fn commits(
    kind: Kind,
    directory: &Path,
    [first, next, live, messages, deletes, seconds]: [u64; 6],
) -> Outcome<()> {
    let mut engine = kind.open(directory)?;
    let mut workload = Workload::new(first, next);
    workload.fill(engine.as_mut(), live)?;
    let before = Usage::now(directory)?;
    let start = Instant::now();
    let mut durations = Vec::new();
    let time = Duration::from_secs(seconds);
    let enough = (seconds * ENOUGH_MESSAGES / messages) as usize;
    while durations.len() < FEWEST_COMMITS || (start.elapsed() < time && durations.len() < enough) {
        let batch = workload.batch(messages, deletes == 1);
        let commit = Instant::now();
        engine.commit(&batch)?;
        durations.push(commit.elapsed().as_secs_f64() * 1e3);
    }
    let elapsed = start.elapsed().as_secs_f64();
    let after = Usage::now(directory)?;
    durations.sort_by(f64::total_cmp);
    let count = durations.len();
    let total = (count as u64 * messages) as f64;
    report(&[
        total / elapsed,
        durations[count / 2],
        durations[count * 99 / 100],
        durations[count - 1],
        (after.processor_seconds - before.processor_seconds) / total * 1e6,
        (after.written_bytes - before.written_bytes) as f64 / total,
        (after.device_bytes - before.device_bytes) as f64 / total,
        (after.device_flushes - before.device_flushes) as f64 / count as f64,
        bytes_on_disk(directory)? as f64,
        resident_peak()? as f64,
        workload.first as f64,
        workload.next as f64,
    ])
}

/// Puts this many live messages in, closes, and reports the seconds that took.
pub fn fill(kind: Kind, directory: &Path, live: u64) -> Outcome<()> {
    let start = Instant::now();
    let mut engine = kind.open(directory)?;
    Workload::new(0, 0).fill(engine.as_mut(), live)?;
    let filled = start.elapsed().as_secs_f64();
    drop(engine);
    report(&[
        filled,
        start.elapsed().as_secs_f64() - filled,
        bytes_on_disk(directory)? as f64,
        resident_peak()? as f64,
    ])
}

/// Opens the journal and reads all that is alive; reports the seconds of both and what there is.
pub fn load(kind: Kind, directory: &Path) -> Outcome<()> {
    let start = Instant::now();
    let engine = kind.open(directory)?;
    let opened = start.elapsed().as_secs_f64();
    let inventory = engine.load()?;
    let loaded = start.elapsed().as_secs_f64() - opened;
    report(&[
        opened,
        loaded,
        inventory.messages as f64,
        inventory.bytes as f64,
        inventory.first as f64,
        inventory.next as f64,
        resident_peak()? as f64,
    ])
}

/// Commits until killed, and says after each commit which messages are alive.
pub fn victim(kind: Kind, directory: &Path, [first, next, messages]: [u64; 3]) -> Outcome<()> {
    let mut engine = kind.open(directory)?;
    let mut workload = Workload::new(first, next);
    loop {
        engine.commit(&workload.batch(messages, true))?;
        report(&[workload.first as f64, workload.next as f64])?;
    }
}
