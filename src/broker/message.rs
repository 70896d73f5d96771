//! An application message that outlives the tick in which it arrived.
//!
//! One block of memory holds topic, forwarded properties and payload, and all that has to be known of them; everybody who waits
//! for the message shares it. It never borrows from a read buffer, so a waiting message keeps alive what it needs and no
//! more. The sum of all living messages is counted exactly, because a message reports its own birth and end to a [`Gauge`].
//!
//! Such blocks come in lengths that are known when the program is made, 16 bytes apart, because that is how Rust makes them
//! without unsafe code. What is longer than the longest has its bytes in a block of their own.
//!
//! A large message keeps the memory in which its packet came, because to copy it would take longer than a turn has time for.
//! Its payload stays where it is; its topic and its properties have blocks of their own. What is sent and what is stored of it goes
//! by reference.
//!
//! The memory of small messages that have ended is kept for the next ones: in a process with several threads, which a store
//! makes of it, the allocator's locked instructions cost a message at QoS 1 a tenth. Once as many are kept as may be, other lengths give
//! way bit by bit to those that messages have now. The gauge counts what messages need, and neither these spares nor the few
//! bytes by which one may be longer.
//!
//! Deliberately not here: QoS and RETAIN, which belong to each delivery and not to the message.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::rc::Rc;

use crate::clock::Instant;
use crate::codec::{OwnedFrame, Properties};
use crate::journal::{Lsn, SharedBytes};
use crate::topics::retained_tree::Retained;

use super::leftovers::Leftovers;

/// Bytes that one message costs beside its topic, properties and payload: the allocation and its bookkeeping.
const OVERHEAD_BYTES: u64 = 72;

/// What it costs more if they stand in a block of their own.
const ELSEWHERE_BYTES: u64 = 32;

/// A message that is no longer than that stands in one block of memory, whose bytes for it are a multiple of the step.
const SHORT_BYTES_MAX: usize = 512;
const STEP_BYTES: usize = 16;

/// When a message expires that does not: without a word of its own for "never" a message takes 16 bytes less.
const NEVER: Instant = Instant(u64::MAX);

/// The memory of so many messages is kept at most, as long as they are no longer than that.
const SPARES_MAX: usize = 4_096;
const SPARE_BYTES_MAX: usize = 256;

/// What is smaller is copied sooner than a prepared message is looked for.
const PREPARED_BYTES_MIN: usize = 512;

/// The bytes of all living messages, and of what else is kept for each of their receivers.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Rc<Ledger>);

#[derive(Default)]
struct Ledger {
    bytes: Cell<u64>,
    /// Bodies of short messages that have ended.
    spares: Spares,
    /// A message that is in its place already, for whoever is about to make it.
    prepared: Cell<Option<Message>>,
    leftovers: Leftovers,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Gauge {
    /// Bytes of all living messages, bookkeeping included.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.bytes.set(self.0.bytes.get() + bytes);
    }

    pub(super) fn subtract(&self, bytes: u64) {
        self.0.bytes.set(self.0.bytes.get() - bytes);
    }

    /// While a packet is handled, has [`Message::new`] take this message for one that is made of its topic, its properties and
    /// its payload. The first large one that is made uses it up.
    pub(super) fn prepare(&self, message: Option<Message>) {
        self.0.prepared.set(message);
    }

    /// Whether this payload is what its payload format says, if it is that of the message that is prepared.
    pub(super) fn knows_payload(&self, payload: &[u8]) -> Option<bool> {
        let prepared = self.0.prepared.take()?;
        let known = match prepared.0.block() {
            Block::Long(long) if std::ptr::eq(prepared.payload(), payload) => Some(long.is_as_said),
            _ => None,
        };
        self.0.prepared.set(Some(prepared));
        known
    }

    /// Takes memory that nobody needs any more.
    pub(super) fn leave(&self, memory: Vec<u8>) {
        self.0.leftovers.leave(memory);
    }

    /// Memory on its way back to the system.
    #[inline]
    pub(super) fn leftovers(&self) -> &Leftovers {
        &self.0.leftovers
    }

    /// A body that nobody has.
    fn take_spare(&self, length: LengthClass) -> Rc<Body> {
        self.0.spares.take(length).unwrap_or_else(|| length.vacant())
    }

    fn keep_spare(&self, length: LengthClass, body: Rc<Body>) {
        self.0.spares.keep(length, body);
    }
}

/// How many steps long the memory of a short message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LengthClass(usize);

impl LengthClass {
    const COUNT: usize = SHORT_BYTES_MAX / STEP_BYTES + 1;

    /// For what stands elsewhere.
    const NOTHING: Self = Self(0);

    /// Those of which spares are kept.
    const SPARE_COUNT: usize = SPARE_BYTES_MAX / STEP_BYTES + 1;

    /// For so many bytes; `None` if they are too many.
    const fn of(bytes: usize) -> Option<Self> {
        if bytes <= SHORT_BYTES_MAX { Some(Self(bytes.div_ceil(STEP_BYTES))) } else { None }
    }

    /// A body of that length.
    fn vacant(self) -> Rc<Body> {
        fn make<const BYTES: usize>() -> Rc<Body> {
            Rc::new(Body::<[u8; BYTES]> {
                elsewhere: None,
                gauge: OnceCell::new(),
                expires_at: NEVER.into(),
                record: Cell::default(),
                holders: Cell::default(),
                length: 0,
                payload_at: 0,
                topic_length: 0,
                bytes: [0; BYTES],
            })
        }
        const MAKE: [fn() -> Rc<Body>; LengthClass::COUNT] = [
            make::<0>,
            make::<16>,
            make::<32>,
            make::<48>,
            make::<64>,
            make::<80>,
            make::<96>,
            make::<112>,
            make::<128>,
            make::<144>,
            make::<160>,
            make::<176>,
            make::<192>,
            make::<208>,
            make::<224>,
            make::<240>,
            make::<256>,
            make::<272>,
            make::<288>,
            make::<304>,
            make::<320>,
            make::<336>,
            make::<352>,
            make::<368>,
            make::<384>,
            make::<400>,
            make::<416>,
            make::<432>,
            make::<448>,
            make::<464>,
            make::<480>,
            make::<496>,
            make::<SHORT_BYTES_MAX>,
        ];
        MAKE[self.0]()
    }
}

/// Memory of short messages that have ended, by its length.
#[derive(Default)]
struct Spares {
    by_length: [Cell<Vec<Rc<Body>>>; LengthClass::SPARE_COUNT],
    len: Cell<usize>,
    /// Which length gives way to others next.
    next: Cell<usize>,
}

impl Spares {
    fn take(&self, length: LengthClass) -> Option<Rc<Body>> {
        let all = self.by_length.get(length.0)?;
        let mut spares = all.take();
        let spare = spares.pop();
        all.set(spares);
        self.len.set(self.len.get() - usize::from(spare.is_some()));
        spare
    }

    fn keep(&self, length: LengthClass, body: Rc<Body>) {
        if self.len.get() >= SPARES_MAX {
            self.make_way(length);
        }
        if self.len.get() < SPARES_MAX {
            let all = &self.by_length[length.0];
            let mut spares = all.take();
            spares.push(body);
            all.set(spares);
            self.len.set(self.len.get() + 1);
        }
    }

    /// One of another length goes, if it is that one's turn: those that messages have today come again.
    fn make_way(&self, length: LengthClass) {
        let next = self.next.get();
        self.next.set((next + 1) % LengthClass::SPARE_COUNT);
        if next != length.0 {
            drop(self.take(LengthClass(next)));
        }
    }
}

/// A message as it came: borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// The topic name.
    pub topic: &'a str,
    /// The properties that are passed on as they came.
    pub properties: Properties<'a>,
    /// The payload.
    pub payload: &'a [u8],
    /// When nobody wants it any more; `None` is never.
    pub expires_at: Option<Instant>,
}

/// A shared application message.
#[derive(Clone, Debug)]
pub struct Message(Rc<Body>);

#[derive(Debug)]
struct Body<Bytes: ?Sized = [u8]> {
    /// What does not stand in `bytes`.
    elsewhere: Option<Box<Elsewhere>>,
    /// `None` if this is spare, or nobody has taken it yet.
    gauge: OnceCell<Gauge>,
    expires_at: Cell<Instant>,
    /// Under which number it is stored, and how many records refer to that; kept by the journal.
    record: Cell<Lsn>,
    holders: Cell<u32>,
    /// If they stand one behind the other: bytes of all three, where the payload begins, and where the properties do.
    length: u32,
    payload_at: u32,
    topic_length: u16,
    /// Topic, properties and payload of a short message. What is behind them is not used.
    bytes: Bytes,
}

/// Where topic, properties and payload stand that are not short.
#[derive(Debug)]
enum Elsewhere {
    /// One behind the other.
    Whole(Box<[u8]>),
    Long(Box<LongBlock>),
}

/// Where topic, properties and payload stand.
enum Block<'a> {
    /// One behind the other.
    Whole(&'a [u8]),
    Long(&'a LongBlock),
}

#[derive(Debug)]
struct LongBlock {
    topic: Box<[u8]>,
    properties: SharedBytes,
    payload: SharedBytes,
    /// False if the payload is said to be text, and is not.
    is_as_said: bool,
    /// What all of that takes: what else came in the packet as well.
    memory_bytes: u64,
    /// Where its memory goes.
    gauge: Gauge,
}

impl Message {
    /// Whether both are the same one, and not only alike.
    pub fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Copies a message into a block of its own.
    pub fn new(content: &Content<'_>, gauge: &Gauge) -> Self {
        if content.payload.len() + content.properties.len() >= PREPARED_BYTES_MIN
            && let Some(message) = Self::take_prepared(content, gauge)
        {
            return message;
        }
        let Content { topic, properties, payload, expires_at } = *content;
        let parts = [topic.as_bytes(), properties.as_bytes(), payload];
        let payload_at = topic.len() + properties.as_bytes().len();
        let length = payload_at + payload.len();
        let short = LengthClass::of(length);
        let mut shared = gauge.take_spare(short.unwrap_or(LengthClass::NOTHING));
        let Some(body) = Rc::get_mut(&mut shared) else { unreachable!("nobody shares a spare") };
        if short.is_some() {
            let mut rest = &mut body.bytes[..];
            for part in parts {
                let (here, behind) = rest.split_at_mut(part.len());
                here.copy_from_slice(part);
                rest = behind;
            }
        } else {
            let mut block = Vec::with_capacity(length);
            parts.iter().for_each(|part| block.extend_from_slice(part));
            body.elsewhere = Some(Box::new(Elsewhere::Whole(block.into_boxed_slice())));
        }
        body.gauge = gauge.clone().into();
        body.expires_at.set(expires_at.unwrap_or(NEVER));
        body.record.set(Lsn::NONE);
        body.holders.set(0);
        body.length = u32::try_from(length).expect("a packet has less than 2^28 bytes");
        body.payload_at = u32::try_from(payload_at).expect("a packet has less than 2^28 bytes");
        body.topic_length = u16::try_from(topic.len()).expect("a topic has at most 65,535 bytes");
        gauge.add(body.size());
        Self(shared)
    }

    /// A message for [`Gauge::prepare`], in the memory that its packet came in. So many bytes of properties
    /// stand right before the payload, which is the end; `passed_on` are those that are passed on, if not all of them are.
    /// `is_as_said` is false if the payload is said to be text, and is not.
    pub(super) fn in_place(
        frame: OwnedFrame,
        topic: &str,
        (properties_length, payload_length): (usize, usize),
        passed_on: Option<Vec<u8>>,
        is_as_said: bool,
        gauge: &Gauge,
    ) -> Self {
        let bytes = frame.into_bytes();
        let payload_at = bytes.len() - payload_length;
        let mut memory_bytes = topic.len() + bytes.len();
        let [mut properties, payload] =
            SharedBytes::split(bytes, [payload_at - properties_length, payload_at]);
        if let Some(passed_on) = passed_on {
            memory_bytes += passed_on.len();
            properties = SharedBytes::new(passed_on);
        }
        let long = LongBlock {
            topic: topic.as_bytes().into(),
            properties,
            payload,
            is_as_said,
            memory_bytes: memory_bytes as u64,
            gauge: gauge.clone(),
        };
        let mut shared = LengthClass::NOTHING.vacant();
        let Some(body) = Rc::get_mut(&mut shared) else { unreachable!("it is new") };
        body.elsewhere = Some(Box::new(Elsewhere::Long(Box::new(long))));
        Self(shared)
    }

    /// The message that has been prepared, if it is this one.
    #[cold]
    fn take_prepared(content: &Content<'_>, gauge: &Gauge) -> Option<Self> {
        let message = gauge.0.prepared.take()?;
        let is_this = std::ptr::eq(message.payload(), content.payload)
            && message.topic_bytes() == content.topic.as_bytes()
            && std::ptr::eq(message.properties().as_bytes(), content.properties.as_bytes());
        if !is_this {
            return None;
        }
        message.0.expires_at.set(content.expires_at.unwrap_or(NEVER));
        // One that was put off is counted already.
        if message.0.gauge.set(gauge.clone()).is_ok() {
            gauge.add(message.size());
        }
        Some(message)
    }

    /// One of those who have it does not need it any more. Dropping it is all that is to be done; where most messages end,
    /// this keeps their memory for others.
    #[inline]
    pub(super) fn end(mut self) {
        if let Some(body) = Rc::get_mut(&mut self.0)
            && body.bytes.len() <= SPARE_BYTES_MAX
            && let Some(gauge) = body.gauge.take()
        {
            gauge.subtract(body.size());
            if body.elsewhere.is_some() {
                body.elsewhere = None;
            }
            let length = LengthClass(body.bytes.len() / STEP_BYTES);
            gauge.keep_spare(length, self.0);
        }
    }

    /// The topic name.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(self.topic_bytes()).expect("built from a str")
    }

    /// The bytes of the topic name.
    pub fn topic_bytes(&self) -> &[u8] {
        let body = &self.0;
        match body.block() {
            Block::Whole(block) => &block[..body.topic_length as usize],
            Block::Long(long) => &long.topic,
        }
    }

    /// The properties that are passed on.
    pub fn properties(&self) -> Properties<'_> {
        let body = &self.0;
        Properties::checked_before(match body.block() {
            Block::Whole(block) => &block[body.topic_length as usize..body.payload_at as usize],
            Block::Long(long) => &long.properties,
        })
    }

    /// The payload.
    pub fn payload(&self) -> &[u8] {
        let body = &self.0;
        match body.block() {
            Block::Whole(block) => &block[body.payload_at as usize..body.length as usize],
            Block::Long(long) => &long.payload,
        }
    }

    /// The end of the message that can be sent as it is: the payload, and the properties before it if they are wanted. Two pieces,
    /// of which the second may be empty.
    pub fn tail(&self, with_properties: bool) -> [&[u8]; 2] {
        let body = &self.0;
        match body.block() {
            Block::Whole(block) => {
                let from = if with_properties { body.topic_length.into() } else { body.payload_at };
                [&block[from as usize..body.length as usize], &[]]
            }
            Block::Long(long) if with_properties => [&long.properties, &long.payload],
            Block::Long(long) => [&long.payload, &[]],
        }
    }

    /// Properties and payload of a large message, for whoever keeps them without copying them.
    pub(super) fn shared_tail(&self) -> Option<[SharedBytes; 2]> {
        match self.0.block() {
            Block::Whole(_) => None,
            Block::Long(long) => Some([long.properties.clone(), long.payload.clone()]),
        }
    }

    /// When nobody wants it any more; `None` is never.
    pub fn expires_at(&self) -> Option<Instant> {
        Some(self.0.expires_at.get()).filter(|expires_at| *expires_at != NEVER)
    }

    /// Whether nobody wants it any more [MQTT5-3.3.2-5].
    pub fn is_expired(&self, now: Instant) -> bool {
        self.0.expires_at.get() <= now
    }

    /// Under which number it is stored, and how many records refer to that.
    pub(super) fn record(&self) -> (Lsn, u32) {
        (self.0.record.get(), self.0.holders.get())
    }

    pub(super) fn set_record(&self, record: Lsn, holders: u32) {
        self.0.record.set(record);
        self.0.holders.set(holders);
    }

    /// Bytes of memory that the message needs, bookkeeping included.
    pub fn size(&self) -> u64 {
        self.0.size()
    }
}

impl Drop for LongBlock {
    fn drop(&mut self) {
        for bytes in [&mut self.properties, &mut self.payload] {
            if let Some(memory) = std::mem::take(bytes).into_memory() {
                self.gauge.leave(memory);
            }
        }
    }
}

impl<Bytes: ?Sized> Drop for Body<Bytes> {
    fn drop(&mut self) {
        if let Some(gauge) = self.gauge.get() {
            gauge.subtract(self.size());
        }
    }
}

impl<Bytes: ?Sized> Body<Bytes> {
    fn size(&self) -> u64 {
        let bytes = match self.elsewhere.as_deref() {
            None => u64::from(self.length),
            Some(Elsewhere::Whole(_)) => u64::from(self.length) + ELSEWHERE_BYTES,
            Some(Elsewhere::Long(long)) => long.memory_bytes,
        };
        bytes + OVERHEAD_BYTES
    }
}

impl Body {
    #[inline]
    fn block(&self) -> Block<'_> {
        match self.elsewhere.as_deref() {
            None => Block::Whole(&self.bytes),
            Some(Elsewhere::Whole(bytes)) => Block::Whole(bytes),
            Some(Elsewhere::Long(long)) => Block::Long(long),
        }
    }
}

/// A message kept for later subscribers, with the QoS it was published at [MQTT-3.3.1-5].
#[derive(Clone, Debug)]
pub struct RetainedMessage {
    /// Topic and payload.
    pub message: Message,
    /// The QoS it was published at.
    pub qos: crate::codec::QoS,
    /// Under which number it is stored as such.
    pub(super) record: Lsn,
}

impl Retained for RetainedMessage {
    fn topic(&self) -> &str {
        self.message.topic()
    }

    fn topic_bytes(&self) -> &[u8] {
        self.message.topic_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::frame::{Split, split};
    use crate::codec::packet::Publish;
    use crate::codec::property::PropertyList;
    use crate::codec::{Packet, Property, Protocol, QoS, encode};

    #[test]
    fn the_gauge_follows_the_last_holder() {
        let gauge = Gauge::default();
        let properties = PropertyList::from_iter([Property::ContentType("text")]);
        let content = Content {
            topic: "a/b",
            properties: properties.as_properties(),
            payload: b"xyz",
            expires_at: Some(Instant(7)),
        };
        let message = Message::new(&content, &gauge);
        let other = message.clone();
        assert_eq!((message.topic(), message.payload()), ("a/b", b"xyz".as_slice()));
        assert_eq!(message.properties(), content.properties);
        assert!(message.is_expired(Instant(7)) && !message.is_expired(Instant(6)));
        assert_eq!(gauge.bytes(), message.size());
        drop(message);
        assert_eq!(gauge.bytes(), other.size());
        drop(other);
        assert_eq!(gauge.bytes(), 0);
    }

    #[test]
    fn a_message_takes_the_memory_of_one_that_has_ended() {
        let gauge = Gauge::default();
        let message = |topic: &str, payload: &[u8]| {
            let content = Content { topic, properties: Properties::NONE, payload, expires_at: None };
            let message = Message::new(&content, &gauge);
            assert_eq!((message.topic(), message.payload()), (topic, payload));
            assert!(message.properties().is_empty() && message.record() == (Lsn::NONE, 0));
            message
        };
        let address = |message: &Message| message.topic_bytes().as_ptr();
        let first = message("a/b", &[1; 40]);
        let kept = address(&first);
        first.set_record(Lsn(5), 2);
        first.end();
        let second = message("longer/topic", &[2; 30]);
        assert_eq!(address(&second), kept);
        let third = message("a", &[3; 42]);
        assert_ne!(address(&third), kept, "the memory of the living is their own");
        assert_eq!(gauge.bytes(), second.size() + third.size());
        drop((second, third));
        drop(message("a", &[4; 5]));
        drop(message("a", &[5; 100]));
        assert_eq!(gauge.bytes(), 0);
    }

    #[test]
    fn messages_of_all_lengths_are_whole_in_new_memory_and_in_old() {
        let gauge = Gauge::default();
        for round in 0..3 {
            for length in 0..=SHORT_BYTES_MAX + STEP_BYTES {
                let payload = vec![round; length];
                let content =
                    Content { topic: "", properties: Properties::NONE, payload: &payload, expires_at: None };
                let message = Message::new(&content, &gauge);
                assert_eq!((message.topic(), message.payload()), ("", payload.as_slice()));
                assert_eq!(message.tail(false), [payload.as_slice(), &[]]);
                assert_eq!(gauge.bytes(), message.size());
                message.end();
                // One is kept of each length.
                let kept = LengthClass::SPARE_COUNT;
                let lengths = if round == 0 { length.div_ceil(STEP_BYTES) + 1 } else { kept };
                assert_eq!(gauge.0.spares.len.get(), lengths.min(kept));
            }
        }
        assert_eq!(gauge.bytes(), 0);
    }

    #[test]
    fn no_more_memory_is_kept_than_that_of_so_many_messages_and_other_lengths_come_to_have_it() {
        let gauge = Gauge::default();
        for payload in [[].as_slice(), &[1; 100]] {
            let content = Content { topic: "a", properties: Properties::NONE, payload, expires_at: None };
            let of_length = |bytes| {
                let length = LengthClass::of(bytes).expect("it is short");
                let spares = gauge.0.spares.by_length[length.0].take();
                let count = spares.len();
                gauge.0.spares.by_length[length.0].set(spares);
                count
            };
            for _ in 0..2 * LengthClass::SPARE_COUNT {
                let messages: Vec<Message> =
                    (0..=SPARES_MAX).map(|_| Message::new(&content, &gauge)).collect();
                messages.into_iter().for_each(Message::end);
                assert!(gauge.0.spares.len.get() <= SPARES_MAX);
            }
            assert!(of_length(1 + payload.len()) > SPARES_MAX / 4 * 3);
            assert_eq!(gauge.bytes(), 0);
        }
    }

    #[test]
    fn what_a_message_costs_is_counted() {
        let counts = 2 * size_of::<usize>();
        let allocator = size_of::<usize>();
        let body = size_of::<Body<[u8; 0]>>();
        assert!((body + counts + allocator) as u64 <= OVERHEAD_BYTES);
        assert_eq!((size_of::<Elsewhere>() + 2 * allocator) as u64, ELSEWHERE_BYTES);
    }

    #[test]
    fn a_prepared_message_is_taken_for_what_it_says_and_for_nothing_else() {
        let gauge = Gauge::default();
        let given = PropertyList::from_iter([Property::MessageExpirySecs(7), Property::ContentType("text")]);
        let passed_on = PropertyList::from_iter([Property::ContentType("text")]);
        let prepared = || {
            let publish = Publish {
                dup: false,
                qos: QoS::AtMostOnce,
                retain: false,
                topic: "a/b",
                packet_id: None,
                properties: given.as_properties(),
                payload: &[1; PREPARED_BYTES_MIN],
            };
            let mut bytes = Vec::new();
            encode::encode(&Packet::Publish(publish), Protocol::Mqtt5, &mut bytes).unwrap();
            let Ok(Split::Complete { frame, .. }) = split(&bytes, Protocol::Mqtt5, 1_000) else {
                panic!("a PUBLISH")
            };
            let header = frame.header;
            bytes.shrink_to_fit();
            let memory = bytes.as_ptr_range();
            let frame = OwnedFrame::new(header, bytes);
            let lengths = (given.as_properties().len(), PREPARED_BYTES_MIN);
            let properties = passed_on.as_properties().as_bytes().to_vec();
            let message = Message::in_place(frame, "a/b", lengths, Some(properties), true, &gauge);
            let end = message.payload().as_ptr_range().end;
            assert_eq!(end, memory.end, "it keeps the memory");
            gauge.prepare(Some(message.clone()));
            message
        };
        let message = prepared();
        assert_eq!(gauge.bytes(), 0, "nobody has taken it");
        let new = |topic: &str, properties: Properties<'_>, payload: &[u8]| {
            Message::new(&Content { topic, properties, payload, expires_at: Some(Instant(9)) }, &gauge)
        };
        let taken = new("a/b", message.properties(), message.payload());
        assert!(taken.is_same(&message));
        assert_eq!((taken.topic(), taken.payload()), ("a/b", [1; PREPARED_BYTES_MIN].as_slice()));
        assert_eq!((taken.properties(), taken.expires_at()), (passed_on.as_properties(), Some(Instant(9))));
        assert_eq!(taken.tail(true), [passed_on.as_properties().as_bytes(), taken.payload()]);
        assert_eq!(gauge.bytes(), taken.size());
        assert!(!new("a/b", message.properties(), message.payload()).is_same(&message), "only once");
        drop((taken, message));
        assert_eq!(gauge.bytes(), 0);

        // What is not the same one, however alike it is.
        let like = passed_on.as_properties();
        for (topic, has_properties, has_payload) in
            [("a/c", true, true), ("a/b", false, true), ("a/b", true, false)]
        {
            let message = prepared();
            let properties = if has_properties { message.properties() } else { like };
            let payload = if has_payload { message.payload() } else { &[1; PREPARED_BYTES_MIN] };
            let other = new(topic, properties, payload);
            assert!(!other.is_same(&message));
            assert_eq!((other.properties(), other.payload()), (message.properties(), message.payload()));
        }
        assert_eq!(gauge.bytes(), 0);
    }
}
