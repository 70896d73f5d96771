//! Retained messages: keeping them, and streaming them to new subscriptions.
//!
//! A subscription may match a hundred thousand retained messages. They are not queued: the session keeps a
//! [`RetainedStream`], a position in the tree, and takes from it what its window and outbox have room for. The value
//! is read when it is sent, so a stream never sends what was replaced meanwhile. The queue goes before the streams.
//!
//! A retained message may expire. An expired one is never sent, and as long as there are messages that can expire, a
//! slow walk through the tree removes those that have.
//!
//! A live message may come while a stream has not reached its topic yet. Then the retained value goes first, out of
//! its turn, and the stream passes over it later: a subscriber never sees the older value after the newer one. Only where its own
//! filters match one topic in more than a hundred ways, and as many streams have yet to come to it, do the last of them send the
//! value that is retained then, as they would if there had been no live message.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Bound;
use std::rc::Rc;

use crate::clock::Duration;
use crate::codec::{Properties, QoS};
use crate::journal::Lsn;
use crate::metrics::DropReason;
use crate::topics::name::filter_matches;
use crate::topics::retained_tree::{Progress, RetainedCursor, Visit};
use crate::topics::{Grant, RetainedTree, SubscriberId, TopicFilter, TopicName};

use super::deadlines::Deadline;
use super::deliver::{Routing, has_room};
use super::delivery::{Delivery, Via};
use super::event::Limit;
use super::fan_out::{FanOut, FanOutNumber};
use super::message::RetainedMessage;
use super::receive::is_reserved;
use super::remains::Remains;
use super::session::SessionId;
use super::{Broker, Options};

/// Between two steps of the walk that removes what has expired.
const SWEEP_INTERVAL: Duration = Duration(1_000);

/// Entries that one step of it looks at.
const STEPS_PER_SWEEP: usize = 2_000;

/// Entries of the tree that are looked at before what was found is sent.
const PICKED_STEPS: usize = 256;

/// What it takes to go on with a stream, beside that.
const STREAM_STEPS: usize = 8;

/// So few streams of a session are all looked at for those that await a topic. Of more, those are whose filters are found, or the first
/// ones: fewer for longer topics.
const FEW_STREAMS: usize = 16;
const FIRST_STREAMS: usize = 128;
const LONG_TOPIC_BYTES: usize = 256;

/// Entries of the tree that are looked at before a stream is begun.
const STEPS_TO_DECIDE: usize = 16;

/// All retained messages.
#[derive(Debug, Default)]
pub(super) struct RetainedMessages {
    tree: RetainedTree<RetainedMessage>,
    bytes: u64,
    full_logged: bool,
    /// Messages that can expire.
    expiring: usize,
    /// How far the walk for expired ones has come; `None` while there is none.
    sweep: Option<RetainedCursor>,
}

impl RetainedMessages {
    pub(super) fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether a topic has one.
    pub(super) fn is_kept(&self, topic: TopicName<'_>) -> bool {
        self.tree.find(topic.as_str()).is_some()
    }

    /// Sum of the sizes of the messages.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes all messages that come back; there are few others as yet. An error is one whose topic has one already.
    pub(super) fn restore(&mut self, messages: Vec<RetainedMessage>) -> Result<(), RetainedMessage> {
        messages.iter().for_each(|retained| self.add(retained));
        self.tree.fill(messages)
    }

    /// Keeps a message in place of the one its topic had, which is returned.
    fn insert(&mut self, retained: RetainedMessage) -> Option<RetainedMessage> {
        self.add(&retained);
        let replaced = self.tree.insert(retained);
        replaced.inspect(|replaced| self.subtract(replaced))
    }

    fn remove(&mut self, topic: &str) -> Option<RetainedMessage> {
        let removed = self.tree.remove(topic);
        removed.inspect(|removed| self.subtract(removed))
    }

    fn add(&mut self, added: &RetainedMessage) {
        self.bytes += added.message.size();
        self.expiring += usize::from(added.message.expires_at().is_some());
    }

    fn subtract(&mut self, removed: &RetainedMessage) {
        self.bytes -= removed.message.size();
        self.expiring -= usize::from(removed.message.expires_at().is_some());
    }

    /// Every message, in no particular order.
    pub(super) fn for_each(&self, mut each: impl FnMut(&RetainedMessage)) {
        self.tree.visit(&mut RetainedCursor::of_all(), &mut { usize::MAX }, |kept| {
            each(kept);
            Visit::Next
        });
    }
}

/// Retained messages still to be sent for one subscription.
#[derive(Debug)]
pub(super) struct RetainedStream {
    cursor: RetainedCursor,
    filter: Rc<str>,
    grant: Grant,
    /// The record that the subscription waits for them.
    record: Lsn,
}

impl RetainedStream {
    /// One that begins at the first topic of a filter.
    pub(super) fn new(filter: TopicFilter<'_>, grant: Grant, record: Lsn) -> Self {
        Self { cursor: RetainedCursor::new(filter), filter: filter.as_str().into(), grant, record }
    }
}

/// The streams of one session, which may be as many as it has subscriptions. Behind a pointer: most have none.
///
/// Invariants: each has a number and a filter of its own, and there is a subscription with that filter.
#[derive(Debug, Default)]
pub(super) struct RetainedStreams(Option<Box<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    /// By number: the first one is under way, the others follow in the order in which they were asked for.
    in_order: BTreeMap<u64, RetainedStream>,
    numbers: BTreeMap<Rc<str>, u64>,
    /// The number of the newest one.
    newest: u64,
    /// What that was when the first of them was begun after a message to many was taken, and which message: those later send
    /// its retained value themselves.
    newest_before: (u64, FanOutNumber),
    preceded: Preceded,
}

impl Streams {
    /// The numbers of those whose filters match a topic. `None` if so many looks do not tell.
    fn find(&self, topic: TopicName<'_>, mut looks: usize) -> Option<Vec<u64>> {
        let mut found = Vec::new();
        let mut find = |filter: &str| found.extend(self.numbers.get(filter));
        // Filters begin with these, and have more levels, of which the next one is to match what begins here.
        let mut beginnings = vec![(String::new(), Some(topic.as_str()))];
        while let Some((beginning, rest)) = beginnings.pop() {
            looks = looks.checked_sub(1)?;
            let wildcards = !(beginning.is_empty() && topic.is_dollar()); // [MQTT-4.7.2-1]
            if wildcards {
                find(&format!("{beginning}#"));
            }
            let Some(rest) = rest else { continue };
            let (level, rest) =
                rest.split_once('/').map_or((rest, None), |(level, rest)| (level, Some(rest)));
            for level in [level, "+"].into_iter().take(1 + usize::from(wildcards)) {
                let longer = format!("{beginning}{level}");
                if rest.is_none() {
                    find(&longer);
                }
                let longer = longer + "/"; // `a/#` matches `a` too.
                let next = self.numbers.range::<str, _>((Bound::Included(&*longer), Bound::Unbounded)).next();
                if next.is_some_and(|(filter, _)| filter.starts_with(&longer)) {
                    beginnings.push((longer, rest));
                }
            }
        }
        Some(found)
    }
}

/// Topics whose value went out before its turn, each with the newest stream of that time: streams up to it pass over the
/// topic.
#[derive(Debug, Default)]
struct Preceded(BTreeMap<Box<str>, u64>);

impl Preceded {
    fn has(&self, topic: &str, stream: u64) -> bool {
        self.0.get(topic).is_some_and(|newest| stream <= *newest)
    }
}

/// What streams grant that have yet to come to a topic, in their order; and up to which stream that is known.
#[derive(Debug, Default)]
struct Awaiting {
    grants: Vec<Grant>,
    newest: u64,
}

impl RetainedStreams {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Streams, and topics whose value went out before its turn.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |streams| streams.in_order.len() + streams.preceded.0.len())
    }

    /// Adds the last one, begun after this message to many, which may be on its way still; its filter has none yet.
    pub(super) fn push(&mut self, stream: RetainedStream, fan_out: FanOutNumber) {
        let streams = self.0.get_or_insert_default();
        if streams.newest_before.1 != fan_out {
            streams.newest_before = (streams.newest, fan_out);
        }
        streams.newest += 1;
        streams.numbers.insert(stream.filter.clone(), streams.newest);
        streams.in_order.insert(streams.newest, stream);
    }

    fn remove(&mut self, filter: &str) {
        if let Some(streams) = &mut self.0
            && let Some(number) = streams.numbers.remove(filter)
        {
            streams.in_order.remove(&number);
        }
    }

    /// Takes out the first one.
    fn pop(&mut self) -> Option<RetainedStream> {
        let streams = self.0.as_mut()?;
        let (_, stream) = streams.in_order.pop_first()?;
        streams.numbers.remove(&stream.filter);
        Some(stream)
    }

    /// What is left behind the last one: topics that none has to pass over any more, of which there may be very many.
    fn take_rest(&mut self) -> Self {
        Self(self.0.take_if(|streams| streams.in_order.is_empty()))
    }

    /// Lets one of them go, or one of those topics. False if there is nothing left.
    pub(super) fn forget_one(&mut self) -> bool {
        let is_one = self.pop().is_some()
            || self.0.as_mut().is_some_and(|streams| streams.preceded.0.pop_first().is_some());
        if !is_one {
            self.0 = None;
        }
        is_one
    }

    fn find_mut(&mut self, filter: &str) -> Option<&mut RetainedStream> {
        let streams = self.0.as_mut()?;
        streams.in_order.get_mut(streams.numbers.get(filter)?)
    }

    /// Those that have yet to come to a topic. If very many of its own filters mix the texts of the topic with wildcards, only the
    /// first streams are looked at, and the others send its value in their turn, whatever live message has overtaken them. How
    /// many were looked at, or take as long.
    fn awaiting(&self, topic: TopicName<'_>) -> (Awaiting, usize) {
        let Some(streams) = &self.0 else { return Default::default() };
        // What is long takes longer to compare.
        let looks_max = (FIRST_STREAMS / (1 + topic.as_str().len() / LONG_TOPIC_BYTES)).max(1);
        let mut newest = streams.newest;
        let found = if streams.in_order.len() > FEW_STREAMS { streams.find(topic, looks_max) } else { None };
        let mut numbers = found.unwrap_or_else(|| {
            if let Some(next) = streams.in_order.keys().nth(looks_max) {
                newest = next - 1;
            }
            let is_match = |stream: &RetainedStream| filter_matches(stream.filter.as_bytes(), topic);
            let first = streams.in_order.iter().take(looks_max);
            first.filter_map(|(number, stream)| is_match(stream).then_some(*number)).collect()
        });
        numbers.sort_unstable();
        let topic = topic.as_str();
        numbers.retain(|number| !streams.preceded.has(topic, *number));
        let awaiting = numbers.iter().map(|number| &streams.in_order[number]);
        let grants =
            awaiting.filter(|stream| !stream.cursor.has_passed(topic)).map(|stream| stream.grant).collect();
        (Awaiting { grants, newest }, streams.in_order.len().min(looks_max))
    }

    /// The value of a topic goes out before its turn: none up to this one will send it.
    fn precede(&mut self, topic: &str, newest: u64) {
        if let Some(streams) = &mut self.0 {
            let preceded = streams.preceded.0.entry(topic.into()).or_default();
            *preceded = newest.max(*preceded);
        }
    }

    /// The newest one that was begun before this message to many.
    fn newest_before(&self, fan_out: FanOutNumber) -> u64 {
        self.0.as_ref().map_or(0, |streams| {
            let (newest_before, of) = streams.newest_before;
            if of == fan_out { newest_before } else { streams.newest }
        })
    }

    /// Asserts that all are found by their filters, each of which is subscribed to.
    pub(super) fn check_invariants(&self, is_subscribed: impl Fn(&str) -> bool) {
        let Some(streams) = &self.0 else { return };
        assert!(!streams.in_order.is_empty() && streams.numbers.len() == streams.in_order.len());
        for (number, stream) in &streams.in_order {
            assert_eq!(streams.numbers.get(&stream.filter), Some(number));
            assert!(is_subscribed(&stream.filter), "a stream belongs to a subscription");
        }
    }
}

impl Broker {
    /// Keeps the message for later subscribers [MQTT-3.3.1-5], or clears the topic if the payload is empty
    /// [MQTT-3.3.1-10].
    pub(super) fn retain(&mut self, routing: &mut Routing<'_>) {
        // The acknowledgement says that the topic has this value, and not only that the message has reached everybody.
        self.outputs.journal.promise_all();
        let is_over = routing.expires_at.is_some_and(|expires_at| expires_at <= self.now);
        if routing.payload.is_empty() || is_over {
            self.forget_retained(routing.topic.as_str());
            self.retained.full_logged = false;
        } else {
            let message = routing.message(&self.messages).clone();
            // What the broker says of itself is not worth keeping.
            let is_stored = self.outputs.journal.is_on() && !is_reserved(routing.topic.as_str());
            let record = if is_stored {
                self.outputs.journal.record_retained(&message, routing.qos)
            } else {
                Lsn::NONE
            };
            let replaced = self.retained.insert(RetainedMessage { message, qos: routing.qos, record });
            if let Some(replaced) = replaced {
                self.remove_retained_record(&replaced);
            }
            self.expect_expiry();
        }
    }

    fn forget_retained(&mut self, topic: &str) {
        if let Some(removed) = self.retained.remove(topic) {
            self.remove_retained_record(&removed);
        }
    }

    fn remove_retained_record(&mut self, removed: &RetainedMessage) {
        if removed.record.is_some() {
            self.outputs.journal.remove_retained(removed.record, &removed.message);
        }
    }

    /// Makes sure that retained messages that can expire are looked at.
    pub(super) fn expect_expiry(&mut self) {
        if self.retained.expiring > 0 && self.retained.sweep.is_none() {
            self.begin_sweep();
        }
    }

    fn begin_sweep(&mut self) {
        self.retained.sweep = Some(RetainedCursor::of_all());
        self.wheel.insert(self.now + SWEEP_INTERVAL, Deadline::Sweep);
    }

    /// Removes expired messages among the next ones of the tree.
    pub(super) fn sweep_retained(&mut self) {
        let now = self.now;
        let Some(mut cursor) = self.retained.sweep.take() else { return };
        let mut expired: Vec<Box<str>> = Vec::new();
        let progress = self.retained.tree.visit(&mut cursor, &mut { STEPS_PER_SWEEP }, |kept| {
            if kept.message.is_expired(now) {
                expired.push(kept.message.topic().into());
            }
            Visit::Next
        });
        self.outputs.metrics.drop_messages(DropReason::Expired, expired.len() as u64);
        expired.iter().for_each(|topic| self.forget_retained(topic));
        self.retained.full_logged &= expired.is_empty();
        if progress != Progress::Done {
            self.retained.sweep = Some(cursor);
            self.wheel.insert(now + SWEEP_INTERVAL, Deadline::Sweep);
        } else if self.retained.expiring > 0 {
            self.begin_sweep();
        }
    }

    /// Whether this message could be retained.
    pub(super) fn has_retained_room(
        &mut self,
        topic: &str,
        properties: Properties<'_>,
        payload: &[u8],
    ) -> bool {
        let Options { retained_messages_max, retained_bytes_max, .. } = self.options;
        let retained = &self.retained;
        let bytes = retained.bytes + (topic.len() + properties.as_bytes().len() + payload.len()) as u64;
        let limit = if payload.is_empty() {
            return true;
        } else if retained.len() >= retained_messages_max as usize && retained.tree.find(topic).is_none() {
            Some((Limit::RetainedMessages, u64::from(retained_messages_max)))
        } else if bytes > retained_bytes_max {
            Some((Limit::RetainedBytes, retained_bytes_max))
        } else {
            None
        };
        let Some((limit, value)) = limit else { return true };
        if !self.retained.full_logged {
            self.retained.full_logged = true;
            self.outputs.limit_reached(limit, None, value);
        }
        false
    }

    /// Begins to send the retained messages that match a subscription just made, or made again after `stop_stream`
    /// [MQTT-3.3.1-6] [MQTT-3.8.4-3]. `record` is that of the subscription.
    pub(super) fn start_stream(&mut self, id: SessionId, filter: &str, grant: Grant, record: Lsn) {
        let Ok(parsed) = TopicFilter::parse(filter, self.options.topic_levels_max) else { return };
        if self.has_retained_for(parsed)
            && let Some(session) = self.sessions.find_mut(id)
        {
            session.streams.push(RetainedStream::new(parsed, grant, record), self.fan_out_number);
        }
    }

    /// Whether there may be retained messages for a filter. For most a short look is enough to say no.
    pub(super) fn has_retained_for(&self, filter: TopicFilter<'_>) -> bool {
        let tree = &self.retained.tree;
        if !filter.has_wildcard() {
            return tree.find(filter.as_str()).is_some();
        }
        let mut cursor = RetainedCursor::new(filter);
        tree.visit(&mut cursor, &mut { STEPS_TO_DECIDE }, |_| Visit::Stop) != Progress::Done
    }

    /// A subscription was made anew without its retained messages: what is still to be sent for it is sent as it is now.
    pub(super) fn change_stream(&mut self, id: SessionId, filter: &str, grant: Grant, record: Lsn) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if let Some(stream) = session.streams.find_mut(filter) {
            stream.grant = grant;
            if record.is_some() {
                stream.record = record;
                self.outputs.journal.set_streams(record, session.name, filter, grant, true);
            }
        }
    }

    /// Forgets what was still to be sent for a subscription.
    pub(super) fn stop_stream(&mut self, id: SessionId, filter: &str) {
        if let Some(session) = self.sessions.find_mut(id) {
            session.streams.remove(filter);
            let rest = session.streams.take_rest();
            self.leave_streams_behind(rest);
        }
    }

    fn leave_streams_behind(&mut self, streams: RetainedStreams) {
        if !streams.is_empty() {
            self.leave_behind(Remains { streams, ..Remains::default() });
        }
    }

    /// Sends from the streams of a session as much as it has room for now, and as one call has time for: who goes on in a later
    /// turn does so then. The queue goes first: what is retained now may be newer than what waits there.
    pub(super) fn continue_streams(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if session.streams.is_empty()
            || session.refill_scheduled
            || session.connection.is_none()
            || !session.outgoing.queue.is_empty()
        {
            return;
        }
        if self.fan_out.as_deref().is_some_and(FanOut::is_retained) {
            // Or some would get the new value twice: from a stream, and as the copy that is still to be made.
            if !std::mem::replace(&mut session.are_streams_behind, true) {
                self.streams_behind.push_back(id);
            }
            return;
        }
        let name = session.name;
        let mut unfinished = std::mem::take(&mut session.streams);
        let mut steps = self.outputs.steps_left;
        while let Some(streams) = &mut unfinished.0
            && let Some(mut first) = streams.in_order.first_entry()
        {
            let number = *first.key();
            match self.continue_stream(id, number, first.get_mut(), &streams.preceded, &mut steps) {
                Progress::Done => {
                    let Some(RetainedStream { filter, grant, record, .. }) = unfinished.pop() else { break };
                    if record.is_some() {
                        self.outputs.journal.set_streams(record, name, &filter, grant, false);
                    }
                }
                Progress::Stopped => break,
                Progress::Paused => {
                    self.schedule_refill(id);
                    break;
                }
            }
        }
        self.outputs.steps_left = steps;
        let rest = unfinished.take_rest();
        let session = self.sessions.find_mut(id).expect("its streams are being sent");
        session.streams = unfinished;
        self.leave_streams_behind(rest);
    }

    /// Takes turns of picking what there is room for and sending it, until the stream is done or there is no room.
    fn continue_stream(
        &mut self,
        id: SessionId,
        number: u64,
        stream: &mut RetainedStream,
        preceded: &Preceded,
        steps: &mut usize,
    ) -> Progress {
        let mut picked = std::mem::take(&mut self.picked);
        let progress = loop {
            let Self { sessions, links, retained, messages, options, now, .. } = self;
            let session = sessions.find_mut(id).expect("its streams are being sent");
            let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else {
                break Progress::Stopped;
            };
            if *steps == 0 {
                break Progress::Paused;
            }
            let room = has_room(session, link, options);
            let mut bytes_left = options.outbox_soft_mark().saturating_sub(link.outbox.pending());
            let mut window = usize::from(link.window).saturating_sub(session.outgoing.in_flight());
            let outbox_full = link.outbox.pending() > options.outbox_soft_mark();
            *steps = steps.saturating_sub(STREAM_STEPS);
            let given = (*steps).clamp(1, PICKED_STEPS);
            let mut steps_now = given;
            let RetainedStream { cursor, grant, .. } = stream;
            let progress = retained.tree.visit(cursor, &mut steps_now, |kept| {
                if preceded.has(kept.message.topic(), number) || kept.message.is_expired(*now) {
                    return Visit::Next;
                }
                let qos = kept.qos.min(grant.qos);
                let fits = !outbox_full
                    && (bytes_left > 0 || picked.is_empty())
                    && (qos == QoS::AtMostOnce || (room && window > 0));
                if !fits {
                    return Visit::Stop;
                }
                window -= usize::from(qos > QoS::AtMostOnce);
                bytes_left = bytes_left.saturating_sub(kept.message.size() as usize);
                let via = Via::of(grant.subscription_id.map(NonZeroU32::get).as_slice(), None, messages);
                picked.push(Delivery {
                    message: kept.message.clone(),
                    qos,
                    retain: true,
                    via,
                    record: Lsn::NONE,
                });
                Visit::Next
            });
            *steps = steps.saturating_sub(given - steps_now);
            if matches!(progress, Progress::Stopped) && picked.is_empty() {
                // With the window full, the next acknowledgement goes on here.
                link.wants_refill |= outbox_full;
                break Progress::Stopped;
            }
            for delivery in picked.drain(..) {
                self.deliver_retained(id, delivery);
            }
            if matches!(progress, Progress::Done) {
                break Progress::Done;
            }
        };
        self.picked = picked;
        progress
    }

    /// Sends one retained message: there is room for it, or it comes before its turn and takes the way of the live
    /// message that follows it.
    fn deliver_retained(&mut self, id: SessionId, delivery: Delivery) {
        if delivery.qos > QoS::AtMostOnce {
            return self.deliver(id, delivery);
        }
        let Self { sessions, links, outputs, options, now, .. } = self;
        let session = sessions.find_mut(id).expect("its streams are being sent");
        match session.connection.and_then(|id| links.find_mut(id)) {
            Some(link) if link.outbox.pending() <= options.outbox_soft_mark() => {
                outputs.write_delivery(link, &delivery, None, false, *now);
            }
            Some(_) => outputs.metrics.drop_message(DropReason::OutboxFull),
            None => outputs.metrics.drop_message(DropReason::AbsentAtQoS0),
        }
    }

    /// A live message comes to a session with unfinished streams: what they would send on its topic goes first.
    pub(super) fn precede(&mut self, subscriber: SubscriberId, routing: &Routing<'_>) {
        let topic = routing.topic.as_str();
        let Some(kept) = self.retained.tree.find(topic) else { return };
        if kept.message.is_expired(self.now) {
            return;
        }
        let session = self.sessions.subscriber_mut(subscriber);
        let (Awaiting { grants, newest }, looks) = session.streams.awaiting(routing.topic);
        self.outputs.work += looks as u64;
        let Some(highest) = grants.iter().map(|grant| grant.qos).max() else { return };
        let subscription_ids: Vec<u32> =
            grants.iter().filter_map(|grant| grant.subscription_id).map(NonZeroU32::get).collect();
        let delivery = Delivery {
            message: kept.message.clone(),
            qos: kept.qos.min(highest),
            retain: true,
            via: Via::of(&subscription_ids, None, &self.messages),
            record: Lsn::NONE,
        };
        let outbox_full = session
            .connection
            .and_then(|id| self.links.find(id))
            .is_none_or(|link| link.outbox.pending() > self.options.outbox_soft_mark());
        if delivery.qos == QoS::AtMostOnce && outbox_full {
            // It keeps its turn: the live message goes nowhere now either, or into the queue, which is behind.
            return;
        }
        if routing.is_in(&kept.message) {
            // It was retained before its copies were made: streams begun since then have it to send.
            let newest = newest.min(session.streams.newest_before(self.fan_out_number));
            return session.streams.precede(topic, newest);
        }
        session.streams.precede(topic, newest);
        // A message that is retained itself replaces the older value, which need not be sent at all.
        if !routing.retain {
            let id = session.id;
            self.deliver_retained(id, delivery);
        }
    }
}
