//! `taskyard health`, as containers ask it; and what `serve` says to a terminal.

use std::net::TcpListener;

use rcgen::{CertificateParams, KeyPair};

use crate::support::{Broker, Output, Ws, command};

/// Runs it with this environment.
fn health(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = command(&["health"]);
    Output::of(command.args(arguments).envs(environment.iter().copied()))
}

fn is_ready(output: &Output, place: &str) {
    assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{output:?}");
    assert_eq!(output.out, format!("the broker at {place} is ready\n"));
}

fn is_not(output: &Output, why: &str) {
    assert_eq!((output.code, output.out.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.err.contains(why) && output.err.lines().count() == 1, "{output:?}");
}

#[test]
fn a_broker_is_found_as_its_environment_says() {
    let token = [("TASKYARD_ADMIN_TOKEN", "0123456789abcdef0123456789abcdef")];
    let broker = Broker::listening_on("0.0.0.0:0", &token, &["--engine", "memory", "--behind-tls-proxy"]);
    let port = broker.address.port();
    let place = format!("http://127.0.0.1:{port}");
    let listen = format!("0.0.0.0:{port}");
    is_ready(&health(&[("TASKYARD_LISTEN", &listen)], &[]), &place);
    is_ready(&health(&[], &["--listen", &listen]), &place);
    is_ready(&health(&[("TASKYARD_URL", &place)], &[]), &place);
    is_ready(&health(&[], &["--url", &place]), &place);
    let file = broker.scratch().join("taskyard.toml");
    std::fs::write(&file, format!("listen = \"{listen}\"\n")).unwrap();
    is_ready(&health(&[("TASKYARD_CONFIG", file.to_str().unwrap())], &[]), &place);
}

#[test]
fn what_is_not_ready_is_not_healthy() {
    // A port on which nobody listens any more.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    is_not(&health(&[], &["--listen", &free]), "no broker answers");
    is_not(&health(&[], &["--url", &format!("http://{free}")]), "no broker answers");
    is_not(&health(&[("TASKYARD_LISTEN", "nowhere")], &[]), "listen");
    is_not(&health(&[], &["--url", "nowhere"]), "not the URL of a broker");
    is_not(&health(&[], &["--config", "/nowhere.toml"]), "/nowhere.toml");
    // One that takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = silent.local_addr().unwrap().to_string();
    is_not(&health(&[], &["--listen", &place, "--timeout", "50ms"]), "did not answer within 50 ms");
    // One that shuts down waits for its worker, and takes no more work.
    let mut broker = Broker::in_memory();
    let mut ws: Ws = broker.ws();
    ws.subscribe("q", 1);
    broker.submit("q", &serde_json::json!({}));
    let delivery = ws.task();
    broker.signal("TERM");
    ws.wait_for("going_away");
    is_not(&health(&[], &["--url", &broker.url()]), "is not ready: the broker is shutting down");
    ws.ack(&delivery);
    assert_eq!(broker.ended(), 0);
}

/// A container's certificate is for its public name, and its health is asked on loopback.
#[test]
fn a_broker_with_tls_is_asked_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let make = |name: &str| {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![format!("{name}.example.org")]).unwrap();
        std::fs::write(path(&format!("{name}.pem")), params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), pair.serialize_pem()).unwrap();
    };
    make("broker");
    make("client");
    let (cert, key) = (path("broker.pem"), path("broker.key"));
    let files = [("TASKYARD_TLS_CERT_FILE", cert.as_str()), ("TASKYARD_TLS_KEY_FILE", &key)];
    let broker = Broker::with_environment(&files, &["--engine", "memory"]);
    let listen = broker.address.to_string();
    let place = format!("https://{listen}");
    let same = [&files[..], &[("TASKYARD_LISTEN", &listen)]].concat();
    is_ready(&health(&same, &[]), &place);
    // By its URL the certificate has to be one that is trusted, as with every other command.
    is_not(&health(&[], &["--url", &place]), "cannot reach the broker");
    is_not(&health(&[], &["--listen", &listen]), "broker");

    // A client's certificate is asked for: who has none is told so.
    let client = path("client.pem");
    let asks = ["--engine", "memory", "--tls-client-ca-file", &client, "--tls-client-auth", "required"];
    let broker = Broker::with_environment(&files, &asks);
    let listen = broker.address.to_string();
    let asking = [
        &files[..],
        &[
            ("TASKYARD_LISTEN", &listen),
            ("TASKYARD_TLS_CLIENT_CA_FILE", &client),
            ("TASKYARD_TLS_CLIENT_AUTH", "required"),
        ],
    ]
    .concat();
    is_not(&health(&asking, &[]), "--client-cert-file");
}

#[test]
fn a_broker_behind_a_load_balancer_is_asked_as_that_asks() {
    let proxied = [("TASKYARD_PROXY_PROTOCOL", "true"), ("TASKYARD_TRUSTED_PROXIES", "127.0.0.1")];
    let broker = Broker::with_environment(&proxied, &["--engine", "memory"]);
    let listen = broker.address.to_string();
    let environment = [&proxied[..], &[("TASKYARD_LISTEN", &listen)]].concat();
    is_ready(&health(&environment, &[]), &format!("http://{listen}"));
}

#[test]
fn a_log_that_is_no_terminal_is_json_and_nothing_else() {
    let mut broker = Broker::in_memory();
    broker.stop();
    for line in broker.whole_log().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}
