//! Plain files: what the disk and the kernel allow, with neither an index nor space given back.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Engine, Inventory, Operation, Outcome, Replay, encode};

/// The bytes before an encoded batch: its length.
const HEADER_BYTES: usize = 4;

/// Puts the batch into the buffer, its length first.
fn frame(batch: &[Operation], buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    encode(batch, buffer);
    let length = (buffer.len() - HEADER_BYTES) as u32;
    buffer[..HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// A file that grows by each batch.
pub struct Raw {
    /// Where the file is.
    path: PathBuf,
    /// The file, open for appending.
    file: File,
    /// The batch that is being written.
    buffer: Vec<u8>,
}

impl Raw {
    /// Opens the file in this directory.
    pub fn open(directory: &Path) -> Outcome<Self> {
        let path = directory.join("journal.raw");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        Ok(Self { path, file, buffer: Vec::new() })
    }
}

impl Engine for Raw {
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()> {
        frame(batch, &mut self.buffer);
        self.file.write_all(&self.buffer)?;
        self.file.sync_data()?;
        Ok(())
    }

    fn load(&self) -> Outcome<Inventory> {
        let mut file = BufReader::new(File::open(&self.path)?);
        let mut replay = Replay::default();
        let mut header = [0; HEADER_BYTES];
        let mut batch = Vec::new();
        while file.read_exact(&mut header).is_ok() {
            batch.resize(u32::from_le_bytes(header) as usize, 0);
            if file.read_exact(&mut batch).is_err() {
                break;
            }
            replay.batch(&batch);
        }
        Ok(replay.inventory())
    }
}

/// The size of the file that is written over.
const RECYCLED_BYTES: u64 = 128 * 1024 * 1024;

/// A file of a fixed size whose every block was written before: a commit changes no metadata.
pub struct RawRecycled {
    /// The file.
    file: File,
    /// Where the next batch goes.
    position: u64,
    /// The batch that is being written.
    buffer: Vec<u8>,
}

impl RawRecycled {
    /// Creates the file in this directory and writes zeros to all of it.
    pub fn open(directory: &Path) -> Outcome<Self> {
        let mut file = File::create(directory.join("journal.recycled"))?;
        let zeros = vec![0; 1024 * 1024];
        for _ in 0..RECYCLED_BYTES / zeros.len() as u64 {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(Self { file, position: 0, buffer: Vec::new() })
    }
}

impl Engine for RawRecycled {
    fn commit(&mut self, batch: &[Operation]) -> Outcome<()> {
        frame(batch, &mut self.buffer);
        let length = self.buffer.len() as u64;
        if self.position + length > RECYCLED_BYTES {
            self.position = 0;
        }
        self.file.write_all_at(&self.buffer, self.position)?;
        self.file.sync_data()?;
        self.position += length;
        Ok(())
    }

    fn load(&self) -> Outcome<Inventory> {
        Ok(Inventory::default())
    }
}
