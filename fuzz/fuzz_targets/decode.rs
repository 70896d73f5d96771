//! Any bytes into the decoder: it never panics, and what it accepts survives being encoded and decoded again.

#![no_main]

use broker::codec::packet::{Packet, Protocol};
use broker::codec::{decode, encode, frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for protocol in [Protocol::Mqtt31, Protocol::Mqtt311] {
        let Ok(frame::Split::Complete { frame, length }) = frame::split(bytes, protocol, 1 << 20) else {
            continue;
        };
        assert!(length <= bytes.len());
        let Ok(packet) = decode::decode(frame) else { continue };
        match packet {
            Packet::Subscribe(subscribe) => assert!(subscribe.requests.count() > 0),
            Packet::Unsubscribe(unsubscribe) => assert!(unsubscribe.filters.count() > 0),
            _ => {}
        }
        let mut again = Vec::new();
        encode::encode(&packet, &mut again).expect("what was decoded can be encoded");
        let Ok(frame::Split::Complete { frame, length }) = frame::split(&again, protocol, 1 << 20) else {
            panic!("what was encoded is a packet");
        };
        assert_eq!(length, again.len());
        assert_eq!(decode::decode(frame), Ok(packet));
    }
});
