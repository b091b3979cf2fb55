//! TLS against a server in the test: whom the client trusts, and what it says when it does not.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use taskyard_client::proto::code::Advice;
use taskyard_client::{ClientOptions, ConnectError, Connection, Endpoint, TlsErrorKind, TlsOptions, http};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::fake::{try_read_upgrade, upgrade_answer};

/// An authority, and the directory where files of its making are.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    directory: TempDir,
}

impl Authority {
    fn new() -> Authority {
        Authority::named("an authority")
    }

    fn named(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), &pem).unwrap();
        Authority { issuer: Issuer::new(params, key), pem, directory }
    }

    fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A certificate and its key, as PEM.
    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn client_files(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = self.sign(&["a-client"], |_| ());
        let files = ["client.pem", "client.key"].map(|name| self.directory.path().join(name));
        fs::write(&files[0], cert).unwrap();
        fs::write(&files[1], key).unwrap();
        files.into()
    }

    fn options(&self) -> TlsOptions {
        TlsOptions::default().ca_file(self.ca_file())
    }
}

/// A server's settings with this certificate; with authorities of clients it requires theirs.
fn server_config((cert, key): &(String, String), clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let mut config =
        builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// A broker as far as the upgrade; gives its port.
async fn broker(config: ServerConfig) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let Some(key) = try_read_upgrade(&mut stream).await else { continue };
            let answer = match key.head.starts_with("GET /ws ") {
                true => upgrade_answer(&key.accept, &key.protocol),
                false => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]".into(),
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    (port, serving)
}

fn endpoint(host: &str, port: u16, tls: TlsOptions) -> Endpoint {
    let mut endpoint = Endpoint::parse(&format!("wss://{host}:{port}")).unwrap();
    endpoint.tls = tls;
    endpoint
}

async fn refused(endpoint: &Endpoint, kind: TlsErrorKind) -> String {
    match Connection::open(endpoint).await.unwrap_err() {
        ConnectError::Tls(error) => {
            assert_eq!(error.kind(), kind, "{error}");
            error.to_string()
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_server_whose_authority_is_named_is_spoken_to() {
    let authority = Authority::new();
    let cert = authority.sign(&["localhost", "127.0.0.1"], |_| ());
    let (port, _serving) = broker(server_config(&cert, None)).await;
    for host in ["localhost", "127.0.0.1"] {
        let endpoint = endpoint(host, port, authority.options());
        Connection::open(&endpoint).await.unwrap();
        let (status, body) = http::get_from(&endpoint, "/v1/queues").await.unwrap();
        assert_eq!((status, body.as_slice()), (200, &b"[]"[..]));
    }
    let url = format!("https://localhost:{port}");
    let options = ClientOptions::new(&url).unwrap().ca_file(authority.ca_file());
    Connection::open(options.endpoint()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_nobody_knows_is_not_trusted() {
    let authority = Authority::new();
    // Also one that calls itself the same.
    for stranger in [Authority::named("a stranger"), Authority::new()] {
        let cert = stranger.sign(&["localhost"], |_| ());
        let (port, _serving) = broker(server_config(&cert, None)).await;
        let error = refused(&endpoint("localhost", port, authority.options()), TlsErrorKind::Untrusted).await;
        assert!(error.contains("not trusted") && error.contains("CA file"), "{error}");
    }
    let cert = Authority::named("a stranger").sign(&["localhost"], |_| ());
    let (port, _serving) = broker(server_config(&cert, None)).await;
    let error = http::get_from(&endpoint("localhost", port, authority.options()), "/").await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls(_)) && error.advice() == Advice::Stop, "{error}");
}

#[tokio::test]
async fn a_certificate_for_another_host_is_not_trusted() {
    let authority = Authority::new();
    let cert = authority.sign(&["broker.example"], |_| ());
    let (port, _serving) = broker(server_config(&cert, None)).await;
    for host in ["localhost", "127.0.0.1"] {
        let error = refused(&endpoint(host, port, authority.options()), TlsErrorKind::WrongName).await;
        assert!(error.contains(host) && error.contains("but to broker.example:"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_time_is_not_trusted_but_may_be_later() {
    let authority = Authority::new();
    for (from, until, text) in [(2000, 2001, "expired"), (2100, 2101, "not valid yet")] {
        let cert = authority.sign(&["localhost"], |params| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
        });
        let (port, _serving) = broker(server_config(&cert, None)).await;
        let endpoint = endpoint("localhost", port, authority.options());
        let error = refused(&endpoint, TlsErrorKind::Expired).await;
        assert!(error.contains(text), "{error}");
        let error = Connection::open(&endpoint).await.unwrap_err();
        assert_eq!(error.advice(), Advice::BackOff);
    }
}

#[tokio::test]
async fn an_authority_that_serves_with_its_own_certificate_is_told_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let cert = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
    let ca_file = directory.path().join("ca.pem");
    fs::write(&ca_file, &cert.0).unwrap();
    let (port, _serving) = broker(server_config(&cert, None)).await;
    let tls = TlsOptions::default().ca_file(ca_file);
    let error = refused(&endpoint("localhost", port, tls), TlsErrorKind::Untrusted).await;
    assert!(error.contains("CA:FALSE"), "{error}");
}

#[tokio::test]
async fn a_server_without_tls_is_recognised() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = endpoint("127.0.0.1", port, authority.options());
    let plain = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    };
    let (error, _stream) = tokio::join!(refused(&endpoint, TlsErrorKind::NotTls), plain);
    assert!(error.contains("is it ws://"), "{error}");
    let cut = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = vec![0; 16 << 10];
        assert!(stream.read(&mut hello).await.unwrap() > 0);
    };
    let (error, ()) = tokio::join!(refused(&endpoint, TlsErrorKind::Other), cut);
    assert!(error.contains("does it speak TLS"), "{error}");
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_it() {
    let (authority, clients) = (Authority::new(), Authority::named("of clients"));
    let cert = authority.sign(&["localhost"], |_| ());
    let (port, _serving) = broker(server_config(&cert, Some(&clients))).await;
    let error =
        refused(&endpoint("localhost", port, authority.options()), TlsErrorKind::ClientCertificate).await;
    assert!(error.contains("asks for a certificate"), "{error}");
    let showing = |of: &Authority| {
        let (cert, key) = of.client_files();
        endpoint("localhost", port, authority.options().client_certificate(cert, key))
    };
    Connection::open(&showing(&clients)).await.unwrap();
    let error = refused(&showing(&authority), TlsErrorKind::ClientCertificate).await;
    assert!(error.contains("does not accept the certificate"), "{error}");
}

#[tokio::test]
async fn files_are_read_again_when_they_change_and_bad_ones_are_passed_over() {
    let (authority, later) = (Authority::new(), Authority::new());
    let cert = later.sign(&["localhost"], |_| ());
    let (port, _serving) = broker(server_config(&cert, None)).await;
    let endpoint = endpoint("localhost", port, authority.options());
    refused(&endpoint, TlsErrorKind::Untrusted).await;
    fs::write(authority.ca_file(), &later.pem).unwrap();
    Connection::open(&endpoint).await.unwrap();
    fs::write(authority.ca_file(), "half-writt").unwrap();
    Connection::open(&endpoint.clone()).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let (cert, key) = authority.client_files();
    let stranger = Authority::new();
    let (_, other_key) = stranger.client_files();
    let (ca, none) = (authority.ca_file(), PathBuf::from("/nowhere/x.pem"));
    let options = TlsOptions::default;
    for (tls, text) in [
        (options().ca_file(&none), "cannot read /nowhere/x.pem"),
        (options().ca_file(&key), "no certificate in"),
        (options().client_certificate(&none, &key), "cannot read /nowhere/x.pem"),
        (options().ca_file(&ca).client_certificate(&key, &key), "no certificate in"),
        (options().ca_file(&ca).client_certificate(&cert, &cert), "no private key in"),
        (options().ca_file(&ca).client_certificate(&cert, &other_key), "does not belong"),
    ] {
        let error = refused(&endpoint("localhost", 1, tls), TlsErrorKind::Setup).await;
        assert!(error.contains(text), "{error}");
    }
}
