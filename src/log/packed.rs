//! Where records stand that nobody has touched for long, in less than half of the memory.
//!
//! Of ten million tasks that wait the log knows ten million places. Those of one time stand in a file one after the
//! other, so of each there is little to say beside its key. They are in pages, sorted by key, which do not change: what
//! ends is marked, and what is put anew goes to [`super::index::Index`]'s table, from where it comes back one day.

use std::collections::VecDeque;
use std::ops::Range;

use super::index::Entry;
use super::record::Key;
use crate::columns::Columns;

/// Entries of a page at most.
const PAGE: usize = 2048;

/// Entries that do not change, but may end.
#[derive(Default)]
pub(super) struct PackedEntries {
    /// In order of their keys; no two overlap, none is empty.
    pages: VecDeque<Page>,
}

struct Page {
    first: Key,
    last: Key,
    /// In order of their keys.
    rows: Columns<{ Entry::NUMBERS }>,
    /// A bit for each row that has ended.
    ended: Box<[u64]>,
    len: u32,
    live: u32,
}

impl Page {
    /// # Panics
    /// If there are none.
    fn new(sorted: &[Entry]) -> Page {
        let rows: Vec<_> = sorted.iter().map(Entry::numbers).collect();
        let [first, last] = [sorted.first(), sorted.last()].map(|end| end.expect("a page has entries").key());
        let len = rows.len() as u32;
        let ended = vec![0; rows.len().div_ceil(64)].into();
        Page { first, last, rows: Columns::new(&rows), ended, len, live: len }
    }

    fn key(&self, nth: u32) -> Key {
        Entry::key_of([0, 1].map(|column| self.rows.cell(nth as usize, column)))
    }

    fn has_ended(&self, nth: u32) -> bool {
        self.ended[nth as usize / 64] >> (nth % 64) & 1 == 1
    }

    fn find(&self, key: Key) -> Option<u32> {
        let (mut low, mut high) = (0, self.len);
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle).cmp(&key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return (!self.has_ended(middle)).then_some(middle),
            }
        }
        None
    }

    fn entry(&self, nth: u32) -> Entry {
        Entry::from_numbers(self.rows.row(nth as usize))
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        (0..self.len).filter(|nth| !self.has_ended(*nth)).map(|nth| self.entry(nth))
    }
}

impl PackedEntries {
    /// The entry of this key.
    pub(super) fn find(&self, key: Key) -> Option<Entry> {
        let page = &self.pages[self.page_of(key)?];
        page.find(key).map(|nth| page.entry(nth))
    }

    /// The same, which ends here.
    pub(super) fn take(&mut self, key: Key) -> Option<Entry> {
        let at = self.page_of(key)?;
        let page = &mut self.pages[at];
        let nth = page.find(key)?;
        let entry = page.entry(nth);
        page.ended[nth as usize / 64] |= 1 << (nth % 64);
        page.live -= 1;
        if page.live == 0 {
            self.pages.remove(at);
        } else if page.live * 2 < page.len && page.len >= 64 {
            let left: Vec<Entry> = page.entries().collect();
            *page = Page::new(&left);
        }
        Some(entry)
    }

    fn page_of(&self, key: Key) -> Option<usize> {
        // What is new, as nearly all is that is asked for.
        if self.pages.back().is_none_or(|page| page.last < key) {
            return None;
        }
        let at = self.pages.partition_point(|page| page.last < key);
        (self.pages[at].first <= key).then_some(at)
    }

    /// The pages that have keys between these, both included.
    fn between(&self, first: Key, last: Key) -> Range<usize> {
        let begin = self.pages.partition_point(|page| page.last < first);
        begin..self.pages.partition_point(|page| page.first <= last).max(begin)
    }

    /// How many pages would be made anew for entries between these keys.
    pub(super) fn touched_by(&self, first: Key, last: Key) -> usize {
        self.between(first, last).len()
    }

    /// Takes entries in, of which it has none.
    pub(super) fn absorb(&mut self, mut entries: Vec<Entry>) {
        entries.sort_unstable_by_key(Entry::key);
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let pages = self.between(first.key(), last.key());
        if !pages.is_empty() {
            entries
                .extend(self.pages.drain(pages.clone()).flat_map(|page| page.entries().collect::<Vec<_>>()));
            entries.sort_unstable_by_key(Entry::key);
        }
        let parts = entries.len().div_ceil(PAGE);
        for (nth, part) in entries.chunks(entries.len().div_ceil(parts)).enumerate() {
            self.pages.insert(pages.start + nth, Page::new(part));
        }
    }

    /// The bytes of what is kept of the entries.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.rows.bytes()).sum()
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pages.iter().map(|page| page.live as usize).sum()
    }
}
