//! Topic names and topic filters: what is one, and which name a filter matches.
//!
//! Both are compared byte by byte [MQTT-4.7.3-4]; empty levels count like any others. Whoever holds a [`TopicName`] or
//! a [`TopicFilter`] holds a checked text: there is no other way to make one.
//!
//! Deliberately not here: UTF-8, U+0000 and the length of a text, which the codec has checked before, and matching one
//! name against many filters (see `subscription_tree`) or one filter against many names (see `retained_tree`).

use std::fmt;

/// Why a text is no topic name or filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopicError {
    /// It has no character [MQTT-4.7.3-1].
    Empty,
    /// It has more levels than allowed here.
    TooManyLevels,
    /// A topic name with `+` or `#` [MQTT-3.3.2-2].
    WildcardInName,
    /// A shared subscription without a name, with a wildcard in its name, or without a filter [MQTT5-4.8.2-1]
    /// [MQTT5-4.8.2-2].
    ShareName,
    /// A filter whose `+` is not alone in its level, or whose `#` is not alone in the last one [MQTT-4.7.1-2]
    /// [MQTT-4.7.1-3].
    MisplacedWildcard,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::TooManyLevels => "it has too many levels",
            Self::WildcardInName => "it contains a wildcard",
            Self::ShareName => "a shared subscription is $share/NAME/FILTER, with no wildcard in the name",
            Self::MisplacedWildcard => "a wildcard does not stand alone in its level",
        })
    }
}

impl std::error::Error for TopicError {}

/// A valid topic name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicName<'a>(&'a str);

impl<'a> TopicName<'a> {
    /// Checks a text. A level is what stands before, between or after slashes, so there is one more than slashes.
    ///
    /// # Errors
    ///
    /// If it is empty, has a wildcard, or has more than `levels_max` levels.
    #[inline]
    pub fn parse(text: &'a str, levels_max: u32) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        // Without an early exit, which would keep the loop from taking many bytes at once.
        if text.bytes().fold(false, |found, byte| found | is_wildcard(byte)) {
            return Err(TopicError::WildcardInName); // [MQTT-4.7.1-1]
        }
        if is_too_deep(text.as_bytes(), levels_max) { Err(TopicError::TooManyLevels) } else { Ok(Self(text)) }
    }

    /// What is known to be one.
    pub(super) const fn known(text: &'a str) -> Self {
        Self(text)
    }

    /// The text.
    #[inline]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether wildcards at the first level do not match it [MQTT-4.7.2-1].
    #[inline]
    pub const fn is_dollar(self) -> bool {
        matches!(self.0.as_bytes(), [b'$', ..])
    }
}

/// A valid topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFilter<'a>(&'a str);

impl<'a> TopicFilter<'a> {
    /// Checks a text. A level is what stands before, between or after slashes, so there is one more than slashes.
    ///
    /// # Errors
    ///
    /// If it is empty, has a misplaced wildcard, or has more than `levels_max` levels.
    pub fn parse(text: &'a str, levels_max: u32) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        let bytes = text.as_bytes();
        // Most filters have none, and that is seen many bytes at a time.
        let has_wildcard = bytes.iter().fold(false, |found, byte| found | is_wildcard(*byte));
        if has_wildcard && (0..bytes.len()).any(|at| is_wildcard(bytes[at]) && !is_well_placed(bytes, at)) {
            return Err(TopicError::MisplacedWildcard);
        }
        if is_too_deep(bytes, levels_max) { Err(TopicError::TooManyLevels) } else { Ok(Self(text)) }
    }

    /// The text.
    #[inline]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether it can match more than one name.
    pub fn has_wildcard(self) -> bool {
        has_wildcard(self.0.as_bytes())
    }

    /// Whether it matches a name.
    pub fn matches(self, name: TopicName<'_>) -> bool {
        filter_matches(self.0.as_bytes(), name)
    }
}

const fn is_wildcard(byte: u8) -> bool {
    matches!(byte, b'+' | b'#')
}

/// Whether a text has a wildcard character anywhere.
pub(super) fn has_wildcard(text: &[u8]) -> bool {
    text.iter().any(|byte| is_wildcard(*byte))
}

/// Whether the wildcard at this place of a filter may stand there.
fn is_well_placed(filter: &[u8], at: usize) -> bool {
    let begins_level = at == 0 || filter[at - 1] == b'/';
    begins_level
        && match filter.get(at + 1) {
            None => true,
            Some(next) => *next == b'/' && filter[at] == b'+', // [MQTT-4.7.1-2] [MQTT-4.7.1-3]
        }
}

#[inline]
fn is_too_deep(text: &[u8], levels_max: u32) -> bool {
    // A text has no more slashes than bytes, so most need not be counted.
    let levels_max = levels_max as usize;
    text.len() >= levels_max && text.iter().filter(|byte| **byte == b'/').count() >= levels_max
}

/// What a SUBSCRIBE names: a topic filter, alone or for a group that shares its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionFilter<'a> {
    /// The name of the group; the group is this name and the filter.
    pub share_name: Option<&'a str>,
    /// What its messages match.
    pub filter: TopicFilter<'a>,
}

impl<'a> SubscriptionFilter<'a> {
    /// Checks a text. `$share` alone, or with more letters behind it, is a level like any other.
    ///
    /// # Errors
    ///
    /// Those of [`TopicFilter::parse`], and [`TopicError::ShareName`].
    pub fn parse(text: &'a str, levels_max: u32) -> Result<Self, TopicError> {
        let Some(shared) = text.strip_prefix("$share/") else {
            return Ok(Self { share_name: None, filter: TopicFilter::parse(text, levels_max)? });
        };
        let (name, filter) = shared.split_once('/').ok_or(TopicError::ShareName)?;
        if name.is_empty() || name.contains(['+', '#']) || filter.is_empty() {
            return Err(TopicError::ShareName);
        }
        Ok(Self { share_name: Some(name), filter: TopicFilter::parse(filter, levels_max)? })
    }
}

/// Whether a filter, known to be valid, matches a name: one pass over both.
pub(crate) fn filter_matches(filter: &[u8], name: TopicName<'_>) -> bool {
    if name.is_dollar() && is_wildcard(filter[0]) {
        return false; // [MQTT-4.7.2-1]
    }
    let name = name.as_str().as_bytes();
    let mut at = 0;
    for (index, byte) in filter.iter().enumerate() {
        match byte {
            b'#' => return true,
            b'+' => at += name[at..].iter().take_while(|byte| **byte != b'/').count(),
            byte if name.get(at) == Some(byte) => at += 1,
            // The parent level is included: `a/#` matches `a` [MQTT-4.7.1-2].
            _ => return at == name.len() && filter[index..] == *b"/#",
        }
    }
    at == name.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All texts over an alphabet, up to a length.
    fn texts(alphabet: &[char], length_max: u32) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut from = 0;
        for _ in 0..length_max {
            let to = all.len();
            for index in from..to {
                for character in alphabet {
                    let text = format!("{}{character}", all[index]);
                    all.push(text);
                }
            }
            from = to;
        }
        all
    }

    fn is_filter(text: &str) -> bool {
        let levels: Vec<&str> = text.split('/').collect();
        !text.is_empty()
            && levels.iter().enumerate().all(|(index, level)| {
                !level.contains(['+', '#']) || *level == "+" || (*level == "#" && index + 1 == levels.len())
            })
    }

    /// Section 4.7 read aloud, over lists of levels.
    fn matches_by_levels(filter: &[&str], name: &[&str]) -> bool {
        match (filter.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((&"#", _)), _) => true,
            (Some((&"+", filter)), Some((_, name))) => matches_by_levels(filter, name),
            (Some((wanted, filter)), Some((level, name))) => {
                wanted == level && matches_by_levels(filter, name)
            }
            _ => false,
        }
    }

    #[test]
    fn every_small_text_is_judged() {
        // [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.3-1]
        for text in texts(&['a', '/', '+', '#', '$'], 6) {
            let levels = text.split('/').count() as u32;
            for levels_max in [levels, 1_000] {
                assert_eq!(TopicFilter::parse(&text, levels_max).is_ok(), is_filter(&text), "{text}");
            }
            let is_name = !text.is_empty() && !text.contains(['+', '#']);
            assert_eq!(TopicName::parse(&text, levels).is_ok(), is_name, "{text}");
            if is_name {
                assert_eq!(TopicName::parse(&text, levels - 1), Err(TopicError::TooManyLevels), "{text}");
                assert_eq!(TopicFilter::parse(&text, levels - 1), Err(TopicError::TooManyLevels), "{text}");
                assert!(!TopicFilter(&text).has_wildcard(), "{text}");
            }
        }
    }

    #[test]
    fn errors_say_why() {
        assert_eq!(TopicName::parse("", 9), Err(TopicError::Empty));
        assert_eq!(TopicFilter::parse("", 9), Err(TopicError::Empty));
        for bad in ["+", "#", "a/#", "a+b"] {
            assert_eq!(TopicName::parse(bad, 9), Err(TopicError::WildcardInName), "{bad}");
        }
        for bad in ["a#", "a/#/b", "#/a", "##", "a/b#", "a+", "+a", "a/+b", "++", "#/", "+#"] {
            assert_eq!(TopicFilter::parse(bad, 9), Err(TopicError::MisplacedWildcard), "{bad}");
        }
    }

    #[test]
    fn every_small_filter_matches_what_the_standard_says() {
        // [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1] [MQTT-4.7.3-4]
        let names = texts(&['a', 'A', '/', '$'], 5);
        for filter in texts(&['a', '/', '+', '#', '$'], 5).iter().filter(|text| is_filter(text)) {
            let filter_levels: Vec<&str> = filter.split('/').collect();
            for name in names.iter().filter(|name| !name.is_empty()) {
                let name_levels: Vec<&str> = name.split('/').collect();
                let hidden = name.starts_with('$') && filter.starts_with(['+', '#']);
                let expected = !hidden && matches_by_levels(&filter_levels, &name_levels);
                assert_eq!(TopicFilter(filter).matches(TopicName(name)), expected, "{filter} {name}");
            }
        }
    }

    #[test]
    fn matching_is_by_bytes() {
        // [MQTT-4.7.3-4]
        let texts = ["A", "a", "\u{e9}", "e\u{301}", "a/", "/a", "a//b", "a/b", "a b", " ", "/", "//"];
        for filter in texts {
            for name in texts {
                assert_eq!(TopicFilter(filter).matches(TopicName(name)), filter == name, "{filter} {name}");
            }
        }
    }

    /// What a SUBSCRIBE with this filter names: the group, and the filter of its messages.
    fn shared(text: &str) -> Result<(Option<&str>, &str), TopicError> {
        let SubscriptionFilter { share_name, filter } = SubscriptionFilter::parse(text, 9)?;
        Ok((share_name, filter.as_str()))
    }

    #[test]
    fn a_shared_subscription_has_a_name_and_a_filter() {
        // [MQTT5-4.8.2-1] [MQTT5-4.8.2-2] [B-068]
        assert_eq!(shared("$share/g/a"), Ok((Some("g"), "a")));
        assert_eq!(shared("$share/g/a/+/#"), Ok((Some("g"), "a/+/#")));
        assert_eq!(shared("$share/g/#"), Ok((Some("g"), "#")));
        assert_eq!(shared("$share/g//a"), Ok((Some("g"), "/a")));
        assert_eq!(shared("$share/g//"), Ok((Some("g"), "/")));
        assert_eq!(shared("$share/$share/$share/g/a"), Ok((Some("$share"), "$share/g/a")));
        assert_eq!(shared("$share/\u{e9} $/a"), Ok((Some("\u{e9} $"), "a")));
        for bad in [
            "$share/",
            "$share//",
            "$share//a",
            "$share/g",
            "$share/g/",
            "$share/g+/a",
            "$share/+/a",
            "$share/#/a",
        ] {
            assert_eq!(shared(bad), Err(TopicError::ShareName), "{bad}");
        }
        for bad in ["$share/g/a#", "$share/g/#/a", "$share/g/a+/b"] {
            assert_eq!(shared(bad), Err(TopicError::MisplacedWildcard), "{bad}");
        }
    }

    #[test]
    fn what_only_looks_like_a_shared_subscription_is_a_filter() {
        // [MQTT5-4.8.2-1] [B-068]
        for text in
            ["$share", "$sharex/g/a", "$SHARE/g/a", "$Share/g/a", "/$share/g/a", "$share+", "share/g/a", "$"]
        {
            let expected = TopicFilter::parse(text, 9).map(|filter| (None, filter.as_str()));
            assert_eq!(shared(text), expected, "{text}");
        }
        assert_eq!(shared(""), Err(TopicError::Empty));
        assert_eq!(shared("$share+"), Err(TopicError::MisplacedWildcard));
    }

    #[test]
    fn levels_are_counted_behind_the_name_of_a_group() {
        assert!(SubscriptionFilter::parse("$share/g/a/b", 2).is_ok());
        assert_eq!(SubscriptionFilter::parse("$share/g/a/b/c", 2), Err(TopicError::TooManyLevels));
        assert_eq!(SubscriptionFilter::parse("a/b/c", 2), Err(TopicError::TooManyLevels));
    }
}
