//! A schedule's time has come: a task is made of it, once.
//!
//! The task's id is made of the schedule's name, its making and the time that it fires for, so that the same time
//! cannot give two tasks: the task goes to the store before the schedule's new `next`, and where only the first
//! of the two survived, the id is found when the time is due again.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use taskyard_proto::{Error, TaskId};

use super::keep::next_of;
use super::{Missed, ScheduleRecord};
use crate::core::access::Access;
use crate::core::effect::Effects;
use crate::core::grants::Grants;
use crate::core::record::StoreOp;
use crate::core::shard::Shard;
use crate::core::time::Time;
use crate::core::timers::Timer;

/// A time is missed when no task could be made of it for so long.
const MISSED_MS: u64 = 1000;
/// A task that is refused is tried again so often.
const RETRY_MS: u64 = 1000;

/// The id of the task that a schedule submits for a time: a UUIDv7 of that time.
fn task_of(record: &ScheduleRecord, at: Time) -> TaskId {
    let mut hash = Sha256::new();
    // No name has a zero byte.
    hash.update(record.name.as_str().as_bytes());
    hash.update([0]);
    hash.update(record.made.0.to_be_bytes());
    hash.update(at.0.to_be_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    let random = u128::from_be_bytes(*hash.first_chunk().expect("32 bytes begin with 16"));
    let ms = u128::from(at.0 / 1000) & ((1 << 48) - 1);
    let (a, b) = (random >> 116, random & ((1 << 62) - 1));
    TaskId(ms << 80 | 7 << 76 | a << 64 | 2 << 62 | b)
}

impl Shard {
    /// Does what is due of a schedule at `now`; a timer of one that was replaced is of no effect.
    pub(in crate::core) fn schedule_due(&mut self, now: Time, key: u32, serial: u64, fx: &mut Effects) {
        let Some(found) = self.schedules.get_mut(key).filter(|found| found.serial == serial) else { return };
        let (Some(due), Some(beat)) = (found.record.next.filter(|due| *due <= now), &found.beat) else {
            return;
        };
        let latest = beat.latest(found.record.made, due, now);
        let fresh = |at: Time| now.ms_since(at) < MISSED_MS;
        let at = if found.trying && latest == due {
            // What was refused is tried until its successor comes, however late it is by then.
            Some(due)
        } else if !found.trying && fresh(due) {
            Some(due)
        } else {
            (found.record.missed == Missed::One || fresh(latest)).then_some(latest)
        };
        let Some(at) = at else {
            found.record.next = next_of(found, latest);
            found.trying = false;
            return self.arm_schedule(key);
        };
        let task = task_of(&found.record, at);
        let record = found.record.clone();
        let known = self.place(task).is_some();
        let fired = if known { Ok(()) } else { self.fire(&record, task, fx) };
        let found = self.schedules.get_mut(key).expect("it was found");
        let next = next_of(found, at);
        found.trying = fired.is_err();
        found.last_error = fired.err();
        if found.trying {
            // The store still has the time that was due: another process sees what was missed.
            found.record.next = Some(at);
            let again = next.map_or(now.plus_ms(RETRY_MS), |next| next.min(now.plus_ms(RETRY_MS)));
            // Whoever stops submits nothing any more: what is due is for the next process.
            if !self.draining {
                self.timers.set(again, Timer::Schedule { schedule: key, serial });
            }
            return;
        }
        found.record.next = next;
        found.record.fired += 1;
        found.record.last = Some((at, task));
        let record = Box::new(found.record.clone());
        self.store(StoreOp::Schedule(record), fx);
        self.arm_schedule(key);
    }

    fn fire(&mut self, record: &ScheduleRecord, task: TaskId, fx: &mut Effects) -> Result<(), Error> {
        // What it may do was asked when it was put.
        let access = record.account.as_ref().map(|account| Access {
            account: account.clone(),
            grants: Arc::new(Grants::default()),
            queued_tasks: record.queued_tasks,
            queued_bytes: record.queued_bytes,
        });
        self.submit_scheduled(access.as_ref(), task, (*record.submit).clone().into(), fx)
    }
}
