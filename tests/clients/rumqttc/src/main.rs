//! Checks with rumqttc in both protocol versions; those of 5.0 alone are in `five`. The only argument is the broker's
//! port.

mod client;
mod five;

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::DisconnectReasonCode;

use client::{Client, NotOurs, Options, PORT, Result, Version, expect, message, numbered, other_broker};

const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

async fn check_qos(version: Version, qos: QoS) -> Result<()> {
    let topic = format!("qos/{}", qos as u8);
    let mut publisher = Client::connect(Options::new(version, "publisher")).await?;
    for granted in ALL_QOS {
        let mut subscriber = Client::connect(Options::new(version, "subscriber")).await?;
        subscriber.subscribe(&topic, granted).await?;
        let payloads = numbered(200);
        publisher.publish_all(&topic, &payloads, qos).await?;
        let effective = if (granted as u8) < qos as u8 { granted } else { qos };
        for payload in &payloads {
            expect("message", subscriber.message().await?, message(effective, false, &topic, payload))?;
        }
        subscriber.disconnect().await?;
    }
    publisher.disconnect().await
}

async fn check_retained(version: Version) -> Result<()> {
    let topic = "retained/topic";
    let mut publisher = Client::connect(Options::new(version, "publisher")).await?;
    for payload in ["first", "second"] {
        publisher.publish(topic, payload, QoS::AtLeastOnce, true).await?;
        let mut subscriber = Client::connect(Options::new(version, "subscriber")).await?;
        subscriber.subscribe("retained/+", QoS::ExactlyOnce).await?;
        expect("message", subscriber.message().await?, message(QoS::AtLeastOnce, true, topic, payload))?;
        subscriber.disconnect().await?;
    }
    let mut live = Client::connect(Options::new(version, "live")).await?;
    live.subscribe("retained/#", QoS::ExactlyOnce).await?;
    expect("message", live.message().await?, message(QoS::AtLeastOnce, true, topic, "second"))?;
    publisher.publish(topic, "", QoS::AtLeastOnce, true).await?;
    let cleared = live.message().await?;
    expect("message to an old subscription", cleared, message(QoS::AtLeastOnce, false, topic, ""))?;
    let mut subscriber = Client::connect(Options::new(version, "subscriber")).await?;
    subscriber.subscribe("retained/#", QoS::ExactlyOnce).await?;
    publisher.publish("retained/end", "end", QoS::AtLeastOnce, false).await?;
    let end = message(QoS::AtLeastOnce, false, "retained/end", "end");
    expect("message", subscriber.message().await?, end)
}

async fn connect_with_will(version: Version, topic: &str) -> Result<Client> {
    Client::connect(Options::new(version, "with-will").will(topic, "gone", QoS::ExactlyOnce, None)).await
}

async fn check_will(version: Version) -> Result<()> {
    let topic = "will/abrupt";
    let mut watcher = Client::connect(Options::new(version, "watcher")).await?;
    watcher.subscribe(topic, QoS::ExactlyOnce).await?;
    drop(connect_with_will(version, topic).await?);
    expect("message", watcher.message().await?, message(QoS::ExactlyOnce, false, topic, "gone"))
}

async fn check_no_will(version: Version) -> Result<()> {
    let topic = "will/orderly";
    let mut watcher = Client::connect(Options::new(version, "watcher")).await?;
    watcher.subscribe(topic, QoS::ExactlyOnce).await?;
    connect_with_will(version, topic).await?.disconnect().await?;
    watcher.publish(topic, "end", QoS::ExactlyOnce, false).await?;
    expect("message", watcher.message().await?, message(QoS::ExactlyOnce, false, topic, "end"))
}

async fn check_session(version: Version) -> Result<()> {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (id, topic) = (format!("session-{version}-{}", qos as u8), format!("session/{}", qos as u8));
        let mut before = Client::connect(Options::persistent(version, &id)).await?;
        expect("session present", before.session_present, false)?;
        before.subscribe(&topic, qos).await?;
        before.disconnect().await?;
        // More than may be in flight at once.
        let payloads = numbered(500);
        let mut publisher = Client::connect(Options::new(version, "publisher")).await?;
        publisher.publish_all(&topic, &payloads, qos).await?;
        let mut after = Client::connect(Options::persistent(version, &id)).await?;
        expect("session present", after.session_present, true)?;
        for payload in &payloads {
            expect("message", after.message().await?, message(qos, false, &topic, payload))?;
        }
        after.disconnect().await?;
        let clean = Client::connect(Options::new(version, &id)).await?;
        expect("session present after a clean start", clean.session_present, false)?;
    }
    Ok(())
}

async fn check_takeover(version: Version) -> Result<()> {
    let (id, topic) = (format!("takeover-{version}"), "takeover/topic");
    let mut first = Client::connect(Options::persistent(version, &id)).await?;
    first.subscribe(topic, QoS::AtLeastOnce).await?;
    let mut second = Client::connect(Options::persistent(version, &id)).await?;
    expect("session present", second.session_present, true)?;
    let reason = first.ended().await?;
    if version == Version::Five && !other_broker() {
        expect("reason code of DISCONNECT", reason, Some(DisconnectReasonCode::SessionTakenOver))?;
    }
    second.publish(topic, "to the second", QoS::AtLeastOnce, false).await?;
    let expected = message(QoS::AtLeastOnce, false, topic, "to the second");
    expect("message", second.message().await?, expected)?;
    expect("messages to the first", first.arrived(), None)
}

async fn check_connections(version: Version) -> Result<()> {
    let numbers: BTreeSet<String> = (0..1000).map(|number| number.to_string()).collect();
    let mut collector = Client::connect(Options::new(version, "collector")).await?;
    collector.subscribe("many/up", QoS::AtLeastOnce).await?;
    let mut clients = Vec::new();
    for number in &numbers {
        let mut client = Client::connect(Options::new(version, number)).await?;
        client.subscribe("many/down", QoS::AtLeastOnce).await?;
        clients.push(client);
    }
    collector.publish("many/down", "to all", QoS::AtLeastOnce, false).await?;
    for (client, number) in clients.iter_mut().zip(&numbers) {
        let expected = message(QoS::AtLeastOnce, false, "many/down", "to all");
        expect("message", client.message().await?, expected)?;
        client.send("many/up", number, QoS::AtLeastOnce, false, None).await?;
    }
    let mut found = BTreeSet::new();
    for _ in &numbers {
        found.insert(collector.message().await?.3);
    }
    expect("senders", found.len(), numbers.len())?;
    for client in clients {
        client.disconnect().await?;
    }
    Ok(())
}

async fn check_large(version: Version) -> Result<()> {
    let topic = "large/topic";
    let payload = "0123456789abcdef".repeat((64 << 20) / 16) + "end";
    let size = payload.len() as u32 + 1000;
    for qos in ALL_QOS {
        let mut publisher = Client::connect(Options::new(version, "publisher").packet_size(size)).await?;
        let mut subscriber = Client::connect(Options::new(version, "subscriber").packet_size(size)).await?;
        subscriber.subscribe(topic, qos).await?;
        publisher.publish(topic, &payload, qos, false).await?;
        let (found_qos, retain, found_topic, found) = subscriber.message().await?;
        expect("message", (found_qos, retain, found_topic.as_str()), (qos, false, topic))?;
        expect("length", found.len(), payload.len())?;
        expect("payload is the same", found == payload, true)?;
    }
    Ok(())
}

/// Prints what came of a check, and returns whether it passed.
fn report(name: &str, result: Result<()>) -> bool {
    let (line, passed) = match result {
        Ok(()) => (format!("ok {name}\n"), true),
        Err(error) if error.is::<NotOurs>() => (format!("part {name}\n"), true),
        Err(error) => (format!("FAIL {name}: {error}\n"), false),
    };
    let mut out = std::io::stdout();
    // Nobody is left to be told if this fails.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    passed
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("the argument is a port");
    PORT.get_or_init(|| port);
    let mut passed = true;
    for version in [Version::Three, Version::Five] {
        let mut check = |name: &str, result| passed &= report(&format!("{version} {name}"), result);
        check("qos 0", check_qos(version, QoS::AtMostOnce).await);
        check("qos 1", check_qos(version, QoS::AtLeastOnce).await);
        check("qos 2", check_qos(version, QoS::ExactlyOnce).await);
        check("retained", check_retained(version).await);
        check("will", check_will(version).await);
        check("no will after a disconnect", check_no_will(version).await);
        check("session", check_session(version).await);
        check("take-over", check_takeover(version).await);
        check("large payload", check_large(version).await);
        check("1000 connections", check_connections(version).await);
    }
    five::run(&mut |name, result| passed &= report(&format!("{} {name}", Version::Five), result)).await;
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
