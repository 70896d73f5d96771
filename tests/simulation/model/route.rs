//! Who should get a message, and what a subscription asks for.

use std::cell::Cell;
use std::rc::Rc;

use broker::broker::ConnectionId;
use broker::codec::packet::{Publish, RetainHandling, Subscribe, Unsubscribe};
use broker::codec::{Property, QoS, ReasonCode};

use super::groups::share_filter;
use super::link::HeldReply;
use super::message::{Published, Said};
use super::session::Subscription;
use super::{Model, matches};
use crate::client::Heard;

impl Model {
    /// The core took a PUBLISH. If it goes to many its answer comes later.
    pub(crate) fn publish(&mut self, connection: ConnectionId, publish: &Publish<'_>, is_to_many: bool) {
        let now = self.now;
        let said = Said::of(publish.properties);
        let (link, session) = self.link_and_session(connection);
        let is_anew = said.alias.is_some_and(|alias| link.aliases.is_of_another(alias, publish.topic))
            && !publish.topic.is_empty();
        let topic = link.aliases.resolve(publish.topic, said.alias); // [MQTT5-3.3.2-12]
        let has_reasons = link.protocol.has_properties();
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
            copied_by: Cell::default(),
        };
        let message = Rc::new(message);
        let is_matched = self.route(&message);
        // [MQTT5-3.3.4-1] [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [B-126]
        let reason = if is_matched { ReasonCode::Success } else { ReasonCode::NoMatchingSubscribers };
        let (answer, if_unmatched) = (reply(reason), reply(ReasonCode::NoMatchingSubscribers));
        self.coverage.see_if("nobody matches", has_reasons && answer.is_some() && !is_matched);
        self.coverage.see_if("alias of the client used", publish.topic.is_empty());
        self.coverage.see_if("alias of the client set anew", is_anew);
        let (link, _) = self.link_and_session(connection);
        if is_to_many {
            let topic = message.topic.clone();
            let held =
                |(reply, if_unmatched)| HeldReply { reply, if_unmatched, topic, has_lost_receiver: false };
            link.held_reply = answer.zip(if_unmatched).map(held);
        } else {
            link.replies.extend(answer);
        }
    }

    /// Hands a message to all who should get it. False if nobody is subscribed to its topic.
    pub(super) fn route(&mut self, message: &Rc<Published>) -> bool {
        self.published.insert(message.payload.clone());
        self.being_copied.push(message.clone());
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

    pub(super) fn retain(&mut self, message: &Rc<Published>) {
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

    pub(super) fn subscribe_to(
        &mut self,
        connection: ConnectionId,
        filter: &str,
        subscription: Subscription,
    ) {
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
            self.receiver_is_lost(filter);
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
}
