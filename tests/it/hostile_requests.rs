//! Requests that mean harm, or mean something else than they say.

use serde_json::{Value, json};

use crate::support::{Broker, Tokens, http, until};

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// A queue with so many dead letters.
fn dead_letters(broker: &Broker, queue: &str, count: usize) {
    for _ in 0..count {
        broker.submit(queue, &json!({"max_attempts": 1}));
    }
    let pulled =
        broker.send("POST", &format!("/v1/queues/{queue}/lease?credit={count}"), &Value::Null).json();
    for task in pulled["tasks"].as_array().unwrap() {
        let nack = format!("/v1/leases/{}/nack", task["lease"].as_str().unwrap());
        assert_eq!(broker.post(&nack, &json!({"retry": false})).status, 200);
    }
    assert_eq!(broker.count(queue, "dead"), count as u64);
}

#[test]
fn a_filter_where_none_is_read_does_not_mean_all() {
    let broker = Broker::in_memory();
    broker.submit("q", &json!({"delay_ms": 60_000}));
    dead_letters(&broker, "q", 1);
    for (method, path) in [
        ("POST", "/v1/queues/q/purge?state=dead"),
        ("POST", "/v1/queues/q/dead/redrive?reason=worker_lost"),
        ("POST", "/v1/queues/q/pause?for_ms=5"),
        ("POST", "/v1/queues/q/unpause?x=1"),
        ("PUT", "/v1/queues/q?max_tasks=5"),
    ] {
        broker.send(method, path, &Value::Null).is_error(400, "bad_request");
    }
    assert_eq!((broker.count("q", "scheduled"), broker.count("q", "dead")), (1, 1));
    assert_eq!(broker.get("/v1/queues/q").json()["paused"], Value::Null);
}

#[test]
fn a_pull_does_not_take_the_name_of_another_account_s_worker() {
    let tokens = Tokens::new();
    let (alice, bob) =
        (tokens.create("alice", &["submit:q", "consume:q"]), tokens.create("bob", &["consume:q"]));
    let broker = tokens.broker(&[]);
    let mut worker = broker.ws();
    worker.gets("welcome", json!({"type": "hello", "worker": "w", "token": alice}));
    worker.gets("subscribed", json!({"type": "subscribe", "queue": "q", "credit": 0}));
    worker.submit(json!({"queue": "q", "to": {"worker": "w"}}));
    let pull = |token: &str| {
        http::json(broker.address, "POST", "/v1/queues/q/lease?worker=w", &bearer(token), &Value::Null)
    };
    pull(&bob).is_error(409, "conflict");
    assert_eq!(pull(&alice).json()["tasks"].as_array().unwrap().len(), 1, "one's own name is one's own");
}

#[test]
fn a_settled_lease_of_a_foreign_queue_is_lost_like_any() {
    let tokens = Tokens::new();
    let (alice, carl) =
        (tokens.create("alice", &["submit:q", "consume:q"]), tokens.create("carl", &["consume:other"]));
    let broker = tokens.broker(&[]);
    let say = |path: &str, token: &str| http::json(broker.address, "POST", path, &bearer(token), &json!({}));
    assert_eq!(say("/v1/queues/q/tasks", &alice).status, 201);
    let pulled = say("/v1/queues/q/lease", &alice).json();
    let ack = format!("/v1/leases/{}/ack", pulled["tasks"][0]["lease"].as_str().unwrap());
    assert_eq!(say(&ack, &alice).json()["outcome"], "ok");
    assert_eq!(say(&ack, &alice).json()["outcome"], "already");
    say(&ack, &carl).is_error(409, "lease_lost");
}

#[test]
fn redrives_that_never_end_are_in_nobody_else_s_way() {
    const JOBS: usize = 64;
    let broker = Broker::in_memory();
    dead_letters(&broker, "q", 2 * JOBS);
    for _ in 0..=JOBS {
        let answer = broker.post("/v1/queues/q/dead/redrive", &json!({"rate_per_s": 1e-300}));
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    broker.submit("other", &json!({}));
    assert_eq!(broker.send("POST", "/v1/queues/other/purge", &Value::Null).json(), json!({"purged": 1}));
}

#[test]
fn the_answer_of_a_pull_is_bounded_and_the_rest_stays() {
    const TASKS: usize = 40;
    let broker = Broker::in_memory();
    let payload = "x".repeat(1_000_000);
    for _ in 0..TASKS {
        broker.submit("q", &json!({"payload": payload}));
    }
    let (mut seen, mut answers) = (0, 0);
    until("all are pulled", || {
        let pulled = broker.send("POST", "/v1/queues/q/lease?credit=1024", &Value::Null);
        assert!(pulled.body.len() < 20_000_000, "{} bytes at once", pulled.body.len());
        seen += pulled.json()["tasks"].as_array().unwrap().len();
        answers += 1;
        (seen == TASKS).then_some(())
    });
    assert!(answers > 1);
}
