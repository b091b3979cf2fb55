//! Knows the promises, not the code: sees what reaches the broker's process, what leaves it, which turns the disk
//! holds, when it dies; and at a start and at the end what can be looked up.
//!
//! It keeps a small model of every task, as PROTOCOL.md tells its life, and stops the run at the first thing that
//! was promised otherwise. Where a crash leaves it open what survived, the model holds all that may have, until
//! the broker says which.

use std::collections::{BTreeMap, BTreeSet};

use taskyard::core::record::Failure;
use taskyard::core::{CallId, Command, Origin, Output, SessionId, Shard, Time};
use taskyard_proto::{
    Ack, ClientMessage, CloseCode, Complete, Confirm, Error, ErrorCode, Finished, GivenLease, GroupName,
    IfAbsent, LeaseId, LeaseList, Mode, Nack, Payload, QueueName, RecipientOutcome, RequestId, RevokeReason,
    ServerMessage, SettleOutcome, Submit, Subscribe, Target, Task, TaskId, TaskState, WorkerName,
};

const MS: u64 = 1000;
const AVOID_MS: u64 = 100;
const ABSENT_MS: u64 = 30_000;
const FREE_RETURNS: u32 = 100;
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
    keep_ms: u64,
    order: u64,
    pub(crate) tasks: BTreeMap<TaskId, Tracked>,
    by_order: Vec<TaskId>,
    leases: BTreeMap<LeaseId, Lease>,
    sessions: BTreeMap<SessionId, Session>,
    /// Sessions that ended in the current input: they may still be answered.
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
}

#[derive(Debug, Clone)]
pub(crate) struct Over {
    pub(crate) state: TaskState,
    at: u64,
    turn: u64,
    result: Payload,
    told: bool,
}

/// What one recipient has of a task.
#[derive(Debug, Default)]
struct Share {
    deliveries: u64,
    charges: Vec<Charge>,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Ack,
    Nack,
    Release,
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
    Settled { lease: GivenLease, outcome: SettleOutcome, turn: u64 },
    SettledMany { results: Vec<(GivenLease, SettleOutcome)>, turn: u64 },
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
        let lines: Vec<String> =
            lines.map(|(at, _, text)| format!("{:>12.3} ms  {text}", *at as f64 / 1000.0)).collect();
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

    // --- The process and its disk -----------------------------------------------------------

    pub(crate) fn begin_turn(&mut self, now: u64) {
        self.now = now;
        self.turn += 1;
    }

    /// All turns up to this one are on disk, and the broker is about to hear it.
    pub(crate) fn stored(&mut self, turn: u64) {
        self.durable_turn = self.durable_turn.max(turn);
        self.activating = true;
    }

    pub(crate) fn all_durable(&mut self) {
        self.durable_turn = self.turn;
    }

    /// The process died, with or without its power.
    pub(crate) fn crashed(&mut self, now: u64, how: &str) {
        self.now = now;
        self.report.crashes += 1;
        self.note(None, || format!("== the broker dies: {how}"));
        self.process_ended();
    }

    /// The process stopped in order.
    pub(crate) fn stopped(&mut self, now: u64) {
        self.now = now;
        self.note(None, || "== the broker has stopped".into());
        self.process_ended();
    }

    fn process_ended(&mut self) {
        self.durable_at_death = self.durable_turn;
        self.sessions.clear();
        self.calls.clear();
        self.rings.clear();
        self.absent_since.clear();
        self.due_answers.clear();
        self.leaving.clear();
        self.draining = false;
        self.full = false;
        self.activating = false;
        for lease in self.leases.values_mut() {
            lease.live = false;
        }
    }

    /// A process has started and replayed: what it knows settles what was open.
    pub(crate) fn started(&mut self, now: u64, clean: bool, shard: &Shard) {
        self.now = now;
        self.note(None, || {
            format!("== the broker is up, {}", if clean { "after a stop" } else { "after a crash" })
        });
        for id in self.by_order.clone() {
            let judged = self.recovered(id, clean, shard);
            self.judge(judged);
        }
        // All that was found was made durable.
        self.durable_turn = self.turn;
        self.durable_at_death = self.turn;
        let sums = self.sums_at_stop.take();
        if let Some(sums) = sums.filter(|_| clean) {
            for (queue, sum) in sums {
                let counts = shard.queue_view(&queue, Time(now)).map_or(0, |view| view.counts.iter().sum());
                let judged = self.require(sum == counts, "I6 counts agree across restarts", None, || {
                    format!("queue {queue} counted {sum} tasks before an orderly stop and {counts} after it")
                });
                self.judge(judged);
            }
        }
        let judged = self.counts_agree(shard);
        self.judge(judged);
    }

    fn recovered(&mut self, id: TaskId, clean: bool, shard: &Shard) -> Judged {
        let death = self.durable_at_death;
        let now = self.now;
        let keep = self.keep_ms * MS;
        let view = shard.task_view(id, Time(now));
        let found = &self.tasks[&id];
        if found.gone {
            return self.require(
                view.is_none(),
                "I2 nothing exists that was lost before it was confirmed",
                Some(id),
                || "a task that was not there after one start is there after the next".into(),
            );
        }
        let sure = found.sure || found.submit_turn <= death;
        let Some(view) = view else {
            let over = found.over.as_ref();
            let maybe = over.is_none() && self.is_maybe_over(found);
            let kept_out = over.is_some_and(|over| now >= over.at + keep) || found.forgotten || maybe;
            if sure && !kept_out {
                let what = if found.confirmed { "a confirmed task" } else { "a task that was on disk" };
                return Err(self.broken(
                    "I1 no confirmed task is lost",
                    Some(id),
                    format!("after the start {what} is not there"),
                ));
            }
            let found = self.tasks.get_mut(&id).expect("it was just found");
            found.gone = !sure;
            found.forgotten = sure;
            return Ok(());
        };
        let final_now = view.state.is_final();
        let expired = view.state == TaskState::Expired && found.expires.is_some_and(|at| at <= now);
        if let Some(over) = &found.over {
            let same = view.state == over.state;
            if !same && (over.turn <= death || over.told || (final_now && !expired)) {
                return Err(self.broken(
                    "I3 a settled task stays settled",
                    Some(id),
                    format!("it was {} on disk and is {} after the start", over.state, view.state),
                ));
            }
        }
        let to_all = !found.recipients.is_empty();
        let absent = to_all && self.may_be_absent(found);
        let unsure = found.shares.iter().any(|share| share.unsure);
        let decided =
            matches!(found.submit.to, Some(Target::All(_))) && self.verdict_of(found) == Some(view.state);
        let expired = expired || decided;
        if found.over.is_none() && final_now && !expired && !absent && !unsure {
            return Err(self.broken(
                "I1 a task ends by its workers' doing",
                Some(id),
                format!("nobody ended it and it is {} after the start", view.state),
            ));
        }
        let turn = self.turn;
        let found = self.tasks.get_mut(&id).expect("it was just found");
        found.sure = true;
        found.unclean |= !clean;
        found.active = true;
        found.active_input = self.input;
        if found.over.as_ref().is_none_or(|over| over.state != view.state) && final_now {
            found.over =
                Some(Over { state: view.state, at: now, turn, result: view.result.clone(), told: false });
        }
        if found.over.as_ref().is_some_and(|over| over.state != view.state) {
            found.over = None;
        }
        let mut wrong = None;
        for (index, share) in found.shares.iter_mut().enumerate() {
            share.lease = None;
            share.free = 0;
            share.avoid = None;
            if share.from_turn > death {
                share.from = 0;
            }
            share.by = share.by.max(if share.by == 0 { 0 } else { now });
            if !to_all {
                let known = view.history.len();
                let sure = share.charges.iter().filter(|charge| charge.turn <= death).count();
                if known < sure || known > share.charges.len() {
                    wrong = Some(format!(
                        "{} failed attempts happened, {sure} of them on disk; after the start there are {known}",
                        share.charges.len()
                    ));
                }
                share.charges.truncate(known);
                for (charge, told) in share.charges.iter().zip(&view.history) {
                    if charge.failure != told.reason || charge.worker != told.worker {
                        wrong = Some(format!("the history says {told:?}, it was {charge:?}"));
                    }
                }
                if found.over.is_none() {
                    share.ended = None;
                }
                continue;
            }
            let name = &found.recipients[index];
            let known = view.history.iter().filter(|attempt| attempt.worker.as_ref() == Some(name)).count();
            let sure = share.charges.iter().filter(|charge| charge.turn <= death).count();
            // What a task to all has ended with tells of its first recipient alone.
            if found.over.is_none() {
                if known < sure || known > share.charges.len() {
                    wrong = Some(format!(
                        "recipient {name} failed {} times, {sure} on disk; after the start {known}",
                        share.charges.len()
                    ));
                }
                share.charges.truncate(known);
                if let Some(ended) = &share.ended
                    && ended.turn > death
                {
                    share.unsure = true;
                }
            }
        }
        for charge in found.shares.iter_mut().flat_map(|share| &mut share.charges) {
            charge.turn = 0;
        }
        if let Some(over) = &mut found.over {
            // What ended while the broker was away is written in its first turn.
            over.turn = if over.turn == turn { turn + 1 } else { 0 };
        }
        match wrong {
            Some(what) => Err(self.broken("I6 attempts are counted across restarts", Some(id), what)),
            None => Ok(()),
        }
    }

    fn may_be_absent(&self, found: &Tracked) -> bool {
        let ready = |share: &Share| share.ended.is_none() && (share.lease.is_none());
        found.shares.iter().any(ready) && self.now >= found.accepted_at + ABSENT_MS * MS
    }

    // --- Inputs -----------------------------------------------------------------------------

    pub(crate) fn input(&mut self, now: u64, arrived: u64, command: &Command) {
        self.now = now;
        self.input += 1;
        self.report.inputs += 1;
        self.leaving.clear();
        let judged = self.take_in(arrived, command);
        self.judge(judged);
    }

    pub(crate) fn input_done(&mut self) {
        self.activating = false;
        if let Some(expect) = self.due_answers.pop() {
            self.due_answers.clear();
            let violation = self.broken(
                "§2 every refusal is told",
                None,
                format!(
                    "{:?} should have been answered {} (lease {:?})",
                    expect.origin, expect.code, expect.lease
                ),
            );
            self.judge(Err(violation));
        }
    }

    fn take_in(&mut self, arrived: u64, command: &Command) -> Judged {
        match command {
            Command::Open { session, hello, reference, made_up_name, subscribe } => {
                let worker = hello.worker.clone().unwrap_or_else(|| made_up_name.clone());
                self.note(None, || format!("{session:?} says hello as {worker}, groups {:?}", hello.groups));
                let other = self.sessions.iter().find(|(_, s)| s.worker == worker).map(|(id, _)| *id);
                if let Some(other) = other {
                    self.end_session(other, false);
                }
                let mut pending = BTreeMap::new();
                if let Some(reference) = reference {
                    pending.insert(reference.clone(), Wanted::Welcome);
                }
                self.sessions.insert(
                    *session,
                    Session {
                        worker,
                        groups: hello.groups.iter().cloned().collect(),
                        subscriptions: BTreeMap::new(),
                        silent: false,
                        draining: false,
                        settles: Vec::new(),
                        watching: BTreeMap::new(),
                        pending,
                    },
                );
                if let Some(subscribe) = subscribe {
                    self.subscribed(*session, subscribe);
                }
            }
            Command::SettleOldest { session, ack } => self.oldest(*session, *ack),
            Command::End { session } => {
                self.note(None, || format!("{session:?} ends"));
                self.end_session(*session, false);
            }
            Command::Heard { session } => {
                self.note(None, || format!("{session:?} is heard again"));
                if let Some(session) = self.sessions.get_mut(session) {
                    session.silent = false;
                }
            }
            Command::Submit { origin, task, run_at, submit } => {
                self.submitted(origin, *task, run_at.map(|t| t.0), submit)
            }
            Command::Message { origin, message } => return self.said(origin, message, arrived),
            Command::HangUp { call, .. } => {
                self.calls.remove(call);
            }
            Command::Stored { .. } => {
                let (turn, input) = (self.durable_turn, self.input);
                for task in self.tasks.values_mut().filter(|t| !t.gone && !t.active && t.submit_turn <= turn)
                {
                    task.active = true;
                    task.sure = true;
                    task.active_input = input;
                    if task.recipients.is_empty() && matches!(task.submit.to, Some(Target::All(_))) {
                        let state = match task.submit.complete {
                            Some(Complete::Quorum(_)) => TaskState::Dead,
                            _ => TaskState::Done,
                        };
                        // A dead letter is written by its acceptance alone.
                        let turn = if state == TaskState::Dead { 0 } else { self.turn };
                        task.over =
                            Some(Over { state, at: self.now, turn, result: Payload::NULL, told: false });
                    }
                    for share in &mut task.shares {
                        share.touched = input;
                    }
                }
                let decided =
                    |t: &&Tracked| t.active_input == input && !t.recipients.is_empty() && t.over.is_none();
                let open: Vec<TaskId> =
                    self.by_order.iter().filter(|id| decided(&&self.tasks[id])).copied().collect();
                for id in open {
                    self.decide(id);
                    if let Some(over) = &mut self.tasks.get_mut(&id).expect("it was found").over {
                        over.turn = 0;
                    }
                }
                let (turn, at) = (self.turn, self.now);
                for task in self.tasks.values_mut().filter(|t| t.active_input == input && t.over.is_none()) {
                    if task.expires.is_some_and(|expires| expires <= at) {
                        task.over = Some(Over {
                            state: TaskState::Expired,
                            at,
                            turn,
                            result: Payload::NULL,
                            told: false,
                        });
                    }
                }
            }
            Command::StorageFull(full) => {
                self.note(None, || format!("the disk is {}", if *full { "full" } else { "no longer full" }));
                self.full = *full;
            }
            Command::Drain { .. } => {
                self.note(None, || "the broker drains".into());
                self.draining = true;
            }
        }
        Ok(())
    }

    fn want(&mut self, origin: &Origin, wanted: Wanted) {
        match origin {
            Origin::Session(session, Some(id)) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.pending.insert(id.clone(), wanted);
                }
            }
            Origin::Session(_, None) | Origin::Implied(_) => {}
            Origin::Call(call) => self.calls.entry(*call).or_default().wanted = Some(wanted),
        }
    }

    /// A refusal is told at once, also without an `id`.
    fn want_refusal(&mut self, origin: &Origin, code: ErrorCode, lease: Option<&GivenLease>) {
        self.want(origin, Wanted::Refused);
        self.due_answers.push(Expect { origin: origin.clone(), code, lease: lease.cloned() });
    }

    fn submitted(&mut self, origin: &Origin, id: TaskId, run_at: Option<u64>, submit: &Submit) {
        self.report.submitted += 1;
        if let Origin::Session(session, _) = origin
            && !self.sessions.contains_key(session)
        {
            return;
        }
        let refusal = if self.draining {
            Some(ErrorCode::Draining)
        } else if self.full {
            Some(ErrorCode::StorageFull)
        } else {
            match &submit.to {
                Some(Target::Worker { worker, if_absent: IfAbsent::Fail })
                    if !self.is_present(&submit.queue, worker) =>
                {
                    Some(ErrorCode::NotFound)
                }
                _ => None,
            }
        };
        self.note(Some(id), || format!("{origin:?} submits {id} {}", describe(submit)));
        if let Some(code) = refusal {
            return self.want_refusal(origin, code, None);
        }
        let recipients = match &submit.to {
            Some(Target::All(group)) => {
                let mut found: Vec<(u64, WorkerName)> = self
                    .sessions
                    .values()
                    .filter(|session| group.as_ref().is_none_or(|group| session.groups.contains(group)))
                    .filter_map(|s| Some((s.subscriptions.get(&submit.queue)?.place, s.worker.clone())))
                    .collect();
                found.sort();
                found.into_iter().map(|(_, worker)| worker).collect()
            }
            _ => Vec::new(),
        };
        let now = self.now;
        let delay = submit.delay_ms.map(|delay| now + delay.get() * MS);
        let due = run_at.or(delay).filter(|due| *due > now).unwrap_or(0);
        let shares = match (&submit.to, recipients.len()) {
            (Some(Target::All(_)), count) => count,
            _ => 1,
        };
        let share =
            || Share { from: due, by: due, from_turn: self.turn, touched: self.input, ..Share::default() };
        self.order += 1;
        let tracked = Tracked {
            order: self.order,
            submit: submit.clone(),
            priority: submit.priority.map_or(4, |p| p.get() as u8),
            max_attempts: submit.max_attempts.map_or(5, |n| n.get() as u16),
            ack_timeout: submit.ack_timeout_ms.map_or(30_000, |t| t.get()) * MS,
            accepted_at: now,
            expires: submit.ttl_ms.map(|ttl| now + ttl.get() * MS),
            submit_turn: self.turn,
            sure: false,
            gone: false,
            confirmed: false,
            told_accepted: false,
            active: false,
            active_input: 0,
            recipients,
            shares: (0..shares).map(|_| share()).collect(),
            over: None,
            unclean: false,
            forgotten: false,
        };
        self.tasks.insert(id, tracked);
        self.by_order.push(id);
        let confirm = submit.confirm.unwrap_or(Confirm::Durable);
        if matches!(origin, Origin::Call(_)) || confirm != Confirm::None {
            self.want(origin, Wanted::Accepted(id));
        }
        if submit.watch {
            self.watches(origin, id);
            if let Origin::Session(session, reference) = origin
                && let Some(watching) = self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&id))
            {
                watching.waits_for_accepted = reference.is_some() && confirm != Confirm::None;
            }
        }
    }

    fn watches(&mut self, origin: &Origin, id: TaskId) {
        match origin {
            Origin::Session(session, _) | Origin::Implied(session) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.watching.entry(id).or_default().asked += 1;
                }
            }
            Origin::Call(call) => self.calls.entry(*call).or_default().watching = Some((id, false)),
        }
    }

    fn is_present(&self, queue: &QueueName, worker: &WorkerName) -> bool {
        self.sessions.values().any(|s| s.worker == *worker && s.subscriptions.contains_key(queue))
    }

    fn said(&mut self, origin: &Origin, message: &ClientMessage, arrived: u64) -> Judged {
        let session = match origin {
            Origin::Session(session, _) if self.sessions.contains_key(session) => *session,
            Origin::Session(..) | Origin::Implied(_) => return Ok(()),
            Origin::Call(_) => {
                if let ClientMessage::Watch(m) = message {
                    self.watch(origin, m.task);
                }
                return Ok(());
            }
        };
        let now = self.now;
        if self.trace.is_some() {
            let task = lease_in(message).and_then(|lease| self.leases.get(&lease)).map(|lease| lease.task);
            let worker = self.sessions[&session].worker.clone();
            self.note(task, || {
                format!("{worker} says {message:?} ({origin:?}, arrived at {:.3})", arrived as f64 / 1000.0)
            });
        }
        match message {
            ClientMessage::Subscribe(m) => {
                self.subscribed(session, m);
                self.want(origin, Wanted::Subscribed);
            }
            ClientMessage::SetCredit(m) => {
                let found = self.sessions.get_mut(&session).expect("it was found");
                match found.subscriptions.get_mut(&m.queue) {
                    Some(subscription) => {
                        subscription.credit = m.credit.get();
                        self.want(origin, Wanted::Ok);
                    }
                    None => self.want_refusal(origin, ErrorCode::NotFound, None),
                }
            }
            ClientMessage::Unsubscribe(m) => {
                let found = self.sessions.get_mut(&session).expect("it was found");
                let worker = found.worker.clone();
                match found.subscriptions.remove(&m.queue) {
                    Some(_) => {
                        self.absent_since.insert((m.queue.clone(), worker), now);
                        self.want(origin, Wanted::Ok);
                    }
                    None => self.want_refusal(origin, ErrorCode::NotFound, None),
                }
            }
            ClientMessage::Drain(_) => {
                self.sessions.get_mut(&session).expect("it was found").draining = true;
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Bye(_) => {
                self.end_session(session, true);
                self.leaving.push(session);
            }
            ClientMessage::Ping(_) => self.want(origin, Wanted::Pong),
            ClientMessage::Watch(m) => {
                self.watch(origin, m.task);
            }
            ClientMessage::Unwatch(m) => {
                // The end may be on its way already.
                let ended = self
                    .tasks
                    .get(&m.task)
                    .is_some_and(|found| found.over.is_some() || !found.recipients.is_empty());
                let watching = &mut self.sessions.get_mut(&session).expect("it was found").watching;
                match watching.get_mut(&m.task) {
                    Some(watching) if ended => watching.left = true,
                    _ => _ = watching.remove(&m.task),
                }
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Start(m) => self.touch(origin, session, &m.lease, |lease, timeout| {
                lease.unstarted = false;
                lease.deadline = now + timeout;
            }),
            ClientMessage::Extend(m) => self.touch(origin, session, &m.lease, |lease, timeout| {
                lease.deadline = now + m.ack_timeout_ms.map_or(timeout, |t| t.get() * MS);
            }),
            ClientMessage::Progress(m) => self.touch(origin, session, &m.lease, |lease, timeout| {
                lease.deadline = lease.deadline.max(now + timeout);
            }),
            ClientMessage::Ack(m) => {
                self.settle(origin, session, &m.leases, Verb::Ack, |oracle, id, share| {
                    oracle.acked(id, share, &m.result);
                })
            }
            ClientMessage::Nack(m) => {
                let delay = m.delay_ms.map(|delay| delay.get());
                let retry = m.retry.is_none_or(|flag| flag.0);
                let error = m.error.as_ref().map(|e| e.as_str().to_owned());
                let worker = self.sessions[&session].worker.clone();
                self.settle(origin, session, &m.leases, Verb::Nack, |oracle, id, share| {
                    oracle.charge(
                        id,
                        share,
                        Failure::Nack,
                        Some(worker.clone()),
                        error.clone(),
                        delay,
                        retry,
                    );
                });
            }
            ClientMessage::Release(m) => {
                let delay = m.delay_ms.map_or(0, |delay| delay.get());
                self.settle(origin, session, &m.leases, Verb::Release, |oracle, id, share| {
                    oracle.returned(id, share, Some(session), delay);
                });
            }
            other => {
                return Err(self.broken(
                    "the simulation",
                    None,
                    format!("says what the oracle does not know: {other:?}"),
                ));
            }
        }
        Ok(())
    }

    fn subscribed(&mut self, session: SessionId, m: &Subscribe) {
        let next_place = self.next_place;
        let found = self.sessions.get_mut(&session).expect("it was found");
        let mut new = false;
        let subscription = found.subscriptions.entry(m.queue.clone()).or_insert_with(|| {
            new = true;
            Subscription { place: next_place, credit: 0, auto: false, explicit_start: false }
        });
        subscription.credit = m.credit.map_or(1, |credit| credit.get());
        subscription.auto = m.mode == Some(Mode::Auto);
        subscription.explicit_start = m.explicit_start;
        let worker = found.worker.clone();
        self.next_place += u64::from(new);
        self.absent_since.remove(&(m.queue.clone(), worker));
    }

    /// A client without a library settles the oldest that it holds.
    fn oldest(&mut self, session: SessionId, ack: bool) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        let held = self.leases.iter().filter(|(_, lease)| lease.live && lease.session == session);
        let oldest = held.map(|(id, _)| *id).min_by_key(|id| id.number);
        let origin = Origin::Session(session, None);
        let Some(lease) = oldest else {
            return self.want_refusal(&origin, ErrorCode::LeaseLost, None);
        };
        self.note(Some(self.leases[&lease].task), || format!("{session:?} settles its oldest, ack {ack}"));
        let message: ClientMessage = if ack {
            Ack { leases: lease.into(), result: Payload::NULL }.into()
        } else {
            Nack { leases: lease.into(), error: None, delay_ms: None, retry: None }.into()
        };
        let judged = self.said(&origin, &message, self.now);
        self.judge(judged);
    }

    fn watch(&mut self, origin: &Origin, id: TaskId) {
        let keep = self.keep_ms * MS;
        match self.tasks.get(&id) {
            Some(found) if !found.gone && !found.forgotten => {
                // At the end of its keeping it may be there or not.
                let kept = found
                    .over
                    .as_ref()
                    .is_none_or(|over| over.state == TaskState::Dead || self.now < over.at + keep);
                if kept {
                    self.watches(origin, id);
                    if matches!(origin, Origin::Session(..)) {
                        self.want(origin, Wanted::Ok);
                    }
                }
            }
            _ => self.want_refusal(origin, ErrorCode::NotFound, None),
        }
    }

    fn current(&self, session: SessionId, lease: &GivenLease) -> Option<LeaseId> {
        let id = lease.id()?;
        self.leases.get(&id).filter(|lease| lease.live && lease.session == session).map(|_| id)
    }

    fn touch(
        &mut self,
        origin: &Origin,
        session: SessionId,
        lease: &GivenLease,
        change: impl FnOnce(&mut Lease, u64),
    ) {
        let Some(id) = self.current(session, lease) else {
            return self.want_refusal(origin, ErrorCode::LeaseLost, Some(lease));
        };
        let found = self.leases.get_mut(&id).expect("it is current");
        change(found, self.tasks[&found.task].ack_timeout);
        self.want(origin, Wanted::Ok);
    }

    fn settle(
        &mut self,
        origin: &Origin,
        session: SessionId,
        leases: &LeaseList,
        verb: Verb,
        mut effect: impl FnMut(&mut Oracle, TaskId, usize),
    ) {
        let given: Vec<GivenLease> = match leases {
            LeaseList::One(lease) => vec![lease.clone()],
            LeaseList::Many(leases) => leases.clone(),
        };
        let mut results = Vec::new();
        let mut turn = 0;
        for lease in given {
            let outcome = match self.current(session, &lease) {
                Some(id) => {
                    self.report.settled += 1;
                    let (task, share) = (self.leases[&id].task, self.leases[&id].share);
                    self.release_lease(id);
                    self.sessions.get_mut(&session).expect("it was found").settles.push((id, verb));
                    // Of a task that was decided before, and of a free return, nothing has to be written.
                    let found = &self.tasks[&task];
                    let written = found.over.is_none() && !self.is_maybe_over(found) && verb != Verb::Release;
                    let written_in = if written { self.turn } else { 0 };
                    self.leases.get_mut(&id).expect("it is there").settled = Some((verb, written_in));
                    turn = turn.max(written_in);
                    effect(self, task, share);
                    SettleOutcome::Ok
                }
                None => {
                    let before = &self.sessions[&session].settles;
                    let same = lease.id().filter(|id| before.contains(&(*id, verb)));
                    match same {
                        Some(id) => {
                            turn = turn.max(self.leases[&id].settled.map_or(0, |(_, turn)| turn));
                            SettleOutcome::Already
                        }
                        None => SettleOutcome::LeaseLost,
                    }
                }
            };
            results.push((lease, outcome));
        }
        match leases {
            LeaseList::One(_) => {
                let (lease, outcome) = results.remove(0);
                match outcome {
                    SettleOutcome::LeaseLost => self.want_refusal(origin, ErrorCode::LeaseLost, Some(&lease)),
                    outcome => self.want(origin, Wanted::Settled { lease, outcome, turn }),
                }
            }
            LeaseList::Many(_) if matches!(origin, Origin::Session(_, None)) => {
                for (lease, _) in results.iter().filter(|(_, outcome)| *outcome == SettleOutcome::LeaseLost) {
                    self.want_refusal(origin, ErrorCode::LeaseLost, Some(lease));
                }
            }
            LeaseList::Many(_) => self.want(origin, Wanted::SettledMany { results, turn }),
        }
    }

    // --- The life of a task -----------------------------------------------------------------

    fn release_lease(&mut self, id: LeaseId) {
        let input = self.input;
        let lease = self.leases.get_mut(&id).expect("a lease that ends was given");
        lease.live = false;
        let share = &mut self.tasks.get_mut(&lease.task).expect("it was given").shares[lease.share];
        share.lease = None;
        share.touched = input;
    }

    fn acked(&mut self, id: TaskId, share: usize, result: &Payload) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if found.over.is_some() {
            return;
        }
        found.shares[share].ended = Some(Ended { done: true, turn, result: result.clone() });
        found.shares[share].unsure = false;
        if found.recipients.is_empty() {
            found.over =
                Some(Over { state: TaskState::Done, at: now, turn, result: result.clone(), told: false });
        } else {
            self.decide(id);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a fact of the failure")]
    fn charge(
        &mut self,
        id: TaskId,
        share: usize,
        failure: Failure,
        worker: Option<WorkerName>,
        error: Option<String>,
        delay_ms: Option<u64>,
        retry: bool,
    ) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if found.over.is_some() {
            return;
        }
        let is_loss =
            |failure| matches!(failure, Failure::AckTimeout | Failure::RunLimit | Failure::WorkerLost);
        let of = &mut found.shares[share];
        let first_loss = is_loss(failure) && !of.charges.iter().any(|charge| is_loss(charge.failure));
        of.charges.push(Charge { turn, failure, worker, error });
        of.free = 0;
        let attempt = of.charges.len();
        if !retry || attempt >= usize::from(found.max_attempts) {
            of.ended = Some(Ended { done: false, turn, result: Payload::NULL });
            if found.recipients.is_empty() {
                found.over =
                    Some(Over { state: TaskState::Dead, at: now, turn, result: Payload::NULL, told: false });
            } else {
                self.decide(id);
            }
            return;
        }
        (of.from, of.by) = match delay_ms {
            _ if first_loss => (0, 0),
            Some(delay) => (now + delay * MS, now + delay * MS),
            None => {
                let wait = backoff_ms(&found.submit, attempt);
                (now + (wait * 0.9) as u64 * MS, now + ((wait * 1.1) as u64 + 1) * MS)
            }
        };
        of.from_turn = turn;
    }

    fn returned(&mut self, id: TaskId, share: usize, releaser: Option<SessionId>, delay_ms: u64) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if found.over.is_some() {
            return;
        }
        let of = &mut found.shares[share];
        of.free += 1;
        if of.free > FREE_RETURNS {
            return self.charge(id, share, Failure::Returned, None, None, None, true);
        }
        if let Some(session) = releaser {
            of.avoid = Some((session, now + AVOID_MS * MS));
        }
        let due = if delay_ms == 0 { 0 } else { now + delay_ms * MS };
        (of.from, of.by, of.from_turn) = (due, due, turn);
    }

    /// Whether the recipients that have ended decide a task to all.
    fn decide(&mut self, id: TaskId) {
        let (turn, now) = (self.turn, self.now);
        let state = self.verdict_of(&self.tasks[&id]);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if let Some(state) = state {
            found.over = Some(Over { state, at: now, turn, result: Payload::NULL, told: false });
        }
    }

    fn verdict_of(&self, found: &Tracked) -> Option<TaskState> {
        let ended = |done| {
            let ended = |share: &&Share| {
                !share.unsure && share.ended.as_ref().is_some_and(|ended| ended.done == done)
            };
            found.shares.iter().filter(ended).count() as u64
        };
        verdict(
            found.submit.complete.unwrap_or_default(),
            found.shares.len() as u64,
            ended(true),
            ended(false),
        )
    }

    fn end_session(&mut self, id: SessionId, clean: bool) {
        let Some(session) = self.sessions.remove(&id) else { return };
        for queue in session.subscriptions.keys() {
            self.absent_since.insert((queue.clone(), session.worker.clone()), self.now);
        }
        let held: Vec<LeaseId> =
            self.leases.iter().filter(|(_, l)| l.live && l.session == id).map(|(id, _)| *id).collect();
        for lease in held {
            let (task, share, unstarted) = {
                let lease = &self.leases[&lease];
                (lease.task, lease.share, lease.unstarted)
            };
            self.release_lease(lease);
            if clean || unstarted {
                self.returned(task, share, None, 0);
            } else {
                self.charge(task, share, Failure::WorkerLost, Some(session.worker.clone()), None, None, true);
            }
        }
    }

    // --- Outputs ----------------------------------------------------------------------------

    pub(crate) fn output(&mut self, output: &Output) {
        let judged = match output {
            Output::Send { session, reference, on_write, message } => {
                self.sent(*session, reference.as_ref(), *on_write, message)
            }
            Output::Answer { call, message } => self.answered_call(*call, message),
            Output::Close { session, code, reason } => {
                self.note(None, || format!("{session:?} is closed: {} {reason}", code.0));
                self.require(
                    *code == CloseCode::REPLACED || self.leaving.contains(session),
                    "§5 a socket is closed only for the reasons that are told",
                    None,
                    || format!("{session:?} closed with {}", code.0),
                )
            }
            Output::Ping { session } => {
                let silent = self.sessions.get(session).is_some_and(|s| s.silent);
                self.require(silent, "§1 only a session whose lease ran out is pinged", None, || {
                    format!("{session:?}")
                })
            }
        };
        self.judge(judged);
    }

    fn sent(
        &mut self,
        session: SessionId,
        reference: Option<&RequestId>,
        on_write: Option<LeaseId>,
        message: &ServerMessage,
    ) -> Judged {
        self.mix(message.type_text());
        match message {
            ServerMessage::Task(task) => return self.delivered(session, on_write, task),
            ServerMessage::Revoked(m) => return self.revoked(session, m.lease, m.reason),
            ServerMessage::Event(m) => return self.event(session, m),
            ServerMessage::Finished(m) => {
                self.note(Some(m.task), || format!("{session:?} is told {m:?}"));
                let open = match self.sessions.get_mut(&session).and_then(|s| s.watching.get_mut(&m.task)) {
                    Some(watching) if watching.told < watching.asked => {
                        watching.told += 1;
                        m.seq > watching.last_seq
                    }
                    _ => {
                        return Err(self.broken(
                            "§3 one `finished` for each watch",
                            Some(m.task),
                            format!("{session:?} did not ask for it, or heard it before"),
                        ));
                    }
                };
                self.require(open, "§3 seq grows", Some(m.task), || format!("finished has seq {}", m.seq))?;
                return self.finished(m);
            }
            ServerMessage::GoingAway(_) => return Ok(()),
            _ => {}
        }
        if self.leaving.contains(&session) {
            return Ok(());
        }
        let Some(found) = self.sessions.get_mut(&session) else {
            // Its answer was on the way when it left.
            return Ok(());
        };
        let wanted = reference.and_then(|reference| found.pending.remove(reference));
        let origin = Origin::Session(session, reference.cloned());
        if reference.is_some() && wanted.is_none() {
            return Err(self.broken(
                "§2 exactly one answer",
                None,
                format!("{origin:?} is answered twice: {message:?}"),
            ));
        }
        self.answer(origin, wanted, message)
    }

    fn answered_call(&mut self, call: CallId, message: &ServerMessage) -> Judged {
        self.mix(message.type_text());
        let Some(found) = self.calls.get_mut(&call) else { return Ok(()) };
        if let ServerMessage::Finished(m) = message {
            self.note(Some(m.task), || format!("{call:?} is told {m:?}"));
            let found = self.calls.get_mut(&call).expect("it was found");
            let open = match &mut found.watching {
                Some((task, told)) => *task == m.task && !std::mem::replace(told, true),
                None => false,
            };
            self.require(open, "§3 one `finished` for each watch", Some(m.task), || format!("{call:?}"))?;
            return self.finished(m);
        }
        let wanted = found.wanted.take();
        if wanted.is_none() {
            return Err(self.broken(
                "§2 exactly one answer",
                None,
                format!("{call:?} is answered twice: {message:?}"),
            ));
        }
        self.answer(Origin::Call(call), wanted, message)
    }

    fn answer(&mut self, origin: Origin, wanted: Option<Wanted>, message: &ServerMessage) -> Judged {
        match message {
            ServerMessage::Error(error) => self.refused(&origin, wanted, error),
            ServerMessage::Accepted(m) => {
                self.note(Some(m.task), || format!("{origin:?} is told {m:?}"));
                let id = m.task;
                let Some(found) = self.tasks.get_mut(&id) else {
                    return Err(self.broken("I2", Some(id), "accepted a task that was never submitted"));
                };
                let meant = matches!(wanted, Some(Wanted::Accepted(task)) if task == id);
                let durable = found.submit.confirm.unwrap_or(Confirm::Durable) == Confirm::Durable;
                found.told_accepted = true;
                found.confirmed |= durable;
                let on_disk = found.submit_turn <= self.durable_turn || found.sure;
                if let Origin::Session(session, _) = &origin
                    && let Some(watching) =
                        self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&id))
                {
                    watching.waits_for_accepted = false;
                }
                self.report.confirmed += u64::from(durable);
                self.require(meant, "§2 an answer answers its question", Some(id), || {
                    format!("{origin:?} wanted {wanted:?}")
                })?;
                self.require(
                    !durable || on_disk,
                    "promise 1: accepted only once it survives a power cut",
                    Some(id),
                    || "`accepted` was said before the task was synced".into(),
                )
            }
            ServerMessage::Settled(m) => {
                let told = |wanted: &Wanted| match wanted {
                    Wanted::Settled { lease, outcome, .. } => {
                        m.outcome.0 == Some(*outcome)
                            && m.lease.0 == Some(taskyard_proto::message::lease_text(lease))
                            && m.results.0.is_none()
                    }
                    Wanted::SettledMany { results, .. } => m.results.0.as_ref().is_some_and(|told| {
                        told.len() == results.len()
                            && told.iter().zip(results).all(|(told, (lease, outcome))| {
                                told.outcome == *outcome
                                    && told.lease == taskyard_proto::message::lease_text(lease)
                            })
                    }),
                    _ => false,
                };
                let right = wanted.as_ref().is_some_and(told);
                self.require(
                    right,
                    "I5 a settle counts with the current lease, and with no other",
                    None,
                    || format!("{origin:?}: expected {wanted:?}, got {m:?}"),
                )?;
                let turn = match wanted {
                    Some(Wanted::Settled { turn, .. } | Wanted::SettledMany { turn, .. }) => turn,
                    _ => 0,
                };
                self.require(
                    turn <= self.durable_turn,
                    "§2 a settle is answered only when it is durable",
                    None,
                    || format!("{origin:?}: {m:?}"),
                )
            }
            other => {
                let right = matches!(
                    (&wanted, other),
                    (Some(Wanted::Welcome), ServerMessage::Welcome(_))
                        | (Some(Wanted::Subscribed), ServerMessage::Subscribed(_))
                        | (Some(Wanted::Ok), ServerMessage::Done(_))
                        | (Some(Wanted::Pong), ServerMessage::Pong(_))
                        | (None, ServerMessage::Welcome(_) | ServerMessage::Subscribed(_))
                );
                self.require(right, "§2 an answer answers its question", None, || {
                    format!("{origin:?} wanted {wanted:?} and got {other:?}")
                })
            }
        }
    }

    fn refused(&mut self, origin: &Origin, wanted: Option<Wanted>, error: &Error) -> Judged {
        let at = self.due_answers.iter().position(|expect| {
            let lease = expect.lease.as_ref().map(taskyard_proto::message::lease_text);
            expect.origin == *origin && expect.code == error.code && lease == error.lease.0
        });
        self.note(None, || format!("{origin:?} is refused: {} {}", error.code, error.message.as_str()));
        match at {
            Some(at) => {
                self.due_answers.remove(at);
                Ok(())
            }
            // What a finished task's keeping makes of a late watch is not foreseen.
            None if error.code == ErrorCode::NotFound && wanted.is_none() => Ok(()),
            None if error.code == ErrorCode::LeaseLost => Err(self.broken(
                "F26 a settle that comes in time counts",
                None,
                format!("{origin:?} wanted {wanted:?}, refused with {error:?}"),
            )),
            None => Err(self.broken(
                "§2 nothing is refused without a reason",
                None,
                format!("{origin:?} wanted {wanted:?}, refused with {error:?}"),
            )),
        }
    }

    fn delivered(&mut self, session: SessionId, on_write: Option<LeaseId>, task: &Task) -> Judged {
        let id = task.task;
        self.report.delivered += 1;
        self.report.redelivered += u64::from(task.redelivered);
        self.note(Some(id), || {
            let flag = if task.redelivered { ", redelivered" } else { "" };
            format!(
                "{session:?} gets {id} attempt {}{flag}, lease {:?}",
                task.attempt,
                task.lease.or(on_write)
            )
        });
        let say = |oracle: &Oracle, promise, what: String| Err(oracle.broken(promise, Some(id), what));
        let Some(found) = self.tasks.get(&id) else {
            return say(self, "I2 nothing is delivered that was never submitted", format!("{id}"));
        };
        if found.submit.payload != task.payload
            || found.submit.headers != task.headers
            || found.submit.queue != task.queue
        {
            return say(self, "I2 what is delivered is what was submitted", format!("{task:?}"));
        }
        if found.gone {
            return say(self, "I2 nothing is delivered that is gone", "it was lost in a crash before".into());
        }
        if found.submit_turn > self.durable_turn && !found.sure {
            return say(
                self,
                "promise 6: a task is delivered only once it is durable",
                "it is not on disk yet".into(),
            );
        }
        if let Some(over) = &found.over {
            return say(
                self,
                "I3 a finished task is never delivered again",
                format!("it is {} since {} ms", over.state, over.at / MS),
            );
        }
        let Some(to) = self.sessions.get(&session) else {
            return say(self, "§1 tasks are given to sessions that exist", format!("{session:?} has ended"));
        };
        let index = if matches!(found.submit.to, Some(Target::All(_))) {
            match found.recipients.iter().position(|name| *name == to.worker) {
                Some(index) => index,
                None => {
                    return say(
                        self,
                        "§3 recipients are those subscribed at acceptance",
                        format!("{} was not", to.worker),
                    );
                }
            }
        } else {
            0
        };
        let share = &found.shares[index];
        if let Some(ended) = share.ended.as_ref().filter(|_| !share.unsure) {
            return say(
                self,
                "I3 a settled task is never delivered again",
                format!("recipient {} has ended: {ended:?}", to.worker),
            );
        }
        if let Some(lease) = share.lease {
            return say(
                self,
                "I5 at most one live lease",
                format!("lease {lease} is out with {:?}", self.leases[&lease].session),
            );
        }
        if share.deliveries > 0 && !task.redelivered {
            return say(
                self,
                "I4 every delivery after the first is flagged",
                format!("it was delivered {} times before", share.deliveries),
            );
        }
        if share.deliveries == 0 && !found.unclean && task.redelivered {
            return say(
                self,
                "I4 what is certainly the first delivery is not flagged",
                "it was never delivered".into(),
            );
        }
        let attempt = share.charges.len() as u64 + 1;
        if task.attempt != attempt && !share.unsure {
            return say(
                self,
                "§1 attempt = charged deliveries + 1",
                format!("told {}, is {attempt}: {:?}", task.attempt, share.charges),
            );
        }
        if task.attempt > u64::from(found.max_attempts) || task.max_attempts != u64::from(found.max_attempts)
        {
            return say(
                self,
                "I6 attempts never exceed max_attempts",
                format!("{} of {}", task.attempt, found.max_attempts),
            );
        }
        let target = match &found.submit.to {
            None | Some(Target::Any | Target::All(_)) => true,
            Some(Target::Group(group)) => to.groups.contains(group),
            Some(Target::Worker { worker, if_absent }) => *worker == to.worker || *if_absent == IfAbsent::Any,
        };
        if !target {
            return say(
                self,
                "§3 a task goes to whom it is for",
                format!("{:?} is not for {}", found.submit.to, to.worker),
            );
        }
        let Some(subscription) = to.subscriptions.get(&task.queue) else {
            return say(
                self,
                "§3 after unsubscribe nothing follows",
                format!("{} is not subscribed to {}", to.worker, task.queue),
            );
        };
        let held = self.held(session, &task.queue);
        if held >= subscription.credit {
            return say(
                self,
                "§3 credit is never exceeded",
                format!("{} holds {held} of {}", to.worker, subscription.credit),
            );
        }
        if to.draining || self.draining {
            return say(self, "§3 after drain nothing follows", to.worker.to_string());
        }
        if to.silent {
            return say(self, "§1 a silent session gets nothing until it is heard", to.worker.to_string());
        }
        if share.avoid.is_some_and(|(whom, until)| whom == session && self.now < until) {
            return say(
                self,
                "§1 a released task is not offered to the same worker for 100 ms",
                to.worker.to_string(),
            );
        }
        if self.now < share.from {
            return say(
                self,
                "§1 a task waits for its time",
                format!("due in {} µs: {:?}", share.from - self.now, share.charges.last()),
            );
        }
        if found.expires.is_some_and(|at| at <= self.last_expire) {
            return say(self, "§1 a task is not delivered after its ttl_ms", String::new());
        }
        let lease = match (task.lease, on_write) {
            (Some(lease), None) if !subscription.auto => lease,
            (None, Some(lease)) if subscription.auto => lease,
            other => {
                return say(self, "§3 a lease is null in mode auto, and only there", format!("{other:?}"));
            }
        };
        if self.leases.contains_key(&lease) {
            return say(self, "promise 4: no lease is given twice", format!("{lease}"));
        }
        if task.ack_timeout_ms * MS != found.ack_timeout || task.priority != u64::from(found.priority) {
            return say(self, "§3 the task message says what was submitted", format!("{task:?}"));
        }
        self.in_order(id, index, session)?;
        self.in_turn(id, session)?;

        let (now, input) = (self.now, self.input);
        let explicit = subscription.explicit_start;
        let place = subscription.place;
        let (worker, groups) = (to.worker.clone(), to.groups.clone());
        let found = self.tasks.get_mut(&id).expect("it was found");
        let run_deadline = found.submit.timeout_ms.map(|limit| now + limit.get() * MS);
        let deadline = now + found.ack_timeout;
        found.sure = true;
        let share = &mut found.shares[index];
        share.deliveries += 1;
        share.lease = Some(lease);
        share.touched = input;
        if share.unsure {
            share.unsure = false;
            share.ended = None;
            share.charges.truncate(task.attempt as usize - 1);
        }
        let ring = match &found.submit.to {
            None | Some(Target::Any) => Some((None, Some(place))),
            Some(Target::Group(group)) if groups.contains(group) => Some((Some(group.clone()), Some(place))),
            // Whether it was given as a task to any depends on when its worker left.
            Some(Target::Worker { worker: to, if_absent: IfAbsent::Any }) => {
                Some((None, (*to != worker).then_some(place)))
            }
            _ => None,
        };
        if let Some((group, last)) = ring {
            self.rings.insert((task.queue.clone(), group), last);
        }
        let lease_model = Lease {
            task: id,
            share: index,
            session,
            queue: task.queue.clone(),
            deadline,
            run_deadline,
            unstarted: explicit,
            live: true,
            settled: None,
        };
        self.leases.insert(lease, lease_model);
        Ok(())
    }

    fn held(&self, session: SessionId, queue: &QueueName) -> u64 {
        self.leases
            .values()
            .filter(|lease| lease.live && lease.session == session && lease.queue == *queue)
            .count() as u64
    }

    /// Whether a share has certainly been ready since before the current input.
    fn is_ready(&self, found: &Tracked, share: &Share) -> bool {
        found.active
            && !found.gone
            && found.over.is_none()
            && share.ended.is_none()
            && !share.unsure
            && share.lease.is_none()
            && share.by <= self.last_expire
            && found.expires.is_none_or(|at| at > self.now)
            && !self.is_maybe_over(found)
    }

    /// Whether a session certainly may take a share.
    fn may_take(&self, found: &Tracked, index: usize, id: SessionId) -> bool {
        let session = &self.sessions[&id];
        let queue = &found.submit.queue;
        if found.shares[index].avoid.is_some_and(|(whom, until)| whom == id && until > self.last_expire) {
            return false;
        }
        match &found.submit.to {
            None | Some(Target::Any) => true,
            Some(Target::Group(group)) => session.groups.contains(group),
            Some(Target::Worker { worker, if_absent }) => {
                session.worker == *worker || (*if_absent == IfAbsent::Any && !self.is_present(queue, worker))
            }
            Some(Target::All(_)) => found.recipients.get(index) == Some(&session.worker),
        }
    }

    /// Promise 7, for a delivery that is about to be noted.
    fn in_order(&self, id: TaskId, index: usize, session: SessionId) -> Judged {
        let taken = &self.tasks[&id];
        let fresh = self.activating && taken.active_input == self.input;
        for other_id in &self.by_order {
            let other = &self.tasks[other_id];
            if other.submit.queue != taken.submit.queue || *other_id == id {
                continue;
            }
            let sooner = (u8::MAX - other.priority, other.order) < (u8::MAX - taken.priority, taken.order);
            if !sooner {
                continue;
            }
            for (at, share) in other.shares.iter().enumerate() {
                let waited = share.touched < self.input
                    || (fresh
                        && other.active_input == self.input
                        && other.priority == taken.priority
                        && share.by == 0
                        && share.deliveries == 0);
                if waited && self.is_ready(other, share) && self.may_take(other, at, session) {
                    return Err(self.broken(
                        "promise 7: by priority, then by acceptance; what comes back takes its old place",
                        Some(id),
                        format!(
                            "{} (priority {}, accepted as number {}) was given to {session:?} before {other_id} (priority {}, number {}), share {index}",
                            id, taken.priority, taken.order, other.priority, other.order
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The ring, for a task that has just become durable and goes to any, or to one of a group.
    fn in_turn(&self, id: TaskId, session: SessionId) -> Judged {
        let found = &self.tasks[&id];
        if !(self.activating && found.active_input == self.input) {
            return Ok(());
        }
        let group = match &found.submit.to {
            None | Some(Target::Any) => None,
            Some(Target::Group(group)) => Some(group.clone()),
            _ => return Ok(()),
        };
        let queue = &found.submit.queue;
        let last = match self.rings.get(&(queue.clone(), group.clone())) {
            Some(None) => return Ok(()),
            Some(Some(last)) => *last,
            None => 0,
        };
        let mut open: Vec<(u64, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, s)| group.as_ref().is_none_or(|group| s.groups.contains(group)))
            .filter(|(id, _)| self.is_open(**id, queue))
            .filter_map(|(id, s)| Some((s.subscriptions.get(queue)?.place, *id)))
            .collect();
        open.sort_unstable();
        let expected = open.iter().find(|(place, _)| *place > last).or(open.first());
        self.require(
            expected.is_some_and(|(_, id)| *id == session),
            "§3 round robin: the first with credit after the last picked",
            Some(id),
            || format!("{session:?} got it; the last was at place {last}, open are {open:?}"),
        )
    }

    fn is_open(&self, id: SessionId, queue: &QueueName) -> bool {
        let session = &self.sessions[&id];
        let Some(subscription) = session.subscriptions.get(queue) else { return false };
        !session.silent && !session.draining && !self.draining && self.held(id, queue) < subscription.credit
    }

    fn revoked(&mut self, session: SessionId, id: LeaseId, reason: RevokeReason) -> Judged {
        let Some(lease) = self.leases.get(&id) else {
            return Err(self.broken("§3 only a lease is revoked", None, format!("{id} was never given")));
        };
        let (task, share) = (lease.task, lease.share);
        let (live, of, deadline, run_deadline) =
            (lease.live, lease.session, lease.deadline, lease.run_deadline);
        self.note(Some(task), || format!("{session:?} loses lease {id}: {reason}"));
        self.require(live && of == session, "§3 only a live lease is revoked", Some(task), || {
            format!("{id} of {of:?}")
        })?;
        let now = self.now;
        let worker = self.sessions.get(&session).map(|s| s.worker.clone());
        self.release_lease(id);
        match reason {
            RevokeReason::AckTimeout => {
                self.require(
                    now >= deadline,
                    "promise 3: a lease lasts its ack timeout",
                    Some(task),
                    || format!("{} µs too early", deadline - now),
                )?;
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.silent = true;
                }
                self.charge(task, share, Failure::AckTimeout, worker, None, None, true);
            }
            RevokeReason::RunLimit => {
                self.require(
                    run_deadline.is_some_and(|at| now >= at),
                    "§3 timeout_ms limits a run, and nothing else does",
                    Some(task),
                    || format!("{run_deadline:?}"),
                )?;
                self.charge(task, share, Failure::RunLimit, worker, None, None, true);
            }
            RevokeReason::Expired => {
                let expires = self.tasks[&task].expires;
                self.require(
                    expires.is_some_and(|at| now >= at),
                    "§1 a task expires after its ttl_ms",
                    Some(task),
                    || format!("{expires:?}"),
                )?;
            }
            other => {
                return Err(self.broken("§3 a lease is revoked for a reason", Some(task), format!("{other}")));
            }
        }
        Ok(())
    }

    fn event(&mut self, session: SessionId, m: &taskyard_proto::Event) -> Judged {
        let id = m.task;
        let Some(watching) = self.sessions.get_mut(&session).and_then(|s| s.watching.get_mut(&id)) else {
            return Err(self.broken(
                "§3 events are for those who watch",
                Some(id),
                format!("{session:?}: {m:?}"),
            ));
        };
        let grows = m.seq > watching.last_seq && watching.told < watching.asked;
        let early = watching.waits_for_accepted;
        watching.last_seq = m.seq;
        self.require(grows, "§3 seq grows, and nothing follows `finished`", Some(id), || format!("{m:?}"))?;
        self.require(!early, "§3 `accepted` precedes the first event", Some(id), || format!("{m:?}"))?;
        let found = &self.tasks[&id];
        self.require(
            m.attempt <= u64::from(found.max_attempts),
            "I6 attempts never exceed max_attempts",
            Some(id),
            || format!("{m:?}"),
        )
    }

    fn finished(&mut self, m: &Finished) -> Judged {
        let id = m.task;
        self.report.finished += 1;
        let (turn, now, durable) = (self.turn, self.now, self.durable_turn);
        let to_all = self.tasks.get(&id).is_some_and(|found| matches!(found.submit.to, Some(Target::All(_))));
        if to_all {
            self.finished_by_all(m)?;
        }
        let Some(found) = self.tasks.get_mut(&id) else {
            return Err(self.broken("I2", Some(id), "finished a task that was never submitted"));
        };
        let max_attempts = u64::from(found.max_attempts);
        let Some(over) = &mut found.over else {
            return Err(self.broken(
                "§3 `finished` is told of what has ended",
                Some(id),
                format!("it has not: {m:?}"),
            ));
        };
        over.told = true;
        let over = over.clone();
        let _ = (turn, now);
        self.require(over.state == m.state, "§3 `finished` says what became of it", Some(id), || {
            format!("{} is told as {}", over.state, m.state)
        })?;
        self.require(
            over.turn <= durable,
            "§2 `finished` is told only when it is durable",
            Some(id),
            || format!("{m:?}"),
        )?;
        if to_all {
            return Ok(());
        }
        let share = &self.tasks[&id].shares[0];
        let attempts = share.charges.len() as u64 + u64::from(m.state == TaskState::Done);
        self.require(
            m.attempts == attempts && attempts <= max_attempts,
            "§1 attempts in `finished` are the charged deliveries",
            Some(id),
            || format!("told {}, is {attempts}", m.attempts),
        )?;
        self.require(m.result == over.result, "§3 the result is the ack's", Some(id), || {
            format!("{:?}", m.result)
        })?;
        let why = share.charges.last().and_then(|charge| charge.error.clone());
        let told = m.error.as_ref().map(|error| error.as_str().to_owned());
        let right = match m.state {
            TaskState::Done => told.is_none(),
            TaskState::Dead => told.is_some() && (why.is_none() || told == why),
            _ => told.is_some(),
        };
        self.require(right, "§3 the error says why", Some(id), || format!("told {told:?}, was {why:?}"))
    }

    /// The recipients' outcomes, against what they did.
    fn finished_by_all(&mut self, m: &Finished) -> Judged {
        let id = m.task;
        let promise = "§3 a task to all tells what became of each recipient";
        let found = &self.tasks[&id];
        let (Some(list), Some(delivered), Some(acked), Some(failed)) =
            (&m.recipients, m.delivered, m.acked, m.failed)
        else {
            return Err(self.broken(promise, Some(id), format!("{m:?}")));
        };
        let all = found.shares.len() as u64;
        self.require(list.0.len() as u64 == all, promise, Some(id), || {
            format!("{} of {all} recipients", list.0.len())
        })?;
        let names: BTreeSet<&WorkerName> = list.0.iter().map(|outcome| &outcome.worker).collect();
        self.require(
            names.len() as u64 == all && found.recipients.iter().all(|name| names.contains(name)),
            promise,
            Some(id),
            || format!("{list:?}"),
        )?;
        let failures_first = list.0.is_sorted_by_key(|outcome| outcome.state == TaskState::Done);
        self.require(failures_first, promise, Some(id), || "failures are first".into())?;
        let count = |state| list.0.iter().filter(|outcome| outcome.state == state).count() as u64;
        let expired = found.expires.is_some_and(|at| self.now >= at);
        self.require(count(TaskState::Done) == acked, promise, Some(id), || {
            format!("{acked} acked: {list:?}")
        })?;
        self.require(count(TaskState::Dead) == failed, promise, Some(id), || {
            format!("{failed} failed: {list:?}")
        })?;
        for outcome in &list.0 {
            self.outcome_is_true(id, outcome)?;
        }
        let handed: u64 = found.shares.iter().filter(|share| share.deliveries > 0).count() as u64;
        // Whether one was handed out shortly before a crash, nobody may know.
        let right = if found.unclean { (acked..=all).contains(&delivered) } else { delivered == handed };
        self.require(right, promise, Some(id), || {
            format!("delivered is told as {delivered}, {handed} recipients got it, {acked} acked")
        })?;
        let complete = found.submit.complete.unwrap_or_default();
        let state = verdict(complete, all, acked, failed);
        let right = state == Some(m.state) || (m.state == TaskState::Expired && expired);
        self.require(right, "§3 all, any and quorum decide", Some(id), || {
            format!(
                "{complete:?} of {all}, {acked} acked and {failed} failed make {state:?}, told {}",
                m.state
            )
        })?;
        if self.tasks[&id].over.is_none() {
            // An absent recipient has decided it; when, only the broker knows.
            let over = Over { state: m.state, at: self.now, turn: 0, result: Payload::NULL, told: true };
            self.tasks.get_mut(&id).expect("it was found").over = Some(over);
        }
        Ok(())
    }

    fn outcome_is_true(&self, id: TaskId, outcome: &RecipientOutcome) -> Judged {
        let found = &self.tasks[&id];
        let at =
            found.recipients.iter().position(|name| *name == outcome.worker).expect("names were compared");
        let share = &found.shares[at];
        let ended = share.ended.as_ref();
        let absent = outcome.error.as_ref().is_some_and(|error| error.as_str() == "absent");
        let right = match outcome.state {
            TaskState::Done => {
                ended.is_some_and(|ended| ended.done && ended.result == outcome.result)
                    && outcome.attempts == share.charges.len() as u64 + 1
            }
            TaskState::Dead if absent => {
                share.lease.is_none() && self.now >= found.accepted_at + ABSENT_MS * MS
            }
            TaskState::Dead => {
                ended.is_some_and(|ended| !ended.done) && outcome.attempts == share.charges.len() as u64
            }
            _ => ended.is_none() || share.unsure,
        };
        self.require(right, "§3 a task to all tells what became of each recipient", Some(id), || {
            format!("{outcome:?}, in truth {share:?}")
        })
    }

    // --- Between inputs ---------------------------------------------------------------------

    /// All that is due at `horizon` has been done.
    pub(crate) fn expired(&mut self, horizon: u64) {
        self.last_expire = self.last_expire.max(horizon);
        self.activating = false;
        let late = self.leases.iter().find(|(_, l)| {
            l.live && (l.deadline <= horizon || l.run_deadline.is_some_and(|at| at <= horizon))
        });
        if let Some((id, lease)) = late {
            let violation = self.broken(
                "F17 a lease ends at its ack timeout or run limit",
                Some(lease.task),
                format!("{id} is out still"),
            );
            self.judge(Err(violation));
        }
        let (turn, at) = (self.turn, self.now);
        for task in self.tasks.values_mut() {
            if task.active
                && !task.gone
                && task.over.is_none()
                && task.expires.is_some_and(|at| at <= horizon)
            {
                task.over =
                    Some(Over { state: TaskState::Expired, at, turn, result: Payload::NULL, told: false });
            }
        }
    }

    /// After a turn nothing may wait for somebody who has credit for it.
    pub(crate) fn turn_done(&mut self) {
        let open: Vec<(SessionId, QueueName)> = self
            .sessions
            .iter()
            .flat_map(|(id, s)| s.subscriptions.keys().map(|queue| (*id, queue.clone())))
            .filter(|(id, queue)| self.is_open(*id, queue))
            .collect();
        if open.is_empty() {
            return;
        }
        for (id, found) in &self.tasks {
            for (index, share) in found.shares.iter().enumerate() {
                if !self.is_ready(found, share) {
                    continue;
                }
                for (session, _) in open.iter().filter(|(_, queue)| *queue == found.submit.queue) {
                    if self.may_take(found, index, *session) {
                        let violation = self.broken(
                            "I7 no task waits while somebody who may take it has credit",
                            Some(*id),
                            format!("{} has credit for it", self.sessions[session].worker),
                        );
                        return self.judge(Err(violation));
                    }
                }
            }
        }
    }

    /// Whether a task to all may have been decided by what only the broker knows: how a recipient stood before a
    /// crash, or that one was absent for too long.
    fn is_maybe_over(&self, found: &Tracked) -> bool {
        found.shares.iter().any(|share| share.unsure) || self.is_maybe_absent(found)
    }

    /// Whether a recipient may have been given up as absent.
    fn is_maybe_absent(&self, found: &Tracked) -> bool {
        !found.recipients.is_empty() && self.now >= found.accepted_at + ABSENT_MS * MS
    }

    // --- What can be looked up --------------------------------------------------------------

    /// Looks everything up, as a curious operator would.
    pub(crate) fn probe(&mut self, now: u64, shard: &Shard) {
        self.now = now;
        let judged = self.all_visible(shard).and_then(|()| self.counts_agree(shard));
        self.judge(judged);
    }

    /// Remembers what a queue counts, to compare it after an orderly stop.
    pub(crate) fn remember_sums(&mut self, now: u64, shard: &Shard) {
        let views = shard.queue_views(Time(now));
        self.sums_at_stop =
            Some(views.into_iter().map(|view| (view.queue, view.counts.iter().sum())).collect());
    }

    fn all_visible(&mut self, shard: &Shard) -> Judged {
        for id in self.by_order.clone() {
            let found = &self.tasks[&id];
            let view = shard.task_view(id, Time(self.now));
            if found.gone || found.forgotten {
                continue;
            }
            let Some(view) = view else {
                let kept_out = match &found.over {
                    Some(over) => over.state != TaskState::Dead && self.now >= over.at + self.keep_ms * MS,
                    None => self.is_maybe_over(found),
                };
                self.require(kept_out, "I1 an accepted task never vanishes", Some(id), || {
                    "it cannot be looked up".into()
                })?;
                self.tasks.get_mut(&id).expect("it was found").forgotten = true;
                continue;
            };
            let leased = found.shares.iter().any(|share| share.lease.is_some());
            let absent = self.is_maybe_over(found);
            let right = match &found.over {
                Some(over) => view.state == over.state,
                None if leased => view.state == TaskState::Leased,
                None => absent || !(view.state.is_final() || view.state == TaskState::Leased),
            };
            self.require(right, "I1 a task's state is what happened to it", Some(id), || {
                format!("it is shown as {}, in truth {:?}, leased {leased}", view.state, found.over)
            })?;
        }
        Ok(())
    }

    fn counts_agree(&mut self, shard: &Shard) -> Judged {
        let mut states: BTreeMap<(&QueueName, TaskState), u64> = BTreeMap::new();
        let mut forgotten: BTreeMap<&QueueName, u64> = BTreeMap::new();
        for (id, found) in self.tasks.iter().filter(|(_, found)| !found.gone) {
            match shard.task_view(*id, Time(self.now)) {
                Some(view) => *states.entry((&found.submit.queue, view.state)).or_default() += 1,
                None => *forgotten.entry(&found.submit.queue).or_default() += 1,
            }
        }
        for view in shard.queue_views(Time(self.now)) {
            let sum: u64 = view.counts.iter().sum();
            let forgotten = forgotten.get(&view.queue).copied().unwrap_or(0);
            let known: u64 = TaskState::ALL
                .iter()
                .map(|state| states.get(&(&view.queue, *state)).copied().unwrap_or(0))
                .sum();
            self.require(sum == known + forgotten, "I6 counts add up to what was accepted", None, || {
                format!(
                    "queue {}: {:?} make {sum}, accepted were {}",
                    view.queue,
                    view.counts,
                    known + forgotten
                )
            })?;
            for state in TaskState::ALL {
                let counted = view.counts[*state as usize];
                let seen = states.get(&(&view.queue, *state)).copied().unwrap_or(0);
                let ended = state.is_final() && *state != TaskState::Dead;
                let right =
                    if ended { counted >= seen && counted <= seen + forgotten } else { counted == seen };
                self.require(right, "I6 counts agree with what can be looked up", None, || {
                    format!(
                        "queue {}: {counted} {state}, seen are {seen}, {forgotten} are no longer kept",
                        view.queue
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Whether every task that exists has ended.
    pub(crate) fn all_over(&self, shard: &Shard) -> bool {
        self.tasks
            .iter()
            .filter(|(_, found)| !found.gone && !found.forgotten && found.over.is_none())
            .all(|(id, _)| shard.task_view(*id, Time(self.now)).is_none_or(|view| view.state.is_final()))
    }

    /// What is still open, for a failure's message.
    pub(crate) fn open_tasks(&self) -> Option<TaskId> {
        self.tasks
            .iter()
            .find(|(_, found)| !found.gone && !found.forgotten && found.over.is_none())
            .map(|(id, _)| *id)
    }

    /// Every request of a session that lives has been answered, and every watch has its end.
    pub(crate) fn all_answered(&mut self) {
        let mut judged = Ok(());
        for (id, session) in &self.sessions {
            if let Some((reference, wanted)) = session.pending.iter().next() {
                judged = Err(self.broken(
                    "§2 exactly one answer",
                    None,
                    format!("{id:?} never got the answer to {reference:?}: {wanted:?}"),
                ));
            }
            for (task, watching) in &session.watching {
                if watching.told == 0 && !watching.left {
                    judged = Err(self.broken(
                        "§3 one `finished` for each watch",
                        Some(*task),
                        format!("{id:?} never heard the end"),
                    ));
                }
            }
        }
        for (id, call) in &self.calls {
            if call.wanted.is_some() || call.watching.is_some_and(|(_, told)| !told) {
                judged = Err(self.broken(
                    "§3 one `finished` for each watch",
                    call.watching.map(|(task, _)| task),
                    format!("{id:?} never heard the end"),
                ));
            }
        }
        self.judge(judged);
    }

    /// How many tasks are dead letters.
    pub(crate) fn dead(&self, shard: &Shard) -> usize {
        let is_dead = |id: &TaskId| {
            shard.task_view(*id, Time(self.now)).is_some_and(|view| view.state == TaskState::Dead)
        };
        self.tasks.keys().filter(|id| is_dead(id)).count()
    }

    pub(crate) fn now(&mut self, now: u64) {
        self.now = now;
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
        _ => None,
    }
}

fn describe(submit: &Submit) -> String {
    let ms = |name: &str, value: Option<u64>| value.map_or(String::new(), |value| format!(" {name} {value}"));
    format!(
        "to {} {:?}{}{}{}{}{}{}{}{}",
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
    )
}
