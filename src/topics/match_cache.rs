//! Remembers which subscribers a topic matched.
//!
//! A table of fixed size in which a topic has one possible set of places; in a full set, the topic that was published
//! longest ago gives way, and leaves its buffers to the new one. So in the steady state a match is one hash and one
//! comparison, and nothing is allocated.
//!
//! A list is lent, not copied: it leaves the table and comes back, so that whoever walks it may change everything else
//! meanwhile. It is valid while its entry is of the present generation. Changing a filter with wildcards begins a new
//! generation; changing an exact filter spoils the entry of that one topic. Whatever was changed while a list was lent,
//! it does not come back as valid.
//!
//! Invariants: the lists kept have room for `KEPT_MAX` subscribers at most, all together.
//!
//! Deliberately not here: how a topic is resolved (see `subscription_tree`).

use std::ops::Range;

use super::name::has_wildcard;
use super::subscription_tree::{Grant, Subscriber, SubscriberId};

/// Places of one set.
const WAYS: usize = 4;

/// Sets: a power of two.
const SETS: usize = 2_048;

/// Longer topics are resolved every time.
const TOPIC_BYTES_MAX: usize = 512;

/// Longer lists are resolved every time: that costs little beside delivering to all of them.
const LIST_MAX: usize = 100_000;

/// Subscribers and details for which all lists together have room: 16 MiB at most.
const KEPT_MAX: usize = 1 << 20;

/// Entries that may lose their lists to make room for a new one.
const EVICTIONS_MAX: usize = 16;

/// Of a larger buffer no less than this part may be used, so that a short list does not keep a huge buffer.
const USED_MIN_DIVISOR: usize = 4;

/// A smaller buffer may be as empty as it likes.
const SMALL_LIST: usize = 64;

const NONE: u32 = u32::MAX;

/// The entry of a list that is still being made elsewhere.
const BEING_MADE: u32 = NONE - 1;

/// The subscribers of one topic, each once, lent by [`SubscriptionTree::matches`] and to be given back with
/// [`SubscriptionTree::put_back`]. Dropping it instead costs only the time to resolve the topic again.
///
/// [`SubscriptionTree::matches`]: super::SubscriptionTree::matches
/// [`SubscriptionTree::put_back`]: super::SubscriptionTree::put_back
#[derive(Debug)]
pub struct Matches {
    pub(super) list: List,
    /// Where the list belongs, and which lending of the entry this is.
    entry: u32,
    lending: u64,
}

/// The grants of one subscriber.
#[derive(Clone, Debug)]
pub struct Grants<'a> {
    details: &'a [Detail],
    next: Option<u32>,
    last: u32,
}

impl Grants<'_> {
    /// Where the next one is, if one is left.
    pub const fn place(&self) -> Option<u32> {
        self.next
    }
}

impl Iterator for Grants<'_> {
    type Item = Grant;

    #[inline]
    fn next(&mut self) -> Option<Grant> {
        let at = self.next?;
        let detail = self.details[at as usize];
        self.next = (at != self.last).then_some(detail.next);
        Some(detail.grant)
    }
}

impl Matches {
    /// Every subscriber once, with the highest QoS among its matching subscriptions [MQTT-3.3.5-1].
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Subscriber> {
        self.list.subscribers.iter().copied()
    }

    /// Some of them, by their places.
    pub fn some(&self, places: Range<usize>) -> impl ExactSizeIterator<Item = Subscriber> {
        self.list.subscribers[places].iter().copied()
    }

    /// The grants of all matching subscriptions of a subscriber that is detailed; those without a subscription
    /// identifier and without No Local may be merged.
    pub fn grants(&self, subscriber: Subscriber) -> Grants<'_> {
        let details = self.list.details();
        let next = details.get(subscriber.detail as usize).map(|detail| detail.next);
        Grants { details, next, last: subscriber.detail }
    }

    /// Those of the same subscriber that are left where [`Grants::place`] was this.
    pub fn grants_from(&self, subscriber: Subscriber, place: u32) -> Grants<'_> {
        Grants { details: self.list.details(), next: Some(place), last: subscriber.detail }
    }

    /// How many grants those have that have to be looked at with [`Matches::grants`].
    #[inline]
    pub fn grants_len(&self) -> usize {
        self.list.details().len()
    }

    /// How many they are.
    pub const fn len(&self) -> usize {
        self.list.subscribers.len()
    }

    /// Whether everybody is listed: otherwise nobody is yet, and [`SubscriptionTree::list_further`] goes on.
    ///
    /// [`SubscriptionTree::list_further`]: super::SubscriptionTree::list_further
    #[inline]
    pub const fn is_complete(&self) -> bool {
        self.entry != BEING_MADE
    }

    /// Leaves word that the list is being made elsewhere, where it goes with what was lent.
    pub(super) fn take_to_make(&mut self) -> Self {
        std::mem::replace(self, Self { list: List::default(), entry: BEING_MADE, lending: 0 })
    }

    /// Has room for so many, in a buffer that holds nothing that would have to be moved; returns one that was too small.
    pub(super) fn reserve(&mut self, subscribers: usize) -> Option<List> {
        let list = &mut self.list;
        (list.subscribers.capacity() < subscribers).then(|| {
            let subscribers = Vec::with_capacity(subscribers);
            std::mem::replace(list, List { subscribers, details: None })
        })
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.list.subscribers.is_empty()
    }
}

/// What one matching subscription of a detailed subscriber grants. Those of a subscriber form a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detail {
    pub(super) grant: Grant,
    pub(super) next: u32,
}

/// The subscribers of a topic.
#[derive(Debug, Default)]
pub(super) struct List {
    pub(super) subscribers: Vec<Subscriber>,
    /// Only of those for whom the sum of their subscriptions does not say everything. Behind one pointer, because most
    /// topics have none and a list is moved for every message.
    pub(super) details: Option<Box<Details>>,
}

/// Grants of subscribers, in rings.
#[derive(Debug)]
pub(super) struct Details(pub(super) Box<[Detail]>);

/// A subscriber with one matching subscription.
pub(super) fn first_grant(details: &mut Vec<Detail>, subscriber: u32, grant: Grant) -> Subscriber {
    let detail = if grant.is_plain() { NONE } else { add_detail(details, NONE, grant) };
    let Grant { qos, retain_as_published, .. } = grant;
    Subscriber { id: SubscriberId(subscriber), qos, retain_as_published, detail }
}

/// Another matching subscription of a subscriber that is listed already.
pub(super) fn further_grant(details: &mut Vec<Detail>, listed: &mut Subscriber, grant: Grant) {
    if listed.is_detailed() || !grant.is_plain() {
        if !listed.is_detailed() {
            let Subscriber { qos, retain_as_published, .. } = *listed;
            let merged = Grant { qos, retain_as_published, ..Grant::default() };
            listed.detail = add_detail(details, NONE, merged);
        }
        listed.detail = add_detail(details, listed.detail, grant);
    }
    listed.qos = listed.qos.max(grant.qos);
    listed.retain_as_published |= grant.retain_as_published;
}

/// Puts a detail behind the last one of its ring; returns the last one, which it is now.
fn add_detail(details: &mut Vec<Detail>, last: u32, grant: Grant) -> u32 {
    let at = details.len() as u32;
    let next = match details.get_mut(last as usize) {
        Some(last) => std::mem::replace(&mut last.next, at),
        None => at,
    };
    details.push(Detail { grant, next });
    at
}

impl List {
    fn details(&self) -> &[Detail] {
        self.details.as_ref().map_or(&[], |details| &details.0)
    }

    /// What it takes of `KEPT_MAX`.
    fn room(&self) -> usize {
        self.subscribers.capacity() + self.details().len()
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u32,
    entry: u32,
}

#[derive(Debug)]
struct Entry {
    topic: Vec<u8>,
    /// `None` while it is lent, and after it was given up.
    list: Option<List>,
    generation: u64,
    /// Changes whenever a list that is lent must not come back.
    lending: u64,
}

#[derive(Debug)]
pub(super) struct MatchCache {
    /// Set after set; in a set, the topic published last comes first.
    places: Box<[Place]>,
    /// As many as were ever needed at once; one place each.
    entries: Vec<Entry>,
    generation: u64,
    lendings: u64,
    /// Sum of the room of the lists in entries.
    kept: usize,
    /// The entry whose list is given up next when there is no room.
    evicted_next: usize,
    /// A buffer for the next list that has none.
    spare: Vec<Subscriber>,
}

impl MatchCache {
    pub(super) fn new() -> Self {
        Self {
            places: vec![Place { hash: 0, entry: NONE }; SETS * WAYS].into_boxed_slice(),
            entries: Vec::new(),
            generation: 0,
            lendings: 0,
            kept: 0,
            evicted_next: 0,
            spare: Vec::new(),
        }
    }

    /// Lends the list of a topic. If it is not known, it is empty, and the second value is false: it has to be filled.
    // Into `matches`, which says why.
    #[inline(always)]
    pub(super) fn lend(&mut self, hash: u32, topic: &[u8]) -> (Matches, bool) {
        let set = set_of(hash);
        if let Some(way) = self.find(hash, topic) {
            if way > 0 {
                self.places[set..=set + way].rotate_right(1);
            }
            let index = self.places[set].entry;
            let entry = &mut self.entries[index as usize];
            if entry.generation == self.generation
                && let Some(list) = entry.list.take()
            {
                self.kept -= list.room();
                return (Matches { list, entry: index, lending: entry.lending }, true);
            }
        } else if topic.len() > TOPIC_BYTES_MAX {
            let mut subscribers = std::mem::take(&mut self.spare);
            subscribers.clear();
            let list = List { subscribers, ..List::default() };
            return (Matches { list, entry: NONE, lending: 0 }, false);
        } else {
            self.replace(hash, topic);
        }
        (self.lend_empty(self.places[set].entry), false)
    }

    /// How long the list of a topic is, if it is here: its subscribers, and the grants of those that are detailed.
    pub(super) fn len_of(&self, hash: u32, topic: &[u8]) -> Option<usize> {
        let way = self.find(hash, topic)?;
        let entry = &self.entries[self.places[set_of(hash) + way].entry as usize];
        let list = entry.list.as_ref().filter(|_| entry.generation == self.generation);
        list.map(|list| list.subscribers.len() + list.details().len())
    }

    /// Takes a list back.
    // Into `put_back` of the tree.
    #[inline(always)]
    pub(super) fn put_back(&mut self, matches: Matches) {
        let Matches { mut list, entry: index, lending } = matches;
        let is_current = self
            .entries
            .get(index as usize)
            .is_some_and(|entry| entry.lending == lending && entry.generation == self.generation);
        if !is_current || list.subscribers.len() + list.details().len() > LIST_MAX {
            return self.recycle(list);
        }
        let subscribers = &mut list.subscribers;
        if subscribers.capacity() > SMALL_LIST.max(subscribers.len() * USED_MIN_DIVISOR) {
            subscribers.shrink_to_fit();
        }
        if self.kept + list.room() > KEPT_MAX && !self.make_room(list.room()) {
            return self.recycle(list);
        }
        self.kept += list.room();
        self.entries[index as usize].list = Some(list);
    }

    /// The subscriptions of a filter changed.
    pub(super) fn filter_changed(&mut self, hash: u32, filter: &[u8]) {
        if has_wildcard(filter) {
            self.generation += 1;
        } else if let Some(way) = self.find(hash, filter) {
            // It matches the one topic that has the same text, and so the same hash.
            let index = self.places[set_of(hash) + way].entry;
            self.give_up(index as usize);
        }
    }

    #[inline]
    fn find(&self, hash: u32, topic: &[u8]) -> Option<usize> {
        self.places[set_of(hash)..][..WAYS].iter().position(|place| {
            place.hash == hash
                && self.entries.get(place.entry as usize).is_some_and(|entry| *entry.topic == *topic)
        })
    }

    /// Puts a topic in the first place of its set, where another one has to give way if none is free.
    fn replace(&mut self, hash: u32, topic: &[u8]) {
        let set = &mut self.places[set_of(hash)..][..WAYS];
        let way = set.iter().position(|place| place.entry == NONE).unwrap_or(WAYS - 1);
        if set[way].entry == NONE {
            set[way].entry = self.entries.len() as u32;
            let entry = Entry { topic: Vec::new(), list: None, generation: 0, lending: 0 };
            self.entries.push(entry);
        }
        set[way].hash = hash;
        set[..=way].rotate_right(1);
        let entry = &mut self.entries[set[0].entry as usize];
        entry.topic.clear();
        entry.topic.extend_from_slice(topic);
    }

    /// Begins an entry anew and lends its buffer, or the spare one.
    fn lend_empty(&mut self, index: u32) -> Matches {
        let entry = &mut self.entries[index as usize];
        let mut subscribers = match entry.list.take() {
            Some(list) => {
                self.kept -= list.room();
                list.subscribers
            }
            None => std::mem::take(&mut self.spare),
        };
        subscribers.clear();
        self.lendings += 1;
        entry.lending = self.lendings;
        entry.generation = self.generation;
        let list = List { subscribers, ..List::default() };
        Matches { list, entry: index, lending: entry.lending }
    }

    fn give_up(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        self.lendings += 1;
        entry.lending = self.lendings;
        if let Some(list) = entry.list.take() {
            self.kept -= list.room();
            self.recycle(list);
        }
    }

    /// Whether there is room for a list with this capacity, after others were given up in turn.
    fn make_room(&mut self, capacity: usize) -> bool {
        for _ in 0..EVICTIONS_MAX.min(self.entries.len()) {
            self.evicted_next = (self.evicted_next + 1) % self.entries.len();
            let list = self.entries[self.evicted_next].list.take();
            self.kept -= list.map_or(0, |list| list.room());
            if self.kept + capacity <= KEPT_MAX {
                return true;
            }
        }
        false
    }

    /// Keeps the buffer of a list, if it is the largest.
    pub(super) fn recycle(&mut self, list: List) {
        let subscribers = list.subscribers;
        if subscribers.capacity() > self.spare.capacity() && subscribers.capacity() <= KEPT_MAX {
            self.spare = subscribers;
        }
    }

    /// Asserts that the lists are counted and that every topic has one entry, where it is looked for.
    pub(super) fn check_invariants(&self, hash_of: impl Fn(&[u8]) -> u32) {
        let kept: usize = self.entries.iter().filter_map(|entry| entry.list.as_ref()).map(List::room).sum();
        assert_eq!(self.kept, kept);
        assert!(kept <= KEPT_MAX);
        let mut places = 0;
        for (index, place) in self.places.iter().enumerate().filter(|(_, place)| place.entry != NONE) {
            places += 1;
            let topic = &self.entries[place.entry as usize].topic;
            assert_eq!(place.hash, hash_of(topic));
            assert_eq!(self.find(place.hash, topic).map(|way| set_of(place.hash) + way), Some(index));
        }
        assert_eq!(places, self.entries.len());
    }
}

#[inline]
const fn set_of(hash: u32) -> usize {
    hash as usize % SETS * WAYS
}
