//! Shared subscriptions: a group of clients of which one gets each message [MQTT5-4.8.2-3].
//!
//! A group is a subscriber of its own in a tree of its own, so that who is not concerned pays nothing. It has a queue,
//! and its members pull: a message goes at once to the connected member with the least work that has room, and
//! otherwise waits in the group until a member has room, be it busy now or away. So a member holds nothing that it was not
//! sent. What it was sent at QoS 1 and did not acknowledge goes back to the group when it leaves others behind, or its
//! session ends. What it was sent at QoS 2 stays with it [MQTT5-4.8.2-4] [MQTT5-4.8.2-5].
//!
//! A client may be a member of a hundred thousand groups. When it comes or goes, its memberships are moved a little in each
//! turn, and when its session ends they are removed a little in each turn (see `remains`). To everybody else it has come, gone
//! or ended at once: whether a member is there is asked of its session, and a group all of whose members have ended is as good
//! as none.
//!
//! Invariants: a group has a member; its connected members come first, but for memberships that have yet to be moved, or
//! whose session has ended; a group has something in its queue only if no connected member has room for it, or one is about
//! to be asked; every membership stands in its group, in its session or in what that has left, and in the index, which knows
//! both places.

use std::collections::{BTreeSet, VecDeque};
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::rc::Rc;

use slab::Slab;

use crate::codec::QoS;
use crate::divided_table::DividedTable;
use crate::hash::{HashSeed, hash_text, seeded};
use crate::journal::{Lsn, Owner};
use crate::metrics::DropReason;
use crate::topics::{Grant, SubscriberId, SubscriptionFilter, SubscriptionTree};

use super::Broker;
use super::deliver::{QueueOwner, Routing, has_room};
use super::delivery::{Delivery, Origin, Via};
use super::queue::Queue;
use super::remains::Remains;
use super::session::{Outgoing, Sent, Session, SessionId, Sessions};

/// Of so many members with room the one with the least work is chosen: looking at more would cost more than it gains.
const COMPARED_MAX: usize = 64;

/// Memberships without work for a member that one turn looks at.
const IDLE_LOOKS_MAX: usize = 64;

/// The name of a group: a slot and a generation that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupId {
    slot: u32,
    generation: u32,
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
    /// Whose turn it is among equals.
    turn: usize,
    queue: Queue,
}

impl Group {
    /// As whose its deliveries are recorded, if they are to outlive the process.
    fn stored_as(&self) -> Option<Owner<'_>> {
        (self.stored_members > 0).then_some(Owner::Group(&self.text))
    }
}

/// A session whose client has come or gone, and whose memberships have yet to be moved.
#[derive(Clone, Copy, Debug)]
struct Move {
    session: SessionId,
    /// So many, from the first one on: those behind them are where they belong, whatever comes and goes meanwhile.
    left: usize,
}

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
    /// Each session once.
    moves: VecDeque<Move>,
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
            moves: VecDeque::new(),
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

    fn remove_group(&mut self, id: GroupId) -> Group {
        self.tree.remove_subscriber(SubscriberId(id.slot));
        let group = self.groups.remove(id.slot as usize);
        self.waiting -= usize::from(!group.queue.is_empty());
        let hash = hash_text(&self.seed, &group.text);
        self.by_text.remove(hash, |slot| *slot == id.slot).expect("every group is indexed by its text");
        group
    }

    /// Whether memberships have yet to be moved.
    pub(super) fn has_moves(&self) -> bool {
        !self.moves.is_empty()
    }

    /// Whether a group has a member whose session has not ended.
    fn is_alive(&self, id: GroupId, sessions: &Sessions) -> bool {
        let mut members = self.group(id).into_iter().flat_map(|group| &group.members);
        members.any(|member| sessions.find(member.session).is_some())
    }

    /// Whether a group has a connected member.
    fn is_attended(&self, id: GroupId, sessions: &Sessions) -> bool {
        let Some(group) = self.group(id) else { return false };
        let mut present = group.members[..group.present].iter();
        present.any(|member| sessions.is_connected(member.session)) || self.entering(id, sessions).is_some()
    }

    /// A connected member that has yet to be moved among those who count as connected.
    fn entering(&self, id: GroupId, sessions: &Sessions) -> Option<SessionId> {
        let present = self.group(id)?.present;
        self.moves.iter().map(|movement| movement.session).find(|session| {
            sessions.is_connected(*session)
                && self.place(id, *session).is_some_and(|place| place.member as usize >= present)
        })
    }

    /// Moves a member among those who count as connected, or away from them.
    fn set_present(&mut self, id: GroupId, session: SessionId, is_present: bool) {
        let Some(Place { member, .. }) = self.place(id, session) else { return };
        let Some(group) = self.group_mut(id) else { return };
        let at = member as usize;
        let other = if is_present && at >= group.present {
            group.present += 1;
            group.present - 1
        } else if !is_present && at < group.present {
            group.present -= 1;
            group.present
        } else {
            return;
        };
        group.members.swap(at, other);
        let moved = group.members[at].session;
        self.place_mut(id, moved).member = at as u32;
        self.place_mut(id, session).member = other as u32;
    }

    /// Nobody is connected any more, as far as the groups are concerned: everybody is about to be closed.
    pub(super) fn set_all_absent(&mut self) {
        self.groups.iter_mut().for_each(|(_, group)| group.present = 0);
        self.moves.clear();
    }

    /// Asserts every invariant of the groups, and returns how many messages wait in them.
    pub(super) fn check_invariants(&self, sessions: &Sessions, remains: &VecDeque<Remains>) -> u64 {
        self.tree.check_invariants();
        let mut left_behind = BTreeSet::new();
        for remains in remains {
            left_behind.extend(remains.memberships.iter().map(|id| (*id, remains.session)));
        }
        let moving: BTreeSet<SessionId> = self.moves.iter().map(|movement| movement.session).collect();
        assert_eq!(moving.len(), self.moves.len(), "a session is moved once at a time");
        let (mut queued, mut memberships, mut waiting) = (0, 0, 0);
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
                assert_eq!(session.memberships[place.membership as usize], group.id);
                let movement = self.moves.iter().find(|movement| movement.session == member.session);
                let is_moved = movement.is_none_or(|movement| place.membership as usize >= movement.left);
                let is_right = session.connection.is_some() == (at < group.present);
                assert!(is_right || !is_moved, "the connected ones come first");
            }
            assert_eq!(self.find(&group.text), Some(group.id));
            group.queue.check_invariants();
            waiting += usize::from(!group.queue.is_empty());
            queued += group.queue.len() as u64;
            memberships += group.members.len();
        }
        assert_eq!((self.places.len(), self.waiting), (memberships, waiting));
        assert_eq!((self.tree.len(), self.by_text.len()), (self.groups.len(), self.groups.len()));
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
        if is_stored {
            group.stored_members += 1;
            if group.stored_members == 1 {
                let owner = Owner::Group(&group.text);
                for delivery in group.queue.iter_mut() {
                    delivery.record = self.outputs.record(owner, delivery, None);
                }
            }
        }
        group.members.push(Member { session: session_id, grant });
        let memberships = &mut self.session_mut(session_id).memberships;
        let membership = memberships.len() as u32;
        memberships.push_back(id);
        self.shared.add_place(id, session_id, Place { member, membership });
        self.shared.set_present(id, session_id, true);
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
        let memberships = &mut self.session_mut(session_id).memberships;
        memberships.swap_remove(membership as usize);
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
        let Some(id) = self.shared.find(text).filter(|id| !self.shared.is_alive(*id, &self.sessions)) else {
            return;
        };
        while let Some(member) = self.shared.group(id).and_then(|group| group.members.last()) {
            self.end_membership(id, member.session);
        }
    }

    /// `is_stored` says whether the session is.
    fn remove_member(&mut self, id: GroupId, session: SessionId, is_stored: bool) {
        self.shared.set_present(id, session, false);
        let Some(Place { member, .. }) = self.shared.remove_place(id, session) else { return };
        let Some(group) = self.shared.group_mut(id) else { return };
        group.members.swap_remove(member as usize);
        group.stored_members -= usize::from(is_stored);
        if group.members.is_empty() {
            let group = self.shared.remove_group(id);
            let queued = group.queue.len() as u64;
            self.outputs.metrics.queued_messages -= queued;
            self.outputs.metrics.drop_messages(DropReason::SessionEnded, queued);
            return self.leave_behind(Remains::of_group(group.queue));
        }
        if is_stored && group.stored_members == 0 {
            for delivery in group.queue.iter_mut() {
                self.outputs.forget(delivery);
                delivery.record = Lsn::NONE;
            }
        }
        if let Some(moved) = group.members.get(member as usize).map(|member| member.session) {
            self.shared.place_mut(id, moved).member = member;
        }
    }

    /// A member's connection has ended: what it was sent at QoS 1 and did not acknowledge goes to others who are
    /// there.
    pub(super) fn absent_from_groups(&mut self, session_id: SessionId) {
        self.move_memberships(session_id);
        let Self { shared, sessions, .. } = self;
        let Some(session) = sessions.find(session_id) else { return };
        let mut groups = groups_of(&session.outgoing);
        groups.retain(|id| shared.place(*id, session_id).is_some() && shared.is_attended(*id, sessions));
        if groups.is_empty() {
            return;
        }
        let outgoing = &mut self.session_mut(session_id).outgoing;
        let unacknowledged = take_unacknowledged(outgoing, &groups);
        outgoing.sent_here = 0;
        for (id, deliveries) in unacknowledged {
            self.outputs.metrics.in_flight_messages -= deliveries.len() as u64;
            self.return_to_group(id, deliveries);
        }
    }

    /// A session has ended: what it was sent at QoS 1 and did not acknowledge goes back to the groups that it came from,
    /// as far as they have other members, and is taken out of `sent`. Many memberships are left for `remains`.
    pub(super) fn leave_all_groups(&mut self, session: &mut Session) {
        if session.memberships.is_empty() && session.outgoing.sent.is_empty() {
            return;
        }
        if self.is_little(session.memberships.len()) {
            session.memberships.take().into_iter().for_each(|id| self.end_membership(id, session.id));
        }
        // Also to those that it had left before.
        let mut groups = groups_of(&session.outgoing);
        groups.retain(|id| self.shared.is_alive(*id, &self.sessions));
        for (id, deliveries) in take_unacknowledged(&mut session.outgoing, &groups) {
            self.return_to_group(id, deliveries);
        }
    }

    /// The client of a session has come or gone: it counts among those who are there, or no more. Many memberships are
    /// moved in later turns.
    pub(super) fn move_memberships(&mut self, session: SessionId) {
        let left = self.session(session).memberships.len();
        if left == 0 {
            return;
        }
        let mut movement = Move { session, left };
        if self.is_little(left) {
            let mut steps = left;
            self.go_on_moving(&mut movement, &mut steps);
            return;
        }
        let moves = &mut self.shared.moves;
        match moves.iter_mut().find(|movement| movement.session == session) {
            Some(found) => *found = movement,
            None => moves.push_back(movement),
        }
    }

    /// Moves as many memberships as one turn has time for.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_moves(&mut self) {
        let mut steps = self.options.steps_per_turn;
        while let Some(mut movement) = self.shared.moves.pop_front() {
            if !self.go_on_moving(&mut movement, &mut steps) {
                return self.shared.moves.push_front(movement);
            }
        }
    }

    /// True if all are where they belong; otherwise there are no steps left.
    fn go_on_moving(&mut self, movement: &mut Move, steps: &mut usize) -> bool {
        let Self { shared, sessions, .. } = self;
        let Some(session) = sessions.find(movement.session) else { return true };
        // Some may have been removed meanwhile, and others have come in their place.
        movement.left = movement.left.min(session.memberships.len());
        while movement.left > 0 && *steps > 0 {
            *steps -= 1;
            movement.left -= 1;
            let id = session.memberships[movement.left];
            shared.set_present(id, session.id, session.connection.is_some());
        }
        movement.left == 0
    }

    /// Puts messages back before all others, and gives them to whoever has room.
    fn return_to_group(&mut self, id: GroupId, mut deliveries: Vec<Delivery>) {
        let Some(group) = self.shared.groups.get_mut(id.slot as usize).filter(|group| group.id == id) else {
            return;
        };
        for delivery in &mut deliveries {
            let record = match group.stored_as() {
                Some(owner) => self.outputs.record(owner, delivery, None),
                None => Lsn::NONE,
            };
            self.outputs.forget(delivery);
            delivery.record = record;
        }
        self.shared.waiting += usize::from(group.queue.is_empty() && !deliveries.is_empty());
        self.outputs.metrics.queued_messages += deliveries.len() as u64;
        group.queue.push_front(deliveries);
        while self.shared.group(id).is_some_and(|group| !group.queue.is_empty()) {
            let Some(member) = self.choose_member(id, true) else { return };
            self.pull_from_group(id, member);
        }
    }

    /// Gives a message to one member of each group that wants it.
    pub(super) fn route_to_groups(&mut self, routing: &mut Routing<'_>) {
        let matches = self.shared.tree.matches(routing.topic);
        for subscriber in matches.iter() {
            let group = self.shared.groups[subscriber.id.0 as usize].id;
            if !self.remains.is_empty() && !self.shared.is_alive(group, &self.sessions) {
                continue;
            }
            routing.is_matched = true;
            if routing.qos == QoS::AtMostOnce {
                self.give_at_most_once(group, routing);
            } else {
                self.give(group, routing);
            }
        }
        self.shared.tree.put_back(matches);
    }

    fn give_at_most_once(&mut self, id: GroupId, routing: &mut Routing<'_>) {
        let Some(Member { session, grant }) = self.choose_member(id, false) else {
            let is_attended = self.shared.is_attended(id, &self.sessions);
            let reason = if is_attended { DropReason::OutboxFull } else { DropReason::AbsentAtQoS0 };
            return self.outputs.metrics.drop_message(reason);
        };
        self.subscription_ids.extend(grant.subscription_id.map(NonZeroU32::get));
        let retain = routing.retain && grant.retain_as_published;
        self.deliver_at_most_once(session.subscriber(), routing, retain);
        self.subscription_ids.clear();
    }

    fn give(&mut self, id: GroupId, routing: &mut Routing<'_>) {
        let message = routing.message(&self.messages).clone();
        // QoS and flags as published: what the member is granted is known when there is one.
        let (qos, retain) = (routing.qos, routing.retain);
        let mut delivery = Delivery { message, qos, retain, via: None, record: Lsn::NONE };
        if self.shared.group(id).is_some_and(|group| group.queue.is_empty())
            && let Some(member) = self.choose_member(id, true)
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

    /// The connected member with the least work among those with room; in turn among equals. Members without room
    /// will ask when they have some. `counted` says that the message counts against the window.
    fn choose_member(&mut self, id: GroupId, counted: bool) -> Option<Member> {
        loop {
            let chosen = self.choose_present_member(id, counted);
            if chosen.is_some() || self.shared.moves.is_empty() {
                return chosen;
            }
            let entering = self.shared.entering(id, &self.sessions)?;
            self.shared.set_present(id, entering, true);
        }
    }

    /// Among those who count as connected.
    fn choose_present_member(&mut self, id: GroupId, counted: bool) -> Option<Member> {
        let Self { shared, sessions, links, options, .. } = self;
        let group = shared.group_mut(id)?;
        let mut best: Option<(usize, usize)> = None;
        let mut compared = 0;
        for step in 0..group.present {
            let at = (group.turn + step) % group.present;
            let Some(session) = sessions.find(group.members[at].session) else { continue };
            let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { continue };
            let outbox_has_room = link.outbox.pending() <= options.outbox_soft_mark();
            if !outbox_has_room || (counted && !has_room(session, link, options)) {
                link.wants_refill |= counted && !outbox_has_room;
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
        let (at, _) = best?;
        group.turn = at + 1;
        Some(group.members[at])
    }

    /// Sends the first message of a group's queue to a member that has room for it.
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
        let mut idle_looks = 0;
        while self.shared.waiting > 0 {
            let Self { shared, sessions, links, options, .. } = self;
            let Some(session) = sessions.find_mut(session_id) else { return };
            let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
            if idle_looks == session.memberships.len() {
                return;
            }
            if !session.outgoing.queue.is_empty() || !has_room(session, link, options) {
                link.wants_refill |= link.outbox.pending() > options.outbox_soft_mark();
                return;
            }
            if idle_looks == IDLE_LOOKS_MAX {
                return self.schedule_refill(session_id);
            }
            session.group_turn = (session.group_turn + 1) % session.memberships.len() as u32;
            let id = session.memberships[session.group_turn as usize];
            match (shared.place(id, session_id), shared.group(id)) {
                (Some(place), Some(group)) if !group.queue.is_empty() => {
                    idle_looks = 0;
                    let member = group.members[place.member as usize];
                    self.pull_from_group(id, member);
                }
                _ => idle_looks += 1,
            }
        }
    }
}

/// The group that may give a message to somebody else.
fn group_of(sent: &Sent) -> Option<GroupId> {
    Some(sent.delivery.via.as_ref()?.origin.as_ref()?.group)
}

/// The groups that may give what was sent to somebody else, each once and in order.
fn groups_of(outgoing: &Outgoing) -> Vec<GroupId> {
    let mut groups: Vec<GroupId> = outgoing.sent.iter().filter_map(group_of).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Takes out of what was sent at QoS 1 what came by some groups, which are in order: by group, in the order of sending and as
/// it was published.
fn take_unacknowledged(outgoing: &mut Outgoing, groups: &[GroupId]) -> Vec<(GroupId, Vec<Delivery>)> {
    let mut given_back: Vec<(GroupId, Vec<Delivery>)> = groups.iter().map(|id| (*id, Vec::new())).collect();
    if groups.is_empty() {
        return given_back;
    }
    let mut kept = VecDeque::new();
    for sent in outgoing.sent.take() {
        let found = group_of(&sent).and_then(|id| groups.binary_search(&id).ok());
        let Some(at) = found else {
            kept.push_back(sent);
            continue;
        };
        outgoing.free_packet_id(sent.packet_id);
        let Delivery { message, via, record, .. } = sent.delivery;
        let origin = via.as_ref().and_then(|via| via.origin.as_ref()).expect("it came by a group");
        let (qos, retain) = (origin.qos, origin.retain);
        given_back[at].1.push(Delivery { message, qos, retain, via: None, record });
    }
    outgoing.sent = kept.into();
    given_back
}
