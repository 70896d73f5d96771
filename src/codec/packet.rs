//! The packets, in the shape of MQTT 5.0.
//!
//! Packets of 3.1.1 and 3.1 decode into the same types, without properties and with the codes that they imply, so
//! nothing above the codec asks which version it serves.
//! Everything borrows from the frame: decoding allocates nothing.

use std::fmt;
use std::num::NonZeroU16;

use super::property::Properties;
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
    /// MQTT 5.0: name `MQTT`, level 5.
    Mqtt5,
}

impl Protocol {
    /// Whether its packets have properties and reason codes.
    #[inline]
    pub const fn has_properties(self) -> bool {
        matches!(self, Self::Mqtt5)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mqtt31 => "3.1",
            Self::Mqtt311 => "3.1.1",
            Self::Mqtt5 => "5.0",
        })
    }
}

/// One MQTT packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the packet of its name; the types say the rest.
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Connack(Connack<'a>),
    Publish(Publish<'a>),
    Puback(Ack<'a>),
    Pubrec(Ack<'a>),
    Pubrel(Ack<'a>),
    Pubcomp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    Suback(Suback<'a>),
    Unsubscribe(Unsubscribe<'a>),
    Unsuback(Unsuback<'a>),
    Pingreq,
    Pingresp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
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
    /// Session expiry, receive maximum, maximum packet size, topic alias maximum, request response information, request
    /// problem information, user properties, authentication.
    pub properties: Properties<'a>,
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
    /// Will delay, and what its PUBLISH will have.
    pub properties: Properties<'a>,
}

/// CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connack<'a> {
    /// Whether the server goes on with a stored session.
    pub session_present: bool,
    /// Success, or why not.
    pub reason: ReasonCode,
    /// What the server grants and wants.
    pub properties: Properties<'a>,
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
    /// Topic name, as sent. May be empty with a topic alias.
    pub topic: &'a str,
    /// Present exactly when `qos` is above 0.
    pub packet_id: Option<PacketId>,
    /// Payload format, message expiry, topic alias, response topic, correlation data, user properties, subscription
    /// identifiers, content type.
    pub properties: Properties<'a>,
    /// The application's bytes.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// The identifier of the PUBLISH it belongs to.
    pub packet_id: PacketId,
    /// Always `Success` before 5.0.
    pub reason: ReasonCode,
    /// Reason string, user properties.
    pub properties: Properties<'a>,
}

impl Ack<'_> {
    /// Says success and nothing else.
    pub const fn success(packet_id: PacketId) -> Self {
        Self { packet_id, reason: ReasonCode::Success, properties: Properties::NONE }
    }
}

/// SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Repeated by the SUBACK.
    pub packet_id: PacketId,
    /// Subscription identifier, user properties.
    pub properties: Properties<'a>,
    /// The subscriptions asked for: at least one.
    pub requests: SubscriptionRequests<'a>,
}

/// One filter of a SUBSCRIBE with its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionRequest<'a> {
    /// The filter as sent: valid UTF-8, but its syntax is unchecked.
    pub filter: &'a str,
    /// How the messages are wanted.
    pub options: SubscriptionOptions,
}

/// How a subscriber wants its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SubscriptionOptions {
    /// The highest QoS of a delivery.
    pub qos: QoS,
    /// Whether the subscriber's own messages are left out. Never before 5.0.
    pub no_local: bool,
    /// Whether the publisher's retain flag is passed on. Never before 5.0.
    pub retain_as_published: bool,
    /// Which retained messages SUBSCRIBE itself brings. Always all before 5.0.
    pub retain_handling: RetainHandling,
}

/// Which retained messages a SUBSCRIBE brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// All that match, every time.
    #[default]
    Send = 0,
    /// All that match, if the subscription is new.
    SendIfNew = 1,
    /// None.
    DoNotSend = 2,
}

impl From<QoS> for SubscriptionOptions {
    /// What a SUBSCRIBE of 3.1.1 asks for.
    fn from(qos: QoS) -> Self {
        Self { qos, ..Self::default() }
    }
}

impl SubscriptionOptions {
    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        self.qos as u8
            | (self.no_local as u8) << 2
            | (self.retain_as_published as u8) << 3
            | (self.retain_handling as u8) << 4
    }
}

/// SUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suback<'a> {
    /// The identifier of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// Reason string, user properties.
    pub properties: Properties<'a>,
    /// One byte per filter: the granted QoS or a failure of 0x80 and above.
    pub reasons: &'a [u8],
}

/// UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Repeated by the UNSUBACK.
    pub packet_id: PacketId,
    /// User properties.
    pub properties: Properties<'a>,
    /// The filters to remove: at least one.
    pub filters: TopicFilters<'a>,
}

/// UNSUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsuback<'a> {
    /// The identifier of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// Reason string, user properties.
    pub properties: Properties<'a>,
    /// One byte per filter; none before 5.0.
    pub reasons: &'a [u8],
}

/// DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect<'a> {
    /// Always `Success` before 5.0.
    pub reason: ReasonCode,
    /// Session expiry, reason string, user properties, server reference.
    pub properties: Properties<'a>,
}

impl Disconnect<'_> {
    /// The normal end.
    pub const NORMAL: Self = Self { reason: ReasonCode::Success, properties: Properties::NONE };
}

/// AUTH. Does not exist before 5.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth<'a> {
    /// Success, continue, or begin again.
    pub reason: ReasonCode,
    /// Method, data, reason string, user properties.
    pub properties: Properties<'a>,
}

/// The filters of a SUBSCRIBE: an iterator over bytes that decoding has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionRequests<'a>(pub(super) &'a [u8]);

impl<'a> SubscriptionRequests<'a> {
    /// From bytes that this has lent before.
    pub(crate) const fn checked_before(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Those that are left.
    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// The filters of an UNSUBSCRIBE: an iterator over bytes that decoding has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFilters<'a>(pub(super) &'a [u8]);

impl<'a> TopicFilters<'a> {
    /// From bytes that this has lent before.
    pub(crate) const fn checked_before(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Those that are left.
    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// The filters of a SUBSCRIBE of which nothing is checked yet. What follows an error has no meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UncheckedRequests<'a> {
    pub(super) rest: &'a [u8],
    pub(super) protocol: Protocol,
}

impl<'a> UncheckedRequests<'a> {
    pub(crate) const fn new(bytes: &'a [u8], protocol: Protocol) -> Self {
        Self { rest: bytes, protocol }
    }

    /// Those that are left.
    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.rest
    }
}

/// The same for the filters of an UNSUBSCRIBE.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UncheckedFilters<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> UncheckedFilters<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Those that are left.
    pub(crate) const fn as_bytes(self) -> &'a [u8] {
        self.rest
    }
}
