//! A hash table that may become large without any call that takes long.
//!
//! A hash table grows by moving all that it holds, and with a million entries that takes milliseconds. So a table that is
//! not small any more is divided, once and for all, into parts by bits of the hash. Each part is a table and grows at its own
//! time, which moves no more than about its share of the entries. While the table is small it is a single one, and neither
//! takes more memory nor costs more to ask.
//!
//! Invariants: an entry is in the part that its hash names; once there are parts, nothing is in the whole. Memory is
//! never given back: what was many may become many again.
//!
//! Deliberately not here: hashing (see `hash`); the owner knows the hash of each entry.

use hashbrown::HashTable;

/// A power of two. With a million entries a part has two thousand of them, which may have to be fetched from far memory to be
/// hashed again when it grows.
const PARTS: usize = 512;

/// So many entries are divided: the whole table would have to grow now as well, and each part begins with a table of 16 places,
/// of which 14 can be taken.
const WHOLE_MAX: usize = PARTS * 14;

/// Where the bits begin that name a part. The table of a part takes the lowest bits and the seven highest ones.
const PART_SHIFT: u32 = 32;

/// Entries by hash.
#[derive(Debug)]
pub(crate) struct DividedTable<T> {
    whole: HashTable<T>,
    parts: Option<Box<[HashTable<T>; PARTS]>>,
    len: usize,
}

#[inline]
const fn part_of(hash: u64) -> usize {
    (hash >> PART_SHIFT) as usize % PARTS
}

impl<T> DividedTable<T> {
    pub(crate) const fn new() -> Self {
        Self { whole: HashTable::new(), parts: None, len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn table(&self, hash: u64) -> &HashTable<T> {
        match &self.parts {
            None => &self.whole,
            Some(parts) => &parts[part_of(hash)],
        }
    }

    #[inline]
    fn table_mut(&mut self, hash: u64) -> &mut HashTable<T> {
        match &mut self.parts {
            None => &mut self.whole,
            Some(parts) => &mut parts[part_of(hash)],
        }
    }

    /// The entry with this hash that is the right one.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_it: impl FnMut(&T) -> bool) -> Option<&T> {
        self.table(hash).find(hash, is_it)
    }

    #[inline]
    pub(crate) fn find_mut(&mut self, hash: u64, is_it: impl FnMut(&T) -> bool) -> Option<&mut T> {
        self.table_mut(hash).find_mut(hash, is_it)
    }

    /// All entries that may have this hash.
    #[inline]
    pub(crate) fn iter_hash(&self, hash: u64) -> impl Iterator<Item = &T> {
        self.table(hash).iter_hash(hash)
    }

    /// All entries, in no order that anything may depend on.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.whole.iter().chain(self.parts.iter().flat_map(|parts| parts.iter().flatten()))
    }

    /// Adds an entry that is not there yet. `hash_of` gives the hash of entries that have to move.
    #[inline]
    pub(crate) fn insert_unique(&mut self, hash: u64, entry: T, hash_of: impl Fn(&T) -> u64) {
        if self.len == WHOLE_MAX && self.parts.is_none() {
            self.divide(&hash_of);
        }
        self.table_mut(hash).insert_unique(hash, entry, hash_of);
        self.len += 1;
    }

    /// Takes out the entry with this hash that is the right one.
    #[inline]
    pub(crate) fn remove(&mut self, hash: u64, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let found = self.table_mut(hash).find_entry(hash, is_it).ok()?;
        let (entry, _) = found.remove();
        self.len -= 1;
        Some(entry)
    }

    #[cold]
    #[inline(never)]
    fn divide(&mut self, hash_of: impl Fn(&T) -> u64) {
        let mut parts = Box::new(std::array::from_fn(|_| HashTable::with_capacity(WHOLE_MAX / PARTS)));
        for entry in std::mem::take(&mut self.whole) {
            let hash = hash_of(&entry);
            let part: &mut HashTable<T> = &mut parts[part_of(hash)];
            part.insert_unique(hash, entry, &hash_of);
        }
        self.parts = Some(parts);
    }
}

#[cfg(test)]
mod tests;
