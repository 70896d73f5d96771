//! A message to more sessions than one turn has time for.
//!
//! When it is taken it is settled who gets it, and it is retained and goes to groups. If it is not known who they are, they
//! are listed first. Then its copies are made. Both is done a turn's worth at a time, and its acknowledgement follows the
//! last copy. Its sender is not read meanwhile; everybody else goes on, but for replies that wait for the store.
//!
//! A will, or what the broker tells about itself, goes to many in the same way; it has no sender.
//!
//! There is one of them at a time, and what would overtake it waits for its end (see `put_off`).
//!
//! Nothing is handed to the store before the last copy is made: after a crash either all of them are there or none, and
//! the sender who sends it again sends it to all.
//!
//! Invariants: the sender is not read; no slot of a session is freed meanwhile, because the list of receivers names it; making
//! copies closes nobody.
//!
//! Deliberately not here: how a receiver gets its copy (see `deliver`).

use crate::codec::{PacketId, QoS, ReasonCode};
use crate::metrics::DropReason;
use crate::topics::match_cache::Matches;
use crate::topics::{SubscriberId, TopicName};

use super::Broker;
use super::deliver::{LISTED_PER_STEP, Routing};
use super::event::{Event, FanOutStep};
use super::link::ConnectionId;
use super::message::Message;
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

    /// Whether the message under way is to this topic.
    pub(super) fn is_fanning_out_to(&self, topic: TopicName<'_>) -> bool {
        self.fan_out.as_deref().is_some_and(|fan_out| fan_out.is_to(topic))
    }

    /// Whether it was sent by the client of this session.
    pub(super) fn is_fanning_out_for(&self, session: SessionId) -> bool {
        self.sender().is_some_and(|sender| sender.session == session)
    }

    /// Whether it came by this connection.
    pub(super) fn is_fan_out_of(&self, connection: ConnectionId) -> bool {
        self.sender().is_some_and(|sender| sender.connection == connection)
    }

    fn sender(&self) -> Option<Sender> {
        self.fan_out.as_deref().and_then(|fan_out| fan_out.sender)
    }

    /// Whether a message to this topic takes several turns, or may.
    pub(super) fn is_fan_out(&mut self, topic: TopicName<'_>) -> bool {
        self.subscriptions.may_exceed(topic, self.options.steps_per_turn)
    }

    /// Brings the message under way to its end, the answer to its sender included.
    pub(super) fn finish_fan_out(&mut self) {
        if let Some(mut fan_out) = self.fan_out.take() {
            self.make_all_copies(&mut fan_out);
            self.end_fan_out(*fan_out);
        }
    }

    /// Lists as many receivers, or makes as many copies, as one turn has time for; where nothing is left to be done, takes
    /// what was put off. So there is a turn without any between two messages to many: in that the store gets its batch, and
    /// slots of sessions are freed.
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
            let Some(put_off) = self.put_off.pop() else { break };
            self.take_put_off(put_off);
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

    /// Has a publisher read again. False if it is gone.
    pub(super) fn read_after_fan_out(&mut self, id: ConnectionId) -> bool {
        let Some(link) = self.links.find_mut(id).filter(|link| link.session().is_some()) else {
            return false;
        };
        link.awaits_fan_out = false;
        // Its packets waited in the socket for our sake.
        link.last_received = self.now;
        self.outputs.resumed.push_back(id);
        true
    }

    pub(super) fn trace_fan_out(&mut self, connection: ConnectionId, step: FanOutStep) {
        if self.outputs.trace_packets {
            self.outputs.events.push_back(Event::FanOut { connection, step });
        }
    }
}
