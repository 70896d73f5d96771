//! Topic aliases: small numbers that stand for topic names on one connection, in each direction [MQTT5-3.3.2-7].
//!
//! What a client sets lasts until it sets it anew. What we set goes to the topics that are sent often: a full table
//! gives up an entry only after more has been sent on other topics than on its own.
//!
//! Deliberately not here: how many there may be (see `terms`).

/// A shorter topic gains nothing from an alias, which takes three bytes itself.
const TOPIC_BYTES_MIN: usize = 7;

/// How much use an entry can have in store.
const USES_MAX: u8 = 32;

/// The aliases that a client has set.
#[derive(Debug, Default)]
pub(super) struct ReceivedAliases(Vec<Box<str>>);

impl ReceivedAliases {
    /// The topic of an alias.
    pub(super) fn find(&self, alias: u16) -> Option<&str> {
        let topic = self.0.get(usize::from(alias) - 1)?;
        (!topic.is_empty()).then_some(topic)
    }

    /// Sets an alias, which the caller has found to be within its bounds.
    pub(super) fn set(&mut self, alias: u16, topic: &str) {
        let alias = usize::from(alias);
        if self.0.len() < alias {
            self.0.resize(alias, Box::default());
        }
        let known = &mut self.0[alias - 1];
        if **known != *topic {
            *known = topic.into();
        }
    }
}

/// The aliases that we have set.
#[derive(Debug)]
pub(super) struct SentAliases {
    entries: Vec<Entry>,
    count_max: u16,
    /// The entry that is asked next to give way.
    hand: usize,
}

#[derive(Debug)]
struct Entry {
    topic: Box<[u8]>,
    uses: u8,
}

/// What may be put into a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The client knows this alias: the topic name can be left out.
    Known(u16),
    /// This alias may be set along with the topic name, and counts as set once [`SentAliases::set`] was told.
    New(u16),
    None,
}

impl SentAliases {
    /// No alias yet, and so many at most.
    pub(super) fn new(count_max: u16) -> Self {
        Self { entries: Vec::new(), count_max, hand: 0 }
    }

    /// What to do with a topic.
    pub(super) fn choose(&mut self, topic: &[u8]) -> Choice {
        if topic.len() < TOPIC_BYTES_MIN {
            return Choice::None;
        }
        if let Some(at) = self.entries.iter().position(|entry| *entry.topic == *topic) {
            let uses = &mut self.entries[at].uses;
            *uses = uses.saturating_add(1).min(USES_MAX);
            return Choice::Known(at as u16 + 1);
        }
        if self.entries.len() < usize::from(self.count_max) {
            return Choice::New(self.entries.len() as u16 + 1);
        }
        let Some(entry) = self.entries.get_mut(self.hand) else { return Choice::None };
        if entry.uses == 0 {
            return Choice::New(self.hand as u16 + 1);
        }
        entry.uses -= 1;
        self.hand = (self.hand + 1) % self.entries.len();
        Choice::None
    }

    /// A PUBLISH with a new alias goes out.
    pub(super) fn set(&mut self, alias: u16, topic: &[u8]) {
        let entry = Entry { topic: topic.into(), uses: 1 };
        match self.entries.get_mut(usize::from(alias) - 1) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_set_once_and_given_up_for_what_is_sent_more_often() {
        // [MQTT5-3.1.2-26] [MQTT5-3.3.2-11] [B-114]
        let mut aliases = SentAliases::new(2);
        assert_eq!(aliases.choose(b"short"), Choice::None);
        for (topic, alias) in [(b"topic/1", 1), (b"topic/2", 2)] {
            assert_eq!(aliases.choose(topic), Choice::New(alias));
            assert_eq!(aliases.choose(topic), Choice::New(alias), "not set before it was sent [B-112]");
            aliases.set(alias, topic);
            assert_eq!(aliases.choose(topic), Choice::Known(alias));
        }
        let mut rounds = 0;
        let taken = loop {
            rounds += 1;
            assert_eq!(aliases.choose(b"topic/1"), Choice::Known(1));
            if let Choice::New(alias) = aliases.choose(b"topic/3") {
                break alias;
            }
        };
        assert_eq!(taken, 2, "the one that nobody uses");
        assert!(rounds > 2);
        aliases.set(2, b"topic/3");
        assert_eq!(aliases.choose(b"topic/3"), Choice::Known(2));
        assert_eq!(aliases.choose(b"topic/2"), Choice::None);
    }

    #[test]
    fn a_client_sets_aliases_in_any_order_and_anew() {
        // [MQTT5-3.3.2-12]
        let mut aliases = ReceivedAliases::default();
        assert_eq!(aliases.find(1), None);
        aliases.set(3, "c");
        assert_eq!((aliases.find(1), aliases.find(3), aliases.find(4)), (None, Some("c"), None));
        aliases.set(3, "d");
        aliases.set(1, "a");
        assert_eq!((aliases.find(1), aliases.find(3)), (Some("a"), Some("d")));
    }
}
