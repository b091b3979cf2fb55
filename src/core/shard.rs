//! The state machine.
//!
//! Between two commands one thing always holds: no task waits in a lane while somebody who may take
//! it has credit. Each method that makes a task ready, or a subscription open, restores it before it
//! returns, and may rely on it when it begins.

use std::collections::VecDeque;

use slab::Slab;
use taskyard_proto::message::{CREDIT_MAX, UNCONFIRMED_MAX, lease_text, session_text};
use taskyard_proto::{
    AwayReason, CloseCode, Done, Error, ErrorCode, Finished, GoingAway, Hello, Limits, Mode, QueueName,
    RequestId, RevokeReason, ServerMessage, Subscribe, Subscribed, TaskId, TaskState, Text, Welcome,
    WorkerName,
};
use taskyard_proto::{ClientMessage, GivenLease, LeaseId};

use super::command::{Command, Origin, SessionId};
use super::effect::{Effects, Hop, Output};
use super::fanout::Fate;
use super::queue::{LaneKey, Queue, Rate, Tally};
use super::ready::{Entry, Verdict};
use super::record::{Failure, StoreOp};
use super::session::{Session, Subscription, SubscriptionKey};
use super::task::{Lease, Share, ShareState, Task, Watcher};
use super::time::Time;
use super::timers::{Timer, Timers};

/// A hash map without randomness. It is never iterated: order would leak into effects.
pub(super) type HashMap<K, V> = hashbrown::HashMap<K, V, foldhash::fast::FixedState>;

/// What the shard is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker and its version, for `welcome`.
    pub server: String,
    /// How often the broker pings, for `welcome`.
    pub ping_ms: u64,
    /// The longest message, for `welcome`, in bytes.
    pub message_bytes: u64,
    /// How many queues there may be.
    pub queues_max: usize,
    /// How much all tasks together may weigh in memory, in bytes.
    pub weight_max: u64,
    /// How long a finished task can be looked up, in milliseconds.
    pub keep_ms: u64,
    /// How many finished tasks of a queue can be looked up.
    pub keep_count: usize,
    /// How much all finished tasks together may weigh, in bytes.
    pub keep_bytes: u64,
    /// Whether a worker's name that is taken replaces the session that has it; else the new one is refused.
    pub replace_worker: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            server: concat!("taskyard/", env!("CARGO_PKG_VERSION")).into(),
            ping_ms: 25_000,
            message_bytes: 1 << 20,
            queues_max: 10_000,
            weight_max: 8 << 30,
            keep_ms: 600_000,
            keep_count: 100_000,
            keep_bytes: 512 << 20,
            replace_worker: true,
        }
    }
}

/// Where a task is found by its id.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Not ended, or dead: in the slab.
    Live(u32),
    /// Ended: in its queue's list, under this serial number.
    Kept { queue: u32, serial: u64 },
}

/// What waits for the store.
#[derive(Debug)]
enum Pending {
    /// A task may be told accepted, and given to a worker.
    Accepted { task: u32, origin: Origin, confirm: bool },
    /// An answer may be given.
    Answer { origin: Origin, message: ServerMessage },
    /// The end of a task may be told.
    Finished { watchers: Vec<Watcher>, message: Finished },
}

/// How long a recipient of a task to all may be absent.
pub(super) const ABSENT_MS: u64 = 30_000;
/// How long a released task is not offered to its releaser.
pub(super) const AVOID_MS: u64 = 100;
/// The ack timeout of a task that asks for none.
pub(super) const ACK_TIMEOUT_MS: u32 = 30_000;
/// Reconnects after a drain are spread over this window.
const RECONNECT_SPREAD_MS: u64 = 5_000;

/// The broker's state: queues, tasks, leases, sessions.
#[derive(Debug)]
pub struct Shard {
    pub(super) config: Config,
    pub(super) now: Time,
    pub(super) queues: Slab<Queue>,
    pub(super) queue_names: HashMap<QueueName, u32>,
    pub(super) tasks: Slab<Task>,
    pub(super) ids: HashMap<TaskId, Place>,
    pub(super) sessions: HashMap<SessionId, Session>,
    workers: HashMap<WorkerName, SessionId>,
    pub(super) subscriptions: Slab<Subscription>,
    pub(super) timers: Timers,
    /// What waits for the store, by the number of the operation that it waits for.
    pending: VecDeque<(u64, Pending)>,
    /// How many operations were handed to the store, and how many of them it holds.
    operations: u64,
    operations_durable: u64,
    pub(super) next_seq: u64,
    next_lease: u64,
    next_place: u64,
    leases_out: u64,
    /// What all tasks together weigh.
    pub(super) weight: u64,
    pub(super) kept_bytes: u64,
    draining: bool,
    storage_full: bool,
}

impl Shard {
    /// A shard that knows nothing yet.
    pub fn new(config: Config) -> Shard {
        Shard {
            config,
            now: Time(0),
            queues: Slab::new(),
            queue_names: HashMap::default(),
            tasks: Slab::new(),
            ids: HashMap::default(),
            sessions: HashMap::default(),
            workers: HashMap::default(),
            subscriptions: Slab::new(),
            timers: Timers::default(),
            pending: VecDeque::new(),
            operations: 0,
            operations_durable: 0,
            next_seq: 1,
            next_lease: 1,
            next_place: 1,
            leases_out: 0,
            weight: 0,
            kept_bytes: 0,
            draining: false,
            storage_full: false,
        }
    }

    /// Takes one input in. `now` never goes back; what is due at `now` is not done here but by
    /// [`Shard::expire`], so that inputs that are already here come before it.
    pub fn apply(&mut self, now: Time, command: Command, fx: &mut Effects) {
        self.now = self.now.max(now);
        match command {
            Command::Open { session, hello, reference, made_up_name, subscribe } => {
                self.open(session, *hello, reference, made_up_name, fx);
                if let Some(subscribe) = subscribe {
                    self.subscribe(Origin::Implied(session), session, subscribe, fx);
                }
            }
            Command::End { session } => self.end(session, false, fx),
            Command::Heard { session } => self.heard(session, fx),
            Command::Submit { origin, task, run_at, submit } => self.submit(origin, task, run_at, *submit, fx),
            Command::Message { origin, message } => self.message(origin, message, fx),
            Command::SettleOldest { session, ack } => self.settle_oldest(session, ack, fx),
            Command::HangUp { call, task } => self.unwatch(task, Watcher::Call(call)),
            Command::Stored { through } => self.stored(through, fx),
            Command::StorageFull(full) => self.storage_full = full,
            Command::Drain { grace_ms } => self.drain_all(grace_ms, fx),
        }
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Time, fx: &mut Effects) {
        self.now = self.now.max(now);
        if self.timers.wants_cleaning() {
            let (tasks, mut timers) = (&self.tasks, std::mem::take(&mut self.timers));
            timers.clean(|timer| timer_matters(tasks, timer));
            self.timers = timers;
        }
        while let Some((at, timer)) = self.timers.due(now) {
            match timer {
                Timer::Lease { task, recipient, number } => self.lease_due(now, task, recipient, number, fx),
                Timer::RunLimit { task, recipient, number } => {
                    self.run_limit_due(task, recipient, number, fx)
                }
                Timer::Due { task, recipient, seq } => self.share_due(task, recipient, seq, fx),
                Timer::Expires { task, seq } => self.ttl_due(task, seq, fx),
                Timer::Offer { task, recipient, seq } => self.offer_again(task, recipient, seq, fx),
                Timer::Absent { queue, lane } => self.absent_due(queue, lane, at, fx),
                Timer::Kept { queue } => self.forget_expired(queue, fx),
            }
        }
    }

    /// When [`Shard::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        self.timers.next()
    }

    /// How many operations were handed to the store in this process's life.
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// How many of them the store holds.
    pub fn operations_durable(&self) -> u64 {
        self.operations_durable
    }

    /// How many leases are out: none, and a drain is over.
    pub fn leases_out(&self) -> u64 {
        self.leases_out
    }

    /// No lease number is given twice, not even after a restart: `start`, below 2^24, grows with each.
    pub(super) fn begin_leases(&mut self, start: u32) {
        self.next_lease = (u64::from(start) << 40) + 1;
    }

    pub(super) fn store(&mut self, op: StoreOp, fx: &mut Effects) {
        self.operations += 1;
        fx.store.push(op);
    }

    // --- What waits for the store -------------------------------------------------------------

    fn after_store(&mut self, pending: Pending, fx: &mut Effects) {
        if self.operations <= self.operations_durable {
            self.release(pending, fx);
        } else {
            self.pending.push_back((self.operations, pending));
        }
    }

    /// Answers once all that was handed to the store so far is durable.
    pub(super) fn answer_when_durable(
        &mut self,
        origin: Origin,
        message: impl Into<ServerMessage>,
        fx: &mut Effects,
    ) {
        self.after_store(Pending::Answer { origin, message: message.into() }, fx);
    }

    pub(super) fn accept_when_durable(&mut self, task: u32, origin: Origin, confirm: bool, fx: &mut Effects) {
        self.after_store(Pending::Accepted { task, origin, confirm }, fx);
    }

    pub(super) fn tell_finished_when_durable(
        &mut self,
        watchers: Vec<Watcher>,
        message: Finished,
        fx: &mut Effects,
    ) {
        if !watchers.is_empty() {
            self.after_store(Pending::Finished { watchers, message }, fx);
        }
    }

    fn stored(&mut self, through: u64, fx: &mut Effects) {
        self.operations_durable = self.operations_durable.max(through);
        while self.pending.front().is_some_and(|(operation, _)| *operation <= through) {
            let (_, pending) = self.pending.pop_front().expect("there is a front");
            self.release(pending, fx);
        }
    }

    fn release(&mut self, pending: Pending, fx: &mut Effects) {
        match pending {
            Pending::Answer { origin, message } => fx.answer(&origin, message),
            Pending::Finished { watchers, message } => {
                for watcher in watchers {
                    match watcher {
                        Watcher::Session(session) => {
                            if let Some(found) = self.sessions.get_mut(&session) {
                                found.watching.retain(|task| *task != message.task);
                                fx.send(session, message.clone());
                            }
                        }
                        Watcher::Call(call) => {
                            fx.outputs.push(Output::Answer { call, message: message.clone().into() });
                        }
                    }
                }
            }
            Pending::Accepted { task, origin, confirm } => {
                let found = &mut self.tasks[task as usize];
                found.durable = true;
                fx.hops.push((Hop::SubmitToDurable, self.now.micros_since(found.spec.accepted)));
                let id = found.spec.id;
                if let Origin::Session(session, _) = origin
                    && let Some(session) = self.sessions.get_mut(&session)
                {
                    session.unconfirmed = session.unconfirmed.saturating_sub(1);
                }
                if confirm {
                    fx.answer(&origin, taskyard_proto::Accepted { task: id, duplicate: false });
                }
                self.activate(task, fx);
            }
        }
    }

    // --- Queues and lanes ---------------------------------------------------------------------

    pub(super) fn queue_or_new(&mut self, name: &QueueName) -> u32 {
        if let Some(queue) = self.queue_names.get(name) {
            return *queue;
        }
        let queue = self.queues.insert(Queue::new(name.clone())) as u32;
        self.queue_names.insert(name.clone(), queue);
        queue
    }

    /// The queue, made by its first use.
    pub(super) fn use_queue(&mut self, name: &QueueName) -> Result<u32, Error> {
        if !self.queue_names.contains_key(name) && self.queues.len() >= self.config.queues_max {
            return Err(Error::new(
                ErrorCode::QueueFull,
                format!(
                    "there are {} queues, the most that this broker allows: use one that exists",
                    self.queues.len()
                ),
            ));
        }
        Ok(self.queue_or_new(name))
    }

    fn lane_of(&mut self, task: u32, recipient: u32) -> LaneKey {
        use taskyard_proto::{IfAbsent, Target};
        let Shard { tasks, queues, now, .. } = self;
        let found = &tasks[task as usize];
        let queue = &mut queues[found.queue as usize];
        match &found.spec.target {
            Target::Any => LaneKey::Any,
            Target::Group(group) => LaneKey::Group(group.clone()),
            Target::Worker { worker, if_absent: IfAbsent::Any }
                if queue.worker_subscription(worker).is_none() =>
            {
                LaneKey::Any
            }
            Target::Worker { worker, .. } => LaneKey::Worker(queue.worker_lane(worker, *now)),
            Target::All(_) => match found.recipient_name(recipient) {
                Some(worker) => LaneKey::Worker(queue.worker_lane(worker, *now)),
                None => LaneKey::Any,
            },
        }
    }

    /// Moves a share to another state, and the queue's counts with it; gives back the old state.
    pub(super) fn shift(&mut self, task: u32, recipient: u32, state: ShareState) -> ShareState {
        let found = &mut self.tasks[task as usize];
        let before = found.state();
        let (leaves, enters) = {
            let share = found.share(recipient).expect("a share that is shifted exists");
            (share.state.standing(), state.standing())
        };
        if let Some(fanout) = &mut found.fanout {
            if let Some(at) = leaves {
                fanout.standing[at] -= 1;
            }
            if let Some(at) = enters {
                fanout.standing[at] += 1;
            }
        }
        let share = found.share_mut(recipient).expect("a share that is shifted exists");
        let old = std::mem::replace(&mut share.state, state);
        let after = found.state();
        if before != after && !found.decided {
            let counts = &mut self.queues[found.queue as usize].counts;
            counts[before as usize] -= 1;
            counts[after as usize] += 1;
        }
        old
    }

    // --- Giving tasks to workers --------------------------------------------------------------

    /// Makes a share ready: hands it to whoever's turn it is, or lets it wait.
    pub(super) fn offer(&mut self, task: u32, recipient: u32, fx: &mut Effects) {
        let lane = self.lane_of(task, recipient);
        match self.pick(task, recipient, &lane) {
            Some(subscription) => self.deliver(subscription, task, recipient, fx),
            None => {
                let found = &self.tasks[task as usize];
                let entry = Entry { task, recipient, seq: found.spec.seq };
                let priority = found.spec.priority;
                let queue = found.queue;
                let to_all = found.fanout.is_some();
                self.queues[queue as usize].ready_mut(&lane).push(priority, entry);
                if to_all && let LaneKey::Worker(lane) = lane {
                    self.watch_absence(queue, lane);
                }
            }
        }
    }

    fn pick(&mut self, task: u32, recipient: u32, lane: &LaneKey) -> Option<SubscriptionKey> {
        let Shard { queues, tasks, subscriptions, now, .. } = self;
        let found = &tasks[task as usize];
        let share = found.share(recipient)?;
        let may = |key: SubscriptionKey| !share.avoids(subscriptions[key.0 as usize].session, *now);
        let queue = &mut queues[found.queue as usize];
        match lane {
            LaneKey::Any => queue.any.ring.pick(may),
            LaneKey::Group(group) => queue.groups.get_mut(group)?.ring.pick(may),
            LaneKey::Worker(lane) => queue.workers[*lane as usize]
                .subscription
                .filter(|key| subscriptions[key.0 as usize].open && may(*key)),
        }
    }

    /// Gives a subscription what it may take, as far as its credit goes.
    pub(super) fn feed(&mut self, key: SubscriptionKey, fx: &mut Effects) {
        self.refresh(key);
        while self.subscriptions.get(key.0 as usize).is_some_and(|subscription| subscription.open) {
            let Some((lane, priority, entry)) = self.best_for(key) else { return };
            let subscription = &self.subscriptions[key.0 as usize];
            let queue = &mut self.queues[subscription.queue as usize];
            queue.ready_mut(&lane).remove(priority, entry);
            match &lane {
                LaneKey::Any => queue.any.ring.picked(subscription.place),
                LaneKey::Group(group) => {
                    if let Some(lane) = queue.groups.get_mut(group) {
                        lane.ring.picked(subscription.place);
                    }
                }
                LaneKey::Worker(_) => {}
            }
            self.deliver(key, entry.task, entry.recipient, fx);
        }
    }

    /// The first task in order, of all lanes that a subscription may take from.
    fn best_for(&mut self, key: SubscriptionKey) -> Option<(LaneKey, u8, Entry)> {
        let Shard { queues, tasks, subscriptions, sessions, now, .. } = self;
        let subscription = &subscriptions[key.0 as usize];
        let queue = &mut queues[subscription.queue as usize];
        let session = sessions.get(&subscription.session)?;
        let judge = |entry: Entry| match tasks.get(entry.task as usize) {
            Some(task) if task.spec.seq == entry.seq && !task.decided => match task.share(entry.recipient) {
                Some(Share { state: ShareState::Queued { .. }, .. })
                    if task.share(entry.recipient).is_some_and(|s| s.avoids(subscription.session, *now)) =>
                {
                    Verdict::Skip
                }
                Some(Share { state: ShareState::Queued { .. }, .. }) => Verdict::Take,
                _ => Verdict::Stale,
            },
            _ => Verdict::Stale,
        };
        let mut best: Option<(LaneKey, u8, Entry)> = None;
        let mut consider = |lane: LaneKey, found: Option<(u8, Entry)>| {
            if let Some((priority, entry)) = found {
                let sooner = best
                    .as_ref()
                    .is_none_or(|(_, p, e)| (u8::MAX - priority, entry.seq) < (u8::MAX - p, e.seq));
                if sooner {
                    best = Some((lane, priority, entry));
                }
            }
        };
        consider(LaneKey::Any, queue.any.ready.first(judge));
        for group in &session.groups {
            if let Some(lane) = queue.groups.get_mut(group) {
                consider(LaneKey::Group(group.clone()), lane.ready.first(judge));
            }
        }
        if let Some(lane) = queue.worker_names.get(&session.worker) {
            consider(LaneKey::Worker(*lane), queue.workers[*lane as usize].ready.first(judge));
        }
        best
    }

    fn deliver(&mut self, key: SubscriptionKey, task: u32, recipient: u32, fx: &mut Effects) {
        let subscription = &mut self.subscriptions[key.0 as usize];
        let session_id = subscription.session;
        let auto = subscription.mode == Mode::Auto;
        let unstarted = subscription.explicit_start;
        subscription.unsettled += 1;
        let number = self.next_lease;
        self.next_lease += 1;
        self.leases_out += 1;
        let session = self.sessions.get_mut(&session_id).expect("a subscription's session exists");
        let held_at = session.held.len() as u32;
        session.held.push((task, recipient));
        let found = &self.tasks[task as usize];
        let deadline = self.now.plus_ms(u64::from(found.spec.ack_timeout_ms));
        let lease = Lease {
            number,
            session: session_id,
            held_at,
            since: self.now,
            deadline,
            started: false,
            unstarted,
        };
        self.timers.set(deadline, Timer::Lease { task, recipient, number });
        if let Some(limit) = found.spec.run_limit_ms {
            self.timers.set(self.now.plus_ms(u64::from(limit)), Timer::RunLimit { task, recipient, number });
        }
        self.refresh(key);
        let before = self.shift(task, recipient, ShareState::Leased(lease));
        if let ShareState::Queued { since } = before {
            fx.hops.push((Hop::ReadyToDelivered, self.now.micros_since(since)));
        }

        let found = &mut self.tasks[task as usize];
        let spec = found.spec.clone();
        let share = found.share_mut(recipient).expect("it was just leased");
        let redelivered = share.delivered;
        let attempt = u64::from(share.charged) + 1;
        share.delivered = true;
        let counted = std::mem::replace(&mut share.counted, true);
        if !counted && let Some(fanout) = &mut found.fanout {
            fanout.delivered += 1;
        }
        let queue = &mut self.queues[found.queue as usize];
        queue.tally(Tally::Delivered);
        if redelivered {
            queue.tally(Tally::Redelivered);
        }
        queue.rates.count(self.now, Rate::Delivered);
        let lease = LeaseId { number, slot: task, recipient };
        fx.outputs.push(Output::Send {
            session: session_id,
            reference: None,
            on_write: auto.then_some(lease),
            message: taskyard_proto::Task {
                task: spec.id,
                lease: (!auto).then_some(lease),
                queue: spec.queue.clone(),
                attempt,
                max_attempts: u64::from(spec.max_attempts),
                redelivered,
                ack_timeout_ms: u64::from(spec.ack_timeout_ms),
                age_ms: self.now.ms_since(spec.accepted),
                priority: u64::from(spec.priority),
                headers: spec.headers.clone(),
                payload: spec.payload.clone(),
            }
            .into(),
        });
        self.event(task, recipient, taskyard_proto::Payload::NULL, fx);
    }

    /// Recomputes whether a subscription stands open, and tells the rings.
    pub(super) fn refresh(&mut self, key: SubscriptionKey) {
        let Some(subscription) = self.subscriptions.get_mut(key.0 as usize) else { return };
        let Some(session) = self.sessions.get(&subscription.session) else { return };
        let open = !self.draining
            && !session.draining
            && !session.silent
            && subscription.unsettled < subscription.credit;
        if open == subscription.open {
            return;
        }
        subscription.open = open;
        let place = subscription.place;
        let queue = &mut self.queues[subscription.queue as usize];
        if open {
            queue.any.ring.open(place, key);
        } else {
            queue.any.ring.close(place);
        }
        for group in &session.groups {
            let ring = &mut queue.groups.entry(group.clone()).or_default().ring;
            if open {
                ring.open(place, key);
            } else {
                ring.close(place);
            }
        }
    }

    /// Takes a lease out of its session and gives its credit back. The subscription does not open by
    /// that: first the caller puts the share where it belongs, then it feeds what is named here, so
    /// that the returned task and those that wait go in their order.
    pub(super) fn unlease(&mut self, task: u32, recipient: u32, fx: &mut Effects) -> Option<SubscriptionKey> {
        let found = &self.tasks[task as usize];
        let queue = found.queue;
        let lease = found.share(recipient)?.lease()?;
        let (session_id, held_at) = (lease.session, lease.held_at as usize);
        fx.hops.push((Hop::DeliveredToSettled, self.now.micros_since(lease.since)));
        self.leases_out -= 1;
        let session = self.sessions.get_mut(&session_id)?;
        session.held.swap_remove(held_at);
        if let Some((moved_task, moved_recipient)) = session.held.get(held_at) {
            let moved = self.tasks[*moved_task as usize].share_mut(*moved_recipient);
            moved.and_then(Share::lease_mut).expect("what a session holds is leased").held_at =
                held_at as u32;
        }
        let key = session.subscription(queue)?;
        let subscription = &mut self.subscriptions[key.0 as usize];
        subscription.unsettled = subscription.unsettled.saturating_sub(1);
        Some(key)
    }

    // --- Sessions -----------------------------------------------------------------------------

    fn open(
        &mut self,
        id: SessionId,
        hello: Hello,
        reference: Option<RequestId>,
        made_up_name: WorkerName,
        fx: &mut Effects,
    ) {
        let worker = hello.worker.unwrap_or(made_up_name);
        if let Some(other) = self.workers.get(&worker).copied() {
            if self.config.replace_worker {
                fx.outputs.push(Output::Close {
                    session: other,
                    code: CloseCode::REPLACED,
                    reason: "another session took this worker name",
                });
                self.end(other, false, fx);
            } else {
                let error = Error::new(
                    ErrorCode::Conflict,
                    format!(
                        "worker name {worker} is taken by a connected session: choose another, or end that one"
                    ),
                );
                fx.outputs.push(Output::Send {
                    session: id,
                    reference,
                    on_write: None,
                    message: error.into(),
                });
                fx.outputs.push(Output::Close {
                    session: id,
                    code: CloseCode::REPLACED,
                    reason: "the worker name is taken",
                });
                return;
            }
        }
        let lost = hello.in_flight.iter().map(lease_text).collect();
        let mut session = Session::new(worker.clone(), hello.groups, self.now);
        // Named twice, a group would be served twice.
        session.groups.sort_unstable();
        session.groups.dedup();
        session.labels = hello.labels;
        session.client = hello.client.map(|client| client.as_str().to_owned());
        self.sessions.insert(id, session);
        self.workers.insert(worker.clone(), id);
        let welcome = Welcome {
            session: session_text(id.0),
            worker,
            version: taskyard_proto::VERSION,
            server: Text::cut(&self.config.server),
            // No session is resumable yet: a token is of an unknown session, whose leases are lost.
            resume: None,
            resumed: false,
            kept: Vec::new(),
            lost,
            ping_ms: self.config.ping_ms,
            limits: Limits {
                message_bytes: self.config.message_bytes,
                credit: CREDIT_MAX,
                unconfirmed: UNCONFIRMED_MAX,
            },
        };
        fx.outputs.push(Output::Send { session: id, reference, on_write: None, message: welcome.into() });
    }

    /// Ends a session: its tasks go on at once. `clean` (after `bye`) they return free of charge.
    fn end(&mut self, id: SessionId, clean: bool, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // First nobody can be offered its own tasks again.
        let subscriptions = std::mem::take(&mut session.subscriptions);
        let mut held = session.held.clone();
        let watching = std::mem::take(&mut session.watching);
        for (_, key) in subscriptions {
            self.remove_subscription(key, fx);
        }
        for task in watching {
            self.unwatch(task, Watcher::Session(id));
        }
        held.sort_unstable_by_key(|(task, recipient)| (self.tasks[*task as usize].spec.seq, *recipient));
        for (task, recipient) in held {
            self.unlease(task, recipient, fx);
            if clean {
                self.returned_free(task, recipient, None, 0, fx);
            } else {
                self.lost(task, recipient, Failure::WorkerLost, fx);
            }
        }
        if let Some(session) = self.sessions.remove(&id)
            && self.workers.get(&session.worker) == Some(&id)
        {
            self.workers.remove(&session.worker);
        }
    }

    fn remove_subscription(&mut self, key: SubscriptionKey, fx: &mut Effects) {
        let subscription = self.subscriptions.remove(key.0 as usize);
        let Some(session) = self.sessions.get_mut(&subscription.session) else { return };
        session.subscriptions.retain(|(_, other)| *other != key);
        let queue = &mut self.queues[subscription.queue as usize];
        queue.subscribers.remove(&subscription.place);
        queue.any.ring.close(subscription.place);
        for group in &session.groups {
            if let Some(lane) = queue.groups.get_mut(group) {
                lane.ring.close(subscription.place);
            }
        }
        let Some(lane) = queue.worker_names.get(&session.worker).copied() else { return };
        queue.workers[lane as usize].subscription = None;
        queue.workers[lane as usize].absent_since = self.now;
        self.worker_left(subscription.queue, lane, fx);
    }

    /// The tasks of a worker that is gone: some may go to anybody, some wait, some only for a while.
    fn worker_left(&mut self, queue: u32, lane: u32, fx: &mut Effects) {
        use taskyard_proto::{IfAbsent, Target};
        let waiting = self.queues[queue as usize].workers[lane as usize].ready.take_all();
        let mut free = Vec::new();
        let mut to_all = false;
        for (priority, entry) in waiting {
            let Some(task) = self.tasks.get(entry.task as usize).filter(|task| task.spec.seq == entry.seq)
            else {
                continue;
            };
            if matches!(task.spec.target, Target::Worker { if_absent: IfAbsent::Any, .. }) {
                free.push(entry);
            } else {
                to_all |= task.fanout.is_some();
                self.queues[queue as usize].workers[lane as usize].ready.push(priority, entry);
            }
        }
        if to_all {
            self.watch_absence(queue, lane);
        }
        self.queues[queue as usize].drop_worker_lane_if_empty(lane);
        for entry in free {
            self.offer_again(entry.task, entry.recipient, entry.seq, fx);
        }
    }

    fn watch_absence(&mut self, queue: u32, lane: u32) {
        let found = &self.queues[queue as usize].workers[lane as usize];
        if found.subscription.is_none() {
            self.timers
                .set(found.absent_since.plus_ms(ABSENT_MS).max(self.now), Timer::Absent { queue, lane });
        }
    }

    fn heard(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.silent = false;
        self.feed_session(id, fx);
    }

    fn feed_session(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get(&id) else { return };
        for (_, key) in session.subscriptions.clone() {
            self.refresh(key);
            self.feed(key, fx);
        }
    }

    /// Every session, oldest first: sorted, because the map has no order of its own.
    pub(super) fn session_ids(&self) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// From here on nothing is handed out.
    pub(super) fn stop_deliveries(&mut self) {
        self.draining = true;
        for id in self.session_ids() {
            for (_, key) in self.sessions[&id].subscriptions.clone() {
                self.refresh(key);
            }
        }
    }

    fn drain_all(&mut self, grace_ms: u64, fx: &mut Effects) {
        self.stop_deliveries();
        for id in self.session_ids() {
            // Spread by the session's number, so that not all come back at once.
            let reconnect_after_ms = id.0.wrapping_mul(2_654_435_761) % RECONNECT_SPREAD_MS;
            fx.send(id, GoingAway { reason: AwayReason::Restart, grace_ms, reconnect_after_ms });
        }
    }

    // --- Messages -----------------------------------------------------------------------------

    fn message(&mut self, origin: Origin, message: ClientMessage, fx: &mut Effects) {
        let session = match &origin {
            Origin::Session(session, _) | Origin::Implied(session) if self.sessions.contains_key(session) => {
                Some(*session)
            }
            // The session ended while this was under way: its leases went on, and nobody listens.
            Origin::Session(..) | Origin::Implied(_) => return,
            Origin::Call(_) => None,
        };
        match (message, session) {
            (ClientMessage::Subscribe(m), Some(session)) => self.subscribe(origin, session, m, fx),
            (ClientMessage::SetCredit(m), Some(session)) => {
                self.with_subscription(origin, session, &m.queue, fx, |shard, key, _| {
                    shard.subscriptions[key.0 as usize].credit = m.credit.get() as u32;
                    shard.refresh(key);
                    Some(key)
                });
            }
            (ClientMessage::Unsubscribe(m), Some(session)) => {
                self.with_subscription(origin, session, &m.queue, fx, |shard, key, fx| {
                    shard.remove_subscription(key, fx);
                    None
                });
            }
            (ClientMessage::Drain(_), Some(session)) => {
                if let Some(found) = self.sessions.get_mut(&session) {
                    found.draining = true;
                    for (_, key) in found.subscriptions.clone() {
                        self.refresh(key);
                    }
                }
                fx.answer(&origin, Done::PLAIN);
            }
            (ClientMessage::Bye(_), Some(session)) => {
                self.end(session, true, fx);
                fx.answer(&origin, Done::PLAIN);
                fx.outputs.push(Output::Close { session, code: CloseCode::NORMAL, reason: "bye" });
            }
            (ClientMessage::Start(m), Some(session)) => self.start(origin, session, &m.lease, fx),
            (ClientMessage::Ack(m), Some(session)) => self.ack(origin, session, m, fx),
            (ClientMessage::Nack(m), Some(session)) => self.nack(origin, session, m, fx),
            (ClientMessage::Release(m), Some(session)) => self.give_back(origin, session, m, fx),
            (ClientMessage::Extend(m), Some(session)) => self.extend(origin, session, m, fx),
            (ClientMessage::Progress(m), Some(session)) => self.progress(origin, session, m, fx),
            (ClientMessage::Cancelled(m), Some(session)) => self.cancelled(origin, session, m, fx),
            (ClientMessage::Watch(m), _) => self.watch(origin, m, fx),
            (ClientMessage::Unwatch(m), Some(session)) => {
                self.unwatch(m.task, Watcher::Session(session));
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.watching.retain(|task| *task != m.task);
                }
                fx.answer(&origin, Done::PLAIN);
            }
            (ClientMessage::Ping(_), Some(_)) => fx.answer(&origin, taskyard_proto::Pong {}),
            (ClientMessage::Hello(_), Some(_)) => {
                let error = Error::new(
                    ErrorCode::BadRequest,
                    "`hello` must be the first message of a connection, and this one has said others: reconnect",
                );
                fx.answer(&origin, error);
            }
            (message, _) => {
                let error = Error::new(
                    ErrorCode::BadRequest,
                    format!(
                        "`{}` is not served by this version of the broker ({})",
                        message.type_text(),
                        self.config.server
                    ),
                );
                fx.answer(&origin, error);
            }
        }
    }

    fn subscribe(&mut self, origin: Origin, session_id: SessionId, message: Subscribe, fx: &mut Effects) {
        if !self.sessions.contains_key(&session_id) {
            return;
        }
        let queue = match self.use_queue(&message.queue) {
            Ok(queue) => queue,
            Err(error) => return fx.answer(&origin, error),
        };
        let credit = message.credit.map_or(1, |credit| credit.get()) as u32;
        let mode = message.mode.unwrap_or(Mode::Manual);
        let Some(session) = self.sessions.get_mut(&session_id) else { return };
        let key = match session.subscription(queue) {
            Some(key) => key,
            None => {
                let place = self.next_place;
                self.next_place += 1;
                // Leases of an earlier subscription count against the new credit.
                let tasks = &self.tasks;
                let unsettled =
                    session.held.iter().filter(|(task, _)| tasks[*task as usize].queue == queue).count();
                let key = SubscriptionKey(self.subscriptions.insert(Subscription {
                    session: session_id,
                    queue,
                    place,
                    credit: 0,
                    unsettled: unsettled as u32,
                    mode,
                    explicit_start: false,
                    open: false,
                }) as u32);
                session.subscriptions.push((queue, key));
                let found = &mut self.queues[queue as usize];
                found.subscribers.insert(place, key);
                let lane = found.worker_lane(&session.worker, self.now);
                found.workers[lane as usize].subscription = Some(key);
                key
            }
        };
        let subscription = &mut self.subscriptions[key.0 as usize];
        subscription.credit = credit;
        subscription.mode = mode;
        subscription.explicit_start = message.explicit_start;
        self.refresh(key);
        fx.answer(
            &origin,
            Subscribed {
                queue: message.queue,
                credit: u64::from(credit),
                ack_timeout_ms: u64::from(ACK_TIMEOUT_MS),
            },
        );
        self.feed(key, fx);
    }

    /// Does something to a subscription and answers `ok`; what it names afterwards may take tasks.
    fn with_subscription(
        &mut self,
        origin: Origin,
        session: SessionId,
        queue: &QueueName,
        fx: &mut Effects,
        change: impl FnOnce(&mut Shard, SubscriptionKey, &mut Effects) -> Option<SubscriptionKey>,
    ) {
        let key =
            self.queue_names.get(queue).and_then(|queue| self.sessions.get(&session)?.subscription(*queue));
        let Some(key) = key else {
            let error = Error::new(
                ErrorCode::NotFound,
                format!("this session is not subscribed to queue {queue}: send `subscribe` first"),
            );
            return fx.answer(&origin, error.field("queue"));
        };
        let feed = change(self, key, fx);
        fx.answer(&origin, Done::PLAIN);
        if let Some(key) = feed {
            self.feed(key, fx);
        }
    }

    /// The task and recipient of a session's own, current lease.
    pub(super) fn find_lease(&self, session: SessionId, lease: &GivenLease) -> Option<(u32, u32)> {
        let id = lease.id()?;
        let found = self.tasks.get(id.slot as usize)?.share(id.recipient)?.lease()?;
        (found.number == id.number && found.session == session).then_some((id.slot, id.recipient))
    }

    // --- What is due --------------------------------------------------------------------------

    fn current_lease(&self, task: u32, recipient: u32, number: u64) -> Option<&Lease> {
        let lease = self.tasks.get(task as usize)?.share(recipient)?.lease()?;
        (lease.number == number).then_some(lease)
    }

    /// `now` may lie before the latest command: what arrived between the two is not applied yet.
    fn lease_due(&mut self, now: Time, task: u32, recipient: u32, number: u64, fx: &mut Effects) {
        let Some(lease) = self.current_lease(task, recipient, number) else { return };
        if lease.deadline > now {
            // It was extended since.
            self.timers.set(lease.deadline, Timer::Lease { task, recipient, number });
            return;
        }
        let session = lease.session;
        self.revoke(task, recipient, RevokeReason::AckTimeout, fx);
        // Nothing more for it until it is heard: a frozen worker would eat attempt after attempt.
        if let Some(found) = self.sessions.get_mut(&session) {
            found.silent = true;
            for (_, key) in found.subscriptions.clone() {
                self.refresh(key);
            }
            fx.outputs.push(Output::Ping { session });
        }
        self.lost(task, recipient, Failure::AckTimeout, fx);
    }

    fn run_limit_due(&mut self, task: u32, recipient: u32, number: u64, fx: &mut Effects) {
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
        let lease = self.tasks[task as usize].share(recipient)?.lease()?;
        let id = LeaseId { number: lease.number, slot: task, recipient };
        fx.send(lease.session, taskyard_proto::Revoked { lease: id, reason });
        self.unlease(task, recipient, fx)
    }

    fn share_due(&mut self, task: u32, recipient: u32, seq: u64, fx: &mut Effects) {
        let Some(found) = self.tasks.get(task as usize).filter(|t| t.spec.seq == seq && t.durable) else {
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
        self.event(task, recipient, taskyard_proto::Payload::NULL, fx);
        self.offer(task, recipient, fx);
    }

    pub(super) fn ttl_due(&mut self, task: u32, seq: u64, fx: &mut Effects) {
        let now = self.now;
        let due = |t: &&Task| t.spec.seq == seq && t.durable && t.spec.expires.is_some_and(|at| at <= now);
        let Some(found) = self.tasks.get(task as usize).filter(due) else { return };
        if found.decided || found.state().is_final() {
            return;
        }
        let mut freed = Vec::new();
        for recipient in 0..found.recipients() {
            // What a recipient has finished stays finished.
            if matches!(
                self.tasks[task as usize].share(recipient),
                Some(Share { state: ShareState::Over(_), .. })
            ) {
                continue;
            }
            freed.extend(self.revoke(task, recipient, RevokeReason::Expired, fx));
            self.shift(task, recipient, ShareState::Over(TaskState::Expired));
        }
        let queue = self.tasks[task as usize].queue;
        self.queues[queue as usize].tally(Tally::Expired);
        self.finish(task, Fate::expired(), fx);
        for key in freed {
            self.feed(key, fx);
        }
    }

    /// A share that still waits is looked at again: somebody may take it now.
    fn offer_again(&mut self, task: u32, recipient: u32, seq: u64, fx: &mut Effects) {
        let Some(found) = self.tasks.get(task as usize).filter(|t| t.spec.seq == seq && !t.decided) else {
            return;
        };
        if !matches!(found.share(recipient).map(|s| &s.state), Some(ShareState::Queued { .. })) {
            return;
        }
        let (queue, priority) = (found.queue, found.spec.priority);
        let lane = self.lane_of(task, recipient);
        let entry = Entry { task, recipient, seq };
        self.queues[queue as usize].ready_mut(&lane).remove(priority, entry);
        self.offer(task, recipient, fx);
    }

    fn absent_due(&mut self, queue: u32, lane: u32, at: Time, fx: &mut Effects) {
        let Some(found) = self.queues[queue as usize].workers.get_mut(lane as usize) else { return };
        if found.subscription.is_some() || found.absent_since.plus_ms(ABSENT_MS) > at {
            return;
        }
        let mut failed = Vec::new();
        for (priority, entry) in found.ready.take_all() {
            match self.tasks.get(entry.task as usize).filter(|task| task.spec.seq == entry.seq) {
                Some(task) if task.fanout.is_some() => failed.push(entry),
                Some(_) => found.ready.push(priority, entry),
                None => {}
            }
        }
        self.queues[queue as usize].drop_worker_lane_if_empty(lane);
        for entry in failed {
            self.absent(entry.task, entry.recipient, fx);
        }
    }

    /// Whether submits are refused, and why.
    pub(super) fn closed_to_submits(&self) -> Option<Error> {
        if self.draining {
            return Some(Error::new(
                ErrorCode::Draining,
                "the broker is shutting down: submit again after it is back",
            ));
        }
        self.storage_full.then(|| {
            Error::new(
                ErrorCode::StorageFull,
                "the broker's disk is full, nothing was accepted: free space on it; submits resume by themselves",
            )
        })
    }

    pub(super) fn state_counts(&mut self, queue: u32) -> &mut [u64; TaskState::ALL.len()] {
        &mut self.queues[queue as usize].counts
    }
}

fn timer_matters(tasks: &Slab<Task>, timer: &Timer) -> bool {
    let task = |key: u32| tasks.get(key as usize);
    match *timer {
        Timer::Lease { task: key, recipient, number } | Timer::RunLimit { task: key, recipient, number } => {
            let lease = task(key).and_then(|t| t.share(recipient)).and_then(Share::lease);
            lease.is_some_and(|lease| lease.number == number)
        }
        Timer::Due { task: key, seq, .. }
        | Timer::Expires { task: key, seq }
        | Timer::Offer { task: key, seq, .. } => task(key).is_some_and(|t| t.spec.seq == seq),
        Timer::Absent { .. } | Timer::Kept { .. } => true,
    }
}
