//! The folder in which stores are made.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder that goes with its value, and everything in it.
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    /// Under what the environment names, or under `target`.
    pub(crate) fn new() -> io::Result<Self> {
        let parent = std::env::var_os("DURABLE_DIRECTORY")
            .unwrap_or_else(|| OsString::from(env!("CARGO_TARGET_TMPDIR")));
        fs::create_dir_all(&parent)?;
        let path = fs::canonicalize(parent)?.join(format!("durable-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }

    /// What kind of disk it is on.
    pub(crate) fn description(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let fields = mounts.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?, fields.next()?, fields.next()?))
        });
        // Of two at the same path the later one is seen.
        let nearest = fields.filter(|(_, at, _)| self.path.starts_with(at)).max_by_key(|(_, at, _)| at.len());
        match nearest {
            Some((_, _, kind @ ("tmpfs" | "ramfs"))) => format!("{kind}: NOT A DISK"),
            Some((device, _, kind)) => format!("{kind} of {device}"),
            None => "a disk of unknown kind".to_owned(),
        }
    }

    /// An empty folder in it, whatever there was under this name.
    pub(crate) fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Has the system write what others have left, so that it is not the next measurement that waits for it.
    pub(crate) fn settle(&self) {
        // Where there is no such program, the next measurement may suffer, and rounds show it.
        let _ = Command::new("sync").stdin(Stdio::null()).status();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} is left: {error}", self.path.display());
        }
    }
}

/// What the files in a folder whose names begin like this take on disk, in bytes.
pub(crate) fn bytes_on_disk(folder: &Path, prefix: &str) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;

    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            match entry.metadata() {
                Ok(metadata) => bytes += metadata.blocks() * 512,
                // The broker has removed it since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}
