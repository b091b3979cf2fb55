//! The web UI: its files as they are served, and that they are what their source makes. What it does is driven in a
//! browser by `ui/e2e/run`.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::http::{self, Answer};
use crate::support::{Broker, Tokens};

/// All of the UI, packed: a page that is slow to come is not looked at.
const PACKED_BYTES_MAX: usize = 80 << 10;
const FILES: [(&str, &str, &str); 3] = [
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/ui/app.js", "app.js", "text/javascript; charset=utf-8"),
    ("/ui/app.css", "app.css", "text/css; charset=utf-8"),
];
const BROWSER: &str = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";

fn get(broker: &Broker, path: &str, headers: &str) -> Answer {
    http::send(broker.address, "GET", path, &format!("{BROWSER}{headers}"), b"")
}

fn source(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("ui/dist").join(name)).unwrap()
}

fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::copy(&mut flate2::read::GzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

#[test]
fn each_file_is_served_plain_and_packed_and_once() {
    let broker = Broker::in_memory();
    let mut packed_bytes = 0;
    for (path, name, kind) in FILES {
        let plain = get(&broker, path, "");
        assert_eq!((plain.status, plain.header("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(plain.header("content-encoding"), None, "{path}");
        assert!(plain.body == source(name), "{path} is not {name}");
        let packed = get(&broker, path, "Accept-Encoding: gzip, deflate, br\r\n");
        assert_eq!(packed.header("content-encoding"), Some("gzip"), "{path}");
        assert!(unpacked(&packed.body) == plain.body, "{path}");
        packed_bytes += packed.body.len();
        for (answer, codings) in [(&plain, ""), (&packed, "Accept-Encoding: gzip\r\n")] {
            assert_eq!(answer.header("cache-control"), Some("no-cache"), "{path}");
            assert_eq!(answer.header("vary"), Some("accept, accept-encoding"), "{path}");
            let tag = answer.header("etag").unwrap();
            let known = get(&broker, path, &format!("{codings}If-None-Match: {tag}\r\n"));
            assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, Some(tag)), "{path}");
            let other = get(&broker, path, &format!("{codings}If-None-Match: \"0000\"\r\n"));
            assert_eq!((other.status, &other.body), (200, &answer.body), "{path}");
        }
        assert_ne!(plain.header("etag"), packed.header("etag"), "{path}");
        let mut connection = http::Connection::open(broker.address);
        connection.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n{BROWSER}\r\n").as_bytes());
        let head = connection.head();
        assert_eq!((head.status, head.header("content-type")), (200, Some(kind)), "{path}");
    }
    assert!(packed_bytes <= PACKED_BYTES_MAX, "{packed_bytes} bytes");
    get(&broker, "/ui/app.exe", "").is_error(404, "not_found");
    get(&broker, "/ui/..%2fCargo.toml", "").is_error(404, "not_found");
    get(&broker, "/ui/%ff", "").is_error(404, "not_found");
}

#[test]
fn the_page_runs_nothing_that_is_not_of_the_broker() {
    let broker = Broker::in_memory();
    for (path, ..) in FILES {
        let answer = get(&broker, path, "");
        let policy = answer.header("content-security-policy").unwrap();
        for part in
            ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"]
        {
            assert!(policy.split("; ").any(|rule| rule == part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "{path}");
    }
    // Nothing that the policy would keep from working, and nobody else is asked for anything.
    let page = String::from_utf8(source("index.html")).unwrap();
    assert!(!page.contains(" style=") && !page.contains(" onload=") && !page.contains("<style"));
    assert!(!page.contains("src=\"http") && !page.contains("href=\"http") && !page.contains("//cdn"));
    assert!(
        page.split("<script").skip(1).all(|script| script.contains("src=") && script.contains("></script>"))
    );
}

#[test]
fn who_takes_no_page_gets_a_word() {
    let broker = Broker::in_memory();
    for accept in ["", "Accept: */*\r\n", "Accept: text/plain\r\n", "Accept: application/json\r\n"] {
        let answer = http::send(broker.address, "GET", "/", accept, b"");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{accept}");
        assert!(answer.text().starts_with("Taskyard "), "{answer:?}");
        assert_eq!(answer.header("vary"), Some("accept"), "{accept}");
    }
}

#[test]
fn the_files_take_no_token_and_who_asks_is_told_what_they_may() {
    let broker = Broker::in_memory();
    let anyone = json!({
        "account": "anyone", "auth": false, "allow": ["submit:*", "consume:*", "observe:*", "manage:*"],
        "expires_in_ms": null,
    });
    assert_eq!(broker.get("/v1/me").json(), anyone);

    let tokens = Tokens::new();
    let token = tokens.create_with("mail", &["manage:mail*", "submit:mail.in"], &["--expires", "1h"]);
    let broker = tokens.broker(&[]);
    for (path, ..) in FILES {
        assert_eq!(get(&broker, path, "").status, 200, "{path}");
    }
    broker.get("/v1/me").is_error(401, "unauthorized");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let me = http::send(broker.address, "GET", "/v1/me", &bearer, b"").json();
    assert_eq!((&me["account"], &me["auth"]), (&json!("mail"), &json!(true)));
    assert_eq!(me["allow"], json!(["submit:mail.in", "manage:mail*"]));
    let left = me["expires_in_ms"].as_u64().unwrap();
    assert!((1..=3_600_000).contains(&left), "{left}");
}

/// Takes Node and npm; says loudly so where they are missing.
#[test]
fn the_files_are_what_their_source_makes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui");
    let output = Command::new("bash").arg(folder.join("check")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    assert!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
}
