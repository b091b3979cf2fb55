//! Submits that are sent again: for a while a queue remembers which `dedup_id` made which task, whatever became of it.

use std::collections::VecDeque;

use taskyard_proto::{Error, ErrorCode, Key, QueueName, Submit, TaskId};

use super::effect::Effects;
use super::record::{DedupRecord, StoreOp};
use super::shard::{HashMap, Shard};
use super::time::Time;
use super::timers::Timer;

/// How long an id is remembered, from the acceptance of its task.
pub const WINDOW_MS: u64 = 600_000;
/// How many ids a queue remembers.
pub const IDS_MAX: usize = 1_000_000;

/// The ids that a queue remembers.
#[derive(Debug, Default)]
pub(super) struct Dedup {
    tasks: HashMap<Key, TaskId>,
    /// Oldest first, with the end of its window.
    windows: VecDeque<(Time, Key)>,
    timer: bool,
}

impl Dedup {
    /// The task that this id made.
    pub(super) fn get(&self, key: &Key) -> Option<TaskId> {
        self.tasks.get(key).copied()
    }
}

impl Shard {
    /// The task that an earlier submit with the same id made.
    pub(super) fn duplicate_of(&self, submit: &Submit) -> Option<TaskId> {
        let key = submit.dedup_id.as_ref()?;
        let queue = self.queue_names.get(&submit.queue)?;
        self.queues[*queue as usize].dedup.get(key)
    }

    /// Refuses an id that is one too many.
    pub(super) fn check_dedup_room(&self, queue: u32, name: &QueueName) -> Result<(), Error> {
        if self.queues[queue as usize].dedup.tasks.len() < IDS_MAX {
            return Ok(());
        }
        let text = format!(
            "queue {name} remembers {IDS_MAX} values of `dedup_id`, the most that it may, each for {} minutes: \
             submit again later, or without one",
            WINDOW_MS / 60_000
        );
        Err(Error::new(ErrorCode::QueueFull, text).field("dedup_id"))
    }

    /// Remembers which task an id made. The ids of a queue come in order of acceptance.
    pub(super) fn remember_dedup(&mut self, queue: u32, key: Key, task: TaskId, accepted: Time) {
        let dedup = &mut self.queues[queue as usize].dedup;
        let until = accepted.plus_ms(WINDOW_MS);
        if dedup.tasks.insert(key.clone(), task).is_none() {
            dedup.windows.push_back((until, key));
        }
        if !std::mem::replace(&mut dedup.timer, true) {
            self.timers.set(until, Timer::Dedup { queue });
        }
    }

    pub(super) fn dedup_due(&mut self, queue: u32, fx: &mut Effects) {
        loop {
            let dedup = &mut self.queues[queue as usize].dedup;
            let Some((until, _)) = dedup.windows.front() else {
                dedup.timer = false;
                return;
            };
            if *until > self.now {
                let at = *until;
                return self.timers.set(at, Timer::Dedup { queue });
            }
            let (_, key) = dedup.windows.pop_front().expect("there is a front");
            let Some(task) = dedup.tasks.remove(&key) else { continue };
            if self.place(task).is_none() {
                // Its id alone was still in the store.
                self.store(StoreOp::Forget(task), fx);
            }
        }
    }

    /// A task is no longer known, but for its id while that has its window; otherwise `or` is stored.
    pub(super) fn forget_but_dedup(
        &mut self,
        queue: u32,
        task: TaskId,
        dedup: Option<(Key, Time)>,
        or: StoreOp,
        fx: &mut Effects,
    ) {
        let found = &self.queues[queue as usize];
        let remembered = dedup.filter(|(key, accepted)| {
            found.dedup.get(key) == Some(task) && accepted.plus_ms(WINDOW_MS) > self.now
        });
        let op = match remembered {
            Some((dedup, accepted)) => {
                StoreOp::Dedup(DedupRecord { task, queue: found.name.clone(), dedup, accepted })
            }
            None => or,
        };
        self.store(op, fx);
    }
}
