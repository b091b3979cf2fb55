//! HTTP: every route of this version, and what bad requests are told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{self, Connection};
use crate::support::{Broker, message_pack, pause, until, upgrade_request};

#[test]
fn a_submit_is_201_with_its_place() {
    let broker = Broker::start();
    let answer =
        broker.post("/v1/queues/emails/tasks", &json!({"payload": {"to": "a"}, "headers": {"k": "v"}}));
    assert_eq!(answer.status, 201);
    let accepted = answer.json();
    let task = accepted["task"].as_str().unwrap();
    assert_eq!(accepted, json!({"task": task, "duplicate": false}));
    assert_eq!(answer.header("location"), Some(format!("/v1/tasks/{task}").as_str()));
    let mut ws = broker.ws();
    ws.subscribe("emails", 1);
    let delivery = ws.task();
    assert_eq!((&delivery["task"], &delivery["payload"]), (&json!(task), &json!({"to": "a"})));
    assert_eq!(delivery["headers"], json!({"k": "v"}));
}

#[test]
fn a_submit_in_message_pack_is_answered_in_kind() {
    let broker = Broker::in_memory();
    let body = message_pack::encode(&json!({"payload": [1, 2]}));
    let answer = http::post(broker.address, "/v1/queues/q/tasks", "application/msgpack", &body);
    assert_eq!((answer.status, answer.header("content-type")), (201, Some("application/msgpack")));
    let accepted = message_pack::decode(&answer.body);
    let task = accepted["task"].as_str().unwrap();
    assert_eq!(broker.task(task)["state"], "queued");
    // What is asked for wins over what was sent.
    let headers = "Content-Type: application/msgpack\r\nAccept: application/json\r\n";
    let answer = http::send(broker.address, "POST", "/v1/queues/q/tasks", headers, &body);
    assert_eq!(answer.json()["duplicate"], false);
    let request = format!("GET /v1/tasks/{task} HTTP/1.1\r\nHost: x\r\nAccept: application/msgpack\r\n\r\n");
    let answer = http::exchange(broker.address, request.as_bytes());
    assert_eq!(message_pack::decode(&answer.body)["queue"], "q");
}

#[test]
fn any_other_body_is_bytes_with_its_options_in_the_query() {
    let broker = Broker::in_memory();
    let path = "/v1/queues/q/tasks?priority=9&ttl_ms=60000&max_attempts=2&to=%7B%22worker%22%3A%22w%22%7D";
    let answer = http::post(broker.address, path, "image/png", &[0, 1, 254, 255]);
    assert_eq!(answer.status, 201, "{answer:?}");
    let mut ws = broker.worker("w");
    ws.subscribe("q", 10);
    let task = ws.task();
    assert_eq!(task["payload_b64"], "AAH+/w==");
    assert_eq!((&task["priority"], &task["max_attempts"]), (&json!(9), &json!(2)));
    // Without a type, and without a body.
    let answer = http::send(broker.address, "POST", "/v1/queues/q/tasks", "", b"plain");
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(ws.task()["payload_b64"], "cGxhaW4=");
    let answer = http::send(broker.address, "POST", "/v1/queues/q/tasks", "", b"");
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(ws.task()["payload"], Value::Null);
    let answer = http::post(broker.address, "/v1/queues/q/tasks?priority=10", "image/png", b"x");
    assert_eq!(answer.is_error(400, "bad_request")["field"], "priority");
}

/// A misspelled one passed for one that was left out: the task went with priority 4.
#[test]
fn a_parameter_that_is_none_of_the_requests_is_refused() {
    let broker = Broker::in_memory();
    let submit = "/v1/queues/q/tasks";
    for (method, path, parameter, kind) in [
        ("POST", submit, "priorty=9", "image/png"),
        ("POST", submit, "priorty=9", "application/json"),
        ("POST", submit, "priority=9", "application/json"),
        ("POST", submit, "wait=5", "application/json"),
        ("POST", "/v1/tasks", "wait_ms=5", "application/json"),
        ("POST", "/v1/rooms/r", "x=1", "application/json"),
        ("GET", "/v1/queues", "x=1", ""),
        ("GET", "/v1/queues/q", "x=1", ""),
        ("GET", "/v1/workers", "x=1", ""),
        ("GET", "/v1/me", "x=1", ""),
        ("GET", "/v1/schedules", "x=1", ""),
        ("DELETE", "/v1/schedules/s", "x=1", ""),
        ("PUT", "/v1/queues/q", "x=1", "application/json"),
        ("POST", "/v1/queues/q/lease", "wait=5", "application/json"),
    ] {
        let headers = format!("Content-Type: {kind}\r\n");
        let answer = http::send(broker.address, method, &format!("{path}?{parameter}"), &headers, b"{}");
        let (name, _) = parameter.split_once('=').unwrap();
        assert_eq!(answer.is_error(400, "bad_request")["field"], name, "{method} {path}");
    }
    assert_eq!(broker.get("/v1/queues").json()["queues"], json!([]), "nothing was submitted");
    // A page that cannot set headers says there who it is, and probes may say what they like.
    assert_eq!(broker.get("/v1/queues?token=t").status, 200);
    assert_eq!(broker.get("/healthz?at=1").status, 200);
}

/// It went to the URL's queue, and a pull's options to nobody.
#[test]
fn a_body_that_contradicts_its_url_is_refused() {
    let broker = Broker::in_memory();
    for (body, field) in [
        (json!({"queue": "other"}), "queue"),
        (json!({"queue": 5}), "queue"),
        (json!({"type": "cancel"}), "type"),
    ] {
        let error = broker.post("/v1/queues/q/tasks", &body).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{body}: {error}");
    }
    let mut ws = broker.worker("w");
    ws.subscribe("q", 2);
    let same = json!({"type": "submit", "queue": "q", "payload": 7});
    assert_eq!(broker.post("/v1/queues/q/tasks", &same).status, 201);
    assert_eq!(broker.post("/v1/queues/q/tasks", &json!({"queue": null, "payload": 8})).status, 201);
    assert_eq!((&ws.task()["payload"], &ws.task()["payload"]), (&json!(7), &json!(8)));

    let pull = |body: &Value| broker.send("POST", "/v1/queues/p/lease", body);
    let error = pull(&json!({"credit": 5})).is_error(400, "bad_request");
    assert!(error["message"].as_str().unwrap().contains("query parameters"), "{error}");
    // What says nothing, in whichever way, is no body.
    for (kind, nothing) in [
        ("application/json", &b" {\r\n}\n"[..]),
        ("application/json", b"null"),
        ("application/x-msgpack", &[0x80]),
        ("application/x-msgpack", &[0xc0]),
        ("application/octet-stream", b""),
    ] {
        let answer = http::post(broker.address, "/v1/queues/p/lease", kind, nothing);
        assert_eq!(answer.status, 200, "{kind} {nothing:?}");
    }
    broker.submit("p", &json!({}));
    let lease = pull(&json!({})).json()["tasks"][0]["lease"].clone();
    let ack = format!("/v1/leases/{}/ack", lease.as_str().unwrap());
    assert_eq!(
        broker.post(&ack, &json!({"lease": "another"})).is_error(400, "bad_request")["field"],
        "lease"
    );
    assert_eq!(broker.post(&ack, &json!({"lease": lease})).status, 200);
}

#[test]
fn a_form_is_told_of_json() {
    let broker = Broker::in_memory();
    for kind in ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let error =
            http::post(broker.address, "/v1/queues/q/tasks", kind, b"{}").is_error(415, "bad_request");
        assert!(error["message"].as_str().unwrap().contains("--json"), "{error}");
    }
    let answer = http::post(broker.address, "/v1/queues/q/tasks", "application/x-ndjson", b"{}\n");
    answer.is_error(415, "bad_request");
    http::post(broker.address, "/v1/tasks", "text/plain", b"{}").is_error(415, "bad_request");
    let headers = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
    http::send(broker.address, "POST", "/v1/queues/q/tasks", headers, b"??").is_error(415, "bad_request");
}

#[test]
fn a_submit_can_wait_for_the_end() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let address = broker.address;
    let waiting = std::thread::spawn(move || {
        http::post(address, "/v1/queues/q/tasks?wait_ms=60000", "application/json", br#"{"payload":1}"#)
    });
    let task = ws.task();
    ws.gets("settled", json!({"type": "ack", "lease": task["lease"], "result": {"ok": true}}));
    let answer = waiting.join().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let finished = answer.json();
    assert_eq!((&finished["state"], &finished["result"]), (&json!("done"), &json!({"ok": true})));
    assert_eq!(finished["task"], task["task"]);

    let answer = broker.post("/v1/queues/q/tasks?wait_ms=1", &json!({"delay_ms": 60_000}));
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["state"], "scheduled");
    assert!(answer.header("location").is_some());
    for wait in ["60001", "-1", "x", ""] {
        let error = broker
            .post(&format!("/v1/queues/q/tasks?wait_ms={wait}"), &json!({}))
            .is_error(400, "bad_request");
        assert_eq!(error["field"], "wait_ms");
    }
}

#[test]
fn a_task_can_be_waited_for_by_its_id() {
    let broker = Broker::start();
    let task = broker.submit("q", &json!({}));
    let path = format!("/v1/tasks/{task}?wait_ms=1");
    let answer = broker.get(&path);
    assert_eq!((answer.status, &answer.json()["state"]), (202, &json!("queued")), "{answer:?}");
    let (address, path) = (broker.address, format!("/v1/tasks/{task}?wait_ms=60000"));
    let waiting = std::thread::spawn(move || http::get(address, &path));
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let delivery = ws.task();
    ws.ack(&delivery);
    let answer = waiting.join().unwrap();
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("done")), "{answer:?}");
}

/// A megabyte of short lines was answered by fifty megabytes of errors.
#[test]
fn lines_are_as_many_as_an_array_may_have_items() {
    let broker = Broker::in_memory();
    let send = |lines: usize| {
        let body = "{\"queue\":\"q\"}\n".repeat(lines);
        http::post(broker.address, "/v1/tasks", "application/x-ndjson", body.as_bytes())
    };
    assert_eq!(send(1024).status, 200);
    send(1025).is_error(400, "bad_request");
    assert_eq!(broker.count("q", "queued"), 1024);
}

#[test]
fn many_submits_are_answered_each() {
    let broker = Broker::start();
    let answer = broker.post(
        "/v1/tasks",
        &json!([{"queue": "a"}, {"queue": "b", "priority": 77}, {"queue": "a", "payload": 1}, 5, {}]),
    );
    assert_eq!(answer.status, 200);
    let answers = answer.json();
    let what: Vec<_> = answers
        .as_array()
        .unwrap()
        .iter()
        .map(|a| (a["duplicate"].clone(), a["code"].clone(), a["field"].clone()))
        .collect();
    let (none, bad) = (Value::Null, json!("bad_request"));
    assert_eq!(what[0], (json!(false), none.clone(), none.clone()));
    assert_eq!(what[1], (none.clone(), bad.clone(), json!("priority")));
    assert_eq!(what[2], (json!(false), none.clone(), none.clone()));
    assert_eq!((&what[3].1, what[4].clone()), (&bad, (none, bad.clone(), json!("queue"))));
    assert_eq!(broker.count("a", "queued"), 2);

    let lines = b"{\"queue\":\"n\",\"payload\":1}\n\n{nonsense\n{\"queue\":\"n\",\"payload\":3}";
    let answer = http::post(broker.address, "/v1/tasks", "application/x-ndjson", lines);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-ndjson")));
    let answers: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 3, "{answer:?}");
    assert_eq!((&answers[0]["duplicate"], &answers[2]["duplicate"]), (&json!(false), &json!(false)));
    assert_eq!(answers[1]["code"], "bad_request");

    let body = message_pack::encode(&json!([{"queue": "m"}, {"queue": "m", "payload": [1]}]));
    let answer = http::post(broker.address, "/v1/tasks", "application/msgpack", &body);
    assert_eq!(message_pack::decode(&answer.body).as_array().unwrap().len(), 2, "{answer:?}");
    assert_eq!(broker.count("m", "queued"), 2);
    broker.post("/v1/tasks", &json!({"queue": "a"})).is_error(400, "bad_request");
}

#[test]
fn a_task_is_shown_in_each_state() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let task = broker.submit("q", &json!({"max_attempts": 2, "backoff": {"initial_ms": 0}}));
    let delivery = ws.task();
    let shown = broker.task(&task);
    assert_eq!(
        (&shown["state"], &shown["worker"], &shown["attempt"]),
        (&json!("leased"), &json!("w"), &json!(1))
    );
    assert_eq!((&shown["queue"], &shown["max_attempts"]), (&json!("q"), &json!(2)));
    assert!(shown["age_ms"].is_u64());
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": "first"}));
    let delivery = ws.task();
    assert_eq!(delivery["attempt"], 2);
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": "second"}));
    let shown = broker.task(&task);
    assert_eq!((&shown["state"], &shown["error"]), (&json!("dead"), &json!("second")));
    let attempt =
        |n: u64, error: &str| json!({"attempt": n, "worker": "w", "reason": "nack", "error": error});
    assert_eq!(shown["history"], json!([attempt(1, "first"), attempt(2, "second")]));

    let error = broker.get("/v1/tasks/0198c0de-0000-7000-8000-000000000000").is_error(404, "not_found");
    assert_eq!(error["task"], "0198c0de-0000-7000-8000-000000000000");
    for bad in ["1", "0198c0de-0000-7000-8000-00000000000", "0198c0de000070008000000000000000"] {
        broker.get(&format!("/v1/tasks/{bad}")).is_error(400, "bad_request");
    }
}

#[test]
fn queues_and_workers_are_shown() {
    let broker = Broker::in_memory();
    assert_eq!(broker.get("/v1/queues").json(), json!({"queues": []}));
    broker.get("/v1/queues/q").is_error(404, "not_found");
    let mut ws = broker.ws();
    ws.gets(
        "welcome",
        json!({"type": "hello", "worker": "w", "groups": ["g"], "labels": {"host": "a"}, "client": "test"}),
    );
    ws.subscribe("q", 2);
    for _ in 0..3 {
        broker.submit("q", &json!({}));
    }
    let delivery = ws.task();
    ws.ack(&delivery);
    ws.task();
    ws.task();
    broker.submit("q", &json!({}));
    let queue = broker.get("/v1/queues/q").json();
    assert_eq!(queue["queue"], "q");
    let counts = &queue["counts"];
    assert_eq!(
        [&counts["done"], &counts["leased"], &counts["queued"], &counts["dead"]],
        [&json!(1), &json!(2), &json!(1), &json!(0)]
    );
    assert_eq!(counts.as_object().unwrap().len(), 8);
    assert!(queue["oldest_ms"].is_u64());
    assert!(queue["rates"]["accepted"].is_number());
    assert_eq!((&queue["workers"], &queue["paused"]), (&json!(1), &Value::Null));
    assert_eq!(broker.get("/v1/queues").json()["queues"][0]["queue"], "q");
    let worker = broker.get("/v1/workers").json()["workers"][0].clone();
    assert_eq!(
        (&worker["worker"], &worker["groups"], &worker["in_flight"]),
        (&json!("w"), &json!(["g"]), &json!(2))
    );
    assert_eq!((&worker["labels"], &worker["client"]), (&json!({"host": "a"}), &json!("test")));
    assert_eq!(worker["subscriptions"], json!([{"queue": "q", "credit": 2, "unsettled": 2}]));
    assert_eq!(broker.get("/healthz").text(), "ok\n");
    assert_eq!(broker.get("/readyz").status, 200);
}

#[test]
fn an_idempotency_key_is_a_dedup_id() {
    let broker = Broker::in_memory();
    let submit = |key: &str, body: &[u8]| {
        let headers = format!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\n");
        http::send(broker.address, "POST", "/v1/queues/q/tasks", &headers, body)
    };
    let first = submit("k", b"{}");
    assert_eq!((first.status, &first.json()["duplicate"]), (201, &json!(false)), "{first:?}");
    for again in [submit("k", b"{}"), submit("k", br#"{"dedup_id":"k","payload":1}"#)] {
        assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{again:?}");
        assert_eq!(again.json()["task"], first.json()["task"]);
        assert_eq!(again.header("location"), first.header("location"));
    }
    let error = submit("k", br#"{"dedup_id":"other"}"#).is_error(400, "bad_request");
    assert_eq!(error["field"], "dedup_id");
    assert_eq!(submit(&"k".repeat(257), b"{}").is_error(400, "bad_request")["field"], "dedup_id");
    assert_eq!(broker.count("q", "queued"), 1);
}

#[test]
fn unknown_paths_and_verbs() {
    let broker = Broker::in_memory();
    broker.get("/v2/queues").is_error(404, "not_found");
    broker.get("/v1/queues/").is_error(404, "not_found");
    for (method, path, allowed) in [
        ("PATCH", "/v1/queues", "GET"),
        ("GET", "/v1/tasks", "POST"),
        ("DELETE", "/metrics", "GET"),
        ("BREW", "/v1/workers", "GET"),
    ] {
        let answer = http::send(broker.address, method, path, "", b"");
        answer.is_error(405, "bad_request");
        assert!(
            answer.header("allow").is_some_and(|allow| allow.contains(allowed)),
            "{method} {path}: {answer:?}"
        );
    }
}

#[test]
fn queue_names_that_are_none_are_400() {
    let broker = Broker::in_memory();
    for name in [".x", "a%20b", "a%2Fb", "%2e%2e", "..", "%C3%BC", "%ff", "%", "%zz", &"x".repeat(129)] {
        for answer in [
            broker.post(&format!("/v1/queues/{name}/tasks"), &json!({})),
            broker.get(&format!("/v1/queues/{name}")),
        ] {
            answer.is_error(400, "bad_request");
        }
    }
    let both = broker.post("/v1/queues/q/tasks", &json!({"queue": "other"}));
    assert!(matches!(both.status, 201 | 400), "{both:?}");
    assert_eq!(broker.get("/v1/queues/other").status, 404);
}

#[test]
fn a_body_over_the_limit_is_413_before_it_is_read() {
    let broker = Broker::with(&["--engine", "memory", "--message-bytes", "4096"]);
    for path in ["/v1/queues/q/tasks", "/v1/tasks"] {
        let mut connection = Connection::open(broker.address);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4097\r\n\r\n"
        );
        connection.send(head.as_bytes());
        connection.answer().is_error(413, "too_large");
    }
    // One that is not declared is cut off when it is too long.
    let mut connection = Connection::open(broker.address);
    connection.send(b"POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    connection.send(&[b"1001\r\n".as_slice(), &[b'x'; 4097], b"\r\n"].concat());
    connection.answer().is_error(413, "too_large");
    let whole = format!("{{\"payload\":\"{}\"}}", "x".repeat(4096 - 14));
    assert_eq!(whole.len(), 4096);
    let answer = http::post(broker.address, "/v1/queues/q/tasks", "application/json", whole.as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[test]
fn bodies_that_cannot_be_read_are_400() {
    let broker = Broker::in_memory();
    for (kind, body) in [
        ("application/json", &b"{"[..]),
        ("application/json", b"[]"),
        ("application/json", b"{\"payload\":1,\"payload\":2}"),
        ("application/json", b"{\"payload\":\"\xff\"}"),
        ("application/msgpack", b"\xc1"),
        ("application/msgpack", b"\x80\x80"),
    ] {
        let answer = http::send(
            broker.address,
            "POST",
            "/v1/queues/q/tasks",
            &format!("Content-Type: {kind}\r\nAccept: application/json\r\n"),
            body,
        );
        answer.is_error(400, "bad_request");
    }
    broker.get("/v1/queues/q").is_error(404, "not_found");
}

#[test]
fn requests_that_are_no_http() {
    let broker = Broker::in_memory();
    let status = |request: &str| http::exchange(broker.address, request.as_bytes()).status;
    assert_eq!(status("GET /v1/queues HTTP/1.1\r\n\r\n"), 400, "no Host");
    assert_eq!(status("GET /v1/queues HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400, "two Hosts");
    assert_eq!(status("nonsense\r\n\r\n"), 400);
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(64));
    assert_eq!(status(&many), 431);
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "b".repeat(17 << 10));
    assert_eq!(status(&long), 431);
}

#[test]
fn a_connection_serves_one_request_after_another_one_byte_at_a_time() {
    let broker = Broker::in_memory();
    let mut connection = Connection::open(broker.address);
    let request = "POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    for _ in 0..3 {
        for byte in request.as_bytes() {
            connection.send(&[*byte]);
        }
        assert_eq!(connection.answer().status, 201);
    }
    // Pipelined, too.
    connection.send(request.repeat(3).as_bytes());
    for _ in 0..3 {
        assert_eq!(connection.answer().status, 201);
    }
    assert_eq!(broker.count("q", "queued"), 6);
}

#[test]
fn slow_heads_and_silence_are_cut_off() {
    if std::env::var_os("TASKYARD_SLOW").is_none() {
        return;
    }
    let broker = Broker::in_memory();
    let began = Instant::now();
    let mut silent = Connection::open(broker.address);
    let mut slow = Connection::open(broker.address);
    slow.send(b"GET /v1/queues HTTP/1.1\r\nHost:");
    // A byte now and then does not make it quicker.
    let mut trickling = Connection::open(broker.address);
    let mut idle = Connection::open(broker.address);
    idle.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(idle.answer().status, 200);
    while trickling.send_if_open(b"G") && began.elapsed() < Duration::from_secs(15) {
        pause(Duration::from_millis(200));
    }
    slow.ends();
    silent.ends();
    idle.ends();
    let took = began.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(13), "{took:?}");
}

#[test]
fn a_slow_body_is_408() {
    if std::env::var_os("TASKYARD_SLOW").is_none() {
        return;
    }
    let broker = Broker::in_memory();
    let began = Instant::now();
    let mut connection = Connection::open(broker.address);
    connection.send(b"POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{");
    // A byte now and then does not make it quicker.
    while began.elapsed() < Duration::from_secs(25) {
        connection.send(b" ");
        pause(Duration::from_millis(500));
    }
    until("the answer", || {
        pause(Duration::from_secs(2));
        (began.elapsed() > Duration::from_secs(29)).then_some(())
    });
    connection.answer().is_error(408, "bad_request");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(33), "{took:?}");
    connection.ends();
    broker.get("/v1/queues/q").is_error(404, "not_found");
}

/// Metrics as a scraper reads them: each series once, each family with its help and type before it.
pub(crate) fn metrics(broker: &Broker) -> std::collections::BTreeMap<String, f64> {
    let answer = broker.get("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let (mut helped, mut typed) = (std::collections::BTreeSet::new(), std::collections::BTreeMap::new());
    let mut series = std::collections::BTreeMap::new();
    for line in answer.text().lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert!(
                helped.contains(name) && typed.insert(name.to_owned(), kind.to_owned()).is_none(),
                "{line}"
            );
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let family = name.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end));
            let known = typed.contains_key(family)
                || base.is_some_and(|base| typed.get(base).is_some_and(|k| k == "histogram"));
            let ours = family.starts_with("taskyard_") || family.starts_with("process_");
            assert!(known && ours, "{line}");
            assert!(series.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
        }
    }
    series
}

#[test]
fn metrics_follow_the_tasks() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 2);
    let of = |event: &str| format!("taskyard_tasks_total{{event=\"{event}\",queue=\"q\"}}");
    let in_state = |state: &str| format!("taskyard_tasks{{queue=\"q\",state=\"{state}\"}}");
    let before = metrics(&broker);
    assert_eq!(before[&of("accepted")], 0.0);
    assert_eq!(before["taskyard_workers{queue=\"q\"}"], 1.0);
    assert_eq!(before["taskyard_connections"], 1.0);

    for _ in 0..3 {
        ws.submit(json!({"queue": "q", "max_attempts": 1}));
    }
    let (first, second) = (ws.task(), ws.task());
    ws.ack(&first);
    ws.gets("settled", json!({"type": "nack", "lease": second["lease"]}));
    ws.task();
    broker
        .post("/v1/queues/q/tasks", &json!({"to": {"worker": "x", "if_absent": "fail"}}))
        .is_error(404, "not_found");
    let after = metrics(&broker);
    for (event, count) in [
        ("accepted", 3.0),
        ("delivered", 3.0),
        ("acked", 1.0),
        ("nacked", 1.0),
        ("dead", 1.0),
        ("refused", 1.0),
        ("redelivered", 0.0),
        ("released", 0.0),
        ("timed_out", 0.0),
        ("worker_lost", 0.0),
        ("expired", 0.0),
    ] {
        assert_eq!(after[&of(event)], count, "{event}");
    }
    assert_eq!((after[&in_state("leased")], after[&in_state("dead")]), (1.0, 1.0));
    assert_eq!(after["taskyard_submit_to_durable_seconds_count"], 3.0);
    assert_eq!(after["taskyard_delivered_to_settled_seconds_count"], 2.0);
    assert!(after["taskyard_log_sync_seconds_count"] > 0.0 && after["taskyard_log_bytes"] > 0.0);
    ws.gets("ok", json!({"type": "bye"}));
    ws.closes(1000);
    until("the close to be counted", || {
        (metrics(&broker).get("taskyard_closes_total{code=\"1000\"}") == Some(&1.0)).then_some(())
    });
}

#[test]
fn queues_beyond_the_cap_share_a_label() {
    let broker = Broker::in_memory();
    let submits: Vec<Value> = (0..150).map(|n| json!({"queue": format!("made-up-{n}")})).collect();
    assert_eq!(broker.post("/v1/tasks", &Value::Array(submits)).status, 200);
    let series = metrics(&broker);
    assert_eq!(series["taskyard_tasks{queue=\"_other\",state=\"queued\"}"], 50.0);
}

/// All that is heard on one connection, at the end of which stands a request to end it.
fn conversation(broker: &Broker, said: &str) -> String {
    let mut connection = Connection::open(broker.address);
    let last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    connection.send_if_open(format!("{said}{last}").as_bytes());
    String::from_utf8(connection.ends()).unwrap()
}

const HIDDEN: &str = "POST /v1/queues/hidden/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

#[test]
fn no_request_hides_in_another() {
    let broker = Broker::in_memory();
    let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    let post = "POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\n";
    let length = HIDDEN.len();
    for (what, said, status) in [
        (
            "both, the length first",
            format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
            400,
        ),
        (
            "both, the coding first",
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{HIDDEN}"),
            400,
        ),
        (
            "both, and others between",
            format!(
                "{post}content-LENGTH: 4\r\nA: b\r\ntransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
            400,
        ),
        ("two lengths", format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"), 400),
        ("the same twice", format!("{post}Content-Length: 0\r\nContent-Length: 0\r\n\r\n{HIDDEN}"), 400),
        ("a list of lengths", format!("{post}Content-Length: 0, {length}\r\n\r\n{HIDDEN}"), 400),
        ("a length with a sign", format!("{post}Content-Length: +0\r\n\r\n{HIDDEN}"), 400),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\n{HIDDEN}"), 400),
        ("a length in hexadecimal", format!("{post}Content-Length: 0x0\r\n\r\n{HIDDEN}"), 400),
        ("a length beyond all", format!("{post}Content-Length: 18446744073709551616\r\n\r\n{HIDDEN}"), 400),
        ("an unknown coding", format!("{post}Transfer-Encoding: gzip\r\n\r\n{HIDDEN}"), 400),
        ("chunked, not last", format!("{post}Transfer-Encoding: chunked, gzip\r\n\r\n{HIDDEN}"), 400),
        (
            "a hidden coding",
            format!("{post}Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n{HIDDEN}"),
            400,
        ),
        ("a space before the colon", format!("{post}Content-Length : {length}\r\n\r\n{HIDDEN}"), 400),
        ("a folded line", format!("{post}Content-Length:\r\n {length}\r\n\r\n{HIDDEN}"), 400),
        (
            "HTTP/1.0 with chunks",
            format!(
                "POST /v1/queues/q/tasks HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
            ),
            400,
        ),
        // What follows a body of chunks is another's.
        ("a chunk", format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunk}"), 201),
        (
            "behind chunks",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"),
            201,
        ),
        (
            "behind a trailer",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            201,
        ),
        // In the body of a request that has no use for one.
        (
            "a body of GET",
            format!("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            200,
        ),
        (
            "a body of nothing",
            format!("DELETE /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{HIDDEN}"),
            404,
        ),
        ("a body of a submit", format!("{post}Content-Length: {length}\r\n\r\n{HIDDEN}"), 201),
        (
            "an end that was asked for",
            format!("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n{HIDDEN}"),
            200,
        ),
        (
            "an upgrade",
            format!("{}{HIDDEN}", upgrade_request(broker.address, "/ws", "Content-Length: 200\r\n")),
            400,
        ),
    ] {
        let heard = conversation(&broker, &said);
        assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {heard}");
        let hidden = broker.get("/v1/queues/hidden");
        assert_eq!(hidden.status, 404, "{what}: {heard}");
    }
}

#[test]
fn behind_a_body_of_chunks_the_connection_ends() {
    let broker = Broker::in_memory();
    let mut connection = Connection::open(broker.address);
    connection.send(b"POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in ["1\r\n{\r\n", "d;more=1\r\n\"payload\":123\r\n", "1\r\n}\r\n0\r\n\r\n"] {
        connection.send(part.as_bytes());
    }
    let answer = connection.answer();
    assert_eq!((answer.status, answer.header("connection")), (201, Some("close")), "{answer:?}");
    connection.ends();
    for bad in ["x\r\n", "-1\r\n", "5\r\n{}\r\n", "ffffffffffffffffff\r\n", "2\r\n{}0\r\n\r\n"] {
        let heard = conversation(
            &broker,
            &format!(
                "POST /v1/queues/bad/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{bad}"
            ),
        );
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 400"), "{bad:?}: {heard}");
    }
    broker.get("/v1/queues/bad").is_error(404, "not_found");
}

#[test]
fn every_path_names_its_verbs() {
    let broker = Broker::in_memory();
    let task = broker.submit("q", &json!({}));
    for (path, verbs) in [
        ("/".to_owned(), "GET"),
        ("/ws".into(), "GET"),
        ("/healthz".into(), "GET"),
        ("/readyz".into(), "GET"),
        ("/metrics".into(), "GET"),
        ("/openapi.json".into(), "GET"),
        ("/v1/queues".into(), "GET"),
        ("/v1/queues/q".into(), "GET PUT"),
        ("/v1/queues/q/tasks".into(), "GET POST"),
        ("/v1/queues/q/pause".into(), "POST"),
        ("/v1/queues/q/dead".into(), "GET DELETE"),
        ("/v1/tasks".into(), "POST"),
        (format!("/v1/tasks/{task}"), "GET DELETE"),
        ("/v1/workers".into(), "GET"),
        ("/v1/workers/w".into(), "DELETE"),
        ("/v1/schedules/s".into(), "GET PUT DELETE"),
        ("/v1/rooms/r".into(), "POST"),
    ] {
        for method in ["BREW", "PATCH", "TRACE", "get"] {
            let answer = http::send(broker.address, method, &path, "", b"");
            answer.is_error(405, "bad_request");
            let allowed = answer.header("allow").unwrap_or_else(|| panic!("{path}: {answer:?}"));
            for verb in verbs.split(' ') {
                assert!(allowed.contains(verb), "{method} {path}: {allowed}");
            }
        }
        // Without a page there is nothing to be asked before a request.
        assert_eq!(http::send(broker.address, "OPTIONS", &path, "", b"").status, 405, "{path}");
        // What can be got can be looked at.
        if verbs.contains("GET") && path != "/ws" {
            let got = broker.get(&path);
            let mut connection = Connection::open(broker.address);
            connection
                .send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
            let head = connection.head();
            assert_eq!(head.status, got.status, "{path}");
            assert_eq!(connection.ends(), b"", "{path}: an answer to HEAD has no body");
        }
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/queues/q/",
        "//v1/queues",
        "/v1/queue",
        "/ws/",
        "/WS",
        "/v1/queues/q/tasks/1",
        "*",
    ] {
        let answer = http::send(broker.address, "GET", path, "", b"");
        assert!(matches!(answer.status, 404 | 400), "{path}: {answer:?}");
    }
}

#[test]
fn names_in_paths_are_decoded_once() {
    let broker = Broker::in_memory();
    broker.submit("plain-name", &json!({}));
    assert_eq!(broker.get("/v1/queues/%70lain%2Dname").json()["queue"], "plain-name");
    for name in [
        "%2570lain-name",
        "plain-name%00",
        "plain-name%0a",
        "plain%",
        "plain%4",
        "%u0070lain",
        "plain-name%2f",
        "%2e",
        "%2E%2E",
        "a;b",
        "a+b",
    ] {
        broker.get(&format!("/v1/queues/{name}")).is_error(400, "bad_request");
    }
    for path in ["/v1/queues/../queues/plain-name", "/v1/./queues", "/v1/queues/q/../../../metrics"] {
        let answer = broker.get(path);
        assert!(matches!(answer.status, 400 | 404), "{path} is resolved by nobody: {answer:?}");
    }
    for path in ["/v1/tasks/%2e%2e", "/v1/tasks/%ff"] {
        broker.get(path).is_error(400, "bad_request");
    }
}

#[test]
fn heads_have_their_limits() {
    let broker = Broker::in_memory();
    let with = |count: usize| format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert_eq!(http::exchange(broker.address, with(63).as_bytes()).status, 200);
    assert_eq!(http::exchange(broker.address, with(64).as_bytes()).status, 431);
    assert_eq!(http::exchange(broker.address, with(2000).as_bytes()).status, 431);
    let long = |bytes: usize| {
        let head = "GET /healthz HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n";
        head.replace("A: ", &format!("A: {}", "b".repeat(bytes - head.len())))
    };
    assert_eq!(http::exchange(broker.address, long(16_000).as_bytes()).status, 200);
    assert_eq!(http::exchange(broker.address, long(17_000).as_bytes()).status, 431);
    let target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let mut connection = Connection::open(broker.address);
    connection.send_if_open(target.as_bytes());
    assert!(matches!(connection.answer().status, 414 | 431));
    // What never ends is not read for ever.
    let mut connection = Connection::open(broker.address);
    connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n");
    let line = format!("A: {}\r\n", "b".repeat(5000));
    let mut sent = 0;
    while connection.send_if_open(line.as_bytes()) {
        sent += 1;
        assert!(sent < 10_000, "it is read without end");
    }
}

#[test]
fn a_body_that_is_too_long_is_not_asked_for() {
    let broker = Broker::with(&["--engine", "memory", "--message-bytes", "4096"]);
    let head = |length: u64| {
        format!(
            "POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    for length in [4097, 1 << 40] {
        let mut connection = Connection::open(broker.address);
        connection.send(head(length).as_bytes());
        // The first thing that is heard: no `100 Continue` before it.
        connection.answer().is_error(413, "too_large");
        connection.ends();
    }
    let mut connection = Connection::open(broker.address);
    connection.send(head(2).as_bytes());
    assert_eq!(connection.head().status, 100);
    connection.send(b"{}");
    assert_eq!(connection.answer().status, 201);
    // Who sends it all the same is told, too.
    let mut connection = Connection::open(broker.address);
    connection.send_if_open(&[head(100_000).as_bytes(), &[b' '; 100_000]].concat());
    connection.answer().is_error(413, "too_large");
    // What is forbidden anyway is refused before that.
    let mut connection = Connection::open(broker.address);
    connection.send(head(2).replace("Host: x\r\n", "Host: x\r\nOrigin: https://evil.example\r\n").as_bytes());
    connection.answer().is_error(403, "forbidden");
}

#[test]
fn content_types_are_told_apart() {
    let broker = Broker::in_memory();
    let submit = |kind: &str, more: &str, body: &[u8]| {
        http::send(
            broker.address,
            "POST",
            "/v1/queues/q/tasks",
            &format!("Content-Type: {kind}\r\n{more}"),
            body,
        )
    };
    for kind in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json;",
        "image/png",
        "text/plain",
        "",
    ] {
        assert_eq!(submit(kind, "", b"{}").status, 201, "{kind}");
    }
    for kind in [
        "application/x-www-form-urlencoded; charset=utf-8",
        "APPLICATION/X-WWW-FORM-URLENCODED",
        "multipart/form-data",
    ] {
        submit(kind, "", b"{}").is_error(415, "bad_request");
    }
    for coding in ["gzip", "deflate", "br", "identity, gzip"] {
        submit("application/json", &format!("Content-Encoding: {coding}\r\n"), b"{}")
            .is_error(415, "bad_request");
    }
    assert_eq!(submit("application/json", "Content-Encoding: identity\r\n", b"{}").status, 201);
}

#[test]
fn connections_end_when_and_as_they_should() {
    let broker = Broker::in_memory();
    let submit = "POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    // A client that says no more has gone: it hears its answer, or nothing.
    let gone = |said: &str| {
        let mut connection = Connection::open(broker.address);
        connection.send(said.as_bytes());
        connection.finish_writing();
        String::from_utf8(connection.ends()).unwrap()
    };
    let heard = gone("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(heard.is_empty() || heard.ends_with("\r\n\r\nok\n"), "{heard}");
    // One that leaves in the middle of its body has submitted nothing.
    let heard = gone("POST /v1/queues/part/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{}");
    assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 400"), "{heard}");
    broker.get("/v1/queues/part").is_error(404, "not_found");
    assert!(conversation(&broker, "GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200"));
    // Kept alive after answers of every kind, closed where it is asked for.
    let mut connection = Connection::open(broker.address);
    for (request, status) in [
        (submit, 201),
        ("GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        ("PATCH /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        ("\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (submit, 201),
        // What some clients ask for with each request, and get none of.
        (
            "POST /v1/queues/q/tasks HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 2\r\n\r\n{}",
            201,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
    ] {
        connection.send(request.as_bytes());
        assert_eq!(connection.answer().status, status, "{request}");
    }
    assert_eq!(connection.ends(), b"");
    assert_eq!(broker.count("q", "queued"), 3);
}

#[test]
fn a_page_of_a_foreign_origin_does_nothing() {
    let broker = Broker::with(&["--engine", "memory", "--allow-origins", "https://app.example.org"]);
    let post = |headers: &str| http::send(broker.address, "POST", "/v1/queues/q/tasks", headers, b"{}");
    for origin in [
        "https://evil.example",
        "http://127.0.0.1:1",
        "https://app.example.org.evil.example",
        "http://app.example.org",
        "file://",
    ] {
        let answer = post(&format!("Origin: {origin}\r\nContent-Type: text/plain\r\n"));
        answer.is_error(403, "forbidden");
        assert_eq!(answer.header("access-control-allow-origin"), None);
        let preflight = http::send(
            broker.address,
            "OPTIONS",
            "/v1/queues/q/tasks",
            &format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n"),
            b"",
        );
        preflight.is_error(403, "forbidden");
        assert!(
            !preflight.headers.iter().any(|(name, _)| name.starts_with("access-control")),
            "{preflight:?}"
        );
        for path in ["/v1/queues", "/metrics", "/healthz", "/"] {
            let answer = http::send(broker.address, "GET", path, &format!("Origin: {origin}\r\n"), b"");
            answer.is_error(403, "forbidden");
        }
    }
    broker.get("/v1/queues/q").is_error(404, "not_found");

    for origin in ["https://app.example.org".to_owned(), broker.url()] {
        let preflight = http::send(
            broker.address,
            "OPTIONS",
            "/v1/queues/q/tasks",
            &format!(
                "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: authorization,content-type\r\n"
            ),
            b"",
        );
        assert_eq!(preflight.status, 204, "{preflight:?}");
        assert_eq!(preflight.header("access-control-allow-origin"), Some(origin.as_str()));
        assert!(preflight.header("access-control-allow-methods").unwrap().contains("POST"));
        let allowed = preflight.header("access-control-allow-headers").unwrap();
        assert!(allowed.contains("authorization") && allowed.contains("content-type"), "{allowed}");
        assert_eq!(preflight.header("access-control-allow-credentials"), None);
        for (method, path, status) in
            [("POST", "/v1/queues/q/tasks", 201), ("GET", "/nothing", 404), ("GET", "/v1/queues", 200)]
        {
            let answer = http::send(broker.address, method, path, &format!("Origin: {origin}\r\n"), b"");
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(answer.header("access-control-allow-origin"), Some(origin.as_str()), "{answer:?}");
            assert!(answer.header("vary").unwrap().contains("origin"), "{answer:?}");
            assert!(answer.header("access-control-expose-headers").unwrap().contains("location"));
        }
    }
    assert_eq!(broker.get("/v1/queues").header("access-control-allow-origin"), None, "nobody asked");
}

#[test]
fn without_tokens_the_broker_goes_by_names_that_strangers_cannot_own() {
    let arguments = ["--engine", "memory", "--allow-origins", "https://tasks.example.org"];
    let broker = Broker::with(&arguments);
    let status = |host: &str, path: &str| {
        let request = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}");
        http::exchange(broker.address, request.as_bytes()).status
    };
    let submit = "/v1/queues/q/tasks";
    for host in [
        "evil.example",
        "evil.example:7070",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "a b",
        "user@localhost",
        "127.1",
        "localhost:x",
    ] {
        assert!(matches!(status(host, submit), 403 | 400), "{host}");
        let upgrade = upgrade_request(broker.address, "/ws", &format!("Origin: http://{host}\r\n"))
            .replace(&format!("Host: {}", broker.address), &format!("Host: {host}"));
        assert!(matches!(http::exchange(broker.address, upgrade.as_bytes()).status, 403 | 400), "{host}");
    }
    assert_eq!(broker.get("/v1/queues").json(), json!({"queues": []}));
    for host in [
        "localhost",
        "LOCALHOST:7070",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:7070",
        "taskyard",
        "broker.internal",
        "app.localhost",
        "tasks.example.org",
        "Tasks.Example.Org:443",
    ] {
        assert_eq!(status(host, submit), 201, "{host}");
    }
    // With tokens a name is nothing to go by: a stranger's page has none.
    let secret = [("TASKYARD_ADMIN_TOKEN", "0123456789abcdef0123456789abcdef")];
    let broker = Broker::with_environment(&secret, &["--engine", "memory"]);
    let request = format!(
        "GET /v1/queues HTTP/1.1\r\nHost: any.example\r\nAuthorization: Bearer {}\r\n\r\n",
        secret[0].1
    );
    assert_eq!(http::exchange(broker.address, request.as_bytes()).status, 200);
}
