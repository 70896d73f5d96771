//! A broker as a process: its start and its end.
//!
//! Only processes started here are ended, by their handle.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::client::Client;

const START_PATIENCE: Duration = Duration::from_secs(10);

/// Another process may take a port between its choice and its use.
const START_ATTEMPTS: usize = 3;

/// A process that is killed when it is not needed any more.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only if it has ended by itself. Nothing of it is needed any more, so it is not asked first.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A broker at work; dropping it ends it.
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    child: Killed,
}

impl Process {
    /// Starts a broker by a command that is made for a free port, and waits until it accepts clients.
    pub(crate) fn start(mut command: impl FnMut(SocketAddr) -> io::Result<Command>) -> io::Result<Self> {
        let mut result = Err(io::Error::other("never tried"));
        for _ in 0..START_ATTEMPTS {
            let address = free_address()?;
            let mut command = command(address)?;
            result = Self::try_start(command.stdin(Stdio::null()).stdout(Stdio::null()), address);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn try_start(command: &mut Command, address: SocketAddr) -> io::Result<Self> {
        let mut process = Self { address, child: Killed(command.spawn()?) };
        let began = Instant::now();
        loop {
            if let Some(status) = process.child.0.try_wait()? {
                return Err(io::Error::other(format!("the broker ended at once: {status}")));
            }
            match Client::connect(address, "first", &[]) {
                Ok(_) => return Ok(process),
                Err(error) if began.elapsed() > START_PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

/// A port at which nobody listens.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
