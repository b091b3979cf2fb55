//! Finds things by ids that were made in order of time.
//!
//! Ids of tasks begin with their time (UUIDv7, RFC 9562), and tasks come and go roughly in that order: what is looked
//! for is mostly young, what is forgotten is the oldest. One large hash table would scatter both over all of its
//! memory, and fetch a line from far away for each. Here every stretch of time has a small table of its own, so that
//! what is in use stays near; none ever grows by much at once; and a stretch of which nothing is left gives its
//! memory back. Ids without a time share one table, which grows as a whole: there are few of them.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::ops::Range;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// As many entries as a table of 2048 places takes before it grows.
const PAGE: usize = 1792;

/// Entries that a page takes before the next one may begin. The rest is for the others of a burst, which have one time
/// and so one page, and for ids that come a little late. Those that have left meanwhile count too, because a table
/// whose places were used once must be put in order again.
const TURN: usize = PAGE - 192;

/// So many ids are worth [`IdTable::touch`] at a time: as many as a core waits for side by side.
pub const TOUCHED_TOGETHER: usize = 16;

/// Entries found by their ids, which `id_of` reads from an entry or from wherever that says.
///
/// An id that is not a UUIDv7 is found as well, in a table that all such ids share.
#[derive(Debug)]
pub struct IdTable<T> {
    /// In order of time, without gaps: each has the ids from its first time up to that of the next one. The first
    /// begins at 0 and stays.
    pages: VecDeque<Page<T>>,
    /// No id in the last page is of a later time.
    newest: u64,
    /// Entries that the last page took.
    taken: usize,
    /// The page that [`IdTable::take_cold`] looks at next.
    hand: usize,
}

#[derive(Debug)]
struct Page<T> {
    first: u64,
    table: HashTable<T>,
    /// Whether anything was changed since [`IdTable::take_cold`] looked at it last.
    touched: bool,
}

impl<T> Default for IdTable<T> {
    fn default() -> Self {
        IdTable { pages: VecDeque::new(), newest: 0, taken: 0, hand: 0 }
    }
}

impl<T> IdTable<T> {
    /// The entry with this id.
    #[inline]
    pub fn find(&self, id: u128, id_of: impl Fn(&T) -> u128) -> Option<&T> {
        let page = self.pages.get(self.page_of(time_of(id)))?;
        page.table.find(hash(id), |entry| id_of(entry) == id)
    }

    /// The same, to change it; not its id.
    #[inline]
    pub fn find_mut(&mut self, id: u128, id_of: impl Fn(&T) -> u128) -> Option<&mut T> {
        let at = self.page_of(time_of(id));
        let page = self.pages.get_mut(at)?;
        page.touched = true;
        page.table.find_mut(hash(id), |entry| id_of(entry) == id)
    }

    /// Looks for some ids and leaves it at that, so that the memory behind them is near when they are asked for. Lookups
    /// in a row are fetched from far away side by side; one that is followed by work on what it found waits by itself.
    #[inline]
    pub fn touch(&self, ids: impl Iterator<Item = u128>, id_of: impl Fn(&T) -> u128) {
        for id in ids {
            std::hint::black_box(self.find(id, &id_of).is_some());
        }
    }

    /// Adds an entry; the return value is the one that had this id, if any.
    #[inline]
    pub fn insert(&mut self, id: u128, entry: T, id_of: impl Fn(&T) -> u128) -> Option<T> {
        let (time, hash) = (time_of(id), hash(id));
        let at = self.page_of(time);
        if let Some(page) = self.pages.get_mut(at)
            && let Some(found) = page.table.find_mut(hash, |entry| id_of(entry) == id)
        {
            page.touched = true;
            return Some(std::mem::replace(found, entry));
        }
        self.add(at, time, hash, entry, id_of);
        None
    }

    /// The same, of an id that is not there.
    #[inline]
    pub fn insert_new(&mut self, id: u128, entry: T, id_of: impl Fn(&T) -> u128) {
        let time = time_of(id);
        self.add(self.page_of(time), time, hash(id), entry, id_of);
    }

    #[inline]
    fn add(&mut self, at: usize, time: u64, hash: u64, entry: T, id_of: impl Fn(&T) -> u128) {
        let at = self.make_room(at, time, &id_of);
        self.newest = self.newest.max(time);
        let page = &mut self.pages[at];
        page.touched = true;
        page.table.insert_unique(hash, entry, |entry| self::hash(id_of(entry)));
    }

    /// Takes out the entry with this id for which `is` holds.
    #[inline]
    pub fn remove(&mut self, id: u128, is: impl Fn(&T) -> bool, id_of: impl Fn(&T) -> u128) -> Option<T> {
        let at = self.page_of(time_of(id));
        let page = self.pages.get_mut(at)?;
        let (entry, _) = page.table.find_entry(hash(id), is).ok()?.remove();
        page.touched = true;
        let is_last = at + 1 == self.pages.len();
        if !is_last && at > 0 && self.pages[at].table.is_empty() {
            self.pages.remove(at);
        } else if !is_last || self.pages[at].table.capacity() > PAGE {
            self.pages[at].give_back(&id_of);
        }
        Some(entry)
    }

    /// Takes all entries of one page out, for who keeps in less memory what is not touched for long: one that is behind
    /// the last `keep` pages, at least half full, was not touched since it was looked at last, and whose stretch of time
    /// `is_wanted`. It looks at one page each time it is called. Ids without a time stay.
    pub fn take_cold(&mut self, keep: usize, is_wanted: impl FnOnce(Range<u64>) -> bool) -> Option<Vec<T>> {
        let end = self.pages.len().saturating_sub(keep.max(1));
        if !(1..end).contains(&self.hand) {
            // The first page has those without a time.
            self.hand = 1;
        }
        let at = self.hand;
        if at >= end {
            return None;
        }
        let behind = self.pages[at + 1].first;
        let page = &mut self.pages[at];
        if std::mem::take(&mut page.touched) || page.table.len() < PAGE / 2 || !is_wanted(page.first..behind)
        {
            self.hand += 1;
            return None;
        }
        Some(self.pages.remove(at)?.table.into_iter().collect())
    }

    /// The number of the page that has the ids of a time; the youngest and the oldest are what is asked for.
    #[inline]
    fn page_of(&self, time: u64) -> usize {
        let last = self.pages.len().saturating_sub(1);
        if last == 0 || self.pages[last].first <= time {
            return last;
        }
        if time < self.pages[1].first {
            return 0;
        }
        if last > 1 && time < self.pages[2].first {
            return 1;
        }
        if self.pages[last - 1].first <= time {
            return last - 1;
        }
        self.pages.partition_point(|page| page.first <= time) - 1
    }

    /// Sees to it that the page of a time can take one more; gives its number, which may be another one then.
    #[inline]
    fn make_room(&mut self, at: usize, time: u64, id_of: &impl Fn(&T) -> u128) -> usize {
        if at + 1 >= self.pages.len() {
            self.taken += 1;
            if self.taken <= TURN && !self.pages.is_empty() {
                return at;
            }
            return self.turn_page(time, id_of);
        }
        self.spread(at, time, id_of)
    }

    /// Begins a new last page, where that is possible; gives the number of the page that takes an id of this time.
    #[cold]
    fn turn_page(&mut self, time: u64, id_of: &impl Fn(&T) -> u128) -> usize {
        let Some(last) = self.pages.back_mut() else {
            self.pages.push_back(Page { first: 0, table: HashTable::new(), touched: true });
            return 0;
        };
        if last.table.is_empty() {
            // As good as new: places that were used once would have to be put in order again.
            last.table = HashTable::with_capacity(PAGE);
            self.taken = 1;
        } else if time > self.newest {
            last.give_back(id_of);
            // It will be full soon, as the one before was.
            self.pages.push_back(Page { first: time, table: HashTable::with_capacity(PAGE), touched: true });
            self.taken = 1;
        } else {
            return self.spread(self.pages.len() - 1, time, id_of);
        }
        self.pages.len() - 1
    }

    /// Splits a page that is too large by now; gives the number of the one that takes an id of this time.
    #[inline]
    fn spread(&mut self, at: usize, time: u64, id_of: &impl Fn(&T) -> u128) -> usize {
        let table = &self.pages[at].table;
        if table.len() < 2 * PAGE || table.len() < table.capacity() {
            return at;
        }
        self.split(at, id_of);
        self.page_of(time)
    }

    /// Makes two pages of one that has got too many ids out of turn; it stays if all are of one time.
    #[cold]
    fn split(&mut self, at: usize, id_of: &impl Fn(&T) -> u128) {
        let table = &mut self.pages[at].table;
        let mut times: Vec<u64> = table.iter().map(|entry| time_of(id_of(entry))).collect();
        let half = times.len() / 2;
        let (earlier, &mut median, later) = times.select_nth_unstable(half);
        // The later half begins at the median, or behind it if nothing is before.
        let first = match earlier.iter().any(|time| *time < median) {
            true => Some(median),
            false => later.iter().copied().filter(|time| *time > median).min(),
        };
        let Some(first) = first else { return };
        let count = times.iter().filter(|time| **time >= first).count();
        let mut behind = HashTable::with_capacity(count);
        let rehash = |entry: &T| hash(id_of(entry));
        for entry in table.extract_if(|entry| time_of(id_of(entry)) >= first) {
            behind.insert_unique(rehash(&entry), entry, rehash);
        }
        table.shrink_to_fit(rehash);
        self.pages.insert(at + 1, Page { first, table: behind, touched: true });
    }
}

impl<T> Page<T> {
    /// Gives memory back that was needed once, in steps that are worth it.
    #[inline]
    fn give_back(&mut self, id_of: &impl Fn(&T) -> u128) {
        let (len, capacity) = (self.table.len(), self.table.capacity());
        if capacity > 64 && len < capacity / 8 {
            self.table.shrink_to(len * 2, |entry| hash(id_of(entry)));
        }
    }
}

/// An id's time, as finely as it has it: what a UUIDv7 begins with. 0 for any other.
#[inline]
fn time_of(id: u128) -> u64 {
    let is_v7 = id >> 76 & 0xf == 7;
    if is_v7 { (id >> 64) as u64 } else { 0 }
}

/// Keys are made by the broker, so nobody chooses them to collide.
#[inline]
fn hash(id: u128) -> u64 {
    FixedState::default().hash_one(id)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use super::*;

    pub(crate) fn v7(time: u64, low: u64) -> u128 {
        // The version stands in the four bits above the last twelve of the time.
        let time = (time >> 12) << 16 | 0x7000 | (time & 0xfff);
        u128::from(time) << 64 | 1 << 63 | u128::from(low)
    }

    fn own(entry: &(u128, u64)) -> u128 {
        entry.0
    }

    impl IdTable<(u128, u64)> {
        fn put(&mut self, id: u128, value: u64) -> Option<(u128, u64)> {
            self.insert(id, (id, value), own)
        }

        fn take(&mut self, id: u128) -> Option<(u128, u64)> {
            self.remove(id, |entry| entry.0 == id, own)
        }

        fn len(&self) -> usize {
            self.pages.iter().map(|page| page.table.len()).sum()
        }

        fn check(&self) {
            let firsts: Vec<u64> = self.pages.iter().map(|page| page.first).collect();
            assert!(firsts.is_sorted_by(|a, b| a < b), "{firsts:?}");
            assert!(firsts.first().is_none_or(|first| *first == 0));
            for (nth, page) in self.pages.iter().enumerate() {
                let end = firsts.get(nth + 1).copied().unwrap_or(u64::MAX);
                assert!(page.table.iter().all(|e| (page.first..end).contains(&time_of(e.0))));
                assert!(nth == 0 || nth + 1 == firsts.len() || !page.table.is_empty(), "an empty page stays");
            }
        }
    }

    /// A generator that needs no crate: xorshift64.
    pub(crate) fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Like a hash map, whatever comes in whatever order: in order of time, out of it, many of one time, no time at all.
    #[test]
    fn finds_what_a_hash_map_finds() {
        for seed in 1..=12u64 {
            let (mut state, mut table, mut model) = (seed, IdTable::default(), HashMap::new());
            let (mut clock, mut ids) = (1 << 40, Vec::new());
            for step in 0..40_000u64 {
                let r = random(&mut state);
                // Each seed leans another way: growing, level, shrinking; bursts of one time; a clock that steps back.
                let grows = if step < 20_000 { 10 + seed % 4 } else { 7 - seed % 4 };
                match r % 16 {
                    n if n < grows => {
                        clock += [0, 1, 1000][(r >> 8) as usize % 3] * u64::from(r >> 16 & 7 < seed % 8);
                        let time = if r >> 24 & 63 == 0 { (r >> 32) % clock } else { clock };
                        let id = if r >> 20 & 15 == 0 { u128::from(r) } else { v7(time, r >> 2) };
                        let id = if r >> 28 & 15 == 0 { ids.last().copied().unwrap_or(id) } else { id };
                        assert_eq!(table.put(id, step), model.insert(id, step).map(|old| (id, old)));
                        ids.push(id);
                    }
                    15 if r >> 30 & 0xfff == 0 => clock -= 1 << 20,
                    _ if !ids.is_empty() => {
                        // The oldest, as a rule.
                        let at = if r >> 10 & 3 == 0 { (r >> 32) as usize % ids.len() } else { 0 };
                        let id = if at == 0 { ids.remove(0) } else { ids.swap_remove(at) };
                        assert_eq!(table.take(id), model.remove(&id).map(|value| (id, value)));
                    }
                    _ => {}
                }
                if step % 2_000 == 0 {
                    table.check();
                    for id in ids.iter().copied().chain([u128::from(r), v7(clock, r)]) {
                        assert_eq!(table.find(id, own).map(|e| e.1), model.get(&id).copied());
                    }
                }
            }
            table.check();
            assert_eq!(table.len(), model.len());
            for (id, value) in model {
                table.find_mut(id, own).expect("it is there").1 += 1;
                assert_eq!(table.take(id), Some((id, value + 1)));
            }
            assert_eq!(table.len(), 0);
            table.check();
        }
    }

    #[test]
    fn stretches_of_time_that_are_over_take_no_memory() {
        let mut table = IdTable::default();
        let ids: Vec<u128> = (0..100 * TURN as u64).map(|n| v7(n, n)).collect();
        for id in &ids {
            table.put(*id, 0);
        }
        assert_eq!(table.pages.len(), 100);
        for id in &ids[..99 * TURN] {
            table.take(*id);
        }
        assert_eq!(table.pages.len(), 2, "the first, which is empty, and the last");
        assert!(table.pages[0].table.capacity() <= 64);
        table.check();
    }

    /// Submits that come in one read have one time, down to the microsecond.
    #[test]
    fn bursts_do_not_double_a_page() {
        let mut table = IdTable::default();
        for n in 0..100 * PAGE as u64 {
            table.put(v7(n / 75, n), n);
            // One in a hundred is a little late.
            let late = if n % 100 == 0 { (n / 75).saturating_sub(1) } else { n / 75 };
            table.put(v7(late, n | 1 << 40), n);
        }
        let most = table.pages.iter().map(|page| page.table.capacity()).max();
        assert_eq!(most, Some(PAGE));
        let places: usize = table.pages.iter().map(|page| page.table.capacity()).sum();
        assert!(places * 4 < table.len() * 5, "{places} for {}", table.len());
        table.check();
    }

    /// Of each page one entry stays, and all others go while it is the last: nothing would tidy it up later.
    #[test]
    fn a_page_with_little_left_takes_little_memory() {
        let mut table = IdTable::default();
        for n in 0..100 * TURN as u64 {
            table.put(v7(n, n), n);
            if n % TURN as u64 != 0 {
                table.take(v7(n, n));
            }
        }
        assert_eq!((table.len(), table.pages.len()), (100, 100));
        let places: usize = table.pages.iter().map(|page| page.table.capacity()).sum();
        assert!(places < 99 * 64 + 2 * PAGE, "{places}");
        table.check();
    }

    #[test]
    fn ids_that_come_out_of_turn_are_spread_over_pages() {
        // As after a restart: the log's oldest segment may hold the youngest.
        let mut table = IdTable::default();
        let ids: Vec<u128> = (0..50 * PAGE as u64).map(|n| v7(1_000_000 - n, n)).collect();
        for id in &ids {
            table.put(*id, 0);
        }
        table.check();
        let most = table.pages.iter().map(|page| page.table.len()).max().unwrap();
        assert!(most <= 2 * PAGE && table.pages.len() >= 25, "{most} in one of {}", table.pages.len());
        assert!(ids.iter().all(|id| table.find(*id, own).is_some()));
    }

    #[test]
    fn ids_without_a_time_are_in_nobodys_way() {
        let mut table = IdTable::default();
        // As a queue's key in the log: a hash, later than any time that comes.
        let hashed = 0xffff_ffff_ffff_8fff_8000_0000_0000_0001;
        table.put(hashed, 0);
        for n in 0..10 * TURN as u64 {
            table.put(v7(n + 1, n), n);
        }
        assert_eq!((table.pages.len(), table.pages[0].table.len()), (11, TURN));
        assert!(table.find(hashed, own).is_some());
        table.check();
    }

    #[test]
    fn what_nobody_touches_is_taken_out_by_the_page() {
        let mut table = IdTable::default();
        let id = |nth: usize| v7(nth as u64 + 1, nth as u64);
        (0..10 * TURN).for_each(|nth| _ = table.put(id(nth), nth as u64));
        table.put(7, 0);
        let cold = |table: &mut IdTable<_>| (0..10).find_map(|_| table.take_cold(5, |_| true));
        assert_eq!(table.take_cold(9, |_| true), None);
        let (third, fourth) = (id(2 * TURN), id(3 * TURN));
        // Once all were looked at, whoever is touched has another round.
        for nth in [1, 2, 3, 4] {
            assert_eq!((table.hand.max(1), table.take_cold(5, |_| true)), (nth, None));
        }
        table.find_mut(third, own).expect("it is there").1 += 1;
        assert_eq!(table.take_cold(5, |times| times.contains(&0)), None, "it is not wanted");
        assert_eq!(table.take_cold(5, |_| true), None, "it was touched");
        let taken = table.take_cold(5, |times| times.contains(&time_of(fourth))).expect("it is cold");
        assert_eq!((taken.len(), taken.contains(&(fourth, 3 * TURN as u64))), (TURN, true));
        assert!(table.find(fourth, own).is_none() && table.find(third, own).is_some());
        while cold(&mut table).is_some() {}
        assert_eq!(table.len(), 6 * TURN + 1, "the first and the last five stay");
        table.check();
        // What comes back finds its place.
        (TURN..5 * TURN).for_each(|nth| assert_eq!(table.put(id(nth), 5), None));
        assert_eq!(table.len(), 10 * TURN + 1);
        table.check();
    }

    #[test]
    fn ids_of_one_time_share_a_page() {
        let mut table = IdTable::default();
        for n in 0..10 * PAGE as u64 {
            table.put(v7(5, n), n);
            table.put(u128::from(n), n);
        }
        table.check();
        assert_eq!(table.len(), 20 * PAGE);
        assert!((0..10 * PAGE as u64).all(|n| table.find(v7(5, n), own).is_some_and(|e| e.1 == n)));
        assert!((0..10 * PAGE as u64).all(|n| table.find(u128::from(n), own).is_some_and(|e| e.1 == n)));
    }
}
