//! `taskyard schedules`: tasks that are submitted again and again.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, Value};
use taskyard_proto::codec::encode_client;
use taskyard_proto::{Encoding, Payload, QueueName, Request, Submit};

use super::api::Api;
use super::options::Options;
use super::output::{
    Column, Facts, ListOutput, Listed, Listing, Output, Shown, clean, hint, number, print_line, text,
    text_or_dash,
};
use super::queues::done;
use super::{Failed, Remote, span};
use crate::core::schedule::ScheduleName;

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
    /// Show all schedules
    List(List),
    /// Show all that is known of a schedule
    Show(Named),
    /// Make a schedule, or replace the one of this name
    Put(Box<Put>),
    /// End a schedule; what it has submitted stays
    Delete(Named),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    listed: Listed,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The schedule
    #[arg(value_parser = ScheduleName::parse)]
    name: ScheduleName,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("rhythm").required(true).args(["cron", "every"])))]
struct Put {
    /// The schedule
    #[arg(value_parser = ScheduleName::parse)]
    name: ScheduleName,

    /// The queue that its tasks go to
    #[arg(long)]
    queue: QueueName,

    /// When, as a cron pattern: minute, hour, day, month, weekday; six fields begin with seconds
    #[arg(long, value_name = "PATTERN")]
    cron: Option<String>,

    /// The time zone of the pattern, as Europe/Zurich [default: UTC]
    #[arg(long, value_name = "ZONE", conflicts_with = "every")]
    tz: Option<String>,

    /// Or every so often, as 30s
    #[arg(long, value_name = "TIME", value_parser = span::within_a_year)]
    every: Option<u64>,

    /// What becomes of times at which the broker was away: one task for all of them, or none
    #[arg(long, value_enum)]
    missed: Option<Missed>,

    /// What its workers get, as JSON; @FILE: the bytes of that file
    #[arg(long, value_name = "JSON|@FILE")]
    payload: Option<String>,

    #[command(flatten)]
    options: Box<Options>,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Missed {
    /// One task for all of them, at once
    One,
    /// They are gone
    None,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(List { listed, remote }) => {
            let answer = Api::at(&remote)?.get("/v1/schedules").await?;
            let schedules = answer.list("schedules");
            match listed.output {
                ListOutput::Json => answer.print()?,
                ListOutput::Id => {
                    for schedule in schedules {
                        print_line(&clean(&text(&schedule["name"])))?;
                    }
                }
                ListOutput::Table => print_line(&table(schedules, super::output::terminal_width()))?,
            }
        }
        Command::Show(Named { name, shown, remote }) => {
            let answer = Api::at(&remote)?.get(&format!("/v1/schedules/{name}")).await?;
            show(&answer, shown)?;
        }
        Command::Put(put) => {
            let body = put.body()?;
            let answer = Api::at(&put.remote)?.put(&format!("/v1/schedules/{}", put.name), body).await?;
            show(&answer, put.shown)?;
            if answer.status == 201 {
                hint("the schedule was made");
            }
        }
        Command::Delete(Named { name, shown, remote }) => {
            let answer = Api::at(&remote)?.delete(&format!("/v1/schedules/{name}")).await?;
            done(&answer, shown, &format!("{name} is deleted"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Put {
    /// The body of the `PUT`. The payload keeps the text that was given.
    fn body(&self) -> Result<String, Failed> {
        let payload = match self.payload.as_deref() {
            None => Payload::NULL,
            Some(text) => match text.strip_prefix('@') {
                Some(file) => super::submit::payload(None, Some(Path::new(file)))?,
                None => super::submit::payload(Some(text), None)?,
            },
        };
        let mut submit = Submit::new(self.queue.clone(), payload);
        self.options.apply(&mut submit)?;
        let mut bytes = Vec::new();
        encode_client(Encoding::Json, &Request { id: None, message: submit.into() }, &mut bytes);
        let message = String::from_utf8(bytes).expect("JSON is UTF-8");
        let fields = message.strip_prefix(r#"{"type":"submit","#).expect("a message begins with its type");
        let mut rhythm = Map::new();
        if let Some(cron) = &self.cron {
            rhythm.insert("cron".into(), cron.as_str().into());
            rhythm.insert("tz".into(), self.tz.as_deref().unwrap_or("UTC").into());
        }
        if let Some(every) = self.every {
            rhythm.insert("every_ms".into(), every.into());
        }
        if let Some(missed) = self.missed {
            let word = match missed {
                Missed::One => "one",
                Missed::None => "none",
            };
            rhythm.insert("missed".into(), word.into());
        }
        let rhythm = Value::from(rhythm).to_string();
        let rhythm = rhythm.strip_suffix('}').expect("an object ends so");
        Ok(format!("{rhythm},{fields}"))
    }
}

fn show(answer: &super::api::Answer, shown: Shown) -> Result<(), Failed> {
    match shown.output {
        Output::Json => answer.print(),
        Output::Table => print_line(&describe(&answer.value)),
    }
}

/// When it fires, in words.
fn rhythm(schedule: &Value) -> String {
    match (schedule["every_ms"].as_u64(), schedule["cron"].as_str()) {
        (Some(ms), _) => format!("every {}", span::exact(ms)),
        (None, Some(cron)) => format!("{cron} ({})", schedule["tz"].as_str().unwrap_or("UTC")),
        (None, None) => "-".into(),
    }
}

fn next(schedule: &Value) -> String {
    schedule["next_in_ms"].as_u64().map_or_else(|| "never".into(), |ms| format!("in {}", span::short(ms)))
}

/// The task that came of it last, whatever `last` is told with.
fn last_task(schedule: &Value) -> String {
    let last = &schedule["last"];
    text_or_dash(if last.is_object() { &last["task"] } else { last })
}

/// Why it came to nothing the last time.
fn last_error(schedule: &Value) -> String {
    let error = &schedule["last_error"];
    text_or_dash(if error.is_object() { &error["message"] } else { error })
}

/// The table of schedules.
fn table(schedules: &[Value], terminal: Option<u16>) -> String {
    if schedules.is_empty() {
        return "no schedules: see `taskyard schedules put --help`".into();
    }
    let mut listing = Listing::new(&[
        Column::text("SCHEDULE"),
        Column::text("QUEUE").cut(),
        Column::text("WHEN").cut(),
        Column::text("NEXT"),
        Column::number("FIRED"),
        Column::text("LAST TASK").leaves(1),
        Column::text("LAST ERROR").cut().leaves(2),
    ]);
    for schedule in schedules {
        listing.row([
            text(&schedule["name"]),
            text(&schedule["queue"]),
            rhythm(schedule),
            next(schedule),
            number(&schedule["fired"]),
            last_task(schedule),
            last_error(schedule),
        ]);
    }
    listing.render(terminal)
}

/// All that is known of a schedule.
fn describe(schedule: &Value) -> String {
    let mut facts = Facts::default();
    facts.add("Schedule", text(&schedule["name"]));
    facts.add("Queue", text(&schedule["queue"]));
    facts.add("When", rhythm(schedule));
    let at = schedule["next_run_at"].as_str().map(|at| format!(", at {at}")).unwrap_or_default();
    facts.add("Next", next(schedule) + &at);
    if let Some(missed) = schedule["missed"].as_str() {
        facts.add("Missed", missed);
    }
    facts.add("Fired", number(&schedule["fired"]));
    if last_task(schedule) != "-" {
        facts.add("Last task", last_task(schedule));
    }
    if last_error(schedule) != "-" {
        facts.add("Last error", last_error(schedule));
    }
    if let Some(base64) = schedule["payload_b64"].as_str() {
        facts.add("Payload", format!("{base64} (bytes, as base64)"));
    } else if !schedule["payload"].is_null() {
        facts.add("Payload", schedule["payload"].to_string());
    }
    let told = [
        "name",
        "queue",
        "every_ms",
        "cron",
        "tz",
        "missed",
        "next_run_at",
        "next_in_ms",
        "fired",
        "last",
        "last_error",
        "payload",
        "payload_b64",
    ];
    for (name, value) in schedule.as_object().into_iter().flatten() {
        if !told.contains(&name.as_str()) && !value.is_null() {
            facts.add(&super::queues::title(name), super::queues::setting(name, value));
        }
    }
    facts.render()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::json;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn body(words: &[&str]) -> Result<String, String> {
        let line = ["schedules", "put"].iter().chain(words);
        let line = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        match line.args.command {
            Some(Command::Put(put)) => put.body().map_err(|failed| failed.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_put_is_a_rhythm_and_a_submit() {
        let cron = ["nightly", "--queue", "reports", "--cron", "0 3 * * *", "--tz", "Europe/Zurich"];
        let text = body(&[&cron[..], &["--payload", r#"{"b": 1.0, "a":1e999}"#, "--priority", "7"]].concat());
        let text = text.expect("good usage");
        assert_eq!(
            text,
            r#"{"cron":"0 3 * * *","tz":"Europe/Zurich","queue":"reports","payload":{"b": 1.0, "a":1e999},"priority":7}"#
        );
        let every =
            body(&["often", "--queue", "q", "--every", "30s", "--missed", "none"]).expect("good usage");
        let every: Value = serde_json::from_str(&every).expect("JSON");
        assert_eq!(every, json!({"every_ms": 30_000, "missed": "none", "queue": "q"}));
        for (words, problem) in [
            (&["n", "--queue", "q"][..], "--cron <PATTERN>|--every <TIME>"),
            (&["n", "--queue", "q", "--every", "1s", "--cron", "* * * * *"], "cannot be used with"),
            (&["n", "--queue", "q", "--every", "1s", "--tz", "UTC"], "--tz <ZONE>"),
            (&["a/b", "--queue", "q", "--every", "1s"], "schedule name"),
            (&["n", "--queue", "q", "--every", "1s", "--payload", "{"], "JSON"),
            (&["n", "--queue", "q", "--every", "1s", "--payload", "@/no/such/file"], "/no/such/file"),
        ] {
            let error = body(words).unwrap_err();
            assert!(error.contains(problem), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_table_fits_its_terminal() {
        let nightly = json!({"name": "nightly-report", "queue": "reports", "cron": "0 3 * * *", "tz": "Europe/Zurich",
            "every_ms": null, "missed": "one", "next_run_at": "2030-01-31T02:00:00Z", "next_in_ms": 7_200_000,
            "fired": 12, "last": {"run_at": "2030-01-30T02:00:00Z", "task": "0198c0de-0000-7000-8000-000000000001"},
            "last_error": null, "payload": {"a": 1}, "priority": 7, "ttl_ms": 60_000});
        let often = json!({"name": "often", "queue": "q", "every_ms": 90_000, "next_in_ms": null, "fired": 0,
            "last": null,
            "last_error": {"code": "queue_full", "message": "it holds 1000 tasks, which is its limit"}});
        let schedules = [nightly.clone(), often];
        let wide = table(&schedules, None);
        for word in
            ["0 3 * * * (Europe/Zurich)", "every 90s", "in 2 h", "never", "0198c0de", "which is its limit"]
        {
            assert!(wide.contains(word), "{word}:\n{wide}");
        }
        for width in [80, 120] {
            let table = table(&schedules, Some(width));
            assert!(
                table.lines().all(|line| line.chars().count() <= usize::from(width)),
                "{width}:\n{table}"
            );
            assert!(table.contains("nightly-report"), "{table}");
        }
        let text = describe(&nightly);
        assert!(text.contains("Next:       in 2 h, at 2030-01-31T02:00:00Z"), "{text}");
        assert!(text.contains("Payload:    {\"a\":1}") && text.contains("Ttl:        1m"), "{text}");
    }
}
