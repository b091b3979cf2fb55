//! Tasks that wait for a worker, in the order in which they are to go.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeBounds;

use slab::Slab;
use smallvec::SmallVec;
use taskyard_proto::Key;

use super::settings::Order;
use super::shard::HashMap;
use super::task::Task;

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

/// How priorities are weighed against each other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ranking<'a> {
    /// The higher priority, whatever its age.
    Strict,
    /// Each step of priority is worth so many microseconds of age.
    Aged { headstart_us: u64, tasks: &'a Slab<Task> },
}

/// The lower goes first.
pub(super) type Rank = (u64, u64);

/// The highest priority there is.
const PRIORITY_MAX: u8 = 9;

impl<'a> Ranking<'a> {
    pub(super) fn of(order: Order, tasks: &'a Slab<Task>) -> Ranking<'a> {
        match order {
            Order::Strict => Ranking::Strict,
            Order::Aged { headstart_ms } => {
                Ranking::Aged { headstart_us: headstart_ms.saturating_mul(1000), tasks }
            }
        }
    }

    pub(super) fn rank(&self, priority: u8, entry: Entry) -> Rank {
        let behind = u64::from(PRIORITY_MAX.saturating_sub(priority));
        match self {
            Ranking::Strict => (behind, entry.seq),
            Ranking::Aged { headstart_us, tasks } => {
                let accepted = tasks.get(entry.task as usize).map_or(0, |task| task.spec.accepted.0);
                (accepted.saturating_add(behind.saturating_mul(*headstart_us)), entry.seq)
            }
        }
    }
}

/// Tasks by priority, and within a priority by acceptance. One that comes back takes its old place.
#[derive(Debug, Default)]
pub(super) struct ReadyList {
    /// Highest priority first; nearly always one.
    levels: SmallVec<[Level; 1]>,
}

/// Entries by their place, to the task.
type Sorted = BTreeMap<(u64, u32), u32>;

#[derive(Debug)]
struct Level {
    priority: u8,
    /// In order, because tasks are accepted in order: the fast way.
    fresh: VecDeque<Entry>,
    /// Those that came out of order: back from a worker, or due later than accepted.
    returned: Sorted,
    /// Those with a fair key.
    fair: Option<Box<Fair>>,
}

/// Fair keys take turns, and those without a key are one key of their own.
#[derive(Debug, Default)]
struct Fair {
    /// Each key's place in the round; one that has nothing left loses it.
    places: HashMap<Key, u64>,
    /// By place, which are counted from 1: those without a key have place 0.
    turns: BTreeMap<u64, (Key, Sorted)>,
    next: u64,
    /// Whose turn it was last.
    last: u64,
}

impl Fair {
    fn list(&mut self, key: &Key) -> &mut Sorted {
        let place = match self.places.get(key) {
            Some(place) => *place,
            None => {
                self.next += 1;
                self.places.insert(key.clone(), self.next);
                self.next
            }
        };
        &mut self.turns.entry(place).or_insert_with(|| (key.clone(), Sorted::new())).1
    }

    /// The first entry to take of the keys with these places, in turn. There may be as many keys as tasks: no more of
    /// them are looked at than have nothing to give.
    fn first_of(
        &mut self,
        places: impl RangeBounds<u64>,
        judge: &mut impl FnMut(Entry) -> Verdict,
    ) -> Option<Entry> {
        let mut empty: SmallVec<[u64; 8]> = SmallVec::new();
        let found = self.turns.range_mut(places).find_map(|(place, (_, list))| {
            let found = first_sorted(list, judge);
            if list.is_empty() {
                empty.push(*place);
            }
            found
        });
        empty.into_iter().for_each(|place| self.drop_if_empty(place));
        found
    }

    fn drop_if_empty(&mut self, place: u64) {
        if let Some((key, list)) = self.turns.get(&place)
            && list.is_empty()
        {
            self.places.remove(key);
            self.turns.remove(&place);
        }
    }
}

/// The first entry of a sorted list that is to be taken; what is stale on the way to it is dropped for good.
fn first_sorted(list: &mut Sorted, judge: &mut impl FnMut(Entry) -> Verdict) -> Option<Entry> {
    let mut stale = Vec::new();
    let found = list.iter().find_map(|((seq, recipient), task)| {
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
        list.remove(&key);
    }
    found
}

fn entries(list: &Sorted) -> impl Iterator<Item = Entry> {
    list.iter().map(|((seq, recipient), task)| Entry { task: *task, recipient: *recipient, seq: *seq })
}

impl Level {
    fn push(&mut self, entry: Entry, fair: Option<&Key>) {
        if let Some(key) = fair {
            let list = self.fair.get_or_insert_default().list(key);
            list.insert((entry.seq, entry.recipient), entry.task);
            return;
        }
        let in_order =
            self.fresh.back().is_none_or(|last| (last.seq, last.recipient) < (entry.seq, entry.recipient));
        if in_order {
            self.fresh.push_back(entry);
        } else {
            self.returned.insert((entry.seq, entry.recipient), entry.task);
        }
    }

    fn first(&mut self, judge: &mut impl FnMut(Entry) -> Verdict) -> Option<Entry> {
        let Some(mut fair) = self.fair.take() else { return self.first_plain(judge) };
        let last = fair.last;
        let found = fair
            .first_of(last + 1.., judge)
            .or_else(|| self.first_plain(judge))
            .or_else(|| fair.first_of(..=last, judge));
        self.fair = Some(fair);
        found
    }

    fn first_plain(&mut self, judge: &mut impl FnMut(Entry) -> Verdict) -> Option<Entry> {
        // What is stale at the front is dropped for good, so that it is never looked at twice.
        while let Some(entry) = self.fresh.front() {
            if judge(*entry) != Verdict::Stale {
                break;
            }
            self.fresh.pop_front();
        }
        let returned = first_sorted(&mut self.returned, judge);
        let fresh = self.fresh.iter().copied().find(|entry| judge(*entry) == Verdict::Take);
        match (fresh, returned) {
            (Some(a), Some(b)) => Some(if a.seq < b.seq { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    /// Takes an entry out; `turn`: because it goes to a worker, so that the next key is next.
    fn remove(&mut self, entry: Entry, fair: Option<&Key>, turn: bool) {
        let key = (entry.seq, entry.recipient);
        if let Some(lists) = &mut self.fair {
            let place = fair.and_then(|fair| lists.places.get(fair).copied()).unwrap_or(0);
            if turn {
                lists.last = place;
            }
            if place > 0 {
                if let Some((_, list)) = lists.turns.get_mut(&place) {
                    list.remove(&key);
                }
                lists.drop_if_empty(place);
                if lists.turns.is_empty() {
                    self.fair = None;
                }
                return;
            }
        }
        if self.returned.remove(&key).is_some() {
            return;
        }
        if let Ok(at) = self.fresh.binary_search_by_key(&key, |e| (e.seq, e.recipient)) {
            self.fresh.remove(at);
        }
    }

    fn fair_lists(&self) -> impl Iterator<Item = &Sorted> {
        self.fair.iter().flat_map(|fair| fair.turns.values().map(|(_, list)| list))
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.returned.is_empty() && self.fair_lists().all(BTreeMap::is_empty)
    }
}

impl ReadyList {
    pub(super) fn push(&mut self, priority: u8, entry: Entry, fair: Option<&Key>) {
        let at = self.levels.partition_point(|level| level.priority > priority);
        if self.levels.get(at).is_none_or(|level| level.priority != priority) {
            let level = Level { priority, fresh: VecDeque::new(), returned: Sorted::new(), fair: None };
            self.levels.insert(at, level);
        }
        self.levels[at].push(entry, fair);
    }

    /// The first entry that is to be taken, with its priority and rank. It stays in the list.
    pub(super) fn first(
        &mut self,
        ranking: Ranking<'_>,
        mut judge: impl FnMut(Entry) -> Verdict,
    ) -> Option<(u8, Entry, Rank)> {
        let mut candidates = self.levels.iter_mut().filter_map(|level| {
            let priority = level.priority;
            level.first(&mut judge).map(|entry| (priority, entry, ranking.rank(priority, entry)))
        });
        match ranking {
            Ranking::Strict => candidates.next(),
            Ranking::Aged { .. } => candidates.min_by_key(|(_, _, rank)| *rank),
        }
    }

    /// Takes an entry out that no longer waits.
    pub(super) fn remove(&mut self, priority: u8, entry: Entry, fair: Option<&Key>) {
        if let Some(level) = self.levels.iter_mut().find(|level| level.priority == priority) {
            level.remove(entry, fair, false);
        }
    }

    /// Takes an entry out that goes to a worker: its fair key has had its turn.
    pub(super) fn take(&mut self, priority: u8, entry: Entry, fair: Option<&Key>) {
        if let Some(level) = self.levels.iter_mut().find(|level| level.priority == priority) {
            level.remove(entry, fair, true);
        }
    }

    /// All entries, for moving them elsewhere; the list is empty afterwards.
    pub(super) fn take_all(&mut self) -> Vec<(u8, Entry)> {
        let mut all = Vec::new();
        for level in std::mem::take(&mut self.levels) {
            let mut found: Vec<Entry> = level.fresh.iter().copied().collect();
            found.extend(entries(&level.returned));
            found.extend(level.fair_lists().flat_map(entries));
            found.sort_unstable_by_key(|entry| (entry.seq, entry.recipient));
            all.extend(found.into_iter().map(|entry| (level.priority, entry)));
        }
        all
    }

    /// The oldest of what still `waits`, over all priorities.
    pub(super) fn oldest<T: Ord>(&self, mut waits: impl FnMut(Entry) -> Option<T>) -> Option<T> {
        let mut oldest: Option<T> = None;
        for level in &self.levels {
            let fresh = level.fresh.iter().find_map(|entry| waits(*entry));
            let returned = entries(&level.returned).find_map(&mut waits);
            oldest = [oldest, fresh, returned].into_iter().flatten().min();
            for list in level.fair_lists() {
                oldest = [oldest, entries(list).find_map(&mut waits)].into_iter().flatten().min();
            }
        }
        oldest
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.iter().all(Level::is_empty)
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
            let (priority, entry, _) = list.first(Ranking::Strict, |_| Verdict::Take)?;
            list.take(priority, entry, None);
            Some(entry.seq)
        })
        .collect()
    }

    #[test]
    fn goes_by_priority_then_by_acceptance_and_a_returned_one_takes_its_old_place() {
        let mut list = ReadyList::default();
        for (priority, seq) in [(4, 10), (4, 11), (4, 3), (9, 12), (0, 1), (4, 5)] {
            list.push(priority, entry(seq), None);
        }
        assert_eq!(drain(&mut list), [12, 3, 5, 10, 11, 1]);
        assert!(list.is_empty());
    }

    #[test]
    fn a_skipped_entry_waits_and_a_stale_one_goes() {
        let mut list = ReadyList::default();
        for seq in [4, 5, 6, 1] {
            list.push(4, entry(seq), None);
        }
        let verdict = |entry: Entry| match entry.seq {
            1 | 4 => Verdict::Skip,
            5 => Verdict::Stale,
            _ => Verdict::Take,
        };
        assert_eq!(list.first(Ranking::Strict, verdict).map(|(_, entry, _)| entry.seq), Some(6));
        list.remove(4, entry(5), None);
        assert_eq!(drain(&mut list), [1, 4, 6]);
    }

    #[test]
    fn fair_keys_take_turns_and_those_without_are_one_of_them() {
        let mut list = ReadyList::default();
        let key = |text: &str| Key::parse(text).unwrap();
        let (a, b) = (key("a"), key("b"));
        let keyed = [(1, Some(&a)), (2, Some(&a)), (3, Some(&a)), (4, None), (5, None), (6, Some(&b))];
        let keys: Vec<Option<Key>> = keyed.iter().map(|(_, key)| key.cloned()).collect();
        for (seq, key) in keyed {
            list.push(4, entry(seq), key);
        }
        assert_eq!(list.oldest(|entry| Some(entry.seq)), Some(1));
        let mut order = Vec::new();
        while let Some((priority, entry, _)) = list.first(Ranking::Strict, |_| Verdict::Take) {
            order.push(entry.seq);
            list.take(priority, entry, keys[entry.seq as usize - 1].as_ref());
        }
        assert_eq!(order, [1, 6, 4, 2, 5, 3]);
        assert!(list.is_empty() && list.levels[0].fair.is_none(), "nothing is left of keys that come and go");
    }
}
