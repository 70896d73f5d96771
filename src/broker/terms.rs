//! What a CONNECT and the server's options agree on: version, flags and properties become facts here, and the rest of the
//! core asks facts.

use crate::clock::{Duration, Instant};
use crate::codec::packet::{Connect, PACKET_SIZE_MAX};
use crate::codec::{Property, Protocol};

use super::options::Options;

/// Added to every keep-alive deadline. The loop notes a packet with the time at which its turn began, a moment
/// before the packet came; a client must never be closed early for that.
const KEEP_ALIVE_GRACE: Duration = Duration(100);

/// What was agreed at CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) protocol: Protocol,
    /// Throw away a stored session first.
    pub(super) clean_start: bool,
    pub(super) retention: Retention,
    pub(super) keep_alive_secs: u16,
    /// Whether that is not what the client proposed, so that it has to be told.
    pub(super) imposes_keep_alive: bool,
    /// Messages at QoS 1 and 2 that the client takes at once.
    pub(super) window: u16,
    /// The largest packet that the client takes, in bytes.
    pub(super) packet_size_max: u32,
    /// Topic aliases that the client takes.
    pub(super) topic_alias_max: u16,
    /// QoS 2 messages that the client may have begun; it was told if it could be.
    pub(super) receive_max: u32,
    /// Whether the CONNACK may say that a session is present: 3.1 has no bit for it.
    pub(super) reports_session_present: bool,
    /// Whether an empty client id is replaced by one of ours.
    pub(super) assigns_client_id: bool,
    pub(super) wants_response_information: bool,
}

/// How long a session outlives its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    /// Not at all.
    pub(super) ends_with_connection: bool,
    /// How long it waits once its client is away; `None` is for ever.
    pub(super) expiry: Option<Duration>,
    /// In seconds, if it is less than the client asked for.
    pub(super) imposed_secs: Option<u32>,
}

impl Retention {
    /// What a client of 5.0 gets that asks for so many seconds.
    pub(super) fn of_secs(asked: u32, options: &Options) -> Self {
        let wanted = (asked != u32::MAX).then(|| Duration::from_secs(asked.into()));
        let is_too_long = options.session_expiry.is_some_and(|cap| wanted.is_none_or(|wanted| wanted > cap));
        let expiry = if is_too_long { options.session_expiry } else { wanted };
        // The largest number of seconds is not a number but for ever.
        let told = |expiry: Duration| expiry.as_secs().min(u64::from(u32::MAX) - 1) as u32;
        let imposed_secs = expiry.filter(|_| is_too_long).map(told);
        Self { ends_with_connection: asked == 0, expiry, imposed_secs }
    }
}

impl Terms {
    pub(super) fn of(connect: &Connect<'_>, options: &Options) -> Self {
        let mut terms = Self {
            protocol: connect.protocol,
            clean_start: connect.clean_start,
            // CleanSession of 3.1.1 speaks about both ends of the session [MQTT-3.1.2-6].
            retention: Retention {
                ends_with_connection: connect.clean_start,
                expiry: options.session_expiry,
                imposed_secs: None,
            },
            keep_alive_secs: connect.keep_alive_secs,
            imposes_keep_alive: false,
            window: options.in_flight_max,
            packet_size_max: PACKET_SIZE_MAX,
            topic_alias_max: 0,
            receive_max: u32::MAX,
            reports_session_present: connect.protocol != Protocol::Mqtt31,
            // 3.1 wants at least one character; 3.1.1 allows none with CleanSession 1 [MQTT-3.1.3-7].
            assigns_client_id: connect.clean_start && connect.protocol != Protocol::Mqtt31,
            wants_response_information: false,
        };
        if connect.protocol.has_properties() {
            terms.read_properties(connect, options);
        }
        terms
    }

    /// What 5.0 says in properties, and what it means that one is absent.
    fn read_properties(&mut self, connect: &Connect<'_>, options: &Options) {
        self.assigns_client_id = true; // [MQTT5-3.1.3-6]
        self.receive_max = options.receive_max.into();
        let limit = options.keep_alive_secs_max;
        if limit > 0 && (self.keep_alive_secs == 0 || self.keep_alive_secs > limit) {
            (self.keep_alive_secs, self.imposes_keep_alive) = (limit, true);
        }
        let mut expiry_secs = 0;
        for property in connect.properties {
            match property {
                Property::SessionExpirySecs(secs) => expiry_secs = secs,
                Property::ReceiveMaximum(maximum) => self.window = self.window.min(maximum),
                Property::MaximumPacketSize(maximum) => {
                    self.packet_size_max = maximum.min(PACKET_SIZE_MAX);
                }
                Property::TopicAliasMaximum(maximum) => {
                    self.topic_alias_max = maximum.min(options.topic_alias_max);
                }
                Property::RequestResponseInformation(wanted) => self.wants_response_information = wanted,
                // Reason strings go into CONNACK and DISCONNECT only, where they need no permission
                // [MQTT5-3.1.2-29].
                _ => {}
            }
        }
        self.retention = Retention::of_secs(expiry_secs, options);
    }
}

/// When a client that was last heard at `last_received` has broken its keep-alive; `None` if it promised none
/// [MQTT-3.1.2-24].
pub(super) fn keep_alive_deadline(keep_alive_secs: u16, last_received: Instant) -> Option<Instant> {
    (keep_alive_secs > 0)
        .then(|| last_received + Duration(u64::from(keep_alive_secs) * 1_500) + KEEP_ALIVE_GRACE)
}
