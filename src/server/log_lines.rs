//! What the operator reads: events, status and clients as log lines.
//!
//! Client ids and topics are chosen by strangers; every one is escaped, so that a line is a line.

use std::fmt::Display;

use crate::broker::event::{Event, FanOutStep, Limit, PublishTrace, WillStep};
use crate::broker::options::Durability;
use crate::broker::{Broker, ClientStatus, CloseReason};
use crate::clock::{Duration, Instant};
use crate::metrics::{DropReason, Metrics};
use crate::topics::TopicError;

use super::LOG_TARGET;

/// One line for one event. `address` is that of the connection it is about, where there is one.
pub(super) fn log_event(event: &Event, address: impl Display) {
    match event {
        Event::Connected {
            client_id,
            protocol,
            ends_with_connection,
            keep_alive_secs,
            session_present,
            ..
        } => {
            log::info!(
                target: LOG_TARGET, "client {client_id:?} connected from {address}: MQTT {protocol}, keep-alive {keep_alive_secs} s, \
                 {}, {}",
                if *ends_with_connection { "clean" } else { "persistent" },
                if *session_present { "session resumed" } else { "new session" },
            );
        }
        Event::Closed { client_id, reason, duration, packets_received, packets_sent, .. } => {
            let level =
                if reason.is_violation() || reason.is_limit() { log::Level::Warn } else { log::Level::Info };
            let after = seconds(*duration);
            match client_id {
                Some(client_id) => log::log!(
                    target: LOG_TARGET, level,
                    "client {client_id:?} at {address} closed: {reason}; after {after}, \
                     {packets_received} packets in, {packets_sent} out{}",
                    advice(*reason),
                ),
                None => log::log!(
                    target: LOG_TARGET, level,
                    "connection from {address} closed before it was a client: {reason}; after {after}{}",
                    advice(*reason),
                ),
            }
        }
        Event::LimitReached { limit, owner, value } => {
            let whose = owner.as_ref().map_or(String::new(), |owner| format!(" of {owner:?}"));
            log::warn!(target: LOG_TARGET, "limit reached: {}{whose}: {value} ({})", limit_text(*limit), limit.option());
        }
        Event::SessionExpired { client_id } => {
            log::info!(target: LOG_TARGET, "session of client {client_id:?} expired: it stayed away longer than it asked for, or than --session-expiry");
        }
        Event::SessionEvicted { client_id } => {
            log::warn!(
                target: LOG_TARGET, "session of client {client_id:?} dropped to make room: the longest absent (--sessions-max)"
            );
        }
        Event::FanOut { step, .. } => {
            let what = match step {
                FanOutStep::LookedAt => "is very large: looking at it takes several turns",
                FanOutStep::PutOff => "waits until another message has reached very many clients",
                FanOutStep::Taken => "has waited long enough",
                FanOutStep::Begun => "is on its way to very many clients",
            };
            log::debug!(target: LOG_TARGET, "Publish from {address} {what}");
        }
        Event::Will { topic, step, .. } => {
            let what = match step {
                WillStep::PutOff => "waits until another message has reached very many clients",
                WillStep::Published => "is published",
            };
            log::debug!(target: LOG_TARGET, "a will to topic {topic:?} {what}");
        }
        Event::Packet { sent, kind, packet_id, publish, .. } => {
            let direction = if *sent { "to" } else { "from" };
            let id = packet_id.map_or(String::new(), |id| format!(", id {id}"));
            let publish = publish.as_ref().map_or(String::new(), |publish| {
                let PublishTrace { topic, payload_length, qos, dup, retain } = publish;
                let dup = if *dup { ", DUP" } else { "" };
                let retain = if *retain { ", RETAIN" } else { "" };
                format!(", QoS {}{dup}{retain}, topic {topic:?}, {payload_length} bytes", *qos as u8)
            });
            log::debug!(target: LOG_TARGET, "{kind:?} {direction} {address}{id}{publish}");
        }
    }
}

/// What the operator can do about it, where that is not plain.
fn advice(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::HandshakeTimeout => " (--handshake-timeout)",
        CloseReason::Stalled => " (--stall-timeout)",
        CloseReason::OutboxFull => " (--outbox-bytes-max)",
        CloseReason::TooManyConnections => " (--connections-max)",
        CloseReason::TooManySessions => " (--sessions-max)",
        CloseReason::TopicName(TopicError::TooManyLevels)
        | CloseReason::WillTopic(TopicError::TooManyLevels)
        | CloseReason::TopicFilter(TopicError::TooManyLevels) => " (--topic-levels-max)",
        CloseReason::ReceiveMaximum => " (--receive-max)",
        CloseReason::TopicAlias => " (--topic-alias-max)",
        CloseReason::AuthenticationMethod => " (--scram-file)",
        CloseReason::BrokerFull => " (--queued-bytes-total-max)",
        CloseReason::RetainedFull => " (--retained-messages-max, --retained-bytes-max)",
        CloseReason::Malformed(crate::codec::DecodeError::PacketTooLarge) => " (--packet-size-max)",
        _ => "",
    }
}

fn limit_text(limit: Limit) -> &'static str {
    match limit {
        Limit::Connections => "connected clients; more are refused",
        Limit::QueuedMessages => "messages in the queue; new ones are dropped",
        Limit::QueuedBytes => "bytes in the queue; new messages are dropped",
        Limit::QueuedBytesTotal => {
            "message bytes in the whole broker; publishers at QoS 1 and 2 are refused, QoS 0 is dropped"
        }
        Limit::Outbox => "bytes in the outgoing buffer; QoS 0 messages are dropped",
        Limit::RetainedMessages => "retained messages; new ones are refused",
        Limit::RetainedBytes => "bytes of retained messages; new ones are refused",
        Limit::Subscriptions => "subscriptions; more are refused",
        Limit::UnstoredBytes => "bytes not stored yet; publishers at QoS 1 and 2 have to wait for the disk",
    }
}

/// The status block.
pub(super) fn log_status(broker: &Broker, uptime: Duration, busiest_turn_micros: u64) {
    let status = broker.status();
    let metrics = broker.metrics();
    log::info!(target: LOG_TARGET, "status after {}:", seconds(uptime));
    log::info!(
        target: LOG_TARGET, "  clients: {} connected, {} connections in all, {} refused, {} taken over",
        metrics.clients_connected,
        metrics.connections_opened,
        metrics.connections_refused,
        metrics.takeovers,
    );
    log::info!(
        target: LOG_TARGET, "  sessions: {} ({} absent), {} expired, {} evicted; subscriptions: {}",
        status.sessions,
        status.sessions_absent,
        metrics.sessions_expired,
        metrics.sessions_evicted,
        status.subscriptions,
    );
    log::info!(
        target: LOG_TARGET, "  messages: {} received, {} delivered, {} dropped{}",
        metrics.publish_received,
        metrics.publish_sent,
        metrics.dropped_total(),
        drops(metrics),
    );
    log::info!(
        target: LOG_TARGET, "  held: {} retained ({} bytes), {} queued, {} in flight, {} bytes in all, {} bytes in outgoing buffers",
        status.retained_messages,
        status.retained_bytes,
        metrics.queued_messages,
        metrics.in_flight_messages,
        status.message_bytes,
        metrics.outbox_bytes,
    );
    log::info!(
        target: LOG_TARGET, "  packets: {} in, {} out; bytes: {} in, {} out; closed by limit {}, by violation {}; busiest turn {} us",
        metrics.packets_received,
        metrics.packets_sent,
        metrics.bytes_received,
        metrics.bytes_sent,
        metrics.closed_by_limit,
        metrics.closed_by_violation,
        busiest_turn_micros,
    );
    if broker.options().durability != Durability::None {
        log_store(broker);
    }
}

fn log_store(broker: &Broker) {
    let metrics = broker.metrics();
    log::info!(
        target: LOG_TARGET, "  store: {} commits, {} bytes written, {} bytes not stored yet, {} failures",
        metrics.store_commits,
        metrics.store_bytes,
        broker.unstored_bytes(),
        metrics.store_failures,
    );
}

fn drops(metrics: &Metrics) -> String {
    let mut text = String::new();
    for reason in DropReason::ALL {
        let count = metrics.dropped[reason as usize];
        if count > 0 {
            text.push_str(if text.is_empty() { " (" } else { ", " });
            text.push_str(&format!("{}: {count}", reason.label()));
        }
    }
    if !text.is_empty() {
        text.push(')');
    }
    text
}

/// One line for one client.
pub(super) fn log_client(client: &ClientStatus, address: impl Display, now: Instant) {
    log::info!(
        target: LOG_TARGET, "client {:?} at {address}: connected for {}, keep-alive {} s, last packet {} ago, {} subscriptions, \
         {} in flight, {} queued, {} bytes buffered",
        client.client_id,
        seconds(now.since(client.connected_at)),
        client.keep_alive_secs,
        seconds(now.since(client.last_received)),
        client.subscriptions,
        client.in_flight,
        client.queued,
        client.buffered_bytes,
    );
}

fn seconds(duration: Duration) -> String {
    format!("{}.{} s", duration.as_secs(), duration.0 % 1_000 / 100)
}
