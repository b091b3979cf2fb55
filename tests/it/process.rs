//! The broker as a process: its start, its ends, and what its ends leave.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Broker, Heard, Output, Tokens, Ws, command, pause, until};

#[test]
fn a_second_broker_on_the_directory_exits_4_and_the_first_is_undisturbed() {
    let mut broker = Broker::start();
    let task = broker.submit("q", &json!({"payload": 1}));
    let second = broker.fails_to_start();
    assert_eq!(second.code, Some(4), "{second:?}");
    assert!(second.err.contains("locked"), "{second:?}");
    for verb in [&["check"][..], &["repair", "--quarantine"]] {
        let looked = broker.store(verb);
        assert_eq!(looked.code, Some(4), "{looked:?}");
    }
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let delivery = ws.task();
    assert_eq!(delivery["task"], task);
    ws.ack(&delivery);
    broker.stop();
}

#[test]
fn a_port_that_is_taken_exits_2_with_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut serve = command(&["serve", "--listen", &address.to_string(), "--data-dir"]);
    let output = Output::of(serve.arg(directory.path()));
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(
        output.err.contains("--listen") && output.err.contains(&address.port().to_string()),
        "{output:?}"
    );
}

#[test]
fn a_configuration_that_cannot_be_exits_2() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("taskyard.toml");
    let fails = |arguments: &[&str], expected: &str| {
        let mut serve = command(&["serve", "--data-dir"]);
        let output = Output::of(serve.arg(directory.path().join("data")).args(arguments));
        assert_eq!(output.code, Some(2), "{arguments:?}: {output:?}");
        assert!(output.err.contains(expected), "{arguments:?}: {output:?}");
    };
    fails(&["--listen", "0.0.0.0:0"], "authentication");
    fails(&["--listen", "0.0.0.0:0"], "TLS");
    fails(&["--listen", "nowhere"], "127.0.0.1:7070");
    fails(&["--message-bytes", "5"], "1024 to 16777216");
    fails(&["--segment-bytes", "70000"], "4096");
    fails(&["--engine", "paper"], "embedded");
    fails(&["--no-such-flag"], "--no-such-flag");
    let file_text = file.to_str().unwrap();
    fails(&["--config", file_text], file_text);
    std::fs::write(&file, "listn = \"127.0.0.1:0\"\n").unwrap();
    fails(&["--config", file_text], "listn");
    std::fs::write(&file, "ping_ms = \"often\"\n").unwrap();
    fails(&["--config", file_text], "ping_ms");
    assert!(!directory.path().join("data").exists(), "nothing was made");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("taskyard.toml");
    std::fs::write(&file, "engine = \"memory\"\nping_ms = 1111\nmessage_bytes = 2048\ndrain_ms = 5\n")
        .unwrap();
    let broker = Broker::with_environment(
        &[("TASKYARD_PING_MS", "2222"), ("TASKYARD_MESSAGE_BYTES", "4096")],
        &["--config", file.to_str().unwrap(), "--message-bytes", "8192"],
    );
    let welcome = broker.ws().gets("welcome", json!({"type": "hello"}));
    assert_eq!(welcome["ping_ms"], 2222);
    assert_eq!(welcome["limits"]["message_bytes"], 8192);
    assert!(broker.logged("listening").contains("in memory only"), "the file chose the engine");
}

/// A stop with nothing to wait for waited ten seconds for the disk to confirm what it had confirmed
/// long before.
#[test]
fn a_stop_with_nothing_to_do_does_not_wait_for_the_disk() {
    for engine in ["memory", "embedded"] {
        let mut broker = Broker::with(&["--engine", engine]);
        let mut ws = broker.ws();
        ws.subscribe("q", 1);
        ws.submit(json!({"queue": "q"}));
        let task = ws.task();
        ws.ack(&task);
        ws.hang_up();
        broker.stop();
        let log = broker.whole_log();
        assert!(!log.contains("WARN") || engine == "memory", "{log}");
        assert!(!log.contains("did not confirm"), "{log}");
    }
}

#[test]
fn sigterm_lets_workers_finish_what_they_hold_and_loses_nothing() {
    let mut broker = Broker::start();
    let mut worker = broker.ws();
    worker.subscribe("q", 2);
    let mut producer = broker.ws();
    let held: Vec<String> = (0..2).map(|n| producer.submit(json!({"queue": "q", "payload": n}))).collect();
    let waiting = producer.submit(json!({"queue": "q", "payload": "waits"}));
    let deliveries = [worker.task(), worker.task()];

    broker.signal("TERM");
    for ws in [&mut worker, &mut producer] {
        let away = ws.wait_for("going_away");
        assert_eq!(away["reason"], "restart");
        assert!(away["grace_ms"].as_u64().unwrap() <= 30_000);
        // A session is kept for 5 s, and who comes back as late as it is told finds it.
        assert!(away["reconnect_after_ms"].as_u64().unwrap() < 2500);
    }
    broker.get("/readyz").is_error(503, "draining");
    assert_eq!(broker.get("/healthz").status, 200);
    broker.post("/v1/queues/q/tasks", &json!({})).is_error(503, "draining");
    let request = crate::support::upgrade_request(broker.address, "/ws", "");
    crate::support::http::exchange(broker.address, request.as_bytes()).is_error(503, "draining");
    let error = producer.refused("draining", json!({"type": "submit", "queue": "q"}));
    assert!(error["retry_after_ms"].is_u64());

    worker.ack(&deliveries[0]);
    // The credit is free again, and still nothing more comes.
    let kinds: Vec<Value> = worker.so_far().into_iter().map(|message| message["type"].clone()).collect();
    assert!(!kinds.contains(&json!("task")), "{kinds:?}");
    // The last lease ends it.
    worker.gets("settled", json!({"type": "ack", "lease": deliveries[1]["lease"], "result": "late"}));
    worker.closes(1012);
    producer.closes(1012);
    assert_eq!(broker.ended(), 0);

    broker.start_again();
    for task in &held {
        assert_eq!(broker.task(task)["state"], "done");
    }
    assert_eq!(broker.task(&held[1])["result"], "late");
    let mut worker = broker.ws();
    worker.subscribe("q", 10);
    let delivery = worker.task();
    assert_eq!(delivery["task"], waiting);
    assert_eq!(delivery["redelivered"], false, "it was never handed out, and the stop was clean");
}

#[test]
fn a_drain_that_takes_too_long_ends_and_its_tasks_come_back_flagged_and_free() {
    let mut broker = Broker::with(&["--drain-ms", "1"]);
    let mut worker = broker.ws();
    worker.subscribe("q", 1);
    let task = worker.submit(json!({"queue": "q"}));
    worker.task();
    broker.signal("TERM");
    worker.closes(1012);
    assert_eq!(broker.ended(), 0);
    broker.start_again();
    let mut worker = broker.ws();
    worker.subscribe("q", 1);
    let again = worker.task();
    assert_eq!(
        (&again["task"], &again["attempt"], &again["redelivered"]),
        (&json!(task), &json!(1), &json!(true))
    );
}

#[test]
fn a_second_sigterm_ends_the_drain_at_once_and_loses_nothing() {
    let mut broker = Broker::with(&["--drain-ms", "86400000"]);
    let mut worker = broker.ws();
    worker.subscribe("q", 1);
    let task = worker.submit(json!({"queue": "q"}));
    worker.task();
    broker.signal("TERM");
    worker.wait_for("going_away");
    broker.signal("TERM");
    worker.closes(1012);
    assert_eq!(broker.ended(), 0);
    broker.start_again();
    let mut worker = broker.ws();
    worker.subscribe("q", 1);
    assert_eq!(worker.task()["task"], task);
}

/// A second signal while sockets were saying goodbye ended the process by a panic.
#[test]
fn a_second_sigterm_during_the_goodbye_is_a_clean_end_too() {
    let mut broker = Broker::start();
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    broker.signal("TERM");
    ws.wait_for("going_away");
    // The close frame is not answered: the goodbye takes its time.
    let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended without a close frame") };
    assert_eq!(frame.first, 0x88);
    // The store is closed by then.
    until("the port to be free", || TcpListener::bind(broker.address).ok());
    broker.signal("TERM");
    assert_eq!(broker.ended(), 0);
    let log = broker.whole_log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn after_kill_9_what_was_confirmed_is_there_and_what_was_out_is_flagged() {
    let mut broker = Broker::start();
    let mut ws = broker.ws();
    ws.subscribe("q", 2);
    let done = ws.submit(json!({"queue": "q", "payload": 0}));
    let delivery = ws.task();
    ws.gets("settled", json!({"type": "ack", "lease": delivery["lease"], "result": {"n": 0}}));
    let out = ws.submit(json!({"queue": "q", "payload": 1}));
    ws.task();
    let failed = ws.submit(json!({"queue": "q", "payload": 2, "max_attempts": 3}));
    let delivery = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": "bad", "delay_ms": 0}));
    ws.task();
    let later = ws.submit(json!({"queue": "q", "payload": 3, "delay_ms": 86_400_000}));
    let dead = ws.submit(json!({"queue": "other", "max_attempts": 1}));
    ws.subscribe("other", 1);
    let delivery = ws.task();
    ws.gets("settled", json!({"type": "nack", "lease": delivery["lease"], "error": "worse"}));

    broker.kill();
    assert_eq!(ws.hear(), Heard::End);
    broker.start_again_at_its_port();

    let task = broker.task(&done);
    assert_eq!((&task["state"], &task["result"]), (&json!("done"), &json!({"n": 0})));
    let task = broker.task(&dead);
    assert_eq!((&task["state"], &task["error"]), (&json!("dead"), &json!("worse")));
    assert_eq!(task["history"][0]["reason"], "nack");
    assert_eq!(broker.task(&later)["state"], "scheduled");
    let mut ws = broker.ws();
    ws.subscribe("q", 10);
    let again = [ws.task(), ws.task()];
    assert_eq!([&again[0]["task"], &again[1]["task"]], [&json!(out), &json!(failed)]);
    assert!(again.iter().all(|task| task["redelivered"] == true), "{again:?}");
    assert_eq!(again[0]["attempt"], 1, "what the broker did is not charged");
    assert_eq!(again[1]["attempt"], 2);
    // A lease of the process before is nobody's.
    ws.refused("lease_lost", json!({"type": "ack", "lease": delivery["lease"]}));
}

/// The sum of a queue's counts is what was accepted.
fn counts(broker: &Broker, queue: &str) -> (Value, u64) {
    let counts = broker.get(&format!("/v1/queues/{queue}")).json()["counts"].clone();
    let sum = counts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    (counts, sum)
}

#[test]
fn the_counts_agree_across_restarts() {
    let mut broker = Broker::with(&["--segment-bytes", "65536"]);
    let mut accepted = 0;
    for round in 0..3 {
        let mut ws = broker.ws();
        for number in 0..40 {
            let mut message = json!({"queue": "q", "payload": "x".repeat(1000), "max_attempts": 1});
            match number % 4 {
                0 => message["delay_ms"] = json!(86_400_000),
                1 => message["ttl_ms"] = json!(1),
                _ => {}
            }
            ws.submit(message);
            accepted += 1;
        }
        ws.subscribe("q", 2);
        for _ in 0..4 {
            let task = ws.task();
            ws.ack(&task);
            let task = ws.task();
            ws.gets("settled", json!({"type": "nack", "lease": task["lease"]}));
        }
        until("what has expired to be counted", || {
            (broker.count("q", "expired") == 10 * (round + 1)).then_some(())
        });
        ws.gets("ok", json!({"type": "bye"}));
        until("the tasks to be back", || (broker.count("q", "leased") == 0).then_some(()));
        let (before, sum) = counts(&broker, "q");
        assert_eq!(sum, accepted, "{before}");
        if round == 1 {
            broker.kill();
        } else {
            broker.stop();
        }
        broker.start_again();
        let (after, sum) = counts(&broker, "q");
        assert_eq!(before, after);
        assert_eq!(sum, accepted);
    }
}

#[test]
fn a_worker_that_was_connected_finds_the_broker_again() {
    let mut broker = Broker::start();
    let mut ws = Ws::open(broker.address, "/ws?queue=q", &[]);
    ws.wait_for("subscribed");
    broker.stop();
    broker.start_again_at_its_port();
    let mut ws = Ws::open(broker.address, "/ws?queue=q", &[]);
    ws.wait_for("subscribed");
    broker.submit("q", &json!({}));
    ws.task();
}

/// Acks of that time lie with the kernel when the process goes on: a lease that ended meanwhile, long ago or just now, is
/// not lost before they are read.
#[test]
fn an_ack_that_came_while_the_process_stood_still_came_in_time() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let broker = Broker::in_memory();
    let mut workers: Vec<Ws> = (0..20).map(|_| broker.ws()).collect();
    for worker in &mut workers {
        worker.subscribe("q", 1);
    }
    let mut producer = broker.ws();
    // So much after the first lease's end at least.
    for late in [0, 1, 2, 5, 20, 60, 500] {
        let (began, tasks, deliveries) = until("it to stand still in time", || {
            let task = json!({"queue": "q", "ack_timeout_ms": TIMEOUT.as_millis() as u64, "max_attempts": 1});
            let began = Instant::now();
            let tasks: Vec<String> = workers.iter().map(|_| producer.submit(task.clone())).collect();
            let deliveries: Vec<Value> = workers.iter_mut().map(Ws::task).collect();
            stand_still(&broker);
            if began.elapsed() < TIMEOUT {
                return Some((began, tasks, deliveries));
            }
            // On a machine this busy some leases may have ended before.
            broker.signal("CONT");
            for (worker, delivery) in workers.iter_mut().zip(deliveries) {
                worker.ask(json!({"type": "ack", "lease": delivery["lease"]}));
            }
            None
        });
        for (worker, delivery) in workers.iter_mut().zip(deliveries) {
            worker.say(json!({"type": "ack", "lease": delivery["lease"]}));
        }
        pause((TIMEOUT + Duration::from_millis(late)).saturating_sub(began.elapsed()));
        broker.signal("CONT");
        for task in tasks {
            let state = until("the ack", || {
                let state = broker.task(&task)["state"].clone();
                (state != "leased").then_some(state)
            });
            assert_eq!(state, "done", "{late} ms late");
        }
    }
}

fn stand_still(broker: &Broker) {
    broker.signal("STOP");
    until("it to stand still", || broker.is_stopped().then_some(()));
}

#[test]
fn a_pong_that_came_while_the_process_stood_still_came_in_time() {
    const TIMEOUT: Duration = Duration::from_millis(1500);
    let timeout = TIMEOUT.as_millis().to_string();
    let broker = Broker::with(&["--ping-ms", "100", "--ping-timeout-ms", &timeout]);
    let mut worker = broker.ws();
    while !matches!(worker.hear(), Heard::Frame(frame) if frame.first == 0x89) {}
    stand_still(&broker);
    worker.frame(0x8a, b"");
    pause(TIMEOUT);
    broker.signal("CONT");
    worker.gets("pong", json!({"type": "ping"}));
}

#[test]
fn a_hello_that_came_while_the_process_stood_still_came_in_time() {
    const TIMEOUT: Duration = Duration::from_millis(1000);
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*"]);
    let broker = tokens.broker(&["--hello-timeout-ms", &TIMEOUT.as_millis().to_string()]);
    let mut slow: Vec<Ws> = (0..20).map(|_| broker.ws()).collect();
    for ws in &mut slow {
        ws.gets("pong", json!({"type": "ping"}));
    }
    stand_still(&broker);
    for ws in &mut slow {
        ws.say(json!({"type": "hello", "token": token}));
    }
    pause(TIMEOUT);
    broker.signal("CONT");
    for ws in &mut slow {
        assert_eq!(ws.next()["type"], "welcome");
    }
}

/// Its time is over before the acks are read.
#[test]
fn a_drain_during_which_the_process_stood_still_hears_the_acks_that_came() {
    const DRAIN: Duration = Duration::from_millis(1000);
    let mut broker = Broker::with(&["--drain-ms", &DRAIN.as_millis().to_string()]);
    let mut workers: Vec<Ws> = (0..20).map(|_| broker.ws()).collect();
    let mut deliveries = Vec::new();
    for worker in &mut workers {
        worker.subscribe("q", 1);
        worker.submit(json!({"queue": "q"}));
        deliveries.push(worker.task());
    }
    broker.signal("TERM");
    for worker in &mut workers {
        worker.wait_for("going_away");
    }
    stand_still(&broker);
    for (worker, delivery) in workers.iter_mut().zip(&deliveries) {
        worker.say(json!({"type": "ack", "lease": delivery["lease"]}));
    }
    pause(DRAIN);
    broker.signal("CONT");
    assert_eq!(broker.ended(), 0);
    broker.start_again();
    for delivery in deliveries {
        assert_eq!(broker.task(delivery["task"].as_str().unwrap())["state"], "done");
    }
}

/// A socket that took nothing until the process stood still, and all it was given while it did.
#[test]
fn what_a_slow_reader_took_while_the_process_stood_still_counts() {
    const TASKS: u64 = 24;
    let broker = Broker::start();
    let mut worker = broker.ws();
    let mut producer = broker.ws();
    let payload = "x".repeat(900 << 10);
    for _ in 0..TASKS {
        producer.submit(json!({"queue": "q", "payload": payload}));
    }
    worker.subscribe("q", TASKS);
    until("more to wait than may", || (broker.metric("taskyard_outbox_bytes_max") > 4 << 20).then_some(()));
    stand_still(&broker);
    let takes = std::thread::spawn(move || (0..TASKS).map(|_| worker.task()).count() as u64);
    pause(Duration::from_millis(1500));
    broker.signal("CONT");
    assert_eq!(takes.join().unwrap(), TASKS);
}
