//! TLS on accepted connections, with certificates that are renewed while it runs.
//!
//! What it costs: an idle connection holds 8 KiB more than one of TCP alone, as measured with 5,000 of
//! TLS 1.3 that had said a little; 10,000 hold 80 MB. Half of it is the 4 KiB that rustls keeps to read
//! into, which cannot be trimmed; the rest are keys and state. No session is kept for those that have
//! gone, what a peer does not take is bounded by [`UNSENT_BYTES_MAX`], and what only the handshake
//! needs is gone after it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::certificate;
use super::material::{Material, Stamps};
use crate::clock::Clock;
use crate::standstill;

pub use super::material::TlsError;

/// How long a handshake may take, from the first byte on, which may be as late.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How often the files are looked at.
pub const POLL_TIME: Duration = Duration::from_secs(1);
/// How much that was taken for a connection may wait, encrypted, to be sent. rustls would allow 64 KiB;
/// two of the longest records are enough to keep a socket busy, and half of it where ten thousand peers
/// have stopped reading.
pub const UNSENT_BYTES_MAX: usize = 32 << 10;

/// What a client is told that speaks HTTP where TLS is expected.
const PLAIN_HTTP: &str = "this port speaks TLS: use https:// and wss://\n";
/// How long such a client may take to read it, and how much of what it sent is read meanwhile. A socket
/// that is closed with something unread in it takes back what was written.
const PLAIN_HTTP_TIME: Duration = Duration::from_secs(1);
const PLAIN_HTTP_BYTES: u64 = 64 << 10;

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    Off,
    /// One that is shown must be good.
    Optional,
    /// Each must show a good one.
    Required,
}

/// Where certificates and keys are; all in PEM. One file may hold both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate, then those between it and a root that clients know.
    pub cert_file: PathBuf,
    /// Its private key, not encrypted.
    pub key_file: PathBuf,
    /// Authorities that sign the certificates of clients.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
}

/// The certificate that is served, and its renewal. Clones are the same one.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    /// Where the files are that are served.
    config: ArcSwap<TlsConfig>,
    current: ArcSwap<Material>,
    /// The files at the last attempt to load them; held while one is under way.
    attempted: Mutex<Stamps>,
    failures: AtomicU64,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("config", &self.0.config.load()).finish_non_exhaustive()
    }
}

/// Why a connection did not become one of TLS. All are the peer's doing: something to log for who looks
/// for it.
#[derive(Debug)]
pub enum AcceptError {
    /// It took longer than [`HANDSHAKE_TIME`].
    Late,
    /// The peer said nothing: a port scan or a health check.
    Silent,
    /// The peer speaks HTTP; it was told to use TLS.
    PlainHttp,
    /// The handshake failed, or the connection did. The source says how.
    Handshake(io::Error),
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcceptError::Late => write!(f, "the TLS handshake took longer than {HANDSHAKE_TIME:?}"),
            AcceptError::Silent => f.write_str("the peer closed the connection without a word"),
            AcceptError::PlainHttp => {
                f.write_str("the peer spoke HTTP without TLS, and was told to use https://")
            }
            AcceptError::Handshake(error) => write!(f, "the TLS handshake failed: {error}"),
        }
    }
}

impl std::error::Error for AcceptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AcceptError::Handshake(error) => Some(error),
            _ => None,
        }
    }
}

impl Tls {
    /// Reads the files. A certificate that has expired is served, with a warning: some clients do not
    /// mind, and the others say it better than a broker that does not start.
    pub fn open(config: &TlsConfig) -> Result<Tls, TlsError> {
        // Before the files are read: what changes meanwhile is a change.
        let stamps = Stamps::take(config);
        let material = Material::load(config)?;
        warn_if_expired(config, &material);
        Ok(Tls(Arc::new(Inner {
            config: ArcSwap::from_pointee(config.clone()),
            current: ArcSwap::from_pointee(material),
            attempted: Mutex::new(stamps),
            failures: AtomicU64::new(0),
        })))
    }

    /// What makes handshakes with the certificate of this moment.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.current.load().server.clone())
    }

    /// Reads the files again; says whether there is something new in them. If anything is wrong with
    /// them what is served stays, whole: it is never the certificate of one time with the key of
    /// another. Connections that are open live on.
    ///
    /// It reads files, and so may block for as long as their disk does.
    pub fn reload(&self) -> Result<bool, TlsError> {
        self.reload_from(&self.0.config.load_full())
    }

    /// The same, with files of other names from now on, or other rules for clients. If anything is wrong
    /// with these, the earlier ones are looked after as before.
    pub fn reload_from(&self, config: &TlsConfig) -> Result<bool, TlsError> {
        let mut attempted = self.0.attempted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = *config == **self.0.config.load();
        let stamps = Stamps::take(config);
        let loaded = Material::load(config);
        if is_same || loaded.is_ok() {
            *attempted = stamps;
        }
        let material = loaded.inspect_err(|_| {
            self.0.failures.fetch_add(1, Ordering::Relaxed);
        })?;
        let is_new = !is_same || material.digest != self.0.current.load().digest;
        if is_new {
            warn_if_expired(config, &material);
            self.0.config.store(Arc::new(config.clone()));
            self.0.current.store(Arc::new(material));
        }
        Ok(is_new)
    }

    /// Reloads whenever the files have changed, until `cancel`. Those who write them do so one after
    /// the other, so a change counts once two looks in a row see the same. Each change is logged once,
    /// however it went.
    pub async fn keep_fresh(&self, cancel: CancellationToken) {
        let mut looks = tokio::time::interval(POLL_TIME);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = looks.tick() => {}
            }
            let tls = self.clone();
            let look = tokio::task::spawn_blocking(move || tls.look(last));
            last = tokio::select! {
                () = cancel.cancelled() => return,
                // It fails if the runtime ends; a panic in it was reported already.
                looked = look => looked.unwrap_or_default(),
            };
        }
    }

    /// Looks at the files; gives what it saw if that is not what was loaded, to be seen again.
    fn look(&self, last: Option<Stamps>) -> Option<Stamps> {
        let config = self.0.config.load_full();
        let now = Stamps::take(&config);
        if now == *self.0.attempted.lock().unwrap_or_else(PoisonError::into_inner) {
            return None;
        }
        if last.as_ref() != Some(&now) {
            return Some(now);
        }
        let file = config.cert_file.display();
        match self.reload() {
            Ok(true) => {
                tracing::info!(%file, not_after = self.not_after(), "the TLS certificate was renewed")
            }
            // Touched, or written anew as it was.
            Ok(false) => {}
            Err(error) => {
                tracing::error!(
                    "the changed TLS files cannot be used, the earlier certificate is served on: {error}"
                );
            }
        }
        None
    }

    /// When the certificate that is served ends, in seconds since 1970; `None` if it cannot be read
    /// from it.
    pub fn not_after(&self) -> Option<u64> {
        self.0.current.load().not_after
    }

    /// How often files could not be loaded again.
    pub fn reload_failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// Makes the handshake, within [`HANDSHAKE_TIME`]. A client that speaks HTTP is told what to use
    /// instead.
    pub async fn accept(&self, stream: TcpStream) -> Result<Box<TlsStream<TcpStream>>, AcceptError> {
        // In boxes, both: the task that serves the connection would else keep the room for as long as
        // it lives.
        match standstill::timeout(HANDSHAKE_TIME, Box::pin(self.handshake(stream))).await {
            Ok(result) => result,
            Err(_) => Err(AcceptError::Late),
        }
    }

    async fn handshake(&self, mut stream: TcpStream) -> Result<Box<TlsStream<TcpStream>>, AcceptError> {
        let mut first = [0];
        if stream.peek(&mut first).await.map_err(AcceptError::Handshake)? == 0 {
            return Err(AcceptError::Silent);
        }
        // A method's first letter; a handshake begins with 22.
        if first[0].is_ascii_uppercase() {
            let _ = tokio::time::timeout(PLAIN_HTTP_TIME, say_that_it_is_tls(&mut stream)).await;
            return Err(AcceptError::PlainHttp);
        }
        let limited = |session: &mut tokio_rustls::rustls::ServerConnection| {
            session.set_buffer_limit(Some(UNSENT_BYTES_MAX));
        };
        self.acceptor().accept_with(stream, limited).await.map(Box::new).map_err(AcceptError::Handshake)
    }
}

async fn say_that_it_is_tls(stream: &mut TcpStream) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{PLAIN_HTTP}",
        PLAIN_HTTP.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(PLAIN_HTTP_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// The name in the certificate that the client has proved to own: its common name, else its first
/// alternative name that is a text. `None` if it showed none.
pub fn peer_name(stream: &TlsStream<TcpStream>) -> Option<String> {
    let (_, session) = stream.get_ref();
    certificate::name(session.peer_certificates()?.first()?)
}

fn warn_if_expired(config: &TlsConfig, material: &Material) {
    let now = Clock::start().now().0 / 1_000_000;
    let file = config.cert_file.display();
    match material.not_after {
        Some(end) if end <= now => tracing::warn!(
            %file,
            not_after = end,
            "the TLS certificate has expired {} hours ago, and most clients will refuse it: renew it, it is taken up \
             without a restart",
            (now - end) / 3600
        ),
        Some(_) => {}
        None => tracing::warn!(%file, "cannot read from the TLS certificate when it ends"),
    }
}
