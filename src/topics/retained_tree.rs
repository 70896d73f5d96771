//! One value per topic, in the order of topics, and walks over those that match a filter.
//!
//! The order is level by level: `/` sorts below every other byte, so that a topic and all topics below it stand
//! together. A walk jumps over stretches that cannot match. Its position is a topic and not a place in memory, so
//! values may come and go between two steps.
//!
//! Deliberately not here: what a value is, beyond its topic.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;

use super::name::TopicFilter;

/// A value that knows its topic, which must never change.
pub trait Retained {
    /// The topic name.
    fn topic(&self) -> &str;
}

/// Compares topics level by level.
fn compare(left: &str, right: &str) -> Ordering {
    // U+0000 is no character of a topic, so a slash may take its place in the order.
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    let (left, right) = (left.as_bytes(), right.as_bytes());
    match left.iter().zip(right).position(|(left, right)| left != right) {
        Some(at) => rank(left[at]).cmp(&rank(right[at])),
        None => left.len().cmp(&right.len()),
    }
}

/// What values and bare topics have in common, so that a value is found by a topic without a copy of it.
trait TopicKey {
    fn key(&self) -> &str;
}

struct Entry<V>(V);

struct Key<'a>(&'a str);

impl<V: Retained> TopicKey for Entry<V> {
    fn key(&self) -> &str {
        self.0.topic()
    }
}

impl TopicKey for Key<'_> {
    fn key(&self) -> &str {
        self.0
    }
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

/// One value per topic.
pub struct RetainedTree<V> {
    entries: BTreeSet<Entry<V>>,
}

impl<V> std::fmt::Debug for RetainedTree<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RetainedTree").field("entries", &self.entries.len()).finish()
    }
}

impl<V: Retained> Default for RetainedTree<V> {
    fn default() -> Self {
        Self { entries: BTreeSet::new() }
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

/// A walk over the values that match a filter.
#[derive(Clone, Debug)]
pub struct RetainedCursor {
    filter: Box<str>,
    /// Where to go on, this topic included; `None` at the end.
    position: Option<Box<str>>,
}

impl RetainedCursor {
    /// A walk that has not begun.
    pub fn new(filter: TopicFilter<'_>) -> Self {
        Self { filter: filter.as_str().into(), position: Some("".into()) }
    }

    /// Whether the walk is beyond this topic, or has taken its value.
    pub fn has_passed(&self, topic: &str) -> bool {
        self.position.as_ref().is_none_or(|position| compare(topic, position) == Ordering::Less)
    }
}

/// What a topic means for a walk.
#[derive(Debug, PartialEq, Eq)]
enum Relation {
    Match,
    /// It does not match; the next one may.
    Pass,
    /// The next one that may match is not before this one.
    Jump(String),
    /// No later one matches.
    End,
}

/// Compares a topic with a filter that has wildcards.
fn relate(filter: &str, topic: &str) -> Relation {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        // Behind all topics that begin with `$` [MQTT-4.7.2-1]: `%` is the next character.
        return Relation::Jump("%".to_owned());
    }
    // Where the level ends that the last `+` stands for: what comes next there lies behind all topics below it.
    let mut last_plus_end = None;
    let mut start = 0;
    for wanted in filter.split('/') {
        if wanted == "#" {
            return Relation::Match; // Also where the topic has ended: `a/#` matches `a`.
        }
        let Some(rest) = topic.get(start..) else {
            return Relation::Pass; // It is above those that match, which come next, if there are any.
        };
        let level = rest.split('/').next().unwrap_or(rest);
        let end = start + level.len();
        if wanted == "+" {
            last_plus_end = Some(end);
        } else {
            match compare(level, wanted) {
                Ordering::Equal => {}
                Ordering::Less => return Relation::Jump(format!("{}{wanted}", &topic[..start])),
                Ordering::Greater => return jump_behind(topic, last_plus_end),
            }
        }
        start = end + 1;
    }
    if start > topic.len() { Relation::Match } else { jump_behind(topic, last_plus_end) }
}

/// Behind all topics below the level that ends at `end`: U+0001 follows the slash in the order.
fn jump_behind(topic: &str, end: Option<usize>) -> Relation {
    match end {
        Some(end) => Relation::Jump(format!("{}\u{1}", &topic[..end])),
        None => Relation::End,
    }
}

impl<V: Retained + 'static> RetainedTree<V> {
    /// How many topics have a value.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets the value of its topic and returns the one before.
    pub fn insert(&mut self, value: V) -> Option<V> {
        self.entries.replace(Entry(value)).map(|entry| entry.0)
    }

    /// Takes the value of a topic out.
    pub fn remove(&mut self, topic: &str) -> Option<V> {
        self.entries.take::<dyn TopicKey + '_>(&Key(topic)).map(|entry| entry.0)
    }

    /// The value of a topic.
    pub fn find(&self, topic: &str) -> Option<&V> {
        self.entries.get::<dyn TopicKey + '_>(&Key(topic)).map(|entry| &entry.0)
    }

    /// Goes on with a walk: offers matching values in order until one is not taken or `steps_max` entries and jumps
    /// were needed.
    pub fn visit(
        &self,
        cursor: &mut RetainedCursor,
        steps_max: usize,
        mut offer: impl FnMut(&V) -> Visit,
    ) -> Progress {
        let filter = cursor.filter.clone();
        if !filter.contains(['+', '#']) {
            return self.visit_exact(cursor, offer);
        }
        let mut steps = 0;
        loop {
            let Some(from) = cursor.position.take() else { return Progress::Done };
            let from = Key(&from);
            let bounds = (Bound::Included(&from as &dyn TopicKey), Bound::Unbounded);
            let mut jump = None;
            for Entry(value) in self.entries.range::<dyn TopicKey + '_, _>(bounds) {
                let topic = value.topic();
                if steps == steps_max {
                    cursor.position = Some(topic.into());
                    return Progress::Paused;
                }
                steps += 1;
                match relate(&filter, topic) {
                    Relation::Match => match offer(value) {
                        Visit::Next => {}
                        Visit::Stop => {
                            cursor.position = Some(topic.into());
                            return Progress::Stopped;
                        }
                    },
                    Relation::Pass => {}
                    Relation::Jump(to) => {
                        jump = Some(to);
                        break;
                    }
                    Relation::End => break,
                }
            }
            cursor.position = jump.map(Into::into);
        }
    }

    fn visit_exact(&self, cursor: &mut RetainedCursor, mut offer: impl FnMut(&V) -> Visit) -> Progress {
        if cursor.position.is_some()
            && let Some(value) = self.find(&cursor.filter)
            && offer(value) == Visit::Stop
        {
            return Progress::Stopped;
        }
        cursor.position = None;
        Progress::Done
    }
}

#[cfg(test)]
mod tests;
