//! HTTP: a queue is declared, paused and purged; its dead letters are redriven and forgotten.

use serde_json::{Value, json};

use crate::support::http;
use crate::support::{Broker, Tokens, Ws, message_pack, until};

fn settings(broker: &Broker, queue: &str) -> Value {
    let answer = broker.get(&format!("/v1/queues/{queue}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["settings"].clone()
}

fn defaults() -> Value {
    json!({
        "assign": "round_robin", "deliver": "durable", "order": "strict", "max_tasks": null, "max_bytes": null,
        "max_leased": null, "rate_per_s": null, "keep_result_ms": null,
        "defaults": {"priority": null, "ttl_ms": null, "ack_timeout_ms": null, "timeout_ms": null,
                     "max_attempts": null, "backoff": null},
    })
}

#[test]
fn a_queue_is_declared_and_its_settings_are_merged() {
    let mut broker = Broker::start();
    let put = |broker: &Broker, body: &Value| broker.send("PUT", "/v1/queues/q", body);
    let made = put(&broker, &Value::Null);
    assert_eq!((made.status, &made.json()["declared"]), (201, &json!(true)), "{made:?}");
    assert_eq!(made.json()["settings"], defaults());
    let all = json!({
        "assign": "least_loaded", "deliver": "early", "order": {"aged": {"headstart_ms": 5000}}, "max_tasks": 10,
        "max_bytes": 1000, "max_leased": 3, "rate_per_s": 2.5, "keep_result_ms": 60_000,
        "defaults": {"priority": 7, "ttl_ms": 3_600_000, "ack_timeout_ms": 5000, "timeout_ms": 9000,
                     "max_attempts": 2, "backoff": {"initial_ms": 10, "max_ms": 20, "factor": 1.5}},
    });
    let changed = put(&broker, &all);
    assert_eq!((changed.status, &changed.json()["settings"]), (200, &all), "{changed:?}");
    let changed = put(&broker, &json!({"max_tasks": null, "order": "aged", "defaults": {"priority": null}}));
    let mut expected = all.clone();
    expected["max_tasks"] = Value::Null;
    expected["order"] = json!({"aged": {"headstart_ms": 60_000}});
    expected["defaults"]["priority"] = Value::Null;
    assert_eq!(changed.json()["settings"], expected);
    // What was shown can be given back, and outlives the process.
    assert_eq!(put(&broker, &expected).json()["settings"], expected);
    broker.stop();
    broker.start_again();
    assert_eq!(settings(&broker, "q"), expected);
    assert_eq!(broker.get("/v1/queues").json()["queues"][0]["settings"], expected);
    let reset = json!({
        "assign": null, "deliver": null, "order": null, "max_tasks": null, "max_bytes": null, "max_leased": null,
        "rate_per_s": null, "keep_result_ms": null, "defaults": null,
    });
    assert_eq!(put(&broker, &reset).json()["settings"], defaults());
    // In MessagePack too.
    let body = message_pack::encode(&json!({"max_tasks": 4}));
    let headers = "Content-Type: application/msgpack\r\n";
    let answer = http::send(broker.address, "PUT", "/v1/queues/packed", headers, &body);
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(message_pack::decode(&answer.body)["settings"]["max_tasks"], 4);
    // One that was only used is not declared.
    broker.submit("used", &json!({}));
    assert_eq!(broker.get("/v1/queues/used").json()["declared"], false);
}

#[test]
fn a_mistake_in_a_setting_is_named_and_changes_nothing() {
    let broker = Broker::in_memory();
    for (body, field) in [
        (json!({"max_task": 5}), "max_task"),
        (json!({"max_tasks": 0}), "max_tasks"),
        (json!({"max_tasks": 1.0}), "max_tasks"),
        (json!({"assign": "random"}), "assign"),
        (json!({"order": {"aged": {"headstart": 1}}}), "order.aged.headstart"),
        (json!({"rate_per_s": -1}), "rate_per_s"),
        (json!({"keep_result_ms": 30 * 86_400_000_u64 + 1}), "keep_result_ms"),
        (json!({"defaults": {"max_attempts": 1001}}), "defaults.max_attempts"),
        (json!({"defaults": {"delay_ms": 1}}), "defaults.delay_ms"),
    ] {
        let error = broker.send("PUT", "/v1/queues/q", &body).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{body}");
    }
    let error = broker.send("PUT", "/v1/queues/q", &json!({"max_task": 5})).json();
    assert!(error["message"].as_str().unwrap().contains("max_tasks"), "names those that there are: {error}");
    broker.send("PUT", "/v1/queues/q", &json!([])).is_error(400, "bad_request");
    broker.send("PUT", "/v1/queues/a%20b", &json!({})).is_error(400, "bad_request");
    let twice = http::send(
        broker.address,
        "PUT",
        "/v1/queues/q",
        "Content-Type: application/json\r\n",
        br#"{"max_tasks":1,"max_tasks":2}"#,
    );
    twice.is_error(400, "bad_request");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let error = http::send(broker.address, "PUT", "/v1/queues/q", form, b"max_tasks=1");
    assert!(error.is_error(415, "bad_request")["message"].as_str().unwrap().contains("--json"));
    broker.get("/v1/queues/q").is_error(404, "not_found");
}

#[test]
fn settings_are_in_force() {
    let broker = Broker::in_memory();
    let body =
        json!({"max_tasks": 2, "defaults": {"max_attempts": 3, "ack_timeout_ms": 7000, "priority": 8}});
    broker.send("PUT", "/v1/queues/q", &body);
    broker.submit("q", &json!({}));
    broker.submit("q", &json!({"priority": 9, "max_attempts": 1}));
    broker.post("/v1/queues/q/tasks", &json!({})).is_error(429, "queue_full");
    let mut ws = broker.ws();
    ws.subscribe("q", 2);
    let (own, by_default) = (ws.task(), ws.task());
    assert_eq!((&own["priority"], &own["max_attempts"]), (&json!(9), &json!(1)));
    assert_eq!((&by_default["priority"], &by_default["max_attempts"]), (&json!(8), &json!(3)));
    assert_eq!(by_default["ack_timeout_ms"], 7000);
}

#[test]
fn a_paused_queue_delivers_nothing_until_it_is_unpaused() {
    let mut broker = Broker::start();
    let paused = broker.post("/v1/queues/q/pause", &json!({"reason": "a new disk"}));
    assert_eq!(paused.status, 200, "{paused:?}");
    let expected = json!({"by": null, "reason": "a new disk", "in_ms": null});
    assert_eq!(paused.json()["paused"], expected);
    let task = broker.submit("q", &json!({}));
    broker.stop();
    broker.start_again();
    assert_eq!(broker.get("/v1/queues/q").json()["paused"], expected, "it outlives the process");
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    assert!(ws.so_far().iter().all(|message| message["type"] != "task"));
    let unpaused = broker.send("POST", "/v1/queues/q/unpause", &Value::Null);
    assert_eq!((unpaused.status, &unpaused.json()["paused"]), (200, &Value::Null), "{unpaused:?}");
    let delivery = ws.task();
    assert_eq!(delivery["task"], json!(task));
    ws.ack(&delivery);
    // It ends by itself, too.
    let paused = broker.post("/v1/queues/q/pause", &json!({"for_ms": 50}));
    assert!(paused.json()["paused"]["in_ms"].as_u64().is_some_and(|ms| ms <= 50), "{paused:?}");
    let task = broker.submit("q", &json!({}));
    assert_eq!(ws.task()["task"], json!(task));
    // Both can be said of a queue in whatever state.
    for verb in ["pause", "pause", "unpause", "unpause"] {
        assert_eq!(broker.send("POST", &format!("/v1/queues/q/{verb}"), &Value::Null).status, 200);
    }
    assert_eq!(broker.post("/v1/queues/new/pause", &json!({})).status, 200, "a pause makes the queue");
    for (body, field) in [
        (json!({"for_ms": 0}), "for_ms"),
        (json!({"for_ms": 31_536_000_001_u64}), "for_ms"),
        (json!({"reason": "x".repeat(257)}), "reason"),
        (json!({"reason": 1}), "reason"),
        (json!({"for": 1}), "for"),
    ] {
        let error = broker.post("/v1/queues/q/pause", &body).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{body}");
    }
    broker.post("/v1/queues/none/unpause", &json!({})).is_error(404, "not_found");
    let error = broker.post("/v1/queues/q/unpause", &json!({"for_ms": 1})).is_error(400, "bad_request");
    assert_eq!(error["field"], "for_ms");
}

#[test]
fn a_purge_cancels_what_waits() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let held = broker.submit("q", &json!({}));
    let delivery = ws.task();
    let waiting = broker.submit("q", &json!({}));
    broker.submit("q", &json!({"delay_ms": 60_000}));
    let answer = broker.send("POST", "/v1/queues/q/purge", &Value::Null);
    assert_eq!((answer.status, answer.json()), (200, json!({"purged": 2})));
    assert_eq!(broker.task(&waiting)["state"], "cancelled");
    assert_eq!(broker.task(&held)["state"], "leased", "what is with workers stays");
    ws.ack(&delivery);
    assert_eq!(broker.post("/v1/queues/q/purge", &json!({})).json(), json!({"purged": 0}));
    broker.post("/v1/queues/none/purge", &json!({})).is_error(404, "not_found");
    assert_eq!(
        broker.post("/v1/queues/q/purge", &json!({"a": 1})).is_error(400, "bad_request")["field"],
        "a"
    );
}

/// A dead letter.
fn dies(broker: &Broker, ws: &mut Ws, options: &Value, error: &str) -> String {
    let task = broker.submit("q", options);
    let delivery = ws.wait("the task", |m| m["type"] == "task" && m["task"] == json!(task));
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "retry": false, "error": error}));
    task
}

#[test]
fn dead_letters_are_listed_redriven_and_forgotten() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 10);
    let letters: Vec<String> = ["first: a", "second: b", "third: a", "fourth: b"]
        .iter()
        .enumerate()
        .map(|(nth, error)| {
            let kind = if nth % 2 == 0 { "even" } else { "odd" };
            dies(&broker, &mut ws, &json!({"headers": {"kind": kind}}), error)
        })
        .collect();
    let dead = |query: &str| {
        let answer = broker.get(&format!("/v1/queues/q/dead{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let list = answer.json();
        let tasks = list["tasks"].as_array().unwrap().clone();
        assert!(tasks.iter().all(|task| task["state"] == "dead"), "{list}");
        let ids: Vec<String> = tasks.iter().map(|task| task["task"].as_str().unwrap().to_owned()).collect();
        (ids, list["next"].clone())
    };
    assert_eq!(dead(""), (letters.clone(), Value::Null));
    assert_eq!(dead("?limit=1"), (letters[..1].to_vec(), json!(letters[0])));
    assert_eq!(dead(&format!("?after={}", letters[2])).0, letters[3..]);
    assert_eq!(dead("?header.kind=odd").0, [letters[1].clone(), letters[3].clone()]);
    assert_eq!(
        broker.get("/v1/queues/q/dead?state=dead").is_error(400, "bad_request")["field"],
        "state",
        "they are all dead"
    );

    let redrive = |body: &Value| broker.send("POST", "/v1/queues/q/dead/redrive", body);
    let unknown = "0198c0de-0000-7000-8000-000000000000";
    redrive(&json!({"tasks": [letters[0], unknown]})).is_error(404, "not_found");
    for (body, field) in [
        (json!({"tasks": "all"}), "tasks"),
        (json!({"tasks": ["x"]}), "tasks"),
        (json!({"tasks": [letters[0]], "reason": "nack"}), "tasks"),
        (json!({"reason": "bored"}), "reason"),
        (json!({"rate_per_s": 0}), "rate_per_s"),
        (json!({"headers": {"kind": 1}}), "headers"),
        (json!({"header.kind": "odd"}), "header.kind"),
    ] {
        assert_eq!(redrive(&body).is_error(400, "bad_request")["field"], field, "{body}");
    }
    assert_eq!(dead("").0, letters, "nothing was done");

    let redriven = |body: &Value| {
        let answer = redrive(body);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["redriven"].clone()
    };
    assert_eq!(redriven(&json!({"tasks": [letters[0]]})), 1);
    let delivery = ws.task();
    assert_eq!((&delivery["task"], &delivery["attempt"]), (&json!(letters[0]), &json!(1)));
    ws.ack(&delivery);
    assert_eq!(redriven(&json!({"error_contains": ": a", "reason": "nack", "older_than_ms": 0})), 1);
    let delivery = ws.task();
    assert_eq!(delivery["task"], json!(letters[2]));
    ws.ack(&delivery);
    assert_eq!(redriven(&json!({"headers": {"kind": "even"}})), 0);
    assert_eq!(redriven(&json!({"rate_per_s": 1000})), 2);
    for letter in [&letters[1], &letters[3]] {
        let delivery = ws.task();
        assert_eq!(delivery["task"], json!(letter));
        ws.ack(&delivery);
    }
    assert_eq!(redriven(&Value::Null), 0);
    broker.post("/v1/queues/none/dead/redrive", &json!({})).is_error(404, "not_found");

    let letters: Vec<String> =
        (0..3).map(|nth| dies(&broker, &mut ws, &json!({}), &format!("again {nth}"))).collect();
    let forget = |path: &str| broker.delete(&format!("/v1/queues/q/dead{path}"));
    assert_eq!(forget(&format!("/{}", letters[0])).json(), json!({"deleted": 1}));
    broker.get(&format!("/v1/tasks/{}", letters[0])).is_error(404, "not_found");
    forget(&format!("/{}", letters[0])).is_error(404, "not_found");
    forget("/x").is_error(400, "bad_request");
    assert_eq!(forget("").is_error(400, "bad_request")["field"], "all");
    assert_eq!(forget("?error_contains=again%201").json(), json!({"deleted": 1}));
    assert_eq!(dead("").0, [letters[2].clone()]);
    assert_eq!(forget("?all=true").json(), json!({"deleted": 1}));
    assert_eq!(broker.count("q", "dead"), 0);
    broker.delete("/v1/queues/none/dead?all=true").is_error(404, "not_found");
}

/// A dead letter to all was found by what a recipient had said that had done its part in the end.
#[test]
fn a_dead_letter_to_all_is_found_by_what_those_said_who_failed() {
    let broker = Broker::in_memory();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    a.subscribe("q", 1);
    b.subscribe("q", 1);
    broker.submit("q", &json!({"to": {"all": true}}));
    let nack = |ws: &mut Ws, error: &str, retry: bool| {
        let lease = ws.task()["lease"].clone();
        ws.gets(
            "settled",
            json!({"type": "nack", "lease": lease, "error": error, "retry": retry, "delay_ms": 0}),
        );
    };
    nack(&mut a, "a blip", true);
    let delivery = a.task();
    a.ack(&delivery);
    nack(&mut b, "no such place", false);
    let found = |filter: &str| {
        let list = broker.get(&format!("/v1/queues/q/dead?error_contains={filter}")).json();
        list["tasks"].as_array().unwrap().len()
    };
    assert_eq!((found("blip"), found("such"), found("1%20of%202")), (0, 1, 1));
}

#[test]
fn queues_are_managed_by_who_may_manage_them() {
    let tokens = Tokens::new();
    let all_but = tokens.create("all-but", &["submit:*", "consume:*", "observe:*", "manage:other"]);
    let manages = tokens.create("manages", &["manage:q"]);
    let broker = tokens.broker(&[]);
    let task = broker.admin().submit("q", &json!({}));
    let requests = [
        ("PUT", "/v1/queues/q".to_owned()),
        ("POST", "/v1/queues/q/pause".into()),
        ("POST", "/v1/queues/q/unpause".into()),
        ("POST", "/v1/queues/q/purge".into()),
        ("POST", "/v1/queues/q/dead/redrive".into()),
        ("DELETE", "/v1/queues/q/dead?all=true".into()),
        ("DELETE", format!("/v1/queues/q/dead/{task}")),
    ];
    for (method, path) in &requests {
        let before = broker.refusals("forbidden");
        let error = broker.by(&all_but).send(method, path, &Value::Null).is_error(403, "forbidden");
        assert!(error["message"].as_str().unwrap().contains("manage:q"), "{error}");
        assert_eq!(broker.refusals("forbidden"), before + 1, "{method} {path}");
        let answer = broker.by(&manages).send(method, path, &Value::Null);
        assert!(matches!(answer.status, 200 | 404), "{method} {path}: {answer:?}");
    }
    // Who may manage also sees; and a pause says who asked for it.
    let paused = broker.by(&manages).post("/v1/queues/q/pause", &json!({}));
    assert_eq!(paused.json()["paused"]["by"], "manages");
    // What is not allowed leaves no queue behind.
    broker.by(&manages).send("PUT", "/v1/queues/new", &json!({})).is_error(403, "forbidden");
    until("the list", || (broker.admin().names("queues") == ["q"]).then_some(()));
}

/// They are looked at in slices.
#[test]
fn many_queues_are_listed_each_once_in_order_of_their_making() {
    let broker = Broker::in_memory();
    let listed = || -> Vec<String> {
        let queues = broker.get("/v1/queues").json()["queues"].take();
        queues.as_array().unwrap().iter().map(|q| q["queue"].as_str().unwrap().to_owned()).collect()
    };
    assert!(listed().is_empty());
    // A slice that is full, and one more than that.
    let mut names = Vec::new();
    for more in [128, 1, 300] {
        let some: Vec<String> = (0..more).map(|nth| format!("q{}", names.len() + nth)).collect();
        let tasks: Vec<Value> = some.iter().map(|queue| json!({"queue": queue, "payload": null})).collect();
        assert_eq!(broker.post("/v1/tasks", &json!(tasks)).status, 200);
        names.extend(some);
        assert_eq!(listed(), names);
    }
}
