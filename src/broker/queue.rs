//! Messages that wait: for a client that is absent or busy, or for any member of a group.
//!
//! Invariants: `bytes` is the sum of the sizes in the list; nothing in it expires before `earliest_expiry`.
//!
//! Deliberately not here: the counters of the whole broker (see `Outputs`), and who takes from it.

use crate::clock::Instant;
use crate::metrics::DropReason;

use super::blocks::Blocks;
use super::delivery::Delivery;
use super::event::Limit;
use super::options::Options;

/// A queue that once was longer than this gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 64;

/// Messages that wait, the oldest first. Behind a pointer: for most nothing ever waits.
#[derive(Debug, Default)]
pub(super) struct Queue(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    list: Blocks<Delivery>,
    bytes: u64,
    earliest_expiry: Option<Instant>,
    /// Whether a full queue was logged since it was last empty.
    full_logged: bool,
}

impl Waiting {
    fn count_in(&mut self, delivery: &Delivery) {
        self.bytes += delivery.size();
        self.earliest_expiry = self.earliest_expiry.into_iter().chain(delivery.message.expires_at()).min();
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.list.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which limit keeps a delivery of this size out.
    pub(super) fn limit_for(&self, size: u64, options: &Options) -> Option<(DropReason, Limit, u64)> {
        let bytes = self.0.as_ref().map_or(0, |waiting| waiting.bytes);
        if self.len() >= options.queued_messages_max as usize {
            let value = u64::from(options.queued_messages_max);
            Some((DropReason::QueueMessagesFull, Limit::QueuedMessages, value))
        } else if bytes + size > options.queued_bytes_max {
            Some((DropReason::QueueBytesFull, Limit::QueuedBytes, options.queued_bytes_max))
        } else {
            None
        }
    }

    /// Notes that something did not fit. True the first time since it was last empty.
    pub(super) fn note_full(&mut self) -> bool {
        !std::mem::replace(&mut self.0.get_or_insert_default().full_logged, true)
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        let waiting = self.0.get_or_insert_default();
        waiting.count_in(&delivery);
        waiting.list.push_back(delivery);
    }

    /// Puts deliveries before all others, in their order.
    pub(super) fn push_front(&mut self, deliveries: Vec<Delivery>) {
        let waiting = self.0.get_or_insert_default();
        for delivery in deliveries.into_iter().rev() {
            waiting.count_in(&delivery);
            waiting.list.push_front(delivery);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Delivery> {
        let waiting = self.0.as_mut()?;
        let delivery = waiting.list.pop_front()?;
        waiting.bytes -= delivery.size();
        if waiting.list.is_empty() {
            if waiting.list.first_capacity() > KEPT_CAPACITY {
                self.0 = None; // A long absence leaves a large buffer behind.
            } else {
                (waiting.earliest_expiry, waiting.full_logged) = (None, false);
            }
        }
        Some(delivery)
    }

    /// Takes out what has expired.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Delivery> {
        let mut expired = Vec::new();
        if let Some(waiting) = &mut self.0
            && waiting.earliest_expiry.is_some_and(|earliest| earliest <= now)
        {
            (waiting.earliest_expiry, waiting.bytes) = (None, 0);
            let mut all = std::mem::take(&mut waiting.list);
            while let Some(delivery) = all.pop_front() {
                if delivery.message.is_expired(now) {
                    expired.push(delivery);
                } else {
                    waiting.count_in(&delivery);
                    waiting.list.push_back(delivery);
                }
            }
        }
        expired
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.0.iter().flat_map(|waiting| waiting.list.iter())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Delivery> {
        self.0.iter_mut().flat_map(|waiting| waiting.list.iter_mut())
    }

    /// Asserts that the sum is right.
    pub(super) fn check_invariants(&self) {
        let Some(waiting) = &self.0 else { return };
        let bytes: u64 = waiting.list.iter().map(Delivery::size).sum();
        assert_eq!(waiting.bytes, bytes, "the queue's gauge of bytes");
        let earliest = waiting.list.iter().filter_map(|delivery| delivery.message.expires_at()).min();
        assert!(earliest.is_none() || waiting.earliest_expiry <= earliest);
    }
}
