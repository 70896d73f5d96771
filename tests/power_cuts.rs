//! The power goes, or the process is killed, at any moment, again and again: what was reported as stored is there afterwards, and batches are there
//! whole or not at all.
//!
//! The store runs on a disk of our own, which forgets what was not synchronized: any part of it, in any order, down to
//! single sectors, and names of files as well. Sometimes it fails for a moment, part way through a write as well, and then works again. `POWER_CUTS=n` makes a longer run, `POWER_CUTS_SEED=n` replays one.

#![cfg(feature = "persistence")]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use broker::codec::PacketId;
use broker::journal::{Batch, Key, Lsn, ReceiptRecord, Record};
use broker::store::medium::{Medium, MediumFile};
use broker::store::{OpenError, Report, Store, Stored};

const SECTOR_BYTES: usize = 512;

/// What is written through comes in blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// A generator that a seed decides.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn once_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A change of a file that is not certain yet.
#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

fn write(content: &mut Vec<u8>, position: usize, bytes: &[u8]) {
    if content.len() < position + bytes.len() {
        content.resize(position + bytes.len(), 0);
    }
    content[position..position + bytes.len()].copy_from_slice(bytes);
}

/// One file: as everybody sees it, and as it would be if the power went and nothing else had got to disk.
#[derive(Clone, Debug, Default)]
struct Content {
    seen: Vec<u8>,
    certain: Vec<u8>,
    pending: Vec<Pending>,
}

impl Content {
    /// What is left of it: some of what is pending may have got to disk.
    fn survive(&self, random: &mut Random) -> Vec<u8> {
        let mut content = self.certain.clone();
        for pending in &self.pending {
            match pending {
                Pending::Length(length) if random.once_in(2) => content.resize(*length as usize, 0),
                Pending::Length(_) => {}
                Pending::Write(position, bytes) => {
                    let mut position = *position as usize;
                    let mut rest = bytes.as_slice();
                    while !rest.is_empty() {
                        let room = SECTOR_BYTES - position % SECTOR_BYTES;
                        let (sector, behind) = rest.split_at(room.min(rest.len()));
                        if random.once_in(2) {
                            write(&mut content, position, sector);
                        }
                        position += sector.len();
                        rest = behind;
                    }
                }
            }
        }
        content
    }
}

#[derive(Debug, Default)]
struct State {
    /// Operations until the power goes.
    power: u64,
    /// Synchronizations of the log until one fails, and with it the attempt to cut off what it was of.
    sound: Option<u64>,
    has_failed: bool,
    /// Whether blocks can be written through.
    writes_through: bool,
    /// Decides which writes of the log fail part way; none while all do what they should.
    mishaps: Option<Random>,
    tally: WriteTally,
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    certain_names: BTreeMap<String, usize>,
}

/// What writes there were.
#[derive(Clone, Copy, Debug, Default)]
struct WriteTally {
    through: u64,
    /// Those of several blocks, and those behind the first block of a file.
    through_several: u64,
    through_behind: u64,
    /// Those that were refused or failed part way.
    in_part: u64,
}

/// How a write through goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    Refused,
    Failed,
}

/// A disk that loses power.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    number: usize,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The same for an operation that needs power.
    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.power == 0 {
            return Err(io::Error::other("no power"));
        }
        state.power -= 1;
        Ok(state)
    }

    /// The disk as it is when the power is back.
    fn survive(&self, random: &mut Random) -> Self {
        let state = self.state();
        let mut survivor = State::default();
        let mut names = state.certain_names.clone();
        for (name, number) in &state.names {
            if !names.contains_key(name) && random.once_in(2) {
                names.insert(name.clone(), *number);
            }
        }
        names.retain(|name, _| state.names.contains_key(name) || random.once_in(2));
        for (name, number) in names {
            let content = state.contents[number].survive(random);
            survivor.names.insert(name, survivor.contents.len());
            survivor.contents.push(Content { seen: content.clone(), certain: content, pending: Vec::new() });
        }
        survivor.certain_names = survivor.names.clone();
        Self(Arc::new(Mutex::new(survivor)))
    }
}

impl DiskFile {
    fn put(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let content = &mut self.disk.powered()?.contents[self.number];
        write(&mut content.seen, position as usize, bytes);
        content.pending.push(Pending::Write(position, bytes.to_vec()));
        Ok(())
    }

    fn is_log(&self, state: &State) -> bool {
        state.names.iter().any(|(name, number)| *number == self.number && name.starts_with("log-"))
    }

    /// Whether this write of so many parts goes wrong, once in a few times, and after how many of them. Where one fails, so
    /// may the attempt to cut off what it left.
    fn mishap(&self, once_in: usize, parts: usize) -> Option<(Mishap, usize)> {
        let mut state = self.disk.state();
        let is_log = self.is_log(&state);
        let random = state.mishaps.as_mut().filter(|_| is_log)?;
        if !random.once_in(once_in) {
            return None;
        }
        let mishap = if random.once_in(2) { Mishap::Refused } else { Mishap::Failed };
        let (done, is_cut_off) = (random.below(parts + 1), random.once_in(2));
        state.has_failed |= mishap == Mishap::Failed && !is_cut_off;
        state.tally.in_part += 1;
        Some((mishap, done))
    }
}

impl Medium for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.powered()?.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn MediumFile>> {
        let mut state = self.powered()?;
        let next = state.contents.len();
        let number = *state.names.entry(name.to_owned()).or_insert(next);
        if number == next {
            state.contents.push(Content::default());
        }
        Ok(Box::new(DiskFile { disk: self.clone(), number }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.powered()?;
        let number = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        assert!(state.names.insert(to.to_owned(), number).is_none(), "nothing has that name yet");
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.powered()?.names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn synchronize_names(&self) -> io::Result<()> {
        let mut state = self.powered()?;
        state.certain_names = state.names.clone();
        Ok(())
    }
}

impl MediumFile for DiskFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.powered()?.contents[self.number].seen.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.powered()?;
        if std::mem::take(&mut state.has_failed) {
            return Err(io::Error::other("not now"));
        }
        let content = &mut state.contents[self.number];
        content.seen.resize(length as usize, 0);
        content.pending.push(Pending::Length(length));
        Ok(())
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.powered()?;
        let position = position as usize;
        let found = state.contents[self.number].seen.get(position..position + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some((Mishap::Failed, done)) = self.mishap(6, bytes.len()) {
            self.put(position, &bytes[..done])?;
            return Err(io::Error::other("not now"));
        }
        self.put(position, bytes)
    }

    fn write_through(&self, position: u64, blocks: &[u8]) -> io::Result<bool> {
        assert!(position.is_multiple_of(BLOCK_BYTES) && (blocks.len() as u64).is_multiple_of(BLOCK_BYTES));
        if !self.disk.state().writes_through {
            return Ok(false);
        }
        {
            let content = &mut self.disk.powered()?.contents[self.number];
            assert!(position as usize + blocks.len() <= content.certain.len(), "over what is there");
            assert!(content.pending.is_empty(), "and synchronized");
        }
        let mishap = self.mishap(3, blocks.len() / BLOCK_BYTES as usize);
        let done = mishap.map_or(blocks, |(_, done)| &blocks[..done * BLOCK_BYTES as usize]);
        self.put(position, done)?;
        if let Some((Mishap::Failed, _)) = mishap {
            return Err(io::Error::other("not now"));
        }
        self.synchronize()?;
        let tally = &mut self.disk.state().tally;
        tally.through += 1;
        tally.through_several += u64::from(done.len() as u64 > BLOCK_BYTES);
        tally.through_behind += u64::from(position > 0);
        Ok(mishap.is_none())
    }

    fn synchronize(&self) -> io::Result<()> {
        let mut state = self.disk.powered()?;
        let is_log = self.is_log(&state);
        match state.sound.as_mut().filter(|_| is_log) {
            Some(0) => {
                (state.sound, state.has_failed) = (None, true);
                return Err(io::Error::other("not now"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let content = &mut state.contents[self.number];
        content.certain = content.seen.clone();
        content.pending.clear();
        Ok(())
    }

    fn check_presence(&self) -> io::Result<()> {
        Ok(())
    }
}

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
        let size = MESSAGE_BYTES[random.below(MESSAGE_BYTES.len())] + random.below(50);
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

/// Sizes of messages: of a frame with others, of some blocks, and of a frame too large for zeros.
const MESSAGE_BYTES: [usize; 4] = [100, 4_000, 9_000, 70_000];

/// What a segment may hold: a few frames, some blocks, and frames that are too large for zeros.
const SEGMENT_BYTES: [u64; 3] = [900, 20_000, 300_000];

/// One disk, a few lives.
fn live(seed: u64) -> Tally {
    let mut random = Random(seed);
    let mut tally = Tally::default();
    let mut disk = Disk::default();
    let mut truth = Records::new();
    let mut under_way = UnderWay::new();
    let mut last = Lsn(0);
    for _ in 0..6 {
        let power = *[20, 60, 200, 1_000].get(random.below(4)).expect("one of four");
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
                    let seed = random.0;
                    disk.state().mishaps = random.once_in(16).then_some(Random(seed));
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
        let WriteTally { through, through_several, through_behind, in_part } =
            std::mem::take(&mut disk.state().tally);
        tally.writes.through += through;
        tally.writes.through_several += through_several;
        tally.writes.through_behind += through_behind;
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
        SEGMENT_BYTES[random.below(SEGMENT_BYTES.len())],
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
        let [through, several, behind, in_part] = [
            sum(|tally| tally.writes.through),
            sum(|tally| tally.writes.through_several),
            sum(|tally| tally.writes.through_behind),
            sum(|tally| tally.writes.in_part),
        ];
        println!(
            "{through} written through, {several} of several blocks, {behind} behind the first; {in_part} in part"
        );
        assert!(through > 100 && several > 100 && behind > 100, "some disks write through");
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
