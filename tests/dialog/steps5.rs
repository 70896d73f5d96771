//! The steps of dialogs that speak MQTT 5.0.
//!
//! Where a step does not compare the properties of an answer, it still reads them: each must be one that this
//! server sends there, and stand once.

use std::fmt::Write;

use super::bytes::{parse, show, variable_integer};
use super::script::{Assigned, World, expect};

const CLEAN_START: u8 = 0x02;

/// What this server may say in a CONNACK that accepts.
const OF_CONNACK: &[u8] = &[0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x21, 0x22, 0x27];

/// What it may say when it refuses or ends a connection: reason string and server reference.
const OF_A_REFUSAL: &[u8] = &[0x1C, 0x1F];

/// Walks one step.
pub(super) fn run(
    world: &mut dyn World,
    assigned: &mut Assigned,
    actor: &str,
    action: &str,
    rest: &str,
) -> Result<(), String> {
    let (head, properties) = rest.split_once(" with ").unwrap_or((rest, ""));
    let takes_properties = matches!(
        action,
        "connect5" | "begin5" | "resume5" | "will5" | "publish5" | "retain5" | "gets5" | "gets5-retained"
    );
    let words: Vec<&str> = if takes_properties { head } else { rest }.split_whitespace().collect();
    match (action, words.as_slice()) {
        ("connect5", [id]) => connect(world, actor, id, CLEAN_START, properties, 0),
        ("begin5", [id]) => connect(world, actor, id, 0, properties, 0),
        ("resume5", [id]) => connect(world, actor, id, 0, properties, 1),
        ("will5", [id, topic, qos, payload]) => {
            let flags = CLEAN_START | 0x04 | qos.parse::<u8>().map_err(|_| "will5: which QoS?")? << 3;
            send(
                world,
                actor,
                &format!(
                    "10 ( s'MQTT' 05 {flags:02X} 00 00 ( ) s'{id}' ( {properties} ) s'{topic}' s'{payload}' )"
                ),
            )?;
            accepted(world, actor, 0).map(drop)
        }
        ("accepted", []) => accepted(world, actor, 0).map(drop),
        ("accepted", ["present"]) => accepted(world, actor, 1).map(drop),
        ("assigned", []) => {
            let client_id = assigned_client_id(&accepted(world, actor, 0)?)?;
            assigned.insert(actor.to_owned(), client_id);
            Ok(())
        }
        ("subscribe5", [filter, options]) => subscribe(world, actor, filter, options, ""),
        ("subscribe5", [filter, options, id]) => {
            let id: usize = id.parse().map_err(|_| "subscribe5: which identifier?")?;
            let mut bytes = Vec::new();
            variable_integer(&mut bytes, id);
            subscribe(world, actor, filter, options, &format!("0B {}", hexadecimal(&bytes)))
        }
        ("unsubscribe5", [filter]) => {
            send(world, actor, &format!("A2 ( 00 01 ( ) s'{filter}' )"))?;
            expect(world, actor, "B0 ( 00 01 ( ) 00 )")
        }
        ("publish5", [topic, qos, payload]) => publish(world, actor, topic, qos, payload, properties, 0),
        ("retain5", [topic, qos, payload]) => publish(world, actor, topic, qos, payload, properties, 1),
        ("clear5", [topic]) => publish(world, actor, topic, "0", "", "", 1),
        // At QoS 0 only: above it, identifiers matter and bytes are written out.
        ("gets5", [topic, payload]) => {
            expect(world, actor, &format!("30 ( s'{topic}' ( {properties} ) '{payload}' )"))
        }
        ("gets5-retained", [topic, payload]) => {
            expect(world, actor, &format!("31 ( s'{topic}' ( {properties} ) '{payload}' )"))
        }
        ("closed-with", [code]) => closed_with(world, actor, code),
        ("refused-with", [code]) => refused_with(world, actor, code),
        // A new connection for each, so the name is free again afterwards.
        ("fails5-with", [code, ..]) => {
            connect(world, actor, &format!("fails-{actor}"), CLEAN_START, "", 0)?;
            send(world, actor, after_the_first_word(rest))?;
            closed_with(world, actor, code)?;
            world.cut(actor);
            Ok(())
        }
        ("opens5-with", [code, ..]) => {
            send(world, actor, after_the_first_word(rest))?;
            refused_with(world, actor, code)?;
            world.cut(actor);
            Ok(())
        }
        ("disconnect5", _) => {
            send(world, actor, &format!("E0 ( {rest} )"))?;
            let closed = world.is_closed(actor);
            world.cut(actor);
            if closed { Ok(()) } else { Err("it is not closed without a word after DISCONNECT".to_owned()) }
        }
        _ => Err(format!("no such action: {action} {rest}")),
    }
}

fn send(world: &mut dyn World, actor: &str, notation: &str) -> Result<(), String> {
    world.send(actor, &parse(notation)?);
    Ok(())
}

fn connect(
    world: &mut dyn World,
    actor: &str,
    id: &str,
    flags: u8,
    properties: &str,
    present: u8,
) -> Result<(), String> {
    send(world, actor, &format!("10 ( s'MQTT' 05 {flags:02X} 00 00 ( {properties} ) s'{id}' )"))?;
    accepted(world, actor, present).map(drop)
}

fn subscribe(
    world: &mut dyn World,
    actor: &str,
    filter: &str,
    options: &str,
    properties: &str,
) -> Result<(), String> {
    let granted = byte(options)? & 0x03;
    send(world, actor, &format!("82 ( 00 01 ( {properties} ) s'{filter}' {options} )"))?;
    expect(world, actor, &format!("90 ( 00 01 ( ) {granted:02X} )"))
}

/// A whole exchange with packet identifier 7, with or without subscribers.
fn publish(
    world: &mut dyn World,
    actor: &str,
    topic: &str,
    qos: &str,
    payload: &str,
    properties: &str,
    retain: u8,
) -> Result<(), String> {
    let (first, id) = match qos {
        "0" => (0x30, ""),
        "1" => (0x32, "00 07"),
        "2" => (0x34, "00 07"),
        _ => return Err("publish at which QoS?".to_owned()),
    };
    let first = first | retain;
    send(world, actor, &format!("{first:02X} ( s'{topic}' {id} ( {properties} ) '{payload}' )"))?;
    if qos == "1" {
        taken(world, actor, 0x40)?;
    } else if qos == "2" {
        taken(world, actor, 0x50)?;
        send(world, actor, "62 02 00 07")?;
        expect(world, actor, "70 02 00 07")?;
    }
    Ok(())
}

/// A PUBACK or PUBREC that says success, or that nobody is subscribed.
fn taken(world: &mut dyn World, actor: &str, first: u8) -> Result<(), String> {
    match packet(world, actor)? {
        (received, body) if received == first && matches!(*body, [0, 7] | [0, 7, 0x10]) => Ok(()),
        other => Err(unexpected("an acknowledgement of 7 without an error", &other)),
    }
}

/// A CONNACK that accepts; returns its properties.
fn accepted(world: &mut dyn World, actor: &str, present: u8) -> Result<Vec<Property>, String> {
    let packet = packet(world, actor)?;
    match &packet {
        (0x20, body) if body.starts_with(&[present, 0]) => properties(&body[2..], OF_CONNACK),
        other => Err(unexpected(&format!("a CONNACK {present:02X} 00"), other)),
    }
}

fn refused_with(world: &mut dyn World, actor: &str, code: &str) -> Result<(), String> {
    let packet = packet(world, actor)?;
    match &packet {
        (0x20, body) if body.starts_with(&[0, byte(code)?]) => properties(&body[2..], OF_A_REFUSAL)?,
        other => return Err(unexpected(&format!("a CONNACK 00 {code}"), other)),
    };
    closed_behind(world, actor, "CONNACK")
}

fn closed_with(world: &mut dyn World, actor: &str, code: &str) -> Result<(), String> {
    let packet = packet(world, actor)?;
    match &packet {
        (0xE0, body) if body.starts_with(&[byte(code)?]) => match &body[1..] {
            [] => {}
            bytes => drop(properties(bytes, OF_A_REFUSAL)?),
        },
        other => return Err(unexpected(&format!("a DISCONNECT {code}"), other)),
    }
    closed_behind(world, actor, "DISCONNECT")
}

fn closed_behind(world: &mut dyn World, actor: &str, packet: &str) -> Result<(), String> {
    if world.is_closed(actor) { Ok(()) } else { Err(format!("it is not closed behind the {packet}")) }
}

/// The client identifier that the server chose: 23 letters and digits.
fn assigned_client_id(properties: &[Property]) -> Result<String, String> {
    let (_, value) =
        properties.iter().find(|(id, _)| *id == 0x12).ok_or("no assigned client identifier in it")?;
    match value.get(2..) {
        Some(text) if text.len() == 23 && text.iter().all(u8::is_ascii_alphanumeric) => {
            Ok(String::from_utf8_lossy(text).into_owned())
        }
        _ => Err(format!("the assigned client identifier is {}", show(value))),
    }
}

/// The next packet: its first byte, and what stands behind the remaining length.
fn packet(world: &mut dyn World, actor: &str) -> Result<(u8, Vec<u8>), String> {
    let mut next = || world.receive(actor, 1).first().copied().ok_or("no packet came".to_owned());
    let first = next()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = next()?;
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    Ok((first, world.receive(actor, length)))
}

fn unexpected(expected: &str, (first, body): &(u8, Vec<u8>)) -> String {
    format!("expected {expected}\n    received {first:02X} with {}", show(body))
}

/// An identifier and the bytes of its value.
type Property = (u8, Vec<u8>);

/// The properties that fill `bytes` behind their length. Each must be among `allowed`, and stand once.
fn properties(bytes: &[u8], allowed: &[u8]) -> Result<Vec<Property>, String> {
    let wrong = || format!("these are not its properties: {}", show(bytes));
    let (length, mut rest) = match *bytes {
        [length @ ..0x80, ref rest @ ..] => (usize::from(length), rest),
        [low, high @ 1..0x80, ref rest @ ..] => (usize::from(low & 0x7F) | usize::from(high) << 7, rest),
        _ => return Err(wrong()),
    };
    if length != rest.len() {
        return Err(wrong());
    }
    let mut found: Vec<Property> = Vec::new();
    while let [id, behind @ ..] = rest {
        let length = match (id, behind) {
            (0x13 | 0x21 | 0x22, _) => 2,
            (0x11 | 0x27, _) => 4,
            // The others that a server sends begin with the length of a text or of data.
            (_, [high, low, ..]) => 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return Err(wrong()),
        };
        let (value, behind) = behind.split_at_checked(length).ok_or_else(wrong)?;
        if !allowed.contains(id) || found.iter().any(|(other, _)| other == id) {
            return Err(format!("property {id:02X} should not be there: {}", show(bytes)));
        }
        found.push((*id, value.to_vec()));
        rest = behind;
    }
    Ok(found)
}

fn byte(text: &str) -> Result<u8, String> {
    u8::from_str_radix(text, 16).map_err(|_| format!("{text} is not a byte"))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X} ");
        text
    })
}

fn after_the_first_word(text: &str) -> &str {
    text.split_once(' ').map_or("", |(_, rest)| rest)
}

#[test]
fn properties_of_answers() {
    let read = |notation: &str| properties(&parse(notation).expect("bytes"), OF_A_REFUSAL);
    assert_eq!(read("( )"), Ok(vec![]));
    assert_eq!(read("( 1F s'why' )"), Ok(vec![(0x1F, b"\x00\x03why".to_vec())]));
    assert!(read(&format!("( 1F s'{}' )", "x".repeat(200))).is_ok());
    for wrong in ["", "05 1F 00 01", "( 1F 00 09 )", "( 1F )", "( 1F s'' 1F s'' )", "( 11 00 00 00 3C )"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
