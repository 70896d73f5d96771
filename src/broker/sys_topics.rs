//! The `$SYS` tree: what the broker tells about itself, as retained messages under the names that dashboards know.
//!
//! A value is published only when it changed; the uptime always does. These messages do not count against the limits
//! on retained messages: they are few, and they are ours.

use crate::clock::{Duration, Instant};
use crate::codec::QoS;
use crate::topics::TopicName;

use super::Broker;
use super::deadlines::Deadline;
use super::deliver::Routing;

const VERSION: &str = concat!("broker version ", env!("CARGO_PKG_VERSION"));

/// Where a value comes from.
type Value = fn(&Broker) -> u64;

/// Topic below `$SYS/broker/`, and its value. Some have two names: the older one is still what some exporters read.
const TOPICS: &[(&str, Value)] = &[
    ("clients/total", |broker| broker.sessions.len() as u64),
    ("clients/connected", |broker| broker.metrics().clients_connected),
    ("clients/active", |broker| broker.metrics().clients_connected),
    ("clients/disconnected", |broker| broker.sessions.absent_count() as u64),
    ("clients/inactive", |broker| broker.sessions.absent_count() as u64),
    ("clients/expired", |broker| broker.metrics().sessions_expired),
    ("messages/received", |broker| broker.metrics().packets_received),
    ("messages/sent", |broker| broker.metrics().packets_sent),
    ("bytes/received", |broker| broker.metrics().bytes_received),
    ("bytes/sent", |broker| broker.metrics().bytes_sent),
    ("publish/messages/received", |broker| broker.metrics().publish_received),
    ("publish/messages/sent", |broker| broker.metrics().publish_sent),
    ("publish/messages/dropped", |broker| broker.metrics().dropped_total()),
    ("store/messages/count", stored_messages),
    ("messages/stored", stored_messages),
    ("store/messages/bytes", |broker| broker.messages.bytes()),
    ("retained messages/count", |broker| broker.retained.len() as u64),
    ("subscriptions/count", |broker| (broker.subscriptions.len() + broker.shared.len()) as u64),
    ("shared_subscriptions/count", |broker| broker.shared.len() as u64),
    ("packet/out/count", |broker| broker.metrics().outbox_packets),
    ("packet/out/bytes", |broker| broker.metrics().outbox_bytes),
];

fn stored_messages(broker: &Broker) -> u64 {
    broker.retained.len() as u64 + broker.metrics().queued_messages + broker.metrics().in_flight_messages
}

/// What was published last.
#[derive(Debug)]
pub(super) struct SysTopics {
    started_at: Instant,
    published: Vec<Option<u64>>,
}

impl SysTopics {
    pub(super) fn new(now: Instant) -> Self {
        Self { started_at: now, published: vec![None; TOPICS.len()] }
    }
}

impl Broker {
    /// Publishes what never changes, and sets the rhythm for the rest.
    pub(super) fn start_sys_topics(&mut self) {
        if self.options.sys_interval.is_some() {
            self.publish_sys_topic("$SYS/broker/version", VERSION, u64::MAX);
            self.publish_sys_topics();
        }
    }

    pub(super) fn publish_sys_topics(&mut self) {
        let Some(interval) = self.options.sys_interval else { return };
        self.wheel.insert(self.now + interval.max(Duration(1)), Deadline::SysTopics);
        if self.has_put_off_sys_topics() {
            return; // The last ones are not with everybody yet, and newer ones must not pile up behind them.
        }
        let done_max = self.done() + self.options.steps_per_turn as u64;
        let uptime = self.now.since(self.sys_topics.started_at).as_secs();
        self.publish_sys_topic("$SYS/broker/uptime", &format!("{uptime} seconds"), done_max);
        for (at, (name, value)) in TOPICS.iter().enumerate() {
            let value = value(self);
            if self.sys_topics.published[at] != Some(value) {
                self.sys_topics.published[at] = Some(value);
                self.publish_sys_topic(&format!("$SYS/broker/{name}"), &value.to_string(), done_max);
            }
        }
    }

    /// Once so much has been done for others it waits for a later turn.
    fn publish_sys_topic(&mut self, topic: &str, payload: &str, done_max: u64) {
        let name = TopicName::parse(topic, u32::MAX).expect("our own topics are valid");
        let has_to_wait = self.has_fan_out() && self.has_to_wait(name, QoS::AtMostOnce);
        if has_to_wait || self.done() >= done_max {
            return self.put_off_sys_topic(topic, payload.as_bytes());
        }
        self.publish_sys_topic_now(topic, payload.as_bytes());
    }

    pub(super) fn publish_sys_topic_now(&mut self, topic: &str, payload: &[u8]) {
        let topic = TopicName::parse(topic, u32::MAX).expect("our own topics are valid");
        let mut routing = Routing::new(topic, payload, QoS::AtMostOnce, true);
        self.route(&mut routing);
        self.retain(&mut routing);
    }
}
