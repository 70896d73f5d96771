//! Which packet identifier the next delivery of a session gets.
//!
//! Identifiers are handed out in a circle. Invariant: the next `free_run` identifiers are in use by nobody, so the
//! search among those in flight happens once per run and not once per message.
//!
//! Deliberately not here: the set of identifiers in use, which is the in-flight list itself.

use crate::codec::PacketId;

/// The allotter of one session's outgoing packet identifiers.
#[derive(Clone, Copy, Debug)]
pub(super) struct PacketIds {
    next: PacketId,
    free_run: u16,
}

impl Default for PacketIds {
    fn default() -> Self {
        Self { next: PacketId::FIRST, free_run: u16::MAX }
    }
}

impl PacketIds {
    /// One that knows nothing of the identifiers in use yet.
    pub(super) const fn resumed() -> Self {
        Self { next: PacketId::FIRST, free_run: 0 }
    }

    /// An identifier that is not among those in use, or `None` when all 65,535 are [MQTT-2.3.1-4].
    pub(super) fn allot(&mut self, in_use: impl Iterator<Item = PacketId> + Clone) -> Option<PacketId> {
        if self.free_run == 0 {
            self.find_run(in_use)?;
        }
        let id = self.next;
        self.next = id.next();
        self.free_run -= 1;
        Some(id)
    }

    /// Takes back the identifier that was allotted last, so that it is the next one again.
    pub(super) fn give_back(&mut self, id: PacketId) {
        debug_assert_eq!(id.next(), self.next);
        self.next = id;
        self.free_run += 1;
    }

    /// Moves `next` to the first free identifier at or after it and measures the run that begins there.
    fn find_run(&mut self, in_use: impl Iterator<Item = PacketId> + Clone) -> Option<()> {
        if let Some(distance) = nearest(self.next, in_use.clone()) {
            self.free_run = distance;
            if distance == 0 {
                self.skip_used(in_use)?;
            }
        } else {
            self.free_run = u16::MAX;
        }
        Some(())
    }

    /// `next` itself is in use: a bitmap finds the end of the used stretch in one pass, however long it is.
    fn skip_used(&mut self, in_use: impl Iterator<Item = PacketId> + Clone) -> Option<()> {
        let mut used = vec![0_u64; 1024];
        let mut count = 0;
        for id in in_use.clone() {
            let number = usize::from(id.number());
            count += 1;
            used[number / 64] |= 1 << (number % 64);
        }
        if count >= usize::from(u16::MAX) {
            return None;
        }
        while used[usize::from(self.next.number()) / 64] >> (self.next.number() % 64) & 1 == 1 {
            self.next = self.next.next();
        }
        self.free_run = nearest(self.next, in_use).unwrap_or(u16::MAX);
        Some(())
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
    use std::collections::BTreeSet;

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
        used.retain(|id| id.number() != 40_000);
        assert_eq!(ids.allot(used.iter().copied()).map(PacketId::number), Some(40_000));
    }
}
