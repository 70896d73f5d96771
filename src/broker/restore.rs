//! State that comes back: records of an earlier process become sessions, subscriptions and messages again.
//!
//! To the clients it is as if the network had dropped: whoever was connected is away since now, and its will is due as
//! after any other lost connection.
//!
//! Deliberately not here: where records come from, and what to do about a store whose records do not fit together.

use std::fmt;
use std::num::NonZeroU32;
use std::rc::Rc;

use hashbrown::HashMap;

use crate::clock::Instant;
use crate::codec::Properties;
use crate::codec::property::Place;
use crate::hash::{HashSeed, seeded};
use crate::journal::{
    DeliveryRecord, DueWillRecord, Key, Lsn, MessageRecord, Owner, Record, RecordError, RetainedRecord,
    SessionRecord, SubscriptionRecord,
};
use crate::topics::{Grant, SubscriptionFilter, TopicFilter, TopicName};

use super::Broker;
use super::close_reason::CloseReason;
use super::delivery::{Delivery, Origin, Via};
use super::fan_out::FanOutNumber;
use super::journal::Kind;
use super::message::{Content, Message, RetainedMessage};
use super::put_off::PutOff;
use super::retained::RetainedStream;
use super::session::{Released, Sent, Session, SessionId};
use super::will::Will;

/// Why records cannot become state again: whoever wrote them did not write what is stored now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// The bytes are not those of a record.
    Record(RecordError),
    /// A record refers to another one that is not there.
    Missing(Lsn),
    /// A topic, a filter or properties are not what MQTT allows.
    Content,
    /// What there can be once only is there a second time: a client id, a topic's retained message, or a packet identifier
    /// of a session.
    Twice(Lsn),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => error.fmt(f),
            Self::Missing(lsn) => write!(f, "record {} is missing", lsn.0),
            Self::Content => f.write_str("a topic, a filter or properties are not valid"),
            Self::Twice(lsn) => {
                write!(f, "record {} has a client id, a topic or a packet identifier that is taken", lsn.0)
            }
        }
    }
}

impl std::error::Error for RestoreError {}

impl From<RecordError> for RestoreError {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// A message as it is to be made.
pub(super) fn content_of<'a>(record: &MessageRecord<'a>) -> Content<'a> {
    Content {
        topic: record.topic,
        properties: Properties::checked_before(record.properties),
        payload: record.payload,
        expires_at: record.expires_at,
    }
}

fn check_content(record: &MessageRecord<'_>) -> Result<(), RestoreError> {
    TopicName::parse(record.topic, u32::MAX).map_err(|_| RestoreError::Content)?;
    Properties::check(record.properties, Place::Publish).map_err(|_| RestoreError::Content)?;
    Ok(())
}

/// What came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Sessions.
    pub sessions: u64,
    /// Their subscriptions.
    pub subscriptions: u64,
    /// Messages that wait or are under way, each once for every receiver.
    pub deliveries: u64,
    /// Retained messages.
    pub retained: u64,
    /// Records that were left of sessions and groups that had ended, and are removed now.
    pub orphans: u64,
}

/// What was left of a session or group that had ended: its own record goes first, and the others little by little.
#[derive(Debug)]
enum Orphan {
    Record(Kind, Lsn),
    /// A subscription of the session with this name.
    Subscription(Lsn, Box<str>),
}

/// A broker whose state is coming back.
#[derive(Debug)]
pub struct Restore<'a> {
    broker: &'a mut Broker,
    restored: Restored,
    sessions: HashMap<Lsn, SessionId, HashSeed>,
    /// In the order of their numbers, which is the order they come in.
    messages: Vec<(Lsn, Message)>,
    retained: Vec<RetainedMessage>,
    /// Since when those sessions are absent that were not connected.
    absent: Vec<(Instant, SessionId)>,
    connected: Vec<SessionId>,
    /// Subscriptions that retained messages are still to be sent for.
    streams: Vec<(SessionId, Box<str>, Grant)>,
    /// What nobody can have any more.
    orphans: Vec<Orphan>,
    last: Lsn,
}

impl Broker {
    /// Begins to bring back what earlier processes stored, the last of it under the number `last`, be it there still or not.
    /// To be called before anything else happens.
    pub fn restore(&mut self, last: Lsn) -> Restore<'_> {
        let seed = self.options.seed;
        Restore {
            broker: self,
            restored: Restored::default(),
            sessions: HashMap::with_hasher(seeded(seed)),
            messages: Vec::new(),
            retained: Vec::new(),
            absent: Vec::new(),
            connected: Vec::new(),
            streams: Vec::new(),
            orphans: Vec::new(),
            last,
        }
    }
}

impl Restore<'_> {
    /// Takes the next record, in the order of keys.
    ///
    /// # Errors
    ///
    /// If it is none, or refers to one that did not come before it. The broker is of no use then.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), RestoreError> {
        let key = Key::read(key)?;
        let lsn = key.lsn();
        if !lsn.can_name() {
            return Err(RecordError::Value.into());
        }
        self.last = self.last.max(lsn);
        match (key, Record::read(key, value)?) {
            (_, Record::Session(record)) => self.session(lsn, &record),
            (Key::Subscription(_, filter), Record::Subscription(record)) => {
                self.subscription(lsn, filter, record)
            }
            (_, Record::Message(record)) => {
                check_content(&record)?;
                if self.messages.last().is_some_and(|(last, _)| *last >= lsn) {
                    return Err(RecordError::Value.into());
                }
                self.messages.push((lsn, Message::new(&content_of(&record), &self.broker.messages)));
                Ok(())
            }
            (_, Record::Retained(RetainedRecord { message, qos })) => {
                let message = self.message(message)?;
                self.restored.retained += 1;
                self.retained.push(RetainedMessage { message, qos, record: lsn });
                Ok(())
            }
            (_, Record::Delivery(record)) => self.delivery(lsn, &record),
            (_, Record::Release(record)) => {
                match self.find_session(record.session) {
                    Some(session) => {
                        let released = Released { packet_id: record.packet_id, record: lsn };
                        session.outgoing.released.push_back(released, false);
                        self.broker.outputs.metrics.in_flight_messages += 1;
                    }
                    None => self.orphans.push(Orphan::Record(Kind::Release, lsn)),
                }
                Ok(())
            }
            (_, Record::Receipt(record)) => {
                match self.find_session(record.session) {
                    Some(session) => session.receipts.restore(record.packet_id, lsn),
                    None => self.orphans.push(Orphan::Record(Kind::Receipt, lsn)),
                }
                Ok(())
            }
            (_, Record::DueWill(DueWillRecord { session, will })) => {
                check_content(&will.message)?;
                let will = Box::new(Will::from_record(&will, &self.broker.messages));
                let publisher = self.sessions.get(&session).copied();
                self.broker.put_off.push(PutOff::Will { will, publisher, record: lsn });
                Ok(())
            }
            (_, Record::Subscription(_)) => Err(RestoreError::Content),
        }
    }

    fn session(&mut self, name: Lsn, record: &SessionRecord<'_>) -> Result<(), RestoreError> {
        let SessionRecord { client_id, user, ends_with_connection, expiry, absent_since, will } = *record;
        let is_absent = absent_since.is_some();
        // With its connection it would have ended, and only a delay keeps a will beyond that.
        if (ends_with_connection && is_absent) || will.is_some_and(|will| will.due_at.is_some() != is_absent)
        {
            return Err(RestoreError::Content);
        }
        let Broker { sessions, messages, now, .. } = &mut *self.broker;
        if sessions.find_by_client_id(client_id).is_some() {
            return Err(RestoreError::Twice(name));
        }
        let will = match will {
            Some(will) => {
                check_content(&will.message)?;
                Some(Box::new(Will::from_record(&will, messages)))
            }
            None => None,
        };
        let id = sessions.insert(client_id, *now);
        let session = sessions.find_mut(id).expect("just made");
        session.user = user.map(Into::into);
        session.ends_with_connection = ends_with_connection;
        session.expiry = expiry;
        session.will = will;
        (session.name, session.latest_record) = (name, name);
        session.outgoing.restore_packet_ids();
        match absent_since {
            Some(since) => self.absent.push((since, id)),
            None => self.connected.push(id),
        }
        self.sessions.insert(name, id);
        self.restored.sessions += 1;
        Ok(())
    }

    fn subscription(
        &mut self,
        session: Lsn,
        text: &str,
        record: SubscriptionRecord,
    ) -> Result<(), RestoreError> {
        let filter = SubscriptionFilter::parse(text, u32::MAX).map_err(|_| RestoreError::Content)?;
        let Some(id) = self.sessions.get(&session).copied() else {
            self.orphans.push(Orphan::Subscription(session, text.into()));
            return Ok(());
        };
        let SubscriptionRecord { qos, no_local, retain_as_published, subscription_id, streams } = record;
        let subscription_id = NonZeroU32::new(subscription_id);
        let grant = Grant { qos, no_local, retain_as_published, subscription_id };
        if filter.share_name.is_some() {
            self.broker.join_group(id, text, filter, grant);
        } else {
            self.broker.subscriptions.subscribe(id.subscriber(), filter.filter, grant);
        }
        if streams {
            self.streams.push((id, text.into(), grant));
        }
        self.restored.subscriptions += 1;
        Ok(())
    }

    /// A message that one more record refers to.
    fn message(&mut self, lsn: Lsn) -> Result<Message, RestoreError> {
        let found = self.messages.binary_search_by_key(&lsn, |(record, _)| *record);
        let (_, message) = &self.messages[found.map_err(|_| RestoreError::Missing(lsn))?];
        let (_, holders) = message.record();
        message.set_record(lsn, holders + 1);
        Ok(message.clone())
    }

    fn find_session(&mut self, name: Lsn) -> Option<&mut Session> {
        let id = self.sessions.get(&name).copied()?;
        self.broker.sessions.find_mut(id)
    }

    fn delivery(&mut self, lsn: Lsn, record: &DeliveryRecord<'_>) -> Result<(), RestoreError> {
        let record = match (record.owner, record.origin) {
            // It was about to go back to its group when the process ended: others may get it.
            (Owner::Session(name), Some(origin)) if !self.sessions.contains_key(&name) => &DeliveryRecord {
                owner: Owner::Group(origin.group),
                qos: origin.qos,
                retain: origin.retain,
                subscription_ids: &[],
                origin: None,
                ..*record
            },
            _ => record,
        };
        let DeliveryRecord { owner, message, qos, retain, packet_id, subscription_ids, origin } = *record;
        let is_orphan = match owner {
            // Its last member that is stored has left, and nobody else has outlived the process.
            Owner::Group(text) => self.broker.shared.find(text).is_none(),
            Owner::Session(name) => !self.sessions.contains_key(&name),
        };
        if is_orphan {
            self.orphans.push(Orphan::Record(Kind::Delivery, lsn));
            return Ok(());
        }
        let message = self.message(message)?;
        let ids: Vec<u32> = subscription_ids
            .chunks_exact(4)
            .map(|bytes| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
            .collect();
        let Broker { shared, messages, outputs, sessions, .. } = &mut *self.broker;
        let origin = origin.and_then(|origin| {
            let group = shared.find(origin.group)?;
            Some(Origin { group, text: Rc::from(origin.group), qos: origin.qos, retain: origin.retain })
        });
        let via = Via::of(&ids, origin, messages);
        let delivery = Delivery { message, qos, retain, via, record: lsn };
        self.restored.deliveries += 1;
        match (owner, packet_id) {
            (Owner::Session(name), packet_id) => {
                let session = sessions.find_mut(self.sessions[&name]).expect("looked up before");
                match packet_id {
                    Some(packet_id) => {
                        session.outgoing.sent.push_back(Sent { delivery, packet_id }, false);
                        outputs.metrics.in_flight_messages += 1;
                    }
                    None => {
                        session.outgoing.queue.push(delivery);
                        outputs.metrics.queued_messages += 1;
                    }
                }
            }
            (Owner::Group(text), _) => {
                shared.restore_delivery(text, delivery);
                outputs.metrics.queued_messages += 1;
            }
        }
        Ok(())
    }

    /// All records have come: the broker can begin.
    ///
    /// # Errors
    ///
    /// If they do not fit together. The broker is of no use then.
    pub fn finish(self) -> Result<Restored, RestoreError> {
        if self.last > Lsn::MAX {
            return Err(RecordError::Value.into());
        }
        self.check_packet_ids()?;
        let Self {
            broker,
            mut restored,
            messages,
            retained,
            mut absent,
            connected,
            streams,
            orphans,
            last,
            ..
        } = self;
        broker.retained.restore(retained).map_err(|again| RestoreError::Twice(again.record))?;
        restored.orphans = orphans.len() as u64;
        broker.outputs.journal.resume_after(last);
        for orphan in orphans {
            match orphan {
                Orphan::Record(kind, record) => broker.outputs.journal.remove(kind, record),
                Orphan::Subscription(name, filter) => {
                    broker.outputs.journal.remove_subscription(name, &filter);
                }
            }
        }
        for (record, message) in &messages {
            if message.record().1 == 0 {
                broker.outputs.journal.remove(Kind::Message, *record);
            }
        }
        drop(messages);
        broker.shared.set_all_absent();
        for (id, filter, grant) in streams {
            broker.restore_stream(id, &filter, grant, last);
        }
        absent.sort_by_key(|(since, _)| *since);
        for (since, id) in absent {
            broker.sessions.mark_absent(id, since);
            broker.arm_session(id);
        }
        for id in connected {
            broker.leave(id, CloseReason::ConnectionLost);
        }
        broker.expect_expiry();
        Ok(restored)
    }

    fn check_packet_ids(&self) -> Result<(), RestoreError> {
        let mut ids = Vec::new();
        for id in self.sessions.values() {
            let Some(session) = self.broker.sessions.find(*id) else { continue };
            let outgoing = &session.outgoing;
            ids.clear();
            ids.extend(outgoing.used_packet_ids());
            ids.sort_unstable();
            if ids.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(RestoreError::Twice(session.name));
            }
        }
        Ok(())
    }
}

impl Broker {
    /// Retained messages were still to be sent for a subscription: all of them, because nobody knows how far it was.
    fn restore_stream(&mut self, id: SessionId, text: &str, grant: Grant, record: Lsn) {
        let Ok(filter) = TopicFilter::parse(text, u32::MAX) else { return };
        let is_wanted = self.has_retained_for(filter);
        let Some(session) = self.sessions.find_mut(id) else { return };
        if is_wanted {
            session.streams.push(RetainedStream::new(filter, grant, record), FanOutNumber::default());
        } else {
            self.outputs.journal.set_streams(record, session.name, text, grant, false);
        }
    }

    /// The keys of everything that should be stored, as far as records are named by number: for tests.
    pub fn keys_to_be_stored(&self) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut add = |key: Key<'_>| {
            let mut bytes = Vec::new();
            key.write(&mut bytes);
            keys.push(bytes);
        };
        let mut held: Vec<(Lsn, u32)> = Vec::new();
        let mut hold = |message: &Message| held.push(message.record());
        let sent_left = self.sent_left.iter().flat_map(|sent| sent.iter()).map(|sent| &sent.delivery);
        let queues_left = self.remains.iter().flat_map(|remains| remains.queue.iter());
        for delivery in sent_left.chain(queues_left).filter(|delivery| delivery.record.is_some()) {
            add(Key::Delivery(delivery.record));
            hold(&delivery.message);
        }
        for remains in self.remains.iter() {
            remains.released.iter().for_each(|released| add(Key::Release(released.record)));
            remains.receipts.records().for_each(|record| add(Key::Receipt(record)));
            let Some(session) = remains.session else { continue };
            let name = self.sessions.name_of_ended(session);
            if name.is_some() {
                for (filter, _) in self.subscriptions.subscriptions(session.subscriber()) {
                    add(Key::Subscription(name, filter));
                }
                for text in remains.memberships.iter().filter_map(|group| self.shared.text(*group)) {
                    add(Key::Subscription(name, text));
                }
            }
        }
        for session in self.sessions.iter() {
            let outgoing = &session.outgoing;
            let sent = outgoing.sent.iter().map(|sent| &sent.delivery);
            for delivery in sent.chain(outgoing.queue.iter()).filter(|delivery| delivery.record.is_some()) {
                add(Key::Delivery(delivery.record));
                hold(&delivery.message);
            }
            if session.name.is_some() {
                add(Key::Session(session.name));
                outgoing.released.iter().for_each(|released| add(Key::Release(released.record)));
                session.receipts.records().for_each(|record| add(Key::Receipt(record)));
                for (filter, _) in self.subscriptions.subscriptions(session.id.subscriber()) {
                    add(Key::Subscription(session.name, filter));
                }
                for text in session.memberships.iter().filter_map(|group| self.shared.text(*group)) {
                    add(Key::Subscription(session.name, text));
                }
            }
        }
        for delivery in self.shared.waiting().filter(|delivery| delivery.record.is_some()) {
            add(Key::Delivery(delivery.record));
            hold(&delivery.message);
        }
        self.retained.for_each(|kept| {
            if kept.record.is_some() {
                add(Key::Retained(kept.record));
                hold(&kept.message);
            }
        });
        for put_off in self.put_off.iter() {
            if let PutOff::Will { record, .. } = put_off
                && record.is_some()
            {
                add(Key::DueWill(*record));
            }
        }
        held.sort_unstable();
        for holders in held.chunk_by(|(left, _), (right, _)| left == right) {
            let (record, count) = holders[0];
            assert_eq!(holders.len(), count as usize, "a message knows how many records refer to it");
            add(Key::Message(record));
        }
        keys.sort();
        keys
    }
}
