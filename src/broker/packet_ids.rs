//! Which packet identifier the next delivery of a session gets.
//!
//! Identifiers are handed out in a circle. Most sessions have few in flight, so the allotter remembers only how far the
//! next one in use is away, and searches the in-flight lists once per run of free ones and not once per message. Where a
//! search would be long, because many are in flight, it keeps a set of those in use until none is.
//!
//! Invariants: without a set, the next `free_run` identifiers are in use by nobody; a set holds exactly those in use.
//!
//! Deliberately not here: the in-flight lists themselves.

use crate::codec::PacketId;

/// With more identifiers in flight than this they are kept as a set.
const SEARCHED_MAX: usize = 256;

/// The allotter of one session's outgoing packet identifiers.
#[derive(Debug)]
pub(super) struct PacketIds {
    next: PacketId,
    free_run: u16,
    used: Option<Box<Set>>,
}

impl Default for PacketIds {
    fn default() -> Self {
        Self { next: PacketId::FIRST, free_run: u16::MAX, used: None }
    }
}

/// Identifiers by number.
#[derive(Debug)]
struct Set {
    words: [u64; 1024],
    count: u16,
}

impl Set {
    fn of(packet_ids: impl Iterator<Item = PacketId>) -> Self {
        let mut set = Self { words: [0; 1024], count: 0 };
        packet_ids.for_each(|id| set.insert(id));
        set
    }

    fn place(id: PacketId) -> (usize, u64) {
        (usize::from(id.number() / 64), 1 << (id.number() % 64))
    }

    fn insert(&mut self, id: PacketId) {
        let (word, bit) = Self::place(id);
        self.words[word] |= bit;
        self.count += 1;
    }

    fn remove(&mut self, id: PacketId) {
        let (word, bit) = Self::place(id);
        self.words[word] &= !bit;
        self.count -= 1;
    }

    /// The first number at or after this one that is in nobody's hands.
    fn free_from(&self, number: u16) -> Option<PacketId> {
        let first = usize::from(number / 64);
        // The bits before it count as used, and so does that of 0, which is no identifier.
        let before = (1 << (number % 64)) - 1;
        self.words[first..].iter().enumerate().find_map(|(at, word)| {
            let word = word | if at == 0 { before } else { 0 } | u64::from(first + at == 0);
            let free = word.trailing_ones();
            if free < u64::BITS { PacketId::new(((first + at) * 64) as u16 + free as u16) } else { None }
        })
    }
}

impl PacketIds {
    /// One that knows nothing of the identifiers in use yet.
    pub(super) const fn resumed() -> Self {
        Self { next: PacketId::FIRST, free_run: 0, used: None }
    }

    /// An identifier that is not among those in use, or `None` when all 65,535 are [MQTT-2.3.1-4].
    pub(super) fn allot(&mut self, in_use: impl Iterator<Item = PacketId> + Clone) -> Option<PacketId> {
        if self.free_run == 0 && self.used.is_none() {
            self.look_ahead(in_use);
        }
        if let Some(used) = &mut self.used {
            let id = used.free_from(self.next.number()).or_else(|| used.free_from(0))?;
            used.insert(id);
            self.next = id.next();
            return Some(id);
        }
        let id = self.next;
        self.next = id.next();
        self.free_run -= 1;
        Some(id)
    }

    /// An identifier is in use no more.
    #[inline]
    pub(super) fn free(&mut self, id: PacketId) {
        if let Some(used) = &mut self.used {
            used.remove(id);
            if used.count == 0 {
                (self.used, self.free_run) = (None, u16::MAX);
            }
        }
    }

    /// Takes back the identifier that was allotted last, so that it is the next one again.
    pub(super) fn give_back(&mut self, id: PacketId) {
        debug_assert_eq!(id.next(), self.next);
        self.next = id;
        if self.used.is_some() {
            self.free(id);
        } else {
            self.free_run += 1;
        }
    }

    /// Moves `next` to the first free identifier at or after it and measures the run that begins there, or begins a set.
    fn look_ahead(&mut self, in_use: impl Iterator<Item = PacketId> + Clone) {
        if in_use.clone().nth(SEARCHED_MAX).is_some() {
            self.used = Some(Box::new(Set::of(in_use)));
            return;
        }
        loop {
            self.free_run = nearest(self.next, in_use.clone()).unwrap_or(u16::MAX);
            if self.free_run > 0 {
                return;
            }
            self.next = self.next.next();
        }
    }

    /// Asserts that the set, if there is one, holds these and no others.
    pub(super) fn check_invariants(&self, in_use: impl Iterator<Item = PacketId>) {
        if let Some(used) = &self.used {
            let expected = Set::of(in_use);
            assert!(
                used.count == expected.count && used.words == expected.words,
                "the set of identifiers in use"
            );
        }
    }
}

/// How many steps lie between `from` and the nearest used identifier at or after it on the circle.
fn nearest(from: PacketId, in_use: impl Iterator<Item = PacketId>) -> Option<u16> {
    in_use
        .map(|id| match id.number().checked_sub(from.number()) {
            Some(ahead) => ahead,
            // The circle has no zero: going round costs one step less.
            None => id.number().wrapping_sub(from.number()) - 1,
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, VecDeque};

    #[test]
    fn an_identifier_in_use_is_skipped_on_the_wrap() {
        // [MQTT-2.3.1-4]
        let mut ids = PacketIds::default();
        let stuck: Vec<PacketId> = [7, 8, 9, 65_535].into_iter().filter_map(PacketId::new).collect();
        let mut seen = BTreeSet::new();
        for _ in 0..200_000 {
            // The stuck ones came from this allotter's first round.
            let id = ids.allot(stuck.iter().copied()).unwrap();
            seen.insert(id);
        }
        // The first round may hand out what becomes stuck; from the second on they never occur.
        let mut later = BTreeSet::new();
        for _ in 0..70_000 {
            later.insert(ids.allot(stuck.iter().copied()).unwrap());
        }
        assert_eq!(later.len(), 65_535 - stuck.len());
        assert!(stuck.iter().all(|id| !later.contains(id)));
    }

    #[test]
    fn all_identifiers_can_be_in_use() {
        let mut ids = PacketIds::default();
        let mut used = Vec::new();
        for number in 1..=65_535_u16 {
            let id = ids.allot(used.iter().copied()).unwrap();
            assert_eq!(id.number(), number);
            used.push(id);
        }
        assert_eq!(ids.allot(used.iter().copied()), None);
        assert_eq!(ids.allot(used.iter().copied()), None);
        ids.check_invariants(used.iter().copied());
        used.retain(|id| id.number() != 40_000);
        ids.free(PacketId::new(40_000).unwrap());
        assert_eq!(ids.allot(used.iter().copied()).map(PacketId::number), Some(40_000));
    }

    #[test]
    fn a_crowd_is_remembered_until_it_has_gone() {
        let mut ids = PacketIds::default();
        let mut used = VecDeque::new();
        // Three rounds of the circle, with nearly all in use, and answers out of order.
        for step in 0..200_000_usize {
            if used.len() == 65_000 {
                let id = used.remove(step * 7_919 % 64).unwrap();
                ids.free(id);
            }
            let id = ids.allot(used.iter().copied()).unwrap();
            used.push_back(id);
            if step % 20_000 == 0 {
                ids.check_invariants(used.iter().copied());
                assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), used.len());
            }
        }
        assert!(ids.used.is_some());
        used.iter().for_each(|id| ids.free(*id));
        assert!(ids.used.is_none());
        let last = *used.back().unwrap();
        assert_eq!(ids.allot(std::iter::empty()), Some(last.next()));
        ids.give_back(last.next());
        assert_eq!(ids.allot(std::iter::empty()), Some(last.next()));
    }
}
