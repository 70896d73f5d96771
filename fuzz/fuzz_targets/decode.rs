//! Any bytes into the decoder: it never panics, and what it accepts survives being encoded and decoded again.

#![no_main]

use broker::codec::packet::{Packet, Protocol};
use broker::codec::property::PropertyList;
use broker::codec::{Properties, decode, encode, frame};
use libfuzzer_sys::fuzz_target;

fn encoded(packet: &Packet<'_>, protocol: Protocol) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(packet, protocol, &mut bytes).expect("what was decoded can be encoded");
    bytes
}

/// Walks everything in a packet that is only read when it is asked for.
fn walk(packet: &Packet<'_>) {
    let properties = match packet {
        Packet::Connect(connect) => {
            check(connect.will.map_or(Properties::NONE, |will| will.properties));
            connect.properties
        }
        Packet::Connack(connack) => connack.properties,
        Packet::Publish(publish) => publish.properties,
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            ack.properties
        }
        Packet::Subscribe(subscribe) => {
            assert!(subscribe.requests.count() > 0);
            subscribe.properties
        }
        Packet::Suback(suback) => suback.properties,
        Packet::Unsubscribe(unsubscribe) => {
            assert!(unsubscribe.filters.count() > 0);
            unsubscribe.properties
        }
        Packet::Unsuback(unsuback) => unsuback.properties,
        Packet::Pingreq | Packet::Pingresp => Properties::NONE,
        Packet::Disconnect(disconnect) => disconnect.properties,
        Packet::Auth(auth) => auth.properties,
    };
    check(properties);
}

/// Properties have one form only, alone and together.
fn check(properties: Properties<'_>) {
    let list: PropertyList = properties.iter().collect();
    assert_eq!(list.as_properties(), properties);
    let mut walk = properties.iter();
    let mut length = 0;
    while let Some((bytes, property)) = walk.next_with_bytes() {
        let alone: PropertyList = [property].into_iter().collect();
        assert_eq!(alone.as_properties().as_bytes(), bytes);
        length += bytes.len();
    }
    assert_eq!(length, properties.as_bytes().len());
}

fuzz_target!(|bytes: &[u8]| {
    for protocol in [Protocol::Mqtt31, Protocol::Mqtt311, Protocol::Mqtt5] {
        let Ok(frame::Split::Complete { frame, length }) = frame::split(bytes, protocol, 1 << 20) else {
            continue;
        };
        assert!(length <= bytes.len());
        let claimed = frame.claimed_protocol();
        let Ok(packet) = decode::decode(frame, protocol) else { continue };
        if let Packet::Connect(connect) = packet {
            assert_eq!(claimed, Some(connect.protocol));
        } else {
            assert_eq!(claimed, None);
        }
        walk(&packet);
        let again = encoded(&packet, protocol);
        let Ok(frame::Split::Complete { frame, length }) = frame::split(&again, protocol, 1 << 20) else {
            panic!("what was encoded is a packet");
        };
        assert_eq!(length, again.len());
        assert_eq!(decode::decode(frame, protocol), Ok(packet));
        assert!(again.len() <= bytes.len(), "no form is shorter than ours");
        assert_eq!(encoded(&packet, protocol), again);
    }
});
