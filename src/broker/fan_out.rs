//! A message to more sessions than one turn has time for.
//!
//! When it is taken it is settled who gets it, and it is retained and goes to groups. Its copies are made a turn's worth at
//! a time, and its acknowledgement follows the last of them. Its sender is not read meanwhile; everybody else goes on.
//!
//! There is one of them at a time. A PUBLISH to as many, or to the same topic, or by the same client, is not taken
//! before: to its sender it is as if it were still in the socket. So all who get the messages of a topic get them in one
//! order. What the broker publishes by itself, as wills, cannot be put off: where it would have to, the one under way is
//! brought to its end first.
//!
//! Nothing is handed to the store before the last copy is made: after a crash either all of them are there or none, and
//! the sender who sends it again sends it to all.
//!
//! Invariants: the link of a publisher that waits is not read; no slot of a session is freed meanwhile, because the list of
//! receivers names it.
//!
//! Deliberately not here: how a receiver gets its copy (see `deliver`), and how a PUBLISH is taken (see `receive`).

use crate::clock::Instant;
use crate::codec::packet::Publish;
use crate::codec::{PacketId, QoS, ReasonCode};
use crate::metrics::DropReason;
use crate::topics::match_cache::Matches;
use crate::topics::{SubscriberId, TopicName};

use super::Broker;
use super::deliver::Routing;
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
    receivers: Matches,
    /// Those before it have theirs.
    next: usize,
    /// Who is answered after the last copy, if it came in a PUBLISH, and under which identifier.
    sender: Option<(ConnectionId, Option<PacketId>)>,
}

impl FanOut {
    pub(super) fn is_retained(&self) -> bool {
        self.retain
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
}

impl Broker {
    /// Whether a message is on its way to more sessions than one turn has time for. `poll_journal` gives nothing meanwhile.
    pub fn is_fanning_out(&self) -> bool {
        self.fan_out.is_some()
    }

    /// Whether it has something to go on with, or to take.
    #[inline]
    pub(super) fn has_fan_out(&self) -> bool {
        self.fan_out.is_some() || !self.put_off.is_empty()
    }

    /// Goes on in later turns with a message of which the first `next` receivers have their copy.
    #[cold]
    #[inline(never)]
    pub(super) fn begin_fan_out(&mut self, routing: &mut Routing<'_>, receivers: Matches, next: usize) {
        assert!(self.fan_out.is_none(), "there is one at a time");
        (routing.is_matched, routing.goes_on) = (true, true);
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
    pub(super) fn await_fan_out(&mut self, sender: ConnectionId, packet_id: Option<PacketId>) {
        if let Some(fan_out) = &mut self.fan_out
            && let Some(link) = self.links.find_mut(sender)
        {
            fan_out.sender = Some((sender, packet_id));
            link.awaits_fan_out = true;
            self.trace_fan_out(sender, FanOutStep::Begun);
        }
    }

    /// Whether a PUBLISH has to wait for the end of the message under way.
    #[cold]
    #[inline(never)]
    pub(super) fn has_to_wait(&mut self, publisher: SessionId, topic: TopicName<'_>) -> bool {
        let Some(fan_out) = &self.fan_out else { return false };
        let is_behind = *fan_out.message.topic_bytes() == *topic.as_str().as_bytes()
            || fan_out.publisher == Some(publisher.subscriber());
        is_behind || self.is_fan_out(topic)
    }

    /// Whether a message to this topic takes several turns.
    fn is_fan_out(&mut self, topic: TopicName<'_>) -> bool {
        let matches = self.subscriptions.matches(topic);
        let takes_turns = matches.len() > self.options.steps_per_turn;
        self.subscriptions.put_back(matches);
        takes_turns
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
        self.put_off.push_back(PutOff { connection, message, qos, retain, packet_id });
        self.trace_fan_out(connection, FanOutStep::PutOff);
    }

    /// Brings the message under way to its end, if one that cannot wait would overtake it or is to as many.
    #[cold]
    #[inline(never)]
    pub(super) fn make_way(&mut self, topic: TopicName<'_>, receivers: usize) {
        let is_same = |fan_out: &FanOut| *fan_out.message.topic_bytes() == *topic.as_str().as_bytes();
        if receivers > self.options.steps_per_turn || self.fan_out.as_deref().is_some_and(is_same) {
            self.finish_fan_out();
        }
    }

    /// Makes all copies that are still to be made.
    pub(super) fn finish_fan_out(&mut self) {
        self.make_copies(usize::MAX);
    }

    /// Makes as many copies as one turn has time for; where none are left to be made, takes what was put off. So there is a
    /// turn without any between two messages to many: in that the store gets its batch, and slots of sessions are freed.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_fan_out(&mut self) {
        let steps = self.options.steps_per_turn;
        if self.fan_out.is_some() {
            return self.make_copies(steps);
        }
        for _ in 0..steps {
            let Some(put_off) = self.put_off.pop_front() else { break };
            self.take_put_off(&put_off);
            if self.fan_out.is_some() {
                break;
            }
        }
    }

    fn make_copies(&mut self, copies_max: usize) {
        let Some(mut fan_out) = self.fan_out.take() else { return };
        let left = fan_out.receivers.len() - fan_out.next;
        if fan_out.message.is_expired(self.now) {
            self.outputs.metrics.drop_messages(DropReason::Expired, left as u64); // [MQTT5-3.3.2-5]
        } else {
            let end = fan_out.next + left.min(copies_max);
            self.copy_some(&fan_out, end);
            fan_out.next = end;
            if end < fan_out.receivers.len() {
                self.fan_out = Some(fan_out);
                return;
            }
        }
        let FanOut { receivers, qos, sender, .. } = *fan_out;
        self.subscriptions.put_back(receivers);
        if let Some((sender, packet_id)) = sender
            && self.read_after_fan_out(sender)
        {
            // It was recorded in several turns.
            self.outputs.journal.promise_all();
            self.answer_publish(sender, qos, packet_id, ReasonCode::Success);
            self.await_store_if_behind(sender);
        }
    }

    /// Makes the copies of the next receivers, up to a place in their list.
    fn copy_some(&mut self, fan_out: &FanOut, end: usize) {
        let &FanOut { ref message, qos, retain, publisher, ref receivers, next, .. } = fan_out;
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
        let &PutOff { connection, ref message, qos, retain, packet_id } = put_off;
        if !self.read_after_fan_out(connection) {
            return;
        }
        let Some(session) = self.links.find(connection).and_then(Link::session) else { return };
        let (topic, properties, payload) = (message.topic(), message.properties(), message.payload());
        let publish = Publish { dup: false, qos, retain, topic, packet_id, properties, payload };
        self.outputs.journal.begin_input(Some(connection));
        self.take(connection, session, &publish, message.expires_at());
        self.await_store_if_behind(connection);
        if self.links.find(connection).is_some_and(|link| link.session().is_some()) {
            self.trace_fan_out(connection, FanOutStep::Taken);
        }
        self.outputs.journal.begin_input(None);
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
        let is_sender = |fan_out: &FanOut| fan_out.sender.is_some_and(|(sender, _)| sender == id);
        self.fan_out.as_deref().is_some_and(is_sender)
            || self.put_off.iter().any(|put_off| put_off.connection == id)
    }

    fn trace_fan_out(&mut self, connection: ConnectionId, step: FanOutStep) {
        if self.outputs.trace_packets {
            self.outputs.events.push_back(Event::FanOut { connection, step });
        }
    }
}
