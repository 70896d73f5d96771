//! Hash maps with a seed that the owner chooses.
//!
//! Client ids and topics are chosen by strangers, so the seed differs in every process; the simulator fixes it, so
//! that a run can be repeated. Nothing in the core may depend on the order in which such a map is walked.

use std::hash::{BuildHasher, Hasher};

/// Builds hashers from a seed.
pub type HashSeed = foldhash::fast::FixedState;

/// A hash builder for this seed.
pub fn seeded(seed: u64) -> HashSeed {
    HashSeed::with_seed(seed)
}

/// The hash of a string under this seed.
#[inline]
pub fn hash_text(seed: &HashSeed, text: &str) -> u64 {
    hash_bytes(seed, text.as_bytes())
}

/// The hash of the bytes of a string under this seed: the same as that of the string.
#[inline]
pub fn hash_bytes(seed: &HashSeed, bytes: &[u8]) -> u64 {
    // One write is one round: unlike `Hash for [u8]`, it hashes no length beside the bytes, which this hasher covers
    // anyway.
    let mut hasher = seed.build_hasher();
    hasher.write(bytes);
    hasher.finish()
}
