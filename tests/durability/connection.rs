//! A blocking connection to the broker, for clients whose sessions outlive it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use broker::codec::frame::{self, Split};
use broker::codec::packet::{Ack, Connect, Disconnect, Publish, Will};
use broker::codec::property::PropertyList;
use broker::codec::{Packet, PacketId, Properties, Property, Protocol, QoS, ReasonCode, decode, encode};

use crate::PATIENCE;

/// How a client introduces itself.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    pub(crate) client_id: String,
    pub(crate) protocol: Protocol,
    /// How long the session outlives its connection; 0 is a clean session. Before 5.0 there is only "not at all" and
    /// "for ever".
    session_expiry_secs: u32,
    will: Option<DelayedWill>,
}

#[derive(Clone, Debug)]
struct DelayedWill {
    topic: &'static str,
    payload: &'static str,
    delay_secs: u32,
}

/// What the broker says to a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connack {
    pub(crate) session_present: bool,
    pub(crate) reason: ReasonCode,
}

/// CONNACK for a session that was there.
pub(crate) const RESUMED: Connack = Connack { session_present: true, reason: ReasonCode::Success };

/// CONNACK for a session that is new.
pub(crate) const NEW: Connack = Connack { session_present: false, reason: ReasonCode::Success };

impl Login {
    /// Of a client whose session ends with its connection.
    pub(crate) fn clean(client_id: &str, protocol: Protocol) -> Self {
        Self { client_id: client_id.to_owned(), protocol, session_expiry_secs: 0, will: None }
    }

    /// Of a client whose session is stored.
    pub(crate) fn stored(client_id: &str, protocol: Protocol) -> Self {
        Self::expiring(client_id, protocol, 3_600)
    }

    /// Of a client whose session is stored for so many seconds.
    pub(crate) fn expiring(client_id: &str, protocol: Protocol, secs: u32) -> Self {
        Self { session_expiry_secs: secs, ..Self::clean(client_id, protocol) }
    }

    /// The same with a will at QoS 1, which is published so many seconds after the connection was lost.
    pub(crate) fn with_will(self, topic: &'static str, payload: &'static str, delay_secs: u32) -> Self {
        Self { will: Some(DelayedWill { topic, payload, delay_secs }), ..self }
    }

    /// Connects, and returns what the broker says to that.
    pub(crate) fn connect(&self, address: SocketAddr) -> io::Result<(Connection, Connack)> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Connection { stream, protocol: self.protocol, bytes: Vec::new(), start: 0 };
        let (mut properties, mut will_properties) = (PropertyList::default(), PropertyList::default());
        let is_clean = self.session_expiry_secs == 0;
        if self.protocol.has_properties() && !is_clean {
            properties.push(&Property::SessionExpirySecs(self.session_expiry_secs));
        }
        let will = self.will.as_ref().map(|will| {
            will_properties.push(&Property::WillDelaySecs(will.delay_secs));
            Will {
                topic: will.topic,
                payload: will.payload.as_bytes(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: will_properties.as_properties(),
            }
        });
        connection.send(&Packet::Connect(Connect {
            protocol: self.protocol,
            clean_start: is_clean,
            keep_alive_secs: 0,
            properties: properties.as_properties(),
            client_id: &self.client_id,
            will,
            username: None,
            password: None,
        }))?;
        match connection.receive()? {
            Received::Connack(connack) => Ok((connection, connack)),
            other => panic!("CONNACK comes first, not {other:?}"),
        }
    }
}

/// A PUBLISH that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: QoS,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) packet_id: Option<PacketId>,
}

/// A packet that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Connack(Connack),
    Publish(Message),
    Puback(PacketId, ReasonCode),
    Pubrec(PacketId, ReasonCode),
    Pubrel(PacketId),
    Pubcomp(PacketId, ReasonCode),
    /// The bytes of its codes.
    Suback(Vec<u8>),
    Pingresp,
    Disconnect(ReasonCode),
}

/// An answer that says success and nothing else.
pub(crate) fn ack(packet_id: PacketId) -> Ack<'static> {
    Ack::success(packet_id)
}

/// A connection whose CONNECT was sent.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    protocol: Protocol,
    /// What came, and how much of it was taken.
    bytes: Vec<u8>,
    start: usize,
}

impl Connection {
    pub(crate) fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        encode::encode(packet, self.protocol, &mut bytes).expect("a test sends what can be sent");
        self.stream.write_all(&bytes)
    }

    /// Sends a PUBLISH without properties, and with an identifier unless its QoS is 0.
    pub(crate) fn send_publish(
        &mut self,
        topic: &str,
        payload: &[u8],
        qos: QoS,
        retain: bool,
    ) -> io::Result<()> {
        let packet_id = (qos > QoS::AtMostOnce).then_some(PacketId::FIRST);
        let properties = Properties::NONE;
        self.send(&Packet::Publish(Publish {
            dup: false,
            qos,
            retain,
            topic,
            packet_id,
            properties,
            payload,
        }))
    }

    /// Publishes at QoS 1 and returns the code of the PUBACK. What comes before that is not for this client.
    pub(crate) fn publish(&mut self, topic: &str, payload: &str, retain: bool) -> ReasonCode {
        self.send_publish(topic, payload.as_bytes(), QoS::AtLeastOnce, retain).expect("the broker reads");
        match self.receive().expect("the broker answers") {
            Received::Puback(PacketId::FIRST, reason) => reason,
            other => panic!("a PUBACK, not {other:?}"),
        }
    }

    /// Subscribes and returns the codes of the SUBACK.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: QoS) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        encode::subscribe(
            &mut bytes,
            self.protocol,
            PacketId::FIRST,
            Properties::NONE,
            &[(filter, qos.into())],
        );
        self.stream.write_all(&bytes)?;
        match self.receive()? {
            Received::Suback(reasons) => Ok(reasons),
            other => panic!("a SUBACK, not {other:?}"),
        }
    }

    /// Sends DISCONNECT and waits until the broker has closed.
    pub(crate) fn disconnect(mut self) {
        self.send(&Packet::Disconnect(Disconnect::NORMAL)).expect("the broker reads");
        self.expect_end();
    }

    /// The next message, acknowledged as far as one answer does that.
    pub(crate) fn take_message(&mut self) -> Message {
        let message = match self.receive().expect("a message is due") {
            Received::Publish(message) => message,
            other => panic!("a PUBLISH, not {other:?}"),
        };
        if let Some(packet_id) = message.packet_id {
            assert_eq!(message.qos, QoS::AtLeastOnce, "tests that use this subscribe at QoS 1");
            self.send(&Packet::Puback(ack(packet_id))).expect("the broker reads");
        }
        message
    }

    /// The payloads of the next messages.
    pub(crate) fn take_payloads(&mut self, count: usize) -> Vec<String> {
        let text = |message: Message| String::from_utf8(message.payload).expect("payloads are text");
        (0..count).map(|_| text(self.take_message())).collect()
    }

    /// All that was sent before has been handled once this returns, and nothing else came meanwhile.
    pub(crate) fn ping(&mut self) {
        self.send(&Packet::Pingreq).expect("the broker reads");
        assert_eq!(self.receive().expect("the broker answers"), Received::Pingresp);
    }

    /// Nothing more comes but, to a client of 5.0, the word of why that is.
    pub(crate) fn expect_end(&mut self) {
        let mut has_reason = false;
        loop {
            match self.receive() {
                Ok(Received::Disconnect(_)) if self.protocol.has_properties() && !has_reason => {
                    has_reason = true
                }
                Ok(other) => panic!("the end of the connection, not {other:?}"),
                Err(error) => {
                    let is_end =
                        matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
                    assert!(is_end, "the end of the connection, not {error}");
                    return;
                }
            }
        }
    }

    /// The next packet.
    pub(crate) fn receive(&mut self) -> io::Result<Received> {
        match self.receive_within(PATIENCE)? {
            Some(received) => Ok(received),
            None => Err(io::Error::new(ErrorKind::TimedOut, "nothing came")),
        }
    }

    /// The next packet, if a byte of it comes within a time.
    pub(crate) fn receive_within(&mut self, time: Duration) -> io::Result<Option<Received>> {
        self.stream.set_read_timeout(Some(time))?;
        loop {
            if let Some(received) = self.next_received() {
                return Ok(Some(received));
            }
            self.bytes.drain(..self.start);
            self.start = 0;
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next packet, if all of it came.
    fn next_received(&mut self) -> Option<Received> {
        let split = frame::split(&self.bytes[self.start..], self.protocol, u32::MAX);
        let Split::Complete { frame, length } = split.expect("the broker sends packets") else { return None };
        let received = match decode::decode(frame, self.protocol).expect("the broker sends packets") {
            Packet::Connack(connack) => Received::Connack(Connack {
                session_present: connack.session_present,
                reason: connack.reason,
            }),
            Packet::Publish(publish) => Received::Publish(Message {
                topic: publish.topic.to_owned(),
                payload: publish.payload.to_vec(),
                qos: publish.qos,
                dup: publish.dup,
                retain: publish.retain,
                packet_id: publish.packet_id,
            }),
            Packet::Puback(ack) => Received::Puback(ack.packet_id, ack.reason),
            Packet::Pubrec(ack) => Received::Pubrec(ack.packet_id, ack.reason),
            Packet::Pubrel(ack) => Received::Pubrel(ack.packet_id),
            Packet::Pubcomp(ack) => Received::Pubcomp(ack.packet_id, ack.reason),
            Packet::Suback(suback) => Received::Suback(suback.reasons.to_vec()),
            Packet::Pingresp => Received::Pingresp,
            Packet::Disconnect(disconnect) => Received::Disconnect(disconnect.reason),
            other => panic!("no test asks for {other:?}"),
        };
        self.start += length;
        Some(received)
    }
}
