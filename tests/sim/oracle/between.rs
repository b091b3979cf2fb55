//! What must hold between turns, and what can be looked up.

use super::*;

impl Oracle {
    /// What is due at `horizon` is about to be done.
    pub(crate) fn expiring(&mut self, horizon: u64) {
        self.horizon = horizon;
    }

    /// All that is due at `horizon` has been done.
    pub(crate) fn expired(&mut self, horizon: u64) {
        self.last_expire = self.last_expire.max(horizon);
        self.expire_input = self.input;
        self.activating = false;
        self.lapse(horizon);
        self.pauses_end(horizon);
        let passed = |at: Option<u64>| at.is_some_and(|at| at <= horizon);
        let late = self.leases.iter().find(|(_, l)| {
            l.live && (l.latest.max(l.deadline) <= horizon || passed(l.run_latest) || passed(l.stop))
        });
        if let Some((id, lease)) = late {
            let violation = self.broken(
                "F17 a lease ends at its ack timeout or run limit",
                Some(lease.task),
                format!("{id} is out still"),
            );
            self.judge(Err(violation));
        }
        let (turn, at) = (self.turn, self.now);
        let expires = |t: &Tracked| {
            t.active
                && !t.gone
                && t.over.is_none()
                && t.expires.is_some_and(|at| at <= horizon)
                && !self.is_maybe_over(t)
        };
        let expired: Vec<TaskId> =
            self.tasks.iter().filter(|(_, found)| expires(found)).map(|(id, _)| *id).collect();
        for id in expired {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.over = Some(Over::new(TaskState::Expired, at, turn));
            }
            self.touch_key(id);
        }
    }

    /// After a turn nothing may wait for somebody who has credit for it.
    pub(crate) fn turn_done(&mut self, shard: &Shard) {
        let open: Vec<(SessionId, QueueName)> = self
            .sessions
            .iter()
            .flat_map(|(id, s)| s.subscriptions.keys().map(|queue| (*id, queue.clone())))
            .filter(|(id, queue)| self.is_open(*id, queue))
            .collect();
        if open.is_empty() {
            return;
        }
        for (id, found) in &self.tasks {
            // A payload that is on its way holds up its queue, so that order is kept.
            let lacks = || shard.lacks_payload(&found.submit.queue);
            if self.is_shut(&found.submit.queue) || self.may_be_blocked(*id) || lacks() {
                continue;
            }
            for (index, share) in found.shares.iter().enumerate() {
                if !self.is_ready(found, share) {
                    continue;
                }
                for (session, _) in open.iter().filter(|(_, queue)| *queue == found.submit.queue) {
                    if self.may_take(found, index, *session) {
                        let violation = self.broken(
                            "I7 no task waits while somebody who may take it has credit",
                            Some(*id),
                            format!("{} has credit for it", self.sessions[session].worker),
                        );
                        return self.judge(Err(violation));
                    }
                }
            }
        }
    }

    /// Whether a task to all may have been decided by what only the broker knows: how a recipient stood before a
    /// crash, or that one was absent for too long.
    pub(super) fn is_maybe_over(&self, found: &Tracked) -> bool {
        found.murky || found.shares.iter().any(|share| share.unsure) || self.is_maybe_absent(found)
    }

    /// Whether a recipient may have been given up as absent.
    pub(super) fn is_maybe_absent(&self, found: &Tracked) -> bool {
        !found.recipients.is_empty() && self.now >= found.accepted_at + ABSENT_MS * MS
    }

    /// Looks everything up, as a curious operator would.
    pub(crate) fn probe(&mut self, now: u64, shard: &Shard) {
        self.now = now;
        let judged = self
            .all_visible(shard)
            .and_then(|()| self.counts_agree(shard))
            .and_then(|()| self.explained(shard))
            .and_then(|()| self.leases_agree(shard));
        self.judge(judged);
    }

    /// Remembers what a queue counts, to compare it after an orderly stop.
    pub(crate) fn remember_sums(&mut self, now: u64, shard: &Shard) {
        let views = shard.queue_views(Time(now));
        self.sums_at_stop =
            Some(views.into_iter().map(|view| (view.queue, view.counts.iter().sum())).collect());
    }

    pub(super) fn all_visible(&mut self, shard: &Shard) -> Judged {
        for id in self.by_order.clone() {
            let found = &self.tasks[&id];
            let view = shard.task_view(id, Time(self.now));
            if found.deleted.is_some() {
                self.require(view.is_none(), "§7 a dead letter that was deleted is gone", Some(id), || {
                    format!("{view:?}")
                })?;
                continue;
            }
            if found.gone || found.forgotten {
                continue;
            }
            let keep = self.keep_of(&found.submit.queue);
            let Some(view) = view else {
                let kept_out = match &found.over {
                    _ if found.murky => true,
                    Some(over) => over.state != TaskState::Dead && self.now >= over.at + keep,
                    None => self.is_maybe_over(found),
                };
                self.require(kept_out, "I1 an accepted task never vanishes", Some(id), || {
                    "it cannot be looked up".into()
                })?;
                self.tasks.get_mut(&id).expect("it was found").forgotten = true;
                continue;
            };
            let leased = found.shares.iter().any(|share| share.lease.is_some());
            let absent = self.is_maybe_over(found);
            let right = match &found.over {
                _ if found.murky => true,
                Some(over) => view.state == over.state,
                None if leased => view.state == TaskState::Leased || (absent && view.state.is_final()),
                None => absent || !(view.state.is_final() || view.state == TaskState::Leased),
            };
            self.require(right, "I1 a task's state is what happened to it", Some(id), || {
                format!("it is shown as {}, in truth {:?}, leased {leased}", view.state, found.over)
            })?;
        }
        Ok(())
    }

    pub(super) fn counts_agree(&mut self, shard: &Shard) -> Judged {
        let mut states: BTreeMap<(&QueueName, TaskState), u64> = BTreeMap::new();
        let mut forgotten: BTreeMap<&QueueName, u64> = BTreeMap::new();
        for (id, found) in self.tasks.iter().filter(|(_, found)| !found.gone && found.deleted.is_none()) {
            match shard.task_view(*id, Time(self.now)) {
                Some(view) => *states.entry((&found.submit.queue, view.state)).or_default() += 1,
                None => *forgotten.entry(&found.submit.queue).or_default() += 1,
            }
        }
        for view in shard.queue_views(Time(self.now)) {
            let sum: u64 = view.counts.iter().sum();
            let forgotten = forgotten.get(&view.queue).copied().unwrap_or(0);
            let known: u64 = TaskState::ALL
                .iter()
                .map(|state| states.get(&(&view.queue, *state)).copied().unwrap_or(0))
                .sum();
            let unclear = self.unclear.get(&view.queue).copied().unwrap_or(0);
            let right = (known + forgotten).saturating_sub(unclear)..=known + forgotten;
            self.require(right.contains(&sum), "I6 counts add up to what was accepted", None, || {
                format!(
                    "queue {}: {:?} make {sum}, accepted were {}",
                    view.queue,
                    view.counts,
                    known + forgotten
                )
            })?;
            for state in TaskState::ALL {
                let counted = view.counts[*state as usize];
                let seen = states.get(&(&view.queue, *state)).copied().unwrap_or(0);
                let ended = state.is_final() && *state != TaskState::Dead;
                let right =
                    if ended { counted >= seen && counted <= seen + forgotten } else { counted == seen };
                self.require(right, "I6 counts agree with what can be looked up", None, || {
                    format!(
                        "queue {}: {counted} {state}, seen are {seen}, {forgotten} are no longer kept",
                        view.queue
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Whether every task that exists has ended.
    pub(crate) fn all_over(&self, shard: &Shard) -> bool {
        self.tasks
            .iter()
            .filter(|(_, found)| {
                !found.gone && !found.forgotten && found.deleted.is_none() && found.over.is_none()
            })
            .all(|(id, _)| shard.task_view(*id, Time(self.now)).is_none_or(|view| view.state.is_final()))
    }

    /// What is still open, for a failure's message.
    pub(crate) fn open_tasks(&self) -> Option<TaskId> {
        self.tasks
            .iter()
            .find(|(_, found)| {
                !found.gone && !found.forgotten && found.deleted.is_none() && found.over.is_none()
            })
            .map(|(id, _)| *id)
    }

    /// Every request of a session that lives has been answered, and every watch has its end.
    pub(crate) fn all_answered(&mut self) {
        let mut judged = Ok(());
        for (id, session) in &self.sessions {
            if let Some((reference, wanted)) = session.pending.iter().next() {
                judged = Err(self.broken(
                    "§2 exactly one answer",
                    None,
                    format!("{id:?} never got the answer to {reference:?}: {wanted:?}"),
                ));
            }
            for (task, watching) in &session.watching {
                if watching.told == 0 && !watching.left {
                    judged = Err(self.broken(
                        "§3 one `finished` for each watch",
                        Some(*task),
                        format!("{id:?} never heard the end"),
                    ));
                }
            }
        }
        for (id, call) in &self.calls {
            if call.wanted.is_some() || call.watching.is_some_and(|(_, told)| !told) {
                judged = Err(self.broken(
                    "§3 one `finished` for each watch",
                    call.watching.map(|(task, _)| task),
                    format!("{id:?} never heard the end"),
                ));
            }
        }
        if let Some((call, job)) = self.jobs.iter().find(|(_, job)| job.wanted != Wish::Pulled) {
            judged =
                Err(self.broken("§7 every request is answered once", None, format!("{call:?}: {job:?}")));
        }
        self.judge(judged);
    }

    /// How many tasks are dead letters.
    pub(crate) fn dead(&self, shard: &Shard) -> usize {
        let is_dead = |id: &TaskId| {
            shard.task_view(*id, Time(self.now)).is_some_and(|view| view.state == TaskState::Dead)
        };
        self.tasks.keys().filter(|id| is_dead(id)).count()
    }

    pub(crate) fn now(&mut self, now: u64) {
        self.now = now;
    }
}
