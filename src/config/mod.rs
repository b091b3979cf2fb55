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
pub mod keys;
pub mod options;
pub mod print;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use check::Reloaded;
pub use options::{ADMIN_TOKEN, Flags, Source, Sources, Value, Values};

use crate::core;
use crate::live::Live;

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
    /// How long a drain may take.
    pub drain: Duration,
    /// Size of the store's segment files.
    pub segment_bytes: u64,
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
    pub algorithms: Vec<JwtAlgorithm>,
    /// What signatures are checked with.
    pub keys: JwtKeys,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// What `aud` must name one of; empty: it is not looked at.
    pub audience: Vec<String>,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// The claim that says what the bearer may.
    pub claim: String,
}

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// A shared secret.
    Hs256,
    /// Ed25519.
    EdDsa,
    /// ECDSA over P-256.
    Es256,
    /// RSA.
    Rs256,
}

/// What signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeys {
    /// A public key in PEM, or the secret of HS256.
    File(PathBuf),
    /// What the issuer publishes.
    Url {
        /// Where.
        url: String,
        /// How often it is fetched.
        refresh: Duration,
    },
}

/// A text that no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself: to compare it, and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
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
            compression: self.compression.is_some(),
            compression_min_bytes: self.compression.map_or(usize::MAX, |compression| compression.min_bytes),
        }
    }
}
