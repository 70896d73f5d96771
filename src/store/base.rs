//! The base: what the log says, taken together, in a table on disk.
//!
//! The log alone would grow for ever. When a segment is full, what is left of its changes goes into the base as one
//! transaction, and the segment is removed. Most messages are delivered before that and never get here.
//!
//! The table is kept by redb. It runs on the same medium as the log, so that the test which cuts the power cuts it for
//! both.
//!
//! Invariant: the base has all changes up to `applied` and none of later ones.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use crate::journal::{FORMAT_VERSION, Lsn};

use super::changes::Changes;
use super::medium::{Medium, MediumFile};
use super::pace::Pace;
use super::{Damage, OpenError};

/// The name of its file.
pub(super) const BASE_NAME: &str = "base.redb";

/// Its name until it is complete: nobody opens a half-made one.
const UNFINISHED_NAME: &str = "base.new";

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");
const FORMAT: &str = "format";
const APPLIED: &str = "applied";

/// What redb may keep of its file in memory, in bytes.
const CACHE_BYTES: usize = 16 << 20;

/// A table of records.
#[derive(Debug)]
pub(super) struct Base {
    database: Database,
    pub(super) applied: Lsn,
}

/// A file of the medium, as redb wants it.
#[derive(Debug)]
struct Backend(Box<dyn MediumFile>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_length(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.synchronize()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

/// The machine's trouble, whatever redb calls it.
fn io_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn open_error(error: impl Into<redb::Error>) -> OpenError {
    match error.into() {
        // So redb says that it is not one of its files, or ends early.
        redb::Error::Io(error)
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            OpenError::Damaged(Damage::new(BASE_NAME, &error.to_string()))
        }
        redb::Error::Io(error) => OpenError::Io(error),
        other => OpenError::Damaged(Damage::new(BASE_NAME, &other.to_string())),
    }
}

impl Base {
    /// Opens the table, and makes it if it is not there.
    pub(super) fn open(medium: &dyn Medium) -> Result<Self, OpenError> {
        let names = medium.names()?;
        if !names.iter().any(|name| name == BASE_NAME) {
            if names.iter().any(|name| name == UNFINISHED_NAME) {
                medium.remove(UNFINISHED_NAME)?;
            }
            Self::open_as(medium, UNFINISHED_NAME)?.apply(
                &Changes::default(),
                Lsn::NONE,
                &mut Pace::hurried(),
            )?;
            medium.open(UNFINISHED_NAME)?.synchronize()?;
            medium.rename(UNFINISHED_NAME, BASE_NAME)?;
            medium.synchronize_names()?;
        }
        // Reading does not look at checksums, and what redb has not written can make it panic.
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let mut base = Self::open_as(medium, BASE_NAME)?;
            base.verify().map(|_| base)
        }));
        checked.unwrap_or_else(|_| Err(OpenError::Damaged(Damage::new(BASE_NAME, "it cannot be read"))))
    }

    fn open_as(medium: &dyn Medium, name: &str) -> Result<Self, OpenError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = match builder.create_with_backend(Backend(medium.open(name)?)) {
            Ok(database) => database,
            Err(DatabaseError::UpgradeRequired(_)) => return Err(OpenError::Newer(name.into())),
            Err(error) => return Err(open_error(error)),
        };
        let base = Self { database, applied: Lsn::NONE };
        let (format, applied) = base.facts().map_err(open_error)?;
        if format.is_none() && name == BASE_NAME {
            // It had its facts before it had its name.
            return Err(OpenError::Damaged(Damage::new(name, "it is empty")));
        }
        if format.is_some_and(|format| format > u64::from(FORMAT_VERSION)) {
            return Err(OpenError::Newer(BASE_NAME.into()));
        }
        Ok(Self { applied, ..base })
    }

    fn facts(&self) -> Result<(Option<u64>, Lsn), redb::Error> {
        let transaction = self.database.begin_read()?;
        let facts = match transaction.open_table(FACTS) {
            Ok(facts) => facts,
            // As long as nothing was applied.
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok((None, Lsn::NONE)),
            Err(error) => return Err(error.into()),
        };
        let format = facts.get(FORMAT)?.map(|value| value.value());
        let applied = facts.get(APPLIED)?.map_or(0, |value| value.value());
        Ok((format, Lsn(applied)))
    }

    /// Makes changes, all or none.
    pub(super) fn apply(&mut self, changes: &Changes, applied: Lsn, pace: &mut Pace) -> io::Result<()> {
        self.try_apply(changes, applied, pace).map_err(io_error)?;
        self.applied = applied;
        Ok(())
    }

    fn try_apply(&self, changes: &Changes, applied: Lsn, pace: &mut Pace) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        // Opening after a crash would otherwise have to look at everything.
        transaction.set_quick_repair(true);
        {
            let mut facts = transaction.open_table(FACTS)?;
            facts.insert(FORMAT, u64::from(FORMAT_VERSION))?;
            facts.insert(APPLIED, applied.0)?;
            let mut records = transaction.open_table(RECORDS)?;
            for (key, value) in changes.iter() {
                match value {
                    Some(value) => records.insert(key, value)?,
                    None => records.remove(key)?,
                };
                pace.step(8);
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Every record, with changes that it does not have yet, in the order of keys.
    pub(super) fn for_each<E: From<OpenError>>(
        &self,
        changes: &Changes,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut changes = changes.iter().peekable();
        let transaction = self.database.begin_read().map_err(open_error)?;
        match transaction.open_table(RECORDS) {
            Ok(records) => {
                let storage_error = |error: StorageError| open_error(error);
                for record in records.iter().map_err(storage_error)? {
                    let (key, value) = record.map_err(storage_error)?;
                    let key = key.value();
                    while let Some((changed, new)) = changes.next_if(|(changed, _)| *changed < key) {
                        if let Some(new) = new {
                            each(changed, new)?;
                        }
                    }
                    match changes.next_if(|(changed, _)| *changed == key) {
                        Some((_, Some(new))) => each(key, new)?,
                        Some((_, None)) => {}
                        None => each(key, value.value())?,
                    }
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(open_error(error).into()),
        }
        for (key, value) in changes {
            if let Some(value) = value {
                each(key, value)?;
            }
        }
        Ok(())
    }

    /// Looks at every page, and returns whether all was as it should be: what is not needed to read may be repaired.
    fn verify(&mut self) -> Result<bool, OpenError> {
        self.database.check_integrity().map_err(open_error)
    }

    /// Looks at every page.
    pub(super) fn check(&mut self) -> Result<(), OpenError> {
        if self.verify()? {
            Ok(())
        } else {
            Err(OpenError::Damaged(Damage::new(BASE_NAME, "it had to be repaired")))
        }
    }
}
