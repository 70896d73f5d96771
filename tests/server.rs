//! The server under load and at its end, over real sockets: what a dialog cannot say because it is about many clients,
//! about clients that do not read, or about memory.

mod support;

use std::io::Read;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use broker::broker::Options;
use broker::clock::Duration;
use broker::codec::packet::{Ack, Connect, Packet, Publish};
use broker::codec::{PacketId, Protocol, QoS};
use broker::server::{Handle, Server};
use support::{Client, Received, connect, publish, will};

/// A server on a thread of its own; dropping it stops it.
struct Running {
    address: SocketAddr,
    handle: Handle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    fn start(limits: Options) -> Self {
        let addresses = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        let options =
            broker::server::Options { addresses, broker: limits, ..broker::server::Options::default() };
        let server = Server::bind(options).expect("a free port can be bound");
        let address = server.local_addresses()[0];
        let handle = server.handle();
        Self { address, handle, thread: Some(std::thread::spawn(move || server.run())) }
    }

    /// Stops the server and waits until it has ended.
    fn stop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the loop does not panic").expect("the loop does not fail");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line for it");
    let kib: usize = line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    kib * 1024
}

#[test]
fn a_stopping_server_publishes_wills_and_flushes() {
    // [B-029]
    let mut server = Running::start(Options::default());
    let mut watcher = Client::connect(server.address, connect("watcher"));
    watcher.subscribe("w/#", QoS::AtMostOnce);
    let _others: Vec<Client> = (0..20)
        .map(|number| {
            let client_id = format!("c{number}");
            let will = will("w/x", b"stopped");
            Client::connect(server.address, Connect { will, ..connect(&client_id) })
        })
        .collect();
    server.stop();
    for _ in 0..20 {
        assert!(matches!(watcher.receive(), Received::Publish { topic, .. } if topic == "w/x"));
    }
    assert_eq!(watcher.receive(), Received::Closed);
}

#[test]
fn of_a_thousand_connects_with_one_client_id_the_last_one_works() {
    // [B-037] [MQTT-3.1.4-2]
    let server = Running::start(Options::default());
    let address = server.address;
    let mut watcher = Client::connect(address, connect("watcher"));
    watcher.subscribe("w", QoS::AtMostOnce);
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    (0..500)
                        .map(|_| {
                            let will = will("w", b"taken");
                            let mut client = Client::open(address);
                            client.send(&Packet::Connect(Connect { will, ..connect("same") }));
                            client
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread of this test")).collect()
    });
    for _ in 0..999 {
        assert!(
            matches!(watcher.receive(), Received::Publish { .. }),
            "one will for each that was taken over"
        );
    }
    watcher.ping();
    let mut alive = 0;
    for mut client in clients {
        assert_eq!(client.receive(), Received::Other(2), "each was accepted");
        client.stream.set_nonblocking(true).expect("a socket option");
        if client.stream.peek(&mut [0]).is_err() {
            client.stream.set_nonblocking(false).expect("a socket option");
            client.ping();
            alive += 1;
        }
    }
    assert_eq!(alive, 1);
}

#[test]
fn peers_that_stop_reading_cost_bounded_memory_and_nobody_else_notices() {
    // [B-047]
    const STALLED: usize = 100;
    const FLOOD: usize = 3_000;
    let payload = vec![7; 10_000];
    let server = Running::start(Options::default());
    let stalled: Vec<Client> = (0..STALLED)
        .map(|number| {
            let mut client = Client::connect(server.address, connect(&format!("stalled{number}")));
            client.subscribe("flood", QoS::AtMostOnce);
            client
        })
        .collect();
    let mut reader = Client::connect(server.address, connect("reader"));
    reader.subscribe("other", QoS::AtMostOnce);
    let mut publisher = Client::connect(server.address, connect("publisher"));
    let before = resident_bytes();
    for _ in 0..FLOOD {
        publisher.publish("flood", &payload, false);
    }
    publisher.publish("other", b"still here", false);
    publisher.ping();
    assert!(matches!(reader.receive(), Received::Publish { topic, .. } if topic == "other"));
    reader.ping();
    let grown = resident_bytes().saturating_sub(before);
    // Half of the outgoing buffer each at most, out of 30 MB each that were published.
    assert!(grown < STALLED * (1 << 20), "{grown} bytes for {STALLED} peers");

    // One wakes up: what was kept is whole and in order, its ping is answered, and the flood goes on for it.
    let mut slow = stalled.into_iter().next().expect("there are a hundred");
    slow.send(&Packet::Pingreq);
    let mut kept = 0;
    while let Received::Publish { payload: received, .. } = slow.receive() {
        assert_eq!(received, payload);
        kept += 1;
    }
    assert!((1..FLOOD).contains(&kept), "{kept} of {FLOOD}");
    publisher.publish("flood", b"again", false);
    assert!(matches!(slow.receive(), Received::Publish { payload, .. } if payload == b"again"));
}

#[test]
fn a_peer_that_reads_nothing_for_too_long_is_closed() {
    let options = Options { stall_timeout: Duration(500), ..Options::default() };
    let server = Running::start(options);
    let mut watcher = Client::connect(server.address, connect("watcher"));
    watcher.subscribe("w", QoS::AtMostOnce);
    let mut stalled =
        Client::connect(server.address, Connect { will: will("w", b"stalled"), ..connect("stalled") });
    stalled.subscribe("flood", QoS::AtMostOnce);
    let mut publisher = Client::connect(server.address, connect("publisher"));
    for _ in 0..1_000 {
        publisher.publish("flood", &[0; 16_000], false);
    }
    assert!(matches!(watcher.receive(), Received::Publish { payload, .. } if payload == b"stalled"));
}

#[test]
fn a_publisher_that_does_not_read_its_answers_is_not_read_but_loses_nothing() {
    let server = Running::start(Options::default());
    let mut client = Client::connect(server.address, connect("deaf"));
    client.subscribe("t", QoS::AtMostOnce);
    let mut bytes = Vec::new();
    const COUNT: usize = 400_000;
    for _ in 0..COUNT {
        broker::codec::encode::encode(&Packet::Pingreq, Protocol::Mqtt311, &mut bytes).expect("a PINGREQ");
    }
    // Without reading, both directions fill up: the server must stop reading instead of buffering or closing.
    let mut writer = client.stream.try_clone().expect("a socket can be cloned");
    let thread = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
    for _ in 0..COUNT {
        assert_eq!(client.receive(), Received::Other(13));
    }
    thread.join().expect("a thread of this test").expect("the server reads again");
    client.ping();
}

/// Packets so small that thousands come in one read are taken in several turns, in their order, and none is lost if nothing
/// comes after them but the end.
#[test]
fn thousands_of_packets_in_one_read_are_taken_in_their_order() {
    const COUNT: usize = 20_000;
    let server = Running::start(Options::default());
    let mut subscriber = Client::connect(server.address, connect("subscriber"));
    subscriber.subscribe("t", QoS::AtMostOnce);
    let mut sender = Client::connect(server.address, connect("sender"));
    let mut bytes = Vec::new();
    for number in 0..COUNT {
        let payload = number.to_string();
        let packet = match number % 1_000 {
            0 => Packet::Publish(publish("t", payload.as_bytes())),
            _ => Packet::Pingreq,
        };
        broker::codec::encode::encode(&packet, Protocol::Mqtt311, &mut bytes).expect("a packet");
    }
    bytes.extend_from_slice(&[0xE0, 0]);
    std::io::Write::write_all(&mut sender.stream, &bytes).expect("it is read");
    for number in (0..COUNT).step_by(1_000) {
        let expected = number.to_string().into_bytes();
        assert!(matches!(subscriber.receive(), Received::Publish { payload, .. } if payload == expected));
    }
    for _ in 0..COUNT - COUNT / 1_000 {
        assert_eq!(sender.receive(), Received::Other(13));
    }
    assert_eq!(sender.receive(), Received::Closed);
}

/// It does not read what it is answered, so the system tells the server at once, and writing may fail before all is read; but all of it
/// was sent before, and its DISCONNECT is the last of it.
#[test]
#[cfg(target_os = "linux")]
fn what_a_peer_sent_before_it_went_still_counts() {
    const SENDERS: usize = 10;
    // Taken in several turns, after each of which answers are written.
    const MESSAGES: u16 = 10_000;
    let server = Running::start(Options::default());
    let mut watcher = Client::connect(server.address, connect("watcher"));
    watcher.subscribe("#", QoS::AtMostOnce);
    for sender in 0..SENDERS {
        let client_id = format!("sender{sender}");
        let with_will = Connect { will: will("will", b"it did not say good-bye"), ..connect(&client_id) };
        let mut client = Client::connect(server.address, with_will);
        let mut bytes = Vec::new();
        for number in 1..=MESSAGES {
            let payload = number.to_be_bytes();
            let qos = QoS::AtLeastOnce;
            let packet_id = PacketId::new(number);
            let message = Publish { qos, packet_id, ..publish("t", &payload) };
            broker::codec::encode::encode(&Packet::Publish(message), Protocol::Mqtt311, &mut bytes)
                .expect("a packet");
        }
        bytes.extend_from_slice(&[0xE0, 0]);
        std::io::Write::write_all(&mut client.stream, &bytes).expect("it is read");
        assert!(client.stream.peek(&mut [0]).is_ok_and(|count| count == 1), "it has an answer");
        drop(client);
        for number in 1..=MESSAGES {
            let received = watcher.receive();
            let is_next =
                matches!(&received, Received::Publish { payload, .. } if *payload == number.to_be_bytes());
            assert!(is_next, "{sender}: not {number} but {received:?}");
        }
    }
    // Behind their ends.
    let mut again = Client::connect(server.address, connect("sender0"));
    again.publish("again", b"", false);
    assert!(matches!(watcher.receive(), Received::Publish { topic, .. } if topic == "again"));
}

/// Where many send much at once each is read a share in its turn, and nothing of what any of them sent is left in its socket.
#[test]
fn what_many_send_at_once_is_taken_share_by_share_and_whole() {
    // A share is then the smallest one, and each sends several of those, in bytes as in packets.
    const CLIENTS: usize = 100;
    const PINGS: usize = 300;
    const MESSAGES: usize = 100;
    let server = Running::start(Options::default());
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::connect(server.address, connect(&format!("c{number}")))).collect();
    let mut bytes = Vec::new();
    for _ in 0..PINGS {
        broker::codec::encode::encode(&Packet::Pingreq, Protocol::Mqtt311, &mut bytes).expect("a packet");
    }
    for id in (1..).take(MESSAGES).map(PacketId::new) {
        let message = Publish { qos: QoS::AtLeastOnce, packet_id: id, ..publish("t", &[7; 1_000]) };
        broker::codec::encode::encode(&Packet::Publish(message), Protocol::Mqtt311, &mut bytes)
            .expect("a packet");
    }
    for client in &mut clients {
        std::io::Write::write_all(&mut client.stream, &bytes).expect("it is read");
    }
    for client in &mut clients {
        for _ in 0..PINGS {
            assert_eq!(client.receive(), Received::Other(13));
        }
        for _ in 0..MESSAGES {
            assert_eq!(client.receive(), Received::Other(4));
        }
        client.ping();
    }
}

/// One who publishes without end keeps the flushing of all receivers going; another who publishes to them is read all the
/// same.
#[test]
fn who_publishes_to_many_is_read_while_others_keep_them_busy() {
    publish_to_busy_receivers(Options::default());
}

/// The same where a message takes several turns, and one waits for the other.
#[test]
fn who_publishes_to_very_many_is_read_while_others_keep_them_busy() {
    publish_to_busy_receivers(Options { steps_per_turn: 16, ..Options::default() });
}

fn publish_to_busy_receivers(options: Options) {
    const RECEIVERS: usize = 200;
    const ANSWERED: usize = 50;
    let server = Running::start(options);
    let receivers: Vec<Client> = (0..RECEIVERS)
        .map(|number| {
            let mut client = Client::connect(server.address, connect(&format!("receiver{number}")));
            client.subscribe("all", QoS::AtMostOnce);
            client.stream.set_nonblocking(true).expect("a socket option");
            client
        })
        .collect();
    let mut flooder = Client::connect(server.address, connect("flooder"));
    flooder.stream.set_write_timeout(Some(support::PATIENCE)).expect("a socket option");
    let mut publisher = Client::connect(server.address, connect("publisher"));
    let is_over = AtomicBool::new(false);
    let is_flooded = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64 * 1024];
            while !is_over.load(Ordering::Acquire) {
                for client in &receivers {
                    // Nothing there is as good as something.
                    if (&client.stream).read(&mut buffer).is_ok() {
                        is_flooded.store(true, Ordering::Release);
                    }
                }
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                flooder.publish("all", &[7; 64], false);
            }
        });
        while !is_flooded.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let answers = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..ANSWERED {
                let message = Publish {
                    qos: QoS::AtLeastOnce,
                    packet_id: Some(PacketId::FIRST),
                    ..publish("all", b"heard")
                };
                publisher.send(&Packet::Publish(message));
                assert_eq!(publisher.receive(), Received::Other(4), "PUBACK");
            }
        }));
        is_over.store(true, Ordering::Release);
        answers.expect("every message is answered");
    });
}

#[test]
fn a_hundred_thousand_retained_messages_all_arrive() {
    // [B-011] [MQTT-3.3.1-6]
    const COUNT: usize = 100_000;
    let server = Running::start(Options { sys_interval: None, ..Options::default() });
    let mut publisher = Client::connect(server.address, connect("publisher"));
    for number in 0..COUNT {
        let qos = if number % 2 == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let topic = format!("state/{}/{number}", number % 100);
        let packet_id = (qos > QoS::AtMostOnce).then_some(PacketId::FIRST);
        publisher.send(&Packet::Publish(Publish { qos, retain: true, packet_id, ..publish(&topic, b"on") }));
        if packet_id.is_some() {
            assert_eq!(publisher.receive(), Received::Other(4), "PUBACK");
        }
    }
    publisher.ping();
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        let mut subscriber = Client::connect(server.address, connect("subscriber"));
        subscriber.subscribe("state/#", qos);
        let mut topics = std::collections::BTreeSet::new();
        for _ in 0..COUNT {
            let Received::Publish { topic, retain, packet_id, .. } = subscriber.receive() else {
                panic!("a PUBLISH")
            };
            assert!(retain && topics.insert(topic));
            if let Some(packet_id) = packet_id {
                subscriber.send(&Packet::Puback(Ack::success(packet_id)));
            }
        }
        subscriber.ping();
    }
}

#[test]
fn the_largest_packets_pass_and_larger_ones_do_not() {
    let options = Options { packet_size_max: 20 << 20, ..Options::default() };
    let server = Running::start(options);
    let mut subscriber = Client::connect(server.address, connect("subscriber"));
    subscriber.subscribe("big", QoS::AtLeastOnce);
    let mut publisher = Client::connect(server.address, connect("publisher"));
    let payload: Vec<u8> = (0..(20 << 20) - 12).map(|number| number as u8).collect();
    publisher.send(&Packet::Publish(Publish {
        qos: QoS::AtLeastOnce,
        packet_id: Some(PacketId::FIRST),
        ..publish("big", &payload)
    }));
    assert_eq!(publisher.receive(), Received::Other(4), "PUBACK");
    let Received::Publish { payload: received, .. } = subscriber.receive() else { panic!("a PUBLISH") };
    assert!(received == payload);
    let mut head = Vec::new();
    head.extend([0x30, 0x80, 0x80, 0x80, 0x0A, 0, 3, b'b']);
    std::io::Write::write_all(&mut publisher.stream, &head).expect("the server reads");
    assert_eq!(publisher.receive(), Received::Closed);
    subscriber.ping();
}

#[test]
fn a_full_broker_refuses_what_it_could_not_keep_and_recovers() {
    // [B-139] [MQTT-4.8.0-2]
    let options = Options { queued_bytes_total_max: 1 << 20, ..Options::default() };
    let server = Running::start(options);
    let mut absent = Client::connect(server.address, Connect { clean_start: false, ..connect("absent") });
    absent.subscribe("t", QoS::AtLeastOnce);
    drop(absent);
    let publish = |packet_id| {
        let packet_id = PacketId::new(packet_id);
        Packet::Publish(Publish { qos: QoS::AtLeastOnce, packet_id, ..publish("t", &[7; 10_000]) })
    };
    let mut publisher = Client::connect(server.address, connect("publisher"));
    let mut acknowledged = 0;
    for number in 1..=200 {
        publisher.send(&publish(number));
        match publisher.receive() {
            Received::Other(4) => acknowledged += 1,
            Received::Closed => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((100..=110).contains(&acknowledged), "{acknowledged} of 10,000 bytes each");
    // Everything that was acknowledged is there, and once it is gone there is room again.
    let mut present = Client::connect(server.address, Connect { clean_start: false, ..connect("absent") });
    for _ in 0..acknowledged {
        let Received::Publish { packet_id: Some(packet_id), .. } = present.receive() else {
            panic!("a PUBLISH")
        };
        present.send(&Packet::Puback(Ack::success(packet_id)));
    }
    present.ping();
    let mut publisher = Client::connect(server.address, connect("publisher"));
    publisher.send(&publish(1));
    assert_eq!(publisher.receive(), Received::Other(4), "PUBACK");
}
