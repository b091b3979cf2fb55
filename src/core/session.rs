//! Who is connected, and what they asked for.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;
use smol_str::SmolStr;
use taskyard_proto::{GroupName, Headers, LeaseId, Mode, RoomName, Task, TaskId, WorkerName};

use super::access::Access;
use super::command::CallId;
use super::time::Time;

/// Where a subscription is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SubscriptionKey(pub(super) u32);

/// One session on one queue.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) session: super::SessionId,
    pub(super) queue: u32,
    /// The lane of its worker's name, as long as that lane knows it.
    pub(super) lane: u32,
    /// Its place in the rings: the order of subscribing.
    pub(super) place: u64,
    /// How many unsettled tasks it may hold.
    pub(super) credit: u32,
    /// How many it holds.
    pub(super) unsettled: u32,
    pub(super) mode: Mode,
    pub(super) explicit_start: bool,
    /// Whether it stands open in the rings.
    pub(super) open: bool,
}

/// How many settles a session's memory reaches back, to tell "already" from "lost".
const SETTLED_MAX: usize = 1024;

/// How a lease was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Ack,
    Nack,
    Release,
    Cancelled,
}

/// A request for tasks, and the holder of what it brought.
#[derive(Debug)]
pub(super) struct Pulling {
    pub(super) call: CallId,
    /// What it will be answered with, and the bytes of its payloads.
    pub(super) tasks: Vec<Task>,
    pub(super) bytes: usize,
    pub(super) answered: bool,
}

/// A logical connection.
#[derive(Debug)]
pub(super) struct Session {
    /// Whose it is; none: authentication is off.
    pub(super) access: Option<Arc<Access>>,
    pub(super) worker: WorkerName,
    pub(super) groups: Vec<GroupName>,
    pub(super) labels: Headers,
    pub(super) client: Option<String>,
    pub(super) since: Time,
    /// By queue, in order: one worker may have every queue there is, and each of its settles looks here.
    pub(super) subscriptions: SmallVec<[(u32, SubscriptionKey); 2]>,
    /// The leases it holds: task and recipient. A lease knows its place here; no other moves when it ends.
    pub(super) held: Slab<(u32, u32)>,
    /// When its leases are looked at: no later than the first of them runs out, but for those with a timer of their own.
    pub(super) leases_at: Option<Time>,
    /// The latest settles, newest last.
    pub(super) settled: VecDeque<(u64, Verb)>,
    /// Submits that wait for their answer.
    pub(super) unconfirmed: u32,
    pub(super) watching: BTreeSet<TaskId>,
    /// The rooms it is in, and its places there.
    pub(super) rooms: Vec<(RoomName, u64)>,
    /// It said `drain`, or an operator did.
    pub(super) draining: bool,
    /// What its resume token says, if it may be resumed.
    pub(super) resume_key: Option<u128>,
    /// Whose it was before a restart.
    pub(super) restored_account: Option<SmolStr>,
    /// Its socket has ended, and it waits to be taken up again until then.
    pub(super) away_until: Option<Time>,
    /// It is no socket, but holds what a pull brought.
    pub(super) pull: Option<Box<Pulling>>,
    /// A lease of its ran out and nothing was heard since.
    pub(super) silent: bool,
}

impl Session {
    pub(super) fn new(worker: WorkerName, groups: Vec<GroupName>, now: Time) -> Session {
        Session {
            access: None,
            worker,
            groups,
            labels: Headers::default(),
            client: None,
            since: now,
            subscriptions: SmallVec::new(),
            held: Slab::new(),
            leases_at: None,
            settled: VecDeque::new(),
            unconfirmed: 0,
            watching: BTreeSet::new(),
            rooms: Vec::new(),
            draining: false,
            resume_key: None,
            restored_account: None,
            away_until: None,
            pull: None,
            silent: false,
        }
    }

    /// All that it holds, task and recipient, in no order that means anything.
    pub(super) fn held(&self) -> impl Iterator<Item = (u32, u32)> {
        self.held.iter().map(|(_, held)| *held)
    }

    pub(super) fn subscription(&self, queue: u32) -> Option<SubscriptionKey> {
        self.place_of(queue).ok().map(|place| self.subscriptions[place].1)
    }

    /// Puts it in the place of one for the same queue, if there is one.
    pub(super) fn subscribe(&mut self, queue: u32, key: SubscriptionKey) {
        match self.place_of(queue) {
            Ok(place) => self.subscriptions[place].1 = key,
            Err(place) => self.subscriptions.insert(place, (queue, key)),
        }
    }

    pub(super) fn unsubscribe(&mut self, queue: u32) {
        if let Ok(place) = self.place_of(queue) {
            self.subscriptions.remove(place);
        }
    }

    /// Where a queue's subscription is, or would be.
    fn place_of(&self, queue: u32) -> Result<usize, usize> {
        self.subscriptions.binary_search_by_key(&queue, |(of, _)| *of)
    }

    pub(super) fn remember_settle(&mut self, number: u64, verb: Verb) {
        if self.settled.len() == SETTLED_MAX {
            self.settled.pop_front();
        }
        self.settled.push_back((number, verb));
    }

    pub(super) fn has_settled(&self, lease: LeaseId, verb: Verb) -> bool {
        self.settled.iter().rev().any(|(number, how)| *number == lease.number && *how == verb)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn a_session_finds_each_of_many_subscriptions() {
        let mut random = SmallRng::seed_from_u64(7);
        let worker = WorkerName::parse("w").unwrap();
        let mut session = Session::new(worker, Vec::new(), Time(0));
        let mut expected = BTreeMap::new();
        for step in 0..4_000 {
            let queue = random.random_range(0..500);
            if random.random_ratio(2, 5) {
                session.unsubscribe(queue);
                expected.remove(&queue);
            } else {
                session.subscribe(queue, SubscriptionKey(step));
                expected.insert(queue, SubscriptionKey(step));
            }
            let asked = random.random_range(0..500);
            assert_eq!(session.subscription(asked), expected.get(&asked).copied(), "step {step}");
        }
        assert!(session.subscriptions.iter().copied().eq(expected));
    }
}
