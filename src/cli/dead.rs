//! `taskyard dead`: the tasks that used up their attempts.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Map, Value, json};
use taskyard_proto::{QueueName, TaskId};

use super::api::{Answer, Api, Path};
use super::filters::{Filters, task_id};
use super::output::{Consent, Listed, Output, Shown, complain, count, pretty, print_line};
use super::tasks::{Page, pages, print_tasks};
use super::{Failed, Remote};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the dead letters of a queue
    List {
        /// The queue
        queue: QueueName,

        #[command(flatten)]
        filters: Filters,

        #[command(flatten)]
        page: Page,

        #[command(flatten)]
        listed: Listed,

        #[command(flatten)]
        remote: Remote,
    },
    /// Give dead letters new attempts: those that are named, those of the filters, or all
    Redrive {
        /// The queue
        queue: QueueName,

        /// The tasks
        #[arg(value_parser = task_id, value_name = "TASK")]
        tasks: Vec<TaskId>,

        #[command(flatten)]
        filters: Filters,

        /// So many a second [default: all at once]
        #[arg(long, value_name = "N", value_parser = super::queues::rate)]
        rate: Option<f64>,

        #[command(flatten)]
        shown: Shown,

        #[command(flatten)]
        remote: Remote,
    },
    /// Forget dead letters for good
    Delete {
        /// The queue
        queue: QueueName,

        /// The tasks
        #[arg(value_parser = task_id, value_name = "TASK")]
        tasks: Vec<TaskId>,

        /// All of the queue
        #[arg(long, conflicts_with = "tasks")]
        all: bool,

        #[command(flatten)]
        filters: Filters,

        #[command(flatten)]
        consent: Consent,

        #[command(flatten)]
        shown: Shown,

        #[command(flatten)]
        remote: Remote,
    },
}

/// So many tasks are named in one request: a list of the protocol's has at most 1024 items.
const TASKS_AT_ONCE: usize = 1000;

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command {
        Command::List { queue, filters, page, listed, remote } => {
            let path = filters.query(Path::new(format!("/v1/queues/{queue}/dead")))?.build();
            let (tasks, next) = pages(&Api::at(&remote)?, &path, &page).await?;
            print_tasks(&tasks, next.as_deref(), listed)?;
        }
        Command::Redrive { queue, tasks, filters, rate, shown, remote } => {
            let api = Api::at(&remote)?;
            let path = format!("/v1/queues/{queue}/dead/redrive");
            let mut redriven = 0;
            for body in redrives(&tasks, &filters, rate)? {
                let answer = api.post(&path, Value::from(body)).await?;
                redriven += answer.value["redriven"].as_u64().unwrap_or(0);
            }
            conclude(shown, "redriven", redriven)?;
        }
        Command::Delete { queue, tasks, all, filters, consent, shown, remote } => {
            let api = Api::at(&remote)?;
            let path = format!("/v1/queues/{queue}/dead");
            let deleted = |answer: &Answer| answer.value["deleted"].as_u64().unwrap_or(0);
            if let Some(which) = selection(&queue, &tasks, all, &filters)? {
                consent.to(&format!("delete {which} of queue {queue}, for good"))?;
                let path = Path::new(path).with_some("all", all.then_some(true));
                let answer = api.delete(&filters.query(path)?.build()).await?;
                conclude(shown, "deleted", deleted(&answer))?;
                return Ok(ExitCode::SUCCESS);
            }
            let (mut number, mut failures) = (0, 0);
            for task in tasks {
                match api.delete(&format!("{path}/{task}")).await {
                    Ok(answer) => number += deleted(&answer),
                    Err(failed) => {
                        failures += 1;
                        complain(&format!("{task}: {}", failed.message));
                    }
                }
            }
            conclude(shown, "deleted", number)?;
            if failures > 0 {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Which dead letters a delete is of, in words; none: of those that are named.
fn selection(
    queue: &QueueName,
    tasks: &[TaskId],
    all: bool,
    filters: &Filters,
) -> Result<Option<&'static str>, Failed> {
    match (tasks.is_empty(), all, filters.is_empty()) {
        (false, false, true) => Ok(None),
        (true, true, true) => Ok(Some("all dead letters")),
        (true, false, false) => Ok(Some("the dead letters that were described")),
        (true, false, true) => Err(Failed::usage(format!(
            "which dead letters of {queue}? Name them, or say so with a filter, or --all if all are meant"
        ))),
        _ => Err(Failed::usage("tasks, filters and --all cannot be meant together: give one of them")),
    }
}

/// The bodies of the requests that a redrive takes.
fn redrives(
    tasks: &[TaskId],
    filters: &Filters,
    rate: Option<f64>,
) -> Result<Vec<Map<String, Value>>, Failed> {
    if !tasks.is_empty() && !filters.is_empty() {
        return Err(Failed::usage("tasks and filters cannot both be meant: give one of them"));
    }
    let mut bodies: Vec<Map<String, Value>> = tasks
        .chunks(TASKS_AT_ONCE)
        .map(|tasks| {
            let tasks: Vec<Value> = tasks.iter().map(|task| task.to_string().into()).collect();
            Map::from_iter([("tasks".to_owned(), tasks.into())])
        })
        .collect();
    if bodies.is_empty() {
        bodies.push(filters.body()?);
    }
    for body in bodies.iter_mut() {
        body.extend(rate.map(|rate| ("rate_per_s".to_owned(), rate.into())));
    }
    Ok(bodies)
}

fn conclude(shown: Shown, verb: &str, number: u64) -> Result<(), Failed> {
    match shown.output {
        Output::Json => print_line(&pretty(&json!({verb: number}).to_string())),
        Output::Table => print_line(&format!("{} {verb}", count(number, "task"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redrive_is_of_tasks_or_of_filters() {
        let none = Filters::default();
        let tasks: Vec<TaskId> = (0..1001).map(TaskId).collect();
        let bodies = redrives(&tasks, &none, Some(2.5)).expect("good usage");
        let sizes: Vec<_> = bodies.iter().map(|body| body["tasks"].as_array().map(Vec::len)).collect();
        assert_eq!(sizes, [Some(1000), Some(1)]);
        assert_eq!(bodies[1]["rate_per_s"], 2.5);
        assert_eq!(bodies[1]["tasks"][0], TaskId(1000).to_string());
        let all = redrives(&[], &none, None).expect("good usage");
        assert_eq!(all, [Map::new()]);
    }

    #[test]
    fn a_delete_says_what_it_is_of() {
        let queue = QueueName::parse("q").expect("a name");
        let none = Filters::default();
        assert_eq!(selection(&queue, &[TaskId(1)], false, &none).expect("good usage"), None);
        assert!(selection(&queue, &[], true, &none).expect("good usage").is_some());
        assert!(selection(&queue, &[], false, &none).is_err_and(|failed| failed.message.contains("--all")));
        assert!(selection(&queue, &[TaskId(1)], true, &none).is_err());
    }
}
