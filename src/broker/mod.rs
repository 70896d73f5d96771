//! The core: everything MQTT means, and nothing of how bytes travel.
//!
//! Inputs are the `handle_` methods, each with the time first; outputs are the `poll_` methods and the outboxes,
//! which the server drains once per turn. No input returns an error: a peer cannot make the core fail, it can only
//! earn a [`CloseReason`].
//!
//! **What is absent here on purpose:** sockets, clocks, threads, logs, and any randomness but the seed. The same
//! inputs in the same order put the same bytes into the same outboxes.
//!
//! One file per conversation of the standard: `connect`, `authenticate`, `receive` (PUBLISH from a client),
//! `subscribe`, `deliver` (PUBLISH to clients), `fan_out` (to very many) and `put_off` (what waits for that), `shared`
//! (to one of many), `acknowledge` (their answers), `retained`, `will`, `deadlines`. What is to outlive the process
//! goes into the `journal`, and comes back by `restore`. Bytes become packets in `reading`.

mod acknowledge;
mod authenticate;
pub mod close_reason;
mod connect;
mod deadlines;
mod deliver;
mod delivery;
pub mod event;
mod fan_out;
mod in_line;
mod invariants;
mod journal;
mod leftovers;
mod link;
mod long_publish;
mod long_request;
pub mod message;
pub mod options;
pub mod outbox;
mod packet_ids;
mod put_off;
mod queue;
mod reading;
mod receipts;
mod receive;
mod remains;
mod restore;
mod retained;
mod session;
mod shared;
mod status;
mod subscribe;
mod sys_topics;
mod terms;
mod thin_list;
mod topic_aliases;
mod unanswered;
mod will;

use std::collections::VecDeque;

use crate::blocks::Blocks;
use crate::clock::Instant;
use crate::codec::{DecodeError, Packet, PacketId, Protocol, ReasonCode, encode};
use crate::journal::{Batch, Lsn, Owner};
use crate::metrics::{DropReason, Metrics};
use crate::topics::SubscriptionTree;
use crate::wheel::Wheel;

pub use authenticate::{AuthenticationStep, Verdict};
pub use close_reason::CloseReason;
pub use event::Event;
pub use journal::StoreState;
pub use link::ConnectionId;
pub use options::Options;
pub use outbox::Outbox;
pub use reading::ReadingTerms;
pub use restore::{Restore, RestoreError, Restored};
pub use status::{BrokerStatus, ClientStatus};

use authenticate::Authentication;
use deadlines::Deadline;
use deliver::LISTED_PER_STEP;
use delivery::{Delivery, Origin};
use event::{Limit, PacketKind};
use fan_out::{FanOut, FanOutNumber};
use journal::{Journal, Kind, Promise};
use link::{Dirty, Link, LinkState, Links};
use message::Gauge;
use outbox::BufferPool;
use put_off::PutOffs;
use receive::Scratch;
use remains::Remains;
use retained::RetainedMessages;
use session::{Outgoing, Sent, Session, SessionId, Sessions};
use shared::SharedSubscriptions;
use sys_topics::SysTopics;
use unanswered::Unanswered;

const PINGRESP_BYTES: usize = 2;

/// A connection that is closed takes as long as so many other steps, what the server does for it included.
const CLOSE_STEPS: usize = 16;

/// A CONNECT takes about so many: there may be a connection to be taken over, and a session to be found or made.
const CONNECT_STEPS: u64 = 8;

/// So many bytes that are held back are moved, for something that goes before them, in the time that one copy takes, and as many
/// gates noted as stand among them at most.
const MOVED_BYTES_PER_STEP: u64 = 1_024;

/// To open the gates of an outbox takes so many steps beside the one in which it is found that they are to be opened: its bytes are
/// flushed by a system call.
const OPENING_STEPS: usize = 3;

/// So many connections that are named to be flushed and need not any more are passed in one call.
const PASSED_PER_FLUSH: usize = 1_000;

/// Bytes that wait for one of many receivers of the same messages, from which on it should be flushed.
const URGENT_BYTES: usize = 64 * 1024;

/// The MQTT broker as a state machine.
#[derive(Debug)]
pub struct Broker {
    options: Options,
    /// The time of the input being handled.
    now: Instant,
    links: Links,
    sessions: Sessions,
    subscriptions: SubscriptionTree,
    shared: SharedSubscriptions,
    retained: RetainedMessages,
    sys_topics: SysTopics,
    wheel: Wheel<Deadline>,
    /// Counts the bytes of all messages alive.
    messages: Gauge,
    /// Sessions whose queue or streams may go on.
    refills: VecDeque<SessionId>,
    /// Links with requests that take several turns.
    long_requests: VecDeque<ConnectionId>,
    /// Links with a large PUBLISH that is being looked at.
    long_publishes: VecDeque<ConnectionId>,
    /// The message on its way to more sessions than one turn has time for, and what has to wait for its end.
    fan_out: Option<Box<FanOut>>,
    fan_out_number: FanOutNumber,
    put_off: PutOffs,
    /// What it keeps back: slots of ended sessions that nothing else names, and sessions whose streams wait.
    slots_to_free: Vec<SessionId>,
    streams_behind: VecDeque<SessionId>,
    /// What ended sessions and groups have left, the longest ended first.
    remains: Blocks<Remains>,
    /// What those sessions were sent, which comes before all that.
    sent_left: VecDeque<Unanswered<Sent>>,
    /// What is left of the steps of this turn for what is done at once, whoever asks for it (see `remains`).
    steps_at_once: usize,
    /// Whether the limit on all message bytes was logged since it was last left.
    full_logged: bool,
    /// Whether the limit on connections was logged since it was last left.
    connections_full_logged: bool,
    /// Whether clients are sent to another server.
    is_draining: bool,
    /// Clients from this slot of connections on have yet to be sent away.
    undrained_from_slot: Option<u32>,
    /// Whether the message under way is the will of somebody who was closed right behind the one before.
    has_closing_begun_fan_out: bool,
    /// The codes of the SUBACK or UNSUBACK being made; kept for its buffer.
    reasons: Vec<ReasonCode>,
    scratch: Scratch,
    /// The subscription identifiers of the receiver in hand; empty for most, and between messages.
    subscription_ids: Vec<u32>,
    /// Retained messages picked for one turn of a stream; kept for its buffer.
    picked: Vec<Delivery>,
    /// Client ids generated so far.
    client_ids_assigned: u64,
    outputs: Outputs,
}

/// What the core has for the outside.
#[derive(Debug)]
struct Outputs {
    metrics: Metrics,
    journal: Journal,
    pool: BufferPool,
    /// Links with bytes to flush: those that are not one of many go first.
    dirty_soon: VecDeque<ConnectionId>,
    dirty_in_turn: VecDeque<ConnectionId>,
    /// Whether the message in hand goes to many.
    is_fan_out: bool,
    /// Messages so far that did.
    fan_outs: u64,
    is_fan_out_urgent: bool,
    /// Copies of messages handed to sessions so far.
    copies: u64,
    /// Other work so far of which a packet may make much, in copies that take as long.
    work: u64,
    /// How many messages that wait may still be sent by refills, or be looked at in vain, in this call; and members of groups.
    steps_left: usize,
    closing: VecDeque<ConnectionId>,
    events: VecDeque<Event>,
    authentication: VecDeque<AuthenticationStep>,
    /// Connections that are to be read again.
    resumed: VecDeque<ConnectionId>,
    trace_packets: bool,
}

impl Broker {
    /// A broker without sessions, at time `now`.
    pub fn new(options: Options, now: Instant) -> Self {
        let mut broker = Self {
            now,
            links: Links::default(),
            sessions: Sessions::new(options.seed),
            subscriptions: SubscriptionTree::new(options.seed),
            shared: SharedSubscriptions::new(options.seed),
            retained: RetainedMessages::default(),
            sys_topics: SysTopics::new(now),
            wheel: Wheel::new(now),
            messages: Gauge::default(),
            refills: VecDeque::new(),
            long_requests: VecDeque::new(),
            long_publishes: VecDeque::new(),
            fan_out: None,
            fan_out_number: FanOutNumber::default(),
            put_off: PutOffs::new(),
            slots_to_free: Vec::new(),
            streams_behind: VecDeque::new(),
            remains: Blocks::default(),
            sent_left: VecDeque::new(),
            steps_at_once: options.steps_per_turn,
            full_logged: false,
            connections_full_logged: false,
            is_draining: false,
            undrained_from_slot: None,
            has_closing_begun_fan_out: false,
            reasons: Vec::new(),
            scratch: Scratch::default(),
            subscription_ids: Vec::new(),
            picked: Vec::new(),
            client_ids_assigned: 0,
            outputs: Outputs::new(&options),
            options,
        };
        broker.start_sys_topics();
        broker
    }

    /// Makes room for so many clients. Memory that is not used yet costs nothing, and what grows step by step leaves holes
    /// in the heap that do.
    pub fn reserve(&mut self, clients: usize) {
        self.links.reserve(clients);
        self.sessions.reserve(clients);
        self.subscriptions.reserve(clients);
        self.wheel.reserve(clients);
    }

    /// A network connection was opened. The id must not be that of a connection that is not yet closed.
    pub fn handle_open(&mut self, now: Instant, id: ConnectionId) {
        self.set_now(now);
        self.outputs.metrics.connections_opened += 1;
        self.links.insert(id, now);
        self.put_off_newcomer(id);
        self.arm_link(id);
    }

    /// A complete packet came.
    pub fn handle_packet(&mut self, now: Instant, id: ConnectionId, packet: Packet<'_>) {
        let trace = || event::trace_received(id, &packet);
        let Some(state) = self.begin_packet(now, id, trace) else { return };
        let LinkState::Connected(session) = state else {
            return self.packet_before_connack(id, state, &packet);
        };
        match &packet {
            Packet::Publish(publish) => self.publish(id, session, publish),
            Packet::Puback(ack) => self.puback(id, session, ack.packet_id),
            Packet::Pubrec(ack) => self.pubrec(id, session, ack),
            Packet::Pubrel(ack) => self.pubrel(id, session, ack.packet_id),
            Packet::Pubcomp(ack) => self.pubcomp(id, session, ack.packet_id),
            Packet::Subscribe(subscribe) => self.subscribe(id, session, subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(id, session, unsubscribe),
            // [MQTT-3.12.4-1]
            Packet::Pingreq => self.reply(id, PacketKind::Pingresp, None, encode::pingresp),
            Packet::Disconnect(disconnect) => self.disconnect(id, session, disconnect),
            Packet::Auth(auth) => self.auth(id, auth),
            Packet::Connect(_) => self.close(id, CloseReason::SecondConnect),
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                self.close(id, CloseReason::ServerPacket);
            }
        }
        self.await_store_if_behind(id);
    }

    /// What is noted of every packet. The state of its link, unless nothing is taken from it any more.
    #[inline]
    fn begin_packet(
        &mut self,
        now: Instant,
        id: ConnectionId,
        trace: impl FnOnce() -> Event,
    ) -> Option<LinkState> {
        self.begin_input(now, Some(id));
        let link = self.links.find_mut(id).filter(|link| link.state != LinkState::Closing)?;
        link.last_received = now;
        link.packets_received += 1;
        self.outputs.metrics.packets_received += 1;
        let state = link.state;
        if self.outputs.trace_packets {
            self.outputs.events.push_back(trace());
        }
        Some(state)
    }

    /// Time does not go back. The server stamps what happens with the end of its millisecond, and asks for what was due at
    /// its beginning.
    #[inline]
    fn set_now(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// The time of an input, and whose packet it is, if it is one.
    #[inline]
    fn begin_input(&mut self, now: Instant, from: Option<ConnectionId>) {
        self.set_now(now);
        self.outputs.steps_left = self.options.steps_per_turn;
        self.outputs.journal.begin_input(from);
    }

    /// A packet of a client that was not told yet that it is welcome.
    fn packet_before_connack(&mut self, id: ConnectionId, state: LinkState, packet: &Packet<'_>) {
        self.outputs.work += CONNECT_STEPS;
        match (state, packet) {
            (LinkState::AwaitingConnect, Packet::Connect(connect)) => self.connect(id, connect),
            (LinkState::Authenticating, Packet::Auth(auth)) => self.auth(id, auth),
            (LinkState::Authenticating, Packet::Disconnect(disconnect)) => {
                self.close(id, CloseReason::Disconnected(disconnect.reason));
            }
            // [MQTT5-3.1.2-30]
            (LinkState::Authenticating, _) => self.close(id, CloseReason::AuthenticationUnexpected),
            _ => self.close(id, CloseReason::ConnectExpected),
        }
    }

    /// Bytes came that are not a packet [MQTT-4.8.0-1]. `claimed` is what a CONNECT among them says to speak: it is
    /// refused in the form of that protocol.
    pub fn handle_malformed(
        &mut self,
        now: Instant,
        id: ConnectionId,
        error: DecodeError,
        claimed: Option<Protocol>,
    ) {
        self.begin_input(now, None);
        if let Some(link) = self.links.find_mut(id)
            && link.state == LinkState::AwaitingConnect
        {
            link.protocol = claimed.unwrap_or_default();
        }
        self.close(id, CloseReason::Malformed(error));
    }

    /// The peer closed the connection, or it failed.
    pub fn handle_lost(&mut self, now: Instant, id: ConnectionId, failed: bool) {
        self.begin_input(now, None);
        let reason = if failed { CloseReason::ConnectionFailed } else { CloseReason::ConnectionLost };
        self.close(id, reason);
        self.outputs.work += CLOSE_STEPS as u64;
    }

    /// `count` bytes of the outbox went out; `blocked` says that the socket takes no more for now.
    pub fn handle_written(&mut self, now: Instant, id: ConnectionId, count: usize, blocked: bool) {
        self.set_now(now);
        let Some(link) = self.links.find_mut(id) else { return };
        let now = self.now;
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
        if !blocked && !link.outbox.is_held() {
            // More pieces than one write can name.
            self.outputs.mark_dirty(link);
        }
        if link.is_found_full && link.outbox.pending() <= self.options.outbox_soft_mark() {
            link.is_found_full = false;
            self.shared.note_drained();
        }
        if link.wants_refill
            && link.outbox.pending() <= self.options.outbox_soft_mark() / 2
            && let Some(session) = link.session()
        {
            link.wants_refill = false;
            self.schedule_refill(session);
        }
        if begins_to_block {
            self.arm_link(id);
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
        self.begin_input(now, None);
        self.publish_put_off_wills();
        // Those that wait for their delay as well: nobody will be here to publish them later [B-029].
        let with_will: Vec<SessionId> =
            self.sessions.iter().filter(|session| session.will.is_some()).map(|session| session.id).collect();
        for id in with_will {
            if let Some(will) = self.sessions.find_mut(id).and_then(|session| session.will.take()) {
                self.record_session(id);
                self.publish_will_now(Some(id), &will);
                self.finish_fan_out();
            }
            self.arm_session(id);
        }
        // Or each would leave its messages to the next one, who is closed a moment later.
        self.shared.set_all_absent();
        let all: Vec<ConnectionId> = self.links.iter().map(|link| link.id).collect();
        all.into_iter().for_each(|id| self.close(id, CloseReason::ServerShutdown));
    }

    /// The administrator wants the clients elsewhere: who is connected is closed, a few in each turn, and nobody is let in.
    /// Who has yet to send its CONNECT, or to authenticate, is refused in its time, so that it is told where to go. False if
    /// the options name no other server.
    pub fn handle_drain(&mut self, now: Instant) -> bool {
        self.begin_input(now, None);
        if self.options.redirect.is_none() {
            return false;
        }
        self.is_draining = true;
        self.undrained_from_slot = Some(0);
        true
    }

    /// Sends away as many clients as one turn has time for. They have their copies of the message that is on its way to many,
    /// and after one whose will goes to many the others follow later.
    fn continue_drain(&mut self) {
        let (Some(redirect), None) = (&self.options.redirect, &self.fan_out) else { return };
        let Some(from_slot) = self.undrained_from_slot else { return };
        let reason = CloseReason::Redirected { permanently: redirect.permanently };
        let steps = self.options.steps_per_turn;
        let slots_max = u32::try_from(steps).unwrap_or(u32::MAX);
        let slots = from_slot..self.links.slots().min(from_slot.saturating_add(slots_max));
        self.undrained_from_slot = (slots.end < self.links.slots()).then_some(slots.end);
        let (mut closed, done_max) = (0, self.done() + steps as u64);
        for slot in slots {
            if closed * CLOSE_STEPS >= steps || self.done() >= done_max || self.fan_out.is_some() {
                self.undrained_from_slot = Some(slot);
                return;
            }
            if let Some(link) = self.links.at(slot).filter(|link| link.session().is_some()) {
                self.close(link.id, reason);
                closed += 1;
            }
        }
    }

    /// When `handle_timeout` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let work_left = !self.refills.is_empty() || self.outputs.is_dirty() || self.has_work_left();
        if work_left { Some(Instant(0)) } else { self.wheel.next_deadline() }
    }

    /// The next connection with new bytes in its outbox. Each is named once until bytes are added again. Those that have
    /// a reply, or a message for them alone, come before those that are one of many. There may be more behind very many that
    /// need not be flushed any more: `dirty_len` says so.
    #[inline]
    pub fn poll_flush(&mut self) -> Option<ConnectionId> {
        self.poll_flush_soon().or_else(|| self.poll_flush_in_turn())
    }

    /// The next one of those with a reply or a message of their own.
    #[inline]
    pub fn poll_flush_soon(&mut self) -> Option<ConnectionId> {
        let Self { links, outputs, .. } = self;
        for _ in 0..PASSED_PER_FLUSH {
            let id = outputs.dirty_soon.pop_front()?;
            if let Some(link) = links.find_mut(id).filter(|link| link.dirty == Dirty::Soon) {
                link.dirty = Dirty::No;
                return Some(id);
            }
        }
        None
    }

    /// The next one of those that are one of many.
    #[inline]
    pub fn poll_flush_in_turn(&mut self) -> Option<ConnectionId> {
        let Self { links, outputs, .. } = self;
        for _ in 0..PASSED_PER_FLUSH {
            let next = outputs.dirty_in_turn.pop_front();
            outputs.is_fan_out_urgent &= next.is_some();
            let id = next?;
            // Who was raised from one list to the other still stands in both.
            if let Some(link) = links.find_mut(id).filter(|link| link.dirty == Dirty::InTurn) {
                link.dirty = Dirty::No;
                return Some(id);
            }
        }
        None
    }

    /// The next connection that has ended: flush it once more, free it, and call `handle_closed`.
    pub fn poll_close(&mut self) -> Option<ConnectionId> {
        self.outputs.closing.pop_front()
    }

    /// Connections that `poll_flush` would name now, at most.
    pub fn dirty_len(&self) -> usize {
        self.dirty_soon_len() + self.outputs.dirty_in_turn.len()
    }

    /// The first of them, which should not wait for others: the rest are each one of many who got the same message.
    pub fn dirty_soon_len(&self) -> usize {
        self.outputs.dirty_soon.len()
    }

    /// Whether one of those that are one of many has so much to be flushed that it should not wait either.
    pub fn is_fan_out_urgent(&self) -> bool {
        self.outputs.is_fan_out_urgent
    }

    /// Messages so far that each went to many.
    pub fn fan_outs(&self) -> u64 {
        self.outputs.fan_outs
    }

    /// Copies of messages handed to sessions so far.
    pub fn copies(&self) -> u64 {
        self.outputs.copies
    }

    /// What reading has cost so far beside them where a packet may make much work, in copies that take as long: messages that
    /// waited, or are retained, and were sent, groups that were asked, members who were looked at, memberships and receipts that
    /// were moved, packets that were repeated, filters that were subscribed to or not any more, or compared with a topic,
    /// subscriptions that were listed, clients who came or were lost, and bytes that something had to overtake.
    pub fn work(&self) -> u64 {
        let listed = self.subscriptions.listed() + self.shared.listed();
        self.outputs.work + listed / LISTED_PER_STEP as u64
    }

    /// Both together.
    fn done(&self) -> u64 {
        self.copies() + self.work()
    }

    /// Has `poll_close` name this connection again later: its last bytes have not left yet.
    pub fn put_off_close(&mut self, id: ConnectionId) {
        self.outputs.closing.push_back(id);
    }

    /// What is to be stored now, as one whole: to be called once a turn, before anything is flushed, but for a few turns in
    /// which it may wait. There is none while a message is on its way to more sessions than one turn has time for. Batches
    /// are stored in the order in which they were taken; there may be another one while earlier ones are on their way.
    ///
    /// It has a time like an input, because it is one to clients who waited until less was to be stored.
    pub fn poll_journal(&mut self, now: Instant) -> Option<Batch> {
        if !self.outputs.journal.is_on() {
            return None;
        }
        self.set_now(now);
        // Before they are taken: here it is known what need not be stored any more.
        self.open_gates();
        if self.fan_out.is_some() {
            return None;
        }
        let batch = self.outputs.journal.take();
        self.open_gates();
        self.end_pauses_in_time();
        if self.outputs.journal.state != StoreState::Well {
            // What they wait for may take long to come; they will ask again.
            let are_closed_already = self.outputs.journal.has_held_in_vain();
            self.outputs.journal.give_up_held();
            if !are_closed_already {
                self.close_held();
            }
        }
        batch
    }

    /// Closes as many of those who wait for the store in vain as one turn has time for. What is held back from the others stays
    /// so, and leaves if the store gets there first.
    #[cold]
    fn close_held(&mut self) {
        if self.outputs.journal.has_to_open() {
            return; // Some may have what they wait for.
        }
        let mut steps = self.options.steps_per_turn;
        let done_max = self.done() + steps as u64;
        // Their wills may go to many.
        while steps > 0 && self.done() < done_max {
            let Some(id) = self.outputs.journal.next_held_in_vain() else { break };
            let is_held = self.links.find(id).is_some_and(|link| link.outbox.has_gate());
            if is_held {
                self.close(id, CloseReason::StoreFailed);
            }
            steps = steps.saturating_sub(if is_held { CLOSE_STEPS } else { 1 });
        }
    }

    /// Everything up to this number is stored.
    pub fn handle_stored(&mut self, now: Instant, last: Lsn) {
        self.begin_input(now, None);
        self.outputs.journal.set_stored(last);
        self.open_gates();
        self.end_pauses_in_time();
    }

    /// Takes back a batch that is stored: its memory serves the next ones.
    pub fn reuse_batch(&mut self, batch: Batch) {
        self.outputs.journal.reuse(batch);
    }

    fn end_pauses_in_time(&mut self) {
        if self.outputs.journal.unstored_bytes() <= self.options.unstored_bytes_max / 2 {
            self.outputs.journal.end_pauses();
            self.read_paused_again();
        }
    }

    /// Publishers that had to wait for the store need not any more: reads a turn's worth of them again.
    pub(super) fn read_paused_again(&mut self) {
        for _ in 0..self.options.steps_per_turn {
            let Some(id) = self.outputs.journal.next_resumable() else { break };
            if let Some(link) = self.links.find_mut(id) {
                link.awaits_store = false;
                // Its packets waited in the socket for our sake.
                link.last_received = self.now;
                self.outputs.resumed.push_back(id);
            }
        }
    }

    /// The store can do its work, or it cannot: then nothing more is promised until it can.
    pub fn handle_store_state(&mut self, now: Instant, state: StoreState) {
        self.begin_input(now, None);
        self.outputs.journal.set_state(state);
        if state != StoreState::Well {
            // They are refused now, which adds nothing to what waits.
            self.outputs.journal.end_pauses();
            self.read_paused_again();
        }
    }

    /// The next connection that is to be read again: the store has caught up, its long request is done with, or what was put off
    /// is taken.
    pub fn poll_resume(&mut self) -> Option<ConnectionId> {
        self.outputs.resumed.pop_front()
    }

    /// Bytes that were recorded and are not stored yet.
    pub fn unstored_bytes(&self) -> u64 {
        self.outputs.journal.unstored_bytes()
    }

    /// Those that no batch was taken of yet.
    pub fn waiting_bytes(&self) -> u64 {
        self.outputs.journal.waiting_bytes()
    }

    /// How many records those are.
    pub fn waiting_records(&self) -> usize {
        self.outputs.journal.waiting_records()
    }

    /// Whether it is worth while to let them wait, because subscribers acknowledge in a moment what they are of. Not for
    /// long, nor if too much is not stored, or the store cannot take them anyway.
    pub fn may_records_wait(&self) -> bool {
        let journal = &self.outputs.journal;
        journal.is_transient()
            && journal.state == StoreState::Well
            && self.unstored_bytes() <= self.options.unstored_bytes_max / 2
    }

    /// Whether everything that was recorded is stored.
    pub fn is_stored(&self) -> bool {
        self.outputs.journal.is_idle()
    }

    /// Lets go what was held back for records that are stored, or not wanted any more; of very many clients a part, and the others
    /// in later turns. To be called where `poll_journal` is not in this turn.
    pub fn open_gates(&mut self) {
        if self.outputs.journal.has_to_open() {
            self.open_some_gates();
        }
    }

    fn open_some_gates(&mut self) {
        let Self { links, outputs, options, .. } = self;
        let mut steps = options.steps_per_turn;
        while steps > 0
            && let Some(id) = outputs.journal.next_to_open()
        {
            steps -= 1;
            let Some(link) = links.find_mut(id) else { continue };
            if link.outbox.open(|promise| outputs.journal.is_kept(promise)) {
                outputs.mark_dirty(link);
                steps = steps.saturating_sub(OPENING_STEPS);
            }
        }
        outputs.journal.set_opened_in_part();
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.outputs.events.pop_front()
    }

    /// The bytes on their way to this peer.
    pub fn outbox(&self, id: ConnectionId) -> Option<&Outbox> {
        self.links.find(id).map(|link| &link.outbox)
    }

    /// Whether the peer's socket took no more when it was flushed last.
    pub fn is_blocked(&self, id: ConnectionId) -> bool {
        self.links.find(id).is_some_and(|link| link.blocked)
    }

    /// Whether the server should read from this peer now. A peer that does not read its replies is not read.
    pub fn wants_input(&self, id: ConnectionId) -> bool {
        self.links.find(id).is_some_and(|link| {
            !link.is_read_paused()
                && match link.state {
                    LinkState::Closing => false,
                    LinkState::Authenticating => {
                        !link.authentication().is_some_and(Authentication::is_pending)
                    }
                    LinkState::AwaitingConnect | LinkState::Connected(_) => true,
                }
        })
    }

    /// Whether it waits to be read for the first time, so that nothing is lost if its peer has gone.
    pub fn is_kept_back(&self, id: ConnectionId) -> bool {
        let is_new = |link: &&Link| link.state == LinkState::AwaitingConnect && link.awaits_fan_out;
        self.links.find(id).as_ref().is_some_and(is_new)
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
        id: ConnectionId,
        kind: PacketKind,
        packet_id: Option<PacketId>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some(link) = self.links.find_mut(id) else { return };
        let size_max = link.packet_size_max as usize;
        let journal = &self.outputs.journal;
        let promise = match kind {
            PacketKind::Puback => journal.promise_of_message(),
            PacketKind::Connack => Promise { is_first: true, ..journal.promise() },
            _ => journal.promise(),
        };
        self.outputs.hold_back(link, promise);
        let is_written = self.outputs.write_within(link, kind, packet_id, size_max, write);
        let copied = link.outbox.copied_pending();
        if kind == PacketKind::Pingresp && link.outbox.has_gate() && !link.outbox.holds_connack() {
            // It promises nothing, and a client that misses it gives up.
            self.outputs.work += link.outbox.move_last_before_gates(PINGRESP_BYTES) / MOVED_BYTES_PER_STEP;
        }
        if !is_written {
            self.close(id, CloseReason::ReplyTooLarge); // [MQTT5-3.1.2-24]
        } else if copied > self.options.outbox_bytes_max as usize {
            self.close(id, CloseReason::OutboxFull);
        } else if copied > self.options.outbox_pause_mark() {
            link.read_paused = true;
        }
    }

    /// Bytes of messages that wait or are in flight, and of outgoing buffers; retained messages are not counted.
    fn queued_bytes_total(&self) -> u64 {
        let metrics = &self.outputs.metrics;
        let waiting = metrics.queued_messages * size_of::<Delivery>() as u64
            + metrics.in_flight_messages * size_of::<Sent>() as u64;
        self.messages.bytes().saturating_sub(self.retained.bytes()) + waiting + metrics.outbox_bytes
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

    /// What a client is told while nothing can be stored.
    fn store_trouble(&self) -> Option<ReasonCode> {
        match self.outputs.journal.state {
            StoreState::Well => None,
            StoreState::Full => Some(ReasonCode::QuotaExceeded),
            StoreState::Failing => Some(ReasonCode::ImplementationSpecificError),
        }
    }

    /// Whether answers to this client have reason codes, so that it can be told what went wrong.
    fn has_reasons(&self, id: ConnectionId) -> bool {
        self.links.find(id).is_some_and(|link| link.protocol.has_properties())
    }

    /// A session that is known to exist: that of the packet being handled.
    fn session(&self, id: SessionId) -> &Session {
        self.sessions.find(id).expect("a connected link has a session")
    }

    fn session_mut(&mut self, id: SessionId) -> &mut Session {
        self.sessions.find_mut(id).expect("a connected link has a session")
    }

    fn schedule_refill(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.find_mut(id) {
            session.asked_in_vain = 0;
            if !session.refill_scheduled {
                session.refill_scheduled = true;
                self.refills.push_back(id);
            }
        }
    }

    /// Ends a session and all that belongs to it. Its connection, if any, must have been closed before.
    fn end_session(&mut self, id: SessionId) {
        let Some(mut session) = self.sessions.remove(id) else { return };
        assert!(session.connection.is_none(), "a session does not end under its connection");
        let name = session.name;
        if name.is_some() {
            self.outputs.journal.remove_session(&session.client_id, name, session.latest_record);
        }
        if let Some(timer) = session.timer {
            self.wheel.cancel(timer);
        }
        self.outputs.metrics.in_flight_messages -= session.outgoing.in_flight() as u64;
        self.leave_few_groups(&mut session);
        let Session { mut outgoing, mut receipts, memberships, streams, will, .. } = session;
        outgoing.begin_anew();
        let Outgoing { sent, mut released, queue, .. } = outgoing;
        if !name.is_some() {
            (released, receipts) = Default::default();
        }
        let queued = queue.len() as u64;
        self.outputs.metrics.queued_messages -= queued;
        self.outputs.metrics.drop_messages(DropReason::SessionEnded, queued);
        let session = Some(id);
        let remains = Remains { session, memberships, streams, queue, released, receipts };
        self.leave_behind(remains);
        self.leave_sent_behind(sent);
        if let Some(will) = will {
            self.publish_will(id, name, will); // [MQTT5-3.1.2-8]
        }
    }
}

impl Broker {
    /// Records a session as it is now, if it is to outlive the process.
    fn record_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        let is_stored = session.name.is_some() || !session.ends_with_connection;
        if is_stored && self.outputs.journal.is_on() {
            let record = session.to_record();
            let (name, latest) =
                self.outputs.journal.record_session(session.name, session.latest_record, &record);
            (session.name, session.latest_record) = (name, latest);
        }
    }
}

impl Outputs {
    fn new(options: &Options) -> Self {
        Self {
            metrics: Metrics::default(),
            journal: Journal::new(options.durability),
            pool: BufferPool::default(),
            dirty_soon: VecDeque::new(),
            dirty_in_turn: VecDeque::new(),
            is_fan_out: false,
            fan_outs: 0,
            is_fan_out_urgent: false,
            copies: 0,
            work: 0,
            steps_left: 0,
            closing: VecDeque::new(),
            events: VecDeque::new(),
            authentication: VecDeque::new(),
            resumed: VecDeque::new(),
            trace_packets: options.trace_packets,
        }
    }

    /// Holds back what is written to this link from now on, until a promise is kept.
    #[inline]
    fn hold_back(&mut self, link: &mut Link, promise: Promise) {
        if promise.lsn.is_some() && link.outbox.hold(promise, self.journal.batch_first()) {
            self.journal.note_held(promise, link.id);
        }
    }

    /// Records that a message waits for somebody, or was sent.
    fn record(&mut self, owner: Owner<'_>, delivery: &Delivery, packet_id: Option<PacketId>) -> Lsn {
        let Delivery { message, qos, retain, via, .. } = delivery;
        match (owner, via) {
            (Owner::Session(session), None) => {
                self.journal.record_delivery(session, message, packet_id, (*qos, *retain))
            }
            _ => {
                let ids = delivery.subscription_ids();
                let origin = via.as_ref().and_then(|via| via.origin.as_ref()).map(Origin::to_record);
                let flags = (*qos, *retain);
                self.journal.record_delivery_in_full(owner, message, packet_id, flags, ids, origin)
            }
        }
    }

    /// A delivery is done with.
    #[inline]
    fn forget(&mut self, delivery: &Delivery) {
        if delivery.record.is_some() {
            self.journal.remove_delivery(delivery.record, &delivery.message, delivery.qos);
        }
    }

    /// Writes one packet into the outbox of a link and notes that it has to be flushed.
    fn write(
        &mut self,
        link: &mut Link,
        kind: PacketKind,
        packet_id: Option<PacketId>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let size = link.outbox.append(&mut self.pool, write);
        self.count_written(link, kind, packet_id, size);
    }

    /// The same for a packet of at most so many bytes. False if it has more, and is not written.
    fn write_within(
        &mut self,
        link: &mut Link,
        kind: PacketKind,
        packet_id: Option<PacketId>,
        size_max: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let size = link.outbox.append(&mut self.pool, write);
        let is_written = size <= size_max;
        if is_written {
            self.count_written(link, kind, packet_id, size);
        } else {
            link.outbox.take_back(size, &mut self.pool);
        }
        is_written
    }

    // Into `write`, which runs for every packet.
    #[inline(always)]
    fn count_written(&mut self, link: &mut Link, kind: PacketKind, packet_id: Option<PacketId>, size: usize) {
        self.metrics.outbox_bytes += size as u64;
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
        if link.blocked || link.dirty == Dirty::Soon {
            return;
        }
        if !self.is_fan_out {
            link.dirty = Dirty::Soon;
            self.dirty_soon.push_back(link.id);
        } else if link.dirty == Dirty::No {
            link.dirty = Dirty::InTurn;
            self.dirty_in_turn.push_back(link.id);
        } else {
            self.is_fan_out_urgent |= link.outbox.pending() > URGENT_BYTES;
        }
    }

    fn is_dirty(&self) -> bool {
        !self.dirty_soon.is_empty() || !self.dirty_in_turn.is_empty()
    }

    /// Throws away what is held back.
    #[cold]
    fn drop_held(&mut self, link: &mut Link) {
        let (copied, packets) = link.outbox.drop_held(&mut self.pool);
        self.metrics.outbox_bytes -= copied as u64;
        self.metrics.outbox_packets -= packets;
    }

    /// Throws away what was not written.
    fn discard(&mut self, link: &mut Link) {
        let (copied, packets) = link.outbox.clear(&mut self.pool);
        self.metrics.outbox_bytes -= copied as u64;
        self.metrics.outbox_packets -= packets;
    }

    fn limit_reached(&mut self, limit: Limit, owner: Option<&str>, value: u64) {
        self.events.push_back(Event::LimitReached { limit, owner: owner.map(Into::into), value });
    }
}
