//! The beginning and the end of a connection: CONNECT, take-over, DISCONNECT in both directions, and every other way to
//! leave.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::clock::Duration;
use crate::codec::packet::{Connack, Connect, Disconnect};
use crate::codec::property::PropertyList;
use crate::codec::{DecodeError, Properties, Property, ReasonCode, encode};

use super::Broker;
use super::close_reason::CloseReason;
use super::event::{Event, Limit, PacketKind};
use super::link::{ConnectionId, LinkState};
use super::options::PACKET_SIZE_UNLIMITED;
use super::session::SessionId;
use super::terms::{Retention, Terms};
use super::topic_aliases::SentAliases;

/// Who stands behind a CONNECT, as far as that was found out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Identity<'a> {
    /// The user, if one authenticated.
    pub(super) user: Option<&'a str>,
    /// What the method of authentication says last.
    pub(super) data: Option<&'a [u8]>,
}

/// A session that a connection was attached to.
#[derive(Clone, Copy, Debug)]
struct Admission {
    session_id: SessionId,
    session_present: bool,
}

impl Broker {
    /// A CONNECT on a connection that had none.
    pub(super) fn connect(&mut self, id: ConnectionId, connect: &Connect<'_>) {
        if let Some(link) = self.links.find_mut(id) {
            // Both hold for a refusal as well.
            link.protocol = connect.protocol;
            link.packet_size_max = Terms::of(connect, &self.options).packet_size_max;
        }
        match self.begin_authentication(id, connect) {
            Ok(true) => {}
            Ok(false) => self.judge_connect(id, connect, Identity::default()),
            Err(reason) => self.close(id, reason),
        }
    }

    /// A CONNECT whose sender is known as far as it wants to be.
    pub(super) fn judge_connect(&mut self, id: ConnectionId, connect: &Connect<'_>, identity: Identity<'_>) {
        let terms = Terms::of(connect, &self.options);
        if let Err(reason) = self.try_connect(id, connect, &terms, identity) {
            self.close(id, reason);
        }
    }

    fn try_connect(
        &mut self,
        id: ConnectionId,
        connect: &Connect<'_>,
        terms: &Terms,
        identity: Identity<'_>,
    ) -> Result<(), CloseReason> {
        if self.is_draining
            && let Some(redirect) = &self.options.redirect
        {
            return Err(CloseReason::Redirected { permanently: redirect.permanently });
        }
        let assigned;
        let (client_id, is_assigned) = if !connect.client_id.is_empty() {
            (connect.client_id, false)
        } else if terms.assigns_client_id {
            assigned = self.assign_client_id();
            (assigned.as_str(), true)
        } else {
            return Err(CloseReason::ClientIdRefused); // [MQTT-3.1.3-8]
        };
        // Before anything has changed: a client that cannot be told that it is welcome is not.
        let offer = self.offer(id, terms, is_assigned.then_some(client_id), identity.data)?;
        let admission = self.admit(id, connect, client_id, terms, identity)?;
        self.welcome(id, admission, terms, &offer);
        Ok(())
    }

    /// What the server grants, wants, and does otherwise than asked; none before 5.0. Fails if even the least of it is
    /// more than the client takes.
    fn offer(
        &self,
        id: ConnectionId,
        terms: &Terms,
        assigned_client_id: Option<&str>,
        data: Option<&[u8]>,
    ) -> Result<PropertyList, CloseReason> {
        let options = &self.options;
        let mut offer = PropertyList::default();
        if !terms.protocol.has_properties() {
            return Ok(offer);
        }
        if let Some(secs) = terms.retention.imposed_secs {
            offer.push(&Property::SessionExpirySecs(secs)); // [B-042]
        }
        if options.receive_max < u16::MAX {
            offer.push(&Property::ReceiveMaximum(options.receive_max));
        }
        if options.packet_size_max < PACKET_SIZE_UNLIMITED {
            offer.push(&Property::MaximumPacketSize(options.packet_size_max));
        }
        if let Some(client_id) = assigned_client_id {
            offer.push(&Property::AssignedClientId(client_id)); // [MQTT5-3.2.2-16]
        }
        if options.topic_alias_max > 0 {
            offer.push(&Property::TopicAliasMaximum(options.topic_alias_max));
        }
        if terms.imposes_keep_alive {
            offer.push(&Property::ServerKeepAliveSecs(terms.keep_alive_secs));
        }
        self.push_authentication(id, data, &mut offer);
        let size = |offer: &PropertyList| {
            let properties = offer.as_properties();
            let connack = Connack { session_present: false, reason: ReasonCode::Success, properties };
            let mut packet = Vec::new();
            encode::connack(&mut packet, terms.protocol, &connack).map_or(0, |()| packet.len())
        };
        if size(&offer) > terms.packet_size_max as usize {
            return Err(CloseReason::ReplyTooLarge); // [MQTT5-3.1.2-24]
        }
        // [MQTT5-3.1.2-28]
        let information = options.response_information.as_ref().filter(|_| terms.wants_response_information);
        if let Some(information) = information {
            let mut fuller = offer.clone();
            fuller.push(&Property::ResponseInformation(information));
            if size(&fuller) <= terms.packet_size_max as usize {
                return Ok(fuller);
            }
        }
        Ok(offer)
    }

    /// Finds or makes the session and attaches the connection to it.
    fn admit(
        &mut self,
        id: ConnectionId,
        connect: &Connect<'_>,
        client_id: &str,
        terms: &Terms,
        identity: Identity<'_>,
    ) -> Result<Admission, CloseReason> {
        let will = match &connect.will {
            Some(will) => Some(Box::new(self.read_will(will)?)),
            None => None,
        };
        if let Some(stored) = self.sessions.find_by_client_id(client_id) {
            self.catch_up_session(stored);
        }
        let stored = self.sessions.find_by_client_id(client_id);
        if let Some(session) = stored.and_then(|session| self.sessions.find(session))
            && session.user.as_deref() != identity.user
        {
            // What waits in a session is not for everybody who knows a client id [B-039].
            return Err(CloseReason::AuthenticationRefused(ReasonCode::NotAuthorized));
        }
        if !terms.retention.ends_with_connection && self.store_trouble().is_some() {
            return Err(CloseReason::StoreFailed);
        }
        self.take_over(client_id)?;
        let (session_id, session_present) = self.find_or_make_session(client_id, terms)?;
        self.sessions.mark_present(session_id);
        let session = self.sessions.find_mut(session_id).expect("just found or made");
        session.connection = Some(id);
        session.user = identity.user.map(Into::into);
        session.ends_with_connection = terms.retention.ends_with_connection;
        session.expiry = terms.retention.expiry;
        // One that waited for its delay is not published: the client is back in time [MQTT5-3.1.3-9].
        session.will = will;
        // Nothing was sent on this connection yet [MQTT-4.4.0-1].
        session.outgoing.begin_anew();
        session.receipts.begin_connection(terms.receive_max);
        self.record_session(session_id);
        self.arm_session(session_id);
        Ok(Admission { session_id, session_present })
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
        if self.outputs.journal.is_ending(client_id) {
            // An earlier CONNECT has ended its session, which is not gone from the disk yet.
            self.outputs.journal.promise_all();
        }
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
    fn welcome(&mut self, id: ConnectionId, admission: Admission, terms: &Terms, offer: &PropertyList) {
        let Admission { session_id, session_present } = admission;
        let session = self.sessions.find(session_id).expect("just admitted");
        let link = self.links.find_mut(id).expect("its CONNECT is being handled");
        link.state = LinkState::Connected(session_id);
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
        self.move_memberships(session_id);
        // The first packet of all [MQTT-3.2.0-1].
        let connack = Connack {
            session_present: session_present && terms.reports_session_present,
            reason: ReasonCode::Success,
            properties: offer.as_properties(),
        };
        self.reply(id, PacketKind::Connack, None, |bytes| {
            encode::connack(bytes, terms.protocol, &connack).expect("every version can say success");
        });
        self.resend_releases(id, session_id);
        self.refill_for_packet(session_id);
    }

    /// DISCONNECT from a client. All of it is judged before any of it takes effect.
    pub(super) fn disconnect(
        &mut self,
        id: ConnectionId,
        session_id: SessionId,
        disconnect: &Disconnect<'_>,
    ) {
        if !disconnect.reason.is_of_client_disconnect() {
            return self.close(id, CloseReason::DisconnectReason); // [MQTT5-3.14.2-1]
        }
        let mut retention = None;
        for property in disconnect.properties {
            match property {
                Property::SessionExpirySecs(secs) => {
                    retention = Some(Retention::of_secs(secs, &self.options))
                }
                Property::ServerReference(_) => {
                    let error = DecodeError::MisplacedProperty(0x1C);
                    return self.close(id, CloseReason::Malformed(error));
                }
                _ => {}
            }
        }
        if let Some(retention) = retention {
            let session = self.session_mut(session_id);
            if session.ends_with_connection && !retention.ends_with_connection {
                return self.close(id, CloseReason::SessionExpiryRaised); // [B-041]
            }
            session.ends_with_connection = retention.ends_with_connection;
            session.expiry = retention.expiry;
        }
        self.close(id, CloseReason::Disconnected(disconnect.reason));
    }

    /// Ends a connection, and tells the peer why in the way of its state, if it understands that. Its outbox is flushed
    /// once more and then forgotten.
    pub(super) fn close(&mut self, id: ConnectionId, reason: CloseReason) {
        let Some(link) = self.links.find_mut(id) else { return };
        let mut is_unwelcomed = false;
        if link.state != LinkState::Closing && link.outbox.has_gate() {
            // What is stored may not have had its turn yet.
            link.outbox.open(|promise| self.outputs.journal.is_kept(promise));
            is_unwelcomed = link.outbox.holds_connack();
            if link.outbox.has_gate() {
                // What is not stored is not promised; a last word need not wait for it.
                self.outputs.drop_held(link);
            }
        }
        match link.state {
            LinkState::Closing => return,
            // Nothing comes before its CONNACK, which it will not get [MQTT-3.2.0-1].
            LinkState::Connected(_) if is_unwelcomed => {}
            LinkState::AwaitingConnect | LinkState::Authenticating => self.say_no(id, reason),
            LinkState::Connected(_) => self.say_good_bye(id, reason),
        }
        let Some(link) = self.links.find_mut(id) else { return };
        let session_id = link.session();
        link.state = LinkState::Closing;
        if std::mem::take(&mut link.is_found_full) {
            self.shared.note_drained();
        }
        if std::mem::take(&mut link.awaits_fan_out) {
            self.forget_put_off(id);
        }
        self.forget_long_publish(id);
        self.forget_long_request(id);
        let Some(link) = self.links.find_mut(id) else { return };
        if !link.outbox.is_empty() {
            // Even if it is one of many: it is freed at the end of the turn.
            self.outputs.mark_dirty(link);
        }
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
            self.detach(session_id, reason);
        }
    }

    /// Refuses a CONNECT, where the standard has a word for it [MQTT-3.2.2-5].
    fn say_no(&mut self, id: ConnectionId, reason: CloseReason) {
        let Some(protocol) = self.links.find(id).map(|link| link.protocol) else { return };
        let Some(code) = reason.connack(protocol) else { return };
        self.say_in_words(id, PacketKind::Connack, reason, |bytes, properties| {
            // Session present is 0 with every refusal [MQTT-3.2.2-4].
            let connack = Connack { session_present: false, reason: code, properties };
            // What this version has no return code for is not sent.
            let _ = encode::connack(bytes, protocol, &connack);
        });
    }

    /// Sends DISCONNECT, which clients of 5.0 understand.
    fn say_good_bye(&mut self, id: ConnectionId, reason: CloseReason) {
        let has_reasons = self.has_reasons(id);
        let Some(reason_code) = reason.disconnect().filter(|_| has_reasons) else { return };
        self.say_in_words(id, PacketKind::Disconnect, reason, |bytes, properties| {
            encode::disconnect(bytes, &Disconnect { reason: reason_code, properties });
        });
    }

    /// Writes a last packet, with as much beside its code as leaves it no larger than the client takes [MQTT5-3.2.2-19]
    /// [MQTT5-3.14.2-3]. The reason in words is the first to go: another server's name is of more use.
    fn say_in_words(
        &mut self,
        id: ConnectionId,
        kind: PacketKind,
        reason: CloseReason,
        write: impl Fn(&mut Vec<u8>, Properties<'_>),
    ) {
        let in_words = reason.to_string();
        let Self { links, outputs, options, .. } = self;
        let Some(link) = links.find_mut(id) else { return };
        let redirect = match reason {
            CloseReason::Redirected { .. } => options.redirect.as_ref(),
            _ => None,
        };
        let reference = redirect.map(|redirect| Property::ServerReference(&redirect.server_reference));
        let reason = Property::ReasonString(&in_words);
        let choices = [
            [Some(reason), reference].into_iter().flatten().collect(),
            reference.into_iter().collect(),
            PropertyList::default(),
        ];
        let size_max = link.packet_size_max as usize;
        for properties in &choices {
            let write = |bytes: &mut Vec<u8>| write(bytes, properties.as_properties());
            if outputs.write_within(link, kind, None, size_max, write) {
                return;
            }
        }
    }

    /// The connection of a session has ended.
    fn detach(&mut self, id: SessionId, reason: CloseReason) {
        self.session_mut(id).connection = None;
        self.outputs.metrics.clients_connected -= 1;
        self.connections_full_logged = false;
        self.leave(id, reason);
    }

    /// What becomes of the session when its client has gone.
    pub(super) fn leave(&mut self, id: SessionId, reason: CloseReason) {
        let now = self.now;
        let Some(session) = self.sessions.find_mut(id) else { return };
        let name = session.name;
        let will = match session.will.take() {
            _ if reason.is_disconnect() => None, // [MQTT-3.14.4-3]
            Some(mut will) if will.delay > Duration(0) && !session.ends_with_connection => {
                will.due_at = Some(now + will.delay); // [MQTT5-3.1.2-8]
                session.will = Some(will);
                None
            }
            will => will,
        };
        if session.ends_with_connection {
            self.end_session(id);
        } else {
            self.sessions.mark_absent(id, now);
            self.record_session(id);
            self.arm_session(id);
            self.absent_from_groups(id);
        }
        // After the session is settled: it may be among the receivers of its own will.
        if let Some(will) = will {
            self.publish_will(id, name, will); // [MQTT-3.1.2-8]
        }
    }

    /// A client id that nobody has and nobody can guess: 23 letters and digits.
    fn assign_client_id(&mut self) -> String {
        const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        loop {
            self.client_ids_assigned += 1;
            // Whoever has seen many of them still cannot tell the next one.
            let mut mac =
                Hmac::<Sha256>::new_from_slice(&self.options.client_id_key).expect("a key of any length");
            mac.update(&self.client_ids_assigned.to_be_bytes());
            let code = mac.finalize().into_bytes();
            let mut rest = code.iter().take(16).fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
            let mut client_id = String::from("auto");
            for _ in 0..19 {
                client_id.push(char::from(DIGITS[(rest % 62) as usize]));
                rest /= 62;
            }
            if self.sessions.find_by_client_id(&client_id).is_none() {
                return client_id;
            }
        }
    }
}
