//! TLS under a connection: whom the client trusts, what it shows of itself, and what went wrong in
//! words that say what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use taskyard_proto::code::Advice;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InconsistentKeys, RootCertStore,
};

use crate::connection::ConnectError;
use crate::endpoint::Endpoint;

/// The one protocol that is spoken: a server that would choose another is told by the handshake.
const ALPN: &[u8] = b"http/1.1";
/// Tickets to come back with, for the one server of an endpoint; rustls keeps eight for each.
const TICKETS: usize = 8;

/// Whom to trust and what to show, where a URL asks for TLS.
///
/// The authorities of the system are trusted, as OpenSSL knows them (`SSL_CERT_FILE` and `SSL_CERT_DIR`
/// included). They are read once a process. The files named here are read at each connect: what is
/// renewed is taken up by itself.
#[derive(Clone, Default)]
pub struct TlsOptions {
    ca_file: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    /// What came of the files; clones share it. Authorities take some 100 KiB, and connections hold on
    /// to theirs.
    made: Arc<Mutex<Option<Made>>>,
}

struct Made {
    files: Files,
    config: Arc<ClientConfig>,
}

/// The content of the files.
#[derive(PartialEq, Eq)]
struct Files {
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("ca_file", &self.ca_file)
            .field("client_certificate", &self.client_certificate)
            .finish()
    }
}

impl TlsOptions {
    /// Trusts the authorities of this PEM file too; by default those of the system alone.
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        TlsOptions { ca_file: Some(path.into()), made: Arc::default(), ..self }
    }

    /// Shows this certificate to servers that ask for one: its PEM file, and that of its key.
    pub fn client_certificate(self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        let files = (cert_file.into(), key_file.into());
        TlsOptions { client_certificate: Some(files), made: Arc::default(), ..self }
    }

    /// Makes of the files what a handshake needs. It reads them: not for a thread that must not wait.
    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = self.read().and_then(|files| match &*made {
            Some(known) if known.files == files => Ok(None),
            _ => self.make(&files).map(|config| Some(Made { files, config })),
        });
        match (fresh, &*made) {
            (Ok(Some(fresh)), _) => {
                let config = fresh.config.clone();
                *made = Some(fresh);
                Ok(config)
            }
            // Files that are just being written must not end a client that has been running for long.
            (Ok(None) | Err(_), Some(known)) => Ok(known.config.clone()),
            (Err(error), None) => Err(error),
            (Ok(None), None) => Err(TlsError::setup("nothing was read")),
        }
    }

    fn read(&self) -> Result<Files, TlsError> {
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| TlsError::setup(format!("cannot read {}: {error}", path.display())))
        };
        let ca = self.ca_file.as_ref().map(read).transpose()?;
        let client = match &self.client_certificate {
            Some((cert, key)) => Some((read(cert)?, read(key)?)),
            None => None,
        };
        Ok(Files { ca, client })
    }

    fn make(&self, files: &Files) -> Result<Arc<ClientConfig>, TlsError> {
        let native = native();
        let roots = match (&files.ca, &self.ca_file) {
            (Some(pem), Some(path)) => {
                let mut roots = RootCertStore::clone(&native.roots);
                for certificate in certificates(pem, path)? {
                    roots.add(certificate).map_err(|error| {
                        let path = path.display();
                        TlsError::setup(format!(
                            "a certificate in {path} is not one of an authority: {error}"
                        ))
                    })?;
                }
                Arc::new(roots)
            }
            _ => native.roots.clone(),
        };
        if roots.is_empty() {
            return Err(TlsError::setup(format!(
                "no authority is trusted on this system ({}): install its certificates (the package is most often \
                 called ca-certificates), or give a CA file",
                native.problem.as_deref().unwrap_or("it has none")
            )));
        }
        // Named, not the process's default, which another library may have set or not.
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::setup(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match (&files.client, &self.client_certificate) {
            (Some((cert, key)), Some((cert_path, key_path))) => {
                let chain = certificates(cert, cert_path)?;
                let key = private_key(key, key_path)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let (cert, key) = (cert_path.display(), key_path.display());
                    TlsError::setup(match error {
                        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                            format!("the key {key} does not belong to the certificate {cert}")
                        }
                        error => format!("the certificate {cert} or its key {key} cannot be used: {error}"),
                    })
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        Ok(Arc::new(config))
    }
}

/// The authorities of the system.
struct Native {
    roots: Arc<RootCertStore>,
    /// What went wrong, if anything did: of interest only if there are none.
    problem: Option<String>,
}

fn native() -> &'static Native {
    // It is a file of hundreds of certificates, or the question to a system service.
    static NATIVE: OnceLock<Native> = OnceLock::new();
    NATIVE.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems hold some that are older than the rules; they are passed over.
        roots.add_parsable_certificates(found.certs);
        Native { roots: Arc::new(roots), problem: found.errors.first().map(ToString::to_string) }
    })
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = path.display();
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::setup(format!(
            "there is no certificate in {path}: expected a PEM file with -----BEGIN CERTIFICATE-----"
        ))),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::setup(format!("{path} is no PEM file: {error}"))),
    }
}

fn private_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        TlsError::setup(format!(
            "there is no private key in {}: {error}; expected a PEM file with -----BEGIN PRIVATE KEY-----, not \
             encrypted",
            path.display()
        ))
    })
}

/// Connects over TCP and makes the handshake.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, ConnectError> {
    let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|_| {
        TlsError::setup(format!("{:?} is no host that a certificate can be made out to", endpoint.host()))
    })?;
    let options = endpoint.tls.clone();
    let config = tokio::task::spawn_blocking(move || options.config())
        .await
        .map_err(|_| TlsError::setup("the runtime ended while files were read"))??;
    let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
    // A flush is a whole batch: to hold it back for more would only delay it.
    stream.set_nodelay(true)?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| match tls_error(&error) {
        Some(Error::InvalidMessage(_)) => TlsError {
            kind: TlsErrorKind::NotTls,
            text: format!(
                "the server at {}:{} does not speak TLS: is it ws:// (or http://), or another port?",
                endpoint.host(),
                endpoint.port()
            ),
        }
        .into(),
        Some(error) => TlsError::of(error).into(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => TlsError {
            kind: TlsErrorKind::Other,
            text: "the server closed the connection within the TLS handshake: does it speak TLS, or is it ws:// \
                   (or http://)?"
                .into(),
        }
        .into(),
        None => ConnectError::Io(error),
    })
}

/// The error of TLS within one of a stream.
fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Why there is no connection over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError {
    kind: TlsErrorKind,
    text: String,
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsErrorKind {
    /// Here: a file that cannot be read or used, or no authority to trust.
    Setup,
    /// The server speaks something else.
    NotTls,
    /// No authority that is trusted here has signed the server's certificate, or the certificate cannot
    /// be used for a server.
    Untrusted,
    /// The server's certificate is made out to another host.
    WrongName,
    /// The server's certificate, or the client's, is not valid at this time.
    Expired,
    /// The server wants a certificate of the client's, or another one.
    ClientCertificate,
    /// Something else.
    Other,
}

impl TlsError {
    /// What kind of thing went wrong.
    pub fn kind(&self) -> TlsErrorKind {
        self.kind
    }

    /// Whether to try again.
    pub fn advice(&self) -> Advice {
        match self.kind {
            TlsErrorKind::Setup
            | TlsErrorKind::NotTls
            | TlsErrorKind::Untrusted
            | TlsErrorKind::WrongName
            | TlsErrorKind::ClientCertificate => Advice::Stop,
            // A certificate is renewed without anybody here doing anything.
            TlsErrorKind::Expired | TlsErrorKind::Other => Advice::BackOff,
        }
    }

    fn setup(text: impl Into<String>) -> TlsError {
        TlsError { kind: TlsErrorKind::Setup, text: text.into() }
    }

    /// The error of TLS that is within one of a stream: some refusals come only after the handshake.
    pub(crate) fn within(error: &io::Error) -> Option<TlsError> {
        tls_error(error).map(TlsError::of)
    }

    fn of(error: &Error) -> TlsError {
        let (kind, text) = match error {
            Error::InvalidCertificate(problem) => certificate(problem),
            Error::AlertReceived(alert) => refused(*alert),
            error => (TlsErrorKind::Other, format!("the TLS handshake failed: {error}")),
        };
        TlsError { kind, text }
    }
}

fn certificate(problem: &CertificateError) -> (TlsErrorKind, String) {
    match problem {
        // A bad signature is most often that of another authority of the same name: one that was made
        // anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            TlsErrorKind::Untrusted,
            "the server's certificate is not trusted: no authority that is known here has signed it; if it is one of \
             your own, give its certificate as CA file"
                .into(),
        ),
        CertificateError::NotValidForNameContext { expected, presented } => (
            TlsErrorKind::WrongName,
            format!(
                "the server's certificate is not made out to {} but to {}: connect by that name, or have this one \
                 added to the certificate",
                expected.to_str(),
                match presented.is_empty() {
                    true => "any name".into(),
                    false => presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", "),
                }
            ),
        ),
        CertificateError::NotValidForName => {
            (TlsErrorKind::WrongName, "the server's certificate is made out to another host".into())
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (TlsErrorKind::Expired, format!("the server's certificate has expired: {problem}"))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => (
            TlsErrorKind::Expired,
            format!("the server's certificate is not valid yet: {problem}; is the clock of this machine right?"),
        ),
        // `openssl req -x509` makes such ones unless told otherwise, so people will come with them.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => (
            TlsErrorKind::Untrusted,
            "the server's certificate is not trusted: it is one of an authority (CA:TRUE), which a server must not \
             use itself; make it with `-addext basicConstraints=critical,CA:FALSE`"
                .into(),
        ),
        problem => (TlsErrorKind::Untrusted, format!("the server's certificate is not trusted: {problem}")),
    }
}

/// A name out of `DnsName("localhost")`, as rustls lists them.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once("(\"").and_then(|(_, name)| name.strip_suffix("\")"));
    inner.unwrap_or(presented)
}

fn refused(alert: AlertDescription) -> (TlsErrorKind, String) {
    match alert {
        AlertDescription::CertificateRequired => (
            TlsErrorKind::ClientCertificate,
            "the server asks for a certificate of this client: give one, and its key".into(),
        ),
        AlertDescription::CertificateExpired => {
            (TlsErrorKind::Expired, "the certificate of this client has expired".into())
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::AccessDenied => (
            TlsErrorKind::ClientCertificate,
            format!("the server does not accept the certificate of this client ({alert:?})"),
        ),
        AlertDescription::NoApplicationProtocol => {
            (TlsErrorKind::Other, "the server does not speak HTTP/1.1 here: is it a Taskyard broker?".into())
        }
        alert => (TlsErrorKind::Other, format!("the server refused the TLS handshake: {alert:?}")),
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TlsError {}
