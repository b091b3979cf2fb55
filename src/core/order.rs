//! Order keys: of the tasks of one key one at a time is with a worker or waits for its next attempt, and they go
//! in the order in which they were accepted.

use std::collections::BTreeMap;

use taskyard_proto::{Key, TaskId};

use super::effect::Effects;
use super::shard::Shard;
use super::task::{Share, ShareState};

/// The queued, leased and retrying tasks of one order key.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// The one that may go, or is under way.
    head: Option<u32>,
    /// Those behind it, by their place in order of acceptance. They are queued, and in no lane.
    behind: BTreeMap<u64, u32>,
}

impl Shard {
    fn order_key(&self, task: u32) -> Option<(u32, Key)> {
        let task = self.tasks.get(task)?;
        let key = task.spec.keys.as_ref()?.order.clone()?;
        Some((task.queue, key))
    }

    /// Whether a queued task may go to a worker; if not it waits behind another of its key.
    pub(super) fn may_go(&mut self, task: u32, fx: &mut Effects) -> bool {
        let Some((queue, key)) = self.order_key(task) else { return true };
        let seq = self.tasks[task].spec.seq;
        let chain = self.queues[queue as usize].chains.entry(key.clone()).or_default();
        let head = match chain.head {
            Some(head) if head != task => head,
            _ => {
                chain.head = Some(task);
                let earlier = chain.behind.first_key_value().filter(|(other, _)| **other < seq);
                let Some((_, earlier)) = earlier.map(|(seq, task)| (*seq, *task)) else { return true };
                if self.tasks[task].is_under_way() {
                    return true;
                }
                // It came back, and one that was accepted before it waits by now.
                self.step_back(queue, &key, task);
                self.claim(queue, &key, earlier);
                self.offer_all(earlier, fx);
                return false;
            }
        };
        let other = &self.tasks[head];
        if other.spec.seq < seq || other.is_under_way() {
            self.put_behind(queue, &key, task);
            return false;
        }
        // It came later, and nobody has it yet.
        self.step_back(queue, &key, head);
        self.claim(queue, &key, task);
        true
    }

    /// A task that is with a worker, or waits for its next attempt, has its key, whoever stood in front: so it was
    /// before the restart.
    pub(super) fn claim_key(&mut self, task: u32) {
        let Some((queue, key)) = self.order_key(task) else { return };
        let chain = self.queues[queue as usize].chains.entry(key.clone()).or_default();
        match chain.head {
            Some(head) if head != task => {
                self.step_back(queue, &key, head);
                self.claim(queue, &key, task);
            }
            _ => chain.head = Some(task),
        }
    }

    fn claim(&mut self, queue: u32, key: &Key, task: u32) {
        let seq = self.tasks[task].spec.seq;
        let found = &mut self.queues[queue as usize];
        found.blocked.remove(&seq);
        let chain = found.chains.entry(key.clone()).or_default();
        chain.behind.remove(&seq);
        chain.head = Some(task);
    }

    fn put_behind(&mut self, queue: u32, key: &Key, task: u32) {
        let seq = self.tasks[task].spec.seq;
        let found = &mut self.queues[queue as usize];
        found.blocked.insert(seq, task);
        found.chains.entry(key.clone()).or_default().behind.insert(seq, task);
    }

    /// The head leaves its lanes and waits behind.
    fn step_back(&mut self, queue: u32, key: &Key, head: u32) {
        for recipient in 0..self.tasks[head].recipients() {
            self.withdraw(head, recipient);
        }
        self.put_behind(queue, key, head);
    }

    /// A task has finished, or waits for a time of its own: the next of its key may go.
    pub(super) fn free_key(&mut self, queue: u32, key: &Key, task: u32, seq: u64, fx: &mut Effects) {
        let found = &mut self.queues[queue as usize];
        found.blocked.remove(&seq);
        let Some(chain) = found.chains.get_mut(key) else { return };
        chain.behind.remove(&seq);
        if chain.head == Some(task) {
            chain.head = None;
        }
        if chain.head.is_some() {
            return;
        }
        let Some((_, next)) = chain.behind.pop_first() else {
            // Keys come and go without end.
            found.chains.remove(key);
            return;
        };
        chain.head = Some(next);
        let next_seq = self.tasks[next].spec.seq;
        self.queues[queue as usize].blocked.remove(&next_seq);
        self.offer_all(next, fx);
    }

    fn offer_all(&mut self, task: u32, fx: &mut Effects) {
        for recipient in 0..self.tasks[task].recipients() {
            let share = self.tasks.get(task).and_then(|task| task.share(recipient));
            if matches!(share, Some(Share { state: ShareState::Queued { .. }, .. })) {
                self.offer(task, recipient, fx);
            }
        }
    }

    /// The same for a task that is still here.
    pub(super) fn free_key_of(&mut self, task: u32, fx: &mut Effects) {
        if let Some((queue, key)) = self.order_key(task) {
            let seq = self.tasks[task].spec.seq;
            self.free_key(queue, &key, task, seq, fx);
        }
    }

    /// The task that a queued one waits for.
    pub(super) fn order_blocked_by(&self, task: u32) -> Option<TaskId> {
        let (queue, key) = self.order_key(task)?;
        let head = self.queues[queue as usize].chains.get(&key)?.head?;
        (head != task).then(|| self.tasks[head].spec.id())
    }
}
