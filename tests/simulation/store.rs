//! Where the batches of a world go: plain records that are never lost, or the broker's own store on a disk that loses
//! its power.

#[cfg(feature = "persistence")]
mod on_disk;

use std::collections::{BTreeMap, VecDeque};

use broker::journal::{Batch, Lsn};

use crate::model::coverage::Coverage;
use crate::random::Random;

#[cfg(feature = "persistence")]
pub(crate) use on_disk::StoreOnDisk;

/// Keys and values, in the order of keys.
pub(crate) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What a process finds when it begins.
#[derive(Debug)]
pub(crate) struct Found {
    /// The number up to which everything was stored.
    pub(crate) last: Lsn,
    pub(crate) records: Records,
}

/// Keeps batches, each whole or not at all, in their order.
pub(crate) trait Store {
    /// Takes a batch, behind those before it.
    fn commit(&mut self, batch: Batch);

    /// Stores some of what was taken, and gives back what it says is stored.
    fn work(&mut self, random: &mut Random, coverage: &mut Coverage) -> Vec<Batch>;

    /// The process ends without a word, amid whatever was being done, and another one begins.
    fn crash(&mut self, random: &mut Random, coverage: &mut Coverage) -> Found;

    /// What there is when nothing is to be done.
    fn records(&mut self) -> Records;
}

/// Plain records.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    last: Lsn,
    taken: VecDeque<Batch>,
}

impl Shelf {
    /// Stores the first `count` of the batches that were taken, and gives them back.
    fn store(&mut self, count: usize) -> Vec<Batch> {
        let stored: Vec<Batch> = self.taken.drain(..count).collect();
        for batch in &stored {
            self.last = batch.last();
            batch.apply(&mut self.records);
        }
        stored
    }
}

impl Store for Shelf {
    fn commit(&mut self, batch: Batch) {
        self.taken.push_back(batch);
    }

    fn work(&mut self, random: &mut Random, _: &mut Coverage) -> Vec<Batch> {
        let count = 1 + random.below(self.taken.len());
        self.store(count)
    }

    /// Of the batches that were taken some may have been stored, the first ones.
    fn crash(&mut self, random: &mut Random, _: &mut Coverage) -> Found {
        let count = random.below(self.taken.len() + 1);
        self.store(count);
        self.taken.clear();
        Found { last: self.last, records: self.records() }
    }

    fn records(&mut self) -> Records {
        self.records.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}
