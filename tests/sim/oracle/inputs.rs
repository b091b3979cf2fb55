//! What reaches the process: how it changes the model, and which answer it must get.

use super::*;

impl Oracle {
    /// `shard` is what the command has made of the broker: asked only where the promise leaves something open.
    pub(crate) fn input(&mut self, now: u64, arrived: u64, command: &Command, shard: &Shard) {
        self.now = now;
        self.input += 1;
        self.report.inputs += 1;
        let judged = self.take_in(arrived, command, shard);
        self.judge(judged);
    }

    pub(crate) fn input_done(&mut self) {
        self.activating = false;
        let judged = self.input_is_over();
        self.judge(judged);
        if let Some(expect) = self.due_answers.pop() {
            self.due_answers.clear();
            let violation = self.broken(
                "§2 every refusal is told",
                None,
                format!(
                    "{:?} should have been answered {} (lease {:?})",
                    expect.origin, expect.code, expect.lease
                ),
            );
            self.judge(Err(violation));
        }
    }

    pub(super) fn take_in(&mut self, arrived: u64, command: &Command, shard: &Shard) -> Judged {
        match command {
            Command::Open(open) => {
                let taskyard::core::Open {
                    session,
                    hello,
                    reference,
                    made_up_name,
                    resume_key,
                    subscribe,
                    join,
                    ..
                } = &**open;
                self.opened(*session, hello, reference.as_ref(), made_up_name, *resume_key);
                if let Some(subscribe) = subscribe {
                    self.subscribed(*session, subscribe);
                }
                if let Some(room) = join {
                    self.joined(*session, room);
                }
            }
            Command::SettleOldest { session, ack } => self.oldest(*session, *ack, shard),
            Command::End { session } => {
                self.note(None, || format!("{session:?} ends"));
                self.socket_ended(*session);
            }
            Command::Heard { session } => {
                self.note(None, || format!("{session:?} is heard again"));
                if let Some(session) = self.sessions.get_mut(session) {
                    session.silent = false;
                }
            }
            Command::Submit { origin, access: _, task, submit } => {
                let run_at = submit.run_at().map(|t| t.0);
                self.submitted(origin, *task, run_at, &Box::from(submit.clone()), shard)
            }
            Command::Message { origin, message } => return self.said(origin, message, arrived, shard),
            Command::HangUp { call, .. } => {
                self.calls.remove(call);
            }
            Command::Manage { call, manage, .. } => self.managed(*call, manage, shard),
            Command::Pull(pull) => self.pulls(pull),
            Command::PullOver { .. } => {}
            Command::Follow { .. } => {}
            Command::Fetched(fetched) => {
                for fetched in fetched {
                    self.note(Some(fetched.task), || "its payload is read".into());
                }
            }
            Command::Publish { call, publish, .. } => {
                self.published(None, &publish.room, false);
                self.want(&Origin::Call(*call), Wanted::Ok);
            }
            Command::Settle { call, message, .. } => return self.settle_pulled(*call, message, shard),
            Command::Stored { .. } => {
                let (turn, input) = (self.durable_turn, self.input);
                for task in self.tasks.values_mut().filter(|t| !t.gone && t.submit_turn <= turn) {
                    task.sure = true;
                }
                for task in self.tasks.values_mut().filter(|t| !t.gone && !t.active && t.submit_turn <= turn)
                {
                    task.active = true;
                    task.active_input = input;
                    if task.over.is_none()
                        && task.recipients.is_empty()
                        && matches!(task.submit.to, Some(Target::All(_)))
                    {
                        let state = match task.submit.complete {
                            Some(Complete::Quorum(_)) => TaskState::Dead,
                            _ => TaskState::Done,
                        };
                        // A dead letter is written by its acceptance alone.
                        let turn = if state == TaskState::Dead { 0 } else { self.turn };
                        task.over = Some(Over::new(state, self.now, turn));
                    }
                    for share in &mut task.shares {
                        share.touched = input;
                    }
                }
                let decided =
                    |t: &&Tracked| t.active_input == input && !t.recipients.is_empty() && t.over.is_none();
                let open: Vec<TaskId> =
                    self.by_order.iter().filter(|id| decided(&&self.tasks[id])).copied().collect();
                for id in open {
                    self.decide(id);
                    if let Some(over) = &mut self.tasks.get_mut(&id).expect("it was found").over {
                        over.turn = 0;
                    }
                }
                let (turn, at) = (self.turn, self.now);
                for task in self.tasks.values_mut().filter(|t| t.active_input == input && t.over.is_none()) {
                    if task.expires.is_some_and(|expires| expires <= at) {
                        task.over = Some(Over::new(TaskState::Expired, at, turn));
                    }
                }
            }
            Command::StorageFull(full) => {
                self.note(None, || format!("the disk is {}", if *full { "full" } else { "no longer full" }));
                self.full = *full;
            }
            Command::Drain { .. } => {
                self.note(None, || "the broker drains".into());
                self.draining = true;
            }
        }
        Ok(())
    }

    pub(super) fn want(&mut self, origin: &Origin, wanted: Wanted) {
        match origin {
            Origin::Session(session, Some(id)) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.pending.insert(id.clone(), wanted);
                }
            }
            Origin::Session(_, None) | Origin::Implied(_) => {}
            Origin::Call(call) => self.calls.entry(*call).or_default().wanted = Some(wanted),
        }
    }

    /// A refusal is told at once, also without an `id`.
    pub(super) fn want_refusal(&mut self, origin: &Origin, code: ErrorCode, lease: Option<&GivenLease>) {
        self.want(origin, Wanted::Refused);
        self.due_answers.push(Expect { origin: origin.clone(), code, lease: lease.cloned() });
    }

    pub(super) fn submitted(
        &mut self,
        origin: &Origin,
        id: TaskId,
        run_at: Option<u64>,
        submit: &Submit,
        shard: &Shard,
    ) {
        self.report.submitted += 1;
        if let Origin::Session(session, _) = origin
            && !self.sessions.contains_key(session)
        {
            return;
        }
        if let Some(first) = self.is_duplicate(id, submit, shard) {
            return self.duplicated(origin, first, submit, shard);
        }
        let refusal = if self.draining {
            Some(ErrorCode::Draining)
        } else if self.full {
            Some(ErrorCode::StorageFull)
        } else if let Some(code) = self.is_overfull(submit, shard.queue_of(id).is_none()) {
            Some(code)
        } else {
            match &submit.to {
                Some(Target::Worker { worker, if_absent: IfAbsent::Fail })
                    if !self.is_present(&submit.queue, worker) =>
                {
                    Some(ErrorCode::NotFound)
                }
                _ => None,
            }
        };
        self.note(Some(id), || format!("{origin:?} submits {id} {}", describe(submit)));
        if let Some(code) = refusal {
            if code == ErrorCode::QueueFull && self.is_unsure(&submit.queue) {
                // For which reason of several, only the broker knows.
                self.want(origin, Wanted::Anything);
                self.loose_input = self.input;
                return;
            }
            return self.want_refusal(origin, code, None);
        }
        let recipients = match &submit.to {
            Some(Target::All(group)) => {
                let mut found: Vec<(u64, WorkerName)> = self
                    .sessions
                    .values()
                    .filter(|session| session.pull.is_none())
                    .filter(|session| group.as_ref().is_none_or(|group| session.groups.contains(group)))
                    .filter_map(|s| Some((s.subscriptions.get(&submit.queue)?.place, s.worker.clone())))
                    .collect();
                found.sort();
                found.into_iter().map(|(_, worker)| worker).collect()
            }
            _ => Vec::new(),
        };
        let now = self.now;
        let delay = submit.delay_ms.map(|delay| now + delay.get() * MS);
        let due = run_at.or(delay).filter(|due| *due > now).unwrap_or(0);
        let shares = match (&submit.to, recipients.len()) {
            (Some(Target::All(_)), count) => count,
            _ => 1,
        };
        let share =
            || Share { from: due, by: due, from_turn: self.turn, touched: self.input, ..Share::default() };
        self.order += 1;
        let shape = self.shapes.get(&submit.queue);
        let defaults = shape.map(|shape| shape.settings.defaults.clone()).unwrap_or_default();
        let early = shape.is_some_and(|shape| shape.settings.deliver == Deliver::Early);
        if let Some(key) = &submit.dedup_id {
            let known = self.dedups.entry((submit.queue.clone(), key.clone())).or_default();
            known.push((id, now + DEDUP_MS * MS));
        }
        let mut submit = submit.clone();
        let retry = defaults.backoff.map(|retry| taskyard_proto::Backoff {
            initial_ms: Some(taskyard_proto::message::Int::nearest(u64::from(retry.initial_ms))),
            max_ms: Some(taskyard_proto::message::Int::nearest(u64::from(retry.max_ms))),
            factor: taskyard_proto::Number::new(retry.factor),
        });
        submit.backoff = submit.backoff.or(retry);
        let run_limit = defaults.timeout_ms.map(|ms| taskyard_proto::message::TimeoutMs::nearest(ms.into()));
        submit.timeout_ms = submit.timeout_ms.or(run_limit);
        let submit = &submit;
        let ttl = submit.ttl_ms.map(|ttl| ttl.get()).or(defaults.ttl_ms);
        let tracked = Tracked {
            order: self.order,
            submit: submit.clone(),
            priority: submit.priority.map(|p| p.get() as u8).or(defaults.priority).unwrap_or(4),
            max_attempts: submit.max_attempts.map(|n| n.get() as u16).or(defaults.max_attempts).unwrap_or(5),
            ack_timeout: submit
                .ack_timeout_ms
                .map(|t| t.get())
                .or(defaults.ack_timeout_ms.map(u64::from))
                .unwrap_or(30_000)
                * MS,
            accepted_at: now,
            expires: ttl.map(|ttl| now + ttl * MS),
            submit_turn: self.turn,
            sure: false,
            gone: false,
            confirmed: false,
            told_accepted: false,
            active: early,
            active_input: if early { self.input } else { 0 },
            recipients,
            shares: (0..shares).map(|_| share()).collect(),
            over: None,
            unclean: false,
            forgotten: false,
            cancelling: None,
            murky: false,
            deleted: None,
            redriven: None,
            early,
        };
        self.tasks.insert(id, tracked);
        self.by_order.push(id);
        if early && matches!(submit.to, Some(Target::All(_))) {
            self.decide(id);
        }
        let confirm = submit.confirm.unwrap_or(Confirm::Durable);
        if matches!(origin, Origin::Call(_)) || confirm != Confirm::None {
            self.want(origin, Wanted::Accepted(id));
        }
        if submit.watch {
            self.watches(origin, id);
            if early {
                self.again.insert((super::verbs::origin_session(origin), id));
            }
            if let Origin::Session(session, reference) = origin
                && let Some(watching) = self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&id))
            {
                watching.waits_for_accepted = reference.is_some() && confirm != Confirm::None;
            }
        }
    }

    pub(super) fn watches(&mut self, origin: &Origin, id: TaskId) {
        match origin {
            Origin::Session(session, _) | Origin::Implied(session) => {
                if let Some(session) = self.sessions.get_mut(session) {
                    let watching = session.watching.entry(id).or_default();
                    watching.asked += 1;
                    // Who asks again is told again what was told before.
                    watching.last_seq = 0;
                }
            }
            Origin::Call(call) => self.calls.entry(*call).or_default().watching = Some((id, false)),
        }
    }

    pub(super) fn is_present(&self, queue: &QueueName, worker: &WorkerName) -> bool {
        self.sessions.values().any(|s| s.worker == *worker && s.subscriptions.contains_key(queue))
    }

    pub(super) fn said(
        &mut self,
        origin: &Origin,
        message: &ClientMessage,
        arrived: u64,
        shard: &Shard,
    ) -> Judged {
        let session = match origin {
            Origin::Session(session, _) if self.sessions.contains_key(session) => *session,
            Origin::Session(..) | Origin::Implied(_) => return Ok(()),
            Origin::Call(_) => {
                match message {
                    ClientMessage::Watch(m) => self.watch(origin, m.task, 0, shard),
                    ClientMessage::Cancel(m) => return self.cancel(origin, m, shard),
                    _ => {}
                }
                return Ok(());
            }
        };
        let now = self.now;
        if self.trace.is_some() {
            let task = lease_in(message).and_then(|lease| self.leases.get(&lease)).map(|lease| lease.task);
            let worker = self.sessions[&session].worker.clone();
            self.note(task, || {
                format!("{worker} says {message:?} ({origin:?}, arrived at {:.3})", arrived as f64 / 1000.0)
            });
        }
        match message {
            ClientMessage::Subscribe(m) => {
                self.subscribed(session, m);
                self.want(origin, Wanted::Subscribed);
            }
            ClientMessage::SetCredit(m) => {
                let found = self.sessions.get_mut(&session).expect("it was found");
                match found.subscriptions.get_mut(&m.queue) {
                    Some(subscription) => {
                        subscription.credit = m.credit.get();
                        self.want(origin, Wanted::Ok);
                    }
                    None => self.want_refusal(origin, ErrorCode::NotFound, None),
                }
            }
            ClientMessage::Unsubscribe(m) => {
                let found = self.sessions.get_mut(&session).expect("it was found");
                let worker = found.worker.clone();
                match found.subscriptions.remove(&m.queue) {
                    Some(_) => {
                        self.absent_since.insert((m.queue.clone(), worker), now);
                        self.want(origin, Wanted::Ok);
                    }
                    None => self.want_refusal(origin, ErrorCode::NotFound, None),
                }
            }
            ClientMessage::Drain(_) => {
                self.sessions.get_mut(&session).expect("it was found").draining = true;
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Bye(_) => {
                self.end_session(session, true);
                self.leaving.push(session);
            }
            ClientMessage::Ping(_) => self.want(origin, Wanted::Pong),
            ClientMessage::Watch(m) => {
                self.watch(origin, m.task, m.from_seq.unwrap_or(0), shard);
            }
            ClientMessage::Cancel(m) => return self.cancel(origin, m, shard),
            ClientMessage::Cancelled(m) => {
                let stopping = self
                    .current(session, &m.lease)
                    .is_none_or(|id| self.tasks[&self.leases[&id].task].cancelling.is_some());
                if !stopping {
                    self.want_refusal(origin, ErrorCode::Conflict, Some(&m.lease));
                    return Ok(());
                }
                let error = m.error.as_ref().map(|e| e.as_str().to_owned());
                let lease = LeaseList::One(m.lease.clone());
                self.settle(origin, session, &lease, Verb::Cancelled, |oracle, id, share| {
                    if oracle.tasks[&id].over.is_none() {
                        oracle.broken_off(id, share, error.clone());
                    }
                });
            }
            ClientMessage::Join(m) => {
                self.joined(session, &m.room);
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Leave(m) => {
                self.left(session, &m.room);
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Publish(m) => {
                self.published(Some(session), &m.room, m.exclude_self);
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Unwatch(m) => {
                // The end may be on its way already.
                let ended = self
                    .tasks
                    .get(&m.task)
                    .is_some_and(|found| found.over.is_some() || !found.recipients.is_empty());
                let watching = &mut self.sessions.get_mut(&session).expect("it was found").watching;
                match watching.get_mut(&m.task) {
                    Some(watching) if ended || watching.again => watching.left = true,
                    _ => _ = watching.remove(&m.task),
                }
                self.want(origin, Wanted::Ok);
            }
            ClientMessage::Start(m) => self.touch(origin, session, &m.lease, |lease, timeout| {
                lease.unstarted = false;
                lease.deadline = now + timeout;
            }),
            ClientMessage::Extend(m) => self.touch(origin, session, &m.lease, |lease, timeout| {
                lease.deadline = now + m.ack_timeout_ms.map_or(timeout, |t| t.get() * MS);
            }),
            ClientMessage::Progress(m) => self.touch(origin, session, &m.lease, |lease, timeout| {
                lease.deadline = lease.deadline.max(now + timeout);
            }),
            ClientMessage::Ack(m) => {
                self.settle(origin, session, &m.leases, Verb::Ack, |oracle, id, share| {
                    oracle.acked(id, share, &m.result);
                })
            }
            ClientMessage::Nack(m) => {
                let delay = m.delay_ms.map(|delay| delay.get());
                let retry = m.retry.is_none_or(|flag| flag.0);
                let error = m.error.as_ref().map(|e| e.as_str().to_owned());
                let worker = self.sessions[&session].worker.clone();
                self.settle(origin, session, &m.leases, Verb::Nack, |oracle, id, share| {
                    oracle.charge(
                        id,
                        share,
                        Failure::Nack,
                        Some(worker.clone()),
                        error.clone(),
                        delay,
                        retry,
                    );
                });
            }
            ClientMessage::Release(m) => {
                let delay = m.delay_ms.map_or(0, |delay| delay.get());
                self.settle(origin, session, &m.leases, Verb::Release, |oracle, id, share| {
                    oracle.returned(id, share, Some(session), delay);
                });
            }
            other => {
                return Err(self.broken(
                    "the simulation",
                    None,
                    format!("says what the oracle does not know: {other:?}"),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn subscribed(&mut self, session: SessionId, m: &Subscribe) {
        let next_place = self.next_place;
        let found = self.sessions.get_mut(&session).expect("it was found");
        let mut new = false;
        let subscription = found.subscriptions.entry(m.queue.clone()).or_insert_with(|| {
            new = true;
            Subscription { place: next_place, credit: 0, auto: false, explicit_start: false }
        });
        subscription.credit = m.credit.map_or(1, |credit| credit.get());
        subscription.auto = m.mode == Some(Mode::Auto);
        subscription.explicit_start = m.explicit_start;
        let worker = found.worker.clone();
        self.next_place += u64::from(new);
        self.absent_since.remove(&(m.queue.clone(), worker));
    }

    /// A client without a library settles the oldest that it holds.
    pub(super) fn oldest(&mut self, session: SessionId, ack: bool, shard: &Shard) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        let held = self.leases.iter().filter(|(_, lease)| lease.live && lease.session == session);
        let oldest = held.map(|(id, _)| *id).min_by_key(|id| id.number);
        let origin = Origin::Session(session, None);
        let Some(lease) = oldest else {
            return self.want_refusal(&origin, ErrorCode::LeaseLost, None);
        };
        self.note(Some(self.leases[&lease].task), || format!("{session:?} settles its oldest, ack {ack}"));
        let message: ClientMessage = if ack {
            Ack { leases: lease.into(), result: Payload::NULL }.into()
        } else {
            Nack { leases: lease.into(), error: None, delay_ms: None, retry: None }.into()
        };
        let judged = self.said(&origin, &message, self.now, shard);
        self.judge(judged);
    }

    pub(super) fn watch(&mut self, origin: &Origin, id: TaskId, from_seq: u64, shard: &Shard) {
        match self.tasks.get(&id) {
            Some(found) if !found.gone && !found.forgotten && found.deleted.is_none() => {
                let keep = self.keep_of(&found.submit.queue);
                let sure = found
                    .over
                    .as_ref()
                    .is_none_or(|over| over.state == TaskState::Dead || self.now < over.at + keep);
                // At the end of its keeping it may be there or not.
                let kept = shard.queue_of(id).is_some() || (sure && !self.is_maybe_over(found));
                if !kept {
                    return self.want_refusal(origin, ErrorCode::NotFound, None);
                }
                self.watches(origin, id);
                if let Origin::Session(session, _) = origin {
                    if let Some(watching) =
                        self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&id))
                    {
                        watching.last_seq = from_seq;
                    }
                    self.want(origin, Wanted::Ok);
                }
            }
            _ => self.want_refusal(origin, ErrorCode::NotFound, None),
        }
    }

    pub(super) fn current(&self, session: SessionId, lease: &GivenLease) -> Option<LeaseId> {
        let id = lease.id()?;
        self.leases.get(&id).filter(|lease| lease.live && lease.session == session).map(|_| id)
    }

    pub(super) fn touch(
        &mut self,
        origin: &Origin,
        session: SessionId,
        lease: &GivenLease,
        change: impl FnOnce(&mut Lease, u64),
    ) {
        let Some(id) = self.current(session, lease) else {
            return self.want_refusal(origin, ErrorCode::LeaseLost, Some(lease));
        };
        let found = self.leases.get_mut(&id).expect("it is current");
        change(found, self.tasks[&found.task].ack_timeout);
        self.want(origin, Wanted::Ok);
    }

    pub(super) fn settle(
        &mut self,
        origin: &Origin,
        session: SessionId,
        leases: &LeaseList,
        verb: Verb,
        mut effect: impl FnMut(&mut Oracle, TaskId, usize),
    ) {
        let given: Vec<GivenLease> = match leases {
            LeaseList::One(lease) => vec![lease.clone()],
            LeaseList::Many(leases) => leases.clone(),
        };
        let mut results = Vec::new();
        let mut turn = 0;
        for lease in given {
            let outcome = match self.current(session, &lease) {
                Some(id) => {
                    self.report.settled += 1;
                    let (task, share) = (self.leases[&id].task, self.leases[&id].share);
                    self.release_lease(id);
                    self.sessions.get_mut(&session).expect("it was found").settles.push((id, verb));
                    // Of a task that was decided before, and of a free return, nothing has to be written.
                    let found = &self.tasks[&task];
                    let kept = self.leases[&id].key.is_some();
                    let written = found.over.is_none()
                        && !self.is_maybe_over(found)
                        && (verb != Verb::Release || kept)
                        // Of a task to all that is being stopped the whole is written.
                        && (found.recipients.is_empty() || found.cancelling.is_none());
                    let written_in = if written { self.turn } else { 0 };
                    self.leases.get_mut(&id).expect("it is there").settled = Some((verb, written_in));
                    turn = turn.max(written_in);
                    effect(self, task, share);
                    SettleOutcome::Ok
                }
                None => {
                    let before = &self.sessions[&session].settles;
                    let same = lease.id().filter(|id| before.contains(&(*id, verb)));
                    match same {
                        Some(id) => {
                            turn = turn.max(self.leases[&id].settled.map_or(0, |(_, turn)| turn));
                            SettleOutcome::Already
                        }
                        None => SettleOutcome::LeaseLost,
                    }
                }
            };
            results.push((lease, outcome));
        }
        match leases {
            LeaseList::One(_) => {
                let (lease, outcome) = results.remove(0);
                match outcome {
                    SettleOutcome::LeaseLost => self.want_refusal(origin, ErrorCode::LeaseLost, Some(&lease)),
                    outcome => self.want(origin, Wanted::Settled { lease, outcome, turn }),
                }
            }
            LeaseList::Many(_) if matches!(origin, Origin::Session(_, None)) => {
                for (lease, _) in results.iter().filter(|(_, outcome)| *outcome == SettleOutcome::LeaseLost) {
                    self.want_refusal(origin, ErrorCode::LeaseLost, Some(lease));
                }
            }
            LeaseList::Many(_) => self.want(origin, Wanted::SettledMany { results, turn }),
        }
    }
}
