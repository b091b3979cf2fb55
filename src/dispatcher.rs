//! Moves. Owns the core and the engine; waits, applies, flushes. No rules, sockets or codecs here.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use taskyard_proto::{CloseCode, Response, RoomMessage, ServerMessage, TaskId};
use tokio::sync::{mpsc, watch};

use crate::broker::{Batch, Deliver, Inspection, Item, Reply, Seeker, Seen, Until, Waiting};
use crate::clock::Clock;
use crate::connections::Connections;
use crate::core::{CallId, Command, Effects, Fetched, Output, SessionId, Shard, Time};
use crate::engine::{Engine, EngineError, Event};
use crate::hops::{self, Hops};
use crate::outbox::{Outbound, Shared};
use crate::reserve::Reserve;
use crate::standstill::{self, Standstill};

/// So many commands are taken in a turn: enough to share a sync and a wake-up among them, few enough
/// that the first of them does not wait long for its answer, and that sockets have something to do meanwhile.
const TURN_COMMANDS: usize = 256;

/// So many messages are not kept for what else has arrived: others can write them meanwhile. Fewer wait for it, so that at
/// a modest rate a socket is woken once for both; and the engine, when they are written, for whoever waits for it.
const FLUSH_OUTPUTS: usize = 32;

/// How the dispatcher is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Work.
    Run,
    /// No more deliveries and submits; settles are served until no lease is out, or until then.
    Drain {
        /// When to stop whatever is out.
        until: Instant,
    },
    /// Stop now.
    Stop,
}

/// Moves commands to the core, operations to the engine, and messages to the outboxes.
pub struct Dispatcher<E> {
    shard: Shard,
    engine: E,
    clock: Clock,
    connections: Arc<Connections>,
    inbox: mpsc::Receiver<Batch>,
    inspections: mpsc::Receiver<Inspection>,
    phase: watch::Receiver<Phase>,
    /// How long tasks took, since the start.
    hops: Hops,
    fx: Effects,
    calls: HashMap<CallId, Waiting>,
    /// Answers to questions, by the operation that must be durable first. As many as there are
    /// requests that wait for them.
    looked: VecDeque<(u64, Deliver)>,
    /// Who looks at a task whose payload is on its way from the store: few at a time, which the broker's handle sees to.
    sought: HashMap<TaskId, Vec<Seeker>>,
    mail: Mail,
    /// The engine was told that somebody waits for the operations up to here.
    hurried: u64,
    /// The thread that is held back while this one does all there is.
    reserve: Reserve,
    /// Stores on this thread, once there is nothing else to do.
    nearby: Option<Box<dyn FnOnce() + Send>>,
    /// What is due waits for what is not read yet.
    standstill: Standstill,
    drain: Option<Drain>,
}

/// Messages of one turn, by session.
#[derive(Default)]
struct Mail {
    /// Sessions are numbered by us, so nobody makes them collide.
    slots: hashbrown::HashMap<SessionId, usize, foldhash::fast::RandomState>,
    /// Where the latest went: many in a row are for one session.
    latest: Option<(SessionId, usize)>,
    boxes: Vec<(SessionId, Vec<Outbound>)>,
    used: usize,
    /// How many messages went out, here or to requests, since the engine was last hurried, or not.
    sent: usize,
    /// What was said in rooms, and to whom: what one room's members hear in a row is one entry.
    said: Vec<(Vec<SessionId>, Vec<Arc<Shared>>)>,
}

impl Mail {
    fn add(&mut self, session: SessionId, message: Outbound) {
        let slot = match self.latest {
            Some((latest, slot)) if latest == session => slot,
            _ => self.slot(session),
        };
        self.latest = Some((session, slot));
        self.sent += 1;
        self.boxes[slot].1.push(message);
    }

    fn slot(&mut self, session: SessionId) -> usize {
        *self.slots.entry(session).or_insert_with(|| {
            let slot = self.used;
            self.used += 1;
            match self.boxes.get_mut(slot) {
                Some(unused) => unused.0 = session,
                None => self.boxes.push((session, Vec::new())),
            }
            slot
        })
    }

    fn publish(&mut self, members: Vec<SessionId>, message: RoomMessage) {
        self.sent += 1;
        let shared = Arc::new(Shared::new(message));
        match self.said.last_mut() {
            Some((same, said)) if *same == members => said.push(shared),
            _ => self.said.push((members, vec![shared])),
        }
    }

    fn deliver(&mut self, connections: &Connections) {
        for (session, messages) in &mut self.boxes[..self.used] {
            connections.push(*session, messages);
        }
        self.used = 0;
        self.slots.clear();
        self.latest = None;
        // Behind the answers: nobody hears a room before being told that they are in it.
        for (members, said) in self.said.drain(..) {
            connections.publish(&members, &said);
        }
    }
}

impl<E: Engine> Dispatcher<E> {
    /// A dispatcher over a shard that was restored from this engine.
    pub fn new(
        shard: Shard,
        engine: E,
        clock: Clock,
        connections: Arc<Connections>,
        inbox: mpsc::Receiver<Batch>,
        inspections: mpsc::Receiver<Inspection>,
        phase: watch::Receiver<Phase>,
    ) -> Dispatcher<E> {
        Dispatcher {
            shard,
            engine,
            clock,
            connections,
            inbox,
            inspections,
            phase,
            hops: Hops::default(),
            fx: Effects::default(),
            calls: HashMap::new(),
            looked: VecDeque::new(),
            sought: HashMap::new(),
            mail: Mail::default(),
            hurried: 0,
            reserve: Reserve::start(),
            nearby: None,
            standstill: Standstill::default(),
            drain: None,
        }
    }

    /// Works until told to stop. `first` are the effects of the restoring.
    pub async fn run(mut self, first: Effects) -> Result<(), EngineError> {
        self.fx = first;
        self.flush();
        self.hurry().await;
        loop {
            match self.wait().await {
                Wake::Batch(batch) => {
                    // Whoever sends wakes us, and we would run before sockets that are readable too: they are
                    // read first, and what they bring shares this turn's messages, wake-ups and sync.
                    tokio::task::yield_now().await;
                    self.turn(batch);
                }
                Wake::Event(Event::Stored { through }) => {
                    let now = self.clock.now();
                    self.shard.apply(now, Command::Stored { through }, &mut self.fx);
                    while self.looked.front().is_some_and(|(operation, _)| *operation <= through) {
                        let (_, deliver) = self.looked.pop_front().expect("there is a front");
                        deliver();
                    }
                    if self.fx.outputs.len() >= FLUSH_OUTPUTS {
                        self.flush();
                    }
                    // What was stored is going out; what has arrived meanwhile joins it.
                    self.take_more(now, 0, None);
                }
                Wake::Event(Event::Fetched(fetched)) => {
                    self.show(&fetched);
                    let now = self.clock.now();
                    self.shard.apply(now, Command::Fetched(fetched), &mut self.fx);
                    if let Some(task) = self.fx.missing {
                        let error = missing(task);
                        tracing::error!("{error}");
                        return Err(error);
                    }
                    self.take_more(now, 0, None);
                }
                Wake::Event(Event::Full(full)) => {
                    let now = self.clock.now();
                    self.shard.apply(now, Command::StorageFull(full), &mut self.fx);
                    if full {
                        tracing::warn!("the disk is full: new tasks are refused until it has room again");
                    } else {
                        tracing::info!("the disk has room again: new tasks are accepted");
                    }
                }
                Wake::Event(Event::Failed(error)) => {
                    tracing::error!("{error}");
                    return Err(error);
                }
                Wake::Inspect(Inspection { look, durable }) => {
                    let seen = Seen {
                        shard: &self.shard,
                        now: self.clock.now(),
                        footprint: self.engine.footprint(),
                        hops: &self.hops,
                    };
                    let deliver = look(seen);
                    self.shard.cool();
                    if durable && self.shard.operations_durable() < self.shard.operations() {
                        self.looked.push_back((self.shard.operations(), deliver));
                    } else {
                        deliver();
                    }
                    // Questions come before commands: many of them must not hold the commands up.
                    self.take_more(self.clock.now(), 0, None);
                }
                Wake::Deadline => {
                    self.take_due(self.clock.now(), 0, None);
                }
                Wake::Phase(Phase::Drain { until }) if self.drain.is_none() => {
                    self.drain = Some(Drain { until, overdue: false });
                    let grace_ms = until.saturating_duration_since(Instant::now()).as_millis() as u64;
                    self.shard.apply(self.clock.now(), Command::Drain { grace_ms }, &mut self.fx);
                }
                Wake::Phase(Phase::Run | Phase::Drain { .. }) => {}
                Wake::Phase(Phase::Stop) => return self.stop().await,
            }
            self.flush();
            self.hurry().await;
            if self.is_drained() {
                return self.stop().await;
            }
        }
    }

    /// Whether nobody works any more, or the time for that is over.
    fn is_drained(&mut self) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        if self.shard.leases_out() == 0 && self.inbox.is_empty() {
            return true;
        }
        let now = Instant::now();
        if now < drain.until {
            return false;
        }
        drain.until = now + standstill::GRACE;
        std::mem::replace(&mut drain.overdue, true)
    }

    /// Waits for something to do. What may block this thread begins then. Changes nothing.
    async fn wait(&mut self) -> Wake {
        // Without room nothing expires: acks that came in time wait in the inbox, which is not read then.
        let has_room = self.engine.has_room();
        let deadline = self.shard.next_deadline().filter(|_| has_room);
        let deadline = deadline.map(|next| self.clock.instant(self.standstill.look_at(next)));
        let drained = self.drain.as_ref().map(|drain| drain.until);
        let wake_at = [deadline, drained].into_iter().flatten().min();
        let sleep = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // Only a dispatcher that sleeps is woken by whatever happens: one that has more to do would yield to sockets, and be
        // where nobody but the thread that is about to block finds it.
        let (nearby, reserve) = (&mut self.nearby, &self.reserve);
        let idle = async {
            if let Some(does) = nearby.take() {
                reserve.block(does);
            }
            std::future::pending().await
        };
        let wake = tokio::select! {
            biased;
            changed = self.phase.changed() => Wake::Phase(match changed {
                Ok(()) => *self.phase.borrow_and_update(),
                // Whoever could tell us to stop is gone: the process ends.
                Err(_) => Phase::Stop,
            }),
            event = self.engine.next_event() => Wake::Event(event),
            Some(inspection) = self.inspections.recv() => Wake::Inspect(inspection),
            Some(batch) = self.inbox.recv(), if has_room => Wake::Batch(batch),
            () = sleep => Wake::Deadline,
            wake = idle => wake,
        };
        if self.nearby.take().is_some() {
            self.engine.hurry();
        }
        wake
    }

    fn turn(&mut self, batch: Batch) {
        let now = self.clock.now();
        let (count, arrived) = (batch.items.len(), batch.arrived);
        self.apply(now, batch);
        self.take_more(now, count, Some(arrived));
    }

    /// A turn: takes what has arrived, as [`take`](Self::take), then does what is due. `arrived` is when the last batch did
    /// that is applied already.
    fn take_more(&mut self, now: Time, count: usize, arrived: Option<Time>) {
        let count = self.take_due(now, count, arrived);
        self.reserve.turn(now, count >= TURN_COMMANDS);
    }

    /// The same, where there may be nothing to take. Returns how many commands are applied then.
    fn take_due(&mut self, now: Time, count: usize, arrived: Option<Time>) -> usize {
        let (count, horizon) = self.take(now, count);
        // What is not applied yet arrived after this: acks come before expiries.
        if let Some(horizon) = horizon.or(arrived) {
            self.expire(horizon.min(now));
        }
        count
    }

    /// Takes what has arrived, up to a turn's worth of which `count` are applied already. Returns how many are then, and
    /// when all had arrived that is applied; none: nothing was taken.
    fn take(&mut self, now: Time, mut count: usize) -> (usize, Option<Time>) {
        let mut horizon = None;
        while count < TURN_COMMANDS && self.engine.has_room() {
            match self.inbox.try_recv() {
                Ok(batch) => {
                    count += batch.items.len();
                    horizon = Some(batch.arrived);
                    self.apply(now, batch);
                }
                Err(_) => {
                    horizon = Some(now);
                    break;
                }
            }
        }
        (count, horizon)
    }

    fn apply(&mut self, now: Time, batch: Batch) {
        self.calls.extend(batch.calls);
        for item in batch.items {
            match item {
                Item::Command(command) => {
                    if let Command::HangUp { call, .. } = &command {
                        self.calls.remove(call);
                    }
                    self.shard.apply(now, command, &mut self.fx);
                }
                // Whoever asks about the state from now on is answered after this turn's messages.
                Item::Mark(reached) => {
                    let _ = reached.send(());
                }
                Item::Relay(session, response) => {
                    // It keeps its place behind what the core has said so far.
                    self.sort_outputs();
                    self.mail.add(session, (*response).into());
                }
                Item::Payload(task, seeker) => {
                    let seekers = self.sought.entry(task).or_default();
                    if seekers.is_empty() {
                        self.fx.fetch.push(task);
                    }
                    seekers.push(seeker);
                }
            }
        }
    }

    /// Payloads for those who look at tasks. The core passes over what it has not asked for.
    fn show(&mut self, fetched: &[Fetched]) {
        if self.sought.is_empty() {
            return;
        }
        for Fetched { task, payload } in fetched {
            for seeker in self.sought.remove(task).into_iter().flatten() {
                // Whoever asked may have gone.
                let _ = seeker.answer.send(payload.clone());
            }
        }
    }

    /// Does what is due by then, but for what is held back.
    fn expire(&mut self, horizon: Time) {
        while let Some(by) = self.standstill.done_by(horizon, self.shard.next_deadline()) {
            self.shard.expire(by, &mut self.fx);
            if by == horizon {
                return;
            }
        }
    }

    /// Puts outputs into the mail, and does what is no message.
    fn sort_outputs(&mut self) {
        for output in self.fx.outputs.drain(..) {
            match output {
                Output::Send { session, reference, on_write, barrier, queue, message } => {
                    let response = Response { reference, message };
                    let (row, since) = (hops::row(queue), self.shard.now().0 as u32);
                    self.mail.add(session, Outbound { response, on_write, barrier, row, since });
                }
                Output::Answer { call, message } => {
                    self.mail.sent += 1;
                    answer(&mut self.calls, call, Reply::Message(message));
                }
                Output::Report { call, report } => {
                    self.mail.sent += 1;
                    answer(&mut self.calls, call, Reply::Report(report));
                }
                Output::Publish { members, message } => self.mail.publish(members, message),
                Output::Close { session, code, reason } => {
                    // After what was said to it before.
                    self.mail.deliver(&self.connections);
                    self.connections.close(session, code, reason);
                }
                Output::Ping { session } => self.connections.ping(session),
            }
        }
    }

    /// Tells the engine of whoever waits for it. A few messages that have just gone out are written first: waking the
    /// engine takes as long as writing some of them, and what they say need not wait for its disk. While the other thread
    /// is held, the engine may store on this one, once there is nothing else to do.
    async fn hurry(&mut self) {
        let sent = std::mem::take(&mut self.mail.sent);
        if !self.is_awaited() {
            return;
        }
        let is_alone = self.reserve.is_held();
        if is_alone || (1..=FLUSH_OUTPUTS).contains(&sent) {
            tokio::task::yield_now().await;
        }
        if is_alone {
            // Nobody reads while this thread waits for the disk: what is there already comes along.
            self.take(self.clock.now(), 0);
            self.flush();
        }
        self.hurried = self.shard.operations();
        // What has gone out meanwhile is not to wait for the disk. And the other thread may be at work again: gone to sleep
        // while this one looked after all sockets, nobody would wake it for them.
        if is_alone && std::mem::take(&mut self.mail.sent) == 0 && self.reserve.is_held() {
            self.nearby = self.engine.hurry_blocking();
        } else {
            self.engine.hurry();
        }
    }

    /// Whether somebody waits for operations that the engine was not hurried for.
    fn is_awaited(&self) -> bool {
        let looked = self.looked.back().map_or(0, |(operation, _)| *operation);
        self.shard.operations_awaited().max(looked) > self.hurried
    }

    /// Hands operations to the engine, and messages to the outboxes.
    fn flush(&mut self) {
        self.engine.commit(&mut self.fx.store);
        if !self.fx.fetch.is_empty() {
            self.engine.fetch(&mut self.fx.fetch);
        }
        self.sort_outputs();
        self.mail.deliver(&self.connections);
        self.hops.count(&mut self.fx.hops);
    }

    async fn stop(mut self) -> Result<(), EngineError> {
        self.shard.last_words(&mut self.fx);
        self.flush();
        // What was asked to be confirmed is confirmed before the sockets end. What is said in turn is
        // for the next process to say again.
        let wanted = self.shard.operations();
        self.engine.hurry();
        while self.shard.operations_durable() < wanted {
            match tokio::time::timeout(STOP_LIMIT, self.engine.next_event()).await {
                Ok(Event::Stored { through }) => {
                    self.shard.apply(self.clock.now(), Command::Stored { through }, &mut self.fx);
                    self.flush();
                    self.engine.hurry();
                }
                Ok(Event::Full(_) | Event::Fetched(_)) => {}
                Ok(Event::Failed(error)) => return Err(error),
                Err(_) => {
                    tracing::warn!(
                        "the disk did not confirm in {} s what is left; stopping all the same",
                        STOP_LIMIT.as_secs()
                    );
                    break;
                }
            }
        }
        self.connections.close_all(CloseCode::RESTART, "the broker restarts: reconnect after a while");
        self.engine.stop().await
    }
}

/// What was confirmed and is gone is never passed over in silence.
fn missing(task: TaskId) -> EngineError {
    let message = format!(
        "task {task} waits, and the store no longer has it: stopping, so that nothing else is lost; \
         run `taskyard store check` on the data directory before the next start, and report this"
    );
    EngineError { message, exit_code: 3 }
}

/// How long an orderly stop waits for the disk.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// No new tasks are given out; those that are out may be finished.
struct Drain {
    until: Instant,
    /// That was found to be over once: what came in time may not be read yet.
    overdue: bool,
}

enum Wake {
    Batch(Batch),
    Event(Event),
    Inspect(Inspection),
    Deadline,
    Phase(Phase),
}

fn answer(calls: &mut HashMap<CallId, Waiting>, call: CallId, reply: Reply) {
    let Some(waiting) = calls.get(&call) else { return };
    let more = match waiting.until {
        Until::First => false,
        Until::End => matches!(reply, Reply::Message(ServerMessage::Accepted(_) | ServerMessage::Event(_))),
    };
    // One that reads too slowly to keep up loses its place: it can ask again for what it missed.
    let gone = waiting.answers.try_send(reply).is_err();
    if gone || !more {
        calls.remove(&call);
    }
}
