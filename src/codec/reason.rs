//! Reason codes: the one vocabulary for how a request or a connection ended, in the numbers of MQTT 5.0.
//!
//! MQTT 3.1.1 knows fewer and other numbers; the translation is here and nowhere else.

/// Declares the codes with their numbers, so that each is written once.
macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// How a request or a connection ended. The discriminant is the byte of MQTT 5.0 section 2.4.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl ReasonCode {
            /// The code with this number, or `None` if the standard has none.
            pub const fn new(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

reason_codes! {
    /// Success; in a SUBACK also granted QoS 0, in a DISCONNECT the normal end.
    Success = 0x00,
    /// In a SUBACK: granted QoS 1.
    GrantedQoS1 = 0x01,
    /// In a SUBACK: granted QoS 2.
    GrantedQoS2 = 0x02,
    /// In a DISCONNECT: the client leaves and wants its will published.
    DisconnectWithWill = 0x04,
    /// The message was taken, but nobody is subscribed to its topic.
    NoMatchingSubscribers = 0x10,
    /// In an UNSUBACK: there was no such subscription.
    NoSubscriptionExisted = 0x11,
    /// In an AUTH: the exchange goes on.
    ContinueAuthentication = 0x18,
    /// In an AUTH: a client that is connected authenticates again.
    Reauthenticate = 0x19,
    /// Refused for a reason that has no code of its own.
    UnspecifiedError = 0x80,
    /// The bytes are not as the standard wants them.
    MalformedPacket = 0x81,
    /// The packet is well formed and must not be sent so, or not now.
    ProtocolError = 0x82,
    /// Understood, and not done for a reason of the implementation's own.
    ImplementationSpecificError = 0x83,
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
    /// The server is busy: come again later.
    ServerBusy = 0x89,
    /// The client is banned.
    Banned = 0x8A,
    /// The server stops.
    ServerShuttingDown = 0x8B,
    /// The method of authentication is unknown, or not the one that was begun with.
    BadAuthenticationMethod = 0x8C,
    /// No packet within one and a half keep-alive intervals.
    KeepAliveTimeout = 0x8D,
    /// Another connection took the session.
    SessionTakenOver = 0x8E,
    /// The filter is no filter, or not allowed here.
    TopicFilterInvalid = 0x8F,
    /// The topic is no topic name, or not allowed here.
    TopicNameInvalid = 0x90,
    /// The packet identifier is in use.
    PacketIdentifierInUse = 0x91,
    /// A packet identifier that is not in use.
    PacketIdentifierNotFound = 0x92,
    /// More messages at QoS 1 and 2 than were allowed at once.
    ReceiveMaximumExceeded = 0x93,
    /// A topic alias of 0, or above the maximum.
    TopicAliasInvalid = 0x94,
    /// The packet is larger than was allowed.
    PacketTooLarge = 0x95,
    /// Messages come too fast.
    MessageRateTooHigh = 0x96,
    /// A limit is reached.
    QuotaExceeded = 0x97,
    /// Ended by an administrator.
    AdministrativeAction = 0x98,
    /// The payload is not what the payload format says.
    PayloadFormatInvalid = 0x99,
    /// The server keeps no retained messages.
    RetainNotSupported = 0x9A,
    /// The server does not serve this QoS.
    QoSNotSupported = 0x9B,
    /// Use another server for now.
    UseAnotherServer = 0x9C,
    /// Use another server from now on.
    ServerMoved = 0x9D,
    /// The server serves no shared subscriptions.
    SharedSubscriptionsNotSupported = 0x9E,
    /// Connections come too fast.
    ConnectionRateExceeded = 0x9F,
    /// Connected for as long as is allowed.
    MaximumConnectTime = 0xA0,
    /// The server serves no subscription identifiers.
    SubscriptionIdsNotSupported = 0xA1,
    /// The server serves no filters with wildcards.
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl ReasonCode {
    /// The number on the wire of 5.0.
    pub const fn number(self) -> u8 {
        self as u8
    }

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
            Self::ServerUnavailable
            | Self::ServerBusy
            | Self::QuotaExceeded
            | Self::UseAnotherServer
            | Self::ServerMoved => Some(3),
            Self::BadUserNameOrPassword => Some(4),
            Self::NotAuthorized | Self::Banned => Some(5),
            _ => None,
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

    /// Whether a PUBACK or PUBREC may say this [MQTT5-3.4.2-1] [MQTT5-3.5.2-1].
    pub const fn is_of_receipt(self) -> bool {
        matches!(self as u8, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
    }

    /// Whether a PUBREL or PUBCOMP may say this [MQTT5-3.6.2-1] [MQTT5-3.7.2-1].
    pub const fn is_of_release(self) -> bool {
        matches!(self as u8, 0x00 | 0x92)
    }

    /// Whether a CONNACK may say this [MQTT5-3.2.2-8].
    pub const fn is_of_connack(self) -> bool {
        matches!(
            self as u8,
            0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F
        )
    }

    /// Whether a SUBACK may say this [MQTT5-3.9.3-2].
    pub const fn is_of_suback(self) -> bool {
        matches!(self as u8, 0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2)
    }

    /// Whether an UNSUBACK may say this [MQTT5-3.11.3-2].
    pub const fn is_of_unsuback(self) -> bool {
        matches!(self as u8, 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91)
    }

    /// Whether a DISCONNECT may say this [MQTT5-3.14.2-1].
    pub const fn is_of_disconnect(self) -> bool {
        self.is_of_client_disconnect() || matches!(self as u8, 0x87 | 0x89 | 0x8B | 0x8D..=0x8F | 0x9A..=0xA2)
    }

    /// Whether a client's DISCONNECT may say this [MQTT5-3.14.2-1].
    pub const fn is_of_client_disconnect(self) -> bool {
        matches!(self as u8, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99)
    }

    /// Whether an AUTH may say this [MQTT5-3.15.2-1].
    pub const fn is_of_auth(self) -> bool {
        matches!(self as u8, 0x00 | 0x18 | 0x19)
    }
}
