//! What happens by the clock: handshake, keep-alive, stalled readers, session expiry, and work put off to the next
//! turn.
//!
//! A packet costs no timer work. Each link has one timer; when it fires the core looks what is really due and arms
//! it again.

use crate::clock::Instant;

use super::Broker;
use super::close_reason::CloseReason;
use super::event::Event;
use super::link::{ConnectionId, Link, LinkState};
use super::options::Options;
use super::session::SessionId;
use super::terms::keep_alive_deadline;

/// What the wheel reminds of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    Link(ConnectionId),
    Session(SessionId),
    SysTopics,
}

/// Deadlines handled in one turn: a wave of expiring sessions must not hold up the loop.
const DEADLINES_PER_TURN: usize = 1_000;

/// The deadline of a link that comes first, and what it means.
fn first_deadline(link: &Link, options: &Options) -> Option<(Instant, CloseReason)> {
    let silent = match link.state {
        LinkState::AwaitingConnect => {
            Some((link.opened_at + options.handshake_timeout, CloseReason::HandshakeTimeout))
        }
        // While we do not read it, its silence says nothing.
        LinkState::Connected(_) if link.read_paused => None,
        LinkState::Connected(_) => keep_alive_deadline(link.keep_alive_secs, link.last_received)
            .map(|deadline| (deadline, CloseReason::KeepAliveTimeout)),
        LinkState::Closing => return None,
    };
    let stalled = link.blocked.then(|| (link.last_progress + options.stall_timeout, CloseReason::Stalled));
    stalled.into_iter().chain(silent).min_by_key(|(deadline, _)| *deadline)
}

impl Broker {
    /// Does what is due at `now`, and goes on with work that was put off. Some of it may be left for the next turn;
    /// `poll_timeout` says so.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..DEADLINES_PER_TURN {
            let Some(deadline) = self.wheel.pop(now) else { break };
            match deadline {
                Deadline::Link(id) => self.link_timeout(now, id),
                Deadline::Session(id) => self.expire_session(id),
                Deadline::SysTopics => self.publish_sys_topics(now),
            }
        }
        // Only those that wait already: one that puts itself off again has its next turn later.
        for _ in 0..self.refills.len() {
            let Some(id) = self.refills.pop_front() else { break };
            if let Some(session) = self.sessions.find_mut(id) {
                session.refill_scheduled = false;
                self.refill(id);
            }
        }
    }

    fn link_timeout(&mut self, now: Instant, id: ConnectionId) {
        let Some(link) = self.links.find_mut(id) else { return };
        link.timer = None;
        match first_deadline(link, &self.options) {
            Some((deadline, reason)) if deadline <= now => self.close(now, id, reason),
            _ => self.arm_link(now, id),
        }
    }

    /// Makes sure that the link's timer fires no later than its first deadline.
    pub(super) fn arm_link(&mut self, now: Instant, id: ConnectionId) {
        let Some(link) = self.links.find_mut(id) else { return };
        let deadline = match first_deadline(link, &self.options) {
            Some((deadline, _)) => deadline,
            // It is not read for the moment: look again when it could be due had its pause ended right now.
            None => match keep_alive_deadline(link.keep_alive_secs, now) {
                Some(deadline) if link.read_paused => deadline,
                _ => return,
            },
        };
        match link.timer {
            Some((_, armed)) if armed <= deadline => return,
            Some((timer, _)) => {
                self.wheel.cancel(timer);
            }
            None => {}
        }
        link.timer = Some((self.wheel.insert(deadline, Deadline::Link(id)), deadline));
    }

    fn expire_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        session.expiry_timer = None;
        self.outputs.metrics.sessions_expired += 1;
        self.outputs.events.push_back(Event::SessionExpired { client_id: session.client_id.clone() });
        self.end_session(id);
    }
}
