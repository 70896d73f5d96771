//! A PUBLISH so large that to copy it would take longer than a turn has time for.
//!
//! It did not come in one read, so it has memory of its own, and that becomes the message: its payload stays where it is.
//! For the rest of the core it is a PUBLISH like any other; where that makes a message of it, the one prepared here is
//! taken.
//!
//! Deliberately not here: what a PUBLISH does (see `receive`), and how a message lies in its memory (see `message`). One
//! whose topic is but an alias has no room for the topic, and one with very many properties is not worth it: they are
//! copied.

use crate::clock::Instant;
use crate::codec::packet::Publish;
use crate::codec::{OwnedFrame, Packet, Properties, Protocol, decode};

use super::Broker;
use super::link::ConnectionId;
use super::message::Message;
use super::receive::forwarded;

/// More than that before the payload is not brought to another place.
const HEAD_BYTES_MAX: usize = 64 * 1024;

impl Broker {
    /// A large PUBLISH came. False if it is malformed.
    pub(super) fn handle_long_publish(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: OwnedFrame,
        protocol: Protocol,
    ) -> bool {
        let is_of_client = self.links.find(id).is_some_and(|link| link.session().is_some());
        let publish = match decode::decode(frame.as_frame(), protocol) {
            Ok(Packet::Publish(publish)) if is_of_client => publish,
            _ => return self.handle_frame(now, id, frame.as_frame(), protocol),
        };
        let Publish { dup, qos, retain, packet_id, .. } = publish;
        let payload_length = publish.payload.len();
        if frame.as_frame().body.len() - payload_length > HEAD_BYTES_MAX {
            self.handle_packet(now, id, Packet::Publish(publish));
            return true;
        }
        let topic = publish.topic.to_owned();
        let properties = publish.properties.as_bytes().to_vec();
        let properties = Properties::checked_before(&properties);
        let mut passed_on = Vec::new();
        forwarded(properties, &mut passed_on);
        let passed_on = Properties::checked_before(&passed_on);
        let message = match Message::in_place(frame, &topic, passed_on, payload_length) {
            Ok(message) => message,
            Err(frame) => return self.handle_frame(now, id, frame.as_frame(), protocol),
        };
        self.messages.prepare(Some(message.clone()));
        let payload = message.payload();
        let publish = Publish { dup, qos, retain, topic: &topic, packet_id, properties, payload };
        self.handle_packet(now, id, Packet::Publish(publish));
        self.messages.prepare(None);
        true
    }
}
