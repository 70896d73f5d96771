//! One open connection as the loop sees it, and the slab of all of them.
//!
//! A token is the slab's slot together with a generation, so an event for a connection that is gone finds nothing,
//! even if its slot is in use again.

use std::net::SocketAddr;

use mio::Token;
use slab::Slab;

use crate::broker::ConnectionId;
use crate::codec::Inbox;
use crate::transport::Transport;

/// What is known of the end of a connection. Only a read of zero bytes, or one that fails, says that everything came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Open,
    /// It has closed its half.
    Closed,
    /// A write has failed: it is gone, and takes nothing any more.
    Gone,
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) address: SocketAddr,
    pub(super) transport: Transport,
    /// The beginning of a packet whose rest has not come, or packets put off; `None` for most, most of the time.
    pub(super) inbox: Option<Box<Inbox>>,
    /// The socket may have more to read: an event said so and no read has found the end since.
    pub(super) readable: bool,
    pub(super) peer: Peer,
    /// In the list of connections to read from.
    pub(super) listed: bool,
    /// Something of what was read from it last went to many.
    pub(super) feeds_many: bool,
}

/// All open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slab: Slab<Connection>,
    generation: u32,
}

impl Connections {
    pub(super) fn reserve(&mut self, connections: usize) {
        self.slab.reserve(connections);
    }

    pub(super) fn insert(&mut self, transport: Transport, address: SocketAddr) -> &mut Connection {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.slab.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("fewer connections than 2^32");
        let id = ConnectionId { slot, generation: self.generation };
        entry.insert(Connection {
            id,
            address,
            transport,
            inbox: None,
            readable: false,
            peer: Peer::Open,
            listed: false,
            feeds_many: false,
        })
    }

    pub(super) fn find(&self, id: ConnectionId) -> Option<&Connection> {
        self.slab.get(id.slot as usize).filter(|connection| connection.id == id)
    }

    pub(super) fn find_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.slab.get_mut(id.slot as usize).filter(|connection| connection.id == id)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.find(id)?;
        Some(self.slab.remove(id.slot as usize))
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }
}

/// The token under which a connection is registered.
pub(super) fn token(id: ConnectionId) -> Token {
    // Slots stay below the tokens of listeners, waker and signals, which have all upper bits set.
    Token((id.generation as usize) << 32 | id.slot as usize)
}

/// The connection that is registered under a token.
pub(super) fn connection_id(token: Token) -> ConnectionId {
    ConnectionId { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
}
