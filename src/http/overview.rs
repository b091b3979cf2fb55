//! How the broker is, once: what `observe` tells again and again.

use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use taskyard_proto::message::OBSERVED_QUEUES_MAX;
use taskyard_proto::{Error, QueueList, QueueName};
use utoipa::{IntoParams, ToSchema};

use super::query::Parameters;
use super::queues::may_list;
use super::request::{Caller, bad_request};
use super::{App, body};

/// Which queues to tell of one by one.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Named {
    /// Names with commas between them, at most 100; unknown ones are left out. Absent: the 50 queues with most tasks
    /// that have not ended.
    #[param(max_length = 12_900, example = "a,b", nullable = false)]
    pub queues: Option<String>,
}

/// How the broker is. `hops`, `hop_bounds_us`, `log` and `process` are there with the permission `observe:*`.
#[derive(ToSchema)]
pub struct Overview {
    /// The wall clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// How long the process has been there.
    pub uptime_ms: u64,
    /// The broker's version.
    pub version: String,
    /// The engine's name.
    pub engine: String,
    /// Whether a confirmed task survives the process.
    pub durable: bool,
    /// Whether the broker shuts down.
    pub draining: bool,
    /// How many queues the token may see.
    pub queues_total: u64,
    /// All of those queues together.
    pub totals: Totals,
    /// Some of them, one by one.
    pub queues: Vec<QueueOverview>,
    /// Connected sessions that work on those queues.
    pub workers: u64,
    /// Open sockets.
    pub connections: u64,
    /// Schedules of those queues.
    pub schedules: u64,
    /// How long the stretches of a task's way took, since the start of the process.
    #[schema(nullable = false)]
    pub hops: Option<Hops>,
    /// The upper ends of the buckets, in microseconds; there is one more bucket than these.
    #[schema(nullable = false)]
    pub hop_bounds_us: Option<Vec<u64>>,
    /// The log; null: the engine has none.
    pub log: Option<LogOverview>,
    /// What the process takes; null: the system does not say.
    pub process: Option<ProcessOverview>,
}

/// Tasks in each state that is not an end, and dead letters.
#[derive(ToSchema)]
pub struct Standing {
    /// Wait for their time.
    pub scheduled: u64,
    /// Wait for a worker.
    pub queued: u64,
    /// Are with workers.
    pub leased: u64,
    /// Wait out a back-off.
    pub retrying: u64,
    /// Are dead letters.
    pub dead: u64,
}

/// What happened to tasks since the start of the process.
#[derive(ToSchema)]
pub struct Happened {
    /// Were accepted.
    pub accepted: u64,
    /// Were submitted before, by their `dedup_id`.
    pub duplicate: u64,
    /// Were refused.
    pub refused: u64,
    /// Were handed to a worker.
    pub delivered: u64,
    /// The same, where it was not certainly the first time.
    pub redelivered: u64,
    /// Were acknowledged.
    pub acked: u64,
    /// Failed.
    pub nacked: u64,
    /// Were given back.
    pub released: u64,
    /// Were taken back, for the worker kept silent.
    pub timed_out: u64,
    /// Came back by the worker's end.
    pub worker_lost: u64,
    /// Became dead letters.
    pub dead: u64,
    /// Were cancelled.
    pub cancelled: u64,
    /// Outlived their `ttl_ms`.
    pub expired: u64,
}

/// Several queues together.
#[derive(ToSchema)]
pub struct Totals {
    /// Tasks by state.
    pub counts: Standing,
    /// For how long a task waits for a worker, at the longest; null: none does.
    #[schema(required = true)]
    pub oldest_ms: Option<u64>,
    /// Subscriptions.
    pub workers: u64,
    /// Deliveries that are not settled.
    pub in_flight: u64,
    /// How many more the workers would take.
    pub credit_free: u64,
    /// What happened since the start of the process.
    pub events: Happened,
}

/// One queue.
#[derive(ToSchema)]
pub struct QueueOverview {
    /// Its name.
    pub queue: String,
    /// Whether nothing is delivered for a while.
    pub paused: bool,
    /// Tasks by state.
    pub counts: Standing,
    /// For how long a task waits for a worker, at the longest; null: none does.
    #[schema(required = true)]
    pub oldest_ms: Option<u64>,
    /// Workers that are subscribed.
    pub workers: u64,
    /// Deliveries that are not settled.
    pub in_flight: u64,
    /// How many more its workers would take.
    pub credit_free: u64,
    /// What happened since the start of the process.
    pub events: Happened,
}

/// Durations since the start of the process.
#[derive(ToSchema)]
pub struct Durations {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum_us: u64,
    /// How many are in each bucket alone; the last is of those above all bounds.
    pub buckets: Vec<u64>,
}

/// The stretches of a task's way.
#[derive(ToSchema)]
pub struct Hops {
    /// From the submit to its being durable.
    pub accepted_to_durable: Durations,
    /// From being ready for a worker to being given to one.
    pub durable_to_assigned: Durations,
    /// From there to being written to its socket.
    pub assigned_to_sent: Durations,
    /// From being given to a worker to the settle.
    pub sent_to_settled: Durations,
}

/// The log.
#[derive(ToSchema)]
pub struct LogOverview {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of what is still needed.
    pub live_bytes: u64,
    /// How many files.
    pub segments: u64,
    /// How long syncs took.
    pub sync: Durations,
    /// How many records one made durable, on the average.
    pub batch_records_avg: f64,
}

/// What the process takes.
#[derive(ToSchema)]
pub struct ProcessOverview {
    /// Memory.
    pub rss_bytes: u64,
    /// Time on processors since its start.
    pub cpu_ms: u64,
    /// Open files and sockets.
    pub open_fds: u64,
    /// Threads.
    pub threads: u64,
}

fn named(query: Option<&str>) -> Result<Option<QueueList>, Error> {
    let mut parameters = Parameters::of(query);
    let text = parameters.text("queues")?;
    parameters.end()?;
    let Some(text) = text else { return Ok(None) };
    let wrong = |what: String| bad_request(format!("parameter `queues`: {what}")).field("queues");
    let names = text.split(',').map(QueueName::parse);
    let names = names.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    let count = names.len();
    QueueList::new(names)
        .map(Some)
        .ok_or_else(|| wrong(format!("expected at most {OBSERVED_QUEUES_MAX} queues, got {count}")))
}

/// How the broker is
///
/// Of the queues that the token may see: how many tasks are where, what happened to them since the start, who works.
#[utoipa::path(
    get,
    path = "/v1/overview",
    operation_id = "overview",
    tag = "service",
    params(Named),
    responses((status = 200, description = "How the broker is now.", body = Overview)),
)]
pub(super) async fn overview(
    State(app): State<App>,
    Extension(identity): Caller,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let named = match may_list(&app, &identity).and_then(|()| named(query.as_deref())) {
        Ok(named) => named,
        Err(error) => return body::refused(encoding, error),
    };
    let overviews = &app.sockets.overviews;
    match overviews.fresh().await {
        Ok(look) => {
            let names = named.as_ref().map(QueueList::names);
            let message = overviews.show(&look, &identity.grants, names).into();
            body::message(StatusCode::OK, encoding, &message)
        }
        Err(gone) => body::refused(encoding, gone.error()),
    }
}
