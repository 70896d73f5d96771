//! The broker as a process: started on a folder, listened to, signalled, killed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_broker");

/// What a process has written so far.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

/// A broker that was started, and may have ended since; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Broker {
    child: Child,
    /// Where it listens; nowhere until it said so.
    pub(crate) address: SocketAddr,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

impl Broker {
    /// Starts a broker and does not wait for anything.
    pub(crate) fn spawn(folder: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["-h", "127.0.0.1", "-p", "0", "--data-dir"])
            .arg(folder)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let stderr = child.stderr.take().expect("it is piped");
        let log = Arc::<Log>::default();
        let written = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                written.lines.lock().expect("nobody panics with it").push(line);
                written.grown.notify_all();
            }
        });
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), log, reader: Some(reader) }
    }

    /// Starts a broker that listens when this returns.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut broker = Self::spawn(folder, arguments);
        let line = broker.line("listening on ");
        let address = line.rsplit(' ').next().and_then(|text| text.parse().ok());
        broker.address = address.expect("the line ends in the address");
        broker
    }

    /// Starts a broker that ends by itself because it refuses to serve; returns what it says.
    pub(crate) fn refused(folder: &Path, arguments: &[&str]) -> String {
        let mut broker = Self::spawn(folder, arguments);
        let status = broker.end();
        let text = broker.lines_with("").join("\n");
        assert_eq!(status.code(), Some(1), "{text}");
        text
    }

    /// The first line with this text in it, now or as soon as it is there.
    pub(crate) fn line(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().expect("nobody panics with it");
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line says {text:?}: {lines:#?}");
            (lines, _) = self.log.grown.wait_timeout(lines, left).expect("nobody panics with it");
        }
    }

    /// All lines so far with this text in them.
    pub(crate) fn lines_with(&self, text: &str) -> Vec<String> {
        let lines = self.log.lines.lock().expect("nobody panics with it");
        lines.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// All lines so far that tell of trouble.
    pub(crate) fn complaints(&self) -> Vec<String> {
        [self.lines_with(" WARN "), self.lines_with(" ERROR ")].concat()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The end of a broker that is about to end by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("it is our child") {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(crate::LOOK_AGAIN),
                None => panic!("it does not end: {:#?}", self.lines_with("")),
            }
        };
        self.read_to_the_end();
        status
    }

    /// Stops it in order.
    pub(crate) fn terminate(&mut self) {
        kill_process(self.pid(), Signal::TERM).expect("it is running");
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{:#?}", self.lines_with(""));
    }

    /// Ends it at once, wherever it is.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
        self.read_to_the_end();
    }

    /// Waits for its last words.
    fn read_to_the_end(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("reading lines does not panic");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
