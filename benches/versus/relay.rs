//! What sockets allow one core: a relay that hands messages at QoS 0 on, and hardly knows what they are.
//!
//! It looks up who gets a publisher's messages when the first one comes, and never again: from then on it only cuts the
//! stream where packets end. It has no sessions, limits or timers. As in the broker, what goes to many leaves in slices
//! between which it listens, so that nobody waits for a thousand others. It is this program, started once more.
//!
//! Large messages would be cheaper for one that does not wait for their ends.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use broker::codec::frame::Split;
use broker::codec::{Packet, QoS, decode, frame};
use broker::topics::{TopicFilter, TopicName};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::load::client::PROTOCOL;
use crate::measure::accept_all;

/// Followed by the port to listen on.
pub(crate) const OPTION: &str = "--relay=";

const READ_BUFFER_BYTES: usize = 64 * 1024;
const PACKET_SIZE_MAX: u32 = 1 << 20;
const LEVELS_MAX: u32 = 128;

/// As many as the broker flushes of those who got the same, before it listens again, and no longer than that.
const FAN_OUT_FLUSHES_PER_TURN: usize = 32;
const FAN_OUT_FLUSHES_MIN: usize = 8;
const FAN_OUT_FLUSH_TIME: Duration = Duration::from_micros(200);

const LISTENER: Token = Token(usize::MAX);

/// Serves until it is killed, if this process was started for that.
pub(crate) fn serve_if_asked() -> io::Result<()> {
    let Some(port) = std::env::args().find_map(|argument| Some(argument.strip_prefix(OPTION)?.to_owned()))
    else {
        return Ok(());
    };
    Relay::start(port.parse().map_err(io::Error::other)?)?.serve()
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    clients: Slab<Client>,
    subscriptions: Vec<(String, usize)>,
    /// Who has got something that others have not got, and is flushed in this turn.
    soon: VecDeque<usize>,
    /// Who has got what many have.
    in_turn: VecDeque<usize>,
}

struct Client {
    stream: TcpStream,
    /// The beginning of a packet whose end has not come.
    kept: Vec<u8>,
    /// Bytes to be written, of which the first `written` have gone.
    out: Vec<u8>,
    written: usize,
    /// Who gets what it publishes, once that is known.
    receivers: Option<Vec<usize>>,
}

impl Relay {
    fn start(port: u16) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (clients, subscriptions) = (Slab::new(), Vec::new());
        let (soon, in_turn) = Default::default();
        Ok(Self { poll, listener, clients, subscriptions, soon, in_turn })
    }

    fn serve(mut self) -> io::Result<()> {
        let (mut events, mut buffer) = (Events::with_capacity(1_024), vec![0; READ_BUFFER_BYTES]);
        loop {
            let patience = (!self.in_turn.is_empty()).then_some(Duration::ZERO);
            match self.poll.poll(&mut events, patience) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(at) => {
                        if event.is_writable() {
                            self.flush(at);
                        }
                        if event.is_readable() || event.is_read_closed() {
                            self.read(at, &mut buffer, event.is_read_closed())?;
                        }
                    }
                }
            }
            while let Some(at) = self.soon.pop_front() {
                self.flush(at);
            }
            self.flush_some();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        accept_all(&self.listener, |mut stream| {
            let entry = self.clients.vacant_entry();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(entry.key()), interest)?;
            let (kept, out) = Default::default();
            entry.insert(Client { stream, kept, out, written: 0, receivers: None });
            Ok(())
        })
    }

    /// Reads until a read is short, or up to the end of a stream that has one.
    fn read(&mut self, at: usize, buffer: &mut [u8], has_end: bool) -> io::Result<()> {
        loop {
            let Some(client) = self.clients.get_mut(at) else { return Ok(()) };
            let count = match client.stream.read(buffer) {
                Ok(count) if count > 0 => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                _ => {
                    self.clients.remove(at);
                    self.subscriptions.retain(|(_, holder)| *holder != at);
                    return Ok(());
                }
            };
            if client.kept.is_empty() {
                let taken = self.take(at, &buffer[..count])?;
                self.clients[at].kept.extend_from_slice(&buffer[taken..count]);
            } else {
                let mut bytes = std::mem::take(&mut client.kept);
                bytes.extend_from_slice(&buffer[..count]);
                let taken = self.take(at, &bytes)?;
                bytes.drain(..taken);
                self.clients[at].kept = bytes;
            }
            if count < buffer.len() && !has_end {
                return Ok(());
            }
        }
    }

    /// Takes all whole packets, and returns how many bytes they have.
    fn take(&mut self, at: usize, bytes: &[u8]) -> io::Result<usize> {
        let (mut taken, mut published) = (0, 0);
        while let Split::Complete { frame, length } =
            frame::split(&bytes[taken..], PROTOCOL, PACKET_SIZE_MAX).map_err(io::Error::other)?
        {
            if self.clients[at].receivers.is_none() {
                self.meet(at, decode::decode(frame, PROTOCOL).map_err(io::Error::other)?)?;
                if self.clients[at].receivers.is_none() {
                    published = taken + length;
                }
            }
            taken += length;
        }
        self.hand_on(at, &bytes[published..taken]);
        Ok(taken)
    }

    /// What comes before the first message, and that.
    fn meet(&mut self, at: usize, packet: Packet<'_>) -> io::Result<()> {
        match packet {
            Packet::Connect(_) => self.give(at, &[0x20, 2, 0, 0]),
            Packet::Subscribe(subscribe) => {
                let [high, low] = subscribe.packet_id.number().to_be_bytes();
                let requests = subscribe.requests.map(|request| (request.filter.to_owned(), at));
                self.subscriptions.extend(requests);
                self.give(at, &[0x90, 3, high, low, QoS::AtMostOnce.number()]);
            }
            Packet::Publish(publish) => {
                let topic = TopicName::parse(publish.topic, LEVELS_MAX).map_err(io::Error::other)?;
                let mut receivers = Vec::new();
                for (filter, receiver) in &self.subscriptions {
                    let filter = TopicFilter::parse(filter, LEVELS_MAX).map_err(io::Error::other)?;
                    receivers.extend(filter.matches(topic).then_some(*receiver));
                }
                self.clients[at].receivers = Some(receivers);
            }
            _ => {}
        }
        Ok(())
    }

    fn give(&mut self, at: usize, bytes: &[u8]) {
        self.clients[at].out.extend_from_slice(bytes);
        self.soon.push_back(at);
    }

    fn hand_on(&mut self, at: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let Some(receivers) = self.clients[at].receivers.take() else { return };
        for receiver in &receivers {
            let Some(client) = self.clients.get_mut(*receiver) else { continue };
            // Whoever has something in the outbox is flushed already, or waits for room in the socket.
            if client.out.is_empty() {
                match receivers.len() {
                    1 => self.soon.push_back(*receiver),
                    _ => self.in_turn.push_back(*receiver),
                }
            }
            client.out.extend_from_slice(bytes);
        }
        self.clients[at].receivers = Some(receivers);
    }

    /// Some of those who have got what many have.
    fn flush_some(&mut self) {
        if self.in_turn.is_empty() {
            return;
        }
        let began = Instant::now();
        for count in 1..=FAN_OUT_FLUSHES_PER_TURN {
            let Some(at) = self.in_turn.pop_front() else { break };
            self.flush(at);
            if count >= FAN_OUT_FLUSHES_MIN && began.elapsed() >= FAN_OUT_FLUSH_TIME {
                break;
            }
        }
    }

    /// What does not fit is left for when there is room. Whoever is gone is noticed by reading.
    fn flush(&mut self, at: usize) {
        let Some(client) = self.clients.get_mut(at).filter(|client| !client.out.is_empty()) else { return };
        if let Ok(count) = client.stream.write(&client.out[client.written..]) {
            client.written += count;
        }
        if client.written == client.out.len() {
            client.out.clear();
            client.written = 0;
        }
    }
}
