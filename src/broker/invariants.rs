//! A full sweep over the state of the core, asserting what must always hold. Far too slow for a running broker: the
//! simulator and the fuzz targets call it between inputs.

use std::collections::BTreeSet;

use super::Broker;
use super::deliver::has_room;
use super::link::LinkState;
use super::session::Session;

impl Broker {
    /// Asserts every invariant of the core.
    ///
    /// # Panics
    ///
    /// If one does not hold: the core has a bug.
    pub fn check_invariants(&self) {
        self.subscriptions.check_invariants();
        let listing = (self.subscriptions.is_listing(), self.shared.is_listing());
        let wanted = (self.is_listing_sessions(), self.is_listing_groups());
        assert_eq!(listing, wanted, "a list is made for a message");
        self.check_links();
        self.check_sessions();
        self.outputs.journal.check_invariants();
        let metrics = self.metrics();
        let outboxes: usize = self.links.iter().map(|link| link.outbox.copied_pending()).sum();
        assert_eq!(metrics.outbox_bytes, outboxes as u64, "the gauge of outgoing bytes");
        assert!(self.retained.bytes() <= self.messages.bytes(), "retained messages are messages");
    }

    fn check_links(&self) {
        self.put_off.check_invariants();
        let mut connected = 0;
        for link in self.links.iter() {
            if let LinkState::Connected(session) = link.state {
                connected += 1;
                let session = self.sessions.find(session).expect("a connected link has a session");
                assert_eq!(session.connection, Some(link.id), "link and session know each other");
            }
            if let Some(extras) = link.extras.as_ref().filter(|_| link.session().is_some()) {
                let goes_on = self.long_requests.contains(&link.id);
                assert!(extras.long_request.is_none() || goes_on, "a long request goes on");
                let goes_on = self.long_publishes.contains(&link.id);
                assert!(extras.long_publish.is_none() || goes_on, "a long PUBLISH goes on");
            }
            assert!(
                !link.awaits_fan_out || self.is_behind_fan_out(link.id),
                "who waits for a message to many is read again"
            );
            let timed = matches!(link.state, LinkState::AwaitingConnect | LinkState::Authenticating)
                || (link.session().is_some() && (link.keep_alive_secs > 0 || link.blocked));
            assert!(!timed || link.timer.is_some(), "a link with a deadline has a timer");
            assert!(link.state != LinkState::Closing || link.timer.is_none(), "an ended link has no timer");
        }
        assert_eq!(self.metrics().clients_connected, connected, "the gauge of connected clients");
    }

    fn check_sessions(&self) {
        let (mut queued, mut in_flight, mut absent, mut subscriptions) = (0, 0, 0, 0);
        for session in self.sessions.iter() {
            let outgoing = &session.outgoing;
            let mut ids = BTreeSet::new();
            assert!(
                outgoing.used_packet_ids().all(|id| ids.insert(id)),
                "a packet identifier has one use [MQTT-2.3.1-4]"
            );
            outgoing.check_packet_ids();
            assert!(ids.len() <= usize::from(self.options.in_flight_max), "the window is kept");
            if let Some(link) = session.connection.and_then(|id| self.links.find(id)) {
                let kept = outgoing.sent_here <= u32::from(link.window);
                assert!(kept, "the client's receive maximum is kept [MQTT5-3.3.4-9]");
            }
            assert!(outgoing.sent_here as usize <= outgoing.sent.len());
            outgoing.queue.check_invariants();
            assert!(outgoing.queue.len() <= self.options.queued_messages_max as usize);
            session
                .streams
                .check_invariants(|filter| self.subscriptions.contains(session.id.subscriber(), filter));
            let goes_on = !session.are_streams_behind || self.streams_behind.contains(&session.id);
            assert!(goes_on, "what a message to many keeps back goes on behind it");
            queued += outgoing.queue.len() as u64;
            in_flight += outgoing.in_flight() as u64;
            subscriptions += self.subscriptions.subscription_count(session.id.subscriber()) as usize;
            match session.connection {
                Some(connection) => assert!(
                    self.links.find(connection).is_some_and(|link| link.session() == Some(session.id)),
                    "session and link know each other"
                ),
                None => {
                    absent += 1;
                    assert!(!session.ends_with_connection, "such a session ended with its connection");
                    let will_waits = session.will.as_ref().is_some_and(|will| will.due_at.is_some());
                    assert_eq!(session.will.is_some(), will_waits, "only a delay keeps a will");
                    assert_eq!(session.expiry.is_some() || will_waits, session.timer.is_some());
                }
            }
        }
        let ended = self.remains.iter().filter(|remains| remains.session.is_some()).count();
        assert_eq!(self.sessions.ended_count(), ended + self.slots_to_free.len(), "slots are freed");
        for remains in self.remains.iter() {
            if let Some(session) = remains.session {
                assert!(self.sessions.is_ended(session.subscriber()));
                subscriptions += self.subscriptions.subscription_count(session.subscriber()) as usize;
            }
        }
        let is_known_full = |id| {
            let link = self.links.find(id).expect("a session knows a connection that is there");
            let is_full = link.outbox.pending() > self.options.outbox_soft_mark();
            is_full && link.is_found_full && link.wants_refill
        };
        queued += self.shared.check_invariants(&self.sessions, &self.remains, is_known_full);
        let takes_nothing = |session: &Session| {
            let link = session.connection.and_then(|id| self.links.find(id));
            link.is_none_or(|link| {
                // At the latest when its SUBSCRIBE has taken effect.
                let subscribes = self.long_requests.contains(&link.id);
                let drains = link.wants_refill && !link.outbox.is_empty();
                let will_ask = session.refill_scheduled || drains || subscribes;
                will_ask || !has_room(session, link, &self.options)
            })
        };
        if !self.is_draining {
            self.shared.check_waiting(&self.sessions, takes_nothing);
        }
        assert_eq!(self.metrics().queued_messages, queued, "the gauge of queued messages");
        assert_eq!(self.metrics().in_flight_messages, in_flight, "the gauge of messages in flight");
        assert_eq!(self.sessions.absent_count(), absent, "the order of leaving");
        assert_eq!(self.subscriptions.len(), subscriptions, "every subscription has a session");
        assert!(self.sessions.len() <= self.options.sessions_max as usize);
    }

    /// Timers that are armed: with no connection, no stored session and nothing retained that can expire only the rhythm of
    /// `$SYS` is left.
    pub fn timers_armed(&self) -> usize {
        self.wheel.len()
    }
}
