//! The judge: whether what was sent and heard is what should have been.

use broker::broker::ConnectionId;
use broker::broker::event::PublishTrace;
use broker::clock::Duration;
use broker::codec::{PacketId, QoS};

use super::Model;
use super::message::{Missing, Sending};
use super::session::{Flight, Place, Session};
use crate::client::{Delivery, Heard};

impl Model {
    /// A PUBLISH was sent.
    pub(super) fn sent(
        &mut self,
        connection: ConnectionId,
        packet_id: Option<PacketId>,
        publish: &PublishTrace,
    ) {
        let now = self.now;
        let PublishTrace { topic, payload_length: length, qos, dup, .. } = publish;
        let link = self.links.get_mut(&connection).expect("only the connected are sent anything");
        assert!(link.is_open);
        let mut sending =
            Sending { connection, protocol: link.protocol, at: now, begun: now, is_repetition: false };
        if let Some(packet_id) = packet_id {
            let session = self.sessions.get_mut(&link.client_id).expect("a client has a session");
            let fresh = || Flight {
                connection,
                begun: now,
                topic: topic.clone().into(),
                length: *length,
                qos: *qos,
                heard: None,
                holder: None,
                released: false,
            };
            // With an alias the topic is not said.
            let is_another = |flight: &Flight| {
                let known = flight.heard.as_ref().map_or(&*flight.topic, |heard| &heard.message.topic);
                let has_other_topic = known != &**topic && !known.is_empty() && !topic.is_empty();
                (flight.length, flight.qos) != (*length, *qos) || has_other_topic
            };
            let before = session.flights.get(&packet_id);
            if *dup {
                // [MQTT5-3.3.1-3] [MQTT5-4.3.1-1] [MQTT5-4.3.2-2] [MQTT5-4.3.3-2] [MQTT5-4.3.3-7]
                let is_repetition = before.is_some_and(|flight| !is_another(flight));
                assert!(is_repetition, "{}: DUP at first: {publish:?}, {before:?}", link.client_id);
            } else if before.is_some() {
                // What was given up, for its size or to another member of its group, leaves its identifier to others
                // [MQTT-3.3.1-1] [MQTT5-3.3.1-1].
                let may_be_too_large = session.sizes.iter().any(|size| *size < u32::MAX);
                let may_be_given_up = session.was_member || may_be_too_large;
                assert!(may_be_given_up, "{}: a repetition without DUP: {publish:?}", link.client_id);
                session.flights.remove(&packet_id);
            }
            sending.is_repetition = *dup;
            let flight = session.flights.entry(packet_id).or_insert_with(fresh);
            // [MQTT-2.3.1-4] [MQTT5-2.2.1-4] [MQTT5-4.3.2-1] [MQTT5-4.3.3-1] [MQTT5-4.4.0-1] [B-061]
            let is_free = !link.under_way.contains(&packet_id);
            assert!(is_free, "{}: {packet_id} is in use on this very connection", link.client_id);
            assert!(
                !flight.released,
                "{}: {packet_id} again after its PUBREC [MQTT5-4.3.3-6]",
                link.client_id
            );
            flight.connection = connection;
            sending.begun = flight.begun;
            link.under_way.insert(packet_id);
            let (count, window) = (link.under_way.len(), usize::from(link.window));
            // [MQTT5-3.3.4-9] [MQTT5-4.9.0-1] [MQTT5-4.9.0-2] [B-108]
            assert!(count <= window, "{}: {count} under way, {window} is the most", link.client_id);
            self.coverage.see_if("window full", count == window);
        }
        link.sendings.push_back(sending);
    }

    /// A client heard a PUBLISH. `is_meant` says that it is still its connection.
    pub(crate) fn delivered(&mut self, connection: ConnectionId, delivery: &Delivery, is_meant: bool) {
        let link = self.links.get_mut(&connection).expect("CONNACK comes first [MQTT-3.2.0-1]");
        let sending = link.sendings.pop_front().expect("the core says when it sends");
        let client_id = link.client_id.clone();
        // A session that ended meanwhile has no promises left; bytes of its last connection may still arrive. An empty
        // payload does not say whose it is.
        let Some(session) = self.sessions.get_mut(&client_id) else { return };
        if session.incarnation != link.incarnation || !is_meant || delivery.payload.is_empty() {
            return;
        }
        let Self { links, sessions, groups, coverage, .. } = self;
        let link = &links[&connection];
        let session = sessions.get_mut(&client_id).expect("just seen");
        coverage.see_if("alias of the broker set", delivery.alias == Some(false));
        coverage.see_if("alias of the broker used", delivery.alias == Some(true));
        coverage
            .see_if("message expiry 0, delivered at once", delivery.expiry_secs == Some(0) && !delivery.dup);
        coverage.see_if("several subscription identifiers", delivery.subscription_ids.len() > 1);
        coverage.see_if("forwarded properties", !delivery.forwarded.is_empty());
        coverage.see_if("delivery with an expiry", delivery.expiry_secs.is_some());
        let is_kept = delivery.expiry_secs.is_some() && delivery.retain;
        coverage.see_if("retained delivery with an expiry", is_kept);
        assert_eq!(
            delivery.dup, sending.is_repetition,
            "{client_id}: the trace says what is sent: {delivery:?}"
        );
        if let Some(flight) = delivery.packet_id.and_then(|id| session.flights.get_mut(&id))
            && let Some(heard) = flight.heard.clone()
        {
            let holder = flight.holder;
            // [MQTT5-4.3.3-7]
            let has_same_content = (&heard.message.topic, &heard.message.payload, heard.qos)
                == (&delivery.topic, &delivery.payload, delivery.qos);
            let same = heard.fits(delivery, &sending)
                || session.expected_before(delivery, &sending).is_some()
                || session.may_be_retained(delivery)
                || groups.may_be(link.hearer(session), delivery, &sending);
            let same = has_same_content && same;
            assert!(same, "{client_id}: {heard:?} is repeated as {delivery:?}");
            coverage.see("repetition");
            coverage.see_if("repetition after its expiry", heard.message.is_expired(sending.at));
            if let Some(holder) = holder {
                groups.repeat(holder, &sending); // [MQTT5-4.8.2-4]
            }
            return;
        }
        coverage.see_if("repetition of what was not heard", delivery.dup);
        self.first_delivery(connection, delivery, &sending);
    }

    /// A client heard a message for the first time: a live one, one of a group, or a retained one.
    pub(super) fn first_delivery(
        &mut self,
        connection: ConnectionId,
        delivery: &Delivery,
        sending: &Sending,
    ) {
        let Self { links, sessions, groups, coverage, tally, .. } = self;
        let link = &links[&connection];
        let client_id = &link.client_id;
        let session = sessions.get_mut(client_id).expect("a client has a session");
        let hearer = link.hearer(session);
        let number = self.numbers.get(&delivery.payload).copied().flatten();
        let place = session.place(delivery, sending);
        let offer = groups.offer(hearer, delivery, sending);
        let has_properties = link.protocol.has_properties();
        let versions = self.versions.get(&delivery.payload).map_or([].as_slice(), Vec::as_slice);
        let mut holder = None;
        let is_next = place.as_ref().is_some_and(Place::is_next);
        let taken = if is_next {
            groups.doubt(&offer);
            None
        } else {
            groups
                .take(&offer, sending, false)
                .or_else(|| if place.is_none() { groups.take(&offer, sending, true) } else { None })
        };
        let heard = if let Some((id, expected)) = taken {
            coverage.see(match delivery.qos {
                QoS::AtMostOnce => "shared delivery QoS 0",
                QoS::AtLeastOnce => "shared delivery QoS 1",
                QoS::ExactlyOnce => "shared delivery QoS 2",
            });
            let is_passed_on = groups.is_passed_on(id);
            coverage.see_if("shared delivery to 3.1.1", !has_properties);
            coverage.see_if("shared delivery passed to another member", is_passed_on);
            coverage.see_if("shared delivery of one of several groups", offer.is_of_several());
            let waited = sending.begun > expected.message.at;
            coverage.see_if("shared delivery out of the group's queue", waited && !is_passed_on);
            if place.is_some() || session.may_be_retained(delivery) {
                groups.doubt(&offer);
            }
            if delivery.retain {
                session.satisfy(delivery, has_properties);
            }
            holder = Some(id);
            expected
        } else if let Some(kept) = (delivery.retain && !is_next)
            .then(|| session.take_retained(delivery, sending, versions))
            .flatten()
        {
            // RETAIN set [MQTT-3.3.1-8], and never older than what came live [B-010].
            coverage.see("retained delivery");
            let newer = session.is_new_enough(delivery, number);
            assert!(newer, "{client_id}: an older value of {} after a newer one [B-010]", delivery.topic);
            kept
        } else if let Some(place) = place {
            tally.ambiguous += u64::from(place.is_ambiguous);
            for missing in &place.missing {
                match missing {
                    Missing::Expired => tally.expired += 1,
                    Missing::TooLarge => {
                        tally.too_large += 1;
                        self.lost.push(format!("{client_id}, too large before {delivery:?}"));
                    }
                    Missing::Lost => {
                        tally.lost += 1;
                        self.lost.push(format!("{client_id}, before {delivery:?}"));
                    }
                }
            }
            coverage.see(match delivery.qos {
                QoS::AtMostOnce => "QoS 0 delivery",
                QoS::AtLeastOnce => "QoS 1 delivery",
                QoS::ExactlyOnce => "QoS 2 delivery",
            });
            coverage.see_if("retain as published", delivery.retain);
            if delivery.retain {
                session.satisfy(delivery, has_properties);
            }
            session.pass(delivery, &place, number)
        } else if let Some(expected) = session.expected_before(delivery, sending)
            && groups.mistaken(hearer, delivery)
        {
            expected
        } else if let Some(expected) = session.expected_before(delivery, sending)
            && session.may_be_retained(delivery)
        {
            // The retained copy came before and was taken for the live one: to a client without identifiers they look alike.
            coverage.see("live delivery behind its retained copy");
            expected
        } else if groups.is_confused {
            coverage.see("delivery to a member after a crash");
            return;
        } else {
            // [MQTT-3.3.2-3] [MQTT5-3.3.2-3] [MQTT-4.6.0-6] [MQTT5-4.6.0-5] [MQTT-4.3.3-1]
            panic!(
                "{client_id} heard {delivery:?}, sent {sending:?}, which it should not, or not so, not twice, or \
                 not now; {}; {}",
                session.describe(delivery),
                groups.describe(delivery),
            )
        };
        coverage.see_if(
            "properties dropped for 3.1.1",
            !has_properties && !heard.message.forwarded.is_empty(), // [B-153]
        );
        let is_shortened = sending.begun.since(heard.message.at) >= Duration(1_000);
        coverage.see_if("delivery with a shortened expiry", is_shortened && delivery.expiry_secs.is_some());
        if let Some(flight) = delivery.packet_id.and_then(|id| session.flights.get_mut(&id)) {
            flight.heard = Some(heard);
            flight.holder = holder;
        }
    }

    /// The next packet to a client that is neither CONNACK, PUBLISH nor DISCONNECT.
    pub(crate) fn replied(&mut self, connection: ConnectionId, heard: &Heard) {
        let link = self.links.get_mut(&connection).expect("CONNACK comes first [MQTT-3.2.0-1]");
        if *heard == Heard::Pingresp {
            // It overtakes what waits for the store.
            let at = link.replies.iter().position(|reply| reply == heard).expect("PINGREQ came before");
            link.replies.remove(at);
            return;
        }
        let reply = link.replies.pop_front();
        let mut alternatives = link.alternatives.iter();
        if alternatives.any(|(first, other)| reply.as_ref() == Some(first) && other == heard) {
            return;
        }
        assert_eq!(reply.as_ref(), Some(heard), "{}: the next reply", link.client_id);
    }

    pub(crate) fn accepted(&self, connection: ConnectionId, heard: &Heard) {
        let link = &self.links[&connection];
        // [MQTT5-3.1.4-5] [MQTT5-3.2.2-1] [B-042] [B-123]
        assert_eq!(link.connack.as_ref(), Some(heard), "{}: the CONNACK", link.client_id);
    }

    pub(crate) fn replies_left(&self, connection: ConnectionId) -> usize {
        self.links.get(&connection).map_or(0, |link| link.replies.len())
    }

    /// Everything has arrived that will: what is still expected at QoS 1 and 2, or retained, is lost.
    pub(crate) fn settle(&mut self) {
        let Self { now, sessions, groups, tally, .. } = self;
        for (client_id, session) in sessions {
            for (missing, expected, is_owed) in session.missing(*now) {
                let qos = expected.qos;
                match missing {
                    Missing::Lost if is_owed && qos == QoS::AtMostOnce => tally.lost_at_most_once += 1,
                    _ if qos == QoS::AtMostOnce => {}
                    // What is kept is counted once when its time is over, and not for each who asked for it.
                    Missing::Expired if is_owed => {}
                    Missing::Expired => tally.expired += 1,
                    Missing::TooLarge => {
                        tally.too_large += 1;
                        self.lost.push(format!("{client_id}, too large: {expected:?}"));
                    }
                    Missing::Lost => {
                        tally.lost += 1;
                        self.lost.push(format!("{client_id}: {expected:?}"));
                    }
                }
            }
        }
        for (missing, message) in groups.missing(*now, |_| true) {
            match missing {
                Missing::Expired => tally.expired += 1,
                Missing::TooLarge => tally.too_large += 1,
                Missing::Lost => {
                    tally.lost_of_groups += 1;
                    self.lost.push(format!("a group: {message:?}"));
                }
            }
        }
    }

    /// Messages of groups that no member has heard although one is there, beyond those that absent ones may have been
    /// sent [B-070].
    pub(crate) fn unheard_of_groups(&mut self) -> u64 {
        let Self { now, sessions, groups, .. } = self;
        if groups.is_confused {
            return 0;
        }
        let is_present =
            |client_id: &str| sessions.get(client_id).is_some_and(|session| session.connection.is_some());
        let missing = groups.missing(*now, |members| members.iter().any(|member| is_present(member)));
        let lost = missing.iter().filter(|(missing, _)| *missing == Missing::Lost);
        self.waiting = lost.map(|(_, message)| format!("waits: {message:?}")).collect();
        let away = sessions.values().filter(|session| session.connection.is_none() && session.was_member);
        let unheard = away.flat_map(Session::unheard).count();
        self.waiting.len().saturating_sub(unheard) as u64
    }
}
