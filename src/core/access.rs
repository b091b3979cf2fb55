//! Whose a session or a request is, as far as the core asks: what it may do, and how much of its work
//! may wait.

use std::sync::Arc;

use smol_str::SmolStr;
use taskyard_proto::{Error, ErrorCode, QueueName};

use super::grants::{Action, Grants};
use super::shard::Shard;

/// An account that was let in, as it was at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its name, which its tasks carry.
    pub account: SmolStr,
    /// What it may do.
    pub grants: Arc<Grants>,
    /// How many of its tasks may be held: unfinished, or dead letters.
    pub queued_tasks: Option<u64>,
    /// How many bytes their payloads may have together.
    pub queued_bytes: Option<u64>,
}

/// What an account's tasks come to that are unfinished, or dead letters: what the broker holds for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many there are.
    pub tasks: u64,
    /// The bytes of their payloads.
    pub bytes: u64,
}

/// One account may make one of so many of the queues that there may be.
const QUEUES_SHARE: usize = 10;

/// How often something was refused for whose it was, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// No permission.
    pub forbidden: u64,
    /// Too much of the account's waits.
    pub quota: u64,
}

impl Access {
    /// Refuses what the account may not do on a queue that it named.
    pub fn check(&self, action: Action, queue: &QueueName) -> Result<(), Error> {
        if self.grants.may(action, queue.as_str()) {
            return Ok(());
        }
        let text = format!(
            "the token of {} may not {action} on {queue}: that takes the permission {action}:{queue}",
            self.account
        );
        Err(Error::new(ErrorCode::Forbidden, text))
    }

    /// Whether the account may know of a task in this queue: by its id it is asked for as it were absent.
    pub fn may_see(&self, queue: &QueueName) -> bool {
        [Action::Submit, Action::Observe].iter().any(|action| self.grants.may(*action, queue.as_str()))
    }
}

impl Shard {
    /// Refuses what an account may not do on a queue that it named.
    #[inline]
    pub(super) fn check_grant(
        &mut self,
        access: Option<&Access>,
        action: Action,
        queue: &QueueName,
    ) -> Result<(), Error> {
        let Some(access) = access else { return Ok(()) };
        let checked = access.check(action, queue);
        self.refusals.forbidden += u64::from(checked.is_err());
        checked
    }

    /// Refuses a task that would be more than its account may have waiting.
    pub(super) fn check_load(&mut self, access: &Access, bytes: u64) -> Result<(), Error> {
        let checked = self.room_for(access, bytes);
        self.refusals.quota += u64::from(checked.is_err());
        checked
    }

    fn room_for(&self, access: &Access, bytes: u64) -> Result<(), Error> {
        let load = self.load_of(&access.account);
        let full = |what: String| {
            let text = format!(
                "account {} has {what} (dead letters too): let workers catch up, then submit again",
                access.account
            );
            Err(Error::new(ErrorCode::QueueFull, text))
        };
        if let Some(max) = access.queued_tasks
            && load.tasks >= max
        {
            return full(format!("{} tasks waiting, of at most {max}", load.tasks));
        }
        if let Some(max) = access.queued_bytes
            && load.bytes + bytes > max
        {
            return full(format!("{} bytes of tasks waiting, of at most {max}", load.bytes));
        }
        Ok(())
    }

    /// Counts a queue that an account makes: no account may make so many that none is left for others.
    pub(super) fn count_queue(&mut self, access: &Access) -> Result<(), Error> {
        let most = (self.config.queues_max / QUEUES_SHARE).max(1);
        let made = self.queues_made.entry(access.account.clone()).or_default();
        if *made >= most {
            self.refusals.quota += 1;
            let text = format!(
                "account {} has made {made} queues, the most that one account may: use those that exist, or raise \
                 queues_max",
                access.account
            );
            return Err(Error::new(ErrorCode::QueueFull, text));
        }
        *made += 1;
        Ok(())
    }

    /// What was refused for whose it was.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// What an account has waiting.
    pub fn load_of(&self, account: &str) -> Load {
        self.accounts.get(account).copied().unwrap_or_default()
    }

    /// A task of an account is held from here on.
    pub(super) fn load(&mut self, account: Option<&SmolStr>, bytes: u64) {
        let Some(account) = account else { return };
        let load = match self.accounts.get_mut(account) {
            Some(load) => load,
            None => self.accounts.entry(account.clone()).or_default(),
        };
        load.tasks += 1;
        load.bytes += bytes;
    }

    /// A task of an account has ended.
    pub(super) fn unload(&mut self, account: Option<&SmolStr>, bytes: u64) {
        let Some(account) = account else { return };
        let Some(load) = self.accounts.get_mut(account) else { return };
        load.tasks -= 1;
        load.bytes -= bytes;
        if load.tasks == 0 {
            self.accounts.remove(account);
        }
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::{Credit, LeaseList};
    use taskyard_proto::{
        Ack, ClientMessage, CloseCode, Hello, LeaseId, Nack, Payload, ServerMessage, Submit, Subscribe,
        TaskId, WorkerName,
    };

    use super::*;
    use crate::core::{
        CallId, Command, Config, Effects, Open, Origin, Output, Replay, SessionId, StoreOp, Time,
    };

    struct Stage {
        shard: Shard,
        stored: Vec<StoreOp>,
    }

    impl Stage {
        fn new() -> Stage {
            Stage { shard: Shard::new(Config::default()), stored: Vec::new() }
        }

        /// Applies a command, and makes durable what it stored.
        fn apply(&mut self, command: Command) -> Vec<Output> {
            let mut fx = Effects::default();
            self.shard.apply(Time(1), command, &mut fx);
            let through = self.shard.operations();
            self.shard.apply(Time(1), Command::Stored { through }, &mut fx);
            self.stored.append(&mut fx.store);
            fx.outputs
        }

        fn restart(self) -> Stage {
            let mut replay = Replay::new(Shard::new(Config::default()));
            for op in &self.stored {
                replay.operation(op.clone());
            }
            let mut fx = Effects::default();
            let shard = replay.begin(Time(2), true, 1, &mut fx);
            Stage { shard, stored: self.stored }
        }

        fn open(&mut self, session: u64, access: &Arc<Access>, worker: &str) -> Vec<Output> {
            let hello = Hello { worker: Some(WorkerName::parse(worker).unwrap()), ..Hello::empty() };
            self.apply(Command::Open(Box::new(Open {
                session: SessionId(session),
                access: Some(access.clone()),
                hello: Box::new(hello),
                reference: None,
                made_up_name: WorkerName::parse("made-up").unwrap(),
                resume_key: 0,
                subscribe: None,
                join: None,
            })))
        }

        fn say(&mut self, session: u64, message: impl Into<ClientMessage>) -> Vec<Output> {
            let origin = Origin::Session(SessionId(session), Some(taskyard_proto::RequestId::Integer(1)));
            self.apply(Command::Message { origin, message: message.into() })
        }

        fn subscribe(&mut self, session: u64, queue: &str) -> Vec<Output> {
            let subscribe = Subscribe {
                queue: QueueName::parse(queue).unwrap(),
                credit: Credit::new(10),
                mode: None,
                explicit_start: false,
            };
            self.say(session, subscribe)
        }

        /// Submits ten bytes; the error's code, if there is one.
        fn submit(&mut self, access: &Arc<Access>, task: u128, queue: &str) -> Option<ErrorCode> {
            let submit = Submit::new(
                QueueName::parse(queue).unwrap(),
                Payload::binary(bytes::Bytes::from(vec![0; 10])),
            );
            error(&self.apply(Command::Submit {
                origin: Origin::Call(CallId(1)),
                access: Some(access.clone()),
                task: TaskId(task),
                submit: submit.into(),
            }))
        }
    }

    fn error(outputs: &[Output]) -> Option<ErrorCode> {
        outputs.iter().find_map(|output| match output {
            Output::Send { message: ServerMessage::Error(error), .. }
            | Output::Answer { message: ServerMessage::Error(error), .. } => Some(error.code),
            _ => None,
        })
    }

    fn leases(outputs: &[Output]) -> Vec<LeaseId> {
        let lease = |output: &Output| match output {
            Output::Send { message: ServerMessage::Task(task), .. } => task.lease,
            _ => None,
        };
        outputs.iter().filter_map(lease).collect()
    }

    fn access(account: &str, rules: &[&str], tasks: Option<u64>, bytes: Option<u64>) -> Arc<Access> {
        let grants = Arc::new(Grants::parse(rules.iter().copied()).unwrap());
        Arc::new(Access { account: account.into(), grants, queued_tasks: tasks, queued_bytes: bytes })
    }

    #[test]
    fn what_waits_is_counted_until_it_ends_and_across_a_restart() {
        let ci = access("ci", &["submit:*", "consume:*"], Some(2), None);
        let other = access("other", &["submit:*"], None, Some(15));
        let mut stage = Stage::new();
        assert_eq!(stage.submit(&ci, 1, "q"), None);
        assert_eq!(stage.submit(&ci, 2, "q"), None);
        assert_eq!(stage.submit(&ci, 3, "q"), Some(ErrorCode::QueueFull));
        assert_eq!(stage.submit(&other, 4, "q"), None, "another account has room of its own");
        assert_eq!(stage.submit(&other, 5, "q"), Some(ErrorCode::QueueFull), "for 15 bytes, not for 20");
        assert_eq!(stage.shard.refusals(), Refusals { forbidden: 0, quota: 2 });

        let mut stage = stage.restart();
        assert_eq!(stage.shard.load_of("ci"), Load { tasks: 2, bytes: 20 });
        assert_eq!(stage.submit(&ci, 6, "q"), Some(ErrorCode::QueueFull));
        stage.open(1, &ci, "w");
        let held = leases(&stage.subscribe(1, "q"));
        assert_eq!(held.len(), 3);
        stage.say(1, Ack { leases: held[0].into(), result: Payload::NULL });
        assert_eq!(stage.shard.load_of("ci"), Load { tasks: 1, bytes: 10 });
        let dead = Nack {
            leases: LeaseList::from(held[1]),
            error: None,
            delay_ms: None,
            retry: Some(taskyard_proto::message::Flag(false)),
        };
        stage.say(1, dead);
        assert_eq!(stage.shard.load_of("ci").tasks, 1, "a dead letter still takes its account's room");
        assert_eq!(stage.submit(&ci, 7, "q"), None);
        assert_eq!(stage.submit(&ci, 8, "q"), Some(ErrorCode::QueueFull));

        let mut stage = stage.restart();
        assert_eq!(stage.shard.load_of("ci"), Load { tasks: 2, bytes: 20 });
        assert_eq!(stage.submit(&ci, 9, "q"), Some(ErrorCode::QueueFull));
    }

    #[test]
    fn what_is_not_allowed_leaves_nothing_behind() {
        let narrow = access("narrow", &["submit:a*", "consume:b"], None, None);
        let mut stage = Stage::new();
        stage.open(1, &narrow, "w");
        assert_eq!(stage.submit(&narrow, 1, "b"), Some(ErrorCode::Forbidden));
        assert_eq!(error(&stage.subscribe(1, "a1")), Some(ErrorCode::Forbidden));
        assert!(stage.shard.queue_views(Time(1)).is_empty(), "no queue was made");
        assert_eq!(stage.submit(&narrow, 2, "a1"), None);
        assert_eq!(error(&stage.subscribe(1, "b")), None);
        assert_eq!(stage.shard.refusals(), Refusals { forbidden: 2, quota: 0 });
    }

    #[test]
    fn no_account_makes_all_the_queues_there_may_be() {
        let (greedy, other) =
            (access("greedy", &["submit:*"], None, None), access("other", &["submit:*"], None, None));
        let mut stage = Stage::new();
        stage.shard.config.queues_max = 20;
        assert_eq!(stage.submit(&greedy, 1, "q1"), None);
        assert_eq!(stage.submit(&greedy, 2, "q2"), None);
        assert_eq!(stage.submit(&greedy, 3, "q3"), Some(ErrorCode::QueueFull));
        assert_eq!(stage.submit(&greedy, 4, "q2"), None, "one that exists is no new one");
        assert_eq!(stage.submit(&other, 5, "q3"), None);
    }

    #[test]
    fn a_task_of_a_foreign_queue_is_to_a_session_as_one_that_never_was() {
        let (one, two) = (access("one", &["submit:a"], None, None), access("two", &["submit:b"], None, None));
        let mut stage = Stage::new();
        stage.open(1, &two, "w");
        assert_eq!(stage.submit(&one, 1, "a"), None);
        let watch = |task| taskyard_proto::Watch { task: TaskId(task), from_seq: None };
        let (foreign, unknown) = (stage.say(1, watch(1)), stage.say(1, watch(99)));
        let text = |outputs: &[Output], id: u128| format!("{outputs:?}").replace(&TaskId(id).to_string(), "");
        assert_eq!(text(&foreign, 1), text(&unknown, 99));
        assert_eq!(error(&foreign), Some(ErrorCode::NotFound));
    }

    #[test]
    fn a_worker_name_is_an_account_s_own_but_for_a_queue_that_two_share() {
        let (one, two) =
            (access("one", &["consume:*"], None, None), access("two", &["consume:*"], None, None));
        let closes = |outputs: &[Output]| {
            outputs.iter().any(|o| matches!(o, Output::Close { code: CloseCode::REPLACED, .. }))
        };
        let mut stage = Stage::new();
        assert!(!closes(&stage.open(1, &one, "w")));
        assert!(!closes(&stage.open(2, &two, "w")), "another account's name is not taken over");
        assert_eq!(error(&stage.subscribe(1, "q")), None);
        assert_eq!(error(&stage.subscribe(2, "q")), Some(ErrorCode::Conflict));
        assert_eq!(error(&stage.subscribe(2, "r")), None);
        assert!(closes(&stage.open(3, &one, "w")), "one's own is");
        assert_eq!(error(&stage.subscribe(2, "q")), None, "and gave the name on the queue free");
    }
}
