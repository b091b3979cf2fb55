//! `taskyard submit`

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use taskyard_client::{Client, SubmitError};
use taskyard_proto::codec::encode_body;
use taskyard_proto::message::{Key, RunAt};
use taskyard_proto::{Encoding, Finished, Payload, QueueName, ServerMessage, Submit, TaskState};

use super::options::{self, Options};
use super::output::{Output, count, pretty, print_line};
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

    /// Tells this submit from a new one if it is said again: within 10 minutes it is the same task
    #[arg(long, value_name = "ID", value_parser = options::key)]
    dedup_id: Option<Key>,

    /// Not before this point in time, as 2030-01-31T08:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with_all = ["delay", "delay_ms"], value_parser = options::run_at)]
    run_at: Option<RunAt>,

    #[command(flatten)]
    options: Options,

    /// How to print what came of it [default: the id, or with --wait the result]
    #[arg(long, short, value_enum)]
    output: Option<Output>,

    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let payload = payload(args.json.as_deref(), args.file.as_deref())?;
    let mut submit = Submit::new(args.queue.clone(), payload);
    args.options.apply(&mut submit)?;
    submit.dedup_id = args.dedup_id.clone();
    submit.run_at = args.run_at.clone();
    let client =
        Client::connect(args.remote.options()?).await.map_err(|error| args.remote.unreachable(&error))?;
    if args.wait {
        let finished = client.submit_and_wait(submit).await.map_err(refused)?;
        client.close().await;
        return match args.output {
            Some(Output::Json) => {
                print_message(finished.clone())?;
                Ok(if finished.state == TaskState::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            _ => conclude(&finished),
        };
    }
    let accepted = client.submit(submit).await.map_err(refused)?;
    client.close().await;
    match args.output {
        Some(Output::Json) => print_message(accepted)?,
        _ => print(format!("{}\n", accepted.task).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An answer as it is over HTTP.
fn print_message(message: impl Into<ServerMessage>) -> Result<(), Failed> {
    let body = encode_body(Encoding::Json, &message.into());
    print_line(&pretty(&String::from_utf8_lossy(&body)))
}

fn refused(error: SubmitError) -> Failed {
    Failed::other(format!("the task was not confirmed: {error}"))
}

/// What is submitted: JSON text, a file's bytes, or those of standard input.
pub(super) fn payload(json: Option<&str>, file: Option<&Path>) -> Result<Payload, Failed> {
    if let Some(text) = json {
        return Payload::json_text(text).map_err(|error| {
            Failed::usage(format!(
                "the payload {text:?}: {error}; quote JSON text as '\"text\"', or give bytes with --file"
            ))
        });
    }
    if let Some(path) = file {
        let bytes =
            std::fs::read(path).map_err(|e| Failed::usage(format!("cannot read {}: {e}", path.display())))?;
        return Ok(Payload::binary(bytes));
    }
    if std::io::stdin().is_terminal() {
        return Ok(Payload::NULL);
    }
    Ok(Payload::binary(standard_input()?))
}

/// All of standard input.
pub(super) fn standard_input() -> Result<Vec<u8>, Failed> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|e| Failed::usage(format!("cannot read standard input: {e}")))?;
    Ok(bytes)
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
        let result = finished.result.to_plain_bytes();
        print(&result)?;
        // A prompt begins a line of its own; a pipe or a file gets what the worker said, to the byte.
        if std::io::stdout().is_terminal() && !result.is_empty() && !result.ends_with(b"\n") {
            print(b"\n")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let why = finished.error.as_ref().map_or("no reason was given", |error| error.as_str());
    let attempts = count(finished.attempts, "attempt");
    Err(Failed::other(format!("the task is {} after {attempts}: {why}", finished.state)))
}
