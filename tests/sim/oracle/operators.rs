//! What operators and pulls ask for, and what they must be told.

use super::*;

impl Oracle {
    pub(super) fn managed(&mut self, call: CallId, manage: &Manage, shard: &Shard) {
        self.note(None, || format!("{call:?} asks for {manage:?}"));
        let known = |queue: &QueueName| shard.queue_view(queue, Time(self.now)).is_some();
        let (turn, now) = (self.turn, self.now);
        let mut grace_ms = None;
        let (mut spared, mut at) = (0, turn);
        let wanted = match manage {
            Manage::Declare { queue, changes } => {
                let shape = self.shapes.entry(queue.clone()).or_default();
                let rate = shape.settings.rate_per_s;
                shape.settings.merge((**changes).clone());
                shape.turn = turn;
                if rate != shape.settings.rate_per_s {
                    shape.rate_since = now;
                    shape.handed_out.clear();
                }
                Wish::Done
            }
            Manage::Pause { queue, for_ms, .. } => {
                let shape = self.shapes.entry(queue.clone()).or_default();
                shape.pause = Some(for_ms.map(|ms| now + ms * MS));
                shape.turn = turn;
                Wish::Done
            }
            Manage::Unpause { queue } if known(queue) => {
                let shape = self.shapes.entry(queue.clone()).or_default();
                if shape.pause.take().is_none() {
                    at = 0;
                }
                shape.turn = turn;
                Wish::Done
            }
            Manage::Purge { queue } if known(queue) => {
                let (count, _, sure) = self.cancel_many(queue, None, None);
                spared = count;
                if sure { Wish::Count(count) } else { Wish::Anything }
            }
            Manage::CancelMany { queue, filter, grace_ms: grace } if known(queue) => {
                grace_ms = Some(*grace);
                let (cancelled, stopping, sure) = self.cancel_many(queue, Some(filter), grace_ms);
                spared = cancelled;
                if sure { Wish::Cancelled { cancelled, stopping } } else { Wish::Anything }
            }
            Manage::Redrive { queue, which, rate_per_s } if known(queue) => {
                match self.dead_letters(queue, which) {
                    None => {
                        self.maybe_redriven(queue, which);
                        Wish::Anything
                    }
                    Some(Err(code)) => Wish::Refused(code),
                    Some(Ok(letters)) => {
                        let count = letters.len() as u64;
                        if rate_per_s.is_some() {
                            // When each goes only the broker knows.
                            for id in letters {
                                self.tasks.get_mut(&id).expect("it was found").murky = true;
                            }
                        } else {
                            letters.into_iter().for_each(|id| self.redrive(id));
                        }
                        Wish::Count(count)
                    }
                }
            }
            Manage::DeleteDead { queue, which } if known(queue) => match self.dead_letters(queue, which) {
                None => {
                    for (id, found) in self.tasks.iter_mut().filter(|(_, t)| t.submit.queue == *queue) {
                        let dead = found.over.as_ref().is_none_or(|over| over.state == TaskState::Dead);
                        if !found.gone && !found.forgotten && dead && shard.queue_of(*id).is_none() {
                            // Deleted, or no longer kept.
                            found.forgotten = true;
                            *self.unclear.entry(queue.clone()).or_default() += 1;
                        }
                    }
                    Wish::Anything
                }
                Some(Err(code)) => Wish::Refused(code),
                Some(Ok(letters)) => {
                    for id in &letters {
                        self.tasks.get_mut(id).expect("it was found").deleted = Some(turn);
                    }
                    Wish::Count(letters.len() as u64)
                }
            },
            Manage::DrainWorker { worker } | Manage::RemoveWorker { worker } => {
                let named = |(_, s): &(&SessionId, &Session)| s.worker == *worker && s.pull.is_none();
                let named: Vec<SessionId> = self.sessions.iter().filter(named).map(|(id, _)| *id).collect();
                if matches!(manage, Manage::DrainWorker { .. }) {
                    for id in &named {
                        self.sessions.get_mut(id).expect("it was found").draining = true;
                    }
                } else {
                    self.removing.extend(&named);
                }
                at = 0;
                if named.is_empty() { Wish::Refused(ErrorCode::NotFound) } else { Wish::Done }
            }
            _ => Wish::Refused(ErrorCode::NotFound),
        };
        if matches!(wanted, Wish::Count(0) | Wish::Anything | Wish::Cancelled { cancelled: 0, .. }) {
            at = 0;
        }
        self.jobs.insert(call, Job { wanted, turn: at, input: self.input, spared, grace_ms });
    }

    /// Cancels what a purge or a filter means: how many at once, how many are being stopped, and whether that is sure.
    fn cancel_many(
        &mut self,
        queue: &QueueName,
        filter: Option<&TaskFilter>,
        grace_ms: Option<u64>,
    ) -> (u64, u64, bool) {
        let (mut cancelled, mut stopping, mut sure) = (0, 0, true);
        for id in self.by_order.clone() {
            let found = &self.tasks[&id];
            if found.submit.queue != *queue || found.gone || found.forgotten || found.deleted.is_some() {
                continue;
            }
            if self.is_maybe_over(found) {
                if found.over.is_none() || found.murky {
                    let turn = self.turn;
                    let found = self.tasks.get_mut(&id).expect("it was found");
                    found.cancelling.get_or_insert(Cancelling { turn });
                    found.murky = true;
                    sure = false;
                }
                continue;
            }
            let held = found.shares.iter().any(|share| share.lease.is_some());
            if found.over.is_some() || (held && grace_ms.is_none()) {
                continue;
            }
            if let Some(filter) = filter
                && !(filter.order_key.is_none() || filter.order_key == found.submit.order_key)
            {
                continue;
            }
            match self.stop_task(id, grace_ms.unwrap_or(0)) {
                TaskState::Leased => stopping += 1,
                _ => cancelled += 1,
            }
        }
        (cancelled, stopping, sure)
    }

    /// A task whose key a purge has freed may go to a worker before the purge comes to it.
    pub(super) fn spare(&mut self, id: TaskId) {
        let (input, turn, now) = (self.input, self.turn, self.now);
        let found = &self.tasks[&id];
        let purged = found.submit.order_key.is_some()
            && found
                .over
                .as_ref()
                .is_some_and(|o| o.state == TaskState::Cancelled && o.turn == turn && o.at == now);
        let Some(job) = self.jobs.values_mut().find(|job| job.input == input && job.spared > 0) else {
            return;
        };
        if !purged {
            return;
        }
        job.spared -= 1;
        match &mut job.wanted {
            Wish::Count(count) => *count -= 1,
            Wish::Cancelled { cancelled, stopping } => {
                *cancelled -= 1;
                *stopping += 1;
            }
            _ => {}
        }
        let stops = job.grace_ms.is_some();
        let found = self.tasks.get_mut(&id).expect("it was found");
        found.over = None;
        found.cancelling = None;
        for share in &mut found.shares {
            share.ended = None;
        }
        if stops {
            found.murky = true;
            found.cancelling = Some(Cancelling { turn });
        }
    }

    /// The dead letters that are meant; none if only the broker knows.
    fn dead_letters(&self, queue: &QueueName, which: &Which) -> Option<Result<Vec<TaskId>, ErrorCode>> {
        let is_dead = |id: &TaskId| {
            self.tasks.get(id).is_some_and(|found| {
                found.submit.queue == *queue
                    && !found.gone
                    && !found.forgotten
                    && found.deleted.is_none()
                    && found.over.as_ref().is_some_and(|over| over.state == TaskState::Dead)
            })
        };
        let unsure = |found: &Tracked| {
            found.submit.queue == *queue
                && !found.gone
                && (found.murky || found.over.is_none())
                && self.is_maybe_over(found)
        };
        match which {
            Which::Tasks(ids) => {
                if ids.iter().filter_map(|id| self.tasks.get(id)).any(unsure) {
                    return None;
                }
                match ids.iter().all(is_dead) {
                    true => Some(Ok(ids.clone())),
                    false => Some(Err(ErrorCode::NotFound)),
                }
            }
            Which::Filter(_) => {
                if self.tasks.values().any(unsure) {
                    return None;
                }
                Some(Ok(self.by_order.iter().copied().filter(is_dead).collect()))
            }
        }
    }

    /// Some are dead letters, and of some only the broker knows it.
    fn maybe_redriven(&mut self, queue: &QueueName, which: &Which) {
        for id in self.by_order.clone() {
            let found = &self.tasks[&id];
            let meant = match which {
                Which::Tasks(ids) => ids.contains(&id),
                Which::Filter(_) => found.submit.queue == *queue,
            };
            if !meant || found.gone || found.forgotten || found.deleted.is_some() {
                continue;
            }
            let dead = found.over.as_ref().is_some_and(|over| over.state == TaskState::Dead);
            if dead && !found.murky && matches!(which, Which::Filter(_)) {
                self.redrive(id);
            } else if dead || (found.over.is_none() && self.is_maybe_over(found)) {
                self.tasks.get_mut(&id).expect("it was found").murky = true;
            }
        }
    }

    fn redrive(&mut self, id: TaskId) {
        self.report.redriven += 1;
        let (turn, now, input) = (self.turn, self.now, self.input);
        let found = self.tasks.get_mut(&id).expect("it was found");
        found.over = None;
        found.cancelling = None;
        found.redriven = Some(turn);
        for share in &mut found.shares {
            if share.lease.is_some() || share.ended.as_ref().is_some_and(|ended| ended.done) {
                continue;
            }
            share.past.append(&mut share.charges);
            (share.free, share.from, share.by, share.from_turn) = (0, 0, 0, turn);
            (share.retrying, share.ended, share.touched) = (false, None, input);
        }
        let to_all = matches!(found.submit.to, Some(Target::All(_)));
        if to_all && found.recipients.is_empty() {
            found.over = Some(Over::new(TaskState::Dead, now, turn));
            return;
        }
        if to_all {
            self.decide(id);
        }
        let found = self.tasks.get_mut(&id).expect("it was found");
        if found.over.is_none() && found.expires.is_some_and(|at| at <= now) {
            found.over = Some(Over::new(TaskState::Expired, now, turn));
        }
    }

    pub(super) fn reported(&mut self, call: CallId, report: &Told) -> Judged {
        self.note(None, || format!("{call:?} is told {report:?}"));
        let Some(job) = self.jobs.remove(&call) else {
            return Err(self.broken(
                "§7 every request is answered once",
                None,
                format!("{call:?}: {report:?}"),
            ));
        };
        if let Told::Pulled(tasks) = report {
            return self.pull_answered(call, tasks);
        }
        let right = match (&job.wanted, report) {
            (Wish::Anything, _) | (Wish::Done, Told::Done | Told::Created) => true,
            (Wish::Count(count), Told::Count(told)) => count == told,
            (Wish::Cancelled { cancelled, stopping }, Told::Cancelled { cancelled: c, stopping: s }) => {
                cancelled == c && stopping == s
            }
            (Wish::Refused(code), Told::Refused(error)) => *code == error.code,
            _ => false,
        };
        self.require(right, "§7 an answer says what was done", None, || {
            format!("{job:?} and not {report:?}")
        })?;
        let refused = matches!(report, Told::Refused(_));
        self.require(
            refused || job.turn <= self.durable_turn,
            "§7 it is told when it is durable",
            None,
            || format!("{call:?}: {report:?}"),
        )
    }

    // --- Pulls ------------------------------------------------------------------------------

    pub(super) fn pulls(&mut self, pull: &taskyard::core::Pull) {
        let (call, session) = (pull.call, pull.session);
        self.note(None, || format!("{call:?} pulls {} of {} as {}", pull.credit, pull.queue, pull.worker));
        let job = |wanted| Job { wanted, turn: 0, input: 0, spared: 0, grace_ms: None };
        if self.draining {
            self.jobs.insert(call, job(Wish::Refused(ErrorCode::Draining)));
            return;
        }
        self.jobs.insert(call, job(Wish::Pulled));
        self.pulls.insert(call, session);
        let place = self.next_place;
        self.next_place += 1;
        let subscription =
            Subscription { place, credit: u64::from(pull.credit), auto: false, explicit_start: false };
        self.sessions.insert(
            session,
            Session {
                worker: pull.worker.clone(),
                groups: pull.groups.iter().cloned().collect(),
                subscriptions: BTreeMap::from([(pull.queue.clone(), subscription)]),
                silent: false,
                draining: false,
                settles: Vec::new(),
                watching: BTreeMap::new(),
                pending: BTreeMap::new(),
                key: None,
                born: 0,
                away: None,
                maybe: false,
                opening: None,
                pull: Some(call),
            },
        );
        self.absent_since.remove(&(pull.queue.clone(), pull.worker.clone()));
    }

    fn pull_answered(&mut self, call: CallId, tasks: &[Task]) -> Judged {
        let Some(session) = self.pulls.remove(&call) else {
            return Err(self.broken("§7 a pull is answered once", None, format!("{call:?}")));
        };
        self.report.pulled += tasks.len() as u64;
        for task in tasks {
            self.delivered(session, None, task)?;
            let to_all = matches!(self.tasks[&task.task].submit.to, Some(Target::All(_)));
            self.require(
                !to_all,
                "§7 a pull is never a recipient of a task to all",
                Some(task.task),
                || format!("{call:?}"),
            )?;
        }
        let found = self.sessions.get_mut(&session).expect("a pull that waits has a session");
        let worker = found.worker.clone();
        for queue in std::mem::take(&mut found.subscriptions).into_keys() {
            self.absent_since.insert((queue, worker.clone()), self.now);
        }
        Ok(())
    }

    pub(super) fn settle_pulled(&mut self, call: CallId, message: &ClientMessage, shard: &Shard) -> Judged {
        let _ = shard;
        let origin = Origin::Call(call);
        let Some(id) = lease_in(message) else {
            self.want_refusal(&origin, ErrorCode::LeaseLost, lease_given(message).as_ref());
            return Ok(());
        };
        let given = GivenLease::from(id);
        let holder = self.leases.get(&id).filter(|lease| lease.live).map(|lease| lease.session);
        let holder = holder.filter(|id| self.sessions.get(id).is_some_and(|s| s.pull.is_some()));
        let verb = match message {
            ClientMessage::Ack(_) => Some(Verb::Ack),
            ClientMessage::Nack(_) => Some(Verb::Nack),
            ClientMessage::Release(_) => Some(Verb::Release),
            ClientMessage::Cancelled(_) => Some(Verb::Cancelled),
            _ => None,
        };
        let Some(session) = holder else {
            match self.pulled.get(&id).filter(|(before, _)| Some(*before) == verb) {
                Some((_, turn)) => {
                    let turn = *turn;
                    self.want(
                        &origin,
                        Wanted::Settled { lease: given, outcome: SettleOutcome::Already, turn },
                    );
                }
                None => self.want_refusal(&origin, ErrorCode::LeaseLost, Some(&given)),
            }
            return Ok(());
        };
        // As the one that holds it would say it.
        let said = Origin::Session(session, Some(RequestId::Integer(0)));
        let before = self.due_answers.len();
        self.said(&said, message, self.now, shard)?;
        for expect in &mut self.due_answers[before..] {
            expect.origin = origin.clone();
        }
        let found = self.sessions.get_mut(&session).expect("it holds the lease");
        if let Some(wanted) = found.pending.remove(&RequestId::Integer(0)) {
            self.want(&origin, wanted);
        }
        if let Some(settled) = self.leases[&id].settled {
            self.pulled.insert(id, settled);
        }
        Ok(())
    }
}

fn lease_given(message: &ClientMessage) -> Option<GivenLease> {
    let first = |list: &LeaseList| match list {
        LeaseList::One(lease) => Some(lease.clone()),
        LeaseList::Many(leases) => leases.first().cloned(),
    };
    match message {
        ClientMessage::Ack(m) => first(&m.leases),
        ClientMessage::Nack(m) => first(&m.leases),
        ClientMessage::Release(m) => first(&m.leases),
        _ => None,
    }
}
