//! One network connection's protocol state, and the table of all of them.
//!
//! The server names a connection by slot and generation; a late event for a slot that has a new owner finds nothing.
//! A link holds what dies with the connection; what may outlive it is in the session.

use crate::clock::Instant;
use crate::codec::Protocol;
use crate::codec::packet::PACKET_SIZE_MAX;
use crate::wheel::TimerId;

use super::authenticate::Authentication;
use super::long_publish::LongPublish;
use super::long_request::LongRequest;
use super::outbox::Outbox;
use super::session::SessionId;
use super::topic_aliases::{ReceivedAliases, SentAliases};

/// The name of a connection: a slot of the server's slab and a generation that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    /// Index in the server's slab; used again after the connection ended.
    pub slot: u32,
    /// Differs each time the slot is used.
    pub generation: u32,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// Open; nothing but CONNECT may come.
    AwaitingConnect,
    /// CONNECT named a method of authentication; only the exchange may go on.
    Authenticating,
    /// CONNECT was accepted; the session is attached.
    Connected(SessionId),
    /// Ended: what is in the outbox may still leave, nothing is taken in any more.
    Closing,
}

/// Whether a link has bytes that nobody was told of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dirty {
    No,
    /// To be flushed in its turn: it is one of many who got the same message.
    InTurn,
    /// To be flushed as soon as possible.
    Soon,
}

/// One network connection's protocol state.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: ConnectionId,
    pub(super) state: LinkState,
    /// What its CONNECT says to speak; before that, the default.
    pub(super) protocol: Protocol,
    pub(super) keep_alive_secs: u16,
    /// Messages at QoS 1 and 2 that may be under way to the client.
    pub(super) window: u16,
    /// The largest packet that the client takes, in bytes.
    pub(super) packet_size_max: u32,
    /// What few have.
    pub(super) extras: Option<Box<LinkExtras>>,
    /// In which list of links with bytes to flush it is.
    pub(super) dirty: Dirty,
    /// The socket takes no more for now; the server flushes again when it does.
    pub(super) blocked: bool,
    /// The server does not read this peer until its outbox has drained.
    pub(super) read_paused: bool,
    /// The server does not read this peer until the store has caught up with what it published.
    pub(super) awaits_store: bool,
    /// The server does not read this peer until what it published, or what keeps that back, has reached everybody; or a
    /// newcomer until wills have that came before it.
    pub(super) awaits_fan_out: bool,
    /// A full outbox was logged since it was last empty.
    pub(super) outbox_full_logged: bool,
    /// The session has more to send as soon as the outbox has room.
    pub(super) wants_refill: bool,
    /// A group has found no room in the outbox, and will not look again until it has some.
    pub(super) is_found_full: bool,
    pub(super) opened_at: Instant,
    /// When the last complete packet came.
    pub(super) last_received: Instant,
    /// While `blocked`: when bytes last went out.
    pub(super) last_progress: Instant,
    /// The one timer of the link: handshake, keep-alive or stall, whichever is due first.
    pub(super) timer: Option<(TimerId, Instant)>,
    pub(super) outbox: Outbox,
    pub(super) packets_received: u64,
    pub(super) packets_sent: u64,
}

/// What most clients do not have: the state of an authentication or of what takes several turns, and topic aliases.
#[derive(Debug)]
pub(super) struct LinkExtras {
    pub(super) received_aliases: ReceivedAliases,
    pub(super) sent_aliases: SentAliases,
    pub(super) authentication: Option<Authentication>,
    /// A request that takes several turns.
    pub(super) long_request: Option<Box<LongRequest>>,
    /// A PUBLISH that takes several turns.
    pub(super) long_publish: Option<Box<LongPublish>>,
}

impl LinkExtras {
    /// Whether its last packet takes several turns.
    pub(super) fn takes_turns(&self) -> bool {
        self.long_request.is_some() || self.long_publish.is_some()
    }
}

impl Link {
    pub(super) fn session(&self) -> Option<SessionId> {
        match self.state {
            LinkState::Connected(session) => Some(session),
            LinkState::AwaitingConnect | LinkState::Authenticating | LinkState::Closing => None,
        }
    }

    /// Whether it is not read for reasons of ours.
    pub(super) fn is_read_paused(&self) -> bool {
        self.read_paused
            || self.awaits_store
            || self.awaits_fan_out
            || self.extras.as_ref().is_some_and(|extras| extras.takes_turns())
    }

    pub(super) fn extras_mut(&mut self) -> &mut LinkExtras {
        self.extras.get_or_insert_with(|| {
            Box::new(LinkExtras {
                received_aliases: ReceivedAliases::default(),
                sent_aliases: SentAliases::new(0),
                authentication: None,
                long_request: None,
                long_publish: None,
            })
        })
    }

    pub(super) fn authentication(&self) -> Option<&Authentication> {
        self.extras.as_ref()?.authentication.as_ref()
    }

    pub(super) fn authentication_mut(&mut self) -> Option<&mut Authentication> {
        self.extras.as_mut()?.authentication.as_mut()
    }
}

/// All links, by the slot of their connection.
#[derive(Debug, Default)]
pub(super) struct Links {
    slots: Vec<Option<Link>>,
    count: usize,
}

impl Links {
    pub(super) fn reserve(&mut self, links: usize) {
        self.slots.reserve(links);
    }

    pub(super) fn insert(&mut self, id: ConnectionId, now: Instant) -> &mut Link {
        let slot = id.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        assert!(self.slots[slot].is_none(), "the server frees a slot before it uses it again");
        self.count += 1;
        self.slots[slot].insert(Link {
            id,
            state: LinkState::AwaitingConnect,
            protocol: Protocol::default(),
            keep_alive_secs: 0,
            window: 0,
            packet_size_max: PACKET_SIZE_MAX,
            extras: None,
            dirty: Dirty::No,
            blocked: false,
            read_paused: false,
            awaits_store: false,
            awaits_fan_out: false,
            outbox_full_logged: false,
            wants_refill: false,
            is_found_full: false,
            opened_at: now,
            last_received: now,
            last_progress: now,
            timer: None,
            outbox: Outbox::default(),
            packets_received: 0,
            packets_sent: 0,
        })
    }

    pub(super) fn find(&self, id: ConnectionId) -> Option<&Link> {
        self.slots.get(id.slot as usize)?.as_ref().filter(|link| link.id == id)
    }

    pub(super) fn find_mut(&mut self, id: ConnectionId) -> Option<&mut Link> {
        self.slots.get_mut(id.slot as usize)?.as_mut().filter(|link| link.id == id)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Link> {
        self.find(id)?;
        self.count -= 1;
        self.slots[id.slot as usize].take()
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.slots.iter().flatten()
    }

    /// Slots, free ones included.
    pub(super) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The one in this slot.
    pub(super) fn at(&self, slot: u32) -> Option<&Link> {
        self.slots.get(slot as usize)?.as_ref()
    }
}
