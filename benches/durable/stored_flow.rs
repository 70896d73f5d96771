//! The load of this benchmark: QoS 1 to one subscriber with a stored session, that is there or away.
//!
//! One that is away has subscribed and gone. When it comes back, it gets what was acknowledged meanwhile, and each of it is
//! looked at: this is what the acknowledgements have promised.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use broker::codec::QoS;

use crate::PATIENCE;
use crate::load::{Faults, Flow, Plan, Shape};
use crate::measure::{Absentee, Times};

/// Publishers, and messages that each has on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Concurrency {
    pub(crate) publishers: usize,
    pub(crate) window: u64,
}

impl Concurrency {
    /// As many connections as messages on each.
    pub(crate) const ALL: [Self; 4] = [Self::square(1), Self::square(4), Self::square(16), Self::square(64)];

    pub(crate) const fn square(side: usize) -> Self {
        Self { publishers: side, window: side as u64 }
    }

    /// Messages on their way in all.
    pub(crate) fn messages(self) -> u64 {
        self.publishers as u64 * self.window
    }
}

#[derive(Default)]
struct Answers {
    /// Since the beginning.
    count: u64,
    /// Since somebody asked.
    times: Times,
}

/// The load at work.
pub(crate) struct StoredFlow {
    flow: Flow,
    /// The subscriber, if it is away.
    absentee: Option<Absentee>,
    answers: Rc<RefCell<Answers>>,
}

impl StoredFlow {
    pub(crate) fn start(address: SocketAddr, concurrency: Concurrency, is_absent: bool) -> io::Result<Self> {
        let shape = Shape { publishers: concurrency.publishers, subscribers: 1 };
        let plan = Plan::new(shape, QoS::AtLeastOnce, concurrency.window, 1);
        let plan = Plan { is_stored: true, is_absent, ..plan };
        let absentee = if is_absent { Some(Absentee::leave(address, &plan, 0)?) } else { None };
        let mut flow = Flow::start(address, plan)?;
        let answers: Rc<RefCell<Answers>> = Rc::default();
        let noted = answers.clone();
        flow.on_answer = Some(Box::new(move |time| {
            let mut answers = noted.borrow_mut();
            answers.count += 1;
            answers.times.add(time);
        }));
        flow.set_limit(u64::MAX);
        Ok(Self { flow, absentee, answers })
    }

    /// Messages that were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.answers.borrow().count
    }

    /// How long acknowledgements took since the last call.
    pub(crate) fn take_times(&mut self) -> Times {
        std::mem::take(&mut self.answers.borrow_mut().times)
    }

    pub(crate) fn drive_for(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        self.drive_until(|| Instant::now() >= end)
    }

    pub(crate) fn drive_until(&mut self, done: impl Fn() -> bool) -> io::Result<()> {
        if self.flow.drive(PATIENCE, |_| done())? { Ok(()) } else { Err(self.stuck()) }
    }

    fn stuck(&self) -> io::Error {
        let what = format!("nothing moves any more, and {} deliveries are missing", self.flow.missing());
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Sends no more and sees that everything has come.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flow.set_limit(0);
        if !self.flow.drive(PATIENCE, Flow::is_quiet)? {
            return Err(self.stuck());
        }
        let mut faults = self.flow.faults();
        if let Some(absentee) = &self.absentee {
            // What has waited for it is what the acknowledgements have promised.
            faults += absentee.come_back(self.acknowledged(), PATIENCE)?.1;
        }
        if faults == Faults::default() {
            Ok(())
        } else {
            Err(io::Error::other(format!("faults of the broker: {faults}")))
        }
    }
}
