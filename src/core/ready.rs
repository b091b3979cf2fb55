//! Tasks that wait for a worker, in the order in which they are to go.

use std::collections::{BTreeMap, VecDeque};

use smallvec::SmallVec;

/// One recipient of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) task: u32,
    pub(super) recipient: u32,
    /// The task's place in order of acceptance.
    pub(super) seq: u64,
}

/// What the owner of the list says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This one.
    Take,
    /// Not for whoever asks now.
    Skip,
    /// It no longer waits: drop it.
    Stale,
}

/// Tasks by priority, and within a priority by acceptance. One that comes back takes its old place.
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    /// Highest priority first; nearly always one.
    levels: SmallVec<[Level; 1]>,
}

#[derive(Debug)]
struct Level {
    priority: u8,
    /// In order, because tasks are accepted in order: the fast way.
    fresh: VecDeque<Entry>,
    /// Those that came out of order: back from a worker, or due later than accepted.
    returned: BTreeMap<(u64, u32), u32>,
}

impl Level {
    fn push(&mut self, entry: Entry) {
        let in_order =
            self.fresh.back().is_none_or(|last| (last.seq, last.recipient) < (entry.seq, entry.recipient));
        if in_order {
            self.fresh.push_back(entry);
        } else {
            self.returned.insert((entry.seq, entry.recipient), entry.task);
        }
    }

    fn first(&mut self, judge: &mut impl FnMut(Entry) -> Verdict) -> Option<Entry> {
        // What is stale at the front is dropped for good, so that it is never looked at twice.
        while let Some(entry) = self.fresh.front() {
            if judge(*entry) != Verdict::Stale {
                break;
            }
            self.fresh.pop_front();
        }
        let mut stale = Vec::new();
        let returned = self.returned.iter().find_map(|((seq, recipient), task)| {
            let entry = Entry { task: *task, recipient: *recipient, seq: *seq };
            match judge(entry) {
                Verdict::Take => Some(entry),
                Verdict::Skip => None,
                Verdict::Stale => {
                    stale.push((*seq, *recipient));
                    None
                }
            }
        });
        for key in stale {
            self.returned.remove(&key);
        }
        let fresh = self.fresh.iter().copied().find(|entry| judge(*entry) == Verdict::Take);
        match (fresh, returned) {
            (Some(a), Some(b)) => Some(if a.seq < b.seq { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    fn remove(&mut self, entry: Entry) {
        let key = (entry.seq, entry.recipient);
        if self.returned.remove(&key).is_some() {
            return;
        }
        if let Ok(at) = self.fresh.binary_search_by_key(&key, |e| (e.seq, e.recipient)) {
            self.fresh.remove(at);
        }
    }
}

impl ReadyList {
    pub(super) fn push(&mut self, priority: u8, entry: Entry) {
        let at = self.levels.partition_point(|level| level.priority > priority);
        if self.levels.get(at).is_none_or(|level| level.priority != priority) {
            self.levels.insert(at, Level { priority, fresh: VecDeque::new(), returned: BTreeMap::new() });
        }
        self.levels[at].push(entry);
    }

    /// The first entry that is to be taken, with its priority. It stays in the list.
    pub(super) fn first(&mut self, mut judge: impl FnMut(Entry) -> Verdict) -> Option<(u8, Entry)> {
        self.levels.iter_mut().find_map(|level| {
            let priority = level.priority;
            level.first(&mut judge).map(|entry| (priority, entry))
        })
    }

    pub(super) fn remove(&mut self, priority: u8, entry: Entry) {
        if let Some(level) = self.levels.iter_mut().find(|level| level.priority == priority) {
            level.remove(entry);
        }
    }

    /// All entries, for moving them elsewhere; the list is empty afterwards.
    pub(super) fn take_all(&mut self) -> Vec<(u8, Entry)> {
        let mut all = Vec::new();
        for level in std::mem::take(&mut self.levels) {
            let priority = level.priority;
            let returned = level.returned.into_iter();
            let mut entries: Vec<Entry> = level.fresh.into();
            entries.extend(returned.map(|((seq, recipient), task)| Entry { task, recipient, seq }));
            entries.sort_unstable_by_key(|entry| (entry.seq, entry.recipient));
            all.extend(entries.into_iter().map(|entry| (priority, entry)));
        }
        all
    }

    /// The oldest of what still `waits`, over all priorities.
    pub(super) fn oldest<T: Ord>(&self, mut waits: impl FnMut(Entry) -> Option<T>) -> Option<T> {
        let mut oldest: Option<T> = None;
        for level in &self.levels {
            let fresh = level.fresh.iter().find_map(|entry| waits(*entry));
            let returned = level.returned.iter().find_map(|((seq, recipient), task)| {
                waits(Entry { task: *task, recipient: *recipient, seq: *seq })
            });
            oldest = [oldest, fresh, returned].into_iter().flatten().min();
        }
        oldest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.iter().all(|level| level.fresh.is_empty() && level.returned.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(seq: u64) -> Entry {
        Entry { task: seq as u32, recipient: 0, seq }
    }

    fn drain(list: &mut ReadyList) -> Vec<u64> {
        std::iter::from_fn(|| {
            let (priority, entry) = list.first(|_| Verdict::Take)?;
            list.remove(priority, entry);
            Some(entry.seq)
        })
        .collect()
    }

    #[test]
    fn goes_by_priority_then_by_acceptance_and_a_returned_one_takes_its_old_place() {
        let mut list = ReadyList::default();
        for (priority, seq) in [(4, 10), (4, 11), (4, 3), (9, 12), (0, 1), (4, 5)] {
            list.push(priority, entry(seq));
        }
        assert_eq!(drain(&mut list), [12, 3, 5, 10, 11, 1]);
        assert!(list.is_empty());
    }

    #[test]
    fn a_skipped_entry_waits_and_a_stale_one_goes() {
        let mut list = ReadyList::default();
        for seq in [4, 5, 6, 1] {
            list.push(4, entry(seq));
        }
        let verdict = |entry: Entry| match entry.seq {
            1 | 4 => Verdict::Skip,
            5 => Verdict::Stale,
            _ => Verdict::Take,
        };
        assert_eq!(list.first(verdict).map(|(_, entry)| entry.seq), Some(6));
        list.remove(4, entry(5));
        assert_eq!(drain(&mut list), [1, 4, 6]);
    }
}
