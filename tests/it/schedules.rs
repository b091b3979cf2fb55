//! Schedules at the HTTP boundary.

use serde_json::{Value, json};

use crate::support::http::{self, Answer};
use crate::support::{Broker, Tokens, message_pack, until};

fn request(broker: &Broker, token: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> Answer {
    let mut headers = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    if body.is_some() {
        headers += "Content-Type: application/json\r\n";
    }
    let body = body.map_or(String::new(), Value::to_string);
    http::send(broker.address, method, path, &headers, body.as_bytes())
}

fn put(broker: &Broker, name: &str, body: &Value) -> Answer {
    request(broker, None, "PUT", &format!("/v1/schedules/{name}"), Some(body))
}

fn delete(broker: &Broker, name: &str) -> Answer {
    request(broker, None, "DELETE", &format!("/v1/schedules/{name}"), None)
}

fn schedule(broker: &Broker, name: &str) -> Value {
    let answer = broker.get(&format!("/v1/schedules/{name}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn a_schedule_is_shown_as_it_was_put_with_what_comes_of_it() {
    let broker = Broker::start();
    let wanted = json!({
        "queue": "reports", "payload": {"kind": "nightly", "n": 1}, "cron": "30 2 * * 1-5", "tz": "Europe/Zurich",
        "missed": "none", "priority": 7, "headers": {"k": "v"}, "to": {"group": "gpu"}, "max_attempts": 2,
    });
    let answer = put(&broker, "nightly", &wanted);
    assert_eq!(
        (answer.status, answer.header("location")),
        (201, Some("/v1/schedules/nightly")),
        "{answer:?}"
    );
    let shown = answer.json();
    for (field, value) in wanted.as_object().unwrap() {
        assert_eq!(&shown[field], value, "{field}");
    }
    assert_eq!(shown["name"], "nightly");
    assert_eq!(
        (&shown["fired"], &shown["last"], &shown["last_error"]),
        (&json!(0), &Value::Null, &Value::Null)
    );
    let next = shown["next_run_at"].as_str().unwrap();
    assert!(next.ends_with("T00:30:00Z") || next.ends_with("T01:30:00Z"), "02:30 in Zurich: {next}");
    assert!(shown["next_in_ms"].as_u64().is_some_and(|ms| ms <= 4 * 86_400_000), "{shown}");
    let mut again = schedule(&broker, "nightly");
    again["next_in_ms"] = shown["next_in_ms"].clone();
    assert_eq!(again, shown);
    // Replaced; its list leaves payloads out.
    let answer =
        put(&broker, "nightly", &json!({"queue": "reports", "every_ms": 3_600_000, "payload_b64": "AAE="}));
    assert_eq!((answer.status, answer.header("location")), (200, None), "{answer:?}");
    let shown = answer.json();
    assert_eq!((&shown["every_ms"], &shown["payload_b64"]), (&json!(3_600_000), &json!("AAE=")));
    assert_eq!((shown.get("cron"), shown.get("priority"), &shown["missed"]), (None, None, &json!("one")));
    assert_eq!(put(&broker, "b", &json!({"queue": "q", "cron": "@daily", "payload": [1]})).status, 201);
    let all = broker.get("/v1/schedules").json();
    let all = all["schedules"].as_array().unwrap();
    let names: Vec<&str> = all.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["b", "nightly"]);
    assert!(all.iter().all(|one| one.get("payload").or(one.get("payload_b64")).is_none()), "{all:?}");
    assert_eq!((&all[0]["tz"], &all[0]["cron"]), (&json!("UTC"), &json!("@daily")));
    let gone = delete(&broker, "nightly");
    assert_eq!((gone.status, gone.json()), (200, json!({})));
    delete(&broker, "nightly").is_error(404, "not_found");
    broker.get("/v1/schedules/nightly").is_error(404, "not_found");
}

#[test]
fn its_tasks_reach_workers_with_all_its_options() {
    let broker = Broker::in_memory();
    let body =
        json!({"queue": "q", "payload": {"a": 1}, "every_ms": 100, "headers": {"k": "v"}, "priority": 9});
    assert_eq!(put(&broker, "tick", &body).status, 201);
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let task = ws.task();
        assert_eq!((&task["payload"], &task["headers"]), (&json!({"a": 1}), &json!({"k": "v"})));
        assert_eq!((&task["priority"], &task["attempt"]), (&json!(9), &json!(1)));
        ids.push(task["task"].as_str().unwrap().to_owned());
        ws.gets("settled", json!({"type": "ack", "lease": task["lease"]}));
    }
    let sorted = {
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    };
    assert_eq!(ids, sorted, "three tasks, in order of their times");
    let shown = schedule(&broker, "tick");
    assert!(shown["fired"].as_u64().unwrap() >= 3, "{shown}");
    let last = shown["last"]["task"].as_str().unwrap().to_owned();
    assert!(["queued", "leased", "done"].contains(&broker.task(&last)["state"].as_str().unwrap()));
    assert!(shown["last"]["run_at"].as_str().unwrap().ends_with('Z'), "{shown}");
    assert_eq!(delete(&broker, "tick").status, 200);
    // None comes of it any more: the count of what was accepted stands still over ten of its periods.
    let accepted = || {
        broker.get("/v1/queues/q").json()["counts"]
            .as_object()
            .unwrap()
            .values()
            .map(|n| n.as_u64().unwrap())
            .sum::<u64>()
    };
    let before = accepted();
    crate::support::pause(std::time::Duration::from_millis(1000));
    assert_eq!(accepted(), before);
}

#[test]
fn a_schedule_survives_kills_and_restarts_and_fires_each_time_once() {
    let mut broker = Broker::start();
    let body = json!({"queue": "q", "payload": 1, "every_ms": 200, "missed": "one", "delay_ms": 3_600_000});
    assert_eq!(put(&broker, "tick", &body).status, 201);
    let fired = |broker: &Broker| schedule(broker, "tick")["fired"].as_u64().unwrap();
    let tasks = |broker: &Broker| broker.count("q", "scheduled");
    for round in 1..=4 {
        until("it fires", || (fired(&broker) >= 2 * round).then_some(()));
        if round % 2 == 0 {
            broker.stop();
        } else {
            broker.kill();
        }
        broker.start_again();
    }
    until("it fires", || (fired(&broker) >= 10).then_some(()));
    assert_eq!(put(&broker, "tick", &json!({"queue": "q", "cron": "@yearly"})).status, 200);
    assert_eq!(fired(&broker), tasks(&broker), "each firing is one task");
    let shown = schedule(&broker, "tick");
    assert!(shown["next_run_at"].as_str().unwrap().ends_with("-01-01T00:00:00Z"), "{shown}");
    broker.kill();
    broker.start_again();
    let mut again = schedule(&broker, "tick");
    again["next_in_ms"] = shown["next_in_ms"].clone();
    assert_eq!(again, shown);
    assert_eq!(delete(&broker, "tick").status, 200);
    broker.kill();
    broker.start_again();
    assert_eq!(broker.get("/v1/schedules").json(), json!({"schedules": []}));
}

#[test]
fn a_task_that_is_refused_is_told_and_tried_again() {
    let broker = Broker::in_memory();
    let to = json!({"worker": "w", "if_absent": "fail"});
    let body = json!({"queue": "q", "payload": 1, "every_ms": 100, "to": to});
    assert_eq!(put(&broker, "tick", &body).status, 201);
    let error = until("the refusal", || {
        let error = schedule(&broker, "tick")["last_error"].clone();
        (!error.is_null()).then_some(error)
    });
    assert_eq!(error["code"], "not_found");
    assert!(error["message"].as_str().unwrap().contains("no worker named w"), "{error}");
    assert_eq!(schedule(&broker, "tick")["fired"], 0);
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    assert_eq!(ws.task()["payload"], 1);
    let shown = schedule(&broker, "tick");
    assert_eq!(shown["last_error"], Value::Null, "{shown}");
}

#[test]
fn what_is_wrong_is_refused_in_words_that_help() {
    let broker = Broker::in_memory();
    for (body, field, parts) in [
        (json!({"queue": "q", "cron": "60 * * * *"}), "cron", ["\"60\" is no minute", "30 2 * * 1-5"]),
        (json!({"queue": "q", "cron": "* * *"}), "cron", ["3 fields", "MINUTE HOUR DAY MONTH WEEKDAY"]),
        (json!({"queue": "q", "cron": "0 0 31 2 *"}), "cron", ["never comes", "another day"]),
        (
            json!({"queue": "q", "cron": "@daily", "tz": "Europe/Zurch"}),
            "tz",
            ["did you mean Europe/Zurich", "IANA"],
        ),
        (json!({"queue": "q", "every_ms": 99}), "every_ms", ["100 to 31536000000", "got 99"]),
        (
            json!({"queue": "q", "every_ms": 1000, "payloud": 1}),
            "payloud",
            ["no field `payloud`", "max_attempts"],
        ),
        (json!({"queue": "q", "every_ms": 1000, "next_in_ms": 1}), "next_in_ms", ["no field", "cron, tz"]),
        (
            json!({"queue": "q", "every_ms": 1000, "run_at": "2030-01-01T00:00:00Z"}),
            "run_at",
            ["leave it out", "delay_ms"],
        ),
        (json!({"queue": "q", "every_ms": 1000, "complete": "any"}), "complete", ["task to all", "all:true"]),
        (json!({"queue": "a b", "every_ms": 1000}), "queue", ["queue", "a b"]),
    ] {
        let error = put(&broker, "s", &body).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{error}");
        for part in parts {
            assert!(error["message"].as_str().unwrap().contains(part), "{body}: {error}");
        }
    }
    let good = json!({"queue": "q", "every_ms": 1000});
    put(&broker, "a%20b", &good).is_error(400, "bad_request");
    put(&broker, "%ff", &good).is_error(400, "bad_request");
    broker.get("/v1/schedules/a%20b").is_error(400, "bad_request");
    let send = |kind: &str, body: &[u8]| {
        http::send(broker.address, "PUT", "/v1/schedules/s", &format!("Content-Type: {kind}\r\n"), body)
    };
    send("application/json", b"{").is_error(400, "bad_request");
    send("application/json", b"[]").is_error(400, "bad_request");
    send("application/json", br#"{"queue":"q","every_ms":1000,"every_ms":2000}"#)
        .is_error(400, "bad_request");
    let error = send("application/x-www-form-urlencoded", b"{}").is_error(415, "bad_request");
    assert!(error["message"].as_str().unwrap().contains("--json"), "{error}");
    let head = "PUT /v1/schedules/s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2000000\r\n\r\n";
    http::exchange(broker.address, head.as_bytes()).is_error(413, "too_large");
    assert_eq!(request(&broker, None, "POST", "/v1/schedules/s", Some(&good)).status, 405);
    assert_eq!(broker.get("/v1/schedules").json(), json!({"schedules": []}));
}

#[test]
fn it_is_put_and_shown_in_message_pack() {
    let broker = Broker::in_memory();
    let body = message_pack::encode(&json!({"queue": "q", "every_ms": 60_000, "payload": [1, 2]}));
    let headers = "Content-Type: application/msgpack\r\n";
    let answer = http::send(broker.address, "PUT", "/v1/schedules/s", headers, &body);
    assert_eq!((answer.status, answer.header("content-type")), (201, Some("application/msgpack")));
    let shown = message_pack::decode(&answer.body);
    assert_eq!((&shown["payload"], &shown["every_ms"]), (&json!([1, 2]), &json!(60_000)));
    assert_eq!(schedule(&broker, "s")["payload"], json!([1, 2]));
}

#[test]
fn each_may_do_with_schedules_what_its_permissions_say() {
    let tokens = Tokens::new();
    let manager = tokens.create("manager", &["manage:mail"]);
    let other = tokens.create("other", &["manage:other"]);
    let observer = tokens.create("observer", &["observe:mail"]);
    let producer = tokens.create("producer", &["submit:mail", "consume:mail"]);
    let broker = tokens.broker(&[]);
    let of = |queue: &str| json!({"queue": queue, "every_ms": 100, "payload": 1});
    let path = "/v1/schedules/s";
    let put = |token: &str, queue: &str| request(&broker, Some(token), "PUT", path, Some(&of(queue)));
    for token in [&other, &observer, &producer] {
        let error = put(token, "mail").is_error(403, "forbidden");
        assert!(error["message"].as_str().unwrap().contains("manage:mail"), "{error}");
    }
    request(&broker, None, "PUT", path, Some(&of("mail"))).is_error(401, "unauthorized");
    assert_eq!(put(&manager, "mail").status, 201);
    // Its name gives nobody else a hold on it.
    put(&other, "other").is_error(403, "forbidden");
    let on = |token: &str, method: &str, path: &str| request(&broker, Some(token), method, path, None);
    let unknown = on(&other, "GET", "/v1/schedules/nothing").is_error(404, "not_found");
    for token in [&other, &producer] {
        let error = on(token, "GET", path).is_error(404, "not_found");
        assert_eq!(error["message"], unknown["message"].as_str().unwrap().replace("nothing", "s"));
        on(token, "DELETE", path).is_error(404, "not_found");
    }
    on(&observer, "DELETE", path).is_error(403, "forbidden");
    for (token, seen) in [(&manager, 1), (&observer, 1), (&other, 0)] {
        let list = on(token, "GET", "/v1/schedules");
        assert_eq!(list.json()["schedules"].as_array().map(Vec::len), Some(seen), "{list:?}");
    }
    on(&producer, "GET", "/v1/schedules").is_error(403, "forbidden");
    assert_eq!(on(&observer, "GET", path).status, 200);
    // It fires though its maker may not submit.
    let mut ws = broker.by(&producer).ws();
    ws.subscribe("mail", 1);
    assert_eq!(ws.task()["payload"], 1);
    assert!(broker.refusals("forbidden") >= 5);
    assert_eq!(on(&manager, "DELETE", path).status, 200);
}

#[test]
fn its_tasks_count_for_the_account_that_put_it() {
    let tokens = Tokens::new();
    let manager = tokens.create_with("manager", &["manage:mail"], &["--queued-tasks", "2"]);
    let broker = tokens.broker(&[]);
    let body = json!({"queue": "mail", "every_ms": 100, "payload": 1});
    let answer = request(&broker, Some(&manager), "PUT", "/v1/schedules/s", Some(&body));
    assert_eq!(answer.status, 201, "{answer:?}");
    let shown = until("the account's limit", || {
        let shown = broker.admin().get("/v1/schedules/s").json();
        (!shown["last_error"].is_null()).then_some(shown)
    });
    assert_eq!((&shown["fired"], &shown["last_error"]["code"]), (&json!(2), &json!("queue_full")), "{shown}");
}

/// Put again by each deployment, its period once began anew each time, and it never fired.
#[test]
fn a_put_that_changes_nothing_leaves_the_beat_alone() {
    let broker = Broker::in_memory();
    let body = json!({"queue": "q", "payload": [1, 2], "every_ms": 3_600_000, "headers": {"k": "v"}});
    assert_eq!(put(&broker, "hourly", &body).status, 201);
    let before = schedule(&broker, "hourly")["next_run_at"].clone();
    let answer = put(&broker, "hourly", &body);
    assert_eq!((answer.status, &answer.json()["next_run_at"]), (200, &before));
    let mut other = body.clone();
    other["priority"] = json!(9);
    assert_ne!(put(&broker, "hourly", &other).json()["next_run_at"], before, "a change begins anew");
}
