//! Verdicts that come late, against the core alone: no socket, and time passes only when a test says so.

use std::collections::BTreeMap;
use std::io::IoSlice;

use broker::broker::options::Redirect;
use broker::broker::{AuthenticationStep, Broker, ConnectionId, Options, Verdict};
use broker::clock::{Duration, Instant};
use broker::codec::packet::{Connect, Disconnect, Packet, Protocol};
use broker::codec::property::PropertyList;
use broker::codec::{DecodeError, Inbox, Property, QoS, ReasonCode};

use crate::authentication::{auth, with_method};
use crate::fixture::client::{Received, bytes_of, connect5, publish, subscribe_bytes, will};

const METHOD: &str = "SLOW";

#[derive(Default)]
struct Peer {
    inbox: Inbox,
    /// Sent, and not yet read by the server.
    unread: Vec<u8>,
    received: Vec<Received>,
    closed: bool,
}

/// The core, and who talks to it. Bytes travel at once, but only where the core wants them.
struct World {
    broker: Broker,
    now: Instant,
    peers: BTreeMap<ConnectionId, Peer>,
}

impl World {
    fn new(options: Options) -> Self {
        let options = Options { authentication_methods: vec![METHOD.into()], seed: 1, ..options };
        let now = Instant(1_000);
        Self { broker: Broker::new(options, now), now, peers: BTreeMap::new() }
    }

    fn open(&mut self) -> ConnectionId {
        let number = self.peers.len() as u32;
        let id = ConnectionId { slot: number, generation: number };
        self.broker.handle_open(self.now, id);
        self.peers.insert(id, Peer::default());
        id
    }

    /// Opens a connection and sends a CONNECT that names the method, with these properties behind it.
    fn begin(&mut self, connect: &Connect<'_>, others: &[Property<'_>]) -> ConnectionId {
        let id = self.open();
        let properties = with_method(METHOD, b"hello", others);
        let connect = Connect { properties: properties.as_properties(), ..*connect };
        self.send(id, &Packet::Connect(connect));
        id
    }

    /// Opens a connection that names no method, and has its CONNECT accepted.
    fn plain(&mut self, client_id: &str) -> ConnectionId {
        let id = self.open();
        self.send(id, &Packet::Connect(connect5(client_id)));
        assert_eq!(self.one(id).connack().reason, ReasonCode::Success);
        id
    }

    /// A watcher of everything.
    fn watcher(&mut self) -> ConnectionId {
        let id = self.plain("watcher");
        self.send_bytes(id, &subscribe_bytes(Protocol::Mqtt5, "#", QoS::AtMostOnce));
        assert!(matches!(self.one(id).packet(), Packet::Suback(_)));
        id
    }

    fn send(&mut self, id: ConnectionId, packet: &Packet<'_>) {
        self.send_bytes(id, &bytes_of(packet, Protocol::Mqtt5));
    }

    fn send_bytes(&mut self, id: ConnectionId, bytes: &[u8]) {
        self.peers.get_mut(&id).expect("a peer").unread.extend_from_slice(bytes);
        self.settle();
    }

    /// The one step that is there.
    fn step(&mut self, id: ConnectionId) -> AuthenticationStep {
        let step = self.broker.poll_authentication().expect("a step");
        assert_eq!((step.connection, &*step.method), (id, METHOD));
        assert_eq!(self.broker.poll_authentication(), None);
        step
    }

    fn verdict(&mut self, id: ConnectionId, verdict: Verdict) {
        self.broker.handle_verdict(self.now, id, verdict);
        self.settle();
    }

    fn accept(&mut self, id: ConnectionId) {
        self.verdict(id, Verdict::Accept { user: None, data: Some(b"welcome".as_slice().into()) });
    }

    fn lose(&mut self, id: ConnectionId) {
        self.broker.handle_lost(self.now, id, false);
        self.settle();
    }

    fn wait(&mut self, millis: u64) {
        let end = self.now + Duration(millis);
        while let Some(due) = self.broker.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// What has come since the last time.
    fn received(&mut self, id: ConnectionId) -> Vec<Received> {
        std::mem::take(&mut self.peers.get_mut(&id).expect("a peer").received)
    }

    /// The one packet that has come since the last time.
    fn one(&mut self, id: ConnectionId) -> Received {
        let mut received = self.received(id);
        assert_eq!(received.len(), 1, "{received:?}");
        received.remove(0)
    }

    fn is_closed(&self, id: ConnectionId) -> bool {
        self.peers[&id].closed
    }

    /// One packet, and the connection is closed.
    fn last(&mut self, id: ConnectionId) -> Received {
        assert!(self.is_closed(id));
        self.one(id)
    }

    /// A connected client is there and nothing has come for it.
    fn pings(&mut self, id: ConnectionId) {
        self.send(id, &Packet::Pingreq);
        assert_eq!(self.one(id).packet(), Packet::Pingresp);
    }

    /// Lets all bytes travel until nothing moves any more.
    fn settle(&mut self) {
        for (id, peer) in &mut self.peers {
            let unread = std::mem::take(&mut peer.unread);
            let mut input = &unread[..];
            let mut terms = self.broker.reading_terms(*id);
            while self.broker.wants_input(*id)
                && self.broker.handle_next(self.now, *id, &mut terms, &mut peer.inbox, &mut input)
            {
            }
            peer.unread = input.to_vec();
        }
        while self.broker.poll_timeout().is_some_and(|due| due <= self.now) || self.broker.dirty_len() > 0 {
            self.broker.handle_timeout(self.now);
            while let Some(id) = self.broker.poll_flush() {
                self.flush(id);
            }
        }
        while let Some(id) = self.broker.poll_close() {
            self.flush(id);
            self.broker.handle_closed(id);
            self.peers.get_mut(&id).expect("a peer").closed = true;
        }
        while self.broker.poll_event().is_some() {}
        self.broker.check_invariants();
    }

    fn flush(&mut self, id: ConnectionId) {
        let Some(outbox) = self.broker.outbox(id) else { return };
        let mut slices = [IoSlice::new(&[]); 64];
        let filled = outbox.slices(&mut slices);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
        self.broker.handle_written(self.now, id, bytes.len(), false);
        let received = Received::all(&bytes, Protocol::Mqtt5);
        self.peers.get_mut(&id).expect("a peer").received.extend(received);
    }
}

/// [B-083]
#[test]
fn packets_sent_ahead_wait_for_the_verdict_and_are_then_handled_in_order() {
    let mut world = World::new(Options::default());
    let watcher = world.watcher();
    let id = world.begin(&connect5("a"), &[]);
    world.send_bytes(id, &subscribe_bytes(Protocol::Mqtt5, "t", QoS::AtMostOnce));
    for text in ["one", "two"] {
        world.send(id, &publish("t", QoS::AtMostOnce, text.as_bytes()));
    }
    world.send(id, &Packet::Pingreq);
    assert!(!world.broker.wants_input(id));
    world.wait(5_000);
    // Others are served meanwhile, and nothing of it has had an effect.
    world.pings(watcher);
    assert_eq!(world.received(id), []);
    let step = world.step(id);
    assert_eq!((&*step.client_id, &*step.data, step.is_first), ("a", &b"hello"[..], true));

    world.accept(id);
    assert!(world.broker.wants_input(id));
    world.settle();
    let received = world.received(id);
    let [connack, suback, one, two, pingresp] = &received[..] else { panic!("{received:?}") };
    assert_eq!(connack.connack().reason, ReasonCode::Success);
    let properties: Vec<Property<'_>> = connack.connack().properties.iter().collect();
    assert!(
        properties
            .ends_with(&[Property::AuthenticationMethod(METHOD), Property::AuthenticationData(b"welcome"),])
    );
    assert!(matches!(suback.packet(), Packet::Suback(_)));
    assert_eq!((one.message().1.as_str(), two.message().1.as_str()), ("one", "two"));
    assert_eq!(pingresp.packet(), Packet::Pingresp);
    let seen = world.received(watcher);
    assert_eq!(seen.iter().map(|packet| packet.message().1).collect::<Vec<_>>(), ["one", "two"]);
}

/// Where the verdict is no, what was sent ahead has no effect. Where the exchange goes on, it was sent too early
/// [B-083] [MQTT5-3.1.2-30].
#[test]
fn packets_sent_ahead_are_dropped_with_a_client_that_is_not_let_in() {
    for (verdict, reason) in [
        (Verdict::Refuse(ReasonCode::NotAuthorized), ReasonCode::NotAuthorized),
        (Verdict::Continue(b"more".as_slice().into()), ReasonCode::ProtocolError),
    ] {
        let mut world = World::new(Options::default());
        let watcher = world.watcher();
        let connect = Connect { will: will("w", b"refused"), ..connect5("a") };
        let id = world.begin(&connect, &[]);
        world.send(id, &publish("t", QoS::AtMostOnce, b"too early"));
        let goes_on = matches!(verdict, Verdict::Continue(_));
        world.step(id);
        world.verdict(id, verdict);
        world.settle();
        if goes_on {
            let received = world.received(id);
            assert_eq!(received[0].auth().reason, ReasonCode::ContinueAuthentication);
            assert_eq!((received[1].connack().reason, received.len()), (reason, 2));
        } else {
            assert_eq!(world.last(id).connack().reason, reason);
        }
        assert!(world.is_closed(id));
        world.pings(watcher);
        assert_eq!(world.broker.status().sessions, 1, "the watcher's");
    }
}

#[test]
fn an_answer_in_the_exchange_that_comes_ahead_is_taken_in_its_turn() {
    let mut world = World::new(Options::default());
    let id = world.begin(&connect5("a"), &[]);
    // A client that knows what it will be asked.
    world.send(id, &auth(ReasonCode::ContinueAuthentication, &with_method(METHOD, b"second", &[])));
    world.send(id, &Packet::Pingreq);
    assert!(world.step(id).is_first);
    world.verdict(id, Verdict::Continue(b"more".as_slice().into()));
    world.settle();
    assert_eq!(world.one(id).auth().reason, ReasonCode::ContinueAuthentication);
    let step = world.step(id);
    assert_eq!((&*step.data, step.is_first), (&b"second"[..], false));
    assert!(!world.broker.wants_input(id));
    world.accept(id);
    world.settle();
    let received = world.received(id);
    assert_eq!(received[0].connack().reason, ReasonCode::Success);
    assert_eq!(received[1].packet(), Packet::Pingresp);
}

#[test]
fn a_verdict_that_nobody_waits_for_changes_nothing() {
    let verdicts = || {
        [
            Verdict::Accept { user: None, data: None },
            Verdict::Accept { user: None, data: Some(b"data".as_slice().into()) },
            Verdict::Continue(b"more".as_slice().into()),
            Verdict::Refuse(ReasonCode::NotAuthorized),
        ]
    };
    for verdict in verdicts() {
        let mut world = World::new(Options::default());
        // A connection that never was.
        let never = ConnectionId { slot: 77, generation: 7 };
        world.verdict(never, verdict.clone());
        // One without CONNECT, and one without a method.
        let silent = world.open();
        world.verdict(silent, verdict.clone());
        let plain = world.plain("plain");
        world.verdict(plain, verdict.clone());
        assert_eq!(world.received(silent), []);
        world.pings(plain);
        // One that is gone, and the one that has its slot now.
        let gone = world.begin(&connect5("gone"), &[]);
        world.step(gone);
        world.lose(gone);
        let heir = ConnectionId { generation: gone.generation + 1_000, ..gone };
        world.broker.handle_open(world.now, heir);
        world.peers.insert(heir, Peer::default());
        world.send(heir, &Packet::Connect(connect5("heir")));
        assert_eq!(world.one(heir).connack().reason, ReasonCode::Success);
        world.verdict(gone, verdict.clone());
        world.pings(heir);
        assert_eq!(world.received(gone), []);
        // One whose turn it is.
        let client = world.begin(&connect5("client"), &[]);
        world.step(client);
        world.verdict(client, Verdict::Continue(b"more".as_slice().into()));
        world.one(client);
        world.verdict(client, verdict.clone());
        assert_eq!(world.received(client), []);
        assert!(world.broker.wants_input(client));
        // One that was accepted before.
        world.send(client, &auth(ReasonCode::ContinueAuthentication, &with_method(METHOD, b"x", &[])));
        world.step(client);
        world.accept(client);
        assert_eq!(world.one(client).connack().reason, ReasonCode::Success);
        world.verdict(client, verdict.clone());
        world.pings(client);
        // One that was refused and has not been freed yet.
        let refused = world.begin(&connect5("refused"), &[]);
        world.step(refused);
        world.broker.handle_verdict(world.now, refused, Verdict::Refuse(ReasonCode::ServerBusy));
        world.verdict(refused, verdict.clone());
        assert_eq!(world.last(refused).connack().reason, ReasonCode::ServerBusy);
    }
}

/// Whoever keeps something for an exchange is told of the end of its connection, and must not be asked about it
/// afterwards: what it then keeps would stay for ever.
#[test]
fn no_step_is_handed_out_for_a_connection_that_is_gone() {
    let mut world = World::new(Options::default());
    let id = world.begin(&connect5("a"), &[]);
    world.lose(id);
    assert!(world.is_closed(id));
    assert_eq!(world.broker.poll_authentication(), None);

    // The other way to it: the last packets of a connected client, read as its connection fails.
    let id = world.begin(&connect5("a"), &[]);
    world.step(id);
    world.accept(id);
    world.one(id);
    world.send(id, &auth(ReasonCode::Reauthenticate, &with_method(METHOD, b"again", &[])));
    let other = world.begin(&connect5("b"), &[]);
    world.lose(id);
    assert_eq!(world.step(other).connection, other);
}

#[test]
fn the_handshake_timeout_holds_while_a_verdict_is_awaited() {
    let options = Options { handshake_timeout: Duration(30_000), ..Options::default() };
    let mut world = World::new(options);
    let watcher = world.watcher();
    let connect = Connect { will: will("w", b"timeout"), ..connect5("a") };
    let id = world.begin(&connect, &[]);
    world.step(id);
    world.wait(29_000);
    assert!(!world.is_closed(id));
    world.wait(1_100);
    assert!(world.is_closed(id));
    // There was no CONNACK, so there is no DISCONNECT [MQTT5-3.14.0-1].
    assert_eq!(world.received(id), []);
    world.accept(id);
    assert_eq!(world.received(id), []);

    // It is for the whole exchange, whoever's turn it is.
    let id = world.begin(&connect, &[]);
    world.step(id);
    world.wait(20_000);
    world.verdict(id, Verdict::Continue(b"more".as_slice().into()));
    world.one(id);
    world.wait(10_100);
    assert!(world.is_closed(id));
    assert_eq!(world.received(id), []);

    // And no longer than that.
    let id = world.begin(&connect, &[]);
    world.step(id);
    world.wait(29_000);
    world.accept(id);
    assert_eq!(world.one(id).connack().reason, ReasonCode::Success);
    world.wait(3_600_000);
    world.pings(id);
    world.pings(watcher);
}

/// While a verdict is awaited the client is not read, so its silence says nothing.
#[test]
fn keep_alive_begins_with_the_verdict() {
    for sends_ahead in [false, true] {
        let mut world = World::new(Options::default());
        let id = world.begin(&Connect { keep_alive_secs: 2, ..connect5("a") }, &[]);
        world.step(id);
        if sends_ahead {
            world.send(id, &Packet::Pingreq);
        }
        world.wait(20_000);
        world.accept(id);
        world.settle();
        world.wait(2_900);
        let received = world.received(id);
        assert_eq!(received[0].connack().reason, ReasonCode::Success);
        assert_eq!(received.len(), 1 + usize::from(sends_ahead), "{received:?}");
        assert!(!world.is_closed(id));
        world.wait(300);
        assert_eq!(world.last(id).disconnect().reason, ReasonCode::KeepAliveTimeout);
    }
}

/// What a CONNECT asks for is judged when the verdict has come.
#[test]
fn a_connect_is_judged_as_things_stand_at_the_verdict() {
    let options = Options { connections_max: 2, ..Options::default() };
    let mut world = World::new(options);
    let watcher = world.watcher();
    let stored = [Property::SessionExpirySecs(3_600)];
    let connect = Connect { clean_start: false, will: will("w", b"gone"), ..connect5("a") };
    let early = world.begin(&connect, &stored);
    world.step(early);
    let late = world.begin(&connect, &stored);
    world.step(late);
    let too_many = world.begin(&connect5("b"), &[]);
    world.step(too_many);

    // Two with one name: who is accepted last has it, whoever came first.
    world.accept(late);
    assert!(!world.one(late).connack().session_present);
    world.accept(early);
    assert!(world.one(early).connack().session_present);
    assert_eq!(world.last(late).disconnect().reason, ReasonCode::SessionTakenOver);
    assert_eq!(world.one(watcher).message(), ("w".to_owned(), "gone".to_owned()));
    // The house was not full when this one came.
    world.accept(too_many);
    assert_eq!(world.last(too_many).connack().reason, ReasonCode::ServerBusy);

    // The end that is the client's own keeps the will back, any other does not.
    world.send(early, &Packet::Disconnect(Disconnect::NORMAL));
    assert!(world.is_closed(early));
    assert_eq!(world.received(watcher), []);
    let again = world.begin(&connect, &stored);
    world.step(again);
    world.accept(again);
    assert!(world.one(again).connack().session_present);
    world.lose(again);
    assert_eq!(world.one(watcher).message().1, "gone");
}

/// [MQTT5-4.12.1-1]
#[test]
fn a_connected_client_is_served_while_a_verdict_is_awaited() {
    let mut world = World::new(Options::default());
    let watcher = world.watcher();
    let id = world.begin(&connect5("a"), &[]);
    world.step(id);
    world.accept(id);
    world.one(id);
    let properties = with_method(METHOD, b"again", &[]);
    let again = bytes_of(&auth(ReasonCode::Reauthenticate, &properties), Protocol::Mqtt5);
    world.send_bytes(id, &again);
    assert!(world.step(id).is_first);
    assert!(world.broker.wants_input(id));
    world.send(id, &publish("t", QoS::AtMostOnce, b"meanwhile"));
    assert_eq!(world.one(watcher).message().1, "meanwhile");
    world.pings(id);
    world.wait(3_600_000);
    world.pings(id);
    world.accept(id);
    assert_eq!(world.one(id).auth().reason, ReasonCode::Success);

    // The server's turn is not the client's.
    for reason in [ReasonCode::Reauthenticate, ReasonCode::ContinueAuthentication] {
        let id = world.begin(&connect5("a"), &[]);
        world.step(id);
        world.accept(id);
        world.one(id);
        world.send_bytes(id, &again);
        world.step(id);
        world.send(id, &auth(reason, &with_method(METHOD, b"impatient", &[])));
        assert_eq!(world.last(id).disconnect().reason, ReasonCode::ProtocolError);
        world.accept(id);
        assert_eq!(world.received(id), []);
    }
}

#[test]
fn ends_of_all_kinds_while_a_verdict_is_awaited() {
    let redirect = Redirect { server_reference: "elsewhere".into(), permanently: false };
    let mut world = World::new(Options { redirect: Some(redirect), ..Options::default() });
    let watcher = world.watcher();
    let connect = Connect { will: will("w", b"never connected"), ..connect5("a") };

    // What the core is told although it wants no input.
    let malformed = world.begin(&connect, &[]);
    world.step(malformed);
    world.broker.handle_malformed(world.now, malformed, DecodeError::ReservedFlags, None);
    world.settle();
    assert_eq!(world.last(malformed).connack().reason, ReasonCode::MalformedPacket);
    let lost = world.begin(&connect, &[]);
    world.step(lost);
    world.lose(lost);
    // A DISCONNECT that was sent ahead is read after the verdict.
    let hasty = world.begin(&connect, &[]);
    world.send(hasty, &Packet::Disconnect(Disconnect::NORMAL));
    world.step(hasty);
    assert!(!world.is_closed(hasty));
    world.accept(hasty);
    world.settle();
    assert_eq!(world.last(hasty).connack().reason, ReasonCode::Success);
    world.pings(watcher);

    // The server drains: who is not connected yet is told after it has shown who it is.
    let earlier = world.begin(&connect, &[]);
    world.step(earlier);
    assert!(world.broker.handle_drain(world.now));
    world.settle();
    assert_eq!(world.last(watcher).disconnect().reason, ReasonCode::UseAnotherServer);
    let later = world.begin(&connect, &[]);
    world.step(later);
    for id in [earlier, later] {
        assert_eq!(world.received(id), []);
        world.accept(id);
        let received = world.last(id);
        assert_eq!(received.connack().reason, ReasonCode::UseAnotherServer);
        let names_it = |property| property == Property::ServerReference("elsewhere");
        assert!(received.connack().properties.iter().any(names_it));
    }

    // The server stops: without CONNACK there is no DISCONNECT, and a verdict comes too late.
    let stopped = world.begin(&connect, &[]);
    world.step(stopped);
    world.broker.handle_shutdown(world.now);
    world.settle();
    assert!(world.is_closed(stopped));
    assert_eq!(world.received(stopped), []);
    world.accept(stopped);
    assert_eq!((world.broker.connections(), world.broker.status().sessions), (0, 0));
}

/// A method that has no data to say, and a client that has none.
#[test]
fn data_may_be_missing_on_both_sides() {
    let mut world = World::new(Options::default());
    let id = world.open();
    let properties: PropertyList = [Property::AuthenticationMethod(METHOD)].into_iter().collect();
    world.send(id, &Packet::Connect(Connect { properties: properties.as_properties(), ..connect5("a") }));
    assert_eq!(&*world.step(id).data, b"");
    world.verdict(id, Verdict::Accept { user: None, data: None });
    let received = world.one(id);
    let properties: Vec<Property<'_>> = received.connack().properties.iter().collect();
    assert_eq!(properties.last(), Some(&Property::AuthenticationMethod(METHOD)));
    world.send(
        id,
        &auth(ReasonCode::Reauthenticate, &[Property::AuthenticationMethod(METHOD)].into_iter().collect()),
    );
    assert_eq!(&*world.step(id).data, b"");
    world.verdict(id, Verdict::Accept { user: None, data: None });
    let received = world.one(id);
    assert_eq!(received.auth().reason, ReasonCode::Success);
    let properties: Vec<Property<'_>> = received.auth().properties.iter().collect();
    assert_eq!(properties, [Property::AuthenticationMethod(METHOD)]);
}
