//! Reason codes: the one vocabulary for how a request or a connection ended, in the numbers of MQTT 5.0.
//!
//! MQTT 3.1.1 knows fewer and other numbers; the translation is here and nowhere else.

/// How a request or a connection ended. The discriminant is the byte of MQTT 5.0 section 2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReasonCode {
    /// Success; in a SUBACK also granted QoS 0, in a DISCONNECT the normal end.
    Success = 0x00,
    /// In a SUBACK: granted QoS 1.
    GrantedQoS1 = 0x01,
    /// In a SUBACK: granted QoS 2.
    GrantedQoS2 = 0x02,
    /// In an UNSUBACK: there was no such subscription.
    NoSubscriptionExisted = 0x11,
    /// Refused for a reason that has no code of its own.
    UnspecifiedError = 0x80,
    /// The protocol level is not one of ours.
    UnsupportedProtocolVersion = 0x84,
    /// The client identifier is valid UTF-8 but not allowed here.
    ClientIdentifierNotValid = 0x85,
    /// User name or password is wrong.
    BadUserNameOrPassword = 0x86,
    /// The client may not do this.
    NotAuthorized = 0x87,
    /// The server is not available.
    ServerUnavailable = 0x88,
    /// A packet identifier that is not in use.
    PacketIdentifierNotFound = 0x92,
    /// A limit of the server is reached.
    QuotaExceeded = 0x97,
}

impl ReasonCode {
    /// Whether the request failed.
    pub const fn is_error(self) -> bool {
        self as u8 >= 0x80
    }

    /// The return code of a 3.1.1 CONNACK, or `None` where that version can only close the connection without one
    /// [MQTT-3.2.2-6].
    pub const fn connect_return_code(self) -> Option<u8> {
        match self {
            Self::Success => Some(0),
            Self::UnsupportedProtocolVersion => Some(1),
            Self::ClientIdentifierNotValid => Some(2),
            Self::ServerUnavailable | Self::QuotaExceeded => Some(3),
            Self::BadUserNameOrPassword => Some(4),
            Self::NotAuthorized => Some(5),
            Self::GrantedQoS1
            | Self::GrantedQoS2
            | Self::NoSubscriptionExisted
            | Self::UnspecifiedError
            | Self::PacketIdentifierNotFound => None,
        }
    }

    /// The meaning of a 3.1.1 CONNACK return code.
    pub const fn from_connect_return_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Success),
            1 => Some(Self::UnsupportedProtocolVersion),
            2 => Some(Self::ClientIdentifierNotValid),
            3 => Some(Self::ServerUnavailable),
            4 => Some(Self::BadUserNameOrPassword),
            5 => Some(Self::NotAuthorized),
            _ => None,
        }
    }

    /// The byte of a 3.1.1 SUBACK, which knows the granted QoS and one failure only [MQTT-3.9.3-2].
    pub const fn suback_return_code(self) -> u8 {
        if self.is_error() { 0x80 } else { self as u8 }
    }
}
