//! What one round of one scenario gave.

use crate::load::Faults;
use crate::measure::Sample;

/// Figures and what stands behind them.
pub(crate) struct Outcome {
    /// In the unit of the scenario.
    pub(crate) figures: Vec<f64>,
    /// What was done meanwhile, and what it took.
    pub(crate) sample: Option<Sample>,
    pub(crate) faults: Faults,
    /// What else there is to know.
    pub(crate) note: Option<String>,
}

impl Outcome {
    /// Where processor time is what counts.
    pub(crate) fn processor_time(sample: Sample, faults: Faults) -> Self {
        Self { figures: vec![sample.micros_each()], sample: Some(sample), faults, note: None }
    }
}
