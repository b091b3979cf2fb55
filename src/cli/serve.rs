//! `taskyard serve`

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failed, start_logging};
use crate::config::{Config, EngineKind, Options};
use crate::server::{ServeError, Server};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,

    /// A TOML file with any of these options, named with underscores; flags and environment win over it
    #[arg(long, env = "TASKYARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl From<ServeError> for Failed {
    fn from(error: ServeError) -> Self {
        Failed { message: error.to_string(), code: error.exit_code() }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failed> {
    let file = match &args.config {
        Some(path) => Options::from_file(path).map_err(Failed::usage)?,
        None => Options::default(),
    };
    let config = args.options.over(file).resolve().map_err(Failed::usage)?;
    start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("taskyard")
        .build()
        .map_err(|e| Failed::other(format!("cannot start: {e}")))?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<ExitCode, Failed> {
    let install = |kind| signal(kind).map_err(|e| Failed::other(format!("cannot listen for signals: {e}")));
    let (mut terminate, mut interrupt) =
        (install(SignalKind::terminate())?, install(SignalKind::interrupt())?);
    let mut server = Server::start(&config).await?;
    let address = server.address();
    match config.engine {
        EngineKind::Embedded => {
            tracing::info!(data_dir = %config.data_dir.display(), "listening on http://{address} and ws://{address}/ws");
        }
        EngineKind::Memory => {
            tracing::warn!(
                "listening on http://{address} and ws://{address}/ws; tasks are kept in memory only"
            );
        }
    }
    let mut stops = 0;
    loop {
        tokio::select! {
            ended = server.ended() => {
                ended?;
                tracing::info!("stopped");
                return Ok(ExitCode::SUCCESS);
            }
            () = either(&mut terminate, &mut interrupt) => {
                stops += 1;
                if stops == 1 {
                    tracing::info!("stopping: workers may finish what they hold; a second signal stops at once");
                    server.drain();
                } else {
                    server.stop_now();
                }
            }
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
