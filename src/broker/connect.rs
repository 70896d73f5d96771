//! The beginning and the end of a connection: CONNECT, take-over, DISCONNECT in both directions, and every other way to
//! leave.

use std::hash::BuildHasher;

use crate::clock::Duration;
use crate::codec::packet::{Connack, Connect, Disconnect};
use crate::codec::property::PropertyList;
use crate::codec::{DecodeError, Properties, Property, Protocol, ReasonCode, encode};
use crate::hash::seeded;

use super::Broker;
use super::close_reason::CloseReason;
use super::event::{Event, Limit, PacketKind};
use super::link::{ConnectionId, LinkState};
use super::session::SessionId;
use super::terms::{Retention, Terms};
use super::topic_aliases::SentAliases;

/// Without this option a packet size has no limit that a client has to be told.
const PACKET_SIZE_UNLIMITED: u32 = 268_435_455;

/// A DISCONNECT with a code and nothing else.
const BARE_DISCONNECT_BYTES: u32 = 3;

impl Broker {
    /// A CONNECT on a connection that had none.
    pub(super) fn connect(&mut self, id: ConnectionId, connect: &Connect<'_>) {
        if let Some(link) = self.links.find_mut(id) {
            // Holds for a refusal as well.
            link.packet_size_max = Terms::of(connect, &self.options).packet_size_max;
        }
        match self.begin_authentication(id, connect) {
            Ok(true) => {}
            Ok(false) => self.judge_connect(id, connect, None),
            Err(reason) => self.refuse(id, reason, Some(connect.protocol)),
        }
    }

    /// A CONNECT whose sender is known as far as it wants to be; `data` is what its method of authentication says last.
    pub(super) fn judge_connect(&mut self, id: ConnectionId, connect: &Connect<'_>, data: Option<&[u8]>) {
        let terms = Terms::of(connect, &self.options);
        match self.admit(id, connect, &terms) {
            Ok(admission) => self.welcome(id, admission, &terms, data),
            Err(reason) => self.refuse(id, reason, Some(connect.protocol)),
        }
    }

    /// Finds or makes the session and attaches the connection to it.
    fn admit(
        &mut self,
        id: ConnectionId,
        connect: &Connect<'_>,
        terms: &Terms,
    ) -> Result<Admission, CloseReason> {
        if self.is_draining
            && let Some(redirect) = &self.options.redirect
        {
            return Err(CloseReason::Redirected { permanently: redirect.permanently });
        }
        let assigned;
        let client_id = if !connect.client_id.is_empty() {
            connect.client_id
        } else if terms.assigns_client_id {
            assigned = self.assign_client_id();
            &assigned
        } else {
            return Err(CloseReason::ClientIdRefused); // [MQTT-3.1.3-8]
        };
        let will = match &connect.will {
            Some(will) => Some(Box::new(self.read_will(will)?)),
            None => None,
        };
        self.take_over(client_id)?;
        let (session_id, session_present) = self.find_or_make_session(client_id, terms)?;
        self.sessions.mark_present(session_id);
        let session = self.sessions.find_mut(session_id).expect("just found or made");
        session.connection = Some(id);
        session.ends_with_connection = terms.retention.ends_with_connection;
        session.expiry = terms.retention.expiry;
        // One that waited for its delay is not published: the client is back in time [MQTT5-3.1.3-9].
        session.will = will;
        // Nothing was sent on this connection yet [MQTT-4.4.0-1].
        session.outgoing.sent_here = 0;
        session.receipts.begin_connection(terms.receive_max);
        self.arm_session(session_id);
        Ok(Admission { session_id, session_present, assigned_client_id: connect.client_id.is_empty() })
    }

    /// Closes the connection that holds this client id now [MQTT-3.1.4-2], or checks that there is room for one
    /// more.
    fn take_over(&mut self, client_id: &str) -> Result<(), CloseReason> {
        let holder = self
            .sessions
            .find_by_client_id(client_id)
            .and_then(|session| self.sessions.find(session))
            .and_then(|session| session.connection);
        if let Some(old) = holder {
            self.outputs.metrics.takeovers += 1;
            self.close(old, CloseReason::TakenOver);
        } else if self.outputs.metrics.clients_connected >= u64::from(self.options.connections_max) {
            self.outputs.metrics.connections_refused += 1;
            if !self.connections_full_logged {
                self.connections_full_logged = true;
                let value = u64::from(self.options.connections_max);
                self.outputs.limit_reached(Limit::Connections, None, value);
            }
            return Err(CloseReason::TooManyConnections);
        }
        Ok(())
    }

    /// The session to go on with, and whether it was there before [MQTT-3.1.2-4] [MQTT-3.1.2-6].
    fn find_or_make_session(
        &mut self,
        client_id: &str,
        terms: &Terms,
    ) -> Result<(SessionId, bool), CloseReason> {
        if let Some(stored) = self.sessions.find_by_client_id(client_id) {
            if !terms.clean_start {
                return Ok((stored, true));
            }
            self.end_session(stored);
        }
        if self.sessions.len() >= self.options.sessions_max as usize {
            let Some(absent) = self.sessions.longest_absent() else {
                return Err(CloseReason::TooManySessions);
            };
            let client_id = self.sessions.find(absent).expect("listed as absent").client_id.clone();
            self.outputs.metrics.sessions_evicted += 1;
            self.outputs.events.push_back(Event::SessionEvicted { client_id });
            self.end_session(absent);
        }
        Ok((self.sessions.insert(client_id, self.now), false))
    }

    /// Says yes [MQTT-3.1.4-4], and sends what waited for this client.
    fn welcome(&mut self, id: ConnectionId, admission: Admission, terms: &Terms, data: Option<&[u8]>) {
        let Admission { session_id, session_present, .. } = admission;
        let session = self.sessions.find(session_id).expect("just admitted");
        let link = self.links.find_mut(id).expect("its CONNECT is being handled");
        link.state = LinkState::Connected(session_id);
        link.protocol = terms.protocol;
        link.keep_alive_secs = terms.keep_alive_secs;
        link.window = terms.window;
        if terms.topic_alias_max > 0 {
            link.extras_mut().sent_aliases = SentAliases::new(terms.topic_alias_max);
        }
        self.outputs.metrics.clients_connected += 1;
        self.outputs.events.push_back(Event::Connected {
            connection: id,
            client_id: session.client_id.clone(),
            protocol: terms.protocol,
            ends_with_connection: terms.retention.ends_with_connection,
            keep_alive_secs: terms.keep_alive_secs,
            session_present,
        });
        self.arm_link(id);
        self.enter_groups(session_id);
        let mut properties = PropertyList::default();
        if terms.protocol.has_properties() {
            self.push_offer(session_id, admission, terms, &mut properties);
            self.push_authentication(id, data, &mut properties);
        }
        // The first packet of all [MQTT-3.2.0-1].
        let connack = Connack {
            session_present: session_present && terms.reports_session_present,
            reason: ReasonCode::Success,
            properties: properties.as_properties(),
        };
        self.send_connack(id, terms.protocol, &connack);
        let Some(link) = self.links.find_mut(id).filter(|link| link.state != LinkState::Closing) else {
            return;
        };
        link.welcomed = true;
        self.resend_releases(id, session_id);
        self.refill(session_id);
    }

    /// What the server grants, wants, and does otherwise than asked.
    fn push_offer(
        &self,
        session_id: SessionId,
        admission: Admission,
        terms: &Terms,
        properties: &mut PropertyList,
    ) {
        let options = &self.options;
        if let Some(secs) = terms.retention.imposed_secs {
            properties.push(&Property::SessionExpirySecs(secs)); // [B-042]
        }
        if options.receive_max < u16::MAX {
            properties.push(&Property::ReceiveMaximum(options.receive_max));
        }
        if options.packet_size_max < PACKET_SIZE_UNLIMITED {
            properties.push(&Property::MaximumPacketSize(options.packet_size_max));
        }
        if admission.assigned_client_id {
            let client_id = &self.session(session_id).client_id;
            properties.push(&Property::AssignedClientId(client_id)); // [MQTT5-3.2.2-16]
        }
        if options.topic_alias_max > 0 {
            properties.push(&Property::TopicAliasMaximum(options.topic_alias_max));
        }
        if terms.imposes_keep_alive {
            properties.push(&Property::ServerKeepAliveSecs(terms.keep_alive_secs));
        }
        if terms.wants_response_information
            && let Some(information) = &options.response_information
        {
            properties.push(&Property::ResponseInformation(information)); // [MQTT5-3.1.2-28]
        }
    }

    fn send_connack(&mut self, id: ConnectionId, protocol: Protocol, connack: &Connack<'_>) {
        self.reply(id, PacketKind::Connack, None, |bytes| {
            // What this version has no return code for is not sent.
            let _ = encode::connack(bytes, protocol, connack);
        });
    }

    /// Says no, where the standard has a word for it, and closes [MQTT-3.2.2-5]. `protocol` is what the CONNECT said to
    /// speak, as far as that is known.
    pub(super) fn refuse(&mut self, id: ConnectionId, reason: CloseReason, protocol: Option<Protocol>) {
        let protocol = protocol.unwrap_or_default();
        if let Some(code) = reason.connack(protocol) {
            let write = |bytes: &mut Vec<u8>, properties: Properties<'_>| {
                // Session present is 0 with every refusal [MQTT-3.2.2-4].
                let connack = Connack { session_present: false, reason: code, properties };
                // What this version has no return code for is not sent.
                let _ = encode::connack(bytes, protocol, &connack);
            };
            let words = self.words(id, reason, write);
            self.reply(id, PacketKind::Connack, None, |bytes| write(bytes, words.as_properties()));
        }
        self.close(id, reason);
    }

    /// What is said beside the code of a CONNACK or DISCONNECT: as much as leaves the packet no larger than the client
    /// takes [MQTT5-3.2.2-19] [MQTT5-3.14.2-3]. The reason is the first to go: another server's name is of more use.
    fn words(
        &self,
        id: ConnectionId,
        reason: CloseReason,
        write: impl Fn(&mut Vec<u8>, Properties<'_>),
    ) -> PropertyList {
        let size_max = self.links.find(id).map_or(0, |link| link.packet_size_max as usize);
        let in_words = reason.to_string();
        let redirect = match reason {
            CloseReason::Redirected { .. } => self.options.redirect.as_ref(),
            _ => None,
        };
        let reference = redirect.map(|redirect| Property::ServerReference(&redirect.server_reference));
        let mut packet = Vec::new();
        for reason in [Some(Property::ReasonString(&in_words)), None] {
            let properties: PropertyList = reason.into_iter().chain(reference).collect();
            packet.clear();
            write(&mut packet, properties.as_properties());
            if packet.len() <= size_max {
                return properties;
            }
        }
        PropertyList::default()
    }

    /// DISCONNECT from a client.
    pub(super) fn disconnect(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        disconnect: &Disconnect<'_>,
    ) {
        if !disconnect.reason.is_of_client_disconnect() {
            return self.close(id, CloseReason::DisconnectReason); // [MQTT5-3.14.2-1]
        }
        for property in disconnect.properties {
            match property {
                Property::SessionExpirySecs(secs) => {
                    let retention = Retention::of_secs(secs, &self.options);
                    let session = self.session_mut(session_id);
                    if session.ends_with_connection && !retention.ends_with_connection {
                        return self.close(id, CloseReason::SessionExpiryRaised); // [B-041]
                    }
                    session.ends_with_connection = retention.ends_with_connection;
                    session.expiry = retention.expiry;
                }
                Property::ServerReference(_) => {
                    let error = DecodeError::MisplacedProperty(0x1C);
                    return self.close(id, CloseReason::Malformed(error));
                }
                _ => {}
            }
        }
        self.close(id, CloseReason::Disconnected(disconnect.reason));
    }

    /// Tells a client why it is closed, if it is connected and understands it. The words are left out where they are too
    /// many for it.
    fn send_disconnect(&mut self, id: ConnectionId, reason: CloseReason) {
        let Some(code) = reason.code() else { return };
        let write = |bytes: &mut Vec<u8>, properties: Properties<'_>| {
            encode::disconnect(bytes, &Disconnect { reason: code, properties });
        };
        let words = self.words(id, reason, write);
        let Self { links, outputs, .. } = self;
        let Some(link) = links.find_mut(id) else { return };
        if link.packet_size_max >= BARE_DISCONNECT_BYTES {
            outputs.write(link, PacketKind::Disconnect, None, |bytes| write(bytes, words.as_properties()));
        }
    }

    /// Ends a connection. Its outbox is flushed once more and then forgotten.
    pub(super) fn close(&mut self, id: ConnectionId, reason: CloseReason) {
        let Some(link) = self.links.find(id) else { return };
        if link.state == LinkState::Closing {
            return;
        }
        if link.welcomed && link.protocol.has_properties() {
            self.send_disconnect(id, reason);
        }
        let Some(link) = self.links.find_mut(id) else { return };
        let (session_id, welcomed) = (link.session(), link.welcomed);
        link.state = LinkState::Closing;
        if let Some((timer, _)) = link.timer.take() {
            self.wheel.cancel(timer);
        }
        let client_id = session_id
            .and_then(|session| self.sessions.find(session))
            .map(|session| session.client_id.clone());
        let outputs = &mut self.outputs;
        outputs.metrics.closed_by_limit += u64::from(reason.is_limit());
        outputs.metrics.closed_by_violation += u64::from(reason.is_violation());
        outputs.closing.push_back(id);
        outputs.events.push_back(Event::Closed {
            connection: id,
            client_id,
            reason,
            duration: self.now.since(link.opened_at),
            packets_received: link.packets_received,
            packets_sent: link.packets_sent,
        });
        if let Some(session_id) = session_id {
            if !welcomed {
                // Its CONNACK could not be sent, so its CONNECT was not accepted [MQTT5-3.1.2-7].
                self.session_mut(session_id).will = None;
            }
            self.detach(session_id, reason);
        }
    }

    /// What becomes of the session when its connection ends.
    fn detach(&mut self, id: SessionId, reason: CloseReason) {
        let session = self.sessions.find_mut(id).expect("a connected link has a session");
        session.connection = None;
        let will = match session.will.take() {
            _ if reason.is_disconnect() => None, // [MQTT-3.14.4-3]
            Some(mut will) if will.delay > Duration(0) && !session.ends_with_connection => {
                will.due_at = Some(self.now + will.delay); // [MQTT5-3.1.2-8]
                session.will = Some(will);
                None
            }
            will => will,
        };
        let ends = session.ends_with_connection;
        self.outputs.metrics.clients_connected -= 1;
        self.connections_full_logged = false;
        if ends {
            self.end_session(id);
        } else {
            self.sessions.mark_absent(id, self.now);
            self.arm_session(id);
            self.absent_from_groups(id);
        }
        // After the session is settled: it may be among the receivers of its own will.
        if let Some(will) = will {
            self.publish_will(id.subscriber(), &will); // [MQTT-3.1.2-8]
        }
    }

    /// A client id that nobody has and nobody can guess: 23 letters and digits.
    fn assign_client_id(&mut self) -> String {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let seed = seeded(self.options.seed);
        loop {
            self.client_ids_assigned += 1;
            let mut client_id = String::from("auto");
            for half in 0..2_u8 {
                let mut rest = seed.hash_one((self.client_ids_assigned, half, "client id"));
                for _ in 0..if half == 0 { 10 } else { 9 } {
                    client_id.push(char::from(DIGITS[(rest % 62) as usize]));
                    rest /= 62;
                }
            }
            if self.sessions.find_by_client_id(&client_id).is_none() {
                return client_id;
            }
        }
    }
}

/// A session that a connection was attached to.
#[derive(Clone, Copy)]
struct Admission {
    session_id: SessionId,
    session_present: bool,
    /// Whether the client has to be told its identifier.
    assigned_client_id: bool,
}
