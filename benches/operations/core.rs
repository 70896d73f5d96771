//! The core with clients and without sockets: bytes in, bytes out, and the clients' answers in again.
//!
//! Client 0 publishes and reads nothing; the others acknowledge what comes. A turn is that of the server's loop without its
//! calls to the system; a store, if there is one, has stored a batch by the next turn. No limit is reached.
//!
//! Deliberately not here: what is measured of it (see `broker`, `growth` and `instructions`), and clients that do not keep
//! up.

use std::io::IoSlice;

use broker::broker::options::Durability;
use broker::broker::{Broker, ConnectionId, Options};
use broker::clock::Instant;
use broker::codec::packet::{Connect, Disconnect};
use broker::codec::property::PropertyList;
use broker::codec::{Inbox, Packet, PacketId, Property, Protocol, ReasonCode, encode};

/// Pieces of an outbox that one write of the server can name.
const SLICES_MAX: usize = 64;

/// What a client says first. Its session outlives the connection if it is kept.
pub(crate) fn connect(protocol: Protocol, client_id: &str, is_kept: bool, keep_alive_secs: u16) -> Vec<u8> {
    let list =
        if is_kept { list(protocol, &[Property::SessionExpirySecs(3_600)]) } else { list(protocol, &[]) };
    let connect = Connect {
        protocol,
        clean_start: !is_kept,
        keep_alive_secs,
        properties: list.as_properties(),
        client_id,
        will: None,
        username: None,
        password: None,
    };
    bytes_of(protocol, Packet::Connect(connect))
}

/// What it says last.
pub(crate) fn disconnect(protocol: Protocol) -> Vec<u8> {
    bytes_of(protocol, Packet::Disconnect(Disconnect::NORMAL))
}

/// A packet as it is on the wire.
pub(crate) fn bytes_of(protocol: Protocol, packet: Packet<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::encode(&packet, protocol, &mut bytes).expect("it has a form on the wire");
    bytes
}

/// Properties where there are any.
pub(crate) fn list(protocol: Protocol, properties: &[Property<'_>]) -> PropertyList {
    properties.iter().copied().filter(|_| protocol.has_properties()).collect()
}

/// The core and its clients.
pub(crate) struct Core {
    pub(crate) broker: Broker,
    /// Time stands still unless it is set.
    pub(crate) now: Instant,
    inboxes: Vec<Inbox>,
    /// What the client in hand answers.
    answers: Vec<u8>,
    /// Messages that came out.
    pub(crate) deliveries: u64,
    /// Whether nobody answers.
    pub(crate) is_mute: bool,
}

impl Core {
    /// A core without clients.
    pub(crate) fn new(has_store: bool) -> Self {
        Self::with_in_flight_max(has_store, Options::default().in_flight_max)
    }

    /// The same where so many messages may be under way to a client.
    pub(crate) fn with_in_flight_max(has_store: bool, in_flight_max: u16) -> Self {
        let durability = if has_store { Durability::BeforeReply } else { Durability::None };
        Self::with_options(|options| Options { durability, in_flight_max, ..options })
    }

    /// One whose options are like those of the others but for some.
    pub(crate) fn with_options(adjust: impl FnOnce(Options) -> Options) -> Self {
        let options = adjust(Options {
            seed: 1,
            connections_max: u32::MAX,
            queued_messages_max: u32::MAX,
            queued_bytes_max: u64::MAX,
            queued_bytes_total_max: u64::MAX,
            retained_messages_max: u32::MAX,
            retained_bytes_max: u64::MAX,
            subscriptions_max: u32::MAX,
            sessions_max: u32::MAX,
            sys_interval: None,
            ..Options::default()
        });
        let now = Instant(1_000);
        let broker = Broker::new(options, now);
        Self { broker, now, inboxes: Vec::new(), answers: Vec::new(), deliveries: 0, is_mute: false }
    }

    /// Opens a connection, whose client says this.
    pub(crate) fn open(&mut self, slot: u32, bytes: &[u8]) {
        self.broker.handle_open(self.now, id(slot));
        self.make_room(slot);
        self.exchange(slot, bytes);
    }

    /// Makes room for what a connection has not said to its end.
    pub(crate) fn make_room(&mut self, slot: u32) {
        if self.inboxes.len() <= slot as usize {
            self.inboxes.resize_with(slot as usize + 1, Inbox::default);
        }
    }

    /// The client says this, and nothing moves any more when all is said that follows from it.
    pub(crate) fn exchange(&mut self, slot: u32, bytes: &[u8]) {
        self.input(slot, bytes);
        while self.turn() {}
    }

    /// What the server's loop does with the bytes of one read.
    pub(crate) fn input(&mut self, slot: u32, bytes: &[u8]) {
        let Self { broker, inboxes, now, .. } = self;
        let inbox = &mut inboxes[slot as usize];
        let mut input = bytes;
        broker.metrics_mut().bytes_received += bytes.len() as u64;
        let mut terms = broker.reading_terms(id(slot));
        let mut wants_input = true;
        while broker.handle_next(*now, id(slot), &mut terms, inbox, &mut input) {
            assert!(wants_input, "nobody here is slow");
            // What takes several turns is the last of its read.
            wants_input = broker.wants_input(id(slot));
        }
    }

    /// Whether there may be more to do.
    fn turn(&mut self) -> bool {
        self.broker.handle_timeout(self.now);
        self.hand_out()
    }

    /// What is left of a turn when what was due is done. Returns whether there may be more to do.
    pub(crate) fn hand_out(&mut self) -> bool {
        let batch = self.broker.poll_journal(self.now);
        let is_due = self.broker.poll_timeout().is_some_and(|due| due <= self.now);
        for _ in 0..self.broker.dirty_len() {
            let Some(id) = self.broker.poll_flush() else { break };
            self.flush(id);
        }
        while self.broker.poll_event().is_some() {}
        while self.broker.poll_resume().is_some() {}
        while let Some(id) = self.broker.poll_close() {
            self.broker.handle_closed(id);
        }
        let is_stored = batch.is_some();
        if let Some(batch) = batch {
            self.broker.handle_stored(self.now, batch.last());
            self.broker.reuse_batch(batch);
        }
        is_due || is_stored
    }

    /// Takes all that waits for one client and has it answer at once.
    fn flush(&mut self, id: ConnectionId) {
        let Self { broker, answers, deliveries, now, is_mute, .. } = self;
        let Some(outbox) = broker.outbox(id) else { return };
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = outbox.slices(&mut slices);
        let length = slices[..filled].iter().map(|slice| slice.len()).sum();
        answers.clear();
        if id.slot > 0 {
            *deliveries += answer(&slices[..filled], answers);
        }
        if *is_mute {
            answers.clear();
        }
        broker.handle_written(*now, id, length, false);
        if !self.answers.is_empty() {
            let answers = std::mem::take(&mut self.answers);
            self.input(id.slot, &answers);
            self.answers = answers;
        }
    }
}

fn id(slot: u32) -> ConnectionId {
    ConnectionId { slot, generation: 1 }
}

/// Reads as little as an answer needs, so that the figure is that of the core. Returns how many messages came.
fn answer(slices: &[IoSlice<'_>], answers: &mut Vec<u8>) -> u64 {
    let mut deliveries = 0;
    // Where a payload is a slice of its own, the packet in hand ends in it.
    let mut skip = 0;
    for slice in slices {
        let mut bytes = &slice[..];
        while !bytes.is_empty() {
            if skip > 0 {
                let step = skip.min(bytes.len());
                bytes = &bytes[step..];
                skip -= step;
                continue;
            }
            let (length, header_length) = remaining_length(bytes);
            let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let packet_id = |at: usize| PacketId::new(number(at)).expect("identifiers are not 0");
            let behind_topic = || header_length + 2 + usize::from(number(header_length));
            match bytes[0] {
                // The latter is retained.
                0x30 | 0x31 => deliveries += 1,
                0x32 => {
                    deliveries += 1;
                    encode::puback(answers, packet_id(behind_topic()), ReasonCode::Success);
                }
                0x34 => {
                    deliveries += 1;
                    encode::pubrec(answers, packet_id(behind_topic()), ReasonCode::Success);
                }
                0x62 => encode::pubcomp(answers, packet_id(header_length), ReasonCode::Success),
                _ => {}
            }
            skip = header_length + length;
        }
    }
    deliveries
}

/// The length of what follows a fixed header, and that of the header.
fn remaining_length(bytes: &[u8]) -> (usize, usize) {
    let last = bytes[1..].iter().position(|byte| *byte < 0x80).expect("a fixed header stands in one slice");
    let end = last + 2;
    let length = bytes[1..end].iter().rev().fold(0, |length, byte| length << 7 | usize::from(byte & 0x7F));
    (length, end)
}
