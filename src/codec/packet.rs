//! The packets, in the shape of MQTT 5.0.
//!
//! Packets of 3.1.1 and 3.1 decode into the same types, so nothing above the codec asks which version it serves.
//! Everything borrows from the frame: decoding allocates nothing.

use std::fmt;
use std::num::NonZeroU16;

use super::reason::ReasonCode;

/// The largest packet MQTT can express, fixed header included: 268,435,455 bytes behind a header of 5.
pub const PACKET_SIZE_MAX: u32 = 268_435_455 + 5;

/// A packet identifier: 1 to 65,535, never 0 [MQTT-2.3.1-1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

impl PacketId {
    /// The first identifier.
    pub const FIRST: Self = Self(NonZeroU16::MIN);

    /// The identifier with this number, or `None` for 0.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        self.0.get()
    }

    /// The identifier that follows this one; after 65,535 comes 1.
    pub const fn next(self) -> Self {
        match self.0.checked_add(1) {
            Some(number) => Self(number),
            None => Self::FIRST,
        }
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// The level with this number, or `None` for 3 and above.
    pub const fn new(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }

    /// The number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// The protocol of a connection, fixed by its CONNECT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// MQTT 3.1: name `MQIsdp`, level 3.
    Mqtt31,
    /// MQTT 3.1.1: name `MQTT`, level 4. Also what an unidentified connection is read as.
    #[default]
    Mqtt311,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mqtt31 => "3.1",
            Self::Mqtt311 => "3.1.1",
        })
    }
}

/// One MQTT packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the packet of its name; the types say the rest.
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Connack(Connack),
    Publish(Publish<'a>),
    Puback(Ack),
    Pubrec(Ack),
    Pubrel(Ack),
    Pubcomp(Ack),
    Subscribe(Subscribe<'a>),
    Suback(Suback<'a>),
    Unsubscribe(Unsubscribe<'a>),
    Unsuback(Unsuback),
    Pingreq,
    Pingresp,
    Disconnect(Disconnect),
}

/// CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    /// The protocol the client speaks.
    pub protocol: Protocol,
    /// Whether a stored session is to be thrown away. "CleanSession" before 5.0, where it also ends the session with
    /// its connection.
    pub clean_start: bool,
    /// Seconds between packets that the client promises; 0 is no promise.
    pub keep_alive_secs: u16,
    /// The client identifier; empty asks the server for one.
    pub client_id: &'a str,
    /// What to publish when the connection ends badly.
    pub will: Option<Will<'a>>,
    /// The user name.
    pub username: Option<&'a str>,
    /// The password: binary.
    pub password: Option<&'a [u8]>,
}

/// The will in a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    /// Where to publish it.
    pub topic: &'a str,
    /// What to publish: binary, may be empty.
    pub payload: &'a [u8],
    /// At which QoS.
    pub qos: QoS,
    /// Whether to retain it.
    pub retain: bool,
}

/// CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connack {
    /// Whether the server goes on with a stored session.
    pub session_present: bool,
    /// Success, or why not.
    pub reason: ReasonCode,
}

/// PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Whether this is a repetition.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain: from a client "keep this", from a server "this was kept".
    pub retain: bool,
    /// Topic name, as sent.
    pub topic: &'a str,
    /// Present exactly when `qos` is above 0.
    pub packet_id: Option<PacketId>,
    /// The application's bytes.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The identifier of the PUBLISH it belongs to.
    pub packet_id: PacketId,
    /// Always `Success` before 5.0.
    pub reason: ReasonCode,
}

/// SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Repeated by the SUBACK.
    pub packet_id: PacketId,
    /// The subscriptions asked for: at least one.
    pub requests: SubscriptionRequests<'a>,
}

/// One filter of a SUBSCRIBE with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionRequest<'a> {
    /// The filter as sent: valid UTF-8, but its syntax is unchecked.
    pub filter: &'a str,
    /// The QoS asked for.
    pub qos: QoS,
}

/// SUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suback<'a> {
    /// The identifier of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// One byte per filter: the granted QoS or a failure of 0x80 and above.
    pub reasons: &'a [u8],
}

/// UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Repeated by the UNSUBACK.
    pub packet_id: PacketId,
    /// The filters to remove: at least one.
    pub filters: TopicFilters<'a>,
}

/// UNSUBACK. Has no payload before 5.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsuback {
    /// The identifier of the UNSUBSCRIBE.
    pub packet_id: PacketId,
}

/// DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect {
    /// Always `Success` before 5.0.
    pub reason: ReasonCode,
}

/// The filters of a SUBSCRIBE: an iterator over bytes that decoding has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionRequests<'a>(pub(super) &'a [u8]);

/// The filters of an UNSUBSCRIBE: an iterator over bytes that decoding has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFilters<'a>(pub(super) &'a [u8]);
