//! A simulated client: what it remembers from one connection to the next, and what it says and hears on one.
//!
//! It keeps to the standard's rules for clients, except where the world makes it misbehave on purpose. It hands what it
//! receives to the model, which judges.

pub(crate) mod aliases;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use broker::codec::packet::{Ack, Packet, Publish};
use broker::codec::property::PropertyList;
use broker::codec::{Inbox, PacketId, Properties, Property, Protocol, QoS, ReasonCode, decode, encode};

use aliases::Aliases;

/// Where clients are sent when the broker is drained.
pub(crate) const OTHER_SERVER: &str = "other.example";

/// A PUBLISH of the client's own that is not finally acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Unacknowledged {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// For a broker of 5.0.
    pub(crate) properties: PropertyList,
    /// PUBREC has come, so that PUBREL is what is sent again.
    pub(crate) received: bool,
}

/// What a client remembers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Of which incarnation of its session all this is.
    incarnation: usize,
    next_packet_id: u16,
    /// In the order of sending.
    pub(crate) unacknowledged: VecDeque<(PacketId, Unacknowledged)>,
    /// QoS 2 messages taken and not released.
    pub(crate) receipts: BTreeSet<PacketId>,
    /// Messages received whose last answer has not been sent.
    pub(crate) outstanding: BTreeMap<PacketId, QoS>,
}

impl Memory {
    pub(crate) fn packet_id(&mut self) -> PacketId {
        loop {
            self.next_packet_id = self.next_packet_id.wrapping_add(1) % 40;
            let id = PacketId::new(self.next_packet_id + 1).expect("not 0");
            if self.unacknowledged.iter().all(|(used, _)| *used != id) {
                return id;
            }
        }
    }

    /// A connection was accepted. A client whose last connections broke before it heard their CONNACK cannot know what
    /// became of its session; the world tells it, so that it does not break rules it cannot know.
    pub(crate) fn join(&mut self, incarnation: usize) {
        if self.incarnation != incarnation {
            *self = Self { next_packet_id: self.next_packet_id, incarnation, ..Self::default() };
        }
        // A receiver at QoS 1 has nothing to remember: what is not acknowledged comes again, to it or, from a shared
        // subscription, to somebody else.
        self.outstanding.retain(|_, qos| *qos == QoS::ExactlyOnce);
    }
}

/// A PUBLISH from the broker, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The alias resolved.
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    pub(crate) packet_id: Option<PacketId>,
    pub(crate) expiry_secs: Option<u32>,
    /// Sorted.
    pub(crate) subscription_ids: Vec<u32>,
    /// The bytes of all other properties.
    pub(crate) forwarded: Vec<u8>,
    /// It has an alias, which stands for the topic, or is set.
    pub(crate) alias: Option<bool>,
}

/// What came from the broker, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Connack { session_present: bool, reason: ReasonCode, properties: Vec<u8> },
    Publish(Delivery),
    Puback(PacketId, ReasonCode),
    Pubrec(PacketId, ReasonCode),
    Pubrel(PacketId, ReasonCode),
    Pubcomp(PacketId, ReasonCode),
    Suback(PacketId, Vec<u8>),
    Unsuback(PacketId, Vec<u8>),
    Pingresp,
    Disconnect(ReasonCode),
}

/// The client's side of one connection.
#[derive(Debug)]
pub(crate) struct Ear {
    protocol: Protocol,
    inbox: Inbox,
    /// What the broker has set.
    aliases: Aliases,
    packet_size_max: usize,
}

impl Default for Ear {
    fn default() -> Self {
        Self::new(Protocol::Mqtt311, 0, u32::MAX)
    }
}

impl Ear {
    pub(crate) fn new(protocol: Protocol, alias_max: u16, packet_size_max: u32) -> Self {
        let aliases = Aliases::new(alias_max);
        Self { protocol, inbox: Inbox::default(), aliases, packet_size_max: packet_size_max as usize }
    }

    /// The packets in these bytes and those that came before.
    pub(crate) fn hear(&mut self, mut bytes: &[u8]) -> Vec<Heard> {
        let Self { protocol, inbox, aliases, packet_size_max } = self;
        let mut heard = Vec::new();
        while let Some(frame) =
            inbox.next(&mut bytes, *protocol, u32::MAX).expect("the broker sends packets [MQTT5-2.1.3-1]")
        {
            let length = frame.body.len();
            let size = 2 + [128, 16_384, 2_097_152].iter().filter(|step| length >= **step).count() + length;
            assert!(size <= *packet_size_max, "a packet of {size} bytes [MQTT5-3.1.2-24] [B-119]");
            let packet = decode::decode(frame, *protocol).expect("the broker sends packets");
            heard.push(match packet {
                Packet::Connack(connack) => Heard::Connack {
                    session_present: connack.session_present,
                    reason: connack.reason,
                    properties: connack.properties.as_bytes().to_vec(),
                },
                Packet::Publish(publish) => Heard::Publish(delivery(&publish, aliases)),
                Packet::Puback(ack) => Heard::Puback(ack.packet_id, plain(&ack)),
                Packet::Pubrec(ack) => Heard::Pubrec(ack.packet_id, plain(&ack)),
                Packet::Pubrel(ack) => Heard::Pubrel(ack.packet_id, plain(&ack)),
                Packet::Pubcomp(ack) => Heard::Pubcomp(ack.packet_id, plain(&ack)),
                Packet::Suback(suback) => Heard::Suback(suback.packet_id, suback.reasons.to_vec()),
                Packet::Unsuback(unsuback) => Heard::Unsuback(unsuback.packet_id, unsuback.reasons.to_vec()),
                Packet::Pingresp => Heard::Pingresp,
                Packet::Disconnect(disconnect) if protocol.has_properties() => {
                    let sends_away =
                        [ReasonCode::UseAnotherServer, ReasonCode::ServerMoved].contains(&disconnect.reason);
                    let is_fine = |property| match property {
                        Property::ReasonString(_) => true,
                        Property::ServerReference(reference) => sends_away && reference == OTHER_SERVER,
                        _ => false,
                    };
                    assert!(disconnect.properties.into_iter().all(is_fine), "[MQTT5-3.14.2-2]");
                    Heard::Disconnect(disconnect.reason)
                }
                other => panic!("only a client sends {other:?}"),
            });
        }
        heard
    }
}

/// The reason of an acknowledgement, which never has properties here [MQTT5-3.1.2-29].
fn plain(ack: &Ack<'_>) -> ReasonCode {
    assert!(ack.properties.is_empty());
    ack.reason
}

fn delivery(publish: &Publish<'_>, aliases: &mut Aliases) -> Delivery {
    let (mut alias, mut expiry_secs) = (None, None);
    let (mut subscription_ids, mut forwarded) = (Vec::new(), Vec::new());
    let mut properties = publish.properties.iter();
    while let Some((bytes, property)) = properties.next_with_bytes() {
        match property {
            Property::TopicAlias(number) => alias = Some(number),
            Property::MessageExpirySecs(secs) => expiry_secs = Some(secs),
            Property::SubscriptionId(id) => subscription_ids.push(id),
            _ => forwarded.extend_from_slice(bytes),
        }
    }
    subscription_ids.sort_unstable();
    Delivery {
        topic: aliases.resolve(publish.topic, alias),
        payload: String::from_utf8(publish.payload.to_vec()).expect("payloads are texts here"),
        qos: publish.qos,
        retain: publish.retain,
        dup: publish.dup,
        packet_id: publish.packet_id,
        expiry_secs,
        subscription_ids,
        forwarded,
        alias: alias.map(|_| publish.topic.is_empty()),
    }
}

/// The bytes of a packet.
pub(crate) fn bytes_of(packet: &Packet<'_>, protocol: Protocol) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(packet, protocol, &mut bytes).expect("a client sends what can be sent");
    bytes
}

/// An acknowledgement.
pub(crate) fn ack(packet_id: PacketId) -> Ack<'static> {
    Ack::success(packet_id)
}

/// The bytes of a PUBLISH. With an alias its topic may be left out.
pub(crate) fn publish_bytes(
    protocol: Protocol,
    packet_id: Option<PacketId>,
    publish: &Unacknowledged,
    dup: bool,
    alias: Option<(u16, bool)>,
) -> Vec<u8> {
    let mut properties = PropertyList::default();
    if protocol.has_properties() {
        properties = publish.properties.clone();
        if let Some((alias, _)) = alias {
            properties.push(&Property::TopicAlias(alias));
        }
    }
    let packet = Packet::Publish(Publish {
        dup: dup && publish.qos > QoS::AtMostOnce,
        qos: publish.qos,
        retain: publish.retain,
        topic: if alias.is_some_and(|(_, known)| known) { "" } else { &publish.topic },
        packet_id,
        properties: if properties == PropertyList::default() {
            Properties::NONE
        } else {
            properties.as_properties()
        },
        payload: publish.payload.as_bytes(),
    });
    bytes_of(&packet, protocol)
}
