//! What every storage engine here must do, and the list of the engines.

mod fjall_tables;
mod grouped;
mod raw;
mod redb_tables;
mod sqlite_tables;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

/// The result of anything here that can fail; a benchmark only ever reports the error.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The cache every engine that has one is given, in bytes.
pub const CACHE_BYTES: usize = 128 * 1024 * 1024;

/// One change of the journal.
pub enum Operation<'payload> {
    /// A message arrives: its body and its entry in the queue of its session.
    Insert {
        /// The place of the message in the order of arrival.
        message: u64,
        /// The session whose queue it stands in.
        session: u64,
        /// Its place in this queue.
        sequence: u64,
        /// The body.
        body: &'payload [u8],
        /// The value of the queue entry.
        entry: &'payload [u8],
    },
    /// A message was acknowledged: its body and its queue entry go.
    Delete {
        /// The place of the message in the order of arrival.
        message: u64,
        /// The session whose queue it stood in.
        session: u64,
        /// Its place in this queue.
        sequence: u64,
    },
}

/// What a pass over everything that is alive found.
#[derive(Default)]
pub struct Inventory {
    /// Messages alive.
    pub messages: u64,
    /// Bytes of their bodies and queue entries.
    pub bytes: u64,
    /// The oldest message alive; the next message when none is.
    pub first: u64,
    /// One more than the newest message alive.
    pub next: u64,
}

impl Inventory {
    /// Counts one live message; they come in the order of their numbers.
    pub fn count(&mut self, message: u64, bytes: usize) {
        if self.messages == 0 {
            self.first = message;
        }
        self.messages += 1;
        self.bytes += bytes as u64;
        self.next = message + 1;
    }
}

/// A journal: atomic, durable commits, and a pass over what is alive.
pub trait Engine {
    /// Commits the batch as one transaction, which is on the disk on return.
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()>;

    /// Reads every live record, in the order of the keys.
    fn load(&self) -> Outcome<Inventory>;
}

/// The engines that are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// redb, a table of bodies and a table of queue entries.
    Redb,
    /// The same, with the state of the allocator saved in every commit.
    RedbQuickRepair,
    /// fjall, a keyspace of bodies and a keyspace of queue entries.
    Fjall,
    /// SQLite with a write-ahead log.
    Sqlite,
    /// redb, a commit's whole batch as one value.
    GroupedRedb,
    /// The same, with the state of the allocator saved in every commit.
    GroupedRedbQuickRepair,
    /// fjall, a commit's whole batch as one value.
    GroupedFjall,
    /// A file that is appended to: the limit.
    Raw,
    /// A file whose space was written beforehand and is written over.
    RawRecycled,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 9] = [
        Self::Redb,
        Self::RedbQuickRepair,
        Self::Fjall,
        Self::Sqlite,
        Self::GroupedRedb,
        Self::GroupedRedbQuickRepair,
        Self::GroupedFjall,
        Self::Raw,
        Self::RawRecycled,
    ];

    /// The name in the tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redb => "redb",
            Self::RedbQuickRepair => "redb-quick-repair",
            Self::Fjall => "fjall",
            Self::Sqlite => "sqlite",
            Self::GroupedRedb => "grouped-redb",
            Self::GroupedRedbQuickRepair => "grouped-redb-quick-repair",
            Self::GroupedFjall => "grouped-fjall",
            Self::Raw => "raw",
            Self::RawRecycled => "raw-recycled",
        }
    }

    /// The engine of this name.
    pub fn named(name: &str) -> Outcome<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| format!("no engine is named {name}").into())
    }

    /// Whether what was written can be read again after the file is closed.
    pub fn reopens(self) -> bool {
        self != Self::RawRecycled
    }

    /// Opens the journal in this directory, creating it if there is none.
    pub fn open(self, directory: &Path) -> Outcome<Box<dyn Engine>> {
        Ok(match self {
            Self::Redb => Box::new(redb_tables::RedbTables::open(directory, false)?),
            Self::RedbQuickRepair => Box::new(redb_tables::RedbTables::open(directory, true)?),
            Self::Fjall => Box::new(fjall_tables::FjallTables::open(directory)?),
            Self::Sqlite => Box::new(sqlite_tables::SqliteTables::open(directory)?),
            Self::GroupedRedb => {
                Box::new(grouped::Grouped::open(grouped::RedbValues::open(directory, false)?)?)
            }
            Self::GroupedRedbQuickRepair => {
                Box::new(grouped::Grouped::open(grouped::RedbValues::open(directory, true)?)?)
            }
            Self::GroupedFjall => Box::new(grouped::Grouped::open(grouped::FjallValues::open(directory)?)?),
            Self::Raw => Box::new(raw::Raw::open(directory)?),
            Self::RawRecycled => Box::new(raw::RawRecycled::open(directory)?),
        })
    }
}

/// The mark of an insertion in an encoded batch.
const INSERTION: u8 = 1;
/// The mark of a deletion in an encoded batch.
const DELETION: u8 = 2;
/// The bytes of a queue entry's value.
const ENTRY_BYTES: usize = 16;

/// Appends the batch to the buffer: an insertion is a mark, the message, session, sequence, the
/// length of the body, the entry and the body; a deletion is a mark and the message.
fn encode(batch: &[Operation], buffer: &mut Vec<u8>) {
    for operation in batch {
        match operation {
            Operation::Insert { message, session, sequence, body, entry } => {
                buffer.push(INSERTION);
                buffer.extend_from_slice(&message.to_le_bytes());
                buffer.extend_from_slice(&session.to_le_bytes());
                buffer.extend_from_slice(&sequence.to_le_bytes());
                buffer.extend_from_slice(&(body.len() as u32).to_le_bytes());
                buffer.extend_from_slice(entry);
                buffer.extend_from_slice(body);
            }
            Operation::Delete { message, .. } => {
                buffer.push(DELETION);
                buffer.extend_from_slice(&message.to_le_bytes());
            }
        }
    }
}

/// Something an encoded batch says.
enum Decoded {
    /// A message with this number and this many bytes of body and entry.
    Inserted(u64, usize),
    /// The message with this number is gone.
    Deleted(u64),
}

/// Takes the first bytes off the rest; a benchmark only reads what it wrote, so this may panic.
fn take<'rest>(rest: &mut &'rest [u8], length: usize) -> &'rest [u8] {
    let (head, tail) = rest.split_at(length);
    *rest = tail;
    head
}

/// Takes a number of eight bytes off the rest.
fn take_number(rest: &mut &[u8]) -> u64 {
    u64::from_le_bytes(take(rest, 8).try_into().expect("eight bytes"))
}

/// Calls the visitor with each thing the encoded batch says.
fn decode(mut rest: &[u8], mut visit: impl FnMut(Decoded)) {
    while !rest.is_empty() {
        let mark = take(&mut rest, 1)[0];
        let message = take_number(&mut rest);
        if mark == DELETION {
            visit(Decoded::Deleted(message));
            continue;
        }
        take(&mut rest, 16);
        let length = u32::from_le_bytes(take(&mut rest, 4).try_into().expect("four bytes"));
        let bytes = ENTRY_BYTES + length as usize;
        take(&mut rest, bytes);
        visit(Decoded::Inserted(message, bytes));
    }
}

/// The live messages of encoded batches that are replayed in order.
#[derive(Default)]
struct Replay {
    /// The bytes of each live message.
    live: BTreeMap<u64, usize>,
}

impl Replay {
    /// Replays one encoded batch.
    fn batch(&mut self, batch: &[u8]) {
        decode(batch, |decoded| match decoded {
            Decoded::Inserted(message, bytes) => {
                self.live.insert(message, bytes);
            }
            Decoded::Deleted(message) => {
                self.live.remove(&message);
            }
        });
    }

    /// What is alive at the end.
    fn inventory(self) -> Inventory {
        let mut inventory = Inventory::default();
        for (message, bytes) in self.live {
            inventory.count(message, bytes);
        }
        inventory
    }
}
