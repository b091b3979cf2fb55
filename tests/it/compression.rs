//! permessage-deflate (RFC 7692): what is agreed on, what comes of it, and what is refused.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::{Broker, Heard, Ws, handshake, message_pack, upgrade_request};

const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

fn broker(min_bytes: usize) -> Broker {
    let min_bytes = min_bytes.to_string();
    Broker::with(&["--engine", "memory", "--compression", "--compression-min-bytes", &min_bytes])
}

/// A socket with this offer, and what is agreed on.
fn offer(broker: &Broker, offer: &str) -> (Ws, Option<String>) {
    let headers = format!("Sec-WebSocket-Extensions: {offer}\r\n");
    let (answer, connection) =
        handshake(broker.address, upgrade_request(broker.address, "/ws", &headers).as_bytes());
    assert_eq!(answer.status, 101, "{answer:?}");
    (Ws::over(connection), answer.header("sec-websocket-extensions").map(str::to_owned))
}

/// A socket that compresses.
fn compressing(broker: &Broker) -> Ws {
    let (ws, agreed) = offer(broker, "permessage-deflate; client_max_window_bits");
    assert_eq!(agreed.as_deref(), Some(PLAIN));
    ws
}

fn deflate(message: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new(Compression::best(), false);
    let mut out = Vec::with_capacity(message.len() + 1024);
    compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    assert_eq!(compress.total_in(), message.len() as u64);
    assert!(out.ends_with(&TAIL));
    out.truncate(out.len() - TAIL.len());
    out
}

/// Inflates with a window of so many bits, and not one more.
fn inflate(compressed: &[u8], window_bits: u8) -> Vec<u8> {
    let mut inflate = Decompress::new_with_window_bits(false, window_bits);
    let mut out = Vec::with_capacity(4 << 20);
    inflate.decompress_vec(&[compressed, &TAIL].concat(), &mut out, FlushDecompress::Sync).unwrap();
    out
}

/// The next message, and whether it came compressed.
fn next(ws: &mut Ws) -> (Value, bool) {
    let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
    let compressed = frame.first & 0x40 != 0;
    let body = if compressed { inflate(&frame.body, 15) } else { frame.body };
    let message = match frame.first & !0x40 {
        0x81 => serde_json::from_slice(&body).unwrap(),
        0x82 => message_pack::decode(&body),
        _ => panic!("no message: {:x} {body:?}", frame.first),
    };
    (message, compressed)
}

#[test]
fn it_is_agreed_on_where_it_is_on_and_can_be_kept() {
    let off = Broker::in_memory();
    assert_eq!(offer(&off, "permessage-deflate").1, None);
    let broker = broker(512);
    let nothing = handshake(broker.address, upgrade_request(broker.address, "/ws", "").as_bytes()).0;
    assert_eq!(nothing.header("sec-websocket-extensions"), None);
    for (offered, agreed) in [
        ("permessage-deflate", Some(PLAIN.to_owned())),
        ("permessage-deflate; client_max_window_bits=9", Some(PLAIN.to_owned())),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            Some(PLAIN.to_owned()),
        ),
        ("x-other; a=b, permessage-deflate", Some(PLAIN.to_owned())),
        ("permessage-deflate; server_max_window_bits=9", Some(format!("{PLAIN}; server_max_window_bits=9"))),
        ("permessage-deflate; unheard_of, permessage-deflate", Some(PLAIN.to_owned())),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_max_window_bits=16", None),
        ("permessage-deflate; unheard_of=1", None),
        ("permessage-deflate-2", None),
        (";", None),
    ] {
        let (mut ws, answer) = offer(&broker, offered);
        assert_eq!(answer, agreed, "{offered}");
        // Declined, the socket goes on without.
        assert_eq!(ws.gets("pong", json!({"type": "ping"}))["ref"], 1);
        if agreed.is_none() {
            ws.frame(0xc1, &deflate(br#"{"type":"ping"}"#));
            ws.closes(1002);
        }
    }
}

/// A compressing worker that holds a task sends these bytes: it is closed, and the task is another's.
#[track_caller]
fn check(broker: &Broker, what: &str, code: u16, bytes: &[u8]) {
    let mut bad = compressing(broker);
    bad.subscribe("held", 1);
    let task = bad.submit(json!({"queue": "held"}));
    bad.task();
    bad.raw_if_open(bytes);
    assert!(!bad.closes(code).is_empty(), "{what}");
    let mut good = broker.ws();
    good.subscribe("held", 1);
    let again = good.task();
    assert_eq!((&again["task"], &again["redelivered"]), (&json!(task), &json!(true)), "{what}");
    good.ack(&again);
    good.gets("ok", json!({"type": "unsubscribe", "queue": "held"}));
}

#[test]
fn the_bit_stands_on_the_first_frame_of_a_message_alone() {
    let broker = broker(1 << 20);
    let message = deflate(br#"{"type":"ping"}"#);
    let check = |what: &str, bytes: &[u8]| check(&broker, what, 1002, bytes);
    check("a continuation", &[Ws::masked(0x41, &message[..4]), Ws::masked(0xc0, &message[4..])].concat());
    check("of a plain message", &[Ws::masked(0x01, b"{"), Ws::masked(0xc0, b"}")].concat());
    check("a ping", &Ws::masked(0xc9, b""));
    check("a pong", &Ws::masked(0xca, b""));
    check("a close", &Ws::masked(0xc8, &[3, 0xe8]));
    check("another bit with it", &Ws::masked(0xe1, &message));
    check("and the third", &Ws::masked(0xd1, &message));
}

#[test]
fn what_does_not_inflate_closes_1007() {
    let broker = broker(1 << 20);
    let check = |what: &str, bytes: &[u8]| check(&broker, what, 1007, bytes);
    check("garbage", &Ws::masked(0xc1, &[0xff; 10]));
    check("binary garbage", &Ws::masked(0xc2, &[0xff; 10]));
    check("a plain message with the bit", &Ws::masked(0xc1, br#"{"type":"ping"}"#));
    let whole = deflate(br#"{"type":"ping","id":"a message that is cut off"}"#);
    for length in [1, whole.len() / 2, whole.len() - 1] {
        check(&format!("{length} bytes of it"), &Ws::masked(0xc1, &whole[..length]));
    }
    // A block without compression that is cut off would else get the tail's bytes for its own.
    check(
        "a stored block",
        &Ws::masked(0xc2, &[0x00, 0x0a, 0x00, 0xf5, 0xff, b'a', b'b', b'c', b'd', b'e', b'f']),
    );
    check("no text", &Ws::masked(0xc1, &deflate(b"\"\xff\"")));
    check("half a character", &Ws::masked(0xc1, &deflate(b"\"\xe2\x82")));
    // A distance behind the beginning: nothing of another's message is to be had.
    check("a reference to what was before", &Ws::masked(0xc1, &[0x02, 0x13, 0x00, 0x00]));
}

/// Few bytes that inflate to very many messages were all taken on at once: 65 KB took 2.6 GB.
#[test]
fn few_bytes_that_are_very_many_messages_are_taken_on_in_parts() {
    let broker = broker(1 << 20);
    let array = format!("[{}1]", "1,".repeat(1023));
    let frames = Ws::masked(0xc1, &deflate(array.as_bytes())).repeat(2500);
    assert!(frames.len() < 80 << 10, "{}", frames.len());
    let before = broker.memory();
    let mut sockets: Vec<Ws> = (0..4).map(|_| compressing(&broker)).collect();
    for ws in &mut sockets {
        ws.raw(&frames);
    }
    // Nobody reads the answers, of which there would be ten million.
    for ws in &mut sockets {
        ws.closes(4130);
    }
    let grown = broker.memory().saturating_sub(before);
    // A tenth of that. Most is the dispatcher's inbox, whose bound of 64 MiB counts a refusal for less than it takes: some
    // 95 MB with one socket, and 10 to 40 for what the four of them leave unread.
    assert!(grown < 256 << 20, "{grown} bytes");
}

#[test]
fn a_bomb_closes_1009_and_takes_no_memory() {
    let broker = broker(1 << 20);
    let mut compress = Compress::new(Compression::best(), false);
    let mut bomb = Vec::with_capacity(256 << 10);
    compress.compress_vec(&vec![b' '; 128 << 20], &mut bomb, FlushCompress::Sync).unwrap();
    assert_eq!(compress.total_in(), 128 << 20);
    bomb.truncate(bomb.len() - TAIL.len());
    let frame = Ws::masked(0xc1, &bomb);
    check(&broker, "a bomb", 1009, &frame);
    let before = broker.memory();
    for _ in 0..20 {
        let mut ws = compressing(&broker);
        ws.raw_if_open(&frame);
        ws.closes(1009);
    }
    let grown = broker.memory().saturating_sub(before);
    // A message, its fragments, and what the allocator keeps of them for each of its threads.
    assert!(grown < 32 << 20, "{grown} bytes");
    // What does not compress may be a little longer than the limit.
    let too_long = vec![0; (1 << 20) + (1 << 20) / 512 + 65];
    check(&broker, "compressed, and yet too long", 1009, &Ws::masked(0xc1, &too_long));

    // To the byte.
    let mut message = br#"{"type":"ping","id":1}"#.to_vec();
    message.resize(1 << 20, b' ');
    let mut ws = compressing(&broker);
    ws.frame(0xc1, &deflate(&message));
    assert_eq!(ws.next()["ref"], 1);
    message.push(b' ');
    ws.frame(0xc1, &deflate(&message));
    ws.closes(1009);
}

/// Half a million final blocks in one message, each of which ends a stream.
#[test]
fn a_message_of_nothing_but_ends_holds_nobody_up() {
    let broker = broker(1 << 20);
    let mut ws = compressing(&broker);
    let before = broker.ticks();
    ws.frame(0xc1, &[0x03, 0x00].repeat(1 << 19));
    assert_eq!(next(&mut ws).0["code"], "bad_request");
    let took = broker.ticks() - before;
    assert!(took < 200, "{took} hundredths of a second");
}

#[test]
fn compressed_messages_come_in_fragments_and_among_plain_ones() {
    let broker = broker(1 << 20);
    let mut ws = compressing(&broker);
    let text = json!({"type": "ping", "id": "\u{20ac}\u{1f600}"}).to_string();
    let message = deflate(text.as_bytes());
    for cut in 0..=message.len() {
        ws.frame(0x41, &message[..cut]);
        ws.frame(0x89, b"between");
        ws.frame(0x00, b"");
        ws.frame(0x80, &message[cut..]);
        assert!(matches!(ws.hear(), Heard::Frame(pong) if pong.first == 0x8a && pong.body == b"between"));
        assert_eq!(next(&mut ws).0["ref"], "\u{20ac}\u{1f600}", "{cut}");
    }
    ws.text(&text);
    assert_eq!(next(&mut ws).0["type"], "pong");
    // Without compression, in several blocks, and behind a final one: RFC 7692, section 7.2.3.
    let stored = |last: u8, part: &[u8]| {
        let length = (part.len() as u16).to_le_bytes();
        [&[last][..], &length, &length.map(|byte| !byte), part].concat()
    };
    let (one, two) = text.as_bytes().split_at(9);
    for blocks in [
        [stored(0, text.as_bytes()), vec![0]].concat(),
        [stored(0, one), stored(0, two), vec![0]].concat(),
        [stored(1, one), stored(1, two), vec![0]].concat(),
        [stored(1, one), stored(1, two)].concat(),
        [stored(0, one), stored(0, b""), stored(1, two), vec![0]].concat(),
    ] {
        ws.frame(0xc1, &blocks);
        assert_eq!(next(&mut ws).0["type"], "pong", "{blocks:x?}");
    }
    for nothing in [&[][..], &[0]] {
        ws.frame(0xc1, nothing);
        assert_eq!(next(&mut ws).0["code"], "bad_request");
    }
}

#[test]
fn what_is_long_enough_comes_compressed() {
    const MIN: usize = 400;
    let broker = broker(MIN);
    for bits in [9, 15] {
        let (mut ws, _) = offer(&broker, &format!("permessage-deflate; server_max_window_bits={bits}"));
        ws.text(r#"{"type":"subscribe","id":1,"queue":"q","mode":"auto","credit":10}"#);
        assert_eq!(
            [next(&mut ws).0["type"].clone(), next(&mut ws).0["type"].clone()],
            ["welcome", "subscribed"]
        );
        let (mut longest_plain, mut shortest_compressed) = (0, usize::MAX);
        for length in 0..300 {
            let submit = json!({"type": "submit", "queue": "q", "payload": "p".repeat(length)});
            ws.frame(0xc1, &deflate(submit.to_string().as_bytes()));
            let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
            if frame.first == 0xc1 {
                let body = inflate(&frame.body, bits);
                assert!(body.len() > frame.body.len());
                shortest_compressed = shortest_compressed.min(body.len());
            } else {
                assert_eq!(frame.first, 0x81);
                longest_plain = longest_plain.max(frame.body.len());
            }
        }
        assert_eq!((longest_plain, shortest_compressed), (MIN - 1, MIN));
    }
}

#[test]
fn tasks_pass_through_it_as_they_are() {
    let broker = broker(0);
    let mut random = SmallRng::seed_from_u64(5);
    let noise: Vec<u8> = (0..300_000).map(|_| random.random()).collect();
    let long = "a task to be done, and another, ".repeat(20_000);
    let payloads = [
        r#"{ "b" : 1.0, "a":[ 1e2 ,"\u20ac"] , "a":null }"#.to_owned(),
        format!("[\"{long}\"]"),
        "\"\"".to_owned(),
        format!(
            "\"{}\"",
            noise
                .iter()
                .map(|byte| char::from(b'!' + byte % 90))
                .collect::<String>()
                .replace(['\\', '"'], "~")
        ),
    ];
    for bits in [9, 12, 15] {
        let (mut ws, _) = offer(&broker, &format!("permessage-deflate; server_max_window_bits={bits}"));
        for payload in &payloads {
            let submit = format!(r#"{{"type":"submit","queue":"q{bits}","payload":{payload}}}"#);
            ws.frame(0xc1, &deflate(submit.as_bytes()));
        }
        ws.frame(
            0xc1,
            &deflate(format!(r#"{{"type":"subscribe","queue":"q{bits}","credit":9}}"#).as_bytes()),
        );
        let mut seen = 0;
        while seen < payloads.len() {
            let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
            let body = if frame.first == 0xc1 { inflate(&frame.body, bits) } else { frame.body };
            let text = String::from_utf8(body).unwrap();
            if text.starts_with(r#"{"type":"task""#) {
                let whole = format!(r#""payload":{},"#, payloads[seen]);
                let whole_at_end = format!(r#""payload":{}}}"#, payloads[seen]);
                assert!(
                    text.contains(&whole) || text.ends_with(&whole_at_end),
                    "{bits} bits, payload {seen}"
                );
                seen += 1;
            }
        }
    }
    // Bytes that do not compress go as they are.
    let headers =
        "Sec-WebSocket-Protocol: taskyard.v1.msgpack\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    let (_, connection) =
        handshake(broker.address, upgrade_request(broker.address, "/ws", headers).as_bytes());
    let mut ws = Ws::over(connection);
    let answer = crate::support::http::post(broker.address, "/v1/queues/noise/tasks", "image/png", &noise);
    assert_eq!(answer.status, 201, "{answer:?}");
    ws.frame(0xc2, &deflate(&message_pack::encode(&json!({"type": "subscribe", "queue": "noise"}))));
    loop {
        let Heard::Frame(frame) = ws.hear() else { panic!("the socket ended") };
        if frame.body.len() > noise.len() {
            assert_eq!(frame.first, 0x82);
            assert!(frame.body.windows(noise.len()).any(|part| part == noise));
            return;
        }
    }
}
