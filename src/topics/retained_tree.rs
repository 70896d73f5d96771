//! One value per topic, in the order of topics, and walks over those that match a filter.
//!
//! The order is level by level: `/` sorts below every other byte, so that a topic and all topics below it stand
//! together. A walk jumps over stretches that cannot match. Its position is a text and not a place in memory, so
//! values may come and go between two slices of it.
//!
//! Invariants: a topic is stored inside its value and nowhere else; a slice of a walk looks at no more entries than
//! it was allowed.
//!
//! Deliberately not here: what a value is, beyond its topic, and how many there may be.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use super::name::TopicFilter;

/// A value that knows its topic, which must never change.
pub trait Retained {
    /// The topic name.
    fn topic(&self) -> &str;

    /// Its bytes. Whoever keeps bytes has to look whether they are a text, and comparing needs no text.
    fn topic_bytes(&self) -> &[u8] {
        self.topic().as_bytes()
    }
}

/// The least text that sorts above a level and all that is below it, appended to it: U+0000 follows the slash in the
/// order of topics.
const BEHIND_SUBTREE: &str = "\0";

/// Where the topics end that begin with `$`: `%` is the next character.
const BEHIND_DOLLAR: &str = "%";

/// Entries that a jump tries one after the other before it descends the tree anew.
const PROBES: u32 = 2;

/// Compares topics level by level.
fn compare(left: &[u8], right: &[u8]) -> Ordering {
    // Neighbours have long beginnings in common, so eight bytes are passed at once.
    let chunks = left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0);
    let equal = chunks.take_while(|(left, right)| left == right).count() * 8;
    let (left, right) = (&left[equal..], &right[equal..]);
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    match left.iter().zip(right).find(|(left, right)| left != right) {
        Some((left, right)) => rank(left).cmp(&rank(right)),
        None => left.len().cmp(&right.len()),
    }
}

/// What values and bare topics have in common, so that a value is found by a topic without a copy of it.
trait TopicKey {
    fn key(&self) -> &[u8];
}

impl PartialEq for dyn TopicKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for dyn TopicKey + '_ {}

impl PartialOrd for dyn TopicKey + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn TopicKey + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.key(), other.key())
    }
}

/// A bare topic.
struct Key<'a>(&'a str);

impl TopicKey for Key<'_> {
    fn key(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A copy of a topic that sorts like it as plain bytes. Its beginning stands in it, so that sorting many seldom looks at
/// memory elsewhere.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SortKey {
    /// Filled up with zeros, which no topic has.
    beginning: [u8; 32],
    rest: Box<[u8]>,
}

impl SortKey {
    fn of(topic: &[u8]) -> Self {
        // No text has a byte of 255.
        let rank = |byte: &u8| if *byte == b'/' { 1 } else { byte.saturating_add(1) };
        let mut beginning = [0; 32];
        for (place, byte) in beginning.iter_mut().zip(topic) {
            *place = rank(byte);
        }
        let rest = topic.get(beginning.len()..).unwrap_or_default().iter().map(rank).collect();
        Self { beginning, rest }
    }
}

/// A value, ordered by its topic.
struct Entry<V>(V);

impl<V: Retained> TopicKey for Entry<V> {
    fn key(&self) -> &[u8] {
        self.0.topic_bytes()
    }
}

impl<V: Retained> PartialEq for Entry<V> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<V: Retained> Eq for Entry<V> {}

impl<V: Retained> PartialOrd for Entry<V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<V: Retained> Ord for Entry<V> {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.key(), other.key())
    }
}

impl<'a, V: Retained + 'a> Borrow<dyn TopicKey + 'a> for Entry<V> {
    fn borrow(&self) -> &(dyn TopicKey + 'a) {
        self
    }
}

/// What to do after a value was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// Go on.
    Next,
    /// Stop here; this value was not taken, and what its topic holds then is offered again next time.
    Stop,
}

/// How far a walk came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// To the end.
    Done,
    /// To a value that was not taken.
    Stopped,
    /// As far as its steps allowed.
    Paused,
}

/// A walk over the values that match a filter: the filter, and how far it came.
#[derive(Clone, Debug)]
pub struct RetainedCursor {
    /// Empty for all values.
    filter: Box<str>,
    /// Everything that sorts below is behind the walk; `None` at its end.
    position: Option<String>,
}

impl RetainedCursor {
    /// A walk that has not begun.
    pub fn new(filter: TopicFilter<'_>) -> Self {
        Self { filter: filter.as_str().into(), position: Some(String::new()) }
    }

    /// A walk over all values, those of topics that begin with `$` included, that has not begun.
    pub fn of_all() -> Self {
        Self { filter: Box::default(), position: Some(String::new()) }
    }

    /// Whether this topic will not be offered any more: the walk has taken its value, or is beyond it.
    pub fn has_passed(&self, topic: &str) -> bool {
        self.position
            .as_ref()
            .is_none_or(|position| compare(topic.as_bytes(), position.as_bytes()) == Ordering::Less)
    }
}

/// What a topic means for a walk.
enum Relation<'f> {
    /// It matches.
    Match,
    /// It does not match; the next one may.
    Above,
    /// Below this text no other one matches: so many bytes of the topic, then a suffix.
    Jump(usize, &'f str),
    /// No later one matches.
    End,
}

/// Compares a topic with a filter that has wildcards, or with the empty one, which stands for all topics.
fn relate<'f>(filter: &'f str, topic: &str) -> Relation<'f> {
    if filter.is_empty() {
        return Relation::Match;
    }
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return Relation::Jump(0, BEHIND_DOLLAR); // [MQTT-4.7.2-1]
    }
    let topic = topic.as_bytes();
    // Where the level ends that the last `+` stands for: only another one there can still match.
    let mut last_plus_end = None;
    // Where the next level begins: in the filter, and in the topic, or one beyond its end if it has no more.
    let (mut filter_at, mut topic_at) = (0, 0);
    while filter_at <= filter.len() {
        let wanted_end = level_end(filter.as_bytes(), filter_at);
        let wanted = &filter.as_bytes()[filter_at..wanted_end];
        if wanted == b"#" {
            return Relation::Match; // Also where the topic has ended: `a/#` matches `a`.
        }
        if topic_at > topic.len() {
            return Relation::Above;
        }
        let end = level_end(topic, topic_at);
        if wanted == b"+" {
            last_plus_end = Some(end);
        } else {
            match topic[topic_at..end].cmp(wanted) {
                Ordering::Equal => {}
                Ordering::Less => return Relation::Jump(topic_at, literal_levels(filter, filter_at)),
                Ordering::Greater => return behind(last_plus_end),
            }
        }
        filter_at = wanted_end + 1;
        topic_at = end + 1;
    }
    if topic_at > topic.len() { Relation::Match } else { behind(last_plus_end) }
}

/// Where the level ends that begins at `begin`.
fn level_end(text: &[u8], begin: usize) -> usize {
    text[begin..].iter().position(|byte| *byte == b'/').map_or(text.len(), |length| begin + length)
}

/// The levels of a filter from this one to the next wildcard.
fn literal_levels(filter: &str, begin: usize) -> &str {
    let rest = &filter[begin..];
    match rest.find(['+', '#']) {
        Some(wildcard) => &rest[..wildcard - 1],
        None => rest,
    }
}

/// Nothing more matches below the level that ends here, nor anywhere if there is none.
fn behind<'f>(plus_end: Option<usize>) -> Relation<'f> {
    plus_end.map_or(Relation::End, |end| Relation::Jump(end, BEHIND_SUBTREE))
}

/// One value per topic.
pub struct RetainedTree<V> {
    entries: BTreeSet<Entry<V>>,
}

impl<V> Default for RetainedTree<V> {
    fn default() -> Self {
        Self { entries: BTreeSet::new() }
    }
}

impl<V> fmt::Debug for RetainedTree<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetainedTree").field("len", &self.entries.len()).finish()
    }
}

impl<V: Retained> RetainedTree<V> {
    /// How many topics have a value.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes many values, in no particular order, into a tree that has few: far sooner than by one `insert` after the
    /// other, of which each one looks at a score of topics anywhere in memory.
    ///
    /// # Errors
    ///
    /// A value whose topic has another one as well. The tree is of no use then.
    pub fn fill(&mut self, mut values: Vec<V>) -> Result<(), V> {
        values.sort_by_cached_key(|value| SortKey::of(value.topic_bytes()));
        let again = values.windows(2).position(|pair| pair[0].topic_bytes() == pair[1].topic_bytes());
        if let Some(first) = again {
            return Err(values.swap_remove(first + 1));
        }
        let few = std::mem::replace(&mut self.entries, values.into_iter().map(Entry).collect());
        few.into_iter().find_map(|Entry(value)| self.insert(value)).map_or(Ok(()), Err)
    }

    /// Sets the value of its topic and returns the one before.
    pub fn insert(&mut self, value: V) -> Option<V> {
        self.entries.replace(Entry(value)).map(|entry| entry.0)
    }

    /// Takes the value of a topic out.
    pub fn remove(&mut self, topic: &str) -> Option<V> {
        let key: &dyn TopicKey = &Key(topic);
        self.entries.take(key).map(|entry| entry.0)
    }

    /// The value of a topic.
    pub fn find(&self, topic: &str) -> Option<&V> {
        let key: &dyn TopicKey = &Key(topic);
        self.entries.get(key).map(|entry| &entry.0)
    }

    /// Goes on with a walk: offers matching values, in order, until one is not taken or no `steps` are left.
    /// A step is a look at one entry, matching or not, or a jump. With at least one step the walk gets on.
    pub fn visit(
        &self,
        cursor: &mut RetainedCursor,
        steps: &mut usize,
        mut offer: impl FnMut(&V) -> Visit,
    ) -> Progress {
        let RetainedCursor { filter, position: position_or_end } = cursor;
        let Some(position) = position_or_end else { return Progress::Done };
        if !filter.is_empty() && !filter.contains(['+', '#']) {
            if *steps == 0 {
                return Progress::Paused;
            }
            *steps -= 1;
            if self.find(filter).is_some_and(|value| offer(value) == Visit::Stop) {
                return Progress::Stopped;
            }
            *position_or_end = None;
            return Progress::Done;
        }
        let mut entries = self.entries_from(position);
        // While positive, `position` is the target of a jump, and entries below it are passed over one by one.
        let mut probes_left = 0;
        while let Some(Entry(value)) = entries.next() {
            let topic = value.topic();
            if *steps == 0 {
                if probes_left == 0 {
                    position.clear();
                    position.push_str(topic);
                }
                return Progress::Paused;
            }
            *steps -= 1;
            if probes_left > 0 && compare(topic.as_bytes(), position.as_bytes()) == Ordering::Less {
                probes_left -= 1;
                if probes_left == 0 {
                    if *steps == 0 {
                        return Progress::Paused;
                    }
                    *steps -= 1;
                    entries = self.entries_from(position);
                }
                continue;
            }
            probes_left = 0;
            match relate(filter, topic) {
                Relation::Match => {
                    if offer(value) == Visit::Stop {
                        position.clear();
                        position.push_str(topic);
                        return Progress::Stopped;
                    }
                }
                Relation::Above => {}
                Relation::Jump(kept, suffix) => {
                    position.clear();
                    position.push_str(&topic[..kept]);
                    position.push_str(suffix);
                    probes_left = PROBES;
                }
                Relation::End => break,
            }
        }
        *position_or_end = None;
        Progress::Done
    }

    fn entries_from(&self, position: &str) -> impl Iterator<Item = &Entry<V>> + use<'_, V> {
        let key: &dyn TopicKey = &Key(position);
        self.entries.range::<dyn TopicKey + '_, _>((Bound::Included(key), Bound::Unbounded))
    }
}

#[cfg(test)]
mod tests;
