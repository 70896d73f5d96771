//! Work that takes several turns, against the core alone: requests of many filters, what ended sessions leave, and many
//! deadlines at once.

use std::collections::BTreeMap;
use std::ops::Range;

use broker::broker::options::{Durability, Redirect};
use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options, Restored, StoreState};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{
    Ack, Connect, Packet, Protocol, Publish, QoS, RetainHandling, SubscriptionOptions,
};
use broker::codec::property::PropertyList;
use broker::codec::{DecodeError, PacketId, Properties, Property, ReasonCode, encode};
use broker::journal::Lsn;
use broker::metrics::DropReason;
use broker::topics::TopicError;

use crate::fixture::client::{Received, bytes_of, connect311, publish};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, hear_as, say, say_bad, say_in, turns};

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
    subscribe_to_at(filters, QoS::AtLeastOnce)
}

fn subscribe_to_at(filters: &[String], qos: QoS) -> Vec<u8> {
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), qos.into())).collect();
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

/// One that did not come in one read, and is large, is not looked at in one turn.
fn broker_that_decodes_later() -> Broker {
    Broker::new(Options { long_packet_bytes_min: 64, ..options() }, NOW)
}

#[test]
fn a_large_request_is_decoded_a_turn_s_worth_at_a_time() {
    let mut broker = broker_that_decodes_later();
    let many = connected(&mut broker, 1, connect311("many"));
    turns(&mut broker);
    let received = broker.metrics().packets_received;
    say_in(&mut broker, many, &subscribe_bytes(), 100);
    assert_eq!((broker.wants_input(many), broker.metrics().packets_received), (false, received + 1));
    // None of it is judged as the packet comes.
    assert_eq!(turns(&mut broker), (2 * FILTERS).div_ceil(STEPS_PER_TURN));
    assert_eq!((broker.poll_resume(), broker.wants_input(many)), (Some(many), true));
    let heard = hear(&mut broker, many);
    let Packet::Suback(suback) = heard[0].packet() else { panic!("it is answered") };
    assert_eq!((suback.reasons, suback.packet_id), (&[1; FILTERS][..], PacketId::FIRST));
    assert_eq!(broker.status().subscriptions, FILTERS);

    say_in(&mut broker, many, &unsubscribe_bytes(), 100);
    assert_eq!(turns(&mut broker), (2 * FILTERS).div_ceil(STEPS_PER_TURN));
    assert!(matches!(hear(&mut broker, many)[0].packet(), Packet::Unsuback(_)));
    assert_eq!(broker.status().subscriptions, 0);

    // A small one is, however it comes, and so is one of many filters that came in one read.
    say_in(&mut broker, many, &subscribe_to(&["f/7".to_owned()]), 3);
    assert!(matches!(hear(&mut broker, many)[0].packet(), Packet::Suback(_)));
    say(&mut broker, many, &subscribe_bytes());
    assert_eq!(turns(&mut broker), (2 * FILTERS - STEPS_PER_TURN).div_ceil(STEPS_PER_TURN));
}

/// The subscription identifier stands before the filters, and is for all of them.
#[test]
fn what_a_large_request_says_before_its_filters_is_for_all_of_them() {
    let mut broker = broker_that_decodes_later();
    let id = ConnectionId { slot: 1, generation: 1 };
    broker.handle_open(NOW, id);
    let connect = Connect { protocol: Protocol::Mqtt5, ..connect311("many") };
    say(&mut broker, id, &bytes_of(&Packet::Connect(connect), Protocol::Mqtt5));
    hear_as(&mut broker, id, Protocol::Mqtt5);
    let number = PropertyList::from_iter([Property::SubscriptionId(7)]);
    let filters = filters();
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), QoS::AtMostOnce.into())).collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, Protocol::Mqtt5, PacketId::FIRST, number.as_properties(), &requests);
    say_in(&mut broker, id, &bytes, 100);
    turns(&mut broker);
    hear_as(&mut broker, id, Protocol::Mqtt5);
    say(&mut broker, id, &bytes_of(&publish("f/199", QoS::AtMostOnce, b"x"), Protocol::Mqtt5));
    let heard = hear_as(&mut broker, id, Protocol::Mqtt5);
    let Packet::Publish(publish) = heard[0].packet() else { panic!("it is delivered") };
    assert!(publish.properties.iter().eq([Property::SubscriptionId(7)]));
}

/// What is wrong with a large request is the same as with a small one, whatever comes first in it, and nothing of it takes
/// effect.
#[test]
fn a_large_request_is_malformed_wherever_that_is_found() {
    // [MQTT-3.8.3-1] [MQTT-3.8.3-4] [MQTT-3.8.3-3] [MQTT-3.10.3-2] [MQTT-2.3.1-1]
    let filters = filters();
    let with = |mut bytes: Vec<u8>, change: fn(&mut Vec<u8>)| {
        change(&mut bytes);
        bytes
    };
    let bad_filter_first = |make: fn(&[String]) -> Vec<u8>| {
        let mut filters = filters.clone();
        filters[1] = "f/#/x".to_owned();
        make(&filters)
    };
    let set_last: fn(&mut Vec<u8>) = |bytes| *bytes.last_mut().expect("it is long") = 0xFF;
    let no_packet_id: fn(&mut Vec<u8>) = |bytes| bytes[3..5].fill(0);
    let misplaced = CloseReason::TopicFilter(TopicError::MisplacedWildcard);
    let cases = [
        (with(subscribe_bytes(), set_last), CloseReason::Malformed(DecodeError::SubscriptionOptions)),
        (with(unsubscribe_bytes(), set_last), CloseReason::Malformed(DecodeError::InvalidUtf8)),
        (with(subscribe_bytes(), no_packet_id), CloseReason::Malformed(DecodeError::PacketIdZero)),
        (with(unsubscribe_bytes(), no_packet_id), CloseReason::Malformed(DecodeError::PacketIdZero)),
        (bad_filter_first(subscribe_to), misplaced),
        (bad_filter_first(unsubscribe_from), misplaced),
        (
            with(bad_filter_first(subscribe_to), set_last),
            CloseReason::Malformed(DecodeError::SubscriptionOptions),
        ),
        (
            with(bad_filter_first(unsubscribe_from), set_last),
            CloseReason::Malformed(DecodeError::InvalidUtf8),
        ),
    ];
    for (bytes, expected) in cases {
        for read in [bytes.len(), 100] {
            let mut broker = broker_that_decodes_later();
            let stored = Connect { clean_start: false, ..connect311("many") };
            let many = connected(&mut broker, 1, stored);
            say(&mut broker, many, &subscribe_to(&["f/0".to_owned(), "g/0".to_owned()]));
            turns(&mut broker);
            hear(&mut broker, many);
            say_bad(&mut broker, many, &bytes, read);
            turns(&mut broker);
            assert_eq!((broker.poll_close(), hear(&mut broker, many)), (Some(many), Vec::new()));
            assert_eq!((broker.poll_resume(), broker.status().subscriptions), (None, 2));
            let reason = std::iter::from_fn(|| broker.poll_event()).find_map(|event| match event {
                Event::Closed { reason, .. } => Some(reason),
                _ => None,
            });
            assert_eq!(reason, Some(expected), "in reads of {read}");
        }
    }
}

/// Before its CONNECT nobody has anything done in several turns.
#[test]
fn a_large_request_of_a_stranger_is_refused_at_once() {
    let mut broker = broker_that_decodes_later();
    let id = ConnectionId { slot: 1, generation: 1 };
    broker.handle_open(NOW, id);
    say_in(&mut broker, id, &subscribe_bytes(), 100);
    assert_eq!((broker.poll_close(), broker.wants_input(id)), (Some(id), false));
    broker.handle_closed(id);
    assert_eq!(turns(&mut broker), 0);
}

/// Another connection of the same client comes when some of it is judged, and when some of it has taken effect.
#[test]
fn a_large_request_is_cut_short_by_a_take_over() {
    for (turns_before, expected) in [(2, 0), (4, 4 * STEPS_PER_TURN - FILTERS)] {
        let mut broker = broker_that_decodes_later();
        let stored = Connect { clean_start: false, ..connect311("many") };
        let many = connected(&mut broker, 1, stored);
        turns(&mut broker);
        say_in(&mut broker, many, &subscribe_bytes(), 100);
        (0..turns_before).for_each(|_| broker.handle_timeout(NOW));
        assert_eq!(broker.status().subscriptions, expected);
        let again = connected(&mut broker, 2, stored);
        assert_eq!((broker.poll_close(), hear(&mut broker, many)), (Some(many), Vec::new()));
        broker.check_invariants();
        broker.handle_closed(many);
        turns(&mut broker);
        assert_eq!((broker.status().subscriptions, hear(&mut broker, again)), (expected, Vec::new()));
    }
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

/// Turns before the one that finds the last of `CLIENTS`, and how many end in a turn.
const FINDING_TURNS: usize = 3;
const ENDS_PER_TURN: usize = STEPS_PER_TURN / 16;

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
    let mut left = CLIENTS as usize;
    for turn in 0.. {
        assert!(broker.poll_timeout().is_some_and(|at| at <= due));
        broker.handle_timeout(due);
        broker.check_invariants();
        // Each turn finds 64 of them, and the last of those that do goes on with what is left of its time.
        left -= if turn < FINDING_TURNS { 0 } else { ENDS_PER_TURN };
        assert_eq!(broker.status().sessions, left);
        if left == 0 {
            break;
        }
    }
    // That nothing is left is seen by who looks for more.
    broker.handle_timeout(due);
    assert_eq!((broker.poll_timeout(), broker.timers_armed()), (None, 0));
}

/// Clients that have fallen silent are closed a few in each turn, and those that have not cost less.
#[test]
fn many_clients_fall_silent_at_once() {
    const CLIENTS: u32 = 64;
    const LOOKS_PER_TURN: usize = STEPS_PER_TURN / 4;
    let mut broker = broker();
    let clients: Vec<ConnectionId> = (0..CLIENTS)
        .map(|number| {
            let connect = Connect { keep_alive_secs: 10, ..connect311("") };
            connected(&mut broker, number, Connect { client_id: &format!("c{number}"), ..connect })
        })
        .collect();
    turns(&mut broker);
    let (awake, silent) = clients.split_at(clients.len() / 2);
    for id in awake {
        broker.handle_packet(NOW + Duration(1_000), *id, Packet::Pingreq);
        while broker.poll_flush().is_some() {}
    }
    let due = NOW + Duration(15_500); // One and a half times so long, and half a second.
    let (mut closed, mut turns) = (Vec::new(), 0);
    while broker.poll_timeout().is_some_and(|at| at <= due) {
        broker.handle_timeout(due);
        broker.check_invariants();
        let before = closed.len();
        while let Some(id) = broker.poll_close() {
            broker.handle_closed(id);
            closed.push(id);
        }
        assert!(closed.len() - before <= ENDS_PER_TURN);
        turns += 1;
    }
    assert_eq!(closed, silent);
    // One more sees that nothing is left.
    assert_eq!(turns, awake.len() / LOOKS_PER_TURN + silent.len() / ENDS_PER_TURN + 1);
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
    let soon = std::iter::from_fn(|| broker.poll_flush_soon()).collect::<Vec<_>>();
    assert_eq!(soon, [clients[3], clients[12]], "the others have a share of the turn of their own");
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

/// A client that stays a member of many groups when it is away.
fn member() -> Connect<'static> {
    Connect { clean_start: false, ..connect311("many") }
}

fn shared_filters() -> Vec<String> {
    filters().iter().map(|filter| format!("$share/g/{filter}")).collect()
}

fn payloads(heard: &[Received]) -> Vec<String> {
    let payload = |heard: &Received| match heard.packet() {
        Packet::Publish(publish) => Some(String::from_utf8_lossy(publish.payload).into_owned()),
        _ => None,
    };
    heard.iter().filter_map(payload).collect()
}

fn publish_from(broker: &mut Broker, id: ConnectionId, topic: &str, qos: QoS, payload: &str) {
    say(broker, id, &bytes_of(&publish(topic, qos, payload.as_bytes()), PROTOCOL));
    broker.check_invariants();
}

#[test]
fn a_member_of_many_groups_has_come_or_gone_at_once() {
    // [MQTT5-4.8.2-5] [B-072]
    let mut broker = broker();
    let many = connected(&mut broker, 1, member());
    say(&mut broker, many, &subscribe_to(&shared_filters()));
    turns(&mut broker);
    hear(&mut broker, many);
    let other = connected(&mut broker, 2, connect311("other"));
    for (topic, payload) in [("f/8", "1"), ("f/7", "2"), ("f/8", "3"), ("f/9", "4"), ("f/8", "5")] {
        publish_from(&mut broker, other, topic, QoS::AtLeastOnce, payload);
    }
    assert_eq!(payloads(&hear(&mut broker, many)), ["1", "2", "3", "4", "5"]);
    say(&mut broker, other, &subscribe_to(&["$share/g/f/7".to_owned(), "$share/g/f/8".to_owned()]));
    hear(&mut broker, other);

    // What it left goes to others at once, and so does what comes next.
    broker.handle_lost(NOW, many, false);
    publish_from(&mut broker, other, "f/7", QoS::AtLeastOnce, "6");
    assert_eq!(payloads(&hear(&mut broker, other)), ["1", "2", "3", "5", "6"]);
    let absent = |broker: &Broker| broker.metrics().dropped[DropReason::AbsentAtQoS0 as usize];
    publish_from(&mut broker, other, "f/9", QoS::AtMostOnce, "nobody");
    assert_eq!((absent(&broker), broker.metrics().queued_messages), (1, 0));
    let moving = FILTERS.div_ceil(STEPS_PER_TURN);
    assert_eq!(turns(&mut broker), moving);

    // It is there before its memberships have been moved, and gone again in the midst of that.
    let many = ConnectionId { slot: 3, generation: 3 };
    broker.handle_open(NOW, many);
    say(&mut broker, many, &bytes_of(&Packet::Connect(member()), PROTOCOL));
    publish_from(&mut broker, other, "f/9", QoS::AtMostOnce, "somebody");
    assert_eq!(payloads(&hear(&mut broker, many)), ["4", "somebody"]);
    broker.handle_timeout(NOW);
    publish_from(&mut broker, other, "f/0", QoS::AtLeastOnce, "7");
    publish_from(&mut broker, other, "f/199", QoS::AtLeastOnce, "8");
    assert_eq!(payloads(&hear(&mut broker, many)), ["7", "8"]);
    broker.handle_lost(NOW, many, false);
    publish_from(&mut broker, other, "f/199", QoS::AtMostOnce, "nobody");
    publish_from(&mut broker, other, "f/9", QoS::AtMostOnce, "nobody");
    assert_eq!((absent(&broker), turns(&mut broker)), (3, moving));

    // All of them have come back in the end.
    let many = connected(&mut broker, 4, member());
    turns(&mut broker);
    hear(&mut broker, many);
    for number in 0..FILTERS {
        publish_from(&mut broker, other, &format!("f/{number}"), QoS::AtMostOnce, "all");
    }
    assert_eq!(absent(&broker), 3);
}

#[test]
fn memberships_may_come_and_go_while_others_are_moved() {
    let mut broker = broker();
    let many = connected(&mut broker, 1, member());
    say(&mut broker, many, &subscribe_to(&shared_filters()));
    turns(&mut broker);
    broker.handle_lost(NOW, many, false);
    turns(&mut broker);
    let many = connected(&mut broker, 2, member());
    let mut other = connected(&mut broker, 3, connect311("other"));
    // The last one takes the place of the first, and is moved from there.
    say(&mut broker, many, &unsubscribe_from(&["$share/g/f/0".to_owned()]));
    broker.check_invariants();
    broker.handle_timeout(NOW);
    for filter in ["$share/g/f/1", "$share/g/f/198", "$share/g/f/2"] {
        say(&mut broker, many, &unsubscribe_from(&[filter.to_owned()]));
        broker.check_invariants();
        say(&mut broker, many, &subscribe_to(&["$share/g/f/0".to_owned()]));
        broker.check_invariants();
    }
    turns(&mut broker);
    hear(&mut broker, many);
    for number in 0..FILTERS {
        publish_from(&mut broker, other, &format!("f/{number}"), QoS::AtMostOnce, &number.to_string());
    }
    let heard = payloads(&hear(&mut broker, many));
    let left = (0..FILTERS).filter(|number| ![1, 2, 198].contains(number));
    assert_eq!(heard, left.map(|number| number.to_string()).collect::<Vec<_>>());
    // Its session ends in the midst of it.
    broker.handle_lost(NOW, many, false);
    other = connected(&mut broker, 4, connect311("many"));
    assert_eq!(broker.status().sessions, 2);
    turns(&mut broker);
    assert_eq!((broker.status().subscriptions, hear(&mut broker, other)), (0, Vec::new()));
}

#[test]
fn who_has_ended_is_no_member_any_more() {
    let mut broker = broker();
    let many = connected(&mut broker, 1, member());
    say(&mut broker, many, &subscribe_to(&shared_filters()));
    turns(&mut broker);
    let stored = |client_id| Connect { client_id, ..member() };
    let other = connected(&mut broker, 2, stored("other"));
    say(&mut broker, other, &subscribe_to(&["$share/g/f/8".to_owned()]));
    hear(&mut broker, other);
    let publisher = connected(&mut broker, 3, connect311("publisher"));
    publish_from(&mut broker, publisher, "f/6", QoS::AtLeastOnce, "sent");
    broker.handle_lost(NOW, other, false);
    publish_from(&mut broker, publisher, "f/8", QoS::AtLeastOnce, "1");
    broker.handle_lost(NOW, many, false);
    turns(&mut broker);
    publish_from(&mut broker, publisher, "f/7", QoS::AtLeastOnce, "old");
    publish_from(&mut broker, publisher, "f/8", QoS::AtLeastOnce, "2");
    assert_eq!(broker.metrics().queued_messages, 2);

    let again = connected(&mut broker, 4, connect311("many"));
    broker.check_invariants();
    let ended = broker.metrics().dropped[DropReason::SessionEnded as usize];
    assert_eq!((broker.status().sessions, ended), (3, 1), "what was sent to it has no group to go to");
    // What comes to its groups now comes to nobody.
    publish_from(&mut broker, publisher, "f/9", QoS::AtLeastOnce, "nobody");
    broker.handle_timeout(NOW);
    publish_from(&mut broker, publisher, "f/7", QoS::AtLeastOnce, "nobody");
    // Where another one is a member it goes on, with what was given back first.
    assert_eq!(broker.metrics().queued_messages, 3);
    // The same text makes another group.
    say(&mut broker, again, &subscribe_to(&["$share/g/f/7".to_owned()]));
    broker.check_invariants();
    assert_eq!(broker.metrics().queued_messages, 2);
    publish_from(&mut broker, publisher, "f/7", QoS::AtLeastOnce, "new");
    assert_eq!(payloads(&hear(&mut broker, again)), ["new"]);
    assert!(turns(&mut broker) > 1);
    assert_eq!(broker.status().subscriptions, 2);
    let other = ConnectionId { slot: 5, generation: 5 };
    broker.handle_open(NOW, other);
    say(&mut broker, other, &bytes_of(&Packet::Connect(stored("other")), PROTOCOL));
    assert_eq!(payloads(&hear(&mut broker, other)), ["1", "2"]);
    assert_eq!(broker.metrics().queued_messages, 0);
}

/// The process ends while the memberships of an ended session are being removed.
#[test]
fn memberships_that_are_left_belong_to_nobody() {
    let options = Options { durability: Durability::BeforeReply, ..options() };
    let mut records = BTreeMap::new();
    let mut last = Lsn::NONE;
    let mut store_in = |broker: &mut Broker, records: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
        while let Some(batch) = broker.poll_journal(NOW) {
            batch.apply(records);
            last = batch.last();
            broker.handle_stored(NOW, last);
        }
        last
    };
    let mut broker = Broker::new(options.clone(), NOW);
    let many = ConnectionId { slot: 1, generation: 1 };
    broker.handle_open(NOW, many);
    say(&mut broker, many, &bytes_of(&Packet::Connect(member()), PROTOCOL));
    say(&mut broker, many, &subscribe_to(&shared_filters()));
    turns(&mut broker);
    store_in(&mut broker, &mut records);
    assert_eq!(records.len(), 1 + FILTERS);
    broker.handle_lost(NOW, many, false);
    let again = ConnectionId { slot: 2, generation: 2 };
    broker.handle_open(NOW, again);
    say(&mut broker, again, &bytes_of(&Packet::Connect(connect311("publisher")), PROTOCOL));
    publish_from(&mut broker, again, "f/7", QoS::AtLeastOnce, "waits");
    store_in(&mut broker, &mut records);
    assert_eq!(records.len(), 1 + FILTERS + 2);
    let again = ConnectionId { slot: 3, generation: 3 };
    broker.handle_open(NOW, again);
    say(&mut broker, again, &bytes_of(&Packet::Connect(connect311("many")), PROTOCOL));
    broker.handle_timeout(NOW);
    let last = store_in(&mut broker, &mut records);
    assert!(records.len() > 3 && records.len() < FILTERS, "{}", records.len());
    assert_eq!(records.keys().cloned().collect::<Vec<_>>(), broker.keys_to_be_stored());

    let mut broker = Broker::new(options, NOW);
    let mut restore = broker.restore(last);
    records.iter().for_each(|(key, value)| restore.record(key, value).expect("the store makes sense"));
    let restored = restore.finish().expect("the store makes sense");
    // Of the message's two records one is of a delivery.
    let orphans = records.len() as u64 - 1;
    assert_eq!((restored.sessions, restored.subscriptions, restored.orphans), (0, 0, orphans));
    turns(&mut broker);
    store_in(&mut broker, &mut records);
    assert_eq!((records.len(), broker.keys_to_be_stored().len()), (0, 0));
}

/// One filter twice in a SUBSCRIBE, the second time for what is retained as well: after a restart it is as it was named
/// last, whatever was noted of the stream in between.
#[test]
fn a_filter_is_stored_as_it_was_named_last() {
    let options = Options { durability: Durability::BeforeReply, in_flight_max: 1, ..options() };
    let mut broker = Broker::new(options.clone(), NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    // More than the client may have under way, so that it is still waited for when the process ends; and so many that records
    // seem to last, and are written as they are made.
    for number in 0..50 {
        let topic = format!("f/{number}");
        let mut kept = publish(&topic, QoS::AtLeastOnce, b"kept");
        if let Packet::Publish(publish) = &mut kept {
            publish.retain = true;
        }
        say(&mut broker, publisher, &bytes_of(&kept, PROTOCOL));
    }
    let mut records = BTreeMap::new();
    let mut store_all = |broker: &mut Broker| {
        let mut last = None;
        while let Some(batch) = broker.poll_journal(NOW) {
            batch.apply(&mut records);
            broker.handle_stored(NOW, batch.last());
            last = Some(batch.last());
        }
        (last.expect("there was something"), records.clone())
    };
    store_all(&mut broker);
    let id = ConnectionId { slot: 2, generation: 2 };
    broker.handle_open(NOW, id);
    let expiry = PropertyList::from_iter([Property::SessionExpirySecs(1_000)]);
    let stored =
        Connect { protocol: Protocol::Mqtt5, properties: expiry.as_properties(), ..connect311("reader") };
    say(&mut broker, id, &bytes_of(&Packet::Connect(stored), Protocol::Mqtt5));
    store_all(&mut broker);
    let asked = |qos: QoS, retain_handling| SubscriptionOptions { retain_handling, ..qos.into() };
    let requests = [
        ("f/+", asked(QoS::ExactlyOnce, RetainHandling::SendIfNew)),
        ("f/+", asked(QoS::AtMostOnce, RetainHandling::DoNotSend)),
        ("f/+", asked(QoS::AtLeastOnce, RetainHandling::Send)),
    ];
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, Protocol::Mqtt5, PacketId::FIRST, Properties::NONE, &requests);
    say(&mut broker, id, &bytes);
    let (last, records) = store_all(&mut broker);

    let mut broker = Broker::new(options, NOW);
    let mut restore = broker.restore(last);
    records.iter().for_each(|(key, value)| restore.record(key, value).expect("the store makes sense"));
    restore.finish().expect("the store makes sense");
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    say(&mut broker, publisher, &bytes_of(&publish("f/new", QoS::AtLeastOnce, b"waits"), PROTOCOL));
    assert_eq!(broker.metrics().queued_messages, 1);
}

/// Retained messages for many filters wait for a client that does not answer: what overtakes them comes behind the older
/// value of its topic, and each comes once.
#[test]
fn retained_messages_of_many_filters_are_overtaken_by_none() {
    let mut broker = broker();
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    for number in 0..FILTERS {
        let topic = format!("f/{number}");
        let mut kept = publish(&topic, QoS::AtLeastOnce, b"kept");
        if let Packet::Publish(publish) = &mut kept {
            publish.retain = true;
        }
        say(&mut broker, publisher, &bytes_of(&kept, PROTOCOL));
    }
    let client = connected(&mut broker, 2, connect311("client"));
    say(&mut broker, client, &subscribe_bytes());
    turns(&mut broker);
    let window = usize::from(broker.options().in_flight_max);
    let mut heard = hear(&mut broker, client);
    assert_eq!(payloads(&heard).len(), window);
    // It wants the first of those that wait no more, and another one anew.
    let gone = format!("f/{window}");
    say(&mut broker, client, &unsubscribe_from(std::slice::from_ref(&gone)));
    say(&mut broker, client, &subscribe_to(&["f/150".to_owned()]));
    publish_from(&mut broker, publisher, &gone, QoS::AtLeastOnce, "nobody");
    publish_from(&mut broker, publisher, "f/199", QoS::AtLeastOnce, "live");
    publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, "live");
    let mut all: Vec<(String, String)> = Vec::new();
    while !heard.is_empty() {
        let mut answers = Vec::new();
        for heard in &heard {
            if let Packet::Publish(publish) = heard.packet() {
                let payload = String::from_utf8_lossy(publish.payload).into_owned();
                all.push((publish.topic.to_owned(), payload));
                answers.push(Packet::Puback(Ack::success(publish.packet_id.expect("of QoS 1"))));
            }
        }
        answers.iter().for_each(|answer| say(&mut broker, client, &bytes_of(answer, PROTOCOL)));
        turns(&mut broker);
        heard = hear(&mut broker, client);
    }
    let of = |topic: &str| -> Vec<&str> {
        all.iter().filter(|(other, _)| other == topic).map(|(_, payload)| payload.as_str()).collect()
    };
    assert_eq!((of(&gone).len(), all.len()), (0, FILTERS + 1));
    assert_eq!(
        (of("f/199"), of("f/0"), of("f/150")),
        (vec!["kept", "live"], vec!["kept", "live"], vec!["kept"])
    );
    assert!(all[window..].starts_with(&[("f/199".to_owned(), "kept".to_owned())]));
    assert_eq!(all.last().map(|(topic, _)| topic.as_str()), Some("f/150"));

    // They go with its session.
    say(&mut broker, client, &subscribe_bytes());
    broker.handle_timeout(NOW);
    broker.handle_lost(NOW, client, false);
    assert!(turns(&mut broker) > 1);
    assert_eq!(broker.status().subscriptions, 0);
}

/// What was stored up to some number, and the processes that stored it.
#[derive(Default)]
struct Disk {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    last: Lsn,
}

impl Disk {
    fn store(&mut self, broker: &mut Broker) {
        while let Some(batch) = broker.poll_journal(NOW) {
            batch.apply(&mut self.records);
            self.last = batch.last();
            broker.handle_stored(NOW, self.last);
        }
        assert_eq!(self.records.keys().cloned().collect::<Vec<_>>(), broker.keys_to_be_stored());
    }

    fn restart(&self) -> (Broker, Restored) {
        let mut broker = Broker::new(stored_options(), NOW);
        let mut restore = broker.restore(self.last);
        self.records
            .iter()
            .for_each(|(key, value)| restore.record(key, value).expect("the store makes sense"));
        let restored = restore.finish().expect("the store makes sense");
        broker.check_invariants();
        (broker, restored)
    }
}

/// Many messages may be under way.
fn stored_options() -> Options {
    Options { durability: Durability::BeforeReply, in_flight_max: FILTERS as u16, ..options() }
}

fn open(broker: &mut Broker, disk: &mut Disk, number: u32, connect: Connect<'static>) -> ConnectionId {
    let id = ConnectionId { slot: number, generation: number };
    broker.handle_open(NOW, id);
    say(broker, id, &bytes_of(&Packet::Connect(connect), PROTOCOL));
    disk.store(broker);
    id
}

/// Everything that waits for a client when all is stored.
fn hear_stored(broker: &mut Broker, disk: &mut Disk, id: ConnectionId) -> Vec<Received> {
    disk.store(broker);
    hear(broker, id)
}

fn heard_payloads(broker: &mut Broker, disk: &mut Disk, id: ConnectionId) -> Vec<String> {
    let heard = hear_stored(broker, disk, id);
    heard.iter().for_each(|heard| {
        if let Packet::Publish(Publish { packet_id: Some(packet_id), .. }) = heard.packet() {
            let mut bytes = Vec::new();
            encode::puback(&mut bytes, packet_id, ReasonCode::Success);
            say(broker, id, &bytes);
        }
    });
    payloads(&heard)
}

/// What is heard now and in the next turns, until one brings nothing.
fn in_turns<T>(broker: &mut Broker, mut hear: impl FnMut(&mut Broker) -> Vec<T>) -> Vec<T> {
    let mut heard = hear(broker);
    loop {
        broker.handle_timeout(NOW);
        broker.check_invariants();
        let more = hear(broker);
        if more.is_empty() {
            return heard;
        }
        heard.extend(more);
    }
}

fn ids() -> impl Iterator<Item = PacketId> {
    (1..=FILTERS as u16).filter_map(PacketId::new)
}

/// The records of identifiers go little by little; if the process ends meanwhile, those that are left belong to nobody.
#[test]
fn the_identifiers_of_an_ended_session_are_forgotten_little_by_little() {
    let (mut broker, mut disk) = (Broker::new(stored_options(), NOW), Disk::default());
    let many = open(&mut broker, &mut disk, 1, member());
    say(&mut broker, many, &subscribe_to_at(&["f/0".to_owned()], QoS::ExactlyOnce));
    for id in ids() {
        let mut publish = publish("f/0", QoS::ExactlyOnce, b"x");
        if let Packet::Publish(publish) = &mut publish {
            publish.packet_id = Some(id);
        }
        say(&mut broker, many, &bytes_of(&publish, PROTOCOL));
        let mut bytes = Vec::new();
        encode::pubrec(&mut bytes, id, ReasonCode::Success);
        disk.store(&mut broker);
        say(&mut broker, many, &bytes);
        hear_stored(&mut broker, &mut disk, many);
    }
    broker.handle_lost(NOW, many, false);
    disk.store(&mut broker);
    assert_eq!(disk.records.len(), 2 + 2 * FILTERS, "a session, a subscription, and identifiers");
    let (mut broker, restored) = disk.restart();
    assert_eq!((restored.sessions, restored.orphans, broker.metrics().in_flight_messages), (1, 0, 200));

    open(&mut broker, &mut disk, 2, connect311("many"));
    assert_eq!(broker.metrics().in_flight_messages, 0);
    assert_eq!(disk.records.len(), 1 + 2 * FILTERS, "the session itself is gone at once");
    for gone in 1..4 {
        broker.handle_timeout(NOW);
        disk.store(&mut broker);
        assert_eq!(disk.records.len(), 1 + 2 * FILTERS - gone * STEPS_PER_TURN);
    }
    let orphans = disk.records.len() as u64;
    let (mut broker_again, restored) = disk.restart();
    assert_eq!((restored.sessions, restored.orphans), (0, orphans));
    let mut disk_again = Disk { records: disk.records.clone(), last: disk.last };
    disk_again.store(&mut broker_again);
    assert_eq!(disk_again.records.len(), 0);
    turns(&mut broker);
    disk.store(&mut broker);
    assert_eq!(disk.records.len(), 0);
}

/// A member and another one of a group; the former has not acknowledged any of many messages.
fn group_with_unacknowledged(first: Connect<'static>) -> (Broker, Disk, [ConnectionId; 3]) {
    let (mut broker, mut disk) = (Broker::new(stored_options(), NOW), Disk::default());
    let shared = subscribe_to(&["$share/g/f/0".to_owned()]);
    let member = open(&mut broker, &mut disk, 1, first);
    say(&mut broker, member, &shared);
    let publisher = open(&mut broker, &mut disk, 2, connect311("publisher"));
    for number in 0..FILTERS {
        publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, &number.to_string());
    }
    disk.store(&mut broker);
    assert_eq!(payloads(&hear_stored(&mut broker, &mut disk, member)), numbers(0..FILTERS));
    let other = open(&mut broker, &mut disk, 3, Connect { client_id: "other", ..self::member() });
    say(&mut broker, other, &shared);
    hear_stored(&mut broker, &mut disk, other);
    (broker, disk, [member, publisher, other])
}

fn numbers(range: Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn what_an_ended_member_did_not_acknowledge_goes_to_others_little_by_little_and_in_order() {
    let (mut broker, mut disk, [member, publisher, other]) = group_with_unacknowledged(connect311("many"));
    broker.handle_lost(NOW, member, false);
    disk.store(&mut broker);
    assert_eq!((heard_payloads(&mut broker, &mut disk, other).len(), broker.status().sessions), (0, 2));
    // What comes meanwhile may come before what is older, as if it had come before that was given back.
    publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, "new");
    let mut heard = heard_payloads(&mut broker, &mut disk, other);
    assert_eq!(heard, ["new"]);
    while broker.poll_timeout().is_some_and(|due| due <= NOW) {
        broker.handle_timeout(NOW);
        broker.check_invariants();
        while broker.poll_flush().is_some() {}
        let more = heard_payloads(&mut broker, &mut disk, other);
        assert!(more.len() <= STEPS_PER_TURN, "{}", more.len());
        heard.extend(more);
    }
    assert_eq!(heard[1..], numbers(0..FILTERS));
    assert_eq!((broker.metrics().queued_messages, broker.metrics().in_flight_messages), (0, 0));
    assert_eq!(broker.metrics().dropped[DropReason::SessionEnded as usize], 0);
}

/// Those of whoever ended first come first.
#[test]
fn what_several_ended_members_did_not_acknowledge_goes_to_others_in_the_order_of_their_ends() {
    let (mut broker, mut disk) = (Broker::new(stored_options(), NOW), Disk::default());
    let shared = subscribe_to(&["$share/g/f/0".to_owned()]);
    let publisher = open(&mut broker, &mut disk, 1, connect311("publisher"));
    let mut member = |broker: &mut Broker, number, client_id| {
        let member = open(broker, &mut disk, number, connect311(client_id));
        say(broker, member, &shared);
        member
    };
    let mut members = Vec::new();
    for (place, client_id) in ["first", "second", "third"].into_iter().enumerate() {
        members.push(member(&mut broker, 2 + place as u32, client_id));
        for number in 0..FILTERS {
            let number = (place * FILTERS + number).to_string();
            publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, &number);
        }
    }
    let other = member(&mut broker, 5, "other");
    hear_stored(&mut broker, &mut disk, other);
    members.iter().for_each(|member| broker.handle_lost(NOW, *member, false));
    let mut heard = Vec::new();
    while broker.poll_timeout().is_some_and(|due| due <= NOW) {
        broker.handle_timeout(NOW);
        broker.check_invariants();
        while broker.poll_flush().is_some() {}
        heard.extend(heard_payloads(&mut broker, &mut disk, other));
    }
    assert_eq!(heard, numbers(0..members.len() * FILTERS));
}

/// Of a session that is stored: its record goes before its messages have gone back.
#[test]
fn what_an_ended_member_did_not_acknowledge_is_safe_while_it_goes_back() {
    let (mut broker, mut disk, [many, _, other]) = group_with_unacknowledged(member());
    // Nobody is there who could get it, so that it stays with its session first.
    broker.handle_lost(NOW, other, false);
    broker.handle_lost(NOW, many, false);
    turns(&mut broker);
    open(&mut broker, &mut disk, 4, connect311("many"));
    for turns_before in 0..4 {
        let (mut restarted, restored) = disk.restart();
        assert_eq!((restored.sessions, restored.deliveries), (1, FILTERS as u64), "after {turns_before}");
        let mut disk_again = Disk { records: disk.records.clone(), last: disk.last };
        let other = Connect { client_id: "other", ..member() };
        let other = open(&mut restarted, &mut disk_again, 5, other);
        let mut heard =
            in_turns(&mut restarted, |restarted| heard_payloads(restarted, &mut disk_again, other));
        turns(&mut restarted);
        assert_eq!(heard.len(), FILTERS);
        heard.sort_by_key(|number| number.parse::<usize>().ok());
        assert_eq!(heard, numbers(0..FILTERS));
        disk_again.store(&mut restarted);
        assert_eq!(disk_again.records.len(), 2, "a session and its membership");
        broker.handle_timeout(NOW);
        broker.check_invariants();
        disk.store(&mut broker);
    }
    assert_eq!(broker.metrics().queued_messages, 4 * (STEPS_PER_TURN / 4) as u64);
}

/// Beside what it had of its own subscriptions, in the order in which both were sent.
#[test]
fn a_member_that_comes_back_finds_what_it_kept_in_its_old_order() {
    let (mut broker, mut disk) = (Broker::new(stored_options(), NOW), Disk::default());
    let shared = ["$share/g/f/0".to_owned()];
    let many = open(&mut broker, &mut disk, 1, member());
    say(&mut broker, many, &subscribe_to(&[&shared[..], &["f/1".to_owned()]].concat()));
    let publisher = open(&mut broker, &mut disk, 2, connect311("publisher"));
    for number in 0..FILTERS {
        let topic = if number % 3 == 0 { "f/0" } else { "f/1" };
        publish_from(&mut broker, publisher, topic, QoS::AtLeastOnce, &number.to_string());
    }
    assert_eq!(payloads(&hear_stored(&mut broker, &mut disk, many)), numbers(0..FILTERS));
    let other = open(&mut broker, &mut disk, 3, Connect { client_id: "other", ..member() });
    say(&mut broker, other, &subscribe_to(&shared));
    for turns_before in 0..3 {
        let many = ConnectionId { slot: 1 + 3 * turns_before, generation: 1 + 3 * turns_before };
        broker.handle_lost(NOW, many, false);
        (0..turns_before).for_each(|_| broker.handle_timeout(NOW));
        broker.check_invariants();
        let given = payloads(&hear_stored(&mut broker, &mut disk, other));
        assert!(!given.is_empty());
        let again = open(&mut broker, &mut disk, 4 + 3 * turns_before, member());
        let kept = payloads(&in_turns(&mut broker, |broker| hear_stored(broker, &mut disk, again)));
        assert!(kept.is_sorted_by_key(|number| number.parse::<usize>().ok()), "{kept:?}");
        assert!(kept.len() > 2 * FILTERS / 3 && given.iter().all(|number| !kept.contains(number)));
    }
}

#[test]
fn a_member_that_comes_back_keeps_what_was_not_given_to_others_yet() {
    let (mut broker, mut disk, [many, _, other]) = group_with_unacknowledged(member());
    broker.handle_lost(NOW, many, false);
    broker.check_invariants();
    let mut given = heard_payloads(&mut broker, &mut disk, other);
    broker.handle_timeout(NOW);
    given.extend(heard_payloads(&mut broker, &mut disk, other));
    broker.check_invariants();
    assert!(given.len() > 1 && given.len() < STEPS_PER_TURN, "{}", given.len());
    assert_eq!(given, numbers(0..given.len()));
    let again = open(&mut broker, &mut disk, 4, member());
    let kept = payloads(&in_turns(&mut broker, |broker| hear_stored(broker, &mut disk, again)));
    assert_eq!(kept, numbers(given.len()..FILTERS), "in their old order");
    turns(&mut broker);
    assert_eq!(heard_payloads(&mut broker, &mut disk, other), Vec::<String>::new());
    // Its session ends in the midst of it.
    broker.handle_lost(NOW, again, false);
    let once_more = open(&mut broker, &mut disk, 5, connect311("many"));
    turns(&mut broker);
    given.extend(heard_payloads(&mut broker, &mut disk, other));
    assert_eq!(given, numbers(0..FILTERS));
    assert_eq!(payloads(&hear_stored(&mut broker, &mut disk, once_more)), Vec::<String>::new());
}

/// A group whose first stored member has joined is recorded little by little, the oldest message first, and what comes at
/// once. Then the last one leaves, and comes back before all of it is forgotten.
#[test]
fn what_waits_in_a_group_begins_to_be_stored_little_by_little() {
    let (mut broker, mut disk) = (Broker::new(stored_options(), NOW), Disk::default());
    let shared = ["$share/g/f/0".to_owned()];
    let busy = open(&mut broker, &mut disk, 1, connect311("busy"));
    say(&mut broker, busy, &subscribe_to(&shared));
    let publisher = open(&mut broker, &mut disk, 2, connect311("publisher"));
    for number in 0..2 * FILTERS {
        publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, &number.to_string());
    }
    assert_eq!(broker.metrics().queued_messages, FILTERS as u64);
    disk.store(&mut broker);
    assert_eq!(disk.records.len(), 0);
    let stored = open(&mut broker, &mut disk, 3, member());
    // It has no room either.
    say(&mut broker, stored, &subscribe_to(&["f/1".to_owned()]));
    for number in 0..FILTERS {
        publish_from(&mut broker, publisher, "f/1", QoS::AtLeastOnce, &number.to_string());
    }
    disk.store(&mut broker);
    let before = disk.records.len();
    say(&mut broker, stored, &subscribe_to(&shared));
    broker.check_invariants();
    publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, "late");
    disk.store(&mut broker);
    assert_eq!(disk.records.len(), before + 1 + 2, "the subscription, and what came since");
    broker.handle_timeout(NOW);
    broker.check_invariants();
    disk.store(&mut broker);
    let recorded = (disk.records.len() - before - 3) / 2;
    assert!(recorded > 0 && recorded < FILTERS / 2, "{recorded}");
    // The process may end here.
    let (mut restarted, _) = disk.restart();
    assert_eq!(restarted.metrics().queued_messages, recorded as u64 + 1);
    let mut disk_again = Disk { records: disk.records.clone(), last: disk.last };
    let reader = open(&mut restarted, &mut disk_again, 4, connect311("reader"));
    say(&mut restarted, reader, &subscribe_to(&shared));
    // In the order of recording: what came meanwhile was promised to its publisher, and did not wait for what came before.
    let mut expected = numbers(FILTERS..FILTERS + recorded);
    expected.insert(0, "late".to_owned());
    assert_eq!(heard_payloads(&mut restarted, &mut disk_again, reader), expected);

    // Some are taken out meanwhile; they keep their records until they are acknowledged.
    for id in ids().take(10) {
        let mut bytes = Vec::new();
        encode::puback(&mut bytes, id, ReasonCode::Success);
        say(&mut broker, busy, &bytes);
    }
    broker.check_invariants();
    turns(&mut broker);
    disk.store(&mut broker);
    assert_eq!(broker.metrics().queued_messages, FILTERS as u64 - 10 + 1);
    assert_eq!(disk.records.len(), before + 1 + 2 * (FILTERS + 1));

    say(&mut broker, stored, &unsubscribe_from(&shared));
    broker.handle_timeout(NOW);
    broker.check_invariants();
    disk.store(&mut broker);
    let left = disk.records.len() - before;
    assert!(left > FILTERS && left < 2 * FILTERS, "{left}");
    let (_, restored) = disk.restart();
    assert_eq!(restored.orphans as usize, left / 2, "nobody has them after a crash");
    // It comes back in the midst of it, and a message is taken out before it has been looked at.
    say(&mut broker, stored, &subscribe_to(&shared));
    let reader = open(&mut broker, &mut disk, 5, connect311("reader"));
    say(&mut broker, reader, &subscribe_to(&shared));
    broker.check_invariants();
    let heard = in_turns(&mut broker, |broker| hear_stored(broker, &mut disk, reader));
    assert_eq!(heard.len(), 2 + FILTERS - 10 + 1);
    turns(&mut broker);
    disk.store(&mut broker);
    assert_eq!(broker.metrics().queued_messages, 0);
}

/// Whose sessions have ended, and all who were members with them, does not count, nor does it have to be removed before others
/// make a group of the same text.
#[test]
fn a_group_of_many_who_have_ended_is_none() {
    let mut broker = broker();
    let clients: Vec<String> = (0..8).map(|number| format!("many{number}")).collect();
    for (number, client_id) in (1..).zip(&clients) {
        let many = connected(&mut broker, number, Connect { client_id, ..member() });
        say(&mut broker, many, &subscribe_to(&shared_filters()));
        turns(&mut broker);
        broker.handle_lost(NOW, many, false);
        turns(&mut broker);
    }
    let publisher = connected(&mut broker, 20, connect311("publisher"));
    publish_from(&mut broker, publisher, "f/7", QoS::AtLeastOnce, "old");
    publish_from(&mut broker, publisher, "f/8", QoS::AtLeastOnce, "kept");
    for (number, client_id) in (21..).zip(&clients[..7]) {
        connected(&mut broker, number, Connect { client_id, ..connect311("") });
        broker.check_invariants();
    }
    assert_eq!(broker.metrics().queued_messages, 2, "one is left");
    let last = ConnectionId { slot: 30, generation: 30 };
    broker.handle_open(NOW, last);
    let connect = Connect { client_id: "many7", ..member() };
    say(&mut broker, last, &bytes_of(&Packet::Connect(connect), PROTOCOL));
    // It looks at some of its groups in each turn.
    (0..4).for_each(|_| broker.handle_timeout(NOW));
    publish_from(&mut broker, publisher, "f/9", QoS::AtMostOnce, "here");
    assert_eq!(payloads(&hear(&mut broker, last)), ["old", "kept", "here"]);
    broker.handle_lost(NOW, last, false);
    publish_from(&mut broker, publisher, "f/9", QoS::AtMostOnce, "nobody");
    publish_from(&mut broker, publisher, "f/10", QoS::AtLeastOnce, "dropped");
    let newcomer = connected(&mut broker, 31, connect311("many7"));
    let filters = [9, 10, 11].map(|number| format!("$share/g/f/{number}"));
    say(&mut broker, newcomer, &subscribe_to(&filters));
    broker.check_invariants();
    assert!(payloads(&hear(&mut broker, newcomer)).is_empty());
    publish_from(&mut broker, publisher, "f/10", QoS::AtLeastOnce, "new");
    broker.handle_timeout(NOW);
    publish_from(&mut broker, publisher, "f/9", QoS::AtLeastOnce, "new as well");
    assert_eq!(payloads(&hear(&mut broker, newcomer)), ["new", "new as well"]);
    assert!(turns(&mut broker) > 8);
    assert_eq!(broker.status().subscriptions, 3);
    publish_from(&mut broker, publisher, "f/10", QoS::AtMostOnce, "newest");
    assert_eq!(payloads(&hear(&mut broker, newcomer)), ["newest"]);
}

/// None of their memberships is moved meanwhile.
#[test]
fn a_group_finds_who_is_there_among_many_who_come_and_go() {
    const CLIENTS: u32 = 20;
    const GROUPS: usize = 8;
    let mut broker = broker();
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let names: Vec<String> = (0..CLIENTS).map(|number| format!("many{number}")).collect();
    let heard_by = |broker: &mut Broker, present: &[Option<ConnectionId>]| -> usize {
        for filter in &filters()[..GROUPS] {
            publish_from(broker, publisher, filter, QoS::AtMostOnce, "x");
        }
        present.iter().flatten().map(|id| payloads(&hear(broker, *id)).len()).sum()
    };
    let mut present = vec![None; names.len()];
    for (name, present) in (0..).zip(&mut present) {
        // Every other one is a member of groups of its own, beside some of the others' or none.
        let own = (0..GROUPS).map(|number| format!("$share/g/own/{name}/{number}"));
        let of_all = shared_filters().into_iter().take(if name % 4 == 3 { 0 } else { GROUPS });
        let client_id = &names[name];
        let id = connected(&mut broker, 10 + name as u32, Connect { client_id, ..member() });
        say(&mut broker, id, &subscribe_to(&of_all.chain(own).collect::<Vec<_>>()));
        turns(&mut broker);
        hear(&mut broker, id);
        *present = Some(id);
    }
    let mut number = 100;
    for round in 0..3 {
        // In the order of their places, against it, and mixed.
        let order = |step: usize| match round {
            0 => step,
            1 => names.len() - 1 - step,
            _ => step * 7 % names.len(),
        };
        for step in 0..names.len() {
            let gone = present[order(step)].take().expect("it is there");
            broker.handle_lost(NOW, gone, false);
            let is_attended = (0..names.len()).any(|name| name % 4 != 3 && present[name].is_some());
            let expected = if is_attended { GROUPS } else { 0 };
            assert_eq!(heard_by(&mut broker, &present), expected, "round {round}, {step} gone");
        }
        for step in 0..names.len() {
            number += 1;
            let name = order(step);
            let connect = Connect { client_id: &names[name], ..member() };
            present[name] = Some(connected(&mut broker, number, connect));
            let is_attended = (0..names.len()).any(|name| name % 4 != 3 && present[name].is_some());
            let expected = if is_attended { GROUPS } else { 0 };
            assert_eq!(heard_by(&mut broker, &present), expected, "round {round}, {step} back");
        }
    }
    turns(&mut broker);
    assert_eq!(heard_by(&mut broker, &present), GROUPS);
}

/// Something waits in a group of others meanwhile, which is nothing to it.
#[test]
fn a_member_of_many_groups_that_has_room_asks_each_of_them_once() {
    let mut broker = Broker::new(Options { in_flight_max: 1, ..options() }, NOW);
    let idle = connected(&mut broker, 1, member());
    let busy = connected(&mut broker, 2, connect311("busy"));
    say(&mut broker, busy, &subscribe_to(&["$share/g/a".to_owned(), "$share/g/f/7".to_owned()]));
    let publisher = connected(&mut broker, 3, connect311("publisher"));
    for topic in ["a", "a", "f/7"] {
        publish_from(&mut broker, publisher, topic, QoS::AtLeastOnce, topic);
    }
    say(&mut broker, idle, &subscribe_to(&shared_filters()));
    let in_turns = turns(&mut broker);
    assert!(in_turns < 20, "{in_turns}");
    assert_eq!(payloads(&hear(&mut broker, idle)), ["f/7"]);
    // The next reason to ask is that it has room again: each once more, 64 of them at once and as many in each turn.
    let mut bytes = Vec::new();
    encode::puback(&mut bytes, PacketId::FIRST, ReasonCode::Success);
    say(&mut broker, idle, &bytes);
    assert_eq!(turns(&mut broker), FILTERS / 64);
    assert_eq!(broker.metrics().queued_messages, 1);
}

/// A client that comes and goes faster than its memberships are moved does not keep what waits in a group from being stored.
#[test]
fn each_kind_of_work_for_groups_has_its_share() {
    let options = Options { in_flight_max: 1, ..stored_options() };
    let (mut broker, mut disk) = (Broker::new(options, NOW), Disk::default());
    let mut restless = open(&mut broker, &mut disk, 1, member());
    say(&mut broker, restless, &subscribe_to(&shared_filters()));
    turns(&mut broker);
    let shared = ["$share/g/a".to_owned()];
    let busy = open(&mut broker, &mut disk, 2, connect311("busy"));
    say(&mut broker, busy, &subscribe_to(&shared));
    let publisher = open(&mut broker, &mut disk, 3, connect311("publisher"));
    for number in 0..=100 {
        publish_from(&mut broker, publisher, "a", QoS::AtLeastOnce, &number.to_string());
    }
    let stored = open(&mut broker, &mut disk, 4, Connect { client_id: "stored", ..member() });
    disk.store(&mut broker);
    let before = disk.records.len();
    broker.handle_lost(NOW, restless, false);
    say(&mut broker, stored, &subscribe_to(&shared));
    for number in 10..40 {
        restless = open(&mut broker, &mut disk, number, member());
        broker.handle_timeout(NOW);
        broker.check_invariants();
        broker.handle_lost(NOW, restless, false);
    }
    disk.store(&mut broker);
    assert_eq!(disk.records.len(), before + 1 + 2 * 100, "the subscription, and what waits or was sent");
}

/// Groups in each of which a little waits, and their only member.
fn groups_with_little(connect: Connect<'static>) -> (Broker, Disk, ConnectionId, Vec<String>) {
    let options =
        Options { in_flight_max: 1, steps_per_turn: Options::default().steps_per_turn, ..stored_options() };
    let (mut broker, mut disk) = (Broker::new(options, NOW), Disk::default());
    let filters: Vec<String> = (0..LITTLE_GROUPS).map(|number| format!("$share/g{number}/a")).collect();
    let busy = open(&mut broker, &mut disk, 1, connect);
    say(&mut broker, busy, &subscribe_to(&filters));
    let publisher = open(&mut broker, &mut disk, 2, connect311("publisher"));
    for _ in 0..LITTLE {
        say(&mut broker, publisher, &bytes_of(&publish("a", QoS::AtLeastOnce, b""), PROTOCOL));
        turns(&mut broker);
        hear_stored(&mut broker, &mut disk, publisher);
    }
    (broker, disk, busy, filters)
}

const LITTLE_GROUPS: usize = 500;

const LITTLE: usize = 20;

#[test]
fn little_of_many_groups_is_not_stored_at_once() {
    let (mut broker, mut disk, _, filters) = groups_with_little(connect311("busy"));
    let stored = open(&mut broker, &mut disk, 3, member());
    disk.store(&mut broker);
    let before = disk.records.len();
    for ask in [subscribe_to(&filters), unsubscribe_from(&filters), subscribe_to(&filters)] {
        turns(&mut broker);
        disk.store(&mut broker);
        let before = disk.records.len();
        say(&mut broker, stored, &ask);
        disk.store(&mut broker);
        let changed = before.abs_diff(disk.records.len());
        assert!(changed < LITTLE_GROUPS + 2 * Options::default().steps_per_turn, "{changed}");
        assert!(changed > 0 && changed < LITTLE_GROUPS * LITTLE / 2, "{changed}");
        broker.check_invariants();
    }
    turns(&mut broker);
    disk.store(&mut broker);
    let waiting = broker.metrics().queued_messages as usize;
    let in_flight = broker.metrics().in_flight_messages as usize;
    assert!(disk.records.len() > before + LITTLE_GROUPS + waiting && waiting > in_flight);
}

#[test]
fn little_of_many_groups_is_not_forgotten_at_once() {
    let (mut broker, mut disk, busy, _) = groups_with_little(member());
    disk.store(&mut broker);
    broker.handle_lost(NOW, busy, false);
    turns(&mut broker);
    disk.store(&mut broker);
    let mut records = disk.records.len();
    assert!(records > LITTLE_GROUPS * LITTLE, "{records}");
    open(&mut broker, &mut disk, 3, connect311("many"));
    while broker.poll_timeout().is_some_and(|due| due <= NOW) {
        broker.handle_timeout(NOW);
        broker.check_invariants();
        while broker.poll_flush().is_some() {}
        disk.store(&mut broker);
        let forgotten = records - disk.records.len();
        // Each may be two records, that of the message as well.
        assert!(forgotten <= 5 * Options::default().steps_per_turn, "{forgotten}");
        records = disk.records.len();
    }
    assert_eq!((broker.status().subscriptions, disk.records.len()), (0, 0));
}

/// Members whose clients have fallen silent in the same moment give what they were sent to another one a turn's worth at a time.
#[test]
fn what_many_did_not_acknowledge_goes_to_others_little_by_little() {
    const MEMBERS: u32 = 40;
    let (mut broker, mut disk) = (Broker::new(stored_options(), NOW), Disk::default());
    let shared = subscribe_to(&["$share/g/f/0".to_owned()]);
    let names: Vec<String> = (0..MEMBERS).map(|number| format!("member{number}")).collect();
    for (number, name) in (10..).zip(&names) {
        let id = ConnectionId { slot: number, generation: number };
        broker.handle_open(NOW, id);
        let connect = Connect { client_id: name, keep_alive_secs: 10, ..member() };
        say(&mut broker, id, &bytes_of(&Packet::Connect(connect), PROTOCOL));
        say(&mut broker, id, &shared);
        turns(&mut broker);
    }
    let publisher = open(&mut broker, &mut disk, 2, connect311("publisher"));
    let messages = 16 * MEMBERS;
    for number in 0..messages {
        publish_from(&mut broker, publisher, "f/0", QoS::AtLeastOnce, &number.to_string());
    }
    assert_eq!(broker.metrics().in_flight_messages, u64::from(messages));
    let stays = open(&mut broker, &mut disk, 3, Connect { keep_alive_secs: 0, ..connect311("stays") });
    say(&mut broker, stays, &shared);
    hear_stored(&mut broker, &mut disk, stays);
    let due = NOW + Duration(60_000);
    let (mut heard, mut silent) = (0, 0);
    while broker.poll_timeout().is_some_and(|at| at <= due) {
        broker.handle_timeout(due);
        broker.check_invariants();
        silent += std::iter::from_fn(|| broker.poll_close()).count();
        while broker.poll_flush().is_some() {}
        let more = heard_payloads(&mut broker, &mut disk, stays).len();
        // At once, and what was put off.
        assert!(more <= 2 * STEPS_PER_TURN / 4, "{more}");
        heard += more;
    }
    assert_eq!((heard, silent), (messages as usize, names.len()));
    assert_eq!((broker.metrics().queued_messages, broker.metrics().in_flight_messages), (0, 0));
}

/// A QoS 1 PUBLISH to `a` that is of use for so many seconds.
fn publish_expiring(broker: &mut Broker, id: ConnectionId, secs: u32, payload: &str) {
    let expiry = PropertyList::from_iter([Property::MessageExpirySecs(secs)]);
    let packet = Packet::Publish(Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "a",
        packet_id: Some(PacketId::FIRST),
        properties: expiry.as_properties(),
        payload: payload.as_bytes(),
    });
    say(broker, id, &bytes_of(&packet, Protocol::Mqtt5));
    broker.check_invariants();
}

/// A client that is away, subscribed to `filter`, and a publisher of 5.0.
fn away_and_publisher(options: Options, filter: &str) -> (Broker, ConnectionId) {
    let mut broker = Broker::new(options, NOW);
    let away = connected(&mut broker, 1, member());
    say(&mut broker, away, &subscribe_to(&[filter.to_owned()]));
    hear(&mut broker, away);
    broker.handle_lost(NOW, away, false);
    let publisher = ConnectionId { slot: 2, generation: 2 };
    broker.handle_open(NOW, publisher);
    let connect = Connect { protocol: Protocol::Mqtt5, ..connect311("publisher") };
    say(&mut broker, publisher, &bytes_of(&Packet::Connect(connect), Protocol::Mqtt5));
    (broker, publisher)
}

fn expired(broker: &Broker) -> usize {
    broker.metrics().dropped[DropReason::Expired as usize] as usize
}

/// Acknowledges what it hears, so that its window is no bound.
fn hear_and_acknowledge(broker: &mut Broker, id: ConnectionId) -> Vec<String> {
    let heard = hear(broker, id);
    for heard in &heard {
        if let Packet::Publish(Publish { packet_id: Some(packet_id), .. }) = heard.packet() {
            let mut bytes = Vec::new();
            encode::puback(&mut bytes, packet_id, ReasonCode::Success);
            say(broker, id, &bytes);
        }
    }
    payloads(&heard)
}

/// Those that have expired before a client comes back are passed in several turns, and nothing overtakes what waits behind them.
#[test]
fn messages_that_have_expired_are_passed_little_by_little() {
    for filter in ["a", "$share/g/a"] {
        let (mut broker, publisher) = away_and_publisher(options(), filter);
        (0..2).for_each(|number| publish_expiring(&mut broker, publisher, 1_000, &number.to_string()));
        (0..FILTERS).for_each(|_| publish_expiring(&mut broker, publisher, 1, "expired"));
        (2..4).for_each(|number| publish_expiring(&mut broker, publisher, 1_000, &number.to_string()));
        let mut now = NOW + Duration::from_secs(2);
        broker.handle_timeout(now);
        assert_eq!(expired(&broker), 0);
        // Packets come at `NOW` in these tests, at which the clock of a core does not go back.
        let id = ConnectionId { slot: 3, generation: 3 };
        broker.handle_open(now, id);
        say(&mut broker, id, &bytes_of(&Packet::Connect(member()), PROTOCOL));
        broker.check_invariants();
        // Together with the two that are sent.
        assert_eq!(expired(&broker), STEPS_PER_TURN - 2);
        // A place in the window that becomes free does not make more of it.
        let heard = hear_and_acknowledge(&mut broker, id);
        assert_eq!((heard, expired(&broker)), (numbers(0..2), STEPS_PER_TURN), "{filter}");
        publish_expiring(&mut broker, publisher, 1_000, "4");
        let mut turns = 0;
        while expired(&broker) < FILTERS {
            assert!(hear(&mut broker, id).is_empty(), "those before it are still to be passed");
            let before = expired(&broker);
            now = broker.poll_timeout().expect("it goes on").max(now);
            broker.handle_timeout(now);
            broker.check_invariants();
            assert!(expired(&broker) - before <= STEPS_PER_TURN);
            turns += 1;
        }
        assert_eq!(turns, (FILTERS - STEPS_PER_TURN).div_ceil(STEPS_PER_TURN));
        assert_eq!(hear_and_acknowledge(&mut broker, id), numbers(2..5), "{filter}");
        assert_eq!((broker.metrics().queued_messages, expired(&broker)), (0, FILTERS));
    }
}

/// A full queue looks at a few messages for each that comes, so what has expired makes room later, wherever it stands. Order stays.
#[test]
fn a_full_queue_looks_for_what_has_expired_little_by_little() {
    /// Of 64 steps in a turn.
    const LOOKS: usize = 2;
    const LASTING: usize = 20;
    let options = Options { queued_messages_max: FILTERS as u32, ..options() };
    for filter in ["a", "$share/g/a"] {
        let (mut broker, publisher) = away_and_publisher(options.clone(), filter);
        let mut expected = numbers(0..LASTING);
        (0..LASTING).for_each(|number| publish_expiring(&mut broker, publisher, 1_000, &number.to_string()));
        // Every other one.
        for number in LASTING..FILTERS {
            let payload = number.to_string();
            publish_expiring(&mut broker, publisher, if number % 2 == 0 { 1 } else { 1_000 }, &payload);
            expected.extend((number % 2 == 1).then_some(payload));
        }
        broker.handle_timeout(NOW + Duration::from_secs(2));
        let full =
            |broker: &Broker| broker.metrics().dropped[DropReason::QueueMessagesFull as usize] as usize;
        for number in FILTERS..2 * FILTERS {
            let before = (expired(&broker), full(&broker));
            publish_expiring(&mut broker, publisher, 1_000, &number.to_string());
            assert!(expired(&broker) - before.0 <= LOOKS);
            if full(&broker) == before.1 {
                expected.push(number.to_string());
            }
            assert_eq!(
                broker.metrics().queued_messages as usize,
                expected.len() + (FILTERS - LASTING) / 2 - expired(&broker)
            );
        }
        assert_eq!(expired(&broker), (FILTERS - LASTING) / 2, "all are found");
        assert_eq!(expected.len(), FILTERS, "there was room for as many");
        assert_eq!(full(&broker), FILTERS - expired(&broker));
        let id = ConnectionId { slot: 3, generation: 3 };
        broker.handle_open(NOW, id);
        say(&mut broker, id, &bytes_of(&Packet::Connect(member()), PROTOCOL));
        let mut heard = Vec::new();
        while heard.len() < FILTERS {
            let some = hear_and_acknowledge(&mut broker, id);
            assert!(!some.is_empty());
            heard.extend(some);
            broker.check_invariants();
        }
        assert_eq!(heard, expected, "{filter}");
    }
}

#[test]
fn clients_are_sent_away_a_few_in_each_turn_and_leave_nothing_to_each_other() {
    const CLIENTS: u32 = 10;
    const PER_TURN: usize = STEPS_PER_TURN / 16;
    let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
    let mut broker = Broker::new(Options { redirect, ..options() }, NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let members: Vec<ConnectionId> = (0..CLIENTS)
        .map(|number| {
            let client_id = format!("m{number}");
            let connect = Connect { clean_start: false, ..connect311(&client_id) };
            let id = connected(&mut broker, 2 + number, connect);
            say(&mut broker, id, &subscribe_to(&["$share/g/t".to_owned()]));
            id
        })
        .collect();
    turns(&mut broker);
    for _ in 0..2 * CLIENTS {
        say(&mut broker, publisher, &bytes_of(&publish("t", QoS::AtLeastOnce, b"x"), PROTOCOL));
    }
    let sent = broker.metrics().publish_sent;
    assert_eq!(sent, 2 * u64::from(CLIENTS), "each has some");

    assert!(broker.handle_drain(NOW));
    // What comes now goes to one who is still there.
    say(&mut broker, publisher, &bytes_of(&publish("t", QoS::AtLeastOnce, b"y"), PROTOCOL));
    let mut closed = Vec::new();
    for turn in 0.. {
        while broker.poll_flush().is_some() {}
        if broker.poll_timeout() != Some(Instant(0)) {
            break;
        }
        assert!(turn < 100, "it comes to an end");
        broker.handle_timeout(NOW);
        broker.check_invariants();
        let before = closed.len();
        while let Some(id) = broker.poll_close() {
            broker.handle_closed(id);
            closed.push(id);
        }
        assert!(closed.len() - before <= PER_TURN);
    }
    assert_eq!(closed.len(), 1 + members.len());
    let metrics = broker.metrics();
    assert_eq!(metrics.publish_sent, sent + 1);
    // They wait for members who come back, in the group or, those of the last one to leave, in its session.
    assert_eq!(metrics.queued_messages + metrics.in_flight_messages, sent + 1);
}

/// Members of so many groups that they are moved in later turns.
const CROWD: usize = 60;
const CROWDED_GROUPS: usize = 8;

/// Groups with the same members, all of whom are there, and a publisher.
fn crowd(options: Options) -> (Broker, Vec<String>, Vec<ConnectionId>, ConnectionId) {
    let mut broker = Broker::new(options, NOW);
    let names: Vec<String> = (0..CROWD).map(|number| format!("member{number}")).collect();
    let filters: Vec<String> = (0..CROWDED_GROUPS).map(|number| format!("$share/{number}/t")).collect();
    let mut members = Vec::new();
    for (number, client_id) in (10..).zip(&names) {
        let id = connected(&mut broker, number, Connect { client_id, ..member() });
        say(&mut broker, id, &subscribe_to(&filters));
        turns(&mut broker);
        hear(&mut broker, id);
        members.push(id);
    }
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    (broker, names, members, publisher)
}

/// A member that is there is found among them, however many turns that takes.
#[test]
fn those_of_groups_who_have_just_been_lost_are_passed_a_turn_s_worth_at_a_time() {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        for is_one_left in [true, false] {
            let (mut broker, _, members, publisher) = crowd(options());
            let lost = if is_one_left { &members[1..] } else { &members[..] };
            for id in lost {
                broker.handle_lost(NOW, *id, false);
            }
            publish_from(&mut broker, publisher, "t", qos, "x");
            assert!(broker.is_fanning_out_to_groups() && !broker.wants_input(publisher));
            let mut fanning_out = 0;
            while broker.is_fanning_out() {
                broker.handle_timeout(NOW);
                broker.check_invariants();
                fanning_out += 1;
            }
            // Four looks are a step, and moving them is not waited for.
            assert!((1..=CROWD * CROWDED_GROUPS / (4 * STEPS_PER_TURN)).contains(&fanning_out));
            assert!(broker.wants_input(publisher));
            let dropped = broker.metrics().dropped[DropReason::AbsentAtQoS0 as usize] as usize;
            let queued = broker.metrics().queued_messages as usize;
            let expected = match (is_one_left, qos) {
                (true, _) => (0, 0),
                (false, QoS::AtMostOnce) => (CROWDED_GROUPS, 0),
                (false, _) => (0, CROWDED_GROUPS),
            };
            assert_eq!((dropped, queued), expected);
            let heard = payloads(&hear(&mut broker, members[0]));
            assert_eq!(heard.len(), if is_one_left { CROWDED_GROUPS } else { 0 });
            turns(&mut broker);
        }
    }
}

/// Nor are all of them looked at for a message that none but the last of them can take: it waits until that has been moved, and so
/// does what comes after it.
#[test]
fn those_of_groups_who_have_just_come_and_have_no_room_are_looked_at_a_turn_s_worth_at_a_time() {
    let (mut broker, names, members, publisher) = crowd(Options { in_flight_max: 2, ..options() });
    // All but one have as much under way as they may.
    for (number, id) in members.iter().enumerate() {
        let own = format!("own/{number}");
        say(&mut broker, *id, &subscribe_to(std::slice::from_ref(&own)));
        turns(&mut broker);
        for payload in ["1", "2"].into_iter().take(if number == CROWD - 1 { 0 } else { 2 }) {
            publish_from(&mut broker, publisher, &own, QoS::AtLeastOnce, payload);
        }
        broker.handle_lost(NOW, *id, false);
        turns(&mut broker);
    }
    let back: Vec<ConnectionId> = (100..)
        .zip(&names)
        .map(|(number, client_id)| connected(&mut broker, number, Connect { client_id, ..member() }))
        .collect();
    for payload in ["a", "b"] {
        publish_from(&mut broker, publisher, "t", QoS::AtLeastOnce, payload);
    }
    let waiting = 2 * CROWDED_GROUPS as u64;
    assert_eq!(broker.metrics().queued_messages, waiting, "few of those who have come were looked at");
    turns(&mut broker);
    assert_eq!(broker.metrics().queued_messages, waiting - 2, "it was asked when it had been moved");
    let mut heard = Vec::new();
    while heard.len() < waiting as usize {
        let now = hear_and_acknowledge(&mut broker, back[CROWD - 1]);
        assert!(!now.is_empty());
        heard.extend(now);
        turns(&mut broker);
    }
    // Each of its groups in turn.
    let expected = [vec!["a"; CROWDED_GROUPS], vec!["b"; CROWDED_GROUPS]].concat();
    assert_eq!(heard, expected);
}

/// Groups and sessions that end while a message is on its way to them.
#[test]
fn what_those_miss_who_end_before_their_copy_is_counted() {
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let mut broker = broker();
        let publisher = connected(&mut broker, 1, connect311("publisher"));
        // Those who come last are the last of the list, and so are their groups.
        let count = 2 * STEPS_PER_TURN;
        let subscribe = |broker: &mut Broker, id, filters: &[String]| {
            say(broker, id, &subscribe_to(filters));
            turns(broker);
            hear(broker, id);
        };
        let clients: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
        let mut ids = Vec::new();
        for (number, client_id) in (10..).zip(&clients) {
            let id = connected(&mut broker, number, connect311(client_id));
            // So many that they are removed in later turns, beside the one that counts.
            let filters: Vec<String> = (0..4).map(|at| format!("$share/{number}/{at}")).collect();
            subscribe(
                &mut broker,
                id,
                &[&filters[..], &["t".to_owned(), format!("$share/{number}/t")]].concat(),
            );
            ids.push(id);
        }
        publish_from(&mut broker, publisher, "t", qos, "x");
        assert!(broker.is_fanning_out());
        let before = broker.metrics().dropped;
        let (stay, gone) = ids.split_at(ids.len() / 2);
        for id in gone {
            broker.handle_lost(NOW, *id, true);
        }
        turns(&mut broker);
        let at = DropReason::SessionEnded as usize;
        let (ended, reached) = (broker.metrics().dropped[at] - before[at], broker.metrics().publish_sent);
        let heard: usize = stay.iter().map(|id| payloads(&hear(&mut broker, *id)).len()).sum();
        assert_eq!(heard, 2 * stay.len());
        let returned = if qos > QoS::AtMostOnce { reached - heard as u64 } else { 0 };
        // What they were sent at QoS 1 and did not acknowledge is counted too.
        assert_eq!(reached + ended - returned, 2 * count as u64);
    }
}

/// Who is sent away is who is there when it is a slot's turn. Many slots are empty, and some are given to newcomers before
/// their turn, after it, or at the end: those are no clients yet, and are refused when they ask.
#[test]
fn clients_are_sent_away_from_among_empty_slots_and_newcomers() {
    // More than a turn looks at lie between them, and the last one has a turn of its own.
    const SLOTS: [u32; 5] = [3, 10, 150, 151, 448];
    const FIRST: u32 = SLOTS[0];
    const AHEAD: u32 = SLOTS[2];
    let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
    let mut broker = Broker::new(Options { redirect, ..options() }, NOW);
    let ids = SLOTS.map(|slot| connected(&mut broker, slot, connect311(&format!("c{slot}"))));
    turns(&mut broker);
    let free = |broker: &mut Broker| -> Vec<u32> {
        let closed = std::iter::from_fn(|| {
            let id = broker.poll_close()?;
            broker.handle_closed(id);
            Some(id.slot)
        });
        closed.collect()
    };
    let mut newcomers = Vec::new();
    let mut come = |broker: &mut Broker, slot: u32| {
        let id = ConnectionId { slot, generation: 1_000 + slot };
        broker.handle_open(NOW, id);
        newcomers.push(id);
    };

    assert!(broker.handle_drain(NOW));
    broker.handle_timeout(NOW);
    broker.check_invariants();
    let mut closed = free(&mut broker);
    assert_eq!(closed, SLOTS[..2], "a turn's worth of slots");
    // One leaves by itself before it is its turn. Slots are taken by others, behind and ahead.
    broker.handle_lost(NOW, ids[2], false);
    assert_eq!(free(&mut broker), [AHEAD]);
    for slot in [FIRST, 20, AHEAD, 299, 400] {
        come(&mut broker, slot);
    }
    let mut turns = 1;
    while broker.poll_timeout() == Some(Instant(0)) {
        while broker.poll_flush().is_some() {}
        broker.handle_timeout(NOW);
        broker.check_invariants();
        closed.extend(free(&mut broker));
        turns += 1;
    }
    assert_eq!(closed, [3, 10, 151, 448]);
    assert_eq!(turns, 448 / STEPS_PER_TURN + 1);
    assert_eq!((broker.metrics().clients_connected, broker.connections()), (0, newcomers.len()));
    for id in newcomers {
        say(&mut broker, id, &bytes_of(&Packet::Connect(connect311("newcomer")), PROTOCOL));
        let heard = hear(&mut broker, id);
        let Packet::Connack(connack) = heard[0].packet() else { panic!("a refusal") };
        assert_eq!(connack.reason, ReasonCode::ServerUnavailable);
        assert_eq!(free(&mut broker), [id.slot]);
    }
    assert_eq!((broker.connections(), broker.timers_armed()), (0, 0));
}

/// Who waits for a store that fails is closed, a few in each turn. Those that have yet to be closed are told nothing meanwhile,
/// and what is true if the store gets there first.
#[test]
fn those_who_wait_for_a_store_that_fails_are_closed_little_by_little() {
    const CLIENTS: u32 = 20;
    const PER_TURN: usize = STEPS_PER_TURN / 16;
    for recovers in [false, true] {
        let mut broker = Broker::new(stored_options(), NOW);
        let client_ids: Vec<String> = (0..CLIENTS).map(|number| format!("c{number}")).collect();
        let ids: Vec<ConnectionId> = (0..CLIENTS)
            .zip(&client_ids)
            .map(|(slot, client_id)| {
                let connect = Connect { clean_start: false, ..connect311(client_id) };
                connected(&mut broker, slot, connect)
            })
            .collect();
        turns(&mut broker);
        ids.iter().for_each(|id| say(&mut broker, *id, &subscribe_to(&["f/7".to_owned()])));
        let batch = broker.poll_journal(NOW).expect("all of them are recorded");
        broker.handle_store_state(NOW, StoreState::Failing);
        while broker.poll_flush().is_some() {}
        assert!(broker.poll_close().is_none() && broker.poll_timeout() != Some(Instant(0)));

        let mut closed = Vec::new();
        let mut close = |broker: &mut Broker| {
            broker.check_invariants();
            let before = closed.len();
            while let Some(id) = broker.poll_close() {
                assert!(broker.outbox(id).is_some_and(|outbox| outbox.is_empty()), "3.1.1 has no last word");
                broker.handle_closed(id);
                closed.push(id);
            }
            closed.len() - before
        };
        assert!(broker.poll_journal(NOW).is_none());
        assert_eq!(close(&mut broker), PER_TURN);
        let mut left = ids.len() - PER_TURN;
        while left > if recovers { ids.len() / 2 } else { 0 } {
            while broker.poll_flush().is_some() {}
            assert_eq!(broker.poll_timeout(), Some(Instant(0)));
            broker.handle_timeout(NOW);
            assert!(broker.poll_journal(NOW).is_none());
            assert_eq!(close(&mut broker), PER_TURN);
            left -= PER_TURN;
            for id in &ids[ids.len() - left..] {
                let mut slices = [std::io::IoSlice::new(&[]); 1];
                assert_eq!(broker.outbox(*id).map(|outbox| outbox.slices(&mut slices)), Some(0));
            }
        }
        assert_eq!(closed, ids[..ids.len() - left]);
        broker.handle_stored(NOW, batch.last());
        broker.handle_store_state(NOW, StoreState::Well);
        turns(&mut broker);
        assert_eq!((broker.poll_close(), broker.poll_journal(NOW).is_some()), (None, true), "sessions left");
        for id in &ids[ids.len() - left..] {
            assert!(
                matches!(hear(&mut broker, *id)[..], [ref suback] if matches!(suback.packet(), Packet::Suback(_)))
            );
        }
    }
}
