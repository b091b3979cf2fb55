//! Commands into the core, over the real log on the simulated disk, under the eyes of the simulator's oracle: it
//! stops at the first promise that is not kept. On top of it, what each account is said to have waiting is what it
//! has, after every step.
//!
//! `TASKYARD_FUZZ_TRACE=1 fuzz/target/…/shard FILE` tells the story of one input.
#![no_main]

/// The simulator's rooms, each where it expects the others.
#[allow(dead_code, reason = "shared with the simulator, which uses more of them")]
#[path = "../../tests/sim"]
mod sim {
    pub mod broker;
    pub mod oracle;
}
#[allow(dead_code, reason = "shared with the tests of the log, which use more of it")]
#[path = "../../tests/support/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::Arbitrary;
use disk::SimDisk;
use libfuzzer_sys::fuzz_target;
use sim::{broker, oracle};
use taskyard::core::shard::Config;
use taskyard::core::{Access, CallId, Command, Grants, Load, Open, Origin, Output, SessionId, Time};
use taskyard_proto::message::{Credit, DelayMs, Flag, Int, TimeoutMs};
use taskyard_proto::{
    Ack, Backoff, Bye, ClientMessage, Complete, Confirm, Drain, ErrorText, Extend, GivenLease, GroupName,
    Hello, IfAbsent, LeaseId, LeaseList, Mode, Nack, Number, Payload, Ping, Progress, QueueName, Release,
    RequestId, ServerMessage, SetCredit, Start, Submit, Subscribe, Target, TaskId, TaskState, Unsubscribe,
    Unwatch, Watch, WorkerName,
};

use broker::Broker;
use oracle::Oracle;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Whether sessions and calls have accounts.
    accounts: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Open {
        who: u8,
        groups: u8,
        subscribe: Option<Asked>,
        reference: bool,
    },
    End {
        who: u8,
    },
    Say {
        who: u8,
        answered: bool,
        what: What,
    },
    Submit {
        who: Option<u8>,
        answered: bool,
        what: Task,
    },
    Oldest {
        who: u8,
        ack: bool,
    },
    HangUp {
        call: u8,
    },
    /// Whether a client answers pings.
    Deaf {
        who: u8,
        deaf: bool,
    },
    Wait {
        time: u8,
    },
    /// To the next moment at which something is due, and a little more.
    Deadline {
        late: u8,
    },
    /// The process stands still; what arrives waits, and is then read so many at a time.
    Stall,
    GoOn {
        at_once: u8,
    },
    /// The disk stands still.
    Disk {
        slow: bool,
    },
    Maintain {
        steps: u8,
    },
    Crash {
        keeps: u8,
    },
    Restart,
    Drain,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Asked {
    queue: bool,
    credit: Option<u8>,
    auto: bool,
    explicit_start: bool,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Leases {
    /// Counted from the newest.
    first: u8,
    /// As a list of so many.
    many: Option<u8>,
    garbled: bool,
}

#[derive(Arbitrary, Debug)]
enum What {
    Subscribe(Asked),
    Unsubscribe { queue: bool },
    Credit { queue: bool, credit: u8 },
    Ack(Leases),
    Nack { leases: Leases, delay: Option<u8>, dead: bool, error: bool },
    Release { leases: Leases, delay: Option<u8> },
    Start(Leases),
    Extend { lease: Leases, time: Option<u8> },
    Progress(Leases),
    Watch { task: u8 },
    Unwatch { task: u8 },
    Drain,
    Bye,
    Ping,
}

#[derive(Arbitrary, Debug)]
struct Task {
    queue: bool,
    bytes: u8,
    to: To,
    priority: Option<u8>,
    delay: Option<u8>,
    ttl: Option<u8>,
    ack_timeout: Option<u8>,
    timeout: Option<u8>,
    max_attempts: Option<u8>,
    backoff: Option<u8>,
    confirm: Option<u8>,
    watch: bool,
}

#[derive(Arbitrary, Debug)]
enum To {
    Any,
    Worker { who: u8, if_absent: u8 },
    Group(u8),
    All { group: Option<u8>, complete: Option<u8> },
}

const MS: u64 = 1000;
const SECOND: u64 = 1000 * MS;
const BEGIN: u64 = 1_000_000 * SECOND;
/// Finished tasks are kept for 600 s: what is asked about later is not foreseen.
const END: u64 = BEGIN + 450 * SECOND;
/// More than all back-offs, ack timeouts and absences of one task together.
const QUIET_MAX: u64 = 140 * SECOND;
const STEPS_MAX: usize = 60;
const TIMES_MS: [u64; 10] = [0, 1, 20, 99, 100, 300, 1000, 4000, 10_000, 31_000];
const ACCOUNTS: [&str; 2] = ["sessions", "calls"];

fn ms(index: u8) -> u64 {
    TIMES_MS[usize::from(index) % TIMES_MS.len()]
}

fn queue(index: bool) -> QueueName {
    QueueName::parse(if index { "mail" } else { "video" }).expect("a name")
}

fn group(index: u8) -> GroupName {
    GroupName::parse(["big", "small"][usize::from(index) % 2]).expect("a name")
}

fn worker(index: u8) -> WorkerName {
    WorkerName::parse(["ada", "bob", "eve"][usize::from(index) % 3]).expect("a name")
}

struct Stage {
    now: u64,
    accounts: bool,
    oracle: Oracle,
    disk: SimDisk,
    broker: Option<Broker>,
    /// The session of each of those who talk, while it has one.
    sessions: [Option<SessionId>; 3],
    deaf: [bool; 3],
    pinged: Vec<SessionId>,
    next: u64,
    tasks: Vec<TaskId>,
    calls: Vec<(CallId, TaskId)>,
    /// Whose a task is, and the bytes of its payload.
    owners: BTreeMap<TaskId, (&'static str, u64)>,
    leases: Vec<LeaseId>,
    stalled: bool,
    slow: bool,
    limit: usize,
    /// All is well: what is delivered is acknowledged.
    calm: bool,
}

impl Stage {
    fn new(accounts: bool) -> Stage {
        let trace = std::env::var_os("TASKYARD_FUZZ_TRACE").is_some();
        let mut stage = Stage {
            now: BEGIN,
            accounts,
            oracle: Oracle::new(600_000, trace),
            disk: SimDisk::new(),
            broker: None,
            sessions: [None; 3],
            deaf: [false; 3],
            pinged: Vec::new(),
            next: 1,
            tasks: Vec::new(),
            calls: Vec::new(),
            owners: BTreeMap::new(),
            leases: Vec::new(),
            stalled: false,
            slow: false,
            limit: usize::MAX,
            calm: false,
        };
        stage.start();
        stage
    }

    fn access(&self, account: usize) -> Option<Arc<Access>> {
        self.accounts.then(|| {
            Arc::new(Access {
                account: ACCOUNTS[account].into(),
                grants: Arc::new(Grants::all()),
                queued_tasks: None,
                queued_bytes: None,
            })
        })
    }

    fn start(&mut self) {
        let broker = Broker::start(self.disk.clone(), Config::default(), self.now, &mut self.oracle);
        self.broker = Some(broker.unwrap_or_else(|error| panic!("the start fails: {error}")));
        self.sessions = [None; 3];
        self.deaf = [false; 3];
        self.pinged.clear();
        self.calls.clear();
        (self.stalled, self.slow) = (false, false);
        self.settle_down();
    }

    fn judge(&self) {
        if let Some(violation) = &self.oracle.violation {
            panic!(
                "{}: {} (task {:?})\n{}",
                violation.promise,
                violation.what,
                violation.task,
                self.oracle.story(None)
            );
        }
    }

    /// Turns and syncs until nothing is left to do at this time.
    fn settle_down(&mut self) {
        if self.stalled {
            return;
        }
        loop {
            let mut outputs = Vec::new();
            let broker = self.broker.as_mut().expect("it is up");
            broker.turn(self.now, self.limit, &mut self.oracle, &mut outputs);
            self.judge();
            self.route(outputs);
            let broker = self.broker.as_mut().expect("it is up");
            if !self.slow {
                broker.write().expect("the disk is well");
                broker.sync().expect("the disk is well");
            }
            if !broker.has_work() {
                break;
            }
        }
        self.loads_are_right();
    }

    /// What an account is said to have waiting is what it has: unfinished tasks and dead letters.
    fn loads_are_right(&self) {
        let shard = &self.broker.as_ref().expect("it is up").shard;
        for account in ACCOUNTS {
            let mut expected = Load::default();
            for (id, (_, bytes)) in self.owners.iter().filter(|(_, (owner, _))| *owner == account) {
                let state = shard.task_view(*id, Time(self.now)).map(|view| view.state);
                if state.is_some_and(|state| !state.is_final() || state == TaskState::Dead) {
                    expected.tasks += 1;
                    expected.bytes += bytes;
                }
            }
            assert_eq!(shard.load_of(account), expected, "account {account}\n{}", self.oracle.story(None));
        }
    }

    fn arrive(&mut self, command: Command) {
        self.broker.as_mut().expect("it is up").arrive(self.now, command);
    }

    fn slot(&self, session: SessionId) -> Option<usize> {
        self.sessions.iter().position(|open| *open == Some(session))
    }

    fn route(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { session, on_write, message, .. } => {
                    if self.slot(session).is_none() {
                        continue;
                    }
                    if let ServerMessage::Task(task) = &message
                        && let Some(lease) = task.lease.or(on_write)
                    {
                        self.leases.push(lease);
                        if self.calm && on_write.is_none() {
                            self.ack(session, lease);
                        }
                    }
                    if let Some(lease) = on_write {
                        self.ack(session, lease);
                    }
                }
                Output::Answer { .. } | Output::Report { .. } | Output::Publish { .. } => {}
                Output::Close { session, .. } => {
                    if let Some(slot) = self.slot(session) {
                        self.sessions[slot] = None;
                    }
                }
                Output::Ping { session } => self.pinged.push(session),
            }
        }
        for session in std::mem::take(&mut self.pinged) {
            match self.slot(session) {
                Some(slot) if self.deaf[slot] => self.pinged.push(session),
                Some(_) => self.arrive(Command::Heard { session }),
                None => {}
            }
        }
    }

    fn ack(&mut self, session: SessionId, lease: LeaseId) {
        let message = Ack { leases: lease.into(), result: Payload::NULL }.into();
        self.arrive(Command::Message { origin: Origin::Session(session, None), message });
    }

    fn session(&mut self, who: u8) -> SessionId {
        match self.sessions[usize::from(who) % 3] {
            Some(session) => session,
            None => self.open(who, who, None, false),
        }
    }

    fn open(&mut self, who: u8, groups: u8, subscribe: Option<Subscribe>, reference: bool) -> SessionId {
        let session = SessionId(self.next);
        self.next += 1;
        let slot = usize::from(who) % 3;
        let groups = (0..2).filter(|nth| groups >> nth & 1 == 1).map(group).collect();
        let hello = Hello { worker: Some(worker(who)), groups, ..Hello::empty() };
        self.arrive(Command::Open(Box::new(Open {
            session,
            access: self.access(0),
            hello: Box::new(hello),
            reference: reference.then_some(RequestId::Integer(self.next as i64)),
            made_up_name: worker(who),
            resume_key: u128::from(self.next),
            subscribe,
            join: None,
        })));
        self.sessions[slot] = Some(session);
        self.deaf[slot] = false;
        session
    }

    fn subscribe(asked: Asked) -> Subscribe {
        Subscribe {
            queue: queue(asked.queue),
            credit: asked.credit.map(|credit| Credit::nearest(u64::from(credit % 5))),
            mode: asked.auto.then_some(Mode::Auto),
            explicit_start: asked.explicit_start,
        }
    }

    fn lease(&self, nth: usize) -> GivenLease {
        match self.leases.len().checked_sub(1 + nth) {
            Some(at) => self.leases[at].into(),
            None => LeaseId { number: 1, slot: 0, recipient: 0 }.into(),
        }
    }

    fn leases(&self, wanted: Leases) -> LeaseList {
        let first = usize::from(wanted.first % 8);
        match wanted.many {
            None if wanted.garbled => LeaseList::One(GivenLease::parse("not-a-lease")),
            None => LeaseList::One(self.lease(first)),
            Some(many) => {
                let mut list: Vec<_> =
                    (0..usize::from(many % 4)).map(|nth| self.lease(first + nth)).collect();
                list.extend(wanted.garbled.then(|| GivenLease::parse("not-a-lease")));
                if list.is_empty() { LeaseList::One(self.lease(first)) } else { LeaseList::Many(list) }
            }
        }
    }

    fn one(&self, wanted: Leases) -> GivenLease {
        if wanted.garbled {
            GivenLease::parse("not-a-lease")
        } else {
            self.lease(usize::from(wanted.first % 8))
        }
    }

    fn task(&self, nth: u8) -> TaskId {
        match self.tasks.len().checked_sub(1 + usize::from(nth % 8)) {
            Some(at) => self.tasks[at],
            None => TaskId(7),
        }
    }

    fn message(&self, what: &What) -> ClientMessage {
        let delay = |delay: Option<u8>| delay.map(|index| DelayMs::nearest(ms(index)));
        match *what {
            What::Subscribe(asked) => Self::subscribe(asked).into(),
            What::Unsubscribe { queue: of } => Unsubscribe { queue: queue(of) }.into(),
            What::Credit { queue: of, credit } => {
                SetCredit { queue: queue(of), credit: Credit::nearest(u64::from(credit % 5)) }.into()
            }
            What::Ack(leases) => {
                let result = Payload::json(&self.next).expect("it is JSON");
                Ack { leases: self.leases(leases), result }.into()
            }
            What::Nack { leases, delay: after, dead, error } => Nack {
                leases: self.leases(leases),
                error: error.then(|| ErrorText::new("it broke")),
                delay_ms: delay(after),
                retry: dead.then_some(Flag(false)),
            }
            .into(),
            What::Release { leases, delay: after } => {
                Release { leases: self.leases(leases), delay_ms: delay(after) }.into()
            }
            What::Start(lease) => Start { lease: self.one(lease) }.into(),
            What::Extend { lease, time } => Extend {
                lease: self.one(lease),
                ack_timeout_ms: time.map(|index| TimeoutMs::nearest(ms(index))),
            }
            .into(),
            What::Progress(lease) => {
                Progress { lease: self.one(lease), percent: Number::new(50.0), data: Payload::NULL }.into()
            }
            What::Watch { task } => Watch { task: self.task(task), from_seq: None }.into(),
            What::Unwatch { task } => Unwatch { task: self.task(task) }.into(),
            What::Drain => Drain {}.into(),
            What::Bye => Bye {}.into(),
            What::Ping => Ping {}.into(),
        }
    }

    fn submit(&mut self, who: Option<u8>, answered: bool, what: &Task) {
        let bytes = usize::from(what.bytes) * if what.bytes > 250 { 200 } else { 1 };
        let payload = Payload::json(&(self.next, "x".repeat(bytes))).expect("it is JSON");
        let weight = payload.bytes().len() as u64;
        let mut submit = Submit::new(queue(what.queue), payload);
        submit.to = match what.to {
            To::Any => None,
            To::Worker { who, if_absent } => {
                let if_absent = IfAbsent::ALL[usize::from(if_absent) % 3];
                Some(Target::Worker { worker: worker(who), if_absent })
            }
            To::Group(of) => Some(Target::Group(group(of))),
            To::All { group: of, complete } => {
                submit.complete = complete.map(|complete| match complete % 5 {
                    0 => Complete::All,
                    1 => Complete::Any,
                    count => Complete::Quorum(u64::from(count) - 1),
                });
                Some(Target::All(of.map(group)))
            }
        };
        submit.priority = what.priority.map(|priority| Int::nearest(u64::from(priority % 10)));
        submit.delay_ms = what.delay.map(|index| DelayMs::nearest(ms(index)));
        submit.ttl_ms = what.ttl.map(|index| Int::nearest(ms(index)));
        submit.ack_timeout_ms = what.ack_timeout.map(|index| TimeoutMs::nearest(ms(index % 8)));
        submit.timeout_ms = what.timeout.map(|index| TimeoutMs::nearest(ms(index % 8)));
        submit.max_attempts = what.max_attempts.map(|count| Int::nearest(u64::from(count % 5)));
        submit.backoff = Some(Backoff {
            initial_ms: what.backoff.map(|index| Int::nearest(ms(index))),
            max_ms: Some(Int::nearest(2000)),
            factor: Number::new(1.0 + f64::from(what.backoff.unwrap_or(0) % 3)),
        });
        submit.confirm = what.confirm.map(|index| Confirm::ALL[usize::from(index) % 3]);
        submit.watch = what.watch;
        let (origin, account) = match who {
            Some(who) => {
                let session = self.session(who);
                let id = answered.then_some(RequestId::Integer(self.next as i64));
                (Origin::Session(session, id), 0)
            }
            None => (Origin::Call(CallId(self.next)), 1),
        };
        // As a UUIDv7: version, variant, and a number.
        let task = TaskId(0x7 << 76 | 0x2 << 62 | u128::from(self.next));
        self.tasks.push(task);
        if let Origin::Call(call) = origin {
            self.calls.push((call, task));
        }
        if self.accounts {
            self.owners.insert(task, (ACCOUNTS[account], weight));
        }
        let access = self.access(account);
        self.arrive(Command::Submit { origin, access, task, submit: submit.into() });
    }

    fn deadline(&self) -> Option<u64> {
        self.broker.as_ref().expect("it is up").next_deadline()
    }

    /// Steps from one deadline to the next.
    fn pass(&mut self, span: u64) {
        let end = (self.now + span).min(if self.calm { u64::MAX } else { END });
        while !self.stalled
            && let Some(deadline) = self.deadline().filter(|at| *at <= end)
        {
            self.now = deadline.max(self.now);
            self.settle_down();
        }
        self.now = end.max(self.now);
    }

    fn step(&mut self, step: &Step) {
        self.next += 1;
        match step {
            Step::Open { who, groups, subscribe, reference } => {
                self.open(*who, *groups, subscribe.map(Self::subscribe), *reference);
            }
            Step::End { who } => {
                if let Some(session) = self.sessions[usize::from(*who) % 3].take() {
                    self.arrive(Command::End { session });
                }
            }
            Step::Say { who, answered, what } => {
                let session = self.session(*who);
                let id = answered.then_some(RequestId::Integer(self.next as i64));
                let message = self.message(what);
                self.arrive(Command::Message { origin: Origin::Session(session, id), message });
                if matches!(what, What::Bye) {
                    // It says nothing more, and its socket ends after its last answer.
                    self.sessions[usize::from(*who) % 3] = None;
                }
            }
            Step::Submit { who, answered, what } => self.submit(*who, *answered, what),
            Step::Oldest { who, ack } => {
                let session = self.session(*who);
                self.arrive(Command::SettleOldest { session, ack: *ack });
            }
            Step::HangUp { call } => {
                if !self.calls.is_empty() {
                    let (call, task) = self.calls.swap_remove(usize::from(*call) % self.calls.len());
                    self.arrive(Command::HangUp { call, task });
                }
            }
            Step::Deaf { who, deaf } => self.deaf[usize::from(*who) % 3] = *deaf,
            Step::Wait { time } => self.pass(ms(*time) * MS),
            Step::Deadline { late } => {
                if let Some(deadline) = self.deadline().filter(|at| *at < END) {
                    self.now = deadline.max(self.now) + ms(*late % 4) * MS;
                }
            }
            Step::Stall => self.stalled = true,
            Step::GoOn { at_once } => {
                self.stalled = false;
                self.limit = if *at_once == 0 { usize::MAX } else { usize::from(*at_once) };
            }
            Step::Disk { slow } => self.slow = *slow,
            Step::Maintain { steps } => {
                let broker = self.broker.as_mut().expect("it is up");
                for _ in 0..steps % 8 {
                    broker.maintain().expect("the disk is well");
                }
                broker.mark().expect("the disk is well");
            }
            Step::Crash { keeps } => {
                drop(self.broker.take());
                self.oracle.crashed(self.now, "the input says so");
                self.disk = self.disk.crash(u64::from(*keeps));
                self.start();
            }
            Step::Restart => {
                // What is in the inbox was not read.
                let broker = self.broker.take().expect("it is up");
                self.oracle.remember_sums(self.now, &broker.shard);
                broker.stop(self.now, &mut self.oracle, &mut Vec::new()).expect("the disk is well");
                self.oracle.stopped(self.now);
                self.disk = self.disk.fork();
                self.start();
            }
            Step::Drain => self.arrive(Command::Drain { grace_ms: 1000 }),
        }
        self.settle_down();
    }

    /// Nothing fails any more, and everything must come to its end.
    fn calm_down(&mut self) {
        if self.stalled {
            self.stalled = false;
            self.settle_down();
        }
        (self.slow, self.limit, self.calm) = (false, usize::MAX, true);
        self.settle_down();
        // A broker that drains gives nothing out.
        self.step(&Step::Restart);
        for who in 0..3 {
            self.open(who, 3, None, true);
            for queue in [false, true] {
                let asked = Asked { queue, credit: Some(4), auto: false, explicit_start: false };
                self.step(&Step::Say { who, answered: true, what: What::Subscribe(asked) });
            }
        }
        let end = self.now + QUIET_MAX;
        while !self.oracle.all_over(&self.broker.as_ref().expect("it is up").shard) {
            let deadline = self.deadline().filter(|at| *at <= end);
            let Some(deadline) = deadline else {
                panic!("{:?} has not ended\n{}", self.oracle.open_tasks(), self.oracle.story(None));
            };
            self.now = deadline.max(self.now);
            self.settle_down();
        }
        let now = self.now;
        let shard = &self.broker.as_ref().expect("it is up").shard;
        self.oracle.probe(now, shard);
        self.oracle.all_answered();
        self.judge();
        assert_eq!(shard.leases_out(), 0);
        let dead = self.oracle.dead(shard);
        assert_eq!(shard.live_tasks(), dead, "of all that was, dead letters are left");
        if dead == 0 {
            assert!(ACCOUNTS.iter().all(|account| shard.load_of(account) == Load::default()));
        }
    }
}

fuzz_target!(|input: Input| {
    let mut stage = Stage::new(input.accounts);
    for step in input.steps.iter().take(STEPS_MAX) {
        stage.step(step);
        stage.judge();
    }
    stage.calm_down();
});
