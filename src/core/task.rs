//! A task that has not ended, and how it stands with each of its recipients.

use taskyard_proto::{ErrorText, LeaseId, Payload, TaskState, WorkerName};

use super::command::{CallId, SessionId};
use super::events::History;
use super::record::{FailedAttempt, Failure, TaskSpec};
use super::time::Time;

/// After this many free returns in a row the next one is charged: a task that nobody wants to
/// start must come to an end too.
pub(super) const FREE_RETURNS_MAX: u8 = 100;

/// How many failed attempts a history shows; older ones are counted, not shown.
pub(super) const HISTORY_MAX: usize = 100;

/// Small: there may be ten million of them. What most tasks never have is in boxes.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) spec: TaskSpec,
    /// What the worker gets; null too while it is in the store alone: see [`Task::payload`].
    pub(super) payload: Payload,
    pub(super) payload_bytes: u32,
    pub(super) queue: u32,
    /// How many events there were, counted from [`Task::event_seq`]'s base.
    pub(super) events: u32,
    /// Whether the store holds it, and where its payload is.
    pub(super) held: Held,
    /// It has ended, and its end was told; leases that are still out may be settled to no effect.
    pub(super) decided: bool,
    /// Somebody cancelled it while it was with a worker: an ack finishes it, everything else cancels it.
    pub(super) cancelling: bool,
    /// An earlier process accepted it: its events are counted from the start's number on.
    pub(super) restored: bool,
    /// The share of the only recipient, or of the first.
    pub(super) first: Share,
}

/// Where a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// In memory, and the store does not hold the task yet: it is nobody's to take.
    Unstored,
    /// The same, but it may be handed out before.
    Early,
    /// In memory.
    Here,
    /// In memory, and with the worker that it is for.
    Out,
    /// In the store alone.
    Away,
    /// There too, and it was asked for.
    Coming,
    /// In memory, and it was away.
    Back,
}

/// What a task takes in memory: its payload is `held` somewhere, and has so many bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weighed {
    pub(super) queue: u32,
    pub(super) held: Held,
    pub(super) bytes: u64,
    pub(super) weight: u64,
}

/// Who wants to hear about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watcher {
    /// Events and the end.
    Session(SessionId),
    /// The end alone.
    Call(CallId),
    /// Events and the end, for a request.
    Follower(CallId),
}

/// A recipient's share of a task.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) state: ShareState,
    /// Charged deliveries that failed.
    pub(super) charged: u16,
    /// Whether the first charged loss is behind it.
    pub(super) lost: bool,
    /// Whether it was, or may have been, handed out before.
    pub(super) past: Past,
    /// Whether the store knows that it was handed out.
    pub(super) delivered_stored: bool,
    /// Whether [`Fanout::delivered`] counts it: certainly handed out, while `delivered` is true after
    /// a crash of whatever may have been.
    pub(super) counted: bool,
    /// Whether the store knows of the lease that is out: it is of a session that may be resumed.
    pub(super) lease_stored: bool,
    pub(super) free_returns: u8,
    pub(super) notes: Option<Box<Notes>>,
}

/// What was of a share before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// It was handed to nobody yet.
    Never,
    /// It was handed out.
    Out,
    /// And came back, by the end of the lease, or may have.
    Back(Again),
}

/// Why a task is handed out again; the label `reason` of `taskyard_redeliveries_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Released,
    Nacked,
    TimedOut,
    WorkerLost,
    Restart,
    Redriven,
}

impl Again {
    /// All of them, in their order.
    pub(super) const ALL: [Again; 6] =
        [Again::Released, Again::Nacked, Again::TimedOut, Again::WorkerLost, Again::Restart, Again::Redriven];

    /// The words for them, in the same order.
    pub(super) const WORDS: [&str; 6] =
        ["released", "nacked", "timed_out", "worker_lost", "restart", "redriven"];
}

impl Past {
    /// The same, where the process before may have handed it out and did not say.
    pub(super) fn or_lost_to_a_restart(self, unknown: bool) -> Past {
        match self {
            Past::Never if unknown => Past::Back(Again::Restart),
            past => past,
        }
    }

    /// It gets new attempts.
    pub(super) fn redriven(self) -> Past {
        match self {
            Past::Never => self,
            _ => Past::Back(Again::Redriven),
        }
    }

    /// It comes back unharmed; from a worker that was lost, if that is known already.
    pub(super) fn returned(self) -> Past {
        match self {
            Past::Back(Again::WorkerLost) => self,
            _ => Past::Back(Again::Released),
        }
    }
}

impl From<Failure> for Past {
    fn from(failure: Failure) -> Past {
        Past::Back(match failure {
            Failure::Nack => Again::Nacked,
            Failure::AckTimeout | Failure::RunLimit => Again::TimedOut,
            Failure::WorkerLost => Again::WorkerLost,
            Failure::Returned | Failure::Absent => Again::Released,
        })
    }
}

/// Where a share is. Each state carries just its own data.
#[derive(Debug)]
pub(super) enum ShareState {
    /// Waits for its time.
    Scheduled { due: Time },
    /// Waits for a worker.
    Queued { since: Time },
    /// Is with a worker. Boxed: few are, of those that wait.
    Leased(Box<Lease>),
    /// Waits out a back-off.
    Retrying { due: Time },
    /// Has ended.
    Over(TaskState),
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) number: u64,
    /// The slot that the lease names: the task's, but for one that was given before a restart.
    pub(super) slot: u32,
    pub(super) session: SessionId,
    /// Its index in the session's list of leases.
    pub(super) held_at: u32,
    pub(super) since: Time,
    pub(super) deadline: Time,
    /// When a timer of its own goes off; else that of its session looks at the deadline in time.
    pub(super) timer: Option<Time>,
    pub(super) started: bool,
    /// Not begun, by a worker that asked to say when it begins: its loss is not charged.
    pub(super) unstarted: bool,
}

/// What most shares never have; and what most tasks never have, with the share of the first recipient.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// Not to be offered to this session before then: it released the task.
    pub(super) avoid: Option<(SessionId, Time)>,
    pub(super) history: Vec<FailedAttempt>,
    /// Tasks to all: what the recipient's ack said.
    pub(super) result: Payload,
    pub(super) percent: Option<f64>,
    /// Tasks to all: what the recipient said when it broke off.
    pub(super) broken_off: Option<ErrorText>,
    /// Of the task: who wants to hear about it.
    watchers: Vec<Watcher>,
    /// Of the task: what those who watch were told, for those who come back; none: nobody ever watched.
    history_told: Option<Box<History>>,
    /// Of a task to all: the shares of the others, and the counts of all.
    fanout: Option<Box<Fanout>>,
}

/// The recipients of a task to all.
#[derive(Debug, Default)]
pub(super) struct Fanout {
    /// All recipients but the first.
    pub(super) others: Vec<Share>,
    pub(super) delivered: u64,
    pub(super) acked: u64,
    pub(super) failed: u64,
    /// How many shares are in each state: scheduled, queued, leased, retrying.
    pub(super) standing: [u32; 4],
}

/// Where [`Fanout::standing`] counts those that are with a worker, and those that wait out a back-off.
const LEASED: usize = 2;
const RETRYING: usize = 3;

impl Lease {
    /// The lease as its holder knows it.
    pub(super) fn id(&self, recipient: u32) -> LeaseId {
        LeaseId { number: self.number, slot: self.slot, recipient }
    }
}

impl Share {
    pub(super) fn new(state: ShareState) -> Share {
        Share {
            state,
            charged: 0,
            lost: false,
            past: Past::Never,
            delivered_stored: false,
            counted: false,
            lease_stored: false,
            free_returns: 0,
            notes: None,
        }
    }

    pub(super) fn notes_mut(&mut self) -> &mut Notes {
        self.notes.get_or_insert_default()
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        match &self.state {
            ShareState::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    pub(super) fn lease_mut(&mut self) -> Option<&mut Lease> {
        match &mut self.state {
            ShareState::Leased(lease) => Some(lease),
            _ => None,
        }
    }

    /// Whether `session` may be offered the task at `now`.
    pub(super) fn avoids(&self, session: SessionId, now: Time) -> bool {
        let avoid = self.notes.as_ref().and_then(|notes| notes.avoid);
        avoid.is_some_and(|(whom, until)| whom == session && now < until)
    }

    pub(super) fn record_failure(&mut self, attempt: FailedAttempt) {
        let history = &mut self.notes_mut().history;
        if history.len() == HISTORY_MAX {
            history.remove(0);
        }
        history.push(attempt);
    }

    /// What went wrong last; what went wrong before it went well is over.
    pub(super) fn last_error(&self) -> Option<ErrorText> {
        let notes =
            self.notes.as_ref().filter(|_| !matches!(self.state, ShareState::Over(TaskState::Done)))?;
        if let Some(error) = &notes.broken_off {
            return Some(error.clone());
        }
        let last = notes.history.last()?;
        Some(last.error.clone().unwrap_or_else(|| ErrorText::new(last.reason.as_str())))
    }

    pub(super) fn history(&self) -> &[FailedAttempt] {
        self.notes.as_ref().map_or(&[], |notes| &notes.history)
    }
}

impl ShareState {
    pub(super) fn task_state(&self) -> TaskState {
        match self {
            ShareState::Scheduled { .. } => TaskState::Scheduled,
            ShareState::Queued { .. } => TaskState::Queued,
            ShareState::Leased(_) => TaskState::Leased,
            ShareState::Retrying { .. } => TaskState::Retrying,
            ShareState::Over(state) => *state,
        }
    }

    /// The index of this state in [`Fanout::standing`]; none once it is over.
    pub(super) fn standing(&self) -> Option<usize> {
        match self {
            ShareState::Scheduled { .. } => Some(0),
            ShareState::Queued { .. } => Some(1),
            ShareState::Leased(_) => Some(LEASED),
            ShareState::Retrying { .. } => Some(RETRYING),
            ShareState::Over(_) => None,
        }
    }
}

impl Task {
    /// A task that nobody is offered yet.
    #[inline]
    pub(super) fn new(
        spec: TaskSpec,
        payload: Payload,
        queue: u32,
        first: Share,
        fanout: Option<Fanout>,
    ) -> Task {
        let payload_bytes = u32::try_from(payload.bytes().len()).expect("the door lets 16 MiB in");
        let mut task = Task {
            spec,
            payload,
            payload_bytes,
            queue,
            events: 0,
            held: Held::Unstored,
            decided: false,
            cancelling: false,
            restored: false,
            first,
        };
        if let Some(fanout) = fanout {
            task.first.notes_mut().fanout = Some(Box::new(fanout));
        }
        task
    }

    /// What the worker gets; none: it left memory, and is in the store.
    pub(super) fn payload(&self) -> Option<&Payload> {
        (!matches!(self.held, Held::Away | Held::Coming)).then_some(&self.payload)
    }

    /// Whether the store holds it, or need not before it is handed out.
    pub(super) fn is_durable(&self) -> bool {
        self.held != Held::Unstored
    }

    /// The bytes of its payload, wherever that is.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.payload_bytes)
    }

    /// The number of its latest event; 0: there was none. `base` is where this process began to count those of tasks
    /// that it did not accept.
    pub(super) fn event_seq(&self, base: u64) -> u64 {
        u64::from(self.events) + if self.restored { base } else { 0 }
    }

    /// Counts an event; whether it is to be told and remembered. Beyond four billion the number stands still.
    #[inline]
    pub(super) fn count_event(&mut self) -> bool {
        self.events = self.events.saturating_add(1);
        self.told().is_some()
    }

    /// What happened before was told to nobody who is still here: the numbers of events begin with the process.
    pub(super) fn count_events_anew(&mut self) {
        (self.events, self.restored) = (0, true);
    }

    pub(super) fn watchers(&self) -> &[Watcher] {
        self.first.notes.as_ref().map_or(&[], |notes| &notes.watchers)
    }

    /// Adds a watcher; whether it is a new one.
    pub(super) fn watch(&mut self, watcher: Watcher) -> bool {
        let watchers = &mut self.first.notes_mut().watchers;
        let new = !watchers.contains(&watcher);
        if new {
            watchers.push(watcher);
        }
        new
    }

    pub(super) fn unwatch(&mut self, watcher: Watcher) {
        if let Some(notes) = &mut self.first.notes {
            notes.watchers.retain(|other| *other != watcher);
        }
    }

    pub(super) fn take_watchers(&mut self) -> Vec<Watcher> {
        self.first.notes.as_mut().map(|notes| std::mem::take(&mut notes.watchers)).unwrap_or_default()
    }

    /// What those who watch were told; none: nobody ever watched.
    pub(super) fn told(&self) -> Option<&History> {
        self.first.notes.as_ref()?.history_told.as_deref()
    }

    pub(super) fn told_mut(&mut self) -> Option<&mut History> {
        self.first.notes.as_mut()?.history_told.as_deref_mut()
    }

    pub(super) fn remember_told(&mut self, history: History) {
        self.first.notes_mut().history_told = Some(Box::new(history));
    }

    pub(super) fn take_told(&mut self) -> Option<Box<History>> {
        self.first.notes.as_mut()?.history_told.take()
    }

    /// The recipients of a task to all.
    pub(super) fn fanout(&self) -> Option<&Fanout> {
        self.first.notes.as_ref()?.fanout.as_deref()
    }

    pub(super) fn fanout_mut(&mut self) -> Option<&mut Fanout> {
        self.first.notes.as_mut()?.fanout.as_deref_mut()
    }

    pub(super) fn share(&self, recipient: u32) -> Option<&Share> {
        match recipient {
            0 => Some(&self.first),
            n => self.fanout()?.others.get(n as usize - 1),
        }
    }

    pub(super) fn share_mut(&mut self, recipient: u32) -> Option<&mut Share> {
        match recipient {
            0 => Some(&mut self.first),
            n => self.fanout_mut()?.others.get_mut(n as usize - 1),
        }
    }

    pub(super) fn recipients(&self) -> u32 {
        1 + self.fanout().map_or(0, |fanout| fanout.others.len() as u32)
    }

    /// Charged deliveries, to all recipients together. The last one of a task to one worker is charged as that ends, and
    /// not counted yet.
    pub(super) fn attempts(&self) -> u32 {
        if self.fanout().is_none() {
            return u32::from(self.first.charged);
        }
        let done = |share: &Share| u32::from(matches!(share.state, ShareState::Over(TaskState::Done)));
        self.shares().map(|share| u32::from(share.charged) + done(share)).fold(0, u32::saturating_add)
    }

    /// Which attempt the latest is; of a task to all, of the recipient that had the most.
    pub(super) fn attempt(&self) -> u32 {
        // The next one, but where none is to come.
        let next =
            |share: &Share| !matches!(share.state, ShareState::Over(state) if state != TaskState::Done);
        let attempt = |share: &Share| u32::from(share.charged) + u32::from(next(share));
        self.shares().map(attempt).max().unwrap_or_default().min(u32::from(self.spec.max_attempts))
    }

    /// What the latest failed attempt said; of a dead letter to all, how many failed.
    pub(super) fn error(&self) -> Option<ErrorText> {
        match self.fanout().filter(|_| self.state() == TaskState::Dead) {
            None => self.shares().find_map(Share::last_error),
            Some(_) if self.spec.recipients.is_empty() => Some(ErrorText::new("nobody was subscribed")),
            Some(fanout) => {
                let all = self.spec.recipients.len();
                Some(ErrorText::new(&format!("{} of {all} recipients failed", fanout.failed)))
            }
        }
    }

    /// How it stands with each recipient, or with the only one.
    pub(super) fn shares(&self) -> impl Iterator<Item = &Share> {
        std::iter::once(&self.first).chain(self.fanout().into_iter().flat_map(|fanout| &fanout.others))
    }

    /// The worker that a recipient of a task to all is.
    pub(super) fn recipient_name(&self, recipient: u32) -> Option<&WorkerName> {
        self.spec.recipients.get(recipient as usize)
    }

    /// The task's state; of a task to all, the liveliest of its recipients'.
    pub(super) fn state(&self) -> TaskState {
        // What is decided and still here is a dead letter: every other end leaves the slab, or is
        // no longer found by its id.
        if self.decided {
            return TaskState::Dead;
        }
        match self.fanout() {
            None => self.first.state.task_state(),
            Some(fanout) => match fanout.standing {
                [_, _, leased, _] if leased > 0 => TaskState::Leased,
                [_, queued, _, _] if queued > 0 => TaskState::Queued,
                [_, _, _, retrying] if retrying > 0 => TaskState::Retrying,
                [scheduled, _, _, _] if scheduled > 0 => TaskState::Scheduled,
                _ => TaskState::Dead,
            },
        }
    }

    /// Moves a share to another state, and its queue's counts with it; gives back the old state.
    #[inline]
    pub(super) fn shift(
        &mut self,
        recipient: u32,
        state: ShareState,
        counts: &mut [u64; TaskState::ALL.len()],
    ) -> ShareState {
        if recipient == 0 && self.fanout().is_none() {
            // The task stands as its only share does.
            let old = std::mem::replace(&mut self.first.state, state);
            let (before, after) = (old.task_state(), self.first.state.task_state());
            if before != after && !self.decided {
                counts[before as usize] -= 1;
                counts[after as usize] += 1;
            }
            return old;
        }
        self.shift_one_of_many(recipient, state, counts)
    }

    fn shift_one_of_many(
        &mut self,
        recipient: u32,
        state: ShareState,
        counts: &mut [u64; TaskState::ALL.len()],
    ) -> ShareState {
        let before = self.state();
        let enters = state.standing();
        let share = self.share_mut(recipient).expect("a share that is shifted exists");
        let old = std::mem::replace(&mut share.state, state);
        if let Some(fanout) = self.fanout_mut() {
            if let Some(at) = old.standing() {
                fanout.standing[at] -= 1;
            }
            if let Some(at) = enters {
                fanout.standing[at] += 1;
            }
        }
        let after = self.state();
        if before != after && !self.decided {
            counts[before as usize] -= 1;
            counts[after as usize] += 1;
        }
        old
    }

    /// Ends a share of a task that was decided without it.
    pub(super) fn lay(&mut self, recipient: u32) {
        let Some(share) = self.share_mut(recipient) else { return };
        let before = std::mem::replace(&mut share.state, ShareState::Over(TaskState::Cancelled));
        if let (Some(fanout), Some(at)) = (self.fanout_mut(), before.standing()) {
            fanout.standing[at] -= 1;
        }
    }

    /// Whether it is with a worker, or waits for its next attempt, for any of its recipients.
    pub(super) fn is_under_way(&self) -> bool {
        match self.fanout() {
            None => matches!(self.first.state, ShareState::Leased(_) | ShareState::Retrying { .. }),
            Some(fanout) => fanout.standing[LEASED] + fanout.standing[RETRYING] > 0,
        }
    }

    /// Whether any of its recipients has it.
    pub(super) fn is_leased(&self) -> bool {
        match self.fanout() {
            None => self.first.lease().is_some(),
            Some(fanout) => fanout.standing[LEASED] > 0,
        }
    }

    /// What it takes in memory, to be counted when it has ended.
    pub(super) fn weighed(&self) -> Weighed {
        Weighed { queue: self.queue, held: self.held, bytes: self.bytes(), weight: self.weight() }
    }

    /// What a task weighs against the broker's memory, in bytes: its payload only while that is there.
    #[inline]
    pub(super) fn weight(&self) -> u64 {
        let payload = if self.payload().is_some() { self.bytes() } else { 0 };
        let headers: usize = match self.spec.headers.is_empty() {
            true => 0,
            false => self.spec.headers.iter().map(|(name, value)| name.len() + value.len()).sum(),
        };
        let keys = if self.spec.keys.is_some() { TERMS_BYTES } else { 0 };
        payload + 64 * self.spec.recipients.len() as u64 + headers as u64 + keys + TASK_OVERHEAD_BYTES
    }
}

/// What a task takes beside its payload, rounded up: its row, its number in the tables, its entry in a lane, the log's
/// row; and what its payload takes beside its bytes.
pub(super) const TASK_OVERHEAD_BYTES: u64 = 256;

/// What the terms of a task take that was given keys, and shares them with few or none.
const TERMS_BYTES: u64 = 384;

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use taskyard_proto::{Complete, QueueName, Target, TaskId};

    use super::*;
    use crate::core::record::Terms;
    use crate::core::retry::RetryPolicy;

    /// A task as any other, that was accepted then.
    pub(in crate::core) fn accepted_at(micros: u64) -> Task {
        let terms = Terms {
            queue: QueueName::parse("q").unwrap(),
            ttl_us: None,
            priority: 4,
            max_attempts: 5,
            ack_timeout_ms: 30_000,
            run_limit_ms: None,
            retry: RetryPolicy::default(),
            target: Target::Any,
            complete: Complete::All,
            recipients: Arc::default(),
            account: None,
            keys: None,
            headers: Default::default(),
        };
        let spec = TaskSpec::new(TaskId(u128::from(micros)), micros, Time(micros), Arc::new(terms));
        let first = Share::new(ShareState::Queued { since: Time(micros) });
        Task::new(spec, Payload::NULL, 0, first, None)
    }

    /// Ten million tasks wait in a gigabyte or so: each field counts.
    #[test]
    fn a_task_stays_small() {
        assert_eq!((size_of::<Share>(), size_of::<Task>()), (32, 96));
    }
}
