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

use crate::clock::Instant;
use crate::codec::packet::Publish;
use crate::codec::{PacketId, QoS, encode};
use crate::metrics::DropReason;
use crate::topics::TopicName;

use super::Broker;
use super::close_reason::CloseReason;
use super::deliver::Routing;
use super::event::PacketKind;
use super::link::ConnectionId;
use super::session::SessionId;

/// Topics that a client may not publish to: the broker's own, and those that look like a shared subscription.
pub(super) fn is_reserved(topic: &str) -> bool {
    topic.starts_with("$SYS/") || topic == "$SYS" || topic.starts_with("$share/")
}

impl Broker {
    pub(super) fn publish(
        &mut self,
        now: Instant,
        id: ConnectionId,
        session_id: SessionId,
        publish: &Publish<'_>,
    ) {
        self.outputs.metrics.publish_received += 1;
        let topic = match TopicName::parse(publish.topic, self.options.topic_levels_max) {
            Ok(topic) => topic,
            Err(error) => return self.close(now, id, CloseReason::TopicName(error)),
        };
        let exactly_once = publish.packet_id.filter(|_| publish.qos == QoS::ExactlyOnce);
        if let Some(packet_id) = exactly_once
            && self.session(session_id).receipts.contains(packet_id)
        {
            self.outputs.metrics.publish_repeated += 1;
            return self.answer_publish(now, id, publish);
        }
        if is_reserved(publish.topic) {
            // 3.1.1 has no way to say no but to close, and closing would have the client come back for ever: it is
            // acknowledged and goes nowhere [MQTT-3.3.5-2].
            self.outputs.metrics.drop_message(DropReason::ReservedTopic);
        } else if let Some(reason) = self.refusal(publish) {
            // An acknowledgement would promise what cannot be kept [MQTT-4.8.0-2]; without one the client will
            // send the message again on its next connection.
            if publish.qos == QoS::AtMostOnce {
                return self.outputs.metrics.drop_message(DropReason::RetainedFull);
            }
            return self.close(now, id, reason);
        } else {
            let mut routing = Routing::new(topic, publish.payload, publish.qos, publish.retain);
            self.route(&mut routing);
            if publish.retain {
                self.retain(&mut routing);
            }
        }
        if let Some(packet_id) = exactly_once {
            self.session_mut(session_id).receipts.insert(packet_id);
        }
        self.answer_publish(now, id, publish);
    }

    /// Why this message cannot be taken, if so.
    fn refusal(&mut self, publish: &Publish<'_>) -> Option<CloseReason> {
        if publish.qos > QoS::AtMostOnce && self.is_full() {
            return Some(CloseReason::BrokerFull);
        }
        if publish.retain && !self.has_retained_room(publish.topic, publish.payload) {
            return Some(CloseReason::RetainedFull);
        }
        None
    }

    /// Nothing, PUBACK or PUBREC [MQTT-3.3.4-1].
    fn answer_publish(&mut self, now: Instant, id: ConnectionId, publish: &Publish<'_>) {
        let Some(packet_id) = publish.packet_id else { return };
        if publish.qos == QoS::AtLeastOnce {
            self.reply(now, id, PacketKind::Puback, Some(packet_id), |bytes| {
                encode::puback(bytes, packet_id)
            });
        } else {
            self.reply(now, id, PacketKind::Pubrec, Some(packet_id), |bytes| {
                encode::pubrec(bytes, packet_id)
            });
        }
    }

    /// The client releases the identifier; an unknown one is answered alike, or a client that missed the first
    /// PUBCOMP would ask for ever [MQTT-4.3.3-2].
    pub(super) fn pubrel(
        &mut self,
        now: Instant,
        id: ConnectionId,
        session_id: SessionId,
        packet_id: PacketId,
    ) {
        self.session_mut(session_id).receipts.remove(packet_id);
        self.reply(now, id, PacketKind::Pubcomp, Some(packet_id), |bytes| encode::pubcomp(bytes, packet_id));
    }
}
