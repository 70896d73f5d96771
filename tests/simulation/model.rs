//! What MQTT promises, checked against what clients hear.
//!
//! The model is told every packet the core took, in order, every event, and when each PUBLISH was sent; from these it
//! keeps its own sessions, subscriptions, groups and retained messages with the plainest structures. For each session,
//! publisher, topic and QoS it keeps the list of messages that the session should get; what a client hears must be that
//! list, in order, and what is left out at QoS 1 and 2 must have expired, or be too large for the client, or else not
//! exceed what the core counted as dropped. Every other packet to a client is known before it comes.

pub(crate) mod coverage;
pub(crate) mod groups;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod session;

use std::collections::BTreeMap;
use std::rc::Rc;

use broker::broker::event::{Event, PacketKind};
use broker::broker::{CloseReason, ConnectionId, Options};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Ack, Disconnect, Publish, RetainHandling, Subscribe, Unsubscribe};
use broker::codec::{PacketId, Property, QoS, ReasonCode};
use broker::topics::{TopicFilter, TopicName};

use crate::client::{Delivery, Heard};
use coverage::Coverage;
use groups::{Groups, Hearer, share_filter};
use link::{Asked, Link};
use message::{Missing, Published, Said, Sending};
use session::{Flight, Session, Subscription, Will};

/// What did not come, by reason.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Messages at QoS 1 and 2 that a session should have got, or a group.
    pub(crate) lost: u64,
    pub(crate) lost_of_groups: u64,
    /// Retained messages at QoS 0 that a session should have got, other than by its connection's end.
    pub(crate) lost_at_most_once: u64,
    pub(crate) expired: u64,
    pub(crate) too_large: u64,
    /// Messages that members of groups may have had whose sessions ended before they heard them.
    pub(crate) excused: u64,
}

/// The model.
#[derive(Debug, Default)]
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
    departures: u64,
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

    pub(crate) fn has_delayed_will(&self) -> bool {
        self.sessions.values().any(|session| session.connection.is_none() && session.will.is_some())
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
        }
    }

    /// Publishes the wills whose delay is over.
    pub(crate) fn publish_wills(&mut self) {
        let now = self.now;
        let mut due: Vec<(Instant, u64, Will)> = Vec::new();
        for session in self.sessions.values_mut().filter(|session| session.connection.is_none()) {
            // One that expires now publishes its will at its end.
            if session.expires_at().is_none_or(|at| at > now)
                && let Some(will) = session.will.take_if(|will| will.due_at.is_some_and(|at| at <= now))
            {
                due.push((will.due_at.expect("it is due"), session.departure, will));
            }
        }
        due.sort_by_key(|(due_at, departure, _)| (*due_at, *departure));
        for (_, _, will) in due {
            self.coverage.see("will: delayed and published");
            self.publish_will(&will);
        }
    }

    fn publish_will(&mut self, will: &Will) {
        self.coverage.see("will");
        let mut message = will.message.clone();
        message.at = self.now;
        // [B-031]
        message.expires_at = will.expiry.map(|expiry| self.now + expiry);
        self.route(&Rc::new(message));
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
            Event::Packet { connection, sent: true, kind: PacketKind::Publish, packet_id, .. } => {
                self.sent(*connection, *packet_id);
            }
            Event::Packet {
                connection, sent: true, kind: PacketKind::Pubrel, packet_id: Some(id), ..
            } => {
                self.given_up(*connection, *id);
            }
            Event::LimitReached { .. } | Event::Packet { .. } => {}
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
        self.departures += 1;
        let session = self.sessions.get_mut(client_id).expect("a client has a session");
        session.connection = None;
        session.closed_at = self.now;
        session.departure = self.departures;
        session.forget_at_most_once();
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
            self.publish_will(&will); // [MQTT5-3.1.2-8] [B-022]
        }
    }

    fn end_session(&mut self, client_id: &str) {
        let session = self.sessions.remove(client_id).expect("it existed");
        // [MQTT-4.1.0-2] [MQTT5-4.1.0-1]
        assert!(session.connection.is_none(), "a connected session does not end");
        if session.was_member {
            self.tally.excused += session.unheard();
        }
        for text in session.subscriptions.keys().filter(|text| share_filter(text).is_some()) {
            let ended = self.groups.leave(text, client_id, self.now);
            self.coverage.see_if("group ended", ended);
        }
        if let Some(will) = session.will {
            self.coverage.see("will: published at the end of its session"); // [B-025] [B-026]
            self.publish_will(&will);
        }
    }

    /// A PUBLISH was sent.
    fn sent(&mut self, connection: ConnectionId, packet_id: Option<PacketId>) {
        let now = self.now;
        let link = self.links.get_mut(&connection).expect("only the connected are sent anything");
        assert!(link.is_open);
        let mut sending =
            Sending { connection, protocol: link.protocol, at: now, begun: now, is_repetition: false };
        if let Some(packet_id) = packet_id {
            let session = self.sessions.get_mut(&link.client_id).expect("a client has a session");
            let fresh = || Flight { connection, begun: now, heard: None, holder: None, released: false };
            sending.is_repetition = session.flights.contains_key(&packet_id);
            let flight = session.flights.entry(packet_id).or_insert_with(fresh);
            // [MQTT-2.3.1-4] [MQTT5-2.2.1-4] [MQTT5-4.3.2-1] [MQTT5-4.3.3-1] [MQTT5-4.4.0-1] [B-061]
            let is_free = !link.under_way.contains(&packet_id);
            assert!(is_free, "{}: {packet_id} is in use on this very connection", link.client_id);
            assert!(
                !flight.released,
                "{}: {packet_id} again after its PUBREC [MQTT5-4.3.3-6]",
                link.client_id
            );
            flight.connection = connection;
            sending.begun = flight.begun;
            link.under_way.insert(packet_id);
            let (count, window) = (link.under_way.len(), usize::from(link.window));
            // [MQTT5-3.3.4-9] [MQTT5-4.9.0-1] [MQTT5-4.9.0-2] [B-108]
            assert!(count <= window, "{}: {count} under way, {window} is the most", link.client_id);
            self.coverage.see_if("window full", count == window);
        }
        link.sendings.push_back(sending);
    }

    /// A PUBREL was sent. If it answers no PUBREC, then in the place of a PUBLISH that would have to be repeated and is too
    /// large for the client as it is now: that counts as completed, and the client may have it from an earlier connection
    /// [MQTT5-3.1.2-25].
    fn given_up(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let (link, session) = self.link_and_session(connection);
        let largest = *session.sizes.last().expect("it is connected");
        let Some(flight) = session.flights.get_mut(&packet_id).filter(|flight| !flight.released) else {
            return;
        };
        assert!(!link.under_way.contains(&packet_id), "PUBREL before PUBREC [MQTT5-4.3.3-4]");
        let is_too_large = match &flight.heard {
            Some(heard) => heard.is_larger_than(largest),
            None => largest < u32::MAX,
        };
        assert!(is_too_large, "{}: {packet_id} is given up: {flight:?}", link.client_id);
        flight.released = true;
        session.released.push(packet_id);
        link.late_replies.push(Heard::Pubrel(packet_id, ReasonCode::Success));
        if let Some(holder) = flight.holder {
            self.groups.done(holder);
        }
        self.coverage.see("given up at QoS 2 for its size");
    }

    /// What was sent of its own accord comes behind the answer to the packet that was its occasion.
    pub(crate) fn append_late_replies(&mut self) {
        for link in self.links.values_mut().filter(|link| link.is_open) {
            link.replies.extend(link.late_replies.drain(..));
        }
    }

    fn link_and_session(&mut self, connection: ConnectionId) -> (&mut Link, &mut Session) {
        let link = self.links.get_mut(&connection).expect("it is connected");
        let session = self.sessions.get_mut(&link.client_id).expect("a client has a session");
        (link, session)
    }

    /// The core took a PUBLISH.
    pub(crate) fn publish(&mut self, connection: ConnectionId, publish: &Publish<'_>) {
        let now = self.now;
        let said = Said::of(publish.properties);
        let (link, session) = self.link_and_session(connection);
        let known = link.aliases.of(publish.topic).filter(|_| !publish.topic.is_empty());
        let topic = link.aliases.resolve(publish.topic, said.alias); // [MQTT5-3.3.2-12]
        let has_reasons = link.protocol.has_properties();
        let is_anew = said.alias.is_some() && known.is_none() && !publish.topic.is_empty();
        let reply = |reason| {
            let reason = if has_reasons { reason } else { ReasonCode::Success };
            match (publish.qos, publish.packet_id) {
                (QoS::AtLeastOnce, Some(id)) => Some(Heard::Puback(id, reason)),
                (QoS::ExactlyOnce, Some(id)) => Some(Heard::Pubrec(id, reason)),
                _ => None,
            }
        };
        let exactly_once = publish.packet_id.filter(|_| publish.qos == QoS::ExactlyOnce);
        let is_refused = topic.starts_with("$SYS/");
        if exactly_once.is_some_and(|id| session.receipts.contains(&id)) {
            // [MQTT-4.3.3-2] [MQTT5-4.3.3-10]
            link.replies.extend(reply(ReasonCode::Success));
            self.coverage.see("repeated QoS 2 PUBLISH");
            return;
        }
        if !(is_refused && has_reasons) {
            session.receipts.extend(exactly_once); // [MQTT5-4.3.3-9]
        }
        if is_refused {
            link.replies.extend(reply(ReasonCode::NotAuthorized)); // [B-066]
            self.coverage.see_if("publish refused", has_reasons);
            return;
        }
        let client_id = link.client_id.clone();
        let payload = String::from_utf8(publish.payload.to_vec()).expect("payloads are texts here");
        let message = Published {
            publisher: payload.split(' ').next().unwrap_or_default().to_owned(),
            client_id,
            topic,
            payload,
            qos: publish.qos,
            retain: publish.retain,
            forwarded: said.forwarded,
            at: now,
            expires_at: said.expiry.map(|expiry| now + expiry),
        };
        let is_matched = self.route(&Rc::new(message));
        // [MQTT5-3.3.4-1] [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [B-126]
        let reason = if is_matched { ReasonCode::Success } else { ReasonCode::NoMatchingSubscribers };
        let reply = reply(reason);
        self.coverage.see_if("nobody matches", has_reasons && reply.is_some() && !is_matched);
        self.coverage.see_if("alias of the client used", publish.topic.is_empty());
        self.coverage.see_if("alias of the client set anew", is_anew);
        self.link_and_session(connection).0.replies.extend(reply);
    }

    /// Hands a message to all who should get it. False if nobody is subscribed to its topic.
    fn route(&mut self, message: &Rc<Published>) -> bool {
        let topic = &message.topic;
        let (mut is_matched, mut is_present) = (false, false);
        for (client_id, session) in &mut self.sessions {
            let matching: Vec<Subscription> = session
                .subscriptions
                .iter()
                .filter(|(filter, _)| share_filter(filter).is_none() && matches(filter, topic))
                .map(|(_, subscription)| *subscription)
                .collect();
            is_matched |= !matching.is_empty();
            is_present |= !matching.is_empty() && session.connection.is_some();
            // [MQTT5-3.8.3-3] [B-003]
            let is_left_out = |subscription: &Subscription| {
                subscription.options.no_local && *client_id == message.client_id
            };
            let admitting: Vec<&Subscription> =
                matching.iter().filter(|subscription| !is_left_out(subscription)).collect();
            let is_own = admitting.len() < matching.len();
            self.coverage.see_if("no local", is_own && admitting.is_empty());
            self.coverage
                .see_if("no local, and another subscription delivers", is_own && !admitting.is_empty());
            // [MQTT-3.3.5-1] [MQTT5-3.3.4-2]
            let Some(highest) = admitting.iter().map(|subscription| subscription.options.qos).max() else {
                continue;
            };
            // [MQTT-3.8.4-6] [MQTT5-3.8.4-8]
            let qos = highest.min(message.qos);
            // [MQTT5-3.3.1-12] [MQTT5-3.3.1-13]
            let keeps_retain = admitting.iter().any(|subscription| subscription.options.retain_as_published);
            let ids = admitting.iter().filter_map(|subscription| subscription.id).collect();
            session.expect(message, qos, message.retain && keeps_retain, ids);
        }
        is_matched |= self.groups.route(message);
        self.coverage.see_if("only an absent or shared subscription matches", is_matched && !is_present);
        if message.retain {
            self.retain(message);
        }
        is_matched
    }

    fn retain(&mut self, message: &Rc<Published>) {
        for session in self.sessions.values_mut() {
            session.replaced(&message.topic);
        }
        // [MQTT-3.3.1-10] [MQTT5-3.3.1-6] [MQTT5-3.3.1-7] [B-116]
        if message.payload.is_empty() || message.is_expired(self.now) {
            self.retained.remove(&message.topic);
            return;
        }
        // One that was sent again is at two places of the order, so it proves nothing.
        let number = Some(self.numbers.len()).filter(|_| !self.numbers.contains_key(&message.payload));
        self.numbers.insert(message.payload.clone(), number);
        self.versions.entry(message.payload.clone()).or_default().push(message.clone());
        self.retained.insert(message.topic.clone(), message.clone()); // [MQTT5-3.3.1-5] [B-019]
    }

    pub(crate) fn subscribe(&mut self, connection: ConnectionId, subscribe: &Subscribe<'_>) {
        let id = subscribe.properties.iter().find_map(|property| match property {
            Property::SubscriptionId(id) => Some(id),
            _ => None,
        });
        let mut reasons = Vec::new();
        for request in subscribe.requests {
            let subscription = Subscription { options: request.options, id };
            self.subscribe_to(connection, request.filter, subscription);
            reasons.push(request.options.qos.number());
        }
        // [MQTT-3.8.4-5] [MQTT5-3.8.4-1] [MQTT5-3.8.4-2] [MQTT5-3.8.4-6] [MQTT5-3.8.4-7] [MQTT5-3.9.3-1]
        self.link_and_session(connection).0.replies.push_back(Heard::Suback(subscribe.packet_id, reasons));
    }

    fn subscribe_to(&mut self, connection: ConnectionId, filter: &str, subscription: Subscription) {
        let Self { now, links, sessions, groups, retained, coverage, .. } = self;
        let link = &links[&connection];
        let session = sessions.get_mut(&link.client_id).expect("a client has a session");
        // [MQTT-3.8.4-3] [MQTT5-3.8.4-3]
        let is_new = session.subscriptions.insert(filter.to_owned(), subscription).is_none();
        if share_filter(filter).is_some() {
            session.was_member = true;
            let size = *session.sizes.last().expect("it is connected");
            return groups.join(filter, link.hearer(session), subscription, size, *now);
        }
        let wants_retained = match subscription.options.retain_handling {
            RetainHandling::Send => true,
            RetainHandling::SendIfNew if is_new => {
                coverage.see("retain handling 1: new");
                true
            }
            RetainHandling::SendIfNew => {
                coverage.see("retain handling 1: not new"); // [B-007]
                false
            }
            RetainHandling::DoNotSend => {
                coverage.see("retain handling 2");
                false
            }
        };
        if wants_retained {
            session.stop_asking(filter, *now);
            // [MQTT-3.3.1-6] [MQTT5-3.3.1-9] [MQTT5-3.3.1-10] [MQTT5-3.3.1-11]
            let kept = retained.values().filter(|kept| !kept.is_expired(*now)).cloned();
            session.ask(filter, subscription, *now, kept);
        } else {
            session.go_on_asking(filter, subscription, *now);
        }
    }

    pub(crate) fn unsubscribe(&mut self, connection: ConnectionId, unsubscribe: &Unsubscribe<'_>) {
        let now = self.now;
        let mut reasons = Vec::new();
        for filter in unsubscribe.filters {
            let (link, session) = self.link_and_session(connection);
            let existed = session.subscriptions.remove(filter).is_some();
            let client_id = link.client_id.clone();
            session.stop_asking(filter, now);
            if existed && share_filter(filter).is_some() {
                let ended = self.groups.leave(filter, &client_id, now);
                self.coverage.see_if("group ended", ended);
            }
            reasons.push(if existed { 0x00 } else { 0x11 });
        }
        let (link, _) = self.link_and_session(connection);
        if !link.protocol.has_properties() {
            reasons.clear();
        }
        // [MQTT5-3.10.4-4] [MQTT5-3.10.4-5] [MQTT5-3.10.4-6] [MQTT5-3.11.3-1] [B-137]
        link.replies.push_back(Heard::Unsuback(unsubscribe.packet_id, reasons));
    }

    pub(crate) fn ping(&mut self, connection: ConnectionId) {
        // [MQTT-3.12.4-1] [MQTT5-3.12.4-1]
        self.link_and_session(connection).0.replies.push_back(Heard::Pingresp);
    }

    pub(crate) fn pubrel(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let (link, session) = self.link_and_session(connection);
        let existed = session.receipts.remove(&packet_id);
        let reason = link.found(existed);
        // [MQTT5-4.3.3-11] [MQTT5-3.7.2-1] [B-050]
        link.replies.push_back(Heard::Pubcomp(packet_id, reason));
        self.coverage.see_if("identifier not found", reason != ReasonCode::Success);
    }

    /// A PUBLISH is finally acknowledged.
    fn complete(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let (link, session) = self.link_and_session(connection);
        link.under_way.remove(&packet_id);
        session.released.retain(|released| *released != packet_id);
        if let Some(holder) = session.flights.remove(&packet_id).and_then(|flight| flight.holder) {
            self.groups.done(holder);
        }
    }

    /// A PUBACK or PUBCOMP is about to be taken by the core.
    pub(crate) fn puback_or_pubcomp(&mut self, connection: ConnectionId, ack: &Ack<'_>) {
        let (link, _) = self.link_and_session(connection);
        let was_full = link.under_way.len() == usize::from(link.window);
        let is_refused = ack.reason.is_error() && ack.reason != ReasonCode::PacketIdentifierNotFound;
        self.coverage.see_if("delivery refused at QoS 1", is_refused);
        self.coverage.see_if("delivery refused with a full window", is_refused && was_full);
        self.complete(connection, ack.packet_id); // [MQTT5-4.4.0-2] [B-052]
    }

    /// A PUBREC is about to be taken by the core.
    pub(crate) fn pubrec(&mut self, connection: ConnectionId, ack: &Ack<'_>) {
        let packet_id = ack.packet_id;
        let (link, session) = self.link_and_session(connection);
        let flight = session.flights.get_mut(&packet_id);
        let reason = link.found(flight.is_some());
        let is_released = flight.as_ref().is_some_and(|flight| flight.released);
        if ack.reason.is_error() {
            let was_full = link.under_way.len() == usize::from(link.window);
            if !is_released {
                self.complete(connection, packet_id); // [MQTT5-4.3.3-4] [MQTT5-4.4.0-2] [B-054]
            }
            self.coverage.see("delivery refused at QoS 2");
            self.coverage.see_if("delivery refused with a full window", was_full);
            return;
        }
        // [MQTT5-4.3.3-4] [MQTT5-3.6.2-1] [B-051]
        link.replies.push_back(Heard::Pubrel(packet_id, reason));
        if let Some(flight) = flight.filter(|_| !is_released) {
            flight.released = true;
            session.released.push(packet_id);
            if let Some(holder) = flight.holder {
                self.groups.done(holder);
            }
        }
        self.coverage.see_if("identifier not found", reason != ReasonCode::Success);
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

    /// A client heard a PUBLISH. `is_meant` says that it is still its connection.
    pub(crate) fn delivered(&mut self, connection: ConnectionId, delivery: &Delivery, is_meant: bool) {
        let link = self.links.get_mut(&connection).expect("CONNACK comes first [MQTT-3.2.0-1]");
        let mut sending = link.sendings.pop_front().expect("the core says when it sends");
        let client_id = link.client_id.clone();
        // A session that ended meanwhile has no promises left; bytes of its last connection may still arrive. An empty
        // payload does not say whose it is.
        let Some(session) = self.sessions.get_mut(&client_id) else { return };
        if session.incarnation != link.incarnation || !is_meant || delivery.payload.is_empty() {
            return;
        }
        let Self { links, sessions, groups, coverage, .. } = self;
        let link = &links[&connection];
        let session = sessions.get_mut(&client_id).expect("just seen");
        coverage.see_if("alias of the broker set", delivery.alias == Some(false));
        coverage.see_if("alias of the broker used", delivery.alias == Some(true));
        coverage
            .see_if("message expiry 0, delivered at once", delivery.expiry_secs == Some(0) && !delivery.dup);
        coverage.see_if("several subscription identifiers", delivery.subscription_ids.len() > 1);
        coverage.see_if("forwarded properties", !delivery.forwarded.is_empty());
        coverage.see_if("delivery with an expiry", delivery.expiry_secs.is_some());
        let is_kept = delivery.expiry_secs.is_some() && delivery.retain;
        coverage.see_if("retained delivery with an expiry", is_kept);
        // [MQTT5-3.3.1-3] [MQTT5-4.3.1-1] [MQTT5-4.3.2-2] [MQTT5-4.3.3-2]
        assert!(!delivery.dup || sending.is_repetition, "{client_id}: DUP at first: {delivery:?}");
        if let Some(flight) = delivery.packet_id.and_then(|id| session.flights.get_mut(&id)) {
            if !delivery.dup && sending.is_repetition {
                // The identifier was free: what it stood for went to another member of the group.
                // [MQTT-3.3.1-1] [MQTT5-3.3.1-1]
                assert!(session.was_member, "{client_id}: a repetition without DUP: {delivery:?}");
                (flight.heard, flight.holder, flight.begun) = (None, None, sending.at);
                sending.begun = sending.at;
            }
            if let Some(heard) = flight.heard.clone() {
                let holder = flight.holder;
                // [MQTT5-4.3.3-7]
                let same = heard.fits(delivery, &sending)
                    || session.was_expected(delivery, &sending)
                    || session.may_be_retained(delivery)
                    || groups.may_be(link.hearer(session), delivery, &sending);
                assert!(same, "{client_id}: {heard:?} is repeated as {delivery:?}");
                coverage.see("repetition");
                coverage.see_if("repetition after its expiry", heard.message.is_expired(sending.at));
                if let Some(holder) = holder {
                    groups.repeat(holder, &sending); // [MQTT5-4.8.2-4]
                }
                return;
            }
        }
        coverage.see_if("repetition of what was not heard", delivery.dup);
        self.first_delivery(connection, delivery, &sending);
    }

    /// A client heard a message for the first time: a live one, one of a group, or a retained one.
    fn first_delivery(&mut self, connection: ConnectionId, delivery: &Delivery, sending: &Sending) {
        let Self { links, sessions, groups, coverage, tally, .. } = self;
        let link = &links[&connection];
        let client_id = &link.client_id;
        let session = sessions.get_mut(client_id).expect("a client has a session");
        let hearer = link.hearer(session);
        let number = self.numbers.get(&delivery.payload).copied().flatten();
        let place = session.place(delivery, sending);
        let offer = groups.offer(hearer, delivery, sending);
        let has_properties = link.protocol.has_properties();
        let mut holder = None;
        let is_next = place.as_ref().is_some_and(session::Place::is_next);
        let taken = if is_next {
            groups.doubt(&offer);
            None
        } else {
            groups.take(&offer, sending)
        };
        let heard = if let Some((id, expected)) = taken {
            coverage.see(match delivery.qos {
                QoS::AtMostOnce => "shared delivery QoS 0",
                QoS::AtLeastOnce => "shared delivery QoS 1",
                QoS::ExactlyOnce => "shared delivery QoS 2",
            });
            let is_passed_on = groups.is_passed_on(id);
            coverage.see_if("shared delivery to 3.1.1", !has_properties);
            coverage.see_if("shared delivery passed to another member", is_passed_on);
            let waited = sending.begun > expected.message.at;
            coverage.see_if("shared delivery out of the group's queue", waited && !is_passed_on);
            if place.is_some() || session.may_be_retained(delivery) {
                groups.doubt(&offer);
            }
            if delivery.retain {
                session.satisfy(delivery, has_properties);
            }
            holder = Some(id);
            expected
        } else {
            let versions = self.versions.get(&delivery.payload).map_or([].as_slice(), Vec::as_slice);
            let kept = (delivery.retain && !is_next)
                .then(|| session.take_retained(delivery, sending, versions, place.is_none()))
                .flatten();
            if let Some(kept) = kept {
                // The identifier in use, RETAIN set [MQTT-3.3.1-8], and never older than what came live [B-010].
                coverage.see("retained delivery");
                let newer = session.is_new_enough(delivery, number);
                assert!(newer, "{client_id}: an older value of {} after a newer one [B-010]", delivery.topic);
                kept
            } else if let Some(place) = place {
                for missing in &place.missing {
                    match missing {
                        Missing::Expired => tally.expired += 1,
                        Missing::TooLarge => tally.too_large += 1,
                        Missing::Lost => {
                            tally.lost += 1;
                            self.lost.push(format!("{client_id}, before {delivery:?}"));
                        }
                    }
                }
                coverage.see(match delivery.qos {
                    QoS::AtMostOnce => "QoS 0 delivery",
                    QoS::AtLeastOnce => "QoS 1 delivery",
                    QoS::ExactlyOnce => "QoS 2 delivery",
                });
                coverage.see_if("retain as published", delivery.retain);
                if delivery.retain {
                    session.satisfy(delivery, has_properties);
                }
                session.pass(delivery, &place, number)
            } else {
                // [MQTT-3.3.2-3] [MQTT5-3.3.2-3] [MQTT-4.6.0-6] [MQTT5-4.6.0-5] [MQTT-4.3.3-1]
                panic!(
                    "{client_id} heard {delivery:?}, sent {sending:?}, which it should not, or not so, not twice, or \
                     not now; {}; {}",
                    session.describe(delivery),
                    groups.describe(delivery),
                )
            }
        };
        coverage.see_if(
            "properties dropped for 3.1.1",
            !has_properties && !heard.message.forwarded.is_empty(), // [B-153]
        );
        let is_shortened = sending.begun.since(heard.message.at) >= Duration(1_000);
        coverage.see_if("delivery with a shortened expiry", is_shortened && delivery.expiry_secs.is_some());
        if let Some(flight) = delivery.packet_id.and_then(|id| session.flights.get_mut(&id)) {
            flight.heard = Some(heard);
            flight.holder = holder;
        }
    }

    /// The next packet to a client that is neither CONNACK, PUBLISH nor DISCONNECT.
    pub(crate) fn replied(&mut self, connection: ConnectionId, heard: &Heard) {
        let link = self.links.get_mut(&connection).expect("CONNACK comes first [MQTT-3.2.0-1]");
        assert_eq!(link.replies.pop_front().as_ref(), Some(heard), "{}: the next reply", link.client_id);
    }

    pub(crate) fn accepted(&self, connection: ConnectionId, heard: &Heard) {
        let link = &self.links[&connection];
        // [MQTT5-3.1.4-5] [MQTT5-3.2.2-1] [B-042] [B-123]
        assert_eq!(link.connack.as_ref(), Some(heard), "{}: the CONNACK", link.client_id);
    }

    pub(crate) fn replies_left(&self, connection: ConnectionId) -> usize {
        self.links.get(&connection).map_or(0, |link| link.replies.len())
    }

    /// Everything has arrived that will: what is still expected at QoS 1 and 2, or retained, is lost.
    pub(crate) fn settle(&mut self) {
        let Self { now, sessions, groups, tally, .. } = self;
        for (client_id, session) in sessions {
            for (missing, expected, is_owed) in session.missing(*now) {
                let qos = expected.qos;
                match missing {
                    Missing::Lost if is_owed && qos == QoS::AtMostOnce => tally.lost_at_most_once += 1,
                    _ if qos == QoS::AtMostOnce => {}
                    Missing::Expired => tally.expired += 1,
                    Missing::TooLarge => tally.too_large += 1,
                    Missing::Lost => {
                        tally.lost += 1;
                        self.lost.push(format!("{client_id}: {expected:?}"));
                    }
                }
            }
        }
        for (missing, message) in groups.missing(*now, |_| true) {
            match missing {
                Missing::Expired => tally.expired += 1,
                Missing::TooLarge => tally.too_large += 1,
                Missing::Lost => {
                    tally.lost_of_groups += 1;
                    self.lost.push(format!("a group: {message:?}"));
                }
            }
        }
    }

    /// Messages of groups that no member has heard although one is there, beyond those that absent ones may have been
    /// sent [B-070].
    pub(crate) fn unheard_of_groups(&mut self) -> u64 {
        let Self { now, sessions, groups, .. } = self;
        let is_present =
            |client_id: &str| sessions.get(client_id).is_some_and(|session| session.connection.is_some());
        let missing = groups.missing(*now, |members| members.iter().any(|member| is_present(member)));
        let lost = missing.iter().filter(|(missing, _)| *missing == Missing::Lost);
        self.waiting = lost.map(|(_, message)| format!("waits: {message:?}")).collect();
        let away = sessions.values().filter(|session| session.connection.is_none() && session.was_member);
        let unheard: u64 = away.map(Session::unheard).sum();
        (self.waiting.len() as u64).saturating_sub(unheard)
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
