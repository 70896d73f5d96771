//! What a CONNECT and the server's options agree on: version and flags become facts here, and the rest of the core
//! asks facts.

use crate::clock::{Duration, Instant};
use crate::codec::Protocol;
use crate::codec::packet::Connect;

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
    /// The session ends with the connection.
    pub(super) ends_with_connection: bool,
    /// How long the session waits once its client is away; `None` is for ever.
    pub(super) session_expiry: Option<Duration>,
    pub(super) keep_alive_secs: u16,
    /// Whether the CONNACK may say that a session is present: 3.1 has no bit for it.
    pub(super) reports_session_present: bool,
    /// Whether an empty client id is replaced by one of ours.
    pub(super) assigns_client_id: bool,
}

impl Terms {
    pub(super) fn of(connect: &Connect<'_>, options: &Options) -> Self {
        Self {
            protocol: connect.protocol,
            clean_start: connect.clean_start,
            // CleanSession of 3.1.1 speaks about both ends of the session [MQTT-3.1.2-6].
            ends_with_connection: connect.clean_start,
            session_expiry: options.session_expiry,
            keep_alive_secs: connect.keep_alive_secs,
            reports_session_present: connect.protocol != Protocol::Mqtt31,
            // 3.1 wants at least one character; 3.1.1 allows none with CleanSession 1 [MQTT-3.1.3-7].
            assigns_client_id: connect.clean_start && connect.protocol != Protocol::Mqtt31,
        }
    }
}

/// When a client that was last heard at `last_received` has broken its keep-alive; `None` if it promised none
/// [MQTT-3.1.2-24].
pub(super) fn keep_alive_deadline(keep_alive_secs: u16, last_received: Instant) -> Option<Instant> {
    (keep_alive_secs > 0)
        .then(|| last_received + Duration(u64::from(keep_alive_secs) * 1_500) + KEEP_ALIVE_GRACE)
}
