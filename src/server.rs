//! The broker put together: store, core, dispatcher, listener. Tests run it as the binary does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{AuthError, Authority, Fetch};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, EngineKind};
use crate::connections::Connections;
use crate::core::{Effects, Replay, Shard};
use crate::dispatcher::{Dispatcher, Phase};
use crate::engine::{Embedded, Engine, EngineError, Memory, Opened};
use crate::http::server::Entrance;
use crate::http::{self, App};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::overview::Overviews;
use crate::transport::{Tls, TlsError};
use crate::trim;
use crate::ws::Context;
use crate::ws::caller::ending;

/// How long sockets may take to say goodbye once the store is closed.
const GOODBYE: Duration = Duration::from_secs(3);
/// The same where the stop is not to wait for anything: what is said goes out, answers to it are not waited for.
const HASTY_GOODBYE: Duration = Duration::from_millis(250);
/// Connections that may wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// How often sockets are looked through for tokens that have ended: so late an end may reach them.
const EXPIRY_TICK: Duration = Duration::from_secs(1);

/// A running broker.
pub struct Server {
    address: SocketAddr,
    broker: Broker,
    metrics: Metrics,
    live: Arc<ArcSwap<Live>>,
    doors: Doors,
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
    /// Tokens or their keys cannot be read.
    Auth(AuthError),
    /// Certificates cannot be read, or do not fit.
    Tls(TlsError),
    /// Something else in the configuration.
    Config(ConfigError),
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
            ServeError::Auth(error) => write!(f, "{error}"),
            ServeError::Tls(error) => write!(f, "{error}"),
            ServeError::Config(error) => write!(f, "{error}"),
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
            ServeError::Listen(..) | ServeError::Tls(_) | ServeError::Config(_) => 2,
            ServeError::Auth(error) => error.exit_code(),
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

/// Who may come in, and how.
#[derive(Clone)]
struct Doors {
    authority: Arc<Authority>,
    tls: Option<Tls>,
}

impl Doors {
    /// Keeps up with files and keys, and ends the sockets of those whose token has ended, until `stop`.
    fn look_after(&self, broker: &Broker, stop: &CancellationToken) {
        if let Some(tls) = self.tls.clone() {
            let stop = stop.clone();
            tokio::spawn(async move { tls.keep_fresh(stop).await });
        }
        tokio::spawn(self.authority.clone().keep_fresh(stop.clone()));
        let (authority, connections, stop) =
            (self.authority.clone(), broker.connections().clone(), stop.clone());
        tokio::spawn(async move {
            let mut changes = authority.changes();
            let mut tick = tokio::time::interval(EXPIRY_TICK);
            loop {
                let all = tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => changed.is_ok(),
                    _ = tick.tick() => false,
                };
                let now = crate::clock::wall();
                connections.close_those(|identity| {
                    let ends = identity.expires.is_some_and(|end| end <= now);
                    if all || ends { ending(authority.standing(identity, now)) } else { None }
                });
            }
        });
    }
}

/// Gets an issuer's keys. Redirects are not followed.
async fn fetch_keys(url: String, bytes_max: usize) -> Result<Vec<u8>, String> {
    let endpoint = taskyard_client::Endpoint::parse(&url).map_err(|error| error.to_string())?;
    let answer = taskyard_client::http::get_from(&endpoint, endpoint.path()).await;
    match answer.map_err(|error| error.to_string())? {
        (200, body) if body.len() <= bytes_max => Ok(body),
        (200, body) => Err(format!("{} bytes were answered, of {bytes_max} at most", body.len())),
        (status, _) => Err(format!("the answer was {status}, not 200")),
    }
}

/// Listens with a queue that a burst of connections fits into.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As the listener of the standard library does: a restart need not wait for old connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Server {
    /// Opens the store, restores what it holds, and listens. Ready when this returns.
    pub async fn start(config: &Config) -> Result<Server, ServeError> {
        let fetch = Fetch::new(fetch_keys);
        let config_of_auth = config.auth(fetch).map_err(ServeError::Config)?;
        let authority = Arc::new(Authority::open(config_of_auth).map_err(ServeError::Auth)?);
        let tls = config.transport().map(|tls| Tls::open(&tls)).transpose().map_err(ServeError::Tls)?;
        let doors = Doors { authority, tls };
        let metrics = Metrics::new();
        let mut replay = Replay::new(Shard::new(config.core()));
        match config.engine {
            EngineKind::Memory => {
                let opened = Opened { clean: true, start: 1, operations: 0 };
                Server::begin(config, doors, Memory::new(), replay, opened, metrics).await
            }
            EngineKind::Embedded => {
                let began = Instant::now();
                metrics.watch_disk(config.data_dir.clone());
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
                Server::begin(config, doors, engine, replay, opened, metrics).await
            }
        }
    }

    async fn begin<E: Engine>(
        config: &Config,
        doors: Doors,
        engine: E,
        replay: Replay,
        opened: Opened,
        metrics: Metrics,
    ) -> Result<Server, ServeError> {
        let clock = Clock::start();
        let mut first = Effects::default();
        let shard = replay.begin(clock.now(), opened.clean, opened.start, &mut first);
        let listener = listen(config.listen).map_err(|e| ServeError::Listen(config.listen, e))?;
        let address = listener.local_addr().map_err(|e| ServeError::Listen(config.listen, e))?;
        let connections = Arc::new(Connections::default());
        let (broker, inbox, inspections) = Broker::new(clock, connections.clone(), engine.capabilities());
        let (phase, phases) = watch::channel(Phase::Run);
        let dispatcher =
            Dispatcher::new(shard, engine, clock, connections, inbox, inspections, phases.clone());
        let live = Arc::new(ArcSwap::from_pointee(config.live.clone()));
        metrics.watch_doors(&doors.authority, doors.tls.as_ref());
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let sockets = Context {
            broker: broker.clone(),
            settings: config.sockets(),
            metrics: metrics.clone(),
            overviews: Overviews::new(broker.clone(), metrics.clone()),
            authority: doors.authority.clone(),
            live: live.clone(),
        };
        let app = App {
            broker: broker.clone(),
            metrics: metrics.clone(),
            sockets: Arc::new(sockets),
            phase: phases,
            denials: Arc::default(),
            tracker: tracker.clone(),
        };
        let entrance = Entrance { tls: doors.tls.clone(), proxy_protocol: config.proxy_protocol };
        doors.look_after(&broker, &stop);
        tokio::spawn(stop.clone().run_until_cancelled_owned(trim::whenever_quiet()));
        Ok(Server {
            address,
            broker,
            metrics,
            live,
            doors,
            phase,
            drain: config.drain,
            dispatcher: tokio::spawn(dispatcher.run(first)),
            outcome: None,
            accepting: tokio::spawn(http::server::run(listener, entrance, app, stop.clone())),
            stop,
            tracker,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether clients must say who they are.
    pub fn asks_for_tokens(&self) -> bool {
        self.doors.authority.is_on()
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
    /// Files that it names are read again, and blocks for it. Where one is bad, all stays as it was.
    pub fn reload(&self, config: &Config) -> Result<(), ServeError> {
        // Tokens first: a change of theirs would be taken up by itself in a moment, whatever comes of the rest.
        self.doors.authority.reload().map_err(ServeError::Auth)?;
        if let (Some(tls), Some(files)) = (&self.doors.tls, config.transport()) {
            tls.reload_from(&files).map_err(ServeError::Tls)?;
        }
        self.doors.authority.set_default_limits(config.live.limits);
        self.live.store(Arc::new(config.live.clone()));
        Ok(())
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
        let limit = if *self.phase.borrow() == Phase::Stop { HASTY_GOODBYE } else { GOODBYE };
        if matches!(self.outcome, Some(Ok(())))
            && tokio::time::timeout(limit, self.tracker.wait()).await.is_err()
        {
            tracing::debug!("some connections did not end in time");
        }
        self.accepting.abort();
        self.outcome.take().expect("it was just made")
    }
}
