//! Who subscribed to what, and who gets a topic.
//!
//! Every filter is stored once. Filters without wildcards are found by one look-up of the topic; filters with wildcards
//! stand in a tree of levels that is walked breadth-first, each node at most once, so a topic costs no more than the
//! nodes whose path matches its beginning. A subscription is a small record linked into two lists, that of its
//! filter and that of its subscriber, and found by an index over both: making and removing one does not depend on
//! how many there are.
//!
//! Invariants: a filter exists while it has a subscription; a node exists while it has a filter or a child; the
//! order of a match is the order of subscribing within a filter, exact filters first.
//!
//! Deliberately not here: what a subscriber is, and the syntax of filters (see `name`).

use std::hash::BuildHasher;

use hashbrown::HashTable;
use slab::Slab;

use crate::codec::QoS;
use crate::hash::{HashSeed, hash_text, seeded};

use super::match_cache::{MatchCache, Matches};
use super::name::{TopicFilter, TopicName};

/// Who subscribes: a small number that the owner of this tree chose, dense from 0, free again after
/// [`SubscriptionTree::remove_subscriber`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberId(pub u32);

/// A subscriber of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// Who.
    pub id: SubscriberId,
    /// The highest QoS among its matching subscriptions [MQTT-3.3.5-1].
    pub qos: QoS,
}

/// No entry: slabs never grow so large.
const NONE: u32 = u32::MAX;
/// The node above the first level.
const ROOT: u32 = 0;

#[derive(Debug)]
struct Filter {
    text: Box<str>,
    /// The list of its subscriptions.
    first: u32,
    last: u32,
    /// Its node, or `NONE` if it has no wildcard.
    node: u32,
}

/// One subscription.
#[derive(Debug)]
struct Record {
    subscriber: u32,
    filter: u32,
    filter_previous: u32,
    filter_next: u32,
    subscriber_previous: u32,
    subscriber_next: u32,
    qos: QoS,
}

/// One level of the filters that have a wildcard somewhere.
#[derive(Debug)]
struct Node {
    parent: u32,
    level: Box<str>,
    /// Children, `+` included.
    children: u32,
    plus: u32,
    /// The filter that ends at this node.
    filter: u32,
    /// The filter that ends in `#` below this node.
    hash_filter: u32,
}

#[derive(Clone, Copy, Debug)]
struct SubscriberState {
    first: u32,
    last: u32,
    count: u32,
    /// The match in which the subscriber was seen last, and its place in the list.
    stamp: u32,
    place: u32,
}

impl Default for SubscriberState {
    fn default() -> Self {
        Self { first: NONE, last: NONE, count: 0, stamp: 0, place: 0 }
    }
}

/// All subscriptions.
#[derive(Debug)]
pub struct SubscriptionTree {
    seed: HashSeed,
    filters: Slab<Filter>,
    by_text: HashTable<u32>,
    records: Slab<Record>,
    by_owner: HashTable<u32>,
    nodes: Slab<Node>,
    edges: HashTable<u32>,
    subscribers: Vec<SubscriberState>,
    wildcard_filters: usize,
    cache: MatchCache,
    stamp: u32,
    /// The nodes of one level of a walk, and those of the next.
    frontier: Vec<u32>,
    next_frontier: Vec<u32>,
}

fn owner_hash(seed: &HashSeed, subscriber: u32, filter: u32) -> u64 {
    seed.hash_one(u64::from(subscriber) << 32 | u64::from(filter))
}

/// Combines a level's hash, computed once per topic, with each node it is looked up under.
fn edge_hash(level_hash: u64, parent: u32) -> u64 {
    (level_hash ^ u64::from(parent).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .rotate_left(17)
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

impl SubscriptionTree {
    /// An empty tree. The seed decides how texts are hashed, nothing else.
    pub fn new(seed: u64) -> Self {
        let mut nodes = Slab::new();
        let root =
            Node { parent: NONE, level: "".into(), children: 0, plus: NONE, filter: NONE, hash_filter: NONE };
        assert_eq!(nodes.insert(root), ROOT as usize);
        Self {
            seed: seeded(seed),
            filters: Slab::new(),
            by_text: HashTable::new(),
            records: Slab::new(),
            by_owner: HashTable::new(),
            nodes,
            edges: HashTable::new(),
            subscribers: Vec::new(),
            wildcard_filters: 0,
            cache: MatchCache::default(),
            stamp: 0,
            frontier: Vec::new(),
            next_frontier: Vec::new(),
        }
    }

    /// Subscriptions of all subscribers.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Subscriptions of one subscriber.
    pub fn subscription_count(&self, subscriber: SubscriberId) -> u32 {
        self.subscribers.get(subscriber.0 as usize).map_or(0, |state| state.count)
    }

    /// The filters of one subscriber with their QoS, in the order of subscribing.
    pub fn subscriptions(&self, subscriber: SubscriberId) -> impl Iterator<Item = (&str, QoS)> {
        let mut next = self.subscribers.get(subscriber.0 as usize).map_or(NONE, |state| state.first);
        std::iter::from_fn(move || {
            let record = self.records.get(next as usize)?;
            next = record.subscriber_next;
            Some((&*self.filters[record.filter as usize].text, record.qos))
        })
    }

    /// Whether this subscription exists.
    pub fn contains(&self, subscriber: SubscriberId, filter: &str) -> bool {
        self.find_filter(hash_text(&self.seed, filter), filter)
            .is_some_and(|filter| self.find_record(subscriber.0, filter).is_some())
    }

    /// Makes a subscription, or changes the QoS of the one that is there; returns the QoS it had then
    /// [MQTT-3.8.4-3].
    pub fn subscribe(&mut self, subscriber: SubscriberId, filter: TopicFilter<'_>, qos: QoS) -> Option<QoS> {
        let hash = hash_text(&self.seed, filter.as_str());
        let filter_index = match self.find_filter(hash, filter.as_str()) {
            Some(found) => found,
            None => self.insert_filter(hash, filter),
        };
        self.changed(filter_index, hash);
        if let Some(record) = self.find_record(subscriber.0, filter_index) {
            let previous = &mut self.records[record as usize].qos;
            return Some(std::mem::replace(previous, qos));
        }
        self.insert_record(subscriber.0, filter_index, qos);
        None
    }

    /// Removes the subscription with exactly this filter [MQTT-3.10.4-1]. False if there was none.
    pub fn unsubscribe(&mut self, subscriber: SubscriberId, filter: &str) -> bool {
        let hash = hash_text(&self.seed, filter);
        let record = self.find_filter(hash, filter).and_then(|filter| self.find_record(subscriber.0, filter));
        match record {
            Some(record) => {
                self.remove_record(record);
                true
            }
            None => false,
        }
    }

    /// Removes all subscriptions of a subscriber.
    pub fn remove_subscriber(&mut self, subscriber: SubscriberId) {
        while let Some(state) = self.subscribers.get(subscriber.0 as usize)
            && state.first != NONE
        {
            self.remove_record(state.first);
        }
    }

    /// Everybody who gets this topic, each once. To be given back with [`SubscriptionTree::put_back`].
    #[inline]
    pub fn matches(&mut self, topic: TopicName<'_>) -> Matches {
        let hash = hash_text(&self.seed, topic.as_str());
        let (mut matches, valid) = self.cache.take(hash, topic.as_str());
        if !valid {
            self.resolve(hash, topic, &mut matches.subscribers);
        }
        matches
    }

    /// Takes back what [`SubscriptionTree::matches`] lent.
    #[inline]
    pub fn put_back(&mut self, matches: Matches) {
        self.cache.put_back(matches);
    }

    fn resolve(&mut self, hash: u64, topic: TopicName<'_>, matched: &mut Vec<Subscriber>) {
        self.stamp = self.stamp.checked_add(1).unwrap_or_else(|| {
            self.subscribers.iter_mut().for_each(|state| state.stamp = 0);
            1
        });
        if let Some(filter) = self.find_filter(hash, topic.as_str()) {
            self.collect(filter, matched);
        }
        if self.wildcard_filters == 0 {
            return;
        }
        let mut frontier = std::mem::take(&mut self.frontier);
        let mut next_frontier = std::mem::take(&mut self.next_frontier);
        frontier.clear();
        frontier.push(ROOT);
        // Wildcards at the first level do not match topics that begin with `$` [MQTT-4.7.2-1].
        let mut wildcards = !topic.is_dollar();
        for level in topic.as_str().split('/') {
            let level_hash = hash_text(&self.seed, level);
            for node in frontier.drain(..) {
                let Node { plus, hash_filter, children, .. } = self.nodes[node as usize];
                if wildcards && hash_filter != NONE {
                    self.collect(hash_filter, matched);
                }
                if children > 0 {
                    next_frontier.extend(self.find_child(node, level_hash, level));
                }
                if wildcards && plus != NONE {
                    next_frontier.push(plus);
                }
            }
            wildcards = true;
            std::mem::swap(&mut frontier, &mut next_frontier);
            if frontier.is_empty() {
                break;
            }
        }
        for node in frontier.drain(..) {
            let Node { filter, hash_filter, .. } = self.nodes[node as usize];
            // The second one is `a/#` for the topic `a`.
            for ending in [filter, hash_filter] {
                if ending != NONE {
                    self.collect(ending, matched);
                }
            }
        }
        self.frontier = frontier;
        self.next_frontier = next_frontier;
    }

    /// Adds the subscribers of a filter; those who are there already may rise in QoS.
    fn collect(&mut self, filter: u32, matched: &mut Vec<Subscriber>) {
        let mut next = self.filters[filter as usize].first;
        while next != NONE {
            let record = &self.records[next as usize];
            let state = &mut self.subscribers[record.subscriber as usize];
            if state.stamp == self.stamp {
                let seen = &mut matched[state.place as usize];
                seen.qos = seen.qos.max(record.qos);
            } else {
                state.stamp = self.stamp;
                state.place = matched.len() as u32;
                matched.push(Subscriber { id: SubscriberId(record.subscriber), qos: record.qos });
            }
            next = record.filter_next;
        }
    }

    fn changed(&mut self, filter: u32, hash: u64) {
        if self.filters[filter as usize].node == NONE {
            self.cache.exact_changed(hash);
        } else {
            self.cache.wildcard_changed();
        }
    }

    fn find_filter(&self, hash: u64, text: &str) -> Option<u32> {
        self.by_text.find(hash, |filter| *self.filters[*filter as usize].text == *text).copied()
    }

    fn insert_filter(&mut self, hash: u64, filter: TopicFilter<'_>) -> u32 {
        let text = filter.as_str();
        let entry = self.filters.vacant_entry();
        let index = u32::try_from(entry.key()).expect("fewer filters than 2^32");
        entry.insert(Filter { text: text.into(), first: NONE, last: NONE, node: NONE });
        let Self { by_text, filters, seed, .. } = self;
        by_text.insert_unique(hash, index, |filter| hash_text(seed, &filters[*filter as usize].text));
        if filter.has_wildcard() {
            self.wildcard_filters += 1;
            let node = self.insert_path(text, index);
            self.filters[index as usize].node = node;
        }
        index
    }

    /// Makes the nodes of a filter with wildcards and returns the last one.
    fn insert_path(&mut self, text: &str, filter: u32) -> u32 {
        let mut node = ROOT;
        for level in text.split('/') {
            if level == "#" {
                self.nodes[node as usize].hash_filter = filter;
                return node;
            }
            let level_hash = hash_text(&self.seed, level);
            let child = if level == "+" {
                Some(self.nodes[node as usize].plus).filter(|plus| *plus != NONE)
            } else {
                self.find_child(node, level_hash, level)
            };
            node = child.unwrap_or_else(|| self.insert_child(node, level_hash, level));
        }
        self.nodes[node as usize].filter = filter;
        node
    }

    fn find_child(&self, parent: u32, level_hash: u64, level: &str) -> Option<u32> {
        self.edges
            .find(edge_hash(level_hash, parent), |child| {
                let node = &self.nodes[*child as usize];
                node.parent == parent && *node.level == *level
            })
            .copied()
    }

    fn insert_child(&mut self, parent: u32, level_hash: u64, level: &str) -> u32 {
        self.nodes[parent as usize].children += 1;
        let node =
            Node { parent, level: level.into(), children: 0, plus: NONE, filter: NONE, hash_filter: NONE };
        let child = u32::try_from(self.nodes.insert(node)).expect("fewer nodes than 2^32");
        if level == "+" {
            self.nodes[parent as usize].plus = child;
        } else {
            let Self { edges, nodes, seed, .. } = self;
            edges.insert_unique(edge_hash(level_hash, parent), child, |child| {
                let node = &nodes[*child as usize];
                edge_hash(hash_text(seed, &node.level), node.parent)
            });
        }
        child
    }

    fn remove_filter(&mut self, filter: u32) {
        let Filter { text, node, .. } = self.filters.remove(filter as usize);
        let hash = hash_text(&self.seed, &text);
        self.by_text
            .find_entry(hash, |other| *other == filter)
            .expect("every filter is indexed by its text")
            .remove();
        if node == NONE {
            return;
        }
        self.wildcard_filters -= 1;
        let end = &mut self.nodes[node as usize];
        if end.filter == filter {
            end.filter = NONE;
        } else {
            assert_eq!(end.hash_filter, filter, "a filter stands at its node");
            end.hash_filter = NONE;
        }
        self.prune(node);
    }

    /// Removes a node that has become useless, and those above it that become so.
    fn prune(&mut self, mut index: u32) {
        while index != ROOT {
            let node = &self.nodes[index as usize];
            if node.children > 0 || node.filter != NONE || node.hash_filter != NONE {
                return;
            }
            let Node { parent, level, .. } = self.nodes.remove(index as usize);
            let above = &mut self.nodes[parent as usize];
            above.children -= 1;
            if above.plus == index {
                above.plus = NONE;
            } else {
                let hash = edge_hash(hash_text(&self.seed, &level), parent);
                self.edges
                    .find_entry(hash, |child| *child == index)
                    .expect("every node but `+` is an edge of its parent")
                    .remove();
            }
            index = parent;
        }
    }

    fn find_record(&self, subscriber: u32, filter: u32) -> Option<u32> {
        self.by_owner
            .find(owner_hash(&self.seed, subscriber, filter), |record| {
                let record = &self.records[*record as usize];
                record.subscriber == subscriber && record.filter == filter
            })
            .copied()
    }

    fn insert_record(&mut self, subscriber: u32, filter: u32, qos: QoS) {
        if subscriber as usize >= self.subscribers.len() {
            self.subscribers.resize(subscriber as usize + 1, SubscriberState::default());
        }
        let Self { records, by_owner, filters, subscribers, seed, .. } = self;
        let of_filter = &mut filters[filter as usize];
        let of_subscriber = &mut subscribers[subscriber as usize];
        let record = Record {
            subscriber,
            filter,
            filter_previous: of_filter.last,
            filter_next: NONE,
            subscriber_previous: of_subscriber.last,
            subscriber_next: NONE,
            qos,
        };
        let index = u32::try_from(records.insert(record)).expect("fewer subscriptions than 2^32");
        match of_filter.last {
            NONE => of_filter.first = index,
            last => records[last as usize].filter_next = index,
        }
        of_filter.last = index;
        match of_subscriber.last {
            NONE => of_subscriber.first = index,
            last => records[last as usize].subscriber_next = index,
        }
        of_subscriber.last = index;
        of_subscriber.count += 1;
        by_owner.insert_unique(owner_hash(seed, subscriber, filter), index, |record| {
            let record = &records[*record as usize];
            owner_hash(seed, record.subscriber, record.filter)
        });
    }

    fn remove_record(&mut self, index: u32) {
        let record = self.records.remove(index as usize);
        let hash = owner_hash(&self.seed, record.subscriber, record.filter);
        self.by_owner
            .find_entry(hash, |other| *other == index)
            .expect("every subscription is indexed by its owner")
            .remove();
        let Self { records, filters, subscribers, .. } = self;
        let of_filter = &mut filters[record.filter as usize];
        match record.filter_previous {
            NONE => of_filter.first = record.filter_next,
            previous => records[previous as usize].filter_next = record.filter_next,
        }
        match record.filter_next {
            NONE => of_filter.last = record.filter_previous,
            next => records[next as usize].filter_previous = record.filter_previous,
        }
        let of_subscriber = &mut subscribers[record.subscriber as usize];
        match record.subscriber_previous {
            NONE => of_subscriber.first = record.subscriber_next,
            previous => records[previous as usize].subscriber_next = record.subscriber_next,
        }
        match record.subscriber_next {
            NONE => of_subscriber.last = record.subscriber_previous,
            next => records[next as usize].subscriber_previous = record.subscriber_previous,
        }
        of_subscriber.count -= 1;
        let unused = of_filter.first == NONE;
        let hash = hash_text(&self.seed, &of_filter.text);
        self.changed(record.filter, hash);
        if unused {
            self.remove_filter(record.filter);
        }
    }

    /// Asserts every invariant of the tree.
    ///
    /// # Panics
    ///
    /// If one does not hold.
    pub fn check_invariants(&self) {
        assert_eq!(self.by_text.len(), self.filters.len());
        assert_eq!(self.by_owner.len(), self.records.len());
        let mut records = 0;
        for (index, filter) in &self.filters {
            assert!(filter.first != NONE, "a filter has a subscription");
            let (mut previous, mut next) = (NONE, filter.first);
            while next != NONE {
                let record = &self.records[next as usize];
                assert_eq!((record.filter as usize, record.filter_previous), (index, previous));
                assert_eq!(self.find_record(record.subscriber, record.filter), Some(next));
                records += 1;
                previous = next;
                next = record.filter_next;
            }
            assert_eq!(filter.last, previous);
            let hash = hash_text(&self.seed, &filter.text);
            assert_eq!(self.find_filter(hash, &filter.text), Some(index as u32));
            assert_eq!(filter.node != NONE, filter.text.contains(['+', '#']));
        }
        assert_eq!(records, self.records.len(), "every subscription is in the list of its filter");
        let mut counted = 0;
        for (subscriber, state) in self.subscribers.iter().enumerate() {
            let filters = self.subscriptions(SubscriberId(subscriber as u32)).count();
            assert_eq!(filters, state.count as usize);
            counted += filters;
        }
        assert_eq!(counted, self.records.len(), "every subscription is in the list of its subscriber");
        for (index, node) in &self.nodes {
            let children = self.nodes.iter().filter(|(_, child)| child.parent as usize == index).count();
            assert_eq!(node.children as usize, children);
            let useful = node.children > 0 || node.filter != NONE || node.hash_filter != NONE;
            assert!(useful || index == ROOT as usize, "a node has a filter or a child");
        }
    }
}

#[cfg(test)]
mod tests;
