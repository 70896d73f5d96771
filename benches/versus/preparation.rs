//! What has to be there before a scenario begins, made within a minute or not at all.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::load::{Faults, Flow, Plan};

const TIME_MAX: Duration = Duration::from_secs(60);

/// Something that is being made.
pub(crate) struct Preparation {
    end: Instant,
}

impl Preparation {
    pub(crate) fn begin() -> Self {
        Self { end: Instant::now() + TIME_MAX }
    }

    /// To be asked after each step.
    pub(crate) fn check(&self) -> io::Result<()> {
        if Instant::now() < self.end {
            Ok(())
        } else {
            let what = format!("skipped: the preparation took more than {} s", TIME_MAX.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        }
    }

    /// Sends so many messages of each publisher, and sees that all were acknowledged.
    pub(crate) fn send(&self, address: SocketAddr, plan: Plan, messages: u64) -> io::Result<()> {
        let mut flow = Flow::start(address, plan)?;
        flow.set_limit(messages);
        let is_alive = flow.drive(PATIENCE, |flow| flow.is_quiet() || Instant::now() >= self.end)?;
        self.check()?;
        if is_alive && flow.faults() == Faults::default() {
            Ok(())
        } else {
            Err(io::Error::other(format!("not everything was acknowledged: {}", flow.faults())))
        }
    }
}
