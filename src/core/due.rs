//! What happens when its time has come.

use slab::Slab;
use taskyard_proto::{RevokeReason, TaskState};

use super::command::SessionId;
use super::effect::{Effects, Output};
use super::fanout::Fate;
use super::queue::{Queue, Tally};
use super::record::Failure;
use super::session::SubscriptionKey;
use super::shard::{ABSENT_MS, Shard};
use super::task::{Lease, Share, ShareState, Task};
use super::time::Time;
use super::timers::Timer;
use crate::slots::Slots;

/// So long before its end a lease gets a timer of its own, in milliseconds. Most are settled long before. A session's are all
/// looked at when the first of the others ends: at most so often, and no delivery has to set a timer.
const LEASES_SOON_MS: u64 = 1000;

impl Shard {
    pub(super) fn current_lease(&self, task: u32, recipient: u32, number: u64) -> Option<&Lease> {
        let lease = self.tasks.get(task)?.share(recipient)?.lease()?;
        (lease.number == number).then_some(lease)
    }

    /// Sees to it that a session's leases are looked at by then.
    pub(super) fn look_at_leases(&mut self, session: SessionId, by: Time) {
        let Some(found) = self.sessions.get_mut(&session) else { return };
        if found.leases_at.is_none_or(|at| by < at) {
            found.leases_at = Some(by);
            self.timers.set(by, Timer::Leases { session });
        }
    }

    /// Gives those that run out soon timers of their own, and looks at the others when the first of them does.
    pub(super) fn leases_due(&mut self, now: Time, at: Time, session: SessionId) {
        let Some(found) = self.sessions.get_mut(&session).filter(|found| found.leases_at == Some(at)) else {
            return;
        };
        let (soon, mut next) = (now.plus_ms(LEASES_SOON_MS), None);
        for (task, recipient) in found.held() {
            let share = self.tasks.get_mut(task).and_then(|task| task.share_mut(recipient));
            let Some(lease) = share.and_then(Share::lease_mut) else { continue };
            let deadline = lease.deadline;
            if lease.timer.is_some_and(|timer| timer <= deadline) {
                continue;
            }
            if deadline <= soon {
                lease.timer = Some(deadline);
                self.timers.set(deadline, Timer::Lease { task, recipient, number: lease.number });
            } else {
                next = Some(next.map_or(deadline, |next: Time| next.min(deadline)));
            }
        }
        found.leases_at = next;
        if let Some(at) = next {
            self.timers.set(at, Timer::Leases { session });
        }
    }

    /// `now` may lie before the latest command: what arrived between the two is not applied yet.
    pub(super) fn lease_due(
        &mut self,
        now: Time,
        at: Time,
        (task, recipient, number): (u32, u32, u64),
        fx: &mut Effects,
    ) {
        let lease = self.current_lease(task, recipient, number);
        let Some(lease) = lease.filter(|lease| lease.timer == Some(at)) else { return };
        if lease.deadline > now {
            // It was extended since.
            let (session, deadline) = (lease.session, lease.deadline);
            if let Some(lease) = self.tasks[task].share_mut(recipient).and_then(Share::lease_mut) {
                lease.timer = None;
            }
            return self.look_at_leases(session, deadline);
        }
        let session = lease.session;
        self.revoke(task, recipient, RevokeReason::AckTimeout, fx);
        // Nothing more for it until it is heard: a frozen worker would eat attempt after attempt.
        if let Some(found) = self.sessions.get_mut(&session) {
            let connected = found.pull.is_none() && found.away_until.is_none();
            let was_silent = std::mem::replace(&mut found.silent, connected);
            // Once: a worker may have many leases that run out together, and many subscriptions.
            if !(was_silent && connected) {
                for (_, key) in found.subscriptions.clone() {
                    self.refresh(key);
                }
            }
            if connected {
                fx.outputs.push(Output::Ping { session });
            }
        }
        self.lost(task, recipient, Failure::AckTimeout, fx);
    }

    pub(super) fn run_limit_due(&mut self, task: u32, recipient: u32, number: u64, fx: &mut Effects) {
        if self.current_lease(task, recipient, number).is_none() {
            return;
        }
        let subscription = self.revoke(task, recipient, RevokeReason::RunLimit, fx);
        self.lost(task, recipient, Failure::RunLimit, fx);
        if let Some(key) = subscription {
            self.feed(key, fx);
        }
    }

    /// Takes a lease back and tells its holder.
    pub(super) fn revoke(
        &mut self,
        task: u32,
        recipient: u32,
        reason: RevokeReason,
        fx: &mut Effects,
    ) -> Option<SubscriptionKey> {
        let lease = self.tasks[task].share(recipient)?.lease()?;
        let id = lease.id(recipient);
        fx.send(lease.session, taskyard_proto::Revoked { lease: id, reason });
        self.unlease(task, recipient, fx)
    }

    pub(super) fn share_due(&mut self, task: u32, recipient: u32, seq: u64, fx: &mut Effects) {
        let Some(found) = self.tasks.get(task).filter(|t| t.spec.seq == seq && t.is_durable()) else {
            return;
        };
        let due = match found.share(recipient).map(|share| &share.state) {
            Some(ShareState::Scheduled { due } | ShareState::Retrying { due }) => *due,
            _ => return,
        };
        if due <= self.now {
            self.queue_up(task, recipient, fx);
        } else {
            self.timers.set(due, Timer::Due { task, recipient, seq });
        }
    }

    /// A share becomes ready for a worker.
    pub(super) fn queue_up(&mut self, task: u32, recipient: u32, fx: &mut Effects) {
        self.shift(task, recipient, ShareState::Queued { since: self.now });
        self.queued_up(task, recipient, fx);
    }

    /// What follows once it is.
    pub(super) fn queued_up(&mut self, task: u32, recipient: u32, fx: &mut Effects) {
        self.event(task, recipient, None, fx);
        self.offer(task, recipient, fx);
    }

    pub(super) fn ttl_due(&mut self, task: u32, seq: u64, fx: &mut Effects) {
        let now = self.now;
        let due =
            |t: &&Task| t.spec.seq == seq && t.is_durable() && t.spec.expires().is_some_and(|at| at <= now);
        let Some(found) = self.tasks.get(task).filter(due) else { return };
        if found.decided || found.state().is_final() {
            return;
        }
        let mut freed = Vec::new();
        for recipient in 0..found.recipients() {
            // What a recipient has finished stays finished.
            if matches!(self.tasks[task].share(recipient), Some(Share { state: ShareState::Over(_), .. })) {
                continue;
            }
            self.withdraw(task, recipient);
            freed.extend(self.revoke(task, recipient, RevokeReason::Expired, fx));
            self.shift(task, recipient, ShareState::Over(TaskState::Expired));
            if let Some(fanout) = self.tasks[task].fanout_mut() {
                fanout.failed += 1;
                self.event(task, recipient, None, fx);
            }
        }
        let queue = self.tasks[task].queue;
        self.queues[queue as usize].tally(Tally::Expired);
        self.finish(task, Fate::expired(), fx);
        for key in freed {
            self.feed(key, fx);
        }
    }

    /// A share that still waits is looked at again: somebody may take it now.
    pub(super) fn offer_again(&mut self, task: u32, recipient: u32, seq: u64, fx: &mut Effects) {
        let Some(found) = self.tasks.get(task).filter(|t| t.spec.seq == seq && !t.decided) else {
            return;
        };
        if !matches!(found.share(recipient).map(|s| &s.state), Some(ShareState::Queued { .. })) {
            return;
        }
        self.withdraw(task, recipient);
        self.offer(task, recipient, fx);
    }

    pub(super) fn absent_due(&mut self, queue: u32, lane: u32, at: Time, fx: &mut Effects) {
        let Some(found) = self.queues[queue as usize].workers.get_mut(lane as usize) else { return };
        if found.subscription.is_some() || found.absent_since.plus_ms(ABSENT_MS) > at {
            return;
        }
        let mut failed = Vec::new();
        for (priority, entry) in found.ready.take_all() {
            match self.tasks.get(entry.task).filter(|task| task.spec.seq == entry.seq) {
                Some(task) if task.fanout().is_some() => failed.push(entry),
                Some(task) => {
                    let fair = task.spec.keys.as_ref().and_then(|keys| keys.fair.as_ref());
                    found.ready.push(priority, entry, fair);
                }
                None => {}
            }
        }
        self.queues[queue as usize].drop_worker_lane_if_empty(lane);
        for entry in failed {
            self.absent(entry.task, entry.recipient, fx);
        }
    }
}

/// Whether a timer may still do something.
pub(super) fn timer_matters(tasks: &Slots<Task>, queues: &Slab<Queue>, at: Time, timer: &Timer) -> bool {
    let task = |key: u32| tasks.peek(key);
    let queue = |key: u32| queues.get(key as usize);
    match *timer {
        Timer::Lease { task: key, recipient, number }
        | Timer::RunLimit { task: key, recipient, number }
        | Timer::Stop { task: key, recipient, number } => task(key).is_some_and(|task| {
            let lease = task.share(recipient).and_then(Share::lease);
            lease.is_some_and(|lease| lease.number == number)
        }),
        Timer::Due { task: key, seq, .. }
        | Timer::Expires { task: key, seq }
        | Timer::Offer { task: key, seq, .. } => task(key).is_some_and(|t| t.spec.seq == seq),
        // Each that is said anew sets another: only the latest stands for something.
        Timer::Kept { queue: key } => queue(key).is_some_and(|q| q.kept_timer == Some(at)),
        Timer::Rate { queue: key } => queue(key).is_some_and(|q| q.rate_timer == Some(at)),
        Timer::Unpause { queue: key } => {
            queue(key).and_then(|q| q.pause.as_ref()).is_some_and(|pause| pause.until == Some(at))
        }
        Timer::Absent { .. }
        | Timer::Dedup { .. }
        | Timer::Leases { .. }
        | Timer::Resume { .. }
        | Timer::Schedule { .. }
        | Timer::Job { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::{Ack, Credit, Extend, Subscribe, TimeoutMs};
    use taskyard_proto::{
        ClientMessage, Hello, LeaseId, Payload, QueueName, ServerMessage, Submit, TaskId, WorkerName,
    };

    use super::*;
    use crate::core::{CallId, Command, Config, Open, Origin};

    const WORKER: SessionId = SessionId(1);

    /// A worker that takes whatever there is.
    struct Stage {
        shard: Shard,
        fx: Effects,
        now: Time,
        submitted: u64,
    }

    impl Stage {
        fn new() -> Stage {
            let (shard, fx, now) = (Shard::new(Config::default()), Effects::default(), Time(1_000_000));
            let mut stage = Stage { shard, fx, now, submitted: 0 };
            stage.apply(Command::Open(Box::new(Open {
                session: WORKER,
                access: None,
                hello: Box::new(Hello::empty()),
                reference: None,
                made_up_name: WorkerName::parse("w").unwrap(),
                resume_key: 0,
                subscribe: Some(Subscribe {
                    queue: QueueName::parse("q").unwrap(),
                    credit: Credit::new(1000),
                    mode: None,
                    explicit_start: false,
                }),
                join: None,
            })));
            stage
        }

        fn apply(&mut self, command: Command) {
            self.shard.apply(self.now, command, &mut self.fx);
        }

        fn say(&mut self, message: impl Into<ClientMessage>) {
            let origin = Origin::Session(WORKER, None);
            self.apply(Command::Message { origin, message: message.into() });
        }

        /// What the worker gets of a task with so long an ack timeout.
        fn deliver(&mut self, ack_timeout_ms: u64) -> LeaseId {
            self.submitted += 1;
            let mut submit = Submit::new(QueueName::parse("q").unwrap(), Payload::NULL);
            submit.ack_timeout_ms = TimeoutMs::new(ack_timeout_ms);
            let (origin, task) = (Origin::Call(CallId(self.submitted)), TaskId(u128::from(self.submitted)));
            self.apply(Command::Submit { origin, access: None, task, submit: submit.into() });
            self.apply(Command::Stored { through: self.shard.operations() });
            let lease = self.fx.outputs.drain(..).find_map(|output| match output {
                Output::Send { message: ServerMessage::Task(task), .. } => task.lease,
                _ => None,
            });
            lease.expect("it is delivered")
        }

        fn extend(&mut self, lease: LeaseId, ms: u64) -> Time {
            self.say(Extend { lease: lease.into(), ack_timeout_ms: TimeoutMs::new(ms) });
            self.now.plus_ms(ms)
        }
    }

    #[test]
    fn each_lease_runs_out_in_its_time_whatever_else_the_worker_holds() {
        let mut stage = Stage::new();
        let mut expected = Vec::new();
        for nth in 0..200 {
            stage.now = stage.now.plus_ms(nth % 7);
            let ms = [30_000, 5_000, 60_000, 30_001][nth as usize % 4];
            let lease = stage.deliver(ms);
            let ends = match nth % 5 {
                0 => stage.extend(lease, ms * 3),
                1 => stage.extend(lease, ms / 4),
                2 => {
                    stage.extend(lease, ms / 2);
                    stage.extend(lease, ms + 700)
                }
                3 => {
                    stage.say(Ack { leases: lease.into(), result: Payload::NULL });
                    continue;
                }
                _ => stage.now.plus_ms(ms),
            };
            expected.push((ends, lease));
        }
        expected.sort_by_key(|(ends, lease)| (*ends, lease.number));
        stage.fx.outputs.clear();
        let mut seen = Vec::new();
        while let Some(next) = stage.shard.next_deadline().filter(|_| seen.len() < expected.len()) {
            stage.shard.expire(next, &mut stage.fx);
            let revoked = stage.fx.outputs.drain(..).filter_map(|output| match output {
                Output::Send { message: ServerMessage::Revoked(revoked), .. } => Some((next, revoked.lease)),
                _ => None,
            });
            seen.extend(revoked);
        }
        seen.sort_by_key(|(ends, lease)| (*ends, lease.number));
        assert_eq!(seen, expected);
    }

    /// Each delivery set a timer, which stood long after the ack; half of all timers were such.
    #[test]
    fn what_is_settled_in_time_leaves_no_timers_behind() {
        let mut stage = Stage::new();
        for _ in 0..500 {
            let lease = stage.deliver(30_000);
            stage.say(Ack { leases: lease.into(), result: Payload::NULL });
        }
        assert!(stage.shard.timers.len() <= 3, "{}", stage.shard.timers.len());
    }
}
