//! Where a store's files are: a folder, or whatever a test puts in its place.
//!
//! The narrow waist between the store and the disk. What is written is only certain to be there after a power cut once it
//! was synchronized or written through, and so is a name.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Named files.
pub trait Medium: fmt::Debug + Send + Sync {
    /// The names of all files, in no particular order.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Opens a file; makes it if it is not there.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn open(&self, name: &str) -> io::Result<Box<dyn MediumFile>>;

    /// Gives a file another name, which nothing has yet.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes certain that the names of files are as they are now.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn synchronize_names(&self) -> io::Result<()>;
}

/// One file.
pub trait MediumFile: fmt::Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn length(&self) -> io::Result<u64>;

    /// Cuts it, or fills it up with zeros.
    ///
    /// # Errors
    ///
    /// The machine's.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Fills `out` with what stands at a position.
    ///
    /// # Errors
    ///
    /// The machine's, or if the file ends before `out` is full.
    fn read_at(&self, position: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes at a position, behind the end as well.
    ///
    /// # Errors
    ///
    /// The machine's. Some of the bytes may be written then.
    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes whole blocks, from the beginning of a block, behind the end as well, and makes certain that they are there: as
    /// `write_at` and `synchronize` do, for less. False where that cannot be; some of the blocks may be written all the same.
    ///
    /// # Errors
    ///
    /// The machine's. Then nobody knows what stands there.
    fn write_through(&self, position: u64, blocks: &[u8]) -> io::Result<bool>;

    /// Makes certain that the file is as it is now.
    ///
    /// # Errors
    ///
    /// The machine's. Then nobody knows what the file is.
    fn synchronize(&self) -> io::Result<()>;

    /// Fails if the file is no longer where it was opened: whatever is written to it will be lost.
    ///
    /// # Errors
    ///
    /// If it was removed or replaced, or its folder is gone.
    fn check_presence(&self) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The files in a folder that exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Medium for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn MediumFile>> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let inode = file.metadata()?.ino();
        Ok(Box::new(FolderFile {
            file,
            path,
            inode,
            direct: OnceLock::new(),
            is_refused: AtomicBool::new(false),
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn synchronize_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Only that is asked for: once somebody has asked when a file was changed, Linux notes the time of its next change
/// precisely, and the next synchronization has the inode to write as well.
#[cfg(target_os = "linux")]
fn inode(path: &Path) -> io::Result<u64> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    use rustix::io::Errno;

    match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
        Ok(file) => Ok(file.stx_ino),
        // An old kernel, or a container that allows no more than it knows.
        Err(Errno::NOSYS | Errno::PERM) => Ok(fs::metadata(path)?.ino()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

#[derive(Debug)]
struct FolderFile {
    file: File,
    path: PathBuf,
    inode: u64,
    /// The same file as one that the system does not keep in memory, if it can be.
    direct: OnceLock<Option<File>>,
    /// Whether it cannot be written to after all.
    is_refused: AtomicBool,
}

impl FolderFile {
    #[cfg(target_os = "linux")]
    fn open_direct(&self) -> Option<File> {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;

        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits();
        let file = OpenOptions::new().write(true).custom_flags(flags.cast_signed()).open(&self.path).ok()?;
        // Or it was another one that was opened.
        self.check_presence().ok()?;
        Some(file)
    }

    #[cfg(not(target_os = "linux"))]
    fn open_direct(&self) -> Option<File> {
        None
    }
}

impl MediumFile for FolderFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, position)
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, position)
    }

    fn write_through(&self, position: u64, blocks: &[u8]) -> io::Result<bool> {
        if self.is_refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let Some(file) = self.direct.get_or_init(|| self.open_direct()) else { return Ok(false) };
        match file.write_all_at(blocks, position) {
            Ok(()) => Ok(true),
            // There may be room for the bytes if not for their block, and `write_at` says it better.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Ok(false)
            }
            // Some file systems let it be opened, and others have larger blocks.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                self.is_refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn synchronize(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn check_presence(&self) -> io::Result<()> {
        if inode(&self.path)? == self.inode {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "the file was replaced by another one"))
        }
    }
}
