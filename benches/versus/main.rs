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
//! * `VERSUS_ROUNDS` (3), `VERSUS_SECONDS` (3), `VERSUS_CLIENTS` (5000, for memory).
//!
//! A broker is started afresh for each scenario of each round, and rounds go from broker to broker, so that a change of
//! the machine's mood meets all of them. Where there are two cores and `taskset`, a broker has the first and the load
//! the second. Every figure is the median of its rounds.
//!
//! Processor time counts more than throughput: it is what the broker itself costs, even where the load could not keep up
//! or others used the machine. Every message is checked; a fault of this broker ends the program with a failure.
//!
//! Deliberately not here: persistence, TLS, brokers that need more than a command, and several cores for one broker.

mod churn;
mod contender;
mod idle;
#[path = "../load/mod.rs"]
mod load;
mod measure;
mod report;

use std::io;
use std::time::Duration;

use broker::codec::QoS;
use broker::server::raise_descriptor_limit;

use contender::Contender;
use load::{Flow, Plan, Shape};
use measure::{Sample, Stopwatch};
use report::Report;

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// A broker that does nothing for so long, while something is on its way, has lost it.
const PATIENCE: Duration = Duration::from_secs(5);

const PAYLOAD_BYTES: usize = 64;

/// Connections opened and closed at once.
const CHURNERS: usize = 50;

enum Load {
    Flow(Plan),
    Churn,
    Idle,
}

struct Scenario {
    name: String,
    load: Load,
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test` runs benches to see that they start.
        return Ok(());
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |scenario: &Scenario| {
        filters.is_empty() || filters.iter().any(|filter| scenario.name.contains(filter.as_str()))
    };
    let scenarios: Vec<Scenario> = scenarios().into_iter().filter(is_wanted).collect();
    let rounds = setting("VERSUS_ROUNDS", 3).max(1);
    let seconds = Duration::from_secs(setting("VERSUS_SECONDS", 3).max(1));
    let clients = setting("VERSUS_CLIENTS", 5_000).max(1);

    let descriptors = raise_descriptor_limit().unwrap_or_else(|error| error.to_string());
    let pinning = measure::pin();
    let contenders = contender::all(pinning);
    println!(
        "{rounds} rounds of {} s; {}; {descriptors} descriptors; payloads of {PAYLOAD_BYTES} bytes",
        seconds.as_secs(),
        if pinning { "broker on core 0, load on core 1" } else { "nothing is pinned to a core" },
    );
    for contender in &contenders {
        println!("  {}: {}", contender.name, contender.version());
    }

    let mut report = Report::new(&contenders);
    for round in 1..=rounds {
        for scenario in &scenarios {
            for contender in &contenders {
                eprintln!("round {round} of {rounds}: {}: {}", scenario.name, contender.name);
                if let Err(error) = run(scenario, contender, seconds, clients, &mut report) {
                    // The others go on: what was measured so far is not to be lost.
                    report.add_failure(&scenario.name, &contender.name, &error);
                }
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

/// One round of one scenario against one broker.
fn run(
    scenario: &Scenario,
    contender: &Contender,
    seconds: Duration,
    clients: u64,
    report: &mut Report,
) -> io::Result<()> {
    let running = contender.start()?;
    match &scenario.load {
        Load::Flow(plan) => {
            report.add(&scenario.name, &contender.name, flow(&running, *plan, seconds)?);
        }
        Load::Churn => {
            let sample = churn::run(&running, CHURNERS, WARM_UP, seconds)?;
            report.add(&scenario.name, &contender.name, sample);
        }
        Load::Idle => report.add_memory(&contender.name, idle::run(&running, clients)?),
    }
    Ok(())
}

fn scenarios() -> Vec<Scenario> {
    use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

    let shape = |publishers, subscribers| Shape { publishers, subscribers };

    // A quarter of the window at once: who has much to send does not write message by message. That is what batching
    // lives on, so the pairs with few messages on their way show what is left of it without.
    let flows = [
        ("10 pairs", shape(10, 10), 100, 25, [AtMostOnce, AtLeastOnce, ExactlyOnce].as_slice()),
        ("100 pairs", shape(100, 100), 10, 1, &[AtMostOnce, AtLeastOnce]),
        ("100 pairs", shape(100, 100), 1, 1, &[AtMostOnce, AtLeastOnce]),
        ("100 to 1", shape(100, 1), 10, 3, &[AtMostOnce, AtLeastOnce]),
        ("1 to 100", shape(1, 100), 100, 25, &[AtMostOnce, AtLeastOnce]),
    ];
    let mut all = Vec::new();
    for (name, shape, window, batch, levels) in flows {
        for qos in levels.iter().copied() {
            let name = format!("{name}, QoS {}, {window} on their way each", qos.number());
            let plan = Plan {
                shape,
                qos,
                window,
                batch,
                payload_bytes: PAYLOAD_BYTES,
                is_stored: false,
                is_absent: false,
            };
            all.push(Scenario { name, load: Load::Flow(plan) });
        }
    }
    all.push(Scenario { name: "connect and disconnect".to_owned(), load: Load::Churn });
    all.push(Scenario { name: "memory".to_owned(), load: Load::Idle });
    all
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name).map(|text| text.parse()) {
        Ok(Ok(number)) => number,
        Ok(Err(error)) => {
            eprintln!("{name}: {error}; {default} is used");
            default
        }
        Err(_) => default,
    }
}

fn flow(running: &contender::Running, plan: Plan, seconds: Duration) -> io::Result<Sample> {
    let mut flow = Flow::start(running.address, plan)?;
    flow.set_limit(u64::MAX);
    let mut alive = drive_for(&mut flow, WARM_UP)?;
    let stopwatch = Stopwatch::start(running.pid(), flow.delivered())?;
    alive &= drive_for(&mut flow, seconds)?;
    let mut sample = stopwatch.stop(flow.delivered())?;
    flow.set_limit(0);
    alive &= flow.drive(PATIENCE, Flow::is_quiet)?;
    sample.faults = flow.faults();
    if !alive {
        sample.faults.lost += flow.missing();
        // An answer that never comes is a fault too, even if all deliveries came.
        sample.faults.strange += 1;
    }
    Ok(sample)
}

fn drive_for(flow: &mut Flow, time: Duration) -> io::Result<bool> {
    let end = std::time::Instant::now() + time;
    flow.drive(PATIENCE, |_| std::time::Instant::now() >= end)
}
