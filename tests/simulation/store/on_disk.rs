//! The broker's own store on a disk that loses its power, with what its threads do done in turn.
//!
//! The power goes between two things that are done, or amid one: a commit, which may be torn, the taking of segments into
//! the base, or the reading of what is there afterwards, again and again. Sometimes it is only the process that ends, and
//! the disk keeps what it was not told to make certain of. There are disks that fail while the process lives, and then
//! everything is tried again.
//!
//! The numbers that decide all that are of its own: how many of them a cut takes is the base's business.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use broker::journal::{Batch, Lsn};
use broker::store::{OpenError, Report, StoreByHand, Stored};

use super::{Found, Records, Store};
use crate::disk::Disk;
use crate::model::coverage::Coverage;
use crate::random::Random;

/// What a segment of the log may hold: a commit or two, or some of them, or more than a world has.
const SEGMENT_BYTES: [u64; 3] = [300, 3_000, 300_000];

/// Operations of the disk until the power goes.
const OPERATIONS: [usize; 4] = [4, 8, 20, 120];

/// Values by their keys.
type Table = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store, a disk, and whoever pulls the plug.
pub(crate) struct StoreOnDisk {
    random: Random,
    disk: Disk,
    writes_through: bool,
    /// Whether the disk fails at times.
    may_fail: bool,
    segment_bytes: u64,
    /// None between two processes.
    store: Option<StoreByHand>,
    /// Batches that were not handed over yet.
    waiting: VecDeque<Batch>,
    /// What there should be after each batch that may be the last one to be found.
    expected: VecDeque<(Lsn, Table)>,
}

impl StoreOnDisk {
    /// An empty one.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut new = Self {
            disk: Disk::default(),
            writes_through: !random.once_in(3),
            may_fail: random.once_in(3),
            segment_bytes: *random.pick(&SEGMENT_BYTES),
            random,
            store: None,
            waiting: VecDeque::new(),
            expected: VecDeque::new(),
        };
        new.give_power(u64::MAX);
        let Found { last, records } = new.open().expect("a store can be made");
        assert!(records.is_empty());
        new.expected.push_back((last, Table::new()));
        new
    }

    /// The power is back, for so many operations, and all works as it should.
    fn give_power(&mut self, operations: u64) {
        let mut state = self.disk.state();
        state.power = operations;
        state.writes_through = self.writes_through;
        (state.sound, state.has_failed, state.mishaps) = (None, false, None);
    }

    fn has_power(&self) -> bool {
        self.disk.state().power > 0
    }

    /// Begins to store what comes behind what there is.
    fn open(&mut self) -> Result<Found, OpenError> {
        let stored = Stored::open(Arc::new(self.disk.clone()))?;
        let mut records = Records::new();
        stored.for_each(|key, value| {
            records.push((key.to_vec(), value.to_vec()));
            Ok::<(), OpenError>(())
        })?;
        let last = stored.last();
        self.store = Some(stored.start_by_hand(self.segment_bytes));
        Ok(Found { last, records })
    }

    /// From now on some writes of the log fail, or a synchronization.
    fn let_fail(&mut self) {
        let mishaps = self.random.clone();
        let mut state = self.disk.state();
        state.mishaps = self.random.once_in(2).then_some(mishaps);
        state.sound = self.random.once_in(2).then(|| 2 + self.random.below(20) as u64);
    }

    fn check_failure(&self, error: &std::io::Error) {
        assert!(self.may_fail, "with power all can be stored: {error}");
    }

    fn hand_over(&mut self, count: usize) {
        let store = self.store.as_mut().expect("it is open");
        self.waiting.drain(..count).for_each(|batch| store.commit(batch));
    }

    /// The process ends, and with it perhaps the power, amid one thing or another.
    fn end(&mut self, coverage: &mut Coverage) {
        let most = *self.random.pick(&OPERATIONS);
        let mut power = self.random.below(most) as u64;
        self.disk.state().power = power;
        if !self.random.once_in(4) {
            self.hand_over(self.waiting.len());
        }
        let mut store = self.store.take().expect("it is open");
        for (what, work) in [
            ("power cut amid a commit", StoreByHand::append as fn(&mut StoreByHand)),
            ("power cut amid the taking of segments into the base", StoreByHand::condense),
        ] {
            if !self.random.once_in(3) {
                work(&mut store);
                coverage.see_if(what, power > 0 && !self.has_power());
                power = self.disk.state().power;
            }
        }
        if !self.random.once_in(4) {
            // It is not told to stop: nothing is closed in good order.
            self.disk.state().power = 0;
        }
        drop(store);
        self.waiting.clear();
    }
}

impl Store for StoreOnDisk {
    fn commit(&mut self, batch: Batch) {
        let (_, mut records) = self.expected.back().expect("there is always one").clone();
        batch.apply(&mut records);
        self.expected.push_back((batch.last(), records));
        self.waiting.push_back(batch);
    }

    fn work(&mut self, _: &mut Random, coverage: &mut Coverage) -> Vec<Batch> {
        let count = self.random.below(self.waiting.len() + 1);
        self.hand_over(count);
        if self.may_fail && self.random.once_in(8) {
            // For a moment the disk is not there.
            self.disk.state().power = self.random.below(40) as u64;
        }
        let store = self.store.as_mut().expect("it is open");
        store.append();
        if self.random.once_in(4) {
            store.condense();
        }
        self.disk.state().power = u64::MAX;
        let mut stored = Vec::new();
        while let Some(report) = self.store.as_mut().and_then(StoreByHand::poll) {
            match report {
                Report::Stored(mut batches, _) => {
                    coverage.see_if("batches stored as one", batches.len() > 1);
                    stored.append(&mut batches);
                }
                // The server tells the core, which refuses what it cannot promise. Here it is as if that came too late.
                Report::Failed(error) => {
                    self.check_failure(&error);
                    coverage.see("commit that failed and is tried again");
                }
                Report::Condensed(_) => coverage.see("segments taken into the base"),
                Report::BaseFailed(error) => {
                    self.check_failure(&error);
                    coverage.see("base that failed and is opened anew");
                }
            }
        }
        if let Some(last) = stored.last().map(Batch::last) {
            self.expected.retain(|(lsn, _)| *lsn >= last);
        }
        stored
    }

    fn crash(&mut self, _: &mut Random, coverage: &mut Coverage) -> Found {
        self.end(coverage);
        let found = loop {
            if self.random.once_in(3) {
                coverage.see("process killed while the power stays on");
            } else {
                self.disk = self.disk.survive(&mut self.random);
            }
            let operations = if self.random.once_in(3) { self.random.below(60) as u64 } else { u64::MAX };
            self.give_power(operations);
            match self.open() {
                Ok(found) => break found,
                Err(error) => {
                    assert!(!self.has_power(), "with power it can be opened: {error}");
                    coverage.see("power cut amid recovery");
                }
            }
        };
        self.give_power(u64::MAX);
        self.expected.retain(|(lsn, _)| *lsn == found.last);
        let (_, expected) =
            self.expected.front().expect("nothing is lost that was stored, and nothing made up");
        assert_eq!(found.records, expected.clone().into_iter().collect::<Records>());
        if self.may_fail {
            self.let_fail();
        }
        found
    }

    /// What would be found after a stop in good order.
    fn records(&mut self) -> Records {
        self.store = None;
        self.give_power(u64::MAX);
        self.open().expect("what was closed can be opened").records
    }
}
