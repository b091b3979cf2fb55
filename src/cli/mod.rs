//! The command line: one binary that is broker, producer, worker and observer.

mod api;
mod bench;
mod config;
mod dead;
mod explain;
mod filters;
mod health;
mod options;
mod output;
mod publish;
mod queues;
mod schedules;
mod serve;
mod span;
mod sse;
mod status;
mod store;
mod submit;
mod tasks;
mod token;
mod top;
mod watch;
mod work;
mod workers;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use taskyard_client::{ConnectError, TlsErrorKind};

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
    Submit(Box<submit::Args>),
    /// Run a command for each task: payload on stdin, stdout is the result, a failure is a nack
    Work(work::Args),
    /// Follow what happens to a task; exit code 0 if it was done, 1 otherwise
    Watch(watch::Args),
    /// Say something in a room
    Publish(publish::Args),
    /// Show queues and workers
    Status(status::Args),
    /// Watch queues, rates and latencies live
    Top(Box<top::Args>),
    /// Measure this machine, or a broker, for a few seconds
    Bench(bench::Args),
    /// Say whether a broker is ready; exit code 0 if it is, 1 otherwise
    Health(Box<health::Args>),
    /// Show and look after queues
    Queues(Box<queues::Args>),
    /// Show and cancel tasks
    Tasks(tasks::Args),
    /// Say why a task is not with a worker
    Explain(explain::Args),
    /// Show, redrive and delete dead letters: tasks that used up their attempts
    Dead(dead::Args),
    /// Show and look after workers
    Workers(workers::Args),
    /// Show and look after schedules: tasks that are submitted again and again
    Schedules(schedules::Args),
    /// Deliver nothing from a queue for a while; short for `queues pause`
    Pause(queues::Pause),
    /// Deliver from a queue again; short for `queues unpause`
    #[command(visible_alias = "resume")]
    Unpause(queues::Unpause),
    /// Ask a worker to finish what it holds, and give it nothing more; short for `workers drain`
    Drain(workers::Named),
    /// Show or check a configuration
    Config(config::Args),
    /// Look after a store whose broker is stopped
    Store(store::Args),
    /// Make, list and revoke tokens
    Token(token::Args),
    /// Print what completes these commands in a shell
    #[command(
        after_help = "for bash: taskyard completion bash > ~/.local/share/bash-completion/completions/taskyard"
    )]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where a broker is, unless something else is said.
const DEFAULT_URL: &str = "http://127.0.0.1:7070";

/// Where the broker is.
#[derive(Debug, Clone, clap::Args)]
struct Remote {
    /// The broker
    #[arg(long, env = "TASKYARD_URL", default_value = DEFAULT_URL, value_name = "URL")]
    url: String,

    /// A token, if the broker asks for one: only from the environment, so that no process list shows it
    #[arg(skip = std::env::var("TASKYARD_TOKEN").ok())]
    token: Option<String>,

    #[command(flatten)]
    certificates: Certificates,
}

/// What TLS is told.
#[derive(Debug, Clone, Default, clap::Args)]
struct Certificates {
    /// For https://: trust the authorities in this PEM file too, beside those of the system
    #[arg(long, env = "TASKYARD_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// For https://: show this certificate (PEM) if the broker asks for one
    #[arg(long, env = "TASKYARD_CLIENT_CERT_FILE", value_name = "FILE", requires = "client_key_file")]
    client_cert_file: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, env = "TASKYARD_CLIENT_KEY_FILE", value_name = "FILE", requires = "client_cert_file")]
    client_key_file: Option<PathBuf>,
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
    /// A broker that is only named in messages, or asked without a token.
    fn at(url: &str) -> Remote {
        Remote { url: url.to_owned(), token: None, certificates: Certificates::default() }
    }

    fn options(&self) -> Result<taskyard_client::ClientOptions, Failed> {
        let options = taskyard_client::ClientOptions::new(&self.url).map_err(Failed::usage)?;
        let mut options = options.program(concat!("taskyard ", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            options = options.token(token);
        }
        if let Some(file) = &self.certificates.ca_file {
            options = options.ca_file(file);
        }
        let certificates = &self.certificates;
        if let (Some(cert), Some(key)) = (&certificates.client_cert_file, &certificates.client_key_file) {
            options = options.client_certificate(cert, key);
        }
        Ok(options)
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
        let text = format!("cannot reach the broker at {}: {error}", self.url);
        match error {
            ConnectError::Tls(tls) => match tls.kind() {
                // The files that were named are part of the command.
                TlsErrorKind::Setup => Failed::usage(text),
                TlsErrorKind::Untrusted => {
                    Failed::other(format!("{text} (a CA file is named with --ca-file or TASKYARD_CA_FILE)"))
                }
                TlsErrorKind::ClientCertificate => {
                    Failed::other(format!("{text} (see --client-cert-file and --client-key-file)"))
                }
                _ => Failed::other(text),
            },
            ConnectError::Refused { status: 401, .. } => Failed::other(format!("{text}{TOKEN_HINT}")),
            _ => Failed::other(text),
        }
    }
}

/// What to do about a token that is missing, or wrong.
const TOKEN_HINT: &str = ": commands take theirs from TASKYARD_TOKEN";

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Config(args) => config::run(args),
        Command::Store(args) => store::run(&args),
        Command::Token(args) => token::run(args),
        Command::Completion { shell } => completion(shell),
        Command::Submit(args) => on_one_thread(submit::run(*args)),
        Command::Work(args) => on_one_thread(work::run(args)),
        Command::Watch(args) => on_one_thread(watch::run(args)),
        Command::Publish(args) => on_one_thread(publish::run(args)),
        Command::Bench(args) => bench::run(args),
        Command::Top(args) => on_one_thread(top::run(*args)),
        Command::Health(args) => on_one_thread(health::run(*args)),
        Command::Status(args) => on_one_thread(status::run(args)),
        Command::Queues(args) => on_one_thread(queues::run(*args)),
        Command::Tasks(args) => on_one_thread(tasks::run(args)),
        Command::Explain(args) => on_one_thread(explain::run(args)),
        Command::Dead(args) => on_one_thread(dead::run(args)),
        Command::Workers(args) => on_one_thread(workers::run(args)),
        Command::Schedules(args) => on_one_thread(schedules::run(args)),
        Command::Pause(args) => on_one_thread(queues::pause(args)),
        Command::Unpause(args) => on_one_thread(queues::unpause(args)),
        Command::Drain(args) => on_one_thread(workers::drain(args)),
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

/// Prints a shell's completions.
fn completion(shell: clap_complete::Shell) -> Result<ExitCode, Failed> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "taskyard", &mut text);
    print(&text)?;
    Ok(ExitCode::SUCCESS)
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

/// Completes at SIGINT or SIGTERM, of which none is missed from the call on.
fn interrupted() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| {
        let signal = signal(kind);
        async move {
            match signal {
                Ok(mut signal) => {
                    signal.recv().await;
                }
                // Without a handler the signal ends the process by itself.
                Err(_) => std::future::pending().await,
            }
        }
    };
    let (interrupt, terminate) = (wait(SignalKind::interrupt()), wait(SignalKind::terminate()));
    async move {
        tokio::select! {
            () = interrupt => {}
            () = terminate => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Else `serve` would say that nothing reads it.
    #[test]
    fn the_variables_of_all_commands_are_known() {
        fn walk(command: &clap::Command, variables: &mut Vec<String>) {
            let own = command.get_arguments().filter_map(|argument| argument.get_env());
            variables.extend(own.map(|name| name.to_str().unwrap().to_owned()));
            command.get_subcommands().for_each(|command| walk(command, variables));
        }
        let mut variables = Vec::new();
        walk(&Cli::command(), &mut variables);
        assert!(variables.iter().any(|name| name == "TASKYARD_URL"), "{variables:?}");
        assert_eq!(crate::config::environment::unknown(variables), [""; 0]);
    }
}
