//! Scenarios × systems: every system that is installed, in turn within each round, on the same load; the
//! records, and what is made of them.

mod backlog;
mod cores;
mod latency;
mod limits;
mod machine;
mod plot;
mod report;
mod stalls;
mod summary;
mod systems;
mod table;
mod throughput;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::drivers::Place;
use crate::drivers::load::Load;
use crate::peers::Node;
use crate::record::{Record, Records};
use crate::{Failed, descriptors, fanout, handshakes, idle, print};
use machine::Machine;
use systems::{Found, SYSTEMS, System};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Scenarios to run; all if absent
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Systems to measure, by their names or parts of them (`redis`, `taskyard-json`); all if absent
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Say what the systems are called, and which of them are here
    #[arg(long)]
    list: bool,
    /// Rounds; medians are quoted, with the least and the most
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Small counts and one round: whether all of it runs, in two minutes
    #[arg(long)]
    quick: bool,
    /// Seconds of a measurement of throughput or latency
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Tasks a second in `latency`
    #[arg(long, value_delimiter = ',', default_value = "2000,20000")]
    rate: Vec<u64>,
    /// Tasks queued in `backlog`
    #[arg(long, default_value_t = 1_000_000)]
    backlog: u64,
    #[arg(long, default_value_t = 256)]
    payload_bytes: usize,
    #[command(flatten)]
    node: Node,
    /// Where the servers keep their stores: a real disk, or `fdatasync` says nothing
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Where the records, the report and the table go
    #[arg(long, default_value = "bench-results")]
    out: PathBuf,
    /// Make the report and the table again, of the records of an earlier run
    #[arg(long, value_name = "RECORDS.JSONL")]
    report_only: Option<PathBuf>,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// What disk and loopback allow
    Limits,
    /// Closed loop: tasks a second
    Throughput,
    /// Open loop: from the intended submit to the worker
    Latency,
    /// Many tasks queued, the server killed, started again, drained
    Backlog,
    /// One says something to thousands of sockets
    Fanout,
    /// What a silent socket takes
    Idle,
    /// Upgrades a second
    Connects,
}

/// A run, as the flags have it.
pub(crate) struct Plan {
    rounds: u32,
    seconds: f64,
    rates: Vec<u64>,
    backlog: u64,
    load: Load,
    place: Place,
    found: Found,
    systems: Vec<System>,
    bar: ProgressBar,
    quick: bool,
    node: Node,
}

const PRODUCERS: usize = 4;
const WORKERS: usize = 8;
const WINDOW: u64 = 256;
const CREDIT: usize = 64;

pub(crate) async fn run(args: Args) -> Result<(), Failed> {
    if let Some(path) = &args.report_only {
        let machine = Machine::read(&path.with_file_name(MACHINE))?;
        return write(&args.out, &machine, &Records::read(path)?);
    }
    descriptors::raise();
    let systems = chosen(&args.systems)?;
    let found = Found::look(&systems);
    for missing in &found.missing {
        say(&format!("SKIPPED: {missing}"));
    }
    if args.list {
        for system in &systems {
            let here = if found.has(system) { "" } else { "(not here)" };
            print(&format!("{:<26} {}, {} {here}", system.id, found.title(system), system.setting));
        }
        return Ok(());
    }
    std::fs::create_dir_all(&args.out)?;
    let machine = Machine::look(&args.dir, &found);
    machine.write(&args.out.join(MACHINE))?;
    let mut records = Records::new(Some(std::fs::File::create(args.out.join(RECORDS))?));
    let scenarios = match args.only.as_slice() {
        [] => Scenario::value_variants(),
        only => only,
    };
    let quick = |small: f64, full: f64| if args.quick { small } else { full };
    let plan = Plan {
        rounds: if args.quick { 1 } else { args.rounds },
        seconds: quick(0.5, args.seconds),
        rates: args.rate,
        backlog: quick(50_000.0, args.backlog as f64) as u64,
        load: Load {
            tasks: 0,
            producers: PRODUCERS,
            workers: WORKERS,
            window: WINDOW,
            payload_bytes: args.payload_bytes,
        },
        place: Place { dir: args.dir, credit: CREDIT, workers: WORKERS, acks_answered: true },
        systems: systems.into_iter().filter(|system| found.has(system)).collect(),
        found,
        bar: bar(),
        quick: args.quick,
        node: args.node,
    };
    plan.bar.set_length(scenarios.iter().map(|scenario| plan.steps(*scenario)).sum());
    // Whoever interrupts it leaves no servers and no stores behind: they end where they are dropped.
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = all(&plan, scenarios, &mut records) => done?,
        _ = tokio::signal::ctrl_c() => return Err(INTERRUPTED.into()),
        _ = terminate.recv() => return Err(INTERRUPTED.into()),
    }
    plan.bar.finish_and_clear();
    write(&args.out, &machine, &records.all)
}

async fn all(plan: &Plan, scenarios: &[Scenario], records: &mut Records) -> Result<(), Failed> {
    for scenario in scenarios {
        match scenario {
            Scenario::Limits => limits::run(plan, records).await?,
            Scenario::Throughput => throughput::run(plan, records).await?,
            Scenario::Latency => latency::run(plan, records).await?,
            Scenario::Backlog => backlog::run(plan, records).await?,
            Scenario::Fanout => fanout::run(plan.fanout(), records).await?,
            Scenario::Idle => idle::run(plan.idle(), records).await?,
            Scenario::Connects => handshakes::run(plan.connects(), records).await?,
        }
    }
    Ok(())
}

const INTERRUPTED: &str = "interrupted: the records so far are kept, for --report-only";
const MACHINE: &str = "machine.json";
const RECORDS: &str = "records.jsonl";

fn write(out: &Path, machine: &Machine, records: &[Record]) -> Result<(), Failed> {
    std::fs::create_dir_all(out)?;
    let (page, table) = (out.join("report.html"), out.join("table.md"));
    std::fs::write(&page, report::page(machine, records))?;
    std::fs::write(&table, table::markdown(machine, records))?;
    print(&table::markdown(machine, records));
    print(&format!("{}\n{}", page.display(), table.display()));
    Ok(())
}

/// The systems that are named, or all.
fn chosen(names: &[String]) -> Result<Vec<System>, Failed> {
    for name in names {
        if !SYSTEMS.iter().any(|system| system.id.contains(name.as_str())) {
            return Err(format!("--systems {name} is none: see `compare --list`").into());
        }
    }
    let named =
        |system: &&System| names.is_empty() || names.iter().any(|name| system.id.contains(name.as_str()));
    Ok(SYSTEMS.iter().filter(named).copied().collect())
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // A template that is wrong leaves the style as it is.
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn say(line: &str) {
    use std::io::Write as _;
    // Nobody may be reading it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Plan {
    fn fanout(&self) -> fanout::Args {
        fanout::Args {
            sockets: if self.quick { vec![1000] } else { vec![1000, 5000] },
            window: 16,
            seconds: self.seconds.ceil() as u64,
            rounds: self.rounds,
            only: Vec::new(),
            threads: None,
            node: self.node.clone(),
            dir: self.place.dir.clone(),
        }
    }

    fn idle(&self) -> idle::Args {
        idle::Args {
            sockets: vec![if self.quick { 1000 } else { 10_000 }],
            rounds: self.rounds,
            hello: false,
            subscribe: true,
            tls: false,
            opening: 64,
            silence: if self.quick { 1 } else { 10 },
            node: self.node.clone(),
            dir: self.place.dir.clone(),
        }
    }

    fn connects(&self) -> handshakes::Args {
        handshakes::Args {
            connections: 32,
            seconds: self.seconds.ceil() as u64,
            rounds: self.rounds,
            node: self.node.clone(),
            dir: self.place.dir.clone(),
        }
    }

    fn steps(&self, scenario: Scenario) -> u64 {
        let count = |takes: fn(&System) -> bool| self.systems.iter().filter(|s| takes(s)).count() as u64;
        u64::from(self.rounds)
            * match scenario {
                Scenario::Limits => 1,
                Scenario::Throughput => count(|system| system.also.throughput),
                Scenario::Latency => count(|system| system.also.latency),
                Scenario::Backlog => count(|system| system.also.backlog),
                // They say by themselves how far they are.
                Scenario::Fanout | Scenario::Idle | Scenario::Connects => 0,
            }
    }

    /// Says what is measured next.
    fn next(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Says what came of it. A system that fails is left out of this round, loudly, and the others go on.
    fn done(&self, text: &str, result: Result<String, Failed>) {
        let line = match result {
            Ok(figures) => format!("{text}: {figures}"),
            Err(error) => format!("{text}: FAILED: {error}"),
        };
        self.bar.suspend(|| say(&line));
        self.bar.inc(1);
    }

    fn record(&self, scenario: &str, system: &System, round: u32, values: BTreeMap<String, f64>) -> Record {
        Record {
            scenario: scenario.to_owned(),
            system: self.found.title(system),
            setting: system.setting.to_owned(),
            promise: system.promise,
            load: String::new(),
            round,
            values,
        }
    }
}

/// Figures by their names.
fn values<const N: usize>(all: [(&str, f64); N]) -> BTreeMap<String, f64> {
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A number with its thousands apart.
fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let texts = [0.0, 999.0, 1000.0, 1_234_567.8, -4321.0].map(thousands);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,568", "-4,321"]);
    }

    #[test]
    fn systems_are_chosen_by_parts_of_their_names() {
        let ids = |names: &[&str]| -> Vec<&str> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            chosen(&names).expect("known names").iter().map(|system| system.id).collect()
        };
        assert_eq!(ids(&[]).len(), SYSTEMS.len());
        assert_eq!(ids(&["gearman", "beanstalkd-f"]), ["beanstalkd-f0", "beanstalkd-f50", "gearman"]);
        assert!(chosen(&["kafka".to_owned()]).is_err());
    }

    #[test]
    fn a_system_has_one_name_and_one_setting() {
        let mut ids: Vec<&str> = SYSTEMS.iter().map(|system| system.id).collect();
        let mut titles: Vec<_> = SYSTEMS.iter().map(|system| (system.name, system.setting)).collect();
        ids.sort_unstable();
        titles.sort_unstable();
        assert!(ids.windows(2).all(|two| two[0] != two[1]));
        assert!(titles.windows(2).all(|two| two[0] != two[1]));
    }
}
