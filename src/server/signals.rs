//! Signals as events of the loop.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook_mio::v1_0::Signals;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// SIGINT or SIGTERM: stop in order.
    Stop,
    /// SIGUSR1: send the clients to another server.
    Drain,
    /// SIGUSR2: log every client.
    LogClients,
}

/// The signals of this process.
pub(super) struct SignalSource(Signals);

impl std::fmt::Debug for SignalSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalSource")
    }
}

impl SignalSource {
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        // Ends the process if nobody wants it. Without that a file that must not grow any more is an error of its write.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2])?;
        registry.register(&mut signals, token, Interest::READABLE)?;
        Ok(Self(signals))
    }

    /// The signals that came since the last call.
    pub(super) fn pending(&mut self) -> Vec<Request> {
        self.0
            .pending()
            .map(|signal| match signal {
                SIGUSR1 => Request::Drain,
                SIGUSR2 => Request::LogClients,
                _ => Request::Stop,
            })
            .collect()
    }
}
