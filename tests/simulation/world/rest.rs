//! The end of a world: everybody behaves, everything arrives, and then everybody leaves.

use std::collections::BTreeMap;

use broker::broker::ConnectionId;
use broker::clock::Duration;
use broker::codec::packet::{Connect, Disconnect, Packet};
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Properties, Property, Protocol, QoS, encode};
use broker::metrics::DropReason;

use super::{Client, World};
use crate::client::{Heard, Memory};
use crate::model::coverage::Coverage;

impl World {
    /// Everybody behaves, everything arrives, every stored session gets what waits for it.
    pub(super) fn come_to_rest(&mut self) {
        let open: Vec<(usize, ConnectionId)> =
            self.connections.iter().map(|(id, connection)| (connection.client, *id)).collect();
        for (client, id) in open {
            // Each at a time of its own, so that the order of their wills is known.
            self.advance(Duration(1));
            if self.connections.contains_key(&id) {
                self.cut(client, id);
            }
        }
        self.is_at_rest = true;
        let (first, second): (Vec<usize>, Vec<usize>) =
            (0..self.clients.len()).partition(|_| self.random.once_in(2));
        first.into_iter().for_each(|client| self.come_back(client, Protocol::Mqtt5));
        self.settle_down(|world| world.is_moving());
        let dropped = self.dropped(DropReason::QueueMessagesFull) + self.dropped(DropReason::QueueBytesFull);
        // [B-070] [B-071] [B-073]
        let unheard = self.model.unheard_of_groups();
        let words = &self.model.waiting;
        assert!(unheard <= dropped, "{unheard} wait for members who are away, {dropped} dropped: {words:#?}");
        if !second.is_empty() {
            self.model.coverage.see("group at rest with members away");
        }
        for client in second {
            let protocol = *self.random.pick(&[Protocol::Mqtt311, Protocol::Mqtt5]);
            self.come_back(client, protocol);
        }
        self.settle_down(|world| world.is_moving() || world.broker.metrics().queued_messages > 0);
        self.broker.check_invariants();
        self.check_stored();
        // Those that were refused for want of room have nobody to answer them.
        for client in self.clients.iter().filter(|client| !client.open.is_empty()) {
            assert!(client.memory.unacknowledged.is_empty(), "{}: not every message was answered", client.id);
            assert!(client.memory.outstanding.is_empty() && client.memory.receipts.is_empty());
        }
        for id in self.connections.keys() {
            assert_eq!(self.model.replies_left(*id), 0, "every packet was answered");
        }
    }

    /// Lets time and bytes pass as long as something is to be done.
    fn settle_down(&mut self, is_busy: impl Fn(&Self) -> bool) {
        let mut rounds = 0;
        while is_busy(self) {
            rounds += 1;
            assert!(rounds < 20_000, "the world comes to rest");
            self.advance(Duration(1));
            self.take_batch();
            self.store_batches();
            let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
            for id in ids {
                self.answer_all(id);
            }
            self.travel(true);
        }
    }

    fn answer_all(&mut self, id: ConnectionId) {
        while let Some(answer) =
            self.connections.get_mut(&id).and_then(|connection| connection.answers.pop_front())
        {
            self.say_answer(id, answer);
        }
    }

    /// Connects with the stored session, if there is one, without keep-alive and will.
    fn come_back(&mut self, client: usize, protocol: Protocol) {
        let client_id = self.clients[client].id.clone();
        let clean_start = !self.model.stored_sessions().contains(&client_id);
        let mut properties = PropertyList::default();
        let (mut alias_max, mut packet_size_max) = (0, u32::MAX);
        if protocol.has_properties() {
            alias_max = 2;
            packet_size_max = if self.random.once_in(4) { 60 } else { 100_000 };
            properties.push(&Property::SessionExpirySecs(*self.random.pick(&[0, 30, 3_600, u32::MAX])));
            properties.push(&Property::ReceiveMaximum(1 + self.random.below(3) as u16));
            properties.push(&Property::TopicAliasMaximum(alias_max));
            properties.push(&Property::MaximumPacketSize(packet_size_max));
        }
        let id = self.open(client, protocol, alias_max, packet_size_max);
        let connect = Connect {
            protocol,
            clean_start,
            keep_alive_secs: 0,
            properties: properties.as_properties(),
            client_id: &client_id,
            will: None,
            username: None,
            password: None,
        };
        self.say_packet(id, &Packet::Connect(connect));
    }

    fn is_moving(&self) -> bool {
        self.connections.iter().any(|(id, connection)| {
            !connection.connack
                || !connection.to_broker.is_empty()
                || !connection.to_client.is_empty()
                || !connection.answers.is_empty()
                || !connection.inbox.is_empty()
                || self.broker.outbox(*id).is_some_and(|outbox| !outbox.is_empty())
        }) || !self.broker.is_stored()
            || self.broker.poll_timeout().is_some_and(|due| due <= self.now)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped_before[reason as usize] + self.broker.metrics().dropped[reason as usize]
    }

    /// What did not come was dropped and counted.
    pub(super) fn check_lost(&mut self) {
        self.model.settle();
        let full = self.dropped(DropReason::QueueMessagesFull) + self.dropped(DropReason::QueueBytesFull);
        let too_large = self.dropped(DropReason::TooLargeForClient);
        let expired = self.dropped(DropReason::Expired);
        let tally = self.model.tally;
        let coverage = &mut self.model.coverage;
        coverage.see_if("queue full", full > 0);
        coverage.see_if("expired before delivery", tally.expired > 0);
        coverage.see_if("too large for its client", tally.too_large > 0);
        // Nothing is dropped silently [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-4.5.0-1] [MQTT5-4.5.0-1] [B-045].
        let is_confused = self.model.is_confused();
        let lost = (tally.lost + tally.lost_of_groups).saturating_sub(tally.ambiguous);
        let words = (&self.model.lost, self.broker.metrics().dropped);
        assert!(
            lost <= full || is_confused,
            "{tally:?}, {full} counted as dropped by full queues: {words:#?}"
        );
        // [MQTT5-3.1.2-25] [MQTT5-3.3.2-5]
        let missing = lost + tally.too_large + tally.expired;
        let counted = full + too_large + expired;
        assert!(
            missing <= counted || is_confused,
            "{tally:?}, {full} + {too_large} + {expired} counted: {:#?}",
            self.model.lost
        );
        // A retained message comes after every SUBSCRIBE that asks for it [MQTT-3.3.1-6] [MQTT5-3.3.1-9].
        let dropped_at_most_once = self.dropped(DropReason::OutboxFull);
        assert!(tally.lost_at_most_once <= dropped_at_most_once, "a retained message did not come");
        assert!(
            !self.roomy || is_confused || (lost, full) == (0, 0),
            "nothing may be lost with so much room"
        );
    }

    /// A new subscriber gets exactly what is retained [MQTT-3.3.1-6] [MQTT-3.3.1-8] [MQTT5-3.3.1-5] [MQTT5-3.3.1-8]
    /// [B-017].
    pub(super) fn check_retained(&mut self) {
        if self.broker.status().sessions >= self.broker.options().sessions_max as usize {
            return; // No room for one more client.
        }
        let protocol = *self.random.pick(&[Protocol::Mqtt311, Protocol::Mqtt5]);
        self.clients.push(Client {
            id: "probe".into(),
            memory: Memory::default(),
            messages: 0,
            open: Vec::new(),
        });
        let id = self.open(self.clients.len() - 1, protocol, 0, u32::MAX);
        let connect = Connect {
            protocol,
            clean_start: true,
            keep_alive_secs: 0,
            properties: Properties::NONE,
            client_id: "probe",
            will: None,
            username: None,
            password: None,
        };
        self.say_packet(id, &Packet::Connect(connect));
        let mut bytes = Vec::new();
        let requests = [("#", QoS::ExactlyOnce.into()), ("$own/#", QoS::ExactlyOnce.into())];
        encode::subscribe(&mut bytes, protocol, PacketId::FIRST, Properties::NONE, &requests);
        self.say(id, &bytes);
        let mut found = BTreeMap::new();
        for _ in 0..10_000 {
            self.timeout();
            self.take_batch();
            self.store_batches();
            self.answer_all(id);
            self.feed(id, usize::MAX);
            self.flush(id, true);
            let bytes: Vec<u8> = self.connection(id).to_client.drain(..).collect();
            let heard = self.connection(id).ear.hear(&bytes);
            for heard in heard {
                if let Heard::Publish(delivery) = &heard {
                    assert!(delivery.retain, "nobody publishes now");
                    let (topic, payload) = (delivery.topic.clone(), delivery.payload.clone());
                    assert_eq!(found.insert(topic, payload), None, "each topic once");
                }
                self.take_in(id, &heard);
            }
            if !self.is_moving() {
                break;
            }
        }
        let kept = self.model.retained();
        let expected: BTreeMap<String, String> =
            kept.map(|kept| (kept.topic.clone(), kept.payload.clone())).collect();
        assert_eq!(found, expected);
    }

    /// The end of a world whose clients were sent to another server: nobody is left, and nobody comes back.
    pub(super) fn end_drained(mut self) -> Coverage {
        self.timeout();
        assert_eq!(self.broker.metrics().clients_connected, 0, "all have been sent away");
        self.broker.check_invariants();
        assert_eq!(self.broker.status().sessions, self.model.stored_sessions().len());
        let open: Vec<(usize, ConnectionId)> =
            self.connections.iter().map(|(id, connection)| (connection.client, *id)).collect();
        open.into_iter().for_each(|(client, id)| self.cut(client, id));
        // Until no will is delayed any more: what it retains may expire in its turn.
        self.advance(Duration(30_000));
        self.leave()
    }

    /// Everybody leaves; once their sessions have expired nothing may be left but retained messages that never expire.
    pub(super) fn leave(mut self) -> Coverage {
        let open: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in open {
            for _ in 0..100 {
                if self.broker.wants_input(id) {
                    break;
                }
                // It may have to wait for the store, which has nothing to do any more but to say so.
                self.take_batch();
                self.store_batches();
            }
            self.say_packet(id, &Packet::Disconnect(Disconnect::NORMAL));
            self.feed(id, usize::MAX);
        }
        self.now = self.now + Duration(10_000_000);
        self.timeout();
        self.check_stored();
        self.broker.check_invariants();
        let status = self.broker.status();
        let metrics = self.broker.metrics();
        assert_eq!(self.broker.connections(), 0, "no connection is left");
        assert_eq!((metrics.clients_connected, metrics.outbox_bytes, metrics.outbox_packets), (0, 0, 0));
        assert_eq!(
            status.retained_messages,
            self.model.retained_for_ever(),
            "what expires goes [B-018]: {:?}",
            self.model.retained().collect::<Vec<_>>()
        );
        if self.broker.options().session_expiry.is_some() {
            assert_eq!((status.sessions, status.subscriptions, self.broker.timers_armed()), (0, 0, 0));
            assert_eq!((metrics.queued_messages, metrics.in_flight_messages), (0, 0));
            assert_eq!(status.message_bytes, status.retained_bytes, "every message is gone");
        }
        self.model.coverage
    }
}
