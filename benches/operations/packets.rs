//! Packets in the sizes that clients really send, decoded and encoded.
//!
//! Decoding has `frame::split` before it, because no packet comes without. Encoding goes into a buffer that has its size
//! already, as those of the broker have in the steady state.
//!
//! Deliberately not here: what is measured of it (see `codec` and `instructions`).

use std::hint::black_box;

use broker::codec::packet::{Ack, Connack, Connect, Disconnect, Publish, SubscriptionOptions, Will};
use broker::codec::property::PropertyList;
use broker::codec::{
    Packet, PacketId, Properties, Property, Protocol, QoS, ReasonCode, decode, encode, frame,
};

const PACKET_SIZE_MAX: u32 = 268_435_455;

/// A packet with its name and what it is read as.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    protocol: Protocol,
    pub(crate) bytes: Vec<u8>,
}

impl Sample {
    /// Decodes it.
    pub(crate) fn decoding(&self) -> impl FnMut() {
        // By reference: the broker does not move packets about either.
        || {
            black_box(&decoded(self.protocol, black_box(&self.bytes)));
        }
    }

    /// Encodes it again.
    pub(crate) fn encoding(&self) -> impl FnMut() {
        let Self { protocol, bytes, .. } = self;
        // The lists of some packets can only be made by decoding them.
        let packet = decoded(*protocol, bytes);
        let mut out = Vec::with_capacity(2 * bytes.len() + 1024);
        encode::encode(&packet, *protocol, &mut out).expect("it has a form on the wire");
        assert_eq!(out, *bytes, "what was decoded encodes to the same bytes");
        move || {
            out.clear();
            encode::encode(black_box(&packet), *protocol, &mut out).expect("it has a form on the wire");
            black_box(out.len());
        }
    }
}

fn decoded(protocol: Protocol, bytes: &[u8]) -> Packet<'_> {
    match frame::split(bytes, protocol, PACKET_SIZE_MAX) {
        Ok(frame::Split::Complete { frame, .. }) => decode::decode(frame, protocol).expect("a packet"),
        _ => panic!("a whole packet"),
    }
}

/// All packets.
pub(crate) fn samples() -> Vec<Sample> {
    let of_311 =
        samples_of_311().into_iter().map(|(name, bytes)| Sample { name, protocol: Protocol::Mqtt311, bytes });
    let of_5 =
        samples_of_5().into_iter().map(|(name, bytes)| Sample { name, protocol: Protocol::Mqtt5, bytes });
    of_311.chain(of_5).collect()
}

fn bytes_of(packet: Packet<'_>) -> Vec<u8> {
    bytes_in(Protocol::Mqtt311, packet)
}

fn bytes_in(protocol: Protocol, packet: Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(&packet, protocol, &mut bytes).expect("it has a form on the wire");
    bytes
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

fn message(qos: QoS, payload: &[u8]) -> Publish<'_> {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "site/17/device/4711/temperature",
        packet_id: (qos > QoS::AtMostOnce).then_some(PacketId::FIRST),
        properties: Properties::NONE,
        payload,
    }
}

fn publish(qos: QoS, payload: &[u8]) -> Vec<u8> {
    bytes_of(Packet::Publish(message(qos, payload)))
}

fn subscribe(out: &mut Vec<u8>, requests: &[(&str, SubscriptionOptions)]) {
    encode::subscribe(out, Protocol::Mqtt311, PacketId::FIRST, Properties::NONE, requests);
}

/// One packet of each type, in the sizes that clients really send.
fn samples_of_311() -> Vec<(&'static str, Vec<u8>)> {
    let connect = Connect {
        protocol: Protocol::Mqtt311,
        clean_start: true,
        keep_alive_secs: 60,
        properties: Properties::NONE,
        client_id: "device-4711",
        will: None,
        username: None,
        password: None,
    };
    let will = Will {
        topic: "site/17/gone",
        payload: b"4711",
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: Properties::NONE,
    };
    let full = Connect {
        will: Some(will),
        username: Some("somebody"),
        password: Some(b"a secret of theirs"),
        ..connect
    };
    let ack = Ack::success(PacketId::FIRST);
    let connack =
        Connack { session_present: false, reason: ReasonCode::Success, properties: Properties::NONE };
    let filters: Vec<String> = (0..8).map(|number| format!("site/{number}/+/temperature/#")).collect();
    let requests: Vec<(&str, SubscriptionOptions)> =
        filters.iter().map(|filter| (filter.as_str(), QoS::AtLeastOnce.into())).collect();
    let names: Vec<&str> = filters.iter().map(String::as_str).collect();
    let granted = [ReasonCode::GrantedQoS1; 8];
    vec![
        ("CONNECT", bytes_of(Packet::Connect(connect))),
        ("CONNECT with everything", bytes_of(Packet::Connect(full))),
        ("CONNACK", bytes_of(Packet::Connack(connack))),
        ("PUBLISH QoS 0, 64 bytes", publish(QoS::AtMostOnce, &[b'x'; 64])),
        ("PUBLISH QoS 1, 64 bytes", publish(QoS::AtLeastOnce, &[b'x'; 64])),
        ("PUBLISH QoS 2, 4096 bytes", publish(QoS::ExactlyOnce, &[b'x'; 4096])),
        ("PUBACK", bytes_of(Packet::Puback(ack))),
        ("PUBREC", bytes_of(Packet::Pubrec(ack))),
        ("PUBREL", bytes_of(Packet::Pubrel(ack))),
        ("PUBCOMP", bytes_of(Packet::Pubcomp(ack))),
        ("SUBSCRIBE 1 filter", written(|out| subscribe(out, &requests[..1]))),
        ("SUBSCRIBE 8 filters", written(|out| subscribe(out, &requests))),
        (
            "SUBACK 8 filters",
            written(|out| encode::suback(out, Protocol::Mqtt311, PacketId::FIRST, &granted)),
        ),
        (
            "UNSUBSCRIBE 8 filters",
            written(|out| {
                encode::unsubscribe(out, Protocol::Mqtt311, PacketId::FIRST, Properties::NONE, &names);
            }),
        ),
        ("UNSUBACK", written(|out| encode::unsuback(out, Protocol::Mqtt311, PacketId::FIRST, &[]))),
        ("PINGREQ", bytes_of(Packet::Pingreq)),
        ("PINGRESP", bytes_of(Packet::Pingresp)),
        ("DISCONNECT", bytes_of(Packet::Disconnect(Disconnect::NORMAL))),
    ]
}

/// What 5.0 adds to the packets that are most frequent, and to CONNECT.
fn samples_of_5() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |packet| bytes_in(Protocol::Mqtt5, packet);
    let offer = PropertyList::from_iter([
        Property::SessionExpirySecs(3_600),
        Property::ReceiveMaximum(20),
        Property::TopicAliasMaximum(10),
    ]);
    let connect = Connect {
        protocol: Protocol::Mqtt5,
        clean_start: true,
        keep_alive_secs: 60,
        properties: offer.as_properties(),
        client_id: "device-4711",
        will: None,
        username: None,
        password: None,
    };
    let alias = PropertyList::from_iter([Property::TopicAlias(3)]);
    let three = PropertyList::from_iter([
        Property::MessageExpirySecs(60),
        Property::ContentType("text/plain"),
        Property::UserProperty("unit", "kelvin"),
    ]);
    let plain = message(QoS::AtLeastOnce, &[b'x'; 64]);
    let short = Publish { topic: "", properties: alias.as_properties(), ..plain };
    let rich = Publish { properties: three.as_properties(), ..plain };
    let rich_at_qos_0 =
        Publish { properties: three.as_properties(), ..message(QoS::AtMostOnce, &[b'x'; 64]) };
    let nobody = Ack { reason: ReasonCode::NoMatchingSubscribers, ..Ack::success(PacketId::FIRST) };
    vec![
        ("5.0 CONNECT with 3 properties", bytes(Packet::Connect(connect))),
        ("5.0 PUBLISH without properties", bytes(Packet::Publish(plain))),
        ("5.0 PUBLISH with an alias for its topic", bytes(Packet::Publish(short))),
        ("5.0 PUBLISH with 3 properties", bytes(Packet::Publish(rich))),
        ("5.0 PUBLISH QoS 0 with 3 properties", bytes(Packet::Publish(rich_at_qos_0))),
        ("5.0 PUBACK with a reason", bytes(Packet::Puback(nobody))),
    ]
}
