//! Whether what is to be stored waits for more, while the loop has something else to do.
//!
//! While there is more to read a small batch waits for it, a moment at most: where the disk is quick, commits of half of what
//! is on its way, one on the disk while the next one comes, cost least; where it is not, the log waits for both halves.
//!
//! A batch of many records, much of which is not wanted any more in a moment, waits for the acknowledgements that make it so,
//! and longer: what they remove need not be stored, and its publishers are told at once. With 4,096 messages on their way to a
//! client that is there the log so writes about 50 bytes a message, where it wrote 180 to 240 (`cargo bench --bench durable --
//! throughput`, in turn). It waits for nobody once a turn had nothing to read, for which the loop sleeps a millisecond. A few
//! messages do not wait, because the disk answers as soon as a client does; and none does while the disk is busy with the
//! batch before, which has to be stored first.
//!
//! Deliberately not here: the clock, and what waits (see `Broker::poll_journal`).

use std::time::Duration;

/// A small batch waits no longer than that for others to join it, and not for more than that: there may always be something to
/// read.
const MICROS_MAX: u64 = 500;
const BYTES_MAX: u64 = 64 << 10;

/// One of so many records and no more bytes waits for acknowledgements until its first record is so old.
const RECORDS_MIN: usize = 512;
const TRANSIENT_BYTES_MAX: u64 = 4 << 20;
const TRANSIENT_MICROS_MAX: u64 = 8_000;

/// The shortest that the loop can sleep.
const SLEEP: Duration = Duration::from_millis(1);

/// With each batch the peak of what is on its way is forgotten by this part.
const PEAK_DECAY: u64 = 8;

/// What is to be stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// Its bytes.
    pub(super) bytes: u64,
    /// Its records.
    pub(super) records: usize,
    /// Its bytes with those on their way to the disk.
    pub(super) unstored_bytes: u64,
    /// Whether much of it is not wanted any more in a moment.
    pub(super) is_transient: bool,
    /// Whether there is something on its way to the disk.
    pub(super) is_disk_busy: bool,
}

/// How long a batch has waited.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// Bytes that were recorded and not stored, at most, of late: about what all publishers have on their way, as far as
    /// that matters.
    peak_bytes: u64,
    /// Since when there is something to be stored.
    since_micros: Option<u64>,
    /// Since when it waits although it might be handed over.
    held_since_micros: Option<u64>,
    /// Whether that is for acknowledgements.
    is_long: bool,
}

impl Hold {
    /// Whether it waits for another turn.
    pub(super) fn is_to_wait(&mut self, waiting: Waiting, is_more_to_read: bool, turn_micros: u64) -> bool {
        self.peak_bytes = self.peak_bytes.max(waiting.unstored_bytes).min(2 * BYTES_MAX);
        if waiting.bytes == 0 {
            self.since_micros = None;
            return false;
        }
        let since = *self.since_micros.get_or_insert(turn_micros);
        if !is_more_to_read {
            return false;
        }
        self.is_long = waiting.is_transient
            && waiting.records >= RECORDS_MIN
            && waiting.bytes <= TRANSIENT_BYTES_MAX
            && turn_micros < since + TRANSIENT_MICROS_MAX;
        if self.is_long && !waiting.is_disk_busy {
            self.held_since_micros.get_or_insert(turn_micros);
            return true;
        }
        self.is_long = false;
        if waiting.bytes >= self.peak_bytes / 2 {
            return false;
        }
        turn_micros < *self.held_since_micros.get_or_insert(turn_micros) + MICROS_MAX
    }

    /// It waits for nobody any longer.
    pub(super) fn end(&mut self) {
        self.held_since_micros = None;
    }

    /// The store has it.
    pub(super) fn note_batch(&mut self) {
        self.since_micros = None;
        self.peak_bytes -= self.peak_bytes / PEAK_DECAY;
    }

    /// How long the loop may sleep; `None` if nothing waits although it might be handed over.
    pub(super) const fn sleep_max(&self) -> Option<Duration> {
        match self.held_since_micros {
            None => None,
            Some(_) if self.is_long => Some(SLEEP),
            Some(_) => Some(Duration::ZERO),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Waiting =
        Waiting { bytes: 1_000, records: 4, unstored_bytes: 3_000, is_transient: false, is_disk_busy: false };

    const LARGE: Waiting =
        Waiting { bytes: BYTES_MAX, records: RECORDS_MIN, unstored_bytes: 3 * BYTES_MAX, ..SMALL };

    #[test]
    fn a_small_batch_waits_a_moment_while_there_is_more_to_read() {
        for is_transient in [false, true] {
            let mut hold = Hold::default();
            let small = Waiting { is_transient, ..SMALL };
            assert!(hold.is_to_wait(small, true, 10_000));
            assert_eq!(hold.sleep_max(), Some(Duration::ZERO));
            assert!(hold.is_to_wait(small, true, 10_000 + MICROS_MAX - 1));
            assert!(!hold.is_to_wait(small, true, 10_000 + MICROS_MAX));
            assert!(!hold.is_to_wait(small, false, 10_000));
            hold.end();
            assert_eq!(hold.sleep_max(), None);
            assert!(!hold.is_to_wait(Waiting { bytes: 1_500, ..small }, true, 20_000), "half of the peak");
            assert!(!hold.is_to_wait(Waiting { bytes: 0, ..small }, true, 20_000), "there is nothing");
            assert!(hold.is_to_wait(small, true, 20_000), "the next one");
        }
    }

    #[test]
    fn one_of_many_records_waits_longer_if_they_are_not_wanted_any_more_in_a_moment() {
        let mut hold = Hold::default();
        assert!(!hold.is_to_wait(LARGE, true, 10_000));
        hold.note_batch();
        let transient = Waiting { is_transient: true, ..LARGE };
        assert!(hold.is_to_wait(transient, true, 20_000));
        assert_eq!(hold.sleep_max(), Some(SLEEP));
        assert!(hold.is_to_wait(transient, true, 20_000 + TRANSIENT_MICROS_MAX - 1));
        assert!(!hold.is_to_wait(transient, true, 20_000 + TRANSIENT_MICROS_MAX));
        for other in [
            Waiting { records: RECORDS_MIN - 1, ..transient },
            Waiting { bytes: TRANSIENT_BYTES_MAX + 1, ..transient },
        ] {
            let mut hold = Hold::default();
            assert!(!hold.is_to_wait(other, true, 20_000), "{other:?}");
        }
        assert!(!Hold::default().is_to_wait(transient, false, 20_000), "nothing was to be read");
    }

    #[test]
    fn nothing_waits_longer_because_the_disk_was_busy() {
        let mut hold = Hold::default();
        let transient = Waiting { is_transient: true, ..LARGE };
        let busy = Waiting { is_disk_busy: true, ..transient };
        assert!(!hold.is_to_wait(busy, true, 0));
        hold.end();
        assert_eq!(hold.sleep_max(), None, "the report wakes the loop");
        // It is free, and the batch is as old as it may become.
        assert!(hold.is_to_wait(transient, true, TRANSIENT_MICROS_MAX - 1));
        hold.end();
        assert!(!hold.is_to_wait(transient, true, TRANSIENT_MICROS_MAX));
        hold.end();
        hold.note_batch();
        assert!(hold.is_to_wait(transient, true, TRANSIENT_MICROS_MAX), "the next one");
        // All of that is gone before it is handed over.
        assert!(!hold.is_to_wait(Waiting { bytes: 0, ..transient }, true, TRANSIENT_MICROS_MAX));
        assert!(hold.is_to_wait(transient, true, 2 * TRANSIENT_MICROS_MAX));
    }

    #[test]
    fn the_peak_is_forgotten_batch_by_batch() {
        let mut hold = Hold::default();
        let half = Waiting { bytes: 10_000, unstored_bytes: 40_000, ..SMALL };
        assert!(hold.is_to_wait(half, true, 0));
        for _ in 0..20 {
            hold.end();
            hold.note_batch();
        }
        assert!(!hold.is_to_wait(Waiting { unstored_bytes: 10_000, ..half }, true, 0));
    }
}
