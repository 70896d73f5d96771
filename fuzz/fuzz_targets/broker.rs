//! Operations of a few clients of all versions on the core, well-formed packets and any bytes, with every invariant
//! checked after each. What comes out is read as the clients would read it. In half of the worlds state is stored, and the
//! process may end at any time and go on with what was.

#![no_main]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;

use broker::broker::options::{Durability, Redirect};
use broker::broker::{AuthenticationStep, Broker, ConnectionId, Options, StoreState, Verdict};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{
    Ack, Auth, Connect, Disconnect, Packet, Publish, QoS, RetainHandling, SubscriptionOptions, Will,
};
use broker::codec::property::PropertyList;
use broker::codec::{Inbox, PacketId, Properties, Property, Protocol, ReasonCode, decode, encode};
use broker::journal::{Batch, Lsn};
use libfuzzer_sys::fuzz_target;

const CLIENTS: usize = 4;

/// The one method of authentication.
const METHOD: &str = "m";

/// What says which operations are to be done, byte by byte; zeros once it is used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    fn qos(&mut self) -> QoS {
        self.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
    }

    fn packet_id(&mut self) -> PacketId {
        PacketId::new(1 + u16::from(self.byte() % 8)).expect("not 0")
    }

    fn topic(&mut self) -> &'static str {
        self.pick(&["a", "a/b", "b", "a/b/c", "a/b/longer", "a/c/longer", "$t", "$share/a"])
    }

    /// Some of the properties, in their order.
    fn some(&mut self, properties: &[Property<'_>]) -> PropertyList {
        let chosen = self.byte();
        let is_chosen = |number: usize| chosen >> number & 1 != 0;
        (0..)
            .zip(properties)
            .filter(|(number, _)| is_chosen(*number))
            .map(|(_, property)| *property)
            .collect()
    }
}

/// What a client knows of its connection.
#[derive(Default)]
struct Peer {
    /// As its first packet says.
    protocol: Option<Protocol>,
    packet_size_max: u32,
    window: usize,
    alias_max: u16,
    has_method: bool,
    inbox: Inbox,
    is_connected: bool,
    /// The server has said its last word.
    is_over: bool,
    aliases: BTreeSet<u16>,
    /// Messages at QoS 1 and 2 that it has read and not finally acknowledged.
    open: BTreeSet<PacketId>,
    /// What it acknowledged before it read it, or for nothing.
    acknowledged_early: BTreeSet<PacketId>,
    /// What it would answer to all it has read.
    answers: Vec<u8>,
}

impl Peer {
    /// Takes note of the first packet, whether it is any good or not.
    fn begins(&mut self, claimed: Option<Protocol>) {
        if self.protocol.is_none() {
            self.protocol = Some(claimed.unwrap_or_default());
            (self.packet_size_max, self.window) = (u32::MAX, usize::from(u16::MAX));
        }
    }

    /// Takes note of what is handed to the server.
    fn sends(&mut self, packet: &Packet<'_>, is_first: bool) {
        match packet {
            Packet::Connect(connect) if is_first => {
                for property in connect.properties {
                    match property {
                        Property::MaximumPacketSize(maximum) => self.packet_size_max = maximum,
                        Property::ReceiveMaximum(maximum) => self.window = maximum.into(),
                        Property::TopicAliasMaximum(maximum) => self.alias_max = maximum,
                        Property::AuthenticationMethod(_) => self.has_method = true,
                        _ => {}
                    }
                }
            }
            Packet::Puback(ack) | Packet::Pubcomp(ack) => self.finishes(ack.packet_id),
            Packet::Pubrec(ack) if ack.reason.is_error() => self.finishes(ack.packet_id),
            _ => {}
        }
    }

    fn finishes(&mut self, packet_id: PacketId) {
        if !self.open.remove(&packet_id) {
            self.acknowledged_early.insert(packet_id);
        }
    }

    /// Reads what came out of the server.
    fn reads(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let protocol = self.protocol.expect("the client has the first word");
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut input = bytes;
        while let Some(frame) =
            inbox.next(&mut input, protocol, self.packet_size_max).expect("packets that fit")
        {
            let packet = decode::decode(frame, protocol).expect("packets");
            self.takes(&packet);
        }
        self.inbox = inbox;
    }

    fn takes(&mut self, packet: &Packet<'_>) {
        assert!(!self.is_over, "the last word was said");
        match packet {
            Packet::Connack(connack) => {
                assert!(!self.is_connected, "one CONNACK");
                self.is_connected = connack.reason == ReasonCode::Success;
                self.is_over = !self.is_connected;
                assert!(self.is_connected || !connack.session_present);
            }
            Packet::Auth(_) => assert!(self.has_method, "nobody is asked who did not begin"),
            _ => assert!(self.is_connected, "CONNACK comes first"),
        }
        match packet {
            Packet::Publish(publish) => self.takes_message(publish),
            Packet::Pubrel(ack) => encode::pubcomp(&mut self.answers, ack.packet_id, ReasonCode::Success),
            Packet::Disconnect(_) => {
                assert_eq!(self.protocol, Some(Protocol::Mqtt5));
                self.is_over = true;
            }
            Packet::Connect(_) | Packet::Subscribe(_) | Packet::Unsubscribe(_) | Packet::Pingreq => {
                panic!("{packet:?} is not for servers")
            }
            _ => {}
        }
    }

    fn takes_message(&mut self, publish: &Publish<'_>) {
        let mut alias = None;
        for property in publish.properties {
            if let Property::TopicAlias(number) = property {
                assert!(number <= self.alias_max);
                alias = Some(number);
            }
        }
        if publish.topic.is_empty() {
            assert!(alias.is_some_and(|alias| self.aliases.contains(&alias)), "a known alias");
        } else {
            self.aliases.extend(alias);
        }
        if let Some(packet_id) = publish.packet_id {
            if !self.acknowledged_early.remove(&packet_id) {
                assert!(self.open.insert(packet_id), "no identifier has two uses");
                assert!(self.open.len() <= self.window, "the receive maximum is kept");
            }
            if publish.qos == QoS::AtLeastOnce {
                encode::puback(&mut self.answers, packet_id, ReasonCode::Success);
            } else {
                encode::pubrec(&mut self.answers, packet_id, ReasonCode::Success);
            }
        }
    }
}

struct Connection {
    id: ConnectionId,
    /// What the server has not handled yet.
    inbox: Inbox,
    peer: Peer,
}

struct World {
    broker: Broker,
    now: Instant,
    generation: u32,
    connections: [Option<Connection>; CLIENTS],
    steps: VecDeque<AuthenticationStep>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// On its way to the disk, where nothing gets while the store stalls.
    taken: VecDeque<Batch>,
    last: Lsn,
    stalls: bool,
}

impl World {
    fn new(settings: u8) -> Self {
        let options = Options {
            seed: 1,
            in_flight_max: 3,
            receive_max: 2,
            steps_per_turn: 3,
            long_packet_bytes_min: 8,
            topic_alias_max: 2,
            keep_alive_secs_max: if settings & 0x01 != 0 { 10 } else { 0 },
            check_payload_format: settings & 0x02 != 0,
            response_information: (settings & 0x04 != 0).then(|| "information".into()),
            redirect: Some(Redirect {
                server_reference: "elsewhere".into(),
                permanently: settings & 0x08 != 0,
            }),
            authentication_methods: vec![METHOD.into()],
            queued_messages_max: 4,
            queued_bytes_max: 2_000,
            queued_bytes_total_max: if settings & 0x10 != 0 { 3_000 } else { 1 << 20 },
            outbox_bytes_max: 4_096,
            retained_messages_max: 3,
            sessions_max: 3,
            subscriptions_max: 4,
            session_expiry: Some(Duration(5_000)),
            sys_interval: None,
            trace_packets: settings & 0x20 != 0,
            durability: if settings & 0x40 != 0 { Durability::BeforeReply } else { Durability::None },
            unstored_bytes_max: if settings & 0x80 != 0 { 500 } else { 1 << 20 },
            ..Options::default()
        };
        let now = Instant(1);
        Self {
            broker: Broker::new(options, now),
            now,
            generation: 0,
            connections: [const { None }; CLIENTS],
            steps: VecDeque::new(),
            records: BTreeMap::new(),
            taken: VecDeque::new(),
            last: Lsn::NONE,
            stalls: false,
        }
    }

    fn store(&mut self) {
        if let Some(batch) = self.broker.poll_journal(self.now) {
            self.taken.push_back(batch);
        }
        if self.stalls || self.taken.is_empty() {
            return;
        }
        for batch in self.taken.drain(..) {
            batch.apply(&mut self.records);
            assert!(batch.last() > self.last, "numbers only grow");
            self.last = batch.last();
        }
        self.broker.handle_stored(self.now, self.last);
        while self.broker.poll_resume().is_some() {}
    }

    /// The process ends without a word, and another one goes on.
    fn crash(&mut self) {
        self.connections = [const { None }; CLIENTS];
        self.steps.clear();
        self.taken.clear();
        self.broker = Broker::new(self.broker.options().clone(), self.now);
        let mut restore = self.broker.restore(self.last);
        for (key, value) in &self.records {
            restore.record(key, value).expect("the store makes sense");
        }
        restore.finish().expect("the store makes sense");
    }

    /// What is stored is what should be.
    fn check_stored(&mut self) {
        self.stalls = false;
        for _ in 0..3 {
            self.store();
        }
        assert!(self.broker.is_stored());
        if self.broker.options().durability != Durability::None {
            assert!(self.broker.keys_to_be_stored().iter().eq(self.records.keys()));
        }
    }

    /// What a client speaks on its connection.
    fn protocol(&self, slot: usize) -> Protocol {
        self.connections[slot].as_ref().and_then(|connection| connection.peer.protocol).unwrap_or_default()
    }

    fn send(&mut self, slot: usize, bytes: &[u8]) {
        if self.connections[slot].is_none() {
            self.generation += 1;
            let id = ConnectionId { slot: slot as u32, generation: self.generation };
            self.broker.handle_open(self.now, id);
            let connection = Connection { id, inbox: Inbox::default(), peer: Peer::default() };
            self.connections[slot] = Some(connection);
        }
        self.receive(slot, bytes);
    }

    /// A packet that does not come in one read may be decoded in several turns.
    fn send_in_parts(&mut self, slot: usize, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len() % 3);
        self.send(slot, first);
        self.send(slot, rest);
    }

    /// Hands bytes to the core, behind those that had to wait.
    fn receive(&mut self, slot: usize, bytes: &[u8]) {
        let Self { broker, now, connections, .. } = self;
        let Some(Connection { id, inbox, peer }) = &mut connections[slot] else { return };
        let mut input = bytes;
        let mut terms = broker.reading_terms(*id);
        while broker.wants_input(*id) {
            // The peer knows what it sends before the core does.
            match inbox.clone().next(&mut { input }, terms.protocol, terms.packet_size_max) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    let is_first = peer.protocol.is_none();
                    peer.begins(frame.claimed_protocol());
                    if let Ok(packet) = decode::decode(frame, terms.protocol) {
                        peer.sends(&packet, is_first);
                    }
                }
                Err(_) => peer.begins(None),
            }
            if !broker.handle_next(*now, *id, &mut terms, inbox, &mut input) {
                break;
            }
        }
        inbox.stash(input);
    }

    /// The shell's share of a turn: some bytes go out, what ended is freed.
    fn turn(&mut self, write_max: usize) {
        self.broker.handle_timeout(self.now);
        self.store();
        for slot in 0..CLIENTS {
            self.receive(slot, &[]);
        }
        while let Some(step) = self.broker.poll_authentication() {
            assert_eq!(&*step.method, METHOD);
            self.steps.push_back(step);
        }
        for _ in 0..self.broker.dirty_len() {
            let Some(id) = self.broker.poll_flush() else { break };
            self.flush(id, write_max);
        }
        while let Some(id) = self.broker.poll_close() {
            self.connections[id.slot as usize] = None;
            self.broker.handle_closed(id);
        }
        while self.broker.poll_event().is_some() {}
        self.broker.check_invariants();
    }

    fn flush(&mut self, id: ConnectionId, write_max: usize) {
        let Some(outbox) = self.broker.outbox(id) else { return };
        let mut slices = [IoSlice::new(&[]); 4];
        let filled = outbox.slices(&mut slices);
        let mut bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
        let length = bytes.len();
        bytes.truncate(write_max);
        if let Some(connection) = &mut self.connections[id.slot as usize] {
            connection.peer.reads(&bytes);
        }
        self.broker.handle_written(self.now, id, bytes.len(), bytes.len() < length);
    }

    fn lose(&mut self, slot: usize, failed: bool) {
        if let Some(Connection { id, .. }) = self.connections[slot].take() {
            self.broker.handle_lost(self.now, id, failed);
        }
    }

    /// The answer to the oldest step that has none, or one that nobody asked for.
    fn verdict(&mut self, slot: usize, input: &mut Input<'_>) {
        let step = self.steps.pop_front().map(|step| step.connection);
        let present = self.connections[slot].as_ref().map(|connection| connection.id);
        let Some(id) = step.or(present) else { return };
        let verdict = match input.byte() % 8 {
            0 => Verdict::Accept { user: None, data: None },
            1 | 2 => Verdict::Accept { user: Some("user".into()), data: Some([1, 2].into()) },
            3 => Verdict::Accept { user: Some("another".into()), data: None },
            4..=6 => Verdict::Continue([3].into()),
            _ => Verdict::Refuse(input.pick(&[
                ReasonCode::NotAuthorized,
                ReasonCode::BadUserNameOrPassword,
                ReasonCode::Success,
            ])),
        };
        self.broker.handle_verdict(self.now, id, verdict);
    }

    fn operate(&mut self, operation: u8, input: &mut Input<'_>) {
        let slot = usize::from(operation >> 6);
        let operation = operation & 0x3F;
        // Most packets of strangers only show that CONNECT comes first.
        if self.connections[slot].is_none() && (5..=40).contains(&operation) {
            self.send(slot, &connect(input));
        }
        let protocol = self.protocol(slot);
        match operation {
            0..=2 => {
                self.lose(slot, false);
                self.turn(usize::MAX);
                self.send(slot, &connect(input));
            }
            3 | 4 => self.send(slot, &connect(input)),
            5..=9 => self.send_in_parts(slot, &subscribe(input, protocol)),
            10 | 11 => self.send_in_parts(slot, &unsubscribe(input, protocol)),
            12..=29 => self.send(slot, &publish(input, protocol)),
            30..=35 => self.send(slot, &ack(input, protocol)),
            36 | 37 => self.send(slot, &disconnect(input, protocol)),
            38..=40 => self.send(slot, &auth(input)),
            41 => self.send(slot, &encoded(&Packet::Pingreq, protocol)),
            // What follows goes in as it is.
            42..=44 => {
                let count = usize::from(input.byte());
                self.send(slot, input.bytes(count));
            }
            45..=49 => {
                if let Some(connection) = &mut self.connections[slot] {
                    let answers = std::mem::take(&mut connection.peer.answers);
                    self.receive(slot, &answers);
                }
            }
            50..=52 => self.verdict(slot, input),
            53 | 54 => {
                if let Some(id) = self.connections[slot].as_ref().map(|connection| connection.id) {
                    self.flush(id, usize::MAX);
                }
            }
            55..=57 => self.lose(slot, input.flag()),
            58 => self.now = self.now + Duration(input.byte().into()),
            59..=62 => self.now = self.now + Duration(u64::from(input.byte()) * 50),
            _ => match input.byte() {
                0x00..=0x3F => self.stalls = !self.stalls,
                0x40..=0x7F => self.crash(),
                0x80..=0x9F => self.check_stored(),
                0xA0..=0xBF => {
                    let states = [StoreState::Well, StoreState::Full, StoreState::Failing];
                    self.broker.handle_store_state(self.now, input.pick(&states));
                }
                // It spoils all that follows.
                0xFF => assert!(self.broker.handle_drain(self.now)),
                _ => {}
            },
        }
    }
}

fn encoded(packet: &Packet<'_>, protocol: Protocol) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(packet, protocol, &mut bytes).expect("it has a form on the wire");
    bytes
}

/// Properties where there are any.
fn given(list: &PropertyList, protocol: Protocol) -> Properties<'_> {
    if protocol.has_properties() { list.as_properties() } else { Properties::NONE }
}

fn connect(input: &mut Input<'_>) -> Vec<u8> {
    let protocol = input.pick(&[Protocol::Mqtt5, Protocol::Mqtt311, Protocol::Mqtt5, Protocol::Mqtt31]);
    let flags = input.byte();
    let list = input.some(&[
        Property::SessionExpirySecs([0, 2, 100, u32::MAX][usize::from(flags & 3)]),
        Property::ReceiveMaximum(1 + u16::from(flags >> 2 & 1)),
        Property::MaximumPacketSize([12, 30, 100, 900][usize::from(flags >> 3 & 3)]),
        Property::TopicAliasMaximum([1, 9][usize::from(flags >> 5 & 1)]),
        Property::RequestResponseInformation(true),
        Property::RequestProblemInformation(false),
    ]);
    let method = [
        Property::AuthenticationMethod(if flags == 0xFF { "another" } else { METHOD }),
        Property::AuthenticationData(&[7]),
    ];
    let authenticates = flags >> 6 == 3;
    let list: PropertyList =
        list.as_properties().into_iter().chain(method.into_iter().filter(|_| authenticates)).collect();
    let keep_alive_secs = u16::from(input.byte() & 0x0F);
    let client_id = input.pick(&["x", "y", "z", ""]);
    let has_will = input.flag();
    let will_list = if has_will {
        let secs = input.pick(&[0, 1, 3, 100]);
        input.some(&[
            Property::WillDelaySecs(secs),
            Property::MessageExpirySecs(secs + 1),
            Property::PayloadIsText(true),
            Property::ContentType("text"),
            Property::ResponseTopic("answers"),
            Property::CorrelationData(&[0xFF]),
            Property::UserProperty("name", "value"),
        ])
    } else {
        PropertyList::default()
    };
    let will = has_will.then(|| Will {
        topic: input.topic(),
        payload: b"will",
        qos: input.qos(),
        retain: input.flag(),
        properties: given(&will_list, protocol),
    });
    let connect = Connect {
        protocol,
        clean_start: input.flag(),
        keep_alive_secs,
        properties: given(&list, protocol),
        client_id,
        will,
        username: None,
        password: None,
    };
    encoded(&Packet::Connect(connect), protocol)
}

fn filter(input: &mut Input<'_>) -> &'static str {
    input.pick(&[
        "a",
        "#",
        "+/b",
        "a/+/c",
        "a/b/#",
        "$share/g/a",
        "$share/g/a/#",
        "$share/h/+/b",
        "$share/h/#",
        "c",
    ])
}

fn subscribe(input: &mut Input<'_>, protocol: Protocol) -> Vec<u8> {
    let packet_id = input.packet_id();
    let subscription_id = 1 + u32::from(input.byte() % 3);
    let list =
        input.some(&[Property::SubscriptionId(subscription_id), Property::UserProperty("name", "value")]);
    let requests: Vec<(&str, SubscriptionOptions)> = (0..1 + input.byte() % 2)
        .map(|_| {
            let (filter, qos, flags) = (filter(input), input.qos(), input.byte());
            let options = SubscriptionOptions {
                qos,
                // With a group it ends the connection, which is seldom wanted.
                no_local: flags & 1 != 0 && (flags == 0xFF || !filter.starts_with('$')),
                retain_as_published: flags & 2 != 0,
                retain_handling: [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]
                    [usize::from(flags >> 2) % 3],
            };
            (filter, if protocol.has_properties() { options } else { qos.into() })
        })
        .collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, protocol, packet_id, given(&list, protocol), &requests);
    bytes
}

fn unsubscribe(input: &mut Input<'_>, protocol: Protocol) -> Vec<u8> {
    let mut bytes = Vec::new();
    let filters = [filter(input), filter(input)];
    encode::unsubscribe(&mut bytes, protocol, input.packet_id(), Properties::NONE, &filters);
    bytes
}

fn publish(input: &mut Input<'_>, protocol: Protocol) -> Vec<u8> {
    let (qos, flags) = (input.qos(), input.byte());
    let list = input.some(&[
        Property::TopicAlias([1, 1, 2, 3][usize::from(flags & 3)]),
        Property::MessageExpirySecs([0, 1, 3, 20][usize::from(flags >> 2 & 3)]),
        Property::ResponseTopic(if flags == 0xFF { "#" } else { "answers" }),
        Property::CorrelationData(&[0xFF]),
        Property::PayloadIsText(true),
        Property::ContentType("text"),
        Property::UserProperty("name", "value"),
        Property::UserProperty("name", "another"),
    ]);
    let properties = given(&list, protocol);
    let has_alias = properties.iter().any(|property| matches!(property, Property::TopicAlias(_)));
    let payloads: [&[u8]; 5] = [b"", b"x", b"text", &[0xFF; 3], &[b'x'; 700]];
    let publish = Publish {
        dup: qos > QoS::AtMostOnce && flags & 0x10 != 0,
        qos,
        retain: flags & 0x20 != 0,
        topic: if has_alias && flags & 0x40 != 0 { "" } else { input.topic() },
        packet_id: (qos > QoS::AtMostOnce).then(|| input.packet_id()),
        properties,
        payload: input.pick(&payloads),
    };
    encoded(&Packet::Publish(publish), protocol)
}

fn ack(input: &mut Input<'_>, protocol: Protocol) -> Vec<u8> {
    let kind = input.byte();
    let codes = if kind & 1 == 0 {
        [ReasonCode::Success, ReasonCode::NoMatchingSubscribers, ReasonCode::NotAuthorized]
    } else {
        [ReasonCode::Success, ReasonCode::Success, ReasonCode::PacketIdentifierNotFound]
    };
    let reason = input.pick(&codes);
    let list = input.some(&[Property::ReasonString("words"), Property::UserProperty("name", "value")]);
    let mut ack = Ack::success(input.packet_id());
    if protocol.has_properties() {
        ack = Ack { reason, properties: list.as_properties(), ..ack };
    }
    let packet = match kind % 4 {
        0 => Packet::Puback(ack),
        1 => Packet::Pubcomp(ack),
        2 => Packet::Pubrec(ack),
        _ => Packet::Pubrel(ack),
    };
    encoded(&packet, protocol)
}

fn disconnect(input: &mut Input<'_>, protocol: Protocol) -> Vec<u8> {
    let codes = [
        ReasonCode::Success,
        ReasonCode::DisconnectWithWill,
        ReasonCode::UnspecifiedError,
        ReasonCode::ServerBusy,
    ];
    let reason = input.pick(&codes);
    let secs = input.pick(&[0, 2, 100, u32::MAX]);
    let list = input.some(&[Property::SessionExpirySecs(secs), Property::ReasonString("words")]);
    let disconnect = Disconnect { reason, properties: list.as_properties() };
    let is_known = protocol.has_properties();
    encoded(&Packet::Disconnect(if is_known { disconnect } else { Disconnect::NORMAL }), protocol)
}

/// An AUTH, which for clients before 5.0 is a packet that does not exist.
fn auth(input: &mut Input<'_>) -> Vec<u8> {
    let codes = [ReasonCode::ContinueAuthentication, ReasonCode::Reauthenticate, ReasonCode::Success];
    let reason = input.pick(&codes);
    let mut list = PropertyList::default();
    if input.byte() != 0xFF {
        list.push(&Property::AuthenticationMethod(METHOD));
    }
    list.push(&Property::AuthenticationData(&[9]));
    let auth = Auth { reason, properties: list.as_properties() };
    encoded(&Packet::Auth(auth), Protocol::Mqtt5)
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut world = World::new(input.byte());
    while !input.0.is_empty() {
        let (operation, writes) = (input.byte(), input.byte());
        world.operate(operation, &mut input);
        // Most sockets take all there is.
        world.turn(if writes < 0xC0 { usize::MAX } else { usize::from(writes & 0x3F) });
    }
    world.broker.handle_store_state(world.now, StoreState::Well);
    world.check_stored();
    world.broker.handle_shutdown(world.now);
    world.turn(usize::MAX);
    // Longer than any session waits for its client, and until no retained message can expire any more.
    for _ in 0..20 {
        world.now = world.now + Duration::from_secs(60);
        world.broker.handle_timeout(world.now);
    }
    world.turn(usize::MAX);
    world.check_stored();
    assert_eq!(world.broker.timers_armed(), 0);
    let status = world.broker.status();
    assert_eq!((status.sessions, status.subscriptions, world.broker.connections()), (0, 0, 0));
    assert_eq!(status.message_bytes, status.retained_bytes);
    let metrics = world.broker.metrics();
    assert_eq!((metrics.queued_messages, metrics.in_flight_messages), (0, 0));
    assert_eq!((metrics.outbox_bytes, metrics.outbox_packets), (0, 0));
});
