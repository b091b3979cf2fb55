//! TLS with real handshakes over loopback, certificates made for the occasion, and files that change.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use tokio_util::sync::CancellationToken;

use super::tls::POLL_TIME;
use super::*;

/// An authority of the test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key, as PEM.
    fn sign(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// One for this machine, until the year.
    fn server(&self, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        self.sign(params)
    }

    fn client(&self, name: Option<&str>, others: &[&str]) -> (String, String) {
        let others: Vec<String> = others.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(others).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        self.sign(params)
    }
}

/// A directory with a server's files.
struct Files {
    directory: TempDir,
    authority: Authority,
    config: TlsConfig,
}

impl Files {
    fn new() -> Files {
        let directory = tempfile::tempdir().unwrap();
        let config = TlsConfig {
            cert_file: directory.path().join("cert.pem"),
            key_file: directory.path().join("key.pem"),
            client_ca_file: None,
            client_auth: ClientAuth::Off,
        };
        let files = Files { directory, authority: Authority::new("an authority"), config };
        files.renew(2100);
        files
    }

    fn renew(&self, until: i32) {
        let (cert, key) = self.authority.server(until);
        fs::write(&self.config.cert_file, cert).unwrap();
        fs::write(&self.config.key_file, key).unwrap();
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn asking(&self, client_auth: ClientAuth, authority: &Authority) -> TlsConfig {
        let client_ca_file = Some(self.write("clients.pem", &authority.pem));
        TlsConfig { client_auth, client_ca_file, ..self.config.clone() }
    }

    fn problem(&self, config: &TlsConfig) -> String {
        let problem = Tls::open(config).unwrap_err().to_string();
        // It says which file.
        assert!(problem.contains(self.directory.path().to_str().unwrap()), "{problem}");
        problem
    }
}

struct Client {
    roots: RootCertStore,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: &'static [&'static [u8]],
    identity: Option<(String, String)>,
}

impl Client {
    fn of(authority: &Authority) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
        Client {
            roots,
            versions: vec![&version::TLS13, &version::TLS12],
            alpn: &[b"http/1.1"],
            identity: None,
        }
    }

    fn config(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&self.versions)
            .unwrap()
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        config
    }

    async fn connect(&self, stream: TcpStream) -> io::Result<ClientStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(self.config())).connect(name, stream).await
    }
}

/// Two ends of a connection over loopback.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

type Accepted = Result<Box<TlsStream<TcpStream>>, AcceptError>;

async fn both(tls: &Tls, client: &Client) -> (io::Result<ClientStream<TcpStream>>, Accepted) {
    let (ours, theirs) = sockets().await;
    tokio::join!(client.connect(ours), tls.accept(theirs))
}

async fn connected(tls: &Tls, client: &Client) -> (ClientStream<TcpStream>, Stream) {
    let (ours, theirs) = both(tls, client).await;
    (ours.unwrap(), theirs.unwrap().into())
}

/// The certificate that the server showed.
fn shown(stream: &ClientStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn echo(ours: &mut ClientStream<TcpStream>, theirs: &mut Stream) {
    ours.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    theirs.read_exact(&mut heard).await.unwrap();
    theirs.write_all(&heard).await.unwrap();
    theirs.flush().await.unwrap();
    ours.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"ping");
}

#[tokio::test]
async fn both_versions_of_tls_carry_bytes_both_ways() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    for (version, name) in
        [(&version::TLS13, ProtocolVersion::TLSv1_3), (&version::TLS12, ProtocolVersion::TLSv1_2)]
    {
        let client = Client { versions: vec![version], ..Client::of(&files.authority) };
        let (mut ours, mut theirs) = connected(&tls, &client).await;
        assert_eq!(ours.get_ref().1.protocol_version(), Some(name));
        assert_eq!(ours.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert!(theirs.is_tls() && theirs.peer_name().is_none());
        assert_eq!(theirs.tcp().peer_addr().unwrap(), ours.get_ref().0.local_addr().unwrap());
        echo(&mut ours, &mut theirs).await;
        theirs.shutdown().await.unwrap();
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0, "a goodbye, not a cut");
    }
}

#[tokio::test]
async fn only_http_1_1_is_spoken() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let with = |alpn| Client { alpn, ..Client::of(&files.authority) };
    let (ours, theirs) = both(&tls, &with(&[b"h2"])).await;
    assert!(ours.is_err());
    assert!(matches!(theirs, Err(AcceptError::Handshake(_))), "{theirs:?}");
    let (ours, _) = connected(&tls, &with(&[b"h2", b"http/1.1"])).await;
    assert_eq!(ours.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (ours, _) = connected(&tls, &with(&[])).await;
    assert_eq!(ours.get_ref().1.alpn_protocol(), None);
}

/// More than all buffers on the way hold, so that a half that waited for the other would stand still.
async fn halves_work_at_once(ours: impl AsyncRead + AsyncWrite + Send + 'static, theirs: Stream) {
    const BYTES: usize = 4 << 20;
    let (mut read, mut write) = theirs.into_split();
    let (mut our_read, mut our_write) = tokio::io::split(ours);
    let ours = tokio::spawn(async move {
        our_write.write_all(&vec![1; BYTES]).await.unwrap();
        our_write.flush().await.unwrap();
        our_write
    });
    let writing = tokio::spawn(async move {
        write.write_all(&vec![2; BYTES]).await.unwrap();
        write.flush().await.unwrap();
        // In pieces, too.
        let pieces = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
        assert!(write.is_write_vectored());
        assert_eq!(write.write_vectored(&pieces).await.unwrap(), 4);
        write.flush().await.unwrap();
        write
    });
    // Neither end reads before both have written what they can.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (mut sent, mut received) = (vec![0; BYTES], vec![0; BYTES + 4]);
    let (one, other) = tokio::join!(read.read_exact(&mut sent), our_read.read_exact(&mut received));
    one.unwrap();
    other.unwrap();
    assert!(sent.iter().all(|&byte| byte == 1) && received[..BYTES].iter().all(|&byte| byte == 2));
    assert_eq!(&received[BYTES..], b"abcd");
    drop(ours.await.unwrap());
    writing.await.unwrap().shutdown().await.unwrap();
    assert_eq!(our_read.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_read_and_write_at_the_same_time() {
    let (ours, theirs) = sockets().await;
    halves_work_at_once(ours, theirs.into()).await;
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let (ours, theirs) = connected(&tls, &Client::of(&files.authority)).await;
    halves_work_at_once(ours, theirs).await;
}

#[tokio::test]
async fn http_without_tls_is_told_so() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let (mut ours, theirs) = sockets().await;
    // Much more than is read of it in one go.
    let request = format!("GET /v1/queues HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let asking = async {
        ours.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        ours.read_to_string(&mut answer).await.unwrap();
        drop(ours);
        answer
    };
    let (answer, accepted) = tokio::join!(asking, tls.accept(theirs));
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nthis port speaks TLS: use https:// and wss://\n"), "{answer}");
    assert!(matches!(accepted, Err(AcceptError::PlainHttp)), "{accepted:?}");
}

#[tokio::test]
async fn peers_that_say_nothing_or_nonsense_are_let_go() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let (ours, theirs) = sockets().await;
    drop(ours);
    assert!(matches!(tls.accept(theirs).await, Err(AcceptError::Silent)));
    let (mut ours, theirs) = sockets().await;
    ours.write_all(b"\x16nonsense that is no handshake").await.unwrap();
    let error = tls.accept(theirs).await.unwrap_err();
    assert!(error.to_string().contains("handshake failed"), "{error}");
    for start in [&b""[..], b"\x16\x03\x01"] {
        let (mut ours, theirs) = sockets().await;
        ours.write_all(start).await.unwrap();
        let waiting = tokio::spawn({
            let tls = tls.clone();
            async move { tls.accept(theirs).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        tokio::time::pause();
        let error = waiting.await.unwrap().unwrap_err();
        tokio::time::resume();
        assert!(matches!(error, AcceptError::Late), "{error}");
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_say_why() {
    let files = Files::new();
    let good = &files.config;
    let (cert, key) = (fs::read(&good.cert_file).unwrap(), fs::read(&good.key_file).unwrap());
    let cert_file = |path: PathBuf| TlsConfig { cert_file: path, ..good.clone() };
    let key_file = |path: PathBuf| TlsConfig { key_file: path, ..good.clone() };
    let damaged = String::from_utf8(cert.clone()).unwrap().replace("\nMII", "\nMIX");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_encrypted =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let junk = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (config, problem) in [
        (cert_file("/nowhere/cert.pem".into()), "cannot read the certificate /nowhere/cert.pem"),
        (key_file("/nowhere/key.pem".into()), "cannot read the private key /nowhere/key.pem"),
        (cert_file(files.write("empty-0", "")), "no certificate in"),
        (cert_file(files.write("swapped-1", &key)), "exchanged"),
        (key_file(files.write("empty-2", "")), "no private key in"),
        (key_file(files.write("swapped-3", &cert)), "exchanged"),
        (
            key_file(files.write("other-4", files.authority.server(2100).1)),
            "does not belong to the certificate",
        ),
        (key_file(files.write("encrypted-5", encrypted)), "encrypted"),
        (key_file(files.write("encrypted-6", old_encrypted)), "encrypted"),
        (key_file(files.write("junk-7", junk)), "cannot be used"),
        (cert_file(files.write("damaged-8", damaged)), "cannot be understood"),
        (cert_file(files.write("half-9", &cert[..cert.len() / 2])), "no PEM file"),
        (cert_file(files.write("long-10", vec![b'x'; 2 << 20])), "1 MiB"),
        (TlsConfig { client_ca_file: Some(files.write("c-11", &cert)), ..good.clone() }, "not asked for"),
        (
            TlsConfig {
                client_auth: ClientAuth::Optional,
                client_ca_file: Some(files.write("c-12", "")),
                ..good.clone()
            },
            "no certificate in",
        ),
    ] {
        let error = Tls::open(&config).unwrap_err().to_string();
        assert!(error.contains(problem), "expected {problem:?}: {error}");
        if !problem.contains("/nowhere") {
            files.problem(&config);
        }
    }
    let nobody = TlsConfig { client_auth: ClientAuth::Required, ..good.clone() };
    assert!(Tls::open(&nobody).unwrap_err().to_string().contains("authorities that sign"));
    // One file for both is well.
    let both = files.write("both.pem", [cert, key].concat());
    Tls::open(&TlsConfig { cert_file: both.clone(), key_file: both, ..good.clone() }).unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_served_and_its_end_is_known() {
    let files = Files::new();
    files.renew(2001);
    let tls = Tls::open(&files.config).unwrap();
    assert_eq!(tls.not_after(), Some(978_307_200));
    let (ours, _) = both(&tls, &Client::of(&files.authority)).await;
    assert!(ours.unwrap_err().to_string().contains("expired"));
}

#[tokio::test]
async fn a_reload_is_for_new_handshakes_and_open_connections_live_on() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let client = Client::of(&files.authority);
    let (mut ours, mut theirs) = connected(&tls, &client).await;
    assert!(!tls.reload().unwrap(), "nothing is new");
    files.renew(2101);
    // Handshakes go on while it is exchanged.
    let load = tokio::spawn({
        let (tls, client) = (tls.clone(), Client::of(&files.authority));
        async move {
            for _ in 0..20 {
                let (mut ours, mut theirs) = connected(&tls, &client).await;
                echo(&mut ours, &mut theirs).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(tls.reload().unwrap());
    assert!(!tls.reload().unwrap());
    load.await.unwrap();
    echo(&mut ours, &mut theirs).await;
    let (renewed, _) = connected(&tls, &client).await;
    assert_ne!(shown(&ours), shown(&renewed));
    assert_eq!(tls.not_after(), Some(4_133_980_800), "2101-01-01");
    assert_eq!(tls.reload_failures(), 0);
}

#[tokio::test]
async fn a_bad_reload_keeps_what_is_served() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let client = Client::of(&files.authority);
    let (before, _) = connected(&tls, &client).await;
    // The new certificate is there, and its key is not yet.
    let (cert, key) = files.authority.server(2101);
    fs::write(&files.config.cert_file, cert).unwrap();
    assert!(tls.reload().unwrap_err().to_string().contains("does not belong"));
    assert_eq!(tls.reload_failures(), 1);
    let (meanwhile, _) = connected(&tls, &client).await;
    assert_eq!(shown(&before), shown(&meanwhile));
    fs::write(&files.config.key_file, key).unwrap();
    assert!(tls.reload().unwrap());
    let (after, _) = connected(&tls, &client).await;
    assert_ne!(shown(&before), shown(&after));
}

/// Waits for it, as long as a few looks at the files take.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came: {what}");
}

#[tokio::test]
async fn changed_files_are_taken_up_by_themselves() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let first = tls.not_after();
    let cancel = CancellationToken::new();
    let keeping = tokio::spawn({
        let (tls, cancel) = (tls.clone(), cancel.clone());
        async move { tls.keep_fresh(cancel).await }
    });
    // File systems tell times apart that are some milliseconds apart.
    tokio::time::sleep(Duration::from_millis(20)).await;
    files.renew(2101);
    eventually("the renewed certificate", || tls.not_after() != first).await;
    // A bad one is tried once, however often it is looked at.
    fs::write(&files.config.key_file, "nonsense").unwrap();
    eventually("the failure", || tls.reload_failures() == 1).await;
    tokio::time::sleep(POLL_TIME * 5 / 2).await;
    assert_eq!(tls.reload_failures(), 1);
    files.renew(2102);
    let second = tls.not_after();
    eventually("the certificate after the bad one", || tls.not_after() != second).await;
    cancel.cancel();
    keeping.await.unwrap();
}

#[tokio::test]
async fn a_directory_that_is_exchanged_by_a_symlink_is_noticed() {
    // As Kubernetes does: cert.pem -> ..data/cert.pem, ..data -> ..version, and `..data` is renamed
    // over.
    let files = Files::new();
    let root = files.directory.path();
    let place = |version: &str, until| {
        let directory = root.join(version);
        fs::create_dir(&directory).unwrap();
        let (cert, key) = files.authority.server(until);
        fs::write(directory.join("cert.pem"), cert).unwrap();
        fs::write(directory.join("key.pem"), key).unwrap();
    };
    let link = |target: &str, name: &Path| {
        let new = root.join("..new");
        std::os::unix::fs::symlink(target, &new).unwrap();
        fs::rename(new, name).unwrap();
    };
    place("..1", 2100);
    place("..2", 2101);
    link("..1", &root.join("..data"));
    link("..data/cert.pem", &files.config.cert_file);
    link("..data/key.pem", &files.config.key_file);
    let tls = Tls::open(&files.config).unwrap();
    let before = tls.not_after();
    let _keeping = tokio::spawn({
        let tls = tls.clone();
        async move { tls.keep_fresh(CancellationToken::new()).await }
    });
    link("..2", &root.join("..data"));
    eventually("the other directory's certificate", || tls.not_after() != before).await;
    assert_eq!(tls.reload_failures(), 0);
}

#[tokio::test]
async fn files_that_may_not_be_read_are_tried_again_once_they_may() {
    let files = Files::new();
    let tls = Tls::open(&files.config).unwrap();
    let before = super::material::Stamps::take(&files.config);
    fs::set_permissions(&files.config.key_file, fs::Permissions::from_mode(0o400)).unwrap();
    assert_ne!(before, super::material::Stamps::take(&files.config), "a change of rights is a change");
    assert!(!tls.reload().unwrap());
}

#[tokio::test]
async fn clients_that_must_show_a_certificate_are_known_by_it() {
    let (files, clients, strangers) = (Files::new(), Authority::new("clients"), Authority::new("strangers"));
    let tls = Tls::open(&files.asking(ClientAuth::Required, &clients)).unwrap();
    let showing = |identity| Client { identity, ..Client::of(&files.authority) };
    for (identity, name) in [
        (clients.client(Some("worker 7"), &["other.example"]), Some("worker 7")),
        (clients.client(None, &["worker.example"]), Some("worker.example")),
        (clients.client(None, &["192.0.2.1"]), None),
    ] {
        let (mut ours, mut theirs) = connected(&tls, &showing(Some(identity))).await;
        assert_eq!(theirs.peer_name().as_deref(), name);
        echo(&mut ours, &mut theirs).await;
    }
    for identity in [None, Some(strangers.client(Some("worker 7"), &[]))] {
        let (_, theirs) = both(&tls, &showing(identity)).await;
        assert!(matches!(theirs, Err(AcceptError::Handshake(_))), "{theirs:?}");
    }
}

#[tokio::test]
async fn clients_that_may_show_a_certificate_need_not() {
    let (files, clients, strangers) = (Files::new(), Authority::new("clients"), Authority::new("strangers"));
    let tls = Tls::open(&files.asking(ClientAuth::Optional, &clients)).unwrap();
    let showing = |identity| Client { identity, ..Client::of(&files.authority) };
    let (_, theirs) = connected(&tls, &showing(None)).await;
    assert_eq!(theirs.peer_name(), None);
    let (_, theirs) = connected(&tls, &showing(Some(clients.client(Some("known"), &[])))).await;
    assert_eq!(theirs.peer_name().as_deref(), Some("known"));
    let (_, theirs) = both(&tls, &showing(Some(strangers.client(Some("known"), &[])))).await;
    assert!(matches!(theirs, Err(AcceptError::Handshake(_))), "a bad one is worse than none");
}

#[tokio::test]
async fn sessions_are_resumed_unless_clients_show_certificates() {
    use tokio_rustls::rustls::HandshakeKind;
    let (files, clients) = (Files::new(), Authority::new("clients"));
    let plain = Tls::open(&files.config).unwrap();
    let mutual = Tls::open(&files.asking(ClientAuth::Required, &clients)).unwrap();
    for version in [&version::TLS13, &version::TLS12] {
        for (tls, resumed) in [(&plain, true), (&mutual, false)] {
            let identity = Some(clients.client(Some("known"), &[]));
            let client = Client { versions: vec![version], identity, ..Client::of(&files.authority) };
            let connector = TlsConnector::from(Arc::new(client.config()));
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let (ours, theirs) = sockets().await;
                let name = ServerName::try_from("localhost").unwrap();
                let (ours, theirs) = tokio::join!(connector.connect(name, ours), tls.accept(theirs));
                let (mut ours, mut theirs) = (ours.unwrap(), Stream::from(theirs.unwrap()));
                // The ticket comes with the first bytes.
                echo(&mut ours, &mut theirs).await;
                kinds.push(ours.get_ref().1.handshake_kind().unwrap());
            }
            assert_eq!(kinds[1] == HandshakeKind::Resumed, resumed, "{kinds:?}");
            assert_ne!(kinds[0], HandshakeKind::Resumed);
        }
    }
}
