//! Sessions that may be resumed: who they are, what they keep, and what a restart leaves of them.

use super::*;

impl Oracle {
    pub(super) fn opened(
        &mut self,
        id: SessionId,
        hello: &Hello,
        reference: Option<&RequestId>,
        made_up_name: &WorkerName,
        resume_key: u128,
    ) {
        let token = match &hello.resume {
            Some(Resume::Token(token)) => u128::from_str_radix(token.expose(), 16).ok(),
            _ => None,
        };
        let asked = matches!(hello.resume, Some(Resume::Wanted(true) | Resume::Token(_)));
        let mut old = token.and_then(|key| {
            self.sessions.iter().find(|(_, session)| session.key == Some(key)).map(|(id, _)| *id)
        });
        let mut maybe = false;
        let name = hello.worker.clone().unwrap_or_else(|| made_up_name.clone());
        if let Some(found) = old.filter(|old| self.sessions[old].maybe) {
            // The broker may know it or not: what is held under its name may be anybody's.
            let worker = self.sessions[&found].worker.clone();
            for other in self.named(&worker).into_iter().chain(self.named(&name)) {
                self.blur(other);
            }
            (old, maybe) = (None, true);
        }
        let worker = match old {
            Some(old) => self.sessions[&old].worker.clone(),
            None => name,
        };
        self.note(None, || {
            format!("{id:?} says hello as {worker}, groups {:?}, taking up {old:?} {maybe}", hello.groups)
        });
        if old.is_none() {
            for other in self.named(&worker) {
                self.end_session(other, false);
            }
        }
        let key = (asked && self.window_ms > 0).then_some(resume_key);
        let (key, born) = match old {
            Some(old) => (self.sessions[&old].key, self.sessions[&old].born),
            None => (key, self.turn),
        };
        let mut pending = BTreeMap::new();
        if let Some(reference) = reference {
            pending.insert(reference.clone(), Wanted::Welcome);
        }
        let settles = old.map(|old| self.sessions[&old].settles.clone()).unwrap_or_default();
        self.sessions.insert(
            id,
            Session {
                worker,
                groups: hello.groups.iter().cloned().collect(),
                subscriptions: BTreeMap::new(),
                silent: false,
                draining: false,
                settles,
                watching: BTreeMap::new(),
                pending,
                key,
                born,
                away: None,
                maybe: false,
                opening: Some(Opening { old, in_flight: hello.in_flight.clone(), key: token, maybe }),
                pull: None,
            },
        );
    }

    fn named(&self, worker: &WorkerName) -> Vec<SessionId> {
        let named =
            |(_, session): &(&SessionId, &Session)| session.worker == *worker && session.pull.is_none();
        self.sessions.iter().filter(named).map(|(id, _)| *id).collect()
    }

    /// What a session holds is no longer known.
    fn blur(&mut self, id: SessionId) {
        if self.sessions.remove(&id).is_none() {
            return;
        }
        for lease in self.leases.values_mut().filter(|lease| lease.live && lease.session == id) {
            lease.live = false;
            let found = self.tasks.get_mut(&lease.task).expect("it was given");
            found.shares[lease.share].lease = None;
            self.report.murky += u64::from(!std::mem::replace(&mut found.murky, true));
        }
    }

    /// Judges what a welcome says was kept, and moves it.
    pub(super) fn welcomed(&mut self, id: SessionId, m: &Welcome) -> Judged {
        let found = self.sessions.get_mut(&id).expect("it was found");
        let Some(opening) = found.opening.take() else {
            return Err(self.broken("§4 one welcome", None, format!("{id:?} is welcomed twice")));
        };
        let Opening { old, in_flight, key, maybe } = opening;
        self.note(None, || format!("{id:?} is told {m:?}"));
        let promise = "§5 a session that is resumed keeps what it names and still has";
        if maybe && m.resumed {
            let found = self.sessions.get_mut(&id).expect("it was found");
            (found.key, found.worker) = (key, m.worker.clone());
        }
        let resumed = old.is_some() || (maybe && m.resumed);
        self.require(m.resumed == resumed, promise, None, || {
            format!("{id:?} took up {old:?} and is told resumed {}", m.resumed)
        })?;
        let found = &self.sessions[&id];
        let token = found.key.map(|key| format!("{key:032x}"));
        let told = m.resume.as_ref().map(|token| token.expose().to_owned());
        self.require(token == told && found.worker == m.worker, promise, None, || {
            format!(
                "{id:?}: token {told:?}, expected {token:?}; worker {}, expected {}",
                m.worker, found.worker
            )
        })?;
        let mut kept: Vec<LeaseId> = Vec::new();
        let mut dropped: Vec<LeaseId> = Vec::new();
        let named: Vec<LeaseId> = in_flight.iter().filter_map(GivenLease::id).collect();
        if let Some(old) = old {
            let held: Vec<LeaseId> =
                self.leases.iter().filter(|(_, l)| l.live && l.session == old).map(|(id, _)| *id).collect();
            for mut lease in held {
                let others = std::mem::take(&mut self.leases.get_mut(&lease).expect("it is held").others);
                if let Some(other) = others.iter().find(|other| m.kept.contains(other)) {
                    self.instead(lease, *other);
                    lease = *other;
                }
                self.leases.get_mut(&lease).expect("it is held").session = id;
                // It may have been another that came back, which it does not name.
                let is_sure = others.is_empty() || m.kept.contains(&lease);
                if named.contains(&lease) && is_sure { kept.push(lease) } else { dropped.push(lease) }
            }
            self.sessions.remove(&old);
            self.leave_rooms(old);
            self.report.resumed += 1;
        }
        // Of what nobody knows, the broker says.
        for lease in &m.kept {
            if let Some(found) = self.leases.get_mut(lease)
                && !kept.contains(lease)
                && named.contains(lease)
                && found.key.is_some()
                && found.key == self.sessions[&id].key
                && self.tasks[&found.task].murky
            {
                (found.live, found.session) = (true, id);
                (found.settled, found.ended, found.stop) = (None, None, None);
                found.latest = found.given_deadline.max(self.now + self.window_ms * MS);
                found.run_latest = found.run_latest.map(|at| at.max(self.now + at));
                let (task, share) = (found.task, found.share);
                self.tasks.get_mut(&task).expect("it was given").shares[share].lease = Some(*lease);
                kept.push(*lease);
            }
        }
        kept.sort_unstable();
        let mut told = m.kept.clone();
        told.sort_unstable();
        self.report.kept += told.len() as u64;
        self.require(
            kept == told,
            promise,
            kept.first().and_then(|l| Some(self.leases.get(l)?.task)),
            || format!("{id:?} is told {told:?}, has {kept:?}"),
        )?;
        let lost: Vec<String> = in_flight
            .iter()
            .filter(|given| given.id().is_none_or(|id| !kept.contains(&id)))
            .map(|given| taskyard_proto::message::lease_text(given).as_str().to_owned())
            .collect();
        let told: Vec<String> = m.lost.iter().map(|text| text.as_str().to_owned()).collect();
        self.require(lost == told, "§5 what a session names and has not is lost", None, || {
            format!("{id:?} is told {told:?}, it is {lost:?}")
        })?;
        // What it did not name goes on, free.
        for lease in dropped {
            let (task, share) = (self.leases[&lease].task, self.leases[&lease].share);
            self.release_lease(lease);
            self.returned(task, share, None, 0);
        }
        Ok(())
    }

    /// Of two leases that may have come back it was the other.
    fn instead(&mut self, lease: LeaseId, other: LeaseId) {
        let (task, share) = (self.leases[&lease].task, self.leases[&lease].share);
        let window = self.window_ms * MS;
        let found = self.leases.get_mut(&lease).expect("it was given");
        let (session, by) = (found.session, found.latest.max(self.now + window));
        found.live = false;
        let found = self.leases.get_mut(&other).expect("it was given");
        (found.live, found.session, found.settled, found.ended) = (true, session, None, None);
        found.latest = by.max(found.given_deadline);
        self.tasks.get_mut(&task).expect("it was given").shares[share].lease = Some(other);
    }

    /// A socket has ended, and no `bye` came.
    pub(super) fn socket_ended(&mut self, id: SessionId) {
        let until = self.now + self.window_ms * MS;
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.key.is_none() {
            return self.end_session(id, false);
        }
        if session.away.is_some() {
            return;
        }
        session.away = Some(until);
        session.silent = false;
        session.watching.clear();
        session.pending.clear();
        let worker = session.worker.clone();
        for queue in std::mem::take(&mut session.subscriptions).into_keys() {
            self.absent_since.insert((queue, worker.clone()), now);
        }
        self.leave_rooms(id);
    }

    /// Those who were not resumed in time are lost.
    pub(super) fn lapse(&mut self, horizon: u64) {
        let late: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.away.is_some_and(|until| until <= horizon))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end_session(id, false);
        }
    }

    /// A task goes to somebody, which it may because whoever had it did not come back in time.
    pub(super) fn make_way(&mut self, id: TaskId) {
        let Some(found) = self.tasks.get(&id) else { return };
        let key = found.submit.order_key.clone();
        let queue = found.submit.queue.clone();
        let horizon = self.horizon;
        let limited = self.shapes.get(&queue).is_some_and(|shape| shape.settings.max_leased.is_some());
        let late: BTreeSet<SessionId> = self
            .leases
            .values()
            .filter(|lease| lease.live)
            .filter(|lease| {
                let of = &self.tasks[&lease.task].submit;
                let same_key = of.order_key.is_some() && of.order_key == key;
                lease.task == id || of.queue == queue && (same_key || limited)
            })
            .map(|lease| lease.session)
            .filter(|id| self.sessions.get(id).is_some_and(|s| s.away.is_some_and(|until| until <= horizon)))
            .collect();
        for session in late {
            self.end_session(session, false);
        }
        self.spare(id);
    }

    // --- Restarts ---------------------------------------------------------------------------

    /// The process has ended: its sessions wait for the next.
    pub(super) fn sessions_wait(&mut self) {
        let death = self.durable_at_death;
        let mut waiting: Vec<Session> = Vec::new();
        for (_, mut session) in std::mem::take(&mut self.sessions) {
            if session.key.is_some() && session.opening.is_none() {
                session.maybe |= session.born > death;
                waiting.push(session);
            }
        }
        let buried = std::mem::take(&mut self.buried);
        for Buried { key, worker, born, .. } in buried.into_iter().filter(|buried| buried.ended > death) {
            waiting.push(Session {
                worker,
                groups: BTreeSet::new(),
                subscriptions: BTreeMap::new(),
                silent: false,
                draining: false,
                settles: Vec::new(),
                watching: BTreeMap::new(),
                pending: BTreeMap::new(),
                key: Some(key),
                born,
                away: None,
                maybe: true,
                opening: None,
                pull: None,
            });
        }
        for mut session in waiting {
            session.subscriptions.clear();
            session.watching.clear();
            session.pending.clear();
            session.settles.clear();
            (session.silent, session.draining, session.away) = (false, false, Some(0));
            self.next_restored += 1;
            self.sessions.insert(SessionId(self.next_restored), session);
        }
    }

    /// The next process is ready: which sessions it has, and what they hold.
    pub(super) fn sessions_return(&mut self, shard: &Shard) -> Judged {
        let until = self.now + self.window_ms * MS;
        let away: Vec<WorkerName> =
            shard.worker_views(Time(self.now)).into_iter().map(|view| view.worker).collect();
        let known: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in known {
            let session = self.sessions.get_mut(&id).expect("it was just found");
            let here = away.contains(&session.worker);
            session.away = Some(until);
            let (sure, worker) = (!session.maybe, session.worker.clone());
            if !here {
                self.sessions.remove(&id);
                self.require(
                    !sure || self.window_ms == 0,
                    "§5 a session that may be resumed waits for that also across a restart",
                    None,
                    || format!("{worker} does not wait after the start"),
                )?;
            }
        }
        // One name is one session's: where one is sure, the others are not.
        let sure: Vec<WorkerName> =
            self.sessions.values().filter(|s| !s.maybe).map(|s| s.worker.clone()).collect();
        self.sessions.retain(|_, session| !session.maybe || !sure.contains(&session.worker));
        for session in self.sessions.values_mut() {
            session.born = 0;
        }
        Ok(())
    }

    /// Which lease of a task came back with its session, if the broker shows it leased.
    pub(super) fn lease_returns(&mut self, id: TaskId, view: &taskyard::core::view::TaskView) -> Judged {
        let (death, now) = (self.durable_at_death, self.now);
        let window = now + self.window_ms * MS;
        let found = &self.tasks[&id];
        if found.murky {
            return Ok(());
        }
        let to_all = !found.recipients.is_empty();
        let by_key: BTreeMap<u128, SessionId> =
            self.sessions.iter().filter_map(|(id, session)| Some((session.key?, *id))).collect();
        let may = |lease: &&Lease| {
            lease.task == id
                && lease.key.is_some_and(|key| by_key.contains_key(&key))
                && lease.ended.is_none_or(|turn| turn > death)
        };
        let candidates: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| may(lease)).map(|(id, _)| *id).collect();
        let is_sure = |lease: &LeaseId| {
            let lease = &self.leases[lease];
            lease.turn <= death
                && lease.ended.is_none()
                && lease.key.is_some_and(|key| !self.sessions[&by_key[&key]].maybe)
        };
        let stopping = found.cancelling.is_some();
        let over = found.over.is_some() || view.state.is_final();
        let leased = view.state == TaskState::Leased;
        let come_back: Vec<LeaseId> = if to_all {
            let redriven = found.shares.iter().any(|share| !share.past.is_empty());
            if candidates.iter().any(|lease| !is_sure(lease)) || (stopping && !over) || redriven {
                let found = self.tasks.get_mut(&id).expect("it was found");
                self.report.murky += u64::from(!std::mem::replace(&mut found.murky, true));
                return Ok(());
            }
            if over {
                return Ok(());
            }
            candidates.clone()
        } else {
            let sure = candidates.iter().copied().find(is_sure).filter(|_| !stopping && !over);
            let promise = "§5 a lease that reached the log comes back with its session";
            self.require(sure.is_none() || leased, promise, Some(id), || {
                format!("{sure:?} was live, and the task is {} after the start", view.state)
            })?;
            self.require(
                !leased || !candidates.is_empty(),
                "§1 who may not be resumed keeps nothing across a restart",
                Some(id),
                || "the task is leased after the start".into(),
            )?;
            if !leased {
                return Ok(());
            }
            let attempt = view.history.len() as u64 - found.shares[0].past.len() as u64 + 1;
            let mut fitting: Vec<LeaseId> = match sure {
                Some(sure) if candidates.len() == 1 => vec![sure],
                _ => candidates.iter().copied().filter(|l| self.leases[l].attempt == attempt).collect(),
            };
            let worker = |lease: &LeaseId| {
                let key = self.leases[lease].key?;
                Some(self.sessions.get(by_key.get(&key)?)?.worker.clone())
            };
            fitting.retain(|lease| worker(lease) == view.worker);
            let Some(best) = fitting.pop() else {
                return Err(self.broken(
                    "§5 a lease comes back with its own session",
                    Some(id),
                    format!("{:?} has it, attempt {attempt}; there were {candidates:?}", view.worker),
                ));
            };
            self.leases.get_mut(&best).expect("it was found").others = fitting;
            vec![best]
        };
        for lease in come_back {
            let found = self.leases.get_mut(&lease).expect("it was found");
            found.live = true;
            found.session = by_key[&found.key.expect("it has one")];
            (found.settled, found.ended, found.stop) = (None, None, None);
            found.latest = found.given_deadline.max(window);
            found.deadline = found.deadline.min(found.latest);
            let limit = self.tasks[&id].submit.timeout_ms.map(|limit| now + limit.get() * MS);
            found.run_latest = limit;
            let share = found.share;
            self.tasks.get_mut(&id).expect("it was found").shares[share].lease = Some(lease);
        }
        Ok(())
    }
}
