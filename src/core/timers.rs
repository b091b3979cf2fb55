//! What happens at a time unless something happens before.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::command::SessionId;
use super::time::Time;

/// A timer knows what it is for; whether that still holds is asked when it goes off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Some of a session's leases may have run out, or be about to.
    Leases { session: SessionId },
    /// The lease with this number may have run out.
    Lease { task: u32, recipient: u32, number: u64 },
    /// The attempt under the lease with this number may have run too long.
    RunLimit { task: u32, recipient: u32, number: u64 },
    /// The task with this place in order of acceptance may be due.
    Due { task: u32, recipient: u32, seq: u64 },
    /// The task may have outlived its use.
    Expires { task: u32, seq: u64 },
    /// A released task may be offered to its releaser again.
    Offer { task: u32, recipient: u32, seq: u64 },
    /// A worker with tasks to all may have been absent for too long.
    Absent { queue: u32, lane: u32 },
    /// The oldest finished task of a queue may have been kept long enough.
    Kept { queue: u32 },
    /// A worker that was told to stop may not have.
    Stop { task: u32, recipient: u32, number: u64 },
    /// A queue's rate may let the next task through.
    Rate { queue: u32 },
    /// The oldest `dedup_id` of a queue may have been remembered long enough.
    Dedup { queue: u32 },
    /// A pause may be over.
    Unpause { queue: u32 },
    /// A session that went away may not have come back.
    Resume { session: SessionId },
    /// A long piece of work for an operator goes on.
    Job { number: u64 },
    /// A schedule's time may have come.
    Schedule { schedule: u32, serial: u64 },
}

/// Below this many timers no cleaning is worth its while.
const CLEAN_MIN: usize = 1024;

/// A heap, cleaned of what no longer matters whenever that may be more than half of it: most
/// leases are settled long before they run out, and their timers must not pile up.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Time, Timer)>>,
    /// The size after the last cleaning.
    clean: usize,
}

impl Timers {
    pub(super) fn set(&mut self, at: Time, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    pub(super) fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next timer that is due at `now`.
    pub(super) fn due(&mut self, now: Time) -> Option<(Time, Timer)> {
        (self.next()? <= now).then(|| self.heap.pop().map(|Reverse(timer)| timer)).flatten()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn wants_cleaning(&self) -> bool {
        self.heap.len() > 2 * self.clean + CLEAN_MIN
    }

    /// Drops what is no longer `live`.
    pub(super) fn clean(&mut self, mut live: impl FnMut(Time, &Timer) -> bool) {
        self.heap.retain(|Reverse((at, timer))| live(*at, timer));
        self.clean = self.heap.len();
    }
}
