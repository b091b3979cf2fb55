//! Dead letters: found, given new attempts, forgotten.

use taskyard_proto::{Error, ErrorCode, TaskId, TaskState};

use super::effect::Effects;
use super::manage::Which;
use super::record::{Amendment, StoreOp};
use super::shard::Shard;
use super::task::ShareState;

impl Shard {
    /// The dead letters that are meant, oldest first.
    pub(super) fn select_dead(&self, queue: u32, which: &Which) -> Result<Vec<TaskId>, Error> {
        let dead = &self.queues[queue as usize].dead;
        match which {
            Which::Filter(filter) => Ok(dead
                .values()
                .map(|key| &self.tasks[*key])
                .filter(|task| filter.lets_through(task, self.now))
                .map(|task| task.spec.id())
                .collect()),
            Which::Tasks(ids) => {
                let missing = ids.iter().find(|id| self.dead_letter(queue, **id).is_none());
                match missing {
                    None => Ok(ids.clone()),
                    Some(id) => {
                        let text = format!(
                            "task {id} is no dead letter of queue {}: nothing was done; see the list of its dead letters",
                            self.queues[queue as usize].name
                        );
                        Err(Error::new(ErrorCode::NotFound, text).task(*id))
                    }
                }
            }
        }
    }

    pub(super) fn dead_letter(&self, queue: u32, id: TaskId) -> Option<u32> {
        let key = self.live(id)?;
        let task = self.tasks.get(key).filter(|task| task.queue == queue)?;
        self.queues[queue as usize].dead.contains_key(&task.spec.seq).then_some(key)
    }

    /// A dead letter begins anew, with all its attempts; those of its recipients who have finished stay finished.
    /// It is not offered by this.
    pub(super) fn revive(&mut self, key: u32) {
        let now = self.now;
        let task = &mut self.tasks[key];
        let (queue, seq, bytes) = (task.queue, task.spec.seq, task.bytes());
        task.decided = false;
        task.cancelling = false;
        let (before, after) = (TaskState::Dead, task.state());
        if let Some(fanout) = task.fanout_mut() {
            fanout.failed = 0;
        }
        let found = &mut self.queues[queue as usize];
        found.counts[before as usize] -= 1;
        found.counts[after as usize] += 1;
        found.dead.remove(&seq);
        found.bytes += bytes;
        for recipient in 0..self.tasks[key].recipients() {
            let Some(share) = self.tasks[key].share_mut(recipient) else { continue };
            if matches!(share.state, ShareState::Over(TaskState::Done) | ShareState::Leased(_)) {
                continue;
            }
            (share.charged, share.lost, share.free_returns) = (0, false, 0);
            share.past = share.past.redriven();
            self.shift(key, recipient, ShareState::Queued { since: now });
        }
    }

    pub(super) fn redrive(&mut self, key: u32, fx: &mut Effects) {
        let id = self.tasks[key].spec.id();
        self.revive(key);
        self.store(StoreOp::Amend(id, Amendment::Redriven), fx);
        self.activate(key, fx);
    }

    /// Nobody wants it any longer.
    pub(super) fn delete_dead(&mut self, key: u32, fx: &mut Effects) {
        let task = &self.tasks[key];
        let (queue, spec, bytes, weighed) = (task.queue, task.spec.clone(), task.bytes(), task.weighed());
        self.weigh_out(weighed);
        let found = &mut self.queues[queue as usize];
        found.dead.remove(&spec.seq);
        found.counts[TaskState::Dead as usize] -= 1;
        self.unload(spec.account.as_ref(), bytes);
        self.unlist(spec.id(), key);
        // Leases of a task to all may still be out; the last of them takes it away.
        if !self.tasks[key].is_leased() {
            self.tasks.remove(key);
        }
        let dedup = spec.keys.as_ref().and_then(|keys| keys.dedup.clone()).map(|key| (key, spec.accepted));
        self.forget_but_dedup(queue, spec.id(), dedup, StoreOp::Delete(spec.id()), fx);
    }
}
