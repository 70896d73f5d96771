//! Medians of all rounds, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use crate::contender::{BASELINE, Contender};
use crate::idle::Memory;
use crate::load::Faults;
use crate::measure::Sample;

/// From this share of its core on somebody has nothing left.
const BUSY: f64 = 0.9;

/// Everything measured.
pub(crate) struct Report {
    contenders: Vec<String>,
    /// In the order in which they were run first.
    scenarios: Vec<String>,
    /// By scenario and contender.
    samples: BTreeMap<(String, String), Vec<Sample>>,
    memory: BTreeMap<String, Vec<Memory>>,
    /// Contender and what happened, in order.
    failures: Vec<(String, String)>,
}

/// The medians of one row.
struct Row {
    per_second: f64,
    micros_each: f64,
    per_processor_second: f64,
    broker_share: f64,
    load_share: f64,
}

impl Row {
    fn new(samples: &[Sample]) -> Self {
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        Self {
            per_second: of(|sample| sample.count as f64 / sample.time.as_secs_f64()),
            micros_each: of(|sample| sample.processor_time.as_secs_f64() * 1e6 / sample.count.max(1) as f64),
            per_processor_second: of(|sample| {
                sample.count as f64 / sample.processor_time.as_secs_f64().max(1e-9)
            }),
            broker_share: of(|sample| sample.processor_time.as_secs_f64() / sample.time.as_secs_f64()),
            load_share: of(|sample| sample.own_processor_time.as_secs_f64() / sample.time.as_secs_f64()),
        }
    }

    /// Who held up whom.
    fn remark(&self) -> &'static str {
        match (self.broker_share >= BUSY, self.load_share >= BUSY) {
            (true, _) => "",
            (false, true) => "the load was the bottleneck: throughput says nothing",
            (false, false) => "neither was busy: latency, or others on the machine",
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

fn faults<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Faults {
    let mut sum = Faults::default();
    for Sample { faults, .. } in samples {
        sum.lost += faults.lost;
        sum.repeated += faults.repeated;
        sum.strange += faults.strange;
    }
    sum
}

impl Report {
    pub(crate) fn new(contenders: &[Contender]) -> Self {
        Self {
            contenders: contenders.iter().map(|contender| contender.name.clone()).collect(),
            scenarios: Vec::new(),
            samples: BTreeMap::new(),
            memory: BTreeMap::new(),
            failures: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, scenario: &str, contender: &str, sample: Sample) {
        if !self.scenarios.iter().any(|known| known == scenario) {
            self.scenarios.push(scenario.to_owned());
        }
        self.samples.entry((scenario.to_owned(), contender.to_owned())).or_default().push(sample);
    }

    pub(crate) fn add_memory(&mut self, contender: &str, memory: Memory) {
        self.memory.entry(contender.to_owned()).or_default().push(memory);
    }

    /// A round that gave nothing.
    pub(crate) fn add_failure(&mut self, scenario: &str, contender: &str, error: &io::Error) {
        self.failures.push((contender.to_owned(), format!("{scenario}: {error}")));
    }

    /// Whether one broker never failed and had no fault.
    pub(crate) fn is_flawless(&self, contender: &str) -> bool {
        let samples = self.samples.iter().filter(|((_, name), _)| name == contender);
        faults(samples.flat_map(|(_, samples)| samples)) == Faults::default()
            && self.failures.iter().all(|(name, _)| name != contender)
    }

    fn samples(&self, scenario: &str, contender: &str) -> Option<&[Sample]> {
        Some(self.samples.get(&(scenario.to_owned(), contender.to_owned()))?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for scenario in &self.scenarios {
            let unit = if scenario.starts_with("connect") { "connection" } else { "message" };
            let each = format!("us/{unit}");
            writeln!(f, "{scenario}")?;
            writeln!(
                f,
                "  {:<12} {:>12} {:>13} {:>14} {:>7} {:>6} {:>9} {:>9}",
                "", "per second", each, "per CPU second", "broker", "load", "x wall", "x CPU"
            )?;
            let baseline = self.samples(scenario, BASELINE).map(Row::new);
            for contender in &self.contenders {
                let Some(samples) = self.samples(scenario, contender) else { continue };
                let row = Row::new(samples);
                let ratio = |value: fn(&Row) -> f64| {
                    baseline
                        .as_ref()
                        .map_or("-".to_owned(), |base| format!("{:.2}", value(&row) / value(base)))
                };
                writeln!(
                    f,
                    "  {contender:<12} {:>12.0} {:>13.3} {:>14.0} {:>6.0}% {:>5.0}% {:>9} {:>9}  {}",
                    row.per_second,
                    row.micros_each,
                    row.per_processor_second,
                    row.broker_share * 100.0,
                    row.load_share * 100.0,
                    ratio(|row| row.per_second),
                    ratio(|row| row.per_processor_second),
                    row.remark(),
                )?;
                let faults = faults(samples);
                if faults != Faults::default() {
                    writeln!(f, "  {:<12} FAULTS: {faults}", "")?;
                }
            }
        }
        if !self.memory.is_empty() {
            writeln!(f, "resident bytes per idle client with one subscription")?;
        }
        let per_client = |contender: &str| {
            let rounds = self.memory.get(contender)?;
            Some(median(rounds.iter().map(|memory| memory.per_client() as f64).collect()))
        };
        for contender in &self.contenders {
            let (Some(bytes), Some(memory)) =
                (per_client(contender), self.memory.get(contender).and_then(|rounds| rounds.last()))
            else {
                continue;
            };
            let ratio = per_client(BASELINE).map_or("-".to_owned(), |base| format!("{:.2}", bytes / base));
            writeln!(
                f,
                "  {contender:<12} {bytes:>12.0}   ({} clients: from {} to {} KiB)   x {ratio}",
                memory.clients,
                memory.before / 1024,
                memory.after / 1024,
            )?;
        }
        for (contender, failure) in &self.failures {
            writeln!(f, "FAILED: {contender}: {failure}")?;
        }
        writeln!(
            f,
            "broker, load: share of their core; x: as a multiple of {BASELINE}; every message was checked"
        )
    }
}
