//! The store: where state is kept beyond the process.
//!
//! ```text
//!  loop ──batch──> log thread: append, synchronize ──stored──> loop
//!                       │ full segments
//!                       v
//!                  base thread: what is left of them, one transaction, remove the segments
//! ```
//!
//! A commit costs one write at the end of a file and one synchronization, or a write that is both. What happens while that runs gathers, in the core
//! or as batches that wait here, and is the next commit, so the more is to be done, the less each of it costs; where the disk is
//! slow, it waits a moment for those who were answered by the one before. Full
//! segments of the log are taken into the base behind its back.
//!
//! Only bytes go in and out; what they mean is for `journal`. No thread but these two touches a file, and nothing here
//! touches the state of the broker.
//!
//! When the disk fails, what is in hand is tried again until it is stored, and the loop is told, so that nothing more
//! is promised until then. What was acknowledged stays as it is, and nothing that was not becomes so.

mod base;
mod changes;
mod company;
mod file_end;
mod log;
pub mod medium;
mod pace;
mod worker;

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::journal::{Batch, Lsn};

use base::Base;
use changes::Changes;
use log::{Log, ReadError, segment_name, segment_numbers};
use medium::{Folder, Medium};
use pace::Pace;
use worker::{BaseWorker, LogWorker};

pub use worker::Report;

/// A segment of the log that has grown beyond this is closed, if nobody wants it otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Whoever holds a lock on this file uses the folder.
const LOCK_NAME: &str = "lock";

/// Something on disk that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub name: String,
    /// What is wrong with it.
    pub what: String,
}

impl Damage {
    fn new(name: &str, what: &str) -> Self {
        Self { name: name.to_owned(), what: what.to_owned() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// Why a store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another process uses it.
    InUse,
    /// A later version of the broker wrote this file.
    Newer(String),
    /// It is not what was written.
    Damaged(Damage),
    /// The machine's trouble.
    Io(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("another broker is using it"),
            Self::Newer(name) => write!(f, "{name} was written by a later version of the broker"),
            Self::Damaged(damage) => write!(f, "damaged: {damage}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Newer(name) => Self::Newer(name),
            ReadError::Damage(damage) => Self::Damaged(damage),
            ReadError::Io(error) => Self::Io(error),
        }
    }
}

/// A folder that this process alone uses.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Claim {
    /// Claims a folder, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// If another process has it, or it cannot be made or written to.
    pub fn new(path: &Path) -> Result<Self, OpenError> {
        fs::create_dir_all(path)?;
        let lock =
            File::options().read(true).write(true).create(true).truncate(false).open(path.join(LOCK_NAME))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Its files.
    pub fn medium(&self) -> Arc<dyn Medium> {
        Arc::new(Folder::new(&self.path))
    }

    /// Whether there is a store in it.
    ///
    /// # Errors
    ///
    /// The machine's.
    pub fn has_store(&self) -> io::Result<bool> {
        let names = self.medium().names()?;
        Ok(names.iter().any(|name| name == base::BASE_NAME) || !segment_numbers(&names).is_empty())
    }

    /// Moves everything that is in it into a new folder beside it, and returns that.
    ///
    /// # Errors
    ///
    /// The machine's.
    pub fn set_aside(&self) -> io::Result<PathBuf> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let aside = self.path.join(format!("damaged-{now}"));
        fs::create_dir(&aside)?;
        for name in self.medium().names()?.iter().filter(|name| *name != LOCK_NAME) {
            fs::rename(self.path.join(name), aside.join(name))?;
        }
        File::open(&self.path)?.sync_all()?;
        Ok(aside)
    }
}

/// A store at rest: its records can be read, or replaced.
#[derive(Debug)]
pub struct Stored {
    medium: Arc<dyn Medium>,
    base: Base,
    /// What the log says and the base does not.
    changes: Changes,
    segments: Vec<u64>,
    last: Lsn,
}

impl Stored {
    /// Opens a store, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// If it is damaged, of a later version, or cannot be read or written.
    pub fn open(medium: Arc<dyn Medium>) -> Result<Self, OpenError> {
        let base = Base::open(&*medium)?;
        let segments = segment_numbers(&medium.names()?);
        // What a killed process wrote may be seen and yet not be on disk: nothing is built on it before it is.
        for number in &segments {
            medium.open(&segment_name(*number))?.synchronize()?;
        }
        medium.synchronize_names()?;
        let (mut changes, mut last, mut pace) = (Changes::default(), base.applied, Pace::hurried());
        for number in &segments {
            changes.read(&*medium, *number, &mut last, &mut pace)?;
        }
        changes.sort(&mut pace);
        Ok(Self { medium, base, changes, segments, last })
    }

    /// The number of the last record that was stored, be it there still or not: what comes has to have later ones.
    pub const fn last(&self) -> Lsn {
        self.last
    }

    /// Every record, in the order of keys.
    ///
    /// # Errors
    ///
    /// Those of `each`, or if the store cannot be read.
    pub fn for_each<E: From<OpenError>>(
        &self,
        each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.base.for_each(&self.changes, each)
    }

    /// Looks at every page of the base.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check(&mut self) -> Result<(), OpenError> {
        self.base.check()
    }

    /// Puts records into a store that has none, in as many calls as it takes: all of one call, or none.
    ///
    /// # Errors
    ///
    /// The machine's.
    pub fn fill(&mut self, records: &Batch) -> Result<(), OpenError> {
        let mut changes = Changes::default();
        changes.add_batch(records, "import").map_err(OpenError::Damaged)?;
        changes.sort(&mut Pace::hurried());
        self.last = self.last.max(records.last());
        self.base.apply(&changes, self.last, &mut Pace::hurried())?;
        Ok(())
    }

    /// Begins to store what comes, in a log of segments of about so many bytes. `wake` is called, from another thread,
    /// whenever there is a report.
    pub fn start(self, segment_bytes: u64, wake: Arc<dyn Fn() + Send + Sync>) -> Store {
        let StoreByHand { mut store, log_worker, base_worker } = self.set_up(segment_bytes, wake);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("a thread can be made")
        };
        store.threads = vec![
            spawn("store-log", Box::new(move || log_worker.run())),
            spawn("store-base", Box::new(move || base_worker.run())),
        ];
        store
    }

    /// The same without threads: for a test in which a seed decides what happens when.
    pub fn start_by_hand(self, segment_bytes: u64) -> StoreByHand {
        self.set_up(segment_bytes, Arc::new(|| {}))
    }

    fn set_up(self, segment_bytes: u64, wake: Arc<dyn Fn() + Send + Sync>) -> StoreByHand {
        let Self { medium, base, segments, last, .. } = self;
        let next_number = segments.last().map_or(1, |number| number + 1);
        let log = Log::new(medium.clone(), next_number, last, segment_bytes);
        let (reports_in, reports) = channel();
        let (closed_in, closed) = channel();
        let base_worker = BaseWorker {
            medium,
            base: Some(base),
            closed,
            segments,
            reports: reports_in.clone(),
            wake: wake.clone(),
        };
        let (batches, batches_out) = channel();
        let log_worker = LogWorker::new(log, batches_out, closed_in, reports_in, wake);
        let store = Store { batches: Some(batches), reports, threads: Vec::new() };
        StoreByHand { store, log_worker, base_worker }
    }
}

/// A store at work.
#[derive(Debug)]
pub struct Store {
    batches: Option<Sender<Batch>>,
    reports: Receiver<Report>,
    threads: Vec<JoinHandle<()>>,
}

impl Store {
    /// Hands over a batch. It is stored behind those before it, and a report may be of several.
    pub fn commit(&mut self, batch: Batch) {
        if let Some(batches) = &self.batches {
            // The thread ends only after this end of the channel.
            let _ = batches.send(batch);
        }
    }

    /// The next report, if there is one.
    pub fn poll(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

impl Drop for Store {
    /// Waits for what is being written. A batch that cannot be stored is given up.
    fn drop(&mut self) {
        self.batches = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A store at work whose threads do not run: each does something when it is told to.
pub struct StoreByHand {
    store: Store,
    log_worker: LogWorker,
    base_worker: BaseWorker,
}

impl StoreByHand {
    /// Hands over a batch, as to a [`Store`].
    pub fn commit(&mut self, batch: Batch) {
        self.store.commit(batch);
    }

    /// The next report, if there is one.
    pub fn poll(&mut self) -> Option<Report> {
        self.store.poll()
    }

    /// Makes one attempt to store the batches that wait, or those of the last attempt if that failed.
    pub fn append(&mut self) {
        self.log_worker.attempt();
    }

    /// Makes one attempt to take full segments into the base.
    pub fn condense(&mut self) {
        self.base_worker.attempt();
    }
}
