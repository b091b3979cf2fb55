//! `taskyard submit`

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use taskyard_client::{Client, SubmitError};
use taskyard_proto::message::{Attempts, DelayMs, Priority, TimeoutMs, TtlMs};
use taskyard_proto::{
    Finished, GroupName, Headers, IfAbsent, Payload, QueueName, Submit, Target, TaskState, WorkerName,
};

use super::{Failed, Remote, print};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The queue; made by its first task
    queue: QueueName,

    /// The payload as JSON; standard input as bytes if neither this nor --file is given
    #[arg(value_name = "JSON", conflicts_with = "file")]
    json: Option<String>,

    /// The payload as bytes of a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Wait for the task's end and print its result; exit code 1 if it was not done
    #[arg(long)]
    wait: bool,

    /// Only for the worker of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["group", "all"])]
    worker: Option<WorkerName>,

    /// Only for a worker of this group; with --all for each of them
    #[arg(long, value_name = "NAME")]
    group: Option<GroupName>,

    /// For every worker that is subscribed now
    #[arg(long)]
    all: bool,

    /// 0 to 9, higher first
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=9))]
    priority: Option<u64>,

    /// Not before so many milliseconds have passed
    #[arg(long, value_name = "MS")]
    delay_ms: Option<u64>,

    /// Of no more use after so many milliseconds
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,

    /// How long a worker may keep silent
    #[arg(long, value_name = "MS")]
    ack_timeout_ms: Option<u64>,

    /// How many attempts
    #[arg(long, value_name = "N")]
    max_attempts: Option<u64>,

    /// A header for the worker; may be given several times
    #[arg(long = "header", value_name = "KEY=VALUE")]
    headers: Vec<String>,

    #[command(flatten)]
    remote: Remote,
}

/// A number of the command line, if it is in the protocol's range.
fn ranged<T>(
    name: &str,
    value: Option<u64>,
    new: impl Fn(u64) -> Option<T>,
    range: &str,
) -> Result<Option<T>, Failed> {
    match value {
        None => Ok(None),
        Some(value) => match new(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Failed::usage(format!("--{name}: expected {range}, got {value}"))),
        },
    }
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let payload = payload(&args)?;
    let mut submit = Submit::new(args.queue.clone(), payload);
    let year = "0 to 31536000000 (365 days)";
    submit.priority = args.priority.and_then(Priority::new);
    submit.delay_ms = ranged("delay-ms", args.delay_ms, DelayMs::new, year)?;
    submit.ttl_ms = ranged("ttl-ms", args.ttl_ms, TtlMs::new, "1 to 31536000000 (365 days)")?;
    submit.ack_timeout_ms =
        ranged("ack-timeout-ms", args.ack_timeout_ms, TimeoutMs::new, "100 to 86400000 (a day)")?;
    submit.max_attempts = ranged("max-attempts", args.max_attempts, Attempts::new, "1 to 1000")?;
    submit.headers = headers(&args.headers)?;
    submit.to = match (args.worker.clone(), args.group.clone(), args.all) {
        (Some(worker), _, _) => Some(Target::Worker { worker, if_absent: IfAbsent::Wait }),
        (None, group, true) => Some(Target::All(group)),
        (None, Some(group), false) => Some(Target::Group(group)),
        (None, None, false) => None,
    };
    let client =
        Client::connect(args.remote.options()?).await.map_err(|error| args.remote.unreachable(&error))?;
    if args.wait {
        let finished = client.submit_and_wait(submit).await.map_err(refused)?;
        client.close().await;
        return conclude(&finished);
    }
    let accepted = client.submit(submit).await.map_err(refused)?;
    client.close().await;
    print(format!("{}\n", accepted.task).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn refused(error: SubmitError) -> Failed {
    Failed::other(format!("the task was not confirmed: {error}"))
}

fn payload(args: &Args) -> Result<Payload, Failed> {
    if let Some(text) = &args.json {
        return Payload::json_text(text).map_err(|error| {
            Failed::usage(format!(
                "the payload {text:?}: {error}; quote JSON text as '\"text\"', or give bytes with --file"
            ))
        });
    }
    if let Some(path) = &args.file {
        let bytes =
            std::fs::read(path).map_err(|e| Failed::usage(format!("cannot read {}: {e}", path.display())))?;
        return Ok(Payload::binary(bytes));
    }
    if std::io::stdin().is_terminal() {
        return Ok(Payload::NULL);
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| Failed::usage(format!("cannot read standard input: {e}")))?;
    Ok(Payload::binary(bytes))
}

fn headers(pairs: &[String]) -> Result<Headers, Failed> {
    let pairs = pairs
        .iter()
        .map(|pair| {
            pair.split_once('=')
                .ok_or_else(|| Failed::usage(format!("--header {pair:?}: expected KEY=VALUE")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Headers::from_pairs(pairs).map_err(|error| Failed::usage(format!("--header: {error}")))
}

fn conclude(finished: &Finished) -> Result<ExitCode, Failed> {
    if let (Some(acked), Some(failed)) = (finished.acked, finished.failed) {
        let mut lines = String::new();
        for outcome in finished.recipients.iter().flat_map(|list| &list.0) {
            lines.push_str(&format!("{}\t{}\t{}\n", outcome.worker, outcome.state, outcome.result.to_json()));
        }
        print(lines.as_bytes())?;
        if finished.state != TaskState::Done {
            return Err(Failed::other(format!(
                "the task is {}: {acked} acknowledged it, {failed} did not",
                finished.state
            )));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if finished.state == TaskState::Done {
        print(&finished.result.to_plain_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let why = finished.error.as_ref().map_or("no reason was given", |error| error.as_str());
    Err(Failed::other(format!("the task is {} after {} attempts: {why}", finished.state, finished.attempts)))
}
