//! PUBLISH from a client, and the receiving half of QoS 2.
//!
//! A QoS 2 message is passed on when its PUBLISH comes, and its identifier is remembered until PUBREL: the method
//! that delivers soonest and keeps least.
//!
//! ```text
//!            PUBLISH new: pass on            PUBLISH again: PUBREC only
//!  (free) ───────────────────────> (receipt) ──┐
//!     ^                              │    ^     │
//!     └────── PUBREL: PUBCOMP ───────┘    └─────┘         PUBREL for a free identifier: PUBCOMP
//! ```

use crate::clock::{Duration, Instant};
use crate::codec::packet::{PACKET_SIZE_MAX, Publish};
use crate::codec::{DecodeError, PacketId, Properties, Property, QoS, ReasonCode, encode};
use crate::metrics::DropReason;
use crate::topics::TopicName;

use super::Broker;
use super::close_reason::CloseReason;
use super::deliver::Routing;
use super::event::{Limit, PacketKind};
use super::link::ConnectionId;
use super::receipts::Arrival;
use super::session::SessionId;
use super::{Kind, Lsn, StoreState};

/// Topics that a client may not publish to: the broker's own, and those that look like a shared subscription.
pub(super) fn is_reserved(topic: &str) -> bool {
    topic.starts_with('$') && (topic.starts_with("$SYS/") || topic == "$SYS" || topic.starts_with("$share/"))
}

/// Whether a text cannot be a topic name because of a wildcard [MQTT5-3.3.2-14].
pub(super) fn has_wildcard(topic: &str) -> bool {
    topic.contains(['+', '#'])
}

/// Whether a payload is what its payload format says.
pub(super) fn is_as_said(properties: Properties<'_>, payload: &[u8]) -> bool {
    let says_text = properties.iter().any(|property| property == Property::PayloadIsText(true));
    !says_text || std::str::from_utf8(payload).is_ok()
}

/// What the properties of a PUBLISH say to us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Instructions {
    alias: Option<u16>,
    message_expiry_secs: Option<u32>,
    pub(super) says_text: bool,
}

impl Instructions {
    /// Notes one of them.
    #[inline]
    pub(super) fn note(&mut self, property: Property<'_>) -> Result<(), CloseReason> {
        match property {
            Property::TopicAlias(number) => self.alias = Some(number),
            Property::MessageExpirySecs(secs) => self.message_expiry_secs = Some(secs),
            Property::PayloadIsText(is_text) => self.says_text = is_text,
            Property::SubscriptionId(_) => return Err(CloseReason::SubscriptionIdInPublish),
            Property::ResponseTopic(topic) if has_wildcard(topic) => return Err(CloseReason::ResponseTopic),
            _ => {}
        }
        Ok(())
    }

    /// The alias that stands for the topic, if that is empty.
    pub(super) fn alias_for(&self, topic: &str) -> Option<u16> {
        self.alias.filter(|_| topic.is_empty())
    }
}

/// Whether a property is for the subscribers too.
#[inline]
pub(super) const fn is_passed_on(property: Property<'_>) -> bool {
    !matches!(property, Property::TopicAlias(_) | Property::MessageExpirySecs(_))
}

/// What the sender of a message that was taken is told.
pub(super) fn reason_of(is_matched: bool) -> ReasonCode {
    if is_matched { ReasonCode::Success } else { ReasonCode::NoMatchingSubscribers }
}

/// A larger buffer is freed: it stems from an unusual packet.
const SCRATCH_BYTES_MAX: usize = 64 * 1024;

/// Buffers for what a PUBLISH says in other words; kept between packets.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    topic: String,
    properties: Vec<u8>,
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    /// For a client that can be told.
    reason: ReasonCode,
    /// For the counters.
    drop: DropReason,
    /// For a client that cannot be told, and would take an acknowledgement for a promise. Without this it is told that
    /// all is well.
    close: Option<CloseReason>,
}

impl Broker {
    pub(super) fn publish(&mut self, id: ConnectionId, session_id: SessionId, publish: &Publish<'_>) {
        self.outputs.metrics.publish_received += 1;
        if publish.properties.is_empty() {
            self.take(id, session_id, publish, None);
        } else {
            self.publish_with_properties(id, session_id, publish);
        }
    }

    #[inline(never)]
    fn publish_with_properties(&mut self, id: ConnectionId, session_id: SessionId, publish: &Publish<'_>) {
        let mut instructions = Instructions::default();
        for property in publish.properties {
            if let Err(reason) = instructions.note(property) {
                return self.close(id, reason);
            }
        }
        let mut publish = *publish;
        let mut passed_on = std::mem::take(&mut self.scratch.properties);
        if instructions.alias.is_some() || instructions.message_expiry_secs.is_some() {
            passed_on.clear();
            let mut all = publish.properties.iter();
            while let Some((bytes, property)) = all.next_with_bytes() {
                if is_passed_on(property) {
                    passed_on.extend_from_slice(bytes);
                }
            }
            publish.properties = Properties::checked_before(&passed_on);
        }
        self.publish_as_instructed(id, session_id, publish, instructions);
        if passed_on.capacity() <= SCRATCH_BYTES_MAX {
            self.scratch.properties = passed_on;
        }
    }

    /// Takes a PUBLISH that has the properties that are passed on, and these for us.
    pub(super) fn publish_as_instructed(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        publish: Publish<'_>,
        instructions: Instructions,
    ) {
        let mut topic = std::mem::take(&mut self.scratch.topic);
        match self.resolve_alias(id, publish, instructions.alias, &mut topic) {
            Ok(resolved) => {
                let publish = Publish { topic: resolved, ..publish };
                let expires_at =
                    instructions.message_expiry_secs.map(|secs| self.now + Duration::from_secs(secs.into()));
                self.take(id, session_id, &publish, expires_at);
            }
            Err(reason) => self.close(id, reason),
        }
        self.scratch.topic = topic;
    }

    /// The topic of a PUBLISH, which an alias may stand for or be set to.
    #[inline]
    fn resolve_alias<'a>(
        &mut self,
        id: ConnectionId,
        publish: Publish<'a>,
        alias: Option<u16>,
        topic: &'a mut String,
    ) -> Result<&'a str, CloseReason> {
        let Some(alias) = alias else { return Ok(publish.topic) };
        if alias > self.options.topic_alias_max {
            return Err(CloseReason::TopicAlias); // [MQTT5-3.2.2-17] [MQTT5-3.2.2-18]
        }
        let link = self.links.find_mut(id).expect("its PUBLISH is being handled");
        let aliases = &mut link.extras_mut().received_aliases;
        if publish.topic.is_empty() {
            let known = aliases.find(alias).ok_or(CloseReason::UnknownTopicAlias)?; // [MQTT5-3.3.2-7]
            topic.clear();
            topic.push_str(known);
            let head_length_max = 9 + topic.len();
            if head_length_max + publish.payload.len() > PACKET_SIZE_MAX as usize {
                // With its topic the packet would be larger than MQTT can express.
                return Err(CloseReason::Malformed(DecodeError::PacketTooLarge));
            }
            Ok(topic)
        } else {
            TopicName::parse(publish.topic, self.options.topic_levels_max).map_err(CloseReason::TopicName)?;
            // Even if the message is refused: the client relies on it [B-111].
            aliases.set(alias, publish.topic);
            Ok(publish.topic)
        }
    }

    /// Takes a message whose properties are passed on as they are.
    // Into both of its callers, the first of which runs for every message.
    #[inline(always)]
    fn take(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        publish: &Publish<'_>,
        expires_at: Option<Instant>,
    ) {
        let topic = match TopicName::parse(publish.topic, self.options.topic_levels_max) {
            Ok(topic) => topic,
            Err(error) => return self.close(id, CloseReason::TopicName(error)),
        };
        if self.has_fan_out() && self.publish_has_to_wait(id, session_id, topic, publish.qos) {
            return self.put_off_publish(id, publish, expires_at);
        }
        self.take_now(id, session_id, topic, publish, expires_at);
    }

    // As above.
    #[inline(always)]
    pub(super) fn take_now(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        topic: TopicName<'_>,
        publish: &Publish<'_>,
        expires_at: Option<Instant>,
    ) {
        let exactly_once = publish.packet_id.filter(|_| publish.qos == QoS::ExactlyOnce);
        if let Some(packet_id) = exactly_once {
            match self.session_mut(session_id).receipts.judge(packet_id) {
                Arrival::New => {}
                Arrival::Repeated => {
                    self.outputs.metrics.publish_repeated += 1;
                    return self.answer_publish(id, publish.qos, publish.packet_id, ReasonCode::Success);
                }
                // [MQTT5-3.3.4-7]
                Arrival::OneTooMany => return self.close(id, CloseReason::ReceiveMaximum),
            }
        }
        if let Some(refusal) = self.refusal(publish) {
            return self.refuse_publish(id, session_id, publish, refusal);
        }
        let mut routing = Routing::new(topic, publish.payload, publish.qos, publish.retain);
        routing.properties = publish.properties;
        routing.expires_at = expires_at;
        routing.publisher = Some(session_id.subscriber());
        self.route(&mut routing);
        if publish.retain {
            self.retain(&mut routing);
        }
        if let Some(packet_id) = exactly_once {
            self.note_receipt(session_id, packet_id);
        }
        if routing.goes_on {
            return self.await_fan_out(id, session_id, publish.packet_id, routing.is_matched);
        }
        self.answer_publish(id, publish.qos, publish.packet_id, reason_of(routing.is_matched));
    }

    /// Remembers that a QoS 2 message was taken.
    fn note_receipt(&mut self, session_id: SessionId, packet_id: PacketId) {
        let Self { sessions, outputs, .. } = self;
        let Some(session) = sessions.find_mut(session_id) else { return };
        let record = if session.name.is_some() {
            outputs.journal.record_receipt(session.name, packet_id)
        } else {
            Lsn::NONE
        };
        outputs.work += session.receipts.copies_of_change(packet_id);
        session.receipts.insert(packet_id, record);
    }

    /// To be called when a packet of a client has been handled.
    #[inline]
    pub(super) fn await_store_if_behind(&mut self, id: ConnectionId) {
        if self.outputs.journal.is_too_much(self.options.unstored_bytes_max) {
            self.await_store(id);
        }
    }

    /// Does not read a client on when too much waits to be stored. While nothing can be stored it is closed: nobody knows
    /// how long that takes.
    #[cold]
    #[inline(never)]
    pub(super) fn await_store(&mut self, id: ConnectionId) {
        if self.outputs.journal.state != StoreState::Well {
            return self.close(id, CloseReason::StoreFailed);
        }
        let Self { links, outputs, options, .. } = self;
        let Some(link) = links.find_mut(id).filter(|link| !link.awaits_store) else { return };
        link.awaits_store = true;
        if !outputs.journal.has_paused() {
            outputs.limit_reached(Limit::UnstoredBytes, None, options.unstored_bytes_max);
        }
        outputs.journal.pause(id);
    }

    /// Why this message cannot be taken, if so.
    #[inline]
    fn refusal(&mut self, publish: &Publish<'_>) -> Option<Refusal> {
        if is_reserved(publish.topic) {
            // 3.1.1 has no way to say no but to close, and closing would have the client come back for ever: it is
            // acknowledged and goes nowhere [MQTT-3.3.5-2].
            let (reason, drop) = (ReasonCode::NotAuthorized, DropReason::ReservedTopic);
            return Some(Refusal { reason, drop, close: None });
        }
        if self.options.check_payload_format && !self.is_payload_as_said(publish) {
            let (reason, drop) = (ReasonCode::PayloadFormatInvalid, DropReason::PayloadFormat);
            return Some(Refusal { reason, drop, close: None });
        }
        if publish.qos > QoS::AtMostOnce
            && let Some(reason) = self.store_trouble()
        {
            let (drop, close) = (DropReason::StoreFailed, Some(CloseReason::StoreFailed));
            return Some(Refusal { reason, drop, close });
        }
        if publish.qos > QoS::AtMostOnce && self.is_full() {
            let (reason, drop) = (ReasonCode::QuotaExceeded, DropReason::BrokerFull);
            return Some(Refusal { reason, drop, close: Some(CloseReason::BrokerFull) });
        }
        if publish.retain && !self.has_retained_room(publish.topic, publish.properties, publish.payload) {
            let (reason, drop) = (ReasonCode::QuotaExceeded, DropReason::RetainedFull);
            return Some(Refusal { reason, drop, close: Some(CloseReason::RetainedFull) });
        }
        None
    }

    fn is_payload_as_said(&self, publish: &Publish<'_>) -> bool {
        let known =
            if publish.properties.is_empty() { None } else { self.messages.knows_payload(publish.payload) };
        known.unwrap_or_else(|| is_as_said(publish.properties, publish.payload))
    }

    /// Says no where the client understands it. Where it does not: an acknowledgement would promise what cannot be kept
    /// [MQTT-4.8.0-2]; without one it will send the message again on its next connection.
    fn refuse_publish(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        publish: &Publish<'_>,
        refusal: Refusal,
    ) {
        let can_be_told = self.has_reasons(id);
        match refusal.close {
            Some(reason) if publish.qos > QoS::AtMostOnce && !can_be_told => self.close(id, reason),
            _ => {
                self.outputs.metrics.drop_message(refusal.drop);
                if !can_be_told
                    && let Some(packet_id) = publish.packet_id
                    && publish.qos == QoS::ExactlyOnce
                {
                    self.note_receipt(session_id, packet_id);
                }
                self.answer_publish(id, publish.qos, publish.packet_id, refusal.reason);
            }
        }
    }

    /// Nothing, PUBACK or PUBREC [MQTT-3.3.4-1]. Before 5.0 they have no reasons.
    pub(super) fn answer_publish(
        &mut self,
        id: ConnectionId,
        qos: QoS,
        packet_id: Option<PacketId>,
        reason: ReasonCode,
    ) {
        let Some(packet_id) = packet_id else { return };
        let reason =
            if reason == ReasonCode::Success || self.has_reasons(id) { reason } else { ReasonCode::Success };
        if qos == QoS::AtLeastOnce {
            self.reply(id, PacketKind::Puback, Some(packet_id), |bytes| {
                encode::puback(bytes, packet_id, reason);
            });
        } else {
            self.reply(id, PacketKind::Pubrec, Some(packet_id), |bytes| {
                encode::pubrec(bytes, packet_id, reason);
            });
        }
    }

    /// The client releases the identifier; an unknown one is answered alike, or a client that missed the first
    /// PUBCOMP would ask for ever [MQTT-4.3.3-2].
    pub(super) fn pubrel(&mut self, id: ConnectionId, session_id: SessionId, packet_id: PacketId) {
        let Self { sessions, outputs, .. } = self;
        let Some(session) = sessions.find_mut(session_id) else { return };
        outputs.work += session.receipts.copies_of_change(packet_id);
        let receipt = session.receipts.remove(packet_id);
        if let Some(record) = receipt.filter(|record| record.is_some()) {
            self.outputs.journal.remove(Kind::Receipt, record);
        }
        let reason = if receipt.is_some() { ReasonCode::Success } else { self.not_found(id) };
        self.reply(id, PacketKind::Pubcomp, Some(packet_id), |bytes| {
            encode::pubcomp(bytes, packet_id, reason);
        });
    }
}
