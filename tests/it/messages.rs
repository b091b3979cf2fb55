//! Messages: hello and welcome, arrays, and every refusal that one can provoke.

use serde_json::{Value, json};

use crate::support::{Broker, Tokens, Ws, message_pack};

const NO_TASK: &str = "0198c0de-0000-7000-8000-000000000000";
const NO_LEASE: &str = "AAAAAAAAAAcAAAADAAAAAA";

#[test]
fn hello_is_answered_by_one_welcome() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    let welcome = ws.gets(
        "welcome",
        json!({"type": "hello", "worker": "mailer-1", "groups": ["europe"], "labels": {"host": "a7"},
               "resume": true, "in_flight": [NO_LEASE], "client": "mailer 2.3", "token": "secret", "tomorrow": 1}),
    );
    assert_eq!(welcome["worker"], "mailer-1");
    assert_eq!(welcome["version"], 1);
    assert_eq!(welcome["server"], concat!("taskyard/", env!("CARGO_PKG_VERSION")));
    assert_eq!(welcome["resume"].as_str().map(str::len), Some(32), "a token to come back with");
    assert_eq!(welcome["resumed"], false);
    assert_eq!(welcome["kept"], json!([]));
    assert_eq!(welcome["lost"], json!([NO_LEASE]));
    assert_eq!(welcome["ping_ms"], 25_000);
    assert_eq!(welcome["limits"], json!({"message_bytes": 1 << 20, "credit": 1024, "unconfirmed": 1024}));

    let second = ws.refused("bad_request", json!({"type": "hello"}));
    assert!(second["message"].as_str().unwrap().contains("first"), "{second}");
}

/// It was answered by a welcome under a made-up name, an error, and the refusal of the corrected one.
#[test]
fn a_hello_that_is_refused_may_be_said_again() {
    let broker = Broker::in_memory();
    let tokens = Tokens::new();
    let token = tokens.create("a", &["submit:*"]);
    let locked = tokens.broker(&[]);
    for mut ws in [broker.ws(), locked.by(&token).ws()] {
        for (field, wrong) in [
            ("worker", json!({"type": "hello", "worker": "a b"})),
            ("id", json!({"type": "hello", "id": 1.5})),
        ] {
            ws.say(wrong);
            let error = ws.next();
            assert_eq!((&error["type"], &error["field"]), (&json!("error"), &json!(field)), "{error}");
        }
        let welcome = ws.gets("welcome", json!({"type": "hello", "worker": "a"}));
        assert_eq!(welcome["worker"], "a");
    }
}

#[test]
fn any_other_first_message_implies_hello_but_ping_and_noise() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.text(r#"{"type":"ping","id":"first"}"#);
    assert_eq!(ws.next(), json!({"type": "pong", "ref": "first"}));
    ws.text("noise");
    assert_eq!(ws.next()["code"], "bad_request");
    ws.text(r#"{"type":"subscribe","id":7,"queue":"q"}"#);
    let welcome = ws.next();
    assert_eq!(welcome["type"], "welcome");
    assert!(welcome.get("ref").is_none(), "{welcome}");
    assert_eq!(
        ws.next(),
        json!({"type": "subscribed", "ref": 7, "queue": "q", "credit": 1, "ack_timeout_ms": 30000})
    );
    ws.refused("bad_request", json!({"type": "hello"}));

    // A message that is refused is a first message too.
    let mut ws = broker.ws();
    ws.text(r#"{"type":"nonsense","id":1}"#);
    assert_eq!(ws.next()["type"], "welcome");
    assert_eq!(ws.next()["code"], "unknown_type");
}

#[test]
fn an_array_is_so_many_messages_in_order() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.text(
        r#"[{"type":"hello","id":0},{"type":"subscribe","id":1,"queue":"q"},7,{"type":"what","id":2},
            {"type":"subscribe","id":3},[],{"type":"unsubscribe","id":4,"queue":"q"}]"#,
    );
    let answers: Vec<Value> = (0..7).map(|_| ws.next()).collect();
    let what = |answer: &Value| (answer["ref"].clone(), answer["type"].clone(), answer["code"].clone());
    let expected = [
        (json!(0), "welcome", Value::Null),
        (json!(1), "subscribed", Value::Null),
        (Value::Null, "error", json!("bad_request")),
        (json!(2), "error", json!("unknown_type")),
        (json!(3), "error", json!("bad_request")),
        (Value::Null, "error", json!("bad_request")),
        (json!(4), "ok", Value::Null),
    ];
    for (answer, (reference, kind, code)) in answers.iter().zip(expected) {
        assert_eq!(what(answer), (reference, json!(kind), code), "{answers:?}");
    }
    assert_eq!(answers[4]["field"], "queue");

    ws.text("[]");
    assert_eq!(ws.so_far(), Vec::<Value>::new());
}

#[test]
fn an_array_has_at_most_1024_items() {
    let broker = Broker::in_memory();
    for packs in [false, true] {
        let mut ws = broker.ws();
        ws.packs = packs;
        ws.gets("welcome", json!({"type": "hello"}));
        let pings =
            |count: u64| (0..count).map(|id| json!({"type": "watch", "id": id, "task": NO_TASK})).collect();
        ws.say(Value::Array(pings(1024)));
        for id in 0..1024 {
            let answer = ws.next();
            assert_eq!((&answer["ref"], &answer["code"]), (&json!(id), &json!("not_found")));
        }
        ws.say(Value::Array(pings(1025)));
        let answers = ws.so_far();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers[0]["code"], "bad_request");
    }
}

#[test]
fn a_session_that_said_batch_is_sent_arrays() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello", "batch": true}));
    let watches: Vec<Value> =
        (0..200).map(|id| json!({"type": "watch", "id": id, "task": NO_TASK})).collect();
    ws.say(Value::Array(watches));
    for id in 0..200 {
        assert_eq!(ws.next()["ref"], id);
    }
    assert_eq!(ws.latest[0], b'[', "what waits together comes as one array");
}

#[test]
fn ids_are_text_or_integers_and_come_back_as_they_were() {
    let broker = Broker::in_memory();
    for packs in [false, true] {
        let mut ws = broker.ws();
        ws.packs = packs;
        for id in [
            json!("x".repeat(128)),
            json!(""),
            json!(9007199254740991_i64),
            json!(-9007199254740991_i64),
            json!(0),
        ] {
            ws.say(json!({"type": "ping", "id": id}));
            assert_eq!(ws.next(), json!({"type": "pong", "ref": id}));
        }
        ws.say(json!({"type": "hello"}));
        ws.next();
        for id in [json!("x".repeat(129)), json!(9007199254740992_i64), json!(1.5), json!([1]), json!(true)] {
            ws.say(json!({"type": "ping", "id": id}));
            let error = ws.next();
            assert_eq!(
                (&error["code"], &error["field"]),
                (&json!("bad_request"), &json!("id")),
                "{id}: {error}"
            );
            assert!(error.get("ref").is_none(), "{error}");
        }
        // Without an id there is no positive answer.
        ws.say(json!({"type": "ping"}));
        ws.say(json!({"type": "subscribe", "queue": "q"}));
        assert_eq!(ws.so_far(), Vec::<Value>::new());
    }
}

#[test]
fn fields_that_are_wrong_are_named_with_what_was_expected() {
    let broker = Broker::in_memory();
    let check = |field: &str, message: Value| {
        for packs in [false, true] {
            let mut ws = broker.ws();
            ws.packs = packs;
            let error = ws.refused("bad_request", message.clone());
            assert_eq!(error["field"], field, "{message}: {error}");
            assert_eq!(error["retryable"], false);
            let text = error["message"].as_str().unwrap();
            assert!(text.contains(field) && text.contains(message["type"].as_str().unwrap()), "{text}");
        }
    };
    let submit = |field: &str, value: Value| {
        let mut message = json!({"type": "submit", "queue": "q"});
        message[field] = value;
        check(field, message);
    };
    for name in [
        json!(""),
        json!(".hidden"),
        json!("a b"),
        json!("a/b"),
        json!("ü"),
        json!("x".repeat(129)),
        json!(5),
    ] {
        submit("queue", name);
    }
    check("queue", json!({"type": "submit"}));
    check("queue", json!({"type": "subscribe", "queue": null}));
    for credit in [json!(-1), json!(1025), json!(1_000_000_000), json!(1.5), json!("1")] {
        check("credit", json!({"type": "subscribe", "queue": "q", "credit": credit}));
    }
    check("credit", json!({"type": "credit", "queue": "q"}));
    check("mode", json!({"type": "subscribe", "queue": "q", "mode": "lazy"}));
    check("explicit_start", json!({"type": "subscribe", "queue": "q", "explicit_start": 1}));
    for (field, values) in [
        ("priority", [json!(-1), json!(10), json!(1.5)]),
        ("delay_ms", [json!(-1), json!(31_536_000_001_u64), json!("1")]),
        ("ttl_ms", [json!(0), json!(31_536_000_001_u64), json!(true)]),
        ("ack_timeout_ms", [json!(0), json!(99), json!(86_400_001)]),
        ("timeout_ms", [json!(0), json!(86_400_001), json!(u64::MAX)]),
        ("max_attempts", [json!(0), json!(1001), json!(-5)]),
        (
            "to",
            [json!("w"), json!({"worker": "w", "group": "g"}), json!({"worker": "w", "if_absent": "cry"})],
        ),
        ("confirm", [json!("maybe"), json!(1), json!("")]),
        ("assign", [json!("random"), json!(1), json!("")]),
        ("complete", [json!("most"), json!({"quorum": 0}), json!({"quorum": 1_000_001})]),
        ("run_at", [json!("tomorrow"), json!(1), json!("2030-13-01T00:00:00Z")]),
        ("watch", [json!(1), json!("yes"), json!([])]),
    ] {
        for value in values {
            submit(field, value);
        }
    }
    submit("headers", json!({"k": 1}));
    submit("headers", json!({"k": "x".repeat(4096)}));
    submit("payload_b64", json!("not base64!"));
    for key in ["sticky_key", "order_key", "fair_key", "dedup_id"] {
        submit(key, json!(7));
        submit(key, json!(""));
        submit(key, json!("k".repeat(257)));
    }
    check("sticky_key", json!({"type": "submit", "queue": "q", "assign": "sticky"}));
    check("from_seq", json!({"type": "watch", "task": NO_TASK, "from_seq": -3}));
    check("task", json!({"type": "watch", "task": "1"}));
    check("groups", json!({"type": "hello", "groups": ["a b"]}));
    check("worker", json!({"type": "hello", "worker": ""}));
    check("client", json!({"type": "hello", "client": "x".repeat(129)}));
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    for message in [
        json!({"type": "submit", "queue": "q", "payload": 1, "payload_b64": "AA=="}),
        json!({"type": "submit", "queue": "q", "delay_ms": 1, "run_at": "2030-01-31T12:00:00Z"}),
        json!({"type": "submit", "queue": "q", "complete": "any"}),
        json!({"type": "ack", "lease": NO_LEASE, "leases": [NO_LEASE]}),
        json!({"type": "ack"}),
        json!({"type": "ack", "leases": vec![NO_LEASE; 1025]}),
    ] {
        ws.refused("bad_request", message);
    }
    ws.gets("accepted", json!({"type": "submit", "queue": "q", "complete": "all"}));
    // A misspelt name is not anybody.
    ws.refused("bad_request", json!({"type": "submit", "queue": "q", "to": {"wrk": "gpu-1"}}));
    ws.gets("accepted", json!({"type": "submit", "queue": "q", "to": {"worker": "gpu-1", "since": 2}}));
    ws.gets("accepted", json!({"type": "submit", "queue": "q", "to": {}}));
    // A half of each pair that is null does not contradict.
    ws.gets("accepted", json!({"type": "submit", "queue": "q", "payload": 1, "payload_b64": null}));
    ws.gets(
        "accepted",
        json!({"type": "submit", "queue": "q", "run_at": null, "delay_ms": 0, "priority": null}),
    );
}

#[test]
fn envelopes_that_are_wrong_are_refused_and_the_socket_stays() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    let mut refused = |text: &str, code: &str, reference: Value| {
        ws.text(text);
        let error = ws.next();
        assert_eq!(error["type"], "error", "{text}");
        assert_eq!(error["code"], code, "{text}: {error}");
        assert_eq!(error.get("ref").cloned().unwrap_or_default(), reference, "{text}: {error}");
    };
    refused(r#"{"id":1}"#, "bad_request", json!(1));
    refused(r#"{"type":5,"id":1}"#, "bad_request", json!(1));
    refused(r#"{"type":"fly","id":1}"#, "unknown_type", json!(1));
    refused(r#"{"type":"ping","id":1,"id":1}"#, "bad_request", Value::Null);
    refused(r#"{"type":"credit","id":1,"queue":"q","queue":"q","credit":1}"#, "bad_request", json!(1));
    refused(r#"{"type":"submit","id":1,"queue":"q","headers":{"a":"1","a":"2"}}"#, "bad_request", json!(1));
    refused(r#"{"type":"subscribe","id":1,"queue":"q","credit":1.0}"#, "bad_request", json!(1));
    refused(r#"{"type":"subscribe","id":1,"queue":"q","credit":-0}"#, "bad_request", json!(1));
    refused(r#""ping""#, "bad_request", Value::Null);
    let cancel = json!({"type": "cancel", "id": 1, "task": NO_TASK}).to_string();
    refused(&cancel, "not_found", json!(1));
    for kind in ["join", "leave", "publish"] {
        let text = json!({"type": kind, "id": 1, "room": "no room"}).to_string();
        refused(&text, "bad_request", json!(1));
    }
    ws.gets("pong", json!({"type": "ping"}));
}

#[test]
fn ten_frames_that_cannot_be_read_close_1008() {
    let broker = Broker::in_memory();
    let deep = |containers: usize| {
        format!(
            r#"{{"type":"submit","id":1,"queue":"q","payload":{}{}}}"#,
            "[".repeat(containers),
            "]".repeat(containers)
        )
    };
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    ws.gets("accepted", serde_json::from_str(&deep(64)).unwrap());
    for text in ["", "{", "{} {}", "nul", "NaN", "{\"a\":01}", "\u{feff}{}", "[1,]", &deep(65)] {
        ws.text(text);
        let error = ws.next();
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("bad_request")), "{text:?}");
        assert!(error.get("ref").is_none(), "{error}");
        // Valid JSON is not told that it is none.
        let text = if *text == *deep(65) { "nested deeper than 64" } else { "is not JSON" };
        assert!(error["message"].as_str().unwrap().contains(text), "{error}");
    }
    ws.text("tenth");
    ws.closes(1008);

    let mut ws = broker.ws();
    ws.packs = true;
    ws.gets("welcome", json!({"type": "hello"}));
    let noise: [&[u8]; 9] = [
        b"",
        &[0xc1],
        &[0x80, 0x80],
        // Huge declared lengths: nothing is reserved for them.
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xdb, 0xff, 0xff, 0xff, 0xff, b'x'],
        &[0xc6, 0xff, 0xff, 0xff, 0xff],
        &[0x81, 0xa4, b't', b'y'],
        &[0x91; 70],
    ];
    for bytes in noise {
        ws.binary(bytes);
        assert_eq!(ws.next()["code"], "bad_request", "{bytes:x?}");
    }
    ws.binary(&[0xc1]);
    ws.closes(1008);
}

#[test]
fn keys_of_a_message_are_text() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.packs = true;
    ws.binary(&[[0x82, 7, 7, 0xa4].as_slice(), b"type", &message_pack::encode(&json!("ping"))].concat());
    assert_eq!(ws.wait_for("error")["code"], "bad_request");
}

#[test]
fn a_lease_that_one_does_not_hold_is_lost_whatever_it_is() {
    let broker = Broker::in_memory();
    let (mut ws, mut other) = (broker.ws(), broker.ws());
    ws.subscribe("q", 2);
    ws.submit(json!({"queue": "q"}));
    let task = ws.task();
    let mine = task["lease"].as_str().unwrap();
    other.gets("welcome", json!({"type": "hello"}));
    for verb in ["ack", "nack", "release", "extend", "progress", "start", "cancelled"] {
        for lease in [mine, NO_LEASE, "", "?", &"x".repeat(48), &"x".repeat(500)] {
            let error = other.refused("lease_lost", json!({"type": verb, "lease": lease}));
            assert_eq!(error["lease"], lease[..lease.len().min(48)]);
            // Nothing is revealed: every kind of wrong lease gets the same answer.
            assert!(error.get("task").is_none());
        }
        // Without an id the error is sent too, and says which lease.
        other.say(json!({"type": verb, "lease": mine}));
        let error = other.wait_for("error");
        assert_eq!((&error["code"], &error["lease"]), (&json!("lease_lost"), &json!(mine)));
        assert!(error.get("ref").is_none());
    }
    // It was the other's all the time.
    ws.ack(&task);
    let again = ws.gets("settled", json!({"type": "ack", "lease": mine}));
    assert_eq!(again["outcome"], "already");
    ws.refused("lease_lost", json!({"type": "nack", "lease": mine}));
}

#[test]
fn several_leases_are_settled_with_an_outcome_each() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("q", 3);
    for number in 0..3 {
        ws.submit(json!({"queue": "q", "payload": number}));
    }
    let leases: Vec<Value> = (0..3).map(|_| ws.task()["lease"].clone()).collect();
    ws.gets("settled", json!({"type": "ack", "lease": leases[0]}));
    let settled = ws.gets(
        "settled",
        json!({"type": "ack", "leases": [leases[0], leases[1], NO_LEASE, leases[2], leases[2]]}),
    );
    assert!(settled.get("lease").is_none() && settled.get("outcome").is_none(), "{settled}");
    let outcomes: Vec<&str> =
        settled["results"].as_array().unwrap().iter().map(|item| item["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["already", "ok", "lease_lost", "ok", "already"]);
    assert_eq!(settled["results"][1]["lease"], leases[1]);
    assert_eq!(broker.count("q", "done"), 3);
}

#[test]
fn what_does_not_exist_is_not_found() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    let error = ws.refused("not_found", json!({"type": "watch", "task": NO_TASK}));
    assert_eq!(error["task"], NO_TASK);
    for message in
        [json!({"type": "credit", "queue": "q", "credit": 1}), json!({"type": "unsubscribe", "queue": "q"})]
    {
        assert_eq!(ws.refused("not_found", message)["field"], "queue");
    }
    let to = json!({"worker": "nobody", "if_absent": "fail"});
    assert_eq!(ws.refused("not_found", json!({"type": "submit", "queue": "q", "to": to}))["field"], "to");
}

#[test]
fn submits_of_one_session_are_accepted_in_order_and_bounded() {
    let broker = Broker::start();
    let mut ws = broker.ws();
    ws.gets("welcome", json!({"type": "hello"}));
    // Three frames in one write: they are taken together, before any of them can be durable.
    let frame = |ids: std::ops::Range<u64>| {
        let submits: Vec<Value> =
            ids.map(|id| json!({"type": "submit", "id": id, "queue": "q", "payload": id})).collect();
        Ws::masked(0x81, Value::Array(submits).to_string().as_bytes())
    };
    ws.raw(&[frame(0..1000), frame(1000..2000)].concat());
    let (mut accepted, mut limited) = (Vec::new(), 0);
    for _ in 0..2000 {
        let answer = ws.next();
        match answer["type"].as_str().unwrap() {
            "accepted" => accepted.push(answer["ref"].as_u64().unwrap()),
            _ => {
                assert_eq!(answer["code"], "rate_limited", "{answer}");
                assert_eq!(answer["retryable"], true);
                assert!(answer["retry_after_ms"].is_u64(), "{answer}");
                limited += 1;
            }
        }
    }
    assert!(accepted.len() >= 1024, "{} accepted, {limited} refused", accepted.len());
    assert!(accepted.is_sorted());
    let mut worker = broker.ws();
    worker.subscribe("q", 1024);
    for expected in accepted.iter().take(1024) {
        assert_eq!(worker.task()["payload"], *expected);
    }
}

#[test]
fn confirm_none_hears_nothing_but_errors() {
    let broker = Broker::start();
    let mut ws = broker.worker("w");
    ws.subscribe("q", 10);
    ws.say(json!({"type": "submit", "id": 9, "queue": "q", "confirm": "none", "payload": "quiet"}));
    assert_eq!(ws.task()["payload"], "quiet");
    assert_eq!(ws.so_far(), Vec::<Value>::new());
    ws.refused("bad_request", json!({"type": "submit", "queue": "q", "confirm": "none", "dedup_id": ""}));
    ws.gets("accepted", json!({"type": "submit", "queue": "q", "confirm": "memory"}));
    ws.task();
}
