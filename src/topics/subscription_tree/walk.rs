//! The list of a topic's subscribers, made in several calls.
//!
//! It becomes what it would have been when the walk began. A subscription that is made meanwhile is not listed. One that ends,
//! or whose grant changes, before the walk has come to it is listed right before that, as it was. So the order is that of
//! the filters, and for each filter the oldest subscription first, but for those who were listed early.
//!
//! Where there are very many filters they are searched for in several calls too. A filter that has not been found is known by its
//! text if one of its subscriptions ends or changes; one that is made meanwhile may be found, and has nothing to be listed.
//!
//! No call of it takes long, however long the list is: its memory is asked for at once, or when all filters are found, and what is
//! not touched yet costs nothing; nothing is moved but what was listed before they were.
//!
//! Invariants: every subscription to one of the filters that is not `done` was there when the walk began, and is in the
//! ring of its filter between `next` and `last`, or the walk has yet to come to that filter; a filter that has ended is
//! not `standing`, unless its number was given to one that was found. None is come to before all are found.
//!
//! Deliberately not here: which filters match, and the lists of a few (see `subscription_tree`).

use std::collections::BTreeSet;

use crate::blocks::Blocks;
use crate::topics::match_cache::{Detail, Details, Matches, first_grant, further_grant};
use crate::topics::name::{TopicName, filter_matches};

use super::bits::Bits;
use super::pool::Pool;
use super::shapes::Search;
use super::{Filter, Subscription};

/// So many subscriptions of one filter are listed in the time that it takes to come to another one.
const LISTED_PER_FILTER: usize = 8;

/// Part of the ring of a filter, both ends included.
#[derive(Clone, Copy, Debug)]
struct Span {
    next: u32,
    last: u32,
}

/// What all numbers in a tree are below.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) filters: usize,
    pub(super) subscriptions: usize,
    pub(super) subscribers: usize,
}

/// A search that has not found all filters yet.
#[derive(Debug)]
pub(super) struct Searching {
    pub(super) search: Search,
    topic: Box<str>,
}

impl Searching {
    pub(super) fn new(search: Search, topic: TopicName<'_>) -> Self {
        Self { search, topic: topic.as_str().into() }
    }

    pub(super) fn topic(&self) -> TopicName<'_> {
        TopicName::known(&self.topic)
    }
}

#[derive(Debug)]
pub(super) struct Walk {
    pub(super) searching: Option<Box<Searching>>,
    /// Those that matched, to which the walk has yet to come.
    filters: Blocks<u32>,
    /// What is still to be looked at of the filter that it has come to last.
    span: Option<Span>,
    /// The filters that matched and have not ended since.
    standing: Bits,
    /// The subscriptions that are listed, or were made after the walk began. What is out of bounds was made then too.
    done: Bits,
    /// The list so far.
    matches: Matches,
    details: Vec<Detail>,
    /// How many subscriptions are listed when it is done, at most: those that are, and those of the filters that were found.
    count: usize,
    /// By subscriber: 0, or behind which place it is listed. Empty if nobody can be listed twice.
    places: Vec<u32>,
}

impl Walk {
    /// Of a topic without filters yet. `is_one` says that it gets one only.
    pub(super) fn new(matches: Matches, bounds: Bounds, is_one: bool) -> Self {
        let places = if is_one { Vec::new() } else { vec![0; bounds.subscribers] };
        Self {
            searching: None,
            filters: Blocks::default(),
            span: None,
            standing: Bits::new(bounds.filters),
            done: Bits::new(bounds.subscriptions),
            matches,
            details: Vec::new(),
            count: 0,
            places,
        }
    }

    /// These filters match, and have so many subscriptions.
    pub(super) fn add_filters(&mut self, filters: impl Iterator<Item = u32>, count: usize) {
        filters.for_each(|filter| {
            self.standing.set(filter, true);
            self.filters.push_back(filter);
        });
        self.count += count;
    }

    /// All filters are found: asks for the memory that the list may need.
    pub(super) fn reserve(&mut self) {
        let listed = &mut self.matches.list.subscribers;
        listed.reserve_exact(self.count.min(self.places.len()).saturating_sub(listed.len()));
        if self.details.capacity() > 0 {
            self.details.reserve_exact((self.count + self.count / 2).saturating_sub(self.details.len()));
        }
    }

    /// Looks at so many more subscriptions; a filter counts as several. True if none is left.
    pub(super) fn go_on(
        &mut self,
        filters: &Pool<Filter>,
        subscriptions: &Pool<Subscription>,
        at_most: usize,
    ) -> bool {
        let mut left = at_most;
        loop {
            let Some(Span { next, last }) = self.span else {
                if left == 0 && !self.filters.is_empty() {
                    return false;
                }
                let Some(filter) = self.filters.pop_front() else { return true };
                left = left.saturating_sub(LISTED_PER_FILTER);
                if self.is_standing(filter) {
                    let last = filters[filter].last;
                    self.span = Some(Span { next: subscriptions[last].in_filter.next, last });
                }
                continue;
            };
            if left == 0 {
                return false;
            }
            left -= 1;
            let subscription = &subscriptions[next];
            if self.done.get(next) == Some(false) {
                self.list(next, subscription);
            }
            self.span = (next != last).then_some(Span { next: subscription.in_filter.next, last });
        }
    }

    /// The list, of which nothing is left to be made.
    pub(super) fn finish(self) -> Matches {
        let Self { mut matches, details, .. } = self;
        if !details.is_empty() {
            matches.list.details = Some(Box::new(Details(details.into())));
        }
        matches
    }

    /// A node of the shapes was made.
    pub(super) fn node_comes(&mut self, node: u32) {
        if let Some(searching) = &mut self.searching {
            searching.search.node_comes(node);
        }
    }

    /// A subscription was made.
    pub(super) fn comes(&mut self, index: u32) {
        self.done.set(index, true);
    }

    /// A subscription is about to grant something else. Its filter has this text.
    pub(super) fn changes(&mut self, index: u32, subscription: &Subscription, text: &[u8]) {
        if self.done.get(index) != Some(false) {
            return;
        }
        let is_found = self.is_standing(subscription.filter);
        if is_found || self.is_searched_for(text) {
            self.count += usize::from(!is_found);
            self.list(index, subscription);
        }
    }

    fn is_searched_for(&self, filter: &[u8]) -> bool {
        self.searching.as_ref().is_some_and(|searching| filter_matches(filter, searching.topic()))
    }

    /// A subscription is about to be removed. Its filter has this text.
    pub(super) fn goes(&mut self, index: u32, subscriptions: &Pool<Subscription>, text: &[u8]) {
        let subscription = &subscriptions[index];
        self.changes(index, subscription, text);
        let Some(Span { next, last }) = self.span else { return };
        self.span = match index {
            _ if next == last && index == next => None,
            _ if index == next => Some(Span { next: subscription.in_filter.next, last }),
            _ if index == last => Some(Span { next, last: subscription.in_filter.previous }),
            _ => return,
        };
    }

    /// A filter was removed, and all of its subscriptions before.
    pub(super) fn filter_goes(&mut self, filter: u32) {
        self.standing.set(filter, false);
    }

    fn is_standing(&self, filter: u32) -> bool {
        self.standing.get(filter) == Some(true)
    }

    fn list(&mut self, index: u32, subscription: &Subscription) {
        let &Subscription { subscriber, grant, .. } = subscription;
        let Self { done, matches, details, count, places, .. } = self;
        done.set(index, true);
        if details.capacity() == 0 && !grant.is_plain() {
            // One for each of them, and another one for each subscriber with several.
            details.reserve_exact(*count + *count / 2);
        }
        let listed = &mut matches.list.subscribers;
        if let Some(place) = places.get_mut(subscriber as usize) {
            if let Some(at) = place.checked_sub(1) {
                return further_grant(details, &mut listed[at as usize], grant);
            }
            *place = listed.len() as u32 + 1;
        }
        listed.push(first_grant(details, subscriber, grant));
    }

    /// Asserts that the list is consistent, and that what is left to be listed will be found.
    pub(super) fn check_invariants(&self, filters: &Pool<Filter>, subscriptions: &Pool<Subscription>) {
        let subscribers = &self.matches.list.subscribers;
        assert!(subscribers.len() <= self.count && self.details.len() <= self.count + self.count / 2);
        let listed = |(subscriber, place): (usize, &u32)| {
            *place == 0 || subscribers[*place as usize - 1].id.0 as usize == subscriber
        };
        assert!(self.places.iter().enumerate().all(listed), "who is listed is found there");
        if !self.places.is_empty() {
            assert_eq!(self.places.iter().filter(|place| **place > 0).count(), subscribers.len());
        }
        let ahead: BTreeSet<u32> = self.filters.iter().copied().collect();
        for (number, filter) in filters.iter().filter(|(number, _)| self.is_standing(*number)) {
            let Filter { last, count, .. } = *filter;
            let span = self.span.filter(|span| subscriptions[span.next].filter == number);
            let is_all_ahead = ahead.contains(&number);
            let mut is_ahead = is_all_ahead;
            let mut at = last;
            for _ in 0..count.get() {
                at = subscriptions[at].in_filter.next;
                is_ahead |= span.is_some_and(|span| span.next == at);
                assert!(is_ahead || self.done.get(at) != Some(false), "nobody is left behind");
                is_ahead &= span.is_none_or(|span| span.last != at);
            }
            assert_eq!(is_ahead, is_all_ahead, "a span ends in its ring, behind its beginning");
        }
    }
}
