//! The table for the README, and the ratios that it is read for.

use std::fmt::Write as _;

use crate::compare::machine::Machine;
use crate::compare::summary::{Row, rows};
use crate::compare::thousands;
use crate::record::{Promise, Record};

pub(crate) fn markdown(machine: &Machine, records: &[Record]) -> String {
    let mut out = format!("{}\n", machine.line());
    for line in ratios(records) {
        // A text takes what is written to it.
        let _ = write!(out, "\n- {line}");
    }
    out.push_str("\n\n");
    let all = rows(records, "throughput");
    if !all.is_empty() {
        out.push_str(
            "| promise | system | setting | tasks/s (min … max) | server CPU s / 100k | peak RSS MiB |\n",
        );
        out.push_str("|---|---|---|---|---|---|\n");
    }
    for kind in Promise::ALL {
        let mut group: Vec<&Row> = all.iter().filter(|row| row.promise == kind).collect();
        group.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        for row in group {
            let Some(spread) = row.figure("tasks_per_s") else { continue };
            let figure = |name: &str| row.median(name).unwrap_or(f64::NAN);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} ({} … {}) | {:.2} | {:.0} |",
                kind.words().0.to_lowercase(),
                row.system,
                row.setting,
                thousands(spread.median),
                thousands(spread.min),
                thousands(spread.max),
                figure("server_cpu_s_per_100k"),
                figure("server_peak_mib"),
            );
        }
    }
    let all = rows(records, "latency");
    if !all.is_empty() {
        out.push_str(
            "\n| rate | system | setting | p50 µs | p99 µs | p99.9 µs |\n|---|---|---|---|---|---|\n",
        );
    }
    for row in &all {
        let _ = write!(out, "| {} | {} | {} | ", row.load, row.system, row.setting);
        if kept(row) {
            let figure = |name: &str| row.median(name).unwrap_or(f64::NAN);
            let _ = writeln!(
                out,
                "{:.0} | {:.0} | {:.0} |",
                figure("p50_us"),
                figure("p99_us"),
                figure("p99_9_us")
            );
        } else {
            let achieved = row.figure("achieved_per_s").map_or(0.0, |spread| spread.min);
            let _ = writeln!(out, "not kept: {}/s | | |", thousands(achieved));
        }
    }
    let all = rows(records, "backlog");
    if !all.is_empty() {
        out.push_str("\n| tasks waiting | system | setting | RSS MiB | back after s | drained /s |\n");
        out.push_str("|---|---|---|---|---|---|\n");
    }
    for row in &all {
        let figure = |name: &str| row.median(name).unwrap_or(f64::NAN);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.0} | {:.2} | {} |",
            thousands(figure("tasks")),
            row.system,
            row.setting,
            figure("full_rss_mib"),
            figure("restart_s"),
            thousands(figure("drained_per_s")),
        );
    }
    out
}

fn rate(row: &Row) -> f64 {
    row.median("tasks_per_s").unwrap_or(0.0)
}

fn kept(row: &Row) -> bool {
    row.figure("kept").is_some_and(|kept| kept.min > 0.0)
}

/// Taskyard beside the best peer and the floor, in sentences. Only what was measured is said.
pub(crate) fn ratios(records: &[Record]) -> Vec<String> {
    let mut lines = Vec::new();
    let all = rows(records, "throughput");
    let best = |takes: &dyn Fn(&Row) -> bool| {
        all.iter().filter(|row| takes(row)).max_by(|a, b| rate(a).total_cmp(&rate(b)))
    };
    let peer = |row: &Row| !row.is_ours() && !row.is_floor();
    if let Some(ours) = best(&|row| row.is_ours() && row.promise == Promise::Synced) {
        let mut beside = Vec::new();
        if let Some(other) = best(&|row| peer(row) && row.promise == Promise::Synced) {
            beside.push(format!(
                "{:.1}× the best peer that syncs ({})",
                rate(ours) / rate(other),
                other.label()
            ));
        }
        if let Some(other) =
            best(&|row| peer(row) && matches!(row.promise, Promise::Written | Promise::Memory))
        {
            beside.push(format!(
                "{:.1}× the best acked peer that does not ({})",
                rate(ours) / rate(other),
                other.label()
            ));
        }
        for (floor, row) in all
            .iter()
            .filter(|row| row.is_floor() && row.promise == Promise::Synced)
            .map(|row| (rate(row), row))
        {
            beside.push(format!("{:.0} % of {}", rate(ours) / floor * 100.0, row.label()));
        }
        if !beside.is_empty() {
            let (rate, label) = (thousands(rate(ours)), ours.label());
            lines.push(format!("{label}, durable: {rate} tasks/s: {}.", beside.join(", ")));
        }
    }
    let all = rows(records, "latency");
    for ours in all.iter().filter(|row| row.is_ours() && kept(row)) {
        let others = |takes: &dyn Fn(&Row) -> bool, figure: &str| {
            let of = |row: &Row| row.median(figure).map(|us| (us, row.label()));
            all.iter()
                .filter(|row| row.load == ours.load && kept(row) && takes(row))
                .filter_map(of)
                .min_by(|a, b| a.0.total_cmp(&b.0))
        };
        let mut beside = Vec::new();
        for (name, figure) in [("p50", "p50_us"), ("p99", "p99_us")] {
            let Some(own) = ours.median(figure) else { continue };
            let mut text = format!("{name} {own:.0} µs");
            if let Some((floor, _)) = others(&|row| row.is_floor(), figure) {
                let _ = write!(text, ", {:.2}× the floor's", own / floor);
            }
            if let Some((other, label)) = others(&peer, figure) {
                let _ = write!(text, ", {:.2}× the best peer's ({label})", own / other);
            }
            beside.push(text);
        }
        lines.push(format!("{} at {}: {}.", ours.label(), ours.load, beside.join("; ")));
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(
        scenario: &str,
        (system, setting): (&str, &str),
        promise: Promise,
        (load, round): (&str, u32),
        figures: &[(&str, f64)],
    ) -> Record {
        Record {
            scenario: scenario.to_owned(),
            system: system.to_owned(),
            setting: setting.to_owned(),
            promise,
            load: load.to_owned(),
            round,
            values: figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        }
    }

    /// A small run of everything.
    pub(crate) fn run() -> Vec<Record> {
        let (ours, redis) = (("Taskyard 0.1.0", "embedded"), ("Redis streams 7.0.15", "appendfsync always"));
        let floor = ("Floor, TCP", "fdatasync a turn");
        let mut all = Vec::new();
        for (round, more) in [(1, 0.0), (2, 30.0), (3, -30.0)] {
            for (system, rate) in [(floor, 600.0), (ours, 300.0), (redis, 100.0)] {
                let figures = [
                    ("tasks_per_s", rate + more),
                    ("server_cpu_s_per_100k", 0.3),
                    ("generator_cpu_s_per_100k", 0.1),
                    ("server_peak_mib", 40.0),
                ];
                all.push(record("throughput", system, Promise::Synced, ("", round), &figures));
            }
            for (system, p50) in [(floor, 100.0), (ours, 110.0), (redis, 220.0)] {
                let figures =
                    [("kept", 1.0), ("p50_us", p50), ("p99_us", p50 * 2.0), ("p99_9_us", p50 * 3.0)];
                all.push(record("latency", system, Promise::Synced, ("2,000/s", round), &figures));
            }
            let behind = [("kept", 0.0), ("achieved_per_s", 4_000.0)];
            all.push(record(
                "latency",
                ("JetStream", "always"),
                Promise::Synced,
                ("2,000/s", round),
                &behind,
            ));
            for queued in [10.0, 20.0] {
                let figures = [("queued", queued), ("submits_per_s", 5.0), ("rss_mib", 7.0)];
                all.push(record("growth", ours, Promise::Synced, (&format!("{queued}"), round), &figures));
            }
            let backlog = [("tasks", 20.0), ("filled_per_s", 9.0), ("full_rss_mib", 7.0), ("restart_s", 0.5)];
            let backlog = [backlog.as_slice(), &[("restart_rss_mib", 6.0), ("drained_per_s", 8.0)]].concat();
            all.push(record("backlog", ours, Promise::Synced, ("20 tasks", round), &backlog));
            let fanout = [("deliveries_per_s", 5.0)];
            all.push(record("fanout", ("a <new> one", ""), Promise::None, ("1,000 sockets", round), &fanout));
        }
        all
    }

    #[test]
    fn ratios_are_those_of_the_medians() {
        let lines = ratios(&run());
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("300 tasks/s: 3.0× the best peer that syncs (Redis"), "{}", lines[0]);
        assert!(lines[0].contains("50 % of Floor, TCP"), "{}", lines[0]);
        assert!(lines[1].contains("p50 110 µs, 1.10× the floor's, 0.50× the best peer's"), "{}", lines[1]);
    }

    #[test]
    fn the_table_is_sorted_and_says_what_was_not_kept() {
        let table = markdown(&Machine::default(), &run());
        let at = |text: &str| table.find(text).unwrap_or_else(|| panic!("{text} is not in {table}"));
        assert!(
            at("| synced | Floor, TCP") < at("| synced | Taskyard")
                && at("| synced | Taskyard") < at("| synced | Redis")
        );
        assert!(table.contains("300 (270 … 330)"), "{table}");
        assert!(table.contains("not kept: 4,000/s"), "{table}");
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        assert!(ratios(&[]).is_empty());
        assert!(!markdown(&Machine::default(), &[]).contains('|'));
    }
}
