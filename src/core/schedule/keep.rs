//! The schedules there are: made, replaced, ended, and brought back at a start.

use std::collections::BTreeMap;
use std::sync::Arc;

use slab::Slab;
use taskyard_proto::{Confirm, Error, ErrorCode, QueueName, Submit};

use super::{Beat, Missed, Rhythm, ScheduleName, ScheduleRecord, ScheduleView};
use crate::core::access::Access;
use crate::core::command::CallId;
use crate::core::effect::{Effects, Output};
use crate::core::grants::Action;
use crate::core::manage::Report;
use crate::core::record::StoreOp;
use crate::core::shard::Shard;
use crate::core::time::Time;
use crate::core::timers::Timer;

/// How many schedules there may be: each takes a timer and, with a pattern, some 6 KB.
pub const SCHEDULES_MAX: usize = 10_000;
/// How many bytes the payloads of all of them may have together: they stay in memory.
pub const SCHEDULES_BYTES_MAX: u64 = 64 << 20;

/// All schedules.
#[derive(Debug, Default)]
pub(in crate::core) struct Schedules {
    /// Their numbers, by name.
    names: BTreeMap<ScheduleName, u32>,
    all: Slab<Schedule>,
    /// The bytes of all payloads.
    bytes: u64,
    next_serial: u64,
}

/// One schedule.
#[derive(Debug)]
pub(super) struct Schedule {
    pub(super) record: ScheduleRecord,
    /// None: what the store holds is no rhythm of this version.
    pub(super) beat: Option<Beat>,
    /// Each put gives another: timers that were set before are of no effect.
    pub(super) serial: u64,
    /// No task came yet of the time that is `next`, and it is tried again.
    pub(super) trying: bool,
    pub(super) last_error: Option<Error>,
}

impl Schedules {
    pub(super) fn find(&self, name: &ScheduleName) -> Option<u32> {
        self.names.get(name).copied()
    }

    pub(super) fn get(&self, key: u32) -> Option<&Schedule> {
        self.all.get(key as usize)
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut Schedule> {
        self.all.get_mut(key as usize)
    }

    /// The queue of each.
    pub(in crate::core) fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.all.iter().map(|(_, schedule)| &schedule.record.submit.queue)
    }

    /// Whether a timer is still for something.
    pub(in crate::core) fn timer_matters(&self, key: u32, serial: u64) -> bool {
        self.get(key).is_some_and(|found| found.serial == serial)
    }

    /// Replaces what there was of its name.
    fn insert(&mut self, record: ScheduleRecord, beat: Option<Beat>) -> u32 {
        self.remove(&record.name);
        self.bytes += bytes(&record.submit);
        self.next_serial += 1;
        let (name, serial) = (record.name.clone(), self.next_serial);
        let key = self.all.insert(Schedule { record, beat, serial, trying: false, last_error: None }) as u32;
        self.names.insert(name, key);
        key
    }

    fn remove(&mut self, name: &ScheduleName) -> bool {
        let Some(key) = self.names.remove(name) else { return false };
        self.bytes -= bytes(&self.all.remove(key as usize).record.submit);
        true
    }
}

fn bytes(submit: &Submit) -> u64 {
    submit.payload.bytes().len() as u64
}

/// Refuses what a schedule's submit cannot say: when it runs, and what is for whoever waits for the answer.
pub fn check_template(submit: &Submit) -> Result<(), Error> {
    let refused = [
        ("run_at", submit.run_at.is_some(), "the schedule itself says when; `delay_ms` is allowed"),
        ("dedup_id", submit.dedup_id.is_some(), "no task of a schedule is the same as another"),
        ("watch", submit.watch, "nobody waits for what comes of it; watch a task by its id"),
        (
            "confirm",
            submit.confirm.is_some_and(|confirm| confirm != Confirm::Durable),
            "its tasks are durable",
        ),
    ];
    match refused.iter().find(|(_, given, _)| *given) {
        None => Ok(()),
        Some((field, _, why)) => {
            let text = format!("schedule, field `{field}`: leave it out: {why}");
            Err(Error::new(ErrorCode::BadRequest, text).field(field))
        }
    }
}

/// What is refused of a schedule that is not there, or of which one may not know.
fn no_such(name: &ScheduleName) -> Error {
    Error::new(
        ErrorCode::NotFound,
        format!("there is no schedule {name}: PUT /v1/schedules/{name} makes one"),
    )
}

impl ScheduleRecord {
    /// Whether a put that says this would change nothing.
    fn says_the_same_as(&self, other: &ScheduleRecord) -> bool {
        self.rhythm == other.rhythm
            && self.missed == other.missed
            && self.submit == other.submit
            && self.account == other.account
            && (self.queued_tasks, self.queued_bytes) == (other.queued_tasks, other.queued_bytes)
    }
}

impl Shard {
    /// Makes a schedule, or replaces the one of this name.
    #[expect(clippy::too_many_arguments, reason = "they are what a put says")]
    pub(in crate::core) fn put_schedule(
        &mut self,
        call: CallId,
        access: Option<Arc<Access>>,
        name: ScheduleName,
        rhythm: Rhythm,
        missed: Missed,
        submit: Submit,
        fx: &mut Effects,
    ) {
        let report = match self.admit_schedule(access.as_deref(), &name, &rhythm, &submit) {
            Err(error) => {
                return fx.outputs.push(Output::Report { call, report: Report::Refused(Box::new(error)) });
            }
            Ok(beat) => self.keep_schedule(access.as_deref(), name, (rhythm, beat), missed, submit, fx),
        };
        self.report_when_durable(call, report, fx);
    }

    fn admit_schedule(
        &mut self,
        access: Option<&Access>,
        name: &ScheduleName,
        rhythm: &Rhythm,
        submit: &Submit,
    ) -> Result<Beat, Error> {
        self.check_grant(access, Action::Manage, &submit.queue)?;
        let old = self.schedules.find(name).and_then(|key| self.schedules.get(key)).map(|old| &old.record);
        let (count, freed) = old.map_or((1, 0), |old| (0, bytes(&old.submit)));
        if let (Some(old), Some(access)) = (old, access)
            && !access.grants.may(Action::Manage, old.submit.queue.as_str())
        {
            self.refusals.forbidden += 1;
            let text = format!(
                "there is a schedule {name} already, of a queue that the token of {} may not manage: take another name",
                access.account
            );
            return Err(Error::new(ErrorCode::Forbidden, text));
        }
        if let Some(error) = self.closed_to_submits() {
            return Err(error);
        }
        check_template(submit)?;
        Self::check_terms(submit, None)?;
        let beat = rhythm.check(self.now)?;
        if self.schedules.names.len() + count > SCHEDULES_MAX {
            let text = format!(
                "there are {SCHEDULES_MAX} schedules, the most that there may be: delete one that is not needed"
            );
            return Err(Error::new(ErrorCode::QueueFull, text));
        }
        if self.schedules.bytes - freed + bytes(submit) > SCHEDULES_BYTES_MAX {
            let text = format!(
                "the payloads of all schedules may have {} MiB together, and have {} bytes: send less, or the name \
                 of what the worker is to fetch",
                SCHEDULES_BYTES_MAX >> 20,
                self.schedules.bytes
            );
            return Err(Error::new(ErrorCode::QueueFull, text));
        }
        Ok(beat)
    }

    fn keep_schedule(
        &mut self,
        access: Option<&Access>,
        name: ScheduleName,
        (rhythm, beat): (Rhythm, Beat),
        missed: Missed,
        submit: Submit,
        fx: &mut Effects,
    ) -> Report {
        let made = self.now;
        let mut record = ScheduleRecord {
            name,
            rhythm,
            missed,
            submit: Arc::new(submit),
            account: access.map(|access| access.account.clone()),
            queued_tasks: access.and_then(|access| access.queued_tasks),
            queued_bytes: access.and_then(|access| access.queued_bytes),
            made,
            next: beat.next(made, made),
            fired: 0,
            last: None,
        };
        let mut report = Report::Created;
        if let Some(key) = self.schedules.find(&record.name) {
            // What was due before the put came is of the old one.
            let serial = self.schedules.get(key).map_or(0, |old| old.serial);
            self.schedule_due(made, key, serial, fx);
            let old = &self.schedules.get(key).expect("it was found").record;
            if record.says_the_same_as(old) {
                // Put again by every deployment, its periods would begin anew each time.
                return Report::Done;
            }
            (record.fired, record.last) = (old.fired, old.last);
            report = Report::Done;
        }
        self.store(StoreOp::Schedule(Box::new(record.clone())), fx);
        let key = self.schedules.insert(record, Some(beat));
        self.arm_schedule(key);
        report
    }

    /// Ends a schedule. Tasks that came of it stay.
    pub(in crate::core) fn delete_schedule(
        &mut self,
        call: CallId,
        access: Option<Arc<Access>>,
        name: &ScheduleName,
        fx: &mut Effects,
    ) {
        if let Err(error) = self.may_delete(access.as_deref(), name) {
            return fx.outputs.push(Output::Report { call, report: Report::Refused(Box::new(error)) });
        }
        self.schedules.remove(name);
        self.store(StoreOp::Unschedule(name.clone()), fx);
        self.report_when_durable(call, Report::Done, fx);
    }

    fn may_delete(&mut self, access: Option<&Access>, name: &ScheduleName) -> Result<(), Error> {
        let found = self.schedules.find(name).and_then(|key| self.schedules.get(key));
        let Some(queue) = found.map(|found| found.record.submit.queue.clone()) else {
            return Err(no_such(name));
        };
        if access.is_some_and(|access| !access.grants.may(Action::Observe, queue.as_str())) {
            return Err(no_such(name));
        }
        self.check_grant(access, Action::Manage, &queue)
    }

    /// Of a replay: the rhythm is read at its end, since most records of a store are replaced by later ones.
    pub(in crate::core) fn restore_schedule(&mut self, record: ScheduleRecord) {
        self.schedules.insert(record, None);
    }

    /// Of a replay.
    pub(in crate::core) fn restore_no_schedule(&mut self, name: &ScheduleName) {
        self.schedules.remove(name);
    }

    /// Ends a replay: times that were missed are due now.
    pub(in crate::core) fn begin_schedules(&mut self) {
        let now = self.now;
        let keys: Vec<u32> = self.schedules.names.values().copied().collect();
        for key in keys {
            let found = self.schedules.get_mut(key).expect("it has a name");
            match found.record.rhythm.read() {
                Ok(beat) => {
                    let record = &mut found.record;
                    // Zones change their rules, and this may be another version of the broker.
                    if record.next.is_some_and(|next| next > now) {
                        let last = record.last.map_or(record.made, |(at, _)| at.max(record.made));
                        record.next = beat.next(record.made, now.max(last));
                    }
                    found.beat = Some(beat);
                }
                Err(error) => found.last_error = Some(error),
            }
            self.arm_schedule(key);
        }
    }

    /// Sets the timer of a schedule; one that will not fire again has none.
    pub(super) fn arm_schedule(&mut self, key: u32) {
        let Some(found) = self.schedules.get(key).filter(|found| found.beat.is_some()) else { return };
        if let Some(at) = found.record.next {
            self.timers.set(at, Timer::Schedule { schedule: key, serial: found.serial });
        }
    }

    /// All schedules, by name.
    pub(in crate::core) fn all_schedules(&self) -> Vec<ScheduleView> {
        self.schedules.names.keys().filter_map(|name| self.one_schedule(name)).collect()
    }

    /// One schedule.
    pub(in crate::core) fn one_schedule(&self, name: &ScheduleName) -> Option<ScheduleView> {
        let found = self.schedules.get(self.schedules.find(name)?)?;
        Some(ScheduleView { record: found.record.clone(), last_error: found.last_error.clone() })
    }
}

/// The time after `after` at which a schedule fires.
pub(super) fn next_of(schedule: &Schedule, after: Time) -> Option<Time> {
    schedule.beat.as_ref()?.next(schedule.record.made, after)
}
