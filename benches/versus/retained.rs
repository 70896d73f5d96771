//! Retained messages, and a client that asks for all of them at once.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use broker::codec::packet::Publish;
use broker::codec::{Packet, PacketId, Properties, QoS, encode};
use mio::{Events, Poll, Token};

use crate::PATIENCE;
use crate::load::client::{Client, PROTOCOL};
use crate::load::plan::PAYLOAD_BYTES;
use crate::load::{Faults, Plan, Shape};
use crate::measure::{Process, Stopwatch, median};
use crate::outcome::Outcome;
use crate::preparation::Preparation;

const MESSAGES: u64 = 10_000;

/// Branches of the tree over which they are spread.
const BRANCHES: u64 = 100;

const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Makes so many, each of its own topic.
pub(crate) fn fill(address: SocketAddr, messages: u64, preparation: &Preparation) -> io::Result<()> {
    let shape = Shape { publishers: BRANCHES as usize, subscribers: 1 };
    let topics = messages / BRANCHES;
    let plan = Plan::new(shape, QoS::AtLeastOnce, 100, 25);
    preparation.send(address, Plan { topics, is_retained: true, is_absent: true, ..plan }, topics)
}

/// From the SUBSCRIBE of `#` to the last of so many messages.
pub(crate) fn walk(address: SocketAddr, messages: u64) -> io::Result<(Duration, Faults)> {
    let mut client = Client::connect(address, "walker", &[])?;
    let mut poll = Poll::new()?;
    client.register(poll.registry(), Token(0))?;
    let requests = [("#", QoS::AtMostOnce.into())];
    encode::subscribe(&mut client.out, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    let (mut events, mut buffer) = (Events::with_capacity(8), vec![0; READ_BUFFER_BYTES]);
    let (mut seen, mut came) = (vec![false; messages as usize], 0);
    let mut faults = Faults::default();
    let began = Instant::now();
    client.flush()?;
    while came < messages {
        poll.poll(&mut events, Some(PATIENCE))?;
        if events.is_empty() {
            faults.lost += messages - came;
            break;
        }
        client.read(&mut buffer, |packet, _| match packet {
            Packet::Suback(_) => {}
            Packet::Publish(publish) => match place(&publish, messages / BRANCHES) {
                Some(place) if !seen[place] => {
                    seen[place] = true;
                    came += 1;
                }
                Some(_) => faults.repeated += 1,
                None => faults.strange += 1,
            },
            _ => faults.strange += 1,
        })?;
    }
    Ok((began.elapsed(), faults))
}

/// Which of all messages it is, if it is one.
fn place(publish: &Publish<'_>, each: u64) -> Option<usize> {
    let (publisher, rest) = publish.payload.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    let (publisher, number) = (u64::from(u32::from_be_bytes(*publisher)), u64::from_be_bytes(*number));
    let is_alike = publish.retain && publish.payload.len() == PAYLOAD_BYTES && publish.qos == QoS::AtMostOnce;
    (is_alike && publisher < BRANCHES && number < each).then_some((publisher * each + number) as usize)
}

/// Asks again and again, each time as a new client.
pub(crate) fn run(process: &Process, time: Duration) -> io::Result<Outcome> {
    fill(process.address, MESSAGES, &Preparation::begin())?;
    let (mut walks, mut faults) = (Vec::new(), Faults::default());
    let began = Instant::now();
    let stopwatch = Stopwatch::start(process.pid(), 0)?;
    while began.elapsed() < time {
        let (walk, walk_faults) = walk(process.address, MESSAGES)?;
        walks.push(walk);
        faults += walk_faults;
    }
    let sample = stopwatch.stop(walks.len() as u64)?;
    let figures = vec![median(&walks, Duration::as_secs_f64), sample.micros_each() / 1e6];
    Ok(Outcome { figures, sample: Some(sample), faults, note: None })
}
