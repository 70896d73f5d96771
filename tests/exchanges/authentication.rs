//! Enhanced authentication: SCRAM-SHA-256 over real sockets with a client of its own, and the program with its file of
//! users. What an embedding program's own methods may do is in `own_method`, and verdicts that come late are in
//! `late_verdicts`.

use std::net::SocketAddr;
use std::path::PathBuf;

use broker::access::{Verifier, Verifiers};
use broker::broker::Options;
use broker::codec::packet::{Ack, Auth, Connack, Connect, Disconnect, Packet, Protocol};
use broker::codec::property::PropertyList;
use broker::codec::{Properties, Property, QoS, ReasonCode};
use broker::server::Scram;

use crate::fixture::client::{Client, Received, bytes_of, connect5, publish, subscribe_bytes, will};
use crate::fixture::program::{Program, run};
use crate::fixture::running::Running;
use crate::scram_client::ScramClient;

const METHOD: &str = "SCRAM-SHA-256";
const NONCE: &str = "fyko+d2lbbFgONRv9qkxdawL";

/// A server for the users anna, with the password "one", and bert, with "two".
fn server() -> Running {
    let line = |name, password| {
        let verifier = Verifier::from_password(password, b"0123456789abcdef", 4096);
        verifier.expect("a good password").to_line(name).expect("a good name")
    };
    let file = format!("# users\n{}\n{}\n", line("anna", "one"), line("bert", "two"));
    let verifiers = Verifiers::parse(&file).expect("a good file");
    Running::start(Options::default(), Some(Box::new(Scram::new(verifiers))))
}

fn bert() -> ScramClient {
    ScramClient::new("bert", "two", NONCE)
}

fn anna() -> ScramClient {
    ScramClient::new("anna", "one", NONCE)
}

/// These properties behind a method with data.
pub(crate) fn with_method<'a>(method: &'a str, data: &'a [u8], others: &[Property<'a>]) -> PropertyList {
    [Property::AuthenticationMethod(method), Property::AuthenticationData(data)]
        .into_iter()
        .chain(others.iter().copied())
        .collect()
}

pub(crate) fn auth(reason: ReasonCode, properties: &PropertyList) -> Packet<'_> {
    Packet::Auth(Auth { reason, properties: properties.as_properties() })
}

/// The data of a packet that has SCRAM-SHA-256 for its method. These two stand last.
fn data_of(properties: Properties<'_>) -> Vec<u8> {
    let properties: Vec<Property<'_>> = properties.iter().collect();
    match properties[..] {
        [.., Property::AuthenticationMethod(METHOD), Property::AuthenticationData(data)] => data.to_vec(),
        _ => panic!("the method with data was expected: {properties:?}"),
    }
}

/// The data of an AUTH that goes on with the exchange, and has nothing else in it [MQTT5-4.12.0-2].
fn challenge_of(received: &Received) -> Vec<u8> {
    let auth = received.auth();
    assert_eq!((received.bytes[0], auth.reason), (0xF0, ReasonCode::ContinueAuthentication));
    assert_eq!(auth.properties.iter().count(), 2, "{auth:?}");
    data_of(auth.properties)
}

/// Sends a CONNECT that begins an exchange.
fn begin(address: SocketAddr, scram: &ScramClient, connect: &Connect<'_>, others: &[Property<'_>]) -> Client {
    let first = scram.first();
    let properties = with_method(METHOD, &first, others);
    Client::begin(address, &Connect { properties: properties.as_properties(), ..*connect })
}

/// Says the last word of an exchange.
fn finish(client: &mut Client, scram: &mut ScramClient, challenge: &[u8]) {
    let last = scram.last(challenge);
    client.send(&auth(ReasonCode::ContinueAuthentication, &with_method(METHOD, &last, &[])));
}

/// A client in the middle of its exchange: the server has asked for the proof, which is made from what is returned.
fn in_exchange(address: SocketAddr, client_id: &str) -> (Client, Vec<u8>) {
    let mut client = begin(address, &anna(), &connect5(client_id), &[]);
    let challenge = challenge_of(&client.receive());
    (client, challenge)
}

/// Has a CONNECT with these further properties accepted after a whole exchange.
fn authenticated(
    address: SocketAddr,
    connect: &Connect<'_>,
    others: &[Property<'_>],
    session_present: bool,
) -> Client {
    let mut scram = anna();
    let mut client = begin(address, &scram, connect, others);
    let challenge = challenge_of(&client.receive());
    finish(&mut client, &mut scram, &challenge);
    let received = client.receive();
    let connack = received.connack();
    assert_eq!((connack.reason, connack.session_present), (ReasonCode::Success, session_present));
    assert!(scram.trusts(&data_of(connack.properties)));
    client
}

/// A client that subscribes to everything, without a method.
fn watcher(address: SocketAddr) -> Client {
    let mut watcher = Client::connect(address, &connect5("watcher"));
    watcher.subscribe("#", QoS::AtMostOnce);
    watcher
}

/// [MQTT5-4.12.0-2] [MQTT5-4.12.0-5]
#[test]
fn client_and_server_prove_who_they_are() {
    let server = server();
    let mut scram = anna();
    let mut client = begin(server.address, &scram, &connect5("a"), &[]);
    let challenge = challenge_of(&client.receive());
    finish(&mut client, &mut scram, &challenge);
    let received = client.receive();
    let Connack { session_present, reason, properties } = received.connack();
    assert_eq!((session_present, reason), (false, ReasonCode::Success));
    let signature = data_of(properties);
    assert!(scram.trusts(&signature), "{}", String::from_utf8_lossy(&signature));
    // From here on it is a client like any other, and there is no second CONNACK.
    client.subscribe("a/b", QoS::AtLeastOnce);
    client.send(&publish("a/b", QoS::AtMostOnce, b"hello"));
    assert_eq!(client.receive().message(), ("a/b".to_owned(), "hello".to_owned()));
    client.ping();

    // Every exchange has a nonce of its own.
    let (_other, other_challenge) = in_exchange(server.address, "b");
    assert_ne!(challenge, other_challenge);
    // Who names no method is asked for none [MQTT5-4.12.0-6].
    let mut plain = Client::begin(server.address, &connect5("c"));
    let received = plain.receive();
    let has_method = |property| matches!(property, Property::AuthenticationMethod(_));
    assert!(!received.connack().properties.iter().any(has_method));
}

/// [MQTT5-4.12.0-4]
#[test]
fn who_proves_nothing_is_refused_and_changes_nothing() {
    let server = server();
    let expiry = [Property::SessionExpirySecs(3600)];
    let stored = Connect { clean_start: false, ..connect5("stored") };
    drop(authenticated(server.address, &stored, &expiry, false));
    let mut connected = authenticated(server.address, &connect5("connected"), &[], false);

    let fresh = Connect { clean_start: false, ..connect5("fresh") };
    let clean = Connect { will: will("w", b"refused"), ..connect5("stored") };
    let mut watcher = watcher(server.address);
    let mut refusals = Vec::new();
    for (name, password) in [("anna", "wrong"), ("anna", "two"), ("nobody", "one"), ("Anna", "one")] {
        // A Clean Start by a stranger does not throw the session away, and its name takes nobody's connection.
        for connect in [&fresh, &clean, &connect5("connected"), &connect5("")] {
            let mut scram = ScramClient::new(name, password, NONCE);
            let mut client = begin(server.address, &scram, connect, &expiry);
            let challenge = challenge_of(&client.receive());
            finish(&mut client, &mut scram, &challenge);
            refusals.push(client.is_refused(ReasonCode::NotAuthorized));
        }
    }
    // Nothing tells a wrong password from an unknown name.
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");

    // At the first step as well.
    for first in [&b""[..], b"anna", b"n,,n=anna", b"p=tls-unique,,n=anna,r=abc", b"n,a=bert,n=anna,r=abc"] {
        let properties = with_method(METHOD, first, &[]);
        let connect = Connect { properties: properties.as_properties(), ..fresh };
        Client::begin(server.address, &connect).is_refused(ReasonCode::NotAuthorized);
    }
    // A proof for another exchange is none.
    let (_, other) = in_exchange(server.address, "other");
    let (mut client, _) = in_exchange(server.address, "fresh");
    finish(&mut client, &mut anna(), &other);
    client.is_refused(ReasonCode::NotAuthorized);

    connected.ping();
    watcher.ping();
    // Nobody has made this session, and nobody has ended that one.
    authenticated(server.address, &fresh, &[], false).ping();
    authenticated(server.address, &stored, &[], true).ping();
}

/// [MQTT5-3.1.2-30]
#[test]
fn nothing_but_auth_and_disconnect_is_taken_in_an_exchange() {
    let server = server();
    let mut watcher = watcher(server.address);
    let subscribe = subscribe_bytes(Protocol::Mqtt5, "a/b", QoS::AtMostOnce);
    let others = [
        publish("a/b", QoS::AtMostOnce, b"too early"),
        publish("a/b", QoS::AtLeastOnce, b"too early"),
        Packet::Puback(Ack::success(broker::codec::PacketId::FIRST)),
        Packet::Pingreq,
        Packet::Pingresp,
        Packet::Connect(connect5("again")),
    ];
    let others = others.iter().map(|packet| bytes_of(packet, Protocol::Mqtt5));
    for bytes in std::iter::once(subscribe).chain(others) {
        let (mut client, _) = in_exchange(server.address, "a");
        client.send_bytes(&bytes);
        client.is_refused(ReasonCode::ProtocolError);

        // The same behind CONNECT in one piece: the server's answer to the first step may come first.
        let first = anna().first();
        let properties = with_method(METHOD, &first, &[]);
        let connect = Connect { properties: properties.as_properties(), ..connect5("a") };
        let mut client = Client::open(server.address, Protocol::Mqtt5);
        client.send_bytes(&[bytes_of(&Packet::Connect(connect), Protocol::Mqtt5), bytes].concat());
        challenge_of(&client.receive());
        client.is_refused(ReasonCode::ProtocolError);
    }

    // A client may give up, and gets no word for it.
    for disconnect in [
        Disconnect::NORMAL,
        Disconnect { reason: ReasonCode::DisconnectWithWill, ..Disconnect::NORMAL },
        Disconnect { reason: ReasonCode::NotAuthorized, ..Disconnect::NORMAL },
    ] {
        let first = anna().first();
        let properties = with_method(METHOD, &first, &[]);
        let connect = Connect {
            will: will("w", b"never connected"),
            properties: properties.as_properties(),
            ..connect5("a")
        };
        let mut client = Client::begin(server.address, &connect);
        challenge_of(&client.receive());
        client.send(&Packet::Disconnect(disconnect));
        client.is_closed();
    }
    // Or just leave.
    drop(in_exchange(server.address, "a"));
    watcher.ping();
    authenticated(server.address, &Connect { clean_start: false, ..connect5("a") }, &[], false).ping();
}

/// [MQTT5-4.12.0-3]
#[test]
fn a_client_goes_on_with_code_18_only() {
    let server = server();
    for reason in [ReasonCode::Reauthenticate, ReasonCode::Success] {
        let (mut client, challenge) = in_exchange(server.address, "a");
        let last = anna().last(&challenge);
        client.send(&auth(reason, &with_method(METHOD, &last, &[])));
        client.is_refused(ReasonCode::ProtocolError);
    }
}

/// [MQTT5-4.12.0-5]
#[test]
fn a_client_repeats_its_method() {
    let server = server();
    for method in [Some("SCRAM-SHA-1"), Some("scram-sha-256"), Some(""), None] {
        let (mut client, challenge) = in_exchange(server.address, "a");
        let last = anna().last(&challenge);
        let method = method.map(Property::AuthenticationMethod);
        let properties = method.into_iter().chain([Property::AuthenticationData(&last)]).collect();
        client.send(&auth(ReasonCode::ContinueAuthentication, &properties));
        client.is_refused(ReasonCode::ProtocolError);
    }
    let (mut client, _) = in_exchange(server.address, "a");
    client.send(&auth(ReasonCode::Success, &PropertyList::default()));
    client.is_refused(ReasonCode::ProtocolError);
    // Data without a method is nobody's.
    let data: PropertyList = [Property::AuthenticationData(b"n,,n=anna,r=abc")].into_iter().collect();
    let connect = Connect { properties: data.as_properties(), ..connect5("a") };
    Client::begin(server.address, &connect).is_refused(ReasonCode::ProtocolError);
}

/// [MQTT5-3.15.2-2] [MQTT5-3.15.2-3]
#[test]
fn a_challenge_has_no_words_and_is_never_larger_than_the_client_takes() {
    let server = server();
    // However much a client wants to hear, there are a method and data, and no 1F or 26.
    let talkative = [Property::RequestProblemInformation(true), Property::UserProperty("tell", "me")];
    let mut client = begin(server.address, &anna(), &connect5("a"), &talkative);
    let received = client.receive();
    challenge_of(&received);
    let size = received.bytes.len() as u32;

    for maximum in [size, size + 1] {
        let mut scram = anna();
        let limit = [Property::MaximumPacketSize(maximum)];
        let mut client = begin(server.address, &scram, &connect5("a"), &limit);
        let received = client.receive();
        assert_eq!(received.bytes.len() as u32, size);
        finish(&mut client, &mut scram, &challenge_of(&received));
        assert_eq!(client.receive().connack().reason, ReasonCode::Success);
        // Again while connected.
        let mut scram = anna();
        client.send(&auth(ReasonCode::Reauthenticate, &with_method(METHOD, &scram.first(), &[])));
        let received = client.receive();
        assert_eq!(received.bytes.len() as u32, size);
        finish(&mut client, &mut scram, &challenge_of(&received));
        let received = client.receive();
        assert!(received.bytes.len() as u32 <= maximum);
        assert_eq!(received.auth().properties.iter().count(), 2);
    }
    // One byte less, and the exchange cannot go on: nothing that is too large is sent.
    for maximum in [size - 1, 20, 5] {
        let limit = [Property::MaximumPacketSize(maximum)];
        let mut client = begin(server.address, &anna(), &connect5("a"), &limit);
        let received = client.is_refused(ReasonCode::PacketTooLarge);
        assert!(received.bytes.len() as u32 <= maximum);
    }
    begin(server.address, &anna(), &connect5("a"), &[Property::MaximumPacketSize(4)]).is_closed();
}

/// [MQTT5-4.12.1-1]
#[test]
fn a_connected_client_authenticates_again_while_traffic_flows() {
    let server = server();
    let mut publisher = Client::connect(server.address, &connect5("publisher"));
    let mut client = authenticated(server.address, &connect5("a"), &[], false);
    client.subscribe("t", QoS::AtMostOnce);
    let mut traffic = |client: &mut Client, text: &str| {
        publisher.send(&publish("t", QoS::AtMostOnce, text.as_bytes()));
        assert_eq!(client.receive().message(), ("t".to_owned(), text.to_owned()));
        client.send(&publish("t", QoS::AtMostOnce, b"mine"));
        assert_eq!(client.receive().message().1, "mine");
        client.ping();
    };
    for nonce in ["one", "two"] {
        let mut scram = ScramClient::new("anna", "one", nonce);
        traffic(&mut client, "before");
        client.send(&auth(ReasonCode::Reauthenticate, &with_method(METHOD, &scram.first(), &[])));
        let challenge = challenge_of(&client.receive());
        traffic(&mut client, "meanwhile");
        finish(&mut client, &mut scram, &challenge);
        // AUTH with code 00, and never a second CONNACK.
        let received = client.receive();
        assert_eq!(received.auth().reason, ReasonCode::Success);
        assert!(scram.trusts(&data_of(received.auth().properties)));
        assert_eq!(received.auth().properties.iter().count(), 2);
        traffic(&mut client, "afterwards");
    }
    // Another user, however honest, is not the one that this session belongs to.
    let mut scram = bert();
    client.send(&auth(ReasonCode::Reauthenticate, &with_method(METHOD, &scram.first(), &[])));
    let challenge = challenge_of(&client.receive());
    finish(&mut client, &mut scram, &challenge);
    client.is_disconnected(ReasonCode::NotAuthorized);
}

/// [B-039]
#[test]
fn a_session_goes_on_with_nobody_but_its_user() {
    let server = server();
    let connect = Connect { clean_start: false, ..connect5("a") };
    let expiry = [Property::SessionExpirySecs(3600)];
    let mut client = authenticated(server.address, &connect, &expiry, false);
    client.subscribe("queued", QoS::AtLeastOnce);
    // Neither by take-over nor by a clean start, neither as somebody else nor as nobody.
    for clean_start in [false, true] {
        let connect = Connect { clean_start, ..connect };
        let mut scram = bert();
        let mut other = begin(server.address, &scram, &connect, &expiry);
        let challenge = challenge_of(&other.receive());
        finish(&mut other, &mut scram, &challenge);
        other.is_refused(ReasonCode::NotAuthorized);
        Client::begin(server.address, &connect).is_refused(ReasonCode::NotAuthorized);
    }
    client.ping();
    client.send(&Packet::Disconnect(Disconnect::NORMAL));
    client.is_closed();
    authenticated(server.address, &connect, &expiry, true);
}

/// [MQTT5-4.12.1-1] [MQTT5-4.12.0-7]
#[test]
fn what_does_not_begin_an_exchange_anew_ends_the_connection() {
    let server = server();
    let first = anna().first();
    let cases = [
        (ReasonCode::Reauthenticate, with_method("SCRAM-SHA-1", &first, &[])),
        (ReasonCode::Reauthenticate, with_method("", &first, &[])),
        (ReasonCode::Reauthenticate, [Property::AuthenticationData(&first)].into_iter().collect()),
        (ReasonCode::Reauthenticate, PropertyList::default()),
        (ReasonCode::ContinueAuthentication, with_method(METHOD, &first, &[])),
        (ReasonCode::Success, with_method(METHOD, &first, &[])),
        (ReasonCode::Success, PropertyList::default()),
    ];
    for (reason, properties) in &cases {
        let mut client = authenticated(server.address, &connect5("a"), &[], false);
        client.send(&auth(*reason, properties));
        client.is_disconnected(ReasonCode::ProtocolError);
    }
    // In the middle of one: with another method, or from the beginning.
    for (reason, method) in [
        (ReasonCode::ContinueAuthentication, "SCRAM-SHA-1"),
        (ReasonCode::Reauthenticate, METHOD),
        (ReasonCode::Success, METHOD),
    ] {
        let mut scram = anna();
        let mut client = authenticated(server.address, &connect5("a"), &[], false);
        client.send(&auth(ReasonCode::Reauthenticate, &with_method(METHOD, &scram.first(), &[])));
        let last = scram.last(&challenge_of(&client.receive()));
        client.send(&auth(reason, &with_method(method, &last, &[])));
        client.is_disconnected(ReasonCode::ProtocolError);
    }
    // Who named no method at CONNECT cannot begin with one.
    for (reason, properties) in
        cases.iter().chain([&(ReasonCode::Reauthenticate, with_method(METHOD, &first, &[]))])
    {
        let mut client = Client::connect(server.address, &connect5("plain"));
        client.send(&auth(*reason, properties));
        client.is_disconnected(ReasonCode::ProtocolError);
    }
}

/// [MQTT5-4.12.1-2]
#[test]
fn who_fails_to_authenticate_again_is_closed_and_leaves_its_will() {
    let server = server();
    let mut watcher = watcher(server.address);
    let with_will = Connect { will: will("w", b"failed"), clean_start: false, ..connect5("a") };
    let expiry = [Property::SessionExpirySecs(3600)];
    let mut session_present = false;
    for (name, password) in [("anna", "wrong"), ("nobody", "one")] {
        let mut client = authenticated(server.address, &with_will, &expiry, session_present);
        let mut scram = ScramClient::new(name, password, NONCE);
        client.send(&auth(ReasonCode::Reauthenticate, &with_method(METHOD, &scram.first(), &[])));
        let challenge = challenge_of(&client.receive());
        finish(&mut client, &mut scram, &challenge);
        client.is_disconnected(ReasonCode::NotAuthorized);
        assert_eq!(watcher.receive().message(), ("w".to_owned(), "failed".to_owned()));
        session_present = true;
    }
    // At the first step as well.
    let mut client = authenticated(server.address, &with_will, &expiry, true);
    client.send(&auth(ReasonCode::Reauthenticate, &with_method(METHOD, b"anna", &[])));
    client.is_disconnected(ReasonCode::NotAuthorized);
    assert_eq!(watcher.receive().message().1, "failed");
    watcher.ping();
}

#[test]
fn sessions_wills_and_take_over_are_those_of_any_client() {
    let server = server();
    let mut watcher = watcher(server.address);
    let with_will = Connect { will: will("w", b"gone"), clean_start: false, ..connect5("a") };
    let expiry = [Property::SessionExpirySecs(3600)];
    let mut old = authenticated(server.address, &with_will, &expiry, false);
    old.subscribe("queued", QoS::AtLeastOnce);
    let mut new = authenticated(server.address, &with_will, &expiry, true);
    old.is_disconnected(ReasonCode::SessionTakenOver);
    assert_eq!(watcher.receive().message(), ("w".to_owned(), "gone".to_owned()));
    // The client's own end keeps the will back and the session up.
    new.send(&Packet::Disconnect(Disconnect::NORMAL));
    new.is_closed();
    let mut publisher = Client::connect(server.address, &connect5("publisher"));
    publisher.send(&publish("queued", QoS::AtLeastOnce, b"for a"));
    assert!(matches!(publisher.receive().packet(), Packet::Puback(_)));
    assert_eq!(watcher.receive().message().0, "queued");
    let mut back = authenticated(server.address, &with_will, &expiry, true);
    let received = back.receive();
    assert_eq!((received.message().1.as_str(), received.publish().qos), ("for a", QoS::AtLeastOnce));
    // An end without DISCONNECT.
    drop(back);
    assert_eq!(watcher.receive().message().1, "gone");

    // Whom the server names learns it in the same CONNACK.
    let mut scram = anna();
    let mut unnamed = begin(server.address, &scram, &connect5(""), &[]);
    let challenge = challenge_of(&unnamed.receive());
    finish(&mut unnamed, &mut scram, &challenge);
    let received = unnamed.receive();
    let properties = received.connack().properties;
    assert!(scram.trusts(&data_of(properties)));
    let is_name = |property| matches!(property, Property::AssignedClientId(name) if name.len() == 23);
    assert!(properties.iter().any(is_name));
}

#[test]
fn bytes_that_are_no_packet_are_refused_in_an_exchange_too() {
    let server = server();
    let packet_too_large = [0xF0, 0x80, 0x80, 0x40];
    for (bytes, reason) in [
        // [MQTT5-3.15.1-1]
        (&[0xF1, 0x00][..], ReasonCode::MalformedPacket),
        (&[0x00, 0x00], ReasonCode::MalformedPacket),
        (&[0x36, 0x00], ReasonCode::MalformedPacket),
        (&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF], ReasonCode::MalformedPacket),
        // An AUTH whose property length is wrong, one with a property that it cannot have, one with two methods, and one
        // with a code that it cannot have [MQTT5-3.15.2-1].
        (&[0xF0, 0x02, 0x18, 0x01], ReasonCode::MalformedPacket),
        (&[0xF0, 0x04, 0x18, 0x02, 0x17, 0x01], ReasonCode::MalformedPacket),
        (&[0xF0, 0x0A, 0x18, 0x08, 0x15, 0, 1, b'a', 0x15, 0, 1, b'a'], ReasonCode::ProtocolError),
        (&[0xF0, 0x01, 0x80], ReasonCode::ProtocolError),
        (&packet_too_large, ReasonCode::PacketTooLarge),
        // A CONNECT that is none, of another version.
        (&[0x10, 0x06, 0, 4, b'M', b'Q', b'T', b'T'], ReasonCode::MalformedPacket),
        (&[0x10, 0x07, 0, 4, b'M', b'Q', b'T', b'T', 4], ReasonCode::MalformedPacket),
    ] {
        let (mut client, _) = in_exchange(server.address, "a");
        client.send_bytes(bytes);
        client.is_refused(reason);
    }
    authenticated(server.address, &connect5("a"), &[], false).ping();
}

/// Where a test keeps a file of its own.
fn path_of(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn the_program_makes_the_lines_that_it_reads() {
    let made = |name: &str, input: &[u8]| {
        let output = run(&["--scram-verifier", name], input);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let line = String::from_utf8(output.stdout).expect("text");
        assert!(line.starts_with(&format!("{name}:{METHOD}$")) && line.lines().count() == 1, "{line}");
        line
    };
    // The end of the line is not part of the password, whether it is there or not.
    let (anna, bert) = (made("anna", b"one\n"), made("bert b", "zw\u{f6}lf".as_bytes()));
    assert_ne!(made("anna", b"one\n"), anna, "every line has a salt of its own");
    let path = path_of("users.scram");
    std::fs::write(&path, format!("# {METHOD}\n\n{anna}{bert}")).expect("a file can be written");
    let file = path.to_str().expect("a plain path");

    let program = Program::start(&["--scram-file", file]);
    for (name, password, is_right) in [
        ("anna", "one", true),
        ("bert b", "zw\u{f6}lf", true),
        ("anna", "one\n", false),
        ("anna", "zw\u{f6}lf", false),
        ("bert", "zw\u{f6}lf", false),
    ] {
        let mut scram = ScramClient::new(name, password, NONCE);
        let mut client = begin(program.address, &scram, &connect5("a"), &[]);
        let challenge = challenge_of(&client.receive());
        finish(&mut client, &mut scram, &challenge);
        if is_right {
            let received = client.receive();
            assert_eq!(received.connack().reason, ReasonCode::Success);
            assert!(scram.trusts(&data_of(received.connack().properties)));
            client.ping();
        } else {
            client.is_refused(ReasonCode::NotAuthorized);
            assert!(program.line("authentication failed").contains("WARN"));
        }
    }
    drop(program);

    // Without the option there is no method [MQTT5-4.12.0-1].
    let program = Program::start(&[]);
    begin(program.address, &self::anna(), &connect5("a"), &[])
        .is_refused(ReasonCode::BadAuthenticationMethod);
    assert!(program.line("unknown authentication method").contains("--scram-file"));
}

#[test]
fn a_file_of_users_that_is_wrong_is_one_line_and_status_3() {
    let good = run(&["--scram-verifier", "anna"], b"one");
    let good = String::from_utf8(good.stdout).expect("text");
    let salt = good.split([':', '$']).nth(3).expect("a salt");
    for (number, (text, words)) in [
        (format!("# users\n\n{good}anna\n"), "line 4: "),
        ("anna:secret\n".to_owned(), "line 1: "),
        (format!("{good}{good}"), "line 2: "),
        (good.replace("$100000:", "$1:"), "line 1: "),
        (good[..good.len() - 3].to_owned(), "line 1: "),
    ]
    .iter()
    .enumerate()
    {
        let path = path_of(&format!("wrong-{number}.scram"));
        std::fs::write(&path, text).expect("a file can be written");
        let file = path.to_str().expect("a plain path");
        let output = run(&["-h", "127.0.0.1", "-p", "0", "--scram-file", file], b"");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("broker: ") && line.contains(file) && line.contains(words), "{line}");
        assert!(!line.contains("secret") && !line.contains(salt), "no secret is told: {line}");
    }
    let path = path_of("binary.scram");
    std::fs::write(&path, b"anna:\xff\n").expect("a file can be written");
    let absent = path_of("absent.scram");
    for path in [path, absent] {
        let file = path.to_str().expect("a plain path");
        let output = run(&["-h", "127.0.0.1", "-p", "0", "--scram-file", file], b"");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), line.lines().count()), (Some(3), 1), "{line}");
        assert!(line.contains(file), "{line}");
    }
}

#[test]
fn names_and_passwords_that_cannot_be_are_one_line_and_no_verifier() {
    let long = "n".repeat(1025);
    let too_long = [b'p'; 5000];
    for (name, password) in [
        ("", &b"one"[..]),
        ("an:na", b"one"),
        ("#anna", b"one"),
        ("an\nna", b"one"),
        (&long, b"one"),
        ("anna", b""),
        ("anna", b"\n"),
        ("anna", b"a\x07b"),
        ("anna", b"one\ntwo\n"),
        ("anna", b"\xff\xfe"),
        // Not cut off: its owner would not know what is left of it.
        ("anna", &too_long),
    ] {
        let output = run(&["--scram-verifier", name], password);
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{name:?}, a password of {} bytes", password.len());
        assert!(output.stdout.is_empty(), "{output:?}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("broker: "), "{line}");
    }
    let output = run(&["--scram-verifier"], b"one");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}
