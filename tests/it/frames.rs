//! Frames that break a rule: each gets a close frame with its code, then the end of the stream; and what
//! the socket held goes on to another worker.

use serde_json::json;

use crate::support::{Broker, Heard, Ws};

/// A worker that holds a task sends these bytes; its socket closes with this code, and the task is
/// another's at once.
fn check(broker: &Broker, what: &str, code: u16, bytes: &[u8]) {
    let mut bad = broker.ws();
    bad.subscribe("held", 1);
    let task = bad.submit(json!({"queue": "held", "payload": what}));
    bad.task();
    bad.raw(bytes);
    let reason = bad.closes(code);
    assert!(!reason.is_empty(), "{what}: no reason was given");

    let mut good = broker.ws();
    good.subscribe("held", 1);
    let again = good.task();
    assert_eq!(again["task"], task, "{what}");
    assert_eq!(again["redelivered"], true, "{what}");
    good.ack(&again);
    good.hang_up();
}

/// One frame with a reserved bit, or of an unknown opcode, cost the broker a thread for ever.
///
/// The reader went on to wait for the peer's close frame with the parser that had just failed, and that
/// failed at the same byte again, at once, without end: no timeout came through, the close frame was
/// not written, and the leases stayed.
#[test]
fn after_a_broken_frame_nothing_is_parsed() {
    let broker = Broker::in_memory();
    // More of them than there are threads.
    for _ in 0..20 {
        let mut ws = broker.ws();
        ws.raw(&Ws::masked(0xc1, b"{}"));
        ws.raw(&Ws::masked(0x83, b"{}"));
        ws.closes(1002);
    }
    assert_eq!(broker.get("/healthz").status, 200);
}

fn close_body(code: u16, reason: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), reason].concat()
}

#[test]
fn framing_that_rfc_6455_forbids_closes_1002() {
    let broker = Broker::in_memory();
    let check = |what: &str, bytes: &[u8]| check(&broker, what, 1002, bytes);
    check("unmasked text", &[0x81, 0x02, b'{', b'}']);
    check("an unmasked ping", &[0x89, 0x00]);
    for (what, bit) in [("RSV1", 0x40), ("RSV2", 0x20), ("RSV3", 0x10)] {
        check(what, &Ws::masked(0x81 | bit, b"{}"));
    }
    for opcode in [3, 7, 0xb, 0xf] {
        check(&format!("opcode {opcode}"), &Ws::masked(0x80 | opcode, b""));
    }
    check("a fragmented ping", &Ws::masked(0x09, b""));
    check("a fragmented close", &Ws::masked(0x08, &close_body(1000, b"")));
    check("a ping of 126 bytes", &Ws::masked(0x89, &[0; 126]));
    check("a pong of 126 bytes", &Ws::masked(0x8a, &[0; 126]));
    check("a close of 126 bytes", &Ws::masked(0x88, &[b' '; 126]));
    check("half a close code", &Ws::masked(0x88, &[3]));
    for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
        check(&format!("close code {code}"), &Ws::masked(0x88, &close_body(code, b"")));
    }
    check("a continuation of nothing", &Ws::masked(0x80, b"{}"));
    check("an open continuation of nothing", &Ws::masked(0x00, b"{}"));
    check("text inside a message", &[Ws::masked(0x01, b"{"), Ws::masked(0x81, b"}")].concat());
    check("bytes inside a message", &[Ws::masked(0x01, b"{"), Ws::masked(0x02, b"}")].concat());
}

#[test]
fn text_that_is_not_utf_8_closes_1007() {
    let broker = Broker::in_memory();
    let check = |what: &str, bytes: &[u8]| check(&broker, what, 1007, bytes);
    check("a stray byte", &Ws::masked(0x81, b"\"\xff\""));
    check("an overlong form", &Ws::masked(0x81, b"\"\xc0\xaf\""));
    check("a surrogate", &Ws::masked(0x81, b"\"\xed\xa0\x80\""));
    check("a code point cut off", &Ws::masked(0x81, b"\"\xe2\x82"));
    check("one cut off in fragments", &[Ws::masked(0x01, b"\"\xe2"), Ws::masked(0x80, b"\x82")].concat());
    check("a close reason", &Ws::masked(0x88, &close_body(1000, b"\xff")));
}

#[test]
fn a_code_point_may_be_cut_between_fragments() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    let message = "{\"type\":\"ping\",\"id\":\"\u{20ac}\"}".as_bytes();
    let cut = message.iter().position(|byte| *byte == 0xe2).unwrap() + 1;
    ws.frame(0x01, &message[..cut]);
    // A control frame between fragments is answered at once.
    ws.frame(0x89, b"hi");
    let Heard::Frame(pong) = ws.hear() else { panic!("the socket ended") };
    assert_eq!((pong.first, pong.body), (0x8a, b"hi".to_vec()));
    ws.frame(0x00, b"");
    ws.frame(0x80, &message[cut..]);
    assert_eq!(ws.next(), json!({"type": "pong", "ref": "\u{20ac}"}));
}

#[test]
fn more_than_the_limit_closes_1009() {
    let broker = Broker::with(&["--engine", "memory", "--message-bytes", "4096"]);
    check(&broker, "one frame", 1009, &Ws::masked(0x81, &[b' '; 4097]));
    // The header alone is enough: nobody waits for, or makes room for, what it declares.
    check(
        &broker,
        "a declared length",
        1009,
        &[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4],
    );
    check(
        &broker,
        "fragments",
        1009,
        &[Ws::masked(0x01, &[b' '; 4000]), Ws::masked(0x80, &[b' '; 97])].concat(),
    );

    let mut ws = broker.ws();
    let welcome = ws.gets("welcome", json!({"type": "hello"}));
    assert_eq!(welcome["limits"]["message_bytes"], 4096);
    let mut message = br#"{"type":"ping","id":1}"#.to_vec();
    message.resize(4096, b' ');
    ws.frame(0x81, &message);
    assert_eq!(ws.wait_for("pong")["ref"], 1);
    ws.frame(0x01, &message[..2000]);
    ws.frame(0x80, &message[2000..]);
    assert_eq!(ws.wait_for("pong")["ref"], 1);
}

#[test]
fn too_much_of_nothing_closes_1008() {
    let broker = Broker::in_memory();
    check(&broker, "pings", 1008, &Ws::masked(0x89, b"").repeat(101));
    let fragments = [Ws::masked(0x01, b"{"), Ws::masked(0x00, b"").repeat(1001)].concat();
    check(&broker, "empty fragments", 1008, &fragments);
}

#[test]
fn a_close_is_answered_with_its_code_and_leases_return() {
    let broker = Broker::in_memory();
    for code in [1000, 1001, 1013, 3000, 4999] {
        let mut ws = broker.ws();
        ws.frame(0x88, &close_body(code, b"done"));
        ws.closes(code);
    }
    let mut ws = broker.ws();
    ws.frame(0x88, b"");
    let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended without a close frame") };
    assert_eq!((frame.first, frame.body), (0x88, Vec::new()));
    assert_eq!(ws.hear(), Heard::End);
    // A close alone is not `bye`: what was held is charged, and flagged.
    let mut other = broker.ws();
    let mut ws = broker.ws();
    ws.subscribe("q", 1);
    other.submit(json!({"queue": "q"}));
    ws.task();
    other.subscribe("q", 1);
    ws.frame(0x88, &close_body(1000, b""));
    let again = other.task();
    assert_eq!((&again["attempt"], &again["redelivered"]), (&json!(2), &json!(true)));
}

#[test]
fn one_byte_a_segment_is_as_good_as_any() {
    let broker = Broker::in_memory();
    let request = crate::support::upgrade_request(broker.address, "/ws", "");
    let mut connection = crate::support::http::Connection::open(broker.address);
    for byte in request.as_bytes() {
        connection.send(&[*byte]);
    }
    assert_eq!(connection.head().status, 101);
    let mut ws = Ws::over(connection);
    let said = [
        Ws::masked(0x81, br#"[{"type":"subscribe","id":1,"queue":"slow"},{"type":"ping","id":2}]"#),
        Ws::masked(0x89, b"?"),
        Ws::masked(0x01, br#"{"type":"submit","id":3,"#),
        Ws::masked(0x80, br#""queue":"slow","payload":[1,2,3]}"#),
    ];
    for byte in said.concat() {
        ws.raw(&[byte]);
    }
    ws.wait_for("subscribed");
    let task = ws.task();
    assert_eq!(task["payload"], json!([1, 2, 3]));
    let ack = json!({"type": "ack", "id": 4, "lease": task["lease"]}).to_string();
    for byte in Ws::masked(0x81, ack.as_bytes()) {
        ws.raw(&[byte]);
    }
    assert_eq!(ws.wait_for("settled")["outcome"], "ok");
}

#[test]
fn a_socket_that_just_ends_gives_back_what_it_held() {
    let broker = Broker::in_memory();
    let mut next = broker.ws();
    next.gets("welcome", json!({"type": "hello"}));
    let task = next.submit(json!({"queue": "q"}));
    for round in 1..4 {
        let mut ws = broker.ws();
        ws.subscribe("q", 1);
        let delivery = ws.task();
        assert_eq!(delivery["task"], task);
        next.subscribe("q", 1);
        match round {
            1 => ws.hang_up(),
            2 => ws.finish_writing(),
            // In the middle of a frame.
            _ => {
                ws.raw(&[0x81, 0xfe, 0x01]);
                ws.hang_up();
            }
        }
        let delivery = next.task();
        assert_eq!(delivery["redelivered"], true);
        next.gets("settled", json!({"type": "release", "lease": delivery["lease"]}));
        next.gets("ok", json!({"type": "unsubscribe", "queue": "q"}));
    }
}
