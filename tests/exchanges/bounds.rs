//! Work that comes all at once, because the store, the clock or a message to many was waited for, and that is done a turn's worth at a
//! time all the same; and packets that count as more than one, against the core alone.

use broker::broker::options::Durability;
use broker::broker::{Broker, CloseReason, ConnectionId, Event, Options};
use broker::clock::Duration;
use broker::codec::packet::{Connect, Packet, QoS};
use broker::codec::{PacketId, Properties, ReasonCode, encode};

use crate::fixture::client::{Received, bytes_of, connect311, publish, subscribe_bytes};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, say, store, turns};

const STEPS_PER_TURN: usize = 64;

/// So many outboxes are let go in one call.
const OPENED: usize = STEPS_PER_TURN / 4;

/// Some turns' worth.
const CLIENTS: u32 = 4 * STEPS_PER_TURN as u32;

fn options() -> Options {
    Options { steps_per_turn: STEPS_PER_TURN, sys_interval: None, seed: 1, ..Options::default() }
}

fn stored_options() -> Options {
    Options { durability: Durability::BeforeReply, ..options() }
}

fn names() -> Vec<String> {
    (0..CLIENTS).map(|number| format!("client{number}")).collect()
}

fn kept(client_id: &str) -> Connect<'_> {
    Connect { clean_start: false, ..connect311(client_id) }
}

fn subscribe(broker: &mut Broker, id: ConnectionId, filter: &str, qos: QoS) {
    say(broker, id, &subscribe_bytes(PROTOCOL, filter, qos));
    turns(broker);
    hear(broker, id);
}

/// Clients whose CONNACK waits for the store, and what is to be stored for them.
fn held(broker: &mut Broker, names: &[String]) -> Vec<ConnectionId> {
    let ids: Vec<ConnectionId> =
        (10..).take(names.len()).map(|slot| ConnectionId { slot, generation: slot }).collect();
    for (id, name) in ids.iter().zip(names) {
        broker.handle_open(NOW, *id);
        say(broker, *id, &bytes_of(&Packet::Connect(kept(name)), PROTOCOL));
    }
    ids
}

fn flushed(broker: &mut Broker) -> usize {
    std::iter::from_fn(|| broker.poll_flush()).count()
}

#[test]
fn a_report_of_the_store_lets_go_of_very_many_outboxes_a_turn_s_worth_at_a_time() {
    let mut broker = Broker::new(stored_options(), NOW);
    let ids = held(&mut broker, &names());
    let batch = broker.poll_journal(NOW).expect("sessions are to be stored");
    // What waits for that was named, too.
    flushed(&mut broker);
    broker.handle_stored(NOW, batch.last());
    assert_eq!(flushed(&mut broker), OPENED);
    let mut opened = OPENED;
    while opened < ids.len() {
        assert!(broker.poll_timeout().is_some_and(|due| due <= NOW), "there is more to be done");
        broker.handle_timeout(NOW);
        broker.check_invariants();
        let more = flushed(&mut broker);
        assert_eq!(more, OPENED);
        opened += more;
    }
    assert!(ids.iter().all(|id| hear(&mut broker, *id).len() == 1));
    assert_eq!(turns(&mut broker), 0);
}

/// Who is let go in a later turn has what it waited for, even if the store fails meanwhile.
#[test]
fn nobody_is_closed_whose_records_are_stored() {
    let mut broker = Broker::new(stored_options(), NOW);
    let ids = held(&mut broker, &names());
    let batch = broker.poll_journal(NOW).expect("sessions are to be stored");
    broker.handle_stored(NOW, batch.last());
    let late = held_late(&mut broker);
    broker.handle_store_state(NOW, broker::broker::StoreState::Failing);
    broker.poll_journal(NOW);
    turns(&mut broker);
    let closed: Vec<(ConnectionId, CloseReason)> = std::iter::from_fn(|| broker.poll_event())
        .filter_map(|event| match event {
            Event::Closed { connection, reason, .. } => Some((connection, reason)),
            _ => None,
        })
        .collect();
    assert_eq!(closed, [(late, CloseReason::StoreFailed)]);
    let heard = |id: &ConnectionId| hear(&mut broker, *id).len();
    assert!(ids.iter().map(heard).all(|packets| packets == 1), "its CONNACK");
}

/// One more, behind the batch that was taken.
fn held_late(broker: &mut Broker) -> ConnectionId {
    let late = ConnectionId { slot: 5, generation: 5 };
    broker.handle_open(NOW, late);
    say(broker, late, &bytes_of(&Packet::Connect(kept("late")), PROTOCOL));
    late
}

/// What was stored for a client leaves before it, even if its turn had not come.
#[test]
fn who_is_closed_has_what_is_stored() {
    let mut broker = Broker::new(stored_options(), NOW);
    let ids = held(&mut broker, &names());
    let batch = broker.poll_journal(NOW).expect("sessions are to be stored");
    broker.handle_stored(NOW, batch.last());
    let late = held_late(&mut broker);
    broker.handle_shutdown(NOW);
    let ended: Vec<ConnectionId> = std::iter::from_fn(|| broker.poll_close()).collect();
    assert_eq!(ended.len(), ids.len() + 1);
    assert!(ids.iter().all(|id| hear(&mut broker, *id).len() == 1));
    assert_eq!(hear(&mut broker, late).len(), 0);
}

/// Publishers whose message has been acknowledged by all are let go before it is stored, and keep nobody waiting whose records are.
#[test]
fn those_whose_records_are_stored_do_not_wait_for_those_whose_records_are_not_needed() {
    let mut broker = Broker::new(Options { in_flight_max: 1_000, ..stored_options() }, NOW);
    let subscriber = connected(&mut broker, 1, kept("subscriber"));
    subscribe(&mut broker, subscriber, "t", QoS::AtLeastOnce);
    let names = names();
    let publishers: Vec<ConnectionId> =
        (10..).zip(&names).map(|(number, name)| connected(&mut broker, number, connect311(name))).collect();
    // While one batch is on its way all of them publish, which is acknowledged at once.
    let late = held_late(&mut broker);
    let batch = broker.poll_journal(NOW).expect("a session is to be stored");
    let message = bytes_of(&publish("t", QoS::AtLeastOnce, b"x"), PROTOCOL);
    let heard = |broker: &mut Broker, id: ConnectionId| {
        let outbox = broker.outbox(id).expect("it is connected");
        let mut slices = [std::io::IoSlice::new(&[]); 64];
        let filled = outbox.slices(&mut slices);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
        broker.handle_written(NOW, id, bytes.len(), false);
        Received::all(&bytes, PROTOCOL)
    };
    for id in &publishers {
        say(&mut broker, *id, &message);
        let received = heard(&mut broker, subscriber);
        let Packet::Publish(publish) = received[0].packet() else { panic!("{received:?}") };
        let mut bytes = Vec::new();
        encode::puback(&mut bytes, publish.packet_id.expect("of QoS 1"), ReasonCode::Success);
        say(&mut broker, subscriber, &bytes);
    }
    broker.handle_stored(NOW, batch.last());
    assert_eq!(heard(&mut broker, late).len(), 1, "first");
    let answered = |broker: &mut Broker| publishers.iter().map(|id| heard(broker, *id).len()).sum::<usize>();
    let mut all = answered(&mut broker);
    assert!(all < OPENED, "{all}");
    for _ in 0..publishers.len() / OPENED {
        assert!(broker.poll_timeout().is_some_and(|due| due <= NOW), "there is more to be done");
        broker.handle_timeout(NOW);
        broker.check_invariants();
        let more = answered(&mut broker);
        assert!(more <= OPENED);
        all += more;
    }
    assert_eq!(all, publishers.len(), "although nothing else was stored");
}

#[test]
fn publishers_that_waited_for_the_store_are_read_again_a_turn_s_worth_at_a_time() {
    let mut broker = Broker::new(Options { unstored_bytes_max: 10_000, ..stored_options() }, NOW);
    let subscriber = connected(&mut broker, 1, kept("subscriber"));
    subscribe(&mut broker, subscriber, "t", QoS::AtLeastOnce);
    broker.handle_lost(NOW, subscriber, false);
    store(&mut broker);
    let names = names();
    let publishers: Vec<ConnectionId> =
        (10..).zip(&names).map(|(number, name)| connected(&mut broker, number, connect311(name))).collect();
    while broker.poll_resume().is_some() {}
    let message = bytes_of(&publish("t", QoS::AtLeastOnce, &[b'x'; 10_000]), PROTOCOL);
    publishers.iter().for_each(|id| say(&mut broker, *id, &message));
    assert!(publishers.iter().all(|id| !broker.wants_input(*id)));
    let batch = broker.poll_journal(NOW).expect("much is to be stored");
    assert!(broker.poll_resume().is_none());
    broker.handle_stored(NOW, batch.last());
    let resumed = |broker: &mut Broker| std::iter::from_fn(|| broker.poll_resume()).count();
    for _ in 0..publishers.len() / STEPS_PER_TURN {
        assert_eq!(resumed(&mut broker), STEPS_PER_TURN);
        broker.handle_timeout(NOW);
        broker.check_invariants();
    }
    assert_eq!(resumed(&mut broker), 0);
    assert!(publishers.iter().all(|id| broker.wants_input(*id)));
}

/// A slow client of a tree whose topics change before it has got to them.
#[test]
fn topics_that_a_stream_would_have_passed_over_are_forgotten_a_turn_s_worth_at_a_time() {
    let topics: Vec<String> = (0..8 * STEPS_PER_TURN).map(|number| format!("t/{number}")).collect();
    for ends_with_session in [false, true] {
        let mut broker = Broker::new(Options { in_flight_max: 1, ..options() }, NOW);
        let publisher = connected(&mut broker, 1, connect311("publisher"));
        let set = |broker: &mut Broker, topic: &str| {
            let mut packet = publish(topic, QoS::AtLeastOnce, b"value");
            if let Packet::Publish(publish) = &mut packet {
                publish.retain = true;
            }
            say(broker, publisher, &bytes_of(&packet, PROTOCOL));
            hear(broker, publisher);
        };
        topics.iter().for_each(|topic| set(&mut broker, topic));
        let client = connected(&mut broker, 2, connect311("client"));
        subscribe(&mut broker, client, "t/#", QoS::AtLeastOnce);
        topics.iter().for_each(|topic| set(&mut broker, topic));
        turns(&mut broker);
        if ends_with_session {
            broker.handle_lost(NOW, client, false);
        } else {
            let mut bytes = Vec::new();
            encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &["t/#"]);
            say(&mut broker, client, &bytes);
        }
        broker.check_invariants();
        let in_turns = turns(&mut broker);
        assert!(in_turns >= topics.len() / STEPS_PER_TURN - 1, "{in_turns}");
    }
}

#[test]
fn what_a_message_to_many_has_kept_back_goes_on_a_turn_s_worth_at_a_time() {
    let mut broker = Broker::new(options(), NOW);
    let names = names();
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let ids: Vec<ConnectionId> =
        (10..).zip(&names).map(|(number, name)| connected(&mut broker, number, connect311(name))).collect();
    for id in &ids {
        subscribe(&mut broker, *id, "t", QoS::AtMostOnce);
    }
    say(&mut broker, publisher, &bytes_of(&publish("t", QoS::AtMostOnce, b"x"), PROTOCOL));
    assert!(broker.is_fanning_out());
    ids.iter().for_each(|id| broker.handle_lost(NOW, *id, false));
    let mut in_turns = 0;
    while broker.is_fanning_out() {
        broker.handle_timeout(NOW);
        broker.check_invariants();
        in_turns += 1;
    }
    assert!(in_turns < ids.len() / STEPS_PER_TURN + 2, "{in_turns}");
    assert!(turns(&mut broker) > 0, "slots are left to be freed");
}

/// Every topic of the broker's own goes to all of them.
#[test]
fn the_broker_s_own_topics_are_published_a_turn_s_worth_at_a_time() {
    const READERS: u32 = STEPS_PER_TURN as u32;
    let interval = Duration(1_000);
    let mut broker = Broker::new(Options { sys_interval: Some(interval), ..options() }, NOW);
    let readers: Vec<ConnectionId> = (10..10 + READERS)
        .map(|number| {
            let id = connected(&mut broker, number, connect311(&number.to_string()));
            subscribe(&mut broker, id, "$SYS/#", QoS::AtMostOnce);
            id
        })
        .collect();
    let due = NOW + interval;
    let (mut heard, mut in_turns) = (0, 0);
    while broker.poll_timeout().is_some_and(|at| at <= due) {
        let copies = broker.copies();
        broker.handle_timeout(due);
        broker.check_invariants();
        assert!(
            broker.copies() - copies <= 3 * u64::from(READERS),
            "as many as in two turns, and one topic more"
        );
        heard += hear(&mut broker, readers[0]).len();
        while broker.poll_flush().is_some() {}
        in_turns += 1;
        assert!(in_turns < 100, "it comes to an end");
    }
    assert!(heard > 10, "{heard}");
    assert!(in_turns > heard / 3, "{in_turns}");
}

/// What costs more than the packet shows: filters that are no longer wanted, and many that match one topic.
#[test]
fn filters_are_work_of_the_turn() {
    let mut broker = Broker::new(options(), NOW);
    let client = connected(&mut broker, 1, connect311("client"));
    let publisher = connected(&mut broker, 2, connect311("publisher"));
    // All that match a topic of eight levels: each is as the topic has it, or a wildcard.
    let filters: Vec<String> = (0..64_u32)
        .map(|number| {
            let level = |at: u32| if number >> at & 1 == 0 { "a" } else { "+" };
            format!("{}/{}", (0..6).map(level).collect::<Vec<_>>().join("/"), "+")
        })
        .collect();
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), QoS::AtMostOnce.into())).collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    let work = broker.work();
    say(&mut broker, client, &bytes);
    assert!(broker.work() - work >= 64, "subscribed to");
    turns(&mut broker);
    let publish_to = |broker: &mut Broker, topic: &str| {
        let work = broker.work();
        say(broker, publisher, &bytes_of(&publish(topic, QoS::AtMostOnce, b""), PROTOCOL));
        broker.work() - work
    };
    assert!(publish_to(&mut broker, "a/a/a/a/a/a/1") >= 2 * 64 / 4, "compared and listed");
    assert_eq!(publish_to(&mut broker, "a/a/a/a/a/a/1"), 0, "known");
    assert!(publish_to(&mut broker, "other") <= 1, "of nobody, which the first level tells");
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &filters);
    let work = broker.work();
    say(&mut broker, client, &bytes);
    assert_eq!(broker.work() - work, 64, "not any more");
}

#[test]
fn connections_are_work_of_the_turn() {
    let mut broker = Broker::new(options(), NOW);
    let work = broker.work();
    let client = connected(&mut broker, 1, connect311("client"));
    assert_eq!(broker.work() - work, 8);
    broker.handle_lost(NOW, client, false);
    assert_eq!(broker.work() - work, 8 + 16);
}
