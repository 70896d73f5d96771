//! Values that stay under a number of 32 bits.
//!
//! Like `slab`, but half the overhead: a free place is told from a taken one by a niche in the value, and remembers
//! the next free one in four bytes, so that a place is as large as its value. Numbers are given again, last freed
//! first.

use std::ops::{Index, IndexMut};

/// The number of no place.
pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Place<T> {
    Taken(T),
    /// The place that was freed before.
    Free(u32),
}

#[derive(Debug)]
pub(super) struct Pool<T> {
    places: Vec<Place<T>>,
    free: u32,
    len: usize,
}

impl<T> Pool<T> {
    pub(super) const fn new() -> Self {
        Self { places: Vec::new(), free: NONE, len: 0 }
    }

    pub(super) fn reserve(&mut self, values: usize) {
        self.places.reserve(values);
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// All numbers given so far are below this one.
    pub(super) const fn places(&self) -> usize {
        self.places.len()
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        match self.places.get_mut(self.free as usize) {
            Some(place) => {
                let Place::Free(next) = std::mem::replace(place, Place::Taken(value)) else {
                    unreachable!("the list of free places has free places only")
                };
                std::mem::replace(&mut self.free, next)
            }
            None => {
                let index = self.places.len() as u32;
                assert!(self.places.len() < NONE as usize, "fewer places than 2^32 - 1");
                self.places.push(Place::Taken(value));
                index
            }
        }
    }

    pub(super) fn remove(&mut self, index: u32) -> T {
        match std::mem::replace(&mut self.places[index as usize], Place::Free(self.free)) {
            Place::Taken(value) => {
                self.free = index;
                self.len -= 1;
                value
            }
            Place::Free(_) => panic!("place {index} is free"),
        }
    }

    /// The value with this number, if it is still there.
    #[inline]
    pub(super) fn find(&self, index: u32) -> Option<&T> {
        match self.places.get(index as usize)? {
            Place::Taken(value) => Some(value),
            Place::Free(_) => None,
        }
    }

    /// All values, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| match place {
            Place::Taken(value) => Some((index as u32, value)),
            Place::Free(_) => None,
        })
    }
}

impl<T> Index<u32> for Pool<T> {
    type Output = T;

    #[inline]
    fn index(&self, index: u32) -> &T {
        match &self.places[index as usize] {
            Place::Taken(value) => value,
            Place::Free(_) => panic!("place {index} is free"),
        }
    }
}

impl<T> IndexMut<u32> for Pool<T> {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut T {
        match &mut self.places[index as usize] {
            Place::Taken(value) => value,
            Place::Free(_) => panic!("place {index} is free"),
        }
    }
}
