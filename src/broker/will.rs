//! Wills: what a client left to be published should its connection end badly.

use crate::codec::{QoS, packet};
use crate::metrics::DropReason;
use crate::topics::TopicName;

use super::Broker;
use super::deliver::Routing;
use super::message::{Gauge, Message};
use super::receive::is_reserved;

/// A will, kept with the session from CONNECT [MQTT-3.1.2-8] until it is published or the client disconnects
/// [MQTT-3.1.2-10].
#[derive(Debug)]
pub(super) struct Will {
    message: Message,
    qos: QoS,
    retain: bool,
}

impl Will {
    pub(super) fn new(will: &packet::Will<'_>, gauge: &Gauge) -> Self {
        Self { message: Message::new(will.topic, will.payload, gauge), qos: will.qos, retain: will.retain }
    }
}

impl Broker {
    /// Publishes a will like any message [MQTT-3.1.2-16] [MQTT-3.1.2-17]. Nobody is there to be refused, so what
    /// cannot be taken is counted.
    pub(super) fn publish_will(&mut self, will: &Will) {
        let topic = match TopicName::parse(will.message.topic(), self.options.topic_levels_max) {
            Ok(topic) if !is_reserved(topic.as_str()) => topic,
            _ => return self.outputs.metrics.drop_message(DropReason::ReservedTopic),
        };
        let payload = will.message.payload();
        let mut routing = Routing::new(topic, payload, will.qos, will.retain);
        self.route(&mut routing);
        if will.retain {
            if self.has_retained_room(topic.as_str(), payload) {
                self.retain(&mut routing);
            } else {
                self.outputs.metrics.drop_message(DropReason::RetainedFull);
            }
        }
    }
}
