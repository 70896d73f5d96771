//! Dialogs against the core alone: no socket, and time passes only when a dialog says so.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IoSlice;

use broker::broker::{Broker, ConnectionId};
use broker::clock::{Duration, Instant};
use broker::codec::{Inbox, Packet, decode};
use broker::config::{self, Command, Config};

use super::script::World;

/// The configuration that a command line of these options gives.
pub(crate) fn configuration(options: &[String]) -> Config {
    let mut arguments: Vec<OsString> = ["-h", "127.0.0.1", "-p", "0"].map(OsString::from).to_vec();
    arguments.extend(options.iter().map(OsString::from));
    match config::parse(arguments) {
        Ok(Command::Run(config)) => *config,
        Ok(Command::Print(_) | Command::MakeVerifier(_)) => panic!("a dialog runs a broker"),
        Err(error) => panic!("the options of a dialog: {error}"),
    }
}

struct Actor {
    id: ConnectionId,
    inbox: Inbox,
    received: Vec<u8>,
    closed: bool,
}

/// The core, and who talks to it.
pub(crate) struct CoreWorld {
    broker: Broker,
    now: Instant,
    actors: BTreeMap<String, Actor>,
    generation: u32,
}

impl CoreWorld {
    /// A core with these command line options.
    pub(crate) fn new(options: &[String]) -> Self {
        let mut options = configuration(options).server.broker;
        options.seed = 1;
        let now = Instant(1_000);
        Self { broker: Broker::new(options, now), now, actors: BTreeMap::new(), generation: 0 }
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
        while self.broker.poll_timeout().is_some_and(|due| due <= self.now) || self.broker.dirty_len() > 0 {
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
        let (mut protocol, mut packet_size_max) = broker.reading_terms(id);
        while broker.wants_input(id) {
            match inbox.next(&mut input, protocol, packet_size_max) {
                Ok(None) => break,
                Ok(Some(frame)) => match decode::decode(frame, protocol) {
                    Ok(packet) => {
                        broker.handle_packet(now, id, packet);
                        if matches!(packet, Packet::Connect(_)) {
                            (protocol, packet_size_max) = broker.reading_terms(id);
                        }
                    }
                    Err(error) => broker.handle_malformed(now, id, error, frame.claimed_protocol()),
                },
                Err(error) => broker.handle_malformed(now, id, error, None),
            }
        }
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
