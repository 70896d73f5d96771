//! Checks with rumqttc. The only argument is the broker's port.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, LastWill, MqttOptions, Packet, QoS, SubscribeReasonCode,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Nothing on a loopback takes this long; it only bounds the wait for what never comes.
const LIMIT: Duration = Duration::from_secs(20);
const ALL_QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

static PORT: OnceLock<u16> = OnceLock::new();

/// QoS, retain, topic and payload of a message.
type Message = (QoS, bool, String, String);

fn message(qos: QoS, retain: bool, topic: &str, payload: &str) -> Message {
    (qos, retain, topic.to_owned(), payload.to_owned())
}

fn expect<T: Debug + PartialEq>(what: &str, found: T, expected: T) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}").into()) }
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("payload {number}")).collect()
}

fn options(id: &str) -> MqttOptions {
    MqttOptions::new(id, "127.0.0.1", *PORT.get().expect("main sets it"))
}

fn persistent(id: &str) -> MqttOptions {
    let mut options = options(id);
    options.set_clean_session(false);
    options
}

/// A client whose packets end in queues, read by a task of its own until the connection ends.
struct Client {
    client: AsyncClient,
    task: JoinHandle<()>,
    session_present: bool,
    messages: UnboundedReceiver<Message>,
    /// Everything else that comes.
    replies: UnboundedReceiver<Packet>,
}

impl Client {
    async fn connect(options: MqttOptions) -> Result<Self> {
        let (client, mut event_loop) = AsyncClient::new(options, 16);
        let (message_sender, messages) = unbounded_channel();
        let (reply_sender, replies) = unbounded_channel();
        // The queues close when this task ends; another poll would reconnect.
        let task = tokio::spawn(async move {
            while let Ok(event) = event_loop.poll().await {
                let sent = match event {
                    Event::Incoming(Packet::Publish(publish)) => {
                        let payload = String::from_utf8_lossy(&publish.payload).into_owned();
                        message_sender.send((publish.qos, publish.retain, publish.topic, payload)).is_ok()
                    }
                    Event::Incoming(packet) => reply_sender.send(packet).is_ok(),
                    Event::Outgoing(_) => true,
                };
                if !sent {
                    break;
                }
            }
        });
        let mut client = Self { client, task, session_present: false, messages, replies };
        match client.reply().await? {
            Packet::ConnAck(ack) => {
                expect("return code", ack.code, ConnectReturnCode::Success)?;
                client.session_present = ack.session_present;
            }
            other => return Err(format!("{other:?} instead of CONNACK").into()),
        }
        Ok(client)
    }

    async fn reply(&mut self) -> Result<Packet> {
        loop {
            match timeout(LIMIT, self.replies.recv()).await?.ok_or("connection ended")? {
                // Parts of QoS 2 that only the client is concerned with.
                Packet::PubRec(_) | Packet::PubRel(_) | Packet::PingResp => {}
                packet => return Ok(packet),
            }
        }
    }

    async fn message(&mut self) -> Result<Message> {
        let received = timeout(LIMIT, self.messages.recv()).await.map_err(|_| "no message in time")?;
        Ok(received.ok_or("connection ended")?)
    }

    async fn subscribe(&mut self, topic: &str, qos: QoS) -> Result<()> {
        self.client.subscribe(topic, qos).await?;
        match self.reply().await? {
            Packet::SubAck(ack) => {
                expect("return codes", ack.return_codes, vec![SubscribeReasonCode::Success(qos)])
            }
            other => Err(format!("{other:?} instead of SUBACK").into()),
        }
    }

    async fn publish(&mut self, topic: &str, payload: &str, qos: QoS, retain: bool) -> Result<()> {
        self.client.publish(topic, qos, retain, payload).await?;
        self.acknowledged(qos, 1).await
    }

    /// Publishes, and then waits for all acknowledgements.
    async fn publish_all(&mut self, topic: &str, payloads: &[String], qos: QoS) -> Result<()> {
        for payload in payloads {
            self.client.publish(topic, qos, false, payload.as_bytes()).await?;
        }
        self.acknowledged(qos, payloads.len()).await
    }

    async fn acknowledged(&mut self, qos: QoS, count: usize) -> Result<()> {
        if qos == QoS::AtMostOnce {
            return Ok(());
        }
        for _ in 0..count {
            match (self.reply().await?, qos) {
                (Packet::PubAck(_), QoS::AtLeastOnce) | (Packet::PubComp(_), QoS::ExactlyOnce) => {}
                (other, _) => return Err(format!("{other:?} instead of an acknowledgement").into()),
            }
        }
        Ok(())
    }

    /// Waits until the broker has closed the connection.
    async fn ended(&mut self) -> Result<()> {
        Ok(timeout(LIMIT, &mut self.task).await.map_err(|_| "the connection does not end")??)
    }

    async fn disconnect(mut self) -> Result<()> {
        self.client.disconnect().await?;
        self.ended().await
    }
}

impl Drop for Client {
    /// Ends the connection, without DISCONNECT if that was not sent before.
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn check_qos(qos: QoS) -> Result<()> {
    let topic = format!("qos/{}", qos as u8);
    let mut publisher = Client::connect(options("publisher")).await?;
    for granted in ALL_QOS {
        let mut subscriber = Client::connect(options("subscriber")).await?;
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

async fn check_retained() -> Result<()> {
    let topic = "retained/topic";
    let mut publisher = Client::connect(options("publisher")).await?;
    for payload in ["first", "second"] {
        publisher.publish(topic, payload, QoS::AtLeastOnce, true).await?;
        let mut subscriber = Client::connect(options("subscriber")).await?;
        subscriber.subscribe("retained/+", QoS::ExactlyOnce).await?;
        expect("message", subscriber.message().await?, message(QoS::AtLeastOnce, true, topic, payload))?;
        subscriber.disconnect().await?;
    }
    let mut live = Client::connect(options("live")).await?;
    live.subscribe("retained/#", QoS::ExactlyOnce).await?;
    expect("message", live.message().await?, message(QoS::AtLeastOnce, true, topic, "second"))?;
    publisher.publish(topic, "", QoS::AtLeastOnce, true).await?;
    let cleared = live.message().await?;
    expect("message to an old subscription", cleared, message(QoS::AtLeastOnce, false, topic, ""))?;
    let mut subscriber = Client::connect(options("subscriber")).await?;
    subscriber.subscribe("retained/#", QoS::ExactlyOnce).await?;
    publisher.publish("retained/end", "end", QoS::AtLeastOnce, false).await?;
    let end = message(QoS::AtLeastOnce, false, "retained/end", "end");
    expect("message", subscriber.message().await?, end)
}

async fn connect_with_will(topic: &str) -> Result<Client> {
    let mut options = options("with-will");
    options.set_last_will(LastWill::new(topic, "gone", QoS::ExactlyOnce, false));
    Client::connect(options).await
}

async fn check_will() -> Result<()> {
    let topic = "will/abrupt";
    let mut watcher = Client::connect(options("watcher")).await?;
    watcher.subscribe(topic, QoS::ExactlyOnce).await?;
    drop(connect_with_will(topic).await?);
    expect("message", watcher.message().await?, message(QoS::ExactlyOnce, false, topic, "gone"))
}

async fn check_no_will() -> Result<()> {
    let topic = "will/orderly";
    let mut watcher = Client::connect(options("watcher")).await?;
    watcher.subscribe(topic, QoS::ExactlyOnce).await?;
    connect_with_will(topic).await?.disconnect().await?;
    watcher.publish(topic, "end", QoS::ExactlyOnce, false).await?;
    expect("message", watcher.message().await?, message(QoS::ExactlyOnce, false, topic, "end"))
}

async fn check_session() -> Result<()> {
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (id, topic) = (format!("session-{}", qos as u8), format!("session/{}", qos as u8));
        let mut before = Client::connect(persistent(&id)).await?;
        expect("session present", before.session_present, false)?;
        before.subscribe(&topic, qos).await?;
        before.disconnect().await?;
        // More than may be in flight at once.
        let payloads = numbered(500);
        let mut publisher = Client::connect(options("publisher")).await?;
        publisher.publish_all(&topic, &payloads, qos).await?;
        let mut after = Client::connect(persistent(&id)).await?;
        expect("session present", after.session_present, true)?;
        for payload in &payloads {
            expect("message", after.message().await?, message(qos, false, &topic, payload))?;
        }
        after.disconnect().await?;
        let clean = Client::connect(options(&id)).await?;
        expect("session present after a clean start", clean.session_present, false)?;
    }
    Ok(())
}

async fn check_takeover() -> Result<()> {
    let topic = "takeover/topic";
    let mut first = Client::connect(persistent("takeover")).await?;
    first.subscribe(topic, QoS::AtLeastOnce).await?;
    let mut second = Client::connect(persistent("takeover")).await?;
    expect("session present", second.session_present, true)?;
    first.ended().await?;
    second.publish(topic, "to the second", QoS::AtLeastOnce, false).await?;
    let expected = message(QoS::AtLeastOnce, false, topic, "to the second");
    expect("message", second.message().await?, expected)?;
    expect("messages to the first", first.messages.recv().await, None)
}

async fn check_connections() -> Result<()> {
    let numbers: BTreeSet<String> = (0..1000).map(|number| number.to_string()).collect();
    let mut collector = Client::connect(options("collector")).await?;
    collector.subscribe("many/up", QoS::AtLeastOnce).await?;
    let mut clients = Vec::new();
    for number in &numbers {
        let mut client = Client::connect(options(number)).await?;
        client.subscribe("many/down", QoS::AtLeastOnce).await?;
        clients.push(client);
    }
    collector.publish("many/down", "to all", QoS::AtLeastOnce, false).await?;
    for (client, number) in clients.iter_mut().zip(&numbers) {
        let expected = message(QoS::AtLeastOnce, false, "many/down", "to all");
        expect("message", client.message().await?, expected)?;
        client.client.publish("many/up", QoS::AtLeastOnce, false, number.as_bytes()).await?;
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

/// Prints what came of a check, and returns whether it passed.
fn report(name: &str, result: Result<()>) -> bool {
    let line = match &result {
        Ok(()) => format!("ok {name}\n"),
        Err(error) => format!("FAIL {name}: {error}\n"),
    };
    let mut out = std::io::stdout();
    // Nobody is left to be told if this fails.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    result.is_ok()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("the argument is a port");
    PORT.get_or_init(|| port);
    let passed = [
        report("qos 0", check_qos(QoS::AtMostOnce).await),
        report("qos 1", check_qos(QoS::AtLeastOnce).await),
        report("qos 2", check_qos(QoS::ExactlyOnce).await),
        report("retained", check_retained().await),
        report("will", check_will().await),
        report("no will after a disconnect", check_no_will().await),
        report("session", check_session().await),
        report("take-over", check_takeover().await),
        report("1000 connections", check_connections().await),
    ];
    if passed.iter().all(|passed| *passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
