//! Cancel, order keys, `dedup_id` and rooms, as sections 4 and 5 of PROTOCOL.md tell them.

use super::*;

impl Oracle {
    // --- Cancel -----------------------------------------------------------------------------

    pub(super) fn cancel(&mut self, origin: &Origin, m: &taskyard_proto::Cancel, shard: &Shard) -> Judged {
        let (id, now) = (m.task, self.now);
        let grace_ms = m.grace_ms.map_or(10_000, |grace| grace.get());
        self.note(Some(id), || format!("{origin:?} cancels {id}, grace {grace_ms} ms"));
        let known = shard.queue_of(id).is_some();
        let found = self.tasks.get(&id).filter(|t| !t.gone && !t.forgotten && t.deleted.is_none());
        let Some(found) = found.filter(|_| known) else {
            let must = found.is_some_and(|found| {
                let keep = self.keep_of(&found.submit.queue);
                !found.murky
                    && match &found.over {
                        None => !self.is_maybe_over(found),
                        Some(over) => over.state == TaskState::Dead || now < over.at + keep,
                    }
            });
            self.want_refusal(origin, ErrorCode::NotFound, None);
            return self.require(!must, "I1 an accepted task never vanishes", Some(id), || {
                "it cannot be cancelled: the broker does not know it".into()
            });
        };
        self.report.cancelled += 1;
        let state = match found.over.as_ref().map(|over| (over.state, over.turn)) {
            _ if self.is_maybe_over(found) => {
                let found = self.tasks.get_mut(&id).expect("it was found");
                found.cancelling.get_or_insert(Cancelling { turn: self.turn });
                found.murky = true;
                self.want(origin, Wanted::Anything);
                self.loose_input = self.input;
                return Ok(());
            }
            Some((TaskState::Cancelled, turn)) => {
                self.want(origin, Wanted::Cancel { state: TaskState::Cancelled, turn });
                return Ok(());
            }
            Some(_) => {
                self.want_refusal(origin, ErrorCode::Conflict, None);
                return Ok(());
            }
            None => self.stop_task(id, grace_ms),
        };
        let turn = self.tasks[&id].cancelling.map_or(self.turn, |cancelling| cancelling.turn);
        self.want(origin, Wanted::Cancel { state, turn });
        Ok(())
    }

    /// Stops a task that has not ended; the state it is in then.
    pub(super) fn stop_task(&mut self, id: TaskId, grace_ms: u64) -> TaskState {
        let (turn, input, until) = (self.turn, self.input, self.now + grace_ms * MS);
        let found = self.tasks.get_mut(&id).expect("it was found");
        found.cancelling.get_or_insert(Cancelling { turn });
        let mut held = false;
        for share in &mut found.shares {
            match share.lease {
                Some(id) => {
                    held = true;
                    let lease = self.leases.get_mut(&id).expect("it was given");
                    lease.stop = Some(lease.stop.map_or(until, |stop| stop.min(until)));
                    let with = self.sessions.get(&lease.session);
                    if with.is_some_and(|s| s.away.is_none() && s.pull.is_none()) {
                        self.due_stops.insert(id);
                    }
                }
                None if share.ended.is_none() => {
                    share.ended = Some(Ended { done: false, cancelled: true, turn, result: Payload::NULL });
                    share.touched = input;
                }
                None => {}
            }
        }
        if held {
            return TaskState::Leased;
        }
        found.over = Some(Over::new(TaskState::Cancelled, self.now, turn));
        self.touch_key(id);
        TaskState::Cancelled
    }

    /// Whoever had a share of a task that is being stopped has let go of it, without an ack.
    pub(super) fn broken_off(&mut self, id: TaskId, share: usize, error: Option<String>) {
        let (turn, now) = (self.turn, self.now);
        let found = self.tasks.get_mut(&id).expect("it was given");
        found.shares[share].ended = Some(Ended { done: false, cancelled: true, turn, result: Payload::NULL });
        if found.recipients.is_empty() {
            found.over = Some(Over { error, ..Over::new(TaskState::Cancelled, now, turn) });
            self.touch_key(id);
        } else {
            self.decide(id);
        }
    }

    pub(super) fn told_to_stop(&mut self, session: SessionId, m: &Stop) -> Judged {
        let promise = "§4 only who holds a task that is cancelled is told to stop";
        let Some(lease) = self.leases.get(&m.lease) else {
            // What a pull gets is told only when all is done.
            if self.sessions.get(&session).is_some_and(|s| s.pull.is_some()) {
                return Ok(());
            }
            return Err(self.broken(promise, None, format!("{m:?}")));
        };
        let (task, live, of) = (lease.task, lease.live, lease.session);
        self.note(Some(task), || format!("{session:?} is told to stop {}", m.lease));
        self.due_stops.remove(&m.lease);
        let found = &self.tasks[&task];
        let right = live && (of == session || of.0 >= 1 << 63) && found.cancelling.is_some();
        self.require(right || found.murky, promise, Some(task), || format!("{session:?}: {m:?}"))
    }

    pub(super) fn cancel_answered(
        &self,
        origin: &Origin,
        wanted: Option<Wanted>,
        told: Option<TaskState>,
    ) -> Judged {
        let Some(Wanted::Cancel { state, turn }) = wanted else { return Ok(()) };
        self.require(told == Some(state), "§4 the answer to cancel tells the state", None, || {
            format!("{origin:?} is told {told:?}, it is {state}")
        })?;
        self.require(turn <= self.durable_turn, "§4 a cancel is answered when it is durable", None, || {
            format!("{origin:?}: done in turn {turn}, the disk holds {}", self.durable_turn)
        })
    }

    /// All that had to be said in the course of an input.
    pub(super) fn input_is_over(&mut self) -> Judged {
        for session in std::mem::take(&mut self.removing) {
            if let Some((_, lease)) = self.leases.iter().find(|(_, l)| l.live && l.session == session) {
                let task = Some(lease.task);
                return Err(self.broken("§7 who is removed loses its leases", task, format!("{session:?}")));
            }
            self.end_session(session, false);
        }
        if let Some(lease) = self.due_stops.pop_first() {
            self.due_stops.clear();
            let task = self.leases.get(&lease).map(|lease| lease.task);
            return Err(self.broken(
                "§4 who holds a cancelled task is told to stop",
                task,
                format!("{lease}"),
            ));
        }
        if let Some((id, _)) = self.sessions.iter().find(|(_, session)| session.opening.is_some()) {
            return Err(self.broken("§4 a hello is answered by a welcome", None, format!("{id:?}")));
        }
        Ok(())
    }

    // --- Order keys -------------------------------------------------------------------------

    /// The other tasks of a task's order key that are there.
    fn others_of_key(&self, id: TaskId) -> impl Iterator<Item = (TaskId, &Tracked)> {
        let found = &self.tasks[&id];
        let key = found.submit.order_key.as_ref();
        let order = self.by_order.iter().filter(move |_| key.is_some());
        order.map(|other| (*other, &self.tasks[other])).filter(move |(other, task)| {
            *other != id
                && task.submit.order_key.as_ref() == key
                && task.submit.queue == found.submit.queue
                && task.active
                && !task.gone
                && !task.forgotten
                // A dead letter of which little is known may have been redriven.
                && task.over.as_ref().is_none_or(|over| task.murky && over.state == TaskState::Dead)
        })
    }

    /// What certainly keeps a task from going.
    pub(super) fn is_blocked(&self, id: TaskId) -> Option<String> {
        let order = self.tasks[&id].order;
        // A task to all that has begun keeps its key until it ends, whatever its recipients wait for.
        let own = &self.tasks[&id];
        let under_way = !own.recipients.is_empty() && own.shares.iter().any(|s| s.deliveries > 0);
        // One that has outlived its use frees the key, whoever had it.
        let lives = |task: &Tracked| task.expires.is_none_or(|at| at > self.now) && !self.is_maybe_over(task);
        self.others_of_key(id).filter(|(_, task)| lives(task)).find_map(|(other, task)| {
            let because = |what: &str| Some(format!("{other}, accepted as number {}, {what}", task.order));
            for share in &task.shares {
                if share.lease.is_some() {
                    return because("is with a worker");
                }
                if share.retrying && share.from > self.now && share.ended.is_none() {
                    return because("waits for its next attempt");
                }
                if !under_way
                    && task.order < order
                    && share.touched < self.input
                    && self.is_ready(task, share)
                {
                    return because("waits too, and came first");
                }
            }
            None
        })
    }

    /// Whether another task of its key may keep a task from going.
    pub(super) fn may_be_blocked(&self, id: TaskId) -> bool {
        let order = self.tasks[&id].order;
        self.others_of_key(id).any(|(_, task)| {
            // A task to all that has begun keeps its key until it ends, whatever its recipients wait for.
            let begun = !task.recipients.is_empty() && task.shares.iter().any(|s| s.deliveries > 0);
            self.is_maybe_over(task)
                || begun
                || task.shares.iter().any(|share| {
                    share.ended.is_none()
                        && (share.lease.is_some()
                            || (share.retrying && share.by > self.last_expire)
                            || (task.order < order && share.from <= self.now))
                })
        })
    }

    /// What happens to a task is news for the others of its key.
    pub(super) fn touch_key(&mut self, id: TaskId) {
        let input = self.input;
        let others: Vec<TaskId> = self.others_of_key(id).map(|(other, _)| other).collect();
        for other in others {
            for share in &mut self.tasks.get_mut(&other).expect("it was found").shares {
                share.touched = input;
            }
        }
    }

    // --- dedup_id ---------------------------------------------------------------------------

    /// The task that a submit was sent for before. Whether the window has ended is the broker's to say at the very
    /// end of it.
    pub(super) fn is_duplicate(&self, id: TaskId, submit: &Submit, shard: &Shard) -> Option<TaskId> {
        let known = self.dedups.get(&(submit.queue.clone(), submit.dedup_id.clone()?))?;
        let (first, until) = known.iter().rev().find(|(task, _)| !self.tasks[task].gone)?;
        let remembered = match *until {
            until if until > self.now => true,
            until if until <= self.last_expire => false,
            _ => shard.queue_of(id).is_none(),
        };
        remembered.then_some(*first)
    }

    pub(super) fn duplicated(&mut self, origin: &Origin, first: TaskId, submit: &Submit, shard: &Shard) {
        self.note(Some(first), || format!("{origin:?} submits again what made {first}"));
        let confirm = submit.confirm.unwrap_or(Confirm::Durable);
        let heard = matches!(origin, Origin::Call(_)) || confirm != Confirm::None;
        if heard {
            self.want(origin, Wanted::Duplicate(first));
        }
        if !submit.watch {
            return;
        }
        if shard.queue_of(first).is_none() {
            // What became of it is told to nobody any longer.
            if let Origin::Call(call) = origin {
                self.calls.entry(*call).or_default().watching = Some((first, true));
            }
            return;
        }
        self.watches(origin, first);
        self.again.insert((origin_session(origin), first));
        if let Origin::Session(session, _) = origin
            && let Some(watching) = self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&first))
        {
            watching.again = true;
        }
        if let Origin::Session(session, reference) = origin
            && let Some(watching) = self.sessions.get_mut(session).and_then(|s| s.watching.get_mut(&first))
            && watching.asked == 1
        {
            watching.waits_for_accepted = reference.is_some() && heard;
        }
    }

    // --- Rooms ------------------------------------------------------------------------------

    pub(super) fn joined(&mut self, session: SessionId, room: &RoomName) {
        let room = self.rooms.entry(room.clone()).or_default();
        if !room.members.contains(&session) {
            room.members.push(session);
        }
    }

    pub(super) fn left(&mut self, session: SessionId, room: &RoomName) {
        if let Some(found) = self.rooms.get_mut(room) {
            found.members.retain(|member| *member != session);
            if found.members.is_empty() {
                self.rooms.remove(room);
            }
        }
    }

    pub(super) fn leave_rooms(&mut self, session: SessionId) {
        let rooms: Vec<RoomName> = self.rooms.keys().cloned().collect();
        for room in rooms {
            self.left(session, &room);
        }
    }

    pub(super) fn published(&mut self, session: Option<SessionId>, room: &RoomName, exclude_self: bool) {
        let Some(found) = self.rooms.get_mut(room) else { return };
        found.seq += 1;
        found.due = Some(session.filter(|_| exclude_self));
    }

    pub(super) fn said_in_room(&mut self, members: &[SessionId], message: &RoomMessage) -> Judged {
        let promise = "§4 what is said in a room is heard by those who are in it";
        let Some(found) = self.rooms.get_mut(&message.room) else {
            return Err(self.broken(promise, None, format!("nobody is in room {}", message.room)));
        };
        let but = found.due.take();
        let expected: Vec<SessionId> =
            found.members.iter().copied().filter(|id| but != Some(Some(*id))).collect();
        let right = but.is_some() && expected == members && found.seq == message.seq;
        let seq = found.seq;
        self.require(right, promise, None, || {
            format!("{members:?} hear number {}, it is {seq} for {expected:?}", message.seq)
        })
    }
}

pub(super) fn origin_session(origin: &Origin) -> Option<SessionId> {
    match origin {
        Origin::Session(session, _) | Origin::Implied(session) => Some(*session),
        Origin::Call(_) => None,
    }
}
