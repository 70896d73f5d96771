//! Remembers which subscribers a topic matched.
//!
//! A table of fixed size in which every topic has one possible place: a newer topic simply takes it over, buffers and
//! all, so that in the steady state a look-up is one comparison and nothing is allocated. An entry is valid while its
//! generation is the present one: changing a wildcard filter begins a new generation, changing an exact filter only
//! spoils the entry of that one topic.
//!
//! Deliberately not here: how a topic is resolved (see `subscription_tree`).

use super::subscription_tree::Subscriber;

/// Places in the table: a power of two.
const SLOTS: usize = 8_192;

/// Longer topics are resolved every time.
const TOPIC_BYTES_MAX: usize = 512;

/// A longer list of subscribers is not kept: resolving it costs little beside delivering to all of them.
const LIST_MAX: usize = 65_536;

/// Subscribers kept in all entries together.
const SUBSCRIBERS_MAX: usize = 1 << 20;

/// The generation of an entry that is not valid.
const STALE: u64 = 0;

/// The subscribers of one topic, each once. Lent by [`SubscriptionTree::matches`], to be given back with
/// [`SubscriptionTree::put_back`].
///
/// [`SubscriptionTree::matches`]: super::SubscriptionTree::matches
/// [`SubscriptionTree::put_back`]: super::SubscriptionTree::put_back
#[derive(Debug, Default)]
pub struct Matches {
    pub(super) subscribers: Vec<Subscriber>,
    /// Where they came from, and the change count of the tree then.
    slot: Option<usize>,
    changes: u64,
}

impl Matches {
    /// Every subscriber once, with the highest QoS among its matching subscriptions.
    pub fn iter(&self) -> impl Iterator<Item = Subscriber> {
        self.subscribers.iter().copied()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.subscribers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.subscribers.is_empty()
    }
}

#[derive(Debug, Default)]
struct Entry {
    hash: u64,
    generation: u64,
    topic: String,
    subscribers: Vec<Subscriber>,
}

#[derive(Debug)]
pub(super) struct MatchCache {
    slots: Box<[Option<Box<Entry>>]>,
    generation: u64,
    /// Grows with every change of any subscription.
    changes: u64,
    /// Sum of the capacities of all lists kept.
    kept: usize,
    /// A buffer for lists that are not kept.
    spare: Vec<Subscriber>,
}

impl Default for MatchCache {
    fn default() -> Self {
        let slots = std::iter::repeat_with(|| None).take(SLOTS).collect();
        Self { slots, generation: STALE + 1, changes: 0, kept: 0, spare: Vec::new() }
    }
}

impl MatchCache {
    /// The list of a topic: valid if the second value is true, else to be filled.
    pub(super) fn take(&mut self, hash: u64, topic: &str) -> (Matches, bool) {
        if topic.len() > TOPIC_BYTES_MAX {
            let mut subscribers = std::mem::take(&mut self.spare);
            subscribers.clear();
            return (Matches { subscribers, slot: None, changes: self.changes }, false);
        }
        let slot = hash as usize % SLOTS;
        let entry = self.slots[slot].get_or_insert_default();
        let valid = entry.generation == self.generation && entry.hash == hash && entry.topic == topic;
        let mut subscribers = std::mem::take(&mut entry.subscribers);
        self.kept -= subscribers.capacity();
        if !valid {
            subscribers.clear();
            entry.hash = hash;
            entry.topic.clear();
            entry.topic.push_str(topic);
        }
        // Until the list is back there is nothing to find.
        entry.generation = STALE;
        (Matches { subscribers, slot: Some(slot), changes: self.changes }, valid)
    }

    pub(super) fn put_back(&mut self, matches: Matches) {
        let Matches { subscribers, slot, changes } = matches;
        let Some(slot) = slot.filter(|_| subscribers.capacity() <= LIST_MAX) else {
            if subscribers.capacity() > self.spare.capacity() {
                self.spare = subscribers;
            }
            return;
        };
        if self.kept + subscribers.capacity() > SUBSCRIBERS_MAX {
            self.slots.fill_with(|| None);
            self.kept = 0;
            return;
        }
        let Some(entry) = &mut self.slots[slot] else { return };
        self.kept += subscribers.capacity();
        self.kept -= entry.subscribers.capacity();
        entry.subscribers = subscribers;
        // A list that was lent while subscriptions changed may be wrong: only its buffer is of use.
        if changes == self.changes {
            entry.generation = self.generation;
        }
    }

    /// A subscription to an exact filter, which has the hash of the one topic it matches, was changed.
    pub(super) fn exact_changed(&mut self, hash: u64) {
        self.changes += 1;
        if let Some(entry) = &mut self.slots[hash as usize % SLOTS]
            && entry.hash == hash
        {
            entry.generation = STALE;
        }
    }

    /// A subscription to a filter with wildcards was changed.
    pub(super) fn wildcard_changed(&mut self) {
        self.changes += 1;
        self.generation += 1;
    }
}
