//! A client of rumqttc in either protocol version. Both have types of their own; here those of 5.0 stand for either.

use std::fmt::{self, Debug, Display};
use std::sync::OnceLock;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAckProperties, ConnectProperties, DisconnectReasonCode, Filter, LastWill, LastWillProperties, Packet,
    PubAckReason, PubCompReason, PubRecReason, Publish, PublishProperties, SubscribeProperties,
    SubscribeReasonCode, UnsubAckReason,
};
use rumqttc::v5::{ConnectionError, StateError};
use rumqttc::{ConnectReturnCode, v5};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Nothing on a loopback takes this long; it only bounds the wait for what never comes.
const LIMIT: Duration = Duration::from_secs(20);
const LARGE_LIMIT: Duration = Duration::from_secs(60);

pub static PORT: OnceLock<u16> = OnceLock::new();

/// Whether the broker is not ours: what follows from decisions of our own is not asked of it.
pub fn other_broker() -> bool {
    std::env::var("OTHER_BROKER").is_ok_and(|value| value == "1")
}

/// Ends a check early: the rest of it is for our own broker.
#[derive(Debug)]
pub struct NotOurs;

impl Display for NotOurs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the broker is not ours")
    }
}

impl std::error::Error for NotOurs {}

pub fn ours_only() -> Result<()> {
    if other_broker() { Err(Box::new(NotOurs)) } else { Ok(()) }
}

pub fn expect<T: Debug + PartialEq>(what: &str, found: T, expected: T) -> Result<()> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}").into()) }
}

pub fn expect_within<T: Debug + PartialOrd>(what: &str, found: T, least: T, most: T) -> Result<()> {
    if least <= found && found <= most {
        Ok(())
    } else {
        Err(format!("{what}: {found:?} instead of {least:?} to {most:?}").into())
    }
}

pub fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("payload {number}")).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Version {
    Three,
    Five,
}

impl Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if *self == Self::Three { "3.1.1" } else { "5.0" })
    }
}

/// QoS, retain, topic and payload of a message.
pub type Message = (QoS, bool, String, String);

pub fn message(qos: QoS, retain: bool, topic: &str, payload: &str) -> Message {
    (qos, retain, topic.to_owned(), payload.to_owned())
}

/// A message as it arrived.
pub struct Arrival {
    pub message: Message,
    pub properties: PublishProperties,
    /// What acknowledges it, in 5.0.
    publish: Option<Publish>,
}

/// Everything else that comes.
#[derive(Debug)]
pub enum Reply {
    ConnAck(bool, Option<ConnAckProperties>),
    SubAck(Vec<SubscribeReasonCode>),
    UnsubAck(Vec<UnsubAckReason>),
    PubAck(PubAckReason),
    PubRec(PubRecReason),
    PubComp(PubCompReason),
}

pub struct Options {
    version: Version,
    id: String,
    clean: bool,
    will: Option<LastWill>,
    /// The rest is of 5.0.
    pub properties: ConnectProperties,
    pub manual_acknowledgements: bool,
    packet_size: Option<u32>,
}

impl Options {
    pub fn new(version: Version, id: &str) -> Self {
        Self {
            version,
            id: id.to_owned(),
            clean: true,
            will: None,
            properties: ConnectProperties::new(),
            manual_acknowledgements: false,
            packet_size: None,
        }
    }

    /// With a session that stays, in 5.0 for so many seconds.
    pub fn persistent_for(version: Version, id: &str, seconds: u32) -> Self {
        let mut options = Self::new(version, id);
        options.clean = false;
        options.properties.session_expiry_interval = Some(seconds);
        options
    }

    pub fn persistent(version: Version, id: &str) -> Self {
        Self::persistent_for(version, id, 3600)
    }

    pub fn will(
        mut self,
        topic: &str,
        payload: &str,
        qos: QoS,
        properties: Option<LastWillProperties>,
    ) -> Self {
        self.will = Some(LastWill::new(topic, payload, qos, false, properties));
        self
    }

    /// rumqttc takes packets up to 10 KiB unless told otherwise; in 5.0 it then tells the broker.
    pub fn packet_size(mut self, bytes: u32) -> Self {
        self.packet_size = Some(bytes);
        self
    }

    fn three(self) -> rumqttc::MqttOptions {
        let mut options = rumqttc::MqttOptions::new(self.id, "127.0.0.1", *PORT.get().expect("main sets it"));
        options.set_clean_session(self.clean);
        if let Some(will) = self.will {
            let topic = String::from_utf8_lossy(&will.topic);
            let message = will.message.to_vec();
            options.set_last_will(rumqttc::LastWill::new(topic, message, three_qos(will.qos), false));
        }
        if let Some(bytes) = self.packet_size {
            options.set_max_packet_size(bytes as usize, bytes as usize);
        }
        options
    }

    fn five(self) -> v5::MqttOptions {
        let mut options = v5::MqttOptions::new(self.id, "127.0.0.1", *PORT.get().expect("main sets it"));
        options.set_clean_start(self.clean);
        options.set_manual_acks(self.manual_acknowledgements);
        // As in 3.1.1. rumqttc sets aside room for so many; for the 65535 of its own choice that is megabytes a client.
        options.set_outgoing_inflight_upper_limit(100);
        options.set_connect_properties(self.properties);
        if let Some(will) = self.will {
            options.set_last_will(will);
        }
        if self.packet_size.is_some() {
            options.set_max_packet_size(self.packet_size);
        }
        options
    }
}

fn three_qos(qos: QoS) -> rumqttc::QoS {
    match qos {
        QoS::AtMostOnce => rumqttc::QoS::AtMostOnce,
        QoS::AtLeastOnce => rumqttc::QoS::AtLeastOnce,
        QoS::ExactlyOnce => rumqttc::QoS::ExactlyOnce,
    }
}

fn five_qos(qos: rumqttc::QoS) -> QoS {
    match qos {
        rumqttc::QoS::AtMostOnce => QoS::AtMostOnce,
        rumqttc::QoS::AtLeastOnce => QoS::AtLeastOnce,
        rumqttc::QoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// Where a task puts what it reads.
struct Queues {
    messages: UnboundedSender<Arrival>,
    replies: UnboundedSender<Reply>,
}

impl Queues {
    /// Whether somebody still listens.
    fn three(&self, packet: rumqttc::Packet) -> bool {
        use rumqttc::Packet;
        let reply = match packet {
            Packet::Publish(publish) => {
                let payload = String::from_utf8_lossy(&publish.payload).into_owned();
                let message = (five_qos(publish.qos), publish.retain, publish.topic, payload);
                let arrival = Arrival { message, properties: PublishProperties::default(), publish: None };
                return self.messages.send(arrival).is_ok();
            }
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => {
                Reply::ConnAck(ack.session_present, None)
            }
            Packet::SubAck(ack) => Reply::SubAck(
                ack.return_codes
                    .into_iter()
                    .map(|code| match code {
                        rumqttc::SubscribeReasonCode::Success(qos) => {
                            SubscribeReasonCode::Success(five_qos(qos))
                        }
                        rumqttc::SubscribeReasonCode::Failure => SubscribeReasonCode::Failure,
                    })
                    .collect(),
            ),
            Packet::UnsubAck(_) => Reply::UnsubAck(Vec::new()),
            Packet::PubAck(_) => Reply::PubAck(PubAckReason::Success),
            Packet::PubRec(_) => Reply::PubRec(PubRecReason::Success),
            Packet::PubComp(_) => Reply::PubComp(PubCompReason::Success),
            // Only the client is concerned with it.
            _ => return true,
        };
        self.replies.send(reply).is_ok()
    }

    /// Whether somebody still listens.
    fn five(&self, packet: Packet) -> bool {
        let reply = match packet {
            Packet::Publish(publish) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                let payload = String::from_utf8_lossy(&publish.payload).into_owned();
                let message = (publish.qos, publish.retain, topic, payload);
                let properties = publish.properties.clone().unwrap_or_default();
                return self.messages.send(Arrival { message, properties, publish: Some(publish) }).is_ok();
            }
            Packet::ConnAck(ack) => Reply::ConnAck(ack.session_present, ack.properties),
            Packet::SubAck(ack) => Reply::SubAck(ack.return_codes),
            Packet::UnsubAck(ack) => Reply::UnsubAck(ack.reasons),
            Packet::PubAck(ack) => Reply::PubAck(ack.reason),
            Packet::PubRec(ack) => Reply::PubRec(ack.reason),
            Packet::PubComp(ack) => Reply::PubComp(ack.reason),
            // Only the client is concerned with it.
            _ => return true,
        };
        self.replies.send(reply).is_ok()
    }

    /// Reads until the connection ends; another poll would reconnect.
    async fn read_three(self, mut event_loop: rumqttc::EventLoop) {
        while let Ok(event) = event_loop.poll().await {
            if let rumqttc::Event::Incoming(packet) = event
                && !self.three(packet)
            {
                break;
            }
        }
    }

    /// Reads until the connection ends, and returns the reason code of a DISCONNECT.
    async fn read_five(self, mut event_loop: v5::EventLoop) -> Option<DisconnectReasonCode> {
        loop {
            match event_loop.poll().await {
                Ok(v5::Event::Incoming(packet)) => {
                    if !self.five(packet) {
                        return None;
                    }
                }
                Ok(v5::Event::Outgoing(_)) => {}
                Err(ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. })) => {
                    return Some(reason_code);
                }
                Err(_) => return None,
            }
        }
    }
}

enum Handle {
    Three(rumqttc::AsyncClient),
    Five(v5::AsyncClient),
}

/// A client whose packets end in queues, read by a task of its own until the connection ends.
pub struct Client {
    handle: Handle,
    task: JoinHandle<Option<DisconnectReasonCode>>,
    pub session_present: bool,
    pub properties: Option<ConnAckProperties>,
    messages: UnboundedReceiver<Arrival>,
    replies: UnboundedReceiver<Reply>,
}

impl Client {
    pub async fn connect(options: Options) -> Result<Self> {
        let (message_sender, messages) = unbounded_channel();
        let (reply_sender, replies) = unbounded_channel();
        let queues = Queues { messages: message_sender, replies: reply_sender };
        // The queues close when the task ends.
        let (handle, task) = match options.version {
            Version::Three => {
                let (client, event_loop) = rumqttc::AsyncClient::new(options.three(), 16);
                let task = tokio::spawn(async move {
                    queues.read_three(event_loop).await;
                    None
                });
                (Handle::Three(client), task)
            }
            Version::Five => {
                let (client, event_loop) = v5::AsyncClient::new(options.five(), 16);
                (Handle::Five(client), tokio::spawn(queues.read_five(event_loop)))
            }
        };
        let mut client = Self { handle, task, session_present: false, properties: None, messages, replies };
        match client.reply().await? {
            Reply::ConnAck(session_present, properties) => {
                client.session_present = session_present;
                client.properties = properties;
            }
            other => return Err(format!("{other:?} instead of CONNACK").into()),
        }
        Ok(client)
    }

    pub async fn reply(&mut self) -> Result<Reply> {
        let received = timeout(LARGE_LIMIT, self.replies.recv()).await.map_err(|_| "no reply in time")?;
        Ok(received.ok_or("connection ended")?)
    }

    pub async fn arrival(&mut self) -> Result<Arrival> {
        let received = timeout(LIMIT, self.messages.recv()).await.map_err(|_| "no message in time")?;
        Ok(received.ok_or("connection ended")?)
    }

    /// A message that has arrived already.
    pub fn arrived(&mut self) -> Option<Message> {
        self.messages.try_recv().ok().map(|arrival| arrival.message)
    }

    pub async fn message(&mut self) -> Result<Message> {
        Ok(self.arrival().await?.message)
    }

    /// Topic, payload and properties of the next message.
    pub async fn message_and_properties(&mut self) -> Result<(String, String, PublishProperties)> {
        let Arrival { message: (_, _, topic, payload), properties, .. } = self.arrival().await?;
        Ok((topic, payload, properties))
    }

    /// Subscribes, and expects that it is granted.
    pub async fn subscribe(&mut self, topic: &str, qos: QoS) -> Result<()> {
        self.subscribe_with(Filter::new(topic, qos), None).await
    }

    /// Subscribes with options and identifier of 5.0, and expects that it is granted.
    pub async fn subscribe_with(&mut self, filter: Filter, identifier: Option<usize>) -> Result<()> {
        let expected = vec![SubscribeReasonCode::Success(filter.qos)];
        expect("reason codes", self.subscribe_all(vec![filter], identifier).await?, expected)
    }

    /// Subscribes in one packet, and returns the reason codes.
    pub async fn subscribe_all(
        &mut self,
        filters: Vec<Filter>,
        identifier: Option<usize>,
    ) -> Result<Vec<SubscribeReasonCode>> {
        match (&self.handle, identifier) {
            (Handle::Three(client), _) => {
                let filters = filters
                    .into_iter()
                    .map(|filter| rumqttc::SubscribeFilter { path: filter.path, qos: three_qos(filter.qos) });
                client.subscribe_many(filters).await?;
            }
            (Handle::Five(client), None) => client.subscribe_many(filters).await?,
            (Handle::Five(client), id) => {
                let properties = SubscribeProperties { id, user_properties: Vec::new() };
                client.subscribe_many_with_properties(filters, properties).await?;
            }
        }
        match self.reply().await? {
            Reply::SubAck(codes) => Ok(codes),
            other => Err(format!("{other:?} instead of SUBACK").into()),
        }
    }

    /// Unsubscribes, and returns the reason codes, which 3.1.1 does not have.
    pub async fn unsubscribe(&mut self, topic: &str) -> Result<Vec<UnsubAckReason>> {
        match &self.handle {
            Handle::Three(client) => client.unsubscribe(topic).await?,
            Handle::Five(client) => client.unsubscribe(topic).await?,
        }
        match self.reply().await? {
            Reply::UnsubAck(codes) => Ok(codes),
            other => Err(format!("{other:?} instead of UNSUBACK").into()),
        }
    }

    /// Publishes without waiting for an acknowledgement.
    pub async fn send(
        &self,
        topic: &str,
        payload: &str,
        qos: QoS,
        retain: bool,
        properties: Option<PublishProperties>,
    ) -> Result<()> {
        let payload = payload.as_bytes().to_vec();
        match (&self.handle, properties) {
            (Handle::Three(client), _) => client.publish(topic, three_qos(qos), retain, payload).await?,
            (Handle::Five(client), None) => client.publish(topic, qos, retain, payload).await?,
            (Handle::Five(client), Some(properties)) => {
                client.publish_with_properties(topic, qos, retain, payload, properties).await?;
            }
        }
        Ok(())
    }

    /// Publishes, and waits for the end of the acknowledgements.
    pub async fn publish(&mut self, topic: &str, payload: &str, qos: QoS, retain: bool) -> Result<()> {
        self.send(topic, payload, qos, retain, None).await?;
        self.acknowledged(qos, 1).await
    }

    /// Publishes with properties, and waits for the end of the acknowledgements.
    pub async fn publish_with(
        &mut self,
        topic: &str,
        payload: &str,
        qos: QoS,
        retain: bool,
        properties: PublishProperties,
    ) -> Result<()> {
        self.send(topic, payload, qos, retain, Some(properties)).await?;
        self.acknowledged(qos, 1).await
    }

    /// Publishes, and then waits for all acknowledgements.
    pub async fn publish_all(&mut self, topic: &str, payloads: &[String], qos: QoS) -> Result<()> {
        for payload in payloads {
            self.send(topic, payload, qos, false, None).await?;
        }
        self.acknowledged(qos, payloads.len()).await
    }

    async fn acknowledged(&mut self, qos: QoS, count: usize) -> Result<()> {
        if qos == QoS::AtMostOnce {
            return Ok(());
        }
        let mut left = count;
        while left > 0 {
            match (self.reply().await?, qos) {
                (Reply::PubAck(_), QoS::AtLeastOnce) | (Reply::PubComp(_), QoS::ExactlyOnce) => left -= 1,
                (Reply::PubRec(_), QoS::ExactlyOnce) => {}
                (other, _) => return Err(format!("{other:?} instead of an acknowledgement").into()),
            }
        }
        Ok(())
    }

    /// Acknowledges a message, where that is left to its receiver.
    pub async fn acknowledge(&self, arrival: &Arrival) -> Result<()> {
        if let (Handle::Five(client), Some(publish)) = (&self.handle, &arrival.publish) {
            client.ack(publish).await?;
        }
        Ok(())
    }

    /// Waits until the broker has closed the connection; the reason code of its DISCONNECT, if there was one.
    pub async fn ended(&mut self) -> Result<Option<DisconnectReasonCode>> {
        Ok(timeout(LIMIT, &mut self.task).await.map_err(|_| "the connection does not end")??)
    }

    pub async fn disconnect(mut self) -> Result<()> {
        match &self.handle {
            Handle::Three(client) => client.disconnect().await?,
            Handle::Five(client) => client.disconnect().await?,
        }
        self.ended().await.map(|_| ())
    }
}

impl Drop for Client {
    /// Ends the connection, without DISCONNECT if that was not sent before.
    fn drop(&mut self) {
        self.task.abort();
    }
}
