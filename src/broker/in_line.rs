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
    #[inline]
    pub(super) fn remove(&mut self, session: SessionId) -> Option<(u64, T)> {
        // Asked whenever a client comes or goes, and hardly ever does anybody wait.
        if self.numbers.is_empty() { None } else { self.remove_if_there(session) }
    }

    #[cold]
    #[inline(never)]
    fn remove_if_there(&mut self, session: SessionId) -> Option<(u64, T)> {
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

#[cfg(test)]
mod tests {
    use crate::broker::session::Sessions;
    use crate::clock::Instant;

    use super::*;

    #[test]
    fn who_begins_anew_stands_behind_all_others_and_who_was_not_done_where_it_stood() {
        let mut sessions = Sessions::new(1);
        let [one, two, three] = ["1", "2", "3"].map(|name| sessions.insert(name, Instant(0)));
        let mut line = InLine::new();
        assert_eq!([one, two, three].map(|session| line.push_back(session, 1)), [1, 2, 3]);
        assert_eq!((line.push_back(one, 5), line.len(), line.newest()), (4, 3, 4));
        let mut served = line.pop_front().expect("there are three");
        assert_eq!((served.session, served.number), (two, 2));
        served.work += 1;
        line.put_back(served);
        line.check_invariants();
        assert!(line.iter().eq([(2, two, &2), (3, three, &1), (4, one, &5)]));
        assert_eq!((line.remove(three), line.remove(three)), (Some((3, 1)), None));
        assert_eq!((line.find(one), line.find(three)), (Some((4, &5)), None));
        line.check_invariants();
        line.clear();
        assert!(line.is_empty() && line.find(one).is_none());
    }
}
