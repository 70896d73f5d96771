//! redb with a table of bodies and a table of queue entries.

use std::path::Path;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{CACHE_BYTES, Engine, Inventory, Operation, Outcome};

/// Bodies by the number of their message.
const BODIES: TableDefinition<u64, &[u8]> = TableDefinition::new("bodies");
/// Queue entries by session and sequence.
const ENTRIES: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("entries");

/// Opens the redb database in this directory.
pub(super) fn database(directory: &Path) -> Outcome<Database> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create(directory.join("journal.redb"))?)
}

/// Begins a durable write transaction: one phase, or with quick repair, which means two phases.
pub(super) fn transaction(database: &Database, quick_repair: bool) -> Outcome<WriteTransaction> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(quick_repair);
    Ok(transaction)
}

/// The engine.
pub struct RedbTables {
    /// The database.
    database: Database,
    /// Whether each commit saves the state of the allocator.
    quick_repair: bool,
}

impl RedbTables {
    /// Opens the journal in this directory.
    pub fn open(directory: &Path, quick_repair: bool) -> Outcome<Self> {
        let database = database(directory)?;
        let transaction = database.begin_write()?;
        transaction.open_table(BODIES)?;
        transaction.open_table(ENTRIES)?;
        transaction.commit()?;
        Ok(Self { database, quick_repair })
    }
}

impl Engine for RedbTables {
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()> {
        let transaction = transaction(&self.database, self.quick_repair)?;
        {
            let mut bodies = transaction.open_table(BODIES)?;
            let mut entries = transaction.open_table(ENTRIES)?;
            for operation in batch {
                match operation {
                    Operation::Insert { message, session, sequence, body, entry } => {
                        bodies.insert(message, body)?;
                        entries.insert((*session, *sequence), entry)?;
                    }
                    Operation::Delete { message, session, sequence } => {
                        bodies.remove(message)?;
                        entries.remove((*session, *sequence))?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn load(&self) -> Outcome<Inventory> {
        let mut inventory = Inventory::default();
        let transaction = self.database.begin_read()?;
        for pair in transaction.open_table(BODIES)?.iter()? {
            let (message, body) = pair?;
            inventory.count(message.value(), body.value().len());
        }
        let mut entries = 0;
        for pair in transaction.open_table(ENTRIES)?.iter()? {
            let (_, entry) = pair?;
            entries += 1;
            inventory.bytes += entry.value().len() as u64;
        }
        assert_eq!(entries, inventory.messages, "an entry for each body");
        Ok(inventory)
    }
}
