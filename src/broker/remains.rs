//! What ended sessions and groups leave behind, taken away a little in each turn.
//!
//! A session may end with a million messages and a hundred thousand subscriptions. For everybody else it is gone at
//! once: its client id is free, nothing is delivered to it, and its record is removed. What it held is let go by
//! `steps_per_turn`, so that nobody waits for it; what it had of groups goes back to them, before anything else. The
//! slot of the session stays taken meanwhile, because its subscriptions and memberships name it.
//!
//! Records that are left over when the process ends are found at the next start: they belong to nobody (see `restore`).

use std::hint::black_box;

use super::queue::Queue;
use super::receipts::Receipts;
use super::retained::RetainedStreams;
use super::session::{Released, Sent, SessionId};
use super::shared::GroupId;
use super::thin_list::ThinList;
use super::unanswered::Unanswered;
use super::{Broker, Kind, Outputs};

/// Up to this share of a turn's steps is done at once: most sessions leave little.
const AT_ONCE_SHARE: usize = 32;

/// So little costs no more than what asks for it.
const FREE_AT_ONCE: usize = 2;

/// With the last of its members a group ends, which takes as long as so many other steps.
pub(super) const MEMBERSHIP_STEPS: usize = 4;

/// An allocator may put small blocks aside as they are freed, and merge all of them once a larger one is asked for, as that of
/// glibc does where the program has not set it: after a million messages in one call of 40 ms. One is asked for after each
/// slice, and no call takes longer than 0.14 ms.
const LARGER_BLOCK_BYTES: usize = 2_048;

/// A message that goes back to its group, and perhaps at once to another member, takes as long as so many other steps.
pub(super) const RETURN_STEPS: usize = 4;

/// Has the allocator merge what one slice has freed.
pub(super) fn merge_freed() {
    drop(black_box(Vec::<u8>::with_capacity(LARGER_BLOCK_BYTES)));
}

/// What one session or group has left, or streams that are done with.
#[derive(Debug, Default)]
pub(super) struct Remains {
    /// A session, whose subscriptions are still there.
    pub(super) session: Option<SessionId>,
    /// Those of them that are shared; a group may have ended before.
    pub(super) memberships: ThinList<GroupId>,
    pub(super) streams: RetainedStreams,
    pub(super) queue: Queue,
    /// Those that are recorded.
    pub(super) released: Unanswered<Released>,
    pub(super) receipts: Receipts,
}

impl Remains {
    pub(super) fn of_group(queue: Queue) -> Self {
        Self { queue, ..Self::default() }
    }

    /// Lets go of messages, of records, and of what retained ones were still to be sent, until none is left or there are no
    /// steps left. True if none is left.
    fn forget(&mut self, outputs: &mut Outputs, steps: &mut usize) -> bool {
        while *steps > 0 {
            if let Some(delivery) = self.queue.pop() {
                outputs.forget(&delivery);
            } else if let Some(released) = self.released.pop_front() {
                outputs.journal.remove(Kind::Release, released.record);
            } else if let Some(record) = self.receipts.pop() {
                outputs.journal.remove(Kind::Receipt, record);
            } else if !self.streams.forget_one() {
                return true;
            }
            *steps -= 1;
        }
        false
    }
}

impl Broker {
    /// Whether so many steps are done at once.
    pub(super) fn is_little(&self, steps: usize) -> bool {
        steps <= self.options.steps_per_turn / AT_ONCE_SHARE
    }

    /// Whether so many of anything are done with at once, which takes so many steps. Many who leave little each leave much, so
    /// all that is done at once in a turn has the steps of one together.
    pub(super) fn has_steps_at_once(&mut self, count: usize, steps: usize) -> bool {
        if count <= FREE_AT_ONCE {
            return self.is_little(count);
        }
        let has_steps = self.is_little(count) && steps <= self.steps_at_once;
        if has_steps {
            self.steps_at_once -= steps;
        }
        has_steps
    }

    /// Takes over what a session or group has left, or does away with it at once if it is little.
    pub(super) fn leave_behind(&mut self, mut remains: Remains) {
        let Remains { session, memberships, streams, queue, released, receipts } = &remains;
        let subscriptions =
            session.map_or(0, |session| self.subscriptions.subscription_count(session.subscriber()));
        let messages = queue.len() + streams.len();
        let identifiers = released.len() + receipts.len();
        let count = memberships.len() + messages + identifiers + subscriptions as usize;
        let steps = count + memberships.len() * (MEMBERSHIP_STEPS - 1);
        if count == 0 {
            // As of most sessions.
            if let Some(session) = remains.session {
                self.free_slot_in_time(session);
            }
        } else if self.has_steps_at_once(count, steps) {
            let mut steps = usize::MAX;
            self.take_away(&mut remains, &mut steps);
        } else {
            self.remains.push_back(remains);
        }
    }

    /// The same for what a session was sent and did not acknowledge. What came by a group goes back to it: others wait for it,
    /// so it goes before what was left earlier, but behind what others were sent.
    pub(super) fn leave_sent_behind(&mut self, mut sent: Unanswered<Sent>) {
        let count = sent.len();
        if count == 0 {
            return;
        }
        if self.has_steps_at_once(count, count * RETURN_STEPS) {
            let mut steps = usize::MAX;
            self.return_sent(&mut sent, &mut steps);
        } else {
            self.sent_left.push_back(sent);
        }
    }

    /// Whether something is left.
    pub(super) fn has_remains(&self) -> bool {
        !self.sent_left.is_empty() || !self.remains.is_empty()
    }

    /// Takes away as much as one turn has time for.
    #[cold]
    #[inline(never)]
    pub(super) fn clear_remains(&mut self) {
        let mut steps = self.options.steps_per_turn;
        while let Some(mut sent) = self.sent_left.pop_front() {
            if !self.return_sent(&mut sent, &mut steps) {
                self.sent_left.push_front(sent);
                merge_freed();
                return;
            }
        }
        while let Some(first) = self.remains.entry_mut(0) {
            let mut remains = std::mem::take(first);
            if !self.take_away(&mut remains, &mut steps) {
                if let Some(first) = self.remains.entry_mut(0) {
                    *first = remains;
                }
                merge_freed();
                return;
            }
            self.remains.pop_front();
        }
    }

    /// True if no membership is left; otherwise there are no steps left.
    #[inline]
    fn end_memberships(&mut self, remains: &mut Remains, steps: &mut usize) -> bool {
        while let (Some(session), Some(id)) = (remains.session, remains.memberships.back().copied()) {
            if *steps == 0 {
                return false;
            }
            *steps = steps.saturating_sub(MEMBERSHIP_STEPS);
            remains.memberships.pop_back();
            self.end_membership(id, session);
        }
        true
    }

    /// True if nothing that was sent is left; otherwise there are no steps left.
    fn return_sent(&mut self, sent: &mut Unanswered<Sent>, steps: &mut usize) -> bool {
        while !sent.is_empty() {
            if *steps == 0 {
                return false;
            }
            *steps = steps.saturating_sub(RETURN_STEPS);
            if let Some(Sent { delivery, .. }) = sent.pop_front() {
                self.return_or_drop(delivery);
            }
        }
        true
    }

    /// True if nothing is left; otherwise there are no steps left.
    fn take_away(&mut self, remains: &mut Remains, steps: &mut usize) -> bool {
        let is_done = self.end_memberships(remains, steps) && remains.forget(&mut self.outputs, steps);
        if !is_done {
            return false;
        }
        let Some(session) = remains.session else { return true };
        let subscriber = session.subscriber();
        while self.subscriptions.subscription_count(subscriber) > 0 {
            if *steps == 0 {
                return false;
            }
            *steps -= 1;
            let Self { subscriptions, sessions, outputs, .. } = self;
            let name = sessions.name_of_ended(session);
            if name.is_some()
                && let Some((filter, _)) = subscriptions.subscriptions(subscriber).next()
            {
                outputs.journal.remove_subscription(name, filter);
            }
            subscriptions.remove_some(subscriber, 1);
        }
        self.free_slot_in_time(session);
        true
    }

    /// Of a session nothing is left but its slot.
    fn free_slot_in_time(&mut self, session: SessionId) {
        if self.fan_out.is_some() {
            self.slots_to_free.push(session); // It names its receivers by their slots.
        } else {
            self.sessions.free_slot(session);
        }
    }
}
