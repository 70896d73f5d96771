//! Messages that wait: for a client that is absent or busy, or for any member of a group.
//!
//! Invariants: `bytes` is the sum of the sizes in the list; nothing in it expires before `earliest_expiry`.
//!
//! Deliberately not here: the counters of the whole broker (see `Outputs`), and who takes from it.

use std::collections::VecDeque;

use crate::clock::Instant;
use crate::metrics::DropReason;

use super::delivery::Delivery;
use super::event::Limit;
use super::options::Options;

/// A queue that once was longer than this gives its memory back when it is empty.
const KEPT_CAPACITY: usize = 64;

/// Messages that wait, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    list: VecDeque<Delivery>,
    bytes: u64,
    earliest_expiry: Option<Instant>,
    /// Whether a full queue was logged since it was last empty.
    pub(super) full_logged: bool,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Which limit keeps a delivery of this size out.
    pub(super) fn limit_for(&self, size: u64, options: &Options) -> Option<(DropReason, Limit, u64)> {
        if self.list.len() >= options.queued_messages_max as usize {
            let value = u64::from(options.queued_messages_max);
            Some((DropReason::QueueMessagesFull, Limit::QueuedMessages, value))
        } else if self.bytes + size > options.queued_bytes_max {
            Some((DropReason::QueueBytesFull, Limit::QueuedBytes, options.queued_bytes_max))
        } else {
            None
        }
    }

    fn count_in(&mut self, delivery: &Delivery) {
        self.bytes += delivery.size();
        self.earliest_expiry = self.earliest_expiry.into_iter().chain(delivery.message.expires_at()).min();
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.count_in(&delivery);
        self.list.push_back(delivery);
    }

    /// Puts deliveries before all others, in their order.
    pub(super) fn push_front(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries.into_iter().rev() {
            self.count_in(&delivery);
            self.list.push_front(delivery);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.list.pop_front()?;
        self.bytes -= delivery.size();
        if self.list.is_empty() {
            let list = if self.list.capacity() > KEPT_CAPACITY {
                VecDeque::new() // A long absence leaves a large buffer behind.
            } else {
                std::mem::take(&mut self.list)
            };
            *self = Self { list, ..Self::default() };
        }
        Some(delivery)
    }

    /// Takes out what has expired.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Delivery> {
        let mut expired = Vec::new();
        if self.earliest_expiry.is_some_and(|earliest| earliest <= now) {
            (self.earliest_expiry, self.bytes) = (None, 0);
            for delivery in std::mem::take(&mut self.list) {
                if delivery.message.is_expired(now) {
                    expired.push(delivery);
                } else {
                    self.push(delivery);
                }
            }
        }
        expired
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.list.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Delivery> {
        self.list.iter_mut()
    }

    /// All that waits, in its order.
    pub(super) fn into_deliveries(self) -> impl Iterator<Item = Delivery> {
        self.list.into_iter()
    }

    /// Asserts that the sum is right.
    pub(super) fn check_invariants(&self) {
        let bytes: u64 = self.list.iter().map(Delivery::size).sum();
        assert_eq!(self.bytes, bytes, "the queue's gauge of bytes");
        let earliest = self.list.iter().filter_map(|delivery| delivery.message.expires_at()).min();
        assert!(earliest.is_none() || self.earliest_expiry <= earliest);
    }
}
