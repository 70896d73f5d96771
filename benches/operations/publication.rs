//! Messages of one publisher to subscribers, which are there or away.
//!
//! Deliberately not here: what is measured of it (see `broker` and `instructions`).

use broker::codec::packet::Publish;
use broker::codec::{Packet, PacketId, Property, Protocol, QoS, ReasonCode, encode};

use crate::core::{Core, bytes_of, connect, disconnect, list};

const TOPIC: &str = "bench/core/17";

/// Messages of one publisher, and who gets them.
#[derive(Clone, Copy)]
pub(crate) struct Publication {
    /// With 5.0 every message has properties, and every subscription an identifier.
    pub(crate) protocol: Protocol,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) payload_bytes: usize,
    /// Messages that come in one read.
    pub(crate) messages: u16,
    pub(crate) subscribers: u32,
    /// Whether the subscribers have gone and left their sessions.
    pub(crate) are_absent: bool,
    /// Whether there is a store, and the subscribers' sessions are in it.
    pub(crate) has_store: bool,
    /// Whether there is a store that is not for them.
    pub(crate) has_idle_store: bool,
}

impl Publication {
    /// Gets ready for it. Each call of what comes back is all messages, and takes as many turns as they need until
    /// nothing moves any more.
    pub(crate) fn prepare(self) -> impl FnMut() {
        let mut core = self.core();
        let (publishes, releases) = (self.publishes(), self.releases());
        let subscribers = if self.are_absent { 0 } else { u64::from(self.subscribers) };
        let deliveries = subscribers * u64::from(self.messages);
        move || {
            core.deliveries = 0;
            core.exchange(0, &publishes);
            if !releases.is_empty() {
                core.exchange(0, &releases);
            }
            assert_eq!(core.deliveries, deliveries, "every subscriber gets every message");
            assert_eq!(core.broker.metrics().in_flight_messages, 0, "all is acknowledged");
        }
    }

    fn core(self) -> Core {
        let Self { protocol, qos, subscribers, are_absent, has_store, .. } = self;
        let mut core = Core::new(has_store || self.has_idle_store);
        core.open(0, &connect(protocol, "client-0", false, 0));
        let list = list(protocol, &[Property::SubscriptionId(7)]);
        for slot in 1..=subscribers {
            core.open(slot, &connect(protocol, &format!("client-{slot}"), has_store || are_absent, 0));
            let mut bytes = Vec::new();
            let requests = [(TOPIC, qos.into())];
            encode::subscribe(&mut bytes, protocol, PacketId::FIRST, list.as_properties(), &requests);
            if are_absent {
                bytes.extend(disconnect(protocol));
            }
            core.exchange(slot, &bytes);
        }
        core
    }

    /// Identifiers may be the same in every call, because each call completes them.
    fn publishes(self) -> Vec<u8> {
        let Self { protocol, qos, retain, payload_bytes, messages, .. } = self;
        let payload = vec![b'x'; payload_bytes];
        let list =
            list(protocol, &[Property::ContentType("text/plain"), Property::UserProperty("unit", "kelvin")]);
        let publish = |number| {
            let publish = Publish {
                dup: false,
                qos,
                retain,
                topic: TOPIC,
                packet_id: PacketId::new(number).filter(|_| qos > QoS::AtMostOnce),
                properties: list.as_properties(),
                payload: &payload,
            };
            bytes_of(protocol, Packet::Publish(publish))
        };
        (1..=messages).flat_map(publish).collect()
    }

    fn releases(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let packet_ids = (1..=self.messages).filter_map(PacketId::new);
        for packet_id in packet_ids.filter(|_| self.qos == QoS::ExactlyOnce) {
            encode::pubrel(&mut bytes, packet_id, ReasonCode::Success);
        }
        bytes
    }
}
