//! Behind proxies: whose word is taken about who the client is.

use crate::support::http::{self, Connection};
use crate::support::{Broker, upgrade_request};

const TOKEN: (&str, &str) = ("TASKYARD_ADMIN_TOKEN", "0123456789abcdef0123456789abcdef");
const REFUSED: &str = "a request was not let in";

/// What a wrong token's request leaves in the log about its client. `before` comes first on the connection.
fn client(arguments: &[&str], before: &[u8], headers: &str) -> String {
    let broker = Broker::with_environment(&[TOKEN], &[&["--engine", "memory"], arguments].concat());
    let request = format!(
        "GET /v1/queues HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer wrong\r\n{headers}\r\n",
        broker.address
    );
    let answer = http::exchange(broker.address, &[before, request.as_bytes()].concat());
    answer.is_error(401, "unauthorized");
    assert!(answer.header("www-authenticate").is_some(), "{answer:?}");
    let line: serde_json::Value = serde_json::from_str(&broker.logged(REFUSED)).unwrap();
    assert!(!line.to_string().contains("wrong"), "{line}");
    line["client"].as_str().unwrap_or_else(|| panic!("{line}")).to_owned()
}

#[test]
fn a_forwarded_address_is_taken_from_a_trusted_proxy_alone() {
    let trusting = ["--trusted-proxies", "127.0.0.1,10.0.0.0/8"];
    for (arguments, headers, expected) in [
        (&trusting[..], "X-Forwarded-For: 203.0.113.5\r\n", "203.0.113.5"),
        (&trusting[..], "X-Forwarded-For: 1.1.1.1, 203.0.113.5, 10.0.0.2\r\n", "203.0.113.5"),
        (&trusting[..], "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 203.0.113.5\r\n", "203.0.113.5"),
        (&trusting[..], "X-Forwarded-For: nonsense\r\n", "127.0.0.1"),
        (&trusting[..], "", "127.0.0.1"),
        (&["--trusted-proxies", "10.0.0.0/8"], "X-Forwarded-For: 203.0.113.5\r\n", "127.0.0.1"),
        (&[], "X-Forwarded-For: 203.0.113.5\r\n", "127.0.0.1"),
    ] {
        assert_eq!(client(arguments, b"", headers), expected, "{arguments:?} {headers:?}");
    }
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
}

const PROXY: [&str; 3] = ["--proxy-protocol", "--trusted-proxies", "127.0.0.1"];

#[test]
fn the_proxy_protocol_says_who_it_is() {
    let v4 = [203, 0, 113, 5, 10, 0, 0, 1, 0x9c, 0x40, 1, 0xbb];
    let mut v6 = [0; 36];
    v6[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    v6[15] = 5;
    for (header, expected) in [
        (b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\r\n".to_vec(), "203.0.113.5"),
        (b"PROXY TCP6 2001:db8::5 ::1 40000 443\r\n".to_vec(), "2001:db8::5"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x21, 0x11, &v4), "203.0.113.5"),
        (v2(0x21, 0x21, &v6), "2001:db8::5"),
        // With an extension behind the addresses; and a health check of the proxy's own.
        (v2(0x21, 0x11, &[&v4[..], &[4, 0, 1, 0]].concat()), "203.0.113.5"),
        (v2(0x20, 0x00, b""), "127.0.0.1"),
    ] {
        assert_eq!(client(&PROXY, &header, ""), expected, "{header:?}");
    }
    // The client that the header names is not trusted to name another.
    let header = b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\r\n";
    assert_eq!(client(&PROXY, header, "X-Forwarded-For: 1.1.1.1\r\n"), "203.0.113.5");
}

#[test]
fn a_connection_without_its_header_is_ended() {
    let broker = Broker::with(&[&["--engine", "memory"], &PROXY[..]].concat());
    for bad in [
        &b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PROXY TCP4 203.0.113.5 10.0.0.1 40000\r\n",
        b"PROXY TCP4 2001:db8::5 ::1 40000 443\r\n",
        b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\n\r\n",
        b"PROXY TCP4 203.0.113.5 10.0.0.1 99999 443\r\n",
        b"PROXY  TCP4 203.0.113.5 10.0.0.1 40000 443\r\n",
        b"PROXX ",
        &v2(0x31, 0x11, &[0; 12]),
        &v2(0x22, 0x11, &[0; 12]),
        &v2(0x21, 0x11, &[0; 11]),
        &v2(0x21, 0x44, &[0; 12]),
        &v2(0x21, 0x11, &[0; 600]),
        &[0; 16],
        &[b"PROXY ".as_slice(), &[b'A'; 200]].concat(),
    ] {
        let mut connection = Connection::open(broker.address);
        connection.send_if_open(bad);
        assert_eq!(connection.ends(), b"", "{bad:?}");
    }
    // One byte a segment, and a request right behind it.
    let mut connection = Connection::open(broker.address);
    for byte in b"PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" {
        connection.send(&[*byte]);
    }
    assert_eq!(connection.answer().text(), "ok\n");
}

#[test]
fn a_stranger_s_header_is_not_honoured() {
    let arguments = ["--engine", "memory", "--proxy-protocol", "--trusted-proxies", "10.0.0.0/8"];
    let broker = Broker::with_environment(&[TOKEN], &arguments);
    let request = "GET /v1/queues HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n";
    let header = "PROXY TCP4 203.0.113.5 10.0.0.1 40000 443\r\n";
    let answer = http::exchange(broker.address, format!("{header}{request}").as_bytes());
    assert_eq!(answer.status, 400, "a PROXY header is no HTTP: {answer:?}");
    let answer = http::exchange(broker.address, &[v2(0x21, 0x11, &[203; 12]), request.into()].concat());
    assert_eq!(answer.status, 400, "{answer:?}");
    http::exchange(broker.address, request.as_bytes()).is_error(401, "unauthorized");
    assert!(broker.logged(REFUSED).contains("\"127.0.0.1\""));
}

#[test]
fn behind_a_tls_proxy_pages_come_over_https() {
    let broker = Broker::listening_on("0.0.0.0:0", &[TOKEN], &["--engine", "memory", "--behind-tls-proxy"]);
    let status = |origin: &str| {
        let lines = format!("Origin: {origin}\r\nAuthorization: Bearer {}\r\n", TOKEN.1);
        let request = upgrade_request(broker.address, "/ws", &lines)
            .replace(&format!("Host: {}", broker.address), "Host: tasks.example.org");
        http::Connection::open(broker.address);
        crate::support::handshake(broker.address, request.as_bytes()).0.status
    };
    assert_eq!(status("https://tasks.example.org"), 101);
    assert_eq!(status("https://tasks.example.org:443"), 101);
    assert_eq!(status("http://tasks.example.org"), 403);
    assert_eq!(status("null"), 403);
}
