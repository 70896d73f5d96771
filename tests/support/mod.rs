//! A blocking client for tests, just enough of one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use broker::codec::encode;
use broker::codec::packet::{Connect, Packet, Protocol, Publish, QoS, Will};
use broker::codec::{PacketId, Properties, decode, frame};

/// Long enough for a slow machine: only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A CONNECT with this client id.
pub(crate) fn connect(client_id: &str) -> Connect<'_> {
    Connect {
        protocol: Protocol::Mqtt311,
        clean_start: true,
        keep_alive_secs: 0,
        properties: Properties::NONE,
        client_id,
        will: None,
        username: None,
        password: None,
    }
}

/// A will at QoS 0.
pub(crate) fn will<'a>(topic: &'a str, payload: &'a [u8]) -> Option<Will<'a>> {
    Some(Will { topic, payload, qos: QoS::AtMostOnce, retain: false, properties: Properties::NONE })
}

/// A PUBLISH at QoS 0.
pub(crate) fn publish<'a>(topic: &'a str, payload: &'a [u8]) -> Publish<'a> {
    Publish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic,
        packet_id: None,
        properties: Properties::NONE,
        payload,
    }
}

/// A received packet, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Publish { topic: String, payload: Vec<u8>, qos: QoS, retain: bool, packet_id: Option<PacketId> },
    Other(u8),
    Closed,
}

/// A blocking client.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    protocol: Protocol,
    bytes: Vec<u8>,
    start: usize,
}

impl Client {
    /// Opens a connection and nothing else.
    pub(crate) fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server accepts");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        Self { stream, protocol: Protocol::default(), bytes: Vec::new(), start: 0 }
    }

    /// Opens a connection and has its CONNECT accepted.
    pub(crate) fn connect(address: SocketAddr, connect: Connect<'_>) -> Self {
        let mut client = Self::open(address);
        client.protocol = connect.protocol;
        client.send(&Packet::Connect(connect));
        assert_eq!(client.receive(), Received::Other(2), "CONNACK");
        client
    }

    pub(crate) fn send(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        encode::encode(packet, self.protocol, &mut bytes).expect("a test sends what can be sent");
        self.stream.write_all(&bytes).expect("the server reads");
    }

    pub(crate) fn subscribe(&mut self, filter: &str, qos: QoS) {
        let mut bytes = Vec::new();
        let requests = [(filter, qos.into())];
        encode::subscribe(&mut bytes, self.protocol, PacketId::FIRST, Properties::NONE, &requests);
        self.stream.write_all(&bytes).expect("the server reads");
        assert_eq!(self.receive(), Received::Other(9), "SUBACK");
    }

    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) {
        self.send(&Packet::Publish(Publish { retain, ..publish(topic, payload) }));
    }

    /// All that was sent before has been handled once this returns, and nothing else came meanwhile.
    pub(crate) fn ping(&mut self) {
        self.send(&Packet::Pingreq);
        assert_eq!(self.receive(), Received::Other(13), "PINGRESP");
    }

    /// The next packet.
    pub(crate) fn receive(&mut self) -> Received {
        loop {
            let rest = &self.bytes[self.start..];
            match frame::split(rest, self.protocol, u32::MAX).expect("the server sends packets") {
                frame::Split::Complete { frame, length } => {
                    let received =
                        match decode::decode(frame, self.protocol).expect("the server sends packets") {
                            Packet::Publish(publish) => Received::Publish {
                                topic: publish.topic.to_owned(),
                                payload: publish.payload.to_vec(),
                                qos: publish.qos,
                                retain: publish.retain,
                                packet_id: publish.packet_id,
                            },
                            _ => Received::Other(frame.header.packet_type()),
                        };
                    self.start += length;
                    return received;
                }
                frame::Split::Partial { .. } => {
                    self.bytes.drain(..self.start);
                    self.start = 0;
                    let mut buffer = [0; 16 * 1024];
                    match self.stream.read(&mut buffer) {
                        Ok(0) => return Received::Closed,
                        Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                            return Received::Closed;
                        }
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => panic!("nothing came: {error}"),
                    }
                }
            }
        }
    }
}
