//! Topic names and topic filters: what is one, and which name a filter matches.
//!
//! Both are compared byte by byte [MQTT-4.7.3-4]; empty levels count like any others.

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
    /// A filter whose `+` is not alone in its level, or whose `#` is not alone in the last one [MQTT-4.7.1-2]
    /// [MQTT-4.7.1-3].
    MisplacedWildcard,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::TooManyLevels => "it has too many levels (--topic-levels-max)",
            Self::WildcardInName => "it contains a wildcard",
            Self::MisplacedWildcard => "a wildcard does not stand alone in its level",
        })
    }
}

impl std::error::Error for TopicError {}

/// A valid topic name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicName<'a>(&'a str);

impl<'a> TopicName<'a> {
    /// Checks a text.
    ///
    /// # Errors
    ///
    /// If it is empty, has a wildcard, or has more than `levels_max` levels.
    #[inline]
    pub fn parse(text: &'a str, levels_max: u32) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        let mut levels = 1;
        for byte in text.bytes() {
            match byte {
                b'+' | b'#' => return Err(TopicError::WildcardInName),
                b'/' => levels += 1,
                _ => {}
            }
        }
        if levels > levels_max { Err(TopicError::TooManyLevels) } else { Ok(Self(text)) }
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether wildcards at the first level do not match it [MQTT-4.7.2-1].
    pub fn is_dollar(self) -> bool {
        self.0.starts_with('$')
    }
}

/// A valid topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicFilter<'a>(&'a str);

impl<'a> TopicFilter<'a> {
    /// Checks a text.
    ///
    /// # Errors
    ///
    /// If it is empty, has a misplaced wildcard, or has more than `levels_max` levels.
    pub fn parse(text: &'a str, levels_max: u32) -> Result<Self, TopicError> {
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        let mut levels = 0;
        let mut after_hash = false;
        for level in text.split('/') {
            levels += 1;
            let alone = level.len() == 1 || !level.contains(['+', '#']);
            if after_hash || !alone {
                return Err(TopicError::MisplacedWildcard);
            }
            after_hash = level == "#";
        }
        if levels > levels_max { Err(TopicError::TooManyLevels) } else { Ok(Self(text)) }
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether it can match more than one name.
    pub fn has_wildcard(self) -> bool {
        self.0.contains(['+', '#'])
    }

    /// Whether it matches a name.
    pub fn matches(self, name: TopicName<'_>) -> bool {
        if name.is_dollar() && self.0.starts_with(['+', '#']) {
            return false; // [MQTT-4.7.2-1]
        }
        let mut levels = name.0.split('/');
        let mut filter = self.0.split('/');
        loop {
            match (filter.next(), levels.next()) {
                // `a/#` matches `a` too: the parent level is included.
                (Some("#"), _) => return true,
                (Some("+"), Some(_)) => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_judged() {
        // [MQTT-4.7.1-2] [MQTT-4.7.1-3]
        for good in
            ["a", "/", "//", "+", "#", "/#", "a/#", "+/+", "/+", "a/+/b", "+/#", " ", "$SYS/#", "a//b"]
        {
            assert!(TopicFilter::parse(good, 10).is_ok(), "{good}");
        }
        for bad in ["a#", "a/#/b", "#/a", "##", "a/b#", "a+", "+a", "a/+b", "++", "#/", "a/#/", "+#"] {
            assert_eq!(TopicFilter::parse(bad, 10), Err(TopicError::MisplacedWildcard), "{bad}");
        }
        assert_eq!(TopicFilter::parse("", 10), Err(TopicError::Empty));
        assert!(TopicFilter::parse("a/b", 2).is_ok());
        assert_eq!(TopicFilter::parse("a/b/c", 2), Err(TopicError::TooManyLevels));
    }

    #[test]
    fn names_are_judged() {
        for good in ["a", "/", "a/b", "$SYS/x", " "] {
            assert!(TopicName::parse(good, 10).is_ok(), "{good}");
        }
        for bad in ["+", "#", "a/#", "a+b"] {
            assert_eq!(TopicName::parse(bad, 10), Err(TopicError::WildcardInName), "{bad}");
        }
        assert_eq!(TopicName::parse("", 10), Err(TopicError::Empty));
        assert_eq!(TopicName::parse("a/b/c", 2), Err(TopicError::TooManyLevels));
    }

    #[test]
    fn filters_match_what_the_standard_says() {
        // [MQTT-4.7.1-2] [MQTT-4.7.1-3] [MQTT-4.7.2-1] [MQTT-4.7.3-4]
        let matches = |filter, name| {
            TopicFilter::parse(filter, 10).unwrap().matches(TopicName::parse(name, 10).unwrap())
        };
        for (filter, name) in [
            ("a", "a"),
            ("#", "a"),
            ("#", "a/b"),
            ("#", "/"),
            ("a/#", "a"),
            ("a/#", "a/"),
            ("a/#", "a/b/c"),
            ("+", "a"),
            ("+/+", "/a"),
            ("/+", "/a"),
            ("a/+", "a/"),
            ("+/b", "/b"),
            ("$t/#", "$t/x"),
            ("$t/+", "$t/x"),
            ("$t/x", "$t/x"),
            ("+/#", "a"),
            ("/#", "/"),
            ("a//b", "a//b"),
            ("a/+/b", "a//b"),
        ] {
            assert!(matches(filter, name), "{filter} {name}");
        }
        for (filter, name) in [
            ("a", "A"),
            ("a", "a/"),
            ("a/", "a"),
            ("/a", "a"),
            ("+", "/a"),
            ("+", "a/b"),
            ("a/+", "a"),
            ("#", "$t/x"),
            ("+/#", "$t"),
            ("+/x", "$t/x"),
            ("+", "$t"),
            ("a/#", "ab"),
            ("a//b", "a/b"),
            ("/#", "a"),
        ] {
            assert!(!matches(filter, name), "{filter} {name}");
        }
    }
}
