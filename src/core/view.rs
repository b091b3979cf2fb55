//! What can be seen from outside: plain copies, for HTTP, the command line and metrics.

use taskyard_proto::{ErrorText, GroupName, Headers, Payload, QueueName, TaskId, TaskState, WorkerName};

use super::kept::Kept;
use super::manage::TaskFilter;
use super::queue::{Queue, Tally};
use super::record::FailedAttempt;
use super::schedule::{ScheduleName, ScheduleView};
use super::settings::{Pause, Settings};
use super::shard::{Place, Shard};
use super::task::Share;
use super::time::Time;

/// One task.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of GET /v1/tasks/{id}, which PROTOCOL.md explains")]
pub struct TaskView {
    pub task: TaskId,
    pub queue: QueueName,
    pub state: TaskState,
    pub attempt: u64,
    pub max_attempts: u64,
    pub age_ms: u64,
    pub worker: Option<WorkerName>,
    pub result: Payload,
    pub error: Option<ErrorText>,
    pub history: Vec<FailedAttempt>,
}

/// What a task was submitted with, for its worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Carried {
    /// Beside the payload.
    pub headers: Headers,
    /// None: it is in the store alone.
    pub payload: Option<Payload>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueView {
    /// Its name.
    pub queue: QueueName,
    /// Tasks in each state, in the order of [`TaskState::ALL`]; of those that ended, since the queue was made.
    pub counts: [u64; TaskState::ALL.len()],
    /// What was counted, in the order of [`Tally::ALL`].
    pub tallies: [u64; Tally::ALL.len()],
    /// For how long a task waits for a worker, at the longest.
    pub oldest_ms: Option<u64>,
    /// Accepted, delivered, settled per second, over the last ten seconds.
    pub rates: [f64; 3],
    /// How many workers are subscribed.
    pub workers: u64,
    /// How many leases are out on its tasks, those of pulls included.
    pub in_flight: u64,
    /// Credit that is not in use.
    pub credit_free: u64,
    /// Whether somebody declared it.
    pub declared: bool,
    /// What was said of it.
    pub settings: Settings,
    /// Whether it delivers.
    pub pause: Option<Pause>,
    /// For how long it is paused yet; none: not paused, or until somebody ends it.
    pub paused_ms: Option<u64>,
}

/// One connected worker.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of GET /v1/workers, which PROTOCOL.md explains")]
pub struct WorkerView {
    pub worker: WorkerName,
    pub session: u64,
    pub groups: Vec<String>,
    pub labels: Vec<(String, String)>,
    pub client: Option<String>,
    pub connected_ms: u64,
    pub in_flight: u64,
    pub draining: bool,
    pub silent: bool,
    pub away: bool,
    /// Queue, credit, unsettled.
    pub subscriptions: Vec<(QueueName, u64, u64)>,
}

/// Where a look at a queue's tasks goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The next slot of the tasks that live.
    live: u32,
    /// The serial number of the next of those that are kept: the oldest go meanwhile.
    kept: u64,
}

/// So many slots are looked at in one go, in a few milliseconds at most.
const SCAN_SLOTS: u32 = 20_000;

/// Why a task is not with a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The task.
    pub task: TaskId,
    /// Its state.
    pub state: TaskState,
    /// All that holds it up, most telling first; empty: nothing does.
    pub reasons: Vec<Reason>,
}

/// One thing that holds a task up.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// Nobody is subscribed to its queue.
    NoWorker,
    /// Nobody who may take it can take more for now: most hold as much as they asked for.
    NoCredit {
        /// How many workers.
        busy: u64,
        /// How many of them let an ack timeout pass and have not been heard since.
        silent: u64,
        /// How many of them want no more.
        draining: u64,
    },
    /// The worker it is for is not subscribed.
    WorkerAbsent {
        /// Its name.
        worker: WorkerName,
    },
    /// Nobody of the group it is for is subscribed.
    GroupEmpty {
        /// The group.
        group: GroupName,
    },
    /// The queue is paused.
    Paused {
        /// For how long yet; none: until somebody ends it.
        in_ms: Option<u64>,
        /// Who paused it.
        by: Option<String>,
        /// Why.
        reason: Option<String>,
    },
    /// Another task of its order key goes first.
    OrderBlocked {
        /// That task.
        by: TaskId,
    },
    /// The queue gives out no more than so many a second.
    RateLimited {
        /// When the next one may go.
        in_ms: u64,
    },
    /// An attempt failed, and it waits.
    Backoff {
        /// For how long yet.
        in_ms: u64,
    },
    /// Its time has not come.
    Scheduled {
        /// For how long yet.
        in_ms: u64,
    },
    /// As many of the queue's tasks are with workers as may be.
    QueueLimit {
        /// How many that is.
        max_leased: u64,
    },
    /// Its last worker gave it back a moment ago, and nobody else is free.
    Released {
        /// When that worker may get it again.
        in_ms: u64,
    },
    /// The payload of the queue's next task is on its way from the disk.
    PayloadAway,
    /// The disk does not hold it yet.
    NotDurable,
    /// The broker shuts down.
    Draining,
}

impl Shard {
    /// A part of the tasks of a queue that a filter lets through: the first `limit` by id of those behind `after`,
    /// among the tasks that this part looks at; and where the next part begins. None: there is no such queue.
    pub fn scan(
        &self,
        queue: &QueueName,
        filter: &TaskFilter,
        after: Option<TaskId>,
        limit: usize,
        from: Cursor,
        now: Time,
    ) -> Option<(Vec<TaskView>, Option<Cursor>)> {
        let key = *self.queue_names.get(queue)?;
        let mut ids = Vec::new();
        let wanted = |id: TaskId| after.is_none_or(|after| id > after);
        let end = self.tasks.end();
        let slots = from.live..from.live.saturating_add(SCAN_SLOTS).min(end);
        for slot in slots.clone() {
            if let Some(task) =
                self.tasks.peek(slot).filter(|task| task.queue == key && wanted(task.spec.id()))
                && self.live(task.spec.id()) == Some(slot)
                && filter.lets_through(&task, now)
            {
                ids.push(task.spec.id());
            }
        }
        let mut next = Cursor { live: slots.end, kept: from.kept };
        let mut more = slots.end < end;
        if !more {
            let (kept, first) = (&self.queues[key as usize].kept, self.queues[key as usize].kept_first);
            let begin =
                usize::try_from(from.kept.saturating_sub(first)).unwrap_or(usize::MAX).min(kept.len());
            let part = begin..(begin + SCAN_SLOTS as usize).min(kept.len());
            ids.extend(
                part.clone()
                    .map(|at| &kept[at])
                    .filter(|record| wanted(record.task) && filter.lets_through_kept(record, now))
                    .map(|record| record.task),
            );
            next.kept = first + part.end as u64;
            more = part.end < kept.len();
        }
        ids.sort_unstable();
        ids.truncate(limit);
        let views = ids.into_iter().filter_map(|id| self.task_view(id, now)).collect();
        Some((views, more.then_some(next)))
    }

    /// All schedules, by name.
    pub fn schedules(&self) -> Vec<ScheduleView> {
        self.all_schedules()
    }

    /// One schedule.
    pub fn schedule(&self, name: &ScheduleName) -> Option<ScheduleView> {
        self.one_schedule(name)
    }

    /// The task with this id, if it lives or is kept.
    pub fn task_view(&self, id: TaskId, now: Time) -> Option<TaskView> {
        let Place::Live(key) = self.place(id)? else {
            let record = self.kept(id)?;
            return Some(TaskView {
                task: id,
                queue: self.queue_of(id)?.clone(),
                state: record.state,
                attempt: u64::from(record.attempt()),
                max_attempts: u64::from(record.max_attempts),
                age_ms: now.ms_since(record.accepted),
                worker: record.worker.clone(),
                result: record.result(),
                error: record.error().cloned(),
                history: record.history().to_vec(),
            });
        };
        let task = self.tasks.peek(key)?;
        let holder = |share: &Share| {
            let lease = share.lease()?;
            self.sessions.get(&lease.session).map(|session| session.worker.clone())
        };
        Some(TaskView {
            task: id,
            queue: task.spec.queue.clone(),
            state: task.state(),
            attempt: u64::from(task.attempt()),
            max_attempts: u64::from(task.spec.max_attempts),
            age_ms: now.ms_since(task.spec.accepted),
            worker: task.shares().find_map(holder),
            result: Payload::NULL,
            error: task.error(),
            history: task.shares().flat_map(|share| share.history().iter().cloned()).collect(),
        })
    }

    /// What a task carries that has not ended, or is a dead letter. Of others it is forgotten, as is none's here.
    pub fn carried(&self, id: TaskId) -> Option<Carried> {
        let task = self.tasks.peek(self.live(id)?)?;
        Some(Carried { headers: task.spec.headers.clone(), payload: task.payload().cloned() })
    }

    /// The queue of a task that lives or is kept.
    pub fn queue_of(&self, id: TaskId) -> Option<&QueueName> {
        match self.place(id)? {
            Place::Live(key) => self.tasks.get(key).map(|task| &task.spec.queue),
            Place::Kept { queue, .. } => self.queues.get(queue as usize).map(|queue| &queue.name),
        }
    }

    /// The last word on a task that has ended, as `finished` says it.
    pub fn finished(&self, id: TaskId) -> Option<taskyard_proto::Finished> {
        match self.place(id)? {
            Place::Live(key) => self.dead_message(key),
            Place::Kept { .. } => self.kept(id).map(Kept::last_word),
        }
    }

    /// One queue.
    pub fn queue_view(&self, name: &QueueName, now: Time) -> Option<QueueView> {
        let queue = self.queue_names.get(name)?;
        Some(self.view_of(&self.queues[*queue as usize], now))
    }

    /// All queues, in order of their making.
    pub fn queue_views(&self, now: Time) -> Vec<QueueView> {
        self.some_queue_views(0, usize::MAX, now)
    }

    /// As [`queue_views`](Self::queue_views), but the first `skip`, and at most so many. A queue keeps its place.
    pub fn some_queue_views(&self, skip: usize, count: usize, now: Time) -> Vec<QueueView> {
        self.queues.iter().skip(skip).take(count).map(|(_, queue)| self.view_of(queue, now)).collect()
    }

    /// How many more tasks the subscriptions of a queue would take.
    pub(super) fn credit_free(&self, queue: &Queue) -> u64 {
        let subscriptions =
            queue.subscribers.values().filter_map(|key| self.subscriptions.get(key.0 as usize));
        subscriptions.map(|found| u64::from(found.credit.saturating_sub(found.unsettled))).sum()
    }

    fn view_of(&self, queue: &Queue, now: Time) -> QueueView {
        let oldest = queue.oldest_waiting(&self.tasks);
        QueueView {
            queue: queue.name.clone(),
            counts: queue.counts,
            tallies: queue.tallies,
            oldest_ms: oldest.map(|since| now.ms_since(since)),
            rates: queue.rates.per_second(now),
            workers: queue.subscribers.len() as u64,
            declared: queue.declared,
            settings: queue.settings.clone(),
            pause: queue.pause.clone(),
            paused_ms: queue.pause.as_ref().and_then(|pause| Some(pause.until?.ms_since(now))),
            in_flight: queue.leased,
            credit_free: self.credit_free(queue),
        }
    }

    /// All connected workers, by session.
    pub fn worker_views(&self, now: Time) -> Vec<WorkerView> {
        self.session_ids()
            .into_iter()
            // What a pull brought is with somebody, but nobody is connected.
            .filter(|id| self.sessions[id].pull.is_none())
            .map(|id| {
                let session = &self.sessions[&id];
                WorkerView {
                    worker: session.worker.clone(),
                    session: id.0,
                    groups: session.groups.iter().map(ToString::to_string).collect(),
                    labels: session.labels.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                    client: session.client.clone(),
                    connected_ms: now.ms_since(session.since),
                    in_flight: session.held.len() as u64,
                    draining: session.draining,
                    silent: session.silent,
                    away: session.away_until.is_some(),
                    subscriptions: session
                        .subscriptions
                        .iter()
                        .filter_map(|(queue, key)| {
                            let found = self.subscriptions.get(key.0 as usize)?;
                            let name = self.queues[*queue as usize].name.clone();
                            Some((name, u64::from(found.credit), u64::from(found.unsettled)))
                        })
                        .collect(),
                }
            })
            .collect()
    }

    /// How many tasks there are that have not ended or are dead.
    pub fn live_tasks(&self) -> usize {
        self.tasks.len()
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::{Payload, Submit};

    use super::*;
    use crate::core::{CallId, Command, Config, Effects, Origin, Submission};

    /// A task with a delay of two hours was two hours old in the moment it was due.
    #[test]
    fn a_task_waits_from_when_it_is_due() {
        let (mut shard, mut fx, began) = (Shard::new(Config::default()), Effects::default(), Time(1_000_000));
        let queue = QueueName::parse("q").unwrap();
        // The first that was accepted is due last.
        for (number, due_ms) in [(1, 10_000), (2, 4_000), (3, 6_000)] {
            let submit = Submit::new(queue.clone(), Payload::NULL);
            let (origin, task) = (Origin::Call(CallId(number)), TaskId(u128::from(number)));
            let submit = Submission::new(submit.into(), Some(began.plus_ms(due_ms)));
            shard.apply(began, Command::Submit { origin, access: None, task, submit }, &mut fx);
        }
        shard.apply(began, Command::Stored { through: shard.operations() }, &mut fx);
        for (ms, oldest_ms) in [(3_000, None), (4_000, Some(0)), (5_000, Some(1_000)), (12_000, Some(8_000))]
        {
            let now = began.plus_ms(ms);
            shard.expire(now, &mut fx);
            let view = shard.queue_view(&queue, now).expect("it is there");
            assert_eq!(view.oldest_ms, oldest_ms, "after {ms} ms");
        }
    }
}
