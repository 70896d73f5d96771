//! The two threads of a store, and what each of them does in one go: a test does without the threads.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::journal::Batch;

use super::base::Base;
use super::changes::Changes;
use super::company::Company;
use super::log::{Log, ReadError, segment_name};
use super::medium::Medium;
use super::pace::Pace;

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(250);

/// Who waits for company looks so often whether it is there.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Batches that wait are stored with one synchronization, as long as they have less than this together.
const TOGETHER_BYTES: usize = 4 << 20;

/// Segments that go into the base at once: what the later ones undo of the earlier ones is never written.
const SEGMENTS_AT_ONCE: usize = 4;

/// With fewer full segments than that the base waits until the log is quiet: it has time, acknowledgements have not.
const SEGMENTS_PUT_OFF: usize = 4;

/// With as many the log has run away from the base, which must not wait for anybody then.
const SEGMENTS_BEHIND: usize = 16;

/// Whoever else wants the core may have it.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 19;

/// The log is quiet when no segment became full for so long.
const QUIET: Duration = Duration::from_secs(2);

/// What a store has to say.
#[derive(Debug)]
pub enum Report {
    /// These batches, of which nothing else is left, and all before them are on disk; so many bytes were written for them.
    Stored(Vec<Batch>, u64),
    /// The batches in hand cannot be stored for now.
    Failed(io::Error),
    /// Full segments cannot be taken into the base for now. The log goes on, and grows.
    BaseFailed(io::Error),
    /// So many full segments were taken into the base.
    Condensed(usize),
}

/// Appends batches to the log.
pub(super) struct LogWorker {
    log: Log,
    batches: Receiver<Batch>,
    /// Those of one frame. What failed may be on disk all the same, and is known again only if it is tried as it was.
    in_hand: Vec<Batch>,
    /// Those behind them that were received already.
    put_off: VecDeque<Batch>,
    company: Company,
    closed: Sender<u64>,
    reports: Sender<Report>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl LogWorker {
    pub(super) fn new(
        log: Log,
        batches: Receiver<Batch>,
        closed: Sender<u64>,
        reports: Sender<Report>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            log,
            batches,
            in_hand: Vec::new(),
            put_off: VecDeque::new(),
            company: Company::default(),
            closed,
            reports,
            wake,
        }
    }

    pub(super) fn run(mut self) {
        while self.wait() {
            while !self.attempt() {
                match self.batches.recv_timeout(RETRY) {
                    Ok(batch) => self.put_off.push_back(batch),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// Waits for a batch. False if the broker stops.
    fn wait(&mut self) -> bool {
        if self.put_off.is_empty() {
            let Ok(batch) = self.batches.recv() else { return false };
            self.put_off.push_back(batch);
        }
        if self.put_off.front().is_some_and(Batch::may_wait) {
            // The loop may have the same core, and what it does now makes the next batches smaller: with 256 messages on
            // their way to a client that is there, threads of the store take 0.05 us a message instead of 0.15, and with 16
            // of them 0.5 instead of 1.3 (`cargo bench --bench durable -- throughput`, in turn). Nobody else would come: the
            // loop hands over no other batch before this one is stored.
            thread::yield_now();
        } else {
            self.wait_for_company();
        }
        true
    }

    /// Waits for batches that will come in a moment.
    fn wait_for_company(&mut self) {
        loop {
            let waiting_bytes = self.waiting_bytes();
            if waiting_bytes >= TOGETHER_BYTES {
                return;
            }
            let Some(left) = self.company.time_left(Instant::now(), waiting_bytes) else { return };
            // Not until the next batch comes: whoever is woken for each of them takes the core from those who make them.
            thread::sleep(left.min(LOOK_EVERY));
        }
    }

    /// Makes one attempt to store what is in hand, or else what waits, if there is something. False if it failed.
    pub(super) fn attempt(&mut self) -> bool {
        if self.in_hand.is_empty() {
            self.gather();
        }
        if self.in_hand.is_empty() {
            return true;
        }
        let began = Instant::now();
        let result = self.log.append(&self.in_hand);
        for number in self.log.take_closed() {
            // Ends later than this thread.
            let _ = self.closed.send(number);
        }
        let is_stored = result.is_ok();
        let report = match result {
            Ok(bytes) => {
                let stored_bytes = self.in_hand.iter().map(Batch::length).sum();
                let waiting_bytes = self.waiting_bytes();
                self.company.note_commit(began, Instant::now(), stored_bytes, waiting_bytes);
                // Here and not in the loop: to give large memory back takes long.
                self.in_hand.iter_mut().for_each(Batch::clear);
                Report::Stored(std::mem::take(&mut self.in_hand), bytes)
            }
            Err(error) => Report::Failed(error),
        };
        let _ = self.reports.send(report);
        (self.wake)();
        is_stored
    }

    /// Receives what has been handed over. How much waits, as far as it fits into one commit.
    fn waiting_bytes(&mut self) -> usize {
        self.put_off.extend(self.batches.try_iter());
        let mut bytes = 0;
        for batch in &self.put_off {
            if bytes >= TOGETHER_BYTES {
                break;
            }
            bytes += batch.length();
        }
        bytes
    }

    /// Takes the batches that wait in hand.
    fn gather(&mut self) {
        let mut bytes = 0;
        while bytes < TOGETHER_BYTES
            && let Some(batch) = self.put_off.pop_front().or_else(|| self.batches.try_recv().ok())
        {
            bytes += batch.length();
            self.in_hand.push(batch);
        }
    }
}

/// Takes full segments into the base.
pub(super) struct BaseWorker {
    pub(super) medium: Arc<dyn Medium>,
    /// None after an error: redb does not go on after one, so it is opened anew.
    pub(super) base: Option<Base>,
    pub(super) closed: Receiver<u64>,
    /// Those that are waiting.
    pub(super) segments: Vec<u64>,
    pub(super) reports: Sender<Report>,
    pub(super) wake: Arc<dyn Fn() + Send + Sync>,
}

impl BaseWorker {
    pub(super) fn run(mut self) {
        // There it is the thread that becomes nice, elsewhere the process. A failure does not matter.
        #[cfg(target_os = "linux")]
        let _ = rustix::process::nice(NICENESS);
        loop {
            if !self.wait() {
                return;
            }
            if !self.attempt() {
                match self.closed.recv_timeout(RETRY * 8) {
                    Ok(number) => self.segments.push(number),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// Makes one attempt to take the first full segments into the base, if there are some. False if it failed.
    pub(super) fn attempt(&mut self) -> bool {
        self.segments.extend(self.closed.try_iter());
        if self.segments.is_empty() {
            return true;
        }
        let result = self.condense();
        let is_done = result.is_ok();
        let report = match result {
            Ok(count) => Report::Condensed(count),
            Err(error) => {
                // It is written to when it is closed, so there must never be two.
                self.base = None;
                Report::BaseFailed(error)
            }
        };
        let _ = self.reports.send(report);
        (self.wake)();
        is_done
    }

    /// Waits until there is something to do and it is time to do it. False if the broker stops.
    fn wait(&mut self) -> bool {
        loop {
            self.segments.extend(self.closed.try_iter());
            let next = match self.segments.len() {
                0 => self.closed.recv().map_err(|_| RecvTimeoutError::Disconnected),
                SEGMENTS_PUT_OFF.. => return true,
                _ => self.closed.recv_timeout(QUIET),
            };
            match next {
                Ok(number) => self.segments.push(number),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Takes the first segments into the base and removes them. Returns how many that were.
    fn condense(&mut self) -> io::Result<usize> {
        let Self { medium, base, segments, .. } = self;
        let base = match base {
            Some(base) => base,
            None => base.insert(Base::open(&**medium).map_err(|error| io::Error::other(error.to_string()))?),
        };
        let count = segments.len().min(SEGMENTS_AT_ONCE);
        let mut pace = if segments.len() < SEGMENTS_BEHIND { Pace::polite() } else { Pace::hurried() };
        let (mut changes, mut last) = (Changes::default(), base.applied);
        for number in &segments[..count] {
            changes.read(&**medium, *number, &mut last, &mut pace).map_err(|error| match error {
                ReadError::Io(error) => error,
                ReadError::Newer(name) => io::Error::other(format!("{name}: of a later version")),
                ReadError::Damage(damage) => io::Error::other(damage.to_string()),
            })?;
        }
        changes.sort(&mut pace);
        base.apply(&changes, last, &mut pace)?;
        for _ in 0..count {
            match medium.remove(&segment_name(segments[0])) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => segments.remove(0),
            };
        }
        Ok(count)
    }
}
