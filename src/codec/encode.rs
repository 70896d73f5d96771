//! Packets to bytes, in the form of 3.1.1. Everything is appended to a buffer of the caller's.
//!
//! The functions for single packets are what the broker sends, many times a second; [`encode`] writes any packet of
//! either direction.

use std::fmt;

use bytes::BufMut;

use super::packet::{Ack, Connect, PACKET_SIZE_MAX, Packet, PacketId, Protocol, Publish, QoS};
use super::primitive::{put_binary, put_remaining_length};
use super::reason::ReasonCode;

/// A PUBLISH without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishHead<'a> {
    /// Whether it is a repetition.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// The retain flag.
    pub retain: bool,
    /// At most 65,535 bytes.
    pub topic: &'a str,
    /// Present exactly when `qos` is above 0.
    pub packet_id: Option<PacketId>,
    /// Bytes of the payload that the caller appends.
    pub payload_len: usize,
}

/// Writes everything of a PUBLISH that stands before its payload.
///
/// # Panics
///
/// If the topic has more than 65,535 bytes.
#[inline]
pub fn publish_head(out: &mut Vec<u8>, head: &PublishHead<'_>) {
    let topic = head.topic.as_bytes();
    debug_assert_eq!(head.packet_id.is_some(), head.qos > QoS::AtMostOnce, "[MQTT-2.3.1-5]");
    let id_length = if head.packet_id.is_some() { 2 } else { 0 };
    out.reserve(7 + topic.len() + id_length + head.payload_len.min(512));
    out.put_u8(0x30 | u8::from(head.dup) << 3 | head.qos.number() << 1 | u8::from(head.retain));
    put_remaining_length(out, 2 + topic.len() + id_length + head.payload_len);
    put_binary(out, topic);
    if let Some(packet_id) = head.packet_id {
        out.put_u16(packet_id.number());
    }
}

/// Writes a CONNACK with a return code of 3.1.1.
pub fn connack(out: &mut Vec<u8>, session_present: bool, return_code: u8) {
    out.put_slice(&[0x20, 2, u8::from(session_present), return_code]);
}

/// Writes a PUBACK.
pub fn puback(out: &mut Vec<u8>, packet_id: PacketId) {
    ack(out, 0x40, packet_id);
}

/// Writes a PUBREC.
pub fn pubrec(out: &mut Vec<u8>, packet_id: PacketId) {
    ack(out, 0x50, packet_id);
}

/// Writes a PUBREL.
pub fn pubrel(out: &mut Vec<u8>, packet_id: PacketId) {
    ack(out, 0x62, packet_id);
}

/// Writes a PUBCOMP.
pub fn pubcomp(out: &mut Vec<u8>, packet_id: PacketId) {
    ack(out, 0x70, packet_id);
}

/// Writes a SUBACK [MQTT-3.8.4-4].
pub fn suback(out: &mut Vec<u8>, packet_id: PacketId, reasons: &[ReasonCode]) {
    out.put_u8(0x90);
    put_remaining_length(out, 2 + reasons.len());
    out.put_u16(packet_id.number());
    out.extend(reasons.iter().map(|reason| reason.suback_return_code()));
}

/// Writes an UNSUBACK.
pub fn unsuback(out: &mut Vec<u8>, packet_id: PacketId) {
    ack(out, 0xB0, packet_id);
}

/// Writes a PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.put_slice(&[0xD0, 0]);
}

/// Writes a SUBSCRIBE for these filters, of which there must be one, each with the QoS asked for.
///
/// # Panics
///
/// If a filter has more than 65,535 bytes.
pub fn subscribe(out: &mut Vec<u8>, packet_id: PacketId, requests: &[(&str, QoS)]) {
    out.put_u8(0x82);
    let length: usize = requests.iter().map(|(filter, _)| 3 + filter.len()).sum();
    put_remaining_length(out, 2 + length);
    out.put_u16(packet_id.number());
    for (filter, qos) in requests {
        put_binary(out, filter.as_bytes());
        out.put_u8(qos.number());
    }
}

/// Writes an UNSUBSCRIBE for these filters, of which there must be one.
///
/// # Panics
///
/// If a filter has more than 65,535 bytes.
pub fn unsubscribe(out: &mut Vec<u8>, packet_id: PacketId, filters: &[&str]) {
    out.put_u8(0xA2);
    let length: usize = filters.iter().map(|filter| 2 + filter.len()).sum();
    put_remaining_length(out, 2 + length);
    out.put_u16(packet_id.number());
    for filter in filters {
        put_binary(out, filter.as_bytes());
    }
}

#[inline]
fn ack(out: &mut Vec<u8>, first: u8, packet_id: PacketId) {
    let [high, low] = packet_id.number().to_be_bytes();
    out.put_slice(&[first, 2, high, low]);
}

/// Why a packet has no form on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// A text or a binary field of more than 65,535 bytes.
    FieldTooLong,
    /// A text with U+0000 [MQTT-1.5.3-2].
    NulCharacter,
    /// The packet would be larger than MQTT can express.
    PacketTooLarge,
    /// A CONNACK reason that 3.1.1 has no return code for.
    NoReturnCode,
    /// A packet identifier at QoS 0, or none above.
    PacketIdAgainstQoS,
    /// DUP at QoS 0 [MQTT-3.3.1-2].
    DupAtQoS0,
    /// A password without a user name.
    PasswordWithoutUsername,
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FieldTooLong => "a field of more than 65,535 bytes",
            Self::NulCharacter => "U+0000 in a text field",
            Self::PacketTooLarge => "a packet larger than MQTT can express",
            Self::NoReturnCode => "a reason that MQTT 3.1.1 has no return code for",
            Self::PacketIdAgainstQoS => "a packet identifier at QoS 0, or none above",
            Self::DupAtQoS0 => "DUP at QoS 0",
            Self::PasswordWithoutUsername => "a password without a user name",
        })
    }
}

impl std::error::Error for EncodeError {}

/// Writes any packet. What it writes can be decoded again.
///
/// # Errors
///
/// If the packet has no form on the wire; nothing is written then.
pub fn encode(packet: &Packet<'_>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    match packet {
        Packet::Connect(packet) => return connect(out, packet),
        Packet::Publish(packet) => return publish(out, packet),
        Packet::Connack(packet) => {
            let code = packet.reason.connect_return_code().ok_or(EncodeError::NoReturnCode)?;
            connack(out, packet.session_present, code);
        }
        Packet::Puback(Ack { packet_id, .. }) => puback(out, *packet_id),
        Packet::Pubrec(Ack { packet_id, .. }) => pubrec(out, *packet_id),
        Packet::Pubrel(Ack { packet_id, .. }) => pubrel(out, *packet_id),
        Packet::Pubcomp(Ack { packet_id, .. }) => pubcomp(out, *packet_id),
        Packet::Subscribe(packet) => with_list(out, 0x82, packet.packet_id, packet.requests.0),
        Packet::Suback(packet) => with_list(out, 0x90, packet.packet_id, packet.reasons),
        Packet::Unsubscribe(packet) => with_list(out, 0xA2, packet.packet_id, packet.filters.0),
        Packet::Unsuback(packet) => unsuback(out, packet.packet_id),
        Packet::Pingreq => out.put_slice(&[0xC0, 0]),
        Packet::Pingresp => pingresp(out),
        Packet::Disconnect(_) => out.put_slice(&[0xE0, 0]),
    }
    Ok(())
}

/// A packet identifier and a list that already has its form on the wire.
fn with_list(out: &mut Vec<u8>, first: u8, packet_id: PacketId, list: &[u8]) {
    out.put_u8(first);
    put_remaining_length(out, 2 + list.len());
    out.put_u16(packet_id.number());
    out.put_slice(list);
}

fn publish(out: &mut Vec<u8>, packet: &Publish<'_>) -> Result<(), EncodeError> {
    check_text(packet.topic)?;
    if packet.dup && packet.qos == QoS::AtMostOnce {
        return Err(EncodeError::DupAtQoS0);
    }
    if packet.packet_id.is_some() != (packet.qos > QoS::AtMostOnce) {
        return Err(EncodeError::PacketIdAgainstQoS);
    }
    if 9 + packet.topic.len() + packet.payload.len() > PACKET_SIZE_MAX as usize {
        return Err(EncodeError::PacketTooLarge);
    }
    let Publish { dup, qos, retain, topic, packet_id, payload } = *packet;
    publish_head(out, &PublishHead { dup, qos, retain, topic, packet_id, payload_len: payload.len() });
    out.put_slice(payload);
    Ok(())
}

fn connect(out: &mut Vec<u8>, packet: &Connect<'_>) -> Result<(), EncodeError> {
    let (name, level) = match packet.protocol {
        Protocol::Mqtt31 => (b"MQIsdp".as_slice(), 3),
        Protocol::Mqtt311 => (b"MQTT".as_slice(), 4),
    };
    if packet.password.is_some() && packet.username.is_none() {
        return Err(EncodeError::PasswordWithoutUsername);
    }
    for text in
        [Some(packet.client_id), packet.will.map(|will| will.topic), packet.username].into_iter().flatten()
    {
        check_text(text)?;
    }
    let will = packet.will.map(|will| [will.topic.as_bytes(), will.payload]);
    let fields = std::iter::once(packet.client_id.as_bytes())
        .chain(will.into_iter().flatten())
        .chain(packet.username.map(str::as_bytes))
        .chain(packet.password);
    let mut length = 2 + name.len() + 4;
    for field in fields.clone() {
        check_field(field)?;
        length += 2 + field.len();
    }
    out.put_u8(0x10);
    put_remaining_length(out, length);
    put_binary(out, name);
    out.put_u8(level);
    let will_flags = packet.will.map_or(0, |will| 0x04 | will.qos.number() << 3 | u8::from(will.retain) << 5);
    out.put_u8(
        u8::from(packet.clean_start) << 1
            | will_flags
            | u8::from(packet.password.is_some()) << 6
            | u8::from(packet.username.is_some()) << 7,
    );
    out.put_u16(packet.keep_alive_secs);
    for field in fields {
        put_binary(out, field);
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), EncodeError> {
    if text.contains('\0') {
        return Err(EncodeError::NulCharacter);
    }
    check_field(text.as_bytes())
}

fn check_field(field: &[u8]) -> Result<(), EncodeError> {
    if field.len() > usize::from(u16::MAX) { Err(EncodeError::FieldTooLong) } else { Ok(()) }
}
