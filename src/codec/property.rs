//! The properties of MQTT 5.0: 27 kinds of them, each with its place, its type and its bounds.
//!
//! A packet's properties stay bytes. Decoding walks over them once and checks that each is known, belongs to this
//! packet, stands there once and has a value that is allowed; from then on [`Properties`] is an iterator that cannot
//! fail. What a PUBLISH carries on to its subscribers is so copied as it is, and its order is the publisher's.
//!
//! Deliberately not here: what a property does.

use bytes::BufMut;

use super::error::DecodeError;
use super::packet::QoS;
use super::primitive::{Reader, put_binary, variable_integer_length};

/// No packet but a PUBLISH may have more bytes of properties than that, which are for us: all of them are checked in one go, and
/// nobody should wait for that. The standard leaves it to a server to have such limits, and has a reason code for them, 0x97. Any
/// one property fits.
pub const PROPERTIES_LENGTH_MAX: usize = 256 * 1024;

/// One property [MQTT5-2.2.2-1].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property<'a> {
    /// Whether the payload says to be UTF-8 text.
    PayloadIsText(bool),
    /// Seconds after which a message is of no use.
    MessageExpirySecs(u32),
    /// What the payload is, in the application's words.
    ContentType(&'a str),
    /// Where an answer is awaited.
    ResponseTopic(&'a str),
    /// What an answer is to carry.
    CorrelationData(&'a [u8]),
    /// Tells a client which of its subscriptions matched: 1 to 268,435,455.
    SubscriptionId(u32),
    /// Seconds that a session outlives its connection; `u32::MAX` is for ever.
    SessionExpirySecs(u32),
    /// The client identifier that the server chose.
    AssignedClientId(&'a str),
    /// Seconds between packets that the server wants instead of what the client promised.
    ServerKeepAliveSecs(u16),
    /// The name of a method of enhanced authentication.
    AuthenticationMethod(&'a str),
    /// What the method exchanges.
    AuthenticationData(&'a [u8]),
    /// Whether the client wants reason strings.
    RequestProblemInformation(bool),
    /// Seconds between the end of a connection and its will.
    WillDelaySecs(u32),
    /// Whether the client wants response information.
    RequestResponseInformation(bool),
    /// What a client may build response topics from.
    ResponseInformation(&'a str),
    /// Another server to use.
    ServerReference(&'a str),
    /// What went wrong, for people.
    ReasonString(&'a str),
    /// Messages at QoS 1 and 2 that its sender takes at once: never 0.
    ReceiveMaximum(u16),
    /// Topic aliases that its sender takes.
    TopicAliasMaximum(u16),
    /// Stands for a topic name: never 0.
    TopicAlias(u16),
    /// The highest QoS that a server serves, below 2.
    MaximumQoS(QoS),
    /// Whether a server keeps retained messages.
    RetainAvailable(bool),
    /// A name and a value of the application's.
    UserProperty(&'a str, &'a str),
    /// The largest packet that its sender takes, in bytes: never 0.
    MaximumPacketSize(u32),
    /// Whether a server serves filters with wildcards.
    WildcardSubscriptionAvailable(bool),
    /// Whether a server serves subscription identifiers.
    SubscriptionIdAvailable(bool),
    /// Whether a server serves shared subscriptions.
    SharedSubscriptionAvailable(bool),
}

/// What has properties, and so which ones it may have. The acknowledgements of a PUBLISH are one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the packet of its name, or the will in a CONNECT.
pub enum Place {
    Connect,
    Will,
    Connack,
    Publish,
    Ack,
    Subscribe,
    Suback,
    Unsubscribe,
    Unsuback,
    Disconnect,
    Auth,
}

/// A set of property identifiers, one bit each.
const fn set(ids: &[u8]) -> u64 {
    let mut bits = 0;
    let mut index = 0;
    while index < ids.len() {
        bits |= 1 << ids[index];
        index += 1;
    }
    bits
}

/// All of them.
const KNOWN: u64 = set(&[
    0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x11, 0x12, 0x13, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x1C, 0x1F,
    0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A,
]);

const SUBSCRIPTION_ID: u8 = 0x0B;
const USER_PROPERTY: u8 = 0x26;

impl Place {
    /// What may stand here.
    const fn allowed(self) -> u64 {
        match self {
            Self::Connect => set(&[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27]),
            Self::Will => set(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26]),
            Self::Connack => set(&[
                0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28,
                0x29, 0x2A,
            ]),
            Self::Publish => set(&[0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26]),
            Self::Ack | Self::Suback | Self::Unsuback => set(&[0x1F, 0x26]),
            Self::Subscribe => set(&[0x0B, 0x26]),
            Self::Unsubscribe => set(&[0x26]),
            Self::Disconnect => set(&[0x11, 0x1C, 0x1F, 0x26]),
            Self::Auth => set(&[0x15, 0x16, 0x1F, 0x26]),
        }
    }

    /// What may stand here more than once. A server names every subscription that matched.
    const fn repeatable(self) -> u64 {
        match self {
            Self::Publish => set(&[SUBSCRIPTION_ID, USER_PROPERTY]),
            _ => set(&[USER_PROPERTY]),
        }
    }
}

/// The properties of a packet: bytes that were checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// No property.
    pub const NONE: Self = Self(&[]);

    /// Checks bytes.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with them in this place.
    pub fn check(bytes: &'a [u8], place: Place) -> Result<Self, DecodeError> {
        let mut unchecked = UncheckedProperties::new(place);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            unchecked.read(&mut reader)?;
        }
        Ok(Self(bytes))
    }

    /// Bytes that [`Properties::check`] has passed before: whole properties of a place, in any order.
    pub(crate) const fn checked_before(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes, without the length in front.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Bytes that they take, without the length in front.
    #[inline]
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The properties in their order.
    pub const fn iter(self) -> Iter<'a> {
        Iter { reader: Reader::new(self.0) }
    }
}

/// Properties of which those that come next are not checked yet: what those before them say of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UncheckedProperties {
    place: Place,
    /// The kinds that came.
    seen: u64,
}

impl UncheckedProperties {
    pub(crate) const fn new(place: Place) -> Self {
        Self { place, seen: 0 }
    }

    /// The property that begins these bytes, which are not empty, and how many of them it takes.
    pub(crate) fn first<'a>(&mut self, bytes: &'a [u8]) -> Result<(Property<'a>, usize), DecodeError> {
        let mut reader = Reader::new(bytes);
        let property = self.read(&mut reader)?;
        Ok((property, bytes.len() - reader.rest().len()))
    }

    #[inline]
    fn read<'a>(&mut self, reader: &mut Reader<'a>) -> Result<Property<'a>, DecodeError> {
        let Self { place, seen } = self;
        let id = reader.byte()?;
        if id >= 64 || KNOWN >> id & 1 == 0 {
            return Err(DecodeError::UnknownProperty(id));
        }
        if place.allowed() >> id & 1 == 0 {
            return Err(DecodeError::MisplacedProperty(id));
        }
        if *seen & !place.repeatable() & 1 << id != 0 {
            return Err(DecodeError::RepeatedProperty(id));
        }
        *seen |= 1 << id;
        value(id, reader)
    }
}

impl<'a> IntoIterator for Properties<'a> {
    type Item = Property<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The properties of a packet, one by one.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    reader: Reader<'a>,
}

impl<'a> Iter<'a> {
    /// The bytes of the next property, and the property.
    pub fn next_with_bytes(&mut self) -> Option<(&'a [u8], Property<'a>)> {
        let before = self.reader.rest();
        let property = self.next()?;
        Some((&before[..before.len() - self.reader.rest().len()], property))
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        // The bytes were checked; an error can only be their end.
        let id = self.reader.byte().ok()?;
        value(id, &mut self.reader).ok()
    }
}

/// Reads the value of a known property.
fn value<'a>(id: u8, reader: &mut Reader<'a>) -> Result<Property<'a>, DecodeError> {
    let above_zero = |is_zero: bool| if is_zero { Err(DecodeError::PropertyValue(id)) } else { Ok(()) };
    let flag = |byte: u8| match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::PropertyValue(id)),
    };
    Ok(match id {
        0x01 => Property::PayloadIsText(flag(reader.byte()?)?),
        0x02 => Property::MessageExpirySecs(reader.long()?),
        0x03 => Property::ContentType(reader.text()?), // [MQTT5-3.3.2-19]
        0x08 => Property::ResponseTopic(reader.text()?), // [MQTT5-3.3.2-13]
        0x09 => Property::CorrelationData(reader.binary()?),
        SUBSCRIPTION_ID => {
            let number = reader.variable_integer()?;
            above_zero(number == 0)?;
            Property::SubscriptionId(number)
        }
        0x11 => Property::SessionExpirySecs(reader.long()?),
        0x12 => Property::AssignedClientId(reader.text()?),
        0x13 => Property::ServerKeepAliveSecs(reader.short()?),
        0x15 => Property::AuthenticationMethod(reader.text()?),
        0x16 => Property::AuthenticationData(reader.binary()?),
        0x17 => Property::RequestProblemInformation(flag(reader.byte()?)?),
        0x18 => Property::WillDelaySecs(reader.long()?),
        0x19 => Property::RequestResponseInformation(flag(reader.byte()?)?),
        0x1A => Property::ResponseInformation(reader.text()?),
        0x1C => Property::ServerReference(reader.text()?),
        0x1F => Property::ReasonString(reader.text()?),
        0x21 => {
            let maximum = reader.short()?;
            above_zero(maximum == 0)?;
            Property::ReceiveMaximum(maximum)
        }
        0x22 => Property::TopicAliasMaximum(reader.short()?),
        0x23 => {
            let alias = reader.short()?;
            if alias == 0 {
                return Err(DecodeError::TopicAliasZero); // [MQTT5-3.3.2-8]
            }
            Property::TopicAlias(alias)
        }
        0x24 => match QoS::new(reader.byte()?) {
            Some(qos) if qos < QoS::ExactlyOnce => Property::MaximumQoS(qos),
            _ => return Err(DecodeError::PropertyValue(id)),
        },
        0x25 => Property::RetainAvailable(flag(reader.byte()?)?),
        USER_PROPERTY => Property::UserProperty(reader.text()?, reader.text()?), // [MQTT5-1.5.7-1]
        0x27 => {
            let maximum = reader.long()?;
            above_zero(maximum == 0)?;
            Property::MaximumPacketSize(maximum)
        }
        0x28 => Property::WildcardSubscriptionAvailable(flag(reader.byte()?)?),
        0x29 => Property::SubscriptionIdAvailable(flag(reader.byte()?)?),
        0x2A => Property::SharedSubscriptionAvailable(flag(reader.byte()?)?),
        _ => return Err(DecodeError::UnknownProperty(id)),
    })
}

/// Writes one property.
///
/// # Panics
///
/// If a text or a binary value has more than 65,535 bytes.
pub fn put(out: &mut Vec<u8>, property: &Property<'_>) {
    let text = |out: &mut Vec<u8>, id: u8, text: &[u8]| {
        out.put_u8(id);
        put_binary(out, text);
    };
    let flag = |out: &mut Vec<u8>, id: u8, flag: bool| out.put_slice(&[id, u8::from(flag)]);
    let short = |out: &mut Vec<u8>, id: u8, value: u16| {
        out.put_u8(id);
        out.put_u16(value);
    };
    let long = |out: &mut Vec<u8>, id: u8, value: u32| {
        out.put_u8(id);
        out.put_u32(value);
    };
    match *property {
        Property::PayloadIsText(is_text) => flag(out, 0x01, is_text),
        Property::MessageExpirySecs(secs) => long(out, 0x02, secs),
        Property::ContentType(value) => text(out, 0x03, value.as_bytes()),
        Property::ResponseTopic(topic) => text(out, 0x08, topic.as_bytes()),
        Property::CorrelationData(data) => text(out, 0x09, data),
        Property::SubscriptionId(number) => put_subscription_ids(out, &[number]),
        Property::SessionExpirySecs(secs) => long(out, 0x11, secs),
        Property::AssignedClientId(client_id) => text(out, 0x12, client_id.as_bytes()),
        Property::ServerKeepAliveSecs(secs) => short(out, 0x13, secs),
        Property::AuthenticationMethod(method) => text(out, 0x15, method.as_bytes()),
        Property::AuthenticationData(data) => text(out, 0x16, data),
        Property::RequestProblemInformation(wanted) => flag(out, 0x17, wanted),
        Property::WillDelaySecs(secs) => long(out, 0x18, secs),
        Property::RequestResponseInformation(wanted) => flag(out, 0x19, wanted),
        Property::ResponseInformation(value) => text(out, 0x1A, value.as_bytes()),
        Property::ServerReference(value) => text(out, 0x1C, value.as_bytes()),
        Property::ReasonString(value) => text(out, 0x1F, value.as_bytes()),
        Property::ReceiveMaximum(maximum) => short(out, 0x21, maximum),
        Property::TopicAliasMaximum(maximum) => short(out, 0x22, maximum),
        Property::TopicAlias(alias) => short(out, 0x23, alias),
        Property::MaximumQoS(qos) => out.put_slice(&[0x24, qos.number()]),
        Property::RetainAvailable(available) => flag(out, 0x25, available),
        Property::UserProperty(name, value) => {
            text(out, USER_PROPERTY, name.as_bytes());
            put_binary(out, value.as_bytes());
        }
        Property::MaximumPacketSize(maximum) => long(out, 0x27, maximum),
        Property::WildcardSubscriptionAvailable(available) => flag(out, 0x28, available),
        Property::SubscriptionIdAvailable(available) => flag(out, 0x29, available),
        Property::SharedSubscriptionAvailable(available) => flag(out, 0x2A, available),
    }
}

/// Appends subscription identifiers, each from 1 to 268,435,455. A message to somebody with very many matching subscriptions
/// has as many.
pub(super) fn put_subscription_ids(out: &mut Vec<u8>, ids: &[u32]) {
    const LENGTH_MAX: usize = 5;
    if ids.is_empty() {
        return;
    }
    out.reserve(ids.len() * LENGTH_MAX + size_of::<u64>());
    for id in ids {
        debug_assert!((1..1 << 28).contains(id), "no other can be read");
        // Seven bits in each byte.
        let digits = id & 0x7F | (id & 0x3F80) << 1 | (id & 0x1F_C000) << 2 | (id & 0xFE0_0000) << 3;
        let length = variable_integer_length(*id as usize);
        let more_follow = 0x0080_8080 >> ((4 - length) * 8);
        // Written whole and cut: 100,000 of them, which take 0.6 ms byte by byte, take 0.27, timed by themselves.
        let bytes = u64::from(digits | more_follow) << 8 | u64::from(SUBSCRIPTION_ID);
        let end = out.len() + 1 + length;
        out.extend_from_slice(&bytes.to_le_bytes());
        out.truncate(end);
    }
}

/// Properties in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertyList(Vec<u8>);

impl PropertyList {
    /// Appends a property.
    ///
    /// # Panics
    ///
    /// If a text or a binary value has more than 65,535 bytes.
    pub fn push(&mut self, property: &Property<'_>) {
        put(&mut self.0, property);
    }

    /// What was appended. Whether it may stand in its packet is for the caller to know.
    pub fn as_properties(&self) -> Properties<'_> {
        Properties(&self.0)
    }
}

impl<'a> FromIterator<Property<'a>> for PropertyList {
    fn from_iter<I: IntoIterator<Item = Property<'a>>>(properties: I) -> Self {
        let mut list = Self::default();
        properties.into_iter().for_each(|property| list.push(&property));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::super::primitive::put_variable_integer;
    use super::*;

    #[test]
    fn subscription_identifiers_are_written_as_variable_byte_integers() {
        // [MQTT5-1.5.5-1]
        let near = |power: u32| [(1 << power) - 1, 1 << power, (1 << power) + 1];
        let ids: Vec<u32> = (1..28).flat_map(near).chain([268_435_455]).collect();
        let (mut written, mut expected) = (vec![7], vec![7]);
        put_subscription_ids(&mut written, &ids);
        for id in ids {
            expected.push(SUBSCRIPTION_ID);
            put_variable_integer(&mut expected, id as usize);
        }
        assert_eq!(written, expected);
    }
}
