//! The timer wheel does what a list that is searched from end to end does.

#![no_main]

use broker::clock::Instant;
use broker::wheel::Wheel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut now = 1_000_000;
    let mut wheel = Wheel::new(Instant(now));
    let mut list = Vec::new();
    for (step, operation) in bytes.chunks_exact(3).enumerate() {
        let number = u64::from(u16::from_be_bytes([operation[1], operation[2]]));
        // Spans from milliseconds to months.
        let span = number << (operation[0] >> 3);
        match operation[0] & 0x07 {
            0..=3 => {
                let deadline = (now + span).saturating_sub(1_000);
                list.push((deadline, step, wheel.insert(Instant(deadline), step)));
            }
            4 if !list.is_empty() => {
                let (_, value, id) = list.swap_remove(number as usize % list.len());
                assert_eq!(wheel.cancel(id), Some(value));
                assert_eq!(wheel.cancel(id), None);
            }
            _ => {
                now += span;
                let fired: Vec<usize> = std::iter::from_fn(|| wheel.pop(Instant(now))).collect();
                let mut expected: Vec<(u64, usize)> =
                    list.iter().filter(|timer| timer.0 <= now).map(|timer| (timer.0, timer.1)).collect();
                list.retain(|timer| timer.0 > now);
                expected.sort_unstable();
                assert!(fired.into_iter().eq(expected.into_iter().map(|(_, step)| step)));
            }
        }
        assert_eq!(wheel.len(), list.len());
        let earliest = list.iter().map(|timer| timer.0).min();
        assert_eq!(wheel.next_deadline().is_some(), earliest.is_some());
        assert!(wheel.next_deadline().map(|deadline| deadline.0) <= earliest);
    }
});
