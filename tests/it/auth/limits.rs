//! How much an account may have and do.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{ADMIN, Broker, Tokens, Ws, until};

const WORKS: &[&str] = &["submit:*", "consume:*", "observe:*"];

/// What an account of so many messages a second may have said since `began`, with a second's worth at once.
fn most(per_s: f64, began: Instant) -> f64 {
    per_s + per_s * began.elapsed().as_secs_f64() + 1.0
}

fn code(answer: &Value) -> &str {
    answer["code"].as_str().unwrap_or("-")
}

/// An answer that says when to try again.
fn comes_later(error: &Value, code: &str) {
    assert_eq!((&error["code"], &error["retryable"]), (&json!(code), &json!(true)), "{error}");
    assert!(error["retry_after_ms"].as_u64().is_some_and(|ms| (1..=60_000).contains(&ms)), "{error}");
}

#[test]
fn an_account_may_say_so_much_over_all_its_sockets_and_requests() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--messages-per-s", "5"]);
    let free = tokens.create("b", WORKS);
    let broker = tokens.broker(&[]);
    let mut bystander = broker.by(&free).ws();
    let began = Instant::now();
    let (mut one, mut two) = (broker.by(&token).ws(), broker.by(&token).ws());
    let many: Vec<Value> =
        (0..30).map(|id| json!({"type": "submit", "id": id, "queue": "q", "delay_ms": 60_000})).collect();
    one.say(json!(many));
    two.say(json!(many));
    let mut taken = 0;
    for ws in [&mut one, &mut two] {
        for id in 0..30 {
            let answer = ws.wait("an answer", |message| message["ref"] == id);
            match code(&answer) {
                "-" => taken += 1,
                _ => comes_later(&answer, "rate_limited"),
            }
        }
    }
    assert!(taken >= 5 && f64::from(taken) <= most(5.0, began), "{taken}");
    assert_eq!(broker.admin().get("/v1/queues/q").json()["counts"]["scheduled"], taken);

    // Over HTTP it is the same account, and many in one request are many.
    let by = broker.by(&token);
    let bulk: Vec<Value> = (0..40).map(|_| json!({"queue": "bulk"})).collect();
    let refused = until("a bulk that is let in", || {
        let answer = by.post("/v1/tasks", &json!(bulk));
        if answer.status == 429 {
            comes_later(&answer.is_error(429, "rate_limited"), "rate_limited");
            return None;
        }
        let answers = answer.json();
        let refused: Vec<Value> =
            answers.as_array().unwrap().iter().filter(|answer| code(answer) != "-").cloned().collect();
        Some(refused)
    });
    refused.iter().for_each(|error| comes_later(error, "rate_limited"));
    let queued = broker.admin().get("/v1/queues/bulk").json()["counts"]["queued"].as_u64().unwrap();
    assert_eq!(queued + refused.len() as u64, 40);
    assert!(queued >= 1 && queued as f64 <= most(5.0, began), "{queued}");
    let statuses: Vec<u16> = (0..30).map(|_| by.get("/v1/queues").status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    // Subscribes, watches and pings, too.
    let kinds = ["subscribe", "ping", "watch"];
    let burst: Vec<Value> = (0..30)
        .map(|id| json!({"type": kinds[id % 3], "id": id, "queue": "q", "credit": 0, "task": "0198c0de-0000-7000-8000-000000000000"}))
        .collect();
    one.say(json!(burst));
    let codes: Vec<String> =
        (0..30).map(|id| code(&one.wait("an answer", |message| message["ref"] == id)).to_owned()).collect();
    for kind in 0..3 {
        assert!(codes.iter().skip(kind).step_by(3).any(|code| code == "rate_limited"), "{codes:?}");
    }
    assert!(broker.refusals("messages") > 60);
    // It passes by itself, and nobody else has noticed.
    let again = json!({"type": "submit", "queue": "q", "delay_ms": 60_000});
    until("its turn", || (one.ask(again.clone())["type"] == "accepted").then_some(()));
    for _ in 0..30 {
        bystander.submit(json!({"queue": "q"}));
    }
}

/// A settle that is refused, or waits, runs its task twice. Acks beyond the rate once waited in the broker
/// until their leases had run out.
#[test]
fn what_a_delivery_calls_for_is_taken_whatever_the_rate() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--messages-per-s", "10"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&token).ws();
    ws.subscribe("q", 30);
    let submits: Vec<Value> = (0..30).map(|_| json!({"queue": "q"})).collect();
    broker.admin().post("/v1/tasks", &json!(submits));
    let leases: Vec<Value> = (0..30).map(|_| ws.task()["lease"].clone()).collect();
    let said = |kind: &str, lease: &Value, id: usize| json!({"type": kind, "id": id, "lease": lease});
    let mut all: Vec<Value> = Vec::new();
    for (nth, lease) in leases.iter().enumerate() {
        for (more, kind) in ["start", "extend", "progress", "extend", "ack"].into_iter().enumerate() {
            all.push(said(kind, lease, nth * 5 + more));
        }
    }
    ws.say(json!(all));
    for id in 0..150 {
        let answer = ws.wait("an answer", |message| message["ref"] == id);
        assert_ne!(answer["type"], "error", "{answer}");
    }
    assert_eq!(broker.admin().get("/v1/queues/q").json()["counts"]["done"], 30);
    // They have used the rate up all the same.
    ws.refused("rate_limited", json!({"type": "submit", "queue": "q"}));
    // What no delivery calls for is one message among others.
    let noise: Vec<Value> =
        (0..300).map(|id| said("ack", &json!("AAAAAAAAAAcAAAADAAAAAA"), 1000 + id)).collect();
    ws.say(json!(noise));
    let codes: Vec<String> = (1000..1300)
        .map(|id| code(&ws.wait("an answer", |message| message["ref"] == id)).to_owned())
        .collect();
    assert!(codes.iter().filter(|code| *code == "rate_limited").count() > 150, "{codes:?}");
    assert!(codes.iter().filter(|code| *code == "lease_lost").count() >= 90, "{codes:?}");
}

/// While a socket that had said too much was not read, nobody noticed that it had ended.
#[test]
fn whoever_says_too_much_and_goes_is_missed_at_once() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--messages-per-s", "1", "--connections", "1"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&token).ws();
    ws.subscribe("q", 1);
    let task = broker.admin().submit("q", &json!({}));
    ws.task();
    let noise: Vec<Value> =
        (0..500).map(|id| json!({"type": "extend", "id": id, "lease": "AAAAAAAAAAcAAAADAAAAAA"})).collect();
    ws.say(json!(noise));
    for id in 0..500 {
        ws.wait("an answer", |message| message["ref"] == id);
    }
    ws.hang_up();
    let mut other = broker.admin().ws();
    other.subscribe("q", 1);
    assert_eq!(other.task()["task"], task);
    until("its place", || (broker.by(&token).upgrade("/ws").status == 101).then_some(()));
}

#[test]
fn whoever_does_not_listen_is_cut_off() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--messages-per-s", "1"]);
    let broker = tokens.broker(&[]);
    let (mut flood, mut other) = (broker.by(&token).ws(), broker.by(&token).ws());
    flood.gets("welcome", json!({"type": "hello"}));
    let pings: Vec<Value> = (0..1000).map(|id| json!({"type": "ping", "id": id})).collect();
    flood.say(json!(pings));
    for id in 0..1000 {
        flood.wait("an answer", |message| message["ref"] == id);
    }
    flood.say(json!(pings));
    flood.closes(4129);
    // It is this one's own doing.
    other.gets("welcome", json!({"type": "hello"}));
}

/// What is refused before it is looked at counts, too: else a client could have the broker answer without
/// end.
#[test]
fn messages_that_are_none_count() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--messages-per-s", "10"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&token).ws();
    ws.gets("welcome", json!({"type": "hello"}));
    ws.say(json!(vec![json!({"type": "nonsense"}); 30]));
    let codes: Vec<String> = (0..30).map(|_| code(&ws.next()).to_owned()).collect();
    let count = |wanted: &str| codes.iter().filter(|code| *code == wanted).count();
    assert!(count("unknown_type") >= 5 && count("rate_limited") >= 10, "{codes:?}");
    assert_eq!(count("unknown_type") + count("rate_limited"), 30, "{codes:?}");
}

#[test]
fn an_account_may_have_so_many_connections() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--connections", "2"]);
    let broker = tokens.broker(&[]);
    let by = broker.by(&token);
    // What does not become a socket takes no place.
    for target in ["/ws?queue=", "/ws?nothing=1"] {
        for _ in 0..3 {
            assert_eq!(by.upgrade(target).status, 400);
        }
    }
    let first = by.ws();
    let mut second = broker.ws();
    // Not known yet, it has no place; nor has one who is refused.
    let mut third = broker.ws();
    second.gets("welcome", json!({"type": "hello", "token": token}));
    let refusals = broker.refusals("connections");
    for target in ["/ws", "/ws?queue=q"] {
        let answer = by.upgrade(target);
        comes_later(&answer.is_error(429, "rate_limited"), "rate_limited");
        assert!(answer.header("retry-after").is_some());
    }
    third.say(json!([{"type": "hello", "id": 9, "token": token}, {"type": "submit", "queue": "never"}]));
    let error = third.next();
    comes_later(&error, "rate_limited");
    assert_eq!(error["ref"], 9);
    third.closes(4129);
    assert_eq!(broker.refusals("connections"), refusals + 3);
    // Requests are no connections of this kind, and other accounts have their own.
    assert_eq!(by.get("/v1/queues").json()["queues"], json!([]));
    let _admin = broker.admin().ws();
    // A place is free again, however the socket ended.
    drop(first);
    for end in ["bye", "violation", "reset"] {
        let mut ws = until("a place", || try_ws(&broker, &token));
        match end {
            "bye" => ws.say(json!({"type": "bye"})),
            "violation" => ws.raw(&[0x81, 0x00]),
            _ => ws.hang_up(),
        }
    }
    until("a place", || try_ws(&broker, &token));
    second.gets("pong", json!({"type": "ping"}));
}

/// A socket, if there is a place for it.
fn try_ws(broker: &Broker, token: &str) -> Option<Ws> {
    let mut ws = broker.ws();
    let answer = ws.ask(json!({"type": "hello", "token": token}));
    (answer["type"] == "welcome").then_some(ws)
}

#[test]
fn an_account_may_have_so_many_tasks_waiting() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--queued-tasks", "3"]);
    let other = tokens.create("b", WORKS);
    let broker = tokens.broker(&[]);
    let by = broker.by(&token);
    let mut ws = by.ws();
    // Wherever they wait, and for what.
    ws.submit(json!({"queue": "q", "max_attempts": 1}));
    ws.submit(json!({"queue": "p", "delay_ms": 60_000}));
    let waiting = json!({"queue": "e", "ttl_ms": 60_000});
    ws.submit(waiting);
    let before = broker.refusals("quota");
    comes_later(&ws.refused("queue_full", json!({"type": "submit", "queue": "q"})), "queue_full");
    comes_later(&ws.refused("queue_full", json!({"type": "submit", "queue": "new"})), "queue_full");
    ws.say(json!({"type": "submit", "queue": "q", "confirm": "none"}));
    assert_eq!(ws.wait_for("error")["code"], "queue_full");
    let answer = by.post("/v1/queues/q/tasks", &json!({}));
    comes_later(&answer.is_error(429, "queue_full"), "queue_full");
    let bulk = by.post("/v1/tasks", &json!([{"queue": "q"}, {"queue": "new"}])).json();
    bulk.as_array().unwrap().iter().for_each(|error| comes_later(error, "queue_full"));
    assert_eq!(broker.refusals("quota"), before + 6);
    assert_eq!(broker.admin().names("queues"), ["e", "p", "q"], "what is refused makes no queue");
    // Whose they are counts, not where they are.
    broker.by(&other).submit("q", &json!({}));
    broker.admin().submit("q", &json!({}));

    // A task in work is not done; a dead letter is still kept; what is done is not.
    ws.subscribe("q", 3);
    let first = ws.task();
    ws.refused("queue_full", json!({"type": "submit", "queue": "q"}));
    ws.gets("settled", json!({"type": "nack", "lease": first["lease"]}));
    assert_eq!(by.state(first["task"].as_str().unwrap()), "dead");
    ws.refused("queue_full", json!({"type": "submit", "queue": "q"}));
    ws.subscribe("e", 1);
    let last = ws.wait("its own", |message| message["queue"] == "e");
    ws.ack(&last);
    ws.submit(json!({"queue": "t", "ttl_ms": 1}));
    until("a task to expire", || {
        (ws.ask(json!({"type": "submit", "queue": "x"}))["type"] == "accepted").then_some(())
    });
    ws.refused("queue_full", json!({"type": "submit", "queue": "q"}));
    let two = by.post("/v1/tasks", &json!([{"queue": "x"}])).json();
    assert_eq!(code(&two[0]), "queue_full");
}

#[test]
fn what_waits_is_counted_over_a_restart() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--queued-tasks", "3", "--queued-bytes", "5000"]);
    let mut broker = tokens.broker_with(&[("TASKYARD_ADMIN_TOKEN", ADMIN)], &[]);
    let full = |broker: &Broker, body: &Value| {
        broker.by(&token).post("/v1/queues/q/tasks", body).is_error(429, "queue_full");
    };
    let large = json!({"payload": "x".repeat(1000)});
    broker.by(&token).submit("q", &json!({"max_attempts": 1}));
    broker.by(&token).submit("q", &json!({"delay_ms": 600_000}));
    broker.by(&token).submit("done", &json!({}));
    for _ in 0..3 {
        broker.admin().submit("q", &large);
    }
    let mut ws = broker.by(&token).ws();
    ws.subscribe("q", 1);
    let dead = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": dead["lease"]}));
    ws.subscribe("done", 1);
    let done = ws.wait("that one", |message| message["queue"] == "done");
    ws.ack(&done);
    ws.gets("ok", json!({"type": "bye"}));
    broker.by(&token).submit("left", &large);
    full(&broker, &json!({}));
    for stop in [true, false] {
        if stop {
            broker.stop()
        } else {
            broker.kill()
        }
        broker.start_again();
        full(&broker, &json!({}));
        broker.admin().submit("q", &large);
    }
    // What is done after the restart is done for the count too.
    let mut ws = broker.by(&token).ws();
    ws.subscribe("left", 1);
    let left = ws.task();
    ws.ack(&left);
    // Bytes: 5000 of them, of which none is used but by two small ones.
    full(&broker, &json!({"payload": "x".repeat(5001)}));
    broker.by(&token).submit("q", &json!({"payload": "x".repeat(4900)}));
    full(&broker, &json!({}));
}

#[test]
fn an_account_may_have_so_many_bytes_waiting() {
    let tokens = Tokens::new();
    let token = tokens.create_with("a", WORKS, &["--queued-bytes", "100"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&token).ws();
    let submit = |bytes: usize| json!({"type": "submit", "queue": "q", "payload": "x".repeat(bytes - 2)});
    comes_later(&ws.refused("queue_full", submit(101)), "queue_full");
    ws.gets("accepted", submit(60));
    comes_later(&ws.refused("queue_full", submit(41)), "queue_full");
    ws.gets("accepted", submit(40));
    ws.refused("queue_full", submit(2));
    ws.subscribe("q", 1);
    let task = ws.task();
    ws.ack(&task);
    ws.gets("accepted", submit(60));
    ws.refused("queue_full", submit(2));
}
