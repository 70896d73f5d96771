//! Members of groups of whom very many have no room, or come and go, against the core alone: a message is given to one who can take
//! it, however many others are looked at for that, and nobody is looked for in one turn without end.

use broker::broker::{Broker, ConnectionId, Options};
use broker::codec::packet::{Ack, Connect, Packet, QoS};
use broker::codec::{PacketId, Properties, ReasonCode, encode};
use broker::metrics::DropReason;

use crate::fixture::client::{bytes_of, connect311, publish};
use crate::fixture::core::{NOW, PROTOCOL, connected, hear, say, store, turns};

const STEPS_PER_TURN: usize = 64;

/// Four of a turn's looks are a step; one of those who come takes four, and twelve more if it has no room.
const LOOKED_AT: usize = STEPS_PER_TURN / 4;

/// So many at once are moved later.
const MANY: usize = 8;

/// A message that fills an outbox up to where it takes no more.
const FILLING: [u8; 3_000] = [b'x'; 3_000];

fn options() -> Options {
    Options {
        steps_per_turn: STEPS_PER_TURN,
        outbox_bytes_max: 4_096,
        sys_interval: None,
        seed: 1,
        ..Options::default()
    }
}

fn subscribe(broker: &mut Broker, id: ConnectionId, filters: &[String], qos: QoS) {
    let requests: Vec<_> = filters.iter().map(|filter| (filter.as_str(), qos.into())).collect();
    let mut bytes = Vec::new();
    encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
    say(broker, id, &bytes);
    turns(broker);
    hear(broker, id);
}

fn unsubscribe(broker: &mut Broker, id: ConnectionId, filter: &str) {
    let mut bytes = Vec::new();
    encode::unsubscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &[filter]);
    say(broker, id, &bytes);
    broker.check_invariants();
}

/// The payloads that wait for a client.
fn heard(broker: &mut Broker, id: ConnectionId) -> Vec<String> {
    let payload = |packet: Packet<'_>| match packet {
        Packet::Publish(publish) => Some(String::from_utf8_lossy(publish.payload).into_owned()),
        _ => None,
    };
    let heard = hear(broker, id).iter().filter_map(|heard| payload(heard.packet())).collect();
    broker.check_invariants();
    heard
}

fn dropped(broker: &Broker) -> [u64; 2] {
    [DropReason::OutboxFull, DropReason::AbsentAtQoS0].map(|reason| broker.metrics().dropped[reason as usize])
}

/// The same members in some groups of one topic, and in as many others of no topic that is used, and a publisher. Each has a topic
/// of its own: its client id.
struct Crowd {
    broker: Broker,
    publisher: ConnectionId,
    names: Vec<String>,
    members: Vec<ConnectionId>,
    /// The last slot that was used.
    slot: u32,
}

impl Crowd {
    fn new(options: Options, members: usize, groups: usize, others: usize) -> Self {
        let mut broker = Broker::new(options, NOW);
        let publisher = connected(&mut broker, 1, connect311("publisher"));
        let names = (0..members).map(|number| format!("member{number}")).collect();
        let mut crowd = Self { broker, publisher, names, members: Vec::new(), slot: 1 };
        let of_topic = (0..groups).map(|number| format!("$share/{number}/t"));
        let of_none = (0..others).map(|number| format!("$share/{number}/none"));
        let filters: Vec<String> = of_topic.chain(of_none).collect();
        for member in 0..members {
            let id = crowd.connect(member);
            subscribe(&mut crowd.broker, id, &filters, QoS::AtLeastOnce);
            let own = [crowd.names[member].clone()];
            subscribe(&mut crowd.broker, id, &own, QoS::AtMostOnce);
            crowd.members.push(id);
        }
        crowd
    }

    /// Its client has come, or come back.
    fn connect(&mut self, member: usize) -> ConnectionId {
        self.slot += 1;
        let connect = Connect { clean_start: false, ..connect311(&self.names[member]) };
        connected(&mut self.broker, self.slot, connect)
    }

    fn come_back(&mut self, member: usize) {
        self.members[member] = self.connect(member);
        self.broker.check_invariants();
    }

    fn lose(&mut self, member: usize) {
        self.broker.handle_lost(NOW, self.members[member], false);
        self.broker.check_invariants();
        while let Some(id) = self.broker.poll_close() {
            self.broker.handle_closed(id);
        }
    }

    fn publish(&mut self, topic: &str, qos: QoS, payload: &[u8]) {
        say(&mut self.broker, self.publisher, &bytes_of(&publish(topic, qos, payload), PROTOCOL));
        self.broker.check_invariants();
    }

    /// The message that it was sent with this identifier.
    fn acknowledge(&mut self, member: usize, packet_id: u8) {
        say(&mut self.broker, self.members[member], &[0x40, 2, 0, packet_id]);
        self.broker.check_invariants();
    }

    /// Its outbox takes no more.
    fn fill(&mut self, member: usize) {
        let own = self.names[member].clone();
        self.publish(&own, QoS::AtMostOnce, &FILLING);
    }

    /// Turns until the message under way has reached everybody.
    fn turns_of_message(&mut self) -> usize {
        let mut turns = 0;
        while self.broker.is_fanning_out() {
            self.broker.handle_timeout(NOW);
            self.broker.check_invariants();
            turns += 1;
            assert!(turns < 1_000, "it comes to an end");
        }
        turns
    }

    fn heard(&mut self, member: usize) -> Vec<String> {
        heard(&mut self.broker, self.members[member])
    }
}

/// Nobody is looked at again until there is a reason, but then it is.
#[test]
fn a_group_whose_members_have_no_room_finds_the_one_that_has_some_again() {
    let mut crowd = Crowd::new(options(), 5, 1, 0);
    (0..5).for_each(|member| crowd.fill(member));
    for number in 1..=3 {
        crowd.publish("t", QoS::AtMostOnce, b"lost");
        assert_eq!(dropped(&crowd.broker), [number, 0]);
    }
    // Its outbox has drained.
    assert_eq!(crowd.heard(3).len(), 1);
    crowd.publish("t", QoS::AtMostOnce, b"drained");
    assert_eq!(crowd.heard(3), ["drained"]);
    crowd.fill(3);
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    assert_eq!(dropped(&crowd.broker), [4, 0]);
    // It has come back.
    crowd.lose(1);
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    crowd.come_back(1);
    crowd.publish("t", QoS::AtMostOnce, b"back");
    assert_eq!((dropped(&crowd.broker), crowd.heard(1)), ([5, 0], vec!["back".to_owned()]));
    crowd.fill(1);
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    // Another one has joined.
    let joined = connected(&mut crowd.broker, 100, connect311("joined"));
    subscribe(&mut crowd.broker, joined, &["$share/0/t".to_owned()], QoS::AtLeastOnce);
    crowd.publish("t", QoS::AtMostOnce, b"joined");
    assert_eq!(
        (dropped(&crowd.broker), heard(&mut crowd.broker, joined)),
        ([6, 0], vec!["joined".to_owned()])
    );
    // Those who leave were among those without room, or not.
    unsubscribe(&mut crowd.broker, crowd.members[0], "$share/0/t");
    crowd.publish("t", QoS::AtMostOnce, b"still there");
    assert_eq!(heard(&mut crowd.broker, joined), ["still there"]);
    unsubscribe(&mut crowd.broker, joined, "$share/0/t");
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    assert_eq!(dropped(&crowd.broker), [7, 0]);
    // All have gone.
    (1..5).for_each(|member| crowd.lose(member));
    crowd.publish("t", QoS::AtMostOnce, b"nobody");
    assert_eq!(dropped(&crowd.broker), [7, 1]);
}

/// Room for a message that waits is told to the group by the member, whose outbox it was found full at another QoS.
#[test]
fn what_waits_goes_to_a_member_that_was_found_full_at_another_qos() {
    let mut crowd = Crowd::new(options(), 3, 1, 0);
    (0..3).for_each(|member| crowd.fill(member));
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    crowd.publish("t", QoS::AtLeastOnce, b"waits");
    assert_eq!((dropped(&crowd.broker), crowd.broker.metrics().queued_messages), ([1, 0], 1));
    assert_eq!(crowd.heard(2).len(), 1);
    turns(&mut crowd.broker);
    assert_eq!(crowd.heard(2), ["waits"]);
}

/// It is lost in one turn and there in the next one, and counts among those without room until it has been moved.
#[test]
fn a_member_of_many_groups_without_room_comes_back_with_some() {
    let mut crowd = Crowd::new(options(), 2, 1, MANY);
    (0..2).for_each(|member| crowd.fill(member));
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    crowd.lose(0);
    crowd.come_back(0);
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        crowd.publish("t", qos, b"back");
        crowd.turns_of_message();
        assert_eq!(crowd.heard(0), ["back"]);
    }
    assert_eq!(dropped(&crowd.broker), [1, 0]);
}

/// None but the last of them can take the message.
#[test]
fn at_qos_0_those_who_have_just_come_and_have_no_room_are_looked_at_a_turn_s_worth_at_a_time() {
    const MEMBERS: usize = 200;
    for has_one_room in [true, false] {
        let mut crowd = Crowd::new(options(), MEMBERS, 1, MANY);
        (0..MEMBERS).for_each(|member| crowd.lose(member));
        turns(&mut crowd.broker);
        (0..MEMBERS).for_each(|member| crowd.come_back(member));
        let full = if has_one_room { MEMBERS - 1 } else { MEMBERS };
        (0..full).for_each(|member| crowd.fill(member));
        crowd.publish("t", QoS::AtMostOnce, b"to one");
        assert!(crowd.broker.is_fanning_out_to_groups() && !crowd.broker.wants_input(crowd.publisher));
        let turns_of_message = crowd.turns_of_message();
        assert!((1..=MEMBERS / LOOKED_AT).contains(&turns_of_message), "{turns_of_message}");
        // Who was looked at is known: the next message takes no turns.
        crowd.publish("t", QoS::AtMostOnce, b"again");
        assert!(!crowd.broker.is_fanning_out());
        assert_eq!(dropped(&crowd.broker), if has_one_room { [0, 0] } else { [2, 0] });
        assert_eq!(crowd.heard(MEMBERS - 1).contains(&"to one".to_owned()), has_one_room);
        if has_one_room {
            continue;
        }
        // An outbox that has drained may be anybody's: all of them are looked at once more.
        for _ in 0..2 {
            crowd.publish("t", QoS::AtMostOnce, b"drained");
            crowd.turns_of_message();
        }
        assert_eq!(crowd.heard(MEMBERS - 1), ["drained"; 2]);
        crowd.fill(MEMBERS - 1);
        crowd.publish("t", QoS::AtMostOnce, b"lost");
        crowd.turns_of_message();
        crowd.publish("t", QoS::AtMostOnce, b"lost");
        assert!(!crowd.broker.is_fanning_out());
        assert_eq!(dropped(&crowd.broker), [4, 0]);
    }
}

/// A crowd of groups none of whose members may be sent more: each was sent so many messages.
fn busy_crowd(members: usize, groups: usize, window: u16) -> Crowd {
    let mut crowd = Crowd::new(Options { in_flight_max: window, ..options() }, members, groups, 0);
    for _ in 0..usize::from(window) * members / groups {
        crowd.publish("t", QoS::AtLeastOnce, b"sent");
        turns(&mut crowd.broker);
    }
    assert_eq!(crowd.broker.metrics().in_flight_messages as usize, usize::from(window) * members);
    crowd
}

/// For the first message that waits all are looked at, and for those behind it nobody.
#[test]
fn members_whose_windows_are_full_are_looked_at_a_turn_s_worth_at_a_time() {
    const MEMBERS: usize = 1_000;
    let mut crowd = busy_crowd(MEMBERS, 2, 1);
    for (payload, turns_min) in [(b"first", 2 * MEMBERS / (4 * STEPS_PER_TURN)), (b"later", 0)] {
        crowd.publish("t", QoS::AtLeastOnce, payload);
        assert!(!crowd.broker.is_fanning_out() && crowd.broker.wants_input(crowd.publisher));
        let turns = turns(&mut crowd.broker);
        assert!((turns_min..=turns_min + 2).contains(&turns), "{turns}");
    }
    assert_eq!(crowd.broker.metrics().queued_messages, 4);
}

/// All but that one have full windows, and it is not looked at in the turn of the message.
#[test]
fn the_member_that_has_room_among_many_is_asked_in_a_later_turn() {
    const MEMBERS: usize = 300;
    for place in [0, 1, MEMBERS / 2, MEMBERS - 1] {
        let mut crowd = busy_crowd(MEMBERS, 1, 1);
        let queued = |crowd: &Crowd| crowd.broker.metrics().queued_messages;
        assert_eq!(crowd.heard(place), ["sent"]);
        crowd.acknowledge(place, 1);
        // Whose turn it is after that is known.
        crowd.publish("t", QoS::AtLeastOnce, b"to whom has room");
        turns(&mut crowd.broker);
        assert_eq!(crowd.heard(place), ["to whom has room"]);
        let before = (place + MEMBERS - 1) % MEMBERS;
        assert_eq!(crowd.heard(before), ["sent"]);
        crowd.acknowledge(before, 1);
        crowd.publish("t", QoS::AtLeastOnce, b"first");
        crowd.publish("t", QoS::AtLeastOnce, b"second");
        assert_eq!((crowd.heard(before).len(), queued(&crowd)), (0, 2));
        turns(&mut crowd.broker);
        assert_eq!((crowd.heard(before), queued(&crowd)), (vec!["first".to_owned()], 1));
        // From now on whoever has room asks itself.
        assert_eq!(turns(&mut crowd.broker), 0);
        crowd.acknowledge(place, 2);
        assert_eq!((crowd.heard(place), queued(&crowd)), (vec!["second".to_owned()], 0));
    }
}

/// Those who were looked at in vain are not the first of the next search.
#[test]
fn a_search_goes_on_behind_those_who_had_no_room() {
    const IDLE: usize = STEPS_PER_TURN + 10;
    let mut crowd = busy_crowd(200, 1, 1);
    for packet_id in 1..=2 {
        assert_eq!(crowd.heard(IDLE).len(), 1);
        crowd.acknowledge(IDLE, packet_id);
        crowd.publish("t", QoS::AtLeastOnce, b"sent");
        assert_eq!(turns(&mut crowd.broker) > 0, packet_id == 1, "at first others are looked at");
    }
    assert_eq!(crowd.heard(IDLE), ["sent"]);
}

/// Many have room for several messages, and none of those who are looked at first.
#[test]
fn messages_that_wait_are_spread_among_those_who_are_asked() {
    const MEMBERS: usize = 200;
    const MESSAGES: usize = 20;
    let mut crowd = busy_crowd(MEMBERS, 1, 2);
    for member in MEMBERS / 2..MEMBERS {
        assert_eq!(crowd.heard(member).len(), 2);
        (1..=2).for_each(|packet_id| crowd.acknowledge(member, packet_id));
    }
    // Their turn would come with the next message.
    (0..MESSAGES).for_each(|_| crowd.publish("t", QoS::AtLeastOnce, b"waited"));
    assert_eq!(crowd.broker.metrics().queued_messages as usize, MESSAGES);
    turns(&mut crowd.broker);
    let counts: Vec<usize> = (MEMBERS / 2..MEMBERS).map(|member| crowd.heard(member).len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), MESSAGES);
    assert_eq!(counts.iter().max(), Some(&1), "{counts:?}");
}

/// More members have ended, on both sides of one that lives, than one call looks at.
#[test]
fn what_an_ended_member_leaves_goes_to_one_that_lives_among_many_that_have_ended() {
    const MEMBERS: usize = 4 * STEPS_PER_TURN;
    let mut broker = Broker::new(options(), NOW);
    let publisher = connected(&mut broker, 1, connect311("publisher"));
    let others = (0..MANY).map(|number| format!("$share/{number}/none"));
    let filters: Vec<String> = others.chain(["$share/0/t".to_owned()]).collect();
    let names: Vec<String> = (0..MEMBERS).map(|number| format!("member{number}")).collect();
    let members: Vec<ConnectionId> =
        (2..).zip(&names).map(|(slot, name)| connected(&mut broker, slot, connect311(name))).collect();
    members.iter().for_each(|id| subscribe(&mut broker, *id, &filters, QoS::AtLeastOnce));
    say(&mut broker, publisher, &bytes_of(&publish("t", QoS::AtLeastOnce, b"left"), PROTOCOL));
    let holder = members.iter().copied().find(|id| !heard(&mut broker, *id).is_empty()).expect("it was sent");
    let living = members[MEMBERS / 2];
    assert!(holder != living);
    for id in members.iter().filter(|id| **id != living && **id != holder) {
        broker.handle_lost(NOW, *id, false);
    }
    broker.handle_lost(NOW, holder, false);
    broker.check_invariants();
    turns(&mut broker);
    assert_eq!(heard(&mut broker, living), ["left"]);
}

/// More members have ended than one call looks at. Whoever asks to join waits until it is known whether anybody lives in the group: what
/// waits there is for those who join a living one.
#[test]
fn who_joins_waits_until_it_is_known_whether_the_group_is_dead() {
    const STEPS: usize = STEPS_PER_TURN / 4;
    const MEMBERS: usize = 4 * 4 * STEPS;
    for living in [None, Some(MEMBERS * 3 / 4)] {
        let mut crowd = Crowd::new(Options { steps_per_turn: STEPS, ..options() }, MEMBERS, 1, MANY);
        (0..MEMBERS).for_each(|member| crowd.broker.handle_lost(NOW, crowd.members[member], false));
        turns(&mut crowd.broker);
        crowd.publish("t", QoS::AtLeastOnce, b"old");
        assert_eq!(crowd.broker.metrics().queued_messages, 1);
        for member in (0..MEMBERS).filter(|member| Some(*member) != living) {
            crowd.slot += 1;
            connected(&mut crowd.broker, crowd.slot, connect311(&crowd.names[member]));
        }
        crowd.broker.check_invariants();
        let newcomers = [10_000, 10_001].map(|slot| {
            let name = format!("newcomer{slot}");
            connected(&mut crowd.broker, slot, connect311(&name))
        });
        let subscriptions = crowd.broker.status().subscriptions;
        let requests = ["a", "$share/0/t", "b"].map(|filter| (filter, QoS::AtLeastOnce.into()));
        let mut bytes = Vec::new();
        encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
        for newcomer in newcomers {
            say(&mut crowd.broker, newcomer, &bytes);
            crowd.broker.check_invariants();
            assert!(!crowd.broker.wants_input(newcomer), "{living:?} {newcomer:?}");
            assert!(hear(&mut crowd.broker, newcomer).is_empty());
        }
        let begun = subscriptions + 2;
        assert_eq!(crowd.broker.status().subscriptions, begun, "only the first filters have taken effect");
        crowd.broker.handle_timeout(NOW);
        assert!(crowd.broker.status().subscriptions <= begun);
        turns(&mut crowd.broker);
        let mut payloads = Vec::new();
        for newcomer in newcomers {
            let heard = hear(&mut crowd.broker, newcomer);
            let Packet::Suback(suback) = heard[0].packet() else { panic!("{heard:?}") };
            assert_eq!(suback.reasons.len(), 3, "a code for each filter");
            payloads.extend(heard[1..].iter().map(|heard| match heard.packet() {
                Packet::Publish(publish) => String::from_utf8_lossy(publish.payload).into_owned(),
                other => panic!("{other:?}"),
            }));
            assert!(crowd.broker.wants_input(newcomer));
        }
        assert_eq!(payloads, if living.is_some() { vec!["old"] } else { Vec::new() }, "{living:?}");
        crowd.publish("t", QoS::AtLeastOnce, b"new");
        assert_eq!(newcomers.iter().flat_map(|id| heard(&mut crowd.broker, *id)).count(), 1);
    }
}

/// At another QoS the outbox of one that was asked is found full, and the one that was not asked changes places with it.
#[test]
fn who_has_yet_to_be_asked_is_asked_wherever_it_is_moved() {
    const MEMBERS: usize = 4 * STEPS_PER_TURN + 1;
    let mut crowd = busy_crowd(MEMBERS, 1, 1);
    for packet_id in 1..=2 {
        assert_eq!(crowd.heard(0), ["sent"]);
        crowd.acknowledge(0, packet_id);
        if packet_id == 1 {
            crowd.publish("t", QoS::AtLeastOnce, b"sent");
            assert_eq!(turns(&mut crowd.broker), 0, "it was its turn");
        }
    }
    crowd.publish("t", QoS::AtLeastOnce, b"waits");
    crowd.broker.handle_timeout(NOW);
    // The first one that the search has not looked at.
    crowd.fill(1 + STEPS_PER_TURN);
    crowd.publish("t", QoS::AtMostOnce, b"lively");
    assert_eq!(crowd.heard(0).len(), 0, "all others were asked before");
    turns(&mut crowd.broker);
    assert_eq!(crowd.heard(0), ["waits"]);
}

/// At QoS 0 it may take turns itself to find out that nobody has room, at QoS 1 it does not.
#[test]
fn at_qos_1_a_message_to_many_members_does_not_wait_for_one_on_its_way_to_many() {
    const MEMBERS: usize = 5 * STEPS_PER_TURN;
    let mut crowd = busy_crowd(MEMBERS, 1, 1);
    for member in 0..MEMBERS {
        subscribe(&mut crowd.broker, crowd.members[member], &["many".to_owned()], QoS::AtMostOnce);
    }
    let others = [1_000, 2_000].map(|slot| connected(&mut crowd.broker, slot, connect311(&slot.to_string())));
    crowd.publish("many", QoS::AtMostOnce, b"on its way");
    assert!(crowd.broker.is_fanning_out());
    for (id, qos) in others.into_iter().zip([QoS::AtLeastOnce, QoS::AtMostOnce]) {
        say(&mut crowd.broker, id, &bytes_of(&publish("t", qos, b"to one"), PROTOCOL));
        crowd.broker.check_invariants();
        assert_eq!(crowd.broker.wants_input(id), qos == QoS::AtLeastOnce);
    }
    assert!(crowd.broker.is_fanning_out());
    assert_eq!(crowd.broker.metrics().queued_messages, 1);
    turns(&mut crowd.broker);
}

/// Each turn somebody comes whom it takes a turn to look at.
#[test]
fn a_message_to_groups_comes_to_its_end_while_clients_come() {
    for (is_there, qos) in [
        (false, QoS::AtMostOnce),
        (false, QoS::AtLeastOnce),
        (true, QoS::AtMostOnce),
        (true, QoS::AtLeastOnce),
    ] {
        let mut crowd = Crowd::new(Options { steps_per_turn: 1, ..options() }, 40, 2, MANY);
        (0..40).for_each(|member| crowd.lose(member));
        turns(&mut crowd.broker);
        // The groups of the topic are those of the first ten.
        for member in 10..40 {
            crowd.come_back(member);
            let filters = [0, 1].map(|number| format!("$share/{number}/t"));
            filters.iter().for_each(|filter| unsubscribe(&mut crowd.broker, crowd.members[member], filter));
            turns(&mut crowd.broker);
            crowd.lose(member);
            turns(&mut crowd.broker);
        }
        for member in 10..15 {
            crowd.come_back(member);
        }
        if is_there {
            crowd.come_back(0);
        }
        crowd.publish("t", qos, b"on its way");
        let mut came = 15;
        while crowd.broker.is_fanning_out() {
            assert!(came < 40, "it comes to an end");
            crowd.come_back(came);
            came += 1;
            crowd.broker.handle_timeout(NOW);
            crowd.broker.check_invariants();
        }
        assert!(came > 16, "it took turns");
        let queued = crowd.broker.metrics().queued_messages;
        match (is_there, qos) {
            (true, _) => assert_eq!(crowd.heard(0), ["on its way"; 2]),
            (false, QoS::AtMostOnce) => assert_eq!(dropped(&crowd.broker), [0, 2]),
            (false, _) => assert_eq!(queued, 2),
        }
    }
}

/// Those who were there when it left have been lost as well, or have come back.
#[test]
fn what_a_member_leaves_waits_until_it_is_known_who_is_there() {
    const MEMBERS: usize = 1_000;
    for is_one_there in [true, false] {
        let mut crowd = Crowd::new(options(), MEMBERS, 1, MANY);
        for number in 0..3 {
            crowd.publish("t", QoS::AtLeastOnce, number.to_string().as_bytes());
            store(&mut crowd.broker);
        }
        let had: Vec<usize> = (0..MEMBERS).filter(|member| !crowd.heard(*member).is_empty()).collect();
        assert_eq!(had.len(), 3);
        let kept = (0..MEMBERS).find(|member| !had.contains(member)).expect("there are more");
        for member in (0..MEMBERS).filter(|member| !had.contains(member)) {
            if !is_one_there || member != kept {
                crowd.broker.handle_lost(NOW, crowd.members[member], false);
            }
        }
        for member in &had {
            crowd.broker.handle_lost(NOW, crowd.members[*member], false);
        }
        for _ in 0..3 {
            assert_eq!(crowd.heard(kept).len(), 0, "many are looked at");
            crowd.broker.handle_timeout(NOW);
        }
        turns(&mut crowd.broker);
        let mut given = if is_one_there { crowd.heard(kept) } else { Vec::new() };
        given.sort_unstable();
        assert_eq!(given, if is_one_there { vec!["0", "1", "2"] } else { Vec::new() });
        assert_eq!(crowd.broker.metrics().in_flight_messages, 3);
        for id in (1..).map_while(PacketId::new).take(given.len()) {
            let bytes = bytes_of(
                &Packet::Puback(Ack {
                    packet_id: id,
                    reason: ReasonCode::Success,
                    properties: Properties::NONE,
                }),
                PROTOCOL,
            );
            say(&mut crowd.broker, crowd.members[kept], &bytes);
        }
        assert_eq!(crowd.broker.metrics().in_flight_messages as usize, 3 - given.len());
    }
}

/// Whoever is looked at for a message is not looked at again for it when outboxes of others drain.
#[test]
fn a_search_that_takes_turns_is_not_begun_anew_while_outboxes_drain() {
    const MEMBERS: usize = 40;
    let mut crowd = Crowd::new(Options { steps_per_turn: 1, ..options() }, MEMBERS, 1, MANY);
    (0..MEMBERS).for_each(|member| crowd.lose(member));
    turns(&mut crowd.broker);
    let others: Vec<ConnectionId> = (0..MEMBERS)
        .map(|number| {
            connected(&mut crowd.broker, 1_000 + number as u32, connect311(&format!("other{number}")))
        })
        .collect();
    for id in &others {
        subscribe(&mut crowd.broker, *id, &["$share/others/others".to_owned()], QoS::AtMostOnce);
        subscribe(&mut crowd.broker, *id, &["filling".to_owned()], QoS::AtMostOnce);
    }
    for topic in ["filling", "others"] {
        crowd.publish(topic, QoS::AtMostOnce, &FILLING);
        crowd.turns_of_message();
    }
    assert_eq!(dropped(&crowd.broker), [1, 0]);
    for member in 0..MEMBERS {
        crowd.come_back(member);
        crowd.fill(member);
    }
    crowd.publish("t", QoS::AtMostOnce, b"lost");
    let mut turns = 0;
    while crowd.broker.is_fanning_out() {
        if let Some(id) = others.get(turns) {
            assert_eq!(heard(&mut crowd.broker, *id).len(), 1);
        }
        crowd.broker.handle_timeout(NOW);
        crowd.broker.check_invariants();
        turns += 1;
    }
    assert!((MEMBERS / 2..=MEMBERS + 2).contains(&turns), "{turns}");
    assert_eq!(dropped(&crowd.broker), [2, 0]);
}
