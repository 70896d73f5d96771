//! Sessions: what the broker remembers of a client from one connection to the next, and the table of all of them.
//!
//! Every connected client has a session; what differs is whether it outlives the connection. The outgoing half runs
//! through three lists, each in the order in which its entries have to be sent again:
//!
//! ```text
//!  route ──> queue ──(window, outbox)──> sent ──PUBACK──> done
//!                                          └───PUBREC──> released ──PUBCOMP──> done
//! ```
//!
//! What a member of a shared subscription gets comes from the queue of its group (see `shared`), never from its own.
//!
//! Invariants: a packet identifier is in `sent` or `released` at most once; `sent` and `released` together never
//! exceed the window; an absent session is in the list of absent ones, a connected one is not.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashTable;
use slab::Slab;

use crate::clock::{Duration, Instant};
use crate::codec::{PacketId, QoS};
use crate::hash::{HashSeed, hash_text, seeded};
use crate::topics::SubscriberId;
use crate::wheel::TimerId;

use super::link::ConnectionId;
use super::message::Message;
use super::options::Options;
use super::packet_ids::PacketIds;
use super::retained::RetainedStream;
use super::shared::GroupId;
use super::will::Will;

/// The name of a session: a slot and a generation that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId {
    pub(super) slot: u32,
    generation: u32,
}

impl SessionId {
    /// The name under which the subscription tree knows the session.
    pub(super) fn subscriber(self) -> SubscriberId {
        SubscriberId(self.slot)
    }
}

/// A message on its way to one client.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) message: Message,
    pub(super) qos: QoS,
    /// The retain flag: whether it answers a new subscription [MQTT-3.3.1-8], or is passed on as published.
    pub(super) retain: bool,
    /// By which subscriptions it comes, where that matters.
    pub(super) via: Option<Box<Via>>,
}

/// The subscriptions by which a message comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Via {
    /// Their identifiers.
    pub(super) subscription_ids: Box<[u32]>,
    /// The group that may give the message to somebody else.
    pub(super) group: Option<GroupId>,
}

impl Delivery {
    pub(super) fn subscription_ids(&self) -> &[u32] {
        self.via.as_ref().map_or(&[], |via| &via.subscription_ids)
    }
}

impl Via {
    /// `None` where there is nothing to say.
    pub(super) fn of(subscription_ids: &[u32], group: Option<GroupId>) -> Option<Box<Self>> {
        (!subscription_ids.is_empty() || group.is_some())
            .then(|| Box::new(Self { subscription_ids: subscription_ids.into(), group }))
    }
}

/// A PUBLISH that was sent and not yet answered.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) delivery: Delivery,
    pub(super) packet_id: PacketId,
}

/// The outgoing half of a session.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// PUBLISH sent, neither PUBACK nor PUBREC received; in the order of sending [MQTT-4.6.0-6].
    pub(super) sent: VecDeque<Sent>,
    /// How many entries of `sent`, from the front, were sent on the present connection. The others wait to be
    /// repeated [MQTT-4.4.0-1].
    pub(super) sent_here: usize,
    /// PUBREL sent, PUBCOMP not received; in the order of the PUBRECs [MQTT-4.6.0-4].
    pub(super) released: VecDeque<PacketId>,
    /// Not sent yet.
    pub(super) queue: VecDeque<Delivery>,
    /// Sum of the sizes of the messages in `queue`.
    pub(super) queued_bytes: u64,
    /// No message in `queue` expires before this.
    pub(super) earliest_expiry: Option<Instant>,
    packet_ids: PacketIds,
}

impl Outgoing {
    /// Messages that count against the window.
    pub(super) fn in_flight(&self) -> usize {
        self.sent.len() + self.released.len()
    }

    /// Messages that count against the window of the present connection.
    pub(super) fn under_way(&self) -> usize {
        self.sent_here + self.released.len()
    }

    /// Whether a message of this size has no room in the queue.
    pub(super) fn is_full_for(&self, size: u64, options: &Options) -> bool {
        self.queue.len() >= options.queued_messages_max as usize
            || self.queued_bytes + size > options.queued_bytes_max
    }

    pub(super) fn allot_packet_id(&mut self) -> Option<PacketId> {
        let Self { sent, released, packet_ids, .. } = self;
        packet_ids.allot(sent.iter().map(|sent| sent.packet_id).chain(released.iter().copied()))
    }

    /// Takes back the identifier that was allotted last.
    pub(super) fn give_back_packet_id(&mut self, packet_id: PacketId) {
        self.packet_ids.give_back(packet_id);
    }

    pub(super) fn push_queue(&mut self, delivery: Delivery) {
        self.queued_bytes += delivery.message.size();
        let expiry = delivery.message.expires_at();
        self.earliest_expiry = self.earliest_expiry.into_iter().chain(expiry).min();
        self.queue.push_back(delivery);
    }

    /// Removes what has expired from the queue; returns how many messages that was.
    pub(super) fn remove_expired(&mut self, now: Instant) -> u64 {
        if self.earliest_expiry.is_none_or(|earliest| earliest > now) {
            return 0;
        }
        let before = self.queue.len();
        (self.earliest_expiry, self.queued_bytes) = (None, 0);
        for delivery in std::mem::take(&mut self.queue) {
            if !delivery.message.is_expired(now) {
                self.push_queue(delivery);
            }
        }
        (before - self.queue.len()) as u64
    }

    /// Puts back what `pop_queue` gave.
    pub(super) fn unpop_queue(&mut self, delivery: Delivery) {
        self.queued_bytes += delivery.message.size();
        self.queue.push_front(delivery);
    }

    pub(super) fn pop_queue(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queued_bytes -= delivery.message.size();
        if self.queue.is_empty() {
            self.earliest_expiry = None;
            if self.queue.capacity() > 64 {
                // A long absence leaves a large buffer behind.
                self.queue = VecDeque::new();
            }
        }
        Some(delivery)
    }
}

/// Identifiers of incoming QoS 2 messages that were taken and not yet released [MQTT-4.3.3-2].
///
/// Sorted: clients count upwards, so an insertion is an append and a look-up is short, and a hostile order costs a
/// move of 256 KiB at most.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    list: Vec<Receipt>,
    /// How many of them had their PUBLISH on the present connection, and how many may have.
    begun_here: u32,
    receive_max: u32,
}

#[derive(Clone, Copy, Debug)]
struct Receipt {
    packet_id: PacketId,
    begun_here: bool,
}

/// What a QoS 2 PUBLISH is to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    New,
    Repeated,
    /// More are under way than the receive maximum allows.
    OneTooMany,
}

impl Receipts {
    /// A new connection: whatever is left of earlier ones does not count against its receive maximum.
    pub(super) fn begin_connection(&mut self, receive_max: u32) {
        self.list.iter_mut().for_each(|receipt| receipt.begun_here = false);
        (self.begun_here, self.receive_max) = (0, receive_max);
    }

    /// What a PUBLISH with this identifier is. A repetition counts as begun on the present connection from now on.
    pub(super) fn judge(&mut self, packet_id: PacketId) -> Arrival {
        let found = self.find(packet_id);
        let counts_anew = found.is_ok_and(|at| !self.list[at].begun_here);
        if self.begun_here >= self.receive_max && (counts_anew || found.is_err()) {
            return Arrival::OneTooMany;
        }
        let Ok(at) = found else { return Arrival::New };
        self.list[at].begun_here = true;
        self.begun_here += u32::from(counts_anew);
        Arrival::Repeated
    }

    fn find(&self, packet_id: PacketId) -> Result<usize, usize> {
        self.list.binary_search_by_key(&packet_id, |receipt| receipt.packet_id)
    }

    /// Notes the identifier of a PUBLISH that was taken.
    pub(super) fn insert(&mut self, packet_id: PacketId) {
        if let Err(at) = self.find(packet_id) {
            self.list.insert(at, Receipt { packet_id, begun_here: true });
            self.begun_here += 1;
        }
    }

    /// Forgets the identifier. False if it was not there.
    pub(super) fn remove(&mut self, packet_id: PacketId) -> bool {
        let Ok(at) = self.find(packet_id) else { return false };
        self.begun_here -= u32::from(self.list.remove(at).begun_here);
        if self.list.is_empty() && self.list.capacity() > 64 {
            self.list = Vec::new();
        }
        true
    }
}

/// What the broker remembers of one client.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) client_id: Box<str>,
    pub(super) connection: Option<ConnectionId>,
    /// Whether the session ends with its connection.
    pub(super) ends_with_connection: bool,
    /// Whether a full queue was logged since it was last empty.
    pub(super) queue_full_logged: bool,
    /// Whether the limit of subscriptions was logged.
    pub(super) subscriptions_full_logged: bool,
    /// Whether it is in the list of sessions to refill.
    pub(super) refill_scheduled: bool,
    /// How long it waits for its client once that is away; `None` is for ever.
    pub(super) expiry: Option<Duration>,
    /// While absent: its place in the order of leaving.
    absence: Option<u64>,
    /// While absent: when its will is due or it expires, whichever comes first.
    pub(super) timer: Option<TimerId>,
    /// While absent: since when.
    pub(super) absent_since: Instant,
    pub(super) outgoing: Outgoing,
    pub(super) receipts: Receipts,
    /// From CONNECT until it is published, or will never be.
    pub(super) will: Option<Box<Will>>,
    /// Retained messages still to be sent for new subscriptions.
    pub(super) streams: Vec<RetainedStream>,
    /// The groups of its shared subscriptions.
    pub(super) memberships: Vec<GroupId>,
}

impl Session {
    /// While absent: when it expires; `None` is never.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.expiry.map(|expiry| self.absent_since + expiry)
    }
}

/// All sessions, by slot and by client id.
#[derive(Debug)]
pub(super) struct Sessions {
    slab: Slab<Session>,
    by_client_id: HashTable<u32>,
    seed: HashSeed,
    generation: u32,
    /// Sessions without a connection, the longest absent first.
    absent: BTreeMap<u64, SessionId>,
    absences: u64,
}

impl Sessions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            slab: Slab::new(),
            by_client_id: HashTable::new(),
            seed: seeded(seed),
            generation: 0,
            absent: BTreeMap::new(),
            absences: 0,
        }
    }

    pub(super) fn insert(&mut self, client_id: &str, now: Instant) -> SessionId {
        assert!(self.find_by_client_id(client_id).is_none(), "one session per client id [MQTT-3.1.3-2]");
        self.generation = self.generation.wrapping_add(1);
        let entry = self.slab.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("fewer sessions than 2^32");
        let id = SessionId { slot, generation: self.generation };
        entry.insert(Session {
            id,
            client_id: client_id.into(),
            connection: None,
            ends_with_connection: true,
            queue_full_logged: false,
            subscriptions_full_logged: false,
            refill_scheduled: false,
            expiry: None,
            absence: None,
            timer: None,
            absent_since: now,
            outgoing: Outgoing::default(),
            receipts: Receipts::default(),
            will: None,
            streams: Vec::new(),
            memberships: Vec::new(),
        });
        let Self { slab, by_client_id, seed, .. } = self;
        by_client_id.insert_unique(hash_text(seed, client_id), slot, |slot| {
            hash_text(seed, &slab[*slot as usize].client_id)
        });
        id
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.find(id)?;
        self.mark_present(id);
        let session = self.slab.remove(id.slot as usize);
        let hash = hash_text(&self.seed, &session.client_id);
        self.by_client_id
            .find_entry(hash, |slot| *slot == id.slot)
            .expect("every session is indexed by its client id")
            .remove();
        Some(session)
    }

    pub(super) fn find(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(id.slot as usize).filter(|session| session.id == id)
    }

    pub(super) fn find_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slab.get_mut(id.slot as usize).filter(|session| session.id == id)
    }

    /// The session of a subscription. Subscriptions go with their session, so it exists.
    pub(super) fn subscriber_mut(&mut self, subscriber: SubscriberId) -> &mut Session {
        &mut self.slab[subscriber.0 as usize]
    }

    pub(super) fn find_by_client_id(&self, client_id: &str) -> Option<SessionId> {
        let hash = hash_text(&self.seed, client_id);
        let slot = self.by_client_id.find(hash, |slot| *self.slab[*slot as usize].client_id == *client_id)?;
        Some(self.slab[*slot as usize].id)
    }

    /// Puts the session last in the order of leaving.
    pub(super) fn mark_absent(&mut self, id: SessionId, now: Instant) {
        let absence = self.absences;
        let session = self.find_mut(id).expect("only an existing session can leave");
        assert!(session.absence.is_none() && session.connection.is_none());
        session.absence = Some(absence);
        session.absent_since = now;
        self.absences += 1;
        self.absent.insert(absence, id);
    }

    /// Takes the session out of the order of leaving.
    pub(super) fn mark_present(&mut self, id: SessionId) {
        if let Some(absence) = self.find_mut(id).and_then(|session| session.absence.take()) {
            self.absent.remove(&absence);
        }
    }

    pub(super) fn longest_absent(&self) -> Option<SessionId> {
        self.absent.first_key_value().map(|(_, id)| *id)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn absent_count(&self) -> usize {
        self.absent.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slab.iter().map(|(_, session)| session)
    }
}
