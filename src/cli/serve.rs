//! `taskyard serve`

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::config::has_tokens;
use super::{DEFAULT_URL, Failed, start_logging};
use crate::config::{Config, ConfigError, EngineKind, Reloaded, Sources, unknown_variables};
use crate::server::{ServeError, Server};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    sources: Sources,
}

impl From<ServeError> for Failed {
    fn from(error: ServeError) -> Self {
        Failed { message: error.to_string(), code: error.exit_code() }
    }
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failed> {
    let config = read(&args.sources).map_err(Failed::usage)?;
    start_logging();
    for warning in config.warnings(has_tokens).into_iter().chain(unknown_variables()) {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("taskyard")
        .build()
        .map_err(|e| Failed::other(format!("cannot start: {e}")))?;
    // Not on this thread, which would only wait from then on: the allocator gives what was allocated here, and is freed
    // elsewhere, back when this thread next allocates. A restart with many tasks would keep its memory for ever.
    match runtime.block_on(runtime.spawn(serve(config, args.sources))) {
        Ok(served) => served,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn read(sources: &Sources) -> Result<Config, ConfigError> {
    let config = sources.values()?.resolve()?;
    config.check_public(has_tokens)?;
    Ok(config)
}

async fn serve(mut config: Config, sources: Sources) -> Result<ExitCode, Failed> {
    let install = |kind| signal(kind).map_err(|e| Failed::other(format!("cannot listen for signals: {e}")));
    let (mut terminate, mut interrupt) =
        (install(SignalKind::terminate())?, install(SignalKind::interrupt())?);
    let mut hangup = install(SignalKind::hangup())?;
    let mut server = Server::start(&config).await?;
    let address = server.address();
    let (http, ws) = if config.tls.is_some() { ("https", "wss") } else { ("http", "ws") };
    let tokens =
        if server.asks_for_tokens() { "tokens are asked for" } else { "nobody is asked for a token" };
    let place = format!("listening on {http}://{address} and {ws}://{address}/ws; {tokens}");
    match config.engine {
        EngineKind::Embedded => tracing::info!(data_dir = %config.data_dir.display(), "{place}"),
        EngineKind::Memory => tracing::warn!("{place}; tasks are kept in memory only"),
    }
    if std::io::stderr().is_terminal() {
        greet(&greeting(&format!("{http}://{}", reached_at(address)), server.asks_for_tokens()));
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
            _ = hangup.recv() => config = reload(config, &sources, &server).await,
        }
    }
}

/// Where this machine reaches what listens there.
pub(super) fn reached_at(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}

/// Where to look, for somebody who has just started a broker by hand.
fn greeting(url: &str, tokens: bool) -> String {
    let (at, token) = (
        if url == DEFAULT_URL { String::new() } else { format!(" --url {url}") },
        if tokens { " -H \"Authorization: Bearer $TASKYARD_TOKEN\"" } else { "" },
    );
    let first = if tokens {
        "\n  tokens          taskyard token create --help; commands take theirs from TASKYARD_TOKEN"
    } else {
        ""
    };
    format!(
        "\n  Taskyard {} is ready.\n\n  \
         web UI          {url}/\n  \
         HTTP API        {url}/openapi.json\n  \
         live view       taskyard top{at}\n  \
         commands        taskyard help{first}\n  \
         a first worker  taskyard work hello{at} -- cat\n  \
         a first task    curl{token} --json '{{\"payload\":\"you\"}}' '{url}/v1/queues/hello/tasks?wait_ms=5000'\n",
        env!("CARGO_PKG_VERSION")
    )
}

#[expect(clippy::print_stderr, reason = "it is for the person at the terminal, and no event")]
fn greet(text: &str) {
    eprintln!("{text}");
}

/// Reads everything again. Gives what the broker runs with from now on: all that can change, or, if
/// anything is wrong, what it ran with.
async fn reload(running: Config, sources: &Sources, server: &Server) -> Config {
    let sources = sources.clone();
    let old = running.clone();
    // Files and names are looked up: that may take its time.
    let read = tokio::task::spawn_blocking(move || {
        let reloaded = old.reload(&read(&sources)?)?;
        reloaded.config.check_public(has_tokens)?;
        Ok::<Reloaded, ConfigError>(reloaded)
    });
    let result = match read.await {
        Ok(result) => result.map_err(|error| error.to_string().replace('\n', "; ")),
        Err(error) => Err(format!("a fault in the broker: {error}")),
    };
    let reloaded = match result {
        Ok(reloaded) => reloaded,
        Err(error) => {
            server.metrics().reloaded(false);
            tracing::error!("the configuration is not reloaded, everything stays as it was: {error}");
            return running;
        }
    };
    if let Err(error) = tokio::task::block_in_place(|| server.reload(&reloaded.config)) {
        server.metrics().reloaded(false);
        tracing::error!("the configuration is not reloaded, everything stays as it was: {error}");
        return running;
    }
    server.metrics().reloaded(true);
    for key in &reloaded.changed {
        tracing::info!("reloaded {key}");
    }
    for key in &reloaded.needs_restart {
        tracing::warn!("{key} has changed, and stays as it was until the broker is started again");
    }
    if reloaded.changed.is_empty() && reloaded.needs_restart.is_empty() {
        tracing::info!("read the configuration again: nothing in it has changed");
    }
    if !reloaded.changed.is_empty() {
        for warning in reloaded.config.warnings(has_tokens) {
            tracing::warn!("{warning}");
        }
    }
    reloaded.config
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_reached_on_this_machine() {
        for (listen, reached) in [
            ("0.0.0.0:7071", "127.0.0.1:7071"),
            ("[::]:7071", "[::1]:7071"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("127.0.0.1:7070", "127.0.0.1:7070"),
        ] {
            let at: SocketAddr = listen.parse().expect("it is an address");
            assert_eq!(reached_at(at).to_string(), reached);
        }
    }

    #[test]
    fn the_greeting_says_what_works_at_this_broker() {
        let text = greeting(DEFAULT_URL, false);
        assert!(text.contains("taskyard top\n") && !text.contains("Bearer"), "{text}");
        let text = greeting("https://192.0.2.7:1", true);
        for part in [
            "https://192.0.2.7:1/\n",
            "taskyard top --url https://192.0.2.7:1\n",
            "curl -H \"Authorization: Bearer $TASKYARD_TOKEN\" --json '{\"payload\":\"you\"}' 'https",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with("  ") || line.is_empty()), "{text}");
    }
}
