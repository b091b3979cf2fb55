//! What must survive: the operations that go to the store, and come back from it at a start.

use std::ops::Deref;
use std::sync::Arc;

use smol_str::SmolStr;
use taskyard_proto::message::{Complete, Target};
use taskyard_proto::{
    Assign, ErrorText, Headers, Key, Payload, QueueName, RecipientList, RecipientOutcome, TaskId, TaskState,
    WorkerName,
};

use super::retry::RetryPolicy;
pub use super::schedule::{ScheduleName, ScheduleRecord};
pub use super::settings::{QueueRecord, Totals};
use super::time::Time;

/// One operation on the store. Replaying a store's operations in order rebuilds the state; an
/// operation on a task that is not known is of a task that has ended, and means nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum StoreOp {
    /// A new task. Replaces what is known of its id.
    Accept(Acceptance),
    /// Something happened to a task.
    Amend(TaskId, Amendment),
    /// A task ended, and is kept to be looked up. Replaces what is known of its id.
    Finish(Box<FinishRecord>),
    /// Nothing needs to be known of a finished task any longer.
    Forget(TaskId),
    /// A task that has not finished is taken away: a dead letter that nobody wants.
    Delete(TaskId),
    /// What is known of a queue beside its tasks. Replaces what was known.
    Queue(Box<QueueRecord>),
    /// A task is no longer kept, but its `dedup_id` is still remembered. Replaces what is known of its id.
    Dedup(DedupRecord),
    /// A schedule. Replaces what was known of its name.
    Schedule(Box<ScheduleRecord>),
    /// There is no such schedule any longer.
    Unschedule(ScheduleName),
    /// A session that may be resumed. Replaces what was known of its key.
    Session(Box<SessionRecord>),
    /// The session with this key cannot be resumed any longer.
    Unsession(u128),
    /// The store has said so of a schedule or session, and need not keep that any longer.
    Ended(Ended),
}

/// What an earlier process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// A schedule.
    Schedule(ScheduleName),
    /// A session.
    Session(u128),
}

/// A `dedup_id` that is remembered beyond its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupRecord {
    /// The task.
    pub task: TaskId,
    /// Its queue.
    pub queue: QueueName,
    /// The id that its producer gave.
    pub dedup: Key,
    /// When the task was accepted: the window begins then.
    pub accepted: Time,
}

/// A session that may be resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// What its token says: drawn at the door.
    pub key: u128,
    /// The worker's name.
    pub worker: WorkerName,
    /// Whose it is; none: authentication was off.
    pub account: Option<SmolStr>,
}

/// A task that comes in.
#[derive(Debug, Clone, PartialEq)]
pub struct Acceptance {
    /// What is known of it for as long as it lives.
    pub spec: TaskSpec,
    /// When it is first queued, if later.
    pub due: Option<Time>,
    /// What the worker gets.
    pub payload: Payload,
}

/// A task as it was accepted, but for its payload; it does not change. Small: there may be ten million of them.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskSpec {
    /// The task's id, in halves: as one number it would align the row of a task to 16 bytes.
    id: [u64; 2],
    /// Its place among all tasks of the store, in order of acceptance.
    pub seq: u64,
    /// When it was accepted.
    pub accepted: Time,
    /// What it was submitted with. Those of a queue that were submitted alike share one.
    pub terms: Arc<Terms>,
}

impl TaskSpec {
    /// Puts together what is known of a task.
    pub fn new(id: TaskId, seq: u64, accepted: Time, terms: Arc<Terms>) -> TaskSpec {
        TaskSpec { id: [(id.0 >> 64) as u64, id.0 as u64], seq, accepted, terms }
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        TaskId(u128::from(self.id[0]) << 64 | u128::from(self.id[1]))
    }

    /// When it is of no more use.
    pub fn expires(&self) -> Option<Time> {
        self.terms.ttl_us.map(|ttl| Time(self.accepted.0.saturating_add(ttl)))
    }
}

impl Deref for TaskSpec {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

/// What a task is submitted with, beside its payload and its time.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// The queue.
    pub queue: QueueName,
    /// For how long it is of use, in microseconds.
    pub ttl_us: Option<u64>,
    /// 0 to 9, higher first.
    pub priority: u8,
    /// How many charged deliveries.
    pub max_attempts: u16,
    /// How long a worker may keep silent.
    pub ack_timeout_ms: u32,
    /// How long one attempt may run.
    pub run_limit_ms: Option<u32>,
    /// How long to wait between attempts.
    pub retry: RetryPolicy,
    /// Who may take it.
    pub target: Target,
    /// When a task to all is complete.
    pub complete: Complete,
    /// The recipients of a task to all, as they were subscribed at acceptance; shared with what is known of its end.
    pub recipients: Arc<[WorkerName]>,
    /// The account that submitted it; none: authentication was off.
    pub account: Option<SmolStr>,
    /// What most tasks do without.
    pub keys: Option<Box<Keys>>,
    /// The producer's headers.
    pub headers: Headers,
}

/// What a task is ordered, spread and told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys {
    /// How a worker is chosen; none: as the queue says.
    pub assign: Option<Assign>,
    /// What `sticky` hashes.
    pub sticky: Option<Key>,
    /// Tasks of one key run one at a time, in order.
    pub order: Option<Key>,
    /// Keys take turns.
    pub fair: Option<Key>,
    /// Tells a submit that is sent again from a new one.
    pub dedup: Option<Key>,
}

/// Why an attempt came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// The worker said so.
    Nack = 0,
    /// The worker kept silent for the ack timeout.
    AckTimeout = 1,
    /// The attempt ran longer than allowed.
    RunLimit = 2,
    /// The worker's socket ended.
    WorkerLost = 3,
    /// The task was returned unharmed too often in a row.
    Returned = 4,
    /// The recipient of a task to all was absent.
    Absent = 5,
}

impl Failure {
    /// The word for it, in histories and errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Nack => "nack",
            Failure::AckTimeout => "ack_timeout",
            Failure::RunLimit => "run_limit",
            Failure::WorkerLost => "worker_lost",
            Failure::Returned => "returned",
            Failure::Absent => "absent",
        }
    }

    /// The failure with this number, as records of the store hold it.
    pub fn from_number(number: u8) -> Option<Failure> {
        [
            Failure::Nack,
            Failure::AckTimeout,
            Failure::RunLimit,
            Failure::WorkerLost,
            Failure::Returned,
            Failure::Absent,
        ]
        .into_iter()
        .find(|failure| *failure as u8 == number)
    }
}

/// One failed attempt, for the task's history.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedAttempt {
    /// Which.
    pub attempt: u16,
    /// Whose; none if nobody held the task.
    pub worker: Option<WorkerName>,
    /// Why.
    pub reason: Failure,
    /// The worker's words.
    pub error: Option<ErrorText>,
}

/// What happened to one recipient of a task. A task that is not to all has one, number 0.
#[derive(Debug, Clone, PartialEq)]
pub enum Amendment {
    /// A charged attempt failed.
    Failed {
        /// Which recipient.
        recipient: u32,
        /// How.
        attempt: FailedAttempt,
        /// When the next one may begin; none: no further attempt.
        due: Option<Time>,
        /// Whether the recipient's first charged loss is behind it.
        lost: bool,
    },
    /// The task was returned unharmed, to be offered later.
    Deferred {
        /// Which recipient.
        recipient: u32,
        /// When it may be offered.
        due: Time,
    },
    /// The recipient of a task to all has finished well.
    Acked {
        /// Which recipient.
        recipient: u32,
        /// Its result.
        result: Payload,
    },
    /// The task was handed out at least once: written when the broker stops, so that the next one
    /// knows which deliveries are not the first.
    Delivered {
        /// Which recipient.
        recipient: u32,
    },
    /// It was handed to a session that may be resumed, also by the next process.
    Leased {
        /// Which recipient.
        recipient: u32,
        /// The lease's number.
        number: u64,
        /// The slot that the lease names.
        slot: u32,
        /// The session's key.
        session: u128,
        /// When the ack timeout ends.
        deadline: Time,
        /// Whether its loss before `start` is free.
        explicit_start: bool,
    },
    /// Such a lease ended, and nothing was charged.
    Returned {
        /// Which recipient.
        recipient: u32,
    },
    /// Somebody cancelled the task: it may finish, but not run again.
    Cancelling,
    /// A dead letter gets new attempts.
    Redriven,
}

/// A task that has ended, as far as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishRecord {
    /// The task's id.
    pub task: TaskId,
    /// Its queue.
    pub queue: QueueName,
    /// done, cancelled or expired.
    pub state: TaskState,
    /// When it was accepted.
    pub accepted: Time,
    /// When it ended.
    pub finished: Time,
    /// Charged deliveries, the successful one included.
    pub attempts: u32,
    /// How many there might have been.
    pub max_attempts: u16,
    /// Who finished it.
    pub worker: Option<WorkerName>,
    /// The ack's result.
    pub result: Payload,
    /// Why it failed.
    pub error: Option<ErrorText>,
    /// The attempts that failed before.
    pub history: Vec<FailedAttempt>,
    /// The last event number that was given.
    pub event_seq: u64,
    /// The queue's counts, this task included.
    pub totals: Totals,
    /// Its `dedup_id`, which is remembered for its window.
    pub dedup: Option<Key>,
    /// What became of the recipients of a task to all; shared with who keeps it, for there may be a thousand.
    pub fanout: Option<Arc<FanoutRecord>>,
}

/// What became of a task to all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FanoutRecord {
    /// How many recipients it was handed to.
    pub delivered: u64,
    /// How many acknowledged it.
    pub acked: u64,
    /// How many did not.
    pub failed: u64,
    /// Each.
    pub recipients: Outcomes,
}

/// What became of the recipients of a task to all, failures first, of at most [`RECIPIENTS_SHOWN_MAX`] of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcomes {
    /// All of these did what they were asked to, at once, and had nothing to say, as nearly always: so nothing is written
    /// for each of what may be a thousand, and tasks to the same recipients have them together.
    Done(Arc<[WorkerName]>),
    /// Each is told apart.
    Each(Vec<Outcome>),
}

/// The most recipients that `finished` lists.
pub const RECIPIENTS_SHOWN_MAX: usize = 1000;

impl Outcomes {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = OutcomeRef<'_>> {
        let (done, each) = match self {
            Outcomes::Done(workers) => (&workers[..workers.len().min(RECIPIENTS_SHOWN_MAX)], &[][..]),
            Outcomes::Each(each) => (&[][..], &each[..]),
        };
        let each = each.iter().map(|outcome| OutcomeRef {
            worker: &outcome.worker,
            state: outcome.state,
            attempts: outcome.attempts,
            said: outcome.said.as_deref(),
        });
        done.iter().map(OutcomeRef::done).chain(each)
    }
}

impl Default for Outcomes {
    fn default() -> Outcomes {
        Outcomes::Each(Vec::new())
    }
}

/// An [`Outcome`], to be looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutcomeRef<'a> {
    /// Its name.
    pub worker: &'a WorkerName,
    /// The state of its share when the task was decided.
    pub state: TaskState,
    /// Charged deliveries to it.
    pub attempts: u32,
    /// What it said.
    pub said: Option<&'a Said>,
}

impl<'a> OutcomeRef<'a> {
    /// That of one who did what it was asked to, at once, and had nothing to say.
    fn done(worker: &'a WorkerName) -> OutcomeRef<'a> {
        OutcomeRef { worker, state: TaskState::Done, attempts: 1, said: None }
    }
}

/// What became of one recipient of a task to all.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its name.
    pub worker: WorkerName,
    /// The state of its share when the task was decided.
    pub state: TaskState,
    /// Charged deliveries to it.
    pub attempts: u32,
    /// What it said.
    pub said: Option<Box<Said>>,
}

/// A result, or what went wrong.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Said {
    /// The ack's result.
    pub result: Payload,
    /// What went wrong.
    pub error: Option<ErrorText>,
}

impl Said {
    /// This, if it is anything.
    pub fn new(result: Payload, error: Option<ErrorText>) -> Option<Box<Said>> {
        (!result.is_null() || error.is_some()).then(|| Box::new(Said { result, error }))
    }
}

impl From<OutcomeRef<'_>> for RecipientOutcome {
    fn from(outcome: OutcomeRef<'_>) -> RecipientOutcome {
        let Said { result, error } = outcome.said.cloned().unwrap_or_default();
        let (worker, state) = (outcome.worker.clone(), outcome.state);
        RecipientOutcome { worker, state, attempts: u64::from(outcome.attempts), result, error }
    }
}

impl From<&FanoutRecord> for RecipientList {
    fn from(fanout: &FanoutRecord) -> RecipientList {
        RecipientList(fanout.recipients.iter().map(Into::into).collect())
    }
}
