//! An application message that outlives the tick in which it arrived.
//!
//! One block of bytes holds topic and payload; everybody who waits for the message shares it. It never borrows from
//! a read buffer, so a waiting message keeps alive what it needs and no more. The sum of all living messages is
//! counted exactly, because a message reports its own birth and end to a [`Gauge`].
//!
//! Deliberately not here: QoS and RETAIN, which belong to each delivery and not to the message.

use std::cell::Cell;
use std::rc::Rc;

use crate::topics::retained_tree::Retained;

/// Bytes that one message costs beside its topic and payload: the two allocations and their bookkeeping.
const OVERHEAD_BYTES: u64 = 64;

/// The bytes of all living messages.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Rc<Cell<u64>>);

impl Gauge {
    /// Bytes of all living messages, bookkeeping included.
    pub fn bytes(&self) -> u64 {
        self.0.get()
    }
}

/// A shared application message.
#[derive(Clone, Debug)]
pub struct Message(Rc<Body>);

#[derive(Debug)]
struct Body {
    block: Box<[u8]>,
    topic_length: u32,
    gauge: Gauge,
}

impl Message {
    /// Copies topic and payload into a block of their own.
    pub fn new(topic: &str, payload: &[u8], gauge: &Gauge) -> Self {
        let mut block = Vec::with_capacity(topic.len() + payload.len());
        block.extend_from_slice(topic.as_bytes());
        block.extend_from_slice(payload);
        let body = Body {
            block: block.into_boxed_slice(),
            topic_length: u32::try_from(topic.len()).expect("a topic has at most 65,535 bytes"),
            gauge: gauge.clone(),
        };
        gauge.0.set(gauge.0.get() + body.size());
        Self(Rc::new(body))
    }

    /// The topic name.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.0.block[..self.0.topic_length as usize]).expect("built from a str")
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.0.block[self.0.topic_length as usize..]
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
        let bytes = &self.gauge.0;
        bytes.set(bytes.get() - self.size());
    }
}

/// A message kept for later subscribers, with the QoS it was published at [MQTT-3.3.1-5].
#[derive(Clone, Debug)]
pub struct RetainedMessage {
    /// Topic and payload.
    pub message: Message,
    /// The QoS it was published at.
    pub qos: crate::codec::QoS,
}

impl Retained for RetainedMessage {
    fn topic(&self) -> &str {
        self.message.topic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gauge_follows_the_last_holder() {
        let gauge = Gauge::default();
        let message = Message::new("a/b", b"xyz", &gauge);
        let other = message.clone();
        assert_eq!((message.topic(), message.payload()), ("a/b", b"xyz".as_slice()));
        assert_eq!(gauge.bytes(), message.size());
        drop(message);
        assert_eq!(gauge.bytes(), other.size());
        drop(other);
        assert_eq!(gauge.bytes(), 0);
    }
}
