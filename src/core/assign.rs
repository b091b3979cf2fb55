//! Giving tasks to workers: whose turn it is, what goes first, and what a delivery does.

use taskyard_proto::{LeaseId, Mode};

use super::effect::{Effects, Hop, Output};
use super::queue::{LaneKey, Rate, Tally};
use super::ready::{Entry, Verdict};
use super::session::SubscriptionKey;
use super::shard::Shard;
use super::task::{Lease, Share, ShareState};
use super::timers::Timer;

impl Shard {
    /// Makes a share ready: hands it to whoever's turn it is, or lets it wait.
    pub(super) fn offer(&mut self, task: u32, recipient: u32, fx: &mut Effects) {
        let lane = self.lane_of(task, recipient);
        match self.pick(task, recipient, &lane) {
            Some(subscription) => self.deliver(subscription, task, recipient, fx),
            None => {
                let found = &self.tasks[task as usize];
                let entry = Entry { task, recipient, seq: found.spec.seq };
                let priority = found.spec.priority;
                let queue = found.queue;
                let to_all = found.fanout.is_some();
                self.queues[queue as usize].ready_mut(&lane).push(priority, entry);
                if to_all && let LaneKey::Worker(lane) = lane {
                    self.watch_absence(queue, lane);
                }
            }
        }
    }

    pub(super) fn pick(&mut self, task: u32, recipient: u32, lane: &LaneKey) -> Option<SubscriptionKey> {
        let Shard { queues, tasks, subscriptions, now, .. } = self;
        let found = &tasks[task as usize];
        let share = found.share(recipient)?;
        let may = |key: SubscriptionKey| !share.avoids(subscriptions[key.0 as usize].session, *now);
        let queue = &mut queues[found.queue as usize];
        match lane {
            LaneKey::Any => queue.any.ring.pick(may),
            LaneKey::Group(group) => queue.groups.get_mut(group)?.ring.pick(may),
            LaneKey::Worker(lane) => queue.workers[*lane as usize]
                .subscription
                .filter(|key| subscriptions[key.0 as usize].open && may(*key)),
        }
    }

    /// Gives a subscription what it may take, as far as its credit goes.
    pub(super) fn feed(&mut self, key: SubscriptionKey, fx: &mut Effects) {
        self.refresh(key);
        while self.subscriptions.get(key.0 as usize).is_some_and(|subscription| subscription.open) {
            let Some((lane, priority, entry)) = self.best_for(key) else { return };
            let subscription = &self.subscriptions[key.0 as usize];
            let queue = &mut self.queues[subscription.queue as usize];
            queue.ready_mut(&lane).remove(priority, entry);
            match &lane {
                LaneKey::Any => queue.any.ring.picked(subscription.place),
                LaneKey::Group(group) => {
                    if let Some(lane) = queue.groups.get_mut(group) {
                        lane.ring.picked(subscription.place);
                    }
                }
                LaneKey::Worker(_) => {}
            }
            self.deliver(key, entry.task, entry.recipient, fx);
        }
    }

    /// The first task in order, of all lanes that a subscription may take from.
    pub(super) fn best_for(&mut self, key: SubscriptionKey) -> Option<(LaneKey, u8, Entry)> {
        let Shard { queues, tasks, subscriptions, sessions, now, .. } = self;
        let subscription = &subscriptions[key.0 as usize];
        let queue = &mut queues[subscription.queue as usize];
        let session = sessions.get(&subscription.session)?;
        let judge = |entry: Entry| match tasks.get(entry.task as usize) {
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
        let mut best: Option<(LaneKey, u8, Entry)> = None;
        let mut consider = |lane: LaneKey, found: Option<(u8, Entry)>| {
            if let Some((priority, entry)) = found {
                let sooner = best
                    .as_ref()
                    .is_none_or(|(_, p, e)| (u8::MAX - priority, entry.seq) < (u8::MAX - p, e.seq));
                if sooner {
                    best = Some((lane, priority, entry));
                }
            }
        };
        consider(LaneKey::Any, queue.any.ready.first(judge));
        for group in &session.groups {
            if let Some(lane) = queue.groups.get_mut(group) {
                consider(LaneKey::Group(group.clone()), lane.ready.first(judge));
            }
        }
        if let Some(lane) = queue.worker_names.get(&session.worker) {
            consider(LaneKey::Worker(*lane), queue.workers[*lane as usize].ready.first(judge));
        }
        best
    }

    pub(super) fn deliver(&mut self, key: SubscriptionKey, task: u32, recipient: u32, fx: &mut Effects) {
        let subscription = &mut self.subscriptions[key.0 as usize];
        let session_id = subscription.session;
        let auto = subscription.mode == Mode::Auto;
        let unstarted = subscription.explicit_start;
        subscription.unsettled += 1;
        let number = self.next_lease;
        self.next_lease += 1;
        self.leases_out += 1;
        let session = self.sessions.get_mut(&session_id).expect("a subscription's session exists");
        let held_at = session.held.len() as u32;
        session.held.push((task, recipient));
        let found = &self.tasks[task as usize];
        let deadline = self.now.plus_ms(u64::from(found.spec.ack_timeout_ms));
        let lease = Lease {
            number,
            session: session_id,
            held_at,
            since: self.now,
            deadline,
            timer: deadline,
            started: false,
            unstarted,
        };
        self.timers.set(deadline, Timer::Lease { task, recipient, number });
        if let Some(limit) = found.spec.run_limit_ms {
            self.timers.set(self.now.plus_ms(u64::from(limit)), Timer::RunLimit { task, recipient, number });
        }
        self.refresh(key);
        let before = self.shift(task, recipient, ShareState::Leased(lease));
        if let ShareState::Queued { since } = before {
            fx.hops.push((Hop::ReadyToDelivered, self.now.micros_since(since)));
        }

        let found = &mut self.tasks[task as usize];
        let spec = found.spec.clone();
        let share = found.share_mut(recipient).expect("it was just leased");
        let redelivered = share.delivered;
        let attempt = u64::from(share.charged) + 1;
        share.delivered = true;
        let counted = std::mem::replace(&mut share.counted, true);
        if !counted && let Some(fanout) = &mut found.fanout {
            fanout.delivered += 1;
        }
        let queue = &mut self.queues[found.queue as usize];
        queue.tally(Tally::Delivered);
        if redelivered {
            queue.tally(Tally::Redelivered);
        }
        queue.rates.count(self.now, Rate::Delivered);
        let lease = LeaseId { number, slot: task, recipient };
        fx.outputs.push(Output::Send {
            session: session_id,
            reference: None,
            on_write: auto.then_some(lease),
            barrier: false,
            message: taskyard_proto::Task {
                task: spec.id,
                lease: (!auto).then_some(lease),
                queue: spec.queue.clone(),
                attempt,
                max_attempts: u64::from(spec.max_attempts),
                redelivered,
                ack_timeout_ms: u64::from(spec.ack_timeout_ms),
                age_ms: self.now.ms_since(spec.accepted),
                priority: u64::from(spec.priority),
                headers: spec.headers.clone(),
                payload: spec.payload.clone(),
            }
            .into(),
        });
        self.event(task, recipient, taskyard_proto::Payload::NULL, fx);
    }

    /// Takes a share that waits out of its lane, and the lane away with it if nothing else is left of
    /// it: names come and go without end.
    pub(super) fn withdraw(&mut self, task: u32, recipient: u32) {
        let found = &self.tasks[task as usize];
        if !matches!(found.share(recipient).map(|share| &share.state), Some(ShareState::Queued { .. })) {
            return;
        }
        let (queue, priority, seq) = (found.queue, found.spec.priority, found.spec.seq);
        let entry = Entry { task, recipient, seq };
        let lane = self.lane_of(task, recipient);
        let queue = &mut self.queues[queue as usize];
        queue.ready_mut(&lane).remove(priority, entry);
        if let LaneKey::Worker(lane) = lane {
            // It may have come to anybody while its worker was absent.
            queue.any.ready.remove(priority, entry);
            queue.drop_worker_lane_if_empty(lane);
        }
    }

    /// Recomputes whether a subscription stands open, and tells the rings.
    pub(super) fn refresh(&mut self, key: SubscriptionKey) {
        let Some(subscription) = self.subscriptions.get_mut(key.0 as usize) else { return };
        let Some(session) = self.sessions.get(&subscription.session) else { return };
        let open = !self.draining
            && !session.draining
            && !session.silent
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
        let found = &self.tasks[task as usize];
        let queue = found.queue;
        let lease = found.share(recipient)?.lease()?;
        let (session_id, held_at) = (lease.session, lease.held_at as usize);
        fx.hops.push((Hop::DeliveredToSettled, self.now.micros_since(lease.since)));
        self.leases_out -= 1;
        let session = self.sessions.get_mut(&session_id)?;
        session.held.swap_remove(held_at);
        if let Some((moved_task, moved_recipient)) = session.held.get(held_at) {
            let moved = self.tasks[*moved_task as usize].share_mut(*moved_recipient);
            moved.and_then(Share::lease_mut).expect("what a session holds is leased").held_at =
                held_at as u32;
        }
        let key = session.subscription(queue)?;
        let subscription = &mut self.subscriptions[key.0 as usize];
        subscription.unsettled = subscription.unsettled.saturating_sub(1);
        Some(key)
    }
}
