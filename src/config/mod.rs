//! What the broker is told: flags over environment over file over defaults.
//!
//! * [`keys`]: every key, once.
//! * [`options`]: flags, environment and file to values.
//! * [`check`]: values to a [`Config`], or all that is wrong with them; what a reload may change.
//! * [`mod@print`]: the whole as a commented file.
//!
//! A `Config` does not change. What may change while the broker runs is its [`Live`] part, which a
//! reload replaces.

pub mod check;
pub mod environment;
pub mod keys;
pub mod options;
pub mod print;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use check::Reloaded;
pub use environment::unknown_variables;
pub use options::{ADMIN_TOKEN, Flags, Source, Sources, Value, Values};
pub use taskyard_proto::Secret;

use crate::auth::{self, Algorithm, AuthConfig, Fetch};
use crate::core;
use crate::live::Live;
use crate::transport::{ClientAuth, TlsConfig};

/// Which engine remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// On this machine's disk: a confirmed task survives a power cut.
    Embedded,
    /// Nowhere: for tests, and for tasks that may be lost.
    Memory,
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
    /// How long a session that may be resumed waits for that.
    pub resume_window: Duration,
    /// How long a drain may take.
    pub drain: Duration,
    /// Size of the store's segment files.
    pub segment_bytes: u64,
    /// How many bytes of payloads stay in memory where there is a store.
    pub payload_memory_bytes: u64,
    /// How many queues there may be.
    pub queues_max: usize,
    /// Whether a worker's name that is taken replaces the session that has it.
    pub replace_worker: bool,
    /// Where the tokens are.
    pub tokens_file: PathBuf,
    /// The token that may do all.
    pub admin_token: Option<Secret>,
    /// Whether a proxy in front ends TLS.
    pub behind_tls_proxy: bool,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// TLS of the broker's own.
    pub tls: Option<Tls>,
    /// Whether and from which size on messages are compressed.
    pub compression: Option<Compression>,
    /// Tokens that somebody else issues.
    pub jwt: Option<Jwt>,
    /// What a reload can change.
    pub live: Live,
    /// What all this was made of.
    values: Values,
}

/// TLS of the broker's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and those that vouch for it, in PEM.
    pub cert_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
    /// Certificates of clients, if they are asked for.
    pub clients: Option<ClientCertificates>,
}

/// Which certificates clients show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Those who issue them, in PEM.
    pub ca_file: PathBuf,
    /// Whether a client without one is refused.
    pub required: bool,
}

/// Compression of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// Messages below this size go uncompressed.
    pub min_bytes: usize,
}

/// Tokens that somebody else issues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// How they may be signed; at least one.
    pub algorithms: Vec<Algorithm>,
    /// What signatures are checked with.
    pub keys: JwtKeys,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// What `aud` must name one of; empty: a token that names one is refused.
    pub audience: Vec<String>,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// The claim that says what the bearer may.
    pub claim: String,
}

/// What signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeys {
    /// A public key in PEM, a set of keys (JWKS), or the secret of HS256.
    File(PathBuf),
    /// What the issuer publishes.
    Url {
        /// Where.
        url: String,
        /// How often it is fetched.
        refresh: Duration,
    },
}

/// One thing that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands: file and line, flag or variable. Empty: nowhere in particular.
    pub place: String,
    /// What is wrong, what was expected, what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() {
            f.write_str(&self.text)
        } else {
            write!(f, "{}: {}", self.place, self.text)
        }
    }
}

/// All that cannot be in the configuration; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.0.iter().enumerate() {
            let between = if nth == 0 { "" } else { "\n" };
            write!(f, "{between}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// What it was made of, with the origins.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// What the core is told.
    pub fn core(&self) -> core::Config {
        core::Config {
            ping_ms: self.ping.as_millis() as u64,
            message_bytes: self.message_bytes as u64,
            queues_max: self.queues_max,
            resume_window_ms: self.resume_window.as_millis() as u64,
            replace_worker: self.replace_worker,
            payload_memory_bytes: match self.engine {
                EngineKind::Memory => None,
                EngineKind::Embedded => Some(self.payload_memory_bytes),
            },
            ..core::Config::default()
        }
    }

    /// What whoever knows tokens is told; `fetch` gets keys from their address. The error names what is
    /// wrong with the file of keys.
    pub fn auth(&self, fetch: Fetch) -> Result<AuthConfig, ConfigError> {
        let jwt = match &self.jwt {
            None => None,
            Some(jwt) => Some(auth::JwtConfig {
                keys: jwt.auth_keys(fetch)?,
                algorithms: jwt.algorithms.clone(),
                audience: jwt.audience.clone(),
                issuer: jwt.issuer.clone(),
                leeway: jwt.leeway,
                claim: jwt.claim.clone(),
            }),
        };
        Ok(AuthConfig {
            tokens_file: self.tokens_file.clone(),
            admin_token: self.admin_token.clone(),
            jwt,
            default_limits: self.live.limits,
        })
    }

    /// What TLS is told, if it is ended here.
    pub fn transport(&self) -> Option<TlsConfig> {
        let tls = self.tls.as_ref()?;
        let (client_ca_file, client_auth) = match &tls.clients {
            None => (None, ClientAuth::Off),
            Some(clients) if clients.required => (Some(clients.ca_file.clone()), ClientAuth::Required),
            Some(clients) => (Some(clients.ca_file.clone()), ClientAuth::Optional),
        };
        Some(TlsConfig {
            cert_file: tls.cert_file.clone(),
            key_file: tls.key_file.clone(),
            client_ca_file,
            client_auth,
        })
    }

    /// What sockets are told.
    pub fn sockets(&self) -> crate::ws::Settings {
        crate::ws::Settings {
            message_bytes: self.message_bytes,
            ping: self.ping,
            ping_timeout: self.ping_timeout,
            compression: self.compression.is_some(),
            compression_min_bytes: self.compression.map_or(usize::MAX, |compression| compression.min_bytes),
        }
    }
}

impl Jwt {
    fn auth_keys(&self, fetch: Fetch) -> Result<auth::JwtKeys, ConfigError> {
        let path = match &self.keys {
            JwtKeys::Url { url, refresh } => {
                return Ok(auth::JwtKeys::Url { url: url.clone(), every: *refresh, fetch });
            }
            JwtKeys::File(path) => path,
        };
        let problem = |text: String| {
            ConfigError(vec![Problem { place: format!("auth.jwt.key_file {}", path.display()), text }])
        };
        let bytes = std::fs::read(path).map_err(|error| problem(format!("cannot read it: {error}")))?;
        if bytes.trim_ascii_start().starts_with(b"{") {
            return Ok(auth::JwtKeys::SetFile(path.clone()));
        }
        match self.algorithms[..] {
            [algorithm] => Ok(auth::JwtKeys::File { path: path.clone(), algorithm }),
            _ => Err(problem(
                "a file of one key is for one algorithm: name it alone in auth.jwt.algorithms, or give a set \
                 of keys (JWKS)"
                    .into(),
            )),
        }
    }
}
