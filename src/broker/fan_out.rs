//! A PUBLISH to more sessions than one turn has time for.
//!
//! When it is taken it is settled who gets it, and it is retained and goes to groups. If it is not known who they are, they
//! are listed first. Then its copies are made. Both is done a turn's worth at a time, and its acknowledgement follows the
//! last copy. Its sender is not read meanwhile; everybody else goes on, but
//! for replies that wait for the store.
//!
//! There is one of them at a time. A PUBLISH to as many, or to the same topic, or by the same client, is not taken
//! before: to its sender it is as if it were still in the socket. They are taken in the order in which they came. So all who get
//! the messages of a topic get them in one order, and nobody waits for ever. What the broker publishes by itself, as wills,
//! cannot be put off, and goes to all in one call; the rest of the copies of its topic are made before.
//!
//! Nothing is handed to the store before the last copy is made: after a crash either all of them are there or none, and
//! the sender who sends it again sends it to all.
//!
//! Invariants: the link of a publisher that waits is not read; no slot of a session is freed meanwhile, because the list of
//! receivers names it; making copies closes nobody.
//!
//! Deliberately not here: how a receiver gets its copy (see `deliver`), and how a PUBLISH is taken (see `receive`).

use crate::clock::{Duration, Instant};
use crate::codec::packet::Publish;
use crate::codec::{PacketId, QoS, ReasonCode};
use crate::metrics::DropReason;
use crate::topics::match_cache::Matches;
use crate::topics::{SubscriberId, TopicName};

use super::Broker;
use super::deliver::{LISTED_PER_STEP, Routing};
use super::event::{Event, FanOutStep};
use super::link::{ConnectionId, Link};
use super::message::{Content, Message};
use super::session::SessionId;

/// A message with copies still to be made.
#[derive(Debug)]
pub(super) struct FanOut {
    message: Message,
    qos: QoS,
    retain: bool,
    publisher: Option<SubscriberId>,
    /// `None` while they are listed.
    receivers: Option<Matches>,
    /// Those before it have theirs.
    next: usize,
    /// Who is answered after the last copy.
    sender: Option<Sender>,
}

#[derive(Clone, Copy, Debug)]
struct Sender {
    connection: ConnectionId,
    session: SessionId,
    packet_id: Option<PacketId>,
}

impl FanOut {
    pub(super) fn is_retained(&self) -> bool {
        self.retain
    }

    fn is_to(&self, topic: TopicName<'_>) -> bool {
        *self.message.topic_bytes() == *topic.as_str().as_bytes()
    }
}

/// A PUBLISH that could not be taken yet.
#[derive(Debug)]
pub(super) struct PutOff {
    connection: ConnectionId,
    message: Message,
    qos: QoS,
    retain: bool,
    packet_id: Option<PacketId>,
    /// Before it is taken its time does not run.
    came_at: Instant,
}

impl Broker {
    /// Whether a message is on its way to more sessions than one turn has time for. `poll_journal` gives nothing meanwhile.
    pub fn is_fanning_out(&self) -> bool {
        self.fan_out.is_some()
    }

    /// Whether it has yet to be found out to which.
    pub fn is_listing_receivers(&self) -> bool {
        self.fan_out.as_deref().is_some_and(|fan_out| fan_out.receivers.is_none())
    }

    /// Whether it has something to go on with, or to take.
    #[inline]
    pub(super) fn has_fan_out(&self) -> bool {
        self.fan_out.is_some() || !self.put_off.is_empty()
    }

    /// Goes on in later turns with a message of which the first `next` receivers have their copy, or whose receivers are being
    /// listed.
    #[cold]
    #[inline(never)]
    pub(super) fn begin_fan_out(&mut self, routing: &mut Routing<'_>, receivers: Matches, next: usize) {
        assert!(self.fan_out.is_none(), "there is one at a time");
        (routing.is_matched, routing.goes_on) = (true, true);
        let receivers = receivers.is_complete().then_some(receivers);
        // Who are more than can be listed in a turn are many.
        self.outputs.fan_outs += u64::from(receivers.is_none());
        self.fan_out = Some(Box::new(FanOut {
            message: routing.message(&self.messages).clone(),
            qos: routing.qos,
            retain: routing.retain,
            publisher: routing.publisher,
            receivers,
            next,
            sender: None,
        }));
    }

    /// Has the sender of the message under way wait for its answer, and not be read.
    pub(super) fn await_fan_out(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        packet_id: Option<PacketId>,
    ) {
        if let Some(fan_out) = &mut self.fan_out
            && let Some(link) = self.links.find_mut(connection)
        {
            fan_out.sender = Some(Sender { connection, session, packet_id });
            link.awaits_fan_out = true;
            self.trace_fan_out(connection, FanOutStep::Begun);
        }
    }

    /// Whether a PUBLISH has to wait for the end of the message under way, or behind others that wait [MQTT-4.6.0-6].
    #[cold]
    #[inline(never)]
    pub(super) fn has_to_wait(
        &mut self,
        from: ConnectionId,
        session: SessionId,
        topic: TopicName<'_>,
    ) -> bool {
        let is_behind = |fan_out: &FanOut| {
            fan_out.is_to(topic) || fan_out.sender.is_some_and(|sender| sender.session == session)
        };
        // A server may have read on before it knew that it should not.
        let waits_already = self.links.find(from).is_some_and(|link| link.awaits_fan_out);
        waits_already || self.fan_out.as_deref().is_some_and(is_behind) || self.is_fan_out(topic)
    }

    /// Whether a message to this topic takes several turns, or may.
    fn is_fan_out(&mut self, topic: TopicName<'_>) -> bool {
        self.subscriptions.may_exceed(topic, self.options.steps_per_turn)
    }

    /// Does not take a PUBLISH yet, and does not read its sender.
    #[cold]
    #[inline(never)]
    pub(super) fn put_off_publish(
        &mut self,
        connection: ConnectionId,
        publish: &Publish<'_>,
        expires_at: Option<Instant>,
    ) {
        let Some(link) = self.links.find_mut(connection) else { return };
        link.awaits_fan_out = true;
        let &Publish { qos, retain, packet_id, topic, properties, payload, .. } = publish;
        let message = Message::new(&Content { topic, properties, payload, expires_at }, &self.messages);
        let came_at = self.now;
        self.put_off.push_back(PutOff { connection, message, qos, retain, packet_id, came_at });
        self.trace_fan_out(connection, FanOutStep::PutOff);
    }

    /// The broker publishes to a topic by itself: what is on its way there goes before. Its sender is answered in the next turn.
    #[cold]
    #[inline(never)]
    pub(super) fn make_way(&mut self, topic: TopicName<'_>) {
        if let Some(mut fan_out) = self.fan_out.take_if(|fan_out| fan_out.is_to(topic)) {
            self.make_all_copies(&mut fan_out);
            self.fan_out = Some(fan_out);
        }
    }

    /// Brings the message under way to its end, the answer to its sender included.
    pub(super) fn finish_fan_out(&mut self) {
        if let Some(mut fan_out) = self.fan_out.take() {
            self.make_all_copies(&mut fan_out);
            self.end_fan_out(*fan_out);
        }
    }

    /// Lists as many receivers, or makes as many copies, as one turn has time for; where nothing is left to be done, takes what was put off. So there is a
    /// turn without any between two messages to many: in that the store gets its batch, and slots of sessions are freed.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_fan_out(&mut self) {
        let steps = self.options.steps_per_turn;
        if let Some(mut fan_out) = self.fan_out.take() {
            if self.go_on_with(&mut fan_out, steps) {
                self.end_fan_out(*fan_out);
            } else {
                self.fan_out = Some(fan_out);
            }
            return;
        }
        let copies_max = self.outputs.copies + steps as u64;
        for _ in 0..steps {
            if self.fan_out.is_some() || self.outputs.copies >= copies_max {
                break;
            }
            let Some(put_off) = self.put_off.pop_front() else { break };
            self.take_put_off(&put_off);
        }
    }

    /// Lists some of its receivers, or makes some of its copies. True if none are left to be made.
    fn go_on_with(&mut self, fan_out: &mut FanOut, steps: usize) -> bool {
        let Some(receivers) = &fan_out.receivers else {
            fan_out.receivers = self.subscriptions.list_further(steps.saturating_mul(LISTED_PER_STEP));
            return false;
        };
        let left = receivers.len() - fan_out.next;
        if fan_out.message.is_expired(self.now) {
            self.outputs.metrics.drop_messages(DropReason::Expired, left as u64); // [MQTT5-3.3.2-5]
            fan_out.next += left;
            return true;
        }
        let end = fan_out.next + left.min(steps);
        self.copy_some(fan_out, receivers, end);
        fan_out.next = end;
        left <= steps
    }

    fn make_all_copies(&mut self, fan_out: &mut FanOut) {
        while !self.go_on_with(fan_out, usize::MAX) {}
    }

    /// All copies are made.
    fn end_fan_out(&mut self, fan_out: FanOut) {
        let FanOut { receivers, qos, sender, .. } = fan_out;
        if let Some(receivers) = receivers {
            self.subscriptions.put_back(receivers);
        }
        for session in std::mem::take(&mut self.slots_to_free) {
            self.sessions.free_slot(session);
        }
        self.refills.extend(self.streams_behind.drain(..));
        if let Some(Sender { connection, packet_id, .. }) = sender
            && self.read_after_fan_out(connection)
        {
            // It was recorded in several turns.
            self.outputs.journal.promise_all();
            self.answer_publish(connection, qos, packet_id, ReasonCode::Success);
            if qos > QoS::AtMostOnce
                && self.outputs.journal.unstored_bytes() > self.options.unstored_bytes_max
            {
                self.await_store(connection);
            }
        }
    }

    /// Makes the copies of the next receivers, up to a place in their list.
    fn copy_some(&mut self, fan_out: &FanOut, receivers: &Matches, end: usize) {
        let &FanOut { ref message, qos, retain, publisher, next, .. } = fan_out;
        let topic = TopicName::parse(message.topic(), self.options.topic_levels_max)
            .expect("it was one when it was taken");
        let mut routing = Routing::new(topic, message.payload(), qos, retain);
        routing.properties = message.properties();
        routing.expires_at = message.expires_at();
        routing.publisher = publisher;
        routing.use_message(message.clone());
        self.copy_to(&mut routing, receivers, next..end);
    }

    /// Takes a PUBLISH as if it came now.
    #[cold]
    #[inline(never)]
    fn take_put_off(&mut self, put_off: &PutOff) {
        let &PutOff { connection, ref message, qos, retain, packet_id, came_at } = put_off;
        if !self.read_after_fan_out(connection) {
            return;
        }
        let Some(session) = self.links.find(connection).and_then(Link::session) else { return };
        let topic = TopicName::parse(message.topic(), self.options.topic_levels_max)
            .expect("it was one when it was put off");
        let (properties, payload) = (message.properties(), message.payload());
        let publish =
            Publish { dup: false, qos, retain, topic: topic.as_str(), packet_id, properties, payload };
        let waited = Duration(self.now.since(came_at).0);
        let expires_at = message.expires_at().map(|expires_at| expires_at + waited);
        self.outputs.journal.begin_input(Some(connection));
        self.take_now(connection, session, topic, &publish, expires_at);
        self.await_store_if_behind(connection);
        if self.links.find(connection).is_some_and(|link| link.session().is_some()) {
            self.trace_fan_out(connection, FanOutStep::Taken);
        }
        self.outputs.journal.begin_input(None);
    }

    /// The connection ends: what it has yet to have taken is as good as never sent.
    #[cold]
    #[inline(never)]
    pub(super) fn forget_put_off(&mut self, connection: ConnectionId) {
        let (metrics, put_off) = (&mut self.outputs.metrics, &mut self.put_off);
        put_off.retain(|put_off| {
            let stays = put_off.connection != connection;
            if !stays && put_off.qos == QoS::AtMostOnce {
                metrics.drop_message(DropReason::SessionEnded);
            }
            stays
        });
    }

    /// Has a publisher read again. False if it is gone.
    fn read_after_fan_out(&mut self, id: ConnectionId) -> bool {
        let Some(link) = self.links.find_mut(id).filter(|link| link.session().is_some()) else {
            return false;
        };
        link.awaits_fan_out = false;
        // Its packets waited in the socket for our sake.
        link.last_received = self.now;
        self.outputs.resumed.push_back(id);
        true
    }

    /// Whether this publisher is read again once the message under way has reached everybody.
    pub(super) fn is_behind_fan_out(&self, id: ConnectionId) -> bool {
        let is_sender = |fan_out: &FanOut| fan_out.sender.is_some_and(|sender| sender.connection == id);
        self.fan_out.as_deref().is_some_and(is_sender)
            || self.put_off.iter().any(|put_off| put_off.connection == id)
    }

    fn trace_fan_out(&mut self, connection: ConnectionId, step: FanOutStep) {
        if self.outputs.trace_packets {
            self.outputs.events.push_back(Event::FanOut { connection, step });
        }
    }
}
