//! Many times, and what most of them are below.

use std::time::Duration;

/// Times in no order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    nanoseconds: Vec<u64>,
}

impl Times {
    pub(crate) fn add(&mut self, time: Duration) {
        self.nanoseconds.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn count(&self) -> u64 {
        self.nanoseconds.len() as u64
    }

    /// In microseconds, what this share of all is not above.
    pub(crate) fn quantile(&mut self, share: f64) -> f64 {
        let count = self.nanoseconds.len();
        let Some(last) = count.checked_sub(1) else { return f64::NAN };
        let at = ((count as f64 * share).ceil() as usize).saturating_sub(1).min(last);
        let (_, value, _) = self.nanoseconds.select_nth_unstable(at);
        *value as f64 / 1e3
    }
}
