//! Those who talk to the broker: producers, callers over HTTP, and workers good and bad.
//!
//! A client knows what it has seen and remembers nothing else; who is right is the oracle's business.

use taskyard::core::manage::{Manage, TaskFilter, Which};
use taskyard::core::settings::{Changes, Deliver, Order};
use taskyard_proto::message::{Credit, DelayMs, Flag, Int, TimeoutMs};
use taskyard_proto::{
    Ack, Assign, Backoff, Bye, Cancel, Cancelled, ClientMessage, Complete, Confirm, Drain, ErrorText, Extend,
    GivenLease, GroupName, Headers, Hello, IfAbsent, Key, LeaseId, LeaseList, Mode, Nack, Number, Payload,
    Ping, Progress, QueueName, Release, RequestId, Resume, Secret, ServerMessage, SetCredit, Start, Submit,
    Subscribe, Target, Task, TaskId, Unsubscribe, Unwatch, Watch, WorkerName,
};

use crate::world::{Down, MS, SECOND, Up, World};

const QUEUES: [&str; 2] = ["mail", "video"];
const GROUPS: [&str; 2] = ["big", "small"];
const WORKERS: u64 = 4;

pub(crate) struct Client {
    role: Role,
    connection: Option<u64>,
    next_id: i64,
}

enum Role {
    Producer(Producer),
    Worker(Worker),
}

#[derive(Default)]
struct Producer {
    /// Tasks it knows of.
    known: Vec<TaskId>,
    calls: Vec<u64>,
    /// Pulls that wait.
    pulls: Vec<u64>,
}

struct Worker {
    name: WorkerName,
    groups: Vec<GroupName>,
    temper: Temper,
    held: Vec<LeaseId>,
    old: Vec<LeaseId>,
    frozen: bool,
    missed: Vec<(u64, Down)>,
    /// Asks to be resumed, and with which token.
    resumable: bool,
    token: Option<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    /// Acknowledges soon.
    Healthy,
    /// Does anything that the protocol allows, and some that it does not.
    Moody,
    /// Fails often.
    Failing,
    /// Takes tasks and says nothing.
    Silent,
    /// Collects leases and settles them together.
    Collector,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Wake {
    Connect,
    Submit,
    Operate,
    Pull,
    PullOver { call: u64 },
    Settle { lease: LeaseId },
    Whim,
    Act { connection: u64, lease: LeaseId },
    Thaw,
}

fn queue(index: u64) -> QueueName {
    QueueName::parse(QUEUES[index as usize % 2]).expect("a name")
}

fn group(index: u64) -> GroupName {
    GroupName::parse(GROUPS[index as usize % 2]).expect("a name")
}

fn worker_name(index: u64) -> WorkerName {
    WorkerName::parse(&format!("worker-{index}")).expect("a name")
}

impl Client {
    pub(crate) fn populate(world: &mut World) {
        let producers = 1 + world.dice.below(3);
        for _ in 0..producers {
            world.clients.push(Client {
                role: Role::Producer(Producer::default()),
                connection: None,
                next_id: 1,
            });
        }
        let tempers = [
            Temper::Healthy,
            Temper::Moody,
            Temper::Moody,
            Temper::Failing,
            Temper::Silent,
            Temper::Collector,
        ];
        for index in 0..WORKERS {
            let temper = tempers[world.dice.below(6) as usize];
            let groups = (0..2).filter(|_| world.chance(2)).map(group).collect();
            let worker = Worker {
                name: worker_name(index),
                groups,
                temper,
                held: Vec::new(),
                old: Vec::new(),
                frozen: false,
                missed: Vec::new(),
                resumable: world.chance(2),
                token: None,
            };
            world.clients.push(Client { role: Role::Worker(worker), connection: None, next_id: 1 });
        }
        let horizon = world.plan.horizon;
        for client in 0..world.clients.len() {
            let after = world.dice.below(horizon / 8);
            world.wake(after, client, Wake::Connect);
            if client as u64 >= producers {
                for _ in 0..world.dice.below(8) {
                    let after = world.dice.below(horizon);
                    world.wake(after, client, Wake::Whim);
                }
            }
        }
        for _ in 0..world.plan.submits {
            let after = world.dice.below(horizon * 9 / 10);
            let client = world.dice.below(producers) as usize;
            world.wake(after, client, Wake::Submit);
        }
        for (count, wake) in [(world.plan.operations, Wake::Operate), (world.plan.pulls, Wake::Pull)] {
            for _ in 0..count {
                let after = world.dice.below(horizon * 9 / 10);
                let client = world.dice.below(producers) as usize;
                world.wake(after, client, wake);
            }
        }
    }

    fn id(world: &mut World, client: usize, always: bool) -> Option<RequestId> {
        if !always && !world.chance(2) {
            return None;
        }
        let found = &mut world.clients[client];
        found.next_id += 1;
        Some(RequestId::Integer(found.next_id))
    }

    fn say(world: &mut World, client: usize, message: impl Into<ClientMessage>) {
        let calm = world.calm;
        let id = Self::id(world, client, calm);
        if let Some(connection) = world.clients[client].connection {
            world.send(connection, vec![Up::Message(Box::new(message.into()), id)]);
        }
    }

    pub(crate) fn wake(world: &mut World, client: usize, wake: Wake) {
        if client >= world.clients.len() {
            return;
        }
        match wake {
            Wake::Connect => Self::connect(world, client),
            Wake::Submit => Self::submit(world, client),
            Wake::Operate => Self::operate(world, client),
            Wake::Pull => Self::pull(world, client),
            Wake::PullOver { call } => {
                if let Some(connection) = world.clients[client].connection {
                    world.send(connection, vec![Up::PullOver(call)]);
                }
            }
            Wake::Settle { lease } => Self::settle_pulled(world, client, lease),
            Wake::Whim => Self::whim(world, client),
            Wake::Act { connection, lease } => Self::act(world, client, connection, lease),
            Wake::Thaw => Self::thaw(world, client),
        }
    }

    fn connect(world: &mut World, client: usize) {
        if world.clients[client].connection.is_some() {
            return;
        }
        let connection = world.connect(client);
        let id = Self::id(world, client, true);
        let found = &mut world.clients[client];
        found.connection = Some(connection);
        let mut hello = Hello::empty();
        let Role::Worker(worker) = &mut found.role else {
            return world.send(connection, vec![Up::Hello(Box::new(hello), id)]);
        };
        worker.missed.clear();
        if worker.resumable {
            hello.resume = Some(worker.token.clone().map_or(Resume::Wanted(true), Resume::Token));
            let named = |lease: &LeaseId| !world.calm && !lease.number.is_multiple_of(5);
            let (named, others) = std::mem::take(&mut worker.held).into_iter().partition(named);
            worker.held = named;
            worker.old.extend::<Vec<LeaseId>>(others);
            hello.in_flight = worker.held.iter().copied().map(GivenLease::from).collect();
            hello.in_flight.extend(worker.old.iter().rev().take(1).copied().map(GivenLease::from));
            hello.in_flight.truncate(1024);
        }
        worker.old.append(&mut worker.held);
        hello.worker = Some(worker.name.clone());
        hello.groups = if world.calm { (0..2).map(group).collect() } else { worker.groups.clone() };
        let mut frames = if hello.resume.is_none() && world.chance(6) {
            let subscribe = Self::subscription(world, client, 0);
            vec![Up::Url(Box::new(hello), subscribe)]
        } else {
            vec![Up::Hello(Box::new(hello), id)]
        };
        for index in 0..2 {
            if world.calm || !world.chance(4) {
                let subscribe = Self::subscription(world, client, index);
                let id = Self::id(world, client, false);
                frames.push(Up::Message(Box::new(subscribe.into()), id));
            }
        }
        world.send(connection, frames);
    }

    fn subscription(world: &mut World, client: usize, index: u64) -> Subscribe {
        let resumable = matches!(&world.clients[client].role, Role::Worker(worker) if worker.resumable);
        let calm = world.calm;
        let credit = if calm { 1 + world.dice.below(4) } else { world.dice.below(5) };
        Subscribe {
            queue: queue(index),
            credit: (calm || !world.chance(3)).then(|| Credit::nearest(credit)),
            mode: (!calm && world.chance(8)).then_some(Mode::Auto),
            explicit_start: !calm && !resumable && world.chance(6),
        }
    }

    // --- Producers --------------------------------------------------------------------------

    fn submit(world: &mut World, client: usize) {
        let Some(connection) = world.clients[client].connection else { return };
        let many = if world.chance(5) { 1 + world.dice.below(6) } else { 1 };
        let mut frames = Vec::new();
        for _ in 0..many {
            let mut submit = Self::random_submit(world);
            if world.chance(6) {
                // Over HTTP, with or without waiting for the end.
                let call = world.dice.roll() >> 11;
                submit.watch = world.chance(2);
                if let Role::Producer(producer) = &mut world.clients[client].role {
                    producer.calls.push(call);
                }
                frames.push(Up::Call(call, Box::new(submit.into())));
            } else {
                let id = if world.chance(5) { None } else { Self::id(world, client, true) };
                frames.push(Up::Message(Box::new(submit.into()), id));
            }
        }
        world.send(connection, frames);
        if world.chance(3) {
            Self::look(world, client);
        }
    }

    /// Watches something, or no longer.
    fn look(world: &mut World, client: usize) {
        let late = world.plan.keep_ms > 100_000;
        let pick = world.dice.roll();
        let Role::Producer(producer) = &world.clients[client].role else { return };
        let Some(task) = producer.known.get(pick as usize % producer.known.len().max(1)).copied() else {
            return;
        };
        match world.dice.below(7) {
            4..=6 => {
                let grace_ms = Some([0, 50, 500, 5000][world.dice.below(4) as usize]);
                let cancel = Cancel { task, grace_ms: grace_ms.map(Int::nearest) };
                if world.chance(3) {
                    let call = world.dice.roll() >> 11;
                    if let Some(connection) = world.clients[client].connection {
                        world.send(connection, vec![Up::Call(call, Box::new(cancel.into()))]);
                    }
                } else {
                    Self::say(world, client, cancel);
                }
            }
            0 => Self::say(world, client, Unwatch { task }),
            1 => Self::say(world, client, Ping {}),
            _ if late => Self::say(world, client, Watch { task, from_seq: None }),
            _ => {}
        }
    }

    fn random_submit(world: &mut World) -> Submit {
        let serial = world.dice.roll() >> 12;
        let padding = if world.chance(3) { 3000 } else { world.dice.below(60) as usize };
        let payload = Payload::json(&(serial, "x".repeat(padding))).expect("it is JSON");
        let index = world.dice.below(2);
        let mut submit = Submit::new(queue(index), payload);
        if world.chance(10) {
            submit.headers = Headers::from_pairs([("trace", "abc")]).expect("short");
        }
        submit.to = match world.dice.below(12) {
            0..=5 => None,
            6 => Some(Target::Any),
            7 => {
                let if_absent = IfAbsent::ALL[world.dice.below(3) as usize];
                Some(Target::Worker { worker: worker_name(world.dice.below(WORKERS)), if_absent })
            }
            8 => Some(Target::Group(group(world.dice.below(2)))),
            9 => Some(Target::All(Some(group(world.dice.below(2))))),
            _ => Some(Target::All(None)),
        };
        if matches!(submit.to, Some(Target::All(_))) {
            submit.complete = match world.dice.below(4) {
                0 => Some(Complete::All),
                1 => Some(Complete::Any),
                2 => Some(Complete::Quorum(1 + world.dice.below(4))),
                _ => None,
            };
        }
        let mut one_of = |rarity: u64, choices: &[u64]| {
            (world.dice.below(rarity) == 0).then(|| choices[world.dice.below(choices.len() as u64) as usize])
        };
        submit.priority = one_of(3, &[0, 3, 4, 5, 9]).map(Int::nearest);
        submit.delay_ms = one_of(7, &[0, 1, 20, 300, 4000]).map(DelayMs::nearest);
        submit.ttl_ms = one_of(10, &[1, 50, 500, 5000]).map(Int::nearest);
        submit.ack_timeout_ms = one_of(2, &[100, 100, 300, 1000, 4000]).map(TimeoutMs::nearest);
        submit.timeout_ms = one_of(9, &[100, 400, 2000]).map(TimeoutMs::nearest);
        submit.max_attempts = one_of(2, &[1, 2, 3, 10]).map(Int::nearest);
        let factor = 1.0 + world.dice.below(3) as f64;
        let initial = [0, 5, 50, 500][world.dice.below(4) as usize];
        submit.backoff = (!world.chance(4)).then(|| Backoff {
            initial_ms: Some(Int::nearest(initial)),
            max_ms: Some(Int::nearest(2000)),
            factor: Number::new(factor),
        });
        submit.confirm = match world.dice.below(6) {
            0 => Some(Confirm::Memory),
            1 => Some(Confirm::None),
            2 => Some(Confirm::Durable),
            _ => None,
        };
        submit.watch = world.chance(2);
        let key = |world: &mut World, rarity: u64, name: &str, most: u64| {
            let key = world.chance(rarity).then(|| format!("{name}{}", world.dice.below(most)));
            key.and_then(|key| Key::parse(&key))
        };
        submit.order_key = key(world, 3, "o", 2);
        submit.dedup_id = key(world, 8, "d", 4);
        submit.fair_key = key(world, 12, "f", 3);
        submit.sticky_key = key(world, 16, "s", 3);
        submit.assign = match &submit.sticky_key {
            Some(_) => Some(Assign::Sticky),
            None => world.chance(16).then_some(Assign::LeastLoaded),
        };
        submit
    }

    // --- Operators, and those who pull ------------------------------------------------------

    fn operate(world: &mut World, client: usize) {
        let Some(connection) = world.clients[client].connection else { return };
        let queue = queue(world.dice.below(2));
        let pick = world.dice.roll();
        let known = match &world.clients[client].role {
            Role::Producer(producer) => producer.known.clone(),
            Role::Worker(_) => Vec::new(),
        };
        let worker = worker_name(world.dice.below(WORKERS));
        let manage = match world.dice.below(14) {
            0 | 1 => Manage::Purge { queue },
            2 | 3 => {
                let grace_ms = [0, 50, 2000][world.dice.below(3) as usize];
                Manage::CancelMany { queue, filter: TaskFilter::default(), grace_ms }
            }
            4..=6 => Manage::Redrive { queue, which: Which::all(), rate_per_s: None },
            7 if !known.is_empty() => {
                let which = Which::Tasks(vec![known[pick as usize % known.len()]]);
                Manage::Redrive { queue, which, rate_per_s: None }
            }
            8 => Manage::DeleteDead { queue, which: Which::all() },
            9 => Manage::DrainWorker { worker },
            10 => Manage::RemoveWorker { worker },
            11 => {
                let for_ms = (!world.chance(3)).then(|| 1 + world.dice.below(3000));
                Manage::Pause { queue, for_ms, reason: None }
            }
            12 => Manage::Unpause { queue },
            _ => {
                let early = world.chance(2);
                let changes = Changes {
                    max_leased: Some(world.chance(2).then(|| 1 + world.dice.below(3))),
                    rate_per_s: Some(
                        world.chance(2).then(|| [0.5, 20.0, 500.0][world.dice.below(3) as usize]),
                    ),
                    deliver: Some(if early { Deliver::Early } else { Deliver::Durable }),
                    max_tasks: Some(world.chance(4).then_some(12)),
                    order: Some(match world.chance(4) {
                        true => Order::Aged { headstart_ms: 500 },
                        false => Order::Strict,
                    }),
                    ..Changes::default()
                };
                Manage::Declare { queue, changes: Box::new(changes) }
            }
        };
        let call = world.dice.roll() >> 11;
        world.send(connection, vec![Up::Manage(call, Box::new(manage))]);
    }

    /// From here on no queue holds anything back.
    pub(crate) fn open_all(world: &mut World) {
        for index in 0..2 {
            for manage in [
                Manage::Unpause { queue: queue(index) },
                Manage::Declare {
                    queue: queue(index),
                    changes: Box::new(Changes {
                        max_leased: Some(None),
                        rate_per_s: Some(None),
                        deliver: Some(Deliver::Durable),
                        max_tasks: Some(None),
                        order: Some(Order::Strict),
                        ..Changes::default()
                    }),
                },
            ] {
                let call = world.dice.roll() >> 11;
                world.manage(call, manage);
            }
        }
    }

    fn pull(world: &mut World, client: usize) {
        let Some(connection) = world.clients[client].connection else { return };
        let call = world.dice.roll() >> 11;
        let worker = match world.chance(4) {
            true => worker_name(world.dice.below(WORKERS)),
            false => WorkerName::parse("puller").expect("a name"),
        };
        let (queue, credit) = (queue(world.dice.below(2)), 1 + world.dice.below(3) as u32);
        if let Role::Producer(producer) = &mut world.clients[client].role {
            producer.pulls.push(call);
        }
        world.send(connection, vec![Up::Pull { call, queue, worker, credit }]);
        let after = world.between(MS, 3 * SECOND);
        world.wake(after, client, Wake::PullOver { call });
    }

    pub(crate) fn pulled(world: &mut World, call: u64, tasks: Vec<Task>) {
        let mine = |client: &Client| match &client.role {
            Role::Producer(producer) => producer.pulls.contains(&call),
            Role::Worker(_) => false,
        };
        let Some(client) = world.clients.iter().position(mine) else { return };
        for lease in tasks.into_iter().filter_map(|task| task.lease) {
            for _ in 0..1 + world.dice.below(2) {
                let after = world.between(MS, 2 * SECOND);
                world.wake(after, client, Wake::Settle { lease });
            }
        }
    }

    fn settle_pulled(world: &mut World, client: usize, lease: LeaseId) {
        let Some(connection) = world.clients[client].connection else { return };
        let message: ClientMessage = match world.dice.below(8) {
            0 => Nack { leases: lease.into(), error: None, delay_ms: None, retry: None }.into(),
            1 => Release { leases: lease.into(), delay_ms: None }.into(),
            2 => Start { lease: lease.into() }.into(),
            3 => Cancelled { lease: lease.into(), error: None }.into(),
            _ => Ack { leases: lease.into(), result: Payload::NULL }.into(),
        };
        let call = world.dice.roll() >> 11;
        world.send(connection, vec![Up::Settle(call, Box::new(message))]);
    }

    /// An HTTP request is answered.
    pub(crate) fn called(world: &mut World, call: u64, message: ServerMessage) {
        let Some(client) = world.clients.iter().position(|client| match &client.role {
            Role::Producer(producer) => producer.calls.contains(&call),
            Role::Worker(_) => false,
        }) else {
            return;
        };
        if let ServerMessage::Accepted(m) = message {
            let hangs_up = !world.calm && world.chance(4);
            if let Role::Producer(producer) = &mut world.clients[client].role {
                producer.known.push(m.task);
            }
            if hangs_up && let Some(connection) = world.clients[client].connection {
                world.send(connection, vec![Up::Leave { call, task: m.task }]);
            }
        }
    }

    // --- What clients hear ------------------------------------------------------------------

    pub(crate) fn hear(world: &mut World, client: usize, connection: u64, frame: Down) {
        if client >= world.clients.len() {
            return;
        }
        if let Role::Worker(worker) = &mut world.clients[client].role
            && worker.frozen
        {
            worker.missed.push((connection, frame));
            return;
        }
        let message = match frame {
            Down::Ping => {
                if world.calm || !world.chance(5) {
                    world.send(connection, vec![Up::Pong]);
                }
                return;
            }
            Down::Close => return,
            Down::Message(message) => *message,
        };
        match (message, &mut world.clients[client].role) {
            (ServerMessage::Accepted(m), Role::Producer(producer)) => producer.known.push(m.task),
            (ServerMessage::Task(task), Role::Worker(worker)) => {
                let Some(lease) = task.lease else { return };
                worker.held.push(lease);
                let temper = worker.temper;
                let after = match temper {
                    _ if world.calm => world.between(100, 20 * MS),
                    Temper::Healthy => world.between(50, 20 * MS),
                    Temper::Silent => return,
                    // Now and then at the very moment at which the lease runs out.
                    _ if world.chance(12) => (task.ack_timeout_ms * MS).min(2 * SECOND),
                    _ => world.between(100, (task.ack_timeout_ms * 2 * MS).min(4 * SECOND)),
                };
                world.wake(after, client, Wake::Act { connection, lease });
            }
            (ServerMessage::Welcome(m), Role::Worker(worker)) => {
                worker.token = m.resume;
                worker.held.extend(&m.kept);
                worker.old.retain(|lease| !m.kept.contains(lease));
                for lease in m.kept {
                    let after = world.between(100, 2 * SECOND);
                    world.wake(after, client, Wake::Act { connection, lease });
                }
            }
            (ServerMessage::Stop(m), Role::Worker(worker)) => {
                let good = world.calm || worker.temper == Temper::Healthy;
                if good || world.chance(2) {
                    let error = world.chance(2).then(|| ErrorText::new("broken off"));
                    Self::say(world, client, Cancelled { lease: m.lease.into(), error });
                }
            }
            (ServerMessage::Revoked(m), Role::Worker(worker)) => {
                worker.held.retain(|lease| *lease != m.lease);
                worker.old.push(m.lease);
            }
            _ => {}
        }
    }

    pub(crate) fn lost(world: &mut World, client: usize, connection: u64) {
        let Some(found) = world.clients.get_mut(client) else { return };
        if found.connection != Some(connection) {
            return;
        }
        found.connection = None;
        let after = if world.calm { 20 * MS } else { world.between(MS, 2 * SECOND) };
        world.wake(after, client, Wake::Connect);
    }

    /// All is well from now on.
    pub(crate) fn recover(world: &mut World, client: usize) {
        let connection = world.clients[client].connection;
        let Role::Worker(worker) = &mut world.clients[client].role else {
            return world.wake(MS, client, Wake::Connect);
        };
        worker.temper = Temper::Healthy;
        worker.frozen = false;
        worker.missed.clear();
        worker.old.append(&mut worker.held);
        if let Some(connection) = connection {
            world.cut(connection);
        }
        world.wake(MS, client, Wake::Connect);
    }

    // --- Workers ----------------------------------------------------------------------------

    fn thaw(world: &mut World, client: usize) {
        let Role::Worker(worker) = &mut world.clients[client].role else { return };
        worker.frozen = false;
        for (connection, frame) in std::mem::take(&mut worker.missed) {
            Self::hear(world, client, connection, frame);
        }
    }

    fn whim(world: &mut World, client: usize) {
        if world.calm || world.clients[client].connection.is_none() {
            return;
        }
        let index = world.dice.below(2);
        let Role::Worker(worker) = &mut world.clients[client].role else { return };
        match world.dice.below(10) {
            0 | 1 => {
                let credit = Credit::nearest(world.dice.below(4));
                Self::say(world, client, SetCredit { queue: queue(index), credit });
            }
            2 => Self::say(world, client, Unsubscribe { queue: queue(index) }),
            3 | 4 => {
                let subscribe = Self::subscription(world, client, index);
                Self::say(world, client, subscribe);
            }
            5 => Self::say(world, client, Drain {}),
            6 => {
                worker.old.append(&mut worker.held);
                Self::say(world, client, Bye {});
            }
            7 => {
                worker.frozen = true;
                let after = world.between(10 * MS, 3 * SECOND);
                world.wake(after, client, Wake::Thaw);
            }
            8 => {
                // An old lease is nobody's.
                let garbled = GivenLease::parse("not-a-lease");
                let lease = worker.old.last().copied().map_or(garbled, GivenLease::from);
                let leases = LeaseList::One(lease);
                if world.chance(3)
                    && let LeaseList::One(lease) = leases
                {
                    return Self::say(world, client, Cancelled { lease, error: None });
                }
                Self::say(world, client, Ack { leases, result: Payload::NULL });
            }
            _ if world.chance(2) => {
                let ack = world.chance(2);
                if let Some(connection) = world.clients[client].connection {
                    world.send(connection, vec![Up::Oldest { ack }]);
                }
            }
            _ => Self::say(world, client, Ping {}),
        }
    }

    /// It is time to say something about a lease.
    fn act(world: &mut World, client: usize, connection: u64, lease: LeaseId) {
        let calm = world.calm;
        let here = world.clients[client].connection;
        let Role::Worker(worker) = &mut world.clients[client].role else { return };
        if worker.frozen {
            return world.wake(200 * MS, client, Wake::Act { connection, lease });
        }
        let (temper, held, old) = (worker.temper, worker.held.clone(), worker.old.clone());
        // A lease of an earlier connection: mostly dropped, sometimes tried.
        if here != Some(connection) && (calm || !world.chance(3)) {
            return;
        }
        let forget = |world: &mut World, leases: &[LeaseId]| {
            if let Role::Worker(worker) = &mut world.clients[client].role {
                worker.held.retain(|held| !leases.contains(held));
                worker.old.extend(leases);
            }
        };
        let result = Payload::json(&lease.number).expect("it is JSON");
        let ack = |leases: LeaseList| Ack { leases, result: result.clone() };
        if calm || temper == Temper::Healthy {
            forget(world, &[lease]);
            return Self::say(world, client, ack(lease.into()));
        }
        if temper == Temper::Collector {
            if held.len() < 2 && !world.chance(3) {
                return world.wake(50 * MS, client, Wake::Act { connection, lease });
            }
            let mut leases = held;
            leases.truncate(8);
            if world.chance(3) {
                leases.extend(old.iter().rev().take(2));
            }
            if leases.is_empty() {
                return;
            }
            forget(world, &leases);
            let many = LeaseList::Many(leases.into_iter().map(GivenLease::from).collect());
            return match world.dice.below(4) {
                0 => {
                    Self::say(world, client, Nack { leases: many, error: None, delay_ms: None, retry: None })
                }
                1 => Self::say(world, client, Release { leases: many, delay_ms: None }),
                _ => Self::say(world, client, ack(many)),
            };
        }
        let dice = world.dice.below(if temper == Temper::Failing { 8 } else { 16 });
        let delay = |world: &mut World, rarity: u64| {
            world.chance(rarity).then(|| DelayMs::nearest([0, 10, 200, 1500][world.dice.below(4) as usize]))
        };
        match dice {
            0..=3 => {
                forget(world, &[lease]);
                let delay_ms = delay(world, 4);
                let retry = world.chance(6).then_some(Flag(false));
                let error = world.chance(2).then(|| ErrorText::new("it broke"));
                Self::say(world, client, Nack { leases: lease.into(), error, delay_ms, retry });
            }
            4 | 5 => {
                forget(world, &[lease]);
                let delay_ms = delay(world, 4);
                Self::say(world, client, Release { leases: lease.into(), delay_ms });
            }
            // The same twice: `already`.
            8 => {
                forget(world, &[lease]);
                Self::say(world, client, ack(lease.into()));
                Self::say(world, client, ack(lease.into()));
            }
            9 => Self::again(world, client, connection, lease, |lease| Start { lease }.into()),
            10 => {
                let ms = [100, 500, 3000][world.dice.below(3) as usize];
                let ack_timeout_ms = world.chance(2).then(|| TimeoutMs::nearest(ms));
                Self::again(world, client, connection, lease, |lease| {
                    Extend { lease, ack_timeout_ms }.into()
                });
            }
            11 => Self::again(world, client, connection, lease, |lease| {
                Progress { lease, percent: Number::new(50.0), data: Payload::NULL }.into()
            }),
            // It never says another word about it.
            12 => {}
            _ => {
                forget(world, &[lease]);
                Self::say(world, client, ack(lease.into()));
            }
        }
    }

    /// Says something that does not settle, and comes back to the lease later.
    fn again(
        world: &mut World,
        client: usize,
        connection: u64,
        lease: LeaseId,
        message: impl FnOnce(GivenLease) -> ClientMessage,
    ) {
        Self::say(world, client, message(lease.into()));
        let after = world.between(MS, 500 * MS);
        world.wake(after, client, Wake::Act { connection, lease });
    }
}
