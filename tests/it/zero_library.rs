//! `new WebSocket("ws://host/ws?queue=demo")`, and nothing else.

use serde_json::{Value, json};

use crate::support::{Broker, Ws, http, upgrade_request};

#[test]
fn a_url_is_a_worker() {
    let broker = Broker::in_memory();
    let mut ws = Ws::open(broker.address, "/ws?queue=demo", &[]);
    // The broker speaks first.
    let welcome = ws.next();
    assert_eq!(welcome["type"], "welcome");
    assert!(welcome.get("ref").is_none());
    assert_eq!(
        ws.next(),
        json!({"type": "subscribed", "queue": "demo", "credit": 1, "ack_timeout_ms": 30000})
    );

    let task = broker.submit("demo", &json!({"payload": {"hello": "world"}}));
    let delivery = ws.next();
    assert_eq!((&delivery["type"], &delivery["task"]), (&json!("task"), &json!(task)));
    assert_eq!(delivery["payload"], json!({"hello": "world"}));
    ws.text("ack");
    assert_eq!(ws.so_far(), Vec::<Value>::new());
    assert_eq!(broker.task(&task)["state"], "done");

    let task = broker.submit("demo", &json!({"backoff": {"initial_ms": 0}}));
    ws.next();
    ws.text("nack");
    let again = ws.next();
    assert_eq!((&again["task"], &again["attempt"]), (&json!(task), &json!(2)));
    ws.text(" ack\n");
    assert_eq!(ws.so_far(), Vec::<Value>::new());
    ws.text("ack");
    assert_eq!(ws.next()["code"], "lease_lost");
}

#[test]
fn words_settle_the_oldest_or_the_one_named() {
    let broker = Broker::in_memory();
    let mut ws = Ws::open(broker.address, "/ws?queue=demo&credit=4&worker=w&groups=a,b", &[]);
    assert_eq!(ws.next()["worker"], "w");
    assert_eq!(ws.next()["credit"], 4);
    let tasks: Vec<String> = (0..4).map(|_| broker.submit("demo", &json!({"max_attempts": 1}))).collect();
    let deliveries: Vec<Value> = (0..4).map(|_| ws.next()).collect();
    let state = |nth: usize| broker.task(&tasks[nth])["state"].clone();
    ws.text(&format!("ack {}", deliveries[2]["lease"].as_str().unwrap()));
    ws.text("ack");
    ws.text(&format!("nack {}", deliveries[3]["lease"].as_str().unwrap()));
    assert_eq!(ws.so_far(), Vec::<Value>::new());
    assert_eq!([0, 1, 2, 3].map(state), [json!("done"), json!("leased"), json!("done"), json!("dead")]);
    ws.text("nack");
    ws.text("ack nonsense");
    let errors = ws.so_far();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((&errors[0]["code"], &errors[0]["lease"]), (&json!("lease_lost"), &json!("nonsense")));
    assert_eq!(state(1), "dead");
    // The whole protocol is there beside the words.
    ws.gets("pong", json!({"type": "ping"}));
    ws.submit(json!({"queue": "demo", "to": {"group": "b"}}));
    ws.task();
    let workers = broker.get("/v1/workers").json();
    assert_eq!(workers["workers"][0]["groups"], json!(["a", "b"]));
}

#[test]
fn words_are_words_only_in_this_mode() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.text("ack");
    assert_eq!(ws.next()["code"], "bad_request");
}

#[test]
fn mode_auto_needs_no_words() {
    let broker = Broker::in_memory();
    let mut ws = Ws::open(broker.address, "/ws?queue=demo&mode=auto", &[]);
    let task = broker.submit("demo", &json!({}));
    let delivery = ws.wait_for("task");
    assert_eq!(delivery["lease"], Value::Null);
    crate::support::until("the end of the task", || (broker.task(&task)["state"] == "done").then_some(()));
}

#[test]
fn bad_parameters_are_refused_before_the_upgrade() {
    let broker = Broker::in_memory();
    for query in [
        "queue=",
        "queue=a%20b",
        "queue=.x",
        "queue=demo&credit=-1",
        "queue=demo&credit=1025",
        "queue=demo&credit=x",
        "queue=demo&mode=fast",
        "queue=demo&worker=a%2Fb",
        "queue=demo&groups=a,,b",
        "room=",
        "room=a%20b",
        "raw=1",
        "queue=demo&raw=0",
        "queue=demo&room=lobby&raw=1",
        "queue=demo&mode=manual&raw=1",
        "queue=demo&queue=other",
        "room=demo&credit=1",
        "credit=1",
        "mode=auto",
    ] {
        let request = upgrade_request(broker.address, &format!("/ws?{query}"), "");
        let error = http::exchange(broker.address, request.as_bytes()).is_error(400, "bad_request");
        let name = query.rsplit('&').next().unwrap().split('=').next().unwrap();
        assert!(error["message"].as_str().unwrap().contains(name), "{query}: {error}");
    }
    assert_eq!(broker.get("/v1/queues").json()["queues"], json!([]));
}
