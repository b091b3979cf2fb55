//! Which records are alive and where they stand: what cleaning must know, and nothing else.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;

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

/// A key with a living `Put`. 28 bytes: ten million tasks must fit in memory beside their queues.
struct Entry {
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

    fn key(&self) -> Key {
        self.key.iter().rev().fold(0, |key, part| key << 32 | Key::from(*part))
    }

    fn put(&self) -> Location {
        Location { segment: self.segment, offset: self.offset, bytes: self.bytes.get() >> 1 }
    }

    fn is_amended(&self) -> bool {
        self.bytes.get() & 1 == 1
    }
}

/// All living records and the segments that hold them.
#[derive(Default)]
pub(super) struct Index {
    entries: IdTable<Entry>,
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

    /// Ends a key; whether it lived.
    pub(super) fn forget(&mut self, key: Key) -> bool {
        let Some(entry) = self.entries.remove(key, |entry| entry.key() == key, Entry::key) else {
            return false;
        };
        self.bury(entry);
        true
    }

    /// Where the living records of a key stand: its `Put`, then its `Amend`s in order. Empty if it has none.
    pub(super) fn locations(&self, key: Key) -> impl Iterator<Item = Location> {
        self.entries.find(key, Entry::key).into_iter().flat_map(|entry| {
            let amends = entry.is_amended().then(|| &self.amends[&entry.key()]);
            std::iter::once(entry.put()).chain(amends.into_iter().flatten().copied())
        })
    }

    fn put(&mut self, key: Key, location: Location) -> bool {
        if let Some(before) = self.entries.insert(key, Entry::new(key, location), Entry::key) {
            self.bury(before);
        }
        self.count(location);
        true
    }

    fn amend(&mut self, key: Key, location: Location) -> bool {
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

    #[test]
    fn an_entry_stays_small() {
        assert_eq!((size_of::<Entry>(), size_of::<Option<Entry>>()), (28, 28));
        let key = 0x0123_4567_89ab_cdef_1122_3344_5566_7788;
        let put = Location { segment: 3, offset: 64, bytes: 17 << 20 };
        let entry = Entry::new(key, put);
        assert_eq!((entry.key(), entry.put(), entry.is_amended()), (key, put, false));
    }
}
