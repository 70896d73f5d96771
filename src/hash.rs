//! Hash maps with a seed that the owner chooses.
//!
//! Client ids and topics are chosen by strangers, so the seed differs in every process; the simulator fixes it, so
//! that a run can be repeated. Nothing in the core may depend on the order in which such a map is walked.

use std::hash::BuildHasher;

/// Builds hashers from a seed.
pub type HashSeed = foldhash::fast::FixedState;

/// A hash builder for this seed.
pub fn seeded(seed: u64) -> HashSeed {
    HashSeed::with_seed(seed)
}

/// The hash of a string under this seed.
pub fn hash_text(seed: &HashSeed, text: &str) -> u64 {
    seed.hash_one(text.as_bytes())
}
