//! Bytes and what they must decode to, as data in `tests/vectors`; the notation is described in its `README.md`.
//!
//! Each case is also cut at every place near its ends, because bytes may arrive one by one: what is refused must be
//! refused by every beginning of it that is long enough, and what is not refused must be waited for.

use std::path::{Path, PathBuf};

use broker::codec::encode::EncodeError;
use broker::codec::frame::{Split, split};
use broker::codec::packet::{
    Ack, Auth, Connack, Connect, Disconnect, PACKET_SIZE_MAX, Publish, RetainHandling, SubscriptionOptions,
    Will,
};
use broker::codec::property::PropertyList;
use broker::codec::{
    DecodeError, Packet, PacketId, Properties, Property, Protocol, QoS, ReasonCode, decode, encode,
};

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
                "5.0" => Protocol::Mqtt5,
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
            Ok(Split::Complete { frame, length }) if length == bytes.len() => {
                match decode::decode(frame, self.protocol) {
                    Err(error) => format!("{error:?}"),
                    Ok(packet) => show(&packet),
                }
            }
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
            *out += &format!(" keep-alive {}", connect.keep_alive_secs);
            *out += &show_properties(connect.properties);
            *out += &format!(" id {}", show_text(connect.client_id));
            if let Some(Will { topic, payload, qos, retain, properties }) = connect.will {
                let retain = if retain { " retain" } else { "" };
                let properties = show_properties(properties);
                let (topic, payload) = (show_text(topic), show_binary(payload));
                *out += &format!(" will q{}{retain}{properties} {topic} {payload}", qos.number());
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
            *out += &show_properties(connack.properties);
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
            *out += &format!(" {}", show_text(publish.topic));
            *out += &show_properties(publish.properties);
            *out += &format!(" {}", show_binary(publish.payload));
        }
        Packet::Puback(ack) => *out += &show_ack("PUBACK", ack),
        Packet::Pubrec(ack) => *out += &show_ack("PUBREC", ack),
        Packet::Pubrel(ack) => *out += &show_ack("PUBREL", ack),
        Packet::Pubcomp(ack) => *out += &show_ack("PUBCOMP", ack),
        Packet::Subscribe(subscribe) => {
            let requests: Vec<String> = subscribe
                .requests
                .into_iter()
                .map(|request| format!("{} {}", show_text(request.filter), show_options(request.options)))
                .collect();
            *out += &format!("SUBSCRIBE {}", subscribe.packet_id);
            *out += &show_properties(subscribe.properties);
            *out += &format!(" {}", requests.join(", "));
        }
        Packet::Suback(suback) => {
            *out += &format!("SUBACK {}", suback.packet_id);
            *out += &show_properties(suback.properties);
            *out += &show_reasons(suback.reasons);
        }
        Packet::Unsubscribe(unsubscribe) => {
            let filters: Vec<String> = unsubscribe.filters.into_iter().map(show_text).collect();
            *out += &format!("UNSUBSCRIBE {}", unsubscribe.packet_id);
            *out += &show_properties(unsubscribe.properties);
            *out += &format!(" {}", filters.join(", "));
        }
        Packet::Unsuback(unsuback) => {
            *out += &format!("UNSUBACK {}", unsuback.packet_id);
            *out += &show_properties(unsuback.properties);
            *out += &show_reasons(unsuback.reasons);
        }
        Packet::Pingreq => *out += "PINGREQ",
        Packet::Pingresp => *out += "PINGRESP",
        Packet::Disconnect(Disconnect { reason, properties }) => {
            *out += &format!("DISCONNECT{}", show_outcome(*reason, *properties));
        }
        Packet::Auth(Auth { reason, properties }) => {
            *out += &format!("AUTH{}", show_outcome(*reason, *properties));
        }
    }
    shown
}

fn show_ack(name: &str, ack: &Ack<'_>) -> String {
    format!("{name} {}{}", ack.packet_id, show_outcome(ack.reason, ack.properties))
}

/// A reason that is not success, and properties.
fn show_outcome(reason: ReasonCode, properties: Properties<'_>) -> String {
    let reason = if reason == ReasonCode::Success { String::new() } else { format!(" {reason:?}") };
    reason + &show_properties(properties)
}

fn show_options(options: SubscriptionOptions) -> String {
    let no_local = if options.no_local { " no-local" } else { "" };
    let as_published = if options.retain_as_published { " as-published" } else { "" };
    let retained = match options.retain_handling {
        RetainHandling::Send => "",
        RetainHandling::SendIfNew => " if-new",
        RetainHandling::DoNotSend => " no-retained",
    };
    format!("q{}{no_local}{as_published}{retained}", options.qos.number())
}

fn show_reasons(reasons: &[u8]) -> String {
    reasons.iter().map(|reason| format!(" {reason:02X}")).collect()
}

fn show_properties(properties: Properties<'_>) -> String {
    if properties.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = properties.iter().map(show_property).collect();
    format!(" {{{}}}", shown.join(", "))
}

fn show_property(property: Property<'_>) -> String {
    match property {
        Property::ContentType(text) => format!("ContentType({})", show_text(text)),
        Property::CorrelationData(data) => format!("CorrelationData({})", show_binary(data)),
        Property::AuthenticationData(data) => format!("AuthenticationData({})", show_binary(data)),
        Property::UserProperty(name, value) => {
            format!("UserProperty({}, {})", show_text(name), show_text(value))
        }
        _ => format!("{property:?}"),
    }
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
        let Ok(packet) = decode::decode(frame, case.protocol) else { continue };
        let mut encoded = Vec::new();
        if let Err(error) = encode::encode(&packet, case.protocol, &mut encoded) {
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
        "CONNECT 5.0 ",
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
        "AUTH",
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
        "SubscriptionOptionValue",
        "OverlongInteger",
        "UnknownProperty",
        "MisplacedProperty",
        "RepeatedProperty",
        "PropertyValue",
        "TopicAliasZero",
        "TooManyProperties",
        "ConnackFlags",
        "UnknownReasonCode",
    ];
    let cases = cases();
    for name in known {
        assert!(cases.iter().any(|case| case.expected.starts_with(name)), "no case for {name}");
    }
    for (_, template) in PLACES {
        let first = &template[..2];
        let is_with =
            |case: &Case| case.expected.contains('{') && bytes::show(&case.bytes).starts_with(first);
        assert!(cases.iter().any(is_with), "no case for {template} with a property");
    }
}

/// Packets of 5.0 with a gap for properties, by the names that [`PROPERTIES`] has for them.
const PLACES: [(&str, &str); 14] = [
    ("CONNECT", "10 ( s'MQTT' 05 02 00 3C ( ... ) s'a' )"),
    ("will", "10 ( s'MQTT' 05 06 00 3C 00 s'a' ( ... ) s'w' s'' )"),
    ("CONNACK", "20 ( 00 00 ( ... ) )"),
    ("PUBLISH", "30 ( s'a' ( ... ) 'x' )"),
    ("PUBACK", "40 ( 00 01 00 ( ... ) )"),
    ("PUBREC", "50 ( 00 01 00 ( ... ) )"),
    ("PUBREL", "62 ( 00 01 00 ( ... ) )"),
    ("PUBCOMP", "70 ( 00 01 00 ( ... ) )"),
    ("SUBSCRIBE", "82 ( 00 01 ( ... ) s'a' 00 )"),
    ("SUBACK", "90 ( 00 01 ( ... ) 00 )"),
    ("UNSUBSCRIBE", "A2 ( 00 01 ( ... ) s'a' )"),
    ("UNSUBACK", "B0 ( 00 01 ( ... ) 00 )"),
    ("DISCONNECT", "E0 ( 00 ( ... ) )"),
    ("AUTH", "F0 ( 18 ( ... ) )"),
];

const ACKS: &str = "PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK";

/// Every property with a value, and where it may stand: table 2-4 of the standard.
fn properties() -> [(u8, &'static str, String); 27] {
    let everywhere: Vec<&str> = PLACES.iter().map(|(place, _)| *place).collect();
    [
        (0x01, "01", "PUBLISH will".into()),
        (0x02, "00 00 00 01", "PUBLISH will".into()),
        (0x03, "s'x'", "PUBLISH will".into()),
        (0x08, "s'x'", "PUBLISH will".into()),
        (0x09, "s'x'", "PUBLISH will".into()),
        (0x0B, "FF FF FF 7F", "PUBLISH SUBSCRIBE".into()),
        (0x11, "00 00 00 01", "CONNECT CONNACK DISCONNECT".into()),
        (0x12, "s'x'", "CONNACK".into()),
        (0x13, "00 01", "CONNACK".into()),
        (0x15, "s'x'", "CONNECT CONNACK AUTH".into()),
        (0x16, "s'x'", "CONNECT CONNACK AUTH".into()),
        (0x17, "01", "CONNECT".into()),
        (0x18, "00 00 00 01", "will".into()),
        (0x19, "01", "CONNECT".into()),
        (0x1A, "s'x'", "CONNACK".into()),
        (0x1C, "s'x'", "CONNACK DISCONNECT".into()),
        (0x1F, "s'x'", format!("CONNACK {ACKS} DISCONNECT AUTH")),
        (0x21, "00 01", "CONNECT CONNACK".into()),
        (0x22, "00 01", "CONNECT CONNACK".into()),
        (0x23, "00 01", "PUBLISH".into()),
        (0x24, "01", "CONNACK".into()),
        (0x25, "01", "CONNACK".into()),
        (0x26, "s'n' s'v'", everywhere.join(" ")),
        (0x27, "00 00 00 01", "CONNECT CONNACK".into()),
        (0x28, "01", "CONNACK".into()),
        (0x29, "01", "CONNACK".into()),
        (0x2A, "01", "CONNACK".into()),
    ]
}

/// Fills the gap of a packet of 5.0. If that can be decoded, it must encode to the same bytes.
fn filled(template: &str, filling: &str) -> Result<(), DecodeError> {
    let bytes = bytes::parse(&template.replace("...", filling)).expect("a template");
    let Ok(Split::Complete { frame, .. }) = split(&bytes, Protocol::Mqtt5, PACKET_SIZE_MAX) else {
        panic!("{template} is a whole packet");
    };
    let packet = decode::decode(frame, Protocol::Mqtt5)?;
    let mut encoded = Vec::new();
    encode::encode(&packet, Protocol::Mqtt5, &mut encoded).expect("what was decoded can be encoded");
    // With nothing but success, some packets leave it out.
    assert!(encoded == bytes || encoded.len() < bytes.len(), "{template} with {filling}");
    Ok(())
}

#[test]
fn every_property_stands_where_the_standard_says_and_once() {
    // [MQTT5-2.2.2-1] [MQTT5-4.13.1-1]
    let properties = properties();
    for (place, template) in PLACES {
        for id in 0..=u8::MAX {
            let found = properties.iter().find(|(known, ..)| *known == id);
            let Some((_, value, places)) = found else {
                assert_eq!(filled(template, &format!("{id:02X} 00")), Err(DecodeError::UnknownProperty(id)));
                continue;
            };
            let property = format!("{id:02X} {value}");
            if !places.split(' ').any(|allowed| allowed == place) {
                assert_eq!(filled(template, &property), Err(DecodeError::MisplacedProperty(id)), "{place}");
                continue;
            }
            assert_eq!(filled(template, &property), Ok(()), "{place} with {property}");
            let may_repeat = id == 0x26 || (id == 0x0B && place == "PUBLISH");
            let twice = if may_repeat { Ok(()) } else { Err(DecodeError::RepeatedProperty(id)) };
            assert_eq!(filled(template, &format!("{property} {property}")), twice, "{place}");
            let bytes = bytes::parse(&property).expect("a property");
            for cut in 1..bytes.len() {
                let beginning: String = bytes[..cut].iter().map(|byte| format!("{byte:02X}")).collect();
                assert_eq!(filled(template, &beginning), Err(DecodeError::Truncated), "{beginning}");
            }
        }
    }
}

#[test]
fn every_reason_code_belongs_to_the_packets_that_the_standard_says() {
    // [MQTT5-3.2.2-8] [MQTT5-3.4.2-1] [MQTT5-3.5.2-1] [MQTT5-3.6.2-1] [MQTT5-3.7.2-1] [MQTT5-3.9.3-2] [MQTT5-3.11.3-2]
    // [MQTT5-3.14.2-1] [MQTT5-3.15.2-1]
    let tables = [
        ("20 ( 00 ... 00 )", "00 80 81 82 83 84 85 86 87 88 89 8A 8C 90 95 97 99 9A 9B 9C 9D 9F"),
        ("40 ( 00 01 ... )", "00 10 80 83 87 90 91 97 99"),
        ("50 ( 00 01 ... )", "00 10 80 83 87 90 91 97 99"),
        ("62 ( 00 01 ... )", "00 92"),
        ("70 ( 00 01 ... )", "00 92"),
        ("90 ( 00 01 00 ... )", "00 01 02 80 83 87 8F 91 97 9E A1 A2"),
        ("B0 ( 00 01 00 ... )", "00 11 80 83 87 8F 91"),
        (
            "E0 ( ... )",
            "00 04 80 81 82 83 87 89 8B 8D 8E 8F 90 93 94 95 96 97 98 99 9A 9B 9C 9D 9E 9F A0 A1 A2",
        ),
        ("F0 ( ... )", "00 18 19"),
    ];
    for (template, codes) in tables {
        for code in 0..=u8::MAX {
            let text = format!("{code:02X}");
            let is_known = codes.split(' ').any(|known| known == text);
            let expected = if is_known { Ok(()) } else { Err(DecodeError::UnknownReasonCode(code)) };
            assert_eq!(filled(template, &text), expected, "{template} with {text}");
        }
    }
}

#[test]
fn every_byte_of_options_is_judged() {
    // [MQTT5-3.8.3-5]
    for byte in 0..=u8::MAX {
        let expected = if byte & 0xC0 != 0 {
            Err(DecodeError::SubscriptionOptions)
        } else if byte & 0x03 == 0x03 || byte & 0x30 == 0x30 {
            Err(DecodeError::SubscriptionOptionValue)
        } else {
            Ok(())
        };
        let text = format!("{byte:02X}");
        assert_eq!(filled("82 ( 00 01 00 s'a' 02 s'b' ... )", &text), expected, "{text}");
    }
}

#[test]
fn a_connect_says_what_it_speaks_even_if_nothing_else_is_right() {
    // [MQTT5-3.1.2-2]
    let claims = [
        ("10 ( s'MQTT' 05 02 00 3C 00 s'a' )", Some(Protocol::Mqtt5)),
        ("10 ( s'MQTT' 05 )", Some(Protocol::Mqtt5)),
        ("10 ( s'MQTT' 05 FF*100 )", Some(Protocol::Mqtt5)),
        ("10 ( s'MQTT' 06 )", Some(Protocol::Mqtt5)),
        ("10 ( s'MQTT' 7F )", Some(Protocol::Mqtt5)),
        ("10 ( s'MQTT' 04 03 )", Some(Protocol::Mqtt311)),
        ("10 ( s'MQIsdp' 03 )", Some(Protocol::Mqtt31)),
        ("10 ( s'MQTT' 03 )", None),
        ("10 ( s'MQTT' 00 )", None),
        ("10 ( s'MQTT' 84 )", None),
        ("10 ( s'MQTT' 85 )", None),
        ("10 ( s'MQTT' FF )", None),
        ("10 ( s'MQIsdp' 05 )", None),
        ("10 ( s'MQTX' 05 )", None),
        ("10 ( 00 05 'MQTT' 05 )", None),
        ("10 ( s'MQTT' )", None),
        ("10 00", None),
        ("30 ( s'MQTT' 05 )", None),
    ];
    for (text, expected) in claims {
        let bytes = bytes::parse(text).expect("a packet");
        let Ok(Split::Complete { frame, .. }) = split(&bytes, Protocol::default(), PACKET_SIZE_MAX) else {
            panic!("{text} is a whole packet");
        };
        assert_eq!(frame.claimed_protocol(), expected, "{text}");
    }
}

#[test]
fn every_error_has_its_code() {
    // [MQTT5-4.13.1-1]
    let codes = [
        (DecodeError::UnsupportedProtocolLevel(6), ReasonCode::UnsupportedProtocolVersion),
        (DecodeError::PacketTooLarge, ReasonCode::PacketTooLarge),
        (DecodeError::TopicAliasZero, ReasonCode::TopicAliasInvalid),
        (DecodeError::TooManyProperties, ReasonCode::QuotaExceeded),
        (DecodeError::PacketIdZero, ReasonCode::ProtocolError),
        (DecodeError::NoTopicFilter, ReasonCode::ProtocolError),
        (DecodeError::SubscriptionOptionValue, ReasonCode::ProtocolError),
        (DecodeError::RepeatedProperty(1), ReasonCode::ProtocolError),
        (DecodeError::PropertyValue(1), ReasonCode::ProtocolError),
        (DecodeError::UnknownReasonCode(1), ReasonCode::ProtocolError),
        (DecodeError::UnknownProperty(0), ReasonCode::MalformedPacket),
        (DecodeError::MisplacedProperty(1), ReasonCode::MalformedPacket),
        (DecodeError::SubscriptionOptions, ReasonCode::MalformedPacket),
        (DecodeError::OverlongInteger, ReasonCode::MalformedPacket),
        (DecodeError::RemainingLengthTooLong, ReasonCode::MalformedPacket),
        (DecodeError::ReservedFlags, ReasonCode::MalformedPacket),
        (DecodeError::ReservedQoS, ReasonCode::MalformedPacket),
        (DecodeError::DupAtQoS0, ReasonCode::MalformedPacket),
        (DecodeError::Truncated, ReasonCode::MalformedPacket),
        (DecodeError::TrailingBytes, ReasonCode::MalformedPacket),
        (DecodeError::InvalidUtf8, ReasonCode::MalformedPacket),
        (DecodeError::NulCharacter, ReasonCode::MalformedPacket),
    ];
    for (error, code) in codes {
        assert_eq!(error.reason(), code, "{error}");
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
        properties: Properties::NONE,
        payload: b"",
    };
    let connect = Connect {
        protocol: Protocol::Mqtt311,
        clean_start: true,
        keep_alive_secs: 0,
        properties: Properties::NONE,
        client_id: "a",
        will: None,
        username: None,
        password: None,
    };
    let will =
        Will { topic: "a", payload: b"", qos: QoS::AtMostOnce, retain: false, properties: Properties::NONE };
    let connack =
        |reason| Packet::Connack(Connack { session_present: false, reason, properties: Properties::NONE });
    let list: PropertyList = [Property::UserProperty("a", "b")].into_iter().collect();
    let properties = list.as_properties();
    let ack = Ack::success(PacketId::FIRST);
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
        (Packet::Connect(Connect { properties, ..connect }), EncodeError::NotOfThisVersion),
        (
            Packet::Connect(Connect { will: Some(Will { properties, ..will }), ..connect }),
            EncodeError::NotOfThisVersion,
        ),
        (Packet::Publish(Publish { properties, ..publish }), EncodeError::NotOfThisVersion),
        (Packet::Puback(Ack { properties, ..ack }), EncodeError::NotOfThisVersion),
        (Packet::Pubrec(Ack { reason: ReasonCode::NotAuthorized, ..ack }), EncodeError::NotOfThisVersion),
        (
            Packet::Disconnect(Disconnect { reason: ReasonCode::DisconnectWithWill, ..Disconnect::NORMAL }),
            EncodeError::NotOfThisVersion,
        ),
        (
            Packet::Auth(Auth { reason: ReasonCode::Success, properties: Properties::NONE }),
            EncodeError::NotOfThisVersion,
        ),
    ];
    for (packet, expected) in cases {
        let mut out = b"before".to_vec();
        assert_eq!(encode::encode(&packet, Protocol::Mqtt311, &mut out), Err(expected));
        assert_eq!(out, b"before", "nothing is written");
    }
}

#[test]
fn lists_are_encoded_as_vectors_have_them() {
    let mut out = Vec::new();
    let mut check = |write: &dyn Fn(&mut Vec<u8>), expected: &str| {
        out.clear();
        write(&mut out);
        assert_eq!(out, bytes::parse(expected).unwrap(), "{expected}");
    };
    let packet_id = PacketId::new(258).expect("not 0");
    let list: PropertyList = [Property::UserProperty("n", "v")].into_iter().collect();
    let properties = list.as_properties();
    let (before, now) = (Protocol::Mqtt311, Protocol::Mqtt5);

    let requests = [("a", QoS::ExactlyOnce.into()), ("b/+", QoS::AtMostOnce.into())];
    let subscribe = |protocol, properties, out: &mut Vec<u8>| {
        encode::subscribe(out, protocol, packet_id, properties, &requests)
    };
    check(&|out| subscribe(before, Properties::NONE, out), "82 ( 01 02 s'a' 02 s'b/+' 00 )");
    check(&|out| subscribe(now, Properties::NONE, out), "82 ( 01 02 00 s'a' 02 s'b/+' 00 )");
    check(&|out| subscribe(now, properties, out), "82 ( 01 02 ( 26 s'n' s'v' ) s'a' 02 s'b/+' 00 )");

    let filters = ["a", "b/+"];
    let unsubscribe = |protocol, properties, out: &mut Vec<u8>| {
        encode::unsubscribe(out, protocol, packet_id, properties, &filters)
    };
    check(&|out| unsubscribe(before, Properties::NONE, out), "A2 ( 01 02 s'a' s'b/+' )");
    check(&|out| unsubscribe(now, Properties::NONE, out), "A2 ( 01 02 00 s'a' s'b/+' )");
    check(&|out| unsubscribe(now, properties, out), "A2 ( 01 02 ( 26 s'n' s'v' ) s'a' s'b/+' )");

    // A failure of any kind is 80 in 3.1.1.
    let reasons = [ReasonCode::GrantedQoS2, ReasonCode::Success, ReasonCode::QuotaExceeded];
    check(&|out| encode::suback(out, before, packet_id, &reasons), "90 ( 01 02 02 00 80 )");
    check(&|out| encode::suback(out, now, packet_id, &reasons), "90 ( 01 02 00 02 00 97 )");
    let reasons = [ReasonCode::Success, ReasonCode::NoSubscriptionExisted];
    check(&|out| encode::unsuback(out, before, packet_id, &reasons), "B0 ( 01 02 )");
    check(&|out| encode::unsuback(out, now, packet_id, &reasons), "B0 ( 01 02 00 00 11 )");
}
