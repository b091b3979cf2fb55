//! What was measured: one line of JSON for each system, load and round.

use std::collections::BTreeMap;
use std::io::Write;

use serde::{Deserialize, Serialize};

use crate::Failed;

/// What a system promises of a task that it has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Promise {
    /// It survives a power cut: it was synced before it was confirmed.
    Synced,
    /// It survives the process: it was written, and is synced later.
    Written,
    /// It is in memory; whoever takes it must acknowledge it.
    Memory,
    /// Nothing: it is sent once.
    None,
}

impl Promise {
    /// Every one, the strongest first.
    pub(crate) const ALL: [Promise; 4] = [Promise::Synced, Promise::Written, Promise::Memory, Promise::None];

    /// What it is called, and what it means.
    pub(crate) fn words(self) -> (&'static str, &'static str) {
        match self {
            Promise::Synced => ("Synced", "a confirmed task survives a power cut: it was synced before"),
            Promise::Written => ("Written", "a confirmed task survives the process; it is synced later"),
            Promise::Memory => {
                ("Memory", "a confirmed task is in memory, and must be acknowledged by its worker")
            }
            Promise::None => ("None", "sent once, neither kept nor acknowledged"),
        }
    }
}

/// What a system did under a load, in one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which question was asked: `throughput`, `latency`, `fanout`, …
    pub(crate) scenario: String,
    /// Who answered, with its version where it has one.
    pub(crate) system: String,
    /// How it was set up, as one would say it: `appendfsync always`.
    pub(crate) setting: String,
    pub(crate) promise: Promise,
    /// How hard it was asked: `2,000/s`, `5,000 sockets`; empty: the scenario has one load.
    pub(crate) load: String,
    /// From 1.
    pub(crate) round: u32,
    /// The figures, by a name that says its unit: `tasks_per_s`, `p99_us`, `server_cpu_s`, `server_peak_mib`.
    pub(crate) values: BTreeMap<String, f64>,
}

/// Where records go: to memory for the report, and to a file as they come.
pub(crate) struct Records {
    file: Option<std::fs::File>,
    pub(crate) all: Vec<Record>,
}

impl Records {
    /// Collects, and appends each to `file` as a line of JSON.
    pub(crate) fn new(file: Option<std::fs::File>) -> Records {
        Records { file, all: Vec::new() }
    }

    /// The records of an earlier run.
    pub(crate) fn read(path: &std::path::Path) -> Result<Vec<Record>, Failed> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let line = |(nth, line): (usize, &str)| {
            serde_json::from_str(line)
                .map_err(|error| format!("{}, line {}: {error}", path.display(), nth + 1).into())
        };
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(line).collect()
    }

    pub(crate) fn add(&mut self, record: Record) -> Result<(), Failed> {
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(&record)?;
            line.push(b'\n');
            file.write_all(&line)?;
        }
        self.all.push(record);
        Ok(())
    }
}
