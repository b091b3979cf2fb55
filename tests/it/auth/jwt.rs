//! Tokens that somebody else signs.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use serde_json::{Value, json};

use super::{account, upgrade};
use crate::support::jwt::{Pair, base64url, hmac, now};
use crate::support::{Broker, Output, command, until};

const SECRET: &[u8] = b"a secret of thirty-two bytes, or more";

/// Slow to make, so there is one.
static RSA: LazyLock<Pair> = LazyLock::new(|| Pair::rsa("r"));

fn claims() -> Value {
    json!({"sub": "ci", "exp": now() + 600, "taskyard": ["submit:mail*", "consume:mail", "observe:*"]})
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (key, value) in changes.as_object().unwrap() {
        claims[key] = value.clone();
    }
    claims
}

fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

/// A broker that takes what these keys sign.
fn broker(directory: &Path, algorithms: &[&str], keys: &[u8], more: &str) -> Broker {
    let file = directory.join("keys");
    std::fs::write(&file, keys).unwrap();
    configured(directory, algorithms, &format!("key_file = {:?}\n{more}", file.to_str().unwrap()))
}

fn configured(directory: &Path, algorithms: &[&str], more: &str) -> Broker {
    let config = directory.join("taskyard.toml");
    std::fs::write(&config, format!("[auth.jwt]\nalgorithms = {algorithms:?}\n{more}")).unwrap();
    Broker::with(&["--engine", "memory", "--config", config.to_str().unwrap()])
}

#[test]
fn each_algorithm_lets_in_and_gives_its_rules() {
    let (ed, es, rs) = (Pair::ed25519("e"), Pair::p256("p"), &*RSA);
    let set = json!({"keys": [ed.jwk, es.jwk, rs.jwk, {"kty": "new"}]}).to_string();
    let directory = tempfile::tempdir().unwrap();
    let lets_in = |broker: &Broker, token: &str| {
        let by = broker.by(token);
        assert_eq!(by.submit("mail.x", &json!({})).len(), 36);
        assert_eq!(by.get("/metrics").status, 200);
        by.post("/v1/queues/other/tasks", &json!({})).is_error(403, "forbidden");
        let mut ws = broker.ws();
        ws.gets("welcome", json!({"type": "hello", "token": token}));
        assert_eq!(account(&mut ws), "jwt:ci");
        assert_eq!(by.upgrade("/ws?queue=mail").status, 101);
        let entry = format!("Sec-WebSocket-Protocol: taskyard.v1.json, bearer.{}\r\n", base64url(token));
        assert_eq!(upgrade(broker, "/ws", &entry).status, 101);
        broker.get("/v1/queues").is_error(401, "unauthorized");
    };
    for pair in [&ed, &es, rs] {
        let alone = broker(directory.path(), &[pair.name()], pair.pem.as_bytes(), "");
        lets_in(&alone, &pair.sign(None, &claims()));
        lets_in(&alone, &pair.sign(Some("any"), &claims()));
        for other in [&ed, &es, rs].into_iter().filter(|other| other.name() != pair.name()) {
            assert_eq!(alone.by(&other.sign(None, &claims())).get("/v1/queues").status, 401);
        }
    }
    let secret = broker(directory.path(), &["HS256"], &[SECRET, b"\n"].concat(), "");
    lets_in(&secret, &hmac(&json!({"alg": "HS256"}), &claims(), Some(SECRET)));
    let all = broker(directory.path(), &["EdDSA", "ES256", "RS256"], set.as_bytes(), "");
    for pair in [&ed, &es, rs] {
        lets_in(&all, &pair.sign(None, &claims()));
        lets_in(&all, &pair.sign(pair.jwk["kid"].as_str(), &claims()));
    }
    // A set is taken for no more than is wanted of it.
    let some = broker(directory.path(), &["EdDSA"], set.as_bytes(), "");
    lets_in(&some, &ed.sign(Some("e"), &claims()));
    assert_eq!(some.by(&es.sign(Some("p"), &claims())).get("/v1/queues").status, 401);
}

#[test]
fn what_is_not_signed_for_us_is_wrong() {
    let (ed, stranger) = (Pair::ed25519("e"), Pair::ed25519("e"));
    let rs = &*RSA;
    let directory = tempfile::tempdir().unwrap();
    let set = json!({"keys": [ed.jwk, rs.jwk]}).to_string();
    let more = "issuer = \"https://id\"\naudience = [\"tasks\"]\nleeway_s = 0\n";
    let broker = broker(directory.path(), &["EdDSA", "RS256"], set.as_bytes(), more);
    let ours = |changes: Value| {
        let mut claims = with(json!({"iss": "https://id", "aud": ["x", "tasks"]}));
        for (key, value) in changes.as_object().unwrap() {
            claims[key] = value.clone();
            if value == "-" {
                claims.as_object_mut().unwrap().remove(key);
            }
        }
        claims
    };
    let good = ed.sign(Some("e"), &ours(json!({})));
    assert_eq!(broker.by(&good).get("/v1/queues").status, 200);
    let claimed = |changes: Value| ed.sign(Some("e"), &ours(changes));
    assert_eq!(broker.by(&claimed(json!({"nbf": now() - 1, "aud": "tasks"}))).get("/v1/queues").status, 200);

    let parts: Vec<&str> = good.split('.').collect();
    let (head, body, signature) = (parts[0], parts[1], parts[2]);
    let (c, plain) = (ours(json!({})), json!({"alg": "EdDSA", "kid": "e"}));
    let header = |changes: Value| {
        let mut header = plain.clone();
        header.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        ed.sign_as(&header, &c)
    };
    assert_eq!(
        broker.by(&header(json!({"jku": "http://127.0.0.1:1/", "typ": "x"}))).get("/v1/queues").status,
        200
    );
    let raised = base64url(ours(json!({"taskyard": ["manage:*"]})).to_string());
    let mut wrong = vec![
        // What it says.
        claimed(json!({"exp": now() - 1})),
        claimed(json!({"exp": 0})),
        claimed(json!({"exp": "-"})),
        claimed(json!({"exp": "tomorrow"})),
        claimed(json!({"exp": 1e300})),
        claimed(json!({"exp": -1})),
        claimed(json!({"nbf": now() + 60})),
        claimed(json!({"nbf": "x"})),
        claimed(json!({"aud": "-"})),
        claimed(json!({"aud": "other"})),
        claimed(json!({"aud": ["other", ["tasks"]]})),
        claimed(json!({"aud": {"tasks": true}})),
        claimed(json!({"iss": "-"})),
        claimed(json!({"iss": "https://id/"})),
        claimed(json!({"iss": ["https://id"]})),
        claimed(json!({"sub": "-"})),
        claimed(json!({"sub": ""})),
        claimed(json!({"sub": 7})),
        claimed(json!({"sub": "a\u{0}b"})),
        claimed(json!({"sub": "x".repeat(257)})),
        claimed(json!({"taskyard": "-"})),
        claimed(json!({"taskyard": "observe:*"})),
        claimed(json!({"taskyard": ["observe:*", "all"]})),
        claimed(json!({"taskyard": [["observe:*"]]})),
        claimed(json!({"taskyard": (0..257).map(|n| format!("observe:{n}")).collect::<Vec<_>>()})),
        ed.sign(Some("e"), &json!([c])),
        // Who signed it.
        stranger.sign(Some("e"), &c),
        stranger.sign(None, &c),
        ed.sign(Some("r"), &c),
        ed.sign(Some("unknown"), &c),
        ed.sign(Some("../../../../etc/passwd"), &c),
        ed.sign(Some("' OR 1=1 --\n{}"), &c),
        ed.sign(Some(&"k".repeat(4000)), &c),
        header(json!({"kid": 7})),
        header(json!({"kid": ["e"]})),
        stranger.sign_as(&json!({"alg": "EdDSA", "kid": "e", "jwk": stranger.jwk}), &c),
        stranger.sign_as(&json!({"alg": "EdDSA", "jwk": stranger.jwk}), &c),
        header(json!({"alg": "RS256"})),
        header(json!({"alg": "RS256", "kid": "r"})),
        header(json!({"alg": "ES256"})),
        header(json!({"alg": "eddsa"})),
        header(json!({"alg": ["EdDSA"]})),
        // What is critical is not understood.
        header(json!({"crit": ["exp"], "exp": 1})),
        header(json!({"crit": ["b64"], "b64": false})),
        header(json!({"crit": []})),
        // What was changed, or left out.
        format!("{head}.{raised}.{signature}"),
        format!("{head}.{body}."),
        format!("{head}.{body}"),
        format!("{head}.{body}.{signature}."),
        format!("{head}.{body}.{signature}.x"),
        format!(".{body}.{signature}"),
        format!("{head}..{signature}"),
        "..".into(),
        format!("{head}.{body}.{signature}="),
        format!("{head}.{body}.{}", &signature[..signature.len() - 4]),
        format!("{head}.{body}.{signature}AAAA"),
        format!("{good}{}", "A".repeat(9000)),
        claimed(json!({"x": "x".repeat(9000)})),
    ];
    // Without a signature, or with one that anybody can make.
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        wrong.push(hmac(&json!({"alg": alg, "kid": "e"}), &c, None));
        wrong.push(hmac(&json!({"alg": alg}), &c, Some(b"")));
    }
    let modulus = rs.jwk["n"].as_str().unwrap();
    for public in [rs.pem.as_str(), rs.pem.trim_end(), &ed.pem, modulus, &rs.jwk.to_string()] {
        for kid in [json!(null), json!("r"), json!("e")] {
            wrong.push(hmac(&json!({"alg": "HS256", "kid": kid}), &c, Some(public.as_bytes())));
            wrong.push(hmac(&json!({"alg": "RS256", "kid": kid}), &c, Some(public.as_bytes())));
        }
    }
    for alg in ["HS384", "HS512", "PS256", "RS512", "ES384"] {
        wrong.push(hmac(&json!({"alg": alg}), &c, Some(SECRET)));
    }
    let expected = broker.by("wrong").get("/v1/queues").without_date();
    assert_eq!(expected.status, 401);
    let mut answers = Vec::new();
    for token in &wrong {
        assert_eq!(broker.by(token).get("/v1/queues").without_date(), expected, "{token}");
        if token.len() < 9000 && answers.len() < 20 {
            let mut ws = broker.ws();
            ws.say(json!({"type": "hello", "id": 1, "token": token}));
            answers.push(ws.next());
            ws.closes(4001);
        }
    }
    assert_eq!(answers[0]["code"], "unauthorized");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(broker.by(&good).get("/v1/queues").status, 200);
}

#[test]
fn one_that_was_told_no_audience_takes_no_token_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), &["HS256"], SECRET, "claim = \"https://example.org/may\"\n");
    let sign = |claims: &Value| hmac(&json!({"alg": "HS256"}), claims, Some(SECRET));
    let rules = json!({"https://example.org/may": ["observe:*"]});
    let status = |claims: &Value| broker.by(&sign(claims)).get("/v1/queues").status;
    assert_eq!(status(&with(rules.clone())), 200);
    assert_eq!(status(&claims()), 401, "the rules are in another claim");
    let mut meant = with(rules.clone());
    meant["aud"] = json!("somebody");
    assert_eq!(status(&meant), 401);
    // Within the leeway, which is 30 s.
    let mut late = with(rules.clone());
    late["exp"] = json!(now() - 5);
    assert_eq!(status(&late), 200);
    late["exp"] = json!(now() - 31);
    assert_eq!(status(&late), 401);
    late["exp"] = without("exp")["exp"].clone();
    assert_eq!(status(&late), 401);
    // No rules: somebody, who may nothing.
    let nobody = sign(&with(json!({"https://example.org/may": []})));
    assert_eq!(broker.by(&nobody).names("queues"), [""; 0]);
    broker.by(&nobody).get("/metrics").is_error(403, "forbidden");
}

#[test]
fn a_signed_token_ends_and_so_does_its_key() {
    let (old, new) = (Pair::ed25519("e"), Pair::ed25519("e"));
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), &["EdDSA"], old.pem.as_bytes(), "leeway_s = 0\n");
    let lasting = old.sign(None, &claims());
    let mut ending = broker.by(&old.sign(None, &with(json!({"exp": now() + 3})))).ws();
    let mut by_hello = broker.ws();
    by_hello
        .gets("welcome", json!({"type": "hello", "token": old.sign(None, &with(json!({"exp": now() + 3})))}));
    let mut other = broker.by(&lasting).ws_at("/ws?queue=mail&credit=1");
    ending.subscribe("mail", 1);
    by_hello.submit(json!({"queue": "mail"}));
    by_hello.submit(json!({"queue": "mail"}));
    let (task, held) = (ending.task(), other.task());
    ending.closes(4203);
    by_hello.closes(4203);
    other.ack(&held);
    assert_eq!(other.task()["task"], task["task"]);

    let file = directory.path().join("keys");
    std::fs::write(&file, "rubbish").unwrap();
    broker.logged("what was known before stays in force");
    other.gets("pong", json!({"type": "ping"}));
    std::fs::write(&file, &new.pem).unwrap();
    other.closes(4001);
    assert_eq!(broker.by(&lasting).get("/v1/queues").status, 401);
    assert_eq!(broker.by(&new.sign(None, &claims())).get("/v1/queues").status, 200);
}

/// An issuer's keys over HTTP, for as long as the process lives.
struct Issuer {
    address: SocketAddr,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicU64>,
}

impl Issuer {
    fn start() -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer =
            Issuer { address: listener.local_addr().unwrap(), answer: Arc::default(), asked: Arc::default() };
        let (answer, asked) = (issuer.answer.clone(), issuer.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut buffer) {
                        Ok(count @ 1..) => head.extend_from_slice(&buffer[..count]),
                        _ => break,
                    }
                }
                assert!(
                    head.starts_with(b"GET /keys.json HTTP/1.1\r\n"),
                    "{}",
                    String::from_utf8_lossy(&head)
                );
                let _ = stream.write_all(answer.lock().unwrap().as_bytes());
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
        issuer.says("503 Out of order", "");
        issuer
    }

    fn says(&self, status: &str, body: &str) {
        *self.answer.lock().unwrap() = format!(
            "HTTP/1.1 {status}\r\nLocation: http://{}/other\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
    }

    fn has(&self, keys: &[&Value]) {
        self.says("200 OK", &json!({"keys": keys}).to_string());
    }
}

#[test]
fn keys_are_fetched_and_fetched_again() {
    let (a, b) = (Pair::ed25519("a"), Pair::p256("b"));
    let issuer = Issuer::start();
    let directory = tempfile::tempdir().unwrap();
    let more = format!("jwks_url = \"http://{}/keys.json\"\njwks_refresh_s = 1\n", issuer.address);
    let broker = configured(directory.path(), &["EdDSA", "ES256"], &more);
    let (of_a, of_b) = (a.sign(Some("a"), &claims()), b.sign(Some("b"), &claims()));

    // Nobody can be known yet. That is the broker's fault, and passes.
    broker.by(&of_a).get("/v1/queues").is_error(503, "unavailable");
    broker.by(&of_a).upgrade("/ws").is_error(503, "unavailable");
    let mut early = broker.ws();
    early.say(json!({"type": "hello", "id": 1, "token": of_a}));
    assert_eq!(early.next()["code"], "unavailable");
    early.closes(1013);
    broker.get("/v1/queues").is_error(401, "unauthorized");
    broker.by("no-signed-one").get("/v1/queues").is_error(401, "unauthorized");

    let status = |token: &str| broker.by(token).get("/v1/queues").status;
    let becomes = |token: &str, expected| {
        until("the keys to be fetched", || (status(token) == expected).then_some(()));
    };
    issuer.has(&[&a.jwk]);
    becomes(&of_a, 200);
    assert_eq!(status(&of_b), 401);
    let mut ws = broker.by(&of_a).ws();
    // Rotated: both for a while.
    issuer.has(&[&a.jwk, &b.jwk]);
    becomes(&of_b, 200);
    assert_eq!(status(&of_a), 200);
    ws.gets("pong", json!({"type": "ping"}));
    // What is no answer changes nothing: not one elsewhere, not a secret that anybody could have read.
    let secret = json!({"keys": [{"kty": "oct", "kid": "s", "k": base64url(SECRET)}]}).to_string();
    for (status, body) in
        [("302 Found", "{}"), ("200 OK", "<html>"), ("200 OK", &secret), ("200 OK", "{\"keys\":[]}")]
    {
        issuer.says(status, body);
        let before = issuer.asked.load(Ordering::SeqCst);
        until("it to be fetched", || (issuer.asked.load(Ordering::SeqCst) > before).then_some(()));
        assert_eq!(broker.by(&of_a).get("/v1/queues").status, 200);
    }
    assert_eq!(status(&hmac(&json!({"alg": "HS256", "kid": "s"}), &claims(), Some(SECRET))), 401);
    // The old one goes, and who was known by it.
    issuer.has(&[&b.jwk]);
    ws.closes(4001);
    assert_eq!((status(&of_a), status(&of_b)), (401, 200));
    assert_eq!(status(&b.sign(Some("c"), &claims())), 401);
}

#[test]
fn keys_that_cannot_be_are_refused_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let rs = &*RSA;
    let refused = |more: &str, word: &str| {
        let config = directory.path().join("taskyard.toml");
        std::fs::write(&config, format!("[auth.jwt]\n{more}")).unwrap();
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--engine", "memory"]);
        serve.arg("--data-dir").arg(directory.path().join("data")).arg("--config").arg(&config);
        let output = Output::of(&mut serve);
        assert_eq!(output.code, Some(2), "{more}: {output:?}");
        assert!(output.err.contains(word), "{more}: {output:?}");
    };
    let file = directory.path().join("keys");
    let key_file = format!("key_file = {:?}\n", file.to_str().unwrap());
    for (algorithm, bytes, word) in [
        ("HS256", &b"short"[..], "32"),
        ("HS256", rs.pem.as_bytes(), "PEM"),
        ("RS256", SECRET, "PEM"),
        ("ES256", rs.pem.as_bytes(), "ES256"),
        ("EdDSA", b"{\"keys\":[]}", "no key"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        refused(&format!("algorithms = [{algorithm:?}]\n{key_file}"), word);
    }
    std::fs::write(&file, SECRET).unwrap();
    refused(&format!("algorithms = [\"none\"]\n{key_file}"), "nobody signed");
    refused(&key_file, "auth.jwt.algorithms");
    refused("algorithms = [\"EdDSA\"]\njwks_url = \"http://id.example.org/keys\"", "https");
    refused("algorithms = [\"EdDSA\"]\njwks_url = \"http://127.0.0.1.example.org/keys\"", "https");
    refused("algorithms = [\"HS256\"]\njwks_url = \"https://id.example.org/keys\"", "not published");
    // What `serve` refuses, `config check` finds.
    let long = format!("algorithms = [\"HS256\"]\nleeway_s = 301\n{key_file}");
    refused(&long, "leeway");
    let config = directory.path().join("taskyard.toml");
    let checked = Output::of(&mut command(&["config", "check", config.to_str().unwrap()]));
    assert!(checked.code == Some(2) && checked.err.contains("leeway_s"), "{checked:?}");
}
