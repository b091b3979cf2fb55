//! Metrics: what is counted of tasks that come back or do not, and that Prometheus reads all of it.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::http::metrics;
use crate::support::{Broker, Output, pause, until};

fn of(family: &str, reason: &str) -> String {
    format!("{family}{{queue=\"q\",reason=\"{reason}\"}}")
}

#[test]
fn tasks_that_come_back_are_counted_by_what_brought_them_back() {
    let mut broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    // Twice released, since the same worker gets it again only after a moment; then failed, lost, and late.
    broker.submit("q", &json!({"backoff": {"initial_ms": 0}, "ack_timeout_ms": 1000}));
    for _ in 0..2 {
        let lease = ws.task()["lease"].take();
        ws.gets("settled", json!({"type": "release", "lease": lease}));
    }
    let lease = ws.task()["lease"].take();
    ws.gets("settled", json!({"type": "nack", "lease": lease}));
    ws.task();
    drop(ws);
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    ws.task();
    assert_eq!(ws.wait_for("revoked")["reason"], "ack_timeout");
    ws.task();
    let series = metrics(&broker);
    for (reason, count) in [
        ("released", 2.0),
        ("nacked", 1.0),
        ("worker_lost", 1.0),
        ("timed_out", 1.0),
        ("restart", 0.0),
        ("redriven", 0.0),
    ] {
        assert_eq!(series[&of("taskyard_redeliveries_total", reason)], count, "{reason}");
    }
    let all = series["taskyard_tasks_total{event=\"redelivered\",queue=\"q\"}"];
    assert_eq!(all, 5.0, "the reasons are those of all redeliveries");
    // What was stored before this is durable with it: the failed attempts are not forgotten.
    broker.submit("other", &json!({}));
    broker.kill();
    broker.start_again();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let task = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": task["lease"], "retry": false}));
    let series = metrics(&broker);
    assert_eq!(series[&of("taskyard_redeliveries_total", "restart")], 1.0);
    assert_eq!(series[&of("taskyard_dead_letters_total", "rejected")], 1.0);
    assert_eq!(broker.post("/v1/queues/q/dead/redrive", &json!({})).status, 200);
    let task = ws.task();
    ws.ack(&task);
    let series = metrics(&broker);
    assert_eq!(series[&of("taskyard_redeliveries_total", "redriven")], 1.0);
    // Dead with four attempts, then done with one.
    let attempts = |le: &str| series[&format!("taskyard_task_attempts_bucket{{queue=\"q\",le=\"{le}\"}}")];
    assert_eq!([attempts("1"), attempts("3"), attempts("5"), attempts("+Inf")], [1.0, 1.0, 2.0, 2.0]);
    assert_eq!(series["taskyard_task_attempts_sum{queue=\"q\"}"], 5.0);
}

#[test]
fn dead_letters_are_counted_by_what_ended_them() {
    let broker = Broker::in_memory();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    let dead = |reason: &str| metrics(&broker)[&of("taskyard_dead_letters_total", reason)];
    let once = |more: Value| {
        let mut submit = json!({"max_attempts": 1});
        submit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        broker.submit("q", &submit)
    };
    once(json!({}));
    let lease = ws.task()["lease"].take();
    ws.gets("settled", json!({"type": "nack", "lease": lease}));
    assert_eq!(dead("nack"), 1.0);
    once(json!({"ack_timeout_ms": 100}));
    ws.wait_for("revoked");
    assert_eq!(dead("ack_timeout"), 1.0);
    once(json!({"timeout_ms": 100}));
    ws.wait_for("revoked");
    assert_eq!(dead("run_limit"), 1.0);
    let task = once(json!({"to": {"all": true}}));
    let lease =
        ws.wait("the one to all", |message| message["type"] == "task" && message["task"] == task)["lease"]
            .take();
    ws.gets("settled", json!({"type": "nack", "lease": lease}));
    assert_eq!(dead("recipients"), 1.0);
    let task = once(json!({}));
    ws.wait("the last", |message| message["type"] == "task" && message["task"] == task);
    drop(ws);
    until("the worker to be missed", || (dead("worker_lost") == 1.0).then_some(()));
    assert_eq!(metrics(&broker)["taskyard_tasks_total{event=\"dead\",queue=\"q\"}"], 5.0);
}

#[test]
fn each_hop_is_measured_by_queue() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 2);
    let count = |hop: &str, queue: &str| {
        let name = format!("taskyard_hop_seconds_count{{hop=\"{hop}\",queue=\"{queue}\"}}");
        metrics(&broker).get(&name).copied()
    };
    for _ in 0..2 {
        broker.submit("q", &json!({}));
    }
    broker.submit("other", &json!({}));
    let lease = ws.task()["lease"].take();
    ws.task();
    // A worker that takes its time: the sum tells.
    pause(Duration::from_millis(50));
    ws.gets("settled", json!({"type": "ack", "lease": lease}));
    until("the writes to be counted", || (count("assigned_to_sent", "q") == Some(2.0)).then_some(()));
    for (hop, in_q, in_other) in
        [("accepted_to_durable", 2.0, 1.0), ("durable_to_assigned", 2.0, 0.0), ("sent_to_settled", 1.0, 0.0)]
    {
        assert_eq!((count(hop, "q"), count(hop, "other")), (Some(in_q), Some(in_other)), "{hop}");
    }
    let series = metrics(&broker);
    let sum = series["taskyard_hop_seconds_sum{hop=\"sent_to_settled\",queue=\"q\"}"];
    assert!(sum >= 0.05, "{sum}");
    assert_eq!(series["taskyard_delivered_to_settled_seconds_sum"], sum);
    assert_eq!(series["taskyard_credit_free{queue=\"q\"}"], 1.0);
    assert_eq!(series["taskyard_unsettled_deliveries{queue=\"q\"}"], 1.0);
}

#[test]
fn sessions_payloads_and_the_process_are_told() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    let resume = ws.ask(json!({"type": "hello", "worker": "w", "resume": true}))["resume"].take();
    broker.submit("q", &json!({"payload": "0123456789"}));
    assert_eq!(broker.post("/v1/queues/q/pause", &json!({})).status, 200);
    drop(ws);
    let mut ws = broker.ws();
    assert_eq!(ws.ask(json!({"type": "hello", "resume": resume}))["resumed"], true);
    let mut other = broker.ws();
    other.ask(json!({"type": "hello", "resume": "0123456789abcdef0123456789abcdef"}));
    ws.gets("ok", json!({"type": "join", "room": "r"}));
    let series = metrics(&broker);
    for (name, value) in [
        ("taskyard_sessions", 2.0),
        ("taskyard_sessions_resumable", 2.0),
        ("taskyard_resumes_total{result=\"resumed\"}", 1.0),
        ("taskyard_resumes_total{result=\"unknown\"}", 1.0),
        ("taskyard_rooms", 1.0),
        ("taskyard_queues", 1.0),
        ("taskyard_queue_paused{queue=\"q\"}", 1.0),
        ("taskyard_payload_bytes{place=\"memory\"}", 12.0),
        ("taskyard_payload_bytes{place=\"disk\"}", 0.0),
        ("taskyard_storage_full", 0.0),
        ("taskyard_dropped_events_total{kind=\"room_message\"}", 0.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}");
    }
    for name in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_threads",
        "process_start_time_seconds",
        "taskyard_disk_free_bytes",
        "taskyard_disk_bytes",
        "taskyard_task_memory_bytes",
    ] {
        assert!(series[name] > 0.0, "{name}");
    }
    // The disk may be at work, or not.
    assert!(series.contains_key("taskyard_log_waiting_bytes"));
    let build = format!(
        "taskyard_build_info{{durable=\"true\",engine=\"embedded\",version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(series[&build], 1.0);
}

#[test]
fn promtool_finds_nothing_wrong() {
    if Command::new("promtool").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    {
        eprintln!("SKIPPED: promtool is not installed: on Debian, apt-get install prometheus");
        return;
    }
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 1);
    broker.submit("q", &json!({}));
    let task = ws.task();
    ws.ack(&task);
    let text = broker.get("/metrics").text().to_owned();
    let output = Output::with_input(
        Command::new("promtool").args(["check", "metrics"]).stdout(Stdio::piped()).stderr(Stdio::piped()),
        text.as_bytes(),
    );
    assert_eq!((output.code, output.err.as_str()), (Some(0), ""), "{}", output.out);
}
