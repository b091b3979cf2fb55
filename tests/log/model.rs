//! What a log promises, told without knowing how it works; and a workload that keeps the books.

use std::collections::{BTreeMap, BTreeSet};

use taskyard::log::{
    Key, Log, LogError, Maintenance, Options, RecordBatch, RecordKind, Recovery, SEGMENT_BYTES_MIN,
};

use crate::disk::{Dice, SimDisk};

/// The smallest segments, so that a short script fills many.
pub(crate) fn options() -> Options {
    let mut options = Options::new(0xA5A5, 42);
    options.segment_bytes = SEGMENT_BYTES_MIN;
    options
}

/// A record as the caller knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    pub(crate) kind: u8,
    pub(crate) key: Key,
    pub(crate) body: Vec<u8>,
}

impl Item {
    pub(crate) fn put(key: Key, body: &[u8]) -> Self {
        Self { kind: RecordKind::Put as u8, key, body: body.to_vec() }
    }

    pub(crate) fn amend(key: Key, body: &[u8]) -> Self {
        Self { kind: RecordKind::Amend as u8, key, body: body.to_vec() }
    }

    pub(crate) fn remove(key: Key) -> Self {
        Self { kind: RecordKind::Remove as u8, key, body: Vec::new() }
    }
}

pub(crate) fn batch(items: &[Item]) -> RecordBatch {
    let mut batch = RecordBatch::new();
    for item in items {
        let kind = match item.kind {
            1 => RecordKind::Put,
            2 => RecordKind::Amend,
            _ => RecordKind::Remove,
        };
        batch.push(kind, item.key, &item.body);
    }
    batch
}

/// All that is known of each key: the body of its `Put` and those of its `Amend`s.
pub(crate) type State = BTreeMap<Key, Vec<Vec<u8>>>;

pub(crate) fn fold(state: &mut State, items: &[Item]) {
    for item in items {
        match item.kind {
            1 => {
                state.insert(item.key, vec![item.body.clone()]);
            }
            2 => {
                if let Some(bodies) = state.get_mut(&item.key) {
                    bodies.push(item.body.clone());
                }
            }
            _ => {
                state.remove(&item.key);
            }
        }
    }
}

/// What a log showed when it was opened.
pub(crate) struct Opened {
    pub(crate) log: Log<SimDisk>,
    pub(crate) recovery: Recovery,
    pub(crate) items: Vec<Item>,
}

impl Opened {
    pub(crate) fn state(&self) -> State {
        let mut state = State::new();
        fold(&mut state, &self.items);
        state
    }
}

pub(crate) fn open(disk: &SimDisk) -> Result<Opened, LogError> {
    let mut items = Vec::new();
    let mut last_lsn = 0;
    let (log, recovery) = Log::open(disk.clone(), options(), &mut |record| {
        assert!(record.lsn.0 > last_lsn, "records are visited in order");
        last_lsn = record.lsn.0;
        items.push(Item { kind: record.kind as u8, key: record.key, body: record.body.to_vec() });
    })?;
    Ok(Opened { log, recovery, items })
}

/// One thing that a caller does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append(Vec<Item>),
    Sync,
    Forget(Key),
    Mark,
    /// Maintenance until there is nothing to do, or so many steps.
    Maintain(u32),
    Reopen,
}

/// What was asked of a log and what it answered.
#[derive(Default)]
pub(crate) struct Books {
    /// Batches that were appended, in order.
    appended: Vec<Vec<Item>>,
    /// So many of them were confirmed as durable.
    synced: usize,
    /// Batches that were refused, and how many were appended before each. Until the next sync, a crash may show one
    /// of them all the same: its producer was told nothing good.
    refused: Vec<(usize, Vec<Item>)>,
    /// Keys that were forgotten, and how many batches were appended before that.
    forgotten: Vec<(usize, Key)>,
    pub(crate) errors: Vec<LogError>,
}

impl Books {
    /// Does the steps on a new log on `disk`; goes on after an error as long as the log does.
    pub(crate) fn run(disk: &SimDisk, steps: &[Step]) -> Self {
        let mut books = Self::default();
        let Some(mut log) = books.open(disk) else {
            return books;
        };
        for step in steps {
            if let Step::Reopen = step {
                // A clean stop syncs.
                match log.close() {
                    Ok(()) => books.synced = books.appended.len(),
                    Err(error) => books.errors.push(error),
                }
                match books.open(disk) {
                    Some(again) => log = again,
                    None => return books,
                }
                continue;
            }
            if let Err(error) = books.step(&mut log, step) {
                let is_end = matches!(error, LogError::Poisoned { .. });
                books.errors.push(error);
                if is_end {
                    return books;
                }
            }
        }
        books
    }

    fn open(&mut self, disk: &SimDisk) -> Option<Log<SimDisk>> {
        // A start that failed may be tried again, once.
        for _ in 0..2 {
            match open(disk) {
                Ok(opened) => {
                    self.judge(&opened);
                    // What was visited is durable.
                    let visible = opened.state();
                    self.settle_on(&visible);
                    let mut log = opened.log;
                    for (_, key) in &self.forgotten {
                        // The caller knows no such key any more; unless it was used again since.
                        if self.is_forgotten(*key) {
                            log.forget(*key);
                        }
                    }
                    return Some(log);
                }
                Err(error) => self.errors.push(error),
            }
        }
        None
    }

    pub(crate) fn step(&mut self, log: &mut Log<SimDisk>, step: &Step) -> Result<(), LogError> {
        match step {
            Step::Append(items) => {
                if let Err(error) = log.append(&batch(items)) {
                    self.refused.push((self.appended.len(), items.clone()));
                    return Err(error);
                }
                self.appended.push(items.clone());
            }
            Step::Sync => {
                log.sync()?;
                self.synced = self.appended.len();
            }
            Step::Forget(key) => {
                log.forget(*key);
                self.forgotten.push((self.appended.len(), *key));
            }
            Step::Mark => log.mark()?,
            Step::Maintain(times) => {
                for _ in 0..*times {
                    if log.maintain()? != Maintenance::More {
                        break;
                    }
                }
            }
            Step::Reopen => unreachable!("the log is not ours to drop"),
        }
        Ok(())
    }

    /// From here on, everything appended counts as confirmed.
    pub(crate) fn nothing_may_be_lost(&mut self) {
        self.synced = self.appended.len();
    }

    fn is_forgotten(&self, key: Key) -> bool {
        let mut last = None;
        for (place, items) in self.appended.iter().enumerate() {
            if items.iter().any(|item| item.kind == 1 && item.key == key) {
                last = Some(place);
            }
        }
        self.forgotten
            .iter()
            .any(|&(place, forgotten)| forgotten == key && last.is_none_or(|last| place > last))
    }

    /// Keys forgotten since their last `Put` among the first `count` batches.
    fn optional(&self, count: usize, more: Option<&Vec<Item>>) -> BTreeSet<Key> {
        let begins = |items: &[Item], key| items.iter().any(|item| item.kind == 1 && item.key == key);
        let is_optional = |&&(place, key): &&(usize, Key)| {
            let later = place.min(count)..count;
            !self.appended[later].iter().any(|items| begins(items, key))
                && !more.is_some_and(|items| begins(items, key))
        };
        self.forgotten.iter().filter(is_optional).map(|&(_, key)| key).collect()
    }

    /// Whether what a log showed keeps all promises.
    pub(crate) fn judge(&self, opened: &Opened) {
        let state = opened.state();
        self.judge_state(&state);
        let known: BTreeSet<&Item> =
            self.appended.iter().flatten().chain(self.refused.iter().flat_map(|(_, items)| items)).collect();
        for item in &opened.items {
            assert!(known.contains(item), "a record that nobody appended: {item:?}");
        }
    }

    /// A correct log shows all batches up to some point, which is not before what was confirmed; perhaps one that was
    /// refused there; and of forgotten keys, what it likes.
    fn judge_state(&self, state: &State) {
        let mut expected = State::new();
        let mut at_least = State::new();
        for count in 0..=self.appended.len() {
            if count > 0 {
                fold(&mut expected, &self.appended[count - 1]);
            }
            if count < self.synced {
                continue;
            }
            if fits(state, &expected, &self.optional(count, None)) {
                return;
            }
            if count == self.synced {
                at_least = expected.clone();
            }
            for (_, items) in self.refused.iter().filter(|(place, _)| *place == count) {
                let mut with_refused = expected.clone();
                fold(&mut with_refused, items);
                if fits(state, &with_refused, &self.optional(count, Some(items))) {
                    return;
                }
            }
        }
        let lost: Vec<_> = at_least.keys().filter(|key| !state.contains_key(key)).collect();
        let extra: Vec<_> = state.keys().filter(|key| !at_least.contains_key(key)).collect();
        let changed: Vec<_> = state
            .iter()
            .filter(|(key, bodies)| at_least.get(key).is_some_and(|other| &other != bodies))
            .map(|(key, _)| key)
            .collect();
        panic!(
            "{} of {} batches were durable; against those, lost {lost:?}, extra {extra:?}, changed {changed:?}",
            self.synced,
            self.appended.len(),
        );
    }

    /// After a start, what was shown is what counts; everything else never happened.
    fn settle_on(&mut self, state: &State) {
        let items: Vec<Item> = state
            .iter()
            .flat_map(|(&key, bodies)| {
                bodies.iter().enumerate().map(move |(place, body)| {
                    if place == 0 { Item::put(key, body) } else { Item::amend(key, body) }
                })
            })
            .collect();
        let forgotten: BTreeSet<Key> =
            self.forgotten.iter().map(|&(_, key)| key).filter(|&key| self.is_forgotten(key)).collect();
        // What was there before may be visited again, dead or alive: it stays known.
        let mut past: Vec<Item> = self.appended.drain(..).flatten().collect();
        past.extend(self.refused.drain(..).flat_map(|(_, items)| items));
        let ends: Vec<Item> = past.iter().map(|item| Item::remove(item.key)).collect();
        self.appended = vec![past, ends, items];
        self.forgotten = forgotten.into_iter().map(|key| (self.appended.len(), key)).collect();
        self.synced = self.appended.len();
    }
}

fn fits(state: &State, expected: &State, optional: &BTreeSet<Key>) -> bool {
    state.iter().all(|(key, bodies)| expected.get(key) == Some(bodies))
        && expected.keys().all(|key| state.contains_key(key) || optional.contains(key))
}

/// A workload of every kind of step, that fills a few segments and lets cleaning free and move.
pub(crate) fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let mut script = Vec::new();
    let mut living: Vec<Key> = Vec::new();
    let mut next_key: Key = 1;
    let mut number = 0u64;
    let mut body = |dice: &mut Dice| {
        number += 1;
        let length = match dice.below(10) {
            0 => 0,
            1 => 6000 + dice.below(3000),
            _ => dice.below(1800),
        };
        let mut body = number.to_le_bytes().to_vec();
        body.resize(8 + length as usize, number as u8);
        body
    };
    for _ in 0..steps {
        match dice.below(20) {
            0..=10 => {
                let mut items = Vec::new();
                for _ in 0..1 + dice.below(12) {
                    match dice.below(8) {
                        0..=2 => {
                            living.push(next_key);
                            items.push(Item::put(next_key, &body(&mut dice)));
                            next_key += 1;
                        }
                        3 if !living.is_empty() => {
                            let key = living[dice.below(living.len() as u64) as usize];
                            items.push(Item::put(key, &body(&mut dice)));
                        }
                        4 if !living.is_empty() => {
                            let key = living[dice.below(living.len() as u64) as usize];
                            items.push(Item::amend(key, &body(&mut dice)));
                        }
                        _ if living.len() > 4 => {
                            // Mostly the older ones, as in a queue; the first two stay for long.
                            let place = 2 + dice.below(living.len() as u64 / 2) as usize;
                            items.push(Item::remove(living.remove(place.min(living.len() - 1))));
                        }
                        _ => {}
                    }
                }
                if !items.is_empty() {
                    script.push(Step::Append(items));
                }
            }
            11..=14 => script.push(Step::Sync),
            15 => {
                if living.len() > 3 {
                    let place = dice.below(living.len() as u64) as usize;
                    script.push(Step::Forget(living.remove(place)));
                }
            }
            16 => script.push(Step::Mark),
            17..=18 => script.push(Step::Maintain(1 + dice.below(8) as u32)),
            _ if dice.below(4) == 0 => script.push(Step::Reopen),
            _ => script.push(Step::Maintain(50)),
        }
    }
    script.push(Step::Sync);
    script
}
