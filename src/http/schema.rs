//! What bodies look like, for `/openapi.json`: the messages of the protocol, which `taskyard_proto` reads and
//! writes without schemas. A test holds their fields and those of the messages together.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// A task's state.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum State {
    /// Waits for its time.
    Scheduled,
    /// Waits for a worker.
    Queued,
    /// Is with a worker.
    Leased,
    /// Waits out a back-off after a failed attempt.
    Retrying,
    /// Was acknowledged.
    Done,
    /// Used up its attempts, or was refused for good.
    Dead,
    /// Was cancelled or purged.
    Cancelled,
    /// Outlived its `ttl_ms`.
    Expired,
}

/// Which kind of refusal it is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Code {
    /// Not what the protocol allows.
    BadRequest,
    /// No message has this type.
    UnknownType,
    /// No token, or a wrong one.
    Unauthorized,
    /// The token does not allow this.
    Forbidden,
    /// A named task, queue, worker or schedule does not exist.
    NotFound,
    /// The thing is in a state that does not allow this.
    Conflict,
    /// The lease is old, foreign, unknown or garbled.
    LeaseLost,
    /// Too many messages.
    RateLimited,
    /// The queue, the number of queues, or the broker's memory is at its limit.
    QueueFull,
    /// The disk is full.
    StorageFull,
    /// Not now.
    Unavailable,
    /// The broker is shutting down.
    Draining,
    /// A fault of the broker.
    Internal,
    /// Over the limit of a message.
    TooLarge,
}

/// Why something was refused.
#[derive(ToSchema)]
pub struct Error {
    /// Which kind of refusal.
    pub code: Code,
    /// What happened, what was expected, what to do; for people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// When to try again; on every retryable one.
    #[schema(nullable = false)]
    pub retry_after_ms: Option<u64>,
    /// The lease it is about, as it was given.
    #[schema(nullable = false)]
    pub lease: Option<String>,
    /// The task it is about.
    #[schema(nullable = false, format = "uuid")]
    pub task: Option<String>,
    /// The field or parameter at fault.
    #[schema(nullable = false)]
    pub field: Option<String>,
}

/// How a worker is chosen.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Assign {
    /// In turn.
    RoundRobin,
    /// The one with the smallest share of its credit in use.
    LeastLoaded,
    /// By the hash of `sticky_key`.
    Sticky,
}

/// When `accepted` is said.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Confirm {
    /// Once the task survives a power cut.
    Durable,
    /// Once it is in memory.
    Memory,
    /// Over HTTP the answer comes all the same.
    None,
}

/// What becomes of a task to one worker while that worker is absent.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum IfAbsent {
    /// It waits.
    Wait,
    /// The submit is refused.
    Fail,
    /// Any worker may take it.
    Any,
}

/// Who may take a task: any worker of the queue; one `worker`; any of a `group`; with `all` every one of either.
#[derive(ToSchema)]
pub struct Target {
    /// One worker.
    #[schema(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub worker: Option<String>,
    /// What to do while that worker is absent; it waits if nothing is said.
    pub if_absent: Option<IfAbsent>,
    /// Any worker of the group.
    #[schema(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub group: Option<String>,
    /// Every worker.
    pub all: Option<bool>,
}

/// How long to wait between attempts: `min(max_ms, initial_ms × factor^(attempt−1))`, ± 10 %.
#[derive(ToSchema)]
pub struct Backoff {
    /// After the first failure; 1000 if absent.
    #[schema(maximum = 86_400_000)]
    pub initial_ms: Option<u64>,
    /// The longest wait; 300000 if absent.
    #[schema(maximum = 86_400_000)]
    pub max_ms: Option<u64>,
    /// How it grows; 2 if absent.
    #[schema(minimum = 1, maximum = 10)]
    pub factor: Option<f64>,
}

/// So many acknowledgements.
#[derive(ToSchema)]
pub struct Quorum {
    /// How many.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quorum: u64,
}

/// When a task to all is complete.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Complete {
    /// With all (`all`), or with the first that acknowledges (`any`).
    Word(CompleteWord),
    /// With so many.
    Quorum(Quorum),
}

/// When a task to all is complete, in a word.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum CompleteWord {
    /// When every recipient has finished.
    All,
    /// With the first that acknowledges.
    Any,
}

/// A task to submit. Fields that are not known are ignored.
#[derive(ToSchema)]
pub struct Submit {
    /// What the worker gets: any value. Null if absent.
    pub payload: Option<Value>,
    /// The same as bytes, in standard base64; instead of `payload`.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    pub payload_b64: Option<String>,
    /// Text by text, at most 4096 bytes together; handed to the worker.
    pub headers: Option<BTreeMap<String, String>>,
    /// Who may take it; any worker if absent.
    pub to: Option<Target>,
    /// How a worker is chosen; as the queue says if absent.
    pub assign: Option<Assign>,
    /// What `sticky` hashes.
    #[schema(min_length = 1, max_length = 256)]
    pub sticky_key: Option<String>,
    /// Tasks of one key run one at a time, in order.
    #[schema(min_length = 1, max_length = 256)]
    pub order_key: Option<String>,
    /// Keys take turns.
    #[schema(min_length = 1, max_length = 256)]
    pub fair_key: Option<String>,
    /// Higher first; 4 if absent.
    #[schema(maximum = 9)]
    pub priority: Option<u64>,
    /// How long the task waits before it is queued.
    #[schema(maximum = 31_536_000_000_u64)]
    pub delay_ms: Option<u64>,
    /// When it is queued (RFC 3339); not together with `delay_ms`.
    #[schema(format = "date-time", max_length = 64)]
    pub run_at: Option<String>,
    /// How long the task is of use, from acceptance.
    #[schema(minimum = 1, maximum = 31_536_000_000_u64)]
    pub ttl_ms: Option<u64>,
    /// How long a worker may keep silent; 30000 if absent.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub ack_timeout_ms: Option<u64>,
    /// How long one attempt may run, whatever `extend` says.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub timeout_ms: Option<u64>,
    /// How many charged deliveries; 5 if absent.
    #[schema(minimum = 1, maximum = 1000)]
    pub max_attempts: Option<u64>,
    /// How long to wait between attempts.
    pub backoff: Option<Backoff>,
    /// Tells a retried submit from a new one.
    #[schema(min_length = 1, max_length = 256)]
    pub dedup_id: Option<String>,
    /// When a task to all is complete; with all if absent.
    pub complete: Option<Complete>,
    /// When the answer comes; `durable` if absent.
    pub confirm: Option<Confirm>,
    /// Of no effect over HTTP: see `wait_ms`, and a task's events.
    pub watch: Option<bool>,
}

/// What is submitted again and again, and when. Fields that are not known are refused.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleGiven {
    /// The queue, made if there is none.
    #[schema(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub queue: String,
    /// When, as a cron pattern: five fields, or six with seconds in front. Either this or `every_ms`.
    pub cron: Option<String>,
    /// The zone that the pattern is in, as `Europe/Zurich`; UTC if absent.
    pub tz: Option<String>,
    /// Every so many milliseconds.
    #[schema(minimum = 100, maximum = 31_536_000_000_u64)]
    pub every_ms: Option<u64>,
    /// What becomes of times at which the broker was away; `one` if absent.
    pub missed: Option<MissedWord>,
    /// What the worker gets: any value. Null if absent.
    pub payload: Option<Value>,
    /// The same as bytes, in standard base64; instead of `payload`.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    pub payload_b64: Option<String>,
    /// Text by text, at most 4096 bytes together; handed to the worker.
    pub headers: Option<BTreeMap<String, String>>,
    /// Who may take it; any worker if absent.
    pub to: Option<Target>,
    /// How a worker is chosen; as the queue says if absent.
    pub assign: Option<Assign>,
    /// What `sticky` hashes.
    #[schema(min_length = 1, max_length = 256)]
    pub sticky_key: Option<String>,
    /// Tasks of one key run one at a time, in order.
    #[schema(min_length = 1, max_length = 256)]
    pub order_key: Option<String>,
    /// Keys take turns.
    #[schema(min_length = 1, max_length = 256)]
    pub fair_key: Option<String>,
    /// Higher first; 4 if absent.
    #[schema(maximum = 9)]
    pub priority: Option<u64>,
    /// How long the task waits before it is queued.
    #[schema(maximum = 31_536_000_000_u64)]
    pub delay_ms: Option<u64>,
    /// How long the task is of use, from acceptance.
    #[schema(minimum = 1, maximum = 31_536_000_000_u64)]
    pub ttl_ms: Option<u64>,
    /// How long a worker may keep silent; 30000 if absent.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub ack_timeout_ms: Option<u64>,
    /// How long one attempt may run, whatever `extend` says.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub timeout_ms: Option<u64>,
    /// How many charged deliveries; 5 if absent.
    #[schema(minimum = 1, maximum = 1000)]
    pub max_attempts: Option<u64>,
    /// How long to wait between attempts.
    pub backoff: Option<Backoff>,
    /// When a task to all is complete; with all if absent.
    pub complete: Option<Complete>,
}

/// What becomes of times at which the broker was away.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum MissedWord {
    /// All of them together are made up for by one task.
    One,
    /// They are gone.
    None,
}

/// A schedule: what was put, and what has come of it. Options of its submit that were given are shown, too.
#[derive(ToSchema)]
pub struct Schedule {
    /// Its name.
    pub name: String,
    /// Where it submits to.
    pub queue: String,
    /// When, as a cron pattern.
    #[schema(nullable = false)]
    pub cron: Option<String>,
    /// The zone that the pattern is in.
    #[schema(nullable = false)]
    pub tz: Option<String>,
    /// Every so many milliseconds.
    #[schema(nullable = false)]
    pub every_ms: Option<u64>,
    /// What becomes of times at which the broker was away.
    pub missed: MissedWord,
    /// When it submits next; null: never again.
    #[schema(required = true, format = "date-time")]
    pub next_run_at: Option<String>,
    /// The same, from now.
    #[schema(required = true)]
    pub next_in_ms: Option<u64>,
    /// How often it has fired.
    pub fired: u64,
    /// The latest time that it fired for; null: none yet.
    #[schema(required = true)]
    pub last: Option<Fired>,
    /// Why its latest submit was refused; null: it was not.
    #[schema(required = true)]
    pub last_error: Option<FiredInVain>,
}

/// A time at which a schedule submitted.
#[derive(ToSchema)]
pub struct Fired {
    /// The time that it was for.
    #[schema(required = true, format = "date-time")]
    pub run_at: Option<String>,
    /// The task that came of it.
    #[schema(format = "uuid")]
    pub task: String,
}

/// Why a schedule's submit was refused.
#[derive(ToSchema)]
pub struct FiredInVain {
    /// Which kind of refusal.
    pub code: Code,
    /// What happened.
    pub message: String,
}

/// All schedules that may be seen.
#[derive(ToSchema)]
pub struct Schedules {
    /// By name.
    pub schedules: Vec<Schedule>,
}

/// Which schedule.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfSchedule {
    /// The schedule's name.
    #[param(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub name: String,
}

/// A task's id.
#[derive(ToSchema)]
#[schema(format = "uuid", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
pub struct Id(pub String);

/// Any bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct Bytes(pub Vec<u8>);

/// The options of a task whose payload is the body itself.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SubmitOptions {
    /// With a body of bytes: higher first; 4 if absent.
    #[param(maximum = 9, nullable = false)]
    pub priority: Option<u64>,
    /// With a body of bytes: how long the task waits before it is queued.
    #[param(maximum = 31_536_000_000_u64, nullable = false)]
    pub delay_ms: Option<u64>,
    /// With a body of bytes: how long the task is of use, from acceptance.
    #[param(minimum = 1, maximum = 31_536_000_000_u64, nullable = false)]
    pub ttl_ms: Option<u64>,
    /// With a body of bytes: how many charged deliveries; 5 if absent.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    pub max_attempts: Option<u64>,
    /// With a body of bytes: tasks of one key run one at a time, in order.
    #[param(min_length = 1, max_length = 256, nullable = false)]
    pub order_key: Option<String>,
    /// With a body of bytes: keys take turns.
    #[param(min_length = 1, max_length = 256, nullable = false)]
    pub fair_key: Option<String>,
    /// With a body of bytes: tells a retried submit from a new one.
    #[param(min_length = 1, max_length = 256, nullable = false)]
    pub dedup_id: Option<String>,
}

/// What a submit is answered that made no new task, or waited: where the task is, or how it ended.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Ended {
    /// The task has ended.
    Finished(Finished),
    /// An earlier submit made it.
    Accepted(Accepted),
}

/// One of many tasks to submit: with its queue.
#[derive(ToSchema)]
pub struct SubmitTo {
    /// The queue, made if there is none.
    #[schema(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub queue: String,
    /// The task.
    #[serde(flatten)]
    pub submit: Submit,
}

/// A task was taken in.
#[derive(ToSchema)]
pub struct Accepted {
    /// Its id, made by the broker.
    #[schema(format = "uuid")]
    pub task: String,
    /// Whether an earlier submit with this `dedup_id` made it.
    pub duplicate: bool,
}

/// What came of one of many submits.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Outcome {
    /// It was taken in.
    Accepted(Accepted),
    /// It was refused.
    Error(Error),
}

/// Something that happened to a task.
#[derive(ToSchema)]
pub struct Event {
    /// The task.
    #[schema(format = "uuid")]
    pub task: String,
    /// Counts the task's events, from 1.
    pub seq: u64,
    /// Its state.
    pub state: State,
    /// Whether the worker has said `start`.
    pub started: bool,
    /// Who holds it.
    #[schema(required = true)]
    pub worker: Option<String>,
    /// The attempt.
    pub attempt: u64,
    /// The latest progress.
    #[schema(required = true, maximum = 100)]
    pub percent: Option<f64>,
    /// The latest progress's data.
    #[schema(nullable = true)]
    pub data: Option<Value>,
    /// The same, where it is bytes.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        nullable = false
    )]
    pub data_b64: Option<String>,
    /// What the latest failed attempt said.
    #[schema(required = true)]
    pub error: Option<String>,
}

/// The last word on a task.
#[derive(ToSchema)]
pub struct Finished {
    /// The task.
    #[schema(format = "uuid")]
    pub task: String,
    /// Counts on from the task's events.
    pub seq: u64,
    /// done, dead, cancelled or expired.
    pub state: State,
    /// What the worker's ack said.
    pub result: Option<Value>,
    /// The same, where it is bytes.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        nullable = false
    )]
    pub result_b64: Option<String>,
    /// Why it failed.
    #[schema(required = true)]
    pub error: Option<String>,
    /// Charged deliveries, the successful one included.
    pub attempts: u64,
    /// Of a task to all: what became of each recipient, failures first, at most 1000.
    #[schema(required = true)]
    pub recipients: Option<Vec<Recipient>>,
    /// Of a task to all: how many recipients got it.
    #[schema(required = true)]
    pub delivered: Option<u64>,
    /// Of a task to all: how many acknowledged it.
    #[schema(required = true)]
    pub acked: Option<u64>,
    /// Of a task to all: how many did not.
    #[schema(required = true)]
    pub failed: Option<u64>,
}

/// What became of one recipient of a task to all.
#[derive(ToSchema)]
pub struct Recipient {
    /// Its name.
    pub worker: String,
    /// The state of its share.
    pub state: State,
    /// Charged deliveries to it.
    pub attempts: u64,
    /// Its result.
    pub result: Option<Value>,
    /// The same, where it is bytes.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        nullable = false
    )]
    pub result_b64: Option<String>,
    /// What went wrong.
    #[schema(required = true)]
    pub error: Option<String>,
}

/// Where a task is.
#[derive(ToSchema)]
pub struct Standing {
    /// The task.
    #[schema(format = "uuid")]
    pub task: String,
    /// Its state; null if it is no longer known.
    #[schema(required = true)]
    pub state: Option<State>,
}

/// A task to work on.
#[derive(ToSchema)]
pub struct Delivery {
    /// The task.
    #[schema(format = "uuid")]
    pub task: String,
    /// The right to settle it.
    #[schema(required = true)]
    pub lease: Option<String>,
    /// The queue.
    pub queue: String,
    /// Charged deliveries so far, plus one.
    pub attempt: u64,
    /// How many there may be.
    pub max_attempts: u64,
    /// Whether this is not certainly the first delivery.
    pub redelivered: bool,
    /// How long the worker may keep silent.
    pub ack_timeout_ms: u64,
    /// Since acceptance.
    pub age_ms: u64,
    /// The task's priority.
    pub priority: u64,
    /// The producer's headers.
    pub headers: BTreeMap<String, String>,
    /// What the producer sent.
    pub payload: Option<Value>,
    /// The same, where it is bytes.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        nullable = false
    )]
    pub payload_b64: Option<String>,
}

/// What a pull brings.
#[derive(ToSchema)]
pub struct Pulled {
    /// As many as there were, at most the credit.
    pub tasks: Vec<Delivery>,
}

/// The work is done.
#[derive(ToSchema)]
pub struct Ack {
    /// What came of it, for whoever watches or waits.
    pub result: Option<Value>,
    /// The same as bytes, in standard base64.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    pub result_b64: Option<String>,
}

/// The work failed.
#[derive(ToSchema)]
pub struct Nack {
    /// What went wrong; cut to 4096 bytes.
    pub error: Option<String>,
    /// How long to wait before the next attempt, instead of the back-off.
    #[schema(maximum = 31_536_000_000_u64)]
    pub delay_ms: Option<u64>,
    /// false: no further attempt, the task is dead.
    pub retry: Option<bool>,
}

/// The task goes back, free of charge.
#[derive(ToSchema)]
pub struct Release {
    /// How long it waits before it is offered again; 0 if absent.
    #[schema(maximum = 31_536_000_000_u64)]
    pub delay_ms: Option<u64>,
}

/// The deadline moves.
#[derive(ToSchema)]
pub struct Extend {
    /// The time from now; the task's own ack timeout if absent.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub ack_timeout_ms: Option<u64>,
}

/// How far the work is.
#[derive(ToSchema)]
pub struct Progress {
    /// How much is done.
    #[schema(minimum = 0, maximum = 100)]
    pub percent: Option<f64>,
    /// Anything for those who watch.
    pub data: Option<Value>,
    /// The same as bytes, in standard base64.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    pub data_b64: Option<String>,
}

/// Work has begun. No fields.
#[derive(ToSchema)]
pub struct Start {}

/// The work was broken off, as a `stop` asked.
#[derive(ToSchema)]
pub struct Cancelled {
    /// What to record.
    pub error: Option<String>,
}

/// What became of a settle.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum SettleOutcome {
    /// It counts.
    Ok,
    /// It was said of this lease before.
    Already,
    /// The lease is not current.
    LeaseLost,
}

/// A settle counts, and is durable.
#[derive(ToSchema)]
pub struct Settled {
    /// The lease, as it was given.
    #[schema(nullable = false)]
    pub lease: Option<String>,
    /// What became of it.
    #[schema(nullable = false)]
    pub outcome: Option<SettleOutcome>,
}

/// It was done.
#[derive(ToSchema)]
pub struct Done {
    /// To `extend`: the time that is left.
    #[schema(nullable = false)]
    pub ack_timeout_ms: Option<u64>,
}

/// Something to say in a room.
#[derive(ToSchema)]
pub struct Publish {
    /// What all in the room get: any value. Null if absent.
    pub payload: Option<Value>,
    /// The same as bytes, in standard base64; instead of `payload`.
    #[schema(
        content_encoding = "base64",
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    pub payload_b64: Option<String>,
    /// Of no effect over HTTP: who asks is in no room.
    pub exclude_self: Option<bool>,
}

/// Changes to a queue's settings. What is absent stays; null is the default.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingsGiven {
    /// How a worker is chosen for a task that does not say.
    pub assign: Option<Assign>,
    /// When a task may be handed out: `durable`, once it would survive a power cut, or `early`.
    pub deliver: Option<super::view::DeliverWord>,
    /// How priorities are taken.
    pub order: Option<OrderGiven>,
    /// How many tasks may be unfinished; dead letters are not counted.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub max_tasks: Option<u64>,
    /// How many bytes their payloads may have together.
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    pub max_bytes: Option<u64>,
    /// How many may be with workers at a time.
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub max_leased: Option<u64>,
    /// How many are handed out a second, at most.
    #[schema(exclusive_minimum = 0, maximum = 1_000_000)]
    pub rate_per_s: Option<f64>,
    /// How long a finished task can be looked up.
    #[schema(maximum = 2_592_000_000_u64)]
    pub keep_result_ms: Option<u64>,
    /// What a submit gets for what it leaves out.
    pub defaults: Option<DefaultsGiven>,
}

/// `strict`, `aged`, or `aged` with a head start of one's own.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum OrderGiven {
    /// In a word; `aged` has a head start of a minute.
    Word(OrderWord),
    /// With a head start of one's own.
    Aged(AgedGiven),
}

/// How priorities are taken, in a word.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum OrderWord {
    /// Any task of a higher priority goes before any of a lower one.
    Strict,
    /// A priority is a head start.
    Aged,
}

/// Priorities as a head start.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgedGiven {
    /// How large it is.
    pub aged: HeadstartGiven,
}

/// How large a head start is.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeadstartGiven {
    /// What a step of priority is worth; a minute if absent.
    #[schema(minimum = 1, maximum = 31_536_000_000_u64)]
    pub headstart_ms: Option<u64>,
}

/// What a submit gets for what it leaves out. What is absent stays; null is the protocol's own default.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DefaultsGiven {
    /// Higher first.
    #[schema(maximum = 9)]
    pub priority: Option<u64>,
    /// How long a task is of use, from acceptance.
    #[schema(minimum = 1, maximum = 31_536_000_000_u64)]
    pub ttl_ms: Option<u64>,
    /// How long a worker may keep silent.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub ack_timeout_ms: Option<u64>,
    /// How long one attempt may run.
    #[schema(minimum = 100, maximum = 86_400_000)]
    pub timeout_ms: Option<u64>,
    /// How many charged deliveries.
    #[schema(minimum = 1, maximum = 1000)]
    pub max_attempts: Option<u64>,
    /// How long to wait between attempts: given as a whole, what it leaves out is the protocol's default.
    pub backoff: Option<BackoffGiven>,
}

/// How long to wait between attempts: `min(max_ms, initial_ms × factor^(attempt−1))`, ± 10 %.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackoffGiven {
    /// After the first failure; 1000 if absent.
    #[schema(maximum = 86_400_000)]
    pub initial_ms: Option<u64>,
    /// The longest wait; 300000 if absent.
    #[schema(maximum = 86_400_000)]
    pub max_ms: Option<u64>,
    /// How it grows; 2 if absent.
    #[schema(minimum = 1, maximum = 10)]
    pub factor: Option<f64>,
}

/// How long a queue is paused, and why.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseGiven {
    /// For how long, in milliseconds; until somebody ends it if absent.
    #[schema(minimum = 1, maximum = 31_536_000_000_u64)]
    pub for_ms: Option<u64>,
    /// Why, for people: at most 256 bytes.
    #[schema(max_length = 64)]
    pub reason: Option<String>,
}

/// Which dead letters are redriven: `tasks`, or those that a filter lets through, or all if nothing says which.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RedriveGiven {
    /// These: at most 1024.
    #[schema(max_items = 1024)]
    pub tasks: Option<Vec<Id>>,
    /// Those that were accepted at least so long ago.
    #[schema(maximum = 9_007_199_254_740_991_u64)]
    pub older_than_ms: Option<u64>,
    /// Those with these headers: at most 32.
    pub headers: Option<BTreeMap<String, String>>,
    /// Those with this order key.
    #[schema(min_length = 1, max_length = 256)]
    pub order_key: Option<String>,
    /// Those with this fair key.
    #[schema(min_length = 1, max_length = 256)]
    pub fair_key: Option<String>,
    /// Those whose last attempt failed for this reason.
    pub reason: Option<Failure>,
    /// Those whose last error has this text in it.
    #[schema(min_length = 1, max_length = 1024)]
    pub error_contains: Option<String>,
    /// How many a second; all at once if absent.
    #[schema(exclusive_minimum = 0, maximum = 1_000_000)]
    pub rate_per_s: Option<f64>,
}

/// How many letters were given new attempts.
#[derive(ToSchema)]
pub struct Redriven {
    /// How many.
    pub redriven: u64,
}

/// How many tasks were purged.
#[derive(ToSchema)]
pub struct Purged {
    /// How many.
    pub purged: u64,
}

/// How many dead letters were forgotten.
#[derive(ToSchema)]
pub struct Deleted {
    /// How many.
    pub deleted: u64,
}

/// What came of cancelling many tasks.
#[derive(ToSchema)]
pub struct CancelledMany {
    /// How many are over.
    pub cancelled: u64,
    /// How many more are with workers that were asked to break off.
    pub stopping: u64,
}

/// It was done, and there is nothing to say of it.
#[derive(ToSchema)]
pub struct Nothing {}

/// Which queue.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct InQueue {
    /// The queue's name.
    #[param(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub queue: String,
}

/// Which task.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfTask {
    /// The task's id.
    #[param(format = "uuid", pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    pub task: String,
}

/// Whether to tell what a task was submitted with.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WithPayload {
    /// Whether `payload` or `payload_b64`, and `headers`, are told of a task that has not ended, or is a dead letter.
    #[param(nullable = false)]
    pub payload: Option<bool>,
}

/// Which worker.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfWorker {
    /// The worker's name.
    #[param(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub worker: String,
}

/// Which room.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct InRoom {
    /// The room's name.
    #[param(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$")]
    pub room: String,
}

/// Which lease.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct OfLease {
    /// The lease, as the pull gave it.
    #[param(min_length = 1, max_length = 48, pattern = "^[A-Za-z0-9_-]{1,48}$")]
    pub lease: String,
}

/// How long to wait.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Wait {
    /// How long to wait for the task's end, in milliseconds; not at all if absent.
    #[param(maximum = 60000, nullable = false)]
    pub wait_ms: Option<u64>,
}

/// How long a worker may take.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Grace {
    /// How long a worker may take to break off, in milliseconds; 10000 if absent.
    #[param(maximum = 3_600_000, nullable = false)]
    pub grace_ms: Option<u64>,
}

/// A part of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many tasks at most; 100 if absent.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    pub limit: Option<u64>,
    /// Only those behind this task: what `next` of the part before said.
    #[param(
        format = "uuid",
        pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        nullable = false
    )]
    pub after: Option<String>,
}

/// Which states.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct InStates {
    /// Only tasks in one of these states.
    #[param(style = Form, explode = false, nullable = false, min_items = 1)]
    pub state: Option<Vec<State>>,
}

/// Which tasks. Beside these, `header.KEY=VALUE` is a header that a task must have; up to 32 of them.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only tasks that were accepted at least so long ago.
    #[param(maximum = 9_007_199_254_740_991_u64, nullable = false)]
    pub older_than_ms: Option<u64>,
    /// Only tasks with this order key.
    #[param(min_length = 1, max_length = 256, nullable = false)]
    pub order_key: Option<String>,
    /// Only tasks with this fair key.
    #[param(min_length = 1, max_length = 256, nullable = false)]
    pub fair_key: Option<String>,
    /// Only tasks whose last attempt failed for this reason.
    #[param(nullable = false)]
    pub reason: Option<Failure>,
    /// Only tasks whose last error has this text in it.
    #[param(min_length = 1, max_length = 4096, nullable = false)]
    pub error_contains: Option<String>,
}

/// Whether all are meant.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct All {
    /// Says that all tasks are meant, where no filter says which.
    #[param(nullable = false)]
    pub all: Option<bool>,
}

/// What to pull, for whom.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PullQuery {
    /// How many tasks at most; 1 if absent.
    #[param(minimum = 1, maximum = 1024, nullable = false)]
    pub credit: Option<u64>,
    /// How long to wait for the first, in milliseconds; not at all if absent.
    #[param(maximum = 60000, nullable = false)]
    pub wait_ms: Option<u64>,
    /// The worker's name; made up if absent.
    #[param(max_length = 128, pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$", nullable = false)]
    pub worker: Option<String>,
    /// The groups that it is in, with commas between them.
    #[param(
        pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,30}(,[A-Za-z0-9_-][A-Za-z0-9_.-]{0,30}){0,3}$",
        nullable = false
    )]
    pub groups: Option<String>,
}

/// Why an attempt failed.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Failure {
    /// The worker said so.
    Nack,
    /// The worker kept silent for the ack timeout.
    AckTimeout,
    /// The attempt ran longer than allowed.
    RunLimit,
    /// The worker's socket ended.
    WorkerLost,
    /// The task was returned unharmed too often in a row.
    Returned,
    /// The recipient of a task to all was absent.
    Absent,
}
