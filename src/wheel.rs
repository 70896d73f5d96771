//! A hierarchical timer wheel.
//!
//! Why a wheel: there is a timer for every connection and every stored session, and hardly any of them ever fires;
//! nearly all are cancelled and armed again. Here both cost the same however many there are, where a heap would sift
//! and keep what was cancelled.
//!
//! Why more than one: deadlines are milliseconds or weeks away. A timer stands in the wheel of the highest digit, in
//! base 64, in which its deadline differs from the present, at the slot of that digit. When time reaches a slot, its
//! timers go to finer wheels, or fire. So each is moved a handful of times at most, whether it waits a second or a
//! year; none is looked at in vain once per round; and a leap of the clock visits occupied slots only.
//!
//! Invariants: a timer never fires before its deadline, to the millisecond. Timers fire in the order of their
//! deadlines, and of equal ones the first armed fires first; deadlines that had passed when they were armed count as
//! the time of arming.
//!
//! Deliberately not here: what a timer means, and the clock.

use std::num::NonZeroU32;

use slab::Slab;

use crate::clock::Instant;

/// A digit has this many bits.
const DIGIT_BITS: u32 = 6;

/// Slots of one wheel: one for each value of a digit.
const SLOTS: usize = 1 << DIGIT_BITS;

/// Wheels: one for each digit of an instant.
const WHEELS: usize = u64::BITS.div_ceil(DIGIT_BITS) as usize;

/// The list of timers whose time has come, after those of all slots.
const DUE: usize = WHEELS * SLOTS;

/// A list no longer than this is searched for its earliest deadline.
const SEARCHED_MAX: usize = 8;

const NONE: u32 = u32::MAX;

/// The name of a timer. It names no other one after the timer fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    generation: NonZeroU32,
}

#[derive(Debug)]
struct Timer<T> {
    deadline: Instant,
    value: T,
    generation: NonZeroU32,
    /// The list it stands in, and its neighbours there.
    list: u32,
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// Timers with values.
#[derive(Debug)]
pub struct Wheel<T> {
    timers: Slab<Timer<T>>,
    /// The slots of the finest wheel, those of the next, and so on; then `DUE`.
    lists: Box<[List]>,
    /// The slots of each wheel that are not empty, one bit each.
    occupied: [u64; WHEELS],
    /// The present: every timer in a slot has a later deadline, and stands where its distance from here puts it.
    elapsed: Instant,
    /// Not later than the deadline of any timer in `DUE`.
    earliest_due: Instant,
    generation: NonZeroU32,
}

impl<T> Wheel<T> {
    /// A wheel without timers, at time `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            timers: Slab::new(),
            lists: vec![List { first: NONE, last: NONE }; DUE + 1].into_boxed_slice(),
            occupied: [0; WHEELS],
            elapsed: now,
            earliest_due: now,
            generation: NonZeroU32::MIN,
        }
    }

    /// Timers that are armed.
    pub fn len(&self) -> usize {
        self.timers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    /// Arms a timer. One whose deadline has passed fires at the next `pop`, or in the present loop of them.
    pub fn insert(&mut self, deadline: Instant, value: T) -> TimerId {
        let generation = self.generation;
        self.generation = generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let timer = Timer { deadline, value, generation, list: 0, previous: NONE, next: NONE };
        let index = u32::try_from(self.timers.insert(timer)).expect("fewer timers than 2^32");
        self.append(index);
        TimerId { index, generation }
    }

    /// Disarms a timer and gives its value back; `None` if it has fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        let timer = self.timers.get(id.index as usize)?;
        (timer.generation == id.generation).then(|| self.remove(id.index))
    }

    /// The next timer whose deadline is not after `now`; to be called until there is none. Time does not run
    /// backwards: an earlier `now` than the last one counts as that.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        loop {
            let due = self.lists[DUE].first;
            if due != NONE {
                return Some(self.remove(due));
            }
            match self.next_slot() {
                Some((slot, begin)) if begin <= now => self.advance(slot, begin),
                _ => {
                    self.elapsed = self.elapsed.max(now);
                    return None;
                }
            }
        }
    }

    /// When to call `pop` next: never later than the earliest deadline.
    ///
    /// It is exactly the earliest deadline unless more than a few timers share the slot of that, far ahead. Then it is
    /// the beginning of the slot, where `pop` finds nothing and parts them; this happens at most once for each wheel
    /// that a timer passes through.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.lists[DUE].first != NONE {
            return Some(self.earliest_due);
        }
        let (slot, begin) = self.next_slot()?;
        let mut earliest = Instant(u64::MAX);
        let mut next = self.lists[slot].first;
        for _ in 0..SEARCHED_MAX {
            if next == NONE {
                return Some(earliest);
            }
            let timer = &self.timers[next as usize];
            earliest = earliest.min(timer.deadline);
            next = timer.next;
        }
        Some(begin)
    }

    /// The first occupied slot in time, and when it begins.
    fn next_slot(&self) -> Option<(usize, Instant)> {
        // All that stands in a finer wheel comes before all that stands in a coarser one.
        let wheel = self.occupied.iter().position(|slots| *slots != 0)?;
        let digit = self.occupied[wheel].trailing_zeros();
        let shift = wheel as u32 * DIGIT_BITS;
        let higher_digits = (self.elapsed.0 >> shift) & !(SLOTS as u64 - 1);
        let begin = (higher_digits | u64::from(digit)) << shift;
        Some((wheel * SLOTS + digit as usize, Instant(begin)))
    }

    /// Makes the beginning of a slot the present and parts its timers, in their order.
    fn advance(&mut self, slot: usize, begin: Instant) {
        self.elapsed = begin;
        self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        let mut next = std::mem::replace(&mut self.lists[slot], List { first: NONE, last: NONE }).first;
        while next != NONE {
            let index = next;
            next = self.timers[index as usize].next;
            self.append(index);
        }
    }

    /// The list in which a timer with this deadline stands at present.
    fn list_of(&self, deadline: Instant) -> usize {
        if deadline <= self.elapsed {
            return DUE;
        }
        let highest_difference = (deadline.0 ^ self.elapsed.0).ilog2();
        let wheel = highest_difference / DIGIT_BITS;
        let digit = (deadline.0 >> (wheel * DIGIT_BITS)) as usize % SLOTS;
        wheel as usize * SLOTS + digit
    }

    /// Links a timer to the end of its list.
    fn append(&mut self, index: u32) {
        let deadline = self.timers[index as usize].deadline;
        let list = self.list_of(deadline);
        let ends = &mut self.lists[list];
        if list != DUE {
            self.occupied[list / SLOTS] |= 1 << (list % SLOTS);
        } else if ends.first == NONE || deadline < self.earliest_due {
            self.earliest_due = deadline;
        }
        let timer = &mut self.timers[index as usize];
        timer.list = list as u32;
        timer.previous = ends.last;
        timer.next = NONE;
        match std::mem::replace(&mut ends.last, index) {
            NONE => ends.first = index,
            last => self.timers[last as usize].next = index,
        }
    }

    fn remove(&mut self, index: u32) -> T {
        let Timer { value, list, previous, next, .. } = self.timers.remove(index as usize);
        let list = list as usize;
        match previous {
            NONE => self.lists[list].first = next,
            previous => self.timers[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[list].last = previous,
            next => self.timers[next as usize].previous = previous,
        }
        if list != DUE && self.lists[list].first == NONE {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;

    fn pop_all<T>(wheel: &mut Wheel<T>, now: u64) -> Vec<T> {
        std::iter::from_fn(|| wheel.pop(Instant(now))).collect()
    }

    #[test]
    fn timers_fire_in_order_and_never_early() {
        let mut wheel = Wheel::new(Instant(1_000));
        for deadline in [5_000, 1_001, 0, 1_063, 14 * DAY, 1_001] {
            wheel.insert(Instant(deadline), deadline);
        }
        assert_eq!(wheel.next_deadline(), Some(Instant(0)));
        assert_eq!(pop_all(&mut wheel, 1_000), [0]);
        assert_eq!(wheel.next_deadline(), Some(Instant(1_001)));
        assert_eq!(pop_all(&mut wheel, 1_062), [1_001, 1_001]);
        assert_eq!(pop_all(&mut wheel, 4_999), [1_063]);
        assert_eq!(pop_all(&mut wheel, 5_000), [5_000]);
        assert_eq!(wheel.next_deadline(), Some(Instant(14 * DAY)));
        assert_eq!(pop_all(&mut wheel, 14 * DAY - 1), []);
        assert_eq!(wheel.next_deadline(), Some(Instant(14 * DAY)));
        assert_eq!(pop_all(&mut wheel, u64::MAX), [14 * DAY]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn the_end_of_time_is_a_deadline_too() {
        let mut wheel = Wheel::new(Instant(0));
        wheel.insert(Instant(u64::MAX), 1);
        assert_eq!(pop_all(&mut wheel, u64::MAX - 1), []);
        assert_eq!(wheel.next_deadline(), Some(Instant(u64::MAX)));
        assert_eq!(pop_all(&mut wheel, u64::MAX), [1]);
        wheel.insert(Instant(u64::MAX), 2);
        assert_eq!(pop_all(&mut wheel, u64::MAX), [2]);
    }

    #[test]
    fn a_stale_name_is_no_timer() {
        let mut wheel = Wheel::new(Instant(0));
        let first = wheel.insert(Instant(10), 1);
        assert_eq!(wheel.cancel(first), Some(1));
        let second = wheel.insert(Instant(10), 2);
        assert_eq!(wheel.cancel(first), None);
        assert_eq!(pop_all(&mut wheel, 10), [2]);
        assert_eq!(wheel.cancel(second), None);
    }

    #[test]
    fn timers_armed_while_others_fire_are_not_lost() {
        let mut wheel = Wheel::new(Instant(0));
        wheel.insert(Instant(100), 0);
        let mut fired = Vec::new();
        while let Some(value) = wheel.pop(Instant(10_000)) {
            fired.push(value);
            if value < 5 {
                // In turn: before the present of the wheel, at it, and after it.
                wheel.insert(Instant(80 + 20 * (value % 3)), value + 1);
                wheel.insert(Instant(9_000 + value), value + 100);
            }
        }
        assert_eq!(fired, [0, 1, 2, 3, 4, 5, 100, 101, 102, 103, 104]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_wake_in_vain_is_rare() {
        let mut wheel = Wheel::new(Instant(5));
        for number in 0..1_000 {
            wheel.insert(Instant(14 * DAY + number / 10), number);
        }
        let mut fired = Vec::new();
        let mut wakes = 0;
        while let Some(now) = wheel.next_deadline() {
            let count = fired.len();
            fired.extend(std::iter::from_fn(|| wheel.pop(now)));
            wakes += usize::from(fired.len() == count);
        }
        assert!(fired.is_sorted() && fired.len() == 1_000);
        assert!(wakes <= WHEELS, "{wakes}");
    }

    #[test]
    fn it_does_what_a_sorted_list_does() {
        let mut random = 88_172_645_463_325_252_u64;
        let mut below = move |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        for start in [0, 77, 1 << 36, u64::MAX - 100 * DAY] {
            let mut now = start;
            let mut wheel = Wheel::new(Instant(now));
            // Deadlines as they count, then in the order of arming.
            let mut list: Vec<(u64, u64, TimerId)> = Vec::new();
            for step in 0..6_000 {
                match below(10) {
                    0..=4 => {
                        let span = [2, 100, 10_000, 400_000, DAY, 20 * DAY][below(6) as usize];
                        let deadline = now.saturating_add(below(span)).saturating_sub(below(5));
                        let id = wheel.insert(Instant(deadline), step);
                        list.push((deadline.max(now), step, id));
                    }
                    5..=6 if !list.is_empty() => {
                        let (_, value, id) = list.swap_remove(below(list.len() as u64) as usize);
                        assert_eq!(wheel.cancel(id), Some(value));
                        assert_eq!(wheel.cancel(id), None);
                    }
                    _ => {
                        let leap = [3, 1_000, 300_000, DAY, 30 * DAY]
                            [[0, 0, 0, 1, 1, 1, 2, 2, 3, 4][below(10) as usize]];
                        now = if below(3) == 0 {
                            wheel.next_deadline().map_or(now, |deadline| deadline.0.max(now))
                        } else {
                            now.saturating_add(below(leap))
                        };
                        list.sort_unstable_by_key(|timer| (timer.0, timer.1));
                        let due = list.partition_point(|timer| timer.0 <= now);
                        let expected: Vec<u64> = list.drain(..due).map(|timer| timer.1).collect();
                        assert_eq!(pop_all(&mut wheel, now), expected);
                        assert_eq!(wheel.len(), list.len());
                        let next = wheel.next_deadline().map(|next| next.0);
                        match list.first() {
                            Some(first) => assert!(next.is_some_and(|next| now < next && next <= first.0)),
                            None => assert_eq!(next, None),
                        }
                    }
                }
            }
        }
    }
}
