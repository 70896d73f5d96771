//! An application message that outlives the tick in which it arrived.
//!
//! One block of bytes holds topic, forwarded properties and payload; everybody who waits for the message shares it. It
//! never borrows from a read buffer, so a waiting message keeps alive what it needs and no more. The sum of all living
//! messages is counted exactly, because a message reports its own birth and end to a [`Gauge`].
//!
//! Deliberately not here: QoS and RETAIN, which belong to each delivery and not to the message.

use std::cell::Cell;
use std::rc::Rc;

use crate::clock::Instant;
use crate::codec::Properties;
use crate::journal::Lsn;
use crate::topics::retained_tree::Retained;

/// Bytes that one message costs beside its topic, properties and payload: the two allocations and their bookkeeping.
const OVERHEAD_BYTES: u64 = 72;

/// When a message expires that does not: without a word of its own for "never" a message takes 16 bytes less.
const NEVER: Instant = Instant(u64::MAX);

/// The bytes of all living messages, and of what else is kept for each of their receivers.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Rc<Cell<u64>>);

impl Gauge {
    /// Bytes of all living messages, bookkeeping included.
    pub fn bytes(&self) -> u64 {
        self.0.get()
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.set(self.0.get() + bytes);
    }

    pub(super) fn subtract(&self, bytes: u64) {
        self.0.set(self.0.get() - bytes);
    }
}

/// A message as it came: borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The topic name.
    pub topic: &'a str,
    /// The properties that are passed on as they came.
    pub properties: Properties<'a>,
    /// The payload.
    pub payload: &'a [u8],
    /// When nobody wants it any more; `None` is never.
    pub expires_at: Option<Instant>,
}

/// A shared application message.
#[derive(Clone, Debug)]
pub struct Message(Rc<Body>);

#[derive(Debug)]
struct Body {
    block: Box<[u8]>,
    topic_length: u32,
    /// Where the payload begins.
    payload_at: u32,
    expires_at: Instant,
    /// Under which number it is stored, and how many records refer to that; kept by the journal.
    record: Cell<Lsn>,
    holders: Cell<u32>,
    gauge: Gauge,
}

impl Message {
    /// Copies a message into a block of its own.
    pub fn new(content: &Content<'_>, gauge: &Gauge) -> Self {
        let Content { topic, properties, payload, expires_at } = *content;
        let properties = properties.as_bytes();
        let mut block = Vec::with_capacity(topic.len() + properties.len() + payload.len());
        block.extend_from_slice(topic.as_bytes());
        block.extend_from_slice(properties);
        let payload_at = u32::try_from(block.len()).expect("a packet has less than 2^28 bytes");
        block.extend_from_slice(payload);
        let body = Body {
            block: block.into_boxed_slice(),
            topic_length: u32::try_from(topic.len()).expect("a topic has at most 65,535 bytes"),
            payload_at,
            expires_at: expires_at.unwrap_or(NEVER),
            record: Cell::default(),
            holders: Cell::default(),
            gauge: gauge.clone(),
        };
        gauge.add(body.size());
        Self(Rc::new(body))
    }

    /// The topic name.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(self.topic_bytes()).expect("built from a str")
    }

    /// The bytes of the topic name.
    pub fn topic_bytes(&self) -> &[u8] {
        &self.0.block[..self.0.topic_length as usize]
    }

    /// The properties that are passed on.
    pub fn properties(&self) -> Properties<'_> {
        Properties::checked_before(&self.0.block[self.0.topic_length as usize..self.0.payload_at as usize])
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.0.block[self.0.payload_at as usize..]
    }

    /// The end of the message that can be sent as it is: the payload, and the properties before it if they are wanted.
    pub fn tail(&self, with_properties: bool) -> &[u8] {
        let from = if with_properties { self.0.topic_length } else { self.0.payload_at };
        &self.0.block[from as usize..]
    }

    /// When nobody wants it any more; `None` is never.
    pub fn expires_at(&self) -> Option<Instant> {
        Some(self.0.expires_at).filter(|expires_at| *expires_at != NEVER)
    }

    /// Whether nobody wants it any more [MQTT5-3.3.2-5].
    pub fn is_expired(&self, now: Instant) -> bool {
        self.0.expires_at <= now
    }

    /// Under which number it is stored, and how many records refer to that.
    pub(super) fn record(&self) -> (Lsn, u32) {
        (self.0.record.get(), self.0.holders.get())
    }

    pub(super) fn set_record(&self, record: Lsn, holders: u32) {
        self.0.record.set(record);
        self.0.holders.set(holders);
    }

    /// Bytes of memory that the message takes, bookkeeping included.
    pub fn size(&self) -> u64 {
        self.0.size()
    }
}

impl Body {
    fn size(&self) -> u64 {
        self.block.len() as u64 + OVERHEAD_BYTES
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.gauge.subtract(self.size());
    }
}

/// A message kept for later subscribers, with the QoS it was published at [MQTT-3.3.1-5].
#[derive(Clone, Debug)]
pub struct RetainedMessage {
    /// Topic and payload.
    pub message: Message,
    /// The QoS it was published at.
    pub qos: crate::codec::QoS,
    /// Under which number it is stored as such.
    pub(super) record: Lsn,
}

impl Retained for RetainedMessage {
    fn topic(&self) -> &str {
        self.message.topic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Property;
    use crate::codec::property::PropertyList;

    #[test]
    fn the_gauge_follows_the_last_holder() {
        let gauge = Gauge::default();
        let properties = PropertyList::from_iter([Property::ContentType("text")]);
        let content = Content {
            topic: "a/b",
            properties: properties.as_properties(),
            payload: b"xyz",
            expires_at: Some(Instant(7)),
        };
        let message = Message::new(&content, &gauge);
        let other = message.clone();
        assert_eq!((message.topic(), message.payload()), ("a/b", b"xyz".as_slice()));
        assert_eq!(message.properties(), content.properties);
        assert!(message.is_expired(Instant(7)) && !message.is_expired(Instant(6)));
        assert_eq!(gauge.bytes(), message.size());
        drop(message);
        assert_eq!(gauge.bytes(), other.size());
        drop(other);
        assert_eq!(gauge.bytes(), 0);
    }
}
