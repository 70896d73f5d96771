//! One connection, as far as the standard knows it: what its CONNECT asked for, and what has to come next.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};

use broker::broker::Options;
use broker::clock::{Duration, Instant};
use broker::codec::packet::Connect;
use broker::codec::property::PropertyList;
use broker::codec::{PacketId, Property, Protocol, ReasonCode};

use super::message::{Published, Said, Sending};
use super::session::Will;
use crate::client::Heard;
use crate::client::aliases::Aliases;

/// What a CONNECT asks for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) client_id: String,
    pub(crate) protocol: Protocol,
    pub(crate) clean_start: bool,
    pub(crate) keep_alive_secs: u16,
    pub(crate) session_expiry_secs: u32,
    pub(crate) receive_max: u16,
    pub(crate) packet_size_max: u32,
    pub(crate) will: Option<Will>,
}

/// How long a session waits for its client that asks for so many seconds; `None` is for ever [B-043].
pub(crate) fn capped(secs: u32, options: &Options) -> Option<Duration> {
    let asked = (secs < u32::MAX).then(|| Duration::from_secs(secs.into()));
    asked.into_iter().chain(options.session_expiry).min()
}

impl Asked {
    pub(crate) fn of(connect: &Connect<'_>, now: Instant) -> Self {
        let mut asked = Self {
            client_id: connect.client_id.to_owned(),
            protocol: connect.protocol,
            clean_start: connect.clean_start,
            keep_alive_secs: connect.keep_alive_secs,
            session_expiry_secs: 0,
            receive_max: u16::MAX,
            packet_size_max: u32::MAX,
            will: None,
        };
        for property in connect.properties {
            match property {
                Property::SessionExpirySecs(secs) => asked.session_expiry_secs = secs,
                Property::ReceiveMaximum(maximum) => asked.receive_max = maximum,
                Property::MaximumPacketSize(maximum) => asked.packet_size_max = maximum,
                _ => {}
            }
        }
        asked.will = connect.will.map(|will| {
            let said = Said::of(will.properties);
            let payload = String::from_utf8(will.payload.to_vec()).expect("payloads are texts here");
            let message = Published {
                publisher: payload.split(' ').next().unwrap_or_default().to_owned(),
                client_id: connect.client_id.to_owned(),
                topic: will.topic.to_owned(),
                payload,
                qos: will.qos,
                retain: will.retain,
                forwarded: said.forwarded, // [MQTT5-3.1.3-10]
                at: now,
                expires_at: None,
                copied_by: Cell::default(),
            };
            Will { message, expiry: said.expiry, delay: said.will_delay, due_at: None }
        });
        asked
    }

    /// Whether the server does not wait as long as it is asked to.
    pub(crate) fn is_capped(&self, options: &Options) -> bool {
        let asked = Duration::from_secs(self.session_expiry_secs.into());
        self.protocol.has_properties() && options.session_expiry.is_some_and(|cap| cap < asked)
    }

    /// Whether the session ends with its connection, and how long it waits for its client if not.
    pub(crate) fn retention(&self, options: &Options) -> (bool, Option<Duration>) {
        if self.protocol.has_properties() {
            // [B-148]
            (self.session_expiry_secs == 0, capped(self.session_expiry_secs, options))
        } else {
            (self.clean_start, options.session_expiry)
        }
    }
}

/// The answer to a message that takes several turns.
#[derive(Clone, Debug)]
pub(crate) struct HeldReply {
    pub(crate) reply: Heard,
    /// What the answer is if nobody gets the message.
    pub(crate) if_unmatched: Heard,
    pub(crate) topic: String,
    /// Somebody who was subscribed when it was taken has gone, perhaps before it was his turn.
    pub(crate) has_lost_receiver: bool,
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) client_id: String,
    pub(crate) protocol: Protocol,
    pub(crate) is_open: bool,
    /// Which incarnation of its session it has.
    pub(crate) incarnation: usize,
    pub(crate) keep_alive_secs: u16,
    pub(crate) last_heard: Instant,
    /// Messages at QoS 1 and 2 that may be under way on it.
    pub(crate) window: u16,
    pub(crate) under_way: BTreeSet<PacketId>,
    /// What the client has set.
    pub(crate) aliases: Aliases,
    /// PUBLISH packets that have not been heard.
    pub(crate) sendings: VecDeque<Sending>,
    pub(crate) connack: Option<Heard>,
    /// All other packets that have to come.
    pub(crate) replies: VecDeque<Heard>,
    /// Those that come behind the answer to the packet in hand.
    pub(crate) late_replies: Vec<Heard>,
    /// The answer to a request of several turns, until it is sent.
    pub(crate) request_reply: Option<Heard>,
    /// The answer to a message to many, until that has reached all of them.
    pub(crate) held_reply: Option<HeldReply>,
    /// Replies that may as well be these others.
    pub(crate) alternatives: Vec<(Heard, Heard)>,
}

impl Link {
    pub(crate) fn new(asked: &Asked, options: &Options, now: Instant) -> Self {
        let limit = options.keep_alive_secs_max;
        let is_imposed = asked.protocol.has_properties()
            && limit > 0
            && (asked.keep_alive_secs == 0 || asked.keep_alive_secs > limit);
        Self {
            client_id: asked.client_id.clone(),
            protocol: asked.protocol,
            is_open: true,
            incarnation: 0,
            keep_alive_secs: if is_imposed { limit } else { asked.keep_alive_secs }, // [B-104]
            last_heard: now,
            window: asked.receive_max.min(options.in_flight_max),
            under_way: BTreeSet::new(),
            aliases: Aliases::new(options.topic_alias_max),
            sendings: VecDeque::new(),
            connack: None,
            replies: VecDeque::new(),
            late_replies: Vec::new(),
            request_reply: None,
            held_reply: None,
            alternatives: Vec::new(),
        }
    }

    pub(crate) fn expect_connack(&mut self, asked: &Asked, session_present: bool, options: &Options) {
        let mut properties = PropertyList::default();
        if self.protocol.has_properties() {
            if asked.is_capped(options) {
                let cap = options.session_expiry.expect("it caps").as_secs() as u32;
                properties.push(&Property::SessionExpirySecs(cap));
            }
            if options.receive_max < u16::MAX {
                properties.push(&Property::ReceiveMaximum(options.receive_max));
            }
            if options.packet_size_max < 268_435_455 {
                properties.push(&Property::MaximumPacketSize(options.packet_size_max));
            }
            if options.topic_alias_max > 0 {
                properties.push(&Property::TopicAliasMaximum(options.topic_alias_max));
            }
            if self.keep_alive_secs != asked.keep_alive_secs {
                properties.push(&Property::ServerKeepAliveSecs(self.keep_alive_secs));
            }
        }
        let properties = properties.as_properties().as_bytes().to_vec();
        self.connack = Some(Heard::Connack { session_present, reason: ReasonCode::Success, properties });
    }

    /// What the client is told of an identifier.
    pub(crate) fn found(&self, exists: bool) -> ReasonCode {
        if exists || !self.protocol.has_properties() {
            ReasonCode::Success
        } else {
            ReasonCode::PacketIdentifierNotFound
        }
    }
}
