//! PUBLISH to clients: who gets a message, at which QoS, and whether it is sent, queued or dropped.
//!
//! ```text
//!  route ──> each matching session once
//!              QoS 0: into the outbox, or dropped where that is full or nobody is there
//!              QoS 1, 2: into the outbox while window and outbox have room and nothing is queued, else into the queue
//! ```

use crate::codec::encode::{self, PublishHead};
use crate::codec::{PacketId, QoS};
use crate::metrics::DropReason;
use crate::topics::{SubscriberId, TopicName};

use super::event::{Event, Limit, PacketKind};
use super::link::Link;
use super::message::{Gauge, Message};
use super::options::Options;
use super::session::{Delivery, Sent, Session, SessionId};
use super::{Broker, Outputs};

/// From this size on a payload that is already in a message is shared with an outbox and not copied.
const SHARED_PAYLOAD_MIN: usize = 512;

/// One message on its way to everybody who wants it.
#[derive(Debug)]
pub(super) struct Routing<'a> {
    pub(super) topic: TopicName<'a>,
    pub(super) payload: &'a [u8],
    pub(super) qos: QoS,
    pub(super) retain: bool,
    /// Made when the first receiver has to keep it.
    message: Option<Message>,
    /// Payloads up to this size are copied into outboxes.
    copied_payload_max: usize,
    /// The broker holds all the bytes it may, so that at QoS 0 only peers without a backlog get the message.
    broker_is_full: bool,
}

impl<'a> Routing<'a> {
    pub(super) fn new(topic: TopicName<'a>, payload: &'a [u8], qos: QoS, retain: bool) -> Self {
        Self { topic, payload, qos, retain, message: None, copied_payload_max: 0, broker_is_full: false }
    }

    /// The message, shared by all who keep it.
    pub(super) fn message(&mut self, gauge: &Gauge) -> &Message {
        self.message.get_or_insert_with(|| Message::new(self.topic.as_str(), self.payload, gauge))
    }

    fn head(&self) -> PublishHead<'a> {
        PublishHead {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false, // [MQTT-3.3.1-9]
            topic: self.topic.as_str(),
            packet_id: None,
            payload_len: self.payload.len(),
        }
    }
}

impl Broker {
    /// Hands a message to every session with a matching subscription, once, at the highest QoS that its matching
    /// subscriptions allow [MQTT-3.3.5-1].
    pub(super) fn route(&mut self, routing: &mut Routing<'_>) {
        let matches = self.subscriptions.matches(routing.topic);
        routing.copied_payload_max = self.options.copied_payload_max(matches.len());
        routing.broker_is_full = self.is_full();
        for subscriber in matches.iter() {
            if !self.sessions.subscriber_mut(subscriber.id).streams.is_empty() {
                self.precede(subscriber.id, routing);
            }
            // The lower of both [MQTT-3.8.4-6].
            match subscriber.qos.min(routing.qos) {
                QoS::AtMostOnce => self.deliver_at_most_once(subscriber.id, routing),
                qos => {
                    let delivery =
                        Delivery { message: routing.message(&self.messages).clone(), qos, retain: false };
                    let session = self.sessions.subscriber_mut(subscriber.id).id;
                    self.deliver(session, delivery);
                }
            }
        }
        self.subscriptions.put_back(matches);
    }

    /// Sends, or drops and counts [MQTT-4.3.1-1].
    #[inline]
    fn deliver_at_most_once(&mut self, subscriber: SubscriberId, routing: &mut Routing<'_>) {
        let Self { sessions, links, outputs, options, messages, .. } = self;
        let session = sessions.subscriber_mut(subscriber);
        let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else {
            return outputs.metrics.drop_message(DropReason::AbsentAtQoS0);
        };
        let pending = link.outbox.pending();
        if pending > options.outbox_soft_mark() {
            outputs.metrics.drop_message(DropReason::OutboxFull);
            if !link.outbox_full_logged {
                link.outbox_full_logged = true;
                let value = u64::from(options.outbox_bytes_max);
                outputs.limit_reached(Limit::Outbox, Some(&session.client_id), value);
            }
        } else if routing.broker_is_full && pending > 0 {
            outputs.metrics.drop_message(DropReason::BrokerFull);
        } else if routing.payload.len() <= routing.copied_payload_max {
            outputs.write_publish(link, &routing.head(), Some(routing.payload));
        } else {
            outputs.write_publish(link, &routing.head(), None);
            link.outbox.append_shared(routing.message(messages).clone());
        }
    }

    /// Sends a message of QoS 1 or 2 now, or queues it, or drops and counts it.
    pub(super) fn deliver(&mut self, id: SessionId, delivery: Delivery) {
        let Self { sessions, links, outputs, options, .. } = self;
        let session = sessions.find_mut(id).expect("subscriptions go with their session");
        let refused = match session.connection.and_then(|id| links.find_mut(id)) {
            Some(link) if session.outgoing.queue.is_empty() && has_room(session, link, options) => {
                outputs.send(session, link, delivery).err()
            }
            _ => Some(delivery),
        };
        if let Some(delivery) = refused {
            outputs.enqueue(session, delivery, options);
        }
    }

    /// Sends what waits for a client, as far as its window and its outbox have room: first what has to be repeated,
    /// then the queue [MQTT-4.6.0-1], then retained messages for new subscriptions.
    pub(super) fn refill(&mut self, id: SessionId) {
        self.resend(id);
        self.drain_queue(id);
        self.continue_streams(id);
    }

    fn drain_queue(&mut self, id: SessionId) {
        let Self { sessions, links, outputs, options, .. } = self;
        let Some(session) = sessions.find_mut(id) else { return };
        let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
        while !session.outgoing.queue.is_empty() {
            if !has_room(session, link, options) {
                link.wants_refill = true;
                return;
            }
            let delivery = session.outgoing.pop_queue().expect("not empty");
            outputs.metrics.queued_messages -= 1;
            if let Err(delivery) = outputs.send(session, link, delivery) {
                // No packet identifier is free: it stays the first of the queue until one is.
                outputs.metrics.queued_messages += 1;
                session.outgoing.unpop_queue(delivery);
                return;
            }
        }
        session.queue_full_logged = false;
    }

    /// Repeats what was sent on an earlier connection and not answered: same identifiers, same order, DUP set
    /// [MQTT-4.4.0-1] [MQTT-3.3.1-1].
    fn resend(&mut self, id: SessionId) {
        let Self { sessions, links, outputs, options, .. } = self;
        let Some(session) = sessions.find_mut(id) else { return };
        let Some(link) = session.connection.and_then(|id| links.find_mut(id)) else { return };
        let outgoing = &mut session.outgoing;
        while let Some(sent) = outgoing.sent.get(outgoing.sent_here) {
            if link.outbox.pending() > options.outbox_soft_mark() {
                link.wants_refill = true;
                return;
            }
            outputs.write_delivery(link, &sent.delivery, Some(sent.packet_id), true);
            outgoing.sent_here += 1;
        }
    }

    /// Repeats the PUBRELs that were not answered, in their old order.
    pub(super) fn resend_releases(&mut self, connection: super::ConnectionId, id: SessionId) {
        let Self { sessions, links, outputs, .. } = self;
        let (Some(session), Some(link)) = (sessions.find(id), links.find_mut(connection)) else { return };
        for packet_id in &session.outgoing.released {
            outputs
                .write(link, PacketKind::Pubrel, Some(*packet_id), |bytes| encode::pubrel(bytes, *packet_id));
        }
    }
}

/// Whether one more message of QoS 1 or 2 may be sent now.
pub(super) fn has_room(session: &Session, link: &Link, options: &Options) -> bool {
    let outgoing = &session.outgoing;
    outgoing.in_flight() < usize::from(options.in_flight_max)
        && outgoing.sent_here == outgoing.sent.len()
        && link.outbox.pending() <= options.outbox_soft_mark()
}

impl Outputs {
    /// Sends a message for the first time. Gives it back if no packet identifier is free.
    pub(super) fn send(
        &mut self,
        session: &mut Session,
        link: &mut Link,
        delivery: Delivery,
    ) -> Result<(), Delivery> {
        let Some(packet_id) = session.outgoing.allot_packet_id() else { return Err(delivery) };
        self.write_delivery(link, &delivery, Some(packet_id), false);
        session.outgoing.sent.push_back(Sent { delivery, packet_id });
        session.outgoing.sent_here += 1;
        self.metrics.in_flight_messages += 1;
        Ok(())
    }

    /// Puts a message into the queue of a session, or drops it when that is full: the newest goes, so that what is
    /// in the queue stays a gapless beginning.
    fn enqueue(&mut self, session: &mut Session, delivery: Delivery, options: &Options) {
        let outgoing = &mut session.outgoing;
        let (reason, limit, value) = if outgoing.queue.len() >= options.queued_messages_max as usize {
            let value = u64::from(options.queued_messages_max);
            (DropReason::QueueMessagesFull, Limit::QueuedMessages, value)
        } else if outgoing.queued_bytes + delivery.message.size() > options.queued_bytes_max {
            (DropReason::QueueBytesFull, Limit::QueuedBytes, options.queued_bytes_max)
        } else {
            outgoing.push_queue(delivery);
            self.metrics.queued_messages += 1;
            return;
        };
        self.metrics.drop_message(reason);
        if !session.queue_full_logged {
            session.queue_full_logged = true;
            self.limit_reached(limit, Some(&session.client_id), value);
        }
    }

    /// Writes a PUBLISH whose payload is in a message.
    pub(super) fn write_delivery(
        &mut self,
        link: &mut Link,
        delivery: &Delivery,
        packet_id: Option<PacketId>,
        dup: bool,
    ) {
        let Delivery { message, qos, retain } = delivery;
        let payload = message.payload();
        let head = PublishHead {
            dup,
            qos: *qos,
            retain: *retain,
            topic: message.topic(),
            packet_id,
            payload_len: payload.len(),
        };
        if payload.len() < SHARED_PAYLOAD_MIN {
            self.write_publish(link, &head, Some(payload));
        } else {
            self.write_publish(link, &head, None);
            link.outbox.append_shared(message.clone());
        }
    }

    /// Writes the head of a PUBLISH, and its payload if that is to be copied.
    fn write_publish(&mut self, link: &mut Link, head: &PublishHead<'_>, payload: Option<&[u8]>) {
        self.metrics.publish_sent += 1;
        self.write(link, PacketKind::Publish, head.packet_id, |bytes| {
            encode::publish_head(bytes, head);
            if let Some(payload) = payload {
                bytes.extend_from_slice(payload);
            }
        });
        if self.trace_packets
            && let Some(Event::Packet { publish, .. }) = self.events.back_mut()
        {
            *publish = Some((head.topic.into(), head.payload_len));
        }
    }
}
