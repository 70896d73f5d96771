//! SUBSCRIBE and UNSUBSCRIBE.

use crate::clock::Instant;
use crate::codec::packet::{Subscribe, SubscriptionRequest, Unsubscribe};
use crate::codec::{QoS, ReasonCode, encode};
use crate::topics::{TopicError, TopicFilter};

use super::Broker;
use super::close_reason::CloseReason;
use super::event::{Limit, PacketKind};
use super::link::ConnectionId;
use super::session::SessionId;

impl Broker {
    pub(super) fn subscribe(
        &mut self,
        now: Instant,
        id: ConnectionId,
        session_id: SessionId,
        subscribe: &Subscribe<'_>,
    ) {
        // All filters are judged before the first one takes effect: a packet that costs the connection leaves
        // nothing behind in a stored session.
        for request in subscribe.requests {
            if let Some(error) = self.fatal_filter_error(request.filter) {
                return self.close(now, id, CloseReason::TopicFilter(error));
            }
        }
        let mut reasons = std::mem::take(&mut self.reasons);
        reasons.extend(subscribe.requests.into_iter().map(|request| self.grant(session_id, &request)));
        let packet_id = subscribe.packet_id;
        self.reply(now, id, PacketKind::Suback, Some(packet_id), |bytes| {
            encode::suback(bytes, packet_id, &reasons);
        });
        // After the SUBACK: some clients throw away what comes for a subscription not yet confirmed.
        for (request, reason) in subscribe.requests.into_iter().zip(&reasons) {
            if !reason.is_error() {
                self.start_stream(session_id, request.filter, request.qos);
            }
        }
        reasons.clear();
        self.reasons = reasons;
        self.refill(session_id);
    }

    /// Makes or replaces one subscription [MQTT-3.8.4-3]; its code in the SUBACK [MQTT-3.8.4-5].
    fn grant(&mut self, session_id: SessionId, request: &SubscriptionRequest<'_>) -> ReasonCode {
        let subscriber = session_id.subscriber();
        let Ok(filter) = TopicFilter::parse(request.filter, self.options.topic_levels_max) else {
            return ReasonCode::UnspecifiedError;
        };
        if filter.as_str().starts_with("$share/") {
            // Shared subscriptions are not served: a refusal is honest, a filter that never matches is not.
            return ReasonCode::UnspecifiedError;
        }
        if self.subscriptions.subscription_count(subscriber) >= self.options.subscriptions_max
            && !self.subscriptions.contains(subscriber, request.filter)
        {
            self.outputs.metrics.subscriptions_refused += 1;
            let session = self.sessions.find_mut(session_id).expect("its SUBSCRIBE is being handled");
            if !session.subscriptions_full_logged {
                session.subscriptions_full_logged = true;
                let value = u64::from(self.options.subscriptions_max);
                self.outputs.limit_reached(Limit::Subscriptions, Some(&session.client_id), value);
            }
            return ReasonCode::QuotaExceeded;
        }
        self.subscriptions.subscribe(subscriber, filter, request.qos);
        match request.qos {
            QoS::AtMostOnce => ReasonCode::Success,
            QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
            QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        now: Instant,
        id: ConnectionId,
        session_id: SessionId,
        unsubscribe: &Unsubscribe<'_>,
    ) {
        for filter in unsubscribe.filters {
            if let Some(error) = self.fatal_filter_error(filter) {
                return self.close(now, id, CloseReason::TopicFilter(error));
            }
        }
        for filter in unsubscribe.filters {
            // What waits in the queue stays: it was accepted while the subscription stood [MQTT-3.10.4-3].
            if self.subscriptions.unsubscribe(session_id.subscriber(), filter) {
                self.stop_stream(session_id, filter);
            }
        }
        let packet_id = unsubscribe.packet_id;
        self.reply(now, id, PacketKind::Unsuback, Some(packet_id), |bytes| {
            encode::unsuback(bytes, packet_id);
        });
    }

    /// What is wrong with a filter so that its sender is closed. Too many levels is our limit, not its fault.
    fn fatal_filter_error(&self, filter: &str) -> Option<TopicError> {
        match TopicFilter::parse(filter, self.options.topic_levels_max) {
            Ok(_) | Err(TopicError::TooManyLevels) => None,
            Err(error) => Some(error),
        }
    }
}
