//! The core: everything MQTT means, and nothing of how bytes travel.
//!
//! Inputs are the `handle_` methods, each with the time first; outputs are the `poll_` methods and the outboxes,
//! which the server drains once per turn. No input returns an error: a peer cannot make the core fail, it can only
//! earn a [`CloseReason`].
//!
//! **What is absent here on purpose:** sockets, clocks, threads, logs, and any randomness but the seed. The same
//! inputs in the same order put the same bytes into the same outboxes.
//!
//! One file per conversation of the standard: `connect`, `receive` (PUBLISH from a client), `subscribe`, `deliver`
//! (PUBLISH to clients), `acknowledge` (their answers), `retained`, `will`, `deadlines`.

mod acknowledge;
pub mod close_reason;
mod connect;
mod deadlines;
mod deliver;
pub mod event;
mod invariants;
mod link;
pub mod message;
pub mod options;
pub mod outbox;
mod packet_ids;
mod receive;
mod retained;
mod session;
mod status;
mod subscribe;
mod sys_topics;
mod terms;
mod will;

use std::collections::VecDeque;

use crate::clock::Instant;
use crate::codec::{DecodeError, Packet, PacketId, Protocol, ReasonCode, encode};
use crate::metrics::{DropReason, Metrics};
use crate::topics::SubscriptionTree;
use crate::wheel::Wheel;

pub use close_reason::CloseReason;
pub use event::Event;
pub use link::ConnectionId;
pub use options::Options;
pub use outbox::Outbox;
pub use status::{BrokerStatus, ClientStatus};

use deadlines::Deadline;
use event::{Limit, PacketKind};
use link::{Link, LinkState, Links};
use message::Gauge;
use outbox::BufferPool;
use retained::RetainedMessages;
use session::{Delivery, Session, SessionId, Sessions};
use sys_topics::SysTopics;

/// The MQTT broker as a state machine.
#[derive(Debug)]
pub struct Broker {
    options: Options,
    links: Links,
    sessions: Sessions,
    subscriptions: SubscriptionTree,
    retained: RetainedMessages,
    sys_topics: SysTopics,
    wheel: Wheel<Deadline>,
    /// Counts the bytes of all messages alive.
    messages: Gauge,
    /// Sessions whose queue or streams may go on.
    refills: VecDeque<SessionId>,
    /// Whether the limit on all message bytes was logged since it was last left.
    full_logged: bool,
    /// Whether the limit on connections was logged since it was last left.
    connections_full_logged: bool,
    /// The codes of the SUBACK being made; kept for its buffer.
    reasons: Vec<ReasonCode>,
    /// Retained messages picked for one turn of a stream; kept for its buffer.
    picked: Vec<Delivery>,
    /// Client ids generated so far.
    client_ids_assigned: u64,
    outputs: Outputs,
}

/// What the core has for the outside.
#[derive(Debug, Default)]
struct Outputs {
    metrics: Metrics,
    pool: BufferPool,
    dirty: VecDeque<ConnectionId>,
    closing: VecDeque<ConnectionId>,
    events: VecDeque<Event>,
    trace_packets: bool,
}

impl Broker {
    /// A broker without sessions, at time `now`.
    pub fn new(options: Options, now: Instant) -> Self {
        let mut broker = Self {
            links: Links::default(),
            sessions: Sessions::new(options.seed),
            subscriptions: SubscriptionTree::new(options.seed),
            retained: RetainedMessages::default(),
            sys_topics: SysTopics::new(now),
            wheel: Wheel::new(now),
            messages: Gauge::default(),
            refills: VecDeque::new(),
            full_logged: false,
            connections_full_logged: false,
            reasons: Vec::new(),
            picked: Vec::new(),
            client_ids_assigned: 0,
            outputs: Outputs { trace_packets: options.trace_packets, ..Outputs::default() },
            options,
        };
        broker.start_sys_topics(now);
        broker
    }

    /// A network connection was opened. The id must not be that of a connection that is not yet closed.
    pub fn handle_open(&mut self, now: Instant, id: ConnectionId) {
        self.outputs.metrics.connections_opened += 1;
        self.links.insert(id, now);
        self.arm_link(now, id);
    }

    /// A complete packet came.
    pub fn handle_packet(&mut self, now: Instant, id: ConnectionId, packet: Packet<'_>) {
        let Some(link) = self.links.find_mut(id) else { return };
        if link.state == LinkState::Closing {
            return;
        }
        link.last_received = now;
        link.packets_received += 1;
        self.outputs.metrics.packets_received += 1;
        let session = link.session();
        if self.outputs.trace_packets {
            self.outputs.events.push_back(event::trace_received(id, &packet));
        }
        match (session, packet) {
            (None, Packet::Connect(connect)) => self.connect(now, id, &connect),
            (None, _) => self.close(now, id, CloseReason::ConnectExpected),
            (Some(_), Packet::Connect(_)) => self.close(now, id, CloseReason::SecondConnect),
            (Some(session), Packet::Publish(publish)) => self.publish(now, id, session, &publish),
            (Some(session), Packet::Puback(ack)) => self.puback(now, id, session, ack.packet_id),
            (Some(session), Packet::Pubrec(ack)) => self.pubrec(now, id, session, ack.packet_id),
            (Some(session), Packet::Pubrel(ack)) => self.pubrel(now, id, session, ack.packet_id),
            (Some(session), Packet::Pubcomp(ack)) => self.pubcomp(now, id, session, ack.packet_id),
            (Some(session), Packet::Subscribe(subscribe)) => self.subscribe(now, id, session, &subscribe),
            (Some(session), Packet::Unsubscribe(unsubscribe)) => {
                self.unsubscribe(now, id, session, &unsubscribe);
            }
            // [MQTT-3.12.4-1]
            (Some(_), Packet::Pingreq) => self.reply(now, id, PacketKind::Pingresp, None, encode::pingresp),
            (Some(_), Packet::Disconnect(_)) => self.close(now, id, CloseReason::Disconnected),
            (Some(_), Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp) => {
                self.close(now, id, CloseReason::ServerPacket)
            }
        }
    }

    /// Bytes came that are not a packet [MQTT-4.8.0-1].
    pub fn handle_malformed(&mut self, now: Instant, id: ConnectionId, error: DecodeError) {
        let reason = CloseReason::Malformed(error);
        match self.links.find(id).map(|link| link.state) {
            Some(LinkState::AwaitingConnect) => self.refuse(now, id, reason),
            Some(LinkState::Connected(_)) => self.close(now, id, reason),
            Some(LinkState::Closing) | None => {}
        }
    }

    /// The peer closed the connection, or it failed.
    pub fn handle_lost(&mut self, now: Instant, id: ConnectionId, failed: bool) {
        let reason = if failed { CloseReason::ConnectionFailed } else { CloseReason::ConnectionLost };
        self.close(now, id, reason);
    }

    /// `count` bytes of the outbox went out; `blocked` says that the socket takes no more for now.
    pub fn handle_written(&mut self, now: Instant, id: ConnectionId, count: usize, blocked: bool) {
        let Some(link) = self.links.find_mut(id) else { return };
        let Outputs { metrics, pool, .. } = &mut self.outputs;
        metrics.bytes_sent += count as u64;
        let (copied, packets) = link.outbox.consume(count, pool);
        metrics.outbox_bytes -= copied as u64;
        metrics.outbox_packets -= packets;
        let begins_to_block = blocked && !link.blocked;
        if count > 0 || begins_to_block {
            link.last_progress = now;
        }
        link.blocked = blocked;
        if link.outbox.is_empty() {
            link.outbox_full_logged = false;
        }
        if link.outbox.copied_pending() <= self.options.outbox_soft_mark() && link.read_paused {
            link.read_paused = false;
            // Its packets waited in the socket for our sake.
            link.last_received = now;
        }
        if !blocked && !link.outbox.is_empty() {
            // More pieces than one write can name.
            self.outputs.mark_dirty(link);
        }
        if link.wants_refill
            && link.outbox.pending() <= self.options.outbox_soft_mark() / 2
            && let Some(session) = link.session()
        {
            link.wants_refill = false;
            self.schedule_refill(session);
        }
        if begins_to_block {
            self.arm_link(now, id);
        }
    }

    /// The server has freed the connection: its slot may be used again. After `poll_close` only.
    pub fn handle_closed(&mut self, id: ConnectionId) {
        if let Some(mut link) = self.links.remove(id) {
            assert!(link.state == LinkState::Closing, "a connection ends in the core first");
            self.outputs.discard(&mut link);
        }
    }

    /// The server stops: wills are published while everybody is still there to receive them, then every
    /// connection is closed.
    pub fn handle_shutdown(&mut self, now: Instant) {
        let open: Vec<(ConnectionId, Option<SessionId>)> =
            self.links.iter().map(|link| (link.id, link.session())).collect();
        for session in open.iter().filter_map(|(_, session)| *session) {
            if let Some(will) = self.sessions.find_mut(session).and_then(|session| session.will.take()) {
                self.publish_will(&will);
            }
        }
        for (id, _) in open {
            self.close(now, id, CloseReason::ServerShutdown);
        }
    }

    /// When `handle_timeout` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let work_left = !self.refills.is_empty() || !self.outputs.dirty.is_empty();
        if work_left { Some(Instant(0)) } else { self.wheel.next_deadline() }
    }

    /// The next connection with new bytes in its outbox. Each is named once until bytes are added again.
    pub fn poll_flush(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.outputs.dirty.pop_front() {
            if let Some(link) = self.links.find_mut(id) {
                link.dirty = false;
                return Some(id);
            }
        }
        None
    }

    /// The next connection that has ended: flush it once more, free it, and call `handle_closed`.
    pub fn poll_close(&mut self) -> Option<ConnectionId> {
        self.outputs.closing.pop_front()
    }

    /// Connections that `poll_flush` would name now.
    pub fn dirty_len(&self) -> usize {
        self.outputs.dirty.len()
    }

    /// Has `poll_close` name this connection again later: its last bytes have not left yet.
    pub fn put_off_close(&mut self, id: ConnectionId) {
        self.outputs.closing.push_back(id);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outputs.events.pop_front()
    }

    /// The bytes on their way to this peer.
    pub fn outbox(&self, id: ConnectionId) -> Option<&Outbox> {
        self.links.find(id).map(|link| &link.outbox)
    }

    /// Whether the server should read from this peer now. A peer that does not read its replies is not read.
    pub fn wants_input(&self, id: ConnectionId) -> bool {
        self.links.find(id).is_some_and(|link| !link.read_paused && link.state != LinkState::Closing)
    }

    /// How to read this connection's bytes: its protocol, and the largest packet it may send, in bytes.
    pub fn reading_terms(&self, id: ConnectionId) -> (Protocol, u32) {
        match self.links.find(id) {
            Some(link) if link.session().is_some() => (link.protocol, self.options.packet_size_max),
            _ => (Protocol::default(), options::CONNECT_PACKET_SIZE_MAX.min(self.options.packet_size_max)),
        }
    }

    /// Connections that are open, whatever their state.
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.outputs.metrics
    }

    /// The counters, for what the server itself counts.
    pub fn metrics_mut(&mut self) -> &mut Metrics {
        &mut self.outputs.metrics
    }

    /// Sends a reply: it goes out even where messages would have to wait, but a peer that lets too many of them
    /// pile up is closed.
    fn reply(
        &mut self,
        now: Instant,
        id: ConnectionId,
        kind: PacketKind,
        packet_id: Option<PacketId>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some(link) = self.links.find_mut(id) else { return };
        self.outputs.write(link, kind, packet_id, write);
        let copied = link.outbox.copied_pending();
        if copied > self.options.outbox_bytes_max as usize {
            self.close(now, id, CloseReason::OutboxFull);
        } else if copied > self.options.outbox_pause_mark() {
            link.read_paused = true;
        }
    }

    /// Bytes of messages that wait or are in flight, and of outgoing buffers; retained messages are not counted.
    fn queued_bytes_total(&self) -> u64 {
        let outboxes = self.outputs.metrics.outbox_bytes;
        self.messages.bytes().saturating_sub(self.retained.bytes()) + outboxes
    }

    /// Whether the broker holds all the message bytes it may; says so once per episode.
    fn is_full(&mut self) -> bool {
        let (total, limit) = (self.queued_bytes_total(), self.options.queued_bytes_total_max);
        let full = total > limit;
        if full && !self.full_logged {
            self.full_logged = true;
            self.outputs.limit_reached(Limit::QueuedBytesTotal, None, limit);
        } else if total <= limit / 8 * 7 {
            // Well below: a broker that hovers at its limit says so once.
            self.full_logged = false;
        }
        full
    }

    /// A session that is known to exist: that of the packet being handled.
    fn session(&self, id: SessionId) -> &Session {
        self.sessions.find(id).expect("a connected link has a session")
    }

    fn session_mut(&mut self, id: SessionId) -> &mut Session {
        self.sessions.find_mut(id).expect("a connected link has a session")
    }

    fn schedule_refill(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.find_mut(id)
            && !session.refill_scheduled
        {
            session.refill_scheduled = true;
            self.refills.push_back(id);
        }
    }

    /// Ends a session and all that belongs to it. Its connection, if any, must have been closed before.
    fn end_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(id) else { return };
        assert!(session.connection.is_none(), "a session does not end under its connection");
        self.subscriptions.remove_subscriber(id.subscriber());
        if let Some(timer) = session.expiry_timer {
            self.wheel.cancel(timer);
        }
        let metrics = &mut self.outputs.metrics;
        let queued = session.outgoing.queue.len() as u64;
        let unacknowledged = session.outgoing.sent.len() as u64;
        metrics.queued_messages -= queued;
        metrics.in_flight_messages -= session.outgoing.in_flight() as u64;
        metrics.drop_messages(DropReason::SessionEnded, queued + unacknowledged);
    }
}

impl Outputs {
    /// Writes one packet into the outbox of a link and notes that it has to be flushed.
    fn write(
        &mut self,
        link: &mut Link,
        kind: PacketKind,
        packet_id: Option<PacketId>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let bytes = link.outbox.append(&mut self.pool, write);
        self.metrics.outbox_bytes += bytes as u64;
        self.metrics.outbox_packets += 1;
        self.metrics.packets_sent += 1;
        link.packets_sent += 1;
        self.mark_dirty(link);
        if self.trace_packets {
            self.events.push_back(Event::Packet {
                connection: link.id,
                sent: true,
                kind,
                packet_id,
                publish: None,
            });
        }
    }

    /// Has the server flush this link. A blocked socket says itself when it takes bytes again.
    fn mark_dirty(&mut self, link: &mut Link) {
        if !link.dirty && !link.blocked {
            link.dirty = true;
            self.dirty.push_back(link.id);
        }
    }

    /// Throws away what was not written.
    fn discard(&mut self, link: &mut Link) {
        let (copied, packets) = link.outbox.clear(&mut self.pool);
        self.metrics.outbox_bytes -= copied as u64;
        self.metrics.outbox_packets -= packets;
    }

    fn limit_reached(&mut self, limit: Limit, client_id: Option<&str>, value: u64) {
        self.events.push_back(Event::LimitReached { limit, client_id: client_id.map(Into::into), value });
    }
}
