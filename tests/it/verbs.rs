//! Cancel, order, fairness, once, sessions that survive a blip: as a client meets them.

use serde_json::{Value, json};

use crate::support::{Broker, Ws, until};

fn payloads(ws: &mut Ws, count: usize) -> Vec<Value> {
    (0..count).map(|_| ws.task()["payload"].clone()).collect()
}

/// A worker that may be resumed, and its token.
fn resumable(broker: &Broker, name: &str) -> (Ws, String) {
    let mut ws = broker.ws();
    let welcome = ws.gets("welcome", json!({"type": "hello", "worker": name, "resume": true}));
    (ws, welcome["resume"].as_str().unwrap().to_owned())
}

#[test]
fn a_task_that_waits_is_cancelled_at_once_and_a_finished_one_not() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    let queued = ws.submit(json!({"queue": "q", "watch": true}));
    let later = ws.submit(json!({"queue": "q", "delay_ms": 60_000}));
    for task in [&queued, &later, &queued] {
        assert_eq!(ws.gets("ok", json!({"type": "cancel", "task": task}))["state"], "cancelled");
    }
    assert_eq!(ws.wait_for("finished")["state"], "cancelled");
    let mut worker = broker.worker("w");
    worker.subscribe("q", 10);
    let done = ws.submit(json!({"queue": "q"}));
    let task = worker.task();
    assert_eq!(task["task"], done, "nothing else was there to take");
    worker.ack(&task);
    until("it is done", || (broker.task(&done)["state"] == "done").then_some(()));
    ws.refused("conflict", json!({"type": "cancel", "task": done}));
    ws.refused("not_found", json!({"type": "cancel", "task": "0198c0de-0000-7000-8000-000000000001"}));
    assert_eq!(broker.count("q", "cancelled"), 2);
}

#[test]
fn a_worker_is_told_to_stop_and_the_first_settle_wins() {
    let broker = Broker::start();
    let mut producer = broker.ws();
    let mut worker = broker.worker("w");
    worker.subscribe("q", 10);
    let mut stopped = |settle: &dyn Fn(&mut Ws, &Value), grace: u64| {
        let id = producer.submit(json!({"queue": "q", "watch": true}));
        let task = worker.task();
        let cancel = json!({"type": "cancel", "task": id, "grace_ms": grace});
        assert_eq!(producer.gets("ok", cancel)["state"], "leased");
        let stop = worker.wait_for("stop");
        assert_eq!((&stop["lease"], &stop["grace_ms"]), (&task["lease"], &json!(grace)));
        settle(&mut worker, &task["lease"]);
        let finished = producer.wait_for("finished");
        assert_eq!(finished["task"], id);
        finished
    };
    let acked = stopped(
        &|worker, lease| drop(worker.gets("settled", json!({"type": "ack", "lease": lease, "result": 7}))),
        60_000,
    );
    assert_eq!((&acked["state"], &acked["result"]), (&json!("done"), &json!(7)));
    for verb in ["nack", "release", "cancelled"] {
        let over = stopped(
            &|worker, lease| {
                drop(worker.gets("settled", json!({"type": verb, "lease": lease, "error": "gave up"})))
            },
            60_000,
        );
        assert_eq!(over["state"], "cancelled", "{verb}");
    }
    let silent = stopped(
        &|worker, lease| {
            let revoked = worker.wait_for("revoked");
            assert_eq!((&revoked["lease"], &revoked["reason"]), (lease, &json!("cancelled")));
        },
        100,
    );
    assert_eq!(silent["state"], "cancelled");
    let id = producer.submit(json!({"queue": "q"}));
    let task = worker.task();
    worker.refused("conflict", json!({"type": "cancelled", "lease": task["lease"]}));
    worker.ack(&task);
    until("it is done", || (broker.task(&id)["state"] == "done").then_some(()));
}

#[test]
fn what_was_cancelled_stays_so_after_a_kill() {
    let mut broker = Broker::start();
    let mut worker = broker.worker("w");
    worker.subscribe("q", 1);
    let mut producer = broker.ws();
    let id = producer.submit(json!({"queue": "q"}));
    worker.task();
    producer.gets("ok", json!({"type": "cancel", "task": id, "grace_ms": 600_000}));
    broker.kill();
    broker.start_again();
    assert_eq!(broker.task(&id)["state"], "cancelled");
}

#[test]
fn tasks_of_an_order_key_go_one_at_a_time_and_above_priority() {
    let broker = Broker::in_memory();
    let mut producer = broker.ws();
    for (payload, priority) in [("a1", 0), ("a2", 9), ("a3", 9)] {
        producer.submit(json!({"queue": "q", "payload": payload, "order_key": "a", "priority": priority}));
    }
    producer.submit(json!({"queue": "q", "payload": "b1", "order_key": "b"}));
    let mut worker = broker.worker("w");
    worker.subscribe("q", 10);
    let (b1, a1) = (worker.task(), worker.task());
    assert_eq!((&b1["payload"], &a1["payload"]), (&json!("b1"), &json!("a1")));
    assert!(worker.so_far().is_empty(), "a2 waits for a1");
    worker.say(json!({"type": "nack", "lease": a1["lease"], "delay_ms": 60}));
    assert!(worker.so_far().is_empty(), "also while a1 is retried");
    let again = worker.task();
    assert_eq!((&again["payload"], &again["attempt"]), (&json!("a1"), &json!(2)));
    worker.ack(&again);
    let a2 = worker.task();
    assert_eq!(a2["payload"], "a2");
    worker.say(json!({"type": "nack", "lease": a2["lease"], "retry": false}));
    assert_eq!(worker.task()["payload"], "a3", "a dead letter holds nobody up");
}

#[test]
fn fair_keys_take_turns() {
    let broker = Broker::in_memory();
    let mut producer = broker.ws();
    for (payload, key) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b")] {
        producer.submit(json!({"queue": "q", "payload": payload, "fair_key": key}));
    }
    let mut worker = broker.worker("w");
    worker.subscribe("q", 10);
    assert_eq!(payloads(&mut worker, 6), ["a1", "b1", "c1", "a2", "b2", "a3"]);
}

#[test]
fn the_least_loaded_takes_it_and_a_sticky_key_stays() {
    let broker = Broker::in_memory();
    let (mut big, mut small) = (broker.worker("big"), broker.worker("small"));
    big.subscribe("q", 10);
    small.subscribe("q", 2);
    let mut producer = broker.ws();
    for number in 0..6 {
        producer.submit(json!({"queue": "q", "payload": number, "assign": "least_loaded"}));
    }
    // 0/10 0/2 → big; 1/10 → small; then big until it has half of its credit too.
    assert_eq!(payloads(&mut small, 1), [1]);
    assert_eq!(payloads(&mut big, 5), [0, 2, 3, 4, 5]);

    let mut workers = ["a", "b", "c"].map(|name| broker.worker(name));
    for worker in &mut workers {
        worker.subscribe("s", 100);
    }
    for number in 0..30 {
        producer.submit(json!({"queue": "s", "payload": number % 10, "assign": "sticky",
                               "sticky_key": format!("user-{}", number % 10)}));
    }
    let mut homes = [const { Vec::new() }; 10];
    for (nth, worker) in workers.iter_mut().enumerate() {
        for message in worker.so_far().iter().filter(|message| message["type"] == "task") {
            homes[message["payload"].as_u64().unwrap() as usize].push(nth);
        }
    }
    for home in &homes {
        assert_eq!(home.len(), 3, "{homes:?}");
        assert!(home.iter().all(|nth| *nth == home[0]), "a key has one worker: {homes:?}");
    }
    assert!(homes.iter().any(|home| home[0] != homes[0][0]), "keys spread: {homes:?}");
}

/// Also of a submit that says nothing else; one to a worker of its own needs no key.
#[test]
fn where_the_queue_is_sticky_a_submit_needs_a_key() {
    let broker = Broker::in_memory();
    assert_eq!(broker.send("PUT", "/v1/queues/s", &json!({"assign": "sticky"})).status, 201);
    for body in [json!({"payload": 1}), json!({"payload": 1, "priority": 9}), json!({"delay_ms": 60_000})] {
        let error = broker.post("/v1/queues/s/tasks", &body).is_error(400, "bad_request");
        assert_eq!(error["field"], "sticky_key", "{body}");
    }
    let more = [json!({"sticky_key": "k"}), json!({"to": {"worker": "w"}}), json!({"assign": "round_robin"})];
    for body in more {
        assert_eq!(broker.post("/v1/queues/s/tasks", &body).status, 201, "{body}");
    }
}

#[test]
fn the_same_dedup_id_is_the_same_task_whatever_became_of_it() {
    let mut broker = Broker::start();
    let submit = json!({"type": "submit", "queue": "q", "dedup_id": "order-7", "payload": 1});
    let mut ws = broker.ws();
    let first = ws.gets("accepted", submit.clone());
    assert_eq!(first["duplicate"], false);
    let second = ws.gets("accepted", submit.clone());
    assert_eq!((&second["task"], &second["duplicate"]), (&first["task"], &json!(true)));
    broker.kill();
    broker.start_again();
    let mut ws = broker.ws();
    assert_eq!(ws.gets("accepted", submit.clone())["task"], first["task"]);
    let mut worker = broker.worker("w");
    worker.subscribe("q", 10);
    let task = worker.task();
    assert_eq!(task["task"], first["task"]);
    worker.gets("settled", json!({"type": "ack", "lease": task["lease"], "result": "sent"}));
    let mut watched = submit.clone();
    watched["watch"] = json!(true);
    assert_eq!(ws.gets("accepted", watched)["duplicate"], true);
    assert_eq!(ws.wait_for("finished")["result"], "sent", "who sends it again hears of the first");
    broker.kill();
    broker.start_again();
    let mut ws = broker.ws();
    assert_eq!(ws.gets("accepted", submit)["task"], first["task"]);
    let other = ws.gets("accepted", json!({"type": "submit", "queue": "other", "dedup_id": "order-7"}));
    assert_eq!(other["duplicate"], false, "each queue remembers its own");
    assert_eq!(broker.count("q", "done"), 1);
}

/// Nobody waits for such an ack; whoever was answered later knows that it is stored too.
#[test]
fn an_ack_without_an_id_is_stored_with_what_is_answered_after_it() {
    let mut broker = Broker::start();
    for done in 1..=3 {
        let mut worker = broker.worker("w");
        worker.subscribe("q", 1);
        worker.submit(json!({"queue": "q", "payload": done}));
        let task = worker.task();
        assert_eq!((&task["payload"], &task["redelivered"]), (&json!(done), &json!(false)));
        worker.say(json!({"type": "ack", "lease": task["lease"]}));
        worker.submit(json!({"queue": "other"}));
        broker.kill();
        broker.start_again();
        assert_eq!(broker.count("q", "done"), done);
    }
}

#[test]
fn whoever_comes_back_with_the_last_seq_has_lost_no_event() {
    let broker = Broker::in_memory();
    let mut producer = broker.ws();
    let id = producer.submit(json!({"queue": "q", "watch": true}));
    let mut worker = broker.worker("w");
    worker.subscribe("q", 1);
    let task = worker.task();
    let leased = producer.wait("the event of its lease", |m| m["state"] == "leased");
    let seen = leased["seq"].as_u64().unwrap();
    drop(producer);
    for percent in [10, 50, 90] {
        worker.gets(
            "ok",
            json!({"type": "progress", "lease": task["lease"], "percent": percent, "data": {"at": percent}}),
        );
    }
    let mut back = broker.ws();
    back.gets("ok", json!({"type": "watch", "task": id, "from_seq": seen}));
    for (nth, percent) in [10, 50, 90].into_iter().enumerate() {
        let event = back.wait_for("event");
        assert_eq!(event["seq"], seen + 1 + nth as u64);
        assert_eq!(event["data"]["at"], percent);
    }
    worker.gets("settled", json!({"type": "ack", "lease": task["lease"]}));
    let finished = back.wait_for("finished");
    assert_eq!(finished["seq"], seen + 4);
    // The same once it is over.
    let mut late = broker.ws();
    late.gets("ok", json!({"type": "watch", "task": id, "from_seq": seen + 2}));
    assert_eq!(late.wait_for("event")["seq"], seen + 3);
    assert_eq!(late.wait_for("finished")["seq"], seen + 4);
    // Who was not there from the beginning is told how it stands.
    let other = late.submit(json!({"queue": "idle"}));
    late.gets("ok", json!({"type": "watch", "task": other}));
    assert_eq!(late.wait_for("event")["state"], "queued");
}

#[test]
fn a_session_that_comes_back_keeps_what_it_names() {
    let broker = Broker::in_memory();
    let (mut worker, token) = resumable(&broker, "w");
    worker.subscribe("q", 10);
    let mut producer = broker.ws();
    for payload in 0..3 {
        producer.submit(json!({"queue": "q", "payload": payload}));
    }
    let tasks: Vec<Value> = (0..3).map(|_| worker.task()).collect();
    worker.gets("settled", json!({"type": "ack", "lease": tasks[0]["lease"]}));
    drop(worker);
    let mut other = broker.worker("other");
    other.subscribe("q", 10);
    let mut back = broker.ws();
    let welcome = back.gets(
        "welcome",
        json!({"type": "hello", "resume": token, "in_flight": [tasks[1]["lease"], tasks[0]["lease"], "nonsense"]}),
    );
    assert_eq!((&welcome["resumed"], &welcome["worker"]), (&json!(true), &json!("w")));
    assert_eq!(welcome["kept"], json!([tasks[1]["lease"]]));
    assert_eq!(welcome["lost"], json!([tasks[0]["lease"], "nonsense"]));
    assert_eq!(welcome["resume"], token);
    let returned = other.task();
    assert_eq!(
        (&returned["payload"], &returned["attempt"]),
        (&json!(2), &json!(1)),
        "not named: free, and flagged"
    );
    assert_eq!(returned["redelivered"], true);
    let settled = back.gets("settled", json!({"type": "ack", "lease": tasks[1]["lease"]}));
    assert_eq!(settled["outcome"], "ok");
    let again = back.gets("settled", json!({"type": "ack", "lease": tasks[0]["lease"]}));
    assert_eq!(again["outcome"], "already", "what it said before the blip is remembered");
    other.ack(&returned);
    until("all three are done", || (broker.count("q", "done") == 3).then_some(()));
    assert!(other.so_far().is_empty(), "nothing ran twice");
}

#[test]
fn a_session_keeps_its_leases_across_a_kill_of_the_broker() {
    let mut broker = Broker::start();
    let (mut worker, token) = resumable(&broker, "w");
    worker.subscribe("q", 10);
    let mut producer = broker.ws();
    // A task in front, so that slots differ after the restart.
    let first = producer.submit(json!({"queue": "q", "payload": "first"}));
    let id = producer.submit(json!({"queue": "q", "payload": "second"}));
    let (one, two) = (worker.task(), worker.task());
    worker.gets("settled", json!({"type": "ack", "lease": one["lease"]}));
    assert_eq!(one["task"], first);
    // The lease is in the log once something that was said later is.
    producer.submit(json!({"queue": "idle"}));
    broker.kill();
    broker.start_again();
    let mut eager = broker.worker("eager");
    eager.subscribe("q", 10);
    let mut back = broker.ws();
    let welcome =
        back.gets("welcome", json!({"type": "hello", "resume": token, "in_flight": [two["lease"]]}));
    assert_eq!((&welcome["resumed"], &welcome["kept"]), (&json!(true), &json!([two["lease"]])));
    assert!(eager.so_far().is_empty(), "it is with its worker");
    back.gets("ok", json!({"type": "extend", "lease": two["lease"], "ack_timeout_ms": 60_000}));
    assert_eq!(back.gets("settled", json!({"type": "ack", "lease": two["lease"]}))["outcome"], "ok");
    assert_eq!(broker.task(&id)["state"], "done");
    assert_eq!(broker.task(&id)["attempt"], 1);
}

#[test]
fn a_session_that_does_not_come_back_is_a_lost_worker() {
    let broker = Broker::with(&["--engine", "memory", "--resume-window-ms", "300"]);
    let (mut worker, token) = resumable(&broker, "w");
    worker.subscribe("q", 10);
    let mut producer = broker.ws();
    producer.submit(json!({"queue": "q"}));
    let task = worker.task();
    drop(worker);
    let mut other = broker.worker("other");
    other.subscribe("q", 10);
    let again = other.task();
    assert_eq!((&again["attempt"], &again["redelivered"]), (&json!(2), &json!(true)));
    let mut late = broker.ws();
    let welcome =
        late.gets("welcome", json!({"type": "hello", "resume": token, "in_flight": [task["lease"]]}));
    assert_eq!((&welcome["resumed"], &welcome["lost"]), (&json!(false), &json!([task["lease"]])));
    late.refused("lease_lost", json!({"type": "ack", "lease": task["lease"]}));

    let broker = Broker::with(&["--engine", "memory", "--resume-window-ms", "0"]);
    let welcome = broker.ws().gets("welcome", json!({"type": "hello", "resume": true}));
    assert_eq!(welcome["resume"], Value::Null, "it is off");
}

#[test]
fn an_old_socket_is_replaced_by_the_one_that_resumes() {
    let broker = Broker::in_memory();
    let (mut old, token) = resumable(&broker, "w");
    old.subscribe("q", 10);
    broker.ws().submit(json!({"queue": "q"}));
    let task = old.task();
    let mut new = broker.ws();
    let welcome =
        new.gets("welcome", json!({"type": "hello", "resume": token, "in_flight": [task["lease"]]}));
    assert_eq!(welcome["kept"], json!([task["lease"]]));
    old.closes(4009);
    assert_eq!(new.gets("settled", json!({"type": "ack", "lease": task["lease"]}))["outcome"], "ok");
    // `bye` is the end: nothing is kept for anybody.
    new.gets("ok", json!({"type": "bye"}));
    new.closes(1000);
    let welcome = broker.ws().gets("welcome", json!({"type": "hello", "resume": token}));
    assert_eq!(welcome["resumed"], false);
}

#[test]
fn a_stop_that_came_while_a_worker_was_away_is_said_again() {
    let broker = Broker::in_memory();
    let (mut worker, token) = resumable(&broker, "w");
    worker.subscribe("q", 10);
    let mut producer = broker.ws();
    let id = producer.submit(json!({"queue": "q", "watch": true}));
    let task = worker.task();
    drop(worker);
    until("it is away", || {
        let workers = broker.get("/v1/workers").json()["workers"].clone();
        workers.as_array().unwrap().iter().any(|w| w["worker"] == "w" && w["away"] == true).then_some(())
    });
    producer.gets("ok", json!({"type": "cancel", "task": id, "grace_ms": 60_000}));
    let mut back = broker.ws();
    back.gets("welcome", json!({"type": "hello", "resume": token, "in_flight": [task["lease"]]}));
    let stop = back.wait_for("stop");
    assert_eq!(stop["lease"], task["lease"]);
    assert!(stop["grace_ms"].as_u64().is_some_and(|ms| ms > 0 && ms <= 60_000), "{stop}");
    back.gets("settled", json!({"type": "cancelled", "lease": task["lease"]}));
    assert_eq!(producer.wait_for("finished")["state"], "cancelled");
}
