//! What a member was sent and did not acknowledge, and what becomes of it.
//!
//! At QoS 1 it goes back to the group when the member leaves others behind, or its session ends: a little in each turn if it is much,
//! and what is left stays with it if it comes back meanwhile. At QoS 2 it stays with the member [MQTT5-4.8.2-4] [MQTT5-4.8.2-5].
//!
//! What an ended session was sent keeps its record until it is back in its group: a process that finds such a record without its
//! session puts the message into the group, if there is one of that text.
//!
//! Invariants: see `shared`. Deliberately not here: when what an ended session was sent has its turn (see `remains`).

use crate::broker::Broker;
use crate::broker::deliver::LISTED_PER_STEP;
use crate::broker::delivery::Delivery;
use crate::broker::remains::RETURN_STEPS;
use crate::broker::session::{Session, SessionId};
use crate::journal::Lsn;
use crate::metrics::DropReason;

use super::{GroupId, SentLeft, SharedSubscriptions};

impl SharedSubscriptions {
    /// Ends the return of what a session was sent: what is left stays with it, in its old order.
    pub(super) fn stop_return(&mut self, session: &mut Session) {
        if let Some((_, left)) = self.returns.remove(session.id) {
            session.outgoing.sent.rotate_left(left);
        }
    }
}

impl Broker {
    /// A member's connection has ended: what it was sent at QoS 1 and did not acknowledge goes to others who are
    /// there.
    pub(in crate::broker) fn absent_from_groups(&mut self, session_id: SessionId) {
        self.move_memberships(session_id);
        let Some(session) = self.sessions.find_mut(session_id) else { return };
        session.outgoing.sent.rest();
        session.outgoing.released.rest();
        let left = session.outgoing.sent.len();
        if left == 0 || session.memberships.is_empty() {
            return;
        }
        session.outgoing.begin_anew();
        let mut steps = self.steps_at_once;
        let left = self.go_on_returning(session_id, left, &mut steps);
        if left > 0 {
            self.shared.returns.push_back(session_id, left);
        }
        self.steps_at_once = steps;
    }

    /// Gives what a session was sent to others. So many are left to be looked at; there are no steps left then.
    fn go_on_returning(&mut self, giver: SessionId, mut left: SentLeft, steps: &mut usize) -> SentLeft {
        while left > 0 && *steps > 0 {
            let Self { shared, sessions, outputs, .. } = self;
            let Some(sent) = sessions.find(giver).and_then(|session| session.outgoing.sent.at(0)) else {
                return 0;
            };
            let group = group_of(&sent.delivery).filter(|id| shared.place(*id, giver).is_some());
            let mut looks = steps.saturating_mul(LISTED_PER_STEP);
            let newest_move = shared.moves.newest();
            let is_attended =
                group.map_or(Ok(false), |id| shared.find_attendant(id, sessions, newest_move, &mut looks));
            *steps = looks.div_ceil(LISTED_PER_STEP);
            let Ok(is_attended) = is_attended else {
                *steps = 0; // It goes on here.
                break;
            };
            let Some(session) = sessions.find_mut(giver) else { return 0 };
            let Some(sent) = session.outgoing.sent.pop_front() else { return 0 };
            left -= 1;
            let Some(id) = group.filter(|_| is_attended) else {
                *steps = steps.saturating_sub(1);
                session.outgoing.sent.push_back(sent, false);
                continue;
            };
            *steps = steps.saturating_sub(RETURN_STEPS);
            outputs.metrics.in_flight_messages -= 1;
            session.outgoing.free_packet_id(sent.packet_id);
            self.return_to_group(id, sent.delivery);
        }
        left
    }

    pub(super) fn continue_returns(&mut self, steps: &mut usize) {
        while *steps > 0
            && let Some(mut giving) = self.shared.returns.pop_front()
        {
            giving.work = self.go_on_returning(giving.session, giving.work, steps);
            if giving.work > 0 {
                self.shared.returns.put_back(giving);
            }
        }
    }

    /// What a session that has ended was sent and did not acknowledge goes back to the group that it came from, if that has
    /// other members, even if the session had left it before.
    pub(in crate::broker) fn return_or_drop(&mut self, delivery: Delivery) {
        let Self { shared, sessions, outputs, .. } = self;
        // One that is not known to be dead gets it as if it lived. If it does not, the message goes with it, unless the process ends
        // before: then it may belong to the next group of the same text, as what is yet to be removed may (see `settling`).
        let may_live =
            |id: &GroupId| !matches!(shared.is_alive(*id, sessions, &mut outputs.steps_left), Ok(false));
        match group_of(&delivery).filter(may_live) {
            Some(id) => self.return_to_group(id, delivery),
            None => {
                self.outputs.forget(&delivery);
                self.outputs.metrics.drop_message(DropReason::SessionEnded);
            }
        }
    }

    /// Puts a message, as it was published, back before all others, but for those that were put back before; and gives it to whoever has
    /// room. Where others wait already nobody has, or is about to be asked.
    fn return_to_group(&mut self, id: GroupId, delivery: Delivery) {
        let Self { shared, outputs, .. } = self;
        let Delivery { message, via, .. } = &delivery;
        let origin = via.as_ref().and_then(|via| via.origin.as_ref()).expect("it came by a group");
        let (qos, retain) = (origin.qos, origin.retain);
        let group = &mut shared.groups[id.slot as usize];
        let mut returned = Delivery { message: message.clone(), qos, retain, via: None, record: Lsn::NONE };
        if let Some(owner) = group.stored_as() {
            returned.record = outputs.record(owner, &returned, None);
        }
        outputs.forget(&delivery);
        outputs.metrics.queued_messages += 1;
        let was_empty = group.queue.is_empty();
        group.queue.put_back(returned);
        shared.waiting += usize::from(was_empty);
        // Where all are sent away each would leave it to the next one, who goes a moment later.
        if was_empty
            && !self.is_draining
            && let Some(member) = self.choose_for_window(id)
        {
            self.pull_from_group(id, member);
        }
    }
}

/// The group that may give a message to somebody else.
fn group_of(delivery: &Delivery) -> Option<GroupId> {
    Some(delivery.via.as_ref()?.origin.as_ref()?.group)
}
