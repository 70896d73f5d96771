//! What of the core's state is to be stored, noted while it changes.
//!
//! A record is made where state changes, and waits here until the server takes all of them as one batch. While a batch is
//! on its way to disk the next one may have to wait for it, so that records pile up: what is recorded and removed again
//! before it was taken never leaves this list, unless thousands of others have come since. A message that its subscribers
//! acknowledge at once so costs the disk nothing. Where records last, as when subscribers are away, batches follow each
//! other without waiting, and records are written into theirs as they are made.
//!
//! A reply that promises something is held back in its outbox until what it promises is stored: see [`Journal::promise`].
//! All records of one input are in one batch, because batches are taken between inputs. So "stored" needs no finer grain
//! than the last record of an input.
//!
//! Invariants: records are numbered without gaps; those from `first` on wait here and can be removed from here, those before
//! it were taken or stand in the batch that will be; a message has a record while something that is stored refers to it,
//! and may have another one later.
//!
//! Deliberately not here: the bytes of records (see `journal`), who calls (each conversation records what it changes),
//! and how state comes back (see `restore`).

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::codec::{PacketId, QoS};
use crate::journal::{
    Batch, DeliveryRecord, DueWillRecord, Key, Lsn, MessageRecord, Origin, Owner, ReceiptRecord, Record,
    ReleaseRecord, RetainedRecord, SubscriptionRecord, WillRecord,
};
use crate::topics::Grant;

use super::link::ConnectionId;
use super::message::Message;
use super::options::Durability;

/// Kinds of records that are named by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Session,
    Message,
    Retained,
    Delivery,
    Release,
    Receipt,
    DueWill,
}

/// A record that waits, or the removal of one that was taken.
#[derive(Debug)]
enum Entry {
    /// Who published it is told as soon as it need not be stored.
    Message(Message, Option<ConnectionId>),
    Retained(RetainedRecord),
    Delivery {
        session: Lsn,
        message: Lsn,
        packet_id: Option<PacketId>,
        qos: QoS,
        retain: bool,
    },
    Release(ReleaseRecord),
    Receipt(ReceiptRecord),
    Remove(Kind, Lsn),
    /// Whatever is rare, in the bytes of a batch.
    Encoded(Box<Batch>),
}

/// What the store can do at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// It stores.
    #[default]
    Well,
    /// It has no room.
    Full,
    /// It fails, or has not answered for too long.
    Failing,
}

/// When a reply may leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Promise {
    /// Once everything up to this number is stored.
    pub(super) lsn: Lsn,
    /// Or once the record of this message is not wanted any more, because all who were to get it have it.
    pub(super) message: Lsn,
    /// Whether it is a CONNACK: nothing at all leaves before it [MQTT-3.2.0-1].
    pub(super) is_first: bool,
}

/// Records on their way to the store.
#[derive(Debug)]
pub(super) struct Journal {
    durability: Durability,
    pub(super) state: StoreState,
    /// The batch that will be taken next, as far as it is written; it has the records from `batch_first` on.
    batch: Batch,
    batch_first: Lsn,
    /// Batches without changes, kept for their memory.
    spares: Vec<Batch>,
    /// From number `first` on, behind what is written; `None` is what was removed before it was taken.
    entries: Vec<Option<Entry>>,
    first: Lsn,
    /// The number of the first entry: `first`, but for some that are written and will be cleared away together.
    entries_first: Lsn,
    /// Entries that are not `None`.
    waiting: usize,
    /// Bytes of those with their messages, and of the records of `batch`.
    waiting_bytes: u64,
    /// Batches that were taken and are not stored, with their last number and their bytes.
    under_way: VecDeque<(Lsn, u64)>,
    under_way_bytes: u64,
    /// Everything up to here is stored.
    stored: Lsn,
    transience: Transience,
    /// The first number of the input being handled, whose connection it came from, and the message it brought.
    input_first: Lsn,
    input_from: Option<ConnectionId>,
    input_message: Lsn,
    /// Whether the reply to the input promises more than what the input recorded.
    promises_all: bool,
    /// Whether it promises that at all, or the input has recorded something. Most have not where no session is stored.
    is_input_noted: bool,
    /// Which outboxes hold something back, nearly in the order of what they wait for.
    held: VecDeque<(Lsn, ConnectionId)>,
    /// So many of the first of them are not to wait any longer.
    held_in_vain: usize,
    /// Whether there was no time to let all go that need not wait.
    is_opened_in_part: bool,
    /// Whose sessions have ended, by which record: those that are not stored yet, and some that are.
    ended: VecDeque<(Lsn, Rc<str>)>,
    /// The same by client id, the latest record of each.
    endings: BTreeMap<Rc<str>, Lsn>,
    /// Publishers of messages that need not be stored any more.
    relieved: VecDeque<ConnectionId>,
    /// Connections that are not read until the store has caught up; and so many of the first of them, for which it has.
    paused: VecDeque<ConnectionId>,
    resumable: usize,
}

/// A record beside its message costs about so much.
const RECORD_BYTES: u64 = 48;

/// How many of the latest records were removed again before they were stored, or might have been.
///
/// One that was under way by then counts as well: had it waited for the batches before it, it need not have been written. So do
/// deliveries at QoS 1 that were stored by the latest commits, because a client that acknowledges thousands of messages in a
/// millisecond or two is behind the disk, and not by much. What leaves only once it is stored cannot be acknowledged before.
#[derive(Debug, Default)]
struct Transience {
    recorded: u32,
    removed: u32,
    /// Up to which number everything was stored before each of the latest commits, the first of them first.
    stored_before: [Lsn; Self::COMMITS],
}

impl Transience {
    /// After so many records half of what was before is forgotten: in a turn there may be thousands of messages and no
    /// acknowledgement, and thousands in the next one.
    const MEMORY: u32 = 16 * 1024;

    /// The latest commits are so many.
    const COMMITS: usize = 4;

    fn note_recorded(&mut self) {
        self.recorded += 1;
        if self.recorded > Self::MEMORY {
            (self.recorded, self.removed) = (self.recorded / 2, self.removed / 2);
        }
    }

    fn note_removed(&mut self) {
        self.removed += u32::from(self.removed < self.recorded);
    }

    /// More is stored than up to this number.
    fn note_commit(&mut self, stored_before: Lsn) {
        self.stored_before.rotate_left(1);
        self.stored_before[Self::COMMITS - 1] = stored_before;
    }

    /// Whether a record that is stored was not before the latest commits.
    const fn is_recent(&self, record: Lsn) -> bool {
        record.0 > self.stored_before[0].0
    }

    /// Whether waiting would save something.
    const fn is_notable(&self) -> bool {
        self.removed >= self.recorded / 8
    }
}

impl Journal {
    pub(super) fn new(durability: Durability) -> Self {
        Self {
            durability,
            state: StoreState::Well,
            batch: Batch::default(),
            batch_first: Lsn(1),
            spares: Vec::new(),
            entries: Vec::new(),
            first: Lsn(1),
            entries_first: Lsn(1),
            waiting: 0,
            waiting_bytes: 0,
            under_way: VecDeque::new(),
            under_way_bytes: 0,
            stored: Lsn::NONE,
            transience: Transience::default(),
            input_first: Lsn(1),
            input_from: None,
            input_message: Lsn::NONE,
            promises_all: false,
            is_input_noted: false,
            held: VecDeque::new(),
            held_in_vain: 0,
            is_opened_in_part: false,
            ended: VecDeque::new(),
            endings: BTreeMap::new(),
            relieved: VecDeque::new(),
            paused: VecDeque::new(),
            resumable: 0,
        }
    }

    /// Whether anything is stored at all.
    pub(super) fn is_on(&self) -> bool {
        self.durability != Durability::None
    }

    fn next(&self) -> Lsn {
        Lsn(self.entries_first.0 + self.entries.len() as u64)
    }

    /// Where the entry of a record stands that waits.
    fn place(&self, record: Lsn) -> usize {
        (record.0 - self.entries_first.0) as usize
    }

    /// Goes on behind the records that were stored by an earlier process.
    pub(super) fn resume_after(&mut self, last: Lsn) {
        assert!(self.is_idle(), "state comes back before anything changes");
        let first = last.next();
        (self.batch_first, self.first, self.entries_first) = (first, first, first);
        (self.input_first, self.stored) = (first, last);
        self.transience.stored_before = [last; Transience::COMMITS];
    }

    /// A packet is about to be handled.
    #[inline]
    pub(super) fn begin_input(&mut self, from: Option<ConnectionId>) {
        if !self.is_on() {
            return;
        }
        self.input_from = from;
        if self.is_input_noted {
            self.input_first = self.next();
            self.input_message = Lsn::NONE;
            self.promises_all = false;
            self.is_input_noted = false;
        }
    }

    /// The reply to the input being handled promises that something is as it is now, whoever made it so: that a topic is
    /// clear, or a session gone.
    pub(super) fn promise_all(&mut self) {
        self.promises_all = true;
        self.is_input_noted = true;
    }

    /// What a reply to the input being handled says is stored when it leaves; `Promise::default()` if it may leave at
    /// once.
    #[inline]
    pub(super) fn promise(&self) -> Promise {
        if !self.is_input_noted || self.durability != Durability::BeforeReply {
            return Promise::default();
        }
        if self.promises_all {
            return self.promise_of_all();
        }
        Promise { lsn: Lsn(self.next().0 - 1), ..Promise::default() }
    }

    /// What a reply says that promises all that was recorded so far, and not only by its own input: that something is gone
    /// may have been recorded by another one.
    pub(super) fn promise_of_all(&self) -> Promise {
        let last = Lsn(self.next().0 - 1);
        if self.durability != Durability::BeforeReply || last <= self.stored {
            return Promise::default();
        }
        Promise { lsn: last, ..Promise::default() }
    }

    /// What an acknowledgement says that promises nothing but that the message is safe.
    #[inline]
    pub(super) fn promise_of_message(&self) -> Promise {
        if !self.is_input_noted {
            return Promise::default();
        }
        let can_be_removed = !self.promises_all && self.input_message >= self.first;
        let message = if can_be_removed { self.input_message } else { Lsn::NONE };
        Promise { message, ..self.promise() }
    }

    /// What a packet needs that may leave only once a record is stored: a crash must not make the broker forget under
    /// which identifier it sent a message at QoS 2.
    pub(super) fn promise_of_record(&self, record: Lsn) -> Promise {
        let is_needed = record > self.stored && self.durability == Durability::BeforeReply;
        Promise { lsn: if is_needed { record } else { Lsn::NONE }, ..Promise::default() }
    }

    /// Whether this may leave.
    pub(super) fn is_kept(&self, promise: Promise) -> bool {
        promise.lsn <= self.stored || (promise.message.is_some() && self.is_cancelled(promise.message))
    }

    fn is_cancelled(&self, record: Lsn) -> bool {
        record >= self.first && self.entries[self.place(record)].is_none()
    }

    /// The first number of the batch that will be taken next.
    pub(super) const fn batch_first(&self) -> Lsn {
        self.batch_first
    }

    /// Notes that an outbox holds something back.
    pub(super) fn note_held(&mut self, promise: Promise, connection: ConnectionId) {
        self.held.push_back((promise.lsn, connection));
    }

    /// Whoever waits for the store now is not to wait any longer.
    pub(super) fn give_up_held(&mut self) {
        self.held_in_vain = self.held.len();
    }

    /// Whether there are some who were not to wait any longer.
    #[inline]
    pub(super) const fn has_held_in_vain(&self) -> bool {
        self.held_in_vain > 0
    }

    /// The next one of them.
    pub(super) fn next_held_in_vain(&mut self) -> Option<ConnectionId> {
        self.held_in_vain = self.held_in_vain.checked_sub(1)?;
        self.held.pop_front().map(|(_, connection)| connection)
    }

    /// What the store can do from now on.
    pub(super) fn set_state(&mut self, state: StoreState) {
        self.state = state;
        if state == StoreState::Well {
            self.held_in_vain = 0;
        }
    }

    /// Bytes that no batch was taken of yet.
    pub(super) const fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Bytes that are not stored yet.
    pub(super) fn unstored_bytes(&self) -> u64 {
        let cancelled = self.entries.len() - self.place(self.first) - self.waiting;
        self.waiting_bytes + self.under_way_bytes + (cancelled * size_of::<Option<Entry>>()) as u64
    }

    /// Whether the input being handled has recorded something although too much waits.
    #[inline]
    pub(super) fn is_too_much(&self, bytes_max: u64) -> bool {
        self.is_input_noted && self.next() != self.input_first && self.unstored_bytes() > bytes_max
    }

    /// Whether records are written as they are made: hardly any would be removed in time.
    fn writes_at_once(&self) -> bool {
        self.entries.is_empty() && self.follows_at_once()
    }

    /// The number of one more record, which costs so many bytes.
    fn number(&mut self, bytes: u64) -> Lsn {
        self.waiting_bytes += bytes;
        self.transience.note_recorded();
        self.is_input_noted = true;
        self.next()
    }

    fn append(&mut self, entry: Entry) -> Lsn {
        let lsn = self.number(bytes_of(&entry));
        let is_at_once = self.follows_at_once();
        if is_at_once && self.entries.is_empty() {
            put(&mut self.batch, lsn, &entry);
            self.note_written(lsn);
        } else {
            self.waiting += 1;
            self.entries.push(Some(entry));
            if is_at_once || self.entries.len() > ENTRIES_MAX {
                self.write_some();
            }
        }
        lsn
    }

    /// This record stands in the batch, and all before it; none waits.
    fn note_written(&mut self, last: Lsn) {
        (self.first, self.entries_first) = (last.next(), last.next());
    }

    /// Writes some of the first ones that wait into the batch. Their bytes wait there.
    #[cold]
    #[inline(never)]
    fn write_some(&mut self) {
        for _ in 0..WRITTEN_WITH_EACH {
            let at = self.place(self.first);
            let Some(entry) = self.entries.get_mut(at) else { break };
            if let Some(entry) = entry.take() {
                put(&mut self.batch, self.first, &entry);
                self.waiting -= 1;
            }
            self.first = self.first.next();
        }
        let written = self.place(self.first);
        if written == self.entries.len() || written >= ENTRIES_MAX {
            self.entries.drain(..written);
            self.entries_first = self.first;
        }
    }

    /// Removes a record: from this list, or by another record if it was taken already.
    pub(super) fn remove(&mut self, kind: Kind, record: Lsn) {
        if record > self.stored {
            self.transience.note_removed();
        }
        if record < self.first {
            self.append(Entry::Remove(kind, record));
            return;
        }
        let at = self.place(record);
        let entry = self.entries[at].take();
        let entry = entry.expect("a record is removed once");
        self.waiting -= 1;
        self.waiting_bytes -= bytes_of(&entry);
        if let Entry::Message(_, Some(publisher)) = entry {
            self.note_relieved(publisher);
        }
    }

    /// This publisher's message need not be stored. Who is not noted, because too many are, has what it waits for once all of it is.
    #[cold]
    #[inline(never)]
    fn note_relieved(&mut self, publisher: ConnectionId) {
        let is_held = self.durability == Durability::BeforeReply;
        if is_held && self.relieved.back() != Some(&publisher) && self.relieved.len() < ENTRIES_MAX {
            self.relieved.push_back(publisher);
        }
    }

    /// One more record will refer to this message.
    fn hold(&mut self, message: &Message) -> Lsn {
        let (record, holders) = message.record();
        if holders > 0 {
            message.set_record(record, holders + 1);
            return record;
        }
        let record = if self.writes_at_once() {
            let lsn = self.number(RECORD_BYTES + message.size());
            put_message(&mut self.batch, lsn, message);
            self.note_written(lsn);
            lsn
        } else {
            self.append(Entry::Message(message.clone(), self.input_from))
        };
        message.set_record(record, 1);
        // The last one, if the first receivers of a message were done with it before others came.
        self.input_message = record;
        record
    }

    /// One record less refers to it.
    fn let_go(&mut self, message: &Message) {
        let (record, holders) = message.record();
        message.set_record(record, holders - 1);
        if holders == 1 {
            self.remove(Kind::Message, record);
        }
    }

    /// A message waits for a session, or was sent to it.
    pub(super) fn record_delivery(
        &mut self,
        session: Lsn,
        message: &Message,
        packet_id: Option<PacketId>,
        (qos, retain): (QoS, bool),
    ) -> Lsn {
        let message = self.hold(message);
        self.append(Entry::Delivery { session, message, packet_id, qos, retain })
    }

    /// The same where there is more to say.
    pub(super) fn record_delivery_in_full(
        &mut self,
        owner: Owner<'_>,
        message: &Message,
        packet_id: Option<PacketId>,
        (qos, retain): (QoS, bool),
        subscription_ids: &[u32],
        origin: Option<Origin<'_>>,
    ) -> Lsn {
        let message = self.hold(message);
        let subscription_ids: Vec<u8> = subscription_ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let subscription_ids = subscription_ids.as_slice();
        let record = DeliveryRecord { owner, message, qos, retain, packet_id, subscription_ids, origin };
        self.append_encoded(Key::Delivery(self.next()), Some(&Record::Delivery(record)))
    }

    /// A delivery is done with, or will be recorded anew.
    pub(super) fn remove_delivery(&mut self, record: Lsn, message: &Message, qos: QoS) {
        let might_have_waited = qos == QoS::AtLeastOnce && self.durability == Durability::BeforeReply;
        if might_have_waited && record <= self.stored && self.transience.is_recent(record) {
            self.transience.note_removed();
        }
        self.remove(Kind::Delivery, record);
        self.let_go(message);
    }

    /// A message is retained.
    pub(super) fn record_retained(&mut self, message: &Message, qos: QoS) -> Lsn {
        let message = self.hold(message);
        self.append(Entry::Retained(RetainedRecord { message, qos }))
    }

    /// It is not any more.
    pub(super) fn remove_retained(&mut self, record: Lsn, message: &Message) {
        self.remove(Kind::Retained, record);
        self.let_go(message);
    }

    /// PUBREL is about to be sent.
    pub(super) fn record_release(&mut self, session: Lsn, packet_id: PacketId) -> Lsn {
        self.append(Entry::Release(ReleaseRecord { session, packet_id }))
    }

    /// A QoS 2 message was taken.
    pub(super) fn record_receipt(&mut self, session: Lsn, packet_id: PacketId) -> Lsn {
        self.append(Entry::Receipt(ReceiptRecord { session, packet_id }))
    }

    /// A session has changed. `name` and `latest` are the numbers of its first record and of its latest one, if it has
    /// any; the latter, if it still waits, need not be stored. Returns both.
    pub(super) fn record_session(
        &mut self,
        name: Lsn,
        latest: Lsn,
        record: &crate::journal::SessionRecord<'_>,
    ) -> (Lsn, Lsn) {
        if latest >= self.first && latest.is_some() {
            self.remove(Kind::Session, latest);
        }
        let lsn = self.next();
        let name = if name.is_some() { name } else { lsn };
        self.append_encoded(Key::Session(name), Some(&Record::Session(*record)));
        (name, lsn)
    }

    /// A session has ended. Whatever belongs to it is removed by itself.
    pub(super) fn remove_session(&mut self, client_id: &str, name: Lsn, latest: Lsn) {
        if latest >= self.first {
            self.remove(Kind::Session, latest);
        }
        if name < self.first {
            let removal = self.append(Entry::Remove(Kind::Session, name));
            self.forget_endings(ENDINGS_FORGOTTEN_AT_END);
            let client_id: Rc<str> = client_id.into();
            self.ended.push_back((removal, client_id.clone()));
            self.endings.insert(client_id, removal);
        }
    }

    /// Whether a session with this client id has ended and may still be on disk.
    pub(super) fn is_ending(&self, client_id: &str) -> bool {
        self.endings.get(client_id).is_some_and(|removal| *removal > self.stored)
    }

    /// A subscription was made or has changed.
    pub(super) fn record_subscription(
        &mut self,
        session: Lsn,
        filter: &str,
        grant: Grant,
        streams: bool,
    ) -> Lsn {
        let record = Record::Subscription(subscription_record(grant, streams));
        self.append_encoded(Key::Subscription(session, filter), Some(&record))
    }

    /// Retained messages are still to be sent for a subscription, or are not any more. `latest` is the number of its latest
    /// record.
    pub(super) fn set_streams(
        &mut self,
        latest: Lsn,
        session: Lsn,
        filter: &str,
        grant: Grant,
        streams: bool,
    ) {
        let mut batch = Batch::default();
        let record = Record::Subscription(subscription_record(grant, streams));
        batch.put(Key::Subscription(session, filter), &record);
        let entry = Entry::Encoded(Box::new(batch));
        if latest < self.first {
            self.append(entry);
        } else {
            // In its place: who has subscribed anew or unsubscribed since has a later record.
            let at = self.place(latest);
            self.entries[at] = Some(entry);
        }
    }

    /// A subscription has ended.
    pub(super) fn remove_subscription(&mut self, session: Lsn, filter: &str) {
        self.append_encoded(Key::Subscription(session, filter), None);
    }

    fn append_encoded(&mut self, key: Key<'_>, record: Option<&Record<'_>>) -> Lsn {
        let mut batch = Batch::default();
        match record {
            Some(record) => batch.put(key, record),
            None => batch.remove(key),
        }
        self.append(Entry::Encoded(Box::new(batch)))
    }

    /// The time of a will has come, and it cannot be published yet.
    pub(super) fn record_due_will(&mut self, session: Lsn, will: WillRecord<'_>) -> Lsn {
        let record = Record::DueWill(DueWillRecord { session, will });
        self.append_encoded(Key::DueWill(self.next()), Some(&record))
    }

    /// Everything that waits, if there is something and it is to be stored now.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let last = Lsn(self.next().0 - 1);
        if last < self.batch_first
            || !(self.under_way.is_empty() || self.has_some() && self.follows_at_once())
        {
            return None;
        }
        let written = self.place(self.first);
        for (lsn, entry) in (self.first.0..).zip(&self.entries[written..]) {
            if let Some(entry) = entry {
                put(&mut self.batch, Lsn(lsn), entry);
            }
        }
        self.entries.clear();
        self.note_written(last);
        self.batch_first = self.first;
        self.waiting = 0;
        let bytes = std::mem::take(&mut self.waiting_bytes);
        if self.batch.is_empty() {
            self.set_stored(last);
            return None;
        }
        let mut batch = std::mem::replace(&mut self.batch, self.spares.pop().unwrap_or_default());
        batch.finish(last);
        if self.is_transient() {
            batch.let_wait();
        }
        self.under_way.push_back((last, bytes));
        self.under_way_bytes += bytes;
        Some(batch)
    }

    /// Keeps the memory of a batch that nobody needs any more.
    pub(super) fn reuse(&mut self, mut batch: Batch) {
        if self.spares.len() < SPARES_MAX {
            batch.clear();
            self.spares.push(batch);
        }
    }

    /// Records that no batch was taken of yet.
    pub(super) const fn waiting_records(&self) -> usize {
        self.waiting + self.batch.len()
    }

    /// Whether much of what is recorded is not wanted any more in a moment.
    #[inline]
    pub(super) const fn is_transient(&self) -> bool {
        self.transience.is_notable()
    }

    /// Whether a batch may be taken while others are under way.
    fn follows_at_once(&self) -> bool {
        self.state == StoreState::Well && !self.is_transient()
    }

    /// Whether something waits.
    fn has_some(&self) -> bool {
        self.waiting > 0 || !self.batch.is_empty()
    }

    /// Everything up to this number is stored.
    pub(super) fn set_stored(&mut self, last: Lsn) {
        assert!(last < self.batch_first, "only what was taken can be stored");
        let stored_before = self.stored;
        self.stored = self.stored.max(last);
        self.forget_endings(ENDINGS_FORGOTTEN);
        let mut is_commit = false;
        while let Some((_, bytes)) = self.under_way.pop_front_if(|(taken, _)| *taken <= last) {
            self.under_way_bytes -= bytes;
            is_commit = true;
        }
        if is_commit {
            self.transience.note_commit(stored_before);
        }
    }

    /// Not all at once: a slow disk may take very many of them in one batch.
    fn forget_endings(&mut self, at_most: usize) {
        for _ in 0..at_most {
            let Some((removal, client_id)) = self.ended.pop_front_if(|(removal, _)| *removal <= self.stored)
            else {
                break;
            };
            // Another session of the same client may have ended since.
            if self.endings.get(&client_id) == Some(&removal) {
                self.endings.remove(&client_id);
            }
        }
    }

    /// A connection is not read until the store has caught up.
    pub(super) fn pause(&mut self, connection: ConnectionId) {
        self.paused.push_back(connection);
    }

    /// Whether there is one.
    pub(super) fn has_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    /// It has: whoever waits is to be read again.
    pub(super) fn end_pauses(&mut self) {
        self.resumable = self.paused.len();
    }

    /// The next one of them.
    pub(super) fn next_resumable(&mut self) -> Option<ConnectionId> {
        self.resumable = self.resumable.checked_sub(1)?;
        self.paused.pop_front()
    }

    /// Not 0 if somebody has yet to be read again, or closed, or let go, for whom there was no time.
    #[inline]
    pub(super) fn left_for_later(&self) -> usize {
        self.resumable | self.held_in_vain | usize::from(self.is_opened_in_part)
    }

    /// Whether there are outboxes that may have something to let go, for which there was no time.
    pub(super) fn set_opened_in_part(&mut self) {
        self.is_opened_in_part = self.has_to_open();
    }

    /// Whether an outbox may have something to let go.
    #[inline]
    pub(super) fn has_to_open(&self) -> bool {
        !self.relieved.is_empty() || self.held.front().is_some_and(|(lsn, _)| *lsn <= self.stored)
    }

    /// An outbox that may have something to let go.
    pub(super) fn next_to_open(&mut self) -> Option<ConnectionId> {
        let Some((_, connection)) = self.held.pop_front_if(|(lsn, _)| *lsn <= self.stored) else {
            return self.relieved.pop_front();
        };
        self.held_in_vain = self.held_in_vain.saturating_sub(1);
        Some(connection)
    }

    /// Asserts that every record that waits is where its number says, and that nobody is awaited who is not there.
    pub(super) fn check_invariants(&self) {
        assert!(self.batch_first <= self.entries_first && self.entries_first <= self.first);
        assert!(self.first <= self.next() && (self.first == self.entries_first || !self.entries.is_empty()));
        let waiting = self.entries[self.place(self.first)..].iter().flatten().count();
        assert_eq!((self.waiting, self.entries.iter().flatten().count()), (waiting, waiting));
        assert!(self.resumable <= self.paused.len() && self.held_in_vain <= self.held.len());
    }

    /// Whether nothing waits and nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        !self.has_some() && self.under_way.is_empty()
    }
}

/// So many batches may be under way together without new memory.
const SPARES_MAX: usize = 4;

/// Of sessions that have ended and are gone from the disk so many are forgotten when a batch is stored, and when another one ends: more
/// than have come.
const ENDINGS_FORGOTTEN: usize = 256;
const ENDINGS_FORGOTTEN_AT_END: usize = 2;

/// So many records wait to be removed again, however far the store is behind: they are all written in one call. With each one more,
/// or once hardly any would be removed, so many of the first ones are written, until half of them are.
const ENTRIES_MAX: usize = 16 * 1024;
const WRITTEN_WITH_EACH: usize = 2;

fn bytes_of(entry: &Entry) -> u64 {
    RECORD_BYTES
        + match entry {
            Entry::Message(message, _) => message.size(),
            Entry::Encoded(batch) => batch.length() as u64,
            _ => 0,
        }
}

fn subscription_record(grant: Grant, streams: bool) -> SubscriptionRecord {
    let Grant { qos, no_local, retain_as_published, subscription_id } = grant;
    let subscription_id = subscription_id.map_or(0, std::num::NonZeroU32::get);
    SubscriptionRecord { qos, no_local, retain_as_published, subscription_id, streams }
}

fn put_message(batch: &mut Batch, lsn: Lsn, message: &Message) {
    let (topic, properties) = (message.topic_bytes(), message.properties().as_bytes());
    let expires_at = message.expires_at();
    match message.shared_tail() {
        None => batch.put_message(lsn, topic, properties, message.payload(), expires_at),
        Some(tail) => batch.put_long_message(lsn, topic, tail, expires_at),
    }
}

fn put(batch: &mut Batch, lsn: Lsn, entry: &Entry) {
    match entry {
        Entry::Message(message, _) => put_message(batch, lsn, message),
        Entry::Retained(record) => batch.put(Key::Retained(lsn), &Record::Retained(*record)),
        Entry::Delivery { session, message, packet_id, qos, retain } => {
            let record = DeliveryRecord {
                owner: Owner::Session(*session),
                message: *message,
                qos: *qos,
                retain: *retain,
                packet_id: *packet_id,
                subscription_ids: &[],
                origin: None,
            };
            batch.put(Key::Delivery(lsn), &Record::Delivery(record));
        }
        Entry::Release(record) => batch.put(Key::Release(lsn), &Record::Release(*record)),
        Entry::Receipt(record) => batch.put(Key::Receipt(lsn), &Record::Receipt(*record)),
        Entry::Remove(kind, lsn) => batch.remove(match kind {
            Kind::Session => Key::Session(*lsn),
            Kind::Message => Key::Message(*lsn),
            Kind::Retained => Key::Retained(*lsn),
            Kind::Delivery => Key::Delivery(*lsn),
            Kind::Release => Key::Release(*lsn),
            Kind::Receipt => Key::Receipt(*lsn),
            Kind::DueWill => Key::DueWill(*lsn),
        }),
        Entry::Encoded(encoded) => batch.append(encoded),
    }
}

/// What of a message is stored.
pub(super) fn message_record(message: &Message) -> MessageRecord<'_> {
    MessageRecord {
        topic: message.topic(),
        properties: message.properties().as_bytes(),
        payload: message.payload(),
        expires_at: message.expires_at(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::message::{Content, Gauge};

    /// All that was recorded is stored.
    fn store(journal: &mut Journal) {
        let last = journal.take().map(|batch| batch.last()).expect("something is recorded");
        journal.set_stored(last);
    }

    #[test]
    fn endings_are_known_until_they_are_stored_and_forgotten_little_by_little() {
        let mut journal = Journal::new(Durability::BeforeReply);
        let many = ENDINGS_FORGOTTEN + 100;
        let client_ids: Vec<String> = (0..many).map(|number| number.to_string()).collect();
        let record = |journal: &mut Journal, client_id: &str| {
            let record = crate::journal::SessionRecord {
                client_id,
                user: None,
                ends_with_connection: false,
                expiry: None,
                absent_since: None,
                will: None,
            };
            journal.record_session(Lsn::NONE, Lsn::NONE, &record).0
        };
        let names: Vec<Lsn> = client_ids.iter().map(|client_id| record(&mut journal, client_id)).collect();
        store(&mut journal);
        for (client_id, name) in client_ids.iter().zip(names) {
            journal.remove_session(client_id, name, name);
        }
        assert!(client_ids.iter().all(|client_id| journal.is_ending(client_id)));
        store(&mut journal);
        assert!(!client_ids.iter().any(|client_id| journal.is_ending(client_id)));
        assert_eq!((journal.ended.len(), journal.endings.len()), (100, 100));

        // Two sessions of one client, one after the other.
        let again = &client_ids[0];
        let names = [(); 2].map(|()| record(&mut journal, again));
        store(&mut journal);
        assert!(journal.ended.is_empty() && journal.endings.is_empty());
        journal.remove_session(again, names[0], names[0]);
        let batch = journal.take().expect("its end is recorded");
        journal.remove_session(again, names[1], names[1]);
        journal.set_stored(batch.last());
        assert!(journal.is_ending(again), "the second one");
        store(&mut journal);
        assert!(!journal.is_ending(again) && journal.endings.is_empty());
    }

    #[test]
    fn a_message_that_is_written_as_it_comes_has_a_number_of_its_own() {
        let mut journal = Journal::new(Durability::BeforeReply);
        // Hardly any are removed.
        let before =
            (0..100).map(|_| journal.record_receipt(Lsn(1), PacketId::FIRST)).last().expect("the last");
        let batch = journal.take().expect("there is something");
        journal.set_stored(batch.last());
        assert!(journal.writes_at_once());
        let properties = crate::codec::Properties::NONE;
        let content = Content { topic: "t", properties, payload: b"", expires_at: None };
        let message = Message::new(&content, &Gauge::default());
        let delivery = journal.record_delivery(Lsn(1), &message, None, (QoS::AtLeastOnce, false));
        journal.check_invariants();
        assert_eq!((journal.input_message, delivery), (before.next(), before.next().next()));
        // And the list of those that wait is behind it, once some are removed.
        journal.state = StoreState::Full;
        let waits = journal.record_delivery(Lsn(1), &message, None, (QoS::AtLeastOnce, false));
        journal.check_invariants();
        assert_eq!((waits, journal.waiting), (delivery.next(), 1));
        journal.remove_delivery(waits, &message, QoS::AtLeastOnce);
        journal.check_invariants();
        assert_eq!(journal.waiting, 0);
    }

    fn message() -> Message {
        let properties = crate::codec::Properties::NONE;
        Message::new(&Content { topic: "t", properties, payload: b"", expires_at: None }, &Gauge::default())
    }

    #[test]
    fn a_message_that_is_acknowledged_soon_after_it_was_stored_might_have_waited() {
        const COMMITS: usize = Transience::COMMITS;
        for (durability, qos, commits, might_have) in [
            (Durability::BeforeReply, QoS::AtLeastOnce, 0, true),
            (Durability::BeforeReply, QoS::AtLeastOnce, COMMITS - 1, true),
            (Durability::BeforeReply, QoS::AtLeastOnce, COMMITS, false),
            // It is not sent before it is stored.
            (Durability::BeforeReply, QoS::ExactlyOnce, 0, false),
            // Commits may be seconds apart.
            (Durability::AfterReply, QoS::AtLeastOnce, 0, false),
        ] {
            let mut journal = Journal::new(durability);
            journal.resume_after(Lsn(10));
            let messages: Vec<Message> = (0..100).map(|_| message()).collect();
            let record =
                |journal: &mut Journal, message| journal.record_delivery(Lsn(1), message, None, (qos, false));
            let records: Vec<Lsn> = messages.iter().map(|message| record(&mut journal, message)).collect();
            store(&mut journal);
            for _ in 0..commits {
                journal.record_receipt(Lsn(1), PacketId::FIRST);
                store(&mut journal);
            }
            assert!(!journal.is_transient());
            for (record, message) in records.into_iter().zip(&messages) {
                journal.remove_delivery(record, message, qos);
            }
            assert_eq!(
                journal.is_transient(),
                might_have,
                "{durability:?}, {qos:?}, {commits} commits later"
            );
        }
    }

    #[test]
    fn what_an_earlier_process_has_stored_is_not_stored_of_late() {
        let mut journal = Journal::new(Durability::BeforeReply);
        journal.resume_after(Lsn(1_000));
        for number in (0..200).map(|number| 2 * number + 1) {
            let message = message();
            message.set_record(Lsn(number), 1);
            journal.remove_delivery(Lsn(number + 1), &message, QoS::AtLeastOnce);
        }
        assert!(!journal.is_transient());
    }

    #[test]
    fn thousands_of_messages_before_the_next_acknowledgement_change_no_opinion() {
        let mut journal = Journal::new(Durability::BeforeReply);
        let mut records = Vec::new();
        for round in 0..4 {
            records.drain(..).for_each(|lsn| journal.remove(Kind::Receipt, lsn));
            records.extend((0..3_000).map(|_| journal.record_receipt(Lsn(1), PacketId::FIRST)));
            assert_eq!(journal.is_transient(), round > 0);
        }
        // But if all that comes now stays, it is to be written at once.
        for _ in 0..2 * Transience::MEMORY {
            journal.record_receipt(Lsn(1), PacketId::FIRST);
        }
        assert!(!journal.is_transient());
    }

    #[test]
    fn a_session_that_ends_with_very_much_is_not_remembered_for_long() {
        let mut journal = Journal::new(Durability::BeforeReply);
        let records: Vec<Lsn> =
            (0..100_000).map(|_| journal.record_receipt(Lsn(1), PacketId::FIRST)).collect();
        records.into_iter().for_each(|lsn| journal.remove(Kind::Receipt, lsn));
        assert!(journal.is_transient());
        for _ in 0..4 * Transience::MEMORY {
            journal.record_receipt(Lsn(1), PacketId::FIRST);
        }
        assert!(!journal.is_transient());
    }

    /// Some of them are removed again before they are written: too many to be written at once, and too few to wait for ever.
    #[test]
    fn what_waits_long_is_written_as_more_comes() {
        let mut journal = Journal::new(Durability::BeforeReply);
        let session = Lsn(1);
        let record = |journal: &mut Journal| journal.record_receipt(session, PacketId::FIRST);
        let mut all = std::collections::BTreeMap::new();
        // A batch is under way for as long as the next one gathers.
        let first = record(&mut journal);
        journal.take().expect("there is one").apply(&mut all);
        let mut kept = vec![first];
        for number in 0..3 * ENTRIES_MAX {
            let lsn = record(&mut journal);
            assert!(
                journal.entries.len() <= 2 * ENTRIES_MAX
                    && journal.next().0 - journal.first.0 <= ENTRIES_MAX as u64 + 1
            );
            kept.push(lsn);
            // One that has waited for a while, behind some that may be written, or the last one.
            let at = kept.len() - if number % 6 == 0 { 1 } else { kept.len().min(5_000) };
            if number % 3 == 0 {
                journal.remove(Kind::Receipt, kept.remove(at));
            }
            if number % 1_000 == 0 {
                journal.check_invariants();
            }
        }
        // One that was written is removed by another record.
        journal.remove(Kind::Receipt, kept.remove(1));
        let unstored = journal.unstored_bytes();
        assert!(unstored >= kept.len() as u64 * RECORD_BYTES);
        journal.set_stored(first);
        let batch = journal.take().expect("there is more");
        assert_eq!(batch.last().next(), journal.next());
        batch.apply(&mut all);
        journal.set_stored(batch.last());
        assert_eq!((journal.unstored_bytes(), journal.has_some()), (0, false));
        let mut keys = Batch::default();
        for lsn in &kept {
            keys.put(
                Key::Receipt(*lsn),
                &Record::Receipt(ReceiptRecord { session, packet_id: PacketId::FIRST }),
            );
        }
        keys.finish(batch.last());
        let mut expected = std::collections::BTreeMap::new();
        keys.apply(&mut expected);
        assert!(all == expected, "{} records, {} expected", all.len(), expected.len());
    }
}
