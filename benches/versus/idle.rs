//! Memory for clients that are connected, subscribed once, and do nothing.
//!
//! The memory of the system for their sockets is not counted: it is the same for every broker.

use std::io;
use std::time::Duration;

use broker::codec::QoS;

use crate::contender::Running;
use crate::load::client::Client;
use crate::measure::resident_bytes;

/// For what a broker does behind its last answer.
const SETTLING: Duration = Duration::from_millis(500);

/// What one round gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) clients: u64,
    /// Resident bytes of a broker without clients.
    pub(crate) before: u64,
    /// Resident bytes with all of them.
    pub(crate) after: u64,
}

impl Memory {
    pub(crate) fn per_client(&self) -> u64 {
        self.after.saturating_sub(self.before) / self.clients
    }
}

pub(crate) fn run(running: &Running, count: u64) -> io::Result<Memory> {
    let before = resident_bytes(running.pid())?;
    let mut clients = Vec::new();
    for number in 0..count {
        let filter = format!("idle/{}/{number}", number / 100);
        let client = Client::connect(
            running.address,
            &format!("idle-{number}"),
            Some((filter.as_str(), QoS::AtLeastOnce)),
        );
        match client {
            Ok(client) => clients.push(client),
            // Descriptors have run out: fewer clients give nearly the same figure.
            Err(error) if clients.len() >= 100 => {
                eprintln!("only {} clients: {error}", clients.len());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    std::thread::sleep(SETTLING);
    Ok(Memory { clients: clients.len() as u64, before, after: resident_bytes(running.pid())? })
}
