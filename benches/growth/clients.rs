//! What clients say to the core that is measured.

use broker::codec::packet::{Packet, Publish};
use broker::codec::{PacketId, Properties, Protocol, QoS, encode};

use crate::PAYLOAD_BYTES;
use crate::core::{Core, bytes_of, connect, disconnect};

pub(crate) const PROTOCOL: Protocol = Protocol::Mqtt311;

pub(crate) const PUBLISHER: u32 = 0;

/// A core with a publisher.
pub(crate) fn core_with_publisher() -> Core {
    with_publisher(Core::new(false))
}

pub(crate) fn with_publisher(mut core: Core) -> Core {
    core.open(PUBLISHER, &connect_bytes("publisher", false));
    core
}

pub(crate) fn connect_bytes(client_id: &str, is_kept: bool) -> Vec<u8> {
    connect(PROTOCOL, client_id, is_kept, 0)
}

pub(crate) fn disconnect_bytes() -> Vec<u8> {
    disconnect(PROTOCOL)
}

pub(crate) fn ping_bytes() -> Vec<u8> {
    bytes_of(PROTOCOL, Packet::Pingreq)
}

pub(crate) fn publish_bytes(topic: &str, qos: QoS, retain: bool) -> Vec<u8> {
    // The identifier may be the same every time: all of them are answered at once.
    publish_bytes_as(PacketId::FIRST, topic, qos, retain)
}

pub(crate) fn publish_bytes_as(packet_id: PacketId, topic: &str, qos: QoS, retain: bool) -> Vec<u8> {
    message_bytes_of(packet_id, topic, qos, retain, &[b'x'; PAYLOAD_BYTES])
}

/// What removes the retained message of a topic.
pub(crate) fn clear_bytes(topic: &str) -> Vec<u8> {
    message_bytes_of(PacketId::FIRST, topic, QoS::AtMostOnce, true, &[])
}

pub(crate) fn message_bytes_of(
    packet_id: PacketId,
    topic: &str,
    qos: QoS,
    retain: bool,
    payload: &[u8],
) -> Vec<u8> {
    let publish = Publish {
        dup: false,
        qos,
        retain,
        topic,
        packet_id: (qos > QoS::AtMostOnce).then_some(packet_id),
        properties: Properties::NONE,
        payload,
    };
    bytes_of(PROTOCOL, Packet::Publish(publish))
}

pub(crate) fn subscribe_bytes(filters: &[String], qos: QoS) -> Vec<u8> {
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), qos.into())).collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    bytes
}

pub(crate) fn unsubscribe_bytes(filters: &[String]) -> Vec<u8> {
    let filters: Vec<_> = filters.iter().map(String::as_str).collect();
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &filters);
    bytes
}

/// A topic of its own for every number, a hundred of them below each site.
pub(crate) fn topic(number: u64) -> String {
    format!("site/{}/device/{number}/temperature", number / 100)
}
