//! From the bytes of a peer to its packets.
//!
//! Who serves a connection asks for its terms, and then has one packet after the other taken, as long as the core wants
//! input. So bytes mean the same whoever brings them.
//!
//! Deliberately not here: when a peer is read (`wants_input`), what is kept of an unfinished packet (`codec::Inbox`), and
//! what a packet does.

use crate::clock::Instant;
use crate::codec::{Frame, Inbox, Protocol, decode};

use super::Broker;
use super::link::ConnectionId;
use super::options::CONNECT_PACKET_SIZE_MAX;

/// How to read the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadingTerms {
    /// What it speaks.
    pub protocol: Protocol,
    /// The largest packet that it may send, fixed header included, in bytes.
    pub packet_size_max: u32,
}

impl Broker {
    /// How to read the bytes of this connection from now on. A CONNECT changes it, and so does a verdict.
    pub fn reading_terms(&self, id: ConnectionId) -> ReadingTerms {
        let packet_size_max = self.options.packet_size_max;
        match self.links.find(id) {
            Some(link) if link.session().is_some() => {
                ReadingTerms { protocol: link.protocol, packet_size_max }
            }
            found => ReadingTerms {
                protocol: found.map(|link| link.protocol).unwrap_or_default(),
                packet_size_max: CONNECT_PACKET_SIZE_MAX.min(packet_size_max),
            },
        }
    }

    /// Takes the next packet of a connection: from what its inbox has kept, then from `input`, of which the bytes used are
    /// cut off. False if there is no whole packet, or none that can be understood; then nothing more is to be taken. The
    /// terms are those of now, and are kept up to date.
    #[inline]
    pub fn handle_next(
        &mut self,
        now: Instant,
        id: ConnectionId,
        terms: &mut ReadingTerms,
        inbox: &mut Inbox,
        input: &mut &[u8],
    ) -> bool {
        let is_kept = !inbox.is_empty();
        let frame = match inbox.next(input, terms.protocol, terms.packet_size_max) {
            Ok(Some(frame)) => frame,
            Ok(None) => return false,
            Err(error) => {
                self.handle_malformed(now, id, error, None);
                return false;
            }
        };
        if is_kept && frame.body.len() >= self.options.long_packet_bytes_min {
            let header = frame.header;
            if header.is_request() {
                let frame = inbox.give_away(header);
                self.handle_long_request(now, id, frame, terms.protocol);
                return true;
            }
            if header.is_publish() {
                let frame = inbox.give_away(header);
                return self.handle_long_publish(now, id, frame, terms.protocol);
            }
        }
        let is_connect = frame.header.packet_type() == 1;
        let is_taken = self.handle_frame(now, id, frame, terms.protocol);
        if is_connect {
            *terms = self.reading_terms(id);
        }
        is_taken
    }

    /// What a connection that has ended has kept is not wanted any more. Its memory, if it is large, is given back to the system
    /// little by little.
    pub fn leave_unread(&mut self, inbox: Inbox) {
        self.messages.leave(inbox.into_memory());
    }

    /// Decodes a packet, and takes it. False if it is malformed.
    #[inline]
    pub(super) fn handle_frame(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: Frame<'_>,
        protocol: Protocol,
    ) -> bool {
        match decode::decode(frame, protocol) {
            Ok(packet) => {
                self.handle_packet(now, id, packet);
                true
            }
            Err(error) => {
                self.handle_malformed(now, id, error, frame.claimed_protocol());
                false
            }
        }
    }
}
