//! A SUBSCRIBE or UNSUBSCRIBE for which one turn has too little time: of many filters, or of one for a group so many of whose members
//! have just ended that it is not known yet whether anybody lives in it.
//!
//! Its filters are judged, and then take effect, a turn's worth at a time, and its answer follows the last of them. Its
//! sender is not read meanwhile, so to it all of them come before whatever it asked for next. Nobody else waits for it.
//!
//! One that did not come in one read, and is large, is not even decoded in one turn, and not copied: it keeps the memory that
//! it came in, and whether its filters are well-formed is looked at as they are judged.
//!
//! Invariants: a link with one is in the list of those to go on with, and is not read; no filter has taken effect while
//! one has yet to be judged; that a packet is malformed goes before any other fault, wherever in it that is found.
//!
//! Deliberately not here: what is wrong with a filter, and what becomes of it (see `subscribe`).

use std::num::NonZeroU32;

use crate::clock::Instant;
use crate::codec::packet::{SubscriptionRequests, TopicFilters, UncheckedFilters, UncheckedRequests};
use crate::codec::{OwnedFrame, PacketId, Protocol, ReasonCode, decode};

use super::Broker;
use super::close_reason::CloseReason;
use super::event::{PacketKind, trace_request};
use super::link::ConnectionId;
use super::session::SessionId;
use super::subscribe::{judge_unchecked, subscription_id};

/// What is left of one.
#[derive(Debug)]
pub(super) struct LongRequest {
    pub(super) packet_id: PacketId,
    pub(super) asks: Asks,
    /// End with its filters as in the packet. Those before `judged` are well-formed and judged, and those before `at` are done
    /// with.
    bytes: Vec<u8>,
    judged: usize,
    at: usize,
    /// What is wrong with the first bad one of those that were judged.
    violation: Option<CloseReason>,
    /// The codes of those that are.
    pub(super) reasons: Vec<ReasonCode>,
}

/// What it asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asks {
    Subscribe(Option<NonZeroU32>),
    Unsubscribe,
}

impl LongRequest {
    /// One of which the first filters were judged, without finding fault: `unjudged` is the end of `filters`.
    pub(super) fn new(packet_id: PacketId, asks: Asks, filters: &[u8], unjudged: &[u8]) -> Self {
        let judged = filters.len() - unjudged.len();
        Self { judged, at: 0, ..Self::unchecked(packet_id, asks, filters.to_vec(), 0) }
    }

    /// The same when the first filters have taken effect, with these codes: `left` is the end of its filters.
    pub(super) fn begun(self, left: &[u8], reasons: Vec<ReasonCode>) -> Self {
        Self { at: self.bytes.len() - left.len(), reasons, ..self }
    }

    /// One of whose filters nothing is known. They stand at the end of `bytes`.
    fn unchecked(packet_id: PacketId, asks: Asks, bytes: Vec<u8>, filters_at: usize) -> Self {
        let (judged, at) = (filters_at, filters_at);
        Self { packet_id, asks, bytes, judged, at, violation: None, reasons: Vec::new() }
    }
}

impl Broker {
    /// A large SUBSCRIBE or UNSUBSCRIBE came.
    pub(super) fn handle_long_request(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: OwnedFrame,
        protocol: Protocol,
    ) {
        if self.links.find(id).is_none_or(|link| link.session().is_none()) {
            // There is nothing to put off, and strangers have no packets of megabytes.
            self.handle_frame(now, id, frame.as_frame(), protocol);
            return;
        }
        let before = match decode::decode_before_filters(frame.as_frame(), protocol) {
            Ok(before) => before,
            Err(error) => return self.handle_malformed(now, id, error, None),
        };
        let (packet_id, filters_length) = (before.packet_id, before.filters.len());
        let (kind, asks) = if before.is_subscribe {
            (PacketKind::Subscribe, Asks::Subscribe(subscription_id(before.properties)))
        } else {
            (PacketKind::Unsubscribe, Asks::Unsubscribe)
        };
        self.begin_packet(now, id, || trace_request(id, kind, packet_id));
        let bytes = frame.into_bytes();
        let filters_at = bytes.len() - filters_length;
        self.put_off_request(id, LongRequest::unchecked(packet_id, asks, bytes, filters_at));
        self.await_store_if_behind(id);
    }

    /// Puts a request off that is no violation so far.
    pub(super) fn put_off_request(&mut self, id: ConnectionId, request: LongRequest) {
        if let Some(link) = self.links.find_mut(id) {
            link.extras_mut().long_request = Some(Box::new(request));
            self.long_requests.push_back(id);
        }
    }

    /// Goes on with the first ones, as far as one turn has time.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_long_requests(&mut self) {
        let mut steps = self.options.steps_per_turn;
        while steps > 0
            && let Some(id) = self.long_requests.pop_front()
        {
            let Some((session_id, protocol, mut request)) = self.take_long_request(id) else {
                steps -= 1; // It has ended, and so may very many have.
                continue;
            };
            if let Some(reason) = self.judge_long_request(id, protocol, &mut request, &mut steps) {
                self.messages.leave(request.bytes);
                self.close(id, reason);
            } else if self.continue_long_request(id, session_id, &mut request, &mut steps) {
                self.finish_long_request(id, session_id, &request);
                self.messages.leave(request.bytes);
            } else if let Some(link) = self.links.find_mut(id) {
                link.extras_mut().long_request = Some(request);
                self.long_requests.push_front(id);
            }
        }
    }

    fn take_long_request(&mut self, id: ConnectionId) -> Option<(SessionId, Protocol, Box<LongRequest>)> {
        let link = self.links.find_mut(id)?;
        Some((link.session()?, link.protocol, link.extras.as_mut()?.long_request.take()?))
    }

    /// Checks and judges as many of its filters as there are steps. What is wrong with the packet, if that is known.
    fn judge_long_request(
        &self,
        id: ConnectionId,
        protocol: Protocol,
        request: &mut LongRequest,
        steps: &mut usize,
    ) -> Option<CloseReason> {
        let LongRequest { asks, bytes, judged, violation, .. } = request;
        let unjudged = &bytes[*judged..];
        let (checked, left) = match asks {
            Asks::Subscribe(_) => {
                let mut requests = UncheckedRequests::new(unjudged, protocol);
                let judge = |request| self.fatal_request_error(id, &request);
                (judge_unchecked(&mut requests, violation, steps, judge), requests.as_bytes().len())
            }
            Asks::Unsubscribe => {
                let mut filters = UncheckedFilters::new(unjudged);
                let judge = |filter| self.fatal_filter_error(id, filter);
                (judge_unchecked(&mut filters, violation, steps, judge), filters.as_bytes().len())
            }
        };
        *judged = bytes.len() - left;
        match checked {
            Err(error) => Some(CloseReason::Malformed(error)),
            Ok(()) => violation.filter(|_| left == 0),
        }
    }

    /// True if all of its filters are done with. If there is a step left, all of them have been judged.
    fn continue_long_request(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        request: &mut LongRequest,
        steps: &mut usize,
    ) -> bool {
        let LongRequest { asks, bytes, at, reasons, .. } = request;
        let left = match *asks {
            Asks::Subscribe(subscription_id) => {
                let mut requests = SubscriptionRequests::checked_before(&bytes[*at..]);
                self.subscribe_to_some(session_id, &mut requests, subscription_id, reasons, steps);
                requests.as_bytes().len()
            }
            Asks::Unsubscribe => {
                let mut rest = TopicFilters::checked_before(&bytes[*at..]);
                while *steps > 0
                    && let Some(filter) = rest.next()
                {
                    match self.unsubscribe_from(id, session_id, filter) {
                        Ok(reason) => reasons.push(reason),
                        Err(reason) => {
                            self.close(id, reason);
                            return true;
                        }
                    }
                    *steps -= 1;
                }
                rest.as_bytes().len()
            }
        };
        *at = bytes.len() - left;
        left == 0
    }

    fn finish_long_request(&mut self, id: ConnectionId, session_id: SessionId, request: &LongRequest) {
        if self.links.find(id).is_none_or(|link| link.session() != Some(session_id)) {
            return; // It was closed over one of its filters: nothing follows its last word.
        }
        let kind = match request.asks {
            Asks::Subscribe(_) => PacketKind::Suback,
            Asks::Unsubscribe => PacketKind::Unsuback,
        };
        // It was recorded in several turns.
        self.outputs.journal.promise_all();
        self.reply_to_request(id, kind, request.packet_id, &request.reasons);
        if let Some(link) = self.links.find_mut(id) {
            // Its packets waited in the socket for our sake.
            link.last_received = self.now;
            self.outputs.resumed.push_back(id);
        }
        self.refill_for_packet(session_id);
    }

    /// The connection ends.
    pub(super) fn forget_long_request(&mut self, ended: ConnectionId) {
        let Some(extras) = self.links.find_mut(ended).and_then(|link| link.extras.as_mut()) else { return };
        if let Some(request) = extras.long_request.take() {
            self.messages.leave(request.bytes);
        }
    }
}
