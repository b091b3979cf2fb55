//! The life of a task in the model, as section 1 of PROTOCOL.md tells it.

use super::*;

impl Oracle {
    pub(super) fn release_lease(&mut self, id: LeaseId) {
        let (input, turn) = (self.input, self.turn);
        let lease = self.leases.get_mut(&id).expect("a lease that ends was given");
        lease.live = false;
        lease.ended = Some(turn);
        let task = lease.task;
        let share = &mut self.tasks.get_mut(&task).expect("it was given").shares[lease.share];
        share.lease = None;
        share.touched = input;
        self.touch_key(task);
    }

    pub(super) fn acked(&mut self, id: TaskId, share: usize, result: &Payload) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if found.over.is_some() {
            return;
        }
        found.shares[share].ended =
            Some(Ended { done: true, cancelled: false, turn, result: result.clone() });
        found.shares[share].unsure = false;
        if found.recipients.is_empty() {
            found.over = Some(Over { result: result.clone(), ..Over::new(TaskState::Done, now, turn) });
        } else {
            self.decide(id);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is a fact of the failure")]
    pub(super) fn charge(
        &mut self,
        id: TaskId,
        share: usize,
        failure: Failure,
        worker: Option<WorkerName>,
        error: Option<String>,
        delay_ms: Option<u64>,
        retry: bool,
    ) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if found.over.is_some() {
            return;
        }
        if found.cancelling.is_some() {
            found.shares[share].charges.push(Charge { turn, failure, worker, error: error.clone() });
            return self.broken_off(id, share, error);
        }
        let is_loss =
            |failure| matches!(failure, Failure::AckTimeout | Failure::RunLimit | Failure::WorkerLost);
        let of = &mut found.shares[share];
        let first_loss = is_loss(failure) && !of.charges.iter().any(|charge| is_loss(charge.failure));
        of.charges.push(Charge { turn, failure, worker, error });
        of.free = 0;
        let attempt = of.charges.len();
        if !retry || attempt >= usize::from(found.max_attempts) {
            of.ended = Some(Ended { done: false, cancelled: false, turn, result: Payload::NULL });
            if found.recipients.is_empty() {
                found.over = Some(Over::new(TaskState::Dead, now, turn));
            } else {
                self.decide(id);
            }
            return;
        }
        of.retrying = !first_loss;
        (of.from, of.by) = match delay_ms {
            _ if first_loss => (0, 0),
            Some(delay) => (now + delay * MS, now + delay * MS),
            None => {
                let wait = backoff_ms(&found.submit, attempt);
                (now + (wait * 0.9) as u64 * MS, now + ((wait * 1.1) as u64 + 1) * MS)
            }
        };
        of.from_turn = turn;
    }

    pub(super) fn returned(&mut self, id: TaskId, share: usize, releaser: Option<SessionId>, delay_ms: u64) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if found.over.is_some() {
            return;
        }
        if found.cancelling.is_some() {
            return self.broken_off(id, share, None);
        }
        let of = &mut found.shares[share];
        of.retrying = false;
        of.free += 1;
        if of.free > FREE_RETURNS {
            return self.charge(id, share, Failure::Returned, None, None, None, true);
        }
        if let Some(session) = releaser {
            of.avoid = Some((session, now + AVOID_MS * MS));
        }
        let due = if delay_ms == 0 { 0 } else { now + delay_ms * MS };
        (of.from, of.by, of.from_turn) = (due, due, turn);
    }

    /// Whether the recipients that have ended decide a task to all.
    pub(super) fn decide(&mut self, id: TaskId) {
        let (turn, now) = (self.turn, self.now);
        let state = self.verdict_of(&self.tasks[&id]);
        let found = self.tasks.get_mut(&id).expect("it was given");
        if let Some(state) = state.filter(|_| !found.murky) {
            found.over = Some(Over::new(state, now, turn));
            self.touch_key(id);
        }
    }

    pub(super) fn verdict_of(&self, found: &Tracked) -> Option<TaskState> {
        let ended = |done| {
            let ended = |share: &&Share| {
                !share.unsure && share.ended.as_ref().is_some_and(|ended| ended.done == done)
            };
            found.shares.iter().filter(ended).count() as u64
        };
        if found.cancelling.is_some() {
            let needed = match found.submit.complete.unwrap_or_default() {
                Complete::All => found.shares.len() as u64,
                Complete::Any => 1,
                Complete::Quorum(count) => count,
            };
            let held = found.shares.iter().any(|share| share.lease.is_some());
            return match ended(true) >= needed {
                true => Some(TaskState::Done),
                false => (!held).then_some(TaskState::Cancelled),
            };
        }
        verdict(
            found.submit.complete.unwrap_or_default(),
            found.shares.len() as u64,
            ended(true),
            ended(false),
        )
    }

    pub(super) fn end_session(&mut self, id: SessionId, clean: bool) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(key) = session.key {
            let (worker, born, ended) = (session.worker.clone(), session.born, self.turn);
            self.buried.push(Buried { key, worker, born, ended });
        }
        self.leave_rooms(id);
        for queue in session.subscriptions.keys() {
            self.absent_since.insert((queue.clone(), session.worker.clone()), self.now);
        }
        let held: Vec<LeaseId> =
            self.leases.iter().filter(|(_, l)| l.live && l.session == id).map(|(id, _)| *id).collect();
        for lease in held {
            let (task, share, unstarted) = {
                let lease = &self.leases[&lease];
                (lease.task, lease.share, lease.unstarted)
            };
            self.release_lease(lease);
            if clean || unstarted {
                self.returned(task, share, None, 0);
            } else {
                self.charge(task, share, Failure::WorkerLost, Some(session.worker.clone()), None, None, true);
            }
        }
    }
}
