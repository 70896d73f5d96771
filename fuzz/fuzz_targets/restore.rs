//! Any records come back: the broker refuses them, or goes on from them with every invariant kept.

#![no_main]

use std::collections::BTreeMap;

use broker::broker::options::{Durability, Options};
use broker::broker::{Broker, RestoreError};
use broker::clock::{Duration, Instant};
use broker::journal::{Batch, Change, Lsn};
use libfuzzer_sys::fuzz_target;

fn restore(broker: &mut Broker, records: &BTreeMap<&[u8], &[u8]>) -> Result<(), RestoreError> {
    let mut restore = broker.restore(Lsn::NONE);
    for (key, value) in records {
        restore.record(key, value)?;
    }
    restore.finish().map(|_| ())
}

fuzz_target!(|bytes: &[u8]| {
    let mut records = BTreeMap::new();
    for change in Batch::changes_in(bytes) {
        match change {
            Ok(Change::Put(key, value)) => records.insert(key, value),
            Ok(Change::Remove(key)) => records.remove(key),
            Err(_) => break,
        };
    }
    let now = Instant(1_000_000);
    let options =
        Options { seed: 1, durability: Durability::BeforeReply, sys_interval: None, ..Options::default() };
    let mut broker = Broker::new(options, now);
    if restore(&mut broker, &records).is_err() {
        return;
    }
    broker.check_invariants();
    let _ = broker.keys_to_be_stored();
    if let Some(batch) = broker.poll_journal(now) {
        broker.handle_stored(now, batch.last());
    }
    broker.handle_timeout(now + Duration(u64::MAX / 4));
    broker.check_invariants();
});
