//! A list that is empty for most of those who have one.
//!
//! A session has four lists, and most sessions have nothing in any of them. So an empty list takes one word, and a
//! `VecDeque`, with its four, is made with the first entry. Then it stays, so that a list which fills and empties with
//! every message does not allocate each time; one that was long gives its memory back.

use std::collections::VecDeque;
use std::ops::Deref;

/// A list that once had room for more than this gives its memory back when it is empty.
pub(super) const KEPT_CAPACITY: usize = 64;

/// Entries in order. Reads like a `VecDeque`.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "four words fewer where there is no list")]
pub(super) struct ThinList<T>(Option<Box<VecDeque<T>>>);

impl<T> Default for ThinList<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: 'static> ThinList<T> {
    const EMPTY: &'static VecDeque<T> = &VecDeque::new();

    fn made(&mut self) -> &mut VecDeque<T> {
        self.0.get_or_insert_default()
    }

    // Into `send`, which runs for every delivery.
    #[inline(always)]
    pub(super) fn push_back(&mut self, entry: T) {
        self.made().push_back(entry);
    }

    pub(super) fn pop_back(&mut self) -> Option<T> {
        let entry = self.0.as_mut()?.pop_back();
        self.shrink();
        entry
    }

    pub(super) fn insert(&mut self, at: usize, entry: T) {
        self.made().insert(at, entry);
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<T> {
        let list = self.0.as_mut()?;
        // Taking the first one moves nothing, and it nearly always is the first.
        let entry = if at == 0 { list.pop_front() } else { list.remove(at) };
        self.shrink();
        entry
    }

    /// Removes an entry and puts the last one in its place.
    pub(super) fn swap_remove(&mut self, at: usize) -> Option<T> {
        let entry = self.0.as_mut()?.swap_remove_back(at);
        self.shrink();
        entry
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().flat_map(|list| list.iter_mut())
    }

    pub(super) fn entry_mut(&mut self, at: usize) -> Option<&mut T> {
        self.0.as_mut()?.get_mut(at)
    }

    /// Takes everything out.
    pub(super) fn take(&mut self) -> VecDeque<T> {
        self.0.take().map_or_else(VecDeque::new, |list| *list)
    }

    #[inline]
    fn shrink(&mut self) {
        if self.0.as_ref().is_some_and(|list| list.is_empty() && list.capacity() > KEPT_CAPACITY) {
            self.0 = None;
        }
    }
}

impl<T: 'static> Deref for ThinList<T> {
    type Target = VecDeque<T>;

    #[inline]
    fn deref(&self) -> &VecDeque<T> {
        self.0.as_deref().unwrap_or(Self::EMPTY)
    }
}

impl<T> From<VecDeque<T>> for ThinList<T> {
    fn from(list: VecDeque<T>) -> Self {
        Self((!list.is_empty()).then(|| Box::new(list)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_takes_a_word_and_a_long_one_gives_its_memory_back() {
        assert_eq!(size_of::<ThinList<String>>(), size_of::<usize>());
        let mut list = ThinList::default();
        assert_eq!((list.len(), list.remove(0)), (0, None));
        for round in [1, KEPT_CAPACITY, 10 * KEPT_CAPACITY] {
            for number in 0..round {
                list.push_back(number.to_string());
            }
            for number in 0..round {
                assert_eq!(list.remove(0), Some(number.to_string()));
            }
            assert_eq!(list.0.is_some(), round <= KEPT_CAPACITY);
        }
    }
}
