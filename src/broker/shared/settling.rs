//! Whether what waits in a group is stored.
//!
//! As long as a member's session is stored, so is what waits in the group. When the first such member joins, what waits
//! already is recorded a little in each turn, the oldest first, and what comes is recorded as it comes; when the last
//! one leaves, records are removed a little in each turn. The SUBACK of the former promises that the subscription and
//! what comes from then on are stored. It does not promise that what waited before is stored by then: that was
//! acknowledged when nothing of the group was stored, and after a crash the oldest of it may be there and the rest not,
//! as after a crash before the SUBSCRIBE none would be. What came meanwhile comes before what was recorded after it
//! when the process begins again. A message whose record has yet to be removed when the process ends belongs to nobody,
//! or to the group again if another stored member has joined.
//!
//! Invariants: see `shared`. Deliberately not here: how far each queue is (see `queue`).

use crate::broker::Broker;
use crate::journal::{Lsn, Owner};

use super::{Group, GroupId};

/// A message of a group that is recorded takes as long as so many other steps.
const SETTLE_STEPS: usize = 4;

impl Broker {
    /// What waits in a group is to be stored from now on, or no more: at once if it is little, and otherwise in later turns.
    pub(super) fn settle(&mut self, id: GroupId) {
        let Some(group) = self.shared.group_mut(id) else { return };
        let (is_new, len) = (group.queue.unsettle(), group.queue.len());
        if self.has_steps_at_once(len, len * SETTLE_STEPS) {
            let mut steps = usize::MAX;
            self.go_on_settling(id, &mut steps);
        } else if is_new {
            self.shared.unsettled.push_back(id);
        }
    }

    /// Records what waits in a group, the oldest first, or has it recorded no more. True if all is as it should be;
    /// otherwise there are no steps left.
    fn go_on_settling(&mut self, id: GroupId, steps: &mut usize) -> bool {
        let Self { shared, outputs, .. } = self;
        let Some(Group { text, stored_members, queue, .. }) = shared.group_mut(id) else { return true };
        let is_stored = *stored_members > 0;
        while *steps > 0 {
            let Some(delivery) = queue.next_unsettled() else { return true };
            *steps = steps.saturating_sub(SETTLE_STEPS);
            if is_stored && !delivery.record.is_some() {
                delivery.record = outputs.record(Owner::Group(text), delivery, None);
            } else if !is_stored && delivery.record.is_some() {
                outputs.forget(delivery);
                delivery.record = Lsn::NONE;
            }
        }
        false
    }

    pub(super) fn continue_settling(&mut self, steps: &mut usize) {
        while *steps > 0
            && let Some(id) = self.shared.unsettled.pop_front()
        {
            if !self.go_on_settling(id, steps) {
                self.shared.unsettled.push_front(id);
            }
        }
    }
}
