//! The brokers: which there are, how each is started with its limits raised alike, and how it is stopped.
//!
//! Only processes started here are ended, by their handle.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::client::Client;

/// The name of this broker.
pub(crate) const OURS: &str = "broker";

/// The name of what all others are compared with.
pub(crate) const BASELINE: &str = "mosquitto";

/// Where a distribution may put it, the search path first.
const MOSQUITTO: [&str; 3] = ["mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];

const START_PATIENCE: Duration = Duration::from_secs(10);

/// Another process may take a port between its choice and its use.
const START_ATTEMPTS: usize = 3;

/// A broker that can be started.
pub(crate) struct Contender {
    pub(crate) name: String,
    /// Program and arguments. `{port}` stands for the port, `{config}` for a file with `config` in it.
    command: Vec<String>,
    config: Option<&'static str>,
    /// How it tells its version.
    version: Option<&'static str>,
    pinned: bool,
}

/// No limit, nothing on disk, nothing logged, no delay by Nagle: as for this broker.
const MOSQUITTO_CONFIG: &str = "\
listener {port} 127.0.0.1
allow_anonymous true
max_connections -1
max_inflight_messages 0
max_queued_messages 0
max_queued_bytes 0
memory_limit 0
persistence false
set_tcp_nodelay true
sys_interval 0
log_dest none
log_type none
";

/// This broker, mosquitto if it is there, and those that the user names.
pub(crate) fn all(pinned: bool) -> Vec<Contender> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let mut all = vec![Contender {
        name: OURS.to_owned(),
        command: words(&[
            env!("CARGO_BIN_EXE_broker"),
            "-q",
            "--host=127.0.0.1",
            "--port={port}",
            "--in-flight-max=65535",
            "--queued-messages-max=4294967295",
            "--queued-bytes-max=1024G",
            "--queued-bytes-total-max=1024G",
            "--outbox-bytes-max=1G",
            "--sys-interval=0",
            "--status-interval=0",
        ]),
        config: None,
        version: Some("--version"),
        pinned,
    }];
    match MOSQUITTO.iter().find(|program| first_line(program, "-h").is_some()) {
        Some(program) => all.push(Contender {
            name: BASELINE.to_owned(),
            command: words(&[program, "-c", "{config}"]),
            config: Some(MOSQUITTO_CONFIG),
            version: Some("-h"),
            pinned,
        }),
        None => println!("mosquitto is not installed: there is nothing to compare with"),
    }
    let others = std::env::var("VERSUS_OTHERS").unwrap_or_default();
    for other in others.split(';').filter(|other| !other.trim().is_empty()) {
        match other.split_once('=') {
            Some((name, command)) if command.contains("{port}") => all.push(Contender {
                name: name.trim().to_owned(),
                command: command.split_whitespace().map(str::to_owned).collect(),
                config: None,
                version: None,
                pinned,
            }),
            _ => eprintln!("VERSUS_OTHERS: {other:?} is not of the form name=command with {{port}}"),
        }
    }
    all
}

/// The first line that a program prints.
fn first_line(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

impl Contender {
    pub(crate) fn version(&self) -> String {
        self.version
            .and_then(|argument| first_line(&self.command[0], argument))
            .unwrap_or_else(|| self.command.join(" "))
    }

    /// Starts it on a free port and waits until it accepts clients.
    pub(crate) fn start(&self) -> io::Result<Running> {
        let mut result = Err(io::Error::other("never tried"));
        for _ in 0..START_ATTEMPTS {
            result = self.try_start();
            if result.is_ok() {
                break;
            }
        }
        result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.name)))
    }

    fn try_start(&self) -> io::Result<Running> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let port = address.port().to_string();
        let config = match self.config {
            Some(text) => Some(TemporaryFile::new(&port, &text.replace("{port}", &port))?),
            None => None,
        };
        let path = config.as_ref().map_or(String::new(), |file| file.0.display().to_string());
        let words = self.command.iter().map(|word| word.replace("{port}", &port).replace("{config}", &path));
        let prefix = if self.pinned { ["taskset", "-c", "0"].as_slice() } else { &[] };
        let mut words = prefix.iter().map(|word| (*word).to_owned()).chain(words);
        let program = words.next().expect("a command has a program");
        // `taskset` becomes the program it is given, so the process is the broker's own.
        let child = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut running = Running { address, child, _config: config };
        running.wait()?;
        Ok(running)
    }
}

/// A broker at work; dropping it ends it.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    child: Child,
    _config: Option<TemporaryFile>,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a client is accepted.
    fn wait(&mut self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended at once: {status}")));
            }
            match Client::connect(self.address, "first", None) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > START_PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only if it has ended by itself. Nothing of it is needed any more, so it is not asked first.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that goes with its value.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(port: &str, text: &str) -> io::Result<Self> {
        let name = format!("versus-{}-{port}.conf", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // What is left behind is small and in the folder for such things.
        let _ = std::fs::remove_file(&self.0);
    }
}
