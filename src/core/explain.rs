//! Why a task is not with a worker: each thing that holds it up, with its numbers.

use taskyard_proto::{IfAbsent, Target, TaskId};

use super::flow::Shut;
use super::session::{Subscription, SubscriptionKey};
use super::shard::{Place, Shard};
use super::task::{Share, ShareState};
use super::time::Time;
use super::view::{Explanation, Reason};

impl Shard {
    /// Why a task is not with a worker. None: there is no such task.
    pub fn explain(&self, id: TaskId, now: Time) -> Option<Explanation> {
        let state = match self.place(id)? {
            Place::Live(key) => self.tasks[key].state(),
            Place::Kept { .. } => self.kept(id)?.state,
        };
        let mut reasons = Vec::new();
        if let Some(key) = self.live(id)
            && !state.is_final()
        {
            let recipients = self.tasks[key].recipients();
            for recipient in 0..recipients {
                for reason in self.reasons(key, recipient, now) {
                    if !reasons.contains(&reason) {
                        reasons.push(reason);
                    }
                }
            }
        }
        Some(Explanation { task: id, state, reasons })
    }

    fn reasons(&self, key: u32, recipient: u32, now: Time) -> Vec<Reason> {
        let task = &self.tasks[key];
        let Some(share) = task.share(recipient) else { return Vec::new() };
        match &share.state {
            ShareState::Leased(_) | ShareState::Over(_) => Vec::new(),
            ShareState::Scheduled { due } => vec![Reason::Scheduled { in_ms: due.ms_since(now) }],
            ShareState::Retrying { due } => vec![Reason::Backoff { in_ms: due.ms_since(now) }],
            ShareState::Queued { .. } => self.reasons_of_queued(key, recipient, share, now),
        }
    }

    fn reasons_of_queued(&self, key: u32, recipient: u32, share: &Share, now: Time) -> Vec<Reason> {
        let task = &self.tasks[key];
        let queue = &self.queues[task.queue as usize];
        let mut reasons = Vec::new();
        if !task.is_durable() {
            reasons.push(Reason::NotDurable);
        }
        if self.draining {
            reasons.push(Reason::Draining);
        }
        if let Some(pause) = &queue.pause {
            reasons.push(Reason::Paused {
                in_ms: pause.until.map(|until| until.ms_since(now)),
                by: pause.by.as_ref().map(ToString::to_string),
                reason: pause.reason.clone(),
            });
        }
        if queue.lacks.is_some() {
            reasons.push(Reason::PayloadAway);
        }
        if let Some(by) = self.order_blocked_by(key) {
            reasons.push(Reason::OrderBlocked { by });
        }
        match queue.shut(now) {
            Some(Shut::Rate(at)) => reasons.push(Reason::RateLimited { in_ms: at.ms_since(now).max(1) }),
            Some(Shut::Leased) => {
                reasons
                    .push(Reason::QueueLimit { max_leased: queue.settings.max_leased.unwrap_or_default() });
            }
            Some(Shut::Paused) | None => {}
        }
        reasons.extend(self.reason_of_workers(key, recipient, share, now));
        reasons
    }

    /// What holds it up on the side of those who may take it.
    fn reason_of_workers(&self, key: u32, recipient: u32, share: &Share, now: Time) -> Option<Reason> {
        let task = &self.tasks[key];
        let queue = &self.queues[task.queue as usize];
        let worker = task.recipient_name(recipient).or(match &task.spec.target {
            Target::Worker { worker, if_absent } => {
                let absent = queue.worker_subscription(worker).is_none();
                (!absent || *if_absent != IfAbsent::Any).then_some(worker)
            }
            _ => None,
        });
        let group = match &task.spec.target {
            Target::Group(group) => Some(group),
            _ => None,
        };
        let able = |subscription: &&Subscription| {
            let Some(session) = self.sessions.get(&subscription.session) else { return false };
            // A pull is never a recipient, whatever its name.
            (task.fanout().is_none() || session.pull.is_none())
                && worker.is_none_or(|worker| session.worker == *worker)
                && group.is_none_or(|group| session.groups.contains(group))
        };
        let of = |key: &SubscriptionKey| self.subscriptions.get(key.0 as usize);
        let mut takers = queue.subscribers.values().filter_map(of).filter(able).peekable();
        if takers.peek().is_none() {
            return Some(match (worker, group) {
                (Some(worker), _) => Reason::WorkerAbsent { worker: worker.clone() },
                (None, Some(group)) => Reason::GroupEmpty { group: group.clone() },
                (None, None) => Reason::NoWorker,
            });
        }
        let (mut busy, mut silent, mut draining) = (0, 0, 0);
        let mut free = false;
        for subscription in takers {
            free |= subscription.open;
            busy += u64::from(!subscription.open);
            if let Some(session) = self.sessions.get(&subscription.session) {
                silent += u64::from(session.silent);
                draining += u64::from(session.draining && !session.silent);
            }
        }
        match free {
            false => Some(Reason::NoCredit { busy, silent, draining }),
            true => {
                // Also when that is over: until its timer goes off, which is due, nobody offers it.
                let (_, until) = share.notes.as_ref()?.avoid?;
                Some(Reason::Released { in_ms: until.ms_since(now).max(1) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::{Credit, Drain, Release, Subscribe};
    use taskyard_proto::{Hello, LeaseId, Payload, QueueName, ServerMessage, Submit, TaskState, WorkerName};

    use super::*;
    use crate::core::shard::AVOID_MS;
    use crate::core::{CallId, Command, Config, Effects, Open, Origin, Output, SessionId};

    /// A shard in which a worker has a task.
    fn handed_out() -> (Shard, Effects, Time, TaskId, LeaseId) {
        let (mut shard, mut fx, began) = (Shard::new(Config::default()), Effects::default(), Time(1_000_000));
        let queue = QueueName::parse("q").unwrap();
        let open = Command::Open(Box::new(Open {
            session: SessionId(1),
            access: None,
            hello: Box::new(Hello::empty()),
            reference: None,
            made_up_name: WorkerName::parse("w").unwrap(),
            resume_key: 0,
            subscribe: Some(Subscribe {
                queue: queue.clone(),
                credit: Credit::new(1),
                mode: None,
                explicit_start: false,
            }),
            join: None,
        }));
        let (task, origin) = (TaskId(7), Origin::Call(CallId(1)));
        let submit = Submit::new(queue, Payload::NULL).into();
        for command in [open, Command::Submit { origin, access: None, task, submit }] {
            shard.apply(began, command, &mut fx);
        }
        shard.apply(began, Command::Stored { through: shard.operations() }, &mut fx);
        let lease = fx.outputs.iter().find_map(|output| match output {
            Output::Send { message: ServerMessage::Task(task), .. } => task.lease,
            _ => None,
        });
        (shard, fx, began, task, lease.expect("it is delivered"))
    }

    /// Between the end of a release's 100 ms and its timer nothing was said of why the task waits.
    #[test]
    fn a_released_task_is_explained_until_it_is_offered_again() {
        let (mut shard, mut fx, began, task, lease) = handed_out();
        let origin = Origin::Session(SessionId(1), None);
        let message = Release { leases: lease.into(), delay_ms: None }.into();
        shard.apply(began, Command::Message { origin, message }, &mut fx);
        for ms in [0, AVOID_MS - 1, AVOID_MS, AVOID_MS + 5] {
            let reasons = shard.explain(task, began.plus_ms(ms)).expect("it lives").reasons;
            assert!(matches!(reasons[..], [Reason::Released { in_ms: 1.. }]), "after {ms} ms: {reasons:?}");
        }
        shard.expire(began.plus_ms(AVOID_MS), &mut fx);
        assert_eq!(shard.explain(task, began.plus_ms(AVOID_MS)).expect("it lives").state, TaskState::Leased);
    }

    /// A frozen worker was said to be busy, and waiting for it advised.
    #[test]
    fn a_worker_that_let_an_ack_timeout_pass_is_told_apart() {
        let (mut shard, mut fx, began, task, _) = handed_out();
        let late = began.plus_ms(60_000);
        shard.expire(late, &mut fx);
        let told = shard.explain(task, late).expect("it lives");
        assert_eq!(told.state, TaskState::Queued);
        assert_eq!(told.reasons, [Reason::NoCredit { busy: 1, silent: 1, draining: 0 }]);
        let origin = Origin::Session(SessionId(1), None);
        let drain = Command::Message { origin, message: Drain {}.into() };
        for (command, silent) in [(drain, 1), (Command::Heard { session: SessionId(1) }, 0)] {
            shard.apply(late, command, &mut fx);
            let told = shard.explain(task, late).expect("it lives");
            assert_eq!(told.reasons, [Reason::NoCredit { busy: 1, silent, draining: 1 - silent }]);
        }
    }
}
