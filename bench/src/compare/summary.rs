//! Records of several rounds, as one row each: the median, the least and the most of every figure.

use std::collections::BTreeMap;

use crate::median;
use crate::record::{Promise, Record};

/// A figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// What a system did under a load, over all rounds.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) setting: String,
    pub(crate) promise: Promise,
    pub(crate) load: String,
    pub(crate) figures: BTreeMap<String, Spread>,
}

impl Row {
    pub(crate) fn label(&self) -> String {
        if self.setting.is_empty() {
            self.system.clone()
        } else {
            format!("{}, {}", self.system, self.setting)
        }
    }

    pub(crate) fn figure(&self, name: &str) -> Option<Spread> {
        self.figures.get(name).copied()
    }

    /// The median of a figure.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        self.figure(name).map(|spread| spread.median)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.system.starts_with("Taskyard")
    }

    pub(crate) fn is_floor(&self) -> bool {
        self.system.starts_with("Floor") || self.system.starts_with("bare")
    }
}

/// The rows of a scenario, in the order in which they were first measured.
pub(crate) fn rows(records: &[Record], scenario: &str) -> Vec<Row> {
    let mut rows: Vec<(Row, BTreeMap<String, Vec<f64>>)> = Vec::new();
    for record in records.iter().filter(|record| record.scenario == scenario) {
        let same = |(row, _): &(Row, BTreeMap<String, Vec<f64>>)| {
            (&row.system, &row.setting, &row.load) == (&record.system, &record.setting, &record.load)
        };
        let nth = rows.iter().position(same).unwrap_or_else(|| {
            let row = Row {
                system: record.system.clone(),
                setting: record.setting.clone(),
                promise: record.promise,
                load: record.load.clone(),
                figures: BTreeMap::new(),
            };
            rows.push((row, BTreeMap::new()));
            rows.len() - 1
        });
        for (name, value) in &record.values {
            rows[nth].1.entry(name.clone()).or_default().push(*value);
        }
    }
    let spread = |figures: Vec<f64>| Spread {
        median: median(&figures),
        min: figures.iter().copied().fold(f64::INFINITY, f64::min),
        max: figures.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    };
    rows.into_iter()
        .map(|(row, figures)| {
            let figures = figures.into_iter().map(|(name, all)| (name, spread(all))).collect();
            Row { figures, ..row }
        })
        .collect()
}
