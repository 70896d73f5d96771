//! A simulated client: what it remembers from one connection to the next, and what it says and hears on one.
//!
//! It keeps to the standard's rules for clients, except where the world makes it misbehave on purpose. It hands what it
//! receives to the model, which judges.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use broker::codec::packet::{Ack, Packet, Publish};
use broker::codec::property::Properties;
use broker::codec::{Inbox, PacketId, Protocol, QoS, ReasonCode, decode, encode};

/// A PUBLISH of the client's own that is not finally acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Unacknowledged {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
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
    /// Messages received whose last answer has not been sent: identifier to payload.
    pub(crate) outstanding: BTreeMap<PacketId, String>,
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
    }
}

/// What came from the broker, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Connack { session_present: bool, reason: ReasonCode },
    Publish { topic: String, payload: String, qos: QoS, retain: bool, dup: bool, packet_id: Option<PacketId> },
    Puback(PacketId),
    Pubrec(PacketId),
    Pubrel(PacketId),
    Pubcomp(PacketId),
    Suback(PacketId, Vec<u8>),
    Unsuback(PacketId),
    Pingresp,
}

/// The client's side of one connection.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    inbox: Inbox,
}

impl Ear {
    /// The packets in these bytes and those that came before.
    pub(crate) fn hear(&mut self, mut bytes: &[u8]) -> Vec<Heard> {
        let mut heard = Vec::new();
        while let Some(frame) =
            self.inbox.next(&mut bytes, Protocol::Mqtt311, u32::MAX).expect("the broker sends packets")
        {
            heard.push(match decode::decode(frame, Protocol::Mqtt311).expect("the broker sends packets") {
                Packet::Connack(connack) => {
                    Heard::Connack { session_present: connack.session_present, reason: connack.reason }
                }
                Packet::Publish(publish) => Heard::Publish {
                    topic: publish.topic.to_owned(),
                    payload: String::from_utf8(publish.payload.to_vec()).expect("payloads are texts here"),
                    qos: publish.qos,
                    retain: publish.retain,
                    dup: publish.dup,
                    packet_id: publish.packet_id,
                },
                Packet::Puback(ack) => Heard::Puback(ack.packet_id),
                Packet::Pubrec(ack) => Heard::Pubrec(ack.packet_id),
                Packet::Pubrel(ack) => Heard::Pubrel(ack.packet_id),
                Packet::Pubcomp(ack) => Heard::Pubcomp(ack.packet_id),
                Packet::Suback(suback) => Heard::Suback(suback.packet_id, suback.reasons.to_vec()),
                Packet::Unsuback(unsuback) => Heard::Unsuback(unsuback.packet_id),
                Packet::Pingresp => Heard::Pingresp,
                other => panic!("only a client sends {other:?}"),
            });
        }
        heard
    }
}

/// The bytes of a packet.
pub(crate) fn bytes_of(packet: &Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(packet, Protocol::Mqtt311, &mut bytes).expect("a client sends what can be sent");
    bytes
}

/// An acknowledgement.
pub(crate) fn ack(packet_id: PacketId) -> Ack<'static> {
    Ack::success(packet_id)
}

/// The bytes of a PUBLISH.
pub(crate) fn publish_bytes(packet_id: Option<PacketId>, publish: &Unacknowledged, dup: bool) -> Vec<u8> {
    bytes_of(&Packet::Publish(Publish {
        dup: dup && publish.qos > QoS::AtMostOnce,
        qos: publish.qos,
        retain: publish.retain,
        topic: &publish.topic,
        packet_id,
        properties: Properties::NONE,
        payload: publish.payload.as_bytes(),
    }))
}
