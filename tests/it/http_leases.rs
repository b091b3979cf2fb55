//! HTTP: tasks are pulled by those who cannot hold a socket, and settled by their leases.

use serde_json::{Value, json};

use crate::support::http;
use crate::support::{Broker, Tokens, message_pack, until};

/// Pulls; gives the tasks.
fn pull(broker: &Broker, path: &str) -> Vec<Value> {
    let answer = broker.send("POST", path, &Value::Null);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["tasks"].as_array().unwrap().clone()
}

fn say(broker: &Broker, delivery: &Value, verb: &str, body: &Value) -> http::Answer {
    broker.send("POST", &format!("/v1/leases/{}/{verb}", delivery["lease"].as_str().unwrap()), body)
}

#[test]
fn a_pull_takes_what_there_is() {
    let broker = Broker::start();
    assert_eq!(pull(&broker, "/v1/queues/q/lease"), Vec::<Value>::new(), "and makes the queue");
    assert_eq!(broker.count("q", "queued"), 0);
    let tasks: Vec<String> =
        (0..3).map(|nth| broker.submit("q", &json!({"payload": nth, "headers": {"k": "v"}}))).collect();
    let first = pull(&broker, "/v1/queues/q/lease?worker=w1");
    assert_eq!(first.len(), 1, "one, if nothing is said");
    let delivery = &first[0];
    assert_eq!((&delivery["task"], &delivery["payload"]), (&json!(tasks[0]), &json!(0)));
    assert_eq!((&delivery["attempt"], &delivery["max_attempts"]), (&json!(1), &json!(5)));
    assert_eq!((&delivery["queue"], &delivery["headers"]), (&json!("q"), &json!({"k": "v"})));
    assert_eq!((&delivery["redelivered"], &delivery["type"]), (&json!(false), &Value::Null));
    let shown = broker.task(&tasks[0]);
    assert_eq!((&shown["state"], &shown["worker"]), (&json!("leased"), &json!("w1")));
    let rest = pull(&broker, "/v1/queues/q/lease?credit=10");
    let ids: Vec<&str> = rest.iter().map(|task| task["task"].as_str().unwrap()).collect();
    assert_eq!(ids, tasks[1..]);
    let queue = broker.get("/v1/queues/q").json();
    assert_eq!(
        (&queue["counts"]["leased"], &queue["in_flight"]),
        (&json!(3), &json!(3)),
        "whoever holds them"
    );

    let acked = say(&broker, delivery, "ack", &json!({"result": {"n": 1}}));
    assert_eq!((acked.status, acked.json()), (200, json!({"lease": delivery["lease"], "outcome": "ok"})));
    let shown = broker.task(&tasks[0]);
    assert_eq!((&shown["state"], &shown["result"]), (&json!("done"), &json!({"n": 1})));
    let again = say(&broker, delivery, "ack", &json!({}));
    assert_eq!((again.status, &again.json()["outcome"]), (200, &json!("already")), "{again:?}");
    let error = say(&broker, delivery, "nack", &json!({})).is_error(409, "lease_lost");
    assert_eq!(error["lease"], delivery["lease"]);
    for garbled in ["x", &"x".repeat(100), "%C3%BC", "AAAAAAAAAAcAAAADAAAAAA"] {
        let answer = broker.send("POST", &format!("/v1/leases/{garbled}/ack"), &Value::Null);
        answer.is_error(409, "lease_lost");
    }
}

/// That its payload must be read first is nothing that a client could know.
#[test]
fn a_pull_that_does_not_wait_takes_what_is_only_on_disk() {
    let broker = Broker::with(&["--payload-memory-bytes", "0"]);
    for nth in 0..3 {
        let task = broker.submit("q", &json!({"payload": {"nth": nth}}));
        let tasks = pull(&broker, "/v1/queues/q/lease");
        assert_eq!(tasks.len(), 1, "there is one");
        assert_eq!((&tasks[0]["task"], &tasks[0]["payload"]), (&json!(task), &json!({"nth": nth})));
    }
    assert_eq!(pull(&broker, "/v1/queues/q/lease"), Vec::<Value>::new());
}

#[test]
fn a_pull_waits_for_the_first_task() {
    let broker = Broker::start();
    broker.submit("q", &json!({}));
    let held = pull(&broker, "/v1/queues/q/lease");
    let address = broker.address;
    let waiting = std::thread::spawn(move || {
        http::json(address, "POST", "/v1/queues/q/lease?wait_ms=60000&credit=5", "", &Value::Null)
    });
    until("the pull to wait", || (broker.get("/v1/queues/q").json()["workers"] == 1).then_some(()));
    let task = broker.submit("q", &json!({"payload": {"late": true}}));
    let tasks = waiting.join().unwrap().json()["tasks"].as_array().unwrap().clone();
    assert_eq!((tasks.len(), &tasks[0]["task"]), (1, &json!(task)));
    assert_eq!(broker.get("/v1/queues/q").json()["workers"], 0, "its subscription is gone with the answer");
    // What came to nothing says so by an empty list.
    assert_eq!(pull(&broker, "/v1/queues/q/lease?wait_ms=1"), Vec::<Value>::new());
    for delivery in held.iter().chain(&tasks) {
        assert_eq!(say(&broker, delivery, "ack", &Value::Null).status, 200);
    }
    assert_eq!(broker.count("q", "done"), 2);
    // A client that goes takes nothing with it.
    let mut gone = http::Connection::open(broker.address);
    gone.send(
        format!(
            "POST /v1/queues/q/lease?wait_ms=60000 HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"
        )
        .as_bytes(),
    );
    until("the pull to wait", || (broker.get("/v1/queues/q").json()["workers"] == 1).then_some(()));
    drop(gone);
    until("the pull to end", || (broker.get("/v1/queues/q").json()["workers"] == 0).then_some(()));
    broker.submit("q", &json!({}));
    assert_eq!(pull(&broker, "/v1/queues/q/lease").len(), 1);
}

#[test]
fn a_waiting_pull_does_not_hold_up_the_end_of_the_broker() {
    let mut broker = Broker::start();
    let address = broker.address;
    let waiting = std::thread::spawn(move || {
        http::json(address, "POST", "/v1/queues/q/lease?wait_ms=60000", "", &Value::Null)
    });
    until("the pull to wait", || {
        let answer = broker.get("/v1/queues/q");
        (answer.status == 200 && answer.json()["workers"] == 1).then_some(())
    });
    broker.stop();
    let answer = waiting.join().unwrap();
    assert!(matches!(answer.status, 200 | 503), "{answer:?}");
}

#[test]
fn every_verb_of_a_lease() {
    let broker = Broker::start();
    let options = json!({"backoff": {"initial_ms": 0}, "max_attempts": 3, "ack_timeout_ms": 60_000});
    let task = broker.submit("q", &options);
    let one = |attempt: u64| {
        let delivery = until("the task", || pull(&broker, "/v1/queues/q/lease?wait_ms=1000").pop());
        assert_eq!(delivery["attempt"], attempt);
        delivery
    };
    let delivery = one(1);
    let started = say(&broker, &delivery, "start", &Value::Null);
    assert_eq!((started.status, started.json()), (200, json!({})));
    let extended = say(&broker, &delivery, "extend", &json!({"ack_timeout_ms": 90_000}));
    assert_eq!((extended.status, extended.json()), (200, json!({"ack_timeout_ms": 90_000})));
    let progress = say(&broker, &delivery, "progress", &json!({"percent": 50, "data": [1]}));
    assert_eq!((progress.status, progress.json()), (200, json!({})));
    let released = say(&broker, &delivery, "release", &json!({"delay_ms": 0}));
    assert_eq!(released.json(), json!({"lease": delivery["lease"], "outcome": "ok"}));
    let delivery = one(1);
    assert_eq!(delivery["redelivered"], true);
    say(&broker, &delivery, "cancelled", &json!({})).is_error(409, "conflict");
    let nacked = say(&broker, &delivery, "nack", &json!({"error": "no", "delay_ms": 0}));
    assert_eq!((nacked.status, &nacked.json()["outcome"]), (200, &json!("ok")));
    let delivery = one(2);
    assert_eq!(broker.delete(&format!("/v1/tasks/{task}?grace_ms=60000")).status, 202);
    let stopped = say(&broker, &delivery, "cancelled", &json!({"error": "half way"}));
    assert_eq!((stopped.status, &stopped.json()["outcome"]), (200, &json!("ok")));
    let shown = broker.task(&task);
    assert_eq!((&shown["state"], &shown["error"]), (&json!("cancelled"), &json!("half way")));
    let dead = broker.submit("q", &json!({}));
    assert_eq!(say(&broker, &one(1), "nack", &json!({"retry": false})).status, 200);
    assert_eq!(broker.task(&dead)["state"], "dead");

    broker.submit("q", &json!({}));
    let delivery = one(1);
    for (verb, body, field) in [
        ("nack", json!({"delay_ms": -1}), "delay_ms"),
        ("extend", json!({"ack_timeout_ms": 99}), "ack_timeout_ms"),
        ("progress", json!({"percent": 101}), "percent"),
        ("ack", json!({"result": 1, "result_b64": "AA=="}), "result"),
        ("ack", json!({"leases": [delivery["lease"]]}), "leases"),
    ] {
        let error = say(&broker, &delivery, verb, &body).is_error(400, "bad_request");
        assert_eq!(error["field"], field, "{verb} {body}");
    }
    let path = format!("/v1/leases/{}/ack", delivery["lease"].as_str().unwrap());
    http::post(broker.address, &path, "text/plain", b"done").is_error(415, "bad_request");
    http::post(broker.address, &path, "application/json", b"{").is_error(400, "bad_request");
    broker.send("POST", &path.replace("/ack", "/eat"), &Value::Null).is_error(404, "not_found");
    // An empty body is one without fields, whatever is said of its type.
    assert_eq!(http::post(broker.address, &path, "application/x-www-form-urlencoded", b"").status, 200);
}

#[test]
fn payloads_pass_in_both_encodings() {
    let broker = Broker::in_memory();
    http::post(broker.address, "/v1/queues/q/tasks", "image/png", &[0, 1, 254, 255]);
    broker.submit("q", &json!({"payload": [1, "x"]}));
    let first = pull(&broker, "/v1/queues/q/lease");
    assert_eq!((&first[0]["payload_b64"], first[0].get("payload")), (&json!("AAH+/w=="), None));
    let headers = "Accept: application/msgpack\r\n";
    let answer = http::send(broker.address, "POST", "/v1/queues/q/lease", headers, b"");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/msgpack")));
    let tasks = message_pack::decode(&answer.body)["tasks"].clone();
    assert_eq!(tasks[0]["payload"], json!([1, "x"]));
    let body = message_pack::encode(&json!({"result": {"n": 7}}));
    let path = format!("/v1/leases/{}/ack", tasks[0]["lease"].as_str().unwrap());
    let answer = http::post(broker.address, &path, "application/msgpack", &body);
    assert_eq!(message_pack::decode(&answer.body)["outcome"], "ok", "{answer:?}");
    assert_eq!(broker.task(tasks[0]["task"].as_str().unwrap())["result"], json!({"n": 7}));
}

#[test]
fn a_pull_names_its_worker_and_groups() {
    let broker = Broker::in_memory();
    let to = |to: Value| broker.submit("q", &json!({"to": to}));
    let (mine, ours) = (to(json!({"worker": "w1"})), to(json!({"group": "europe"})));
    assert_eq!(pull(&broker, "/v1/queues/q/lease?credit=10&worker=w2&groups=asia").len(), 0);
    let taken = |path: &str| {
        let tasks = pull(&broker, path);
        tasks.iter().map(|task| task["task"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(taken("/v1/queues/q/lease?credit=10&worker=w1"), [mine]);
    assert_eq!(taken("/v1/queues/q/lease?credit=10&groups=asia,europe"), [ours]);
    for (query, field) in [
        ("credit=0", "credit"),
        ("credit=1025", "credit"),
        ("wait_ms=60001", "wait_ms"),
        ("worker=a%20b", "worker"),
        ("groups=a,b%20c", "groups"),
        ("groupes=a", "groupes"),
    ] {
        let answer = broker.send("POST", &format!("/v1/queues/q/lease?{query}"), &Value::Null);
        assert_eq!(answer.is_error(400, "bad_request")["field"], field, "{query}");
    }
    broker.send("POST", "/v1/queues/a%20b/lease", &Value::Null).is_error(400, "bad_request");
}

#[test]
fn pulled_tasks_are_for_who_may_consume() {
    let tokens = Tokens::new();
    let consumes = tokens.create("consumes", &["consume:q"]);
    let also = tokens.create("also", &["consume:q"]);
    let foreign = tokens.create("foreign", &["consume:other", "manage:*", "submit:*"]);
    let broker = tokens.broker(&[]);
    broker.admin().submit("q", &json!({}));
    let post = |token: &str, path: &str| broker.by(token).send("POST", path, &Value::Null);
    let before = broker.refusals("forbidden");
    post(&foreign, "/v1/queues/q/lease").is_error(403, "forbidden");
    assert_eq!(broker.refusals("forbidden"), before + 1);
    let tasks = post(&consumes, "/v1/queues/q/lease").json()["tasks"].clone();
    let path = |verb: &str| format!("/v1/leases/{}/{verb}", tasks[0]["lease"].as_str().unwrap());
    // To who may not consume it is a lease like one that never was.
    post(&foreign, &path("ack")).is_error(409, "lease_lost");
    assert_eq!(post(&consumes, &path("start")).status, 200);
    assert_eq!(post(&also, &path("ack")).status, 200, "whoever shows it and may consume settles it");
    assert_eq!(broker.admin().get("/v1/queues/q").json()["counts"]["done"], 1);
    // What is not allowed makes no queue.
    post(&consumes, "/v1/queues/new/lease").is_error(403, "forbidden");
    assert_eq!(broker.admin().names("queues"), ["q"]);
}

#[test]
fn a_pulled_lease_has_its_ack_timeout() {
    let broker = Broker::in_memory();
    broker.submit("q", &json!({"ack_timeout_ms": 100}));
    let first = pull(&broker, "/v1/queues/q/lease").remove(0);
    let second = until("the task to come back", || pull(&broker, "/v1/queues/q/lease?wait_ms=100").pop());
    assert_eq!((&second["task"], &second["redelivered"]), (&first["task"], &json!(true)));
    say(&broker, &first, "ack", &Value::Null).is_error(409, "lease_lost");
    assert_eq!(say(&broker, &second, "ack", &Value::Null).status, 200);
}

/// A pull without a name was once called `worker-` and a small number, as many a worker is.
#[test]
fn a_pull_without_a_name_takes_nobody_s_tasks() {
    let broker = Broker::in_memory();
    for number in 0..16 {
        broker.submit("q", &json!({"payload": number, "to": {"worker": format!("worker-{number:x}")}}));
    }
    for _ in 0..4 {
        let answer = broker.post("/v1/queues/q/lease?credit=16", &json!({}));
        assert_eq!(answer.json()["tasks"], json!([]), "{answer:?}");
    }
}
