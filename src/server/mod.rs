//! The server: sockets, clock and signals around the core, all on one thread.
//!
//! A [`Server`] is bound on any thread and then run on one, which from there on owns everything. The turn of the loop
//! is in `event_loop`.
//!
//! Deliberately not here: decisions. A connection is closed only because the core said so or the system did.

mod authenticator;
mod connection;
mod descriptors;
mod event_loop;
#[cfg(feature = "persistence")]
mod hold;
#[cfg(feature = "persistence")]
mod keeper;
mod listener;
mod log_lines;
mod signals;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::{Poll, Token, Waker};

use crate::broker;
use crate::clock::Duration;
#[cfg(feature = "persistence")]
use crate::store::Claim;

pub use authenticator::{Authenticator, Scram};
pub use descriptors::raise_descriptor_limit;
#[cfg(feature = "persistence")]
pub use keeper::{Recovery, StoreOptions, Sync};

use event_loop::EventLoop;
use listener::Listener;
use signals::SignalSource;

/// What log lines name as their source: for an operator the files inside are noise.
const LOG_TARGET: &str = "broker";

const WAKER: Token = Token(usize::MAX);
const SIGNALS: Token = Token(usize::MAX - 1);
/// Listeners have the tokens from here downwards.
const LISTENERS: usize = usize::MAX - 2;

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen. Port 0 lets the system choose; `Server::local_addresses` tells what it chose.
    pub addresses: Vec<SocketAddr>,
    /// The limits of the core. A seed of 0 is replaced by a random one, and so is a `client_id_key` of zeros.
    pub broker: broker::Options,
    /// Where state is kept; `None` is nowhere. Decides about the durability of the core.
    #[cfg(feature = "persistence")]
    pub store: Option<StoreOptions>,
    /// Between two status blocks in the log; `None` is never.
    pub status_interval: Option<Duration>,
    /// Whether SIGINT and SIGTERM stop this server, SIGUSR1 drains it and SIGUSR2 logs its clients. At most one server
    /// of a process should.
    pub signals: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::from(([0, 0, 0, 0], 1883))],
            broker: broker::Options::default(),
            #[cfg(feature = "persistence")]
            store: None,
            status_interval: Some(Duration::from_secs(30)),
            signals: false,
        }
    }
}

/// Stops a running server from another thread.
#[derive(Clone, Debug)]
pub struct Handle {
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    drain: Arc<AtomicBool>,
}

impl Handle {
    /// Has the server stop in order: no more accepts, wills published, outboxes flushed for two seconds at most.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    /// Has the server send its clients to another one, if its options name it: who is connected is closed, and who
    /// comes is refused.
    pub fn drain(&self) {
        self.drain.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // Fails only if the loop is gone, and then it has stopped.
        let _ = self.waker.wake();
    }
}

/// An MQTT server that waits to be run.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    listeners: Vec<Listener>,
    signals: Option<SignalSource>,
    authenticator: Option<Box<dyn Authenticator>>,
    handle: Handle,
    broker: broker::Options,
    #[cfg(feature = "persistence")]
    store: Option<(StoreOptions, Claim)>,
    status_interval: Option<Duration>,
}

impl Server {
    /// Opens the listening sockets. Clients can connect from here on, and are served by [`Server::run`]; where state is
    /// stored they can connect once it was loaded.
    ///
    /// # Errors
    ///
    /// If an address cannot be bound (the error names it), the store is in use, or the system refuses the poll or has no
    /// random bytes.
    pub fn bind(options: Options) -> io::Result<Self> {
        // First of all: two servers must never have one store.
        #[cfg(feature = "persistence")]
        let store = match options.store {
            Some(store) => Some(store.claim().map(|claim| (store, claim))?),
            None => None,
        };
        let poll = Poll::new()?;
        // Before anybody can see that the server is there: a signal from then on must find it ready.
        let signals = if options.signals { Some(SignalSource::new(poll.registry(), SIGNALS)?) } else { None };
        let mut listeners = Vec::with_capacity(options.addresses.len());
        for address in &options.addresses {
            let listener = Listener::bind(*address).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
            })?;
            listeners.push(listener);
        }
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let handle = Handle { waker, stop: Arc::default(), drain: Arc::default() };
        let mut broker = options.broker;
        if broker.seed == 0 {
            let mut seed = [0; 8];
            getrandom::fill(&mut seed)?;
            broker.seed = u64::from_ne_bytes(seed);
        }
        if broker.client_id_key == [0; 32] {
            getrandom::fill(&mut broker.client_id_key)?;
        }
        let status_interval = options.status_interval;
        let mut server = Self {
            poll,
            listeners,
            signals,
            authenticator: None,
            handle,
            broker,
            #[cfg(feature = "persistence")]
            store,
            status_interval,
        };
        if !server.has_store() {
            server.listen()?;
        }
        Ok(server)
    }

    fn has_store(&self) -> bool {
        #[cfg(feature = "persistence")]
        return self.store.is_some();
        #[cfg(not(feature = "persistence"))]
        return false;
    }

    fn listen(&mut self) -> io::Result<()> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            listener.listen().map_err(|error| {
                io::Error::new(error.kind(), format!("cannot listen on {}: {error}", listener.address))
            })?;
            listener.register(self.poll.registry(), Token(LISTENERS - index))?;
        }
        Ok(())
    }

    /// Has clients of 5.0 authenticate by the methods that this knows, if they want to.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Box<dyn Authenticator>) -> Self {
        self.broker.authentication_methods = authenticator.methods();
        self.authenticator = Some(authenticator);
        self
    }

    /// Where the server listens, in the order of its options.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// A handle to stop it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until a handle or a signal stops it.
    ///
    /// # Errors
    ///
    /// If the store cannot be loaded, or the system's poll fails. The trouble of a single connection is not an error of the
    /// server.
    pub fn run(self) -> io::Result<()> {
        EventLoop::new(self)?.run()
    }
}
