//! Which records are alive and where they stand: what cleaning must know, and nothing else.

use std::collections::VecDeque;

use hashbrown::HashTable;

use super::record::{Key, RecordKind};
use super::segment::Sequence;

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

/// A key with a living `Put`. 40 bytes: ten million tasks must fit in memory beside their queues.
struct Entry {
    /// In two halves: a `u128` would align the entry to 16 and cost 8 bytes.
    key: [u64; 2],
    put: Location,
    /// Boxed and then listed, because almost no key has any, and an empty list of its own takes 24 bytes.
    amends: Option<Box<Amends>>,
}

struct Amends(Vec<Location>);

impl Entry {
    fn locations(&self) -> impl Iterator<Item = &Location> {
        std::iter::once(&self.put).chain(self.amends.iter().flat_map(|amends| &amends.0))
    }
}

/// All living records and the segments that hold them.
#[derive(Default)]
pub(super) struct Index {
    entries: HashTable<Entry>,
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
        let halves = halves(key);
        let Ok(found) = self.entries.find_entry(hash(halves), |entry| entry.key == halves) else {
            return false;
        };
        let (entry, _) = found.remove();
        self.bury(&entry);
        true
    }

    /// Where the living records of a key stand: its `Put`, then its `Amend`s in order. Empty if it has none.
    pub(super) fn locations(&self, key: Key) -> impl Iterator<Item = &Location> {
        let halves = halves(key);
        self.entries.find(hash(halves), |entry| entry.key == halves).into_iter().flat_map(Entry::locations)
    }

    fn put(&mut self, key: Key, location: Location) -> bool {
        let halves = halves(key);
        let entry = Entry { key: halves, put: location, amends: None };
        match self.entries.find_mut(hash(halves), |entry| entry.key == halves) {
            Some(place) => {
                let old = std::mem::replace(place, entry);
                self.bury(&old);
            }
            None => {
                self.entries.insert_unique(hash(halves), entry, |entry| hash(entry.key));
            }
        }
        self.count(location);
        true
    }

    fn amend(&mut self, key: Key, location: Location) -> bool {
        let halves = halves(key);
        let Some(entry) = self.entries.find_mut(hash(halves), |entry| entry.key == halves) else {
            return false;
        };
        entry.amends.get_or_insert_with(|| Box::new(Amends(Vec::new()))).0.push(location);
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

    fn bury(&mut self, entry: &Entry) {
        for location in entry.locations() {
            self.live_bytes -= u64::from(location.bytes);
            self.live_records -= 1;
            let segment = self.segment_mut(location.segment);
            segment.live_bytes -= u64::from(location.bytes);
            segment.live_records -= 1;
        }
    }

    fn segment_mut(&mut self, sequence: Sequence) -> &mut Segment {
        let front = self.segments.front().expect("a location is in some segment").sequence;
        &mut self.segments[(sequence - front) as usize]
    }
}

fn halves(key: Key) -> [u64; 2] {
    [key as u64, (key >> 64) as u64]
}

/// UUIDv7 keys share their upper bits for as long as a millisecond lasts, and any other key may be a small
/// number: both halves are mixed into all bits by one wide multiplication. Keys are made by the broker, so
/// nobody chooses them to collide.
fn hash([low, high]: [u64; 2]) -> u64 {
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
        assert_eq!(size_of::<Entry>(), 40);
    }

    #[test]
    fn keys_that_differ_little_hash_apart() {
        let mut seen = std::collections::HashSet::new();
        for bit in 0..128 {
            for base in [0, 1, u128::MAX, 0x0190_0000_0000_7000_8000_0000_0000_0000] {
                seen.insert(hash(halves(base ^ (1 << bit))));
            }
        }
        assert!(seen.len() >= 4 * 128 - 2, "{}", seen.len());
        let tags: std::collections::HashSet<u64> =
            (0..1000u128).map(|key| hash(halves(key)) & 0xFFFF).collect();
        assert!(tags.len() > 950, "{}", tags.len());
    }
}
