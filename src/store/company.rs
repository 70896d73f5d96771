//! How long a commit waits for company.
//!
//! When a commit ends, messages of others wait for the next one already, and those who were just answered send theirs in a
//! moment. Without them one half of what is on its way is on the disk while the other half waits, in turn. That is best where
//! the loop takes as long as the disk. Where the disk takes much longer, it does twice as much if both halves go together, so the
//! log waits until as much has come as the last commit and those who waited for its end were: no longer than a part of what a
//! commit takes, and if that was in vain, not at all for a while. A steady stream, or one for which the loop is too busy, is
//! not held up. What can lose are publishers of different speeds: the quick ones may wait up to half a commit for the slow ones.
//!
//! On a disk that takes 0.2 ms for a commit it makes no difference. With one that was made to take 1 ms longer, 16 messages on
//! their way to a client that is away pass 1.7 times as fast, and 256 of them 1.3 times (`cargo bench --bench durable --
//! throughput`, in turn).
//!
//! Deliberately not here: the clock, and the batches (see `worker`).

use std::time::{Duration, Instant};

/// It waits for one part in so many of what a commit takes at most.
const WAIT_DIVISOR: u32 = 2;

/// Whatever a commit takes, it waits no longer.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// A shorter wait is none: the system may make twice as much of it.
const WAIT_MIN: Duration = Duration::from_micros(100);

/// What commits usually take moves by one part in so many towards what the last one took.
const MEAN_DIVISOR: u32 = 8;

/// Enough has come if no more than one part in so many is missing.
const MISSING_DIVISOR: usize = 8;

/// From a wait in vain up to the next wait there are so many commits, and twice as many after each further one.
const REST_MIN: u32 = 4;
const REST_MAX: u32 = 256;

/// What the log knows about those who will come again.
#[derive(Debug)]
pub(super) struct Company {
    /// What a commit usually takes.
    commit_time: Duration,
    /// When the last one ended.
    ended: Option<Instant>,
    /// Bytes of the last one, and of what waited for its end.
    expected_bytes: usize,
    /// Whether the next one has waited.
    is_waiting: bool,
    /// Commits up to the next one that may wait.
    rest: u32,
    /// What that will be after the next wait in vain.
    next_rest: u32,
}

impl Default for Company {
    fn default() -> Self {
        Self {
            commit_time: Duration::ZERO,
            ended: None,
            expected_bytes: 0,
            is_waiting: false,
            rest: 0,
            next_rest: REST_MIN,
        }
    }
}

impl Company {
    /// A commit of so many bytes has ended, for which so many others waited.
    pub(super) fn note_commit(&mut self, began: Instant, ended: Instant, bytes: usize, waiting_bytes: usize) {
        self.commit_time = (self.commit_time * (MEAN_DIVISOR - 1) + (ended - began)) / MEAN_DIVISOR;
        self.ended = Some(ended);
        self.expected_bytes = bytes + waiting_bytes;
        self.is_waiting = false;
        self.rest = self.rest.saturating_sub(1);
    }

    /// How much longer the next one, of so many bytes so far, may wait. `None` if it is to begin.
    pub(super) fn time_left(&mut self, now: Instant, waiting_bytes: usize) -> Option<Duration> {
        let ended = self.ended.filter(|_| self.rest == 0)?;
        let wait = (self.commit_time / WAIT_DIVISOR).min(WAIT_MAX);
        let left = wait.saturating_sub(now - ended);
        let is_enough = waiting_bytes >= self.expected_bytes - self.expected_bytes / MISSING_DIVISOR;
        if !is_enough && !left.is_zero() && wait >= WAIT_MIN {
            self.is_waiting = true;
            return Some(left);
        }
        if self.is_waiting {
            if is_enough && !left.is_zero() {
                self.next_rest = REST_MIN;
            } else {
                self.rest = self.next_rest;
                self.next_rest = (self.next_rest * 2).min(REST_MAX);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: Duration = Duration::from_millis(4);

    /// What commits of 4 ms have taught, the last of which has just ended.
    fn company(bytes: usize, waiting_bytes: usize) -> (Company, Instant) {
        let (mut company, began) = (Company::default(), Instant::now());
        for _ in 0..100 {
            company.note_commit(began, began + COMMIT, bytes, waiting_bytes);
        }
        (company, began + COMMIT)
    }

    #[test]
    fn waits_until_those_who_were_answered_have_come_again() {
        let (mut company, ended) = company(1_000, 1_000);
        let left = company.time_left(ended, 1_000).expect("half of them are missing");
        assert!(left <= COMMIT / 2 && left > COMMIT * 2 / 5, "{left:?}");
        let later = ended + COMMIT / 8;
        assert_eq!(company.time_left(later, 1_700), Some(left - COMMIT / 8));
        assert_eq!(company.time_left(later, 1_750), None);
        // All of them together from then on.
        company.note_commit(later, later + COMMIT, 1_750, 0);
        assert!(company.time_left(later + COMMIT, 1_000).is_some());
        assert_eq!(company.time_left(later + COMMIT, 1_750), None);
    }

    #[test]
    fn who_is_alone_or_comes_late_does_not_wait() {
        let (mut company, ended) = company(1_000, 0);
        assert_eq!(company.time_left(ended, 1_000), None);
        assert_eq!(company.time_left(ended + COMMIT, 10), None);
        assert_eq!(Company::default().time_left(ended, 10), None, "and neither does the first one");
    }

    #[test]
    fn a_wait_in_vain_is_not_soon_repeated() {
        let (mut company, mut now) = company(1_000, 1_000);
        let mut waited = Vec::new();
        for commit in 0..1_000 {
            if company.time_left(now, 1_000).is_some() {
                waited.push(commit);
                assert_eq!(company.time_left(now + COMMIT / 2, 1_000), None);
            }
            company.note_commit(now, now + COMMIT, 1_000, 1_000);
            now += COMMIT;
        }
        assert_eq!(waited, [0, 4, 12, 28, 60, 124, 252, 508, 764]);
        // Who has what it wants without a wait, or comes later, says nothing about waits.
        let next_rest = company.next_rest;
        company.rest = 0;
        assert_eq!(company.time_left(now, 2_000), None);
        assert_eq!(company.time_left(now + COMMIT, 1_000), None);
        assert_eq!((company.rest, company.next_rest), (0, next_rest));
        // One that was not in vain, and all is as it was.
        assert!(company.time_left(now, 1_000).is_some());
        assert_eq!(company.time_left(now + COMMIT / 8, 2_000), None);
        assert_eq!((company.rest, company.next_rest), (0, REST_MIN));
        company.note_commit(now, now + COMMIT, 1_000, 1_000);
        now += COMMIT;
        assert!(company.time_left(now, 1_000).is_some());
        assert_eq!(company.time_left(now + COMMIT, 2_000), None);
        assert_eq!(company.rest, REST_MIN, "what comes too late is in vain");
    }

    #[test]
    fn one_slow_commit_is_no_measure() {
        let (mut company, ended) = company(1_000, 1_000);
        company.note_commit(ended, ended + COMMIT * 5, 1_000, 1_000);
        let left = company.time_left(ended + COMMIT * 5, 1_000).expect("half of them are missing");
        assert!(left > COMMIT / 2 && left <= COMMIT * 3 / 4, "{left:?}");
    }

    #[test]
    fn where_commits_are_quick_nobody_waits() {
        let (mut company, began) = (Company::default(), Instant::now());
        let mut ended = began;
        for _ in 0..100 {
            ended = began + WAIT_MIN * WAIT_DIVISOR / 2;
            company.note_commit(began, ended, 1_000, 1_000);
        }
        assert_eq!(company.time_left(ended, 1_000), None);
        assert_eq!(company.rest, 0);
    }

    #[test]
    fn nobody_is_waited_for_in_proportion_to_a_slow_disk() {
        let (mut company, began) = (Company::default(), Instant::now());
        let ended = began + Duration::from_secs(100);
        company.note_commit(began, ended, 1_000, 1_000);
        assert_eq!(company.time_left(ended, 1_000), Some(WAIT_MAX));
    }
}
