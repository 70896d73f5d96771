//! Crashes: the process ends without a word, and another one goes on with what was stored.
//!
//! The world is the store as well: it takes batches from the core, several perhaps before the first is stored, and stores
//! them in their order, each whole or not at all. With every batch it keeps the model as it was when the batch was taken. After a crash that model is the truth: the new core has to
//! behave as if nothing later had ever happened. And nobody may have been told of anything later: whatever was heard
//! since is checked against it.

use std::collections::{BTreeMap, VecDeque};

use broker::broker::{Broker, ConnectionId};
use broker::codec::QoS;
use broker::journal::{Batch, Lsn};
use broker::metrics::DropReason;

use super::World;
use crate::client::{Heard, Unacknowledged};
use crate::model::Model;

type Dropped = [u64; DropReason::ALL.len()];

/// What a client heard.
#[derive(Debug)]
struct Word {
    id: ConnectionId,
    client_id: String,
    heard: Heard,
    /// The message of its own that this acknowledges.
    message: Option<Unacknowledged>,
}

/// How far the world was when a batch was taken.
#[derive(Debug, Default)]
struct Snapshot {
    model: Model,
    dropped: Dropped,
    /// How much had been heard.
    words: usize,
}

/// What is stored, and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Disk {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    last: Lsn,
    stored: Snapshot,
    taken: VecDeque<(Batch, Snapshot)>,
    words: Vec<Word>,
}

impl Disk {
    /// An empty one, in a world of which nothing is known yet.
    pub(super) fn new(model: &Model) -> Self {
        Self { stored: Snapshot { model: model.clone(), ..Snapshot::default() }, ..Self::default() }
    }

    /// Stores the first `count` of the batches that were taken, and gives them back.
    fn store(&mut self, count: usize) -> Vec<Batch> {
        let mut done = Vec::new();
        for (batch, snapshot) in self.taken.drain(..count) {
            assert!(batch.last() > self.last, "numbers only grow");
            self.last = batch.last();
            batch.apply(&mut self.records);
            self.stored = snapshot;
            done.push(batch);
        }
        done
    }
}

impl World {
    /// Takes a batch if there is one.
    pub(super) fn take_batch(&mut self) {
        if !self.is_stored {
            return;
        }
        if self.random.once_in(4) {
            // A turn in which the server lets it wait.
            self.broker.open_gates();
            self.after_input(None, None);
            return;
        }
        if let Some(batch) = self.broker.poll_journal() {
            assert!(!self.broker.is_fanning_out(), "a batch has all copies of a message or none");
            if self.traces {
                eprintln!("{} batch up to {:?}", self.now.0, batch.last());
            }
            let dropped = self.dropped_now();
            let snapshot = Snapshot { model: self.model.clone(), dropped, words: self.disk.words.len() };
            self.model.coverage.see_if("a batch behind another", !self.disk.taken.is_empty());
            self.disk.taken.push_back((batch, snapshot));
        }
        self.resume_after_store();
        self.after_input(None, None);
    }

    /// Some of the batches that were taken are stored, as one.
    pub(super) fn store_batches(&mut self) {
        if self.disk.taken.is_empty() {
            return;
        }
        let count = 1 + self.random.below(self.disk.taken.len());
        let stored = self.disk.store(count);
        if self.traces {
            eprintln!("{} stored up to {:?}", self.now.0, self.disk.last);
        }
        self.broker.handle_stored(self.now, self.disk.last);
        stored.into_iter().for_each(|batch| self.broker.reuse_batch(batch));
        self.resume_after_store();
        self.after_input(None, None);
    }

    fn resume_after_store(&mut self) {
        let resumed = self.resume();
        self.model.coverage.see_if("read again when the store had caught up", resumed > 0);
    }

    /// Everything is stored that there is, and nothing else.
    pub(super) fn check_stored(&mut self) {
        while self.is_stored && !self.broker.is_stored() {
            self.take_batch();
            self.store_batches();
        }
        if self.is_stored {
            let keys: Vec<&Vec<u8>> = self.disk.records.keys().collect();
            let expected = self.broker.keys_to_be_stored();
            assert_eq!(keys, expected.iter().collect::<Vec<_>>(), "what is stored is what should be");
        }
    }

    fn dropped_now(&self) -> Dropped {
        let mut dropped = self.dropped_before;
        for (sum, more) in dropped.iter_mut().zip(self.broker.metrics().dropped) {
            *sum += more;
        }
        dropped
    }

    /// Notes what a client heard.
    pub(super) fn note_word(&mut self, id: ConnectionId, heard: &Heard) {
        if !self.is_stored {
            return;
        }
        let client = &self.clients[self.connections[&id].client];
        let message = match heard {
            Heard::Puback(packet_id, reason) | Heard::Pubrec(packet_id, reason) if !reason.is_error() => {
                let mut own = client.memory.unacknowledged.iter();
                own.find(|(used, _)| used == packet_id).map(|(_, message)| message.clone())
            }
            _ => None,
        };
        let word = Word { id, client_id: client.id.clone(), heard: heard.clone(), message };
        self.disk.words.push(word);
    }

    /// The process ends. What was not stored is gone; of the batches that were on their way some may have been stored, the
    /// first ones.
    pub(super) fn crash(&mut self) {
        let count = self.random.below(self.disk.taken.len() + 1);
        self.disk.store(count);
        self.disk.taken.clear();
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            if self.random.once_in(2) {
                self.hear_all(id); // Bytes that had left still arrive.
            }
        }
        if self.traces {
            eprintln!("{} crash", self.now.0);
        }
        self.check_words();
        self.connections.clear();
        self.put_off.clear();
        self.sender = None;
        self.model.all_are_copied();
        self.free_slots.clear();
        self.slots = 0;
        self.clients.iter_mut().for_each(|client| client.open.clear());
        let stored = &self.disk.stored;
        self.dropped_before = stored.dropped;
        let model = stored.model.clone();
        let later = std::mem::replace(&mut self.model, model);
        self.model.go_back(later, self.now);
        self.broker = Broker::new(self.broker.options().clone(), self.now);
        let mut restore = self.broker.restore(self.disk.last);
        for (key, value) in &self.disk.records {
            restore.record(key, value).unwrap_or_else(|error| panic!("the store makes sense: {error}"));
        }
        let restored = restore.finish().expect("the store makes sense");
        self.model.coverage.see_if("crash amid the remains of a session", restored.orphans > 0);
        self.disk.words.clear();
        self.disk.stored.words = 0;
        self.model.end_unstored();
        self.model.drop_connections();
        self.after_input(None, None);
        self.broker.check_invariants();
        self.model.coverage.see("crash");
    }

    /// Nobody was told of anything that is not stored.
    fn check_words(&mut self) {
        let Snapshot { model, words, .. } = &self.disk.stored;
        let roomy = self.roomy;
        for word in &self.disk.words[*words..] {
            let Word { id, client_id, heard, message } = word;
            if let Some(message) = message.as_ref().filter(|_| roomy)
                && message.qos > QoS::AtMostOnce
                && !model.has_taken(&message.payload)
            {
                // It is told before it is stored only if everybody who will be there later has it.
                let awaited = self.model.is_awaited(&message.payload, model);
                assert!(!awaited, "{client_id} was told that {message:?} is safe, and it is lost");
                self.model.coverage.see("acknowledged before it was stored");
            }
            model.check_word(*id, client_id, heard);
        }
    }
}
