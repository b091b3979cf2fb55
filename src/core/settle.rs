//! A worker speaks about what it holds.

use smallvec::SmallVec;
use taskyard_proto::message::lease_text;
use taskyard_proto::{
    Ack, Applies, Done, Error, ErrorCode, ErrorText, Extend, GivenLease, LeaseList, Nack, Payload, Progress,
    Release, SettleOutcome, SettleResult, Settled, TaskState, WorkerName,
};

use super::command::{Origin, SessionId};
use super::effect::Effects;
use super::fanout::Fate;
use super::queue::Tally;
use super::record::{Amendment, FailedAttempt, Failure, StoreOp};
use super::session::{SubscriptionKey, Verb};
use super::shard::{AVOID_MS, Shard};
use super::task::{FREE_RETURNS_MAX, ShareState};
use super::time::Time;
use super::timers::Timer;

/// Subscriptions that got credit back and wait to be fed.
type Freed = SmallVec<[SubscriptionKey; 4]>;

impl Shard {
    pub(super) fn ack(&mut self, origin: Origin, session: SessionId, message: Ack, fx: &mut Effects) {
        let Ack { leases, mut result } = message;
        let one = matches!(leases, LeaseList::One(_));
        self.settle(origin, session, &leases, Verb::Ack, fx, |shard, task, recipient, worker, fx| {
            let result = if one { std::mem::take(&mut result) } else { result.clone() };
            shard.acked(task, recipient, worker, result, fx);
        });
    }

    pub(super) fn nack(&mut self, origin: Origin, session: SessionId, message: Nack, fx: &mut Effects) {
        let delay_ms = message.delay_ms.map(|delay| delay.get());
        let retry = message.retry.is_none_or(|retry| retry.0);
        self.settle(
            origin,
            session,
            &message.leases,
            Verb::Nack,
            fx,
            |shard, task, recipient, worker, fx| {
                let queue = shard.tasks[task].queue;
                shard.queues[queue as usize].tally(Tally::Nacked);
                shard.failed(
                    task,
                    recipient,
                    Failure::Nack,
                    worker,
                    message.error.clone(),
                    delay_ms,
                    retry,
                    fx,
                );
            },
        );
    }

    pub(super) fn give_back(
        &mut self,
        origin: Origin,
        session: SessionId,
        message: Release,
        fx: &mut Effects,
    ) {
        let delay_ms = message.delay_ms.map_or(0, |delay| delay.get());
        self.settle(origin, session, &message.leases, Verb::Release, fx, |shard, task, recipient, _, fx| {
            shard.returned_free(task, recipient, Some(session), delay_ms, fx);
        });
    }

    /// Settles the oldest delivery that a session holds: lease numbers grow with each delivery.
    pub(super) fn settle_oldest(&mut self, session: SessionId, ack: bool, fx: &mut Effects) {
        let Some(found) = self.sessions.get(&session) else { return };
        let lease = |(task, recipient): (u32, u32)| {
            let number = self.tasks[task].share(recipient)?.lease()?.number;
            Some(taskyard_proto::LeaseId { number, slot: task, recipient })
        };
        let oldest = found.held().filter_map(lease).min_by_key(|lease| lease.number);
        let origin = Origin::Session(session, None);
        match oldest {
            None => {
                let error = "there is nothing to settle: this connection holds no unsettled task";
                fx.answer(&origin, Error::new(ErrorCode::LeaseLost, error));
            }
            Some(lease) if ack => {
                self.ack(origin, session, Ack { leases: lease.into(), result: Payload::NULL }, fx)
            }
            Some(lease) => {
                let nack = Nack { leases: lease.into(), error: None, delay_ms: None, retry: None };
                self.nack(origin, session, nack, fx);
            }
        }
    }

    /// Settles each lease that is current, answers for all, then lets tasks flow again. `how` is told who held what
    /// is no longer leased.
    pub(super) fn settle(
        &mut self,
        origin: Origin,
        session: SessionId,
        leases: &LeaseList,
        verb: Verb,
        fx: &mut Effects,
        mut how: impl FnMut(&mut Shard, u32, u32, Option<WorkerName>, &mut Effects),
    ) {
        let mut settle_one = |shard: &mut Shard, lease: &GivenLease, fx: &mut Effects| {
            if let Some((task, recipient)) = shard.find_lease(session, lease) {
                let (worker, key) = shard.unlease_settled(task, recipient, verb, fx);
                how(shard, task, recipient, worker, fx);
                return (SettleOutcome::Ok, key);
            }
            match lease.id() {
                Some(id) if shard.has_settled(session, id, verb) => (SettleOutcome::Already, None),
                _ => (SettleOutcome::LeaseLost, None),
            }
        };
        let answered = !matches!(&origin, Origin::Session(_, None));
        match leases {
            LeaseList::One(lease) => {
                let (outcome, freed) = settle_one(self, lease, fx);
                match outcome {
                    SettleOutcome::LeaseLost => fx.answer(&origin, lease_lost(lease)),
                    outcome if answered => {
                        let settled = Settled {
                            lease: Applies(Some(lease_text(lease))),
                            outcome: Applies(Some(outcome)),
                            results: Applies(None),
                        };
                        self.answer_when_durable(origin, settled, fx);
                    }
                    _ => {}
                }
                if let Some(key) = freed {
                    self.feed(key, fx);
                }
            }
            LeaseList::Many(leases) => {
                // Each is a row and a lease somewhere in memory: looked for one behind another, they are waited for
                // together.
                let known = leases.iter().filter(|lease| self.find_lease(session, lease).is_some()).count();
                std::hint::black_box(known);
                let mut freed = Freed::new();
                let mut settle_each = |lease| {
                    let (outcome, key) = settle_one(self, lease, fx);
                    freed.extend(key.filter(|key| freed.last() != Some(key)));
                    (outcome, lease)
                };
                let results: Vec<(SettleOutcome, &GivenLease)> =
                    leases.iter().map(&mut settle_each).collect();
                if answered {
                    let results = results
                        .iter()
                        .map(|(outcome, lease)| SettleResult { lease: lease_text(lease), outcome: *outcome })
                        .collect();
                    let settled = Settled {
                        lease: Applies(None),
                        outcome: Applies(None),
                        results: Applies(Some(results)),
                    };
                    self.answer_when_durable(origin, settled, fx);
                } else {
                    for (_, lease) in
                        results.iter().filter(|(outcome, _)| *outcome == SettleOutcome::LeaseLost)
                    {
                        fx.answer(&origin, lease_lost(lease));
                    }
                }
                for key in freed {
                    self.feed(key, fx);
                }
            }
        }
    }

    /// The work is done.
    fn acked(
        &mut self,
        task: u32,
        recipient: u32,
        worker: Option<WorkerName>,
        result: Payload,
        fx: &mut Effects,
    ) {
        let found = &self.tasks[task];
        self.queues[found.queue as usize].tally(Tally::Acked);
        if found.decided {
            self.lay_down(task, recipient);
        } else if found.fanout().is_some() {
            self.recipient_acked(task, recipient, result, fx);
        } else {
            self.finish(task, Fate::done(worker, result), fx);
        }
    }

    /// A lease ended by no doing of its holder's: charged, unless the attempt had not begun and the
    /// worker had asked to say so.
    pub(super) fn lost(&mut self, task: u32, recipient: u32, failure: Failure, fx: &mut Effects) {
        let found = &self.tasks[task];
        let queue = &mut self.queues[found.queue as usize];
        match failure {
            Failure::WorkerLost => queue.tally(Tally::WorkerLost),
            Failure::AckTimeout | Failure::RunLimit => queue.tally(Tally::TimedOut),
            _ => {}
        }
        let Some(ShareState::Leased(lease)) = found.share(recipient).map(|share| &share.state) else {
            return;
        };
        if failure == Failure::WorkerLost && lease.unstarted {
            if let Some(share) = self.tasks[task].share_mut(recipient) {
                share.past = failure.into();
            }
            return self.returned_free(task, recipient, None, 0, fx);
        }
        let worker = self.sessions.get(&lease.session).map(|session| session.worker.clone());
        self.failed(task, recipient, failure, worker, None, None, true, fx);
    }

    /// A charged attempt came to nothing. The share is out of its holder's hands.
    #[expect(clippy::too_many_arguments, reason = "each is a fact of the failure, told apart by type")]
    pub(super) fn failed(
        &mut self,
        task: u32,
        recipient: u32,
        failure: Failure,
        worker: Option<WorkerName>,
        error: Option<ErrorText>,
        delay_ms: Option<u64>,
        retry: bool,
        fx: &mut Effects,
    ) {
        let now = self.now;
        let found = &mut self.tasks[task];
        if found.decided {
            return self.lay_down(task, recipient);
        }
        let (spec, cancelling) = (found.spec.clone(), found.cancelling);
        let Some(share) = found.share_mut(recipient) else { return };
        share.charged += 1;
        share.past = failure.into();
        share.lease_stored = false;
        share.free_returns = 0;
        let attempt = FailedAttempt { attempt: share.charged, worker, reason: failure, error };
        share.record_failure(attempt.clone());
        if cancelling {
            let (error, lost) = (attempt.error.clone(), share.lost);
            if found.fanout().is_some() {
                // Others may hold it yet: it is charged now, and cancelled after a restart too.
                let failed = Amendment::Failed { recipient, attempt, due: Some(now), lost };
                self.store(StoreOp::Amend(spec.id(), failed), fx);
            }
            return self.stopped(task, recipient, error, fx);
        }
        let is_loss = matches!(failure, Failure::AckTimeout | Failure::RunLimit | Failure::WorkerLost);
        let due = if !retry || share.charged >= spec.max_attempts {
            None
        } else if is_loss && !share.lost {
            share.lost = true;
            Some(now)
        } else {
            Some(now.plus_ms(delay_ms.unwrap_or_else(|| spec.retry.delay_ms(spec.id(), share.charged))))
        };
        let lost = share.lost;
        self.store(StoreOp::Amend(spec.id(), Amendment::Failed { recipient, attempt, due, lost }), fx);
        match due {
            None => self.used_up(task, recipient, fx),
            Some(due) if due <= now => self.queue_up(task, recipient, fx),
            Some(due) => {
                self.shift(task, recipient, ShareState::Retrying { due });
                self.timers.set(due, Timer::Due { task, recipient, seq: spec.seq });
                self.event(task, recipient, None, fx);
            }
        }
        self.put_away(task);
    }

    /// The task comes back unharmed and takes its old place; too often in a row, and it is charged.
    pub(super) fn returned_free(
        &mut self,
        task: u32,
        recipient: u32,
        releaser: Option<SessionId>,
        delay_ms: u64,
        fx: &mut Effects,
    ) {
        let now = self.now;
        let found = &mut self.tasks[task];
        if found.decided {
            return self.lay_down(task, recipient);
        }
        if found.cancelling {
            return self.stopped(task, recipient, None, fx);
        }
        let (id, seq, queue) = (found.spec.id(), found.spec.seq, found.queue);
        let Some(share) = found.share_mut(recipient) else { return };
        share.past = share.past.returned();
        share.free_returns += 1;
        if share.free_returns > FREE_RETURNS_MAX {
            return self.failed(task, recipient, Failure::Returned, None, None, None, true, fx);
        }
        if let Some(session) = releaser {
            let until = now.plus_ms(AVOID_MS);
            share.notes_mut().avoid = Some((session, until));
            self.timers.set(until, Timer::Offer { task, recipient, seq });
        }
        let stored = std::mem::take(&mut share.lease_stored);
        self.queues[queue as usize].tally(Tally::Released);
        if delay_ms == 0 {
            if stored {
                self.store(StoreOp::Amend(id, Amendment::Returned { recipient }), fx);
            }
            self.queue_up(task, recipient, fx);
            return self.put_away(task);
        }
        let due = now.plus_ms(delay_ms);
        self.store(StoreOp::Amend(id, Amendment::Deferred { recipient, due }), fx);
        self.shift(task, recipient, ShareState::Scheduled { due });
        self.timers.set(due, Timer::Due { task, recipient, seq });
        self.event(task, recipient, None, fx);
        // It waits for a time of its own: the next of its key need not.
        if self.tasks[task].state() == TaskState::Scheduled {
            self.free_key_of(task, fx);
        }
        self.put_away(task);
    }

    pub(super) fn start(&mut self, origin: Origin, session: SessionId, lease: &GivenLease, fx: &mut Effects) {
        let Some((task, recipient)) = self.find_lease(session, lease) else {
            return fx.answer(&origin, lease_lost(lease));
        };
        let found = &mut self.tasks[task];
        let deadline = self.now.plus_ms(u64::from(found.spec.ack_timeout_ms));
        if let Some(lease) = found.share_mut(recipient).and_then(|share| share.lease_mut()) {
            lease.started = true;
            lease.unstarted = false;
        }
        self.move_deadline(session, (task, recipient), deadline);
        fx.answer(&origin, Done::PLAIN);
        self.event(task, recipient, None, fx);
    }

    pub(super) fn extend(&mut self, origin: Origin, session: SessionId, message: Extend, fx: &mut Effects) {
        let Some((task, recipient)) = self.find_lease(session, &message.lease) else {
            return fx.answer(&origin, lease_lost(&message.lease));
        };
        let usual = self.tasks[task].spec.ack_timeout_ms;
        let ms = message.ack_timeout_ms.map_or(u64::from(usual), |given| given.get());
        let deadline = self.now.plus_ms(ms);
        self.move_deadline(session, (task, recipient), deadline);
        fx.answer(&origin, Done { ack_timeout_ms: Applies(Some(ms)), ..Done::PLAIN });
    }

    /// A lease runs out then, sooner or later than it would have.
    fn move_deadline(&mut self, session: SessionId, (task, recipient): (u32, u32), deadline: Time) {
        let share = self.tasks[task].share_mut(recipient);
        let Some(lease) = share.and_then(|share| share.lease_mut()) else { return };
        // A later deadline is found by whatever looks at the one that stood.
        if deadline < std::mem::replace(&mut lease.deadline, deadline) {
            self.look_at_leases(session, deadline);
        }
    }

    pub(super) fn progress(
        &mut self,
        origin: Origin,
        session: SessionId,
        message: Progress,
        fx: &mut Effects,
    ) {
        let Some((task, recipient)) = self.find_lease(session, &message.lease) else {
            return fx.answer(&origin, lease_lost(&message.lease));
        };
        let found = &mut self.tasks[task];
        let at_least = self.now.plus_ms(u64::from(found.spec.ack_timeout_ms));
        if let Some(share) = found.share_mut(recipient) {
            if let Some(lease) = share.lease_mut() {
                lease.deadline = lease.deadline.max(at_least);
            }
            if let Some(percent) = message.percent {
                share.notes_mut().percent = Some(percent.get());
            }
        }
        fx.answer(&origin, Done::PLAIN);
        self.event(task, recipient, Some(message.data), fx);
    }
}

pub(super) fn lease_lost(lease: &GivenLease) -> Error {
    Error::new(
        ErrorCode::LeaseLost,
        "this lease is over, or was never its sender's: the task goes on without it; drop the work",
    )
    .lease(lease)
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::{Credit, Hello, Submit, Subscribe, Task};
    use taskyard_proto::{ClientMessage, QueueName, RequestId, ServerMessage, TaskId, WorkerName};

    use super::*;
    use crate::core::{Command, Config, Open, Output, Time};

    /// Who asks for an answer waits for the store, and who does not need not be waited for.
    #[test]
    fn only_a_settle_that_is_answered_is_awaited() {
        let mut shard = Shard::new(Config::default());
        let mut fx = Effects::default();
        let session = SessionId(1);
        let queue = QueueName::parse("q").unwrap();
        let open = Command::Open(Box::new(Open {
            access: None,
            resume_key: 0,
            join: None,
            session,
            hello: Box::new(Hello::empty()),
            reference: None,
            made_up_name: WorkerName::parse("w").unwrap(),
            subscribe: None,
        }));
        shard.apply(Time(1), open, &mut fx);
        let say = |shard: &mut Shard, fx: &mut Effects, id, message: ClientMessage| {
            let origin = Origin::Session(session, id);
            shard.apply(Time(1), Command::Message { origin, message }, fx);
        };
        let credit = Credit::new(1);
        let subscribe = Subscribe { queue: queue.clone(), credit, mode: None, explicit_start: false };
        say(&mut shard, &mut fx, None, subscribe.into());
        for (task, id) in [(1, None), (2, Some(RequestId::Integer(7))), (3, None)] {
            let submit = Command::Submit {
                origin: Origin::Session(session, Some(RequestId::Integer(1))),
                access: None,
                task: TaskId(task),
                submit: Submit::new(queue.clone(), Payload::NULL).into(),
            };
            shard.apply(Time(1), submit, &mut fx);
            assert_eq!(shard.operations_awaited(), shard.operations(), "it is confirmed and delivered then");
            fx.outputs.clear();
            let through = shard.operations();
            shard.apply(Time(1), Command::Stored { through }, &mut fx);
            assert_eq!(shard.operations_awaited(), 0);
            let lease = fx.outputs.drain(..).find_map(|output| match output {
                Output::Send { message: ServerMessage::Task(Task { lease, .. }), .. } => lease,
                _ => None,
            });
            let leases = LeaseList::from(lease.expect("a delivery"));
            let answered = id.is_some();
            say(&mut shard, &mut fx, id, Ack { leases, result: Payload::NULL }.into());
            assert!(shard.operations() > through, "the end is stored");
            assert_eq!(shard.operations_awaited() == shard.operations(), answered);
            let through = shard.operations();
            shard.apply(Time(1), Command::Stored { through }, &mut fx);
        }
    }
}
