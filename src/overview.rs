//! How the broker is, for those who observe: looked at only when somebody asks, and one look is for all who ask at about
//! the same time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use taskyard_proto::{
    Applies, Durations, Happened, LogOverview, Number, Overview, ProcessOverview, QueueName, QueueOverview,
    Standing, Text, Totals,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::broker::{Broker, Gone};
use crate::core::queue::Tally;
use crate::core::sample::QueueSample;
use crate::core::{Action, Grants};
use crate::hops::{self, Stretch};
use crate::metrics::{Counted, Metrics};
use crate::process::Usage;

/// How many queues are told of one by one where none are named.
const QUEUES: usize = 50;

/// So old a look may be that another made: less than anybody sees.
const SHARED: Duration = Duration::from_millis(100);

/// After a look the dispatcher is left to its work for so many times as long as that took: however many look, and
/// however much there is to see, they take a tenth of its time. At most so long: it may have stood still meanwhile.
const REST_TIMES: u32 = 9;
const REST_MAX: Duration = Duration::from_secs(1);
/// Less is not worth a timer.
const REST_MIN: Duration = Duration::from_millis(1);

/// Looks at the broker. Cheap to clone.
#[derive(Clone)]
pub struct Overviews {
    inner: Arc<Inner>,
}

struct Inner {
    broker: Broker,
    metrics: Metrics,
    /// The latest look. Held while one is taken: whoever comes meanwhile waits for it.
    latest: Arc<Mutex<Option<Latest>>>,
}

struct Latest {
    taken: Instant,
    /// No other before.
    rests_until: Instant,
    look: Arc<Look>,
}

/// The broker at a moment.
#[derive(Debug)]
pub struct Look {
    /// In numbers.
    pub counted: Counted,
    /// What the process takes.
    pub process: Option<Usage>,
    /// The wall clock, in milliseconds since 1970.
    at_ms: u64,
    /// How long the process has been there: rates are of the time between two looks, whenever they are shown.
    uptime_ms: u64,
    connections: u64,
}

impl Inner {
    async fn look(self: Arc<Inner>, mut latest: OwnedMutexGuard<Option<Latest>>) -> Result<Arc<Look>, Gone> {
        let rests_until = latest.as_ref().map(|latest| latest.rests_until);
        let rest = rests_until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        if rest >= REST_MIN {
            tokio::time::sleep(rest).await;
        }
        let taken = Instant::now();
        let counted = self.metrics.look(&self.broker).await?;
        let rests_until = Instant::now() + self::rest(counted.took);
        let (at, uptime) = (crate::clock::wall(), self.metrics.uptime());
        let process = tokio::task::spawn_blocking(Usage::now).await.ok().flatten();
        let look = Arc::new(Look {
            counted,
            process,
            at_ms: at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
            uptime_ms: uptime.as_millis() as u64,
            connections: self.broker.connections().count() as u64,
        });
        *latest = Some(Latest { taken, rests_until, look: look.clone() });
        Ok(look)
    }
}

impl Overviews {
    /// Of this broker.
    pub fn new(broker: Broker, metrics: Metrics) -> Overviews {
        Overviews { inner: Arc::new(Inner { broker, metrics, latest: Arc::default() }) }
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
        let latest = self.inner.latest.clone().lock_owned().await;
        if let Some(Latest { taken, look, .. }) = &*latest
            && *taken + age >= asked
        {
            return Ok(look.clone());
        }
        // Whoever asked may go: the look goes on, so that who asks and goes again and again is held up like all others.
        let look = tokio::spawn(self.inner.clone().look(latest));
        look.await.map_err(|_| Gone)?
    }

    /// What of a look somebody may see; of the queues that are named, or of those with most tasks.
    pub fn show(&self, look: &Look, grants: &Grants, named: Option<&[QueueName]>) -> Overview {
        let Inner { broker, metrics, .. } = &*self.inner;
        let capabilities = broker.capabilities();
        let Counted { sample, footprint, hops: counted_hops, .. } = &look.counted;
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
            accepted_to_durable: durations(&counted_hops.total(Stretch::AcceptedToDurable)),
            durable_to_assigned: durations(&counted_hops.total(Stretch::DurableToAssigned)),
            assigned_to_sent: durations(&counted_hops.total(Stretch::AssignedToSent)),
            sent_to_settled: durations(&counted_hops.total(Stretch::SentToSettled)),
        };
        let log = || {
            let (sync, batch_records_avg) = metrics.syncs();
            capabilities.durable.then(|| LogOverview {
                bytes: footprint.bytes,
                live_bytes: footprint.live_bytes,
                segments: footprint.segments,
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
            uptime_ms: look.uptime_ms,
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

/// For how long nobody looks after a look.
fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST_TIMES).min(REST_MAX)
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
        in_flight: queue.in_flight,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Seen;
    use crate::clock::Clock;
    use crate::core::{Shard, Time};
    use crate::engine::Capabilities;
    use crate::hops::Hops;

    #[test]
    fn looks_take_a_tenth_of_the_time_and_never_wait_long() {
        let ms = Duration::from_millis;
        assert_eq!(rest(ms(20)), ms(180));
        assert_eq!(rest(Duration::MAX), REST_MAX);
        assert!(rest(Duration::from_micros(50)) < REST_MIN, "a small broker is looked at as one likes");
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_are_one_look_and_the_next_waits_for_a_rest() {
        let capabilities = Capabilities { name: "none", durable: false };
        let (broker, _inbox, mut questions) = Broker::new(Clock::start(), Arc::default(), capabilities);
        let overviews = Overviews::new(broker, Metrics::new());
        let looks = tokio::spawn(async move {
            let (shard, hops) = (Shard::new(Default::default()), Hops::default());
            let mut looks = 0;
            while let Some(question) = questions.recv().await {
                let footprint = Default::default();
                (question.look)(Seen { shard: &shard, now: Time(0), footprint, hops: &hops })();
                looks += 1;
            }
            looks
        });
        let first = overviews.fresh().await.expect("it is there");
        let (second, third) = tokio::join!(overviews.fresh(), overviews.shared());
        let (second, third) = (second.expect("it is there"), third.expect("it is there"));
        assert!(!Arc::ptr_eq(&first, &second), "what was done meanwhile is seen");
        assert!(Arc::ptr_eq(&second, &third));
        // As after one that took long.
        let until = Instant::now() + REST_MAX;
        overviews.inner.latest.lock().await.as_mut().expect("there was one").rests_until = until;
        let before = tokio::time::Instant::now();
        let (fourth, fifth) = tokio::join!(overviews.fresh(), overviews.fresh());
        assert!(before.elapsed() > REST_MAX / 2);
        assert!(Arc::ptr_eq(&fourth.expect("it is there"), &fifth.expect("it is there")));
        // Whoever goes at once has asked all the same, and the next waits for what that brings.
        let asked = tokio::time::timeout(Duration::ZERO, overviews.fresh()).await;
        assert!(asked.is_err());
        overviews.shared().await.expect("it is there");
        drop(overviews);
        assert_eq!(looks.await.expect("it ends"), 4);
    }
}
