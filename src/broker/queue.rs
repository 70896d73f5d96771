//! Messages that wait: for a client that is absent or busy, or for any member of a group.
//!
//! A group whose messages begin to be stored, or are stored no more, goes through its queue in several turns: it notes here how
//! far it is, so that messages may come and go meanwhile.
//!
//! A full queue is looked through for messages that have expired in rounds, a few at a time, because it may be as long as
//! memory allows and one PUBLISH must not pay for all of it: those that are kept move into a list that stands before the others
//! until the round ends. So it may take several messages that are dropped until what has expired behind others makes room.
//!
//! Invariants: `bytes` is the sum of the sizes in the lists; nothing in them expires before `earliest_expiry`; what is still to be
//! looked at stands in `unsettled`. There is something in `ahead`, or it is not there.
//!
//! Deliberately not here: the counters of the whole broker (see `Outputs`), and who takes from it.

use std::ops::Range;

use crate::blocks::Blocks;
use crate::clock::Instant;
use crate::metrics::DropReason;

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
    /// Before all in the list.
    ahead: Option<Box<Ahead>>,
    /// Which of all are still to be looked at. Others may be among them.
    unsettled: Range<u32>,
    bytes: u64,
    earliest_expiry: Option<Instant>,
    /// The same for those that the round so far has kept.
    earliest_expiry_kept: Option<Instant>,
    /// Whether a full queue was logged since it was last empty.
    full_logged: bool,
}

/// What stands before the list of a queue, in this order.
#[derive(Debug, Default)]
struct Ahead {
    /// What came back to a group, and was kept in this round.
    returned_kept: Blocks<Delivery>,
    /// What came back to a group.
    returned: Blocks<Delivery>,
    /// From the list, and kept in this round.
    kept: Blocks<Delivery>,
}

impl Ahead {
    fn parts(&self) -> [&Blocks<Delivery>; 3] {
        [&self.returned_kept, &self.returned, &self.kept]
    }

    fn parts_mut(&mut self) -> [&mut Blocks<Delivery>; 3] {
        [&mut self.returned_kept, &mut self.returned, &mut self.kept]
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.parts().iter().all(|part| part.is_empty())
    }
}

impl Waiting {
    fn len(&self) -> usize {
        self.ahead.as_ref().map_or(0, |ahead| ahead.len()) + self.list.len()
    }

    fn is_empty(&self) -> bool {
        self.list.is_empty() && self.ahead.is_none()
    }

    fn iter(&self) -> impl Iterator<Item = &Delivery> {
        let ahead = self.ahead.iter().flat_map(|ahead| ahead.parts()).flat_map(Blocks::iter);
        ahead.chain(self.list.iter())
    }

    #[inline(never)]
    fn pop_ahead(&mut self) -> Option<Delivery> {
        let ahead = self.ahead.as_mut()?;
        let delivery = ahead.parts_mut().into_iter().find_map(Blocks::pop_front);
        self.drop_empty_ahead();
        delivery
    }

    fn drop_empty_ahead(&mut self) {
        if self.ahead.as_ref().is_some_and(|ahead| ahead.is_empty()) {
            self.ahead = None;
        }
    }

    fn count_in(&mut self, delivery: &Delivery) {
        self.bytes += delivery.size();
        let expires_at = delivery.message.expires_at();
        self.earliest_expiry = self.earliest_expiry.into_iter().chain(expires_at).min();
    }

    /// Looks at the next one of the round: it is returned if it has expired. `Err` if the round was at its end, and ends.
    fn look_at_next(&mut self, now: Instant) -> Result<Option<Delivery>, ()> {
        let Self { list, ahead, unsettled, bytes, .. } = self;
        let Ahead { returned_kept, returned, kept } = &mut **ahead.get_or_insert_default();
        let (at, delivery, kept) = if let Some(delivery) = returned.pop_front() {
            (returned_kept.len(), delivery, returned_kept)
        } else if let Some(delivery) = list.pop_front() {
            (returned_kept.len() + kept.len(), delivery, kept)
        } else {
            (*returned, *list) = (std::mem::take(returned_kept), std::mem::take(kept));
            self.earliest_expiry = self.earliest_expiry_kept.take();
            return Err(());
        };
        if delivery.message.is_expired(now) {
            *bytes -= delivery.size();
            unsettled.start -= u32::from(at < unsettled.start as usize);
            unsettled.end -= u32::from(at < unsettled.end as usize);
            return Ok(Some(delivery));
        }
        let expires_at = delivery.message.expires_at();
        self.earliest_expiry_kept = self.earliest_expiry_kept.into_iter().chain(expires_at).min();
        kept.push_back(delivery);
        Ok(None)
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|waiting| waiting.is_empty())
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
        let ahead = waiting.ahead.get_or_insert_default();
        let returned_len = ahead.returned_kept.len() + ahead.returned.len();
        let Range { start, end } = &mut waiting.unsettled;
        if start < end {
            *start += u32::from(returned_len <= *start as usize);
            *end += 1;
        }
        ahead.returned.push_back(delivery);
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
        let mut at = waiting.unsettled.next()? as usize;
        for part in waiting.ahead.iter_mut().flat_map(|ahead| ahead.parts_mut()) {
            match at.checked_sub(part.len()) {
                None => return part.entry_mut(at),
                Some(behind) => at = behind,
            }
        }
        waiting.list.entry_mut(at)
    }

    pub(super) fn pop(&mut self) -> Option<Delivery> {
        let waiting = self.0.as_mut()?;
        let delivery = if waiting.ahead.is_some() { waiting.pop_ahead() } else { waiting.list.pop_front() }?;
        waiting.bytes -= delivery.size();
        if waiting.unsettled.end > 0 {
            let Range { start, end } = &mut waiting.unsettled;
            (*start, *end) = (start.saturating_sub(1), *end - 1);
        }
        if waiting.is_empty() {
            if waiting.list.first_capacity() > KEPT_CAPACITY {
                self.0 = None; // A long absence leaves a large buffer behind.
            } else {
                (waiting.earliest_expiry, waiting.earliest_expiry_kept) = (None, None);
                waiting.full_logged = false;
            }
        }
        Some(delivery)
    }

    /// Looks at the next so many, if any may have expired, and takes out those that have. How many it looked at, and those.
    pub(super) fn take_expired(&mut self, looks: usize, now: Instant) -> (usize, Vec<Delivery>) {
        let (mut looked, mut expired) = (0, Vec::new());
        let Some(waiting) = &mut self.0 else { return (looked, expired) };
        while looked < looks && waiting.earliest_expiry.is_some_and(|earliest| earliest <= now) {
            let Ok(found) = waiting.look_at_next(now) else { break };
            expired.extend(found);
            looked += 1;
        }
        waiting.drop_empty_ahead();
        (looked, expired)
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
        let is_no_later = |bound: Option<Instant>, expiry| bound.is_some_and(|bound| bound <= expiry);
        assert!(earliest.is_none_or(|earliest| is_no_later(waiting.earliest_expiry, earliest)));
        let kept = waiting.ahead.iter().flat_map(|ahead| [&ahead.returned_kept, &ahead.kept]);
        let mut kept = kept.flat_map(Blocks::iter).filter_map(|delivery| delivery.message.expires_at());
        assert!(kept.all(|expiry| is_no_later(waiting.earliest_expiry_kept, expiry)));
        assert!(waiting.ahead.as_ref().is_none_or(|ahead| !ahead.is_empty()));
        assert!(waiting.unsettled.end as usize <= waiting.len(), "there is what is to be looked at");
    }
}
