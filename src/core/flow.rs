//! What a queue as a whole lets through: pauses, and limits on how much is with workers and how fast it goes there.

use super::effect::Effects;
use super::queue::{LaneKey, Queue};
use super::ready::{Entry, Rank, Ranking, Verdict};
use super::session::SubscriptionKey;
use super::shard::Shard;
use super::task::{Share, ShareState};
use super::time::Time;
use super::timers::Timer;

/// A rate is kept over stretches of this part of a second: a queue that may give out 1,000 a second may give out
/// 10 at once. Timers go off a millisecond late, and must not make it slower than was asked for.
const BURST_PART: f64 = 0.01;

/// Why a queue lets nothing through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shut {
    Paused,
    /// As many as may be are with workers.
    Leased,
    /// The next may go then.
    Rate(Time),
}

impl Queue {
    /// Whether something lies in the way of the queue's tasks at `now`.
    pub(super) fn shut(&self, now: Time) -> Option<Shut> {
        if !self.limited {
            return None;
        }
        if self.pause.is_some() {
            return Some(Shut::Paused);
        }
        if self.settings.max_leased.is_some_and(|max| self.leased >= max) {
            return Some(Shut::Leased);
        }
        let free_at = self.next_by_rate();
        (free_at > now).then_some(Shut::Rate(free_at))
    }

    /// When the rate lets the next through: deliveries are spaced, but for a small burst (GCRA, the generic cell
    /// rate algorithm of ATM).
    fn next_by_rate(&self) -> Time {
        let Some(rate) = self.settings.rate_per_s else { return Time(0) };
        let burst = (rate * BURST_PART).max(1.0);
        let early = ((burst - 1.0) * 1e6 / rate) as u64;
        Time(self.rate_until.0.saturating_sub(early))
    }

    /// Counts a delivery.
    pub(super) fn passed(&mut self, now: Time) {
        self.leased += 1;
        if let Some(rate) = self.settings.rate_per_s {
            let step = (1e6 / rate) as u64;
            self.rate_until = Time(self.rate_until.0.max(now.0).saturating_add(step.max(1)));
        }
    }

    /// Works out anew whether anything limits it.
    pub(super) fn recheck(&mut self) {
        self.limited =
            self.pause.is_some() || self.settings.max_leased.is_some() || self.settings.rate_per_s.is_some();
    }
}

impl Shard {
    /// Whether a queue lets nothing through now; if it is for its rate, somebody looks again in time.
    pub(super) fn is_shut(&mut self, queue: u32) -> bool {
        let now = self.now;
        let found = &mut self.queues[queue as usize];
        match found.shut(now) {
            None => false,
            Some(Shut::Rate(at)) => {
                if found.rate_timer.is_none() {
                    found.rate_timer = Some(at);
                    self.timers.set(at, Timer::Rate { queue });
                }
                true
            }
            Some(_) => true,
        }
    }

    pub(super) fn rate_due(&mut self, queue: u32, at: Time) {
        if let Some(found) = self.queues.get_mut(queue as usize)
            && found.rate_timer == Some(at)
        {
            found.rate_timer = None;
            self.pump_later(queue);
        }
    }

    /// What waits in a queue is looked at once the command is done.
    pub(super) fn pump_later(&mut self, queue: u32) {
        if !std::mem::replace(&mut self.queues[queue as usize].to_pump, true) {
            self.to_pump.push(queue);
        }
    }

    /// Gives out what waits, as far as workers and limits let it: in order over all lanes, and to whoever's turn
    /// it is. A subscription alone does not see that: see [`Shard::feed`].
    pub(super) fn pump(&mut self, queue: u32, fx: &mut Effects) {
        self.give_out(queue, fx);
        let found = &self.queues[queue as usize];
        if found.limited || found.lacks.is_some() || self.pulls.is_empty() {
            return;
        }
        // Of several pulls of one name only the first is seen in the name's lane: the others look for themselves.
        let waits = |key: &SubscriptionKey| {
            let subscription = self.subscriptions.get(key.0 as usize).filter(|found| found.open);
            let session = subscription.and_then(|found| self.sessions.get(&found.session));
            session.is_some_and(|session| session.pull.is_some())
        };
        let pulls: Vec<SubscriptionKey> = found.subscribers.values().copied().filter(waits).collect();
        for key in pulls {
            self.feed(key, fx);
        }
    }

    fn give_out(&mut self, queue: u32, fx: &mut Effects) {
        while self.queues[queue as usize].lacks.is_none() && !self.is_shut(queue) {
            let Some((lane, priority, entry)) = self.best_of(queue) else { return };
            // Before anybody is picked, whose turn it then was.
            if self.must_wait(queue, &lane, entry, fx) {
                return;
            }
            let Some(key) = self.pick(entry.task, entry.recipient, &lane) else { return };
            self.take_from(queue, &lane, priority, entry);
            self.deliver(key, entry.task, entry.recipient, fx);
            self.come_nearer(queue, &lane, fx);
        }
    }

    /// Takes an entry out of its lane because it goes to a worker.
    pub(super) fn take_from(&mut self, queue: u32, lane: &LaneKey, priority: u8, entry: Entry) {
        let fair = self.tasks[entry.task].spec.keys.as_ref().and_then(|keys| keys.fair.as_ref());
        self.queues[queue as usize].ready_mut(lane).take(priority, entry, fair);
    }

    /// The first task in order of those that somebody may take.
    fn best_of(&mut self, queue: u32) -> Option<(LaneKey, u8, Entry)> {
        let Shard { queues, tasks, subscriptions, sessions, now, .. } = self;
        let queue = &mut queues[queue as usize];
        let ranking = Ranking::of(queue.settings.order, tasks);
        let judge = |entry: Entry, taker: &dyn Fn(&Share) -> bool| match tasks.get(entry.task) {
            Some(task) if task.spec.seq == entry.seq && !task.decided => match task.share(entry.recipient) {
                Some(share @ Share { state: ShareState::Queued { .. }, .. }) if taker(share) => Verdict::Take,
                Some(Share { state: ShareState::Queued { .. }, .. }) => Verdict::Skip,
                _ => Verdict::Stale,
            },
            _ => Verdict::Stale,
        };
        let takes = |share: &Share, key: SubscriptionKey| {
            subscriptions.get(key.0 as usize).is_some_and(|s| !share.avoids(s.session, *now))
        };
        let mut best: Option<(LaneKey, u8, Entry, Rank)> = None;
        let mut consider = |lane: LaneKey, found: Option<(u8, Entry, Rank)>| {
            if let Some((priority, entry, rank)) = found
                && best.as_ref().is_none_or(|(.., other)| rank < *other)
            {
                best = Some((lane, priority, entry, rank));
            }
        };
        let any = &mut queue.any;
        if !any.ring.is_empty() {
            let taker = |share: &Share| any.ring.any(|key| takes(share, key));
            consider(LaneKey::Any, any.ready.first(ranking, |entry| judge(entry, &taker)));
        }
        for (group, lane) in &mut queue.groups {
            if !lane.ring.is_empty() {
                let taker = |share: &Share| lane.ring.any(|key| takes(share, key));
                let found = lane.ready.first(ranking, |entry| judge(entry, &taker));
                consider(LaneKey::Group(group.clone()), found);
            }
        }
        for (key, lane) in &mut queue.workers {
            let Some(subscription) = lane.subscription else { continue };
            if !lane.ready.is_empty() && subscriptions[subscription.0 as usize].open {
                let taker = |share: &Share| takes(share, subscription);
                let session = sessions.get(&subscriptions[subscription.0 as usize].session);
                let pulls = session.is_some_and(|session| session.pull.is_some());
                let to_all = |entry: Entry| tasks.get(entry.task).is_some_and(|t| t.fanout().is_some());
                let found = lane.ready.first(ranking, |entry| match judge(entry, &taker) {
                    Verdict::Take if pulls && to_all(entry) => Verdict::Skip,
                    verdict => verdict,
                });
                consider(LaneKey::Worker(key as u32), found);
            }
        }
        best.map(|(lane, priority, entry, _)| (lane, priority, entry))
    }
}
