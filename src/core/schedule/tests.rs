//! Schedules in the core: the store is a list, and time passes when it is told to.

use std::sync::Arc;

use taskyard_proto::{Error, ErrorCode, Payload, QueueName, Submit, TaskId, TaskState};

use super::{Missed, Rhythm, SCHEDULES_BYTES_MAX, SCHEDULES_MAX, ScheduleName, ScheduleView};
use crate::core::record::FinishRecord;
use crate::core::{
    Access, CallId, Command, Config, Effects, Grants, Manage, Output, Replay, Report, Shard, StoreOp, Time,
};

/// 2027-01-01T00:00:00Z.
const BEGIN: u64 = 1_798_761_600_000_000;
const S: u64 = 1_000_000;

struct Stage {
    shard: Shard,
    now: Time,
    stored: Vec<StoreOp>,
    /// The tasks that were made, and when.
    made: Vec<(u64, TaskId)>,
    reports: Vec<Report>,
}

fn config() -> Config {
    Config { weight_max: 100_000, ..Config::default() }
}

fn name(text: &str) -> ScheduleName {
    ScheduleName::parse(text).unwrap()
}

fn submit(payload: usize) -> Submit {
    Submit::new(QueueName::parse("q").unwrap(), Payload::binary(vec![7; payload]))
}

fn every(ms: u64) -> Rhythm {
    Rhythm::Every { ms }
}

fn access(rules: &[&str], queued_tasks: Option<u64>) -> Arc<Access> {
    let grants = Arc::new(Grants::parse(rules.iter().copied()).unwrap());
    Arc::new(Access { account: "ops".into(), grants, queued_tasks, queued_bytes: None })
}

impl Stage {
    fn new() -> Stage {
        let shard = Shard::new(config());
        Stage { shard, now: Time(BEGIN), stored: Vec::new(), made: Vec::new(), reports: Vec::new() }
    }

    /// Makes durable what was stored, and notes what was told.
    fn flush(&mut self, mut fx: Effects) {
        let through = self.shard.operations();
        self.shard.apply(self.now, Command::Stored { through }, &mut fx);
        for op in fx.store.drain(..) {
            if let StoreOp::Accept(accepted) = &op {
                self.made.push((self.now.micros_since(Time(BEGIN)) / 1000, accepted.spec.id()));
            }
            self.stored.push(op);
        }
        self.reports.extend(fx.outputs.into_iter().filter_map(|output| match output {
            Output::Report { report, .. } => Some(report),
            _ => None,
        }));
    }

    fn apply(&mut self, command: Command) {
        let mut fx = Effects::default();
        self.shard.apply(self.now, command, &mut fx);
        self.flush(fx);
    }

    fn manage(&mut self, access: Option<Arc<Access>>, manage: Manage) -> Report {
        self.apply(Command::Manage { call: CallId(1), access, manage: Box::new(manage) });
        assert_eq!(self.reports.len(), 1, "one answer: {:?}", self.reports);
        self.reports.pop().unwrap()
    }

    fn put(&mut self, schedule: &str, rhythm: Rhythm, missed: Missed, submit: Submit) -> Report {
        let submit = Box::new(submit);
        self.manage(None, Manage::PutSchedule { name: name(schedule), rhythm, missed, submit })
    }

    fn delete(&mut self, schedule: &str) -> Report {
        self.manage(None, Manage::DeleteSchedule { name: name(schedule) })
    }

    /// Goes from deadline to deadline.
    fn pass(&mut self, us: u64) {
        let end = Time(self.now.0 + us);
        while let Some(at) = self.shard.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.due();
        }
        self.now = end;
    }

    fn due(&mut self) {
        let mut fx = Effects::default();
        self.shard.expire(self.now, &mut fx);
        self.flush(fx);
    }

    /// Another process on the first operations of the store, after a while.
    fn restart(mut self, operations: usize, us: u64) -> Stage {
        self.stored.truncate(operations);
        let mut replay = Replay::new(Shard::new(config()));
        for op in &self.stored {
            replay.operation(op.clone());
        }
        let now = Time(self.now.0 + us);
        let mut fx = Effects::default();
        let shard = replay.begin(now, false, 2, &mut fx);
        let mut stage = Stage { shard, now, made: Vec::new(), reports: Vec::new(), ..self };
        stage.flush(fx);
        stage.due();
        stage
    }

    fn again(self, us: u64) -> Stage {
        let all = self.stored.len();
        self.restart(all, us)
    }

    fn view(&self, schedule: &str) -> ScheduleView {
        self.shard.schedule(&name(schedule)).unwrap()
    }

    /// When tasks were made, in milliseconds.
    fn times(&self) -> Vec<u64> {
        self.made.iter().map(|(at, _)| *at).collect()
    }

    /// Ends a task as a worker would, and forgets it.
    fn end(&mut self, task: TaskId) {
        let finish = FinishRecord {
            task,
            queue: QueueName::parse("q").unwrap(),
            state: TaskState::Done,
            accepted: self.now,
            finished: self.now,
            attempts: 1,
            max_attempts: 5,
            worker: None,
            result: Payload::NULL,
            error: None,
            history: Vec::new(),
            event_seq: 1,
            totals: [1, 0, 0],
            dedup: None,
            fanout: None,
        };
        self.stored.extend([StoreOp::Finish(Box::new(finish)), StoreOp::Forget(task)]);
    }
}

fn refused(report: Report) -> Error {
    match report {
        Report::Refused(error) => *error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_time_gives_one_task_with_an_id_of_that_time() {
    let mut stage = Stage::new();
    assert_eq!(stage.put("a", every(1500), Missed::One, submit(3)), Report::Created);
    stage.pass(5 * S);
    assert_eq!(stage.times(), [1500, 3000, 4500]);
    let ids: Vec<u128> = stage.made.iter().map(|(_, task)| task.0).collect();
    for (id, at) in ids.iter().zip([1500, 3000, 4500]) {
        assert_eq!((id >> 80) as u64, BEGIN / 1000 + at, "its time is that of the firing");
        assert_eq!((id >> 76 & 0xf, id >> 62 & 3), (7, 2), "a UUIDv7");
    }
    let view = stage.view("a");
    assert_eq!((view.record.fired, view.last_error), (3, None));
    assert_eq!(view.record.next, Some(Time(BEGIN + 6 * S)));
    assert_eq!(view.record.last, Some((Time(BEGIN + 4_500_000), TaskId(ids[2]))));
    let task = stage.shard.task_view(TaskId(ids[0]), stage.now).unwrap();
    assert_eq!(task.state, TaskState::Queued);
    // Two schedules of one rhythm are two.
    let mut stage = Stage::new();
    stage.put("a", every(1000), Missed::One, submit(0));
    stage.put("b", every(1000), Missed::One, submit(0));
    stage.pass(S);
    assert_eq!(stage.made.len(), 2);
    assert_ne!(stage.made[0].1, stage.made[1].1);
}

#[test]
fn a_restart_changes_no_beat() {
    let mut stage = Stage::new();
    stage.put("a", every(1500), Missed::One, submit(0));
    stage.pass(2 * S);
    let mut stage = stage.again(300_000);
    stage.pass(3 * S);
    assert_eq!(stage.times(), [3000, 4500]);
    assert_eq!(stage.view("a").record.fired, 3);
}

#[test]
fn wherever_the_store_ends_a_time_gives_one_task() {
    let mut stage = Stage::new();
    stage.put("a", every(1000), Missed::One, submit(0));
    stage.pass(S);
    let task = stage.made[0].1;
    assert!(matches!(stage.stored[..], [StoreOp::Schedule(_), StoreOp::Accept(_), StoreOp::Schedule(_)]));
    let stored = stage.stored.clone();
    // Nothing of it, the task alone, all of it; and as often as it happens.
    for (operations, made) in [(1, 1), (2, 0), (3, 0)] {
        let mut stage = Stage { stored: stored.clone(), now: Time(BEGIN + S), ..Stage::new() };
        for _ in 0..2 {
            stage = stage.restart(operations, 100_000);
            assert_eq!(stage.made.len(), made, "{operations} operations");
            assert!(stage.made.iter().all(|(_, made)| *made == task), "the same task");
            let view = stage.view("a");
            assert_eq!((view.record.fired, view.record.last), (1, Some((Time(BEGIN + S), task))));
            assert_eq!(stage.shard.live_tasks(), 1);
        }
        stage.pass(S);
        assert_eq!(stage.made.last().map(|(at, _)| *at), Some(2000));
    }
    // A task that has ended and is forgotten is behind its schedule's step in the store.
    let mut stage = Stage { stored, now: Time(BEGIN + S), ..Stage::new() };
    stage.end(task);
    let stage = stage.again(100_000);
    assert_eq!((stage.made.len(), stage.view("a").record.fired), (0, 1));
}

#[test]
fn times_that_were_missed_are_made_up_for_by_one_task_or_by_none() {
    for (missed, made) in [(Missed::One, vec![10_700]), (Missed::None, vec![])] {
        let mut stage = Stage::new();
        stage.put("a", every(3000), missed, submit(0));
        let mut stage = stage.again(10_700_000);
        assert_eq!(stage.times(), made, "9000 is 1.7 s ago");
        let last = stage.view("a").record.last.map(|(at, _)| at);
        assert_eq!(last, (missed == Missed::One).then_some(Time(BEGIN + 9 * S)), "the latest of them");
        stage.made.clear();
        stage.pass(5 * S);
        assert_eq!(stage.times(), [12_000, 15_000]);
    }
}

#[test]
fn what_is_late_by_less_than_a_second_is_not_missed() {
    let mut stage = Stage::new();
    stage.put("a", every(3000), Missed::None, submit(0));
    let mut stage = stage.again(9_999_000);
    assert_eq!(stage.times(), [9_999], "that of 9000 alone; the earlier ones are gone");
    stage.pass(S);
    let mut stage = stage.again(1_500_000);
    assert_eq!(stage.times(), [12_499]);
    // A stall of the running process is no other thing.
    stage.made.clear();
    stage.now = Time(BEGIN + 20 * S);
    stage.due();
    assert_eq!(stage.times(), Vec::<u64>::new(), "18000 is 2 s ago");
    stage.pass(S);
    assert_eq!(stage.times(), [21_000]);
    // Each of several that are late by less has its task.
    let mut stage = Stage::new();
    stage.put("a", every(100), Missed::One, submit(0));
    stage.now = Time(BEGIN + 550_000);
    stage.due();
    assert_eq!(stage.times(), [550; 5]);
}

#[test]
fn a_pattern_fires_in_its_zone_and_after_a_long_absence_once() {
    let daily = Rhythm::Cron { pattern: "0 3 * * *".into(), tz: "Europe/Zurich".into() };
    let mut stage = Stage::new();
    stage.put("a", daily, Missed::One, submit(0));
    stage.pass(48 * 3600 * S);
    assert_eq!(stage.times(), [2 * 3_600_000, 26 * 3_600_000]);
    let stage = stage.again(1000 * 24 * 3600 * S);
    assert_eq!(stage.made.len(), 1);
    let secondly = Rhythm::Cron { pattern: "* * * * * *".into(), tz: "UTC".into() };
    let mut stage = Stage::new();
    stage.put("a", secondly, Missed::One, submit(0));
    let stage = stage.again(365 * 24 * 3600 * S + 1500);
    assert_eq!(stage.made.len(), 1);
}

#[test]
fn a_task_that_is_refused_is_tried_until_the_next_time_comes() {
    let mut stage = Stage::new();
    // Room for two of them, not for three.
    stage.put("a", every(10_000), Missed::None, submit(40_000));
    stage.pass(20 * S);
    assert_eq!(stage.times(), [10_000, 20_000]);
    stage.made.clear();
    stage.pass(15 * S);
    assert_eq!(stage.times(), Vec::<u64>::new());
    let view = stage.view("a");
    assert_eq!(view.last_error.as_ref().map(|error| error.code), Some(ErrorCode::QueueFull));
    assert_eq!((view.record.fired, view.record.next), (2, Some(Time(BEGIN + 30 * S))));
    // Room again: the time of 30000 is still of use.
    stage.shard.config.weight_max = 1_000_000;
    stage.pass(1_200_000);
    assert_eq!(stage.times(), [36_000]);
    let view = stage.view("a");
    assert_eq!((view.last_error, view.record.last.map(|(at, _)| at)), (None, Some(Time(BEGIN + 30 * S))));
    stage.pass(4 * S);
    assert_eq!(stage.times(), [36_000, 40_000]);
    // Once the next comes, the one before is given up.
    stage.shard.config.weight_max = 0;
    stage.made.clear();
    stage.pass(22 * S);
    stage.shard.config.weight_max = 1_000_000;
    stage.pass(2 * S);
    assert_eq!(stage.made.len(), 1);
    assert_eq!(stage.view("a").record.last.map(|(at, _)| at), Some(Time(BEGIN + 60 * S)));
}

#[test]
fn what_was_refused_is_missed_by_the_next_process() {
    for (missed, made) in [(Missed::One, 1), (Missed::None, 0)] {
        let mut stage = Stage::new();
        stage.put("a", every(10_000), missed, submit(0));
        stage.apply(Command::StorageFull(true));
        stage.pass(15 * S);
        assert_eq!(stage.made.len(), 0);
        assert_eq!(stage.view("a").last_error.unwrap().code, ErrorCode::StorageFull);
        let stage = stage.again(S);
        assert_eq!(stage.made.len(), made, "{missed:?}");
        assert_eq!(stage.view("a").last_error, None);
    }
}

#[test]
fn nothing_fires_while_the_broker_drains() {
    let mut stage = Stage::new();
    stage.put("a", every(1000), Missed::One, submit(0));
    stage.apply(Command::Drain { grace_ms: 60_000 });
    stage.pass(5 * S);
    assert_eq!(stage.made.len(), 0);
    assert_eq!(stage.view("a").last_error.unwrap().code, ErrorCode::Draining);
    assert_eq!(stage.shard.next_deadline(), None, "nor is it tried again");
    let error = refused(stage.put("b", every(1000), Missed::One, submit(0)));
    assert_eq!(error.code, ErrorCode::Draining);
    let stage = stage.again(2 * S);
    assert_eq!(stage.times(), [7000]);
}

#[test]
fn tasks_are_of_the_account_that_put_the_schedule_and_count_for_it() {
    let ops = access(&["manage:q"], Some(2));
    let mut stage = Stage::new();
    let put = |submit| Manage::PutSchedule {
        name: name("a"),
        rhythm: every(1000),
        missed: Missed::One,
        submit: Box::new(submit),
    };
    assert_eq!(stage.manage(Some(ops.clone()), put(submit(1))), Report::Created);
    stage.pass(3 * S);
    assert_eq!(stage.made.len(), 2);
    assert_eq!(stage.shard.load_of("ops").tasks, 2);
    assert!(stage.view("a").last_error.unwrap().message.as_str().contains("account ops has 2 tasks"));
    // Also of another process.
    let mut stage = stage.again(0);
    stage.pass(3 * S);
    assert_eq!((stage.made.len(), stage.shard.load_of("ops").tasks), (0, 2));
}

#[test]
fn schedules_are_put_and_deleted_by_who_may_manage_their_queue() {
    let ops = access(&["manage:q"], None);
    let blind = access(&["manage:other", "submit:*"], None);
    let watcher = access(&["manage:other", "observe:q"], None);
    let put = || Manage::PutSchedule {
        name: name("a"),
        rhythm: every(1000),
        missed: Missed::One,
        submit: Box::new(submit(0)),
    };
    let delete = || Manage::DeleteSchedule { name: name("a") };
    let mut stage = Stage::new();
    assert_eq!(refused(stage.manage(Some(blind.clone()), put())).code, ErrorCode::Forbidden);
    assert_eq!(refused(stage.manage(Some(ops.clone()), delete())).code, ErrorCode::NotFound);
    assert!(stage.stored.is_empty());
    assert_eq!(stage.manage(Some(ops.clone()), put()), Report::Created);
    // Nor is another queue's schedule taken over by its name.
    let other = Submit::new(QueueName::parse("other").unwrap(), Payload::NULL);
    let take = Manage::PutSchedule {
        name: name("a"),
        rhythm: every(1000),
        missed: Missed::One,
        submit: Box::new(other),
    };
    let error = refused(stage.manage(Some(blind.clone()), take));
    assert_eq!(error.code, ErrorCode::Forbidden);
    assert!(!error.message.as_str().contains("queue q"), "{error:?}");
    assert_eq!(refused(stage.manage(Some(blind), delete())).code, ErrorCode::NotFound);
    assert_eq!(refused(stage.manage(Some(watcher), delete())).code, ErrorCode::Forbidden);
    assert_eq!(stage.manage(Some(ops.clone()), put()), Report::Done);
    assert_eq!(stage.manage(Some(ops), delete()), Report::Done);
    assert!(stage.shard.schedules().is_empty());
}

#[test]
fn a_put_replaces_and_counts_on() {
    let mut stage = Stage::new();
    stage.put("a", every(1000), Missed::One, submit(10));
    stage.pass(2_500_000);
    assert_eq!(stage.put("a", every(2000), Missed::None, submit(20)), Report::Done);
    let view = stage.view("a");
    assert_eq!((view.record.fired, view.record.made), (2, Time(BEGIN + 2_500_000)));
    assert_eq!(view.record.last.map(|(at, _)| at), Some(Time(BEGIN + 2 * S)));
    stage.made.clear();
    stage.pass(5 * S);
    assert_eq!(stage.times(), [4500, 6500], "the old timer is of no effect");
    // What is due when the put comes is not lost.
    stage.now = Time(BEGIN + 8_600_000);
    stage.put("a", every(60_000), Missed::One, submit(0));
    assert_eq!(stage.times(), [4500, 6500, 8600]);
    assert_eq!(stage.view("a").record.fired, 5);
    let stage = stage.again(0);
    let view = stage.view("a");
    assert_eq!((view.record.fired, view.record.rhythm, view.record.missed), (5, every(60_000), Missed::One));
    assert_eq!(view.record.next, Some(Time(BEGIN + 68_600_000)));
}

#[test]
fn what_is_deleted_stays_deleted_and_its_tasks_stay() {
    let mut stage = Stage::new();
    stage.put("a", every(1000), Missed::One, submit(0));
    stage.pass(S);
    assert_eq!(stage.delete("a"), Report::Done);
    assert_eq!(refused(stage.delete("a")).code, ErrorCode::NotFound);
    stage.pass(10 * S);
    assert_eq!(stage.made.len(), 1);
    let mut stage = stage.again(10 * S);
    stage.pass(10 * S);
    assert_eq!((stage.made.len(), stage.shard.live_tasks()), (0, 1));
    // Made again it begins anew, and its times are others.
    assert_eq!(stage.put("a", every(1000), Missed::One, submit(0)), Report::Created);
    assert_eq!(stage.view("a").record.fired, 0);
}

#[test]
fn what_cannot_be_a_schedule_is_refused_and_leaves_nothing() {
    let mut stage = Stage::new();
    let never = Rhythm::Cron { pattern: "0 0 31 2 *".into(), tz: "UTC".into() };
    let error = refused(stage.put("a", never, Missed::One, submit(0)));
    assert!(error.message.as_str().contains("never comes"), "{error:?}");
    let zone = Rhythm::Cron { pattern: "* * * * *".into(), tz: "Nowhere".into() };
    assert_eq!(refused(stage.put("a", zone, Missed::One, submit(0))).code, ErrorCode::BadRequest);
    assert_eq!(refused(stage.put("a", every(99), Missed::One, submit(0))).code, ErrorCode::BadRequest);
    for wrong in [
        Submit { watch: true, ..submit(0) },
        Submit { dedup_id: taskyard_proto::Key::parse("x"), ..submit(0) },
        Submit { complete: Some(taskyard_proto::Complete::Any), ..submit(0) },
    ] {
        assert_eq!(refused(stage.put("a", every(100), Missed::One, wrong)).code, ErrorCode::BadRequest);
    }
    assert!(stage.stored.is_empty() && stage.shard.next_deadline().is_none());
}

#[test]
fn there_are_so_many_schedules_and_so_many_bytes_of_them() {
    let mut stage = Stage::new();
    for number in 0..SCHEDULES_MAX {
        stage.put(&format!("s{number}"), every(3_600_000), Missed::One, submit(0));
    }
    let error = refused(stage.put("more", every(1000), Missed::One, submit(0)));
    assert_eq!(error.code, ErrorCode::QueueFull);
    assert!(error.message.as_str().contains("10000 schedules"), "{error:?}");
    assert_eq!(
        stage.put("s0", every(1000), Missed::One, submit(0)),
        Report::Done,
        "one that is there is no new one"
    );

    let mut stage = Stage::new();
    let half = SCHEDULES_BYTES_MAX as usize / 2;
    stage.put("a", every(3_600_000), Missed::One, submit(half));
    assert_eq!(
        refused(stage.put("b", every(1000), Missed::One, submit(half + 1))).code,
        ErrorCode::QueueFull
    );
    assert_eq!(
        stage.put("a", every(3_600_000), Missed::One, submit(half)),
        Report::Done,
        "its own room is free"
    );
    assert_eq!(stage.put("b", every(3_600_000), Missed::One, submit(half)), Report::Created);
    stage.delete("a");
    assert_eq!(stage.put("c", every(3_600_000), Missed::One, submit(half)), Report::Created);
}

/// Each put leaves the timer of the one before it, which may lie a year ahead.
#[test]
fn puts_without_end_leave_no_timers_behind() {
    let mut stage = Stage::new();
    for _ in 0..10_000 {
        stage.put("a", every(3_600_000), Missed::One, submit(0));
        stage.due();
    }
    assert!(stage.shard.timers.len() < 3000, "{}", stage.shard.timers.len());
    stage.pass(3600 * S);
    assert_eq!(stage.made.len(), 1);
}

#[test]
fn a_stored_rhythm_that_is_none_any_longer_is_shown_and_does_not_stop_the_start() {
    let mut stage = Stage::new();
    stage.put("a", every(1000), Missed::One, submit(0));
    let StoreOp::Schedule(record) = &mut stage.stored[0] else { panic!("a schedule was stored") };
    record.rhythm = Rhythm::Cron { pattern: "* * * * *".into(), tz: "Gone/Away".into() };
    let mut stage = stage.again(0);
    stage.pass(100 * S);
    assert_eq!(stage.made.len(), 0);
    let error = stage.view("a").last_error.unwrap();
    assert!(error.message.as_str().contains("Gone/Away"), "{error:?}");
    assert_eq!(stage.put("a", every(1000), Missed::One, submit(0)), Report::Done, "it can be mended");
}
