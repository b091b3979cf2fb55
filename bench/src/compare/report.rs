//! The report: one HTML file that needs no other, light and dark.

use std::fmt::Write as _;

use crate::compare::latency::QUANTILES;
use crate::compare::machine::Machine;
use crate::compare::plot::{Bar, Line, Scale, bars, curves, escape, number, ranges};
use crate::compare::summary::{Row, rows};
use crate::compare::{table, thousands};
use crate::record::{Promise, Record};

pub(crate) fn page(machine: &Machine, records: &[Record]) -> String {
    let mut out = String::from("<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n");
    out.push_str("<meta name=viewport content=\"width=device-width, initial-scale=1\">\n");
    let _ =
        writeln!(out, "<title>Taskyard beside its peers</title>\n<style>{STYLE}</style></head><body><main>");
    out.push_str("<h1>Taskyard beside its peers</h1>\n");
    let _ = writeln!(out, "<p>{}</p>", escape(&machine.line()));
    if !machine.versions.is_empty() {
        let versions: Vec<String> = machine
            .versions
            .iter()
            .map(|(name, version)| format!("{} {}", escape(name), escape(version)))
            .collect();
        let _ = writeln!(out, "<p class=note>{}</p>", versions.join(" · "));
    }
    for missing in &machine.missing {
        let _ = writeln!(out, "<p class=warn>Not measured: {}</p>", escape(missing));
    }
    let rounds = records.iter().map(|record| record.round).max().unwrap_or(0);
    let _ = writeln!(
        out,
        "<p class=note>Systems in turn within each round ({rounds} here), each with a server of its own; \
         medians, whiskers from the least to the most. What travels to another machine is the ratios.</p>"
    );
    for section in [short, throughput, latency, growth, backlog, limits, others] {
        out.push_str(&section(records));
    }
    out.push_str("</main></body></html>\n");
    out
}

/// The ratios that one looks for first.
fn short(records: &[Record]) -> String {
    let lines = table::ratios(records);
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines.iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    format!("<h2>In short</h2><ul>{items}</ul>\n")
}

fn throughput(records: &[Record]) -> String {
    let rows = rows(records, "throughput");
    let most = |row: &Row| row.figure("tasks_per_s").map_or(0.0, |spread| spread.max);
    let end = rows.iter().map(most).fold(0.0, f64::max);
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>Throughput</h2><p>Tasks a second, from the first submit to the last ack. 4 producers with a window \
         of 256 unconfirmed submits, 8 workers with credit 64; every task is confirmed to its producer and \
         acknowledged by its worker.</p>\n",
    );
    for kind in Promise::ALL {
        let mut group: Vec<&Row> = rows.iter().filter(|row| row.promise == kind).collect();
        group.sort_by(|a, b| {
            b.median("tasks_per_s").unwrap_or(0.0).total_cmp(&a.median("tasks_per_s").unwrap_or(0.0))
        });
        if group.is_empty() {
            continue;
        }
        let (name, meaning) = kind.words();
        let _ = writeln!(out, "<h3>{name} <small>{meaning}</small></h3>");
        let all: Vec<Bar<'_>> = group
            .iter()
            .filter_map(|row| {
                let spread = row.figure("tasks_per_s")?;
                Some(Bar { row, spread, text: thousands(spread.median) })
            })
            .collect();
        out.push_str(&bars(&all, end));
    }
    out.push_str(&resources(&rows));
    out
}

/// What it took, and who may have been held back by the generator.
fn resources(rows: &[Row]) -> String {
    let mut out = String::from(
        "<details open><summary>What it took</summary><p class=note>Cores are CPU seconds per second of the \
         measurement, from /proc, of the server with its children and of the generator. Where the generator \
         took more than the server, the server may do more with a cheaper client or more cores.</p><div class=scroll>\
         <table><tr><th>system<th>setting<th>server CPU s / 100k<th>server cores<th>generator cores\
         <th>peak RSS MiB<th></tr>\n",
    );
    for row in rows {
        let figure = |name: &str| row.median(name).unwrap_or(f64::NAN);
        let rate = figure("tasks_per_s") / 100_000.0;
        let (server, own) =
            (figure("server_cpu_s_per_100k") * rate, figure("generator_cpu_s_per_100k") * rate);
        let _ = writeln!(
            out,
            "<tr><td>{}<td>{}<td>{:.2}<td>{server:.2}<td>{own:.2}<td>{:.0}<td>{}</tr>",
            escape(&row.system),
            escape(&row.setting),
            figure("server_cpu_s_per_100k"),
            figure("server_peak_mib"),
            if own > server { "generator took more" } else { "" }
        );
    }
    out.push_str("</table></div></details>\n");
    out
}

/// The loads of some rows, in their order.
fn loads(rows: &[Row]) -> Vec<&str> {
    let mut loads: Vec<&str> = Vec::new();
    for row in rows {
        if !loads.contains(&row.load.as_str()) {
            loads.push(&row.load);
        }
    }
    loads
}

fn latency(records: &[Record]) -> String {
    let rows = rows(records, "latency");
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>Latency</h2><p>From the moment a submit was <em>meant</em> to be sent to the worker having it, at a \
         fixed rate over four connections: a stall counts for all that it delays. Every confirm is synced.</p>\n",
    );
    for load in loads(&rows) {
        let _ = writeln!(out, "<h3>{} <small>µs, logarithmic</small></h3>", escape(load));
        let here = || rows.iter().filter(|row| row.load == load);
        // A round in which the rate was not kept has no percentiles, and is not hidden by the others.
        let mut kept: Vec<&Row> =
            here().filter(|row| row.figure("kept").is_some_and(|kept| kept.min > 0.0)).collect();
        kept.sort_by(|a, b| a.median("p50_us").unwrap_or(0.0).total_cmp(&b.median("p50_us").unwrap_or(0.0)));
        let ranged: Vec<(&Row, Vec<f64>, String)> = kept
            .iter()
            .map(|row| {
                let figures =
                    ["p50_us", "p99_us", "p99_9_us"].map(|name| row.median(name).unwrap_or(f64::NAN));
                (*row, figures.to_vec(), figures.map(number).join(" · "))
            })
            .collect();
        out.push_str(&ranges(&ranged, "large dot p50, then p99 and p99.9; behind: the same in numbers"));
        let lines: Vec<Line> = kept
            .iter()
            .map(|row| Line {
                name: row.label(),
                ours: row.is_ours(),
                points: QUANTILES
                    .iter()
                    .filter_map(|(quantile, name)| Some((1.0 / (1.0 - quantile), row.median(name)?)))
                    .collect(),
            })
            .collect();
        let x = Scale::logarithmic([2.0 * 1.2, 10_000.0 / 1.2].into_iter());
        let y = Scale::logarithmic(lines.iter().flat_map(|line| line.points.iter().map(|(_, us)| *us)));
        if let (Some(x), Some(y)) = (x, y) {
            let ticks =
                [("p50", 2.0), ("p90", 10.0), ("p99", 100.0), ("p99.9", 1000.0), ("p99.99", 10_000.0)];
            let ticks: Vec<(f64, String)> = ticks.map(|(text, at)| (at, text.to_owned())).to_vec();
            out.push_str(&curves(&lines, (&x, &y), &ticks));
        }
        for row in here().filter(|row| row.figure("kept").is_some_and(|kept| kept.min == 0.0)) {
            let achieved = row.figure("achieved_per_s").map_or(0.0, |spread| spread.min);
            let _ = writeln!(
                out,
                "<p class=warn>{} cannot keep this rate: {}/s achieved.</p>",
                escape(&row.label()),
                thousands(achieved)
            );
        }
    }
    out
}

fn growth(records: &[Record]) -> String {
    let rows = rows(records, "growth");
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::from("<h2>Growth</h2><p>Tasks come, nobody works.</p>\n");
    for (title, figure) in [
        ("Submits a second, over tasks queued", "submits_per_s"),
        ("Server CPU seconds for 100,000 submits, over tasks queued", "server_cpu_s_per_100k"),
        ("RSS in MiB, over tasks queued", "rss_mib"),
    ] {
        let mut lines: Vec<Line> = Vec::new();
        for row in &rows {
            let (Some(queued), Some(value)) = (row.median("queued"), row.median(figure)) else { continue };
            match lines.iter_mut().find(|line| line.name == row.label()) {
                Some(line) => line.points.push((queued, value)),
                None => {
                    lines.push(Line { name: row.label(), ours: row.is_ours(), points: vec![(queued, value)] })
                }
            }
        }
        let most = |of: fn(&(f64, f64)) -> f64| {
            lines.iter().flat_map(|line| &line.points).map(of).fold(0.0, f64::max)
        };
        let (x, y) = (Scale::linear(most(|point| point.0)), Scale::linear(most(|point| point.1)));
        let half = most(|point| point.0) / 2.0;
        let ticks = [0.0, half, half * 2.0].map(|at| (at, number(at)));
        let _ = writeln!(out, "<h3>{title}</h3>");
        out.push_str(&curves(&lines, (&x, &y), &ticks));
    }
    out
}

fn backlog(records: &[Record]) -> String {
    let rows = rows(records, "backlog");
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>Backlog and restart</h2><p>The server is filled, killed with −9 and started again. <em>Back</em>: \
         until it answers that it has all tasks.</p><div class=scroll><table><tr><th>system<th>setting<th>tasks\
         <th>filled /s<th>RSS full MiB<th>back after s<th>RSS then MiB<th>drained /s<th>lost</tr>\n",
    );
    for row in &rows {
        let figure = |name: &str| row.median(name).unwrap_or(f64::NAN);
        let back = row
            .figure("restart_s")
            .map_or(String::new(), |s| format!("{:.2} ({:.2} … {:.2})", s.median, s.min, s.max));
        let _ = writeln!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{:.0}<td>{back}<td>{:.0}<td>{}<td>{}</tr>",
            escape(&row.system),
            escape(&row.setting),
            thousands(figure("tasks")),
            thousands(figure("filled_per_s")),
            figure("full_rss_mib"),
            figure("restart_rss_mib"),
            thousands(figure("drained_per_s")),
            thousands(row.figure("lost").map_or(0.0, |spread| spread.max)),
        );
    }
    out.push_str("</table></div>\n");
    out
}

fn limits(records: &[Record]) -> String {
    let rows = rows(records, "limits");
    if rows.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<h2>What the machine allows</h2><div class=scroll><table><tr><th>limit<th>figures</tr>\n",
    );
    for row in &rows {
        let all: Vec<String> = row
            .figures
            .iter()
            .map(|(name, s)| {
                format!("{} {} ({} … {})", unit(name), number(s.median), number(s.min), number(s.max))
            })
            .collect();
        let _ = writeln!(out, "<tr><td>{}<td>{}</tr>", escape(&row.setting), all.join("; "));
    }
    out.push_str("</table></div>\n");
    out
}

/// A figure's name as one reads it: `p50_us` is `p50 µs`.
fn unit(name: &str) -> String {
    name.replace("_per_s", "/s")
        .replace("_us", " µs")
        .replace("_mib", " MiB")
        .replace("_kib", " KiB")
        .replace('_', " ")
}

/// Scenarios with a section of their own.
const KNOWN: &[&str] = &["throughput", "latency", "growth", "backlog", "limits"];

/// Every other scenario: a plot for each load of its chief figure, and all figures in a table.
fn others(records: &[Record]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for record in records {
        let name = record.scenario.as_str();
        if !KNOWN.contains(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    let mut out = String::new();
    for name in names {
        let rows = rows(records, name);
        let _ = writeln!(out, "<h2>{}</h2>", escape(&capital(name)));
        let Some(chief) = rows.first().and_then(chief) else { continue };
        for load in loads(&rows) {
            let here: Vec<&Row> = rows.iter().filter(|row| row.load == load).collect();
            let spreads = || here.iter().filter_map(|row| Some((*row, row.figure(&chief)?)));
            let end = spreads().map(|(_, spread)| spread.max).fold(0.0, f64::max);
            let all: Vec<Bar<'_>> =
                spreads().map(|(row, spread)| Bar { row, spread, text: number(spread.median) }).collect();
            let _ = writeln!(out, "<h3>{} <small>{}</small></h3>", escape(load), escape(&unit(&chief)));
            out.push_str(&bars(&all, end));
        }
        out.push_str("<details><summary>All figures</summary><div class=scroll><table>");
        for row in &rows {
            let all: Vec<String> = row
                .figures
                .iter()
                .map(|(name, spread)| format!("{} {}", unit(name), number(spread.median)))
                .collect();
            let (label, load) = (escape(&row.label()), escape(&row.load));
            let _ = writeln!(out, "<tr><td>{label}<td>{load}<td>{}</tr>", escape(&all.join("; ")));
        }
        out.push_str("</table></div></details>\n");
    }
    out
}

/// The figure that a scenario is about: a rate, or what each socket takes; else the first.
fn chief(row: &Row) -> Option<String> {
    let ends = ["_per_s", "kib_each", "_kib", "_us"];
    let found = ends.iter().find_map(|end| row.figures.keys().find(|name| name.ends_with(end)));
    found.or(row.figures.keys().next()).cloned()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

const STYLE: &str = include_str!("report.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::table::tests::{record, run};

    #[test]
    fn a_page_has_what_the_records_have() {
        let page = page(&Machine::default(), &run());
        for expected in [
            "Redis streams 7.0.15",
            "appendfsync always",
            "3.0× the best peer",
            "cannot keep this rate: 4,000/s",
            "<polyline",
            "<h2>Fanout</h2>",
            "&lt;new&gt;",
        ] {
            assert!(page.contains(expected), "{expected}: {page}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
        assert!(!page.contains("src=") && !page.contains("href="), "it needs no other file");
    }

    #[test]
    fn a_page_of_few_records_has_few_sections() {
        let one = record(
            "throughput",
            ("Taskyard 0.1.0", "embedded"),
            Promise::Synced,
            ("", 1),
            &[("tasks_per_s", 5.0)],
        );
        let page = page(&Machine::default(), &[one]);
        assert!(page.contains("<h2>Throughput</h2>") && !page.contains("<h2>Latency</h2>"));
    }
}
