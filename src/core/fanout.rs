//! How a task ends: for its one recipient, or for all of them together.

use std::sync::Arc;

use taskyard_proto::{Complete, ErrorText, Finished, Payload, TaskState, WorkerName};

use super::effect::Effects;
use super::kept::Kept;
use super::queue::Tally;
use super::record::{
    Amendment, FailedAttempt, Failure, FanoutRecord, FinishRecord, Outcome, Outcomes, RECIPIENTS_SHOWN_MAX,
    Said, StoreOp,
};
use super::shard::Shard;
use super::task::{Fanout, HISTORY_MAX, Notes, ShareState, Task};

/// How a task ends.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fate {
    state: TaskState,
    worker: Option<WorkerName>,
    result: Payload,
    error: Option<ErrorText>,
}

impl Fate {
    pub(super) fn done(worker: Option<WorkerName>, result: Payload) -> Fate {
        Fate { state: TaskState::Done, worker, result, error: None }
    }

    pub(super) fn expired() -> Fate {
        let error = Some(ErrorText::new("outlived its ttl_ms"));
        Fate { state: TaskState::Expired, worker: None, result: Payload::NULL, error }
    }

    pub(super) fn cancelled(error: Option<ErrorText>) -> Fate {
        Fate { state: TaskState::Cancelled, worker: None, result: Payload::NULL, error }
    }

    fn dead() -> Fate {
        Fate { state: TaskState::Dead, worker: None, result: Payload::NULL, error: None }
    }

    /// The end of a task to all that nobody was there for.
    pub(super) fn of_nobody(complete: Complete) -> Fate {
        match complete {
            Complete::Quorum(_) => Fate::dead(),
            Complete::All | Complete::Any => Fate::done(None, Payload::NULL),
        }
    }
}

/// How much of their results it tells, in bytes: it must fit into one message, and into one record.
const RESULTS_SHOWN_BYTES: usize = 1 << 20;

/// So many leases are kept for the next deliveries when their tasks end, each 56 bytes.
const SPARE_LEASES: usize = 1024;

impl Shard {
    /// Ends a task: stores its end, keeps it to be looked up, and tells those who watch.
    pub(super) fn finish(&mut self, key: u32, fate: Fate, fx: &mut Effects) {
        if fate.state == TaskState::Dead {
            return self.die(key, fx);
        }
        let (now, base) = (self.now, self.event_base);
        let task = &mut self.tasks[key];
        task.count_event();
        let fanout = task.fanout().map(|fanout| Arc::new(fanout_record(task, fanout)));
        let to_all = fanout.is_some();
        let done = fate.state == TaskState::Done && !to_all;
        let attempts = task.attempts() + u32::from(done);
        let (queue, event_seq, before) = (task.queue, task.event_seq(base), task.state());
        let (id, bytes, weighed) = (task.spec.id(), task.bytes(), task.weighed());
        // Whose it is says each entry.
        let history: Vec<_> =
            task.shares().flat_map(|share| share.history()).take(HISTORY_MAX).cloned().collect();
        let (watchers, events) = (task.take_watchers(), task.take_told());
        let counted = &mut self.queues[queue as usize];
        if done {
            counted.used.count(attempts);
        }
        counted.counts[before as usize] -= 1;
        counted.counts[fate.state as usize] += 1;
        counted.bytes -= bytes;
        let totals = counted.totals();
        self.weigh_out(weighed);
        self.unlist(id, key);
        let spec = if to_all && self.drop_undelivered(key) {
            let task = &mut self.tasks[key];
            task.decided = true;
            task.spec.clone()
        } else {
            let task = self.tasks.remove(key);
            if let ShareState::Leased(lease) = task.first.state
                && self.spare_leases.len() < SPARE_LEASES
            {
                self.spare_leases.push(lease);
            }
            task.spec
        };
        self.unload(spec.account.as_ref(), bytes);
        let record = Box::new(FinishRecord {
            task: id,
            queue: spec.queue.clone(),
            state: fate.state,
            accepted: spec.accepted,
            finished: now,
            attempts,
            max_attempts: spec.max_attempts,
            worker: fate.worker,
            result: fate.result,
            error: fate.error,
            history,
            event_seq,
            totals,
            dedup: spec.keys.as_ref().and_then(|keys| keys.dedup.clone()),
            fanout,
        });
        let last_word = (!watchers.is_empty()).then(|| Kept::new(&record, None).last_word());
        let kept = Kept::new(&record, events);
        self.store(StoreOp::Finish(record), fx);
        self.keep(queue, kept, fx);
        if let Some(order) = spec.keys.as_ref().and_then(|keys| keys.order.as_ref()) {
            self.free_key(queue, order, key, spec.seq, fx);
        }
        if let Some(last_word) = last_word {
            self.tell_finished_when_durable(watchers, last_word, fx);
        }
    }

    /// A task becomes a dead letter: it stays, and those who watch hear why.
    fn die(&mut self, key: u32, fx: &mut Effects) {
        let task = &self.tasks[key];
        let (queue, before, to_all) = (task.queue, task.state(), task.fanout().is_some());
        let (seq, bytes) = (task.spec.seq, task.bytes());
        let counted = &mut self.queues[queue as usize];
        counted.tally(Tally::Dead);
        counted.tally_death(&self.tasks[key]);
        counted.bytes -= bytes;
        counted.dead.insert(seq, key);
        if before != TaskState::Dead {
            let counts = self.state_counts(queue);
            counts[before as usize] -= 1;
            counts[TaskState::Dead as usize] += 1;
        }
        if to_all {
            self.tasks[key].decided = true;
            self.drop_undelivered(key);
        }
        self.tasks[key].count_event();
        let watchers = self.tasks[key].take_watchers();
        if let Some(message) = self.dead_message(key) {
            self.tell_finished_when_durable(watchers, message, fx);
        }
        self.free_key_of(key, fx);
        self.put_away(key);
    }

    /// Shares that nobody holds are dropped; whether some are held.
    fn drop_undelivered(&mut self, key: u32) -> bool {
        let task = &self.tasks[key];
        if task.fanout().is_none() {
            return false;
        }
        let mut held = false;
        for recipient in 0..task.recipients() {
            self.withdraw(key, recipient);
            let task = &mut self.tasks[key];
            let Some(share) = task.share_mut(recipient) else { continue };
            match share.state {
                ShareState::Leased(_) => held = true,
                ShareState::Over(_) => {}
                _ => task.lay(recipient),
            }
        }
        held
    }

    /// A lease on a task that was decided without it has ended: to no effect.
    pub(super) fn lay_down(&mut self, key: u32, recipient: u32) {
        let task = &mut self.tasks[key];
        let id = task.spec.id();
        task.lay(recipient);
        let held = task.is_leased();
        let live = self.live(id) == Some(key);
        if !held && !live {
            self.tasks.remove(key);
        }
    }

    /// The last word on a dead letter; none if the task is not dead.
    pub(super) fn dead_message(&self, key: u32) -> Option<Finished> {
        let task = self.tasks.get(key)?;
        if task.state() != TaskState::Dead {
            return None;
        }
        let fanout = task.fanout().map(|fanout| fanout_record(task, fanout));
        Some(Finished {
            task: task.spec.id(),
            seq: task.event_seq(self.event_base),
            state: TaskState::Dead,
            result: Payload::NULL,
            error: task.error(),
            attempts: u64::from(task.attempts()),
            delivered: fanout.as_ref().map(|f| f.delivered),
            acked: fanout.as_ref().map(|f| f.acked),
            failed: fanout.as_ref().map(|f| f.failed),
            recipients: fanout.as_ref().map(Into::into),
        })
    }

    /// A share has no attempt left.
    pub(super) fn used_up(&mut self, task: u32, recipient: u32, fx: &mut Effects) {
        let before = self.shift(task, recipient, ShareState::Over(TaskState::Dead));
        debug_assert!(!matches!(before, ShareState::Over(_)), "a share ends once");
        match self.tasks[task].fanout_mut() {
            None => self.die(task, fx),
            Some(fanout) => {
                fanout.failed += 1;
                self.event(task, recipient, None, fx);
                self.decide(task, fx);
            }
        }
    }

    /// A recipient of a task to all acknowledged its share.
    pub(super) fn recipient_acked(&mut self, key: u32, recipient: u32, result: Payload, fx: &mut Effects) {
        let id = self.tasks[key].spec.id();
        self.store(StoreOp::Amend(id, Amendment::Acked { recipient, result: result.clone() }), fx);
        self.shift(key, recipient, ShareState::Over(TaskState::Done));
        let task = &mut self.tasks[key];
        if let Some(share) = task.share_mut(recipient).filter(|_| !result.is_null()) {
            share.notes_mut().result = result;
        }
        if let Some(fanout) = task.fanout_mut() {
            fanout.acked += 1;
        }
        self.event(key, recipient, None, fx);
        self.decide(key, fx);
    }

    /// A recipient of a task to all was not there for too long.
    pub(super) fn absent(&mut self, key: u32, recipient: u32, fx: &mut Effects) {
        let Some(task) = self.tasks.get_mut(key).filter(|task| !task.decided) else { return };
        let id = task.spec.id();
        let Some(share) = task.share_mut(recipient) else { return };
        // Nothing was delivered, so nothing is charged.
        let attempt =
            FailedAttempt { attempt: share.charged, worker: None, reason: Failure::Absent, error: None };
        share.record_failure(attempt.clone());
        let lost = share.lost;
        self.store(StoreOp::Amend(id, Amendment::Failed { recipient, attempt, due: None, lost }), fx);
        self.used_up(key, recipient, fx);
    }

    /// Ends a task to all once its recipients have decided it.
    pub(super) fn decide(&mut self, key: u32, fx: &mut Effects) {
        let task = &self.tasks[key];
        let Some(fanout) = task.fanout() else { return };
        if task.decided {
            return;
        }
        let all = task.spec.recipients.len() as u64;
        let (acked, failed) = (fanout.acked, fanout.failed);
        let needed = match task.spec.complete {
            Complete::All => all,
            Complete::Any => 1,
            Complete::Quorum(count) => count,
        };
        if task.cancelling {
            // What acks suffice for is done all the same.
            if acked < needed {
                return self.decide_cancelled(key, fx);
            }
        }
        let over = acked + failed == all;
        match task.spec.complete {
            // Every recipient is heard, also after one has failed.
            Complete::All if !over => {}
            _ if acked >= needed => self.finish(key, Fate::done(None, Payload::NULL), fx),
            _ if all - failed < needed => self.die(key, fx),
            _ => {}
        }
    }
}

/// What became of the recipients of a task to all.
fn fanout_record(task: &Task, fanout: &Fanout) -> FanoutRecord {
    let recipients = match outcomes_are_plain(task) {
        true => Outcomes::Done(task.spec.recipients.clone()),
        false => Outcomes::Each(outcomes(task)),
    };
    FanoutRecord { delivered: fanout.delivered, acked: fanout.acked, failed: fanout.failed, recipients }
}

/// Whether all recipients acknowledged their first delivery, without a word.
fn outcomes_are_plain(task: &Task) -> bool {
    task.shares().all(|share| {
        let quiet = |notes: &Notes| notes.result.is_null() && notes.history.is_empty();
        matches!(share.state, ShareState::Over(TaskState::Done))
            && share.charged == 0
            && share.notes.as_deref().is_none_or(quiet)
    })
}

/// What became of each recipient, those that failed first. There may be a thousand, so nothing is sorted or grown here:
/// their rows are written once.
fn outcomes(task: &Task) -> Vec<Outcome> {
    let count = (task.recipients() as usize).min(RECIPIENTS_SHOWN_MAX);
    let mut recipients = Vec::with_capacity(count);
    let mut room = RESULTS_SHOWN_BYTES;
    for done in [false, true] {
        let shown = (0..task.recipients()).filter_map(|recipient| {
            let share = task.share(recipient)?;
            let acked = matches!(share.state, ShareState::Over(TaskState::Done));
            (acked == done).then_some(())?;
            let result = share.notes.as_ref().map(|notes| notes.result.clone()).unwrap_or_default();
            let (result, error) = match room.checked_sub(result.bytes().len()) {
                Some(left) => {
                    room = left;
                    (result, share.last_error())
                }
                None => (Payload::NULL, Some(left_out())),
            };
            Some(Outcome {
                worker: task.recipient_name(recipient)?.clone(),
                state: share.state.task_state(),
                attempts: u32::from(share.charged) + u32::from(acked),
                said: Said::new(result, error),
            })
        });
        recipients.extend(shown.take(count - recipients.len()));
    }
    recipients
}

fn left_out() -> ErrorText {
    ErrorText::new("the result is left out: the results of all recipients together are too large")
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::{Ack, Credit, Flag, Hello, Nack, Submit, Subscribe};
    use taskyard_proto::{ClientMessage, LeaseId, QueueName, RecipientOutcome, ServerMessage, Target};

    use super::*;
    use crate::core::{Command, Config, Open, Origin, Output, SessionId, Time};

    fn apply(shard: &mut Shard, fx: &mut Effects, command: Command) {
        shard.apply(Time(1), command, fx);
        let through = shard.operations();
        shard.apply(Time(1), Command::Stored { through }, fx);
    }

    fn message(session: SessionId, message: impl Into<ClientMessage>) -> Command {
        Command::Message { origin: Origin::Session(session, None), message: message.into() }
    }

    /// A shard in which each of so many workers has its delivery of one task to all, which the first one watches.
    fn handed_to_all(workers: u64) -> (Shard, Effects, Vec<(SessionId, LeaseId)>) {
        let mut shard = Shard::new(Config::default());
        let mut fx = Effects::default();
        let queue = QueueName::parse("q").unwrap();
        for session in (1..=workers).map(SessionId) {
            let open = Command::Open(Box::new(Open {
                access: None,
                resume_key: 0,
                join: None,
                session,
                hello: Box::new(Hello::empty()),
                reference: None,
                made_up_name: WorkerName::parse(&format!("w{}", session.0)).unwrap(),
                subscribe: None,
            }));
            apply(&mut shard, &mut fx, open);
            let subscribe =
                Subscribe { queue: queue.clone(), credit: Credit::new(1), mode: None, explicit_start: false };
            apply(&mut shard, &mut fx, message(session, subscribe));
        }
        let mut submit = Submit::new(queue, Payload::NULL);
        submit.to = Some(Target::All(None));
        submit.watch = true;
        let origin = Origin::Session(SessionId(1), None);
        let task = taskyard_proto::TaskId(7);
        apply(&mut shard, &mut fx, Command::Submit { origin, access: None, task, submit: submit.into() });
        let leases: Vec<_> = fx
            .outputs
            .iter()
            .filter_map(|output| match output {
                Output::Send { session, message: ServerMessage::Task(task), .. } => {
                    Some((*session, task.lease?))
                }
                _ => None,
            })
            .collect();
        assert_eq!(leases.len() as u64, workers);
        (shard, fx, leases)
    }

    fn outcomes(fx: &Effects) -> &[RecipientOutcome] {
        let finished = fx.outputs.iter().find_map(|output| match output {
            Output::Send { message: ServerMessage::Finished(finished), .. } => Some(finished),
            _ => None,
        });
        &finished.unwrap().recipients.as_ref().unwrap().0
    }

    /// The first recipient's attempts and error were told as those of all, and nobody heard when one failed.
    #[test]
    fn the_end_of_a_task_to_all_is_told_of_all_its_recipients() {
        let (mut shard, mut fx, leases) = handed_to_all(3);
        fx.outputs.clear();
        for ((session, lease), error) in leases.into_iter().zip([None, Some("n1"), None]) {
            let leases = lease.into();
            let said = match error.map(ErrorText::new) {
                None => message(session, Ack { leases, result: Payload::NULL }),
                error => message(session, Nack { leases, error, delay_ms: None, retry: Some(Flag(false)) }),
            };
            apply(&mut shard, &mut fx, said);
        }
        let events: Vec<_> = fx
            .outputs
            .iter()
            .filter_map(|output| match output {
                Output::Send { message: ServerMessage::Event(event), .. } => {
                    let error = event.error.as_ref().map(ErrorText::as_str);
                    Some((event.worker.as_ref()?.as_str(), event.state, event.attempt, error))
                }
                _ => None,
            })
            .collect();
        let done = |worker| (worker, TaskState::Done, 1, None);
        assert_eq!(events, [done("w1"), ("w2", TaskState::Dead, 1, Some("n1")), done("w3")]);
        let finished = fx.outputs.iter().find_map(|output| match output {
            Output::Send { message: ServerMessage::Finished(finished), .. } => Some(finished),
            _ => None,
        });
        let finished = finished.expect("the end is told");
        assert_eq!((finished.state, finished.attempts), (TaskState::Dead, 3));
        assert_eq!(finished.error.as_ref().unwrap().as_str(), "1 of 3 recipients failed");
        assert_eq!((finished.delivered, finished.acked, finished.failed), (Some(3), Some(2), Some(1)));
    }

    /// The end of a task to all once held every result, however large: it fitted into no record of the
    /// store, and ended the broker.
    #[test]
    fn results_of_all_recipients_together_are_bounded() {
        let (mut shard, mut fx, leases) = handed_to_all(20);
        for (session, lease) in leases {
            let ack = Ack { leases: lease.into(), result: Payload::binary(vec![0; 1_000_000]) };
            apply(&mut shard, &mut fx, message(session, ack));
        }
        let recipients = outcomes(&fx);
        let whole = recipients.iter().filter(|outcome| !outcome.result.is_null()).count();
        let told = recipients.iter().filter(|outcome| outcome.error.is_some()).count();
        assert_eq!((recipients.len(), whole, told), (20, 1, 19));
    }

    #[test]
    fn of_many_recipients_those_that_failed_are_shown_and_then_as_many_as_there_is_room_for() {
        let (mut shard, mut fx, leases) = handed_to_all(1010);
        for (nth, (session, lease)) in leases.into_iter().enumerate() {
            let leases = lease.into();
            let said = match nth % 200 {
                7 => message(session, Nack { leases, error: None, delay_ms: None, retry: Some(Flag(false)) }),
                _ => message(session, Ack { leases, result: Payload::NULL }),
            };
            apply(&mut shard, &mut fx, said);
        }
        let failed = [8, 208, 408, 608, 808, 1008];
        let done = (1..=1010).filter(|nth| !failed.contains(nth)).take(994);
        let shown: Vec<String> = failed.into_iter().chain(done).map(|nth| format!("w{nth}")).collect();
        let outcomes = outcomes(&fx);
        assert_eq!(outcomes.iter().map(|outcome| outcome.worker.as_str()).collect::<Vec<_>>(), shown);
        let dead = outcomes.iter().take_while(|outcome| outcome.state == TaskState::Dead).count();
        assert_eq!((dead, outcomes[0].attempts, outcomes[6].attempts), (6, 1, 1));
    }
}
