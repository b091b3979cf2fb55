//! The rest of what a URL can ask for: `room`, and `raw=1`, which needs no protocol at all.

use serde_json::{Value, json};

use crate::support::{Broker, Heard, Tokens, Ws, until};

fn raw(broker: &Broker, what: &str) -> Ws {
    Ws::open(broker.address, &format!("/ws?{what}&raw=1"), &[])
}

/// The next frame: 0x81 is text, 0x82 are bytes.
#[track_caller]
fn frame(ws: &mut Ws) -> (u8, Vec<u8>) {
    match ws.hear() {
        Heard::Frame(frame) => (frame.first, frame.body),
        Heard::End => panic!("the socket ended"),
    }
}

#[track_caller]
fn text(ws: &mut Ws) -> String {
    let (first, body) = frame(ws);
    let text = String::from_utf8(body).unwrap();
    assert_eq!(first, 0x81, "{text}");
    text
}

/// What a raw socket in a room says for all to know that it is there: the first thing that it hears.
#[track_caller]
fn in_room(broker: &Broker, room: &str) -> Ws {
    let mut ws = raw(broker, &format!("room={room}"));
    ws.text("\"here\"");
    assert_eq!(text(&mut ws), "here");
    ws
}

#[test]
fn a_url_joins_a_room() {
    let broker = Broker::in_memory();
    let mut ws = Ws::open(broker.address, "/ws?room=lobby&worker=w", &[]);
    let welcome = ws.next();
    assert_eq!((&welcome["type"], &welcome["worker"]), (&json!("welcome"), &json!("w")));
    assert_eq!(ws.next(), json!({"type": "ok"}));
    let mut other = Ws::open(broker.address, "/ws?queue=q&credit=3&room=lobby", &[]);
    assert_eq!(other.next()["type"], "welcome");
    assert_eq!(other.next()["credit"], 3);
    assert_eq!(other.next(), json!({"type": "ok"}));
    other.say(json!({"type": "publish", "room": "lobby", "payload": [1, 2]}));
    for member in [&mut ws, &mut other] {
        assert_eq!(member.next()["payload"], json!([1, 2]));
    }
    // The words of this mode are words there, too.
    let task = ws.submit(json!({"queue": "q"}));
    assert_eq!(other.next()["task"], task);
    other.text("ack");
    until("the ack", || (broker.task(&task)["state"] == "done").then_some(()));
}

#[test]
fn alone_in_a_raw_room_one_hears_an_echo() {
    let broker = Broker::in_memory();
    let mut ws = raw(&broker, "room=echo");
    for said in ["hello", "", "ack", "nack", "{\"a\": 1,  \"b\":[]}", "null", "1.50", " spaced ", "\u{1f600}"]
    {
        ws.text(said);
        assert_eq!(text(&mut ws), said);
    }
    let bytes: Vec<u8> = (0..=255).collect();
    ws.binary(&bytes);
    assert_eq!(frame(&mut ws), (0x82, bytes));
    // Long, and in pieces.
    let long = "x".repeat(500_000);
    ws.frame(0x01, &long.as_bytes()[..200_000]);
    ws.frame(0x80, &long.as_bytes()[200_000..]);
    assert_eq!(text(&mut ws), long);
}

#[test]
fn a_raw_room_is_a_room() {
    let broker = Broker::in_memory();
    let (mut one, mut two) = (in_room(&broker, "r"), in_room(&broker, "r"));
    assert_eq!(text(&mut one), "here");
    let mut speaker = broker.worker("speaker");
    speaker.gets("ok", json!({"type": "join", "room": "r"}));
    speaker.gets("ok", json!({"type": "publish", "room": "r", "payload": {"from": "outside"}}));
    let mut packing = Ws::packing(broker.address);
    packing.gets("ok", json!({"type": "publish", "room": "r", "payload": {"n": [1, 2.5, null]}}));
    packing.gets("ok", json!({"type": "publish", "room": "r", "payload": "text"}));
    speaker.gets("ok", json!({"type": "publish", "room": "r", "payload_b64": "AAH+/w=="}));
    for ws in [&mut one, &mut two] {
        assert_eq!(text(ws), r#"{"from":"outside"}"#);
        assert_eq!(text(ws), r#"{"n":[1,2.5,null]}"#);
        assert_eq!(text(ws), "text");
        assert_eq!(frame(ws), (0x82, vec![0, 1, 0xfe, 0xff]));
    }
    one.text("not json");
    one.text("[1,2]");
    one.binary(&[7]);
    let heard = |ws: &mut Ws| {
        ws.wait("what the raw one says", |m| m["type"] == "room_message" && m["seq"].as_u64() > Some(6))
    };
    assert_eq!(heard(&mut speaker)["payload"], "not json");
    assert_eq!(heard(&mut speaker)["payload"], json!([1, 2]));
    assert_eq!(heard(&mut speaker)["payload_b64"], "Bw==");
    assert_eq!([text(&mut two), text(&mut two)], ["not json", "[1,2]"]);
}

#[test]
fn a_raw_queue_submits_and_takes() {
    let broker = Broker::in_memory();
    let mut worker = broker.worker("w");
    worker.subscribe("tasks", 10);
    // It takes none itself.
    let mut sender = raw(&broker, "queue=tasks&credit=0");
    for said in ["{\"to\":\"a\"}", "plain", "ack"] {
        sender.text(said);
    }
    sender.binary(&[1, 2, 3]);
    let payloads: Vec<Value> = (0..3)
        .map(|_| {
            let task = worker.task();
            worker.ack(&task);
            task["payload"].clone()
        })
        .collect();
    assert_eq!(payloads, [json!({"to": "a"}), json!("plain"), json!("ack")]);
    assert_eq!(worker.task()["payload_b64"], "AQID");

    let mut taker = raw(&broker, "queue=mine");
    let ids: Vec<String> = [
        json!({"payload": {"n": 1}}),
        json!({"payload": "words"}),
        json!({"payload_b64": "AQID"}),
        json!({}),
    ]
    .iter()
    .map(|task| broker.submit("mine", task))
    .collect();
    assert_eq!([text(&mut taker), text(&mut taker)], ["{\"n\":1}", "words"]);
    assert_eq!(frame(&mut taker), (0x82, vec![1, 2, 3]));
    assert_eq!(text(&mut taker), "null");
    // What is written is done.
    for id in &ids {
        until("the end of the task", || (broker.task(id)["state"] == "done").then_some(()));
    }
    taker.text("to myself");
    assert_eq!(text(&mut taker), "to myself");
}

/// There are no answers to wait for, so whoever sends fast sends many.
#[test]
fn many_raw_frames_at_once_are_all_taken() {
    let broker = Broker::start();
    let mut ws = in_room(&broker, "r");
    let all: Vec<u8> = (0..5000).flat_map(|nth: u32| Ws::masked(0x81, nth.to_string().as_bytes())).collect();
    ws.raw(&all);
    for nth in 0..5000_u32 {
        assert_eq!(text(&mut ws), nth.to_string());
    }
    // More than a session may have without their answer.
    let mut ws = raw(&broker, "queue=q&credit=0");
    ws.raw(&all);
    until("all to be accepted", || {
        let queue = broker.get("/v1/queues/q");
        (queue.status == 200 && queue.json()["counts"]["queued"] == 5000).then_some(())
    });
    ws.frame(0x88, &1000_u16.to_be_bytes());
    ws.closes(1000);
}

#[test]
fn a_raw_socket_hears_of_an_error_by_its_end() {
    let tokens = Tokens::new();
    let listener = tokens.create("listener", &["consume:*"]);
    let slow = tokens.create_with("slow", &["submit:*", "consume:*"], &["--messages-per-s", "1"]);
    let broker = tokens.broker(&[]);
    for what in ["room=r", "queue=q"] {
        let target = format!("/ws?{what}&raw=1");
        let mut ws = broker.by(&listener).ws_at(&target);
        ws.text("hello");
        assert_eq!(ws.closes(1008), "forbidden");
        let mut ws = broker.by(&slow).ws_at(&target);
        for _ in 0..50 {
            ws.raw_if_open(&Ws::masked(0x81, b"1"));
        }
        // What was taken before it comes before it.
        let reason = ws.closes(1013);
        assert_eq!(reason, "rate_limited");
    }
    // Without a token, or with one that may not listen, before the upgrade.
    let speaker = tokens.create("speaker", &["submit:*"]);
    until("the new token to be known", || (broker.by(&speaker).upgrade("/ws").status == 101).then_some(()));
    broker.by(&speaker).upgrade("/ws?room=r&raw=1").is_error(403, "forbidden");
    broker.by("wrong").upgrade("/ws?room=r&raw=1").is_error(401, "unauthorized");
}

#[test]
fn a_raw_socket_ends_and_is_pinged_like_any_other() {
    let broker = Broker::with(&["--engine", "memory", "--ping-ms", "100", "--ping-timeout-ms", "30000"]);
    let mut ws = raw(&broker, "room=r");
    assert_eq!(frame(&mut ws).0, 0x89);
    ws.frame(0x88, &1000_u16.to_be_bytes());
    ws.closes(1000);
}
