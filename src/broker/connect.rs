//! The beginning and the end of a connection: CONNECT, take-over, and every way to leave.

use std::hash::BuildHasher;

use crate::clock::Instant;
use crate::codec::encode;
use crate::codec::packet::Connect;
use crate::hash::seeded;
use crate::topics::TopicName;

use super::close_reason::CloseReason;
use super::event::{Event, Limit, PacketKind};
use super::link::{ConnectionId, LinkState};
use super::session::SessionId;
use super::terms::Terms;
use super::will::Will;
use super::{Broker, deadlines::Deadline};

impl Broker {
    /// A CONNECT on a connection that had none.
    pub(super) fn connect(&mut self, now: Instant, id: ConnectionId, connect: &Connect<'_>) {
        let terms = Terms::of(connect, &self.options);
        match self.admit(now, id, connect, &terms) {
            Ok(admission) => self.welcome(now, id, admission, &terms),
            Err(reason) => self.refuse(now, id, reason),
        }
    }

    /// Finds or makes the session and attaches the connection to it.
    fn admit(
        &mut self,
        now: Instant,
        id: ConnectionId,
        connect: &Connect<'_>,
        terms: &Terms,
    ) -> Result<Admission, CloseReason> {
        let assigned;
        let client_id = if !connect.client_id.is_empty() {
            connect.client_id
        } else if terms.assigns_client_id {
            assigned = self.assign_client_id();
            &assigned
        } else {
            return Err(CloseReason::ClientIdRefused); // [MQTT-3.1.3-8]
        };
        let will = match &connect.will {
            Some(will) => {
                TopicName::parse(will.topic, self.options.topic_levels_max)
                    .map_err(CloseReason::WillTopic)?;
                Some(Box::new(Will::new(will, &self.messages)))
            }
            None => None,
        };
        self.take_over(now, client_id)?;
        let (session_id, session_present) = self.find_or_make_session(now, client_id, terms)?;
        self.sessions.mark_present(session_id);
        let session = self.sessions.find_mut(session_id).expect("just found or made");
        session.connection = Some(id);
        session.ends_with_connection = terms.ends_with_connection;
        session.expiry = terms.session_expiry;
        session.will = will;
        // Nothing was sent on this connection yet [MQTT-4.4.0-1].
        session.outgoing.sent_here = 0;
        if let Some(timer) = session.expiry_timer.take() {
            self.wheel.cancel(timer);
        }
        Ok(Admission { session_id, session_present })
    }

    /// Closes the connection that holds this client id now [MQTT-3.1.4-2], or checks that there is room for one
    /// more.
    fn take_over(&mut self, now: Instant, client_id: &str) -> Result<(), CloseReason> {
        let holder = self
            .sessions
            .find_by_client_id(client_id)
            .and_then(|session| self.sessions.find(session))
            .and_then(|session| session.connection);
        if let Some(old) = holder {
            self.outputs.metrics.takeovers += 1;
            self.close(now, old, CloseReason::TakenOver);
        } else if self.outputs.metrics.clients_connected >= u64::from(self.options.connections_max) {
            self.outputs.metrics.connections_refused += 1;
            if !self.connections_full_logged {
                self.connections_full_logged = true;
                let value = u64::from(self.options.connections_max);
                self.outputs.limit_reached(Limit::Connections, None, value);
            }
            return Err(CloseReason::TooManyConnections);
        }
        Ok(())
    }

    /// The session to go on with, and whether it was there before [MQTT-3.1.2-4] [MQTT-3.1.2-6].
    fn find_or_make_session(
        &mut self,
        now: Instant,
        client_id: &str,
        terms: &Terms,
    ) -> Result<(SessionId, bool), CloseReason> {
        if let Some(stored) = self.sessions.find_by_client_id(client_id) {
            if !terms.clean_start {
                return Ok((stored, true));
            }
            self.end_session(stored);
        }
        if self.sessions.len() >= self.options.sessions_max as usize {
            let Some(absent) = self.sessions.longest_absent() else {
                return Err(CloseReason::TooManySessions);
            };
            let client_id = self.sessions.find(absent).expect("listed as absent").client_id.clone();
            self.outputs.metrics.sessions_evicted += 1;
            self.outputs.events.push_back(Event::SessionEvicted { client_id });
            self.end_session(absent);
        }
        Ok((self.sessions.insert(client_id, now), false))
    }

    /// Says yes [MQTT-3.1.4-4], and sends what waited for this client.
    fn welcome(&mut self, now: Instant, id: ConnectionId, admission: Admission, terms: &Terms) {
        let Admission { session_id, session_present } = admission;
        let session = self.sessions.find(session_id).expect("just admitted");
        let link = self.links.find_mut(id).expect("its CONNECT is being handled");
        link.state = LinkState::Connected(session_id);
        link.protocol = terms.protocol;
        link.keep_alive_secs = terms.keep_alive_secs;
        self.outputs.metrics.clients_connected += 1;
        self.outputs.events.push_back(Event::Connected {
            connection: id,
            client_id: session.client_id.clone(),
            protocol: terms.protocol,
            clean_start: terms.clean_start,
            keep_alive_secs: terms.keep_alive_secs,
            session_present,
        });
        self.arm_link(now, id);
        // The first packet of all [MQTT-3.2.0-1].
        let session_present = session_present && terms.reports_session_present;
        self.reply(now, id, PacketKind::Connack, None, |bytes| encode::connack(bytes, session_present, 0));
        self.resend_releases(id, session_id);
        self.refill(session_id);
    }

    /// Says no, where the standard has a word for it, and closes [MQTT-3.2.2-5].
    pub(super) fn refuse(&mut self, now: Instant, id: ConnectionId, reason: CloseReason) {
        if let Some(code) = reason.connack().and_then(crate::codec::ReasonCode::connect_return_code) {
            // Session present is 0 with every refusal [MQTT-3.2.2-4].
            self.reply(now, id, PacketKind::Connack, None, |bytes| encode::connack(bytes, false, code));
        }
        self.close(now, id, reason);
    }

    /// Ends a connection. Its outbox is flushed once more and then forgotten.
    pub(super) fn close(&mut self, now: Instant, id: ConnectionId, reason: CloseReason) {
        let Some(link) = self.links.find_mut(id) else { return };
        if link.state == LinkState::Closing {
            return;
        }
        let session_id = link.session();
        link.state = LinkState::Closing;
        if let Some((timer, _)) = link.timer.take() {
            self.wheel.cancel(timer);
        }
        let client_id = session_id
            .and_then(|session| self.sessions.find(session))
            .map(|session| session.client_id.clone());
        let outputs = &mut self.outputs;
        outputs.metrics.closed_by_limit += u64::from(reason.is_limit());
        outputs.metrics.closed_by_violation += u64::from(reason.is_violation());
        outputs.closing.push_back(id);
        outputs.events.push_back(Event::Closed {
            connection: id,
            client_id,
            reason,
            duration: now.since(link.opened_at),
            packets_received: link.packets_received,
            packets_sent: link.packets_sent,
        });
        if let Some(session_id) = session_id {
            self.detach(now, session_id, reason);
        }
    }

    /// What becomes of the session when its connection ends.
    fn detach(&mut self, now: Instant, id: SessionId, reason: CloseReason) {
        let session = self.sessions.find_mut(id).expect("a connected link has a session");
        session.connection = None;
        let will = session.will.take();
        self.outputs.metrics.clients_connected -= 1;
        self.connections_full_logged = false;
        if session.ends_with_connection {
            self.end_session(id);
        } else {
            if let Some(expiry) = session.expiry {
                session.expiry_timer = Some(self.wheel.insert(now + expiry, Deadline::Session(id)));
            }
            self.sessions.mark_absent(id, now);
        }
        // After the session is settled: it may be among the receivers of its own will.
        if let Some(will) = will
            && !reason.is_disconnect()
        {
            self.publish_will(&will); // [MQTT-3.1.2-8]
        }
    }

    /// A client id that nobody has and nobody can guess: 23 letters and digits.
    fn assign_client_id(&mut self) -> String {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let seed = seeded(self.options.seed);
        loop {
            self.client_ids_assigned += 1;
            let mut client_id = String::from("auto");
            for half in 0..2_u8 {
                let mut rest = seed.hash_one((self.client_ids_assigned, half, "client id"));
                for _ in 0..if half == 0 { 10 } else { 9 } {
                    client_id.push(char::from(DIGITS[(rest % 62) as usize]));
                    rest /= 62;
                }
            }
            if self.sessions.find_by_client_id(&client_id).is_none() {
                return client_id;
            }
        }
    }
}

/// A session that a connection was attached to.
struct Admission {
    session_id: SessionId,
    session_present: bool,
}
