//! What happens when its time has come.

use slab::Slab;
use taskyard_proto::{RevokeReason, TaskState};

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

impl Shard {
    pub(super) fn current_lease(&self, task: u32, recipient: u32, number: u64) -> Option<&Lease> {
        let lease = self.tasks.get(task)?.share(recipient)?.lease()?;
        (lease.number == number).then_some(lease)
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
        let Some(lease) = lease.filter(|lease| lease.timer == at) else { return };
        if lease.deadline > now {
            // It was extended since.
            let deadline = lease.deadline;
            if let Some(lease) = self.tasks[task].share_mut(recipient).and_then(Share::lease_mut) {
                lease.timer = deadline;
            }
            self.timers.set(deadline, Timer::Lease { task, recipient, number });
            return;
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
        | Timer::Resume { .. }
        | Timer::Schedule { .. }
        | Timer::Job { .. } => true,
    }
}
