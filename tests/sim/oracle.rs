//! Knows the promises, not the code: sees what reaches the broker's process, what leaves it, which turns the disk
//! holds, when it dies; and at a start and at the end what can be looked up.
//!
//! It keeps a small model of every task, as PROTOCOL.md tells its life, and stops the run at the first thing that
//! was promised otherwise. Where a crash leaves it open what survived, the model holds all that may have, until
//! the broker says which.

mod away;
mod between;
mod inputs;
mod life;
mod operators;
mod outputs;
mod process;
mod shape;
mod verbs;

use std::collections::{BTreeMap, BTreeSet};

use taskyard::core::manage::{Manage, Report as Told, TaskFilter, Which};
use taskyard::core::record::Failure;
use taskyard::core::settings::{Deliver, Order, Settings};
use taskyard::core::{CallId, Command, Origin, Output, SessionId, Shard, Time};
use taskyard_proto::{
    Ack, Assign, ClientMessage, CloseCode, Complete, Confirm, Error, ErrorCode, Finished, GivenLease,
    GroupName, Hello, IfAbsent, Key, LeaseId, LeaseList, Mode, Nack, Payload, QueueName, RecipientOutcome,
    RequestId, Resume, RevokeReason, RoomMessage, RoomName, ServerMessage, SettleOutcome, Stop, Submit,
    Subscribe, Target, Task, TaskId, TaskState, Welcome, WorkerName,
};

const MS: u64 = 1000;
const AVOID_MS: u64 = 100;
const ABSENT_MS: u64 = 30_000;
const FREE_RETURNS: u32 = 100;
const DEDUP_MS: u64 = 600_000;
const EVENTS_SHOWN: usize = 60;

/// A promise that was not kept.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) promise: &'static str,
    pub(crate) what: String,
    pub(crate) task: Option<TaskId>,
    pub(crate) at: u64,
}

/// Counts of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Report {
    pub(crate) submitted: u64,
    pub(crate) confirmed: u64,
    pub(crate) delivered: u64,
    pub(crate) redelivered: u64,
    pub(crate) settled: u64,
    pub(crate) finished: u64,
    pub(crate) crashes: u64,
    pub(crate) inputs: u64,
    pub(crate) segments: u64,
    pub(crate) cancelled: u64,
    pub(crate) duplicates: u64,
    pub(crate) resumed: u64,
    pub(crate) kept: u64,
    pub(crate) redriven: u64,
    pub(crate) pulled: u64,
    /// Tasks of which a crash left open what only the broker knows.
    pub(crate) murky: u64,
}

pub(crate) struct Oracle {
    pub(crate) violation: Option<Violation>,
    pub(crate) report: Report,
    /// What happened, if somebody wants to read it.
    trace: Option<Vec<(u64, Option<TaskId>, String)>>,
    /// A running hash of all that came out.
    hash: u64,
    now: u64,
    turn: u64,
    durable_turn: u64,
    /// What was durable when the process died.
    durable_at_death: u64,
    /// Inputs are counted, to tell what changed in the current one.
    input: u64,
    activating: bool,
    last_expire: u64,
    /// The latest input before that.
    expire_input: u64,
    /// What arrived before this has been taken in.
    horizon: u64,
    keep_ms: u64,
    order: u64,
    pub(crate) tasks: BTreeMap<TaskId, Tracked>,
    by_order: Vec<TaskId>,
    leases: BTreeMap<LeaseId, Lease>,
    sessions: BTreeMap<SessionId, Session>,
    /// Sessions that said `bye`: they are still answered, then closed.
    leaving: Vec<SessionId>,
    calls: BTreeMap<CallId, Call>,
    rings: BTreeMap<(QueueName, Option<GroupName>), Option<u64>>,
    next_place: u64,
    /// Since when a worker name is not subscribed to a queue.
    absent_since: BTreeMap<(QueueName, WorkerName), u64>,
    draining: bool,
    full: bool,
    due_answers: Vec<Expect>,
    sums_at_stop: Option<BTreeMap<QueueName, u64>>,
    /// How long a session that may be resumed waits for that.
    pub(crate) window_ms: u64,
    /// Sessions that could be resumed and ended: a crash may bring them back.
    buried: Vec<Buried>,
    next_restored: u64,
    /// What `dedup_id`s have made, and until when that is remembered.
    dedups: BTreeMap<(QueueName, Key), Vec<(TaskId, u64)>>,
    /// Workers that must be told to stop before the current input is over.
    due_stops: BTreeSet<LeaseId>,
    shapes: BTreeMap<QueueName, Shape>,
    jobs: BTreeMap<CallId, Job>,
    rooms: BTreeMap<RoomName, Room>,
    /// The sessions that an operator removes just now.
    removing: BTreeSet<SessionId>,
    /// Pulls that wait for tasks, with the session that holds what they get.
    pulls: BTreeMap<CallId, SessionId>,
    /// How leases that pulls brought were settled.
    pulled: BTreeMap<LeaseId, (Verb, u64)>,
    /// The input in which a refusal may come or not.
    loose_input: u64,
    /// How many of a queue's tasks were deleted or were no longer kept, which only the broker knows.
    unclear: BTreeMap<QueueName, u64>,
    /// Who watches what it has submitted again, or to a queue that delivers early: it hears of that when the submit
    /// is answered, though it may have said `unwatch` by then.
    again: BTreeSet<(Option<SessionId>, TaskId)>,
}

/// What an operator said of a queue.
#[derive(Debug, Default)]
struct Shape {
    settings: Settings,
    /// Paused; until when, if that was said.
    pause: Option<Option<u64>>,
    turn: u64,
    /// When tasks were handed out since the process began.
    handed_out: Vec<u64>,
    /// Since when the rate is what it is.
    rate_since: u64,
}

/// What must be reported.
#[derive(Debug)]
struct Job {
    wanted: Wish,
    turn: u64,
    input: u64,
    /// What a purge would cancel, and what of it a freed key has handed out before.
    spared: u64,
    grace_ms: Option<u64>,
}

#[derive(Debug, PartialEq)]
enum Wish {
    Done,
    Count(u64),
    Cancelled {
        cancelled: u64,
        stopping: u64,
    },
    Pulled,
    Refused(ErrorCode),
    /// What only the broker knows plays a part.
    Anything,
}

#[derive(Debug, Default)]
struct Room {
    members: Vec<SessionId>,
    seq: u64,
    /// Something was said that must be told now; who said it is left out.
    due: Option<Option<SessionId>>,
}

/// A session that could be resumed, and ended.
#[derive(Debug)]
struct Buried {
    key: u128,
    worker: WorkerName,
    born: u64,
    ended: u64,
}

/// A task that was taken in.
#[derive(Debug)]
pub(crate) struct Tracked {
    order: u64,
    pub(crate) submit: Submit,
    priority: u8,
    max_attempts: u16,
    ack_timeout: u64,
    accepted_at: u64,
    expires: Option<u64>,
    submit_turn: u64,
    /// It is known to survive, or to have survived.
    sure: bool,
    /// A crash took it before it was durable.
    pub(crate) gone: bool,
    /// The producer was told that it is safe.
    pub(crate) confirmed: bool,
    told_accepted: bool,
    active: bool,
    active_input: u64,
    recipients: Vec<WorkerName>,
    shares: Vec<Share>,
    pub(crate) over: Option<Over>,
    unclean: bool,
    /// Looked up and no longer kept.
    forgotten: bool,
    cancelling: Option<Cancelling>,
    /// A crash left open what only the broker knows.
    murky: bool,
    /// A dead letter that an operator deleted, in this turn.
    deleted: Option<u64>,
    redriven: Option<u64>,
    /// Handed out before it is durable.
    early: bool,
}

impl Over {
    fn new(state: TaskState, at: u64, turn: u64) -> Over {
        Over { state, at, turn, result: Payload::NULL, told: false, error: None }
    }
}

/// Somebody stops a task.
#[derive(Debug, Clone, Copy)]
struct Cancelling {
    turn: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Over {
    pub(crate) state: TaskState,
    at: u64,
    turn: u64,
    result: Payload,
    told: bool,
    error: Option<String>,
}

/// What one recipient has of a task.
#[derive(Debug, Default)]
struct Share {
    deliveries: u64,
    charges: Vec<Charge>,
    /// Those before the task was redriven.
    past: Vec<Charge>,
    /// It waits out a back-off, or a delay that a nack asked for.
    retrying: bool,
    free: u32,
    lease: Option<LeaseId>,
    /// When it may be handed out at the earliest, and must be at the latest (0: at once).
    from: u64,
    by: u64,
    from_turn: u64,
    avoid: Option<(SessionId, u64)>,
    ended: Option<Ended>,
    /// A crash leaves it open how it stands.
    unsure: bool,
    touched: u64,
}

#[derive(Debug, Clone)]
struct Ended {
    done: bool,
    cancelled: bool,
    turn: u64,
    result: Payload,
}

#[derive(Debug, Clone)]
struct Charge {
    turn: u64,
    failure: Failure,
    worker: Option<WorkerName>,
    error: Option<String>,
}

#[derive(Debug)]
struct Lease {
    task: TaskId,
    share: usize,
    session: SessionId,
    queue: QueueName,
    deadline: u64,
    run_deadline: Option<u64>,
    unstarted: bool,
    live: bool,
    settled: Option<(Verb, u64)>,
    /// When it was given, and by whose key it could be kept.
    turn: u64,
    key: Option<u128>,
    attempt: u64,
    /// The end of its ack timeout as it was when it was given.
    given_deadline: u64,
    /// After a restart the broker may count from the first deadline, or for a window: it ends by then.
    latest: u64,
    run_latest: Option<u64>,
    ended: Option<u64>,
    stop: Option<u64>,
    /// After a crash: others that may be the one that came back.
    others: Vec<LeaseId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Ack,
    Nack,
    Release,
    Cancelled,
}

#[derive(Debug)]
struct Session {
    worker: WorkerName,
    groups: BTreeSet<GroupName>,
    subscriptions: BTreeMap<QueueName, Subscription>,
    silent: bool,
    draining: bool,
    settles: Vec<(LeaseId, Verb)>,
    /// How often `finished` may be told of a task.
    watching: BTreeMap<TaskId, Watching>,
    pending: BTreeMap<RequestId, Wanted>,
    /// By which it can be resumed.
    key: Option<u128>,
    born: u64,
    /// Its socket has ended; it waits to be resumed until then.
    away: Option<u64>,
    /// Whether it came back with a restart is not certain.
    maybe: bool,
    opening: Option<Opening>,
    pull: Option<CallId>,
}

/// A hello that waits for its welcome.
#[derive(Debug)]
struct Opening {
    old: Option<SessionId>,
    in_flight: Vec<GivenLease>,
    key: Option<u128>,
    /// The one that it names may be known, or not.
    maybe: bool,
}

#[derive(Debug, Default)]
struct Watching {
    asked: u32,
    told: u32,
    last_seq: u64,
    /// `accepted` must come before the first event.
    waits_for_accepted: bool,
    /// It no longer wants to hear the end.
    left: bool,
    /// By a submit that was sent again: what was told before is told anew, when that is answered.
    again: bool,
}

#[derive(Debug)]
struct Subscription {
    place: u64,
    credit: u64,
    auto: bool,
    explicit_start: bool,
}

#[derive(Debug, Default)]
struct Call {
    wanted: Option<Wanted>,
    watching: Option<(TaskId, bool)>,
}

/// The answer that a request must get.
#[derive(Debug, Clone)]
enum Wanted {
    Welcome,
    Subscribed,
    Ok,
    Pong,
    Accepted(TaskId),
    Duplicate(TaskId),
    Cancel {
        state: TaskState,
        turn: u64,
    },
    /// What the promise leaves open.
    Anything,
    Settled {
        lease: GivenLease,
        outcome: SettleOutcome,
        turn: u64,
    },
    SettledMany {
        results: Vec<(GivenLease, SettleOutcome)>,
        turn: u64,
    },
    Refused,
}

/// An answer that must come before the current input is over.
#[derive(Debug)]
struct Expect {
    origin: Origin,
    code: ErrorCode,
    lease: Option<GivenLease>,
}

type Judged = Result<(), Violation>;

impl Oracle {
    pub(crate) fn new(keep_ms: u64, trace: bool) -> Oracle {
        Oracle {
            violation: None,
            report: Report::default(),
            trace: trace.then(Vec::new),
            hash: 0xcbf2_9ce4_8422_2325,
            now: 0,
            turn: 0,
            durable_turn: 0,
            durable_at_death: 0,
            input: 0,
            activating: false,
            last_expire: 0,
            expire_input: 0,
            horizon: 0,
            keep_ms,
            order: 0,
            tasks: BTreeMap::new(),
            by_order: Vec::new(),
            leases: BTreeMap::new(),
            sessions: BTreeMap::new(),
            leaving: Vec::new(),
            calls: BTreeMap::new(),
            rings: BTreeMap::new(),
            next_place: 1,
            absent_since: BTreeMap::new(),
            draining: false,
            full: false,
            due_answers: Vec::new(),
            sums_at_stop: None,
            window_ms: 5000,
            buried: Vec::new(),
            next_restored: 1 << 63,
            dedups: BTreeMap::new(),
            due_stops: BTreeSet::new(),
            shapes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            rooms: BTreeMap::new(),
            removing: BTreeSet::new(),
            pulls: BTreeMap::new(),
            pulled: BTreeMap::new(),
            loose_input: 0,
            unclear: BTreeMap::new(),
            again: BTreeSet::new(),
        }
    }

    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Notes something for the reader of a trace.
    pub(crate) fn note(&mut self, task: Option<TaskId>, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push((self.now, task, text()));
        }
    }

    /// The last lines of the trace, those about `task` if it is known.
    pub(crate) fn story(&self, task: Option<TaskId>) -> String {
        let lines = self.trace.iter().flatten();
        let lines = lines.filter(|(_, of, _)| task.is_none() || of.is_none() || *of == task);
        let lines: Vec<String> = lines
            .map(|(at, of, text)| format!("{:>12.3} ms  {text}{}", *at as f64 / 1000.0, about(*of, task)))
            .collect();
        let first = if task.is_none() { 0 } else { lines.len().saturating_sub(EVENTS_SHOWN) };
        lines[first..].join("\n")
    }

    fn mix(&mut self, text: &str) {
        for byte in text.bytes().chain(self.now.to_le_bytes()) {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn judge(&mut self, judged: Judged) {
        if let Err(violation) = judged
            && self.violation.is_none()
        {
            self.violation = Some(violation);
        }
    }

    pub(crate) fn broken(
        &self,
        promise: &'static str,
        task: Option<TaskId>,
        what: impl Into<String>,
    ) -> Violation {
        Violation { promise, what: what.into(), task, at: self.now }
    }

    fn require(
        &self,
        kept: bool,
        promise: &'static str,
        task: Option<TaskId>,
        what: impl FnOnce() -> String,
    ) -> Judged {
        if kept { Ok(()) } else { Err(self.broken(promise, task, what())) }
    }
}

/// What the recipients' outcomes make of a task to all; none while it is open.
fn verdict(complete: Complete, all: u64, acked: u64, failed: u64) -> Option<TaskState> {
    let needed = match complete {
        Complete::All => all,
        Complete::Any => 1,
        Complete::Quorum(count) => count,
    };
    if all == 0 {
        let quorum = matches!(complete, Complete::Quorum(_));
        return Some(if quorum { TaskState::Dead } else { TaskState::Done });
    }
    if complete == Complete::All && acked + failed < all {
        return None;
    }
    if acked >= needed {
        return Some(TaskState::Done);
    }
    (all - failed < needed).then_some(TaskState::Dead)
}

fn backoff_ms(submit: &Submit, attempt: usize) -> f64 {
    let given = submit.backoff.as_ref();
    let initial = given.and_then(|b| b.initial_ms).map_or(1000.0, |ms| ms.get() as f64);
    let max = given.and_then(|b| b.max_ms).map_or(300_000.0, |ms| ms.get() as f64);
    let factor = given.and_then(|b| b.factor).map_or(2.0, |factor| factor.get());
    (initial * factor.powi(attempt as i32 - 1)).min(max)
}

/// Names the task that a line is of, where lines of all tasks are told.
fn about(of: Option<TaskId>, task: Option<TaskId>) -> String {
    of.filter(|_| task.is_none()).map_or(String::new(), |of| format!("  [{of}]"))
}

fn lease_in(message: &ClientMessage) -> Option<LeaseId> {
    let first = |list: &LeaseList| match list {
        LeaseList::One(lease) => lease.id(),
        LeaseList::Many(leases) => leases.first()?.id(),
    };
    match message {
        ClientMessage::Ack(m) => first(&m.leases),
        ClientMessage::Nack(m) => first(&m.leases),
        ClientMessage::Release(m) => first(&m.leases),
        ClientMessage::Start(m) => m.lease.id(),
        ClientMessage::Extend(m) => m.lease.id(),
        ClientMessage::Progress(m) => m.lease.id(),
        ClientMessage::Cancelled(m) => m.lease.id(),
        _ => None,
    }
}

fn describe(submit: &Submit) -> String {
    let key = |name: &str, key: &Option<Key>| {
        key.as_ref().map_or(String::new(), |key| format!(" {name} {}", key.as_str()))
    };
    let ms = |name: &str, value: Option<u64>| value.map_or(String::new(), |value| format!(" {name} {value}"));
    format!(
        "to {} {:?}{}{}{}{}{}{}{}{}{}{}{}{}",
        submit.queue,
        submit.to,
        ms("priority", submit.priority.map(|v| v.get())),
        ms("delay_ms", submit.delay_ms.map(|v| v.get())),
        ms("ttl_ms", submit.ttl_ms.map(|v| v.get())),
        ms("ack_timeout_ms", submit.ack_timeout_ms.map(|v| v.get())),
        ms("timeout_ms", submit.timeout_ms.map(|v| v.get())),
        ms("max_attempts", submit.max_attempts.map(|v| v.get())),
        submit.complete.map_or(String::new(), |complete| format!(" complete {complete:?}")),
        submit.confirm.map_or(String::new(), |confirm| format!(" confirm {confirm}")),
        key("order_key", &submit.order_key),
        key("dedup_id", &submit.dedup_id),
        key("fair_key", &submit.fair_key),
        submit.assign.map_or(String::new(), |assign| format!(" assign {assign:?}")),
    )
}
