//! The timer wheel does what a list does that is sorted by deadline and then by the order of arming.

#![no_main]

use broker::clock::Instant;
use broker::wheel::{TimerId, Wheel};
use libfuzzer_sys::fuzz_target;

struct Timer {
    /// The deadline as it counts: not before the time that the wheel knew of when the timer was armed.
    due: u64,
    number: usize,
    deadline: u64,
    id: TimerId,
}

fuzz_target!(|bytes: &[u8]| {
    let mut now = 1_000_000;
    let mut known = now;
    let mut wheel = Wheel::new(Instant(now));
    let mut list: Vec<Timer> = Vec::new();
    let mut stale: Option<TimerId> = None;
    for (number, operation) in bytes.chunks_exact(3).enumerate() {
        let argument = u64::from(u16::from_be_bytes([operation[1], operation[2]]));
        // Spans from milliseconds to the end of time.
        let span = argument << (2 * (operation[0] >> 3));
        match operation[0] & 0x07 {
            0..=3 => {
                let deadline = now.saturating_add(span).saturating_sub(1_000);
                let id = wheel.insert(Instant(deadline), number);
                list.push(Timer { due: deadline.max(known), number, deadline, id });
            }
            4 if !list.is_empty() => {
                let Timer { number, id, .. } = list.remove(argument as usize % list.len());
                assert_eq!(wheel.cancel(id), Some(number));
                stale = Some(id);
            }
            5 => now = wheel.next_deadline().map_or(now, |deadline| deadline.0.max(now)),
            _ => now = now.saturating_add(span),
        }
        if let Some(id) = stale {
            assert_eq!(wheel.cancel(id), None);
        }
        if operation[0] & 0x07 >= 5 {
            list.sort_by_key(|timer| (timer.due, timer.number));
            let due = list.partition_point(|timer| timer.due <= now);
            for timer in list.drain(..due) {
                assert_eq!(wheel.pop(Instant(now)), Some(timer.number));
                stale = Some(timer.id);
            }
            assert_eq!(wheel.pop(Instant(now)), None);
            known = now;
            assert!(wheel.next_deadline().is_none_or(|deadline| deadline.0 > now));
        }
        assert_eq!(wheel.len(), list.len());
        let earliest = list.iter().map(|timer| timer.deadline).min();
        assert_eq!(wheel.next_deadline().is_some(), earliest.is_some());
        assert!(wheel.next_deadline().map(|deadline| deadline.0) <= earliest);
    }
});
