//! fjall with a keyspace of bodies and a keyspace of queue entries.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{CACHE_BYTES, Engine, Inventory, Operation, Outcome};

/// The most that all journal files of fjall may take before it flushes to shrink them.
const JOURNALS_BYTES: u64 = 256 * 1024 * 1024;

/// Opens the fjall database in this directory, with one background thread for two cores.
pub(super) fn database(directory: &Path) -> Outcome<Database> {
    Ok(Database::builder(directory.join("journal.fjall"))
        .cache_size(CACHE_BYTES as u64)
        .max_journaling_size(JOURNALS_BYTES)
        .worker_threads(1)
        .open()?)
}

/// The settings of a keyspace: nothing is looked up that is not there, so few filters.
pub(super) fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().expect_point_read_hits(true)
}

/// The engine.
pub struct FjallTables {
    /// Bodies by the number of their message.
    bodies: Keyspace,
    /// Queue entries by session and sequence.
    entries: Keyspace,
    /// The database; it closes last.
    database: Database,
}

impl FjallTables {
    /// Opens the journal in this directory.
    pub fn open(directory: &Path) -> Outcome<Self> {
        let database = database(directory)?;
        Ok(Self {
            bodies: database.keyspace("bodies", options)?,
            entries: database.keyspace("entries", options)?,
            database,
        })
    }
}

/// The key of a queue entry.
fn entry_key(session: u64, sequence: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&session.to_be_bytes());
    key[8..].copy_from_slice(&sequence.to_be_bytes());
    key
}

impl Engine for FjallTables {
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()> {
        let mut changes = self.database.batch().durability(Some(PersistMode::SyncData));
        for operation in batch {
            match operation {
                Operation::Insert { message, session, sequence, body, entry } => {
                    changes.insert(&self.bodies, message.to_be_bytes(), *body);
                    changes.insert(&self.entries, entry_key(*session, *sequence), *entry);
                }
                Operation::Delete { message, session, sequence } => {
                    changes.remove(&self.bodies, message.to_be_bytes());
                    changes.remove(&self.entries, entry_key(*session, *sequence));
                }
            }
        }
        changes.commit()?;
        Ok(())
    }

    fn load(&self) -> Outcome<Inventory> {
        let mut inventory = Inventory::default();
        for guard in self.bodies.iter() {
            let (message, body) = guard.into_inner()?;
            inventory.count(u64::from_be_bytes(message.as_ref().try_into()?), body.len());
        }
        let mut entries = 0;
        for guard in self.entries.iter() {
            let (_, entry) = guard.into_inner()?;
            entries += 1;
            inventory.bytes += entry.len() as u64;
        }
        assert_eq!(entries, inventory.messages, "an entry for each body");
        Ok(inventory)
    }
}
