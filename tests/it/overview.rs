//! How the broker is: once over HTTP, and again and again for who observes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Broker, Tokens, Ws, handshake, http, pause, until, upgrade_request};

/// The names of the queues that are told of one by one.
fn names(overview: &Value) -> Vec<&str> {
    let queues = overview["queues"].as_array().unwrap();
    queues.iter().map(|queue| queue["queue"].as_str().unwrap()).collect()
}

#[track_caller]
fn overview(broker: &Broker, query: &str) -> Value {
    let answer = broker.get(&format!("/v1/overview{query}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn an_overview_counts_what_is_there_and_what_happened() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("a", 3);
    ws.subscribe("b", 1);
    for _ in 0..3 {
        ws.submit(json!({"queue": "a", "max_attempts": 1}));
    }
    broker.submit("a", &json!({"delay_ms": 60_000}));
    broker.submit("c", &json!({}));
    let (first, second) = (ws.task(), ws.task());
    ws.task();
    ws.ack(&first);
    ws.gets("settled", json!({"type": "nack", "lease": second["lease"]}));
    broker.send("PUT", "/v1/schedules/s", &json!({"queue": "c", "every_ms": 600_000}));
    assert_eq!(broker.post("/v1/queues/c/pause", &json!({})).status, 200);
    // What a socket has written is counted behind the write.
    let seen = until("all to be counted", || {
        let seen = overview(&broker, "?queues=c,nowhere,a");
        (seen["hops"]["assigned_to_sent"]["count"] == 3).then_some(seen)
    });
    assert_eq!(names(&seen), ["c", "a"]);
    let (c, a) = (&seen["queues"][0], &seen["queues"][1]);
    assert_eq!(a["counts"], json!({"scheduled": 1, "queued": 0, "leased": 1, "retrying": 0, "dead": 1}));
    assert_eq!(
        (&a["workers"], &a["in_flight"], &a["credit_free"], &a["oldest_ms"]),
        (&json!(1), &json!(1), &json!(2), &Value::Null)
    );
    let happened = json!({"accepted": 4, "duplicate": 0, "refused": 0, "delivered": 3, "redelivered": 0, "acked": 1,
        "nacked": 1, "released": 0, "timed_out": 0, "worker_lost": 0, "dead": 1, "cancelled": 0, "expired": 0});
    assert_eq!(a["events"], happened);
    assert_eq!((&a["paused"], &c["paused"]), (&json!(false), &json!(true)));
    assert!(c["oldest_ms"].is_u64(), "{c}");
    assert_eq!(seen["queues_total"], 3);
    assert_eq!(
        seen["totals"]["counts"],
        json!({"scheduled": 1, "queued": 1, "leased": 1, "retrying": 0, "dead": 1})
    );
    assert_eq!((&seen["totals"]["workers"], &seen["totals"]["oldest_ms"]), (&json!(2), &c["oldest_ms"]));
    // One session works on two queues.
    assert_eq!(
        (&seen["workers"], &seen["connections"], &seen["schedules"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!((&seen["engine"], &seen["durable"]), (&json!("embedded"), &json!(true)));
    assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"));
    for (hop, count) in [
        ("accepted_to_durable", 5),
        ("durable_to_assigned", 3),
        ("assigned_to_sent", 3),
        ("sent_to_settled", 2),
    ] {
        let found = &seen["hops"][hop];
        let buckets: Vec<u64> = serde_json::from_value(found["buckets"].clone()).unwrap();
        assert_eq!(
            (found["count"].as_u64(), buckets.iter().sum::<u64>()),
            (Some(count), count),
            "{hop}: {found}"
        );
        assert_eq!(buckets.len(), seen["hop_bounds_us"].as_array().unwrap().len() + 1);
    }
    assert!(
        seen["log"]["sync"]["count"].as_u64() > Some(0) && seen["log"]["bytes"].as_u64() > Some(0),
        "{seen}"
    );
    assert!(seen["process"]["rss_bytes"].as_u64() > Some(1 << 20), "{seen}");
    assert_eq!(names(&overview(&broker, "")), ["a", "c", "b"], "those with most tasks first");
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let broker = Broker::in_memory();
    let many = vec!["q"; 101].join(",");
    for query in ["?queues=", "?queues=a,,b", "?queues=.a", &format!("?queues={many}"), "?queue=a"] {
        broker.get(&format!("/v1/overview{query}")).is_error(400, "bad_request");
    }
    let mut ws = broker.worker("w");
    for every_ms in [json!(1), json!(249), json!(60_001), json!(-1), json!("1000"), json!(1000.5)] {
        let error = ws.refused("bad_request", json!({"type": "observe", "every_ms": every_ms}));
        assert_eq!(error["field"], "every_ms");
    }
    let error = ws.refused("bad_request", json!({"type": "observe", "queues": vec!["q"; 101]}));
    assert_eq!(error["field"], "queues");
    // A memory engine has no log; who may see all is told so.
    let seen = overview(&broker, "");
    assert_eq!((seen.get("log"), &seen["durable"]), (Some(&Value::Null), &json!(false)));
}

#[test]
fn who_observes_is_told_at_once_and_again() {
    let broker = Broker::in_memory();
    broker.submit("q", &json!({}));
    for mut ws in [broker.ws(), Ws::packing(broker.address)] {
        // The first word of all: the welcome comes first, then the answer, then what was asked for.
        ws.say(json!({"type": "observe", "id": "o", "every_ms": 250}));
        let kinds = [ws.next(), ws.next(), ws.next()];
        let word = |nth: usize| (kinds[nth]["type"].as_str().unwrap(), kinds[nth]["ref"].as_str());
        assert_eq!(
            [word(0), word(1), word(2)],
            [("welcome", None), ("ok", Some("o")), ("overview", Some("o"))]
        );
        let mut http = overview(&broker, "");
        let mut told = kinds[2].clone();
        assert_eq!(told["queues"][0]["counts"]["queued"], 1);
        for moves in ["at_ms", "uptime_ms", "process", "connections"] {
            assert!(told[moves].take() != Value::Null && http[moves].take() != Value::Null, "{moves}");
        }
        for body in [&mut told, &mut http] {
            body["queues"][0]["oldest_ms"].take();
            body["totals"]["oldest_ms"].take();
        }
        told.as_object_mut().unwrap().retain(|key, _| key != "type" && key != "ref");
        assert_eq!(told, http);
        let again = ws.wait_for("overview");
        assert!(again["at_ms"].as_u64() > kinds[2]["at_ms"].as_u64());
    }
}

#[test]
fn one_observation_takes_the_place_of_another_and_zero_ends_it() {
    let broker = Broker::in_memory();
    let mut ws = broker.worker("w");
    for (id, queues) in [("first", json!(["a"])), ("second", json!(["b"]))] {
        ws.say(json!({"type": "observe", "id": id, "every_ms": 250, "queues": queues}));
        assert_eq!(ws.wait_for("ok")["ref"], id);
    }
    broker.submit("a", &json!({}));
    broker.submit("b", &json!({}));
    let told =
        ws.wait("b to be told of", |message| message["queues"] != json!([]) && message["type"] == "overview");
    assert_eq!((told["ref"].as_str(), names(&told)), (Some("second"), vec!["b"]));
    // Without an id there is no answer, and none in what follows.
    ws.say(json!({"type": "observe", "every_ms": 250}));
    let told =
        ws.wait("one without", |message| message["type"] == "overview" && message.get("ref").is_none());
    assert_eq!(names(&told), ["a", "b"]);
    ws.gets("ok", json!({"type": "observe", "every_ms": 0}));
    ws.so_far();
    pause(Duration::from_millis(600));
    assert_eq!(ws.so_far(), Vec::<Value>::new());
}

#[test]
fn a_token_is_told_of_its_queues_alone() {
    let tokens = Tokens::new();
    let (mail, submits) =
        (tokens.create("m", &["observe:mail*"]), tokens.create("s", &["submit:*", "consume:*"]));
    let broker = tokens.broker(&[]);
    let bulk = json!([{"queue": "mail"}, {"queue": "mail.big"}, {"queue": "other"}, {"queue": "other"}]);
    assert_eq!(broker.by(&submits).post("/v1/tasks", &bulk).status, 200);
    let schedule = json!({"queue": "other", "every_ms": 600_000});
    assert_eq!(broker.admin().send("PUT", "/v1/schedules/s", &schedule).status, 201);
    let mut worker = socket(&broker, &submits);
    worker.subscribe("other", 1);

    let seen = broker.by(&mail).get("/v1/overview").json();
    assert_eq!((names(&seen), &seen["queues_total"]), (vec!["mail", "mail.big"], &json!(2)));
    assert_eq!((&seen["totals"]["counts"]["queued"], &seen["workers"]), (&json!(2), &json!(0)));
    assert_eq!(seen["schedules"], 0);
    for hidden in ["hops", "hop_bounds_us", "log", "process"] {
        assert!(seen.get(hidden).is_none(), "{hidden}");
    }
    assert_eq!(names(&broker.by(&mail).get("/v1/overview?queues=other,mail").json()), ["mail"]);
    let all = broker.admin().get("/v1/overview").json();
    assert_eq!((&all["workers"], &all["schedules"], &all["queues_total"]), (&json!(1), &json!(1), &json!(3)));
    assert!(all.get("hops").is_some());

    broker.by(&submits).get("/v1/overview").is_error(403, "forbidden");
    http::get(broker.address, "/v1/overview").is_error(401, "unauthorized");
    let before = broker.refusals("forbidden");
    worker.refused("forbidden", json!({"type": "observe"}));
    assert_eq!(broker.refusals("forbidden"), before + 1);
    let mut observer = socket(&broker, &mail);
    observer.gets("ok", json!({"type": "observe", "queues": ["other", "mail.big"]}));
    let told = observer.wait_for("overview");
    assert_eq!((names(&told), told.get("process")), (vec!["mail.big"], None));
}

fn socket(broker: &Broker, token: &str) -> Ws {
    let header = format!("Authorization: Bearer {token}\r\n");
    let request = upgrade_request(broker.address, "/ws", &header);
    let (answer, connection) = handshake(broker.address, request.as_bytes());
    assert_eq!(answer.status, 101, "{answer:?}");
    Ws::over(connection)
}
