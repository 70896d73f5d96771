//! Changes that are stored together.
//!
//! ```text
//!  change := key length (4 bytes), value length + 1 or 0 for a removal (4 bytes), key, value
//! ```
//!
//! All integers have their high byte first.

use std::collections::BTreeMap;

use crate::clock::Instant;

use super::Lsn;
use super::record::{KEY_HEAD_BYTES, Key, Record, write_message_parts};

/// Changes that are stored together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    bytes: Vec<u8>,
    len: usize,
    last: Lsn,
    /// Whether most of it will not be wanted any more in a moment.
    may_wait: bool,
}

/// One change of what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The key has this value from now on.
    Put(&'a [u8], &'a [u8]),
    /// The key is gone.
    Remove(&'a [u8]),
}

const HEAD_BYTES: usize = 8;

impl Batch {
    /// Adds that a record exists, or has changed.
    pub fn put(&mut self, key: Key<'_>, record: &Record<'_>) {
        self.put_value(key, |bytes| record.write(bytes));
    }

    /// Adds the record of a message whose topic is known to be a text: that is not looked at again.
    pub fn put_message(
        &mut self,
        number: Lsn,
        topic: &[u8],
        properties: &[u8],
        payload: &[u8],
        expires_at: Option<Instant>,
    ) {
        self.put_value(Key::Message(number), |bytes| {
            write_message_parts(bytes, topic, properties, payload, expires_at);
        });
    }

    fn put_value(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.begin(key);
        let value_at = self.bytes.len();
        write(&mut self.bytes);
        let length =
            u32::try_from(self.bytes.len() - value_at + 1).expect("a packet has less than 2^28 bytes");
        self.bytes[at + 4..at + HEAD_BYTES].copy_from_slice(&length.to_be_bytes());
    }

    /// Adds that a record is gone.
    pub fn remove(&mut self, key: Key<'_>) {
        self.begin(key);
    }

    fn begin(&mut self, key: Key<'_>) -> usize {
        let at = self.bytes.len();
        let (key_head, filter) = key.to_parts();
        let length = u32::try_from(KEY_HEAD_BYTES + filter.len()).expect("a filter has less than 2^28 bytes");
        let mut head = [0; HEAD_BYTES + KEY_HEAD_BYTES];
        head[..4].copy_from_slice(&length.to_be_bytes());
        head[HEAD_BYTES..].copy_from_slice(&key_head);
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(filter.as_bytes());
        self.len += 1;
        at
    }

    /// Adds the changes of another batch.
    pub fn append(&mut self, other: &Self) {
        self.bytes.extend_from_slice(&other.bytes);
        self.len += other.len;
    }

    /// Says up to which number everything is stored once this batch is.
    pub fn finish(&mut self, last: Lsn) {
        self.last = last;
    }

    /// Says that most of it will not be wanted any more in a moment, so that nobody gains by haste.
    pub fn let_wait(&mut self) {
        self.may_wait = true;
    }

    /// Whether others should go first.
    pub const fn may_wait(&self) -> bool {
        self.may_wait
    }

    /// Everything up to this number is stored once this batch is.
    pub const fn last(&self) -> Lsn {
        self.last
    }

    /// How many changes it has.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing changes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same memory without changes.
    pub(crate) fn emptied(mut self) -> Self {
        self.bytes.clear();
        Self { bytes: self.bytes, ..Self::default() }
    }

    /// The size of its memory.
    pub(crate) const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Its bytes, from which [`Batch::changes_in`] reads.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The changes in their order.
    pub fn changes(&self) -> impl Iterator<Item = Change<'_>> {
        Self::changes_in(&self.bytes).map_while(Result::ok)
    }

    /// Makes the changes: what a store comes to in the end, for whoever stands in for one.
    pub fn apply(&self, records: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        for change in self.changes() {
            match change {
                Change::Put(key, value) => records.insert(key.to_vec(), value.to_vec()),
                Change::Remove(key) => records.remove(key),
            };
        }
    }

    /// The changes in the bytes of a batch; an error, and then nothing, where they are not those of one.
    pub fn changes_in(mut bytes: &[u8]) -> impl Iterator<Item = Result<Change<'_>, super::RecordError>> {
        std::iter::from_fn(move || {
            if bytes.is_empty() {
                return None;
            }
            let change = split_change(bytes);
            bytes = change.map_or(&[], |(_, rest)| rest);
            Some(change.map(|(change, _)| change).ok_or(super::RecordError::Truncated))
        })
    }
}

fn split_change(bytes: &[u8]) -> Option<(Change<'_>, &[u8])> {
    let (key_length, rest) = bytes.split_first_chunk()?;
    let (value_length, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(u32::from_be_bytes(*key_length) as usize)?;
    match u32::from_be_bytes(*value_length).checked_sub(1) {
        None => Some((Change::Remove(key), rest)),
        Some(length) => {
            let (value, rest) = rest.split_at_checked(length as usize)?;
            Some((Change::Put(key, value), rest))
        }
    }
}
