//! Counters and gauges: plain fields, changed by whoever owns the event that they count.
//!
//! The core counts packets, messages and sessions; the server loop counts bytes, accepts and its own turns. Nothing
//! here is shared between threads, so nothing is atomic. Every counter only grows; every gauge says so.

/// Why a message was not handed to somebody who should have had it, or not taken from somebody who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// A QoS 0 message for a client whose outgoing buffer is full.
    OutboxFull,
    /// A QoS 0 message while the broker as a whole holds all the bytes it may.
    BrokerFull,
    /// The session's queue holds as many messages as it may.
    QueueMessagesFull,
    /// The session's queue holds as many bytes as it may.
    QueueBytesFull,
    /// A QoS 0 message for a stored session without a connection: such sessions keep QoS 1 and 2 only.
    AbsentAtQoS0,
    /// The session, or the last one of a group, ended while messages waited.
    SessionEnded,
    /// A client published to a topic that belongs to the broker.
    ReservedTopic,
    /// A retained message beyond the limits for retained messages.
    RetainedFull,
    /// The message expired while it waited.
    Expired,
    /// The message is larger than the largest packet that the subscriber takes.
    TooLargeForClient,
    /// The payload is not the UTF-8 text that it says to be.
    PayloadFormat,
    /// A message at QoS 1 or 2 while nothing could be stored.
    StoreFailed,
}

impl DropReason {
    /// Every reason, in the order of [`Metrics::dropped`].
    pub const ALL: [Self; 12] = [
        Self::OutboxFull,
        Self::BrokerFull,
        Self::QueueMessagesFull,
        Self::QueueBytesFull,
        Self::AbsentAtQoS0,
        Self::SessionEnded,
        Self::ReservedTopic,
        Self::RetainedFull,
        Self::Expired,
        Self::TooLargeForClient,
        Self::PayloadFormat,
        Self::StoreFailed,
    ];

    /// A short name for log lines and labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::OutboxFull => "outbox-full",
            Self::BrokerFull => "broker-full",
            Self::QueueMessagesFull => "queue-messages-full",
            Self::QueueBytesFull => "queue-bytes-full",
            Self::AbsentAtQoS0 => "absent-qos0",
            Self::SessionEnded => "session-ended",
            Self::ReservedTopic => "reserved-topic",
            Self::RetainedFull => "retained-full",
            Self::Expired => "expired",
            Self::TooLargeForClient => "too-large-for-client",
            Self::PayloadFormat => "payload-format",
            Self::StoreFailed => "store-failed",
        }
    }
}

/// What the broker did since it started, and (where a field says gauge) what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Connections accepted.
    pub connections_opened: u64,
    /// Connections closed at once because there were too many.
    pub connections_refused: u64,
    /// Gauge: connections whose CONNECT was accepted.
    pub clients_connected: u64,
    /// Connections closed because another one took their client id.
    pub takeovers: u64,
    /// Stored sessions that stayed away too long.
    pub sessions_expired: u64,
    /// Stored sessions that made room for new ones.
    pub sessions_evicted: u64,
    /// Packets of every type received.
    pub packets_received: u64,
    /// Packets of every type sent.
    pub packets_sent: u64,
    /// PUBLISH packets received.
    pub publish_received: u64,
    /// PUBLISH packets sent, repetitions included.
    pub publish_sent: u64,
    /// QoS 2 PUBLISH packets that repeated one already taken.
    pub publish_repeated: u64,
    /// Messages not delivered or not taken, by [`DropReason`].
    pub dropped: [u64; DropReason::ALL.len()],
    /// Gauge: messages waiting in queues, of sessions and of groups.
    pub queued_messages: u64,
    /// Gauge: messages sent and not finally acknowledged.
    pub in_flight_messages: u64,
    /// Gauge: bytes copied into outgoing buffers and not yet written.
    pub outbox_bytes: u64,
    /// Gauge: packets in outgoing buffers; an estimate where a buffer is partly written.
    pub outbox_packets: u64,
    /// Subscriptions refused because the client had as many as it may.
    pub subscriptions_refused: u64,
    /// Bytes read from sockets.
    pub bytes_received: u64,
    /// Bytes written to sockets.
    pub bytes_sent: u64,
    /// Commits to the log, each of one batch or of several.
    pub store_commits: u64,
    /// Bytes written for them, with what fills up their blocks and zeros to be written over.
    pub store_bytes: u64,
    /// Times that storing began to fail.
    pub store_failures: u64,
    /// Connections closed by a limit or a time-out.
    pub closed_by_limit: u64,
    /// Connections closed for malformed packets or protocol violations.
    pub closed_by_violation: u64,
}

impl Metrics {
    /// Counts one dropped message.
    pub fn drop_message(&mut self, reason: DropReason) {
        self.drop_messages(reason, 1);
    }

    /// Counts several dropped messages.
    pub fn drop_messages(&mut self, reason: DropReason, count: u64) {
        self.dropped[reason as usize] += count;
    }

    /// Messages dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }
}
