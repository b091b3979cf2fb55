//! `taskyard status`

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;
use taskyard_client::Endpoint;

use super::{Failed, Remote, print};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    // What is no URL is bad usage, whatever else would fail.
    let options = args.remote.options()?;
    let queues = fetch(&args.remote, options.endpoint(), "/v1/queues").await?;
    let workers = fetch(&args.remote, options.endpoint(), "/v1/workers").await?;
    match args.output {
        Output::Json => {
            let whole = serde_json::json!({"queues": queues["queues"], "workers": workers["workers"]});
            print(format!("{whole:#}\n").as_bytes())?;
        }
        Output::Table => {
            let text =
                format!("{}\n\n{}\n", queue_table(&queues["queues"]), worker_table(&workers["workers"]));
            print(text.as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(remote: &Remote, broker: &Endpoint, path: &str) -> Result<Value, Failed> {
    let (status, body) =
        taskyard_client::http::get_from(broker, path).await.map_err(|error| remote.unreachable(&error))?;
    let value: Value = serde_json::from_slice(&body).map_err(|_| {
        // A broker that expects TLS says so here.
        let text = String::from_utf8_lossy(&body);
        let said: String = text.trim().lines().next().unwrap_or_default().chars().take(100).collect();
        Failed::other(format!(
            "{}{path} answered {status} with something that is no JSON ({said:?}): is it a Taskyard broker?",
            remote.url
        ))
    })?;
    if status != 200 {
        let message = value["message"].as_str().unwrap_or("no reason was given");
        return Err(Failed::other(format!("the broker answered {status}: {message}")));
    }
    Ok(value)
}

fn table(head: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.iter().copied());
    for column in table.column_iter_mut().skip(numbers_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn queue_table(queues: &Value) -> String {
    let queues = queues.as_array().map(Vec::as_slice).unwrap_or_default();
    if queues.is_empty() {
        return "no queues yet: the first task makes one, see `taskyard submit --help`".into();
    }
    let head = [
        "QUEUE",
        "QUEUED",
        "LEASED",
        "RETRYING",
        "SCHEDULED",
        "DEAD",
        "DONE",
        "WORKERS",
        "OLDEST",
        "IN/S",
        "OUT/S",
    ];
    let mut table = table(&head, 1);
    for queue in queues {
        let count = |state: &str| queue["counts"][state].to_string();
        let rate = |name: &str| format!("{:.0}", queue["rates"][name].as_f64().unwrap_or(0.0));
        table.add_row([
            text(&queue["queue"]),
            count("queued"),
            count("leased"),
            count("retrying"),
            count("scheduled"),
            count("dead"),
            count("done"),
            queue["workers"].to_string(),
            queue["oldest_ms"].as_u64().map_or_else(|| "-".into(), span),
            rate("accepted"),
            rate("settled"),
        ]);
    }
    table.to_string()
}

fn worker_table(workers: &Value) -> String {
    let workers = workers.as_array().map(Vec::as_slice).unwrap_or_default();
    if workers.is_empty() {
        return "no workers connected: see `taskyard work --help`".into();
    }
    let mut table = table(&["WORKER", "QUEUES", "GROUPS", "STATE", "IN FLIGHT", "CONNECTED"], 4);
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
        table.add_row([
            text(&worker["worker"]),
            list(&worker["subscriptions"], &|s| {
                format!("{} ({}/{})", text(&s["queue"]), s["unsettled"], s["credit"])
            }),
            list(&worker["groups"], &text),
            state.into(),
            worker["in_flight"].to_string(),
            worker["connected_ms"].as_u64().map_or_else(String::new, span),
        ]);
    }
    table.to_string()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A span of time as people say it.
fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{} min", ms / 60_000),
        3_600_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}
