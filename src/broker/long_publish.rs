//! A PUBLISH so large that to copy it would take longer than a turn has time for.
//!
//! It did not come in one read, so it has memory of its own, and that becomes the message: its payload stays where it is.
//! For the rest of the core it is a PUBLISH like any other; where that makes a message of it, the one prepared here is
//! taken.
//!
//! If it says that its payload is text, and that is to be checked, it is looked at a turn's worth at a time. To its sender it is as
//! if it were still in the socket: it is not read meanwhile, and if it goes, the PUBLISH was never sent. Nobody else waits.
//!
//! Invariant: a link with one is in the list of those to go on with, and is not read.
//!
//! Deliberately not here: what a PUBLISH does (see `receive`), and how a message lies in its memory (see `message`).

use crate::clock::Instant;
use crate::codec::packet::Publish;
use crate::codec::{OwnedFrame, Packet, Properties, Property, Protocol, decode};
use crate::metrics::DropReason;

use super::Broker;
use super::event::{FanOutStep, trace_received};
use super::link::{ConnectionId, Link};
use super::message::Message;
use super::receive::{forwarded, says_text};

/// So much text is a step.
const STEP_BYTES: usize = 128;

/// One whose payload is being looked at.
#[derive(Debug)]
pub(super) struct LongPublish {
    frame: OwnedFrame,
    text: LongText,
}

/// What was found out about bytes at the end of a packet.
#[derive(Debug)]
struct LongText {
    length: usize,
    /// So many of them are text.
    checked: usize,
}

impl LongText {
    /// Looks at as much as there are steps for. `None` if there is more.
    fn look(&mut self, bytes: &[u8], steps: &mut usize) -> Option<bool> {
        let rest = &bytes[bytes.len() - self.length + self.checked..];
        let (slice, is_last) = match rest.get(..*steps * STEP_BYTES) {
            Some(slice) if slice.len() < rest.len() => (slice, false),
            _ => (rest, true),
        };
        *steps -= slice.len().div_ceil(STEP_BYTES);
        self.checked += slice.len();
        match std::str::from_utf8(slice) {
            Ok(_) => is_last.then_some(true),
            Err(error) if error.error_len().is_none() && !is_last => {
                // The slice ends amid a character.
                self.checked -= slice.len() - error.valid_up_to();
                None
            }
            Err(_) => Some(false),
        }
    }
}

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
        self.begin_packet(now, id, || trace_received(id, &Packet::Publish(publish)));
        if self.options.check_payload_format && says_text(publish.properties) {
            let text = LongText { length: publish.payload.len(), checked: 0 };
            self.look_at_text(id, LongPublish { frame, text }, &mut { self.options.steps_per_turn });
        } else {
            self.take_long_publish(id, frame, None);
        }
        self.await_store_if_behind(id);
        true
    }

    /// Goes on with the first ones, as far as one turn has time.
    #[cold]
    #[inline(never)]
    pub(super) fn continue_long_publishes(&mut self) {
        let mut steps = self.options.steps_per_turn;
        while steps > 0
            && let Some(id) = self.long_publishes.pop_front()
        {
            let Some(link) = self.links.find_mut(id).filter(|link| link.session().is_some()) else {
                continue;
            };
            let Some(publish) = link.extras_mut().long_publish.take() else { continue };
            self.outputs.journal.begin_input(Some(id));
            self.look_at_text(id, *publish, &mut steps);
            self.await_store_if_behind(id);
            self.outputs.journal.begin_input(None);
        }
    }

    /// Takes the PUBLISH if all of its payload has been looked at, or puts it off.
    fn look_at_text(&mut self, id: ConnectionId, mut publish: LongPublish, steps: &mut usize) {
        let is_first = publish.text.checked == 0;
        let verdict = publish.text.look(publish.frame.as_frame().body, steps);
        if verdict.is_some() {
            self.take_long_publish(id, publish.frame, verdict);
            if !is_first {
                self.resume_after_long_publish(id);
            }
            return;
        }
        if is_first {
            self.trace_fan_out(id, FanOutStep::LookedAt);
        }
        if let Some(link) = self.links.find_mut(id) {
            link.extras_mut().long_publish = Some(Box::new(publish));
            self.long_publishes.push_back(id);
        }
    }

    /// Its PUBLISH has been looked at: reads the sender again, if it is still there and has nothing else to wait for.
    fn resume_after_long_publish(&mut self, id: ConnectionId) {
        let Some(link) = self.links.find_mut(id).filter(|link| link.session().is_some()) else { return };
        // Its packets waited in the socket for our sake.
        link.last_received = self.now;
        if !link.awaits_fan_out {
            self.outputs.resumed.push_back(id);
        }
        if !self.is_put_off(id) {
            self.trace_fan_out(id, FanOutStep::Taken);
        }
    }

    /// Takes a PUBLISH, which was decoded before, in the memory that it came in.
    fn take_long_publish(&mut self, id: ConnectionId, frame: OwnedFrame, is_text: Option<bool>) {
        let Some(link) = self.links.find(id) else { return };
        let Some(session) = link.session() else { return };
        let Ok(Packet::Publish(publish)) = decode::decode(frame.as_frame(), link.protocol) else { return };
        let Publish { dup, qos, retain, packet_id, .. } = publish;
        let payload_length = publish.payload.len();
        let (topic, alias) = (publish.topic.to_owned(), alias_of(link, &publish).map(str::to_owned));
        let properties = publish.properties.as_bytes().to_vec();
        let properties = Properties::checked_before(&properties);
        let mut passed_on = Vec::new();
        forwarded(properties, &mut passed_on);
        let passed_on = Properties::checked_before(&passed_on);
        let topic_name = alias.as_ref().unwrap_or(&topic);
        let message = Message::in_place(frame, topic_name, passed_on, payload_length, is_text);
        self.messages.prepare(Some(message.clone()));
        let payload = message.payload();
        let publish = Publish { dup, qos, retain, topic: &topic, packet_id, properties, payload };
        self.publish(id, session, &publish);
        self.messages.prepare(None);
    }

    /// The connection ends: what it has yet to have taken is as good as never sent.
    pub(super) fn forget_long_publish(&mut self, ended: ConnectionId) {
        let Some(extras) = self.links.find_mut(ended).and_then(|link| link.extras.as_mut()) else { return };
        let Some(publish) = extras.long_publish.take() else { return };
        // At QoS 0 nobody will send it again.
        if publish.frame.as_frame().header.flags() & 0x06 == 0 {
            self.outputs.metrics.drop_message(DropReason::SessionEnded);
        }
    }
}

/// The topic that an alias stands for, if it does.
fn alias_of<'a>(link: &'a Link, publish: &Publish<'_>) -> Option<&'a str> {
    let aliases = &link.extras.as_ref()?.received_aliases;
    let mut properties = publish.properties.iter().filter(|_| publish.topic.is_empty());
    properties.find_map(|property| match property {
        Property::TopicAlias(alias) => aliases.find(alias),
        _ => None,
    })
}
