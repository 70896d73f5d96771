//! Very many filters that all match one topic, because they mix its texts with wildcards, against the core alone: they are searched
//! for a turn's worth at a time, and whoever has them does not have a turn to itself.

use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Duration;
use broker::codec::packet::{Packet, Protocol, QoS};
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Properties, Property, ReasonCode, encode};
use broker::metrics::DropReason;

use crate::fixture::client::{Received, bytes_of, connect5, connect311, publish, subscribe_bytes};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, hear_as, say, turns};

const STEPS_PER_TURN: usize = 64;

/// Each level is the topic's own or a wildcard, and so is the last one of every filter.
const MIXED_LEVELS: u32 = 9;
const MIXES: u32 = 1 << MIXED_LEVELS;

/// What may come on top of a turn's worth: a copy, with what belongs to it.
const EXCESS: u64 = 16;

fn options() -> Options {
    Options {
        steps_per_turn: STEPS_PER_TURN,
        sys_interval: None,
        in_flight_max: 1,
        seed: 1,
        ..Options::default()
    }
}

fn mix(number: u32, last: &str) -> String {
    let level = |at: u32| if number >> at & 1 == 0 { "a" } else { "+" };
    (0..MIXED_LEVELS).map(level).chain([last]).collect::<Vec<_>>().join("/")
}

fn topic() -> String {
    mix(0, "b")
}

/// Some of the mixes, in one SUBSCRIBE.
fn subscribe_to(protocol: Protocol, numbers: impl Iterator<Item = u32>, qos: QoS) -> Vec<u8> {
    let filters: Vec<String> = numbers.map(|number| mix(number, "+")).collect();
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), qos.into())).collect();
    let properties: PropertyList = if protocol == Protocol::Mqtt5 {
        [Property::SubscriptionId(7)].into_iter().collect()
    } else {
        PropertyList::default()
    };
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, protocol, PacketId::FIRST, properties.as_properties(), &requests);
    bytes
}

fn publish_bytes(qos: QoS, retain: bool, payload: &[u8]) -> Vec<u8> {
    let topic = topic();
    let mut packet = publish(&topic, qos, payload);
    if let Packet::Publish(publish) = &mut packet {
        publish.retain = retain;
    }
    bytes_of(&packet, PROTOCOL)
}

/// One more turn, and what it took.
fn turn(broker: &mut Broker) -> u64 {
    while broker.poll_flush().is_some() {}
    assert!(broker.poll_timeout().is_some_and(|due| due <= NOW), "there is more to be done");
    let before = broker.work() + broker.copies();
    broker.handle_timeout(NOW);
    broker.check_invariants();
    broker.work() + broker.copies() - before
}

fn payloads(heard: &[Received]) -> Vec<String> {
    heard.iter().map(|heard| heard.message().1).collect()
}

#[test]
fn filters_that_take_turns_to_be_found_are_those_of_the_moment_the_message_was_taken() {
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let other = connected(&mut broker, 2, connect311("other"));
    say(&mut broker, other, &subscribe_bytes(PROTOCOL, "other", QoS::AtMostOnce));
    let clients: Vec<ConnectionId> = (0..4)
        .map(|number| {
            let id = connected(&mut broker, 10 + number, connect311(&format!("client{number}")));
            let own = (0..MIXES).filter(|mix| mix % 4 == number);
            say(&mut broker, id, &subscribe_to(PROTOCOL, own, QoS::AtLeastOnce));
            turns(&mut broker);
            hear(&mut broker, id);
            id
        })
        .collect();
    hear(&mut broker, other);

    let before = broker.work();
    say(&mut broker, publisher, &publish_bytes(QoS::AtLeastOnce, false, b"to all"));
    assert!(broker.is_listing_sessions() && broker.work() - before <= STEPS_PER_TURN as u64 + EXCESS);
    // Those who go, and who come, before anybody knows.
    let own: Vec<String> = (0..MIXES).filter(|mix| mix % 4 == 1).map(|number| mix(number, "+")).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let mut unsubscribe = Vec::new();
    encode::unsubscribe(&mut unsubscribe, PROTOCOL, PacketId::FIRST, Properties::NONE, &own);
    say(&mut broker, clients[1], &unsubscribe);
    let late = connected(&mut broker, 20, connect311("late"));
    say(&mut broker, late, &subscribe_bytes(PROTOCOL, "#", QoS::AtLeastOnce));
    broker.handle_lost(NOW, clients[3], true);
    // Others do not wait for it, but for those who send to as many.
    say(&mut broker, other, &bytes_of(&publish("other", QoS::AtMostOnce, b"to one"), PROTOCOL));
    assert_eq!(payloads(&hear(&mut broker, other)), ["to one"]);
    say(&mut broker, other, &publish_bytes(QoS::AtMostOnce, false, b"too"));
    assert!(broker.wants_input(late) && !broker.wants_input(other));

    let mut listing_turns = 0;
    while broker.is_listing_sessions() {
        assert!(turn(&mut broker) <= STEPS_PER_TURN as u64 + EXCESS);
        assert!(hear(&mut broker, publisher).is_empty(), "it is not answered yet");
        listing_turns += 1;
    }
    assert!(listing_turns > 20, "{listing_turns}");
    turns(&mut broker);
    let acknowledged = hear(&mut broker, publisher);
    assert!(matches!(acknowledged[..], [ref puback] if matches!(puback.packet(), Packet::Puback(_))));
    for id in [clients[0], clients[2]] {
        assert_eq!(payloads(&hear(&mut broker, id)), ["to all", "too"]);
    }
    let heard = hear(&mut broker, clients[1]);
    assert_eq!(payloads(&heard[1..]), ["to all"], "it is not subscribed any more, and was then");
    let heard = hear(&mut broker, late);
    assert_eq!(payloads(&heard[1..]), ["to one", "too"]);
}

/// Its last receiver may have ended before it expired.
#[test]
fn what_expires_before_it_reaches_anybody_who_is_still_there_matched_nobody() {
    for has_gone in [false, true] {
        let mut broker = Broker::new(options(), NOW);
        let publisher = ConnectionId { slot: 1, generation: 1 };
        broker.handle_open(NOW, publisher);
        say(&mut broker, publisher, &bytes_of(&Packet::Connect(connect5("publisher")), Protocol::Mqtt5));
        hear_as(&mut broker, publisher, Protocol::Mqtt5);
        let client = connected(&mut broker, 2, connect311("client"));
        say(&mut broker, client, &subscribe_to(PROTOCOL, 0..MIXES, QoS::AtLeastOnce));
        turns(&mut broker);
        let (topic, properties) = (topic(), PropertyList::from_iter([Property::MessageExpirySecs(1)]));
        let mut packet = publish(&topic, QoS::AtLeastOnce, b"soon over");
        if let Packet::Publish(publish) = &mut packet {
            publish.properties = properties.as_properties();
        }
        say(&mut broker, publisher, &bytes_of(&packet, Protocol::Mqtt5));
        assert!(broker.is_listing_sessions());
        if has_gone {
            broker.handle_lost(NOW, client, true);
        }
        let later = NOW + Duration(1_000);
        let mut turns = 0;
        while broker.is_fanning_out() {
            broker.handle_timeout(later);
            turns += 1;
            assert!(turns < 1_000, "it comes to an end");
        }
        let heard = hear_as(&mut broker, publisher, Protocol::Mqtt5);
        let Packet::Puback(puback) = heard[0].packet() else { panic!("{heard:?}") };
        let reason = if has_gone { ReasonCode::NoMatchingSubscribers } else { ReasonCode::Success };
        assert_eq!(puback.reason, reason);
        let dropped = broker.metrics().dropped;
        assert_eq!(dropped[DropReason::Expired as usize], u64::from(!has_gone));
        assert_eq!(dropped[DropReason::SessionEnded as usize], u64::from(has_gone));
    }
}

/// Of a topic that was seen before it is known how many grants its few receivers have.
#[test]
fn few_copies_that_are_much_work_end_a_turn_as_well() {
    const CLIENTS: u32 = 4;
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    for number in 0..CLIENTS {
        let id = ConnectionId { slot: 10 + number, generation: 1 };
        broker.handle_open(NOW, id);
        let name = format!("client{number}");
        say(&mut broker, id, &bytes_of(&Packet::Connect(connect5(&name)), Protocol::Mqtt5));
        say(&mut broker, id, &subscribe_to(Protocol::Mqtt5, 0..MIXES, QoS::AtMostOnce));
        turns(&mut broker);
    }
    for _ in 0..2 {
        let copies = broker.copies();
        say(&mut broker, publisher, &publish_bytes(QoS::AtMostOnce, false, b"to all"));
        assert!(broker.copies() - copies <= 1);
        while broker.is_fanning_out() {
            let copies = broker.copies();
            turn(&mut broker);
            assert!(broker.copies() - copies <= 1);
        }
        assert_eq!(broker.copies() - copies, u64::from(CLIENTS));
    }
}

/// A slow client that is subscribed to very many filters has yet to get what is retained for each of them. The first of those
/// get it before a live message that comes to the same topic, the others in their turns.
#[test]
fn a_live_message_is_preceded_for_the_first_of_very_many_filters() {
    const FIRST: usize = 128;
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    say(&mut broker, publisher, &publish_bytes(QoS::AtLeastOnce, true, b"kept"));
    let slow = connected(&mut broker, 10, connect311("slow"));
    say(&mut broker, slow, &subscribe_to(PROTOCOL, 0..MIXES, QoS::AtLeastOnce));
    turns(&mut broker);
    let mut heard = hear(&mut broker, slow);
    heard.remove(0);
    assert_eq!(payloads(&heard), ["kept"], "its window is full");
    say(&mut broker, publisher, &publish_bytes(QoS::AtLeastOnce, false, b"live"));
    turns(&mut broker);
    loop {
        let last = heard.last().expect("there was one");
        let mut puback = Vec::new();
        let packet_id = last.publish().packet_id.expect("it is at QoS 1");
        encode::puback(&mut puback, packet_id, ReasonCode::Success);
        say(&mut broker, slow, &puback);
        turns(&mut broker);
        let next = hear(&mut broker, slow);
        if next.is_empty() {
            break;
        }
        heard.extend(next);
    }
    let payloads = payloads(&heard);
    assert_eq!(
        payloads[..3],
        ["kept", "kept", "live"],
        "of the first filter, of some others, and what was sent"
    );
    assert_eq!(payloads[3..].len(), MIXES as usize - 1 - FIRST);
    assert!(payloads[3..].iter().all(|payload| payload == "kept"));
}

/// A copy for somebody with very many subscriptions takes longer than others.
#[test]
fn copies_that_are_much_work_end_a_turn() {
    const CLIENTS: u32 = 40;
    const SUBSCRIPTIONS: u32 = 64;
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let clients: Vec<ConnectionId> = (0..CLIENTS)
        .map(|number| {
            let id = ConnectionId { slot: 10 + number, generation: 1 };
            broker.handle_open(NOW, id);
            let name = format!("client{number}");
            let connect = Packet::Connect(connect5(&name));
            say(&mut broker, id, &bytes_of(&connect, Protocol::Mqtt5));
            say(&mut broker, id, &subscribe_to(Protocol::Mqtt5, 0..SUBSCRIPTIONS, QoS::AtMostOnce));
            turns(&mut broker);
            hear_as(&mut broker, id, Protocol::Mqtt5);
            id
        })
        .collect();
    say(&mut broker, publisher, &publish_bytes(QoS::AtMostOnce, false, b"to all"));
    let mut copying_turns = 0;
    while broker.is_fanning_out() {
        let copies = broker.copies();
        assert!(turn(&mut broker) <= STEPS_PER_TURN as u64 + EXCESS + u64::from(SUBSCRIPTIONS) / 4);
        copying_turns += usize::from(broker.copies() > copies);
    }
    let each = SUBSCRIPTIONS as usize / 4 + 1;
    assert!(copying_turns >= CLIENTS as usize * each / (STEPS_PER_TURN + each), "{copying_turns}");
    for id in clients {
        let heard = hear_as(&mut broker, id, Protocol::Mqtt5);
        assert_eq!(payloads(&heard), ["to all"]);
    }
}

fn subscription_ids(received: &Received) -> Vec<u32> {
    let mut ids: Vec<u32> = received
        .publish()
        .properties
        .iter()
        .filter_map(|property| match property {
            Property::SubscriptionId(id) => Some(id),
            _ => None,
        })
        .collect();
    ids.sort_unstable();
    ids
}

/// The identifiers that one copy names are more than a turn has time for. What else comes meanwhile has its own.
#[test]
fn one_copy_by_very_many_subscriptions_takes_several_turns() {
    const OTHER_ID: u32 = 100_000;
    let filters = ["+", "#", "b"].iter().flat_map(|last| (0..MIXES).map(|number| mix(number, last)));
    let filters: Vec<(u32, String)> = (1..).zip(filters).collect();
    let all_ids: Vec<u32> = filters.iter().map(|(id, _)| *id).collect();
    let other = (OTHER_ID, "other".to_owned());
    for has_gone in [false, true] {
        let mut broker = Broker::new(options(), NOW);
        let publisher = connected(&mut broker, 1, connect311("publisher"));
        let neighbour = connected(&mut broker, 2, connect311("neighbour"));
        let named = [10, 11].map(|slot| {
            let id = ConnectionId { slot, generation: 1 };
            broker.handle_open(NOW, id);
            let name = format!("named{slot}");
            say(&mut broker, id, &bytes_of(&Packet::Connect(connect5(&name)), Protocol::Mqtt5));
            for (subscription_id, filter) in filters.iter().chain([&other]) {
                let said = PropertyList::from_iter([Property::SubscriptionId(*subscription_id)]);
                let (requests, mut bytes) = ([(filter.as_str(), QoS::AtMostOnce.into())], Vec::new());
                let said = said.as_properties();
                encode::subscribe(&mut bytes, Protocol::Mqtt5, PacketId::FIRST, said, &requests);
                say(&mut broker, id, &bytes);
                turns(&mut broker);
            }
            hear_as(&mut broker, id, Protocol::Mqtt5);
            id
        });
        // The second time it is known who gets it.
        for payload in ["first", "second"] {
            let before = broker.work();
            say(&mut broker, publisher, &publish_bytes(QoS::AtLeastOnce, false, payload.as_bytes()));
            assert!(broker.work() - before <= STEPS_PER_TURN as u64 + EXCESS);
            while broker.is_listing_sessions() {
                turn(&mut broker);
            }
            let copies = broker.copies();
            for _ in 0..2 {
                assert!(turn(&mut broker) <= STEPS_PER_TURN as u64 + EXCESS);
            }
            assert_eq!(broker.copies(), copies, "nobody has it yet");
            say(&mut broker, neighbour, &bytes_of(&publish("other", QoS::AtMostOnce, b"else"), PROTOCOL));
            if has_gone {
                broker.handle_lost(NOW, named[0], true);
            }
            let mut copying_turns = 2;
            while broker.is_fanning_out() {
                assert!(turn(&mut broker) <= STEPS_PER_TURN as u64 + EXCESS);
                copying_turns += 1;
                assert!(copying_turns < 1_000, "it comes to an end");
            }
            let receivers = if has_gone { 1 } else { 2 };
            // The turn in which it came may have begun with it.
            assert!(copying_turns >= receivers * all_ids.len() / 4 / STEPS_PER_TURN - 1, "{copying_turns}");
            let acknowledged = hear(&mut broker, publisher);
            assert!(matches!(acknowledged[..], [ref puback] if matches!(puback.packet(), Packet::Puback(_))));
            let who_hear = if has_gone { &named[1..] } else { &named };
            for id in who_hear {
                let heard = hear_as(&mut broker, *id, Protocol::Mqtt5);
                let heard: Vec<_> =
                    heard.iter().map(|heard| (heard.message().1, subscription_ids(heard))).collect();
                assert_eq!(
                    heard,
                    [("else".to_owned(), vec![OTHER_ID]), (payload.to_owned(), all_ids.clone())]
                );
            }
            if has_gone {
                break;
            }
        }
    }
}
