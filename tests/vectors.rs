//! Bytes and what they must decode to, as data in `tests/vectors`; the notation is described in its `README.md`.
//!
//! Each case is also cut at every place near its ends, because bytes may arrive one by one: what is refused must be
//! refused by every beginning of it that is long enough, and what is not refused must be waited for.

use std::path::{Path, PathBuf};

use broker::codec::encode::EncodeError;
use broker::codec::frame::{Split, split};
use broker::codec::packet::{Connack, Connect, PACKET_SIZE_MAX, Publish, Will};
use broker::codec::{DecodeError, Packet, PacketId, Protocol, QoS, ReasonCode, decode, encode};

#[path = "dialog/bytes.rs"]
mod bytes;

/// Longer texts and payloads are shown by their length.
const SHOWN_MAX: usize = 64;

struct Case {
    place: String,
    protocol: Protocol,
    packet_size_max: u32,
    bytes: Vec<u8>,
    expected: String,
    is_own_encoding: bool,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the vectors are where they should be")
        .map(|entry| entry.expect("a folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    let cases: Vec<Case> = paths.iter().flat_map(|path| cases_of(path)).collect();
    assert!(cases.len() > 200, "the vectors are where they should be");
    cases
}

fn cases_of(path: &Path) -> Vec<Case> {
    let name = path.file_name().expect("a file").to_string_lossy();
    let text = std::fs::read_to_string(path).expect("a file of the project");
    let (mut protocol, mut packet_size_max) = (Protocol::Mqtt311, PACKET_SIZE_MAX);
    let mut cases = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = format!("{name}:{}", index + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        } else if let Some(version) = line.strip_prefix("protocol ") {
            protocol = match version {
                "3.1" => Protocol::Mqtt31,
                "3.1.1" => Protocol::Mqtt311,
                _ => panic!("{place}: no such protocol"),
            };
        } else if let Some(limit) = line.strip_prefix("packet-size-max ") {
            packet_size_max = limit.parse().unwrap_or_else(|error| panic!("{place}: {error}"));
        } else {
            let is_own_encoding = !line.contains(" ~> ");
            let arrow = if is_own_encoding { " -> " } else { " ~> " };
            let (bytes, expected) =
                line.split_once(arrow).unwrap_or_else(|| panic!("{place}: no arrow in {line:?}"));
            let bytes = bytes::parse(bytes).unwrap_or_else(|error| panic!("{place}: {error}"));
            let expected = expected.split(" [").next().unwrap_or_default().to_owned();
            cases.push(Case { place, protocol, packet_size_max, bytes, expected, is_own_encoding });
        }
    }
    cases
}

impl Case {
    fn split<'a>(&self, bytes: &'a [u8]) -> Result<Split<'a>, DecodeError> {
        split(bytes, self.protocol, self.packet_size_max)
    }

    /// What the bytes are, in the notation of the vectors.
    fn outcome(&self, bytes: &[u8]) -> String {
        match self.split(bytes) {
            Err(error) => format!("{error:?}"),
            Ok(Split::Partial { needed }) => format!("partial {needed}"),
            Ok(Split::Complete { frame, length }) if length == bytes.len() => match decode::decode(frame) {
                Err(error) => format!("{error:?}"),
                Ok(packet) => show(&packet),
            },
            Ok(Split::Complete { length, .. }) => format!("a packet of {length} bytes and more behind it"),
        }
    }
}

/// The packet in the notation of the vectors.
fn show(packet: &Packet<'_>) -> String {
    let mut shown = String::new();
    let out = &mut shown;
    match packet {
        Packet::Connect(connect) => {
            *out += &format!("CONNECT {}", connect.protocol);
            if connect.clean_start {
                *out += " clean";
            }
            *out += &format!(" keep-alive {} id {}", connect.keep_alive_secs, show_text(connect.client_id));
            if let Some(Will { topic, payload, qos, retain }) = connect.will {
                let retain = if retain { " retain" } else { "" };
                let (topic, payload) = (show_text(topic), show_binary(payload));
                *out += &format!(" will q{}{retain} {topic} {payload}", qos.number());
            }
            if let Some(username) = connect.username {
                *out += &format!(" user {}", show_text(username));
            }
            if let Some(password) = connect.password {
                *out += &format!(" password {}", show_binary(password));
            }
        }
        Packet::Connack(connack) => {
            let present = if connack.session_present { "present " } else { "" };
            *out += &format!("CONNACK {present}{:?}", connack.reason);
        }
        Packet::Publish(publish) => {
            *out += &format!("PUBLISH q{}", publish.qos.number());
            if publish.dup {
                *out += " dup";
            }
            if publish.retain {
                *out += " retain";
            }
            if let Some(packet_id) = publish.packet_id {
                *out += &format!(" id {packet_id}");
            }
            *out += &format!(" {} {}", show_text(publish.topic), show_binary(publish.payload));
        }
        Packet::Puback(ack) => *out += &format!("PUBACK {}", ack.packet_id),
        Packet::Pubrec(ack) => *out += &format!("PUBREC {}", ack.packet_id),
        Packet::Pubrel(ack) => *out += &format!("PUBREL {}", ack.packet_id),
        Packet::Pubcomp(ack) => *out += &format!("PUBCOMP {}", ack.packet_id),
        Packet::Subscribe(subscribe) => {
            let requests: Vec<String> = subscribe
                .requests
                .into_iter()
                .map(|request| format!("{} q{}", show_text(request.filter), request.qos.number()))
                .collect();
            *out += &format!("SUBSCRIBE {} {}", subscribe.packet_id, requests.join(", "));
        }
        Packet::Suback(suback) => {
            *out += &format!("SUBACK {}", suback.packet_id);
            for reason in suback.reasons {
                *out += &format!(" {reason:02X}");
            }
        }
        Packet::Unsubscribe(unsubscribe) => {
            let filters: Vec<String> = unsubscribe.filters.into_iter().map(show_text).collect();
            *out += &format!("UNSUBSCRIBE {} {}", unsubscribe.packet_id, filters.join(", "));
        }
        Packet::Unsuback(unsuback) => *out += &format!("UNSUBACK {}", unsuback.packet_id),
        Packet::Pingreq => *out += "PINGREQ",
        Packet::Pingresp => *out += "PINGRESP",
        Packet::Disconnect(_) => *out += "DISCONNECT",
    }
    shown
}

fn show_text(text: &str) -> String {
    if text.len() > SHOWN_MAX {
        format!("({} bytes)", text.len())
    } else {
        format!("\"{}\"", text.escape_default())
    }
}

fn show_binary(data: &[u8]) -> String {
    if data.len() > SHOWN_MAX {
        format!("({} bytes)", data.len())
    } else {
        format!("\"{}\"", data.escape_ascii())
    }
}

/// Fails with every message, so that one run shows all that is wrong.
fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn bytes_decode_to_what_is_expected() {
    let mut failures = Vec::new();
    for case in cases() {
        let outcome = case.outcome(&case.bytes);
        if outcome != case.expected {
            failures.push(format!("{}: expected {}, got {outcome}", case.place, case.expected));
        }
    }
    report(&failures);
}

#[test]
fn packets_encode_to_the_bytes_they_came_from() {
    let mut failures = Vec::new();
    for case in cases() {
        let Ok(Split::Complete { frame, .. }) = case.split(&case.bytes) else { continue };
        let Ok(packet) = decode::decode(frame) else { continue };
        let mut encoded = Vec::new();
        if let Err(error) = encode::encode(&packet, &mut encoded) {
            failures.push(format!("{}: cannot be encoded: {error}", case.place));
        } else if (encoded == case.bytes) != case.is_own_encoding {
            failures.push(format!("{}: encoded as {}", case.place, bytes::show(&encoded)));
        } else if case.outcome(&encoded) != case.expected {
            failures.push(format!("{}: decoded again as {}", case.place, case.outcome(&encoded)));
        }
    }
    report(&failures);
}

#[test]
fn every_beginning_waits_or_fails_alike() {
    const NEAR: usize = 80;
    let mut failures = Vec::new();
    for case in cases() {
        let length = case.bytes.len();
        let whole = case.split(&case.bytes);
        let mut refused = false;
        for cut in (0..length).filter(|cut| *cut < NEAR || *cut + NEAR > length) {
            let beginning = case.split(&case.bytes[..cut]);
            match (beginning, whole) {
                (Err(error), Err(expected)) if error == expected => refused = true,
                (Ok(Split::Partial { needed }), _) if needed > cut && !refused => match whole {
                    Ok(Split::Complete { length, .. }) if needed <= length => {}
                    Ok(Split::Partial { needed: later }) if needed <= later => {}
                    Err(_) if needed <= length.max(2) => {}
                    _ => failures.push(format!("{}: asks for {needed} after {cut} bytes", case.place)),
                },
                _ => failures.push(format!("{}: {beginning:?} after {cut} bytes", case.place)),
            }
        }
    }
    report(&failures);
}

#[test]
fn every_packet_and_every_error_occurs() {
    let known = [
        "CONNECT 3.1 ",
        "CONNECT 3.1.1 ",
        "CONNACK",
        "PUBLISH q0",
        "PUBLISH q1",
        "PUBLISH q2",
        "PUBACK",
        "PUBREC",
        "PUBREL",
        "PUBCOMP",
        "SUBSCRIBE",
        "SUBACK",
        "UNSUBSCRIBE",
        "UNSUBACK",
        "PINGREQ",
        "PINGRESP",
        "DISCONNECT",
        "partial",
        "ReservedPacketType",
        "ReservedFlags",
        "ReservedQoS",
        "DupAtQoS0",
        "RemainingLengthTooLong",
        "PacketTooLarge",
        "Truncated",
        "TrailingBytes",
        "InvalidUtf8",
        "NulCharacter",
        "PacketIdZero",
        "WrongProtocolName",
        "UnsupportedProtocolLevel",
        "ReservedConnectFlag",
        "WillFlags",
        "PasswordWithoutUsername",
        "NoTopicFilter",
        "SubscriptionOptions",
        "ConnackFlags",
        "UnknownReasonCode",
    ];
    let cases = cases();
    for name in known {
        assert!(cases.iter().any(|case| case.expected.starts_with(name)), "no case for {name}");
    }
}

#[test]
fn what_cannot_be_said_is_not_encoded() {
    let text = "a".repeat(65_536);
    let publish = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "a",
        packet_id: None,
        payload: b"",
    };
    let connect = Connect {
        protocol: Protocol::Mqtt311,
        clean_start: true,
        keep_alive_secs: 0,
        client_id: "a",
        will: None,
        username: None,
        password: None,
    };
    let will = Will { topic: "a", payload: b"", qos: QoS::AtMostOnce, retain: false };
    let connack = |reason| Packet::Connack(Connack { session_present: false, reason });
    let cases = [
        (Packet::Publish(Publish { topic: &text, ..publish }), EncodeError::FieldTooLong),
        (Packet::Publish(Publish { topic: "a\0", ..publish }), EncodeError::NulCharacter),
        (Packet::Publish(Publish { dup: true, ..publish }), EncodeError::DupAtQoS0),
        (Packet::Publish(Publish { qos: QoS::AtLeastOnce, ..publish }), EncodeError::PacketIdAgainstQoS),
        (
            Packet::Publish(Publish { packet_id: Some(PacketId::FIRST), ..publish }),
            EncodeError::PacketIdAgainstQoS,
        ),
        (Packet::Connect(Connect { client_id: &text, ..connect }), EncodeError::FieldTooLong),
        (Packet::Connect(Connect { client_id: "\0", ..connect }), EncodeError::NulCharacter),
        (Packet::Connect(Connect { username: Some(&text), ..connect }), EncodeError::FieldTooLong),
        (Packet::Connect(Connect { username: Some("\0"), ..connect }), EncodeError::NulCharacter),
        (Packet::Connect(Connect { password: Some(b"p"), ..connect }), EncodeError::PasswordWithoutUsername),
        (
            Packet::Connect(Connect { will: Some(Will { topic: &text, ..will }), ..connect }),
            EncodeError::FieldTooLong,
        ),
        (
            Packet::Connect(Connect { will: Some(Will { topic: "\0", ..will }), ..connect }),
            EncodeError::NulCharacter,
        ),
        (
            Packet::Connect(Connect { will: Some(Will { payload: text.as_bytes(), ..will }), ..connect }),
            EncodeError::FieldTooLong,
        ),
        (connack(ReasonCode::UnspecifiedError), EncodeError::NoReturnCode),
        (connack(ReasonCode::GrantedQoS1), EncodeError::NoReturnCode),
    ];
    for (packet, expected) in cases {
        let mut out = b"before".to_vec();
        assert_eq!(encode::encode(&packet, &mut out), Err(expected));
        assert_eq!(out, b"before", "nothing is written");
    }
}

#[test]
fn lists_are_encoded_as_vectors_have_them() {
    let mut out = Vec::new();
    let packet_id = PacketId::new(258).expect("not 0");
    encode::subscribe(&mut out, packet_id, &[("a", QoS::ExactlyOnce), ("b/+", QoS::AtMostOnce)]);
    assert_eq!(out, bytes::parse("82 ( 01 02 s'a' 02 s'b/+' 00 )").unwrap());
    out.clear();
    encode::unsubscribe(&mut out, packet_id, &["a", "b/+"]);
    assert_eq!(out, bytes::parse("A2 ( 01 02 s'a' s'b/+' )").unwrap());
    out.clear();
    // A failure of any kind is 80 in 3.1.1.
    let reasons = [ReasonCode::GrantedQoS2, ReasonCode::Success, ReasonCode::QuotaExceeded];
    encode::suback(&mut out, packet_id, &reasons);
    assert_eq!(out, bytes::parse("90 ( 01 02 02 00 80 )").unwrap());
}
