//! How long QoS 0 messages of others take while the store is at work.
//!
//! A publisher sends at a fixed rate, whatever comes of it, so that a broker that stands still is seen by every message
//! that should have passed meanwhile. It shares its core with the load, and so runs before it.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use broker::codec::packet::Publish;
use broker::codec::{Packet, Properties, QoS, encode};
use mio::{Events, Poll, Token};

use crate::Settings;
use crate::load::client::{Client, PROTOCOL};
use crate::measure::{Table, Times, WARM_UP, median};
use crate::running::Running;
use crate::stored_flow::{Concurrency, StoredFlow};

const PERIOD: Duration = Duration::from_millis(1);

/// As many times the time of a round: one of a thousand has to be seen.
const ROUND_FACTOR: u32 = 5;

const TOPIC: &str = "bystander";

const CONCURRENCY: Concurrency = Concurrency::square(16);

/// After the last message was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// The priority of a thread that must not wait for the load.
const PRIORITY: i32 = -20;

const SHARES: [f64; 3] = [0.5, 0.99, 0.999];

/// What goes on beside it.
struct Beside {
    name: &'static str,
    is_durable: bool,
    /// Whether there is a load, and if so whether its subscriber is away.
    is_absent: Option<bool>,
}

const ALL: [Beside; 4] = [
    Beside { name: "nothing", is_durable: true, is_absent: None },
    Beside { name: "store, subscriber away", is_durable: true, is_absent: Some(true) },
    Beside { name: "store, subscriber there", is_durable: true, is_absent: Some(false) },
    Beside { name: "no store, subscriber there", is_durable: false, is_absent: Some(false) },
];

/// What one round gave.
struct BystanderSample {
    /// In microseconds, for each of `SHARES`.
    times: [f64; 3],
    longest: f64,
    lost: u64,
    load_per_second: f64,
}

pub(crate) fn run(settings: &Settings) -> io::Result<()> {
    let mut samples: [Vec<BystanderSample>; ALL.len()] = Default::default();
    for round in 1..=settings.rounds {
        for (beside, samples) in ALL.iter().zip(&mut samples) {
            eprintln!("round {round} of {}: bystander beside {}", settings.rounds, beside.name);
            samples.push(measure(settings, beside)?);
        }
    }
    let mut table = Table::new(&[
        "beside it",
        "messages/s there",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "longest us",
        "x p50",
        "x p99",
        "x p99.9",
        "lost",
    ]);
    let times = |samples: &[BystanderSample]| -> Vec<f64> {
        (0..SHARES.len()).map(|share| median(samples, |sample| sample.times[share])).collect()
    };
    let idle = times(&samples[0]);
    for (beside, samples) in ALL.iter().zip(&samples) {
        let times = times(samples);
        let mut row = vec![beside.name.to_owned()];
        row.push(format!("{:.0}", median(samples, |sample| sample.load_per_second)));
        row.extend(times.iter().map(|time| format!("{time:.0}")));
        row.push(format!("{:.0}", median(samples, |sample| sample.longest)));
        row.extend(times.iter().zip(&idle).map(|(time, idle)| format!("{:.1}", time / idle)));
        row.push(samples.iter().map(|sample| sample.lost).sum::<u64>().to_string());
        table.add(row);
    }
    println!(
        "From PUBLISH to delivery, 1 QoS 0 message each {} ms for {} s, while {} QoS 1 messages are on their way\n\n{table}",
        PERIOD.as_millis(),
        (settings.time * ROUND_FACTOR).as_secs(),
        CONCURRENCY.messages(),
    );
    Ok(())
}

fn measure(settings: &Settings, beside: &Beside) -> io::Result<BystanderSample> {
    let running = Running::start(settings, beside.is_durable)?;
    let (address, time) = (running.process.address, settings.time * ROUND_FACTOR);
    let mut flow = match beside.is_absent {
        Some(is_absent) => Some(StoredFlow::start(address, CONCURRENCY, is_absent)?),
        None => None,
    };
    if let Some(flow) = &mut flow {
        flow.drive_for(WARM_UP)?;
    }
    let before = flow.as_ref().map_or(0, StoredFlow::acknowledged);
    let began = Instant::now();
    let bystander = std::thread::spawn(move || pass(address, time));
    if let Some(flow) = &mut flow {
        flow.drive_until(|| bystander.is_finished())?;
    }
    let (mut times, sent) = bystander.join().expect("it does not panic")?;
    let after = flow.as_ref().map_or(0, StoredFlow::acknowledged);
    let load_per_second = (after - before) as f64 / began.elapsed().as_secs_f64();
    if let Some(flow) = flow {
        flow.finish()?;
    }
    Ok(BystanderSample {
        times: SHARES.map(|share| times.quantile(share)),
        longest: times.quantile(1.0),
        lost: sent - times.count(),
        load_per_second,
    })
}

/// Sends and receives for so long. Returns how long each message took, and how many were sent.
fn pass(address: SocketAddr, time: Duration) -> io::Result<(Times, u64)> {
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
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
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

/// Has the calling thread run before those of the load.
fn be_first() {
    // Whoever may not do so measures a little of the load as well.
    let _ = rustix::process::setpriority_process(None, PRIORITY);
}
