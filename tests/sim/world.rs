//! A world to run the broker in: one virtual clock, a network, a disk, clients, and faults, all from one seed.
//!
//! Two phases: in the first anything may fail; in the second all is well, every worker is healthy, and everything
//! must come to its end.

use std::collections::BTreeMap;

use taskyard::core::manage::{Manage, Report as Told};
use taskyard::core::shard::Config;
use taskyard::core::{CallId, Command, Open, Origin, Output, Pull, SessionId, Submission};
use taskyard_proto::{
    Ack, ClientMessage, Hello, LeaseList, Payload, QueueName, RequestId, ServerMessage, Subscribe, TaskId,
    WorkerName,
};

use crate::broker::{Broker, Written};
use crate::clients::{Client, Wake};
use crate::disk::{Dice, Fault, SimDisk};
use crate::oracle::{Oracle, Report, Violation};

pub(crate) const MS: u64 = 1000;
pub(crate) const SECOND: u64 = 1000 * MS;
const BEGIN: u64 = 1_000_000 * SECOND;
/// How long the second phase may take: more than all back-offs, ack timeouts and absences of one task together.
const QUIET_MAX: u64 = 400 * SECOND;
/// Far more than a run takes: a run that does not end is a finding too.
const EVENTS_MAX: u64 = 200_000;

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    pub(crate) oracle: Oracle,
    agenda: BTreeMap<(u64, u64), Event>,
    events: u64,
    config: Config,
    disk: SimDisk,
    broker: Option<Broker>,
    /// Counts the process's lives: what belongs to an earlier one no longer matters.
    life: u64,
    turn_planned: Option<(u64, u64)>,
    stalled_until: u64,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    next_task: u64,
    pub(crate) clients: Vec<Client>,
    pub(crate) calm: bool,
    /// Decides when payloads come back from the store.
    reader: Dice,
    fetch_planned: bool,
    pub(crate) plan: Plan,
}

/// What kind of world a seed makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) horizon: u64,
    pub(crate) submits: u64,
    pub(crate) keep_ms: u64,
    network_delay: u64,
    disk_delay: u64,
    crashes: u64,
    stops: u64,
    cuts: u64,
    stalls: u64,
    floods: u64,
    window_ms: u64,
    /// How often operators do something.
    pub(crate) operations: u64,
    pub(crate) pulls: u64,
}

#[derive(Debug)]
enum Event {
    Turn {
        life: u64,
        number: u64,
    },
    SyncEnd {
        life: u64,
    },
    /// A payload has been read.
    Read {
        life: u64,
    },
    Write {
        life: u64,
    },
    Start,
    Stop,
    Drained {
        life: u64,
    },
    Up {
        connection: u64,
        frame: Up,
    },
    Down {
        connection: u64,
        frame: Down,
    },
    /// The broker learns that a socket has ended.
    Gone {
        connection: u64,
    },
    /// The client learns it.
    Lost {
        connection: u64,
    },
    Wake {
        client: usize,
        wake: Wake,
    },
    Fault(Trouble),
    Probe,
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    Kill,
    PowerCut,
    PowerCutSoon,
    SyncFails,
    Cut,
    HalfDead,
    Stall,
    DiskFull,
    DiskRoom,
}

#[derive(Debug)]
pub(crate) enum Up {
    Hello(Box<Hello>, Option<RequestId>),
    /// A URL that says hello and subscribes; what follows may be without leases.
    Url(Box<Hello>, Subscribe),
    Oldest {
        ack: bool,
    },
    Message(Box<ClientMessage>, Option<RequestId>),
    Call(u64, Box<ClientMessage>),
    Manage(u64, Box<Manage>),
    Pull {
        call: u64,
        queue: QueueName,
        worker: WorkerName,
        credit: u32,
    },
    PullOver(u64),
    Settle(u64, Box<ClientMessage>),
    Leave {
        call: u64,
        task: TaskId,
    },
    Pong,
}

#[derive(Debug)]
pub(crate) enum Down {
    Message(Box<ServerMessage>),
    Ping,
    Close,
}

struct Connection {
    client: usize,
    life: u64,
    /// Whether the client's end, and the broker's, are open.
    client_open: bool,
    broker_open: bool,
    /// Nothing gets through any more, and nobody was told.
    dead: bool,
    up_last: u64,
    down_last: u64,
    pinged: bool,
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> World {
        let mut dice = Dice::new(seed);
        let plan = Plan::roll(&mut dice);
        // With dice of their own, so that the other troubles of a seed stay what they are.
        let mut reader = Dice::new(seed ^ 0xfe7c_4ed0);
        let bounds = [None, Some(0), Some(0), Some(100 + reader.below(2000))];
        let config = Config {
            keep_ms: plan.keep_ms,
            resume_window_ms: plan.window_ms,
            payload_memory_bytes: bounds[reader.below(4) as usize],
            ..Config::default()
        };
        let mut world = World {
            now: BEGIN,
            oracle: Oracle::new(plan.keep_ms, trace),
            dice,
            agenda: BTreeMap::new(),
            events: 0,
            config,
            disk: SimDisk::new(),
            broker: None,
            life: 0,
            turn_planned: None,
            stalled_until: 0,
            connections: BTreeMap::new(),
            next_connection: 1,
            next_task: 1,
            clients: Vec::new(),
            calm: false,
            reader,
            fetch_planned: false,
            plan,
        };
        world.oracle.now(BEGIN);
        world.oracle.window_ms = plan.window_ms;
        world.oracle.note(None, || format!("seed {seed}: {plan:?}"));
        Client::populate(&mut world);
        world.at(BEGIN, Event::Start);
        world.plan_troubles();
        world
    }

    fn plan_troubles(&mut self) {
        let Plan { horizon, crashes, stops, cuts, stalls, floods, .. } = self.plan;
        for _ in 0..crashes {
            let kinds = [
                Trouble::Kill,
                Trouble::PowerCut,
                Trouble::PowerCutSoon,
                Trouble::PowerCut,
                Trouble::SyncFails,
            ];
            let kind = kinds[self.dice.below(5) as usize];
            self.within(horizon, Event::Fault(kind));
        }
        for _ in 0..stops {
            self.within(horizon, Event::Stop);
        }
        for _ in 0..cuts {
            let kind = if self.dice.below(3) == 0 { Trouble::HalfDead } else { Trouble::Cut };
            self.within(horizon, Event::Fault(kind));
        }
        for _ in 0..stalls {
            self.within(horizon, Event::Fault(Trouble::Stall));
        }
        for _ in 0..floods {
            self.within(horizon, Event::Fault(Trouble::DiskFull));
        }
        for _ in 0..2 {
            self.within(horizon, Event::Probe);
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.events += 1;
        self.agenda.insert((at.max(self.now), self.events), event);
    }

    fn within(&mut self, span: u64, event: Event) {
        let at = self.now + self.dice.below(span);
        self.at(at, event);
    }

    pub(crate) fn wake(&mut self, after: u64, client: usize, wake: Wake) {
        self.at(self.now + after, Event::Wake { client, wake });
    }

    /// A time of `low` to `high` microseconds whose order of magnitude is even.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1), high.max(2));
        let magnitudes = (high / low).max(1).ilog2() as u64 + 1;
        let scale = low << self.dice.below(magnitudes);
        (scale + self.dice.below(scale)).min(high)
    }

    pub(crate) fn chance(&mut self, one_in: u64) -> bool {
        self.dice.below(one_in) == 0
    }

    /// Runs both phases.
    pub(crate) fn run(mut self) -> (Oracle, Result<Report, Violation>) {
        let result = self.try_run();
        (self.oracle, result)
    }

    fn try_run(&mut self) -> Result<Report, Violation> {
        let end = BEGIN + self.plan.horizon;
        self.run_until(end)?;
        self.calm_down();
        let deadline = self.now + QUIET_MAX;
        loop {
            self.run_until(self.now + SECOND)?;
            let over = self.broker.as_ref().is_some_and(|broker| self.oracle.all_over(&broker.shard));
            if over {
                break;
            }
            if self.now > deadline {
                let task = self.oracle.open_tasks();
                let what = format!("{} s after the last fault a task has not ended", QUIET_MAX / SECOND);
                return Err(self.oracle.broken("I7 when faults stop everything settles", task, what));
            }
        }
        // Answers and syncs that are under way.
        self.run_until(self.now + 2 * SECOND)?;
        self.probe()?;
        self.oracle.all_answered();
        self.check()?;
        self.nothing_remains()?;
        self.restarts_the_same()?;
        let mut report = self.oracle.report;
        report.segments = self.broker.as_ref().map_or(0, Broker::segments);
        Ok(report)
    }

    fn check(&self) -> Result<(), Violation> {
        match &self.oracle.violation {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    fn run_until(&mut self, end: u64) -> Result<(), Violation> {
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= end
        {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.handle(event);
            self.check()?;
            if self.events > EVENTS_MAX {
                return Err(self.oracle.broken(
                    "I7 when faults stop everything settles",
                    None,
                    "the run does not end",
                ));
            }
        }
        self.now = end;
        self.oracle.now(end);
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Turn { life, number } => {
                if life == self.life && self.turn_planned == Some((self.now, number)) {
                    self.turn();
                }
            }
            Event::SyncEnd { life } if life == self.life => self.sync_end(),
            Event::Read { life } if life == self.life => self.read(),
            Event::Write { life } if life == self.life => self.write(),
            Event::SyncEnd { .. } | Event::Read { .. } | Event::Write { .. } => {}
            Event::Start => self.start(),
            Event::Stop => self.stop(),
            Event::Drained { life } => {
                if life == self.life {
                    self.drained();
                }
            }
            Event::Up { connection, frame } => self.up(connection, frame),
            Event::Down { connection, frame } => self.down(connection, frame),
            Event::Gone { connection } => self.gone(connection),
            Event::Lost { connection } => self.lost(connection),
            Event::Wake { client, wake } => Client::wake(self, client, wake),
            Event::Fault(trouble) if !self.calm => self.trouble(trouble),
            Event::Fault(_) => {}
            Event::Probe => {
                if let Some(broker) = self.broker.as_ref().filter(|broker| !broker.has_work()) {
                    self.oracle.probe(self.now, &broker.shard);
                }
            }
        }
    }

    // --- The broker -------------------------------------------------------------------------

    fn start(&mut self) {
        if self.broker.is_some() {
            return;
        }
        self.life += 1;
        self.fetch_planned = false;
        self.turn_planned = None;
        self.stalled_until = 0;
        self.disk.set_capacity(None);
        if !self.calm && self.chance(6) {
            // The power may fail during recovery too.
            let soon = 1 + self.dice.below(60);
            self.disk.fail_at(soon, Fault::PowerCut);
        }
        match Broker::start(self.disk.clone(), self.config.clone(), self.now, &mut self.oracle) {
            Ok(broker) => {
                self.broker = Some(broker);
                self.plan_turn(0);
                self.kick_disk();
                self.within(SECOND, Event::Write { life: self.life });
                if self.calm {
                    Client::open_all(self);
                }
            }
            Err(error) if self.disk.operations() > 0 && !self.calm => {
                self.oracle.note(None, || format!("the start fails: {error}"));
                let seed = self.dice.roll();
                self.disk = self.disk.crash(seed);
                self.within(200 * MS, Event::Start);
            }
            Err(error) => {
                let violation =
                    self.oracle.broken("F3 after a power cut the broker starts", None, error.to_string());
                self.oracle.violation.get_or_insert(violation);
            }
        }
    }

    fn plan_turn(&mut self, after: u64) {
        let at = (self.now + after).max(self.stalled_until);
        if self.turn_planned.is_some_and(|(planned, _)| planned <= at) {
            return;
        }
        self.events += 1;
        let number = self.events;
        self.turn_planned = Some((at, number));
        self.agenda.insert((at, number), Event::Turn { life: self.life, number });
    }

    fn turn(&mut self) {
        self.turn_planned = None;
        let limit = match self.dice.below(4) {
            0 => 1,
            1 => 1 + self.dice.below(4) as usize,
            _ => 1024,
        };
        let mut outputs = Vec::new();
        let Some(broker) = &mut self.broker else { return };
        broker.turn(self.now, limit, &mut self.oracle, &mut outputs);
        let (more, deadline) = (broker.has_work(), broker.next_deadline());
        self.plan_read();
        self.route(outputs);
        self.kick_disk();
        if more {
            let after = self.dice.below(100);
            self.plan_turn(after);
        }
        if let Some(deadline) = deadline {
            // A timer of the operating system comes a little late, never early.
            let late = if self.chance(3) { 0 } else { self.dice.below(1500) };
            self.plan_turn(deadline.saturating_sub(self.now) + late);
        }
    }

    /// What the core wants back is read one by one, in any order, soon or late.
    fn plan_read(&mut self) {
        let wanted = self.broker.as_ref().map_or(0, Broker::wanted);
        if wanted > 0 && !std::mem::replace(&mut self.fetch_planned, true) {
            let longest = [100, 3 * MS, 200 * MS][self.reader.below(3) as usize];
            let after = self.reader.below(longest);
            self.at(self.now + after, Event::Read { life: self.life });
        }
    }

    fn read(&mut self) {
        self.fetch_planned = false;
        let Some(broker) = &mut self.broker else { return };
        let count = 1 + self.reader.below(broker.wanted() as u64);
        for _ in 0..count {
            let nth = self.reader.below(broker.wanted() as u64) as usize;
            if let Err(error) = broker.fetch(nth) {
                return self.storage_failed(&error.to_string());
            }
        }
        self.plan_turn(0);
        self.plan_read();
    }

    fn kick_disk(&mut self) {
        let after = self.dice.below(30);
        self.at(self.now + after, Event::Write { life: self.life });
    }

    fn write(&mut self) {
        let Some(broker) = &mut self.broker else { return };
        match broker.write() {
            Ok(Written::Nothing) => {}
            Ok(Written::Yes) => {
                let delay = self.between(20, self.plan.disk_delay);
                self.at(self.now + delay, Event::SyncEnd { life: self.life });
            }
            Ok(Written::NoRoom) => {
                self.plan_turn(0);
                self.upkeep();
                self.at(self.now + 500 * MS, Event::Write { life: self.life });
            }
            Err(error) => self.storage_failed(&error.to_string()),
        }
    }

    fn sync_end(&mut self) {
        let Some(broker) = &mut self.broker else { return };
        if let Err(error) = broker.sync() {
            return self.storage_failed(&error.to_string());
        }
        self.plan_turn(0);
        self.upkeep();
        self.kick_disk();
    }

    /// Some of the work behind the scenes, between commits.
    fn upkeep(&mut self) {
        let steps = self.dice.below(4);
        let mark = self.chance(4);
        let Some(broker) = &mut self.broker else { return };
        let was_full = broker.is_full();
        let mut upkeep = || {
            for _ in 0..steps {
                if !broker.maintain()? {
                    break;
                }
            }
            if mark { broker.mark() } else { Ok(()) }
        };
        match upkeep() {
            Ok(()) => {
                if broker.is_full() {
                    self.at(self.now + 500 * MS, Event::Write { life: self.life });
                }
                if self.broker.as_ref().is_some_and(|broker| broker.is_full() != was_full) {
                    self.plan_turn(0);
                }
            }
            Err(error) => self.storage_failed(&error.to_string()),
        }
    }

    fn storage_failed(&mut self, error: &str) {
        self.die(&format!("storage failed: {error}"), true);
    }

    fn die(&mut self, how: &str, power: bool) {
        let Some(broker) = self.broker.take() else { return };
        drop(broker);
        self.life += 1;
        self.fetch_planned = false;
        self.oracle.crashed(self.now, how);
        let seed = self.dice.roll();
        let seed = if self.chance(6) { seed % 2 } else { seed };
        self.disk = if power { self.disk.crash(seed) } else { self.disk.fork() };
        self.end_all_connections();
        let after = self.between(MS, 500 * MS);
        self.at(self.now + after, Event::Start);
    }

    fn end_all_connections(&mut self) {
        let open: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.broker_open).map(|(id, _)| *id).collect();
        for id in open {
            self.connections.get_mut(&id).expect("it is open").broker_open = false;
            let after = self.dice.below(20 * MS);
            self.at(self.now + after, Event::Lost { connection: id });
        }
    }

    fn stop(&mut self) {
        if self.broker.is_none() || self.calm {
            return;
        }
        // A second signal stops it at once.
        let grace = if self.chance(3) { 0 } else { self.between(MS, 2 * SECOND) };
        if grace > 0
            && let Some(broker) = &mut self.broker
        {
            broker.arrive(self.now, Command::Drain { grace_ms: grace / MS });
            self.plan_turn(0);
        }
        self.at(self.now + grace, Event::Drained { life: self.life });
    }

    fn drained(&mut self) {
        let Some(broker) = self.broker.take() else { return };
        self.life += 1;
        self.fetch_planned = false;
        self.oracle.now(self.now);
        self.oracle.remember_sums(self.now, &broker.shard);
        let mut outputs = Vec::new();
        match broker.stop(self.now, &mut self.oracle, &mut outputs) {
            Ok(()) => {
                self.oracle.stopped(self.now);
                self.route(outputs);
                self.disk = self.disk.fork();
            }
            Err(error) => {
                self.oracle.crashed(self.now, &format!("while stopping: {error}"));
                let seed = self.dice.roll();
                self.disk = self.disk.crash(seed);
            }
        }
        self.end_all_connections();
        let after = self.between(MS, 500 * MS);
        self.at(self.now + after, Event::Start);
    }

    fn route(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { session, on_write, message, .. } => {
                    if self.send_down(session.0, Down::Message(Box::new(message)))
                        && let (Some(lease), Some(broker)) = (on_write, &mut self.broker)
                    {
                        let ack = Ack { leases: LeaseList::from(lease), result: Payload::NULL };
                        let origin = Origin::Session(session, None);
                        broker.arrive(self.now, Command::Message { origin, message: ack.into() });
                        self.plan_turn(0);
                    }
                }
                Output::Answer { call, message } => {
                    let id = call.0;
                    Client::called(self, id, message);
                }
                Output::Report { call, report: Told::Pulled(tasks) } => {
                    Client::pulled(self, call.0, tasks);
                }
                Output::Report { .. } | Output::Publish { .. } => {}
                Output::Close { session, .. } => {
                    self.send_down(session.0, Down::Close);
                    if let Some(connection) = self.connections.get_mut(&session.0) {
                        connection.broker_open = false;
                    }
                }
                Output::Ping { session } => {
                    if let Some(connection) = self.connections.get_mut(&session.0) {
                        connection.pinged = true;
                    }
                    self.send_down(session.0, Down::Ping);
                }
            }
        }
    }

    // --- The network ------------------------------------------------------------------------

    /// A client connects; the number of its connection, which is the session's too.
    pub(crate) fn connect(&mut self, client: usize) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        let open = self.broker.is_some();
        self.connections.insert(
            id,
            Connection {
                client,
                life: self.life,
                client_open: true,
                broker_open: open,
                dead: false,
                up_last: self.now,
                down_last: self.now,
                pinged: false,
            },
        );
        if !open {
            self.at(self.now + MS, Event::Lost { connection: id });
        }
        id
    }

    pub(crate) fn send(&mut self, connection: u64, frames: Vec<Up>) {
        let delay = self.between(10, self.plan.network_delay);
        let Some(found) = self.connections.get_mut(&connection) else { return };
        if !found.client_open || found.dead {
            return;
        }
        let at = (self.now + delay).max(found.up_last);
        found.up_last = at;
        for frame in frames {
            self.at(at, Event::Up { connection, frame });
        }
    }

    /// Whether it was written to the socket.
    fn send_down(&mut self, connection: u64, frame: Down) -> bool {
        let delay = self.between(10, self.plan.network_delay);
        let Some(found) = self.connections.get_mut(&connection) else { return false };
        if !found.broker_open {
            return false;
        }
        let at = (self.now + delay).max(found.down_last);
        found.down_last = at;
        self.at(at, Event::Down { connection, frame });
        true
    }

    fn up(&mut self, id: u64, frame: Up) {
        let Some(found) = self.connections.get_mut(&id) else { return };
        if !found.broker_open || found.dead || found.life != self.life {
            return;
        }
        if self.calm && matches!(frame, Up::Manage(..) | Up::Pull { .. }) {
            // What holds workers and queues up has had its time.
            return;
        }
        let pinged = std::mem::take(&mut found.pinged);
        let next = self.next_task;
        let Some(broker) = &mut self.broker else { return };
        let session = SessionId(id);
        if pinged {
            broker.arrive(self.now, Command::Heard { session });
        }
        let task = || {
            // As a UUIDv7: time, version, variant, and a number.
            TaskId(u128::from(self.now / MS) << 80 | 0x7 << 76 | 0x2 << 62 | u128::from(next))
        };
        let door = |origin: Origin, message: ClientMessage| match message {
            ClientMessage::Submit(submit) => {
                Command::Submit { origin, access: None, task: task(), submit: Submission::new(submit, None) }
            }
            message => Command::Message { origin, message },
        };
        let made_up_name = WorkerName::parse(&format!("anonymous-{id}")).expect("a name");
        let resume_key = u128::from(self.dice.roll()) << 64 | u128::from(id);
        let command = match frame {
            Up::Hello(hello, reference) => Command::Open(Box::new(Open {
                session,
                access: None,
                hello,
                reference,
                made_up_name,
                resume_key,
                subscribe: None,
                join: None,
            })),
            Up::Url(hello, subscribe) => Command::Open(Box::new(Open {
                resume_key,
                join: None,
                session,
                access: None,
                hello,
                reference: None,
                made_up_name,
                subscribe: Some(subscribe),
            })),
            Up::Oldest { ack } => Command::SettleOldest { session, ack },
            Up::Message(message, reference) => door(Origin::Session(session, reference), *message),
            Up::Manage(call, manage) => Command::Manage { call: CallId(call), access: None, manage },
            Up::Pull { call, queue, worker, credit } => Command::Pull(Box::new(Pull {
                call: CallId(call),
                // Numbers that no connection gets.
                session: SessionId(1 << 40 | call & 0xff_ffff_ffff),
                access: None,
                queue,
                credit,
                worker,
                groups: Vec::new(),
            })),
            Up::PullOver(call) => Command::PullOver { call: CallId(call), gone: false },
            Up::Settle(call, message) => {
                Command::Settle { call: CallId(call), access: None, message: *message }
            }
            Up::Call(call, message) => door(Origin::Call(taskyard::core::CallId(call)), *message),
            Up::Leave { call, task } => Command::HangUp { call: taskyard::core::CallId(call), task },
            Up::Pong => {
                if pinged {
                    self.plan_turn(0);
                }
                return;
            }
        };
        broker.arrive(self.now, command);
        self.next_task += 1;
        let after = self.dice.below(200);
        self.plan_turn(after);
    }

    /// An operator asks for something, without a network between.
    pub(crate) fn manage(&mut self, call: u64, manage: Manage) {
        if let Some(broker) = &mut self.broker {
            broker.arrive(
                self.now,
                Command::Manage { call: CallId(call), access: None, manage: Box::new(manage) },
            );
            self.plan_turn(0);
        }
    }

    fn down(&mut self, id: u64, frame: Down) {
        let Some(found) = self.connections.get_mut(&id) else { return };
        if !found.client_open || found.dead {
            return;
        }
        let client = found.client;
        if matches!(frame, Down::Close) {
            return self.lost(id);
        }
        Client::hear(self, client, id, frame);
    }

    fn gone(&mut self, id: u64) {
        let Some(found) = self.connections.get_mut(&id) else { return };
        if !std::mem::take(&mut found.broker_open) || found.life != self.life {
            return;
        }
        if let Some(broker) = &mut self.broker {
            broker.arrive(self.now, Command::End { session: SessionId(id) });
            self.plan_turn(0);
        }
    }

    fn lost(&mut self, id: u64) {
        let Some(found) = self.connections.get_mut(&id) else { return };
        if !std::mem::take(&mut found.client_open) {
            return;
        }
        let client = found.client;
        Client::lost(self, client, id);
    }

    /// The client, or the wire, ends a connection. What is under way may still arrive, or not.
    pub(crate) fn cut(&mut self, id: u64) {
        let lossy = self.chance(2);
        let Some(found) = self.connections.get_mut(&id) else { return };
        if !found.client_open {
            return;
        }
        found.dead = lossy;
        let at = if lossy { self.now } else { found.up_last.max(self.now) };
        let after = self.dice.below(20 * MS);
        self.at(at + after, Event::Gone { connection: id });
        self.lost(id);
    }

    /// A connection over which nothing comes any more, and nobody knows.
    fn half_dead(&mut self, id: u64) {
        let Some(found) = self.connections.get_mut(&id) else { return };
        found.dead = true;
        let broker_after = self.between(10 * MS, 10 * SECOND);
        let client_after = self.between(10 * MS, 10 * SECOND);
        self.at(self.now + broker_after, Event::Gone { connection: id });
        self.at(self.now + client_after, Event::Lost { connection: id });
    }

    // --- Trouble ----------------------------------------------------------------------------

    fn trouble(&mut self, trouble: Trouble) {
        self.oracle.now(self.now);
        self.oracle.note(None, || format!("== trouble: {trouble:?}"));
        match trouble {
            Trouble::Kill => self.die("killed", false),
            Trouble::PowerCut => self.die("the power fails", true),
            Trouble::PowerCutSoon => {
                let soon = 1 + self.dice.below(12);
                self.disk.fail_at(soon, Fault::PowerCut);
            }
            Trouble::SyncFails => {
                let soon = 1 + self.dice.below(8);
                let kinds = [Fault::Eio, Fault::ShortWrite, Fault::NoSpace];
                let kind = kinds[self.dice.below(3) as usize];
                self.disk.fail_at(soon, kind);
            }
            Trouble::Cut | Trouble::HalfDead => {
                let open: Vec<u64> =
                    self.connections.iter().filter(|(_, c)| c.client_open).map(|(id, _)| *id).collect();
                if open.is_empty() {
                    return;
                }
                let id = open[self.dice.below(open.len() as u64) as usize];
                if matches!(trouble, Trouble::Cut) { self.cut(id) } else { self.half_dead(id) }
            }
            Trouble::Stall => {
                let span = self.between(10 * MS, 10 * SECOND);
                self.stalled_until = self.now + span;
                if let Some((at, _)) = self.turn_planned.take() {
                    self.plan_turn(at.saturating_sub(self.now));
                }
            }
            Trouble::DiskFull => {
                let room = self.dice.below(80_000);
                self.disk.set_capacity(Some(self.disk.used() + room));
                let span = self.between(100 * MS, 5 * SECOND);
                self.at(self.now + span, Event::Fault(Trouble::DiskRoom));
            }
            Trouble::DiskRoom => self.disk.set_capacity(None),
        }
    }

    /// From here on nothing fails.
    fn calm_down(&mut self) {
        self.oracle.note(None, || "== from here on all is well".into());
        self.calm = true;
        self.plan.network_delay = MS;
        self.plan.disk_delay = 2 * MS;
        self.disk.set_capacity(None);
        self.disk.fail_at(u64::MAX / 2, Fault::Eio);
        if self.stalled_until > self.now {
            self.stalled_until = self.now;
            self.turn_planned = None;
        }
        self.plan_turn(0);
        let doomed: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.dead && c.broker_open).map(|(id, _)| *id).collect();
        for id in doomed {
            self.at(self.now, Event::Gone { connection: id });
            self.at(self.now, Event::Lost { connection: id });
        }
        for client in 0..self.clients.len() {
            Client::recover(self, client);
        }
        Client::open_all(self);
    }

    // --- The end ----------------------------------------------------------------------------

    fn probe(&mut self) -> Result<(), Violation> {
        let Some(broker) = &self.broker else {
            return Err(self.oracle.broken(
                "I7 when faults stop everything settles",
                None,
                "the broker is not up",
            ));
        };
        self.oracle.probe(self.now, &broker.shard);
        self.check()
    }

    fn remains(&self, what: impl Into<String>) -> Violation {
        self.oracle.broken("I7 no lease, timer or task remains", None, what)
    }

    /// All tasks have ended: nothing of them may be left but dead letters.
    fn nothing_remains(&mut self) -> Result<(), Violation> {
        let broker = self.broker.as_ref().expect("it was just probed");
        let leases = broker.shard.leases_out();
        if leases > 0 {
            return Err(self.remains(format!("{leases} leases are out")));
        }
        let taskyard_now = taskyard::core::Time(self.now);
        for view in broker.shard.worker_views(taskyard_now) {
            if view.in_flight > 0 || view.subscriptions.iter().any(|(_, _, unsettled)| *unsettled > 0) {
                return Err(self.remains(format!("{} holds something still: {view:?}", view.worker)));
            }
        }
        let dead = self.oracle.dead(&broker.shard);
        // What is finished is kept for a while, and no timer outlives it.
        self.clients.clear();
        let open: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.broker_open).map(|(id, _)| *id).collect();
        for id in open {
            self.gone(id);
        }
        let window = if self.oracle.remembers_ids() { 600 * SECOND } else { 0 };
        self.run_until(self.now + (self.plan.keep_ms * MS).max(100 * SECOND).max(window))?;
        self.run_until(self.now + 10 * SECOND)?;
        let broker = self.broker.as_mut().expect("nothing fails here");
        if let Some(deadline) = broker.next_deadline() {
            return Err(self.remains(format!(
                "a timer is set for {} ms from now",
                deadline.saturating_sub(self.now) / MS
            )));
        }
        let live = broker.shard.live_tasks();
        if live != dead {
            return Err(self.remains(format!("{live} tasks are in memory, {dead} are dead letters")));
        }
        let (away, bytes, ahead) = broker.shard.payloads();
        let wanted = broker.wanted();
        if ahead > 0 || wanted > 0 || away > dead as u64 || (dead == 0 && bytes > 0) {
            let what =
                format!("{away} payloads are away, {wanted} on their way, {bytes} bytes here, {ahead} ahead");
            return Err(self.remains(what));
        }
        let records = broker.live_records();
        if dead == 0 && records > 2 {
            return Err(
                self.remains(format!("{records} records are alive in the log, for two queues and no task"))
            );
        }
        Ok(())
    }

    /// A stop in order and a start change nothing that can be seen; nor does a crash now.
    fn restarts_the_same(&mut self) -> Result<(), Violation> {
        for how in ["stop", "crash"] {
            let broker = self.broker.take().expect("it is up");
            self.oracle.now(self.now);
            self.oracle.remember_sums(self.now, &broker.shard);
            let counts: Vec<_> = broker
                .shard
                .queue_views(taskyard::core::Time(self.now))
                .into_iter()
                .map(|v| (v.queue, v.counts))
                .collect();
            if how == "stop" {
                let stopped = broker.stop(self.now, &mut self.oracle, &mut Vec::new());
                if let Err(error) = stopped {
                    return Err(self.oracle.broken("F28 a stop in order", None, error.to_string()));
                }
                self.oracle.stopped(self.now);
                self.disk = self.disk.fork();
            } else {
                drop(broker);
                self.oracle.crashed(self.now, "at the end");
                self.disk = self.disk.crash(0);
            }
            self.start();
            self.check()?;
            let broker = self.broker.as_ref().expect("the start was checked");
            for (queue, before) in counts {
                let after = broker
                    .shard
                    .queue_view(&queue, taskyard::core::Time(self.now))
                    .map_or([0; 8], |view| view.counts);
                if before != after {
                    let what =
                        format!("queue {queue} counted {before:?} before a {how} and {after:?} after it");
                    return Err(self.oracle.broken("I6 counts agree across restarts", None, what));
                }
            }
            self.run_until(self.now + 2 * SECOND)?;
        }
        Ok(())
    }
}

impl Plan {
    fn roll(dice: &mut Dice) -> Plan {
        let mut one_of = |choices: &[u64]| choices[dice.below(choices.len() as u64) as usize];
        Plan {
            horizon: one_of(&[
                200 * MS,
                2 * SECOND,
                2 * SECOND,
                2 * SECOND,
                20 * SECOND,
                20 * SECOND,
                90 * SECOND,
                1200 * SECOND,
            ]),
            submits: one_of(&[8, 16, 16, 30]),
            keep_ms: one_of(&[600_000, 600_000, 600_000, 1_500]),
            network_delay: one_of(&[50, MS, 20 * MS, 200 * MS]),
            disk_delay: one_of(&[200, 2 * MS, 20 * MS, 500 * MS]),
            crashes: one_of(&[0, 1, 1, 2, 4]),
            stops: one_of(&[0, 0, 0, 1, 2]),
            cuts: one_of(&[0, 1, 3, 8]),
            stalls: one_of(&[0, 0, 1, 3]),
            floods: one_of(&[0, 0, 0, 1]),
            window_ms: one_of(&[5000, 5000, 1000, 60_000, 0]),
            operations: one_of(&[0, 0, 2, 6]),
            pulls: one_of(&[0, 0, 0, 6]),
        }
    }
}
