//! `taskyard workers`, and `drain` beside it.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;
use taskyard_proto::WorkerName;

use super::api::Api;
use super::output::{Column, ListOutput, Listed, Listing, Shown, clean, print_line, text};
use super::queues::done;
use super::{Failed, Remote, span};

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
    /// Show who is connected
    List(List),
    /// Ask a worker to finish what it holds, and give it nothing more
    Drain(Named),
    /// End a worker's session: what it holds goes to others
    Remove(Named),
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    listed: Listed,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// The worker
    worker: WorkerName,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(List { listed, remote }) => {
            let answer = Api::at(&remote)?.get("/v1/workers").await?;
            let workers = answer.list("workers");
            match listed.output {
                ListOutput::Json => answer.print()?,
                ListOutput::Id => {
                    for worker in workers {
                        print_line(&clean(&text(&worker["worker"])))?;
                    }
                }
                ListOutput::Table => print_line(&table(workers, super::output::terminal_width()))?,
            }
        }
        Command::Drain(named) => return drain(named).await,
        Command::Remove(Named { worker, shown, remote }) => {
            let answer = Api::at(&remote)?.delete(&format!("/v1/workers/{worker}")).await?;
            done(&answer, shown, &format!("{worker} is removed"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn drain(named: Named) -> Result<ExitCode, Failed> {
    let Named { worker, shown, remote } = named;
    let answer = Api::at(&remote)?.post(&format!("/v1/workers/{worker}/drain"), "{}").await?;
    done(&answer, shown, &format!("{worker} gets nothing more, and finishes what it holds"))?;
    Ok(ExitCode::SUCCESS)
}

/// The table of workers.
pub(super) fn table(workers: &[Value], terminal: Option<u16>) -> String {
    if workers.is_empty() {
        return "no workers connected: see `taskyard work --help`".into();
    }
    let mut listing = Listing::new(&[
        Column::text("WORKER"),
        Column::text("STATE"),
        Column::number("IN FLIGHT"),
        Column::number("CONNECTED").leaves(2),
        Column::text("QUEUES").cut(),
        Column::text("GROUPS").cut().leaves(3),
        Column::text("CLIENT").cut().leaves(4),
    ]);
    for worker in workers {
        let list = |value: &Value, of: &dyn Fn(&Value) -> String| {
            let parts: Vec<String> = value.as_array().into_iter().flatten().map(of).collect();
            if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
        };
        let state = match (worker["draining"].as_bool(), worker["silent"].as_bool()) {
            (Some(true), _) => "draining",
            (_, Some(true)) => "silent",
            _ => "ready",
        };
        listing.row([
            text(&worker["worker"]),
            state.into(),
            worker["in_flight"].to_string(),
            worker["connected_ms"].as_u64().map_or_else(String::new, span::short),
            list(&worker["subscriptions"], &|s| {
                format!("{} ({}/{})", text(&s["queue"]), s["unsettled"], s["credit"])
            }),
            list(&worker["groups"], &text),
            super::output::text_or_dash(&worker["client"]),
        ]);
    }
    listing.render(terminal)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_fits_its_terminal() {
        let worker = |name: &str, draining: bool| {
            json!({"worker": name, "session": "s1", "groups": ["europe", "gpu"], "labels": {"host": "a7"},
                "client": "mailer 2.3", "connected_ms": 7_200_000, "in_flight": 3, "draining": draining, "silent": false,
                "subscriptions": [{"queue": "emails", "credit": 10, "unsettled": 3},
                    {"queue": "thumbnails-of-the-big-ones", "credit": 10, "unsettled": 0}]})
        };
        let workers = [worker("mailer-1", false), worker("a-worker-with-a-name-that-is-long", true)];
        let wide = table(&workers, None);
        for word in [
            "emails (3/10), thumbnails-of-the-big-ones (0/10)",
            "europe, gpu",
            "draining",
            "2 h",
            "mailer 2.3",
        ] {
            assert!(wide.contains(word), "{word}:\n{wide}");
        }
        for width in [80, 120] {
            let table = table(&workers, Some(width));
            assert!(
                table.lines().all(|line| line.chars().count() <= usize::from(width)),
                "{width}:\n{table}"
            );
            assert!(
                table.contains("emails") && table.contains("a-worker-with-a-name-that-is-long"),
                "{table}"
            );
        }
    }
}
