//! What a broker did wrong.

use std::fmt;
use std::ops::AddAssign;

/// How often, of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Deliveries that never came, or not before a later one.
    pub(crate) lost: u64,
    /// Deliveries that came twice, or after a later one.
    pub(crate) repeated: u64,
    /// Packets that nobody should get: another topic, payload or QoS, or an answer out of order.
    pub(crate) strange: u64,
}

impl AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.strange += other.strange;
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lost, {} repeated, {} strange", self.lost, self.repeated, self.strange)
    }
}
