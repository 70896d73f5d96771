//! The `broker` program: arguments, logger, server. The only place that prints and exits.

use std::process::ExitCode;

use broker::config::{self, Command, Config};
use broker::server::Server;

/// The exit status for a command line that cannot be understood.
const USAGE: u8 = 3;

fn main() -> ExitCode {
    match config::parse(std::env::args_os().skip(1).collect()) {
        Ok(Command::Print(text)) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Ok(Command::Run(config)) => match run(*config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("broker: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("broker: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    simple_logger::SimpleLogger::new().with_level(config.verbosity).with_utc_timestamps().init()?;
    let descriptors = broker::server::raise_descriptor_limit();
    let server = Server::bind(config.server)?;
    log::info!("broker {} started", env!("CARGO_PKG_VERSION"));
    match descriptors {
        Ok(limit) => log::info!("open files: at most {limit}"),
        Err(error) => log::warn!("cannot raise the limit on open files: {error}"),
    }
    for address in server.local_addresses() {
        log::info!("listening on {address}");
    }
    server.run()?;
    Ok(())
}
