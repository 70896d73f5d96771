//! Bytes that the core and its store have together, none of which is copied.
//!
//! Deliberately not here: how the memory is given back (see `broker`), which is for whoever has it last.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Part of a block of memory, which may have several owners, in several threads.
#[derive(Clone, Default)]
pub struct SharedBytes {
    memory: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The bytes between each of these places and the next one, and behind the last.
    ///
    /// # Panics
    ///
    /// If there are fewer bytes than that, or a place stands before the one before it.
    pub fn split<const PARTS: usize>(memory: Vec<u8>, places: [usize; PARTS]) -> [Self; PARTS] {
        assert!(places.is_sorted() && places.iter().all(|place| *place <= memory.len()), "places in it");
        let memory = Arc::new(memory);
        let end = |part: usize| places.get(part + 1).copied().unwrap_or(memory.len());
        std::array::from_fn(|part| Self { memory: memory.clone(), range: places[part]..end(part) })
    }

    /// All of these bytes.
    pub fn new(memory: Vec<u8>) -> Self {
        let range = 0..memory.len();
        Self { memory: Arc::new(memory), range }
    }

    /// The memory, if nobody else has it.
    pub fn into_memory(self) -> Option<Vec<u8>> {
        Arc::into_inner(self.memory)
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.range.clone()]
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SharedBytes {}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBytes").field("length", &self.len()).finish()
    }
}
