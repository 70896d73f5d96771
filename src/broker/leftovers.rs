//! Memory of many megabytes that nobody needs any more, on its way back to the system.
//!
//! The system takes about 0.05 ms for a mebibyte, and a packet may have 256 of them: it is given back a piece in each turn.
//! That relies on an allocator that makes a large block smaller where it is, as those of Linux do.
//!
//! Deliberately not here: what has such memory.

use std::cell::Cell;

/// So much goes in one turn.
const PIECE_BYTES: usize = 1 << 20;

/// Blocks that are given back little by little.
#[derive(Default)]
pub(super) struct Leftovers {
    blocks: Cell<Vec<Vec<u8>>>,
    count: Cell<usize>,
}

impl Leftovers {
    /// Takes a block that nobody needs any more. A small one is freed at once.
    pub(super) fn leave(&self, block: Vec<u8>) {
        if block.capacity() > PIECE_BYTES {
            self.change(|blocks| blocks.push(block));
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.count.get()
    }

    /// Gives a piece back.
    #[cold]
    pub(super) fn give_back(&self) {
        self.change(|blocks| {
            let Some(block) = blocks.last_mut() else { return };
            let length = block.capacity().saturating_sub(PIECE_BYTES);
            block.truncate(length);
            block.shrink_to(length);
            if block.capacity() <= PIECE_BYTES {
                blocks.pop();
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
        let mut blocks = self.blocks.take();
        change(&mut blocks);
        self.count.set(blocks.len());
        self.blocks.set(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_block_goes_a_piece_at_a_time_and_a_small_one_at_once() {
        let leftovers = Leftovers::default();
        leftovers.leave(Vec::with_capacity(PIECE_BYTES));
        assert_eq!(leftovers.len(), 0);
        // However much of it was used.
        for length in [0, 5 * PIECE_BYTES] {
            let mut block = Vec::with_capacity(5 * PIECE_BYTES);
            block.resize(length, 0);
            leftovers.leave(block);
        }
        for left in (0..8).rev() {
            assert!(leftovers.len() > 0);
            leftovers.give_back();
            let mut capacity = 0;
            leftovers.change(|blocks| capacity = blocks.iter().map(Vec::capacity).sum());
            let (whole, part) = (left / 4, left % 4);
            let expected = whole * 5 + if part > 0 { part + 1 } else { 0 };
            assert_eq!(capacity, expected * PIECE_BYTES);
        }
        assert_eq!(leftovers.len(), 0);
    }
}
