//! What segments of the log say, taken together: the last word about each key.
//!
//! The bytes of the segments are kept as they were read, and changes are places in them: a store with a million messages
//! in its log is read without an allocation for each.
//!
//! Invariant: once sorted, each key stands there once.

use crate::journal::{Batch, Change, Lsn, is_named_once};

use super::Damage;
use super::log::{ReadError, read_segment, segment_name};
use super::medium::Medium;
use super::pace::Pace;

/// Where a change stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The first bytes of its key, of which nearly all have no more: comparing them needs no look at the segment.
    head: (u8, u64),
    segment: u32,
    key_at: u32,
    key_length: u32,
    /// The value stands behind the key; `None` if the key is gone.
    value_length: Option<u32>,
}

/// Sorts like the key, as far as it goes.
fn head_of(key: &[u8]) -> (u8, u64) {
    let byte = |at: usize| key.get(at).copied().unwrap_or(0);
    let number = (1..9).fold(0, |number, at| number << 8 | u64::from(byte(at)));
    (byte(0), number)
}

/// Changes, in the order of keys once they are sorted.
#[derive(Debug, Default)]
pub(super) struct Changes {
    segments: Vec<Vec<u8>>,
    places: Vec<Place>,
}

impl Changes {
    /// Adds what a segment says beyond `last`, which becomes the last number of it.
    pub(super) fn read(
        &mut self,
        medium: &dyn Medium,
        number: u64,
        last: &mut Lsn,
        pace: &mut Pace,
    ) -> Result<(), ReadError> {
        let segment = read_segment(medium, number, last, pace)?;
        let name = segment_name(number);
        let batches = segment.batches.into_iter();
        self.add(segment.bytes, batches, &name, pace)?;
        Ok(())
    }

    /// Adds a batch.
    pub(super) fn add_batch(&mut self, batch: &Batch, name: &str) -> Result<(), Damage> {
        let bytes = batch.to_bytes().into_owned();
        let whole = 0..bytes.len();
        self.add(bytes, std::iter::once(whole), name, &mut Pace::hurried())
    }

    fn add(
        &mut self,
        bytes: Vec<u8>,
        batches: impl Iterator<Item = std::ops::Range<usize>>,
        name: &str,
        pace: &mut Pace,
    ) -> Result<(), Damage> {
        let segment = u32::try_from(self.segments.len()).expect("fewer segments than 2^32");
        let begin = bytes.as_ptr() as usize;
        for batch in batches {
            for change in Batch::changes_in(&bytes[batch]) {
                let change = change.map_err(|error| Damage::new(name, &error.to_string()))?;
                let (key, value) = match change {
                    Change::Put(key, value) => (key, Some(value)),
                    Change::Remove(key) => (key, None),
                };
                let key_at = key.as_ptr() as usize - begin;
                self.places.push(Place {
                    head: head_of(key),
                    segment,
                    key_at: u32::try_from(key_at).expect("a segment has less than 2^32 bytes"),
                    key_length: key.len() as u32,
                    value_length: value.map(|value| value.len() as u32),
                });
                pace.step(64);
            }
        }
        self.segments.push(bytes);
        Ok(())
    }

    fn key(&self, place: Place) -> &[u8] {
        let at = place.key_at as usize;
        &self.segments[place.segment as usize][at..at + place.key_length as usize]
    }

    /// Puts the changes into the order of keys, and keeps the last one of each.
    pub(super) fn sort(&mut self, pace: &mut Pace) {
        let mut places = std::mem::take(&mut self.places);
        places.sort_by(|left, right| {
            pace.step(256);
            left.head.cmp(&right.head).then_with(|| self.key(*left).cmp(self.key(*right)))
        });
        let mut kept = 0;
        let mut at = 0;
        while at < places.len() {
            let mut end = at + 1;
            while end < places.len()
                && places[end].head == places[at].head
                && self.key(places[end]) == self.key(places[at])
            {
                end += 1;
            }
            pace.step(256);
            let (first, last) = (places[at], places[end - 1]);
            // What came and went within these segments was never anywhere else.
            let is_void =
                first.value_length.is_some() && last.value_length.is_none() && is_named_once(self.key(first));
            if !is_void {
                places[kept] = last;
                kept += 1;
            }
            at = end;
        }
        places.truncate(kept);
        self.places = places;
    }

    /// The key and its value, or `None` if it is gone, of each change.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.places.iter().map(|place| {
            let value_at = place.key_at as usize + place.key_length as usize;
            let segment = &self.segments[place.segment as usize];
            let value = place.value_length.map(|length| &segment[value_at..value_at + length as usize]);
            (self.key(*place), value)
        })
    }
}
