//! The command line: one binary that is broker, producer, worker and observer.

mod config;
mod serve;
mod status;
mod store;
mod submit;
mod work;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use taskyard_client::ConnectError;

/// Distributes tasks to workers in real time, over WebSocket, and loses none.
#[derive(Debug, Parser)]
#[command(name = "taskyard", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker
    Serve(serve::Args),
    /// Submit a task; prints its id, or with --wait its result
    Submit(submit::Args),
    /// Run a command for each task: payload on stdin, stdout is the result, a failure is a nack
    Work(work::Args),
    /// Show queues and workers
    Status(status::Args),
    /// Show or check a configuration
    Config(config::Args),
    /// Look after a store whose broker is stopped
    Store(store::Args),
}

/// Where the broker is.
#[derive(Debug, Clone, clap::Args)]
struct Remote {
    /// The broker
    #[arg(long, env = "TASKYARD_URL", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    url: String,

    /// A token, if the broker asks for one: only from the environment, so that no process list shows it
    #[arg(skip = std::env::var("TASKYARD_TOKEN").ok())]
    token: Option<String>,
}

/// What ends a command that cannot do what it was asked.
#[derive(Debug)]
struct Failed {
    message: String,
    code: u8,
}

impl Failed {
    /// Bad usage, or a configuration that cannot be.
    fn usage(message: impl ToString) -> Failed {
        Failed { message: message.to_string(), code: 2 }
    }

    /// Anything else.
    fn other(message: impl ToString) -> Failed {
        Failed { message: message.to_string(), code: 1 }
    }
}

impl Remote {
    fn options(&self) -> Result<taskyard_client::ClientOptions, Failed> {
        let options = taskyard_client::ClientOptions::new(&self.url).map_err(Failed::usage)?;
        let options = options.program(concat!("taskyard ", env!("CARGO_PKG_VERSION")));
        Ok(match &self.token {
            Some(token) => options.token(token),
            None => options,
        })
    }

    /// Says what to do about a broker that does not answer.
    fn unreachable(&self, error: &ConnectError) -> Failed {
        let refused =
            matches!(error, ConnectError::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused);
        if refused {
            let text = format!(
                "no broker answers at {}: start one with `taskyard serve`, or name another with --url or TASKYARD_URL",
                self.url
            );
            return Failed::other(text);
        }
        Failed::other(format!("cannot reach the broker at {}: {error}", self.url))
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Config(args) => config::run(args),
        Command::Store(args) => store::run(&args),
        Command::Submit(args) => on_one_thread(submit::run(args)),
        Command::Work(args) => on_one_thread(work::run(args)),
        Command::Status(args) => on_one_thread(status::run(args)),
    };
    match result {
        Ok(code) => code,
        Err(failed) => {
            #[expect(clippy::print_stderr, reason = "the last word of a command goes to its user")]
            {
                eprintln!("taskyard: {}", failed.message);
            }
            ExitCode::from(failed.code)
        }
    }
}

/// Runs a client command: one connection needs no second thread.
fn on_one_thread(command: impl Future<Output = Result<ExitCode, Failed>>) -> Result<ExitCode, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failed::other(format!("cannot start: {e}")))?;
    let result = runtime.block_on(command);
    // A read of standard input that is still under way must not hold the process up.
    runtime.shutdown_background();
    result
}

/// Writes to standard output; a reader that has gone ends the command without a word, as pipes do.
fn print(bytes: &[u8]) -> Result<(), Failed> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failed::other(format!("cannot write to standard output: {error}"))),
    }
}

/// Logs to standard error: for people on a terminal, JSON otherwise. `RUST_LOG` says how much.
fn start_logging() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        logs.with_target(false).init();
    } else {
        logs.json().flatten_event(true).init();
    }
}

/// Completes at SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            // Without a handler the signal ends the process by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}
