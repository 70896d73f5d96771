//! Publishers and subscribers that keep a fixed number of messages on their way, and check each of them.
//!
//! Every payload carries its publisher and a running number, so loss, repetition and a wrong order are all seen. A
//! message is on its way until every subscriber of its topic has it and, at QoS 1 and 2, its publisher has the last
//! answer. So the load follows the broker, and a broker that is slow drops nothing for that reason.
//!
//! A plan with a rate does not follow: each message has its time, and what is sent late is counted from that time all the
//! same. Such a load never sleeps, because the poll cannot sleep for less than a millisecond.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::client::Client;
use super::faults::Faults;
use super::plan::Plan;
use super::publisher::Publisher;
use super::subscriber::Subscriber;

/// What one read takes at most.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// At most so long is slept, because the caller may wait for a point in time.
const SLEEP_MAX: Duration = Duration::from_millis(10);

/// Is told how long something took.
pub(super) type OnTime = Box<dyn FnMut(Duration)>;

/// A load at work.
pub(crate) struct Flow {
    plan: Plan,
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
    /// Publishers first, then subscribers.
    clients: Vec<Client>,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// Messages that each publisher may send in all.
    limit: u64,
    /// Clients to flush at the end of the turn.
    touched: Vec<usize>,
    delivered: u64,
    faults: Faults,
    /// When the first message of a plan with a rate is due.
    began: Instant,
    /// How long it sleeps at most while nothing happens.
    pub(crate) sleep_max: Duration,
    /// From PUBLISH to PUBACK or PUBCOMP. Like the others to be set before anything is sent.
    pub(crate) on_answer: Option<OnTime>,
    /// With a rate, from when a message was due until it was sent: what the load itself was late.
    pub(crate) on_departure: Option<OnTime>,
    /// With a rate, from when a message was due until a subscriber had it.
    pub(crate) on_arrival: Option<OnTime>,
}

impl Flow {
    /// Connects and subscribes everybody.
    pub(crate) fn start(address: SocketAddr, plan: Plan) -> io::Result<Self> {
        let (publishers, subscribers) = (plan.publishers(), plan.subscribers());
        let poll = Poll::new()?;
        let mut clients = Vec::new();
        for index in 0..publishers + subscribers {
            let filter = index.checked_sub(publishers).map(|subscriber| plan.filter(subscriber));
            let filters: Vec<_> = filter.iter().map(|filter| (filter.as_str(), plan.qos)).collect();
            let client_id = format!("flow-{index}");
            let mut client = if plan.is_stored && filter.is_some() {
                Client::connect_stored(address, &client_id, &filters)?.0
            } else {
                Client::connect(address, &client_id, &filters)?
            };
            client.register(poll.registry(), Token(index))?;
            clients.push(client);
        }
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            clients,
            publishers: (0..publishers).map(|number| Publisher::new(number, &plan)).collect(),
            subscribers: (0..subscribers).map(|_| Subscriber::new(publishers)).collect(),
            limit: 0,
            touched: Vec::new(),
            delivered: 0,
            faults: Faults::default(),
            began: Instant::now(),
            sleep_max: if plan.per_second.is_some() { Duration::ZERO } else { SLEEP_MAX },
            on_answer: None,
            on_departure: None,
            on_arrival: None,
            plan,
        })
    }

    /// Deliveries so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// What went wrong so far.
    pub(crate) fn faults(&self) -> Faults {
        self.faults
    }

    /// Lets each publisher send so many messages in all; 0 stops whoever has sent more already.
    pub(crate) fn set_limit(&mut self, messages: u64) {
        self.limit = messages;
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        let unsent = |publisher: &Publisher| publisher.sent < self.limit;
        self.publishers.iter().all(|publisher| publisher.under_way(&self.plan) == 0 && !unsent(publisher))
            && self.clients.iter().all(|client| client.out.is_empty())
    }

    /// Deliveries that were due and have not come.
    pub(crate) fn missing(&self) -> u64 {
        let due: u64 = self.publishers.iter().map(|publisher| publisher.sent * self.plan.receivers()).sum();
        let came: u64 = self.publishers.iter().map(|publisher| publisher.delivered).sum();
        due - came
    }

    /// Goes on until `done` says so, or until nothing has happened for as long as `patience`; false in that case.
    pub(crate) fn drive(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) -> io::Result<bool> {
        let mut last_event = Instant::now();
        loop {
            self.publish();
            for index in self.touched.drain(..) {
                self.clients[index].flush()?;
            }
            if done(self) {
                return Ok(true);
            }
            match self.poll.poll(&mut self.events, Some(self.sleep_max)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            if self.events.is_empty() {
                if last_event.elapsed() > patience {
                    return Ok(false);
                }
            } else {
                last_event = Instant::now();
                self.take()?;
            }
        }
    }

    /// Has every publisher send what it may.
    fn publish(&mut self) {
        let Self { plan, publishers, clients, touched, on_answer, on_departure, .. } = self;
        let time = plan.per_second.map_or(Duration::ZERO, |_| self.began.elapsed());
        for (index, publisher) in publishers.iter_mut().enumerate() {
            let unsent = self.limit.min(plan.due_by(index, time)).saturating_sub(publisher.sent);
            let room = plan.window.saturating_sub(publisher.under_way(plan));
            let count = unsent.min(room);
            if count > 0 && (count >= plan.batch || count == unsent) {
                if let Some(on_departure) = on_departure {
                    let due = (publisher.sent..publisher.sent + count).filter_map(|n| plan.due(index, n));
                    due.for_each(|due| on_departure(time.saturating_sub(due)));
                }
                publisher.publish(&mut clients[index].out, count);
                if on_answer.is_some() {
                    publisher.bursts.push_back((publisher.sent, Instant::now()));
                }
                touched.push(index);
            }
        }
    }

    /// Reads from every client that has something.
    fn take(&mut self) -> io::Result<()> {
        let Self {
            events,
            clients,
            publishers,
            subscribers,
            plan,
            faults,
            buffer,
            touched,
            on_answer,
            on_arrival,
            ..
        } = self;
        for event in &*events {
            let Token(index) = event.token();
            let client = &mut clients[index];
            if event.is_readable() || event.is_read_closed() {
                match index.checked_sub(publishers.len()) {
                    None => {
                        let now = Instant::now();
                        client.read(buffer, |packet, out| {
                            publishers[index].take(packet, out, plan, faults, (&mut *on_answer, now));
                        })?;
                    }
                    Some(number) => {
                        client.read(buffer, |packet, out| {
                            let message = subscribers[number].take(packet, out, publishers, plan, faults);
                            if let Some(on_arrival) = on_arrival
                                && let Some((publisher, number)) = message
                                && let Some(due) = plan.due(publisher, number)
                            {
                                on_arrival(self.began.elapsed().saturating_sub(due));
                            }
                        })?;
                    }
                }
            }
            // It has answers to write, or the socket takes more than before.
            touched.push(index);
        }
        self.delivered = publishers.iter().map(|publisher| publisher.delivered).sum();
        Ok(())
    }
}
