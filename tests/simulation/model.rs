//! What MQTT promises, checked against what clients hear.
//!
//! The model is told every packet the core took, in order, every event, and when each PUBLISH was sent; from these it
//! keeps its own sessions, subscriptions, groups and retained messages with the plainest structures. For each session,
//! publisher, topic and QoS it keeps the list of messages that the session should get; what a client hears must be that
//! list, in order, and what is left out at QoS 1 and 2 must have expired, or be too large for the client, or else not
//! exceed what the core counted as dropped. Every other packet to a client is known before it comes.

mod acknowledge;
pub(crate) mod coverage;
mod crash;
pub(crate) mod groups;
mod judge;
pub(crate) mod link;
pub(crate) mod message;
mod route;
pub(crate) mod session;
mod will;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use broker::broker::event::{Event, PacketKind};
use broker::broker::{CloseReason, ConnectionId, Options};
use broker::clock::{Duration, Instant};
use broker::codec::packet::Disconnect;
use broker::codec::{Property, ReasonCode};
use broker::topics::{TopicFilter, TopicName};

use crate::client::Heard;
use coverage::Coverage;
use groups::{Groups, Hearer, share_filter};
use link::{Asked, Link};
use message::Published;
use session::Session;
use will::DueWills;

/// What did not come, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Messages at QoS 1 and 2 that a session should have got, or a group.
    pub(crate) lost: u64,
    pub(crate) lost_of_groups: u64,
    /// Retained messages at QoS 0 that a session should have got, other than by its connection's end.
    pub(crate) lost_at_most_once: u64,
    /// Messages that came and may have been taken for others: as many may seem to be lost.
    pub(crate) ambiguous: u64,
    pub(crate) expired: u64,
    pub(crate) too_large: u64,
}

/// The model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) now: Instant,
    sessions: BTreeMap<String, Session>,
    /// Those that have a CONNACK, until nothing of them can come any more.
    links: BTreeMap<ConnectionId, Link>,
    groups: Groups,
    retained: BTreeMap<String, Rc<Published>>,
    /// Every message ever retained: payload to number, if it has only one.
    numbers: BTreeMap<String, Option<usize>>,
    versions: BTreeMap<String, Vec<Rc<Published>>>,
    /// Messages of which the core may still make copies.
    being_copied: Vec<Rc<Published>>,
    /// The payloads of all messages that were taken.
    published: BTreeSet<String>,
    due_wills: DueWills,
    incarnations: usize,
    pub(crate) tally: Tally,
    /// For the words of a failure: what was lost.
    pub(crate) lost: Vec<String>,
    /// And what waited in groups at rest.
    pub(crate) waiting: Vec<String>,
    pub(crate) coverage: Coverage,
}

fn matches(filter: &str, topic: &str) -> bool {
    TopicFilter::parse(filter, 100)
        .expect("filters of the simulation are valid")
        .matches(TopicName::parse(topic, 100).expect("topics of the simulation are valid"))
}

impl Model {
    pub(crate) fn client_id(&self, connection: ConnectionId) -> Option<&str> {
        self.links.get(&connection).filter(|link| link.is_open).map(|link| link.client_id.as_str())
    }

    /// The core makes no more copies of what was published before.
    pub(crate) fn all_are_copied(&mut self) {
        for message in self.being_copied.drain(..) {
            message.copied_by.set(Some(self.now));
        }
    }

    /// Whether no later connection has taken the session over.
    pub(crate) fn is_current(&self, client_id: &str, connection: ConnectionId) -> bool {
        self.sessions.get(client_id).is_some_and(|session| session.last_connection == Some(connection))
    }

    /// Which incarnation of its session a connection has.
    pub(crate) fn incarnation(&self, connection: ConnectionId) -> usize {
        self.links[&connection].incarnation
    }

    pub(crate) fn stored_sessions(&self) -> Vec<String> {
        self.sessions.keys().cloned().collect()
    }

    /// What is retained and has not expired.
    pub(crate) fn retained(&self) -> impl Iterator<Item = &Published> {
        self.retained.values().map(|kept| &**kept).filter(|kept| !kept.is_expired(self.now))
    }

    /// Retained messages that never expire.
    pub(crate) fn retained_for_ever(&self) -> usize {
        self.retained.values().filter(|kept| kept.expires_at.is_none()).count()
    }

    /// QoS 2 messages of a client that it has not released.
    pub(crate) fn receipts(&self, connection: ConnectionId) -> usize {
        self.sessions[&self.links[&connection].client_id].receipts.len()
    }

    /// Notes when the last complete packet of a connection came.
    pub(crate) fn heard_from(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.last_heard = self.now;
        }
    }

    /// Connections whose keep-alive ran out half a second ago and more.
    pub(crate) fn overdue(&self) -> impl Iterator<Item = ConnectionId> {
        self.links.iter().filter_map(|(connection, link)| {
            let limit = u64::from(link.keep_alive_secs) * 1_500 + 500;
            let is_late = link.keep_alive_secs > 0 && self.now.since(link.last_heard).0 > limit;
            (is_late && link.is_open).then_some(*connection)
        })
    }

    /// The core has done what was due.
    pub(crate) fn check_deadlines(&self) {
        for (client_id, session) in &self.sessions {
            let expired =
                session.connection.is_none() && session.expires_at().is_some_and(|at| at < self.now);
            assert!(!expired, "{client_id}: the session should have ended [MQTT5-4.1.0-2]");
            let due_at = session.will.as_ref().and_then(|will| will.due_at);
            let is_late = session.connection.is_none() && due_at.is_some_and(|at| at <= self.now);
            assert!(!is_late, "{client_id}: its will should have been published [MQTT5-3.1.2-8]");
        }
    }

    /// The core says what happened. `asked` is the CONNECT being handled, if it is one.
    pub(crate) fn event(&mut self, event: &Event, asked: Option<&Asked>, options: &Options) {
        match event {
            Event::Connected { connection, client_id, session_present, .. } => {
                let asked = asked.expect("only a CONNECT connects");
                assert_eq!(**client_id, asked.client_id);
                self.connected(*connection, asked, *session_present, options);
            }
            Event::Closed { connection, client_id, reason, .. } => {
                self.groups.closed(*connection, self.now);
                let known = self.client_id(*connection).map(str::to_owned);
                assert_eq!(known.as_deref(), client_id.as_deref());
                let Some(link) = self.links.get_mut(connection) else { return };
                link.is_open = false;
                if *reason == CloseReason::KeepAliveTimeout {
                    let silence = self.now.since(link.last_heard).0;
                    // [MQTT-3.1.2-24] [MQTT5-3.1.2-22] [MQTT5-3.2.2-22]
                    let limit = u64::from(link.keep_alive_secs) * 1_500;
                    assert!(silence >= limit, "closed before its keep-alive ran out");
                    self.coverage.see("keep-alive timeout");
                }
                if let Some(client_id) = known {
                    self.disconnected(&client_id, *reason);
                }
            }
            Event::SessionExpired { client_id } => {
                let session = &self.sessions[&**client_id];
                let in_time = session.expires_at().is_some_and(|at| at <= self.now);
                assert!(in_time, "{client_id} expired too early [MQTT5-3.1.2-23]");
                self.coverage.see("session expired or evicted");
                self.end_session(client_id);
            }
            Event::SessionEvicted { client_id } => {
                self.coverage.see("session expired or evicted");
                self.end_session(client_id);
            }
            Event::Packet { connection, sent: true, kind: PacketKind::Publish, packet_id, publish } => {
                self.sent(*connection, *packet_id, publish.as_ref().expect("it is a PUBLISH"));
            }
            Event::Packet {
                connection, sent: true, kind: PacketKind::Pubrel, packet_id: Some(id), ..
            } => {
                self.given_up(*connection, *id);
            }
            Event::Will { payload, step, .. } => self.will(payload, *step),
            Event::LimitReached { .. } | Event::Packet { .. } | Event::FanOut { .. } => {}
        }
    }

    fn connected(
        &mut self,
        connection: ConnectionId,
        asked: &Asked,
        session_present: bool,
        options: &Options,
    ) {
        let client_id = &asked.client_id;
        if asked.clean_start && self.sessions.contains_key(client_id) {
            self.end_session(client_id); // [MQTT-3.1.2-6] [MQTT5-3.1.2-4] [B-024] [B-026]
        }
        let existed = self.sessions.contains_key(client_id);
        // [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT5-3.2.2-2] [MQTT5-3.2.2-3]
        assert_eq!(session_present, existed, "session present");
        let mut link = Link::new(asked, options, self.now);
        link.expect_connack(asked, session_present, options);
        self.coverage.see_if("keep-alive imposed", link.keep_alive_secs != asked.keep_alive_secs);
        self.coverage.see_if("session expiry capped", asked.is_capped(options));
        let session = self.sessions.entry(client_id.clone()).or_default();
        // [MQTT-3.1.4-2] [MQTT5-3.1.4-3]
        assert!(session.connection.is_none(), "the older connection was closed first");
        if let Some(old) = session.last_connection.and_then(|old| self.links.get(&old)) {
            let has_other = old.protocol != link.protocol;
            self.coverage.see_if("session resumed with another protocol", has_other); // [B-040]
        }
        if !existed {
            self.incarnations += 1;
            session.incarnation = self.incarnations;
        }
        link.incarnation = session.incarnation;
        session.connection = Some(connection);
        session.last_connection = Some(connection);
        (session.ends_with_connection, session.expiry) = asked.retention(options);
        session.is_stored |= !session.ends_with_connection;
        // [MQTT5-3.1.3-9] [B-023]
        self.coverage.see_if("will: cancelled by the client's return", session.will.is_some());
        session.will = asked.will.clone();
        session.sizes.push(asked.packet_size_max);
        let open = session.flights.values().filter(|flight| !flight.released).count();
        self.coverage.see_if("window smaller on resume", open > usize::from(link.window)); // [B-107]
        // [MQTT-4.4.0-1] [MQTT5-4.4.0-1] [MQTT5-4.3.3-5] [MQTT5-4.6.0-4]
        link.replies.extend(session.released.iter().map(|id| Heard::Pubrel(*id, ReasonCode::Success)));
        self.links.insert(connection, link);
        self.groups.connected(client_id, asked.packet_size_max);
        self.coverage.see(if existed { "session resumed" } else { "session begun" });
    }

    fn disconnected(&mut self, client_id: &str, reason: CloseReason) {
        let session = self.sessions.get_mut(client_id).expect("a client has a session");
        session.connection = None;
        session.closed_at = self.now;
        session.forget_at_most_once();
        let is_stored = session.is_stored;
        if reason == CloseReason::TakenOver {
            self.coverage.see("take-over");
        }
        // Any end but the client's DISCONNECT [MQTT-3.1.2-8] [MQTT-3.14.4-3] [MQTT5-3.14.4-3] [B-027] [B-033].
        let mut will = session.will.take().filter(|_| !reason.is_disconnect());
        if let CloseReason::Disconnected(code) = reason {
            let by_code = will.is_some() && code != ReasonCode::Success;
            self.coverage.see_if("will: DISCONNECT with a code", by_code);
        }
        if session.ends_with_connection {
            self.end_session(client_id);
        } else if will.as_ref().is_some_and(|will| will.delay > Duration(0)) {
            let mut delayed = will.take().expect("it has a delay");
            delayed.due_at = Some(self.now + delayed.delay);
            session.will = Some(delayed);
        }
        if let Some(will) = will {
            self.expect_will(will, is_stored); // [MQTT5-3.1.2-8] [B-022]
        }
    }

    fn end_session(&mut self, client_id: &str) {
        let session = self.sessions.remove(client_id).expect("it existed");
        // [MQTT-4.1.0-2] [MQTT5-4.1.0-1]
        assert!(session.connection.is_none(), "a connected session does not end");
        self.groups.excuse(client_id, session.incarnation, session.unheard());
        session.subscriptions.keys().for_each(|filter| self.receiver_is_lost(filter));
        for text in session.subscriptions.keys().filter(|text| share_filter(text).is_some()) {
            let ended = self.groups.leave(text, client_id, self.now);
            self.coverage.see_if("group ended", ended);
        }
        if let Some(will) = session.will {
            self.coverage.see("will: published at the end of its session"); // [B-025] [B-026]
            self.expect_will(will, session.is_stored);
        }
    }

    fn link_and_session(&mut self, connection: ConnectionId) -> (&mut Link, &mut Session) {
        let link = self.links.get_mut(&connection).expect("it is connected");
        let session = self.sessions.get_mut(&link.client_id).expect("a client has a session");
        (link, session)
    }

    pub(crate) fn ping(&mut self, connection: ConnectionId) {
        // [MQTT-3.12.4-1] [MQTT5-3.12.4-1]
        self.link_and_session(connection).0.replies.push_back(Heard::Pingresp);
    }

    /// A DISCONNECT is about to be taken by the core. False if it is a violation, which the core has to notice.
    pub(crate) fn disconnect(
        &mut self,
        connection: ConnectionId,
        packet: &Disconnect<'_>,
        options: &Options,
    ) -> bool {
        let expiry = packet.properties.iter().find_map(|property| match property {
            Property::SessionExpirySecs(secs) => Some(secs),
            _ => None,
        });
        let Some(secs) = expiry else { return true };
        let (_, session) = self.link_and_session(connection);
        if session.ends_with_connection && secs > 0 {
            self.coverage.see("session expiry raised by DISCONNECT");
            return false; // [B-041]
        }
        session.ends_with_connection = secs == 0;
        session.expiry = link::capped(secs, options);
        self.coverage.see("session expiry changed by DISCONNECT");
        true
    }

    /// Nothing can come of this connection any more. The last one of a session tells what protocol it spoke.
    pub(crate) fn forget(&mut self, connection: ConnectionId) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.sendings.clear();
        }
    }
}

impl Link {
    fn hearer<'a>(&'a self, session: &Session) -> Hearer<'a> {
        Hearer { client_id: &self.client_id, incarnation: session.incarnation, epoch: session.sizes.len() }
    }
}
