//! What clients do: they connect, publish, subscribe, answer, leave, and break rules.

use broker::broker::ConnectionId;
use broker::codec::packet::{
    Auth, Connect, Disconnect, Packet, Publish, RetainHandling, SubscriptionOptions, Will,
};
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Properties, Property, Protocol, QoS, ReasonCode, encode};

use super::World;
use crate::client::{Unacknowledged, ack, bytes_of, publish_bytes};

const TOPICS: [&str; 9] =
    ["a", "a/b", "a/b/c", "b", "b/c", "$own/a", "long/topic/1", "long/topic/2", "long/other/1"];
const FILTERS: [&str; 13] = [
    "#",
    "a/#",
    "+/b",
    "a/+",
    "a",
    "a/b",
    "b/#",
    "+",
    "$own/#",
    "a/b/c",
    "long/#",
    "long/topic/+",
    "long/topic/1",
];
/// Of shared subscriptions a client knows one set, in which no two match the same topic: whose copy it got would be
/// anybody's guess. The sets of different clients do overlap.
const SHARED: [&[&str]; 2] = [
    &["$share/g/a/#", "$share/h/long/#", "$share/g/b", "$share/g/$own/a"],
    &["$share/g/#", "$share/h/$own/#"],
];

/// Identifiers that no client uses.
const STRAY: u16 = 60_000;

impl World {
    fn qos(&mut self) -> QoS {
        QoS::new(self.random.below(3) as u8).expect("below 3")
    }

    /// One thing that a connected client does.
    pub(super) fn act(&mut self, client: usize, id: ConnectionId) {
        if self.connections[&id].misbehaved {
            return self.cut(client, id);
        }
        match self.random.below(100) {
            0..=39 => self.publish(client, id),
            40..=53 => self.subscribe(id),
            54..=58 => self.unsubscribe(id),
            59..=79 => self.answer(id),
            80..=83 => self.say_packet(id, &Packet::Pingreq),
            84..=87 => {
                let stalled = &mut self.connection(id).stalled;
                *stalled = !*stalled;
            }
            88..=90 => self.disconnect(id),
            91..=93 => self.cut(client, id),
            94..=95 => self.connect(client), // Takes over its own older connection.
            96 => {
                // Half a packet and then nothing more.
                self.say(id, &[0x30, 0x40, 0, 1]);
                self.connection(id).misbehaved = true;
            }
            97 => self.break_a_rule(client, id),
            _ => self.stray_answer(id),
        }
    }

    /// A client connects, with whatever protocol it likes today.
    pub(super) fn connect(&mut self, client: usize) {
        let is_new = self.random.once_in(2);
        let keep_alive_secs = *self.random.pick(&[0, 0, 1, 2, 30]);
        let clean_start = self.random.once_in(4);
        let has_will = self.random.once_in(3);
        let (qos, topic, retain) = (self.qos(), *self.random.pick(&TOPICS), self.random.once_in(3));
        let mut properties = PropertyList::default();
        let (mut alias_max, mut packet_size_max) = (0, u32::MAX);
        let mut will_properties = PropertyList::default();
        if is_new {
            if !self.random.once_in(4) {
                let expiry = *self.random.pick(&[0, 2, 30, 3_600, u32::MAX]);
                properties.push(&Property::SessionExpirySecs(expiry));
            }
            if self.random.once_in(2) {
                properties.push(&Property::ReceiveMaximum(1 + self.random.below(3) as u16));
            }
            if self.random.once_in(2) {
                alias_max = *self.random.pick(&[0, 1, 2, 100]);
                properties.push(&Property::TopicAliasMaximum(alias_max));
            }
            if self.random.once_in(3) {
                packet_size_max = *self.random.pick(&[60, 80, 300]);
                properties.push(&Property::MaximumPacketSize(packet_size_max));
            }
            will_properties = self.properties();
            if self.random.once_in(2) {
                will_properties.push(&Property::WillDelaySecs(*self.random.pick(&[0, 1, 3, 20])));
            }
        }
        let protocol = if is_new { Protocol::Mqtt5 } else { Protocol::Mqtt311 };
        let id = self.open(client, protocol, alias_max, packet_size_max);
        let client = &mut self.clients[client];
        client.messages += 1;
        let payload = format!("w{} {}", client.id, client.messages);
        let will = Will {
            topic,
            payload: payload.as_bytes(),
            qos,
            retain,
            properties: will_properties.as_properties(),
        };
        let connect = Connect {
            protocol,
            clean_start,
            keep_alive_secs,
            properties: properties.as_properties(),
            client_id: &client.id.clone(),
            will: has_will.then_some(will),
            username: None,
            password: None,
        };
        self.say_packet(id, &Packet::Connect(connect));
    }

    /// What a message says beside its payload.
    fn properties(&mut self) -> PropertyList {
        let mut properties = PropertyList::default();
        if self.random.once_in(3) {
            let secs = *self.random.pick(&[0, 1, 2, 5, 30, 1_000]);
            properties.push(&Property::MessageExpirySecs(secs));
        }
        if self.random.once_in(4) {
            for _ in 0..1 + self.random.below(3) {
                let value = self.random.below(100).to_string();
                let name = *self.random.pick(&["k", "j", ""]);
                properties.push(&Property::UserProperty(name, &value));
            }
        }
        if self.random.once_in(4) {
            properties.push(&Property::PayloadIsText(!self.random.once_in(4)));
        }
        if self.random.once_in(10) {
            properties.push(&Property::ResponseTopic("answers/here"));
            properties.push(&Property::UserProperty("last", ""));
            properties.push(&Property::CorrelationData(&[0, 0xFF]));
            properties.push(&Property::ContentType(""));
        }
        properties
    }

    pub(super) fn publish(&mut self, client: usize, id: ConnectionId) {
        let qos = self.qos();
        let topic = if self.random.once_in(40) { "$SYS/mine" } else { *self.random.pick(&TOPICS) };
        let retain = self.random.once_in(4);
        let protocol = self.connections[&id].protocol;
        let properties = if protocol.has_properties() { self.properties() } else { PropertyList::default() };
        let connection = &self.connections[&id];
        // Before its CONNACK a client does not know whether its session is there.
        if !connection.connack {
            return;
        }
        let client = &mut self.clients[client];
        let is_busy = !connection.has_quota() || !connection.to_repeat.is_empty();
        if client.memory.unacknowledged.len() >= 20 || (qos > QoS::AtMostOnce && is_busy) {
            return;
        }
        client.messages += 1;
        let filling =
            if self.random.once_in(8) { "\u{e9}".repeat(self.random.below(750)) } else { String::new() };
        let payload = if retain && self.random.once_in(4) {
            String::new()
        } else {
            format!("{} {} {filling}", client.id, client.messages)
        };
        // An empty payload names nobody, so it is published where the model need not tell publishers apart.
        let qos = if payload.is_empty() { QoS::AtMostOnce } else { qos };
        let message =
            Unacknowledged { topic: topic.to_owned(), payload, qos, retain, properties, received: false };
        let packet_id = (qos > QoS::AtMostOnce).then(|| client.memory.packet_id());
        if let Some(packet_id) = packet_id {
            client.memory.unacknowledged.push_back((packet_id, message.clone()));
            self.connection(id).under_way.insert(packet_id);
        }
        let alias = self.choose_alias(id, topic);
        self.say(id, &publish_bytes(protocol, packet_id, &message, false, alias));
        if qos == QoS::ExactlyOnce && self.random.once_in(10) {
            // Repeated before it was answered: tolerated, and taken once.
            self.say(id, &publish_bytes(protocol, packet_id, &message, true, None));
        }
    }

    /// An alias to send along with a topic, or in its place.
    fn choose_alias(&mut self, id: ConnectionId, topic: &str) -> Option<(u16, bool)> {
        let wants = self.random.once_in(2);
        let fresh = self.random.once_in(3);
        let number = self.random.below(1 << 16) as u16;
        let aliases = &mut self.connection(id).aliases;
        if !wants || aliases.maximum == 0 {
            return None;
        }
        match aliases.of(topic) {
            Some(known) if !fresh => Some((known, true)),
            _ => {
                let alias = 1 + number % aliases.maximum;
                aliases.resolve(topic, Some(alias));
                Some((alias, false))
            }
        }
    }

    fn shared_filter(&mut self, id: ConnectionId) -> &'static str {
        let client = self.connections[&id].client;
        let filters = SHARED[client % 2];
        filters[self.random.below(filters.len())]
    }

    fn subscribe(&mut self, id: ConnectionId) {
        let protocol = self.connections[&id].protocol;
        let mut properties = PropertyList::default();
        if protocol.has_properties() && !self.random.once_in(3) {
            let number = *self.random.pick(&[1, 2, 3, 127, 128, 100_000, 268_435_455]);
            properties.push(&Property::SubscriptionId(number));
        }
        let mut requests = Vec::new();
        let most = if self.random.once_in(4) { 10 } else { 3 };
        for _ in 0..1 + self.random.below(most) {
            let mut options = SubscriptionOptions::from(self.qos());
            let is_shared = self.random.once_in(3) && self.shares;
            if protocol.has_properties() {
                options.no_local = !is_shared && self.random.once_in(4);
                options.retain_as_published = self.random.once_in(3);
                options.retain_handling = *self.random.pick(&[
                    RetainHandling::Send,
                    RetainHandling::SendIfNew,
                    RetainHandling::DoNotSend,
                ]);
            }
            if is_shared {
                if options.qos == QoS::AtMostOnce && !self.shares_qos_0 {
                    options.qos = QoS::ExactlyOnce;
                }
                requests.push((self.shared_filter(id), options));
            } else {
                requests.push((*self.random.pick(&FILTERS), options));
            }
        }
        let packet_id = PacketId::new(1 + self.random.below(1_000) as u16).expect("not 0");
        let mut bytes = Vec::new();
        encode::subscribe(&mut bytes, protocol, packet_id, properties.as_properties(), &requests);
        self.say(id, &bytes);
    }

    fn unsubscribe(&mut self, id: ConnectionId) {
        let mut filters = Vec::new();
        for _ in 0..1 + self.random.below(2) {
            let is_shared = self.random.once_in(3);
            let filter = if is_shared { self.shared_filter(id) } else { *self.random.pick(&FILTERS) };
            filters.push(filter);
        }
        let protocol = self.connections[&id].protocol;
        let packet_id = PacketId::new(1 + self.random.below(1_000) as u16).expect("not 0");
        let mut bytes = Vec::new();
        encode::unsubscribe(&mut bytes, protocol, packet_id, Properties::NONE, &filters);
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
            let answer = self.connection(id).answers.remove(at).expect("one is left");
            self.say_answer(id, answer);
        }
    }

    /// An answer that nobody waits for.
    fn stray_answer(&mut self, id: ConnectionId) {
        let stray = ack(PacketId::new(STRAY).expect("not 0"));
        let packet = *self.random.pick(&[
            Packet::Puback(stray),
            Packet::Pubrec(stray),
            Packet::Pubrel(stray),
            Packet::Pubcomp(stray),
        ]);
        self.say_packet(id, &packet);
    }

    fn disconnect(&mut self, id: ConnectionId) {
        let mut properties = PropertyList::default();
        let mut packet = Disconnect::NORMAL;
        if self.connections[&id].protocol.has_properties() {
            packet.reason = *self.random.pick(&[
                ReasonCode::Success,
                ReasonCode::Success,
                ReasonCode::DisconnectWithWill,
                ReasonCode::UnspecifiedError,
            ]);
            if self.random.once_in(3) {
                let expiry = *self.random.pick(&[0, 2, 30, 3_600]);
                properties.push(&Property::SessionExpirySecs(expiry));
            }
        }
        packet.properties = properties.as_properties();
        self.say_packet(id, &Packet::Disconnect(packet));
        self.connection(id).misbehaved = true;
    }

    /// Something that no client may do, and the code that one of 5.0 is told for it.
    fn break_a_rule(&mut self, client: usize, id: ConnectionId) {
        if !self.connections[&id].connack {
            return;
        }
        if !self.connections[&id].protocol.has_properties() {
            let violation: &[u8] = self.random.pick::<&[u8]>(&[
                &[0x00, 0x00],
                &[0xD0, 0x00],
                &[0xF0, 0x00],
                &[0x30, 0x03, 0, 1, b'#'],
                &[0x10, 0x00],
                // After good filters comes a bad one [MQTT-4.7.1-2].
                &[0x82, 0x0F, 0, 1, 0, 1, b'a', 1, 0, 1, b'b', 1, 0, 2, b'a', b'#', 1],
                &[0xA2, 0x0C, 0, 1, 0, 1, b'a', 0, 1, b'#', 0, 2, b'a', b'#'],
                // And one that is none, or whose options or whose end are missing.
                &[0x82, 0x0F, 0, 1, 0, 1, b'a', 1, 0, 1, b'b', 1, 0, 2, b'a', 0xFF, 1],
                &[0x82, 0x0E, 0, 1, 0, 1, b'a', 1, 0, 1, b'b', 1, 0, 2, b'a', b'b'],
                &[0xA2, 0x0B, 0, 1, 0, 1, b'a', 0, 1, b'#', 0, 2, b'a'],
            ]);
            self.say(id, violation);
            self.connection(id).misbehaved = true;
            return;
        }
        let publish = |topic, property: Option<Property<'_>>| {
            let properties: PropertyList = property.into_iter().collect();
            let packet = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain: false,
                topic,
                packet_id: None,
                properties: properties.as_properties(),
                payload: b"",
            };
            bytes_of(&Packet::Publish(packet), Protocol::Mqtt5)
        };
        let aliases = &self.connections[&id].aliases;
        let (malformed, protocol_error) = (ReasonCode::MalformedPacket, ReasonCode::ProtocolError);
        let auth = Auth { reason: ReasonCode::Reauthenticate, properties: Properties::NONE };
        let connect = Connect {
            protocol: Protocol::Mqtt5,
            clean_start: true,
            keep_alive_secs: 0,
            properties: Properties::NONE,
            client_id: "other",
            will: None,
            username: None,
            password: None,
        };
        let mut violations: Vec<(Vec<u8>, ReasonCode)> = vec![
            (vec![0x00, 0x00], malformed),
            (vec![0xC0, 0x80, 0x00], malformed), // [MQTT5-1.5.5-1]
            (vec![0x36, 0x06, 0, 1, b'a', 0, 1, 0], malformed), // [MQTT5-3.3.1-4]
            (vec![0x82, 0x07, 0, 1, 0, 0, 1, b'a', 0x40], malformed), // [MQTT5-3.8.3-5]
            (vec![0xD0, 0x00], protocol_error),
            (vec![0x82, 0x03, 0, 1, 0], protocol_error), // [MQTT5-3.8.3-2]
            (vec![0xE0, 0x01, 0x8E], protocol_error),    // [MQTT5-3.14.2-1] [B-156]
            (vec![0x30, 0x07, 0, 1, b'a', 3, 0x23, 0, 0], ReasonCode::TopicAliasInvalid), // [MQTT5-3.3.2-8]
            (bytes_of(&Packet::Auth(auth), Protocol::Mqtt5), protocol_error), // [MQTT5-4.12.0-7]
            (bytes_of(&Packet::Connect(connect), Protocol::Mqtt5), protocol_error), // [MQTT5-3.1.0-2]
            (publish("a/#", None), ReasonCode::TopicNameInvalid), // [MQTT5-3.3.2-2]
            (publish("", None), protocol_error),         // [B-113]
            (publish("a", Some(Property::SubscriptionId(1))), protocol_error), // [MQTT5-3.3.4-6]
            (publish("a", Some(Property::ResponseTopic("a/#"))), protocol_error), // [MQTT5-3.3.2-14]
        ];
        // [MQTT5-3.2.2-17] [MQTT5-3.2.2-18] [MQTT5-3.3.2-9]
        let above = Property::TopicAlias(aliases.maximum + 1);
        violations.push((publish("a", Some(above)), ReasonCode::TopicAliasInvalid));
        if let Some(unset) = aliases.unset() {
            violations.push((publish("", Some(Property::TopicAlias(unset))), protocol_error));
        }
        let mut no_local = Vec::new();
        let options = SubscriptionOptions { no_local: true, ..SubscriptionOptions::default() };
        let mut requests = vec![("a/b", SubscriptionOptions::default()); 1 + self.random.below(9)];
        requests.push(("$share/g/a/#", options));
        encode::subscribe(&mut no_local, Protocol::Mqtt5, PacketId::FIRST, Properties::NONE, &requests);
        // Whatever else is wrong with a packet, malformed it is.
        let mut not_even_that = no_local.clone();
        not_even_that[1] += 4;
        not_even_that.extend([0, 1, b'a', 0x40]);
        violations.push((no_local, protocol_error)); // [MQTT5-3.8.3-4]
        violations.push((not_even_that, malformed));
        if self.broker.options().packet_size_max == 3_000 {
            // [MQTT5-3.2.2-15] [B-121]
            violations.push((vec![0x30, 0xB6, 0x17], ReasonCode::PacketTooLarge));
        }
        let (bytes, code) = if self.random.once_in(8) && self.connections[&id].receive_max < 100 {
            (self.flood(client, id), ReasonCode::ReceiveMaximumExceeded) // [MQTT5-3.3.4-7] [B-106]
        } else {
            self.random.pick(&violations).clone()
        };
        self.say(id, &bytes);
        let connection = self.connection(id);
        connection.misbehaved = true;
        connection.violation = Some(code);
    }

    /// Far more messages at QoS 2 than a client may have begun, under identifiers that it never uses otherwise.
    fn flood(&mut self, client: usize, id: ConnectionId) -> Vec<u8> {
        let count = self.model.receipts(id) + self.connections[&id].receive_max + 45;
        let client = &mut self.clients[client];
        let mut bytes = Vec::new();
        for _ in 0..count {
            client.messages += 1;
            let message = Unacknowledged {
                topic: "b".to_owned(),
                payload: format!("{} {}", client.id, client.messages),
                qos: QoS::ExactlyOnce,
                retain: false,
                properties: PropertyList::default(),
                received: false,
            };
            let packet_id = PacketId::new(1_000 + client.messages as u16);
            bytes.extend(publish_bytes(Protocol::Mqtt5, packet_id, &message, false, None));
        }
        bytes
    }
}
