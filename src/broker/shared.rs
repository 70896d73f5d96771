//! Shared subscriptions: a group of clients of which one gets each message [MQTT5-4.8.2-3].
//!
//! A group is a subscriber of its own in a tree of its own, so that who is not concerned pays nothing. It has a queue,
//! and its members pull: a message goes at once to the connected member with the least work that has room, and
//! otherwise waits in the group until a member has room, be it busy now or away. So a member holds nothing that it was not
//! sent. What it was sent at QoS 1 and did not acknowledge goes back to the group when it leaves others behind, or its
//! session ends: a little in each turn if it is much, and what is left stays with it if it comes back meanwhile. What it was
//! sent at QoS 2 stays with it [MQTT5-4.8.2-4] [MQTT5-4.8.2-5].
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
//! What an ended session was sent keeps its record until it is back in its group: a process that finds such a record without its
//! session puts the message into the group, if there is one of that text.
//!
//! A client may be a member of a hundred thousand groups. When it comes or goes, its memberships are moved a little in each
//! turn, and when its session ends they are removed a little in each turn (see `remains`). To everybody else it has come, gone
//! or ended at once: whether a member is there is asked of its session, and a group all of whose members have ended is as good
//! as none.
//!
//! Invariants: a group has a member; its connected members come first, but for memberships that have yet to be moved,
//! or whose session has ended; who has ended and is known to comes last; what waits in a group is recorded if and only
//! if a member is stored, but for groups in `unsettled`; a group has something in its queue only if no connected member
//! has room for it, or one is about to be asked, or to be moved and then asked; every membership stands in its group, in its session or in what that
//! has left, and in the index, which knows both places.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::ops::Range;
use std::rc::Rc;

use slab::Slab;

use crate::codec::QoS;
use crate::divided_table::DividedTable;
use crate::hash::{HashSeed, hash_text, seeded};
use crate::journal::{Lsn, Owner};
use crate::metrics::DropReason;
use crate::topics::match_cache::Matches;
use crate::topics::{Grant, SubscriberId, SubscriptionFilter, SubscriptionTree, TopicName};

use super::Broker;
use super::blocks::Blocks;
use super::deliver::{LISTED_PER_STEP, QueueOwner, Routing, has_room};
use super::delivery::{Delivery, Origin, Via};
use super::in_line::{InLine, Served};
use super::link::ConnectionId;
use super::queue::Queue;
use super::remains::{MEMBERSHIP_STEPS, RETURN_STEPS, Remains, merge_freed};
use super::session::{Session, SessionId, Sessions};

/// Of so many members with room the one with the least work is chosen: looking at more would cost more than it gains.
const COMPARED_MAX: usize = 64;

/// So many groups one after the other that have nothing for a member are asked in one turn.
const ASKED_IN_VAIN_MAX: u32 = 64;

/// One of those who have come, who may be a member of any group, takes as long as so many members who have gone.
const ARRIVAL_LOOKS: usize = 4;

/// A message of a group that is recorded takes as long as so many other steps.
const SETTLE_STEPS: usize = 4;

/// The name of a group: a slot and a generation that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupId {
    slot: u32,
    generation: u32,
}

/// When a message was taken: groups that are made later do not get it, and clients that come later are not looked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    newest_group: u32,
    newest_move: u64,
}

/// There were too few looks to tell.
#[derive(Clone, Copy, Debug)]
struct Unknown;

/// Whom a search does not have to look at again.
#[derive(Clone, Copy, Debug)]
enum Obstacle {
    /// It counts as connected, and is not.
    Gone(SessionId),
    /// Its outbox has no room. It is the one whose turn it is.
    Full,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    session: SessionId,
    grant: Grant,
}

/// The slots of a group and of the session of a member.
type Membership = (u32, u32);

/// Where a membership stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Among the members of its group.
    member: u32,
    /// Among the memberships of its session.
    membership: u32,
}

/// Clients that share one subscription.
#[derive(Debug)]
struct Group {
    id: GroupId,
    /// As in SUBSCRIBE: `$share/NAME/FILTER`.
    text: Rc<str>,
    /// How many members have a session that is stored: as long as there are any, what waits here is stored too.
    stored_members: usize,
    /// The first `present` of them count as connected.
    members: Vec<Member>,
    present: usize,
    /// The outboxes of the first `full` of those had no room when so many outboxes had drained, and have none until another one has.
    full: usize,
    drained_seen: u64,
    /// Those behind the first `alive` of them have ended, and so may have others.
    alive: usize,
    /// It is known of moves up to this number that none of them brings a member.
    moves_seen: u64,
    /// Of the members that do not count as connected so many were looked at last.
    looked_at: usize,
    /// Nobody finds it any more: all its members have ended, and there may be another one of the same text.
    is_retired: bool,
    /// Whose turn it is among equals.
    turn: usize,
    queue: Queue,
}

impl Group {
    /// As whose its deliveries are recorded, if they are to outlive the process.
    fn stored_as(&self) -> Option<Owner<'_>> {
        (self.stored_members > 0).then_some(Owner::Group(&self.text))
    }

    /// No more than so many are connected: those behind them have gone.
    fn limit_present(&mut self, present_max: usize) {
        self.present = self.present.min(present_max);
        self.full = self.full.min(self.present);
    }
}

/// The memberships of a session, whose client has come or gone, that have yet to be moved: so many, from the first one on. Those
/// behind them are where they belong, whatever comes and goes meanwhile.
type MembershipsLeft = usize;

/// What a session, whose client has gone, was sent and has yet to be looked at: so many, from the first one on. What was kept
/// has gone behind them.
type SentLeft = usize;

/// All groups.
#[derive(Debug)]
pub(super) struct SharedSubscriptions {
    groups: Slab<Group>,
    by_text: DividedTable<u32>,
    /// By the slots of group and session.
    places: DividedTable<(Membership, Place)>,
    /// Which groups a topic matches; a group's subscriber id is its slot.
    tree: SubscriptionTree,
    seed: HashSeed,
    generation: u32,
    /// Groups with something in their queue.
    waiting: usize,
    /// How many outboxes in which a group found no room have drained, or ended.
    drained: u64,
    /// In this group a message that takes several turns has yet to find a member.
    searched: Option<GroupId>,
    moves: InLine<MembershipsLeft>,
    /// Those of clients that have come, by their numbers.
    arrivals: BTreeMap<u64, SessionId>,
    returns: InLine<SentLeft>,
    /// Groups whose queue holds messages that are recorded and should not be, or the other way round.
    unsettled: VecDeque<GroupId>,
}

impl SharedSubscriptions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            groups: Slab::new(),
            by_text: DividedTable::new(),
            places: DividedTable::new(),
            tree: SubscriptionTree::new(seed),
            seed: seeded(seed),
            generation: 0,
            waiting: 0,
            drained: 0,
            searched: None,
            moves: InLine::new(),
            arrivals: BTreeMap::new(),
            returns: InLine::new(),
            unsettled: VecDeque::new(),
        }
    }

    /// Memberships of all groups.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A delivery waits again in a group that exists.
    pub(super) fn restore_delivery(&mut self, text: &str, delivery: Delivery) {
        let Some(id) = self.find(text) else { return };
        let group = &mut self.groups[id.slot as usize];
        self.waiting += usize::from(group.queue.is_empty());
        group.queue.push(delivery);
    }

    pub(super) fn find(&self, text: &str) -> Option<GroupId> {
        let hash = hash_text(&self.seed, text);
        let slot = self.by_text.find(hash, |slot| *self.groups[*slot as usize].text == *text)?;
        Some(self.groups[*slot as usize].id)
    }

    /// The text of a group's subscription.
    pub(super) fn text(&self, id: GroupId) -> Option<&str> {
        self.group(id).map(|group| &*group.text)
    }

    /// The deliveries that wait in groups.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Delivery> {
        self.groups.iter().flat_map(|(_, group)| group.queue.iter())
    }

    /// What is there now is not later.
    pub(super) fn now(&self) -> Moment {
        Moment { newest_group: self.generation, newest_move: self.moves.newest() }
    }

    /// The group with this slot, unless it has ended, or was made later.
    fn standing_group(&self, slot: SubscriberId, taken_at: Moment) -> Option<GroupId> {
        let group = self.groups.get(slot.0 as usize).filter(|group| !group.is_retired)?;
        let is_newer = group.id.generation.wrapping_sub(taken_at.newest_group).cast_signed() > 0;
        (!is_newer).then_some(group.id)
    }

    /// An outbox in which a group found no room has some, or has ended.
    pub(super) const fn note_drained(&mut self) {
        self.drained += 1;
    }

    /// Whether a topic may match more groups than that.
    pub(super) fn may_exceed(&mut self, topic: TopicName<'_>, groups: usize) -> bool {
        !self.is_empty() && self.tree.may_exceed(topic, groups)
    }

    /// Goes on with a list of groups that was begun.
    pub(super) fn list_further(&mut self, at_most: usize) -> Option<Matches> {
        self.tree.list_further(at_most)
    }

    /// Whether there is such a list.
    pub(super) fn is_listing(&self) -> bool {
        self.tree.is_listing()
    }

    /// Takes back a list of groups.
    pub(super) fn put_back(&mut self, matches: Matches) {
        self.tree.put_back(matches);
    }

    fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id.slot as usize).filter(|group| group.id == id)
    }

    fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(id.slot as usize).filter(|group| group.id == id)
    }

    fn place(&self, id: GroupId, session: SessionId) -> Option<Place> {
        let membership = (id.slot, session.slot);
        let hash = self.seed.hash_one(membership);
        self.places.find(hash, |(other, _)| *other == membership).map(|(_, place)| *place)
    }

    fn place_mut(&mut self, id: GroupId, session: SessionId) -> &mut Place {
        let membership = (id.slot, session.slot);
        let hash = self.seed.hash_one(membership);
        let found = self.places.find_mut(hash, |(other, _)| *other == membership);
        &mut found.expect("every membership is indexed").1
    }

    fn add_place(&mut self, id: GroupId, session: SessionId, place: Place) {
        let Self { places, seed, .. } = self;
        let membership = (id.slot, session.slot);
        let hash_of = |(membership, _): &(Membership, Place)| seed.hash_one(membership);
        places.insert_unique(seed.hash_one(membership), (membership, place), hash_of);
    }

    fn remove_place(&mut self, id: GroupId, session: SessionId) -> Option<Place> {
        let membership = (id.slot, session.slot);
        let hash = self.seed.hash_one(membership);
        self.places.remove(hash, |(other, _)| *other == membership).map(|(_, place)| place)
    }

    fn find_or_make(&mut self, text: &str, filter: SubscriptionFilter<'_>) -> GroupId {
        if let Some(id) = self.find(text) {
            return id;
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = self.groups.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("fewer groups than 2^32");
        let id = GroupId { slot, generation: self.generation };
        entry.insert(Group {
            id,
            text: text.into(),
            stored_members: 0,
            members: Vec::new(),
            present: 0,
            full: 0,
            drained_seen: 0,
            alive: 0,
            moves_seen: 0,
            looked_at: 0,
            is_retired: false,
            turn: 0,
            queue: Queue::default(),
        });
        let Self { groups, by_text, tree, seed, .. } = self;
        by_text
            .insert_unique(hash_text(seed, text), slot, |slot| hash_text(seed, &groups[*slot as usize].text));
        // What a member is granted is known when it is chosen.
        tree.subscribe(SubscriberId(slot), filter.filter, QoS::ExactlyOnce);
        id
    }

    /// Nobody finds the group any more. What waited in it.
    fn retire_group(&mut self, id: GroupId) -> Queue {
        let group = &mut self.groups[id.slot as usize];
        if std::mem::replace(&mut group.is_retired, true) {
            return Queue::default();
        }
        let queue = std::mem::take(&mut group.queue);
        let hash = hash_text(&self.seed, &group.text);
        self.waiting -= usize::from(!queue.is_empty());
        self.tree.remove_subscriber(SubscriberId(id.slot));
        self.by_text.remove(hash, |slot| *slot == id.slot).expect("every group is indexed by its text");
        queue
    }

    fn remove_group(&mut self, id: GroupId) -> Queue {
        let queue = self.retire_group(id);
        self.groups.remove(id.slot as usize);
        queue
    }

    /// Whether members are still to be moved.
    pub(super) fn has_moves(&self) -> bool {
        !self.moves.is_empty()
    }

    /// Whether there is work for later turns.
    pub(super) fn has_work_left(&self) -> bool {
        // One comparison: it is asked in every turn.
        self.moves.len() | self.returns.len() | self.unsettled.len() != 0
    }

    /// Whether a group has a member whose session has not ended. Those who have are passed once. Where looks do not tell the next
    /// ones go on.
    fn is_alive(&mut self, id: GroupId, sessions: &Sessions, looks: &mut usize) -> Result<bool, Unknown> {
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

    /// The same, however many looks that takes.
    fn has_living(&mut self, id: GroupId, sessions: &Sessions) -> bool {
        matches!(self.is_alive(id, sessions, &mut { usize::MAX }), Ok(true))
    }

    /// Whether somebody who counts as connected is: then the last of them is. Those behind it, who have gone, are passed once.
    fn pass_gone(&mut self, id: GroupId, sessions: &Sessions, looks: &mut usize) -> Result<bool, Unknown> {
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
    fn find_attendant(
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
    fn is_looked_through(
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
    fn entering(
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
    fn forget_full(&mut self, id: GroupId) {
        let drained = self.drained;
        if let Some(group) = self.group_mut(id).filter(|group| group.drained_seen != drained) {
            (group.full, group.drained_seen) = (0, drained);
        }
    }

    /// The outbox of the one whose turn it is has no room.
    fn set_full(&mut self, id: GroupId) {
        let Some(group) = self.group_mut(id) else { return };
        let (at, full) = (group.turn, group.full);
        group.full += 1;
        self.swap_members(id, at, full);
    }

    /// The client of a session has come or gone: what was begun for it before is over.
    fn stop_move(&mut self, session: SessionId) {
        if let Some((number, _)) = self.moves.remove(session) {
            self.arrivals.remove(&number);
        }
    }

    /// Ends the return of what a session was sent: what is left stays with it, in its old order.
    fn stop_return(&mut self, session: &mut Session) {
        if let Some((_, left)) = self.returns.remove(session.id) {
            session.outgoing.sent.rotate_left(left);
        }
    }

    fn swap_members(&mut self, id: GroupId, one: usize, other: usize) {
        if one == other {
            return;
        }
        let members = &mut self.groups[id.slot as usize].members;
        members.swap(one, other);
        let sessions = [(one, members[one].session), (other, members[other].session)];
        for (at, session) in sessions {
            self.place_mut(id, session).member = at as u32;
        }
    }

    /// Moves a member among those who count as connected, or away from them.
    fn set_present(&mut self, id: GroupId, session: SessionId, is_present: bool) {
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
    pub(super) fn set_all_absent(&mut self) {
        self.groups.iter_mut().for_each(|(_, group)| group.limit_present(0));
        self.moves.clear();
        self.arrivals.clear();
    }

    /// Asserts every invariant of the groups, and returns how many messages wait in them.
    pub(super) fn check_invariants(
        &self,
        sessions: &Sessions,
        remains: &Blocks<Remains>,
        is_known_full: impl Fn(ConnectionId) -> bool,
    ) -> u64 {
        self.tree.check_invariants();
        let mut left_behind = BTreeSet::new();
        for remains in remains.iter() {
            left_behind.extend(remains.memberships.iter().map(|id| (*id, remains.session)));
        }
        self.moves.check_invariants();
        self.returns.check_invariants();
        let moves = self.moves.iter().filter(|(_, session, _)| sessions.is_connected(*session));
        let arrivals = self.arrivals.iter().map(|(number, session)| (*number, *session));
        assert!(moves.map(|(number, session, _)| (number, session)).eq(arrivals), "whose client has come");
        for (_, session, left) in self.returns.iter() {
            let session = sessions.find(session).expect("with its end it is done");
            assert!(session.connection.is_none() && *left <= session.outgoing.sent.len());
        }
        let (mut queued, mut memberships, mut waiting, mut retired) = (0, 0, 0, 0);
        for (_, group) in &self.groups {
            assert!(!group.members.is_empty(), "a group has a member");
            for (at, member) in group.members.iter().enumerate() {
                let place = self.place(group.id, member.session).expect("every membership is indexed");
                assert_eq!(place.member as usize, at);
                let Some(session) = sessions.find(member.session) else {
                    let is_left = left_behind.contains(&(group.id, Some(member.session)));
                    assert!(is_left, "the membership of an ended session is about to be removed");
                    continue;
                };
                assert!(at < group.alive && !group.is_retired, "it has not ended");
                assert_eq!(session.memberships[place.membership as usize], group.id);
                let movement = self.moves.find(member.session);
                let is_moved = movement.is_none_or(|(_, left)| place.membership as usize >= *left);
                let is_right = session.connection.is_some() == (at < group.present);
                assert!(is_right || !is_moved, "the connected ones come first");
                let is_full = at < group.full && group.drained_seen == self.drained;
                assert!(!is_full || session.connection.is_none_or(&is_known_full), "it has no room");
            }
            assert!(
                group.full <= group.present
                    && group.present <= group.alive
                    && group.alive <= group.members.len()
            );
            assert!((self.find(&group.text) == Some(group.id)) != group.is_retired);
            retired += usize::from(group.is_retired);
            let is_recorded = |delivery: &Delivery| delivery.record.is_some();
            assert!(
                self.unsettled.contains(&group.id)
                    || group
                        .queue
                        .iter()
                        .all(|delivery| is_recorded(delivery) == group.stored_as().is_some()),
                "what waits is recorded if a member is stored"
            );
            group.queue.check_invariants();
            waiting += usize::from(!group.queue.is_empty());
            queued += group.queue.len() as u64;
            memberships += group.members.len();
        }
        assert_eq!((self.places.len(), self.waiting), (memberships, waiting));
        let found = self.groups.len() - retired;
        assert_eq!((self.tree.len(), self.by_text.len()), (found, found));
        queued
    }
}

impl Broker {
    /// Makes a session a member of a group, or changes what it is granted there [MQTT5-3.8.4-3].
    pub(super) fn join_group(
        &mut self,
        session_id: SessionId,
        text: &str,
        filter: SubscriptionFilter<'_>,
        grant: Grant,
    ) {
        self.end_dead_group(text);
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
    pub(super) fn is_in_group(&self, session: SessionId, text: &str) -> bool {
        self.shared.find(text).is_some_and(|id| self.shared.place(id, session).is_some())
    }

    /// Ends a membership that SUBSCRIBE made. False if there was none.
    pub(super) fn leave_group(&mut self, session_id: SessionId, text: &str) -> bool {
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
    pub(super) fn end_membership(&mut self, id: GroupId, session: SessionId) {
        let name = self.sessions.name_of_ended(session);
        // Or the group was dead, and has been ended before.
        if let Some(text) = self.shared.text(id) {
            if name.is_some() {
                self.outputs.journal.remove_subscription(name, text);
            }
            self.remove_member(id, session, name.is_some());
        }
    }

    /// Ends a group all of whose members have ended: who joins one of the same text does not get what waits there. There
    /// are few of them: only of who was in many groups are memberships left.
    fn end_dead_group(&mut self, text: &str) {
        if self.remains.is_empty() {
            return;
        }
        let Some(id) = self.shared.find(text).filter(|id| !self.shared.has_living(*id, &self.sessions))
        else {
            return;
        };
        let queue = self.shared.retire_group(id);
        self.leave_queue_behind(queue);
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

    /// What waits in a group is to be stored from now on, or no more: at once if it is little, and otherwise in later turns.
    fn settle(&mut self, id: GroupId) {
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

    /// A member's connection has ended: what it was sent at QoS 1 and did not acknowledge goes to others who are
    /// there.
    pub(super) fn absent_from_groups(&mut self, session_id: SessionId) {
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

    /// A session has ended. Many memberships are left for `remains`.
    pub(super) fn leave_few_groups(&mut self, session: &mut Session) {
        self.shared.stop_return(session);
        self.shared.stop_move(session.id);
        let memberships = session.memberships.len();
        if self.has_steps_at_once(memberships, memberships * MEMBERSHIP_STEPS) {
            while let Some(id) = session.memberships.remove(0) {
                self.end_membership(id, session.id);
            }
        }
    }

    /// What a session that has ended was sent and did not acknowledge goes back to the group that it came from, if that has
    /// other members, even if the session had left it before.
    pub(super) fn return_or_drop(&mut self, delivery: Delivery) {
        match group_of(&delivery).filter(|id| self.shared.has_living(*id, &self.sessions)) {
            Some(id) => self.return_to_group(id, delivery),
            None => {
                self.outputs.forget(&delivery);
                self.outputs.metrics.drop_message(DropReason::SessionEnded);
            }
        }
    }

    /// The client of a session has come or gone: it counts among those who are there, or no more. Many memberships are
    /// moved in later turns.
    pub(super) fn move_memberships(&mut self, session: SessionId) {
        let Some(found) = self.sessions.find_mut(session) else { return };
        let (left, has_come) = (found.memberships.len(), found.connection.is_some());
        let shared = &mut self.shared;
        shared.stop_return(found);
        shared.stop_move(session);
        if left == 0 {
            return;
        }
        if self.is_little(left) {
            let mut steps = left;
            self.go_on_moving(session, left, &mut steps);
            return;
        }
        let number = self.shared.moves.push_back(session, left);
        if has_come {
            self.shared.arrivals.insert(number, session);
        }
    }

    /// Does as much as one turn has time for.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_group_work(&mut self) {
        let SharedSubscriptions { returns, moves, unsettled, .. } = &self.shared;
        let kinds = [
            (!returns.is_empty(), Self::continue_returns as fn(&mut Self, &mut usize)),
            (!moves.is_empty(), Self::continue_moves),
            (!unsettled.is_empty(), Self::continue_settling),
        ];
        // Each has its share, and those behind it what it leaves of that: a client that comes and goes makes moves without end.
        let mut left = self.options.steps_per_turn;
        let mut kinds_left = kinds.iter().filter(|(has_work, _)| *has_work).count();
        for (_, go_on) in kinds.iter().filter(|(has_work, _)| *has_work) {
            let share = (left / kinds_left).max(1);
            let mut steps = share;
            go_on(self, &mut steps);
            left = left.saturating_sub(share - steps);
            kinds_left -= 1;
        }
        if self.shared.has_work_left() {
            merge_freed();
        }
    }

    fn continue_returns(&mut self, steps: &mut usize) {
        while *steps > 0
            && let Some(mut giving) = self.shared.returns.pop_front()
        {
            giving.work = self.go_on_returning(giving.session, giving.work, steps);
            if giving.work > 0 {
                self.shared.returns.put_back(giving);
            }
        }
    }

    fn continue_moves(&mut self, steps: &mut usize) {
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

    fn continue_settling(&mut self, steps: &mut usize) {
        while *steps > 0
            && let Some(id) = self.shared.unsettled.pop_front()
        {
            if !self.go_on_settling(id, steps) {
                self.shared.unsettled.push_front(id);
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

    /// Puts a message, as it was published, back before all others, but for those that were put back before; and gives it to whoever has
    /// room. Nobody has where others wait already.
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

    /// Gives a message to one member of each group that wants it.
    pub(super) fn route_to_groups(&mut self, routing: &mut Routing<'_>) {
        let steps = self.options.steps_per_turn;
        let listed_max = steps.saturating_mul(LISTED_PER_STEP);
        let matches = self.shared.tree.matches_within(routing.topic, listed_max);
        // While another message is on its way to many it cannot take several turns itself. One for whose groups it would have to has
        // waited, but for wills that have waited too long.
        let is_alone = routing.goes_on || self.fan_out.is_none();
        let mut looks = if is_alone { listed_max } else { usize::MAX };
        let at_once = 0..matches.len().min(steps);
        let next = self.give_to_groups(routing, &matches, at_once, self.shared.now(), &mut looks);
        if next < matches.len() || !matches.is_complete() {
            self.begin_fan_out_to_groups(routing, matches, next);
        } else {
            self.shared.tree.put_back(matches);
        }
    }

    /// Gives a message to some of the groups that get it. Those that have ended since it was taken, and those that were made since,
    /// do not. `looks` are spent on finding out who is there, and at QoS 0 who has room, where very many may have come or gone: at a
    /// group for which too few are left it ends. Where it ends.
    pub(super) fn give_to_groups(
        &mut self,
        routing: &mut Routing<'_>,
        matches: &Matches,
        places: Range<usize>,
        taken_at: Moment,
        looks: &mut usize,
    ) -> usize {
        let Range { start, end } = places;
        for (place, subscriber) in (start..).zip(matches.some(places)) {
            let Some(group) = self.shared.standing_group(subscriber.id, taken_at) else {
                self.outputs.metrics.drop_message(DropReason::SessionEnded);
                continue;
            };
            let have_ended = !self.remains.is_empty();
            let is_alive =
                if have_ended { self.shared.is_alive(group, &self.sessions, looks) } else { Ok(true) };
            if let Ok(false) = is_alive {
                self.outputs.pass_ended(routing);
                continue;
            }
            let newest_move = taken_at.newest_move;
            let is_given = is_alive.is_ok()
                && self.shared.is_looked_through(group, &self.sessions, have_ended, newest_move, looks)
                && self.give(group, routing, newest_move, looks).is_ok();
            if !is_given {
                self.outputs.copies += (place - start) as u64;
                return place;
            }
            routing.is_matched = true;
        }
        self.outputs.copies += (end - start) as u64;
        end
    }

    fn give(
        &mut self,
        id: GroupId,
        routing: &mut Routing<'_>,
        newest_move: u64,
        looks: &mut usize,
    ) -> Result<(), Unknown> {
        if routing.qos > QoS::AtMostOnce {
            self.give_or_queue(id, routing);
            return Ok(());
        }
        // One that may not take several turns finds a member in this one.
        let may_go_on = routing.is_continued || self.shared.has_moves() || !self.remains.is_empty();
        let looks = if may_go_on { looks } else { &mut { usize::MAX } };
        self.give_at_most_once(id, routing, newest_move, looks)
    }

    fn give_at_most_once(
        &mut self,
        id: GroupId,
        routing: &mut Routing<'_>,
        newest_move: u64,
        looks: &mut usize,
    ) -> Result<(), Unknown> {
        // Or with every outbox that drains meanwhile it would look at all of them again.
        if !(routing.is_continued && self.shared.searched.take() == Some(id)) {
            self.shared.forget_full(id);
        }
        let chosen = self.choose_at_most_once(id, newest_move, looks);
        if chosen.is_err() {
            self.shared.searched = Some(id);
        }
        match chosen? {
            Ok(Member { session, grant }) => {
                self.subscription_ids.extend(grant.subscription_id.map(NonZeroU32::get));
                let retain = routing.retain && grant.retain_as_published;
                self.deliver_at_most_once(session.subscriber(), routing, retain);
                self.subscription_ids.clear();
            }
            Err(reason) => self.outputs.metrics.drop_message(reason),
        }
        Ok(())
    }

    /// The member that gets a message at QoS 0, or why there is none.
    fn choose_at_most_once(
        &mut self,
        id: GroupId,
        newest_move: u64,
        looks: &mut usize,
    ) -> Result<Result<Member, DropReason>, Unknown> {
        if let Some(member) = self.choose_present_member(id, false, looks)? {
            return Ok(Ok(member));
        }
        if let Some(member) = self.choose_newcomer(id, false, newest_move, looks)? {
            return Ok(Ok(member));
        }
        let is_attended = self.shared.find_attendant(id, &self.sessions, newest_move, looks)?;
        Ok(Err(if is_attended { DropReason::OutboxFull } else { DropReason::AbsentAtQoS0 }))
    }

    fn give_or_queue(&mut self, id: GroupId, routing: &mut Routing<'_>) {
        let message = routing.message(&self.messages).clone();
        // QoS and flags as published: what the member is granted is known when there is one.
        let (qos, retain) = (routing.qos, routing.retain);
        let mut delivery = Delivery { message, qos, retain, via: None, record: Lsn::NONE };
        if self.shared.group(id).is_some_and(|group| group.queue.is_empty())
            && let Some(member) = self.choose_for_window(id)
        {
            if let Some(owner) = self.shared.groups[id.slot as usize].stored_as() {
                delivery.record = self.outputs.record(owner, &delivery, None);
            }
            return self.send_to_member(id, member, delivery);
        }
        let Self { shared, outputs, options, now, .. } = self;
        let Some(group) = shared.groups.get_mut(id.slot as usize) else { return };
        let was_empty = group.queue.is_empty();
        let text = group.text.clone();
        let stored_as = group.stored_as();
        let owner = QueueOwner { name: &text, stored_as: stored_as.map(|_| Owner::Group(&text)) };
        outputs.enqueue(&mut group.queue, owner, delivery, options, *now);
        shared.waiting += usize::from(was_empty && !group.queue.is_empty());
        // Making room among what has expired may have emptied it.
        shared.waiting -= usize::from(!was_empty && group.queue.is_empty());
    }

    /// The member that gets a message that counts against the window. Members without room will ask when they have some.
    fn choose_for_window(&mut self, id: GroupId) -> Option<Member> {
        self.shared.forget_full(id);
        if let Ok(Some(member)) = self.choose_present_member(id, true, &mut { usize::MAX }) {
            return Some(member);
        }
        let newest_move = self.shared.moves.newest();
        let mut looks = self.outputs.steps_left;
        let chosen = self.choose_newcomer(id, true, newest_move, &mut looks);
        self.outputs.steps_left = looks;
        // If it is not known, those that were not looked at ask for what waits when they have been moved.
        chosen.ok().flatten()
    }

    /// Among those who have yet to be moved. All others have no room: who has just come is looked at alone, or many who have none
    /// either would be looked at again for each of them.
    fn choose_newcomer(
        &mut self,
        id: GroupId,
        counted: bool,
        newest_move: u64,
        looks: &mut usize,
    ) -> Result<Option<Member>, Unknown> {
        while let Some(entering) = self.shared.entering(id, &self.sessions, newest_move, looks)? {
            self.shared.set_present(id, entering, true);
            let Some(last) = self.shared.group(id).and_then(|group| group.present.checked_sub(1)) else {
                break;
            };
            match self.look_for_member(id, counted, last, 1) {
                Ok(Some(member)) => return Ok(Some(member)),
                Ok(None) | Err(Obstacle::Gone(_)) => {}
                Err(Obstacle::Full) => self.shared.set_full(id),
            }
            *looks = looks.saturating_sub(ARRIVAL_LOOKS);
        }
        Ok(None)
    }

    /// Among those who count as connected, the one with the least work among those with room; in turn among equals. `counted` says
    /// that the message counts against the window.
    fn choose_present_member(
        &mut self,
        id: GroupId,
        counted: bool,
        looks: &mut usize,
    ) -> Result<Option<Member>, Unknown> {
        loop {
            let Some(&Group { turn, present, full, .. }) = self.shared.group(id) else { return Ok(None) };
            let obstacle = match self.look_for_member(id, counted, turn, present - full) {
                Ok(chosen) => return Ok(chosen),
                Err(obstacle) => obstacle,
            };
            if *looks == 0 {
                return Err(Unknown);
            }
            *looks = looks.saturating_sub(ARRIVAL_LOOKS);
            // It is not passed again, and those before it only after all others. Of two that have gone there is one between them
            // who was looked at, because one who is there comes in the place of the first.
            match obstacle {
                Obstacle::Gone(gone) => {
                    self.shared.pass_gone(id, &self.sessions, looks)?;
                    self.shared.set_present(id, gone, false);
                }
                Obstacle::Full => self.shared.set_full(id),
            }
        }
    }

    /// Looks at so many whose outboxes are not known to be full, from one place on. An obstacle ends the search.
    fn look_for_member(
        &mut self,
        id: GroupId,
        counted: bool,
        from: usize,
        looks: usize,
    ) -> Result<Option<Member>, Obstacle> {
        let Self { shared, sessions, links, options, .. } = self;
        let Some(group) = shared.group_mut(id) else { return Ok(None) };
        let mut best: Option<(usize, usize)> = None;
        let mut compared = 0;
        let mut next = from;
        for _ in 0..looks {
            let at = if (group.full..group.present).contains(&next) { next } else { group.full };
            next = at + 1;
            let member = group.members[at].session;
            let session = sessions.find(member);
            let Some((session, connection)) =
                session.and_then(|session| Some((session, session.connection?)))
            else {
                group.turn = at;
                return Err(Obstacle::Gone(member));
            };
            let Some(link) = links.find_mut(connection) else { continue };
            if link.outbox.pending() > options.outbox_soft_mark() {
                link.wants_refill = true;
                link.is_found_full = true;
                group.turn = at;
                return Err(Obstacle::Full);
            }
            if counted && !has_room(session, link, options) {
                continue;
            }
            let work = session.outgoing.in_flight() + session.outgoing.queue.len();
            if best.is_none_or(|(_, least)| work < least) {
                best = Some((at, work));
            }
            compared += 1;
            if work == 0 || compared == COMPARED_MAX {
                break;
            }
        }
        let Some((at, _)) = best else { return Ok(None) };
        group.turn = at + 1;
        Ok(Some(group.members[at]))
    }

    /// Sends the first message of a group's queue to a member that has room for it, unless it has expired.
    fn pull_from_group(&mut self, id: GroupId, member: Member) {
        let Self { shared, outputs, now, .. } = self;
        let Some(group) = shared.groups.get_mut(id.slot as usize) else { return };
        let delivery = outputs.dequeue(&mut group.queue, *now);
        shared.waiting -= usize::from(group.queue.is_empty());
        if let Some(delivery) = delivery {
            self.send_to_member(id, member, delivery);
        }
    }

    /// Sends a message, with QoS and flags as published, to a member that has room for it.
    fn send_to_member(&mut self, id: GroupId, member: Member, delivery: Delivery) {
        let Self { shared, sessions, links, outputs, messages, now, .. } = self;
        let Member { session, grant } = member;
        let session = sessions.find_mut(session).expect("a member has a session");
        let link = session.connection.and_then(|id| links.find_mut(id)).expect("it has room");
        let Delivery { message, qos: published_qos, retain, record, .. } = delivery;
        let qos = published_qos.min(grant.qos);
        let text = shared.groups[id.slot as usize].text.clone();
        let origin = Origin { group: id, text, qos: published_qos, retain };
        let subscription_id = grant.subscription_id.map(NonZeroU32::get);
        let via = Via::of(subscription_id.as_slice(), (qos == QoS::AtLeastOnce).then_some(origin), messages);
        let retain = retain && grant.retain_as_published;
        let granted = Delivery { message, qos, retain, via, record };
        if qos == QoS::AtMostOnce {
            outputs.write_delivery(link, &granted, None, false, *now);
            outputs.forget(&granted);
        } else {
            outputs.send(session, link, granted, *now);
        }
    }

    /// A member may have room: it takes from the queues of its groups, one message from each in turn.
    pub(super) fn drain_groups(&mut self, session_id: SessionId) {
        if self.shared.waiting > 0 {
            self.ask_groups(session_id, 0);
        }
    }

    /// The same, where so many groups have been asked in vain in earlier turns. After one round without a message there is nothing
    /// to do until there is another reason to ask: what comes to a group goes to its members itself if they have room.
    pub(super) fn ask_groups(&mut self, session_id: SessionId, mut asked_in_vain: u32) {
        let mut asked_max = asked_in_vain.saturating_add(ASKED_IN_VAIN_MAX);
        let mut has_gone_on = false;
        while self.shared.waiting > 0 {
            let Self { shared, sessions, links, outputs, options, .. } = self;
            let Some(session) = sessions.find_mut(session_id) else { return };
            let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
            if asked_in_vain as usize >= session.memberships.len() {
                return;
            }
            if !session.outgoing.queue.is_empty() || !has_room(session, link, options) {
                link.wants_refill |= link.outbox.pending() > options.outbox_soft_mark();
                return;
            }
            if asked_in_vain == asked_max || (has_gone_on && outputs.is_enough(session)) {
                self.schedule_refill(session_id);
                self.session_mut(session_id).asked_in_vain = asked_in_vain;
                return;
            }
            session.group_turn = (session.group_turn + 1) % session.memberships.len() as u32;
            let id = session.memberships[session.group_turn as usize];
            match (shared.place(id, session_id), shared.group(id)) {
                (Some(place), Some(group)) if !group.queue.is_empty() => {
                    (asked_in_vain, asked_max) = (0, ASKED_IN_VAIN_MAX);
                    let member = group.members[place.member as usize];
                    self.pull_from_group(id, member);
                    has_gone_on = true;
                }
                _ => asked_in_vain += 1,
            }
        }
    }
}

/// The group that may give a message to somebody else.
fn group_of(delivery: &Delivery) -> Option<GroupId> {
    Some(delivery.via.as_ref()?.origin.as_ref()?.group)
}

#[cfg(test)]
mod tests {
    use crate::clock::Instant;

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
        let strangers = 100;
        for _ in 0..strangers {
            let stranger = world.session(true);
            world.arrive(stranger);
        }
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
        for _ in 0..100 {
            let stranger = world.session(true);
            world.arrive(stranger);
        }
        assert_eq!(world.entering(id), (None, 100, 100));
        assert_eq!(world.entering(id), (None, 100, 100));
        let stranger = world.session(true);
        world.arrive(stranger);
        world.arrive(members[7]);
        assert_eq!(world.entering(id), (Some(members[7]), 101, 102));
        // It is found again at the first look.
        assert_eq!(world.entering(id), (Some(members[7]), 101, 103));
    }

    #[test]
    fn a_group_of_few_does_not_look_at_all_who_come() {
        let mut world = World::new();
        let (id, members) = world.absent_group(3);
        for _ in 0..100 {
            let stranger = world.session(true);
            world.arrive(stranger);
        }
        world.arrive(members[0]);
        assert_eq!(world.entering(id), (Some(members[0]), 3, 0));
        world.sessions.find_mut(members[0]).expect("it has not ended").connection = None;
        assert_eq!(world.entering(id), (None, 101, 0));
    }
}
