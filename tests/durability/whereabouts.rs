//! Where a client finds its broker, which has another port after each restart.

use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard};

/// What a client can do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Stay away.
    #[default]
    Nowhere,
    /// Talk to the broker.
    At(SocketAddr),
    /// Give up.
    Over,
}

/// Where a client finds its broker: set by the test, read by the client's thread.
#[derive(Debug, Default)]
pub(crate) struct Whereabouts {
    place: Mutex<Place>,
    changed: Condvar,
}

impl Whereabouts {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().expect("nobody panics with it")
    }

    fn set(&self, place: Place) {
        *self.place() = place;
        self.changed.notify_all();
    }

    /// There is a broker here.
    pub(crate) fn appear(&self, address: SocketAddr) {
        self.set(Place::At(address));
    }

    /// There is none, or this client is to be away.
    pub(crate) fn vanish(&self) {
        self.set(Place::Nowhere);
    }

    /// There will be none any more.
    pub(crate) fn close(&self) {
        self.set(Place::Over);
    }

    /// The broker, as soon as there is one; `None` if there will be none.
    pub(crate) fn wait(&self) -> Option<SocketAddr> {
        let place = self.changed.wait_while(self.place(), |place| *place == Place::Nowhere);
        match *place.expect("nobody panics with it") {
            Place::At(address) => Some(address),
            Place::Nowhere | Place::Over => None,
        }
    }

    /// Whether the broker is still here as far as this client is concerned.
    pub(crate) fn is_at(&self, address: SocketAddr) -> bool {
        *self.place() == Place::At(address)
    }
}
