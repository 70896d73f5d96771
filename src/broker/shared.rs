//! Shared subscriptions: a group of clients of which one gets each message [MQTT5-4.8.2-3].
//!
//! A group is a subscriber of its own in a tree of its own, so that who is not concerned pays nothing. It has a queue,
//! and its members pull: a message goes at once to a connected member that has room (see `giving`), and otherwise waits in
//! the group until a member has room, be it busy now or away. So a member holds nothing that it was not sent.
//!
//! As long as a member's session is stored, so is what waits in the group (see `settling`). Who comes, goes or ends may be a
//! member of a hundred thousand groups (see `presence`, and `memberships`); what it had not acknowledged goes to others (see
//! `returns`).
//!
//! Invariants: a group has a member; its connected members come first, but for memberships that have yet to be moved,
//! or whose session has ended; the first of those may be known to have no room, and have none as long as no outbox that was found
//! full has drained; who has ended and is known to comes last; what waits in a group is recorded if and only if a member is
//! stored, but for groups in `unsettled`; a group has something in its queue only if no connected member
//! has room for it, or one is about to be asked, or to be moved and then asked; every membership stands in its group, in its
//! session or in what that has left, and in the index, which knows both places.
//!
//! Deliberately not here: when there is time for the work that is left to later turns (see `deadlines`).

mod giving;
mod memberships;
mod presence;
mod returns;
mod settling;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::rc::Rc;

use slab::Slab;

use crate::blocks::Blocks;
use crate::codec::QoS;
use crate::divided_table::DividedTable;
use crate::hash::{HashSeed, hash_text, seeded};
use crate::journal::Owner;
use crate::topics::match_cache::Matches;
use crate::topics::{Grant, SubscriberId, SubscriptionFilter, SubscriptionTree, TopicName};

use super::Broker;
use super::delivery::Delivery;
use super::in_line::InLine;
use super::link::ConnectionId;
use super::queue::Queue;
use super::remains::{Remains, merge_freed};
use super::session::{Session, SessionId, Sessions};

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
    /// Those of the first so many who count as connected have yet to be asked whether they have room for what waits.
    unasked: usize,
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
    /// Groups with members that have yet to be asked.
    asking: VecDeque<GroupId>,
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
            asking: VecDeque::new(),
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

    /// See [`SubscriptionTree::may_exceed`].
    pub(super) fn may_exceed(&mut self, topic: TopicName<'_>, groups: usize, at_most: usize) -> bool {
        !self.is_empty() && self.tree.may_exceed(topic, groups, at_most)
    }

    /// Goes on with a list of groups that was begun.
    pub(super) fn list_further(&mut self, at_most: usize) -> Option<Matches> {
        self.tree.list_further(at_most)
    }

    /// See [`SubscriptionTree::listed`].
    pub(super) const fn listed(&self) -> u64 {
        self.tree.listed()
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
            unasked: 0,
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

    /// Not 0 if there is work for later turns.
    #[inline]
    pub(super) fn work_left(&self) -> usize {
        self.moves.len() | self.returns.len() | self.asking.len() | self.unsettled.len()
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
            let listed = self.asking.iter().filter(|id| **id == group.id).count();
            assert!(listed == 1 || (listed == 0 && group.unasked == 0), "who has yet to be asked is");
            waiting += usize::from(!group.queue.is_empty());
            queued += group.queue.len() as u64;
            memberships += group.members.len();
        }
        assert_eq!((self.places.len(), self.waiting), (memberships, waiting));
        let found = self.groups.len() - retired;
        assert_eq!((self.tree.len(), self.by_text.len()), (found, found));
        queued
    }

    /// Asserts that nothing waits for a member that `takes_nothing` is not true of.
    pub(super) fn check_waiting(&self, sessions: &Sessions, takes_nothing: impl Fn(&Session) -> bool) {
        for (_, group) in self.groups.iter().filter(|(_, group)| !group.queue.is_empty()) {
            for member in group.members[..group.present].iter().skip(group.unasked) {
                let is_settled = self.moves.find(member.session).is_none();
                let session = sessions.find(member.session).filter(|_| is_settled);
                assert!(session.is_none_or(&takes_nothing), "what waits is taken by whoever has room");
            }
        }
    }
}

impl Broker {
    /// Does as much as one turn has time for.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_group_work(&mut self) {
        let SharedSubscriptions { returns, moves, asking, unsettled, .. } = &self.shared;
        let kinds = [
            (!returns.is_empty(), Self::continue_returns as fn(&mut Self, &mut usize)),
            (!moves.is_empty(), Self::continue_moves),
            (!asking.is_empty(), Self::continue_asking),
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
        if self.shared.work_left() > 0 {
            merge_freed();
        }
    }
}
