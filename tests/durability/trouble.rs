//! A disk that takes nothing more while the broker runs: nothing is promised, everything else goes on.

use std::fs;
use std::path::Path;

use broker::codec::{Protocol, QoS, ReasonCode};
use rustix::process::{Resource, Rlimit, prlimit};

use crate::connection::{Connack, Connection, Login, NEW, RESUMED, Received};
use crate::folder::{TemporaryFolder, last_segment, written};
use crate::process::Broker;

/// The one line that tells the operator.
const CANNOT_STORE: &str = "cannot store in ";

fn connect(broker: &Broker, login: &Login) -> Connection {
    let (connection, connack) = login.connect(broker.address).expect("the broker is there");
    assert_eq!(connack, NEW);
    connection
}

/// A 5.0 client that leaves nothing behind.
fn clean(broker: &Broker, client_id: &str) -> Connection {
    connect(broker, &Login::clean(client_id, Protocol::Mqtt5))
}

/// Makes a stored session with a subscription at QoS 1, and leaves.
fn subscribe(broker: &Broker, login: &Login) {
    let mut connection = connect(broker, login);
    assert_eq!(connection.subscribe("news", QoS::AtLeastOnce).expect("the broker answers"), [1]);
    connection.disconnect();
}

/// Publishes until the broker knows that it cannot store. Who waits for a promise meanwhile is closed without one.
fn run_into_trouble(broker: &Broker) {
    let mut publisher = clean(broker, "first-to-notice");
    publisher.send_publish("news", b"not acknowledged", QoS::AtLeastOnce, false).expect("the broker reads");
    publisher.expect_end();
    broker.line(CANNOT_STORE);
}

/// What is refused, and what is not, while nothing can be stored [B-139].
fn expect_refusals(broker: &Broker, reason: ReasonCode) {
    let mut five = clean(broker, "five");
    assert_eq!(five.publish("news", "refused", false), reason);
    five.send_publish("news", b"refused", QoS::ExactlyOnce, false).expect("the broker reads");
    assert!(matches!(five.receive(), Ok(Received::Pubrec(_, refusal)) if refusal == reason));
    let mut three = connect(broker, &Login::clean("three", Protocol::Mqtt311));
    three.send_publish("news", b"refused", QoS::AtLeastOnce, false).expect("the broker reads");
    three.expect_end();

    let mut listener = clean(broker, "listener");
    assert_eq!(listener.subscribe("talk", QoS::AtMostOnce).expect("the broker answers"), [0]);
    five.send_publish("talk", b"goes on", QoS::AtMostOnce, false).expect("the broker reads");
    assert_eq!(listener.take_payloads(1), ["goes on"]);

    // 0x88 in 5.0, 3 in 3.1.1.
    let refused = Connack { session_present: false, reason: ReasonCode::ServerUnavailable };
    for protocol in [Protocol::Mqtt5, Protocol::Mqtt311] {
        let login = Login::stored("new", protocol);
        let (mut connection, connack) = login.connect(broker.address).expect("the broker is there");
        assert_eq!(connack, refused, "{protocol}");
        connection.expect_end();
    }
}

/// The broker can make its files as long as this, and no longer.
fn limit_file_length(broker: &Broker, bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(broker.pid()), Resource::Fsize, limit).expect("it is our child");
}

/// A log that cannot grow is what a full disk looks like; once it can, all is well without a restart.
#[test]
fn a_full_disk_is_no_end() {
    let parent = TemporaryFolder::new("full");
    let folder = parent.join("data");
    let subscriber = Login::stored("subscriber", Protocol::Mqtt311);
    let mut broker = Broker::start(&folder, &[]);
    subscribe(&broker, &subscriber);
    let mut before = clean(&broker, "before");
    for payload in ["one", "two"] {
        assert_eq!(before.publish("news", payload, false), ReasonCode::Success);
    }
    // There is room for a part of a batch.
    limit_file_length(&broker, Some(written(&last_segment(&folder)) + 10));
    run_into_trouble(&broker);
    expect_refusals(&broker, ReasonCode::QuotaExceeded);
    assert_eq!(
        before.publish("news", "refused", false),
        ReasonCode::QuotaExceeded,
        "it was there all the time"
    );
    assert_eq!(broker.lines_with(" ERROR ").len(), 1, "{:#?}", broker.lines_with(" ERROR "));

    limit_file_length(&broker, None);
    broker.line("storing again");
    assert_eq!(before.publish("news", "three", false), ReasonCode::Success);
    assert_eq!(broker.lines_with(" ERROR ").len(), 1, "{:#?}", broker.lines_with(" ERROR "));
    broker.kill();
    expect_what_was_taken(&folder, &subscriber);
}

/// Killed while the disk is full, the broker keeps what it acknowledged.
#[test]
fn killed_on_a_full_disk() {
    let parent = TemporaryFolder::new("full-killed");
    let folder = parent.join("data");
    let subscriber = Login::stored("subscriber", Protocol::Mqtt311);
    let mut broker = Broker::start(&folder, &[]);
    subscribe(&broker, &subscriber);
    let mut before = clean(&broker, "before");
    for payload in ["one", "two", "three"] {
        assert_eq!(before.publish("news", payload, false), ReasonCode::Success);
    }
    limit_file_length(&broker, Some(written(&last_segment(&folder)) + 10));
    run_into_trouble(&broker);
    broker.kill();
    expect_what_was_taken(&folder, &subscriber);
}

/// What was acknowledged comes, and nothing that was refused; what was neither may come.
fn expect_what_was_taken(folder: &Path, subscriber: &Login) {
    let broker = Broker::start(folder, &[]);
    assert_eq!(broker.complaints(), [""; 0]);
    let (mut connection, connack) = subscriber.connect(broker.address).expect("the broker is there");
    assert_eq!(connack, RESUMED);
    let mut payloads = Vec::new();
    while payloads.last().is_none_or(|payload| payload != "three") {
        payloads.extend(connection.take_payloads(1));
    }
    payloads.retain(|payload| payload != "not acknowledged");
    assert_eq!(payloads, ["one", "two", "three"]);
    connection.ping();
}

/// Whatever is written to a folder that is gone is gone: that is trouble like any other.
#[test]
fn a_folder_that_was_removed() {
    let parent = TemporaryFolder::new("removed");
    let folder = parent.join("data");
    let mut broker = Broker::start(&folder, &[]);
    subscribe(&broker, &Login::stored("subscriber", Protocol::Mqtt311));
    assert_eq!(clean(&broker, "before").publish("news", "one", false), ReasonCode::Success);
    fs::remove_dir_all(&folder).expect("it can be removed");
    run_into_trouble(&broker);
    expect_refusals(&broker, ReasonCode::ImplementationSpecificError);
    let errors = broker.lines_with(" ERROR ");
    assert!(errors.len() == 1 && errors[0].contains(CANNOT_STORE), "{errors:#?}");
    broker.kill();
}
