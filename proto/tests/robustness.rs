//! Random messages, values and bytes, from fixed seeds. Each failure prints its seed, which is then
//! to become a named test.

mod samples;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Map, Value, json};
use taskyard_proto::codec::{
    Frame, decode_body, decode_bulk, decode_client, decode_server, encode_body, encode_client,
    encode_client_batch, encode_server, encode_server_batch,
};
use taskyard_proto::message::{Accepted, CREDIT_MAX, Error, TaskState, YEAR_MS};
use taskyard_proto::{
    ClientMessage, Encoding, ErrorCode, LeaseId, Payload, Request, Response, ServerMessage, TaskId,
};

use Encoding::{Json, MessagePack};

/// Runs `check` with a generator for each of `count` seeds, and says which seed it was that failed.
fn seeds(count: u64, mut check: impl FnMut(&mut StdRng)) {
    for seed in 0..count {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(&mut StdRng::seed_from_u64(seed));
        }));
        assert!(result.is_ok(), "failed with seed {seed}");
    }
}

fn pick<'a, T>(rng: &mut StdRng, list: &'a [T]) -> &'a T {
    &list[rng.random_range(0..list.len())]
}

fn text(rng: &mut StdRng, most: usize) -> String {
    let length = rng.random_range(0..=most);
    (0..length)
        .map(|_| *pick(rng, &['a', 'Z', '0', ' ', '"', '\\', '\n', '\u{1}', '\u{7f}', 'é', '\u{2028}', '😀']))
        .collect()
}

fn name(rng: &mut StdRng) -> String {
    let length = rng.random_range(1..=20);
    (0..length).map(|i| *pick(rng, if i == 0 { b"aZ9_-" } else { b"aZ9_-." }) as char).collect()
}

/// Any value; a float now and then whole, huge or tiny, an integer at the edges of its range.
fn value(rng: &mut StdRng, depth: usize) -> Value {
    let kinds = if depth == 0 { 5 } else { 7 };
    match rng.random_range(0..kinds) {
        0 => Value::Null,
        1 => rng.random::<bool>().into(),
        2 => match rng.random_range(0..4) {
            0 => (*pick(rng, &[i64::MIN, -129, -128, -33, -32, -1, 0, 127, 128, 65_535, 65_536, i64::MAX]))
                .into(),
            1 => u64::MAX.into(),
            2 => rng.random::<i64>().into(),
            _ => rng.random::<u64>().into(),
        },
        3 => {
            let float = f64::from_bits(rng.random());
            let edges = [1.0, -0.0, 0.1, 1e16, 1e300, 5e-324, f64::MAX];
            json!(if float.is_finite() && rng.random() { float } else { *pick(rng, &edges) })
        }
        4 => text(rng, 40).into(),
        5 => (0..rng.random_range(0..5)).map(|_| value(rng, depth - 1)).collect::<Vec<_>>().into(),
        _ => (0..rng.random_range(0..5))
            .map(|_| (text(rng, 8), value(rng, depth - 1)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

fn lease(rng: &mut StdRng) -> String {
    LeaseId { number: rng.random(), slot: rng.random(), recipient: rng.random() }.to_string()
}

fn headers(rng: &mut StdRng) -> Value {
    (0..rng.random_range(0..4))
        .map(|_| (text(rng, 10), Value::from(text(rng, 20))))
        .collect::<Map<_, _>>()
        .into()
}

fn state(rng: &mut StdRng) -> Value {
    pick(rng, TaskState::ALL).as_str().into()
}

fn outcome(rng: &mut StdRng) -> Value {
    (*pick(rng, &["ok", "already", "lease_lost"])).into()
}

fn durations(rng: &mut StdRng) -> Value {
    let buckets: Vec<u64> = (0..rng.random_range(0..5)).map(|_| rng.random()).collect();
    json!({"count": rng.random::<u64>(), "sum_us": rng.random::<u64>(), "buckets": buckets})
}

/// One queue as an overview tells it, or all of them.
fn standing(rng: &mut StdRng, one: bool) -> Value {
    let counts: Map<String, Value> = ["scheduled", "queued", "leased", "retrying", "dead"]
        .iter()
        .map(|state| ((*state).to_owned(), rng.random::<u64>().into()))
        .collect();
    let words = "accepted duplicate refused delivered redelivered acked nacked released timed_out worker_lost dead \
                 cancelled expired";
    let events: Map<String, Value> =
        words.split(' ').map(|word| (word.to_owned(), rng.random::<u64>().into())).collect();
    let oldest: Option<u64> = rng.random::<bool>().then(|| rng.random());
    let mut all = json!({
        "counts": counts, "oldest_ms": oldest, "workers": rng.random::<u64>(), "in_flight": rng.random::<u64>(),
        "credit_free": rng.random::<u64>(), "events": events,
    });
    if one {
        all["queue"] = name(rng).into();
        all["paused"] = rng.random::<bool>().into();
    }
    all
}

/// A value that the field `field` of the message `message` allows.
fn field(rng: &mut StdRng, message: &str, field: &str) -> Value {
    match (message, field) {
        ("hello", "resume") => match rng.random_range(0..3) {
            0 => rng.random::<bool>().into(),
            _ => text(rng, 20).into(),
        },
        ("welcome", "resume")
        | (_, "token" | "client" | "session" | "server" | "message" | "error" | "field" | "run_at") => {
            text(rng, 12).into()
        }
        ("revoked", "reason") => {
            (*pick(rng, &["ack_timeout", "run_limit", "cancelled", "expired", "removed"])).into()
        }
        ("going_away", "reason") => (*pick(rng, &["restart", "operator"])).into(),
        (_, "reason") => text(rng, 30).into(),
        ("subscribe" | "credit", "credit") => rng.random_range(0..=CREDIT_MAX).into(),
        ("submit", "priority") => rng.random_range(0..=9).into(),
        ("submit", "max_attempts") => rng.random_range(1..=1000).into(),
        ("submit" | "nack" | "release", "delay_ms") => rng.random_range(0..=YEAR_MS).into(),
        ("submit" | "extend", "ack_timeout_ms") | (_, "timeout_ms") => {
            rng.random_range(100..=86_400_000).into()
        }
        (_, "ttl_ms") => rng.random_range(1..=YEAR_MS).into(),
        ("cancel", "grace_ms") => rng.random_range(0..=3_600_000).into(),
        ("observe", "every_ms") => pick(rng, &[json!(0), json!(250), json!(60_000)]).clone(),
        ("observe", "queues") => (0..rng.random_range(0..4)).map(|_| name(rng)).collect::<Vec<_>>().into(),
        ("overview", "queues") => {
            (0..rng.random_range(0..3)).map(|_| standing(rng, true)).collect::<Vec<_>>().into()
        }
        ("overview", "totals") => standing(rng, false),
        ("overview", "version" | "engine") => text(rng, 12).into(),
        ("overview", "hops") => json!({
            "accepted_to_durable": durations(rng), "durable_to_assigned": durations(rng),
            "assigned_to_sent": durations(rng), "sent_to_settled": durations(rng),
        }),
        ("overview", "hop_bounds_us") => {
            (0..rng.random_range(0..5)).map(|_| rng.random::<u64>()).collect::<Vec<_>>().into()
        }
        ("overview", "log") => match rng.random() {
            true => Value::Null,
            false => {
                json!({"bytes": 1, "live_bytes": 2, "segments": 3, "sync": durations(rng), "batch_records_avg": 1.5})
            }
        },
        ("overview", "process") => match rng.random() {
            true => Value::Null,
            false => json!({"rss_bytes": rng.random::<u64>(), "cpu_ms": 1, "open_fds": 2, "threads": 3}),
        },
        (_, "queue" | "worker" | "room" | "from") => name(rng).into(),
        (_, "groups") => (0..rng.random_range(0..4)).map(|_| name(rng)).collect::<Vec<_>>().into(),
        (_, "in_flight" | "leases" | "kept" | "lost") => {
            (0..rng.random_range(0..4)).map(|_| lease(rng)).collect::<Vec<_>>().into()
        }
        (_, "lease") => lease(rng).into(),
        (_, "task") => TaskId(rng.random()).to_string().into(),
        (_, "labels" | "headers") => headers(rng),
        (_, "payload" | "result" | "data") => value(rng, 4),
        (_, "percent") => rng.random_range(0.0..=100.0).into(),
        (_, "mode") => (*pick(rng, &["manual", "auto"])).into(),
        (_, "assign") => (*pick(rng, &["round_robin", "least_loaded", "sticky"])).into(),
        (_, "confirm") => (*pick(rng, &["durable", "memory", "none"])).into(),
        (_, "complete") => pick(rng, &[json!("all"), json!("any"), json!({"quorum": 3})]).clone(),
        (_, "sticky_key" | "order_key" | "fair_key" | "dedup_id") => format!("k{}", text(rng, 10)).into(),
        (_, "backoff") => {
            json!({"initial_ms": rng.random_range(0..=86_400_000), "factor": rng.random_range(1.0..=10.0)})
        }
        (_, "to") => {
            let name = name(rng);
            pick(
                rng,
                &[
                    json!({}),
                    json!({"worker": name}),
                    json!({"worker": name, "if_absent": "fail"}),
                    json!({"group": name}),
                    json!({"all": true}),
                    json!({"group": name, "all": true}),
                ],
            )
            .clone()
        }
        (_, "limits") => json!({"message_bytes": rng.random::<u64>(), "credit": 1, "unconfirmed": 2}),
        (_, "outcome") => outcome(rng),
        (_, "results") => json!([{"lease": lease(rng), "outcome": outcome(rng)}]),
        (_, "recipients") => {
            json!([{"worker": name(rng), "state": state(rng), "attempts": 1, "result": value(rng, 2), "error": null}])
        }
        (_, "state") => state(rng),
        (_, "code") => pick(rng, ErrorCode::ALL).as_str().into(),
        (
            _,
            "batch" | "explicit_start" | "retry" | "watch" | "exclude_self" | "resumed" | "redelivered"
            | "duplicate" | "retryable" | "started" | "durable" | "draining",
        ) => rng.random::<bool>().into(),
        _ => rng.random::<u64>().into(),
    }
}

/// A random message of a table, as JSON. `sparse` leaves out fields that may be absent.
fn message(rng: &mut StdRng, table: &[(&str, &[&str])], tag: &str, sparse: bool) -> Value {
    const REQUIRED: &[&str] = &["queue", "lease", "task", "room"];
    let (kind, fields) = *pick(rng, table);
    let mut object = Map::new();
    object.insert("type".into(), kind.into());
    if rng.random() {
        let id = if rng.random() {
            text(rng, 20).into()
        } else {
            rng.random_range(-(1_i64 << 53) + 1..1 << 53).into()
        };
        object.insert(tag.into(), id);
    }
    for name in fields {
        let several = *name == "leases" && rng.random();
        let required = REQUIRED.contains(name) || *name == "leases" || (kind, *name) == ("credit", "credit");
        if !sparse || required || rng.random() {
            let key = if *name == "leases" && !several { "lease" } else { *name };
            object.insert(key.into(), field(rng, kind, key));
        }
        if rng.random_range(0..8) == 0 {
            object.insert(format!("unknown-{}", text(rng, 4)), value(rng, 3));
        }
    }
    object.into()
}

#[test]
fn a_client_message_survives_both_encodings() {
    seeds(1500, |rng| {
        let text = message(rng, ClientMessage::TABLE, "id", true).to_string();
        let read = |encoding, bytes: &[u8]| -> Request {
            match decode_client(encoding, bytes) {
                Ok(Frame::One(Ok(request))) => request,
                other => panic!("{text}: {other:?}"),
            }
        };
        let write = |encoding, request: &Request| {
            let mut frame = Vec::new();
            encode_client(encoding, request, &mut frame);
            frame
        };
        let first = read(Json, text.as_bytes());
        assert_eq!(read(Json, &write(Json, &first)), first, "{text}");
        let packed = write(MessagePack, &first);
        let second = read(MessagePack, &packed);
        assert_eq!(write(MessagePack, &second), packed, "{text}");
        assert_eq!(read(Json, &write(Json, &second)), first, "{text}");
    });
}

/// An object of these entries, in this order, in both encodings.
fn object_of(pairs: &[(&String, &Value)]) -> [(Encoding, Vec<u8>); 2] {
    let entries: Vec<String> = pairs.iter().map(|(key, value)| format!("{}:{value}", json!(key))).collect();
    let text = format!("{{{}}}", entries.join(","));
    let message_pack = Payload::json_text(&text).expect("it is JSON").to_message_pack();
    [(Json, text.into_bytes()), (MessagePack, message_pack)]
}

#[test]
fn fields_in_any_order_are_the_same_message_and_none_may_stand_twice() {
    seeds(1000, |rng| {
        let message = message(rng, ClientMessage::TABLE, "id", true);
        let fields = message.as_object().expect("a message is an object");
        let mut pairs: Vec<_> = fields.iter().collect();
        let sorted = object_of(&pairs).map(|(encoding, bytes)| decode_client(encoding, &bytes));
        pairs.shuffle(rng);
        let shuffled = object_of(&pairs).map(|(encoding, bytes)| decode_client(encoding, &bytes));
        assert_eq!(sorted, shuffled, "{pairs:?}");
        let twice = *pick(rng, &pairs);
        pairs.insert(rng.random_range(0..=pairs.len()), twice);
        for (encoding, bytes) in object_of(&pairs) {
            let refused = match decode_client(encoding, &bytes) {
                Ok(Frame::One(Err(refused))) => refused.error.message.as_str().to_owned(),
                other => panic!("{other:?}"),
            };
            assert!(refused.contains("stands twice"), "{refused} of {pairs:?}");
        }
    });
}

#[test]
fn a_message_of_the_broker_survives_both_encodings() {
    seeds(1500, |rng| {
        let text = message(rng, ServerMessage::TABLE, "ref", false).to_string();
        let read = |encoding, bytes: &[u8]| -> Response {
            match decode_server(encoding, bytes) {
                Ok(Frame::One(response)) => response,
                other => panic!("{text}: {other:?}"),
            }
        };
        let write = |encoding, response: &Response| {
            let mut frame = Vec::new();
            encode_server(encoding, response, &mut frame);
            frame
        };
        let first = read(Json, text.as_bytes());
        assert_eq!(read(Json, &write(Json, &first)), first, "{text}");
        let packed = write(MessagePack, &first);
        let second = read(MessagePack, &packed);
        assert_eq!(write(MessagePack, &second), packed, "{text}");
        assert_eq!(read(Json, &write(Json, &second)), first, "{text}");
    });
}

#[test]
fn arrays_hold_what_was_put_into_them() {
    for encoding in [Json, MessagePack] {
        let requests: Vec<_> = samples::requests(encoding).into_iter().map(|(_, request)| request).collect();
        let mut frame = Vec::new();
        encode_client_batch(encoding, &requests, &mut frame);
        let expected = requests.into_iter().map(Ok).collect();
        assert_eq!(decode_client(encoding, &frame), Ok(Frame::Many(expected)));

        let responses: Vec<_> =
            samples::responses(encoding).into_iter().map(|(_, response)| response).collect();
        let mut frame = Vec::new();
        encode_server_batch(encoding, &responses, &mut frame);
        assert_eq!(decode_server(encoding, &frame), Ok(Frame::Many(responses)));
    }
}

/// A payload of JSON as a MessagePack client's `ack` carries it on.
fn through_message_pack(text: &str) -> String {
    let payload = Payload::json_text(text).expect("JSON");
    let ack = taskyard_proto::message::Ack {
        leases: LeaseId { number: 1, slot: 1, recipient: 1 }.into(),
        result: payload,
    };
    let mut frame = Vec::new();
    encode_client(MessagePack, &Request { id: None, message: ack.into() }, &mut frame);
    match decode_client(MessagePack, &frame) {
        Ok(Frame::One(Ok(Request { message: ClientMessage::Ack(ack), .. }))) => ack.result.to_json(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn json_comes_back_from_message_pack_as_it_was() {
    seeds(1500, |rng| {
        let text = value(rng, 6).to_string();
        assert_eq!(through_message_pack(&text), text);
    });
}

#[test]
fn json_that_is_spelled_otherwise_comes_back_by_the_rules() {
    for (sent, back) in [
        (" [ 1 , { \"a\" : 2 } ] ", "[1,{\"a\":2}]"),
        ("[1.0,1.50,1e2,1E-2]", "[1.0,1.5,100.0,0.01]"),
        ("[-0,-0.0,0,0.0]", "[-0.0,-0.0,0,0.0]"),
        ("[18446744073709551615,18446744073709551616]", "[18446744073709551615,1.8446744073709552e+19]"),
        ("[-9223372036854775808,-9223372036854775809]", "[-9223372036854775808,-9.223372036854776e+18]"),
        ("[1e308,1e309,-1e309,1e-400]", "[1e+308,null,null,0.0]"),
        (r#"["\ud800","\udc00x","\ud83d\ude00","\/"]"#, "[\"\u{fffd}\",\"\u{fffd}x\",\"😀\",\"/\"]"),
        (r#"{"a":1,"\u0061":2}"#, r#"{"a":1,"a":2}"#),
        ("{\"\":{\"\":[]}}", "{\"\":{\"\":[]}}"),
        ("\"\\u0000\\u001f\u{7f}\"", "\"\\u0000\\u001f\u{7f}\""),
    ] {
        assert_eq!(through_message_pack(sent), back, "{sent}");
    }
}

/// Everything that takes bytes from outside. What it says does not matter here, only that it returns.
fn decode_all(bytes: &[u8]) {
    for encoding in [Json, MessagePack] {
        if let Ok(frame) = decode_client(encoding, bytes) {
            for request in frame.into_iter().flatten() {
                // What was accepted can be written, in both encodings, and read again.
                for other in [Json, MessagePack] {
                    let mut out = Vec::new();
                    encode_client(other, &request, &mut out);
                    let again = decode_client(other, &out);
                    assert!(matches!(again, Ok(Frame::One(Ok(_)))), "{request:?}: {again:?}");
                }
            }
        }
        if let Ok(frame) = decode_server(encoding, bytes) {
            for response in frame {
                for other in [Json, MessagePack] {
                    let mut out = Vec::new();
                    encode_server(other, &response, &mut out);
                    let again = decode_server(other, &out);
                    assert!(again.is_ok(), "{response:?}: {again:?}");
                    encode_body(other, &response.message);
                }
            }
        }
        let _ = decode_body(encoding, bytes, "submit", &[("queue", "q")]);
        let _ = decode_bulk(encoding, bytes);
    }
}

fn golden_frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for encoding in [Json, MessagePack] {
        for (_, request) in samples::requests(encoding) {
            frames.push(Vec::new());
            encode_client(encoding, &request, frames.last_mut().expect("just pushed"));
        }
        for (_, response) in samples::responses(encoding) {
            frames.push(Vec::new());
            encode_server(encoding, &response, frames.last_mut().expect("just pushed"));
        }
    }
    frames
}

#[test]
fn a_truncated_frame_is_refused_without_a_panic() {
    for (encoding, frame) in
        golden_frames().iter().map(|frame| (if frame[0] == b'{' { Json } else { MessagePack }, frame))
    {
        for end in 0..frame.len() {
            decode_all(&frame[..end]);
            assert!(decode_client(encoding, &frame[..end]).is_err(), "{encoding:?} {:x?}", &frame[..end]);
        }
    }
}

#[test]
fn a_damaged_frame_does_not_panic() {
    let frames = golden_frames();
    seeds(6000, |rng| {
        let mut frame = pick(rng, &frames).clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..frame.len());
            match rng.random_range(0..4) {
                0 => frame[at] ^= 1 << rng.random_range(0..8),
                1 => frame[at] = rng.random(),
                2 => frame.insert(at, *pick(rng, b"\"\\{}[],:0-\xff\xc1\xdf\xdd\xc6\x80")),
                _ => {
                    let from = rng.random_range(0..frame.len());
                    let part = frame[at.min(from)..at.max(from)].to_vec();
                    frame.splice(at..at, part);
                }
            }
        }
        decode_all(&frame);
    });
}

#[test]
fn random_bytes_do_not_panic() {
    seeds(6000, |rng| {
        let length = rng.random_range(0..64);
        let heads = [b'{', b'[', 0x81, 0x91, 0xde, 0xdc];
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        bytes.insert(0, *pick(rng, &heads));
        decode_all(&bytes);
        // Random MessagePack is nearly always a value of some kind, so also as a payload.
        let payload = [&b"\x83\xa4type\xa6submit\xa5queue\xa1q\xa7payload"[..], &bytes[1..]].concat();
        decode_all(&payload);
    });
}

/// The most address space this process has had, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[test]
fn a_declared_length_allocates_nothing() {
    let before = peak_bytes();
    for head in [0xdd, 0xdf, 0xc6, 0xc9, 0xdb] {
        let huge = [head, 0xff, 0xff, 0xff, 0xfe, 0xc0, 0xc0];
        decode_all(&huge);
        decode_all(&[&b"\x82\xa4type\xa3ack\xa6leases"[..], &huge].concat());
        decode_all(&[&b"\x83\xa4type\xa6submit\xa5queue\xa1q\xa7headers"[..], &huge].concat());
        decode_all(&[&b"\x91\x81\xa4type"[..], &huge].concat());
    }
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        // The smallest of those lengths is 4 GiB; tests that run beside this one take far less.
        assert!(after - before < 1 << 30, "{} bytes more", after - before);
    }
}

#[test]
fn the_largest_frames_take_time_in_proportion() {
    let mebi = 1 << 20;
    for bytes in [
        b"[".repeat(4 * mebi),
        b"{\"\":".repeat(mebi),
        b"\"\\ud800".repeat(mebi),
        [&b"{"[..], &b"\"a\":0,".repeat(mebi), b"\"a\":0}"].concat(),
        [&b"{\"type\":\"ack\",\"leases\":["[..], &b"0,".repeat(mebi), b"0]}"].concat(),
        [&b"{\"type\":\"submit\",\"queue\":\"q\",\"priority\":"[..], &b"9".repeat(mebi), b"}"].concat(),
        vec![0x91; 4 * mebi],
        vec![0x81; 4 * mebi],
        [&[0xdf, 0, 0x10, 0, 0][..], &[0xa0, 0xc0].repeat(mebi)].concat(),
        [&[0xdd, 0, 0x10, 0, 0][..], &[0x80].repeat(mebi)].concat(),
    ] {
        decode_all(&bytes);
    }
}

#[test]
fn an_answer_without_its_type_is_a_body() {
    let accepted = Accepted { task: TaskId(1), duplicate: false };
    let body = encode_body(Json, &accepted.into());
    assert_eq!(body, br#"{"task":"00000000-0000-0000-0000-000000000001","duplicate":false}"#);
    let error = Error::new(ErrorCode::NotFound, "no such task").task(TaskId(1));
    let body: Value = serde_json::from_slice(&encode_body(Json, &error.into())).expect("JSON");
    assert_eq!(body["code"], "not_found");
}
