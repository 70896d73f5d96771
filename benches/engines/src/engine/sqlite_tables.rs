//! SQLite with a write-ahead log that is synced in every commit.

use std::path::Path;

use rusqlite::Connection;

use super::{CACHE_BYTES, Engine, Inventory, Operation, Outcome};

/// The engine.
pub struct SqliteTables {
    /// The only connection.
    connection: Connection,
}

impl SqliteTables {
    /// Opens the journal in this directory.
    pub fn open(directory: &Path) -> Outcome<Self> {
        let connection = Connection::open(directory.join("journal.sqlite"))?;
        connection.execute_batch(&format!(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA cache_size = -{};
             PRAGMA wal_autocheckpoint = 8192;
             CREATE TABLE IF NOT EXISTS bodies (message INTEGER PRIMARY KEY, body BLOB);
             CREATE TABLE IF NOT EXISTS entries (
                 session INTEGER, sequence INTEGER, entry BLOB,
                 PRIMARY KEY (session, sequence)
             ) WITHOUT ROWID;",
            CACHE_BYTES / 1024
        ))?;
        Ok(Self { connection })
    }
}

impl Engine for SqliteTables {
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert_body = transaction.prepare_cached("INSERT INTO bodies VALUES (?1, ?2)")?;
            let mut insert_entry = transaction.prepare_cached("INSERT INTO entries VALUES (?1, ?2, ?3)")?;
            let mut delete_body = transaction.prepare_cached("DELETE FROM bodies WHERE message = ?1")?;
            let mut delete_entry =
                transaction.prepare_cached("DELETE FROM entries WHERE session = ?1 AND sequence = ?2")?;
            for operation in batch {
                match operation {
                    Operation::Insert { message, session, sequence, body, entry } => {
                        insert_body.execute((message.cast_signed(), body))?;
                        insert_entry.execute((session.cast_signed(), sequence.cast_signed(), entry))?;
                    }
                    Operation::Delete { message, session, sequence } => {
                        delete_body.execute((message.cast_signed(),))?;
                        delete_entry.execute((session.cast_signed(), sequence.cast_signed()))?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn load(&self) -> Outcome<Inventory> {
        let mut inventory = Inventory::default();
        let mut bodies = self.connection.prepare("SELECT message, body FROM bodies ORDER BY message")?;
        let mut rows = bodies.query(())?;
        while let Some(row) = rows.next()? {
            let message: i64 = row.get(0)?;
            inventory.count(message.cast_unsigned(), row.get_ref(1)?.as_blob()?.len());
        }
        let mut entries = self.connection.prepare("SELECT entry FROM entries ORDER BY session, sequence")?;
        let mut rows = entries.query(())?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            count += 1;
            inventory.bytes += row.get_ref(0)?.as_blob()?.len() as u64;
        }
        assert_eq!(count, inventory.messages, "an entry for each body");
        Ok(inventory)
    }
}
