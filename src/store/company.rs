//! How long a commit waits for company.
//!
//! When a commit ends, messages of others wait for the next one already, and those who were just answered send theirs in a
//! moment. Without them, half of what is on its way is on the disk while the other half waits, in turn. So the log waits
//! until as much has come as that commit and those who waited for its end were together: no longer than a share of what a
//! commit takes, and if that was in vain, not at all for a while. That many publishers with one rhythm come again, and that
//! the disk takes longer than the loop, is where it helps; a steady stream, or one that the loop is too busy to take, is
//! not held up.
//!
//! Deliberately not here: the clock, and the batches (see `worker`).

use std::time::{Duration, Instant};

/// It waits for this share of what a commit takes at most.
const WAIT_SHARE: u32 = 2;

/// Whatever a commit takes, it waits no longer.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// What commits took before counts so many times as much as what the last one took, less one.
const MEMORY: u32 = 8;

/// Enough has come if no more than this share is missing.
const MISSING_SHARE: usize = 8;

/// Commits that do not wait after the first wait in vain; after each further one it is twice as many.
const PASSED_MIN: u32 = 4;
const PASSED_MAX: u32 = 256;

/// What the log knows about those who will come again.
#[derive(Debug)]
pub(super) struct Company {
    /// What a commit takes of late.
    commit_time: Duration,
    /// When the last one ended.
    ended: Option<Instant>,
    /// Bytes of the last one, and of what waited for its end.
    expected_bytes: usize,
    /// So many commits do not wait.
    passing: u32,
    /// So many will not after the next wait in vain.
    passed_next: u32,
}

impl Default for Company {
    fn default() -> Self {
        let (commit_time, expected_bytes) = Default::default();
        Self { commit_time, ended: None, expected_bytes, passing: 0, passed_next: PASSED_MIN }
    }
}

impl Company {
    /// A commit of so many bytes has ended, for which so many others waited.
    pub(super) fn note_commit(&mut self, began: Instant, ended: Instant, bytes: usize, waiting_bytes: usize) {
        self.commit_time = (self.commit_time * (MEMORY - 1) + (ended - began)) / MEMORY;
        self.ended = Some(ended);
        self.expected_bytes = bytes + waiting_bytes;
        self.passing = self.passing.saturating_sub(1);
    }

    /// How much longer the next one, of so many bytes so far, may wait. `None` if it is to begin.
    pub(super) fn time_left(&mut self, now: Instant, waiting_bytes: usize) -> Option<Duration> {
        let ended = self.ended.filter(|_| self.passing == 0)?;
        if waiting_bytes >= self.expected_bytes - self.expected_bytes / MISSING_SHARE {
            self.passed_next = PASSED_MIN;
            return None;
        }
        let wait = (self.commit_time / WAIT_SHARE).min(WAIT_MAX);
        let left = wait.saturating_sub(now - ended);
        if left.is_zero() {
            self.passing = self.passed_next;
            self.passed_next = (self.passed_next * 2).min(PASSED_MAX);
            return None;
        }
        Some(left)
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
        assert!(left <= COMMIT / 2 && left > COMMIT / 4, "{left:?}");
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
        // One that was not in vain, and all is as it was.
        while company.time_left(now, 1_000).is_none() {
            company.note_commit(now, now + COMMIT, 1_000, 1_000);
            now += COMMIT;
        }
        assert_eq!(company.time_left(now, 2_000), None);
        assert!(company.time_left(now, 1_000).is_some());
        assert_eq!(company.time_left(now + COMMIT, 1_000), None);
        assert_eq!(company.passing, PASSED_MIN);
    }

    #[test]
    fn a_disk_that_takes_long_is_not_waited_for_in_proportion() {
        let (mut company, began) = (Company::default(), Instant::now());
        let ended = began + Duration::from_secs(100);
        company.note_commit(began, ended, 1_000, 1_000);
        assert_eq!(company.time_left(ended, 1_000), Some(WAIT_MAX));
    }
}
