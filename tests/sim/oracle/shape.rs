//! What a queue's settings promise: pauses, limits, rates; and that a wait is explained.

use super::*;

impl Oracle {
    /// How long a finished task of a queue can be looked up, in microseconds.
    pub(super) fn keep_of(&self, queue: &QueueName) -> u64 {
        let shape = self.shapes.get(queue);
        shape.and_then(|shape| shape.settings.keep_result_ms).unwrap_or(self.keep_ms) * MS
    }

    /// Whether ids of submits may still be remembered.
    pub(crate) fn remembers_ids(&self) -> bool {
        !self.dedups.is_empty()
    }

    pub(super) fn pauses_end(&mut self, horizon: u64) {
        let turn = self.turn;
        for shape in self.shapes.values_mut() {
            if shape.pause.is_some_and(|until| until.is_some_and(|at| at <= horizon)) {
                shape.pause = None;
                shape.turn = turn;
            }
        }
    }

    fn leased_of(&self, queue: &QueueName) -> u64 {
        self.leases.values().filter(|lease| lease.live && lease.queue == *queue).count() as u64
    }

    /// What a delivery that is about to be noted would break.
    pub(super) fn may_not_pass(&self, queue: &QueueName) -> Option<String> {
        let shape = self.shapes.get(queue)?;
        if shape.pause.is_some_and(|until| until.is_none_or(|at| at > self.now)) {
            return Some("it is paused".into());
        }
        let leased = self.leased_of(queue);
        if let Some(max) = shape.settings.max_leased.filter(|max| leased >= *max) {
            return Some(format!("{leased} are with workers, of at most {max}"));
        }
        let rate = shape.settings.rate_per_s?;
        let burst = (rate * 0.01).max(1.0);
        // In any stretch of time no more than rate × time + burst.
        shape.handed_out.iter().rev().enumerate().find_map(|(nth, at)| {
            let most = rate * (self.now - at) as f64 / 1e6 + burst;
            let were = nth as f64 + 2.0;
            // Steps are of whole microseconds.
            (were > most + 0.001).then(|| {
                format!("{were} within {} µs, at {rate} a second and a burst of {burst}", self.now - at)
            })
        })
    }

    pub(super) fn hand_out(&mut self, queue: &QueueName) {
        let now = self.now;
        if let Some(shape) = self.shapes.get_mut(queue)
            && shape.settings.rate_per_s.is_some()
        {
            shape.handed_out.push(now);
        }
    }

    /// Whether a queue may let nothing through.
    pub(super) fn is_shut(&self, queue: &QueueName) -> bool {
        let Some(shape) = self.shapes.get(queue) else { return false };
        let spaced = shape.settings.rate_per_s.is_some_and(|rate| {
            let last = shape.handed_out.last().copied().unwrap_or(0).max(shape.rate_since);
            last + (1e6 / rate) as u64 + 1 > self.last_expire
        });
        shape.pause.is_some()
            || shape.settings.max_leased.is_some_and(|max| self.leased_of(queue) >= max)
            || spaced
    }

    pub(super) fn is_aged(&self, queue: &QueueName) -> bool {
        self.shapes.get(queue).is_some_and(|shape| shape.settings.order != Order::Strict)
    }

    /// Whether the plain turns of a ring do not tell who gets a task.
    pub(super) fn is_shaped(&self, found: &Tracked) -> bool {
        let settings = self.shapes.get(&found.submit.queue).map(|shape| &shape.settings);
        let limited = settings.is_some_and(|s| s.max_leased.is_some() || s.rate_per_s.is_some());
        let assign = found.submit.assign.or(settings.and_then(|s| s.assign));
        let pulls = || {
            self.pulls.values().any(|id| {
                self.sessions.get(id).is_some_and(|s| s.subscriptions.contains_key(&found.submit.queue))
            })
        };
        limited || assign.is_some_and(|assign| assign != Assign::RoundRobin) || found.early || pulls()
    }

    /// What a pull gets is told only at the end of the input.
    pub(super) fn a_pull_may_take(&self, found: &Tracked) -> bool {
        // One that went to anybody while its worker was absent stays with them when that is back.
        let to_any = matches!(&found.submit.to, Some(Target::Worker { if_absent: IfAbsent::Any, .. }));
        self.pulls.values().any(|id| {
            self.sessions.contains_key(id)
                && self.is_open(*id, &found.submit.queue)
                && (to_any || self.may_take(found, 0, *id))
        })
    }

    /// Whether only the broker knows how many tasks of a queue have not ended.
    pub(super) fn is_unsure(&self, queue: &QueueName) -> bool {
        let open = |found: &&Tracked| found.submit.queue == *queue && !found.gone;
        self.tasks.values().filter(open).any(|found| self.is_maybe_over(found))
    }

    /// Why a queue would refuse a submit.
    pub(super) fn is_overfull(&self, submit: &Submit, refused: bool) -> Option<ErrorCode> {
        let settings = &self.shapes.get(&submit.queue)?.settings;
        let unfinished = || {
            self.tasks
                .values()
                .filter(|t| t.submit.queue == submit.queue && !t.gone && (t.over.is_none() || t.murky))
        };
        let bytes = |submit: &Submit| submit.payload.bytes().len() as u64;
        let full = settings.max_tasks.is_some_and(|max| unfinished().count() as u64 >= max)
            || settings
                .max_bytes
                .is_some_and(|max| unfinished().map(|t| bytes(&t.submit)).sum::<u64>() + bytes(submit) > max);
        let limited = settings.max_tasks.is_some() || settings.max_bytes.is_some();
        // How many there are only the broker knows for certain.
        let unsure = || unfinished().any(|found| self.is_maybe_over(found));
        let full = if limited && unsure() { refused } else { full };
        full.then_some(ErrorCode::QueueFull)
    }

    /// After a start: what was said of queues is what they have.
    pub(super) fn shapes_return(&mut self, shard: &Shard) -> Judged {
        let (death, now) = (self.durable_at_death, self.now);
        let mut wrong = None;
        for (queue, shape) in &mut self.shapes {
            let view = shard.queue_view(queue, Time(now));
            let settings = view.as_ref().map(|view| view.settings.clone()).unwrap_or_default();
            let pause = view.as_ref().and_then(|view| view.pause.as_ref()).map(|p| p.until.map(|at| at.0));
            let passed = shape.pause.is_some_and(|until| until.is_some_and(|at| at <= now));
            if shape.turn <= death && (settings != shape.settings || (pause != shape.pause && !passed)) {
                wrong = Some(format!(
                    "queue {queue} had {:?}, {:?}, and has {settings:?}, {pause:?}",
                    shape.settings, shape.pause
                ));
            }
            (shape.settings, shape.pause, shape.turn) = (settings, pause, 0);
            shape.handed_out.clear();
            shape.rate_since = now;
        }
        match wrong {
            Some(what) => Err(self.broken("§7 a queue's settings survive a restart", None, what)),
            None => Ok(()),
        }
    }

    /// A task that waits says why, and what it says is so.
    pub(super) fn explained(&self, shard: &Shard) -> Judged {
        use taskyard::core::view::Reason;
        for (id, found) in &self.tasks {
            if found.gone || found.forgotten || found.over.is_some() || self.is_maybe_over(found) {
                continue;
            }
            let promise = "§7 explain tells why a task is not with a worker";
            let Some(told) = shard.explain(*id, Time(self.now)) else { continue };
            // One to nobody ends as soon as it is durable.
            let waits = told.state == TaskState::Queued && found.active && !found.shares.is_empty();
            self.require(!waits || !told.reasons.is_empty(), promise, Some(*id), || {
                "it is queued, and nothing is said of why".into()
            })?;
            let queue = &found.submit.queue;
            for reason in &told.reasons {
                let here = || {
                    let sessions = self.sessions.values().filter(|s| s.subscriptions.contains_key(queue));
                    // A pull is no recipient of a task to all.
                    let to_all = matches!(found.submit.to, Some(Target::All(_)));
                    let sessions = sessions.filter(|s| !to_all || s.pull.is_none());
                    sessions.collect::<Vec<_>>()
                };
                let right = match reason {
                    Reason::NoWorker => here().is_empty(),
                    Reason::WorkerAbsent { worker } => !here().iter().any(|s| s.worker == *worker),
                    Reason::GroupEmpty { group } => !here().iter().any(|s| s.groups.contains(group)),
                    Reason::NoCredit { busy, silent, draining } => {
                        *busy > 0 && here().len() as u64 >= *busy && silent + draining <= *busy
                    }
                    Reason::OrderBlocked { by } => {
                        *by != *id
                            && self.tasks.get(by).is_some_and(|other| {
                                other.submit.order_key == found.submit.order_key
                                    && (other.over.is_none() || self.is_maybe_over(other))
                            })
                    }
                    Reason::Paused { .. } => self.shapes.get(queue).is_some_and(|s| s.pause.is_some()),
                    Reason::QueueLimit { max_leased } => self.leased_of(queue) >= *max_leased,
                    Reason::RateLimited { .. } => {
                        self.shapes.get(queue).is_some_and(|s| s.settings.rate_per_s.is_some())
                    }
                    Reason::Backoff { .. } => found.shares.iter().any(|s| s.retrying || found.unclean),
                    Reason::Scheduled { .. } => {
                        found.submit.delay_ms.is_some() || found.shares.iter().any(|s| s.by > 0)
                    }
                    Reason::Released { .. } => found.shares.iter().any(|s| s.avoid.is_some()),
                    Reason::NotDurable => !found.active,
                    Reason::PayloadAway => shard.lacks_payload(queue),
                    Reason::Draining => self.draining,
                };
                self.require(right, promise, Some(*id), || format!("{reason:?} is not so"))?;
            }
        }
        Ok(())
    }

    /// Nothing is held that was not handed out.
    pub(super) fn leases_agree(&self, shard: &Shard) -> Judged {
        let live = self.leases.values().filter(|lease| lease.live).count() as u64;
        let murky = self.tasks.values().filter(|found| self.is_maybe_over(found)).count() as u64;
        let out = shard.leases_out();
        self.require(
            out <= live + 20 * murky && live <= out + 20 * murky,
            "I6 leases are counted",
            None,
            || format!("{out} leases are out, {live} were handed out and have not ended"),
        )
    }

    /// Whether fair keys have a say in when a task of this queue and priority goes.
    pub(super) fn takes_turns(&self, taken: &Tracked) -> bool {
        self.tasks.values().any(|found| {
            found.submit.fair_key.is_some()
                && found.priority == taken.priority
                && found.submit.queue == taken.submit.queue
                && !found.gone
                && (found.over.is_none() || self.is_maybe_over(found))
        })
    }
}
