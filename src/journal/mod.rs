//! What is kept beyond the process: records, their names and their bytes.
//!
//! The core says what changes as [`Record`]s, numbered by [`Lsn`]; a [`Batch`] of them is stored whole or not at all. What
//! is stored is a map from keys to values, both plain bytes, so that a store needs to know nothing of MQTT, and a tool
//! that reads one needs no broker.
//!
//! Deliberately not here: when something is recorded (see `broker::journal`), and how a batch gets to disk (see `store`).

mod batch;
mod record;
mod shared_bytes;

pub use batch::{Batch, Change};
pub use record::{
    DeliveryRecord, DueWillRecord, Key, MessageRecord, Origin, Owner, ReceiptRecord, Record, RecordError,
    ReleaseRecord, RetainedRecord, SessionRecord, SubscriptionRecord, WillRecord, is_named_once,
};
pub use shared_bytes::SharedBytes;

/// The version of the bytes of all records. A store of a later version is not opened.
pub const FORMAT_VERSION: u32 = 1;

/// The number of a record in the order of recording. It says what is stored: everything up to some number. Most records
/// are named by it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// That of what was never recorded.
    pub const NONE: Self = Self(0);

    /// The largest number a stored record can have. Two billion records a second fill what is beyond it in over 200 years, so
    /// a broker never runs out of numbers, whatever its store held.
    pub const MAX: Self = Self(1 << 62);

    /// Whether a stored record can have this number.
    pub const fn can_name(self) -> bool {
        self.is_some() && self.0 <= Self::MAX.0
    }

    /// Whether there is a record.
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
