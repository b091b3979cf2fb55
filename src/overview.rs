//! How the broker is, for those who observe: looked at only when somebody asks, and one look is for all who ask at about
//! the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use taskyard_proto::{
    Applies, Durations, Happened, LogOverview, Number, Overview, ProcessOverview, QueueName, QueueOverview,
    Standing, Text, Totals,
};
use tokio::sync::Mutex;

use crate::broker::{Broker, Gone};
use crate::core::queue::Tally;
use crate::core::sample::{QueueSample, Sample};
use crate::core::{Action, Grants};
use crate::engine::Footprint;
use crate::hops::{self, Hops, Stretch};
use crate::metrics::Metrics;
use crate::process::Usage;

/// How many queues are told of one by one where none are named.
const QUEUES: usize = 50;

/// So old a look may be that another made: less than anybody sees.
const SHARED: Duration = Duration::from_millis(100);

/// Looks at the broker. Cheap to clone.
#[derive(Clone)]
pub struct Overviews {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Broker,
    metrics: Metrics,
    /// The latest look. Held while one is taken: whoever comes meanwhile waits for it.
    latest: Mutex<Option<(Instant, Arc<Look>)>>,
}

/// The broker at a moment.
#[derive(Debug)]
pub struct Look {
    /// In numbers.
    pub sample: Sample,
    /// What the engine takes on its medium.
    pub footprint: Footprint,
    /// How long tasks took.
    pub hops: Hops,
    /// The wall clock, in milliseconds since 1970.
    at_ms: u64,
    connections: u64,
    process: Option<Usage>,
}

impl Overviews {
    /// Of this broker.
    pub fn new(broker: Broker, metrics: Metrics) -> Overviews {
        Overviews { inner: Arc::new(Inner { broker, metrics, latest: Mutex::default() }) }
    }

    /// A look that is not older than it takes others to look too.
    pub async fn shared(&self) -> Result<Arc<Look>, Gone> {
        self.look(SHARED).await
    }

    /// A look from now.
    pub async fn fresh(&self) -> Result<Arc<Look>, Gone> {
        self.look(Duration::ZERO).await
    }

    async fn look(&self, age: Duration) -> Result<Arc<Look>, Gone> {
        let asked = Instant::now();
        let mut latest = self.inner.latest.lock().await;
        if let Some((taken, look)) = &*latest
            && *taken + age >= asked
        {
            return Ok(look.clone());
        }
        let taken = Instant::now();
        let (sample, footprint, hops) = self.inner.metrics.look(&self.inner.broker).await?;
        let process = tokio::task::spawn_blocking(Usage::now).await.ok().flatten();
        let look = Arc::new(Look {
            sample,
            footprint,
            hops,
            at_ms: crate::clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
            connections: self.inner.broker.connections().count() as u64,
            process,
        });
        *latest = Some((taken, look.clone()));
        Ok(look)
    }

    /// What of a look somebody may see; of the queues that are named, or of those with most tasks.
    pub fn show(&self, look: &Look, grants: &Grants, named: Option<&[QueueName]>) -> Overview {
        let Inner { broker, metrics, .. } = &*self.inner;
        let capabilities = broker.capabilities();
        let sample = &look.sample;
        let all = grants.may_every(Action::Observe);
        let sees = |queue: &QueueName| all || grants.may(Action::Observe, queue.as_str());
        let seen: Vec<bool> = sample.queues.iter().map(|queue| sees(&queue.queue)).collect();
        let queues = || sample.queues.iter().zip(&seen).filter(|(_, seen)| **seen).map(|(queue, _)| queue);
        let mut workers: Vec<_> = sample
            .working
            .iter()
            .filter(|(_, queue)| seen.get(*queue as usize).copied().unwrap_or(false))
            .map(|(session, _)| *session)
            .collect();
        workers.sort_unstable();
        workers.dedup();
        let told = match named {
            Some(names) if !names.is_empty() => named_queues(queues(), names),
            _ => fullest(queues()),
        };
        let hops = || taskyard_proto::Hops {
            accepted_to_durable: durations(&look.hops.total(Stretch::AcceptedToDurable)),
            durable_to_assigned: durations(&look.hops.total(Stretch::DurableToAssigned)),
            assigned_to_sent: durations(&look.hops.total(Stretch::AssignedToSent)),
            sent_to_settled: durations(&look.hops.total(Stretch::SentToSettled)),
        };
        let log = || {
            let (sync, batch_records_avg) = metrics.syncs();
            capabilities.durable.then(|| LogOverview {
                bytes: look.footprint.bytes,
                live_bytes: look.footprint.live_bytes,
                segments: look.footprint.segments,
                sync: durations(&sync),
                batch_records_avg: Number::nearest(batch_records_avg),
            })
        };
        let process = || {
            look.process.map(|usage| ProcessOverview {
                rss_bytes: usage.rss_bytes,
                cpu_ms: usage.cpu_ms,
                open_fds: usage.open_fds,
                threads: usage.threads,
            })
        };
        Overview {
            at_ms: look.at_ms,
            uptime_ms: metrics.uptime().as_millis() as u64,
            version: Text::cut(env!("CARGO_PKG_VERSION")),
            engine: Text::cut(capabilities.name),
            durable: capabilities.durable,
            draining: sample.draining,
            queues_total: queues().count() as u64,
            totals: totals(queues()),
            queues: told.into_iter().map(one).collect(),
            workers: workers.len() as u64,
            connections: look.connections,
            schedules: sample.schedules.iter().filter(|queue| sees(queue)).count() as u64,
            hops: Applies(all.then(hops)),
            hop_bounds_us: Applies(all.then(|| hops::BOUNDS_US.to_vec())),
            log: Applies(all.then(log)),
            process: Applies(all.then(process)),
        }
    }
}

/// Those that are named, in the order of the names.
fn named_queues<'a>(
    queues: impl Iterator<Item = &'a QueueSample>,
    names: &[QueueName],
) -> Vec<&'a QueueSample> {
    let places: HashMap<&QueueName, usize> =
        names.iter().enumerate().rev().map(|(nth, name)| (name, nth)).collect();
    let mut found: Vec<(usize, &QueueSample)> =
        queues.filter_map(|queue| Some((*places.get(&queue.queue)?, queue))).collect();
    found.sort_unstable_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, queue)| queue).collect()
}

/// Those with most tasks that have not ended.
fn fullest<'a>(queues: impl Iterator<Item = &'a QueueSample>) -> Vec<&'a QueueSample> {
    let mut all: Vec<&QueueSample> = queues.collect();
    all.sort_unstable_by(|a, b| {
        b.unfinished().cmp(&a.unfinished()).then_with(|| a.queue.as_str().cmp(b.queue.as_str()))
    });
    all.truncate(QUEUES);
    all
}

fn standing(counts: &[u64; taskyard_proto::TaskState::ALL.len()]) -> Standing {
    use taskyard_proto::TaskState as S;
    let of = |state: S| counts[state as usize];
    Standing {
        scheduled: of(S::Scheduled),
        queued: of(S::Queued),
        leased: of(S::Leased),
        retrying: of(S::Retrying),
        dead: of(S::Dead),
    }
}

fn happened(tallies: &[u64; Tally::ALL.len()]) -> Happened {
    let of = |tally: Tally| tallies[tally as usize];
    Happened {
        accepted: of(Tally::Accepted),
        duplicate: of(Tally::Duplicate),
        refused: of(Tally::Refused),
        delivered: of(Tally::Delivered),
        redelivered: of(Tally::Redelivered),
        acked: of(Tally::Acked),
        nacked: of(Tally::Nacked),
        released: of(Tally::Released),
        timed_out: of(Tally::TimedOut),
        worker_lost: of(Tally::WorkerLost),
        dead: of(Tally::Dead),
        cancelled: of(Tally::Cancelled),
        expired: of(Tally::Expired),
    }
}

fn one(queue: &QueueSample) -> QueueOverview {
    QueueOverview {
        queue: queue.queue.clone(),
        paused: queue.paused,
        counts: standing(&queue.counts),
        oldest_ms: queue.oldest_ms,
        workers: queue.workers,
        in_flight: queue.unsettled,
        credit_free: queue.credit_free,
        events: happened(&queue.tallies),
    }
}

fn totals<'a>(mut queues: impl Iterator<Item = &'a QueueSample>) -> Totals {
    let none = Totals {
        counts: standing(&[0; taskyard_proto::TaskState::ALL.len()]),
        oldest_ms: None,
        workers: 0,
        in_flight: 0,
        credit_free: 0,
        events: happened(&[0; Tally::ALL.len()]),
    };
    let Some(mut sum) = queues.next().cloned() else { return none };
    queues.for_each(|queue| sum.add(queue));
    let QueueOverview { counts, oldest_ms, workers, in_flight, credit_free, events, .. } = one(&sum);
    Totals { counts, oldest_ms, workers, in_flight, credit_free, events }
}

fn durations(found: &hops::Durations) -> Durations {
    Durations { count: found.count(), sum_us: found.sum_us, buckets: found.buckets.to_vec() }
}
