//! Messages to members: whom a group chooses, and what a member pulls.
//!
//! A message goes at once to the connected member with the least work that has room; at QoS 1 and 2 it otherwise waits in the group,
//! and whoever has room first takes it.
//!
//! At QoS 0 a search that has too few looks goes on in a later turn, where the message may take several turns. At QoS 1 and 2 the
//! message waits in the group meanwhile, and those who were not looked at are asked in later turns; who has just come asks itself when
//! it has been moved.
//!
//! Invariants: see `shared`. Deliberately not here: how a copy gets into an outbox (see `deliver`), and messages to very many groups
//! (see `fan_out`).

use std::num::NonZeroU32;
use std::ops::Range;

use crate::broker::Broker;
use crate::broker::deliver::{LISTED_PER_STEP, QueueOwner, Routing, has_room};
use crate::broker::delivery::{Delivery, Origin, Via};
use crate::broker::session::SessionId;
use crate::codec::QoS;
use crate::journal::{Lsn, Owner};
use crate::metrics::DropReason;
use crate::topics::match_cache::Matches;

use super::presence::Unknown;
use super::{Group, GroupId, Member, Moment};

/// Of so many members with room the one with the least work is chosen: looking at more would cost more than it gains.
const COMPARED_MAX: usize = 64;

/// So many groups one after the other that have nothing for a member are asked in one turn, and so many in the time of a copy.
const ASKED_IN_VAIN_MAX: u32 = 64;
const ASKED_IN_VAIN_PER_COPY: u32 = 16;

/// A member that is looked at and changes its place, or is sent a message, takes as long as so many who have gone.
const REJECTED_LOOKS: usize = 12;

/// Whom a search does not have to look at again.
#[derive(Clone, Copy, Debug)]
enum Obstacle {
    /// It counts as connected, and is not.
    Gone(SessionId),
    /// Its outbox has no room. It is the one whose turn it is.
    Full,
}

impl Broker {
    /// Whether it may take turns to find the members that get a message: some have yet to be moved or removed, or, at QoS 0, they are
    /// more than a turn has looks, of whom nobody may have room.
    pub(in crate::broker) fn may_look_long_for_members(&self, qos: QoS) -> bool {
        let looks = self.options.steps_per_turn.saturating_mul(LISTED_PER_STEP);
        let are_many = qos == QoS::AtMostOnce && self.shared.len() > looks;
        self.shared.has_moves() || !self.remains.is_empty() || are_many
    }

    /// Gives a message to one member of each group that wants it.
    pub(in crate::broker) fn route_to_groups(&mut self, routing: &mut Routing<'_>) {
        let steps = self.options.steps_per_turn;
        let listed_max = steps.saturating_mul(LISTED_PER_STEP);
        let matches = self.shared.tree.matches_within(routing.topic, listed_max);
        // While another message is on its way to many it cannot take several turns itself; one that may has waited.
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
    /// do not. `looks` are spent on finding out who is there, and at QoS 0 who has room, where very many may be, or have come or
    /// gone: at a group for which too few are left it ends. Where it ends.
    pub(in crate::broker) fn give_to_groups(
        &mut self,
        routing: &mut Routing<'_>,
        matches: &Matches,
        places: Range<usize>,
        taken_at: Moment,
        looks: &mut usize,
    ) -> usize {
        let Range { start, end } = places;
        let has_expired =
            routing.is_continued && routing.expires_at.is_some_and(|expires_at| expires_at <= self.now);
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
            if is_alive.is_ok() && has_expired {
                self.outputs.metrics.drop_message(DropReason::Expired); // [MQTT5-3.3.2-5]
                routing.is_matched = true;
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
        let may_go_on = routing.is_continued || self.may_look_long_for_members(routing.qos);
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

    /// The member that gets a message that counts against the window. Members without room will ask when they have some, and those
    /// who were not looked at are asked in later turns.
    pub(super) fn choose_for_window(&mut self, id: GroupId) -> Option<Member> {
        self.shared.forget_full(id);
        // One at least: a message to many groups does not have to wait in all that come last.
        let looks_max = self.outputs.steps_left.max(1);
        let mut looks = looks_max;
        let chosen = self.choose_present_member(id, true, &mut looks);
        let chosen = match chosen {
            Ok(None) => {
                let newest_move = self.shared.moves.newest();
                // If there is none, who was not looked at asks when it has been moved.
                self.choose_newcomer(id, true, newest_move, &mut looks).unwrap_or(None)
            }
            Ok(chosen) => chosen,
            Err(Unknown) => {
                self.shared.begin_asking(id);
                None
            }
        };
        self.outputs.steps_left = self.outputs.steps_left.min(looks);
        self.outputs.work += ((looks_max - looks).saturating_sub(COMPARED_MAX) / LISTED_PER_STEP) as u64;
        chosen
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
            match self.look_for_member(id, counted, last, &mut { 1 }) {
                Ok(Some(member)) => return Ok(Some(member)),
                Ok(None) | Err(Obstacle::Gone(_)) => {}
                Err(Obstacle::Full) => self.shared.set_full(id),
            }
            *looks = looks.saturating_sub(REJECTED_LOOKS);
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
            let all = present - full;
            // Otherwise each is chosen from, or an obstacle.
            let at_once = if counted { all.min(*looks) } else { all };
            let mut left = at_once;
            let chosen = self.look_for_member(id, counted, turn, &mut left);
            if counted {
                *looks -= at_once - left;
            }
            let obstacle = match chosen {
                Ok(None) if at_once < all => {
                    self.shared.pass_turn(id, at_once);
                    return Err(Unknown);
                }
                Ok(chosen) => return Ok(chosen),
                Err(obstacle) => obstacle,
            };
            if *looks == 0 {
                return Err(Unknown);
            }
            *looks = looks.saturating_sub(REJECTED_LOOKS);
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

    /// Looks at so many at most whose outboxes are not known to be full, from one place on. An obstacle ends the search; before it
    /// one with room may have been found.
    fn look_for_member(
        &mut self,
        id: GroupId,
        counted: bool,
        from: usize,
        looks: &mut usize,
    ) -> Result<Option<Member>, Obstacle> {
        let Self { shared, sessions, links, options, .. } = self;
        let Some(group) = shared.group_mut(id) else { return Ok(None) };
        let mut best: Option<(usize, usize)> = None;
        let mut compared = 0;
        let mut next = from;
        while *looks > 0 {
            *looks -= 1;
            let at = if (group.full..group.present).contains(&next) { next } else { group.full };
            next = at + 1;
            let member = group.members[at].session;
            let session = sessions.find(member);
            let Some((session, connection)) =
                session.and_then(|session| Some((session, session.connection?)))
            else {
                if best.is_some() {
                    break;
                }
                group.turn = at;
                return Err(Obstacle::Gone(member));
            };
            let Some(link) = links.find_mut(connection) else { continue };
            if link.outbox.pending() > options.outbox_soft_mark() {
                if best.is_some() {
                    break;
                }
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

    /// Gives what waits in groups of whom not all were looked at to those who have room.
    pub(super) fn continue_asking(&mut self, steps: &mut usize) {
        let mut looks = steps.saturating_mul(LISTED_PER_STEP);
        while looks > 0
            && let Some(id) = self.shared.asking.pop_front()
        {
            looks -= 1; // As long as a group is looked at that has nobody left to ask.
            if !self.go_on_asking(id, &mut looks) {
                self.shared.asking.push_back(id);
            }
        }
        *steps = looks / LISTED_PER_STEP;
    }

    /// Each that has room gets a message, and asks for more itself. True if all have been asked, or nothing waits any more;
    /// otherwise there are no looks left.
    fn go_on_asking(&mut self, id: GroupId, looks: &mut usize) -> bool {
        loop {
            let Self { shared, sessions, links, options, .. } = self;
            let Some(group) = shared.group_mut(id) else { return true };
            let unasked = if group.queue.is_empty() { 0 } else { group.unasked.min(group.present) };
            let Some(last) = unasked.checked_sub(1) else {
                group.unasked = 0;
                return true;
            };
            if *looks == 0 {
                return false;
            }
            *looks -= 1;
            group.unasked = last;
            let member = group.members[last];
            let session = sessions.find(member.session);
            let link = session.and_then(|session| links.find_mut(session.connection?));
            let (Some(session), Some(link)) = (session, link) else { continue };
            link.wants_refill |= link.outbox.pending() > options.outbox_soft_mark();
            if !has_room(session, link, options) {
                continue;
            }
            *looks = looks.saturating_sub(REJECTED_LOOKS);
            if session.outgoing.queue.is_empty() {
                self.pull_from_group(id, member);
            }
            if self.shared.group(id).is_some_and(|group| !group.queue.is_empty()) {
                self.schedule_refill(member.session);
            }
        }
    }

    /// Sends the first message of a group's queue to a member that has room for it, unless it has expired.
    pub(super) fn pull_from_group(&mut self, id: GroupId, member: Member) {
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
    pub(in crate::broker) fn drain_groups(&mut self, session_id: SessionId) {
        if self.shared.waiting > 0 {
            self.ask_groups(session_id, 0);
        }
    }

    /// The same, where so many groups have been asked in vain in earlier turns. After one round without a message there is nothing
    /// to do until there is another reason to ask: what comes to a group goes to its members itself if they have room.
    pub(in crate::broker) fn ask_groups(&mut self, session_id: SessionId, mut asked_in_vain: u32) {
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
            let group = shared.group(id).filter(|group| !group.queue.is_empty());
            match group.and_then(|group| Some((group, shared.place(id, session_id)?))) {
                Some((group, place)) => {
                    let asked = asked_in_vain / ASKED_IN_VAIN_PER_COPY;
                    outputs.steps_left = outputs.steps_left.saturating_sub(asked as usize);
                    (asked_in_vain, asked_max) = (0, ASKED_IN_VAIN_MAX);
                    let member = group.members[place.member as usize];
                    self.pull_from_group(id, member);
                    has_gone_on = true;
                }
                None => {
                    if asked_in_vain.is_multiple_of(ASKED_IN_VAIN_PER_COPY) {
                        outputs.work += 1; // No step: or streams behind it would never go on.
                    }
                    asked_in_vain += 1;
                }
            }
        }
    }
}
