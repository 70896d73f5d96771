//! Packets to bytes. Everything is appended to a buffer of the caller's.
//!
//! The functions for single packets are what the broker sends, many times a second; [`encode`] writes any packet of
//! either direction.

use std::fmt;

use bytes::BufMut;

use super::packet::{
    Ack, Auth, Connack, Connect, Disconnect, PACKET_SIZE_MAX, Packet, PacketId, Protocol, Publish, QoS,
    SubscriptionOptions, Will,
};
use super::primitive::{
    properties_length, put_binary, put_properties, put_variable_integer, variable_integer_length,
};
use super::property::{self, Properties, Property};
use super::reason::ReasonCode;

/// A PUBLISH without its payload, as a server sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishHead<'a> {
    /// Whether it is a repetition.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// The retain flag.
    pub retain: bool,
    /// UTF-8, at most 65,535 bytes; empty if a topic alias stands for it. Bytes, because what was checked when it came
    /// need not be checked again for every receiver.
    pub topic: &'a [u8],
    /// Present exactly when `qos` is above 0.
    pub packet_id: Option<PacketId>,
    /// Bytes of the payload that the caller appends.
    pub payload_len: usize,
}

/// The properties of a PUBLISH that a server sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishHeadProperties<'a> {
    /// What is left of the message's time.
    pub message_expiry_secs: Option<u32>,
    /// Not 0.
    pub topic_alias: Option<u16>,
    /// The identifiers of the subscriptions that matched.
    pub subscription_ids: &'a [u32],
    /// What is passed on as it came. It stands between the others and the payload, and the caller appends it: what comes
    /// from a message lies there in one piece with its payload.
    pub forwarded: Properties<'a>,
}

impl PublishHeadProperties<'_> {
    fn length(&self) -> usize {
        let expiry = if self.message_expiry_secs.is_some() { 5 } else { 0 };
        let alias = if self.topic_alias.is_some() { 3 } else { 0 };
        let ids: usize =
            self.subscription_ids.iter().map(|id| 1 + variable_integer_length(*id as usize)).sum();
        expiry + alias + ids + self.forwarded.as_bytes().len()
    }

    /// `length` is what [`PublishHeadProperties::length`] says.
    fn put_but_forwarded(&self, out: &mut Vec<u8>, length: usize) {
        put_variable_integer(out, length);
        if let Some(secs) = self.message_expiry_secs {
            property::put(out, &Property::MessageExpirySecs(secs));
        }
        if let Some(alias) = self.topic_alias {
            property::put(out, &Property::TopicAlias(alias));
        }
        property::put_subscription_ids(out, self.subscription_ids);
    }
}

impl PublishHead<'_> {
    /// Bytes behind the fixed header, payload included, without properties.
    #[inline]
    fn remaining_length(&self) -> usize {
        let id_length = if self.packet_id.is_some() { 2 } else { 0 };
        2 + self.topic.len() + id_length + self.payload_len
    }

    /// Bytes of the whole packet, with these properties and its payload.
    pub fn packet_size(&self, properties: &PublishHeadProperties<'_>) -> usize {
        let length = properties.length();
        let remaining_length = self.remaining_length() + variable_integer_length(length) + length;
        1 + variable_integer_length(remaining_length) + remaining_length
    }
}

/// Writes everything of a PUBLISH that stands before its payload, in the form that it had before 5.0.
///
/// # Panics
///
/// If the topic has more than 65,535 bytes.
#[inline]
pub fn publish_head(out: &mut Vec<u8>, head: &PublishHead<'_>) {
    publish_head_but_properties(out, head, 0);
}

/// The same in the form of 5.0, but for the forwarded properties, which the caller appends.
///
/// # Panics
///
/// If the topic has more than 65,535 bytes.
pub fn publish_head_with_properties(
    out: &mut Vec<u8>,
    head: &PublishHead<'_>,
    properties: &PublishHeadProperties<'_>,
) {
    let length = properties.length();
    publish_head_but_properties(out, head, variable_integer_length(length) + length);
    properties.put_but_forwarded(out, length);
}

// Into both of its callers, the first of which runs for every delivery.
#[inline(always)]
fn publish_head_but_properties(out: &mut Vec<u8>, head: &PublishHead<'_>, properties_length: usize) {
    debug_assert_eq!(head.packet_id.is_some(), head.qos > QoS::AtMostOnce, "[MQTT-2.3.1-5]");
    let id_length = if head.packet_id.is_some() { 2 } else { 0 };
    // What is larger is not copied.
    let tail_length = (properties_length + head.payload_len).min(512);
    out.reserve(7 + head.topic.len() + id_length + tail_length);
    out.put_u8(0x30 | u8::from(head.dup) << 3 | head.qos.number() << 1 | u8::from(head.retain));
    put_variable_integer(out, head.remaining_length() + properties_length);
    put_binary(out, head.topic);
    if let Some(packet_id) = head.packet_id {
        out.put_u16(packet_id.number());
    }
}

/// Writes a CONNACK. Before 5.0 it has a return code and no properties.
///
/// # Errors
///
/// If that version has no return code for the reason; nothing is written then.
pub fn connack(out: &mut Vec<u8>, protocol: Protocol, connack: &Connack<'_>) -> Result<(), EncodeError> {
    let Connack { session_present, reason, properties } = *connack;
    if protocol.has_properties() {
        out.put_u8(0x20);
        put_variable_integer(out, 2 + properties_length(properties));
        out.put_slice(&[u8::from(session_present), reason.number()]);
        put_properties(out, properties);
    } else {
        let code = reason.connect_return_code().ok_or(EncodeError::NoReturnCode)?;
        out.put_slice(&[0x20, 2, u8::from(session_present), code]);
    }
    Ok(())
}

/// Writes a PUBACK.
pub fn puback(out: &mut Vec<u8>, packet_id: PacketId, reason: ReasonCode) {
    bare_ack(out, 0x40, packet_id, reason);
}

/// Writes a PUBREC.
pub fn pubrec(out: &mut Vec<u8>, packet_id: PacketId, reason: ReasonCode) {
    bare_ack(out, 0x50, packet_id, reason);
}

/// Writes a PUBREL.
pub fn pubrel(out: &mut Vec<u8>, packet_id: PacketId, reason: ReasonCode) {
    bare_ack(out, 0x62, packet_id, reason);
}

/// Writes a PUBCOMP.
pub fn pubcomp(out: &mut Vec<u8>, packet_id: PacketId, reason: ReasonCode) {
    bare_ack(out, 0x70, packet_id, reason);
}

/// An acknowledgement without properties. Success has the same form in every version, and before 5.0 there is nothing
/// else.
#[inline]
fn bare_ack(out: &mut Vec<u8>, first: u8, packet_id: PacketId, reason: ReasonCode) {
    let [high, low] = packet_id.number().to_be_bytes();
    if reason == ReasonCode::Success {
        out.put_slice(&[first, 2, high, low]);
    } else {
        out.put_slice(&[first, 3, high, low, reason.number()]);
    }
}

/// Writes a SUBACK without properties of its own [MQTT-3.8.4-4].
pub fn suback(out: &mut Vec<u8>, protocol: Protocol, packet_id: PacketId, reasons: &[ReasonCode]) {
    if protocol.has_properties() {
        answer_head(out, 0x90, packet_id, 1 + reasons.len());
        put_properties(out, Properties::NONE);
        out.extend(reasons.iter().map(|reason| reason.number()));
    } else {
        answer_head(out, 0x90, packet_id, reasons.len());
        out.extend(reasons.iter().map(|reason| reason.suback_return_code()));
    }
}

/// Writes an UNSUBACK without properties of its own. Before 5.0 it has no reasons.
pub fn unsuback(out: &mut Vec<u8>, protocol: Protocol, packet_id: PacketId, reasons: &[ReasonCode]) {
    if protocol.has_properties() {
        answer_head(out, 0xB0, packet_id, 1 + reasons.len());
        put_properties(out, Properties::NONE);
        out.extend(reasons.iter().map(|reason| reason.number()));
    } else {
        answer_head(out, 0xB0, packet_id, 0);
    }
}

fn answer_head(out: &mut Vec<u8>, first: u8, packet_id: PacketId, length: usize) {
    out.put_u8(first);
    put_variable_integer(out, 2 + length);
    out.put_u16(packet_id.number());
}

/// Writes a PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.put_slice(&[0xD0, 0]);
}

/// Writes a DISCONNECT in the form of 5.0.
pub fn disconnect(out: &mut Vec<u8>, disconnect: &Disconnect<'_>) {
    let Disconnect { reason, properties } = *disconnect;
    with_outcome(out, 0xE0, reason, properties);
}

/// Writes an AUTH.
pub fn auth(out: &mut Vec<u8>, auth: &Auth<'_>) {
    let Auth { reason, properties } = *auth;
    with_outcome(out, 0xF0, reason, properties);
}

/// A reason code and properties, left out as far as they say nothing.
fn with_outcome(out: &mut Vec<u8>, first: u8, reason: ReasonCode, properties: Properties<'_>) {
    out.put_u8(first);
    if !properties.is_empty() {
        put_variable_integer(out, 1 + properties_length(properties));
        out.put_u8(reason.number());
        put_properties(out, properties);
    } else if reason == ReasonCode::Success {
        out.put_u8(0);
    } else {
        out.put_slice(&[1, reason.number()]);
    }
}

/// Writes a SUBSCRIBE for these filters, of which there must be one, each with what is asked for.
///
/// # Panics
///
/// If a filter has more than 65,535 bytes.
pub fn subscribe(
    out: &mut Vec<u8>,
    protocol: Protocol,
    packet_id: PacketId,
    properties: Properties<'_>,
    requests: &[(&str, SubscriptionOptions)],
) {
    let length: usize = requests.iter().map(|(filter, _)| 3 + filter.len()).sum();
    request_head(out, 0x82, protocol, packet_id, properties, length);
    for (filter, options) in requests {
        put_binary(out, filter.as_bytes());
        out.put_u8(options.byte());
    }
}

/// Writes an UNSUBSCRIBE for these filters, of which there must be one.
///
/// # Panics
///
/// If a filter has more than 65,535 bytes.
pub fn unsubscribe(
    out: &mut Vec<u8>,
    protocol: Protocol,
    packet_id: PacketId,
    properties: Properties<'_>,
    filters: &[&str],
) {
    let length: usize = filters.iter().map(|filter| 2 + filter.len()).sum();
    request_head(out, 0xA2, protocol, packet_id, properties, length);
    for filter in filters {
        put_binary(out, filter.as_bytes());
    }
}

/// What stands before a list of so many bytes.
fn request_head(
    out: &mut Vec<u8>,
    first: u8,
    protocol: Protocol,
    packet_id: PacketId,
    properties: Properties<'_>,
    length: usize,
) {
    if protocol.has_properties() {
        answer_head(out, first, packet_id, properties_length(properties) + length);
        put_properties(out, properties);
    } else {
        answer_head(out, first, packet_id, length);
    }
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
    /// A password without a user name, before 5.0.
    PasswordWithoutUsername,
    /// Properties, a reason code or a packet that this version does not have.
    NotOfThisVersion,
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
            Self::NotOfThisVersion => "something that exists since MQTT 5.0 only",
        })
    }
}

impl std::error::Error for EncodeError {}

/// Writes any packet in the form of `protocol`; a CONNECT says its own. What it writes can be decoded again.
///
/// # Errors
///
/// If the packet has no form on the wire; nothing is written then.
pub fn encode(packet: &Packet<'_>, protocol: Protocol, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if !protocol.has_properties() && has_properties(packet) {
        return Err(EncodeError::NotOfThisVersion);
    }
    match packet {
        Packet::Connect(packet) => return connect(out, packet),
        Packet::Publish(packet) => return publish(out, protocol, packet),
        Packet::Connack(packet) => return connack(out, protocol, packet),
        Packet::Puback(packet) => ack(out, 0x40, packet),
        Packet::Pubrec(packet) => ack(out, 0x50, packet),
        Packet::Pubrel(packet) => ack(out, 0x62, packet),
        Packet::Pubcomp(packet) => ack(out, 0x70, packet),
        Packet::Subscribe(packet) => {
            with_list(out, 0x82, protocol, packet.packet_id, packet.properties, packet.requests.0);
        }
        Packet::Suback(packet) => {
            with_list(out, 0x90, protocol, packet.packet_id, packet.properties, packet.reasons);
        }
        Packet::Unsubscribe(packet) => {
            with_list(out, 0xA2, protocol, packet.packet_id, packet.properties, packet.filters.0);
        }
        Packet::Unsuback(packet) => {
            with_list(out, 0xB0, protocol, packet.packet_id, packet.properties, packet.reasons);
        }
        Packet::Pingreq => out.put_slice(&[0xC0, 0]),
        Packet::Pingresp => pingresp(out),
        Packet::Disconnect(packet) => disconnect(out, packet),
        Packet::Auth(packet) => auth(out, packet),
    }
    Ok(())
}

/// Whether a packet holds what no version before 5.0 has. A CONNECT is judged by its own version.
fn has_properties(packet: &Packet<'_>) -> bool {
    match packet {
        Packet::Connack(packet) => !packet.properties.is_empty(),
        Packet::Publish(packet) => !packet.properties.is_empty(),
        Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
            *ack != Ack::success(ack.packet_id)
        }
        Packet::Subscribe(packet) => !packet.properties.is_empty(),
        Packet::Suback(packet) => !packet.properties.is_empty(),
        Packet::Unsubscribe(packet) => !packet.properties.is_empty(),
        Packet::Unsuback(packet) => !packet.properties.is_empty() || !packet.reasons.is_empty(),
        Packet::Disconnect(packet) => *packet != Disconnect::NORMAL,
        Packet::Auth(_) => true,
        Packet::Connect(_) | Packet::Pingreq | Packet::Pingresp => false,
    }
}

/// A packet identifier, properties, and a list that already has its form on the wire.
fn with_list(
    out: &mut Vec<u8>,
    first: u8,
    protocol: Protocol,
    packet_id: PacketId,
    properties: Properties<'_>,
    list: &[u8],
) {
    request_head(out, first, protocol, packet_id, properties, list.len());
    out.put_slice(list);
}

fn ack(out: &mut Vec<u8>, first: u8, packet: &Ack<'_>) {
    let Ack { packet_id, reason, properties } = *packet;
    if properties.is_empty() {
        bare_ack(out, first, packet_id, reason);
    } else {
        answer_head(out, first, packet_id, 1 + properties_length(properties));
        out.put_u8(reason.number());
        put_properties(out, properties);
    }
}

fn publish(out: &mut Vec<u8>, protocol: Protocol, packet: &Publish<'_>) -> Result<(), EncodeError> {
    check_text(packet.topic)?;
    if packet.dup && packet.qos == QoS::AtMostOnce {
        return Err(EncodeError::DupAtQoS0);
    }
    if packet.packet_id.is_some() != (packet.qos > QoS::AtMostOnce) {
        return Err(EncodeError::PacketIdAgainstQoS);
    }
    let Publish { dup, qos, retain, topic, packet_id, properties, payload } = *packet;
    let properties = PublishHeadProperties { forwarded: properties, ..PublishHeadProperties::default() };
    let topic = topic.as_bytes();
    let head = PublishHead { dup, qos, retain, topic, packet_id, payload_len: payload.len() };
    if head.packet_size(&properties) > PACKET_SIZE_MAX as usize {
        return Err(EncodeError::PacketTooLarge);
    }
    if protocol.has_properties() {
        publish_head_with_properties(out, &head, &properties);
        out.put_slice(properties.forwarded.as_bytes());
    } else {
        publish_head(out, &head);
    }
    out.put_slice(payload);
    Ok(())
}

fn connect(out: &mut Vec<u8>, packet: &Connect<'_>) -> Result<(), EncodeError> {
    let (name, level) = match packet.protocol {
        Protocol::Mqtt31 => (b"MQIsdp".as_slice(), 3),
        Protocol::Mqtt311 => (b"MQTT".as_slice(), 4),
        Protocol::Mqtt5 => (b"MQTT".as_slice(), 5),
    };
    let has_properties = packet.protocol.has_properties();
    let will_properties = packet.will.map_or(Properties::NONE, |will| will.properties);
    if !has_properties {
        if packet.password.is_some() && packet.username.is_none() {
            return Err(EncodeError::PasswordWithoutUsername);
        }
        if !packet.properties.is_empty() || !will_properties.is_empty() {
            return Err(EncodeError::NotOfThisVersion);
        }
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
    for field in fields {
        check_field(field)?;
        length += 2 + field.len();
    }
    if has_properties {
        length += properties_length(packet.properties);
        length += packet.will.map_or(0, |_| properties_length(will_properties));
    }
    out.put_u8(0x10);
    put_variable_integer(out, length);
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
    if has_properties {
        put_properties(out, packet.properties);
    }
    put_binary(out, packet.client_id.as_bytes());
    if let Some(Will { topic, payload, properties, .. }) = packet.will {
        if has_properties {
            put_properties(out, properties);
        }
        put_binary(out, topic.as_bytes());
        put_binary(out, payload);
    }
    for field in packet.username.map(str::as_bytes).into_iter().chain(packet.password) {
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
