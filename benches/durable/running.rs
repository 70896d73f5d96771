//! The broker with a store or without one, and what of its use a store is the reason for.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Settings;
use crate::measure::{self, Process};

/// What a clock tick of `/proc/PID/stat` is on every Linux of today.
const TICK: Duration = Duration::from_millis(10);

/// The thread of a store that writes the log, and the one that takes it into the base.
const LOG_THREAD: &str = "store-log";
const BASE_THREAD: &str = "store-base";

/// With each batch the former wakes the loop, by writing so many bytes to a descriptor.
const WAKE_BYTES: u64 = 8;

/// A command that starts the broker at an address.
pub(crate) fn command(settings: &Settings, address: SocketAddr, store: Option<&Path>) -> Command {
    let broker = std::env::var("DURABLE_BROKER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_broker").to_owned());
    let mut command = measure::command(&broker, settings.is_pinned);
    command.arg("--host=127.0.0.1").arg(format!("--port={}", address.port())).args(measure::LIMITS);
    if let Some(store) = store {
        command.arg("--data-dir").arg(store);
    }
    command
}

/// A broker at work; dropping it ends it.
pub(crate) struct Running {
    pub(crate) process: Process,
    folder: PathBuf,
}

/// What it has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Processor time of the threads of its store.
    pub(crate) store_time: Duration,
    /// Bytes that those threads have passed to the system for writing.
    pub(crate) log_bytes: u64,
    pub(crate) base_bytes: u64,
    /// Batches that were written to the log; zeros and the beginning of a segment count as others.
    pub(crate) commits: u64,
    /// Bytes that the system has to write to the disk for it, in whole pages.
    pub(crate) disk_bytes: u64,
}

impl Running {
    /// Starts a broker, with an empty store or without one, and waits until it accepts clients.
    pub(crate) fn start(settings: &Settings, is_durable: bool) -> io::Result<Self> {
        let mut folder = PathBuf::new();
        let process = Process::start(|address| {
            folder = settings.place.folder("running")?;
            settings.place.settle();
            let store = is_durable.then(|| folder.join("store"));
            let mut command = command(settings, address, store.as_deref());
            command.arg("-q").stderr(File::create(folder.join("said"))?);
            Ok(command)
        })?;
        Ok(Self { process, folder })
    }

    /// Where its store is, if it has one.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.process.pid()));
        let mut usage = Usage { disk_bytes: io_counter(&process, "write_bytes")?, ..Usage::default() };
        for task in fs::read_dir(process.join("task"))? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?;
            let bytes = match name.trim_end() {
                LOG_THREAD => &mut usage.log_bytes,
                BASE_THREAD => &mut usage.base_bytes,
                _ => continue,
            };
            *bytes = io_counter(&task, "wchar")?;
            usage.store_time += processor_time(&task)?;
            if name.trim_end() == LOG_THREAD {
                // Every other write is one that wakes.
                usage.commits = io_counter(&task, "syscw")? / 2;
                usage.log_bytes -= usage.commits * WAKE_BYTES;
            }
        }
        Ok(usage)
    }
}

impl Usage {
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            store_time: self.store_time.saturating_sub(earlier.store_time),
            log_bytes: self.log_bytes.saturating_sub(earlier.log_bytes),
            base_bytes: self.base_bytes - earlier.base_bytes,
            commits: self.commits - earlier.commits,
            disk_bytes: self.disk_bytes - earlier.disk_bytes,
        }
    }
}

fn io_counter(task: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(task.join("io"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.unwrap_or("").parse().map_err(|error| io::Error::other(format!("{name} in {text:?}: {error}")))
}

/// In ticks: finer times are not told by every kernel.
fn processor_time(task: &Path) -> io::Result<Duration> {
    let text = fs::read_to_string(task.join("stat"))?;
    // The name may contain anything, so fields are counted from its closing bracket.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u32 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    Ok(TICK * ticks)
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only warnings are said: a limit that was reached, or a store that failed.
        let said = fs::read_to_string(self.folder.join("said")).unwrap_or_default();
        for line in said.lines() {
            eprintln!("the broker said: {line}");
        }
    }
}
