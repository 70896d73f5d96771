//! Enhanced authentication: the exchange of AUTH packets, before CONNACK and again while connected.
//!
//! ```text
//!  CONNECT with a method ──> (server's turn) ──continue: AUTH 0x18──> (client's turn)
//!                              │      ^                                  │
//!                              │      └────────────── AUTH 0x18 ─────────┘
//!                              ├──accept──> CONNACK 0, or AUTH 0 when it was begun anew by AUTH 0x19
//!                              └──refuse──> CONNACK, or DISCONNECT when connected
//! ```
//!
//! The core hands each step out and is told the verdict, at once or later. Before CONNACK a client is not read while its
//! verdict is awaited, so what it sends ahead waits in its socket.
//!
//! Deliberately not here: the methods. Who runs the core knows them, and names them in its options.

use crate::clock::Instant;
use crate::codec::packet::{Auth, Connect};
use crate::codec::property::PropertyList;
use crate::codec::{Packet, Properties, Property, ReasonCode, decode, encode, frame};

use super::Broker;
use super::close_reason::CloseReason;
use super::connect::Identity;
use super::event::PacketKind;
use super::link::{ConnectionId, Link, LinkState};

/// One step of an exchange, for whoever knows the method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationStep {
    /// Whose exchange.
    pub connection: ConnectionId,
    /// The client identifier in CONNECT; may be empty.
    pub client_id: Box<str>,
    /// One of the methods in the core's options.
    pub method: Box<str>,
    /// What the client says.
    pub data: Box<[u8]>,
    /// Whether the exchange begins here.
    pub is_first: bool,
}

/// The answer to a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client is who it says.
    Accept {
        /// Who that is. A session belongs to the user that made it, and goes on with nobody else.
        user: Option<Box<str>>,
        /// What the client is told: at most 65,535 bytes.
        data: Option<Box<[u8]>>,
    },
    /// The exchange goes on with this: at most 65,535 bytes.
    Continue(Box<[u8]>),
    /// The client is refused, with a code that both CONNACK and DISCONNECT have; another one is replaced by "not
    /// authorized".
    Refuse(ReasonCode),
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Server,
    Client,
    /// Nobody's: the last exchange was accepted.
    Done,
}

/// An exchange of a connection.
#[derive(Debug)]
pub(super) struct Authentication {
    method: Box<str>,
    client_id: Box<str>,
    /// The CONNECT that waits for it, as a packet.
    connect: Option<Box<[u8]>>,
    turn: Turn,
}

impl Authentication {
    /// Whether what the client sends has to wait.
    pub(super) fn is_pending(&self) -> bool {
        self.turn == Turn::Server && self.connect.is_some()
    }
}

/// The method and the data in the properties of a packet.
fn method_and_data<'a>(properties: Properties<'a>) -> (Option<&'a str>, Option<&'a [u8]>) {
    let (mut method, mut data) = (None, None);
    for property in properties {
        match property {
            Property::AuthenticationMethod(name) => method = Some(name),
            Property::AuthenticationData(bytes) => data = Some(bytes),
            _ => {}
        }
    }
    (method, data)
}

/// So many steps of connections that have ended are passed in one call.
const PASSED_PER_CALL: usize = 1_000;

impl Broker {
    /// Begins an exchange if the CONNECT wants one. False if it does not, and can be judged now.
    pub(super) fn begin_authentication(
        &mut self,
        id: ConnectionId,
        connect: &Connect<'_>,
    ) -> Result<bool, CloseReason> {
        let (method, data) = method_and_data(connect.properties);
        let Some(method) = method else {
            return if data.is_none() { Ok(false) } else { Err(CloseReason::AuthenticationUnexpected) };
        };
        if !self.options.authentication_methods.iter().any(|known| **known == *method) {
            return Err(CloseReason::AuthenticationMethod); // [MQTT5-4.12.0-1]
        }
        let mut bytes = Vec::new();
        encode::encode(&Packet::Connect(*connect), connect.protocol, &mut bytes)
            .expect("what was decoded can be encoded");
        let link = self.links.find_mut(id).expect("its CONNECT is being handled");
        link.state = LinkState::Authenticating;
        link.protocol = connect.protocol;
        link.extras_mut().authentication = Some(Authentication {
            method: method.into(),
            client_id: connect.client_id.into(),
            connect: Some(bytes.into()),
            turn: Turn::Server,
        });
        self.hand_out_step(id, data, true);
        Ok(true)
    }

    fn hand_out_step(&mut self, id: ConnectionId, data: Option<&[u8]>, is_first: bool) {
        let Some(link) = self.links.find_mut(id) else { return };
        let Some(authentication) = link.authentication_mut() else { return };
        authentication.turn = Turn::Server;
        self.outputs.authentication.push_back(AuthenticationStep {
            connection: id,
            client_id: authentication.client_id.clone(),
            method: authentication.method.clone(),
            data: data.unwrap_or_default().into(),
            is_first,
        });
    }

    /// AUTH.
    pub(super) fn auth(&mut self, id: ConnectionId, auth: &Auth<'_>) {
        let (method, data) = method_and_data(auth.properties);
        let Some(link) = self.links.find_mut(id) else { return };
        let is_connected = link.session().is_some();
        let expected = link.authentication_mut().map(|authentication| {
            let is_same_method = method == Some(&*authentication.method); // [MQTT5-4.12.0-5] [MQTT5-4.12.1-1]
            (is_same_method, authentication.turn)
        });
        match (expected, auth.reason) {
            (Some((true, Turn::Client)), ReasonCode::ContinueAuthentication) => {
                self.hand_out_step(id, data, false);
            }
            (Some((true, Turn::Done)), ReasonCode::Reauthenticate) if is_connected => {
                self.hand_out_step(id, data, true);
            }
            _ => self.close(id, CloseReason::AuthenticationUnexpected), // [MQTT5-4.12.0-7]
        }
    }

    /// What became of the step of this connection that was handed out last. It may come late: a connection that is gone
    /// needs none.
    pub fn handle_verdict(&mut self, now: Instant, id: ConnectionId, verdict: Verdict) {
        self.begin_input(now, Some(id));
        let Some(link) = self.links.find_mut(id) else { return };
        if link.state == LinkState::Closing {
            return;
        }
        if link.authentication().is_some_and(Authentication::is_pending) {
            // Its packets waited in the socket for our sake.
            link.last_received = now;
        }
        let Some(authentication) = link.authentication_mut() else { return };
        if authentication.turn != Turn::Server {
            return;
        }
        match verdict {
            Verdict::Continue(data) => {
                authentication.turn = Turn::Client;
                self.send_auth(id, ReasonCode::ContinueAuthentication, Some(&data));
            }
            Verdict::Accept { user, data } => {
                authentication.turn = Turn::Done;
                let connect = authentication.connect.take();
                let identity = Identity { user: user.as_deref(), data: data.as_deref() };
                match connect {
                    Some(connect) => self.connect_again(id, &connect, identity),
                    None if self.is_same_user(id, identity.user) => {
                        self.send_auth(id, ReasonCode::Success, identity.data);
                    }
                    None => self.close(id, CloseReason::AuthenticationRefused(ReasonCode::NotAuthorized)),
                }
            }
            Verdict::Refuse(reason) => {
                let can_be_said = reason.is_error() && reason.is_of_connack() && reason.is_of_disconnect();
                let reason = if can_be_said { reason } else { ReasonCode::NotAuthorized };
                self.close(id, CloseReason::AuthenticationRefused(reason));
            }
        }
    }

    /// Whether a client that is connected is still the one that its session belongs to.
    fn is_same_user(&self, id: ConnectionId, user: Option<&str>) -> bool {
        let session = self.links.find(id).and_then(|link| self.sessions.find(link.session()?));
        session.is_some_and(|session| session.user.as_deref() == user)
    }

    /// Goes on with the CONNECT that has waited.
    fn connect_again(&mut self, id: ConnectionId, connect: &[u8], identity: Identity<'_>) {
        let Some(link) = self.links.find(id) else { return };
        let Ok(frame::Split::Complete { frame, .. }) = frame::split(connect, link.protocol, u32::MAX) else {
            unreachable!("it was encoded as a packet");
        };
        if let Ok(Packet::Connect(connect)) = decode::decode(frame, link.protocol) {
            self.judge_connect(id, &connect, identity);
        }
    }

    /// The properties that name the method of a connection, with what is said to the client.
    pub(super) fn push_authentication(
        &self,
        id: ConnectionId,
        data: Option<&[u8]>,
        properties: &mut PropertyList,
    ) {
        if let Some(authentication) = self.links.find(id).and_then(Link::authentication) {
            properties.push(&Property::AuthenticationMethod(&authentication.method)); // [MQTT5-4.12.0-5]
            if let Some(data) = data {
                properties.push(&Property::AuthenticationData(data));
            }
        }
    }

    fn send_auth(&mut self, id: ConnectionId, reason: ReasonCode, data: Option<&[u8]>) {
        let mut properties = PropertyList::default();
        self.push_authentication(id, data, &mut properties);
        let auth = Auth { reason, properties: properties.as_properties() };
        self.reply(id, PacketKind::Auth, None, |bytes| encode::auth(bytes, &auth));
    }

    /// Whether steps may wait for a verdict; they may all be of connections that have ended.
    pub fn has_authentication_steps(&self) -> bool {
        !self.outputs.authentication.is_empty()
    }

    /// The next step of an exchange that waits for a verdict. None is of a connection that has ended: whoever judges it
    /// has forgotten that one, or is about to. So many of those are passed in one call that the next one may not be reached.
    pub fn poll_authentication(&mut self) -> Option<AuthenticationStep> {
        for _ in 0..PASSED_PER_CALL {
            let step = self.outputs.authentication.pop_front()?;
            if self.links.find(step.connection).is_some_and(|link| link.state != LinkState::Closing) {
                return Some(step);
            }
        }
        None
    }
}
