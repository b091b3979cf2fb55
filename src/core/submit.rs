//! A task comes in.

use std::sync::Arc;

use smol_str::SmolStr;
use taskyard_proto::{
    Assign, Complete, Confirm, Error, ErrorCode, IfAbsent, Submit, Target, TaskId, WorkerName,
};

use super::access::Access;
use super::command::Origin;
use super::effect::Effects;
use super::fanout::Fate;
use super::grants::Action;
use super::queue::{Rate, Tally};
use super::record::{Acceptance, Keys, StoreOp, TaskSpec, Terms};
use super::retry::RetryPolicy;
use super::settings::Deliver;
use super::shard::{ACK_TIMEOUT_MS, Shard, Told};
use super::submission::Submission;
use super::task::{Fanout, Held, Share, ShareState, Task, Watcher};
use super::time::Time;
use super::timers::Timer;

/// The priority of a task that asks for none.
const PRIORITY: u8 = 4;
/// The charged deliveries of a task that asks for no number.
const MAX_ATTEMPTS: u16 = 5;

/// What becomes of a submit that is not refused.
enum Admission {
    /// It makes a task.
    New(Admitted),
    /// This task was made by the same submit.
    Again(TaskId),
}

/// Where a task that may come in goes, and whose it is.
pub(super) struct Admitted {
    pub(super) queue: u32,
    pub(super) account: Option<SmolStr>,
}

/// Whose worker is chosen by a key must have one; `full` is what the submit says of that, if anything.
fn check_sticky(full: Option<&Submit>, assign: Option<Assign>) -> Result<(), Error> {
    let chosen = full.is_none_or(|full| matches!(full.to, None | Some(Target::Any | Target::Group(_))));
    let keyed = full.is_some_and(|full| full.sticky_key.is_some());
    if chosen && assign == Some(Assign::Sticky) && !keyed {
        let text = "`submit`, field `sticky_key`: missing, and the worker is chosen by it (assign \"sticky\"): give one";
        return Err(Error::new(ErrorCode::BadRequest, text).field("sticky_key"));
    }
    Ok(())
}

impl Shard {
    pub(super) fn submit(
        &mut self,
        origin: Origin,
        access: Option<&Access>,
        id: TaskId,
        submit: Submission,
        fx: &mut Effects,
    ) {
        let unconfirmed = match &origin {
            Origin::Session(session, _) => match self.sessions.get(session) {
                Some(session) => session.unconfirmed,
                None => return,
            },
            Origin::Implied(_) | Origin::Call(_) => 0,
        };
        match self.admit(unconfirmed, access, &submit) {
            Ok(Admission::Again(first)) => self.accept_again(origin, first, &submit, fx),
            Ok(Admission::New(admitted)) => {
                self.accept(origin, admitted, id, submit, fx);
            }
            Err(error) => {
                // What may not be asked is no submit of that queue's.
                if error.code != ErrorCode::Forbidden {
                    self.tally_refused(&submit);
                }
                fx.answer(&origin, error);
            }
        }
    }

    fn tally_refused(&mut self, submit: &Submission) {
        if let Some(queue) = self.queue_names.get(submit.queue()) {
            self.queues[*queue as usize].tally(Tally::Refused);
        }
    }

    /// Submits for a schedule: nobody hears of it, and whoever put it may.
    pub(super) fn submit_scheduled(
        &mut self,
        access: Option<&Access>,
        id: TaskId,
        submit: Submission,
        fx: &mut Effects,
    ) -> Result<(), Error> {
        let admitted = match self.closed_to_submits() {
            Some(error) => Err(error),
            None => self.make_room(access, &submit),
        };
        let admitted = admitted.inspect_err(|_| self.tally_refused(&submit))?;
        let (key, early) = self.take_in(admitted, id, submit, fx);
        self.accept_when_durable(key, id, None, Told { confirm: false, watch: false }, fx);
        self.activate_early(key, early, fx);
        Ok(())
    }

    /// The queue, if the task may come in; `unconfirmed` submits of its session wait for their answer.
    fn admit(
        &mut self,
        unconfirmed: u32,
        access: Option<&Access>,
        submit: &Submission,
    ) -> Result<Admission, Error> {
        self.check_grant(access, Action::Submit, submit.queue())?;
        if let Some(first) = submit.full().and_then(|full| self.duplicate_of(full)) {
            return Ok(Admission::Again(first));
        }
        if let Some(error) = self.closed_to_submits() {
            return Err(error);
        }
        if u64::from(unconfirmed) >= taskyard_proto::UNCONFIRMED_MAX {
            return Err(Error::new(
                ErrorCode::RateLimited,
                format!(
                    "{unconfirmed} submits of this session are not durable yet, the most that may be: give each an `id`, \
                     and send the next when a confirm has come"
                ),
            ));
        }
        self.make_room(access, submit).map(Admission::New)
    }

    /// Refuses what a submit cannot say, whoever says it and whatever there is.
    pub(super) fn check_terms(submit: &Submit, run_at: Option<Time>) -> Result<(), Error> {
        let refuse =
            |field: &str, message: &str| Err(Error::new(ErrorCode::BadRequest, message).field(field));
        check_sticky(Some(submit), submit.assign)?;
        let to_all = matches!(submit.to, Some(Target::All(_)));
        if submit.complete.is_some_and(|complete| complete != Complete::All) && !to_all {
            return refuse(
                "complete",
                "`submit`, field `complete`: only a task to all can be complete in parts: give to {all:true}",
            );
        }
        if submit.delay_ms.is_some_and(|delay| delay.get() > 0) && run_at.is_some() {
            return refuse("run_at", "`submit`: both `delay_ms` and `run_at` were given: give one of them");
        }
        Ok(())
    }

    /// The queue, if the broker and the account have room for the task.
    fn make_room(&mut self, access: Option<&Access>, submit: &Submission) -> Result<Admitted, Error> {
        let full = submit.full();
        if let Some(full) = full {
            Self::check_terms(full, submit.run_at())?;
        }
        let weight = submit.payload().bytes().len() as u64;
        if self.weight + weight > self.config.weight_max {
            return Err(Error::new(
                ErrorCode::QueueFull,
                format!(
                    "the broker holds {} MiB of tasks, the most that it may: let workers catch up, then submit again",
                    self.weight >> 20
                ),
            ));
        }
        if let Some(access) = access {
            self.check_load(access, weight)?;
        }
        let queue = self.use_queue(access, submit.queue())?;
        if full.is_none_or(|full| full.assign.is_none()) {
            check_sticky(full, self.queues[queue as usize].settings.assign)?;
        }
        self.check_depth(queue, weight)?;
        if full.is_some_and(|full| full.dedup_id.is_some()) {
            self.check_dedup_room(queue, submit.queue())?;
        }
        if let Some(Target::Worker { worker, if_absent: IfAbsent::Fail }) =
            full.and_then(|full| full.to.as_ref())
            && self.queues[queue as usize].worker_subscription(worker).is_none()
        {
            return Err(Error::new(
                ErrorCode::NotFound,
                format!(
                    "no worker named {worker} is subscribed to queue {}, and `if_absent` is \"fail\"",
                    submit.queue()
                ),
            )
            .field("to"));
        }
        let account = access.map(|access| access.account.clone());
        Ok(Admitted { queue, account })
    }

    /// Refuses what would be more than a queue may hold.
    fn check_depth(&self, queue: u32, bytes: u64) -> Result<(), Error> {
        let queue = &self.queues[queue as usize];
        let full = |what: String| {
            let text = format!(
                "queue {} holds {what}, the most that it may: let workers catch up, then submit again",
                queue.name
            );
            Err(Error::new(ErrorCode::QueueFull, text))
        };
        if let Some(max) = queue.settings.max_tasks
            && queue.unfinished() >= max
        {
            return full(format!("{} unfinished tasks of at most {max}", queue.unfinished()));
        }
        if let Some(max) = queue.settings.max_bytes
            && queue.bytes + bytes > max
        {
            return full(format!("{} bytes of unfinished tasks of at most {max}", queue.bytes));
        }
        Ok(())
    }

    /// A submit was sent again: the first task's id is the answer, and its end is what is waited for.
    fn accept_again(&mut self, origin: Origin, first: TaskId, submit: &Submission, fx: &mut Effects) {
        if let Some(queue) = self.queue_names.get(submit.queue()) {
            self.queues[*queue as usize].tally(Tally::Duplicate);
        }
        let silent = submit.confirm() == Some(Confirm::None) && !matches!(origin, Origin::Call(_));
        // The first may not be durable yet, and then this must not be said.
        self.accept_again_when_durable(first, origin, Told { confirm: !silent, watch: submit.watch() }, fx);
    }

    pub(super) fn accept(
        &mut self,
        origin: Origin,
        admitted: Admitted,
        id: TaskId,
        submit: Submission,
        fx: &mut Effects,
    ) {
        let (watch, confirm) = (submit.watch(), submit.confirm().unwrap_or(Confirm::Durable));
        let (key, early) = self.take_in(admitted, id, submit, fx);
        // `accepted` comes before the first event, also where events come before the disk.
        let watch_later = watch && early && !matches!(origin, Origin::Call(_));
        if watch_later {
            self.record_events(key);
        } else if watch {
            self.add_watcher(key, Watcher::of(&origin));
        }
        if let Origin::Session(session, _) = &origin
            && let Some(session) = self.sessions.get_mut(session)
        {
            session.unconfirmed += 1;
        }
        // An HTTP request is always answered: there `none` means as soon as may be.
        let confirm = match (confirm, &origin) {
            (Confirm::Durable, _) => true,
            (Confirm::None, Origin::Session(..) | Origin::Implied(_)) => false,
            (Confirm::Memory, _) | (Confirm::None, Origin::Call(_)) => {
                fx.answer(&origin, taskyard_proto::Accepted { task: id, duplicate: false });
                false
            }
        };
        self.accept_when_durable(key, id, Some(origin), Told { confirm, watch: watch_later }, fx);
        self.activate_early(key, early, fx);
    }

    /// Hands a task out before it is durable, where its queue wants that.
    fn activate_early(&mut self, key: u32, early: bool, fx: &mut Effects) {
        if early {
            self.tasks[key].held = Held::Early;
            self.activate(key, fx);
        }
    }

    /// Makes the task, and hands it to the store; whether it is to be handed out before it is durable.
    fn take_in(
        &mut self,
        admitted: Admitted,
        id: TaskId,
        submit: Submission,
        fx: &mut Effects,
    ) -> (u32, bool) {
        let (now, queue) = (self.now, admitted.queue);
        let found = &self.queues[queue as usize];
        let defaults = &found.settings.defaults;
        let delay_ms = submit.full().and_then(|full| full.delay_ms).filter(|delay| delay.get() > 0);
        let delayed = delay_ms.map(|delay| now.plus_ms(delay.get()));
        let due = submit.run_at().or(delayed).filter(|due| *due > now);
        let seq = self.next_seq;
        self.next_seq += 1;
        let alike = submit.is_on_queue_terms();
        let mut dedup = None;
        let (terms, payload) = match found.alike.bare(alike, admitted.account.as_ref()) {
            Some(terms) => (terms, submit.into_payload()),
            None => {
                let submit = *Box::<Submit>::from(submit);
                dedup = submit.dedup_id.clone();
                let keyed = submit.assign.is_some()
                    || submit.sticky_key.is_some()
                    || submit.order_key.is_some()
                    || submit.fair_key.is_some()
                    || submit.dedup_id.is_some();
                let keys = Keys {
                    assign: submit.assign,
                    sticky: submit.sticky_key,
                    order: submit.order_key,
                    fair: submit.fair_key,
                    dedup: submit.dedup_id,
                };
                let target = submit.to.unwrap_or_default();
                let ms = |value: u64| u32::try_from(value).expect("the protocol allows a day, which fits");
                let ttl_ms = submit.ttl_ms.map(|ttl| ttl.get()).or(defaults.ttl_ms);
                let terms = Terms {
                    queue: submit.queue,
                    ttl_us: ttl_ms.map(|ms| ms.saturating_mul(1000)),
                    priority: submit
                        .priority
                        .map(|p| p.get() as u8)
                        .or(defaults.priority)
                        .unwrap_or(PRIORITY),
                    max_attempts: submit
                        .max_attempts
                        .map(|n| n.get() as u16)
                        .or(defaults.max_attempts)
                        .unwrap_or(MAX_ATTEMPTS),
                    ack_timeout_ms: submit
                        .ack_timeout_ms
                        .map(|t| ms(t.get()))
                        .or(defaults.ack_timeout_ms)
                        .unwrap_or(ACK_TIMEOUT_MS),
                    run_limit_ms: submit.timeout_ms.map(|t| ms(t.get())).or(defaults.timeout_ms),
                    retry: submit
                        .backoff
                        .as_ref()
                        .map(RetryPolicy::from)
                        .or(defaults.backoff)
                        .unwrap_or_default(),
                    complete: submit.complete.unwrap_or_default(),
                    recipients: self.recipients(queue, &target),
                    target,
                    headers: submit.headers,
                    account: admitted.account,
                    keys: keyed.then(|| Box::new(keys)),
                };
                (self.queues[queue as usize].alike.shared(terms, alike), submit.payload)
            }
        };
        let spec = TaskSpec::new(id, seq, now, terms);
        let accepted = Acceptance { spec, due, payload };
        let key = self.insert(accepted.clone(), queue);
        if let Some(dedup) = dedup {
            self.remember_dedup(queue, dedup, id, now);
        }
        let counted = &mut self.queues[queue as usize];
        let early = counted.settings.deliver == Deliver::Early;
        counted.tally(Tally::Accepted);
        counted.rates.count(now, Rate::Accepted);
        self.store(StoreOp::Accept(accepted), fx);
        (key, early)
    }

    /// The worker names that a task to all goes to: those subscribed now, in order of subscribing.
    fn recipients(&self, queue: u32, target: &Target) -> Arc<[WorkerName]> {
        let Target::All(group) = target else { return Arc::default() };
        self.queues[queue as usize]
            .subscribers
            .values()
            .filter_map(|key| self.sessions.get(&self.subscriptions[key.0 as usize].session))
            .filter(|session| session.pull.is_none())
            .filter(|session| group.as_ref().is_none_or(|group| session.groups.contains(group)))
            .map(|session| session.worker.clone())
            .collect()
    }

    /// Puts a task in the slab; nobody is offered it yet.
    pub(super) fn insert(&mut self, accepted: Acceptance, queue: u32) -> u32 {
        let Acceptance { spec, due, payload } = accepted;
        let share = || {
            Share::new(match due {
                Some(due) => ShareState::Scheduled { due },
                None => ShareState::Queued { since: spec.accepted },
            })
        };
        let first = share();
        let fanout = matches!(spec.target, Target::All(_)).then(|| {
            let others: Vec<Share> = (1..spec.recipients.len()).map(|_| share()).collect();
            let mut fanout = Fanout { others, ..Fanout::default() };
            let standing = first.state.standing().expect("a new share is not over");
            fanout.standing[standing] = spec.recipients.len().max(1) as u32;
            fanout
        });
        let task = Task::new(spec, payload, queue, first, fanout);
        let counted = &mut self.queues[queue as usize];
        counted.bytes += task.bytes();
        counted.counts[task.state() as usize] += 1;
        self.load(task.spec.terms.account.as_ref(), task.bytes());
        self.weigh_in(&task);
        let id = task.spec.id();
        let key = self.tasks.insert(task);
        self.list(id, key);
        key
    }

    /// A task is durable: from here on it may be handed out.
    pub(super) fn activate(&mut self, key: u32, fx: &mut Effects) {
        let task = &mut self.tasks[key];
        let (seq, expires, to_all) = (task.spec.seq, task.spec.expires(), task.fanout().is_some());
        if let ShareState::Queued { since } = &mut task.first.state
            && !(to_all || expires.is_some() || task.decided)
        {
            // As nearly all are: it waits for a worker from here on.
            *since = self.now;
            return self.queued_up(key, 0, fx);
        }
        let recipients = task.recipients();
        if to_all && task.spec.recipients.is_empty() {
            let fate = Fate::of_nobody(task.spec.complete);
            return self.finish(key, fate, fx);
        }
        // A quorum of more than there are can never be reached; a replay may have brought the last word.
        self.decide(key, fx);
        if self.tasks.get(key).is_none_or(|task| task.spec.seq != seq || task.decided) {
            return;
        }
        if let Some(at) = expires {
            if at <= self.now {
                // It outlived its use while it waited for the disk, or while the broker was away.
                return self.ttl_due(key, seq, fx);
            }
            self.timers.set(at, Timer::Expires { task: key, seq });
        }
        for recipient in 0..recipients {
            let Some(task) = self.tasks.get(key).filter(|task| task.spec.seq == seq) else { return };
            match task.share(recipient).map(|share| &share.state) {
                Some(ShareState::Scheduled { due }) => {
                    let due = *due;
                    self.event(key, recipient, None, fx);
                    if due <= self.now {
                        // The disk took longer. A timer that is late when it is set would show that we stood still.
                        self.queue_up(key, recipient, fx);
                    } else {
                        self.timers.set(due, Timer::Due { task: key, recipient, seq });
                    }
                }
                // One that is over is none: others of its key may be under way.
                Some(ShareState::Retrying { due }) if *due <= self.now => self.queue_up(key, recipient, fx),
                Some(ShareState::Retrying { due }) => {
                    self.timers.set(*due, Timer::Due { task: key, recipient, seq });
                    self.claim_key(key);
                    self.event(key, recipient, None, fx);
                }
                Some(ShareState::Queued { .. }) => {
                    self.queue_up(key, recipient, fx);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::DelayMs;
    use taskyard_proto::{Payload, QueueName, TaskState};

    use super::*;
    use crate::core::{CallId, Command, Config};

    /// A timer that is late when it is set was taken for a sign that the process had stood still.
    #[test]
    fn a_delay_that_is_over_when_the_task_is_durable_needs_no_timer() {
        for (stored_ms, state, timers) in [(4, TaskState::Scheduled, true), (5, TaskState::Queued, false)] {
            let (mut shard, mut fx, began) =
                (Shard::new(Config::default()), Effects::default(), Time(1_000_000));
            let mut submit = Submit::new(QueueName::parse("q").unwrap(), Payload::NULL);
            submit.delay_ms = DelayMs::new(5);
            let (origin, task) = (Origin::Call(CallId(1)), TaskId(7));
            shard.apply(
                began,
                Command::Submit { origin, access: None, task, submit: submit.into() },
                &mut fx,
            );
            let through = shard.operations();
            shard.apply(began.plus_ms(stored_ms), Command::Stored { through }, &mut fx);
            let stands = shard.explain(task, began.plus_ms(stored_ms)).expect("it lives").state;
            assert_eq!((stands, shard.next_deadline().is_some()), (state, timers), "after {stored_ms} ms");
        }
    }
}
