//! Which records are alive and where they stand: what cleaning must know, and nothing else.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;

use super::record::{Key, RecordKind};
use super::segment::Sequence;
use crate::slots::{SlotIndex, Slots};

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
    entries: Slots<Entry>,
    by_key: SlotIndex,
    /// The amendments, in order, of the few entries that have any.
    amends: HashMap<u32, Vec<Location>>,
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
        let entries = &self.entries;
        let found =
            self.by_key.remove(hash(key), |at| entries[at].key() == key, |at| hash(entries[at].key()));
        let Some(at) = found else { return false };
        self.bury(at);
        self.entries.remove(at);
        true
    }

    /// Where the living records of a key stand: its `Put`, then its `Amend`s in order. Empty if it has none.
    pub(super) fn locations(&self, key: Key) -> impl Iterator<Item = Location> {
        self.find(key).into_iter().flat_map(|at| self.locations_of(at))
    }

    fn find(&self, key: Key) -> Option<u32> {
        self.by_key.find(hash(key), |at| self.entries[at].key() == key)
    }

    fn locations_of(&self, at: u32) -> impl Iterator<Item = Location> {
        let entry = &self.entries[at];
        let amends = entry.is_amended().then(|| &self.amends[&at]);
        std::iter::once(entry.put()).chain(amends.into_iter().flatten().copied())
    }

    fn put(&mut self, key: Key, location: Location) -> bool {
        let entry = Entry::new(key, location);
        match self.find(key) {
            Some(at) => {
                self.bury(at);
                self.entries[at] = entry;
            }
            None => {
                let at = self.entries.insert(entry);
                let entries = &self.entries;
                self.by_key.insert(hash(key), at, |at| hash(entries[at].key()));
            }
        }
        self.count(location);
        true
    }

    fn amend(&mut self, key: Key, location: Location) -> bool {
        let Some(at) = self.find(key) else { return false };
        let entry = &mut self.entries[at];
        entry.bytes |= 1;
        self.amends.entry(at).or_default().push(location);
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
    fn bury(&mut self, at: u32) {
        self.bury_one(self.entries[at].put());
        if self.entries[at].is_amended() {
            for location in self.amends.remove(&at).into_iter().flatten() {
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

/// UUIDv7 keys share their upper bits for as long as a millisecond lasts, and any other key may be a small
/// number: both halves are mixed into all bits by one wide multiplication. Keys are made by the broker, so
/// nobody chooses them to collide.
fn hash(key: Key) -> u64 {
    let (low, high) = (key as u64, (key >> 64) as u64);
    let wide = u128::from(low ^ 0x9E37_79B9_7F4A_7C15)
        .wrapping_mul(u128::from(high ^ 0xD6E8_FEB8_6659_FD93) | 1)
        .wrapping_add(u128::from(low.rotate_left(32)).wrapping_mul(0xA076_1D64_78BD_642F));
    let folded = (wide as u64) ^ ((wide >> 64) as u64);
    folded.wrapping_mul(0xE703_7ED1_A0B4_28DB) ^ (folded >> 32)
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

    #[test]
    fn keys_that_differ_little_hash_apart() {
        let mut seen = std::collections::HashSet::new();
        for bit in 0..128 {
            for base in [0, 1, u128::MAX, 0x0190_0000_0000_7000_8000_0000_0000_0000] {
                seen.insert(hash(base ^ (1 << bit)));
            }
        }
        assert!(seen.len() >= 4 * 128 - 2, "{}", seen.len());
        let tags: std::collections::HashSet<u64> = (0..1000u128).map(|key| hash(key) & 0xFFFF).collect();
        assert!(tags.len() > 950, "{}", tags.len());
    }
}
