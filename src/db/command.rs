//! `broker db`: what can be done with the store of a broker that does not run.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;

use crate::clock::Clock;
use crate::journal::{Batch, Lsn};
use crate::store::{Claim, OpenError, Stored};

use super::{Stats, check, export_record, import};

/// What to do with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Say whether it is whole, and whether a broker could start from it.
    Check,
    /// Count what is in it.
    Stats,
    /// Write its records as lines of JSON.
    Export,
    /// Make a new one from such lines.
    Import,
}

impl Action {
    /// The action that has this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "check" => Self::Check,
            "stats" => Self::Stats,
            "export" => Self::Export,
            "import" => Self::Import,
            _ => return None,
        })
    }
}

/// Records by their keys.
type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Does it with the store in this folder.
///
/// # Errors
///
/// If there is none, or there is one and none is wanted; if it is in use, damaged, or does not fit together; or the
/// machine's.
pub fn run(
    action: Action,
    directory: &Path,
    input: impl BufRead,
    output: &mut impl Write,
) -> Result<(), Box<dyn Error>> {
    let in_folder = |error: OpenError| format!("{}: {error}", directory.display());
    let is_there = directory.is_dir() && Claim::new(directory).map_err(in_folder)?.has_store()?;
    if action == Action::Import {
        if is_there {
            return Err(format!("{}: there is a store already", directory.display()).into());
        }
        return fill(directory, input, output);
    }
    if !is_there {
        return Err(format!("{}: there is no store", directory.display()).into());
    }
    let claim = Claim::new(directory).map_err(in_folder)?;
    let mut stored = Stored::open(claim.medium()).map_err(in_folder)?;
    match action {
        Action::Check => {
            stored.check().map_err(in_folder)?;
            let restored = check(records_of(&stored).map_err(in_folder)?.into_iter(), Clock::new().now())?;
            writeln!(
                output,
                "whole: {} sessions, {} subscriptions, {} messages waiting, {} retained",
                restored.sessions, restored.subscriptions, restored.deliveries, restored.retained
            )?;
        }
        Action::Stats => {
            let mut stats = Stats::default();
            stored.for_each(|key, value| {
                stats.add(key, value);
                Ok::<(), OpenError>(())
            })?;
            write!(output, "{stats}")?;
        }
        Action::Export => {
            stored.for_each(|key, value| export_record(key, value, output).map_err(OpenError::Io))?;
            output.flush()?;
        }
        Action::Import => {}
    }
    Ok(())
}

fn records_of(stored: &Stored) -> Result<Records, OpenError> {
    let mut records = Records::new();
    stored.for_each(|key, value| {
        records.insert(key.to_vec(), value.to_vec());
        Ok::<(), OpenError>(())
    })?;
    Ok(records)
}

/// All lines, or nothing.
fn fill(directory: &Path, input: impl BufRead, output: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut batch = Batch::default();
    let mut records = Records::new();
    let mut last = Lsn::NONE;
    let count = import(input, |key, record| {
        batch.put(key, record);
        last = last.max(key.lsn());
        let (mut key_bytes, mut value) = (Vec::new(), Vec::new());
        key.write(&mut key_bytes);
        record.write(&mut value);
        records.insert(key_bytes, value);
        Ok(())
    })?;
    check(records.into_iter(), Clock::new().now())?;
    batch.finish(last);
    let claim = Claim::new(directory)?;
    Stored::open(claim.medium())?.fill(&batch)?;
    writeln!(output, "{count} records")?;
    Ok(())
}
