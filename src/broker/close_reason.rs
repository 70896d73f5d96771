//! Why a connection ended: the one vocabulary from which log line, counter and reason code derive.

use std::fmt;

use crate::codec::{DecodeError, ReasonCode};
use crate::topics::TopicError;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client sent DISCONNECT.
    Disconnected,
    /// The peer closed the network connection without DISCONNECT.
    ConnectionLost,
    /// Reading or writing failed.
    ConnectionFailed,
    /// Another connection presented the same client id [MQTT-3.1.4-2].
    TakenOver,
    /// No complete packet within one and a half keep-alive intervals [MQTT-3.1.2-24].
    KeepAliveTimeout,
    /// No complete CONNECT in time.
    HandshakeTimeout,
    /// The peer read nothing for too long while bytes were waiting.
    Stalled,
    /// Replies that the peer did not read outgrew its outgoing buffer.
    OutboxFull,
    /// The bytes are not an MQTT packet [MQTT-4.8.0-1].
    Malformed(DecodeError),
    /// A packet other than CONNECT came first [MQTT-3.1.0-1].
    ConnectExpected,
    /// A second CONNECT [MQTT-3.1.0-2].
    SecondConnect,
    /// A packet that only a server may send.
    ServerPacket,
    /// A topic name that is none [MQTT-3.3.2-2] [MQTT-4.7.3-1].
    TopicName(TopicError),
    /// A will topic that is no topic name.
    WillTopic(TopicError),
    /// A topic filter that is none [MQTT-4.7.1-2] [MQTT-4.7.1-3].
    TopicFilter(TopicError),
    /// An acknowledgement that does not fit the state of its message.
    WrongAck,
    /// A client id that may not be used so [MQTT-3.1.3-8].
    ClientIdRefused,
    /// As many clients are connected as may be.
    TooManyConnections,
    /// As many sessions exist as may, and none of them is absent.
    TooManySessions,
    /// The broker holds all the message bytes it may, so it could not keep its promise for one more.
    BrokerFull,
    /// No room for one more retained message.
    RetainedFull,
    /// The server stops.
    ServerShutdown,
}

impl CloseReason {
    /// Whether the end was the client's own wish, so that its will is not published [MQTT-3.14.4-3].
    pub const fn is_disconnect(self) -> bool {
        matches!(self, Self::Disconnected)
    }

    /// Whether the peer broke the protocol.
    pub const fn is_violation(self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::ConnectExpected
                | Self::SecondConnect
                | Self::ServerPacket
                | Self::TopicName(_)
                | Self::WillTopic(_)
                | Self::TopicFilter(_)
                | Self::WrongAck
                | Self::ClientIdRefused
        )
    }

    /// Whether a limit or a time-out of ours ended the connection.
    pub const fn is_limit(self) -> bool {
        matches!(
            self,
            Self::KeepAliveTimeout
                | Self::HandshakeTimeout
                | Self::Stalled
                | Self::OutboxFull
                | Self::TooManyConnections
                | Self::TooManySessions
                | Self::BrokerFull
                | Self::RetainedFull
        )
    }

    /// What a CONNACK says when a CONNECT ends so, or `None` where the standard wants a bare close [MQTT-3.1.4-1].
    pub const fn connack(self) -> Option<ReasonCode> {
        match self {
            Self::Malformed(DecodeError::UnsupportedProtocolLevel(_)) => {
                Some(ReasonCode::UnsupportedProtocolVersion)
            }
            Self::ClientIdRefused => Some(ReasonCode::ClientIdentifierNotValid),
            Self::TooManyConnections | Self::TooManySessions => Some(ReasonCode::ServerUnavailable),
            _ => None,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "client disconnected",
            Self::ConnectionLost => "connection lost",
            Self::ConnectionFailed => "connection failed",
            Self::TakenOver => "taken over by a new connection with the same client id",
            Self::KeepAliveTimeout => "keep-alive timeout",
            Self::HandshakeTimeout => "no CONNECT in time",
            Self::Stalled => "the client has stopped reading",
            Self::OutboxFull => "the client does not read its replies",
            Self::Malformed(error) => return write!(f, "malformed packet: {error}"),
            Self::ConnectExpected => "protocol violation: the first packet is not CONNECT",
            Self::SecondConnect => "protocol violation: second CONNECT",
            Self::ServerPacket => "protocol violation: a packet that only a server sends",
            Self::TopicName(error) => return write!(f, "protocol violation: topic name: {error}"),
            Self::WillTopic(error) => return write!(f, "protocol violation: will topic: {error}"),
            Self::TopicFilter(error) => return write!(f, "protocol violation: topic filter: {error}"),
            Self::WrongAck => "protocol violation: acknowledgement does not fit the state of its message",
            Self::ClientIdRefused => "client id refused: an empty one needs a clean session",
            Self::TooManyConnections => "too many connections",
            Self::TooManySessions => "too many sessions, and every one is connected",
            Self::BrokerFull => "the broker holds as many message bytes as it may",
            Self::RetainedFull => "no room for another retained message",
            Self::ServerShutdown => "server shutdown",
        })
    }
}
