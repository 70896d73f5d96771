//! Medians of all rounds: as text with what stands behind them, and as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use crate::contender::{BASELINE, Contender};
use crate::load::Faults;
use crate::measure::{BUSY, Sample, Table, median};
use crate::outcome::Outcome;
use crate::scenario::Scenario;

/// Everything measured.
pub(crate) struct Report {
    contenders: Vec<String>,
    rows: Vec<Row>,
}

/// One scenario.
struct Row {
    scenario: String,
    unit: &'static str,
    is_more_better: bool,
    /// By contender.
    cells: BTreeMap<String, Cell>,
}

/// One contender in it.
#[derive(Default)]
struct Cell {
    outcomes: Vec<Outcome>,
    failure: Option<io::Error>,
}

impl Cell {
    /// The medians of all figures.
    fn figures(&self) -> Vec<f64> {
        let count = self.outcomes.first().map_or(0, |outcome| outcome.figures.len());
        (0..count).map(|at| median(&self.outcomes, |outcome| outcome.figures[at])).collect()
    }

    fn faults(&self) -> Faults {
        let mut sum = Faults::default();
        for outcome in &self.outcomes {
            sum += outcome.faults;
        }
        sum
    }

    /// The median of what is asked of the samples, if there are any.
    fn of(&self, value: fn(&Sample) -> f64) -> Option<f64> {
        let samples: Vec<Sample> = self.outcomes.iter().filter_map(|outcome| outcome.sample).collect();
        (!samples.is_empty()).then(|| median(&samples, value))
    }

    /// What there is to know about the last round, or who held up whom.
    fn remark(&self) -> &str {
        let (Some(broker), Some(load)) = (self.of(Sample::broker_share), self.of(Sample::load_share)) else {
            return self.note();
        };
        match (self.note(), broker >= BUSY, load >= BUSY) {
            ("", true, _) => "",
            ("", false, true) => "the load was the bottleneck: throughput says nothing",
            ("", false, false) => "neither was busy: latency, or others on the machine",
            (note, _, _) => note,
        }
    }

    fn note(&self) -> &str {
        self.outcomes.last().and_then(|outcome| outcome.note.as_deref()).unwrap_or("")
    }
}

impl Row {
    fn figures(&self, contender: &str) -> Vec<f64> {
        self.cells.get(contender).map(Cell::figures).unwrap_or_default()
    }

    /// How many times as good as the baseline.
    fn ratios(&self, contender: &str) -> String {
        let figures = self.figures(contender).into_iter().zip(self.figures(BASELINE));
        let ratios = figures
            .map(|(figure, base)| number(if self.is_more_better { figure / base } else { base / figure }));
        joined(ratios)
    }

    fn text(&self, contender: &str) -> String {
        joined(self.figures(contender).into_iter().map(number))
    }
}

/// With three digits that count.
fn number(value: f64) -> String {
    let digits = (2 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if rest.is_empty() { grouped } else { format!("{grouped}.{rest}") }
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(" / ") }
}

impl Report {
    pub(crate) fn new(contenders: &[Contender], scenarios: &[Scenario]) -> Self {
        let row = |scenario: &Scenario| Row {
            scenario: scenario.name.clone(),
            unit: scenario.unit.name,
            is_more_better: scenario.unit.is_more_better,
            cells: BTreeMap::new(),
        };
        Self {
            contenders: contenders.iter().map(|contender| contender.name.clone()).collect(),
            rows: scenarios.iter().map(row).collect(),
        }
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, contender: &Contender, outcome: io::Result<Outcome>) {
        let row = self.rows.iter_mut().find(|row| row.scenario == scenario.name);
        let cells = &mut row.expect("each scenario has its row").cells;
        let cell = cells.entry(contender.name.clone()).or_default();
        match outcome {
            Ok(outcome) => cell.outcomes.push(outcome),
            Err(error) => cell.failure = Some(error),
        }
    }

    pub(crate) fn has_failed(&self, scenario: &Scenario, contender: &Contender) -> bool {
        let row = self.rows.iter().find(|row| row.scenario == scenario.name);
        row.and_then(|row| row.cells.get(&contender.name)).is_some_and(|cell| cell.failure.is_some())
    }

    /// Whether one broker never failed and had no fault.
    pub(crate) fn is_flawless(&self, contender: &str) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.cells.get(contender));
        cells.all(|cell| cell.failure.is_none() && cell.faults() == Faults::default())
    }

    /// Scenario, unit, each contender, and how each of them compares with the baseline.
    fn table(&self) -> Table {
        let others: Vec<&String> = self.contenders.iter().filter(|name| *name != BASELINE).collect();
        let mut heads = vec!["scenario".to_owned(), "unit".to_owned()];
        heads.extend(self.contenders.iter().cloned());
        heads.extend(others.iter().map(|name| format!("{name}: times as good as {BASELINE}")));
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        let mut table = Table::new(&heads);
        for row in &self.rows {
            let mut fields = vec![row.scenario.clone(), row.unit.to_owned()];
            fields.extend(self.contenders.iter().map(|contender| row.text(contender)));
            fields.extend(others.iter().map(|contender| row.ratios(contender)));
            table.add(fields);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            writeln!(f, "{} [{}]", row.scenario, row.unit)?;
            for contender in &self.contenders {
                let Some(cell) = row.cells.get(contender) else { continue };
                if !cell.outcomes.is_empty() {
                    let of = |value| cell.of(value).map_or("-".to_owned(), number);
                    let share = |value| {
                        cell.of(value).map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0))
                    };
                    writeln!(
                        f,
                        "  {contender:<12} {:>14}  x {:<8} {:>11}/s {:>8} us {:>6} {:>6}  {}",
                        row.text(contender),
                        row.ratios(contender),
                        of(Sample::per_second),
                        of(Sample::micros_each),
                        share(Sample::broker_share),
                        share(Sample::load_share),
                        cell.remark(),
                    )?;
                }
                if cell.faults() != Faults::default() {
                    writeln!(f, "  {contender:<12} FAULTS: {}", cell.faults())?;
                }
                if let Some(failure) = &cell.failure {
                    writeln!(f, "  {contender:<12} FAILED: {failure}")?;
                }
            }
        }
        writeln!(
            f,
            "after the figures: how many times as good as {BASELINE}; how many a second; processor time of the broker \
             for each; and the shares of their cores that broker and load had. Every message was checked.\n\n{}",
            self.table()
        )
    }
}
