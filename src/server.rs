//! The broker put together: store, core, dispatcher, listener. Tests run it as the binary does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, EngineKind};
use crate::connections::Connections;
use crate::core::{Effects, Replay, Shard};
use crate::dispatcher::{Dispatcher, Phase};
use crate::engine::{Embedded, Engine, EngineError, Memory, Opened};
use crate::http::{self, App};
use crate::live::Live;
use crate::metrics::Metrics;

/// How long sockets may take to say goodbye once the store is closed.
const GOODBYE: Duration = Duration::from_secs(3);

/// A running broker.
pub struct Server {
    address: SocketAddr,
    broker: Broker,
    metrics: Metrics,
    live: Arc<ArcSwap<Live>>,
    phase: watch::Sender<Phase>,
    drain: Duration,
    dispatcher: JoinHandle<Result<(), EngineError>>,
    /// How the dispatcher ended.
    outcome: Option<Result<(), ServeError>>,
    stop: CancellationToken,
    tracker: TaskTracker,
    accepting: JoinHandle<()>,
}

/// Why a broker does not run.
#[derive(Debug)]
pub enum ServeError {
    /// The address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// The store cannot be opened, or failed.
    Engine(EngineError),
    /// A fault of ours: the dispatcher panicked.
    Panicked,
}

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServeError::Listen(address, error) if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "port {} is taken: another program, perhaps another broker, listens on {address}. \
                 Stop it, or choose another port with --listen",
                address.port()
            ),
            ServeError::Listen(address, error) => write!(f, "cannot listen on {address}: {error}"),
            ServeError::Engine(error) => write!(f, "{error}"),
            ServeError::Panicked => {
                f.write_str("a fault in the broker ended it; what was confirmed is stored: start it again, and report this")
            }
        }
    }
}

impl std::error::Error for ServeError {}

impl ServeError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            ServeError::Listen(..) => 2,
            ServeError::Engine(error) => error.exit_code,
            ServeError::Panicked => 101,
        }
    }
}

impl From<EngineError> for ServeError {
    fn from(error: EngineError) -> Self {
        ServeError::Engine(error)
    }
}

impl Server {
    /// Opens the store, restores what it holds, and listens. Ready when this returns.
    pub async fn start(config: &Config) -> Result<Server, ServeError> {
        let metrics = Metrics::new();
        let mut replay = Replay::new(Shard::new(config.core()));
        match config.engine {
            EngineKind::Memory => {
                let opened = Opened { clean: true, start: 1, operations: 0 };
                Server::begin(config, Memory::new(), replay, opened, metrics).await
            }
            EngineKind::Embedded => {
                let began = Instant::now();
                let observer = metrics.log_observer();
                let (engine, opened, recovery) =
                    Embedded::open(&config.data_dir, config.segment_bytes, observer, &mut |op| {
                        replay.operation(op)
                    })?;
                if let Some(torn) = &recovery.torn_tail {
                    metrics.torn_tail();
                    tracing::warn!(
                        file = torn.file,
                        offset = torn.offset,
                        bytes = torn.bytes,
                        kept = torn.kept,
                        "the log's unfinished end was cut ({}): it held nothing that was confirmed",
                        torn.what
                    );
                }
                tracing::info!(
                    records = recovery.records,
                    segments = recovery.segments,
                    clean = opened.clean,
                    took_ms = began.elapsed().as_millis() as u64,
                    "store opened"
                );
                Server::begin(config, engine, replay, opened, metrics).await
            }
        }
    }

    async fn begin<E: Engine>(
        config: &Config,
        engine: E,
        replay: Replay,
        opened: Opened,
        metrics: Metrics,
    ) -> Result<Server, ServeError> {
        let clock = Clock::start();
        let mut first = Effects::default();
        let shard = replay.begin(clock.now(), opened.clean, opened.start, &mut first);
        let listener =
            TcpListener::bind(config.listen).await.map_err(|e| ServeError::Listen(config.listen, e))?;
        let address = listener.local_addr().map_err(|e| ServeError::Listen(config.listen, e))?;
        let connections = Arc::new(Connections::default());
        let (broker, inbox, inspections) = Broker::new(clock, connections.clone(), engine.capabilities());
        let (phase, phases) = watch::channel(Phase::Run);
        let dispatcher = Dispatcher::new(
            shard,
            engine,
            clock,
            connections,
            inbox,
            inspections,
            phases.clone(),
            metrics.hops(),
        );
        let live = Arc::new(ArcSwap::from_pointee(config.live.clone()));
        let app = App {
            broker: broker.clone(),
            metrics: metrics.clone(),
            settings: Arc::new(config.sockets()),
            live: live.clone(),
            auth_on: config.admin_token.is_some() || config.jwt.is_some(),
            phase: phases,
        };
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        Ok(Server {
            address,
            broker,
            metrics,
            live,
            phase,
            drain: config.drain,
            dispatcher: tokio::spawn(dispatcher.run(first)),
            outcome: None,
            accepting: tokio::spawn(http::server::run(listener, app, stop.clone(), tracker.clone())),
            stop,
            tracker,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The broker's handle.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Its metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Takes over what can change while it runs: see [`Config::reload`]. New connections see it at once.
    pub fn reload(&self, config: &Config) {
        self.live.store(Arc::new(config.live.clone()));
    }

    /// Begins an orderly stop: no more deliveries and submits; settles are served.
    pub fn drain(&self) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Run;
            if begins {
                *phase = Phase::Drain { until: Instant::now() + self.drain };
            }
            begins
        });
    }

    /// Stops now; what is confirmed is stored.
    pub fn stop_now(&self) {
        self.phase.send_replace(Phase::Stop);
    }

    /// Waits for the end: of a stop, or by a failure. May be dropped and called again before it has ended.
    pub async fn ended(&mut self) -> Result<(), ServeError> {
        if self.outcome.is_none() {
            self.outcome = Some(match (&mut self.dispatcher).await {
                Ok(result) => result.map_err(ServeError::Engine),
                Err(_) => Err(ServeError::Panicked),
            });
        }
        self.stop.cancel();
        self.tracker.close();
        // A failed store ends at once: nothing that is said now could be kept.
        if matches!(self.outcome, Some(Ok(())))
            && tokio::time::timeout(GOODBYE, self.tracker.wait()).await.is_err()
        {
            tracing::debug!("some connections did not end in time");
        }
        self.accepting.abort();
        self.outcome.take().expect("it was just made")
    }
}
