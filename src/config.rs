//! What the broker is told: flags over environment over file over defaults. Parsed once, then it
//! does not change.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::core;

/// Which engine remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// On this machine's disk: a confirmed task survives a power cut.
    Embedded,
    /// Nowhere: for tests, and for tasks that may be lost.
    Memory,
}

/// Options of `serve`, each also in the environment and in the file.
///
/// The help texts are the documentation of the config file's keys too, whose names are the flags'
/// with underscores.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Address and port to listen on [default: 127.0.0.1:7070]
    #[arg(long, env = "TASKYARD_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// Directory of the embedded store; made if there is none [default: taskyard-data]
    #[arg(long, env = "TASKYARD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where tasks are kept [default: embedded]
    #[arg(long, env = "TASKYARD_ENGINE", value_enum)]
    pub engine: Option<EngineKind>,

    /// The longest message, in bytes: 1024 to 16777216 [default: 1048576]
    #[arg(long, env = "TASKYARD_MESSAGE_BYTES", value_name = "BYTES")]
    pub message_bytes: Option<usize>,

    /// Ping a connection that was silent for so long, in milliseconds [default: 25000]
    #[arg(long, env = "TASKYARD_PING_MS", value_name = "MS")]
    pub ping_ms: Option<u64>,

    /// Give up on it after so much longer [default: 10000]
    #[arg(long, env = "TASKYARD_PING_TIMEOUT_MS", value_name = "MS")]
    pub ping_timeout_ms: Option<u64>,

    /// How long SIGTERM waits for workers to finish what they hold [default: 30000]
    #[arg(long, env = "TASKYARD_DRAIN_MS", value_name = "MS")]
    pub drain_ms: Option<u64>,

    /// Size of the store's segment files, in bytes: a multiple of 4096 from 65536 to 1073741824 [default: 67108864]
    #[arg(long, env = "TASKYARD_SEGMENT_BYTES", value_name = "BYTES")]
    pub segment_bytes: Option<u64>,

    /// What happens when a worker's name is already connected [default: replace]
    #[arg(long, env = "TASKYARD_WORKER_NAME_TAKEN", value_enum)]
    pub worker_name_taken: Option<NameTaken>,
}

/// What happens when a worker's name is already connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NameTaken {
    /// The earlier session ends (close code 4009).
    Replace,
    /// The later one is refused.
    Refuse,
}

/// What the broker runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the store is.
    pub data_dir: PathBuf,
    /// Which engine.
    pub engine: EngineKind,
    /// The longest message.
    pub message_bytes: usize,
    /// Silence after which the broker pings.
    pub ping: Duration,
    /// Silence after that, after which it gives up.
    pub ping_timeout: Duration,
    /// How long a drain may take.
    pub drain: Duration,
    /// Size of the store's segment files.
    pub segment_bytes: u64,
    /// Whether a worker's name that is taken replaces the session that has it.
    pub replace_worker: bool,
}

/// Something in the configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Options {
    /// The options of a file.
    pub fn from_file(path: &Path) -> Result<Options, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError(format!("cannot read config file {}: {e}", path.display())))?;
        toml::from_str(&text).map_err(|e| ConfigError(format!("config file {}: {e}", path.display())))
    }

    /// These options where they are given, else those of `under`.
    pub fn over(self, under: Options) -> Options {
        Options {
            listen: self.listen.or(under.listen),
            data_dir: self.data_dir.or(under.data_dir),
            engine: self.engine.or(under.engine),
            message_bytes: self.message_bytes.or(under.message_bytes),
            ping_ms: self.ping_ms.or(under.ping_ms),
            ping_timeout_ms: self.ping_timeout_ms.or(under.ping_timeout_ms),
            drain_ms: self.drain_ms.or(under.drain_ms),
            segment_bytes: self.segment_bytes.or(under.segment_bytes),
            worker_name_taken: self.worker_name_taken.or(under.worker_name_taken),
        }
    }

    /// Checks all, and fills in the defaults.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let within = |name: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(value)
            } else {
                Err(ConfigError(format!("{name}: expected {min} to {max}, got {value}")))
            }
        };
        let day = 86_400_000;
        let listen = self.listen.unwrap_or_else(|| "127.0.0.1:7070".into());
        let listen = parse_listen(&listen)?;
        if !listen.ip().is_loopback() {
            return Err(ConfigError(format!(
                "refusing to listen on {listen}: this version has no authentication, and anybody who reaches the port \
                 could submit and take tasks. Listen on 127.0.0.1 and let a reverse proxy with authentication in front"
            )));
        }
        let segment_bytes =
            within("segment_bytes", self.segment_bytes.unwrap_or(64 << 20), 64 << 10, 1 << 30)?;
        if !segment_bytes.is_multiple_of(4096) {
            return Err(ConfigError(format!(
                "segment_bytes: expected a multiple of 4096, got {segment_bytes}"
            )));
        }
        let ms = |name, value: Option<u64>, default| {
            within(name, value.unwrap_or(default), 100, day).map(Duration::from_millis)
        };
        Ok(Config {
            listen,
            data_dir: self.data_dir.unwrap_or_else(|| "taskyard-data".into()),
            engine: self.engine.unwrap_or(EngineKind::Embedded),
            message_bytes: within(
                "message_bytes",
                self.message_bytes.unwrap_or(1 << 20) as u64,
                1024,
                16 << 20,
            )? as usize,
            ping: ms("ping_ms", self.ping_ms, 25_000)?,
            ping_timeout: ms("ping_timeout_ms", self.ping_timeout_ms, 10_000)?,
            drain: within("drain_ms", self.drain_ms.unwrap_or(30_000), 0, day).map(Duration::from_millis)?,
            segment_bytes,
            replace_worker: self.worker_name_taken != Some(NameTaken::Refuse),
        })
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    let wrong = |why: String| {
        ConfigError(format!(
            "listen: {text:?} is no address to listen on ({why}): expected one like 127.0.0.1:7070"
        ))
    };
    let mut addresses = text.to_socket_addrs().map_err(|e| wrong(e.to_string()))?;
    addresses.next().ok_or_else(|| wrong("the name has no address".into()))
}

impl Config {
    /// What the core is told.
    pub fn core(&self) -> core::Config {
        core::Config {
            ping_ms: self.ping.as_millis() as u64,
            message_bytes: self.message_bytes as u64,
            replace_worker: self.replace_worker,
            ..core::Config::default()
        }
    }

    /// What sockets are told.
    pub fn sockets(&self) -> crate::ws::Settings {
        crate::ws::Settings {
            message_bytes: self.message_bytes,
            ping: self.ping,
            ping_timeout: self.ping_timeout,
            compression: false,
            compression_min_bytes: 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file: Options =
            toml::from_str("listen = \"127.0.0.1:1\"\ndrain_ms = 5\nengine = \"memory\"").unwrap();
        let flags = Options { listen: Some("127.0.0.1:2".into()), ..Options::default() };
        let config = flags.over(file).resolve().unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.drain, Duration::from_millis(5));
        assert_eq!(config.engine, EngineKind::Memory);
        assert_eq!(config.ping, Duration::from_secs(25));
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_name_and_the_range() {
        let refused = |options: Options| options.resolve().unwrap_err().to_string();
        assert!(
            refused(Options { message_bytes: Some(5), ..Options::default() }).contains("1024 to 16777216")
        );
        assert!(
            refused(Options { segment_bytes: Some(70_000), ..Options::default() })
                .contains("multiple of 4096")
        );
        assert!(
            refused(Options { listen: Some("0.0.0.0:7070".into()), ..Options::default() })
                .contains("authentication")
        );
        assert!(
            refused(Options { listen: Some("here".into()), ..Options::default() }).contains("127.0.0.1:7070")
        );
        let unknown = toml::from_str::<Options>("listn = 1").unwrap_err().to_string();
        assert!(unknown.contains("listn") && unknown.contains("listen"), "{unknown}");
    }
}
