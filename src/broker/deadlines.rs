//! What happens by the clock: handshake, keep-alive, stalled readers, session expiry, and work put off to the next
//! turn.
//!
//! A packet costs no timer work. Each link has one timer; when it fires the core looks what is really due and arms
//! it again.

use crate::clock::Instant;

use super::close_reason::CloseReason;
use super::event::Event;
use super::link::{ConnectionId, Link, LinkState};
use super::options::Options;
use super::remains::merge_freed;
use super::session::SessionId;
use super::terms::keep_alive_deadline;
use super::will::Will;
use super::{Broker, CLOSE_STEPS};

/// What the wheel reminds of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deadline {
    Link(ConnectionId),
    Session(SessionId),
    SysTopics,
    /// A look at retained messages that may have expired.
    Sweep,
}

/// A deadline that is only looked at, and armed again, takes as long as so many other steps; one at which something ends, or a
/// will is published, takes `CLOSE_STEPS`. All of a turn have its steps together, or a wave of sessions that expire, or of
/// clients that have fallen silent, would hold up the loop.
const LOOK_STEPS: usize = 4;

/// The deadline of a link that comes first, and what it means.
fn first_deadline(link: &Link, options: &Options) -> Option<(Instant, CloseReason)> {
    let silent = match link.state {
        LinkState::AwaitingConnect | LinkState::Authenticating => {
            Some((link.opened_at + options.handshake_timeout, CloseReason::HandshakeTimeout))
        }
        // While we do not read it, its silence says nothing.
        LinkState::Connected(_) if link.is_read_paused() => None,
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
        self.begin_input(now, None);
        self.steps_at_once = self.options.steps_per_turn;
        if self.wheel.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.fire_deadlines(now);
        }
        if self.has_work_left() {
            self.continue_work();
        }
        if !self.refills.is_empty() {
            self.continue_refills();
        }
    }

    /// Whether something is left for later turns, but for refills.
    // One comparison, nearly without a jump: it is asked twice in every turn, and mostly nothing is.
    #[inline]
    pub(super) fn has_work_left(&self) -> bool {
        let messages = self.long_requests.len() | self.long_publishes.len() | self.put_off.len();
        let kept_back = self.slots_to_free.len() | self.streams_behind.len();
        let left = self.remains.len() | self.sent_left.len() | self.messages.leftovers().len();
        let waiting = self.shared.work_left() | self.outputs.journal.left_for_later();
        messages | kept_back | left | waiting != 0
            || self.fan_out.is_some()
            || self.undrained_from_slot.is_some()
    }

    /// Goes on with whatever is left.
    #[cold]
    #[inline(never)]
    fn continue_work(&mut self) {
        if !self.long_requests.is_empty() {
            self.continue_long_requests();
        }
        if !self.long_publishes.is_empty() {
            self.continue_long_publishes();
        }
        if self.messages.leftovers().len() > 0 {
            self.messages.leftovers().give_back();
        }
        let was_fan_out = self.fan_out.is_some();
        if self.has_fan_out() {
            self.continue_fan_out();
        }
        if self.has_kept_back() {
            self.release_kept_back();
        }
        if self.undrained_from_slot.is_some() || self.outputs.journal.has_held_in_vain() {
            self.continue_closing(was_fan_out);
        }
        if self.outputs.journal.left_for_later() > 0 {
            self.release_held();
        }
        if self.has_remains() {
            self.clear_remains();
        }
        if self.shared.work_left() > 0 {
            self.continue_group_work();
        }
    }

    /// Goes on with those who need not wait for the store any longer.
    #[cold]
    fn release_held(&mut self) {
        self.open_some_gates();
        self.read_paused_again();
    }

    /// Closes those whom the broker does not want any more. Behind a message to many: where one follows the other this has its turns
    /// between them. But the will of who is closed may be the next one, and the store is to get its batch between them too, so
    /// that turn is the store's every other time. `was_fan_out` says that one was under way when the turn began.
    #[cold]
    fn continue_closing(&mut self, was_fan_out: bool) {
        let is_between = self.fan_out.is_none();
        if was_fan_out && is_between && std::mem::take(&mut self.has_closing_begun_fan_out) {
            return;
        }
        self.continue_drain();
        self.close_held();
        if is_between {
            self.has_closing_begun_fan_out = self.fan_out.is_some();
        }
    }

    fn fire_deadlines(&mut self, now: Instant) {
        let mut timers_left = self.options.steps_per_turn;
        let done_max = self.done() + self.options.steps_per_turn as u64;
        let mut steps = self.options.steps_per_turn;
        while steps > 0 {
            if self.done() >= done_max || self.steps_at_once == 0 {
                break; // Wills have gone to many, or much to others or away.
            }
            // They fire in order, so none does before all are found that are due.
            if !self.wheel.advance(now, &mut timers_left) {
                break;
            }
            let Some(deadline) = self.wheel.pop(now) else { break };
            let has_come = match deadline {
                Deadline::Link(id) => self.link_timeout(id),
                Deadline::Session(id) => self.session_timeout(id),
                Deadline::SysTopics => {
                    self.publish_sys_topics();
                    true
                }
                Deadline::Sweep => {
                    self.sweep_retained();
                    true
                }
            };
            steps = steps.saturating_sub(if has_come { CLOSE_STEPS } else { LOOK_STEPS });
        }
        if steps == 0 {
            merge_freed();
        }
    }

    /// True if the link ends.
    fn link_timeout(&mut self, id: ConnectionId) -> bool {
        let Some(link) = self.links.find_mut(id) else { return false };
        link.timer = None;
        let due = first_deadline(link, &self.options).filter(|(deadline, _)| *deadline <= self.now);
        match due {
            Some((_, reason)) => self.close(id, reason),
            None => self.arm_link(id),
        }
        due.is_some()
    }

    /// Makes sure that the link's timer fires no later than its first deadline.
    pub(super) fn arm_link(&mut self, id: ConnectionId) {
        let Some(link) = self.links.find_mut(id) else { return };
        // While it is not read: look again when it could be due had its pause ended right now.
        let look_again = if link.is_read_paused() && link.session().is_some() {
            keep_alive_deadline(link.keep_alive_secs, self.now)
        } else {
            None
        };
        let first = first_deadline(link, &self.options).map(|(deadline, _)| deadline);
        let Some(deadline) = first.into_iter().chain(look_again).min() else { return };
        match link.timer {
            Some((_, armed)) if armed <= deadline => return,
            Some((timer, _)) => {
                self.wheel.cancel(timer);
            }
            None => {}
        }
        link.timer = Some((self.wheel.insert(deadline, Deadline::Link(id)), deadline));
    }

    /// Sets the one timer of a session that is absent: for its will or its end, whichever is due first.
    pub(super) fn arm_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id) else { return };
        if let Some(timer) = session.timer.take() {
            self.wheel.cancel(timer);
        }
        if session.connection.is_none() {
            let will_due_at = session.will.as_ref().and_then(|will| will.due_at);
            let due_at = will_due_at.into_iter().chain(session.expires_at()).min();
            session.timer = due_at.map(|due_at| self.wheel.insert(due_at, Deadline::Session(id)));
        }
    }

    /// Does what is due for one session whose client is coming back, if the wheel has not got to it yet: after a restart
    /// there can be many, and the first clients are fast.
    pub(super) fn catch_up_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find_mut(id).filter(|session| session.connection.is_none()) else {
            return;
        };
        if let Some(timer) = session.timer.take() {
            self.wheel.cancel(timer);
        }
        self.session_timeout(id);
    }

    /// True if the session ends, or its will is published.
    fn session_timeout(&mut self, id: SessionId) -> bool {
        let now = self.now;
        let Some(session) = self.sessions.find_mut(id) else { return false };
        session.timer = None;
        if session.expires_at().is_some_and(|expires_at| expires_at <= now) {
            self.expire_session(id);
            return true;
        }
        let is_due = |will: &mut Box<Will>| will.due_at.is_some_and(|due_at| due_at <= now);
        let (name, will) = (session.name, session.will.take_if(is_due));
        self.arm_session(id);
        let is_will_due = will.is_some();
        if let Some(will) = will {
            self.record_session(id);
            self.publish_will(id, name, will); // [MQTT5-3.1.2-8]
        }
        is_will_due
    }

    fn expire_session(&mut self, id: SessionId) {
        let Some(session) = self.sessions.find(id) else { return };
        self.outputs.metrics.sessions_expired += 1;
        self.outputs.events.push_back(Event::SessionExpired { client_id: session.client_id.clone() });
        self.end_session(id);
    }
}
