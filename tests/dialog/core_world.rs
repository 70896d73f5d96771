//! Dialogs against the core alone: no socket, and time passes only when a dialog says so.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IoSlice;

use broker::broker::options::{Durability, Options};
use broker::broker::{Broker, ConnectionId, StoreState};
use broker::clock::{Duration, Instant};
use broker::codec::Inbox;
use broker::config::{self, Command, Config};
use broker::journal::{Batch, Lsn};

use super::script::World;

/// The configuration that a command line of these options gives.
pub(crate) fn configuration(options: &[String]) -> Config {
    let mut arguments: Vec<OsString> = ["-h", "127.0.0.1", "-p", "0"].map(OsString::from).to_vec();
    arguments.extend(options.iter().map(OsString::from));
    match config::parse(arguments) {
        Ok(Command::Run(config)) => *config,
        Ok(_) => panic!("a dialog runs a broker"),
        Err(error) => panic!("the options of a dialog: {error}"),
    }
}

struct Actor {
    id: ConnectionId,
    inbox: Inbox,
    received: Vec<u8>,
    closed: bool,
}

/// What is stored, and the batch that is on its way while the store stalls.
#[derive(Default)]
struct Disk {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    stalls: bool,
    taken: Vec<Batch>,
    last: Lsn,
}

/// The core, and who talks to it.
pub(crate) struct CoreWorld {
    broker: Broker,
    disk: Disk,
    now: Instant,
    actors: BTreeMap<String, Actor>,
    generation: u32,
}

impl CoreWorld {
    /// A core with these command line options.
    pub(crate) fn new(options: &[String]) -> Self {
        Self::with(configuration(options).server.broker)
    }

    /// The same with a store.
    pub(crate) fn stored(options: &[String]) -> Self {
        let options = configuration(options).server.broker;
        Self::with(Options { durability: Durability::BeforeReply, ..options })
    }

    fn with(options: Options) -> Self {
        let now = Instant(1_000);
        let broker = Broker::new(Options { seed: 1, ..options }, now);
        Self { broker, disk: Disk::default(), now, actors: BTreeMap::new(), generation: 0 }
    }

    /// Stores what there is to store, as far as the store can. True if something was.
    fn store(&mut self) -> bool {
        if let Some(batch) = self.broker.poll_journal(self.now) {
            self.disk.taken.push(batch);
        }
        if self.disk.stalls || self.disk.taken.is_empty() {
            return false;
        }
        for batch in self.disk.taken.drain(..) {
            batch.apply(&mut self.disk.records);
            self.disk.last = batch.last();
        }
        self.broker.handle_stored(self.now, self.disk.last);
        true
    }

    fn actor(&mut self, name: &str) -> &mut Actor {
        if !self.actors.contains_key(name) {
            self.generation += 1;
            // A slot of its own for each: reuse is for the simulation.
            let id = ConnectionId { slot: self.generation, generation: self.generation };
            self.broker.handle_open(self.now, id);
            let actor = Actor { id, inbox: Inbox::default(), received: Vec::new(), closed: false };
            self.actors.insert(name.to_owned(), actor);
        }
        self.actors.get_mut(name).expect("just made")
    }

    /// Lets all bytes travel until nothing moves any more.
    fn settle(&mut self) {
        while self.store()
            || self.broker.poll_timeout().is_some_and(|due| due <= self.now)
            || self.broker.dirty_len() > 0
        {
            self.broker.handle_timeout(self.now);
            while let Some(id) = self.broker.poll_flush() {
                self.flush(id);
            }
        }
        while let Some(id) = self.broker.poll_close() {
            self.flush(id);
            self.broker.handle_closed(id);
            if let Some(actor) = self.actors.values_mut().find(|actor| actor.id == id) {
                actor.closed = true;
            }
        }
        while self.broker.poll_event().is_some() {}
        self.broker.check_invariants();
    }

    fn flush(&mut self, id: ConnectionId) {
        let mut bytes = Vec::new();
        if let Some(outbox) = self.broker.outbox(id) {
            let mut slices = [IoSlice::new(&[]); 64];
            let filled = outbox.slices(&mut slices);
            bytes.extend(slices[..filled].iter().flat_map(|slice| slice.iter().copied()));
        }
        self.broker.handle_written(self.now, id, bytes.len(), false);
        if let Some(actor) = self.actors.values_mut().find(|actor| actor.id == id) {
            actor.received.extend(bytes);
        }
    }
}

impl World for CoreWorld {
    fn send(&mut self, name: &str, bytes: &[u8]) {
        let now = self.now;
        let id = self.actor(name).id;
        let Self { broker, actors, .. } = self;
        let inbox = &mut actors.get_mut(name).expect("it exists").inbox;
        let mut input = bytes;
        let mut terms = broker.reading_terms(id);
        while broker.wants_input(id) && broker.handle_next(now, id, &mut terms, inbox, &mut input) {}
        self.settle();
    }

    fn receive(&mut self, name: &str, count: usize) -> Vec<u8> {
        let actor = self.actor(name);
        let count = count.min(actor.received.len());
        actor.received.drain(..count).collect()
    }

    fn is_closed(&mut self, name: &str) -> bool {
        let actor = self.actor(name);
        actor.closed && actor.received.is_empty()
    }

    fn is_open(&mut self, name: &str) -> bool {
        !self.actor(name).closed
    }

    fn cut(&mut self, name: &str) {
        if let Some(actor) = self.actors.remove(name)
            && !actor.closed
        {
            self.broker.handle_lost(self.now, actor.id, false);
            self.settle();
        }
    }

    fn restart(&mut self) {
        self.actors.clear();
        self.disk.taken.clear();
        self.broker = Broker::new(self.broker.options().clone(), self.now);
        let mut restore = self.broker.restore(self.disk.last);
        for (key, value) in &self.disk.records {
            restore.record(key, value).expect("the records fit together");
        }
        restore.finish().expect("the records fit together");
        self.settle();
        let expected: Vec<&Vec<u8>> = self.disk.records.keys().collect();
        let keys = self.broker.keys_to_be_stored();
        assert_eq!(keys.iter().collect::<Vec<_>>(), expected, "what is stored is what should be");
    }

    fn set_store(&mut self, state: &str) {
        self.disk.stalls = state != "works";
        let state = match state {
            "works" | "stalls" => StoreState::Well,
            "full" => StoreState::Full,
            _ => StoreState::Failing,
        };
        self.broker.handle_store_state(self.now, state);
        self.settle();
    }

    fn wait(&mut self, millis: u64) {
        let end = self.now + Duration(millis);
        while let Some(due) = self.broker.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.settle();
        }
        self.now = end;
        self.settle();
    }
}
