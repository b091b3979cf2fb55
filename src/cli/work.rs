//! `taskyard work`

use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskyard_client::{Delivery, Failure, Reconnect, Settle, Worker, WorkerError, WorkerEvent};
use taskyard_proto::{GroupName, Payload, QueueName, WorkerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Failed, Remote, interrupted, start_logging};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The queue; made if there is none
    queue: QueueName,

    /// How many tasks at once
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    concurrency: u64,

    /// This worker's name; made up if not given
    #[arg(long)]
    name: Option<WorkerName>,

    /// A group that this worker is in; may be given several times
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<GroupName>,

    /// How long running commands may take after a signal to stop, in milliseconds
    #[arg(long, default_value_t = 30_000, value_name = "MS")]
    grace_ms: u64,

    /// Wait for a broker that does not answer yet
    #[arg(long)]
    wait_for_broker: bool,

    /// The command, and its arguments. It finds TASKYARD_TASK, TASKYARD_QUEUE, TASKYARD_ATTEMPT and
    /// TASKYARD_REDELIVERED in its environment
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,

    #[command(flatten)]
    remote: Remote,
}

/// How much of a command's output is a result: more would not fit into a message anyway.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// How much of a failed command's last words goes into the error.
const ERROR_TAIL: usize = 2000;

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    // A mistyped command must not cost the queue's tasks their attempts.
    find_program(&args.command[0])?;
    start_logging();
    let mut options =
        args.remote.options()?.reconnect(Reconnect::Always).wait_for_broker(args.wait_for_broker);
    options = options.groups(args.groups.clone());
    if let Some(name) = args.name.clone() {
        options = options.worker(name);
    }
    let command = Arc::new(args.command.clone());
    let worker = Worker::new(options, args.queue.clone())
        .concurrency(args.concurrency as usize)
        .settle(Settle::Confirmed)
        .grace(Duration::from_millis(args.grace_ms))
        .on_event(log_event);
    let handler = move |delivery: Delivery| {
        let command = command.clone();
        async move { run_command(&command, delivery).await }
    };
    match worker.run(handler, interrupted()).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(WorkerError::Connect(error)) => Err(args.remote.unreachable(&error)),
        Err(error) => Err(Failed::other(format!("the worker ended: {error}"))),
    }
}

fn log_event(event: WorkerEvent) {
    match event {
        WorkerEvent::Connected { .. } => tracing::info!("connected"),
        WorkerEvent::Disconnected { closed, held: 0, .. } => {
            tracing::warn!(code = closed.code, "the connection ended: {}", closed.reason);
        }
        WorkerEvent::Disconnected { closed, held, .. } => {
            tracing::warn!(
                code = closed.code,
                "the connection ended: {}; {held} deliveries go on, and are this worker's still if it is back in time",
                closed.reason
            );
        }
        WorkerEvent::ConnectFailed { error, .. } => tracing::warn!("cannot connect: {error}"),
        WorkerEvent::LeaseLost { task, .. } => {
            tracing::warn!(%task, "the lease is lost: the task went on without this worker");
        }
        WorkerEvent::Draining => tracing::info!("taking no more tasks; finishing what is held"),
        WorkerEvent::Error { message, .. } => tracing::warn!("{message}"),
        other => tracing::warn!("{other:?}"),
    }
}

/// Whether the command can be run at all, as the shell would look for it.
fn find_program(program: &str) -> Result<(), Failed> {
    use std::os::unix::fs::PermissionsExt as _;
    let runs =
        |path: &Path| path.metadata().is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0);
    let found = if program.contains('/') {
        runs(Path::new(program))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| runs(&directory.join(program)))
    };
    if found {
        return Ok(());
    }
    Err(Failed::usage(format!("cannot run {program:?}: there is no such program; no task was taken")))
}

/// After a command could not be started its task waits so long: the fault is this worker's.
const RELEASE_DELAY: Duration = Duration::from_secs(1);

/// A running command, with all that it started. Dropped, they are killed: the task is no longer ours.
struct Running(Option<rustix::process::Pid>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Runs the command on one task.
async fn run_command(command: &[String], delivery: Delivery) -> Result<Payload, Failure> {
    let (program, arguments) = command.split_first().expect("the command line wants a command");
    let mut child = Command::new(program)
        .args(arguments)
        .env("TASKYARD_TASK", delivery.task.to_string())
        .env("TASKYARD_QUEUE", delivery.queue.as_str())
        .env("TASKYARD_ATTEMPT", delivery.attempt.to_string())
        .env("TASKYARD_REDELIVERED", if delivery.redelivered { "1" } else { "0" })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: a ^C is for the worker, which lets the command finish.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            tracing::warn!(task = %delivery.task, "cannot run {program:?}: {error}; the task goes back");
            Failure::Release { delay_ms: Some(RELEASE_DELAY.as_millis() as u64) }
        })?;
    let mut running = Running(child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)));
    let input = delivery.payload().to_plain_bytes();
    let mut stdin = child.stdin.take().expect("it was piped");
    let mut stdout = child.stdout.take().expect("it was piped");
    let mut stderr = child.stderr.take().expect("it was piped");
    let feed = async move {
        // A command need not read what it is given.
        let _ = stdin.write_all(&input).await;
        drop(stdin);
    };
    let whole = async {
        let (out, err) = (async { read(&mut stdout).await }, async { read(&mut stderr).await });
        let ((), out, err) = tokio::join!(feed, out, err);
        (child.wait().await, out, err)
    };
    let (status, out, err) = tokio::select! {
        whole = whole => whole,
        ending = delivery.stopped() => {
            tracing::warn!(task = %delivery.task, "stopped: {ending:?}");
            return Err(Failure::retry(format!("stopped: {ending:?}")));
        }
    };
    // What it left running in the background is its own.
    running.0 = None;
    let status = status.map_err(|error| Failure::retry(format!("cannot wait for {program:?}: {error}")))?;
    let out =
        out.map_err(|error| Failure::retry(format!("cannot read the output of {program:?}: {error}")))?;
    if !status.success() {
        let err = err.unwrap_or_default();
        let tail = String::from_utf8_lossy(&err[err.len().saturating_sub(ERROR_TAIL)..]).trim().to_owned();
        tracing::warn!(task = %delivery.task, attempt = delivery.attempt, "{program:?} failed: {status}: {tail}");
        let error = if tail.is_empty() { status.to_string() } else { format!("{status}: {tail}") };
        return Err(Failure::retry(error));
    }
    Ok(if out.is_empty() { Payload::NULL } else { Payload::binary(Bytes::from(out)) })
}

async fn read(from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is longer than {OUTPUT_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}
