//! Who comes and goes, and what they say that is not about a task.

use std::sync::Arc;

use taskyard_proto::message::{CREDIT_MAX, UNCONFIRMED_MAX, lease_text, session_text};
use taskyard_proto::{
    AwayReason, ClientMessage, CloseCode, Done, Error, ErrorCode, GivenLease, GoingAway, Hello, Limits, Mode,
    QueueName, RequestId, Resume, Subscribe, Subscribed, Text, Welcome, WorkerName,
};

use super::access::Access;
use super::command::{Origin, SessionId};
use super::effect::{Effects, Output};
use super::grants::Action;
use super::record::Failure;
use super::resume::{Resumed, token};
use super::session::{Session, Subscription, SubscriptionKey};
use super::shard::{ABSENT_MS, ACK_TIMEOUT_MS, RECONNECT_SPREAD_MS, Shard};
use super::task::Watcher;
use super::timers::Timer;

/// What was drawn at the door for a new session.
#[derive(Debug)]
pub(super) struct Drawn {
    /// The worker's name, if it gave none.
    pub(super) worker: WorkerName,
    /// What a resume token will say.
    pub(super) resume_key: u128,
}

impl Shard {
    pub(super) fn open(
        &mut self,
        id: SessionId,
        access: Option<Arc<Access>>,
        mut hello: Hello,
        reference: Option<RequestId>,
        drawn: Drawn,
        fx: &mut Effects,
    ) {
        let takes_up = matches!(hello.resume, Some(Resume::Token(_)));
        if let Some(old) = self.resumable(access.as_ref(), hello.resume.as_ref()) {
            self.resumes.resumed += 1;
            let resumed = self.take_up(old, id, access, &mut hello, fx);
            return self.welcome(id, reference, hello, resumed, fx);
        }
        self.resumes.unknown += u64::from(takes_up);
        let worker = hello.worker.take().unwrap_or(drawn.worker);
        let account = access.as_ref().map(|access| access.account.clone());
        if let Some(other) = self.workers.get(&(account.clone(), worker.clone())).copied() {
            // One that is away has no socket to defend its name.
            let away = self.sessions.get(&other).is_some_and(|session| session.away_until.is_some());
            if self.config.replace_worker || away {
                fx.outputs.push(Output::Close {
                    session: other,
                    code: CloseCode::REPLACED,
                    reason: "another session took this worker name",
                });
                self.end(other, false, fx);
            } else {
                let error = Error::new(
                    ErrorCode::Conflict,
                    format!(
                        "worker name {worker} is taken by a connected session: choose another, or end that one"
                    ),
                );
                fx.outputs.push(Output::Send {
                    session: id,
                    reference,
                    on_write: None,
                    barrier: false,
                    queue: 0,
                    message: error.into(),
                });
                fx.outputs.push(Output::Close {
                    session: id,
                    code: CloseCode::REPLACED,
                    reason: "the worker name is taken",
                });
                return;
            }
        }
        let mut session = Session::new(worker.clone(), std::mem::take(&mut hello.groups), self.now);
        session.access = access;
        self.sessions.insert(id, session);
        self.workers.insert((account, worker), id);
        let asked = matches!(hello.resume, Some(Resume::Wanted(true) | Resume::Token(_)));
        if asked && self.config.resume_window_ms > 0 {
            self.make_resumable(id, drawn.resume_key, fx);
        }
        // A token of no session that is known: its leases went on.
        let lost = hello.in_flight.iter().map(lease_text).collect();
        self.welcome(id, reference, hello, Resumed { lost, ..Resumed::default() }, fx);
    }

    fn welcome(
        &mut self,
        id: SessionId,
        reference: Option<RequestId>,
        hello: Hello,
        resumed: Resumed,
        fx: &mut Effects,
    ) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // Named twice, a group would be served twice.
        session.groups.sort_unstable();
        session.groups.dedup();
        session.labels = hello.labels;
        session.client = hello.client.map(|client| client.as_str().to_owned());
        let welcome = Welcome {
            session: session_text(id.0),
            worker: session.worker.clone(),
            version: taskyard_proto::VERSION,
            server: Text::cut(&self.config.server),
            resume: session.resume_key.map(token),
            resumed: resumed.resumed,
            kept: resumed.kept,
            lost: resumed.lost,
            ping_ms: self.config.ping_ms,
            limits: Limits {
                message_bytes: self.config.message_bytes,
                credit: CREDIT_MAX,
                unconfirmed: UNCONFIRMED_MAX,
            },
        };
        fx.outputs.push(Output::Send {
            session: id,
            reference,
            on_write: None,
            barrier: false,
            queue: 0,
            message: welcome.into(),
        });
        for stop in resumed.stops {
            fx.send(id, stop);
        }
        self.return_dropped(resumed.dropped, fx);
    }

    /// Ends a session: its tasks go on at once. `clean` (after `bye`) they return free of charge.
    pub(super) fn end(&mut self, id: SessionId, clean: bool, fx: &mut Effects) {
        let Some(session) = self.sessions.get(&id) else { return };
        let mut held: Vec<(u32, u32)> = session.held().collect();
        let resume_key = session.resume_key;
        // First nobody can be offered its own tasks again.
        self.let_go(id, fx);
        self.forget_resume_key(resume_key, fx);
        held.sort_unstable_by_key(|(task, recipient)| (self.tasks[*task].spec.seq, *recipient));
        for (task, recipient) in held {
            self.unlease(task, recipient, fx);
            if clean {
                self.returned_free(task, recipient, None, 0, fx);
            } else {
                self.lost(task, recipient, Failure::WorkerLost, fx);
            }
        }
        if let Some(session) = self.sessions.remove(&id) {
            let account = session.access.map(|access| access.account.clone()).or(session.restored_account);
            let name = (account, session.worker);
            if self.workers.get(&name) == Some(&id) {
                self.workers.remove(&name);
            }
        }
    }

    /// All that a session has.
    pub(super) fn remove_subscriptions(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        for (_, key) in std::mem::take(&mut session.subscriptions) {
            self.remove_subscription(key, fx);
        }
    }

    pub(super) fn remove_subscription(&mut self, key: SubscriptionKey, fx: &mut Effects) {
        let subscription = self.subscriptions.remove(key.0 as usize);
        let Some(session) = self.sessions.get_mut(&subscription.session) else { return };
        session.unsubscribe(subscription.queue);
        let session = &self.sessions[&subscription.session];
        let queue = &mut self.queues[subscription.queue as usize];
        queue.subscribers.remove(&subscription.place);
        queue.any.ring.leave(subscription.place);
        for group in &session.groups {
            let Some(lane) = queue.groups.get_mut(group) else { continue };
            lane.ring.leave(subscription.place);
            lane.members -= 1;
            queue.drop_group_lane_if_empty(group);
        }
        let Some(lane) = queue.worker_names.get(&session.worker).copied() else { return };
        if queue.workers[lane as usize].subscription != Some(key) {
            return;
        }
        // Another pull of that name may wait.
        if !self.pulls.is_empty() {
            let (sessions, subscriptions) = (&self.sessions, &self.subscriptions);
            let next = queue.subscribers.values().copied().find(|key| {
                let of = subscriptions.get(key.0 as usize).and_then(|s| sessions.get(&s.session));
                of.is_some_and(|other| other.worker == session.worker)
            });
            if let Some(next) = next {
                queue.workers[lane as usize].subscription = Some(next);
                // What waits for that worker waits for this one now.
                return self.feed(next, fx);
            }
        }
        queue.workers[lane as usize].subscription = None;
        queue.workers[lane as usize].absent_since = self.now;
        self.worker_left(subscription.queue, lane, fx);
    }

    /// The tasks of a worker that is gone: some may go to anybody, some wait, some only for a while.
    pub(super) fn worker_left(&mut self, queue: u32, lane: u32, fx: &mut Effects) {
        use taskyard_proto::{IfAbsent, Target};
        let waiting = self.queues[queue as usize].workers[lane as usize].ready.take_all();
        let mut free = Vec::new();
        let mut to_all = false;
        for (priority, entry) in waiting {
            let Some(task) = self.tasks.get(entry.task).filter(|task| task.spec.seq == entry.seq) else {
                continue;
            };
            if matches!(task.spec.target, Target::Worker { if_absent: IfAbsent::Any, .. }) {
                free.push(entry);
            } else {
                to_all |= task.fanout().is_some();
                let fair = task.spec.keys.as_ref().and_then(|keys| keys.fair.as_ref());
                self.queues[queue as usize].workers[lane as usize].ready.push(priority, entry, fair);
            }
        }
        if to_all {
            self.watch_absence(queue, lane);
        }
        self.queues[queue as usize].drop_worker_lane_if_empty(lane);
        for entry in free {
            self.offer_again(entry.task, entry.recipient, entry.seq, fx);
        }
    }

    pub(super) fn watch_absence(&mut self, queue: u32, lane: u32) {
        let found = &self.queues[queue as usize].workers[lane as usize];
        if found.subscription.is_none() {
            self.timers
                .set(found.absent_since.plus_ms(ABSENT_MS).max(self.now), Timer::Absent { queue, lane });
        }
    }

    pub(super) fn heard(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.silent = false;
        self.feed_session(id, fx);
    }

    pub(super) fn feed_session(&mut self, id: SessionId, fx: &mut Effects) {
        let Some(session) = self.sessions.get(&id) else { return };
        for (_, key) in session.subscriptions.clone() {
            self.refresh(key);
            self.feed(key, fx);
        }
    }

    /// Every session, oldest first: sorted, because the map has no order of its own.
    pub(super) fn session_ids(&self) -> Vec<SessionId> {
        let mut ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// From here on nothing is handed out.
    pub(super) fn stop_deliveries(&mut self) {
        self.draining = true;
        for id in self.session_ids() {
            for (_, key) in self.sessions[&id].subscriptions.clone() {
                self.refresh(key);
            }
        }
    }

    pub(super) fn drain_all(&mut self, grace_ms: u64, fx: &mut Effects) {
        self.stop_deliveries();
        self.answer_all_pulls(fx);
        // Whoever comes back as late as that still finds its session.
        let spread_ms = match self.config.resume_window_ms {
            0 => RECONNECT_SPREAD_MS,
            window => (window / 2).clamp(1, RECONNECT_SPREAD_MS),
        };
        for id in self.session_ids() {
            // Spread by the session's number, so that not all come back at once.
            let reconnect_after_ms = id.0.wrapping_mul(2_654_435_761) % spread_ms;
            fx.send(id, GoingAway { reason: AwayReason::Restart, grace_ms, reconnect_after_ms });
        }
    }

    pub(super) fn message(&mut self, origin: Origin, message: ClientMessage, fx: &mut Effects) {
        let session = match &origin {
            Origin::Session(session, _) | Origin::Implied(session) if self.sessions.contains_key(session) => {
                Some(*session)
            }
            // The session ended while this was under way: its leases went on, and nobody listens.
            Origin::Session(..) | Origin::Implied(_) => return,
            Origin::Call(_) => None,
        };
        match (message, session) {
            (ClientMessage::Subscribe(m), Some(session)) => self.subscribe(origin, session, m, fx),
            (ClientMessage::SetCredit(m), Some(session)) => {
                self.with_subscription(origin, session, &m.queue, fx, |shard, key, _| {
                    shard.subscriptions[key.0 as usize].credit = m.credit.get() as u32;
                    shard.refresh(key);
                    Some(key)
                });
            }
            (ClientMessage::Unsubscribe(m), Some(session)) => {
                self.with_subscription(origin, session, &m.queue, fx, |shard, key, fx| {
                    shard.remove_subscription(key, fx);
                    None
                });
            }
            (ClientMessage::Drain(_), Some(session)) => {
                if let Some(found) = self.sessions.get_mut(&session) {
                    found.draining = true;
                    for (_, key) in found.subscriptions.clone() {
                        self.refresh(key);
                    }
                }
                fx.answer_barrier(&origin, Done::PLAIN);
            }
            (ClientMessage::Bye(_), Some(session)) => {
                self.end(session, true, fx);
                self.leave_when_durable(origin, session, fx);
            }
            (ClientMessage::Start(m), Some(session)) => self.start(origin, session, &m.lease, fx),
            (ClientMessage::Ack(m), Some(session)) => self.ack(origin, session, m, fx),
            (ClientMessage::Nack(m), Some(session)) => self.nack(origin, session, m, fx),
            (ClientMessage::Release(m), Some(session)) => self.give_back(origin, session, m, fx),
            (ClientMessage::Extend(m), Some(session)) => self.extend(origin, session, m, fx),
            (ClientMessage::Progress(m), Some(session)) => self.progress(origin, session, m, fx),
            (ClientMessage::Cancelled(m), Some(session)) => self.cancelled(origin, session, m, fx),
            (ClientMessage::Watch(m), _) => self.watch(origin, m, fx),
            (ClientMessage::Cancel(m), _) => self.cancel(origin, m, fx),
            (ClientMessage::Unwatch(m), Some(session)) => {
                self.unwatch(m.task, Watcher::Session(session));
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.watching.remove(&m.task);
                }
                fx.answer(&origin, Done::PLAIN);
            }
            (ClientMessage::Join(m), Some(session)) => self.join(origin, session, m.room, fx),
            (ClientMessage::Leave(m), Some(session)) => self.leave(origin, session, &m.room, fx),
            (ClientMessage::Publish(m), Some(session)) => {
                let from = self.sessions[&session].worker.clone();
                self.publish(origin, m, from, fx);
            }
            (ClientMessage::Ping(_), Some(_)) => fx.answer(&origin, taskyard_proto::Pong {}),
            (ClientMessage::Hello(_), Some(_)) => {
                let error = Error::new(
                    ErrorCode::BadRequest,
                    "`hello` must be the first message of a connection, and this one has said others: reconnect",
                );
                fx.answer(&origin, error);
            }
            (message, _) => {
                let error = Error::new(
                    ErrorCode::BadRequest,
                    format!(
                        "`{}` is not served by this version of the broker ({})",
                        message.type_text(),
                        self.config.server
                    ),
                );
                fx.answer(&origin, error);
            }
        }
    }

    /// Two accounts that consume from one queue may use the same worker name, but not there: tasks to a
    /// worker go by it.
    fn name_taken_on(&self, id: SessionId, queue: u32) -> Option<Error> {
        let session = self.sessions.get(&id).filter(|session| session.pull.is_none())?;
        let holder = self.queues[queue as usize].worker_subscription(&session.worker)?;
        let holder = self.subscriptions.get(holder.0 as usize)?;
        let a_pull = self.sessions.get(&holder.session).is_some_and(|session| session.pull.is_some());
        (holder.session != id && !a_pull).then(|| {
            let text = format!(
                "worker name {} is taken on queue {} by a worker of another account: choose another name",
                session.worker, self.queues[queue as usize].name
            );
            Error::new(ErrorCode::Conflict, text)
        })
    }

    pub(super) fn subscribe(
        &mut self,
        origin: Origin,
        session_id: SessionId,
        message: Subscribe,
        fx: &mut Effects,
    ) {
        let Some(session) = self.sessions.get(&session_id) else { return };
        let access = session.access.clone();
        let allowed = self.check_grant(access.as_deref(), Action::Consume, &message.queue);
        let queue = match allowed.and_then(|()| self.use_queue(access.as_deref(), &message.queue)) {
            Ok(queue) => queue,
            Err(error) => return fx.answer(&origin, error),
        };
        if let Some(error) = self.name_taken_on(session_id, queue) {
            return fx.answer(&origin, error);
        }
        let credit = message.credit.map_or(1, |credit| credit.get()) as u32;
        let mode = message.mode.unwrap_or(Mode::Manual);
        let Some(session) = self.sessions.get_mut(&session_id) else { return };
        let key = match session.subscription(queue) {
            Some(key) => key,
            None => {
                let place = self.next_place;
                self.next_place += 1;
                // Leases of an earlier subscription count against the new credit.
                let tasks = &self.tasks;
                let unsettled = session.held().filter(|(task, _)| tasks[*task].queue == queue).count();
                let key = SubscriptionKey(self.subscriptions.insert(Subscription {
                    session: session_id,
                    queue,
                    lane: 0,
                    place,
                    credit: 0,
                    unsettled: unsettled as u32,
                    mode,
                    explicit_start: false,
                    open: false,
                }) as u32);
                session.subscribe(queue, key);
                let found = &mut self.queues[queue as usize];
                found.subscribers.insert(place, key);
                for group in &session.groups {
                    found.groups.entry(group.clone()).or_default().members += 1;
                }
                let lane = found.worker_lane(&session.worker, self.now);
                // Several pulls may be of one worker; tasks to it go to the first that waits.
                let slot = &mut found.workers[lane as usize].subscription;
                if session.pull.is_none() || slot.is_none() {
                    *slot = Some(key);
                }
                self.subscriptions[key.0 as usize].lane = lane;
                key
            }
        };
        let subscription = &mut self.subscriptions[key.0 as usize];
        subscription.credit = credit;
        subscription.mode = mode;
        subscription.explicit_start = message.explicit_start;
        self.refresh(key);
        fx.answer(
            &origin,
            Subscribed {
                queue: message.queue,
                credit: u64::from(credit),
                ack_timeout_ms: u64::from(
                    self.queues[queue as usize].settings.defaults.ack_timeout_ms.unwrap_or(ACK_TIMEOUT_MS),
                ),
            },
        );
        self.feed(key, fx);
    }

    /// Does something to a subscription and answers `ok`; what it names afterwards may take tasks.
    pub(super) fn with_subscription(
        &mut self,
        origin: Origin,
        session: SessionId,
        queue: &QueueName,
        fx: &mut Effects,
        change: impl FnOnce(&mut Shard, SubscriptionKey, &mut Effects) -> Option<SubscriptionKey>,
    ) {
        let key =
            self.queue_names.get(queue).and_then(|queue| self.sessions.get(&session)?.subscription(*queue));
        let Some(key) = key else {
            let error = Error::new(
                ErrorCode::NotFound,
                format!("this session is not subscribed to queue {queue}: send `subscribe` first"),
            );
            return fx.answer(&origin, error.field("queue"));
        };
        let feed = change(self, key, fx);
        fx.answer_barrier(&origin, Done::PLAIN);
        if let Some(key) = feed {
            self.feed(key, fx);
        }
    }

    /// The task and recipient of a session's own, current lease.
    pub(super) fn find_lease(&self, session: SessionId, lease: &GivenLease) -> Option<(u32, u32)> {
        let id = lease.id()?;
        let slot = match self.aliases.is_empty() {
            true => id.slot,
            false => self.aliases.get(&id.number).copied().unwrap_or(id.slot),
        };
        let found = self.tasks.get(slot)?.share(id.recipient)?.lease()?;
        (found.number == id.number && found.session == session).then_some((slot, id.recipient))
    }
}
