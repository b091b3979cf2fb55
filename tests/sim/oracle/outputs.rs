//! What leaves the process: each message is judged by the model before it changes it.

use super::*;

impl Oracle {
    pub(crate) fn output(&mut self, output: &Output) {
        let judged = match output {
            Output::Send { session, reference, on_write, message, .. } => {
                self.sent(*session, reference.as_ref(), *on_write, message)
            }
            Output::Answer { call, message } => self.answered_call(*call, message),
            Output::Report { call, report } => self.reported(*call, report),
            Output::Publish { members, message } => self.said_in_room(members, message),
            Output::Close { session, code, reason } => {
                self.note(None, || format!("{session:?} is closed: {} {reason}", code.0));
                self.require(
                    *code == CloseCode::REPLACED
                        || self.leaving.contains(session)
                        || (*code == CloseCode::REMOVED
                            && (self.removing.contains(session) || session.0 >= 1 << 63)),
                    "§5 a socket is closed only for the reasons that are told",
                    None,
                    || format!("{session:?} closed with {}", code.0),
                )
            }
            Output::Ping { session } => {
                let silent = self.sessions.get(session).is_some_and(|s| s.silent);
                self.require(silent, "§1 only a session whose lease ran out is pinged", None, || {
                    format!("{session:?}")
                })
            }
        };
        self.judge(judged);
    }

    pub(super) fn sent(
        &mut self,
        session: SessionId,
        reference: Option<&RequestId>,
        on_write: Option<LeaseId>,
        message: &ServerMessage,
    ) -> Judged {
        self.mix(message.type_text());
        match message {
            ServerMessage::Task(task) => return self.delivered(session, on_write, task),
            ServerMessage::Revoked(m) => return self.revoked(session, m.lease, m.reason),
            ServerMessage::Event(m) => return self.event(session, m),
            ServerMessage::Stop(m) => return self.told_to_stop(session, m),
            ServerMessage::Finished(m) => {
                self.note(Some(m.task), || format!("{session:?} is told {m:?}"));
                let open = match self.sessions.get_mut(&session).and_then(|s| s.watching.get_mut(&m.task)) {
                    Some(watching) if watching.told < watching.asked => {
                        watching.told += 1;
                        m.seq > watching.last_seq || watching.again
                    }
                    _ => {
                        return Err(self.broken(
                            "§3 one `finished` for each watch",
                            Some(m.task),
                            format!("{session:?} did not ask for it, or heard it before"),
                        ));
                    }
                };
                self.require(open, "§3 seq grows", Some(m.task), || format!("finished has seq {}", m.seq))?;
                return self.finished(m);
            }
            ServerMessage::GoingAway(_) => return Ok(()),
            _ => {}
        }
        if self.leaving.contains(&session) {
            return Ok(());
        }
        let Some(found) = self.sessions.get_mut(&session).filter(|found| found.away.is_none()) else {
            // Its answer was on the way when it left.
            return Ok(());
        };
        let wanted = reference.and_then(|reference| found.pending.remove(reference));
        if let ServerMessage::Welcome(m) = message {
            self.welcomed(session, m)?;
        }
        let origin = Origin::Session(session, reference.cloned());
        if reference.is_some() && wanted.is_none() {
            return Err(self.broken(
                "§2 exactly one answer",
                None,
                format!("{origin:?} is answered twice: {message:?}"),
            ));
        }
        self.answer(origin, wanted, message)
    }

    pub(super) fn answered_call(&mut self, call: CallId, message: &ServerMessage) -> Judged {
        self.mix(message.type_text());
        let Some(found) = self.calls.get_mut(&call) else { return Ok(()) };
        if let ServerMessage::Finished(m) = message {
            self.note(Some(m.task), || format!("{call:?} is told {m:?}"));
            let found = self.calls.get_mut(&call).expect("it was found");
            let open = match &mut found.watching {
                Some((task, told)) => *task == m.task && !std::mem::replace(told, true),
                None => false,
            };
            self.require(open, "§3 one `finished` for each watch", Some(m.task), || format!("{call:?}"))?;
            return self.finished(m);
        }
        let wanted = found.wanted.take();
        if let (ServerMessage::Error(error), None) = (message, &wanted)
            && error.code == ErrorCode::NotFound
            && let Some((task, told)) = &mut found.watching
            && error.task.0 == Some(*task)
        {
            // It was sent again when its first was no longer kept.
            *told = true;
            return Ok(());
        }
        if wanted.is_none() {
            return Err(self.broken(
                "§2 exactly one answer",
                None,
                format!("{call:?} is answered twice: {message:?}"),
            ));
        }
        self.answer(Origin::Call(call), wanted, message)
    }

    pub(super) fn answer(
        &mut self,
        origin: Origin,
        wanted: Option<Wanted>,
        message: &ServerMessage,
    ) -> Judged {
        match message {
            ServerMessage::Error(error) => self.refused(&origin, wanted, error),
            ServerMessage::Accepted(m) => {
                self.note(Some(m.task), || format!("{origin:?} is told {m:?}"));
                let id = m.task;
                let Some(found) = self.tasks.get_mut(&id) else {
                    return Err(self.broken("I2", Some(id), "accepted a task that was never submitted"));
                };
                let meant = match wanted {
                    Some(Wanted::Accepted(task)) => task == id && !m.duplicate,
                    Some(Wanted::Duplicate(task)) => task == id && m.duplicate,
                    _ => false,
                };
                self.report.duplicates += u64::from(m.duplicate);
                let durable =
                    m.duplicate || found.submit.confirm.unwrap_or(Confirm::Durable) == Confirm::Durable;
                found.told_accepted = true;
                found.confirmed |= durable;
                let on_disk = found.submit_turn <= self.durable_turn || found.sure;
                if let Origin::Session(session, _) = &origin
                    && let Some(watching) =
                        self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&id))
                {
                    watching.waits_for_accepted = false;
                }
                self.report.confirmed += u64::from(durable);
                self.require(meant, "§2 an answer answers its question", Some(id), || {
                    format!("{origin:?} wanted {wanted:?}")
                })?;
                self.require(
                    !durable || on_disk,
                    "promise 1: accepted only once it survives a power cut",
                    Some(id),
                    || "`accepted` was said before the task was synced".into(),
                )
            }
            ServerMessage::Settled(m) => {
                let told = |wanted: &Wanted| match wanted {
                    Wanted::Settled { lease, outcome, .. } => {
                        m.outcome.0 == Some(*outcome)
                            && m.lease.0 == Some(taskyard_proto::message::lease_text(lease))
                            && m.results.0.is_none()
                    }
                    Wanted::SettledMany { results, .. } => m.results.0.as_ref().is_some_and(|told| {
                        told.len() == results.len()
                            && told.iter().zip(results).all(|(told, (lease, outcome))| {
                                told.outcome == *outcome
                                    && told.lease == taskyard_proto::message::lease_text(lease)
                            })
                    }),
                    _ => false,
                };
                let right = wanted.as_ref().is_some_and(told);
                self.require(
                    right,
                    "I5 a settle counts with the current lease, and with no other",
                    None,
                    || format!("{origin:?}: expected {wanted:?}, got {m:?}"),
                )?;
                let turn = match wanted {
                    Some(Wanted::Settled { turn, .. } | Wanted::SettledMany { turn, .. }) => turn,
                    _ => 0,
                };
                self.require(
                    turn <= self.durable_turn,
                    "§2 a settle is answered only when it is durable",
                    None,
                    || format!("{origin:?}: {m:?}"),
                )
            }
            ServerMessage::Done(m) if matches!(wanted, Some(Wanted::Cancel { .. })) => {
                self.cancel_answered(&origin, wanted, m.state.0)
            }
            other => {
                let right = matches!(
                    (&wanted, other),
                    (Some(Wanted::Welcome), ServerMessage::Welcome(_))
                        | (Some(Wanted::Subscribed), ServerMessage::Subscribed(_))
                        | (Some(Wanted::Ok | Wanted::Anything), ServerMessage::Done(_))
                        | (Some(Wanted::Pong), ServerMessage::Pong(_))
                        | (None, ServerMessage::Welcome(_) | ServerMessage::Subscribed(_))
                );
                self.require(right, "§2 an answer answers its question", None, || {
                    format!("{origin:?} wanted {wanted:?} and got {other:?}")
                })
            }
        }
    }

    pub(super) fn refused(&mut self, origin: &Origin, wanted: Option<Wanted>, error: &Error) -> Judged {
        let at = self.due_answers.iter().position(|expect| {
            let lease = expect.lease.as_ref().map(taskyard_proto::message::lease_text);
            expect.origin == *origin && expect.code == error.code && lease == error.lease.0
        });
        self.note(None, || format!("{origin:?} is refused: {} {}", error.code, error.message.as_str()));
        match at {
            Some(at) => {
                self.due_answers.remove(at);
                Ok(())
            }
            // What a finished task's keeping makes of a late watch is not foreseen.
            None if error.code == ErrorCode::NotFound && wanted.is_none() => {
                if let (Origin::Session(session, _), Some(task)) = (origin, error.task.0)
                    && let Some(watching) =
                        self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&task))
                {
                    watching.left = true;
                }
                Ok(())
            }
            None if matches!(wanted, Some(Wanted::Anything)) || self.loose_input == self.input => Ok(()),
            None if error.code == ErrorCode::LeaseLost => Err(self.broken(
                "F26 a settle that comes in time counts",
                None,
                format!("{origin:?} wanted {wanted:?}, refused with {error:?}"),
            )),
            None => Err(self.broken(
                "§2 nothing is refused without a reason",
                None,
                format!("{origin:?} wanted {wanted:?}, refused with {error:?}"),
            )),
        }
    }

    pub(super) fn delivered(&mut self, session: SessionId, on_write: Option<LeaseId>, task: &Task) -> Judged {
        let id = task.task;
        self.make_way(id);
        self.report.delivered += 1;
        self.report.redelivered += u64::from(task.redelivered);
        self.note(Some(id), || {
            let flag = if task.redelivered { ", redelivered" } else { "" };
            format!(
                "{session:?} gets {id} attempt {}{flag}, lease {:?}",
                task.attempt,
                task.lease.or(on_write)
            )
        });
        let say = |oracle: &Oracle, promise, what: String| Err(oracle.broken(promise, Some(id), what));
        let Some(found) = self.tasks.get(&id) else {
            return say(self, "I2 nothing is delivered that was never submitted", format!("{id}"));
        };
        if found.submit.payload != task.payload
            || found.submit.headers != task.headers
            || found.submit.queue != task.queue
        {
            return say(self, "I2 what is delivered is what was submitted", format!("{task:?}"));
        }
        if found.gone {
            return say(self, "I2 nothing is delivered that is gone", "it was lost in a crash before".into());
        }
        if found.submit_turn > self.durable_turn && !found.sure && !found.early {
            return say(
                self,
                "promise 6: a task is delivered only once it is durable",
                "it is not on disk yet".into(),
            );
        }
        if let Some(over) = found.over.as_ref().filter(|_| !found.murky) {
            return say(
                self,
                "I3 a finished task is never delivered again",
                format!("it is {} since {} ms", over.state, over.at / MS),
            );
        }
        if found.deleted.is_some() {
            return say(self, "§7 a dead letter that was deleted is gone", String::new());
        }
        if found.cancelling.is_some() && !found.murky {
            return say(self, "§4 what is cancelled is never handed out again", String::new());
        }
        if let Some(what) = self.is_blocked(id).filter(|_| !found.murky) {
            return say(self, "§5 order_key: one at a time, in order of acceptance", what);
        }
        if let Some(what) = self.may_not_pass(&found.submit.queue) {
            return say(self, "§7 what a queue lets through", what);
        }
        let Some(to) = self.sessions.get(&session).filter(|to| to.away.is_none()) else {
            return say(self, "§1 tasks are given to sessions that exist", format!("{session:?} has ended"));
        };
        let index = if matches!(found.submit.to, Some(Target::All(_))) {
            match found.recipients.iter().position(|name| *name == to.worker) {
                Some(index) => index,
                None => {
                    return say(
                        self,
                        "§3 recipients are those subscribed at acceptance",
                        format!("{} was not", to.worker),
                    );
                }
            }
        } else {
            0
        };
        let share = &found.shares[index];
        if let Some(ended) = share.ended.as_ref().filter(|_| !share.unsure && !found.murky) {
            return say(
                self,
                "I3 a settled task is never delivered again",
                format!("recipient {} has ended: {ended:?}", to.worker),
            );
        }
        if let Some(lease) = share.lease.filter(|_| !found.murky) {
            return say(
                self,
                "I5 at most one live lease",
                format!("lease {lease} is out with {:?}", self.leases[&lease].session),
            );
        }
        if share.deliveries > 0 && !task.redelivered {
            return say(
                self,
                "I4 every delivery after the first is flagged",
                format!("it was delivered {} times before", share.deliveries),
            );
        }
        if share.deliveries == 0 && !found.unclean && !found.murky && task.redelivered {
            return say(
                self,
                "I4 what is certainly the first delivery is not flagged",
                "it was never delivered".into(),
            );
        }
        let attempt = share.charges.len() as u64 + 1;
        if task.attempt != attempt && !share.unsure && !found.murky {
            return say(
                self,
                "§1 attempt = charged deliveries + 1",
                format!("told {}, is {attempt}: {:?}", task.attempt, share.charges),
            );
        }
        if task.attempt > u64::from(found.max_attempts) || task.max_attempts != u64::from(found.max_attempts)
        {
            return say(
                self,
                "I6 attempts never exceed max_attempts",
                format!("{} of {}", task.attempt, found.max_attempts),
            );
        }
        let target = match &found.submit.to {
            None | Some(Target::Any | Target::All(_)) => true,
            Some(Target::Group(group)) => to.groups.contains(group),
            Some(Target::Worker { worker, if_absent }) => *worker == to.worker || *if_absent == IfAbsent::Any,
        };
        if !target {
            return say(
                self,
                "§3 a task goes to whom it is for",
                format!("{:?} is not for {}", found.submit.to, to.worker),
            );
        }
        let Some(subscription) = to.subscriptions.get(&task.queue) else {
            return say(
                self,
                "§3 after unsubscribe nothing follows",
                format!("{} is not subscribed to {}", to.worker, task.queue),
            );
        };
        let held = self.held(session, &task.queue);
        if held >= subscription.credit {
            return say(
                self,
                "§3 credit is never exceeded",
                format!("{} holds {held} of {}", to.worker, subscription.credit),
            );
        }
        if to.draining || self.draining {
            return say(self, "§3 after drain nothing follows", to.worker.to_string());
        }
        if to.silent {
            return say(self, "§1 a silent session gets nothing until it is heard", to.worker.to_string());
        }
        if share.avoid.is_some_and(|(whom, until)| whom == session && self.now < until) {
            return say(
                self,
                "§1 a released task is not offered to the same worker for 100 ms",
                to.worker.to_string(),
            );
        }
        if self.now < share.from && !found.murky {
            return say(
                self,
                "§1 a task waits for its time",
                format!("due in {} µs: {:?}", share.from - self.now, share.charges.last()),
            );
        }
        if found.expires.is_some_and(|at| at <= self.last_expire) {
            return say(self, "§1 a task is not delivered after its ttl_ms", String::new());
        }
        let lease = match (task.lease, on_write) {
            (Some(lease), None) if !subscription.auto => lease,
            (None, Some(lease)) if subscription.auto => lease,
            other => {
                return say(self, "§3 a lease is null in mode auto, and only there", format!("{other:?}"));
            }
        };
        if self.leases.contains_key(&lease) {
            return say(self, "promise 4: no lease is given twice", format!("{lease}"));
        }
        if task.ack_timeout_ms * MS != found.ack_timeout || task.priority != u64::from(found.priority) {
            return say(self, "§3 the task message says what was submitted", format!("{task:?}"));
        }
        self.in_order(id, index, session)?;
        if self.sessions[&session].pull.is_none() {
            self.in_turn(id, session)?;
        }

        let (now, input) = (self.now, self.input);
        let explicit = subscription.explicit_start;
        let place = subscription.place;
        let (worker, groups) = (to.worker.clone(), to.groups.clone());
        let (key, pulling) = (to.key.filter(|_| !subscription.auto), to.pull.is_some());
        let turn = self.turn;
        self.hand_out(&task.queue);
        let assign = self.shapes.get(&task.queue).and_then(|shape| shape.settings.assign);
        let found = self.tasks.get_mut(&id).expect("it was found");
        if let Some(old) = found.shares[index].lease.and_then(|old| self.leases.get_mut(&old)) {
            (old.live, old.ended) = (false, Some(turn));
        }
        let run_deadline = found.submit.timeout_ms.map(|limit| now + limit.get() * MS);
        let deadline = now + found.ack_timeout;
        found.sure |= !found.early;
        let share = &mut found.shares[index];
        share.deliveries += 1;
        share.lease = Some(lease);
        share.touched = input;
        share.retrying = false;
        if share.unsure {
            share.unsure = false;
            share.ended = None;
            share.charges.truncate(task.attempt as usize - 1);
        }
        let ring = match &found.submit.to {
            None | Some(Target::Any) => Some((None, Some(place))),
            Some(Target::Group(group)) if groups.contains(group) => Some((Some(group.clone()), Some(place))),
            // Whether it was given as a task to any depends on when its worker left.
            Some(Target::Worker { worker: to, if_absent: IfAbsent::Any }) => {
                Some((None, (*to != worker).then_some(place)))
            }
            _ => None,
        };
        // Whom else than in turn somebody may be chosen for, and when a pull took its own, only the broker knows.
        let odd = found.submit.assign.or(assign).is_some_and(|assign| assign != Assign::RoundRobin);
        let ring = ring.map(|(group, last)| (group, last.filter(|_| !odd && !pulling)));
        if let Some((group, last)) = ring {
            self.rings.insert((task.queue.clone(), group), last);
        }
        let lease_model = Lease {
            task: id,
            share: index,
            session,
            queue: task.queue.clone(),
            deadline,
            run_deadline,
            unstarted: explicit,
            live: true,
            settled: None,
            turn,
            key,
            attempt: task.attempt,
            given_deadline: deadline,
            latest: 0,
            run_latest: run_deadline,
            ended: None,
            stop: None,
            others: Vec::new(),
        };
        self.leases.insert(lease, lease_model);
        Ok(())
    }

    pub(super) fn held(&self, session: SessionId, queue: &QueueName) -> u64 {
        self.leases
            .values()
            .filter(|lease| lease.live && lease.session == session && lease.queue == *queue)
            .count() as u64
    }

    /// Whether a share has certainly been ready since before the current input.
    pub(super) fn is_ready(&self, found: &Tracked, share: &Share) -> bool {
        found.active
            && !found.gone
            && found.over.is_none()
            && share.ended.is_none()
            && !share.unsure
            && share.lease.is_none()
            && (share.by == 0 || (share.by <= self.last_expire && found.active_input <= self.expire_input))
            && found.expires.is_none_or(|at| at > self.now)
            && !self.is_maybe_over(found)
    }

    /// Whether a session certainly may take a share.
    pub(super) fn may_take(&self, found: &Tracked, index: usize, id: SessionId) -> bool {
        let session = &self.sessions[&id];
        let queue = &found.submit.queue;
        let Some(share) = found.shares.get(index) else { return false };
        if share.avoid.is_some_and(|(whom, until)| whom == id && until > self.last_expire) {
            return false;
        }
        // Where a session and pulls have one name, tasks to it are the session's.
        let second = |worker: &WorkerName| {
            let other = |(other, s): (&SessionId, &Session)| {
                *other != id && s.worker == *worker && s.subscriptions.contains_key(queue)
            };
            session.pull.is_some() && self.sessions.iter().any(other)
        };
        match &found.submit.to {
            None | Some(Target::Any) => true,
            Some(Target::Group(group)) => session.groups.contains(group),
            Some(Target::All(_)) if session.pull.is_some() => false,
            Some(Target::Worker { worker, .. }) if second(worker) => false,
            Some(Target::Worker { worker, if_absent }) => {
                session.worker == *worker || (*if_absent == IfAbsent::Any && !self.is_present(queue, worker))
            }
            Some(Target::All(_)) => found.recipients.get(index) == Some(&session.worker),
        }
    }

    /// Promise 7, for a delivery that is about to be noted.
    pub(super) fn in_order(&self, id: TaskId, index: usize, session: SessionId) -> Judged {
        let taken = &self.tasks[&id];
        let fresh = self.activating && taken.active_input == self.input;
        for other_id in &self.by_order {
            let other = &self.tasks[other_id];
            if other.submit.queue != taken.submit.queue || *other_id == id {
                continue;
            }
            let fair = other.priority == taken.priority && self.takes_turns(taken);
            if fair || self.is_aged(&taken.submit.queue) || self.a_pull_may_take(other) {
                continue;
            }
            let sooner = (u8::MAX - other.priority, other.order) < (u8::MAX - taken.priority, taken.order);
            if !sooner {
                continue;
            }
            for (at, share) in other.shares.iter().enumerate() {
                let waited = share.touched < self.input
                    || (fresh
                        && other.active_input == self.input
                        && other.priority == taken.priority
                        && share.by == 0
                        && share.deliveries == 0);
                if waited
                    && self.is_ready(other, share)
                    && self.may_take(other, at, session)
                    && !self.may_be_blocked(*other_id)
                {
                    return Err(self.broken(
                        "promise 7: by priority, then by acceptance; what comes back takes its old place",
                        Some(id),
                        format!(
                            "{} (priority {}, accepted as number {}) was given to {session:?} before {other_id} (priority {}, number {}), share {index}",
                            id, taken.priority, taken.order, other.priority, other.order
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The ring, for a task that has just become durable and goes to any, or to one of a group.
    pub(super) fn in_turn(&self, id: TaskId, session: SessionId) -> Judged {
        let found = &self.tasks[&id];
        if !(self.activating && found.active_input == self.input) || self.is_shaped(found) {
            return Ok(());
        }
        let group = match &found.submit.to {
            None | Some(Target::Any) => None,
            Some(Target::Group(group)) => Some(group.clone()),
            _ => return Ok(()),
        };
        let queue = &found.submit.queue;
        let last = match self.rings.get(&(queue.clone(), group.clone())) {
            Some(None) => return Ok(()),
            Some(Some(last)) => *last,
            None => 0,
        };
        let mut open: Vec<(u64, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, s)| group.as_ref().is_none_or(|group| s.groups.contains(group)))
            .filter(|(id, _)| self.is_open(**id, queue))
            .filter_map(|(id, s)| Some((s.subscriptions.get(queue)?.place, *id)))
            .collect();
        open.sort_unstable();
        let expected = open.iter().find(|(place, _)| *place > last).or(open.first());
        self.require(
            expected.is_some_and(|(_, id)| *id == session),
            "§3 round robin: the first with credit after the last picked",
            Some(id),
            || format!("{session:?} got it; the last was at place {last}, open are {open:?}"),
        )
    }

    pub(super) fn is_open(&self, id: SessionId, queue: &QueueName) -> bool {
        let session = &self.sessions[&id];
        let Some(subscription) = session.subscriptions.get(queue) else { return false };
        !session.silent && !session.draining && !self.draining && self.held(id, queue) < subscription.credit
    }

    pub(super) fn revoked(&mut self, session: SessionId, id: LeaseId, reason: RevokeReason) -> Judged {
        let Some(lease) = self.leases.get(&id) else {
            return Err(self.broken("§3 only a lease is revoked", None, format!("{id} was never given")));
        };
        let (task, share) = (lease.task, lease.share);
        let (live, of, deadline, run_deadline) =
            (lease.live, lease.session, lease.deadline, lease.run_deadline);
        self.note(Some(task), || format!("{session:?} loses lease {id}: {reason}"));
        let same = of == session || of.0 >= 1 << 63;
        let murky = self.tasks[&task].murky;
        self.require((live && same) || murky, "§3 only a live lease is revoked", Some(task), || {
            format!("{id} of {of:?}")
        })?;
        let now = self.now;
        let worker = self.sessions.get(&of).map(|s| s.worker.clone());
        self.release_lease(id);
        match reason {
            RevokeReason::AckTimeout => {
                self.require(
                    self.horizon >= deadline,
                    "promise 3: a lease lasts its ack timeout",
                    Some(task),
                    || format!("{} µs too early, of what has been read", deadline - self.horizon),
                )?;
                if let Some(session) =
                    self.sessions.get_mut(&session).filter(|s| s.away.is_none() && s.pull.is_none())
                {
                    session.silent = true;
                }
                self.charge(task, share, Failure::AckTimeout, worker, None, None, true);
            }
            RevokeReason::RunLimit => {
                self.require(
                    run_deadline.is_some_and(|at| now >= at),
                    "§3 timeout_ms limits a run, and nothing else does",
                    Some(task),
                    || format!("{run_deadline:?}"),
                )?;
                self.charge(task, share, Failure::RunLimit, worker, None, None, true);
            }
            RevokeReason::Expired => {
                let expires = self.tasks[&task].expires;
                self.require(
                    expires.is_some_and(|at| now >= at),
                    "§1 a task expires after its ttl_ms",
                    Some(task),
                    || format!("{expires:?}"),
                )?;
            }
            RevokeReason::Cancelled => {
                let until = self.leases[&id].stop;
                self.require(
                    until.is_some_and(|at| self.horizon >= at) || murky,
                    "§4 a worker that is stopped has its grace",
                    Some(task),
                    || format!("until {until:?}, it is {now}"),
                )?;
                if self.tasks[&task].over.is_none() {
                    self.broken_off(task, share, None);
                }
            }
            RevokeReason::Removed => {
                let removed = self.removing.contains(&of);
                self.require(
                    removed || murky,
                    "§7 only who is removed loses its leases so",
                    Some(task),
                    || format!("{session:?}"),
                )?;
                if self.leases[&id].unstarted {
                    self.returned(task, share, None, 0);
                } else {
                    self.charge(task, share, Failure::WorkerLost, worker, None, None, true);
                }
            }
        }
        Ok(())
    }

    pub(super) fn event(&mut self, session: SessionId, m: &taskyard_proto::Event) -> Judged {
        let id = m.task;
        if self.again.contains(&(Some(session), id)) {
            return Ok(());
        }
        let Some(watching) = self.sessions.get_mut(&session).and_then(|s| s.watching.get_mut(&id)) else {
            return Err(self.broken(
                "§3 events are for those who watch",
                Some(id),
                format!("{session:?}: {m:?}"),
            ));
        };
        let grows = (m.seq > watching.last_seq && watching.told < watching.asked) || watching.again;
        let early = watching.waits_for_accepted;
        watching.last_seq = m.seq;
        self.require(grows, "§3 seq grows, and nothing follows `finished`", Some(id), || format!("{m:?}"))?;
        self.require(!early, "§3 `accepted` precedes the first event", Some(id), || format!("{m:?}"))?;
        let found = &self.tasks[&id];
        self.require(
            m.attempt <= u64::from(found.max_attempts),
            "I6 attempts never exceed max_attempts",
            Some(id),
            || format!("{m:?}"),
        )
    }

    pub(super) fn finished(&mut self, m: &Finished) -> Judged {
        let id = m.task;
        self.report.finished += 1;
        let (turn, now, durable) = (self.turn, self.now, self.durable_turn);
        let to_all = self.tasks.get(&id).is_some_and(|found| matches!(found.submit.to, Some(Target::All(_))));
        let again = self.tasks.get(&id).is_some_and(|found| found.redriven.is_some());
        if to_all && !(again && m.state == TaskState::Dead) {
            self.finished_by_all(m)?;
        }
        let Some(found) = self.tasks.get_mut(&id) else {
            return Err(self.broken("I2", Some(id), "finished a task that was never submitted"));
        };
        let max_attempts = u64::from(found.max_attempts);
        if found.redriven.is_some() && m.state == TaskState::Dead {
            // It was dead when this was written, and has new attempts since.
            return Ok(());
        }
        if found.murky {
            let over = Over { result: m.result.clone(), ..Over::new(m.state, now, turn) };
            found.over.get_or_insert(over).told = true;
            return Ok(());
        }
        let Some(over) = &mut found.over else {
            return Err(self.broken(
                "§3 `finished` is told of what has ended",
                Some(id),
                format!("it has not: {m:?}"),
            ));
        };
        over.told = true;
        let over = over.clone();
        let _ = (turn, now);
        self.require(over.state == m.state, "§3 `finished` says what became of it", Some(id), || {
            format!("{} is told as {}", over.state, m.state)
        })?;
        self.require(
            over.turn <= durable,
            "§2 `finished` is told only when it is durable",
            Some(id),
            || format!("{m:?}"),
        )?;
        if to_all {
            return Ok(());
        }
        let share = &self.tasks[&id].shares[0];
        let attempts = share.charges.len() as u64 + u64::from(m.state == TaskState::Done);
        self.require(
            m.attempts == attempts && attempts <= max_attempts,
            "§1 attempts in `finished` are the charged deliveries",
            Some(id),
            || format!("told {}, is {attempts}", m.attempts),
        )?;
        self.require(m.result == over.result, "§3 the result is the ack's", Some(id), || {
            format!("{:?}", m.result)
        })?;
        let why = share.charges.last().and_then(|charge| charge.error.clone());
        let told = m.error.as_ref().map(|error| error.as_str().to_owned());
        let right = match m.state {
            TaskState::Done => told.is_none(),
            TaskState::Dead => told.is_some() && (why.is_none() || told == why),
            TaskState::Cancelled => told == over.error,
            _ => told.is_some(),
        };
        self.require(right, "§3 the error says why", Some(id), || format!("told {told:?}, was {why:?}"))
    }

    /// The recipients' outcomes, against what they did.
    pub(super) fn finished_by_all(&mut self, m: &Finished) -> Judged {
        let id = m.task;
        let promise = "§3 a task to all tells what became of each recipient";
        let found = &self.tasks[&id];
        let (Some(list), Some(delivered), Some(acked), Some(failed)) =
            (&m.recipients, m.delivered, m.acked, m.failed)
        else {
            return Err(self.broken(promise, Some(id), format!("{m:?}")));
        };
        let all = found.shares.len() as u64;
        self.require(list.0.len() as u64 == all, promise, Some(id), || {
            format!("{} of {all} recipients", list.0.len())
        })?;
        let names: BTreeSet<&WorkerName> = list.0.iter().map(|outcome| &outcome.worker).collect();
        self.require(
            names.len() as u64 == all && found.recipients.iter().all(|name| names.contains(name)),
            promise,
            Some(id),
            || format!("{list:?}"),
        )?;
        let failures_first = list.0.is_sorted_by_key(|outcome| outcome.state == TaskState::Done);
        self.require(failures_first, promise, Some(id), || "failures are first".into())?;
        let count = |state| list.0.iter().filter(|outcome| outcome.state == state).count() as u64;
        let expired = found.expires.is_some_and(|at| self.now >= at);
        self.require(count(TaskState::Done) == acked, promise, Some(id), || {
            format!("{acked} acked: {list:?}")
        })?;
        let attempts: u64 = list.0.iter().map(|outcome| outcome.attempts).sum();
        self.require(m.attempts == attempts, promise, Some(id), || {
            format!("{} attempts in all: {list:?}", m.attempts)
        })?;
        if found.murky {
            return Ok(());
        }
        let stopped = if found.cancelling.is_some() { count(TaskState::Cancelled) } else { 0 };
        let late = count(TaskState::Expired);
        self.require(count(TaskState::Dead) + stopped + late == failed, promise, Some(id), || {
            format!("{failed} failed: {list:?}")
        })?;
        for outcome in &list.0 {
            self.outcome_is_true(id, outcome)?;
        }
        let handed: u64 = found.shares.iter().filter(|share| share.deliveries > 0).count() as u64;
        // Whether one was handed out shortly before a crash, nobody may know.
        let right = if found.unclean { (acked..=all).contains(&delivered) } else { delivered == handed };
        self.require(right, promise, Some(id), || {
            format!("delivered is told as {delivered}, {handed} recipients got it, {acked} acked")
        })?;
        let complete = found.submit.complete.unwrap_or_default();
        let state = verdict(complete, all, acked, failed);
        let right = state == Some(m.state)
            || (m.state == TaskState::Expired && expired)
            || (m.state == TaskState::Cancelled && found.cancelling.is_some());
        self.require(right, "§3 all, any and quorum decide", Some(id), || {
            format!(
                "{complete:?} of {all}, {acked} acked and {failed} failed make {state:?}, told {}",
                m.state
            )
        })?;
        if self.tasks[&id].over.is_none() {
            // An absent recipient has decided it; when, only the broker knows.
            let over = Over { told: true, ..Over::new(m.state, self.now, 0) };
            self.tasks.get_mut(&id).expect("it was found").over = Some(over);
        }
        Ok(())
    }

    pub(super) fn outcome_is_true(&self, id: TaskId, outcome: &RecipientOutcome) -> Judged {
        let found = &self.tasks[&id];
        let at =
            found.recipients.iter().position(|name| *name == outcome.worker).expect("names were compared");
        let share = &found.shares[at];
        let ended = share.ended.as_ref();
        let absent = outcome.error.as_ref().is_some_and(|error| error.as_str() == "absent");
        let right = match outcome.state {
            TaskState::Done => {
                ended.is_some_and(|ended| ended.done && ended.result == outcome.result)
                    && outcome.error.is_none()
                    && outcome.attempts == share.charges.len() as u64 + 1
            }
            TaskState::Dead if absent => {
                share.lease.is_none() && self.now >= found.accepted_at + ABSENT_MS * MS
            }
            TaskState::Dead => {
                ended.is_some_and(|ended| !ended.done && !ended.cancelled)
                    && outcome.attempts == share.charges.len() as u64
            }
            TaskState::Cancelled if ended.is_some_and(|ended| ended.cancelled) => true,
            _ => ended.is_none() || share.unsure,
        };
        self.require(right, "§3 a task to all tells what became of each recipient", Some(id), || {
            format!("{outcome:?}, in truth {share:?}")
        })
    }
}
