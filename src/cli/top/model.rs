//! What samples of a broker say: differences, rates, percentiles, order. No terminal and no socket.

use std::cmp::Ordering;
use std::collections::VecDeque;

use serde_json::{Value, json};
use taskyard_proto::{
    Durations, Encoding, Happened, Hops, LogOverview, Overview, ProcessOverview, QueueOverview, Response,
    codec,
};

/// Rates are those of so many milliseconds: long enough that a number can be read before it changes.
const RATE_MS: u64 = 3_000;
/// Latencies are those of so many.
const LATENCY_MS: u64 = 10_000;
/// By how much the start of one process may seem to move: the wall clock is not quite even. A step of it is taken for
/// another process, which costs a few seconds of rates.
const STARTED_MS: u64 = 250;
/// So many samples are kept: those of the longest span, at the shortest interval, and one more.
const SAMPLES_MAX: usize = 41;
/// So many rates are remembered for the graphs: those of the widest terminal.
pub(super) const HISTORY_MAX: usize = 512;

/// What happens to tasks, a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Rates {
    pub(super) accepted: f64,
    pub(super) delivered: f64,
    pub(super) settled: f64,
}

impl Rates {
    fn between(earlier: &Happened, later: &Happened, ms: u64) -> Rates {
        let settled = |events: &Happened| events.acked + events.nacked + events.released;
        let per_s = |a: u64, b: u64| b.saturating_sub(a) as f64 * 1000.0 / ms.max(1) as f64;
        Rates {
            accepted: per_s(earlier.accepted, later.accepted),
            delivered: per_s(earlier.delivered, later.delivered),
            settled: per_s(settled(earlier), settled(later)),
        }
    }

    fn json(self) -> Value {
        let round = |rate: f64| (rate * 100.0).round() / 100.0;
        json!({
            "accepted": round(self.accepted),
            "delivered": round(self.delivered),
            "settled": round(self.settled),
        })
    }
}

/// A duration that a share of all do not exceed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quantile {
    pub(super) us: f64,
    /// It is longer than the longest that is told apart.
    pub(super) beyond: bool,
}

/// How long something takes: the middle, and what one in a hundred exceeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Latency {
    pub(super) p50: Quantile,
    pub(super) p99: Quantile,
}

impl Latency {
    /// None: nothing was measured.
    fn of(bounds: &[u64], buckets: &[u64]) -> Option<Latency> {
        Some(Latency { p50: quantile(bounds, buckets, 0.5)?, p99: quantile(bounds, buckets, 0.99)? })
    }

    fn json(latency: Option<Latency>) -> Value {
        let Some(Latency { p50, p99 }) = latency else { return Value::Null };
        json!({"p50": p50.us.round(), "p99": p99.us.round()})
    }
}

/// As Prometheus' `histogram_quantile`: within a bucket durations are taken to be spread evenly. `buckets` has one more
/// than `bounds`, for those beyond.
fn quantile(bounds: &[u64], buckets: &[u64], share: f64) -> Option<Quantile> {
    let total: u64 = buckets.iter().sum();
    if total == 0 || bounds.is_empty() {
        return None;
    }
    let wanted = share * total as f64;
    let mut before = 0.0;
    for (at, count) in buckets.iter().enumerate() {
        let count = *count as f64;
        if count > 0.0 && before + count >= wanted {
            let Some(upper) = bounds.get(at) else { break };
            let lower = at.checked_sub(1).map_or(0, |below| bounds[below]) as f64;
            let us = lower + (*upper as f64 - lower) * ((wanted - before) / count).clamp(0.0, 1.0);
            return Some(Quantile { us, beyond: false });
        }
        before += count;
    }
    Some(Quantile { us: bounds[bounds.len() - 1] as f64, beyond: true })
}

/// The stretches of a task's way, by the names that are shown.
pub(super) const HOPS: [&str; 4] = ["durable", "assigned", "sent", "settled"];

fn hops(hops: &Hops) -> [&Durations; 4] {
    [&hops.accepted_to_durable, &hops.durable_to_assigned, &hops.assigned_to_sent, &hops.sent_to_settled]
}

/// What a row of queues shows; also what they are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Queue,
    Queued,
    Leased,
    Retrying,
    Scheduled,
    Dead,
    Oldest,
    Accepted,
    Delivered,
    Settled,
    Workers,
    InFlight,
    Credit,
}

impl Column {
    pub(super) const ALL: [Column; 13] = [
        Column::Queue,
        Column::Queued,
        Column::Leased,
        Column::Retrying,
        Column::Scheduled,
        Column::Dead,
        Column::Oldest,
        Column::Accepted,
        Column::Delivered,
        Column::Settled,
        Column::Workers,
        Column::InFlight,
        Column::Credit,
    ];

    pub(super) fn head(self) -> &'static str {
        match self {
            Column::Queue => "QUEUE",
            Column::Queued => "QUEUED",
            Column::Leased => "LEASED",
            Column::Retrying => "RETRY",
            Column::Scheduled => "SCHED",
            Column::Dead => "DEAD",
            Column::Oldest => "OLDEST",
            Column::Accepted => "IN/S",
            Column::Delivered => "OUT/S",
            Column::Settled => "DONE/S",
            Column::Workers => "WORKERS",
            Column::InFlight => "FLIGHT",
            Column::Credit => "FREE",
        }
    }

    /// On a narrow terminal the highest goes first; 0 stays.
    pub(super) fn leaves(self) -> u8 {
        match self {
            Column::Queue | Column::Queued | Column::Settled => 0,
            Column::Oldest => 1,
            Column::Dead => 2,
            Column::Workers => 3,
            Column::Accepted => 4,
            Column::Leased => 5,
            Column::Retrying => 6,
            Column::Scheduled => 7,
            Column::Credit => 8,
            Column::InFlight => 9,
            Column::Delivered => 10,
        }
    }
}

/// One queue, as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) paused: bool,
    pub(super) queued: u64,
    pub(super) leased: u64,
    pub(super) retrying: u64,
    pub(super) scheduled: u64,
    pub(super) dead: u64,
    pub(super) oldest_ms: Option<u64>,
    /// None: it was not told of before.
    pub(super) rates: Option<Rates>,
    pub(super) workers: u64,
    pub(super) in_flight: u64,
    pub(super) credit_free: u64,
}

impl Line {
    /// The order by a column: the least first.
    fn order(&self, other: &Line, column: Column) -> Ordering {
        let rate = |line: &Line, of: fn(Rates) -> f64| line.rates.map_or(-1.0, of);
        let rates = |of: fn(Rates) -> f64| rate(self, of).total_cmp(&rate(other, of));
        match column {
            Column::Queue => self.name.cmp(&other.name),
            Column::Queued => self.queued.cmp(&other.queued),
            Column::Leased => self.leased.cmp(&other.leased),
            Column::Retrying => self.retrying.cmp(&other.retrying),
            Column::Scheduled => self.scheduled.cmp(&other.scheduled),
            Column::Dead => self.dead.cmp(&other.dead),
            Column::Oldest => self.oldest_ms.cmp(&other.oldest_ms),
            Column::Accepted => rates(|rates| rates.accepted),
            Column::Delivered => rates(|rates| rates.delivered),
            Column::Settled => rates(|rates| rates.settled),
            Column::Workers => self.workers.cmp(&other.workers),
            Column::InFlight => self.in_flight.cmp(&other.in_flight),
            Column::Credit => self.credit_free.cmp(&other.credit_free),
        }
    }

    /// Whether tasks wait, and nobody is there to take them.
    pub(super) fn is_deserted(&self) -> bool {
        self.queued > 0 && self.workers == 0
    }
}

/// Those whose name holds `filter`, in this order: names from A on, all else from the greatest on, if not reversed.
pub(super) fn arrange(mut lines: Vec<Line>, filter: &str, by: Column, reversed: bool) -> Vec<Line> {
    let filter = filter.to_lowercase();
    lines.retain(|line| line.name.to_lowercase().contains(&filter));
    lines.sort_by(|a, b| {
        let order = a.order(b, by);
        let order = if (by == Column::Queue) == reversed { order.reverse() } else { order };
        order.then_with(|| a.name.cmp(&b.name))
    });
    lines
}

/// The samples of the last seconds, and the rates of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Samples {
    kept: VecDeque<Overview>,
    history: VecDeque<Rates>,
}

impl Samples {
    /// Takes a sample. One of another process, which counts from 0 again, has nothing to do with those before.
    pub(super) fn push(&mut self, sample: Overview) {
        if let Some(last) = self.kept.back() {
            if is_another(last, &sample) {
                self.kept.clear();
            } else if sample.uptime_ms > last.uptime_ms {
                let ms = sample.uptime_ms - last.uptime_ms;
                if self.history.len() == HISTORY_MAX {
                    self.history.pop_front();
                }
                self.history.push_back(Rates::between(&last.totals.events, &sample.totals.events, ms));
            }
        }
        if self.kept.len() == SAMPLES_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(sample);
    }

    pub(super) fn latest(&self) -> Option<&Overview> {
        self.kept.back()
    }

    /// The latest and, of those of the last `ms` that `is` picks, the oldest; if there is none, the one before. With the
    /// time between them.
    fn span(&self, ms: u64, is: impl Fn(&Overview) -> bool) -> Option<(&Overview, &Overview, u64)> {
        let latest = self.latest()?;
        let earlier = || self.kept.iter().rev().skip(1).filter(|sample| is(sample));
        let age = |sample: &Overview| latest.uptime_ms - sample.uptime_ms;
        let oldest = earlier().take_while(|sample| age(sample) <= ms).last().or_else(|| earlier().next())?;
        (age(oldest) > 0).then(|| (oldest, latest, age(oldest)))
    }

    /// Those of all queues; none: there is but one sample.
    pub(super) fn rates(&self) -> Option<Rates> {
        let (earlier, later, ms) = self.span(RATE_MS, |_| true)?;
        Some(Rates::between(&earlier.totals.events, &later.totals.events, ms))
    }

    /// Those of all queues, from sample to sample, the latest last.
    pub(super) fn history(&self) -> impl DoubleEndedIterator<Item = Rates> + ExactSizeIterator {
        self.history.iter().copied()
    }

    /// The queues as they were told.
    pub(super) fn lines(&self) -> Vec<Line> {
        let Some(latest) = self.latest() else { return Vec::new() };
        latest.queues.iter().map(|queue| self.line(queue)).collect()
    }

    fn line(&self, queue: &QueueOverview) -> Line {
        let same = |sample: &Overview| sample.queues.iter().find(|other| other.queue == queue.queue).cloned();
        let rates = self
            .span(RATE_MS, |sample| same(sample).is_some())
            .and_then(|(earlier, _, ms)| Some(Rates::between(&same(earlier)?.events, &queue.events, ms)));
        Line {
            name: queue.queue.to_string(),
            paused: queue.paused,
            queued: queue.counts.queued,
            leased: queue.counts.leased,
            retrying: queue.counts.retrying,
            scheduled: queue.counts.scheduled,
            dead: queue.counts.dead,
            oldest_ms: queue.oldest_ms,
            rates,
            workers: queue.workers,
            in_flight: queue.in_flight,
            credit_free: queue.credit_free,
        }
    }

    /// How long each stretch took lately, in the order of [`HOPS`]; none: one may not see that.
    pub(super) fn latencies(&self) -> Option<[Option<Latency>; 4]> {
        let later = self.latest()?;
        let (now, bounds) = (later.hops.0.as_ref()?, later.hop_bounds_us.0.as_ref()?);
        let before = self.span(LATENCY_MS, |sample| sample.hops.0.is_some());
        let before = before.and_then(|(earlier, ..)| earlier.hops.0.as_ref());
        let Some(before) = before else { return Some([None; 4]) };
        let (now, before) = (hops(now), hops(before));
        Some(std::array::from_fn(|at| Latency::of(bounds, &new(&before[at].buckets, &now[at].buckets))))
    }

    /// The same of the disk's syncs; none: there is no log, or no right to see it.
    pub(super) fn log(&self) -> Option<(&LogOverview, Option<Latency>)> {
        let later = self.latest()?;
        let bounds = later.hop_bounds_us.0.as_ref()?;
        let log = |sample: &'_ Overview| matches!(sample.log.0, Some(Some(_)));
        let now = later.log.0.as_ref()?.as_ref()?;
        let latency = self.span(LATENCY_MS, log).and_then(|(earlier, ..)| {
            let before = earlier.log.0.as_ref()?.as_ref()?;
            Latency::of(bounds, &new(&before.sync.buckets, &now.sync.buckets))
        });
        Some((now, latency))
    }

    /// What the process takes, and its share of one processor.
    pub(super) fn process(&self) -> Option<(&ProcessOverview, Option<f64>)> {
        let process = |sample: &'_ Overview| matches!(sample.process.0, Some(Some(_)));
        let now = self.latest()?.process.0.as_ref()?.as_ref()?;
        let share = self.span(RATE_MS, process).and_then(|(earlier, _, ms)| {
            let before = earlier.process.0.as_ref()?.as_ref()?;
            Some(now.cpu_ms.saturating_sub(before.cpu_ms) as f64 / ms as f64)
        });
        Some((now, share))
    }

    /// The latest sample for programs: as the broker says it, with rates and latencies beside it.
    pub(super) fn json(&self) -> Value {
        let Some(latest) = self.latest() else { return Value::Null };
        let mut text = Vec::new();
        let response = Response { reference: None, message: latest.clone().into() };
        codec::encode_server(Encoding::Json, &response, &mut text);
        let mut value: Value = serde_json::from_slice(&text).expect("the codec writes JSON");
        let rates = |rates: Option<Rates>| rates.map_or(Value::Null, Rates::json);
        value["totals"]["rates"] = rates(self.rates());
        for (queue, line) in value["queues"].as_array_mut().into_iter().flatten().zip(self.lines()) {
            queue["rates"] = rates(line.rates);
        }
        if let Some(latencies) = self.latencies() {
            let names = ["accepted_to_durable", "durable_to_assigned", "assigned_to_sent", "sent_to_settled"];
            let each = names.iter().zip(latencies);
            value["latency_us"] = each.map(|(name, latency)| (*name, Latency::json(latency))).collect();
        }
        if let Some(object) = value.as_object_mut() {
            object.remove("type");
        }
        value
    }
}

/// Whether another process is heard. Its clock may be ahead of what the one before said at last.
fn is_another(earlier: &Overview, later: &Overview) -> bool {
    let started = |sample: &Overview| sample.at_ms.saturating_sub(sample.uptime_ms);
    later.uptime_ms < earlier.uptime_ms || started(earlier).abs_diff(started(later)) > STARTED_MS
}

/// What came into each bucket between two samples.
fn new(before: &[u64], now: &[u64]) -> Vec<u64> {
    let before = before.iter().copied().chain(std::iter::repeat(0));
    now.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect()
}

/// A number of tasks in at most five letters.
pub(super) fn amount(number: u64) -> String {
    short(number as f64, number < 10_000)
}

/// A rate in at most five letters.
pub(super) fn rate(per_s: f64) -> String {
    match per_s {
        0.0 => "0".into(),
        small if small < 9.95 => format!("{small:.1}"),
        other => short(other, other < 9_999.5),
    }
}

fn short(number: f64, whole: bool) -> String {
    if whole {
        return format!("{number:.0}");
    }
    for (unit, name) in [(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")] {
        let scaled = number / unit;
        if scaled < 99.95 {
            return format!("{scaled:.1}{name}");
        }
        if scaled < 999.5 {
            return format!("{scaled:.0}{name}");
        }
    }
    format!("{number:.0e}")
}

/// Bytes in at most eight letters.
pub(super) fn bytes(number: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) => {
            let scaled = number as f64 / unit as f64;
            if scaled < 99.95 { format!("{scaled:.1} {name}") } else { format!("{scaled:.0} {name}") }
        }
        None => format!("{number} B"),
    }
}

/// A duration of a task's way, in at most seven letters, eight if beyond all.
pub(super) fn duration(quantile: Quantile) -> String {
    let us = quantile.us;
    let text = match us {
        us if us < 99.5 => format!("{us:.0} µs"),
        us if us < 9_950.0 => format!("{:.1} ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    };
    if quantile.beyond { format!(">{text}") } else { text }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const BOUNDS: [u64; 4] = [10, 100, 1000, 10_000];

    /// A queue as it is told.
    pub(crate) fn queue(name: &str, queued: u64, events: u64) -> Value {
        json!({
            "queue": name, "paused": false, "oldest_ms": null, "workers": 2, "in_flight": 3, "credit_free": 7,
            "counts": {"scheduled": 0, "queued": queued, "leased": 3, "retrying": 0, "dead": 0},
            "events": {
                "accepted": events, "duplicate": 0, "refused": 0, "delivered": events / 2, "redelivered": 0,
                "acked": events / 4, "nacked": 1, "released": 1, "timed_out": 0, "worker_lost": 0, "dead": 0,
                "cancelled": 0, "expired": 0,
            },
        })
    }

    pub(crate) fn sample(uptime_ms: u64, queues: &[Value]) -> Value {
        let mut totals =
            queue("all", queues.iter().map(|q| q["counts"]["queued"].as_u64().unwrap()).sum(), 0);
        totals["events"]["accepted"] =
            queues.iter().map(|q| q["events"]["accepted"].as_u64().unwrap()).sum::<u64>().into();
        let n = uptime_ms / 1000;
        let hop = json!({"count": 2 * n, "sum_us": 100, "buckets": [n, n, 0, 0, 0]});
        json!({
            "type": "overview", "at_ms": 1_790_000_000_000_u64 + uptime_ms, "uptime_ms": uptime_ms, "version": "0.1.0",
            "engine": "embedded", "durable": true, "draining": false, "queues_total": queues.len(),
            "totals": totals, "queues": queues, "workers": 4, "connections": 9, "schedules": 1,
            "hops": {"accepted_to_durable": hop, "durable_to_assigned": hop, "assigned_to_sent": hop,
                "sent_to_settled": hop},
            "hop_bounds_us": BOUNDS,
            "log": {"bytes": 200 << 20, "live_bytes": 50 << 20, "segments": 3, "sync": hop, "batch_records_avg": 12.5},
            "process": {"rss_bytes": 120 << 20, "cpu_ms": uptime_ms / 4, "open_fds": 40, "threads": 6},
        })
    }

    pub(crate) fn overview(value: &Value) -> Overview {
        let frame =
            codec::decode_server(Encoding::Json, value.to_string().as_bytes()).expect("it is a message");
        let mut messages = frame.into_iter();
        match messages.next().expect("there is one").message {
            taskyard_proto::ServerMessage::Overview(overview) => *overview,
            other => panic!("{other:?}"),
        }
    }

    fn samples(all: &[Value]) -> Samples {
        let mut samples = Samples::default();
        all.iter().for_each(|value| samples.push(overview(value)));
        samples
    }

    #[test]
    fn a_rate_is_what_happened_between_two_samples() {
        let one = samples(&[sample(5000, &[queue("a", 1, 100)])]);
        assert_eq!((one.rates(), one.history().count(), one.lines()[0].rates), (None, 0, None));
        let three = samples(&[
            sample(5000, &[queue("a", 1, 100)]),
            sample(6000, &[queue("a", 1, 500), queue("b", 1, 40)]),
            sample(7000, &[queue("a", 1, 1100), queue("b", 1, 80)]),
        ]);
        assert_eq!(three.rates().map(|rates| rates.accepted), Some(540.0));
        let history: Vec<f64> = three.history().map(|rates| rates.accepted).collect();
        assert_eq!(history, [440.0, 640.0]);
        // `b` was told of later: its rate is that of the time since.
        let lines = three.lines();
        let rates = Rates { accepted: 500.0, delivered: 250.0, settled: 125.0 };
        assert_eq!((lines[0].name.as_str(), lines[0].rates), ("a", Some(rates)));
        let rates = Rates { accepted: 40.0, delivered: 20.0, settled: 10.0 };
        assert_eq!((lines[1].name.as_str(), lines[1].rates), ("b", Some(rates)));
    }

    #[test]
    fn rates_are_of_the_last_seconds_alone() {
        let all: Vec<Value> = (0..20)
            .map(|n| sample(n * 1000, &[queue("a", 0, if n < 10 { 0 } else { (n - 9) * 100 })]))
            .collect();
        assert_eq!(samples(&all).rates().map(|rates| rates.accepted), Some(100.0));
        // With a longer interval they are those since the sample before.
        let slow = samples(&[sample(0, &[queue("a", 0, 0)]), sample(60_000, &[queue("a", 0, 6000)])]);
        assert_eq!(slow.rates().map(|rates| rates.accepted), Some(100.0));
    }

    #[test]
    fn another_process_begins_anew() {
        let mut samples =
            samples(&[sample(50_000, &[queue("a", 0, 900)]), sample(51_000, &[queue("a", 0, 1000)])]);
        samples.push(overview(&sample(10, &[queue("a", 0, 5)])));
        assert_eq!((samples.rates(), samples.lines()[0].rates), (None, None));
        samples.push(overview(&sample(1010, &[queue("a", 0, 15)])));
        assert_eq!(samples.rates().map(|rates| rates.accepted), Some(10.0));
        assert_eq!(samples.history().count(), 2, "what was before stays in the graph");
        // One that is older than the one before was is another all the same.
        let mut third = sample(2000, &[queue("a", 0, 900)]);
        third["at_ms"] = json!(1_790_000_009_000_u64);
        samples.push(overview(&third));
        assert_eq!(samples.rates(), None);
        samples.push(overview(&sample(1010, &[queue("a", 0, 15)])));
        samples.push(overview(&sample(2010, &[queue("a", 0, 25)])));
        assert_eq!(samples.rates().map(|rates| rates.accepted), Some(10.0));
        // Two of the same moment say nothing of what is between them.
        samples.push(overview(&sample(2010, &[queue("a", 0, 25)])));
        assert_eq!(samples.rates().map(|rates| rates.accepted), Some(10.0));
    }

    #[test]
    fn nothing_grows_without_end() {
        let mut samples = Samples::default();
        for n in 0..HISTORY_MAX as u64 + 50 {
            samples.push(overview(&sample(n * 250, &[queue("a", 0, n)])));
        }
        assert_eq!((samples.kept.len(), samples.history().count()), (SAMPLES_MAX, HISTORY_MAX));
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let of = |buckets: [u64; 5], share| quantile(&BOUNDS, &buckets, share);
        let known = |us| Some(Quantile { us, beyond: false });
        assert_eq!(of([0; 5], 0.5), None);
        assert_eq!(of([10, 0, 0, 0, 0], 0.5), known(5.0));
        assert_eq!(of([0, 10, 0, 0, 0], 0.5), known(55.0));
        assert_eq!(of([50, 0, 50, 0, 0], 0.5), known(10.0));
        assert_eq!(of([98, 0, 0, 2, 0], 0.99), known(5500.0));
        assert_eq!(of([0, 0, 0, 0, 3], 0.5), Some(Quantile { us: 10_000.0, beyond: true }));
        assert_eq!(of([50, 0, 0, 0, 50], 0.5), known(10.0));
        assert_eq!(quantile(&[], &[3], 0.5), None);
    }

    #[test]
    fn latencies_are_of_what_was_measured_lately() {
        let mut first = sample(1000, &[]);
        // Slow ones of before do not count.
        first["hops"]["accepted_to_durable"]["buckets"] = json!([1, 1, 0, 0, 900]);
        let mut second = sample(2000, &[]);
        second["hops"]["accepted_to_durable"]["buckets"] = json!([11, 1, 0, 0, 900]);
        second["hops"]["sent_to_settled"] = first["hops"]["sent_to_settled"].clone();
        let latencies = samples(&[first.clone(), second]).latencies().expect("one may see them");
        assert_eq!(latencies[0].map(|latency| latency.p50.us), Some(5.0));
        assert_eq!(latencies[3], None, "nothing new");
        // Without the right to all queues there is nothing to tell.
        for gone in ["hops", "hop_bounds_us", "log", "process"] {
            first.as_object_mut().unwrap().remove(gone);
        }
        let less = samples(&[first]);
        assert_eq!(less.latencies(), None);
        assert!(less.log().is_none() && less.process().is_none());
    }

    #[test]
    fn the_process_and_its_log_are_told() {
        let both = samples(&[sample(1000, &[]), sample(3000, &[])]);
        let (process, share) = both.process().expect("it is there");
        assert_eq!((process.open_fds, share), (40, Some(0.25)));
        let (log, sync) = both.log().expect("it is there");
        assert_eq!((log.segments, sync.map(|sync| sync.p50.us)), (3, Some(10.0)));
        let mut memory = sample(1000, &[]);
        memory["log"] = Value::Null;
        assert!(samples(&[memory]).log().is_none());
    }

    fn names(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| line.name.as_str()).collect()
    }

    #[test]
    fn queues_are_sorted_and_filtered() {
        let lines = samples(&[
            sample(0, &[queue("mail", 5, 0), queue("Thumbs", 7, 0), queue("bulk.mail", 5, 0)]),
            sample(1000, &[queue("mail", 5, 90), queue("Thumbs", 7, 10), queue("bulk.mail", 5, 0)]),
        ])
        .lines();
        let arranged =
            |filter: &str, by, reversed| names(&arrange(lines.clone(), filter, by, reversed)).join(" ");
        assert_eq!(arranged("", Column::Queued, false), "Thumbs bulk.mail mail");
        assert_eq!(arranged("", Column::Queued, true), "bulk.mail mail Thumbs");
        assert_eq!(arranged("", Column::Queue, false), "Thumbs bulk.mail mail");
        assert_eq!(arranged("", Column::Queue, true), "mail bulk.mail Thumbs");
        assert_eq!(arranged("", Column::Accepted, false), "mail Thumbs bulk.mail");
        assert_eq!(arranged("MAIL", Column::Accepted, false), "mail bulk.mail");
        assert_eq!(arranged("nothing", Column::Queue, false), "");
        for column in Column::ALL {
            assert_eq!(arrange(lines.clone(), "", column, false).len(), 3);
        }
    }

    #[test]
    fn a_sample_for_programs_has_rates_beside_what_was_told() {
        let value = samples(&[sample(1000, &[queue("a", 1, 0)]), sample(2000, &[queue("a", 1, 100)])]).json();
        assert_eq!(value["totals"]["rates"]["accepted"], 100.0);
        assert_eq!(
            value["queues"][0]["rates"],
            json!({"accepted": 100.0, "delivered": 50.0, "settled": 25.0})
        );
        assert_eq!(value["latency_us"]["sent_to_settled"], json!({"p50": 10.0, "p99": 98.0}));
        assert_eq!((&value["connections"], value.get("type")), (&json!(9), None));
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (12_345_678, "12.3M"),
            (u64::MAX, "2e19"),
        ] {
            assert_eq!(amount(number), text);
            assert!(amount(number).len() <= 5);
        }
        let rates = [0.0, 0.04, 9.94, 9.96, 1234.4, 9_999.4, 9_999.6, 250_000.0].map(rate);
        assert_eq!(rates, ["0", "0.0", "9.9", "10", "1234", "9999", "10.0k", "250k"]);
        assert_eq!(
            [0, 1023, 1024, 120 << 20, 5 << 30].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "120 MiB", "5.0 GiB"]
        );
        let us = |us| duration(Quantile { us, beyond: false });
        assert_eq!(
            [3.2, 99.0, 100.0, 9_949.0, 9_960.0, 999_000.0, 1_500_000.0].map(us),
            ["3 µs", "99 µs", "0.1 ms", "9.9 ms", "10 ms", "999 ms", "1.5 s"]
        );
        assert_eq!(duration(Quantile { us: 1e7, beyond: true }), ">10.0 s");
    }
}
