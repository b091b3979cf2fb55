//! Tasks that wait for a worker, in the order in which they are to go.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, RangeBounds};

use smallvec::SmallVec;
use taskyard_proto::Key;

use super::settings::Order;
use super::shard::HashMap;
use super::task::Task;
use crate::slots::Slots;

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
    Aged { headstart_us: u64, tasks: &'a Slots<Task> },
}

/// The lower goes first.
pub(super) type Rank = (u64, u64);

/// So many of those that came back are looked at for the one that waits longest: to look is to hold up all others.
const OLDEST_OF: usize = 1024;

/// The highest priority there is.
const PRIORITY_MAX: u8 = 9;

impl<'a> Ranking<'a> {
    pub(super) fn of(order: Order, tasks: &'a Slots<Task>) -> Ranking<'a> {
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
                let accepted = tasks.get(entry.task).map_or(0, |task| task.spec.accepted.0);
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
    /// So many may still be taken before it is looked at again what comes up.
    ahead: usize,
}

/// Entries by their place, to the task.
type Sorted = BTreeMap<(u64, u32), u32>;

#[derive(Debug)]
struct Level {
    priority: u8,
    /// In order, because tasks are accepted in order: the fast way.
    fresh: Fresh,
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

/// Entries in order of acceptance. Taken from the front as a rule, and 8 bytes each: there may be ten million.
#[derive(Debug, Default)]
struct Fresh {
    runs: VecDeque<Run>,
    /// The one that was added last, also when it is gone.
    last: (u64, u32),
    len: usize,
    /// The memory of a short run that is over, for the next.
    spare: Vec<(u32, u32)>,
}

/// A stretch of entries of one recipient, of which none came much later than the first.
#[derive(Debug)]
struct Run {
    base: u64,
    recipient: u32,
    /// Tasks, and how much later than `base` they were accepted. One that was taken out has no task.
    rows: Vec<(u32, u32)>,
    /// All before are taken out.
    begin: usize,
}

/// Entries in a run: what is reserved at once, and given back at once.
const RUN_ROWS: usize = 1024;

/// A list that is empty now and then keeps this much, and no more.
const SPARE_ROWS: usize = 64;

/// In place of a task that was taken out.
const GONE: u32 = u32::MAX;

impl Run {
    fn entry(&self, (task, later): (u32, u32)) -> Entry {
        Entry { task, recipient: self.recipient, seq: self.base + u64::from(later) }
    }

    /// Passes over what is gone at the front.
    fn trim(&mut self) {
        let gone = self.rows[self.begin..].iter().take_while(|(task, _)| *task == GONE).count();
        self.begin += gone;
    }

    fn is_empty(&self) -> bool {
        self.begin == self.rows.len()
    }
}

impl Fresh {
    /// Adds an entry, if it comes behind all others.
    fn push(&mut self, entry: Entry) -> bool {
        if self.len > 0 && (entry.seq, entry.recipient) <= self.last {
            return false;
        }
        let fits = |run: &&mut Run| {
            run.recipient == entry.recipient
                && run.rows.len() < RUN_ROWS
                && run.base <= entry.seq
                && u32::try_from(entry.seq - run.base).is_ok()
        };
        let row = |base: u64| (entry.task, (entry.seq - base) as u32);
        match self.runs.back_mut().filter(fits) {
            Some(run) => run.rows.push(row(run.base)),
            None => {
                let (base, recipient) = (entry.seq, entry.recipient);
                let mut rows = std::mem::take(&mut self.spare);
                rows.push(row(base));
                self.runs.push_back(Run { base, recipient, rows, begin: 0 });
            }
        }
        self.last = (entry.seq, entry.recipient);
        self.len += 1;
        true
    }

    fn first(&self) -> Option<Entry> {
        let run = self.runs.front()?;
        run.rows.get(run.begin).map(|row| run.entry(*row))
    }

    fn remove(&mut self, entry: Entry) {
        let of = (entry.seq, entry.recipient);
        // Runs follow each other, and so do the bases of those of one recipient.
        let behind = self.runs.partition_point(|run| (run.base, run.recipient) <= of);
        let Some(nth) = behind.checked_sub(1) else { return };
        let run = &mut self.runs[nth];
        let Ok(later) = u32::try_from(entry.seq - run.base) else { return };
        let rows = &run.rows[run.begin..];
        // Nearly always the first.
        let found = match rows.first() {
            Some((_, first)) if *first == later => Ok(0),
            _ => rows.binary_search_by_key(&later, |(_, later)| *later),
        };
        let Ok(at) = found.map(|at| at + run.begin) else { return };
        if run.recipient != entry.recipient || run.rows[at].0 != entry.task {
            return;
        }
        run.rows[at].0 = GONE;
        self.len -= 1;
        run.trim();
        if run.is_empty() {
            let mut rows = self.runs.remove(nth).expect("it was just found").rows;
            if self.runs.is_empty() && rows.capacity() <= SPARE_ROWS {
                rows.clear();
                self.spare = rows;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = Entry> {
        self.runs.iter().flat_map(|run| {
            let there = run.rows[run.begin..].iter().filter(|(task, _)| *task != GONE);
            there.map(|row| run.entry(*row))
        })
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Level {
    fn push(&mut self, entry: Entry, fair: Option<&Key>) {
        if let Some(key) = fair {
            let list = self.fair.get_or_insert_default().list(key);
            list.insert((entry.seq, entry.recipient), entry.task);
            return;
        }
        if !self.fresh.push(entry) {
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
        while let Some(entry) = self.fresh.first() {
            if judge(entry) != Verdict::Stale {
                break;
            }
            self.fresh.remove(entry);
        }
        let returned = first_sorted(&mut self.returned, judge);
        let fresh = self.fresh.iter().find(|entry| judge(*entry) == Verdict::Take);
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
        self.fresh.remove(entry);
    }

    /// As [`ReadyList::upcoming`], of this priority.
    fn upcoming(&self, count: usize) -> Vec<Entry> {
        let (mut returned, mut fresh) = (entries(&self.returned).peekable(), self.fresh.iter().peekable());
        let plain = std::iter::from_fn(move || match (fresh.peek(), returned.peek()) {
            (Some(a), Some(b)) if a.seq < b.seq => fresh.next(),
            (Some(_), None) => fresh.next(),
            _ => returned.next(),
        });
        let Some(fair) = &self.fair else { return plain.take(count).collect() };
        let keyed = |places: (Bound<u64>, Bound<u64>)| {
            let lists = fair.turns.range(places).take(count);
            lists.map(|(_, (_, list))| Box::new(entries(list)) as Box<dyn Iterator<Item = Entry>>)
        };
        let mut lists: Vec<_> = keyed((Bound::Excluded(fair.last), Bound::Unbounded)).collect();
        lists.push(Box::new(plain));
        lists.extend(keyed((Bound::Unbounded, Bound::Included(fair.last))));
        let mut found = Vec::with_capacity(count);
        while found.len() < count && !lists.is_empty() {
            // One of each in its turn; who has nothing left drops out.
            lists.retain_mut(|list| list.next().map(|entry| found.push(entry)).is_some());
        }
        found.truncate(count);
        found
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
            let level = Level { priority, fresh: Fresh::default(), returned: Sorted::new(), fair: None };
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

    /// The first entries of the list, in the order in which they would be taken by somebody who may take all.
    pub(super) fn upcoming(&self, ranking: Ranking<'_>, count: usize) -> Vec<Entry> {
        let mut levels: SmallVec<[_; 1]> = self
            .levels
            .iter()
            .map(|level| (level.priority, level.upcoming(count).into_iter().peekable()))
            .collect();
        let next = || {
            let heads = levels.iter_mut().enumerate();
            let mut heads = heads.filter_map(|(nth, (priority, level))| {
                level.peek().map(|entry| (ranking.rank(*priority, *entry), nth))
            });
            let (_, nth) = match ranking {
                Ranking::Strict => heads.next(),
                Ranking::Aged { .. } => heads.min(),
            }?;
            levels[nth].1.next()
        };
        std::iter::from_fn(next).take(count).collect()
    }

    /// Counts that one was taken; whether what comes up was looked at lately.
    pub(super) fn step_ahead(&mut self) -> bool {
        self.ahead = self.ahead.saturating_sub(1);
        self.ahead > 0
    }

    /// It was looked at what comes up, which is enough for so many.
    pub(super) fn looked_ahead(&mut self, steps: usize) {
        self.ahead = steps;
    }

    /// All entries, for moving them elsewhere; the list is empty afterwards.
    pub(super) fn take_all(&mut self) -> Vec<(u8, Entry)> {
        let mut all = Vec::new();
        for level in std::mem::take(&mut self.levels) {
            let mut found: Vec<Entry> = level.fresh.iter().collect();
            found.extend(entries(&level.returned));
            found.extend(level.fair_lists().flat_map(entries));
            found.sort_unstable_by_key(|entry| (entry.seq, entry.recipient));
            all.extend(found.into_iter().map(|entry| (level.priority, entry)));
        }
        all
    }

    /// The oldest of what still `waits`, over all priorities. Entries that came in order wait the longer the earlier they
    /// stand; of those that came back the first [`OLDEST_OF`] are looked at, and of as many fair keys the first.
    pub(super) fn oldest<T: Ord>(&self, mut waits: impl FnMut(Entry) -> Option<T>) -> Option<T> {
        let mut oldest: Option<T> = None;
        for level in &self.levels {
            let fresh = level.fresh.iter().find_map(&mut waits);
            let returned = entries(&level.returned).filter_map(&mut waits).take(OLDEST_OF).min();
            oldest = [oldest, fresh, returned].into_iter().flatten().min();
            for list in level.fair_lists().take(OLDEST_OF) {
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

    /// The short list does what a sorted one does, whatever comes and goes.
    #[test]
    fn fresh_entries_keep_their_order_whatever_is_taken_out() {
        let (mut fresh, mut sorted) = (Fresh::default(), BTreeMap::new());
        let mut random = 7u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (random >> 33) % below
        };
        let mut seq = 1u64;
        for step in 0..200_000u32 {
            if draw(100) < 52 {
                seq += if draw(1000) == 0 { 5 << 32 } else { draw(3) };
                let entry = Entry { task: step, recipient: draw(50) as u32 / 49, seq };
                if fresh.push(entry) {
                    sorted.insert((seq, entry.recipient), step);
                } else {
                    assert!(
                        sorted.last_key_value().is_some_and(|(last, _)| *last >= (seq, entry.recipient))
                            || fresh.last >= (seq, entry.recipient)
                    );
                }
            } else if !sorted.is_empty() {
                let nth = if draw(3) > 0 { 0 } else { draw(sorted.len().min(3000) as u64) as usize };
                let ((seq, recipient), task) =
                    sorted.iter().nth(nth).map(|(key, task)| (*key, *task)).unwrap();
                sorted.remove(&(seq, recipient));
                fresh.remove(Entry { task, recipient, seq });
                fresh.remove(Entry { task, recipient, seq });
            }
            assert_eq!(
                fresh.first().map(|e| (e.seq, e.recipient)),
                sorted.first_key_value().map(|(k, _)| *k)
            );
            assert_eq!(fresh.is_empty(), sorted.is_empty());
            if step % 10_000 == 0 {
                let all: Vec<_> = fresh.iter().map(|e| ((e.seq, e.recipient), e.task)).collect();
                assert_eq!(all, sorted.iter().map(|(key, task)| (*key, *task)).collect::<Vec<_>>());
            }
        }
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

    #[test]
    fn of_those_that_came_back_a_later_one_may_wait_longest() {
        let mut list = ReadyList::default();
        for seq in [10, 3, 5] {
            list.push(4, entry(seq), None);
        }
        let since = |entry: Entry| match entry.seq {
            3 => Some(50),
            5 => Some(20),
            _ => Some(100),
        };
        assert_eq!(list.oldest(since), Some(20));
        assert_eq!(list.oldest(|entry| since(entry).filter(|_| entry.seq != 5)), Some(50));
    }

    #[test]
    fn what_comes_up_is_what_will_be_taken_in_that_order() {
        use rand::rngs::SmallRng;
        use rand::{RngExt as _, SeedableRng as _};
        let keys: Vec<Key> = (0..40).map(|n| Key::parse(&format!("k{n}")).unwrap()).collect();
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut list, mut tasks, mut of) = (ReadyList::default(), Slots::default(), HashMap::default());
            let (keys, priorities) = (&keys[..rng.random_range(0..=40)], rng.random_range(1..4));
            let ranking = |tasks| match seed % 2 {
                0 => Ranking::Strict,
                _ => Ranking::Aged { headstart_us: 20, tasks },
            };
            for _ in 0..rng.random_range(0..200) {
                // Some take an old place.
                let seq = rng.random_range(0..1000);
                let key = keys.get(rng.random_range(0..2 * keys.len().max(1)));
                let priority = rng.random_range(0..priorities);
                let task = tasks.insert(crate::core::task::tests::accepted_at(seq));
                if !of.contains_key(&seq) {
                    of.insert(seq, (priority, key));
                    list.push(priority, Entry { task, recipient: 0, seq }, key);
                }
            }
            let take = |list: &mut ReadyList| {
                let (priority, entry, _) = list.first(ranking(&tasks), |_| Verdict::Take)?;
                list.take(priority, entry, of[&entry.seq].1);
                Some(entry)
            };
            // The round of the fair keys stands anywhere.
            for _ in 0..rng.random_range(0..20) {
                take(&mut list);
            }
            let count = rng.random_range(0..100);
            let coming = list.upcoming(ranking(&tasks), count);
            let taken: Vec<Entry> = std::iter::from_fn(|| take(&mut list)).take(count).collect();
            assert_eq!(coming, taken, "seed {seed}");
        }
    }
}
