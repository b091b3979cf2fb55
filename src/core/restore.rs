//! A start: the store's operations are replayed, then everything goes on as if nothing had been.

use std::collections::{BTreeMap, BTreeSet};

use super::command::SessionId;
use super::effect::Effects;
use super::record::{
    Amendment, DedupRecord, Ended, Failure, FinishRecord, ScheduleName, SessionRecord, StoreOp,
};
use super::session::Session;
use super::shard::Shard;
use super::task::{Again, Held, Lease, Past, ShareState, Task};
use super::time::Time;
use taskyard_proto::{TaskId, TaskState};

/// A replay under way. Operations come in the store's order; [`Replay::begin`] ends it.
#[derive(Debug)]
pub struct Replay {
    shard: Shard,
    /// The ends of tasks, which are put in order of their time at the end.
    finished: super::shard::HashMap<TaskId, Box<FinishRecord>>,
    order: Vec<TaskId>,
    /// Leases of sessions that may be taken up again, by task.
    leases: super::shard::HashMap<TaskId, Vec<(u32, GivenBefore)>>,
    /// Those sessions.
    sessions: BTreeMap<u128, SessionRecord>,
    /// What is remembered of `dedup_id`s, in no order yet.
    dedups: Vec<DedupRecord>,
    /// How many ends are read before those that nobody keeps are dropped, and which were.
    trim_at: usize,
    surplus: Vec<TaskId>,
    /// Words on what has ended, each of which the store keeps until it is told that it need not.
    ended: Vec<StoreOp>,
    /// The same of schedules, which may be made anew.
    unscheduled: BTreeSet<ScheduleName>,
}

/// A lease that an earlier process gave.
#[derive(Debug, Clone, Copy)]
struct GivenBefore {
    number: u64,
    slot: u32,
    session: u128,
    deadline: Time,
    explicit_start: bool,
}

impl Replay {
    /// Begins with nothing.
    pub fn new(shard: Shard) -> Replay {
        Replay {
            shard,
            finished: super::shard::HashMap::default(),
            order: Vec::new(),
            trim_at: TRIM_STEP,
            surplus: Vec::new(),
            leases: super::shard::HashMap::default(),
            sessions: BTreeMap::new(),
            dedups: Vec::new(),
            ended: Vec::new(),
            unscheduled: BTreeSet::new(),
        }
    }

    /// Takes the next operation in.
    pub fn operation(&mut self, op: StoreOp) {
        match op {
            StoreOp::Accept(mut accepted) => {
                let spec = &accepted.spec;
                self.drop_task(spec.id());
                self.finished.remove(&spec.id());
                let queue = self.shard.queue_or_new(&spec.queue);
                if let Some(dedup) = spec.keys.as_ref().and_then(|keys| keys.dedup.clone()) {
                    let (task, queue, accepted) = (spec.id(), spec.queue.clone(), spec.accepted);
                    self.dedups.push(DedupRecord { task, queue, dedup, accepted });
                }
                self.shard.next_seq = self.shard.next_seq.max(spec.seq + 1);
                accepted.spec.terms =
                    self.shard.queues[queue as usize].alike.shared_again(&accepted.spec.terms);
                let key = self.shard.insert(accepted, queue);
                self.shard.tasks[key].held = Held::Here;
                self.shard.put_away(key);
                self.shard.cool();
            }
            StoreOp::Amend(id, amendment) => self.amend(id, amendment),
            StoreOp::Finish(record) => {
                self.drop_task(record.task);
                if let Some(dedup) = record.dedup.clone() {
                    let (task, queue, accepted) = (record.task, record.queue.clone(), record.accepted);
                    self.dedups.push(DedupRecord { task, queue, dedup, accepted });
                }
                // A record that was moved in the store comes a second time; it is still one task.
                let task = record.task;
                if self.finished.insert(task, record).is_none() {
                    self.order.push(task);
                    self.trim_finished();
                }
            }
            StoreOp::Queue(record) => {
                let queue = self.shard.queue_or_new(&record.queue);
                let queue = &mut self.shard.queues[queue as usize];
                queue.raise_totals(record.totals);
                queue.declared = record.declared;
                queue.settings = record.settings;
                queue.alike.forget_bare();
                queue.pause = record.pause;
                queue.recheck();
            }
            StoreOp::Dedup(record) => {
                self.drop_task(record.task);
                self.finished.remove(&record.task);
                self.dedups.push(record);
            }
            StoreOp::Session(record) => drop(self.sessions.insert(record.key, *record)),
            StoreOp::Unsession(key) => {
                self.sessions.remove(&key);
                self.ended.push(StoreOp::Ended(Ended::Session(key)));
            }
            StoreOp::Schedule(record) => {
                self.unscheduled.remove(&record.name);
                self.shard.restore_schedule(*record);
            }
            StoreOp::Unschedule(name) => {
                self.shard.restore_no_schedule(&name);
                self.unscheduled.insert(name);
            }
            StoreOp::Delete(id) => {
                self.drop_task(id);
                self.ended.push(StoreOp::Forget(id));
            }
            // What writes nothing is never read.
            StoreOp::Ended(_) => {}
            StoreOp::Forget(id) => {
                self.drop_task(id);
                self.finished.remove(&id);
            }
        }
    }

    /// Drops what is more than a queue keeps: the log may hold the ends of many more tasks than wait. Ids that are
    /// remembered are left alone.
    fn trim_finished(&mut self) {
        if self.order.len() < self.trim_at {
            return;
        }
        // The youngest are kept.
        let mut order = self.ends_in_order();
        order.reverse();
        let mut kept: BTreeMap<taskyard_proto::QueueName, usize> = BTreeMap::new();
        // The last record of a queue also knows its counts.
        let most = self.shard.config.keep_count.max(1);
        order.retain(|id| {
            let record = &self.finished[id];
            let count = kept.entry(record.queue.clone()).or_default();
            *count += 1;
            if *count <= most || record.dedup.is_some() {
                return true;
            }
            let queue = self.shard.queue_or_new(&record.queue);
            self.shard.queues[queue as usize].raise_totals(record.totals);
            self.finished.remove(id);
            self.surplus.push(*id);
            false
        });
        self.order = order;
        self.trim_at = 2 * self.order.len() + TRIM_STEP;
    }

    /// Takes out the tasks that ended, in order of their ends.
    fn ends_in_order(&mut self) -> Vec<TaskId> {
        let mut order = std::mem::take(&mut self.order);
        // An end may have been taken back, or read twice.
        order.retain(|id| self.finished.contains_key(id));
        order.sort_unstable_by_key(|id| (self.finished[id].finished, *id));
        order.dedup();
        order
    }

    fn drop_task(&mut self, id: TaskId) {
        self.leases.remove(&id);
        if let Some(key) = self.shard.live(id) {
            let task = self.shard.tasks.remove(key);
            self.shard.unlist(id, key);
            self.shard.weigh_out(task.weighed());
            self.shard.state_counts(task.queue)[task.state() as usize] -= 1;
            let queue = &mut self.shard.queues[task.queue as usize];
            if queue.dead.remove(&task.spec.seq).is_none() {
                queue.bytes -= task.bytes();
            }
            self.shard.unload(task.spec.account.as_ref(), task.bytes());
        }
    }

    fn amend(&mut self, id: TaskId, amendment: Amendment) {
        let Some(key) = self.shard.live(id) else { return };
        let recipient = match &amendment {
            Amendment::Failed { recipient, .. }
            | Amendment::Deferred { recipient, .. }
            | Amendment::Acked { recipient, .. }
            | Amendment::Leased { recipient, .. }
            | Amendment::Returned { recipient }
            | Amendment::Delivered { recipient } => *recipient,
            Amendment::Cancelling => {
                self.shard.tasks[key].cancelling = true;
                return;
            }
            Amendment::Redriven => {
                // What was out when it died has been laid down, of which nothing was written.
                self.leases.remove(&id);
                return self.redriven(key);
            }
        };
        let leases = self.leases.entry(id).or_default();
        leases.retain(|(of, _)| *of != recipient);
        if let Amendment::Leased { number, slot, session, deadline, explicit_start, .. } = amendment {
            leases.push((recipient, GivenBefore { number, slot, session, deadline, explicit_start }));
        } else if leases.is_empty() {
            self.leases.remove(&id);
        }
        let task = &mut self.shard.tasks[key];
        // Events are counted from 1; those of the process before went with their watchers.
        task.count_event();
        let Some(share) = task.share_mut(recipient) else { return };
        // Who was absent all along was handed nothing; everything else that happens follows a delivery.
        let absent =
            matches!(&amendment, Amendment::Failed { attempt, .. } if attempt.reason == Failure::Absent);
        let first_delivery = !absent && !share.counted;
        if !absent {
            share.past = Past::Back(Again::Restart);
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
            // A task that was deferred has been queued since, if it was handed out again.
            Amendment::Leased { .. } | Amendment::Returned { .. } => {
                Some(ShareState::Queued { since: task.spec.accepted })
            }
            Amendment::Delivered { .. } | Amendment::Cancelling | Amendment::Redriven => None,
        };
        if let Some(fanout) = task.fanout_mut() {
            fanout.delivered += u64::from(first_delivery);
            match &next {
                Some(ShareState::Over(TaskState::Done)) => fanout.acked += 1,
                Some(ShareState::Over(_)) => fanout.failed += 1,
                _ => {}
            }
        }
        if let Some(state) = next {
            self.shard.shift(key, recipient, state);
            self.bury_if_dead(key);
        }
    }

    /// Dead letters are found by their place.
    fn bury_if_dead(&mut self, key: u32) {
        let task = &self.shard.tasks[key];
        // A task to all is judged when all is read.
        if task.fanout().is_none() && task.state() == TaskState::Dead {
            let queue = &mut self.shard.queues[task.queue as usize];
            if queue.dead.insert(task.spec.seq, key).is_none() {
                queue.bytes -= task.bytes();
            }
        }
    }

    fn redriven(&mut self, key: u32) {
        let task = &self.shard.tasks[key];
        let (queue, seq, bytes) = (task.queue, task.spec.seq, task.bytes());
        // A task to all was a dead letter then, and is none yet: nobody has judged it.
        let found = &mut self.shard.queues[queue as usize];
        if found.dead.insert(seq, key).is_none() {
            found.bytes -= bytes;
        }
        let before = self.shard.tasks[key].state();
        let counts = self.shard.state_counts(queue);
        counts[before as usize] -= 1;
        counts[TaskState::Dead as usize] += 1;
        self.shard.tasks[key].decided = true;
        self.shard.revive(key);
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
        self.shard.event_base = u64::from(start) << EVENT_SEQ_BITS;
        let order = self.ends_in_order();
        let finished = &mut self.finished;
        self.shard.restore_kept(order.iter().filter_map(|id| finished.remove(id)), fx);
        for id in std::mem::take(&mut self.surplus) {
            // It may have been read again since, moved by cleaning.
            if self.shard.place(id).is_none() {
                self.shard.store(StoreOp::Forget(id), fx);
            }
        }
        let unscheduled = std::mem::take(&mut self.unscheduled).into_iter();
        let unscheduled = unscheduled.map(|name| StoreOp::Ended(Ended::Schedule(name)));
        for ended in std::mem::take(&mut self.ended).into_iter().chain(unscheduled) {
            self.shard.store(ended, fx);
        }
        self.restore_dedups(fx);
        let leased = self.restore_sessions(fx);
        let mut keys: Vec<(u64, u32)> =
            self.shard.tasks.iter().map(|(key, task)| (task.spec.seq, key)).collect();
        keys.sort_unstable();
        for (_, key) in keys {
            let task = &mut self.shard.tasks[key];
            for recipient in 0..task.recipients() {
                let share = task.share_mut(recipient).expect("the recipients were counted");
                share.past = share.past.or_lost_to_a_restart(!clean);
            }
            // Numbers of events that this process has given to nobody, and no earlier one can have.
            if self.shard.event_base > 0 {
                task.count_events_anew();
            }
            if task.state() == TaskState::Dead && task.fanout().is_none() {
                continue;
            }
            if leased.contains(&key) {
                self.shard.claim_key(key);
            }
            if task_is_cancelled(&self.shard.tasks[key]) {
                self.shard.cancel_task(key, 0, fx);
                continue;
            }
            self.shard.activate(key, fx);
            self.shard.lay_down_leases(key, fx);
            self.shard.cool();
        }
        for (queue, until) in self.shard.pauses() {
            self.shard.timers.set(until, super::timers::Timer::Unpause { queue });
        }
        self.shard.begin_schedules();
        self.shard
    }
}

/// So many ends of tasks are worth looking through for those that nobody keeps.
const TRIM_STEP: usize = 100_000;

/// How many events a task may have in one life of the process before their numbers meet those of the next.
const EVENT_SEQ_BITS: u32 = 24;

/// Whether nobody may have a task any longer: its end waited for its worker, and that is gone.
fn task_is_cancelled(task: &Task) -> bool {
    task.cancelling && !task.state().is_final()
}

impl Replay {
    fn restore_dedups(&mut self, fx: &mut Effects) {
        let mut dedups = std::mem::take(&mut self.dedups);
        dedups.sort_by(|a, b| (a.accepted, &a.dedup, a.task).cmp(&(b.accepted, &b.dedup, b.task)));
        for DedupRecord { task, queue, dedup, accepted } in dedups {
            if accepted.plus_ms(super::dedup::WINDOW_MS) > self.shard.now {
                let queue = self.shard.queue_or_new(&queue);
                self.shard.remember_dedup(queue, dedup, task, accepted);
            } else if self.shard.place(task).is_none() {
                self.shard.store(StoreOp::Forget(task), fx);
            }
        }
    }

    /// Sessions that may be taken up again hold what they held; their windows begin now. Gives the tasks that are
    /// leased.
    fn restore_sessions(&mut self, fx: &mut Effects) -> BTreeSet<u32> {
        let window = self.shard.config.resume_window_ms;
        let sessions = std::mem::take(&mut self.sessions);
        let mut ids = BTreeMap::new();
        for (nth, (key, record)) in sessions.into_iter().enumerate() {
            if window == 0 {
                self.shard.store(StoreOp::Unsession(key), fx);
                continue;
            }
            // Numbers that no socket gets: theirs are counted from 1.
            let id = SessionId(u64::MAX - nth as u64);
            let mut session = Session::new(record.worker.clone(), Vec::new(), self.shard.now);
            session.resume_key = Some(key);
            session.restored_account = record.account.clone();
            self.shard.sessions.insert(id, session);
            self.shard.resume_keys.insert(key, id);
            self.shard.workers.insert((record.account, record.worker), id);
            ids.insert(key, id);
        }
        let mut leased = BTreeSet::new();
        let mut given: Vec<(u64, u32, u32, GivenBefore)> = Vec::new();
        // In no order, and sorted below.
        for (id, leases) in std::mem::take(&mut self.leases) {
            let Some(key) = self.shard.live(id) else { continue };
            given.extend(leases.into_iter().map(|(recipient, lease)| (lease.number, key, recipient, lease)));
        }
        given.sort_unstable_by_key(|(number, ..)| *number);
        for (number, key, recipient, lease) in given {
            if let Some(id) = ids.get(&lease.session)
                && !self.shard.tasks[key].cancelling
            {
                self.lease_again(*id, key, recipient, number, lease);
                leased.insert(key);
            }
        }
        for id in ids.into_values() {
            self.shard.wait_for_return(id);
        }
        leased
    }

    fn lease_again(&mut self, session: SessionId, key: u32, recipient: u32, number: u64, lease: GivenBefore) {
        let shard = &mut self.shard;
        let state = shard.tasks[key].share(recipient).map(|share| &share.state);
        if !matches!(state, Some(ShareState::Queued { .. })) {
            return;
        }
        let holder = shard.sessions.get_mut(&session).expect("it was just restored");
        let held_at = holder.held.insert((key, recipient)) as u32;
        // Whoever comes back within the window must find it.
        let deadline = lease.deadline.max(shard.now.plus_ms(shard.config.resume_window_ms));
        let again = Lease {
            number,
            slot: lease.slot,
            session,
            held_at,
            since: shard.now,
            deadline,
            timer: None,
            started: false,
            unstarted: lease.explicit_start,
        };
        shard.look_at_leases(session, deadline);
        if lease.slot != key {
            shard.aliases.insert(number, key);
        }
        shard.leases_out += 1;
        let queue = shard.tasks[key].queue;
        shard.queues[queue as usize].leased += 1;
        if let Some(limit) = shard.tasks[key].spec.run_limit_ms {
            let at = shard.now.plus_ms(u64::from(limit));
            shard.timers.set(at, super::timers::Timer::RunLimit { task: key, recipient, number });
        }
        shard.shift(key, recipient, ShareState::Leased(Box::new(again)));
        if let Some(share) = shard.tasks[key].share_mut(recipient) {
            share.lease_stored = true;
        }
    }
}

impl Shard {
    /// What was out of a task to all when it was decided: whether it was settled since, the store does not know.
    fn lay_down_leases(&mut self, key: u32, fx: &mut Effects) {
        if self.tasks.get(key).is_none_or(|task| !task.decided) {
            return;
        }
        for recipient in 0..self.tasks[key].recipients() {
            let held = self.tasks.get(key).and_then(|task| task.share(recipient)?.lease());
            if held.is_some() {
                self.unlease(key, recipient, fx);
                self.lay_down(key, recipient);
            }
        }
    }

    /// When pauses end, by queue.
    fn pauses(&self) -> Vec<(u32, Time)> {
        let until = |queue: &super::queue::Queue| queue.pause.as_ref()?.until;
        self.queues.iter().filter_map(|(key, queue)| Some((key as u32, until(queue)?))).collect()
    }

    /// What the store must still learn before an orderly stop, so that the next process knows which
    /// deliveries are not the first.
    pub fn last_words(&mut self, fx: &mut Effects) {
        // Of what is handed out later, when the last sync ends, the store would not know.
        self.stop_deliveries();
        let mut unknown = Vec::new();
        for key in 0..self.tasks.end() {
            let Some(task) = self.tasks.peek(key) else { continue };
            let id = task.spec.id();
            let to_nobody = task.fanout().is_some() && task.spec.recipients.is_empty();
            for recipient in 0..if to_nobody { 0 } else { task.recipients() } {
                let Some(share) = task.share(recipient) else { continue };
                // An ack or a failed attempt is itself a word that the task was handed out.
                let acked = matches!(share.state, ShareState::Over(TaskState::Done));
                let told = share.delivered_stored || share.charged > 0 || acked;
                if share.past != Past::Never && !told {
                    unknown.push((key, id, recipient));
                }
            }
        }
        for (key, id, recipient) in unknown {
            if let Some(share) = self.tasks[key].share_mut(recipient) {
                share.delivered_stored = true;
            }
            self.store(StoreOp::Amend(id, Amendment::Delivered { recipient }), fx);
        }
    }
}
