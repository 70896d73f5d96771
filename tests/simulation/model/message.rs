//! Messages as they were published, and as somebody should get them.

use std::cell::Cell;
use std::rc::Rc;

use broker::broker::ConnectionId;
use broker::clock::{Duration, Instant};
use broker::codec::{Properties, Property, Protocol, QoS};

use crate::client::Delivery;

/// What a PUBLISH or a will says in its properties.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) alias: Option<u16>,
    pub(crate) expiry: Option<Duration>,
    pub(crate) will_delay: Duration,
    /// The bytes of all that is passed on, in their order.
    pub(crate) forwarded: Vec<u8>,
}

impl Said {
    pub(crate) fn of(properties: Properties<'_>) -> Self {
        let mut said = Self::default();
        let mut properties = properties.iter();
        while let Some((bytes, property)) = properties.next_with_bytes() {
            match property {
                Property::TopicAlias(alias) => said.alias = Some(alias),
                Property::MessageExpirySecs(secs) => said.expiry = Some(Duration::from_secs(secs.into())),
                Property::WillDelaySecs(secs) => said.will_delay = Duration::from_secs(secs.into()),
                _ => said.forwarded.extend_from_slice(bytes),
            }
        }
        said
    }
}

/// A message as it was published.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// Whose messages it has to keep in order with.
    pub(crate) publisher: String,
    /// The client that published it, or whose will it is.
    pub(crate) client_id: String,
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) forwarded: Vec<u8>,
    pub(crate) at: Instant,
    pub(crate) expires_at: Option<Instant>,
    /// When the last copy was made; several turns after it was published, if it went to many.
    pub(crate) copied_by: Cell<Option<Instant>>,
}

impl Published {
    /// Whether copies were made then.
    pub(crate) fn is_live(&self, at: Instant) -> bool {
        self.at <= at && self.copied_by.get().is_none_or(|last| at <= last)
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }

    /// Whether its delivery may begin: not before it was there, nor after its time, unless it leaves at once [MQTT5-3.3.2-5] [B-116].
    pub(crate) fn may_begin(&self, begun: Instant) -> bool {
        begun == self.at || (begun > self.at && !self.is_expired(begun))
    }

    /// Rounded up, and 0 when its time is over [MQTT5-3.3.2-6] [B-115] [B-118].
    fn seconds_left(&self, at: Instant) -> Option<u32> {
        self.expires_at.map(|expires_at| expires_at.since(at).0.div_ceil(1_000) as u32)
    }
}

/// A message as somebody should get it.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) message: Rc<Published>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    /// Sorted; `None` if it cannot be known.
    pub(crate) subscription_ids: Option<Vec<u32>>,
    /// How many connections its session had had.
    pub(crate) epoch: usize,
}

/// Why a message did not come, the best excuse first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Missing {
    Expired,
    TooLarge,
    Lost,
}

/// When a PUBLISH was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    pub(crate) connection: ConnectionId,
    pub(crate) protocol: Protocol,
    /// This time.
    pub(crate) at: Instant,
    /// For the first time.
    pub(crate) begun: Instant,
    /// Its identifier was sent on an earlier connection and never acknowledged.
    pub(crate) is_repetition: bool,
}

impl Expected {
    /// Whether this is the message that was delivered.
    pub(crate) fn fits(&self, delivery: &Delivery, sending: &Sending) -> bool {
        let Self { message, qos, retain, subscription_ids, .. } = self;
        let has_properties = sending.protocol.has_properties();
        (&message.payload, &message.topic) == (&delivery.payload, &delivery.topic)
            && (*qos, *retain) == (delivery.qos, delivery.retain)
            && message.may_begin(sending.begun)
            && if has_properties {
                delivery.expiry_secs == message.seconds_left(sending.at)
                    // [MQTT5-3.3.2-4] [MQTT5-3.3.2-15] [MQTT5-3.3.2-16] [MQTT5-3.3.2-17] [MQTT5-3.3.2-18]
                    // [MQTT5-3.3.2-20]
                    && delivery.forwarded == message.forwarded
                    // [MQTT5-3.3.4-3] [MQTT5-3.3.4-4]
                    && subscription_ids.as_ref().is_none_or(|ids| *ids == delivery.subscription_ids)
            } else {
                true
            }
    }

    /// Bytes of its packet for a client of 5.0, with the whole topic.
    fn packet_size(&self) -> usize {
        let length_of =
            |number: usize| 1 + [128, 16_384, 2_097_152].iter().filter(|step| number >= **step).count();
        let Published { topic, payload, forwarded, expires_at, .. } = &*self.message;
        let ids = self.subscription_ids.iter().flatten();
        let properties = forwarded.len()
            + if expires_at.is_some() { 5 } else { 0 }
            + ids.map(|id| 1 + length_of(*id as usize)).sum::<usize>();
        let packet_id = if self.qos > QoS::AtMostOnce { 2 } else { 0 };
        let rest = 2 + topic.len() + packet_id + length_of(properties) + properties + payload.len();
        1 + length_of(rest) + rest
    }

    pub(crate) fn is_larger_than(&self, most: u32) -> bool {
        self.packet_size() > most as usize
    }

    /// Why it did not come by `at` to a session whose connections took packets of these sizes.
    pub(crate) fn missing(&self, at: Instant, sizes: &[u32]) -> Missing {
        if self.message.is_expired(at) {
            Missing::Expired
        } else if sizes[self.epoch.saturating_sub(1)..].iter().any(|most| self.is_larger_than(*most)) {
            Missing::TooLarge
        } else {
            Missing::Lost
        }
    }
}
