//! A message on its way to one client, and by which subscriptions it comes.

use std::rc::Rc;

use crate::codec::QoS;
use crate::journal::{self, Lsn};

use super::message::{Gauge, Message};
use super::shared::GroupId;

/// A message on its way to one client.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) message: Message,
    pub(super) qos: QoS,
    /// The retain flag: whether it answers a new subscription [MQTT-3.3.1-8], or is passed on as published.
    pub(super) retain: bool,
    /// By which subscriptions it comes, where that matters.
    pub(super) via: Option<Box<Via>>,
    /// The record that it waits, or is under way; none where it need not outlive the process.
    pub(super) record: Lsn,
}

impl Delivery {
    pub(super) fn subscription_ids(&self) -> &[u32] {
        self.via.as_ref().map_or(&[], |via| &via.subscription_ids)
    }

    /// Bytes of memory that it takes while it waits, its share of the message not divided by those who share it.
    pub(super) fn size(&self) -> u64 {
        self.message.size() + self.via.as_ref().map_or(0, |via| via.size())
    }
}

/// The subscriptions by which a message comes. Counted by the gauge of messages, because a client may have many of them.
#[derive(Debug)]
pub(super) struct Via {
    /// Their identifiers.
    pub(super) subscription_ids: Box<[u32]>,
    /// The group that may give the message to somebody else.
    pub(super) origin: Option<Origin>,
    gauge: Gauge,
}

/// What a group has to know to give a message to somebody else: the flags that its publisher chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) group: GroupId,
    /// Its text.
    pub(super) text: Rc<str>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

impl Origin {
    pub(super) fn to_record(&self) -> journal::Origin<'_> {
        journal::Origin { group: &self.text, qos: self.qos, retain: self.retain }
    }
}

impl Via {
    /// `None` where there is nothing to say.
    pub(super) fn of(subscription_ids: &[u32], origin: Option<Origin>, gauge: &Gauge) -> Option<Box<Self>> {
        if subscription_ids.is_empty() && origin.is_none() {
            return None;
        }
        let via = Self { subscription_ids: subscription_ids.into(), origin, gauge: gauge.clone() };
        gauge.add(via.size());
        Some(Box::new(via))
    }

    fn size(&self) -> u64 {
        (size_of::<Self>() + size_of_val::<[u32]>(&self.subscription_ids)) as u64
    }
}

impl Drop for Via {
    fn drop(&mut self) {
        self.gauge.subtract(self.size());
    }
}
