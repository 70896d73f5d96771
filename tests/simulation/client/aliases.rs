//! Topic aliases in one direction of one connection.

use std::collections::BTreeMap;

/// What the sender has set; a new connection begins without any [MQTT5-3.3.2-7].
#[derive(Clone, Debug, Default)]
pub(crate) struct Aliases {
    /// The largest that the receiver takes.
    pub(crate) maximum: u16,
    topics: BTreeMap<u16, String>,
}

impl Aliases {
    pub(crate) fn new(maximum: u16) -> Self {
        Self { maximum, topics: BTreeMap::new() }
    }

    /// The topic that a PUBLISH means.
    pub(crate) fn resolve(&mut self, topic: &str, alias: Option<u16>) -> String {
        let Some(alias) = alias else {
            assert!(!topic.is_empty(), "an empty topic and no alias");
            return topic.to_owned();
        };
        // [MQTT5-3.1.2-26] [MQTT5-3.1.2-27] [MQTT5-3.3.2-8] [MQTT5-3.3.2-11]
        assert!((1..=self.maximum).contains(&alias), "alias {alias}, where {} is the largest", self.maximum);
        if !topic.is_empty() {
            self.topics.insert(alias, topic.to_owned());
            return topic.to_owned();
        }
        let known = self.topics.get(&alias);
        known.unwrap_or_else(|| panic!("alias {alias} was not set [MQTT5-3.3.2-7] [B-110] [B-112]")).clone()
    }

    /// The alias of a topic, if it has one.
    pub(crate) fn of(&self, topic: &str) -> Option<u16> {
        self.topics.iter().find(|(_, known)| *known == topic).map(|(alias, _)| *alias)
    }

    /// Whether an alias stands for another topic.
    pub(crate) fn is_of_another(&self, alias: u16, topic: &str) -> bool {
        self.topics.get(&alias).is_some_and(|known| known != topic)
    }

    /// An alias that was not set.
    pub(crate) fn unset(&self) -> Option<u16> {
        (1..=self.maximum).find(|alias| !self.topics.contains_key(alias))
    }
}
