//! Shared subscriptions: of the members of a group one gets each message.
//!
//! A group does not say whom it chooses. The model notes who was a member when, and who heard which message: a message
//! may come to a second member only if the first one had it at QoS 1, and left without acknowledging it
//! [MQTT5-4.8.2-5] [B-072].

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::rc::Rc;

use broker::broker::ConnectionId;
use broker::clock::Instant;
use broker::codec::QoS;

use super::matches;
use super::message::{Expected, Missing, Published, Sending};
use super::session::{Flight, Subscription};
use crate::client::Delivery;

/// A time during which a client was a member.
#[derive(Clone, Debug)]
struct Membership {
    client_id: String,
    incarnation: usize,
    subscription: Subscription,
    until: Option<Instant>,
    since: Instant,
    /// The largest packets that its connections took.
    sizes: Vec<u32>,
}

#[derive(Clone, Debug)]
struct Group {
    text: String,
    filter: String,
    /// Of all times.
    memberships: Vec<Membership>,
    ended_at: Option<Instant>,
}

impl Group {
    fn members(&self) -> impl Iterator<Item = &Membership> {
        self.memberships.iter().filter(|membership| membership.until.is_none())
    }
}

/// Somebody who got a message.
#[derive(Clone, Debug)]
struct Holder {
    /// When it was sent for the first time, and when and on which connection last.
    begun: Instant,
    at: Instant,
    connection: ConnectionId,
    qos: QoS,
    /// Acknowledged, with whatever code.
    is_done: bool,
    /// The messages that it may be, and the one that it is taken for. A member of several groups that want the same
    /// message cannot always tell.
    fitting: Vec<usize>,
    share: usize,
}

/// Names one who got a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HolderId(usize);

/// A message for one member of a group.
#[derive(Clone, Debug)]
struct Share {
    group: usize,
    message: Rc<Published>,
    holders: Vec<usize>,
    /// Somebody heard it who may as well have got it by a subscription of its own.
    is_ambiguous: bool,
    /// And that is what happened.
    was_mistaken: bool,
}

/// A message that was under way to a client when its session ended, and that it never heard.
#[derive(Clone, Debug)]
struct Excuse {
    client_id: String,
    incarnation: usize,
    flight: Flight,
    /// Of which message it may have been.
    share: Option<usize>,
}

/// All groups, those that have ended as well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    shares: Vec<Share>,
    holders: Vec<Holder>,
    by_payload: BTreeMap<String, Vec<usize>>,
    excuses: Vec<Excuse>,
    /// With crashes nobody can tell who was sent what; then only what others promise holds.
    pub(crate) is_confused: bool,
    /// When connections ended.
    closed: BTreeMap<ConnectionId, Instant>,
}

/// The client that hears something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hearer<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) incarnation: usize,
    pub(crate) epoch: usize,
}

/// The messages of groups that a delivery may be.
pub(crate) struct Offer {
    fitting: Vec<(usize, Expected)>,
}

impl Offer {
    /// Whether it may have come by one of several groups.
    pub(crate) fn is_of_several(&self) -> bool {
        self.fitting.len() > 1
    }
}

/// `NAME` and `FILTER` of `$share/NAME/FILTER`.
pub(crate) fn share_filter(text: &str) -> Option<&str> {
    text.strip_prefix("$share/")?.split_once('/').map(|(_, filter)| filter)
}

impl Groups {
    fn find(&self, text: &str) -> Option<usize> {
        self.groups.iter().rposition(|group| group.text == text && group.ended_at.is_none())
    }

    /// Makes a client a member, or changes what it wants [B-151].
    pub(crate) fn join(
        &mut self,
        text: &str,
        hearer: Hearer<'_>,
        subscription: Subscription,
        size: u32,
        now: Instant,
    ) {
        let at = self.find(text).unwrap_or_else(|| {
            self.groups.push(Group {
                text: text.to_owned(),
                filter: share_filter(text).expect("it is a shared one").to_owned(),
                memberships: Vec::new(),
                ended_at: None,
            });
            self.groups.len() - 1
        });
        let memberships = &mut self.groups[at].memberships;
        for membership in memberships.iter_mut() {
            if membership.client_id == hearer.client_id {
                membership.until.get_or_insert(now);
            }
        }
        memberships.push(Membership {
            client_id: hearer.client_id.to_owned(),
            incarnation: hearer.incarnation,
            subscription,
            until: None,
            since: now,
            sizes: vec![size],
        });
    }

    /// A member left, or its session ended. True if the group ended with it.
    pub(crate) fn leave(&mut self, text: &str, client_id: &str, now: Instant) -> bool {
        let Some(at) = self.find(text) else { return false };
        let group = &mut self.groups[at];
        for membership in &mut group.memberships {
            if membership.client_id == client_id {
                membership.until.get_or_insert(now);
            }
        }
        if group.members().next().is_none() {
            group.ended_at = Some(now);
        }
        group.ended_at.is_some()
    }

    /// A member is connected, by a connection that takes packets of this size.
    pub(crate) fn connected(&mut self, client_id: &str, size: u32) {
        for membership in self.groups.iter_mut().flat_map(|group| &mut group.memberships) {
            if membership.client_id == client_id && membership.until.is_none() {
                membership.sizes.push(size);
            }
        }
    }

    pub(crate) fn closed(&mut self, connection: ConnectionId, now: Instant) {
        self.closed.insert(connection, now);
    }

    /// One member of each group that wants it should get the message. True if there is a group.
    pub(crate) fn route(&mut self, message: &Rc<Published>) -> bool {
        let mut is_matched = false;
        for (group, _) in self
            .groups
            .iter()
            .enumerate()
            .filter(|(_, group)| group.ended_at.is_none() && matches(&group.filter, &message.topic))
        {
            is_matched = true;
            self.by_payload.entry(message.payload.clone()).or_default().push(self.shares.len());
            let (message, holders) = (message.clone(), Vec::new());
            self.shares.push(Share { group, message, holders, is_ambiguous: false, was_mistaken: false });
        }
        is_matched
    }

    /// Whether a holder can have it no more when somebody else gets it at `begun`.
    fn is_over(&self, holder: &Holder, begun: Instant) -> bool {
        let has_left = self.closed.get(&holder.connection).is_some_and(|closed| *closed <= begun);
        holder.qos == QoS::AtLeastOnce && !holder.is_done && has_left
    }

    /// Those who cannot have had the message if this one had it.
    fn conflicts(&self, share: usize, id: usize, is_lenient: bool) -> Vec<usize> {
        let (share, holder) = (&self.shares[share], &self.holders[id]);
        if share.is_ambiguous && is_lenient {
            return Vec::new();
        }
        let conflicts = share.holders.iter().copied().filter(|other| {
            let other = &self.holders[*other];
            if other.at <= holder.begun {
                !self.is_over(other, holder.begun)
            } else {
                !self.is_over(holder, other.begun)
            }
        });
        conflicts.collect()
    }

    /// What a member was given at this time, if it is what it heard.
    fn granted(
        &self,
        share: &Share,
        hearer: Hearer<'_>,
        sending: &Sending,
    ) -> impl Iterator<Item = Expected> {
        let group = &self.groups[share.group];
        let begun = sending.begun;
        let memberships = group.memberships.iter().filter(move |membership| {
            (membership.client_id.as_str(), membership.incarnation) == (hearer.client_id, hearer.incarnation)
                && membership.since <= begun
                && membership.until.is_none_or(|until| begun <= until)
        });
        memberships.map(move |membership| {
            let Subscription { options, id } = membership.subscription;
            Expected {
                message: share.message.clone(),
                qos: share.message.qos.min(options.qos), // [MQTT5-4.8.2-3]
                retain: share.message.retain && options.retain_as_published,
                subscription_ids: Some(id.into_iter().collect()), // [B-078]
                epoch: hearer.epoch,
            }
        })
    }

    /// The messages of groups that this delivery may be.
    pub(crate) fn offer(&self, hearer: Hearer<'_>, delivery: &Delivery, sending: &Sending) -> Offer {
        let candidates = self.by_payload.get(&delivery.payload).into_iter().flatten();
        let fitting = candidates.filter_map(|at| {
            let mut granted = self.granted(&self.shares[*at], hearer, sending);
            let expected = granted.find(|expected| expected.fits(delivery, sending))?;
            Some((*at, expected))
        });
        Offer { fitting: fitting.collect() }
    }

    pub(crate) fn may_be(&self, hearer: Hearer<'_>, delivery: &Delivery, sending: &Sending) -> bool {
        !self.offer(hearer, delivery, sending).fitting.is_empty()
    }

    /// Somebody got one of these messages by a subscription of its own, as it seems.
    pub(crate) fn doubt(&mut self, offer: &Offer) {
        for (share, _) in &offer.fitting {
            self.shares[*share].is_ambiguous = true;
        }
    }

    /// Whether this client took its copy of a group's message for one of a subscription of its own, which comes only now.
    pub(crate) fn mistaken(&mut self, hearer: Hearer<'_>, delivery: &Delivery) -> bool {
        let Self { groups, shares, by_payload, .. } = self;
        let candidates = by_payload.get(&delivery.payload).into_iter().flatten();
        let was_member = |share: &Share| {
            let memberships = &groups[share.group].memberships;
            memberships.iter().any(|membership| membership.client_id == hearer.client_id)
        };
        let mut found = candidates
            .copied()
            .filter(|at| shares[*at].is_ambiguous && !shares[*at].was_mistaken && was_member(&shares[*at]));
        let Some(found) = found.next() else { return false };
        shares[found].was_mistaken = true;
        true
    }

    /// Notes who got a message: one that nobody had, if there is one, or one that another member could not keep. `None`
    /// if all are where they belong. `is_lenient` trusts that doubtful ones were mistaken for others.
    pub(crate) fn take(
        &mut self,
        offer: &Offer,
        sending: &Sending,
        is_lenient: bool,
    ) -> Option<(HolderId, Expected)> {
        let (_, first) = offer.fitting.first()?;
        let id = self.holders.len();
        self.holders.push(Holder {
            begun: sending.begun,
            at: sending.at,
            connection: sending.connection,
            qos: first.qos,
            is_done: false,
            fitting: offer.fitting.iter().map(|(share, _)| *share).collect(),
            share: usize::MAX,
        });
        if !self.settle(id, is_lenient, &mut Vec::new()) {
            self.holders.pop();
            return None;
        }
        let share = self.holders[id].share;
        let (_, expected) = offer.fitting.iter().find(|(fitting, _)| *fitting == share)?;
        Some((HolderId(id), expected.clone()))
    }

    /// Finds a message for a holder; others may have to be taken for having got another one.
    fn settle(&mut self, id: usize, is_lenient: bool, seen: &mut Vec<usize>) -> bool {
        let mut fitting = self.holders[id].fitting.clone();
        fitting.sort_by_key(|share| !self.shares[*share].holders.is_empty());
        if let Some(share) = fitting.iter().find(|share| self.conflicts(**share, id, is_lenient).is_empty()) {
            self.holders[id].share = *share;
            self.shares[*share].holders.push(id);
            return true;
        }
        for share in fitting {
            if seen.contains(&share) {
                continue;
            }
            seen.push(share);
            let others = self.by_payload[&self.shares[share].message.payload].clone();
            let before: Vec<Vec<usize>> =
                others.iter().map(|other| self.shares[*other].holders.clone()).collect();
            let conflicts = self.conflicts(share, id, is_lenient);
            self.shares[share].holders.retain(|holder| !conflicts.contains(holder));
            self.holders[id].share = share;
            self.shares[share].holders.push(id);
            if conflicts.into_iter().all(|conflict| self.settle(conflict, is_lenient, seen)) {
                return true;
            }
            for (other, holders) in others.into_iter().zip(before) {
                for holder in &holders {
                    self.holders[*holder].share = other;
                }
                self.shares[other].holders = holders;
            }
        }
        false
    }

    /// Whether several had this message.
    pub(crate) fn is_passed_on(&self, id: HolderId) -> bool {
        self.shares[self.holders[id.0].share].holders.len() > 1
    }

    /// For the words of a failure.
    pub(crate) fn describe(&self, delivery: &Delivery) -> String {
        let shares = self.by_payload.get(&delivery.payload).into_iter().flatten();
        let shares: Vec<_> = shares
            .map(|at| {
                let share = &self.shares[*at];
                let holders: Vec<_> = share.holders.iter().map(|holder| &self.holders[*holder]).collect();
                (share, holders, &self.groups[share.group])
            })
            .collect();
        format!("groups: {shares:?}")
    }

    /// A holder heard it again: nobody else may have got it meanwhile.
    pub(crate) fn repeat(&mut self, id: HolderId, sending: &Sending) {
        let holder = &mut self.holders[id.0];
        (holder.connection, holder.at) = (sending.connection, sending.at);
        let share = holder.share;
        self.shares[share].holders.retain(|other| *other != id.0);
        let is_fine = self.settle(id.0, true, &mut Vec::new()) || self.is_confused;
        assert!(is_fine, "{:?} has two holders: {:?}", self.shares[share], self.holders[id.0]);
    }

    /// A holder acknowledged it, or refused it: nobody else gets it [MQTT5-4.8.2-6].
    pub(crate) fn done(&mut self, id: HolderId) {
        self.holders[id.0].is_done = true;
    }

    /// A session ended with these messages under way, which its client never heard. What it was sent at QoS 1 goes to
    /// others; what it was sent at QoS 2 goes to no one [MQTT5-4.8.2-5].
    pub(crate) fn excuse<'a>(
        &mut self,
        client_id: &str,
        incarnation: usize,
        flights: impl Iterator<Item = &'a Flight>,
    ) {
        let flights = flights.filter(|flight| flight.qos == QoS::ExactlyOnce);
        self.excuses.extend(flights.map(|flight| Excuse {
            client_id: client_id.to_owned(),
            incarnation,
            flight: flight.clone(),
            share: None,
        }));
    }

    /// Finds an excuse for a message at QoS 2 that nobody heard; each is good for one.
    fn find_excuse(&mut self, share: usize, seen: &mut Vec<usize>) -> bool {
        for at in 0..self.excuses.len() {
            if seen.contains(&at) || !self.may_have_had(&self.excuses[at], &self.shares[share]) {
                continue;
            }
            seen.push(at);
            if self.excuses[at].share.is_none_or(|other| self.find_excuse(other, seen)) {
                self.excuses[at].share = Some(share);
                return true;
            }
        }
        false
    }

    fn may_have_had(&self, excuse: &Excuse, share: &Share) -> bool {
        let mut memberships = self.groups[share.group].memberships.iter();
        let flight = &excuse.flight;
        flight.may_be(&share.message)
            && memberships.any(|member| {
                (&member.client_id, member.incarnation) == (&excuse.client_id, excuse.incarnation)
                    && member.subscription.options.qos == QoS::ExactlyOnce
                    && member.since <= flight.begun
                    && member.until.is_none_or(|until| flight.begun <= until)
            })
    }

    /// Why a message is missed that nobody has heard; `None` if it says nothing.
    fn why_missed(&self, share: usize, meant: &[bool], now: Instant) -> Option<Missing> {
        let share = &self.shares[share];
        let may_be_missed = share.message.qos > QoS::AtMostOnce
            && !share.is_ambiguous
            && share.holders.is_empty()
            && meant[share.group];
        may_be_missed.then(|| self.why_missing(share, now)).flatten()
    }

    /// Takes those who may have got a message of one of these groups or of another one for having got the former, those
    /// first that have no good reason to be missed.
    fn prefer(&mut self, meant: &[bool], now: Instant) {
        for reason in [Missing::Lost, Missing::TooLarge, Missing::Expired] {
            for share in 0..self.shares.len() {
                if self.why_missed(share, meant, now) == Some(reason) {
                    self.find_holder(share, reason, meant, now, &mut vec![share]);
                }
            }
        }
    }

    /// Finds somebody who may have got this message for another one, which then needs nobody as much or has somebody else.
    fn find_holder(
        &mut self,
        share: usize,
        reason: Missing,
        meant: &[bool],
        now: Instant,
        seen: &mut Vec<usize>,
    ) -> bool {
        for id in 0..self.holders.len() {
            let before = self.holders[id].share;
            if seen.contains(&before) || !self.holders[id].fitting.contains(&share) {
                continue;
            }
            seen.push(before);
            self.change_share(id, share);
            let is_missed = self.why_missed(before, meant, now) >= Some(reason);
            if !is_missed || self.find_holder(before, reason, meant, now, seen) {
                return true;
            }
            self.change_share(id, before);
        }
        false
    }

    fn change_share(&mut self, id: usize, share: usize) {
        let before = std::mem::replace(&mut self.holders[id].share, share);
        self.shares[before].holders.retain(|holder| *holder != id);
        self.shares[share].holders.push(id);
    }

    /// Why messages that no member has heard did not come, of the groups that `is_meant`. Those of QoS 0, those that a
    /// member may have got at QoS 0, and those that somebody may have taken for its own say nothing.
    pub(crate) fn missing(
        &mut self,
        now: Instant,
        is_meant: impl Fn(&[&str]) -> bool,
    ) -> Vec<(Missing, Rc<Published>)> {
        let meant: Vec<bool> = self
            .groups
            .iter()
            .map(|group| {
                let members: Vec<&str> = group.members().map(|member| member.client_id.as_str()).collect();
                group.ended_at.is_none() && is_meant(&members)
            })
            .collect();
        self.prefer(&meant, now);
        self.excuses.iter_mut().for_each(|excuse| excuse.share = None);
        let shares = 0..self.shares.len();
        let mut missing: Vec<(Missing, usize)> =
            shares.filter_map(|share| Some((self.why_missed(share, &meant, now)?, share))).collect();
        // Those without a good reason of their own need an excuse most.
        missing.sort_by_key(|(reason, _)| Reverse(*reason));
        missing.retain(|(_, share)| !self.find_excuse(*share, &mut Vec::new()));
        missing.into_iter().map(|(reason, share)| (reason, self.shares[share].message.clone())).collect()
    }

    /// Why nobody heard a message; `None` if a member may have got it at QoS 0.
    fn why_missing(&self, share: &Share, now: Instant) -> Option<Missing> {
        let memberships = &self.groups[share.group].memberships;
        if memberships.iter().any(|member| member.subscription.options.qos == QoS::AtMostOnce) {
            return None;
        }
        let reasons = memberships.iter().map(|membership| {
            let Subscription { options, id } = membership.subscription;
            let expected = Expected {
                message: share.message.clone(),
                qos: share.message.qos.min(options.qos),
                retain: false,
                subscription_ids: Some(id.into_iter().collect()),
                epoch: 0,
            };
            expected.missing(now, &membership.sizes)
        });
        reasons.min()
    }
}
