//! Frames that break a rule: each gets a close frame with its code, then the end of the stream; and what
//! the socket held goes on to another worker.

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::{Broker, Heard, Ws, pause, until};

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

/// The header of a masked frame that says this length in 16 (126) or 64 (127) bits, and the mask.
fn header(first: u8, form: u8, length: u64) -> Vec<u8> {
    let length = length.to_be_bytes();
    let length = if form == 126 { &length[6..] } else { &length[..] };
    [&[first, 0x80 | form][..], length, &[0; 4]].concat()
}

#[test]
fn a_length_has_its_shortest_form_and_no_sign() {
    let broker = Broker::in_memory();
    for (form, length) in [
        (126, 0),
        (126, 125),
        (127, 0),
        (127, 125),
        (127, 126),
        (127, 65535),
        (127, 1 << 63),
        (127, u64::MAX),
    ] {
        let what = format!("{length} in form {form}");
        check(&broker, &what, 1002, &header(0x81, form, length));
        // Of a control frame the longer forms are too long already.
        check(&broker, &format!("a ping, {what}"), 1002, &header(0x89, form, length));
    }
    check(&broker, "all but the sign", 1009, &header(0x81, 127, (1 << 63) - 1));
    let mut ws = broker.ws();
    for (form, length) in [(126, 126), (126, 65535), (127, 65536)] {
        let mut message = br#"{"type":"ping","id":7}"#.to_vec();
        message.resize(length, b' ');
        ws.raw(&header(0x81, form, length as u64));
        ws.raw(&message);
        assert_eq!(ws.next(), json!({"type": "pong", "ref": 7}), "{length}");
    }
}

#[test]
fn a_close_code_may_be_sent_or_not() {
    let broker = Broker::in_memory();
    let good = [1000..=1003, 1007..=1014, 3000..=4999];
    let edges =
        good.iter().flat_map(|range| [range.start() - 1, *range.start(), *range.end(), range.end() + 1]);
    for code in edges.chain([0, 1, 1005, 1015, 1016, 1100, 2000, u16::MAX]).chain(1008..=1013) {
        let mut ws = broker.ws();
        ws.frame(0x88, &close_body(code, b"why"));
        ws.closes(if good.iter().any(|range| range.contains(&code)) { code } else { 1002 });
    }
    // As long as a control frame may be.
    let mut ws = broker.ws();
    ws.frame(0x88, &close_body(1000, &[b'.'; 123]));
    ws.closes(1000);
}

#[test]
fn a_close_counts_inside_a_message_and_nothing_behind_it() {
    let broker = Broker::in_memory();
    let submit =
        |queue: &str| Ws::masked(0x81, json!({"type": "submit", "queue": queue}).to_string().as_bytes());
    let mut ws = broker.ws();
    let close = Ws::masked(0x88, &close_body(1000, b""));
    ws.raw(&[submit("before"), Ws::masked(0x01, b"{"), close.clone(), submit("inside")].concat());
    ws.closes(1000);
    let mut ws = broker.ws();
    // Not even what breaks a rule is seen.
    ws.raw(&[submit("before"), close, submit("behind"), vec![0xff; 1000]].concat());
    ws.closes(1000);
    let mut ws = broker.ws();
    ws.raw(&[submit("before"), Ws::masked(0xc1, b"{}"), submit("behind")].concat());
    ws.closes(1002);
    until("what came before the end to be done", || {
        (broker.get("/v1/queues/before").status == 200 && broker.count("before", "queued") == 3).then_some(())
    });
    for queue in ["inside", "behind"] {
        broker.get(&format!("/v1/queues/{queue}")).is_error(404, "not_found");
    }
}

#[test]
fn text_is_judged_wherever_it_is_cut() {
    let broker = Broker::in_memory();
    let bad: [&[u8]; 4] =
        [b"\"\xf0\x9f\x98\"", b"\"\xf4\x90\x80\x80\"", b"\"\xe2\x82\xac\x80\"", b"\"\xf0\x9f\x98"];
    for text in bad {
        for cut in 0..=text.len() {
            // In two fragments; in two segments.
            let mut ws = broker.ws();
            ws.frame(0x01, &text[..cut]);
            ws.raw_if_open(&Ws::masked(0x80, &text[cut..]));
            ws.closes(1007);
            let mut ws = broker.ws();
            let frame = Ws::masked(0x81, text);
            let (head, tail) = frame.split_at(6 + cut);
            ws.raw(head);
            // TCP_NODELAY makes it a segment of its own; whether it is read by itself is the broker's affair.
            ws.raw_if_open(tail);
            ws.closes(1007);
        }
    }
    // What cannot become a character is refused before the message ends.
    let mut ws = broker.ws();
    ws.frame(0x01, b"\"\xff");
    ws.closes(1007);
    let mut ws = broker.ws();
    let good = "{\"type\":\"ping\",\"id\":\"\u{e9}\u{20ac}\u{1f600}\"}";
    for cut in 0..=good.len() {
        ws.frame(0x01, &good.as_bytes()[..cut]);
        ws.frame(0x80, &good.as_bytes()[cut..]);
        assert_eq!(ws.next()["ref"], "\u{e9}\u{20ac}\u{1f600}", "{cut}");
    }
}

#[test]
fn every_ping_of_a_hundred_is_answered_in_order() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    // Between fragments, and inside a burst; one more in this second would be too many.
    let pings: Vec<u8> = (0..100).flat_map(|n: u8| Ws::masked(0x89, &[n; 3])).collect();
    ws.raw(&[Ws::masked(0x01, b"{\"type\":"), pings, Ws::masked(0x80, b"\"ping\",\"id\":1}")].concat());
    let (mut pongs, mut answered) = (Vec::new(), false);
    while pongs.len() < 100 || !answered {
        match ws.hear() {
            Heard::Frame(frame) if frame.first == 0x8a => pongs.push(frame.body),
            Heard::Frame(frame) => {
                assert_eq!(
                    serde_json::from_slice::<Value>(&frame.body).unwrap(),
                    json!({"type": "pong", "ref": 1})
                );
                answered = true;
            }
            Heard::End => panic!("the socket ended"),
        }
    }
    assert!(pongs.iter().enumerate().all(|(n, body)| *body == [n as u8; 3]), "{pongs:?}");
    // Pongs are control frames, too.
    check(&broker, "pongs", 1008, &Ws::masked(0x8a, b"").repeat(101));
}

#[test]
fn a_message_may_have_a_thousand_empty_fragments() {
    let broker = Broker::in_memory();
    let mut ws = broker.ws();
    for _ in 0..2 {
        ws.frame(0x01, b"");
        ws.raw(&Ws::masked(0x00, b"").repeat(1000));
        ws.frame(0x00, br#"{"type":"ping","#);
        ws.frame(0x80, br#""id":1}"#);
        assert_eq!(ws.next(), json!({"type": "pong", "ref": 1}));
    }
}

#[test]
fn fragments_are_counted_against_the_limit_together() {
    let broker = Broker::with(&["--engine", "memory", "--message-bytes", "4096"]);
    let fragments = |count: usize| {
        let first = Ws::masked(0x02, b"x");
        [first, Ws::masked(0x00, b"x").repeat(count - 1)].concat()
    };
    let mut ws = broker.ws();
    ws.raw(&fragments(4096));
    ws.frame(0x80, b"");
    assert_eq!(ws.wait_for("error")["code"], "bad_request");
    check(&broker, "one more", 1009, &fragments(4097));
    check(&broker, "an end that is one too many", 1009, &[fragments(4096), Ws::masked(0x80, b"x")].concat());
    // The header says it: its body need not come.
    let length = [&[0x80, 0x80 | 127][..], &(16_u64 << 20).to_be_bytes(), &[0; 4]].concat();
    check(&broker, "a long end", 1009, &[fragments(1), length].concat());
}

/// Room is made for what has come, not for what a header says.
#[test]
fn a_declared_length_costs_nothing() {
    let broker = Broker::in_memory();
    for _ in 0..20 {
        broker.ws().ask(json!({"type": "ping"}));
    }
    let before = broker.memory();
    let mut sockets = Vec::new();
    for n in 0..300 {
        let mut ws = broker.ws();
        let declared = header([0x81, 0x82][n % 2], 127, 1 << 20);
        ws.raw(&[&Ws::masked(0x89, b"!")[..], &declared, b"{"].concat());
        let Heard::Frame(pong) = ws.hear() else { panic!("the socket ended") };
        assert_eq!(pong.first, 0x8a);
        sockets.push(ws);
    }
    let grown = broker.memory().saturating_sub(before);
    assert!(grown < 300 * (32 << 10), "{grown} bytes for 300 declared lengths");
    // Longer ones are refused at once.
    for _ in 0..20 {
        let mut ws = broker.ws();
        ws.raw(&header(0x81, 127, 16 << 20));
        ws.closes(1009);
    }
    let grown = broker.memory().saturating_sub(before);
    assert!(grown < 300 * (32 << 10), "{grown} bytes");
}

#[test]
fn frames_may_be_cut_anywhere() {
    let broker = Broker::in_memory();
    for seed in 0..20 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut ws = broker.ws();
        let mut said = Vec::new();
        for id in 0..30 {
            let filler = "\u{20ac}".repeat(random.random_range(0..300));
            let message = json!({"type": "ping", "id": id, "more": filler}).to_string().into_bytes();
            let mut cuts: Vec<usize> =
                (0..random.random_range(0..4)).map(|_| random.random_range(0..=message.len())).collect();
            cuts.sort_unstable();
            cuts.insert(0, 0);
            cuts.push(message.len());
            let parts = cuts.len() - 1;
            for (nth, cut) in cuts.windows(2).enumerate() {
                let opcode = if nth == 0 { 1 } else { 0 };
                let fin = if nth == parts - 1 { 0x80 } else { 0 };
                said.extend(Ws::masked(fin | opcode, &message[cut[0]..cut[1]]));
                if random.random_range(0..10) == 0 {
                    said.extend(Ws::masked(0x8a, &[b'.'; 125][..random.random_range(0..=125)]));
                }
            }
        }
        let mut rest = &said[..];
        while !rest.is_empty() {
            let (part, left) = rest.split_at(random.random_range(1..=rest.len().min(900)));
            ws.raw(part);
            rest = left;
        }
        for id in 0..30 {
            assert_eq!(ws.next(), json!({"type": "pong", "ref": id}), "seed {seed}");
        }
    }
}

/// Any byte is a sign of life, also one of a message that takes long to arrive.
#[test]
fn a_frame_that_takes_longer_than_silence_may_is_taken() {
    let broker = Broker::with(&["--engine", "memory", "--ping-ms", "300", "--ping-timeout-ms", "700"]);
    let mut ws = broker.ws();
    let frame = Ws::masked(0x81, br#"{"type":"ping","id":"it took a while"}"#);
    let began = Instant::now();
    for byte in &frame {
        ws.raw(&[*byte]);
        pause(Duration::from_millis(40));
    }
    assert!(began.elapsed() > Duration::from_millis(300 + 700));
    assert_eq!(ws.next(), json!({"type": "pong", "ref": "it took a while"}));
}

#[test]
fn a_peer_that_does_not_answer_our_close_is_let_go() {
    let broker = Broker::in_memory();
    let before = broker.descriptors();
    let mut silent: Vec<Ws> = (0..5).map(|_| broker.ws()).collect();
    let began = Instant::now();
    for ws in &mut silent {
        ws.raw(&[0xff]);
        ws.closes(1002);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "the end does not wait for the peer's");
    // They stay as they are; the broker does not.
    until("the descriptors to be given back", || (broker.descriptors() <= before).then_some(()));
    drop(silent);
}
