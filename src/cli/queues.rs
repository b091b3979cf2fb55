//! `taskyard queues`, and `pause` and `unpause` beside it.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use taskyard_proto::QueueName;

use super::api::{Answer, Api};
use super::output::{
    Column, Consent, Facts, ListOutput, Listed, Listing, Output, Shown, clean, count, hint, print_line, text,
};
use super::{Failed, Remote, span};
use crate::core::settings::HEADSTART_MS;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all queues
    List(List),
    /// Show all that is known of a queue
    Show {
        /// The queue
        queue: QueueName,

        #[command(flatten)]
        shown: Shown,

        #[command(flatten)]
        remote: Remote,
    },
    /// Change a queue's settings; one that is not there is made
    Set(Box<Set>),
    /// Deliver nothing from a queue for a while
    Pause(Pause),
    /// Deliver again
    #[command(visible_alias = "resume")]
    Unpause(Unpause),
    /// Cancel all that waits in a queue; what is with workers stays
    Purge {
        /// The queue
        queue: QueueName,

        #[command(flatten)]
        consent: Consent,

        #[command(flatten)]
        shown: Shown,

        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    listed: Listed,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    /// The queue; made if there is none
    queue: QueueName,

    /// For how long, as 30s, 10m or 2h [default: until `unpause`]
    #[arg(long = "for", value_name = "TIME", value_parser = span::within_a_year)]
    for_ms: Option<u64>,

    /// Why, for whoever wonders
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub(super) struct Unpause {
    /// The queue
    queue: QueueName,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The queue
    queue: QueueName,

    /// How many tasks may be unfinished
    #[arg(long, value_name = "N")]
    max_tasks: Option<u64>,

    /// How many bytes their payloads may have together
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,

    /// How many may be with workers at a time
    #[arg(long, value_name = "N")]
    max_leased: Option<u64>,

    /// How many are handed out a second, at most
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// How a worker is chosen for a task that does not say
    #[arg(long, value_enum)]
    assign: Option<Assign>,

    /// When a task may be handed out: once it would survive a power cut, or as soon as it is here
    #[arg(long, value_enum)]
    deliver: Option<Deliver>,

    /// How priorities are taken: strict; or aged, where a step of priority is a head start, of 1m unless said, as
    /// aged:30s
    #[arg(long, value_name = "strict|aged[:TIME]", value_parser = order)]
    order: Option<Order>,

    /// How long a finished task can be looked up, as 10m
    #[arg(long, value_name = "TIME", value_parser = span::up_to_a_year)]
    keep_result: Option<u64>,

    /// The priority of a task that does not say: 0 to 9, higher first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=9))]
    default_priority: Option<u64>,

    /// How long a task is of use that does not say, as 1h
    #[arg(long, value_name = "TIME", value_parser = span::within_a_year)]
    default_ttl: Option<u64>,

    /// How long a worker may keep silent on a task that does not say, as 30s
    #[arg(long, value_name = "TIME", value_parser = span::within_a_year)]
    default_ack_timeout: Option<u64>,

    /// The run limit of an attempt of a task that does not say, as 10m
    #[arg(long, value_name = "TIME", value_parser = span::within_a_year)]
    default_timeout: Option<u64>,

    /// How many attempts a task gets that does not say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    default_max_attempts: Option<u64>,

    /// How long a task that does not say waits between attempts: the first wait, the longest, and by what it grows, as
    /// 1s,5m,2
    #[arg(long, value_name = "FIRST[,LONGEST[,FACTOR]]", value_parser = super::options::backoff)]
    default_backoff: Option<super::options::Wait>,

    /// Back to what it is where nothing is said; may be given several times
    #[arg(long, value_enum, value_name = "SETTING", value_delimiter = ',')]
    unset: Vec<Setting>,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Assign {
    /// In turn
    #[value(alias = "round_robin")]
    RoundRobin,
    /// The one with the smallest share of its credit in use
    #[value(alias = "least_loaded")]
    LeastLoaded,
    /// By the hash of the task's sticky key
    Sticky,
}

impl From<Assign> for taskyard_proto::Assign {
    fn from(assign: Assign) -> Self {
        match assign {
            Assign::RoundRobin => taskyard_proto::Assign::RoundRobin,
            Assign::LeastLoaded => taskyard_proto::Assign::LeastLoaded,
            Assign::Sticky => taskyard_proto::Assign::Sticky,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Deliver {
    /// Once it would survive a power cut
    Durable,
    /// As soon as it is here
    Early,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    Strict,
    /// So much head start for a step of priority.
    Aged(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Setting {
    MaxTasks,
    MaxBytes,
    MaxLeased,
    Rate,
    Assign,
    Deliver,
    Order,
    KeepResult,
    DefaultPriority,
    DefaultTtl,
    DefaultAckTimeout,
    DefaultTimeout,
    DefaultMaxAttempts,
    DefaultBackoff,
}

impl Setting {
    /// Its name in the body of a `PUT`, and whether it is one of `defaults`.
    fn field(self) -> (&'static str, bool) {
        match self {
            Setting::MaxTasks => ("max_tasks", false),
            Setting::MaxBytes => ("max_bytes", false),
            Setting::MaxLeased => ("max_leased", false),
            Setting::Rate => ("rate_per_s", false),
            Setting::Assign => ("assign", false),
            Setting::Deliver => ("deliver", false),
            Setting::Order => ("order", false),
            Setting::KeepResult => ("keep_result_ms", false),
            Setting::DefaultPriority => ("priority", true),
            Setting::DefaultTtl => ("ttl_ms", true),
            Setting::DefaultAckTimeout => ("ack_timeout_ms", true),
            Setting::DefaultTimeout => ("timeout_ms", true),
            Setting::DefaultMaxAttempts => ("max_attempts", true),
            Setting::DefaultBackoff => ("backoff", true),
        }
    }
}

/// A number a second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0, as 100 or 0.5".into()),
    }
}

fn order(text: &str) -> Result<Order, String> {
    match text.split_once(':') {
        None if text == "strict" => Ok(Order::Strict),
        None if text == "aged" => Ok(Order::Aged(HEADSTART_MS)),
        Some(("aged", headstart)) => span::within_a_year(headstart).map(Order::Aged),
        _ => Err("expected strict, aged, or aged:TIME, as aged:30s".into()),
    }
}

impl Set {
    /// The body of the `PUT`.
    fn body(&self) -> Result<Value, Failed> {
        let given = [
            (Setting::MaxTasks, self.max_tasks.map(Value::from)),
            (Setting::MaxBytes, self.max_bytes.map(Value::from)),
            (Setting::MaxLeased, self.max_leased.map(Value::from)),
            (Setting::Rate, self.rate.map(Value::from)),
            (Setting::Assign, self.assign.map(|assign| taskyard_proto::Assign::from(assign).as_str().into())),
            (
                Setting::Deliver,
                self.deliver.map(|deliver| match deliver {
                    Deliver::Durable => "durable".into(),
                    Deliver::Early => "early".into(),
                }),
            ),
            (
                Setting::Order,
                self.order.map(|order| match order {
                    Order::Strict => "strict".into(),
                    Order::Aged(ms) => json!({"aged": {"headstart_ms": ms}}),
                }),
            ),
            (Setting::KeepResult, self.keep_result.map(Value::from)),
            (Setting::DefaultPriority, self.default_priority.map(Value::from)),
            (Setting::DefaultTtl, self.default_ttl.map(Value::from)),
            (Setting::DefaultAckTimeout, self.default_ack_timeout.map(Value::from)),
            (Setting::DefaultTimeout, self.default_timeout.map(Value::from)),
            (Setting::DefaultMaxAttempts, self.default_max_attempts.map(Value::from)),
            (Setting::DefaultBackoff, self.default_backoff.map(|wait| wait.to_json())),
        ];
        let (mut body, mut defaults) = (Map::new(), Map::new());
        for (setting, value) in given {
            let (field, of_tasks) = setting.field();
            let value = match (value, self.unset.contains(&setting)) {
                (Some(_), true) => {
                    let name = setting.to_possible_value().map(|value| value.get_name().to_owned());
                    return Err(Failed::usage(format!(
                        "--{0} and --unset {0} cannot both be meant: give one of them",
                        name.unwrap_or_default()
                    )));
                }
                (Some(value), false) => value,
                (None, true) => Value::Null,
                (None, false) => continue,
            };
            if of_tasks { &mut defaults } else { &mut body }.insert(field.to_owned(), value);
        }
        if !defaults.is_empty() {
            body.insert("defaults".into(), defaults.into());
        }
        Ok(body.into())
    }
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(List { listed, remote }) => {
            let answer = Api::at(&remote)?.get("/v1/queues").await?;
            let queues = answer.list("queues");
            match listed.output {
                ListOutput::Json => answer.print()?,
                ListOutput::Id => {
                    for queue in queues {
                        print_line(&clean(&text(&queue["queue"])))?;
                    }
                }
                ListOutput::Table => print_line(&table(queues, super::output::terminal_width()))?,
            }
        }
        Command::Show { queue, shown, remote } => {
            let answer = Api::at(&remote)?.get(&format!("/v1/queues/{queue}")).await?;
            show(&answer, shown)?;
        }
        Command::Set(set) => {
            let body = set.body()?;
            let answer = Api::at(&set.remote)?.put(&format!("/v1/queues/{}", set.queue), body).await?;
            show(&answer, set.shown)?;
        }
        Command::Pause(args) => return pause(args).await,
        Command::Unpause(args) => return unpause(args).await,
        Command::Purge { queue, consent, shown, remote } => {
            let api = Api::at(&remote)?;
            consent.to(&format!("cancel all tasks that wait in queue {queue}"))?;
            let answer = api.post(&format!("/v1/queues/{queue}/purge"), "{}").await?;
            let purged = answer.value["purged"].as_u64().unwrap_or(0);
            done(&answer, shown, &format!("{} cancelled", count(purged, "task")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn pause(args: Pause) -> Result<ExitCode, Failed> {
    let mut body = Map::new();
    if let Some(ms) = args.for_ms {
        body.insert("for_ms".into(), ms.into());
    }
    if let Some(reason) = args.reason {
        body.insert("reason".into(), reason.into());
    }
    let queue = args.queue;
    let answer = Api::at(&args.remote)?.post(&format!("/v1/queues/{queue}/pause"), Value::from(body)).await?;
    let until = args.for_ms.map_or_else(
        || format!(" until `taskyard unpause {queue}`"),
        |ms| format!(" for {}", span::exact(ms)),
    );
    done(&answer, args.shown, &format!("{queue} is paused{until}"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn unpause(args: Unpause) -> Result<ExitCode, Failed> {
    let queue = args.queue;
    let answer = Api::at(&args.remote)?.post(&format!("/v1/queues/{queue}/unpause"), "{}").await?;
    done(&answer, args.shown, &format!("{queue} delivers again"))?;
    Ok(ExitCode::SUCCESS)
}

/// Says that something was done.
pub(super) fn done(answer: &Answer, shown: Shown, words: &str) -> Result<(), Failed> {
    match shown.output {
        Output::Json => answer.print(),
        Output::Table => print_line(words),
    }
}

fn show(answer: &Answer, shown: Shown) -> Result<(), Failed> {
    match shown.output {
        Output::Json => answer.print(),
        Output::Table => {
            print_line(&describe(&answer.value))?;
            if answer.status == 201 {
                hint("the queue was made");
            }
            Ok(())
        }
    }
}

/// The table of queues.
pub(super) fn table(queues: &[Value], terminal: Option<u16>) -> String {
    let mut listing = Listing::new(&[
        Column::text("QUEUE"),
        Column::number("QUEUED"),
        Column::number("LEASED"),
        Column::number("RETRYING").leaves(3),
        Column::number("SCHEDULED").leaves(4),
        Column::number("DEAD"),
        Column::number("DONE").leaves(5),
        Column::number("WORKERS"),
        Column::number("OLDEST"),
        Column::number("IN/S").leaves(2),
        Column::number("OUT/S").leaves(1),
        Column::text("PAUSED").cut(),
    ]);
    for queue in queues {
        let count = |state: &str| queue["counts"][state].to_string();
        let rate = |name: &str| format!("{:.0}", queue["rates"][name].as_f64().unwrap_or(0.0));
        listing.row([
            text(&queue["queue"]),
            count("queued"),
            count("leased"),
            count("retrying"),
            count("scheduled"),
            count("dead"),
            count("done"),
            queue["workers"].to_string(),
            queue["oldest_ms"].as_u64().map_or_else(|| "-".into(), span::short),
            rate("accepted"),
            rate("settled"),
            paused(&queue["paused"]).unwrap_or_else(|| "-".into()),
        ]);
    }
    if listing.is_empty() {
        return "no queues yet: the first task makes one, see `taskyard submit --help`".into();
    }
    listing.render(terminal)
}

/// Since when nothing is delivered, and why; none: it is delivered.
pub(super) fn paused(pause: &Value) -> Option<String> {
    pause.as_object()?;
    let mut words =
        pause["in_ms"].as_u64().map_or_else(|| "yes".into(), |ms| format!("{} more", span::short(ms)));
    if let Some(by) = pause["by"].as_str() {
        words += &format!(", by {by}");
    }
    if let Some(reason) = pause["reason"].as_str() {
        words += &format!(": {reason}");
    }
    Some(words)
}

/// All that is known of a queue.
pub(super) fn describe(queue: &Value) -> String {
    let mut facts = Facts::default();
    facts.add("Queue", text(&queue["queue"]));
    facts.add("Paused", paused(&queue["paused"]).unwrap_or_else(|| "no".into()));
    let states = ["queued", "leased", "retrying", "scheduled", "dead", "done", "cancelled", "expired"];
    let counts: Vec<String> = states
        .iter()
        .filter_map(|state| Some(format!("{} {state}", queue["counts"][*state].as_u64().filter(|n| *n > 0)?)))
        .collect();
    facts.add("Tasks", if counts.is_empty() { "none".into() } else { counts.join(", ") });
    if let Some(ms) = queue["oldest_ms"].as_u64() {
        facts.add("Oldest waiting", span::short(ms));
    }
    let rate = |name: &str| queue["rates"][name].as_f64().unwrap_or(0.0);
    facts.add(
        "Per second",
        format!(
            "{:.1} accepted, {:.1} delivered, {:.1} settled",
            rate("accepted"),
            rate("delivered"),
            rate("settled")
        ),
    );
    let number = |name: &str| queue[name].as_u64().unwrap_or(0);
    facts.add(
        "Workers",
        format!(
            "{}, with {} in flight and room for {}",
            number("workers"),
            count(number("in_flight"), "task"),
            number("credit_free")
        ),
    );
    for (name, value) in queue["settings"].as_object().into_iter().flatten() {
        match value {
            Value::Object(defaults) if name == "defaults" => {
                for (name, value) in defaults.iter().filter(|(_, value)| !value.is_null()) {
                    facts.add(&format!("Default {}", title(name).to_lowercase()), setting(name, value));
                }
            }
            Value::Null => {}
            value => {
                facts.add(&title(name), setting(name, value));
            }
        }
    }
    facts.render()
}

/// The name of a field as people read it.
pub(super) fn title(field: &str) -> String {
    let field = field.strip_suffix("_ms").or_else(|| field.strip_suffix("_per_s")).unwrap_or(field);
    let words = field.replace('_', " ");
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

/// The value of a setting as the command line takes it.
pub(super) fn setting(name: &str, value: &Value) -> String {
    let ms = |value: &Value| value.as_u64().map(span::exact);
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if name.ends_with("_per_s") => {
            // A whole number as one.
            number.as_f64().map_or_else(|| number.to_string(), |rate| rate.to_string()) + " a second"
        }
        Value::Number(_) if name.ends_with("_ms") => ms(value).unwrap_or_else(|| value.to_string()),
        Value::Object(order) if name == "order" => {
            let headstart = order.get("aged").unwrap_or(value).get("headstart_ms").and_then(ms);
            headstart.map_or_else(|| value.to_string(), |time| format!("aged:{time}"))
        }
        Value::Object(_) if name == "backoff" => {
            let parts = [
                ms(&value["initial_ms"]),
                ms(&value["max_ms"]),
                value["factor"].as_f64().map(|f| f.to_string()),
            ];
            parts.into_iter().flatten().collect::<Vec<_>>().join(",")
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn body(line: &str) -> Result<Value, String> {
        let words = ["queues", "set"].into_iter().chain(line.split(' '));
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        match line.args.command {
            Some(Command::Set(set)) => set.body().map_err(|failed| failed.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_set_is_what_is_asked_for() {
        for (line, expected) in [
            ("q", json!({})),
            ("q --max-tasks 7 --rate 0.5", json!({"max_tasks": 7, "rate_per_s": 0.5})),
            (
                "q --assign least-loaded --deliver early",
                json!({"assign": "least_loaded", "deliver": "early"}),
            ),
            ("q --order strict --keep-result 10m", json!({"order": "strict", "keep_result_ms": 600_000})),
            ("q --order aged", json!({"order": {"aged": {"headstart_ms": 60_000}}})),
            ("q --order aged:30s", json!({"order": {"aged": {"headstart_ms": 30_000}}})),
            (
                "q --default-priority 9 --default-ttl 1h --default-backoff 1s,5m,1.5",
                json!({"defaults": {"priority": 9, "ttl_ms": 3_600_000,
                    "backoff": {"initial_ms": 1000, "max_ms": 300_000, "factor": 1.5}}}),
            ),
            (
                "q --unset max-tasks,default-ttl --unset rate --max-bytes 9",
                json!({"max_tasks": null, "rate_per_s": null, "max_bytes": 9, "defaults": {"ttl_ms": null}}),
            ),
        ] {
            assert_eq!(body(line), Ok(expected), "{line}");
        }
        for (line, problem) in [
            ("q --rate 0", "above 0"),
            ("q --order aged:0s", "longer than nothing"),
            ("q --order fifo", "aged:TIME"),
            ("q --default-priority 10", "0..=9"),
            ("q --max-tasks 7 --unset max-tasks", "--unset max-tasks"),
            ("q --unset colour", "possible values"),
            ("a/b", "queue name"),
        ] {
            let error = body(line).unwrap_err();
            assert!(error.contains(problem), "{line}: {error}");
        }
    }

    fn queue(name: &str) -> Value {
        json!({
            "queue": name,
            "counts": {"scheduled": 1, "queued": 20, "leased": 3, "retrying": 0, "done": 100_000, "dead": 2,
                "cancelled": 0, "expired": 0},
            "oldest_ms": 61_000,
            "rates": {"accepted": 12.3, "delivered": 11.9, "settled": 11.5},
            "workers": 2, "in_flight": 3, "credit_free": 5, "declared": true,
            "paused": {"by": "ops", "reason": "the provider is down, and nobody knows for how long", "in_ms": 59_000},
            "settings": {"assign": "least_loaded", "deliver": "durable", "order": {"aged": {"headstart_ms": 30_000}},
                "max_tasks": 1000, "max_bytes": null, "max_leased": null, "rate_per_s": 2.5, "keep_result_ms": 600_000,
                "defaults": {"priority": 4, "ttl_ms": null,
                    "backoff": {"initial_ms": 1000, "max_ms": 60_000, "factor": 2.0}}},
        })
    }

    #[test]
    fn the_table_fits_its_terminal() {
        let queues = [queue("emails"), queue("thumbnails-of-the-big-ones")];
        let wide = table(&queues, None);
        for word in ["QUEUE ", "RETRYING", "100000", "1 min", "59.0 s more, by ops: the provider is down"] {
            assert!(wide.contains(word), "{word}:\n{wide}");
        }
        for width in [80, 100, 120] {
            let table = table(&queues, Some(width));
            for line in table.lines() {
                assert!(line.chars().count() <= usize::from(width), "{width}:\n{table}");
            }
            assert!(table.contains("DEAD") && table.contains("PAUSED"), "{width}:\n{table}");
        }
        assert!(table(&[], None).contains("no queues yet"));
    }

    #[test]
    fn a_queue_is_described() {
        let text = describe(&queue("emails"));
        for (name, value) in [
            ("Queue", "emails"),
            ("Tasks", "20 queued, 3 leased, 1 scheduled, 2 dead, 100000 done"),
            ("Workers", "2, with 3 tasks in flight and room for 5"),
            ("Order", "aged:30s"),
            ("Rate", "2.5 a second"),
            ("Keep result", "10m"),
            ("Default priority", "4"),
            ("Default backoff", "1s,1m,2"),
        ] {
            let line = format!("{:17}  {value}", format!("{name}:"));
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        assert!(!text.contains("Max bytes") && !text.contains("Default ttl"), "{text}");
    }
}
