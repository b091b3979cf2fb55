//! What an operator asks for, and what comes of it.

use taskyard_proto::{Error, Key, QueueName, Submit, Task, TaskId, TaskState, WorkerName};

use super::kept::Kept;
use super::record::Failure;
use super::schedule::{Missed, Rhythm, ScheduleName};
use super::settings::Changes;
use super::task::{Share, Task as LiveTask};
use super::time::Time;

/// Something that an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Manage {
    /// Makes a queue, or changes its settings.
    Declare {
        /// The queue.
        queue: QueueName,
        /// What changes.
        changes: Box<Changes>,
    },
    /// Delivers nothing from a queue.
    Pause {
        /// The queue.
        queue: QueueName,
        /// For how long; none: until `Unpause`.
        for_ms: Option<u64>,
        /// Why.
        reason: Option<String>,
    },
    /// Delivers again.
    Unpause {
        /// The queue.
        queue: QueueName,
    },
    /// Cancels what waits in a queue: scheduled, queued and retrying. What is with workers stays.
    Purge {
        /// The queue.
        queue: QueueName,
    },
    /// Cancels tasks of a queue, wherever they are.
    CancelMany {
        /// The queue.
        queue: QueueName,
        /// Which.
        filter: TaskFilter,
        /// How long workers may take to stop.
        grace_ms: u64,
    },
    /// Gives dead letters new attempts.
    Redrive {
        /// The queue.
        queue: QueueName,
        /// Which.
        which: Which,
        /// How many a second; none: at once.
        rate_per_s: Option<f64>,
    },
    /// Forgets dead letters.
    DeleteDead {
        /// The queue.
        queue: QueueName,
        /// Which.
        which: Which,
    },
    /// Asks a worker to finish what it holds, and gives it nothing more.
    DrainWorker {
        /// Its name, in whatever account.
        worker: WorkerName,
    },
    /// Ends a worker's session.
    RemoveWorker {
        /// Its name, in whatever account.
        worker: WorkerName,
    },
    /// Makes or replaces a schedule.
    PutSchedule {
        /// Its name.
        name: ScheduleName,
        /// When it fires.
        rhythm: Rhythm,
        /// What becomes of times at which the broker was away.
        missed: Missed,
        /// What it submits.
        submit: Box<Submit>,
    },
    /// Ends a schedule.
    DeleteSchedule {
        /// Its name.
        name: ScheduleName,
    },
}

/// Which dead letters.
#[derive(Debug, Clone, PartialEq)]
pub enum Which {
    /// These; one that is none is `not_found`, and nothing is done.
    Tasks(Vec<TaskId>),
    /// All that a filter lets through.
    Filter(TaskFilter),
}

/// Tasks by what is known of them. What is not said lets all through.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskFilter {
    /// In one of these states; empty: in any.
    pub states: Vec<TaskState>,
    /// Accepted at least so long ago.
    pub older_than_ms: Option<u64>,
    /// With these headers.
    pub headers: Vec<(String, String)>,
    /// With this order key.
    pub order_key: Option<Key>,
    /// With this fair key.
    pub fair_key: Option<Key>,
    /// Whose last attempt failed for this reason.
    pub reason: Option<Failure>,
    /// Whose last error has this text in it.
    pub error_contains: Option<String>,
}

/// What came of something that has no answer among the protocol's messages.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It was done.
    Done,
    /// It was made, and was not there before.
    Created,
    /// So many were.
    Count(u64),
    /// So many were, and so many more are being stopped.
    Cancelled {
        /// Over.
        cancelled: u64,
        /// With workers that were told.
        stopping: u64,
    },
    /// What a pull brought.
    Pulled(Vec<Task>),
    /// It was refused.
    Refused(Box<Error>),
}

impl TaskFilter {
    pub(super) fn lets_through(&self, task: &LiveTask, now: Time) -> bool {
        let spec = &task.spec;
        let keys = spec.keys.as_deref();
        (self.states.is_empty() || self.states.contains(&task.state()))
            && self.older_than_ms.is_none_or(|ms| now.ms_since(spec.accepted) >= ms)
            && self.headers.iter().all(|(key, value)| spec.headers.value(key) == Some(value.as_str()))
            && self.order_key.as_ref().is_none_or(|key| keys.and_then(|k| k.order.as_ref()) == Some(key))
            && self.fair_key.as_ref().is_none_or(|key| keys.and_then(|k| k.fair.as_ref()) == Some(key))
            && self.reason.is_none_or(|reason| {
                // Of a recipient that is done it is over.
                let failed = task.shares().filter(|share| share.last_error().is_some());
                let mut last = failed.filter_map(|share| share.history().last());
                last.any(|attempt| attempt.reason == reason)
            })
            && self.error_contains.as_ref().is_none_or(|text| {
                let mut errors = task.shares().filter_map(Share::last_error).chain(task.error());
                errors.any(|error| error.as_str().contains(text.as_str()))
            })
    }

    /// A finished task has neither headers nor keys any longer: who asks for them is not answered with it.
    pub(super) fn lets_through_kept(&self, kept: &Kept, now: Time) -> bool {
        (self.states.is_empty() || self.states.contains(&kept.state))
            && self.older_than_ms.is_none_or(|ms| now.ms_since(kept.accepted) >= ms)
            && self.headers.is_empty()
            && self.order_key.is_none()
            && self.fair_key.is_none()
            && self.reason.is_none_or(|reason| kept.history().last().is_some_and(|a| a.reason == reason))
            && self
                .error_contains
                .as_ref()
                .is_none_or(|text| kept.error().is_some_and(|error| error.as_str().contains(text.as_str())))
    }
}
