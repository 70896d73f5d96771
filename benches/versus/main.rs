//! This broker against others: the same load, the same limits, in turn.
//!
//! ```text
//! cargo bench --bench versus                    all scenarios
//! cargo bench --bench versus -- 'QoS 1'         only those with this in their name
//! ```
//!
//! Against mosquitto if it is installed, and against whatever else is asked for:
//!
//! * `VERSUS_OTHERS`: `name=command` pairs between semicolons. `{port}` in a command becomes the port to listen on, at
//!   127.0.0.1; the command must not fork into the background. Limits are those that the command says.
//! * `VERSUS_ROUNDS` (5), `VERSUS_SECONDS` (3).
//!
//! A broker is started afresh for each scenario of each round, and rounds go from broker to broker, so that a change of
//! the machine's mood meets all of them. Where there are two cores and `taskset`, a broker has the first and the load
//! the second. Every figure is the median of its rounds. Who fails in a scenario, or needs more than a minute to be
//! prepared for it, is not asked again.
//!
//! Where messages at QoS 0 are only handed on, each publisher's on one topic, a relay that does nothing else stands beside
//! them: what sockets allow, and what the machine does to anybody.
//!
//! Latencies need a machine that has nothing else to do: the report says where the load itself was late. While a lone
//! message is timed beside others, the core of the load is kept awake.
//!
//! Processor time counts more than throughput: it is what the broker itself costs, even where the load could not keep up
//! or others used the machine. Every message is checked; a fault of this broker ends the program with a failure.
//!
//! Deliberately not here: persistence, TLS, brokers that need more than a command, and several cores for one broker.

mod beside;
mod churn;
mod contender;
mod drain;
mod filters;
mod latency;
#[path = "../load/mod.rs"]
mod load;
#[path = "../measure/mod.rs"]
mod measure;
mod memory;
mod outcome;
mod preparation;
mod relay;
mod report;
mod retained;
mod scenario;

use std::io;
use std::time::Duration;

use broker::server::raise_descriptor_limit;

use measure::{Awake, setting};
use report::Report;

/// A broker that does nothing for so long, while something is on its way, has lost it.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> io::Result<()> {
    relay::serve_if_asked()?;
    let Some(words) = measure::words() else { return Ok(()) };
    let mut scenarios = scenario::all();
    scenarios.retain(|scenario| {
        words.is_empty() || words.iter().any(|word| scenario.name.contains(word.as_str()))
    });
    let rounds = setting("VERSUS_ROUNDS").unwrap_or(5).max(1);
    let time = Duration::from_secs(setting("VERSUS_SECONDS").unwrap_or(3).max(1));

    let descriptors = raise_descriptor_limit().unwrap_or_else(|error| error.to_string());
    let is_pinned = measure::pin();
    let contenders = contender::all(is_pinned);
    println!(
        "{rounds} rounds of {} s; {}; {descriptors} descriptors",
        time.as_secs(),
        if is_pinned { "broker on core 0, load on core 1" } else { "nothing is pinned to a core" },
    );
    for contender in &contenders {
        println!("  {}: {}", contender.name, contender.version());
    }
    latency::choose_rates(&mut scenarios, &contenders, time)?;

    let mut report = Report::new(&contenders, &scenarios);
    for round in 1..=rounds {
        for scenario in &scenarios {
            for contender in &contenders {
                if report.has_failed(scenario, contender) || !scenario.can_ask(contender) {
                    continue;
                }
                eprintln!("round {round} of {rounds}: {}: {}", scenario.name, contender.name);
                // The others go on after a failure: what was measured so far is not to be lost.
                let _awake = scenario.is_beside().then(|| Awake::begin(is_pinned));
                let outcome = contender.start().and_then(|running| scenario.run(&running.process, time));
                report.add(scenario, contender, outcome);
            }
        }
    }
    println!("\n{report}");
    if report.is_flawless(contender::OURS) {
        Ok(())
    } else {
        Err(io::Error::other("this broker failed, or lost, repeated or made up messages"))
    }
}
