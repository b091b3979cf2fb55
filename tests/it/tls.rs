//! TLS of the broker's own: HTTP and sockets over it, certificates that change, and clients' own.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::http::{Answer, Connection, Wire};
use crate::support::{Broker, Child, Heard, Output, PATIENCE, Ws, command, until, upgrade_request};

const TOKEN: (&str, &str) = ("TASKYARD_ADMIN_TOKEN", "0123456789abcdef0123456789abcdef");

/// An authority, and files that it has signed.
struct Files {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Files {
    fn new() -> Files {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let files = Files { directory: tempfile::tempdir().unwrap(), issuer: Issuer::new(params, key), pem };
        std::fs::write(files.path("ca.pem"), &files.pem).unwrap();
        files.renew("cert.pem", "key.pem");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Signs a certificate for this machine; gives it.
    fn renew(&self, cert: &str, key: &str) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        let pair = KeyPair::generate().unwrap();
        let pem = params.signed_by(&pair, &self.issuer).unwrap().pem();
        std::fs::write(self.path(key), pair.serialize_pem()).unwrap();
        std::fs::write(self.path(cert), &pem).unwrap();
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    fn arguments(&self) -> Vec<String> {
        [("--tls-cert-file", "cert.pem"), ("--tls-key-file", "key.pem")]
            .iter()
            .flat_map(|(flag, name)| [(*flag).to_owned(), self.path(name).display().to_string()])
            .collect()
    }

    fn broker(&self, more: &[&str]) -> Broker {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Broker::with(&arguments)
    }

    fn in_memory(&self, more: &[&str]) -> Broker {
        self.broker(&[&["--engine", "memory"], more].concat())
    }

    /// Somebody who trusts this authority, and shows this certificate.
    fn client(&self, shown: Option<(&Path, &Path)>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_file(cert).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
            }
        };
        Client(Arc::new(config))
    }
}

/// The metrics of a broker with all that a broker may have: a store and a certificate.
pub(crate) fn metrics_over_tls() -> String {
    let files = Files::new();
    let broker = files.broker(&[]);
    let answer = files.client(None).get(broker.address, "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text().to_owned()
}

struct Client(Arc<ClientConfig>);

impl Client {
    fn stream(&self, address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
        self.stream_after(address, b"")
    }

    /// With something in front of the handshake.
    fn stream_after(&self, address: SocketAddr, first: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_write_timeout(Some(PATIENCE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.write_all(first).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(self.0.clone(), name).unwrap(), tcp)
    }

    fn open(&self, address: SocketAddr) -> Connection {
        Connection::over(Wire::Tls(Box::new(self.stream(address))))
    }

    fn exchange(&self, address: SocketAddr, request: &str) -> Answer {
        let mut connection = self.open(address);
        connection.send(request.as_bytes());
        connection.answer()
    }

    fn get(&self, address: SocketAddr, path: &str) -> Answer {
        self.exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
    }

    fn metric(&self, broker: &Broker, name: &str) -> u64 {
        let answer = self.get(broker.address, "/metrics");
        let line = answer.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    fn ws(&self, address: SocketAddr) -> Ws {
        let mut connection = self.open(address);
        connection.send(upgrade_request(address, "/ws", "").as_bytes());
        assert_eq!(connection.head().status, 101);
        Ws::over(connection)
    }

    /// The certificate that is served; none: the handshake fails.
    fn certificate(&self, address: SocketAddr) -> Option<CertificateDer<'static>> {
        let mut stream = self.stream(address);
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        Some(stream.conn.peer_certificates()?.first()?.clone().into_owned())
    }
}

#[test]
fn http_and_sockets_come_over_one_listener() {
    let files = Files::new();
    let broker = files.broker(&[]);
    broker.logged(&format!("listening on https://{0} and wss://{0}/ws", broker.address));
    let client = files.client(None);
    assert_eq!(client.get(broker.address, "/readyz").status, 200);
    let mut ws = client.ws(broker.address);
    ws.subscribe("q", 2);
    // As long as messages may be, both ways, and a byte a record.
    let payload = "x".repeat((1 << 20) - 100);
    let task = ws.submit(json!({"queue": "q", "payload": payload}));
    let delivery = ws.task();
    assert_eq!((&delivery["task"], &delivery["payload"]), (&json!(task), &json!(payload)));
    ws.ack(&delivery);
    for byte in Ws::masked(0x81, br#"{"type":"ping","id":"slowly"}"#) {
        ws.raw(&[byte]);
    }
    assert_eq!(ws.wait_for("pong")["ref"], "slowly");
    // Broken frames are told over TLS, too, and the end is clean: a cut would be an error here.
    ws.raw(&[0xff]);
    ws.closes(1002);
    assert!(client.metric(&broker, "taskyard_tls_certificate_expiry_seconds") > 0);
    // What is secure is not secure to a page that is not.
    for (origin, status) in [("http", 403), ("https", 101)] {
        let origin = format!("Origin: {origin}://{}\r\n", broker.address);
        let answer = client.exchange(broker.address, &upgrade_request(broker.address, "/ws", &origin));
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[test]
fn http_without_tls_is_told_what_to_use() {
    let files = Files::new();
    let broker = files.in_memory(&[]);
    for request in [
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        format!(
            "POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n{}",
            "x".repeat(30_000)
        ),
        upgrade_request(broker.address, "/ws", ""),
    ] {
        let mut connection = Connection::open(broker.address);
        connection.send(request.as_bytes());
        let answer = connection.answer();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.text().contains("https://") && answer.text().contains("wss://"), "{answer:?}");
        connection.ends();
    }
    for garbage in [&[0; 100][..], &[22, 3, 1, 0xff, 0xff], b"\r\n\r\n\0\r\nQUIT\n"] {
        let mut connection = Connection::open(broker.address);
        connection.send(garbage);
        connection.finish_writing();
        connection.ends();
    }
    assert_eq!(files.client(None).get(broker.address, "/healthz").status, 200);
}

#[test]
fn the_command_line_speaks_it() {
    let files = Files::new();
    let broker = files.in_memory(&[]);
    let url = format!("https://localhost:{}", broker.address.port());
    let ca = files.path("ca.pem");
    let run = |arguments: &[&str]| {
        let mut command = command(arguments);
        Output::of(command.env("TASKYARD_URL", &url))
    };
    let with_ca = |arguments: &[&str]| run(&[arguments, &["--ca-file", ca.to_str().unwrap()]].concat());
    let submitted = with_ca(&["submit", "q", "{\"n\":1}"]);
    assert_eq!(submitted.code, Some(0), "{submitted:?}");
    let status = with_ca(&["status"]);
    assert!(status.code == Some(0) && status.out.contains('q'), "{status:?}");
    // An authority that nobody knows is not trusted.
    let stranger = run(&["submit", "q", "{}"]);
    assert_ne!(stranger.code, Some(0), "{stranger:?}");
    let mut worker = command(&["work", "q", "--ca-file", ca.to_str().unwrap(), "--", "cat"]);
    let worker = Child::of(worker.env("TASKYARD_URL", &url));
    let client = files.client(None);
    until("the task to be done", || {
        let counts = client.get(broker.address, "/v1/queues/q").json()["counts"].clone();
        (counts["done"] == 1).then_some(())
    });
    worker.signal("TERM");
    worker.output();
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_not() {
    let files = Files::new();
    let broker = files.in_memory(&[]);
    let client = files.client(None);
    let mut open = client.ws(broker.address);
    let first = client.certificate(broker.address).unwrap();
    // At the signal, at once.
    let second = files.renew("cert.pem", "key.pem");
    broker.signal("HUP");
    until("the certificate to change", || {
        (client.certificate(broker.address) == Some(second.clone())).then_some(())
    });
    assert_ne!(first, second);
    let failures = || client.metric(&broker, "taskyard_tls_reload_failures_total");
    assert_eq!(failures(), 0);
    // A bad one stays outside, and is counted.
    std::fs::write(files.path("cert.pem"), "nonsense").unwrap();
    broker.signal("HUP");
    broker.logged("the configuration is not reloaded");
    assert!(failures() >= 1);
    assert_eq!(client.certificate(broker.address), Some(second.clone()));
    // One without its key, too; then it comes, and is taken up without any signal.
    let key = std::fs::read(files.path("key.pem")).unwrap();
    let third = files.renew("cert.pem", "key.pem");
    let new_key = std::fs::read(files.path("key.pem")).unwrap();
    std::fs::write(files.path("key.pem"), key).unwrap();
    broker.signal("HUP");
    until("the failure to be counted", || (failures() >= 2).then_some(()));
    assert_eq!(client.certificate(broker.address), Some(second));
    std::fs::write(files.path("key.pem"), new_key).unwrap();
    until("the certificate to change", || {
        (client.certificate(broker.address) == Some(third.clone())).then_some(())
    });
    // Who was there stays.
    open.gets("pong", json!({"type": "ping"}));
}

/// Files of other names were said to be reloaded, and were not looked at.
#[test]
fn a_reload_takes_files_of_other_names() {
    let files = Files::new();
    let config = files.path("taskyard.toml");
    let write = |cert: &str, key: &str, more: &str| {
        let text = format!(
            "engine = \"memory\"\n[tls]\ncert_file = {:?}\nkey_file = {:?}\n{more}",
            files.path(cert),
            files.path(key)
        );
        std::fs::write(&config, text).unwrap();
    };
    write("cert.pem", "key.pem", "");
    let broker = Broker::with(&["--config", config.to_str().unwrap()]);
    let client = files.client(None);
    let first = client.certificate(broker.address).unwrap();
    let second = files.renew("other-cert.pem", "other-key.pem");
    write("no-such.pem", "other-key.pem", "");
    broker.signal("HUP");
    broker.logged("the configuration is not reloaded");
    assert_eq!(client.certificate(broker.address), Some(first));
    write("other-cert.pem", "other-key.pem", "");
    broker.signal("HUP");
    broker.logged("reloaded tls.cert_file");
    assert_eq!(client.certificate(broker.address), Some(second.clone()));
    // And rules for clients, with the same files.
    files.renew("client.pem", "client-key.pem");
    let asks = |how: &str| format!("client_ca_file = {:?}\nclient_auth = {how:?}\n", files.path("ca.pem"));
    write("other-cert.pem", "other-key.pem", &asks("optional"));
    broker.signal("HUP");
    broker.logged("reloaded tls.client_ca_file");
    assert_eq!(client.certificate(broker.address), Some(second.clone()));
    write("other-cert.pem", "other-key.pem", &asks("required"));
    broker.signal("HUP");
    until("a certificate to be required", || client.certificate(broker.address).is_none().then_some(()));
    let known = files.client(Some((&files.path("client.pem"), &files.path("client-key.pem"))));
    assert_eq!(known.certificate(broker.address), Some(second));
}

#[test]
fn clients_show_certificates_where_they_must() {
    let files = Files::new();
    files.renew("client.pem", "client-key.pem");
    let strangers = Files::new();
    let (cert, key) = (files.path("client.pem"), files.path("client-key.pem"));
    let known = files.client(Some((&cert, &key)));
    let (cert, key) = (strangers.path("cert.pem"), strangers.path("key.pem"));
    let stranger = files.client(Some((&cert, &key)));
    let nobody = files.client(None);
    let ca = files.path("ca.pem");
    for (how, without) in [("required", false), ("optional", true)] {
        let more = ["--tls-client-ca-file", ca.to_str().unwrap(), "--tls-client-auth", how];
        let broker = files.in_memory(&more);
        assert!(known.certificate(broker.address).is_some(), "{how}");
        known.ws(broker.address).gets("pong", json!({"type": "ping"}));
        assert!(stranger.certificate(broker.address).is_none(), "{how}");
        assert_eq!(nobody.certificate(broker.address).is_some(), without, "{how}");
    }
}

#[test]
fn in_public_it_serves_with_a_token_and_tls() {
    let files = Files::new();
    let arguments = files.arguments();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--engine", "memory"]);
    let broker = Broker::listening_on("0.0.0.0:0", &[TOKEN], &arguments);
    let client = files.client(None);
    assert_eq!(client.get(broker.address, "/healthz").status, 200);
    client.get(broker.address, "/v1/queues").is_error(401, "unauthorized");
    let request = format!(
        "GET /v1/queues HTTP/1.1\r\nHost: tasks.example.org\r\nAuthorization: Bearer {}\r\n\r\n",
        TOKEN.1
    );
    assert_eq!(client.exchange(broker.address, &request).status, 200);
    let mut ws = client.ws(broker.address);
    ws.gets("welcome", json!({"type": "hello", "token": TOKEN.1}));
    ws.submit(json!({"queue": "q"}));
    let mut wrong = client.ws(broker.address);
    wrong.refused("unauthorized", json!({"type": "hello", "token": "wrong"}));
    wrong.closes(4001);
}

/// A PROXY header comes before the handshake.
#[test]
fn a_proxy_says_whose_the_handshake_is() {
    let files = Files::new();
    let arguments = files.arguments();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--engine", "memory", "--proxy-protocol", "--trusted-proxies", "127.0.0.1"]);
    let broker = Broker::with_environment(&[TOKEN], &arguments);
    let header = b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\r\n";
    let stream = files.client(None).stream_after(broker.address, header);
    let mut connection = Connection::over(Wire::Tls(Box::new(stream)));
    connection.send(b"GET /v1/queues HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n");
    connection.answer().is_error(401, "unauthorized");
    assert!(broker.logged("a request was not let in").contains("\"203.0.113.5\""));
}

#[test]
fn a_slow_reader_over_tls_is_closed_4130_and_another_gets_its_tasks() {
    let files = Files::new();
    let broker = files.in_memory(&[]);
    let client = files.client(None);
    let mut slow = client.ws(broker.address);
    slow.subscribe("q", 1024);
    let payload = "x".repeat(500_000);
    let mut producer = client.ws(broker.address);
    let tasks: std::collections::BTreeSet<String> =
        (0..40).map(|_| producer.submit(json!({"queue": "q", "payload": payload}))).collect();
    let mut quick = client.ws(broker.address);
    quick.subscribe("q", 1);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < tasks.len() {
        let task = quick.task();
        quick.ack(&task);
        seen.insert(task["task"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, tasks);
    until("the close to be counted", || {
        (client.metric(&broker, "taskyard_closes_total{code=\"4130\"}") == 1).then_some(())
    });
    until("its connection to end", || (client.metric(&broker, "taskyard_connections") == 2).then_some(()));
}

#[test]
fn sigterm_says_goodbye_over_tls() {
    let files = Files::new();
    let mut broker = files.broker(&["--drain-ms", "0"]);
    let client = files.client(None);
    let mut ws = client.ws(broker.address);
    ws.subscribe("q", 1);
    let task = ws.submit(json!({"queue": "q"}));
    ws.task();
    broker.signal("TERM");
    ws.wait_for("going_away");
    ws.closes(1012);
    drop(ws);
    assert_eq!(broker.ended(), 0);
    broker.start_again();
    let mut ws = client.ws(broker.address);
    ws.subscribe("q", 1);
    let again = ws.task();
    assert_eq!((&again["task"], &again["attempt"]), (&json!(task), &json!(1)));
}

/// Who never says a word does not keep the broker from ending.
#[test]
fn unfinished_handshakes_do_not_hold_up_the_end() {
    let files = Files::new();
    let mut broker = files.in_memory(&[]);
    let silent: Vec<Connection> = (0..5).map(|_| Connection::open(broker.address)).collect();
    let mut half = Connection::open(broker.address);
    half.send(&[22, 3, 1]);
    let client = files.client(None);
    let mut ws = client.ws(broker.address);
    ws.frame(0x89, b"?");
    assert!(matches!(ws.hear(), Heard::Frame(pong) if pong.body == b"?"));
    drop(ws);
    let began = Instant::now();
    broker.stop();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop((silent, half));
}
