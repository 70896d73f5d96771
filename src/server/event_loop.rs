//! The loop: owns the sockets, the poll, the clock and the core, and moves between them.
//!
//! It moves bytes and tells the time; what they mean is for the core. The order of a turn is an invariant:
//!
//! 1. poll, for at most as long as nothing is due
//! 2. read the clock, once: what happens belongs to the end of its millisecond, what is due to the beginning
//! 3. signals and requests to stop; what the store has done
//! 4. accept, a bounded number
//! 5. read from connections that have something, a bounded number and a share of the turn each, until enough bytes are read,
//!    packets taken, copies of messages made, or as much else done; who has more stands behind the others for the next turn;
//!    whose messages go to many waits until those have been flushed
//! 6. a share of the steps of authentication, and what is due by the clock
//! 7. hand this turn's records to the store, before any byte leaves
//! 8. flush outboxes with new bytes, one vectored write each: a bounded number with a reply or a message of their own, some of
//!    those that are one of many
//! 9. events to log lines, while the connections they speak of still have an address
//! 10. flush what ended, if it was not, and free it: never earlier, so nothing frees what another step uses

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::time::Duration as SystemDuration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Poll, Token};

use crate::broker::{Broker, ConnectionId, Verdict};
use crate::clock::{Clock, Duration, Instant};
use crate::codec::{Inbox, ReasonCode};
use crate::transport::Transport;

use super::authenticator::Authenticator;
use super::connection::{Connections, Peer, connection_id, token};
#[cfg(feature = "persistence")]
use super::keeper::Keeper;
use super::listener::Listener;
use super::signals::{Request, SignalSource};
use super::{Handle, LISTENERS, LOG_TARGET, SIGNALS, Server, WAKER, log_lines};

/// Bytes read from one connection in one turn, and the size of the one read buffer.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// Bytes read in one turn are divided among those who are in line, but a share is no smaller than the other figure: a read
/// costs as much as the packets in some kilobytes.
const BYTES_PER_TURN: usize = 1 << 20;
const BYTES_AT_ONCE_MIN: usize = 16 * 1024;

/// Packets taken in one turn, from all connections: what makes no copies takes time too.
const PACKETS_PER_TURN: usize = 8_192;

/// They are divided likewise, so that who has one question waits for little of what others send without end. Nor is a share
/// larger than this: a read has room for sixteen thousand acknowledgements, which take up to 0.7 us each where they come in
/// no order; PUBLISH packets of 32 bytes and more are not held up.
const PACKETS_AT_ONCE: RangeInclusive<usize> = 128..=2_048;

/// Copies of messages that reading makes in one turn: a fraction of a millisecond. The last message may bring more. As much other
/// work may come beside them, and as much of authentication.
const COPIES_PER_TURN: u64 = 4_000;

/// The same while those who got the last ones wait to be flushed.
const COPIES_WHILE_FLUSHING: u64 = 256;

/// Copies of messages to many receivers that may come together before they are flushed, while there is more to read.
const COPIES_PER_FLUSH: u64 = 16_000;

/// Connections read in one turn: many may have ended, or have nothing to be taken yet.
const READS_PER_TURN: usize = 1_024;

/// Connections flushed in one turn with a reply or a message of their own: as many as may have been read. While there are more less is
/// read.
const FLUSHES_PER_TURN: usize = READS_PER_TURN;

/// Connections flushed in one turn that are each one of many with the same messages: a system call for each, and so another
/// fraction of a millisecond.
const FAN_OUT_FLUSHES_PER_TURN: usize = 32;

/// None of them begins after so long, because a system call may take long: one that wakes a peer on another core of a virtual
/// machine up to half a millisecond. But some always do, or the turns would be spent on everything else.
const FAN_OUT_FLUSH_MICROS: u64 = 200;
const FAN_OUT_FLUSHES_MIN: usize = 8;

/// Pieces of an outbox that one write can name.
const SLICES_MAX: usize = 64;

/// Clients for which there is room from the start. Their memory is taken when they come.
const CLIENTS_EXPECTED: usize = 32 * 1024;

/// Sockets beyond the limit on clients, for those who have yet to hear that they are one too many.
const CONNECTIONS_RESERVE: usize = 64;

/// Clients that are logged in one turn, and slots that are looked at for them: most may be empty.
const LOGGED_CLIENTS_MAX: usize = 64;
const LOOKED_AT_SLOTS_MAX: u32 = 4_096;

/// How long a server that is to stop waits for its store, so that what was taken is acknowledged.
const SHUTDOWN_STORE: Duration = Duration(5_000);

/// How long a stopping server waits for its peers to take their last bytes.
const SHUTDOWN_FLUSH: Duration = Duration(2_000);

/// What became of bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// All whole packets were taken, or the core wants no more for now.
    Taken,
    /// Some are left for the next turn.
    PutOff,
}

/// A server at work.
pub(super) struct EventLoop {
    poll: Poll,
    clock: Clock,
    listeners: Vec<Listener>,
    connections: Connections,
    broker: Broker,
    /// Connections to read from, in turn.
    ready: VecDeque<ConnectionId>,
    /// Nothing more is read in this turn once the core has made so many copies of messages.
    copies_max: u64,
    /// Nor when there was so much other work.
    work_max: u64,
    /// Nor when so many packets have been taken.
    packets_left: usize,
    /// Nor when so many bytes have been read.
    bytes_left: usize,
    /// What is read and taken of one connection in this turn.
    bytes_at_once: usize,
    packets_at_once: usize,
    /// Whether some with a reply wait for the next turn to be flushed.
    is_flushed_in_part: bool,
    /// Whether those are being flushed who are each one of many with the same messages, and when that was done last.
    is_flushing: bool,
    copies_flushed: u64,
    /// How many of them come before those are read again whose messages go to many, and who waits for that.
    flushes_left: usize,
    feeders: Vec<ConnectionId>,
    read_buffer: Box<[u8]>,
    signals: Option<SignalSource>,
    authenticator: Option<Box<dyn Authenticator>>,
    handle: Handle,
    status_interval: Option<Duration>,
    status_due: Option<Instant>,
    /// The slot of the first client that was asked for and has yet to be logged.
    unlogged_clients: Option<u32>,
    busiest_turn_micros: u64,
    #[cfg(feature = "persistence")]
    keeper: Option<Keeper>,
    /// The server is about to stop, and waits for its store until then; nothing is read any more.
    settling: Option<Instant>,
    /// The server stops: no later than then.
    stopping: Option<Instant>,
}

impl EventLoop {
    /// Loads what is stored, if anything is, and listens.
    pub(super) fn new(server: Server) -> io::Result<Self> {
        let clock = Clock::new();
        let now = clock.now();
        #[cfg(feature = "persistence")]
        let (server, keeper, broker) = {
            let mut server = server;
            match server.store.take() {
                Some((options, claim)) => {
                    server.broker.durability = options.durability();
                    let waker = server.handle.waker.clone();
                    let (keeper, broker) =
                        Keeper::load(options, claim, waker, || Broker::new(server.broker.clone(), now))?;
                    server.listen()?;
                    (server, Some(keeper), broker)
                }
                None => {
                    let broker = Broker::new(server.broker.clone(), now);
                    (server, None, broker)
                }
            }
        };
        #[cfg(not(feature = "persistence"))]
        let broker = Broker::new(server.broker.clone(), now);
        let mut broker = broker;
        broker.reserve(CLIENTS_EXPECTED);
        let mut connections = Connections::default();
        connections.reserve(CLIENTS_EXPECTED);
        for listener in &server.listeners {
            log::info!(target: LOG_TARGET, "listening on {}", listener.address);
        }
        let Server { poll, listeners, signals, authenticator, handle, status_interval, .. } = server;
        Ok(Self {
            poll,
            clock,
            listeners,
            connections,
            broker,
            ready: VecDeque::new(),
            copies_max: 0,
            work_max: 0,
            packets_left: 0,
            bytes_left: 0,
            bytes_at_once: READ_BUFFER_BYTES,
            packets_at_once: *PACKETS_AT_ONCE.end(),
            is_flushing: false,
            is_flushed_in_part: false,
            flushes_left: 0,
            feeders: Vec::new(),
            copies_flushed: 0,
            read_buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
            signals,
            authenticator,
            handle,
            status_interval,
            status_due: status_interval.map(|interval| now + interval),
            unlogged_clients: None,
            busiest_turn_micros: 0,
            #[cfg(feature = "persistence")]
            keeper,
            settling: None,
            stopping: None,
        })
    }

    /// Turns until something stops it.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, self.poll_timeout()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            let turn_began = self.clock.now_micros();
            let begun = self.clock.now();
            // What happens, happens before this millisecond ends; what is due was due when it began. So nothing is early.
            let now = begun + Duration(1);
            self.note_events(now, &events);
            #[cfg(feature = "persistence")]
            self.take_reports(now);
            self.accept(now);
            self.read(now);
            self.authenticate(now);
            self.broker.handle_timeout(begun);
            #[cfg(feature = "persistence")]
            self.hand_over(now, !events.is_empty(), turn_began);
            self.read_on();
            self.flush(now);
            self.log_events();
            self.free_ended(now);
            self.log_status(now);
            self.log_clients(now);
            let turn_micros = self.clock.now_micros() - turn_began;
            self.busiest_turn_micros = self.busiest_turn_micros.max(turn_micros);
            let is_done = self.connections.len() == 0 && self.broker.is_stored();
            if self.stopping.is_some_and(|deadline| is_done || deadline <= now) {
                let unstored = self.broker.unstored_bytes();
                if unstored > 0 {
                    log::error!(target: LOG_TARGET, "{unstored} bytes could not be stored");
                }
                log::info!(target: LOG_TARGET, "stopped");
                return Ok(());
            }
        }
    }

    /// How long the poll may sleep.
    fn poll_timeout(&self) -> Option<SystemDuration> {
        let now = self.clock.now();
        // The report that all is stored came after this turn's look at requests to stop.
        let is_settled = self.settling.is_some() && self.broker.is_stored();
        if is_settled
            || !self.ready.is_empty()
            || !self.feeders.is_empty()
            || self.unlogged_clients.is_some()
            || self.broker.has_authentication_steps()
            || self.listeners.iter().any(|listener| listener.is_ready(now))
        {
            return Some(SystemDuration::ZERO);
        }
        let pauses = self.listeners.iter().filter_map(Listener::pause_ends);
        let due =
            self.broker.poll_timeout().into_iter().chain(self.status_due).chain(self.stopping).chain(pauses);
        let due = due.chain(self.settling).chain(self.store_due());
        let due = due.min().map(|due| SystemDuration::from_millis(due.since(now).0));
        due.into_iter().chain(self.hold_sleep_max()).min()
    }

    /// Marks what became ready; nothing is done yet.
    fn note_events(&mut self, now: Instant, events: &Events) {
        for event in events {
            match event.token() {
                WAKER => {}
                SIGNALS => {
                    for request in self.signals.as_mut().map(SignalSource::pending).unwrap_or_default() {
                        match request {
                            Request::Stop => self.handle.stop.store(true, Ordering::Release),
                            Request::LogClients => self.begin_to_log_clients(),
                            Request::Drain => self.handle.drain.store(true, Ordering::Release),
                        }
                    }
                }
                Token(index) if index > LISTENERS - self.listeners.len() => {
                    self.listeners[LISTENERS - index].ready = true;
                }
                other => self.note_connection_event(now, connection_id(other), event),
            }
        }
        if self.handle.drain.swap(false, Ordering::AcqRel) {
            self.drain(now);
        }
        if self.stopping.is_none() && self.handle.stop.load(Ordering::Acquire) {
            // What was taken is acknowledged, if the store lets us.
            let deadline = *self.settling.get_or_insert(now + SHUTDOWN_STORE);
            if self.broker.is_stored() || deadline <= now {
                self.settling = None;
                self.begin_to_stop(now);
            }
        }
    }

    fn note_connection_event(&mut self, now: Instant, id: ConnectionId, event: &Event) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            connection.readable = true;
            if connection.peer == Peer::Open && (event.is_read_closed() || event.is_error()) {
                connection.peer = Peer::Closed;
            }
            self.list(id);
        }
        // Every event says so while the socket takes bytes; it is news only after a short write.
        if event.is_writable() && self.broker.is_blocked(id) {
            self.flush_connection(now, id);
        }
    }

    /// Gives the connection a place in the line of those to be read.
    fn list(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.find_mut(id)
            && !connection.listed
        {
            connection.listed = true;
            self.ready.push_back(id);
        }
    }

    fn accept(&mut self, now: Instant) {
        let Self { listeners, connections, broker, poll, ready, .. } = self;
        let connections_max = broker.options().connections_max as usize;
        for listener in listeners.iter_mut().filter(|listener| listener.is_ready(now)) {
            listener.accept(now, |stream: TcpStream, address| {
                if connections.len() >= connections_max.saturating_add(CONNECTIONS_RESERVE) {
                    broker.metrics_mut().connections_refused += 1;
                    return;
                }
                let connection = connections.insert(Transport::Tcp(stream), address);
                let id = connection.id;
                if let Err(error) = connection.transport.register(poll.registry(), token(id)) {
                    log::warn!(target: LOG_TARGET, "{address}: cannot serve the connection: {error}");
                    connections.remove(id);
                    return;
                }
                // Most clients have sent their CONNECT by now: reading at once saves a turn.
                connection.readable = true;
                connection.listed = true;
                ready.push_back(id);
                broker.handle_open(now, id);
            });
        }
    }

    /// Reads once from every connection in line, or from the first of them, if what they send goes to many.
    fn read(&mut self, now: Instant) {
        if self.settling.is_some() {
            (self.copies_max, self.work_max) = (u64::MAX, u64::MAX);
            return;
        }
        if self.flushes_left == 0 {
            self.ready.extend(self.feeders.drain(..));
        }
        let is_behind = self.is_flushing || self.is_flushed_in_part;
        let copies_per_turn = if is_behind { COPIES_WHILE_FLUSHING } else { COPIES_PER_TURN };
        self.copies_max = self.broker.copies() + copies_per_turn;
        self.work_max = self.broker.work() + COPIES_PER_TURN;
        (self.packets_left, self.bytes_left) = (PACKETS_PER_TURN, BYTES_PER_TURN);
        let in_line = self.ready.len().max(1);
        self.bytes_at_once = (BYTES_PER_TURN / in_line).clamp(BYTES_AT_ONCE_MIN, READ_BUFFER_BYTES);
        self.packets_at_once =
            (PACKETS_PER_TURN / in_line).clamp(*PACKETS_AT_ONCE.start(), *PACKETS_AT_ONCE.end());
        for _ in 0..in_line.min(READS_PER_TURN) {
            let is_enough = self.packets_left == 0 || self.bytes_left == 0;
            if is_enough || self.broker.copies() >= self.copies_max || self.broker.work() >= self.work_max {
                break;
            }
            let Some(id) = self.ready.pop_front() else { break };
            let Some(connection) = self.connections.find_mut(id) else { continue };
            if connection.feeds_many && self.flushes_left > 0 {
                // What it sends next comes together again once these have got the last.
                self.feeders.push(id);
                continue;
            }
            connection.listed = false;
            self.read_connection(now, id);
        }
    }

    fn read_connection(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.find_mut(id) else { return };
        if !self.broker.wants_input(id) {
            if connection.peer != Peer::Open && self.broker.is_kept_back(id) {
                self.broker.handle_lost(now, id, false);
            }
            return; // Listed again when it has what it waits for.
        }
        if connection.inbox.is_some() && self.handle_input(now, id, 0) == Input::PutOff {
            return self.list(id);
        }
        let Some(connection) = self.connections.find_mut(id) else { return };
        if !connection.readable || !self.broker.wants_input(id) {
            return;
        }
        let buffer = &mut self.read_buffer[..self.bytes_at_once];
        match connection.transport.read_into(buffer) {
            Ok(0) => {
                let has_failed = connection.peer == Peer::Gone;
                self.broker.handle_lost(now, id, has_failed);
            }
            Ok(count) => {
                // A short read has emptied the socket, and what comes later makes a new event. Only the end of the
                // stream may have been announced before this read.
                self.bytes_left = self.bytes_left.saturating_sub(count);
                connection.readable = count == self.bytes_at_once || connection.peer != Peer::Open;
                let is_put_off = self.handle_input(now, id, count) == Input::PutOff;
                let is_readable = self.connections.find(id).is_some_and(|connection| connection.readable);
                if (is_put_off || is_readable) && self.broker.wants_input(id) {
                    self.list(id);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.list(id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && connection.peer != Peer::Gone => {
                connection.readable = false;
            }
            Err(_) => self.broker.handle_lost(now, id, true),
        }
    }

    /// Has the core take what stands in the first `count` bytes of the read buffer, behind what the
    /// connection's inbox holds.
    fn handle_input(&mut self, now: Instant, id: ConnectionId, count: usize) -> Input {
        let Self { connections, broker, read_buffer, packets_left, .. } = self;
        let Some(connection) = connections.find_mut(id) else { return Input::Taken };
        let mut result = Input::Taken;
        let fan_outs = broker.fan_outs();
        broker.metrics_mut().bytes_received += count as u64;
        let mut input = &read_buffer[..count];
        let mut inbox = connection.inbox.take().map_or_else(Inbox::default, |inbox| *inbox);
        let mut terms = broker.reading_terms(id);
        let packets_max = self.packets_at_once.min(*packets_left).max(1);
        let mut taken = 0;
        while broker.handle_next(now, id, &mut terms, &mut inbox, &mut input) {
            taken += 1;
            let has_worked = broker.copies() >= self.copies_max || broker.work() >= self.work_max;
            let is_enough = taken == packets_max || has_worked;
            if is_enough || !broker.wants_input(id) {
                inbox.stash(input);
                if is_enough && !inbox.is_empty() {
                    result = Input::PutOff;
                }
                break;
            }
        }
        *packets_left = packets_left.saturating_sub(taken);
        if !inbox.is_empty() {
            connection.inbox = Some(Box::new(inbox));
        }
        connection.feeds_many = broker.fan_outs() > fan_outs;
        result
    }

    /// Has the steps of authentication answered, until those who are let in by them have made as much work as reading may.
    fn authenticate(&mut self, now: Instant) {
        let done_max = self.broker.copies() + self.broker.work() + COPIES_PER_TURN;
        let mut steps = 0;
        while self.broker.copies() + self.broker.work() + steps < done_max
            && let Some(step) = self.broker.poll_authentication()
        {
            steps += 1;
            let id = step.connection;
            let verdict = match &mut self.authenticator {
                Some(authenticator) => authenticator.step(&step),
                // The core asks about methods that it was told of, and those came from an authenticator.
                None => Verdict::Refuse(ReasonCode::BadAuthenticationMethod),
            };
            self.broker.handle_verdict(now, id, verdict);
            self.resume_reading(id);
        }
    }

    /// Hears what the store has done.
    #[cfg(feature = "persistence")]
    fn take_reports(&mut self, now: Instant) {
        if let Some(keeper) = &mut self.keeper {
            keeper.take_reports(now, &mut self.broker);
        }
    }

    /// Reads those again who had to wait for something other than their own outbox.
    fn read_on(&mut self) {
        while let Some(id) = self.broker.poll_resume() {
            self.resume_reading(id);
        }
    }

    /// Gives the store what it has to do.
    #[cfg(feature = "persistence")]
    fn hand_over(&mut self, now: Instant, had_events: bool, turn_micros: u64) {
        let is_more_to_read = had_events || !self.ready.is_empty();
        if let Some(keeper) = &mut self.keeper {
            if self.settling.is_some() || self.stopping.is_some() {
                keeper.hand_over_at_once(now, &mut self.broker);
            } else {
                keeper.hand_over(now, &mut self.broker, is_more_to_read, turn_micros);
            }
        }
    }

    /// How long the loop may sleep while a batch waits only as long as there is something to read.
    fn hold_sleep_max(&self) -> Option<SystemDuration> {
        #[cfg(feature = "persistence")]
        return self.keeper.as_ref().and_then(Keeper::sleep_max);
        #[cfg(not(feature = "persistence"))]
        return None;
    }

    fn store_due(&self) -> Option<Instant> {
        #[cfg(feature = "persistence")]
        return self.keeper.as_ref().and_then(|keeper| keeper.due(&self.broker));
        #[cfg(not(feature = "persistence"))]
        return None;
    }

    fn flush(&mut self, now: Instant) {
        let (all_soon, copies) = (self.broker.dirty_soon_len(), self.broker.copies());
        let soon = all_soon.min(FLUSHES_PER_TURN);
        self.is_flushed_in_part = soon < all_soon;
        let in_turn = self.broker.dirty_len() - all_soon;
        // Messages to many come together in larger writes as long as more of them are there to be read. Then they leave in
        // slices, so that whoever has a question meanwhile does not wait for a thousand others.
        self.is_flushing |= in_turn > 0
            && (copies < self.copies_max
                || copies >= self.copies_flushed + COPIES_PER_FLUSH
                || self.broker.is_fan_out_urgent());
        if self.is_flushing && self.flushes_left == 0 {
            self.flushes_left = in_turn;
        }
        let in_turn = if self.is_flushing { in_turn.min(FAN_OUT_FLUSHES_PER_TURN) } else { 0 };
        // Only so many as wait already: what a flush makes room for goes out in the next turn.
        for _ in 0..soon {
            let Some(id) = self.broker.poll_flush_soon() else { break };
            self.flush_connection(now, id);
        }
        if in_turn > 0 {
            let end_micros = self.clock.now_micros() + FAN_OUT_FLUSH_MICROS;
            for count in 1..=in_turn {
                let Some(id) = self.broker.poll_flush_in_turn() else { break };
                self.flush_connection(now, id);
                self.flushes_left = self.flushes_left.saturating_sub(1);
                if count >= FAN_OUT_FLUSHES_MIN && self.clock.now_micros() >= end_micros {
                    break;
                }
            }
        }
        if self.is_flushing && self.broker.dirty_len() == self.broker.dirty_soon_len() {
            (self.is_flushing, self.copies_flushed, self.flushes_left) = (false, copies, 0);
        }
    }

    fn flush_connection(&mut self, now: Instant, id: ConnectionId) {
        let (Some(connection), Some(outbox)) = (self.connections.find_mut(id), self.broker.outbox(id)) else {
            return;
        };
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let filled = outbox.slices(&mut slices);
        if filled == 0 {
            return;
        }
        let length: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
        // To a peer that is gone all is written that would have been.
        let written = match connection.peer {
            Peer::Gone => Ok(length),
            Peer::Open | Peer::Closed => connection.transport.write_vectored(&slices[..filled]),
        };
        match written {
            Ok(count) => {
                self.broker.handle_written(now, id, count, count < length);
                self.resume_reading(id);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.broker.handle_written(now, id, 0, true);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.broker.handle_written(now, id, 0, false);
            }
            Err(_) => {
                self.broker.handle_written(now, id, length, false);
                self.read_last(id);
            }
        }
    }

    /// The outbox has drained, or a verdict has come: what waited in the socket or was put off can be read.
    fn resume_reading(&mut self, id: ConnectionId) {
        let waiting = self
            .connections
            .find(id)
            .is_some_and(|connection| connection.readable || connection.inbox.is_some());
        if waiting && self.broker.wants_input(id) {
            self.list(id);
        }
    }

    /// Writing failed, so the peer is gone. What it sent before still counts, above all a DISCONNECT, and is read as what others
    /// send: it may be much, and go to many.
    fn read_last(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.find_mut(id) {
            (connection.peer, connection.readable) = (Peer::Gone, true);
            self.list(id);
        }
    }

    fn log_events(&mut self) {
        while let Some(event) = self.broker.poll_event() {
            match event.connection().and_then(|id| self.connections.find(id)) {
                Some(connection) => log_lines::log_event(&event, connection.address),
                None => log_lines::log_event(&event, "an unknown address"),
            }
        }
    }

    /// Frees the connections that the core has ended; while stopping, those whose last bytes have left.
    fn free_ended(&mut self, now: Instant) {
        let mut unflushed = Vec::new();
        while let Some(id) = self.broker.poll_close() {
            if !self.broker.is_blocked(id) {
                self.flush_connection(now, id); // Its turn may not have come.
            }
            let Self { broker, connections, poll, listeners, authenticator, .. } = self;
            if self.stopping.is_some() && broker.outbox(id).is_some_and(|outbox| !outbox.is_empty()) {
                unflushed.push(id);
                continue;
            }
            if let Some(connection) = connections.remove(id) {
                connection.transport.close(poll.registry());
                if let Some(inbox) = connection.inbox {
                    broker.leave_unread(*inbox);
                }
            }
            if let Some(authenticator) = authenticator {
                authenticator.forget(id);
            }
            broker.handle_closed(id);
            for listener in &mut *listeners {
                listener.resume();
            }
        }
        for id in unflushed {
            self.broker.put_off_close(id);
        }
    }

    fn begin_to_stop(&mut self, now: Instant) {
        log::info!(target: LOG_TARGET, "stopping: {} connections to close", self.connections.len());
        for listener in &mut self.listeners {
            listener.deregister(self.poll.registry());
        }
        self.broker.handle_shutdown(now);
        self.stopping = Some(now + SHUTDOWN_FLUSH);
    }

    fn drain(&mut self, now: Instant) {
        if self.broker.handle_drain(now) {
            log::info!(target: LOG_TARGET, "draining: {} clients are sent to another server", self.broker.metrics().clients_connected);
        } else {
            log::warn!(target: LOG_TARGET, "cannot drain: no other server is named (--redirect-to)");
        }
    }

    fn log_status(&mut self, now: Instant) {
        let (Some(interval), Some(due)) = (self.status_interval, self.status_due) else { return };
        if due <= now {
            log_lines::log_status(&self.broker, now.since(self.clock.started_at()), self.busiest_turn_micros);
            self.busiest_turn_micros = 0;
            self.status_due = Some(now + interval);
        }
    }

    fn begin_to_log_clients(&mut self) {
        log::info!(target: LOG_TARGET, "{} clients connected:", self.broker.metrics().clients_connected);
        self.unlogged_clients = Some(0);
    }

    /// Goes on with the lines about clients, as far as one turn has time.
    fn log_clients(&mut self, now: Instant) {
        let Some(from_slot) = self.unlogged_clients.take() else { return };
        let slots_end = self.broker.connection_slots();
        let mut next_slot = slots_end.min(from_slot.saturating_add(LOOKED_AT_SLOTS_MAX));
        for (count, client) in (1..).zip(self.broker.clients(from_slot..next_slot)) {
            if let Some(connection) = self.connections.find(client.connection) {
                log_lines::log_client(&client, connection.address, now);
            }
            if count == LOGGED_CLIENTS_MAX {
                next_slot = client.connection.slot + 1;
                break;
            }
        }
        self.unlogged_clients = (next_slot < slots_end).then_some(next_slot);
    }
}
