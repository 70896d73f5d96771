//! What MQTT promises, checked against what clients hear.
//!
//! The model is told every packet the core took, in order, and every event; from these it keeps its own sessions,
//! subscriptions and retained messages with the plainest structures. For each session, publisher, topic and QoS it
//! keeps the list of messages that the session should get; what a client hears must be that list, in order, and what
//! is left out at QoS 1 and 2 must not exceed what the core counted as dropped.

use std::collections::{BTreeMap, BTreeSet};

use broker::broker::event::Event;
use broker::broker::{CloseReason, ConnectionId};
use broker::clock::Instant;
use broker::codec::{PacketId, QoS};
use broker::topics::{TopicFilter, TopicName};

use super::client::Heard;

/// A message as it was published.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) publisher: String,
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

/// The messages of one publisher on one topic at one QoS that a session should get, and how many were passed.
#[derive(Debug, Default)]
struct Stream {
    payloads: Vec<String>,
    passed: usize,
    delivered: BTreeSet<String>,
    /// QoS 1 messages that their publisher sent again and that so may come again, and how often.
    again: BTreeMap<String, usize>,
}

#[derive(Debug, Default)]
struct Session {
    connection: Option<ConnectionId>,
    clean: bool,
    subscriptions: BTreeMap<String, QoS>,
    receipts: BTreeSet<PacketId>,
    streams: BTreeMap<(String, String, QoS), Stream>,
    /// The newest retained value that came as a live message, by topic and QoS: its number. The order of messages
    /// holds for each QoS [B-064].
    live_retained: BTreeMap<(String, QoS), usize>,
    /// Topics whose retained message a SUBSCRIBE asked for and that has not come yet, with its QoS. A newer live message
    /// takes its place.
    owed: BTreeMap<String, QoS>,
    /// Differs each time a session is begun under this client id.
    incarnation: usize,
    /// The connection that it has, or had last.
    last_connection: Option<ConnectionId>,
    will: Option<Published>,
}

/// What a CONNECT asks for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) client_id: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive_secs: u16,
    pub(crate) will: Option<Published>,
}

/// How often something was seen: a test that never saw a thing has not tested it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn see(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// The model.
#[derive(Debug, Default)]
pub(crate) struct Model {
    sessions: BTreeMap<String, Session>,
    by_connection: BTreeMap<ConnectionId, String>,
    /// Which incarnation of its session a connection has, even after its end.
    incarnations: BTreeMap<ConnectionId, usize>,
    keep_alive: BTreeMap<ConnectionId, (u16, Instant)>,
    /// Topic to payload and QoS.
    retained: BTreeMap<String, (String, QoS)>,
    /// Every message ever retained: payload to number, if it has only one.
    numbers: BTreeMap<String, Option<usize>>,
    /// Messages at QoS 1 and 2 that a session should have got and did not.
    pub(crate) lost: u64,
    /// Retained messages at QoS 0 that a session should have got and did not, other than by its connection's end.
    pub(crate) lost_at_most_once: u64,
    pub(crate) coverage: Coverage,
}

fn matches(filter: &str, topic: &str) -> bool {
    TopicFilter::parse(filter, 100)
        .expect("filters of the simulation are valid")
        .matches(TopicName::parse(topic, 100).expect("topics of the simulation are valid"))
}

impl Model {
    pub(crate) fn client_id(&self, connection: ConnectionId) -> Option<&str> {
        self.by_connection.get(&connection).map(String::as_str)
    }

    /// Whether no later connection has taken the session over.
    pub(crate) fn is_current(&self, client_id: &str, connection: ConnectionId) -> bool {
        self.sessions.get(client_id).is_some_and(|session| session.last_connection == Some(connection))
    }

    /// Which incarnation of its session a connection has.
    pub(crate) fn incarnation(&self, connection: ConnectionId) -> usize {
        self.incarnations[&connection]
    }

    pub(crate) fn retained(&self) -> &BTreeMap<String, (String, QoS)> {
        &self.retained
    }

    /// Notes when the last complete packet of a connection came.
    pub(crate) fn heard_from(&mut self, connection: ConnectionId, now: Instant) {
        if let Some((_, last)) = self.keep_alive.get_mut(&connection) {
            *last = now;
        }
    }

    /// A connection whose keep-alive ran out half a second ago and more.
    pub(crate) fn overdue(&self, now: Instant) -> impl Iterator<Item = ConnectionId> {
        self.keep_alive.iter().filter_map(move |(connection, (secs, last))| {
            let limit = u64::from(*secs) * 1_500 + 500;
            (*secs > 0 && now.since(*last).0 > limit).then_some(*connection)
        })
    }

    /// The core says what happened. `asked` is the CONNECT being handled, if it is one.
    pub(crate) fn event(&mut self, event: &Event, asked: Option<&Asked>, now: Instant) {
        match event {
            Event::Connected { connection, client_id, session_present, .. } => {
                let asked = asked.expect("only a CONNECT connects");
                assert_eq!(**client_id, asked.client_id);
                self.connected(*connection, asked, *session_present, now);
            }
            Event::Closed { connection, client_id, reason, .. } => {
                let known = self.by_connection.remove(connection);
                assert_eq!(known.as_deref(), client_id.as_deref());
                let timing = self.keep_alive.remove(connection);
                if let (CloseReason::KeepAliveTimeout, Some((secs, last))) = (reason, timing) {
                    // [MQTT-3.1.2-24]
                    assert!(
                        now.since(last).0 >= u64::from(secs) * 1_500,
                        "closed before its keep-alive ran out"
                    );
                    self.coverage.see("keep-alive timeout");
                }
                if let Some(client_id) = known {
                    self.disconnected(&client_id, *reason);
                }
            }
            Event::SessionExpired { client_id } | Event::SessionEvicted { client_id } => {
                self.coverage.see("session expired or evicted");
                let session = self.sessions.remove(&**client_id).expect("it existed");
                assert!(session.connection.is_none(), "a connected session does not end [MQTT-4.1.0-2]");
            }
            Event::LimitReached { .. } | Event::Packet { .. } => {}
        }
    }

    fn connected(&mut self, connection: ConnectionId, asked: &Asked, session_present: bool, now: Instant) {
        if asked.clean {
            self.sessions.remove(&asked.client_id); // [MQTT-3.1.2-6]
        }
        let existed = self.sessions.contains_key(&asked.client_id);
        assert_eq!(session_present, existed, "session present [MQTT-3.2.2-2] [MQTT-3.2.2-3]");
        let session = self.sessions.entry(asked.client_id.clone()).or_default();
        assert!(session.connection.is_none(), "the older connection was closed first [MQTT-3.1.4-2]");
        session.connection = Some(connection);
        session.last_connection = Some(connection);
        if !existed {
            session.incarnation = self.incarnations.len() + 1;
        }
        self.incarnations.insert(connection, session.incarnation);
        session.clean = asked.clean;
        session.will = asked.will.clone();
        self.by_connection.insert(connection, asked.client_id.clone());
        self.keep_alive.insert(connection, (asked.keep_alive_secs, now));
        self.coverage.see(if existed { "session resumed" } else { "session begun" });
    }

    fn disconnected(&mut self, client_id: &str, reason: CloseReason) {
        let session = self.sessions.get_mut(client_id).expect("a client has a session");
        session.connection = None;
        session.owed.retain(|_, qos| *qos > QoS::AtMostOnce);
        let will = session.will.take();
        if reason == CloseReason::TakenOver {
            self.coverage.see("take-over");
        }
        if session.clean {
            self.sessions.remove(client_id);
        }
        // Any end but the client's DISCONNECT [MQTT-3.1.2-8] [MQTT-3.14.4-3].
        if let Some(will) = will
            && !reason.is_disconnect()
        {
            self.coverage.see("will");
            self.route(&will);
        }
    }

    /// The core took a PUBLISH.
    pub(crate) fn publish(
        &mut self,
        connection: ConnectionId,
        packet_id: Option<PacketId>,
        message: &Published,
    ) {
        let client_id = self.by_connection[&connection].clone();
        if message.qos == QoS::ExactlyOnce {
            let session = self.sessions.get_mut(&client_id).expect("a client has a session");
            if !session.receipts.insert(packet_id.expect("QoS 2 has one")) {
                self.coverage.see("repeated QoS 2 PUBLISH");
                return; // [MQTT-4.3.3-2]
            }
        }
        self.route(message);
    }

    pub(crate) fn release(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let client_id = &self.by_connection[&connection];
        self.sessions.get_mut(client_id).expect("a client has a session").receipts.remove(&packet_id);
    }

    fn route(&mut self, message: &Published) {
        let topic = &message.topic;
        for session in self.sessions.values_mut() {
            let granted = session
                .subscriptions
                .iter()
                .filter(|(filter, _)| matches(filter, topic))
                .map(|(_, qos)| *qos);
            let Some(highest) = granted.max() else { continue };
            let qos = highest.min(message.qos); // [MQTT-3.8.4-6] [MQTT-3.3.5-1]
            if qos == QoS::AtMostOnce && session.connection.is_none() {
                continue;
            }
            let key = (message.publisher.clone(), topic.clone(), qos);
            let stream = session.streams.entry(key).or_default();
            if stream.payloads.contains(&message.payload) {
                *stream.again.entry(message.payload.clone()).or_default() += 1;
            } else {
                stream.payloads.push(message.payload.clone());
            }
        }
        if message.retain {
            for session in self.sessions.values_mut() {
                session.owed.remove(topic);
            }
            if message.payload.is_empty() {
                self.retained.remove(topic); // [MQTT-3.3.1-10]
            } else {
                // One that was sent again is at two places of the order, so it proves nothing.
                let number =
                    Some(self.numbers.len()).filter(|_| !self.numbers.contains_key(&message.payload));
                self.numbers.insert(message.payload.clone(), number);
                self.retained.insert(topic.clone(), (message.payload.clone(), message.qos));
            }
        }
    }

    pub(crate) fn subscribe(&mut self, connection: ConnectionId, filter: &str, qos: QoS) {
        let client_id = &self.by_connection[&connection];
        let session = self.sessions.get_mut(client_id).expect("a client has a session");
        session.subscriptions.insert(filter.to_owned(), qos);
        // What was kept is sent again, however new the messages are that came live.
        session.live_retained.retain(|(topic, _), _| !matches(filter, topic));
        let kept = self.retained.iter().filter(|(topic, _)| matches(filter, topic));
        session.owed.extend(kept.map(|(topic, (_, kept_qos))| (topic.clone(), qos.min(*kept_qos))));
    }

    pub(crate) fn unsubscribe(&mut self, connection: ConnectionId, filter: &str) {
        let client_id = &self.by_connection[&connection];
        let session = self.sessions.get_mut(client_id).expect("a client has a session");
        session.subscriptions.remove(filter);
        session.owed.retain(|topic, _| !matches(filter, topic));
    }

    /// A client of this id heard a PUBLISH; `repeated` says that it knew the identifier from before.
    pub(crate) fn delivered(
        &mut self,
        connection: ConnectionId,
        client_id: &str,
        heard: &Heard,
        repeated: bool,
    ) {
        let Heard::Publish { topic, payload, qos, retain, dup, .. } = heard else { panic!("a PUBLISH") };
        // A session that ended meanwhile has no promises left; bytes of its last connection may still arrive.
        let Some(session) = self.sessions.get_mut(client_id) else { return };
        if self.incarnations.get(&connection) != Some(&session.incarnation) {
            return;
        }
        if *retain {
            self.coverage.see("retained delivery");
            session.owed.remove(topic);
            if *dup {
                return;
            }
            let number = self.numbers.get(payload).expect("only what was retained is sent with RETAIN");
            let newest = session.live_retained.get(&(topic.clone(), *qos));
            let newer = number.is_none() || newest <= number.as_ref();
            assert!(newer, "{client_id}: an older value of {topic} after a newer one [B-010]");
            return;
        }
        let publisher = payload.split(' ').next().unwrap_or_default().to_owned();
        let key = (publisher, topic.clone(), *qos);
        let Some(stream) = session.streams.get_mut(&key) else {
            panic!("{client_id} heard {heard:?}, which no subscription of it matches [MQTT-3.3.2-3]");
        };
        if repeated || (*dup && stream.delivered.contains(payload)) {
            assert!(*dup, "{client_id}: a repetition without DUP: {heard:?} [MQTT-3.3.1-1]");
            assert!(
                *qos != QoS::ExactlyOnce || repeated,
                "{client_id}: QoS 2 twice: {heard:?} [MQTT-4.3.3-1]"
            );
            self.coverage.see("repetition");
            return;
        }
        let ahead = stream.payloads[stream.passed..].iter().position(|expected| expected == payload);
        let Some(skipped) = ahead else {
            if let Some(left @ 1..) = stream.again.get_mut(payload) {
                *left -= 1;
                return;
            }
            panic!(
                "{client_id} heard {heard:?} twice or out of order [MQTT-4.6.0-6]; expected next: {:?}",
                stream.payloads.get(stream.passed)
            );
        };
        stream.passed += skipped + 1;
        stream.delivered.insert(payload.clone());
        if *qos > QoS::AtMostOnce {
            self.lost += skipped as u64;
        }
        if let Some(Some(number)) = self.numbers.get(payload) {
            let newest = session.live_retained.entry((topic.clone(), *qos)).or_default();
            *newest = (*number).max(*newest);
        }
        self.coverage.see(match qos {
            QoS::AtMostOnce => "QoS 0 delivery",
            QoS::AtLeastOnce => "QoS 1 delivery",
            QoS::ExactlyOnce => "QoS 2 delivery",
        });
    }

    /// Everything has arrived that will: what is still expected at QoS 1 and 2, or retained, is lost.
    pub(crate) fn settle(&mut self) {
        for session in self.sessions.values() {
            let (unsure, sure): (Vec<QoS>, _) =
                session.owed.values().partition(|qos| **qos == QoS::AtMostOnce);
            self.lost_at_most_once += unsure.len() as u64;
            self.lost += sure.len() as u64;
            for ((_, _, qos), stream) in &session.streams {
                if *qos > QoS::AtMostOnce {
                    self.lost += (stream.payloads.len() - stream.passed) as u64;
                }
            }
        }
    }

    pub(crate) fn stored_sessions(&self) -> Vec<String> {
        self.sessions.keys().cloned().collect()
    }
}
