//! HTTP: workers are drained and removed; rooms are spoken into.

use serde_json::{Value, json};

use crate::support::http;
use crate::support::{Broker, Tokens, message_pack, until};

#[test]
fn a_worker_is_drained() {
    let broker = Broker::in_memory();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 2);
    broker.submit("q", &json!({}));
    let delivery = ws.task();
    let drained = broker.send("POST", "/v1/workers/w/drain", &Value::Null);
    assert_eq!((drained.status, drained.json()), (200, json!({})));
    assert_eq!(ws.wait_for("going_away")["reason"], "operator");
    broker.submit("q", &json!({}));
    ws.ack(&delivery);
    let heard = ws.so_far();
    assert!(heard.iter().all(|message| message["type"] != "task"), "it is given nothing more: {heard:?}");
    assert_eq!(broker.get("/v1/workers").json()["workers"][0]["draining"], true);
    assert_eq!(broker.count("q", "queued"), 1);
    broker.send("POST", "/v1/workers/none/drain", &Value::Null).is_error(404, "not_found");
    broker.send("POST", "/v1/workers/a%20b/drain", &Value::Null).is_error(400, "bad_request");
}

#[test]
fn a_worker_is_removed() {
    let broker = Broker::in_memory();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let task = broker.submit("q", &json!({}));
    ws.task();
    let removed = broker.delete("/v1/workers/w");
    assert_eq!((removed.status, removed.json()), (200, json!({})));
    ws.closes(4010);
    until("its task to be free", || (broker.task(&task)["state"] == "queued").then_some(()));
    until("it to be gone", || (broker.delete("/v1/workers/w").status == 404).then_some(()));
    broker.delete("/v1/workers/w").is_error(404, "not_found");
}

#[test]
fn workers_are_managed_by_who_manages_all() {
    let tokens = Tokens::new();
    let some = tokens.create("some", &["manage:q", "observe:*"]);
    let all = tokens.create("all", &["manage:*"]);
    let works = tokens.create("works", &["consume:*"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&works).worker("w");
    ws.subscribe("q", 1);
    for (method, path) in [("POST", "/v1/workers/w/drain"), ("DELETE", "/v1/workers/w")] {
        let error = broker.by(&some).send(method, path, &Value::Null).is_error(403, "forbidden");
        assert!(error["message"].as_str().unwrap().contains("manage:*"), "{error}");
        // Nor is anybody told who is there.
        broker.by(&some).send(method, "/v1/workers/none", &Value::Null);
        assert_eq!(broker.by(&all).send(method, path, &Value::Null).status, 200);
    }
    ws.closes(4010);
}

#[test]
fn what_is_said_in_a_room_is_heard_by_all_in_it() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.gets("ok", json!({"type": "join", "room": "lobby"}));
    let said = broker.post("/v1/rooms/lobby", &json!({"payload": {"hello": "all"}}));
    assert_eq!((said.status, said.json()), (200, json!({})));
    let heard = ws.wait_for("room_message");
    assert_eq!((&heard["room"], &heard["from"]), (&json!("lobby"), &json!("http")));
    assert_eq!(heard["payload"], json!({"hello": "all"}));
    assert_eq!(http::post(broker.address, "/v1/rooms/lobby", "image/png", &[0, 255]).status, 200);
    assert_eq!(ws.wait_for("room_message")["payload_b64"], "AP8=");
    let body = message_pack::encode(&json!({"payload": [1]}));
    assert_eq!(http::post(broker.address, "/v1/rooms/lobby", "application/msgpack", &body).status, 200);
    assert_eq!(ws.wait_for("room_message")["payload"], json!([1]));
    assert_eq!(broker.send("POST", "/v1/rooms/lobby", &Value::Null).status, 200);
    assert_eq!(ws.wait_for("room_message")["payload"], Value::Null);
    assert_eq!(broker.post("/v1/rooms/nobody", &json!({})).status, 200, "also where nobody is");
    broker.post("/v1/rooms/a%20b", &json!({})).is_error(400, "bad_request");
    let form = http::post(broker.address, "/v1/rooms/lobby", "application/x-www-form-urlencoded", b"a=b");
    form.is_error(415, "bad_request");
    let both = json!({"payload": 1, "payload_b64": "AA=="});
    broker.post("/v1/rooms/lobby", &both).is_error(400, "bad_request");
}

#[test]
fn a_room_is_spoken_into_by_who_may_submit_to_its_name() {
    let tokens = Tokens::new();
    let speaks = tokens.create("speaks", &["submit:lobby"]);
    let listens = tokens.create("listens", &["consume:lobby"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&listens).worker("w");
    ws.gets("ok", json!({"type": "join", "room": "lobby"}));
    broker.by(&listens).post("/v1/rooms/lobby", &json!({"payload": 1})).is_error(403, "forbidden");
    broker.by(&speaks).post("/v1/rooms/other", &json!({"payload": 2})).is_error(403, "forbidden");
    assert_eq!(broker.by(&speaks).post("/v1/rooms/lobby", &json!({"payload": 3})).status, 200);
    let heard = ws.wait_for("room_message");
    assert_eq!((&heard["payload"], &heard["from"]), (&json!(3), &json!("speaks")));
}
