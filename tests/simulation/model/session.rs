//! What one client has subscribed to, should get, and has got.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use broker::broker::ConnectionId;
use broker::clock::{Duration, Instant};
use broker::codec::packet::SubscriptionOptions;
use broker::codec::{PacketId, QoS};

use super::groups::HolderId;
use super::matches;
use super::message::{Expected, Missing, Published, Sending};
use crate::client::Delivery;

/// A subscription, or a membership of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) options: SubscriptionOptions,
    pub(crate) id: Option<u32>,
}

/// The messages of one publisher on one topic at one QoS that a session should get, and how many were passed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    expected: Vec<Expected>,
    passed: usize,
}

impl Stream {
    /// Why a message did not come. If it was published more than once nobody knows which one it was that came.
    fn missing(&self, expected: &Expected, at: Instant, sizes: &[u32]) -> Missing {
        let copies = self.expected.iter().filter(|other| other.message.payload == expected.message.payload);
        copies.map(|copy| copy.missing(at, sizes)).min().expect("it is one of them")
    }
}

/// A will, and when it is due once its connection has ended.
#[derive(Clone, Debug)]
pub(crate) struct Will {
    /// Without times, which begin when it is published.
    pub(crate) message: Published,
    pub(crate) expiry: Option<Duration>,
    pub(crate) delay: Duration,
    pub(crate) due_at: Option<Instant>,
}

/// A SUBSCRIBE that asked for retained messages: each topic's may come once for it.
#[derive(Clone, Debug)]
struct Asked {
    filter: String,
    qos: QoS,
    id: Option<u32>,
    since: Instant,
    /// When the subscription was replaced or removed.
    ended_at: Option<Instant>,
    /// The same for one that was replaced and goes on under other terms.
    permit: usize,
}

/// A retained message that came, and the SUBSCRIBEs that may have asked for it.
#[derive(Clone, Debug)]
struct Taken {
    topic: String,
    fitting: Vec<usize>,
    permit: usize,
}

/// A retained message that a SUBSCRIBE asked for and that has not come yet.
#[derive(Clone, Debug)]
struct Owed {
    filter: String,
    expected: Expected,
}

/// A PUBLISH that was sent at QoS 1 or 2 and is not finally acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    /// On which connection it was sent last.
    pub(crate) connection: ConnectionId,
    pub(crate) begun: Instant,
    /// Its topic, if that was said, and the length of its payload.
    pub(crate) topic: String,
    pub(crate) length: usize,
    pub(crate) qos: QoS,
    /// What it was, once the client has heard it.
    pub(crate) heard: Option<Expected>,
    /// As which share of which group's message.
    pub(crate) holder: Option<HolderId>,
    /// PUBREC has come.
    pub(crate) released: bool,
}

impl Flight {
    /// Whether it may be this message, whose topic is not known if an alias stood for it.
    pub(crate) fn may_be(&self, message: &Published) -> bool {
        self.begun >= message.at
            && self.length == message.payload.len()
            && (self.topic.is_empty() || self.topic == message.topic)
            && self.qos <= message.qos
    }
}

/// What the broker has to remember of one client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    pub(crate) connection: Option<ConnectionId>,
    /// The connection that it has, or had last.
    pub(crate) last_connection: Option<ConnectionId>,
    pub(crate) ends_with_connection: bool,
    /// Whether it once was to outlive its connection, so that it outlives a crash as well.
    pub(crate) is_stored: bool,
    /// How long it outlives its connection; `None` is for ever.
    pub(crate) expiry: Option<Duration>,
    pub(crate) closed_at: Instant,
    /// Differs each time a session is begun under this client id.
    pub(crate) incarnation: usize,
    pub(crate) will: Option<Will>,
    pub(crate) subscriptions: BTreeMap<String, Subscription>,
    /// Whether it ever was a member of a group.
    pub(crate) was_member: bool,
    pub(crate) receipts: BTreeSet<PacketId>,
    streams: BTreeMap<(String, String, QoS), Stream>,
    /// The newest retained value that came as a live message, by topic and QoS: its number. The order of messages
    /// holds for each QoS [B-064].
    live_retained: BTreeMap<(String, QoS), usize>,
    asked: Vec<Asked>,
    permits: usize,
    taken: Vec<Taken>,
    owed: Vec<Owed>,
    pub(crate) flights: BTreeMap<PacketId, Flight>,
    /// PUBREL sent, PUBCOMP not received; in the order of the PUBRECs.
    pub(crate) released: Vec<PacketId>,
    /// The largest packet that each of its connections took.
    pub(crate) sizes: Vec<u32>,
}

/// How a delivery fits a stream: the messages between, and how many of them are lost without a good reason.
pub(crate) struct Place {
    at: usize,
    pub(crate) missing: Vec<Missing>,
    /// Whether it may be a later one as well: its publisher has published it twice.
    pub(crate) is_ambiguous: bool,
}

impl Place {
    pub(crate) fn is_next(&self) -> bool {
        !self.missing.contains(&Missing::Lost)
    }
}

impl Session {
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.expiry.map(|expiry| self.closed_at + expiry)
    }

    /// A message should come.
    pub(crate) fn expect(&mut self, message: &Rc<Published>, qos: QoS, retain: bool, mut ids: Vec<u32>) {
        ids.sort_unstable();
        let key = (message.publisher.clone(), message.topic.clone(), qos);
        self.streams.entry(key).or_default().expected.push(Expected {
            message: message.clone(),
            qos,
            retain,
            subscription_ids: Some(ids),
            epoch: self.sizes.len(),
        });
    }

    fn key(delivery: &Delivery) -> (String, String, QoS) {
        let publisher = delivery.payload.split(' ').next().unwrap_or_default().to_owned();
        (publisher, delivery.topic.clone(), delivery.qos)
    }

    /// Where among the live messages that are still to come this one stands, if it does.
    pub(crate) fn place(&self, delivery: &Delivery, sending: &Sending) -> Option<Place> {
        let stream = self.streams.get(&Self::key(delivery))?;
        let ahead = &stream.expected[stream.passed..];
        // At QoS 0 a live message is sent when it is published, or a little later where it goes to many, or never.
        let is_live =
            |expected: &Expected| delivery.qos > QoS::AtMostOnce || expected.message.is_live(sending.begun);
        let fits = |expected: &Expected| expected.fits(delivery, sending) && is_live(expected);
        let at = ahead.iter().position(fits)?;
        let is_ambiguous = ahead[at + 1..].iter().any(fits);
        // At QoS 0 anything may be missing.
        let passed = if delivery.qos == QoS::AtMostOnce { &[] } else { &ahead[..at] };
        let missing =
            passed.iter().map(|passed| stream.missing(passed, sending.begun, &self.sizes)).collect();
        Some(Place { at, missing, is_ambiguous })
    }

    /// A live message that this may be, even if it has come already.
    pub(crate) fn expected_before(&self, delivery: &Delivery, sending: &Sending) -> Option<Expected> {
        let stream = self.streams.get(&Self::key(delivery))?;
        stream.expected.iter().find(|expected| expected.fits(delivery, sending)).cloned()
    }

    /// For the words of a failure.
    pub(crate) fn describe(&self, delivery: &Delivery) -> String {
        let stream = self.streams.get(&Self::key(delivery));
        let live = stream.map(|stream| (stream.passed, &stream.expected));
        let asked: Vec<&Asked> =
            self.asked.iter().filter(|asked| matches(&asked.filter, &delivery.topic)).collect();
        format!(
            "live: {live:?}; asked: {asked:?}; taken: {:?}; subscriptions: {:?}",
            self.taken, self.subscriptions
        )
    }

    /// The live message has come; `number` counts the retained messages.
    pub(crate) fn pass(&mut self, delivery: &Delivery, place: &Place, number: Option<usize>) -> Expected {
        let stream = self.streams.get_mut(&Self::key(delivery)).expect("it has a place");
        stream.passed += place.at + 1;
        let expected = stream.expected[stream.passed - 1].clone();
        if let Some(number) = number {
            let newest = self.live_retained.entry((delivery.topic.clone(), delivery.qos)).or_default();
            *newest = number.max(*newest);
        }
        expected
    }

    /// Whether a retained value is no older than one that came as a live message.
    pub(crate) fn is_new_enough(&self, delivery: &Delivery, number: Option<usize>) -> bool {
        let newest = self.live_retained.get(&(delivery.topic.clone(), delivery.qos));
        number.is_none() || newest <= number.as_ref()
    }

    /// SUBSCRIBE asks for these retained messages.
    pub(crate) fn ask(
        &mut self,
        filter: &str,
        subscription: Subscription,
        now: Instant,
        kept: impl Iterator<Item = Rc<Published>>,
    ) {
        // What was kept is sent again, however new the messages are that came live.
        self.live_retained.retain(|(topic, _), _| !matches(filter, topic));
        let Subscription { options, id } = subscription;
        let epoch = self.sizes.len();
        self.owed.extend(kept.filter(|message| matches(filter, &message.topic)).map(|message| {
            let qos = options.qos.min(message.qos);
            let subscription_ids = Some(id.into_iter().collect());
            let expected = Expected { message, qos, retain: true, subscription_ids, epoch };
            Owed { filter: filter.to_owned(), expected }
        }));
        self.permits += 1;
        self.asked.push(Asked {
            permit: self.permits,
            filter: filter.to_owned(),
            qos: options.qos,
            id,
            since: now,
            ended_at: None,
        });
    }

    /// A subscription is removed, or replaced by one that asks anew: what was asked for it need not come any more.
    pub(crate) fn stop_asking(&mut self, filter: &str, now: Instant) {
        self.owed.retain(|owed| owed.filter != filter);
        for asked in self.asked.iter_mut().filter(|asked| asked.filter == filter) {
            asked.ended_at.get_or_insert(now);
        }
    }

    /// A subscription is replaced by one that does not ask anew: what was asked for it still comes, as the new one wants
    /// it [MQTT5-3.8.4-3] [MQTT5-3.8.4-4].
    pub(crate) fn go_on_asking(&mut self, filter: &str, subscription: Subscription, now: Instant) {
        let Subscription { options, id } = subscription;
        let mut renewed = Vec::new();
        for asked in self.asked.iter_mut().filter(|asked| asked.filter == filter && asked.ended_at.is_none())
        {
            asked.ended_at = Some(now);
            renewed.push(Asked {
                filter: filter.to_owned(),
                qos: options.qos,
                id,
                since: now,
                ended_at: None,
                permit: asked.permit,
            });
        }
        self.asked.append(&mut renewed);
        // What was too large as the old subscription would have sent it need not be as the new one would.
        let Self { owed, sizes, .. } = self;
        owed.retain(|Owed { filter: other, expected }| {
            other != filter || expected.missing(now, sizes) != Missing::TooLarge
        });
        for Owed { expected, .. } in self.owed.iter_mut().filter(|owed| owed.filter == filter) {
            // It may have been sent before, so the weaker promise is the one that holds.
            expected.qos = expected.qos.min(options.qos);
            expected.subscription_ids = Some(id.into_iter().collect());
        }
    }

    /// The topic has a new retained message, or none any more: a live message takes the place of the old one.
    pub(crate) fn replaced(&mut self, topic: &str) {
        self.owed.retain(|owed| owed.expected.message.topic != topic);
    }

    /// The connection ended: at QoS 0 there are no promises left.
    pub(crate) fn forget_at_most_once(&mut self) {
        self.owed.retain(|owed| owed.expected.qos > QoS::AtMostOnce);
    }

    /// A retained message came. What it was, if a SUBSCRIBE asked for it. In front of a live message that several
    /// subscriptions wait for it comes once for all of them.
    pub(crate) fn take_retained(
        &mut self,
        delivery: &Delivery,
        sending: &Sending,
        versions: &[Rc<Published>],
    ) -> Option<Expected> {
        let has_properties = sending.protocol.has_properties();
        let ids = has_properties.then(|| delivery.subscription_ids.clone());
        let version = versions.iter().find_map(|message| {
            let expected = Expected {
                message: message.clone(),
                qos: delivery.qos,
                retain: true,
                subscription_ids: ids.clone(),
                epoch: self.sizes.len(),
            };
            expected.fits(delivery, sending).then_some(expected)
        })?;
        let granted = |asked: &Asked| asked.qos.min(version.message.qos);
        let fits = |asked: &&Asked| {
            matches(&asked.filter, &delivery.topic)
                && granted(asked) <= delivery.qos
                && asked.since <= sending.begun
                // Above QoS 0 it may have waited behind other messages.
                && (delivery.qos > QoS::AtMostOnce || asked.ended_at.is_none_or(|ended| sending.begun <= ended))
        };
        let is_highest = |asked: &Asked| granted(asked) == delivery.qos;
        // Each identifier is that of one subscription; without any it is one without.
        let mut takings: Vec<Vec<usize>> = Vec::new();
        let is_alone = delivery.subscription_ids.len() == 1;
        let fitting = |id: u32| self.asked.iter().filter(fits).filter(move |asked| asked.id == Some(id));
        for id in &delivery.subscription_ids {
            let fitting = fitting(*id).filter(|asked| !is_alone || is_highest(asked));
            takings.push(fitting.map(|asked| asked.permit).collect());
        }
        let without_id = self
            .asked
            .iter()
            .filter(fits)
            .filter(|asked| is_highest(asked) && (asked.id.is_none() || !has_properties));
        let without_id: Vec<usize> = without_id.map(|asked| asked.permit).collect();
        let mut merged: Vec<Vec<usize>> = Vec::new();
        if takings.is_empty() {
            takings.push(without_id);
        } else {
            let ids = delivery.subscription_ids.iter();
            merged.extend(ids.map(|id| fitting(*id).map(|asked| asked.permit).collect()));
            merged.push(without_id);
        }
        let has_highest = delivery.subscription_ids.iter().any(|id| fitting(*id).any(is_highest));
        let is_plain = has_highest || !has_properties || delivery.subscription_ids.is_empty();
        let is_taken = (is_plain && self.take_permits(&delivery.topic, takings))
            || (!merged.is_empty() && self.take_permits(&delivery.topic, merged));
        if !is_taken {
            return None;
        }
        self.satisfy(delivery, has_properties);
        Some(version)
    }

    /// Finds a permit for each of the subscriptions that a retained message came for.
    fn take_permits(&mut self, topic: &str, takings: Vec<Vec<usize>>) -> bool {
        let before = self.taken.len();
        for fitting in takings {
            self.taken.push(Taken { topic: topic.to_owned(), fitting, permit: usize::MAX });
            if !self.settle(self.taken.len() - 1, &mut Vec::new()) {
                self.taken.truncate(before);
                return false;
            }
        }
        true
    }

    /// Finds a permit for a retained message that came; others may have to be taken for having had another one.
    fn settle(&mut self, at: usize, seen: &mut Vec<usize>) -> bool {
        for permit in self.taken[at].fitting.clone() {
            if seen.contains(&permit) {
                continue;
            }
            seen.push(permit);
            let topic = &self.taken[at].topic;
            let user = self.taken.iter().position(|taken| taken.permit == permit && taken.topic == *topic);
            if user.is_none_or(|user| self.settle(user, seen)) {
                self.taken[at].permit = permit;
                return true;
            }
        }
        false
    }

    /// Whether a SUBSCRIBE asked for the retained message of this topic.
    pub(crate) fn may_be_retained(&self, delivery: &Delivery) -> bool {
        delivery.retain && self.asked.iter().any(|asked| matches(&asked.filter, &delivery.topic))
    }

    /// What a SUBSCRIBE asked for has come, for one filter or for several.
    pub(crate) fn satisfy(&mut self, delivery: &Delivery, has_properties: bool) {
        let Self { owed, asked, .. } = self;
        owed.retain(|Owed { filter, expected }| {
            let mut ids = asked.iter().filter(|asked| asked.filter == *filter).map(|asked| asked.id);
            let is_meant =
                !has_properties || ids.any(|id| id.is_none_or(|id| delivery.subscription_ids.contains(&id)));
            expected.message.topic != delivery.topic || !is_meant
        });
    }

    /// Everything has arrived that will: why the rest did not, and whether it is a retained message.
    pub(crate) fn missing(&self, now: Instant) -> Vec<(Missing, &Expected, bool)> {
        let live = self.streams.values().flat_map(|stream| {
            let left = &stream.expected[stream.passed..];
            left.iter().map(|expected| (stream.missing(expected, now, &self.sizes), expected, false))
        });
        // In front of a live message it is sent, or dropped, once for all subscriptions that wait for it.
        let is_first = |(at, owed): &(usize, &Owed)| {
            let before = &self.owed[..*at];
            !before.iter().any(|other| Rc::ptr_eq(&other.expected.message, &owed.expected.message))
        };
        let owed = self
            .owed
            .iter()
            .enumerate()
            .filter(is_first)
            .map(|(_, owed)| owed)
            .map(|Owed { expected, .. }| (self.why_owed(expected, now), expected, true));
        live.chain(owed).collect()
    }

    /// Why a retained message did not come. With the identifiers of all subscriptions that asked for it, it may be too large.
    fn why_owed(&self, expected: &Expected, now: Instant) -> Missing {
        let asked = self.asked.iter().filter(|asked| matches(&asked.filter, &expected.message.topic));
        let ids = asked.filter_map(|asked| asked.id).collect();
        let for_all = Expected { subscription_ids: Some(ids), ..expected.clone() };
        expected.missing(now, &self.sizes).min(for_all.missing(now, &self.sizes))
    }

    /// Whether this message has yet to come.
    pub(crate) fn awaits(&self, payload: &str, now: Instant) -> bool {
        self.streams.values().any(|stream| {
            let mut left = stream.expected[stream.passed..].iter();
            left.any(|expected| {
                expected.qos > QoS::AtMostOnce
                    && expected.message.payload == payload
                    && stream.missing(expected, now, &self.sizes) == Missing::Lost
            })
        })
    }

    /// After a crash nobody knows how far the retained messages for a subscription were: all may come once more.
    pub(crate) fn ask_again(&mut self) {
        let mut again = Vec::new();
        for asked in self.asked.iter().filter(|asked| asked.ended_at.is_none()) {
            self.permits += 1;
            again.push(Asked { permit: self.permits, filter: asked.filter.clone(), ..*asked });
        }
        self.asked.append(&mut again);
    }

    /// Messages that are under way to it and of which nobody knows what they are.
    pub(crate) fn unheard(&self) -> impl Iterator<Item = &Flight> {
        self.flights.values().filter(|flight| flight.heard.is_none() && !flight.released)
    }
}
