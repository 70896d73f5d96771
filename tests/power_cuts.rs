//! The power goes, or the process is killed, at any moment, again and again: what was reported as stored is there afterwards, and batches are there
//! whole or not at all.
//!
//! The store runs with its threads on a disk of our own. What the broker makes of what comes back is for the simulator,
//! some of whose worlds have the same disk. `POWER_CUTS=n` makes a longer run, `POWER_CUTS_SEED=n` replays one.

#![cfg(feature = "persistence")]

#[path = "support/disk.rs"]
mod disk;
#[path = "support/random.rs"]
mod random;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use broker::codec::PacketId;
use broker::journal::{Batch, Key, Lsn, ReceiptRecord, Record};
use broker::store::{OpenError, Report, Store, Stored};

use disk::{Disk, WriteTally};
use random::Random;

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

fn read(stored: &Stored) -> Result<Records, OpenError> {
    let mut records = Records::new();
    stored.for_each(|key, value| {
        records.insert(key.to_vec(), value.to_vec());
        Ok::<(), OpenError>(())
    })?;
    Ok(records)
}

/// Some records are made, some change, some go. Of those that never change each is made once.
fn batch(random: &mut Random, truth: &Records, last: &mut Lsn) -> Batch {
    let mut batch = Batch::default();
    let mut here: Vec<Lsn> = Vec::new();
    for _ in 0..1 + random.below(12) {
        let record = ReceiptRecord { session: Lsn(random.below(1 << 30) as u64), packet_id: PacketId::FIRST };
        let changing = Key::Session(Lsn(random.below(30) as u64 + 1));
        *last = last.next();
        match random.below(6) {
            0 => batch.put(changing, &Record::Receipt(record)),
            1 => batch.remove(changing),
            2..=4 => {
                here.push(*last);
                batch.put(Key::Receipt(*last), &Record::Receipt(record));
            }
            _ => {
                let known = truth.keys().filter_map(|key| Key::read(key).ok());
                let receipts: Vec<Lsn> = known
                    .filter(|key| matches!(key, Key::Receipt(_)))
                    .map(Key::lsn)
                    .chain(here.drain(..))
                    .collect();
                if !receipts.is_empty() {
                    batch.remove(Key::Receipt(receipts[random.below(receipts.len())]));
                }
            }
        }
    }
    if random.once_in(8) {
        *last = last.next();
        let size = *random.pick(&MESSAGE_BYTES) + random.below(50);
        batch.put_message(*last, b"t", b"", &vec![random.below(256) as u8; size], None);
    }
    batch.finish(*last);
    batch
}

fn last_of(batches: &[Batch]) -> Lsn {
    batches.last().map(Batch::last).expect("no report is of none")
}

/// What happened in one world.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    commits: u64,
    /// Commits that failed at first.
    failures: u64,
    /// Commits of several batches.
    together: u64,
    /// Cuts after which a batch was there that had not been reported.
    unreported: u64,
    /// Times that segments were taken into the base.
    condensed: u64,
    writes: WriteTally,
}

/// Sizes of messages: of a frame with others, of some blocks, and of a frame too large for zeros, which is seldom the first to fill
/// its file.
const MESSAGE_BYTES: [usize; 5] = [100, 4_000, 9_000, 70_000, 70_000];

/// What a segment may hold: a few frames, some blocks, and frames that are too large for zeros.
const SEGMENT_BYTES: [u64; 3] = [900, 20_000, 300_000];

/// One disk, a few lives.
fn live(seed: u64) -> Tally {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut disk = Disk::default();
    let mut truth = Records::new();
    let mut under_way = UnderWay::new();
    let mut last = Lsn(0);
    for _ in 0..6 {
        let power = *random.pick(&[20, 60, 200, 1_000]);
        disk.state().power = 1 + random.below(power) as u64;
        disk.state().sound = None;
        disk.state().has_failed = false;
        disk.state().writes_through = !random.once_in(3);
        disk.state().mishaps = None;
        tally.cuts += 1;
        match Stored::open(Arc::new(disk.clone())) {
            Ok(stored) => match read(&stored) {
                Ok(records) => {
                    if let Some((_, possible)) = under_way.iter().find(|(_, possible)| *possible == records) {
                        truth = possible.clone();
                        tally.unreported += 1;
                    }
                    assert_eq!(records, truth, "what was reported is there, and batches are whole");
                    under_way.clear();
                    disk.state().sound = random.once_in(8).then(|| 2 + random.below(20) as u64);
                    let mishaps = random.clone();
                    disk.state().mishaps = random.once_in(16).then_some(mishaps);
                    last = commit_until_the_cut(
                        stored,
                        &mut random,
                        &mut tally,
                        &mut truth,
                        &mut under_way,
                        last,
                    );
                }
                Err(OpenError::Io(_)) => {}
                Err(error) => panic!("it can be read: {error}"),
            },
            Err(error) => assert_eq!(disk.state().power, 0, "with power it can be opened: {error}"),
        }
        let WriteTally { through, through_several, through_behind, through_longer, in_part } =
            std::mem::take(&mut disk.state().tally);
        tally.writes.through += through;
        tally.writes.through_several += through_several;
        tally.writes.through_behind += through_behind;
        tally.writes.through_longer += through_longer;
        tally.writes.in_part += in_part;
        // A process that is only killed leaves behind what the system has not written yet.
        if !random.once_in(3) {
            disk = disk.survive(&mut random);
        }
    }
    tally
}

/// The last numbers of batches that were handed over, and what is stored once they are.
type UnderWay = VecDeque<(Lsn, Records)>;

fn commit_until_the_cut(
    stored: Stored,
    random: &mut Random,
    tally: &mut Tally,
    truth: &mut Records,
    under_way: &mut UnderWay,
    mut last: Lsn,
) -> Lsn {
    let (wake, woken) = channel();
    let wake = Mutex::new(wake);
    let mut store = stored.start(
        *random.pick(&SEGMENT_BYTES),
        Arc::new(move || {
            let _ = wake.lock().map(|wake| wake.send(()));
        }),
    );
    for _ in 0..300 {
        if random.once_in(60) {
            // The thread of the base has to have a core at times, wherever this runs.
            std::thread::sleep(Duration::from_millis(3));
        }
        // Several may wait; they may be stored together.
        for _ in 0..1 + random.below(4) {
            let mut after = under_way.back().map_or(&*truth, |(_, after)| after).clone();
            let batch = batch(random, &after, &mut last);
            if batch.is_empty() {
                continue;
            }
            batch.apply(&mut after);
            store.commit(batch);
            under_way.push_back((last, after));
        }
        while !under_way.is_empty() {
            match store.poll() {
                Some(Report::Stored(batches, _)) => {
                    let stored = last_of(&batches);
                    let before = under_way.len();
                    while let Some((_, after)) = under_way.pop_front_if(|(last, _)| *last <= stored) {
                        *truth = after;
                    }
                    tally.commits += 1;
                    tally.together += u64::from(before - under_way.len() > 1);
                }
                Some(Report::Failed(error)) if error.to_string() == "not now" => tally.failures += 1,
                Some(Report::Failed(_)) => return last,
                Some(Report::Condensed(_)) => tally.condensed += 1,
                Some(Report::BaseFailed(_)) => {}
                None => woken.recv_timeout(Duration::from_secs(30)).expect("the store answers"),
            }
        }
    }
    last
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn nothing_that_was_stored_is_lost() {
    if let Some(seed) = setting("POWER_CUTS_SEED") {
        println!("{:?}", live(seed));
        return;
    }
    let seeds = setting("POWER_CUTS").unwrap_or(150);
    let next = AtomicU64::new(0);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let worker = || {
            let mut tallies = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return tallies;
                }
                let lived = std::panic::catch_unwind(|| live(seed));
                tallies.push(lived.unwrap_or_else(|_| panic!("POWER_CUTS_SEED={seed} failed")));
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a seed failed, see above")).collect()
    });
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let [cuts, commits, failures] =
        [sum(|tally| tally.cuts), sum(|tally| tally.commits), sum(|tally| tally.failures)];
    let together = sum(|tally| tally.together);
    println!(
        "{cuts} cuts, {commits} commits, {together} of several batches, {failures} at the second attempt"
    );
    if seeds >= 100 {
        let [condensed, unreported] = [sum(|tally| tally.condensed), sum(|tally| tally.unreported)];
        println!("{condensed} times condensed, {unreported} batches there and not reported");
        assert!(commits > 1_000 && condensed > 100, "the log is taken into the base");
        assert!(failures > 3, "what failed is tried again");
        let [through, several, behind, longer, in_part] = [
            sum(|tally| tally.writes.through),
            sum(|tally| tally.writes.through_several),
            sum(|tally| tally.writes.through_behind),
            sum(|tally| tally.writes.through_longer),
            sum(|tally| tally.writes.in_part),
        ];
        println!(
            "{through} written through, {several} of several blocks, {behind} behind the first, {longer} longer; {in_part} \
             in part"
        );
        assert!(through > 100 && several > 100 && behind > 100 && longer > 100, "some disks write through");
        assert!(in_part > 50, "some writes go wrong part way");
        assert!(together > 100, "batches that wait are stored together");
        assert!(unreported > 5, "the power went between disk and report, too");
    }
}

/// A commit fails and is on disk all the same, behind which its record is removed. Whatever is tried again, and in whatever
/// parts the log gets to the base: the record is gone.
#[test]
fn what_failed_is_tried_again_as_it_was() {
    let disk = Disk::default();
    disk.state().power = u64::MAX;
    let (wake, woken) = channel();
    let wake = Mutex::new(wake);
    let stored = Stored::open(Arc::new(disk.clone())).expect("it can be opened");
    // After that of the segment's beginning.
    disk.state().sound = Some(1);
    let mut store = stored.start(
        1 << 20,
        Arc::new(move || {
            let _ = wake.lock().map(|wake| wake.send(()));
        }),
    );
    let next = |store: &mut Store| loop {
        match store.poll() {
            Some(report) => return report,
            None => woken.recv_timeout(Duration::from_secs(30)).expect("the store answers"),
        }
    };
    let key = Key::Receipt(Lsn(1));
    let receipt = ReceiptRecord { session: Lsn(1), packet_id: PacketId::FIRST };
    let mut put = Batch::default();
    put.put(key, &Record::Receipt(receipt));
    put.finish(Lsn(1));
    store.commit(put);
    assert!(matches!(next(&mut store), Report::Failed(_)));
    let mut removal = Batch::default();
    removal.remove(key);
    removal.finish(Lsn(2));
    store.commit(removal);
    let mut stored = Lsn::NONE;
    let mut condensed = 0;
    while stored < Lsn(2) || condensed == 0 {
        match next(&mut store) {
            Report::Stored(batches, _) => stored = last_of(&batches),
            Report::Condensed(count) => condensed += count,
            report => panic!("{report:?}"),
        }
    }
    drop(store);
    let stored = Stored::open(Arc::new(disk)).expect("it can be opened");
    assert_eq!(read(&stored).expect("it can be read"), Records::new());
}

/// Two batches, each of which comes while the other one is being stored, and is followed by the next one as soon as it is
/// stored. On a slow disk they come together, and stay so.
#[test]
fn who_was_answered_is_waited_for_where_the_disk_is_slow() {
    const COMMITS: usize = 30;
    let disk = Disk::default();
    disk.state().power = u64::MAX;
    let stored = Stored::open(Arc::new(disk.clone())).expect("it can be opened");
    let (wake, woken) = channel();
    let wake = Mutex::new(wake);
    let wake = move || {
        let _ = wake.lock().map(|wake| wake.send(()));
    };
    let mut store = stored.start(1 << 20, Arc::new(wake));
    disk.state().settling = Duration::from_millis(20);
    let mut last = Lsn::NONE;
    let mut next_batch = || {
        last = last.next();
        let mut batch = Batch::default();
        let receipt = ReceiptRecord { session: Lsn(1), packet_id: PacketId::FIRST };
        batch.put(Key::Receipt(last), &Record::Receipt(receipt));
        batch.finish(last);
        batch
    };
    store.commit(next_batch());
    std::thread::sleep(disk.state().settling / 4);
    store.commit(next_batch());
    let (mut commits, mut together) = (0, 0);
    while commits < COMMITS {
        match store.poll() {
            Some(Report::Stored(batches, _)) => {
                commits += 1;
                together += usize::from(batches.len() == 2);
                // Those who are answered take a moment, as clients do.
                std::thread::sleep(Duration::from_millis(1));
                batches.iter().for_each(|_| store.commit(next_batch()));
            }
            Some(report) => panic!("{report:?}"),
            None => woken.recv_timeout(Duration::from_secs(30)).expect("the store answers"),
        }
    }
    assert!(together > COMMITS / 2, "{together} of {commits}");
}
