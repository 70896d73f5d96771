//! What clients do about what they hear.

use broker::broker::{CloseReason, ConnectionId};
use broker::codec::packet::{Ack, Packet};
use broker::codec::property::Place;
use broker::codec::{Properties, Property, QoS, ReasonCode};

use super::{Answer, World, redirection};
use crate::client::aliases::Aliases;
use crate::client::{Delivery, Heard, ack, bytes_of, publish_bytes};

impl World {
    pub(super) fn hear(&mut self, id: ConnectionId) {
        if self.connections.get(&id).is_some_and(|connection| !connection.stalled) {
            self.hear_all(id);
        }
    }

    /// The client takes in what has arrived, and notes what it has to answer.
    pub(super) fn hear_all(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let bytes: Vec<u8> = connection.to_client.drain(..).collect();
        for heard in connection.ear.hear(&bytes) {
            self.take_in(id, &heard);
        }
    }

    pub(super) fn take_in(&mut self, id: ConnectionId, heard: &Heard) {
        if self.traces {
            eprintln!("{} {id:?} hears {heard:?}", self.now.0);
        }
        self.note_word(id, heard);
        let connection = self.connections.get_mut(&id).expect("it hears");
        assert_eq!(connection.told, None, "nothing comes behind a DISCONNECT [MQTT5-3.14.4-1]");
        if let Heard::Connack { reason, .. } = heard {
            // [MQTT5-3.2.0-2]
            assert!(!connection.connack, "CONNACK comes once");
            if *reason != ReasonCode::Success {
                self.model.coverage.see("refused");
                if let Some(CloseReason::Redirected { permanently }) = connection.closed {
                    let is_new = connection.protocol.has_properties();
                    let code = if is_new { redirection(permanently) } else { ReasonCode::ServerUnavailable };
                    assert_eq!(*reason, code, "a refusal that sends to another server");
                    self.model.coverage.see("refused while clients are sent to another server");
                }
                return;
            }
            connection.connack = true;
            self.model.accepted(id, heard);
            return self.begin(id, heard);
        }
        // [MQTT-3.2.0-1] [MQTT5-3.2.0-1] [MQTT5-3.14.0-1]
        assert!(connection.connack, "CONNACK comes first");
        // What comes late on a connection whose session has gone on elsewhere is not for its memory.
        let client = &mut self.clients[connection.client];
        let current = self.model.is_current(&client.id, id);
        match heard {
            Heard::Publish(delivery) => {
                self.model.delivered(id, delivery, current);
                if current {
                    self.note(id, delivery);
                }
            }
            Heard::Disconnect(reason) => connection.told = Some(*reason),
            _ => {
                self.model.replied(id, heard);
                if current {
                    self.go_on(id, heard);
                }
            }
        }
    }

    /// What a client does about an acknowledgement.
    pub(super) fn go_on(&mut self, id: ConnectionId, heard: &Heard) {
        let connection = self.connections.get_mut(&id).expect("it hears");
        let memory = &mut self.clients[connection.client].memory;
        match heard {
            Heard::Pubrel(packet_id, _) => {
                memory.receipts.remove(packet_id);
                connection.answers.push_back(Answer::Pubcomp(*packet_id));
            }
            Heard::Puback(packet_id, _) | Heard::Pubcomp(packet_id, _) => {
                memory.unacknowledged.retain(|(used, _)| used != packet_id);
                connection.under_way.remove(packet_id);
            }
            Heard::Pubrec(packet_id, reason) if reason.is_error() => {
                memory.unacknowledged.retain(|(used, _)| used != packet_id);
                connection.under_way.remove(packet_id);
            }
            Heard::Pubrec(packet_id, _) => {
                for (used, message) in &mut memory.unacknowledged {
                    message.received |= used == packet_id;
                }
                if !connection.misbehaved {
                    self.say_packet(id, &Packet::Pubrel(ack(*packet_id)));
                }
            }
            _ => {}
        }
        self.repeat(id);
    }

    /// A client got a message, which it will answer.
    pub(super) fn note(&mut self, id: ConnectionId, delivery: &Delivery) {
        let Some(packet_id) = delivery.packet_id else { return };
        let connection = self.connections.get_mut(&id).expect("it hears");
        let memory = &mut self.clients[connection.client].memory;
        memory.outstanding.insert(packet_id, delivery.qos);
        let is_known = delivery.qos == QoS::ExactlyOnce && !memory.receipts.insert(packet_id);
        let may_refuse = connection.protocol.has_properties() && !is_known;
        let reason = if may_refuse && self.random.once_in(12) {
            ReasonCode::ImplementationSpecificError
        } else {
            ReasonCode::Success
        };
        connection.answers.push_back(match delivery.qos {
            QoS::ExactlyOnce => Answer::Pubrec(packet_id, reason),
            _ => Answer::Puback(packet_id, reason),
        });
    }

    /// A client is connected: it sends again what was not acknowledged.
    pub(super) fn begin(&mut self, id: ConnectionId, connack: &Heard) {
        let Heard::Connack { properties, .. } = connack else { return };
        let connection = self.connections.get_mut(&id).expect("it hears");
        if connection.protocol.has_properties() {
            let properties = Properties::check(properties, Place::Connack);
            for property in properties.expect("it was decoded") {
                match property {
                    Property::ReceiveMaximum(maximum) => connection.receive_max = maximum.into(),
                    Property::TopicAliasMaximum(maximum) => connection.aliases = Aliases::new(maximum),
                    _ => {}
                }
            }
        }
        let client = &mut self.clients[connection.client];
        // What is said behind half a packet would be taken for its rest.
        if !self.model.is_current(&client.id, id) {
            return;
        }
        client.memory.join(self.model.incarnation(id));
        if connection.misbehaved {
            return;
        }
        // [MQTT-4.4.0-1]
        for (packet_id, message) in &client.memory.unacknowledged {
            if message.received {
                let pubrel = bytes_of(&Packet::Pubrel(ack(*packet_id)), connection.protocol);
                connection.to_broker.extend(pubrel);
            } else {
                connection.to_repeat.push_back(*packet_id);
            }
        }
        self.repeat(id);
    }

    /// Sends again what was not acknowledged, as far as the broker takes it.
    pub(super) fn repeat(&mut self, id: ConnectionId) {
        let connection = self.connections.get_mut(&id).expect("it hears");
        let memory = &self.clients[connection.client].memory;
        while connection.has_quota() && !connection.misbehaved {
            let Some(packet_id) = connection.to_repeat.pop_front() else { return };
            let known = memory.unacknowledged.iter().find(|(used, _)| *used == packet_id);
            let Some((_, message)) = known else { continue };
            connection.under_way.insert(packet_id);
            let bytes = publish_bytes(connection.protocol, Some(packet_id), message, true, None);
            connection.to_broker.extend(bytes);
        }
    }

    pub(super) fn say_answer(&mut self, id: ConnectionId, answer: Answer) {
        let client = self.connections[&id].client;
        let memory = &mut self.clients[client].memory;
        let with = |packet_id, reason| Ack { packet_id, reason, properties: Properties::NONE };
        let packet = match answer {
            Answer::Puback(packet_id, reason) => {
                memory.outstanding.remove(&packet_id);
                Packet::Puback(with(packet_id, reason))
            }
            Answer::Pubrec(packet_id, reason) => {
                if reason.is_error() {
                    memory.outstanding.remove(&packet_id);
                    memory.receipts.remove(&packet_id);
                }
                Packet::Pubrec(with(packet_id, reason))
            }
            Answer::Pubcomp(packet_id) => {
                memory.outstanding.remove(&packet_id);
                Packet::Pubcomp(ack(packet_id))
            }
        };
        self.say_packet(id, &packet);
    }
}
