//! What happened in the core that somebody outside may want to know: for log lines, never for decisions.

use crate::clock::Duration;
use crate::codec::{Packet, PacketId, Protocol, QoS};

use super::close_reason::CloseReason;
use super::link::ConnectionId;

/// A limit that can be reached; each is logged once per episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connected clients.
    Connections,
    /// Messages in one queue, of a session or of a group.
    QueuedMessages,
    /// Bytes in one queue, of a session or of a group.
    QueuedBytes,
    /// Message bytes in the whole broker.
    QueuedBytesTotal,
    /// One connection's outgoing buffer.
    Outbox,
    /// Retained messages.
    RetainedMessages,
    /// Bytes of retained messages.
    RetainedBytes,
    /// Subscriptions of one client.
    Subscriptions,
    /// Bytes on their way to the store.
    UnstoredBytes,
}

impl Limit {
    /// The command line option that sets it.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Connections => "--connections-max",
            Self::QueuedMessages => "--queued-messages-max",
            Self::QueuedBytes => "--queued-bytes-max",
            Self::QueuedBytesTotal => "--queued-bytes-total-max",
            Self::Outbox => "--outbox-bytes-max",
            Self::RetainedMessages => "--retained-messages-max",
            Self::RetainedBytes => "--retained-bytes-max",
            Self::Subscriptions => "--subscriptions-max",
            Self::UnstoredBytes => "--unstored-bytes-max",
        }
    }
}

/// Which packet a trace line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the packet of its name.
pub enum PacketKind {
    Connect,
    Connack,
    Publish,
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
    Subscribe,
    Suback,
    Unsubscribe,
    Unsuback,
    Pingreq,
    Pingresp,
    Disconnect,
    Auth,
}

/// Where a PUBLISH is that takes several turns, or has to wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanOutStep {
    /// It is looked at, a turn's worth at a time.
    LookedAt,
    /// It has to wait.
    PutOff,
    /// It was taken after it had waited.
    Taken,
    /// It was taken, and will take several turns.
    Begun,
}

/// What becomes of a will whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WillStep {
    /// It has to wait for a message that is on its way to very many.
    PutOff,
    /// It is published.
    Published,
}

/// What a trace line says of a PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishTrace {
    /// Its topic name; empty if an alias stands for it.
    pub topic: Box<str>,
    /// Bytes of its payload.
    pub payload_length: usize,
    /// Its quality of service.
    pub qos: QoS,
    /// Whether it is a repetition.
    pub dup: bool,
    /// Its retain flag.
    pub retain: bool,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A CONNECT was accepted.
    Connected {
        /// The connection.
        connection: ConnectionId,
        /// Its client id, given or generated.
        client_id: Box<str>,
        /// The protocol spoken.
        protocol: Protocol,
        /// Whether the session ends with the connection.
        ends_with_connection: bool,
        /// Keep-alive interval; 0 is none.
        keep_alive_secs: u16,
        /// Whether a stored session goes on.
        session_present: bool,
    },
    /// A connection ended.
    Closed {
        /// The connection.
        connection: ConnectionId,
        /// Its client id, if its CONNECT was accepted.
        client_id: Option<Box<str>>,
        /// Why.
        reason: CloseReason,
        /// How long it was open.
        duration: Duration,
        /// Packets received on it.
        packets_received: u64,
        /// Packets sent on it.
        packets_sent: u64,
    },
    /// A limit was reached; the next line about it comes after it has been left.
    LimitReached {
        /// Which.
        limit: Limit,
        /// Whose it is, where it is not the broker's: a client id, or the filter of a shared subscription.
        owner: Option<Box<str>>,
        /// Its value.
        value: u64,
    },
    /// A stored session was dropped because its client stayed away too long.
    SessionExpired {
        /// Whose.
        client_id: Box<str>,
    },
    /// A stored session was dropped to make room for a new one.
    SessionEvicted {
        /// Whose.
        client_id: Box<str>,
    },
    /// What became of a PUBLISH that goes to more sessions than one turn has time for, has to wait for one that does, or is
    /// very large: only with `Options::trace_packets`.
    FanOut {
        /// The connection that it came from.
        connection: ConnectionId,
        /// What.
        step: FanOutStep,
    },
    /// What became of a will whose time has come: only with `Options::trace_packets`.
    Will {
        /// Its topic.
        topic: Box<str>,
        /// Its payload.
        payload: Box<[u8]>,
        /// What.
        step: WillStep,
    },
    /// A packet was received or sent: only with `Options::trace_packets`.
    Packet {
        /// The connection.
        connection: ConnectionId,
        /// True for a packet from us to the peer.
        sent: bool,
        /// What it was.
        kind: PacketKind,
        /// Its identifier, if it has one.
        packet_id: Option<PacketId>,
        /// For PUBLISH: what more there is to say.
        publish: Option<PublishTrace>,
    },
}

impl Event {
    /// The connection it is about, where there is one.
    pub fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Connected { connection, .. }
            | Self::Closed { connection, .. }
            | Self::FanOut { connection, .. }
            | Self::Packet { connection, .. } => Some(*connection),
            Self::LimitReached { .. }
            | Self::SessionExpired { .. }
            | Self::SessionEvicted { .. }
            | Self::Will { .. } => None,
        }
    }
}

/// The trace of a SUBSCRIBE or UNSUBSCRIBE received of which more is not known yet.
pub(super) fn trace_request(connection: ConnectionId, kind: PacketKind, packet_id: PacketId) -> Event {
    Event::Packet { connection, sent: false, kind, packet_id: Some(packet_id), publish: None }
}

/// The trace of a packet received.
pub(super) fn trace_received(connection: ConnectionId, packet: &Packet<'_>) -> Event {
    let (kind, packet_id) = match packet {
        Packet::Connect(_) => (PacketKind::Connect, None),
        Packet::Connack(_) => (PacketKind::Connack, None),
        Packet::Publish(publish) => (PacketKind::Publish, publish.packet_id),
        Packet::Puback(ack) => (PacketKind::Puback, Some(ack.packet_id)),
        Packet::Pubrec(ack) => (PacketKind::Pubrec, Some(ack.packet_id)),
        Packet::Pubrel(ack) => (PacketKind::Pubrel, Some(ack.packet_id)),
        Packet::Pubcomp(ack) => (PacketKind::Pubcomp, Some(ack.packet_id)),
        Packet::Subscribe(subscribe) => (PacketKind::Subscribe, Some(subscribe.packet_id)),
        Packet::Suback(suback) => (PacketKind::Suback, Some(suback.packet_id)),
        Packet::Unsubscribe(unsubscribe) => (PacketKind::Unsubscribe, Some(unsubscribe.packet_id)),
        Packet::Unsuback(unsuback) => (PacketKind::Unsuback, Some(unsuback.packet_id)),
        Packet::Pingreq => (PacketKind::Pingreq, None),
        Packet::Pingresp => (PacketKind::Pingresp, None),
        Packet::Disconnect(_) => (PacketKind::Disconnect, None),
        Packet::Auth(_) => (PacketKind::Auth, None),
    };
    let publish = match packet {
        Packet::Publish(publish) => Some(PublishTrace {
            topic: publish.topic.into(),
            payload_length: publish.payload.len(),
            qos: publish.qos,
            dup: publish.dup,
            retain: publish.retain,
        }),
        _ => None,
    };
    Event::Packet { connection, sent: false, kind, packet_id, publish }
}
