//! Frames to packets. Nothing is copied and nothing is allocated: a packet borrows from its frame.

use super::error::DecodeError;
use super::frame::Frame;
use super::packet::{
    Ack, Connack, Connect, Disconnect, Packet, Protocol, Publish, QoS, Suback, Subscribe,
    SubscriptionRequest, SubscriptionRequests, TopicFilters, Unsuback, Unsubscribe, Will,
};
use super::primitive::Reader;
use super::reason::ReasonCode;

/// Decodes a packet of either direction.
///
/// # Errors
///
/// The first thing that is wrong with the bytes. The syntax of topics is not looked at.
#[inline]
pub fn decode(frame: Frame<'_>) -> Result<Packet<'_>, DecodeError> {
    let Frame { header, body } = frame;
    let mut reader = Reader::new(body);
    if header.packet_type() == 3 {
        return publish(header.flags(), reader).map(Packet::Publish);
    }
    let packet = match header.packet_type() {
        1 => Packet::Connect(connect(&mut reader)?),
        2 => Packet::Connack(connack(&mut reader)?),
        4 => Packet::Puback(ack(&mut reader)?),
        5 => Packet::Pubrec(ack(&mut reader)?),
        6 => Packet::Pubrel(ack(&mut reader)?),
        7 => Packet::Pubcomp(ack(&mut reader)?),
        8 => return subscribe(reader).map(Packet::Subscribe),
        9 => return suback(reader).map(Packet::Suback),
        10 => return unsubscribe(reader).map(Packet::Unsubscribe),
        11 => Packet::Unsuback(Unsuback { packet_id: reader.packet_id()? }),
        12 => Packet::Pingreq,
        13 => Packet::Pingresp,
        14 => Packet::Disconnect(Disconnect { reason: ReasonCode::Success }),
        _ => return Err(DecodeError::ReservedPacketType),
    };
    reader.finish()?;
    Ok(packet)
}

#[inline]
fn publish(flags: u8, mut reader: Reader<'_>) -> Result<Publish<'_>, DecodeError> {
    let qos = QoS::new(flags >> 1 & 0x03).ok_or(DecodeError::ReservedQoS)?;
    let topic = reader.text()?; // [MQTT-3.3.2-1]
    // [MQTT-2.3.1-5]
    let packet_id = if qos == QoS::AtMostOnce { None } else { Some(reader.packet_id()?) };
    Ok(Publish {
        dup: flags & 0x08 != 0,
        qos,
        retain: flags & 0x01 != 0,
        topic,
        packet_id,
        payload: reader.rest(),
    })
}

fn connect<'a>(reader: &mut Reader<'a>) -> Result<Connect<'a>, DecodeError> {
    let protocol = match (reader.binary()?, reader.byte()?) {
        (b"MQTT", 4) => Protocol::Mqtt311,
        (b"MQIsdp", 3) => Protocol::Mqtt31,
        // What follows may have another form, so nothing else is looked at [MQTT-3.1.2-2].
        (b"MQTT" | b"MQIsdp", level) => return Err(DecodeError::UnsupportedProtocolLevel(level)),
        _ => return Err(DecodeError::WrongProtocolName), // [MQTT-3.1.2-1]
    };
    // 3.1 gives bit 0 no meaning, nor the bits of the will without a will, and lets user name and password be missing
    // at the end of the packet in spite of their flags.
    let is_lenient = protocol == Protocol::Mqtt31;
    let flags = reader.byte()?;
    if flags & 0x01 != 0 && !is_lenient {
        return Err(DecodeError::ReservedConnectFlag); // [MQTT-3.1.2-3]
    }
    let has_will = flags & 0x04 != 0;
    if flags & 0x38 != 0 && !has_will && !is_lenient {
        return Err(DecodeError::WillFlags); // [MQTT-3.1.2-13] [MQTT-3.1.2-15]
    }
    let will_qos = QoS::new(flags >> 3 & 0x03);
    if has_will && will_qos.is_none() {
        return Err(DecodeError::WillFlags); // [MQTT-3.1.2-14]
    }
    let (has_password, has_username) = (flags & 0x40 != 0, flags & 0x80 != 0);
    if has_password && !has_username {
        return Err(DecodeError::PasswordWithoutUsername); // [MQTT-3.1.2-22]
    }
    let keep_alive_secs = reader.short()?;
    // In this order [MQTT-3.1.3-1].
    let client_id = reader.text()?;
    let will = match will_qos {
        Some(qos) if has_will => {
            let (topic, payload) = (reader.text()?, reader.binary()?);
            Some(Will { topic, payload, qos, retain: flags & 0x20 != 0 })
        }
        _ => None,
    };
    let is_missing = |reader: &Reader<'_>| is_lenient && reader.is_empty();
    let username = if has_username && !is_missing(reader) { Some(reader.text()?) } else { None };
    let password = if has_password && !is_missing(reader) { Some(reader.binary()?) } else { None };
    let clean_start = flags & 0x02 != 0;
    Ok(Connect { protocol, clean_start, keep_alive_secs, client_id, will, username, password })
}

fn connack(reader: &mut Reader<'_>) -> Result<Connack, DecodeError> {
    let (flags, code) = (reader.byte()?, reader.byte()?);
    if flags > 1 {
        return Err(DecodeError::ConnackFlags);
    }
    let reason = ReasonCode::from_connect_return_code(code).ok_or(DecodeError::UnknownReasonCode(code))?;
    Ok(Connack { session_present: flags == 1, reason })
}

#[inline]
fn ack(reader: &mut Reader<'_>) -> Result<Ack, DecodeError> {
    Ok(Ack { packet_id: reader.packet_id()?, reason: ReasonCode::Success })
}

fn subscribe(mut reader: Reader<'_>) -> Result<Subscribe<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    if reader.is_empty() {
        return Err(DecodeError::NoTopicFilter); // [MQTT-3.8.3-3]
    }
    let requests = SubscriptionRequests(reader.rest());
    while !reader.is_empty() {
        subscription_request(&mut reader)?;
    }
    Ok(Subscribe { packet_id, requests })
}

fn subscription_request<'a>(reader: &mut Reader<'a>) -> Result<SubscriptionRequest<'a>, DecodeError> {
    let filter = reader.text()?; // [MQTT-3.8.3-1]
    let qos = QoS::new(reader.byte()?).ok_or(DecodeError::SubscriptionOptions)?; // [MQTT-3.8.3-4]
    Ok(SubscriptionRequest { filter, qos })
}

fn suback(mut reader: Reader<'_>) -> Result<Suback<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let reasons = reader.rest();
    if reasons.is_empty() {
        return Err(DecodeError::Truncated);
    }
    match reasons.iter().find(|code| !matches!(code, 0..=2 | 0x80)) {
        Some(code) => Err(DecodeError::UnknownReasonCode(*code)), // [MQTT-3.9.3-2]
        None => Ok(Suback { packet_id, reasons }),
    }
}

fn unsubscribe(mut reader: Reader<'_>) -> Result<Unsubscribe<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    if reader.is_empty() {
        return Err(DecodeError::NoTopicFilter); // [MQTT-3.10.3-2]
    }
    let filters = TopicFilters(reader.rest());
    while !reader.is_empty() {
        reader.text()?; // [MQTT-3.10.3-1]
    }
    Ok(Unsubscribe { packet_id, filters })
}

impl<'a> Iterator for SubscriptionRequests<'a> {
    type Item = SubscriptionRequest<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.0);
        // The bytes were checked when the packet was decoded; an error can only be their end.
        let request = subscription_request(&mut reader).ok()?;
        self.0 = reader.rest();
        Some(request)
    }
}

impl<'a> Iterator for TopicFilters<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.0);
        let filter = reader.text().ok()?;
        self.0 = reader.rest();
        Some(filter)
    }
}
