//! Giving tasks to workers: whose turn it is, what goes first, and what a delivery does.

use std::hash::{BuildHasher as _, Hasher as _};

use taskyard_proto::{Assign, Key, LeaseId, Mode, Payload, ServerMessage, WorkerName};

use super::effect::{Effects, Hop, Output};
use super::pull::BYTES_MAX;
use super::queue::{LaneKey, Rate, Tally};
use super::ready::{Entry, Rank, Ranking, Verdict};
use super::record::{Amendment, StoreOp};
use super::session::{Session, SubscriptionKey, Verb};
use super::shard::Shard;
use super::task::{Held, Lease, Past, Share, ShareState, Task};
use super::time::Time;
use super::timers::Timer;

impl Shard {
    /// Makes a share ready: hands it to whoever's turn it is, or lets it wait.
    pub(super) fn offer(&mut self, task: u32, recipient: u32, fx: &mut Effects) {
        if self.tasks[task].spec.keys.is_some() && !self.may_go(task, fx) {
            return;
        }
        let lane = self.lane_of(task, recipient);
        let queue = self.tasks[task].queue;
        // Where there are limits, or a payload is away, what waits goes first, and all by one way.
        let limited = self.goes_in_order(queue) || self.tasks[task].payload().is_none();
        match if limited { None } else { self.pick(task, recipient, &lane) } {
            Some(subscription) => self.deliver(subscription, task, recipient, fx),
            None => {
                let to_all = self.tasks[task].fanout().is_some();
                self.put_in_lane(task, recipient, &lane);
                if to_all && let LaneKey::Worker(lane) = lane {
                    self.watch_absence(queue, lane);
                }
                if limited {
                    self.pump_later(queue);
                }
            }
        }
    }

    pub(super) fn put_in_lane(&mut self, task: u32, recipient: u32, lane: &LaneKey) {
        let Shard { tasks, queues, .. } = self;
        let found = &tasks[task];
        let entry = Entry { task, recipient, seq: found.spec.seq };
        let fair = found.spec.keys.as_ref().and_then(|keys| keys.fair.as_ref());
        queues[found.queue as usize].ready_mut(lane).push(found.spec.priority, entry, fair);
    }

    #[inline(always)]
    pub(super) fn pick(&mut self, task: u32, recipient: u32, lane: &LaneKey) -> Option<SubscriptionKey> {
        let Shard { queues, tasks, subscriptions, sessions, now, .. } = self;
        let found = &tasks[task];
        let share = found.share(recipient)?;
        let may = |key: SubscriptionKey| !share.avoids(subscriptions[key.0 as usize].session, *now);
        let queue = &mut queues[found.queue as usize];
        let keys = found.spec.keys.as_deref();
        let assign = keys.and_then(|keys| keys.assign).or(queue.settings.assign);
        let ring = match lane {
            LaneKey::Any => Some(&mut queue.any.ring),
            LaneKey::Group(group) => Some(&mut queue.groups.get_mut(group)?.ring),
            LaneKey::Worker(_) => None,
        };
        if let Some(ring) = ring {
            let sticky = keys.and_then(|keys| keys.sticky.as_ref());
            return match (assign, sticky) {
                (Some(Assign::LeastLoaded), _) => ring.pick_least(may, |key| {
                    let subscription = &subscriptions[key.0 as usize];
                    (subscription.unsettled, subscription.credit)
                }),
                (Some(Assign::Sticky), Some(sticky)) => ring.pick_most(may, |key| {
                    let session = sessions.get(&subscriptions[key.0 as usize].session);
                    session.map_or(0, |session| affinity(sticky, &session.worker))
                }),
                _ => ring.pick(may),
            };
        }
        match lane {
            LaneKey::Any | LaneKey::Group(_) => None,
            LaneKey::Worker(lane) => queue.workers[*lane as usize].subscription.filter(|key| {
                let subscription = &subscriptions[key.0 as usize];
                let pulls = || sessions.get(&subscription.session).is_some_and(|s| s.pull.is_some());
                subscription.open && may(*key) && !(found.fanout().is_some() && pulls())
            }),
        }
    }

    /// Gives a subscription what it may take, as far as its credit goes.
    pub(super) fn feed(&mut self, key: SubscriptionKey, fx: &mut Effects) {
        let Some(subscription) = self.subscriptions.get(key.0 as usize) else { return };
        let queue = subscription.queue;
        if !subscription.open {
            self.refresh(key);
        }
        if self.goes_in_order(queue) {
            // Whose turn it is counts there, not who asks first.
            return self.pump_later(queue);
        }
        while self.may_take_something(key) {
            let Some((lane, priority, entry)) = self.best_for(key) else { return };
            let subscription = &self.subscriptions[key.0 as usize];
            let (place, of) = (subscription.place, subscription.queue);
            if self.must_wait(of, &lane, entry, fx) {
                return;
            }
            self.take_from(of, &lane, priority, entry);
            let queue = &mut self.queues[of as usize];
            match &lane {
                LaneKey::Any => queue.any.ring.picked(place),
                LaneKey::Group(group) => {
                    if let Some(lane) = queue.groups.get_mut(group) {
                        lane.ring.picked(place);
                    }
                }
                LaneKey::Worker(_) => {}
            }
            self.deliver(key, entry.task, entry.recipient, fx);
            self.come_nearer(of, &lane, fx);
        }
    }

    /// Whether a subscription is open, and the lanes that it may take from are not all seen to be empty at a glance.
    fn may_take_something(&self, key: SubscriptionKey) -> bool {
        let Some(subscription) = self.subscriptions.get(key.0 as usize) else { return false };
        let queue = &self.queues[subscription.queue as usize];
        let nothing_of_its_own = || {
            let own = queue.workers.get(subscription.lane as usize);
            own.is_some_and(|lane| lane.subscription == Some(key) && lane.ready.is_empty())
        };
        subscription.open && !(queue.any.ready.is_empty() && queue.groups.is_empty() && nothing_of_its_own())
    }

    /// The first task in order, of all lanes that a subscription may take from.
    pub(super) fn best_for(&mut self, key: SubscriptionKey) -> Option<(LaneKey, u8, Entry)> {
        let Shard { queues, tasks, subscriptions, sessions, now, .. } = self;
        let subscription = &subscriptions[key.0 as usize];
        let queue = &mut queues[subscription.queue as usize];
        let session = sessions.get(&subscription.session)?;
        let pulls = session.pull.is_some();
        let judge = |entry: Entry| match tasks.get(entry.task) {
            Some(task) if task.spec.seq == entry.seq && !task.decided => match task.share(entry.recipient) {
                Some(Share { state: ShareState::Queued { .. }, .. })
                    if task.share(entry.recipient).is_some_and(|s| s.avoids(subscription.session, *now)) =>
                {
                    Verdict::Skip
                }
                Some(Share { state: ShareState::Queued { .. }, .. }) => Verdict::Take,
                _ => Verdict::Stale,
            },
            _ => Verdict::Stale,
        };
        // Recipients of a task to all are those who are connected, whatever name a pull gives itself.
        let to_all = |entry: Entry| tasks.get(entry.task).is_some_and(|task| task.fanout().is_some());
        let judge = |entry: Entry| match judge(entry) {
            Verdict::Take if pulls && to_all(entry) => Verdict::Skip,
            verdict => verdict,
        };
        let ranking = Ranking::of(queue.settings.order, tasks);
        let mut best: Option<(LaneKey, u8, Entry, Rank)> = None;
        let mut consider = |lane: LaneKey, found: Option<(u8, Entry, Rank)>| {
            if let Some((priority, entry, rank)) = found
                && best.as_ref().is_none_or(|(.., other)| rank < *other)
            {
                best = Some((lane, priority, entry, rank));
            }
        };
        consider(LaneKey::Any, queue.any.ready.first(ranking, judge));
        for group in &session.groups {
            if let Some(lane) = queue.groups.get_mut(group) {
                consider(LaneKey::Group(group.clone()), lane.ready.first(ranking, judge));
            }
        }
        // Nearly always the lane that it found when it came.
        let own = queue.workers.get(subscription.lane as usize);
        let own = match own.is_some_and(|lane| lane.subscription == Some(key)) {
            true => Some(subscription.lane),
            false => queue.worker_names.get(&session.worker).copied(),
        };
        if let Some(lane) = own {
            consider(LaneKey::Worker(lane), queue.workers[lane as usize].ready.first(ranking, judge));
        }
        best.map(|(lane, priority, entry, _)| (lane, priority, entry))
    }

    pub(super) fn deliver(&mut self, key: SubscriptionKey, task: u32, recipient: u32, fx: &mut Effects) {
        let now = self.now;
        let subscription = &mut self.subscriptions[key.0 as usize];
        let session_id = subscription.session;
        let auto = subscription.mode == Mode::Auto;
        let unstarted = subscription.explicit_start;
        subscription.unsettled += 1;
        let full = subscription.unsettled >= subscription.credit;
        let number = self.next_lease;
        self.next_lease += 1;
        self.leases_out += 1;
        let session = self.sessions.get_mut(&session_id).expect("a subscription's session exists");
        let held_at = session.held.insert((task, recipient)) as u32;
        let found = &mut self.tasks[task];
        let deadline = now.plus_ms(u64::from(found.spec.ack_timeout_ms));
        if session.leases_at.is_none_or(|at| deadline < at) {
            session.leases_at = Some(deadline);
            self.timers.set(deadline, Timer::Leases { session: session_id });
        }
        let resume_key = session.resume_key.filter(|_| !auto);
        let pulled = session.pull.is_some();
        if let Some(pull) = &mut session.pull {
            pull.bytes += self.tasks[task].payload_bytes as usize;
        }
        if full || pulled {
            // Nothing else of it has changed that it stood open for.
            self.refresh(key);
        }
        self.handed_out(task);

        let found = &mut self.tasks[task];
        let queue = &mut self.queues[found.queue as usize];
        if let Some(limit) = found.spec.run_limit_ms {
            self.timers.set(now.plus_ms(u64::from(limit)), Timer::RunLimit { task, recipient, number });
        }
        let lease = Lease {
            number,
            slot: task,
            session: session_id,
            held_at,
            since: now,
            deadline,
            timer: None,
            started: false,
            unstarted,
        };
        let lease = match self.spare_leases.pop() {
            Some(mut spare) => {
                *spare = lease;
                spare
            }
            None => Box::new(lease),
        };
        let before = found.shift(recipient, ShareState::Leased(lease), &mut queue.counts);
        if let ShareState::Queued { since } = before {
            fx.measure(Hop::ReadyToDelivered, found.queue, now.micros_since(since));
        }
        let share = found.share_mut(recipient).expect("it was just leased");
        let past = std::mem::replace(&mut share.past, Past::Out);
        let redelivered = past != Past::Never;
        let attempt = u64::from(share.charged) + 1;
        share.lease_stored = resume_key.is_some();
        share.delivered_stored |= share.lease_stored;
        let counted = std::mem::replace(&mut share.counted, true);
        if !counted && let Some(fanout) = found.fanout_mut() {
            fanout.delivered += 1;
        }
        queue.passed(now);
        queue.tally(Tally::Delivered);
        if redelivered {
            queue.tally(Tally::Redelivered);
            queue.tally_again(past);
        }
        queue.rates.count(now, Rate::Delivered);
        let told = found.count_event();
        let (id, of) = (found.spec.id(), found.queue);
        let lease = LeaseId { number, slot: task, recipient };
        let given = (!auto).then_some(lease);
        if pulled {
            let session = self.sessions.get_mut(&session_id).expect("it was just found");
            if let Some(pull) = &mut session.pull {
                pull.tasks.push(delivery(found, given, attempt, redelivered, now));
            }
            if !self.to_answer.contains(&session_id) {
                self.to_answer.push(session_id);
            }
        } else {
            fx.outputs.push(Output::Send {
                session: session_id,
                reference: None,
                on_write: auto.then_some(lease),
                barrier: false,
                queue: of,
                message: ServerMessage::Task(delivery(found, given, attempt, redelivered, now)),
            });
        }
        if let Some(session) = resume_key {
            let leased = Amendment::Leased {
                recipient,
                number,
                slot: task,
                session,
                deadline,
                explicit_start: unstarted,
            };
            self.store(StoreOp::Amend(id, leased), fx);
        }
        if told {
            self.tell_event(task, recipient, Payload::NULL, fx);
        }
    }

    /// Takes a share that waits out of its lane, and the lane away with it if nothing else is left of
    /// it: names come and go without end.
    pub(super) fn withdraw(&mut self, task: u32, recipient: u32) {
        let found = &self.tasks[task];
        if !matches!(found.share(recipient).map(|share| &share.state), Some(ShareState::Queued { .. })) {
            return;
        }
        let (queue, priority, seq) = (found.queue, found.spec.priority, found.spec.seq);
        let entry = Entry { task, recipient, seq };
        let lane = self.lane_of(task, recipient);
        let Shard { queues, tasks, .. } = self;
        let fair = tasks[task].spec.keys.as_ref().and_then(|keys| keys.fair.as_ref());
        let queue = &mut queues[queue as usize];
        queue.ready_mut(&lane).remove(priority, entry, fair);
        match lane {
            LaneKey::Any => {}
            LaneKey::Group(group) => queue.drop_group_lane_if_empty(&group),
            LaneKey::Worker(lane) => {
                // It may have come to anybody while its worker was absent.
                queue.any.ready.remove(priority, entry, fair);
                queue.drop_worker_lane_if_empty(lane);
            }
        }
    }

    /// Recomputes whether a subscription stands open, and tells the rings.
    pub(super) fn refresh(&mut self, key: SubscriptionKey) {
        let Some(subscription) = self.subscriptions.get_mut(key.0 as usize) else { return };
        let Some(session) = self.sessions.get(&subscription.session) else { return };
        let open = !self.draining
            && !session.draining
            && !session.silent
            && session.pull.as_ref().is_none_or(|pull| pull.bytes < BYTES_MAX)
            && subscription.unsettled < subscription.credit;
        if open == subscription.open {
            return;
        }
        subscription.open = open;
        let place = subscription.place;
        let queue = &mut self.queues[subscription.queue as usize];
        if open {
            queue.any.ring.open(place, key);
        } else {
            queue.any.ring.close(place);
        }
        for group in &session.groups {
            let ring = &mut queue.groups.entry(group.clone()).or_default().ring;
            if open {
                ring.open(place, key);
            } else {
                ring.close(place);
            }
        }
    }

    /// Takes a lease out of its session and gives its credit back. The subscription does not open by
    /// that: first the caller puts the share where it belongs, then it feeds what is named here, so
    /// that the returned task and those that wait go in their order.
    pub(super) fn unlease(&mut self, task: u32, recipient: u32, fx: &mut Effects) -> Option<SubscriptionKey> {
        self.end_lease(task, recipient, fx, |_, _| {})
    }

    /// The same because its holder settles it, which is remembered; and who that is.
    pub(super) fn unlease_settled(
        &mut self,
        task: u32,
        recipient: u32,
        verb: Verb,
        fx: &mut Effects,
    ) -> (Option<WorkerName>, Option<SubscriptionKey>) {
        let queue = self.tasks[task].queue;
        self.queues[queue as usize].rates.count(self.now, Rate::Settled);
        let (mut worker, mut pulled) = (None, None);
        let key = self.end_lease(task, recipient, fx, |session, number| {
            worker = Some(session.worker.clone());
            match session.pull {
                None => session.remember_settle(number, verb),
                Some(_) => pulled = Some(number),
            }
        });
        if let Some(number) = pulled {
            self.remember_pulled_settle(queue, number, verb);
        }
        (worker, key)
    }

    #[inline]
    fn end_lease(
        &mut self,
        task: u32,
        recipient: u32,
        fx: &mut Effects,
        of_session: impl FnOnce(&mut Session, u64),
    ) -> Option<SubscriptionKey> {
        let found = &mut self.tasks[task];
        let queue = found.queue;
        let lease = found.share(recipient)?.lease()?;
        let (session_id, number, held_at) = (lease.session, lease.number, lease.held_at as usize);
        if lease.slot != task {
            self.aliases.remove(&number);
        }
        if !self.stops.is_empty() {
            self.stops.remove(&number);
        }
        fx.measure(Hop::DeliveredToSettled, queue, self.now.micros_since(lease.since));
        self.leases_out -= 1;
        if found.held == Held::Out {
            // The payload is no longer with its worker.
            found.held = Held::Here;
            self.payloads_out.take(found.bytes());
        }
        let of = &mut self.queues[queue as usize];
        of.leased -= 1;
        if of.limited {
            self.pump_later(queue);
        }
        let session = self.sessions.get_mut(&session_id)?;
        of_session(session, number);
        session.held.remove(held_at);
        let key = session.subscription(queue);
        if session.pull.is_some() {
            // Whose the lease was is asked for yet: it goes when the command is done.
            self.to_answer.push(session_id);
        }
        let subscription = &mut self.subscriptions[key?.0 as usize];
        subscription.unsettled = subscription.unsettled.saturating_sub(1);
        key
    }
}

/// What a worker is told. Inlined: it is made where it goes, and not copied there.
#[inline(always)]
fn delivery(
    found: &Task,
    lease: Option<LeaseId>,
    attempt: u64,
    redelivered: bool,
    now: Time,
) -> taskyard_proto::Task {
    let spec = &found.spec;
    taskyard_proto::Task {
        task: spec.id(),
        lease,
        queue: spec.queue.clone(),
        attempt,
        max_attempts: u64::from(spec.max_attempts),
        redelivered,
        ack_timeout_ms: u64::from(spec.ack_timeout_ms),
        age_ms: now.ms_since(spec.accepted),
        priority: u64::from(spec.priority),
        headers: spec.headers.clone(),
        payload: found.payload().cloned().expect("nobody gets a task whose payload is away"),
    }
}

/// How well a worker goes with a key: rendezvous hashing, in which the worker with the highest number gets the key,
/// and a worker that comes or goes moves no key but its own.
fn affinity(key: &Key, worker: &WorkerName) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
    hasher.write(key.as_str().as_bytes());
    hasher.write_u8(0xff);
    hasher.write(worker.as_str().as_bytes());
    hasher.finish()
}
