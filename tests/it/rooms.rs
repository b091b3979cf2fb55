//! Rooms: what is said to all who are there, and what becomes of those who do not listen.

use serde_json::{Value, json};

use crate::support::{Broker, Heard, Tokens, Ws, handshake, until, upgrade_request};

#[track_caller]
fn join(ws: &mut Ws, room: &str) {
    ws.gets("ok", json!({"type": "join", "room": room}));
}

#[track_caller]
fn say(ws: &mut Ws, room: &str, payload: Value) {
    ws.gets("ok", json!({"type": "publish", "room": room, "payload": payload}));
}

/// The next that is said in a room: number and payload.
#[track_caller]
fn heard(ws: &mut Ws) -> (u64, Value) {
    let message = ws.wait_for("room_message");
    (message["seq"].as_u64().unwrap(), message["payload"].clone())
}

#[test]
fn all_in_a_room_hear_what_is_said_there_in_one_order() {
    let broker = Broker::in_memory();
    let mut members: Vec<Ws> = ["a", "b", "c"].map(|name| broker.worker(name)).into();
    let mut outside = broker.worker("outside");
    for member in &mut members {
        join(member, "lobby");
        // Twice is once.
        join(member, "lobby");
    }
    join(&mut outside, "elsewhere");
    for nth in 0..6_u64 {
        say(&mut members[nth as usize % 3], "lobby", json!({"nth": nth}));
    }
    // Whoever is not there may speak, and does not hear.
    say(&mut outside, "lobby", json!("from outside"));
    for member in &mut members {
        for nth in 0..6 {
            let message = member.wait_for("room_message");
            let from = ["a", "b", "c"][nth as usize % 3];
            assert_eq!(
                message,
                json!({"type": "room_message", "room": "lobby", "from": from, "seq": nth + 1, "payload": {"nth": nth}})
            );
        }
        assert_eq!(heard(member), (7, json!("from outside")));
    }
    assert_eq!(outside.so_far(), Vec::<Value>::new());
}

#[test]
fn a_speaker_may_leave_itself_out_and_sees_the_gap() {
    let broker = Broker::in_memory();
    let (mut speaker, mut other) = (broker.worker("speaker"), broker.worker("other"));
    join(&mut speaker, "r");
    join(&mut other, "r");
    say(&mut speaker, "r", json!(1));
    speaker.gets("ok", json!({"type": "publish", "room": "r", "payload": 2, "exclude_self": true}));
    say(&mut speaker, "r", json!(3));
    assert_eq!([heard(&mut speaker), heard(&mut speaker)], [(1, json!(1)), (3, json!(3))]);
    assert_eq!([1, 2, 3].map(|_| heard(&mut other)), [1, 2, 3].map(|nth| (nth, json!(nth))));
}

#[test]
fn who_has_left_hears_no_more_and_an_empty_room_forgets() {
    let broker = Broker::in_memory();
    let (mut a, mut b) = (broker.worker("a"), broker.worker("b"));
    join(&mut a, "r");
    join(&mut b, "r");
    say(&mut a, "r", json!("first"));
    a.gets("ok", json!({"type": "leave", "room": "r"}));
    // Where one is not one may leave.
    a.gets("ok", json!({"type": "leave", "room": "r"}));
    say(&mut a, "r", json!("second"));
    assert_eq!([heard(&mut b), heard(&mut b)], [(1, json!("first")), (2, json!("second"))]);
    assert_eq!(heard(&mut a), (1, json!("first")));
    assert_eq!(a.so_far(), Vec::<Value>::new());
    // The socket's end is a leave, too; whoever comes to an empty room begins anew.
    b.gets("ok", json!({"type": "bye"}));
    b.closes(1000);
    join(&mut a, "r");
    say(&mut a, "r", json!("alone"));
    assert_eq!(heard(&mut a), (1, json!("alone")));
}

#[test]
fn each_hears_in_its_own_encoding_also_those_who_take_arrays_or_compress() {
    let broker = Broker::with(&["--engine", "memory", "--compression", "--compression-min-bytes", "900"]);
    let mut plain = broker.ws();
    let mut packing = Ws::packing(broker.address);
    let mut batching = broker.ws();
    batching.gets("welcome", json!({"type": "hello", "batch": true}));
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let (_, connection) = handshake(broker.address, upgrade_request(broker.address, "/ws", offer).as_bytes());
    let mut compressing = Ws::over(connection);
    for member in [&mut plain, &mut packing, &mut batching, &mut compressing] {
        join(member, "r");
    }
    let mut producer = Ws::packing(broker.address);
    let text = "x".repeat(1000);
    say(&mut producer, "r", json!({"text": text, "of": ["a", 1.5, null]}));
    for member in [&mut plain, &mut packing, &mut batching] {
        assert_eq!(heard(member), (1, json!({"text": text, "of": ["a", 1.5, null]})));
    }
    let Heard::Frame(frame) = compressing.hear() else { panic!("the socket ended") };
    assert_eq!(frame.first, 0xc1, "compressed text");
    assert!(frame.body.len() < 300);
    // Bytes are bytes to one and base64 to the other.
    plain.say(json!({"type": "publish", "room": "r", "payload_b64": "AAH+/w=="}));
    assert_eq!(plain.wait_for("room_message")["payload_b64"], "AAH+/w==");
    packing.wait_for("room_message");
    assert!(
        packing.latest.windows(6).any(|bytes| bytes == [0xc4, 4, 0, 1, 0xfe, 0xff]),
        "{:x?}",
        packing.latest
    );
}

/// What a reader has missed it is told, and what it asks is answered at once, not behind what waits for it.
#[test]
fn a_slow_reader_loses_the_oldest_and_still_gets_its_answers_first() {
    let broker = Broker::in_memory();
    let mut slow = broker.worker("slow");
    join(&mut slow, "loud");
    join(&mut slow, "quiet");
    let mut speaker = broker.worker("speaker");
    say(&mut speaker, "quiet", json!("early"));
    // Far more than the sockets' buffers, and the lane, take; `slow` reads none of it.
    const SAID: u64 = 800;
    let payload = json!("x".repeat(50_000));
    for _ in 0..SAID {
        say(&mut speaker, "loud", payload.clone());
    }
    // Once it is known that this arrived its answer waits.
    slow.say(json!({"type": "submit", "id": "s", "queue": "q"}));
    slow.say(json!({"type": "ping", "id": "p"}));
    until("the submit to arrive", || {
        (broker.get("/v1/queues/q").status == 200 && broker.count("q", "queued") == 1).then_some(())
    });
    let (mut last, mut missed, mut said, mut answered) = (0, 0, 0, None);
    while last < SAID {
        let message = slow.next();
        match message["type"].as_str().unwrap() {
            "room_message" if message["room"] == "quiet" => {}
            "room_message" => {
                let seq = message["seq"].as_u64().unwrap();
                // What is missing was told of, right before.
                assert_eq!(seq, last + 1, "a gap that nobody told of");
                (last, said) = (seq, said + 1);
            }
            "lagged" => {
                assert_eq!(message["room"], "loud", "{message}");
                let lost = message["missed"].as_u64().unwrap();
                assert!(lost > 0);
                (last, missed) = (last + lost, missed + lost);
            }
            "accepted" => answered = Some(last),
            "pong" => {}
            other => panic!("{other}: {message}"),
        }
    }
    assert_eq!(said + missed, SAID);
    assert!(missed > 0, "nothing was lost: {said} messages went out");
    // The lane held a mebibyte when the answer came to it.
    let answered = answered.expect("the submit was answered");
    assert!(answered < SAID - 10, "the answer came behind {answered} of {SAID} messages");
    slow.gets("pong", json!({"type": "ping"}));
    assert_eq!(broker.metric("taskyard_closes_total{code=\"4130\"}"), 0);
}

#[test]
fn rooms_are_named_like_queues_in_permissions() {
    let tokens = Tokens::new();
    let listener = tokens.create("listener", &["consume:lobby*"]);
    let speaker = tokens.create("speaker", &["submit:lobby"]);
    let broker = tokens.broker(&[]);
    let (mut listens, mut speaks) = (broker.by(&listener).ws(), broker.by(&speaker).ws());
    join(&mut listens, "lobby");
    join(&mut listens, "lobby-2");
    let error = listens.refused("forbidden", json!({"type": "join", "room": "office"}));
    assert!(error["message"].as_str().unwrap().contains("consume:office"), "{error}");
    listens.refused("forbidden", json!({"type": "publish", "room": "lobby"}));
    speaks.refused("forbidden", json!({"type": "join", "room": "lobby"}));
    speaks.refused("forbidden", json!({"type": "publish", "room": "lobby-2"}));
    say(&mut speaks, "lobby", json!("hello"));
    assert_eq!(heard(&mut listens), (1, json!("hello")));
    // Without an `id` an error is told all the same.
    speaks.say(json!({"type": "publish", "room": "office"}));
    assert_eq!(speaks.wait_for("error")["code"], "forbidden");
    // In a URL, before the upgrade.
    broker.by(&speaker).upgrade("/ws?room=lobby").is_error(403, "forbidden");
    broker.by(&listener).upgrade("/ws?room=office").is_error(403, "forbidden");
    broker.by(&listener).upgrade("/ws?queue=lobby&room=office").is_error(403, "forbidden");
    assert_eq!(broker.by(&listener).upgrade("/ws?queue=lobby&room=lobby-2").status, 101);
}

#[test]
fn what_is_said_in_rooms_counts_towards_the_rate() {
    let tokens = Tokens::new();
    let token = tokens.create_with("talker", &["submit:*", "consume:*"], &["--messages-per-s", "5"]);
    let broker = tokens.broker(&[]);
    let mut ws = broker.by(&token).ws();
    ws.gets("welcome", json!({"type": "hello"}));
    let publish = json!({"type": "publish", "room": "r"});
    let refused = until("a message too many", || {
        Some(ws.ask(publish.clone())).filter(|answer| answer["type"] == "error")
    });
    assert_eq!((&refused["code"], &refused["retryable"]), (&json!("rate_limited"), &json!(true)));
}

#[test]
fn a_session_may_be_in_many_rooms_and_not_in_any_number() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    for nth in 0..256 {
        join(&mut ws, &format!("r{nth}"));
    }
    assert_eq!(ws.refused("queue_full", json!({"type": "join", "room": "one-more"}))["field"], "room");
    ws.gets("ok", json!({"type": "leave", "room": "r7"}));
    join(&mut ws, "one-more");
    say(&mut ws, "r255", json!("still there"));
    assert_eq!(heard(&mut ws), (1, json!("still there")));
}

#[test]
fn a_thousand_members_hear_one_message() {
    let broker = Broker::in_memory();
    let mut members: Vec<Ws> = (0..1000)
        .map(|_| {
            let mut ws = broker.ws();
            join(&mut ws, "hall");
            ws
        })
        .collect();
    say(&mut members[999], "hall", json!({"all": true}));
    for member in &mut members {
        assert_eq!(heard(member), (1, json!({"all": true})));
    }
}
