//! What is kept, one kind of record for each noun of the core that outlives a connection.
//!
//! A key begins with the kind, then a number with its high byte first, so that keys sort by kind and age: whoever reads
//! them in order meets sessions before what belongs to them, messages before who waits for them, and what waits in its
//! order of coming.
//!
//! Sessions and subscriptions are named by what they are, and change in place. Everything else is named by the number of
//! its record, and never changes: what changes is removed and recorded anew.

use std::fmt;

use crate::clock::{Duration, Instant};
use crate::codec::{PacketId, QoS};

use super::Lsn;

const SESSION: u8 = 1;
const SUBSCRIPTION: u8 = 2;
const MESSAGE: u8 = 3;
const RETAINED: u8 = 4;
const DELIVERY: u8 = 5;
const RELEASE: u8 = 6;
const RECEIPT: u8 = 7;
const DUE_WILL: u8 = 8;

/// Whether the key with these bytes is that of a record which never changes: it is put once and removed once.
pub fn is_named_once(key: &[u8]) -> bool {
    key.first().is_some_and(|kind| *kind >= MESSAGE)
}

/// The name of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key<'a> {
    /// A session, named by the number of its first record.
    Session(Lsn),
    /// A subscription of that session, shared or not, by its filter as the client wrote it.
    Subscription(Lsn, &'a str),
    /// An application message.
    Message(Lsn),
    /// That a message is retained.
    Retained(Lsn),
    /// That a message waits for somebody, or is under way.
    Delivery(Lsn),
    /// That PUBREL was sent and PUBCOMP has not come.
    Release(Lsn),
    /// That a QoS 2 message was taken and not released.
    Receipt(Lsn),
    /// A will whose time has come, and that could not be published at once.
    DueWill(Lsn),
}

/// What all keys have: the kind, and the number.
pub(super) const KEY_HEAD_BYTES: usize = 9;

impl<'a> Key<'a> {
    /// Its bytes in two parts, the second of which most keys have not.
    pub(super) fn to_parts(self) -> ([u8; KEY_HEAD_BYTES], &'a str) {
        let (kind, Lsn(number), filter) = match self {
            Self::Session(lsn) => (SESSION, lsn, ""),
            Self::Subscription(lsn, filter) => (SUBSCRIPTION, lsn, filter),
            Self::Message(lsn) => (MESSAGE, lsn, ""),
            Self::Retained(lsn) => (RETAINED, lsn, ""),
            Self::Delivery(lsn) => (DELIVERY, lsn, ""),
            Self::Release(lsn) => (RELEASE, lsn, ""),
            Self::Receipt(lsn) => (RECEIPT, lsn, ""),
            Self::DueWill(lsn) => (DUE_WILL, lsn, ""),
        };
        let mut head = [kind; KEY_HEAD_BYTES];
        head[1..].copy_from_slice(&number.to_be_bytes());
        (head, filter)
    }

    /// Appends its bytes.
    pub fn write(self, out: &mut Vec<u8>) {
        let (head, filter) = self.to_parts();
        out.extend_from_slice(&head);
        out.extend_from_slice(filter.as_bytes());
    }

    /// The key that has these bytes.
    ///
    /// # Errors
    ///
    /// If they are those of no key.
    pub fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields(bytes);
        let kind = fields.byte()?;
        let lsn = Lsn(fields.u64()?);
        let key = match kind {
            SESSION => Self::Session(lsn),
            SUBSCRIPTION => {
                let filter = std::mem::take(&mut fields.0);
                Self::Subscription(lsn, std::str::from_utf8(filter).map_err(|_| RecordError::Text)?)
            }
            MESSAGE => Self::Message(lsn),
            RETAINED => Self::Retained(lsn),
            DELIVERY => Self::Delivery(lsn),
            RELEASE => Self::Release(lsn),
            RECEIPT => Self::Receipt(lsn),
            DUE_WILL => Self::DueWill(lsn),
            _ => return Err(RecordError::Kind(kind)),
        };
        fields.finish()?;
        Ok(key)
    }

    /// The number in it.
    pub const fn lsn(self) -> Lsn {
        match self {
            Self::Session(lsn)
            | Self::Subscription(lsn, _)
            | Self::Message(lsn)
            | Self::Retained(lsn)
            | Self::Delivery(lsn)
            | Self::Release(lsn)
            | Self::Receipt(lsn)
            | Self::DueWill(lsn) => lsn,
        }
    }
}

/// A session that outlives its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRecord<'a> {
    /// Whose it is.
    pub client_id: &'a str,
    /// Who authenticated when it was made.
    pub user: Option<&'a str>,
    /// Whether it will end with its present connection after all.
    pub ends_with_connection: bool,
    /// How long it waits for its client; `None` is for ever.
    pub expiry: Option<Duration>,
    /// Since when its client is away, by the wall clock; `None` while it is connected.
    pub absent_since: Option<Instant>,
    /// The will that is yet to be published, or never will be.
    pub will: Option<WillRecord<'a>>,
}

/// A will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WillRecord<'a> {
    /// Topic, properties and payload.
    pub message: MessageRecord<'a>,
    /// At which it is published.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
    /// How long the message is of use once it is published.
    pub expiry: Option<Duration>,
    /// From the end of the connection.
    pub delay: Duration,
    /// When it is to be published, once the connection has ended.
    pub due_at: Option<Instant>,
}

/// A subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionRecord {
    /// The highest QoS of a delivery.
    pub qos: QoS,
    /// Not what the subscriber published itself.
    pub no_local: bool,
    /// With the publisher's retain flag.
    pub retain_as_published: bool,
    /// To be named in a delivery; 0 is none.
    pub subscription_id: u32,
    /// Whether retained messages are still to be sent for it.
    pub streams: bool,
}

/// An application message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRecord<'a> {
    /// Its topic name.
    pub topic: &'a str,
    /// The bytes of the properties that are passed on.
    pub properties: &'a [u8],
    /// What it says.
    pub payload: &'a [u8],
    /// When nobody wants it any more, by the wall clock.
    pub expires_at: Option<Instant>,
}

/// That a message is retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedRecord {
    /// The message.
    pub message: Lsn,
    /// At which it was published.
    pub qos: QoS,
}

/// Who waits for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A session.
    Session(Lsn),
    /// A group, by the text of its shared subscription.
    Group(&'a str),
}

/// The group that may give a message to somebody else, and the flags that its publisher chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The text of the shared subscription.
    pub group: &'a str,
    /// The publisher's.
    pub qos: QoS,
    /// The publisher's.
    pub retain: bool,
}

/// That a message waits for somebody, or is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryRecord<'a> {
    /// Who waits.
    pub owner: Owner<'a>,
    /// For what.
    pub message: Lsn,
    /// At which it is delivered.
    pub qos: QoS,
    /// The retain flag it is delivered with.
    pub retain: bool,
    /// Under which identifier it was sent, if it was.
    pub packet_id: Option<PacketId>,
    /// The subscription identifiers it is delivered with, four bytes each with the high byte first.
    pub subscription_ids: &'a [u8],
    /// Where it came from, if it may go back there.
    pub origin: Option<Origin<'a>>,
}

/// That PUBREL was sent and PUBCOMP has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseRecord {
    /// To whom.
    pub session: Lsn,
    /// Under which identifier.
    pub packet_id: PacketId,
}

/// That a QoS 2 message was taken and not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptRecord {
    /// From whom.
    pub session: Lsn,
    /// Under which identifier.
    pub packet_id: PacketId,
}

/// A will whose time has come, and that could not be published at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueWillRecord<'a> {
    /// Whose it is, or was.
    pub session: Lsn,
    /// What it says.
    pub will: WillRecord<'a>,
}

/// What is kept under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each variant is the record of its name.
pub enum Record<'a> {
    Session(SessionRecord<'a>),
    Subscription(SubscriptionRecord),
    Message(MessageRecord<'a>),
    Retained(RetainedRecord),
    Delivery(DeliveryRecord<'a>),
    Release(ReleaseRecord),
    Receipt(ReceiptRecord),
    DueWill(DueWillRecord<'a>),
}

/// Why bytes are not those of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// They end too early.
    Truncated,
    /// They do not end where they should.
    TrailingBytes,
    /// A text is not UTF-8.
    Text,
    /// A field has a value that it cannot have.
    Value,
    /// There is no such kind of record.
    Kind(u8),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "a record ends too early",
            Self::TrailingBytes => "a record does not end where it should",
            Self::Text => "a text in a record is not UTF-8",
            Self::Value => "a record has a value that it cannot have",
            Self::Kind(kind) => return write!(f, "there is no record of kind {kind}"),
        })
    }
}

impl std::error::Error for RecordError {}

const FLAG_QOS: u8 = 0b11;
const FLAG_RETAIN: u8 = 0b100;
const FLAG_NO_LOCAL: u8 = 0b1000;
const FLAG_STREAMS: u8 = 0b1_0000;
const FLAG_ENDS: u8 = 1;
const FLAG_USER: u8 = 2;
const FLAG_WILL: u8 = 4;
const OWNER_SESSION: u8 = 0;
const OWNER_GROUP: u8 = 1;

const fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
}

impl<'a> Record<'a> {
    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Session(session) => write_session(out, session),
            Self::Subscription(subscription) => {
                out.push(
                    subscription.qos as u8
                        | flag(subscription.retain_as_published, FLAG_RETAIN)
                        | flag(subscription.no_local, FLAG_NO_LOCAL)
                        | flag(subscription.streams, FLAG_STREAMS),
                );
                out.extend_from_slice(&subscription.subscription_id.to_be_bytes());
            }
            Self::Message(message) => write_message(out, message),
            Self::Retained(retained) => {
                out.push(retained.qos as u8);
                put_lsn(out, retained.message);
            }
            Self::Delivery(delivery) => write_delivery(out, delivery),
            Self::Release(ReleaseRecord { session, packet_id })
            | Self::Receipt(ReceiptRecord { session, packet_id }) => {
                put_lsn(out, *session);
                out.extend_from_slice(&packet_id.number().to_be_bytes());
            }
            Self::DueWill(DueWillRecord { session, will }) => {
                put_lsn(out, *session);
                write_will(out, will);
            }
        }
    }

    /// The record that stands under a key.
    ///
    /// # Errors
    ///
    /// If the bytes are not those of such a record.
    pub fn read(key: Key<'_>, bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut fields = Fields(bytes);
        let record = match key {
            Key::Session(_) => Self::Session(read_session(&mut fields)?),
            Key::Subscription(..) => {
                let flags = fields.flags(FLAG_QOS | FLAG_NO_LOCAL | FLAG_RETAIN | FLAG_STREAMS)?;
                Self::Subscription(SubscriptionRecord {
                    qos: qos(flags)?,
                    no_local: flags & FLAG_NO_LOCAL != 0,
                    retain_as_published: flags & FLAG_RETAIN != 0,
                    streams: flags & FLAG_STREAMS != 0,
                    subscription_id: fields.u32()?,
                })
            }
            Key::Message(_) => Self::Message(read_message(&mut fields)?),
            Key::Retained(_) => {
                Self::Retained(RetainedRecord { qos: qos(fields.flags(FLAG_QOS)?)?, message: fields.lsn()? })
            }
            Key::Delivery(_) => Self::Delivery(read_delivery(&mut fields)?),
            Key::Release(_) => {
                Self::Release(ReleaseRecord { session: fields.lsn()?, packet_id: fields.packet_id()? })
            }
            Key::Receipt(_) => {
                Self::Receipt(ReceiptRecord { session: fields.lsn()?, packet_id: fields.packet_id()? })
            }
            Key::DueWill(_) => {
                Self::DueWill(DueWillRecord { session: fields.lsn()?, will: read_will(&mut fields)? })
            }
        };
        fields.finish()?;
        Ok(record)
    }
}

fn qos(flags: u8) -> Result<QoS, RecordError> {
    QoS::new(flags & FLAG_QOS).ok_or(RecordError::Value)
}

fn put_lsn(out: &mut Vec<u8>, Lsn(number): Lsn) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("a packet has less than 2^28 bytes");
    out.extend_from_slice(&length.to_be_bytes());
}

/// `None` is a number that never comes.
fn put_millis(out: &mut Vec<u8>, millis: Option<u64>) {
    out.extend_from_slice(&millis.unwrap_or(u64::MAX).to_be_bytes());
}

fn write_session(out: &mut Vec<u8>, session: &SessionRecord<'_>) {
    let SessionRecord { client_id, user, ends_with_connection, expiry, absent_since, will } = session;
    out.push(
        flag(*ends_with_connection, FLAG_ENDS)
            | flag(user.is_some(), FLAG_USER)
            | flag(will.is_some(), FLAG_WILL),
    );
    put_millis(out, expiry.map(|expiry| expiry.0));
    put_millis(out, absent_since.map(|since| since.0));
    put_bytes(out, client_id.as_bytes());
    if let Some(user) = user {
        put_bytes(out, user.as_bytes());
    }
    if let Some(will) = will {
        write_will(out, will);
    }
}

fn write_will(out: &mut Vec<u8>, will: &WillRecord<'_>) {
    let WillRecord { message, qos, retain, expiry, delay, due_at } = will;
    out.push(*qos as u8 | flag(*retain, FLAG_RETAIN));
    put_millis(out, expiry.map(|expiry| expiry.0));
    put_millis(out, Some(delay.0));
    put_millis(out, due_at.map(|due_at| due_at.0));
    write_message(out, message);
}

fn read_session<'a>(fields: &mut Fields<'a>) -> Result<SessionRecord<'a>, RecordError> {
    let flags = fields.flags(FLAG_ENDS | FLAG_USER | FLAG_WILL)?;
    let expiry = fields.millis()?.map(Duration);
    let absent_since = fields.millis()?.map(Instant);
    let client_id = fields.text()?;
    let user = if flags & FLAG_USER != 0 { Some(fields.text()?) } else { None };
    let will = if flags & FLAG_WILL != 0 { Some(read_will(fields)?) } else { None };
    let ends_with_connection = flags & FLAG_ENDS != 0;
    Ok(SessionRecord { client_id, user, ends_with_connection, expiry, absent_since, will })
}

fn read_will<'a>(fields: &mut Fields<'a>) -> Result<WillRecord<'a>, RecordError> {
    let flags = fields.flags(FLAG_QOS | FLAG_RETAIN)?;
    Ok(WillRecord {
        qos: qos(flags)?,
        retain: flags & FLAG_RETAIN != 0,
        expiry: fields.millis()?.map(Duration),
        delay: fields.millis()?.map(Duration).ok_or(RecordError::Value)?,
        due_at: fields.millis()?.map(Instant),
        message: read_message(fields)?,
    })
}

/// The payload is all that stands behind the rest.
fn write_message(out: &mut Vec<u8>, message: &MessageRecord<'_>) {
    let MessageRecord { topic, properties, payload, expires_at } = message;
    write_message_parts(out, topic.as_bytes(), properties, payload, *expires_at);
}

/// The same of a message whose topic is known to be a text.
pub(super) fn write_message_parts(
    out: &mut Vec<u8>,
    topic: &[u8],
    properties: &[u8],
    payload: &[u8],
    expires_at: Option<Instant>,
) {
    write_message_head(out, topic, properties.len(), expires_at);
    out.extend_from_slice(properties);
    out.extend_from_slice(payload);
}

/// What stands before the properties, and then the payload.
pub(super) fn write_message_head(
    out: &mut Vec<u8>,
    topic: &[u8],
    properties_length: usize,
    expires_at: Option<Instant>,
) {
    put_millis(out, expires_at.map(|expires_at| expires_at.0));
    put_bytes(out, topic);
    put_length(out, properties_length);
}

fn read_message<'a>(fields: &mut Fields<'a>) -> Result<MessageRecord<'a>, RecordError> {
    Ok(MessageRecord {
        expires_at: fields.millis()?.map(Instant),
        topic: fields.text()?,
        properties: fields.bytes()?,
        payload: std::mem::take(&mut fields.0),
    })
}

fn write_delivery(out: &mut Vec<u8>, delivery: &DeliveryRecord<'_>) {
    let DeliveryRecord { owner, message, qos, retain, packet_id, subscription_ids, origin } = delivery;
    out.push(*qos as u8 | flag(*retain, FLAG_RETAIN));
    put_lsn(out, *message);
    // 0 is no packet identifier [MQTT-2.3.1-1].
    out.extend_from_slice(&packet_id.map_or(0, PacketId::number).to_be_bytes());
    match owner {
        Owner::Session(session) => {
            out.push(OWNER_SESSION);
            put_lsn(out, *session);
        }
        Owner::Group(text) => {
            out.push(OWNER_GROUP);
            put_bytes(out, text.as_bytes());
        }
    }
    if origin.is_some() || !subscription_ids.is_empty() {
        put_bytes(out, subscription_ids);
    }
    if let Some(Origin { group, qos, retain }) = origin {
        out.push(*qos as u8 | flag(*retain, FLAG_RETAIN));
        put_bytes(out, group.as_bytes());
    }
}

fn read_delivery<'a>(fields: &mut Fields<'a>) -> Result<DeliveryRecord<'a>, RecordError> {
    let flags = fields.flags(FLAG_QOS | FLAG_RETAIN)?;
    let message = fields.lsn()?;
    let packet_id = PacketId::new(fields.u16()?);
    let owner = match fields.byte()? {
        OWNER_SESSION => Owner::Session(fields.lsn()?),
        OWNER_GROUP => Owner::Group(fields.text()?),
        _ => return Err(RecordError::Value),
    };
    let subscription_ids = if fields.0.is_empty() { &[] } else { fields.bytes()? };
    if !subscription_ids.len().is_multiple_of(4) {
        return Err(RecordError::Value);
    }
    let origin = if fields.0.is_empty() {
        None
    } else {
        let flags = fields.flags(FLAG_QOS | FLAG_RETAIN)?;
        Some(Origin { qos: qos(flags)?, retain: flags & FLAG_RETAIN != 0, group: fields.text()? })
    };
    let (qos, retain) = (qos(flags)?, flags & FLAG_RETAIN != 0);
    Ok(DeliveryRecord { owner, message, qos, retain, packet_id, subscription_ids, origin })
}

/// A cursor over the bytes of a record. Every step checks that the bytes are there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(RecordError::Truncated)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        self.array().map(|[byte]| byte)
    }

    /// A byte in which only these bits have a meaning.
    fn flags(&mut self, known: u8) -> Result<u8, RecordError> {
        self.byte().and_then(|flags| if flags & !known == 0 { Ok(flags) } else { Err(RecordError::Value) })
    }

    fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, RecordError> {
        self.u64().map(Lsn)
    }

    fn millis(&mut self) -> Result<Option<u64>, RecordError> {
        self.u64().map(|millis| (millis != u64::MAX).then_some(millis))
    }

    fn packet_id(&mut self) -> Result<PacketId, RecordError> {
        PacketId::new(self.u16()?).ok_or(RecordError::Value)
    }

    fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(RecordError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| RecordError::Text)
    }

    fn finish(self) -> Result<(), RecordError> {
        if self.0.is_empty() { Ok(()) } else { Err(RecordError::TrailingBytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Batch;
    use super::super::batch::Change;
    use super::*;

    fn examples() -> Vec<(Key<'static>, Record<'static>)> {
        let message = MessageRecord {
            topic: "a/ü",
            properties: &[3, 0, 1, b'x'],
            payload: b"payload",
            expires_at: Some(Instant(77)),
        };
        let will = WillRecord {
            message: MessageRecord { expires_at: None, payload: b"", ..message },
            qos: QoS::ExactlyOnce,
            retain: true,
            expiry: Some(Duration(5)),
            delay: Duration(9),
            due_at: Some(Instant(10)),
        };
        let session = SessionRecord {
            client_id: "till-1",
            user: Some("me"),
            ends_with_connection: false,
            expiry: None,
            absent_since: Some(Instant(4)),
            will: Some(will),
        };
        let plain = SessionRecord {
            user: None,
            will: None,
            ends_with_connection: true,
            absent_since: None,
            expiry: Some(Duration(0)),
            ..session
        };
        let subscription = SubscriptionRecord {
            qos: QoS::AtLeastOnce,
            no_local: true,
            retain_as_published: false,
            subscription_id: 7,
            streams: true,
        };
        let delivery = DeliveryRecord {
            owner: Owner::Session(Lsn(1)),
            message: Lsn(3),
            qos: QoS::ExactlyOnce,
            retain: true,
            packet_id: PacketId::new(9),
            subscription_ids: &[0, 0, 0, 5],
            origin: Some(Origin { group: "$share/g/a", qos: QoS::AtLeastOnce, retain: true }),
        };
        let queued = DeliveryRecord {
            owner: Owner::Group("$share/g/a"),
            packet_id: None,
            subscription_ids: &[],
            origin: None,
            ..delivery
        };
        let packet_id = PacketId::FIRST;
        vec![
            (Key::Session(Lsn(1)), Record::Session(session)),
            (Key::Session(Lsn(2)), Record::Session(plain)),
            (Key::Subscription(Lsn(1), "a/+"), Record::Subscription(subscription)),
            (Key::Message(Lsn(3)), Record::Message(message)),
            (
                Key::Retained(Lsn(4)),
                Record::Retained(RetainedRecord { message: Lsn(3), qos: QoS::AtMostOnce }),
            ),
            (Key::Delivery(Lsn(5)), Record::Delivery(delivery)),
            (Key::Delivery(Lsn(6)), Record::Delivery(queued)),
            (Key::Release(Lsn(7)), Record::Release(ReleaseRecord { session: Lsn(1), packet_id })),
            (Key::Receipt(Lsn(8)), Record::Receipt(ReceiptRecord { session: Lsn(2), packet_id })),
            (Key::DueWill(Lsn(9)), Record::DueWill(DueWillRecord { session: Lsn(2), will })),
        ]
    }

    #[test]
    fn a_batch_reads_back_what_was_put_into_it() {
        let mut batch = Batch::default();
        for (key, record) in examples() {
            batch.put(key, &record);
        }
        batch.remove(Key::Subscription(Lsn(1), "b/#"));
        let bytes = batch.to_bytes();
        let mut changes = Batch::changes_in(&bytes).map(|change| change.expect("it is whole"));
        for (key, record) in examples() {
            let Some(Change::Put(key_bytes, value)) = changes.next() else { panic!("a put") };
            assert_eq!(Key::read(key_bytes), Ok(key));
            assert_eq!(Record::read(key, value), Ok(record));
        }
        let Some(Change::Remove(key)) = changes.next() else { panic!("a removal") };
        assert_eq!(Key::read(key), Ok(Key::Subscription(Lsn(1), "b/#")));
        assert_eq!((changes.next(), batch.len()), (None, examples().len() + 1));
    }

    #[test]
    fn keys_sort_by_kind_and_age() {
        let bytes = |key: Key<'_>| {
            let mut bytes = Vec::new();
            key.write(&mut bytes);
            bytes
        };
        let keys = examples().into_iter().map(|(key, _)| bytes(key));
        assert!(keys.is_sorted());
        assert!(bytes(Key::Delivery(Lsn(255))) < bytes(Key::Delivery(Lsn(256))));
    }

    #[test]
    fn cut_or_changed_bytes_are_an_error_or_another_record() {
        for (key, record) in examples() {
            let mut value = Vec::new();
            record.write(&mut value);
            for length in 0..value.len() {
                // A payload, and a list at the end, may have any length.
                if let Ok(shorter) = Record::read(key, &value[..length]) {
                    assert_ne!(shorter, record);
                }
            }
            for at in 0..value.len() {
                let mut changed = value.clone();
                changed[at] ^= 0x80;
                assert_ne!(Record::read(key, &changed), Ok(record));
            }
        }
        let mut batch = Batch::default();
        examples().iter().for_each(|(key, record)| batch.put(*key, record));
        let bytes = batch.to_bytes();
        let cut = &bytes[..bytes.len() - 1];
        let last = Batch::changes_in(cut).last();
        assert_eq!(last, Some(Err(RecordError::Truncated)));
    }
}
