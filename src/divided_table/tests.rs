use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;

/// Spread over all bits, as the hash of a text is.
const fn hash_of(key: u64) -> u64 {
    let hash = key.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

type Entry = (u64, u64);

fn find(table: &DividedTable<Entry>, key: u64) -> Option<u64> {
    table.find(hash_of(key), |entry| entry.0 == key).map(|entry| entry.1)
}

fn insert(table: &mut DividedTable<Entry>, key: u64, value: u64) {
    table.insert_unique(hash_of(key), (key, value), |entry| hash_of(entry.0));
}

impl<T> DividedTable<T> {
    fn check_invariants(&self, hash_of: impl Fn(&T) -> u64) {
        let Some(parts) = &self.parts else {
            assert_eq!(self.len, self.whole.len());
            assert!(self.len <= WHOLE_MAX);
            return;
        };
        assert!(self.whole.is_empty());
        assert_eq!(self.len, parts.iter().map(HashTable::len).sum::<usize>());
        for (number, part) in parts.iter().enumerate() {
            assert!(part.iter().all(|entry| part_of(hash_of(entry)) == number));
        }
    }
}

#[test]
fn it_holds_what_a_plain_map_holds() {
    for seed in 1..=4_u64 {
        let mut random = seed;
        let mut next = |below: u64| {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (random >> 33) % below
        };
        let (mut table, mut plain) = (DividedTable::new(), BTreeMap::new());
        let keys = 6 * WHOLE_MAX as u64;
        for step in 0..4 * keys {
            let key = next(keys);
            assert_eq!(find(&table, key), plain.get(&key).copied());
            // First it grows, then it shrinks.
            let inserts = if step < 3 * keys { 3 } else { 1 };
            match next(4) {
                choice if choice < inserts => match plain.insert(key, step) {
                    None => insert(&mut table, key, step),
                    Some(_) => {
                        table.find_mut(hash_of(key), |entry| entry.0 == key).expect("it is there").1 = step;
                    }
                },
                _ => {
                    let removed = table.remove(hash_of(key), |entry| entry.0 == key);
                    assert_eq!(removed.map(|entry| entry.1), plain.remove(&key));
                }
            }
            if step % (keys / 8) == 0 {
                table.check_invariants(|entry| hash_of(entry.0));
                assert_eq!((table.len(), table.is_empty()), (plain.len(), plain.is_empty()));
                let mut entries: Vec<Entry> = table.iter().copied().collect();
                entries.sort_unstable();
                assert!(entries.into_iter().eq(plain.iter().map(|(key, value)| (*key, *value))));
            }
        }
        assert!(table.parts.is_some(), "it was large");
    }
}

#[test]
fn all_entries_with_one_hash_are_found_together() {
    let mut table = DividedTable::new();
    for key in 0..4 * WHOLE_MAX as u64 {
        // Two and two have the same hash.
        table.insert_unique(hash_of(key / 2), (key, 0), |entry: &Entry| hash_of(entry.0 / 2));
    }
    for pair in 0..2 * WHOLE_MAX as u64 {
        let mut found: Vec<u64> =
            table.iter_hash(hash_of(pair)).map(|entry| entry.0).filter(|key| key / 2 == pair).collect();
        found.sort_unstable();
        assert_eq!(found, [2 * pair, 2 * pair + 1]);
    }
}

#[test]
fn no_insertion_moves_more_than_a_few_entries() {
    let mut table = DividedTable::new();
    let mut largest_sum_moved = 0;
    for key in 0..200 * WHOLE_MAX as u64 {
        // An entry is hashed anew when it moves: once or twice.
        let hashed = Cell::new(0);
        table.insert_unique(hash_of(key), (key, 0), |entry: &Entry| {
            hashed.set(hashed.get() + 1);
            hash_of(entry.0)
        });
        largest_sum_moved = largest_sum_moved.max(hashed.get());
    }
    // Of 1,400,000 entries.
    assert_eq!(table.len(), 200 * WHOLE_MAX);
    assert!(largest_sum_moved <= 2 * WHOLE_MAX, "{largest_sum_moved} moved at once");
}

#[test]
fn a_small_table_is_a_single_one() {
    let mut table = DividedTable::new();
    for key in 0..WHOLE_MAX as u64 {
        insert(&mut table, key, 0);
    }
    assert!(table.parts.is_none());
    assert_eq!(size_of_val(&table), size_of::<HashTable<Entry>>() + 2 * size_of::<usize>());
    insert(&mut table, WHOLE_MAX as u64, 0);
    assert!(table.parts.is_some());
}
