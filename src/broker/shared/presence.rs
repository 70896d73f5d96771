//! Who of a group is there, and who is known to have no room.
//!
//! When a client comes or goes, its memberships are moved a little in each turn. To everybody else it has come or gone at once:
//! whether a member is there is asked of its session, and a group all of whose members have ended is as good as none.
//!
//! All that is found out meanwhile is found out once: who has gone or ended is passed, and so is who comes and is no member. So a
//! message for which a turn has too few looks is done with in the end, whatever the next turns bring; who comes later than it is not
//! looked for.
//!
//! A member in whose outbox a group has found no room is set aside until any such outbox has drained, or ended; during a search that
//! takes turns, until that is over.
//!
//! Invariants: see `shared`. Deliberately not here: who makes and ends memberships (see `memberships`).

use crate::broker::Broker;
use crate::broker::deliver::LISTED_PER_STEP;
use crate::broker::in_line::Served;
use crate::broker::session::{SessionId, Sessions};

use super::{Group, GroupId, MembershipsLeft, Place, SharedSubscriptions};

/// One of those who have come, who may be a member of any group, takes as long as so many members who have gone.
const ARRIVAL_LOOKS: usize = 4;

/// There were too few looks to tell.
#[derive(Clone, Copy, Debug)]
pub(in crate::broker) struct Unknown;

impl SharedSubscriptions {
    /// The message that takes several turns has reached all groups, or is given up.
    pub(in crate::broker) const fn end_search(&mut self) {
        self.searched = None;
    }

    /// An outbox in which a group found no room has some, or has ended.
    pub(in crate::broker) const fn note_drained(&mut self) {
        self.drained += 1;
    }

    /// Whether members are still to be moved.
    pub(in crate::broker) fn has_moves(&self) -> bool {
        !self.moves.is_empty()
    }

    /// Whether a group has a member whose session has not ended. Those who have are passed once. Where looks do not tell the next
    /// ones go on.
    pub(super) fn is_alive(
        &mut self,
        id: GroupId,
        sessions: &Sessions,
        looks: &mut usize,
    ) -> Result<bool, Unknown> {
        let Some(group) = self.group_mut(id) else { return Ok(false) };
        // It is connected, if anybody is.
        if group.members.first().is_some_and(|member| sessions.find(member.session).is_some()) {
            return Ok(true);
        }
        while let Some(last) = group.alive.checked_sub(1) {
            if sessions.find(group.members[last].session).is_some() {
                return Ok(true);
            }
            *looks = looks.checked_sub(1).ok_or(Unknown)?;
            group.alive = last;
            group.limit_present(last);
        }
        Ok(false)
    }

    /// Whether somebody who counts as connected is: then the last of them is. Those behind it, who have gone, are passed once.
    pub(super) fn pass_gone(
        &mut self,
        id: GroupId,
        sessions: &Sessions,
        looks: &mut usize,
    ) -> Result<bool, Unknown> {
        let Some(group) = self.group_mut(id) else { return Ok(false) };
        while let Some(last) = group.present.checked_sub(1) {
            if sessions.is_connected(group.members[last].session) {
                return Ok(true);
            }
            *looks = looks.checked_sub(1).ok_or(Unknown)?;
            group.limit_present(last);
        }
        Ok(false)
    }

    /// Whether a group has a connected member, which counts as connected then: one that has come up to this move, if no other one.
    /// Where looks do not tell the next ones go on.
    pub(super) fn find_attendant(
        &mut self,
        id: GroupId,
        sessions: &Sessions,
        newest_move: u64,
        looks: &mut usize,
    ) -> Result<bool, Unknown> {
        if self.pass_gone(id, sessions, looks)? {
            return Ok(true);
        }
        let Some(entering) = self.entering(id, sessions, newest_move, looks)? else { return Ok(false) };
        self.set_present(id, entering, true);
        Ok(true)
    }

    /// Whether it is known who is there, or is found out by so many looks.
    /// `have_ended` says that members may have ended that are still to be removed.
    pub(super) fn is_looked_through(
        &mut self,
        id: GroupId,
        sessions: &Sessions,
        have_ended: bool,
        newest_move: u64,
        looks: &mut usize,
    ) -> bool {
        let is_settled = self.moves.is_empty() && !have_ended;
        is_settled || self.find_attendant(id, sessions, newest_move, looks).is_ok()
    }

    /// A connected member that has yet to be moved among those who count as connected, and has come up to this move.
    pub(super) fn entering(
        &mut self,
        id: GroupId,
        sessions: &Sessions,
        newest_move: u64,
        looks: &mut usize,
    ) -> Result<Option<SessionId>, Unknown> {
        let Some(group) = self.group(id) else { return Ok(None) };
        let &Group { present, alive, mut moves_seen, mut looked_at, ref members, .. } = group;
        if self.arrivals.is_empty() || moves_seen >= newest_move {
            return Ok(None);
        }
        let absent = &members[present..alive];
        // Both who have come since and who is absent may be very many; what is not in the fewer of them is nowhere. Those who
        // do not bring a member are passed once.
        let mut arrivals = self.arrivals.range(moves_seen + 1..=newest_move);
        let mut found = Ok(None);
        for _ in 0..absent.len() {
            let Some((number, session)) = arrivals.next() else { break };
            if *looks == 0 {
                found = Err(Unknown);
                break;
            }
            *looks = looks.saturating_sub(ARRIVAL_LOOKS);
            looked_at = (looked_at + 1) % absent.len();
            let is_absent = |place: Place| place.member as usize >= present;
            let looked_at = absent[looked_at].session;
            if self.place(id, *session).is_some_and(is_absent) {
                found = Ok(Some(*session));
                break;
            }
            moves_seen = *number;
            if sessions.is_connected(looked_at) {
                found = Ok(Some(looked_at));
                break;
            }
        }
        if let Ok(None) = found {
            moves_seen = newest_move;
        }
        let group = &mut self.groups[id.slot as usize];
        (group.moves_seen, group.looked_at) = (moves_seen, looked_at);
        found
    }

    /// Outboxes that were found full may have drained since.
    pub(super) fn forget_full(&mut self, id: GroupId) {
        let drained = self.drained;
        if let Some(group) = self.group_mut(id).filter(|group| group.drained_seen != drained) {
            // Who was not among them is looked at first, and then they in their order: those who are full still stay where they are.
            group.turn = group.turn.max(group.full);
            (group.full, group.drained_seen) = (0, drained);
        }
    }

    /// Those of a group who count as connected are asked in later turns whether they have room for what waits.
    pub(super) fn begin_asking(&mut self, id: GroupId) {
        let Some(group) = self.group_mut(id).filter(|group| group.present > 0) else { return };
        let is_listed = group.unasked > 0;
        group.unasked = group.present;
        if !is_listed {
            self.asking.push_back(id);
        }
    }

    /// So many from the one whose turn it is, whose outboxes are not known to be full, were looked at in vain, and there are more.
    pub(super) fn pass_turn(&mut self, id: GroupId, count: usize) {
        if let Some(group) = self.group_mut(id) {
            let Group { full, present, .. } = *group;
            let from = if (full..present).contains(&group.turn) { group.turn } else { full };
            group.turn = full + (from - full + count) % (present - full);
        }
    }

    /// The outbox of the one whose turn it is has no room.
    pub(super) fn set_full(&mut self, id: GroupId) {
        let Some(group) = self.group_mut(id) else { return };
        let (mut at, full, unasked) = (group.turn, group.full, group.unasked);
        group.full += 1;
        if full < unasked && unasked <= at {
            // Who makes room for it has yet to be asked, and so is to stand behind the last of those.
            group.unasked += 1;
            self.swap_members(id, at, unasked);
            at = unasked;
        }
        self.swap_members(id, at, full);
    }

    /// The client of a session has come or gone: what was begun for it before is over.
    pub(super) fn stop_move(&mut self, session: SessionId) {
        if let Some((number, _)) = self.moves.remove(session) {
            self.arrivals.remove(&number);
        }
    }

    /// Moves a member among those who count as connected, or away from them.
    pub(super) fn set_present(&mut self, id: GroupId, session: SessionId, is_present: bool) {
        let Some(Place { member, .. }) = self.place(id, session) else { return };
        let Some(group) = self.group_mut(id) else { return };
        let mut at = member as usize;
        if is_present == (at < group.present) {
            return;
        }
        if is_present {
            let other = group.present;
            group.present += 1;
            return self.swap_members(id, at, other);
        }
        group.present -= 1;
        let last = group.present;
        if at < group.full {
            group.full -= 1;
            let last_full = group.full;
            self.swap_members(id, at, last_full);
            at = last_full;
        }
        self.swap_members(id, at, last);
    }

    /// Nobody is connected any more, as far as the groups are concerned: everybody is about to be closed.
    pub(in crate::broker) fn set_all_absent(&mut self) {
        self.groups.iter_mut().for_each(|(_, group)| group.limit_present(0));
        self.moves.clear();
        self.arrivals.clear();
    }
}

impl Broker {
    /// The client of a session has come or gone: it counts among those who are there, or no more. Many memberships are
    /// moved in later turns.
    pub(in crate::broker) fn move_memberships(&mut self, session: SessionId) {
        let Some(found) = self.sessions.find_mut(session) else { return };
        let (left, has_come) = (found.memberships.len(), found.connection.is_some());
        let shared = &mut self.shared;
        shared.stop_return(found);
        shared.stop_move(session);
        if left == 0 {
            return;
        }
        if self.is_little(left) {
            self.outputs.work += (left / LISTED_PER_STEP) as u64;
            let mut steps = left;
            self.go_on_moving(session, left, &mut steps);
            return;
        }
        let number = self.shared.moves.push_back(session, left);
        if has_come {
            self.shared.arrivals.insert(number, session);
        }
    }

    pub(super) fn continue_moves(&mut self, steps: &mut usize) {
        while *steps > 0
            && let Some(Served { number, session, work }) = self.shared.moves.pop_front()
        {
            let work = self.go_on_moving(session, work, steps);
            if work > 0 {
                self.shared.moves.put_back(Served { number, session, work });
            } else if self.shared.arrivals.remove(&number).is_some() && self.shared.waiting > 0 {
                // What came to its groups meanwhile may not have found it among many others.
                self.schedule_refill(session);
            }
        }
    }

    /// So many are left to be moved; there are no steps left then.
    fn go_on_moving(
        &mut self,
        session: SessionId,
        left: MembershipsLeft,
        steps: &mut usize,
    ) -> MembershipsLeft {
        let Self { shared, sessions, .. } = self;
        let Some(session) = sessions.find(session) else { return 0 };
        // Some may have been removed meanwhile, and others have come in their place.
        let mut left = left.min(session.memberships.len());
        while left > 0 && *steps > 0 {
            *steps -= 1;
            left -= 1;
            let id = session.memberships[left];
            shared.set_present(id, session.id, session.connection.is_some());
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use crate::broker::link::ConnectionId;
    use crate::clock::Instant;
    use crate::codec::QoS;
    use crate::topics::SubscriptionFilter;

    use super::super::Member;
    use super::*;

    struct World {
        shared: SharedSubscriptions,
        sessions: Sessions,
        made: u32,
    }

    impl World {
        fn new() -> Self {
            Self { shared: SharedSubscriptions::new(1), sessions: Sessions::new(1), made: 0 }
        }

        fn session(&mut self, is_connected: bool) -> SessionId {
            self.made += 1;
            let id = self.sessions.insert(&self.made.to_string(), Instant(0));
            let connection = ConnectionId { slot: self.made, generation: 1 };
            self.sessions.find_mut(id).expect("just made").connection = is_connected.then_some(connection);
            id
        }

        /// Its client has come, and its memberships have yet to be moved.
        fn arrive(&mut self, session: SessionId) {
            let connection = ConnectionId { slot: session.slot, generation: 2 };
            self.sessions.find_mut(session).expect("it has not ended").connection = Some(connection);
            let number = self.shared.moves.push_back(session, 1);
            self.shared.arrivals.insert(number, session);
        }

        /// Clients have come who are members of other groups only.
        fn strangers_arrive(&mut self, count: usize) {
            for _ in 0..count {
                let stranger = self.session(true);
                self.arrive(stranger);
            }
        }

        /// A group whose members all count as connected, be they or not.
        fn group(&mut self, members: &[SessionId]) -> GroupId {
            let filter = SubscriptionFilter::parse("$share/g/t", u32::MAX).expect("it is one");
            let id = self.shared.find_or_make("$share/g/t", filter);
            for (at, session) in (0..).zip(members) {
                let group = &mut self.shared.groups[id.slot as usize];
                let grant = QoS::AtMostOnce.into();
                group.members.push(Member { session: *session, grant });
                (group.present, group.alive) = (group.members.len(), group.members.len());
                self.shared.add_place(id, *session, Place { member: at, membership: 0 });
            }
            id
        }

        fn absent_group(&mut self, members: usize) -> (GroupId, Vec<SessionId>) {
            let members: Vec<SessionId> = (0..members).map(|_| self.session(false)).collect();
            let id = self.group(&members);
            assert!(!self.is_attended(id));
            (id, members)
        }

        fn is_attended(&mut self, id: GroupId) -> bool {
            let newest_move = self.shared.moves.newest();
            let found = self.shared.find_attendant(id, &self.sessions, newest_move, &mut { usize::MAX });
            found.expect("there are looks without end")
        }

        fn entering(&mut self, id: GroupId) -> (Option<SessionId>, u64, usize) {
            let newest_move = self.shared.moves.newest();
            let found = self.shared.entering(id, &self.sessions, newest_move, &mut { usize::MAX });
            let found = found.expect("there are looks without end");
            let group = &self.shared.groups[id.slot as usize];
            (found, group.moves_seen, group.looked_at)
        }
    }

    #[test]
    fn who_has_gone_is_passed_once_and_where_it_stands() {
        let mut world = World::new();
        let members: Vec<SessionId> = (0..100).map(|number| world.session(number == 40)).collect();
        let id = world.group(&members);
        assert!(world.is_attended(id));
        let group = &world.shared.groups[id.slot as usize];
        assert_eq!((group.present, group.alive), (41, 100));
        assert!(group.members.iter().map(|member| member.session).eq(members));
    }

    #[test]
    fn who_has_gone_is_passed_as_far_as_looks_go() {
        let mut world = World::new();
        let members: Vec<SessionId> = (0..100).map(|number| world.session(number == 40)).collect();
        let id = world.group(&members);
        world.shared.moves.push_back(members[0], 1);
        let mut looked_through = |looks: usize| {
            let (mut left, World { shared, sessions, .. }) = (looks, &mut world);
            let is_known = shared.is_looked_through(id, sessions, false, 1, &mut left);
            (is_known, left, shared.groups[id.slot as usize].present)
        };
        assert_eq!(looked_through(50), (false, 0, 50));
        assert_eq!(looked_through(50), (true, 41, 41));
        assert_eq!(looked_through(50), (true, 50, 41));
    }

    #[test]
    fn who_comes_to_other_groups_is_passed_as_far_as_looks_go() {
        let mut world = World::new();
        let (id, members) = world.absent_group(1_000);
        world.strangers_arrive(100);
        world.arrive(members[999]);
        for turn in 1..=4 {
            let mut looks = 25 * ARRIVAL_LOOKS;
            let is_known = world.shared.is_looked_through(id, &world.sessions, false, 101, &mut looks);
            let seen = world.shared.groups[id.slot as usize].moves_seen;
            assert_eq!((is_known, looks, seen), (false, 0, 25 * turn));
        }
        // Who was found is known, if by the last look.
        let mut looks = ARRIVAL_LOOKS;
        assert!(world.shared.is_looked_through(id, &world.sessions, false, 101, &mut looks));
        assert_eq!(looks, 0);
        let group = &world.shared.groups[id.slot as usize];
        assert_eq!((group.present, group.members[0].session), (1, members[999]));
    }

    #[test]
    fn who_comes_to_other_groups_is_passed_once() {
        let mut world = World::new();
        let (id, members) = world.absent_group(1_000);
        world.strangers_arrive(100);
        assert_eq!(world.entering(id), (None, 100, 100));
        assert_eq!(world.entering(id), (None, 100, 100));
        world.strangers_arrive(1);
        world.arrive(members[7]);
        assert_eq!(world.entering(id), (Some(members[7]), 101, 102));
        // It is found again at the first look.
        assert_eq!(world.entering(id), (Some(members[7]), 101, 103));
    }

    #[test]
    fn a_group_of_few_does_not_look_at_all_who_come() {
        let mut world = World::new();
        let (id, members) = world.absent_group(3);
        world.strangers_arrive(100);
        world.arrive(members[0]);
        assert_eq!(world.entering(id), (Some(members[0]), 3, 0));
        world.sessions.find_mut(members[0]).expect("it has not ended").connection = None;
        assert_eq!(world.entering(id), (None, 101, 0));
    }
}
