//! Sessions with work for later turns, in the order in which it began.
//!
//! Thousands may stand here when many clients come or go at once, and any of them may turn round before it is served. So
//! none is searched for, and none that leaves has the others move up.
//!
//! Invariants: a session stands here once; later ones have larger numbers.

use std::collections::BTreeMap;

use super::session::SessionId;

/// Who waits, and what is left to be done for each.
#[derive(Debug)]
pub(super) struct InLine<T> {
    by_number: BTreeMap<u64, (SessionId, T)>,
    numbers: BTreeMap<SessionId, u64>,
    newest: u64,
}

/// One that was taken out to be served.
#[derive(Debug)]
pub(super) struct Served<T> {
    pub(super) number: u64,
    pub(super) session: SessionId,
    pub(super) work: T,
}

impl<T> InLine<T> {
    pub(super) const fn new() -> Self {
        Self { by_number: BTreeMap::new(), numbers: BTreeMap::new(), newest: 0 }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// The largest number that was given away.
    pub(super) const fn newest(&self) -> u64 {
        self.newest
    }

    /// Stands behind all others, and no more where it stood before. Its number.
    pub(super) fn push_back(&mut self, session: SessionId, work: T) -> u64 {
        self.remove(session);
        self.newest += 1;
        self.put_back(Served { number: self.newest, session, work });
        self.newest
    }

    /// The first one, to be served.
    pub(super) fn pop_front(&mut self) -> Option<Served<T>> {
        let (number, (session, work)) = self.by_number.pop_first()?;
        self.numbers.remove(&session);
        Some(Served { number, session, work })
    }

    /// One that was not served to the end stands where it stood.
    pub(super) fn put_back(&mut self, Served { number, session, work }: Served<T>) {
        self.by_number.insert(number, (session, work));
        self.numbers.insert(session, number);
    }

    /// The session waits no more. Its number, and what was left.
    pub(super) fn remove(&mut self, session: SessionId) -> Option<(u64, T)> {
        if self.numbers.is_empty() {
            return None;
        }
        let number = self.numbers.remove(&session)?;
        let (_, work) = self.by_number.remove(&number).expect("it stands where its number says");
        Some((number, work))
    }

    pub(super) fn clear(&mut self) {
        (self.by_number, self.numbers) = (BTreeMap::new(), BTreeMap::new());
    }

    pub(super) fn find(&self, session: SessionId) -> Option<(u64, &T)> {
        let number = *self.numbers.get(&session)?;
        Some((number, &self.by_number[&number].1))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, SessionId, &T)> {
        self.by_number.iter().map(|(number, (session, work))| (*number, *session, work))
    }

    /// Asserts that each stands here once.
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.by_number.len(), self.numbers.len());
        for (number, session, _) in self.iter() {
            assert_eq!(self.numbers.get(&session), Some(&number));
            assert!(number <= self.newest);
        }
    }
}
