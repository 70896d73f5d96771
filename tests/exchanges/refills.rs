//! What waits for clients is sent a turn's worth at a time, and each of those for whom something waits has its share.

use broker::broker::{Broker, ConnectionId, Options};
use broker::codec::packet::{Connect, Packet, Protocol, Publish, QoS};
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Properties, Property, ReasonCode, encode};
use broker::metrics::DropReason;

use crate::fixture::client::{Received, bytes_of, connect5, connect311, publish, subscribe_bytes};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, hear_as, say, turns};

/// What a CONNECT counts for by itself.
const CONNECT_STEPS: usize = 8;

const STEPS_PER_TURN: usize = 64;

/// More than three turns' worth.
const MESSAGES: usize = 200;

fn options() -> Options {
    Options { steps_per_turn: STEPS_PER_TURN, in_flight_max: 1_000, sys_interval: None, ..Options::default() }
}

/// Its session is there when it comes back.
fn kept(client_id: &str) -> Connect<'_> {
    Connect { clean_start: false, ..connect311(client_id) }
}

fn payloads(heard: &[Received]) -> Vec<usize> {
    let payloads = heard.iter().filter_map(|heard| match heard.packet() {
        Packet::Publish(publish) => Some(String::from_utf8_lossy(publish.payload).into_owned()),
        _ => None,
    });
    payloads.map(|payload| payload.trim().parse().expect("a number")).collect()
}

/// Clients that want what comes to one topic.
fn subscribers(broker: &mut Broker, clients: u32) -> Vec<ConnectionId> {
    (1..=clients)
        .map(|number| {
            let id = connected(broker, number, connect311(&format!("c{number}")));
            say(broker, id, &subscribe_bytes(PROTOCOL, "a", QoS::AtLeastOnce));
            hear(broker, id);
            id
        })
        .collect()
}

/// Sets a retained message on a topic of its own.
fn retain_number(broker: &mut Broker, id: ConnectionId, number: usize) {
    let (topic, payload) = (format!("a/{number}"), number.to_string());
    let mut kept = publish(&topic, QoS::AtMostOnce, payload.as_bytes());
    if let Packet::Publish(publish) = &mut kept {
        publish.retain = true;
    }
    say(broker, id, &bytes_of(&kept, PROTOCOL));
}

/// Numbered messages, filled up to so many bytes.
fn publish_numbers(broker: &mut Broker, id: ConnectionId, topic: &str, qos: QoS, size: usize) {
    for number in 0..MESSAGES {
        let payload = format!("{number:size$}");
        say(broker, id, &bytes_of(&publish(topic, qos, payload.as_bytes()), PROTOCOL));
        if qos == QoS::ExactlyOnce {
            let mut pubrel = Vec::new();
            encode::pubrel(&mut pubrel, PacketId::FIRST, ReasonCode::Success);
            say(broker, id, &pubrel);
        }
        hear(broker, id);
    }
}

fn acknowledge(broker: &mut Broker, id: ConnectionId, heard: &[Received]) {
    for heard in heard {
        if let Packet::Publish(Publish { packet_id: Some(packet_id), .. }) = heard.packet() {
            let mut bytes = Vec::new();
            encode::puback(&mut bytes, packet_id, ReasonCode::Success);
            say(broker, id, &bytes);
        }
    }
}

fn lose(broker: &mut Broker, id: ConnectionId) {
    broker.handle_lost(NOW, id, true);
    assert_eq!(broker.poll_close(), Some(id));
    broker.handle_closed(id);
}

/// The next turn, and how many messages it has sent.
fn turn(broker: &mut Broker) -> usize {
    let sent = broker.metrics().publish_sent;
    broker.handle_timeout(NOW);
    broker.check_invariants();
    (broker.metrics().publish_sent - sent) as usize
}

#[test]
fn outboxes_that_drain_at_once_are_filled_a_turn_s_worth_at_a_time_and_in_turn() {
    const CLIENTS: u32 = 5;
    let mut broker = Broker::new(Options { outbox_bytes_max: 20_000, ..options() }, NOW);
    let publisher = connected(&mut broker, 0, connect311("publisher"));
    let ids = subscribers(&mut broker, CLIENTS);
    say(&mut broker, publisher, &bytes_of(&publish("a", QoS::AtMostOnce, &[b'0'; 20_000]), PROTOCOL));
    publish_numbers(&mut broker, publisher, "a", QoS::AtLeastOnce, 3);
    turns(&mut broker);
    let total = CLIENTS as usize * MESSAGES;
    assert_eq!(broker.metrics().queued_messages, total as u64);

    ids.iter().for_each(|id| assert_eq!(hear(&mut broker, *id).len(), 1));
    let mut heard: Vec<Vec<usize>> = vec![Vec::new(); ids.len()];
    for turn_number in 0..total.div_ceil(STEPS_PER_TURN) {
        let sent = turn(&mut broker);
        assert_eq!(sent, STEPS_PER_TURN.min(total - turn_number * STEPS_PER_TURN));
        for (id, heard) in ids.iter().zip(&mut heard) {
            heard.extend(payloads(&hear(&mut broker, *id)));
        }
        // Each has its turn before anybody has another one.
        let counts = || heard.iter().map(Vec::len);
        assert!(counts().max() <= counts().min().map(|least| least + STEPS_PER_TURN), "{heard:?}");
    }
    assert!(heard.into_iter().all(|heard| heard.into_iter().eq(0..MESSAGES)));
    assert_eq!(turns(&mut broker), 0);
}

/// What waits in its own queue, or in that of its group; and what it was sent before and did not acknowledge.
#[test]
fn a_client_that_comes_back_gets_a_turn_s_worth_at_once_and_the_rest_in_order() {
    for (filter, is_sent_before) in [("a", false), ("$share/g/a", false), ("a", true)] {
        let mut broker = Broker::new(options(), NOW);
        let publisher = connected(&mut broker, 0, connect311("publisher"));
        let before = connected(&mut broker, 1, kept("c"));
        say(&mut broker, before, &subscribe_bytes(PROTOCOL, filter, QoS::AtLeastOnce));
        hear(&mut broker, before);
        if !is_sent_before {
            lose(&mut broker, before);
        }
        publish_numbers(&mut broker, publisher, "a", QoS::AtLeastOnce, 3);
        if is_sent_before {
            lose(&mut broker, before);
        }
        turns(&mut broker);

        let (sent, work) = (broker.metrics().publish_sent, broker.work());
        let id = ConnectionId { slot: 2, generation: 2 };
        broker.handle_open(NOW, id);
        say(&mut broker, id, &bytes_of(&Packet::Connect(kept("c")), PROTOCOL));
        assert_eq!((broker.metrics().publish_sent - sent) as usize, STEPS_PER_TURN);
        assert_eq!((broker.work() - work) as usize, CONNECT_STEPS + STEPS_PER_TURN, "others wait for that");
        let first = hear(&mut broker, id);
        assert_eq!(first.len(), 1 + STEPS_PER_TURN);
        let mut numbers = payloads(&first);
        // What comes now is behind all that.
        let late = MESSAGES.to_string();
        say(&mut broker, publisher, &bytes_of(&publish("a", QoS::AtLeastOnce, late.as_bytes()), PROTOCOL));
        // An acknowledgement makes room for one more, although there is room for many.
        let work = broker.work();
        acknowledge(&mut broker, id, &first[..10]);
        assert_eq!(broker.work() - work, 9, "that as well");
        let more = payloads(&hear(&mut broker, id));
        assert_eq!(more.len(), 9, "of ten packets the first was CONNACK: {filter}");
        numbers.extend(more);
        while numbers.len() <= MESSAGES {
            assert_eq!(turn(&mut broker), STEPS_PER_TURN.min(1 + MESSAGES - numbers.len()));
            numbers.extend(payloads(&hear(&mut broker, id)));
        }
        assert!(numbers.into_iter().eq(0..=MESSAGES), "{filter}");
        turns(&mut broker);
        broker.check_invariants();
    }
}

/// They are repeated at once, but many who come back with as many as that are not read in one turn.
#[test]
fn pubrels_that_are_repeated_are_work_of_the_turn() {
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 0, connect311("publisher"));
    let before = connected(&mut broker, 1, kept("c"));
    say(&mut broker, before, &subscribe_bytes(PROTOCOL, "a", QoS::ExactlyOnce));
    publish_numbers(&mut broker, publisher, "a", QoS::ExactlyOnce, 3);
    for heard in hear(&mut broker, before) {
        if let Packet::Publish(Publish { packet_id: Some(packet_id), .. }) = heard.packet() {
            let mut bytes = Vec::new();
            encode::pubrec(&mut bytes, packet_id, ReasonCode::Success);
            say(&mut broker, before, &bytes);
        }
    }
    lose(&mut broker, before);
    let work = broker.work();
    let id = ConnectionId { slot: 2, generation: 2 };
    broker.handle_open(NOW, id);
    say(&mut broker, id, &bytes_of(&Packet::Connect(kept("c")), PROTOCOL));
    let heard = hear(&mut broker, id);
    assert_eq!(heard.iter().filter(|heard| matches!(heard.packet(), Packet::Pubrel(_))).count(), MESSAGES);
    assert_eq!((broker.work() - work) as usize, CONNECT_STEPS + MESSAGES.div_ceil(16));
}

/// A client that has come back with a smaller limit: what has become too large for it is done with a turn's worth at a time, and
/// what is not keeps its place behind that.
#[test]
fn what_has_become_too_large_is_passed_a_turn_s_worth_at_a_time() {
    const SIZE: usize = 100;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut broker = Broker::new(options(), NOW);
        let publisher = connected(&mut broker, 0, connect311("publisher"));
        let come = |broker: &mut Broker, slot: u32, packet_size_max: u32| {
            let id = ConnectionId { slot, generation: slot };
            broker.handle_open(NOW, id);
            let limits = [Property::SessionExpirySecs(60), Property::MaximumPacketSize(packet_size_max)];
            let properties = PropertyList::from_iter(limits);
            let connect =
                Connect { clean_start: false, properties: properties.as_properties(), ..connect5("c") };
            say(broker, id, &bytes_of(&Packet::Connect(connect), Protocol::Mqtt5));
            id
        };
        let before = come(&mut broker, 1, 1_000);
        say(&mut broker, before, &subscribe_bytes(Protocol::Mqtt5, "a", qos));
        publish_numbers(&mut broker, publisher, "a", qos, SIZE);
        say(&mut broker, publisher, &bytes_of(&publish("a", qos, b"200"), PROTOCOL));
        assert_eq!(broker.metrics().in_flight_messages as usize, MESSAGES + 1);
        lose(&mut broker, before);
        turns(&mut broker);

        let dropped = |broker: &Broker| broker.metrics().dropped[DropReason::TooLargeForClient as usize];
        let id = come(&mut broker, 2, SIZE as u32);
        broker.check_invariants();
        let mut passed = STEPS_PER_TURN;
        assert_eq!(dropped(&broker) as usize, passed);
        let mut heard = hear_as(&mut broker, id, Protocol::Mqtt5);
        while passed < MESSAGES {
            assert!(payloads(&heard).is_empty(), "those before it are still to be passed");
            turn(&mut broker);
            passed = MESSAGES.min(passed + STEPS_PER_TURN);
            assert_eq!(dropped(&broker) as usize, passed);
            heard.extend(hear_as(&mut broker, id, Protocol::Mqtt5));
        }
        assert_eq!(payloads(&heard), [MESSAGES]);
        let told = heard.iter().filter(|heard| matches!(heard.packet(), Packet::Pubrel(_))).count();
        assert_eq!(told, if qos == QoS::ExactlyOnce { MESSAGES } else { 0 });
        assert_eq!(turns(&mut broker), 0);
    }
}

#[test]
fn retained_messages_are_sent_to_all_a_turn_s_worth_at_a_time() {
    const CLIENTS: u32 = 4;
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 0, connect311("publisher"));
    (0..MESSAGES).for_each(|number| retain_number(&mut broker, publisher, number));
    let mut heard: Vec<(ConnectionId, Vec<usize>)> = Vec::new();
    for number in 1..=CLIENTS {
        let id = connected(&mut broker, number, connect311(&format!("c{number}")));
        let sent = broker.metrics().publish_sent;
        say(&mut broker, id, &subscribe_bytes(PROTOCOL, "a/#", QoS::AtMostOnce));
        assert!((broker.metrics().publish_sent - sent) as usize <= STEPS_PER_TURN);
        heard.push((id, payloads(&hear(&mut broker, id))));
    }
    let mut turns_taken = 0;
    while heard.iter().any(|(_, heard)| heard.len() < MESSAGES) {
        assert!(turn(&mut broker) <= STEPS_PER_TURN);
        turns_taken += 1;
        assert!(turns_taken < 100, "all of them come");
        for (id, heard) in &mut heard {
            heard.extend(payloads(&hear(&mut broker, *id)));
        }
    }
    for (_, mut heard) in heard {
        heard.sort_unstable();
        assert!(heard.into_iter().eq(0..MESSAGES));
    }
}

/// A filter without wildcards is one look-up, and takes no more of a turn than that.
#[test]
fn retained_messages_for_many_filters_take_as_many_turns_as_they_take_time() {
    const CLIENTS: u32 = 4;
    const TOPICS: usize = 100;
    // A stream and its message take nine steps.
    const STEPS: usize = 90;
    let mut broker = Broker::new(Options { steps_per_turn: STEPS, ..options() }, NOW);
    let publisher = connected(&mut broker, 0, connect311("publisher"));
    let topics: Vec<String> = (0..TOPICS).map(|number| format!("a/{number}")).collect();
    (0..TOPICS).for_each(|number| retain_number(&mut broker, publisher, number));
    let requests: Vec<_> = topics.iter().map(|topic| (topic.as_str(), QoS::AtMostOnce.into())).collect();
    let mut subscribe = Vec::new();
    encode::subscribe(&mut subscribe, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    let clients: Vec<ConnectionId> = (1..=CLIENTS)
        .map(|number| connected(&mut broker, number, connect311(&format!("c{number}"))))
        .collect();
    clients.iter().for_each(|id| say(&mut broker, *id, &subscribe));
    let turns_taken = turns(&mut broker);
    let sent: usize = clients.iter().map(|id| hear(&mut broker, *id).len()).sum();
    assert_eq!(sent, CLIENTS as usize * (TOPICS + 1));
    let least = CLIENTS as usize * TOPICS * 9 / STEPS;
    assert!((least / 2..least + 12).contains(&turns_taken), "{turns_taken}");
}

/// Sessions that have nothing to send when it is their turn take their time as well.
#[test]
fn outboxes_that_drain_for_nothing_are_looked_at_a_turn_s_worth_at_a_time() {
    const CLIENTS: u32 = 3 * STEPS_PER_TURN as u32;
    let mut broker = Broker::new(Options { outbox_bytes_max: 2_000, in_flight_max: 1, ..options() }, NOW);
    let publisher = connected(&mut broker, 0, connect311("publisher"));
    let ids = subscribers(&mut broker, CLIENTS);
    // The window is full, and so is the outbox when another one comes.
    for payload in [&b"1"[..], &[b'2'; 2_000], b"3"] {
        let qos = if payload.len() > 1 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        say(&mut broker, publisher, &bytes_of(&publish("a", qos, payload), PROTOCOL));
        turns(&mut broker);
        hear(&mut broker, publisher);
    }
    ids.iter().for_each(|id| assert_eq!(hear(&mut broker, *id).len(), 2));
    assert_eq!(turns(&mut broker), CLIENTS as usize / STEPS_PER_TURN);
    let sent = broker.metrics().publish_sent;
    assert_eq!(sent, 2 * u64::from(CLIENTS), "nobody has room for the third");
}
