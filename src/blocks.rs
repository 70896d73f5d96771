//! A list that becomes long without moving what is in it.
//!
//! A `VecDeque` moves all its entries when it grows, and with a million of them that takes milliseconds. Here entries stand in
//! blocks: the first one is a `VecDeque` that grows as usual, and when it has the size of a block others follow. So a short
//! list is a `VecDeque` and a word, and nothing ever moves more than the entries of one block, or the heads of the blocks.
//!
//! Invariants: no block has more than `BLOCK_LEN` entries; none is empty but the first one of an empty list.

use std::collections::VecDeque;

/// Entries of a block: enough that making and freeing one costs next to nothing for each of them.
const BLOCK_LEN: usize = 512;

/// Entries in order.
#[derive(Debug)]
pub(crate) struct Blocks<T> {
    first: VecDeque<T>,
    /// Behind a pointer: most lists are short.
    others: Option<Box<Others<T>>>,
}

/// The blocks behind the first one.
#[derive(Debug)]
struct Others<T> {
    blocks: VecDeque<VecDeque<T>>,
    /// Their entries.
    len: usize,
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Self { first: VecDeque::new(), others: None }
    }
}

impl<T> Default for Others<T> {
    fn default() -> Self {
        Self { blocks: VecDeque::new(), len: 0 }
    }
}

impl<T> Blocks<T> {
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.others.as_ref().map_or(0, |others| others.len)
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// For how many entries the first block has room.
    pub(crate) fn first_capacity(&self) -> usize {
        self.first.capacity()
    }

    #[inline]
    pub(crate) fn push_back(&mut self, entry: T) {
        if self.others.is_none() && self.first.len() < BLOCK_LEN {
            self.first.push_back(entry);
        } else {
            self.push_behind_first(entry);
        }
    }

    #[inline(never)]
    fn push_behind_first(&mut self, entry: T) {
        let Others { blocks, len } = &mut **self.others.get_or_insert_default();
        *len += 1;
        match blocks.back_mut() {
            Some(last) if last.len() < BLOCK_LEN => last.push_back(entry),
            _ => {
                let mut block = VecDeque::with_capacity(BLOCK_LEN);
                block.push_back(entry);
                blocks.push_back(block);
            }
        }
    }

    #[inline]
    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let entry = self.first.pop_front()?;
        if self.first.is_empty() && self.others.is_some() {
            self.begin_next();
        }
        Some(entry)
    }

    /// The first block is empty, and the next one takes its place.
    #[inline(never)]
    fn begin_next(&mut self) {
        let Some(others) = &mut self.others else { return };
        self.first = others.blocks.pop_front().unwrap_or_default();
        others.len -= self.first.len();
        if others.blocks.is_empty() {
            self.others = None;
        }
    }

    pub(crate) fn entry_mut(&mut self, at: usize) -> Option<&mut T> {
        match at.checked_sub(self.first.len()) {
            None => self.first.get_mut(at),
            // All blocks between the first and the last one are full.
            Some(behind) => {
                self.others.as_mut()?.blocks.get_mut(behind / BLOCK_LEN)?.get_mut(behind % BLOCK_LEN)
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let others = self.others.iter().flat_map(|others| others.blocks.iter().flatten());
        self.first.iter().chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl<T> Blocks<T> {
        fn check_invariants(&self) {
            let others = || self.others.iter().flat_map(|others| &others.blocks);
            assert!(self.first.len() <= BLOCK_LEN && self.first.capacity() <= BLOCK_LEN);
            assert!(others().all(|block| (1..=BLOCK_LEN).contains(&block.len())));
            assert!(others().all(|block| block.capacity() == BLOCK_LEN), "a block never grows");
            assert!(self.others.as_ref().is_none_or(|others| !others.blocks.is_empty()));
            assert!(!self.first.is_empty() || self.others.is_none());
            assert_eq!(self.len(), self.first.len() + others().map(VecDeque::len).sum::<usize>());
        }
    }

    #[test]
    fn it_holds_what_a_plain_list_holds() {
        for seed in 1..=8_u64 {
            let mut random = seed;
            let mut next = |below: u64| {
                random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                (random >> 33) % below
            };
            let (mut list, mut plain) = (Blocks::default(), VecDeque::new());
            for number in 0..400_u64 {
                // In runs, so that it becomes as long as several blocks and empty again.
                let run = next(BLOCK_LEN as u64);
                match next(8) {
                    0..3 => (0..run).for_each(|step| {
                        list.push_back((number, step));
                        plain.push_back((number, step));
                    }),
                    3 => (0..=plain.len()).for_each(|at| assert_eq!(list.entry_mut(at), plain.get_mut(at))),
                    _ => (0..run).for_each(|_| assert_eq!(list.pop_front(), plain.pop_front())),
                }
                list.check_invariants();
                assert_eq!((list.len(), list.is_empty()), (plain.len(), plain.is_empty()));
                assert!(list.iter().eq(&plain));
            }
        }
    }

    #[test]
    fn a_growing_list_moves_no_more_than_a_block() {
        let mut list = Blocks::default();
        let places = |list: &Blocks<usize>| list.iter().map(std::ptr::from_ref).collect::<Vec<_>>();
        let mut before = Vec::new();
        for number in 0..20 * BLOCK_LEN {
            list.push_back(number);
            let after = places(&list);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            assert!(moved < BLOCK_LEN, "{moved} moved when number {number} came");
            before = after;
        }
        for number in 0..20 * BLOCK_LEN {
            assert_eq!(list.pop_front(), Some(number));
            let after = places(&list);
            assert_eq!(before[1..], after, "nothing moves when number {number} goes");
            before = after;
        }
    }

    #[test]
    fn a_short_list_takes_a_word_more_than_a_plain_one() {
        assert_eq!(size_of::<Blocks<u64>>(), size_of::<VecDeque<u64>>() + size_of::<usize>());
        let (mut list, mut plain) = (Blocks::default(), VecDeque::new());
        for number in 0..BLOCK_LEN {
            list.push_back(number);
            plain.push_back(number);
            assert_eq!(list.first_capacity(), plain.capacity());
            assert!(list.others.is_none());
        }
    }
}
