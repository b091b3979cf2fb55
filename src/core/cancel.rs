//! Tasks that are stopped: at once where nobody has them, else with a word to whoever does.

use taskyard_proto::{
    Applies, Cancel, Cancelled, Done, Error, ErrorCode, ErrorText, RevokeReason, Stop, TaskId, TaskState,
    Text,
};

use super::access::Access;
use super::command::{Origin, SessionId};
use super::effect::Effects;
use super::events::task_not_found;
use super::fanout::Fate;
use super::grants::Action;
use super::queue::Tally;
use super::record::{Amendment, StoreOp};
use super::session::Verb;
use super::shard::{Place, Shard};
use super::task::ShareState;
use super::timers::Timer;

/// How long a worker may take to stop, where nobody says.
pub const GRACE_MS: u64 = 10_000;

impl Shard {
    /// `access` is that of a request; a session's is its own.
    pub(super) fn cancel(&mut self, origin: Origin, message: Cancel, fx: &mut Effects) {
        let access = match &origin {
            Origin::Session(session, _) | Origin::Implied(session) => {
                self.sessions.get(session).and_then(|session| session.access.clone())
            }
            // A request was asked at the door, which knows whose it is.
            Origin::Call(_) => None,
        };
        let grace_ms = message.grace_ms.map_or(GRACE_MS, |grace| grace.get());
        match self.cancel_by_id(access.as_deref(), message.task, grace_ms, fx) {
            Ok(state) => {
                let done = Done { state: Applies(Some(state)), ..Done::PLAIN };
                self.answer_when_durable(origin, done, fx);
            }
            Err(error) => fx.answer(&origin, error),
        }
    }

    fn cancel_by_id(
        &mut self,
        access: Option<&Access>,
        id: TaskId,
        grace_ms: u64,
        fx: &mut Effects,
    ) -> Result<TaskState, Error> {
        if !self.may_see(access, id) {
            return Err(task_not_found(id));
        }
        if let (Some(access), Some(queue)) = (access, self.queue_of(id).cloned())
            && !access.grants.may(Action::Manage, queue.as_str())
        {
            self.check_grant(Some(access), Action::Submit, &queue)?;
        }
        let over = |state: TaskState| match state {
            TaskState::Cancelled => Ok(TaskState::Cancelled),
            other => {
                let text = format!("the task is {} already: there is nothing to cancel", other.as_str());
                Err(Error::new(ErrorCode::Conflict, text).task(id))
            }
        };
        match self.place(id) {
            Some(Place::Live(key)) => match self.tasks[key].state() {
                TaskState::Dead => over(TaskState::Dead),
                _ => Ok(self.cancel_task(key, grace_ms, fx)),
            },
            Some(Place::Kept { .. }) => over(self.kept(id).map_or(TaskState::Done, |record| record.state)),
            None => Err(task_not_found(id)),
        }
    }

    /// Cancels a task that has not ended; gives the state that it is in then.
    pub(super) fn cancel_task(&mut self, key: u32, grace_ms: u64, fx: &mut Effects) -> TaskState {
        let until = self.now.plus_ms(grace_ms);
        let task = &mut self.tasks[key];
        let (id, first) = (task.spec.id(), !std::mem::replace(&mut task.cancelling, true));
        let mut held = false;
        for recipient in 0..self.tasks[key].recipients() {
            let Some(share) = self.tasks[key].share(recipient) else { continue };
            match &share.state {
                ShareState::Over(_) => {}
                ShareState::Leased(lease) => {
                    held = true;
                    let (session, number) = (lease.session, lease.number);
                    let stop = Stop { lease: lease.id(recipient), reason: Text::cut("cancelled"), grace_ms };
                    fx.send(session, stop);
                    let by = self.stops.entry(number).or_insert(until);
                    *by = until.min(*by);
                    self.timers.set(until, Timer::Stop { task: key, recipient, number });
                }
                _ => {
                    self.withdraw(key, recipient);
                    self.shift(key, recipient, ShareState::Over(TaskState::Cancelled));
                    let task = &mut self.tasks[key];
                    // Of one to nobody nobody has failed.
                    let any = !task.spec.recipients.is_empty();
                    if let Some(fanout) = task.fanout_mut().filter(|_| any) {
                        fanout.failed += 1;
                        // Of a task that its producer does not know to be accepted yet the end is told alone.
                        if self.tasks[key].is_durable() {
                            self.event(key, recipient, None, fx);
                        }
                    }
                }
            }
        }
        if held {
            if first {
                self.store(StoreOp::Amend(id, Amendment::Cancelling), fx);
            }
            return TaskState::Leased;
        }
        self.finish_cancelled(key, None, fx);
        TaskState::Cancelled
    }

    fn finish_cancelled(&mut self, key: u32, error: Option<ErrorText>, fx: &mut Effects) {
        let queue = self.tasks[key].queue;
        self.queues[queue as usize].tally(Tally::Cancelled);
        self.finish(key, Fate::cancelled(error), fx);
    }

    /// A share of a task that is being cancelled has come back from its worker without an ack.
    pub(super) fn stopped(&mut self, key: u32, recipient: u32, error: Option<ErrorText>, fx: &mut Effects) {
        self.shift(key, recipient, ShareState::Over(TaskState::Cancelled));
        if self.tasks[key].fanout().is_none() {
            return self.finish_cancelled(key, error, fx);
        }
        let task = &mut self.tasks[key];
        if let Some(share) = task.share_mut(recipient).filter(|_| error.is_some()) {
            share.notes_mut().broken_off = error;
        }
        if let Some(fanout) = task.fanout_mut() {
            fanout.failed += 1;
        }
        self.event(key, recipient, None, fx);
        self.decide_cancelled(key, fx);
    }

    /// Ends a task to all that is being cancelled, once nobody has it any longer.
    pub(super) fn decide_cancelled(&mut self, key: u32, fx: &mut Effects) {
        let task = &self.tasks[key];
        if !task.is_leased() && !task.decided {
            self.finish_cancelled(key, None, fx);
        }
    }

    /// A worker that was told to stop has not: its lease ends.
    pub(super) fn stop_due(&mut self, task: u32, recipient: u32, number: u64, fx: &mut Effects) {
        if self.current_lease(task, recipient, number).is_none() || !self.tasks[task].cancelling {
            return;
        }
        let freed = self.revoke(task, recipient, RevokeReason::Cancelled, fx);
        if self.tasks[task].decided {
            self.lay_down(task, recipient);
        } else {
            self.stopped(task, recipient, None, fx);
        }
        if let Some(key) = freed {
            self.feed(key, fx);
        }
    }

    /// A worker has broken off as it was told.
    pub(super) fn cancelled(
        &mut self,
        origin: Origin,
        session: SessionId,
        message: Cancelled,
        fx: &mut Effects,
    ) {
        if let Some((task, _)) = self.find_lease(session, &message.lease)
            && !self.tasks[task].cancelling
        {
            let error = Error::new(
                ErrorCode::Conflict,
                "`cancelled` answers a `stop`, and none was sent for this lease: send `nack` or `release`",
            );
            return fx.answer(&origin, error.lease(&message.lease));
        }
        let leases = taskyard_proto::LeaseList::One(message.lease);
        self.settle(origin, session, &leases, Verb::Cancelled, fx, |shard, task, recipient, _, fx| {
            if shard.tasks[task].decided {
                shard.lay_down(task, recipient);
            } else {
                shard.stopped(task, recipient, message.error.clone(), fx);
            }
        });
    }
}
