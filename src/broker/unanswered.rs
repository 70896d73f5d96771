//! Packets that a client was sent and has yet to answer, in the order of sending.
//!
//! Clients answer in order, so what is answered is the first one nearly always, or one of the first few, and is found by
//! looking at them. But a client whose window holds 65,535 may answer backwards, or what nobody sent it, sixteen thousand
//! times in one read. Identifiers are no help in looking: they go round, and what stays while they do stands out of their order.
//! So once an answer is not for one of the first, an index says where each packet stands, and what is answered leaves a gap, so
//! that none of the others is moved. Once there are more gaps than packets they are closed, a few places with each answer: what
//! stands behind them is moved up. The index lasts until few packets are left. Where there is none, there are no gaps.
//!
//! Invariants: an identifier stands here once; an index holds exactly those that stand here; neither the first nor the last
//! place is a gap; while gaps are being closed there is nothing between what was moved up and what has yet to be.
//!
//! Deliberately not here: how many of them were sent on the present connection; that is told to whoever asks, because a
//! session has no room for it twice.

use std::array;
use std::collections::VecDeque;

use crate::codec::PacketId;

use super::thin_list::KEPT_CAPACITY;

/// So many are looked at before there is an index.
const SEARCHED_MAX: usize = 32;

/// With no more than that an index is given up. Fewer than make one, so that the next one is worth its making.
const INDEXED_MIN: usize = SEARCHED_MAX / 2;

/// So many places are looked at with each answer while gaps are closed. There are twice as many places as packets, so that is
/// done before half of these are answered too.
const CLOSED_PER_ANSWER: usize = 4;

/// Identifiers in a page of the index, and pages.
const PAGE: usize = 256;

/// Something with a packet identifier.
pub(super) trait Identified {
    fn packet_id(&self) -> PacketId;
}

/// A list that takes one word while it is empty. `passed` is how many of its packets, from the front, were sent on the
/// present connection.
#[derive(Debug)]
pub(super) struct Unanswered<T>(Option<Box<Entries<T>>>);

#[derive(Debug)]
struct Entries<T> {
    list: VecDeque<Option<T>>,
    index: Option<Box<Index>>,
}

/// Where packets stand. Pages have counts, so that identifiers which went by take no memory.
#[derive(Debug)]
struct Index {
    pages: [Option<Box<Page>>; PAGE],
    /// The number of the first place. Places keep their numbers when those before them go.
    first: u32,
    gaps: usize,
    /// Those who count as passed stand in so many places, from the front.
    passed_places: usize,
    /// While gaps are being closed: the places that have yet to be looked at begin here, and what was moved up ends there.
    unclosed_from: usize,
    closed_to: usize,
}

#[derive(Debug)]
struct Page {
    numbers: [u32; PAGE],
    used: usize,
}

impl Index {
    fn of<T: Identified>(list: &VecDeque<Option<T>>, passed: u32) -> Box<Self> {
        let passed_places = passed as usize;
        let mut index = Box::new(Self {
            pages: array::from_fn(|_| None),
            first: 0,
            gaps: 0,
            passed_places,
            unclosed_from: 0,
            closed_to: 0,
        });
        for (place, entry) in list.iter().flatten().enumerate() {
            index.insert(entry.packet_id(), place);
        }
        index
    }

    fn insert(&mut self, id: PacketId, place: usize) {
        let [page, at] = id.number().to_be_bytes().map(usize::from);
        let page = self.pages[page].get_or_insert_with(|| Box::new(Page { numbers: [0; PAGE], used: 0 }));
        page.numbers[at] = self.first.wrapping_add(place as u32);
        page.used += 1;
    }

    /// To be called for what stands here.
    fn move_to(&mut self, id: PacketId, place: usize) {
        let [page, at] = id.number().to_be_bytes().map(usize::from);
        if let Some(page) = &mut self.pages[page] {
            page.numbers[at] = self.first.wrapping_add(place as u32);
        }
    }

    /// The same.
    fn remove(&mut self, id: PacketId) {
        let page = &mut self.pages[usize::from(id.number().to_be_bytes()[0])];
        if let Some(found) = page {
            found.used -= 1;
            if found.used == 0 {
                *page = None;
            }
        }
    }

    /// Where it stands, if it is anywhere.
    fn place(&self, id: PacketId) -> Option<usize> {
        let [page, at] = id.number().to_be_bytes().map(usize::from);
        let number = self.pages[page].as_ref()?.numbers[at];
        Some(number.wrapping_sub(self.first) as usize)
    }

    /// The first place is taken away.
    fn lose_first(&mut self) {
        self.first = self.first.wrapping_add(1);
        self.gaps -= 1;
        for place in [&mut self.passed_places, &mut self.unclosed_from, &mut self.closed_to] {
            *place = place.saturating_sub(1);
        }
    }

    /// There are only so many places any more.
    fn end_at(&mut self, places: usize) {
        for place in [&mut self.passed_places, &mut self.unclosed_from, &mut self.closed_to] {
            *place = places.min(*place);
        }
    }

    const fn is_closing(&self) -> bool {
        self.unclosed_from > 0
    }
}

impl<T: Identified> Entries<T> {
    const EMPTY: Self = Self { list: VecDeque::new(), index: None };

    fn is_at(&self, place: usize, id: PacketId) -> bool {
        matches!(self.list.get(place), Some(Some(entry)) if entry.packet_id() == id)
    }

    #[inline(never)]
    fn find_behind_first(&mut self, id: PacketId, passed: u32) -> Option<usize> {
        if self.index.is_none() {
            let near = (0..self.list.len().min(SEARCHED_MAX)).find(|place| self.is_at(*place, id));
            if near.is_some() || self.list.len() <= SEARCHED_MAX {
                return near;
            }
        }
        let Self { list, index } = self;
        let index = index.get_or_insert_with(|| Index::of(list, passed));
        // Of one that has gone the page may still tell where it stood.
        index.place(id).filter(|place| self.is_at(*place, id))
    }

    #[inline(never)]
    fn remove_behind_first(&mut self, place: usize, passed: &mut u32) -> Option<T> {
        let Self { list, index } = self;
        if index.is_none() && place.min(list.len() - place) > SEARCHED_MAX {
            *index = Some(Index::of(list, *passed));
        }
        let Some(index) = index else {
            *passed -= u32::from(place < *passed as usize);
            return list.remove(place)?;
        };
        let entry = list.get_mut(place)?.take()?;
        index.remove(entry.packet_id());
        index.gaps += 1;
        *passed -= u32::from(place < index.passed_places);
        while let Some(None) = list.front() {
            list.pop_front();
            index.lose_first();
        }
        while let Some(None) = list.back() {
            list.pop_back();
            index.gaps -= 1;
        }
        index.end_at(list.len());
        let left = list.len() - index.gaps;
        if left <= INDEXED_MIN {
            self.close_gaps();
        } else if index.is_closing() || index.gaps > left {
            close_some_gaps(list, index);
        }
        Some(entry)
    }

    fn close_gaps(&mut self) {
        if self.index.take().is_some_and(|index| index.gaps > 0) {
            self.list.retain(Option::is_some);
        }
    }

    fn first_not_passed(&mut self, passed: u32) -> Option<usize> {
        let Some(index) = &mut self.index else { return Some(passed as usize) };
        let is_among_closed = (index.closed_to..index.unclosed_from).contains(&index.passed_places);
        let from = if is_among_closed { index.unclosed_from } else { index.passed_places };
        let place = (from..self.list.len()).find(|place| self.list[*place].is_some())?;
        // The gaps before it are not looked at again.
        index.passed_places = place;
        Some(place)
    }
}

/// Moves some of those that stand behind gaps up.
fn close_some_gaps<T: Identified>(list: &mut VecDeque<Option<T>>, index: &mut Index) {
    for _ in 0..CLOSED_PER_ANSWER {
        if index.passed_places == index.unclosed_from {
            index.passed_places = index.closed_to;
        }
        if let Some(entry) = list.get_mut(index.unclosed_from).and_then(Option::take) {
            index.move_to(entry.packet_id(), index.closed_to);
            list[index.closed_to] = Some(entry);
            index.closed_to += 1;
        }
        index.unclosed_from += 1;
        if index.unclosed_from >= list.len() {
            index.gaps -= list.len() - index.closed_to;
            list.truncate(index.closed_to);
            index.end_at(list.len());
            (index.unclosed_from, index.closed_to) = (0, 0);
            return;
        }
    }
}

impl<T> Default for Unanswered<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Identified> Unanswered<T> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        let Some(entries) = &self.0 else { return 0 };
        entries.list.len() - entries.index.as_ref().map_or(0, |index| index.gaps)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().flat_map(|entries| entries.list.iter().flatten())
    }

    /// Behind all others. `is_passed` says that it is sent on the present connection, as all others were.
    // Into `send`, which runs for every delivery.
    #[inline(always)]
    pub(super) fn push_back(&mut self, entry: T, is_passed: bool) {
        let Entries { list, index } = &mut **self.0.get_or_insert_with(|| Box::new(Entries::EMPTY));
        if let Some(index) = index {
            index.insert(entry.packet_id(), list.len());
            index.passed_places += usize::from(is_passed);
        }
        list.push_back(Some(entry));
    }

    /// Where the packet with this identifier stands.
    #[inline]
    pub(super) fn find(&mut self, id: PacketId, passed: u32) -> Option<usize> {
        let entries = self.0.as_deref_mut()?;
        if entries.is_at(0, id) { Some(0) } else { entries.find_behind_first(id, passed) }
    }

    pub(super) fn at(&self, place: usize) -> Option<&T> {
        self.0.as_ref()?.list.get(place)?.as_ref()
    }

    /// Takes out the packet that stands there.
    #[inline]
    pub(super) fn remove(&mut self, place: usize, passed: &mut u32) -> Option<T> {
        let entries = self.0.as_deref_mut()?;
        let entry = if place == 0 && entries.index.is_none() {
            *passed = passed.saturating_sub(1);
            entries.list.pop_front()?
        } else {
            entries.remove_behind_first(place, passed)
        };
        if entries.list.is_empty() && entries.list.capacity() > KEPT_CAPACITY {
            self.0 = None;
        }
        entry
    }

    /// Takes out the first packet of a list of which none counts as passed.
    pub(super) fn pop_front(&mut self) -> Option<T> {
        self.remove(0, &mut 0)
    }

    /// None counts as passed any more.
    pub(super) fn begin_anew(&mut self) {
        self.rest();
    }

    /// Nobody will answer for a while: an index takes memory.
    pub(super) fn rest(&mut self) {
        if let Some(entries) = &mut self.0 {
            entries.close_gaps();
        }
    }

    /// Where the first one stands that has not passed.
    pub(super) fn first_not_passed(&mut self, passed: u32) -> Option<usize> {
        let entries = self.0.as_mut()?;
        entries.first_not_passed(passed).filter(|place| *place < entries.list.len())
    }

    /// That one passes.
    pub(super) fn pass(&mut self, place: usize, passed: &mut u32) {
        *passed += 1;
        if let Some(index) = self.0.as_mut().and_then(|entries| entries.index.as_mut()) {
            index.passed_places = place + 1;
        }
    }

    /// Puts the first `count` packets behind all others. None counts as passed.
    pub(super) fn rotate_left(&mut self, count: usize) {
        if let Some(entries) = &mut self.0 {
            entries.close_gaps();
            entries.list.rotate_left(count);
        }
    }

    /// Asserts every invariant of the list.
    pub(super) fn check_invariants(&self, passed: u32) {
        let Some(Entries { list, index }) = self.0.as_deref() else { return assert_eq!(passed, 0) };
        assert!(passed as usize <= self.len());
        assert!(!matches!(list.front(), Some(None)) && !matches!(list.back(), Some(None)));
        let Some(index) = index else { return assert!(list.iter().all(Option::is_some)) };
        assert_eq!(index.gaps, list.iter().filter(|entry| entry.is_none()).count());
        assert!(index.passed_places <= list.len());
        assert!(index.closed_to <= index.unclosed_from && index.unclosed_from <= list.len());
        assert!(list.range(index.closed_to..index.unclosed_from).all(Option::is_none));
        assert_eq!(list.iter().take(index.passed_places).flatten().count(), passed as usize);
        for (place, entry) in list.iter().enumerate() {
            assert!(entry.as_ref().is_none_or(|entry| index.place(entry.packet_id()) == Some(place)));
        }
        assert_eq!(index.pages.iter().flatten().map(|page| page.used).sum::<usize>(), self.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Packet {
        id: PacketId,
        number: u32,
    }

    impl Identified for Packet {
        fn packet_id(&self) -> PacketId {
            self.id
        }
    }

    /// The list, and what it should be.
    #[derive(Default)]
    struct World {
        list: Unanswered<Packet>,
        passed: u32,
        expected: VecDeque<Packet>,
        expected_passed: usize,
        sent: u32,
    }

    impl World {
        fn of(packets: u32) -> Self {
            let mut world = Self::default();
            (0..packets).for_each(|_| world.send());
            world
        }

        /// All were passed, so this one is as well.
        fn send(&mut self) {
            if self.expected_passed < self.expected.len() || self.expected.len() == 65_535 {
                return;
            }
            let is_used = |id| self.expected.iter().any(|packet| packet.id == id);
            let ids = (self.sent..).map(|number| PacketId::new((number % 65_535 + 1) as u16));
            // The lists of those tests that go round are short.
            let may_be_used = self.sent >= 65_535;
            let id = ids.flatten().find(|id| !may_be_used || !is_used(*id)).expect("one is free");
            self.sent += 1;
            let packet = Packet { id, number: self.sent };
            self.list.push_back(packet, true);
            self.passed += 1;
            self.expected.push_back(packet);
            self.expected_passed += 1;
        }

        fn answer(&mut self, id: PacketId) {
            let place = self.list.find(id, self.passed);
            let found = place.and_then(|place| self.list.remove(place, &mut self.passed));
            let at = self.expected.iter().position(|packet| packet.id == id);
            let expected = at.and_then(|at| self.expected.remove(at));
            assert_eq!(found, expected);
            self.expected_passed -= usize::from(at.is_some_and(|at| at < self.expected_passed));
        }

        /// The one that stands there is answered, counted from the front.
        fn answer_at(&mut self, at: usize) {
            let id = self.expected.get(at).map_or(PacketId::FIRST, |packet| packet.id);
            self.answer(id);
        }

        fn begin_anew(&mut self) {
            self.list.begin_anew();
            (self.passed, self.expected_passed) = (0, 0);
        }

        fn repeat(&mut self, removes: bool) {
            let place = self.list.first_not_passed(self.passed);
            let next = place.and_then(|place| self.list.at(place)).copied();
            assert_eq!(next, self.expected.get(self.expected_passed).copied());
            match place {
                Some(place) if removes => {
                    assert_eq!(self.list.remove(place, &mut self.passed), next);
                    self.expected.remove(self.expected_passed);
                }
                Some(place) => {
                    self.list.pass(place, &mut self.passed);
                    self.expected_passed += 1;
                }
                None => {}
            }
        }

        fn check(&self) {
            self.list.check_invariants(self.passed);
            assert!(self.list.iter().eq(&self.expected));
            assert_eq!(self.list.len(), self.expected.len());
            assert_eq!(self.passed as usize, self.expected_passed);
        }

        /// Gaps included.
        fn places(&self) -> usize {
            self.list.0.as_ref().map_or(0, |entries| entries.list.len())
        }

        fn has_index(&self) -> bool {
            self.list.0.as_ref().is_some_and(|entries| entries.index.is_some())
        }
    }

    /// Numbers that look random.
    fn next(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize
    }

    #[test]
    fn it_is_what_a_plain_list_is_whatever_comes() {
        let (mut has_had_index, mut has_had_none) = (0, 0);
        for seed in 0..200 {
            let mut state = seed;
            let mut world = World::of(0);
            // The circle ends soon, and what is stuck stays where it is.
            world.sent = 65_000;
            let len_max = 20 + next(&mut state) % 300;
            for _ in 0..3_000 {
                match next(&mut state) % 100 {
                    0..50 => {
                        if world.expected.len() < len_max {
                            world.send();
                        }
                    }
                    50..60 => world.answer_at(0),
                    60..80 => world.answer_at(next(&mut state) % (world.expected.len() + 1)),
                    80..85 => world.answer_at(world.expected.len().saturating_sub(1)),
                    85 => world.answer(PacketId::new((next(&mut state) % 65_535 + 1) as u16).expect("not 0")),
                    86 if next(&mut state).is_multiple_of(8) => world.begin_anew(),
                    87 if next(&mut state).is_multiple_of(16) => {
                        world.begin_anew();
                        let left = next(&mut state) % (world.expected.len() + 1);
                        world.list.rotate_left(left);
                        world.expected.rotate_left(left);
                    }
                    88 if world.expected_passed == 0 => {
                        assert_eq!(world.list.pop_front(), world.expected.pop_front());
                    }
                    89 => world.repeat(true),
                    _ => (0..3).for_each(|_| world.repeat(false)),
                }
                if next(&mut state).is_multiple_of(16) {
                    world.check();
                }
                (has_had_index, has_had_none) = (
                    has_had_index + u32::from(world.has_index()),
                    has_had_none + u32::from(!world.has_index()),
                );
            }
            world.check();
        }
        assert!(has_had_index > 100_000 && has_had_none > 100_000, "{has_had_index}, {has_had_none}");
    }

    #[test]
    fn answers_in_order_or_nearly_need_no_index() {
        let mut world = World::of(1_000);
        for at in 0..SEARCHED_MAX {
            world.answer_at(at);
            assert!(!world.has_index());
        }
        while !world.expected.is_empty() {
            world.answer_at(0);
            assert!(!world.has_index());
        }
        world.check();
        assert!(world.list.0.is_none(), "a long one gives its memory back");
    }

    #[test]
    fn an_index_goes_when_few_are_left() {
        let mut world = World::of(1_000);
        (0..983).for_each(|_| world.answer_at(world.expected.len() - 1));
        assert!(world.has_index());
        world.check();
        world.answer_at(16);
        assert!(!world.has_index());
        world.check();
    }

    #[test]
    fn gaps_are_closed_with_the_answers_that_follow() {
        let mut world = World::of(1_000);
        (0..500).for_each(|_| world.answer_at(100));
        assert_eq!(world.places(), 1_000);
        // 1,000 places, four with each.
        for answer in 1..=250 {
            world.answer_at(100);
            world.check();
            assert_eq!(world.places() == 1_000, answer < 250, "{answer}");
        }
        assert!(world.places() < 300, "{}", world.places());
        // Some of those that had been moved up were answered since.
        while world.expected.len() > INDEXED_MIN {
            world.answer_at(next(&mut 7) % world.expected.len());
            world.check();
            assert!(world.places() <= 5 * world.expected.len(), "{}", world.places());
        }
    }

    #[test]
    fn a_page_without_packets_takes_no_memory() {
        let mut world = World::of(300);
        world.answer_at(200);
        for _ in 0..3_000 {
            world.send();
            world.answer_at(0);
        }
        world.check();
        let pages = world.list.0.as_ref().and_then(|entries| entries.index.as_ref());
        assert!(pages.is_some_and(|index| index.pages.iter().flatten().count() <= 3));
    }

    #[test]
    fn gaps_before_the_next_one_to_be_repeated_are_looked_at_once() {
        let mut world = World::of(1_000);
        world.begin_anew();
        (0..10).for_each(|_| world.repeat(false));
        (0..400).for_each(|_| world.answer_at(200));
        (10..200).for_each(|_| world.repeat(false));
        // Where the next look begins.
        let begins_at = |world: &World| {
            let index = world.list.0.as_ref().and_then(|entries| entries.index.as_ref());
            index.map(|index| index.passed_places)
        };
        assert_eq!(begins_at(&world), Some(200));
        assert_eq!(world.list.first_not_passed(world.passed), Some(600));
        assert_eq!(begins_at(&world), Some(600));
        world.check();
    }
}
