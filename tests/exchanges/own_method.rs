//! Methods of an embedding program, over real sockets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use broker::broker::{AuthenticationStep, ConnectionId, Options, Verdict};
use broker::codec::packet::{Connect, Packet, Protocol};
use broker::codec::property::PropertyList;
use broker::codec::{Properties, Property, QoS, ReasonCode};
use broker::server::Authenticator;

use crate::authentication::{auth, with_method};
use crate::fixture::client::{Client, bytes_of, connect5, publish, subscribe_bytes, will};
use crate::fixture::running::Running;

/// Counts down from three with the client, and remembers what it was told.
const COUNT: &str = "COUNT";
/// Asks nothing.
const OPEN: &str = "OPEN";

#[derive(Debug, Default)]
struct Seen {
    steps: Vec<AuthenticationStep>,
    forgotten: Vec<ConnectionId>,
    /// The number that each client has to say next.
    exchanges: BTreeMap<ConnectionId, u8>,
}

#[derive(Clone, Debug, Default)]
struct Counting(Arc<Mutex<Seen>>);

impl Counting {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("the other thread has not failed")
    }
}

impl Authenticator for Counting {
    fn methods(&self) -> Vec<Box<str>> {
        vec![COUNT.into(), OPEN.into()]
    }

    fn step(&mut self, step: &AuthenticationStep) -> Verdict {
        let mut seen = self.seen();
        seen.steps.push(step.clone());
        if &*step.method == OPEN {
            return Verdict::Accept { user: None, data: None };
        }
        if step.is_first {
            seen.exchanges.insert(step.connection, 3);
        }
        let Some(awaited) = seen.exchanges.remove(&step.connection) else {
            return Verdict::Refuse(ReasonCode::UnspecifiedError);
        };
        match (&*step.data, awaited) {
            ([number], 0) if *number == awaited => {
                Verdict::Accept { user: None, data: Some(b"done".as_slice().into()) }
            }
            ([number], _) if *number == awaited => {
                seen.exchanges.insert(step.connection, awaited - 1);
                Verdict::Continue(vec![awaited - 1].into())
            }
            (b"bad", _) => Verdict::Refuse(ReasonCode::NotAuthorized),
            (b"late", _) => Verdict::Refuse(ReasonCode::ServerBusy),
            _ => Verdict::Refuse(ReasonCode::UnspecifiedError),
        }
    }

    fn forget(&mut self, connection: ConnectionId) {
        let mut seen = self.seen();
        seen.exchanges.remove(&connection);
        seen.forgotten.push(connection);
    }
}

fn start() -> (Running, Counting) {
    let counting = Counting::default();
    (Running::start(Options::default(), Some(Box::new(counting.clone()))), counting)
}

fn list_of(properties: Properties<'_>) -> Vec<Property<'_>> {
    properties.iter().collect()
}

/// Answers the challenges down to this one.
fn count_down(client: &mut Client, to: u8) {
    for number in (to..3).rev() {
        let received = client.receive();
        assert_eq!(received.auth().reason, ReasonCode::ContinueAuthentication);
        assert_eq!(
            list_of(received.auth().properties),
            [Property::AuthenticationMethod(COUNT), Property::AuthenticationData(&[number])]
        );
        client.send(&auth(ReasonCode::ContinueAuthentication, &with_method(COUNT, &[number], &[])));
    }
}

#[test]
fn a_method_of_three_rounds() {
    let (mut server, counting) = start();
    let properties = with_method(COUNT, &[3], &[]);
    let connect = Connect { properties: properties.as_properties(), ..connect5("counter") };
    let mut client = Client::begin(server.address, &connect);
    count_down(&mut client, 0);
    let received = client.receive();
    assert_eq!(received.connack().reason, ReasonCode::Success);
    let last_two = [Property::AuthenticationMethod(COUNT), Property::AuthenticationData(b"done")];
    assert!(list_of(received.connack().properties).ends_with(&last_two));
    // The same again while connected.
    client.send(&auth(ReasonCode::Reauthenticate, &properties));
    count_down(&mut client, 0);
    let received = client.receive();
    assert_eq!(received.auth().reason, ReasonCode::Success);
    assert_eq!(list_of(received.auth().properties), last_two);
    client.ping();
    drop(client);
    server.stop();

    let seen = counting.seen();
    let told: Vec<(&[u8], bool)> = seen.steps.iter().map(|step| (&*step.data, step.is_first)).collect();
    let once = [(&[3][..], true), (&[2], false), (&[1], false), (&[0], false)];
    assert_eq!(told, [once, once].concat());
    let connection = seen.steps[0].connection;
    for step in &seen.steps {
        assert_eq!((&*step.client_id, &*step.method, step.connection), ("counter", COUNT, connection));
    }
    assert_eq!(seen.forgotten, [connection], "once for each connection");
}

#[test]
fn every_end_of_a_connection_is_told() {
    let (mut server, counting) = start();
    let address = server.address;
    let properties = with_method(COUNT, &[3], &[]);
    let connect = Connect { properties: properties.as_properties(), ..connect5("") };
    // Refused at the first step and at a later one, with a code of the method's choice.
    let bad = with_method(COUNT, b"bad", &[]);
    Client::begin(address, &Connect { properties: bad.as_properties(), ..connect5("a") })
        .is_refused(ReasonCode::NotAuthorized);
    let mut late = Client::begin(address, &connect);
    count_down(&mut late, 1);
    assert_eq!(late.receive().auth().reason, ReasonCode::ContinueAuthentication);
    late.send(&auth(ReasonCode::ContinueAuthentication, &with_method(COUNT, b"late", &[])));
    late.is_refused(ReasonCode::ServerBusy);
    // Connected, and then refused.
    let mut again = Client::begin(address, &Connect { will: will("w", b"again"), ..connect });
    count_down(&mut again, 0);
    assert_eq!(again.receive().connack().reason, ReasonCode::Success);
    again.send(&auth(ReasonCode::Reauthenticate, &with_method(COUNT, b"late", &[])));
    again.is_disconnected(ReasonCode::ServerBusy);
    // Gone in the middle, against the protocol in the middle, and with no method at all.
    let mut gone = Client::begin(address, &connect);
    count_down(&mut gone, 2);
    assert_eq!(gone.receive().auth().reason, ReasonCode::ContinueAuthentication);
    drop(gone);
    let mut wrong = Client::begin(address, &connect);
    assert_eq!(wrong.receive().auth().reason, ReasonCode::ContinueAuthentication);
    wrong.send(&Packet::Pingreq);
    wrong.is_refused(ReasonCode::ProtocolError);
    let mut plain = Client::connect(address, &connect5("plain"));
    // One that is still in its exchange when the server stops: there was no CONNACK, so there is no DISCONNECT.
    let mut unfinished = Client::begin(address, &connect);
    assert_eq!(unfinished.receive().auth().reason, ReasonCode::ContinueAuthentication);
    server.stop();
    unfinished.is_closed();
    plain.is_disconnected(ReasonCode::ServerShuttingDown);

    let seen = counting.seen();
    assert!(seen.exchanges.is_empty(), "{seen:?}");
    let mut forgotten = seen.forgotten.clone();
    forgotten.sort_unstable();
    forgotten.dedup();
    assert_eq!((forgotten.len(), seen.forgotten.len()), (7, 7), "each of seven connections once");
}

/// A client that trusts its method may go on at once: nothing that it sends ahead is lost or comes too early [B-083].
#[test]
fn packets_behind_a_connect_wait_for_the_verdict() {
    let (server, counting) = start();
    let properties: PropertyList = [Property::AuthenticationMethod(OPEN)].into_iter().collect();
    let connect = Connect { properties: properties.as_properties(), ..connect5("hasty") };
    // More than the server reads at once.
    const COUNT: usize = 2_000;
    let mut bytes = bytes_of(&Packet::Connect(connect), Protocol::Mqtt5);
    bytes.extend(subscribe_bytes(Protocol::Mqtt5, "t", QoS::AtMostOnce));
    for number in 0..COUNT {
        let payload = format!("{number:0100}");
        bytes.extend(bytes_of(&publish("t", QoS::AtMostOnce, payload.as_bytes()), Protocol::Mqtt5));
    }
    bytes.extend(bytes_of(&Packet::Pingreq, Protocol::Mqtt5));
    // In one piece, and byte by byte over the beginning.
    for cut in [0, 200] {
        let mut client = Client::open(server.address, Protocol::Mqtt5);
        bytes[..cut].iter().for_each(|byte| client.send_bytes(&[*byte]));
        client.send_bytes(&bytes[cut..]);
        let received = client.receive();
        assert_eq!(received.connack().reason, ReasonCode::Success);
        let properties = list_of(received.connack().properties);
        assert_eq!(properties.last(), Some(&Property::AuthenticationMethod(OPEN)), "there is no data");
        assert!(matches!(client.receive().packet(), Packet::Suback(_)));
        for number in 0..COUNT {
            assert_eq!(client.receive().message().1, format!("{number:0100}"));
        }
        assert_eq!(client.receive().packet(), Packet::Pingresp);
    }
    let seen = counting.seen();
    let first = &seen.steps[0];
    assert_eq!((&*first.client_id, &*first.data, first.is_first), ("hasty", &b""[..], true));
}
