//! Where tasks wait: a queue, its lanes, and its counts.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use slab::Slab;
use smol_str::SmolStr;
use taskyard_proto::{GroupName, Key, QueueName, TaskId, TaskState, WorkerName};

use super::command::SessionId;
use super::dedup::Dedup;
use super::kept::Kept;
use super::order::Chain;
use super::ready::{Entry, ReadyList};
use super::record::{Failure, QueueRecord, Terms, Totals};
use super::ring::Ring;
use super::session::SubscriptionKey;
use super::settings::{Pause, Settings};
use super::shard::HashMap;
use super::task::{Again, Past, ShareState, Task};
use super::time::Time;
use crate::slots::Slots;

/// What is counted of a queue's tasks; the label `event` of `taskyard_tasks_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the metric, which PROTOCOL.md explains")]
pub enum Tally {
    Accepted,
    Duplicate,
    Refused,
    Delivered,
    Redelivered,
    Acked,
    Nacked,
    Released,
    TimedOut,
    WorkerLost,
    Dead,
    Cancelled,
    Expired,
}

impl Tally {
    /// All of them with their words.
    pub const ALL: [(Tally, &'static str); 13] = [
        (Tally::Accepted, "accepted"),
        (Tally::Duplicate, "duplicate"),
        (Tally::Refused, "refused"),
        (Tally::Delivered, "delivered"),
        (Tally::Redelivered, "redelivered"),
        (Tally::Acked, "acked"),
        (Tally::Nacked, "nacked"),
        (Tally::Released, "released"),
        (Tally::TimedOut, "timed_out"),
        (Tally::WorkerLost, "worker_lost"),
        (Tally::Dead, "dead"),
        (Tally::Cancelled, "cancelled"),
        (Tally::Expired, "expired"),
    ];
}

/// Why a task became a dead letter: by the numbers of [`Failure`], then by itself (`retry:false`), then by the
/// recipients of a task to all.
pub(super) const DEATHS: [&str; 8] =
    ["nack", "ack_timeout", "run_limit", "worker_lost", "returned", "absent", "rejected", "recipients"];

/// The upper ends of the buckets that attempts are counted in; there is one more.
pub(super) const ATTEMPT_BOUNDS: [u16; 8] = [1, 2, 3, 5, 10, 20, 50, 100];

/// How many attempts tasks had used when they were done or dead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) buckets: [u64; ATTEMPT_BOUNDS.len() + 1],
    pub(super) sum: u64,
}

impl Used {
    pub(super) fn count(&mut self, attempts: u32) {
        let at = ATTEMPT_BOUNDS
            .iter()
            .position(|bound| attempts <= u32::from(*bound))
            .unwrap_or(ATTEMPT_BOUNDS.len());
        self.buckets[at] += 1;
        self.sum += u64::from(attempts);
    }
}

/// The states that [`Totals`] count, in their order.
const ENDED: [TaskState; 3] = [TaskState::Done, TaskState::Cancelled, TaskState::Expired];

/// The states of tasks that go on.
const UNFINISHED: [TaskState; 4] =
    [TaskState::Scheduled, TaskState::Queued, TaskState::Leased, TaskState::Retrying];

/// A queue: where its tasks wait, who takes them, and what became of them.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: QueueName,
    /// Somebody declared it.
    pub(super) declared: bool,
    pub(super) settings: Settings,
    pub(super) pause: Option<Pause>,
    /// Whether anything of that limits what goes to workers: where nothing does, nothing is asked.
    pub(super) limited: bool,
    /// The task that it waits for, because its payload is on its way from the store.
    pub(super) lacks: Option<TaskId>,
    /// Pulls that have waited long enough, but for that payload.
    pub(super) overdue: Vec<SessionId>,
    /// The bytes of its payloads that are on their way back, or are back and not with a worker yet.
    pub(super) ahead_bytes: u64,
    /// It is looked at once the command is done.
    pub(super) to_pump: bool,
    /// How many leases are out on its tasks.
    pub(super) leased: u64,
    /// The bytes of the payloads of its unfinished tasks; dead letters are not counted.
    pub(super) bytes: u64,
    /// When the rate is used up to.
    pub(super) rate_until: Time,
    /// When the timer for the rate goes off.
    pub(super) rate_timer: Option<Time>,
    /// Tasks that have an order key, by the key.
    pub(super) chains: HashMap<Key, Chain>,
    /// Those of them that wait behind another of their key, by their place in order of acceptance.
    pub(super) blocked: BTreeMap<u64, u32>,
    /// Dead letters by their place in order of acceptance.
    pub(super) dead: BTreeMap<u64, u32>,
    pub(super) dedup: Dedup,
    /// What its latest tasks were submitted with.
    pub(super) alike: Alike,
    /// Tasks to any worker.
    pub(super) any: Lane,
    /// Tasks to one of a group.
    pub(super) groups: BTreeMap<GroupName, Lane>,
    /// Tasks to one worker, and shares of tasks to all.
    pub(super) workers: Slab<WorkerLane>,
    pub(super) worker_names: HashMap<WorkerName, u32>,
    /// Every subscription by its place.
    pub(super) subscribers: BTreeMap<u64, SubscriptionKey>,
    /// How many tasks are in each state; of those that ended, since the queue was made.
    pub(super) counts: [u64; TaskState::ALL.len()],
    pub(super) tallies: [u64; Tally::ALL.len()],
    /// Redeliveries by what came before, and dead letters by how they came to be.
    pub(super) agains: [u64; Again::WORDS.len()],
    pub(super) deaths: [u64; DEATHS.len()],
    pub(super) used: Used,
    pub(super) rates: Rates,
    /// Tasks that ended, oldest first, and the serial number of the first of them.
    pub(super) kept: VecDeque<Kept>,
    pub(super) kept_first: u64,
    /// When the timer for the oldest of them goes off.
    pub(super) kept_timer: Option<Time>,
}

/// A list of tasks and those who take turns at it.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) ready: ReadyList,
    pub(super) ring: Ring,
    /// How many subscriptions there are of a group's.
    pub(super) members: u32,
}

/// The tasks of one worker.
#[derive(Debug)]
pub(super) struct WorkerLane {
    pub(super) worker: WorkerName,
    pub(super) ready: ReadyList,
    pub(super) subscription: Option<SubscriptionKey>,
    /// Since when nobody of that name is subscribed; meaningful only then.
    pub(super) absent_since: Time,
}

/// Which lane of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LaneKey {
    Any,
    Group(GroupName),
    Worker(u32),
}

impl Queue {
    pub(super) fn new(name: QueueName) -> Queue {
        Queue {
            name,
            declared: false,
            settings: Settings::default(),
            pause: None,
            limited: false,
            lacks: None,
            overdue: Vec::new(),
            ahead_bytes: 0,
            to_pump: false,
            leased: 0,
            bytes: 0,
            rate_until: Time(0),
            rate_timer: None,
            chains: HashMap::default(),
            blocked: BTreeMap::new(),
            dead: BTreeMap::new(),
            dedup: Dedup::default(),
            alike: Alike::default(),
            any: Lane::default(),
            groups: BTreeMap::new(),
            workers: Slab::new(),
            worker_names: HashMap::default(),
            subscribers: BTreeMap::new(),
            counts: [0; TaskState::ALL.len()],
            tallies: [0; Tally::ALL.len()],
            agains: [0; Again::WORDS.len()],
            deaths: [0; DEATHS.len()],
            used: Used::default(),
            rates: Rates::default(),
            kept: VecDeque::new(),
            kept_first: 0,
            kept_timer: None,
        }
    }

    /// What must be known of it beside its tasks.
    pub(super) fn record(&self) -> QueueRecord {
        QueueRecord {
            queue: self.name.clone(),
            totals: self.totals(),
            declared: self.declared,
            settings: self.settings.clone(),
            pause: self.pause.clone(),
        }
    }

    /// How many tasks ended done, cancelled and expired.
    pub(super) fn totals(&self) -> Totals {
        ENDED.map(|state| self.counts[state as usize])
    }

    /// Learns what an earlier process counted. Counts only grow, so the largest is the latest.
    pub(super) fn raise_totals(&mut self, totals: Totals) {
        for (state, total) in ENDED.into_iter().zip(totals) {
            let count = &mut self.counts[state as usize];
            *count = (*count).max(total);
        }
    }

    /// How many tasks have not ended; dead letters are not counted.
    pub(super) fn unfinished(&self) -> u64 {
        UNFINISHED.iter().map(|state| self.counts[*state as usize]).sum()
    }

    pub(super) fn tally(&mut self, what: Tally) {
        self.tallies[what as usize] += 1;
    }

    /// Counts a delivery of what was handed out before.
    pub(super) fn tally_again(&mut self, past: Past) {
        if let Past::Back(again) = past {
            self.agains[again as usize] += 1;
        }
    }

    /// Counts a task that becomes a dead letter, by what ended it.
    pub(super) fn tally_death(&mut self, task: &Task) {
        let latest = task.first.history().last();
        let at = match latest {
            _ if task.fanout().is_some() => DEATHS.len() - 1,
            Some(latest) if latest.reason == Failure::Nack && latest.attempt < task.spec.max_attempts => {
                DEATHS.len() - 2
            }
            latest => latest.map_or(Failure::Nack, |latest| latest.reason) as usize,
        };
        self.deaths[at] += 1;
        if task.fanout().is_none() {
            self.used.count(u32::from(task.first.charged));
        }
    }

    pub(super) fn worker_lane(&mut self, worker: &WorkerName, now: Time) -> u32 {
        if let Some(lane) = self.worker_names.get(worker) {
            return *lane;
        }
        let lane = self.workers.insert(WorkerLane {
            worker: worker.clone(),
            ready: ReadyList::default(),
            subscription: None,
            absent_since: now,
        }) as u32;
        self.worker_names.insert(worker.clone(), lane);
        lane
    }

    /// The subscription of the worker with this name.
    pub(super) fn worker_subscription(&self, worker: &WorkerName) -> Option<SubscriptionKey> {
        let lane = self.worker_names.get(worker)?;
        self.workers[*lane as usize].subscription
    }

    /// Forgets a worker's lane if nothing is left of it: names come and go without end.
    pub(super) fn drop_worker_lane_if_empty(&mut self, lane: u32) {
        let Some(found) = self.workers.get(lane as usize) else { return };
        if found.subscription.is_none() && found.ready.is_empty() {
            let gone = self.workers.remove(lane as usize);
            self.worker_names.remove(&gone.worker);
        }
    }

    /// Since when a task waits for a worker, at the longest. Its delay and its back-offs before do not count.
    pub(super) fn oldest_waiting(&self, tasks: &Slots<Task>) -> Option<Time> {
        let lanes = self
            .groups
            .values()
            .map(|lane| &lane.ready)
            .chain(self.workers.iter().map(|(_, lane)| &lane.ready));
        let waits = |entry: Entry| {
            let task = tasks.peek(entry.task).filter(|task| task.spec.seq == entry.seq && !task.decided)?;
            match task.share(entry.recipient)?.state {
                ShareState::Queued { since } => Some(since),
                _ => None,
            }
        };
        let blocked = self.blocked.values().find_map(|task| match tasks.peek(*task)?.first.state {
            ShareState::Queued { since } => Some(since),
            _ => None,
        });
        let ready = std::iter::once(&self.any.ready).chain(lanes).filter_map(|list| list.oldest(waits)).min();
        [ready, blocked].into_iter().flatten().min()
    }

    /// Forgets a group's lane if nothing is left of it: names come and go without end. The turn is remembered while
    /// anybody of the group is there.
    pub(super) fn drop_group_lane_if_empty(&mut self, group: &GroupName) {
        if self.groups.get(group).is_some_and(|lane| lane.members == 0 && lane.ready.is_empty()) {
            self.groups.remove(group);
        }
    }

    pub(super) fn ready_mut(&mut self, lane: &LaneKey) -> &mut ReadyList {
        match lane {
            LaneKey::Any => &mut self.any.ready,
            LaneKey::Group(group) => &mut self.groups.entry(group.clone()).or_default().ready,
            LaneKey::Worker(lane) => &mut self.workers[*lane as usize].ready,
        }
    }
}

/// How many different terms a queue remembers: a few kinds of tasks take turns in it.
const ALIKE_MAX: usize = 4;

/// The terms of the latest tasks, so that tasks that were submitted alike share one copy.
#[derive(Debug, Default)]
pub(super) struct Alike {
    latest: Vec<Arc<Terms>>,
    next: usize,
    /// Those of the latest whose submit left everything to the queue: found without being made.
    bare: Option<Arc<Terms>>,
}

impl Alike {
    /// The terms of a task whose submit left everything to the queue, as long as that says the same.
    pub(super) fn bare(&self, bare: bool, account: Option<&SmolStr>) -> Option<Arc<Terms>> {
        let found = self.bare.as_ref().filter(|terms| bare && terms.account.as_ref() == account);
        found.cloned()
    }

    /// What a submit leaves open is another from here on.
    pub(super) fn forget_bare(&mut self) {
        self.bare = None;
    }

    /// The same terms, shared with others where it can be; `bare`: the submit left everything to the queue.
    pub(super) fn shared(&mut self, terms: Terms, bare: bool) -> Arc<Terms> {
        let shared = match self.latest.iter().find(|latest| ***latest == terms) {
            Some(same) => same.clone(),
            None => self.remember(Arc::new(terms)),
        };
        if bare {
            self.bare = Some(shared.clone());
        }
        shared
    }

    /// The same for what is shared already, with others.
    pub(super) fn shared_again(&mut self, terms: &Arc<Terms>) -> Arc<Terms> {
        let same = |latest: &&Arc<Terms>| Arc::ptr_eq(latest, terms) || ***latest == **terms;
        match self.latest.iter().find(same) {
            Some(same) => same.clone(),
            None => self.remember(terms.clone()),
        }
    }

    fn remember(&mut self, terms: Arc<Terms>) -> Arc<Terms> {
        // What only one task can have is not worth a place.
        if terms.keys.as_ref().is_some_and(|keys| keys.dedup.is_some()) {
            return terms;
        }
        if self.latest.len() < ALIKE_MAX {
            self.latest.push(terms.clone());
        } else {
            self.latest[self.next] = terms.clone();
            self.next = (self.next + 1) % ALIKE_MAX;
        }
        terms
    }
}

/// Seconds over which rates are averaged.
const RATE_WINDOW_S: u64 = 10;

/// What a rate is of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rate {
    Accepted,
    Delivered,
    Settled,
}

/// Events of the last ten whole seconds.
#[derive(Debug, Default)]
pub(super) struct Rates {
    second: u64,
    buckets: [[u32; 3]; RATE_WINDOW_S as usize + 1],
}

impl Rates {
    fn roll(&mut self, now: Time) {
        let second = now.0 / 1_000_000;
        if second <= self.second {
            return;
        }
        let buckets = self.buckets.len() as u64;
        let passed = second.saturating_sub(self.second).min(buckets);
        for step in 1..=passed {
            self.buckets[((second - passed + step) % buckets) as usize] = [0; 3];
        }
        self.second = second;
    }

    pub(super) fn count(&mut self, now: Time, rate: Rate) {
        self.roll(now);
        let at = (self.second % self.buckets.len() as u64) as usize;
        self.buckets[at][rate as usize] = self.buckets[at][rate as usize].saturating_add(1);
    }

    /// Accepted, delivered, settled per second, over the last ten whole seconds.
    pub(super) fn per_second(&self, now: Time) -> [f64; 3] {
        let second = now.0 / 1_000_000;
        let buckets = self.buckets.len() as u64;
        let mut sums = [0f64; 3];
        for age in 1..=RATE_WINDOW_S {
            // A bucket counts if its second is within the window and not newer than what was rolled in.
            let Some(of) = second.checked_sub(age) else { break };
            if of <= self.second && self.second - of < buckets {
                let bucket = self.buckets[(of % buckets) as usize];
                for (sum, count) in sums.iter_mut().zip(bucket) {
                    *sum += f64::from(count);
                }
            }
        }
        sums.map(|sum| sum / RATE_WINDOW_S as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_ten_whole_seconds() {
        let mut rates = Rates::default();
        let at = |second: u64| Time(second * 1_000_000);
        for second in 100..110 {
            for _ in 0..second - 90 {
                rates.count(at(second), Rate::Accepted);
            }
        }
        let per_second = |rates: &Rates, second| rates.per_second(at(second))[0];
        assert_eq!(per_second(&rates, 110), (10..20).sum::<u64>() as f64 / 10.0);
        assert_eq!(per_second(&rates, 115), (15..20).sum::<u64>() as f64 / 10.0);
        assert_eq!(per_second(&rates, 125), 0.0);
        rates.count(at(200), Rate::Accepted);
        assert_eq!(per_second(&rates, 201), 0.1);
    }
}
