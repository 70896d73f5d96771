//! What a crash does to the truth: it goes back to what was stored.

use broker::broker::{CloseReason, ConnectionId};
use broker::clock::Instant;
use broker::codec::QoS;

use super::Model;
use super::groups::share_filter;
use crate::client::Heard;

impl Model {
    /// A message was taken with this payload.
    pub(crate) fn has_taken(&self, payload: &str) -> bool {
        self.published.contains(payload)
    }

    /// Whether a message has yet to come to somebody who will be there after a crash that leaves `stored`, or is kept for
    /// whoever comes.
    pub(crate) fn is_awaited(&self, payload: &str, stored: &Self) -> bool {
        let by_session = self.sessions.iter().any(|(client_id, session)| {
            let survivor = stored.sessions.get(client_id);
            survivor.is_some_and(|survivor| survivor.incarnation == session.incarnation && survivor.is_stored)
                && session.is_stored
                && session.awaits(payload, self.now)
        });
        let is_retained = self.retained().any(|kept| kept.payload == payload && kept.qos > QoS::AtMostOnce);
        by_session || is_retained
    }

    /// The model of what was stored takes over from a later one: what is only counted goes on.
    pub(crate) fn go_back(&mut self, later: Self, now: Instant) {
        self.now = now;
        self.coverage = later.coverage;
        self.incarnations = later.incarnations;
        self.lost = later.lost;
        self.forget_unstored_wills();
    }

    /// There will be groups and crashes.
    pub(crate) fn confuse(&mut self) {
        self.groups.is_confused = true;
    }

    /// Whether there are both.
    pub(crate) fn is_confused(&self) -> bool {
        self.groups.is_confused
    }

    /// Sessions that were to end with their connections are gone, without a word.
    pub(crate) fn end_unstored(&mut self) {
        let gone: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| !session.is_stored)
            .map(|(client_id, _)| client_id.clone())
            .collect();
        for client_id in gone {
            let session = self.sessions.remove(&client_id).expect("just found");
            if let Some(connection) = session.connection {
                self.groups.closed(connection, self.now);
            }
            self.groups.excuse(&client_id, session.incarnation, session.unheard());
            for text in session.subscriptions.keys().filter(|text| share_filter(text).is_some()) {
                self.groups.leave(text, &client_id, self.now);
            }
        }
    }

    /// All connections have dropped.
    pub(crate) fn drop_connections(&mut self) {
        let mut connected: Vec<(usize, String, ConnectionId)> = self
            .sessions
            .iter()
            .filter_map(|(client_id, session)| {
                Some((session.incarnation, client_id.clone(), session.connection?))
            })
            .collect();
        // The oldest session first, whose will comes first.
        connected.sort();
        for (_, client_id, connection) in connected {
            self.groups.closed(connection, self.now);
            self.coverage.see("session back after a crash");
            self.disconnected(&client_id, CloseReason::ConnectionLost);
        }
        for session in self.sessions.values_mut() {
            session.ask_again();
        }
        self.links.clear();
    }

    /// Something was heard after this was stored, and before anything else was: it must not say more than this.
    pub(crate) fn check_word(&self, id: ConnectionId, client_id: &str, heard: &Heard) {
        let link = self.links.get(&id);
        if link.is_some_and(|link| link.replies.contains(heard)) {
            return; // It answers what was taken before.
        }
        // Of a session that is not there any more nobody can say much: its client hears nothing of it again.
        let session = self.sessions.get(client_id).filter(|session| session.is_stored);
        if let Heard::Connack { session_present: true, .. } = heard {
            assert!(session.is_some(), "{client_id} was told that its session is there");
        }
        let Some(session) = session.filter(|session| session.connection == Some(id)) else { return };
        match heard {
            Heard::Publish(delivery) if delivery.qos == QoS::ExactlyOnce => {
                let packet_id = delivery.packet_id.expect("QoS 2 has one");
                let is_known = session.flights.contains_key(&packet_id);
                assert!(is_known, "{client_id} got {delivery:?}, and nobody will know that it did");
            }
            Heard::Pubrel(packet_id, _) => {
                let flight = session.flights.get(packet_id);
                let is_known = flight.is_none_or(|flight| flight.released);
                assert!(is_known, "{client_id} got PUBREL {packet_id}, and nobody will know");
            }
            Heard::Pubcomp(packet_id, _) => {
                let is_forgotten = !session.receipts.contains(packet_id);
                assert!(is_forgotten, "{client_id} got PUBCOMP {packet_id}, which is still in use");
            }
            _ => {}
        }
    }
}
