//! Who subscribed to what, and who gets a topic.
//!
//! Every filter is stored once, in one table by hash. A topic finds the filter without wildcards that has its text by
//! one look-up, and those with wildcards by one look-up for each shape of them that fits the topic (see `shapes`):
//! there are few shapes, however many filters there are. What was found is remembered (see `match_cache`).
//!
//! A subscription is a small record that stands in two lists, that of its filter and that of its subscriber. In a long
//! list it is found by an index, so making and removing one does not depend on how many there are.
//!
//! Invariants: a filter exists while it has a subscription; a subscriber has one subscription to a filter at most. The
//! order of a match depends on the subscriptions and the order in which they were made, never on the seed: first those
//! of the filter without wildcards, then those of filters with wildcards shape by shape, and for each filter the oldest
//! subscription first.
//!
//! A long list can be made in several calls, one of them at a time (see `walk`).
//!
//! Deliberately not here: what a subscriber is, how many subscriptions it may have, and the syntax of filters (see
//! `name`).

mod bits;
mod pool;
mod shapes;
mod texts;
mod walk;

use std::hash::BuildHasher;
use std::num::NonZeroU32;

use crate::codec::QoS;
use crate::divided_table::DividedTable;
use crate::hash::{HashSeed, hash_bytes, seeded};

use super::match_cache::{Detail, Details, List, MatchCache, Matches, first_grant, further_grant};
use super::name::{TopicFilter, TopicName, filter_matches, has_wildcard};
use pool::{NONE, Pool};
use shapes::{Search, Shapes, hash_with_wildcards};
use texts::Texts;
use walk::{Bounds, Searching, Walk};

/// A list of this many subscriptions to one filter is indexed. Shorter ones, which most are, are searched.
const INDEXED_MIN: u32 = 17;

/// So many subscriptions are listed in the time in which a branch of the shapes is followed, where those are so many that each is far
/// memory; and so few are near.
const LISTED_PER_BRANCH: usize = 16;
const NEAR_BRANCHES: usize = 32;

/// So many bytes of two texts are compared in the time in which a subscription is listed.
const COMPARED_BYTES: usize = 64;

/// Who subscribes: a small number that the owner of this tree chose, dense from 0, free again after
/// [`SubscriptionTree::remove_subscriber`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(pub u32);

/// What a subscription grants its subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The highest QoS of a delivery.
    pub qos: QoS,
    /// Not what the subscriber published itself.
    pub no_local: bool,
    /// With the publisher's retain flag.
    pub retain_as_published: bool,
    /// To be named in a delivery.
    pub subscription_id: Option<NonZeroU32>,
}

impl From<QoS> for Grant {
    fn from(qos: QoS) -> Self {
        Self { qos, ..Self::default() }
    }
}

impl Grant {
    /// Whether nothing is lost if it is merged with others of its kind.
    pub(super) const fn is_plain(self) -> bool {
        !self.no_local && self.subscription_id.is_none()
    }
}

/// A subscriber of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// Who.
    pub id: SubscriberId,
    /// The highest QoS among its matching subscriptions [MQTT-3.3.5-1].
    pub qos: QoS,
    /// Whether one of them wants the publisher's retain flag.
    pub retain_as_published: bool,
    /// The last of its details, or `NONE`.
    pub(super) detail: u32,
}

impl Subscriber {
    /// Whether its subscriptions have to be looked at one by one, with [`Matches::grants`].
    #[inline]
    pub const fn is_detailed(self) -> bool {
        self.detail != NONE
    }
}

/// A filter that somebody subscribed to.
#[derive(Debug)]
struct Filter {
    text: texts::Place,
    /// The newest of its subscriptions, which form a ring, and how many they are.
    last: u32,
    count: NonZeroU32,
}

impl Filter {
    const fn is_indexed(&self) -> bool {
        self.count.get() >= INDEXED_MIN
    }
}

/// What the table of filters holds: with the hash beside it, a filter is looked at only if it is the right one, and
/// the table grows without looking at any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hashed {
    hash: u32,
    filter: u32,
}

/// Neighbours in a ring: the oldest follows the newest.
#[derive(Clone, Copy, Debug)]
struct Links {
    previous: u32,
    next: u32,
}

#[derive(Debug)]
struct Subscription {
    subscriber: u32,
    filter: u32,
    in_filter: Links,
    in_subscriber: Links,
    grant: Grant,
}

/// The subscriptions of one subscriber, which form a ring.
#[derive(Clone, Copy, Debug)]
struct Ring {
    /// The newest, or `NONE`.
    last: u32,
    count: u32,
}

/// Where a subscriber stands in the list of a match.
#[derive(Clone, Copy, Debug, Default)]
struct Stamp {
    /// The match.
    epoch: u32,
    position: u32,
}

/// All subscriptions.
#[derive(Debug)]
pub struct SubscriptionTree {
    seed: HashSeed,
    filters: Pool<Filter>,
    texts: Texts,
    by_hash: DividedTable<Hashed>,
    shapes: Shapes,
    subscriptions: Pool<Subscription>,
    /// By subscriber and filter, those that stand in long lists.
    by_owner: DividedTable<u32>,
    /// By subscriber, as are the stamps.
    rings: Vec<Ring>,
    stamps: Vec<Stamp>,
    epoch: u32,
    cache: MatchCache,
    /// How far the filters that match a topic were searched for, and those found, while it is resolved.
    search: Search,
    found: Vec<u32>,
    /// The details of its subscribers, while it is resolved.
    details: Vec<Detail>,
    /// The list that is being made in several calls.
    walk: Option<Box<Walk>>,
    /// What lists have taken so far: see [`SubscriptionTree::listed`].
    listed: u64,
}

/// What the table of filters takes for a hash: spread over all bits again.
const fn spread(hash: u32) -> u64 {
    (hash as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// As much of a hash as is remembered.
const fn shorten(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The hash of a filter: without wildcards that of the text, as topics are hashed too.
fn hash_filter(seed: &HashSeed, filter: &[u8]) -> u32 {
    shorten(if has_wildcard(filter) { hash_with_wildcards(seed, filter) } else { hash_bytes(seed, filter) })
}

/// Lists the filters with a hash.
#[inline]
fn look_up(by_hash: &DividedTable<Hashed>, hash: u32, found: &mut Vec<u32>) {
    for hashed in by_hash.iter_hash(spread(hash)) {
        if hashed.hash == hash {
            found.push(hashed.filter);
        }
    }
}

fn owner_hash(seed: &HashSeed, subscriber: u32, filter: u32) -> u64 {
    seed.hash_one(u64::from(subscriber) << 32 | u64::from(filter))
}

impl SubscriptionTree {
    /// An empty tree. The seed decides how texts are hashed, nothing else.
    pub fn new(seed: u64) -> Self {
        Self {
            seed: seeded(seed),
            filters: Pool::new(),
            texts: Texts::default(),
            by_hash: DividedTable::new(),
            shapes: Shapes::new(),
            subscriptions: Pool::new(),
            by_owner: DividedTable::new(),
            rings: Vec::new(),
            stamps: Vec::new(),
            epoch: 0,
            cache: MatchCache::new(),
            search: Search::default(),
            found: Vec::new(),
            details: Vec::new(),
            walk: None,
            listed: 0,
        }
    }

    /// Makes room for so many subscribers, each with a subscription of its own.
    pub fn reserve(&mut self, subscribers: usize) {
        self.filters.reserve(subscribers);
        self.subscriptions.reserve(subscribers);
        self.rings.reserve(subscribers);
        self.stamps.reserve(subscribers);
    }

    /// Subscriptions of all subscribers.
    pub const fn len(&self) -> usize {
        self.subscriptions.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.subscriptions.len() == 0
    }

    /// Subscriptions of one subscriber.
    pub fn subscription_count(&self, subscriber: SubscriberId) -> u32 {
        self.rings.get(subscriber.0 as usize).map_or(0, |ring| ring.count)
    }

    /// The filters of one subscriber with their grants, in the order of subscribing.
    pub fn subscriptions(&self, subscriber: SubscriberId) -> impl Iterator<Item = (&str, Grant)> {
        let ring = self.rings.get(subscriber.0 as usize).copied().unwrap_or(Ring { last: NONE, count: 0 });
        let mut at = ring.last;
        (0..ring.count).map(move |_| {
            at = self.subscriptions[at].in_subscriber.next;
            let Subscription { filter, grant, .. } = self.subscriptions[at];
            let text = self.texts.text(self.filters[filter].text);
            (std::str::from_utf8(text).expect("it was stored as a str"), grant)
        })
    }

    /// Whether this subscription exists.
    pub fn contains(&self, subscriber: SubscriberId, filter: &str) -> bool {
        self.find(subscriber.0, filter.as_bytes()).is_some()
    }

    /// Makes a subscription, or changes what the one that is there grants; returns what it granted before
    /// [MQTT-3.8.4-3].
    pub fn subscribe(
        &mut self,
        subscriber: SubscriberId,
        filter: TopicFilter<'_>,
        grant: impl Into<Grant>,
    ) -> Option<Grant> {
        let grant = grant.into();
        let text = filter.as_str().as_bytes();
        let hash = hash_filter(&self.seed, text);
        let Some(filter) = self.find_filter(hash, text) else {
            self.add_first(subscriber.0, hash, text, grant);
            self.cache.filter_changed(hash, text);
            return None;
        };
        let previous = match self.find_subscription(subscriber.0, filter) {
            Some(found) => {
                let subscription = &mut self.subscriptions[found];
                if let Some(walk) = &mut self.walk
                    && subscription.grant != grant
                {
                    walk.changes(found, subscription, text);
                }
                Some(std::mem::replace(&mut subscription.grant, grant))
            }
            None => {
                self.add_further(subscriber.0, filter, grant);
                None
            }
        };
        // Clients subscribe anew whenever they connect, to what is there: no reason to forget any match.
        if previous != Some(grant) {
            self.cache.filter_changed(hash, text);
        }
        previous
    }

    /// Removes the subscription with exactly this filter, character by character [MQTT-3.10.4-1]. False if there was
    /// none.
    pub fn unsubscribe(&mut self, subscriber: SubscriberId, filter: &str) -> bool {
        let found = self.find(subscriber.0, filter.as_bytes());
        if let Some(subscription) = found {
            self.remove(subscription);
        }
        found.is_some()
    }

    /// Removes all subscriptions of a subscriber.
    pub fn remove_subscriber(&mut self, subscriber: SubscriberId) {
        self.remove_some(subscriber, usize::MAX);
    }

    /// Removes the oldest subscriptions of a subscriber, so many at most. True if it has none left.
    pub fn remove_some(&mut self, subscriber: SubscriberId, at_most: usize) -> bool {
        let Some(mut ring) = self.rings.get(subscriber.0 as usize).copied() else { return true };
        for _ in 0..at_most.min(ring.count as usize) {
            self.remove(self.subscriptions[ring.last].in_subscriber.next);
            ring.count -= 1;
        }
        ring.count == 0
    }

    /// Everybody who gets this topic, each once [MQTT-3.3.5-1]. To be given back with [`SubscriptionTree::put_back`].
    // There are two trees, and the one without groups is asked for every message.
    #[inline(always)]
    pub fn matches(&mut self, topic: TopicName<'_>) -> Matches {
        let text = topic.as_str().as_bytes();
        let hash = shorten(hash_bytes(&self.seed, text));
        let (mut matches, is_filled) = self.cache.lend(hash, text);
        if !is_filled {
            self.resolve(hash, topic, &mut matches.list);
        }
        matches
    }

    /// The same, if no more than `at_most` subscriptions have to be listed for it, and their filters are found in no more time than
    /// that takes. Otherwise so much is done now, what is returned is not complete, and [`SubscriptionTree::list_further`] goes
    /// on: who is subscribed now will be listed, as it is now. While one list is made in this way, all others are made at once.
    // As above. That it is no option saves one move of the list for each message.
    #[inline(always)]
    pub fn matches_within(&mut self, topic: TopicName<'_>, at_most: usize) -> Matches {
        let text = topic.as_str().as_bytes();
        let hash = shorten(hash_bytes(&self.seed, text));
        let (mut matches, is_filled) = self.cache.lend(hash, text);
        if !is_filled {
            self.resolve_within(hash, topic, &mut matches, at_most);
        }
        matches
    }

    /// Goes on with a list that [`SubscriptionTree::matches_within`] began, by so many subscriptions, or so much of the search for
    /// filters as takes as long. The list, once it has all of them.
    ///
    /// # Panics
    ///
    /// If there is none to go on with.
    pub fn list_further(&mut self, at_most: usize) -> Option<Matches> {
        let mut walk = self.walk.take().expect("a list is being made");
        if let Some(mut searching) = walk.searching.take() {
            std::mem::swap(&mut self.search, &mut searching.search);
            self.search_further(searching.topic(), at_most);
            std::mem::swap(&mut self.search, &mut searching.search);
            self.hand_found_to(&mut walk, searching);
        } else if walk.go_on(&self.filters, &self.subscriptions, at_most) {
            return Some(walk.finish());
        }
        self.walk = Some(walk);
        None
    }

    /// What finding filters and listing subscriptions has taken so far, in subscriptions that are listed in that time; without
    /// what [`SubscriptionTree::list_further`] has listed.
    pub const fn listed(&self) -> u64 {
        self.listed
    }

    /// Whether there is one to go on with.
    pub const fn is_listing(&self) -> bool {
        self.walk.is_some()
    }

    /// Whether more get a topic than these, or may: of those whose list is not known all subscriptions are counted, and if their
    /// filters are not found in the time in which `at_most` are listed, they may be more.
    pub fn may_exceed(&mut self, topic: TopicName<'_>, subscribers: usize, at_most: usize) -> bool {
        let text = topic.as_str().as_bytes();
        let hash = shorten(hash_bytes(&self.seed, text));
        if let Some(len) = self.cache.len_of(hash, text) {
            return len > subscribers;
        }
        self.find_filters(hash, topic, at_most);
        let count = self.found_count();
        self.found.clear();
        count > subscribers || !self.search.is_done()
    }

    /// Takes back what [`SubscriptionTree::matches`] lent.
    // As above.
    #[inline(always)]
    pub fn put_back(&mut self, matches: Matches) {
        self.cache.put_back(matches);
    }

    /// Searches for the filters that match a topic with this hash, no longer than it takes to list so many subscriptions, and
    /// lists those found.
    // Or what it calls would be called twice, and be inlined nowhere.
    #[inline(never)]
    fn find_filters(&mut self, hash: u32, topic: TopicName<'_>, at_most: usize) {
        look_up(&self.by_hash, hash, &mut self.found);
        self.shapes.begin(&self.seed, &mut self.search);
        self.search_further(topic, at_most);
    }

    /// Goes on with the search that was begun, as far as is possible in the time in which so many subscriptions are listed.
    #[inline(always)]
    fn search_further(&mut self, topic: TopicName<'_>, at_most: usize) {
        let Self { seed, filters, texts, by_hash, shapes, search, found, listed, .. } = self;
        // What is found is compared with the topic, which may be long.
        let compared = 1 + topic.as_str().len() / COMPARED_BYTES;
        // First all look-ups, then all comparisons: far memory is read faster if one does not wait for the other.
        if !search.is_done() {
            let at_most = at_most.div_ceil(compared);
            let near_max = at_most.min(NEAR_BRANCHES);
            let branches_max = near_max + (at_most - near_max) / LISTED_PER_BRANCH;
            let followed =
                shapes.follow(seed, topic, search, branches_max, |hash| look_up(by_hash, hash, found));
            let near = followed.min(NEAR_BRANCHES);
            *listed += (near + (followed - near) * LISTED_PER_BRANCH) as u64;
        }
        *listed += (found.len() * compared) as u64;
        found.retain(|filter| {
            let filter = texts.text(filters[*filter].text);
            *filter == *topic.as_str().as_bytes() || filter_matches(filter, topic)
        });
    }

    fn resolve(&mut self, hash: u32, topic: TopicName<'_>, matched: &mut List) {
        self.find_filters(hash, topic, usize::MAX);
        self.list_found(matched);
    }

    /// The same, or a walk begins if that takes too long.
    #[inline(never)]
    fn resolve_within(&mut self, hash: u32, topic: TopicName<'_>, matches: &mut Matches, at_most: usize) {
        let may_walk = self.walk.is_none();
        self.find_filters(hash, topic, if may_walk { at_most } else { usize::MAX });
        if !self.search.is_done() {
            self.begin_search(topic, matches.take_to_make());
        } else if may_walk && self.found_count() > at_most {
            self.begin_walk(matches.take_to_make(), at_most);
        } else {
            self.list_found(&mut matches.list);
        }
    }

    /// The subscriptions to all filters in `found`.
    fn found_count(&self) -> usize {
        self.found.iter().map(|filter| self.filters[*filter].count.get() as usize).sum()
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            filters: self.filters.places(),
            subscriptions: self.subscriptions.places(),
            subscribers: self.rings.len(),
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_walk(&mut self, mut matches: Matches, at_first: usize) {
        let (count, bounds) = (self.found_count(), self.bounds());
        if let Some(too_small) = matches.reserve(count.min(bounds.subscribers)) {
            self.cache.recycle(too_small);
        }
        let is_one = self.found.len() == 1;
        let mut walk = Box::new(Walk::new(matches, bounds, is_one));
        walk.add_filters(self.found.drain(..), count);
        walk.go_on(&self.filters, &self.subscriptions, at_first);
        self.walk = Some(walk);
    }

    /// Begins a walk before all filters are found.
    #[cold]
    #[inline(never)]
    fn begin_search(&mut self, topic: TopicName<'_>, matches: Matches) {
        let mut walk = Box::new(Walk::new(matches, self.bounds(), false));
        let mut search = std::mem::take(&mut self.search);
        self.shapes.break_off(&mut search);
        self.hand_found_to(&mut walk, Box::new(Searching::new(search, topic)));
        self.walk = Some(walk);
    }

    fn hand_found_to(&mut self, walk: &mut Walk, searching: Box<Searching>) {
        let count = self.found_count();
        walk.add_filters(self.found.drain(..), count);
        if searching.search.is_done() {
            walk.reserve();
        } else {
            walk.searching = Some(searching);
        }
    }

    /// Lists who subscribed to the filters in `found`, and empties it.
    fn list_found(&mut self, matched: &mut List) {
        self.listed += self.found_count() as u64;
        let mut found = std::mem::take(&mut self.found);
        if let [filter] = *found {
            self.list(filter, &mut matched.subscribers);
        } else if !found.is_empty() {
            self.begin_epoch();
            found.iter().for_each(|filter| self.merge(*filter, &mut matched.subscribers));
        }
        found.clear();
        self.found = found;
        if !self.details.is_empty() {
            matched.details = Some(Box::new(Details(self.details.as_slice().into())));
            self.details.clear();
        }
    }

    /// Lists the subscribers of the only filter that matches.
    fn list(&mut self, filter: u32, matched: &mut Vec<Subscriber>) {
        let Filter { last, count, .. } = self.filters[filter];
        matched.reserve(count.get() as usize);
        let mut at = last;
        for _ in 0..count.get() {
            at = self.subscriptions[at].in_filter.next;
            let Subscription { subscriber, grant, .. } = self.subscriptions[at];
            matched.push(first_grant(&mut self.details, subscriber, grant));
        }
    }

    /// Adds the subscribers of a filter; those who are listed already may rise in QoS.
    fn merge(&mut self, filter: u32, matched: &mut Vec<Subscriber>) {
        let Filter { last, count, .. } = self.filters[filter];
        let mut at = last;
        for _ in 0..count.get() {
            at = self.subscriptions[at].in_filter.next;
            let Subscription { subscriber, grant, .. } = self.subscriptions[at];
            let stamp = &mut self.stamps[subscriber as usize];
            if stamp.epoch == self.epoch {
                let position = stamp.position as usize;
                further_grant(&mut self.details, &mut matched[position], grant);
            } else {
                *stamp = Stamp { epoch: self.epoch, position: matched.len() as u32 };
                matched.push(first_grant(&mut self.details, subscriber, grant));
            }
        }
    }

    fn begin_epoch(&mut self) {
        self.epoch = self.epoch.checked_add(1).unwrap_or_else(|| {
            self.stamps.fill(Stamp::default());
            1
        });
    }

    fn find_filter(&self, hash: u32, text: &[u8]) -> Option<u32> {
        self.by_hash
            .find(spread(hash), |hashed| {
                hashed.hash == hash && self.texts.text(self.filters[hashed.filter].text) == text
            })
            .map(|hashed| hashed.filter)
    }

    fn find_subscription(&self, subscriber: u32, filter: u32) -> Option<u32> {
        let Filter { last, count, .. } = self.filters[filter];
        if self.filters[filter].is_indexed() {
            let is_it = |found: &u32| {
                let found = &self.subscriptions[*found];
                found.subscriber == subscriber && found.filter == filter
            };
            return self.by_owner.find(owner_hash(&self.seed, subscriber, filter), is_it).copied();
        }
        let mut at = last;
        for _ in 0..count.get() {
            if self.subscriptions[at].subscriber == subscriber {
                return Some(at);
            }
            at = self.subscriptions[at].in_filter.previous;
        }
        None
    }

    fn find(&self, subscriber: u32, filter: &[u8]) -> Option<u32> {
        let filter = self.find_filter(hash_filter(&self.seed, filter), filter)?;
        self.find_subscription(subscriber, filter)
    }

    /// Makes a filter with its first subscription.
    fn add_first(&mut self, subscriber: u32, hash: u32, text: &[u8], grant: Grant) {
        let filter = Filter { text: texts::Place::default(), last: NONE, count: NonZeroU32::MIN };
        let filter = self.filters.insert(filter);
        let Self { filters, texts, by_hash, shapes, seed, walk, .. } = self;
        texts.insert(filter, text, |owner, place| filters[owner].text = place);
        by_hash.insert_unique(spread(hash), Hashed { hash, filter }, |hashed| spread(hashed.hash));
        if has_wildcard(text) {
            shapes.insert(seed, text, |node| {
                if let Some(walk) = walk {
                    walk.node_comes(node);
                }
            });
        }
        let subscription = self.add(subscriber, filter, grant);
        self.filters[filter].last = link(&mut self.subscriptions, in_filter, NONE, subscription);
    }

    /// Adds a subscription to a filter that others subscribed to.
    fn add_further(&mut self, subscriber: u32, filter: u32, grant: Grant) {
        let subscription = self.add(subscriber, filter, grant);
        let Self { filters, subscriptions, by_owner, seed, .. } = self;
        let filter = &mut filters[filter];
        filter.last = link(subscriptions, in_filter, filter.last, subscription);
        filter.count = filter.count.checked_add(1).expect("fewer subscriptions than 2^32");
        let not_yet_indexed = match filter.count.get() {
            ..INDEXED_MIN => 0,
            INDEXED_MIN => INDEXED_MIN,
            _ => 1,
        };
        let hash_of = |subscription: &u32| {
            let Subscription { subscriber, filter, .. } = subscriptions[*subscription];
            owner_hash(seed, subscriber, filter)
        };
        let mut at = filter.last;
        for _ in 0..not_yet_indexed {
            by_owner.insert_unique(hash_of(&at), at, hash_of);
            at = subscriptions[at].in_filter.previous;
        }
    }

    /// Makes a subscription that is in the list of its subscriber, but not yet in that of its filter.
    fn add(&mut self, subscriber: u32, filter: u32, grant: Grant) -> u32 {
        let len = subscriber as usize + 1;
        if self.rings.len() < len {
            self.rings.resize(len, Ring { last: NONE, count: 0 });
            self.stamps.resize(len, Stamp::default());
        }
        let unlinked = Links { previous: NONE, next: NONE };
        let subscription =
            Subscription { subscriber, filter, in_filter: unlinked, in_subscriber: unlinked, grant };
        let subscription = self.subscriptions.insert(subscription);
        if let Some(walk) = &mut self.walk {
            walk.comes(subscription);
        }
        let ring = &mut self.rings[subscriber as usize];
        ring.last = link(&mut self.subscriptions, in_subscriber, ring.last, subscription);
        ring.count += 1;
        subscription
    }

    /// Removes a subscription, and its filter with the last one.
    fn remove(&mut self, subscription: u32) {
        let Subscription { subscriber, filter: index, .. } = self.subscriptions[subscription];
        let Self {
            filters, texts, by_hash, shapes, subscriptions, by_owner, rings, cache, seed, walk, ..
        } = self;
        let place = filters[index].text;
        let text = texts.text(place);
        if let Some(walk) = walk {
            walk.goes(subscription, subscriptions, text);
        }
        let hash = hash_filter(seed, text);
        cache.filter_changed(hash, text);

        let ring = &mut rings[subscriber as usize];
        ring.last = unlink(subscriptions, in_subscriber, ring.last, subscription);
        ring.count -= 1;

        let filter = &mut filters[index];
        let was_indexed = filter.is_indexed();
        let mut drop_from_index = |subscription: u32, subscriber: u32| {
            by_owner
                .remove(owner_hash(seed, subscriber, index), |other| *other == subscription)
                .expect("every subscription of a long list is indexed");
        };
        if was_indexed {
            drop_from_index(subscription, subscriber);
        }
        filter.last = unlink(subscriptions, in_filter, filter.last, subscription);
        subscriptions.remove(subscription);
        if let Some(count) = NonZeroU32::new(filter.count.get() - 1) {
            filter.count = count;
            if was_indexed && !filter.is_indexed() {
                let mut at = filter.last;
                for _ in 0..count.get() {
                    drop_from_index(at, subscriptions[at].subscriber);
                    at = subscriptions[at].in_filter.previous;
                }
            }
            return;
        }
        if has_wildcard(text) {
            shapes.remove(seed, text);
        }
        by_hash
            .remove(spread(hash), |hashed| hashed.filter == index)
            .expect("every filter is found by its hash");
        filters.remove(index);
        if let Some(walk) = walk {
            walk.filter_goes(index);
        }
        texts.remove(place, |owner, place| filters[owner].text = place);
    }

    /// Asserts every invariant of the tree.
    ///
    /// # Panics
    ///
    /// If one does not hold.
    pub fn check_invariants(&self) {
        let (mut in_filters, mut indexed) = (0, 0);
        for (index, filter) in self.filters.iter() {
            let text = self.texts.text(filter.text);
            assert_eq!(
                self.find_filter(hash_filter(&self.seed, text), text),
                Some(index),
                "a text has one filter"
            );
            let count = filter.count.get();
            let mut at = filter.last;
            for _ in 0..count {
                let subscription = &self.subscriptions[at];
                assert_eq!(subscription.filter, index);
                assert_eq!(self.subscriptions[subscription.in_filter.next].in_filter.previous, at);
                assert_eq!(
                    self.find_subscription(subscription.subscriber, index),
                    Some(at),
                    "it is the only one"
                );
                at = subscription.in_filter.next;
            }
            assert_eq!(at, filter.last, "the ring is closed");
            in_filters += count as usize;
            indexed += if filter.is_indexed() { count as usize } else { 0 };
        }
        assert_eq!(in_filters, self.subscriptions.len(), "every subscription is in the ring of its filter");
        assert_eq!(indexed, self.by_owner.len());
        assert_eq!(self.filters.len(), self.by_hash.len());
        let mut in_subscribers = 0;
        for (subscriber, ring) in (0..).zip(&self.rings) {
            let mut at = ring.last;
            for _ in 0..ring.count {
                let subscription = &self.subscriptions[at];
                assert_eq!(subscription.subscriber, subscriber);
                assert_eq!(self.subscriptions[subscription.in_subscriber.next].in_subscriber.previous, at);
                at = subscription.in_subscriber.next;
            }
            assert_eq!(at, ring.last, "the ring is closed");
            assert_eq!(ring.last == NONE, ring.count == 0);
            in_subscribers += ring.count as usize;
        }
        assert_eq!(
            in_subscribers,
            self.subscriptions.len(),
            "every subscription is in the ring of its subscriber"
        );
        assert_eq!(self.stamps.len(), self.rings.len());
        assert!(self.stamps.iter().all(|stamp| stamp.epoch <= self.epoch));
        self.texts.check_invariants(self.filters.len(), |filter| self.filters[filter].text);
        let texts = self.filters.iter().map(|(_, filter)| self.texts.text(filter.text));
        self.shapes.check_invariants(&self.seed, texts.filter(|text| has_wildcard(text)));
        if let Some(walk) = &self.walk {
            walk.check_invariants(&self.filters, &self.subscriptions);
        }
        self.cache.check_invariants(|topic| shorten(hash_bytes(&self.seed, topic)));
    }
}

const fn in_filter(subscription: &mut Subscription) -> &mut Links {
    &mut subscription.in_filter
}

const fn in_subscriber(subscription: &mut Subscription) -> &mut Links {
    &mut subscription.in_subscriber
}

/// One of the two rings in which a subscription stands.
type RingOf = fn(&mut Subscription) -> &mut Links;

/// Puts a subscription behind the newest one of a ring; returns the newest one, which it is now.
fn link(subscriptions: &mut Pool<Subscription>, ring: RingOf, last: u32, new: u32) -> u32 {
    if last == NONE {
        *ring(&mut subscriptions[new]) = Links { previous: new, next: new };
        return new;
    }
    let first = std::mem::replace(&mut ring(&mut subscriptions[last]).next, new);
    ring(&mut subscriptions[first]).previous = new;
    *ring(&mut subscriptions[new]) = Links { previous: last, next: first };
    new
}

/// Takes a subscription out of a ring; returns the newest one of the others.
fn unlink(subscriptions: &mut Pool<Subscription>, ring: RingOf, last: u32, old: u32) -> u32 {
    let Links { previous, next } = *ring(&mut subscriptions[old]);
    if next == old {
        return NONE;
    }
    ring(&mut subscriptions[previous]).next = next;
    ring(&mut subscriptions[next]).previous = previous;
    if last == old { previous } else { last }
}

#[cfg(test)]
mod tests;
