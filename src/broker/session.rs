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
//! Invariants: a packet identifier is in `sent` or `released` at most once; what was sent on the present connection never
//! exceeds its window; an absent session is in the list of absent ones, a connected one is not.

use std::collections::BTreeSet;

use slab::Slab;

use crate::clock::{Duration, Instant};
use crate::codec::PacketId;
use crate::divided_table::DividedTable;
use crate::hash::{HashSeed, hash_text, seeded};
use crate::journal::{Lsn, Owner, SessionRecord};
use crate::topics::SubscriberId;
use crate::wheel::TimerId;

use super::delivery::Delivery;
use super::link::ConnectionId;
use super::packet_ids::PacketIds;
use super::queue::Queue;
use super::receipts::Receipts;
use super::retained::RetainedStreams;
use super::shared::GroupId;
use super::thin_list::ThinList;
use super::unanswered::{Identified, Unanswered};
use super::will::Will;

/// The generation of no session: in a slot whose session has ended.
const ENDED: u32 = 0;

/// The name of a session: a slot and a generation that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId {
    // First: of those who left in the same millisecond the one that was made first is the longest absent.
    generation: u32,
    pub(super) slot: u32,
}

impl SessionId {
    /// The name under which the subscription tree knows the session.
    pub(super) fn subscriber(self) -> SubscriberId {
        SubscriberId(self.slot)
    }
}

/// A PUBLISH that was sent and not yet answered.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) delivery: Delivery,
    pub(super) packet_id: PacketId,
}

impl Identified for Sent {
    #[inline]
    fn packet_id(&self) -> PacketId {
        self.packet_id
    }
}

/// A PUBREL that was sent and not yet answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Released {
    pub(super) packet_id: PacketId,
    pub(super) record: Lsn,
}

impl Identified for Released {
    #[inline]
    fn packet_id(&self) -> PacketId {
        self.packet_id
    }
}

/// The outgoing half of a session.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// PUBLISH sent, neither PUBACK nor PUBREC received; in the order of sending [MQTT-4.6.0-6].
    pub(super) sent: Unanswered<Sent>,
    /// How many entries of `sent`, from the front, were sent on the present connection. The others wait to be
    /// repeated [MQTT-4.4.0-1].
    pub(super) sent_here: u32,
    /// PUBREL sent, PUBCOMP not received; in the order of the PUBRECs [MQTT-4.6.0-4].
    pub(super) released: Unanswered<Released>,
    /// Not sent yet.
    pub(super) queue: Queue,
    packet_ids: PacketIds,
}

impl Outgoing {
    /// Messages that count against the window.
    pub(super) fn in_flight(&self) -> usize {
        self.sent.len() + self.released.len()
    }

    /// Messages that count against the window of the present connection.
    pub(super) fn under_way(&self) -> usize {
        self.sent_here as usize + self.released.len()
    }

    /// Nothing was sent on the present connection yet.
    pub(super) fn begin_anew(&mut self) {
        self.sent_here = 0;
        self.sent.begin_anew();
    }

    /// What is to be repeated next, and where in `sent` it stands.
    pub(super) fn next_to_repeat(&mut self) -> Option<(usize, &Sent)> {
        let place = self.sent.first_not_passed(self.sent_here)?;
        Some((place, self.sent.at(place)?))
    }

    /// An identifier for one more message. Its window is not full, so one is free.
    pub(super) fn allot_packet_id(&mut self) -> PacketId {
        let Self { sent, released, packet_ids, .. } = self;
        let in_use =
            sent.iter().map(|sent| sent.packet_id).chain(released.iter().map(|released| released.packet_id));
        packet_ids.allot(in_use).expect("no window is larger than the number of identifiers less one in use")
    }

    /// Identifiers are in use that this allotter did not give away.
    pub(super) fn restore_packet_ids(&mut self) {
        self.packet_ids = PacketIds::resumed();
    }

    /// An identifier is in use no more.
    #[inline]
    pub(super) fn free_packet_id(&mut self, packet_id: PacketId) {
        self.packet_ids.free(packet_id);
    }

    /// Identifiers in use.
    pub(super) fn used_packet_ids(&self) -> impl Iterator<Item = PacketId> + Clone {
        let sent = self.sent.iter().map(|sent| sent.packet_id);
        sent.chain(self.released.iter().map(|released| released.packet_id))
    }

    /// Asserts that the allotter knows what is in use, and every invariant of the lists.
    pub(super) fn check_packet_ids(&self) {
        self.packet_ids.check_invariants(self.used_packet_ids());
        self.sent.check_invariants(self.sent_here);
        self.released.check_invariants(0);
    }

    /// Takes back the identifier that was allotted last.
    pub(super) fn give_back_packet_id(&mut self, packet_id: PacketId) {
        self.packet_ids.give_back(packet_id);
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
    /// Whether the limit of subscriptions was logged.
    pub(super) subscriptions_full_logged: bool,
    /// Whether it is in the list of sessions to refill.
    pub(super) refill_scheduled: bool,
    /// Whether its streams wait for a message that is on its way to very many.
    pub(super) are_streams_behind: bool,
    /// How long it waits for its client once that is away; `None` is for ever.
    pub(super) expiry: Option<Duration>,
    /// While absent: when its will is due or it expires, whichever comes first.
    pub(super) timer: Option<TimerId>,
    /// While absent: since when.
    pub(super) absent_since: Instant,
    pub(super) outgoing: Outgoing,
    pub(super) receipts: Receipts,
    /// From CONNECT until it is published, or will never be.
    pub(super) will: Option<Box<Will>>,
    /// Retained messages still to be sent for new subscriptions.
    pub(super) streams: RetainedStreams,
    /// The groups of its shared subscriptions, and which of them is asked next when there is room.
    pub(super) memberships: ThinList<GroupId>,
    pub(super) group_turn: u32,
    /// How many of them were asked in vain, one after the other, before the round was put off to the next turn.
    pub(super) asked_in_vain: u32,
    /// Who authenticated when the session was made; nobody else may go on with it.
    pub(super) user: Option<Box<str>>,
    /// The numbers of its first record, which is its name in the store, and of its latest one; none if it is not stored.
    pub(super) name: Lsn,
    pub(super) latest_record: Lsn,
}

impl Session {
    fn new(id: SessionId, client_id: &str, now: Instant) -> Self {
        Self {
            id,
            client_id: client_id.into(),
            connection: None,
            ends_with_connection: true,
            subscriptions_full_logged: false,
            refill_scheduled: false,
            are_streams_behind: false,
            expiry: None,
            timer: None,
            absent_since: now,
            outgoing: Outgoing::default(),
            receipts: Receipts::default(),
            will: None,
            streams: RetainedStreams::default(),
            memberships: ThinList::default(),
            group_turn: 0,
            asked_in_vain: 0,
            user: None,
            name: Lsn::NONE,
            latest_record: Lsn::NONE,
        }
    }

    /// What of it is stored.
    pub(super) fn to_record(&self) -> SessionRecord<'_> {
        SessionRecord {
            client_id: &self.client_id,
            user: self.user.as_deref(),
            ends_with_connection: self.ends_with_connection,
            expiry: self.expiry,
            absent_since: self.connection.is_none().then_some(self.absent_since),
            will: self.will.as_ref().map(|will| will.to_record()),
        }
    }

    /// As whose a delivery is recorded, if it is to outlive the process.
    pub(super) fn stored_as(&self) -> Option<Owner<'static>> {
        self.name.is_some().then_some(Owner::Session(self.name))
    }

    /// While absent: when it expires; `None` is never.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.expiry.map(|expiry| self.absent_since + expiry)
    }
}

/// All sessions, by slot and by client id.
#[derive(Debug)]
pub(super) struct Sessions {
    slab: Slab<Session>,
    by_client_id: DividedTable<u32>,
    seed: HashSeed,
    generation: u32,
    /// Slots whose session has ended.
    ended: usize,
    /// Sessions without a connection, the longest absent first.
    absent: BTreeSet<(Instant, SessionId)>,
}

impl Sessions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            slab: Slab::new(),
            by_client_id: DividedTable::new(),
            seed: seeded(seed),
            generation: ENDED,
            ended: 0,
            absent: BTreeSet::new(),
        }
    }

    pub(super) fn reserve(&mut self, sessions: usize) {
        self.slab.reserve(sessions);
    }

    pub(super) fn insert(&mut self, client_id: &str, now: Instant) -> SessionId {
        assert!(self.find_by_client_id(client_id).is_none(), "one session per client id [MQTT-3.1.3-2]");
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let entry = self.slab.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("fewer sessions than 2^32");
        let id = SessionId { slot, generation: self.generation };
        entry.insert(Session::new(id, client_id, now));
        let Self { slab, by_client_id, seed, .. } = self;
        by_client_id.insert_unique(hash_text(seed, client_id), slot, |slot| {
            hash_text(seed, &slab[*slot as usize].client_id)
        });
        id
    }

    /// Takes a session out. Its slot stays taken until `free_slot`: subscriptions name it, and their records its name.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let name = self.find(id)?.name;
        self.mark_present(id);
        let mut ended = Session::new(SessionId { slot: id.slot, generation: ENDED }, "", Instant(0));
        ended.name = name;
        let session = std::mem::replace(&mut self.slab[id.slot as usize], ended);
        self.ended += 1;
        let hash = hash_text(&self.seed, &session.client_id);
        self.by_client_id
            .remove(hash, |slot| *slot == id.slot)
            .expect("every session is indexed by its client id");
        Some(session)
    }

    /// The name in the store of a session that has ended, until its slot is freed.
    pub(super) fn name_of_ended(&self, id: SessionId) -> Lsn {
        let ended = &self.slab[id.slot as usize];
        assert!(ended.id.generation == ENDED, "it was taken out before");
        ended.name
    }

    /// Nothing names the slot of an ended session any more.
    pub(super) fn free_slot(&mut self, id: SessionId) {
        let ended = self.slab.remove(id.slot as usize);
        assert!(ended.id.generation == ENDED, "it was taken out before");
        self.ended -= 1;
    }

    /// Slots of ended sessions.
    pub(super) fn ended_count(&self) -> usize {
        self.ended
    }

    /// Whether there are slots of ended sessions.
    pub(super) fn has_ended(&self) -> bool {
        self.ended > 0
    }

    /// Whether a subscription is that of an ended session.
    pub(super) fn is_ended(&self, subscriber: SubscriberId) -> bool {
        self.slab[subscriber.0 as usize].id.generation == ENDED
    }

    pub(super) fn find(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(id.slot as usize).filter(|session| session.id == id)
    }

    /// Whether a session exists and has a connection.
    pub(super) fn is_connected(&self, id: SessionId) -> bool {
        self.find(id).is_some_and(|session| session.connection.is_some())
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

    /// Puts the session into the order of leaving.
    pub(super) fn mark_absent(&mut self, id: SessionId, since: Instant) {
        let session = self.find_mut(id).expect("only an existing session can leave");
        assert!(session.connection.is_none());
        session.absent_since = since;
        let is_new = self.absent.insert((since, id));
        assert!(is_new, "a session leaves once");
    }

    /// Takes the session out of the order of leaving.
    pub(super) fn mark_present(&mut self, id: SessionId) {
        if let Some(since) = self.find(id).map(|session| session.absent_since) {
            self.absent.remove(&(since, id));
        }
    }

    pub(super) fn longest_absent(&self) -> Option<SessionId> {
        self.absent.first().map(|(_, id)| *id)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len() - self.ended
    }

    pub(super) fn absent_count(&self) -> usize {
        self.absent.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slab.iter().map(|(_, session)| session).filter(|session| session.id.generation != ENDED)
    }
}
