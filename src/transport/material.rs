//! From files to what a handshake needs: certificates, a key, authorities of clients. What is wrong
//! with a file is said with its name and what to do about it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{CertificateError, Error, InconsistentKeys, RootCertStore, ServerConfig};

use super::certificate;
use super::tls::{ClientAuth, TlsConfig};

/// The one protocol that is spoken. A client that offers others only is told so by the handshake,
/// instead of by bytes that it does not understand.
const ALPN: &[u8] = b"http/1.1";
/// The longest file that is read; a bundle of all public authorities has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Tickets that a client gets to come back with less work. Its own default is two; a client of ours
/// makes one connection at a time.
const TICKETS: usize = 1;

/// What is wrong with the files of a [`TlsConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError(String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// What the files hold, ready to be served.
pub(super) struct Material {
    pub(super) server: Arc<ServerConfig>,
    /// When the server's own certificate ends, in seconds since 1970.
    pub(super) not_after: Option<u64>,
    /// Of all that was read; the key itself is kept by nobody but the config.
    pub(super) digest: [u8; 32],
}

/// What tells whether the files changed, without reading them. A file that is not there has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Option<Stamp>>);

/// Of what the name leads to: another target of a symlink, however deep in the path, is another inode.
/// The access rights are there because they may have been all that was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamps {
    pub(super) fn take(config: &TlsConfig) -> Stamps {
        let files = [Some(&config.cert_file), Some(&config.key_file), config.client_ca_file.as_ref()];
        let stamp = |file: &PathBuf| {
            let found = std::fs::metadata(file).ok()?;
            Some(Stamp {
                device: found.dev(),
                inode: found.ino(),
                bytes: found.len(),
                mode: found.mode(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            })
        };
        Stamps(files.into_iter().flatten().map(stamp).collect())
    }
}

impl Material {
    pub(super) fn load(config: &TlsConfig) -> Result<Material, TlsError> {
        let TlsConfig { cert_file, key_file, client_ca_file, client_auth } = config;
        let mut digest = Sha256::new();
        let mut read = |file: &Path, what: &str| {
            let bytes = read(file, what)?;
            // With its length, so that bytes that move from one file to the next are a change.
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(&bytes);
            Ok(bytes)
        };
        let chain = certificates(&read(cert_file, "the certificate")?, cert_file)?;
        let key = private_key(&read(key_file, "the private key")?, key_file)?;
        let authorities = match (client_auth, client_ca_file) {
            (ClientAuth::Off, None) => None,
            (ClientAuth::Off, Some(file)) => {
                return Err(TlsError(format!(
                    "certificates of clients are not asked for, and yet {} says whose to accept: ask for them \
                     (optional or required), or leave the file out",
                    file.display()
                )));
            }
            (_, None) => {
                return Err(TlsError(
                    "certificates of clients are asked for, and no file says whose to accept: give the file of the \
                     authorities that sign them"
                        .into(),
                ));
            }
            (_, Some(file)) => Some(authorities(&read(file, "the authorities of clients")?, file)?),
        };
        let not_after = chain.first().and_then(|leaf| certificate::not_after(leaf));
        let server = server_config(chain, key, authorities, *client_auth)
            .map_err(|error| TlsError(refused(&error, cert_file, key_file)))?;
        Ok(Material { server: Arc::new(server), not_after, digest: digest.finalize().into() })
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Option<RootCertStore>,
    client_auth: ClientAuth,
) -> Result<ServerConfig, Error> {
    // Named, not the process's default: no other user of rustls can change it, and there is nothing to
    // install.
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let asks_clients = authorities.is_some();
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match client_auth {
                ClientAuth::Required => verifier,
                ClientAuth::Optional | ClientAuth::Off => verifier.allow_unauthenticated(),
            };
            builder.with_client_cert_verifier(
                verifier.build().map_err(|error| Error::General(error.to_string()))?,
            )
        }
    };
    let mut server = builder.with_single_cert(chain, key)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is resumed is kept by the client, in a ticket; nothing is kept here.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    if asks_clients {
        // A resumed session does not show the client's certificate again: one that has ended since
        // would be let in.
        server.send_tls13_tickets = 0;
    } else {
        server.ticketer = aws_lc_rs::Ticketer::new()?;
        server.send_tls13_tickets = TICKETS;
    }
    Ok(server)
}

/// Says in terms of files what rustls says in those of TLS.
fn refused(error: &Error, cert_file: &Path, key_file: &Path) -> String {
    let (cert, key) = (cert_file.display(), key_file.display());
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
            "the private key {key} does not belong to the certificate {cert}: give the two that were made together; \
             in a chain, the server's own certificate must come first"
        ),
        Error::InvalidCertificate(CertificateError::BadEncoding) => {
            format!(
                "the certificate {cert} cannot be understood: it is damaged, or not one of X.509 version 3"
            )
        }
        Error::InvalidCertificate(error) => format!("the certificate {cert} cannot be used: {error}"),
        other => format!("the private key {key} or the certificate {cert} cannot be used: {other}"),
    }
}

fn read(file: &Path, what: &str) -> Result<Vec<u8>, TlsError> {
    let wrong =
        |problem: &dyn fmt::Display| TlsError(format!("cannot read {what} {}: {problem}", file.display()));
    let mut bytes = Vec::new();
    File::open(file).and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(
        |error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                wrong(&format_args!("{error}; the user that runs this must be allowed to"))
            }
            _ => wrong(&error),
        },
    )?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(&"it is longer than 1 MiB, and so hardly the right file"));
    }
    Ok(bytes)
}

fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| TlsError(format!("{} is no PEM file: {error}", file.display())))?;
    if !found.is_empty() {
        return Ok(found);
    }
    let why = if holds(pem, "PRIVATE KEY-----") {
        "it holds a private key: are the two files exchanged?"
    } else {
        "expected a PEM file with -----BEGIN CERTIFICATE-----"
    };
    Err(TlsError(format!("there is no certificate in {}: {why}", file.display())))
}

fn private_key(pem: &[u8], file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let file = file.display();
    if holds(pem, "BEGIN ENCRYPTED PRIVATE KEY") || holds(pem, "Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError(format!(
            "the private key {file} is encrypted, and there is nobody here to ask for its password: store it \
             decrypted (`openssl pkey -in KEY -out NEW`) and readable to this user alone"
        )));
    }
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        Some(Err(error)) => Err(TlsError(format!("{file} is no PEM file: {error}"))),
        None => {
            let why = if holds(pem, "BEGIN CERTIFICATE") {
                "it holds a certificate: are the two files exchanged?"
            } else {
                "expected a PEM file with -----BEGIN PRIVATE KEY-----"
            };
            Err(TlsError(format!("there is no private key in {file}: {why}")))
        }
    }
}

fn authorities(pem: &[u8], file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (nth, certificate) in certificates(pem, file)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            let (nth, file) = (nth + 1, file.display());
            TlsError(format!("certificate {nth} in {file} is not one of an authority: {error}"))
        })?;
    }
    Ok(roots)
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
