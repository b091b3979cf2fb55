//! JSON and MessagePack, side by side on one broker.

use serde_json::{Value, json};

use crate::support::{Broker, Heard, Ws, http, message_pack};

/// Submit, subscribe, task, ack, finished: the first conversation of the protocol.
fn first_conversation(mut producer: Ws, mut worker: Ws) {
    worker.subscribe("emails", 2);
    let payload =
        json!({"to": "a@example.org", "big": u64::MAX, "small": i64::MIN, "list": [1.5, null, true]});
    let task = producer
        .submit(json!({"queue": "emails", "payload": payload, "headers": {"trace": "a1"}, "watch": true}));

    let delivery = worker.task();
    assert_eq!(delivery["task"], task);
    assert_eq!(delivery["queue"], "emails");
    assert_eq!(delivery["attempt"], 1);
    assert_eq!(delivery["max_attempts"], 5);
    assert_eq!(delivery["redelivered"], false);
    assert_eq!(delivery["ack_timeout_ms"], 30_000);
    assert_eq!(delivery["priority"], 4);
    assert_eq!(delivery["headers"], json!({"trace": "a1"}));
    assert_eq!(delivery["payload"], payload);
    assert!(delivery["age_ms"].is_u64());

    let settled =
        worker.gets("settled", json!({"type": "ack", "lease": delivery["lease"], "result": {"sent": 1}}));
    assert_eq!(settled["lease"], delivery["lease"]);
    assert_eq!(settled["outcome"], "ok");
    let finished = producer.wait_for("finished");
    assert_eq!(finished["task"], task);
    assert_eq!(finished["state"], "done");
    assert_eq!(finished["result"], json!({"sent": 1}));
    assert_eq!(finished["attempts"], 1);
    assert_eq!(finished["recipients"], Value::Null);
}

#[test]
fn each_encoding_talks_to_each() {
    let broker = Broker::in_memory();
    let json = || broker.ws();
    let packed = || Ws::packing(broker.address);
    first_conversation(json(), json());
    first_conversation(json(), packed());
    first_conversation(packed(), json());
    first_conversation(packed(), packed());
}

#[test]
fn without_a_subprotocol_the_first_frame_chooses_the_encoding_of_answers() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.packs = true;
    ws.ask(json!({"type": "ping"}));
    assert_eq!(ws.latest[0] & 0xf0, 0x80, "a map of MessagePack");
    // The other kind is understood; the answers stay as they were.
    ws.packs = false;
    ws.gets("welcome", json!({"type": "hello"}));
    assert_eq!(ws.latest[0] & 0xf0, 0x80);
}

#[test]
fn with_a_subprotocol_a_frame_of_the_other_kind_closes_1003() {
    let broker = Broker::in_memory();
    let mut packing = Ws::packing(broker.address);
    packing.gets("pong", json!({"type": "ping"}));
    packing.text(r#"{"type":"ping"}"#);
    assert!(packing.closes(1003).contains("binary"));

    let mut speaking = Ws::open(broker.address, "/ws", &[("Sec-WebSocket-Protocol", "x, taskyard.v1.json")]);
    speaking.gets("pong", json!({"type": "ping"}));
    speaking.binary(&message_pack::encode(&json!({"type": "ping"})));
    assert!(speaking.closes(1003).contains("text"));
}

#[test]
fn between_peers_of_one_encoding_a_value_passes_byte_for_byte() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    ws.subscribe("raw", 1);
    let value = r#"{ "b":1.0, "a" : 1e2,"a":-0, "u":"\u00e9\ud800", "n":123456789012345678901234567890 }"#;
    ws.text(&format!(r#"{{"type":"submit","queue":"raw","payload":{value}}}"#));
    // Not decoded here either: a reader of JSON may refuse half a surrogate pair.
    let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
    let text = String::from_utf8(frame.body).unwrap();
    assert!(text.contains(value), "{text}");

    let mut packed = Ws::packing(broker.address);
    packed.subscribe("packed", 1);
    // An integer in nine bytes where one would do, a float32 NaN, bytes, an ext.
    let value = [0x94, 0xcf, 0, 0, 0, 0, 0, 0, 0, 1, 0xca, 0x7f, 0xc0, 0, 0, 0xc4, 1, 7, 0xd4, 5, 9];
    packed.binary(&message_pack::map(&[
        ("type", message_pack::encode(&json!("submit"))),
        ("queue", message_pack::encode(&json!("packed"))),
        ("payload", value.to_vec()),
    ]));
    // Not decoded by our reader, which knows no ext: looked for in the frame.
    let Heard::Frame(frame) = packed.hear() else { panic!("the socket ended") };
    assert!(frame.body.windows(value.len()).any(|window| window == value), "{frame:?}");
}

#[test]
fn a_json_producer_and_a_packing_worker() {
    let broker = Broker::in_memory();
    let mut worker = Ws::packing(broker.address);
    worker.subscribe("q", 100);
    let mut producer = broker.ws();
    let mut arrives = |sent: &str, expected: &[u8]| {
        producer.text(&format!(r#"{{"type":"submit","queue":"q",{sent}}}"#));
        worker.task();
        let (frame, key) = (&worker.latest, b"\xa7payload");
        let at = frame.windows(key.len()).position(|window| window == key).unwrap() + key.len();
        assert_eq!(&frame[at..at + expected.len()], expected, "{sent}");
    };
    arrives(r#""payload_b64":"AAH+/w==""#, &[0xc4, 4, 0, 1, 0xfe, 0xff]);
    arrives(r#""payload":18446744073709551615"#, &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    arrives(r#""payload":-9223372036854775808"#, &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0]);
    arrives(r#""payload":7"#, &[7]);
    arrives(r#""payload":18446744073709551616"#, &[0xcb, 0x43, 0xf0, 0, 0, 0, 0, 0, 0]);
    arrives(r#""payload":1e999"#, &[0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0]);
    arrives(r#""payload":-0"#, &[0xcb, 0x80, 0, 0, 0, 0, 0, 0, 0]);
    arrives(r#""payload":1.0"#, &[0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]);
    arrives(r#""payload":"\ud800""#, &[0xa3, 0xef, 0xbf, 0xbd]);
    arrives(r#""payload":{"a":1,"a":2}"#, &[0x82, 0xa1, b'a', 1, 0xa1, b'a', 2]);
    arrives(r#""headers":{}"#, &[0xc0]);
}

#[test]
fn a_packing_producer_and_a_json_worker() {
    let broker = Broker::in_memory();
    let mut worker = broker.ws();
    worker.subscribe("q", 100);
    let mut producer = Ws::packing(broker.address);
    let mut arrives = |sent: &[u8], expected: &str| {
        producer.binary(&message_pack::map(&[
            ("type", message_pack::encode(&json!("submit"))),
            ("queue", message_pack::encode(&json!("q"))),
            ("payload", sent.to_vec()),
        ]));
        worker.task();
        let text = String::from_utf8(worker.latest.clone()).unwrap();
        assert!(text.contains(expected), "{text} lacks {expected}");
    };
    arrives(&[0xc4, 4, 0, 1, 0xfe, 0xff], r#""payload_b64":"AAH+/w==""#);
    arrives(&[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], r#""payload":18446744073709551615"#);
    arrives(&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], r#""payload":-9223372036854775808"#);
    arrives(&[0xcb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0], r#""payload":1.0"#);
    // NaN and infinity have no word in JSON; bytes and an ext within a value become base64.
    arrives(&[0x92, 0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0, 0xca, 0xff, 0x80, 0, 0], r#""payload":[null,null]"#);
    arrives(&[0x92, 0xc4, 2, 1, 2, 0xd4, 5, 9], r#""payload":["AQI=","CQ=="]"#);
    arrives(&[0x83, 7, 1, 0xc0, 2, 0xc3, 3], r#""payload":{"7":1,"null":2,"true":3}"#);
}

#[test]
fn results_and_progress_of_bytes_reach_both_encodings() {
    let broker = Broker::in_memory();
    let mut worker = broker.ws();
    worker.subscribe("q", 1);
    let mut json = broker.ws();
    let task = json.submit(json!({"queue": "q", "watch": true}));
    let mut packed = Ws::packing(broker.address);
    packed.gets("ok", json!({"type": "watch", "task": task}));
    let delivery = worker.task();
    worker.gets(
        "ok",
        json!({"type": "progress", "lease": delivery["lease"], "percent": 50, "data_b64": "AAH+/w=="}),
    );
    let halfway = |event: &Value| event["type"] == "event" && event["percent"].is_number();
    assert_eq!(json.wait("progress", halfway)["data_b64"], "AAH+/w==");
    assert_eq!(packed.wait("progress", halfway)["data"], json!({"bin": "AAH+/w=="}));
    worker.gets("settled", json!({"type": "ack", "lease": delivery["lease"], "result_b64": "AAH+/w=="}));
    assert_eq!(json.wait_for("finished")["result_b64"], "AAH+/w==");
    assert_eq!(packed.wait_for("finished")["result"], json!({"bin": "AAH+/w=="}));
    assert_eq!(http::get(broker.address, &format!("/v1/tasks/{task}")).json()["result_b64"], "AAH+/w==");
}
