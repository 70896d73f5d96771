//! Clients with a large window that answer in any order, against the core alone: what they answered is done with, and what
//! they did not comes again in its old order.

use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options};
use broker::codec::packet::{Ack, Connect, Packet, QoS};
use broker::codec::{PacketId, ReasonCode, encode};

use crate::fixture::client::{Received, bytes_of, connect311, publish, subscribe_bytes};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, say, turns};

const MESSAGES: usize = 1_000;

/// Which of all messages is answered at this step.
type Order = fn(usize) -> usize;

/// Has no divisor in common with `MESSAGES`: so many places further each time reach all of them.
const STRIDE: usize = 617;

fn kept() -> Connect<'static> {
    Connect { clean_start: false, ..connect311("receiver") }
}

/// What a client heard: messages by identifier and payload, PUBRELs by identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Publish { id: PacketId, qos: QoS, dup: bool, payload: String },
    Pubrel(PacketId),
}

impl Heard {
    fn of(received: &Received) -> Self {
        match received.packet() {
            Packet::Publish(publish) => Self::Publish {
                id: publish.packet_id.expect("it has one"),
                qos: publish.qos,
                dup: publish.dup,
                payload: String::from_utf8_lossy(publish.payload).into_owned(),
            },
            Packet::Pubrel(ack) => Self::Pubrel(ack.packet_id),
            other => panic!("a message was expected: {other:?}"),
        }
    }

    fn id(&self) -> PacketId {
        match self {
            Self::Publish { id, .. } | Self::Pubrel(id) => *id,
        }
    }

    /// The same message, sent again.
    fn again(&self) -> Self {
        let mut again = self.clone();
        if let Self::Publish { dup, .. } = &mut again {
            *dup = true;
        }
        again
    }
}

struct World {
    broker: Broker,
    receiver: ConnectionId,
    publisher: ConnectionId,
    messages: usize,
    connections: u32,
}

impl World {
    fn new() -> Self {
        let options = Options { in_flight_max: u16::MAX, sys_interval: None, seed: 1, ..Options::default() };
        let mut broker = Broker::new(options, NOW);
        let receiver = connected(&mut broker, 1, kept());
        say(&mut broker, receiver, &subscribe_bytes(PROTOCOL, "#", QoS::ExactlyOnce));
        assert_eq!(hear(&mut broker, receiver).len(), 1);
        let publisher = connected(&mut broker, 2, connect311("publisher"));
        Self { broker, receiver, publisher, messages: 0, connections: 2 }
    }

    /// Messages with these qualities, and what its receiver hears.
    fn publish(&mut self, count: usize, qos_of: impl Fn(usize) -> QoS) -> Vec<Heard> {
        for number in self.messages..self.messages + count {
            let (qos, payload) = (qos_of(number), number.to_string());
            say(
                &mut self.broker,
                self.publisher,
                &bytes_of(&publish("t", qos, payload.as_bytes()), PROTOCOL),
            );
            if qos == QoS::ExactlyOnce {
                let pubrel = Packet::Pubrel(Ack::success(PacketId::FIRST));
                say(&mut self.broker, self.publisher, &bytes_of(&pubrel, PROTOCOL));
            }
            hear(&mut self.broker, self.publisher);
        }
        self.messages += count;
        self.hear()
    }

    fn hear(&mut self) -> Vec<Heard> {
        self.hear_packets().iter().map(Heard::of).collect()
    }

    fn hear_packets(&mut self) -> Vec<Received> {
        let hear = || Some(hear(&mut self.broker, self.receiver)).filter(|heard| !heard.is_empty());
        std::iter::from_fn(hear).flatten().collect()
    }

    fn answer(&mut self, encode: fn(&mut Vec<u8>, PacketId, ReasonCode), id: PacketId) {
        let mut bytes = Vec::new();
        encode(&mut bytes, id, ReasonCode::Success);
        say(&mut self.broker, self.receiver, &bytes);
    }

    fn in_flight(&self) -> u64 {
        self.broker.check_invariants();
        self.broker.metrics().in_flight_messages
    }

    /// Its receiver comes by a new connection. What it hears.
    fn come_back(&mut self) -> Vec<Heard> {
        self.connections += 1;
        let (slot, generation) = (self.connections, self.connections);
        self.receiver = ConnectionId { slot, generation };
        self.broker.handle_open(NOW, self.receiver);
        say(&mut self.broker, self.receiver, &bytes_of(&Packet::Connect(kept()), PROTOCOL));
        turns(&mut self.broker);
        let heard = self.hear_packets();
        assert!(heard[0].connack().session_present);
        heard[1..].iter().map(Heard::of).collect()
    }
}

fn at_least_once(_: usize) -> QoS {
    QoS::AtLeastOnce
}

#[test]
fn messages_can_be_acknowledged_in_any_order_and_once() {
    let orders: [(&str, Order); 3] = [
        ("backwards", |number| MESSAGES - 1 - number),
        ("in no order", |number| number * STRIDE % MESSAGES),
        ("from the middle on", |number| (number + MESSAGES / 2) % MESSAGES),
    ];
    let mut world = World::new();
    for (name, order) in orders {
        let heard = world.publish(MESSAGES, at_least_once);
        assert_eq!(heard.len(), MESSAGES, "{name}");
        for number in 0..MESSAGES {
            let id = heard[order(number)].id();
            // What is acknowledged twice, or was never sent, is harmless.
            for id in [id, id, PacketId::new(60_000).expect("it is one")] {
                world.answer(encode::puback, id);
            }
            if number % 50 == 0 {
                assert_eq!(world.in_flight(), (MESSAGES - 1 - number) as u64, "{name}");
            }
        }
        assert_eq!((world.in_flight(), world.hear()), (0, vec![]), "{name}");
    }
}

#[test]
fn what_was_not_acknowledged_comes_again_in_its_old_order() {
    let mut world = World::new();
    let mut open = world.publish(MESSAGES, at_least_once);
    for round in 0..3 {
        for _ in 0..100 {
            let at = (open.len() * 7 / 9 + round) % open.len();
            world.answer(encode::puback, open.remove(at).id());
        }
        let sent = world.publish(200, at_least_once);
        open.extend(sent);
        world.answer(encode::puback, open.remove(1).id());
        // A third of what comes again is acknowledged before the next connection, the last of it first.
        let again: Vec<Heard> = open.iter().map(Heard::again).collect();
        assert_eq!(world.come_back(), again, "round {round}");
        for _ in 0..open.len() / 3 {
            world.answer(encode::puback, open.pop().expect("there are more").id());
        }
        assert_eq!(world.in_flight(), open.len() as u64);
    }
    assert!(open.len() > 100);
    let again: Vec<Heard> = open.iter().map(Heard::again).collect();
    assert_eq!(world.come_back(), again);
}

#[test]
fn both_qualities_of_service_can_be_answered_in_any_order() {
    let mut world = World::new();
    let heard =
        world.publish(
            MESSAGES,
            |number| {
                if number.is_multiple_of(3) { QoS::AtLeastOnce } else { QoS::ExactlyOnce }
            },
        );
    let mut open = heard.clone();
    let mut released = Vec::new();
    for number in 0..MESSAGES / 2 {
        let message = &heard[number * STRIDE % MESSAGES];
        open.retain(|other| other != message);
        match message {
            Heard::Publish { id, qos: QoS::ExactlyOnce, .. } => {
                world.answer(encode::pubrec, *id);
                released.push(Heard::Pubrel(*id));
                // Said twice, it is answered twice.
                world.answer(encode::pubrec, *id);
                assert_eq!(world.hear(), [Heard::Pubrel(*id), Heard::Pubrel(*id)]);
            }
            _ => world.answer(encode::puback, message.id()),
        }
    }
    // The first of them stay: they stand before all others for a while.
    for _ in 0..released.len() / 2 {
        let at = released.len() - 1 - released.len() / 3;
        let id = released.remove(at).id();
        for _ in 0..2 {
            world.answer(encode::pubcomp, id);
        }
    }
    assert_eq!(world.in_flight(), (open.len() + released.len()) as u64);
    // PUBRELs come again in the order of the PUBRECs, and messages in the order in which they were sent.
    let mut again = released.clone();
    again.extend(open.iter().map(Heard::again));
    assert_eq!(world.come_back(), again);
    while let Some(message) = open.pop() {
        match message {
            Heard::Publish { id, qos: QoS::ExactlyOnce, .. } => {
                world.answer(encode::pubrec, id);
                released.push(Heard::Pubrel(id));
            }
            _ => world.answer(encode::puback, message.id()),
        }
    }
    assert_eq!(world.in_flight(), released.len() as u64);
    for number in 0..released.len() {
        world.answer(encode::pubcomp, released[released.len() - 1 - number].id());
    }
    assert_eq!(world.in_flight(), 0);
}

#[test]
fn an_answer_that_does_not_fit_closes_wherever_its_message_stands() {
    for at in [0, 20, 40, 999] {
        for answer in [encode::puback, encode::pubcomp] {
            let mut world = World::new();
            let heard = world.publish(MESSAGES, |_| QoS::ExactlyOnce);
            while world.broker.poll_event().is_some() {}
            world.answer(answer, heard[at].id());
            let closed = std::iter::from_fn(|| world.broker.poll_event())
                .any(|event| matches!(event, Event::Closed { reason: CloseReason::WrongAck, .. }));
            assert!(closed, "the one at {at}");
            assert_eq!(world.in_flight(), MESSAGES as u64);
        }
    }
}

/// Who may have very many messages at QoS 2 under way and releases those amid them makes more work than others, and it is counted, so
/// that a turn has less time for more of them. In the order of sending, or backwards, it does not.
#[test]
fn what_is_released_in_no_order_counts_as_work() {
    const MANY: u16 = 10_000;
    let options = Options { receive_max: u16::MAX, sys_interval: None, seed: 1, ..Options::default() };
    let mut broker = Broker::new(options, NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let work = broker.work();
    for number in 1..=MANY {
        let id = PacketId::new(number).expect("it is not 0");
        let mut packet = publish("t", QoS::ExactlyOnce, b"");
        if let Packet::Publish(publish) = &mut packet {
            publish.packet_id = Some(id);
        }
        say(&mut broker, publisher, &bytes_of(&packet, PROTOCOL));
        assert_eq!((broker.work(), hear(&mut broker, publisher).len()), (work, 1));
    }
    let mut released = |number: u16| {
        let id = PacketId::new(number).expect("it is not 0");
        let pubrel = bytes_of(&Packet::Pubrel(Ack::success(id)), PROTOCOL);
        let before = broker.work();
        say(&mut broker, publisher, &pubrel);
        let heard = hear(&mut broker, publisher);
        assert!(matches!(heard[0].packet(), Packet::Pubcomp(ack) if ack.packet_id == id));
        broker.work() - before
    };
    assert_eq!([1, 2, MANY, MANY - 1].map(&mut released), [0; 4]);
    assert_eq!(released(MANY / 2), u64::from(MANY / 2 - 3) / 128);
    assert_eq!(released(MANY / 4), u64::from(MANY / 4 - 3) / 128);
}
