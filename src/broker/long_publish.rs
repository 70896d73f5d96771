//! A PUBLISH so large that to copy it would take longer than a turn has time for.
//!
//! It did not come in one read, so it has memory of its own, and that becomes the message: its payload stays where it is.
//! For the rest of the core it is a PUBLISH like any other; where that makes a message of it, the one prepared here is
//! taken.
//!
//! Its properties are checked a turn's worth at a time, and so is its payload, if it says that this is text and that is to be
//! checked. Nearly always one turn is enough. If not, then to its sender it is as if it were still in the socket: it is not read
//! meanwhile, and if it goes, the PUBLISH was never sent. Nobody else waits, but others with a PUBLISH like that.
//!
//! Invariants: a link with one is in the list of those to go on with, and is not read; that a packet is malformed goes before any
//! other fault, wherever in it that is found.
//!
//! Deliberately not here: what a PUBLISH does (see `receive`), and how a message lies in its memory (see `message`).

use crate::clock::Instant;
use crate::codec::decode::{UncheckedPublish, decode_publish_but_properties};
use crate::codec::packet::Publish;
use crate::codec::property::{Place, UncheckedProperties};
use crate::codec::{DecodeError, OwnedFrame, Packet, Protocol};
use crate::metrics::DropReason;

use super::Broker;
use super::close_reason::CloseReason;
use super::event::{FanOutStep, trace_received};
use super::link::{ConnectionId, Link};
use super::message::Message;
use super::receive::{Instructions, is_passed_on};

/// To look at so many bytes is a step.
const STEP_BYTES: usize = 128;

/// One that is being looked at.
#[derive(Debug)]
pub(super) struct LongPublish {
    frame: OwnedFrame,
    properties: LongProperties,
    text: LongText,
    /// Whether it has been put off.
    is_put_off: bool,
}

/// Properties that stand before so many bytes at the end of a packet, and what they say.
#[derive(Debug)]
struct LongProperties {
    length: usize,
    payload_length: usize,
    unchecked: UncheckedProperties,
    /// So many bytes of them are checked.
    checked: usize,
    instructions: Instructions,
    /// What else is wrong with the packet, if it is not malformed.
    violation: Option<CloseReason>,
    passed_on: Vec<u8>,
}

impl LongProperties {
    /// Checks as many as there are steps for. False if there are more.
    fn look(&mut self, bytes: &[u8], steps: &mut usize) -> Result<bool, DecodeError> {
        let end = bytes.len() - self.payload_length;
        let bytes = &bytes[end - self.length..end];
        while *steps > 0 && self.checked < bytes.len() {
            let rest = &bytes[self.checked..];
            let (property, length) = self.unchecked.first(rest)?;
            if let Err(reason) = self.instructions.note(property) {
                self.violation.get_or_insert(reason);
            }
            if is_passed_on(property) {
                if self.passed_on.is_empty() {
                    self.passed_on.reserve_exact(rest.len());
                }
                self.passed_on.extend_from_slice(&rest[..length]);
            }
            self.checked += length;
            *steps = steps.saturating_sub(length.div_ceil(STEP_BYTES));
        }
        Ok(self.checked == bytes.len())
    }
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
    /// A large PUBLISH came. False if it is known to be malformed.
    pub(super) fn handle_long_publish(
        &mut self,
        now: Instant,
        id: ConnectionId,
        frame: OwnedFrame,
        protocol: Protocol,
    ) -> bool {
        let is_of_client = self.links.find(id).is_some_and(|link| link.session().is_some());
        let UncheckedPublish { publish, properties } =
            match decode_publish_but_properties(frame.as_frame(), protocol) {
                Ok(unchecked) if is_of_client => unchecked,
                _ => return self.handle_frame(now, id, frame.as_frame(), protocol),
            };
        self.begin_packet(now, id, || trace_received(id, &Packet::Publish(publish)));
        let (length, payload_length) = (properties.len(), publish.payload.len());
        let properties = LongProperties {
            length,
            payload_length,
            unchecked: UncheckedProperties::new(Place::Publish),
            checked: 0,
            instructions: Instructions::default(),
            violation: None,
            passed_on: Vec::new(),
        };
        let text = LongText { length: payload_length, checked: 0 };
        let publish = LongPublish { frame, properties, text, is_put_off: false };
        self.look_at_long_publish(id, publish, &mut { self.options.steps_per_turn });
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
            let Some(publish) = self.take_from_link(id) else {
                steps -= 1; // It has ended, and so may very many have.
                continue;
            };
            self.outputs.journal.begin_input(Some(id));
            self.look_at_long_publish(id, *publish, &mut steps);
            self.await_store_if_behind(id);
            self.outputs.journal.begin_input(None);
        }
    }

    fn take_from_link(&mut self, id: ConnectionId) -> Option<Box<LongPublish>> {
        let link = self.links.find_mut(id).filter(|link| link.session().is_some())?;
        link.extras.as_mut()?.long_publish.take()
    }

    /// Takes the PUBLISH if all of it has been looked at, or puts it off.
    fn look_at_long_publish(&mut self, id: ConnectionId, mut publish: LongPublish, steps: &mut usize) {
        let LongPublish { frame, properties, text, .. } = &mut publish;
        let body = frame.as_frame().body;
        let is_as_said = match properties.look(body, steps) {
            Err(error) => {
                self.messages.leave(publish.frame.into_bytes());
                return self.close(id, CloseReason::Malformed(error));
            }
            Ok(true) => {
                if let Some(violation) = properties.violation {
                    self.outputs.metrics.publish_received += 1;
                    self.messages.leave(publish.frame.into_bytes());
                    return self.close(id, violation);
                }
                if properties.instructions.says_text && self.options.check_payload_format {
                    text.look(body, steps)
                } else {
                    Some(true)
                }
            }
            Ok(false) => None,
        };
        if let Some(is_as_said) = is_as_said {
            let was_put_off = publish.is_put_off;
            self.take_long_publish(id, publish, is_as_said);
            if was_put_off {
                self.resume_after_long_publish(id);
            }
            return;
        }
        if !std::mem::replace(&mut publish.is_put_off, true) {
            self.trace_fan_out(id, FanOutStep::LookedAt);
        }
        if let Some(link) = self.links.find_mut(id) {
            link.extras_mut().long_publish = Some(Box::new(publish));
            self.long_publishes.push_back(id);
        }
    }

    /// Takes a PUBLISH that is well-formed, in the memory that it came in.
    fn take_long_publish(&mut self, id: ConnectionId, publish: LongPublish, is_as_said: bool) {
        let LongPublish { frame, properties, .. } = publish;
        let LongProperties { length, instructions, passed_on, .. } = properties;
        let Some(link) = self.links.find(id) else { return };
        let Some(session) = link.session() else { return };
        let Ok(unchecked) = decode_publish_but_properties(frame.as_frame(), link.protocol) else { return };
        let Publish { dup, qos, retain, packet_id, .. } = unchecked.publish;
        let (topic, payload_length) = (unchecked.publish.topic.to_owned(), unchecked.publish.payload.len());
        let known = instructions.alias_for(&topic).and_then(|alias| topic_of(link, alias));
        let passed_on = if passed_on.len() == length {
            self.messages.leave(passed_on);
            None
        } else {
            Some(passed_on)
        };
        let topic_name = known.unwrap_or(&topic);
        let lengths = (length, payload_length);
        let message = Message::in_place(frame, topic_name, lengths, passed_on, is_as_said, &self.messages);
        self.messages.prepare(Some(message.clone()));
        let (properties, payload) = (message.properties(), message.payload());
        let publish = Publish { dup, qos, retain, topic: &topic, packet_id, properties, payload };
        self.outputs.metrics.publish_received += 1;
        self.publish_as_instructed(id, session, publish, instructions);
        self.messages.prepare(None);
    }

    /// Its PUBLISH was taken: reads the sender again, if it is still there and has nothing else to wait for.
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

    /// The connection ends: what it has yet to have taken is as good as never sent.
    pub(super) fn forget_long_publish(&mut self, ended: ConnectionId) {
        let Some(extras) = self.links.find_mut(ended).and_then(|link| link.extras.as_mut()) else { return };
        let Some(publish) = extras.long_publish.take() else { return };
        // At QoS 0 nobody will send it again.
        if publish.frame.as_frame().header.flags() & 0x06 == 0 {
            self.outputs.metrics.drop_message(DropReason::SessionEnded);
        }
        self.messages.leave(publish.frame.into_bytes());
    }
}

/// The topic that an alias stands for, if it does.
fn topic_of(link: &Link, alias: u16) -> Option<&str> {
    link.extras.as_ref()?.received_aliases.find(alias)
}
