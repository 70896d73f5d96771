//! A message to more sessions than one turn has time for, against the core alone.

use std::collections::BTreeMap;

use broker::broker::options::{Durability, Redirect};
use broker::broker::{Broker, ConnectionId, Options, StoreState};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Connect, Packet, Publish, QoS, SubscriptionOptions, Will};
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Properties, Property, Protocol, ReasonCode, encode};
use broker::journal::Key;
use broker::metrics::DropReason;

use crate::fixture::client::{Received, bytes_of, connect5, connect311, publish, subscribe_bytes, will};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, hear_as, say, turns};

const STEPS_PER_TURN: usize = 4;

/// Three turns' worth, of which the first is the packet's own.
const RECEIVERS: usize = 10;

const TURNS: usize = 2;

/// Of receivers with many subscriptions.
const FILTERS: [&str; 4] = ["all/+", "all/#", "+/1", "#"];

/// A turn lists four times as many as it makes copies, and to come to a filter takes as long as to list eight.
const LISTING_TURNS: usize = ((RECEIVERS + 8) * FILTERS.len()).div_ceil(4 * STEPS_PER_TURN) - 1;

fn unsubscribe_bytes(filter: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &[filter]);
    bytes
}

fn options() -> Options {
    Options { steps_per_turn: STEPS_PER_TURN, sys_interval: None, seed: 1, ..Options::default() }
}

/// Clients who subscribed to the same topics at QoS 1, and two who publish.
struct Crowd {
    broker: Broker,
    receivers: Vec<ConnectionId>,
    publisher: ConnectionId,
    other: ConnectionId,
}

impl Crowd {
    fn new(options: Options) -> Self {
        let is_stored = options.durability != Durability::None;
        let mut broker = Broker::new(options, NOW);
        let mut connect = |number: u32, client_id: &str, clean_start: bool| {
            connected(&mut broker, number, Connect { clean_start, ..connect311(client_id) })
        };
        let publisher = connect(1, "publisher", true);
        let other = connect(2, "other", true);
        let receivers: Vec<ConnectionId> = (0..RECEIVERS as u32)
            .map(|number| connect(3 + number, &format!("r{number}"), !is_stored))
            .collect();
        for id in &receivers {
            say(&mut broker, *id, &subscribe_bytes(PROTOCOL, "all/+", QoS::AtLeastOnce));
            turns(&mut broker);
            assert_eq!(hear(&mut broker, *id).len(), 1);
        }
        Self { broker, receivers, publisher, other }
    }

    /// With so many subscriptions each that one turn has no time to list them all: that takes its own and `LISTING_TURNS`.
    fn overlapping(options: Options) -> Self {
        let mut crowd = Self::new(options);
        for id in crowd.receivers.clone() {
            crowd.subscribe(id, QoS::AtLeastOnce);
        }
        crowd
    }

    /// Subscribes to everything that the receivers are subscribed to then.
    fn subscribe(&mut self, id: ConnectionId, qos: QoS) {
        for filter in FILTERS {
            say(&mut self.broker, id, &subscribe_bytes(PROTOCOL, filter, qos));
            hear(&mut self.broker, id);
        }
    }

    /// How many of its receivers have a message since they were asked last, which has this payload.
    fn heard(&mut self, payload: &[u8]) -> usize {
        let Self { broker, receivers, .. } = self;
        let mut count = 0;
        for id in receivers {
            for heard in hear(broker, *id) {
                if let Packet::Publish(publish) = heard.packet() {
                    assert_eq!(publish.payload, payload);
                    count += 1;
                }
            }
        }
        count
    }

    fn publish(&mut self, from: ConnectionId, topic: &str, payload: &[u8]) {
        let packet = publish(topic, QoS::AtLeastOnce, payload);
        say(&mut self.broker, from, &bytes_of(&packet, PROTOCOL));
        self.broker.check_invariants();
    }

    /// What a client was told, without what it was sent.
    fn answers(&mut self, id: ConnectionId) -> usize {
        let is_puback = |packet: Packet<'_>| matches!(packet, Packet::Puback(_));
        hear(&mut self.broker, id).iter().filter(|heard| is_puback(heard.packet())).count()
    }

    fn turn(&mut self) {
        self.broker.handle_timeout(NOW);
        self.broker.check_invariants();
    }
}

#[test]
fn its_sender_waits_for_the_last_copy_and_nobody_else() {
    let mut crowd = Crowd::new(options());
    let (publisher, other) = (crowd.publisher, crowd.other);
    crowd.publish(publisher, "all/1", b"to all");
    assert_eq!((crowd.heard(b"to all"), crowd.answers(publisher)), (STEPS_PER_TURN, 0));
    assert!(!crowd.broker.wants_input(publisher) && crowd.broker.is_fanning_out());
    // Another topic, a ping, and a subscription that comes too late for the message.
    crowd.publish(other, "one", b"to none");
    assert_eq!(crowd.answers(other), 1);
    say(&mut crowd.broker, other, &bytes_of(&Packet::Pingreq, PROTOCOL));
    assert_eq!(hear(&mut crowd.broker, other)[0].packet(), Packet::Pingresp);
    say(&mut crowd.broker, other, &subscribe_bytes(PROTOCOL, "all/1", QoS::AtLeastOnce));
    assert_eq!(hear(&mut crowd.broker, other).len(), 1);
    crowd.turn();
    assert_eq!((crowd.heard(b"to all"), crowd.answers(publisher)), (STEPS_PER_TURN, 0));
    assert_eq!(turns(&mut crowd.broker), TURNS - 1);
    assert_eq!((crowd.heard(b"to all"), crowd.answers(publisher)), (RECEIVERS - 2 * STEPS_PER_TURN, 1));
    assert_eq!(hear(&mut crowd.broker, other), []);
    assert_eq!((crowd.broker.poll_resume(), crowd.broker.poll_resume()), (Some(publisher), None));
    assert!(crowd.broker.wants_input(publisher) && !crowd.broker.is_fanning_out());
}

/// One to as many waits, and so does one to the same topic however few want it meanwhile.
#[test]
fn what_would_overtake_it_waits_as_if_it_were_in_the_socket() {
    for (topic, stays) in [("all/1", true), ("all/1", false), ("all/2", true)] {
        let mut crowd = Crowd::new(options());
        let (publisher, other) = (crowd.publisher, crowd.other);
        crowd.publish(publisher, "all/1", b"first");
        let left = if stays { RECEIVERS } else { 1 };
        for id in &crowd.receivers[left..] {
            say(&mut crowd.broker, *id, &unsubscribe_bytes("all/+"));
        }
        crowd.publish(other, topic, b"second");
        assert!(!crowd.broker.wants_input(other), "{topic}");
        assert_eq!(crowd.heard(b"first"), STEPS_PER_TURN);
        for _ in 0..TURNS {
            crowd.turn();
        }
        assert_eq!((crowd.answers(publisher), crowd.answers(other)), (1, 0));
        assert_eq!(crowd.heard(b"first"), RECEIVERS - STEPS_PER_TURN);
        turns(&mut crowd.broker);
        assert_eq!((crowd.heard(b"second"), crowd.answers(other)), (left, 1));
        assert!(crowd.broker.wants_input(other));
    }
}

/// What a client published before it was taken over comes before what it publishes after, on whatever topic
/// [MQTT-4.6.0-6].
#[test]
fn a_client_does_not_overtake_itself() {
    let mut crowd = Crowd::new(options());
    let stored = Connect { clean_start: false, ..connect311("moving") };
    let before = connected(&mut crowd.broker, 100, stored);
    crowd.publish(before, "all/1", b"before");
    let after = ConnectionId { slot: 101, generation: 101 };
    crowd.broker.handle_open(NOW, after);
    say(&mut crowd.broker, after, &bytes_of(&Packet::Connect(stored), PROTOCOL));
    crowd.publish(after, "one", b"after");
    assert!(!crowd.broker.wants_input(after));
    assert_eq!(crowd.answers(after), 0);
    turns(&mut crowd.broker);
    assert_eq!(crowd.heard(b"before"), RECEIVERS, "it had been taken");
    assert_eq!(crowd.answers(after), 1, "the other PUBACK was for another connection");
}

#[test]
fn what_waits_is_gone_with_its_connection() {
    let mut crowd = Crowd::new(options());
    let (publisher, other) = (crowd.publisher, crowd.other);
    crowd.publish(publisher, "all/1", b"taken");
    crowd.publish(other, "all/1", b"not taken");
    crowd.broker.handle_lost(NOW, publisher, false);
    crowd.broker.handle_lost(NOW, other, false);
    turns(&mut crowd.broker);
    assert_eq!(crowd.heard(b"taken"), RECEIVERS);
    crowd.broker.check_invariants();
}

/// Of many who wait, for one topic or another, in whatever order they go.
#[test]
fn what_waits_of_those_who_stay_is_taken_in_its_order() {
    const PUBLISHERS: u32 = 24;
    let mut crowd = Crowd::new(options());
    crowd.publish(crowd.publisher, "all/1", b"");
    let names: Vec<String> = (0..PUBLISHERS).map(|number| format!("p{number}")).collect();
    let publishers: Vec<ConnectionId> = (100..)
        .zip(&names)
        .map(|(number, name)| connected(&mut crowd.broker, number, connect311(name)))
        .collect();
    for (number, id) in publishers.iter().enumerate() {
        let qos = if number % 4 == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let topic = if number % 3 == 0 { "all/2" } else { "all/1" };
        say(&mut crowd.broker, *id, &bytes_of(&publish(topic, qos, &[number as u8]), PROTOCOL));
        crowd.broker.check_invariants();
    }
    let dropped = crowd.broker.metrics().dropped[DropReason::SessionEnded as usize];
    for step in 0..publishers.len() {
        let number = step * 7 % publishers.len();
        if !number.is_multiple_of(5) {
            crowd.broker.handle_lost(NOW, publishers[number], false);
            crowd.broker.check_invariants();
        }
    }
    let lost_at_qos_0 = (0..publishers.len())
        .filter(|number| number.is_multiple_of(4) && !number.is_multiple_of(5))
        .count() as u64;
    assert_eq!(crowd.broker.metrics().dropped[DropReason::SessionEnded as usize], dropped + lost_at_qos_0);
    turns(&mut crowd.broker);
    for id in &crowd.receivers {
        let payloads: Vec<Vec<u8>> = hear(&mut crowd.broker, *id)
            .iter()
            .filter_map(|heard| match heard.packet() {
                Packet::Publish(publish) => Some(publish.payload.to_vec()),
                _ => None,
            })
            .collect();
        assert_eq!(payloads, [vec![], vec![0], vec![5], vec![10], vec![15], vec![20]]);
    }
    assert!(crowd.broker.wants_input(publishers[0]) && crowd.broker.wants_input(publishers[20]));
}

/// Those who end meanwhile get nothing, and those who come meanwhile are somebody else.
#[test]
fn its_receivers_are_those_of_the_moment_it_was_taken() {
    let mut crowd = Crowd::new(options());
    let publisher = crowd.publisher;
    crowd.publish(publisher, "all/1", b"to all");
    let gone = crowd.receivers.pop().expect("there are some");
    crowd.broker.handle_lost(NOW, gone, false);
    assert_eq!(crowd.broker.poll_close(), Some(gone));
    crowd.broker.handle_closed(gone);
    let come = connected(&mut crowd.broker, 100, connect311("come"));
    say(&mut crowd.broker, come, &subscribe_bytes(PROTOCOL, "all/1", QoS::AtLeastOnce));
    turns(&mut crowd.broker);
    assert_eq!((crowd.heard(b"to all"), hear(&mut crowd.broker, come).len()), (RECEIVERS - 1, 1));
    assert_eq!(crowd.broker.status().sessions, RECEIVERS + 2);
}

/// A will does not overtake, and who publishes to its topic afterwards does not overtake it, however few want it by then.
#[test]
fn a_will_to_the_same_topic_comes_behind_it() {
    for stays in [true, false] {
        let mut crowd = Crowd::new(options());
        let (publisher, other) = (crowd.publisher, crowd.other);
        let connect = Connect { will: will("all/1", b"will"), ..connect311("dying") };
        let dying = connected(&mut crowd.broker, 100, connect);
        crowd.publish(publisher, "all/1", b"live");
        crowd.broker.handle_lost(NOW, dying, true);
        crowd.broker.check_invariants();
        let left = if stays { RECEIVERS } else { 1 };
        for id in &crowd.receivers[left..] {
            say(&mut crowd.broker, *id, &unsubscribe_bytes("all/+"));
        }
        for _ in 0..TURNS {
            crowd.turn();
        }
        assert!(!crowd.broker.is_fanning_out());
        assert_eq!((crowd.heard(b"live"), crowd.answers(publisher)), (RECEIVERS, 1));
        crowd.publish(other, "all/1", b"late");
        assert!(!crowd.broker.wants_input(other));
        turns(&mut crowd.broker);
        for id in crowd.receivers[..left].iter().copied() {
            let heard = hear(&mut crowd.broker, id);
            let payloads: Vec<&[u8]> = heard.iter().map(|heard| heard.publish().payload).collect();
            assert_eq!(payloads, [b"will".as_slice(), b"late"]);
        }
        assert_eq!(crowd.answers(other), 1);
    }
}

/// Wills that are due at once take turns like everything else that goes to many.
#[test]
fn wills_to_many_have_a_turn_each() {
    const WILLS: u32 = 5;
    let mut crowd = Crowd::new(options());
    let delay = PropertyList::from_iter([Property::WillDelaySecs(10)]);
    for number in 0..WILLS {
        let id = ConnectionId { slot: 100 + number, generation: 1 };
        crowd.broker.handle_open(NOW, id);
        let mut testament = will("all/1", b"will").expect("there is one");
        testament.properties = delay.as_properties();
        let expiry = PropertyList::from_iter([Property::SessionExpirySecs(100)]);
        let client_id = format!("d{number}");
        let connect = Connect {
            protocol: Protocol::Mqtt5,
            will: Some(testament),
            properties: expiry.as_properties(),
            ..connect311(&client_id)
        };
        let bytes = bytes_of(&Packet::Connect(connect), Protocol::Mqtt5);
        say(&mut crowd.broker, id, &bytes);
        crowd.broker.handle_lost(NOW, id, true);
    }
    let due = NOW + Duration::from_secs(10);
    let mut most = 0;
    while crowd.broker.poll_timeout().is_some_and(|at| at <= due) {
        while crowd.broker.poll_flush().is_some() {}
        let before = crowd.broker.copies();
        crowd.broker.handle_timeout(due);
        crowd.broker.check_invariants();
        most = most.max(crowd.broker.copies() - before);
    }
    assert_eq!(crowd.heard(b"will"), RECEIVERS * WILLS as usize);
    // Those of one that begins, and those of one that goes on.
    assert!(most as usize <= 2 * STEPS_PER_TURN, "{most} copies in one turn");
}

#[test]
fn its_copies_are_stored_all_or_none() {
    for durability in [Durability::BeforeReply, Durability::AfterReply] {
        let mut crowd = Crowd::new(Options { durability, ..options() });
        let (publisher, other) = (crowd.publisher, crowd.other);
        while let Some(batch) = crowd.broker.poll_journal(NOW) {
            crowd.broker.handle_stored(NOW, batch.last());
        }
        crowd.publish(publisher, "all/1", b"to all");
        crowd.publish(other, "all/2", b"next");
        for _ in 0..TURNS {
            assert!(crowd.broker.poll_journal(NOW).is_none());
            crowd.turn();
        }
        // Between two of them there is a turn with a batch.
        let batch = crowd.broker.poll_journal(NOW).expect("it is whole");
        let is_told = durability == Durability::AfterReply;
        let pubacks = |crowd: &mut Crowd| {
            let outbox = crowd.broker.outbox(publisher).expect("it is connected");
            !outbox.is_held() && !outbox.is_empty()
        };
        assert_eq!(pubacks(&mut crowd), is_told);
        crowd.broker.handle_stored(NOW, batch.last());
        assert!(pubacks(&mut crowd));
        crowd.turn();
        assert!(crowd.broker.is_fanning_out() && crowd.broker.poll_journal(NOW).is_none());
        turns(&mut crowd.broker);
    }
}

/// A client has published to all what is of use for a second.
fn expiring(crowd: &mut Crowd) -> ConnectionId {
    let id = ConnectionId { slot: 100, generation: 1 };
    crowd.broker.handle_open(NOW, id);
    let connect = Connect { protocol: Protocol::Mqtt5, ..connect311("five") };
    let bytes = bytes_of(&Packet::Connect(connect), Protocol::Mqtt5);
    say(&mut crowd.broker, id, &bytes);
    let expiry = PropertyList::from_iter([Property::MessageExpirySecs(1)]);
    let packet = Packet::Publish(Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "all/1",
        packet_id: Some(PacketId::FIRST),
        properties: expiry.as_properties(),
        payload: b"short",
    });
    say(&mut crowd.broker, id, &bytes_of(&packet, Protocol::Mqtt5));
    id
}

/// What nobody wants any more is not copied any more [MQTT5-3.3.2-5].
#[test]
fn it_can_expire_before_its_last_copy() {
    let mut crowd = Crowd::new(options());
    let id = expiring(&mut crowd);
    crowd.broker.handle_timeout(Instant(NOW.0 + 1_000));
    assert!(!crowd.broker.is_fanning_out() && crowd.broker.wants_input(id));
    assert_eq!(crowd.heard(b"short"), STEPS_PER_TURN);
    let expired = crowd.broker.metrics().dropped[DropReason::Expired as usize];
    assert_eq!(expired as usize, RECEIVERS - STEPS_PER_TURN);
}

#[test]
fn a_server_that_stops_finishes_it() {
    let mut crowd = Crowd::new(options());
    let publisher = crowd.publisher;
    crowd.publish(publisher, "all/1", b"to all");
    crowd.broker.handle_shutdown(NOW);
    assert_eq!(crowd.heard(b"to all"), RECEIVERS);
    assert_eq!(crowd.answers(publisher), 1);
}

/// Wills go to everybody before the server closes everybody, those that wait too.
#[test]
fn wills_of_a_server_that_stops_reach_all() {
    let mut crowd = Crowd::new(options());
    let (publisher, other) = (crowd.publisher, crowd.other);
    let mut dying = Vec::new();
    for number in 0..3 {
        let client_id = format!("d{number}");
        let connect = Connect { will: will("all/1", b"same"), ..connect311(&client_id) };
        dying.push(connected(&mut crowd.broker, 100 + number, connect));
    }
    crowd.publish(publisher, "all/2", b"same");
    crowd.publish(other, "all/3", b"not taken");
    crowd.broker.handle_lost(NOW, dying[0], true);
    crowd.broker.handle_lost(NOW, dying[1], true);
    assert_eq!(crowd.heard(b"same"), STEPS_PER_TURN);
    crowd.broker.handle_shutdown(NOW);
    crowd.broker.check_invariants();
    assert_eq!(crowd.heard(b"same"), 4 * RECEIVERS - STEPS_PER_TURN);
    assert_eq!((crowd.answers(publisher), crowd.answers(other)), (1, 0));
}

/// What the broker tells about itself takes turns too, and while it does no later values pile up behind it.
#[test]
fn sys_topics_take_their_turns() {
    let interval = Duration(10);
    // Their own names have as many levels as they need.
    let topic_levels_max = 3;
    let mut crowd = Crowd::new(Options { sys_interval: Some(interval), topic_levels_max, ..options() });
    for id in crowd.receivers.clone() {
        say(&mut crowd.broker, id, &subscribe_bytes(PROTOCOL, "$SYS/#", QoS::AtMostOnce));
        turns(&mut crowd.broker);
        hear(&mut crowd.broker, id);
    }
    let mut uptimes = 0;
    for turn in 1..=200 {
        let before = crowd.broker.copies();
        // Twice the interval in each of its turns.
        crowd.broker.handle_timeout(Instant(NOW.0 + turn * 2 * interval.0));
        crowd.broker.check_invariants();
        let most = crowd.broker.copies() - before;
        assert!(most as usize <= 2 * STEPS_PER_TURN, "{most} copies in one turn");
        for id in crowd.receivers.clone() {
            let heard = hear(&mut crowd.broker, id);
            let mut topics = heard.iter().map(|heard| heard.publish().topic);
            uptimes += usize::from(topics.any(|topic| topic == "$SYS/broker/uptime"));
        }
    }
    assert!(uptimes >= 5 * RECEIVERS, "{uptimes}");
    let bytes = crowd.broker.status().message_bytes;
    assert!(bytes < 10_000, "{bytes} bytes wait");
}

/// A will is on its way to all, and so many wait behind it, which are more than a turn has steps.
fn with_waiting_wills(wills: u32, payload: &[u8]) -> Crowd {
    assert!(wills > STEPS_PER_TURN as u32);
    let mut crowd = Crowd::new(options());
    let dying: Vec<ConnectionId> = (0..=wills)
        .map(|number| {
            let client_id = format!("d{number}");
            let connect = Connect { will: will("all/1", payload), ..connect311(&client_id) };
            connected(&mut crowd.broker, 100 + number, connect)
        })
        .collect();
    for id in dying {
        crowd.broker.handle_lost(NOW, id, true);
        assert_eq!(crowd.broker.poll_close(), Some(id));
        crowd.broker.handle_closed(id);
    }
    crowd
}

/// Who comes and goes with a will leaves no more of them than there is room for, all of them arrive, and no turn is longer for
/// it: it is not read before those have arrived that came before it.
#[test]
fn waiting_wills_do_not_pile_up() {
    const WILLS: u32 = 300;
    let mut crowd = Crowd::new(options());
    let before = crowd.broker.status().message_bytes;
    let payload = [7; 1_000];
    let (mut most, mut longest, mut heard, mut kept_back) = (0, 0, 0, 0);
    for number in 0..WILLS {
        let id = ConnectionId { slot: 100 + number, generation: number };
        crowd.broker.handle_open(NOW, id);
        kept_back += u32::from(!crowd.broker.wants_input(id));
        while !crowd.broker.wants_input(id) {
            let copies = crowd.broker.copies();
            crowd.turn();
            longest = longest.max(crowd.broker.copies() - copies);
            heard += crowd.heard(&payload);
            while let Some(resumed) = crowd.broker.poll_resume() {
                assert_eq!(resumed, id);
            }
        }
        let connect = Connect { will: will("all/1", &payload), ..connect311("again") };
        say(&mut crowd.broker, id, &bytes_of(&Packet::Connect(connect), PROTOCOL));
        crowd.broker.handle_lost(NOW, id, true);
        assert_eq!(crowd.broker.poll_close(), Some(id));
        crowd.broker.handle_closed(id);
        crowd.broker.check_invariants();
        most = most.max(crowd.broker.status().message_bytes - before);
    }
    let waiting = most as usize / payload.len();
    assert!((STEPS_PER_TURN..STEPS_PER_TURN + 4).contains(&waiting), "{most} bytes");
    assert!(longest as usize <= 2 * STEPS_PER_TURN, "{longest} copies in one turn");
    assert!((20..WILLS).contains(&kept_back), "{kept_back}");
    turns(&mut crowd.broker);
    while let more @ 1.. = crowd.heard(&payload) {
        heard += more;
    }
    assert_eq!(heard, WILLS as usize * RECEIVERS);
}

/// A handshake may take no longer because wills have to go before, or who has given up would be taken in all the same, and leave one
/// more will.
#[test]
fn who_waits_for_wills_for_too_long_is_closed_unread() {
    let mut crowd = with_waiting_wills(100, b"will");
    let timeout = crowd.broker.options().handshake_timeout;
    let id = ConnectionId { slot: 200, generation: 1 };
    crowd.broker.handle_open(NOW, id);
    assert!(crowd.broker.is_kept_back(id) && !crowd.broker.wants_input(id));
    crowd.broker.handle_timeout(NOW + Duration(timeout.0 - 1));
    assert!(crowd.broker.is_kept_back(id));
    while crowd.broker.is_kept_back(id) {
        while crowd.broker.poll_flush().is_some() {}
        crowd.broker.handle_timeout(NOW + timeout + Duration(1_000));
        crowd.broker.check_invariants();
    }
    assert_eq!((crowd.broker.poll_close(), crowd.broker.poll_resume()), (Some(id), None));
    crowd.broker.handle_closed(id);
    turns(&mut crowd.broker);
    assert_eq!(crowd.broker.poll_resume(), None);
}

/// A connection that ends while it waits for wills leaves nothing behind, and is not named again.
#[test]
fn who_waits_for_wills_may_go() {
    let mut crowd = with_waiting_wills(5, b"will");
    let ids = [200, 201].map(|slot| ConnectionId { slot, generation: 1 });
    ids.iter().for_each(|id| crowd.broker.handle_open(NOW, *id));
    assert!(ids.iter().all(|id| !crowd.broker.wants_input(*id)));
    crowd.broker.handle_lost(NOW, ids[0], false);
    assert_eq!(crowd.broker.poll_close(), Some(ids[0]));
    crowd.broker.handle_closed(ids[0]);
    crowd.broker.check_invariants();
    turns(&mut crowd.broker);
    assert_eq!((crowd.broker.poll_resume(), crowd.broker.poll_resume()), (Some(ids[1]), None));
    assert!(crowd.broker.wants_input(ids[1]) && !crowd.broker.is_kept_back(ids[1]));
}

/// Wills that wait are records, for the process may end before they are published.
#[test]
fn a_will_that_waits_is_stored() {
    let mut crowd = Crowd::new(Options { durability: Durability::BeforeReply, ..options() });
    let publisher = crowd.publisher;
    let connect = Connect { clean_start: false, will: will("all/1", b"will"), ..connect311("dying") };
    let dying = connected(&mut crowd.broker, 100, connect);
    crowd.publish(publisher, "all/1", b"live");
    crowd.broker.handle_lost(NOW, dying, true);
    for _ in 0..TURNS {
        assert!(crowd.broker.poll_journal(NOW).is_none());
        crowd.turn();
    }
    let mut records = BTreeMap::new();
    let mut store = |broker: &mut Broker, expected: usize| {
        while let Some(batch) = broker.poll_journal(NOW) {
            batch.apply(&mut records);
            broker.handle_stored(NOW, batch.last());
        }
        let keys = records.keys().map(|key| Key::read(key).expect("it is a key"));
        assert_eq!(keys.filter(|key| matches!(key, Key::DueWill(_))).count(), expected);
    };
    store(&mut crowd.broker, 1);
    turns(&mut crowd.broker);
    store(&mut crowd.broker, 0);
}

/// Two who publish to many without end are taken in turn, also where no receiver is there to hold them up.
#[test]
fn who_waits_is_not_passed_over() {
    let mut crowd = Crowd::new(Options { durability: Durability::AfterReply, ..options() });
    let (publisher, other) = (crowd.publisher, crowd.other);
    for id in crowd.receivers.clone() {
        crowd.broker.handle_lost(NOW, id, false);
    }
    let (mut answers, mut batches) = ([0, 0], 0);
    for _ in 0..100 {
        for (at, id) in [publisher, other].into_iter().enumerate() {
            if crowd.broker.wants_input(id) {
                crowd.publish(id, &format!("all/{at}"), b"again");
            }
        }
        crowd.turn();
        if let Some(batch) = crowd.broker.poll_journal(NOW) {
            crowd.broker.handle_stored(NOW, batch.last());
            batches += 1;
        }
        for (at, id) in [publisher, other].into_iter().enumerate() {
            answers[at] += crowd.answers(id);
        }
    }
    assert!(answers.iter().all(|count| *count >= 10), "{answers:?}");
    assert!(batches >= 20, "{batches} batches");
}

/// The sender is closed over the answer, and its will goes to as many: nothing of that meets the message that was under way.
#[test]
fn a_sender_that_cannot_be_answered_is_closed_behind_it() {
    for will_topic in ["all/1", "all/2"] {
        let mut crowd = Crowd::new(Options { durability: Durability::BeforeReply, ..options() });
        while let Some(batch) = crowd.broker.poll_journal(NOW) {
            crowd.broker.handle_stored(NOW, batch.last());
        }
        let connect = Connect { will: will(will_topic, b"last"), ..connect311("sender") };
        let sender = connected(&mut crowd.broker, 100, connect);
        let connect = Connect { will: will("all/1", b"last"), ..connect311("dying") };
        let dying = connected(&mut crowd.broker, 101, connect);
        say(&mut crowd.broker, sender, &subscribe_bytes(PROTOCOL, "all/1", QoS::AtMostOnce));
        while let Some(batch) = crowd.broker.poll_journal(NOW) {
            crowd.broker.handle_stored(NOW, batch.last());
        }
        crowd.publish(sender, "all/1", b"last");
        crowd.broker.handle_store_state(NOW, StoreState::Failing);
        crowd.broker.handle_lost(NOW, dying, true);
        crowd.broker.check_invariants();
        crowd.broker.handle_lost(NOW, sender, true);
        crowd.broker.check_invariants();
        // Another one may have the slot of its session, and none of its messages.
        let come = ConnectionId { slot: 102, generation: 1 };
        crowd.broker.handle_open(NOW, come);
        say(&mut crowd.broker, come, &bytes_of(&Packet::Connect(connect311("come")), PROTOCOL));
        turns(&mut crowd.broker);
        assert!(!crowd.broker.is_fanning_out());
        let heard = hear(&mut crowd.broker, come);
        assert!(
            matches!(heard[..], [ref connack] if matches!(connack.packet(), Packet::Connack(_))),
            "{heard:?}"
        );
    }
}

/// What waits is let go of with its connection, however long the message under way takes.
#[test]
fn what_waits_costs_nothing_when_its_sender_is_gone() {
    let mut crowd = Crowd::new(options());
    let publisher = crowd.publisher;
    crowd.publish(publisher, "all/1", b"to all");
    let before = crowd.broker.status().message_bytes;
    let late = connected(&mut crowd.broker, 100, connect311("late"));
    let packet = publish("all/2", QoS::AtMostOnce, &[7; 10_000]);
    say(&mut crowd.broker, late, &bytes_of(&packet, PROTOCOL));
    assert!(crowd.broker.status().message_bytes > before + 10_000);
    crowd.broker.handle_lost(NOW, late, false);
    assert_eq!(crowd.broker.status().message_bytes, before);
    assert_eq!(crowd.broker.metrics().dropped[DropReason::SessionEnded as usize], 1);
}

/// Who gets it is settled before it is known: whatever becomes of their subscriptions while they are listed.
#[test]
fn its_receivers_are_those_of_the_moment_it_was_taken_also_if_listing_them_takes_turns() {
    for listing_turns in 0..=LISTING_TURNS {
        let mut crowd = Crowd::overlapping(options());
        let (publisher, other) = (crowd.publisher, crowd.other);
        crowd.publish(publisher, "all/1", b"to all");
        for _ in 0..listing_turns {
            crowd.turn();
        }
        assert_eq!((crowd.heard(b"to all"), crowd.answers(publisher)), (0, 0));
        assert!(!crowd.broker.wants_input(publisher) && crowd.broker.is_fanning_out());
        crowd.publish(other, "$one", b"to none");
        assert_eq!(crowd.answers(other), 1);
        // Some are no more subscribed, or at another QoS, or end, the oldest and the newest of them; some come.
        let [first, second, third, .., seventh, eighth, ninth, last] = crowd.receivers[..] else { panic!() };
        for id in [first, last] {
            let mut bytes = Vec::new();
            encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &FILTERS);
            say(&mut crowd.broker, id, &bytes);
            crowd.broker.check_invariants();
        }
        for id in [second, ninth] {
            crowd.subscribe(id, QoS::AtMostOnce);
            crowd.broker.check_invariants();
        }
        for id in [third, eighth] {
            crowd.broker.handle_lost(NOW, id, false);
            assert_eq!(crowd.broker.poll_close(), Some(id));
            crowd.broker.handle_closed(id);
        }
        let come: Vec<ConnectionId> = (0..4)
            .map(|number| connected(&mut crowd.broker, 100 + number, connect311(&format!("c{number}"))))
            .collect();
        come.iter().for_each(|id| crowd.subscribe(*id, QoS::AtLeastOnce));
        turns(&mut crowd.broker);
        for id in [second, seventh, ninth] {
            let heard = hear(&mut crowd.broker, id);
            assert_eq!(heard.len(), 1);
            assert_eq!(heard[0].publish().qos, QoS::AtLeastOnce, "as it was granted then");
        }
        assert_eq!((crowd.heard(b"to all"), crowd.answers(publisher)), (RECEIVERS - 2 - 3, 1));
        assert!(come.iter().all(|id| hear(&mut crowd.broker, *id).is_empty()));
        assert_eq!(crowd.broker.status().sessions, RECEIVERS + 4);
    }
}

/// A turn lists receivers or makes copies, and the store gets nothing before the last of them.
#[test]
fn its_turns_are_counted_where_its_receivers_are_listed() {
    let mut crowd = Crowd::overlapping(Options { durability: Durability::BeforeReply, ..options() });
    let publisher = crowd.publisher;
    for again in [false, true] {
        crowd.publish(publisher, "all/1", b"to all");
        // The second time it is known who they are.
        let turns = if again { TURNS } else { LISTING_TURNS + TURNS + 1 };
        for _ in 0..turns {
            assert!(crowd.broker.is_fanning_out() && crowd.broker.poll_journal(NOW).is_none());
            let before = crowd.broker.copies();
            crowd.turn();
            assert!(crowd.broker.copies() - before <= STEPS_PER_TURN as u64);
        }
        assert!(!crowd.broker.is_fanning_out());
        assert_eq!((crowd.heard(b"to all"), crowd.answers(publisher)), (RECEIVERS, 1));
    }
}

/// Whatever has it brought to its end before its turn.
#[test]
fn it_is_finished_also_while_its_receivers_are_listed() {
    for listing_turns in 0..=LISTING_TURNS {
        let begun = || {
            let mut crowd = Crowd::overlapping(options());
            let connect = Connect { will: will("all/1", b"will"), ..connect311("dying") };
            let dying = connected(&mut crowd.broker, 100, connect);
            let publisher = crowd.publisher;
            crowd.publish(publisher, "all/1", b"live");
            for _ in 0..listing_turns {
                crowd.turn();
            }
            (crowd, dying)
        };
        let heard_both = |crowd: &mut Crowd| {
            for id in crowd.receivers.clone() {
                let heard = hear(&mut crowd.broker, id);
                let payloads: Vec<&[u8]> = heard.iter().map(|heard| heard.publish().payload).collect();
                assert_eq!(payloads, [b"live".as_slice(), b"will"]);
            }
        };
        let (mut crowd, dying) = begun();
        crowd.broker.handle_lost(NOW, dying, true);
        crowd.broker.check_invariants();
        turns(&mut crowd.broker);
        heard_both(&mut crowd);
        let (mut crowd, _) = begun();
        crowd.broker.handle_shutdown(NOW);
        heard_both(&mut crowd);
        let (mut crowd, _) = begun();
        let publisher = crowd.publisher;
        crowd.broker.handle_lost(NOW, publisher, false);
        crowd.broker.check_invariants();
        turns(&mut crowd.broker);
        assert_eq!(crowd.heard(b"live"), RECEIVERS, "it had been taken");
    }
}

/// All who would have got it are counted [MQTT5-3.3.2-5].
#[test]
fn it_can_expire_while_its_receivers_are_listed() {
    let mut crowd = Crowd::overlapping(options());
    let id = expiring(&mut crowd);
    while crowd.broker.is_fanning_out() {
        crowd.broker.handle_timeout(Instant(NOW.0 + 1_000));
        crowd.broker.check_invariants();
    }
    assert!(crowd.broker.wants_input(id));
    assert_eq!(crowd.heard(b"short"), 0);
    let expired = crowd.broker.metrics().dropped[DropReason::Expired as usize];
    assert_eq!(expired as usize, RECEIVERS);
}

/// A message to many groups takes turns too, whether they have to be listed or not. One that ends meanwhile has nothing of it,
/// nor has another one that is made in its place.
#[test]
fn many_groups_take_turns_as_well() {
    const GROUPS: usize = 6 * STEPS_PER_TURN;
    for (is_known, qos) in [(false, QoS::AtLeastOnce), (true, QoS::AtLeastOnce), (true, QoS::AtMostOnce)] {
        let mut crowd = Crowd::new(options());
        let publisher = crowd.publisher;
        let member = connected(&mut crowd.broker, 100, connect311("member"));
        let filter = |number: usize| format!("$share/g{number}/groups");
        for number in 0..GROUPS {
            say(&mut crowd.broker, member, &subscribe_bytes(PROTOCOL, &filter(number), QoS::AtLeastOnce));
        }
        if is_known {
            crowd.publish(publisher, "groups", b"first");
            turns(&mut crowd.broker);
            assert_eq!(crowd.answers(publisher), 1);
        }
        hear(&mut crowd.broker, member);
        let before = crowd.broker.copies();
        let packet = publish("groups", qos, b"to groups");
        say(&mut crowd.broker, publisher, &bytes_of(&packet, PROTOCOL));
        let at_once = if is_known { STEPS_PER_TURN as u64 } else { 0 };
        assert_eq!(crowd.broker.copies() - before, at_once);
        assert!(crowd.broker.is_fanning_out_to_groups() && !crowd.broker.wants_input(publisher));
        assert_eq!(crowd.broker.is_listing_groups(), !is_known);
        // Among the last ones, as the list has them; and another one takes the place of the first of both.
        for number in [GROUPS - 2, GROUPS - 1] {
            say(&mut crowd.broker, member, &unsubscribe_bytes(&filter(number)));
        }
        say(&mut crowd.broker, member, &subscribe_bytes(PROTOCOL, "$share/late/groups", QoS::AtLeastOnce));
        let mut most = 0;
        while crowd.broker.is_fanning_out() {
            let before = crowd.broker.copies();
            crowd.turn();
            most = most.max(crowd.broker.copies() - before);
        }
        assert_eq!(most as usize, STEPS_PER_TURN);
        let heard = hear(&mut crowd.broker, member);
        let is_publish = |packet: Packet<'_>| matches!(packet, Packet::Publish(_));
        assert_eq!(heard.iter().filter(|heard| is_publish(heard.packet())).count(), GROUPS - 2);
        assert_eq!(crowd.broker.metrics().dropped[DropReason::SessionEnded as usize], 2);
        assert_eq!(crowd.answers(publisher), usize::from(qos > QoS::AtMostOnce));
        crowd.broker.check_invariants();
    }
}

#[test]
fn a_subscription_made_meanwhile_gets_it_as_its_retained_message() {
    let mut crowd = Crowd::new(options());
    let (publisher, early, late) = (crowd.publisher, crowd.receivers[0], crowd.receivers[RECEIVERS - 1]);
    let Packet::Publish(publish) = publish("all/1", QoS::AtLeastOnce, b"kept") else { unreachable!() };
    let publish = Packet::Publish(Publish { retain: true, ..publish });
    say(&mut crowd.broker, publisher, &bytes_of(&publish, PROTOCOL));
    // One who has his copy, and one who has not.
    assert_eq!(crowd.heard(b"kept"), STEPS_PER_TURN);
    for id in [early, late] {
        for filter in ["+/1", "all/#"] {
            say(&mut crowd.broker, id, &subscribe_bytes(PROTOCOL, filter, QoS::AtLeastOnce));
        }
    }
    assert!(crowd.broker.is_fanning_out());
    turns(&mut crowd.broker);
    let mut retains = |id| {
        let heard = hear(&mut crowd.broker, id);
        let is_suback = |packet: Packet<'_>| matches!(packet, Packet::Suback(_));
        let messages = heard.iter().filter(|heard| !is_suback(heard.packet()));
        messages.map(|heard| heard.publish().retain).collect::<Vec<bool>>()
    };
    assert_eq!((retains(early), retains(late)), (vec![true; 2], vec![false, true, true]));
}

/// What a subscription has yet to get is not its message to many twice, where that is a later one than what was on its way when
/// the subscription was made.
#[test]
fn a_later_message_to_many_is_not_got_again_as_a_retained_one() {
    let mut crowd = Crowd::new(options());
    let publisher = crowd.publisher;
    let connect = Connect { clean_start: false, ..connect311("late") };
    let late = connected(&mut crowd.broker, 100, connect);
    // The last one to get a copy.
    say(&mut crowd.broker, late, &subscribe_bytes(PROTOCOL, "all/+", QoS::AtLeastOnce));
    turns(&mut crowd.broker);
    hear(&mut crowd.broker, late);
    let retain = |crowd: &mut Crowd, payload: &[u8]| {
        let Packet::Publish(publish) = publish("all/1", QoS::AtLeastOnce, payload) else { unreachable!() };
        let publish = Packet::Publish(Publish { retain: true, ..publish });
        say(&mut crowd.broker, publisher, &bytes_of(&publish, PROTOCOL));
        assert!(crowd.broker.is_fanning_out());
    };
    retain(&mut crowd, b"older");
    say(&mut crowd.broker, late, &subscribe_bytes(PROTOCOL, "+/1", QoS::AtLeastOnce));
    crowd.broker.handle_lost(NOW, late, false);
    turns(&mut crowd.broker);
    retain(&mut crowd, b"newer");
    turns(&mut crowd.broker);

    let back = ConnectionId { slot: 101, generation: 101 };
    crowd.broker.handle_open(NOW, back);
    say(&mut crowd.broker, back, &bytes_of(&Packet::Connect(connect), PROTOCOL));
    turns(&mut crowd.broker);
    let heard = hear(&mut crowd.broker, back);
    let messages: Vec<(String, bool)> =
        heard[1..].iter().map(|heard| (heard.message().1, heard.publish().retain)).collect();
    assert_eq!(messages, ["older", "newer"].map(|payload| (payload.to_owned(), false)));
}

#[test]
fn its_sender_is_told_if_all_who_are_listed_have_gone() {
    let mut crowd = Crowd::overlapping(options());
    let publisher = ConnectionId { slot: 100, generation: 100 };
    crowd.broker.handle_open(NOW, publisher);
    let connect = Packet::Connect(connect5("newer"));
    say(&mut crowd.broker, publisher, &bytes_of(&connect, Protocol::Mqtt5));
    hear_as(&mut crowd.broker, publisher, Protocol::Mqtt5);
    for id in crowd.receivers.clone() {
        crowd.broker.handle_lost(NOW, id, false);
    }
    let packet = publish("all/1", QoS::AtLeastOnce, b"to none");
    say(&mut crowd.broker, publisher, &bytes_of(&packet, Protocol::Mqtt5));
    assert!(crowd.broker.is_fanning_out(), "what they have left behind is still there");
    turns(&mut crowd.broker);
    let heard = hear_as(&mut crowd.broker, publisher, Protocol::Mqtt5);
    let Packet::Puback(puback) = heard[0].packet() else { panic!("a PUBACK") };
    assert_eq!(puback.reason, ReasonCode::NoMatchingSubscribers);
}

#[test]
fn messages_to_many_one_behind_the_other_do_not_keep_clients_from_being_sent_away() {
    let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
    let mut crowd = Crowd::new(Options { redirect, ..options() });
    // The last one to be sent away, who publishes as soon as it is read.
    let publisher = connected(&mut crowd.broker, 100, connect311("the last"));
    crowd.publish(publisher, "all/1", b"again");
    assert!(crowd.broker.handle_drain(NOW));
    let mut turns = 0;
    while crowd.broker.metrics().clients_connected > 1 {
        assert!(turns < 100, "they are sent away");
        turns += 1;
        crowd.turn();
        if crowd.broker.wants_input(publisher) {
            crowd.publish(publisher, "all/1", b"again");
        }
    }
    assert!(turns > RECEIVERS, "a few in each turn");
}

/// A will that waits is its client's own as long as that has a session, and nobody's when another one has its slot.
#[test]
fn a_will_that_waits_is_not_that_of_who_has_the_slot_of_its_session() {
    let mut crowd = Crowd::new(options());
    let publisher = crowd.publisher;
    let come = |crowd: &mut Crowd, number: u32, connect: Connect<'_>| {
        let id = ConnectionId { slot: number, generation: number };
        crowd.broker.handle_open(NOW, id);
        say(&mut crowd.broker, id, &bytes_of(&Packet::Connect(connect), Protocol::Mqtt5));
        id
    };
    // Who wants nothing that it publishes itself.
    let subscribe = |crowd: &mut Crowd, id: ConnectionId| {
        let options = SubscriptionOptions { no_local: true, ..QoS::AtLeastOnce.into() };
        let mut bytes = Vec::new();
        let requests = [("all/+", options)];
        encode::subscribe(&mut bytes, Protocol::Mqtt5, PacketId::FIRST, Properties::NONE, &requests);
        say(&mut crowd.broker, id, &bytes);
        hear_as(&mut crowd.broker, id, Protocol::Mqtt5);
    };
    let will = |payload| will("all/1", payload).map(|will| Will { qos: QoS::AtLeastOnce, ..will });
    let expiry = PropertyList::from_iter([Property::SessionExpirySecs(3_600)]);
    let kept = Connect { properties: expiry.as_properties(), will: will(b"kept"), ..connect5("kept") };
    let kept = come(&mut crowd, 100, kept);
    let ending = come(&mut crowd, 101, Connect { will: will(b"ended"), ..connect5("ending") });
    subscribe(&mut crowd, kept);

    crowd.publish(publisher, "all/1", b"live");
    for id in [ending, kept] {
        crowd.broker.handle_lost(NOW, id, true);
    }
    while crowd.broker.is_fanning_out() {
        crowd.turn();
    }
    // Its slot is free, and the wills have yet to be taken.
    let newcomer = come(&mut crowd, 102, connect5("newcomer"));
    subscribe(&mut crowd, newcomer);
    turns(&mut crowd.broker);
    let heard = hear_as(&mut crowd.broker, newcomer, Protocol::Mqtt5);
    let messages: Vec<(String, String)> = heard.iter().map(Received::message).collect();
    assert_eq!(messages, ["ended", "kept"].map(|payload| ("all/1".to_owned(), payload.to_owned())));
    // The one who is away has got the message of the publisher, and the will of the other one.
    assert_eq!(crowd.broker.metrics().queued_messages, 2);
}

/// Between two messages to many the store gets its batch, also if who is sent away leaves the next one.
#[test]
fn a_store_gets_its_batches_while_wills_of_those_who_are_sent_away_go_to_many() {
    const WILLS: u32 = 5;
    let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
    let mut crowd = Crowd::new(Options { redirect, durability: Durability::BeforeReply, ..options() });
    for number in 0..WILLS {
        let client_id = format!("d{number}");
        let will = will("all/1", b"will").map(|will| Will { qos: QoS::AtLeastOnce, ..will });
        connected(&mut crowd.broker, 100 + number, Connect { will, ..connect311(&client_id) });
    }
    turns(&mut crowd.broker);
    assert!(crowd.broker.handle_drain(NOW));
    let (mut without, mut most, mut batches) = (0, 0, 0);
    while crowd.broker.metrics().clients_connected > 0 || crowd.broker.is_fanning_out() {
        crowd.turn();
        without += usize::from(crowd.broker.waiting_bytes() > 0);
        while let Some(batch) = crowd.broker.poll_journal(NOW) {
            crowd.broker.handle_stored(NOW, batch.last());
            (without, batches) = (0, batches + 1);
        }
        most = most.max(without);
        while let Some(id) = crowd.broker.poll_close() {
            crowd.broker.handle_closed(id);
        }
        assert!(batches < 100, "it comes to an end");
    }
    // The turns of one will, or of two that follow each other.
    assert!(most <= 2 * (1 + TURNS) && batches >= WILLS, "{most} turns without, {batches} batches");
}

/// Clients that are sent away one after the other leave wills, each of which reaches those who are still there, once, and is
/// kept or counted for the others.
#[test]
fn wills_of_clients_that_are_sent_away_reach_those_who_are_still_there() {
    // Behind these many of the ten.
    const BEFORE: [usize; 3] = [0, 4, RECEIVERS];
    const WILLS: [&str; 3] = ["all/first", "all/middle", "all/last"];
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
        let mut broker = Broker::new(Options { redirect, ..options() }, NOW);
        let (mut receivers, mut slot) = (Vec::new(), 0);
        for before in 0..=RECEIVERS {
            for (topic, _) in WILLS.into_iter().zip(BEFORE).filter(|(_, place)| *place == before) {
                let will = will(topic, b"sent away").map(|will| Will { qos, ..will });
                connected(&mut broker, slot, Connect { will, ..connect311(topic) });
                slot += 1;
            }
            if before < RECEIVERS {
                let client_id = format!("r{before}");
                let connect = Connect { clean_start: false, ..connect311(&client_id) };
                let id = connected(&mut broker, slot, connect);
                say(&mut broker, id, &subscribe_bytes(PROTOCOL, "all/+", qos));
                hear(&mut broker, id);
                receivers.push(id);
                slot += 1;
            }
        }
        turns(&mut broker);

        assert!(broker.handle_drain(NOW));
        let (mut heard, mut closed, mut turns_taken) = ([0; WILLS.len()], Vec::new(), 0);
        while broker.metrics().clients_connected > 0 || broker.is_fanning_out() {
            turns_taken += 1;
            assert!(turns_taken < 100, "it comes to an end");
            broker.handle_timeout(NOW);
            broker.check_invariants();
            for id in &receivers {
                for heard_now in hear(&mut broker, *id) {
                    let at = WILLS.iter().position(|topic| *topic == heard_now.publish().topic);
                    heard[at.expect("it is a will")] += 1;
                }
            }
            while let Some(id) = broker.poll_close() {
                broker.handle_closed(id);
                closed.push(id.slot);
            }
        }
        turns(&mut broker);
        assert!(closed.into_iter().eq(0..slot), "{qos:?}");
        // The first one reaches all, also those for whom it takes more turns than one.
        let there = BEFORE.map(|before| RECEIVERS - before);
        assert_eq!(heard, there, "{qos:?}");
        let absent = BEFORE.iter().sum::<usize>() as u64;
        let sent = there.iter().sum::<usize>() as u64;
        let metrics = broker.metrics();
        let counts = (metrics.dropped_total(), metrics.queued_messages, metrics.in_flight_messages);
        let expected = if qos == QoS::AtMostOnce { (absent, 0, 0) } else { (0, absent, sent) };
        assert_eq!(counts, expected, "{qos:?}");
    }
}

/// Of those who could be sent away in a turn, the others wait for the copies of the first one's will: one of them may be the
/// last to get it.
#[test]
fn nobody_else_is_sent_away_in_the_turn_in_which_a_will_to_many_is_published() {
    const STEPS: usize = 64;
    const OTHERS: u32 = 80;
    let redirect = Some(Redirect { server_reference: "other.example".into(), permanently: false });
    let mut broker = Broker::new(Options { redirect, steps_per_turn: STEPS, ..options() }, NOW);
    connected(&mut broker, 0, Connect { will: will("all/1", b"will"), ..connect311("dying") });
    let slots = (2..2 + OTHERS).chain([1]);
    let receivers: Vec<ConnectionId> = slots
        .map(|slot| {
            let id = connected(&mut broker, slot, connect311(&format!("r{slot}")));
            say(&mut broker, id, &subscribe_bytes(PROTOCOL, "all/+", QoS::AtMostOnce));
            hear(&mut broker, id);
            id
        })
        .collect();
    turns(&mut broker);
    assert!(broker.handle_drain(NOW));
    broker.handle_timeout(NOW);
    assert!(broker.is_fanning_out());
    turns(&mut broker);
    let mut heard = 0;
    for id in &receivers {
        let is_will = |received: &Received| matches!(received.packet(), Packet::Publish(_));
        heard += hear(&mut broker, *id).iter().filter(|received| is_will(received)).count();
    }
    assert_eq!(heard, receivers.len());
}

#[test]
fn a_copy_at_qos_0_that_is_dropped_leaves_the_retained_message_to_be_sent() {
    let mut crowd = Crowd::new(options());
    let publisher = crowd.publisher;
    // More than get their copies before the message is retained.
    let client_ids: Vec<String> = (0..=STEPS_PER_TURN).map(|number| format!("absent {number}")).collect();
    let connects = client_ids.iter().zip(100..);
    let connects = connects.map(|(id, number)| (number, Connect { clean_start: false, ..connect311(id) }));
    let absent: Vec<(ConnectionId, Connect<'_>)> =
        connects.map(|(number, connect)| (connected(&mut crowd.broker, number, connect), connect)).collect();
    let retain = |crowd: &mut Crowd, payload: &[u8]| {
        let Packet::Publish(publish) = publish("all/1", QoS::AtLeastOnce, payload) else { unreachable!() };
        let publish = Packet::Publish(Publish { retain: true, ..publish });
        say(&mut crowd.broker, publisher, &bytes_of(&publish, PROTOCOL));
        assert!(crowd.broker.is_fanning_out());
    };
    retain(&mut crowd, b"older");
    // Retained messages wait for the end of this one, and these clients do not.
    for (id, _) in &absent {
        say(&mut crowd.broker, *id, &subscribe_bytes(PROTOCOL, "all/#", QoS::AtMostOnce));
        crowd.broker.handle_lost(NOW, *id, false);
    }
    turns(&mut crowd.broker);
    let dropped = |crowd: &Crowd| crowd.broker.metrics().dropped[DropReason::AbsentAtQoS0 as usize];
    let dropped_before = dropped(&crowd);
    retain(&mut crowd, b"newer");
    turns(&mut crowd.broker);
    assert_eq!(dropped(&crowd), dropped_before + absent.len() as u64);
    for (ConnectionId { slot, .. }, connect) in absent {
        let back = ConnectionId { slot: 100 + slot, generation: 1 };
        crowd.broker.handle_open(NOW, back);
        say(&mut crowd.broker, back, &bytes_of(&Packet::Connect(connect), PROTOCOL));
        turns(&mut crowd.broker);
        let heard = hear(&mut crowd.broker, back);
        assert_eq!((heard.len(), heard[1].publish().retain), (2, true));
        assert_eq!(heard[1].message(), ("all/1".to_owned(), "newer".to_owned()));
    }
}
