//! Sets of small numbers.
//!
//! Deliberately not here: what is numbered.

/// A set of numbers below a bound.
#[derive(Debug)]
pub(super) struct Bits(Box<[u64]>);

impl Bits {
    /// Of the numbers below `bound`, it has none yet.
    pub(super) fn new(bound: usize) -> Self {
        Self(vec![0; bound.div_ceil(64)].into())
    }

    /// `None` for a number out of its bounds.
    pub(super) fn get(&self, number: u32) -> Option<bool> {
        self.0.get(number as usize / 64).map(|word| word >> (number % 64) & 1 == 1)
    }

    /// A number out of its bounds stays out of it.
    pub(super) fn set(&mut self, number: u32, is_in: bool) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            let bit = 1 << (number % 64);
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }
}
