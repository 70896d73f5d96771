//! A SUBSCRIBE or UNSUBSCRIBE of more filters than one turn has time for.
//!
//! Its filters are judged, and then take effect, a turn's worth at a time, and its answer follows the last of them. Its
//! sender is not read meanwhile, so to it all of them come before whatever it asked for next. Nobody else waits for it.
//!
//! Invariants: a link with one is in the list of those to go on with, and is not read; no filter has taken effect while
//! one has yet to be judged.
//!
//! Deliberately not here: what is wrong with a filter, and what becomes of it (see `subscribe`).

use std::num::NonZeroU32;

use crate::codec::packet::{SubscriptionRequests, TopicFilters};
use crate::codec::{PacketId, ReasonCode};

use super::Broker;
use super::close_reason::CloseReason;
use super::event::PacketKind;
use super::link::ConnectionId;
use super::session::SessionId;

/// What is left of one.
#[derive(Debug)]
pub(super) struct LongRequest {
    pub(super) packet_id: PacketId,
    pub(super) asks: Asks,
    /// Its filters as in the packet. Those before `judged` are no violation, and those before `at` are done with.
    pub(super) filters: Box<[u8]>,
    pub(super) judged: usize,
    pub(super) at: usize,
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
    /// `unjudged` is the end of `filters`.
    pub(super) fn new(packet_id: PacketId, asks: Asks, filters: &[u8], unjudged: &[u8]) -> Self {
        let judged = filters.len() - unjudged.len();
        Self { packet_id, asks, filters: filters.into(), judged, at: 0, reasons: Vec::new() }
    }
}

impl Broker {
    /// Puts a request off that is no violation so far.
    pub(super) fn put_off_request(&mut self, id: ConnectionId, request: LongRequest) {
        if let Some(link) = self.links.find_mut(id) {
            link.extras_mut().long_request = Some(Box::new(request));
            self.long_requests.push_back(id);
        }
    }

    /// Goes on with the first ones, as far as one turn has time.
    pub(super) fn continue_long_requests(&mut self) {
        let mut steps = self.options.steps_per_turn;
        while steps > 0
            && let Some(id) = self.long_requests.pop_front()
        {
            let Some(link) = self.links.find_mut(id) else { continue };
            let Some(session_id) = link.session() else { continue };
            let Some(mut request) = link.extras_mut().long_request.take() else { continue };
            if let Some(reason) = self.judge_long_request(id, &mut request, &mut steps) {
                self.close(id, reason);
            } else if self.continue_long_request(id, session_id, &mut request, &mut steps) {
                self.finish_long_request(id, session_id, &request);
            } else if let Some(link) = self.links.find_mut(id) {
                link.extras_mut().long_request = Some(request);
                self.long_requests.push_front(id);
            }
        }
    }

    /// Judges as many of its filters as there are steps. What is wrong with the first bad one, if there is one.
    fn judge_long_request(
        &self,
        id: ConnectionId,
        request: &mut LongRequest,
        steps: &mut usize,
    ) -> Option<CloseReason> {
        let LongRequest { asks, filters, judged, .. } = request;
        let unjudged = &filters[*judged..];
        let (error, left) = match asks {
            Asks::Subscribe(_) => {
                self.judge_requests(id, SubscriptionRequests::checked_before(unjudged), steps)
            }
            Asks::Unsubscribe => self.judge_filters(id, TopicFilters::checked_before(unjudged), steps),
        };
        *judged = filters.len() - left.len();
        error
    }

    /// True if all of its filters are done with. If there is a step left, all of them have been judged.
    fn continue_long_request(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        request: &mut LongRequest,
        steps: &mut usize,
    ) -> bool {
        let LongRequest { asks, filters, at, reasons, .. } = request;
        let left = match *asks {
            Asks::Subscribe(subscription_id) => {
                let mut requests = SubscriptionRequests::checked_before(&filters[*at..]);
                while *steps > 0
                    && let Some(request) = requests.next()
                {
                    reasons.push(self.subscribe_to(session_id, &request, subscription_id));
                    *steps -= 1;
                }
                requests.as_bytes().len()
            }
            Asks::Unsubscribe => {
                let mut rest = TopicFilters::checked_before(&filters[*at..]);
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
        *at = filters.len() - left;
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
        self.refill(session_id);
    }
}
