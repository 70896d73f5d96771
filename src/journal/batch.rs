//! Changes that are stored together.
//!
//! ```text
//!  change := key length (4 bytes), value length + 1 or 0 for a removal (4 bytes), key, value
//! ```
//!
//! All integers have their high byte first.
//!
//! What is large of a large message stands in a batch by reference: it is not copied before it is written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::clock::Instant;

use super::Lsn;
use super::SharedBytes;
use super::record::{KEY_HEAD_BYTES, Key, Record, write_message_head, write_message_parts};

/// Changes that are stored together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// All but what stands in it by reference.
    bytes: Vec<u8>,
    shared: Vec<Shared>,
    len: usize,
    last: Lsn,
    /// Whether most of it will not be wanted any more in a moment.
    may_wait: bool,
}

/// Bytes by reference.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shared {
    /// They stand before this one of the other bytes.
    at: usize,
    bytes: SharedBytes,
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

/// Larger batches stem from a store that did not keep up.
const KEPT_BYTES_MAX: usize = 1 << 20;

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

    /// The same of a large message, whose properties and payload stay where they are.
    pub fn put_long_message(
        &mut self,
        number: Lsn,
        topic: &[u8],
        tail: [SharedBytes; 2],
        expires_at: Option<Instant>,
    ) {
        let [properties, payload] = tail;
        self.put_value_before(properties.len() + payload.len(), Key::Message(number), |bytes| {
            write_message_head(bytes, topic, properties.len(), expires_at);
        });
        let at = self.bytes.len();
        for bytes in [properties, payload] {
            self.shared.push(Shared { at, bytes });
        }
    }

    fn put_value(&mut self, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        self.put_value_before(0, key, write);
    }

    /// Behind what is written here so many bytes of the value follow.
    fn put_value_before(&mut self, following: usize, key: Key<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        let at = self.begin(key);
        let value_at = self.bytes.len();
        write(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - value_at + following + 1)
            .expect("a packet has less than 2^28 bytes");
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
        let before = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        let shared =
            other.shared.iter().map(|Shared { at, bytes }| Shared { at: before + at, bytes: bytes.clone() });
        self.shared.extend(shared);
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

    /// Leaves nothing of it but its last number, and its memory if that is not much.
    pub(crate) fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.shared.clear();
        self.len = 0;
        self.may_wait = false;
    }

    /// How many bytes it has.
    pub fn length(&self) -> usize {
        self.bytes.len() + self.shared.iter().map(|shared| shared.bytes.len()).sum::<usize>()
    }

    /// Its bytes, piece by piece, from all of which [`Batch::changes_in`] reads.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let mut before = 0;
        let ends = self.shared.iter().map(|shared| (shared.at, &*shared.bytes));
        ends.chain([(self.bytes.len(), [].as_slice())]).flat_map(move |(at, shared)| {
            let copied = &self.bytes[before..at];
            before = at;
            [copied, shared]
        })
    }

    /// Its bytes in one piece.
    pub fn to_bytes(&self) -> Cow<'_, [u8]> {
        if self.shared.is_empty() {
            Cow::Borrowed(&self.bytes)
        } else {
            Cow::Owned(self.pieces().flatten().copied().collect())
        }
    }

    /// Makes the changes: what a store comes to in the end, for whoever stands in for one.
    pub fn apply(&self, records: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        let bytes = self.to_bytes();
        for change in Self::changes_in(&bytes).map_while(Result::ok) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_by_reference_is_stored_like_one_that_was_copied() {
        let payloads = [b"first".as_slice(), &[7; 1_000], b""];
        let (mut copied, mut shared, mut parts) = (Batch::default(), Batch::default(), Batch::default());
        for (number, payload) in (1..).map(Lsn).zip(payloads) {
            let expires_at = Some(Instant(number.0));
            copied.put_message(number, b"a/b", &[1, 1], payload, expires_at);
            let before = [0, 0, 0, 1, 1].iter().chain(payload).copied().collect();
            let tail = SharedBytes::split(before, [3, 5]);
            shared.put_long_message(number, b"a/b", tail.clone(), expires_at);
            let mut part = Batch::default();
            part.put_long_message(number, b"a/b", tail, expires_at);
            parts.append(&part);
            for batch in [&mut copied, &mut shared, &mut parts] {
                batch.remove(Key::Delivery(number));
            }
        }
        for batch in [&mut shared, &mut parts] {
            assert_eq!((batch.to_bytes(), batch.length()), (copied.to_bytes(), copied.length()));
            assert_eq!(batch.len(), copied.len());
            assert!(batch.shared.iter().any(|shared| *shared.bytes == [7; 1_000]), "it is not copied");
            let mut records = (BTreeMap::new(), BTreeMap::new());
            batch.apply(&mut records.0);
            copied.apply(&mut records.1);
            assert_eq!((records.0.len(), records.0 == records.1), (3, true));
            batch.finish(Lsn(9));
            batch.clear();
            assert_eq!((batch.length(), batch.is_empty(), batch.last()), (0, true, Lsn(9)));
        }
    }
}
