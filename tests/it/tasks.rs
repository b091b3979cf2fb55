//! Who gets a task, when, and what becomes of it. Briefly: the simulator does the depth.

use serde_json::{Value, json};

use crate::support::{Broker, Ws, until};

#[test]
fn round_robin_is_exact() {
    let broker = Broker::in_memory();
    let mut workers: Vec<Ws> = ["a", "b", "c"].map(|name| broker.worker(name)).into();
    for worker in &mut workers {
        worker.subscribe("q", 100);
    }
    let mut producer = broker.ws();
    for number in 0..30 {
        producer.submit(json!({"queue": "q", "payload": number}));
    }
    for (nth, worker) in workers.iter_mut().enumerate() {
        let numbers: Vec<u64> = (0..10).map(|_| worker.task()["payload"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..10).map(|round| round * 3 + nth as u64).collect::<Vec<_>>());
    }
}

#[test]
fn one_without_credit_loses_its_turn() {
    let broker = Broker::in_memory();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    a.subscribe("q", 1);
    b.subscribe("q", 10);
    let mut producer = broker.ws();
    for number in 0..4 {
        producer.submit(json!({"queue": "q", "payload": number}));
    }
    let first = a.task();
    assert_eq!(first["payload"], 0);
    let numbers: Vec<Value> = (0..3).map(|_| b.task()["payload"].clone()).collect();
    assert_eq!(numbers, [1, 2, 3]);
    // Credit 0 pauses, and its answer is a barrier.
    b.gets("ok", json!({"type": "credit", "queue": "q", "credit": 0}));
    a.ack(&first);
    producer.submit(json!({"queue": "q", "payload": 4}));
    producer.submit(json!({"queue": "q", "payload": 5}));
    assert_eq!(a.task()["payload"], 4);
    b.gets("ok", json!({"type": "credit", "queue": "q", "credit": 4}));
    assert_eq!(b.task()["payload"], 5);
    b.gets("ok", json!({"type": "drain"}));
    producer.submit(json!({"queue": "q"}));
    assert!(b.so_far().iter().all(|message| message["type"] != "task"));
}

#[test]
fn to_one_worker() {
    let broker = Broker::in_memory();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    a.subscribe("q", 10);
    b.subscribe("q", 10);
    let mut producer = broker.ws();
    for number in 0..3 {
        producer.submit(json!({"queue": "q", "payload": number, "to": {"worker": "b"}}));
    }
    assert_eq!([b.task(), b.task(), b.task()].map(|task| task["payload"].clone()), [0, 1, 2]);
    // Absent: wait for it, give to any, or fail.
    let to = |if_absent: &str| json!({"queue": "q", "payload": if_absent, "to": {"worker": "c", "if_absent": if_absent}});
    producer.submit(to("wait"));
    producer.submit(to("any"));
    assert_eq!(a.task()["payload"], "any");
    let mut fail = to("fail");
    fail["type"] = json!("submit");
    producer.refused("not_found", fail);
    let mut c = broker.worker("c");
    c.subscribe("q", 1);
    assert_eq!(c.task()["payload"], "wait");
}

#[test]
fn to_a_group() {
    let broker = Broker::in_memory();
    let mut outsider = broker.worker("outsider");
    outsider.subscribe("q", 10);
    let mut members: Vec<Ws> = (0..2)
        .map(|n| {
            let mut ws = broker.ws();
            ws.gets("welcome", json!({"type": "hello", "worker": format!("m{n}"), "groups": ["g"]}));
            ws.subscribe("q", 10);
            ws
        })
        .collect();
    let mut producer = broker.ws();
    for number in 0..4 {
        producer.submit(json!({"queue": "q", "payload": number, "to": {"group": "g"}}));
    }
    for (nth, member) in members.iter_mut().enumerate() {
        assert_eq!([member.task(), member.task()].map(|task| task["payload"].clone()), [nth, nth + 2]);
    }
    assert!(outsider.so_far().is_empty());
}

#[test]
fn to_all_ends_with_what_became_of_each() {
    let broker = Broker::start();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    a.subscribe("q", 1);
    b.subscribe("q", 1);
    let mut producer = broker.ws();
    let mut to_all = |complete: Value| {
        let task = producer.submit(json!({"queue": "q", "to": {"all": true}, "complete": complete, "max_attempts": 1, "watch": true}));
        let (at_a, at_b) = (a.task(), b.task());
        assert_eq!((&at_a["task"], &at_b["task"]), (&json!(task), &json!(task)));
        assert_ne!(at_a["lease"], at_b["lease"]);
        a.gets("settled", json!({"type": "ack", "lease": at_a["lease"], "result": 1}));
        b.gets("settled", json!({"type": "nack", "lease": at_b["lease"], "error": "no"}));
        let finished = producer.wait_for("finished");
        assert_eq!(finished["task"], task);
        finished
    };
    let finished = to_all(Value::Null);
    assert_eq!(finished["state"], "dead");
    assert_eq!([&finished["delivered"], &finished["acked"], &finished["failed"]], [2, 1, 1]);
    let outcomes = finished["recipients"].as_array().unwrap();
    assert_eq!(
        (&outcomes[0]["worker"], &outcomes[0]["state"], &outcomes[0]["error"]),
        (&json!("b"), &json!("dead"), &json!("no"))
    );
    assert_eq!(
        (&outcomes[1]["worker"], &outcomes[1]["state"], &outcomes[1]["result"]),
        (&json!("a"), &json!("done"), &json!(1))
    );
    assert_eq!(to_all(json!("any"))["state"], "done");
    assert_eq!(to_all(json!({"quorum": 1}))["state"], "done");
    assert_eq!(to_all(json!({"quorum": 2}))["state"], "dead");

    let mut lonely = broker.ws();
    lonely.submit(json!({"queue": "empty", "to": {"all": true}, "watch": true}));
    let finished = lonely.wait_for("finished");
    assert_eq!(
        [&finished["state"], &finished["delivered"], &finished["acked"]],
        [&json!("done"), &json!(0), &json!(0)]
    );
}

/// What was told of a task to all was of its first recipient: `attempt` 1 while another had its third, the history of one.
#[test]
fn a_task_to_all_is_told_of_all_its_recipients() {
    let broker = Broker::start();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    a.subscribe("q", 1);
    b.subscribe("q", 1);
    let task = broker.submit("q", &json!({"to": {"all": true}, "max_attempts": 3}));
    let delivery = a.task();
    a.ack(&delivery);
    let told = |standing: &Value| {
        let history = standing["history"].as_array().unwrap();
        let words: Vec<_> =
            history.iter().map(|failed| failed["error"].as_str().unwrap().to_owned()).collect();
        (standing["attempt"].as_u64().unwrap(), standing["error"].clone(), words)
    };
    for (attempt, word) in [(1, "one"), (2, "two"), (3, "three")] {
        let delivery = b.task();
        assert_eq!(delivery["attempt"], attempt);
        b.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": word, "delay_ms": 0}));
        if attempt == 1 {
            assert_eq!(told(&broker.task(&task)), (2, json!("one"), vec!["one".to_owned()]));
        }
    }
    let words = ["one", "two", "three"].map(str::to_owned).to_vec();
    let standing = broker.task(&task);
    assert_eq!((&standing["state"], &standing["max_attempts"]), (&json!("dead"), &json!(3)));
    assert_eq!(told(&standing), (3, json!("1 of 2 recipients failed"), words));

    // The same where it went well at last: of one that ended, what is kept is told.
    let task = broker.submit("q", &json!({"to": {"all": true}, "max_attempts": 3}));
    let delivery = b.task();
    b.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": "once", "delay_ms": 0}));
    for ws in [&mut a, &mut b] {
        let delivery = ws.task();
        ws.ack(&delivery);
    }
    let standing = broker.task(&task);
    assert_eq!(standing["state"], "done");
    assert_eq!(told(&standing), (2, Value::Null, vec!["once".to_owned()]));
}

/// Who breaks off says why; who waited is told of, and counted, too.
#[test]
fn a_task_to_all_that_is_cancelled_tells_of_those_who_work_and_those_who_wait() {
    let broker = Broker::start();
    let (mut works, mut waits) = (broker.worker("works"), broker.worker("waits"));
    works.subscribe("q", 1);
    waits.subscribe("q", 0);
    let mut producer = broker.ws();
    let task = producer.submit(json!({"queue": "q", "to": {"all": true}, "watch": true}));
    let delivery = works.task();
    broker.delete(&format!("/v1/tasks/{task}?grace_ms=60000"));
    works.wait_for("stop");
    works.gets("settled", json!({"type": "cancelled", "lease": delivery["lease"], "error": "half way"}));
    let mut ends = Vec::new();
    let finished = loop {
        let message = producer.next();
        match message["type"].as_str().unwrap() {
            "event" if message["state"] == "cancelled" => {
                ends.push((message["worker"].clone(), message["error"].clone()));
            }
            "finished" => break message,
            _ => {}
        }
    };
    assert_eq!(ends, [(json!("waits"), Value::Null), (json!("works"), json!("half way"))]);
    assert_eq!(finished["state"], "cancelled");
    assert_eq!([&finished["delivered"], &finished["acked"], &finished["failed"]], [1, 0, 2]);
    let mut recipients: Vec<_> = finished["recipients"].as_array().unwrap().clone();
    recipients.sort_by_key(|recipient| recipient["worker"].to_string());
    let told: Vec<_> = recipients.iter().map(|r| (&r["worker"], &r["state"], &r["error"])).collect();
    let cancelled = json!("cancelled");
    assert_eq!(
        told,
        [(&json!("waits"), &cancelled, &Value::Null), (&json!("works"), &cancelled, &json!("half way"))]
    );
}

#[test]
fn a_worker_that_is_killed_loses_its_tasks_to_another_at_once() {
    let broker = Broker::start();
    let mut doomed = broker.worker("doomed");
    doomed.subscribe("q", 3);
    let mut producer = broker.ws();
    let tasks: Vec<String> =
        (0..3).map(|_| producer.submit(json!({"queue": "q", "ack_timeout_ms": 86_400_000}))).collect();
    for _ in 0..3 {
        doomed.task();
    }
    let mut heir = broker.worker("heir");
    heir.subscribe("q", 10);
    doomed.hang_up();
    for task in &tasks {
        let again = heir.task();
        assert_eq!(again["task"], *task, "in their old order");
        assert_eq!((&again["redelivered"], &again["attempt"]), (&json!(true), &json!(2)));
    }
    assert_eq!(
        broker.task(&tasks[0])["history"][0],
        json!({"attempt": 1, "worker": "doomed", "reason": "worker_lost", "error": null})
    );
}

#[test]
fn an_attempt_that_has_not_started_is_not_charged() {
    let broker = Broker::in_memory();
    let mut heir = broker.worker("heir");
    for started in [false, true] {
        let mut doomed = broker.ws();
        doomed.gets("subscribed", json!({"type": "subscribe", "queue": "q", "explicit_start": true}));
        doomed.submit(json!({"queue": "q"}));
        let task = doomed.task();
        if started {
            doomed.gets("ok", json!({"type": "start", "lease": task["lease"]}));
        }
        doomed.hang_up();
        heir.subscribe("q", 1);
        let again = heir.task();
        assert_eq!(
            (&again["attempt"], &again["redelivered"]),
            (&json!(1 + u64::from(started)), &json!(true))
        );
        heir.ack(&again);
        heir.gets("ok", json!({"type": "unsubscribe", "queue": "q"}));
    }
}

#[test]
fn an_ack_timeout_revokes_and_attempts_end_as_a_dead_letter() {
    let broker = Broker::start();
    let mut ws = broker.worker("mute");
    ws.subscribe("q", 1);
    let task = ws.submit(json!({"queue": "q", "ack_timeout_ms": 100, "max_attempts": 3, "backoff": {"initial_ms": 10}, "watch": true}));
    for attempt in 1..=3 {
        let delivery = ws.task();
        assert_eq!((&delivery["attempt"], &delivery["redelivered"]), (&json!(attempt), &json!(attempt > 1)));
        let revoked = ws.wait_for("revoked");
        assert_eq!((&revoked["lease"], &revoked["reason"]), (&delivery["lease"], &json!("ack_timeout")));
        ws.refused("lease_lost", json!({"type": "ack", "lease": delivery["lease"]}));
    }
    let finished = ws.wait_for("finished");
    assert_eq!((&finished["state"], &finished["attempts"]), (&json!("dead"), &json!(3)));
    let history = broker.task(&task)["history"].clone();
    let reasons: Vec<&str> =
        history.as_array().unwrap().iter().map(|one| one["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["ack_timeout"; 3]);
    assert_eq!(broker.count("q", "dead"), 1);
}

#[test]
fn a_run_limit_ends_an_attempt_whatever_extend_says() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    ws.submit(json!({"queue": "q", "timeout_ms": 100, "max_attempts": 1, "watch": true}));
    let task = ws.task();
    let left = ws.ask(json!({"type": "extend", "lease": task["lease"], "ack_timeout_ms": 60_000}));
    assert!(left["ack_timeout_ms"] == 60_000 || left["code"] == "lease_lost", "{left}");
    assert_eq!(ws.wait_for("revoked")["reason"], "run_limit");
    assert_eq!(ws.wait_for("finished")["state"], "dead");
}

#[test]
fn extend_and_progress_keep_a_lease() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 2);
    let kept = ws.submit(json!({"queue": "q", "ack_timeout_ms": 3000, "watch": true}));
    let short = ws.submit(json!({"queue": "q", "ack_timeout_ms": 60_000}));
    let (held, other) = (ws.task(), ws.task());
    let answer =
        ws.gets("ok", json!({"type": "extend", "lease": held["lease"], "ack_timeout_ms": 86_400_000}));
    assert_eq!(answer["ack_timeout_ms"], 86_400_000);
    ws.gets("ok", json!({"type": "progress", "lease": held["lease"], "percent": 42.5, "data": {"sent": 17}}));
    let event = ws.wait("progress", |message| message["type"] == "event" && !message["percent"].is_null());
    assert_eq!(
        (&event["task"], &event["state"], &event["percent"]),
        (&json!(kept), &json!("leased"), &json!(42.5))
    );
    assert_eq!((&event["data"], &event["worker"]), (&json!({"sent": 17}), &held_by(&broker, &kept)));
    // Shorter works too: this one goes first.
    ws.gets("ok", json!({"type": "extend", "lease": other["lease"], "ack_timeout_ms": 100}));
    let revoked = ws.wait_for("revoked");
    assert_eq!(revoked["lease"], other["lease"]);
    assert_eq!(broker.task(&short)["history"][0]["reason"], "ack_timeout");
    ws.ack(&held);
}

fn held_by(broker: &Broker, task: &str) -> Value {
    broker.task(task)["worker"].clone()
}

#[test]
fn events_count_up_and_end_with_finished() {
    let broker = Broker::start();
    let mut producer = broker.ws();
    let task = producer.submit(json!({"queue": "q", "watch": true, "backoff": {"initial_ms": 20}}));
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let delivery = ws.task();
    ws.gets("ok", json!({"type": "start", "lease": delivery["lease"]}));
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": "once"}));
    let delivery = ws.task();
    ws.ack(&delivery);
    let mut events = Vec::new();
    let finished = loop {
        let message = producer.next();
        match message["type"].as_str().unwrap() {
            "event" => events.push(message),
            "finished" => break message,
            _ => {}
        }
    };
    let states: Vec<(&str, bool)> = events
        .iter()
        .map(|event| (event["state"].as_str().unwrap(), event["started"].as_bool().unwrap()))
        .collect();
    let expected = [
        ("queued", false),
        ("leased", false),
        ("leased", true),
        ("retrying", false),
        ("queued", false),
        ("leased", false),
    ];
    assert_eq!(states, expected);
    let seqs: Vec<u64> =
        events.iter().chain([&finished]).map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=7).collect::<Vec<u64>>());
    assert_eq!((&events[3]["error"], &finished["attempts"]), (&json!("once"), &json!(2)));
    // Who asks after the end hears the end.
    let mut late = broker.ws();
    late.gets("ok", json!({"type": "watch", "task": task}));
    assert_eq!(late.wait_for("finished")["seq"], 7);
}

#[test]
fn a_nack_says_when_and_whether_to_try_again() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let task = ws.submit(json!({"queue": "q"}));
    let delivery = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "delay_ms": 86_400_000}));
    assert_eq!(broker.task(&task)["state"], "retrying");
    let task = ws.submit(json!({"queue": "q"}));
    let delivery = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "delay_ms": 0}));
    let delivery = ws.task();
    assert_eq!((&delivery["task"], &delivery["attempt"]), (&json!(task), &json!(2)));
    ws.gets(
        "settled",
        json!({"type": "nack", "lease": delivery["lease"], "retry": false, "error": "x".repeat(5000)}),
    );
    let shown = broker.task(&task);
    assert_eq!(shown["state"], "dead");
    assert_eq!(shown["error"].as_str().unwrap().len(), 4096);
}

#[test]
fn a_release_is_free_and_goes_to_another_first() {
    let broker = Broker::start();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    a.subscribe("q", 1);
    let task = a.submit(json!({"queue": "q"}));
    let delivery = a.task();
    b.subscribe("q", 1);
    a.gets("settled", json!({"type": "release", "lease": delivery["lease"]}));
    let delivery = b.task();
    assert_eq!((&delivery["attempt"], &delivery["redelivered"]), (&json!(1), &json!(true)));
    b.gets("settled", json!({"type": "release", "lease": delivery["lease"], "delay_ms": 86_400_000}));
    assert_eq!(broker.task(&task)["state"], "scheduled");
    // Nobody else there: after a while it is offered again to whoever released it.
    b.gets("ok", json!({"type": "unsubscribe", "queue": "q"}));
    let task = a.submit(json!({"queue": "q"}));
    let delivery = a.task();
    a.gets("settled", json!({"type": "release", "lease": delivery["lease"]}));
    assert_eq!(a.task()["task"], task);
}

#[test]
fn delays_ttls_and_priorities() {
    let broker = Broker::start();
    let mut producer = broker.ws();
    for (payload, priority) in [("low", 0), ("normal", 4), ("high", 9), ("higher still", 9)] {
        producer.submit(json!({"queue": "q", "payload": payload, "priority": priority}));
    }
    let late = producer.submit(json!({"queue": "q", "payload": "delayed", "delay_ms": 200, "priority": 9}));
    let past = "2001-01-01T00:00:00Z";
    producer.submit(json!({"queue": "q", "payload": "past", "run_at": past, "priority": 5}));
    let future = producer.submit(json!({"queue": "q", "run_at": "2100-01-01T00:00:00+01:00"}));
    let expired = producer.submit(json!({"queue": "other", "ttl_ms": 1, "watch": true}));
    assert_eq!(broker.task(&future)["state"], "scheduled");
    let mut ws = broker.ws();
    ws.subscribe("q", 5);
    let order: Vec<Value> = (0..5).map(|_| ws.task()["payload"].clone()).collect();
    // The delayed one may have become due meanwhile.
    let order: Vec<&Value> = order.iter().filter(|payload| **payload != "delayed").collect();
    assert_eq!(order[..4], ["high", "higher still", "past", "normal"]);
    ws.subscribe("q", 10);
    until("the delayed task to be delivered", || (broker.task(&late)["state"] == "leased").then_some(()));
    let finished = producer.wait_for("finished");
    assert_eq!((&finished["task"], &finished["state"]), (&json!(expired), &json!("expired")));
    // A ttl that runs out under a worker's hands takes the lease back.
    let mut ws = broker.ws();
    ws.subscribe("held", 1);
    ws.submit(json!({"queue": "held", "ttl_ms": 300}));
    let delivery = ws.task();
    assert_eq!(
        ws.wait_for("revoked"),
        json!({"type": "revoked", "lease": delivery["lease"], "reason": "expired"})
    );
}

#[test]
fn mode_auto_is_settled_when_written() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    ws.gets("subscribed", json!({"type": "subscribe", "queue": "q", "mode": "auto", "credit": 1}));
    let tasks: Vec<String> = (0..20).map(|_| ws.submit(json!({"queue": "q"}))).collect();
    for task in &tasks {
        let delivery = ws.task();
        assert_eq!((&delivery["task"], &delivery["lease"]), (&json!(task), &Value::Null));
    }
    until("all to be done", || (broker.count("q", "done") == 20).then_some(()));
}

#[test]
fn a_session_may_work_on_several_queues() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("a", 1);
    ws.subscribe("b", 1);
    let task = ws.submit(json!({"queue": "b", "payload": "b"}));
    ws.submit(json!({"queue": "a", "payload": "a"}));
    let first = ws.task();
    assert_eq!((&first["queue"], &first["task"]), (&json!("b"), &json!(task)));
    assert_eq!(ws.task()["queue"], "a");
    ws.submit(json!({"queue": "b", "payload": "next"}));
    ws.gets("ok", json!({"type": "unsubscribe", "queue": "b"}));
    // The lease stays after the subscription.
    ws.ack(&first);
    assert!(ws.so_far().iter().all(|message| message["type"] != "task"));
    assert_eq!(broker.count("b", "queued"), 1);
}
