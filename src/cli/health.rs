//! `taskyard health`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use taskyard_client::http::{self, Method, Request};
use taskyard_client::{ConnectError, Endpoint};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::output::{self, clean, print_line};
use super::serve::reached_at;
use super::{Certificates, Failed, Remote, span};
use crate::config::{Config, Source, Sources};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --url it asks the broker that `taskyard serve` runs with the same environment and file: \
on loopback, over TLS if that is configured, and through a PROXY header where one is expected. For Docker:\n\n  \
HEALTHCHECK CMD [\"taskyard\", \"health\"]"
)]
pub(super) struct Args {
    /// The broker to ask [default: the one of this machine, where the configuration has it listen]
    #[arg(long, env = "TASKYARD_URL", value_name = "URL")]
    url: Option<String>,

    /// Where the broker listens, if not where its configuration says [env: TASKYARD_LISTEN]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// The broker's configuration, if it has a file
    #[arg(long = "config", env = "TASKYARD_CONFIG", value_name = "FILE")]
    file: Option<PathBuf>,

    /// How long it may take
    #[arg(long, default_value = "5s", value_parser = span::within_a_year, value_name = "TIME")]
    timeout: u64,

    #[command(flatten)]
    certificates: Certificates,
}

/// Exit code 0: it is ready. 1: it is not, or cannot be asked. Nothing is said in between, so that whoever restarts
/// brokers need not read.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let limit = Duration::from_millis(args.timeout);
    let (place, asked) = match (&args.url, &args.listen) {
        (Some(url), None) => (url.clone(), tokio::time::timeout(limit, over(url, &args)).await),
        _ => {
            let config = config(&args)?;
            let place = reached_at(config.listen);
            let url = format!("{}://{place}", if config.tls.is_some() { "https" } else { "http" });
            let asked = tokio::time::timeout(limit, here(&config, place, &url, &args.certificates)).await;
            (url, asked)
        }
    };
    let (status, body) = match asked {
        Ok(answer) => answer?,
        Err(_) => {
            let text = format!("the broker at {place} did not answer within {} ms", args.timeout);
            return Err(Failed::other(text));
        }
    };
    if status == 200 {
        print_line(&format!("the broker at {place} is ready"))?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failed::other(format!("the broker at {place} is not ready: {}", reason(status, &body))))
}

/// The broker's own words, if it has any.
fn reason(status: u16, body: &[u8]) -> String {
    let said = output::read(&String::from_utf8_lossy(body)).unwrap_or(Value::Null);
    match said["message"].as_str() {
        Some(message) => clean(message),
        // As a port that speaks TLS answers to what is none.
        None if body.starts_with(b"this port speaks TLS") => clean(String::from_utf8_lossy(body).trim()),
        None => format!("it answered {status}, where 200 was expected"),
    }
}

async fn over(url: &str, args: &Args) -> Result<(u16, Vec<u8>), Failed> {
    let remote = Remote { certificates: args.certificates.clone(), ..Remote::at(url) };
    let failed = |failed: Failed| Failed { code: 1, ..failed };
    let options = remote.options().map_err(failed)?;
    http::get_from(options.endpoint(), "/readyz").await.map_err(|error| failed(remote.unreachable(&error)))
}

/// What the broker runs with, as far as file and environment say it.
fn config(args: &Args) -> Result<Config, Failed> {
    let mut sources = Sources::default();
    sources.file.clone_from(&args.file);
    let resolve = || {
        let mut values = sources.values()?;
        if let Some(listen) = &args.listen {
            values.set("listen", listen, Source::Flag)?;
        }
        values.resolve()
    };
    resolve().map_err(Failed::other)
}

async fn here(
    config: &Config,
    place: SocketAddr,
    url: &str,
    certificates: &Certificates,
) -> Result<(u16, Vec<u8>), Failed> {
    let endpoint = Endpoint::parse(url).map_err(Failed::other)?;
    let request = Request::new(Method::GET, "/readyz");
    let unreachable = |error: ConnectError| Remote::at(url).unreachable(&error);
    let mut stream = TcpStream::connect(place).await.map_err(|error| unreachable(error.into()))?;
    let own = stream.local_addr().map_err(|error| unreachable(error.into()))?.ip();
    if config.proxy_protocol && config.live.trusted_proxies.contains(own) {
        // As a load balancer's own health check says it: nobody stands behind this connection.
        stream.write_all(b"PROXY UNKNOWN\r\n").await.map_err(|error| unreachable(error.into()))?;
    }
    if config.tls.is_none() {
        return http::send_over(stream, &endpoint, request).await.map_err(unreachable);
    }
    let tls = TlsConnector::from(Arc::new(tls(certificates)?));
    let stream = tls
        .connect(ServerName::from(place.ip()), stream)
        .await
        .map_err(|error| Failed::other(format!("there is no TLS with the broker at {url}: {error}")))?;
    http::send_over(stream, &endpoint, request).await.map_err(|error| {
        let failed = unreachable(error);
        let asks =
            config.tls.as_ref().and_then(|tls| tls.clients.as_ref()).is_some_and(|asked| asked.required);
        if asks && certificates.client_cert_file.is_none() {
            let text =
                "the broker asks for a certificate: give one with --client-cert-file and --client-key-file";
            return Failed::other(format!("{} ({text})", failed.message));
        }
        failed
    })
}

/// TLS with whoever has the port on this machine, whatever name the certificate is made out to: it is the broker's
/// public one, and need not be for an address of loopback. No token is sent, and all that is believed is "ready".
fn tls(certificates: &Certificates) -> Result<ClientConfig, Failed> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(Failed::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(provider)));
    let mut config = match (&certificates.client_cert_file, &certificates.client_key_file) {
        (Some(cert), Some(key)) => {
            let wrong = |path: &PathBuf, error: String| {
                Failed::other(format!("cannot use {}: {error}; expected a PEM file", path.display()))
            };
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<_, _>>);
            let chain = chain.map_err(|error| wrong(cert, error.to_string()))?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|error| wrong(cert, error.to_string()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Checks that the other side has the key of its certificate, and not whose that is.
#[derive(Debug)]
struct AnyName(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_not_ready_says_why() {
        let body = br#"{"code":"draining","message":"the broker is shutting down","retryable":true}"#;
        assert_eq!(reason(503, body), "the broker is shutting down");
        assert_eq!(reason(404, b"<html>"), "it answered 404, where 200 was expected");
        let tls = b"this port speaks TLS: use https:// and wss://\n";
        assert_eq!(reason(400, tls), "this port speaks TLS: use https:// and wss://");
    }
}
