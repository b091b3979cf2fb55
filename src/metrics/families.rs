//! Families of samples that are made at the scrape, out of numbers that others count.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

/// What tells the samples of a family apart.
pub(super) type Labels = Vec<LabelPair>;

/// One label.
pub(super) fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// All that a scrape shows.
pub(super) struct Families(Vec<MetricFamily>);

impl From<Vec<MetricFamily>> for Families {
    fn from(families: Vec<MetricFamily>) -> Families {
        Families(families)
    }
}

impl Families {
    fn add(&mut self, name: &str, help: &str, kind: MetricType, mut metrics: Vec<Metric>) {
        // One without samples is no family.
        if metrics.is_empty() {
            return;
        }
        for metric in &mut metrics {
            metric.mut_label().sort_by(|a, b| a.name().cmp(b.name()));
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// A number that comes and goes.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(vec![], value)]);
    }

    /// Several of a kind.
    pub(super) fn gauges(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let metric = |(labels, value): (Labels, f64)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_gauge(gauge);
            metric.set_label(labels);
            metric
        };
        self.add(name, help, MetricType::GAUGE, rows.into_iter().map(metric).collect());
    }

    /// A number that only grows.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [(vec![], value as f64)]);
    }

    /// Several of a kind.
    pub(super) fn counters(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, f64)>) {
        let metric = |(labels, value): (Labels, f64)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::from_label(labels);
            metric.set_counter(counter);
            metric
        };
        self.add(name, help, MetricType::COUNTER, rows.into_iter().map(metric).collect());
    }

    /// Of each row how many were in each bucket alone, one more than there are bounds; and the sum of all.
    pub(super) fn histograms(
        &mut self,
        name: &str,
        help: &str,
        bounds: &[f64],
        rows: impl IntoIterator<Item = (Labels, Vec<u64>, f64)>,
    ) {
        let metric = |(labels, counts, sum): (Labels, Vec<u64>, f64)| {
            let mut below = 0;
            let bucket = |(bound, count): (&f64, &u64)| {
                below += count;
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(*bound);
                bucket.set_cumulative_count(below);
                bucket
            };
            let mut histogram = Histogram::default();
            histogram.set_bucket(bounds.iter().zip(&counts).map(bucket).collect());
            histogram.set_sample_count(counts.iter().sum());
            histogram.set_sample_sum(sum);
            let mut metric = Metric::from_label(labels);
            metric.set_histogram(histogram);
            metric
        };
        self.add(name, help, MetricType::HISTOGRAM, rows.into_iter().map(metric).collect());
    }

    /// All of them, by name.
    pub(super) fn sorted(mut self) -> Vec<MetricFamily> {
        self.0.sort_by(|a, b| a.name().cmp(b.name()));
        self.0
    }
}
