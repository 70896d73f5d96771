//! The shapes of filters with wildcards: which of their levels are wildcards and which are not.
//!
//! There may be a million filters, but there are only a few shapes of them. A shape and a topic together say exactly
//! which filter of this shape would match: the topic with wildcards put in. So a topic is looked up once for each shape
//! that fits it, however many filters there are, and filters need no memory beyond their text.
//!
//! Shapes that begin alike share their beginnings: they stand in a tree with two branches a node, one for a level that
//! is a text and one for `+`. A search follows one branch after the other to its end. It keeps the hash of the filter so far
//! with each of those that it has yet to follow, so that a level is hashed once and a look-up is ready where a shape ends.
//!
//! Whoever mixes texts and `+` in every way there is makes a shape of each mix, and would make every deep topic follow all
//! of them. So at every fourth level a search goes on only with those branches with which some filter begins, texts and all.
//! Between two such levels a branch becomes 16 at most, which bounds what a topic costs: a constant for each beginning of
//! filters, of four levels or a multiple, that it matches.
//!
//! Those may still be very many, so a search can be broken off and go on later, whatever has changed meanwhile. It finds all
//! filters that are there from its beginning to its end: they keep their nodes. Those that were made since are not followed, or
//! somebody who makes nodes ahead of it would keep it going.
//!
//! Invariants: a node exists while a filter passes through it, and a beginning while a filter goes on from it. The order
//! of candidates depends on shapes alone.
//!
//! Deliberately not here: the filters themselves (see the parent module).

use crate::divided_table::DividedTable;
use crate::hash::{HashSeed, hash_bytes};
use crate::topics::name::TopicName;

use super::bits::Bits;
use super::pool::{NONE, Pool};
use super::{shorten, spread};

const ROOT: u32 = 0;

/// What stands for `+` and `#` in the hash of a filter, where a text has its hash: any two numbers.
const PLUS: u64 = 0x9E6C_63D0_676A_9A99;
const MULTI: u64 = 0xE712_3F3C_9D7B_A1E5;

/// Levels between those at which a search asks whether any filter begins with the branch.
const STRIDE: u32 = 4;

/// The beginning of a shape, and what ends there.
#[derive(Debug)]
struct Node {
    /// One level more, and it is a text.
    text: u32,
    /// One level more, and it is `+`.
    plus: u32,
    /// Filters that begin with this.
    passing: u32,
    /// Filters that end here.
    ending: u32,
    /// Filters that end here but for a `#`.
    ending_in_multi: u32,
}

const EMPTY: Node = Node { text: NONE, plus: NONE, passing: 0, ending: 0, ending_in_multi: 0 };

/// So many filters have a beginning with this hash and more levels after it. Where two beginnings share a hash, a search
/// follows both, and nothing else happens.
#[derive(Debug)]
struct Beginning {
    hash: u32,
    filters: u32,
}

/// A node that a search has yet to come to, how many levels stand before it, and the hash of those.
#[derive(Clone, Copy, Debug)]
struct Branch {
    node: u32,
    depth: u32,
    path: u64,
}

/// How far the filters of a topic have been searched for.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// What is still to be followed, the next one last.
    branches: Vec<Branch>,
    /// The hashes of the levels of the topic to which some branch has come so far.
    levels: Vec<u64>,
    /// Where the level behind them begins; `None` behind the last one.
    next_level: Option<usize>,
    /// The nodes that were made since it was broken off first, if it was. What is out of bounds was made then too.
    made_since: Option<Bits>,
}

impl Search {
    /// The hash of a level of the topic; a branch comes to one after the other.
    #[inline]
    fn level(&mut self, seed: &HashSeed, topic: &[u8], depth: usize) -> Option<u64> {
        if let Some(level) = self.levels.get(depth) {
            return Some(*level);
        }
        let rest = &topic[self.next_level?..];
        let length = rest.iter().position(|byte| *byte == b'/');
        self.next_level = length.map(|length| topic.len() - rest.len() + length + 1);
        let level = hash_bytes(seed, &rest[..length.unwrap_or(rest.len())]);
        self.levels.push(level);
        Some(level)
    }

    /// A node was made.
    pub(super) fn node_comes(&mut self, node: u32) {
        if let Some(made_since) = &mut self.made_since {
            made_since.set(node, true);
        }
    }

    #[inline]
    fn may_follow(&self, node: u32) -> bool {
        self.made_since.as_ref().is_none_or(|made_since| made_since.get(node) == Some(false))
    }

    /// Whether there is nothing left to be followed.
    pub(super) const fn is_done(&self) -> bool {
        self.branches.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct Shapes {
    nodes: Pool<Node>,
    beginnings: DividedTable<Beginning>,
}

fn levels(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'/')
}

/// The hash of a path from that of its beginning and that of its last level.
#[inline]
const fn join(path: u64, level: u64) -> u64 {
    // Multiply and fold. Both numbers come from the seed, so nobody can choose texts that meet.
    let product = (path ^ level) as u128 * 0xD6E8_FEB8_6659_FD93_u128;
    product as u64 ^ (product >> u64::BITS) as u64
}

fn root_hash(seed: &HashSeed) -> u64 {
    hash_bytes(seed, b"")
}

/// The hashes of the beginnings of a filter, each one level longer than the one before.
fn paths(seed: &HashSeed, filter: &[u8]) -> impl Iterator<Item = u64> {
    levels(filter).scan(root_hash(seed), |path, level| {
        let level = match level {
            b"+" => PLUS,
            b"#" => MULTI,
            text => hash_bytes(seed, text),
        };
        *path = join(*path, level);
        Some(*path)
    })
}

/// The hash of a filter with wildcards: the one that a topic it matches arrives at.
pub(super) fn hash_with_wildcards(seed: &HashSeed, filter: &[u8]) -> u64 {
    paths(seed, filter).last().expect("a filter has a level")
}

/// The beginnings of a filter at which a search asks for it: those with more levels after them, other than a lone `#`.
fn beginnings(seed: &HashSeed, filter: &[u8]) -> impl Iterator<Item = u32> {
    let filter = filter.strip_suffix(b"/#").unwrap_or(filter);
    let last = levels(filter).count();
    (1..last)
        .zip(paths(seed, filter))
        .filter(|(count, _)| count % STRIDE as usize == 0)
        .map(|(_, path)| shorten(path))
}

#[inline]
fn is_beginning(beginnings: &DividedTable<Beginning>, path: u64) -> bool {
    let hash = shorten(path);
    beginnings.find(spread(hash), |beginning| beginning.hash == hash).is_some()
}

impl Shapes {
    pub(super) fn new() -> Self {
        let mut nodes = Pool::new();
        assert_eq!(nodes.insert(EMPTY), ROOT, "an empty pool begins at 0");
        Self { nodes, beginnings: DividedTable::new() }
    }

    /// Counts the shape of a filter in. Calls back with each node that is made for it.
    pub(super) fn insert(&mut self, seed: &HashSeed, filter: &[u8], mut made: impl FnMut(u32)) {
        for hash in beginnings(seed, filter) {
            let is_it = |beginning: &Beginning| beginning.hash == hash;
            match self.beginnings.find_mut(spread(hash), is_it) {
                Some(beginning) => beginning.filters += 1,
                None => {
                    self.beginnings.insert_unique(spread(hash), Beginning { hash, filters: 1 }, |beginning| {
                        spread(beginning.hash)
                    })
                }
            }
        }
        let mut at = ROOT;
        self.nodes[at].passing += 1;
        for level in levels(filter) {
            let node = &self.nodes[at];
            let (next, is_plus) = match level {
                b"#" => {
                    self.nodes[at].ending_in_multi += 1;
                    return;
                }
                b"+" => (node.plus, true),
                _ => (node.text, false),
            };
            let next = if next == NONE {
                let next = self.nodes.insert(EMPTY);
                made(next);
                let node = &mut self.nodes[at];
                *(if is_plus { &mut node.plus } else { &mut node.text }) = next;
                next
            } else {
                next
            };
            at = next;
            self.nodes[at].passing += 1;
        }
        self.nodes[at].ending += 1;
    }

    /// Counts the shape of a filter out.
    pub(super) fn remove(&mut self, seed: &HashSeed, filter: &[u8]) {
        for hash in beginnings(seed, filter) {
            let is_it = |beginning: &Beginning| beginning.hash == hash;
            let beginning = self.beginnings.find_mut(spread(hash), is_it).expect("it was counted in");
            beginning.filters -= 1;
            if beginning.filters == 0 {
                self.beginnings.remove(spread(hash), is_it);
            }
        }
        let mut at = ROOT;
        for level in levels(filter) {
            let node = &mut self.nodes[at];
            if level == b"#" {
                node.ending_in_multi -= 1;
                self.leave(at);
                return;
            }
            let next = if level == b"+" { node.plus } else { node.text };
            if self.nodes[next].passing == 1 {
                let node = &mut self.nodes[at];
                *(if level == b"+" { &mut node.plus } else { &mut node.text }) = NONE;
            }
            self.leave(at);
            at = next;
        }
        self.nodes[at].ending -= 1;
        self.leave(at);
    }

    fn leave(&mut self, at: u32) {
        let node = &mut self.nodes[at];
        node.passing -= 1;
        if node.passing == 0 && at != ROOT {
            self.nodes.remove(at);
        }
    }

    /// Begins a search anew, with the memory of an earlier one.
    #[inline]
    pub(super) fn begin(&self, seed: &HashSeed, search: &mut Search) {
        search.branches.clear();
        if self.nodes[ROOT].passing > 0 {
            search.branches.push(Branch { node: ROOT, depth: 0, path: root_hash(seed) });
            search.levels.clear();
            search.next_level = Some(0);
        }
    }

    /// Breaks a search off: from now on it follows what is there now.
    pub(super) fn break_off(&self, search: &mut Search) {
        search.made_since = Some(Bits::new(self.nodes.places()));
    }

    /// Goes on with a search for this topic by so many branches at most. Calls back with the hash of each filter with wildcards
    /// that would match, of those shapes that there are. How many branches it was.
    pub(super) fn follow(
        &self,
        seed: &HashSeed,
        topic: TopicName<'_>,
        search: &mut Search,
        at_most: usize,
        mut candidate: impl FnMut(u32),
    ) -> usize {
        let was_broken_off = search.made_since.is_some();
        let mut followed = 0;
        let Some(mut branch) = search.branches.pop() else { return 0 };
        while followed < at_most {
            followed += 1;
            let may_follow = !was_broken_off || search.may_follow(branch.node);
            let longer =
                if may_follow { self.follow_one(seed, topic, search, branch, &mut candidate) } else { None };
            let Some(next) = longer.or_else(|| search.branches.pop()) else { return followed };
            branch = next;
        }
        search.branches.push(branch);
        followed
    }

    /// Leaves the branch with one wildcard more to be followed later, and returns that with one text more.
    #[inline(always)]
    fn follow_one(
        &self,
        seed: &HashSeed,
        topic: TopicName<'_>,
        search: &mut Search,
        Branch { node, depth, path }: Branch,
        candidate: &mut impl FnMut(u32),
    ) -> Option<Branch> {
        let node = self.nodes.find(node)?;
        // Wildcards at the first level do not match topics that begin with `$` [MQTT-4.7.2-1].
        let wildcards = depth > 0 || !topic.is_dollar();
        if wildcards && node.ending_in_multi > 0 {
            candidate(shorten(join(path, MULTI))); // `a/#` matches `a` too.
        }
        let Some(level) = search.level(seed, topic.as_str().as_bytes(), depth as usize) else {
            if node.ending > 0 {
                candidate(shorten(path));
            }
            return None;
        };
        let asks = depth > 0 && depth.is_multiple_of(STRIDE);
        if asks && !is_beginning(&self.beginnings, path) {
            return None;
        }
        let depth = depth + 1;
        if wildcards && node.plus != NONE {
            search.branches.push(Branch { node: node.plus, depth, path: join(path, PLUS) });
        }
        (node.text != NONE).then(|| Branch { node: node.text, depth, path: join(path, level) })
    }

    /// Asserts that these filters and no others are counted.
    pub(super) fn check_invariants<'f>(&self, seed: &HashSeed, filters: impl Iterator<Item = &'f [u8]>) {
        let mut counted = Self::new();
        filters.for_each(|filter| counted.insert(seed, filter, |_| ()));
        assert_eq!(self.beginnings.len(), counted.beginnings.len());
        for beginning in self.beginnings.iter() {
            let found = counted.beginnings.find(spread(beginning.hash), |other| other.hash == beginning.hash);
            assert_eq!(found.map(|found| found.filters), Some(beginning.filters));
        }
        assert_eq!(self.nodes.len(), counted.nodes.len());
        let mut pairs = vec![(ROOT, ROOT)];
        while let Some((left, right)) = pairs.pop() {
            let (left, right) = (&self.nodes[left], &counted.nodes[right]);
            assert_eq!(left.passing, right.passing);
            assert_eq!((left.ending, left.ending_in_multi), (right.ending, right.ending_in_multi));
            for (left, right) in [(left.text, right.text), (left.plus, right.plus)] {
                assert_eq!(left == NONE, right == NONE);
                if left != NONE {
                    pairs.push((left, right));
                }
            }
        }
    }
}
