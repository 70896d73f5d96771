//! A broker that sends its clients away: to another server, or because it stops.

use broker::broker::Options;
use broker::broker::options::Redirect;
use broker::codec::packet::{Connect, Disconnect, Packet, Protocol, Will};
use broker::codec::property::PropertyList;
use broker::codec::{Properties, Property, QoS, ReasonCode};
use rustix::process::Signal;

use crate::fixture::client::{Client, connect5, connect311, publish, will};
use crate::fixture::program::Program;
use crate::fixture::running::Running;

const ELSEWHERE: &str = "other.example:1883";

fn redirect(permanently: bool) -> Options {
    let redirect = Redirect { server_reference: ELSEWHERE.into(), permanently };
    Options { redirect: Some(redirect), ..Options::default() }
}

fn names_the_other_server(properties: Properties<'_>) -> bool {
    properties.iter().filter(|property| *property == Property::ServerReference(ELSEWHERE)).count() == 1
}

/// A DISCONNECT that names the other server, and the end.
fn is_sent_away(client: &mut Client, reason: ReasonCode) {
    let received = client.is_disconnected(reason);
    assert!(names_the_other_server(received.disconnect().properties), "{received:?}");
}

/// Who comes to a broker that is drained is told where to go, if its version has words for it.
fn nobody_is_let_in(address: std::net::SocketAddr, reason: ReasonCode) {
    let named = connect5("new");
    let stored = Connect { clean_start: false, ..connect5("stored") };
    for connect in [named, stored, connect5(""), Connect { will: will("w", b"never"), ..named }] {
        let received = Client::begin(address, &connect).is_refused(reason);
        assert!(names_the_other_server(received.connack().properties), "{received:?}");
    }
    for protocol in [Protocol::Mqtt311, Protocol::Mqtt31] {
        let connect = Connect { protocol, ..connect311("old") };
        let received = Client::begin(address, &connect).is_refused(ReasonCode::ServerUnavailable);
        assert_eq!(received.bytes, [0x20, 2, 0, 3]);
    }
    // Not for those who cannot be told, nor for those who speak another language.
    let mut client = Client::open(address, Protocol::Mqtt5);
    client.send(&Packet::Pingreq);
    client.is_closed();
    let mut client = Client::open(address, Protocol::Mqtt5);
    client.send_bytes(&[0x10, 8, 0, 4, b'M', b'Q', b'T', b'T', 6, 2]);
    client.is_refused(ReasonCode::UnsupportedProtocolVersion);
}

#[test]
fn a_handle_drains_a_server() {
    for (permanently, reason) in [(false, ReasonCode::UseAnotherServer), (true, ReasonCode::ServerMoved)] {
        let mut server = Running::start(redirect(permanently), None);
        let address = server.address;
        let expiry: PropertyList = [Property::SessionExpirySecs(3600)].into_iter().collect();
        let stored = Connect { clean_start: false, properties: expiry.as_properties(), ..connect5("stored") };
        drop(Client::connect(address, &stored));
        let mut new = Client::connect(address, &connect5("new"));
        let mut old = Client::connect(address, &connect311("old"));
        let mut oldest =
            Client::connect(address, &Connect { protocol: Protocol::Mqtt31, ..connect311("oldest") });
        // Not a client yet, but accepted before the answer to what is sent later.
        let mut silent = Client::open(address, Protocol::Mqtt5);
        new.ping();
        server.handle.drain();
        is_sent_away(&mut new, reason);
        old.is_closed();
        oldest.is_closed();
        silent.send(&Packet::Connect(connect5("silent")));
        let received = silent.is_refused(reason);
        assert!(names_the_other_server(received.connack().properties), "{received:?}");
        nobody_is_let_in(address, reason);
        // Once is enough, and it still stops.
        server.handle.drain();
        nobody_is_let_in(address, reason);
        server.stop();
    }
}

/// To the broker it is an end like any other but the client's own: wills are published, after their delay.
#[test]
fn clients_that_are_sent_away_leave_their_wills() {
    let mut server = Running::start(redirect(false), None);
    // Those that come first are sent away first, so that the watchers see what they leave.
    let mut with_wills = Vec::new();
    for connect in [
        Connect { will: will("w/5", b"sent away"), ..connect5("new") },
        Connect { will: will("w/3", b"sent away"), ..connect311("old") },
    ] {
        with_wills.push(Client::connect(server.address, &connect));
    }
    // This one has a delay and a session to wait in.
    let delay: PropertyList = [Property::WillDelaySecs(3600)].into_iter().collect();
    let expiry: PropertyList = [Property::SessionExpirySecs(7200)].into_iter().collect();
    let later = Will { properties: delay.as_properties(), ..will("w/later", b"later").expect("a will") };
    let connect =
        Connect { will: Some(later), properties: expiry.as_properties(), ..connect5("with a delay") };
    with_wills.push(Client::connect(server.address, &connect));
    // And this one has taken its own back.
    let mut gone =
        Client::connect(server.address, &Connect { will: will("w/no", b"no"), ..connect5("gone") });
    gone.send(&Packet::Disconnect(Disconnect::NORMAL));
    gone.is_closed();

    let mut watchers = [&connect5("watcher"), &connect311("old watcher")]
        .map(|connect| Client::connect(server.address, connect));
    for watcher in &mut watchers {
        watcher.subscribe("w/#", QoS::AtMostOnce);
    }
    server.handle.drain();
    for watcher in &mut watchers {
        let topics = [watcher.receive().message().0, watcher.receive().message().0];
        assert_eq!(topics, ["w/5", "w/3"]);
    }
    let [new, old] = &mut watchers;
    is_sent_away(new, ReasonCode::UseAnotherServer);
    old.is_closed();
    server.stop();
}

/// The words are the first to go where a client takes small packets only, and the other server's name the last: without
/// it, what is left does not help.
#[test]
fn a_small_packet_names_the_other_server_rather_than_the_reason() {
    let server = Running::start(redirect(false), None);
    let reference = [0x1C, 0, ELSEWHERE.len() as u8].len() + ELSEWHERE.len();
    // First byte, remaining length, code and property length; a CONNACK has flags besides.
    let (disconnect_bytes, connack_bytes) = (4 + reference as u32, 5 + reference as u32);
    let of_size = |maximum| -> PropertyList { [Property::MaximumPacketSize(maximum)].into_iter().collect() };

    // Large enough for its good CONNACK, which has some properties as well.
    let size = of_size(disconnect_bytes);
    let connect = Connect { properties: size.as_properties(), ..connect5("small") };
    let mut small = Client::connect(server.address, &connect);
    let size = of_size(disconnect_bytes - 1);
    let connect = Connect { properties: size.as_properties(), ..connect5("smaller") };
    let mut smaller = Client::connect(server.address, &connect);
    server.handle.drain();
    let received = small.is_disconnected(ReasonCode::UseAnotherServer);
    let properties: Vec<Property<'_>> = received.disconnect().properties.iter().collect();
    assert_eq!(properties, [Property::ServerReference(ELSEWHERE)]);
    let received = smaller.is_disconnected(ReasonCode::UseAnotherServer);
    assert_eq!(received.bytes, [0xE0, 1, 0x9C]);

    for (maximum, expected) in
        [(connack_bytes, &[Property::ServerReference(ELSEWHERE)][..]), (connack_bytes - 1, &[])]
    {
        let size = of_size(maximum);
        let connect = Connect { properties: size.as_properties(), ..connect5("small") };
        let received = Client::begin(server.address, &connect).is_refused(ReasonCode::UseAnotherServer);
        let properties: Vec<Property<'_>> = received.connack().properties.iter().collect();
        assert_eq!(properties, expected);
    }
}

#[test]
fn a_server_without_another_one_is_not_drained() {
    let server = Running::start(Options::default(), None);
    let mut client = Client::connect(server.address, &connect5("a"));
    server.handle.drain();
    // The request is looked at before anything is read in a turn.
    client.ping();
    Client::connect(server.address, &connect5("b")).ping();
    Client::connect(server.address, &connect311("c")).ping();
    client.ping();
}

#[test]
fn the_program_is_drained_by_a_signal() {
    for (arguments, reason) in [
        (&["--redirect-to", ELSEWHERE][..], ReasonCode::UseAnotherServer),
        (&["--redirect-to", ELSEWHERE, "--redirect-permanently"], ReasonCode::ServerMoved),
    ] {
        let mut program = Program::start(arguments);
        let with_will = Connect { will: will("w", b"sent away"), ..connect5("new") };
        let mut new = Client::connect(program.address, &with_will);
        let mut old = Client::connect(program.address, &connect311("old"));
        old.subscribe("w", QoS::AtMostOnce);
        program.signal(Signal::USR1);
        is_sent_away(&mut new, reason);
        assert_eq!(old.receive().message().1, "sent away");
        old.is_closed();
        assert!(program.line("draining").contains("2 clients"));
        assert!(program.line("client \"new\"").contains("sent to another server"));
        nobody_is_let_in(program.address, reason);
        program.signal(Signal::TERM);
        program.ends_in_order();
    }
}

#[test]
fn a_signal_to_drain_a_program_that_knows_no_other_server_is_a_log_line() {
    let mut program = Program::start(&[]);
    let mut new = Client::connect(program.address, &connect5("new"));
    let mut old = Client::connect(program.address, &connect311("old"));
    program.signal(Signal::USR1);
    let line = program.line("cannot drain");
    assert!(line.contains("WARN") && line.contains("--redirect-to"), "{line}");
    new.ping();
    old.ping();
    Client::connect(program.address, &connect5("newer")).ping();
    Client::connect(program.address, &connect311("older")).ping();
    program.signal(Signal::TERM);
    new.is_disconnected(ReasonCode::ServerShuttingDown);
    old.is_closed();
    program.ends_in_order();
}

/// [B-100]
#[test]
fn a_server_that_stops_says_so() {
    let mut server = Running::start(Options::default(), None);
    let mut clients: Vec<Client> =
        (0..20).map(|number| Client::connect(server.address, &connect5(&format!("c{number}")))).collect();
    let mut old = Client::connect(server.address, &connect311("old"));
    // Not a client yet, so there is no DISCONNECT for it [MQTT5-3.14.0-1].
    let mut silent = Client::open(server.address, Protocol::Mqtt5);
    clients[0].ping();
    server.stop();
    for client in &mut clients {
        let received = client.is_disconnected(ReasonCode::ServerShuttingDown);
        assert_eq!(
            received.disconnect().properties.iter().collect::<Vec<_>>(),
            [Property::ReasonString("server shutdown")]
        );
    }
    old.is_closed();
    silent.is_closed();

    for signal in [Signal::TERM, Signal::INT] {
        let mut program = Program::start(&[]);
        let mut client = Client::connect(program.address, &connect5("a"));
        program.signal(signal);
        client.is_disconnected(ReasonCode::ServerShuttingDown);
        program.ends_in_order();
    }
}

/// Nobody will be here to publish them later [B-029].
#[test]
fn a_server_that_stops_publishes_the_wills_that_wait_for_their_delay() {
    let mut server = Running::start(Options::default(), None);
    let address = server.address;
    let mut watcher = Client::connect(address, &connect5("watcher"));
    watcher.subscribe("w/#", QoS::AtLeastOnce);
    let delay: PropertyList = [Property::WillDelaySecs(3600)].into_iter().collect();
    let expiry: PropertyList = [Property::SessionExpirySecs(7200)].into_iter().collect();
    let with_will = |client_id, topic, qos| Connect {
        will: Some(Will {
            topic,
            payload: b"stopped",
            qos,
            retain: false,
            properties: delay.as_properties(),
        }),
        properties: expiry.as_properties(),
        ..connect5(client_id)
    };
    // One whose client is gone, one whose client is there, and one without a delay.
    let mut gone = Client::connect(address, &with_will("gone", "w/gone", QoS::AtLeastOnce));
    let reason = ReasonCode::DisconnectWithWill;
    gone.send(&Packet::Disconnect(Disconnect { reason, ..Disconnect::NORMAL }));
    gone.is_closed();
    let mut here = Client::connect(address, &with_will("here", "w/here", QoS::AtMostOnce));
    let mut at_once =
        Client::connect(address, &Connect { will: will("w/at once", b"stopped"), ..connect5("at once") });
    // This one is not for anybody to see.
    let mut left = Client::connect(address, &with_will("left", "w/left", QoS::AtMostOnce));
    left.send(&Packet::Disconnect(Disconnect::NORMAL));
    left.is_closed();
    watcher.ping();

    server.stop();
    let mut topics: Vec<String> = (0..3)
        .map(|_| {
            let (topic, payload) = watcher.receive().message();
            assert_eq!(payload, "stopped");
            topic
        })
        .collect();
    topics.sort_unstable();
    assert_eq!(topics, ["w/at once", "w/gone", "w/here"]);
    watcher.is_disconnected(ReasonCode::ServerShuttingDown);
    here.is_disconnected(ReasonCode::ServerShuttingDown);
    at_once.is_disconnected(ReasonCode::ServerShuttingDown);
}

/// What is on its way when the server stops still arrives.
#[test]
fn a_server_that_stops_flushes_before_it_says_so() {
    let mut server = Running::start(Options::default(), None);
    let mut reader = Client::connect(server.address, &connect5("reader"));
    reader.subscribe("t", QoS::AtMostOnce);
    let mut publisher = Client::connect(server.address, &connect5("publisher"));
    for number in 0..50 {
        let payload = format!("{number:08000}");
        publisher.send(&publish("t", QoS::AtMostOnce, payload.as_bytes()));
    }
    publisher.ping();
    server.handle.stop();
    for number in 0..50 {
        assert_eq!(reader.receive().message().1, format!("{number:08000}"));
    }
    reader.is_disconnected(ReasonCode::ServerShuttingDown);
    server.stop();
}
