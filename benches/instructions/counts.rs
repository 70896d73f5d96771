//! The counts that are kept, in `counts.txt`, and what a new count says beside them.
//!
//! Deliberately not here: where counts come from (see `callgrind`).

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;

/// How far a count may be from the one that is kept.
pub(crate) const TOLERANCE_PERCENT: f64 = 5.0;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions/counts.txt");

/// Instructions of each operation, by its name.
pub(crate) struct Counts {
    /// What they depend on.
    pub(crate) origin: String,
    pub(crate) rows: BTreeMap<String, u64>,
}

/// A count beside the one that is kept.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    pub(crate) count: u64,
    pub(crate) kept: Option<u64>,
}

impl Counts {
    /// Those that are kept; none before they are recorded.
    pub(crate) fn read() -> io::Result<Self> {
        let text = match fs::read_to_string(PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let (comments, rows): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('#'));
        let origin = comments.last().map_or("", |line| line.trim_start_matches("# ")).to_owned();
        let rows = rows.into_iter().map(|line| {
            let row = line.rsplit_once(' ').and_then(|(name, count)| Some((name, count.parse().ok()?)));
            let row = row.map(|(name, count)| (name.trim_end().to_owned(), count));
            row.ok_or_else(|| io::Error::other(format!("{PATH}: {line:?} is no name with a count")))
        });
        Ok(Self { origin, rows: rows.collect::<io::Result<_>>()? })
    }

    /// Keeps these.
    pub(crate) fn write(&self) -> io::Result<()> {
        let heading =
            "# Instructions of each operation, from `cargo bench --bench instructions -- --record`:";
        let mut text = format!("{heading}\n# {}\n", self.origin);
        for (name, count) in &self.rows {
            text += &line(name, *count);
            text.push('\n');
        }
        fs::write(PATH, text)
    }

    /// A count beside these.
    pub(crate) fn beside<'a>(&self, name: &'a str, count: u64) -> Row<'a> {
        Row { name, count, kept: self.rows.get(name).copied() }
    }
}

impl Row<'_> {
    /// Whether it has grown, as far as anybody knows.
    pub(crate) fn is_failure(&self) -> bool {
        self.growth_percent().is_none_or(|percent| percent > TOLERANCE_PERCENT)
    }

    /// Whether it is so much smaller that what is kept would not notice if that were lost again.
    pub(crate) fn is_gain(&self) -> bool {
        self.growth_percent().is_some_and(|percent| percent < -TOLERANCE_PERCENT)
    }

    fn growth_percent(&self) -> Option<f64> {
        self.kept.map(|kept| (self.count as f64 / kept as f64 - 1.0) * 100.0)
    }
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&line(self.name, self.count))?;
        match self.growth_percent() {
            Some(percent) => write!(formatter, " {percent:>+7.1} %"),
            None => formatter.write_str("       new"),
        }
    }
}

/// A name and its count, so that counts stand below each other.
fn line(name: &str, count: u64) -> String {
    format!("{name:<60} {count:>8}")
}
