//! What operators do to queues, tasks and workers. Work on many tasks is done in slices, so that nobody waits for it.

use std::collections::VecDeque;
use std::sync::Arc;

use taskyard_proto::{
    AwayReason, CloseCode, Error, ErrorCode, GoingAway, QueueName, RevokeReason, TaskId, TaskState,
    WorkerName,
};

use super::access::Access;
use super::command::{CallId, SessionId};
use super::effect::{Effects, Output};
use super::grants::Action;
use super::manage::{Manage, Report, TaskFilter, Which};
use super::record::{Failure, StoreOp};
use super::settings::Pause;
use super::shard::Shard;
use super::time::Time;
use super::timers::Timer;

/// How many slots a slice looks at, and how many tasks it changes.
const SLICE_SLOTS: u32 = 20_000;
const SLICE_TASKS: usize = 1000;
/// How many long pieces of work there may be at a time.
pub const JOBS_MAX: usize = 64;

/// A long piece of work.
#[derive(Debug)]
pub(super) struct Job {
    queue: u32,
    kind: Kind,
    /// Who waits for its end; none: they were answered.
    call: Option<CallId>,
    count: u64,
    stopping: u64,
}

#[derive(Debug)]
enum Kind {
    /// Cancels what a filter lets through of what was there when it began.
    Cancel { filter: TaskFilter, held_too: bool, grace_ms: u64, slot: u32, before: u64 },
    /// Gives these dead letters new attempts, so many a second.
    Redrive { tasks: VecDeque<TaskId>, rate_per_s: Option<f64> },
    /// Forgets these dead letters.
    Delete { tasks: VecDeque<TaskId> },
}

impl Kind {
    /// Whether it goes on at a rate of its own, however long that takes.
    fn is_slow(&self) -> bool {
        matches!(self, Kind::Redrive { rate_per_s: Some(_), .. })
    }
}

impl Shard {
    pub(super) fn manage(
        &mut self,
        call: CallId,
        access: Option<Arc<Access>>,
        manage: Manage,
        fx: &mut Effects,
    ) {
        match self.operate(call, access, manage, fx) {
            // Its answer comes later.
            Ok(None) => {}
            Ok(Some(report)) => self.report_when_durable(call, report, fx),
            Err(error) => fx.outputs.push(Output::Report { call, report: Report::Refused(Box::new(error)) }),
        }
    }

    fn operate(
        &mut self,
        call: CallId,
        access: Option<Arc<Access>>,
        manage: Manage,
        fx: &mut Effects,
    ) -> Result<Option<Report>, Error> {
        let owner = access.clone();
        let access = access.as_deref();
        match manage {
            Manage::Declare { queue: name, changes } => {
                self.check_grant(access, Action::Manage, &name)?;
                let known = self.queue_names.contains_key(&name);
                let queue = self.use_queue(access, &name)?;
                let found = &mut self.queues[queue as usize];
                found.declared = true;
                let rate = found.settings.rate_per_s;
                found.settings.merge(*changes);
                found.alike.forget_bare();
                if found.settings.rate_per_s != rate {
                    // What the old rate would make wait does not wait for it.
                    found.rate_until = found.rate_until.min(self.now);
                    found.rate_timer = None;
                }
                found.recheck();
                if let Some(oldest) = found.kept.front() {
                    let keep_ms = found.settings.keep_result_ms.unwrap_or(self.config.keep_ms);
                    let at = oldest.finished.plus_ms(keep_ms).max(self.now);
                    found.kept_timer = Some(at);
                    self.timers.set(at, Timer::Kept { queue });
                }
                self.store_queue(queue, fx);
                self.pump_later(queue);
                Ok(Some(if known { Report::Done } else { Report::Created }))
            }
            Manage::Pause { queue, for_ms, reason } => {
                self.check_grant(access, Action::Manage, &queue)?;
                let queue = self.use_queue(access, &queue)?;
                let until = for_ms.map(|ms| self.now.plus_ms(ms));
                let by = access.map(|access| access.account.clone());
                let found = &mut self.queues[queue as usize];
                found.pause = Some(Pause { by, reason, until });
                found.recheck();
                if let Some(until) = until {
                    self.timers.set(until, Timer::Unpause { queue });
                }
                self.store_queue(queue, fx);
                Ok(Some(Report::Done))
            }
            Manage::Unpause { queue } => {
                let queue = self.managed(access, &queue)?;
                self.unpause(queue, fx);
                Ok(Some(Report::Done))
            }
            Manage::Purge { queue } => {
                let queue = self.managed(access, &queue)?;
                let states = vec![TaskState::Scheduled, TaskState::Queued, TaskState::Retrying];
                let filter = TaskFilter { states, ..TaskFilter::default() };
                self.begin_cancel(call, queue, filter, false, 0, fx)
            }
            Manage::CancelMany { queue, filter, grace_ms } => {
                let queue = self.managed(access, &queue)?;
                self.begin_cancel(call, queue, filter, true, grace_ms, fx)
            }
            Manage::Redrive { queue, which, rate_per_s } => {
                let queue = self.managed(access, &queue)?;
                let tasks: VecDeque<TaskId> = self.select_dead(queue, &which)?.into();
                let count = tasks.len() as u64;
                // At a rate it may take long: the answer is how many it will be.
                let waits = rate_per_s.is_none();
                self.begin(call, waits, queue, Kind::Redrive { tasks, rate_per_s }, fx)?;
                Ok((!waits).then_some(Report::Count(count)))
            }
            Manage::DeleteDead { queue, which } => {
                let queue = self.managed(access, &queue)?;
                let tasks: VecDeque<TaskId> = self.select_dead(queue, &which)?.into();
                self.begin(call, true, queue, Kind::Delete { tasks }, fx)?;
                Ok(None)
            }
            Manage::DrainWorker { worker } => {
                for id in self.sessions_named(access, &worker)? {
                    self.drain_worker(id, fx);
                }
                Ok(Some(Report::Done))
            }
            Manage::RemoveWorker { worker } => {
                for id in self.sessions_named(access, &worker)? {
                    self.remove_worker(id, fx);
                }
                Ok(Some(Report::Done))
            }
            Manage::PutSchedule { name, rhythm, missed, submit } => {
                self.put_schedule(call, owner, name, rhythm, missed, *submit, fx);
                Ok(None)
            }
            Manage::DeleteSchedule { name } => {
                self.delete_schedule(call, owner, &name, fx);
                Ok(None)
            }
        }
    }

    /// A queue that is there, for somebody who may manage it.
    fn managed(&mut self, access: Option<&Access>, name: &QueueName) -> Result<u32, Error> {
        self.check_grant(access, Action::Manage, name)?;
        self.queue_names.get(name).copied().ok_or_else(|| {
            let text =
                format!("there is no queue {name}: the first submit, subscribe, pull, pause or PUT makes it");
            Error::new(ErrorCode::NotFound, text)
        })
    }

    fn store_queue(&mut self, queue: u32, fx: &mut Effects) {
        let record = self.queues[queue as usize].record();
        self.store(StoreOp::Queue(Box::new(record)), fx);
    }

    fn unpause(&mut self, queue: u32, fx: &mut Effects) {
        let found = &mut self.queues[queue as usize];
        if found.pause.take().is_some() {
            found.recheck();
            self.store_queue(queue, fx);
            self.pump_later(queue);
        }
    }

    pub(super) fn unpause_due(&mut self, queue: u32, at: Time, fx: &mut Effects) {
        let pause = self.queues.get(queue as usize).and_then(|found| found.pause.as_ref());
        // It may have been ended, or another been made, meanwhile.
        if pause.is_some_and(|pause| pause.until == Some(at)) {
            self.unpause(queue, fx);
        }
    }

    // --- Workers ------------------------------------------------------------------------------

    /// The sessions of a worker's name, in whatever account.
    fn sessions_named(
        &mut self,
        access: Option<&Access>,
        worker: &WorkerName,
    ) -> Result<Vec<SessionId>, Error> {
        if let Some(access) = access
            && !access.grants.may_every(Action::Manage)
        {
            self.refusals.forbidden += 1;
            let text = format!(
                "the token of {} may not drain or remove workers: that takes the permission manage:*",
                access.account
            );
            return Err(Error::new(ErrorCode::Forbidden, text));
        }
        let named: Vec<SessionId> = self
            .session_ids()
            .into_iter()
            .filter(|id| {
                let session = &self.sessions[id];
                session.worker == *worker && session.pull.is_none()
            })
            .collect();
        if named.is_empty() {
            let text = format!("no worker named {worker} is connected");
            return Err(Error::new(ErrorCode::NotFound, text));
        }
        Ok(named)
    }

    fn drain_worker(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.draining = true;
        for (_, key) in session.subscriptions.clone() {
            self.refresh(key);
        }
        // It is not told to go: it finishes what it holds, in its own time.
        fx.send(id, GoingAway { reason: AwayReason::Operator, grace_ms: 0, reconnect_after_ms: 0 });
    }

    fn remove_worker(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get(&id) else { return };
        let mut held: Vec<(u32, u32)> = session.held().collect();
        held.sort_unstable_by_key(|(task, recipient)| (self.tasks[*task].spec.seq, *recipient));
        self.remove_subscriptions(id, fx);
        for (task, recipient) in held {
            self.revoke(task, recipient, RevokeReason::Removed, fx);
            self.lost(task, recipient, Failure::WorkerLost, fx);
        }
        fx.outputs.push(Output::Close {
            session: id,
            code: CloseCode::REMOVED,
            reason: "an operator removed this worker",
        });
        self.end(id, false, fx);
    }

    // --- Long work ----------------------------------------------------------------------------

    fn begin_cancel(
        &mut self,
        call: CallId,
        queue: u32,
        filter: TaskFilter,
        held_too: bool,
        grace_ms: u64,
        fx: &mut Effects,
    ) -> Result<Option<Report>, Error> {
        let kind = Kind::Cancel { filter, held_too, grace_ms, slot: 0, before: self.next_seq };
        self.begin(call, true, queue, kind, fx)?;
        Ok(None)
    }

    fn begin(
        &mut self,
        call: CallId,
        waits: bool,
        queue: u32,
        kind: Kind,
        fx: &mut Effects,
    ) -> Result<(), Error> {
        if kind.is_slow() {
            // One may take years: a queue has one, the latest, and it is in nobody else's way.
            self.jobs.retain(|_, job| job.queue != queue || !job.kind.is_slow());
        } else if self.jobs.values().filter(|job| !job.kind.is_slow()).count() >= JOBS_MAX {
            let text = format!(
                "{JOBS_MAX} purges, redrives and the like are under way, the most that may: try again when one is done"
            );
            return Err(Error::new(ErrorCode::Unavailable, text));
        }
        let number = self.next_job;
        self.next_job += 1;
        self.jobs.insert(number, Job { queue, kind, call: waits.then_some(call), count: 0, stopping: 0 });
        self.work(number, fx);
        Ok(())
    }

    /// Does a slice of a long piece of work; the next one comes with a timer.
    pub(super) fn work(&mut self, number: u64, fx: &mut Effects) {
        let Some(mut job) = self.jobs.remove(&number) else { return };
        let next = match &mut job.kind {
            Kind::Cancel { .. } => self.cancel_slice(&mut job, fx),
            Kind::Redrive { .. } | Kind::Delete { .. } => self.dead_slice(&mut job, fx),
        };
        if let Some(at) = next {
            self.timers.set(at, Timer::Job { number });
            self.jobs.insert(number, job);
            return;
        }
        let Some(call) = job.call else { return };
        let report = match job.kind {
            Kind::Cancel { held_too: true, .. } => {
                Report::Cancelled { cancelled: job.count, stopping: job.stopping }
            }
            _ => Report::Count(job.count),
        };
        self.report_when_durable(call, report, fx);
    }

    fn cancel_slice(&mut self, job: &mut Job, fx: &mut Effects) -> Option<Time> {
        let Kind::Cancel { filter, held_too, grace_ms, slot, before } = &mut job.kind else { return None };
        let end = slot.saturating_add(SLICE_SLOTS).min(self.tasks.end());
        let mut found: Vec<(u64, u32)> = Vec::new();
        while *slot < end && found.len() < SLICE_TASKS {
            if let Some(task) = self.tasks.peek(*slot)
                && task.queue == job.queue
                && task.spec.seq < *before
                && !task.state().is_final()
                && filter.lets_through(&task, self.now)
                && self.live(task.spec.id()) == Some(*slot)
            {
                found.push((task.spec.seq, *slot));
            }
            *slot += 1;
        }
        let (held_too, grace_ms) = (*held_too, *grace_ms);
        let more = *slot < self.tasks.end();
        found.sort_unstable();
        for (seq, key) in found {
            // What came before in this slice may have freed an order key, and a worker may have it now.
            let Some(task) = self.tasks.get(key).filter(|task| task.spec.seq == seq) else {
                continue;
            };
            if !held_too && task.state() == TaskState::Leased {
                continue;
            }
            match self.cancel_task(key, grace_ms, fx) {
                TaskState::Leased => job.stopping += 1,
                _ => job.count += 1,
            }
        }
        more.then_some(self.soon())
    }

    fn dead_slice(&mut self, job: &mut Job, fx: &mut Effects) -> Option<Time> {
        let (tasks, rate, again) = match &mut job.kind {
            Kind::Redrive { tasks, rate_per_s } => (tasks, *rate_per_s, true),
            Kind::Delete { tasks } => (tasks, None, false),
            Kind::Cancel { .. } => return None,
        };
        // At a rate, a hundredth of a second's worth at a time.
        let most = rate.map_or(SLICE_TASKS, |rate| ((rate * 0.01) as usize).clamp(1, SLICE_TASKS));
        let (mut done, mut looked) = (0, 0);
        while done < most && looked < SLICE_SLOTS {
            let id = tasks.pop_front()?;
            looked += 1;
            // Somebody else may have been quicker.
            let Some(key) = self.dead_letter(job.queue, id) else { continue };
            if again {
                self.redrive(key, fx);
            } else {
                self.delete_dead(key, fx);
            }
            done += 1;
            job.count += 1;
        }
        let pause_us = rate.map_or(0.0, |rate| done as f64 / rate * 1e6);
        (!tasks.is_empty()).then_some(self.soon().max(Time(self.now.0.saturating_add(pause_us as u64))))
    }

    /// When the next slice is due: not at this very moment, which whoever does all that is due would call due still,
    /// and no command would come between two slices.
    fn soon(&self) -> Time {
        Time(self.now.0.saturating_add(1))
    }
}

impl Which {
    /// All dead letters.
    pub fn all() -> Which {
        Which::Filter(TaskFilter::default())
    }
}
