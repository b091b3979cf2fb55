//! The state machine.
//!
//! Between two commands one thing always holds: no task waits in a lane while somebody who may take
//! it has credit. Each method that makes a task ready, or a subscription open, restores it before it
//! returns, and may rely on it when it begins.

use std::collections::{BTreeMap, VecDeque};

use slab::Slab;
use smol_str::SmolStr;
use taskyard_proto::{
    CloseCode, Done, Error, ErrorCode, Finished, QueueName, ServerMessage, TaskId, TaskState, WorkerName,
};

use super::access::{Access, Load, Refusals};
use super::away::Payloads;
use super::command::{CallId, Command, Open, Origin, SessionId};
use super::due::timer_matters;
use super::effect::{Effects, Hop, Output};
use super::kept::KeptAt;
use super::manage::Report;
use super::operate::Job;
use super::queue::{LaneKey, Queue};
use super::record::StoreOp;
use super::rooms::Rooms;
use super::sample::Resumes;
use super::schedule::Schedules;
use super::session::{Session, Subscription, Verb};
use super::sessions::Drawn;
use super::task::{Held, Lease, ShareState, Task, Watcher};
use super::time::Time;
use super::timers::{Timer, Timers};
use crate::ids::IdTable;
use crate::slots::Slots;

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
    /// How many bytes of payloads of tasks that wait stay in memory, as far as it goes; none: they never leave it,
    /// because there is no store to bring them back from.
    pub payload_memory_bytes: Option<u64>,
    /// How long a finished task can be looked up, in milliseconds.
    pub keep_ms: u64,
    /// How many finished tasks of a queue can be looked up.
    pub keep_count: usize,
    /// How much all finished tasks together may weigh, in bytes.
    pub keep_bytes: u64,
    /// How long a session that may be taken up again waits for that, in milliseconds; 0: none may be.
    pub resume_window_ms: u64,
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
            payload_memory_bytes: None,
            keep_ms: 600_000,
            keep_count: 100_000,
            keep_bytes: 512 << 20,
            resume_window_ms: 5000,
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

/// What waits for the store. Each task that comes in does, and is moved here and back: what is large is boxed.
#[derive(Debug)]
enum Pending {
    /// A task may be told accepted, and given to a worker.
    /// Without an origin nobody asked: it came of a schedule.
    Accepted { task: u32, id: TaskId, origin: Option<Origin>, told: Told },
    /// The same may be told of a task that was submitted again.
    Again { first: TaskId, origin: Origin, told: Told },
    /// An answer may be given.
    Answer { origin: Origin, message: Box<ServerMessage> },
    /// What came of something may be told.
    Report { call: CallId, report: Box<Report> },
    /// All that a leaving session asked for is answered: it may go.
    Leave { origin: Origin, session: SessionId },
    /// The end of a task may be told.
    Finished { watchers: Vec<Watcher>, message: Box<Finished> },
}

/// What a producer hears once its task is durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    /// That it was accepted.
    pub(super) confirm: bool,
    /// And, from then on, what happens to it.
    pub(super) watch: bool,
}

/// How long a recipient of a task to all may be absent.
pub(super) const ABSENT_MS: u64 = 30_000;
/// How long a released task is not offered to its releaser.
pub(super) const AVOID_MS: u64 = 100;
/// A task that has settled is packed when so many settled later: one for each KiB that payloads may take, so that what
/// is not packed though it might be takes a tenth of that.
const BYTES_FOR_A_WARM_ROW: u64 = 1024;
/// The ack timeout of a task that asks for none.
pub(super) const ACK_TIMEOUT_MS: u32 = 30_000;
/// Reconnects after a drain are spread over this time, or half of the resume window if that is shorter.
pub(super) const RECONNECT_SPREAD_MS: u64 = 5_000;

/// The broker's state: queues, tasks, leases, sessions.
#[derive(Debug)]
pub struct Shard {
    pub(super) config: Config,
    pub(super) now: Time,
    pub(super) queues: Slab<Queue>,
    pub(super) queue_names: HashMap<QueueName, u32>,
    /// The one that was asked for by its name last, if there is any queue.
    latest_queue: u32,
    pub(super) tasks: Slots<Task>,
    /// Tasks that have not ended, or are dead, by their ids.
    ids: IdTable<u32>,
    /// Tasks that ended and can be looked up: their queue, and their serial number in it.
    pub(super) kept_ids: IdTable<KeptAt>,
    pub(super) sessions: HashMap<SessionId, Session>,
    /// Sessions by account and worker name: nobody's name is taken by another account.
    pub(super) workers: HashMap<(Option<SmolStr>, WorkerName), SessionId>,
    /// What each account has waiting.
    pub(super) accounts: HashMap<SmolStr, Load>,
    /// How many queues each account has made in this process's life.
    pub(super) queues_made: HashMap<SmolStr, usize>,
    /// What was refused for whose it was.
    pub(super) refusals: Refusals,
    /// How hellos with a resume token went.
    pub(super) resumes: Resumes,
    pub(super) subscriptions: Slab<Subscription>,
    pub(super) timers: Timers,
    pub(super) schedules: Schedules,
    /// What waits for the store, by the number of the operation that it waits for.
    pending: VecDeque<(u64, Pending)>,
    /// How many operations were handed to the store, and how many of them it holds.
    operations: u64,
    operations_durable: u64,
    /// Where events of tasks that an earlier process accepted are counted from.
    pub(super) event_base: u64,
    pub(super) next_seq: u64,
    pub(super) next_lease: u64,
    pub(super) next_place: u64,
    pub(super) leases_out: u64,
    /// The memory of leases whose tasks have ended, for the next.
    #[expect(clippy::vec_box, reason = "they go into shares as they are, and come back")]
    pub(super) spare_leases: Vec<Box<Lease>>,
    /// What all tasks together weigh.
    pub(super) weight: u64,
    /// The payloads that are in memory.
    pub(super) payloads_here: Payloads,
    /// Those of them that are with workers.
    pub(super) payloads_out: Payloads,
    /// How many payloads are not, and their bytes.
    pub(super) away: u64,
    pub(super) away_bytes: u64,
    /// The bytes of those that are on their way back, or are back and not with a worker yet.
    pub(super) ahead_bytes: u64,
    /// Queues that wait for a payload, by the task that has it.
    pub(super) lacking: HashMap<TaskId, u32>,
    pub(super) kept_bytes: u64,
    pub(super) rooms: Rooms,
    /// Sessions that may be taken up again, by what their tokens say.
    pub(super) resume_keys: HashMap<u128, SessionId>,
    /// Where the tasks are whose leases were given before a restart, by the number of the lease.
    pub(super) aliases: HashMap<u64, u32>,
    /// Until when workers may take to stop, by the number of the lease: whoever was away is told once more.
    pub(super) stops: HashMap<u64, Time>,
    /// Pulls that wait.
    pub(super) pulls: HashMap<CallId, SessionId>,
    /// The latest settles of what pulls brought, with their queues, and their order.
    pub(super) pulled_settles: HashMap<u64, (Verb, u32)>,
    pub(super) pulled_order: VecDeque<u64>,
    /// Long pieces of work.
    pub(super) jobs: BTreeMap<u64, Job>,
    pub(super) next_job: u64,
    /// Queues in which something may go on, and pulls that have got something: looked at when a command is done.
    pub(super) to_pump: Vec<u32>,
    pub(super) to_answer: Vec<SessionId>,
    pub(super) draining: bool,
    pub(super) storage_full: bool,
}

impl Shard {
    /// A shard that knows nothing yet.
    pub fn new(config: Config) -> Shard {
        let warm_rows = config.payload_memory_bytes.map_or(0, |bytes| bytes / BYTES_FOR_A_WARM_ROW);
        let warm_rows = usize::try_from(warm_rows).unwrap_or(usize::MAX);
        Shard {
            config,
            now: Time(0),
            queues: Slab::new(),
            queue_names: HashMap::default(),
            latest_queue: 0,
            tasks: Slots::new(warm_rows),
            ids: IdTable::default(),
            kept_ids: IdTable::default(),
            sessions: HashMap::default(),
            workers: HashMap::default(),
            accounts: HashMap::default(),
            queues_made: HashMap::default(),
            refusals: Refusals::default(),
            resumes: Resumes::default(),
            subscriptions: Slab::new(),
            timers: Timers::default(),
            schedules: Schedules::default(),
            pending: VecDeque::new(),
            operations: 0,
            operations_durable: 0,
            event_base: 0,
            next_seq: 1,
            next_lease: 1,
            next_place: 1,
            leases_out: 0,
            spare_leases: Vec::new(),
            weight: 0,
            payloads_here: Payloads::default(),
            payloads_out: Payloads::default(),
            away: 0,
            away_bytes: 0,
            ahead_bytes: 0,
            lacking: HashMap::default(),
            kept_bytes: 0,
            rooms: Rooms::default(),
            resume_keys: HashMap::default(),
            aliases: HashMap::default(),
            stops: HashMap::default(),
            pulls: HashMap::default(),
            pulled_settles: HashMap::default(),
            pulled_order: VecDeque::new(),
            jobs: BTreeMap::new(),
            next_job: 1,
            to_pump: Vec::new(),
            to_answer: Vec::new(),
            draining: false,
            storage_full: false,
        }
    }

    /// Takes one input in. `now` never goes back; what is due at `now` is not done here but by
    /// [`Shard::expire`], so that inputs that are already here come before it.
    pub fn apply(&mut self, now: Time, command: Command, fx: &mut Effects) {
        self.now = self.now.max(now);
        match command {
            Command::Open(open) => {
                let Open { session, access, hello, reference, made_up_name, resume_key, subscribe, join } =
                    *open;
                let drawn = Drawn { worker: made_up_name, resume_key };
                self.open(session, access, *hello, reference, drawn, fx);
                if let Some(subscribe) = subscribe {
                    self.subscribe(Origin::Implied(session), session, subscribe, fx);
                }
                if let Some(room) = join {
                    self.join(Origin::Implied(session), session, room, fx);
                }
            }
            Command::End { session } => self.socket_ended(session, fx),
            Command::Heard { session } => self.heard(session, fx),
            Command::Submit { origin, access, task, submit } => {
                self.submit(origin, access.as_deref(), task, submit, fx)
            }
            Command::Message { origin, message } => self.message(origin, message, fx),
            Command::SettleOldest { session, ack } => self.settle_oldest(session, ack, fx),
            Command::HangUp { call, task } => {
                self.unwatch(task, Watcher::Call(call));
                self.unwatch(task, Watcher::Follower(call));
            }
            Command::Publish { call, from, publish } => self.publish(Origin::Call(call), *publish, from, fx),
            Command::Manage { call, access, manage } => self.manage(call, access, *manage, fx),
            Command::Pull(pull) => self.pull(*pull, fx),
            Command::PullOver { call, gone } => self.pull_over(call, gone, fx),
            Command::Follow { call, task, from_seq } => self.follow(call, task, from_seq, fx),
            Command::Settle { call, access, message } => {
                self.settle_pulled(call, access.as_deref(), message, fx)
            }
            Command::Stored { through } => self.stored(through, fx),
            Command::Fetched(fetched) => self.fetched(fetched, fx),
            Command::StorageFull(full) => self.storage_full = full,
            Command::Drain { grace_ms } => self.drain_all(grace_ms, fx),
        }
        if !(self.to_pump.is_empty() && self.to_answer.is_empty()) {
            self.go_on(fx);
        }
        self.cool();
    }

    /// Packs some of the tasks that wait for long, and of those that are packed what a look at the shard has unpacked.
    #[inline]
    pub fn cool(&mut self) {
        self.tasks.cool();
    }

    /// What a command has made possible, and is done once it is over.
    fn go_on(&mut self, fx: &mut Effects) {
        loop {
            while let Some(queue) = self.to_pump.pop() {
                self.queues[queue as usize].to_pump = false;
                self.pump(queue, fx);
            }
            // The worker of a pull that is answered leaves, and its tasks may be for others.
            let Some(session) = self.to_answer.pop() else { return };
            self.answer_pull(session, fx);
        }
    }

    /// Does what is due at `now`.
    pub fn expire(&mut self, now: Time, fx: &mut Effects) {
        self.now = self.now.max(now);
        if self.timers.wants_cleaning() {
            let (tasks, queues) = (&self.tasks, &self.queues);
            let mut timers = std::mem::take(&mut self.timers);
            timers.clean(|at, timer| match *timer {
                Timer::Schedule { schedule, serial } => self.schedules.timer_matters(schedule, serial),
                Timer::Job { number } => self.jobs.contains_key(&number),
                Timer::Leases { session } => {
                    self.sessions.get(&session).is_some_and(|session| session.leases_at == Some(at))
                }
                _ => timer_matters(tasks, queues, at, timer),
            });
            self.timers = timers;
        }
        while let Some((at, timer)) = self.timers.due(now) {
            match timer {
                Timer::Leases { session } => self.leases_due(now, at, session),
                Timer::Lease { task, recipient, number } => {
                    self.lease_due(now, at, (task, recipient, number), fx)
                }
                Timer::RunLimit { task, recipient, number } => {
                    self.run_limit_due(task, recipient, number, fx)
                }
                Timer::Due { task, recipient, seq } => self.share_due(task, recipient, seq, fx),
                Timer::Expires { task, seq } => self.ttl_due(task, seq, fx),
                Timer::Offer { task, recipient, seq } => self.offer_again(task, recipient, seq, fx),
                Timer::Absent { queue, lane } => self.absent_due(queue, lane, at, fx),
                Timer::Kept { queue } => self.forget_expired(queue, at, fx),
                Timer::Stop { task, recipient, number } => self.stop_due(task, recipient, number, fx),
                Timer::Rate { queue } => self.rate_due(queue, at),
                Timer::Dedup { queue } => self.dedup_due(queue, fx),
                Timer::Unpause { queue } => self.unpause_due(queue, at, fx),
                Timer::Resume { session } => self.resume_due(session, fx),
                Timer::Job { number } => self.work(number, fx),
                Timer::Schedule { schedule, serial } => self.schedule_due(now, schedule, serial, fx),
            }
            self.go_on(fx);
            self.cool();
        }
    }

    /// The time of the latest input.
    pub fn now(&self) -> Time {
        self.now
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

    /// The last operation that somebody waits for, counted as [`Shard::operations`] counts; 0 if nobody waits. What
    /// comes behind it may be stored at leisure.
    pub fn operations_awaited(&self) -> u64 {
        self.pending.back().map_or(0, |(operation, _)| *operation)
    }

    /// How many leases are out: none, and a drain is over.
    pub fn leases_out(&self) -> u64 {
        self.leases_out
    }

    /// No lease number is given twice, not even after a restart: `start`, below 2^24, grows with each.
    pub(super) fn begin_leases(&mut self, start: u32) {
        self.next_lease = (u64::from(start) << 40) + 1;
    }

    #[inline]
    pub(super) fn store(&mut self, op: StoreOp, fx: &mut Effects) {
        self.operations += 1;
        fx.store.push(op);
    }

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
        self.after_store(Pending::Answer { origin, message: Box::new(message.into()) }, fx);
    }

    /// Ends a session's socket once all that it asked for before is answered.
    pub(super) fn leave_when_durable(&mut self, origin: Origin, session: SessionId, fx: &mut Effects) {
        self.after_store(Pending::Leave { origin, session }, fx);
    }

    /// Tells what came of something once all that was handed to the store so far is durable.
    pub(super) fn report_when_durable(&mut self, call: CallId, report: Report, fx: &mut Effects) {
        self.after_store(Pending::Report { call, report: Box::new(report) }, fx);
    }

    /// A task that came in may be handed out once it is durable; nobody hears of it without an origin.
    pub(super) fn accept_when_durable(
        &mut self,
        task: u32,
        id: TaskId,
        origin: Option<Origin>,
        told: Told,
        fx: &mut Effects,
    ) {
        self.after_store(Pending::Accepted { task, id, origin, told }, fx);
    }

    pub(super) fn accept_again_when_durable(
        &mut self,
        first: TaskId,
        origin: Origin,
        told: Told,
        fx: &mut Effects,
    ) {
        self.after_store(Pending::Again { first, origin, told }, fx);
    }

    pub(super) fn tell_finished_when_durable(
        &mut self,
        watchers: Vec<Watcher>,
        message: Finished,
        fx: &mut Effects,
    ) {
        if !watchers.is_empty() {
            self.after_store(Pending::Finished { watchers, message: Box::new(message) }, fx);
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
            Pending::Answer { origin, message } => fx.answer(&origin, *message),
            Pending::Report { call, report } => fx.outputs.push(Output::Report { call, report: *report }),
            Pending::Leave { origin, session } => {
                fx.answer(&origin, Done::PLAIN);
                fx.outputs.push(Output::Close { session, code: CloseCode::NORMAL, reason: "bye" });
            }
            Pending::Finished { watchers, message } => {
                for watcher in watchers {
                    match watcher {
                        Watcher::Session(session) => {
                            if let Some(found) = self.sessions.get_mut(&session) {
                                found.watching.remove(&message.task);
                                fx.send(session, (*message).clone());
                            }
                        }
                        Watcher::Call(call) | Watcher::Follower(call) => {
                            fx.outputs.push(Output::Answer { call, message: (*message).clone().into() });
                        }
                    }
                }
            }
            Pending::Again { first, origin, told } => {
                if told.confirm {
                    fx.answer(&origin, taskyard_proto::Accepted { task: first, duplicate: true });
                }
                if told.watch {
                    self.follow_first(&origin, first, fx);
                }
            }
            Pending::Accepted { task, id, origin, told } => {
                // It may have been cancelled meanwhile, or handed out early and finished.
                let found = self.tasks.get_mut(task).filter(|found| found.spec.id() == id);
                let (there, mut waits) = (found.is_some(), false);
                if let Some(found) = found {
                    waits = !found.is_durable() && !found.decided;
                    if matches!(found.held, Held::Unstored | Held::Early) {
                        found.held = Held::Here;
                    }
                    let micros = self.now.micros_since(found.spec.accepted);
                    fx.measure(Hop::SubmitToDurable, found.queue, micros);
                }
                if let Some(Origin::Session(session, _)) = origin
                    && let Some(session) = self.sessions.get_mut(&session)
                {
                    session.unconfirmed = session.unconfirmed.saturating_sub(1);
                }
                if let Some(origin) = origin.as_ref().filter(|_| told.confirm) {
                    fx.accepted(origin, taskyard_proto::Accepted { task: id, duplicate: false });
                }
                if let Some(origin) = origin.as_ref().filter(|_| told.watch) {
                    self.follow_first(origin, id, fx);
                }
                if waits {
                    self.activate(task, fx);
                }
                if there {
                    self.put_away(task);
                }
            }
        }
    }

    /// Where a task is.
    pub(super) fn place(&self, id: TaskId) -> Option<Place> {
        if let Some(key) = self.live(id) {
            return Some(Place::Live(key));
        }
        self.kept_at(id).map(|at| Place::Kept { queue: at.queue, serial: at.serial })
    }

    /// The row of a task that has not ended, or is dead.
    pub(super) fn live(&self, id: TaskId) -> Option<u32> {
        self.ids.find(id.0, |key| id_at(&self.tasks, *key)).copied()
    }

    /// From here on a task is found by its id.
    pub(super) fn list(&mut self, id: TaskId, key: u32) {
        let tasks = &self.tasks;
        self.ids.insert_new(id.0, key, |key| id_at(tasks, *key));
    }

    /// From here on it is not. It may have left its row.
    pub(super) fn unlist(&mut self, id: TaskId, key: u32) {
        let tasks = &self.tasks;
        self.ids.remove(id.0, |other| *other == key, |key| id_at(tasks, *key));
    }

    pub(super) fn queue_or_new(&mut self, name: &QueueName) -> u32 {
        if let Some(queue) = self.queue_named(name) {
            return queue;
        }
        let queue = self.queues.insert(Queue::new(name.clone())) as u32;
        self.queue_names.insert(name.clone(), queue);
        queue
    }

    /// The queue, if there is one of that name. Submits in a row are for the same, as a rule: no hash is taken then.
    #[inline(always)]
    fn queue_named(&mut self, name: &QueueName) -> Option<u32> {
        if self.queues.get(self.latest_queue as usize).is_some_and(|queue| queue.name == *name) {
            return Some(self.latest_queue);
        }
        let queue = *self.queue_names.get(name)?;
        self.latest_queue = queue;
        Some(queue)
    }

    /// The queue, made by its first use.
    #[inline]
    pub(super) fn use_queue(&mut self, access: Option<&Access>, name: &QueueName) -> Result<u32, Error> {
        if let Some(queue) = self.queue_named(name) {
            return Ok(queue);
        }
        if self.queues.len() >= self.config.queues_max {
            return Err(Error::new(
                ErrorCode::QueueFull,
                format!(
                    "there are {} queues, the most that this broker allows: use one that exists",
                    self.queues.len()
                ),
            ));
        }
        if let Some(access) = access {
            self.count_queue(access)?;
        }
        Ok(self.queue_or_new(name))
    }

    #[inline(always)]
    pub(super) fn lane_of(&mut self, task: u32, recipient: u32) -> LaneKey {
        use taskyard_proto::{IfAbsent, Target};
        let Shard { tasks, queues, now, .. } = self;
        let found = &tasks[task];
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
        let found = &mut self.tasks[task];
        let counts = &mut self.queues[found.queue as usize].counts;
        found.shift(recipient, state, counts)
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

/// The id of the task in a row.
#[inline]
fn id_at(tasks: &Slots<Task>, key: u32) -> u128 {
    tasks.id(key).expect("what is found by its id is there")
}
