//! One value of each message with its fields filled, and some variants: what the golden frames hold.

use serde_json::json;
use taskyard_proto::message::*;
use taskyard_proto::{
    Encoding, ErrorCode, GroupName, LeaseId, Payload, QueueName, Request, Response, RoomName, TaskId,
    WorkerName,
};

const LEASE: LeaseId = LeaseId { number: 7, slot: 3, recipient: 0 };
const OTHER_LEASE: LeaseId = LeaseId { number: 8, slot: 4, recipient: 1 };
const TASK: TaskId = TaskId(0x0198_c0de_0000_7000_8000_0000_0000_0001);

fn queue() -> QueueName {
    QueueName::parse("emails").expect("a queue name")
}

fn worker(name: &str) -> WorkerName {
    WorkerName::parse(name).expect("a worker name")
}

fn group() -> GroupName {
    GroupName::parse("europe").expect("a group name")
}

fn room() -> RoomName {
    RoomName::parse("lobby").expect("a room name")
}

fn headers() -> Headers {
    Headers::from_pairs([("trace", "a1b2"), ("über", "\"quoted\"\n")]).expect("short headers")
}

fn key(text: &str) -> Option<Key> {
    Key::parse(text)
}

fn many() -> LeaseList {
    LeaseList::Many(vec![LEASE.into(), GivenLease::parse("no-lease")])
}

/// A payload as a peer of `encoding` sends it.
fn value(encoding: Encoding) -> Payload {
    let value = json!({"list": [true, null, -1, 18446744073709551615_u64], "ratio": 1.5, "text": "é\n", "whole": 1.0});
    match encoding {
        Encoding::Json => Payload::json(&value),
        Encoding::MessagePack => Payload::message_pack(&value),
    }
    .expect("a plain value")
}

fn bytes() -> Payload {
    Payload::binary(vec![0, 1, 254, 255])
}

/// What clients say: the name of the golden file, and the message.
pub(crate) fn requests(encoding: Encoding) -> Vec<(&'static str, Request)> {
    let submit = Submit::new(queue(), value(encoding));
    let messages: Vec<(&'static str, ClientMessage)> = vec![
        (
            "client-hello",
            Hello {
                token: Some(Secret::new("ty_secret")),
                worker: Some(worker("mailer-1")),
                groups: vec![group()],
                labels: headers(),
                resume: Some(Resume::Token(Secret::new("r_token"))),
                in_flight: vec![LEASE.into()],
                batch: true,
                client: Some(Text::cut("golden 1.0")),
            }
            .into(),
        ),
        ("client-hello-empty", Hello::empty().into()),
        (
            "client-subscribe",
            Subscribe {
                queue: queue(),
                credit: Credit::new(32),
                mode: Some(Mode::Auto),
                explicit_start: true,
            }
            .into(),
        ),
        ("client-credit", SetCredit { queue: queue(), credit: Credit::nearest(0) }.into()),
        ("client-unsubscribe", Unsubscribe { queue: queue() }.into()),
        ("client-start", Start { lease: LEASE.into() }.into()),
        ("client-ack", Ack { leases: LEASE.into(), result: value(encoding) }.into()),
        ("client-ack-leases", Ack { leases: many(), result: bytes() }.into()),
        ("client-ack-null", Ack { leases: LEASE.into(), result: Payload::NULL }.into()),
        (
            "client-nack",
            Nack {
                leases: LEASE.into(),
                error: Some(ErrorText::new("smtp: 451")),
                delay_ms: DelayMs::new(2000),
                retry: Some(Flag(false)),
            }
            .into(),
        ),
        ("client-nack-leases", Nack { leases: many(), error: None, delay_ms: None, retry: None }.into()),
        ("client-release", Release { leases: LEASE.into(), delay_ms: DelayMs::new(500) }.into()),
        ("client-release-leases", Release { leases: many(), delay_ms: None }.into()),
        (
            "client-cancelled",
            Cancelled { lease: LEASE.into(), error: Some(ErrorText::new("stopped")) }.into(),
        ),
        ("client-extend", Extend { lease: LEASE.into(), ack_timeout_ms: TimeoutMs::new(60_000) }.into()),
        (
            "client-progress",
            Progress { lease: LEASE.into(), percent: Number::new(42.5), data: value(encoding) }.into(),
        ),
        (
            "client-progress-bytes",
            Progress { lease: LEASE.into(), percent: Number::new(100.0), data: bytes() }.into(),
        ),
        ("client-drain", Drain {}.into()),
        ("client-bye", Bye {}.into()),
        (
            "client-submit",
            Submit {
                headers: headers(),
                to: Some(Target::Worker { worker: worker("mailer-1"), if_absent: IfAbsent::Any }),
                assign: Some(Assign::Sticky),
                sticky_key: key("customer-7"),
                order_key: key("order-9"),
                fair_key: key("tenant-é"),
                priority: Priority::new(9),
                delay_ms: DelayMs::new(1500),
                ttl_ms: TtlMs::new(3_600_000),
                ack_timeout_ms: TimeoutMs::new(15_000),
                timeout_ms: TimeoutMs::new(120_000),
                max_attempts: Attempts::new(3),
                backoff: Some(Backoff {
                    initial_ms: Int::new(250),
                    max_ms: Int::new(8000),
                    factor: Number::new(1.5),
                }),
                dedup_id: key("invoice-2024-0001"),
                confirm: Some(Confirm::Memory),
                watch: true,
                ..submit.clone()
            }
            .into(),
        ),
        (
            "client-submit-to-all",
            Submit {
                payload: bytes(),
                to: Some(Target::All(Some(group()))),
                run_at: Some(RunAt(Text::cut("2030-01-02T03:04:05Z"))),
                complete: Some(Complete::Quorum(2)),
                ..submit.clone()
            }
            .into(),
        ),
        ("client-submit-plain", submit.into()),
        ("client-submit-null", Submit::new(queue(), Payload::NULL).into()),
        ("client-watch", Watch { task: TASK, from_seq: Some(3) }.into()),
        ("client-unwatch", Unwatch { task: TASK }.into()),
        ("client-cancel", Cancel { task: TASK, grace_ms: Int::new(5000) }.into()),
        ("client-join", Join { room: room() }.into()),
        ("client-leave", Leave { room: room() }.into()),
        ("client-publish", Publish { room: room(), payload: value(encoding), exclude_self: true }.into()),
        ("client-ping", Ping {}.into()),
        (
            "client-observe",
            Observe { every_ms: Every::new(1000), queues: QueueList::new(vec![queue()]) }.into(),
        ),
        ("client-observe-empty", Observe { every_ms: None, queues: None }.into()),
    ];
    let id = |index: usize| match index % 3 {
        0 => Some(RequestId::Integer(index as i64 + 1)),
        1 => Some(RequestId::Text(format!("req-{index}").into())),
        _ => None,
    };
    messages
        .into_iter()
        .enumerate()
        .map(|(i, (name, message))| (name, Request { id: id(i), message }))
        .collect()
}

/// How a broker is, for who may see all of it or not.
fn overview(all: bool) -> Overview {
    let counts = Standing { scheduled: 1, queued: 2, leased: 3, retrying: 4, dead: 5 };
    let events = Happened {
        accepted: 21,
        duplicate: 1,
        refused: 2,
        delivered: 14,
        redelivered: 3,
        acked: 6,
        nacked: 4,
        released: 1,
        timed_out: 1,
        worker_lost: 2,
        dead: 5,
        cancelled: 7,
        expired: 8,
    };
    let totals = Totals {
        counts: counts.clone(),
        oldest_ms: None,
        workers: 2,
        in_flight: 3,
        credit_free: 61,
        events: events.clone(),
    };
    let one = QueueOverview {
        queue: queue(),
        paused: true,
        counts,
        oldest_ms: Some(1500),
        workers: 2,
        in_flight: 3,
        credit_free: 61,
        events,
    };
    let durations = || Durations { count: 3, sum_us: 1130, buckets: vec![1, 0, 1, 1] };
    let hops = Hops {
        accepted_to_durable: durations(),
        durable_to_assigned: durations(),
        assigned_to_sent: durations(),
        sent_to_settled: durations(),
    };
    let log = LogOverview {
        bytes: 67_108_864,
        live_bytes: 4096,
        segments: 1,
        sync: durations(),
        batch_records_avg: Number::nearest(2.5),
    };
    let process = ProcessOverview { rss_bytes: 30_000_000, cpu_ms: 1234, open_fds: 24, threads: 5 };
    Overview {
        at_ms: 1_790_000_000_000,
        uptime_ms: 60_000,
        version: Text::cut("0.1.0"),
        engine: Text::cut("embedded"),
        durable: true,
        draining: false,
        queues_total: 1,
        totals,
        queues: vec![one],
        workers: 2,
        connections: 5,
        schedules: 1,
        hops: Applies(all.then_some(hops)),
        hop_bounds_us: Applies(all.then(|| vec![10, 20, 50])),
        log: Applies(all.then_some(Some(log))),
        process: Applies(all.then_some(Some(process))),
    }
}

/// What the broker says: the name of the golden file, and the message.
pub(crate) fn responses(encoding: Encoding) -> Vec<(&'static str, Response)> {
    let lease_text = |lease: LeaseId| Text::<48>::cut(&lease.to_string());
    let task = Task {
        task: TASK,
        lease: Some(LEASE),
        queue: queue(),
        attempt: 2,
        max_attempts: 5,
        redelivered: true,
        ack_timeout_ms: 30_000,
        age_ms: 1234,
        priority: 4,
        headers: headers(),
        payload: value(encoding),
    };
    let finished = Finished {
        task: TASK,
        seq: 5,
        state: TaskState::Done,
        result: value(encoding),
        error: None,
        attempts: 1,
        recipients: None,
        delivered: None,
        acked: None,
        failed: None,
    };
    let messages: Vec<(&'static str, bool, ServerMessage)> = vec![
        (
            "server-welcome",
            true,
            Welcome {
                session: session_text(0xbeef),
                worker: worker("mailer-1"),
                version: VERSION,
                server: Text::cut("taskyard/0.1.0"),
                resume: Some(Secret::new("r_token")),
                resumed: true,
                kept: vec![LEASE],
                lost: vec![lease_text(OTHER_LEASE)],
                ping_ms: 25_000,
                limits: Limits { message_bytes: 1_048_576, credit: CREDIT_MAX, unconfirmed: UNCONFIRMED_MAX },
            }
            .into(),
        ),
        ("server-subscribed", true, Subscribed { queue: queue(), credit: 32, ack_timeout_ms: 30_000 }.into()),
        ("server-task", false, task.clone().into()),
        ("server-task-bytes", false, Task { payload: bytes(), ..task.clone() }.into()),
        (
            "server-task-null",
            false,
            Task { lease: None, headers: Headers::default(), payload: Payload::NULL, ..task }.into(),
        ),
        (
            "server-settled",
            true,
            Settled {
                lease: lease_text(LEASE).into(),
                outcome: SettleOutcome::Already.into(),
                results: Applies(None),
            }
            .into(),
        ),
        (
            "server-settled-leases",
            true,
            Settled {
                lease: Applies(None),
                outcome: Applies(None),
                results: vec![
                    SettleResult { lease: lease_text(LEASE), outcome: SettleOutcome::Ok },
                    SettleResult { lease: Text::cut("no-lease"), outcome: SettleOutcome::LeaseLost },
                ]
                .into(),
            }
            .into(),
        ),
        (
            "server-stop",
            false,
            Stop { lease: LEASE, reason: Text::cut("cancelled"), grace_ms: 10_000 }.into(),
        ),
        ("server-revoked", false, Revoked { lease: LEASE, reason: RevokeReason::AckTimeout }.into()),
        ("server-accepted", true, Accepted { task: TASK, duplicate: true }.into()),
        (
            "server-event",
            false,
            Event {
                task: TASK,
                seq: 4,
                state: TaskState::Leased,
                started: true,
                worker: Some(worker("mailer-1")),
                attempt: 2,
                percent: Number::new(42.5),
                data: value(encoding),
                error: Some(ErrorText::new("smtp: 451")),
            }
            .into(),
        ),
        ("server-finished", false, finished.clone().into()),
        (
            "server-finished-to-all",
            false,
            Finished {
                state: TaskState::Dead,
                result: Payload::NULL,
                error: Some(ErrorText::new("1 of 2 recipients failed")),
                attempts: 2,
                recipients: Some(RecipientList(vec![
                    RecipientOutcome {
                        worker: worker("b"),
                        state: TaskState::Dead,
                        attempts: 1,
                        result: Payload::NULL,
                        error: Some(ErrorText::new("absent")),
                    },
                    RecipientOutcome {
                        worker: worker("a"),
                        state: TaskState::Done,
                        attempts: 1,
                        result: bytes(),
                        error: None,
                    },
                ])),
                delivered: Some(1),
                acked: Some(1),
                failed: Some(1),
                ..finished
            }
            .into(),
        ),
        (
            "server-room_message",
            false,
            RoomMessage { room: room(), from: worker("mailer-1"), seq: 12, payload: value(encoding) }.into(),
        ),
        ("server-lagged", false, Lagged { room: room(), missed: 3 }.into()),
        ("server-pong", true, Pong {}.into()),
        ("server-ok", true, Done::PLAIN.into()),
        (
            "server-ok-state",
            true,
            Done { state: TaskState::Cancelled.into(), ack_timeout_ms: Applies(None) }.into(),
        ),
        ("server-ok-extend", true, Done { state: Applies(None), ack_timeout_ms: 59_990.into() }.into()),
        (
            "server-error",
            true,
            Error {
                retry_after_ms: 250.into(),
                ..Error::new(ErrorCode::QueueFull, "the queue holds 1000 tasks: submit again later")
                    .field("queue")
                    .lease(&LEASE.into())
                    .task(TASK)
            }
            .into(),
        ),
        (
            "server-error-plain",
            false,
            Error::new(ErrorCode::BadRequest, "`submit`, field `queue`: is missing").into(),
        ),
        (
            "server-going_away",
            false,
            GoingAway { reason: AwayReason::Restart, grace_ms: 30_000, reconnect_after_ms: 1712 }.into(),
        ),
        ("server-overview", true, overview(true).into()),
        ("server-overview-plain", true, overview(false).into()),
    ];
    messages
        .into_iter()
        .enumerate()
        .map(|(i, (name, answers, message))| {
            let reference = answers.then_some(RequestId::Integer(i as i64 + 1));
            (name, Response { reference, message })
        })
        .collect()
}
