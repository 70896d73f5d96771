//! One client that subscribes: it answers what it gets and looks at each of it.

use broker::codec::packet::Publish;
use broker::codec::{Packet, QoS, ReasonCode, encode};

use super::faults::Faults;
use super::plan::Plan;
use super::publisher::Publisher;

#[derive(Default)]
pub(super) struct Subscriber {
    /// The running number that comes next, of each publisher.
    next: Vec<u64>,
}

impl Subscriber {
    pub(super) fn new(publishers: usize) -> Self {
        Self { next: vec![0; publishers] }
    }

    /// Takes a packet. Returns publisher and running number of a message that comes for the first time.
    pub(super) fn take(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        publishers: &mut [Publisher],
        plan: &Plan,
        faults: &mut Faults,
    ) -> Option<(usize, u64)> {
        match packet {
            Packet::Publish(publish) => {
                match (publish.qos, publish.packet_id) {
                    (QoS::AtLeastOnce, Some(packet_id)) => {
                        encode::puback(out, packet_id, ReasonCode::Success);
                    }
                    (QoS::ExactlyOnce, Some(packet_id)) => {
                        encode::pubrec(out, packet_id, ReasonCode::Success);
                    }
                    _ => {}
                }
                let is_alike = publish.qos == plan.qos
                    && publish.payload.len() == plan.payload_bytes
                    && !publish.dup
                    && !publish.retain;
                let message = self.message(&publish, publishers);
                faults.strange += u64::from(message.is_none() || !is_alike);
                let (publisher, number) = message?;
                let next = &mut self.next[publisher];
                if number < *next {
                    faults.repeated += 1;
                    return None;
                }
                let gap = number - *next;
                faults.lost += gap;
                publishers[publisher].delivered += gap + 1;
                *next = number + 1;
                return Some((publisher, number));
            }
            Packet::Pubrel(ack) => encode::pubcomp(out, ack.packet_id, ReasonCode::Success),
            _ => faults.strange += 1,
        }
        None
    }

    /// Publisher and running number, if it is a message of ours.
    fn message(&self, publish: &Publish<'_>, publishers: &[Publisher]) -> Option<(usize, u64)> {
        let (publisher, rest) = publish.payload.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let (publisher, number) = (u32::from_be_bytes(*publisher) as usize, u64::from_be_bytes(*number));
        let known = publishers.get(publisher)?;
        (number < known.sent && known.is_topic_of(number, publish.topic)).then_some((publisher, number))
    }
}
