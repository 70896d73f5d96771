//! The whole batch of a commit as one value under one ascending key, in redb or in fjall.
//!
//! A deletion is nine bytes in the value of the commit that makes it. Values are removed from the
//! oldest on, each in the transaction that makes the last of its messages dead. Only a value older
//! than which there is none may go: a younger value may hold the deletions of messages in older
//! ones, which would come back without it. (A broker needs one thing more, which first-in
//! first-out never asks for: to copy the few live messages of the oldest value forward, so that
//! one of them does not keep everything younger.)

use std::collections::VecDeque;
use std::path::Path;

use fjall::{Keyspace, PersistMode};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    Decoded, Engine, Inventory, Operation, Outcome, Replay, decode, encode, fjall_tables, redb_tables,
};

/// A store of values under ascending keys.
pub trait Values {
    /// Inserts the value and removes the keys, in one transaction that is on the disk on return.
    fn commit(&mut self, key: u64, value: &[u8], removed: &[u64]) -> Outcome<()>;

    /// Calls the visitor with every key and value, in order.
    fn visit(&self, visitor: &mut dyn FnMut(u64, &[u8])) -> Outcome<()>;
}

/// What is known of one value.
struct Group {
    /// Its key.
    key: u64,
    /// Its first message, or the first of a younger value when it holds none.
    first: u64,
    /// Its messages that are alive.
    live: u64,
}

/// The engine.
pub struct Grouped<V> {
    /// The values.
    values: V,
    /// What is known of each value, the oldest first.
    groups: VecDeque<Group>,
    /// The key of the next value.
    key: u64,
    /// The number of the next message.
    next: u64,
    /// The batch that is being written.
    buffer: Vec<u8>,
}

impl<V: Values> Grouped<V> {
    /// Opens the journal: reads all of it, to know which value holds how many live messages.
    pub fn open(values: V) -> Outcome<Self> {
        let mut groups = VecDeque::new();
        let mut following = 0;
        let mut next = 0;
        values.visit(&mut |key, value| {
            groups.push_back(Group { key, first: next, live: 0 });
            following = key + 1;
            decode(value, |decoded| match decoded {
                Decoded::Inserted(message, _) => inserted(&mut groups, &mut next, message),
                Decoded::Deleted(message) => deleted(&mut groups, message),
            });
        })?;
        Ok(Self { values, groups, key: following, next, buffer: Vec::new() })
    }
}

/// The youngest value holds this message.
fn inserted(groups: &mut VecDeque<Group>, next: &mut u64, message: u64) {
    let group = groups.back_mut().expect("a value that is being read");
    if group.live == 0 {
        group.first = message;
    }
    group.live += 1;
    *next = message + 1;
}

/// The message is dead, wherever it is; its value may be gone already.
fn deleted(groups: &mut VecDeque<Group>, message: u64) {
    let place = groups.partition_point(|group| group.first <= message);
    if let Some(group) = place.checked_sub(1).and_then(|place| groups.get_mut(place)) {
        group.live = group.live.saturating_sub(1);
    }
}

impl<V: Values> Engine for Grouped<V> {
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()> {
        self.buffer.clear();
        encode(batch, &mut self.buffer);
        self.groups.push_back(Group { key: self.key, first: self.next, live: 0 });
        for operation in batch {
            match operation {
                Operation::Insert { message, .. } => {
                    inserted(&mut self.groups, &mut self.next, *message);
                }
                Operation::Delete { message, .. } => deleted(&mut self.groups, *message),
            }
        }
        let mut removed = Vec::new();
        while self.groups.len() > 1 && self.groups[0].live == 0 {
            removed.extend(self.groups.pop_front().map(|group| group.key));
        }
        self.values.commit(self.key, &self.buffer, &removed)?;
        self.key += 1;
        Ok(())
    }

    fn load(&self) -> Outcome<Inventory> {
        let mut replay = Replay::default();
        self.values.visit(&mut |_, value| replay.batch(value))?;
        Ok(replay.inventory())
    }
}

/// The values by their keys.
const VALUES: TableDefinition<u64, &[u8]> = TableDefinition::new("values");

/// The values in redb.
pub struct RedbValues {
    /// The database.
    database: Database,
    /// Whether each commit saves the state of the allocator.
    quick_repair: bool,
}

impl RedbValues {
    /// Opens the database in this directory.
    pub fn open(directory: &Path, quick_repair: bool) -> Outcome<Self> {
        let database = redb_tables::database(directory)?;
        let transaction = database.begin_write()?;
        transaction.open_table(VALUES)?;
        transaction.commit()?;
        Ok(Self { database, quick_repair })
    }
}

impl Values for RedbValues {
    fn commit(&mut self, key: u64, value: &[u8], removed: &[u64]) -> Outcome<()> {
        let transaction = redb_tables::transaction(&self.database, self.quick_repair)?;
        {
            let mut values = transaction.open_table(VALUES)?;
            for key in removed {
                values.remove(key)?;
            }
            values.insert(key, value)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn visit(&self, visitor: &mut dyn FnMut(u64, &[u8])) -> Outcome<()> {
        let transaction = self.database.begin_read()?;
        for pair in transaction.open_table(VALUES)?.iter()? {
            let (key, value) = pair?;
            visitor(key.value(), value.value());
        }
        Ok(())
    }
}

/// The values in fjall.
pub struct FjallValues {
    /// The values by their keys.
    values: Keyspace,
    /// The database; it closes last.
    database: fjall::Database,
}

impl FjallValues {
    /// Opens the database in this directory.
    pub fn open(directory: &Path) -> Outcome<Self> {
        let database = fjall_tables::database(directory)?;
        Ok(Self { values: database.keyspace("values", fjall_tables::options)?, database })
    }
}

impl Values for FjallValues {
    fn commit(&mut self, key: u64, value: &[u8], removed: &[u64]) -> Outcome<()> {
        let mut changes = self.database.batch().durability(Some(PersistMode::SyncData));
        for key in removed {
            changes.remove(&self.values, key.to_be_bytes());
        }
        changes.insert(&self.values, key.to_be_bytes(), value);
        changes.commit()?;
        Ok(())
    }

    fn visit(&self, visitor: &mut dyn FnMut(u64, &[u8])) -> Outcome<()> {
        for guard in self.values.iter() {
            let (key, value) = guard.into_inner()?;
            visitor(u64::from_be_bytes(key.as_ref().try_into()?), &value);
        }
        Ok(())
    }
}
