//! Work that takes several turns, against the core alone: requests of many filters, what ended sessions leave, and many
//! deadlines at once.

use std::io::IoSlice;

use broker::broker::options::Durability;
use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options, StoreState};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Connect, Packet, Protocol, QoS};
use broker::codec::{PacketId, Properties, decode, encode, frame};
use broker::topics::TopicError;

use crate::fixture::client::{Received, bytes_of, connect311, publish};

pub(crate) const NOW: Instant = Instant(1_000);
pub(crate) const PROTOCOL: Protocol = Protocol::Mqtt311;

const STEPS_PER_TURN: usize = 64;

/// More than three turns' worth.
const FILTERS: usize = 200;

/// Filters that take effect in the turn that judges the last of them: the first turn's worth is judged at once.
const TAKEN_FIRST: usize = STEPS_PER_TURN - FILTERS % STEPS_PER_TURN;

fn options() -> Options {
    Options { steps_per_turn: STEPS_PER_TURN, sys_interval: None, seed: 1, ..Options::default() }
}

fn broker() -> Broker {
    Broker::new(options(), NOW)
}

pub(crate) fn say(broker: &mut Broker, id: ConnectionId, bytes: &[u8]) {
    say_as(broker, id, bytes, PROTOCOL);
}

pub(crate) fn say_as(broker: &mut Broker, id: ConnectionId, bytes: &[u8], protocol: Protocol) {
    let split = frame::split(bytes, protocol, u32::MAX).expect("it is a packet");
    let frame::Split::Complete { frame, .. } = split else { panic!("it is whole") };
    broker.handle_packet(NOW, id, decode::decode(frame, protocol).expect("it is well formed"));
}

/// Stores what there is to store.
pub(crate) fn store(broker: &mut Broker) {
    while let Some(batch) = broker.poll_journal() {
        broker.handle_stored(NOW, batch.last());
    }
}

/// Everything that waits for a client.
pub(crate) fn hear(broker: &mut Broker, id: ConnectionId) -> Vec<Received> {
    store(broker);
    let Some(outbox) = broker.outbox(id) else { return Vec::new() };
    let mut slices = [IoSlice::new(&[]); 64];
    let filled = outbox.slices(&mut slices);
    let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
    broker.handle_written(NOW, id, bytes.len(), false);
    Received::all(&bytes, PROTOCOL)
}

pub(crate) fn connected(broker: &mut Broker, number: u32, connect: Connect<'_>) -> ConnectionId {
    let id = ConnectionId { slot: number, generation: number };
    broker.handle_open(NOW, id);
    say(broker, id, &bytes_of(&Packet::Connect(connect), PROTOCOL));
    assert!(matches!(hear(broker, id)[0].packet(), Packet::Connack(_)));
    id
}

/// Turns until nothing is left to be done now.
pub(crate) fn turns(broker: &mut Broker) -> usize {
    let mut turns = 0;
    loop {
        while broker.poll_flush().is_some() {}
        if broker.poll_timeout().is_none_or(|due| due > NOW) {
            return turns;
        }
        broker.handle_timeout(NOW);
        broker.check_invariants();
        turns += 1;
        assert!(turns < 1_000, "it comes to an end");
    }
}

/// Turns in which filters are judged, up to the one that is left time for the first to take effect.
fn begin_to_take_effect(broker: &mut Broker) {
    let subscriptions = broker.status().subscriptions;
    for _ in 1..FILTERS.div_ceil(STEPS_PER_TURN) {
        assert_eq!(broker.status().subscriptions, subscriptions);
        broker.handle_timeout(NOW);
    }
}

fn filters() -> Vec<String> {
    (0..FILTERS).map(|number| format!("f/{number}")).collect()
}

fn subscribe_bytes() -> Vec<u8> {
    subscribe_to(&filters())
}

fn subscribe_to(filters: &[String]) -> Vec<u8> {
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), QoS::AtLeastOnce.into())).collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    bytes
}

fn unsubscribe_bytes() -> Vec<u8> {
    unsubscribe_from(&filters())
}

fn unsubscribe_from(filters: &[String]) -> Vec<u8> {
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &filters);
    bytes
}

#[test]
fn a_request_of_many_filters_is_answered_at_its_end_and_holds_up_nobody_else() {
    let mut broker = broker();
    let many = connected(&mut broker, 1, connect311("many"));
    let other = connected(&mut broker, 2, connect311("other"));
    turns(&mut broker);
    say(&mut broker, many, &subscribe_bytes());
    assert!(!broker.wants_input(many), "what it asks next comes after this");
    assert_eq!(hear(&mut broker, many), []);
    // Retained, so that what has taken effect and what has not both matter.
    let mut kept = publish("f/7", QoS::AtMostOnce, b"kept");
    if let Packet::Publish(publish) = &mut kept {
        publish.retain = true;
    }
    say(&mut broker, other, &bytes_of(&kept, PROTOCOL));
    say(&mut broker, other, &bytes_of(&Packet::Pingreq, PROTOCOL));
    assert_eq!(hear(&mut broker, other)[0].packet(), Packet::Pingresp);
    // The first turn's worth is judged as the packet comes.
    assert_eq!(turns(&mut broker), (2 * FILTERS - STEPS_PER_TURN).div_ceil(STEPS_PER_TURN));
    assert_eq!((broker.poll_resume(), broker.wants_input(many)), (Some(many), true));
    let heard = hear(&mut broker, many);
    let mut subacks = heard.iter().filter_map(|heard| match heard.packet() {
        Packet::Suback(suback) => Some(suback.reasons.to_vec()),
        _ => None,
    });
    assert_eq!((subacks.next(), subacks.next()), (Some(vec![1; FILTERS]), None));
    let retained = heard.iter().filter(|heard| matches!(heard.packet(), Packet::Publish(_))).count();
    assert_eq!((retained, heard.len()), (1, 2));
    say(&mut broker, other, &bytes_of(&publish("f/199", QoS::AtMostOnce, b"live"), PROTOCOL));
    assert_eq!(hear(&mut broker, many).len(), 1);

    say(&mut broker, many, &unsubscribe_bytes());
    begin_to_take_effect(&mut broker);
    assert_eq!(broker.status().subscriptions, FILTERS - TAKEN_FIRST);
    turns(&mut broker);
    assert!(matches!(hear(&mut broker, many)[0].packet(), Packet::Unsuback(_)));
    assert_eq!(broker.status().subscriptions, 0);
}

/// Its sender is closed over the last of them, after some turns, and nothing has changed in its session.
#[test]
fn no_filter_takes_effect_before_all_are_judged() {
    // [MQTT-4.7.1-2] [MQTT-4.8.0-1]
    let mut bad = filters();
    bad.push("f/#/x".to_owned());
    for bytes in [subscribe_to(&bad), unsubscribe_from(&bad)] {
        let mut broker = broker();
        let stored = Connect { clean_start: false, ..connect311("many") };
        let many = connected(&mut broker, 1, stored);
        let before = ["f/0".to_owned(), "g/0".to_owned()];
        say(&mut broker, many, &subscribe_to(&before));
        turns(&mut broker);
        hear(&mut broker, many);
        say(&mut broker, many, &bytes);
        assert_eq!((broker.poll_close(), broker.wants_input(many)), (None, false));
        broker.handle_timeout(NOW);
        assert_eq!((broker.poll_close(), broker.status().subscriptions), (None, before.len()));
        turns(&mut broker);
        assert_eq!((broker.poll_close(), hear(&mut broker, many)), (Some(many), Vec::new()));
        assert_eq!((broker.poll_resume(), broker.status().subscriptions), (None, before.len()));
        let reason = std::iter::from_fn(|| broker.poll_event()).find_map(|event| match event {
            Event::Closed { reason, .. } => Some(reason),
            _ => None,
        });
        assert_eq!(reason, Some(CloseReason::TopicFilter(TopicError::MisplacedWildcard)));
    }
}

/// Sessions that expire at the same instant end a few in each turn, and none before all are found.
#[test]
fn many_deadlines_are_found_and_kept_little_by_little() {
    const CLIENTS: u32 = 200;
    const EXPIRY: Duration = Duration(60_000);
    let mut broker = Broker::new(Options { session_expiry: Some(EXPIRY), ..options() }, NOW);
    for number in 0..CLIENTS {
        let stored = Connect { clean_start: false, ..connect311("") };
        let id = connected(&mut broker, number, Connect { client_id: &format!("c{number}"), ..stored });
        broker.handle_lost(NOW, id, false);
        assert_eq!(broker.poll_close(), Some(id));
        broker.handle_closed(id);
    }
    turns(&mut broker);
    let due = NOW + EXPIRY;
    for sessions in [CLIENTS, CLIENTS, CLIENTS, 0] {
        assert!(broker.poll_timeout().is_some_and(|at| at <= due));
        broker.handle_timeout(due);
        broker.check_invariants();
        assert_eq!(broker.status().sessions, sessions as usize);
    }
    assert_eq!((broker.poll_timeout(), broker.timers_armed()), (None, 0));
}

#[test]
fn a_request_ends_with_its_connection() {
    let mut broker = broker();
    let many = connected(&mut broker, 1, connect311("many"));
    say(&mut broker, many, &subscribe_bytes());
    begin_to_take_effect(&mut broker);
    assert_eq!(broker.status().subscriptions, TAKEN_FIRST);
    broker.handle_lost(NOW, many, false);
    broker.check_invariants();
    turns(&mut broker);
    assert_eq!(broker.poll_close(), Some(many));
    broker.handle_closed(many);
    assert_eq!((broker.status().subscriptions, broker.status().sessions), (0, 0));
}

/// A client of 3.1.1 cannot be told that nothing can be stored: it is closed, and not told that all went well.
#[test]
fn a_request_that_cannot_be_stored_any_more_is_not_answered() {
    let durability = Durability::AfterReply;
    let mut broker = Broker::new(Options { durability, ..options() }, NOW);
    let many = connected(&mut broker, 1, Connect { clean_start: false, ..connect311("many") });
    say(&mut broker, many, &subscribe_bytes());
    turns(&mut broker);
    assert!(matches!(hear(&mut broker, many)[0].packet(), Packet::Suback(_)));
    say(&mut broker, many, &unsubscribe_bytes());
    begin_to_take_effect(&mut broker);
    broker.handle_store_state(NOW, StoreState::Failing);
    turns(&mut broker);
    assert_eq!((broker.poll_close(), hear(&mut broker, many)), (Some(many), Vec::new()));
    assert_eq!(broker.status().subscriptions, FILTERS - TAKEN_FIRST);
}

/// Receivers of one message are flushed in slices, but not one that is freed at the end of the turn.
#[test]
fn who_is_closed_is_flushed_before_the_others() {
    let mut broker = broker();
    let filters = [("f/7", QoS::AtMostOnce.into())];
    let mut one = Vec::new();
    encode::subscribe(&mut one, PROTOCOL, PacketId::FIRST, Properties::NONE, &filters);
    let clients: Vec<ConnectionId> = (1..=20)
        .map(|number| {
            let id = connected(&mut broker, number, connect311(&format!("c{number}")));
            say(&mut broker, id, &one);
            hear(&mut broker, id);
            id
        })
        .collect();
    turns(&mut broker);
    say(&mut broker, clients[0], &bytes_of(&publish("f/7", QoS::AtMostOnce, b"to all"), PROTOCOL));
    assert_eq!((broker.dirty_len(), broker.dirty_soon_len()), (20, 0));
    say(&mut broker, clients[3], &bytes_of(&Packet::Pingreq, PROTOCOL));
    say(&mut broker, clients[12], &bytes_of(&Packet::Connect(connect311("again")), PROTOCOL));
    assert_eq!(broker.poll_close(), Some(clients[12]));
    assert_eq!((broker.poll_flush(), broker.poll_flush()), (Some(clients[3]), Some(clients[12])));
    assert_eq!(hear(&mut broker, clients[12]).len(), 1);
    let others = std::iter::from_fn(|| broker.poll_flush()).count();
    assert_eq!(others, 18);
}

#[test]
fn an_ended_session_is_gone_at_once_and_its_messages_and_subscriptions_little_by_little() {
    let mut broker = broker();
    let stored = Connect { clean_start: false, ..connect311("many") };
    let many = connected(&mut broker, 1, stored);
    say(&mut broker, many, &subscribe_bytes());
    turns(&mut broker);
    broker.handle_lost(NOW, many, false);
    let other = connected(&mut broker, 2, connect311("other"));
    for number in 0..FILTERS {
        let publish = publish("f/7", QoS::AtLeastOnce, b"waits");
        say(&mut broker, other, &bytes_of(&publish, PROTOCOL));
        assert_eq!(broker.metrics().queued_messages, number as u64 + 1);
    }
    turns(&mut broker);
    let held = broker.status().message_bytes;
    let again = connected(&mut broker, 3, connect311("many"));
    assert_eq!((broker.status().sessions, broker.metrics().queued_messages), (2, 0));
    assert_eq!(broker.status().subscriptions, FILTERS);
    // Nobody hears this.
    say(&mut broker, other, &bytes_of(&publish("f/7", QoS::AtMostOnce, b"late"), PROTOCOL));
    broker.handle_timeout(NOW);
    assert!(broker.status().message_bytes < held && broker.status().message_bytes > 0);
    turns(&mut broker);
    assert_eq!((broker.status().message_bytes, broker.status().subscriptions), (0, 0));
    assert_eq!(hear(&mut broker, again), []);
    say(&mut broker, again, &subscribe_bytes());
    turns(&mut broker);
    assert_eq!(broker.status().subscriptions, FILTERS);
}
