//! Every metric by name, in one place.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus::local::LocalHistogram;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use taskyard_proto::{CloseCode, TaskState};

use crate::auth::Authority;
use crate::broker::{Broker, Gone, Seen};
use crate::core::queue::Tally;
use crate::core::view::QueueView;
use crate::core::{Hop, Refusals};
use crate::engine::Observer;
use crate::transport::Tls;

/// Queues that get a label of their own; the others share `_other`, so that clients who make up queue
/// names cannot fill the monitoring.
const QUEUE_LABELS_MAX: usize = 100;

/// Who looks after tokens, and after certificates.
type Doors = (Arc<Authority>, Option<Tls>);

/// The broker's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    submit_to_durable: Histogram,
    ready_to_delivered: Histogram,
    delivered_to_settled: Histogram,
    log_sync: Histogram,
    log_batch: Histogram,
    closes: IntCounterVec,
    http_requests: IntCounterVec,
    torn_tails: IntCounter,
    reloads: IntCounterVec,
    refusals: IntCounterVec,
    /// What the core had counted at the last scrape.
    core_refusals: Arc<Mutex<Refusals>>,
    /// Who else counts.
    doors: Arc<Mutex<Option<Doors>>>,
}

fn seconds(name: &str, help: &str) -> Histogram {
    // 10 µs to 10 s, thrice a decade and more: a sync takes tens of microseconds, a stalled disk seconds.
    let buckets = [1.0, 2.0, 5.0];
    let buckets: Vec<f64> = (-5..=1)
        .flat_map(|decade| buckets.map(|step| step * 10f64.powi(decade)))
        .filter(|b| *b <= 10.0)
        .collect();
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        .expect("the name and the buckets are valid")
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::new(),
            submit_to_durable: seconds(
                "taskyard_submit_to_durable_seconds",
                "Time from a submit reaching the dispatcher to its being on stable storage",
            ),
            ready_to_delivered: seconds(
                "taskyard_ready_to_delivered_seconds",
                "Time from a task being ready to its being handed to a worker's connection",
            ),
            delivered_to_settled: seconds(
                "taskyard_delivered_to_settled_seconds",
                "Time from a delivery to its settle, or to the end of its lease",
            ),
            log_sync: seconds(
                "taskyard_log_sync_seconds",
                "Duration of one sync of the log to stable storage",
            ),
            log_batch: Histogram::with_opts(
                HistogramOpts::new("taskyard_log_batch_records", "Records made durable by one sync")
                    .buckets((0..14).map(|power| f64::from(1 << power)).collect()),
            )
            .expect("the name and the buckets are valid"),
            closes: IntCounterVec::new(
                Opts::new("taskyard_closes_total", "WebSocket connections that ended, by close code"),
                &["code"],
            )
            .expect("the name is valid"),
            http_requests: IntCounterVec::new(
                Opts::new("taskyard_http_requests_total", "HTTP requests answered, by status"),
                &["status"],
            )
            .expect("the name is valid"),
            torn_tails: IntCounter::new(
                "taskyard_log_torn_tail_total",
                "Unfinished ends of the log that were cut at the start of this process",
            )
            .expect("the name is valid"),
            refusals: IntCounterVec::new(
                Opts::new(
                    "taskyard_refusals_total",
                    "What was refused for who asked: connections, requests, messages, submits; by reason",
                ),
                &["reason"],
            )
            .expect("the name is valid"),
            core_refusals: Arc::default(),
            doors: Arc::default(),
            reloads: IntCounterVec::new(
                Opts::new("taskyard_config_reloads_total", "Reloads of the configuration, by result"),
                &["result"],
            )
            .expect("the name is valid"),
        };
        for reason in Refused::ALL {
            metrics.refusals.with_label_values(&[reason.as_str()]);
        }
        // An alert on failures needs them from the start, at zero.
        for result in ["ok", "failed"] {
            metrics.reloads.with_label_values(&[result]);
        }
        let all: [Box<dyn prometheus::core::Collector>; 10] = [
            Box::new(metrics.submit_to_durable.clone()),
            Box::new(metrics.ready_to_delivered.clone()),
            Box::new(metrics.delivered_to_settled.clone()),
            Box::new(metrics.log_sync.clone()),
            Box::new(metrics.log_batch.clone()),
            Box::new(metrics.closes.clone()),
            Box::new(metrics.http_requests.clone()),
            Box::new(metrics.torn_tails.clone()),
            Box::new(metrics.reloads.clone()),
            Box::new(metrics.refusals.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector).expect("each name is registered once");
        }
        metrics
    }

    /// A socket ended.
    pub fn closed(&self, code: CloseCode) {
        self.closes.with_label_values(&[code.0.to_string()]).inc();
    }

    /// A request was answered.
    pub fn answered(&self, status: u16) {
        self.http_requests.with_label_values(&[status.to_string()]).inc();
    }

    /// The end of the log was torn and has been cut.
    pub fn torn_tail(&self) {
        self.torn_tails.inc();
    }

    /// Somebody was refused something for who they are.
    pub fn refused(&self, reason: Refused) {
        self.refusals.with_label_values(&[reason.as_str()]).inc();
    }

    /// The core counts for itself; this brings its numbers over.
    fn take_refusals(&self, now: Refusals) {
        let mut seen = self.core_refusals.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, now, seen) in
            [(Refused::Forbidden, now.forbidden, seen.forbidden), (Refused::Quota, now.quota, seen.quota)]
        {
            self.refusals.with_label_values(&[reason.as_str()]).inc_by(now.saturating_sub(seen));
        }
        *seen = now;
    }

    /// The configuration was read again, or could not be.
    pub fn reloaded(&self, ok: bool) {
        self.reloads.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// Shows what those who look after tokens and certificates count.
    pub fn watch_doors(&self, authority: &Arc<Authority>, tls: Option<&Tls>) {
        *self.doors.lock().unwrap_or_else(PoisonError::into_inner) = Some((authority.clone(), tls.cloned()));
    }

    /// The metrics of tokens and certificates.
    fn doors_metrics(&self, registry: &Registry) {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((authority, tls)) = doors else { return };
        let counted = |name: &str, help: &str, value: u64| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            counter.inc_by(value);
            registry.register(Box::new(counter)).expect("registered once");
        };
        let failures = authority.key_failures();
        counted("taskyard_jwks_failures_total", "Fetches of the issuer's keys that failed", failures);
        let Some(tls) = tls else { return };
        let help = "Changed certificate files that could not be used; the old certificate stays";
        counted("taskyard_tls_reload_failures_total", help, tls.reload_failures());
        if let Some(end) = tls.not_after() {
            let help = "When the certificate in use ends, in seconds since 1970";
            let gauge = IntGauge::new("taskyard_tls_certificate_expiry_seconds", help).expect("a valid name");
            gauge.set(i64::try_from(end).unwrap_or(i64::MAX));
            registry.register(Box::new(gauge)).expect("registered once");
        }
    }

    /// What the dispatcher counts hops with.
    pub fn hops(&self) -> HopMetrics {
        HopMetrics {
            submit_to_durable: self.submit_to_durable.local(),
            ready_to_delivered: self.ready_to_delivered.local(),
            delivered_to_settled: self.delivered_to_settled.local(),
        }
    }

    /// What times the log's syncs.
    pub fn log_observer(&self) -> impl Observer + use<> {
        SyncTimer { sync: self.log_sync.clone(), batch: self.log_batch.clone(), began: Instant::now() }
    }

    /// The whole in Prometheus' text format.
    pub async fn text(&self, broker: &Broker) -> Result<String, Gone> {
        let (scraped, refusals) =
            broker.inspect_now(|seen| (state_metrics(&seen), seen.shard.refusals())).await?;
        self.take_refusals(refusals);
        let connections =
            IntGauge::new("taskyard_connections", "Open WebSocket connections").expect("a valid name");
        connections.set(broker.connections().count() as i64);
        scraped.register(Box::new(connections)).expect("registered once");
        self.doors_metrics(&scraped);
        let mut text = String::new();
        for registry in [&self.registry, &scraped] {
            let mut out = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut out).expect("writing to memory does not fail");
            text.push_str(&String::from_utf8(out).expect("the text format is UTF-8"));
        }
        Ok(text)
    }
}

/// Why somebody was refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No token where one is needed, or a wrong one.
    Unauthorized,
    /// The token does not allow it.
    Forbidden,
    /// A page of a foreign origin, or a host name that is not the broker's.
    Origin,
    /// More messages a second than the account may send.
    Messages,
    /// More connections than the account may have.
    Connections,
    /// More waiting tasks, or bytes of them, than the account may have.
    Quota,
    /// More connections than the broker takes.
    Full,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Refused; 7] = [
        Refused::Unauthorized,
        Refused::Forbidden,
        Refused::Origin,
        Refused::Messages,
        Refused::Connections,
        Refused::Quota,
        Refused::Full,
    ];

    /// Its label.
    pub fn as_str(self) -> &'static str {
        match self {
            Refused::Unauthorized => "unauthorized",
            Refused::Forbidden => "forbidden",
            Refused::Origin => "origin",
            Refused::Messages => "messages",
            Refused::Connections => "connections",
            Refused::Quota => "quota",
            Refused::Full => "full",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// Durations of one dispatcher: counted in plain integers, published once a turn.
pub struct HopMetrics {
    submit_to_durable: LocalHistogram,
    ready_to_delivered: LocalHistogram,
    delivered_to_settled: LocalHistogram,
}

impl HopMetrics {
    /// Takes durations in, leaving `hops` empty.
    pub fn observe(&mut self, hops: &mut Vec<(Hop, u64)>) {
        if hops.is_empty() {
            return;
        }
        for (hop, micros) in hops.drain(..) {
            let histogram = match hop {
                Hop::SubmitToDurable => &self.submit_to_durable,
                Hop::ReadyToDelivered => &self.ready_to_delivered,
                Hop::DeliveredToSettled => &self.delivered_to_settled,
            };
            histogram.observe(micros as f64 / 1e6);
        }
        self.submit_to_durable.flush();
        self.ready_to_delivered.flush();
        self.delivered_to_settled.flush();
    }
}

struct SyncTimer {
    sync: Histogram,
    batch: Histogram,
    began: Instant,
}

impl Observer for SyncTimer {
    fn sync_begins(&mut self, _: u64) {
        self.began = Instant::now();
    }

    fn sync_ended(&mut self, records: u64) {
        self.sync.observe(self.began.elapsed().as_secs_f64());
        self.batch.observe(records as f64);
    }
}

/// What the core counts itself, read at the scrape: it costs nothing in between.
fn state_metrics(seen: &Seen<'_>) -> Registry {
    let registry = Registry::new();
    let events = IntCounterVec::new(
        Opts::new("taskyard_tasks_total", "What happened to tasks, by queue and event"),
        &["queue", "event"],
    )
    .expect("a valid name");
    let tasks = IntGaugeVec::new(
        Opts::new("taskyard_tasks", "Tasks in each state that is not an end, and dead letters, by queue"),
        &["queue", "state"],
    )
    .expect("a valid name");
    let workers = IntGaugeVec::new(Opts::new("taskyard_workers", "Workers subscribed, by queue"), &["queue"])
        .expect("a valid name");
    let oldest = IntGaugeVec::new(
        Opts::new(
            "taskyard_oldest_task_age_seconds",
            "Age of the oldest task that waits for a worker, by queue",
        ),
        &["queue"],
    )
    .expect("a valid name");
    for (nth, view) in seen.shard.queue_views(seen.now).iter().enumerate() {
        let queue = if nth < QUEUE_LABELS_MAX { view.queue.as_str() } else { "_other" };
        add_queue(view, queue, &events, &tasks, &workers, &oldest);
    }
    let gauge = |name: &str, help: &str, value: u64| {
        let gauge = IntGauge::new(name, help).expect("a valid name");
        gauge.set(value as i64);
        registry.register(Box::new(gauge)).expect("registered once");
    };
    gauge("taskyard_in_flight", "Leases that are out", seen.shard.leases_out());
    gauge("taskyard_log_bytes", "Bytes of the log's files", seen.footprint.bytes);
    gauge(
        "taskyard_log_live_bytes",
        "Bytes of records in the log that are still needed",
        seen.footprint.live_bytes,
    );
    gauge("taskyard_log_segments", "Segment files of the log", seen.footprint.segments);
    let families: [Box<dyn prometheus::core::Collector>; 4] =
        [Box::new(events), Box::new(tasks), Box::new(workers), Box::new(oldest)];
    for family in families {
        registry.register(family).expect("each name is registered once");
    }
    registry
}

fn add_queue(
    view: &QueueView,
    queue: &str,
    events: &IntCounterVec,
    tasks: &IntGaugeVec,
    workers: &IntGaugeVec,
    oldest: &IntGaugeVec,
) {
    for (tally, word) in Tally::ALL {
        events.with_label_values(&[queue, word]).inc_by(view.tallies[tally as usize]);
    }
    for state in
        [TaskState::Scheduled, TaskState::Queued, TaskState::Leased, TaskState::Retrying, TaskState::Dead]
    {
        tasks.with_label_values(&[queue, state.as_str()]).add(view.counts[state as usize] as i64);
    }
    workers.with_label_values(&[queue]).add(view.workers as i64);
    let age = oldest.with_label_values(&[queue]);
    age.set(age.get().max(view.oldest_ms.unwrap_or(0) as i64 / 1000));
}
