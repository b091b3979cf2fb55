//! HTTP: a task is cancelled, followed and explained; a queue's tasks are listed, and cancelled together.

use std::io::{BufRead as _, Read as _};
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::http::{self, Connection};
use crate::support::{Broker, Tokens, message_pack, until};

const NOBODY: &str = "0198c0de-0000-7000-8000-000000000000";

/// A stream of server-sent events.
struct Stream {
    connection: Connection,
    text: String,
}

#[derive(Debug, PartialEq)]
struct Event {
    id: u64,
    name: String,
    data: Value,
}

impl Stream {
    fn open(address: SocketAddr, path: &str, headers: &str) -> Stream {
        let mut connection = Connection::open(address);
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").as_bytes());
        let head = connection.head();
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("content-type"), Some("text/event-stream"), "{head:?}");
        assert_eq!(head.header("cache-control"), Some("no-cache"), "{head:?}");
        assert_eq!(head.header("transfer-encoding"), Some("chunked"), "{head:?}");
        Stream { connection, text: String::new() }
    }

    /// Reads a chunk; whether there was one.
    fn chunk(&mut self) -> bool {
        let mut line = String::new();
        self.connection.stream.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"));
        let mut bytes = vec![0; length + 2];
        self.connection.stream.read_exact(&mut bytes).unwrap();
        bytes.truncate(length);
        self.text += std::str::from_utf8(&bytes).unwrap();
        length > 0
    }

    /// The next event; none: the stream has ended.
    fn next(&mut self) -> Option<Event> {
        while !self.text.contains("\n\n") {
            if !self.chunk() {
                assert_eq!(self.text, "", "the stream ends between two events");
                return None;
            }
        }
        let (event, rest) = self.text.split_once("\n\n").unwrap();
        let lines: Vec<&str> = event.lines().collect();
        let [id, name, data] = lines[..] else { panic!("{event:?}") };
        let event = Event {
            id: id.strip_prefix("id: ").unwrap().parse().unwrap(),
            name: name.strip_prefix("event: ").unwrap().to_owned(),
            data: serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap(),
        };
        assert_eq!(event.data["seq"], event.id);
        self.text = rest.to_owned();
        Some(event)
    }

    /// All events up to the end of the stream: their names and states.
    fn rest(mut self) -> Vec<(String, String)> {
        let events = std::iter::from_fn(|| self.next());
        events.map(|event| (event.name, event.data["state"].as_str().unwrap().to_owned())).collect()
    }
}

#[test]
fn a_task_that_waits_is_cancelled_at_once() {
    let broker = Broker::start();
    for options in [json!({}), json!({"delay_ms": 60_000})] {
        let task = broker.submit("q", &options);
        let answer = broker.delete(&format!("/v1/tasks/{task}"));
        assert_eq!((answer.status, answer.json()), (200, json!({"task": task, "state": "cancelled"})));
        assert_eq!(broker.task(&task)["state"], "cancelled");
        let again = broker.delete(&format!("/v1/tasks/{task}?grace_ms=0"));
        assert_eq!((again.status, &again.json()["state"]), (200, &json!("cancelled")), "as was asked for");
    }
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let task = broker.submit("q", &json!({}));
    let delivery = ws.task();
    assert_eq!(delivery["task"], json!(task), "what was cancelled is not delivered");
    ws.ack(&delivery);
    broker.delete(&format!("/v1/tasks/{task}")).is_error(409, "conflict");
    broker.delete(&format!("/v1/tasks/{NOBODY}")).is_error(404, "not_found");
    broker.delete("/v1/tasks/1").is_error(400, "bad_request");
    for bad in ["grace_ms=3600001", "grace_ms=-1", "grace_ms=", "grace=1"] {
        let error = broker.delete(&format!("/v1/tasks/{task}?{bad}")).is_error(400, "bad_request");
        assert_eq!(error["field"], bad.split('=').next().unwrap());
    }
}

#[test]
fn a_worker_is_asked_to_stop() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let task = broker.submit("q", &json!({}));
    let delivery = ws.task();
    let answer = broker.delete(&format!("/v1/tasks/{task}?grace_ms=60000"));
    assert_eq!((answer.status, answer.json()), (202, json!({"task": task, "state": "leased"})));
    let stop = ws.wait_for("stop");
    assert_eq!((&stop["lease"], &stop["grace_ms"]), (&delivery["lease"], &json!(60_000)));
    ws.gets("settled", json!({"type": "cancelled", "lease": delivery["lease"], "error": "half way"}));
    let shown = broker.task(&task);
    assert_eq!((&shown["state"], &shown["error"]), (&json!("cancelled"), &json!("half way")));
    // Without any grace the worker has no say.
    let task = broker.submit("q", &json!({}));
    let delivery = ws.task();
    assert_eq!(broker.delete(&format!("/v1/tasks/{task}?grace_ms=0")).status, 202);
    assert_eq!(ws.wait_for("revoked")["lease"], delivery["lease"]);
    until("the end", || (broker.task(&task)["state"] == "cancelled").then_some(()));
}

#[test]
fn who_may_not_touch_a_task_may_not_cancel_it() {
    let tokens = Tokens::new();
    let submits = tokens.create("submits", &["submit:emails"]);
    let observes = tokens.create("observes", &["observe:emails"]);
    let manages = tokens.create("manages", &["manage:emails"]);
    let consumes = tokens.create("consumes", &["consume:emails"]);
    let foreign = tokens.create("foreign", &["submit:other", "manage:other"]);
    let broker = tokens.broker(&[]);
    let submit = || broker.admin().submit("emails", &json!({}));
    let cancel =
        |token: &str, task: &str| broker.by(token).send("DELETE", &format!("/v1/tasks/{task}"), &Value::Null);
    let task = submit();
    let before = broker.refusals("forbidden");
    let error = cancel(&observes, &task).is_error(403, "forbidden");
    assert!(error["message"].as_str().unwrap().contains("submit:emails"), "{error}");
    assert_eq!(broker.refusals("forbidden"), before + 1);
    // To these the task is as one that never was.
    for token in [&consumes, &foreign] {
        let (found, unknown) = (cancel(token, &task), cancel(token, NOBODY));
        found.is_error(404, "not_found");
        assert_eq!(found.text().replace(&task, ""), unknown.text().replace(NOBODY, ""));
        for path in ["", "/explain", "/events"] {
            let answer = broker.by(token).get(&format!("/v1/tasks/{task}{path}"));
            answer.is_error(404, "not_found");
        }
    }
    assert_eq!(broker.admin().state(&task), "queued");
    assert_eq!(cancel(&submits, &task).status, 200);
    assert_eq!(cancel(&manages, &submit()).status, 200);
    // Whoever may look may also follow, and be told why.
    let task = submit();
    for token in [&submits, &observes, &manages] {
        let explained = broker.by(token).get(&format!("/v1/tasks/{task}/explain"));
        assert_eq!(explained.status, 200, "{explained:?}");
        let path = format!("/v1/tasks/{task}/events");
        let mut stream = Stream::open(broker.address, &path, &format!("Authorization: Bearer {token}\r\n"));
        assert_eq!(stream.next().unwrap().data["state"], "queued");
    }
}

#[test]
fn a_task_is_followed_to_its_end() {
    let broker = Broker::start();
    let task = broker.submit("q", &json!({"delay_ms": 0}));
    let path = format!("/v1/tasks/{task}/events");
    let mut stream = Stream::open(broker.address, &path, "");
    let first = stream.next().unwrap();
    assert_eq!((first.name.as_str(), &first.data["state"]), ("event", &json!("queued")));
    assert_eq!(first.data["task"], json!(task));
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let delivery = ws.task();
    let leased = stream.next().unwrap();
    assert_eq!((&leased.data["state"], &leased.data["worker"]), (&json!("leased"), &json!("w")));
    assert!(leased.id > first.id);
    let data = json!({"sent": 17});
    ws.gets("ok", json!({"type": "progress", "lease": delivery["lease"], "percent": 42.5, "data": data}));
    let progress = stream.next().unwrap();
    assert_eq!((&progress.data["percent"], &progress.data["data"]), (&json!(42.5), &data));
    ws.gets("settled", json!({"type": "ack", "lease": delivery["lease"], "result": {"ok": true}}));
    let finished = stream.next().unwrap();
    assert_eq!((finished.name.as_str(), &finished.data["state"]), ("finished", &json!("done")));
    assert_eq!(finished.data["result"], json!({"ok": true}));
    assert_eq!(stream.next(), None);

    // Who comes back hears only what it has not heard.
    let from =
        |headers: &str, query: &str| Stream::open(broker.address, &format!("{path}{query}"), headers).rest();
    let heard =
        |state: &str| (if state == "done" { "finished" } else { "event" }.to_owned(), state.to_owned());
    let all: Vec<_> = ["queued", "leased", "leased", "done"].map(heard).into();
    assert_eq!(from("", ""), all);
    let last = format!("Last-Event-ID: {}\r\n", leased.id);
    assert_eq!(from(&last, ""), all[2..]);
    assert_eq!(from("", &format!("?from_seq={}", progress.id)), all[3..]);
    assert_eq!(from(&last, "?from_seq=0"), all[2..], "what a browser adds by itself is later");
    // And who has heard the end is told to stay away.
    let headers = format!("Last-Event-ID: {}\r\n", finished.id);
    let over = http::send(broker.address, "GET", &path, &headers, b"");
    assert_eq!((over.status, over.body.as_slice()), (204, &b""[..]), "{over:?}");
}

#[test]
fn a_stream_that_cannot_begin_is_an_ordinary_error() {
    let broker = Broker::in_memory();
    let task = broker.submit("q", &json!({}));
    broker.get(&format!("/v1/tasks/{NOBODY}/events")).is_error(404, "not_found");
    broker.get("/v1/tasks/x/events").is_error(400, "bad_request");
    for (query, headers, field) in [
        ("?from_seq=-1", "", "from_seq"),
        ("?from_seq=x", "", "from_seq"),
        ("?since=1", "", "since"),
        ("", "Last-Event-ID: x\r\n", "last-event-id"),
        ("", "Last-Event-ID: 99999999999999999999\r\n", "last-event-id"),
    ] {
        let path = format!("/v1/tasks/{task}/events{query}");
        let answer = http::send(broker.address, "GET", &path, headers, b"");
        assert_eq!(answer.is_error(400, "bad_request")["field"], field);
    }
}

#[test]
fn a_stream_ends_with_the_broker_and_leaves_nothing_behind_when_its_client_goes() {
    let mut broker = Broker::in_memory();
    let task = broker.submit("q", &json!({}));
    let path = format!("/v1/tasks/{task}/events");
    let mut going: Vec<Stream> = (0..20).map(|_| Stream::open(broker.address, &path, "")).collect();
    for stream in &mut going {
        assert_eq!(stream.next().unwrap().data["state"], "queued");
    }
    let open = broker.descriptors();
    drop(going);
    until("their connections to end", || (broker.descriptors() + 20 <= open).then_some(()));
    let mut stays = Stream::open(broker.address, &path, "");
    stays.next().unwrap();
    broker.stop();
    assert_eq!(stays.next(), None, "an orderly end of the stream, without `finished`");
}

#[test]
fn a_stream_ends_with_its_token_and_counts_as_a_connection() {
    let tokens = Tokens::new();
    let ends = tokens.create_with("ends", &["submit:q"], &["--connections", "2"]);
    let stays = tokens.create("stays", &["submit:q"]);
    let broker = tokens.broker(&[]);
    let task = broker.admin().submit("q", &json!({}));
    let path = format!("/v1/tasks/{task}/events");
    let open = |token: &str| {
        let mut stream = Stream::open(broker.address, &path, &format!("Authorization: Bearer {token}\r\n"));
        assert_eq!(stream.next().unwrap().data["state"], "queued");
        stream
    };
    let (mut one, two, mut other) = (open(&ends), open(&ends), open(&stays));
    broker.by(&ends).get(&path).is_error(429, "rate_limited");
    drop(two);
    let mut two = until("the place to be free", || {
        let headers = format!("Authorization: Bearer {ends}\r\n");
        let mut connection = Connection::open(broker.address);
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        let head = connection.head();
        (head.status == 200).then_some(Stream { connection, text: String::new() })
    });
    assert_eq!(two.next().unwrap().data["state"], "queued");
    tokens.revoke("ends");
    assert_eq!((one.next(), two.next()), (None, None));
    assert_eq!(broker.admin().send("DELETE", &format!("/v1/tasks/{task}"), &Value::Null).status, 200);
    assert_eq!(other.next().unwrap().name, "finished");
}

#[test]
fn a_stream_in_which_nothing_happens_says_so() {
    if std::env::var_os("TASKYARD_SLOW").is_none() {
        return;
    }
    let broker = Broker::in_memory();
    let task = broker.submit("q", &json!({}));
    let mut stream = Stream::open(broker.address, &format!("/v1/tasks/{task}/events"), "");
    stream.next().unwrap();
    assert!(stream.chunk());
    assert_eq!(stream.text, ":\n\n");
}

/// The reasons of a task that waits: their codes, and the first of them.
fn reasons(broker: &Broker, task: &str) -> (Vec<String>, Value) {
    let answer = broker.get(&format!("/v1/tasks/{task}/explain"));
    assert_eq!(answer.status, 200, "{answer:?}");
    let explained = answer.json();
    assert_eq!(explained["task"], json!(task));
    let list = explained["reasons"].as_array().unwrap();
    for reason in list {
        assert!(reason["message"].as_str().is_some_and(|text| text.len() > 20), "{reason}");
    }
    let codes = list.iter().map(|reason| reason["code"].as_str().unwrap().to_owned()).collect();
    (codes, list.first().cloned().unwrap_or_default())
}

#[test]
fn each_thing_that_holds_a_task_up_is_explained() {
    let broker = Broker::in_memory();
    let explain = |queue: &str, options: Value| {
        let task = broker.submit(queue, &options);
        let (codes, first) = reasons(&broker, &task);
        (codes.join(" "), first)
    };
    assert_eq!(explain("nobody", json!({})).0, "no_worker");
    let (codes, first) = explain("nobody", json!({"to": {"worker": "w9"}}));
    assert_eq!((codes.as_str(), &first["worker"]), ("worker_absent", &json!("w9")));
    let (codes, first) = explain("nobody", json!({"to": {"group": "g9"}}));
    assert_eq!((codes.as_str(), &first["group"]), ("group_empty", &json!("g9")));
    let (codes, first) = explain("nobody", json!({"delay_ms": 60_000}));
    assert_eq!(codes, "scheduled");
    assert!(first["in_ms"].as_u64().is_some_and(|ms| ms > 0 && ms <= 60_000), "{first}");

    let mut ws = broker.worker("w");
    ws.subscribe("busy", 1);
    let held = broker.submit("busy", &json!({}));
    let delivery = ws.task();
    assert_eq!(reasons(&broker, &held).0, Vec::<String>::new(), "a worker has it");
    let (codes, first) = explain("busy", json!({}));
    assert_eq!((codes.as_str(), &first["busy"], &first["silent"]), ("no_credit", &json!(1), &json!(0)));
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "delay_ms": 60_000}));
    let (codes, first) = reasons(&broker, &held);
    assert_eq!(codes, ["backoff"]);
    assert!(first["in_ms"].as_u64().is_some_and(|ms| ms > 0), "{first}");

    ws.subscribe("ordered", 10);
    let head = broker.submit("ordered", &json!({"order_key": "k"}));
    ws.task();
    let (codes, first) = explain("ordered", json!({"order_key": "k"}));
    assert_eq!((codes.as_str(), &first["by"]), ("order_blocked", &json!(head)));

    assert_eq!(broker.send("PUT", "/v1/queues/few", &json!({"max_leased": 1})).status, 201);
    ws.subscribe("few", 10);
    broker.submit("few", &json!({}));
    ws.task();
    let (codes, first) = explain("few", json!({}));
    assert_eq!((codes.as_str(), &first["max_leased"]), ("queue_limit", &json!(1)));

    assert_eq!(broker.send("PUT", "/v1/queues/slow", &json!({"rate_per_s": 0.001})).status, 201);
    ws.subscribe("slow", 10);
    broker.submit("slow", &json!({}));
    ws.task();
    let (codes, first) = explain("slow", json!({}));
    assert_eq!(codes, "rate_limited");
    assert!(first["in_ms"].as_u64().is_some_and(|ms| ms > 0), "{first}");

    ws.subscribe("paused", 10);
    let pause = json!({"for_ms": 60_000, "reason": "a new disk"});
    assert_eq!(broker.post("/v1/queues/paused/pause", &pause).status, 200);
    let (codes, first) = explain("paused", json!({}));
    assert_eq!(
        (codes.as_str(), &first["reason"], &first["by"]),
        ("paused", &json!("a new disk"), &Value::Null)
    );
    assert!(first["in_ms"].as_u64().is_some_and(|ms| ms > 0 && ms <= 60_000), "{first}");
    assert!(first["message"].as_str().unwrap().contains("a new disk"), "{first}");

    broker.get(&format!("/v1/tasks/{NOBODY}/explain")).is_error(404, "not_found");
    broker.get("/v1/tasks/x/explain").is_error(400, "bad_request");
    let done = broker.submit("nobody", &json!({}));
    broker.delete(&format!("/v1/tasks/{done}"));
    let explained = broker.get(&format!("/v1/tasks/{done}/explain")).json();
    assert_eq!(explained, json!({"task": done, "state": "cancelled", "reasons": []}));
}

/// The ids of a list, and where the next part begins.
fn ids(broker: &Broker, path: &str) -> (Vec<String>, Value) {
    let answer = broker.get(path);
    assert_eq!(answer.status, 200, "{answer:?}");
    let list = answer.json();
    let tasks = list["tasks"].as_array().unwrap();
    let ids = tasks.iter().map(|task| task["task"].as_str().unwrap().to_owned()).collect();
    (ids, list["next"].clone())
}

#[test]
fn the_tasks_of_a_queue_are_listed_in_parts() {
    let broker = Broker::in_memory();
    let tasks: Vec<String> = (0..5).map(|_| broker.submit("q", &json!({}))).collect();
    broker.submit("other", &json!({}));
    assert_eq!(ids(&broker, "/v1/queues/q/tasks"), (tasks.clone(), Value::Null));
    assert_eq!(ids(&broker, "/v1/queues/q/tasks?limit=5"), (tasks.clone(), Value::Null));
    let (first, next) = ids(&broker, "/v1/queues/q/tasks?limit=2");
    assert_eq!((&first[..], &next), (&tasks[..2], &json!(tasks[1])));
    let (second, next) =
        ids(&broker, &format!("/v1/queues/q/tasks?limit=2&after={}", next.as_str().unwrap()));
    assert_eq!((&second[..], &next), (&tasks[2..4], &json!(tasks[3])));
    let (third, next) = ids(&broker, &format!("/v1/queues/q/tasks?limit=2&after={}", next.as_str().unwrap()));
    assert_eq!((&third[..], &next), (&tasks[4..], &Value::Null));
    // Each is what GET shows of the task.
    let listed = broker.get("/v1/queues/q/tasks?limit=1").json()["tasks"][0].clone();
    let mut shown = broker.task(&tasks[0]);
    shown["age_ms"] = listed["age_ms"].clone();
    assert_eq!(listed, shown);
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("after=x", "after"),
        ("state=running", "state"),
        ("stat=dead", "stat"),
        ("limit=1&limit=2", "limit"),
        ("all=true", "all"),
    ] {
        let error = broker.get(&format!("/v1/queues/q/tasks?{query}")).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{query}");
    }
    broker.get("/v1/queues/none/tasks").is_error(404, "not_found");
    broker.get("/v1/queues/a%20b/tasks").is_error(400, "bad_request");
}

#[test]
fn results_are_shown_in_the_encoding_that_is_asked_for() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 2);
    let mut done = |result: Value| {
        let task = broker.submit("q", &json!({}));
        let mut ack = json!({"type": "ack", "lease": ws.task()["lease"]});
        ack.as_object_mut().unwrap().extend(result.as_object().unwrap().clone());
        ws.gets("settled", ack);
        task
    };
    let (bytes, value) = (done(json!({"result_b64": "AAH+/w=="})), done(json!({"result": {"a": [1, 2.5]}})));
    let packed = |path: &str| {
        let answer = http::send(broker.address, "GET", path, "Accept: application/msgpack\r\n", b"");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/msgpack")));
        answer.body
    };
    // `bin` of four bytes.
    let needle = b"\xa6result\xc4\x04\x00\x01\xfe\xff";
    for path in [format!("/v1/tasks/{bytes}"), "/v1/queues/q/tasks".into()] {
        assert!(packed(&path).windows(needle.len()).any(|part| part == needle), "{path}");
    }
    assert_eq!(broker.task(&bytes)["result_b64"], "AAH+/w==");
    assert_eq!(
        message_pack::decode(&packed(&format!("/v1/tasks/{value}")))["result"],
        json!({"a": [1, 2.5]})
    );
    let shown = message_pack::decode(&packed(&format!("/v1/queues/q/tasks?after={bytes}")));
    assert_eq!((&shown["tasks"][0]["task"], &shown["next"]), (&json!(value), &Value::Null));
    assert_eq!(shown["tasks"][0]["history"], json!([]));
    let part = message_pack::decode(&packed("/v1/queues/q/tasks?limit=1&state=dead"));
    assert_eq!(part, json!({"tasks": [], "next": null}));
}

#[test]
fn a_filter_finds_tasks_by_what_is_known_of_them() {
    let broker = Broker::in_memory();
    let plain = broker.submit("q", &json!({}));
    let keyed =
        broker.submit("q", &json!({"order_key": "o", "fair_key": "f", "headers": {"a": "1", "b": "x y"}}));
    let later = broker.submit("q", &json!({"delay_ms": 60_000, "headers": {"a": "1"}}));
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let failed = broker.submit("q", &json!({"to": {"worker": "w"}, "priority": 9, "headers": {"a": "2"}}));
    // It has the credit of the worker for as long as it takes to get there.
    loop {
        let delivery = ws.task();
        let (verb, mine) =
            if delivery["task"] == json!(failed) { ("nack", true) } else { ("release", false) };
        let mut settle = json!({"type": verb, "lease": delivery["lease"], "delay_ms": 60_000});
        if mine {
            ws.gets("ok", json!({"type": "credit", "queue": "q", "credit": 0}));
            settle["error"] = json!("smtp: time out");
        }
        ws.gets("settled", settle);
        if mine {
            break;
        }
    }
    let found = |query: &str| ids(&broker, &format!("/v1/queues/q/tasks?{query}")).0;
    assert_eq!(found("header.a=1"), [keyed.clone(), later.clone()]);
    assert_eq!(found("header.a=1&header.b=x%20y"), std::slice::from_ref(&keyed));
    assert_eq!(found("header.a=1&header.b=z"), Vec::<String>::new());
    assert_eq!(found("order_key=o"), std::slice::from_ref(&keyed));
    assert_eq!(found("fair_key=f&order_key=o"), std::slice::from_ref(&keyed));
    assert_eq!(found("fair_key=o"), Vec::<String>::new());
    assert_eq!(found("reason=nack"), std::slice::from_ref(&failed));
    assert_eq!(found("reason=ack_timeout"), Vec::<String>::new());
    assert_eq!(found("error_contains=time%20out"), std::slice::from_ref(&failed));
    assert_eq!(found("state=retrying,done"), std::slice::from_ref(&failed));
    assert_eq!(found("older_than_ms=0").len(), 4);
    assert_eq!(found("older_than_ms=3600000"), Vec::<String>::new());
    broker.delete(&format!("/v1/tasks/{plain}"));
    assert_eq!(found("state=cancelled"), [plain], "also of those that have ended, as long as they are kept");
}

#[test]
fn many_tasks_are_cancelled_by_a_filter_or_by_the_word_all() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let held = broker.submit("q", &json!({"headers": {"batch": "1"}}));
    let delivery = ws.task();
    let first: Vec<String> =
        (0..3).map(|_| broker.submit("q", &json!({"headers": {"batch": "1"}}))).collect();
    let second = broker.submit("q", &json!({"headers": {"batch": "2"}}));
    for (query, field) in
        [("", "all"), ("all=false", "all"), ("header=1", "header"), ("all=true&header.batch=1", "all")]
    {
        let error = broker.delete(&format!("/v1/queues/q/tasks?{query}")).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{query}");
    }
    let error = broker.delete("/v1/queues/q/tasks?state=dead").is_error(400, "bad_request");
    assert_eq!(error["field"], "state");
    assert_eq!(broker.count("q", "queued"), 4, "nothing was done");
    let answer = broker.delete("/v1/queues/q/tasks?header.batch=1&grace_ms=60000");
    assert_eq!((answer.status, answer.json()), (200, json!({"cancelled": 3, "stopping": 1})));
    assert_eq!(ws.wait_for("stop")["lease"], delivery["lease"]);
    for task in &first {
        assert_eq!(broker.task(task)["state"], "cancelled");
    }
    assert_eq!(broker.task(&second)["state"], "queued");
    assert_eq!(broker.task(&held)["state"], "leased");
    let answer = broker.delete("/v1/queues/q/tasks?state=queued,scheduled");
    assert_eq!(answer.json(), json!({"cancelled": 1, "stopping": 0}));
    // An ack within the grace still counts.
    ws.ack(&delivery);
    assert_eq!(broker.task(&held)["state"], "done");
    let answer = broker.delete("/v1/queues/q/tasks?all=true");
    assert_eq!(answer.json(), json!({"cancelled": 0, "stopping": 0}));
    broker.delete("/v1/queues/none/tasks?all=true").is_error(404, "not_found");
}

#[test]
fn a_queue_s_tasks_are_for_who_may_look_and_their_cancelling_for_who_manages() {
    let tokens = Tokens::new();
    let submits = tokens.create("submits", &["submit:*"]);
    let observes = tokens.create("observes", &["observe:q"]);
    let manages = tokens.create("manages", &["manage:q"]);
    let broker = tokens.broker(&[]);
    broker.admin().submit("q", &json!({}));
    let status = |token: &str, method: &str, path: &str| {
        let answer = broker.by(token).send(method, path, &Value::Null);
        if answer.status == 403 {
            answer.is_error(403, "forbidden");
        }
        answer.status
    };
    for path in ["/v1/queues/q/tasks", "/v1/queues/q/dead"] {
        assert_eq!(status(&submits, "GET", path), 403);
        assert_eq!(status(&observes, "GET", path), 200);
        assert_eq!(status(&manages, "GET", path), 200);
    }
    assert_eq!(status(&submits, "DELETE", "/v1/queues/q/tasks?all=true"), 403);
    assert_eq!(status(&observes, "DELETE", "/v1/queues/q/tasks?all=true"), 403);
    assert_eq!(status(&manages, "DELETE", "/v1/queues/q/tasks?all=true"), 200);
    assert_eq!(status(&manages, "DELETE", "/v1/queues/other/tasks?all=true"), 403);
}
