//! What GET shows, as JSON.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::RawValue;
use taskyard_proto::payload::PayloadKind;
use taskyard_proto::{Assign, Encoding, Headers, Payload, TaskId, TaskState};
use utoipa::ToSchema;

use super::schema;
use crate::auth::Identity;
use crate::core::record::FailedAttempt;
use crate::core::settings::{Deliver, Order, Settings};
use crate::core::view::{Explanation, QueueView, Reason, TaskView, WorkerView};

fn raw(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("a payload is one JSON value")
}

fn to_json(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("its keys are text")
}

/// An attempt that failed.
#[derive(Serialize, ToSchema)]
pub struct Attempt {
    /// Which one.
    attempt: u64,
    /// Who made it; null where nobody did.
    #[schema(required = true)]
    worker: Option<String>,
    /// Why it failed.
    #[schema(value_type = schema::Failure)]
    reason: &'static str,
    /// What was said of it.
    #[schema(required = true)]
    error: Option<String>,
}

/// A task. The result keeps the text that the worker sent.
#[derive(Serialize, ToSchema)]
pub struct Task {
    /// Its id.
    #[schema(format = "uuid")]
    task: String,
    /// Its queue.
    queue: String,
    /// Its state.
    #[schema(value_type = schema::State)]
    state: &'static str,
    /// The attempt that it is at, or ended with.
    attempt: u64,
    /// How many there may be.
    max_attempts: u64,
    /// Since acceptance.
    age_ms: u64,
    /// Who holds it, or settled it.
    #[schema(required = true)]
    worker: Option<String>,
    /// What the ack said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    result: Option<Box<RawValue>>,
    /// The same, where it is bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, content_encoding = "base64", nullable = false)]
    result_b64: Option<Box<RawValue>>,
    /// What the latest failed attempt said.
    #[schema(required = true)]
    error: Option<String>,
    /// The attempts that failed; of very many, the latest.
    history: Vec<Attempt>,
    /// What its worker gets, as it was submitted; with `payload=true`, until the task has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    payload: Option<Box<RawValue>>,
    /// The same, where it is bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, content_encoding = "base64", nullable = false)]
    payload_b64: Option<Box<RawValue>>,
    /// What it was submitted with beside that; with `payload=true`, until the task has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    headers: Option<BTreeMap<String, String>>,
}

/// What a task was submitted with.
pub(super) struct Inside {
    /// What its worker gets.
    pub(super) payload: Payload,
    /// Beside it.
    pub(super) headers: Headers,
}

/// Tasks of a queue.
#[derive(Serialize, ToSchema)]
pub struct Tasks {
    /// In order of their making.
    tasks: Vec<Task>,
    /// What to give as `after` for the next part; null: there is none.
    #[schema(required = true, format = "uuid")]
    next: Option<String>,
}

/// What holds a task up.
#[derive(Serialize, ToSchema)]
pub struct Explained {
    /// The task.
    #[schema(format = "uuid")]
    task: String,
    /// Its state.
    #[schema(value_type = schema::State)]
    state: &'static str,
    /// All that holds it up, most telling first; empty: nothing does.
    reasons: Vec<Why>,
}

/// One thing that holds a task up. Beside `code` and `message` each code has the fields that it is named with.
#[derive(Serialize, ToSchema)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Hold {
    /// Nobody is subscribed to the queue.
    NoWorker,
    /// Nobody who may take it can take more for now: most hold as much as they asked for.
    NoCredit {
        /// How many workers.
        busy: u64,
        /// How many of them let an ack timeout pass and have not been heard since.
        silent: u64,
        /// How many of them want no more.
        draining: u64,
    },
    /// The worker it is for is not subscribed.
    WorkerAbsent {
        /// Its name.
        worker: String,
    },
    /// Nobody of the group it is for is subscribed.
    GroupEmpty {
        /// The group.
        group: String,
    },
    /// The queue is paused.
    Paused {
        /// For how long yet; null: until somebody ends it.
        #[schema(required = true)]
        in_ms: Option<u64>,
        /// Who paused it.
        #[schema(required = true)]
        by: Option<String>,
        /// Why.
        #[schema(required = true)]
        reason: Option<String>,
    },
    /// Another task of its order key goes first.
    OrderBlocked {
        /// That task.
        #[schema(format = "uuid")]
        by: String,
    },
    /// The queue gives out no more than so many a second.
    RateLimited {
        /// When the next one may go.
        in_ms: u64,
    },
    /// An attempt failed, and it waits.
    Backoff {
        /// For how long yet.
        in_ms: u64,
    },
    /// Its time has not come.
    Scheduled {
        /// For how long yet.
        in_ms: u64,
    },
    /// As many of the queue's tasks are with workers as may be.
    QueueLimit {
        /// How many that is.
        max_leased: u64,
    },
    /// Its last worker gave it back a moment ago, and nobody else is free.
    Released {
        /// When that worker may get it again.
        in_ms: u64,
    },
    /// The disk does not hold it yet.
    NotDurable,
    /// The payload of its queue's next task is on its way from the disk.
    PayloadAway,
    /// The broker shuts down.
    Draining,
}

/// One thing that holds a task up, and what to do about it.
#[derive(Serialize, ToSchema)]
pub struct Why {
    /// What it is.
    #[serde(flatten)]
    hold: Hold,
    /// In words.
    message: String,
}

/// How many tasks are in each state; of those that ended, since the queue was made.
#[derive(Serialize, ToSchema)]
pub struct Counts {
    scheduled: u64,
    queued: u64,
    leased: u64,
    retrying: u64,
    done: u64,
    dead: u64,
    cancelled: u64,
    expired: u64,
}

/// How many tasks a second, over the last ten seconds.
#[derive(Serialize, ToSchema)]
pub struct Rates {
    /// Taken in.
    accepted: f64,
    /// Handed to workers.
    delivered: f64,
    /// Settled by them.
    settled: f64,
}

/// A queue that delivers nothing for a while.
#[derive(Serialize, ToSchema)]
pub struct Paused {
    /// Who asked for it; null: authentication was off.
    #[schema(required = true)]
    by: Option<String>,
    /// Why.
    #[schema(required = true)]
    reason: Option<String>,
    /// For how long yet; null: until somebody ends it.
    #[schema(required = true)]
    in_ms: Option<u64>,
}

/// A queue.
#[derive(Serialize, ToSchema)]
pub struct Queue {
    /// Its name.
    queue: String,
    /// How many tasks are in each state.
    counts: Counts,
    /// For how long a task waits for a worker, at the longest.
    #[schema(required = true)]
    oldest_ms: Option<u64>,
    /// How many tasks a second.
    rates: Rates,
    /// How many workers are subscribed.
    workers: u64,
    /// How many tasks they hold.
    in_flight: u64,
    /// How many more they could hold.
    credit_free: u64,
    /// Whether somebody declared it, and did not only use it.
    declared: bool,
    /// What was said of it.
    settings: SettingsShown,
    /// Whether it delivers; null: it does.
    #[schema(required = true)]
    paused: Option<Paused>,
}

/// All queues that may be seen.
#[derive(Serialize, ToSchema)]
pub struct Queues {
    /// In order of their making.
    queues: Vec<Queue>,
}

/// A queue's settings. Null: nothing was said, and there is no limit, or the broker's default holds.
#[derive(Serialize, ToSchema)]
pub struct SettingsShown {
    /// How a worker is chosen for a task that does not say.
    #[schema(value_type = schema::Assign)]
    assign: &'static str,
    /// When a task may be handed out.
    #[schema(value_type = DeliverWord)]
    deliver: &'static str,
    /// How priorities are taken.
    order: OrderShown,
    /// How many tasks may be unfinished; dead letters are not counted.
    #[schema(required = true)]
    max_tasks: Option<u64>,
    /// How many bytes their payloads may have together.
    #[schema(required = true)]
    max_bytes: Option<u64>,
    /// How many may be with workers at a time.
    #[schema(required = true)]
    max_leased: Option<u64>,
    /// How many are handed out a second, at most.
    #[schema(required = true)]
    rate_per_s: Option<f64>,
    /// How long a finished task can be looked up; null: 10 minutes.
    #[schema(required = true)]
    keep_result_ms: Option<u64>,
    /// What a submit gets for what it leaves out.
    defaults: DefaultsShown,
}

/// When a task may be handed out.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum DeliverWord {
    /// Once it would survive a power cut.
    Durable,
    /// As soon as it is here.
    Early,
}

/// How priorities are taken: `strict`, or as a head start.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum OrderShown {
    /// Any task of a higher priority goes before any of a lower one.
    Strict(StrictWord),
    /// A step of priority is worth so much time.
    Aged(AgedShown),
}

/// Any task of a higher priority goes before any of a lower one.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrictWord {
    /// The only word.
    Strict,
}

/// Priorities as a head start.
#[derive(Serialize, ToSchema)]
pub struct AgedShown {
    /// How large it is.
    aged: Headstart,
}

/// How large a head start is.
#[derive(Serialize, ToSchema)]
pub struct Headstart {
    /// What a step of priority is worth.
    headstart_ms: u64,
}

/// What a submit gets for what it leaves out; null: the protocol's own default.
#[derive(Serialize, ToSchema)]
pub struct DefaultsShown {
    #[schema(required = true)]
    priority: Option<u8>,
    #[schema(required = true)]
    ttl_ms: Option<u64>,
    #[schema(required = true)]
    ack_timeout_ms: Option<u32>,
    #[schema(required = true)]
    timeout_ms: Option<u32>,
    #[schema(required = true)]
    max_attempts: Option<u16>,
    #[schema(required = true)]
    backoff: Option<BackoffShown>,
}

/// How long to wait between attempts.
#[derive(Serialize, ToSchema)]
pub struct BackoffShown {
    initial_ms: u32,
    max_ms: u32,
    factor: f64,
}

/// A subscription of a worker's.
#[derive(Serialize, ToSchema)]
pub struct Subscription {
    /// To which queue.
    queue: String,
    /// How many unsettled tasks it may hold.
    credit: u64,
    /// How many it holds.
    unsettled: u64,
}

/// A connected worker.
#[derive(Serialize, ToSchema)]
pub struct Worker {
    /// Its name.
    worker: String,
    /// Its session, as in logs.
    session: String,
    /// The groups that it is in.
    groups: Vec<String>,
    /// What it says of itself.
    labels: BTreeMap<String, String>,
    /// What program it is.
    #[schema(required = true)]
    client: Option<String>,
    /// For how long it has been connected.
    connected_ms: u64,
    /// How many tasks it holds.
    in_flight: u64,
    /// Whether it takes no more.
    draining: bool,
    /// Whether it let an ack timeout pass, and was not heard since.
    silent: bool,
    /// Whether its socket has ended, and its session may yet be resumed.
    away: bool,
    /// What it is subscribed to.
    subscriptions: Vec<Subscription>,
}

/// All workers that may be seen.
#[derive(Serialize, ToSchema)]
pub struct Workers {
    /// By session.
    workers: Vec<Worker>,
}

/// Who asks.
#[derive(Serialize, ToSchema)]
pub struct Me {
    /// Whose the token is; `anyone` while there is no authentication.
    account: String,
    /// Whether a token is asked for.
    auth: bool,
    /// The permissions, as in `submit:emails*`.
    allow: Vec<String>,
    /// When the token ends; null: never.
    #[schema(required = true)]
    expires_in_ms: Option<u64>,
}

impl From<&FailedAttempt> for Attempt {
    fn from(attempt: &FailedAttempt) -> Attempt {
        Attempt {
            attempt: u64::from(attempt.attempt),
            worker: attempt.worker.as_ref().map(ToString::to_string),
            reason: attempt.reason.as_str(),
            error: attempt.error.as_ref().map(|error| error.as_str().to_owned()),
        }
    }
}

impl From<&TaskView> for Task {
    fn from(view: &TaskView) -> Task {
        let (result, result_b64) = told(&view.result);
        Task {
            task: view.task.to_string(),
            queue: view.queue.to_string(),
            state: view.state.as_str(),
            attempt: view.attempt,
            max_attempts: view.max_attempts,
            age_ms: view.age_ms,
            worker: view.worker.as_ref().map(ToString::to_string),
            result,
            result_b64,
            error: view.error.as_ref().map(|error| error.as_str().to_owned()),
            history: view.history.iter().map(Attempt::from).collect(),
            payload: None,
            payload_b64: None,
            headers: None,
        }
    }
}

/// A value, or bytes as base64.
fn told(payload: &Payload) -> (Option<Box<RawValue>>, Option<Box<RawValue>>) {
    let text = raw(payload.to_json());
    if payload.kind() == PayloadKind::Binary { (None, Some(text)) } else { (Some(text), None) }
}

fn headers(headers: &Headers) -> BTreeMap<String, String> {
    headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A JSON text as MessagePack.
fn pack(json: &str) -> Vec<u8> {
    Payload::json_text(json).expect("what we write is JSON").to_message_pack()
}

/// A task in MessagePack, where bytes are bytes and a value is as its worker sent it.
fn packed(view: &TaskView) -> Vec<u8> {
    let mut out = pack(&to_json(&Task { result: None, result_b64: None, ..Task::from(view) }));
    // A map of so few fields has their number in its first byte.
    out[0] += 1;
    out.extend(b"\xa6result");
    out.extend(view.result.to_message_pack());
    out
}

/// `GET /v1/tasks/{id}`.
pub(super) fn task(view: &TaskView, inside: Option<&Inside>, encoding: Encoding) -> Vec<u8> {
    match (encoding, inside) {
        (Encoding::Json, None) => to_json(&Task::from(view)).into_bytes(),
        (Encoding::Json, Some(inside)) => {
            let (payload, payload_b64) = told(&inside.payload);
            let headers = Some(headers(&inside.headers));
            to_json(&Task { payload, payload_b64, headers, ..Task::from(view) }).into_bytes()
        }
        (Encoding::MessagePack, None) => packed(view),
        (Encoding::MessagePack, Some(inside)) => {
            let mut out = packed(view);
            out[0] += 2;
            out.extend(b"\xa7payload");
            out.extend(inside.payload.to_message_pack());
            out.extend(b"\xa7headers");
            out.extend(pack(&to_json(&headers(&inside.headers))));
            out
        }
    }
}

/// `GET /v1/queues/{q}/tasks`: so many of the tasks at most.
pub(super) fn tasks(views: &[TaskView], limit: usize, encoding: Encoding) -> Vec<u8> {
    let shown = &views[..views.len().min(limit)];
    let more = views.len() > limit;
    let next = shown.last().filter(|_| more).map(|last| last.task.to_string());
    match encoding {
        Encoding::Json => {
            to_json(&Tasks { tasks: shown.iter().map(Task::from).collect(), next }).into_bytes()
        }
        Encoding::MessagePack => {
            // A map of two: an array whose length has four bytes, and a text or nil.
            let mut out = b"\x82\xa5tasks\xdd".to_vec();
            out.extend(u32::try_from(shown.len()).expect("a list is short").to_be_bytes());
            shown.iter().for_each(|view| out.extend(packed(view)));
            out.extend(b"\xa4next");
            out.extend(pack(&to_json(&next)));
            out
        }
    }
}

impl From<Reason> for Why {
    fn from(reason: Reason) -> Why {
        let (hold, message) = match reason {
            Reason::NoWorker => (
                Hold::NoWorker,
                "nobody is subscribed to the queue: start a worker, or see whether it takes tasks from another queue"
                    .to_owned(),
            ),
            Reason::NoCredit { busy, silent, draining } => {
                let message = match busy - silent - draining {
                    0 => format!(
                        "all workers that may take it take no more ({busy} of them; {silent} let an ack timeout pass \
                         and were not heard since, {draining} drain): see whether they hang, or start others"
                    ),
                    _ => format!(
                        "all workers that may take it are busy ({busy} of them; {silent} let an ack timeout pass and \
                         were not heard since, {draining} drain): wait until one settles a task, start more workers, \
                         or have them subscribe with more credit"
                    ),
                };
                (Hold::NoCredit { busy, silent, draining }, message)
            }
            Reason::WorkerAbsent { worker } => (
                Hold::WorkerAbsent { worker: worker.to_string() },
                format!(
                    "it is for worker {worker}, which is not subscribed to the queue: start that worker, or cancel \
                     the task and submit it to another one or with if_absent \"any\""
                ),
            ),
            Reason::GroupEmpty { group } => (
                Hold::GroupEmpty { group: group.to_string() },
                format!(
                    "it is for group {group}, and no worker of that group is subscribed to the queue: start one"
                ),
            ),
            Reason::Paused { in_ms, by, reason } => {
                let who = by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
                let why = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                let end = match in_ms {
                    Some(ms) => format!("for {ms} ms more: wait, or unpause it"),
                    None => "until somebody ends it: unpause it".to_owned(),
                };
                let message = format!("the queue was paused{who}{why} {end}");
                (Hold::Paused { in_ms, by, reason }, message)
            }
            Reason::OrderBlocked { by } => (
                Hold::OrderBlocked { by: by.to_string() },
                format!(
                    "task {by} has the same order_key and goes first: this one follows when that one has ended; \
                     if that takes too long, see what holds it up, or cancel it"
                ),
            ),
            Reason::RateLimited { in_ms } => (
                Hold::RateLimited { in_ms },
                format!(
                    "the queue's rate_per_s is used up for the moment, the next task may go in {in_ms} ms: wait, or \
                     raise rate_per_s"
                ),
            ),
            Reason::Backoff { in_ms } => (
                Hold::Backoff { in_ms },
                format!(
                    "its last attempt failed, the next one begins in {in_ms} ms: its history says what went wrong"
                ),
            ),
            Reason::Scheduled { in_ms } => (
                Hold::Scheduled { in_ms },
                format!("it was submitted for later and is queued in {in_ms} ms: wait until then"),
            ),
            Reason::QueueLimit { max_leased } => (
                Hold::QueueLimit { max_leased },
                format!(
                    "as many tasks of the queue are with workers as its max_leased allows ({max_leased}): wait \
                     until one is settled, or raise max_leased"
                ),
            ),
            Reason::Released { in_ms } => (
                Hold::Released { in_ms },
                format!(
                    "the only worker that is free has just released it, and is offered it again in {in_ms} ms: \
                     wait, or start another worker"
                ),
            ),
            Reason::NotDurable => (
                Hold::NotDurable,
                "the disk does not hold it yet, which takes a moment: if it lasts, look at \
                 taskyard_log_sync_seconds and at the broker's log"
                    .to_owned(),
            ),
            Reason::PayloadAway => (
                Hold::PayloadAway,
                "the payload of its queue's next task is on its way from the disk, which takes a moment: if it lasts, \
                 the disk is slow; payload_memory_bytes says how much stays in memory"
                    .to_owned(),
            ),
            Reason::Draining => (
                Hold::Draining,
                "the broker is shutting down and delivers nothing: the task is delivered once it is back".to_owned(),
            ),
        };
        Why { hold, message }
    }
}

/// `GET /v1/tasks/{id}/explain`.
pub(super) fn explained(explanation: Explanation) -> String {
    to_json(&Explained {
        task: explanation.task.to_string(),
        state: explanation.state.as_str(),
        reasons: explanation.reasons.into_iter().map(Why::from).collect(),
    })
}

impl From<&Settings> for SettingsShown {
    fn from(settings: &Settings) -> SettingsShown {
        let defaults = &settings.defaults;
        SettingsShown {
            assign: settings.assign.unwrap_or(Assign::RoundRobin).as_str(),
            deliver: match settings.deliver {
                Deliver::Durable => "durable",
                Deliver::Early => "early",
            },
            order: match settings.order {
                Order::Strict => OrderShown::Strict(StrictWord::Strict),
                Order::Aged { headstart_ms } => {
                    OrderShown::Aged(AgedShown { aged: Headstart { headstart_ms } })
                }
            },
            max_tasks: settings.max_tasks,
            max_bytes: settings.max_bytes,
            max_leased: settings.max_leased,
            rate_per_s: settings.rate_per_s,
            keep_result_ms: settings.keep_result_ms,
            defaults: DefaultsShown {
                priority: defaults.priority,
                ttl_ms: defaults.ttl_ms,
                ack_timeout_ms: defaults.ack_timeout_ms,
                timeout_ms: defaults.timeout_ms,
                max_attempts: defaults.max_attempts,
                backoff: defaults.backoff.map(|backoff| BackoffShown {
                    initial_ms: backoff.initial_ms,
                    max_ms: backoff.max_ms,
                    factor: backoff.factor,
                }),
            },
        }
    }
}

impl From<&QueueView> for Queue {
    fn from(view: &QueueView) -> Queue {
        let count = |state: TaskState| view.counts[state as usize];
        let [accepted, delivered, settled] = view.rates;
        Queue {
            queue: view.queue.to_string(),
            counts: Counts {
                scheduled: count(TaskState::Scheduled),
                queued: count(TaskState::Queued),
                leased: count(TaskState::Leased),
                retrying: count(TaskState::Retrying),
                done: count(TaskState::Done),
                dead: count(TaskState::Dead),
                cancelled: count(TaskState::Cancelled),
                expired: count(TaskState::Expired),
            },
            oldest_ms: view.oldest_ms,
            rates: Rates { accepted, delivered, settled },
            workers: view.workers,
            in_flight: view.in_flight,
            credit_free: view.credit_free,
            declared: view.declared,
            settings: SettingsShown::from(&view.settings),
            paused: view.pause.as_ref().map(|pause| Paused {
                by: pause.by.as_ref().map(ToString::to_string),
                reason: pause.reason.clone(),
                in_ms: view.paused_ms,
            }),
        }
    }
}

/// `GET /v1/queues/{q}`.
pub(super) fn queue(view: &QueueView) -> String {
    to_json(&Queue::from(view))
}

/// `GET /v1/queues`.
pub(super) fn queues<'a>(views: impl Iterator<Item = &'a QueueView>) -> String {
    to_json(&Queues { queues: views.map(Queue::from).collect() })
}

impl From<&WorkerView> for Worker {
    fn from(view: &WorkerView) -> Worker {
        Worker {
            worker: view.worker.to_string(),
            session: format!("s{:x}", view.session),
            groups: view.groups.clone(),
            labels: view.labels.iter().cloned().collect(),
            client: view.client.clone(),
            connected_ms: view.connected_ms,
            in_flight: view.in_flight,
            draining: view.draining,
            silent: view.silent,
            away: view.away,
            subscriptions: view
                .subscriptions
                .iter()
                .map(|(queue, credit, unsettled)| Subscription {
                    queue: queue.to_string(),
                    credit: *credit,
                    unsettled: *unsettled,
                })
                .collect(),
        }
    }
}

/// `GET /v1/workers`.
pub(super) fn workers(views: &[WorkerView]) -> String {
    to_json(&Workers { workers: views.iter().map(Worker::from).collect() })
}

/// Where a task is.
pub(super) fn standing(task: TaskId, state: Option<TaskState>) -> String {
    serde_json::json!({"task": task.to_string(), "state": state.map(TaskState::as_str)}).to_string()
}

/// `GET /v1/me`.
pub(super) fn me(identity: &Identity, auth: bool, now: SystemTime) -> String {
    let left = identity.expires.map(|end| end.duration_since(now).unwrap_or_default());
    to_json(&Me {
        account: identity.account.to_string(),
        auth,
        allow: identity.grants.rules().iter().map(ToString::to_string).collect(),
        expires_in_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
    })
}
