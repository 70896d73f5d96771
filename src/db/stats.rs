//! Numbers about what is stored.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

use crate::journal::{Key, Lsn, Owner, Record};

/// How many of the longest queues are named.
const LONGEST_QUEUES: usize = 10;

/// What is stored, in numbers. Its text is for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sessions.
    pub sessions: u64,
    /// Those of them whose client was away.
    pub sessions_absent: u64,
    /// Subscriptions, shared ones included.
    pub subscriptions: u64,
    /// Messages, each once, however many receivers wait for it.
    pub messages: u64,
    /// Bytes of their topics, properties and payloads.
    pub message_bytes: u64,
    /// Retained messages.
    pub retained: u64,
    /// Deliveries that wait, each once for every receiver.
    pub queued: u64,
    /// Those of them that wait for any member of a group.
    pub queued_shared: u64,
    /// Deliveries that were sent and not acknowledged.
    pub in_flight: u64,
    /// QoS 2 messages that were taken and not released.
    pub receipts: u64,
    /// QoS 2 messages that were released and not completed.
    pub releases: u64,
    /// Wills whose time has come, and that have yet to be published.
    pub due_wills: u64,
    /// What is no record.
    pub unreadable: u64,
    queues: HashMap<Lsn, SessionQueue>,
}

/// How much waits for one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionQueue {
    /// Whose it is; empty if the session itself is missing.
    pub client_id: Box<str>,
    /// Messages that were not sent yet.
    pub queued: u64,
}

/// Counts records. What is none is counted too: numbers are wanted of damaged stores most of all.
pub fn stats(records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Stats {
    let mut stats = Stats::default();
    records.for_each(|(key, value)| stats.add(&key, &value));
    stats
}

impl Stats {
    /// Counts one record: for whoever is handed one at a time.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let record = Key::read(key).and_then(|key| Ok((key.lsn(), Record::read(key, value)?)));
        let Ok((number, record)) = record else {
            self.unreadable += 1;
            return;
        };
        match record {
            Record::Session(session) => {
                self.sessions += 1;
                self.sessions_absent += u64::from(session.absent_since.is_some());
                self.queues.entry(number).or_default().client_id = session.client_id.into();
            }
            Record::Subscription(_) => self.subscriptions += 1,
            Record::Message(message) => {
                self.messages += 1;
                let bytes = message.topic.len() + message.properties.len() + message.payload.len();
                self.message_bytes += bytes as u64;
            }
            Record::Retained(_) => self.retained += 1,
            Record::Delivery(delivery) => match (delivery.owner, delivery.packet_id) {
                (Owner::Session(_), Some(_)) => self.in_flight += 1,
                (Owner::Session(session), None) => {
                    self.queued += 1;
                    self.queues.entry(session).or_default().queued += 1;
                }
                (Owner::Group(_), _) => {
                    self.queued += 1;
                    self.queued_shared += 1;
                }
            },
            Record::Release(_) => self.releases += 1,
            Record::Receipt(_) => self.receipts += 1,
            Record::DueWill(_) => self.due_wills += 1,
        }
    }

    /// The ten sessions for which most messages wait, the longest queue first; fewer if for fewer any does.
    pub fn longest_queues(&self) -> Vec<&SessionQueue> {
        let mut queues: Vec<&SessionQueue> = self.queues.values().filter(|queue| queue.queued > 0).collect();
        queues.sort_unstable_by_key(|queue| (Reverse(queue.queued), &queue.client_id));
        queues.truncate(LONGEST_QUEUES);
        queues
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sessions           {} ({} absent)", self.sessions, self.sessions_absent)?;
        writeln!(f, "subscriptions      {}", self.subscriptions)?;
        writeln!(f, "messages           {} ({} bytes)", self.messages, self.message_bytes)?;
        writeln!(f, "retained messages  {}", self.retained)?;
        writeln!(f, "queued             {} ({} in groups)", self.queued, self.queued_shared)?;
        writeln!(f, "in flight          {}", self.in_flight)?;
        writeln!(f, "QoS 2 receipts     {}", self.receipts)?;
        writeln!(f, "QoS 2 releases     {}", self.releases)?;
        writeln!(f, "due wills          {}", self.due_wills)?;
        if self.unreadable > 0 {
            writeln!(f, "unreadable         {}", self.unreadable)?;
        }
        let queues = self.longest_queues();
        if !queues.is_empty() {
            writeln!(f, "longest queues")?;
        }
        for SessionQueue { client_id, queued } in queues {
            writeln!(f, "{queued:>12}  {}", client_id.escape_debug())?;
        }
        Ok(())
    }
}
