//! One connection to a broker: blocking until it is accepted and subscribed, and never again.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use broker::codec::packet::{Connect, Suback};
use broker::codec::{Inbox, Packet, PacketId, Properties, Protocol, QoS, decode, encode};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// What all clients speak: every broker does.
pub(crate) const PROTOCOL: Protocol = Protocol::Mqtt311;

/// How long a broker may take to accept a client.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that is connected.
pub(crate) struct Client {
    stream: TcpStream,
    inbox: Inbox,
    /// Bytes to be written with the next flush, of which the first `written` have gone.
    pub(crate) out: Vec<u8>,
    written: usize,
}

impl Client {
    /// Connects with a session that ends with the connection, and subscribes if there are filters.
    pub(crate) fn connect(address: SocketAddr, client_id: &str, filters: &[(&str, QoS)]) -> io::Result<Self> {
        match Self::open(address, &connect_bytes(client_id), filters)? {
            (client, false) => Ok(client),
            (_, true) => Err(io::Error::other("a new session that is said to have been there before")),
        }
    }

    /// The same with a session that outlives the connection. Tells whether there was one already.
    pub(crate) fn connect_stored(
        address: SocketAddr,
        client_id: &str,
        filters: &[(&str, QoS)],
    ) -> io::Result<(Self, bool)> {
        Self::open(address, &connect_bytes_of(client_id, false), filters)
    }

    fn open(address: SocketAddr, connect: &[u8], filters: &[(&str, QoS)]) -> io::Result<(Self, bool)> {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = connect.to_vec();
        if !filters.is_empty() {
            let requests: Vec<_> = filters.iter().map(|(filter, qos)| (*filter, (*qos).into())).collect();
            encode::subscribe(&mut bytes, PROTOCOL, PacketId::FIRST, Properties::NONE, &requests);
        }
        stream.write_all(&bytes)?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)?;
        let is_present = match connack {
            [0x20, 2, is_present @ 0..=1, 0] => is_present == 1,
            other => return Err(io::Error::other(format!("{other:?} is no CONNACK that accepts"))),
        };
        if !filters.is_empty() {
            let reasons: Vec<_> = filters.iter().map(|(_, qos)| qos.number()).collect();
            let granted =
                Suback { packet_id: PacketId::FIRST, properties: Properties::NONE, reasons: &reasons };
            let mut wanted = Vec::new();
            encode::encode(&Packet::Suback(granted), PROTOCOL, &mut wanted).map_err(io::Error::other)?;
            let mut suback = vec![0; wanted.len()];
            stream.read_exact(&mut suback)?;
            if suback != wanted {
                return Err(io::Error::other("a SUBACK that does not grant what was asked for"));
            }
        }
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream);
        Ok((Self { stream, inbox: Inbox::default(), out: Vec::new(), written: 0 }, is_present))
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Reads until there is no more and hands over every packet, together with the buffer for answers.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        mut take: impl FnMut(Packet<'_>, &mut Vec<u8>),
    ) -> io::Result<()> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the broker hung up")),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut input = &buffer[..count];
            loop {
                let frame = self.inbox.next(&mut input, PROTOCOL, u32::MAX).map_err(io::Error::other)?;
                let Some(frame) = frame else { break };
                take(decode::decode(frame, PROTOCOL).map_err(io::Error::other)?, &mut self.out);
            }
            if count < buffer.len() {
                // The socket is empty, and what comes later makes a new event.
                return Ok(());
            }
        }
    }

    /// Writes as much as the socket takes; the rest waits for the event that says it takes more.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }
}

/// A CONNECT without anything that is not needed.
pub(crate) fn connect_bytes(client_id: &str) -> Vec<u8> {
    connect_bytes_of(client_id, true)
}

fn connect_bytes_of(client_id: &str, clean_start: bool) -> Vec<u8> {
    let connect = Connect {
        protocol: PROTOCOL,
        clean_start,
        keep_alive_secs: 0,
        properties: Properties::NONE,
        client_id,
        will: None,
        username: None,
        password: None,
    };
    let mut bytes = Vec::new();
    encode::encode(&Packet::Connect(connect), PROTOCOL, &mut bytes).expect("it has a form on the wire");
    bytes
}
