//! A start: the store's operations are replayed, then everything goes on as if nothing had been.

use super::effect::Effects;
use super::record::{Amendment, Failure, FinishRecord, StoreOp};
use super::shard::{Place, Shard};
use super::task::ShareState;
use super::time::Time;
use taskyard_proto::{TaskId, TaskState};

/// A replay under way. Operations come in the store's order; [`Replay::begin`] ends it.
#[derive(Debug)]
pub struct Replay {
    shard: Shard,
    /// The ends of tasks, which are put in order of their time at the end.
    finished: super::shard::HashMap<TaskId, FinishRecord>,
    order: Vec<TaskId>,
}

impl Replay {
    /// Begins with nothing.
    pub fn new(shard: Shard) -> Replay {
        Replay { shard, finished: super::shard::HashMap::default(), order: Vec::new() }
    }

    /// Takes the next operation in.
    pub fn operation(&mut self, op: StoreOp) {
        match op {
            StoreOp::Accept(spec) => {
                self.drop_task(spec.id);
                self.finished.remove(&spec.id);
                let queue = self.shard.queue_or_new(&spec.queue);
                self.shard.next_seq = self.shard.next_seq.max(spec.seq + 1);
                let key = self.shard.insert(spec, queue);
                self.shard.tasks[key as usize].durable = true;
            }
            StoreOp::Amend(id, amendment) => self.amend(id, amendment),
            StoreOp::Finish(record) => {
                self.drop_task(record.task);
                // A record that was moved in the store comes a second time; it is still one task.
                let task = record.task;
                if self.finished.insert(task, record).is_none() {
                    self.order.push(task);
                }
            }
            StoreOp::Queue(record) => {
                let queue = self.shard.queue_or_new(&record.queue);
                self.shard.queues[queue as usize].raise_totals(record.totals);
            }
            // Of what is remembered beside tasks and queues.
            StoreOp::Dedup(_)
            | StoreOp::Schedule(_)
            | StoreOp::Unschedule(_)
            | StoreOp::Session(_)
            | StoreOp::Unsession(_) => {}
            StoreOp::Forget(id) | StoreOp::Delete(id) => {
                self.drop_task(id);
                self.finished.remove(&id);
            }
        }
    }

    fn drop_task(&mut self, id: TaskId) {
        if let Some(Place::Live(key)) = self.shard.ids.remove(&id) {
            let task = self.shard.tasks.remove(key as usize);
            self.shard.state_counts(task.queue)[task.state() as usize] -= 1;
            self.shard.weight -= super::task::Task::weight(&task.spec);
            self.shard.unload(task.spec.account.as_ref(), task.spec.payload.bytes().len() as u64);
        }
    }

    fn amend(&mut self, id: TaskId, amendment: Amendment) {
        let Some(Place::Live(key)) = self.shard.ids.get(&id).copied() else { return };
        let recipient = match &amendment {
            Amendment::Failed { recipient, .. }
            | Amendment::Deferred { recipient, .. }
            | Amendment::Acked { recipient, .. }
            | Amendment::Leased { recipient, .. }
            | Amendment::Returned { recipient }
            | Amendment::Delivered { recipient } => *recipient,
            Amendment::Cancelling | Amendment::Redriven => return,
        };
        let task = &mut self.shard.tasks[key as usize];
        // Events are counted from 1; those of the process before went with their watchers.
        task.event_seq += 1;
        let Some(share) = task.share_mut(recipient) else { return };
        // Who was absent all along was handed nothing; everything else that happens follows a delivery.
        let absent =
            matches!(&amendment, Amendment::Failed { attempt, .. } if attempt.reason == Failure::Absent);
        let first_delivery = !absent && !share.counted;
        if !absent {
            share.delivered = true;
            share.delivered_stored = true;
            share.counted = true;
        }
        let next = match amendment {
            Amendment::Failed { attempt, due, lost, .. } => {
                share.charged = attempt.attempt;
                share.lost = lost;
                share.record_failure(attempt);
                Some(due.map_or(ShareState::Over(TaskState::Dead), |due| ShareState::Retrying { due }))
            }
            Amendment::Deferred { due, .. } => Some(ShareState::Scheduled { due }),
            Amendment::Acked { result, .. } => {
                if !result.is_null() {
                    share.notes_mut().result = result;
                }
                Some(ShareState::Over(TaskState::Done))
            }
            Amendment::Delivered { .. }
            | Amendment::Leased { .. }
            | Amendment::Returned { .. }
            | Amendment::Cancelling
            | Amendment::Redriven => None,
        };
        if let Some(fanout) = &mut task.fanout {
            fanout.delivered += u64::from(first_delivery);
            match &next {
                Some(ShareState::Over(TaskState::Done)) => fanout.acked += 1,
                Some(ShareState::Over(_)) => fanout.failed += 1,
                _ => {}
            }
        }
        if let Some(state) = next {
            self.shard.shift(key, recipient, state);
        }
    }

    /// Ends the replay: the shard is ready for commands.
    ///
    /// `clean` says that the process before stopped in order, so that what it wrote of deliveries is
    /// complete. Otherwise any task that may have been handed out counts as handed out: the next
    /// delivery is flagged.
    /// `start` grows with every start of the store: lease numbers begin with it.
    pub fn begin(mut self, now: Time, clean: bool, start: u32, fx: &mut Effects) -> Shard {
        self.shard.now = self.shard.now.max(now);
        self.shard.begin_leases(start);
        let mut finished = std::mem::take(&mut self.finished);
        let records = self.order.iter().filter_map(|id| finished.remove(id)).collect();
        self.shard.restore_kept(records, fx);
        let mut keys: Vec<(u64, u32)> =
            self.shard.tasks.iter().map(|(key, task)| (task.spec.seq, key as u32)).collect();
        keys.sort_unstable();
        for (_, key) in keys {
            let task = &mut self.shard.tasks[key as usize];
            for recipient in 0..task.recipients() {
                let share = task.share_mut(recipient).expect("the recipients were counted");
                share.delivered |= !clean;
            }
            if task.state() == TaskState::Dead && task.fanout.is_none() {
                continue;
            }
            self.shard.activate(key, fx);
        }
        self.shard
    }
}

impl Shard {
    /// What the store must still learn before an orderly stop, so that the next process knows which
    /// deliveries are not the first.
    pub fn last_words(&mut self, fx: &mut Effects) {
        // Of what is handed out later, when the last sync ends, the store would not know.
        self.stop_deliveries();
        let mut unknown = Vec::new();
        for (_, task) in &mut self.tasks {
            let id = task.spec.id;
            let to_nobody = task.fanout.is_some() && task.spec.recipients.is_empty();
            for recipient in 0..task.recipients() {
                let Some(share) = task.share_mut(recipient).filter(|_| !to_nobody) else { continue };
                // An ack or a failed attempt is itself a word that the task was handed out.
                let acked = matches!(share.state, ShareState::Over(TaskState::Done));
                let told = share.delivered_stored || share.charged > 0 || acked;
                if share.delivered && !told {
                    share.delivered_stored = true;
                    unknown.push((id, recipient));
                }
            }
        }
        for (id, recipient) in unknown {
            self.store(StoreOp::Amend(id, Amendment::Delivered { recipient }), fx);
        }
    }
}
