//! An application message that outlives the tick in which it arrived.
//!
//! One block of bytes holds topic, forwarded properties and payload; everybody who waits for the message shares it. It
//! never borrows from a read buffer, so a waiting message keeps alive what it needs and no more. The sum of all living
//! messages is counted exactly, because a message reports its own birth and end to a [`Gauge`].
//!
//! The memory of small messages that have ended is kept for the next ones: in a process with several threads, which a store
//! makes of it, the allocator's locked instructions cost a message at QoS 1 a tenth. The gauge counts what messages need,
//! and neither these spares nor the few bytes by which one may be longer.
//!
//! Deliberately not here: QoS and RETAIN, which belong to each delivery and not to the message.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use crate::clock::Instant;
use crate::codec::Properties;
use crate::journal::Lsn;
use crate::topics::retained_tree::Retained;

/// Bytes that one message costs beside its topic, properties and payload: the two allocations and their bookkeeping.
const OVERHEAD_BYTES: u64 = 72;

/// When a message expires that does not: without a word of its own for "never" a message takes 16 bytes less.
const NEVER: Instant = Instant(u64::MAX);

/// The memory of so many messages is kept at most, as long as they are no longer than that.
const SPARES_MAX: usize = 1_024;
const SPARE_BYTES_MAX: usize = 256;

/// A message takes the memory of one that was longer by so much at most.
const UNUSED_BYTES_MAX: usize = 32;

/// The bytes of all living messages, and of what else is kept for each of their receivers.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Rc<Ledger>);

#[derive(Default)]
struct Ledger {
    bytes: Cell<u64>,
    /// Bodies of messages that have ended.
    spares: Cell<Vec<Rc<Body>>>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Gauge {
    /// Bytes of all living messages, bookkeeping included.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.bytes.set(self.0.bytes.get() + bytes);
    }

    pub(super) fn subtract(&self, bytes: u64) {
        self.0.bytes.set(self.0.bytes.get() - bytes);
    }

    fn take_spare(&self) -> Option<Rc<Body>> {
        let mut spares = self.0.spares.take();
        let spare = spares.pop();
        self.0.spares.set(spares);
        spare
    }

    fn keep_spare(&self, body: Rc<Body>) {
        let mut spares = self.0.spares.take();
        if spares.len() < SPARES_MAX {
            spares.push(body);
        }
        self.0.spares.set(spares);
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
    /// What is behind `length` is not used.
    block: Box<[u8]>,
    /// `None` if this is spare.
    gauge: Option<Gauge>,
    expires_at: Instant,
    /// Under which number it is stored, and how many records refer to that; kept by the journal.
    record: Cell<Lsn>,
    holders: Cell<u32>,
    length: u32,
    /// Where the payload begins.
    payload_at: u32,
    topic_length: u16,
}

impl Message {
    /// Whether both are the same one, and not only alike.
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Copies a message into a block of its own.
    pub fn new(content: &Content<'_>, gauge: &Gauge) -> Self {
        let Content { topic, properties, payload, expires_at } = *content;
        let parts = [topic.as_bytes(), properties.as_bytes(), payload];
        let payload_at = topic.len() + properties.as_bytes().len();
        let length = payload_at + payload.len();
        let mut spare = gauge.take_spare();
        let mut body = Body {
            block: block_of(parts, length, spare.as_mut().and_then(Rc::get_mut)),
            gauge: Some(gauge.clone()),
            expires_at: expires_at.unwrap_or(NEVER),
            record: Cell::default(),
            holders: Cell::default(),
            length: u32::try_from(length).expect("a packet has less than 2^28 bytes"),
            payload_at: u32::try_from(payload_at).expect("a packet has less than 2^28 bytes"),
            topic_length: u16::try_from(topic.len()).expect("a topic has at most 65,535 bytes"),
        };
        gauge.add(body.size());
        Self(match spare {
            Some(mut shared) => {
                let Some(place) = Rc::get_mut(&mut shared) else { unreachable!("nobody shares a spare") };
                std::mem::swap(place, &mut body);
                shared
            }
            None => Rc::new(body),
        })
    }

    /// One of those who have it does not need it any more. Dropping it is all that is to be done; where most messages end,
    /// this keeps their memory for others.
    #[inline]
    pub(super) fn end(mut self) {
        if let Some(body) = Rc::get_mut(&mut self.0)
            && body.block.len() <= SPARE_BYTES_MAX
            && let Some(gauge) = body.gauge.take()
        {
            gauge.subtract(body.size());
            gauge.keep_spare(self.0);
        }
    }

    /// The topic name.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(self.topic_bytes()).expect("built from a str")
    }

    /// The bytes of the topic name.
    pub fn topic_bytes(&self) -> &[u8] {
        let body = &self.0;
        &body.block[..body.topic_length as usize]
    }

    /// The properties that are passed on.
    pub fn properties(&self) -> Properties<'_> {
        let body = &self.0;
        Properties::checked_before(&body.block[body.topic_length as usize..body.payload_at as usize])
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.tail(false)
    }

    /// The end of the message that can be sent as it is: the payload, and the properties before it if they are wanted.
    pub fn tail(&self, with_properties: bool) -> &[u8] {
        let body = &self.0;
        let from = if with_properties { u32::from(body.topic_length) } else { body.payload_at };
        &body.block[from as usize..body.length as usize]
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

    /// Bytes of memory that the message needs, bookkeeping included.
    pub fn size(&self) -> u64 {
        self.0.size()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.subtract(self.size());
        }
    }
}

impl Body {
    fn size(&self) -> u64 {
        u64::from(self.length) + OVERHEAD_BYTES
    }
}

/// These bytes one behind the other, in the block of a spare if that fits.
#[inline]
fn block_of(parts: [&[u8]; 3], length: usize, spare: Option<&mut Body>) -> Box<[u8]> {
    if let Some(spare) = spare
        && length <= spare.block.len()
        && spare.block.len() <= length + UNUSED_BYTES_MAX
    {
        let mut rest = &mut spare.block[..];
        for part in parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
        return std::mem::take(&mut spare.block);
    }
    let mut block = Vec::with_capacity(length);
    parts.iter().for_each(|part| block.extend_from_slice(part));
    block.into_boxed_slice()
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

    fn topic_bytes(&self) -> &[u8] {
        self.message.topic_bytes()
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

    #[test]
    fn a_message_takes_the_memory_of_one_that_has_ended() {
        let gauge = Gauge::default();
        let message = |topic: &str, payload: &[u8]| {
            let content = Content { topic, properties: Properties::NONE, payload, expires_at: None };
            let message = Message::new(&content, &gauge);
            assert_eq!((message.topic(), message.payload()), (topic, payload));
            assert!(message.properties().is_empty() && message.record() == (Lsn::NONE, 0));
            message
        };
        let address = |message: &Message| message.topic_bytes().as_ptr();
        let first = message("a/b", &[1; 40]);
        let kept = address(&first);
        first.set_record(Lsn(5), 2);
        first.end();
        let second = message("longer/topic", &[2; 30]);
        assert_eq!(address(&second), kept);
        let third = message("a", &[3; 42]);
        assert_ne!(address(&third), kept, "the memory of the living is their own");
        assert_eq!(gauge.bytes(), second.size() + third.size());
        drop((second, third));
        drop(message("a", &[4; 5]));
        drop(message("a", &[5; 100]));
        assert_eq!(gauge.bytes(), 0);
    }
}
