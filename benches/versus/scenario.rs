//! The scenarios: what is asked of each broker, and what is measured.

use std::io;
use std::time::Duration;

use broker::codec::QoS;

use crate::contender::Contender;
use crate::filters::{self, Filters};
use crate::latency;
use crate::load::plan::PAYLOAD_BYTES;
use crate::load::{Flow, Plan, Shape};
use crate::measure::{Process, round};
use crate::memory::{self, Kept};
use crate::outcome::Outcome;
use crate::preparation::Preparation;
use crate::{PATIENCE, beside, churn, drain, retained};

/// Connections opened and closed at once.
const CHURNERS: usize = 50;

/// Topics that the publisher among many filters goes through. They are more than our match cache has places for, so each
/// publication is matched anew. Subscribers of the load hear all of them by `bench/flow/0/+`.
const TOPICS: u64 = 10_000;

/// Receivers of each message beside which a lone one is timed, and messages a second to them.
const FAN_OUT: usize = 1_000;
const FAN_OUT_PER_SECOND: f64 = 50.0;

/// What a figure counts.
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) is_more_better: bool,
}

const fn least(name: &'static str) -> Unit {
    Unit { name, is_more_better: false }
}

/// What is asked.
pub(crate) enum Load {
    /// Clients that follow the broker.
    Closed(Plan),
    /// The same among so many filters that idle clients hold. What is counted is publications, not deliveries.
    Among(Plan, Filters, u64),
    /// Clients that send at their own times, at this share of what the slower contender can take.
    Open(Plan, f64),
    /// The time of a lone message beside this.
    Beside(Plan),
    Churn,
    Kept(Kept),
    Drain,
    Retained,
}

/// One row of the table.
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) load: Load,
}

impl Scenario {
    fn new(name: impl Into<String>, unit: Unit, load: Load) -> Self {
        Self { name: name.into(), unit, load }
    }

    /// Of the relay only what it understands: messages at QoS 0 on one topic of each publisher.
    pub(crate) fn can_ask(&self, contender: &Contender) -> bool {
        let (Load::Closed(plan) | Load::Open(plan, _) | Load::Beside(plan)) = &self.load else {
            return !contender.is_relay;
        };
        !contender.is_relay || (plan.qos == QoS::AtMostOnce && plan.topics == 1 && !plan.is_retained)
    }

    /// Whether it is the time of one message that counts, while many others are on their way.
    pub(crate) const fn is_beside(&self) -> bool {
        matches!(self.load, Load::Beside(_))
    }

    /// One round against one broker.
    pub(crate) fn run(&self, process: &Process, time: Duration) -> io::Result<Outcome> {
        match &self.load {
            Load::Closed(plan) => {
                let (sample, faults) =
                    round(process, &mut Flow::start(process.address, *plan)?, time, PATIENCE)?;
                Ok(Outcome::processor_time(sample, faults))
            }
            Load::Among(plan, filters, count) => {
                let _holders = filters::hold(process.address, *filters, *count, &Preparation::begin())?;
                let (mut sample, faults) =
                    round(process, &mut Flow::start(process.address, *plan)?, time, PATIENCE)?;
                sample.count /= plan.receivers();
                Ok(Outcome::processor_time(sample, faults))
            }
            Load::Open(plan, _) => latency::run(process, *plan, time),
            Load::Beside(plan) => beside::run(process, *plan, time),
            Load::Churn => churn::run(process, CHURNERS, time),
            Load::Kept(kept) => memory::run(process, *kept),
            Load::Drain => drain::run(process),
            Load::Retained => retained::run(process, time),
        }
    }
}

/// All of them, in the order of the table.
pub(crate) fn all() -> Vec<Scenario> {
    use QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

    let shape = |publishers, subscribers| Shape { publishers, subscribers };
    let two: &[QoS] = &[AtMostOnce, AtLeastOnce];

    // A quarter of the window at once: who has much to send does not write message by message. That is what batching
    // lives on, so the pairs with few messages on their way show what is left of it without.
    let flows = [
        (
            "10 pairs",
            shape(10, 10),
            PAYLOAD_BYTES,
            100,
            25,
            [AtMostOnce, AtLeastOnce, ExactlyOnce].as_slice(),
        ),
        ("100 pairs", shape(100, 100), PAYLOAD_BYTES, 10, 1, two),
        ("100 pairs", shape(100, 100), PAYLOAD_BYTES, 1, 1, two),
        ("1,000 pairs", shape(1_000, 1_000), PAYLOAD_BYTES, 4, 1, &[AtMostOnce]),
        ("4 pairs, 16 KiB", shape(4, 4), 16 * 1024, 16, 4, &[AtMostOnce]),
        ("2 pairs, 256 KiB", shape(2, 2), 256 * 1024, 4, 1, &[AtMostOnce]),
        ("100 to 1", shape(100, 1), PAYLOAD_BYTES, 10, 3, two),
        ("100 to 1", shape(100, 1), PAYLOAD_BYTES, 100, 25, two),
        ("1 to 100", shape(1, 100), PAYLOAD_BYTES, 100, 25, two),
    ];
    let mut all = Vec::new();
    for (name, shape, payload_bytes, window, batch, levels) in flows {
        for qos in levels.iter().copied() {
            let name = format!("{name}, QoS {}, {window} on their way each", qos.number());
            let plan = Plan { payload_bytes, ..Plan::new(shape, qos, window, batch) };
            all.push(Scenario::new(name, least("CPU us/message"), Load::Closed(plan)));
        }
    }
    all.push(Scenario::new("connect and disconnect", least("CPU us/connection"), Load::Churn));
    for (name, filters, count, receivers) in [
        ("publish among 10,000 mixed filters of others, 2 match", Filters::Mixed, 10_000, 2),
        ("publish among 1,000,000 exact filters of others, 1 matches", Filters::Exact, 1_000_000, 1),
    ] {
        let plan = Plan { topics: TOPICS, ..Plan::new(shape(1, receivers), AtMostOnce, 100, 25) };
        all.push(Scenario::new(name, least("CPU us/publication"), Load::Among(plan, filters, count)));
    }
    for (name, unit, kept) in [
        ("memory: a client with a subscription", "bytes/client", Kept::Clients(5_000)),
        ("memory: a subscription", "bytes/subscription", Kept::Subscriptions(200_000)),
        ("memory: a retained message", "bytes/message", Kept::Retained(200_000)),
        ("memory: a queued QoS 1 message", "bytes/message", Kept::Queued(200_000)),
    ] {
        all.push(Scenario::new(name, least(unit), Load::Kept(kept)));
    }
    let per_second = Unit { name: "messages/s / per CPU s", is_more_better: true };
    all.push(Scenario::new("200,000 queued QoS 1 messages drained", per_second, Load::Drain));
    all.push(Scenario::new("# over 10,000 retained messages", least("s / CPU s"), Load::Retained));
    let fan_out = Plan::new(shape(1, FAN_OUT), AtMostOnce, 65_535, 1);
    all.push(Scenario::new(
        format!("latency of a lone message beside 1 to {FAN_OUT}, {FAN_OUT_PER_SECOND:.0} messages/s"),
        least("us: p50 / p99 / p99.9 / longest"),
        Load::Beside(Plan { per_second: Some(FAN_OUT_PER_SECOND), ..fan_out }),
    ));
    for qos in two.iter().copied() {
        for percent in [10, 50, 90] {
            let name =
                format!("latency, 10 pairs, QoS {}, at {percent} % of the lesser capacity", qos.number());
            // As many identifiers as there are, so that it is the time that says when a message is sent.
            let plan = Plan::new(shape(10, 10), qos, 65_535, 1);
            let load = Load::Open(plan, f64::from(percent) / 100.0);
            all.push(Scenario::new(name, least("us: p50 / p99 / p99.9 / longest"), load));
        }
    }
    all
}
