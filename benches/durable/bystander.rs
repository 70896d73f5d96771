//! How long QoS 0 messages of others take while the store is at work.

use std::io;
use std::time::Instant;

use crate::Settings;
use crate::measure::bystander::{PERIOD, pass};
use crate::measure::{Awake, Table, WARM_UP, median};
use crate::running::Running;
use crate::stored_flow::{Concurrency, StoredFlow};

/// As many times the time of a round: one of a thousand has to be seen.
const ROUND_FACTOR: u32 = 5;

const CONCURRENCY: Concurrency = Concurrency::square(16);

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
    let _awake = Awake::begin(settings.is_pinned);
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
