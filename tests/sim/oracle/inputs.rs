//! What reaches the process: how it changes the model, and which answer it must get.

use super::*;

impl Oracle {
    pub(crate) fn input(&mut self, now: u64, arrived: u64, command: &Command) {
        self.now = now;
        self.input += 1;
        self.report.inputs += 1;
        let judged = self.take_in(arrived, command);
        self.judge(judged);
    }

    pub(crate) fn input_done(&mut self) {
        self.activating = false;
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

    pub(super) fn take_in(&mut self, arrived: u64, command: &Command) -> Judged {
        match command {
            Command::Open { session, access: _, hello, reference, made_up_name, subscribe, .. } => {
                let worker = hello.worker.clone().unwrap_or_else(|| made_up_name.clone());
                self.note(None, || format!("{session:?} says hello as {worker}, groups {:?}", hello.groups));
                let other = self.sessions.iter().find(|(_, s)| s.worker == worker).map(|(id, _)| *id);
                if let Some(other) = other {
                    self.end_session(other, false);
                }
                let mut pending = BTreeMap::new();
                if let Some(reference) = reference {
                    pending.insert(reference.clone(), Wanted::Welcome);
                }
                self.sessions.insert(
                    *session,
                    Session {
                        worker,
                        groups: hello.groups.iter().cloned().collect(),
                        subscriptions: BTreeMap::new(),
                        silent: false,
                        draining: false,
                        settles: Vec::new(),
                        watching: BTreeMap::new(),
                        pending,
                    },
                );
                if let Some(subscribe) = subscribe {
                    self.subscribed(*session, subscribe);
                }
            }
            Command::SettleOldest { session, ack } => self.oldest(*session, *ack),
            Command::End { session } => {
                self.note(None, || format!("{session:?} ends"));
                self.end_session(*session, false);
            }
            Command::Heard { session } => {
                self.note(None, || format!("{session:?} is heard again"));
                if let Some(session) = self.sessions.get_mut(session) {
                    session.silent = false;
                }
            }
            Command::Submit { origin, access: _, task, run_at, submit } => {
                self.submitted(origin, *task, run_at.map(|t| t.0), submit)
            }
            Command::Message { origin, message } => return self.said(origin, message, arrived),
            Command::HangUp { call, .. } => {
                self.calls.remove(call);
            }
            Command::Manage { .. }
            | Command::Pull(_)
            | Command::PullOver { .. }
            | Command::Follow { .. }
            | Command::Publish { .. }
            | Command::Settle { .. } => {}
            Command::Stored { .. } => {
                let (turn, input) = (self.durable_turn, self.input);
                for task in self.tasks.values_mut().filter(|t| !t.gone && !t.active && t.submit_turn <= turn)
                {
                    task.active = true;
                    task.sure = true;
                    task.active_input = input;
                    if task.recipients.is_empty() && matches!(task.submit.to, Some(Target::All(_))) {
                        let state = match task.submit.complete {
                            Some(Complete::Quorum(_)) => TaskState::Dead,
                            _ => TaskState::Done,
                        };
                        // A dead letter is written by its acceptance alone.
                        let turn = if state == TaskState::Dead { 0 } else { self.turn };
                        task.over =
                            Some(Over { state, at: self.now, turn, result: Payload::NULL, told: false });
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
                        task.over = Some(Over {
                            state: TaskState::Expired,
                            at,
                            turn,
                            result: Payload::NULL,
                            told: false,
                        });
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

    pub(super) fn submitted(&mut self, origin: &Origin, id: TaskId, run_at: Option<u64>, submit: &Submit) {
        self.report.submitted += 1;
        if let Origin::Session(session, _) = origin
            && !self.sessions.contains_key(session)
        {
            return;
        }
        let refusal = if self.draining {
            Some(ErrorCode::Draining)
        } else if self.full {
            Some(ErrorCode::StorageFull)
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
            return self.want_refusal(origin, code, None);
        }
        let recipients = match &submit.to {
            Some(Target::All(group)) => {
                let mut found: Vec<(u64, WorkerName)> = self
                    .sessions
                    .values()
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
        let tracked = Tracked {
            order: self.order,
            submit: submit.clone(),
            priority: submit.priority.map_or(4, |p| p.get() as u8),
            max_attempts: submit.max_attempts.map_or(5, |n| n.get() as u16),
            ack_timeout: submit.ack_timeout_ms.map_or(30_000, |t| t.get()) * MS,
            accepted_at: now,
            expires: submit.ttl_ms.map(|ttl| now + ttl.get() * MS),
            submit_turn: self.turn,
            sure: false,
            gone: false,
            confirmed: false,
            told_accepted: false,
            active: false,
            active_input: 0,
            recipients,
            shares: (0..shares).map(|_| share()).collect(),
            over: None,
            unclean: false,
            forgotten: false,
        };
        self.tasks.insert(id, tracked);
        self.by_order.push(id);
        let confirm = submit.confirm.unwrap_or(Confirm::Durable);
        if matches!(origin, Origin::Call(_)) || confirm != Confirm::None {
            self.want(origin, Wanted::Accepted(id));
        }
        if submit.watch {
            self.watches(origin, id);
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

    pub(super) fn said(&mut self, origin: &Origin, message: &ClientMessage, arrived: u64) -> Judged {
        let session = match origin {
            Origin::Session(session, _) if self.sessions.contains_key(session) => *session,
            Origin::Session(..) | Origin::Implied(_) => return Ok(()),
            Origin::Call(_) => {
                if let ClientMessage::Watch(m) = message {
                    self.watch(origin, m.task);
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
                self.watch(origin, m.task);
            }
            ClientMessage::Unwatch(m) => {
                // The end may be on its way already.
                let ended = self
                    .tasks
                    .get(&m.task)
                    .is_some_and(|found| found.over.is_some() || !found.recipients.is_empty());
                let watching = &mut self.sessions.get_mut(&session).expect("it was found").watching;
                match watching.get_mut(&m.task) {
                    Some(watching) if ended => watching.left = true,
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
    pub(super) fn oldest(&mut self, session: SessionId, ack: bool) {
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
        let judged = self.said(&origin, &message, self.now);
        self.judge(judged);
    }

    pub(super) fn watch(&mut self, origin: &Origin, id: TaskId) {
        let keep = self.keep_ms * MS;
        match self.tasks.get(&id) {
            Some(found) if !found.gone && !found.forgotten => {
                // At the end of its keeping it may be there or not.
                let kept = found
                    .over
                    .as_ref()
                    .is_none_or(|over| over.state == TaskState::Dead || self.now < over.at + keep);
                if kept {
                    self.watches(origin, id);
                    if matches!(origin, Origin::Session(..)) {
                        self.want(origin, Wanted::Ok);
                    }
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
                    let written = found.over.is_none() && !self.is_maybe_over(found) && verb != Verb::Release;
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
