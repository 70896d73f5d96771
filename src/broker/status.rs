//! What the broker holds, in rows for people and for `$SYS`.

use std::ops::Range;

use crate::clock::Instant;

use super::Broker;
use super::link::ConnectionId;

/// One connected client, for monitoring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStatus {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its id.
    pub client_id: Box<str>,
    /// When the connection was opened.
    pub connected_at: Instant,
    /// Its keep-alive interval; 0 is none.
    pub keep_alive_secs: u16,
    /// When its last packet came.
    pub last_received: Instant,
    /// Its subscriptions.
    pub subscriptions: u32,
    /// Messages sent to it and not finally acknowledged.
    pub in_flight: usize,
    /// Messages waiting for it.
    pub queued: usize,
    /// Bytes written for it that its socket has not taken.
    pub buffered_bytes: usize,
}

/// What the broker holds as a whole; what it did is in its `Metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerStatus {
    /// Sessions, connected or stored.
    pub sessions: usize,
    /// Sessions without a connection.
    pub sessions_absent: usize,
    /// Subscriptions of all sessions, shared ones included.
    pub subscriptions: usize,
    /// Retained messages, `$SYS` included.
    pub retained_messages: usize,
    /// Bytes of retained messages.
    pub retained_bytes: u64,
    /// Bytes of all messages held: retained, queued, in flight, wills.
    pub message_bytes: u64,
}

impl Broker {
    /// What the broker holds as a whole.
    pub fn status(&self) -> BrokerStatus {
        BrokerStatus {
            sessions: self.sessions.len(),
            sessions_absent: self.sessions.absent_count(),
            subscriptions: self.subscriptions.len() + self.shared.len(),
            retained_messages: self.retained.len(),
            retained_bytes: self.retained.bytes(),
            message_bytes: self.messages.bytes(),
        }
    }

    /// Slots of connections: some may be empty, and none has this number or a later one.
    pub fn connection_slots(&self) -> u32 {
        self.links.slots()
    }

    /// Every connected client in some slots of connections, in their order.
    pub fn clients(&self, slots: Range<u32>) -> impl Iterator<Item = ClientStatus> {
        slots.filter_map(|slot| {
            let link = self.links.at(slot)?;
            let session = self.sessions.find(link.session()?)?;
            Some(ClientStatus {
                connection: link.id,
                client_id: session.client_id.clone(),
                connected_at: link.opened_at,
                keep_alive_secs: link.keep_alive_secs,
                last_received: link.last_received,
                subscriptions: self.subscription_count(session.id),
                in_flight: session.outgoing.in_flight(),
                queued: session.outgoing.queue.len(),
                buffered_bytes: link.outbox.pending(),
            })
        })
    }
}
