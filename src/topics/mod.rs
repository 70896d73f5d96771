//! Topic names, topic filters, and the structures that match one against the other.
//!
//! Knows who subscribed to what and which value is retained where, by small integer ids and generic values; knows
//! neither sessions nor packets. Matching is by bytes: no case folding, no normalisation, no trimming
//! [MQTT-4.7.3-4].
//!
//! Deliberately not here: who may use a topic, and what a delivery is.

pub mod match_cache;
pub mod name;
pub mod retained_tree;
pub mod subscription_tree;

pub use name::{SubscriptionFilter, TopicError, TopicFilter, TopicName};
pub use retained_tree::RetainedTree;
pub use subscription_tree::{Grant, Subscriber, SubscriberId, SubscriptionTree};
