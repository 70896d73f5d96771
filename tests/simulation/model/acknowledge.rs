//! Acknowledgements: what they end, and how they are answered.

use broker::broker::ConnectionId;
use broker::codec::packet::Ack;
use broker::codec::{PacketId, QoS, ReasonCode};

use super::groups::share_filter;
use super::link::HeldReply;
use super::{Model, matches};
use crate::client::Heard;

impl Model {
    pub(crate) fn pubrel(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let (link, session) = self.link_and_session(connection);
        let existed = session.receipts.remove(&packet_id);
        let reason = link.found(existed);
        // [MQTT5-4.3.3-11] [MQTT5-3.7.2-1] [B-050]
        link.replies.push_back(Heard::Pubcomp(packet_id, reason));
        self.coverage.see_if("identifier not found", reason != ReasonCode::Success);
    }

    /// A PUBLISH is finally acknowledged.
    pub(super) fn complete(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let (link, session) = self.link_and_session(connection);
        link.under_way.remove(&packet_id);
        session.released.retain(|released| *released != packet_id);
        if let Some(holder) = session.flights.remove(&packet_id).and_then(|flight| flight.holder) {
            self.groups.done(holder);
        }
    }

    /// A PUBACK or PUBCOMP is about to be taken by the core.
    pub(crate) fn puback_or_pubcomp(&mut self, connection: ConnectionId, ack: &Ack<'_>) {
        let (link, _) = self.link_and_session(connection);
        let was_full = link.under_way.len() == usize::from(link.window);
        let is_refused = ack.reason.is_error() && ack.reason != ReasonCode::PacketIdentifierNotFound;
        self.coverage.see_if("delivery refused at QoS 1", is_refused);
        self.coverage.see_if("delivery refused with a full window", is_refused && was_full);
        self.complete(connection, ack.packet_id); // [MQTT5-4.4.0-2] [B-052]
    }

    /// A PUBREC is about to be taken by the core.
    pub(crate) fn pubrec(&mut self, connection: ConnectionId, ack: &Ack<'_>) {
        let packet_id = ack.packet_id;
        let (link, session) = self.link_and_session(connection);
        let flight = session.flights.get_mut(&packet_id);
        let reason = link.found(flight.is_some());
        let is_released = flight.as_ref().is_some_and(|flight| flight.released);
        if ack.reason.is_error() {
            let was_full = link.under_way.len() == usize::from(link.window);
            if !is_released {
                self.complete(connection, packet_id); // [MQTT5-4.3.3-4] [MQTT5-4.4.0-2] [B-054]
            }
            self.coverage.see("delivery refused at QoS 2");
            self.coverage.see_if("delivery refused with a full window", was_full);
            return;
        }
        // [MQTT5-4.3.3-4] [MQTT5-3.6.2-1] [B-051]
        link.replies.push_back(Heard::Pubrel(packet_id, reason));
        if let Some(flight) = flight.filter(|_| !is_released) {
            flight.released = true;
            session.released.push(packet_id);
            if let Some(holder) = flight.holder {
                self.groups.done(holder);
            }
        }
        self.coverage.see_if("identifier not found", reason != ReasonCode::Success);
    }

    /// A PUBREL was sent. If it answers no PUBREC, then in the place of a PUBLISH that would have to be repeated and is too
    /// large for the client as it is now: that counts as completed, and the client may have it from an earlier connection
    /// [MQTT5-3.1.2-25].
    pub(super) fn given_up(&mut self, connection: ConnectionId, packet_id: PacketId) {
        let (link, session) = self.link_and_session(connection);
        let largest = *session.sizes.last().expect("it is connected");
        let Some(flight) = session.flights.get_mut(&packet_id).filter(|flight| !flight.released) else {
            return;
        };
        assert!(!link.under_way.contains(&packet_id), "PUBREL before PUBREC [MQTT5-4.3.3-4]");
        let is_too_large = match &flight.heard {
            Some(heard) if heard.subscription_ids.is_some() && heard.qos == QoS::ExactlyOnce => {
                heard.is_larger_than(largest)
            }
            // Nobody knows how large it is with its identifiers, or it is another message, and what was heard under its
            // identifier went back to a group.
            _ => largest < u32::MAX,
        };
        assert!(is_too_large, "{}: {packet_id} is given up: {flight:?}", link.client_id);
        flight.released = true;
        if flight.heard.as_ref().is_some_and(|heard| heard.qos < QoS::ExactlyOnce) {
            (flight.heard, flight.holder) = (None, None);
        }
        session.released.push(packet_id);
        link.late_replies.push(Heard::Pubrel(packet_id, ReasonCode::Success));
        if let Some(holder) = flight.holder {
            self.groups.done(holder);
        }
        self.coverage.see("given up at QoS 2 for its size");
    }

    /// A subscription has ended.
    pub(super) fn receiver_is_lost(&mut self, filter: &str) {
        let filter = share_filter(filter).unwrap_or(filter);
        for held in self.links.values_mut().filter_map(|link| link.held_reply.as_mut()) {
            held.has_lost_receiver |= matches(filter, &held.topic);
        }
    }

    /// The answer to what was taken just now will not come.
    pub(crate) fn forget_reply(&mut self, connection: ConnectionId) {
        self.links.get_mut(&connection).and_then(|link| link.replies.pop_back()).expect("there is one");
    }

    /// The answer to the request that was taken just now comes when it is said to be sent.
    pub(crate) fn hold_request_reply(&mut self, connection: ConnectionId) {
        let link = self.links.get_mut(&connection).expect("it is connected");
        link.request_reply = Some(link.replies.pop_back().expect("a request is answered"));
    }

    pub(crate) fn release_request_reply(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection) else { return };
        link.late_replies.extend(link.request_reply.take());
    }

    pub(crate) fn release_reply(&mut self, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&connection).filter(|link| link.is_open) else { return };
        let Some(HeldReply { reply, if_unmatched, has_lost_receiver, .. }) = link.held_reply.take() else {
            return;
        };
        if has_lost_receiver {
            link.alternatives.push((reply.clone(), if_unmatched));
        }
        link.replies.push_back(reply);
    }

    /// What was sent of its own accord comes behind the answer to the packet that was its occasion.
    pub(crate) fn append_late_replies(&mut self) {
        for link in self.links.values_mut().filter(|link| link.is_open) {
            link.replies.extend(link.late_replies.drain(..));
        }
    }
}
