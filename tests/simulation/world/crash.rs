//! Crashes: the process ends without a word, and another one goes on with what was stored.
//!
//! The world takes batches from the core, several perhaps before the first is stored, and hands them to a store. With every
//! batch it keeps the model as it was when the batch was taken. After a crash the store says how far it came: at least to
//! what it had reported, and to the end of a batch. The model of that batch is the truth: the new core has to behave as if
//! nothing later had ever happened. And nobody may have been told of anything later: whatever was heard since is checked
//! against it.

use std::collections::VecDeque;

use broker::broker::{Broker, ConnectionId};
use broker::codec::QoS;
use broker::journal::{Batch, Lsn};
use broker::metrics::DropReason;

use super::World;
use crate::client::{Heard, Unacknowledged};
use crate::model::Model;
use crate::store::{Found, Store};

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
pub(super) struct Storage {
    store: Box<dyn Store>,
    last: Lsn,
    stored: Snapshot,
    /// How far the world was with each batch that was taken and is not stored, by the last number of it.
    taken: VecDeque<(Lsn, Snapshot)>,
    words: Vec<Word>,
}

impl Storage {
    /// An empty one, in a world of which nothing is known yet.
    pub(super) fn new(store: Box<dyn Store>, model: &Model) -> Self {
        Self {
            store,
            last: Lsn::NONE,
            stored: Snapshot { model: model.clone(), ..Snapshot::default() },
            taken: VecDeque::new(),
            words: Vec::new(),
        }
    }

    fn commit(&mut self, batch: Batch, snapshot: Snapshot) {
        let before = self.taken.back().map_or(self.last, |(last, _)| *last);
        assert!(batch.last() > before, "numbers only grow");
        self.taken.push_back((batch.last(), snapshot));
        self.store.commit(batch);
    }

    /// Everything is stored up to this number, and nothing behind it.
    fn settle(&mut self, last: Lsn) {
        assert!(last >= self.last, "what was stored up to {:?} is there up to {last:?} only", self.last);
        while let Some((number, snapshot)) = self.taken.pop_front_if(|(number, _)| *number <= last) {
            (self.last, self.stored) = (number, snapshot);
        }
        assert_eq!(self.last, last, "a batch is stored whole or not at all");
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
        if let Some(batch) = self.broker.poll_journal(self.now) {
            assert!(!self.broker.is_fanning_out(), "a batch has all copies of a message or none");
            if self.traces {
                eprintln!("{} batch up to {:?}", self.now.0, batch.last());
            }
            let dropped = self.dropped_now();
            let snapshot = Snapshot { model: self.model.clone(), dropped, words: self.storage.words.len() };
            self.model.coverage.see_if("a batch behind another", !self.storage.taken.is_empty());
            self.storage.commit(batch, snapshot);
        }
        self.resume_after_store();
        self.after_input(None, None);
    }

    /// Some of the batches that were taken are stored, as one, unless the store has trouble.
    pub(super) fn store_batches(&mut self) {
        if self.storage.taken.is_empty() {
            return;
        }
        let Self { storage, random, model, .. } = self;
        let stored = storage.store.work(random, &mut model.coverage);
        let Some(last) = stored.last().map(Batch::last) else { return };
        storage.settle(last);
        if self.traces {
            eprintln!("{} stored up to {last:?}", self.now.0);
        }
        self.broker.handle_stored(self.now, last);
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
            let records = self.storage.store.records();
            let keys: Vec<Vec<u8>> = records.into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, self.broker.keys_to_be_stored(), "what is stored is what should be");
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
        self.storage.words.push(word);
    }

    /// The process ends. What was not stored is gone; of the batches that were on their way some may have been stored, the
    /// first ones.
    pub(super) fn crash(&mut self) {
        let Self { storage, random, model, .. } = self;
        let Found { last, records } = storage.store.crash(random, &mut model.coverage);
        model.coverage.see_if("stored, and nobody was told", last > storage.last);
        storage.settle(last);
        storage.taken.clear();
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            if self.random.once_in(2) {
                self.hear_all(id); // Bytes that had left still arrive.
            }
        }
        if self.traces {
            eprintln!("{} crash, all is there up to {last:?}", self.now.0);
        }
        self.check_words();
        self.connections.clear();
        self.put_off.clear();
        self.sender = None;
        self.is_draining = false;
        self.model.all_are_copied();
        self.free_slots.clear();
        self.slots = 0;
        self.clients.iter_mut().for_each(|client| client.open.clear());
        let stored = &self.storage.stored;
        self.dropped_before = stored.dropped;
        let model = stored.model.clone();
        let later = std::mem::replace(&mut self.model, model);
        self.model.go_back(later, self.now);
        self.broker = Broker::new(self.broker.options().clone(), self.now);
        let mut restore = self.broker.restore(last);
        for (key, value) in &records {
            restore.record(key, value).unwrap_or_else(|error| panic!("the store makes sense: {error}"));
        }
        let restored = restore.finish().expect("the store makes sense");
        self.model.coverage.see_if("crash amid the remains of a session", restored.orphans > 0);
        self.storage.words.clear();
        self.storage.stored.words = 0;
        self.model.end_unstored();
        self.model.drop_connections();
        self.after_input(None, None);
        self.broker.check_invariants();
        self.model.coverage.see("crash");
    }

    /// Nobody was told of anything that is not stored.
    fn check_words(&mut self) {
        let Snapshot { model, words, .. } = &self.storage.stored;
        let roomy = self.roomy;
        for word in &self.storage.words[*words..] {
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
