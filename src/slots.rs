//! Tables for millions of rows that grow and shrink in steps.
//!
//! A table that doubles copies all of its rows at once: with ten million of them that takes as much memory again,
//! and everybody waits for it. These grow by a chunk.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};

/// Rows in a chunk: a few hundred KiB of what is kept of tasks.
const CHUNK: usize = 4096;

/// Rows that are found by their number. A number that was freed is given again; the lowest chunks are filled first, and
/// a chunk without rows gives its memory back.
#[derive(Debug)]
pub struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks in which a row is free, and the lowest of them.
    open: BTreeSet<u32>,
    lowest: Option<u32>,
    len: usize,
}

#[derive(Debug)]
struct Chunk<T> {
    rows: Vec<Row<T>>,
    /// The row that was freed last, if any.
    free: u32,
    len: u32,
}

#[derive(Debug)]
enum Row<T> {
    Used(T),
    /// The row that was freed before it.
    Free(u32),
}

/// Behind the last freed row.
const NONE: u32 = u32::MAX;

impl<T> Default for Chunk<T> {
    fn default() -> Self {
        Chunk { rows: Vec::new(), free: NONE, len: 0 }
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { chunks: Vec::new(), open: BTreeSet::new(), lowest: None, len: 0 }
    }
}

impl<T> Chunk<T> {
    fn is_full(&self) -> bool {
        self.len as usize == CHUNK
    }

    #[inline]
    fn insert(&mut self, row: T) -> usize {
        self.len += 1;
        if self.free != NONE {
            let at = self.free as usize;
            if let Row::Free(before) = std::mem::replace(&mut self.rows[at], Row::Used(row)) {
                self.free = before;
            }
            return at;
        }
        if self.rows.len() == self.rows.capacity() {
            // The first rows of all double, for those who have few; from then on a chunk is made in one piece.
            let more = if self.rows.capacity() >= 64 { CHUNK - self.rows.len() } else { 64 };
            self.rows.reserve_exact(more);
        }
        self.rows.push(Row::Used(row));
        self.rows.len() - 1
    }

    #[inline(always)]
    fn remove(&mut self, at: usize) -> Option<T> {
        let place = self.rows.get_mut(at).filter(|row| matches!(row, Row::Used(_)))?;
        let Row::Used(row) = std::mem::replace(place, Row::Free(self.free)) else { return None };
        self.free = at as u32;
        self.len -= 1;
        Some(row)
    }
}

impl<T> Slots<T> {
    /// Adds a row; gives its number.
    ///
    /// # Panics
    /// Beyond four billion rows.
    #[inline]
    pub fn insert(&mut self, row: T) -> u32 {
        let nth = match self.lowest {
            Some(nth) => nth as usize,
            None => {
                let nth = self.chunks.len();
                self.chunks.push(Chunk::default());
                self.set_open(u32::try_from(nth).expect("memory ends before"), true);
                nth
            }
        };
        let chunk = &mut self.chunks[nth];
        let at = chunk.insert(row);
        if chunk.is_full() {
            self.set_open(nth as u32, false);
        }
        self.len += 1;
        u32::try_from(nth * CHUNK + at).expect("memory ends before")
    }

    fn set_open(&mut self, nth: u32, open: bool) {
        match open {
            true => self.open.insert(nth),
            false => self.open.remove(&nth),
        };
        self.lowest = self.open.first().copied();
    }

    /// Takes a row out.
    #[inline(always)]
    pub fn try_remove(&mut self, number: u32) -> Option<T> {
        let (nth, at) = place(number);
        let chunk = self.chunks.get_mut(nth)?;
        let was_full = chunk.is_full();
        let row = chunk.remove(at)?;
        if chunk.len == 0 && self.len > CHUNK {
            // With the order of its free rows, which nobody counts on.
            *chunk = Chunk::default();
        }
        if was_full {
            self.set_open(nth as u32, true);
        }
        self.len -= 1;
        Some(row)
    }

    /// Takes a row out that is there.
    ///
    /// # Panics
    /// If it is not.
    pub fn remove(&mut self, number: u32) -> T {
        self.try_remove(number).expect("whoever removes a row has found it")
    }

    /// The row with this number.
    pub fn get(&self, number: u32) -> Option<&T> {
        let (nth, at) = place(number);
        match self.chunks.get(nth)?.rows.get(at)? {
            Row::Used(row) => Some(row),
            Row::Free(_) => None,
        }
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let (nth, at) = place(number);
        match self.chunks.get_mut(nth)?.rows.get_mut(at)? {
            Row::Used(row) => Some(row),
            Row::Free(_) => None,
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All numbers are below this one.
    pub fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// All rows with their numbers, in order of these.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks.iter().enumerate().flat_map(|(nth, chunk)| {
            chunk.rows.iter().enumerate().filter_map(move |(at, row)| match row {
                Row::Used(row) => Some(((nth * CHUNK + at) as u32, row)),
                Row::Free(_) => None,
            })
        })
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.chunks.iter_mut().enumerate().flat_map(|(nth, chunk)| {
            chunk.rows.iter_mut().enumerate().filter_map(move |(at, row)| match row {
                Row::Used(row) => Some(((nth * CHUNK + at) as u32, row)),
                Row::Free(_) => None,
            })
        })
    }
}

fn place(number: u32) -> (usize, usize) {
    (number as usize / CHUNK, number as usize % CHUNK)
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.get(number).expect("whoever names a row has found it")
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.get_mut(number).expect("whoever names a row has found it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_their_numbers_and_numbers_are_given_again() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..3 * CHUNK as u32).map(|n| slots.insert(Box::new(n))).collect();
        assert_eq!(numbers, (0..3 * CHUNK as u32).collect::<Vec<_>>());
        for number in &numbers[5..10] {
            assert_eq!(*slots.remove(*number), *number);
            assert!(slots.get(*number).is_none() && slots.try_remove(*number).is_none());
        }
        let mut again: Vec<u32> = (0..5).map(|_| slots.insert(Box::new(0))).collect();
        again.sort_unstable();
        assert_eq!(again, [5, 6, 7, 8, 9]);
        assert_eq!(slots.insert(Box::new(7)), 3 * CHUNK as u32);
        *slots[6] = 42;
        assert_eq!((*slots[6], slots.len()), (42, 3 * CHUNK + 1));
        assert!(slots.get(u32::MAX).is_none());
    }

    #[test]
    fn iterates_in_order_and_gives_back_what_is_empty() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..2 * CHUNK).map(|n| slots.insert(n)).collect();
        assert_eq!(numbers.len(), slots.len());
        for number in (0..CHUNK as u32).chain(CHUNK as u32 + 1..2 * CHUNK as u32) {
            slots.remove(number);
        }
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(CHUNK as u32, &CHUNK)]);
        assert_eq!(slots.chunks[0].rows.capacity(), 0);
        slots.iter_mut().for_each(|(_, row)| *row = 1);
        assert_eq!((slots[CHUNK as u32], slots.end()), (1, 2 * CHUNK as u32));
        assert_eq!(slots.insert(5), 0, "the lowest chunk is filled first");
    }

    #[test]
    fn a_free_row_costs_no_room_of_its_own() {
        assert_eq!(size_of::<Row<(Box<u8>, u64)>>(), 16);
    }
}
