//! Tasks that ended and can still be looked up.

use std::sync::Arc;

use taskyard_proto::{ErrorText, Finished, Key, Payload, TaskId, TaskState, WorkerName};

use super::effect::Effects;
use super::events::History;
use super::record::{FailedAttempt, FanoutRecord, FinishRecord, Outcome, Outcomes, Said, StoreOp};
use super::shard::Shard;
use super::time::Time;
use super::timers::Timer;
use crate::ids::TOUCHED_TOGETHER;

/// A task that ended. Most were done by one worker, and have no more to say: their rows stand side by side in a ring,
/// without an allocation of their own, because each is written and dropped once, a hundred thousand tasks apart, and
/// would be fetched from far away.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) task: TaskId,
    pub(super) accepted: Time,
    pub(super) finished: Time,
    pub(super) worker: Option<WorkerName>,
    event_seq: u64,
    pub(super) attempts: u32,
    pub(super) max_attempts: u16,
    pub(super) state: TaskState,
    more: Option<Box<More>>,
}

/// What most tasks that ended do not have.
#[derive(Debug, Default)]
struct More {
    result: Payload,
    error: Option<ErrorText>,
    history: Vec<FailedAttempt>,
    dedup: Option<Key>,
    fanout: Option<Arc<FanoutRecord>>,
    /// What those who watched were told, for those who come back; lost at a restart.
    events: Option<Box<History>>,
}

/// Where the row of a task that ended is.
#[derive(Debug)]
pub(super) struct KeptAt {
    task: TaskId,
    pub(super) queue: u32,
    /// Among those of its queue, in order of their ends.
    pub(super) serial: u64,
}

impl KeptAt {
    fn id(&self) -> u128 {
        self.task.0
    }
}

impl Kept {
    #[inline]
    pub(super) fn new(record: &FinishRecord, events: Option<Box<History>>) -> Kept {
        let has_more = events.is_some()
            || !record.result.is_null()
            || record.error.is_some()
            || !record.history.is_empty()
            || record.dedup.is_some()
            || record.fanout.is_some();
        let more = || {
            Box::new(More {
                result: record.result.clone(),
                error: record.error.clone(),
                history: record.history.clone(),
                dedup: record.dedup.clone(),
                fanout: record.fanout.clone(),
                events,
            })
        };
        Kept {
            task: record.task,
            accepted: record.accepted,
            finished: record.finished,
            worker: record.worker.clone(),
            event_seq: record.event_seq,
            attempts: record.attempts,
            max_attempts: record.max_attempts,
            state: record.state,
            more: has_more.then(more),
        }
    }

    /// Which attempt was the last; of a task to all, of the recipient that had the most, of those that are known.
    pub(super) fn attempt(&self) -> u32 {
        match self.more.as_ref().and_then(|more| more.fanout.as_ref()).map(|fanout| &fanout.recipients) {
            None => self.attempts,
            Some(Outcomes::Done(workers)) => u32::from(!workers.is_empty()),
            Some(Outcomes::Each(each)) => each.iter().map(|o| o.attempts).max().unwrap_or_default(),
        }
    }

    pub(super) fn result(&self) -> Payload {
        self.more.as_ref().map(|more| more.result.clone()).unwrap_or_default()
    }

    pub(super) fn error(&self) -> Option<&ErrorText> {
        self.more.as_ref()?.error.as_ref()
    }

    pub(super) fn history(&self) -> &[FailedAttempt] {
        self.more.as_ref().map_or(&[], |more| &more.history)
    }

    pub(super) fn events(&self) -> Option<&History> {
        self.more.as_ref()?.events.as_deref()
    }

    /// The last word on it.
    pub(super) fn last_word(&self) -> Finished {
        let fanout = self.more.as_ref().and_then(|more| more.fanout.as_ref());
        Finished {
            task: self.task,
            seq: self.event_seq,
            state: self.state,
            result: self.result(),
            error: self.error().cloned(),
            attempts: u64::from(self.attempts),
            recipients: fanout.map(|f| (&**f).into()),
            delivered: fanout.map(|f| f.delivered),
            acked: fanout.map(|f| f.acked),
            failed: fanout.map(|f| f.failed),
        }
    }

    fn weight(&self) -> u64 {
        let Some(more) = &self.more else { return KEPT_OVERHEAD_BYTES };
        let events = more.events.as_ref().map_or(0, |events| events.weight());
        let text = |error: &Option<ErrorText>| error.as_ref().map_or(0, |error| error.as_str().len() as u64);
        let said = |said: &Said| said.result.bytes().len() as u64 + text(&said.error);
        let outcomes = match more.fanout.as_ref().map(|fanout| &fanout.recipients) {
            None => 0,
            Some(Outcomes::Done(workers)) => workers.iter().map(|name| NAME_BYTES + beside(name)).sum(),
            Some(Outcomes::Each(each)) => {
                let outcome =
                    |o: &Outcome| OUTCOME_BYTES + beside(&o.worker) + o.said.as_deref().map_or(0, said);
                each.iter().map(outcome).sum()
            }
        };
        let history: u64 = more.history.iter().map(|attempt| OUTCOME_BYTES + text(&attempt.error)).sum();
        KEPT_OVERHEAD_BYTES
            + events
            + more.result.bytes().len() as u64
            + text(&more.error)
            + outcomes
            + history
    }
}

/// What a kept task takes beside its result, in bytes, rounded up.
const KEPT_OVERHEAD_BYTES: u64 = 320;

/// What a name in a list takes, in bytes, if no other task has the same list.
const NAME_BYTES: u64 = size_of::<WorkerName>() as u64;

/// What a name takes beside that, in bytes, unless another task or a session has the very same: one that is too long
/// for its place is elsewhere, with two counts.
fn beside(name: &WorkerName) -> u64 {
    match name.as_str().len() {
        ..NAME_BYTES_INSIDE => 0,
        bytes => bytes as u64 + 16,
    }
}

/// From so many bytes on a name does not fit into its own 24.
const NAME_BYTES_INSIDE: usize = 24;

/// What an outcome or a failed attempt takes beside its texts, in bytes, rounded up.
const OUTCOME_BYTES: u64 = 128;

impl Shard {
    /// Keeps the end of a task for as long and as far as the protocol says.
    pub(super) fn keep(&mut self, queue: u32, kept: Kept, fx: &mut Effects) {
        let task = kept.task;
        let found = &mut self.queues[queue as usize];
        let serial = found.kept_first + found.kept.len() as u64;
        self.kept_bytes += kept.weight();
        let keep_ms = found.settings.keep_result_ms.unwrap_or(self.config.keep_ms);
        let until = kept.finished.plus_ms(keep_ms);
        found.kept.push_back(kept);
        if found.kept_timer.is_none() {
            found.kept_timer = Some(until);
            self.timers.set(until, Timer::Kept { queue });
        }
        self.kept_ids.insert_new(task.0, KeptAt { task, queue, serial }, KeptAt::id);
        while self.queues[queue as usize].kept.len() > self.config.keep_count
            || (self.kept_bytes > self.config.keep_bytes && !self.queues[queue as usize].kept.is_empty())
        {
            self.forget_oldest(queue, fx);
        }
    }

    fn forget_oldest(&mut self, queue: u32, fx: &mut Effects) {
        let found = &mut self.queues[queue as usize];
        if found.kept_first.is_multiple_of(TOUCHED_TOGETHER as u64) {
            // They ended a hundred thousand tasks ago, and go one by one from here on.
            let next = found.kept.iter().take(TOUCHED_TOGETHER).map(|kept| kept.task.0);
            self.kept_ids.touch(next, KeptAt::id);
        }
        let Some(kept) = found.kept.pop_front() else { return };
        found.kept_first += 1;
        if found.kept.is_empty() {
            // The last record that knows the queue's counts goes: they need one of their own.
            let record = found.record();
            self.store(StoreOp::Queue(Box::new(record)), fx);
        }
        self.kept_bytes -= kept.weight();
        let (task, accepted) = (kept.task, kept.accepted);
        self.kept_ids.remove(task.0, |at| at.task == task, KeptAt::id);
        let dedup = kept.more.and_then(|more| more.dedup).map(|key| (key, accepted));
        self.forget_but_dedup(queue, task, dedup, StoreOp::Forget(task), fx);
    }

    /// `at` is what the timer was set to: a later one may have taken its place.
    pub(super) fn forget_expired(&mut self, queue: u32, at: Time, fx: &mut Effects) {
        if self.queues[queue as usize].kept_timer != Some(at) {
            return;
        }
        let settings = &self.queues[queue as usize].settings;
        let keep_ms = settings.keep_result_ms.unwrap_or(self.config.keep_ms);
        while let Some(kept) = self.queues[queue as usize].kept.front() {
            let until = kept.finished.plus_ms(keep_ms);
            if until > self.now {
                self.queues[queue as usize].kept_timer = Some(until);
                self.timers.set(until, Timer::Kept { queue });
                return;
            }
            self.forget_oldest(queue, fx);
        }
        self.queues[queue as usize].kept_timer = None;
    }

    pub(super) fn kept_at(&self, task: TaskId) -> Option<&KeptAt> {
        self.kept_ids.find(task.0, KeptAt::id)
    }

    pub(super) fn kept(&self, task: TaskId) -> Option<&Kept> {
        let at = self.kept_at(task)?;
        let queue = &self.queues[at.queue as usize];
        queue.kept.get((at.serial - queue.kept_first) as usize)
    }

    /// Keeps the ended tasks of a replayed store, which come in order of their ends. Those that are too old go with the
    /// first timer, as they always do.
    pub(super) fn restore_kept(
        &mut self,
        records: impl Iterator<Item = Box<FinishRecord>>,
        fx: &mut Effects,
    ) {
        let mut recipients = Arc::default();
        for mut record in records {
            if let Some(fanout) = record.fanout.as_mut().and_then(Arc::get_mut) {
                share(&mut fanout.recipients, &mut recipients);
            }
            let queue = self.queue_or_new(&record.queue);
            self.queues[queue as usize].raise_totals(record.totals);
            self.keep(queue, Kept::new(&record, None), fx);
        }
    }
}

/// Tasks to the same recipients have them together, as they had before the restart.
fn share(outcomes: &mut Outcomes, latest: &mut Arc<[WorkerName]>) {
    let Outcomes::Done(workers) = outcomes else { return };
    match workers == latest {
        true => *workers = latest.clone(),
        false => *latest = workers.clone(),
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::QueueName;

    use super::*;
    use crate::core::{Config, Replay};

    /// Cleaning moves records to the end of the log, so they do not come in order of what they tell.
    #[test]
    fn a_restart_keeps_those_that_ended_last_in_whatever_order_they_are_read() {
        let mut replay = Replay::new(Shard::new(Config { keep_count: 2, ..Config::default() }));
        for (id, finished) in [(1, 30), (2, 10), (3, 40), (2, 10), (4, 20)] {
            let record = FinishRecord {
                task: TaskId(id),
                queue: QueueName::parse("q").unwrap(),
                state: TaskState::Done,
                accepted: Time(1),
                finished: Time(finished),
                attempts: 1,
                max_attempts: 5,
                worker: None,
                result: Payload::NULL,
                error: None,
                history: Vec::new(),
                event_seq: 1,
                totals: [1, 0, 0],
                dedup: None,
                fanout: None,
            };
            replay.operation(StoreOp::Finish(Box::new(record)));
        }
        let mut fx = Effects::default();
        let shard = replay.begin(Time(50), true, 1, &mut fx);
        let kept: Vec<u128> = (1..=4).filter(|id| shard.kept(TaskId(*id)).is_some()).collect();
        assert_eq!(kept, [1, 3]);
        assert_eq!(fx.store, [StoreOp::Forget(TaskId(2)), StoreOp::Forget(TaskId(4))]);
    }

    /// A thousand names for each of a thousand tasks.
    #[test]
    fn tasks_to_the_same_recipients_share_their_names_after_a_restart() {
        let names = |all: &[&str]| all.iter().map(|name| WorkerName::parse(name).unwrap()).collect();
        let mut lists = [["a", "b"], ["a", "b"], ["a", "c"]].map(|all| Outcomes::Done(names(&all)));
        let told = lists.clone();
        let mut latest = Arc::default();
        lists.iter_mut().for_each(|list| share(list, &mut latest));
        assert_eq!(lists, told);
        let [Outcomes::Done(first), Outcomes::Done(second), Outcomes::Done(third)] = &lists else { panic!() };
        assert!(Arc::ptr_eq(first, second) && !Arc::ptr_eq(second, third));
    }

    #[test]
    fn a_row_stays_small() {
        assert!(size_of::<Kept>() <= 88, "{}", size_of::<Kept>());
    }
}
