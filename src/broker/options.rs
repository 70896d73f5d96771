//! Every limit of the core, with its unit and its default.

use crate::clock::Duration;

/// Where clients shall go when this broker is drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Names the other server, in whatever form its clients understand: at most 65,535 bytes.
    pub server_reference: Box<str>,
    /// Whether they shall stay there.
    pub permanently: bool,
}

/// Before a CONNECT is accepted a packet may be this large at most, in bytes: strangers get little room.
pub const CONNECT_PACKET_SIZE_MAX: u32 = 512 * 1024;

/// The largest `packet_size_max`: nobody needs to be told of a limit that MQTT has itself.
pub const PACKET_SIZE_UNLIMITED: u32 = 268_435_455;

/// Whether state is stored, and what waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing outlives the process.
    #[default]
    None,
    /// State is stored soon after a reply has promised that it is safe.
    AfterReply,
    /// A reply that promises that something is safe leaves once it is stored.
    BeforeReply,
}

/// The limits of the core. Everything that can grow has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seeds hashing. A server takes it from the operating system, a simulation from its seed.
    pub seed: u64,
    /// What the client ids that the server assigns are made from: secret, or they can be guessed.
    pub client_id_key: [u8; 32],
    /// Connected clients at once; one more is told that the server is unavailable.
    pub connections_max: u32,
    /// From opening a connection to its complete CONNECT.
    pub handshake_timeout: Duration,
    /// How long a peer may leave all of its outgoing bytes unread before it is closed.
    pub stall_timeout: Duration,
    /// Largest packet taken from a client, fixed header included, in bytes.
    pub packet_size_max: u32,
    /// Messages at QoS 1 and 2 sent to one client and not finally acknowledged.
    pub in_flight_max: u16,
    /// QoS 2 messages that a client of 5.0 may have begun to send and not completed: never 0.
    pub receive_max: u16,
    /// Topic aliases in each direction of a connection; 0 is none.
    pub topic_alias_max: u16,
    /// The longest keep-alive interval of a client of 5.0, in seconds; a longer one, or none, is replaced by this.
    /// 0 leaves all as they are.
    pub keep_alive_secs_max: u16,
    /// Whether a payload that says to be UTF-8 is looked at.
    pub check_payload_format: bool,
    /// What a client of 5.0 that asks for it is told to build response topics from.
    pub response_information: Option<Box<str>>,
    /// Where clients are sent when the broker is drained.
    pub redirect: Option<Redirect>,
    /// The methods of enhanced authentication that the server can answer for.
    pub authentication_methods: Vec<Box<str>>,
    /// Messages waiting in one session beyond those in flight.
    pub queued_messages_max: u32,
    /// Bytes of messages waiting in one session beyond those in flight.
    pub queued_bytes_max: u64,
    /// Bytes of messages waiting, in flight and in outgoing buffers in the whole broker, retained ones not counted.
    pub queued_bytes_total_max: u64,
    /// Bytes waiting to be written to one connection. Messages stop at half of it, reading at three quarters, and a
    /// connection whose replies alone go beyond it is closed.
    pub outbox_bytes_max: u32,
    /// Retained messages.
    pub retained_messages_max: u32,
    /// Bytes of retained messages.
    pub retained_bytes_max: u64,
    /// Subscriptions of one client.
    pub subscriptions_max: u32,
    /// Levels of a topic name or filter.
    pub topic_levels_max: u32,
    /// Sessions, connected or stored; one more makes the longest absent go.
    pub sessions_max: u32,
    /// How long a stored session waits for its client; `None` is for ever.
    pub session_expiry: Option<Duration>,
    /// Between two rounds of `$SYS` topics; `None` is never.
    pub sys_interval: Option<Duration>,
    /// Entries that one turn gets through of work that can wait: retained messages for a new subscription, what an ended
    /// session has left, the filters of a request, a large PUBLISH, the receivers of a message, the shared subscriptions of a client that has
    /// come or gone, timers whose time has come. Never 0.
    pub steps_per_turn: usize,
    /// What has so many bytes behind its fixed header, or more, and did not come in one read is not copied: a PUBLISH becomes
    /// the message where it is, a SUBSCRIBE or UNSUBSCRIBE is decoded in several turns.
    pub long_packet_bytes_min: usize,
    /// Whether every packet makes an event.
    pub trace_packets: bool,
    /// Whether state is stored.
    pub durability: Durability,
    /// Bytes on their way to the store; beyond them, who publishes at QoS 1 or 2 is not read.
    pub unstored_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            client_id_key: [0; 32],
            connections_max: 1_000_000,
            handshake_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            packet_size_max: PACKET_SIZE_UNLIMITED,
            in_flight_max: 100,
            receive_max: 1_024,
            topic_alias_max: 16,
            keep_alive_secs_max: 0,
            check_payload_format: false,
            response_information: None,
            redirect: None,
            authentication_methods: Vec::new(),
            queued_messages_max: 100_000,
            queued_bytes_max: 256 << 20,
            queued_bytes_total_max: 1 << 30,
            outbox_bytes_max: 1 << 20,
            retained_messages_max: 1_000_000,
            retained_bytes_max: 1 << 30,
            subscriptions_max: 100_000,
            topic_levels_max: 200,
            sessions_max: 1_000_000,
            session_expiry: Some(Duration::from_secs(14 * 24 * 60 * 60)),
            sys_interval: Some(Duration::from_secs(10)),
            steps_per_turn: 2_000,
            long_packet_bytes_min: 64 * 1024,
            trace_packets: false,
            durability: Durability::None,
            unstored_bytes_max: 64 << 20,
        }
    }
}

impl Options {
    /// Above this many bytes an outbox takes no more messages.
    pub(super) fn outbox_soft_mark(&self) -> usize {
        self.outbox_bytes_max as usize / 2
    }

    /// Above this many copied bytes in its outbox a peer is not read.
    pub(super) fn outbox_pause_mark(&self) -> usize {
        self.outbox_bytes_max as usize / 4 * 3
    }

    /// Payloads up to this many bytes are copied into an outbox even when they could be shared.
    pub(super) fn copied_payload_max(&self, subscribers: usize) -> usize {
        // Copying beats sharing up to about half a kilobyte. A lone receiver shares with nobody, so for it
        // a copy saves the allocation as well, as long as the copy stays small beside the outbox.
        if subscribers > 1 { 512 } else { (self.outbox_bytes_max as usize / 16).clamp(512, 64 * 1024) }
    }
}
