//! Which records are alive and where they stand: what cleaning must know, and nothing else.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::ops::Range;

use super::packed::PackedEntries;
use super::record::{Key, RecordKind};
use super::segment::Sequence;
use crate::ids::IdTable;

/// Where a record stands: its header's first byte, and its bytes with the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub segment: Sequence,
    pub offset: u32,
    pub bytes: u32,
}

/// One segment as cleaning sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub sequence: Sequence,
    /// Up to the end of the last batch.
    pub used_bytes: u64,
    pub file_bytes: u64,
    pub live_bytes: u64,
    pub live_records: u64,
}

/// A key with a living `Put`. 28 bytes, and half of that once it is packed: ten million tasks must fit in memory beside
/// their queues.
#[derive(Debug)]
pub(super) struct Entry {
    /// In four parts: a `u128` would align the entry to 16 and cost 4 bytes.
    key: [u32; 4],
    segment: Sequence,
    offset: u32,
    /// Its bytes, doubled, and one more if the key has amendments.
    bytes: NonZeroU32,
}

impl Entry {
    fn new(key: Key, put: Location) -> Entry {
        let bytes = NonZeroU32::new(put.bytes << 1).expect("a record has a header");
        Entry { key: parts(key), segment: put.segment, offset: put.offset, bytes }
    }

    pub(super) fn key(&self) -> Key {
        self.key.iter().rev().fold(0, |key, part| key << 32 | Key::from(*part))
    }

    fn put(&self) -> Location {
        Location { segment: self.segment, offset: self.offset, bytes: self.bytes.get() >> 1 }
    }

    fn is_amended(&self) -> bool {
        self.bytes.get() & 1 == 1
    }

    /// How many numbers an entry is.
    pub(super) const NUMBERS: usize = 5;

    /// All there is of it, the key's halves first.
    pub(super) fn numbers(&self) -> [u64; Entry::NUMBERS] {
        let key = self.key();
        let [segment, offset, bytes] = [self.segment, self.offset, self.bytes.get()].map(u64::from);
        [(key >> 64) as u64, key as u64, segment, offset, bytes]
    }

    /// The key, by its halves.
    pub(super) fn key_of([high, low]: [u64; 2]) -> Key {
        Key::from(high) << 64 | Key::from(low)
    }

    /// The entry that consists of these numbers.
    pub(super) fn from_numbers([high, low, segment, offset, bytes]: [u64; Entry::NUMBERS]) -> Entry {
        Entry {
            key: parts(Entry::key_of([high, low])),
            segment: segment as Sequence,
            offset: offset as u32,
            bytes: NonZeroU32::new(bytes as u32).expect("a record has a header"),
        }
    }
}

/// So many pages of the table stay as they are: what is young changes, and the table is quicker. Some 25 MiB.
const TABLE_PAGES: usize = 512;

/// After so many records it is looked whether a page has been left alone: three times a page, at least.
const LOOK_AFTER: u32 = 512;

/// A page of the table is packed if no more packed pages than these must be made anew for it.
const REMADE_MAX: usize = 4;

/// All living records and the segments that hold them.
#[derive(Default)]
pub(super) struct Index {
    entries: IdTable<Entry>,
    /// Those that were left alone for long; each entry is here or there.
    packed: PackedEntries,
    /// Records until it is looked again for such.
    until_look: u32,
    /// The amendments, in order, of the few entries that have any.
    amends: HashMap<Key, Vec<Location>>,
    /// Without gaps: a segment is found by its distance from the front.
    segments: VecDeque<Segment>,
    live_bytes: u64,
    live_records: u64,
}

impl Index {
    /// A new newest segment, without records yet.
    pub(super) fn begin_segment(&mut self, sequence: Sequence, used_bytes: u64, file_bytes: u64) {
        self.segments.push_back(Segment { sequence, used_bytes, file_bytes, live_bytes: 0, live_records: 0 });
    }

    /// Drops the oldest segment, which has no living record.
    pub(super) fn end_segment(&mut self) {
        let segment = self.segments.pop_front();
        debug_assert!(segment.is_some_and(|segment| segment.live_records == 0));
    }

    /// All segments, oldest first.
    pub(super) fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// The newest segment.
    pub(super) fn newest_mut(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub(super) fn live_records(&self) -> u64 {
        self.live_records
    }

    /// Takes note of a record; the return value says whether it lives, or, for a `Remove`, whether it ended
    /// anything.
    pub(super) fn apply(&mut self, kind: RecordKind, key: Key, location: Location) -> bool {
        match kind {
            RecordKind::Put => self.put(key, location),
            RecordKind::Amend => self.amend(key, location),
            RecordKind::Remove => self.forget(key),
        }
    }

    /// The next keys that are asked for, [`TOUCHED_TOGETHER`] at a time: many of them were left alone for long.
    pub(super) fn touch(&self, keys: impl Iterator<Item = Key>) {
        self.entries.touch(keys, Entry::key);
    }

    /// Ends a key; whether it lived.
    pub(super) fn forget(&mut self, key: Key) -> bool {
        let entry = self.entries.remove(key, |entry| entry.key() == key, Entry::key);
        let Some(entry) = entry.or_else(|| self.packed.take(key)) else { return false };
        self.bury(entry);
        true
    }

    /// Where the living records of a key stand: its `Put`, then its `Amend`s in order. Empty if it has none.
    pub(super) fn locations(&self, key: Key) -> impl Iterator<Item = Location> {
        let known = |entry: &Entry| (entry.put(), entry.is_amended());
        let found = self.entries.find(key, Entry::key).map(known);
        let found = found.or_else(|| self.packed.find(key).as_ref().map(known));
        found.into_iter().flat_map(move |(put, is_amended)| {
            let amends = is_amended.then(|| &self.amends[&key]);
            std::iter::once(put).chain(amends.into_iter().flatten().copied())
        })
    }

    fn put(&mut self, key: Key, location: Location) -> bool {
        let before = self.entries.insert(key, Entry::new(key, location), Entry::key);
        if let Some(before) = before.or_else(|| self.packed.take(key)) {
            self.bury(before);
        }
        self.count(location);
        match self.until_look.checked_sub(1) {
            Some(left) => self.until_look = left,
            None => self.pack(TABLE_PAGES),
        }
        true
    }

    /// Packs a page of entries, if there is one that was left alone.
    #[cold]
    fn pack(&mut self, keep: usize) {
        self.until_look = LOOK_AFTER;
        let is_dense = |times: Range<u64>| {
            let [first, end] = [times.start, times.end].map(|time| Entry::key_of([time, 0]));
            self.packed.touched_by(first, end) <= REMADE_MAX
        };
        if let Some(cold) = self.entries.take_cold(keep, is_dense) {
            self.packed.absorb(cold);
        }
    }

    fn amend(&mut self, key: Key, location: Location) -> bool {
        if let Some(entry) = self.packed.take(key) {
            self.entries.insert_new(key, entry, Entry::key);
        }
        let Some(entry) = self.entries.find_mut(key, Entry::key) else { return false };
        entry.bytes |= 1;
        self.amends.entry(key).or_default().push(location);
        self.count(location);
        true
    }

    fn count(&mut self, location: Location) {
        self.live_bytes += u64::from(location.bytes);
        self.live_records += 1;
        let segment = self.segment_mut(location.segment);
        segment.live_bytes += u64::from(location.bytes);
        segment.live_records += 1;
    }

    /// Its records live no longer.
    fn bury(&mut self, entry: Entry) {
        self.bury_one(entry.put());
        if entry.is_amended() {
            for location in self.amends.remove(&entry.key()).into_iter().flatten() {
                self.bury_one(location);
            }
        }
    }

    fn bury_one(&mut self, location: Location) {
        self.live_bytes -= u64::from(location.bytes);
        self.live_records -= 1;
        let segment = self.segment_mut(location.segment);
        segment.live_bytes -= u64::from(location.bytes);
        segment.live_records -= 1;
    }

    fn segment_mut(&mut self, sequence: Sequence) -> &mut Segment {
        let front = self.segments.front().expect("a location is in some segment").sequence;
        &mut self.segments[(sequence - front) as usize]
    }
}

fn parts(key: Key) -> [u32; 4] {
    [key as u32, (key >> 32) as u32, (key >> 64) as u32, (key >> 96) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::tests::{random, v7};

    /// Whatever is packed, an index says what a map of all records says.
    #[test]
    fn packing_is_not_seen() {
        for seed in 1..=6_u64 {
            let mut state = seed << 33 | 0x51ed;
            let mut draw = move || random(&mut state);
            let mut index = Index::default();
            (0..4).for_each(|sequence| index.begin_segment(sequence, 0, 0));
            let (mut model, mut keys): (HashMap<Key, Vec<Location>>, Vec<Key>) = Default::default();
            let (mut most_packed, mut offset) = (0, 0);
            for step in 0..60_000_u64 {
                let r = draw();
                offset += 64;
                let location =
                    Location { segment: (r >> 60 & 3) as u32, offset, bytes: 40 + (r >> 50 & 7) as u32 };
                // Old ones as a rule one after the other, as they are worked off; some from anywhere.
                let at = if r & 15 == 0 { r >> 8 } else { step / (2 + seed) };
                let old = keys.get(at as usize % keys.len().max(1)).copied();
                let (kind, key) = match (r >> 4 & 15, old) {
                    (0, Some(key)) => (RecordKind::Amend, key),
                    (1, Some(key)) => (RecordKind::Put, key),
                    (2..=4, Some(key)) => (RecordKind::Remove, key),
                    (5, _) => (RecordKind::Put, Key::from(r >> 40)),
                    _ => (RecordKind::Put, v7(step, r >> 1)),
                };
                let lived = index.apply(kind, key, location);
                match kind {
                    RecordKind::Put => {
                        keys.push(key);
                        model.insert(key, vec![location]);
                        assert!(lived);
                    }
                    RecordKind::Amend => {
                        let known = model.get_mut(&key);
                        assert_eq!(lived, known.is_some());
                        known.into_iter().for_each(|all| all.push(location));
                    }
                    RecordKind::Remove => assert_eq!(lived, model.remove(&key).is_some()),
                }
                if step % 100 == 0 {
                    index.pack(2);
                    most_packed = most_packed.max(index.packed.len());
                }
                if step % 10_000 == 0 {
                    for key in &keys {
                        let found: Vec<Location> = index.locations(*key).collect();
                        assert_eq!(found, model.get(key).cloned().unwrap_or_default());
                    }
                    let all = || model.values().flatten();
                    assert_eq!(index.live_records(), all().count() as u64);
                    assert_eq!(
                        index.live_bytes(),
                        all().map(|location| u64::from(location.bytes)).sum::<u64>()
                    );
                }
            }
            assert!(most_packed > 8_000, "{most_packed}");
            for key in model.keys() {
                assert!(index.forget(*key));
            }
            assert_eq!((index.packed.len(), index.live_records(), index.live_bytes()), (0, 0, 0));
            assert!(index.segments().iter().all(|segment| segment.live_records == 0));
        }
    }

    #[test]
    fn what_is_packed_takes_less_than_half() {
        let mut packed = PackedEntries::default();
        let entry = |nth: u64| {
            let random = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2;
            Entry::new(
                v7((1 << 48) | (nth * 2), random),
                Location { segment: 9, offset: nth as u32 * 320, bytes: 320 },
            )
        };
        packed.absorb((0..1600).map(entry).collect());
        assert_eq!(packed.len(), 1600);
        assert_eq!(packed.bytes(), 1600 * (2 + 8 + 3) + 8);
    }

    #[test]
    fn an_entry_stays_small() {
        assert_eq!((size_of::<Entry>(), size_of::<Option<Entry>>()), (28, 28));
        let key = 0x0123_4567_89ab_cdef_1122_3344_5566_7788;
        let put = Location { segment: 3, offset: 64, bytes: 17 << 20 };
        let entry = Entry::new(key, put);
        assert_eq!((entry.key(), entry.put(), entry.is_amended()), (key, put, false));
    }
}
