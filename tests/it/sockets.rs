//! Sockets over time: pings, silence, replaced names, slow readers.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Broker, Heard, Ws, until};

#[test]
fn a_ping_is_answered_with_its_body() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    for body in [&b""[..], b"x", &[7; 125]] {
        ws.frame(0x89, body);
        let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
        assert_eq!((frame.first, frame.body.as_slice()), (0x8a, body));
    }
    // An unasked pong is nothing.
    ws.frame(0x8a, b"unasked");
    ws.gets("pong", json!({"type": "ping"}));
}

#[test]
fn a_silent_worker_is_pinged_and_given_up_with_4201() {
    let broker = Broker::with(&["--engine", "memory", "--ping-ms", "100", "--ping-timeout-ms", "500"]);
    let mut ws = broker.ws();
    let welcome = ws.gets("welcome", json!({"type": "hello", "worker": "silent"}));
    assert_eq!(welcome["ping_ms"], 100);
    ws.subscribe("q", 1);
    let task = ws.submit(json!({"queue": "q"}));
    ws.task();
    // Its bytes are not read: neither pings nor the end are answered.
    loop {
        match ws.hear() {
            Heard::Frame(frame) if frame.first == 0x89 => {}
            Heard::Frame(frame) => {
                assert_eq!(frame.first, 0x88);
                assert_eq!(frame.body[..2], 4201_u16.to_be_bytes());
                break;
            }
            Heard::End => panic!("the socket ended without a close frame"),
        }
    }
    assert_eq!(ws.hear(), Heard::End);
    let mut other = broker.ws();
    other.subscribe("q", 1);
    let again = other.task();
    assert_eq!((&again["task"], &again["redelivered"]), (&json!(task), &json!(true)));
}

#[test]
fn a_worker_that_answers_pings_stays() {
    let broker = Broker::with(&["--engine", "memory", "--ping-ms", "100", "--ping-timeout-ms", "30000"]);
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    for _ in 0..5 {
        let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
        assert_eq!(frame.first, 0x89);
        ws.frame(0x8a, &frame.body);
    }
    ws.gets("pong", json!({"type": "ping"}));
}

#[test]
fn a_worker_name_that_is_taken_again_replaces_the_session() {
    let broker = Broker::in_memory();
    let mut first = broker.worker("w");
    first.subscribe("q", 1);
    let task = first.submit(json!({"queue": "q"}));
    let delivery = first.task();
    let mut second = broker.worker("w");
    first.closes(4009);
    second.subscribe("q", 1);
    let again = second.task();
    assert_eq!((&again["task"], &again["redelivered"]), (&json!(task), &json!(true)));
    second.refused("lease_lost", json!({"type": "ack", "lease": delivery["lease"]}));
    second.ack(&again);
}

#[test]
fn a_worker_name_that_is_taken_can_be_refused_instead() {
    let broker = Broker::with(&["--engine", "memory", "--worker-name-taken", "refuse"]);
    let mut first = broker.worker("w");
    let mut second = broker.ws();
    let error = second.refused("conflict", json!({"type": "hello", "worker": "w"}));
    assert!(error["message"].as_str().unwrap().contains('w'));
    second.closes(4009);
    first.gets("pong", json!({"type": "ping"}));
}

/// A peer that was told to go and does not: its socket must end all the same, and by the broker.
///
/// The broker said its close frame and then read on for as long as the peer kept talking: a replaced
/// worker that ignored its end held a descriptor for ever.
#[test]
fn a_peer_that_ignores_our_close_is_cut_off() {
    let broker = Broker::in_memory();
    let mut first = broker.worker("w");
    let _second = broker.worker("w");
    first.closes(4009);
    until("the broker to end the connection", || {
        let ended = !first.raw_if_open(&Ws::masked(0x8a, b""));
        ended.then_some(())
    });
}

#[test]
fn bye_returns_what_is_held_free_of_charge() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    let task = ws.submit(json!({"queue": "q"}));
    ws.task();
    ws.gets("ok", json!({"type": "bye"}));
    ws.closes(1000);
    let mut other = broker.ws();
    other.subscribe("q", 1);
    let again = other.task();
    assert_eq!(
        (&again["task"], &again["attempt"], &again["redelivered"]),
        (&json!(task), &json!(1), &json!(true))
    );
}

/// A worker that reads nothing is given 4130; what it had been sent goes to another at once.
///
/// The reader of such a socket was not told of its end, and the leases stayed with it until the pings
/// gave up on it, or for ever if it kept talking.
#[test]
fn a_slow_reader_is_closed_4130_and_another_gets_its_tasks() {
    let broker = Broker::with(&["--engine", "memory", "--message-bytes", "1048576"]);
    let mut slow = broker.worker("slow");
    slow.subscribe("q", 1024);
    let payload = "x".repeat(500_000);
    let mut producer = broker.ws();
    // Far more than the sockets' buffers and the outbox take; `slow` reads none of it.
    let tasks: Vec<String> =
        (0..40).map(|_| producer.submit(json!({"queue": "q", "payload": payload}))).collect();
    let mut quick = broker.worker("quick");
    quick.subscribe("q", 1);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < tasks.len() {
        let task = quick.task();
        assert_eq!(task["payload"].as_str().unwrap().len(), payload.len());
        quick.ack(&task);
        seen.insert(task["task"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, tasks.into_iter().collect());
    until("the close to be counted", || {
        broker.get("/metrics").text().contains("taskyard_closes_total{code=\"4130\"} 1").then_some(())
    });
}

/// The task that served a socket once died at its end, and left the socket counted.
#[test]
fn sockets_that_ended_are_not_counted() {
    let broker = Broker::in_memory();
    let connections = |count: &str| {
        let line = format!("taskyard_connections {count}\n");
        until("the connections to be counted", || {
            broker.get("/metrics").text().contains(&line).then_some(())
        });
    };
    let mut leaving = broker.ws();
    leaving.subscribe("q", 1);
    let mut gone = broker.ws();
    gone.subscribe("q", 1);
    connections("2");
    leaving.gets("ok", json!({"type": "bye"}));
    leaving.closes(1000);
    drop(leaving);
    drop(gone);
    connections("0");
}

/// Credit once handed out more than 4 MiB in one turn, and a worker that read as fast as it could was
/// closed as slow: its tasks died without having reached a socket.
#[test]
fn a_worker_that_reads_gets_all_its_credit_however_large() {
    let broker = Broker::in_memory();
    let payload = "x".repeat(900_000);
    let mut producer = broker.ws();
    let tasks: Vec<String> =
        (0..24).map(|_| producer.submit(json!({"queue": "q", "payload": payload}))).collect();
    let mut worker = broker.worker("w");
    worker.subscribe("q", 1024);
    for id in &tasks {
        let task = worker.task();
        assert_eq!((&task["task"], &task["redelivered"]), (&json!(id), &json!(false)));
    }
}

#[test]
fn a_slow_reader_that_reads_on_hears_4130() {
    let broker = Broker::in_memory();
    let mut slow = broker.worker("slow");
    slow.subscribe("q", 1024);
    let payload = "x".repeat(500_000);
    let mut producer = broker.ws();
    let is_connected = || broker.get("/v1/workers").text().contains("\"slow\"");
    while is_connected() {
        producer.submit(json!({"queue": "q", "payload": payload}));
    }
    // What was on its way comes first.
    let reason = slow.closes(4130);
    assert!(reason.contains("slow"), "{reason}");
}

/// What began to wait while it was little was given ten seconds, however much it became meanwhile.
#[test]
fn a_slow_reader_is_given_up_soon_once_much_waits() {
    let broker = Broker::in_memory();
    let mut slow = broker.worker("slow");
    slow.subscribe("q", 1024);
    let mut producer = broker.ws();
    let payload = "x".repeat(500_000);
    let mut began = Instant::now();
    // The later of them find it stuck, with less than the limit waiting.
    for _ in 0..40 {
        producer.submit(json!({"queue": "q", "payload": payload}));
        began = Instant::now();
    }
    let mut quick = broker.worker("quick");
    quick.subscribe("q", 1);
    quick.task();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
}
