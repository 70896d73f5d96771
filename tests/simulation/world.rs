//! A world: the core, simulated connections with fragments and stalls, clients, and time.
//!
//! The world is the shell of the core, as the server is: it feeds packets, flushes outboxes, frees what ended. Every
//! decision follows from the seed.

mod act;
mod crash;
mod hear;
mod request;
mod rest;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;

use broker::broker::event::{FanOutStep, PacketKind};
use broker::broker::options::{Durability, Redirect};
use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Packet, Publish};
use broker::codec::{Inbox, PacketId, Protocol, ReasonCode, decode, frame};
use broker::metrics::DropReason;

use super::client::aliases::Aliases;
use super::client::{Ear, Memory, OTHER_SERVER, bytes_of};
use super::model::Model;
use super::model::coverage::Coverage;
use super::model::link::Asked;
use super::random::Random;
use super::store::{Shelf, Store};
use crash::Storage;

/// Steps after which a world ends that is drained and whose broker never comes back.
const STEPS_DRAINED: usize = 30;

/// What those are told who are sent to another server.
fn redirection(permanently: bool) -> ReasonCode {
    if permanently { ReasonCode::ServerMoved } else { ReasonCode::UseAnotherServer }
}

/// An answer that a client has yet to send.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Puback(PacketId, ReasonCode),
    Pubrec(PacketId, ReasonCode),
    Pubcomp(PacketId),
}

/// One connection: both of its ends.
struct Connection {
    client: usize,
    protocol: Protocol,
    inbox: Inbox,
    /// Bytes on their way to the core.
    to_broker: VecDeque<u8>,
    /// Bytes on their way to the client.
    to_client: VecDeque<u8>,
    ear: Ear,
    connack: bool,
    /// The client reads nothing for now.
    stalled: bool,
    /// A broken connection is not written to any more; the core may not know yet.
    misbehaved: bool,
    /// What a client of 5.0 that broke a rule has to be told.
    violation: Option<ReasonCode>,
    /// Why the core closed it.
    closed: Option<CloseReason>,
    /// The DISCONNECT that came.
    told: Option<ReasonCode>,
    /// The client is gone: it hears nothing of what is still under way.
    deaf: bool,
    answers: VecDeque<Answer>,
    /// Messages of its memory that the client has not sent again yet.
    to_repeat: VecDeque<PacketId>,
    /// Messages at QoS 1 and 2 sent here and not finally acknowledged, and how many there may be.
    under_way: BTreeSet<PacketId>,
    receive_max: usize,
    /// What the client has set.
    aliases: Aliases,
}

impl Connection {
    fn has_quota(&self) -> bool {
        self.under_way.len() < self.receive_max
    }
}

/// A client and its connections, of which the last one is in use.
struct Client {
    id: String,
    memory: Memory,
    messages: u64,
    open: Vec<ConnectionId>,
}

/// A world.
pub(crate) struct World {
    random: Random,
    broker: Broker,
    now: Instant,
    connections: BTreeMap<ConnectionId, Connection>,
    free_slots: Vec<u32>,
    slots: u32,
    generation: u32,
    clients: Vec<Client>,
    model: Model,
    /// Whether the limits are so wide that nothing is ever dropped.
    roomy: bool,
    /// Whether state is stored, and the process may crash.
    is_stored: bool,
    storage: Storage,
    /// Crashes in 200 steps.
    crashes: usize,
    /// What processes before this one had dropped.
    dropped_before: [u64; DropReason::ALL.len()],
    /// Whether clients are sent to another server, which only another process ends.
    is_draining: bool,
    /// Whether members of groups may ask for QoS 0.
    shares_qos_0: bool,
    /// Whether there are groups.
    shares: bool,
    /// A running hash of every byte that the core sent.
    digest: u64,
    /// Whether everything is printed that happens.
    traces: bool,
    /// Whether the core has taken a packet of which the model does not know yet.
    packet_in_hand: bool,
    /// The PUBLISH that the core is taking, and those that it has yet to take because a message to many is under way.
    publish_in_hand: Vec<u8>,
    put_off: BTreeMap<ConnectionId, Vec<u8>>,
    /// Who published the message to many that is under way.
    sender: Option<ConnectionId>,
    /// Whether a request takes several turns at the moment, and whose it is if it breaks a rule.
    request_in_hand: bool,
    violator: Option<ConnectionId>,
    /// Whether the request that came last has been answered.
    is_request_answered: bool,
    /// Whether the process may end between two turns.
    may_crash: bool,
    /// Whether everybody behaves from now on.
    is_at_rest: bool,
}

impl World {
    /// One whose state is stored or not.
    pub(crate) fn new(seed: u64) -> Self {
        Self::make(seed, None)
    }

    /// One whose state is stored by the broker's own store, on a disk that loses its power.
    #[cfg(feature = "persistence")]
    pub(crate) fn on_disk(seed: u64) -> Self {
        Self::make(seed, Some(Box::new(super::store::StoreOnDisk::new(seed))))
    }

    fn make(seed: u64, store: Option<Box<dyn Store>>) -> Self {
        let mut random = Random::new(seed);
        let roomy = random.once_in(2);
        let is_stored = random.once_in(2) || store.is_some();
        let permanently = random.once_in(2);
        let redirect =
            random.once_in(5).then(|| Redirect { server_reference: OTHER_SERVER.into(), permanently });
        let options = Options {
            seed,
            in_flight_max: *random.pick(&[1, 2, 3, 5, 20, 65_535]),
            receive_max: *random.pick(&[2, 5, 1_024, 65_535]),
            topic_alias_max: *random.pick(&[0, 1, 2, 16]),
            keep_alive_secs_max: *random.pick(&[0, 0, 20]),
            packet_size_max: *random.pick(&[3_000, 268_435_455]),
            queued_messages_max: if roomy { 1_000_000 } else { *random.pick(&[0, 1, 3, 10, 100]) },
            queued_bytes_max: if roomy { 1 << 40 } else { *random.pick(&[300, 2_000, 1 << 40]) },
            outbox_bytes_max: *random.pick(&[4_096, 8_192, 65_536]),
            sessions_max: if roomy { 100 } else { *random.pick(&[3, 5, 100]) },
            session_expiry: if random.once_in(3) { None } else { Some(Duration(60_000)) },
            stall_timeout: Duration(5_000),
            steps_per_turn: *random.pick(&[1, 3, 2_000]),
            long_packet_bytes_min: *random.pick(&[0, 30, 64 * 1024]),
            check_payload_format: random.once_in(2),
            handshake_timeout: Duration(5_000),
            redirect,
            sys_interval: None,
            trace_packets: true,
            durability: if is_stored { Durability::BeforeReply } else { Durability::None },
            unstored_bytes_max: *random.pick(&[0, 500, 1 << 20]),
            ..Options::default()
        };
        let now = Instant(random.below(1_000_000) as u64);
        let clients = (0..2 + random.below(5))
            .map(|number| Client {
                id: format!("c{number}"),
                memory: Memory::default(),
                messages: 0,
                open: Vec::new(),
            })
            .collect();
        let shares_qos_0 = !is_stored && random.once_in(5);
        let shares = !is_stored || random.once_in(4);
        let mut model = Model::default();
        if is_stored && shares {
            // Groups are kept apart from crashes, or else what cannot be known is forgiven.
            model.confuse();
        }
        let storage = Storage::new(store.unwrap_or_else(|| Box::new(Shelf::default())), &model);
        Self {
            broker: Broker::new(options, now),
            shares_qos_0,
            shares,
            is_stored,
            storage,
            crashes: *random.pick(&[1, 3, 10]),
            dropped_before: Default::default(),
            is_draining: false,
            random,
            now,
            connections: BTreeMap::new(),
            free_slots: Vec::new(),
            slots: 0,
            generation: 0,
            clients,
            model,
            roomy,
            digest: 0,
            packet_in_hand: false,
            publish_in_hand: Vec::new(),
            sender: None,
            put_off: BTreeMap::new(),
            request_in_hand: false,
            is_request_answered: false,
            may_crash: false,
            violator: None,
            is_at_rest: false,
            traces: std::env::var_os("SIMULATION_TRACE").is_some(),
        }
    }

    /// Lives for so many steps, comes to rest, and checks that nothing is lost and nothing is left.
    pub(crate) fn live(mut self, steps: usize) -> (u64, Coverage) {
        for step in 0..steps {
            if !self.is_stored && step + STEPS_DRAINED == steps {
                self.drain();
            }
            self.step();
        }
        if self.is_draining {
            if !self.is_stored {
                let digest = self.digest;
                return (digest, self.end_drained());
            }
            self.crash();
        }
        self.come_to_rest();
        self.check_retained();
        self.check_lost();
        let digest = self.digest;
        (digest, self.leave())
    }

    fn step(&mut self) {
        let mut leap = self.random.below(40);
        if self.random.once_in(60) {
            let most = *self.random.pick(&[1_000, 3_000, 10_000, 70_000]);
            leap += self.random.below(most);
        }
        self.may_crash = self.is_stored;
        self.advance(Duration(leap as u64));
        self.may_crash = false;
        if self.is_stored {
            match self.random.below(200) {
                0..=59 => self.take_batch(),
                60..=119 => self.store_batches(),
                lot if lot >= 200 - self.crashes => self.crash(),
                _ if self.is_draining && self.random.once_in(10) => self.crash(),
                120 => self.drain(),
                _ => {}
            }
        }
        let client = self.random.below(self.clients.len());
        match self.clients[client].open.last().copied() {
            None => self.connect(client),
            Some(id) => self.act(client, id),
        }
        self.travel(false);
        self.broker.check_invariants();
        if self.broker.is_fanning_out() && self.random.once_in(2) {
            // Its will may have to wait.
            let client = self.random.below(self.clients.len());
            if let Some(id) = self.clients[client].open.last().copied() {
                self.cut(client, id);
            }
        }
        if self.is_stored && self.broker.is_fanning_out() {
            match self.random.below(8) {
                0 => {
                    self.model.coverage.see("crash amid a message to many");
                    self.crash();
                }
                1..=3 => self.take_batch(),
                _ => {}
            }
        }
    }

    /// Has clients sent to another server, if there is one. It takes turns, of which this makes some.
    fn drain(&mut self) {
        if self.is_draining || !self.broker.handle_drain(self.now) {
            return;
        }
        self.is_draining = true;
        for _ in 0..self.random.below(4) {
            self.turn();
        }
        let is_amid = self.is_sending_away();
        self.model.coverage.see_if("amid the sending of clients to another server", is_amid);
    }

    /// Whether some have yet to be sent to another server.
    fn is_sending_away(&self) -> bool {
        self.is_draining && self.broker.metrics().clients_connected > 0
    }

    /// Time passes, and the core is woken as often as it wants to be, or now and then only at the end.
    fn advance(&mut self, span: Duration) {
        let until = self.now + span;
        if !self.random.once_in(4) {
            while let Some(due) = self.broker.poll_timeout().filter(|due| *due < until) {
                self.now = self.now.max(due);
                self.timeout();
            }
        }
        self.now = until;
        self.timeout();
    }

    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        self.connections.get_mut(&id).expect("it is open")
    }

    fn say(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.connection(id).to_broker.extend(bytes);
    }

    fn say_packet(&mut self, id: ConnectionId, packet: &Packet<'_>) {
        let connection = self.connection(id);
        connection.to_broker.extend(bytes_of(packet, connection.protocol));
    }

    /// Opens a connection and says CONNECT; `None` for what a client has no properties for.
    fn open(
        &mut self,
        client: usize,
        protocol: Protocol,
        alias_max: u16,
        packet_size_max: u32,
    ) -> ConnectionId {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.generation += 1;
        let id = ConnectionId { slot, generation: self.generation };
        self.broker.handle_open(self.now, id);
        self.model.coverage.see_if("connection that waits for wills", !self.broker.wants_input(id));
        let connection = Connection {
            client,
            protocol,
            inbox: Inbox::default(),
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            ear: Ear::new(protocol, alias_max, packet_size_max),
            connack: false,
            stalled: false,
            misbehaved: false,
            violation: None,
            closed: None,
            told: None,
            deaf: false,
            answers: VecDeque::new(),
            to_repeat: VecDeque::new(),
            under_way: BTreeSet::new(),
            receive_max: usize::from(u16::MAX),
            aliases: Aliases::default(),
        };
        self.connections.insert(id, connection);
        self.clients[client].open.push(id);
        id
    }

    /// The client ends its connection without a word. What it sent may arrive or not, and what was sent to it as well.
    fn cut(&mut self, client: usize, id: ConnectionId) {
        if self.random.once_in(2) {
            while self.connections.get(&id).is_some_and(|connection| !connection.to_broker.is_empty()) {
                let before = self.connections[&id].to_broker.len();
                self.feed(id, usize::MAX);
                if self.connections.get(&id).is_some_and(|connection| connection.to_broker.len() == before) {
                    break; // It is not read.
                }
            }
        }
        let is_deaf = self.random.once_in(2);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.deaf = is_deaf;
        }
        self.clients[client].open.retain(|open| *open != id);
        self.broker.handle_lost(self.now, id, self.random.once_in(2));
        self.after_input(None, None);
    }

    /// Bytes travel: all of them, or some from and to some connections.
    fn travel(&mut self, all: bool) {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            if all || self.random.once_in(2) {
                let most = if self.random.once_in(4) { 12 } else { 200 };
                let count = if all { usize::MAX } else { 1 + self.random.below(most) };
                self.feed(id, count);
            }
            if all || self.random.once_in(2) {
                self.flush(id, all);
            }
            if all || self.random.once_in(2) {
                self.hear(id);
            }
        }
        // The core names those with new bytes; this world looks at all of them anyway.
        while self.broker.poll_flush().is_some() {}
    }

    /// Has the core take bytes as the server does: put off while the core wants no input.
    fn feed(&mut self, id: ConnectionId, count: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !self.broker.wants_input(id) {
            return;
        }
        let count = count.min(connection.to_broker.len());
        let bytes: Vec<u8> = connection.to_broker.drain(..count).collect();
        let mut input = bytes.as_slice();
        loop {
            let terms = self.broker.reading_terms(id);
            let Some(connection) = self.connections.get_mut(&id) else { return };
            // What the core is about to take.
            let is_kept = !connection.inbox.is_empty();
            let mut is_decoded_later = false;
            let mut inbox = connection.inbox.clone();
            let next = match inbox.next(&mut { input }, terms.protocol, terms.packet_size_max) {
                Ok(Some(frame)) => {
                    let is_long = frame.body.len() >= self.broker.options().long_packet_bytes_min;
                    is_decoded_later = is_kept && is_long && frame.header.is_request();
                    decode::decode(frame, terms.protocol).map(Some)
                }
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            let more = match next {
                Ok(Some(packet)) => {
                    self.packet(id, &packet, &mut input, is_decoded_later);
                    true
                }
                Ok(None) => {
                    self.hand_over(id, &mut input);
                    false
                }
                Err(error) => {
                    let misbehaved = self.connections.get(&id).is_none_or(|connection| connection.misbehaved);
                    assert!(misbehaved, "a good packet is not malformed: {error}");
                    self.hand_over(id, &mut input);
                    self.after_input(None, Some(id));
                    self.find_malformed(id);
                    false
                }
            };
            let wanted = self.broker.wants_input(id);
            if let Some(connection) = self.connections.get_mut(&id).filter(|_| !wanted) {
                connection.inbox.stash(input);
            }
            if !more || !wanted {
                return;
            }
        }
    }

    /// The core takes the next packet of these bytes, behind those that it has kept.
    fn hand_over(&mut self, id: ConnectionId, input: &mut &[u8]) {
        let mut terms = self.broker.reading_terms(id);
        let Self { broker, connections, now, .. } = self;
        if let Some(connection) = connections.get_mut(&id) {
            broker.handle_next(*now, id, &mut terms, &mut connection.inbox, input);
        }
    }

    /// One packet, which is the next one of these bytes, to the core, and the same to the model.
    fn packet(&mut self, id: ConnectionId, packet: &Packet<'_>, input: &mut &[u8], is_decoded_later: bool) {
        let is_request = matches!(packet, Packet::Subscribe(_) | Packet::Unsubscribe(_));
        let others_wait = !self.put_off.is_empty() || !self.model.has_no_will_put_off();
        if is_request && (others_wait || self.is_sending_away()) {
            self.finish_request();
            if !self.connections.contains_key(&id) {
                return;
            }
        }
        let asked = match packet {
            Packet::Connect(connect) => Some(Asked::of(connect, self.now)),
            _ => None,
        };
        let is_connected = self.model.client_id(id).is_some();
        let mut is_violation = self.connections.get(&id).is_none_or(|connection| connection.misbehaved);
        // The core acts on these at once, and its next messages follow from them.
        match packet {
            _ if !is_connected => {}
            Packet::Puback(ack) | Packet::Pubcomp(ack) => self.model.puback_or_pubcomp(id, ack),
            Packet::Pubrec(ack) => self.model.pubrec(id, ack),
            Packet::Disconnect(disconnect) => {
                let is_fine = self.model.disconnect(id, disconnect, self.broker.options());
                if !is_fine {
                    is_violation = true;
                    self.connection(id).violation = Some(ReasonCode::ProtocolError);
                }
            }
            _ => {}
        }
        if let Packet::Publish(_) = packet {
            self.publish_in_hand = bytes_of(packet, self.connections[&id].protocol);
        }
        let is_amid = self.broker.is_fanning_out();
        let is_listing = self.broker.is_listing_sessions();
        self.model
            .coverage
            .see_if("a packet amid a message to groups", self.broker.is_fanning_out_to_groups());
        self.packet_in_hand = true;
        self.is_request_answered = false;
        self.hand_over(id, input);
        self.model.heard_from(id);
        self.after_input(asked.as_ref(), is_violation.then_some(id));
        self.packet_in_hand = false;
        let is_put_off = is_request && self.model.client_id(id).is_some() && !self.is_request_answered;
        if is_put_off && self.find_violation(id, packet) {
            return;
        }
        let takes_turns = is_put_off && self.takes_turns(packet, is_decoded_later);
        self.model.coverage.see_if("request decoded in several turns", takes_turns && is_decoded_later);
        if takes_turns && !self.is_at_rest && self.random.once_in(8) {
            return self.interrupt(id, packet, is_decoded_later);
        }
        if self.model.client_id(id).is_none() {
            return; // Refused, or closed by this very packet: it has no effect.
        }
        self.model.coverage.see_if("a packet amid a message to many", is_amid);
        let is_change = is_listing && is_request;
        self.model.coverage.see_if("a subscription changes while receivers are listed", is_change);
        match packet {
            // The core will say when it takes it.
            Packet::Publish(_) if self.put_off.contains_key(&id) => {}
            Packet::Publish(publish) => self.take_publish(id, publish),
            Packet::Pubrel(ack) => self.model.pubrel(id, ack.packet_id),
            Packet::Subscribe(subscribe) => self.model.subscribe(id, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.model.unsubscribe(id, unsubscribe),
            Packet::Pingreq => self.model.ping(id),
            Packet::Disconnect(_) => panic!("DISCONNECT ends the connection"),
            _ => {}
        }
        if is_put_off {
            self.model.hold_request_reply(id);
        }
        self.note_copies();
        self.model.append_late_replies();
        if is_put_off {
            self.finish_request();
        }
    }

    /// Tells the model what happened, and frees what ended. Only `expected` may be closed as violators.
    fn after_input(&mut self, asked: Option<&Asked>, expected: Option<ConnectionId>) {
        self.model.now = self.now;
        while let Some(event) = self.broker.poll_event() {
            if self.traces {
                eprintln!("{} {event:?}", self.now.0);
            }
            if let Event::Closed { connection, client_id, reason, .. } = &event {
                let is_put_off = self.put_off.contains_key(connection);
                let is_bad = |connection: &Connection| connection.misbehaved;
                let allowed = !reason.is_violation()
                    || expected == Some(*connection)
                    || (is_put_off && self.connections.get(connection).is_some_and(is_bad));
                assert!(allowed, "{connection:?} closed without reason: {reason}");
                if matches!(reason, CloseReason::Redirected { .. }) {
                    assert!(self.is_draining, "nobody is sent away yet");
                    if client_id.is_some() {
                        // Nobody is before a message to many has reached all, and then a will may go to as many.
                        self.all_are_copied();
                    }
                }
                if *reason == CloseReason::Stalled {
                    self.model.coverage.see("stalled reader closed");
                }
                if let Some(connection) = self.connections.get_mut(connection) {
                    connection.closed = Some(*reason);
                }
                // As if it had never left the socket.
                self.put_off.remove(connection);
            }
            assert!(!self.is_draining || !matches!(event, Event::Connected { .. }), "nobody is let in");
            if let Event::FanOut { connection, step } = event {
                self.note_fan_out(connection, step);
            }
            if let Event::Packet { connection, sent: true, kind, .. } = event
                && matches!(kind, PacketKind::Suback | PacketKind::Unsuback)
            {
                self.is_request_answered = true;
                self.model.release_request_reply(connection);
            }
            self.model.event(&event, asked, self.broker.options());
        }
        self.model.check_wills();
        if !self.packet_in_hand {
            self.note_copies();
            self.model.append_late_replies();
        }
        while let Some(id) = self.broker.poll_close() {
            // Last bytes: a CONNACK that says no, answers to what came before the end.
            if !self.connections[&id].deaf {
                self.flush(id, true);
                self.hear_all(id);
                self.check_last_word(id);
            }
            self.model.forget(id);
            self.broker.handle_closed(id);
            if let Some(connection) = self.connections.remove(&id) {
                self.clients[connection.client].open.retain(|open| *open != id);
                self.free_slots.push(id.slot);
            }
        }
    }

    /// The core has put off a PUBLISH, or taken one that it had put off, or one that takes several turns.
    fn note_fan_out(&mut self, id: ConnectionId, step: FanOutStep) {
        match step {
            // It was not ready to be taken, and now it has to wait.
            FanOutStep::PutOff if self.put_off.contains_key(&id) => {
                self.model.coverage.see("PUBLISH put off when it was looked at");
            }
            FanOutStep::PutOff | FanOutStep::LookedAt => {
                let publish = std::mem::take(&mut self.publish_in_hand);
                let other = self.put_off.insert(id, publish);
                assert!(other.is_none(), "its sender is not read meanwhile");
                let what = if step == FanOutStep::PutOff {
                    "PUBLISH put off"
                } else {
                    "PUBLISH looked at in several turns"
                };
                self.model.coverage.see(what);
            }
            FanOutStep::Taken => self.take_put_off(id),
            FanOutStep::Begun => self.sender = Some(id),
        }
    }

    fn take_put_off(&mut self, id: ConnectionId) {
        let bytes = self.put_off.remove(&id).expect("it was put off");
        let protocol = self.connections[&id].protocol;
        let Ok(frame::Split::Complete { frame, .. }) = frame::split(&bytes, protocol, u32::MAX) else {
            panic!("it is whole")
        };
        let Ok(Packet::Publish(publish)) = decode::decode(frame, protocol) else { panic!("it is a PUBLISH") };
        self.take_publish(id, &publish);
    }

    fn take_publish(&mut self, id: ConnectionId, publish: &Publish<'_>) {
        self.model.publish(id, publish, self.sender == Some(id));
    }

    /// The answer to a message to many comes after its last copy, if its sender is still there.
    fn note_copies(&mut self) {
        if !self.broker.is_fanning_out() {
            self.all_are_copied();
        }
    }

    fn all_are_copied(&mut self) {
        self.model.all_are_copied();
        if let Some(sender) = self.sender.take() {
            self.model.release_reply(sender);
        }
    }

    /// A client of 5.0 is told why it is closed, in the last packet of all, and got every answer before
    /// [MQTT5-4.13.1-1] [MQTT5-3.14.4-1] [MQTT5-3.14.0-1].
    fn check_last_word(&mut self, id: ConnectionId) {
        let connection = &self.connections[&id];
        let reason = connection.closed.expect("it is closed");
        let word = match reason {
            _ if !connection.protocol.has_properties() || !connection.connack => None,
            CloseReason::Disconnected(_)
            | CloseReason::ConnectionLost
            | CloseReason::ConnectionFailed
            | CloseReason::HandshakeTimeout => None,
            CloseReason::TakenOver => Some(ReasonCode::SessionTakenOver), // [MQTT5-3.1.4-3]
            CloseReason::KeepAliveTimeout => Some(ReasonCode::KeepAliveTimeout), // [B-101]
            CloseReason::Stalled | CloseReason::OutboxFull => Some(ReasonCode::QuotaExceeded),
            CloseReason::Redirected { permanently } => Some(redirection(permanently)),
            _ => Some(connection.violation.expect("it broke a rule")),
        };
        assert_eq!(connection.told, word, "the code of a DISCONNECT: {reason}");
        let coverage = &mut self.model.coverage;
        coverage.see_if("violation told by its code", word.is_some() && reason.is_violation());
        let is_sent_away = matches!(reason, CloseReason::Redirected { .. }) && connection.connack;
        coverage.see_if("sent to another server", is_sent_away);
        coverage.see_if("receive maximum exceeded", word == Some(ReasonCode::ReceiveMaximumExceeded));
        // An answer that waits for the store is not worth a promise any more.
        if !self.is_stored {
            assert_eq!(self.model.replies_left(id), 0, "every packet was answered before {reason}");
        }
    }

    fn timeout(&mut self) {
        while self.broker.poll_timeout().is_some_and(|due| due <= self.now) {
            self.turn();
            let is_wanted = self.random.once_in(if self.model.has_will_put_off() { 3 } else { 10 });
            if self.is_stored && !self.request_in_hand && is_wanted {
                // What is done in several turns can be in several batches.
                self.take_batch();
                self.store_batches();
                if self.may_crash && self.model.has_will_put_off() {
                    self.crash();
                }
            }
        }
        self.model.now = self.now;
        self.model.check_deadlines();
        assert!(self.model.has_no_will_put_off(), "nothing is on its way that a will could wait for");
        let overdue: Vec<ConnectionId> = self.model.overdue().collect();
        for id in overdue {
            // [MQTT-3.1.2-24] [MQTT5-3.1.2-22]: unless it is us who do not read it.
            assert!(!self.broker.wants_input(id), "{id:?} should have been closed by its keep-alive");
        }
    }

    /// What is due, as far as one turn has time.
    fn turn(&mut self) {
        while self.broker.poll_flush().is_some() {}
        self.broker.handle_timeout(self.now);
        self.resume();
        self.model.now = self.now;
        self.after_input(None, self.violator);
    }

    /// Reads those again whom the core names. Returns how many.
    fn resume(&mut self) -> usize {
        let mut count = 0;
        while let Some(id) = self.broker.poll_resume() {
            self.read_again(id);
            count += 1;
        }
        count
    }

    /// The core reads a client again; its silence was not its own.
    fn read_again(&mut self, id: ConnectionId) {
        self.model.now = self.now;
        self.model.heard_from(id);
    }

    /// Takes bytes out of an outbox: all, or some, or none where the client does not read.
    fn flush(&mut self, id: ConnectionId, all: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let stalled = connection.stalled && !all;
        let limit = if stalled {
            0
        } else if all || !self.random.once_in(3) {
            usize::MAX
        } else {
            self.random.below(300)
        };
        loop {
            let Some(outbox) = self.broker.outbox(id) else { return };
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = outbox.slices(&mut slices);
            let mut bytes: Vec<u8> =
                slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
            let length = bytes.len();
            if length == 0 {
                return;
            }
            bytes.truncate(limit);
            for byte in &bytes {
                self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
            }
            self.connection(id).to_client.extend(&bytes);
            let was_read = self.broker.wants_input(id);
            self.broker.handle_written(self.now, id, bytes.len(), bytes.len() < length);
            if !was_read && self.broker.wants_input(id) {
                self.read_again(id);
            }
            if bytes.len() < length || !all {
                return;
            }
        }
    }
}
