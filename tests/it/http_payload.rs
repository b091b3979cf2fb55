//! HTTP: what a task was submitted with, shown to who may read it, wherever its payload is.

use serde_json::{Value, json};

use crate::support::{Broker, Output, Tokens, http, message_pack};

/// A task with all that it carries.
fn inside(broker: &Broker, task: &str) -> Value {
    let answer = broker.get(&format!("/v1/tasks/{task}?payload=true"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn is_forgotten(broker: &Broker, task: &str, state: &str) {
    let shown = inside(broker, task);
    assert_eq!(shown["state"], state, "{shown}");
    for field in ["payload", "payload_b64", "headers"] {
        assert!(shown.get(field).is_none(), "{field} of {shown}");
    }
}

#[test]
fn a_task_shows_what_it_carries_until_it_has_ended() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    let spelled = r#"{"payload": {"b": 1,  "a":[1.0, null]}, "headers": {"trace": "7", "from": "x"}}"#;
    let answer =
        http::post(broker.address, "/v1/queues/q/tasks", "application/json", spelled.as_bytes()).json();
    let waits = answer["task"].as_str().unwrap().to_owned();
    let sent: Value = serde_json::from_str(spelled).unwrap();
    let later = broker.submit("later", &json!({"payload": "text", "delay_ms": 3_600_000}));
    let empty = broker.submit("empty", &json!({}));
    let bytes = broker.submit("bytes", &json!({"payload_b64": "AAEC/w=="}));
    let shown = inside(&broker, &waits);
    assert_eq!((&shown["state"], &shown["payload"]), (&json!("queued"), &sent["payload"]));
    assert_eq!(shown["headers"], sent["headers"]);
    assert!(shown.get("payload_b64").is_none(), "{shown}");
    let text = broker.get(&format!("/v1/tasks/{waits}?payload=true")).text().to_owned();
    assert!(text.contains(r#""payload":{"b": 1,  "a":[1.0, null]},"#), "as it was sent: {text}");
    let shown = inside(&broker, &later);
    assert_eq!((&shown["state"], &shown["payload"]), (&json!("scheduled"), &json!("text")));
    let shown = inside(&broker, &empty);
    assert_eq!((shown.get("payload"), &shown["headers"]), (Some(&Value::Null), &json!({})));
    let shown = inside(&broker, &bytes);
    assert_eq!((shown.get("payload"), &shown["payload_b64"]), (None, &json!("AAEC/w==")));
    // Only who asks is told.
    for query in ["", "?payload=false"] {
        let shown = broker.get(&format!("/v1/tasks/{waits}{query}")).json();
        assert!(shown.get("payload").is_none() && shown.get("headers").is_none(), "{shown}");
    }

    ws.subscribe("q", 1);
    let delivery = ws.task();
    let shown = inside(&broker, &waits);
    assert_eq!((&shown["state"], &shown["payload"]), (&json!("leased"), &sent["payload"]));
    let lease = delivery["lease"].clone();
    ws.gets("settled", json!({"type": "nack", "lease": lease, "retry": false, "error": "no"}));
    let shown = inside(&broker, &waits);
    assert_eq!((&shown["state"], &shown["payload"]), (&json!("dead"), &sent["payload"]));
    assert_eq!(shown["headers"], sent["headers"], "a dead letter is looked into most of all");

    ws.subscribe("bytes", 1);
    let delivery = ws.task();
    ws.ack(&delivery);
    is_forgotten(&broker, &bytes, "done");
    assert_eq!(broker.delete(&format!("/v1/tasks/{later}")).status, 200);
    is_forgotten(&broker, &later, "cancelled");
}

#[test]
fn a_wait_shows_the_payload_too() {
    let broker = Broker::in_memory();
    let task = broker.submit("q", &json!({"payload": 5}));
    let answer = broker.get(&format!("/v1/tasks/{task}?wait_ms=1&payload=true"));
    assert_eq!((answer.status, &answer.json()["payload"]), (202, &json!(5)));
    for (query, field) in [
        ("payload=yes", "payload"),
        ("payload=", "payload"),
        ("payload=true&payload=true", "payload"),
        ("wait_ms=60001", "wait_ms"),
        ("paylod=true", "paylod"),
    ] {
        let error = broker.get(&format!("/v1/tasks/{task}?{query}")).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{error}");
    }
    let nobody = "0198c0de-0000-7000-8000-000000000000";
    broker.get(&format!("/v1/tasks/{nobody}?payload=true")).is_error(404, "not_found");
}

#[test]
fn a_payload_is_spelled_as_the_answer_is() {
    let broker = Broker::in_memory();
    let packed = |task: &str| {
        let path = format!("/v1/tasks/{task}?payload=true");
        let headers = "Accept: application/msgpack\r\n";
        let answer = http::send(broker.address, "GET", &path, headers, b"");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/msgpack"));
        message_pack::decode(&answer.body)
    };
    let task = broker.submit("q", &json!({"payload": {"n": 1.5}, "headers": {"k": "v"}}));
    let shown = packed(&task);
    assert_eq!((&shown["payload"], &shown["headers"]), (&json!({"n": 1.5}), &json!({"k": "v"})));
    assert_eq!((&shown["state"], &shown["result"]), (&json!("queued"), &Value::Null));
    let task = broker.submit("q", &json!({"payload_b64": "AAEC/w=="}));
    assert!(packed(&task).get("payload_b64").is_none(), "bytes are bytes");
}

/// With no room for payloads in memory each is in the store alone as soon as it is there.
#[test]
fn a_payload_comes_back_from_the_store_for_who_looks() {
    let mut broker = Broker::with(&["--payload-memory-bytes", "0"]);
    let submit = |nth: usize| {
        let payload = json!({"nth": nth, "filler": "x".repeat(2000)});
        broker.submit("q", &json!({"payload": payload, "headers": {"nth": nth.to_string()}}))
    };
    let tasks: Vec<String> = (0..50).map(submit).collect();
    let later = broker.submit("q", &json!({"payload": "much later", "delay_ms": 3_600_000}));
    let all_are_there = |broker: &Broker| {
        // More at a time than are fetched at a time, two of them of each task.
        std::thread::scope(|scope| {
            for (nth, task) in tasks.iter().enumerate().chain(tasks.iter().enumerate()) {
                scope.spawn(move || {
                    let shown = inside(broker, task);
                    assert_eq!(shown["payload"]["nth"], json!(nth), "{shown}");
                    assert_eq!(shown["headers"]["nth"], json!(nth.to_string()));
                });
            }
        });
        assert_eq!(inside(broker, &later)["payload"], "much later");
    };
    all_are_there(&broker);
    broker.kill();
    broker.start_again();
    all_are_there(&broker);
    // Looking has changed nothing: they come in order, whole; and while one is with a worker it is shown, too.
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    for (nth, task) in tasks.iter().enumerate() {
        let delivery = ws.task();
        assert_eq!((&delivery["task"], &delivery["payload"]["nth"]), (&json!(task), &json!(nth)));
        if nth == 0 {
            assert_eq!(inside(&broker, task)["payload"]["nth"], json!(0));
        }
        ws.ack(&delivery);
    }
    is_forgotten(&broker, &tasks[49], "done");
}

#[test]
fn only_who_may_observe_reads_payloads() {
    let tokens = Tokens::new();
    let observes = tokens.create("observes", &["observe:emails"]);
    let manages = tokens.create("manages", &["manage:emails"]);
    let submits = tokens.create("submits", &["submit:emails", "consume:emails"]);
    let foreign = tokens.create("foreign", &["observe:other"]);
    let broker = tokens.broker(&[]);
    let task = broker.admin().submit("emails", &json!({"payload": "secret"}));
    let path = format!("/v1/tasks/{task}?payload=true");
    for token in [&observes, &manages] {
        assert_eq!(broker.by(token).get(&path).json()["payload"], "secret");
    }
    let before = broker.refusals("forbidden");
    let error = broker.by(&submits).get(&path).is_error(403, "forbidden");
    assert!(error["message"].as_str().unwrap().contains("observe:emails"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
    assert_eq!(broker.refusals("forbidden"), before + 1);
    assert_eq!(broker.by(&submits).get(&format!("/v1/tasks/{task}")).status, 200);
    broker.by(&foreign).get(&path).is_error(404, "not_found");
}

#[test]
fn the_command_shows_it() {
    let broker = Broker::in_memory();
    let task = broker.submit("q", &json!({"payload": {"to": "a"}, "headers": {"trace": "7"}}));
    let show = |more: &[&str]| {
        let output = Output::of(&mut broker.command(&[&["tasks", "show", &task], more].concat()));
        assert_eq!(output.code, Some(0), "{output:?}");
        output.out
    };
    let text = show(&["--payload"]);
    assert!(text.contains("Payload:  {\"to\":\"a\"}") && text.contains("Headers:  trace=7"), "{text}");
    assert!(!show(&[]).contains("Payload"));
    let value: Value = serde_json::from_str(&show(&["--payload", "-o", "json"])).unwrap();
    assert_eq!(value["payload"], json!({"to": "a"}));
}
