//! How long a lone message takes beside one that goes to a thousand, some of whom do not read.

use std::io;
use std::time::Duration;

use broker::codec::QoS;

use crate::PATIENCE;
use crate::load::client::Client;
use crate::load::{Flow, Plan};
use crate::measure::bystander::pass;
use crate::measure::{Process, Stopwatch, WARM_UP};
use crate::outcome::Outcome;

/// Subscribers that never read.
const SLOW: usize = 50;

/// As many times the time of a round: one of a thousand has to be seen.
const ROUND_FACTOR: u32 = 3;

const SHARES: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

pub(crate) fn run(process: &Process, plan: Plan, time: Duration) -> io::Result<Outcome> {
    let (address, time) = (process.address, time * ROUND_FACTOR);
    let filter = plan.filter(0);
    let mut slow = Vec::new();
    for number in 0..SLOW {
        let client_id = format!("slow-{number}");
        slow.push(Client::connect(address, &client_id, &[(filter.as_str(), QoS::AtMostOnce)])?);
    }
    let mut flow = Flow::start(address, plan)?;
    flow.set_limit(u64::MAX);
    // Its times need not be exact, and the lone message shares its core.
    flow.sleep_max = Duration::from_millis(1);
    let warm = std::time::Instant::now() + WARM_UP;
    flow.drive(PATIENCE, |_| std::time::Instant::now() >= warm)?;
    let stopwatch = Stopwatch::start(process.pid(), flow.delivered())?;
    let bystander = std::thread::spawn(move || pass(address, time));
    flow.drive(PATIENCE, |_| bystander.is_finished())?;
    let sample = stopwatch.stop(flow.delivered())?;
    let (mut times, sent) = bystander.join().expect("it does not panic")?;
    let mut faults = flow.faults();
    faults.lost += sent - times.count();
    let note = Some(format!("{sent} of them; {SLOW} more subscribers never read"));
    Ok(Outcome {
        figures: SHARES.map(|share| times.quantile(share)).to_vec(),
        sample: Some(sample),
        faults,
        note,
    })
}
