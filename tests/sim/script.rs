//! A little language for scenarios: what clients do, and what they then hear.
//!
//! ```text
//! a subscribe credit 2 manual      a worker, named by its letter, asks for tasks of the queue `q`
//! p submit t max_attempts 2        a producer submits; `t` names the task from here on
//! a ack t                          settles the worker's lease on t: ack nack release start extend progress
//! + 100ms                          time passes
//! a cut | a bye | a freeze | a thaw
//! crash | crash for 1s | restart | drain
//! stall … go on (slowly)           the process stands still, what arrives waits (and is then read one by one)
//! disk waits … disk goes on        nothing becomes durable meanwhile
//! < a: t attempt 1                 what was heard since the last line of this kind, in order
//! ```
//!
//! Network and disk take no time here; the oracle of the seeds watches as well. What only confirms (`ok`,
//! `subscribed`, `welcome`) is left out, and events unless asked for.

use std::collections::BTreeMap;

use taskyard::core::shard::Config;
use taskyard::core::{CallId, Command, Origin, Output, SessionId};
use taskyard_proto::message::{Credit, DelayMs, Flag, Int, TimeoutMs};
use taskyard_proto::{
    Ack, Backoff, Bye, ClientMessage, Complete, Confirm, Drain, ErrorText, Extend, Finished, GroupName,
    Hello, IfAbsent, LeaseId, LeaseList, Mode, Nack, Number, Payload, Progress, QueueName, Release,
    RequestId, ServerMessage, SetCredit, Start, Submit, Subscribe, Target, TaskId, Unsubscribe, Watch,
    WorkerName,
};

use crate::broker::Broker;
use crate::disk::SimDisk;
use crate::oracle::Oracle;

const BEGIN: u64 = 1_000_000_000;

/// Plays a script; what is heard must be what it says.
pub(crate) fn check(script: &str) {
    let mut stage = Stage::new();
    let mut expected: Vec<&str> = Vec::new();
    let lines: Vec<&str> = script.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    for (number, line) in lines.iter().enumerate() {
        if let Some(text) = line.strip_prefix('<') {
            expected.push(text.trim());
            if lines.get(number + 1).is_some_and(|next| next.starts_with('<')) {
                continue;
            }
            let heard = std::mem::take(&mut stage.heard);
            let expected: Vec<&str> =
                std::mem::take(&mut expected).into_iter().filter(|line| *line != "nothing").collect();
            assert_eq!(heard, expected, "before line {}: {line}\n{}", number + 1, stage.oracle.story(None));
            continue;
        }
        stage.play(line);
        if let Some(violation) = &stage.oracle.violation {
            panic!("{line}: {}: {}\n{}", violation.promise, violation.what, stage.oracle.story(None));
        }
    }
    assert!(stage.heard.is_empty(), "unexpected: {:?}", stage.heard);
}

struct Stage {
    now: u64,
    oracle: Oracle,
    disk: SimDisk,
    broker: Option<Broker>,
    sessions: BTreeMap<String, u64>,
    next: u64,
    tasks: BTreeMap<String, TaskId>,
    /// The latest lease of each worker on each task.
    leases: BTreeMap<(String, String), LeaseId>,
    groups: BTreeMap<String, Vec<GroupName>>,
    frozen: Vec<u64>,
    pinged: Vec<u64>,
    /// The process stands still: what arrives waits.
    stalled: bool,
    /// The disk stands still: nothing becomes durable.
    slow: bool,
    /// How many commands go into a turn.
    limit: usize,
    heard: Vec<String>,
}

impl Stage {
    fn new() -> Stage {
        let mut stage = Stage {
            now: BEGIN,
            oracle: Oracle::new(600_000, true),
            disk: SimDisk::new(),
            broker: None,
            sessions: BTreeMap::new(),
            next: 1,
            tasks: BTreeMap::new(),
            leases: BTreeMap::new(),
            groups: BTreeMap::new(),
            frozen: Vec::new(),
            pinged: Vec::new(),
            stalled: false,
            slow: false,
            limit: usize::MAX,
            heard: Vec::new(),
        };
        stage.start();
        stage
    }

    fn start(&mut self) {
        let broker = Broker::start(self.disk.clone(), Config::default(), self.now, &mut self.oracle).unwrap();
        self.broker = Some(broker);
        self.sessions.clear();
        self.settle_down();
    }

    /// Turns and syncs until nothing is left to do at this time.
    fn settle_down(&mut self) {
        if self.stalled {
            return;
        }
        loop {
            let mut outputs = Vec::new();
            let broker = self.broker.as_mut().unwrap();
            broker.turn(self.now, self.limit, &mut self.oracle, &mut outputs);
            self.route(outputs);
            let broker = self.broker.as_mut().unwrap();
            if !self.slow {
                broker.write().unwrap();
                broker.sync().unwrap();
            }
            if !broker.has_work() {
                break;
            }
        }
    }

    fn route(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send { session, on_write, message, .. } => {
                    let Some(name) = self.name_of(session.0) else { continue };
                    if let ServerMessage::Task(task) = &message {
                        let label = self.label(task.task);
                        let lease = task.lease.or(on_write).unwrap();
                        self.leases.insert((name.clone(), label), lease);
                    }
                    self.tell(&name, &message);
                    if let Some(lease) = on_write {
                        let ack = Ack { leases: lease.into(), result: Payload::NULL };
                        let origin = Origin::Session(session, None);
                        let command = Command::Message { origin, message: ack.into() };
                        self.broker.as_mut().unwrap().arrive(self.now, command);
                    }
                }
                Output::Answer { message, .. } => self.tell("call", &message),
                Output::Report { report, .. } => self.heard.push(format!("call: {report:?}")),
                Output::Publish { members, message } => {
                    for name in
                        members.iter().filter_map(|session| self.name_of(session.0)).collect::<Vec<_>>()
                    {
                        self.tell(&name, &message.clone().into());
                    }
                }
                Output::Close { session, code, .. } => {
                    if let Some(name) = self.name_of(session.0) {
                        self.heard.push(format!("{name}: closed {}", code.0));
                        self.sessions.remove(&name);
                    }
                }
                Output::Ping { session } => self.pinged.push(session.0),
            }
        }
        // A client that lives answers a ping at once.
        for session in std::mem::take(&mut self.pinged) {
            if self.frozen.contains(&session) {
                self.pinged.push(session);
            } else {
                self.broker
                    .as_mut()
                    .unwrap()
                    .arrive(self.now, Command::Heard { session: SessionId(session) });
            }
        }
    }

    fn name_of(&self, session: u64) -> Option<String> {
        self.sessions.iter().find(|(_, id)| **id == session).map(|(name, _)| name.clone())
    }

    fn label(&self, task: TaskId) -> String {
        self.tasks
            .iter()
            .find(|(_, id)| **id == task)
            .map_or_else(|| task.to_string(), |(label, _)| label.clone())
    }

    fn label_of_lease(&self, lease: LeaseId) -> String {
        self.leases.iter().find(|(_, id)| **id == lease).map_or("?", |((_, label), _)| label).to_owned()
    }

    fn tell(&mut self, to: &str, message: &ServerMessage) {
        let text = match message {
            ServerMessage::Task(m) => {
                let flag = if m.redelivered { " redelivered" } else { "" };
                format!("{} attempt {}{flag}", self.label(m.task), m.attempt)
            }
            ServerMessage::Accepted(m) => format!("accepted {}", self.label(m.task)),
            ServerMessage::Revoked(m) => format!("revoked {} {}", self.label_of_lease(m.lease), m.reason),
            ServerMessage::Settled(m) => format!("settled {}", m.outcome.0.unwrap()),
            ServerMessage::Error(m) => format!("error {}", m.code),
            ServerMessage::Finished(m) => self.end_of(m),
            ServerMessage::GoingAway(_) => "going_away".into(),
            _ => return,
        };
        self.heard.push(format!("{to}: {text}"));
    }

    fn end_of(&self, m: &Finished) -> String {
        let mut text = format!("finished {} {}", self.label(m.task), m.state);
        if let Some(list) = &m.recipients {
            text += &format!(
                " delivered {} acked {} failed {}",
                m.delivered.unwrap(),
                m.acked.unwrap(),
                m.failed.unwrap()
            );
            for outcome in &list.0 {
                let error =
                    outcome.error.as_ref().map_or(String::new(), |error| format!(" {}", error.as_str()));
                text += &format!(", {} {}{error}", outcome.worker, outcome.state);
            }
            return text;
        }
        text += &format!(" attempts {}", m.attempts);
        if !m.result.is_null() {
            text += &format!(" result {}", m.result.to_json());
        }
        if let Some(error) = &m.error {
            text += &format!(" error {}", error.as_str());
        }
        text
    }

    fn play(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["+", time] => self.pass(duration(time)),
            ["crash"] => self.crash(0),
            ["crash", "for", time] => self.crash(duration(time)),
            ["disk", "waits"] => self.slow = true,
            ["disk", "goes", "on"] => {
                self.slow = false;
                self.settle_down();
            }
            ["restart"] => {
                let mut outputs = Vec::new();
                self.broker.take().unwrap().stop(self.now, &mut self.oracle, &mut outputs).unwrap();
                self.oracle.stopped(self.now);
                self.route_after_stop(outputs);
                self.slow = false;
                self.disk = self.disk.fork();
                self.start();
            }
            ["drain"] => {
                self.broker.as_mut().unwrap().arrive(self.now, Command::Drain { grace_ms: 1000 });
                self.settle_down();
            }
            ["stall"] => self.stalled = true,
            ["go", "on", ref slowly @ ..] => {
                self.stalled = false;
                self.limit = if slowly.is_empty() { usize::MAX } else { 1 };
                self.settle_down();
            }
            [who, "is", "in", group] => {
                self.groups.entry(who.into()).or_default().push(GroupName::parse(group).unwrap());
            }
            [who, verb, ref rest @ ..] => self.say(who, verb, rest),
            _ => panic!("not a line of a script: {line}"),
        }
    }

    fn crash(&mut self, span: u64) {
        drop(self.broker.take());
        self.oracle.crashed(self.now, "the script says so");
        self.disk = self.disk.crash(0);
        self.now += span;
        self.slow = false;
        self.start();
    }

    fn route_after_stop(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            if let Output::Send { session, message, .. } = output
                && let Some(name) = self.name_of(session.0)
            {
                self.tell(&name, &message);
            }
        }
    }

    /// Steps from one deadline to the next.
    fn pass(&mut self, span: u64) {
        let end = self.now + span;
        while !self.stalled
            && let Some(deadline) = self.broker.as_ref().unwrap().next_deadline().filter(|at| *at <= end)
        {
            self.now = deadline.max(self.now);
            self.settle_down();
        }
        self.now = end;
    }

    fn arrive(&mut self, command: Command) {
        self.broker.as_mut().unwrap().arrive(self.now, command);
        self.settle_down();
    }

    fn session(&mut self, who: &str) -> SessionId {
        if let Some(session) = self.sessions.get(who) {
            return SessionId(*session);
        }
        let session = SessionId(self.next);
        self.next += 1;
        self.sessions.insert(who.into(), session.0);
        let name = WorkerName::parse(who).unwrap();
        let hello = Hello { groups: self.groups.get(who).cloned().unwrap_or_default(), ..Hello::empty() };
        self.arrive(Command::Open {
            resume_key: 0,
            join: None,
            access: None,
            session,
            hello: Box::new(hello),
            reference: None,
            made_up_name: name,
            subscribe: None,
        });
        session
    }

    fn say(&mut self, who: &str, verb: &str, rest: &[&str]) {
        if verb == "submit" {
            return self.submit(who, rest);
        }
        let session = self.session(who);
        match verb {
            "cut" => {
                self.sessions.remove(who);
                return self.arrive(Command::End { session });
            }
            "freeze" => return self.frozen.push(session.0),
            "thaw" => {
                self.frozen.retain(|frozen| *frozen != session.0);
                self.pinged.retain(|pinged| *pinged != session.0);
                return self.arrive(Command::Heard { session });
            }
            _ => {}
        }
        let option = |name: &str| {
            rest.iter().position(|word| *word == name).map(|at| rest.get(at + 1).copied().unwrap_or(""))
        };
        let number = |name: &str| option(name).map(|text| text.parse::<u64>().unwrap());
        let queue = QueueName::parse("q").unwrap();
        let lease = || {
            let key = (who.to_owned(), rest.first().copied().unwrap_or("").to_owned());
            self.leases.get(&key).copied().unwrap_or(LeaseId { number: 1, slot: 0, recipient: 0 })
        };
        let leases = || LeaseList::from(lease());
        let message: ClientMessage = match verb {
            "subscribe" => Subscribe {
                queue,
                credit: number("credit").map(Credit::nearest),
                mode: rest.contains(&"auto").then_some(Mode::Auto),
                explicit_start: rest.contains(&"explicit_start"),
            }
            .into(),
            "unsubscribe" => Unsubscribe { queue }.into(),
            "credit" => SetCredit { queue, credit: Credit::nearest(rest[0].parse().unwrap()) }.into(),
            "ack" => {
                let result = option("result").map_or(Payload::NULL, |text| Payload::json_text(text).unwrap());
                Ack { leases: leases(), result }.into()
            }
            "nack" => Nack {
                leases: leases(),
                error: option("error").map(ErrorText::new),
                delay_ms: number("delay_ms").map(DelayMs::nearest),
                retry: rest.contains(&"dead").then_some(Flag(false)),
            }
            .into(),
            "release" => {
                Release { leases: leases(), delay_ms: number("delay_ms").map(DelayMs::nearest) }.into()
            }
            "start" => Start { lease: lease().into() }.into(),
            "extend" => Extend {
                lease: lease().into(),
                ack_timeout_ms: number("ack_timeout_ms").map(TimeoutMs::nearest),
            }
            .into(),
            "progress" => {
                Progress { lease: lease().into(), percent: Number::new(50.0), data: Payload::NULL }.into()
            }
            "watch" => Watch { task: self.tasks[rest[0]], from_seq: None }.into(),
            "drain" => Drain {}.into(),
            "bye" => Bye {}.into(),
            other => panic!("nobody can {other}"),
        };
        self.next += 1;
        let id = (!rest.contains(&"quietly")).then_some(RequestId::Integer(self.next as i64));
        self.arrive(Command::Message { origin: Origin::Session(session, id), message });
    }

    fn submit(&mut self, who: &str, rest: &[&str]) {
        let label = rest[0];
        let mut submit = Submit::new(QueueName::parse("q").unwrap(), Payload::json(label).unwrap());
        let mut words = rest[1..].iter().copied();
        while let Some(word) = words.next() {
            let mut next = || words.next().unwrap();
            match word {
                "watch" => submit.watch = true,
                "any" => submit.complete = Some(Complete::Any),
                "quorum" => submit.complete = Some(Complete::Quorum(next().parse().unwrap())),
                "all" => submit.to = Some(Target::All(None)),
                "group" => submit.to = Some(Target::Group(GroupName::parse(next()).unwrap())),
                "all-of" => submit.to = Some(Target::All(Some(GroupName::parse(next()).unwrap()))),
                "worker" => {
                    submit.to = Some(Target::Worker {
                        worker: WorkerName::parse(next()).unwrap(),
                        if_absent: IfAbsent::Wait,
                    });
                }
                "memory" => submit.confirm = Some(Confirm::Memory),
                "unconfirmed" => submit.confirm = Some(Confirm::None),
                "priority" => submit.priority = Some(Int::nearest(next().parse().unwrap())),
                "delay_ms" => submit.delay_ms = Some(Int::nearest(next().parse().unwrap())),
                "ttl_ms" => submit.ttl_ms = Some(Int::nearest(next().parse().unwrap())),
                "ack_timeout_ms" => submit.ack_timeout_ms = Some(Int::nearest(next().parse().unwrap())),
                "timeout_ms" => submit.timeout_ms = Some(Int::nearest(next().parse().unwrap())),
                "max_attempts" => submit.max_attempts = Some(Int::nearest(next().parse().unwrap())),
                "backoff_ms" => {
                    let initial_ms = Some(Int::nearest(next().parse().unwrap()));
                    submit.backoff = Some(Backoff { initial_ms, max_ms: None, factor: None });
                }
                other => panic!("no option of a submit: {other}"),
            }
        }
        self.next += 1;
        let task = TaskId(0x7 << 76 | 0x2 << 62 | u128::from(self.next));
        self.tasks.insert(label.into(), task);
        let origin = match who {
            "call" => Origin::Call(CallId(self.next)),
            _ => Origin::Session(self.session(who), Some(RequestId::Integer(self.next as i64))),
        };
        self.arrive(Command::Submit { origin, access: None, task, run_at: None, submit: Box::new(submit) });
    }
}

fn duration(text: &str) -> u64 {
    let number = |unit| text.strip_suffix(unit).and_then(|number: &str| number.parse::<u64>().ok());
    if let Some(us) = number("us") {
        us
    } else if let Some(ms) = number("ms") {
        ms * 1000
    } else {
        number("s").unwrap() * 1_000_000
    }
}
