//! The loop's end of the store: hands batches over, hears what became of them, and says what people have to know.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration as SystemDuration;

use mio::Waker;

use crate::broker::options::Durability;
use crate::broker::{Broker, Restored, StoreState};
use crate::clock::{Duration, Instant};
use crate::journal::{Batch, Lsn};
use crate::store::{Claim, Damage, OpenError, Report, SEGMENT_BYTES, Store, Stored};

use super::LOG_TARGET;
use super::hold::{Hold, Waiting};

/// A disk that has not answered for so long is not waited for any more.
const ANSWER_TIMEOUT: Duration = Duration(10_000);

/// Between two lines about how far loading has come.
const PROGRESS_RECORDS: u64 = 500_000;

/// When state is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before a reply promises that it is safe.
    Always,
    /// So much later at most: that much is lost at a power cut.
    Within(Duration),
}

/// What to do about a store that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Set it aside and begin with an empty one.
    SetAside,
    /// Do not start.
    Strict,
}

/// Where and when state is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// The folder of the store.
    pub directory: PathBuf,
    /// When a reply leaves.
    pub sync: Sync,
    /// What to do about damage.
    pub recovery: Recovery,
}

impl StoreOptions {
    pub(super) fn durability(&self) -> Durability {
        match self.sync {
            Sync::Always => Durability::BeforeReply,
            Sync::Within(_) => Durability::AfterReply,
        }
    }

    fn error(&self, error: &OpenError) -> io::Error {
        let kind = match error {
            OpenError::Io(error) => error.kind(),
            OpenError::InUse => io::ErrorKind::ResourceBusy,
            OpenError::Newer(_) => io::ErrorKind::Unsupported,
            OpenError::Damaged(_) => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, format!("cannot use the data directory {}: {error}", self.directory.display()))
    }

    /// Makes sure that no other process uses the folder.
    pub(super) fn claim(&self) -> io::Result<Claim> {
        Claim::new(&self.directory).map_err(|error| self.error(&error))
    }
}

/// The loop's end of the store.
#[derive(Debug)]
pub(super) struct Keeper {
    store: Store,
    options: StoreOptions,
    /// The last batch that is under way, and since when the store owes an answer.
    handed_over: Option<(Lsn, Instant)>,
    /// Of batches that may wait: when the next one is due.
    next_due: Instant,
    /// Since when nothing can be stored.
    failing_since: Option<Instant>,
    hold: Hold,
    base_is_failing: bool,
    /// No other process uses the folder as long as this exists; to be dropped last.
    _claim: Claim,
}

impl Keeper {
    /// Brings back what was stored into a broker that `make` makes, and begins to store what comes.
    pub(super) fn load(
        options: StoreOptions,
        claim: Claim,
        waker: Arc<Waker>,
        make: impl Fn() -> Broker,
    ) -> io::Result<(Self, Broker)> {
        let (stored, broker) = match load(&options, &claim, &make) {
            Err(OpenError::Damaged(damage)) if options.recovery == Recovery::SetAside => {
                let aside = claim.set_aside()?;
                log::error!(
                    target: LOG_TARGET, "the store is damaged ({damage}): it was moved to {}, and the broker starts WITHOUT \
                     sessions, retained and queued messages; --recover strict would refuse to start",
                    aside.display()
                );
                load(&options, &claim, &make)
            }
            result => result,
        }
        .map_err(|error| options.error(&error))?;
        let wake = move || {
            // Fails only if the loop is gone.
            let _ = waker.wake();
        };
        match options.sync {
            Sync::Always => {}
            Sync::Within(Duration(millis)) => log::warn!(
                target: LOG_TARGET, "--sync {millis}: what was acknowledged in the last {millis} ms is lost at a power cut"
            ),
        }
        let keeper = Self {
            store: stored.start(SEGMENT_BYTES, Arc::new(wake)),
            options,
            handed_over: None,
            next_due: Instant::default(),
            failing_since: None,
            hold: Hold::default(),
            base_is_failing: false,
            _claim: claim,
        };
        Ok((keeper, broker))
    }

    /// Hears what became of batches.
    pub(super) fn take_reports(&mut self, now: Instant, broker: &mut Broker) {
        while let Some(report) = self.store.poll() {
            match report {
                Report::Stored(batches, bytes) => {
                    let last = batches.last().map(Batch::last).unwrap_or_default();
                    self.handed_over = self
                        .handed_over
                        .filter(|(handed, _)| *handed > last)
                        .map(|(handed, _)| (handed, now));
                    let metrics = broker.metrics_mut();
                    metrics.store_commits += 1;
                    metrics.store_bytes += bytes;
                    broker.handle_stored(now, last);
                    batches.into_iter().for_each(|batch| broker.reuse_batch(batch));
                    if let Some(since) = self.failing_since.take() {
                        broker.handle_store_state(now, StoreState::Well);
                        log::warn!(
                            target: LOG_TARGET, "storing again in {} after {} s",
                            self.options.directory.display(), now.since(since).as_secs()
                        );
                    }
                }
                Report::Failed(error) => {
                    let is_full = matches!(
                        error.kind(),
                        io::ErrorKind::StorageFull
                            | io::ErrorKind::QuotaExceeded
                            | io::ErrorKind::FileTooLarge
                    );
                    let state = if is_full { StoreState::Full } else { StoreState::Failing };
                    self.fail(now, broker, state, &error.to_string());
                }
                Report::Condensed(count) => {
                    log::debug!(target: LOG_TARGET, "{count} segments of the log taken into the base");
                    if std::mem::take(&mut self.base_is_failing) {
                        log::warn!(target: LOG_TARGET, "the base of the store is written again");
                    }
                }
                Report::BaseFailed(error) => {
                    if !std::mem::replace(&mut self.base_is_failing, true) {
                        log::error!(
                            target: LOG_TARGET, "the base of the store cannot be written: {error}; the log goes on and grows"
                        );
                    }
                }
            }
        }
        if self.handed_over.is_some_and(|(_, since)| since + ANSWER_TIMEOUT <= now) {
            self.fail(now, broker, StoreState::Failing, "the disk does not answer");
        }
    }

    fn fail(&mut self, now: Instant, broker: &mut Broker, state: StoreState, why: &str) {
        broker.handle_store_state(now, state);
        if self.failing_since.is_none() {
            self.failing_since = Some(now);
            broker.metrics_mut().store_failures += 1;
            log::error!(
                target: LOG_TARGET, "cannot store in {}: {why}; QoS 1 and 2 and stored sessions are refused until that is mended",
                self.options.directory.display()
            );
        }
    }

    /// Hands over what is to be stored now, unless it waits for more. `turn_micros` is when this turn began.
    pub(super) fn hand_over(
        &mut self,
        now: Instant,
        broker: &mut Broker,
        is_more_to_read: bool,
        turn_micros: u64,
    ) {
        if let Sync::Within(delay) = self.options.sync {
            let is_much = broker.unstored_bytes() > broker.options().unstored_bytes_max / 2;
            if now < self.next_due && !is_much {
                return;
            }
            if self.hand_over_at_once(now, broker) {
                self.next_due = now + delay;
            }
            return;
        }
        let waiting = Waiting {
            bytes: broker.waiting_bytes(),
            records: broker.waiting_records(),
            unstored_bytes: broker.unstored_bytes(),
            is_transient: broker.may_records_wait(),
            is_disk_busy: self.handed_over.is_some(),
        };
        if self.hold.is_to_wait(waiting, is_more_to_read, turn_micros) {
            broker.open_gates();
        } else {
            self.hand_over_at_once(now, broker);
        }
    }

    /// Hands over what there is, whether it may wait or not. False if there was nothing.
    pub(super) fn hand_over_at_once(&mut self, now: Instant, broker: &mut Broker) -> bool {
        self.hold.end();
        let Some(batch) = broker.poll_journal(now) else { return false };
        self.hold.note_batch();
        let since = self.handed_over.map_or(now, |(_, since)| since);
        self.handed_over = Some((batch.last(), since));
        self.store.commit(batch);
        true
    }

    /// How long the loop may sleep while a batch waits: that is as long as there is something to read.
    pub(super) const fn sleep_max(&self) -> Option<SystemDuration> {
        self.hold.sleep_max()
    }

    /// When the loop has to look again.
    pub(super) fn due(&self, broker: &Broker) -> Option<Instant> {
        let is_delayed = matches!(self.options.sync, Sync::Within(_)) && !broker.is_stored();
        let next = is_delayed.then_some(self.next_due).filter(|_| self.handed_over.is_none());
        let answer = self
            .handed_over
            .filter(|_| self.failing_since.is_none())
            .map(|(_, since)| since + ANSWER_TIMEOUT);
        next.into_iter().chain(answer).min()
    }
}

fn load(
    options: &StoreOptions,
    claim: &Claim,
    make: &impl Fn() -> Broker,
) -> Result<(Stored, Broker), OpenError> {
    let began = std::time::Instant::now();
    let stored = Stored::open(claim.medium())?;
    let mut broker = make();
    let mut restore = broker.restore(stored.last());
    let mut records = 0_u64;
    stored.for_each(|key, value| {
        records += 1;
        if records.is_multiple_of(PROGRESS_RECORDS) {
            log::info!(target: LOG_TARGET, "loading: {records} records so far");
        }
        restore.record(key, value).map_err(|error| {
            OpenError::Damaged(Damage { name: "records".to_owned(), what: error.to_string() })
        })
    })?;
    let restored = restore.finish();
    let Restored { sessions, subscriptions, deliveries, retained, orphans } = restored.map_err(|error| {
        OpenError::Damaged(Damage { name: "records".to_owned(), what: error.to_string() })
    })?;
    log::info!(
        target: LOG_TARGET, "loaded from {} in {} ms: {sessions} sessions, {subscriptions} subscriptions, {deliveries} messages \
         waiting, {retained} retained",
        options.directory.display(),
        began.elapsed().as_millis()
    );
    if orphans > 0 {
        log::info!(target: LOG_TARGET, "{orphans} records that ended sessions had left are removed");
    }
    Ok((stored, broker))
}
