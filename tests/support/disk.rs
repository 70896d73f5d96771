//! A disk that loses its power: what was not synchronized is forgotten, any part of it, in any order, down to single
//! sectors, and names of files as well. When it is told to it refuses writes, fails in the middle of them, or fails to
//! synchronize, for a moment, and then works again.
//!
//! Deliberately not here: a disk that lies about what it has synchronized, and one whose contents change by themselves.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use broker::store::medium::{Medium, MediumFile};

use crate::random::Random;

const SECTOR_BYTES: usize = 512;

/// What is written through comes in blocks of this size.
const BLOCK_BYTES: u64 = 4096;

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

/// What a disk is, and what will become of it.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Operations until the power goes.
    pub(crate) power: u64,
    /// Synchronizations of the log until one fails, and with it the attempt to cut off what it was of.
    pub(crate) sound: Option<u64>,
    pub(crate) has_failed: bool,
    /// Whether blocks can be written through.
    pub(crate) writes_through: bool,
    /// Decides which writes of the log fail part way; none while all do what they should.
    pub(crate) mishaps: Option<Random>,
    /// How long it takes to make something certain.
    pub(crate) settling: Duration,
    pub(crate) tally: WriteTally,
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    certain_names: BTreeMap<String, usize>,
}

/// What writes there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WriteTally {
    pub(crate) through: u64,
    /// Those of several blocks, those behind the first block of a file,
    pub(crate) through_several: u64,
    pub(crate) through_behind: u64,
    /// and those that made a file longer.
    pub(crate) through_longer: u64,
    /// Those that were refused or failed part way.
    pub(crate) in_part: u64,
}

/// How a write through goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    Refused,
    Failed,
}

/// A disk that loses power.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    number: usize,
}

impl Disk {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
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
    pub(crate) fn survive(&self, random: &mut Random) -> Self {
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
            let mut state = self.disk.powered()?;
            let length = state.contents[self.number].seen.len() as u64;
            assert!(position <= length, "no hole is left before it");
            state.tally.through_longer += u64::from(position + blocks.len() as u64 > length);
        }
        let mishap = self.mishap(3, blocks.len() / BLOCK_BYTES as usize);
        let done = mishap.map_or(blocks, |(_, done)| &blocks[..done * BLOCK_BYTES as usize]);
        self.put(position, done)?;
        if let Some((Mishap::Failed, _)) = mishap {
            return Err(io::Error::other("not now"));
        }
        self.settle(Some((position, done.len() as u64)))?;
        let tally = &mut self.disk.state().tally;
        tally.through += 1;
        tally.through_several += u64::from(done.len() as u64 > BLOCK_BYTES);
        tally.through_behind += u64::from(position > 0);
        Ok(mishap.is_none())
    }

    fn synchronize(&self) -> io::Result<()> {
        self.settle(None)
    }

    fn check_presence(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile {
    /// Makes certain what is pending, or only the length and what stands in a range.
    fn settle(&self, range: Option<(u64, u64)>) -> io::Result<()> {
        let settling = self.disk.state().settling;
        if !settling.is_zero() {
            thread::sleep(settling);
        }
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
        let Content { certain, pending, .. } = &mut state.contents[self.number];
        let mut kept: Vec<Pending> = Vec::new();
        for pending in pending.drain(..) {
            match pending {
                Pending::Write(at, bytes) => {
                    let is_outside = range.is_some_and(|(position, length)| {
                        at + bytes.len() as u64 <= position || position + length <= at
                    });
                    if is_outside {
                        kept.push(Pending::Write(at, bytes));
                    } else {
                        write(certain, at as usize, &bytes);
                    }
                }
                Pending::Length(length) => {
                    certain.resize(length as usize, 0);
                    // What was cut off does not come back.
                    for pending in &mut kept {
                        if let Pending::Write(at, bytes) = pending {
                            bytes.truncate(length.saturating_sub(*at) as usize);
                        }
                    }
                }
            }
        }
        *pending = kept;
        Ok(())
    }
}
