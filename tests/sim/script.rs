//! A little language for scenarios: what clients do, and what they then hear.
//!
//! ```text
//! a subscribe credit 2 manual      a worker, named by its letter, asks for tasks of the queue `q`
//! p submit t max_attempts 2        a producer submits; `t` names the task from here on
//! a ack t                          settles the worker's lease on t: ack nack release start extend progress
//! + 100ms                          time passes
//! a cut | a bye | a freeze | a thaw
//! crash | crash for 1s | restart | drain
//! a resumable                      opens a session that may be resumed
//! a away | a returns with t u      its socket ends; it comes back and names what it works on
//! x pull 2 | x over | x settles ack t      pulls, as the worker x
//! op pause for_ms 100 | op purge | …       an operator: pause unpause purge cancel-all redrive delete declare
//!                                          drain-worker remove-worker
//! ? t                              why t is not with a worker
//! p listens                        from here on p tells what events it hears
//! stall … go on (slowly)           the process stands still, what arrives waits (and is then read one by one)
//! disk waits … disk goes on        nothing becomes durable meanwhile
//! < a: t attempt 1                 what was heard since the last line of this kind, in order
//! ```
//!
//! Network and disk take no time here; the oracle of the seeds watches as well. What only confirms (`ok`,
//! `subscribed`, `welcome`) is left out, and events unless asked for.

use std::collections::BTreeMap;

use taskyard::core::manage::{Manage, Report, TaskFilter, Which};
use taskyard::core::settings::{Changes, Deliver, Order};
use taskyard::core::shard::Config;
use taskyard::core::{CallId, Command, Open, Origin, Output, Pull, SessionId, Time};
use taskyard_proto::message::{Credit, DelayMs, Flag, Int, TimeoutMs};
use taskyard_proto::{
    Ack, Assign, Backoff, Bye, Cancel, Cancelled, ClientMessage, Complete, Confirm, Drain, ErrorText, Extend,
    Finished, GivenLease, GroupName, Hello, IfAbsent, Join, Key, LeaseId, LeaseList, Leave, Mode, Nack,
    Number, Payload, Progress, Publish, QueueName, Release, RequestId, Resume, RoomName, Secret,
    ServerMessage, SetCredit, Start, Submit, Subscribe, Target, TaskId, Unsubscribe, Watch, WorkerName,
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
    /// Tokens to resume with, of those who got one; and who asks for one.
    tokens: BTreeMap<String, Secret>,
    resumable: Vec<String>,
    /// The leases that a client names when it comes back.
    in_flight: Vec<GivenLease>,
    pulls: BTreeMap<CallId, String>,
    listening: Vec<String>,
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
            tokens: BTreeMap::new(),
            resumable: Vec::new(),
            in_flight: Vec::new(),
            pulls: BTreeMap::new(),
            listening: Vec::new(),
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
                Output::Report { call, report } => self.reported(call, &report),
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
            ServerMessage::Accepted(m) => {
                let again = if m.duplicate { " duplicate" } else { "" };
                format!("accepted {}{again}", self.label(m.task))
            }
            ServerMessage::Stop(m) => format!("stop {} {}", self.label_of_lease(m.lease), m.grace_ms),
            ServerMessage::RoomMessage(m) => format!("{} says in {} as number {}", m.from, m.room, m.seq),
            ServerMessage::Done(m) if m.state.0.is_some() => format!("ok {}", m.state.0.unwrap()),
            ServerMessage::Event(m) if self.listening.iter().any(|who| who == to) => {
                format!("event {} {} {}", self.label(m.task), m.seq, m.state)
            }
            ServerMessage::Welcome(m) => {
                if let Some(token) = &m.resume {
                    self.tokens.insert(to.into(), token.clone());
                }
                if !m.resumed && m.lost.is_empty() {
                    return;
                }
                let kept: Vec<String> = m.kept.iter().map(|lease| self.label_of_lease(*lease)).collect();
                let how = if m.resumed { "resumed" } else { "anew" };
                format!("{how} kept [{}] lost {}", kept.join(" "), m.lost.len())
            }
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
            ["op", verb, ref rest @ ..] => self.operate(verb, rest),
            ["?", label] => {
                let broker = self.broker.as_ref().unwrap();
                let told = broker.shard.explain(self.tasks[label], Time(self.now)).unwrap();
                let reasons: Vec<String> = told.reasons.iter().map(|reason| self.reason(reason)).collect();
                let told = format!("{label} {}: {}", told.state, reasons.join(", "));
                self.heard.push(told.trim_end().into());
            }
            [who, "listens"] => self.listening.push(who.into()),
            [who, "pull", ref rest @ ..] => self.pull(who, rest),
            [who, "over"] => {
                let waits = self.pulls.iter().find(|(_, name)| *name == who);
                let call = waits.map_or(CallId(0), |(call, _)| *call);
                self.arrive(Command::PullOver { call, gone: false });
            }
            [who, "settles", verb, label] => {
                let lease = self.leases[&(who.to_owned(), label.to_owned())];
                let message: ClientMessage = match verb {
                    "ack" => Ack { leases: lease.into(), result: Payload::NULL }.into(),
                    "nack" => Nack { leases: lease.into(), error: None, delay_ms: None, retry: None }.into(),
                    other => panic!("no settle: {other}"),
                };
                let call = self.call();
                self.arrive(Command::Settle { call, access: None, message });
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
        let resume = match self.tokens.get(who) {
            Some(token) => Some(Resume::Token(token.clone())),
            None => self.resumable.iter().any(|name| name == who).then_some(Resume::Wanted(true)),
        };
        let hello = Hello {
            groups: self.groups.get(who).cloned().unwrap_or_default(),
            resume,
            in_flight: std::mem::take(&mut self.in_flight),
            ..Hello::empty()
        };
        self.arrive(Command::Open(Box::new(Open {
            resume_key: u128::from(self.next) << 64 | 7,
            join: None,
            access: None,
            session,
            hello: Box::new(hello),
            reference: None,
            made_up_name: name,
            subscribe: None,
        })));
        session
    }

    fn say(&mut self, who: &str, verb: &str, rest: &[&str]) {
        if verb == "submit" {
            return self.submit(who, rest);
        }
        match verb {
            "resumable" => self.resumable.push(who.into()),
            "returns" => {
                let lease = |label: &&str| self.leases.get(&(who.to_owned(), (*label).to_owned())).copied();
                self.in_flight = rest.iter().filter_map(lease).map(GivenLease::from).collect();
                self.sessions.remove(who);
            }
            _ => {}
        }
        let session = self.session(who);
        match verb {
            "resumable" | "returns" => return,
            "cut" | "away" => {
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
            "watch" => Watch { task: self.tasks[rest[0]], from_seq: number("from") }.into(),
            "cancel" => {
                let task = self.tasks.get(rest[0]).copied().unwrap_or(TaskId(1));
                Cancel { task, grace_ms: number("grace_ms").map(Int::nearest) }.into()
            }
            "cancelled" => {
                Cancelled { lease: lease().into(), error: option("error").map(ErrorText::new) }.into()
            }
            "join" => Join { room: RoomName::parse(rest[0]).unwrap() }.into(),
            "leave" => Leave { room: RoomName::parse(rest[0]).unwrap() }.into(),
            "publish" => Publish {
                room: RoomName::parse(rest[0]).unwrap(),
                payload: Payload::NULL,
                exclude_self: rest.contains(&"exclude_self"),
            }
            .into(),
            "drain" => Drain {}.into(),
            "bye" => Bye {}.into(),
            other => panic!("nobody can {other}"),
        };
        self.next += 1;
        let id = (!rest.contains(&"quietly")).then_some(RequestId::Integer(self.next as i64));
        self.arrive(Command::Message { origin: Origin::Session(session, id), message });
    }

    fn call(&mut self) -> CallId {
        self.next += 1;
        CallId(self.next)
    }

    fn reported(&mut self, call: CallId, report: &Report) {
        let who = self.pulls.remove(&call);
        match report {
            Report::Pulled(tasks) => {
                let who = who.unwrap();
                if tasks.is_empty() {
                    self.heard.push(format!("{who}: pulled nothing"));
                }
                for task in tasks {
                    let label = self.label(task.task);
                    self.leases.insert((who.clone(), label.clone()), task.lease.unwrap());
                    let flag = if task.redelivered { " redelivered" } else { "" };
                    self.heard.push(format!("{who}: pulled {label} attempt {}{flag}", task.attempt));
                }
            }
            Report::Refused(error) => self.heard.push(format!("op: error {}", error.code)),
            Report::Count(count) => self.heard.push(format!("op: {count}")),
            Report::Cancelled { cancelled, stopping } => {
                self.heard.push(format!("op: cancelled {cancelled} stopping {stopping}"));
            }
            Report::Done | Report::Created => {}
        }
    }

    fn reason(&self, reason: &taskyard::core::view::Reason) -> String {
        use taskyard::core::view::Reason;
        match reason {
            Reason::OrderBlocked { by } => format!("blocked by {}", self.label(*by)),
            Reason::NoWorker => "no worker".into(),
            Reason::NoCredit { busy, .. } => format!("{busy} busy"),
            Reason::WorkerAbsent { worker } => format!("{worker} absent"),
            Reason::Paused { .. } => "paused".into(),
            Reason::QueueLimit { max_leased } => format!("at most {max_leased}"),
            Reason::RateLimited { .. } => "rate".into(),
            Reason::Backoff { .. } => "back-off".into(),
            Reason::Scheduled { in_ms } => format!("in {in_ms} ms"),
            other => format!("{other:?}"),
        }
    }

    fn pull(&mut self, who: &str, rest: &[&str]) {
        let call = self.call();
        self.pulls.insert(call, who.into());
        let pull = Pull {
            call,
            session: SessionId(1 << 40 | call.0),
            access: None,
            queue: QueueName::parse("q").unwrap(),
            credit: rest.first().map_or(1, |count| count.parse().unwrap()),
            worker: WorkerName::parse(who).unwrap(),
            groups: Vec::new(),
        };
        self.arrive(Command::Pull(Box::new(pull)));
    }

    fn operate(&mut self, verb: &str, rest: &[&str]) {
        let queue = QueueName::parse("q").unwrap();
        let option = |name: &str| {
            rest.iter().position(|word| *word == name).map(|at| rest.get(at + 1).copied().unwrap_or(""))
        };
        let number = |name: &str| option(name).map(|text| text.parse::<u64>().unwrap());
        let worker = || WorkerName::parse(rest[0]).unwrap();
        let which = || match rest.first().and_then(|label| self.tasks.get(*label)) {
            Some(task) => Which::Tasks(vec![*task]),
            None => Which::all(),
        };
        // `none` takes a limit away.
        let limit = |name: &str| option(name).map(|text| text.parse::<u64>().ok());
        let manage = match verb {
            "pause" => Manage::Pause { queue, for_ms: number("for_ms"), reason: None },
            "unpause" => Manage::Unpause { queue },
            "purge" => Manage::Purge { queue },
            "cancel-all" => {
                let grace_ms = number("grace_ms").unwrap_or(0);
                Manage::CancelMany { queue, filter: TaskFilter::default(), grace_ms }
            }
            "redrive" => Manage::Redrive {
                queue,
                which: which(),
                rate_per_s: option("rate").map(|text| text.parse().unwrap()),
            },
            "delete" => Manage::DeleteDead { queue, which: which() },
            "drain-worker" => Manage::DrainWorker { worker: worker() },
            "remove-worker" => Manage::RemoveWorker { worker: worker() },
            "declare" => {
                let changes = Changes {
                    max_leased: limit("max_leased"),
                    max_tasks: limit("max_tasks"),
                    max_bytes: limit("max_bytes"),
                    rate_per_s: option("rate_per_s").map(|text| text.parse().ok()),
                    keep_result_ms: limit("keep_result_ms"),
                    priority: limit("priority").map(|p| p.map(|p| p as u8)),
                    max_attempts: limit("max_attempts").map(|n| n.map(|n| n as u16)),
                    ttl_ms: limit("ttl_ms"),
                    deliver: rest.contains(&"early").then_some(Deliver::Early),
                    order: number("aged").map(|headstart_ms| Order::Aged { headstart_ms }),
                    ..Changes::default()
                };
                Manage::Declare { queue, changes: Box::new(changes) }
            }
            other => panic!("no operator can {other}"),
        };
        let call = self.call();
        self.arrive(Command::Manage { call, access: None, manage: Box::new(manage) });
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
                "order_key" => submit.order_key = Key::parse(next()),
                "dedup_id" => submit.dedup_id = Key::parse(next()),
                "fair_key" => submit.fair_key = Key::parse(next()),
                "sticky_key" => {
                    submit.sticky_key = Key::parse(next());
                    submit.assign = Some(Assign::Sticky);
                }
                "least_loaded" => submit.assign = Some(Assign::LeastLoaded),
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
        // One that is sent again is told by the first one's name.
        if !self.tasks.contains_key(label) || submit.dedup_id.is_none() {
            self.tasks.insert(label.into(), task);
        }
        let origin = match who {
            "call" => Origin::Call(CallId(self.next)),
            _ => Origin::Session(self.session(who), Some(RequestId::Integer(self.next as i64))),
        };
        self.arrive(Command::Submit { origin, access: None, task, submit: submit.into() });
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
