//! What a process and its device used, from the kernel's counters.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::stat::{major, minor};

use crate::engine::Outcome;

/// The place of the sectors written in a block device's `stat`, and the size of a sector.
const SECTORS_WRITTEN: (usize, u64) = (6, 512);
/// The place of the flush requests in a block device's `stat`.
const FLUSHES: usize = 15;

/// Counters that only grow.
#[derive(Clone, Copy)]
pub struct Usage {
    /// Processor seconds of all threads, in user and kernel mode.
    pub processor_seconds: f64,
    /// Bytes this process made dirty, which is what the kernel counts as written. It counts a whole
    /// folio of the page cache where one page in it changed, so it can be many times too high.
    pub written_bytes: u64,
    /// Bytes anybody wrote to the device, the journal of the file system included.
    pub device_bytes: u64,
    /// Flush requests anybody made of the device.
    pub device_flushes: u64,
}

impl Usage {
    /// The counters now, of this process and of the device that holds the directory.
    pub fn now(directory: &Path) -> Outcome<Self> {
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let processor_seconds = [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
            .sum();
        let device = fs::metadata(directory)?.dev();
        let statistics =
            fs::read_to_string(format!("/sys/dev/block/{}:{}/stat", major(device), minor(device)))?;
        let statistic = |place| -> Outcome<u64> {
            let field = statistics.split_whitespace().nth(place);
            Ok(field.ok_or("a shorter stat than known")?.parse()?)
        };
        Ok(Self {
            processor_seconds,
            written_bytes: proc_number("/proc/self/io", "write_bytes:")?,
            device_bytes: statistic(SECTORS_WRITTEN.0)? * SECTORS_WRITTEN.1,
            device_flushes: statistic(FLUSHES)?,
        })
    }
}

/// The most memory this process had resident, in bytes.
pub fn resident_peak() -> Outcome<u64> {
    Ok(proc_number("/proc/self/status", "VmHWM:")? * 1024)
}

/// The number after this label in a file of the kernel.
fn proc_number(path: &str, label: &str) -> Outcome<u64> {
    let contents = fs::read_to_string(path)?;
    let line = contents.lines().find(|line| line.starts_with(label));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("a label that is not there")?.parse()?)
}

/// The bytes allocated on the disk by everything below the directory.
pub fn bytes_on_disk(directory: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_on_disk(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

/// Makes the kernel forget the pages of every file below the directory.
pub fn evict(directory: &Path) -> Outcome<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            evict(&path)?;
        } else {
            let file = File::open(&path)?;
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}
