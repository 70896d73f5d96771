//! Who sends what to whom, and when.

use std::time::Duration;

use broker::codec::QoS;

/// What a payload has if nothing else is said.
pub(crate) const PAYLOAD_BYTES: usize = 64;

/// Who talks to whom: as many subscribers as publishers are pairs; a lone one hears all publishers, by a wildcard, and a lone
/// publisher is heard by all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) publishers: usize,
    pub(crate) subscribers: usize,
}

impl Shape {
    /// How many subscribers get each message.
    pub(crate) fn receivers(self) -> usize {
        if self.publishers == 1 { self.subscribers } else { 1 }
    }
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) qos: QoS,
    /// Messages that each publisher has on their way at most: not above 65,535, for the sake of their identifiers.
    pub(crate) window: u64,
    /// A publisher waits until it may send so many at once: 1 never waits.
    pub(crate) batch: u64,
    /// Messages a second of all publishers together, each at a time of its own, whatever has become of those before it. If
    /// there is no rate, they are sent as soon as the window allows.
    pub(crate) per_second: Option<f64>,
    pub(crate) payload_bytes: usize,
    /// Topics that each publisher has, and goes through in turn; a subscriber that hears it does so by a wildcard if
    /// there are several.
    pub(crate) topics: u64,
    /// Whether the messages are to be retained.
    pub(crate) is_retained: bool,
    /// Whether the subscribers' sessions outlive their connections.
    pub(crate) is_stored: bool,
    /// Whether there are no subscribers here: what becomes of the messages is for somebody else to see.
    pub(crate) is_absent: bool,
}

impl Plan {
    /// A load of small messages to subscribers that are there.
    pub(crate) const fn new(shape: Shape, qos: QoS, window: u64, batch: u64) -> Self {
        Self {
            shape,
            qos,
            window,
            batch,
            per_second: None,
            payload_bytes: PAYLOAD_BYTES,
            topics: 1,
            is_retained: false,
            is_stored: false,
            is_absent: false,
        }
    }

    pub(crate) fn publishers(&self) -> usize {
        self.shape.publishers
    }

    pub(super) fn subscribers(&self) -> usize {
        if self.is_absent { 0 } else { self.shape.subscribers }
    }

    /// How many subscribers get each message.
    pub(crate) fn receivers(&self) -> u64 {
        if self.is_absent { 0 } else { self.shape.receivers() as u64 }
    }

    /// What this subscriber subscribes to.
    pub(crate) fn filter(&self, subscriber: usize) -> String {
        let Shape { publishers, subscribers } = self.shape;
        let publisher = match (publishers == subscribers, publishers) {
            (true, _) => subscriber.to_string(),
            (false, 1) => "0".to_owned(),
            (false, _) => "+".to_owned(),
        };
        format!("bench/flow/{publisher}{}", if self.topics == 1 { "" } else { "/+" })
    }

    /// The first topic of a publisher. Those of one that has several differ in their last `TOPIC_DIGITS` bytes.
    pub(super) fn topic(&self, publisher: usize) -> String {
        if self.topics == 1 {
            format!("bench/flow/{publisher}")
        } else {
            format!("bench/flow/{publisher}/{:0TOPIC_DIGITS$}", 0)
        }
    }

    /// When a message is to be sent, from the beginning, if there is a rate.
    pub(super) fn due(&self, publisher: usize, number: u64) -> Option<Duration> {
        let place = (number * self.publishers() as u64 + publisher as u64) as f64;
        self.per_second.map(|rate| Duration::from_secs_f64(place / rate))
    }

    /// How many messages of a publisher are to have been sent by then.
    pub(super) fn due_by(&self, publisher: usize, time: Duration) -> u64 {
        let Some(rate) = self.per_second else { return u64::MAX };
        let places = time.as_secs_f64() * rate - publisher as f64;
        if places < 0.0 { 0 } else { (places / self.publishers() as f64) as u64 + 1 }
    }
}

/// Digits by which the topics of one publisher differ.
pub(super) const TOPIC_DIGITS: usize = 7;
