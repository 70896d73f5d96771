//! Who is a member of a group: joining, leaving, and how both end.
//!
//! A client may be a member of a hundred thousand groups. When its session ends, its memberships are removed a little in each turn
//! (see `remains`).
//!
//! Invariants: see `shared`. Deliberately not here: whether a member is there (see `presence`).

use crate::broker::Broker;
use crate::broker::deliver::LISTED_PER_STEP;
use crate::broker::queue::Queue;
use crate::broker::remains::{MEMBERSHIP_STEPS, Remains};
use crate::broker::session::{Session, SessionId};
use crate::metrics::DropReason;
use crate::topics::{Grant, SubscriptionFilter};

use super::presence::Unknown;
use super::{GroupId, Member, Place};

/// With each membership of an ended session so many others of the same group are passed.
const PASSED_WITH_EACH: usize = 16;

impl Broker {
    /// Makes a session a member of a group, which is known not to be dead, or changes what it is granted there [MQTT5-3.8.4-3].
    pub(in crate::broker) fn join_group(
        &mut self,
        session_id: SessionId,
        text: &str,
        filter: SubscriptionFilter<'_>,
        grant: Grant,
    ) {
        let id = self.shared.find_or_make(text, filter);
        let place = self.shared.place(id, session_id);
        let group = self.shared.group_mut(id).expect("just found or made");
        if let Some(Place { member, .. }) = place {
            group.members[member as usize].grant = grant;
            return;
        }
        let member = group.members.len() as u32;
        let is_stored = self.sessions.find(session_id).is_some_and(|session| session.name.is_some());
        group.stored_members += usize::from(is_stored);
        let begins_to_be_stored = is_stored && group.stored_members == 1;
        let alive = group.alive;
        group.alive += 1;
        group.members.push(Member { session: session_id, grant });
        let memberships = &mut self.session_mut(session_id).memberships;
        let membership = memberships.len() as u32;
        memberships.push_back(id);
        self.shared.add_place(id, session_id, Place { member, membership });
        self.shared.swap_members(id, member as usize, alive);
        self.shared.set_present(id, session_id, true);
        if begins_to_be_stored {
            self.settle(id);
        }
    }

    /// Whether the session is a member of this group.
    pub(in crate::broker) fn is_in_group(&self, session: SessionId, text: &str) -> bool {
        self.shared.find(text).is_some_and(|id| self.shared.place(id, session).is_some())
    }

    /// Ends a membership that SUBSCRIBE made. False if there was none.
    pub(in crate::broker) fn leave_group(&mut self, session_id: SessionId, text: &str) -> bool {
        let Some(id) = self.shared.find(text) else { return false };
        let Some(Place { membership, .. }) = self.shared.place(id, session_id) else { return false };
        let is_stored = self.session(session_id).name.is_some();
        self.remove_member(id, session_id, is_stored);
        let Session { memberships, asked_in_vain, .. } = self.session_mut(session_id);
        memberships.swap_remove(membership as usize);
        // One that was not asked may stand now where one was that was.
        *asked_in_vain = 0;
        if let Some(moved) = memberships.get(membership as usize).copied() {
            self.shared.place_mut(moved, session_id).membership = membership;
        }
        true
    }

    /// Ends a membership of a session that has ended.
    pub(in crate::broker) fn end_membership(&mut self, id: GroupId, session: SessionId) {
        let name = self.sessions.name_of_ended(session);
        // Or the group was dead, and has been ended before.
        if let Some(text) = self.shared.text(id) {
            if name.is_some() {
                self.outputs.journal.remove_subscription(name, text);
            }
            self.remove_member(id, session, name.is_some());
            // Others may have ended as well: whoever asks soon finds most of them passed.
            let _ = self.shared.is_alive(id, &self.sessions, &mut { PASSED_WITH_EACH });
        }
    }

    /// Ends a group all of whose members have ended: who joins one of the same text does not get what waits there. If steps do not
    /// tell whether it is dead there are none left, and the next ones go on.
    pub(in crate::broker) fn end_dead_group(&mut self, text: &str, steps: &mut usize) -> Result<(), Unknown> {
        if self.remains.is_empty() {
            return Ok(());
        }
        let Some(id) = self.shared.find(text) else { return Ok(()) };
        let mut looks = steps.saturating_mul(LISTED_PER_STEP);
        let is_alive = self.shared.is_alive(id, &self.sessions, &mut looks);
        *steps = looks / LISTED_PER_STEP;
        if !is_alive? {
            let queue = self.shared.retire_group(id);
            self.leave_queue_behind(queue);
        }
        Ok(())
    }

    /// A group has ended.
    fn leave_queue_behind(&mut self, queue: Queue) {
        let queued = queue.len() as u64;
        self.outputs.metrics.queued_messages -= queued;
        self.outputs.metrics.drop_messages(DropReason::SessionEnded, queued);
        self.leave_behind(Remains::of_group(queue));
    }

    /// `is_stored` says whether the session is.
    fn remove_member(&mut self, id: GroupId, session: SessionId, is_stored: bool) {
        self.shared.set_present(id, session, false);
        let Some(Place { member, .. }) = self.shared.place(id, session) else { return };
        let Some(group) = self.shared.group_mut(id) else { return };
        let mut at = member as usize;
        if at < group.alive {
            group.alive -= 1;
            let last = group.alive;
            self.shared.swap_members(id, at, last);
            at = last;
        }
        self.shared.remove_place(id, session);
        let group = &mut self.shared.groups[id.slot as usize];
        group.members.swap_remove(at);
        group.stored_members -= usize::from(is_stored);
        if group.members.is_empty() {
            let queue = self.shared.remove_group(id);
            return self.leave_queue_behind(queue);
        }
        let is_stored_no_more = is_stored && group.stored_members == 0;
        if let Some(moved) = group.members.get(at).map(|member| member.session) {
            self.shared.place_mut(id, moved).member = at as u32;
        }
        if is_stored_no_more {
            self.settle(id);
        }
    }

    /// A session has ended. Many memberships are left for `remains`.
    pub(in crate::broker) fn leave_few_groups(&mut self, session: &mut Session) {
        self.shared.stop_return(session);
        self.shared.stop_move(session.id);
        let memberships = session.memberships.len();
        if self.has_steps_at_once(memberships, memberships * MEMBERSHIP_STEPS) {
            while let Some(id) = session.memberships.remove(0) {
                self.end_membership(id, session.id);
            }
        }
    }
}
