//! The answers of clients to our PUBLISH packets: the sending half of QoS 1 and 2.
//!
//! ```text
//!  QoS 1:  sent ──PUBACK──> done
//!  QoS 2:  sent ──PUBREC──> released (PUBREL sent) ──PUBCOMP──> done
//! ```
//!
//! An answer for an identifier that nobody uses is harmless: state may have been lost on the way. An answer that does
//! not fit the state of its message is a violation, because acting on it would lose the message. An answer that says no
//! ends the exchange too: the message is not tried again [MQTT5-4.4.0-2] [MQTT5-4.8.2-6].

use crate::codec::packet::Ack;
use crate::codec::{PacketId, QoS, ReasonCode, encode};

use super::Broker;
use super::close_reason::CloseReason;
use super::event::PacketKind;
use super::link::ConnectionId;
use super::session::{Outgoing, Released, Sent, Session, SessionId};
use super::{Kind, Lsn, Outputs};

/// Where in the life of a delivery an identifier is.
enum State {
    /// PUBLISH sent at this QoS, in this place of the list.
    Sent(usize, QoS),
    /// PUBREL sent.
    Released,
    Free,
}

impl Outgoing {
    fn state(&mut self, packet_id: PacketId) -> State {
        if let Some(place) = self.sent.find(packet_id, self.sent_here)
            && let Some(sent) = self.sent.at(place)
        {
            State::Sent(place, sent.delivery.qos)
        } else if self.released.find(packet_id, 0).is_some() {
            State::Released
        } else {
            State::Free
        }
    }

    fn remove_sent(&mut self, place: usize) -> Sent {
        self.sent.remove(place, &mut self.sent_here).expect("found before")
    }

    /// PUBREL is about to be sent: from here on only that is repeated. `session` is what the store knows the session as.
    /// Its record.
    pub(super) fn release(&mut self, packet_id: PacketId, session: Lsn, outputs: &mut Outputs) -> Lsn {
        let record =
            if session.is_some() { outputs.journal.record_release(session, packet_id) } else { Lsn::NONE };
        self.released.push_back(Released { packet_id, record }, false);
        record
    }
}

impl Broker {
    /// QoS 1 is complete [MQTT-4.3.2-1].
    pub(super) fn puback(&mut self, id: ConnectionId, session: SessionId, packet_id: PacketId) {
        let outgoing = &mut self.session_mut(session).outgoing;
        match outgoing.state(packet_id) {
            State::Sent(at, QoS::AtLeastOnce) => {
                let sent = outgoing.remove_sent(at);
                outgoing.free_packet_id(packet_id);
                self.outputs.forget(&sent.delivery);
                sent.delivery.message.end();
                self.complete(session);
            }
            State::Free => {}
            State::Sent(..) | State::Released => self.close(id, CloseReason::WrongAck),
        }
    }

    /// The client has the QoS 2 message: from here on only PUBREL is repeated [MQTT-4.3.3-1]. Or it does not want it.
    pub(super) fn pubrec(&mut self, id: ConnectionId, session: SessionId, ack: &Ack<'_>) {
        let packet_id = ack.packet_id;
        let Self { sessions, outputs, .. } = self;
        let Some(Session { name, outgoing, .. }) = sessions.find_mut(session) else { return };
        let mut reason = ReasonCode::Success;
        match outgoing.state(packet_id) {
            State::Sent(at, QoS::ExactlyOnce) => {
                let sent = outgoing.remove_sent(at);
                if ack.reason.is_error() {
                    outgoing.free_packet_id(packet_id);
                    outputs.forget(&sent.delivery);
                    sent.delivery.message.end();
                    return self.complete(session); // [MQTT5-4.3.3-4]
                }
                outgoing.release(packet_id, *name, outputs);
                outputs.forget(&sent.delivery);
                sent.delivery.message.end();
            }
            State::Sent(..) => return self.close(id, CloseReason::WrongAck),
            // Said before, or to a state that we have lost: the client has done with it already.
            State::Released | State::Free if ack.reason.is_error() => return,
            // Repeated, or forgotten by us: either way PUBREL is what moves the client on.
            State::Released => {}
            State::Free => reason = self.not_found(id),
        }
        self.reply(id, PacketKind::Pubrel, Some(packet_id), |bytes| {
            encode::pubrel(bytes, packet_id, reason);
        });
    }

    /// What a client is told of an identifier that nobody uses: before 5.0, that all is well.
    pub(super) fn not_found(&self, id: ConnectionId) -> ReasonCode {
        if self.has_reasons(id) { ReasonCode::PacketIdentifierNotFound } else { ReasonCode::Success }
    }

    /// QoS 2 is complete [MQTT-4.3.3-1].
    pub(super) fn pubcomp(&mut self, id: ConnectionId, session: SessionId, packet_id: PacketId) {
        let outgoing = &mut self.session_mut(session).outgoing;
        if let Some(place) = outgoing.released.find(packet_id, 0) {
            outgoing.free_packet_id(packet_id);
            if let Some(Released { record, .. }) = outgoing.released.remove(place, &mut 0)
                && record.is_some()
            {
                self.outputs.journal.remove(Kind::Release, record);
            }
            self.complete(session);
        } else if outgoing.sent.find(packet_id, outgoing.sent_here).is_some() {
            self.close(id, CloseReason::WrongAck);
        }
    }

    /// A place in the window is free.
    fn complete(&mut self, id: SessionId) {
        self.outputs.metrics.in_flight_messages -= 1;
        let session = self.session(id);
        let outgoing = &session.outgoing;
        if !outgoing.queue.is_empty()
            || !session.streams.is_empty()
            || !session.memberships.is_empty()
            || (outgoing.sent_here as usize) < outgoing.sent.len()
        {
            self.refill_for_packet(id);
        }
    }
}
