//! Frames to packets. Nothing is copied and nothing is allocated: a packet borrows from its frame.

use super::error::DecodeError;
use super::frame::Frame;
use super::packet::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, PacketId, Protocol, Publish, QoS, RetainHandling,
    Suback, Subscribe, SubscriptionOptions, SubscriptionRequest, SubscriptionRequests, TopicFilters,
    UncheckedFilters, UncheckedRequests, Unsuback, Unsubscribe, Will,
};
use super::primitive::Reader;
use super::property::{Place, Properties};
use super::reason::ReasonCode;

/// Decodes a packet of either direction. `protocol` is that of the connection; a CONNECT says its own.
///
/// # Errors
///
/// The first thing that is wrong with the bytes. The syntax of topics is not looked at.
#[inline]
pub fn decode(frame: Frame<'_>, protocol: Protocol) -> Result<Packet<'_>, DecodeError> {
    let Frame { header, body } = frame;
    let mut reader = Reader::new(body);
    let reader = &mut reader;
    if header.packet_type() == 3 {
        return publish(header.flags(), *reader, protocol).map(Packet::Publish);
    }
    let packet = match header.packet_type() {
        1 => Packet::Connect(connect(reader)?),
        2 => Packet::Connack(connack(reader, protocol)?),
        4 => return ack(*reader, ReasonCode::is_of_receipt, protocol).map(Packet::Puback),
        5 => return ack(*reader, ReasonCode::is_of_receipt, protocol).map(Packet::Pubrec),
        6 => return ack(*reader, ReasonCode::is_of_release, protocol).map(Packet::Pubrel),
        7 => return ack(*reader, ReasonCode::is_of_release, protocol).map(Packet::Pubcomp),
        8 => return subscribe(*reader, protocol).map(Packet::Subscribe),
        9 => return suback(*reader, protocol).map(Packet::Suback),
        10 => return unsubscribe(*reader, protocol).map(Packet::Unsubscribe),
        11 => return unsuback(*reader, protocol).map(Packet::Unsuback),
        12 => Packet::Pingreq,
        13 => Packet::Pingresp,
        14 => Packet::Disconnect(disconnect(reader, protocol)?),
        15 if protocol.has_properties() => Packet::Auth(auth(reader)?),
        _ => return Err(DecodeError::ReservedPacketType),
    };
    reader.finish()?;
    Ok(packet)
}

/// The properties of a packet; none before 5.0.
#[inline]
fn properties<'a>(
    reader: &mut Reader<'a>,
    place: Place,
    protocol: Protocol,
) -> Result<Properties<'a>, DecodeError> {
    if protocol.has_properties() { reader.properties(place) } else { Ok(Properties::NONE) }
}

/// A reason code that a packet may have.
fn reason(reader: &mut Reader<'_>, is_allowed: fn(ReasonCode) -> bool) -> Result<ReasonCode, DecodeError> {
    let number = reader.byte()?;
    ReasonCode::new(number).filter(|reason| is_allowed(*reason)).ok_or(DecodeError::UnknownReasonCode(number))
}

/// A reason code and properties, of which the end may be left out if it says nothing.
fn outcome<'a>(
    reader: &mut Reader<'a>,
    is_allowed: fn(ReasonCode) -> bool,
    place: Place,
) -> Result<(ReasonCode, Properties<'a>), DecodeError> {
    if reader.is_empty() {
        return Ok((ReasonCode::Success, Properties::NONE));
    }
    let reason = reason(reader, is_allowed)?;
    let properties = if reader.is_empty() { Properties::NONE } else { reader.properties(place)? };
    Ok((reason, properties))
}

/// A PUBLISH whose properties are not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UncheckedPublish<'a> {
    /// Without its properties.
    pub(crate) publish: Publish<'a>,
    pub(crate) properties: &'a [u8],
}

/// Decodes a PUBLISH but for its properties, which are left for `UncheckedProperties`: with those it comes to the same as
/// [`decode`].
pub(crate) fn decode_publish_but_properties(
    frame: Frame<'_>,
    protocol: Protocol,
) -> Result<UncheckedPublish<'_>, DecodeError> {
    if !frame.header.is_publish() {
        return Err(DecodeError::ReservedPacketType);
    }
    publish_but_properties(frame.header.flags(), Reader::new(frame.body), protocol)
}

#[inline]
fn publish_but_properties(
    flags: u8,
    mut reader: Reader<'_>,
    protocol: Protocol,
) -> Result<UncheckedPublish<'_>, DecodeError> {
    let qos = QoS::new(flags >> 1 & 0x03).ok_or(DecodeError::ReservedQoS)?;
    let topic = reader.text()?; // [MQTT-3.3.2-1]
    // [MQTT-2.3.1-5]
    let packet_id = if qos == QoS::AtMostOnce { None } else { Some(reader.packet_id()?) };
    let properties = if protocol.has_properties() { reader.unchecked_properties()? } else { &[] };
    let publish = Publish {
        dup: flags & 0x08 != 0,
        qos,
        retain: flags & 0x01 != 0,
        topic,
        packet_id,
        properties: Properties::NONE,
        payload: reader.rest(),
    };
    Ok(UncheckedPublish { publish, properties })
}

#[inline]
fn publish(flags: u8, reader: Reader<'_>, protocol: Protocol) -> Result<Publish<'_>, DecodeError> {
    let UncheckedPublish { mut publish, properties } = publish_but_properties(flags, reader, protocol)?;
    if !properties.is_empty() {
        publish.properties = Properties::check(properties, Place::Publish)?;
    }
    Ok(publish)
}

fn connect<'a>(reader: &mut Reader<'a>) -> Result<Connect<'a>, DecodeError> {
    let protocol = match (reader.binary()?, reader.byte()?) {
        (b"MQTT", 4) => Protocol::Mqtt311,
        (b"MQTT", 5) => Protocol::Mqtt5,
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
    if has_password && !has_username && protocol != Protocol::Mqtt5 {
        return Err(DecodeError::PasswordWithoutUsername); // [MQTT-3.1.2-22]
    }
    let keep_alive_secs = reader.short()?;
    let connect_properties = properties(reader, Place::Connect, protocol)?;
    // In this order [MQTT-3.1.3-1].
    let client_id = reader.text()?;
    let will = match will_qos {
        Some(qos) if has_will => {
            let properties = properties(reader, Place::Will, protocol)?;
            let (topic, payload) = (reader.text()?, reader.binary()?);
            Some(Will { topic, payload, qos, retain: flags & 0x20 != 0, properties })
        }
        _ => None,
    };
    let is_missing = |reader: &Reader<'_>| is_lenient && reader.is_empty();
    let username = if has_username && !is_missing(reader) { Some(reader.text()?) } else { None };
    let password = if has_password && !is_missing(reader) { Some(reader.binary()?) } else { None };
    Ok(Connect {
        protocol,
        clean_start: flags & 0x02 != 0,
        keep_alive_secs,
        properties: connect_properties,
        client_id,
        will,
        username,
        password,
    })
}

fn connack<'a>(reader: &mut Reader<'a>, protocol: Protocol) -> Result<Connack<'a>, DecodeError> {
    let flags = reader.byte()?;
    if flags > 1 {
        return Err(DecodeError::ConnackFlags);
    }
    let reason = if protocol.has_properties() {
        reason(reader, ReasonCode::is_of_connack)?
    } else {
        let code = reader.byte()?;
        ReasonCode::from_connect_return_code(code).ok_or(DecodeError::UnknownReasonCode(code))?
    };
    let properties = properties(reader, Place::Connack, protocol)?;
    Ok(Connack { session_present: flags == 1, reason, properties })
}

#[inline]
fn ack(
    mut reader: Reader<'_>,
    is_allowed: fn(ReasonCode) -> bool,
    protocol: Protocol,
) -> Result<Ack<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    if reader.is_empty() {
        return Ok(Ack::success(packet_id));
    }
    let (reason, properties) = match protocol {
        Protocol::Mqtt5 => outcome(&mut reader, is_allowed, Place::Ack)?,
        _ => (ReasonCode::Success, Properties::NONE),
    };
    reader.finish()?;
    Ok(Ack { packet_id, reason, properties })
}

fn disconnect<'a>(reader: &mut Reader<'a>, protocol: Protocol) -> Result<Disconnect<'a>, DecodeError> {
    if !protocol.has_properties() {
        return Ok(Disconnect::NORMAL);
    }
    let (reason, properties) = outcome(reader, ReasonCode::is_of_disconnect, Place::Disconnect)?;
    Ok(Disconnect { reason, properties })
}

fn auth<'a>(reader: &mut Reader<'a>) -> Result<Auth<'a>, DecodeError> {
    let (reason, properties) = outcome(reader, ReasonCode::is_of_auth, Place::Auth)?;
    Ok(Auth { reason, properties })
}

fn subscribe(mut reader: Reader<'_>, protocol: Protocol) -> Result<Subscribe<'_>, DecodeError> {
    let (packet_id, properties) = before_filters(&mut reader, Place::Subscribe, protocol)?;
    let requests = SubscriptionRequests(reader.rest());
    while !reader.is_empty() {
        request(&mut reader, protocol, Reader::skip_text)?;
    }
    Ok(Subscribe { packet_id, properties, requests })
}

/// What a SUBSCRIBE or UNSUBSCRIBE says before its filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BeforeFilters<'a> {
    pub(crate) packet_id: PacketId,
    pub(crate) properties: Properties<'a>,
    /// The filters, of which nothing is checked yet but that there is something.
    pub(crate) filters: &'a [u8],
    pub(crate) is_subscribe: bool,
}

/// Decodes a SUBSCRIBE or UNSUBSCRIBE up to its filters, which are left for [`UncheckedRequests`] or
/// [`UncheckedFilters`]: with those it comes to the same as [`decode`].
pub(crate) fn decode_before_filters(
    frame: Frame<'_>,
    protocol: Protocol,
) -> Result<BeforeFilters<'_>, DecodeError> {
    let (is_subscribe, place) = match frame.header.packet_type() {
        8 => (true, Place::Subscribe),
        10 => (false, Place::Unsubscribe),
        _ => return Err(DecodeError::ReservedPacketType),
    };
    let mut reader = Reader::new(frame.body);
    let (packet_id, properties) = before_filters(&mut reader, place, protocol)?;
    Ok(BeforeFilters { packet_id, properties, filters: reader.rest(), is_subscribe })
}

#[inline]
fn before_filters<'a>(
    reader: &mut Reader<'a>,
    place: Place,
    protocol: Protocol,
) -> Result<(PacketId, Properties<'a>), DecodeError> {
    let packet_id = reader.packet_id()?;
    let properties = properties(reader, place, protocol)?;
    if reader.is_empty() {
        return Err(DecodeError::NoTopicFilter); // [MQTT-3.8.3-3] [MQTT-3.10.3-2]
    }
    Ok((packet_id, properties))
}

/// One filter of a SUBSCRIBE with its options. `text` reads a text, or only skips it.
#[inline]
fn request<'a, T>(
    reader: &mut Reader<'a>,
    protocol: Protocol,
    text: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<(T, SubscriptionOptions), DecodeError> {
    let filter = text(reader)?; // [MQTT-3.8.3-1]
    let options = subscription_options(reader.byte()?)?;
    if !protocol.has_properties() && options.byte() > 2 {
        return Err(DecodeError::SubscriptionOptions); // [MQTT-3.8.3-4]
    }
    Ok((filter, options))
}

fn subscription_options(byte: u8) -> Result<SubscriptionOptions, DecodeError> {
    if byte & 0xC0 != 0 {
        return Err(DecodeError::SubscriptionOptions); // [MQTT5-3.8.3-5]
    }
    let qos = QoS::new(byte & 0x03).ok_or(DecodeError::SubscriptionOptionValue)?;
    let retain_handling = match byte >> 4 & 0x03 {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        2 => RetainHandling::DoNotSend,
        _ => return Err(DecodeError::SubscriptionOptionValue),
    };
    let (no_local, retain_as_published) = (byte & 0x04 != 0, byte & 0x08 != 0);
    Ok(SubscriptionOptions { qos, no_local, retain_as_published, retain_handling })
}

fn suback(mut reader: Reader<'_>, protocol: Protocol) -> Result<Suback<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    let properties = properties(&mut reader, Place::Suback, protocol)?;
    let reasons = reader.rest();
    if reasons.is_empty() {
        return Err(DecodeError::Truncated);
    }
    let is_allowed = |code: u8| match protocol {
        Protocol::Mqtt5 => ReasonCode::new(code).is_some_and(ReasonCode::is_of_suback),
        _ => matches!(code, 0..=2 | 0x80),
    };
    match reasons.iter().find(|code| !is_allowed(**code)) {
        Some(code) => Err(DecodeError::UnknownReasonCode(*code)), // [MQTT-3.9.3-2]
        None => Ok(Suback { packet_id, properties, reasons }),
    }
}

fn unsubscribe(mut reader: Reader<'_>, protocol: Protocol) -> Result<Unsubscribe<'_>, DecodeError> {
    let (packet_id, properties) = before_filters(&mut reader, Place::Unsubscribe, protocol)?;
    let filters = TopicFilters(reader.rest());
    while !reader.is_empty() {
        reader.skip_text()?; // [MQTT-3.10.3-1]
    }
    Ok(Unsubscribe { packet_id, properties, filters })
}

fn unsuback(mut reader: Reader<'_>, protocol: Protocol) -> Result<Unsuback<'_>, DecodeError> {
    let packet_id = reader.packet_id()?;
    if !protocol.has_properties() {
        reader.finish()?;
        return Ok(Unsuback { packet_id, properties: Properties::NONE, reasons: &[] });
    }
    let properties = reader.properties(Place::Unsuback)?;
    let reasons = reader.rest();
    if reasons.is_empty() {
        return Err(DecodeError::Truncated);
    }
    match reasons.iter().find(|code| !ReasonCode::new(**code).is_some_and(ReasonCode::is_of_unsuback)) {
        Some(code) => Err(DecodeError::UnknownReasonCode(*code)),
        None => Ok(Unsuback { packet_id, properties, reasons }),
    }
}

impl<'a> Iterator for SubscriptionRequests<'a> {
    type Item = SubscriptionRequest<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.0);
        // The bytes were checked when the packet was decoded; an error can only be their end.
        let filter = reader.text().ok()?;
        let options = subscription_options(reader.byte().ok()?).ok()?;
        self.0 = reader.rest();
        Some(SubscriptionRequest { filter, options })
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

impl<'a> Iterator for UncheckedRequests<'a> {
    type Item = Result<SubscriptionRequest<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.rest);
        if reader.is_empty() {
            return None;
        }
        let request = request(&mut reader, self.protocol, Reader::text);
        self.rest = reader.rest();
        Some(request.map(|(filter, options)| SubscriptionRequest { filter, options }))
    }
}

impl<'a> Iterator for UncheckedFilters<'a> {
    type Item = Result<&'a str, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut reader = Reader::new(self.rest);
        if reader.is_empty() {
            return None;
        }
        let filter = reader.text(); // [MQTT-3.10.3-1]
        self.rest = reader.rest();
        Some(filter)
    }
}
