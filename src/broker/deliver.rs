//! PUBLISH to clients: who gets a message, at which QoS, and whether it is sent, queued or dropped.
//!
//! ```text
//!  route ──> each matching session once
//!              QoS 0: into the outbox, or dropped where that is full or nobody is there
//!              QoS 1, 2: into the outbox while window and outbox have room and nothing is queued, else into the queue
//! ```
//!
//! What waits is sent by refills: of a session whose client has come back, or acknowledged something, or whose outbox has
//! drained. All of one packet, or of those put off to one turn, together send a turn's steps of messages, or pass those that have
//! expired, or look for such, or at members of groups (`steps_left`), and one more where something would never go on otherwise. Who
//! is not done goes on in a later turn, behind the others who do.

use std::num::NonZeroU32;
use std::ops::Range;

use crate::clock::Instant;
use crate::codec::encode::{self, PublishHead, PublishHeadProperties};
use crate::codec::{PacketId, Properties, QoS, ReasonCode};
use crate::journal::{Lsn, Owner};
use crate::metrics::DropReason;
use crate::topics::match_cache::Matches;
use crate::topics::{Grant, Subscriber, SubscriberId, TopicName};

use super::delivery::{Delivery, Via};
use super::event::{Event, Limit, PacketKind, PublishTrace};
use super::journal::Promise;
use super::link::{ConnectionId, Link};
use super::message::{Content, Gauge, Message};
use super::options::Options;
use super::queue::Queue;
use super::session::{Sent, Session, SessionId};
use super::topic_aliases::Choice;
use super::{Broker, Outputs};

/// From this size on a payload that is already in a message is shared with an outbox and not copied.
const SHARED_PAYLOAD_MIN: usize = 512;

/// So many subscriptions are listed in the time that one copy takes.
pub(super) const LISTED_PER_STEP: usize = 4;

/// So many PUBRELs are written in that time.
const RELEASES_PER_COPY: usize = 16;

/// This share of a turn's steps is spent on making room in a full queue.
const FULL_QUEUE_SHARE: usize = 32;

/// So many receivers are many: each of them is flushed in its turn.
const FAN_OUT_MIN: usize = 16;

/// So many copies are made before it is looked at how much work they have been.
pub(super) const COPIES_AT_ONCE: usize = 16;

/// Where all receivers together have no more grants than that, those of so many of them are not much work.
const GRANTS_AT_ONCE: usize = 1_024;

/// One message on its way to everybody who wants it.
#[derive(Debug)]
pub(super) struct Routing<'a> {
    pub(super) topic: TopicName<'a>,
    pub(super) properties: Properties<'a>,
    pub(super) payload: &'a [u8],
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) expires_at: Option<Instant>,
    /// Who published it; nobody, if it is the broker.
    pub(super) publisher: Option<SubscriberId>,
    /// Whether anybody is subscribed to it.
    pub(super) is_matched: bool,
    /// Whether it takes several turns: only the first of its receivers have it so far.
    pub(super) goes_on: bool,
    /// Whether it was taken in an earlier turn.
    pub(super) is_continued: bool,
    /// What its next receiver's subscriptions come to, if they are too many to be looked at in one turn.
    pub(super) summing: Option<Box<Summing>>,
    /// Made when the first receiver has to keep it.
    message: Option<Message>,
    /// Payloads up to this size are copied into outboxes.
    copied_payload_max: usize,
    /// The broker holds all the bytes it may, so that at QoS 0 only peers without a backlog get the message.
    broker_is_full: bool,
}

impl<'a> Routing<'a> {
    pub(super) fn new(topic: TopicName<'a>, payload: &'a [u8], qos: QoS, retain: bool) -> Self {
        Self {
            topic,
            properties: Properties::NONE,
            payload,
            qos,
            retain,
            expires_at: None,
            publisher: None,
            is_matched: false,
            goes_on: false,
            is_continued: false,
            summing: None,
            message: None,
            copied_payload_max: 0,
            broker_is_full: false,
        }
    }

    /// The message, shared by all who keep it.
    pub(super) fn message(&mut self, gauge: &Gauge) -> &Message {
        self.message.get_or_insert_with(|| {
            let content = Content {
                topic: self.topic.as_str(),
                properties: self.properties,
                payload: self.payload,
                expires_at: self.expires_at,
            };
            Message::new(&content, gauge)
        })
    }

    /// It is in a message already.
    pub(super) fn use_message(&mut self, message: Message) {
        self.message = Some(message);
    }

    /// Whether it is in this one.
    pub(super) fn is_in(&self, message: &Message) -> bool {
        self.message.as_ref().is_some_and(|own| own.is_same(message))
    }

    fn head(&self, retain: bool) -> PublishHead<'a> {
        PublishHead {
            dup: false,
            qos: QoS::AtMostOnce,
            retain,
            topic: self.topic.as_str().as_bytes(),
            packet_id: None,
            payload_len: self.payload.len(),
        }
    }
}

/// What the matching subscriptions of one receiver come to.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    /// The highest QoS, and whether one of them wants the retain flag. `None` if all of them leave out what their client
    /// published itself [MQTT5-3.8.3-3].
    granted: Option<(QoS, bool)>,
}

impl Sum {
    /// Adds a subscription. Its identifier goes to the others'.
    #[inline]
    fn add(&mut self, grant: Grant, is_own: bool, subscription_ids: &mut Vec<u32>) {
        if grant.no_local && is_own {
            return;
        }
        let (qos, retain_as_published) = self.granted.unwrap_or_default();
        self.granted = Some((qos.max(grant.qos), retain_as_published || grant.retain_as_published));
        subscription_ids.extend(grant.subscription_id.map(NonZeroU32::get)); // [MQTT5-3.3.4-4]
    }
}

/// The same as far as turns have had time for it.
#[derive(Debug)]
pub(super) struct Summing {
    subscriber: SubscriberId,
    sum: Sum,
    subscription_ids: Vec<u32>,
    /// Where the next grant is; `None` if all have been looked at.
    place: Option<u32>,
}

/// What a PUBLISH says beside its head, to those who understand it.
#[derive(Clone, Copy, Debug)]
struct Annotations<'a> {
    forwarded: Properties<'a>,
    expires_at: Option<Instant>,
    subscription_ids: &'a [u32],
    /// When the packet may leave.
    promise: Promise,
}

/// What follows the head of a PUBLISH, and how it gets into an outbox: the payload, and before it the properties that
/// are passed on, to those who understand them.
#[derive(Debug)]
enum Body<'a> {
    Copied(&'a [u8]),
    Shared(Message),
}

impl Broker {
    /// Hands a message to every session with a matching subscription, once, at the highest QoS that its matching
    /// subscriptions allow [MQTT-3.3.5-1], and to one member of each group. It goes on in later turns to sessions for which
    /// this one has no time, be it only to list them (see `fan_out`). To be called for what has not to wait (see `put_off`).
    pub(super) fn route(&mut self, routing: &mut Routing<'_>) {
        let steps = self.options.steps_per_turn;
        let matches = self.subscriptions.matches_within(routing.topic, steps.saturating_mul(LISTED_PER_STEP));
        let count = matches.len();
        self.outputs.fan_outs += u64::from(count >= FAN_OUT_MIN);
        let mut next = count.min(steps);
        if count <= COPIES_AT_ONCE && matches.grants_len() <= GRANTS_AT_ONCE {
            self.copy_to(routing, &matches, 0..next);
        } else {
            next = self.copy_many(routing, &matches, 0..next);
        }
        if next < count || !matches.is_complete() {
            self.begin_fan_out(routing, matches, next);
        } else {
            self.subscriptions.put_back(matches);
        }
        if !self.shared.is_empty() {
            self.route_to_groups(routing);
        }
    }

    /// Hands a message to so many of those who get it as one turn has time for, or to all if it may not take several. Where it
    /// ends.
    #[inline(never)]
    pub(super) fn copy_many(
        &mut self,
        routing: &mut Routing<'_>,
        matches: &Matches,
        places: Range<usize>,
    ) -> usize {
        let may_end = routing.is_continued || self.fan_out.is_none();
        let work_max = self.work().saturating_add(self.options.steps_per_turn as u64);
        let at_once = if matches.grants_len() <= GRANTS_AT_ONCE { COPIES_AT_ONCE } else { 1 };
        let Range { start: mut next, end } = places;
        while next < end && !(may_end && self.work() >= work_max) {
            if at_once == 1 && may_end && !self.sum_up_some(routing, matches, next, work_max) {
                break;
            }
            let until = end.min(next + at_once);
            self.copy_to(routing, matches, next..until);
            next = until;
        }
        next
    }

    /// Hands a message that has expired to none of those who were to get it [MQTT5-3.3.2-5].
    pub(super) fn pass_expired(
        &mut self,
        routing: &mut Routing<'_>,
        matches: &Matches,
        places: Range<usize>,
    ) {
        for subscriber in matches.some(places) {
            if self.sessions.is_ended(subscriber.id) {
                self.outputs.pass_ended(routing);
            } else {
                routing.is_matched = true;
                self.outputs.metrics.drop_message(DropReason::Expired);
            }
        }
    }

    /// Hands a message to some of those who get it.
    // Into both of its callers, the first of which runs for every message.
    #[inline(always)]
    fn copy_to(&mut self, routing: &mut Routing<'_>, matches: &Matches, range: Range<usize>) {
        routing.copied_payload_max = self.options.copied_payload_max(matches.len());
        routing.broker_is_full = self.is_full();
        self.outputs.copies += range.len() as u64;
        self.outputs.is_fan_out = matches.len() >= FAN_OUT_MIN;
        for subscriber in matches.some(range) {
            if self.sessions.has_ended() && self.sessions.is_ended(subscriber.id) {
                self.outputs.pass_ended(routing);
                continue;
            }
            routing.is_matched = true;
            if subscriber.is_detailed() {
                self.deliver_detailed(routing, matches, subscriber);
            } else {
                let Subscriber { id, qos, retain_as_published, .. } = subscriber;
                self.deliver_copy(id, routing, qos, retain_as_published);
            }
        }
        self.outputs.is_fan_out = false;
    }

    /// Hands one copy to one session.
    // Into both of its callers, the first of which is the loop over all receivers.
    #[inline(always)]
    fn deliver_copy(
        &mut self,
        subscriber: SubscriberId,
        routing: &mut Routing<'_>,
        granted: QoS,
        retain_as_published: bool,
    ) {
        let retain = routing.retain && retain_as_published; // [MQTT-3.3.1-9] [MQTT5-3.3.1-12] [MQTT5-3.3.1-13]
        if !self.sessions.subscriber_mut(subscriber).streams.is_empty() {
            self.precede(subscriber, routing);
        }
        // The lower of both [MQTT-3.8.4-6].
        match granted.min(routing.qos) {
            QoS::AtMostOnce => self.deliver_at_most_once(subscriber, routing, retain),
            qos => {
                let via = Via::of(&self.subscription_ids, None, &self.messages);
                let message = routing.message(&self.messages).clone();
                let delivery = Delivery { message, qos, retain, via, record: Lsn::NONE };
                let session = self.sessions.subscriber_mut(subscriber).id;
                self.deliver(session, delivery);
            }
        }
    }

    /// The same for a session whose matching subscriptions have to be looked at one by one.
    #[inline(never)]
    fn deliver_detailed(&mut self, routing: &mut Routing<'_>, matches: &Matches, subscriber: Subscriber) {
        let sum = self.sum_up(routing, matches, subscriber);
        if let Some((qos, retain_as_published)) = sum.granted {
            self.deliver_copy(subscriber.id, routing, qos, retain_as_published);
            self.subscription_ids.clear();
        }
    }

    /// What the matching subscriptions of one receiver come to. Their identifiers go into `subscription_ids`.
    fn sum_up(&mut self, routing: &mut Routing<'_>, matches: &Matches, subscriber: Subscriber) -> Sum {
        if let Some(summing) = routing.summing.take() {
            debug_assert!(summing.place.is_none(), "its copy is made when all have been looked at");
            self.subscription_ids = summing.subscription_ids;
            return summing.sum;
        }
        let is_own = routing.publisher == Some(subscriber.id);
        let (mut sum, mut looked_at) = (Sum::default(), 0);
        for grant in matches.grants(subscriber).inspect(|_| looked_at += 1) {
            sum.add(grant, is_own, &mut self.subscription_ids);
        }
        self.outputs.work += (looked_at / LISTED_PER_STEP) as u64;
        sum
    }

    /// Sums up the matching subscriptions of the receiver at a place, if they are very many, until the turn has done
    /// `work_max`. False if some are left for later turns.
    fn sum_up_some(
        &mut self,
        routing: &mut Routing<'_>,
        matches: &Matches,
        place: usize,
        work_max: u64,
    ) -> bool {
        let Some(subscriber) = matches.some(place..place + 1).next() else { return true };
        // Whoever it was for may have ended.
        let begun = routing.summing.take().filter(|begun| begun.subscriber == subscriber.id);
        if !subscriber.is_detailed() || self.sessions.is_ended(subscriber.id) {
            return true;
        }
        let mut summing = match begun {
            Some(begun) => begun,
            None => {
                let mut grants = matches.grants(subscriber);
                let place = grants.place();
                if grants.nth(GRANTS_AT_ONCE).is_none() {
                    return true;
                }
                let (sum, subscription_ids) = Default::default();
                Box::new(Summing { subscriber: subscriber.id, sum, subscription_ids, place })
            }
        };
        let is_own = routing.publisher == Some(subscriber.id);
        let steps = work_max.saturating_sub(self.work()).max(1);
        let looks = usize::try_from(steps).unwrap_or(usize::MAX).saturating_mul(LISTED_PER_STEP);
        let Summing { sum, subscription_ids, place, .. } = &mut *summing;
        if let Some(from) = *place {
            let (mut grants, mut looked_at) = (matches.grants_from(subscriber, from), 0);
            for grant in grants.by_ref().take(looks) {
                sum.add(grant, is_own, subscription_ids);
                looked_at += 1;
            }
            *place = grants.place();
            self.outputs.work += (looked_at / LISTED_PER_STEP) as u64;
        }
        let is_done = summing.place.is_none();
        routing.summing = Some(summing);
        is_done
    }

    /// Sends, or drops and counts [MQTT-4.3.1-1].
    // As above.
    #[inline(always)]
    pub(super) fn deliver_at_most_once(
        &mut self,
        subscriber: SubscriberId,
        routing: &mut Routing<'_>,
        retain: bool,
    ) {
        let Self { sessions, links, outputs, options, messages, subscription_ids, now, .. } = self;
        let session = sessions.subscriber_mut(subscriber);
        let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else {
            return outputs.metrics.drop_message(DropReason::AbsentAtQoS0);
        };
        let pending = link.outbox.pending();
        if pending > options.outbox_soft_mark() {
            outputs.metrics.drop_message(DropReason::OutboxFull);
            if !link.outbox_full_logged {
                link.outbox_full_logged = true;
                let value = u64::from(options.outbox_bytes_max);
                outputs.limit_reached(Limit::Outbox, Some(&session.client_id), value);
            }
        } else if routing.broker_is_full && pending > 0 {
            outputs.metrics.drop_message(DropReason::BrokerFull);
        } else {
            let head = routing.head(retain);
            let has_properties = link.protocol.has_properties();
            let size = routing.payload.len() + if has_properties { routing.properties.len() } else { 0 };
            let body = if size <= routing.copied_payload_max {
                Body::Copied(routing.payload)
            } else {
                Body::Shared(routing.message(messages).clone())
            };
            if has_properties {
                let annotations = Annotations {
                    forwarded: routing.properties,
                    expires_at: routing.expires_at,
                    subscription_ids,
                    promise: Promise::default(),
                };
                outputs.write_annotated(link, head, &annotations, body, *now);
            } else {
                outputs.write_plain(link, &head, body);
            }
        }
    }

    /// Sends a message of QoS 1 or 2 now, or queues it, or drops and counts it.
    pub(super) fn deliver(&mut self, id: SessionId, delivery: Delivery) {
        let Self { sessions, links, outputs, options, now, .. } = self;
        let session = sessions.find_mut(id).expect("subscriptions go with their session");
        match session.connection.and_then(|id| links.find_mut(id)) {
            Some(link) if session.outgoing.queue.is_empty() && has_room(session, link, options) => {
                outputs.send(session, link, delivery, *now);
            }
            link => {
                if let Some(link) = link {
                    // What fills the outbox may be QoS 0, which no acknowledgement follows.
                    link.wants_refill |= link.outbox.pending() > options.outbox_soft_mark();
                }
                let stored_as = session.stored_as();
                let Session { client_id, outgoing, .. } = session;
                let owner = QueueOwner { name: client_id, stored_as };
                outputs.enqueue(&mut outgoing.queue, owner, delivery, options, *now);
            }
        }
    }

    /// A packet of a client has made room, or asks for messages: sends what waits for it. Many may come at once, each for as
    /// much as one call has time for, so it counts as work of the turn.
    // Inlined it makes what handles packets too large to be inlined itself: 36 instructions more for each packet.
    #[inline(never)]
    pub(super) fn refill_for_packet(&mut self, id: SessionId) {
        let before = self.outputs.steps_left;
        self.refill(id);
        self.outputs.work += (before - self.outputs.steps_left) as u64;
    }

    /// Sends what waits for a client, as far as its window and its outbox have room: first what has to be repeated,
    /// then the queue [MQTT-4.6.0-1], then those of its groups, then retained messages for new subscriptions.
    fn refill(&mut self, id: SessionId) {
        self.resend(id);
        self.drain_queue(id);
        self.drain_groups(id);
        self.continue_streams(id);
    }

    /// Goes on with the sessions that have been put off, as far as one turn has time.
    pub(super) fn continue_refills(&mut self) {
        self.outputs.steps_left = self.options.steps_per_turn;
        // Only those that wait already: one that puts itself off again has its next turn later.
        for _ in 0..self.refills.len() {
            let steps_left = self.outputs.steps_left;
            if steps_left == 0 {
                break;
            }
            let Some(id) = self.refills.pop_front() else { break };
            if let Some(session) = self.sessions.find_mut(id) {
                session.refill_scheduled = false;
                match std::mem::take(&mut session.asked_in_vain) {
                    0 => self.refill(id),
                    asked_in_vain => {
                        // First: groups may put off the rest of their round again.
                        self.continue_streams(id);
                        self.ask_groups(id, asked_in_vain);
                    }
                }
            }
            // One that has nothing to send takes its time as well.
            self.outputs.steps_left = self.outputs.steps_left.min(steps_left - 1);
        }
    }

    fn drain_queue(&mut self, id: SessionId) {
        let Self { sessions, links, outputs, options, now, .. } = self;
        let Some(session) = sessions.find_mut(id) else { return };
        let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
        let mut has_gone_on = false;
        while !session.outgoing.queue.is_empty() {
            if !has_room(session, link, options) {
                link.wants_refill = true;
                return;
            }
            if has_gone_on && outputs.is_enough(session) {
                return self.schedule_refill(id);
            }
            if let Some(delivery) = outputs.dequeue(&mut session.outgoing.queue, *now) {
                outputs.send(session, link, delivery, *now);
            }
            has_gone_on = true;
        }
    }

    /// Repeats what was sent on an earlier connection and not answered: same identifiers, same order, DUP set
    /// [MQTT-4.4.0-1] [MQTT-3.3.1-1], whether it has expired meanwhile or not [MQTT5-4.3.3-7].
    fn resend(&mut self, id: SessionId) {
        let Self { sessions, links, outputs, options, now, .. } = self;
        let Some(session) = sessions.find_mut(id) else { return };
        let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
        let mut has_gone_on = false;
        while (session.outgoing.sent_here as usize) < session.outgoing.sent.len() {
            if session.outgoing.under_way() >= usize::from(link.window) {
                return; // The next acknowledgement goes on here.
            }
            if link.outbox.pending() > options.outbox_soft_mark() {
                link.wants_refill = true;
                return;
            }
            if has_gone_on && outputs.is_enough(session) {
                return self.schedule_refill(id);
            }
            has_gone_on = true;
            outputs.take_step();
            let outgoing = &mut session.outgoing;
            // Only now: it is looked for.
            let Some((place, sent)) = outgoing.next_to_repeat() else { return };
            if outputs.write_delivery(link, &sent.delivery, Some(sent.packet_id), true, *now) {
                outgoing.sent.pass(place, &mut outgoing.sent_here);
                continue;
            }
            // Too large for the client as it is now, so it counts as completed [MQTT5-3.1.2-25]. At QoS 2 the client may
            // have it from an earlier connection, so it is told that its identifier is done with.
            let Some(sent) = outgoing.sent.remove(place, &mut outgoing.sent_here) else { return };
            if sent.delivery.qos == QoS::ExactlyOnce {
                let release = outgoing.release(sent.packet_id, session.name, outputs);
                outputs.hold_back(link, outputs.journal.promise_of_record(release));
                outputs.write_pubrel(link, sent.packet_id, ReasonCode::Success);
            } else {
                outgoing.free_packet_id(sent.packet_id);
                outputs.metrics.in_flight_messages -= 1;
            }
            outputs.forget(&sent.delivery);
        }
    }

    /// Repeats the PUBRELs that were not answered, in their old order.
    pub(super) fn resend_releases(&mut self, connection: ConnectionId, id: SessionId) {
        let Self { sessions, links, outputs, .. } = self;
        let (Some(session), Some(link)) = (sessions.find(id), links.find_mut(connection)) else { return };
        let releases = &session.outgoing.released;
        for released in releases.iter() {
            outputs.write_pubrel(link, released.packet_id, ReasonCode::Success);
        }
        outputs.work += releases.len().div_ceil(RELEASES_PER_COPY) as u64;
    }
}

/// Whether one more message of QoS 1 or 2 may be sent now.
pub(super) fn has_room(session: &Session, link: &Link, options: &Options) -> bool {
    let outgoing = &session.outgoing;
    outgoing.in_flight() < usize::from(link.window)
        && outgoing.sent_here as usize == outgoing.sent.len()
        && link.outbox.pending() <= options.outbox_soft_mark()
}

/// Whose queue it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueOwner<'a> {
    /// For the log.
    pub(super) name: &'a str,
    /// For the store, if what waits in it is to outlive the process.
    pub(super) stored_as: Option<Owner<'a>>,
}

impl Outputs {
    /// A receiver has ended. When the message was taken it had not, so it is counted like those for whom a message waited; or its
    /// subscriptions were still being removed then, of which nothing is known any more. To a message that has just
    /// been taken it is no receiver.
    #[cold]
    #[inline(never)]
    pub(super) fn pass_ended(&mut self, routing: &Routing<'_>) {
        if routing.is_continued {
            self.metrics.drop_message(DropReason::SessionEnded);
        }
    }

    /// Sends a message for the first time, to a client that has room for it.
    pub(super) fn send(
        &mut self,
        session: &mut Session,
        link: &mut Link,
        mut delivery: Delivery,
        now: Instant,
    ) {
        let packet_id = session.outgoing.allot_packet_id();
        if let Some(owner) = session.stored_as() {
            let record = self.record(owner, &delivery, Some(packet_id));
            self.forget(&delivery);
            delivery.record = record;
        } else if delivery.qos == QoS::ExactlyOnce && delivery.record.is_some() {
            // Of a group: nobody else may get it if this session ends [MQTT5-4.8.2-5].
            self.forget(&delivery);
            delivery.record = Lsn::NONE;
        }
        if self.write_delivery(link, &delivery, Some(packet_id), false, now) {
            session.outgoing.sent.push_back(Sent { delivery, packet_id }, true);
            session.outgoing.sent_here += 1;
            self.metrics.in_flight_messages += 1;
        } else {
            session.outgoing.give_back_packet_id(packet_id);
            self.forget(&delivery);
        }
    }

    /// Puts a message into a queue, or drops it when that is full: the newest goes, so that what is in the queue stays a
    /// gapless beginning.
    pub(super) fn enqueue(
        &mut self,
        queue: &mut Queue,
        owner: QueueOwner<'_>,
        mut delivery: Delivery,
        options: &Options,
        now: Instant,
    ) {
        if delivery.message.is_expired(now) {
            return self.metrics.drop_message(DropReason::Expired);
        }
        let size = delivery.size();
        if queue.limit_for(size, options).is_some() {
            // What has expired makes room for what has not.
            let looks = (options.steps_per_turn / FULL_QUEUE_SHARE).min(self.steps_left).max(1);
            let (looked, expired) = queue.take_expired(looks, now);
            self.steps_left = self.steps_left.saturating_sub(looked);
            expired.iter().for_each(|delivery| self.forget(delivery));
            self.metrics.queued_messages -= expired.len() as u64;
            self.metrics.drop_messages(DropReason::Expired, expired.len() as u64);
        }
        let Some((reason, limit, value)) = queue.limit_for(size, options) else {
            if let Some(stored_as) = owner.stored_as {
                delivery.record = self.record(stored_as, &delivery, None);
            }
            queue.push(delivery);
            self.metrics.queued_messages += 1;
            return;
        };
        self.metrics.drop_message(reason);
        if queue.note_full() {
            self.limit_reached(limit, Some(owner.name), value);
        }
    }

    /// Takes the first message out of a queue; `None`, and counted, if it has expired [MQTT5-3.3.2-5].
    pub(super) fn dequeue(&mut self, queue: &mut Queue, now: Instant) -> Option<Delivery> {
        let delivery = queue.pop()?;
        self.metrics.queued_messages -= 1;
        self.take_step();
        if delivery.message.is_expired(now) {
            self.forget(&delivery);
            self.metrics.drop_message(DropReason::Expired);
            return None;
        }
        Some(delivery)
    }

    /// A message that waited is sent or dropped.
    fn take_step(&mut self) {
        self.steps_left = self.steps_left.saturating_sub(1);
    }

    /// Whether a session that has sent or dropped a message is to go on in a later turn: that is so as well if it does then
    /// already, so that many acknowledgements in one turn do not send as many each.
    pub(super) fn is_enough(&self, session: &Session) -> bool {
        self.steps_left == 0 || session.refill_scheduled
    }

    fn write_pubrel(&mut self, link: &mut Link, packet_id: PacketId, reason: ReasonCode) {
        self.write(link, PacketKind::Pubrel, Some(packet_id), |bytes| {
            encode::pubrel(bytes, packet_id, reason);
        });
    }

    /// Writes a PUBLISH whose payload is in a message. False if it is too large for the client.
    pub(super) fn write_delivery(
        &mut self,
        link: &mut Link,
        delivery: &Delivery,
        packet_id: Option<PacketId>,
        dup: bool,
        now: Instant,
    ) -> bool {
        let Delivery { message, qos, retain, record, .. } = delivery;
        // Or after a crash it would come again under another identifier, and as another message.
        let promise = if *qos == QoS::ExactlyOnce && record.is_some() {
            self.journal.promise_of_record(*record)
        } else {
            Promise::default()
        };
        let payload = message.payload();
        let head = PublishHead {
            dup,
            qos: *qos,
            retain: *retain,
            topic: message.topic_bytes(),
            packet_id,
            payload_len: payload.len(),
        };
        let has_properties = link.protocol.has_properties();
        let [first, second] = message.tail(has_properties);
        let body = if first.len() + second.len() < SHARED_PAYLOAD_MIN {
            Body::Copied(payload)
        } else {
            Body::Shared(message.clone())
        };
        if !has_properties {
            self.hold_back(link, promise);
            self.write_plain(link, &head, body);
            return true;
        }
        let annotations = Annotations {
            forwarded: message.properties(),
            expires_at: message.expires_at(),
            subscription_ids: delivery.subscription_ids(),
            promise,
        };
        self.write_annotated(link, head, &annotations, body, now)
    }

    /// Writes a PUBLISH with properties. False, and dropped and counted, if it is too large for the client
    /// [MQTT5-3.1.2-24].
    #[inline(never)]
    fn write_annotated(
        &mut self,
        link: &mut Link,
        mut head: PublishHead<'_>,
        annotations: &Annotations<'_>,
        body: Body<'_>,
        now: Instant,
    ) -> bool {
        let Annotations { forwarded, expires_at, subscription_ids, promise } = *annotations;
        let mut properties = PublishHeadProperties {
            // Rounded up, so that it is 0 only when the time is over [MQTT5-3.3.2-6].
            message_expiry_secs: expires_at.map(|expires_at| expires_at.since(now).0.div_ceil(1_000) as u32),
            topic_alias: None,
            subscription_ids,
            forwarded,
        };
        let size_max = link.packet_size_max as usize;
        if let Some(extras) = &mut link.extras {
            match extras.sent_aliases.choose(head.topic) {
                Choice::Known(alias) => {
                    head.topic = &[];
                    properties.topic_alias = Some(alias);
                }
                Choice::New(alias) => {
                    properties.topic_alias = Some(alias);
                    if head.packet_size(&properties) > size_max {
                        properties.topic_alias = None;
                    } else {
                        // It is as good as sent: a mapping that the client never saw would be worse [B-112].
                        extras.sent_aliases.set(alias, head.topic);
                    }
                }
                Choice::None => {}
            }
        }
        if head.packet_size(&properties) > size_max {
            self.metrics.drop_message(DropReason::TooLargeForClient);
            return false;
        }
        self.hold_back(link, promise);
        let is_copied = matches!(body, Body::Copied(_));
        self.write_publish(link, &head, body, true, |bytes| {
            encode::publish_head_with_properties(bytes, &head, &properties);
            if is_copied {
                bytes.extend_from_slice(forwarded.as_bytes());
            }
        });
        true
    }

    /// Writes a PUBLISH to a client that knows no properties.
    fn write_plain(&mut self, link: &mut Link, head: &PublishHead<'_>, body: Body<'_>) {
        self.write_publish(link, head, body, false, |bytes| encode::publish_head(bytes, head));
    }

    /// Writes a PUBLISH: `write_head` what stands before its body, and then that.
    // Into both of its callers, one of which runs for every delivery before 5.0.
    #[inline(always)]
    fn write_publish(
        &mut self,
        link: &mut Link,
        head: &PublishHead<'_>,
        body: Body<'_>,
        with_properties: bool,
        write_head: impl FnOnce(&mut Vec<u8>),
    ) {
        self.metrics.publish_sent += 1;
        self.write(link, PacketKind::Publish, head.packet_id, |bytes| {
            write_head(bytes);
            if let Body::Copied(payload) = &body {
                bytes.extend_from_slice(payload);
            }
        });
        if let Body::Shared(message) = body {
            link.outbox.append_shared(message, with_properties);
        }
        if self.trace_packets
            && let Some(Event::Packet { publish, .. }) = self.events.back_mut()
        {
            *publish = Some(PublishTrace {
                topic: String::from_utf8_lossy(head.topic).into(),
                payload_length: head.payload_len,
                qos: head.qos,
                dup: head.dup,
                retain: head.retain,
            });
        }
    }
}
