//! One client that publishes: what it has sent, what was answered, and what has arrived.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use broker::codec::packet::{Ack, Publish};
use broker::codec::{Packet, PacketId, Properties, QoS, ReasonCode, encode};

use super::client::PROTOCOL;
use super::faults::Faults;
use super::flow::OnTime;
use super::plan::{Plan, TOPIC_DIGITS};

/// Bytes at the beginning of a payload: publisher and running number.
const LABEL_BYTES: usize = 4 + 8;

pub(super) struct Publisher {
    /// The first of its topics.
    topic: String,
    topics: u64,
    /// The packet, into which topic, identifier and running number are written.
    template: Vec<u8>,
    digits_at: Option<usize>,
    packet_id_at: Option<usize>,
    number_at: usize,
    pub(super) sent: u64,
    /// PUBRECs received.
    half_answered: u64,
    /// PUBACKs or PUBCOMPs received.
    answered: u64,
    /// Deliveries of all its messages to all their receivers.
    pub(super) delivered: u64,
    /// If answers are timed: when messages that are not answered were sent, and how many in all by then.
    pub(super) bursts: VecDeque<(u64, Instant)>,
}

/// The packet identifier of the message with this running number. It is free again long before it comes round.
fn packet_id(number: u64) -> PacketId {
    PacketId::new((number % 65_535) as u16 + 1).expect("not 0")
}

impl Publisher {
    pub(super) fn new(number: usize, plan: &Plan) -> Self {
        let topic = plan.topic(number);
        let mut payload = vec![b'x'; plan.payload_bytes.max(LABEL_BYTES)];
        payload[..4].copy_from_slice(&(number as u32).to_be_bytes());
        let mut template = Vec::new();
        let has_id = plan.qos > QoS::AtMostOnce;
        let publish = Publish {
            dup: false,
            qos: plan.qos,
            retain: plan.is_retained,
            topic: &topic,
            packet_id: has_id.then_some(PacketId::FIRST),
            properties: Properties::NONE,
            payload: &payload,
        };
        encode::encode(&Packet::Publish(publish), PROTOCOL, &mut template)
            .expect("it has a form on the wire");
        let payload_at = template.len() - payload.len();
        let topic_end = payload_at - if has_id { 2 } else { 0 };
        Self {
            topic,
            topics: plan.topics,
            template,
            digits_at: (plan.topics > 1).then_some(topic_end - TOPIC_DIGITS),
            packet_id_at: has_id.then_some(topic_end),
            number_at: payload_at + 4,
            sent: 0,
            half_answered: 0,
            answered: 0,
            delivered: 0,
            bursts: VecDeque::new(),
        }
    }

    /// Messages on their way.
    pub(super) fn under_way(&self, plan: &Plan) -> u64 {
        let undelivered = (self.sent * plan.receivers() - self.delivered).div_ceil(plan.receivers().max(1));
        let unanswered = if plan.qos > QoS::AtMostOnce { self.sent - self.answered } else { 0 };
        undelivered.max(unanswered)
    }

    pub(super) fn publish(&mut self, out: &mut Vec<u8>, count: u64) {
        for _ in 0..count {
            if let Some(at) = self.digits_at {
                let mut digits = &mut self.template[at..at + TOPIC_DIGITS];
                write!(digits, "{:0TOPIC_DIGITS$}", self.sent % self.topics).expect("there is room");
            }
            if let Some(at) = self.packet_id_at {
                self.template[at..at + 2].copy_from_slice(&packet_id(self.sent).number().to_be_bytes());
            }
            self.template[self.number_at..self.number_at + 8].copy_from_slice(&self.sent.to_be_bytes());
            out.extend_from_slice(&self.template);
            self.sent += 1;
        }
    }

    /// Whether the message with this running number has this topic.
    pub(super) fn is_topic_of(&self, number: u64, topic: &str) -> bool {
        if self.topics == 1 {
            return topic == self.topic;
        }
        let split = self.topic.len() - TOPIC_DIGITS;
        topic.len() == self.topic.len()
            && topic.as_bytes()[..split] == self.topic.as_bytes()[..split]
            && topic.as_bytes()[split..].iter().try_fold(0, |value, digit| {
                digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0'))
            }) == Some(number % self.topics)
    }

    /// How long ago the message was sent that was answered last.
    fn time_to_answer(&mut self, now: Instant) -> Option<Duration> {
        while self.bursts.pop_front_if(|(sent, _)| *sent < self.answered).is_some() {}
        self.bursts.front().map(|(_, sent_at)| now - *sent_at)
    }

    /// Takes an answer of the broker.
    pub(super) fn take(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        plan: &Plan,
        faults: &mut Faults,
        (on_answer, now): (&mut Option<OnTime>, Instant),
    ) {
        let mut count = |counter: &mut u64, ack: Ack| {
            // Answers come in the order of what they answer [MQTT-4.6.0-2] [MQTT-4.6.0-3].
            faults.strange += u64::from(ack.packet_id != packet_id(*counter) || *counter == self.sent);
            *counter = (*counter + 1).min(self.sent);
        };
        match (packet, plan.qos) {
            (Packet::Puback(ack), QoS::AtLeastOnce) | (Packet::Pubcomp(ack), QoS::ExactlyOnce) => {
                count(&mut self.answered, ack);
                if let Some(on_answer) = on_answer
                    && let Some(time) = self.time_to_answer(now)
                {
                    on_answer(time);
                }
            }
            (Packet::Pubrec(ack), QoS::ExactlyOnce) => {
                count(&mut self.half_answered, ack);
                encode::pubrel(out, ack.packet_id, ReasonCode::Success);
            }
            _ => faults.strange += 1,
        }
    }
}
