//! The load of this benchmark: QoS 1 to one subscriber with a stored session, that is there or away.
//!
//! One that is away has subscribed and gone. When it comes back, it gets what was acknowledged meanwhile, and each of it is
//! looked at: this is what the acknowledgements have promised.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use broker::codec::packet::Publish;
use broker::codec::{Packet, QoS, ReasonCode, encode};
use mio::{Events, Poll, Token};

use crate::load::client::Client;
use crate::load::{Faults, Flow, Plan, Shape};
use crate::times::Times;
use crate::{PATIENCE, PAYLOAD_BYTES};

const ABSENTEE: &str = "absentee";

const READ_BUFFER_BYTES: usize = 256 * 1024;

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
    address: SocketAddr,
    flow: Flow,
    concurrency: Concurrency,
    is_absent: bool,
    answers: Rc<RefCell<Answers>>,
}

impl StoredFlow {
    pub(crate) fn start(address: SocketAddr, concurrency: Concurrency, is_absent: bool) -> io::Result<Self> {
        let plan = Plan {
            shape: Shape { publishers: concurrency.publishers, subscribers: 1 },
            qos: QoS::AtLeastOnce,
            window: concurrency.window,
            batch: 1,
            payload_bytes: PAYLOAD_BYTES,
            is_stored: true,
            is_absent,
        };
        if is_absent {
            let filter = plan.filter(0);
            Client::connect_stored(address, ABSENTEE, Some((&filter, plan.qos)))?;
        }
        let mut flow = Flow::start(address, plan)?;
        let answers: Rc<RefCell<Answers>> = Rc::default();
        let noted = answers.clone();
        flow.on_answer = Some(Box::new(move |time| {
            let mut answers = noted.borrow_mut();
            answers.count += 1;
            answers.times.add(time);
        }));
        flow.set_limit(u64::MAX);
        Ok(Self { address, flow, concurrency, is_absent, answers })
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
        let faults = self.flow.faults();
        if faults != Faults::default() {
            return Err(io::Error::other(format!("faults of the broker: {faults}")));
        }
        if self.is_absent { self.bring_back() } else { Ok(()) }
    }

    /// The subscriber comes back and takes what has waited for it.
    fn bring_back(&self) -> io::Result<()> {
        let (mut client, is_present) = Client::connect_stored(self.address, ABSENTEE, None)?;
        if !is_present {
            return Err(io::Error::other("the session of the absent subscriber is gone"));
        }
        let mut poll = Poll::new()?;
        client.register(poll.registry(), Token(0))?;
        let (mut events, mut buffer) = (Events::with_capacity(8), vec![0; READ_BUFFER_BYTES]);
        let mut next = vec![0; self.concurrency.publishers];
        let (mut came, mut faults) = (0, 0_u64);
        while came < self.acknowledged() {
            poll.poll(&mut events, Some(PATIENCE))?;
            if events.is_empty() {
                let missing = self.acknowledged() - came;
                return Err(io::Error::other(format!("{missing} acknowledged messages are lost")));
            }
            client.read(&mut buffer, |packet, out| match packet {
                Packet::Publish(publish) => {
                    came += 1;
                    faults += u64::from(!is_next(&publish, &mut next));
                    if let Some(packet_id) = publish.packet_id {
                        encode::puback(out, packet_id, ReasonCode::Success);
                    }
                }
                _ => faults += 1,
            })?;
            client.flush()?;
        }
        if faults == 0 {
            Ok(())
        } else {
            Err(io::Error::other(format!("{faults} messages came in a wrong order, changed or twice")))
        }
    }
}

/// Whether a message is the one that has to come next from its publisher.
fn is_next(publish: &Publish<'_>, next: &mut [u64]) -> bool {
    let Some((publisher, rest)) = publish.payload.split_first_chunk() else { return false };
    let Some((number, _)) = rest.split_first_chunk() else { return false };
    let Some(next) = next.get_mut(u32::from_be_bytes(*publisher) as usize) else { return false };
    let is_next = u64::from_be_bytes(*number) == *next;
    *next = u64::from_be_bytes(*number) + 1;
    is_next && publish.payload.len() == PAYLOAD_BYTES && publish.qos == QoS::AtLeastOnce
}
