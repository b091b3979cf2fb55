//! Payloads leave memory when there are too many, and come back before they are due.
//!
//! Nothing but a delivery needs a payload, and the store has it. So when those in memory are over their bound, what
//! comes in leaves as soon as it is stored, but for the next few of its queue. As a lane is worked off, what comes up
//! is fetched ahead. Where the next task's payload is not there yet, its queue waits for it: order is kept.

use std::sync::Arc;

use taskyard_proto::{QueueName, TaskId};

use super::command::Fetched;
use super::effect::Effects;
use super::queue::LaneKey;
use super::ready::Entry;
use super::shard::Shard;
use super::task::{Held, ShareState};

/// The next so many tasks of a queue keep their payloads when others leave: whoever submits to a queue that is
/// worked off must not wait for the disk because of another that is not. That ends at twice the bound.
const NEAR_TASKS: u64 = 256;

/// How far ahead of its workers a lane is looked through: some milliseconds of work at 100,000 tasks a second, which a
/// disk needs to answer.
const AHEAD_TASKS: usize = 512;

/// How much may be fetched and not yet with a worker, in bytes. Beyond it lanes get what they cannot go on without.
const AHEAD_BYTES: u64 = 16 << 20;

/// A lane is looked through again at the earliest after so many deliveries, whatever was found.
const AHEAD_STEP: usize = AHEAD_TASKS / 4;

impl Shard {
    /// Counts what a task takes in memory, now that it came in.
    pub(super) fn weigh_in(&mut self, key: u32) {
        let task = &self.tasks[key];
        self.weight += task.weight();
        self.payload_bytes += task.bytes();
    }

    /// It ends: what it took in memory is free.
    pub(super) fn weigh_out(&mut self, key: u32) {
        let task = &self.tasks[key];
        let bytes = task.bytes();
        self.weight -= task.weight();
        match task.held {
            Held::Unstored | Held::Early | Held::Here => self.payload_bytes -= bytes,
            Held::Away => self.away -= 1,
            Held::Coming => (self.away, self.ahead_bytes) = (self.away - 1, self.ahead_bytes - bytes),
            Held::Back => {
                self.payload_bytes -= bytes;
                self.ahead_bytes -= bytes;
            }
        }
    }

    /// Lets the payload of a task that waits leave memory if there are too many; the store must hold it.
    pub(super) fn put_away(&mut self, key: u32) {
        let Some(bound) = self.config.payload_memory_bytes else { return };
        if self.payload_bytes <= bound {
            return;
        }
        let Some(task) = self.tasks.get_mut(key) else { return };
        // Recipients of a task to all take turns with the one payload: it goes with the last of them.
        if task.held != Held::Here || task.payload_bytes == 0 || task.fanout().is_some() {
            return;
        }
        let near = match task.first.state {
            ShareState::Leased(_) => return,
            ShareState::Queued { .. } => {
                let queued =
                    self.queues[task.queue as usize].counts[taskyard_proto::TaskState::Queued as usize];
                queued <= NEAR_TASKS && self.payload_bytes <= 2 * bound
            }
            ShareState::Scheduled { .. } | ShareState::Retrying { .. } | ShareState::Over(_) => false,
        };
        if !near {
            (task.payload, task.held) = (None, Held::Away);
            self.away += 1;
            self.payload_bytes -= task.bytes();
            self.weight -= task.bytes();
        }
    }

    /// A task goes to a worker: its payload is there.
    pub(super) fn handed_out(&mut self, key: u32) {
        let task = &mut self.tasks[key];
        if task.held == Held::Back {
            task.held = Held::Here;
            self.ahead_bytes -= u64::from(task.payload_bytes);
        }
    }

    /// Whether a queue gives out its tasks in order over all lanes, and not to whoever asks: for its limits, or because
    /// the payload of one that waits is away, which is looked at once the command is done.
    pub(super) fn goes_in_order(&self, queue: u32) -> bool {
        let found = &self.queues[queue as usize];
        found.limited || found.lacks.is_some() || (self.away > 0 && self.to_pump.contains(&queue))
    }

    /// Whether the next task of a lane must wait for its payload; then its queue does.
    pub(super) fn must_wait(&mut self, queue: u32, lane: &LaneKey, entry: Entry, fx: &mut Effects) -> bool {
        if self.tasks[entry.task].payload.is_some() {
            return false;
        }
        let id = self.tasks[entry.task].spec.id();
        self.queues[queue as usize].lacks = Some(id);
        self.lacking.insert(id, queue);
        self.fetch(entry.task, fx);
        self.look_ahead(queue, lane, fx);
        true
    }

    /// After a delivery from a lane: fetches what comes up, if that was not looked at lately.
    pub(super) fn come_nearer(&mut self, queue: u32, lane: &LaneKey, fx: &mut Effects) {
        if self.away > 0 && !self.queues[queue as usize].ready_mut(lane).step_ahead() {
            self.look_ahead(queue, lane, fx);
        }
    }

    fn look_ahead(&mut self, queue: u32, lane: &LaneKey, fx: &mut Effects) {
        let list = self.queues[queue as usize].ready_mut(lane);
        let coming: Vec<Entry> = list.upcoming(AHEAD_TASKS).collect();
        list.looked_ahead(AHEAD_STEP);
        for entry in coming {
            let away = |task: &&super::task::Task| task.spec.seq == entry.seq && task.held == Held::Away;
            let Some(task) = self.tasks.get(entry.task).filter(away) else { continue };
            if self.ahead_bytes + task.bytes() > AHEAD_BYTES {
                return;
            }
            self.fetch(entry.task, fx);
        }
    }

    fn fetch(&mut self, key: u32, fx: &mut Effects) {
        let task = &mut self.tasks[key];
        if task.held == Held::Away {
            task.held = Held::Coming;
            self.ahead_bytes += u64::from(task.payload_bytes);
            fx.fetch.push(task.spec.id());
        }
    }

    /// Payloads are back from the store; of those that ended meanwhile nobody needs them.
    pub(super) fn fetched(&mut self, fetched: Vec<Fetched>, fx: &mut Effects) {
        for Fetched { task: id, payload } in fetched {
            if let Some(key) = self.live(id)
                && self.tasks[key].held == Held::Coming
            {
                match payload {
                    Some(payload) => {
                        let task = &mut self.tasks[key];
                        let bytes = task.bytes();
                        (task.payload, task.held) = (Some(Arc::new(payload)), Held::Back);
                        self.away -= 1;
                        self.payload_bytes += bytes;
                        self.weight += bytes;
                    }
                    None => fx.missing = Some(id),
                }
            }
            if let Some(queue) = self.lacking.remove(&id) {
                self.queues[queue as usize].lacks = None;
                self.pump_later(queue);
            }
        }
    }

    /// Whether a queue's next task waits for its payload, and all others with it.
    pub fn lacks_payload(&self, queue: &QueueName) -> bool {
        self.lacking_task(queue).is_some()
    }

    fn lacking_task(&self, queue: &QueueName) -> Option<TaskId> {
        self.queues[*self.queue_names.get(queue)? as usize].lacks
    }

    /// How many payloads are not in memory; how many bytes are, and how many of these were fetched ahead of a worker.
    pub fn payloads(&self) -> (u64, u64, u64) {
        (self.away, self.payload_bytes, self.ahead_bytes)
    }
}
