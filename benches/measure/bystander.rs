//! A lone message at a fixed rate, beside whatever else goes on.
//!
//! It is sent at its time whatever comes of the one before, so that a broker that stands still is seen by every message
//! that should have passed meanwhile. Its threads share a core with the load, and so run before it.

use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use broker::codec::packet::Publish;
use broker::codec::{Packet, Properties, QoS, encode};
use mio::{Events, Poll, Token};

use super::Times;
use crate::load::client::{Client, PROTOCOL};

/// Between two messages.
pub(crate) const PERIOD: Duration = Duration::from_millis(1);

const TOPIC: &str = "bystander";

/// After the last message was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends and receives for so long. Returns how long each message took, and how many were sent.
pub(crate) fn pass(address: SocketAddr, time: Duration) -> io::Result<(Times, u64)> {
    be_first();
    let mut receiver = Client::connect(address, "bystander-in", &[(TOPIC, QoS::AtMostOnce)])?;
    let mut sender = Client::connect(address, "bystander-out", &[])?;
    let count = (time.as_nanos() / PERIOD.as_nanos()) as u64;
    let began = Instant::now();
    // Of its own, because the poll cannot sleep for less than a millisecond.
    let sending = std::thread::spawn(move || {
        be_first();
        for number in 1..=count {
            let due = PERIOD * u32::try_from(number).expect("less than a month");
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            let sent_at = began.elapsed().as_nanos() as u64;
            let publish = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain: false,
                topic: TOPIC,
                packet_id: None,
                properties: Properties::NONE,
                payload: &sent_at.to_be_bytes(),
            };
            encode::encode(&Packet::Publish(publish), PROTOCOL, &mut sender.out)
                .expect("it has a form on the wire");
            sender.flush()?;
        }
        Ok::<Client, io::Error>(sender)
    });
    let mut poll = Poll::new()?;
    receiver.register(poll.registry(), Token(0))?;
    let (mut events, mut buffer) = (Events::with_capacity(8), vec![0; 64 * 1024]);
    let mut times = Times::default();
    let end = began + time + PATIENCE;
    while times.count() < count && Instant::now() < end {
        match poll.poll(&mut events, Some(Duration::from_millis(100))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => result?,
        }
        receiver.read(&mut buffer, |packet, _| {
            if let Packet::Publish(publish) = packet
                && let Ok(sent_at) = publish.payload.try_into()
            {
                let sent_at = Duration::from_nanos(u64::from_be_bytes(sent_at));
                times.add(began.elapsed().saturating_sub(sent_at));
            }
        })?;
    }
    // Its connection has to last until then.
    let _sender = sending.join().expect("it does not panic")?;
    Ok((times, count))
}

/// Has the calling thread run as soon as it can, whatever the load does. A nice thread would still wait for the
/// scheduler's next tick, which is longer than what is measured.
fn be_first() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let thread = thread.file_name().unwrap_or_default();
    let is_first = Command::new("chrt")
        .args(["--fifo", "--pid", "1"])
        .arg(thread)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !is_first {
        eprintln!("without chrt, and the right to use it, the load is part of what is measured of others");
    }
}
