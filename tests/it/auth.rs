//! Who may come in, and what they may do there: tokens, permissions, limits, and what changes of them while
//! the broker runs.

mod changes;
mod jwt;
mod limits;
mod permissions;

use serde_json::{Value, json};

use crate::support::jwt::base64url;
use crate::support::{
    ADMIN, Broker, Heard, Output, Tokens, Ws, command, http, message_pack, until, upgrade_request,
};

const PROTOCOL: &str = "Sec-WebSocket-Protocol";

fn upgrade(broker: &Broker, target: &str, headers: &str) -> http::Answer {
    http::exchange(broker.address, upgrade_request(broker.address, target, headers).as_bytes())
}

/// Whose a socket is: it is told so with what it may not do.
fn account(ws: &mut Ws) -> String {
    named(&ws.refused("forbidden", json!({"type": "submit", "queue": "of-nobody"})))
}

fn named(error: &Value) -> String {
    let text = error["message"].as_str().unwrap();
    text.split("the token of ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

/// A text of the form of a token that is none.
fn unknown_token() -> String {
    format!("ty_abcdefgh_{}", "0123456789".repeat(5)[..43].to_owned())
}

// --- Where a token may stand ------------------------------------------------------------------------

#[test]
fn the_first_place_that_holds_a_token_decides() {
    let tokens = Tokens::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| tokens.create(name, &["submit:none"]));
    let broker = tokens.broker(&["--allow-query-token"]);
    let header = format!("Bearer {a}");
    let entry = format!("taskyard.v1.json, bearer.{}", base64url(&b));
    let (header, entry) = (("Authorization", header.as_str()), (PROTOCOL, entry.as_str()));
    let query = format!("/ws?token={c}");
    for (target, headers, expected) in [
        (query.as_str(), &[header, entry][..], "a"),
        (&query, &[header], "a"),
        (&query, &[entry], "b"),
        (&query, &[], "c"),
        ("/ws", &[entry], "b"),
        ("/ws", &[], "d"),
    ] {
        let mut ws = Ws::open(broker.address, target, headers);
        ws.gets("welcome", json!({"type": "hello", "token": d}));
        assert_eq!(account(&mut ws), expected, "{target} {headers:?}");
        // Who has been let in does not become another one.
        ws.refused("bad_request", json!({"type": "hello", "token": d}));
        assert_eq!(account(&mut ws), expected);
    }
    // With zero-library parameters beside it.
    let mut ws = Ws::open(broker.address, &format!("/ws?worker=w&token={c}"), &[]);
    assert_eq!(ws.next()["worker"], "w");
    assert_eq!(account(&mut ws), "c");
    assert_eq!(upgrade(&broker, &format!("/ws?queue=q&token={c}"), "").status, 403);
    let of = |path: &str, headers: &str| {
        named(&http::send(broker.address, "GET", path, headers, b"").is_error(403, "forbidden"))
    };
    assert_eq!(of(&format!("/v1/queues/q?token={c}"), &format!("Authorization: bearer {a}\r\n")), "a");
    assert_eq!(of(&format!("/v1/queues/q?token={c}"), ""), "c");
    // Where parameters are options, the token is none of them.
    let submitted =
        http::send(broker.address, "POST", &format!("/v1/queues/none/tasks?token={c}&priority=9"), "", b"x");
    assert_eq!(submitted.status, 201, "{submitted:?}");
    // The first place that holds one decides, also if that one is wrong.
    let wrong = unknown_token();
    let wrong_entry = format!("{PROTOCOL}: taskyard.v1.json, bearer.{}\r\n", base64url(&wrong));
    for (target, headers) in [
        (query.as_str(), format!("Authorization: Bearer {wrong}\r\n{PROTOCOL}: {}\r\n", entry.1)),
        (&query, wrong_entry),
        (&format!("/ws?token={wrong}"), String::new()),
        (&format!("/ws?token={c}&token={c}"), String::new()),
        ("/ws?token=", String::new()),
    ] {
        upgrade(&broker, target, &headers).is_error(401, "unauthorized");
    }
}

#[test]
fn a_token_in_the_url_is_taken_only_where_that_is_wanted() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:a", "consume:*"]);
    let broker = tokens.broker(&[]);
    broker.get(&format!("/v1/queues?token={token}")).is_error(401, "unauthorized");
    for target in [format!("/ws?token={token}"), format!("/ws?queue=q&token={token}")] {
        let error = upgrade(&broker, &target, "").is_error(400, "bad_request");
        assert!(!error.to_string().contains(&token), "{error}");
    }
}

#[test]
fn a_subprotocol_that_is_a_token_is_never_echoed() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:none"]);
    let broker = tokens.broker(&[]);
    let entry = format!("bearer.{}", base64url(&token));
    for (offered, chosen) in [
        (format!("{entry}, taskyard.v1.json"), "taskyard.v1.json"),
        (format!("taskyard.v1.msgpack,{entry},x"), "taskyard.v1.msgpack"),
        (format!("x\r\n{PROTOCOL}: {entry}\r\n{PROTOCOL}: taskyard.v1.json"), "taskyard.v1.json"),
    ] {
        let answer = upgrade(&broker, "/ws", &format!("{PROTOCOL}: {offered}\r\n"));
        assert_eq!((answer.status, answer.header(PROTOCOL)), (101, Some(chosen)));
        assert!(!format!("{answer:?}").contains(&entry), "{answer:?}");
    }
    let mut ws = Ws::open(broker.address, "/ws", &[(PROTOCOL, &format!("taskyard.v1.msgpack,{entry}"))]);
    ws.packs = true;
    assert_eq!(account(&mut ws), "a");

    // Alone it is no protocol; whether the token is good is not said.
    let alone = |token: &str| {
        let answer = upgrade(&broker, "/ws", &format!("{PROTOCOL}: bearer.{}\r\n", base64url(token)));
        let error = answer.is_error(400, "bad_request");
        assert!(error["message"].as_str().unwrap().contains("taskyard.v1.json"), "{error}");
        answer.without_date()
    };
    assert_eq!(alone(&token), alone(&unknown_token()));
}

#[test]
fn what_cannot_be_read_as_a_token_is_a_wrong_one() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*"]);
    let broker = tokens.broker(&[]);
    let expected = broker.by(&unknown_token()).upgrade("/ws").without_date();
    assert_eq!(expected.header("www-authenticate"), Some("Bearer realm=\"taskyard\""), "{expected:?}");
    let with_entries = |entries: &str| format!("{PROTOCOL}: taskyard.v1.json, {entries}\r\n");
    let good = base64url(&token);
    let basic = format!("Authorization: Basic {good}\r\n");
    for headers in [
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization:\r\n".into(),
        "Authorization: Bearer  \r\n".into(),
        format!("Authorization: {token}\r\n"),
        format!("Authorization: Bearer{token}\r\n"),
        format!("Authorization: Bearer {token} {token}\r\n"),
        format!("Authorization: Bearer \"{token}\"\r\n"),
        format!("Authorization: Bearer {token},\r\n"),
        format!("Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n"),
        format!("Authorization: Bearer {}\r\n", "x".repeat(8193)),
        format!("Authorization: Bearer {}\r\n", token.to_uppercase()),
        format!("Authorization: Bearer {}\r\n", &token[..54]),
        format!("Authorization: Bearer {token}x\r\n"),
        basic.clone(),
        // What is wrong in one place is not passed over for the next.
        basic + &with_entries(&format!("bearer.{good}")),
        with_entries("bearer."),
        with_entries("bearer.!"),
        with_entries(&format!("bearer.{}", base64url("a b"))),
        with_entries(&format!("bearer.{}", base64url([0xff, 0xfe]))),
        with_entries(&format!("bearer.{good}, bearer.{good}")),
        with_entries(&format!("bearer.{}", base64url("x".repeat(8193)))),
        with_entries(&format!("bearer.{token}")),
    ] {
        assert_eq!(upgrade(&broker, "/ws", &headers).without_date(), expected, "{headers}");
        assert_eq!(upgrade(&broker, "/ws?queue=q", &headers).without_date(), expected, "{headers}");
    }
}

// --- hello --------------------------------------------------------------------------------------------

#[test]
fn a_hello_may_bring_the_token() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:mine"]);
    let broker = tokens.broker(&[]);
    for packs in [false, true] {
        let mut ws = broker.ws();
        ws.packs = packs;
        ws.say(json!({"type": "ping"}));
        ws.gets("pong", json!({"type": "ping"}));
        let welcome =
            ws.gets("welcome", json!({"type": "hello", "token": token, "worker": "w", "batch": true}));
        assert_eq!(welcome["worker"], "w");
        ws.submit(json!({"queue": "mine"}));
        assert_eq!(account(&mut ws), "a");
    }
    // All at once, in one frame, and sent before the upgrade is answered.
    let both = json!([{"type": "ping", "id": 0}, {"type": "hello", "id": 1, "token": token},
        {"type": "submit", "id": 2, "queue": "mine"}]);
    let mut connection = http::Connection::open(broker.address);
    let request = upgrade_request(broker.address, "/ws", "");
    connection.send(&[request.as_bytes(), &Ws::masked(0x81, both.to_string().as_bytes())].concat());
    assert_eq!(connection.head().status, 101);
    let mut ws = Ws::over(connection);
    for (nth, kind) in ["pong", "welcome", "accepted"].iter().enumerate() {
        let answer = ws.wait(kind, |message| message["ref"] == nth);
        assert_eq!(answer["type"], *kind, "{answer}");
    }
    // And what follows in the same frame is measured by it.
    let mut ws = broker.ws();
    ws.say(json!([{"type": "hello", "token": token}, {"type": "submit", "id": 2, "queue": "other"}]));
    assert_eq!(ws.wait_for("error")["code"], "forbidden");
}

#[test]
fn a_wrong_hello_ends_the_socket() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:mine"]);
    tokens.create("b", &["submit:mine"]);
    let broker = tokens.broker(&[]);
    let long = "x".repeat(10_000);
    let mut answers = Vec::new();
    for wrong in
        ["", "x", &unknown_token(), &token[..54], &format!("{} ", token), &format!("a.b.{token}"), &long]
    {
        for packs in [false, true] {
            let mut ws = broker.ws();
            ws.packs = packs;
            ws.say(json!([{"type": "hello", "id": "first", "token": wrong},
                {"type": "hello", "token": token}, {"type": "submit", "queue": "mine"}]));
            answers.push(ws.next());
            ws.closes(4001);
        }
    }
    assert_eq!(answers[0]["type"], "error");
    assert_eq!((&answers[0]["ref"], &answers[0]["code"]), (&json!("first"), &json!("unauthorized")));
    assert_eq!(answers[0]["retryable"], false);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(broker.admin().names("queues"), [""; 0], "nothing behind it is done");
}

#[test]
fn whoever_is_not_known_may_say_hello_and_ping_alone() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*", "consume:*"]);
    let broker = tokens.broker(&[]);
    let task = "0198c0de-0000-7000-8000-000000000000";
    let lease = "AAAAAAAAAAcAAAADAAAAAA";
    for message in [
        json!({"type": "hello"}),
        json!({"type": "hello", "token": null}),
        json!({"type": "submit", "queue": "q"}),
        json!({"type": "submit", "queue": "q", "run_at": "nonsense"}),
        json!({"type": "submit", "queue": "q", "token": token}),
        json!({"type": "subscribe", "queue": "q"}),
        json!({"type": "watch", "task": task}),
        json!({"type": "unwatch", "task": task}),
        json!({"type": "cancel", "task": task}),
        json!({"type": "credit", "queue": "q", "credit": 1}),
        json!({"type": "unsubscribe", "queue": "q"}),
        json!({"type": "ack", "lease": lease}),
        json!({"type": "extend", "lease": lease}),
        json!({"type": "drain"}),
        json!({"type": "bye"}),
        json!({"type": "join", "room": "r"}),
        json!({"type": "publish", "room": "r"}),
    ] {
        let mut ws = broker.ws();
        let hello = json!({"type": "hello", "token": token});
        let mut first = message.clone();
        first["id"] = json!(7);
        ws.say(json!([first, hello, message]));
        let error = ws.next();
        assert_eq!(
            (&error["ref"], &error["code"]),
            (&json!(7), &json!("unauthorized")),
            "{message}: {error}"
        );
        ws.closes(4001);
    }
    let admin = broker.admin();
    assert_eq!((admin.names("queues"), admin.names("workers")), (vec![], vec![]));

    // What cannot be understood is no first message: a good hello may still follow.
    for bad in [
        r#"{"type":"hello","id":1,"token":"T","worker":"a b"}"#,
        r#"{"type":"hello","id":1,"token":["T"]}"#,
        r#"{"type":"hello","id":1,"token":"T","token":"T"}"#,
        r#"{"type":"what","id":1,"token":"T"}"#,
        r#"{"type":"subscribe","id":1}"#,
        "noise",
        "7",
        "[]",
    ] {
        let mut ws = broker.ws();
        ws.text(&bad.replace('T', &token));
        if bad != "[]" {
            let error = ws.next();
            assert_eq!(error["type"], "error", "{bad}: {error}");
            assert!(!error.to_string().contains(&token), "{bad}: {error}");
        }
        ws.gets("pong", json!({"type": "ping"}));
        ws.gets("welcome", json!({"type": "hello", "token": token}));
        ws.submit(json!({"queue": "q"}));
    }
    let mut ws = broker.ws();
    for _ in 0..10 {
        ws.text("noise");
    }
    ws.closes(1008);
}

#[test]
fn whoever_says_no_hello_is_not_waited_for() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*"]);
    let broker = tokens.broker(&["--hello-timeout-ms", "400"]);
    let mut known = broker.ws();
    known.gets("welcome", json!({"type": "hello", "token": token}));
    let mut by_upgrade = broker.by(&token).ws();

    let (mut silent, mut slow, mut busy) = (broker.ws(), broker.ws(), broker.ws());
    slow.raw(&Ws::masked(0x81, br#"{"type":"hello"}"#)[..9]);
    let ping = Ws::masked(0x81, br#"{"type":"ping","id":1}"#);
    let mut pongs = 0;
    let code = until("the end of who only pings", || {
        busy.raw_if_open(&ping);
        busy.raw_if_open(&Ws::masked(0x8a, b""));
        match busy.hear() {
            Heard::Frame(frame) if frame.first == 0x88 => {
                Some(u16::from_be_bytes([frame.body[0], frame.body[1]]))
            }
            Heard::Frame(_) => {
                pongs += 1;
                None
            }
            Heard::End => panic!("no close frame"),
        }
    });
    assert!(code == 4108 && pongs > 0, "{code} after {pongs} pongs");
    silent.closes(4108);
    slow.closes(4108);
    known.gets("pong", json!({"type": "ping"}));
    by_upgrade.submit(json!({"queue": "q"}));
}

#[test]
fn whoever_is_not_known_may_send_64_kib() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*"]);
    let broker = tokens.broker(&[]);
    let ping = Ws::masked(0x81, format!("{{\"type\":\"ping\",\"x\":\"{}\"}}", "x".repeat(1000)).as_bytes());
    let mut many = broker.ws();
    for _ in 0..(64 << 10) / ping.len() + 1 {
        many.raw(&ping);
    }
    many.closes(4001);
    // One frame, whole or not.
    let large = Ws::masked(
        0x81,
        json!({"type": "hello", "token": token, "x": "x".repeat(70_000)}).to_string().as_bytes(),
    );
    let (mut whole, mut half) = (broker.ws(), broker.ws());
    whole.raw(&large);
    // What came in the same read as the frame's end may count, as it did before the hello was read.
    whole.closes(4001);
    half.raw(&Ws::masked(0x81, &[b' '; 1 << 20])[..66_000]);
    half.closes(4001);

    let hello = Ws::masked(0x81, json!({"type": "hello", "id": 1, "token": token}).to_string().as_bytes());
    let mut ws = broker.ws();
    let mut room = (64 << 10) - hello.len();
    while room > ping.len() + 200 {
        ws.raw(&ping);
        room -= ping.len();
    }
    // A pong that nobody asked for, and a last ping, fill the rest.
    let head = Ws::masked(0x81, br#"{"type":"ping","x":""}"#).len();
    let last = |length: usize| {
        Ws::masked(0x81, format!("{{\"type\":\"ping\",\"x\":\"{}\"}}", "x".repeat(length)).as_bytes())
    };
    let length = (0..room).find(|length| last(*length).len() == room).unwrap_or(room - head);
    ws.raw(&last(length));
    ws.raw(&hello);
    assert_eq!(ws.next()["type"], "welcome");
    ws.submit(json!({"queue": "q", "payload": "x".repeat(200_000)}));
}

// --- Wrong ones over HTTP -----------------------------------------------------------------------------

const ROUTES: &[(&str, &str)] = &[
    ("POST", "/v1/queues/q/tasks"),
    ("GET", "/v1/queues/q/tasks"),
    ("POST", "/v1/tasks"),
    ("GET", "/v1/tasks/0198c0de-0000-7000-8000-000000000000"),
    ("GET", "/v1/tasks/0198c0de-0000-7000-8000-000000000000?wait_ms=60000"),
    ("DELETE", "/v1/tasks/0198c0de-0000-7000-8000-000000000000"),
    ("GET", "/v1/tasks/0198c0de-0000-7000-8000-000000000000/events"),
    ("GET", "/v1/tasks/0198c0de-0000-7000-8000-000000000000/explain"),
    ("POST", "/v1/queues/q/lease"),
    ("POST", "/v1/leases/AAAA/ack"),
    ("GET", "/v1/queues"),
    ("GET", "/v1/queues/q"),
    ("PUT", "/v1/queues/q"),
    ("POST", "/v1/queues/q/pause"),
    ("POST", "/v1/queues/q/purge"),
    ("GET", "/v1/queues/q/dead"),
    ("POST", "/v1/queues/q/dead/redrive"),
    ("GET", "/v1/workers"),
    ("DELETE", "/v1/workers/w"),
    ("GET", "/v1/schedules"),
    ("POST", "/v1/rooms/r"),
    ("GET", "/metrics"),
    ("HEAD", "/v1/queues"),
    ("OPTIONS", "/v1/queues"),
    ("PATCH", "/v1/queues"),
    ("GET", "/openapi.json"),
    ("GET", "/no/such/thing"),
    ("GET", "//healthz"),
    ("GET", "/healthz/"),
    ("GET", "/healthz/../v1/queues"),
    ("GET", "/%68ealthz"),
];

#[test]
fn every_wrong_token_gets_the_same_answer() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["manage:*", "submit:*", "consume:*"]);
    let ended = tokens.create("ended", &["manage:*"]);
    tokens.replace("name = \"ended\"\n", "name = \"ended\"\nexpires = \"2020-01-01T00:00:00Z\"\n");
    let broker = tokens.broker(&[]);
    let wrong = [
        String::new(),
        format!("Authorization: Bearer {}\r\n", unknown_token()),
        format!("Authorization: Bearer {}{}\r\n", &token[..12], "0".repeat(43)),
        format!("Authorization: Bearer {ended}\r\n"),
        format!("Authorization: Bearer {}\r\n", &ADMIN[1..]),
        "Authorization: Bearer a.b.c\r\n".into(),
        format!("Authorization: Bearer {}\r\n", "x".repeat(9000)),
        format!("Authorization: Basic {token}\r\n"),
        format!("X-Authorization: Bearer {token}\r\n"),
    ];
    for accept in ["", "Accept: application/msgpack\r\n"] {
        let mut first = None;
        for (method, path) in ROUTES {
            for headers in &wrong {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nHost: {}\r\n{accept}{headers}Content-Type: application/json\r\n\
                     Content-Length: 1000000\r\nConnection: close\r\n\r\n",
                    broker.address
                );
                // Before the body: it is not waited for.
                let mut connection = http::Connection::open(broker.address);
                connection.send(request.as_bytes());
                let answer =
                    if *method == "HEAD" { connection.head() } else { connection.answer() }.without_date();
                assert_eq!(answer.status, 401, "{method} {path} {headers}: {answer:?}");
                if *method != "HEAD" {
                    let first = first.get_or_insert_with(|| answer.clone());
                    assert_eq!(answer, *first, "{method} {path} {headers}");
                }
            }
        }
        let first = first.unwrap();
        assert_eq!(first.header("www-authenticate"), Some("Bearer realm=\"taskyard\""));
        let error = if accept.is_empty() { first.json() } else { message_pack::decode(&first.body) };
        assert_eq!((&error["code"], &error["retryable"]), (&json!("unauthorized"), &json!(false)));
    }
    // The same to who opens a socket, and wants to be a worker by a URL.
    let at = |target: &str, headers: &String| upgrade(&broker, target, headers).without_date();
    let expected = at("/ws?queue=q", &wrong[0]);
    assert_eq!((expected.status, expected.header("www-authenticate").is_some()), (401, true));
    for headers in &wrong[..8] {
        assert_eq!(at("/ws?queue=q", headers), expected, "{headers}");
        assert_eq!(at("/?queue=q", headers), expected, "{headers}");
        if !headers.is_empty() {
            assert_eq!(at("/ws", headers), expected, "{headers}");
        }
    }
    for path in ["/", "/healthz", "/readyz", "/healthz?token=x"] {
        let plain = broker.get(path).without_date();
        assert_eq!(plain.status, 200, "{path}");
        for headers in &wrong[..7] {
            let answer = http::send(broker.address, "GET", path, headers, b"").without_date();
            assert_eq!(answer, plain, "{path} {headers}");
        }
    }
}

/// Whoever was not let in could fill the disk with the paths that were asked for.
#[test]
fn the_log_tells_little_of_those_who_are_not_let_in() {
    let tokens = Tokens::new();
    let mut broker = tokens.broker(&[]);
    let path = format!("/v1/queues/{}", "x".repeat(10_000));
    for _ in 0..200 {
        broker.by("wrong").get(&path).is_error(401, "unauthorized");
    }
    broker.stop();
    let log = broker.whole_log();
    assert!(log.contains("was not let in"), "{log}");
    assert!(log.len() < 64 << 10, "{} bytes", log.len());
}

#[test]
fn every_refusal_for_want_of_a_token_is_counted() {
    let tokens = Tokens::new();
    let broker = tokens.broker(&[]);
    let counts = |what: &str, refuse: &dyn Fn()| {
        let before = broker.refusals("unauthorized");
        refuse();
        assert_eq!(broker.refusals("unauthorized"), before + 1, "{what}");
    };
    counts("a wrong token", &|| drop(broker.by("wrong").get("/v1/queues").is_error(401, "unauthorized")));
    counts("no token", &|| drop(broker.get("/v1/queues").is_error(401, "unauthorized")));
    counts("no token with a URL that says all", &|| {
        assert_eq!(upgrade(&broker, "/ws?queue=q", "").status, 401);
    });
    counts("a wrong token with an upgrade", &|| assert_eq!(broker.by("wrong").upgrade("/ws").status, 401));
    counts("a wrong hello", &|| {
        let mut ws = broker.ws();
        ws.say(json!({"type": "hello", "token": "wrong"}));
        ws.closes(4001);
    });
    counts("no hello", &|| {
        let mut ws = broker.ws();
        ws.say(json!({"type": "drain"}));
        ws.closes(4001);
    });
}

#[test]
fn tokens_are_never_shown() {
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*", "consume:*"]);
    let other = tokens.create("b", &["submit:*"]);
    let environment = [("TASKYARD_ADMIN_TOKEN", ADMIN), ("RUST_LOG", "trace")];
    let mut broker = tokens.broker_with(&environment, &["--engine", "memory", "--allow-query-token"]);
    let wrong = unknown_token();
    let jwt =
        format!("{}.{}.{}", base64url("{\"alg\":\"none\"}"), base64url("{\"secret\":1}"), base64url("sign"));
    let secrets = [&token[12..], &other[12..], &wrong[12..], ADMIN, &jwt[..16]];
    for secret in [token.as_str(), &wrong, ADMIN, &jwt] {
        broker.get(&format!("/v1/queues?token={secret}"));
        broker.by(secret).get("/v1/queues");
        broker.by(secret).upgrade("/ws");
        broker.by(&format!("{secret} {secret}")).upgrade("/ws");
        upgrade(&broker, &format!("/ws?token={secret}"), "");
        upgrade(&broker, &format!("/ws?queue=a%20b&token={secret}"), "");
        upgrade(&broker, "/ws", &format!("{PROTOCOL}: taskyard.v1.json, bearer.{}\r\n", base64url(secret)));
        upgrade(&broker, "/ws", &format!("{PROTOCOL}: bearer.{}\r\n", base64url(secret)));
        http::send(broker.address, "GET", "/v1/queues", &format!("Authorization: Basic {secret}\r\n"), b"");
        for hello in [
            json!({"type": "hello", "token": secret}),
            json!({"type": "hello", "token": [secret]}),
            json!({"type": "hello", "resume": secret, "token": secret}),
        ] {
            let mut ws = broker.ws();
            ws.say(hello);
            let answer = ws.next();
            assert!(!answer.to_string().contains(&secret[12..]), "{answer}");
        }
    }
    let mut ws = Ws::open(broker.address, &format!("/ws?queue=q&worker=w&token={token}"), &[]);
    assert_eq!(ws.next()["worker"], "w");
    let mut by_hello = broker.ws();
    by_hello.gets("welcome", json!({"type": "hello", "token": other, "worker": "x"}));
    let shown = broker.admin().get("/v1/workers").text().to_owned() + broker.admin().get("/metrics").text();
    assert!(shown.contains("\"w\"") && shown.contains("\"x\""), "{shown}");
    tokens.revoke("a");
    ws.closes(4001);
    broker.stop();
    let shown = shown + &broker.whole_log();
    assert!(shown.contains("was not let in"), "{shown}");
    for secret in secrets {
        assert!(!shown.contains(secret), "{secret} is shown");
        // In base64, the middle of it: its ends depend on what stands beside.
        let encoded = base64url(secret);
        assert!(!shown.contains(&encoded[4..12]), "{secret} is shown in base64");
    }
}

// --- Starting -------------------------------------------------------------------------------------------

#[test]
fn the_administrators_token_does_all_and_must_not_be_guessed() {
    let tokens = Tokens::new();
    let broker = tokens.broker(&[]);
    let admin = broker.admin();
    let task = admin.submit("q", &json!({}));
    let mut ws = admin.ws();
    ws.subscribe("q", 1);
    let delivery = ws.task();
    ws.ack(&delivery);
    assert_eq!(admin.state(&task), "done");
    assert_eq!(admin.get("/metrics").status, 200);
    broker.get("/v1/queues").is_error(401, "unauthorized");
    for (bad, words) in
        [("tiny-one", "16"), ("fifteen-letters", "16"), ("sixteen letters and more", "space"), ("", "empty")]
    {
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--engine", "memory", "--data-dir"]);
        let output = Output::of(serve.arg(broker.scratch().join("other")).env("TASKYARD_ADMIN_TOKEN", bad));
        assert_eq!(output.code, Some(2), "{bad:?}: {output:?}");
        assert!(output.err.contains(words) && output.err.contains("TASKYARD_ADMIN_TOKEN"), "{output:?}");
        assert!(bad.is_empty() || !output.err.contains(bad), "{output:?}");
    }
}

#[test]
fn beyond_loopback_it_takes_a_token_and_tls() {
    let tokens = Tokens::new();
    let refused = |listen: &str, arguments: &[&str], environment: &[(&str, &str)]| {
        let mut serve = command(&["serve", "--engine", "memory", "--listen", listen, "--tokens-file"]);
        let output = Output::of(serve.arg(tokens.file()).args(arguments).envs(environment.iter().copied()));
        assert_eq!(output.code, Some(2), "{output:?}");
        output.err
    };
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let both = refused(listen, &[], &[]);
        assert!(both.contains("token create") && both.contains("--behind-tls-proxy"), "{both}");
        let no_token = refused(listen, &["--behind-tls-proxy"], &[]);
        assert!(no_token.contains("token create") && !no_token.contains("--tls-cert-file"), "{no_token}");
        let no_tls = refused(listen, &[], &[("TASKYARD_ADMIN_TOKEN", ADMIN)]);
        assert!(!no_tls.contains("token create") && no_tls.contains("--tls-cert-file"), "{no_tls}");
    }
    let token = tokens.create("a", &["observe:*"]);
    let file = tokens.file();
    let options = ["--engine", "memory", "--behind-tls-proxy", "--tokens-file", file.to_str().unwrap()];
    let mut broker = Broker::listening_on("0.0.0.0:0", &[], &options);
    broker.address.set_ip([127, 0, 0, 1].into());
    assert_eq!(broker.by(&token).get("/v1/queues").status, 200);
    broker.get("/v1/queues").is_error(401, "unauthorized");
    // The last token goes; nobody is let in for it.
    tokens.revoke("a");
    until("the end of the token", || (broker.by(&token).get("/v1/queues").status == 401).then_some(()));
    broker.get("/v1/queues").is_error(401, "unauthorized");
}
