//! Memory for what a broker keeps.
//!
//! The memory of the system for sockets is not counted: it is the same for every broker.

use std::io;
use std::time::Duration;

use broker::codec::QoS;

use crate::PATIENCE;
use crate::filters::{self, Filters};
use crate::load::client::Client;
use crate::load::{Faults, Plan, Shape};
use crate::measure::{Absentee, Process, resident_bytes};
use crate::outcome::Outcome;
use crate::preparation::Preparation;
use crate::retained;

/// For what a broker does behind its last answer.
const SETTLING: Duration = Duration::from_millis(500);

/// Stored sessions that share what is queued.
const SESSIONS: usize = 100;

/// What is kept, and how much of it.
#[derive(Clone, Copy)]
pub(crate) enum Kept {
    /// Connected, subscribed once, and idle.
    Clients(u64),
    /// Filters of all kinds, held by a hundred clients.
    Subscriptions(u64),
    Retained(u64),
    /// For stored sessions whose clients are away.
    Queued(u64),
}

pub(crate) fn run(process: &Process, kept: Kept) -> io::Result<Outcome> {
    let preparation = Preparation::begin();
    let address = process.address;
    let (count, before, after, faults);
    match kept {
        Kept::Clients(clients) => {
            before = resident_bytes(process.pid())?;
            let clients = connect(process, clients, &preparation)?;
            count = clients.len() as u64;
            after = settled_bytes(process)?;
            faults = Faults::default();
        }
        Kept::Subscriptions(subscriptions) => {
            count = subscriptions;
            before = resident_bytes(process.pid())?;
            let _holders = filters::hold(address, Filters::Mixed, count, &preparation)?;
            after = settled_bytes(process)?;
            faults = Faults::default();
        }
        Kept::Retained(messages) => {
            count = messages;
            before = resident_bytes(process.pid())?;
            retained::fill(address, messages, &preparation)?;
            after = settled_bytes(process)?;
            faults = retained::walk(address, messages)?.1;
        }
        Kept::Queued(messages) => {
            count = messages;
            let shape = Shape { publishers: SESSIONS, subscribers: SESSIONS };
            let plan = Plan { is_absent: true, ..Plan::new(shape, QoS::AtLeastOnce, 100, 25) };
            let absentees: Vec<Absentee> = (0..SESSIONS)
                .map(|number| Absentee::leave(address, &plan, number))
                .collect::<Result<_, _>>()?;
            before = resident_bytes(process.pid())?;
            let each = messages / SESSIONS as u64;
            preparation.send(address, plan, each)?;
            after = settled_bytes(process)?;
            let mut sum = Faults::default();
            for absentee in absentees {
                sum += absentee.come_back(each, PATIENCE)?.1;
            }
            faults = sum;
        }
    }
    Ok(Outcome {
        figures: vec![after.saturating_sub(before) as f64 / count as f64],
        sample: None,
        faults,
        note: Some(format!("{count} took it from {} to {} KiB", before / 1024, after / 1024)),
    })
}

fn settled_bytes(process: &Process) -> io::Result<u64> {
    std::thread::sleep(SETTLING);
    resident_bytes(process.pid())
}

fn connect(process: &Process, count: u64, preparation: &Preparation) -> io::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for number in 0..count {
        preparation.check()?;
        let filter = format!("idle/{}/{number}", number / 100);
        let filters = [(filter.as_str(), QoS::AtLeastOnce)];
        match Client::connect(process.address, &format!("idle-{number}"), &filters) {
            Ok(client) => clients.push(client),
            // Descriptors have run out: fewer clients give nearly the same figure.
            Err(error) if clients.len() >= 100 => {
                eprintln!("only {} clients: {error}", clients.len());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(clients)
}
