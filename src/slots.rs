//! Tables for millions of rows that grow and shrink in steps.
//!
//! A table that doubles copies all of its rows at once: with ten million of them that takes as much memory again,
//! and everybody waits for it. These grow by a chunk. And a chunk whose rows wait for a long time, and are all alike,
//! is packed: it takes a fraction of its memory, until one of its rows is changed.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::ops::{Deref, Index, IndexMut};

/// Rows in a chunk. Few, because a chunk is packed and unpacked as a whole: some microseconds. As many as the bits of
/// what says which of them are there.
const CHUNK: usize = 128;

/// So many chunks in which rows are free keep their memory while none is there: what comes and goes does so without
/// asking for memory each time.
const SPARE_CHUNKS: usize = 32;

/// A chunk with fewer rows is not packed: it would take none in, and numbers would be used up for nothing.
const PACKED_ROWS_MIN: usize = CHUNK / 8;

/// So many chunks are tried to be packed at once: some hundred microseconds, at most.
const TRIES_AT_ONCE: usize = 64;

/// What rows must be able to do to be packed.
pub trait Pack: Sized {
    /// Rows that are packed together.
    type Packed: Debug;

    /// Whether the row may be packed: it has nothing that the others have not, and nobody is likely to change it soon.
    fn is_settled(&self) -> bool;

    /// Packs rows that may be packed, in this order; they are dropped afterwards.
    fn pack<'a>(rows: impl Iterator<Item = &'a Self>) -> Self::Packed
    where
        Self: 'a;

    /// One of them again, as it was: by its place among them, counted from 0.
    fn unpack(packed: &Self::Packed, nth: usize) -> Self;

    /// What the row is found by.
    fn id(&self) -> u128;

    /// The same, of a row that is packed.
    fn packed_id(packed: &Self::Packed, nth: usize) -> u128;
}

/// Rows that are found by their number. A number that was freed is given again; the lowest chunks are filled first, but
/// for those that are packed, and a chunk without rows gives its memory back.
#[derive(Debug)]
pub struct Slots<T: Pack> {
    chunks: Vec<Chunk<T>>,
    lists: Lists,
    len: usize,
    /// So many chunks with settled rows stay as they are.
    warm_max: usize,
    /// Chunks that are packed and were looked at since.
    looked: RefCell<Vec<u32>>,
}

/// Which chunks there is something to do with.
#[derive(Debug, Default)]
struct Lists {
    /// Chunks in which a row is free that are not packed, and the lowest of them.
    open: BTreeSet<u32>,
    lowest: Option<u32>,
    /// Chunks that have settled rows and are not packed: oldest first, each once.
    warm: VecDeque<u32>,
    /// How many of them may still be tried: two for each that was added, so that those that cannot be packed now are
    /// not tried again and again while nothing happens.
    tries: usize,
}

#[derive(Debug)]
struct Chunk<T: Pack> {
    /// None while it is packed.
    rows: Vec<Row<T>>,
    packed: Option<Box<Packed<T>>>,
    /// The row that was freed last, if any; means nothing while it is packed.
    free: u32,
    len: u32,
    /// Whether it is in [`Lists::warm`].
    warm: bool,
}

#[derive(Debug)]
struct Packed<T: Pack> {
    /// A bit for each row that is there, the lowest for the first.
    there: u128,
    rows: T::Packed,
    /// The rows as they were, while somebody looks at them.
    looked: OnceCell<Vec<Row<T>>>,
}

#[derive(Debug)]
enum Row<T> {
    Used(T),
    /// The row that was freed before it.
    Free(u32),
}

/// A row to look at.
#[derive(Debug)]
pub enum Peek<'a, T> {
    /// As it stands in the table.
    There(&'a T),
    /// As it was when it was packed.
    Copy(T),
}

/// Behind the last freed row.
const NONE: u32 = u32::MAX;

impl<T> Deref for Peek<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Peek::There(row) => row,
            Peek::Copy(row) => row,
        }
    }
}

impl<T: Pack> Default for Chunk<T> {
    fn default() -> Self {
        Chunk { rows: Vec::new(), packed: None, free: NONE, len: 0, warm: false }
    }
}

impl<T: Pack> Default for Slots<T> {
    fn default() -> Self {
        Slots::new(0)
    }
}

impl<T: Pack> Packed<T> {
    /// The place among those that are there of the row with this place in the chunk.
    fn nth(&self, at: usize) -> Option<usize> {
        let bit = 1_u128.checked_shl(at as u32)?;
        (self.there & bit != 0).then(|| (self.there & (bit - 1)).count_ones() as usize)
    }

    fn unpack(&self) -> Vec<Row<T>> {
        let end = u128::BITS - self.there.leading_zeros();
        let mut rows = Vec::with_capacity(CHUNK);
        let mut nth = 0;
        for at in 0..end {
            if self.there >> at & 1 == 0 {
                rows.push(Row::Free(NONE));
                continue;
            }
            rows.push(Row::Used(T::unpack(&self.rows, nth)));
            nth += 1;
        }
        rows
    }
}

impl<T: Pack> Chunk<T> {
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
            let more = if self.rows.capacity() >= 16 { CHUNK - self.rows.len() } else { 16 };
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

    /// As it was before it was packed.
    fn unpack(&mut self) {
        let Some(mut packed) = self.packed.take() else { return };
        self.rows = packed.looked.take().unwrap_or_else(|| packed.unpack());
        self.free = NONE;
        for (at, row) in self.rows.iter_mut().enumerate().rev() {
            if let Row::Free(before) = row {
                *before = self.free;
                self.free = at as u32;
            }
        }
    }

    /// Packs it, if all of its rows may be and there are enough of them. Otherwise whether most may.
    fn pack(&mut self) -> Result<(), bool> {
        let used = || self.rows.iter().filter_map(Row::used);
        let (settled, len) = (used().filter(|row| row.is_settled()).count(), self.len as usize);
        if settled < len || len < PACKED_ROWS_MIN {
            return Err(len >= PACKED_ROWS_MIN && settled * 4 >= len * 3);
        }
        let bits = self.rows.iter().enumerate().filter(|(_, row)| row.used().is_some());
        let there = bits.fold(0, |there, (at, _)| there | 1 << at);
        self.packed = Some(Box::new(Packed { there, rows: T::pack(used()), looked: OnceCell::new() }));
        self.rows = Vec::new();
        Ok(())
    }
}

impl Lists {
    fn set_open(&mut self, nth: usize, open: bool) {
        let nth = u32::try_from(nth).expect("memory ends before");
        match open {
            true => self.open.insert(nth),
            false => self.open.remove(&nth),
        };
        self.lowest = self.open.first().copied();
    }

    fn warm_up<T: Pack>(&mut self, nth: usize, chunk: &mut Chunk<T>) {
        if !chunk.warm {
            chunk.warm = true;
            self.warm.push_back(nth as u32);
            self.tries += 2;
        }
    }

    #[cold]
    fn unpack<T: Pack>(&mut self, nth: usize, chunk: &mut Chunk<T>) {
        chunk.unpack();
        if !chunk.is_full() {
            self.set_open(nth, true);
        }
        self.warm_up(nth, chunk);
    }
}

impl<T> Row<T> {
    fn used(&self) -> Option<&T> {
        match self {
            Row::Used(row) => Some(row),
            Row::Free(_) => None,
        }
    }
}

impl<T: Pack> Slots<T> {
    /// An empty table. About so many rows stay as they are though they may be packed: those that settled last.
    pub fn new(warm_rows: usize) -> Slots<T> {
        Slots {
            chunks: Vec::new(),
            lists: Lists::default(),
            len: 0,
            warm_max: warm_rows / CHUNK,
            looked: RefCell::default(),
        }
    }

    /// Adds a row; gives its number.
    ///
    /// # Panics
    /// Beyond four billion rows.
    #[inline]
    pub fn insert(&mut self, row: T) -> u32 {
        let nth = match self.lists.lowest {
            Some(nth) => nth as usize,
            None => {
                let nth = self.chunks.len();
                self.chunks.push(Chunk::default());
                self.lists.set_open(nth, true);
                nth
            }
        };
        let chunk = &mut self.chunks[nth];
        let at = chunk.insert(row);
        if chunk.is_full() {
            self.lists.set_open(nth, false);
        }
        self.len += 1;
        u32::try_from(nth * CHUNK + at).expect("memory ends before")
    }

    /// Takes a row out.
    #[inline(always)]
    pub fn try_remove(&mut self, number: u32) -> Option<T> {
        let (nth, at) = place(number);
        let chunk = self.chunks.get_mut(nth)?;
        if chunk.packed.is_some() {
            self.lists.unpack(nth, chunk);
        }
        let was_full = chunk.is_full();
        let row = chunk.remove(at)?;
        if chunk.len == 0 && self.lists.open.len() > SPARE_CHUNKS {
            // With the order of its free rows, which nobody counts on.
            (chunk.rows, chunk.free) = (Vec::new(), NONE);
        }
        if was_full {
            self.lists.set_open(nth, true);
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

    /// The row with this number. Of a chunk that is packed all rows are unpacked, until [`Slots::cool`]: who needs no
    /// more than a look takes [`Slots::peek`].
    #[inline]
    pub fn get(&self, number: u32) -> Option<&T> {
        let (nth, at) = place(number);
        let chunk = self.chunks.get(nth)?;
        match &chunk.packed {
            None => chunk.rows.get(at)?.used(),
            Some(packed) => self.look_at(nth, packed).get(at)?.used(),
        }
    }

    #[cold]
    fn look_at<'a>(&self, nth: usize, packed: &'a Packed<T>) -> &'a Vec<Row<T>> {
        packed.looked.get_or_init(|| {
            self.looked.borrow_mut().push(nth as u32);
            packed.unpack()
        })
    }

    /// The same, to look at it, and at others of other chunks: nothing but this row is unpacked.
    pub fn peek(&self, number: u32) -> Option<Peek<'_, T>> {
        let (nth, at) = place(number);
        let chunk = self.chunks.get(nth)?;
        match &chunk.packed {
            None => chunk.rows.get(at)?.used().map(Peek::There),
            Some(packed) => Some(Peek::Copy(T::unpack(&packed.rows, packed.nth(at)?))),
        }
    }

    /// What a row is found by; none: there is no such row.
    #[inline]
    pub fn id(&self, number: u32) -> Option<u128> {
        let (nth, at) = place(number);
        let chunk = self.chunks.get(nth)?;
        match &chunk.packed {
            None => chunk.rows.get(at)?.used().map(T::id),
            Some(packed) => Some(T::packed_id(&packed.rows, packed.nth(at)?)),
        }
    }

    /// The same as [`Slots::get`], to change it.
    #[inline]
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let (nth, at) = place(number);
        let chunk = self.chunks.get_mut(nth)?;
        if chunk.packed.is_some() {
            self.lists.unpack(nth, chunk);
        }
        match chunk.rows.get_mut(at)? {
            Row::Used(row) => Some(row),
            Row::Free(_) => None,
        }
    }

    /// The row has settled, and may be packed with its neighbours one day.
    pub fn settled(&mut self, number: u32) {
        let (nth, _) = place(number);
        if let Some(chunk) = self.chunks.get_mut(nth).filter(|chunk| chunk.packed.is_none()) {
            self.lists.warm_up(nth, chunk);
        }
    }

    /// Packs chunks if there are too many that may be, a few at a time; and of what is packed drops what a look has
    /// unpacked. To be called between one piece of work and the next.
    #[inline]
    pub fn cool(&mut self) {
        let due = self.lists.tries > 0 && self.lists.warm.len() > self.warm_max;
        if due || !self.looked.get_mut().is_empty() {
            self.cool_down();
        }
    }

    #[cold]
    fn cool_down(&mut self) {
        for nth in std::mem::take(self.looked.get_mut()) {
            if let Some(packed) = &mut self.chunks[nth as usize].packed {
                packed.looked.take();
            }
        }
        for _ in 0..TRIES_AT_ONCE.min(self.lists.tries) {
            if self.lists.warm.len() <= self.warm_max {
                self.lists.tries = 0;
                break;
            }
            self.lists.tries -= 1;
            let Some(nth) = self.lists.warm.pop_front() else { break };
            let chunk = &mut self.chunks[nth as usize];
            chunk.warm = false;
            if chunk.packed.is_some() {
                continue;
            }
            match chunk.pack() {
                Ok(()) => self.lists.set_open(nth as usize, false),
                Err(true) => {
                    chunk.warm = true;
                    self.lists.warm.push_back(nth);
                }
                Err(false) => {}
            }
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

    /// How many rows are packed.
    #[cfg(test)]
    pub fn packed(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.packed.is_some()).map(|chunk| chunk.len as usize).sum()
    }

    /// All numbers are below this one.
    pub fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// All rows with their numbers, in order of these.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Peek<'_, T>)> {
        (0..self.end()).filter_map(|number| Some((number, self.peek(number)?)))
    }
}

fn place(number: u32) -> (usize, usize) {
    (number as usize / CHUNK, number as usize % CHUNK)
}

impl<T: Pack> Index<u32> for Slots<T> {
    type Output = T;

    #[inline]
    fn index(&self, number: u32) -> &T {
        self.get(number).expect("whoever names a row has found it")
    }
}

impl<T: Pack> IndexMut<u32> for Slots<T> {
    #[inline]
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.get_mut(number).expect("whoever names a row has found it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::tests::random;

    /// A row with an owner of its own, so that one that is forgotten or dropped twice is seen.
    #[derive(Debug, Clone, PartialEq)]
    struct Lot {
        number: u64,
        settled: bool,
        owner: std::rc::Rc<()>,
    }

    impl Pack for Lot {
        type Packed = Vec<Lot>;

        fn is_settled(&self) -> bool {
            self.settled
        }

        fn pack<'a>(rows: impl Iterator<Item = &'a Lot>) -> Vec<Lot> {
            rows.cloned().collect()
        }

        fn unpack(packed: &Vec<Lot>, nth: usize) -> Lot {
            packed[nth].clone()
        }

        fn id(&self) -> u128 {
            u128::from(self.number)
        }

        fn packed_id(packed: &Vec<Lot>, nth: usize) -> u128 {
            packed[nth].id()
        }
    }

    struct Yard {
        slots: Slots<Lot>,
        owner: std::rc::Rc<()>,
    }

    impl Yard {
        fn new(warm_rows: usize) -> Yard {
            Yard { slots: Slots::new(warm_rows), owner: std::rc::Rc::default() }
        }

        fn insert(&mut self, number: u64) -> u32 {
            self.slots.insert(Lot { number, settled: false, owner: self.owner.clone() })
        }

        fn settle(&mut self, number: u32) {
            self.slots[number].settled = true;
            self.slots.settled(number);
        }

        /// Packs all that may be.
        fn cool(&mut self) {
            (0..1000).for_each(|_| self.slots.cool());
        }
    }

    #[test]
    fn rows_are_found_by_their_numbers_and_numbers_are_given_again() {
        let mut yard = Yard::new(0);
        let numbers: Vec<u32> = (0..3 * CHUNK as u64).map(|n| yard.insert(n)).collect();
        assert_eq!(numbers, (0..3 * CHUNK as u32).collect::<Vec<_>>());
        for number in &numbers[5..10] {
            assert_eq!(yard.slots.remove(*number).number, u64::from(*number));
            assert!(yard.slots.get(*number).is_none() && yard.slots.try_remove(*number).is_none());
        }
        let mut again: Vec<u32> = (0..5).map(|_| yard.insert(0)).collect();
        again.sort_unstable();
        assert_eq!(again, [5, 6, 7, 8, 9]);
        assert_eq!(yard.insert(7), 3 * CHUNK as u32);
        yard.slots[6].number = 42;
        assert_eq!((yard.slots[6].number, yard.slots.len()), (42, 3 * CHUNK + 1));
        assert!(yard.slots.get(u32::MAX).is_none());
    }

    #[test]
    fn iterates_in_order_and_gives_back_what_is_empty() {
        let (mut yard, chunks) = (Yard::new(0), SPARE_CHUNKS + 3);
        let end = (chunks * CHUNK) as u32;
        (0..u64::from(end)).for_each(|n| _ = yard.insert(n));
        for number in (0..end).filter(|number| *number != end - CHUNK as u32) {
            yard.slots.remove(number);
        }
        let left: Vec<(u32, u64)> = yard.slots.iter().map(|(number, row)| (number, row.number)).collect();
        assert_eq!(left, [(end - CHUNK as u32, u64::from(end) - CHUNK as u64)]);
        let holds = |chunk: &&Chunk<Lot>| chunk.rows.capacity() > 0;
        let kept = yard.slots.chunks.iter().filter(holds).count();
        assert_eq!((kept, yard.slots.end()), (SPARE_CHUNKS + 1, end));
        assert!(yard.insert(5) < CHUNK as u32, "the lowest chunk is filled first");
    }

    #[test]
    fn a_free_row_costs_no_room_of_its_own() {
        assert_eq!(size_of::<Row<(Box<u8>, u64)>>(), 16);
    }

    #[test]
    fn settled_chunks_are_packed_and_those_that_settled_last_stay() {
        let mut yard = Yard::new(2 * CHUNK);
        let numbers: Vec<u32> = (0..5 * CHUNK as u64).map(|n| yard.insert(n)).collect();
        numbers.iter().for_each(|number| yard.settle(*number));
        yard.cool();
        assert_eq!(yard.slots.packed(), 3 * CHUNK);
        let packed = |yard: &Yard, nth: usize| {
            let packed = &yard.slots.chunks[nth].packed;
            packed.as_ref().is_some_and(|packed| packed.looked.get().is_none())
        };
        assert_eq!(std::array::from_fn(|nth| packed(&yard, nth)), [true, true, true, false, false]);
        // A look unpacks for as long as the look takes, and a peek nothing.
        assert_eq!(yard.slots.peek(7).map(|row| row.number), Some(7));
        assert_eq!((yard.slots.id(9), yard.slots.id(5 * CHUNK as u32)), (Some(9), None));
        assert!(packed(&yard, 0));
        assert_eq!(yard.slots[7].number, 7);
        assert!(!packed(&yard, 0));
        yard.cool();
        assert!(packed(&yard, 0));
        // A change unpacks for good, until it has settled for longest.
        yard.slots[7].number = 70;
        yard.cool();
        assert_eq!(std::array::from_fn(|nth| packed(&yard, nth)), [false, true, true, true, false]);
        assert_eq!(yard.slots[7].number, 70);
    }

    #[test]
    fn what_is_packed_takes_no_rows_in() {
        let mut yard = Yard::new(0);
        let numbers: Vec<u32> = (0..2 * CHUNK as u64).map(|n| yard.insert(n)).collect();
        numbers.iter().for_each(|number| yard.settle(*number));
        yard.slots.remove(3);
        yard.cool();
        assert_eq!(yard.slots.packed(), 2 * CHUNK - 1);
        assert_eq!(yard.insert(0), 2 * CHUNK as u32, "behind what is packed");
        yard.slots[5].settled = false;
        yard.cool();
        assert_eq!(yard.insert(0), 3, "it is unpacked, and the lowest");
        assert!(yard.slots.try_remove(CHUNK as u32 + 1).is_some() && yard.slots.try_remove(3).is_some());
    }

    /// Like a table that packs nothing, whatever happens in whatever order.
    #[test]
    fn packing_is_not_seen() {
        for seed in 1..=8_u64 {
            let mut state = seed << 40 | 0x7f4a_7c15;
            let mut draw = move || random(&mut state);
            let mut yard = Yard::new(seed as usize % 3 * CHUNK);
            let mut model = std::collections::BTreeMap::new();
            let mut most_packed = 0;
            for step in 0..30_000_u64 {
                let r = draw();
                let any = model.range(r as u32 % yard.slots.end().max(1)..).next().map(|(number, _)| *number);
                match r >> 32 & 15 {
                    0..=5 if model.len() < 2000 => _ = model.insert(yard.insert(step), step),
                    0..=4 => {
                        let Some(number) = any else { continue };
                        let removed = yard.slots.try_remove(number).map(|row| row.number);
                        assert_eq!(removed, model.remove(&number));
                    }
                    5 => {
                        let Some(number) = any else { continue };
                        yard.slots[number].number = step;
                        model.insert(number, step);
                    }
                    6 => {
                        let Some(number) = any else { continue };
                        assert_eq!(Some(&yard.slots[number].number), model.get(&number));
                    }
                    7..=9 => {
                        // Whole chunks settle, as a rule.
                        let chunk = any.unwrap_or(0) / CHUNK as u32 * CHUNK as u32;
                        for (number, _) in model.range(chunk..chunk + CHUNK as u32) {
                            yard.settle(*number);
                        }
                    }
                    _ => yard.slots.cool(),
                }
                most_packed = most_packed.max(yard.slots.packed());
                if step % 500 == 0 {
                    let all: Vec<(u32, u64)> = yard.slots.iter().map(|(at, row)| (at, row.number)).collect();
                    assert!(all.iter().copied().eq(model.iter().map(|(at, number)| (*at, *number))));
                    assert_eq!(yard.slots.len(), model.len());
                    assert!(all.iter().all(|(at, number)| yard.slots.id(*at) == Some(u128::from(*number))));
                }
            }
            assert!(most_packed > 4 * CHUNK, "{most_packed}");
            for number in model.into_keys() {
                yard.slots.remove(number);
            }
            assert_eq!((yard.slots.len(), std::rc::Rc::strong_count(&yard.owner)), (0, 1));
        }
    }
}
