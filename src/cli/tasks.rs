//! `taskyard tasks`

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskyard_proto::{QueueName, TaskId};

use super::api::{Api, Path};
use super::filters::{Filters, task_id};
use super::output::{
    self, Column, Consent, Facts, ListOutput, Listed, Listing, Output, Shown, clean, complain, count, hint,
    number, pretty, print_line, text, text_or_dash,
};
use super::{Failed, Remote, span};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the tasks of a queue
    List(Box<List>),
    /// Show all that is known of a task
    Show {
        /// The task
        #[arg(value_parser = task_id, value_name = "TASK")]
        task: TaskId,

        /// Show its payload and headers too, as long as it has not ended
        #[arg(long)]
        payload: bool,

        #[command(flatten)]
        shown: Shown,

        #[command(flatten)]
        remote: Remote,
    },
    /// Cancel tasks, wherever they are: those that are named, or those of a queue
    Cancel(Box<Cancel>),
}

#[derive(Debug, clap::Args)]
struct List {
    /// The queue
    queue: QueueName,

    /// In these states [default: any]
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',')]
    state: Vec<State>,

    #[command(flatten)]
    filters: Filters,

    #[command(flatten)]
    page: Page,

    #[command(flatten)]
    listed: Listed,

    #[command(flatten)]
    remote: Remote,
}

/// Which part of a long list.
#[derive(Debug, clap::Args)]
pub(super) struct Page {
    /// How many to show at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,

    /// Only those behind this one
    #[arg(long, value_name = "TASK", value_parser = task_id)]
    after: Option<TaskId>,
}

#[derive(Debug, clap::Args)]
struct Cancel {
    /// The tasks
    #[arg(value_parser = task_id, value_name = "TASK", required_unless_present = "queue")]
    tasks: Vec<TaskId>,

    /// Those of this queue that the filters let through
    #[arg(long, conflicts_with = "tasks", value_name = "QUEUE")]
    queue: Option<QueueName>,

    /// All of the queue
    #[arg(long, requires = "queue")]
    all: bool,

    /// Those of the queue in these states
    #[arg(
        long,
        value_enum,
        value_name = "STATE",
        value_delimiter = ',',
        requires = "queue",
        conflicts_with = "all"
    )]
    state: Vec<State>,

    #[command(flatten)]
    filters: Filters,

    /// How long workers may take to stop [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = grace)]
    grace: Option<u64>,

    #[command(flatten)]
    consent: Consent,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

/// The states of a task.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Waits for its time
    Scheduled,
    /// Waits for a worker
    Queued,
    /// Is with a worker
    Leased,
    /// Waits out a back-off
    Retrying,
    /// Was acknowledged
    Done,
    /// Used up its attempts, or was refused for good
    Dead,
    /// Was cancelled
    Cancelled,
    /// Outlived its time to live
    Expired,
}

fn states(states: &[State]) -> Option<String> {
    let words: Vec<String> =
        states.iter().filter_map(|state| Some(state.to_possible_value()?.get_name().to_owned())).collect();
    (!words.is_empty()).then(|| words.join(","))
}

/// How long a worker may take to stop.
pub(super) fn grace(text: &str) -> Result<u64, String> {
    match span::parse(text)? {
        ms @ 0..=3_600_000 => Ok(ms),
        _ => Err("expected at most 1h".into()),
    }
}

/// So many are asked for at a time.
const PAGE: u64 = 100;

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command {
        Command::List(list) => {
            let path = list.filters.query(Path::new(format!("/v1/queues/{}/tasks", list.queue)))?;
            let path = path.with_some("state", states(&list.state)).build();
            let (tasks, next) = pages(&Api::at(&list.remote)?, &path, &list.page).await?;
            print_tasks(&tasks, next.as_deref(), list.listed)?;
        }
        Command::Show { task, payload, shown, remote } => {
            let path = Path::new(format!("/v1/tasks/{task}")).with_some("payload", payload.then_some(true));
            let answer = Api::at(&remote)?.get(&path.build()).await?;
            if payload && answer.value["headers"].is_null() {
                hint("its payload is forgotten: the task has ended");
            }
            match shown.output {
                Output::Json => answer.print()?,
                Output::Table => print_line(&describe(&answer.value, output::terminal_width()))?,
            }
        }
        Command::Cancel(cancel) => return self::cancel(*cancel).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// One page of a list.
#[derive(serde::Deserialize)]
struct Part {
    /// As they came: what workers answered stays what it is.
    tasks: Vec<Box<RawValue>>,
    next: Option<String>,
}

/// A list, page by page, until there is enough; and where it goes on.
pub(super) async fn pages(
    api: &Api<'_>,
    path: &str,
    page: &Page,
) -> Result<(Vec<Box<RawValue>>, Option<String>), Failed> {
    let mut tasks = Vec::new();
    let mut after = page.after.map(|task| task.to_string());
    loop {
        let left = page.limit - tasks.len() as u64;
        let asked = Path::new(path).with("limit", left.min(PAGE)).with_some("after", after.as_ref());
        let answer = api.get(&asked.build()).await?;
        let part: Part = serde_json::from_str(&answer.text)
            .map_err(|error| Failed::other(format!("the broker sent no list of tasks: {error}")))?;
        tasks.extend(part.tasks.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)));
        let next = part.next;
        match next {
            // A page may be empty and yet not the last; one that leads to itself would be asked for for ever.
            Some(next) if (tasks.len() as u64) < page.limit && after.as_ref() != Some(&next) => {
                after = Some(next);
            }
            next => return Ok((tasks, next)),
        }
    }
}

pub(super) fn print_tasks(tasks: &[Box<RawValue>], next: Option<&str>, listed: Listed) -> Result<(), Failed> {
    let read = || tasks.iter().map(|task| output::read(task.get()).unwrap_or_default());
    match listed.output {
        ListOutput::Json => {
            let tasks: Vec<&str> = tasks.iter().map(|task| task.get()).collect();
            print_line(&pretty(&format!("{{\"tasks\":[{}],\"next\":{}}}", tasks.join(","), json!(next))))?;
        }
        ListOutput::Id => {
            for task in read() {
                print_line(&clean(&text(&task["task"])))?;
            }
        }
        ListOutput::Table => {
            print_line(&table(&read().collect::<Vec<_>>(), output::terminal_width()))?;
        }
    }
    if let Some(next) = next {
        hint(&format!("there are more: --after {next}"));
    }
    Ok(())
}

/// The table of tasks.
pub(super) fn table(tasks: &[Value], terminal: Option<u16>) -> String {
    if tasks.is_empty() {
        return "no such tasks".into();
    }
    let mut listing = Listing::new(&[
        Column::text("TASK"),
        Column::text("STATE"),
        Column::number("ATTEMPT"),
        Column::number("AGE"),
        Column::text("WORKER").cut().leaves(1),
        Column::text("ERROR").cut(),
    ]);
    for task in tasks {
        listing.row([
            text(&task["task"]),
            text(&task["state"]),
            format!("{}/{}", number(&task["attempt"]), number(&task["max_attempts"])),
            task["age_ms"].as_u64().map_or_else(|| "-".into(), span::short),
            text_or_dash(&task["worker"]),
            text_or_dash(&task["error"]),
        ]);
    }
    listing.render(terminal)
}

/// All that is known of a task.
fn describe(task: &Value, terminal: Option<u16>) -> String {
    let mut facts = Facts::default();
    facts.add("Task", text(&task["task"]));
    facts.add("Queue", text(&task["queue"]));
    facts.add("State", text(&task["state"]));
    facts.add("Attempt", format!("{} of {}", number(&task["attempt"]), number(&task["max_attempts"])));
    facts.add("Age", task["age_ms"].as_u64().map_or_else(|| "-".into(), span::short));
    if let Some(worker) = task["worker"].as_str() {
        facts.add("Worker", worker);
    }
    if let Some(error) = task["error"].as_str() {
        facts.add("Error", error);
    }
    if let Some(result) = result(task) {
        facts.add("Result", result);
    }
    if let Some(headers) = task["headers"].as_object().filter(|headers| !headers.is_empty()) {
        let pairs: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
        facts.add("Headers", pairs.join(" "));
    }
    if let Some(base64) = task["payload_b64"].as_str() {
        facts.add("Payload", format!("{base64} (bytes, as base64)"));
    } else if let Some(payload) = task.get("payload") {
        facts.add("Payload", payload.to_string());
    }
    let mut listing = Listing::new(&[
        Column::number("ATTEMPT"),
        Column::text("REASON"),
        Column::text("WORKER").cut(),
        Column::text("ERROR").cut(),
    ]);
    for attempt in task["history"].as_array().into_iter().flatten() {
        listing.row([
            number(&attempt["attempt"]),
            text(&attempt["reason"]),
            text_or_dash(&attempt["worker"]),
            text_or_dash(&attempt["error"]),
        ]);
    }
    match listing.is_empty() {
        true => facts.render(),
        false => format!("{}\n\n{}", facts.render(), listing.render(terminal)),
    }
}

/// What came of a task, as JSON, or how many bytes; none: nothing.
pub(super) fn result(of: &Value) -> Option<String> {
    if let Some(base64) = of["result_b64"].as_str() {
        return Some(format!("{base64} (bytes, as base64)"));
    }
    (!of["result"].is_null()).then(|| of["result"].to_string())
}

async fn cancel(cancel: Cancel) -> Result<ExitCode, Failed> {
    let api = Api::at(&cancel.remote)?;
    let Some(queue) = &cancel.queue else {
        if !cancel.filters.is_empty() {
            return Err(Failed::usage("filters are for the tasks of a queue: name it with --queue"));
        }
        return cancel_each(&api, &cancel).await;
    };
    let states = states(&cancel.state);
    if !cancel.all && states.is_none() && cancel.filters.is_empty() {
        return Err(Failed::usage(format!(
            "which tasks of {queue}? Say so with --state or another filter, or --all if all are meant"
        )));
    }
    if cancel.all && !cancel.filters.is_empty() {
        return Err(Failed::usage("--all and a filter cannot both be meant: give one of them"));
    }
    let which = match (cancel.all, &states) {
        (true, _) => "all tasks".to_owned(),
        (false, Some(states)) => format!("the {states} tasks that were described"),
        (false, None) => "the tasks that were described".to_owned(),
    };
    cancel.consent.to(&format!("cancel {which} of queue {queue}"))?;
    let path = Path::new(format!("/v1/queues/{queue}/tasks")).with_some("all", cancel.all.then_some(true));
    let path = cancel.filters.query(path.with_some("state", states).with_some("grace_ms", cancel.grace))?;
    let answer = api.delete(&path.build()).await?;
    let number = |name: &str| answer.value[name].as_u64().unwrap_or(0);
    let mut words = format!("{} cancelled", count(number("cancelled"), "task"));
    if number("stopping") > 0 {
        words += &format!(", {} being stopped", number("stopping"));
    }
    super::queues::done(&answer, cancel.shown, &words)?;
    Ok(ExitCode::SUCCESS)
}

/// One after the other: what is wrong with one does not keep the others.
async fn cancel_each(api: &Api<'_>, cancel: &Cancel) -> Result<ExitCode, Failed> {
    let (mut answers, mut failures) = (Vec::new(), 0);
    for task in &cancel.tasks {
        let path = Path::new(format!("/v1/tasks/{task}")).with_some("grace_ms", cancel.grace).build();
        match (api.delete(&path).await, cancel.shown.output) {
            (Ok(answer), Output::Json) => answers.push(answer.value),
            (Ok(answer), Output::Table) => {
                let state = match answer.status {
                    202 => format!("{}, being stopped", text(&answer.value["state"])),
                    _ => text(&answer.value["state"]),
                };
                print_line(&format!("{task}  {}", clean(&state)))?;
            }
            (Err(failed), _) => {
                failures += 1;
                complain(&format!("{task}: {}", failed.message));
            }
        }
    }
    if cancel.shown.output == Output::Json {
        print_line(&pretty(&json!({"tasks": answers}).to_string()))?;
    }
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Value {
        json!({
            "task": "0198c0de-0000-7000-8000-000000000001", "queue": "emails", "state": "retrying", "attempt": 2,
            "max_attempts": 5, "age_ms": 61_000, "worker": null, "result": null,
            "error": "smtp: 451 try later\nand then once more, with feeling, at length",
            "history": [
                {"attempt": 1, "worker": "mailer-1", "reason": "nack", "error": "smtp: 451 try later\nand then"},
            ],
        })
    }

    #[test]
    fn the_table_fits_its_terminal() {
        let text = table(&[task()], None);
        assert!(
            text.contains("TASK") && text.contains("2/5") && text.contains("with feeling, at length"),
            "{text}"
        );
        for width in [80, 120] {
            let text = table(&[task(), task()], Some(width));
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{width}:\n{text}");
            assert!(text.contains("0198c0de-0000-7000-8000-000000000001  retrying"), "{text}");
        }
        assert_eq!(table(&[], Some(80)), "no such tasks");
    }

    #[test]
    fn a_task_is_described() {
        let text = describe(&task(), Some(80));
        for line in ["State:    retrying", "Attempt:  2 of 5", "Age:      1 min"] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        assert!(text.contains("try later\\nand then") && text.contains("mailer-1"), "{text}");
        let mut full = task();
        full["payload"] = json!({"to": "a@example.org"});
        full["headers"] = json!({"trace": "7"});
        let text = describe(&full, Some(80));
        for line in ["Headers:  trace=7", "Payload:  {\"to\":\"a@example.org\"}"] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
        assert_eq!(result(&json!({"result_b64": "AAE="})).as_deref(), Some("AAE= (bytes, as base64)"));
        assert_eq!(result(&json!({"result": {"a": 1}})).as_deref(), Some("{\"a\":1}"));
        assert_eq!(result(&json!({"result": null})), None);
    }
}
