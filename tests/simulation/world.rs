//! A world: the core, simulated connections with fragments and stalls, clients, and time.
//!
//! The world is the shell of the core, as the server is: it feeds packets, flushes outboxes, frees what ended. Every
//! decision follows from the seed.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Connect, Disconnect, Packet, Protocol, Will};
use broker::codec::{Inbox, PacketId, Properties, QoS, ReasonCode, decode, encode};
use broker::metrics::DropReason;

use super::client::{Ear, Heard, Memory, Unacknowledged, ack, bytes_of, publish_bytes};
use super::model::{Asked, Coverage, Model, Published};
use super::random::Random;

const TOPICS: [&str; 6] = ["a", "a/b", "a/b/c", "b", "b/c", "$own/a"];
const FILTERS: [&str; 10] = ["#", "a/#", "+/b", "a/+", "a", "a/b", "b/#", "+", "$own/#", "a/b/c"];

/// One connection: both of its ends.
struct Connection {
    client: usize,
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
    /// Answers that the client has yet to send.
    answers: VecDeque<Vec<u8>>,
    pings: usize,
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
    /// A running hash of every byte that the core sent.
    digest: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let roomy = random.once_in(2);
        let options = Options {
            seed,
            in_flight_max: *random.pick(&[1, 2, 3, 5, 20, 65_535]),
            queued_messages_max: if roomy { 1_000_000 } else { *random.pick(&[0, 1, 3, 10, 100]) },
            queued_bytes_max: if roomy { 1 << 40 } else { *random.pick(&[300, 2_000, 1 << 40]) },
            outbox_bytes_max: *random.pick(&[4_096, 8_192, 65_536]),
            sessions_max: if roomy { 100 } else { *random.pick(&[3, 5, 100]) },
            session_expiry: if random.once_in(3) { None } else { Some(Duration(60_000)) },
            stall_timeout: Duration(5_000),
            handshake_timeout: Duration(5_000),
            sys_interval: None,
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
        Self {
            broker: Broker::new(options, now),
            random,
            now,
            connections: BTreeMap::new(),
            free_slots: Vec::new(),
            slots: 0,
            generation: 0,
            clients,
            model: Model::default(),
            roomy,
            digest: 0,
        }
    }

    /// Lives for so many steps, comes to rest, and checks that nothing is lost and nothing is left.
    pub(crate) fn live(mut self, steps: usize) -> (u64, Coverage) {
        for _ in 0..steps {
            self.step();
        }
        self.come_to_rest();
        self.check_retained();
        self.model.settle();
        let metrics = self.broker.metrics();
        let dropped = metrics.dropped[DropReason::QueueMessagesFull as usize]
            + metrics.dropped[DropReason::QueueBytesFull as usize];
        // Nothing is dropped silently [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-4.5.0-1] [B-045].
        assert!(self.model.lost <= dropped, "{} lost, {dropped} counted as dropped", self.model.lost);
        // A retained message comes after every SUBSCRIBE that matches it [MQTT-3.3.1-6].
        let dropped_at_most_once = metrics.dropped[DropReason::OutboxFull as usize];
        assert!(self.model.lost_at_most_once <= dropped_at_most_once, "a retained message did not come");
        assert!(!self.roomy || self.model.lost == 0, "nothing may be lost with so much room");
        if dropped > 0 {
            self.model.coverage.see("queue full");
        }
        let digest = self.digest;
        (digest, self.leave())
    }

    fn step(&mut self) {
        self.now = self.now + Duration(self.random.below(40) as u64);
        if self.random.once_in(60) {
            let leap = *self.random.pick(&[1_000, 3_000, 10_000, 70_000]);
            self.now = self.now + Duration(self.random.below(leap) as u64);
        }
        self.timeout();
        let client = self.random.below(self.clients.len());
        match self.clients[client].open.last().copied() {
            None => self.connect(client),
            Some(id) => self.act(client, id),
        }
        self.travel(false);
        self.broker.check_invariants();
    }

    /// One thing that a connected client does.
    fn act(&mut self, client: usize, id: ConnectionId) {
        if self.connections[&id].misbehaved {
            return self.cut(client, id);
        }
        match self.random.below(100) {
            0..=39 => self.publish(client, id),
            40..=54 => self.subscribe(id),
            55..=59 => {
                let filter = *self.random.pick(&FILTERS);
                let mut bytes = Vec::new();
                encode::unsubscribe(
                    &mut bytes,
                    Protocol::Mqtt311,
                    PacketId::FIRST,
                    Properties::NONE,
                    &[filter],
                );
                self.say(id, &bytes);
            }
            60..=79 => self.answer(id),
            80..=84 => {
                self.connection(id).pings += 1;
                self.say(id, &bytes_of(&Packet::Pingreq));
            }
            85..=87 => {
                let stalled = &mut self.connection(id).stalled;
                *stalled = !*stalled;
            }
            88..=90 => {
                self.say(id, &bytes_of(&Packet::Disconnect(Disconnect::NORMAL)));
                self.connection(id).misbehaved = true;
            }
            91..=93 => self.cut(client, id),
            94..=95 => self.connect(client), // Takes over its own older connection.
            96 => {
                // Half a packet and then nothing more.
                self.say(id, &[0x30, 0x40, 0, 1]);
                self.connection(id).misbehaved = true;
            }
            97 => {
                let violation: &[u8] = self.random.pick::<&[u8]>(&[
                    &[0x00, 0x00],
                    &[0xD0, 0x00],
                    &[0x30, 0x03, 0, 1, b'#'],
                    &[0x10, 0x00],
                ]);
                self.say(id, violation);
                self.connection(id).misbehaved = true;
            }
            _ => {
                // An answer that nobody waits for.
                self.say(id, &bytes_of(&Packet::Pubrel(ack(PacketId::new(60_000).expect("not 0")))));
            }
        }
    }

    fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        self.connections.get_mut(&id).expect("it is open")
    }

    fn say(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.connection(id).to_broker.extend(bytes);
    }

    fn connect(&mut self, client: usize) {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.generation += 1;
        let id = ConnectionId { slot, generation: self.generation };
        self.broker.handle_open(self.now, id);
        let connection = Connection {
            client,
            inbox: Inbox::default(),
            to_broker: VecDeque::new(),
            to_client: VecDeque::new(),
            ear: Ear::default(),
            connack: false,
            stalled: false,
            misbehaved: false,
            answers: VecDeque::new(),
            pings: 0,
        };
        self.connections.insert(id, connection);
        let clean_start = self.random.once_in(4);
        let keep_alive_secs = *self.random.pick(&[0, 0, 1, 2, 30]);
        let has_will = self.random.once_in(3);
        let qos = QoS::new(self.random.below(3) as u8).expect("below 3");
        let (topic, retain) = (*self.random.pick(&TOPICS), self.random.once_in(3));
        let client = &mut self.clients[client];
        client.messages += 1;
        client.open.push(id);
        let payload = format!("w{} {}", client.id, client.messages);
        let will = Will { topic, payload: payload.as_bytes(), qos, retain, properties: Properties::NONE };
        let connect = Connect {
            protocol: Protocol::Mqtt311,
            clean_start,
            keep_alive_secs,
            properties: Properties::NONE,
            client_id: &client.id.clone(),
            will: has_will.then_some(will),
            username: None,
            password: None,
        };
        let bytes = bytes_of(&Packet::Connect(connect));
        self.say(id, &bytes);
    }

    fn publish(&mut self, client: usize, id: ConnectionId) {
        let qos = QoS::new(self.random.below(3) as u8).expect("below 3");
        let topic = (*self.random.pick(&TOPICS)).to_owned();
        let retain = self.random.once_in(4);
        let connection = &self.connections[&id];
        // Before its CONNACK a client does not know whether its session is there.
        if !connection.connack {
            return;
        }
        let client = &mut self.clients[client];
        if client.memory.unacknowledged.len() >= 20 {
            return;
        }
        client.messages += 1;
        let filling =
            if self.random.once_in(8) { "x".repeat(self.random.below(1_500)) } else { String::new() };
        let payload = if retain && self.random.once_in(4) {
            String::new()
        } else {
            format!("{} {} {filling}", client.id, client.messages)
        };
        // An empty payload names nobody, so it is published where the model need not tell publishers apart.
        let qos = if payload.is_empty() { QoS::AtMostOnce } else { qos };
        let message = Unacknowledged { topic, payload, qos, retain, received: false };
        let packet_id = (qos > QoS::AtMostOnce).then(|| client.memory.packet_id());
        if let Some(packet_id) = packet_id {
            client.memory.unacknowledged.push_back((packet_id, message.clone()));
        }
        self.say(id, &publish_bytes(packet_id, &message, false));
        if qos == QoS::ExactlyOnce && self.random.once_in(10) {
            // Repeated before it was answered: tolerated, and taken once.
            self.say(id, &publish_bytes(packet_id, &message, true));
        }
    }

    fn subscribe(&mut self, id: ConnectionId) {
        let mut requests = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let qos = QoS::new(self.random.below(3) as u8).expect("below 3");
            requests.push((*self.random.pick(&FILTERS), qos.into()));
        }
        let mut bytes = Vec::new();
        encode::subscribe(&mut bytes, Protocol::Mqtt311, PacketId::FIRST, Properties::NONE, &requests);
        self.say(id, &bytes);
    }

    /// Sends some of the answers that are due, now and then not in order.
    fn answer(&mut self, id: ConnectionId) {
        let count = self.random.below(6);
        let shuffled = self.random.once_in(5);
        for _ in 0..count {
            let left = self.connections[&id].answers.len();
            if left == 0 {
                return;
            }
            let at = if shuffled { self.random.below(left) } else { 0 };
            let bytes = self.connection(id).answers.remove(at).expect("one is left");
            self.say_answer(id, &bytes);
        }
    }

    fn say_answer(&mut self, id: ConnectionId, bytes: &[u8]) {
        let first = bytes[0] >> 4;
        let packet_id = PacketId::new(u16::from_be_bytes([bytes[2], bytes[3]])).expect("not 0");
        let client = self.connections[&id].client;
        if first == 4 || first == 7 {
            self.clients[client].memory.outstanding.remove(&packet_id);
        }
        self.say(id, bytes);
    }

    /// The client ends its connection without a word. What it sent may arrive or not.
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
        self.clients[client].open.retain(|open| *open != id);
        self.broker.handle_lost(self.now, id, self.random.once_in(2));
        self.after_input(None, &[]);
    }

    /// Bytes travel: all of them, or some from and to some connections.
    fn travel(&mut self, all: bool) {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            if all || self.random.once_in(2) {
                let count = if all { usize::MAX } else { 1 + self.random.below(200) };
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

    /// Hands bytes to the core as the server does: split, decoded, put off while the core wants no input.
    fn feed(&mut self, id: ConnectionId, count: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !self.broker.wants_input(id) {
            return;
        }
        let count = count.min(connection.to_broker.len());
        let bytes: Vec<u8> = connection.to_broker.drain(..count).collect();
        let mut input = bytes.as_slice();
        loop {
            let (protocol, packet_size_max) = self.broker.reading_terms(id);
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let mut inbox = std::mem::take(&mut connection.inbox);
            let next = match inbox.next(&mut input, protocol, packet_size_max) {
                Ok(Some(frame)) => decode::decode(frame, Protocol::Mqtt311).map(Some),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            let more = match next {
                Ok(Some(packet)) => {
                    self.packet(id, &packet);
                    true
                }
                Ok(None) => false,
                Err(error) => {
                    let misbehaved = self.connections.get(&id).is_none_or(|connection| connection.misbehaved);
                    assert!(misbehaved, "a good packet is not malformed: {error}");
                    self.broker.handle_malformed(self.now, id, error, None);
                    self.after_input(None, &[id]);
                    false
                }
            };
            let wanted = self.broker.wants_input(id);
            if !wanted {
                inbox.stash(input);
            }
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.inbox = inbox;
            }
            if !more || !wanted {
                return;
            }
        }
    }

    /// One packet to the core, and the same to the model.
    fn packet(&mut self, id: ConnectionId, packet: &Packet<'_>) {
        let asked = match packet {
            Packet::Connect(connect) => Some(Asked {
                client_id: connect.client_id.to_owned(),
                clean: connect.clean_start,
                keep_alive_secs: connect.keep_alive_secs,
                will: connect.will.map(|will| published(will.topic, will.payload, will.qos, will.retain)),
            }),
            _ => None,
        };
        self.broker.handle_packet(self.now, id, *packet);
        let expected: &[ConnectionId] = match packet {
            Packet::Disconnect(_) => &[id],
            _ if self.connections.get(&id).is_none_or(|connection| connection.misbehaved) => &[id],
            _ => &[],
        };
        self.model.heard_from(id, self.now);
        self.after_input(asked.as_ref(), expected);
        if self.model.client_id(id).is_none() {
            return; // Refused, or closed by this very packet: it has no effect.
        }
        match packet {
            Packet::Publish(publish) => {
                let message = published(publish.topic, publish.payload, publish.qos, publish.retain);
                self.model.publish(id, publish.packet_id, &message);
            }
            Packet::Pubrel(ack) => self.model.release(id, ack.packet_id),
            Packet::Subscribe(subscribe) => {
                for request in subscribe.requests {
                    self.model.subscribe(id, request.filter, request.options.qos);
                }
            }
            Packet::Unsubscribe(unsubscribe) => {
                for filter in unsubscribe.filters {
                    self.model.unsubscribe(id, filter);
                }
            }
            _ => {}
        }
    }

    /// Tells the model what happened, and frees what ended. Only `expected` may be closed as violators.
    fn after_input(&mut self, asked: Option<&Asked>, expected: &[ConnectionId]) {
        while let Some(event) = self.broker.poll_event() {
            if let Event::Closed { connection, reason, .. } = &event {
                let allowed = !reason.is_violation() || expected.contains(connection);
                assert!(allowed, "{connection:?} closed without reason: {reason}");
                if *reason == CloseReason::Stalled {
                    self.model.coverage.see("stalled reader closed");
                }
            }
            self.model.event(&event, asked, self.now);
        }
        while let Some(id) = self.broker.poll_close() {
            // Last bytes: a CONNACK that says no, answers to what came before the end.
            self.flush(id, true);
            self.hear_all(id);
            self.broker.handle_closed(id);
            if let Some(connection) = self.connections.remove(&id) {
                self.clients[connection.client].open.retain(|open| *open != id);
                self.free_slots.push(id.slot);
            }
        }
    }

    fn timeout(&mut self) {
        while self.broker.poll_timeout().is_some_and(|due| due <= self.now) {
            while self.broker.poll_flush().is_some() {}
            self.broker.handle_timeout(self.now);
            self.after_input(None, &[]);
        }
        let overdue: Vec<ConnectionId> = self.model.overdue(self.now).collect();
        for id in overdue {
            // [MQTT-3.1.2-24]: unless it is us who do not read it.
            assert!(!self.broker.wants_input(id), "{id:?} should have been closed by its keep-alive");
        }
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
            self.broker.handle_written(self.now, id, bytes.len(), bytes.len() < length);
            if bytes.len() < length || !all {
                return;
            }
        }
    }

    fn hear(&mut self, id: ConnectionId) {
        if self.connections.get(&id).is_some_and(|connection| !connection.stalled) {
            self.hear_all(id);
        }
    }

    /// The client takes in what has arrived, and notes what it has to answer.
    fn hear_all(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let bytes: Vec<u8> = connection.to_client.drain(..).collect();
        for heard in connection.ear.hear(&bytes) {
            self.take_in(id, &heard);
        }
    }

    fn take_in(&mut self, id: ConnectionId, heard: &Heard) {
        let Self { connections, clients, model, .. } = self;
        let connection = connections.get_mut(&id).expect("it hears");
        let client = &mut clients[connection.client];
        let memory = &mut client.memory;
        // What comes late on a connection whose session has gone on elsewhere is not for its memory.
        let current = model.is_current(&client.id, id);
        if let Heard::Connack { reason, .. } = heard {
            assert!(!connection.connack, "CONNACK comes once");
            if *reason != ReasonCode::Success {
                model.coverage.see("refused");
                return;
            }
            connection.connack = true;
            if !current {
                return;
            }
            memory.join(model.incarnation(id));
            // What is said behind half a packet would be taken for its rest.
            if connection.misbehaved {
                return;
            }
            // [MQTT-4.4.0-1]
            for (packet_id, message) in &memory.unacknowledged {
                connection.to_broker.extend(if message.received {
                    bytes_of(&Packet::Pubrel(ack(*packet_id)))
                } else {
                    publish_bytes(Some(*packet_id), message, true)
                });
            }
            return;
        }
        assert!(connection.connack, "CONNACK comes first [MQTT-3.2.0-1]");
        match heard {
            Heard::Publish { packet_id: None, topic, payload, .. } => {
                if !payload.is_empty() {
                    model.delivered(id, &client.id, heard, false);
                }
                assert!(!topic.is_empty());
            }
            Heard::Publish { packet_id: Some(packet_id), payload, qos, .. } if current => {
                if let Some(other) = memory.outstanding.get(packet_id) {
                    assert_eq!(other, payload, "identifier {packet_id} is in use [MQTT-2.3.1-4]");
                }
                let known = memory.outstanding.insert(*packet_id, payload.clone()).is_some();
                let answer = if *qos == QoS::AtLeastOnce {
                    Packet::Puback(ack(*packet_id))
                } else {
                    Packet::Pubrec(ack(*packet_id))
                };
                connection.answers.push_back(bytes_of(&answer));
                let repeated = match qos {
                    QoS::ExactlyOnce => !memory.receipts.insert(*packet_id),
                    _ => known,
                };
                model.delivered(id, &client.id, heard, repeated);
            }
            Heard::Pubrel(packet_id) if current => {
                memory.receipts.remove(packet_id);
                connection.answers.push_back(bytes_of(&Packet::Pubcomp(ack(*packet_id))));
            }
            Heard::Puback(packet_id) | Heard::Pubcomp(packet_id) if current => {
                memory.unacknowledged.retain(|(used, _)| used != packet_id);
            }
            Heard::Pubrec(packet_id) if current => {
                for (used, message) in &mut memory.unacknowledged {
                    message.received |= used == packet_id;
                }
                if !connection.misbehaved {
                    connection.to_broker.extend(bytes_of(&Packet::Pubrel(ack(*packet_id))));
                }
            }
            Heard::Pingresp => {
                assert!(connection.pings > 0, "PINGRESP answers a PINGREQ");
                connection.pings -= 1;
            }
            Heard::Suback(_, reasons) => {
                assert!(reasons.iter().all(|reason| *reason <= 2), "every filter is granted [MQTT-3.8.4-5]");
            }
            _ => {}
        }
        let in_flight_max = usize::from(self.broker.options().in_flight_max);
        assert!(memory.outstanding.len() <= in_flight_max, "{}: more in flight than allowed", client.id);
    }

    /// Everybody behaves, everything arrives, every stored session gets what waits for it.
    fn come_to_rest(&mut self) {
        let open: Vec<(usize, ConnectionId)> =
            self.connections.iter().map(|(id, connection)| (connection.client, *id)).collect();
        for (client, id) in open {
            self.cut(client, id);
        }
        for client in 0..self.clients.len() {
            self.come_back(client);
        }
        let mut rounds = 0;
        while self.is_busy() {
            rounds += 1;
            assert!(rounds < 100_000, "the world comes to rest");
            self.now = self.now + Duration(1);
            self.timeout();
            let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
            for id in ids {
                while let Some(bytes) =
                    self.connections.get_mut(&id).and_then(|connection| connection.answers.pop_front())
                {
                    self.say_answer(id, &bytes);
                }
            }
            self.travel(true);
        }
        self.broker.check_invariants();
        // Those that were refused for want of room have nobody to answer them.
        for client in self.clients.iter().filter(|client| !client.open.is_empty()) {
            assert!(client.memory.unacknowledged.is_empty(), "{}: not every message was answered", client.id);
            assert!(client.memory.outstanding.is_empty() && client.memory.receipts.is_empty());
        }
        for connection in self.connections.values() {
            assert_eq!(connection.pings, 0, "every PINGREQ was answered [MQTT-3.12.4-1]");
        }
    }

    /// Connects with the stored session, if there is one, without keep-alive and will.
    fn come_back(&mut self, client: usize) {
        self.connect(client);
        let id = *self.clients[client].open.last().expect("just opened");
        let client_id = self.clients[client].id.clone();
        let clean_start = !self.model.stored_sessions().contains(&client_id);
        let connect = Connect {
            protocol: Protocol::Mqtt311,
            clean_start,
            keep_alive_secs: 0,
            properties: Properties::NONE,
            client_id: &client_id,
            will: None,
            username: None,
            password: None,
        };
        self.connection(id).to_broker = bytes_of(&Packet::Connect(connect)).into();
    }

    fn is_busy(&self) -> bool {
        self.connections.iter().any(|(id, connection)| {
            !connection.connack
                || !connection.to_broker.is_empty()
                || !connection.to_client.is_empty()
                || !connection.answers.is_empty()
                || !connection.inbox.is_empty()
                || self.broker.outbox(*id).is_some_and(|outbox| !outbox.is_empty())
        }) || self.broker.metrics().queued_messages > 0
            || self.broker.poll_timeout().is_some_and(|due| due <= self.now)
    }

    /// A new subscriber gets exactly what is retained [MQTT-3.3.1-6] [MQTT-3.3.1-8].
    fn check_retained(&mut self) {
        let mut expected: BTreeMap<String, String> = self
            .model
            .retained()
            .iter()
            .map(|(topic, (payload, _))| (topic.clone(), payload.clone()))
            .collect();
        assert_eq!(self.broker.status().retained_messages, expected.len());
        expected.retain(|topic, _| !topic.starts_with('$'));
        if self.broker.status().sessions >= self.broker.options().sessions_max as usize {
            return; // No room for one more client.
        }
        self.clients.push(Client {
            id: "probe".into(),
            memory: Memory::default(),
            messages: 0,
            open: Vec::new(),
        });
        let client = self.clients.len() - 1;
        self.come_back(client);
        let id = *self.clients[client].open.last().expect("just opened");
        let mut bytes = Vec::new();
        encode::subscribe(
            &mut bytes,
            Protocol::Mqtt311,
            PacketId::FIRST,
            Properties::NONE,
            &[("#", QoS::ExactlyOnce.into())],
        );
        self.say(id, &bytes);
        let mut found = BTreeMap::new();
        for _ in 0..10_000 {
            self.timeout();
            while let Some(bytes) = self.connection(id).answers.pop_front() {
                self.say_answer(id, &bytes);
            }
            self.feed(id, usize::MAX);
            self.flush(id, true);
            let bytes: Vec<u8> = self.connection(id).to_client.drain(..).collect();
            let heard = self.connection(id).ear.hear(&bytes);
            for heard in heard {
                if let Heard::Publish { topic, payload, retain, .. } = &heard {
                    assert!(*retain, "nobody publishes now");
                    assert_eq!(found.insert(topic.clone(), payload.clone()), None, "each topic once");
                }
                self.take_in(id, &heard);
            }
            if !self.is_busy() {
                break;
            }
        }
        assert_eq!(found, expected);
    }

    /// Everybody leaves; once their sessions have expired nothing may be left but retained messages.
    fn leave(mut self) -> Coverage {
        let open: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in open {
            self.say(id, &bytes_of(&Packet::Disconnect(Disconnect::NORMAL)));
            self.feed(id, usize::MAX);
        }
        self.now = self.now + Duration(100_000);
        self.timeout();
        self.broker.check_invariants();
        let status = self.broker.status();
        let metrics = self.broker.metrics();
        assert_eq!(self.broker.connections(), 0, "no connection is left");
        assert_eq!((metrics.clients_connected, metrics.outbox_bytes, metrics.outbox_packets), (0, 0, 0));
        if self.broker.options().session_expiry.is_some() {
            assert_eq!((status.sessions, status.subscriptions, self.broker.timers_armed()), (0, 0, 0));
            assert_eq!((metrics.queued_messages, metrics.in_flight_messages), (0, 0));
            assert_eq!(status.message_bytes, status.retained_bytes, "every message is gone");
        }
        self.model.coverage
    }
}

fn published(topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Published {
    let payload = String::from_utf8(payload.to_vec()).expect("payloads are texts here");
    let publisher = payload.split(' ').next().unwrap_or_default().to_owned();
    Published { publisher, topic: topic.to_owned(), payload, qos, retain }
}
