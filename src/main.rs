//! The `broker` program: arguments, logger, server. The only place that prints and exits.

mod heap;

use std::io::Read;
use std::process::ExitCode;

use broker::access::Verifier;
use broker::config::{self, Command, Config};
use broker::server::{Scram, Server};

/// The exit status for a command line that cannot be understood.
const USAGE: u8 = 3;

/// The work that a guess at a password costs whoever has stolen the file.
const SCRAM_ITERATIONS: u32 = 100_000;
const SALT_BYTES: usize = 16;
const PASSWORD_BYTES_MAX: u64 = 4_096;

fn main() -> ExitCode {
    heap::set_up();
    match config::parse(std::env::args_os().skip(1).collect()) {
        Ok(Command::Print(text)) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Ok(Command::MakeVerifier(name)) => exit_code(make_verifier(&name)),
        #[cfg(feature = "persistence")]
        Ok(Command::Database(action, directory)) => exit_code(broker::db::command::run(
            action,
            &directory,
            std::io::stdin().lock(),
            &mut std::io::BufWriter::new(std::io::stdout().lock()),
        )),
        Ok(Command::Run(config)) => exit_code(run(*config)),
        Err(error) => {
            eprintln!("broker: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn exit_code(result: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("broker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make_verifier(name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut password = String::new();
    std::io::stdin().take(PASSWORD_BYTES_MAX + 1).read_to_string(&mut password)?;
    if password.len() as u64 > PASSWORD_BYTES_MAX {
        return Err(format!("the password has more than {PASSWORD_BYTES_MAX} bytes").into());
    }
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    let verifier = Verifier::from_password(password, &salt, SCRAM_ITERATIONS)?;
    println!("{}", verifier.to_line(name)?);
    Ok(())
}

fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    simple_logger::SimpleLogger::new().with_level(config.verbosity).with_utc_timestamps().init()?;
    let descriptors = broker::server::raise_descriptor_limit();
    let mut server = Server::bind(config.server)?;
    if let Some(verifiers) = config.scram {
        log::info!("SCRAM-SHA-256 for {} users", verifiers.len());
        server = server.with_authenticator(Box::new(Scram::new(verifiers)));
    }
    log::info!("broker {} started", env!("CARGO_PKG_VERSION"));
    match descriptors {
        Ok(limit) => log::info!("open files: at most {limit}"),
        Err(error) => log::warn!("cannot raise the limit on open files: {error}"),
    }
    server.run()?;
    Ok(())
}
