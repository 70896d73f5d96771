//! The bytes on their way to one peer.
//!
//! Heads, replies and small payloads stand copied in one contiguous buffer; large payloads, and large properties that are
//! passed on, stand between them by reference. Positions count every copied byte since the outbox was made, so a mark set
//! at a position stays right whatever is written or compacted later. A gate is such a mark: what stands behind it is held
//! back until its promise is kept.
//!
//! An empty outbox owns no memory: its buffer goes back to a pool that all outboxes share, so that neither an idle
//! client nor a message in the steady state costs an allocation.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::journal::Lsn;

use super::journal::Promise;
use super::message::Message;
use super::thin_list::ThinList;

/// What has been consumed is cut off once it is this long and at least half of the buffer.
const COMPACT_BYTES_MIN: usize = 32 * 1024;

/// The bytes on their way to one peer.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Copied bytes from position `base`; the first `start` of them are written.
    bytes: Vec<u8>,
    start: usize,
    base: u64,
    /// Payloads by reference, in order of their positions.
    shared: ThinList<SharedPayload>,
    /// Bytes of shared payloads not yet written.
    shared_pending: usize,
    /// Packets not yet written; while one is partly written, in proportion to the bytes.
    packets: u64,
    /// What holds bytes back, in order; `None` where nothing does.
    gates: Option<Box<Gates>>,
}

/// Behind a pointer: most outboxes have none at any time.
#[derive(Debug, Default)]
struct Gates(VecDeque<Gate>);

/// Holds back what stands behind it.
#[derive(Clone, Copy, Debug)]
struct Gate {
    /// It stands before the copied byte at this position, where a packet begins.
    position: u64,
    promise: Promise,
}

#[derive(Debug)]
struct SharedPayload {
    /// The payload stands before the copied byte at this position.
    position: u64,
    message: Message,
    /// Whether the message's properties stand before its payload.
    with_properties: bool,
    written: usize,
}

impl SharedPayload {
    fn length(&self) -> usize {
        self.message.tail(self.with_properties).map(<[u8]>::len).iter().sum()
    }

    /// What is not yet written.
    fn unwritten(&self) -> [&[u8]; 2] {
        let [first, second] = self.message.tail(self.with_properties);
        let written = self.written.min(first.len());
        [&first[written..], &second[self.written - written..]]
    }
}

/// Buffers that no outbox uses at the moment.
#[derive(Debug, Default)]
pub struct BufferPool {
    buffers: Vec<Vec<u8>>,
    /// Sum of their capacities.
    capacity: usize,
}

impl BufferPool {
    /// The pool keeps at most this many bytes of capacity.
    const CAPACITY_MAX: usize = 4 << 20;
    /// Larger buffers are freed: they stem from a burst.
    const BUFFER_MAX: usize = 128 * 1024;
    /// The first allocation of a buffer; most replies and messages fit.
    const BUFFER_MIN: usize = 512;

    fn take(&mut self) -> Vec<u8> {
        match self.buffers.pop() {
            Some(buffer) => {
                self.capacity -= buffer.capacity();
                buffer
            }
            None => Vec::with_capacity(Self::BUFFER_MIN),
        }
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= Self::BUFFER_MAX && self.capacity + buffer.capacity() <= Self::CAPACITY_MAX {
            buffer.clear();
            self.capacity += buffer.capacity();
            self.buffers.push(buffer);
        }
    }
}

impl Outbox {
    /// Bytes not yet written, copied and shared.
    pub fn pending(&self) -> usize {
        self.copied_pending() + self.shared_pending
    }

    /// Copied bytes not yet written: the memory that this peer alone costs.
    pub fn copied_pending(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether everything is written.
    pub fn is_empty(&self) -> bool {
        self.copied_pending() == 0 && self.shared.is_empty()
    }

    /// Whether nothing may leave at the moment.
    pub fn is_held(&self) -> bool {
        self.is_empty()
            || self.copied_end() == self.start
                && self.shared.front().is_none_or(|payload| !self.is_open(payload))
    }

    /// Whether the first packet of all is held back.
    pub(super) fn holds_connack(&self) -> bool {
        self.gates.as_ref().and_then(|gates| gates.0.front()).is_some_and(|gate| gate.promise.is_first)
    }

    /// Whether something is held back.
    pub(super) fn has_gate(&self) -> bool {
        self.gates.is_some()
    }

    /// Where in `bytes` the first gate stands, or else their end.
    fn copied_end(&self) -> usize {
        match self.gates.as_ref().and_then(|gates| gates.0.front()) {
            Some(gate) => (gate.position - self.base) as usize,
            None => self.bytes.len(),
        }
    }

    /// Whether a payload stands before the first gate.
    fn is_open(&self, payload: &SharedPayload) -> bool {
        // Before a gate at its position, because no packet is without a head.
        (payload.position - self.base) as usize <= self.copied_end()
    }

    /// Holds back what is appended from now on. False if it stands behind a gate that opens no earlier: what is stored
    /// from number `batch_first` on is stored together.
    pub(super) fn hold(&mut self, promise: Promise, batch_first: Lsn) -> bool {
        let position = self.base + self.bytes.len() as u64;
        let Gates(gates) = &mut **self.gates.get_or_insert_default();
        if let Some(Gate { promise: last, .. }) = gates.back()
            && !last.message.is_some()
            && last.lsn >= promise.lsn.min(batch_first)
        {
            return false;
        }
        gates.push_back(Gate { position, promise });
        true
    }

    /// Lets go what stands behind gates whose promise is kept; true if there are any.
    pub(super) fn open(&mut self, is_kept: impl Fn(Promise) -> bool) -> bool {
        let Some(gates) = &mut self.gates else { return false };
        let Gates(gates) = &mut **gates;
        let before = gates.len();
        while gates.pop_front_if(|gate| is_kept(gate.promise)).is_some() {}
        let is_opened = gates.len() < before;
        if gates.is_empty() {
            self.gates = None;
        }
        is_opened
    }

    /// Moves the last packet, of this many copied bytes, before everything that is held back. Returns how many bytes that was.
    #[cold]
    pub(super) fn move_last_before_gates(&mut self, size: usize) -> u64 {
        let end = self.copied_end();
        let Some(gates) = &mut self.gates else { return 0 };
        let Gates(gates) = &mut **gates;
        self.bytes[end..].rotate_right(size);
        gates.iter_mut().for_each(|gate| gate.position += size as u64);
        let first = gates.front().map_or(0, |gate| gate.position);
        for payload in self.shared.iter_mut().filter(|payload| payload.position + size as u64 > first) {
            payload.position += size as u64;
        }
        (self.bytes.len() - end) as u64
    }

    /// Throws away what is held back. Returns how many copied bytes and packets that was.
    #[cold]
    pub(super) fn drop_held(&mut self, pool: &mut BufferPool) -> (usize, u64) {
        let pending = self.pending();
        let end = self.copied_end();
        let open_payloads = self.shared.iter().filter(|payload| self.is_open(payload)).count();
        let copied = self.bytes.len() - end;
        self.bytes.truncate(end);
        let mut shared = self.shared.take();
        shared.truncate(open_payloads);
        self.shared = shared.into();
        self.shared_pending = self.shared.iter().map(|payload| payload.length() - payload.written).sum();
        self.gates = None;
        let packets = if self.is_empty() {
            self.packets
        } else {
            self.packets * (pending - self.pending()) as u64 / pending as u64
        };
        self.packets -= packets;
        if self.is_empty() {
            self.release(pool);
        }
        (copied, packets)
    }

    /// Appends one packet, or its head, that `write` writes, and returns how many bytes that was.
    pub(super) fn append(&mut self, pool: &mut BufferPool, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        if self.bytes.capacity() == 0 {
            self.bytes = pool.take();
        }
        let before = self.bytes.len();
        write(&mut self.bytes);
        self.packets += 1;
        self.bytes.len() - before
    }

    /// Takes back what was appended last, a packet of this many bytes.
    #[cold]
    pub(super) fn take_back(&mut self, size: usize, pool: &mut BufferPool) {
        self.bytes.truncate(self.bytes.len() - size);
        self.packets -= 1;
        if self.is_empty() {
            self.release(pool);
        }
    }

    /// Appends the payload of a message by reference, with its properties if they are wanted.
    pub(super) fn append_shared(&mut self, message: Message, with_properties: bool) {
        let position = self.base + self.bytes.len() as u64;
        let payload = SharedPayload { position, message, with_properties, written: 0 };
        self.shared_pending += payload.length();
        self.shared.push_back(payload);
    }

    /// The pending bytes that may leave, in order, in as many slices as fit; returns how many are filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let mut at = self.start;
        let end = self.copied_end();
        for payload in self.shared.iter().take_while(|payload| self.is_open(payload)) {
            let until = (payload.position - self.base) as usize;
            let [first, second] = payload.unwritten();
            for part in [&self.bytes[at..until], first, second] {
                if !part.is_empty() {
                    if filled == slices.len() {
                        return filled;
                    }
                    slices[filled] = IoSlice::new(part);
                    filled += 1;
                }
            }
            at = until;
        }
        if at < end && filled < slices.len() {
            slices[filled] = IoSlice::new(&self.bytes[at..end]);
            filled += 1;
        }
        filled
    }

    /// Takes the first `count` pending bytes as written. Returns how many of them were copied bytes, and how many
    /// packets that was.
    pub(super) fn consume(&mut self, mut count: usize, pool: &mut BufferPool) -> (usize, u64) {
        let pending = self.pending();
        let packets =
            if count == pending { self.packets } else { self.packets * count as u64 / pending as u64 };
        self.packets -= packets;
        let copied_before = self.copied_pending();
        while let Some(payload) = self.shared.entry_mut(0) {
            let until = (payload.position - self.base) as usize;
            let copied = (until - self.start).min(count);
            self.start += copied;
            count -= copied;
            let length = payload.length();
            let shared = (length - payload.written).min(count);
            payload.written += shared;
            self.shared_pending -= shared;
            count -= shared;
            if self.start < until || payload.written < length {
                break;
            }
            self.shared.remove(0);
        }
        if self.shared.is_empty() {
            self.start += count;
            count = 0;
        }
        assert!(count == 0 && self.start <= self.copied_end(), "no more can be written than may leave");
        let consumed = copied_before - self.copied_pending();
        if self.is_empty() {
            self.release(pool);
        } else if self.start >= COMPACT_BYTES_MIN && self.start * 2 >= self.bytes.len() {
            self.bytes.drain(..self.start);
            self.base += self.start as u64;
            self.start = 0;
        }
        (consumed, packets)
    }

    /// Throws away what is pending and gives the buffer back. Returns how many copied bytes and packets that was.
    pub(super) fn clear(&mut self, pool: &mut BufferPool) -> (usize, u64) {
        let packets = std::mem::take(&mut self.packets);
        let copied = self.copied_pending();
        self.shared = ThinList::default();
        self.shared_pending = 0;
        self.gates = None;
        self.release(pool);
        (copied, packets)
    }

    // Into `consume`, which runs for every flush.
    #[inline(always)]
    fn release(&mut self, pool: &mut BufferPool) {
        self.base += self.bytes.len() as u64;
        self.start = 0;
        if self.bytes.capacity() > 0 {
            pool.give(std::mem::take(&mut self.bytes));
        }
        self.shared = ThinList::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Content, Gauge};
    use super::*;
    use crate::codec::Properties;

    fn flatten(outbox: &Outbox, slices_max: usize) -> Vec<u8> {
        let mut slices = vec![IoSlice::new(&[]); slices_max];
        let filled = outbox.slices(&mut slices);
        slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn any_partial_writes_keep_the_order_of_copied_and_shared_bytes() {
        let gauge = Gauge::default();
        let mut pool = BufferPool::default();
        for step in 1..40 {
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            for number in 0..5_u8 {
                let head = vec![number; usize::from(number) * 3];
                outbox.append(&mut pool, |bytes| bytes.extend_from_slice(&head));
                expected.extend_from_slice(&head);
                let payload = vec![100 + number; 7];
                let content =
                    Content { topic: "t", properties: Properties::NONE, payload: &payload, expires_at: None };
                outbox.append_shared(Message::new(&content, &gauge), false);
                expected.extend_from_slice(&payload);
            }
            let mut written = Vec::new();
            while !outbox.is_empty() {
                assert_eq!(outbox.pending(), expected.len() - written.len());
                let bytes = flatten(&outbox, 3);
                let count = bytes.len().min(step);
                written.extend_from_slice(&bytes[..count]);
                outbox.consume(count, &mut pool);
            }
            assert_eq!(written, expected);
            assert_eq!((outbox.bytes.capacity(), outbox.shared.capacity()), (0, 0));
        }
        assert_eq!(gauge.bytes(), 0);
    }

    /// A promise that is kept from this number on.
    fn until(lsn: u64) -> Promise {
        Promise { lsn: Lsn(lsn), ..Promise::default() }
    }

    #[test]
    fn what_stands_behind_a_gate_leaves_once_it_is_open() {
        let gauge = Gauge::default();
        for step in 1..20 {
            let mut pool = BufferPool::default();
            let mut outbox = Outbox::default();
            let mut expected = Vec::new();
            let mut behind = [0; 4];
            for number in 0..4_u8 {
                if number > 0 {
                    outbox.hold(until(number.into()), Lsn(100));
                }
                behind[usize::from(number)] = expected.len();
                let head = vec![number; 3];
                outbox.append(&mut pool, |bytes| bytes.extend_from_slice(&head));
                expected.extend_from_slice(&head);
                let payload = vec![100 + number; 7];
                let content =
                    Content { topic: "t", properties: Properties::NONE, payload: &payload, expires_at: None };
                outbox.append_shared(Message::new(&content, &gauge), false);
                expected.extend_from_slice(&payload);
            }
            let mut written = Vec::new();
            for stored in 0..4 {
                outbox.open(|promise| promise.lsn.0 <= stored);
                while !outbox.is_held() {
                    let bytes = flatten(&outbox, 3);
                    let count = bytes.len().min(step);
                    written.extend_from_slice(&bytes[..count]);
                    outbox.consume(count, &mut pool);
                }
                let end = behind.get(stored as usize + 1).copied().unwrap_or(expected.len());
                assert_eq!(written, expected[..end]);
            }
            assert!(outbox.is_empty() && !outbox.has_gate());
        }
        assert_eq!(gauge.bytes(), 0);
    }

    #[test]
    fn a_packet_goes_around_what_is_held_back_and_the_rest_can_be_dropped() {
        let gauge = Gauge::default();
        let mut pool = BufferPool::default();
        let mut outbox = Outbox::default();
        outbox.append(&mut pool, |bytes| bytes.extend_from_slice(b"open"));
        outbox.hold(until(1), Lsn(100));
        outbox.append(&mut pool, |bytes| bytes.extend_from_slice(b"held"));
        let content =
            Content { topic: "t", properties: Properties::NONE, payload: b"large", expires_at: None };
        outbox.append_shared(Message::new(&content, &gauge), false);
        outbox.hold(until(2), Lsn(100));
        outbox.append(&mut pool, |bytes| bytes.extend_from_slice(b"last"));
        outbox.append(&mut pool, |bytes| bytes.extend_from_slice(b"ping"));
        outbox.move_last_before_gates(4);
        assert_eq!(flatten(&outbox, 8), b"openping");
        assert!(outbox.open(|promise| promise.lsn.0 <= 1));
        assert_eq!(flatten(&outbox, 8), b"openpingheldlarge");
        outbox.consume(2, &mut pool);
        let (copied, packets) = outbox.drop_held(&mut pool);
        assert_eq!((copied, packets <= 4, outbox.has_gate()), (4, true, false));
        assert_eq!(flatten(&outbox, 8), b"enpingheldlarge");
        outbox.consume(15, &mut pool);
        assert!(outbox.is_empty());
        assert_eq!((gauge.bytes(), outbox.packets), (0, 0));
    }

    #[test]
    fn a_long_backlog_is_compacted() {
        let mut pool = BufferPool::default();
        let mut outbox = Outbox::default();
        for _ in 0..1_000 {
            outbox.append(&mut pool, |bytes| bytes.extend_from_slice(&[1; 1_000]));
            if outbox.pending() > 100_000 {
                outbox.consume(1_000, &mut pool);
            }
        }
        assert!(outbox.bytes.capacity() < 500_000);
    }
}
