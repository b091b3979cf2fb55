//! Every metric by name, in one place.

mod families;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use taskyard_proto::{CloseCode, TaskState};

use self::families::{Families, Labels, label};
use crate::auth::Authority;
use crate::broker::{Broker, Gone, Seen};
use crate::core::Refusals;
use crate::core::queue::Tally;
use crate::core::sample::{QueueSample, Sample};
use crate::engine::{Footprint, Observer};
use crate::hops::{self, Durations, Hops, Sent, Stretch};
use crate::outbox::Losses;
use crate::process::{Room, Usage};
use crate::transport::Tls;

/// The label of all queues that have none of their own: see [`hops::QUEUES_MAX`].
const OTHER: &str = "_other";

/// How long a scrape waits for the disk to say how much room it has.
const DISK_PATIENCE: Duration = Duration::from_secs(1);

/// Who looks after tokens, and after certificates.
type Doors = (Arc<Authority>, Option<Tls>);

/// The broker's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    began: Instant,
    /// How long deliveries wait in outboxes.
    sent: Arc<Sent>,
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
    /// Where the engine keeps its files, if it does.
    data_dir: Arc<Mutex<Option<PathBuf>>>,
    /// Held while its disk is asked how much room it has.
    asking: Arc<tokio::sync::Mutex<()>>,
}

fn seconds(name: &str, help: &str) -> Histogram {
    let buckets = hops::BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6).collect();
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        .expect("the name and the buckets are valid")
}

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Metrics {
        let metrics = Metrics {
            registry: Registry::new(),
            began: Instant::now(),
            sent: Arc::default(),
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
            data_dir: Arc::default(),
            asking: Arc::default(),
            reloads: IntCounterVec::new(
                Opts::new("taskyard_config_reloads_total", "Reloads of the configuration, by result"),
                &["result"],
            )
            .expect("the name is valid"),
        };
        for reason in Refused::ALL {
            metrics.refusals.with_label_values(&[reason.as_str()]);
        }
        for code in CloseCode::ALL {
            metrics.closes.with_label_values(&[code.0.to_string()]);
        }
        // An alert on failures needs them from the start, at zero.
        for result in ["ok", "failed"] {
            metrics.reloads.with_label_values(&[result]);
        }
        let all: [Box<dyn Collector>; 7] = [
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
        // Of two scrapes at once the older look may come last: what it did not see yet is not counted again.
        *seen = Refusals { forbidden: seen.forbidden.max(now.forbidden), quota: seen.quota.max(now.quota) };
    }

    /// The configuration was read again, or could not be.
    pub fn reloaded(&self, ok: bool) {
        self.reloads.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// Shows what those who look after tokens and certificates count.
    pub fn watch_doors(&self, authority: &Arc<Authority>, tls: Option<&Tls>) {
        *self.doors.lock().unwrap_or_else(PoisonError::into_inner) = Some((authority.clone(), tls.cloned()));
    }

    /// Shows how much room the disk has that holds this directory.
    pub fn watch_disk(&self, data_dir: PathBuf) {
        *self.data_dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(data_dir);
    }

    /// How much room the disk has. One that hangs holds up neither the scrape nor more than one thread: metrics are
    /// wanted most when something is wrong.
    async fn room(&self) -> Option<Room> {
        let data_dir = self.data_dir.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let asking = self.asking.clone().try_lock_owned().ok()?;
        let ask = tokio::task::spawn_blocking(move || {
            let found = Room::of(&data_dir);
            drop(asking);
            found
        });
        tokio::time::timeout(DISK_PATIENCE, ask).await.ok()?.ok()?
    }

    /// The metrics of tokens and certificates.
    fn doors_metrics(&self, families: &mut Families) {
        let doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((authority, tls)) = doors else { return };
        let failures = authority.key_failures();
        families.counter(
            "taskyard_jwks_failures_total",
            "Fetches of the issuer's keys that failed",
            failures,
        );
        let Some(tls) = tls else { return };
        let help = "Changed certificate files that could not be used; the old certificate stays";
        families.counter("taskyard_tls_reload_failures_total", help, tls.reload_failures());
        if let Some(end) = tls.not_after() {
            let help = "When the certificate in use ends, in seconds since 1970";
            families.gauge("taskyard_tls_certificate_expiry_seconds", help, end as f64);
        }
    }

    /// Where sockets count how long deliveries wait for them.
    pub fn sent(&self) -> &Sent {
        &self.sent
    }

    /// How long the process has been there.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// How long syncs of the log took, and how many records one made durable on the average.
    pub fn syncs(&self) -> (Durations, f64) {
        let mut found =
            Durations { sum_us: (self.log_sync.get_sample_sum() * 1e6) as u64, ..Durations::default() };
        let (mut below, count) = (0, self.log_sync.get_sample_count());
        let families = self.log_sync.collect();
        let buckets = families.iter().flat_map(|family| family.get_metric());
        let buckets = buckets.flat_map(|metric| metric.get_histogram().get_bucket());
        for (bucket, cumulative) in found.buckets.iter_mut().zip(buckets) {
            *bucket = cumulative.cumulative_count().saturating_sub(below);
            below += *bucket;
        }
        found.buckets[hops::BOUNDS_US.len()] = count.saturating_sub(below);
        let batches = self.log_batch.get_sample_count().max(1);
        (found, self.log_batch.get_sample_sum() / batches as f64)
    }

    /// Looks at the broker: what the core counts itself costs nothing until somebody does.
    pub async fn look(&self, broker: &Broker) -> Result<Counted, Gone> {
        let look = |seen: Seen<'_>| {
            let began = Instant::now();
            let (sample, hops) = (seen.shard.sample(seen.now), seen.hops.clone());
            Counted { sample, footprint: seen.footprint, hops, took: began.elapsed() }
        };
        let mut counted = broker.inspect_now(look).await?;
        counted.hops.add_sent(&self.sent);
        Ok(counted)
    }

    /// What times the log's syncs.
    pub fn log_observer(&self) -> impl Observer + use<> {
        SyncTimer { sync: self.log_sync.clone(), batch: self.log_batch.clone(), began: Instant::now() }
    }

    /// The whole in Prometheus' text format, with what the process takes.
    pub async fn text(&self, broker: &Broker, counted: &Counted, usage: Option<Usage>) -> String {
        let Counted { sample, footprint, hops, .. } = counted;
        self.take_refusals(sample.refusals);
        let room = self.room().await;
        let mut families = Families::from(self.registry.gather());
        about(broker, &mut families);
        queue_metrics(sample, hops, &mut families);
        state_metrics(sample, &mut families);
        log_metrics(footprint, &mut families);
        socket_metrics(broker, &mut families);
        self.doors_metrics(&mut families);
        system_metrics(usage, room, &mut families);
        let mut text = Vec::new();
        TextEncoder::new().encode(&families.sorted(), &mut text).expect("writing to memory does not fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}

/// What was counted until a moment, beside what sockets and the log count themselves.
#[derive(Debug)]
pub struct Counted {
    /// The core.
    pub sample: Sample,
    /// What the engine takes on its medium.
    pub footprint: Footprint,
    /// How long tasks took.
    pub hops: Hops,
    /// For how long the dispatcher was kept from its work by that.
    pub took: Duration,
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

/// What this is.
fn about(broker: &Broker, families: &mut Families) {
    let capabilities = broker.capabilities();
    let labels = vec![
        label("version", env!("CARGO_PKG_VERSION")),
        label("engine", capabilities.name),
        label("durable", if capabilities.durable { "true" } else { "false" }),
    ];
    families.gauges("taskyard_build_info", "The broker's version and engine; always 1", [(labels, 1.0)]);
}

/// What has a label of its own.
struct Row {
    label: String,
    sample: QueueSample,
    hops: [Durations; Stretch::ALL.len()],
}

/// The queues by their labels: all that have none of their own are one.
fn rows(sample: &Sample, hops: &Hops) -> Vec<Row> {
    let (mut rows, mut other): (Vec<Row>, Option<Row>) = (Vec::new(), None);
    for (nth, queue) in sample.queues.iter().enumerate() {
        // A queue may have that name, and no series may stand there twice.
        let own = nth < hops::QUEUES_MAX && queue.queue.as_str() != OTHER;
        if own {
            let hops = Stretch::ALL.map(|stretch| hops.of(nth, stretch));
            rows.push(Row { label: queue.queue.to_string(), sample: queue.clone(), hops });
            continue;
        }
        match &mut other {
            Some(row) => row.sample.add(queue),
            None => {
                let hops = Stretch::ALL.map(|stretch| hops.of(hops::QUEUES_MAX, stretch));
                other = Some(Row { label: OTHER.to_owned(), sample: queue.clone(), hops });
            }
        }
        if let Some(row) = other.as_mut().filter(|_| nth < hops::QUEUES_MAX) {
            for (sum, stretch) in row.hops.iter_mut().zip(Stretch::ALL) {
                *sum = sum.plus(&hops.of(nth, stretch));
            }
        }
    }
    rows.extend(other);
    rows
}

/// What is told of each queue.
fn queue_metrics(sample: &Sample, hops: &Hops, families: &mut Families) {
    let rows = rows(sample, hops);
    let queue = |row: &Row| label("queue", &row.label);
    let words = |row: &Row, name, words: &[&str], values: &[u64]| -> Vec<(Labels, f64)> {
        let cells = words.iter().zip(values);
        cells.map(|(word, value)| (vec![queue(row), label(name, word)], *value as f64)).collect()
    };
    let events = Tally::ALL.map(|(_, word)| word);
    families.counters(
        "taskyard_tasks_total",
        "What happened to tasks, by queue and event",
        rows.iter().flat_map(|row| words(row, "event", &events, &row.sample.tallies)),
    );
    families.counters(
        "taskyard_redeliveries_total",
        "Deliveries of tasks that were delivered before, by queue and by what ended the delivery before",
        rows.iter().flat_map(|row| words(row, "reason", &QueueSample::AGAINS, &row.sample.agains)),
    );
    families.counters(
        "taskyard_dead_letters_total",
        "Tasks that became dead letters, by queue and by what ended them",
        rows.iter().flat_map(|row| words(row, "reason", &QueueSample::DEATHS, &row.sample.deaths)),
    );
    let states =
        [TaskState::Scheduled, TaskState::Queued, TaskState::Leased, TaskState::Retrying, TaskState::Dead];
    families.gauges(
        "taskyard_tasks",
        "Tasks in each state that is not an end, and dead letters, by queue",
        rows.iter().flat_map(|row| {
            let counts = states.map(|state| row.sample.counts[state as usize]);
            words(row, "state", &states.map(TaskState::as_str), &counts)
        }),
    );
    let mut each = |name, help, value: &dyn Fn(&QueueSample) -> f64| {
        families.gauges(name, help, rows.iter().map(|row| (vec![queue(row)], value(&row.sample))));
    };
    each("taskyard_workers", "Workers subscribed, by queue", &|queue| queue.workers as f64);
    each("taskyard_unsettled_deliveries", "Deliveries that their workers hold, by queue", &|queue| {
        queue.in_flight as f64
    });
    each("taskyard_credit_free", "How many more tasks the workers would take, by queue", &|queue| {
        queue.credit_free as f64
    });
    each(
        "taskyard_oldest_task_age_seconds",
        "For how long a task waits for a worker, at the longest, by queue",
        &|queue| queue.oldest_ms.unwrap_or(0) as f64 / 1000.0,
    );
    each("taskyard_queue_paused", "Whether a queue is paused; of many, whether one is", &|queue| {
        f64::from(u8::from(queue.paused))
    });
    families.histograms(
        "taskyard_task_attempts",
        "Attempts that tasks had used when they were done or dead, by queue",
        &QueueSample::ATTEMPTS.map(f64::from),
        rows.iter()
            .map(|row| (vec![queue(row)], row.sample.attempts.to_vec(), row.sample.attempts_sum as f64)),
    );
    let bounds = hops::BOUNDS_US.map(|bound| bound as f64 / 1e6);
    families.histograms(
        "taskyard_hop_seconds",
        "How long tasks take from one place to the next, by queue and hop",
        &bounds,
        rows.iter().flat_map(|row| {
            Stretch::ALL.into_iter().zip(&row.hops).map(move |(stretch, found)| {
                let labels = vec![label("queue", &row.label), label("hop", stretch.as_str())];
                (labels, found.buckets.to_vec(), found.sum_us as f64 / 1e6)
            })
        }),
    );
    for (stretch, name, help) in [
        (
            Stretch::AcceptedToDurable,
            "taskyard_submit_to_durable_seconds",
            "Time from a submit reaching the dispatcher to its being on stable storage",
        ),
        (
            Stretch::DurableToAssigned,
            "taskyard_ready_to_delivered_seconds",
            "Time from a task being ready to its being handed to a worker's connection",
        ),
        (
            Stretch::SentToSettled,
            "taskyard_delivered_to_settled_seconds",
            "Time from a delivery to its settle, or to the end of its lease",
        ),
    ] {
        let found = hops.total(stretch);
        families.histograms(
            name,
            help,
            &bounds,
            [(vec![], found.buckets.to_vec(), found.sum_us as f64 / 1e6)],
        );
    }
}

/// What is told of the broker as a whole.
fn state_metrics(sample: &Sample, families: &mut Families) {
    for (name, help, value) in [
        ("taskyard_queues", "Queues that there are", sample.queues.len() as u64),
        ("taskyard_schedules", "Schedules that there are", sample.schedules.len() as u64),
        ("taskyard_rooms", "Rooms that somebody is in", sample.rooms),
        ("taskyard_in_flight", "Leases that are out", sample.leases_out),
        ("taskyard_sessions", "Sessions, with those that wait to be taken up again", sample.sessions),
        ("taskyard_sessions_resumable", "Sessions that may be taken up again", sample.resumable),
        ("taskyard_payloads_away", "Payloads that are on the disk alone", sample.payloads_away),
        ("taskyard_task_memory_bytes", "What all tasks weigh in memory, by estimate", sample.weight),
        ("taskyard_task_memory_limit_bytes", "From where on submits are refused", sample.weight_max),
        (
            "taskyard_kept_result_bytes",
            "What finished tasks weigh that can be looked up, by estimate",
            sample.kept_bytes,
        ),
        (
            "taskyard_storage_full",
            "Whether submits are refused because the disk is full",
            sample.storage_full.into(),
        ),
        ("taskyard_draining", "Whether the broker shuts down", sample.draining.into()),
    ] {
        families.gauge(name, help, value as f64);
    }
    families.gauges(
        "taskyard_payload_bytes",
        "Payloads of tasks that have not ended, by where they are",
        [("memory", sample.payload_bytes), ("disk", sample.payload_bytes_away)]
            .map(|(place, bytes)| (vec![label("place", place)], bytes as f64)),
    );
    families.counters(
        "taskyard_resumes_total",
        "Connections that wanted to take a session up again, by result",
        [("resumed", sample.resumes.resumed), ("unknown", sample.resumes.unknown)]
            .map(|(result, count)| (vec![label("result", result)], count as f64)),
    );
}

fn log_metrics(footprint: &Footprint, families: &mut Families) {
    for (name, help, value) in [
        ("taskyard_log_bytes", "Bytes of the log's files", footprint.bytes),
        (
            "taskyard_log_live_bytes",
            "Bytes of records in the log that are still needed",
            footprint.live_bytes,
        ),
        ("taskyard_log_segments", "Segment files of the log", footprint.segments),
        (
            "taskyard_log_waiting_bytes",
            "Bytes of records that are not on stable storage yet",
            footprint.waiting_bytes,
        ),
    ] {
        families.gauge(name, help, value as f64);
    }
}

fn socket_metrics(broker: &Broker, families: &mut Families) {
    let connections = broker.connections();
    families.gauge("taskyard_connections", "Open WebSocket connections", connections.count() as f64);
    let (all, most) = connections.outbox_bytes();
    families.gauge("taskyard_outbox_bytes", "Bytes that wait to be written to sockets", all as f64);
    families.gauge("taskyard_outbox_bytes_max", "Bytes that wait for the socket with most", most as f64);
    families.counters(
        "taskyard_dropped_events_total",
        "Events that made room for later ones, because a client read too slowly, by kind",
        Losses::KINDS
            .into_iter()
            .zip(connections.losses().counts())
            .map(|(kind, count)| (vec![label("kind", kind)], count as f64)),
    );
}

/// What the system says of this process, by the names that every exporter uses, and of its disk.
fn system_metrics(usage: Option<Usage>, room: Option<Room>, families: &mut Families) {
    if let Some(usage) = usage {
        let cpu = usage.cpu_ms as f64 / 1000.0;
        let help = "Time on processors, in seconds";
        families.counters("process_cpu_seconds_total", help, [(vec![], cpu)]);
        families.gauge("process_resident_memory_bytes", "Memory of the process", usage.rss_bytes as f64);
        families.gauge("process_virtual_memory_bytes", "Its address space", usage.virtual_bytes as f64);
        families.gauge("process_threads", "Its threads", usage.threads as f64);
        families.gauge("process_open_fds", "Files and sockets that it has open", usage.open_fds as f64);
        if let Some(most) = usage.max_fds {
            families.gauge("process_max_fds", "How many it may have open", most as f64);
        }
        if let Some(started) = usage.started_s {
            let help = "When it began, in seconds since 1970";
            families.gauge("process_start_time_seconds", help, started as f64);
        }
    }
    if let Some(room) = room {
        let help = "Bytes that the disk with the data directory has left for the broker";
        families.gauge("taskyard_disk_free_bytes", help, room.free_bytes as f64);
        families.gauge("taskyard_disk_bytes", "Bytes of that disk", room.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::QueueName;

    use super::*;
    use crate::core::{Hop, Measured, Shard, Time};

    #[test]
    fn queues_beyond_the_bound_share_a_label_also_with_one_that_has_its_name() {
        let mut sample = Shard::new(Default::default()).sample(Time(0));
        let template = QueueSample {
            queue: QueueName::parse("q").expect("a name"),
            paused: true,
            counts: [1; TaskState::ALL.len()],
            tallies: [1; Tally::ALL.len()],
            agains: [1; QueueSample::AGAINS.len()],
            deaths: [1; QueueSample::DEATHS.len()],
            attempts: [1; QueueSample::ATTEMPTS.len() + 1],
            attempts_sum: 9,
            oldest_ms: Some(1),
            workers: 1,
            in_flight: 1,
            credit_free: 1,
        };
        let mut measured = Vec::new();
        for nth in 0..hops::QUEUES_MAX as u32 + 5 {
            let name = if nth == 3 { OTHER.to_owned() } else { format!("q{nth}") };
            let queue = QueueName::parse(&name).expect("a name");
            sample.queues.push(QueueSample { queue, oldest_ms: Some(u64::from(nth)), ..template.clone() });
            measured.push(Measured { hop: Hop::SubmitToDurable, queue: nth, micros: 1 });
        }
        let mut hops = Hops::default();
        hops.count(&mut measured);
        let rows = rows(&sample, &hops);
        let labels: std::collections::BTreeSet<&str> = rows.iter().map(|row| &*row.label).collect();
        assert_eq!((rows.len(), labels.len()), (hops::QUEUES_MAX, hops::QUEUES_MAX), "each label once");
        let other = rows.last().expect("there are rows");
        assert_eq!((&*other.label, other.sample.workers, other.sample.paused), (OTHER, 6, true));
        assert_eq!(other.sample.oldest_ms, Some(104));
        assert_eq!(other.hops[Stretch::AcceptedToDurable as usize].count(), 6);
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_asked_once() {
        let metrics = Metrics::new();
        assert_eq!(metrics.room().await, None, "the engine keeps no files");
        metrics.watch_disk(PathBuf::from("."));
        assert!(metrics.room().await.is_some_and(|room| room.bytes > 0));
        let hangs = metrics.asking.clone().lock_owned().await;
        assert_eq!(metrics.room().await, None);
        drop(hangs);
        assert!(metrics.room().await.is_some());
    }

    #[test]
    fn of_two_scrapes_at_once_the_older_look_counts_nothing_again() {
        let metrics = Metrics::new();
        let counted = || metrics.refusals.with_label_values(&["forbidden"]).get();
        for (forbidden, all) in [(3, 3), (10, 10), (7, 10), (11, 11)] {
            metrics.take_refusals(Refusals { forbidden, quota: 0 });
            assert_eq!(counted(), all);
        }
    }

    #[test]
    fn syncs_are_told_as_they_were_observed() {
        let metrics = Metrics::new();
        for seconds in [0.000_010, 0.000_011, 99.0] {
            metrics.log_sync.observe(seconds);
        }
        metrics.log_batch.observe(3.0);
        metrics.log_batch.observe(6.0);
        let (syncs, average) = metrics.syncs();
        assert_eq!((syncs.count(), syncs.buckets[0], syncs.buckets[1], syncs.buckets[19]), (3, 1, 1, 1));
        assert_eq!(average, 4.5);
    }
}
