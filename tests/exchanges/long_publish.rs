//! A PUBLISH that is very large, against the core alone: its properties, and a payload that says that it is text, are looked at in
//! several turns.

use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options};
use broker::clock::Instant;
use broker::codec::packet::{Ack, Connect, Packet, Protocol, Publish, QoS};
use broker::codec::property::PropertyList;
use broker::codec::{DecodeError, Inbox, PacketId, Properties, Property, ReasonCode, encode};
use broker::metrics::DropReason;

use crate::fixture::client::{bytes_of, connect311};
use crate::fixture::core::{NOW, hear_as, say, say_bad, say_in, turns};

const PROTOCOL: Protocol = Protocol::Mqtt5;
const STEPS_PER_TURN: usize = 4;

/// Of a payload so much is looked at in a turn.
const BYTES_PER_TURN: usize = STEPS_PER_TURN * 128;

const READ_BYTES: usize = 200;

fn broker() -> Broker {
    let options = Options {
        steps_per_turn: STEPS_PER_TURN,
        long_packet_bytes_min: READ_BYTES,
        check_payload_format: true,
        sys_interval: None,
        seed: 1,
        ..Options::default()
    };
    Broker::new(options, NOW)
}

fn connected(broker: &mut Broker, slot: u32) -> ConnectionId {
    let id = ConnectionId { slot, generation: 1 };
    broker.handle_open(NOW, id);
    let client_id = format!("c{slot}");
    let connect = Connect { protocol: PROTOCOL, client_id: &client_id, ..connect311("") };
    say(broker, id, &bytes_of(&Packet::Connect(connect), PROTOCOL));
    assert!(matches!(hear_as(broker, id, PROTOCOL)[0].packet(), Packet::Connack(_)));
    id
}

/// Somebody who publishes, and somebody who hears it.
fn world() -> (Broker, ConnectionId, ConnectionId) {
    let mut broker = broker();
    let (publisher, subscriber) = (connected(&mut broker, 1), connected(&mut broker, 2));
    let mut bytes = Vec::new();
    let requests = [("t", QoS::AtMostOnce.into())];
    encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    say(&mut broker, subscriber, &bytes);
    hear_as(&mut broker, subscriber, PROTOCOL);
    turns(&mut broker);
    (broker, publisher, subscriber)
}

fn publish(broker: &mut Broker, id: ConnectionId, qos: QoS, payload: &[u8]) {
    let properties = PropertyList::from_iter([Property::PayloadIsText(true)]);
    let publish = Publish {
        dup: false,
        qos,
        retain: false,
        topic: "t",
        packet_id: (qos > QoS::AtMostOnce).then_some(PacketId::FIRST),
        properties: properties.as_properties(),
        payload,
    };
    say_in(broker, id, &bytes_of(&Packet::Publish(publish), PROTOCOL), READ_BYTES);
    broker.check_invariants();
}

fn dropped(broker: &Broker, reason: DropReason) -> u64 {
    broker.metrics().dropped[reason as usize]
}

/// What a publisher is told of its one message.
fn answer(broker: &mut Broker, id: ConnectionId) -> Option<ReasonCode> {
    let heard = hear_as(broker, id, PROTOCOL);
    assert!(heard.len() <= 1);
    heard.first().map(|heard| match heard.packet() {
        Packet::Puback(Ack { reason, .. }) | Packet::Pubrec(Ack { reason, .. }) => reason,
        other => panic!("{other:?} answers no PUBLISH"),
    })
}

/// Characters of two, three and four bytes, at all places of the slices it is looked at in.
#[test]
fn a_large_text_is_looked_at_a_turn_s_worth_at_a_time() {
    for (character, shift) in
        "\u{e9}\u{20ac}\u{1f600}".chars().flat_map(|character| [0, 1, 2, 3].map(|shift| (character, shift)))
    {
        let (mut broker, publisher, subscriber) = world();
        let mut text = "x".repeat(shift);
        while text.len() < 5 * BYTES_PER_TURN {
            text.push(character);
        }
        let received = broker.metrics().packets_received;
        publish(&mut broker, publisher, QoS::AtLeastOnce, text.as_bytes());
        assert_eq!((broker.wants_input(publisher), broker.metrics().packets_received), (false, received + 1));
        assert_eq!(answer(&mut broker, publisher), None);
        // Nobody else waits.
        say(&mut broker, subscriber, &bytes_of(&Packet::Pingreq, PROTOCOL));
        assert_eq!(hear_as(&mut broker, subscriber, PROTOCOL)[0].packet(), Packet::Pingresp);
        assert!((4..=5).contains(&turns(&mut broker)), "the first turn's worth was looked at as it came");
        assert_eq!((broker.poll_resume(), broker.wants_input(publisher)), (Some(publisher), true));
        assert_eq!(answer(&mut broker, publisher), Some(ReasonCode::Success));
        let heard = hear_as(&mut broker, subscriber, PROTOCOL);
        let Packet::Publish(publish) = heard[0].packet() else { panic!("it is delivered") };
        assert_eq!((publish.topic, publish.payload), ("t", text.as_bytes()));
        assert!(publish.properties.iter().eq([Property::PayloadIsText(true)]));
    }
}

#[test]
fn what_is_no_text_is_found_wherever_it_stands() {
    // [MQTT5-3.3.2-4]
    let whole = vec![b'x'; 3 * BYTES_PER_TURN];
    for at in [0, BYTES_PER_TURN - 1, BYTES_PER_TURN, 2 * BYTES_PER_TURN + 7, whole.len() - 1] {
        // A byte that never stands in a text, and the beginning of a character that does not go on.
        for bad in [0xFF, 0xE2] {
            for (qos, expected) in
                [(QoS::AtMostOnce, None), (QoS::ExactlyOnce, Some(ReasonCode::PayloadFormatInvalid))]
            {
                let (mut broker, publisher, subscriber) = world();
                let mut payload = whole.clone();
                payload[at] = bad;
                publish(&mut broker, publisher, qos, &payload);
                turns(&mut broker);
                assert_eq!(answer(&mut broker, publisher), expected, "{bad:#x} at {at}");
                assert_eq!(
                    (dropped(&broker, DropReason::PayloadFormat), broker.wants_input(publisher)),
                    (1, true)
                );
                assert!(hear_as(&mut broker, subscriber, PROTOCOL).is_empty());
            }
        }
    }
}

/// To its sender it is as if it were still in the socket.
#[test]
fn it_was_never_sent_if_its_sender_goes() {
    for (qos, expected) in [(QoS::AtMostOnce, 1), (QoS::AtLeastOnce, 0)] {
        let (mut broker, publisher, subscriber) = world();
        publish(&mut broker, publisher, qos, &vec![b'x'; 3 * BYTES_PER_TURN]);
        broker.handle_timeout(NOW);
        assert!(!broker.wants_input(publisher));
        broker.handle_lost(NOW, publisher, true);
        broker.check_invariants();
        assert_eq!(
            dropped(&broker, DropReason::SessionEnded),
            expected,
            "nobody sends it again, or its client does"
        );
        turns(&mut broker);
        assert!(hear_as(&mut broker, subscriber, PROTOCOL).is_empty());
        assert_eq!((broker.poll_resume(), broker.status().message_bytes), (None, 0));
    }
}

/// It is not silent while we do not read it.
#[test]
fn its_sender_is_not_taken_for_silent_meanwhile() {
    let mut broker = broker();
    let id = ConnectionId { slot: 1, generation: 1 };
    broker.handle_open(NOW, id);
    let connect = Connect { protocol: PROTOCOL, keep_alive_secs: 1, ..connect311("c") };
    say(&mut broker, id, &bytes_of(&Packet::Connect(connect), PROTOCOL));
    publish(&mut broker, id, QoS::AtMostOnce, &vec![b'x'; 3 * BYTES_PER_TURN]);
    let later = Instant(NOW.0 + 10_000);
    broker.handle_timeout(later);
    assert!(!broker.wants_input(id));
    while !broker.wants_input(id) {
        broker.handle_timeout(later);
    }
    broker.handle_timeout(later);
    let closed =
        std::iter::from_fn(|| broker.poll_event()).any(|event| matches!(event, Event::Closed { .. }));
    assert!(!closed && broker.poll_close().is_none());
}

/// All of them are passed on, but those for us, in their order.
#[test]
fn large_properties_are_checked_a_turn_s_worth_at_a_time() {
    let (mut broker, publisher, subscriber) = world();
    let value = "v".repeat(100);
    let mut given = PropertyList::from_iter([Property::TopicAlias(1)]);
    let mut passed_on = PropertyList::default();
    for number in 0..20 {
        let name = number.to_string();
        given.push(&Property::UserProperty(&name, &value));
        passed_on.push(&Property::UserProperty(&name, &value));
    }
    given.push(&Property::MessageExpirySecs(60));
    for topic in ["t", ""] {
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic,
            packet_id: Some(PacketId::FIRST),
            properties: given.as_properties(),
            payload: b"x",
        };
        say_in(&mut broker, publisher, &bytes_of(&Packet::Publish(publish), PROTOCOL), READ_BYTES);
        broker.check_invariants();
        assert!(!broker.wants_input(publisher));
        assert_eq!(turns(&mut broker), 22_usize.div_ceil(STEPS_PER_TURN) - 1);
        assert_eq!(answer(&mut broker, publisher), Some(ReasonCode::Success));
        let heard = hear_as(&mut broker, subscriber, PROTOCOL);
        let Packet::Publish(publish) = heard[0].packet() else { panic!("it is delivered") };
        assert_eq!((publish.topic, publish.payload), ("t", b"x".as_slice()));
        let mut heard = publish.properties.iter();
        assert_eq!(heard.next(), Some(Property::MessageExpirySecs(60)));
        assert!(heard.eq(passed_on.as_properties()));
    }
}

/// That a packet is malformed goes before any other fault, and nothing of it takes effect.
#[test]
fn what_is_wrong_with_large_properties_is_found_wherever_it_stands() {
    let user = Property::UserProperty("name", "value");
    let filler = vec![user; 100];
    let with = |first: Option<Property<'static>>, last: Option<Property<'static>>| {
        PropertyList::from_iter(first.into_iter().chain(filler.iter().copied()).chain(last))
    };
    let malformed = |error| CloseReason::Malformed(error);
    let identifier = Property::SubscriptionId(1);
    let expiry = Some(Property::MessageExpirySecs(1));
    let cases = [
        (with(Some(identifier), None), CloseReason::SubscriptionIdInPublish),
        (with(None, Some(identifier)), CloseReason::SubscriptionIdInPublish),
        (with(None, Some(Property::ResponseTopic("a/#"))), CloseReason::ResponseTopic),
        (with(expiry, expiry), malformed(DecodeError::RepeatedProperty(2))),
        (
            with(Some(identifier), Some(Property::ReceiveMaximum(1))),
            malformed(DecodeError::MisplacedProperty(0x21)),
        ),
        (with(None, Some(Property::TopicAlias(2_000))), CloseReason::TopicAlias),
    ];
    for (properties, expected) in cases {
        for read in [READ_BYTES, 10_000] {
            let (mut broker, publisher, subscriber) = world();
            while broker.poll_event().is_some() {}
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&[0, 1, b't']);
            let length = properties.as_properties().len();
            bytes.extend_from_slice(&[(length & 0x7F) as u8 | 0x80, (length >> 7) as u8]);
            bytes.extend_from_slice(properties.as_properties().as_bytes());
            let length = bytes.len();
            let head = [0x30, (length & 0x7F) as u8 | 0x80, (length >> 7) as u8];
            say_bad(&mut broker, publisher, &[&head, bytes.as_slice()].concat(), read);
            turns(&mut broker);
            assert_eq!(broker.poll_close(), Some(publisher));
            let reason = std::iter::from_fn(|| broker.poll_event()).find_map(|event| match event {
                Event::Closed { reason, .. } => Some(reason),
                _ => None,
            });
            assert_eq!(reason, Some(expected), "in reads of {read}");
            assert!(hear_as(&mut broker, subscriber, PROTOCOL).is_empty());
        }
    }
}

/// The memory of a packet that nobody needs any more, whatever became of it.
#[test]
fn large_memory_is_given_back_a_piece_in_each_turn() {
    const MIB: usize = 1 << 20;
    let (mut broker, publisher, _) = world();
    assert_eq!(turns(&mut broker), 0);
    let taken = Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "other",
        packet_id: None,
        properties: Properties::NONE,
        payload: &vec![b'x'; 5 * MIB],
    };
    let bytes = bytes_of(&Packet::Publish(taken), PROTOCOL);
    say_in(&mut broker, publisher, &bytes, 64 * 1024);
    assert_eq!(
        (broker.status().message_bytes, turns(&mut broker)),
        (0, 5),
        "it was taken, and nobody wants it"
    );

    // One that is being looked at when its sender goes, and one that did not come whole.
    publish(&mut broker, publisher, QoS::AtMostOnce, &vec![b'x'; 5 * MIB]);
    broker.handle_lost(NOW, publisher, true);
    assert_eq!(turns(&mut broker), 5);
    let mut inbox = Inbox::default();
    let mut terms = broker.reading_terms(publisher);
    terms.packet_size_max = u32::MAX;
    assert!(!broker.handle_next(NOW, publisher, &mut terms, &mut inbox, &mut &bytes[..4 * MIB]));
    broker.leave_unread(inbox);
    assert_eq!(turns(&mut broker), 3, "what is left of a piece goes with the last one");
}

/// What its memory holds beside what is passed on counts too.
#[test]
fn a_large_message_counts_what_it_keeps() {
    for (expiry, copies) in [(None, 1), (Some(Property::MessageExpirySecs(60)), 2)] {
        let (mut broker, publisher, _) = world();
        let value = "v".repeat(1_000);
        let users = (0..50).map(|_| Property::UserProperty("name", &value));
        let properties: PropertyList = expiry.into_iter().chain(users).collect();
        let publish = Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: true,
            topic: "t",
            packet_id: None,
            properties: properties.as_properties(),
            payload: b"x",
        };
        say_in(&mut broker, publisher, &bytes_of(&Packet::Publish(publish), PROTOCOL), READ_BYTES);
        turns(&mut broker);
        let length = properties.as_properties().len() as u64;
        let bytes = broker.status().message_bytes;
        assert!((copies * length..copies * length + 200).contains(&bytes), "{bytes} of {length}");
    }
}
