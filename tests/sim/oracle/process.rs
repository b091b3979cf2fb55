//! The process and its disk: what is durable, what a start brings back.

use super::*;

impl Oracle {
    pub(crate) fn begin_turn(&mut self, now: u64) {
        self.now = now;
        self.turn += 1;
    }

    /// All turns up to this one are on disk, and the broker is about to hear it.
    pub(crate) fn stored(&mut self, turn: u64) {
        self.durable_turn = self.durable_turn.max(turn);
        self.activating = true;
    }

    pub(crate) fn all_durable(&mut self) {
        self.durable_turn = self.turn;
    }

    /// The process died, with or without its power.
    pub(crate) fn crashed(&mut self, now: u64, how: &str) {
        self.now = now;
        self.report.crashes += 1;
        self.note(None, || format!("== the broker dies: {how}"));
        self.process_ended();
    }

    /// The process stopped in order.
    pub(crate) fn stopped(&mut self, now: u64) {
        self.now = now;
        self.note(None, || "== the broker has stopped".into());
        self.process_ended();
    }

    pub(super) fn process_ended(&mut self) {
        self.durable_at_death = self.durable_turn;
        self.sessions_wait();
        self.calls.clear();
        self.jobs.clear();
        self.pulls.clear();
        self.pulled.clear();
        self.rooms.clear();
        self.due_stops.clear();
        self.removing.clear();
        self.rings.clear();
        self.absent_since.clear();
        self.due_answers.clear();
        self.leaving.clear();
        self.draining = false;
        self.full = false;
        self.activating = false;
        for lease in self.leases.values_mut() {
            let live = std::mem::replace(&mut lease.live, false);
            let others = std::mem::take(&mut lease.others);
            // Which of them came back after the crash before nobody has said, and now nobody will.
            if live && !others.is_empty() {
                let found = self.tasks.get_mut(&lease.task).expect("it was given");
                self.report.murky += u64::from(!std::mem::replace(&mut found.murky, true));
            }
        }
    }

    /// A process has started and replayed: what it knows settles what was open.
    pub(crate) fn started(&mut self, now: u64, clean: bool, shard: &Shard) {
        self.now = now;
        self.note(None, || {
            format!("== the broker is up, {}", if clean { "after a stop" } else { "after a crash" })
        });
        let judged = self.sessions_return(shard).and_then(|()| self.shapes_return(shard));
        self.judge(judged);
        for id in self.by_order.clone() {
            let judged = self.recovered(id, clean, shard);
            self.judge(judged);
        }
        for lease in self.leases.values_mut().filter(|lease| !lease.live) {
            lease.ended = Some(0);
        }
        // All that was found was made durable.
        self.durable_turn = self.turn;
        self.durable_at_death = self.turn;
        let sums = self.sums_at_stop.take();
        if let Some(sums) = sums.filter(|_| clean) {
            for (queue, sum) in sums {
                let counts = shard.queue_view(&queue, Time(now)).map_or(0, |view| view.counts.iter().sum());
                let judged = self.require(sum == counts, "I6 counts agree across restarts", None, || {
                    format!("queue {queue} counted {sum} tasks before an orderly stop and {counts} after it")
                });
                self.judge(judged);
            }
        }
        let judged = self.counts_agree(shard);
        self.judge(judged);
    }

    pub(super) fn recovered(&mut self, id: TaskId, clean: bool, shard: &Shard) -> Judged {
        let death = self.durable_at_death;
        let now = self.now;
        let view = shard.task_view(id, Time(now));
        let found = &self.tasks[&id];
        let keep = self.keep_of(&found.submit.queue);
        if let Some(turn) = found.deleted {
            let gone = view.is_none();
            self.require(
                gone || turn > death,
                "§7 a dead letter that was deleted is gone",
                Some(id),
                || format!("{view:?}"),
            )?;
            let found = self.tasks.get_mut(&id).expect("it was just found");
            found.deleted = Some(0);
            if gone {
                return Ok(());
            }
            found.deleted = None;
        }
        let found = &self.tasks[&id];
        if found.gone {
            return self.require(
                view.is_none(),
                "I2 nothing exists that was lost before it was confirmed",
                Some(id),
                || "a task that was not there after one start is there after the next".into(),
            );
        }
        let sure = found.sure || found.submit_turn <= death;
        let Some(view) = view else {
            let over = found.over.as_ref();
            let maybe = found.murky || (over.is_none() && self.is_maybe_over(found));
            let kept_out = over.is_some_and(|over| now >= over.at + keep) || found.forgotten || maybe;
            if sure && !kept_out {
                let what = if found.confirmed { "a confirmed task" } else { "a task that was on disk" };
                return Err(self.broken(
                    "I1 no confirmed task is lost",
                    Some(id),
                    format!("after the start {what} is not there"),
                ));
            }
            let found = self.tasks.get_mut(&id).expect("it was just found");
            found.gone = !sure;
            found.forgotten = sure;
            return Ok(());
        };
        let final_now = view.state.is_final();
        let expired = view.state == TaskState::Expired && found.expires.is_some_and(|at| at <= now);
        let stopping = found.cancelling;
        let redriven = found.redriven.is_some_and(|turn| turn > death);
        if let Some(over) = &found.over {
            let same = view.state == over.state || found.murky;
            let expired = expired
                || (redriven && view.state == TaskState::Dead)
                || (stopping.is_some() && matches!(view.state, TaskState::Cancelled | TaskState::Done));
            if !same && (over.turn <= death || over.told || (final_now && !expired)) {
                return Err(self.broken(
                    "I3 a settled task stays settled",
                    Some(id),
                    format!("it was {} on disk and is {} after the start", over.state, view.state),
                ));
            }
        }
        let to_all = !found.recipients.is_empty();
        let absent = to_all && self.may_be_absent(found);
        let unsure = found.shares.iter().any(|share| share.unsure);
        let decided =
            matches!(found.submit.to, Some(Target::All(_))) && self.verdict_of(found) == Some(view.state);
        let unredriven = redriven && view.state == TaskState::Dead;
        if let Some(stopping) = stopping.filter(|_| found.over.is_none() && !found.murky) {
            self.require(
                stopping.turn > death || final_now,
                "§4 what was cancelled stays cancelled",
                Some(id),
                || format!("it is {} after the start", view.state),
            )?;
        }
        let stopped = stopping.is_some() && view.state == TaskState::Cancelled;
        let expired = expired || decided || unredriven || stopped || found.murky;
        if found.over.is_none() && final_now && !expired && !absent && !unsure {
            return Err(self.broken(
                "I1 a task ends by its workers' doing",
                Some(id),
                format!("nobody ended it and it is {} after the start", view.state),
            ));
        }
        let turn = self.turn;
        let found = self.tasks.get_mut(&id).expect("it was just found");
        found.sure = true;
        found.unclean |= !clean;
        found.active = true;
        // The first input of the new process is the next.
        found.active_input = self.input + 1;
        if found.over.as_ref().is_none_or(|over| over.state != view.state) && final_now {
            let error = view.error.as_ref().map(|error| error.as_str().to_owned());
            let error = error.filter(|_| view.state == TaskState::Cancelled);
            // When it ended only the broker knows.
            let at = if to_all { found.accepted_at } else { now };
            let at = found.over.as_ref().map_or(at, |over| over.at);
            found.over = Some(Over { result: view.result.clone(), error, ..Over::new(view.state, at, turn) });
        }
        if found.over.as_ref().is_some_and(|over| over.state != view.state) {
            found.over = None;
        }
        found.cancelling = found.cancelling.filter(|_| final_now);
        if to_all && redriven {
            found.murky = true;
        }
        found.redriven = None;
        let back = found.over.is_none() || !final_now;
        let mut wrong = None;
        for (index, share) in found.shares.iter_mut().enumerate() {
            share.lease = None;
            share.free = 0;
            share.avoid = None;
            if share.from_turn > death {
                share.from = 0;
            }
            share.by = share.by.max(if share.by == 0 { 0 } else { now });
            if back && share.ended.as_ref().is_some_and(|ended| ended.cancelled) {
                share.ended = None;
            }
            if unredriven && !to_all {
                share.charges = std::mem::take(&mut share.past);
            }
            if !to_all {
                let past = share.past.len();
                let found_less = view.history.len() < past;
                if found_less
                    && share.past.iter().filter(|charge| charge.turn <= death).count() <= view.history.len()
                {
                    // Both the redrive and what it undid were lost.
                    let mut all = std::mem::take(&mut share.past);
                    all.truncate(view.history.len());
                    share.charges = all;
                    continue;
                }
                let Some(known) = view.history.len().checked_sub(past) else {
                    wrong =
                        Some(format!("{past} attempts failed before a redrive, {:?} are told", view.history));
                    continue;
                };
                let sure = share.charges.iter().filter(|charge| charge.turn <= death).count();
                if found.murky {
                    continue;
                }
                if known < sure || known > share.charges.len() {
                    wrong = Some(format!(
                        "{} failed attempts happened, {sure} of them on disk; after the start there are {known}",
                        share.charges.len()
                    ));
                }
                share.charges.truncate(known);
                for (charge, told) in share.charges.iter().zip(&view.history[past..]) {
                    if charge.failure != told.reason || charge.worker != told.worker {
                        wrong = Some(format!("the history says {told:?}, it was {charge:?}"));
                    }
                }
                if found.over.is_none() {
                    share.ended = None;
                }
                continue;
            }
            let name = &found.recipients[index];
            let known = view.history.iter().filter(|attempt| attempt.worker.as_ref() == Some(name)).count();
            let sure = share.charges.iter().filter(|charge| charge.turn <= death).count();
            // What a task to all has ended with tells of its first recipient alone.
            let past = share.past.len();
            let known = known.saturating_sub(past);
            if found.over.is_none() && !found.murky {
                if known < sure || known > share.charges.len() {
                    wrong = Some(format!(
                        "recipient {name} failed {} times, {sure} on disk; after the start {known}",
                        share.charges.len()
                    ));
                }
                share.charges.truncate(known);
                if let Some(ended) = &share.ended
                    && ended.turn > death
                {
                    share.unsure = true;
                }
            }
        }
        for charge in
            found.shares.iter_mut().flat_map(|share| share.charges.iter_mut().chain(&mut share.past))
        {
            charge.turn = 0;
        }
        if let Some(over) = &mut found.over {
            // What ended while the broker was away is written in its first turn.
            over.turn = if over.turn == turn { turn + 1 } else { 0 };
        }
        match wrong {
            Some(what) => Err(self.broken("I6 attempts are counted across restarts", Some(id), what)),
            None => self.lease_returns(id, &view),
        }
    }

    pub(super) fn may_be_absent(&self, found: &Tracked) -> bool {
        let ready = |share: &Share| share.ended.is_none() && (share.lease.is_none());
        found.shares.iter().any(ready) && self.now >= found.accepted_at + ABSENT_MS * MS
    }
}
