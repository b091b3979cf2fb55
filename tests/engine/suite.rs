//! The promises, one function each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use taskyard::core::record::{
    DedupRecord, FailedAttempt, Failure, FanoutRecord, Outcome, Outcomes, QueueRecord, Said, SessionRecord,
};
use taskyard::core::schedule::{Missed, Rhythm, ScheduleName, ScheduleRecord};
use taskyard::core::settings::{Pause, Settings};
use taskyard::core::{Acceptance, Amendment, FinishRecord, RetryPolicy, StoreOp, TaskSpec, Terms, Time};
use taskyard::engine::{Engine, Event};
use taskyard_proto::{
    Backoff, Complete, ErrorText, GroupName, Headers, Int, Key, Payload, QueueName, Submit, Target, TaskId,
    TaskState, WorkerName,
};

use crate::rigs::Rig;

/// Never reached but by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

fn id(number: u64) -> TaskId {
    // Of version 7, as all tasks' ids are.
    TaskId(u128::from(number) << 80 | 7 << 76 | 2 << 62 | u128::from(number))
}

fn queue() -> QueueName {
    QueueName::parse("q").unwrap()
}

fn accept_with(number: u64, payload: Payload) -> StoreOp {
    let terms = Terms {
        queue: queue(),
        ttl_us: number.is_multiple_of(5).then_some(7),
        priority: 4,
        max_attempts: 5,
        ack_timeout_ms: 30_000,
        run_limit_ms: None,
        retry: RetryPolicy::default(),
        target: Target::Any,
        complete: Complete::All,
        recipients: Arc::default(),
        account: number.is_multiple_of(2).then(|| "ci".into()),
        keys: None,
        headers: Headers::from_pairs([("trace", "a1")]).unwrap(),
    };
    let spec = TaskSpec::new(id(number), number, Time(number * 1000), Arc::new(terms));
    let due = number.is_multiple_of(3).then_some(Time(number * 2000));
    StoreOp::Accept(Acceptance { spec, due, payload })
}

fn accept(number: u64) -> StoreOp {
    accept_with(number, Payload::json(&number).unwrap())
}

fn fail(number: u64, attempt: u16) -> StoreOp {
    let attempt = FailedAttempt {
        attempt,
        worker: Some(WorkerName::parse("w").unwrap()),
        reason: Failure::Nack,
        error: Some(ErrorText::new("no")),
    };
    StoreOp::Amend(id(number), Amendment::Failed { recipient: 0, attempt, due: Some(Time(1)), lost: false })
}

fn finish(number: u64) -> StoreOp {
    StoreOp::Finish(Box::new(FinishRecord {
        task: id(number),
        queue: queue(),
        state: TaskState::Done,
        accepted: Time(number * 1000),
        finished: Time(number * 1000 + 5),
        attempts: 1,
        max_attempts: 5,
        worker: Some(WorkerName::parse("w").unwrap()),
        result: Payload::json("done").unwrap(),
        error: None,
        history: Vec::new(),
        event_seq: 3,
        totals: [number, 0, 0],
        dedup: None,
        fanout: number.is_multiple_of(2).then(|| fanout(number)),
    }))
}

/// What became of a task to all: all did what they should; or one recipient said nothing, one has a result, one failed.
fn fanout(number: u64) -> Arc<FanoutRecord> {
    if number.is_multiple_of(4) {
        let names = ["a", "b"].map(|name| WorkerName::parse(name).unwrap());
        let recipients = Outcomes::Done(names.into());
        return Arc::new(FanoutRecord { delivered: 2, acked: 2, failed: 0, recipients });
    }
    let outcome = |name: &str, state, said| Outcome {
        worker: WorkerName::parse(name).unwrap(),
        state,
        attempts: 3,
        said,
    };
    let recipients = Outcomes::Each(vec![
        outcome("c", TaskState::Dead, Said::new(Payload::NULL, Some(ErrorText::new("no")))),
        outcome("a", TaskState::Done, None),
        outcome("b", TaskState::Done, Said::new(Payload::json("7").unwrap(), None)),
    ]);
    Arc::new(FanoutRecord { delivered: 3, acked: 2, failed: 1, recipients })
}

async fn next(engine: &mut impl Engine) -> Event {
    tokio::time::timeout(PATIENCE, engine.next_event()).await.expect("the engine says something")
}

/// Commits operations as one batch, and waits until the engine says that they are stored.
async fn store(engine: &mut impl Engine, told: &mut u64, mut ops: Vec<StoreOp>) {
    let wanted = *told + ops.len() as u64;
    engine.commit(&mut ops);
    assert!(ops.is_empty(), "commit leaves the batch empty");
    while *told < wanted {
        match next(engine).await {
            Event::Stored { through } => {
                assert!(through > *told && through <= wanted, "{through} after {told}, of {wanted}");
                *told = through;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The task that an operation is about.
fn task_of(op: &StoreOp) -> Option<TaskId> {
    match op {
        StoreOp::Accept(accepted) => Some(accepted.spec.id()),
        StoreOp::Amend(task, _) | StoreOp::Forget(task) => Some(*task),
        StoreOp::Finish(record) => Some(record.task),
        StoreOp::Delete(task) => Some(*task),
        StoreOp::Dedup(record) => Some(record.task),
        StoreOp::Queue(_)
        | StoreOp::Schedule(_)
        | StoreOp::Unschedule(_)
        | StoreOp::Session(_)
        | StoreOp::Unsession(_)
        | StoreOp::Ended(_) => None,
    }
}

/// What a replay says of each task: its last whole word, and what was amended since.
fn replayed(ops: &[StoreOp]) -> BTreeMap<TaskId, Vec<&StoreOp>> {
    let mut tasks: BTreeMap<TaskId, Vec<&StoreOp>> = BTreeMap::new();
    for op in ops {
        let Some(task) = task_of(op) else { continue };
        match op {
            StoreOp::Accept(_) | StoreOp::Finish(_) => drop(tasks.insert(task, vec![op])),
            // Of a task that is not known: it has ended, and this means nothing.
            _ => drop(tasks.get_mut(&task).map(|known| known.push(op))),
        }
    }
    tasks
}

pub async fn capabilities_are_as_declared<R: Rig>(rig: R) {
    let (engine, opened, ops) = rig.open();
    assert_eq!(engine.capabilities().name, R::NAME);
    assert_eq!((opened.operations, ops.len()), (0, 0), "a new place holds nothing");
    engine.stop().await.unwrap();
}

pub async fn stored_is_said_in_order_and_of_nothing_that_was_not_committed<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let idle = tokio::time::timeout(Duration::ZERO, engine.next_event()).await;
    assert!(idle.is_err(), "nothing was committed, and it says {idle:?}");
    let (mut committed, mut told) = (0, 0);
    for round in 0..50 {
        for batch in 0..4 {
            let mut ops: Vec<StoreOp> = (0..=batch).map(|n| accept(1000 * round + 10 * batch + n)).collect();
            committed += ops.len() as u64;
            engine.commit(&mut ops);
        }
        // A wait that is given up loses no event.
        let _ = tokio::time::timeout(Duration::ZERO, engine.next_event()).await.map(|event| match event {
            Event::Stored { through } => told = through,
            other => panic!("{other:?}"),
        });
        while told < committed {
            let Event::Stored { through } = next(&mut engine).await else { panic!("not stored") };
            assert!(through > told && through <= committed, "{through} after {told}, of {committed}");
            told = through;
        }
    }
    engine.stop().await.unwrap();
}

pub async fn what_is_stored_survives_the_process_if_the_engine_is_durable<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let mut told = 0;
    for number in 1..=60 {
        store(&mut engine, &mut told, vec![accept(number)]).await;
        if number % 20 == 0 {
            let (survivor, opened, ops) = rig.as_if_killed().open();
            let tasks = replayed(&ops);
            if engine.capabilities().durable {
                assert!((1..=number).all(|number| tasks.contains_key(&id(number))), "{number}");
                assert!(!opened.clean);
                assert_eq!(opened.operations, ops.len() as u64);
            } else {
                assert!(tasks.is_empty());
            }
            drop(survivor);
        }
    }
    engine.stop().await.unwrap();
}

pub async fn a_replay_gives_back_each_task_s_operations_in_order<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    let mut told = 0;
    let record = Box::new(QueueRecord {
        queue: queue(),
        totals: [1, 2, 3],
        declared: true,
        settings: Settings { max_leased: Some(7), rate_per_s: Some(0.5), ..Settings::default() },
        pause: Some(Pause { by: Some("ops".into()), reason: None, until: Some(Time(5)) }),
    });
    store(&mut engine, &mut told, vec![StoreOp::Queue(record.clone())]).await;
    store(&mut engine, &mut told, (1..=30).map(accept).collect()).await;
    for attempt in 1..=3 {
        store(&mut engine, &mut told, (1..=30).map(|number| fail(number, attempt)).collect()).await;
    }
    let delivered = StoreOp::Amend(id(7), Amendment::Delivered { recipient: 0 });
    let deferred = StoreOp::Amend(id(7), Amendment::Deferred { recipient: 0, due: Time(9) });
    let acked = StoreOp::Amend(id(7), Amendment::Acked { recipient: 0, result: Payload::binary(vec![1, 2]) });
    let leased = Amendment::Leased {
        recipient: 0,
        number: 1 << 40,
        slot: 9,
        session: u128::MAX - 5,
        deadline: Time(77),
        explicit_start: true,
    };
    let more = [leased, Amendment::Returned { recipient: 0 }, Amendment::Cancelling, Amendment::Redriven];
    let mut amended = vec![delivered, deferred, acked];
    amended.extend(more.map(|amendment| StoreOp::Amend(id(7), amendment)));
    store(&mut engine, &mut told, amended.clone()).await;
    let session =
        SessionRecord { key: u128::MAX - 5, worker: WorkerName::parse("w").unwrap(), account: None };
    let key = |text: &str| Key::parse(text);
    let dedup =
        DedupRecord { task: id(99), queue: queue(), dedup: key("order 7 ü").unwrap(), accepted: Time(5) };
    let mut submit = Submit::new(queue(), Payload::json(&[1.0, 2.5]).unwrap());
    submit.order_key = key("k");
    let schedule = ScheduleRecord {
        name: ScheduleName::parse("nightly").unwrap(),
        rhythm: Rhythm::Cron { pattern: "0 3 * * *".into(), tz: "Europe/Zurich".into() },
        missed: Missed::None,
        submit: Arc::new(submit),
        account: Some("ops".into()),
        queued_tasks: Some(3),
        queued_bytes: None,
        made: Time(1),
        next: None,
        fired: 3,
        last: Some((Time(2), id(3))),
    };
    let mut every = schedule.clone();
    every.name = ScheduleName::parse("often").unwrap();
    every.rhythm = Rhythm::Every { ms: 100 };
    let notes = vec![
        StoreOp::Session(Box::new(session)),
        StoreOp::Dedup(dedup),
        StoreOp::Schedule(Box::new(schedule)),
        StoreOp::Schedule(Box::new(every)),
        StoreOp::Unsession(3),
        StoreOp::Unschedule(ScheduleName::parse("gone").unwrap()),
        StoreOp::Delete(id(98)),
    ];
    store(&mut engine, &mut told, notes.clone()).await;
    engine.stop().await.unwrap();

    let (engine, _, ops) = rig.open();
    if durable {
        let tasks = replayed(&ops);
        assert!((1..=30).all(|number| tasks.contains_key(&id(number))), "{tasks:?}");
        for number in 1..=30 {
            let mut expected = vec![accept(number), fail(number, 1), fail(number, 2), fail(number, 3)];
            if number == 7 {
                expected.extend(amended.clone());
            }
            assert_eq!(tasks[&id(number)], expected.iter().collect::<Vec<_>>());
        }
        for note in notes.iter().chain([&StoreOp::Queue(record)]) {
            assert!(ops.contains(note), "{note:?}");
        }
    } else {
        assert_eq!(ops, Vec::new());
    }
    engine.stop().await.unwrap();
}

pub async fn a_finished_task_does_not_come_back_unfinished<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    let mut told = 0;
    // Enough for several segments, finished in another order than accepted, so that some are cleaned.
    let large = || Payload::binary(vec![7; 2000]);
    store(&mut engine, &mut told, (1..=200).map(|number| accept_with(number, large())).collect()).await;
    let ended: BTreeSet<u64> = (1..=200).filter(|number| number % 5 != 0).collect();
    for number in &ended {
        store(&mut engine, &mut told, vec![fail(*number, 1), finish(*number)]).await;
    }
    let killed = rig.as_if_killed();
    engine.stop().await.unwrap();
    for place in [killed, rig] {
        // And at every start after that.
        for _ in 0..2 {
            let (engine, _, ops) = place.open();
            let tasks = replayed(&ops);
            assert_eq!(tasks.len(), if durable { 200 } else { 0 });
            for (task, known) in tasks {
                let number = (task.0 >> 80) as u64;
                let is_over = *known[0] == finish(number);
                assert_eq!(is_over, ended.contains(&number), "{known:?}");
            }
            engine.stop().await.unwrap();
        }
    }
}

pub async fn what_was_forgotten_may_go<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let mut told = 0;
    for number in 1..=500 {
        let large = Payload::binary(vec![7; 2000]);
        store(
            &mut engine,
            &mut told,
            vec![accept_with(number, large), finish(number), StoreOp::Forget(id(number))],
        )
        .await;
    }
    store(&mut engine, &mut told, vec![accept(1001)]).await;
    let footprint = engine.footprint();
    // A megabyte was accepted; what is needed of it is one task.
    assert!(footprint.live_bytes < 500_000, "{footprint:?}");
    engine.stop().await.unwrap();
    let (engine, _, ops) = rig.open();
    for (task, known) in replayed(&ops) {
        assert!(task == id(1001) || matches!(known[0], StoreOp::Finish(_)), "{known:?}");
    }
    engine.stop().await.unwrap();
}

pub async fn nothing_to_write_is_stored_too<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let mut told = 0;
    store(&mut engine, &mut told, vec![StoreOp::Forget(id(1))]).await;
    store(&mut engine, &mut told, vec![accept(2)]).await;
    // Behind a batch that is still under way, and in one that has both.
    let mut ops = vec![accept(3)];
    engine.commit(&mut ops);
    told += store_later(&mut engine, vec![StoreOp::Forget(id(2)), StoreOp::Forget(id(9))]);
    told += store_later(&mut engine, vec![accept(4), StoreOp::Forget(id(3))]);
    engine.commit(&mut Vec::new());
    let wanted = told + 1;
    let mut through = 0;
    while through < wanted {
        let Event::Stored { through: now } = next(&mut engine).await else { panic!("not stored") };
        through = now;
    }
    assert_eq!(through, wanted);
    engine.stop().await.unwrap();
}

fn store_later(engine: &mut impl Engine, mut ops: Vec<StoreOp>) -> u64 {
    let count = ops.len() as u64;
    engine.commit(&mut ops);
    count
}

pub async fn a_stop_in_order_is_told_at_the_next_start<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    let mut told = 0;
    store(&mut engine, &mut told, vec![accept(1)]).await;
    // What was committed last need not have been told: the stop stores it.
    engine.commit(&mut vec![accept(2)]);
    let killed = rig.as_if_killed();
    engine.stop().await.unwrap();
    let (engine, opened, ops) = rig.open();
    assert!(opened.clean);
    assert_eq!(replayed(&ops).len(), if durable { 2 } else { 0 });
    engine.stop().await.unwrap();
    let (engine, opened, ops) = killed.open();
    assert_eq!(opened.clean, !durable);
    assert!(!durable || replayed(&ops).contains_key(&id(1)));
    engine.stop().await.unwrap();
}

/// A broker that ended in disorder once closed its store as if all had been said: deliveries of before
/// were not flagged after the restart.
pub async fn dropped_without_a_stop_is_no_stop_in_order<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    engine.commit(&mut vec![accept(1)]);
    drop(engine);
    let (engine, opened, ops) = rig.open();
    assert_eq!(opened.clean, !durable);
    assert_eq!(replayed(&ops).len(), usize::from(durable));
    engine.stop().await.unwrap();
}

pub async fn starts_are_numbered<R: Rig>(rig: R) {
    let mut last = 0;
    for _ in 0..3 {
        let (engine, opened, _) = rig.open();
        // Lease numbers are made of it: only an engine that remembers leases' tasks must count.
        if engine.capabilities().durable {
            assert!(opened.start > last, "{} after {last}", opened.start);
            last = opened.start;
        }
        engine.stop().await.unwrap();
    }
}

pub async fn there_is_room_again_once_the_work_is_done<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    assert!(engine.has_room());
    let mut committed = 0;
    // No await in between: nothing that is told meanwhile is taken.
    while engine.has_room() && committed < 64 {
        let large = Payload::binary(vec![7; 1 << 20]);
        committed += store_later(&mut engine, vec![accept_with(committed + 1, large)]);
    }
    let mut told = 0;
    while told < committed {
        match next(&mut engine).await {
            Event::Stored { through } => told = through,
            other => panic!("{other:?}"),
        }
    }
    assert!(engine.has_room(), "all is stored");
    engine.stop().await.unwrap();
}

pub async fn payloads_come_back_as_they_were<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    let payloads = [
        Payload::NULL,
        Payload::json_text(r#"{ "a" : 1.0, "a": [] }"#).unwrap(),
        Payload::message_pack(&u64::MAX).unwrap(),
        Payload::binary(Vec::new()),
        Payload::binary((0..=255).collect::<Vec<u8>>()),
        Payload::binary(vec![9; 1 << 20]),
    ];
    let ops: Vec<StoreOp> =
        payloads.iter().zip(1..).map(|(payload, number)| accept_with(number, payload.clone())).collect();
    let mut told = 0;
    store(&mut engine, &mut told, ops.clone()).await;
    engine.stop().await.unwrap();
    let (engine, _, back) = rig.open();
    assert_eq!(back, if durable { ops } else { Vec::new() });
    engine.stop().await.unwrap();
}

pub async fn schedules_come_back_as_they_were_last<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    let payloads = [
        Payload::NULL,
        Payload::json_text(r#"{ "a" : 1.0, "a": [] }"#).unwrap(),
        Payload::message_pack(&(u64::MAX, "text")).unwrap(),
        Payload::binary((0..=255).collect::<Vec<u8>>()),
    ];
    let schedule = |number: usize, fired: u64| {
        let submit = Submit {
            headers: Headers::from_pairs([("trace", "a1")]).unwrap(),
            to: Some(Target::Group(GroupName::parse("gpu").unwrap())),
            priority: Some(Int::nearest(9)),
            backoff: Some(Backoff { initial_ms: Some(Int::nearest(5)), max_ms: None, factor: None }),
            ..Submit::new(queue(), payloads[number].clone())
        };
        let cron = Rhythm::Cron { pattern: "30 2 * * 1-5".into(), tz: "Europe/Zurich".into() };
        StoreOp::Schedule(Box::new(ScheduleRecord {
            name: ScheduleName::parse(&format!("s{number}")).unwrap(),
            rhythm: if number.is_multiple_of(2) { cron } else { Rhythm::Every { ms: 500 } },
            missed: if number.is_multiple_of(2) { Missed::None } else { Missed::One },
            submit: Arc::new(submit),
            account: number.is_multiple_of(2).then(|| "ci".into()),
            queued_tasks: number.is_multiple_of(2).then_some(7),
            queued_bytes: (number == 3).then_some(u64::MAX),
            made: Time(5),
            next: (number != 1).then_some(Time(u64::MAX)),
            fired,
            last: (fired > 0).then_some((Time(9), id(fired))),
        }))
    };
    let mut told = 0;
    for fired in 0..3 {
        let ops = (0..payloads.len()).map(|number| schedule(number, fired)).collect();
        store(&mut engine, &mut told, ops).await;
    }
    let gone = ScheduleName::parse("s0").unwrap();
    store(&mut engine, &mut told, vec![StoreOp::Unschedule(gone.clone())]).await;
    engine.stop().await.unwrap();
    let (engine, _, back) = rig.open();
    let mut last: BTreeMap<ScheduleName, StoreOp> = BTreeMap::new();
    for op in back {
        match &op {
            StoreOp::Schedule(record) => drop(last.insert(record.name.clone(), op)),
            StoreOp::Unschedule(name) => drop(last.remove(name)),
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<StoreOp> = (1..payloads.len()).map(|number| schedule(number, 2)).collect();
    assert_eq!(last.into_values().collect::<Vec<_>>(), if durable { expected } else { Vec::new() });
    engine.stop().await.unwrap();
}

/// A payload leaves memory and is asked for while others come and go, which moves it about on the medium.
pub async fn payloads_are_fetched_as_they_were_whatever_goes_on<R: Rig>(rig: R) {
    let (mut engine, ..) = rig.open();
    let durable = engine.capabilities().durable;
    let payload = |number: u64| match number % 3 {
        0 => Payload::binary(vec![number as u8; 1 + 37 * (number as usize % 50)]),
        1 => Payload::json(&format!("task {number}")).unwrap(),
        _ => Payload::message_pack(&(number, "x".repeat(number as usize % 300))).unwrap(),
    };
    let mut told = 0;
    store(&mut engine, &mut told, (1..=100).map(|n| accept_with(n, payload(n))).collect()).await;
    store(
        &mut engine,
        &mut told,
        (91..=95).map(finish).chain((96..=100).map(|n| StoreOp::Forget(id(n)))).collect(),
    )
    .await;
    for round in 0..30u64 {
        // Ten of the old ones, and some that never were.
        let asked: Vec<u64> = (0..10).map(|n| 1 + (round * 31 + n * 7) % 105).collect();
        let mut tasks: Vec<TaskId> = asked.iter().map(|number| id(*number)).collect();
        let mut churn: Vec<StoreOp> = (0..40)
            .flat_map(|n| {
                let number = 1000 + round * 40 + n;
                [accept_with(number, Payload::binary(vec![1; 500])), StoreOp::Forget(id(number))]
            })
            .collect();
        let stored = told + churn.len() as u64;
        engine.commit(&mut churn);
        engine.fetch(&mut tasks);
        assert!(tasks.is_empty(), "fetch leaves the list empty");
        let mut fetched = BTreeMap::new();
        while told < stored || fetched.len() < asked.len() {
            match next(&mut engine).await {
                Event::Stored { through } => told = through,
                Event::Fetched(some) => {
                    for one in some {
                        assert!(fetched.insert(one.task, one.payload).is_none(), "each is answered once");
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        for number in asked {
            let expected = (durable && number <= 90).then(|| payload(number));
            assert_eq!(fetched[&id(number)], expected, "{number}");
        }
    }
    engine.stop().await.unwrap();
}
