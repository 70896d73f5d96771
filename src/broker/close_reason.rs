//! Why a connection ended: the one vocabulary from which log line, counter and reason code derive.

use std::fmt;

use crate::codec::{DecodeError, Protocol, ReasonCode};
use crate::topics::TopicError;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The client sent DISCONNECT, with this code.
    Disconnected(ReasonCode),
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
    /// What the client asked for cannot be stored, so it could not be promised.
    StoreFailed,
    /// More QoS 2 messages begun than the server takes at once [MQTT5-3.3.4-7].
    ReceiveMaximum,
    /// A topic alias above the maximum [MQTT5-3.2.2-17].
    TopicAlias,
    /// A topic alias that was not set on this connection [MQTT5-3.3.2-7].
    UnknownTopicAlias,
    /// A subscription identifier in a PUBLISH of a client [MQTT5-3.3.4-6].
    SubscriptionIdInPublish,
    /// A response topic with a wildcard [MQTT5-3.3.2-14].
    ResponseTopic,
    /// No Local on a shared subscription [MQTT5-3.8.3-4].
    NoLocalOnShared,
    /// A will whose payload is not what its payload format says.
    PayloadFormat,
    /// A DISCONNECT with a code that only a server has [MQTT5-3.14.2-1].
    DisconnectReason,
    /// A DISCONNECT that gives an expiry to a session that was to have none.
    SessionExpiryRaised,
    /// An answer larger than the largest packet that the client takes [MQTT5-3.1.2-24].
    ReplyTooLarge,
    /// A method of authentication that nobody here knows [MQTT5-4.12.0-1].
    AuthenticationMethod,
    /// A packet that does not fit the exchange of authentication, or AUTH without one [MQTT5-4.12.0-7].
    AuthenticationUnexpected,
    /// Authentication failed, with this code [MQTT5-4.12.0-4] [MQTT5-4.12.1-2].
    AuthenticationRefused(ReasonCode),
    /// The broker is being drained: another server is to be used.
    Redirected {
        /// Whether from now on, or for the moment.
        permanently: bool,
    },
    /// The server stops.
    ServerShutdown,
}

impl CloseReason {
    /// Whether the end was the client's own wish, so that its will is not published [MQTT-3.14.4-3]
    /// [MQTT5-3.14.4-3].
    pub const fn is_disconnect(self) -> bool {
        matches!(self, Self::Disconnected(ReasonCode::Success))
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
                | Self::ReceiveMaximum
                | Self::TopicAlias
                | Self::UnknownTopicAlias
                | Self::SubscriptionIdInPublish
                | Self::ResponseTopic
                | Self::NoLocalOnShared
                | Self::PayloadFormat
                | Self::DisconnectReason
                | Self::SessionExpiryRaised
                | Self::AuthenticationMethod
                | Self::AuthenticationUnexpected
                | Self::AuthenticationRefused(_)
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
                | Self::StoreFailed
                | Self::ReplyTooLarge
        )
    }

    /// The one code for it, or `None` where nobody is there to be told, or the standard wants a bare close.
    pub const fn code(self) -> Option<ReasonCode> {
        Some(match self {
            Self::Disconnected(_)
            | Self::ConnectionLost
            | Self::ConnectionFailed
            | Self::HandshakeTimeout
            | Self::ConnectExpected
            | Self::Malformed(DecodeError::WrongProtocolName) => return None,
            Self::TakenOver => ReasonCode::SessionTakenOver,
            Self::KeepAliveTimeout => ReasonCode::KeepAliveTimeout,
            Self::Malformed(error) => error.reason(),
            Self::SecondConnect
            | Self::ServerPacket
            | Self::TopicName(TopicError::Empty)
            | Self::WrongAck
            | Self::UnknownTopicAlias
            | Self::SubscriptionIdInPublish
            | Self::ResponseTopic
            | Self::NoLocalOnShared
            | Self::DisconnectReason
            | Self::SessionExpiryRaised
            | Self::AuthenticationUnexpected => ReasonCode::ProtocolError,
            Self::TopicName(_) | Self::WillTopic(_) => ReasonCode::TopicNameInvalid,
            Self::TopicFilter(_) => ReasonCode::TopicFilterInvalid,
            Self::ClientIdRefused => ReasonCode::ClientIdentifierNotValid,
            Self::TooManyConnections | Self::TooManySessions => ReasonCode::ServerBusy,
            Self::Stalled | Self::OutboxFull | Self::BrokerFull | Self::RetainedFull => {
                ReasonCode::QuotaExceeded
            }
            Self::StoreFailed => ReasonCode::ServerUnavailable,
            Self::ReceiveMaximum => ReasonCode::ReceiveMaximumExceeded,
            Self::TopicAlias => ReasonCode::TopicAliasInvalid,
            Self::PayloadFormat => ReasonCode::PayloadFormatInvalid,
            Self::ReplyTooLarge => ReasonCode::PacketTooLarge,
            Self::AuthenticationMethod => ReasonCode::BadAuthenticationMethod,
            Self::AuthenticationRefused(reason) => reason,
            Self::Redirected { permanently: false } => ReasonCode::UseAnotherServer,
            Self::Redirected { permanently: true } => ReasonCode::ServerMoved,
            Self::ServerShutdown => ReasonCode::ServerShuttingDown,
        })
    }

    /// What a CONNACK says when a CONNECT ends so, or `None` where the standard wants a bare close [MQTT-3.1.4-1]: before
    /// 5.0 that is so for everything that a return code would not help to mend.
    pub fn connack(self, protocol: Protocol) -> Option<ReasonCode> {
        let is_told_to_all = matches!(
            self,
            Self::Malformed(DecodeError::UnsupportedProtocolLevel(_))
                | Self::ClientIdRefused
                | Self::TooManyConnections
                | Self::TooManySessions
                | Self::StoreFailed
                | Self::Redirected { .. }
                | Self::AuthenticationRefused(_)
        );
        self.code().filter(|code| code.is_of_connack() && (is_told_to_all || protocol.has_properties()))
    }

    /// What a DISCONNECT says when a connection ends so.
    pub fn disconnect(self) -> Option<ReasonCode> {
        match self {
            // A second CONNECT, whatever else is wrong with it.
            Self::Malformed(DecodeError::UnsupportedProtocolLevel(_) | DecodeError::WrongProtocolName) => {
                Some(ReasonCode::ProtocolError)
            }
            // "Server unavailable" is a word of CONNACK alone.
            Self::StoreFailed => Some(ReasonCode::ImplementationSpecificError),
            _ => self.code().filter(|code| code.is_of_disconnect()),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected(ReasonCode::Success) => "client disconnected",
            Self::Disconnected(ReasonCode::DisconnectWithWill) => "client disconnected and left its will",
            Self::Disconnected(reason) => {
                return write!(f, "client disconnected for a reason: {:#04x}", reason.number());
            }
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
            Self::StoreFailed => "nothing can be stored at the moment",
            Self::ReceiveMaximum => {
                "protocol violation: more QoS 2 messages at once than the receive maximum"
            }
            Self::TopicAlias => "protocol violation: topic alias above the maximum",
            Self::UnknownTopicAlias => "protocol violation: topic alias that was not set",
            Self::SubscriptionIdInPublish => {
                "protocol violation: subscription identifier in a client's PUBLISH"
            }
            Self::ResponseTopic => "protocol violation: wildcard in a response topic",
            Self::NoLocalOnShared => "protocol violation: No Local on a shared subscription",
            Self::PayloadFormat => "the will's payload is not the UTF-8 text that it says to be",
            Self::DisconnectReason => "protocol violation: DISCONNECT with a reason that only a server has",
            Self::SessionExpiryRaised => {
                "protocol violation: DISCONNECT with a session expiry where CONNECT had none"
            }
            Self::ReplyTooLarge => "an answer larger than the largest packet that the client takes",
            Self::AuthenticationMethod => "unknown authentication method",
            Self::AuthenticationUnexpected => {
                "protocol violation: a packet that does not fit the authentication"
            }
            Self::AuthenticationRefused(_) => "authentication failed",
            Self::Redirected { .. } => "sent to another server",
            Self::ServerShutdown => "server shutdown",
        })
    }
}
