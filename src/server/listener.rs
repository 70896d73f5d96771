//! The listening sockets: opening them, accepting a bounded number per turn, and pausing when descriptors run out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration as SystemDuration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::clock::{Duration, Instant};

use super::LOG_TARGET;

/// Connections that may wait for `accept`; the system may lower it.
const BACKLOG: i32 = 4096;

/// Connections accepted from one socket in one turn: a burst must not hold up those who are served already.
const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting rests when descriptors have run out and no connection ends meanwhile.
const PAUSE: Duration = Duration(1_000);

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    pub(super) address: SocketAddr,
    /// An event said that connections wait, and no accept has found the end since.
    pub(super) ready: bool,
    /// Descriptors ran out: rest until then.
    paused_until: Option<Instant>,
}

impl Listener {
    /// Opens a socket; nobody can connect yet. What accepted connections shall have is set here, because they inherit it:
    /// no Nagle delay, and TCP keep-alive to find peers that vanished without a word.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // `::` is everybody, over IPv4 as well; any other address is what it says.
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(SystemDuration::from_secs(120))
            .with_interval(SystemDuration::from_secs(30));
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let socket = TcpListener::from_std(socket.into());
        let address = socket.local_addr()?;
        Ok(Self { socket, address, ready: false, paused_until: None })
    }

    /// From here on clients can connect.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        SockRef::from(&self.socket).listen(BACKLOG)
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)
    }

    pub(super) fn deregister(&mut self, registry: &Registry) {
        self.ready = false;
        // It is about to be closed, which does the same.
        let _ = registry.deregister(&mut self.socket);
    }

    /// Whether `accept` would do something now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.ready && self.paused_until.is_none_or(|until| until <= now)
    }

    /// When accepting goes on after a pause.
    pub(super) fn pause_ends(&self) -> Option<Instant> {
        self.paused_until.filter(|_| self.ready)
    }

    /// A connection was closed: there is a descriptor again.
    pub(super) fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Accepts what waits, a bounded number, and hands each to `take`.
    pub(super) fn accept(&mut self, now: Instant, mut take: impl FnMut(TcpStream, SocketAddr)) {
        self.paused_until = None;
        for _ in 0..ACCEPTS_PER_TURN {
            match self.socket.accept() {
                Ok((stream, address)) => take(stream, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return;
                }
                // The peer gave up before it was accepted: the next one may be there.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    log::warn!(
                        target: LOG_TARGET, "{}: cannot accept connections for now: {error} (is the limit on open files too low?)",
                        self.address
                    );
                    self.paused_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_connections_inherit_the_options_of_their_listener() {
        // [B-090]: a peer that vanished without a word is found by the system even if it promised no keep-alive.
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        listener.listen().expect("it listens");
        let _client = std::net::TcpStream::connect(listener.address).expect("it listens");
        let mut accepted = Vec::new();
        while accepted.is_empty() {
            listener.accept(Instant(0), |stream, _| accepted.push(stream));
        }
        let socket = SockRef::from(&accepted[0]);
        assert!(socket.tcp_nodelay().expect("an option") && socket.keepalive().expect("an option"));
    }
}
