//! Shared subscriptions: a group of clients of which one gets each message [MQTT5-4.8.2-3].
//!
//! A group is a subscriber of its own in a tree of its own, so that who is not concerned pays nothing. It has a queue,
//! and its members pull: a message goes at once to the connected member with the least work that has room, and
//! otherwise waits in the group until a member has room, be it busy now or away. Whatever was given to a member and
//! not sent does so not exist, and what was sent at QoS 1 and not acknowledged goes back to the group when its member
//! leaves others behind, or its session ends. What was sent at QoS 2 stays with its member [MQTT5-4.8.2-4]
//! [MQTT5-4.8.2-5].
//!
//! Invariants: a group has a member; its connected members come first; a group has something in its queue only if no
//! connected member has room for it, or is about to be asked.

use std::collections::VecDeque;
use std::num::NonZeroU32;

use hashbrown::HashTable;
use slab::Slab;

use crate::codec::QoS;
use crate::hash::{HashSeed, hash_text, seeded};
use crate::metrics::DropReason;
use crate::topics::{Grant, SubscriberId, SubscriptionFilter, SubscriptionTree};

use super::Broker;
use super::deliver::{Routing, has_room};
use super::event::Limit;
use super::session::{Delivery, Sent, SessionId, Via};

/// Of so many members with room the one with the least work is chosen: looking at more would cost more than it gains.
const COMPARED_MAX: usize = 64;

/// The name of a group: a slot and a generation that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupId {
    slot: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    session: SessionId,
    grant: Grant,
}

/// Clients that share one subscription.
#[derive(Debug)]
struct Group {
    id: GroupId,
    /// As in SUBSCRIBE: `$share/NAME/FILTER`.
    text: Box<str>,
    /// The first `present` of them are connected.
    members: Vec<Member>,
    present: usize,
    /// Whose turn it is among equals.
    turn: usize,
    queue: VecDeque<Delivery>,
    queued_bytes: u64,
    queue_full_logged: bool,
}

impl Group {
    fn position(&self, session: SessionId) -> Option<usize> {
        self.members.iter().position(|member| member.session == session)
    }

    fn pop_queue(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queued_bytes -= delivery.message.size();
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
            self.queue_full_logged = false;
        }
        Some(delivery)
    }
}

/// All groups.
#[derive(Debug)]
pub(super) struct SharedSubscriptions {
    groups: Slab<Group>,
    by_text: HashTable<u32>,
    /// Which groups a topic matches; a group's subscriber id is its slot.
    tree: SubscriptionTree,
    seed: HashSeed,
    generation: u32,
    /// Memberships of all groups.
    memberships: usize,
}

impl SharedSubscriptions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            groups: Slab::new(),
            by_text: HashTable::new(),
            tree: SubscriptionTree::new(seed),
            seed: seeded(seed),
            generation: 0,
            memberships: 0,
        }
    }

    /// Memberships of all groups.
    pub(super) fn len(&self) -> usize {
        self.memberships
    }

    pub(super) fn is_empty(&self) -> bool {
        self.memberships == 0
    }

    fn find(&self, text: &str) -> Option<GroupId> {
        let hash = hash_text(&self.seed, text);
        let slot = self.by_text.find(hash, |slot| *self.groups[*slot as usize].text == *text)?;
        Some(self.groups[*slot as usize].id)
    }

    fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(id.slot as usize).filter(|group| group.id == id)
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
            members: Vec::new(),
            present: 0,
            turn: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            queue_full_logged: false,
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
        let hash = hash_text(&self.seed, &group.text);
        self.by_text
            .find_entry(hash, |slot| *slot == id.slot)
            .expect("every group is indexed by its text")
            .remove();
        group
    }

    /// Moves a member among those who are connected, or away from them.
    fn set_present(&mut self, id: GroupId, session: SessionId, is_present: bool) {
        let Some(group) = self.group_mut(id) else { return };
        let Some(at) = group.position(session) else { return };
        if is_present && at >= group.present {
            group.members.swap(at, group.present);
            group.present += 1;
        } else if !is_present && at < group.present {
            group.present -= 1;
            group.members.swap(at, group.present);
        }
    }

    /// Asserts every invariant of the groups, and returns how many messages wait in them. `connected` says whether a
    /// session exists and has a connection.
    pub(super) fn check_invariants(&self, connected: impl Fn(SessionId) -> Option<bool>) -> u64 {
        self.tree.check_invariants();
        let mut queued = 0;
        let mut memberships = 0;
        for (_, group) in &self.groups {
            assert!(!group.members.is_empty(), "a group has a member");
            for (at, member) in group.members.iter().enumerate() {
                let is_present = connected(member.session).expect("a member has a session");
                assert_eq!(is_present, at < group.present, "the connected members come first");
            }
            assert_eq!(self.find(&group.text), Some(group.id));
            let bytes: u64 = group.queue.iter().map(|delivery| delivery.message.size()).sum();
            assert_eq!(group.queued_bytes, bytes, "the group's gauge of queued bytes");
            queued += group.queue.len() as u64;
            memberships += group.members.len();
        }
        assert_eq!(self.memberships, memberships);
        assert_eq!((self.tree.len(), self.by_text.len()), (self.groups.len(), self.groups.len()));
        queued
    }
}

impl Broker {
    /// Makes a session a member of a group, or changes what it is granted there [MQTT5-3.8.4-3].
    pub(super) fn join_group(
        &mut self,
        session: SessionId,
        text: &str,
        filter: SubscriptionFilter<'_>,
        grant: Grant,
    ) {
        let id = self.shared.find_or_make(text, filter);
        let group = self.shared.group_mut(id).expect("just found or made");
        if let Some(at) = group.position(session) {
            group.members[at].grant = grant;
            return;
        }
        group.members.push(Member { session, grant });
        self.shared.memberships += 1;
        self.shared.set_present(id, session, true);
        self.session_mut(session).memberships.push(id);
    }

    /// Whether the session is a member of this group.
    pub(super) fn is_in_group(&self, session: SessionId, text: &str) -> bool {
        self.shared.find(text).is_some_and(|id| self.session(session).memberships.contains(&id))
    }

    /// Ends a membership that SUBSCRIBE made. False if there was none.
    pub(super) fn leave_group(&mut self, session: SessionId, text: &str) -> bool {
        let Some(id) = self.shared.find(text) else { return false };
        let memberships = &mut self.session_mut(session).memberships;
        let before = memberships.len();
        memberships.retain(|group| *group != id);
        let was_member = memberships.len() < before;
        if was_member {
            self.remove_member(id, session);
        }
        was_member
    }

    fn remove_member(&mut self, id: GroupId, session: SessionId) {
        self.shared.set_present(id, session, false);
        let Some(group) = self.shared.group_mut(id) else { return };
        let Some(at) = group.position(session) else { return };
        group.members.swap_remove(at);
        self.shared.memberships -= 1;
        if self.shared.group_mut(id).is_some_and(|group| group.members.is_empty()) {
            let group = self.shared.remove_group(id);
            let queued = group.queue.len() as u64;
            self.outputs.metrics.queued_messages -= queued;
            self.outputs.metrics.drop_messages(DropReason::SessionEnded, queued);
        }
    }

    /// A member has connected: it counts again.
    pub(super) fn enter_groups(&mut self, session: SessionId) {
        for index in 0..self.session(session).memberships.len() {
            let id = self.session(session).memberships[index];
            self.shared.set_present(id, session, true);
        }
    }

    /// A member's connection has ended: what it was sent at QoS 1 and did not acknowledge goes to others who are
    /// there.
    pub(super) fn absent_from_groups(&mut self, session: SessionId) {
        for index in 0..self.session(session).memberships.len() {
            let id = self.session(session).memberships[index];
            self.shared.set_present(id, session, false);
            if self.shared.group_mut(id).is_some_and(|group| group.present > 0) {
                let Self { sessions, outputs, .. } = self;
                let session = sessions.find_mut(session).expect("its connection has just ended");
                let unacknowledged = take_unacknowledged(&mut session.outgoing.sent, id);
                session.outgoing.sent_here = 0;
                outputs.metrics.in_flight_messages -= unacknowledged.len() as u64;
                self.return_to_group(id, unacknowledged);
            }
        }
    }

    /// A session has ended: what it was sent at QoS 1 and did not acknowledge goes back to its groups, as far as they
    /// have other members, and is taken out of `sent`.
    pub(super) fn leave_all_groups(
        &mut self,
        session: SessionId,
        memberships: &[GroupId],
        sent: &mut VecDeque<Sent>,
    ) {
        for id in memberships {
            self.remove_member(*id, session);
            if self.shared.group_mut(*id).is_some() {
                let unacknowledged = take_unacknowledged(sent, *id);
                self.return_to_group(*id, unacknowledged);
            }
        }
    }

    /// Puts messages back before all others, and gives them to whoever has room.
    fn return_to_group(&mut self, id: GroupId, deliveries: Vec<Delivery>) {
        let Some(group) = self.shared.group_mut(id) else { return };
        self.outputs.metrics.queued_messages += deliveries.len() as u64;
        for delivery in deliveries.into_iter().rev() {
            group.queued_bytes += delivery.message.size();
            group.queue.push_front(delivery);
        }
        while self.shared.group_mut(id).is_some_and(|group| !group.queue.is_empty()) {
            let Some(member) = self.choose_member(id, true) else { return };
            if !self.pull_from_group(id, member) {
                return;
            }
        }
    }

    /// Gives a message to one member of each group that wants it.
    pub(super) fn route_to_groups(&mut self, routing: &mut Routing<'_>) {
        let matches = self.shared.tree.matches(routing.topic);
        routing.is_matched |= !matches.is_empty();
        for subscriber in matches.iter() {
            let group = self.shared.groups[subscriber.id.0 as usize].id;
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
            let present = self.shared.group_mut(id).map_or(0, |group| group.present);
            let reason = if present > 0 { DropReason::OutboxFull } else { DropReason::AbsentAtQoS0 };
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
        let mut delivery = Delivery { message, qos: routing.qos, retain: routing.retain, via: None };
        if self.shared.group_mut(id).is_some_and(|group| group.queue.is_empty())
            && let Some(member) = self.choose_member(id, true)
        {
            match self.send_to_member(id, member, delivery) {
                Ok(()) => return,
                Err(refused) => delivery = refused,
            }
        }
        self.enqueue_in_group(id, delivery);
    }

    /// Puts a message into the queue of a group, or drops it when that is full, as the queue of a session would.
    fn enqueue_in_group(&mut self, id: GroupId, delivery: Delivery) {
        let Self { shared, outputs, options, now, .. } = self;
        let Some(group) = shared.group_mut(id) else { return };
        let size = delivery.message.size();
        let is_full = group.queue.len() >= options.queued_messages_max as usize
            || group.queued_bytes + size > options.queued_bytes_max;
        if is_full {
            let before = group.queue.len();
            group.queue.retain(|waiting| !waiting.message.is_expired(*now));
            group.queued_bytes = group.queue.iter().map(|waiting| waiting.message.size()).sum();
            let expired = (before - group.queue.len()) as u64;
            outputs.metrics.queued_messages -= expired;
            outputs.metrics.drop_messages(DropReason::Expired, expired);
        }
        let (reason, limit, value) = if delivery.message.is_expired(*now) {
            return outputs.metrics.drop_message(DropReason::Expired);
        } else if group.queue.len() >= options.queued_messages_max as usize {
            let value = u64::from(options.queued_messages_max);
            (DropReason::QueueMessagesFull, Limit::QueuedMessages, value)
        } else if group.queued_bytes + size > options.queued_bytes_max {
            (DropReason::QueueBytesFull, Limit::QueuedBytes, options.queued_bytes_max)
        } else {
            group.queued_bytes += size;
            group.queue.push_back(delivery);
            outputs.metrics.queued_messages += 1;
            return;
        };
        outputs.metrics.drop_message(reason);
        if !group.queue_full_logged {
            group.queue_full_logged = true;
            outputs.limit_reached(limit, Some(&group.text), value);
        }
    }

    /// The connected member with the least work among those with room; in turn among equals. Members without room
    /// will ask when they have some. `counted` says that the message counts against the window.
    fn choose_member(&mut self, id: GroupId, counted: bool) -> Option<Member> {
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

    /// Sends the first message of a group's queue to a member that has room for it. False if the member could not take
    /// it for want of a packet identifier.
    fn pull_from_group(&mut self, id: GroupId, member: Member) -> bool {
        let Some(delivery) = self.shared.group_mut(id).and_then(Group::pop_queue) else { return false };
        self.outputs.metrics.queued_messages -= 1;
        if delivery.message.is_expired(self.now) {
            self.outputs.metrics.drop_message(DropReason::Expired);
            return true;
        }
        let Err(delivery) = self.send_to_member(id, member, delivery) else { return true };
        let group = self.shared.group_mut(id).expect("its queue was not empty");
        group.queued_bytes += delivery.message.size();
        group.queue.push_front(delivery);
        self.outputs.metrics.queued_messages += 1;
        false
    }

    /// Sends a message to a member that has room for it. Gives it back if no packet identifier is free.
    fn send_to_member(&mut self, id: GroupId, member: Member, delivery: Delivery) -> Result<(), Delivery> {
        let Self { sessions, links, outputs, now, .. } = self;
        let Member { session, grant } = member;
        let session = sessions.find_mut(session).expect("a member has a session");
        let link = session.connection.and_then(|id| links.find_mut(id)).expect("it has room");
        let subscription_id = grant.subscription_id.map(NonZeroU32::get);
        let qos = delivery.qos.min(grant.qos);
        let granted = Delivery {
            qos,
            retain: delivery.retain && grant.retain_as_published,
            via: Via::of(subscription_id.as_slice(), (qos == QoS::AtLeastOnce).then_some(id)),
            message: delivery.message.clone(),
        };
        if qos == QoS::AtMostOnce {
            outputs.write_delivery(link, &granted, None, false, *now);
            return Ok(());
        }
        outputs.send(session, link, granted, *now).map_err(|_| delivery)
    }

    /// A member has room: it takes from the queues of its groups.
    pub(super) fn drain_groups(&mut self, session: SessionId) {
        let count = self.sessions.find(session).map_or(0, |session| session.memberships.len());
        for index in 0..count {
            let id = self.session(session).memberships[index];
            loop {
                let Self { shared, sessions, links, options, .. } = self;
                let Some(group) = shared.group_mut(id).filter(|group| !group.queue.is_empty()) else { break };
                let Some(at) = group.position(session) else { break };
                let member = group.members[at];
                let Some(session) = sessions.find(session) else { return };
                let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
                if !session.outgoing.queue.is_empty() || !has_room(session, link, options) {
                    link.wants_refill |= link.outbox.pending() > options.outbox_soft_mark();
                    return;
                }
                if !self.pull_from_group(id, member) {
                    return;
                }
            }
        }
    }
}

/// Takes out of a list of sent messages those at QoS 1 that came by a group, in their order.
fn take_unacknowledged(sent: &mut VecDeque<Sent>, id: GroupId) -> Vec<Delivery> {
    let came_by_group = |sent: &Sent| sent.delivery.via.as_ref().is_some_and(|via| via.group == Some(id));
    if !sent.iter().any(came_by_group) {
        return Vec::new();
    }
    let (given_back, kept): (Vec<Sent>, Vec<Sent>) =
        std::mem::take(sent).into_iter().partition(|sent| came_by_group(sent));
    *sent = kept.into();
    given_back.into_iter().map(|sent| sent.delivery).collect()
}
