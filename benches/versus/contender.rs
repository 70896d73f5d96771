//! The brokers: which there are, and how each is started with its limits raised alike.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::measure::{LIMITS, Process, command};
use crate::relay;

/// The name of this broker.
pub(crate) const OURS: &str = "broker";

/// The name of what all others are compared with.
pub(crate) const BASELINE: &str = "mosquitto";

/// Where a distribution may put it, the search path first.
const MOSQUITTO: [&str; 3] = ["mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];

/// A broker that can be started.
pub(crate) struct Contender {
    pub(crate) name: String,
    /// Program and arguments. `{port}` stands for the port, `{config}` for a file with `config` in it.
    command: Vec<String>,
    config: Option<&'static str>,
    /// How it tells its version.
    version: Option<&'static str>,
    is_pinned: bool,
    /// Whether it is the relay, of which less can be asked.
    pub(crate) is_relay: bool,
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

/// This broker, mosquitto if it is there, those that the user names, and the relay.
pub(crate) fn all(is_pinned: bool) -> Vec<Contender> {
    let words = |parts: &[&[&str]]| parts.iter().copied().flatten().map(|word| (*word).to_owned()).collect();
    let mut all = vec![Contender {
        name: OURS.to_owned(),
        command: words(&[
            &[env!("CARGO_BIN_EXE_broker"), "-q", "--host=127.0.0.1", "--port={port}"],
            LIMITS.as_slice(),
        ]),
        config: None,
        version: Some("--version"),
        is_pinned,
        is_relay: false,
    }];
    match MOSQUITTO.iter().find(|program| first_line(program, "-h").is_some()) {
        Some(program) => all.push(Contender {
            name: BASELINE.to_owned(),
            command: words(&[&[program, "-c", "{config}"]]),
            config: Some(MOSQUITTO_CONFIG),
            version: Some("-h"),
            is_pinned,
            is_relay: false,
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
                is_pinned,
                is_relay: false,
            }),
            _ => eprintln!("VERSUS_OTHERS: {other:?} is not of the form name=command with {{port}}"),
        }
    }
    match std::env::current_exe().ok().and_then(|path| path.to_str().map(str::to_owned)) {
        Some(program) => all.push(Contender {
            name: "relay".to_owned(),
            command: vec![program, format!("{}{{port}}", relay::OPTION)],
            config: None,
            version: None,
            is_pinned,
            is_relay: true,
        }),
        None => eprintln!("there is no relay, because the path of this program is no text"),
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
        if self.is_relay {
            return "this program".to_owned();
        }
        self.version
            .and_then(|argument| first_line(&self.command[0], argument))
            .unwrap_or_else(|| self.command.join(" "))
    }

    /// Starts it on a free port and waits until it accepts clients.
    pub(crate) fn start(&self) -> io::Result<Running> {
        let mut config = None;
        let process = Process::start(|address| {
            let port = address.port().to_string();
            let mut path = String::new();
            if let Some(text) = self.config {
                let file = TemporaryFile::new(&port, &text.replace("{port}", &port))?;
                path = file.0.display().to_string();
                config = Some(file);
            }
            let mut words =
                self.command.iter().map(|word| word.replace("{port}", &port).replace("{config}", &path));
            let mut command = command(&words.next().expect("a command has a program"), self.is_pinned);
            command.args(words).stderr(Stdio::null());
            Ok(command)
        })
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.name)))?;
        Ok(Running { process, _config: config })
    }
}

/// A broker at work; dropping it ends it.
pub(crate) struct Running {
    pub(crate) process: Process,
    _config: Option<TemporaryFile>,
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
