//! What has to wait for a message that is on its way to very many (see `fan_out`): a PUBLISH, a will, a `$SYS` topic; and who has
//! just come.
//!
//! What goes to the topic of that message, or to very many too, is not taken before its end; nor is a PUBLISH of the client that
//! sent it. Nothing overtakes what waits for the same topic. They are taken in the order in which they came. So all who get
//! the messages of a topic get them in one order, and nothing waits for ever.
//!
//! To the sender of a PUBLISH it is as if that were still in the socket: it is not read meanwhile, and if it goes, the PUBLISH was
//! never sent. A will is published whatever becomes of its client, so one that is stored has a record of its own until then.
//!
//! A publisher that waits sends no more, but clients with wills can come and go. While many wills wait, a new connection stands behind
//! them and is not read. So there are never more of them than that, and one for each connection and session. It waits for no longer
//! than a handshake may take, and not if it gives up itself, or each attempt would leave one more will.
//!
//! Invariants: the link of a publisher that waits, or of a newcomer, is not read; `topics`, `wills` and `sys_topics` count exactly
//! what waits, and `connections` names whose it is.
//!
//! Deliberately not here: how a PUBLISH is taken (see `receive`), and how a will is published (see `will`).

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::{Duration, Instant};
use crate::codec::packet::Publish;
use crate::codec::{PacketId, Properties, QoS};
use crate::journal::Lsn;
use crate::metrics::DropReason;
use crate::topics::TopicName;

use super::Broker;
use super::event::FanOutStep;
use super::journal::Kind;
use super::link::{ConnectionId, Link};
use super::message::{Content, Message};
use super::session::SessionId;
use super::will::Will;

/// A message that could not be taken yet.
#[derive(Debug)]
pub(super) enum PutOff {
    Publish {
        connection: ConnectionId,
        message: Message,
        qos: QoS,
        retain: bool,
        packet_id: Option<PacketId>,
        /// Before it is taken its time does not run.
        came_at: Instant,
    },
    Will {
        will: Box<Will>,
        /// Whose it is; the session may have ended.
        publisher: Option<SessionId>,
        /// `Lsn::NONE` if it is not stored.
        record: Lsn,
    },
    SysTopic(Message),
    /// A connection without its CONNECT.
    Newcomer(ConnectionId),
}

impl PutOff {
    const fn is_will(&self) -> bool {
        matches!(self, Self::Will { .. })
    }

    const fn is_sys_topic(&self) -> bool {
        matches!(self, Self::SysTopic(_))
    }

    fn topic(&self) -> Option<&[u8]> {
        match self {
            Self::Publish { message, .. } | Self::SysTopic(message) => Some(message.topic_bytes()),
            Self::Will { will, .. } => Some(will.message.topic_bytes()),
            Self::Newcomer(_) => None,
        }
    }

    /// Whose link is not read meanwhile.
    const fn connection(&self) -> Option<ConnectionId> {
        match self {
            Self::Publish { connection, .. } | Self::Newcomer(connection) => Some(*connection),
            Self::Will { .. } | Self::SysTopic(_) => None,
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct PutOffs {
    /// By number; later ones have larger numbers. All whose connections are lost in one turn may be very many, so none of them is
    /// searched for.
    queue: BTreeMap<u64, PutOff>,
    newest: u64,
    /// Where that stands for which a connection is not read.
    connections: BTreeSet<(ConnectionId, u64)>,
    /// How many wait for a topic. A hash table of very many would have to move them all to grow.
    topics: BTreeMap<Box<[u8]>, usize>,
    /// How many are wills, and how many `$SYS` topics.
    wills: usize,
    sys_topics: usize,
}

/// If so many wills wait, or as many as a turn has steps, newcomers wait behind them.
const MANY_WILLS: usize = 100;

impl PutOffs {
    pub(super) const fn new() -> Self {
        Self {
            queue: BTreeMap::new(),
            newest: 0,
            connections: BTreeSet::new(),
            topics: BTreeMap::new(),
            wills: 0,
            sys_topics: 0,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PutOff> {
        self.queue.values()
    }

    fn has_topic(&self, topic: TopicName<'_>) -> bool {
        self.topics.contains_key(topic.as_str().as_bytes())
    }

    pub(super) fn push(&mut self, put_off: PutOff) {
        if let Some(topic) = put_off.topic() {
            *self.topics.entry(topic.into()).or_default() += 1;
        }
        self.wills += usize::from(put_off.is_will());
        self.sys_topics += usize::from(put_off.is_sys_topic());
        self.newest += 1;
        if let Some(connection) = put_off.connection() {
            self.connections.insert((connection, self.newest));
        }
        self.queue.insert(self.newest, put_off);
    }

    pub(super) fn pop(&mut self) -> Option<PutOff> {
        let number = *self.queue.first_key_value()?.0;
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Option<PutOff> {
        let put_off = self.queue.remove(&number)?;
        if let Some(topic) = put_off.topic() {
            forget_topic(&mut self.topics, topic);
        }
        self.wills -= usize::from(put_off.is_will());
        self.sys_topics -= usize::from(put_off.is_sys_topic());
        if let Some(connection) = put_off.connection() {
            self.connections.remove(&(connection, number));
        }
        Some(put_off)
    }

    /// The first for which this connection is not read.
    fn first_of(&self, connection: ConnectionId) -> Option<u64> {
        let (_, number) = self.connections.range((connection, 0)..=(connection, u64::MAX)).next()?;
        Some(*number)
    }

    /// Asserts that every topic is counted, and every kind.
    pub(super) fn check_invariants(&self) {
        let mut waiting: Vec<&[u8]> = self.iter().filter_map(PutOff::topic).collect();
        waiting.sort_unstable();
        let groups = waiting.chunk_by(|left, right| left == right);
        let counted = groups.map(|group| assert_eq!(self.topics.get(group[0]), Some(&group.len()))).count();
        assert_eq!(counted, self.topics.len());
        assert_eq!(self.wills, self.iter().filter(|put_off| put_off.is_will()).count());
        assert_eq!(self.sys_topics, self.iter().filter(|put_off| put_off.is_sys_topic()).count());
        let unread = |(number, put_off): (&u64, &PutOff)| Some((put_off.connection()?, *number));
        assert_eq!(self.connections, self.queue.iter().filter_map(unread).collect());
    }
}

fn forget_topic(topics: &mut BTreeMap<Box<[u8]>, usize>, topic: &[u8]) {
    let count = topics.get_mut(topic).expect("every topic is counted");
    *count -= 1;
    if *count == 0 {
        topics.remove(topic);
    }
}

impl Broker {
    /// Whether a message to this topic has to wait for the one under way, or behind others that wait [MQTT-4.6.0-6].
    #[cold]
    #[inline(never)]
    pub(super) fn has_to_wait(&mut self, topic: TopicName<'_>, qos: QoS) -> bool {
        self.put_off.has_topic(topic) || self.is_fanning_out_to(topic) || self.is_fan_out(topic, qos)
    }

    /// Whether a PUBLISH has to wait, for whatever reason.
    #[cold]
    #[inline(never)]
    pub(super) fn publish_has_to_wait(
        &mut self,
        from: ConnectionId,
        session: SessionId,
        topic: TopicName<'_>,
        qos: QoS,
    ) -> bool {
        // A server may have read on before it knew that it should not.
        let waits_already = self.links.find(from).is_some_and(|link| link.awaits_fan_out);
        waits_already || self.is_fanning_out_for(session) || self.has_to_wait(topic, qos)
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
        self.put_off.push(PutOff::Publish { connection, message, qos, retain, packet_id, came_at });
        self.trace_fan_out(connection, FanOutStep::PutOff);
    }

    /// Does not publish a will yet. If it outlives the process it is to be published nevertheless.
    pub(super) fn put_off_will(&mut self, publisher: SessionId, session: Lsn, will: Box<Will>) {
        let record = if session.is_some() {
            self.outputs.journal.record_due_will(session, will.to_record())
        } else {
            Lsn::NONE
        };
        self.put_off.push(PutOff::Will { will, publisher: Some(publisher), record });
    }

    /// Does not publish one of the broker's own topics yet.
    pub(super) fn put_off_sys_topic(&mut self, topic: &str, payload: &[u8]) {
        let content = Content { topic, properties: Properties::NONE, payload, expires_at: None };
        self.put_off.push(PutOff::SysTopic(Message::new(&content, &self.messages)));
    }

    /// Whether there are `$SYS` topics that wait.
    pub(super) const fn has_put_off_sys_topics(&self) -> bool {
        self.put_off.sys_topics > 0
    }

    /// Takes something as if it came now.
    #[cold]
    #[inline(never)]
    pub(super) fn take_put_off(&mut self, put_off: PutOff) {
        match put_off {
            PutOff::Publish { connection, message, qos, retain, packet_id, came_at } => {
                let waited = Duration(self.now.since(came_at).0);
                let expires_at = message.expires_at().map(|expires_at| expires_at + waited);
                self.take_put_off_publish(connection, &message, (qos, retain), packet_id, expires_at);
            }
            PutOff::Will { will, publisher, record } => {
                if record.is_some() {
                    self.outputs.journal.remove(Kind::DueWill, record);
                }
                self.publish_will_now(publisher, &will);
            }
            PutOff::SysTopic(message) => self.publish_sys_topic_now(message.topic(), message.payload()),
            PutOff::Newcomer(connection) => self.read_newcomer(connection),
        }
    }

    fn take_put_off_publish(
        &mut self,
        connection: ConnectionId,
        message: &Message,
        (qos, retain): (QoS, bool),
        packet_id: Option<PacketId>,
        expires_at: Option<Instant>,
    ) {
        if !self.read_after_fan_out(connection) {
            return;
        }
        let Some(session) = self.links.find(connection).and_then(Link::session) else { return };
        let topic = TopicName::parse(message.topic(), u32::MAX).expect("it was one when it was put off");
        let (properties, payload) = (message.properties(), message.payload());
        let publish =
            Publish { dup: false, qos, retain, topic: topic.as_str(), packet_id, properties, payload };
        self.outputs.journal.begin_input(Some(connection));
        self.messages.prepare(Some(message.clone()));
        self.take_now(connection, session, topic, &publish, expires_at);
        self.messages.prepare(None);
        self.await_store_if_behind(connection);
        if self.links.find(connection).is_some_and(|link| link.session().is_some()) {
            self.trace_fan_out(connection, FanOutStep::Taken);
        }
        self.outputs.journal.begin_input(None);
    }

    /// The connection ends: what it has yet to have taken is as good as never sent.
    #[cold]
    #[inline(never)]
    pub(super) fn forget_put_off(&mut self, ended: ConnectionId) {
        while let Some(number) = self.put_off.first_of(ended) {
            if let Some(PutOff::Publish { qos: QoS::AtMostOnce, .. }) = self.put_off.remove(number) {
                self.outputs.metrics.drop_message(DropReason::SessionEnded);
            }
        }
    }

    /// Does not read a connection that was just opened where it could leave one more will to many.
    pub(super) fn put_off_newcomer(&mut self, id: ConnectionId) {
        if self.put_off.wills >= MANY_WILLS.min(self.options.steps_per_turn)
            && let Some(link) = self.links.find_mut(id)
        {
            link.awaits_fan_out = true;
            self.put_off.push(PutOff::Newcomer(id));
        }
    }

    fn read_newcomer(&mut self, id: ConnectionId) {
        if let Some(link) = self.links.find_mut(id) {
            link.awaits_fan_out = false;
            self.outputs.resumed.push_back(id);
        }
    }

    /// Publishes the wills that wait: nobody will be here to do so later.
    pub(super) fn publish_put_off_wills(&mut self) {
        self.finish_fan_out();
        let mut others = Vec::new();
        while let Some(put_off) = self.put_off.pop() {
            if put_off.is_will() {
                self.take_put_off(put_off);
                self.finish_fan_out();
            } else {
                others.push(put_off);
            }
        }
        others.into_iter().for_each(|put_off| self.put_off.push(put_off));
    }

    /// Whether this publisher is read again once the message under way has reached everybody.
    pub(super) fn is_behind_fan_out(&self, id: ConnectionId) -> bool {
        self.is_fan_out_of(id) || self.is_put_off(id)
    }

    /// Whether this connection waits, with a PUBLISH or without a CONNECT.
    pub(super) fn is_put_off(&self, id: ConnectionId) -> bool {
        self.put_off.first_of(id).is_some()
    }
}
