//! Publishers and subscribers that keep a fixed number of messages on their way, and check each of them.
//!
//! Every payload carries its publisher and a running number, so loss, repetition and a wrong order are all seen. A
//! message is on its way until every subscriber of its topic has it and, at QoS 1 and 2, its publisher has the last
//! answer. So the load follows the broker, and a broker that is slow drops nothing for that reason.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use broker::codec::packet::{Ack, Publish};
use broker::codec::{Packet, PacketId, Properties, QoS, ReasonCode, encode};
use mio::{Events, Poll, Token};

use super::client::{Client, PROTOCOL};

/// What one read takes at most.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// At most so long is slept, because the caller may wait for a point in time.
const SLEEP_MAX: Duration = Duration::from_millis(10);

/// Bytes at the beginning of a payload: publisher and running number.
const LABEL_BYTES: usize = 4 + 8;

/// Who talks to whom: as many subscribers as publishers are pairs; a lone one hears all publishers, by a wildcard, and a lone
/// publisher is heard by all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) publishers: usize,
    pub(crate) subscribers: usize,
}

impl Shape {
    /// How many subscribers get each message.
    pub(crate) fn receivers(self) -> usize {
        if self.publishers == 1 { self.subscribers } else { 1 }
    }
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) shape: Shape,
    pub(crate) qos: QoS,
    /// Messages that each publisher has on their way at most: not above 65,535, for the sake of their identifiers.
    pub(crate) window: u64,
    /// A publisher waits until it may send so many at once: 1 never waits.
    pub(crate) batch: u64,
    pub(crate) payload_bytes: usize,
    /// Whether the subscribers' sessions outlive their connections.
    pub(crate) is_stored: bool,
    /// Whether there are no subscribers here: what becomes of the messages is for somebody else to see.
    pub(crate) is_absent: bool,
}

impl Plan {
    pub(crate) fn publishers(&self) -> usize {
        self.shape.publishers
    }

    fn subscribers(&self) -> usize {
        if self.is_absent { 0 } else { self.shape.subscribers }
    }

    /// How many subscribers get each message.
    pub(crate) fn receivers(&self) -> u64 {
        if self.is_absent { 0 } else { self.shape.receivers() as u64 }
    }

    /// What this subscriber subscribes to.
    pub(crate) fn filter(&self, subscriber: usize) -> String {
        let Shape { publishers, subscribers } = self.shape;
        if publishers == subscribers {
            topic(subscriber)
        } else if publishers == 1 {
            topic(0)
        } else {
            "bench/flow/+".to_owned()
        }
    }
}

fn topic(publisher: usize) -> String {
    format!("bench/flow/{publisher}")
}

/// What a broker did wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Deliveries that never came, or not before a later one.
    pub(crate) lost: u64,
    /// Deliveries that came twice, or after a later one.
    pub(crate) repeated: u64,
    /// Packets that nobody should get: another topic, payload or QoS, or an answer out of order.
    pub(crate) strange: u64,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lost, {} repeated, {} strange", self.lost, self.repeated, self.strange)
    }
}

/// Is told of each PUBACK and PUBCOMP how long after the PUBLISH it came.
pub(crate) type OnAnswer = Box<dyn FnMut(Duration)>;

struct Publisher {
    topic: String,
    /// The packet, into which identifier and running number are written.
    template: Vec<u8>,
    packet_id_at: Option<usize>,
    number_at: usize,
    sent: u64,
    /// PUBRECs received.
    half_answered: u64,
    /// PUBACKs or PUBCOMPs received.
    answered: u64,
    /// Deliveries of all its messages to all their receivers.
    delivered: u64,
    /// If answers are timed: when messages that are not answered were sent, and how many in all by then.
    bursts: VecDeque<(u64, Instant)>,
}

/// The packet identifier of the message with this running number. It is free again long before it comes round.
fn packet_id(number: u64) -> PacketId {
    PacketId::new((number % 65_535) as u16 + 1).expect("not 0")
}

impl Publisher {
    fn new(number: usize, plan: &Plan) -> Self {
        let topic = topic(number);
        let mut payload = vec![b'x'; plan.payload_bytes.max(LABEL_BYTES)];
        payload[..4].copy_from_slice(&(number as u32).to_be_bytes());
        let mut template = Vec::new();
        let has_id = plan.qos > QoS::AtMostOnce;
        let publish = Publish {
            dup: false,
            qos: plan.qos,
            retain: false,
            topic: &topic,
            packet_id: has_id.then_some(PacketId::FIRST),
            properties: Properties::NONE,
            payload: &payload,
        };
        encode::encode(&Packet::Publish(publish), PROTOCOL, &mut template)
            .expect("it has a form on the wire");
        let payload_at = template.len() - payload.len();
        Self {
            topic,
            template,
            packet_id_at: has_id.then_some(payload_at - 2),
            number_at: payload_at + 4,
            sent: 0,
            half_answered: 0,
            answered: 0,
            delivered: 0,
            bursts: VecDeque::new(),
        }
    }

    /// Messages on their way.
    fn under_way(&self, plan: &Plan) -> u64 {
        let undelivered = (self.sent * plan.receivers() - self.delivered).div_ceil(plan.receivers().max(1));
        let unanswered = if plan.qos > QoS::AtMostOnce { self.sent - self.answered } else { 0 };
        undelivered.max(unanswered)
    }

    fn publish(&mut self, out: &mut Vec<u8>, count: u64) {
        for _ in 0..count {
            if let Some(at) = self.packet_id_at {
                self.template[at..at + 2].copy_from_slice(&packet_id(self.sent).number().to_be_bytes());
            }
            self.template[self.number_at..self.number_at + 8].copy_from_slice(&self.sent.to_be_bytes());
            out.extend_from_slice(&self.template);
            self.sent += 1;
        }
    }

    /// How long ago the message was sent that was answered last.
    fn time_to_answer(&mut self, now: Instant) -> Option<Duration> {
        while self.bursts.pop_front_if(|(sent, _)| *sent < self.answered).is_some() {}
        self.bursts.front().map(|(_, sent_at)| now - *sent_at)
    }

    /// Takes an answer of the broker.
    fn take(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        plan: &Plan,
        faults: &mut Faults,
        (on_answer, now): (&mut Option<OnAnswer>, Instant),
    ) {
        let mut count = |counter: &mut u64, ack: Ack| {
            // Answers come in the order of what they answer [MQTT-4.6.0-2] [MQTT-4.6.0-3].
            faults.strange += u64::from(ack.packet_id != packet_id(*counter) || *counter == self.sent);
            *counter = (*counter + 1).min(self.sent);
        };
        match (packet, plan.qos) {
            (Packet::Puback(ack), QoS::AtLeastOnce) | (Packet::Pubcomp(ack), QoS::ExactlyOnce) => {
                count(&mut self.answered, ack);
                if let Some(on_answer) = on_answer
                    && let Some(time) = self.time_to_answer(now)
                {
                    on_answer(time);
                }
            }
            (Packet::Pubrec(ack), QoS::ExactlyOnce) => {
                count(&mut self.half_answered, ack);
                encode::pubrel(out, ack.packet_id, ReasonCode::Success);
            }
            _ => faults.strange += 1,
        }
    }
}

#[derive(Default)]
struct Subscriber {
    /// The running number that comes next, of each publisher.
    next: Vec<u64>,
}

impl Subscriber {
    fn take(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        publishers: &mut [Publisher],
        plan: &Plan,
        faults: &mut Faults,
    ) {
        match packet {
            Packet::Publish(publish) => {
                match (publish.qos, publish.packet_id) {
                    (QoS::AtLeastOnce, Some(packet_id)) => {
                        encode::puback(out, packet_id, ReasonCode::Success);
                    }
                    (QoS::ExactlyOnce, Some(packet_id)) => {
                        encode::pubrec(out, packet_id, ReasonCode::Success);
                    }
                    _ => {}
                }
                if !self.check(&publish, publishers, plan, faults) {
                    faults.strange += 1;
                }
            }
            Packet::Pubrel(ack) => encode::pubcomp(out, ack.packet_id, ReasonCode::Success),
            _ => faults.strange += 1,
        }
    }

    /// Whether it is a message of ours.
    fn check(
        &mut self,
        publish: &Publish<'_>,
        publishers: &mut [Publisher],
        plan: &Plan,
        faults: &mut Faults,
    ) -> bool {
        let Some((number, rest)) = publish.payload.split_first_chunk() else { return false };
        let Some((sequence, _)) = rest.split_first_chunk() else { return false };
        let number = u32::from_be_bytes(*number) as usize;
        let sequence = u64::from_be_bytes(*sequence);
        let (Some(publisher), Some(next)) = (publishers.get_mut(number), self.next.get_mut(number)) else {
            return false;
        };
        if publish.topic != publisher.topic || sequence >= publisher.sent {
            return false;
        }
        if sequence < *next {
            faults.repeated += 1;
        } else {
            let gap = sequence - *next;
            faults.lost += gap;
            publisher.delivered += gap + 1;
            *next = sequence + 1;
        }
        publish.qos == plan.qos && publish.payload.len() == plan.payload_bytes && !publish.dup
    }
}

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
    /// To be set before anything is sent.
    pub(crate) on_answer: Option<OnAnswer>,
}

impl Flow {
    /// Connects and subscribes everybody.
    pub(crate) fn start(address: SocketAddr, plan: Plan) -> io::Result<Self> {
        let (publishers, subscribers) = (plan.publishers(), plan.subscribers());
        let poll = Poll::new()?;
        let mut clients = Vec::new();
        for index in 0..publishers + subscribers {
            let filter = index.checked_sub(publishers).map(|subscriber| plan.filter(subscriber));
            let filter = filter.as_ref().map(|filter| (filter.as_str(), plan.qos));
            let client_id = format!("flow-{index}");
            let mut client = if plan.is_stored && filter.is_some() {
                Client::connect_stored(address, &client_id, filter)?.0
            } else {
                Client::connect(address, &client_id, filter)?
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
            subscribers: (0..subscribers).map(|_| Subscriber { next: vec![0; publishers] }).collect(),
            limit: 0,
            touched: Vec::new(),
            delivered: 0,
            faults: Faults::default(),
            on_answer: None,
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
            match self.poll.poll(&mut self.events, Some(SLEEP_MAX)) {
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
        for (index, publisher) in self.publishers.iter_mut().enumerate() {
            let unsent = self.limit.saturating_sub(publisher.sent);
            let room = self.plan.window.saturating_sub(publisher.under_way(&self.plan));
            let count = unsent.min(room);
            if count > 0 && (count >= self.plan.batch || count == unsent) {
                publisher.publish(&mut self.clients[index].out, count);
                if self.on_answer.is_some() {
                    publisher.bursts.push_back((publisher.sent, Instant::now()));
                }
                self.touched.push(index);
            }
        }
    }

    /// Reads from every client that has something.
    fn take(&mut self) -> io::Result<()> {
        let Self {
            events, clients, publishers, subscribers, plan, faults, buffer, touched, on_answer, ..
        } = self;
        let delivered = |publishers: &[Publisher]| -> u64 {
            publishers.iter().map(|publisher| publisher.delivered).sum()
        };
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
                    Some(number) => client.read(buffer, |packet, out| {
                        subscribers[number].take(packet, out, publishers, plan, faults);
                    })?,
                }
            }
            // It has answers to write, or the socket takes more than before.
            touched.push(index);
        }
        self.delivered = delivered(publishers);
        Ok(())
    }
}
