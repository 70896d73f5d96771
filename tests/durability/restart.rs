//! The broker is stopped in order, or killed, and started again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use broker::codec::{Packet, Protocol, QoS, ReasonCode};

use crate::connection::{Connection, Login, Message, NEW, RESUMED, Received, ack};
use crate::folder::{TemporaryFolder, last_segment, segments, written};
use crate::process::Broker;
use crate::wait_until;

/// A client that is there for a moment.
fn passer_by(broker: &Broker) -> Connection {
    Login::clean("passer-by", Protocol::Mqtt5).connect(broker.address).expect("the broker is there").0
}

/// Makes a stored session with a subscription at QoS 1, and leaves.
fn subscribe(broker: &Broker, login: &Login, filter: &str) {
    let (mut connection, connack) = login.connect(broker.address).expect("the broker is there");
    assert_eq!(connack, NEW);
    assert_eq!(connection.subscribe(filter, QoS::AtLeastOnce).expect("the broker answers"), [1]);
    connection.disconnect();
}

/// Comes back to a stored session.
fn resume(broker: &Broker, login: &Login) -> Connection {
    let (connection, connack) = login.connect(broker.address).expect("the broker is there");
    assert_eq!(connack, RESUMED, "{login:?}: {:#?}", broker.lines_with(""));
    connection
}

/// What is retained below a topic.
fn retained(broker: &Broker) -> Vec<(String, String)> {
    let mut connection = passer_by(broker);
    connection.subscribe("kept/#", QoS::AtLeastOnce).expect("the broker answers");
    connection.send(&Packet::Pingreq).expect("the broker reads");
    let mut found = Vec::new();
    loop {
        match connection.receive().expect("the broker answers") {
            Received::Publish(Message { topic, payload, retain: true, packet_id, .. }) => {
                if let Some(packet_id) = packet_id {
                    connection.send(&Packet::Puback(ack(packet_id))).expect("the broker reads");
                }
                found.push((topic, String::from_utf8(payload).expect("payloads are text")));
            }
            Received::Pingresp => break,
            other => panic!("retained messages, not {other:?}"),
        }
    }
    found.sort();
    found
}

/// SIGTERM stores everything, even what was never acknowledged by anybody [B-140].
#[test]
fn stopped_in_order_and_started_again() {
    let parent = TemporaryFolder::new("stopped");
    let folder = parent.join("data");
    let (three, five) = (Login::stored("three", Protocol::Mqtt311), Login::stored("five", Protocol::Mqtt5));
    let mut broker = Broker::start(&folder, &[]);
    subscribe(&broker, &three, "news/#");
    subscribe(&broker, &five, "news/#");
    let mut publisher = passer_by(&broker);
    for payload in ["one", "two", "three"] {
        assert_eq!(publisher.publish("news/today", payload, false), ReasonCode::Success);
    }
    for (topic, payload) in
        [("kept/a", "first"), ("kept/b", "cleared"), ("kept/a", "last"), ("kept/b", ""), ("kept/c", "other")]
    {
        publisher.publish(topic, payload, true);
    }
    // Not acknowledged, but taken.
    publisher.send_publish("kept/d", b"at QoS 0", QoS::AtMostOnce, true).expect("the broker reads");
    publisher.ping();
    // Under way to its subscriber, who does not answer.
    let mut silent = resume(&broker, &three);
    assert!(matches!(silent.receive(), Ok(Received::Publish(Message { dup: false, .. }))));
    broker.terminate();

    let mut broker = Broker::start(&folder, &[]);
    assert_eq!(broker.complaints(), [""; 0]);
    let line = broker.line("loaded from ");
    assert!(line.ends_with(" 2 sessions, 2 subscriptions, 6 messages waiting, 3 retained"), "{line}");
    let kept = [("kept/a", "last"), ("kept/c", "other"), ("kept/d", "at QoS 0")];
    assert_eq!(retained(&broker), kept.map(|(topic, payload)| (topic.to_owned(), payload.to_owned())));
    let mut connection = resume(&broker, &three);
    assert_eq!(connection.take_payloads(3), ["one", "two", "three"]);
    connection.ping();
    let mut connection = resume(&broker, &five);
    assert_eq!(connection.take_payloads(2), ["one", "two"]);
    // The subscription is there as well, behind what waited.
    passer_by(&broker).publish("news/tomorrow", "four", false);
    assert_eq!(connection.take_payloads(2), ["three", "four"]);
    connection.ping();
    broker.terminate();

    let broker = Broker::start(&folder, &[]);
    resume(&broker, &five).ping();
    let mut connection = resume(&broker, &three);
    assert_eq!(connection.take_payloads(1), ["four"]);
    connection.ping();
}

/// Each process stores a single message, when all that the one before it stored last has been removed again or has an
/// older name: its records must not be taken for ones that are known.
#[test]
fn a_little_is_stored_in_each_of_many_lives() {
    let parent = TemporaryFolder::new("lives");
    let folder = parent.join("data");
    let subscriber = Login::stored("subscriber", Protocol::Mqtt5);
    let mut broker = Broker::start(&folder, &[]);
    subscribe(&broker, &subscriber, "news");
    broker.kill();
    let mut waiting = Vec::new();
    for life in 0..12 {
        let mut broker = Broker::start(&folder, &["--recover", "strict"]);
        let payload = format!("from life {life}");
        assert_eq!(passer_by(&broker).publish("news", &payload, false), ReasonCode::Success);
        waiting.push(payload);
        if life % 3 == 2 {
            let mut connection = resume(&broker, &subscriber);
            assert_eq!(connection.take_payloads(waiting.len()), waiting);
            waiting.clear();
            connection.ping();
        }
        if life % 3 == 0 { broker.kill() } else { broker.terminate() }
    }
    let broker = Broker::start(&folder, &[]);
    assert_eq!(broker.complaints(), [""; 0]);
    resume(&broker, &subscriber).ping();
}

/// The time without a broker counts [B-044].
#[test]
fn a_session_expires_while_no_broker_runs() {
    let parent = TemporaryFolder::new("expiry");
    let folder = parent.join("data");
    let brief = Login::expiring("brief", Protocol::Mqtt5, 1);
    let patient = Login::expiring("patient", Protocol::Mqtt5, 60);
    let three = Login::stored("three", Protocol::Mqtt311);
    let mut broker = Broker::start(&folder, &[]);
    for login in [&brief, &patient, &three] {
        subscribe(&broker, login, "news");
    }
    let left_at = Instant::now();
    broker.terminate();
    std::thread::sleep(Duration::from_millis(1_200).saturating_sub(left_at.elapsed()));

    let broker = Broker::start(&folder, &[]);
    let (mut connection, connack) = brief.connect(broker.address).expect("the broker is there");
    assert_eq!(connack, NEW);
    assert_eq!(passer_by(&broker).publish("news", "one", false), ReasonCode::Success);
    connection.ping();
    for login in [&patient, &three] {
        assert_eq!(resume(&broker, login).take_payloads(1), ["one"]);
    }
}

/// Has a client whose will waits for two seconds lose its connection, ends the broker in some way, starts it again, and
/// returns how long the will took from the loss of the connection.
fn delayed_will(name: &str, end: fn(&mut Broker)) -> Duration {
    let parent = TemporaryFolder::new(name);
    let folder = parent.join("data");
    let heir = Login::stored("heir", Protocol::Mqtt311);
    let mut broker = Broker::start(&folder, &[]);
    subscribe(&broker, &heir, "will");
    let testator = Login::stored("testator", Protocol::Mqtt5).with_will("will", "gone", 2);
    let (connection, _) = testator.connect(broker.address).expect("the broker is there");
    let lost_at = Instant::now();
    drop(connection);
    broker.line("client \"testator\" at");
    end(&mut broker);

    let mut broker = Broker::start(&folder, &[]);
    let mut connection = resume(&broker, &heir);
    assert_eq!(connection.take_payloads(1), ["gone"]);
    let delay = lost_at.elapsed();
    connection.ping();
    resume(&broker, &testator).disconnect();
    broker.terminate();
    // And only once.
    let broker = Broker::start(&folder, &[]);
    resume(&broker, &heir).ping();
    delay
}

/// A will that waits for its delay does so across the death of the broker [B-140].
#[test]
fn a_delayed_will_outlives_a_killed_broker() {
    let delay = delayed_will("will-killed", Broker::kill);
    assert!(delay >= Duration::from_secs(2), "{delay:?}");
}

/// A broker that is stopped in order publishes the wills that wait [B-029], and those who are away get them later.
#[test]
fn a_delayed_will_is_not_lost_with_a_stopped_broker() {
    delayed_will("will-stopped", Broker::terminate);
}

/// Waits until a text stands in the log. The system has it then, so it is there even if the broker is killed.
fn wait_until_logged(folder: &Path, text: &str) {
    let contains = |segment: &PathBuf| {
        let content = std::fs::read(segment).expect("the file is there");
        content.windows(text.len()).any(|window| window == text.as_bytes())
    };
    wait_until("it stands in the log", || segments(folder).iter().any(contains));
}

/// With `--sync MS` an acknowledgement does not wait for the disk, which the log says.
#[test]
fn what_may_wait_is_stored_later() {
    let parent = TemporaryFolder::new("sync");
    let folder = parent.join("data");
    let subscriber = Login::stored("subscriber", Protocol::Mqtt311);

    let mut broker = Broker::start(&folder, &["--sync", "50"]);
    assert!(broker.line("--sync 50").contains("lost at a power cut"));
    subscribe(&broker, &subscriber, "news");
    assert_eq!(passer_by(&broker).publish("news", "soon stored", false), ReasonCode::Success);
    wait_until_logged(&folder, "soon stored");
    broker.kill();

    let mut broker = Broker::start(&folder, &["--sync", "50"]);
    let mut publisher = passer_by(&broker);
    for number in 0..100 {
        assert_eq!(publisher.publish("news", &number.to_string(), false), ReasonCode::Success);
    }
    broker.terminate();

    let mut broker = Broker::start(&folder, &[]);
    assert_eq!(broker.complaints(), [""; 0]);
    let expected =
        std::iter::once("soon stored".to_owned()).chain((0..100).map(|number: u32| number.to_string()));
    let mut connection = resume(&broker, &subscriber);
    assert_eq!(connection.take_payloads(101), expected.collect::<Vec<String>>());
    connection.ping();
    broker.terminate();
}

/// The longest `--sync` there is, so that an acknowledgement cannot have waited for the disk.
#[test]
fn what_may_wait_is_acknowledged_at_once() {
    let parent = TemporaryFolder::new("sync-late");
    let folder = parent.join("data");
    let subscriber = Login::stored("subscriber", Protocol::Mqtt311);
    let mut broker = Broker::start(&folder, &["--sync", "60000"]);
    // The first batch need not wait.
    subscribe(&broker, &subscriber, "news");
    wait_until_logged(&folder, "subscriber");
    let segment = last_segment(&folder);
    let before = written(&segment);
    let mut publisher = passer_by(&broker);
    for number in 0..100 {
        assert_eq!(publisher.publish("news", &number.to_string(), false), ReasonCode::Success);
    }
    assert_eq!(written(&segment), before, "nothing was stored meanwhile");
    let stopped_at = Instant::now();
    broker.terminate();
    assert!(
        stopped_at.elapsed() < Duration::from_secs(4),
        "once all is stored nothing keeps a broker from stopping"
    );

    let broker = Broker::start(&folder, &[]);
    let expected: Vec<String> = (0..100).map(|number: u32| number.to_string()).collect();
    assert_eq!(resume(&broker, &subscriber).take_payloads(100), expected);
}
