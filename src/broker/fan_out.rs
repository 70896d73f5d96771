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

use crate::codec::{PacketId, QoS};
use crate::topics::match_cache::Matches;
use crate::topics::{SubscriberId, TopicName};

use super::Broker;
use super::deliver::{COPIES_AT_ONCE, LISTED_PER_STEP, Routing, Summing};
use super::event::{Event, FanOutStep};
use super::link::ConnectionId;
use super::message::Message;
use super::receive::reason_of;
use super::session::SessionId;
use super::shared::Moment;

/// How many of them there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FanOutNumber(u64);

/// A message with copies still to be made.
#[derive(Debug)]
pub(super) struct FanOut {
    message: Message,
    qos: QoS,
    retain: bool,
    publisher: Option<SubscriberId>,
    /// Whether somebody has got it: who has ended may be listed still.
    is_matched: bool,
    /// What the subscriptions of the next one come to, if they are very many.
    summing: Option<Box<Summing>>,
    /// `None` once all of them have it. They come before the groups.
    sessions: Option<Receivers>,
    groups: Option<Receivers>,
    /// A later group may have the slot of one that was meant.
    taken_at: Moment,
    /// Who is answered after the last copy.
    sender: Option<Sender>,
}

#[derive(Debug)]
struct Receivers {
    /// `None` while they are listed.
    matches: Option<Matches>,
    /// Those before it have theirs.
    next: usize,
}

impl Receivers {
    fn new(matches: Matches, next: usize) -> Self {
        Self { matches: matches.is_complete().then_some(matches), next }
    }
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

    /// Whether it has yet to be found out to which sessions.
    pub fn is_listing_sessions(&self) -> bool {
        self.is_listing(|fan_out| &fan_out.sessions)
    }

    /// Whether all sessions have it, and groups have yet to get it.
    pub fn is_fanning_out_to_groups(&self) -> bool {
        self.fan_out.as_deref().is_some_and(|fan_out| fan_out.sessions.is_none())
    }

    /// Whether it has yet to be found out to which groups.
    pub fn is_listing_groups(&self) -> bool {
        self.is_listing(|fan_out| &fan_out.groups)
    }

    fn is_listing(&self, part: fn(&FanOut) -> &Option<Receivers>) -> bool {
        let receivers = self.fan_out.as_deref().and_then(|fan_out| part(fan_out).as_ref());
        receivers.is_some_and(|receivers| receivers.matches.is_none())
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
    pub(super) fn begin_fan_out(&mut self, routing: &mut Routing<'_>, matches: Matches, next: usize) {
        let receivers = Receivers::new(matches, next);
        // Who are more than can be found or listed in a turn count as many.
        self.outputs.fan_outs += u64::from(receivers.matches.is_none());
        self.fan_out_of(routing).sessions = Some(receivers);
    }

    /// The same for groups, behind the sessions, if there are too many of those as well.
    #[cold]
    #[inline(never)]
    pub(super) fn begin_fan_out_to_groups(
        &mut self,
        routing: &mut Routing<'_>,
        matches: Matches,
        next: usize,
    ) {
        self.fan_out_of(routing).groups = Some(Receivers::new(matches, next));
    }

    fn fan_out_of(&mut self, routing: &mut Routing<'_>) -> &mut FanOut {
        assert!(routing.goes_on == self.fan_out.is_some(), "there is one at a time");
        routing.goes_on = true;
        let taken_at = self.shared.now();
        self.fan_out.get_or_insert_with(|| {
            self.fan_out_number.0 += 1;
            Box::new(FanOut {
                message: routing.message(&self.messages).clone(),
                qos: routing.qos,
                retain: routing.retain,
                publisher: routing.publisher,
                is_matched: false,
                summing: routing.summing.take(),
                sessions: None,
                groups: None,
                taken_at,
                sender: None,
            })
        })
    }

    /// Has the sender of the message under way wait for its answer, and not be read. `is_matched` says that somebody has got
    /// it.
    pub(super) fn await_fan_out(
        &mut self,
        connection: ConnectionId,
        session: SessionId,
        packet_id: Option<PacketId>,
        is_matched: bool,
    ) {
        if let Some(fan_out) = &mut self.fan_out
            && let Some(link) = self.links.find_mut(connection)
        {
            fan_out.is_matched = is_matched;
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
    pub(super) fn is_fan_out(&mut self, topic: TopicName<'_>, qos: QoS) -> bool {
        let steps = self.options.steps_per_turn;
        let groups_max = if self.may_look_long_for_members(qos) { 0 } else { steps };
        let listed_max = steps.saturating_mul(LISTED_PER_STEP);
        // Those of a retained one may be preceded by its value, which is looked for among much.
        let copies_max = if self.retained.is_kept(topic) { steps.min(COPIES_AT_ONCE) } else { steps };
        self.subscriptions.may_exceed(topic, copies_max, listed_max)
            || self.shared.may_exceed(topic, groups_max, listed_max)
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
        if self.slots_to_free.len() + self.streams_behind.len() > steps {
            return; // Or more than is let go behind each of them might be kept back by one after the other.
        }
        let done_max = self.done() + steps as u64;
        for _ in 0..steps {
            if self.fan_out.is_some() || self.done() >= done_max {
                break;
            }
            let Some(put_off) = self.put_off.pop() else { break };
            self.take_put_off(put_off);
        }
    }

    /// Lists some of its receivers, or makes some of its copies. True if none are left to be made.
    fn go_on_with(&mut self, fan_out: &mut FanOut, steps: usize) -> bool {
        let is_to_groups = fan_out.sessions.is_none();
        let part = if is_to_groups { &mut fan_out.groups } else { &mut fan_out.sessions };
        let Some(Receivers { matches, next }) = part.take() else { return true };
        let listed_max = steps.saturating_mul(LISTED_PER_STEP);
        let receivers = match matches {
            Some(matches) => {
                let left = matches.len() - next;
                let mut end = next + left.min(steps);
                if is_to_groups {
                    let taken_at = fan_out.taken_at;
                    let mut looks = listed_max;
                    self.with_routing(fan_out, |broker, routing| {
                        end = broker.give_to_groups(routing, &matches, next..end, taken_at, &mut looks);
                    });
                } else if fan_out.message.is_expired(self.now) {
                    end = next + left.min(listed_max);
                    self.with_routing(fan_out, |broker, routing| {
                        broker.pass_expired(routing, &matches, next..end);
                    });
                } else {
                    self.with_routing(fan_out, |broker, routing| {
                        end = broker.copy_many(routing, &matches, next..end);
                    });
                }
                if end == matches.len() {
                    if is_to_groups {
                        self.shared.put_back(matches);
                    } else {
                        self.subscriptions.put_back(matches);
                    }
                    return fan_out.sessions.is_none() && fan_out.groups.is_none();
                }
                Receivers { matches: Some(matches), next: end }
            }
            None if is_to_groups => Receivers { matches: self.shared.list_further(listed_max), next },
            None => Receivers { matches: self.subscriptions.list_further(listed_max), next },
        };
        let part = if is_to_groups { &mut fan_out.groups } else { &mut fan_out.sessions };
        *part = Some(receivers);
        false
    }

    fn make_all_copies(&mut self, fan_out: &mut FanOut) {
        while !self.go_on_with(fan_out, usize::MAX) {}
    }

    /// All copies are made.
    fn end_fan_out(&mut self, fan_out: FanOut) {
        let FanOut { qos, is_matched, sender, .. } = fan_out;
        self.release_kept_back();
        self.shared.end_search();
        if let Some(Sender { connection, packet_id, .. }) = sender
            && self.read_after_fan_out(connection)
        {
            // It was recorded in several turns.
            self.outputs.journal.promise_all();
            self.answer_publish(connection, qos, packet_id, reason_of(is_matched));
            if qos > QoS::AtMostOnce
                && self.outputs.journal.unstored_bytes() > self.options.unstored_bytes_max
            {
                self.await_store(connection);
            }
        }
    }

    /// Of what a message to many has kept back lets go as much as one turn has time for. No other message to many begins before little
    /// is left.
    #[cold]
    pub(super) fn release_kept_back(&mut self) {
        for _ in 0..self.options.steps_per_turn {
            let Some(session) = self.slots_to_free.pop() else { break };
            self.sessions.free_slot(session);
        }
        for _ in 0..self.options.steps_per_turn {
            let Some(session) = self.streams_behind.pop_front() else { break };
            if let Some(session) = self.sessions.find_mut(session) {
                session.are_streams_behind = false;
            }
            self.schedule_refill(session);
        }
    }

    /// Whether there is something that it has kept back.
    pub(super) fn has_kept_back(&self) -> bool {
        self.slots_to_free.len() | self.streams_behind.len() != 0 && self.fan_out.is_none()
    }

    /// Goes on with the message as it was taken.
    fn with_routing(&mut self, fan_out: &mut FanOut, go_on: impl FnOnce(&mut Self, &mut Routing<'_>)) {
        let &mut FanOut { ref message, qos, retain, publisher, ref mut summing, ref mut is_matched, .. } =
            fan_out;
        // Whatever the options say: those of the broker's own topics are not counted.
        let topic = TopicName::parse(message.topic(), u32::MAX).expect("it was one when it was taken");
        let mut routing = Routing::new(topic, message.payload(), qos, retain);
        routing.properties = message.properties();
        routing.expires_at = message.expires_at();
        routing.publisher = publisher;
        routing.is_continued = true;
        routing.summing = summing.take();
        routing.use_message(message.clone());
        go_on(self, &mut routing);
        *summing = routing.summing.take();
        *is_matched |= routing.is_matched;
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
