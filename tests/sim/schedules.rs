//! Schedules over the real log: a time gives one task, wherever the process or its power ends.
//!
//! The oracle of the seeds knows only tasks that somebody submitted; here it is a bystander, and what is promised
//! is asked of the broker itself.

use std::collections::BTreeSet;

use taskyard::core::schedule::{Missed, Rhythm, ScheduleName, ScheduleView};
use taskyard::core::shard::Config;
use taskyard::core::{CallId, Command, Manage, Open, Output, Report, SessionId};
use taskyard_proto::{
    Hello, Payload, QueueName, ServerMessage, Submit, Subscribe, TaskId, TaskState, WorkerName,
};

use crate::broker::Broker;
use crate::disk::SimDisk;
use crate::oracle::Oracle;

/// 2027-01-01T00:00:00Z.
const BEGIN: u64 = 1_798_761_600_000_000;
const MS: u64 = 1000;

struct Stage {
    now: u64,
    disk: SimDisk,
    oracle: Oracle,
    broker: Broker,
    told: Vec<Output>,
}

impl Stage {
    fn new() -> Stage {
        let (disk, mut oracle) = (SimDisk::new(), Oracle::new(600_000, false));
        let broker = Broker::start(disk.clone(), Config::default(), BEGIN, &mut oracle).unwrap();
        Stage { now: BEGIN, disk, oracle, broker, told: Vec::new() }
    }

    fn turn(&mut self) {
        self.broker.turn(self.now, usize::MAX, &mut self.oracle, &mut self.told);
    }

    /// Turns, writes and syncs until nothing is left to do.
    fn settle(&mut self) {
        loop {
            self.turn();
            self.broker.write().unwrap();
            self.broker.sync().unwrap();
            if !self.broker.has_work() {
                break;
            }
        }
    }

    fn pass(&mut self, span: u64) {
        let end = self.now + span;
        while let Some(at) = self.broker.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
    }

    /// The power fails, and comes back after a while. `seed` says what the disk made of what was not synced.
    fn crash(mut self, seed: u64, span: u64) -> Stage {
        drop(self.broker);
        self.oracle.crashed(self.now, "the script says so");
        let (disk, now) = (self.disk.crash(seed), self.now + span);
        let broker = Broker::start(disk.clone(), Config::default(), now, &mut self.oracle).unwrap();
        Stage { now, disk, oracle: self.oracle, broker, told: Vec::new() }
    }

    fn restart(mut self, span: u64) -> Stage {
        self.broker.stop(self.now, &mut self.oracle, &mut self.told).unwrap();
        let (disk, now) = (self.disk.fork(), self.now + span);
        let broker = Broker::start(disk.clone(), Config::default(), now, &mut self.oracle).unwrap();
        Stage { now, disk, oracle: self.oracle, broker, told: Vec::new() }
    }

    fn manage(&mut self, manage: Manage) {
        self.broker
            .arrive(self.now, Command::Manage { call: CallId(1), access: None, manage: Box::new(manage) });
    }

    fn put(&mut self, ms: u64, missed: Missed) {
        let submit = Box::new(Submit::new(queue(), Payload::json("hello").unwrap()));
        self.manage(Manage::PutSchedule { name: name(), rhythm: Rhythm::Every { ms }, missed, submit });
    }

    fn reports(&mut self) -> Vec<Report> {
        let reports = self.told.drain(..).filter_map(|output| match output {
            Output::Report { report, .. } => Some(report),
            _ => None,
        });
        reports.collect()
    }

    fn view(&self) -> Option<ScheduleView> {
        self.broker.shard.schedule(&name())
    }

    fn fired(&self) -> u64 {
        self.view().unwrap().record.fired
    }
}

fn queue() -> QueueName {
    QueueName::parse("q").unwrap()
}

fn name() -> ScheduleName {
    ScheduleName::parse("s").unwrap()
}

#[test]
fn a_crash_before_or_after_the_sync_of_a_firing_leaves_one_task() {
    for (written, synced) in [(false, false), (true, false), (true, true)] {
        for seed in 0..20 {
            let mut stage = Stage::new();
            stage.put(1000, Missed::None);
            stage.settle();
            stage.now += 1000 * MS;
            stage.turn();
            let task = stage.view().unwrap().record.last.unwrap().1;
            if written {
                stage.broker.write().unwrap();
            }
            if synced {
                stage.broker.sync().unwrap();
            }
            let mut stage = stage.crash(seed, 10 * MS);
            stage.settle();
            assert_eq!((stage.fired(), stage.broker.shard.live_tasks()), (1, 1), "{written} {synced} {seed}");
            assert!(
                stage.broker.shard.task_view(task, taskyard::core::Time(stage.now)).is_some(),
                "the same task"
            );
            stage.pass(3000 * MS);
            assert_eq!((stage.fired(), stage.broker.shard.live_tasks()), (4, 4));
        }
    }
}

#[test]
fn whatever_breaks_when_each_time_gives_one_task() {
    for seed in 1..200_u64 {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut stage = Stage::new();
        stage.put(100, Missed::One);
        stage.settle();
        let mut seen: BTreeSet<TaskId> = BTreeSet::new();
        let mut synced = BEGIN;
        for _ in 0..60 {
            stage.now += draw(150) * MS;
            // Nothing is missed: what a crash takes is under a second old.
            if stage.now > synced + 700 * MS {
                stage.settle();
                synced = stage.now;
            }
            match draw(8) {
                0 => stage = stage.crash(draw(1000), draw(50) * MS),
                1 => stage = stage.restart(draw(50) * MS),
                2 => stage.turn(),
                3 => {
                    stage.turn();
                    stage.broker.write().unwrap();
                }
                4 => {
                    stage.broker.maintain().unwrap();
                }
                _ => stage.settle(),
            }
            seen.extend(stage.view().unwrap().record.last.map(|(_, task)| task));
        }
        stage.settle();
        let times = (stage.now - BEGIN) / (100 * MS);
        assert_eq!(stage.fired(), times, "seed {seed}");
        assert_eq!(stage.broker.shard.live_tasks() as u64, times, "seed {seed}");
        let now = taskyard::core::Time(stage.now);
        assert!(seen.iter().all(|task| stage.broker.shard.task_view(*task, now).is_some()), "seed {seed}");
    }
}

#[test]
fn missed_times_make_one_task_or_none() {
    for (missed, made) in [(Missed::One, 1), (Missed::None, 0)] {
        for clean in [true, false] {
            let mut stage = Stage::new();
            stage.put(3000, missed);
            stage.settle();
            let mut stage = if clean { stage.restart(10_500 * MS) } else { stage.crash(3, 10_500 * MS) };
            stage.settle();
            assert_eq!(stage.fired(), made, "{missed:?}");
            stage.pass(1500 * MS);
            assert_eq!(stage.fired(), made + 1);
        }
    }
}

#[test]
fn what_an_operator_is_told_has_survived() {
    let mut stage = Stage::new();
    stage.put(1000, Missed::One);
    stage.turn();
    stage.broker.write().unwrap();
    assert_eq!(stage.reports(), [], "it is not synced");
    stage.broker.sync().unwrap();
    stage.turn();
    assert_eq!(stage.reports(), [Report::Created]);
    let mut stage = stage.crash(1, 0);
    assert!(stage.view().is_some());
    stage.put(2000, Missed::None);
    stage.settle();
    assert_eq!(stage.reports(), [Report::Done]);
    let mut stage = stage.crash(2, 0);
    assert_eq!(stage.view().unwrap().record.rhythm, Rhythm::Every { ms: 2000 });
    stage.manage(Manage::DeleteSchedule { name: name() });
    stage.turn();
    assert_eq!(stage.reports(), []);
    stage.settle();
    assert_eq!(stage.reports(), [Report::Done]);
    let mut stage = stage.crash(3, 0);
    stage.pass(10_000 * MS);
    assert_eq!((stage.view(), stage.broker.shard.live_tasks()), (None, 0));
}

#[test]
fn a_schedule_s_task_is_handed_out_once_it_is_durable() {
    let mut stage = Stage::new();
    stage.put(1000, Missed::One);
    let worker = WorkerName::parse("w").unwrap();
    stage.broker.arrive(
        stage.now,
        Command::Open(Box::new(Open {
            session: SessionId(1),
            access: None,
            hello: Box::new(Hello::empty()),
            reference: None,
            made_up_name: worker,
            resume_key: 0,
            subscribe: Some(Subscribe { queue: queue(), credit: None, mode: None, explicit_start: false }),
            join: None,
        })),
    );
    stage.settle();
    stage.told.clear();
    stage.now += 1000 * MS;
    let tasks = |told: &[Output]| {
        let task = |output: &Output| match output {
            Output::Send { message: ServerMessage::Task(task), .. } => Some(task.payload.to_json()),
            _ => None,
        };
        told.iter().filter_map(task).collect::<Vec<_>>()
    };
    stage.turn();
    stage.broker.write().unwrap();
    assert!(tasks(&stage.told).is_empty());
    stage.broker.sync().unwrap();
    stage.turn();
    assert_eq!(tasks(&stage.told), ["\"hello\""]);
    let counts = stage.broker.shard.queue_view(&queue(), taskyard::core::Time(stage.now)).unwrap().counts;
    assert_eq!(counts[TaskState::Leased as usize], 1);
}

#[test]
fn what_the_disk_has_no_room_for_is_tried_again() {
    let mut stage = Stage::new();
    stage.put(10_000, Missed::One);
    stage.settle();
    stage.broker.arrive(stage.now, Command::StorageFull(true));
    stage.pass(12_000 * MS);
    assert_eq!(stage.fired(), 0);
    assert!(stage.view().unwrap().last_error.is_some());
    stage.broker.arrive(stage.now, Command::StorageFull(false));
    stage.pass(1000 * MS);
    assert_eq!((stage.fired(), stage.broker.shard.live_tasks()), (1, 1));
    assert!(stage.view().unwrap().last_error.is_none());
}
