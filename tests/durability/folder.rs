//! Folders that go with the test that made them, and what tests look at in them.

use std::fs;
use std::path::{Path, PathBuf};

/// A new folder; dropping it removes it with all that is in it.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    /// A folder for the test of this name, on the disk that the build is on.
    pub(crate) fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("durability-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder can be made");
        Self { path }
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // A test may have removed it.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The names of what is in a folder, in order.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let name =
        |entry: std::io::Result<fs::DirEntry>| entry.expect("it can be read").file_name().into_string();
    let mut names: Vec<String> = entries.map(|entry| name(entry).expect("names are text")).collect();
    names.sort();
    names
}

/// The segments of the log, oldest first.
pub(crate) fn segments(folder: &Path) -> Vec<PathBuf> {
    names(folder).iter().filter(|name| name.starts_with("log-")).map(|name| folder.join(name)).collect()
}

/// The segment that is written to.
pub(crate) fn last_segment(folder: &Path) -> PathBuf {
    segments(folder).pop().expect("something was stored")
}

/// Bytes of a file.
pub(crate) fn length(file: &Path) -> u64 {
    fs::metadata(file).expect("the file is there").len()
}

/// Bytes of a segment up to its last one that is not zero: behind what was written there are zeros to be written over.
pub(crate) fn written(segment: &Path) -> u64 {
    let content = fs::read(segment).expect("the file is there");
    content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

/// Copies the files of a folder into a new one.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).expect("a file can be copied");
    }
}
