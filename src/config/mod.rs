//! The command line: text to the options of each layer.
//!
//! Each layer defines its own `Options`; this module knows them all and nothing imports it but `main`. A setting has
//! one row in `settings.rs`, from which parsing, bounds and `--help` follow.

mod settings;

use std::ffi::OsString;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
#[cfg(feature = "persistence")]
use std::path::PathBuf;

use crate::access::Verifiers;
use crate::broker::options::Redirect;
#[cfg(feature = "persistence")]
use crate::clock::Duration;
#[cfg(feature = "persistence")]
use crate::db::command::Action;
use crate::server;
#[cfg(feature = "persistence")]
use crate::server::{Recovery, StoreOptions, Sync};

use settings::{SETTINGS, Setting};

/// What is sent to clients in one field.
const TEXT_BYTES_MAX: usize = 4_096;

/// The longest that a reply may be ahead of the disk.
#[cfg(feature = "persistence")]
const SYNC_MILLIS_MAX: u64 = 60_000;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Run the broker.
    Run(Box<Config>),
    /// Print this text and end.
    Print(String),
    /// Read a password from standard input, print the line of a SCRAM file for this user, and end.
    MakeVerifier(String),
    /// Do something with the store in this folder, and end.
    #[cfg(feature = "persistence")]
    Database(Action, PathBuf),
}

/// Everything that `main` needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// For the server.
    pub server: server::Options,
    /// The users of SCRAM-SHA-256, if it is wanted.
    pub scram: Option<Verifiers>,
    /// How much to log.
    pub verbosity: log::LevelFilter,
}

/// A command line that cannot be understood, in words for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (see --help)", self.0)
    }
}

impl std::error::Error for UsageError {}

/// Reads the arguments behind the program's name.
///
/// # Errors
///
/// An unknown option, a value out of bounds, or a host that cannot be resolved, each named.
pub fn parse(arguments: Vec<OsString>) -> Result<Command, UsageError> {
    #[cfg(feature = "persistence")]
    let is_database = arguments.first().is_some_and(|first| first == "db");
    let mut arguments = pico_args::Arguments::from_vec(arguments);
    if arguments.contains("--help") {
        return Ok(Command::Print(help()));
    }
    if arguments.contains("--version") {
        return Ok(Command::Print(format!("broker {}", env!("CARGO_PKG_VERSION"))));
    }
    #[cfg(feature = "persistence")]
    if is_database {
        return database(arguments);
    }
    if let Some(name) = value(&mut arguments, &["--scram-verifier"])? {
        no_more(arguments)?;
        return Ok(Command::MakeVerifier(name));
    }
    let host = value(&mut arguments, &["-h", "--host"])?.unwrap_or_else(|| "0.0.0.0".to_owned());
    let port = match value(&mut arguments, &["-p", "--port"])? {
        Some(text) => text.parse::<u16>().map_err(|_| {
            UsageError(format!("--port: '{}' is not a port (0 to 65535)", text.escape_debug()))
        })?,
        None => 1883,
    };
    let verbose = arguments.contains("-v");
    let quiet = arguments.contains("-q");
    let mut options = server::Options { signals: true, ..server::Options::default() };
    for setting in SETTINGS {
        if let Some(text) = value(&mut arguments, &[setting.name])? {
            setting.apply(&mut options, &text).map_err(UsageError)?;
        }
    }
    options.broker.check_payload_format = arguments.contains("--check-payload-format");
    options.broker.response_information =
        text(&mut arguments, "--response-information")?.map(String::into_boxed_str);
    let server_reference = text(&mut arguments, "--redirect-to")?;
    let permanently = arguments.contains("--redirect-permanently");
    if permanently && server_reference.is_none() {
        return Err(UsageError("--redirect-permanently needs --redirect-to".to_owned()));
    }
    options.broker.redirect = server_reference
        .map(|server_reference| Redirect { server_reference: server_reference.into(), permanently });
    let scram = match value(&mut arguments, &["--scram-file"])? {
        Some(path) => Some(read_verifiers(&path)?),
        None => None,
    };
    #[cfg(feature = "persistence")]
    {
        options.store = store(&mut arguments)?;
    }
    no_more(arguments)?;
    options.addresses = resolve(&host, port)?;
    options.broker.trace_packets = verbose;
    let verbosity = match (verbose, quiet) {
        (true, true) => return Err(UsageError("-v and -q contradict each other".to_owned())),
        (true, false) => log::LevelFilter::Debug,
        (false, true) => log::LevelFilter::Warn,
        (false, false) => log::LevelFilter::Info,
    };
    Ok(Command::Run(Box::new(Config { server: options, scram, verbosity })))
}

/// The value of an option that may be given once, under any of its names.
fn value(arguments: &mut pico_args::Arguments, names: &[&'static str]) -> Result<Option<String>, UsageError> {
    let mut found = None;
    for name in names {
        let values: Vec<String> =
            arguments.values_from_str(*name).map_err(|error| UsageError(format!("{name}: {error}")))?;
        for value in values {
            if found.replace(value).is_some() {
                return Err(UsageError(format!("{name} is given more than once")));
            }
        }
    }
    Ok(found)
}

/// A text that is sent to clients as it is.
fn text(arguments: &mut pico_args::Arguments, name: &'static str) -> Result<Option<String>, UsageError> {
    let text = value(arguments, &[name])?;
    match &text {
        Some(text) if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains('\0') => {
            Err(UsageError(format!("{name}: a text of 1 to {TEXT_BYTES_MAX} bytes is wanted")))
        }
        _ => Ok(text),
    }
}

/// `db ACTION DIR`.
#[cfg(feature = "persistence")]
fn database(mut arguments: pico_args::Arguments) -> Result<Command, UsageError> {
    const USAGE: &str = "db: what is wanted is check, stats, export or import, and a folder";
    let mut word = || arguments.free_from_str::<String>().map_err(|_| UsageError(USAGE.to_owned()));
    word()?;
    let action = Action::parse(&word()?).ok_or_else(|| UsageError(USAGE.to_owned()))?;
    let directory = word()?;
    no_more(arguments)?;
    Ok(Command::Database(action, directory.into()))
}

/// Where and when state is stored, if it is.
#[cfg(feature = "persistence")]
fn store(arguments: &mut pico_args::Arguments) -> Result<Option<StoreOptions>, UsageError> {
    let directory = value(arguments, &["--data-dir"])?;
    let sync = value(arguments, &["--sync"])?;
    let recovery = value(arguments, &["--recover"])?;
    let Some(directory) = directory else {
        let option = sync.map(|_| "--sync").or(recovery.map(|_| "--recover"));
        return option.map_or(Ok(None), |option| Err(UsageError(format!("{option} needs --data-dir"))));
    };
    if directory.is_empty() {
        return Err(UsageError("--data-dir: a folder is wanted".to_owned()));
    }
    let sync = match sync.as_deref() {
        None | Some("always") => Sync::Always,
        Some(millis) => match millis.parse() {
            Ok(millis) if (1..=SYNC_MILLIS_MAX).contains(&millis) => Sync::Within(Duration(millis)),
            _ => {
                return Err(UsageError(format!(
                    "--sync: '{}' is neither 'always' nor a number of milliseconds (1 to {SYNC_MILLIS_MAX})",
                    millis.escape_debug()
                )));
            }
        },
    };
    let recovery = match recovery.as_deref() {
        None => Recovery::SetAside,
        Some("strict") => Recovery::Strict,
        Some(other) => {
            return Err(UsageError(format!(
                "--recover: '{}' is not 'strict', the one thing to say",
                other.escape_debug()
            )));
        }
    };
    Ok(Some(StoreOptions { directory: directory.into(), sync, recovery }))
}

fn no_more(arguments: pico_args::Arguments) -> Result<(), UsageError> {
    match arguments.finish().first() {
        Some(unknown) => {
            Err(UsageError(format!("unknown argument '{}'", unknown.to_string_lossy().escape_debug())))
        }
        None => Ok(()),
    }
}

fn read_verifiers(path: &str) -> Result<Verifiers, UsageError> {
    let problem =
        |problem: &dyn fmt::Display| UsageError(format!("--scram-file: {}: {problem}", path.escape_debug()));
    let text = std::fs::read_to_string(path).map_err(|error| problem(&error))?;
    Verifiers::parse(&text).map_err(|error| problem(&error))
}

/// All addresses of a host: a name may have several, and the broker listens on each.
fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, UsageError> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let mut addresses: Vec<SocketAddr> = (bare, port)
        .to_socket_addrs()
        .map_err(|error| UsageError(format!("--host: cannot resolve '{}': {error}", host.escape_debug())))?
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

fn help() -> String {
    let mut text = String::from(
        "broker: an MQTT 5.0 and 3.1.1 broker\n\n\
         Usage: broker [OPTIONS]\n\
         \x20      broker db check|stats|export|import DIR   (on the data directory of a broker that does not run)\n\n\
         Options:\n",
    );
    let plain = [
        ("-p, --port PORT", "TCP port to listen on [1883]"),
        ("-h, --host HOST", "address or name to listen on [0.0.0.0]"),
        ("-v", "log every packet"),
        ("-q", "log warnings and errors only"),
        ("--check-payload-format", "refuse payloads that say to be UTF-8 and are not"),
        ("--response-information TEXT", "what 5.0 clients that ask are told to build response topics from"),
        ("--redirect-to TEXT", "the server that 5.0 clients are sent to by SIGUSR1"),
        ("--redirect-permanently", "SIGUSR1 sends them there for good"),
        #[cfg(feature = "persistence")]
        ("--data-dir DIR", "keep sessions, queued and retained messages in this folder"),
        #[cfg(feature = "persistence")]
        (
            "--sync always|MS",
            "acknowledge what is on disk [always], or what will be so many milliseconds later",
        ),
        #[cfg(feature = "persistence")]
        ("--recover strict", "do not start with a damaged store; without this it is set aside"),
        ("--scram-file FILE", "5.0 clients may authenticate by SCRAM-SHA-256 as a user of this file"),
        ("--scram-verifier NAME", "read a password, print a line for that file, and end"),
        ("--help", "print this text"),
        ("--version", "print the version"),
    ];
    for (option, meaning) in plain {
        text.push_str(&row(option, meaning));
    }
    text.push_str("\nLimits, times and intervals:\n");
    let defaults = server::Options::default();
    for setting in SETTINGS {
        text.push_str(&row(
            &format!("{} {}", setting.name, setting.kind.placeholder()),
            &meaning(setting, &defaults),
        ));
    }
    text.push_str(
        "\nBYTES may end in K, M or G (powers of 1024), TIME in s, m, h or d (plain numbers are seconds).\n\
         SIGINT and SIGTERM stop the broker in order, SIGUSR1 sends its clients to another server, SIGUSR2 logs them.\n\
         Exit status: 0 after an orderly stop, 3 for a wrong command line, 1 for any other failure.\n",
    );
    text
}

fn meaning(setting: &Setting, defaults: &server::Options) -> String {
    format!("{} [{}]", setting.meaning, setting.kind.show((setting.read)(defaults)))
}

fn row(option: &str, meaning: &str) -> String {
    format!("  {option:<34} {meaning}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Config, String> {
        match parse(arguments.iter().map(OsString::from).collect()) {
            Ok(Command::Run(config)) => Ok(*config),
            Ok(Command::Print(text) | Command::MakeVerifier(text)) => Err(text),
            #[cfg(feature = "persistence")]
            Ok(Command::Database(action, directory)) => Err(format!("{action:?} {}", directory.display())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = run(&[]).unwrap();
        assert_eq!(config.server.addresses, ["0.0.0.0:1883".parse().unwrap()]);
        let expected = server::Options { signals: true, ..server::Options::default() };
        assert_eq!(config.server.broker, expected.broker);
        assert_eq!(config.verbosity, log::LevelFilter::Info);
    }

    #[test]
    fn every_setting_reads_back_its_own_default_and_keeps_its_bounds() {
        let defaults = server::Options::default();
        for setting in SETTINGS {
            let mut options = server::Options::default();
            let shown = setting.kind.show((setting.read)(&defaults));
            setting.apply(&mut options, &shown).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((setting.read)(&options), (setting.read)(&defaults), "{}", setting.name);
            let (low, high) = setting.bounds;
            for bound in [low, high] {
                setting.apply(&mut options, &bound.to_string()).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!((setting.read)(&options), bound, "{}", setting.name);
            }
            if low > 0 {
                let error = setting.apply(&mut options, &(low - 1).to_string()).unwrap_err();
                assert!(error.contains(setting.name), "{error}");
            }
            assert!(setting.apply(&mut options, &(u128::from(high) + 1).to_string()).is_err());
            assert!(help().contains(setting.name));
        }
    }

    #[test]
    fn addresses_and_units() {
        let config =
            run(&["-p", "0", "-h", "::1", "--session-expiry=2d", "--outbox-bytes-max", "2M"]).unwrap();
        assert_eq!(config.server.addresses, ["[::1]:0".parse().unwrap()]);
        assert_eq!(config.server.broker.session_expiry, Some(crate::clock::Duration::from_secs(172_800)));
        assert_eq!(config.server.broker.outbox_bytes_max, 2 << 20);
        assert_eq!(run(&["--session-expiry", "0"]).unwrap().server.broker.session_expiry, None);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (arguments, word) in [
            (&["--nonsense"] as &[&str], "--nonsense"),
            (&["stray"], "stray"),
            (&["-p", "70000"], "70000"),
            (&["-p"], "-p"),
            (&["-p", "1", "--port", "2"], "more than once"),
            (&["-v", "-q"], "contradict"),
            (&["--in-flight-max", "0"], "--in-flight-max"),
            (&["--in-flight-max", "many"], "many"),
            (&["--session-expiry", "5x"], "5x"),
            (&["-h", "no such host"], "no such host"),
            (&["--redirect-permanently"], "--redirect-to"),
            (&["--redirect-to", ""], "--redirect-to"),
            (&["--scram-file", "/no/such/file"], "/no/such/file"),
            (&["db", "repair", "d"], "check, stats"),
            (&["db", "check"], "a folder"),
            (&["db", "check", "d", "--data-dir", "e"], "--data-dir"),
            (&["--sync", "always"], "--data-dir"),
            (&["--data-dir", "d", "--sync", "never"], "never"),
            (&["--data-dir", "d", "--recover", "me"], "me"),
            (&["--scram-verifier", "me", "--nonsense"], "--nonsense"),
        ] {
            let error = run(arguments).unwrap_err();
            assert!(error.contains(word) && error.contains("--help"), "{arguments:?}: {error}");
        }
    }
}
