//! Wills: what a client left to be published should its connection end badly.

use crate::clock::{Duration, Instant};
use crate::codec::property::PropertyList;
use crate::codec::{Property, QoS, packet};
use crate::journal::{Lsn, WillRecord};
use crate::metrics::DropReason;
use crate::topics::TopicName;

use super::Broker;
use super::close_reason::CloseReason;
use super::deliver::Routing;
use super::event::{Event, WillStep};
use super::journal::message_record;
use super::message::{Content, Gauge, Message};
use super::receive::{has_wildcard, is_as_said, is_reserved};
use super::restore::content_of;
use super::session::SessionId;

/// A will, kept with the session from CONNECT [MQTT-3.1.2-8] until it is published or the client disconnects
/// [MQTT-3.1.2-10].
#[derive(Debug)]
pub(super) struct Will {
    pub(super) message: Message,
    qos: QoS,
    retain: bool,
    /// How long the message is of use once it is published.
    expiry: Option<Duration>,
    /// From the end of the connection.
    pub(super) delay: Duration,
    /// When it is to be published; known once its connection has ended.
    pub(super) due_at: Option<Instant>,
}

impl Will {
    pub(super) fn to_record(&self) -> WillRecord<'_> {
        let Self { message, qos, retain, expiry, delay, due_at } = self;
        WillRecord {
            message: message_record(message),
            qos: *qos,
            retain: *retain,
            expiry: *expiry,
            delay: *delay,
            due_at: *due_at,
        }
    }

    pub(super) fn from_record(record: &WillRecord<'_>, gauge: &Gauge) -> Self {
        let WillRecord { message, qos, retain, expiry, delay, due_at } = *record;
        Self { message: Message::new(&content_of(&message), gauge), qos, retain, expiry, delay, due_at }
    }
}

impl Broker {
    /// The will in a CONNECT, or why it cannot be one.
    pub(super) fn read_will(&self, will: &packet::Will<'_>) -> Result<Will, CloseReason> {
        TopicName::parse(will.topic, self.options.topic_levels_max).map_err(CloseReason::WillTopic)?;
        let mut forwarded = PropertyList::default();
        let (mut expiry, mut delay) = (None, Duration(0));
        for property in will.properties {
            match property {
                Property::WillDelaySecs(secs) => delay = Duration::from_secs(secs.into()),
                Property::MessageExpirySecs(secs) => expiry = Some(Duration::from_secs(secs.into())),
                Property::ResponseTopic(topic) if has_wildcard(topic) => {
                    return Err(CloseReason::ResponseTopic);
                }
                property => forwarded.push(&property), // [MQTT5-3.1.3-10]
            }
        }
        if self.options.check_payload_format && !is_as_said(will.properties, will.payload) {
            return Err(CloseReason::PayloadFormat);
        }
        let content = Content {
            topic: will.topic,
            properties: forwarded.as_properties(),
            payload: will.payload,
            expires_at: None,
        };
        let message = Message::new(&content, &self.messages);
        Ok(Will { message, qos: will.qos, retain: will.retain, expiry, delay, due_at: None })
    }

    /// Publishes a will, now or when the message is with everybody that it has to wait for. `name` is that of the session in
    /// the store, if it is stored.
    pub(super) fn publish_will(&mut self, publisher: SessionId, name: Lsn, will: Box<Will>) {
        if self.has_fan_out()
            && let Some(topic) = self.topic_of(&will)
            && self.has_to_wait(topic, will.qos)
        {
            self.trace_will(&will, WillStep::PutOff);
            return self.put_off_will(publisher, name, will);
        }
        self.publish_will_now(Some(publisher), &will);
    }

    /// The topic of a will, if it may be published.
    fn topic_of<'a>(&self, will: &'a Will) -> Option<TopicName<'a>> {
        let topic = TopicName::parse(will.message.topic(), self.options.topic_levels_max).ok();
        topic.filter(|topic| !is_reserved(topic.as_str()))
    }

    /// Publishes a will like any message [MQTT-3.1.2-16] [MQTT-3.1.2-17]. Nobody is there to be refused, so what
    /// cannot be taken is counted.
    pub(super) fn publish_will_now(&mut self, publisher: Option<SessionId>, will: &Will) {
        self.trace_will(will, WillStep::Published);
        let Some(topic) = self.topic_of(will) else {
            return self.outputs.metrics.drop_message(DropReason::ReservedTopic);
        };
        let payload = will.message.payload();
        let mut routing = Routing::new(topic, payload, will.qos, will.retain);
        routing.properties = will.message.properties();
        // Its time begins now, and not at CONNECT [B-031].
        routing.expires_at = will.expiry.map(|expiry| self.now + expiry);
        // An ended one is no receiver, and its slot may be another one's.
        let publisher = publisher.filter(|publisher| self.sessions.find(*publisher).is_some());
        routing.publisher = publisher.map(SessionId::subscriber);
        self.route(&mut routing);
        if will.retain {
            if self.has_retained_room(topic.as_str(), will.message.properties(), payload) {
                self.retain(&mut routing);
            } else {
                self.outputs.metrics.drop_message(DropReason::RetainedFull);
            }
        }
    }

    fn trace_will(&mut self, will: &Will, step: WillStep) {
        if self.outputs.trace_packets {
            let (topic, payload) = (will.message.topic().into(), will.message.payload().into());
            self.outputs.events.push_back(Event::Will { topic, payload, step });
        }
    }
}
