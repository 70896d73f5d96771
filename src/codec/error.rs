//! What can be wrong with bytes.

use std::fmt;

use super::property::PROPERTIES_LENGTH_MAX;
use super::reason::ReasonCode;

/// Why bytes are not an MQTT packet. Wrong behaviour in well-formed packets is `broker::CloseReason`, not this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeError {
    /// Packet type 0 or 15, which are reserved [MQTT-2.2.2-2].
    ReservedPacketType,
    /// The low four bits of the first byte are not what this packet type prescribes [MQTT-2.2.2-2].
    ReservedFlags,
    /// A PUBLISH with both QoS bits set [MQTT-3.3.1-4].
    ReservedQoS,
    /// A PUBLISH with DUP at QoS 0 [MQTT-3.3.1-2].
    DupAtQoS0,
    /// The remaining length has a fourth byte that announces a fifth.
    RemainingLengthTooLong,
    /// The whole packet, fixed header included, is larger than allowed here.
    PacketTooLarge,
    /// A field runs past the end of its packet.
    Truncated,
    /// Bytes are left over behind the last field.
    TrailingBytes,
    /// A text field is not valid UTF-8 [MQTT-1.5.3-1].
    InvalidUtf8,
    /// A text field holds U+0000 [MQTT-1.5.3-2].
    NulCharacter,
    /// A packet identifier of zero [MQTT-2.3.1-1].
    PacketIdZero,
    /// The protocol name is neither `MQTT` nor `MQIsdp` [MQTT-3.1.2-1].
    WrongProtocolName,
    /// A known protocol name with a level that is not served [MQTT-3.1.2-2]; answered by CONNACK 1.
    UnsupportedProtocolLevel(u8),
    /// Bit 0 of the connect flags is set [MQTT-3.1.2-3].
    ReservedConnectFlag,
    /// Will QoS or will retain without a will, or a will QoS of 3 [MQTT-3.1.2-13] [MQTT-3.1.2-14] [MQTT-3.1.2-15].
    WillFlags,
    /// A password without a user name [MQTT-3.1.2-22].
    PasswordWithoutUsername,
    /// A SUBSCRIBE or UNSUBSCRIBE without a filter [MQTT-3.8.3-3] [MQTT-3.10.3-2].
    NoTopicFilter,
    /// Reserved bits in a subscription's options [MQTT-3.8.3-4] [MQTT5-3.8.3-5].
    SubscriptionOptions,
    /// QoS 3 or a retain handling of 3 in a subscription's options.
    SubscriptionOptionValue,
    /// A variable byte integer of more bytes than it needs, or than it may have [MQTT5-1.5.5-1].
    OverlongInteger,
    /// A property that the standard does not have.
    UnknownProperty(u8),
    /// A property that this packet cannot have.
    MisplacedProperty(u8),
    /// A property that stands twice and may stand once.
    RepeatedProperty(u8),
    /// A value that this property cannot have.
    PropertyValue(u8),
    /// More than [`PROPERTIES_LENGTH_MAX`] bytes of properties, and no PUBLISH.
    TooManyProperties,
    /// A topic alias of 0 [MQTT5-3.3.2-8].
    TopicAliasZero,
    /// Reserved bits of a CONNACK are set.
    ConnackFlags,
    /// A return code or reason code that this packet does not have.
    UnknownReasonCode(u8),
}

impl DecodeError {
    /// What a server of 5.0 says before it closes [MQTT5-4.13.1-1].
    pub const fn reason(self) -> ReasonCode {
        match self {
            Self::UnsupportedProtocolLevel(_) => ReasonCode::UnsupportedProtocolVersion,
            Self::PacketTooLarge => ReasonCode::PacketTooLarge,
            Self::TopicAliasZero => ReasonCode::TopicAliasInvalid,
            // A limit of this implementation [MQTT5-4.13.1-1].
            Self::TooManyProperties => ReasonCode::QuotaExceeded,
            Self::PacketIdZero
            | Self::NoTopicFilter
            | Self::SubscriptionOptionValue
            | Self::RepeatedProperty(_)
            | Self::PropertyValue(_)
            | Self::UnknownReasonCode(_) => ReasonCode::ProtocolError,
            _ => ReasonCode::MalformedPacket,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReservedPacketType => "reserved packet type",
            Self::ReservedFlags => "reserved flag bits are wrong",
            Self::ReservedQoS => "QoS 3",
            Self::DupAtQoS0 => "DUP at QoS 0",
            Self::RemainingLengthTooLong => "remaining length of more than four bytes",
            Self::PacketTooLarge => "packet larger than allowed",
            Self::Truncated => "a field runs past the end of the packet",
            Self::TrailingBytes => "bytes behind the last field",
            Self::InvalidUtf8 => "invalid UTF-8",
            Self::NulCharacter => "U+0000 in a text field",
            Self::PacketIdZero => "packet identifier 0",
            Self::WrongProtocolName => "wrong protocol name",
            Self::UnsupportedProtocolLevel(level) => {
                return write!(f, "unsupported protocol level {level}");
            }
            Self::ReservedConnectFlag => "reserved connect flag is set",
            Self::WillFlags => "will flags contradict each other",
            Self::PasswordWithoutUsername => "password without user name",
            Self::NoTopicFilter => "no topic filter",
            Self::SubscriptionOptions => "reserved bits in subscription options",
            Self::SubscriptionOptionValue => "QoS 3 or retain handling 3 in subscription options",
            Self::OverlongInteger => "a variable byte integer of more bytes than it needs",
            Self::UnknownProperty(id) => return write!(f, "unknown property {id:#04x}"),
            Self::MisplacedProperty(id) => {
                return write!(f, "property {id:#04x} in a packet that cannot have it");
            }
            Self::RepeatedProperty(id) => return write!(f, "property {id:#04x} twice"),
            Self::PropertyValue(id) => {
                return write!(f, "property {id:#04x} with a value that it cannot have");
            }
            Self::TooManyProperties => {
                return write!(f, "more than {PROPERTIES_LENGTH_MAX} bytes of properties");
            }
            Self::TopicAliasZero => "topic alias 0",
            Self::ConnackFlags => "reserved bits in CONNACK flags",
            Self::UnknownReasonCode(code) => {
                return write!(f, "code {code:#04x}, which this packet does not have");
            }
        })
    }
}

impl std::error::Error for DecodeError {}
