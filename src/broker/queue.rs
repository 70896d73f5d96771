//! Messages that wait: for a client that is absent or busy, or for any member of a group.
//!
//! A group whose messages begin to be stored, or are stored no more, goes through its queue in several turns: it notes here how
//! far it is, so that messages may come and go meanwhile.
//!
//! Invariants: `bytes` is the sum of the sizes in the lists; nothing in them expires before `earliest_expiry`; what is still to be
//! looked at stands in `unsettled`.
//!
//! Deliberately not here: the counters of the whole broker (see `Outputs`), and who takes from it.

use std::ops::Range;

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
    /// Before all in the list: what came back to a group.
    returned: Option<Box<Blocks<Delivery>>>,
    /// Which of all are still to be looked at. Others may be among them.
    unsettled: Range<u32>,
    bytes: u64,
    earliest_expiry: Option<Instant>,
    /// Whether a full queue was logged since it was last empty.
    full_logged: bool,
}

impl Waiting {
    fn returned_len(&self) -> usize {
        self.returned.as_ref().map_or(0, |returned| returned.len())
    }

    fn len(&self) -> usize {
        self.returned_len() + self.list.len()
    }

    fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.returned.iter().flat_map(|returned| returned.iter()).chain(self.list.iter())
    }

    #[inline(never)]
    fn pop_returned(&mut self) -> Option<Delivery> {
        let returned = self.returned.as_mut()?;
        let delivery = returned.pop_front();
        if returned.is_empty() {
            self.returned = None;
        }
        delivery
    }

    fn count_in(&mut self, delivery: &Delivery) {
        self.bytes += delivery.size();
        self.earliest_expiry = self.earliest_expiry.into_iter().chain(delivery.message.expires_at()).min();
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.len())
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

    /// Puts a delivery before all others but those that were put back before.
    pub(super) fn put_back(&mut self, delivery: Delivery) {
        let waiting = self.0.get_or_insert_default();
        waiting.count_in(&delivery);
        let returned_len = waiting.returned_len();
        let Range { start, end } = &mut waiting.unsettled;
        if start < end {
            *start += u32::from(returned_len <= *start as usize);
            *end += 1;
        }
        waiting.returned.get_or_insert_default().push_back(delivery);
    }

    /// All that wait are to be looked at, from the first one on. True if it is not known yet that some are.
    pub(super) fn unsettle(&mut self) -> bool {
        let Some(waiting) = &mut self.0 else { return false };
        let is_new = waiting.unsettled.is_empty();
        waiting.unsettled = 0..waiting.len() as u32;
        is_new && !waiting.unsettled.is_empty()
    }

    /// The next one that is to be looked at.
    pub(super) fn next_unsettled(&mut self) -> Option<&mut Delivery> {
        let waiting = self.0.as_mut()?;
        let at = waiting.unsettled.next()? as usize;
        match at.checked_sub(waiting.returned_len()) {
            None => waiting.returned.as_mut()?.entry_mut(at),
            Some(at) => waiting.list.entry_mut(at),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Delivery> {
        let waiting = self.0.as_mut()?;
        let delivery =
            if waiting.returned.is_some() { waiting.pop_returned() } else { waiting.list.pop_front() }?;
        waiting.bytes -= delivery.size();
        if waiting.unsettled.end > 0 {
            let Range { start, end } = &mut waiting.unsettled;
            (*start, *end) = (start.saturating_sub(1), *end - 1);
        }
        if waiting.list.is_empty() && waiting.returned.is_none() {
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
            let returned = std::mem::take(&mut waiting.returned).map(|returned| *returned);
            let mut lists = [returned.unwrap_or_default(), std::mem::take(&mut waiting.list)];
            let (unsettled, mut at) = (waiting.unsettled.clone(), 0);
            for (number, list) in lists.iter_mut().enumerate() {
                while let Some(delivery) = list.pop_front() {
                    at += 1;
                    if delivery.message.is_expired(now) {
                        waiting.unsettled.start -= u32::from(at <= unsettled.start);
                        waiting.unsettled.end -= u32::from(at <= unsettled.end);
                        expired.push(delivery);
                        continue;
                    }
                    waiting.count_in(&delivery);
                    match number {
                        0 => waiting.returned.get_or_insert_default().push_back(delivery),
                        _ => waiting.list.push_back(delivery),
                    }
                }
            }
        }
        expired
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Delivery> {
        self.0.iter().flat_map(|waiting| waiting.iter())
    }

    /// Asserts that the sum is right.
    pub(super) fn check_invariants(&self) {
        let Some(waiting) = &self.0 else { return };
        let bytes: u64 = waiting.iter().map(Delivery::size).sum();
        assert_eq!(waiting.bytes, bytes, "the queue's gauge of bytes");
        let earliest = waiting.iter().filter_map(|delivery| delivery.message.expires_at()).min();
        assert!(earliest.is_none() || waiting.earliest_expiry <= earliest);
        assert!(waiting.returned.as_ref().is_none_or(|returned| !returned.is_empty()));
        assert!(waiting.unsettled.end as usize <= waiting.len(), "there is what is to be looked at");
    }
}
