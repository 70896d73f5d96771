//! SUBSCRIBE and UNSUBSCRIBE.

use std::num::NonZeroU32;

use crate::codec::packet::{
    RetainHandling, Subscribe, SubscriptionRequest, SubscriptionRequests, TopicFilters, Unsubscribe,
};
use crate::codec::{DecodeError, PacketId, Properties, Property, QoS, ReasonCode, encode};
use crate::journal::Lsn;
use crate::topics::{Grant, SubscriptionFilter, TopicError};

use super::Broker;
use super::close_reason::CloseReason;
use super::event::{Limit, PacketKind};
use super::link::ConnectionId;
use super::long_request::{Asks, LongRequest};
use super::session::SessionId;

/// What became of one filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug)]
struct Granted {
    reason: ReasonCode,
    /// Whether the subscription was not there before.
    is_new: bool,
    /// Whether retained messages are to be sent.
    streams: bool,
    /// The record of the subscription, if it was recorded.
    record: Lsn,
}

impl Broker {
    pub(super) fn subscribe(&mut self, id: ConnectionId, session_id: SessionId, subscribe: &Subscribe<'_>) {
        // All filters are judged before the first one takes effect: a packet that is a violation leaves nothing behind in
        // a stored session.
        let mut steps = self.options.steps_per_turn;
        let (error, unjudged) = self.judge_requests(id, subscribe.requests, &mut steps);
        if let Some(reason) = error {
            return self.close(id, reason);
        }
        let subscription_id = subscription_id(subscribe.properties);
        if !unjudged.is_empty() {
            let (asks, filters) = (Asks::Subscribe(subscription_id), subscribe.requests.as_bytes());
            let request = LongRequest::new(subscribe.packet_id, asks, filters, unjudged);
            return self.put_off_request(id, request);
        }
        let (mut reasons, mut requests) = (std::mem::take(&mut self.reasons), subscribe.requests);
        let mut steps = self.options.steps_per_turn;
        self.subscribe_to_some(session_id, &mut requests, subscription_id, &mut reasons, &mut steps);
        self.outputs.work += (self.options.steps_per_turn - steps) as u64;
        if !requests.as_bytes().is_empty() {
            let (asks, filters) = (Asks::Subscribe(subscription_id), subscribe.requests.as_bytes());
            let request = LongRequest::new(subscribe.packet_id, asks, filters, &[]);
            return self.put_off_request(id, request.begun(requests.as_bytes(), reasons));
        }
        self.reply_to_request(id, PacketKind::Suback, subscribe.packet_id, &reasons);
        reasons.clear();
        self.reasons = reasons;
        // After the SUBACK: some clients throw away what comes for a subscription not yet confirmed.
        self.refill_for_packet(session_id);
    }

    /// Has as many requests of a SUBSCRIBE take effect as there are steps. One for a group of which too few were looked at to tell
    /// whether anybody lives in it waits for more.
    pub(super) fn subscribe_to_some(
        &mut self,
        session_id: SessionId,
        requests: &mut SubscriptionRequests<'_>,
        subscription_id: Option<NonZeroU32>,
        reasons: &mut Vec<ReasonCode>,
        steps: &mut usize,
    ) {
        let mut left = *requests;
        while *steps > 0
            && let Some(request) = left.next()
            && self.end_dead_group(request.filter, steps).is_ok()
        {
            reasons.push(self.subscribe_to(session_id, &request, subscription_id));
            *steps = steps.saturating_sub(1);
            *requests = left;
        }
    }

    /// Makes or replaces one subscription, and a stream of retained messages if they are wanted; its code in the SUBACK. One
    /// filter is done with before the next one, which may be the same: what is recorded last is how it stands.
    fn subscribe_to(
        &mut self,
        session_id: SessionId,
        request: &SubscriptionRequest<'_>,
        subscription_id: Option<NonZeroU32>,
    ) -> ReasonCode {
        let granted = self.grant(session_id, request, subscription_id);
        self.stream_retained(session_id, request, subscription_id, granted);
        granted.reason
    }

    /// Begins a stream of retained messages, or ends or changes one. Nothing is sent yet.
    fn stream_retained(
        &mut self,
        session_id: SessionId,
        request: &SubscriptionRequest<'_>,
        subscription_id: Option<NonZeroU32>,
        granted: Granted,
    ) {
        let Granted { reason, is_new, streams, record } = granted;
        let grant = grant_of(request, subscription_id);
        if streams {
            if !is_new {
                self.stop_stream(session_id, request.filter);
            }
            self.start_stream(session_id, request.filter, grant, record);
        } else if !reason.is_error() && !is_new {
            self.change_stream(session_id, request.filter, grant, record);
        }
    }

    /// Makes or replaces one subscription [MQTT-3.8.4-3]; its code in the SUBACK [MQTT-3.8.4-5].
    fn grant(
        &mut self,
        session_id: SessionId,
        request: &SubscriptionRequest<'_>,
        subscription_id: Option<NonZeroU32>,
    ) -> Granted {
        let refused = |reason| Granted { reason, is_new: false, streams: false, record: Lsn::NONE };
        let name = self.session(session_id).name;
        if name.is_some()
            && let Some(reason) = self.store_trouble()
        {
            return refused(reason);
        }
        let subscriber = session_id.subscriber();
        let Ok(filter) = SubscriptionFilter::parse(request.filter, self.options.topic_levels_max) else {
            return refused(ReasonCode::TopicFilterInvalid);
        };
        let is_new = if filter.share_name.is_some() {
            !self.is_in_group(session_id, request.filter)
        } else {
            !self.subscriptions.contains(subscriber, request.filter)
        };
        if is_new && self.subscription_count(session_id) >= self.options.subscriptions_max {
            self.outputs.metrics.subscriptions_refused += 1;
            let session = self.sessions.find_mut(session_id).expect("its SUBSCRIBE is being handled");
            if !session.subscriptions_full_logged {
                session.subscriptions_full_logged = true;
                let value = u64::from(self.options.subscriptions_max);
                self.outputs.limit_reached(Limit::Subscriptions, Some(&session.client_id), value);
            }
            return refused(ReasonCode::QuotaExceeded);
        }
        let grant = grant_of(request, subscription_id);
        let is_changed = if filter.share_name.is_some() {
            self.join_group(session_id, request.filter, filter, grant);
            true
        } else {
            self.subscriptions.subscribe(subscriber, filter.filter, grant) != Some(grant)
        };
        let reason = match request.options.qos {
            QoS::AtMostOnce => ReasonCode::Success,
            QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
            QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
        };
        let wanted = match request.options.retain_handling {
            RetainHandling::Send => true,        // [MQTT5-3.3.1-9]
            RetainHandling::SendIfNew => is_new, // [MQTT5-3.3.1-10]
            RetainHandling::DoNotSend => false,  // [MQTT5-3.3.1-11]
        };
        // A group is sent nothing that is retained: every member that comes would get it [B-012].
        let streams = wanted && filter.share_name.is_none() && self.has_retained_for(filter.filter);
        let record = if name.is_some() && (is_changed || streams) {
            self.outputs.journal.record_subscription(name, request.filter, grant, streams)
        } else {
            Lsn::NONE
        };
        Granted { reason, is_new, streams, record }
    }

    pub(super) fn unsubscribe(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        unsubscribe: &Unsubscribe<'_>,
    ) {
        let mut steps = self.options.steps_per_turn;
        let (error, unjudged) = self.judge_filters(id, unsubscribe.filters, &mut steps);
        if let Some(reason) = error {
            return self.close(id, reason);
        }
        if !unjudged.is_empty() {
            let filters = unsubscribe.filters.as_bytes();
            let request = LongRequest::new(unsubscribe.packet_id, Asks::Unsubscribe, filters, unjudged);
            return self.put_off_request(id, request);
        }
        let mut reasons = std::mem::take(&mut self.reasons);
        for filter in unsubscribe.filters {
            self.outputs.work += 1;
            match self.unsubscribe_from(id, session_id, filter) {
                Ok(reason) => reasons.push(reason),
                Err(reason) => {
                    reasons.clear();
                    self.reasons = reasons;
                    return self.close(id, reason);
                }
            }
        }
        self.reply_to_request(id, PacketKind::Unsuback, unsubscribe.packet_id, &reasons);
        reasons.clear();
        self.reasons = reasons;
    }

    /// The code for one filter of an UNSUBSCRIBE; a client that cannot be told that it has to wait is closed.
    pub(super) fn unsubscribe_from(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        filter: &str,
    ) -> Result<ReasonCode, CloseReason> {
        let is_stored = self.session(session_id).name.is_some();
        match self.store_trouble().filter(|_| is_stored) {
            None => Ok(self.remove_subscription(session_id, filter)),
            // The one code of UNSUBACK that fits.
            Some(_) if self.has_reasons(id) => Ok(ReasonCode::ImplementationSpecificError),
            Some(_) => Err(CloseReason::StoreFailed),
        }
    }

    /// Ends one subscription. What waits in the queue stays: it was accepted while the subscription stood
    /// [MQTT-3.10.4-3].
    fn remove_subscription(&mut self, session_id: SessionId, filter: &str) -> ReasonCode {
        let existed = match SubscriptionFilter::parse(filter, self.options.topic_levels_max) {
            Err(_) => return ReasonCode::TopicFilterInvalid,
            Ok(SubscriptionFilter { share_name: Some(_), .. }) => self.leave_group(session_id, filter),
            Ok(_) => {
                self.stop_stream(session_id, filter);
                self.subscriptions.unsubscribe(session_id.subscriber(), filter)
            }
        };
        let name = self.session(session_id).name;
        if existed && name.is_some() {
            self.outputs.journal.remove_subscription(name, filter);
        }
        if existed { ReasonCode::Success } else { ReasonCode::NoSubscriptionExisted }
    }

    /// SUBACK or UNSUBACK.
    pub(super) fn reply_to_request(
        &mut self,
        id: ConnectionId,
        kind: PacketKind,
        packet_id: PacketId,
        reasons: &[ReasonCode],
    ) {
        let Some(protocol) = self.links.find(id).map(|link| link.protocol) else { return };
        let write = if kind == PacketKind::Suback { encode::suback } else { encode::unsuback };
        self.reply(id, kind, Some(packet_id), |bytes| write(bytes, protocol, packet_id, reasons));
    }

    /// Subscriptions and memberships of a session.
    pub(super) fn subscription_count(&self, session_id: SessionId) -> u32 {
        let memberships = self.sessions.find(session_id).map_or(0, |session| session.memberships.len());
        self.subscriptions.subscription_count(session_id.subscriber()) + memberships as u32
    }

    /// Judges as many requests of a SUBSCRIBE as there are steps. What is wrong with the first bad one, and what was not
    /// judged.
    fn judge_requests<'a>(
        &self,
        id: ConnectionId,
        mut requests: SubscriptionRequests<'a>,
        steps: &mut usize,
    ) -> (Option<CloseReason>, &'a [u8]) {
        let error = judge_some(&mut requests, steps, |request| self.fatal_request_error(id, &request));
        (error, requests.as_bytes())
    }

    /// The same for the filters of an UNSUBSCRIBE.
    fn judge_filters<'a>(
        &self,
        id: ConnectionId,
        mut filters: TopicFilters<'a>,
        steps: &mut usize,
    ) -> (Option<CloseReason>, &'a [u8]) {
        let error = judge_some(&mut filters, steps, |filter| self.fatal_filter_error(id, filter));
        (error, filters.as_bytes())
    }

    /// What is wrong with a request so that its sender is closed.
    pub(super) fn fatal_request_error(
        &self,
        id: ConnectionId,
        request: &SubscriptionRequest<'_>,
    ) -> Option<CloseReason> {
        if request.options.no_local && request.filter.starts_with("$share/") {
            return Some(CloseReason::NoLocalOnShared); // [MQTT5-3.8.3-4]
        }
        self.fatal_filter_error(id, request.filter)
    }

    /// What is wrong with a filter so that its sender is closed, because it cannot be told. Too many levels is our limit and
    /// not its fault, and a shared subscription that is none is a filter like any other to those who do not know them.
    pub(super) fn fatal_filter_error(&self, id: ConnectionId, filter: &str) -> Option<CloseReason> {
        if self.has_reasons(id) {
            return None;
        }
        match SubscriptionFilter::parse(filter, self.options.topic_levels_max) {
            Ok(_) | Err(TopicError::TooManyLevels | TopicError::ShareName) => None,
            Err(error) => Some(CloseReason::TopicFilter(error)),
        }
    }
}

/// Judges as many as there are steps. What is wrong with the first bad one.
fn judge_some<T>(
    all: &mut impl Iterator<Item = T>,
    steps: &mut usize,
    judge: impl Fn(T) -> Option<CloseReason>,
) -> Option<CloseReason> {
    while *steps > 0
        && let Some(next) = all.next()
    {
        *steps -= 1;
        let error = judge(next);
        if error.is_some() {
            return error;
        }
    }
    None
}

/// Checks as many as there are steps, and judges them until there is a violation.
pub(super) fn judge_unchecked<T>(
    all: &mut impl Iterator<Item = Result<T, DecodeError>>,
    violation: &mut Option<CloseReason>,
    steps: &mut usize,
    judge: impl Fn(T) -> Option<CloseReason>,
) -> Result<(), DecodeError> {
    while *steps > 0
        && let Some(next) = all.next()
    {
        *steps -= 1;
        let next = next?;
        if violation.is_none() {
            *violation = judge(next);
        }
    }
    Ok(())
}

/// The subscription identifier of a SUBSCRIBE.
pub(super) fn subscription_id(properties: Properties<'_>) -> Option<NonZeroU32> {
    properties.iter().find_map(|property| match property {
        Property::SubscriptionId(number) => NonZeroU32::new(number),
        _ => None,
    })
}

fn grant_of(request: &SubscriptionRequest<'_>, subscription_id: Option<NonZeroU32>) -> Grant {
    let options = request.options;
    Grant {
        qos: options.qos,
        no_local: options.no_local,
        retain_as_published: options.retain_as_published,
        subscription_id,
    }
}
