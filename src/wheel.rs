//! A hashed timer wheel.
//!
//! Inserting and cancelling a timer costs the same however many there are, and they are many: one per connection and
//! one per stored session. A timer stands in the slot of its deadline. When time reaches a slot, those of its timers that
//! belong to this round move to a heap, from which they fire in the order of their deadlines; timers of later rounds
//! stay. A timer never fires before its deadline, to the millisecond.
//!
//! Many can share a slot: all sessions that a restart found absent, say. So the timers of a slot can be moved a few at a
//! time (`advance`), and a slot none of which is due in this round is not looked into.
//!
//! Invariants: between two calls a timer whose tick has come is in the heap, or in the list of those of that tick yet to be
//! moved, every other one in the slot of its tick; while the wheel catches up with a leap of the clock, some are still in
//! slots that it has yet to reach. The heap may also name timers that were cancelled meanwhile, by names that nobody has any
//! more.
//!
//! Deliberately not here: what a timer means, and the clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU32;

use slab::Slab;

use crate::clock::Instant;

/// A slot spans this many milliseconds: a power of two.
const SLOT_MILLIS: u64 = 64;

/// Slots of one round, which so takes more than four minutes.
const SLOTS: u64 = 4_096;

/// A heap that once had room for more than this gives its memory back when it is empty.
const HEAP_KEPT: usize = 1_024;

const NONE: u32 = u32::MAX;

/// The slot of a timer in the heap.
const HEAP: u32 = u32::MAX;

/// The name of a timer. It stays unique after the timer fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerId {
    // First: of timers with one deadline the one inserted first fires first. Not 0, so that no timer at all needs no more
    // room than one.
    generation: NonZeroU32,
    index: u32,
}

#[derive(Debug)]
struct Timer<T> {
    deadline: Instant,
    value: T,
    generation: NonZeroU32,
    slot: u32,
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The timer inserted last.
    first: u32,
    /// Not later than any deadline of this slot.
    earliest: Instant,
}

const EMPTY: Slot = Slot { first: NONE, earliest: Instant(u64::MAX) };

/// Timers with values.
#[derive(Debug)]
pub struct Wheel<T> {
    timers: Slab<Timer<T>>,
    slots: Box<[Slot]>,
    /// Timers of this tick and earlier ones.
    heap: BinaryHeap<Reverse<(Instant, TimerId)>>,
    generation: NonZeroU32,
    /// The tick that the wheel has reached.
    tick: u64,
    /// The first of the timers that stood in the slot of this tick and have yet to be moved.
    unmoved: u32,
    /// Not later than any deadline.
    earliest: Option<Instant>,
}

fn tick_of(deadline: Instant) -> u64 {
    deadline.0 / SLOT_MILLIS
}

impl<T> Wheel<T> {
    /// A wheel without timers, at time `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            timers: Slab::new(),
            slots: vec![EMPTY; SLOTS as usize].into_boxed_slice(),
            heap: BinaryHeap::new(),
            generation: NonZeroU32::MIN,
            tick: tick_of(now),
            unmoved: NONE,
            earliest: None,
        }
    }

    /// Makes room for so many timers.
    pub fn reserve(&mut self, timers: usize) {
        self.timers.reserve(timers);
    }

    /// Timers that are armed.
    pub fn len(&self) -> usize {
        self.timers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.timers.is_empty()
    }

    /// Arms a timer. One whose deadline has passed fires at the next `pop`.
    pub fn insert(&mut self, deadline: Instant, value: T) -> TimerId {
        self.generation = self.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let generation = self.generation;
        let timer = Timer { deadline, value, generation, slot: HEAP, previous: NONE, next: NONE };
        let index = u32::try_from(self.timers.insert(timer)).expect("fewer timers than 2^32");
        let id = TimerId { generation, index };
        let tick = tick_of(deadline);
        if tick <= self.tick {
            self.heap.push(Reverse((deadline, id)));
        } else {
            self.link(index, deadline, (tick % SLOTS) as u32);
        }
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        id
    }

    /// Disarms a timer and gives its value back; `None` if it has fired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> Option<T> {
        self.is_armed(id).then(|| self.remove(id.index))
    }

    /// Does the first part of what `pop` does, for as many timers as are left: it finds those that are due, and passes those before
    /// the next one that were cancelled. True if nothing is left of it.
    pub fn advance(&mut self, now: Instant, timers_left: &mut usize) -> bool {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return true;
        }
        let last_tick = tick_of(now).max(self.tick);
        loop {
            while self.unmoved != NONE {
                if *timers_left == 0 {
                    return false;
                }
                *timers_left -= 1;
                self.move_one();
            }
            if self.tick == last_tick {
                break;
            }
            // One round sees every slot, however far the clock has leapt.
            self.tick = (self.tick + 1).max((last_tick + 1).saturating_sub(SLOTS));
            let slot = &mut self.slots[(self.tick % SLOTS) as usize];
            if tick_of(slot.earliest) <= self.tick {
                self.unmoved = std::mem::replace(slot, EMPTY).first;
            }
        }
        while let Some(Reverse((_, id))) = self.heap.peek()
            && !self.is_armed(*id)
        {
            if *timers_left == 0 {
                return false;
            }
            *timers_left -= 1;
            self.heap.pop();
        }
        true
    }

    /// A timer whose deadline is not after `now`; to be called until there is none. They come in the order of their
    /// deadlines.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return None;
        }
        self.advance(now, &mut { usize::MAX });
        if let Some(Reverse((deadline, id))) = self.heap.peek().copied()
            && deadline <= now
        {
            self.heap.pop();
            return Some(self.remove(id.index));
        }
        if self.heap.is_empty() && self.heap.capacity() > HEAP_KEPT {
            self.heap = BinaryHeap::new();
        }
        self.earliest = self.find_earliest();
        None
    }

    /// Not later than the earliest deadline. It may name the deadline of a timer cancelled meanwhile: then `pop` finds
    /// nothing, and the next answer is better.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.earliest
    }

    fn is_armed(&self, id: TimerId) -> bool {
        self.timers.get(id.index as usize).is_some_and(|timer| timer.generation == id.generation)
    }

    /// Moves the first unmoved timer to the heap if its tick has come, else back to its slot.
    fn move_one(&mut self) {
        let index = self.unmoved;
        let timer = &mut self.timers[index as usize];
        let Timer { deadline, generation, slot, next, .. } = *timer;
        let is_due = tick_of(deadline) <= self.tick;
        if is_due {
            timer.slot = HEAP;
            self.heap.push(Reverse((deadline, TimerId { generation, index })));
        }
        self.unmoved = next;
        if next != NONE {
            self.timers[next as usize].previous = NONE;
        }
        if !is_due {
            self.link(index, deadline, slot);
        }
    }

    fn find_earliest(&self) -> Option<Instant> {
        let mut earliest = self.heap.peek().map(|Reverse((deadline, _))| *deadline);
        for tick in self.tick + 1..=self.tick + SLOTS {
            if earliest.is_some_and(|earliest| tick_of(earliest) < tick) {
                break; // All that follow in this round are later.
            }
            let slot = self.slots[(tick % SLOTS) as usize];
            if slot.first != NONE {
                earliest = Some(earliest.map_or(slot.earliest, |earliest| earliest.min(slot.earliest)));
            }
        }
        earliest
    }

    fn link(&mut self, index: u32, deadline: Instant, slot: u32) {
        let head = &mut self.slots[slot as usize];
        let next = std::mem::replace(&mut head.first, index);
        head.earliest = head.earliest.min(deadline);
        let timer = &mut self.timers[index as usize];
        (timer.slot, timer.previous, timer.next) = (slot, NONE, next);
        if next != NONE {
            self.timers[next as usize].previous = index;
        }
    }

    fn remove(&mut self, index: u32) -> T {
        let Timer { value, slot, previous, next, .. } = self.timers.remove(index as usize);
        if slot != HEAP {
            if self.unmoved == index {
                self.unmoved = next;
            } else if previous == NONE {
                self.slots[slot as usize].first = next;
            } else {
                self.timers[previous as usize].next = next;
            }
            if next != NONE {
                self.timers[next as usize].previous = previous;
            }
            if self.slots[slot as usize].first == NONE {
                self.slots[slot as usize] = EMPTY;
            }
        }
        if self.timers.is_empty() {
            self.heap.clear();
            self.earliest = None;
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_due(wheel: &mut Wheel<u64>, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| wheel.pop(Instant(now))).collect()
    }

    #[test]
    fn timers_fire_in_order_and_never_early() {
        let mut wheel = Wheel::new(Instant(1_000));
        for deadline in [5_000, 1_001, 1_063, 1_500_000, 0, 1_001] {
            wheel.insert(Instant(deadline), deadline);
        }
        assert_eq!(wheel.next_deadline(), Some(Instant(0)));
        assert_eq!(all_due(&mut wheel, 1_000), [0]);
        assert_eq!(wheel.next_deadline(), Some(Instant(1_001)));
        assert_eq!(all_due(&mut wheel, 1_062), [1_001, 1_001]);
        assert_eq!(all_due(&mut wheel, 4_999), [1_063]);
        assert_eq!(all_due(&mut wheel, 5_000), [5_000]);
        assert_eq!(wheel.next_deadline(), Some(Instant(1_500_000)));
        assert_eq!(all_due(&mut wheel, 1_499_999), [0_u64; 0]);
        assert_eq!(all_due(&mut wheel, u64::MAX / 2), [1_500_000]);
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn a_stale_name_is_no_timer() {
        let mut wheel = Wheel::new(Instant(0));
        let first = wheel.insert(Instant(10), 1);
        assert_eq!(wheel.cancel(first), Some(1));
        let second = wheel.insert(Instant(10), 2);
        assert_eq!(wheel.cancel(first), None);
        assert_eq!(all_due(&mut wheel, 10), [2]);
        assert_eq!(wheel.cancel(second), None);
    }

    #[test]
    fn timers_of_one_slot_are_moved_a_few_at_a_time() {
        let mut wheel = Wheel::new(Instant(0));
        let (due, later) = (Instant(1_000), Instant(1_000 + SLOTS * SLOT_MILLIS));
        let timers: Vec<TimerId> = (0..10).map(|number| wheel.insert(due, number)).collect();
        let in_next_round = wheel.insert(later, 10);
        assert_eq!((wheel.advance(Instant(999), &mut { 0 }), wheel.next_deadline()), (true, Some(due)));
        assert!(!wheel.advance(due, &mut { 4 }));
        assert_eq!((wheel.next_deadline(), wheel.heap.len()), (Some(due), 3));
        // The first that is to be moved next, one behind it, one that was moved, and one that stays.
        for (id, value) in [(timers[6], 6), (timers[2], 2), (timers[8], 8), (in_next_round, 10)] {
            assert_eq!(wheel.cancel(id), Some(value));
        }
        wheel.insert(due, 11);
        wheel.insert(later, 12);
        assert!(!wheel.advance(due, &mut { 4 }));
        assert!(wheel.advance(due, &mut { 4 }));
        assert_eq!(all_due(&mut wheel, 1_000), [0, 1, 3, 4, 5, 7, 9, 11]);
        assert_eq!((wheel.next_deadline(), all_due(&mut wheel, later.0)), (Some(later), vec![12]));
    }

    #[test]
    fn timers_that_were_cancelled_are_passed_a_few_at_a_time() {
        let mut wheel = Wheel::new(Instant(1_000));
        let timers: Vec<TimerId> = (0..10).map(|number| wheel.insert(Instant(1_000), number)).collect();
        timers[..8].iter().for_each(|id| assert!(wheel.cancel(*id).is_some()));
        assert!(!wheel.advance(Instant(1_000), &mut { 4 }));
        assert_eq!(wheel.heap.len(), 6);
        let mut left = 5;
        assert!(wheel.advance(Instant(1_000), &mut left));
        assert_eq!((left, wheel.heap.len()), (1, 2));
        assert_eq!(all_due(&mut wheel, 1_000), [8, 9]);
    }

    #[test]
    fn a_slot_that_waits_for_a_later_round_is_not_looked_into() {
        let mut wheel = Wheel::new(Instant(0));
        let round = SLOTS * SLOT_MILLIS;
        wheel.insert(Instant(1_000 + 2 * round), 1);
        wheel.insert(Instant(500), 2);
        assert!(wheel.advance(Instant(1_500), &mut { 1 }));
        assert_eq!(all_due(&mut wheel, 1_500), [2]);
        wheel.insert(Instant(500 + round), 3);
        assert!(wheel.advance(Instant(1_500 + round), &mut { 1 }));
        assert_eq!(all_due(&mut wheel, 1_000 + 2 * round), [3, 1]);
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
        let mut now = 77;
        let mut wheel = Wheel::new(Instant(now));
        let mut list: Vec<(u64, u64, TimerId)> = Vec::new();
        for step in 0..30_000 {
            match below(10) {
                0..=4 => {
                    let spans = [1, 100, 10_000, 400_000, 20_000_000];
                    let span = spans[below(5) as usize];
                    let deadline = (now + below(span)).saturating_sub(below(3));
                    list.push((deadline, step, wheel.insert(Instant(deadline), step)));
                }
                5..=6 if !list.is_empty() => {
                    let (_, value, id) = list.swap_remove(below(list.len() as u64) as usize);
                    assert_eq!(wheel.cancel(id), Some(value));
                }
                7..=8 => {
                    let leap = [10, 1_000, 300_000][below(3) as usize];
                    now += below(leap);
                    wheel.advance(Instant(now), &mut { below(4) as usize });
                }
                _ => {
                    let leap = [10, 1_000, 300_000][below(3) as usize];
                    now += below(leap);
                    let fired = all_due(&mut wheel, now);
                    let mut expected: Vec<(u64, u64)> =
                        list.iter().filter(|timer| timer.0 <= now).map(|timer| (timer.0, timer.1)).collect();
                    list.retain(|timer| timer.0 > now);
                    expected.sort_unstable();
                    let expected: Vec<u64> = expected.into_iter().map(|(_, value)| value).collect();
                    assert_eq!(fired, expected);
                    assert_eq!(wheel.len(), list.len());
                    let earliest = list.iter().map(|timer| timer.0).min();
                    assert!(
                        wheel.next_deadline().map(|deadline| deadline.0) <= earliest || earliest.is_none()
                    );
                    assert_eq!(wheel.next_deadline().is_some(), earliest.is_some());
                }
            }
        }
    }
}
