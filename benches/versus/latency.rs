//! How long messages take from when they are to be sent until they are there, at rates that every contender can stand.
//!
//! The same rates for all: shares of what the slower contender takes without a pause, which is measured first.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::contender::Contender;
use crate::load::{Flow, Plan};
use crate::measure::{Process, Times, WARM_UP, round};
use crate::outcome::Outcome;
use crate::scenario::{Load, Scenario};

/// Messages that each publisher has on its way while it is measured how many there can be. Each is sent by itself, as at a
/// rate.
const CAPACITY_WINDOW: u64 = 100;

const SHARES: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

/// From this part of a figure on it is as much the load's as the broker's.
const LATE: f64 = 0.5;

/// Measures every broker, and gives a rate to each scenario that has a share.
pub(crate) fn choose_rates(
    scenarios: &mut [Scenario],
    contenders: &[Contender],
    time: Duration,
) -> io::Result<()> {
    let mut capacities = BTreeMap::new();
    for Scenario { name, load, .. } in scenarios {
        let Load::Open(plan, share) = load else { continue };
        let capacity = match capacities.get(&plan.qos) {
            Some(capacity) => *capacity,
            None => {
                let capacity = capacity(Plan { window: CAPACITY_WINDOW, ..*plan }, contenders, time)?;
                capacities.insert(plan.qos, capacity);
                capacity
            }
        };
        let rate = capacity * *share;
        plan.per_second = Some(rate);
        name.push_str(&format!(", {rate:.0} messages/s"));
    }
    Ok(())
}

/// Messages a second that the slowest contender takes.
fn capacity(plan: Plan, contenders: &[Contender], time: Duration) -> io::Result<f64> {
    let qos = plan.qos.number();
    let mut least = f64::INFINITY;
    // The relay would only be quicker, and knows no other level than QoS 0.
    for contender in contenders.iter().filter(|contender| !contender.is_relay) {
        let name = &contender.name;
        eprintln!("capacity at QoS {qos}: {name}");
        let measure = || {
            let running = contender.start()?;
            let mut flow = Flow::start(running.process.address, plan)?;
            round(&running.process, &mut flow, time, PATIENCE)
        };
        match measure() {
            Ok((sample, _)) => {
                println!("  {name} takes {:.0} messages/s at QoS {qos}", sample.per_second());
                least = least.min(sample.per_second());
            }
            // It will be heard of again when its turn comes.
            Err(error) => println!("  {name}: {error}"),
        }
    }
    if least.is_finite() { Ok(least) } else { Err(io::Error::other("nobody takes anything")) }
}

pub(crate) fn run(process: &Process, plan: Plan, time: Duration) -> io::Result<Outcome> {
    let mut flow = Flow::start(process.address, plan)?;
    let (arrivals, departures): (Rc<RefCell<Times>>, Rc<RefCell<Times>>) = Default::default();
    flow.on_arrival = Some(note(&arrivals));
    flow.on_departure = Some(note(&departures));
    // What is late is waited for at the end: it is what the longest times are made of.
    let (sample, faults) = round(process, &mut flow, time, PATIENCE)?;
    let (mut arrivals, mut departures) = (arrivals.take(), departures.take());
    let [figures, late] =
        [&mut arrivals, &mut departures].map(|times| SHARES.map(|share| times.quantile(share)));
    let is_late = late.iter().zip(&figures).any(|(late, figure)| *late > *figure * LATE);
    let note = format!(
        "{} messages; {} {}",
        arrivals.count(),
        if is_late { "THE LOAD ITSELF WAS LATE, by" } else { "the load itself was late by" },
        late.map(|late| format!("{late:.0}")).join(" / "),
    );
    Ok(Outcome { figures: figures.to_vec(), sample: Some(sample), faults, note: Some(note) })
}

/// Takes times from now on, but for those of the warm-up.
fn note(times: &Rc<RefCell<Times>>) -> Box<dyn FnMut(Duration)> {
    let (times, begins) = (times.clone(), Instant::now() + WARM_UP);
    Box::new(move |time| {
        if Instant::now() >= begins {
            times.borrow_mut().add(time);
        }
    })
}
