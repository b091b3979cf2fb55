//! Faults that were found, one test each: the name says what was wrong, the comment tells the story.

use taskyard_proto::codec::{
    ClientFrame, Frame, Rejection, Undecodable, decode_body, decode_bulk, decode_client, decode_server,
    encode_server,
};
use taskyard_proto::message::{Ack, Task};
use taskyard_proto::{
    ClientMessage, Encoding, ErrorCode, Headers, Payload, QueueName, Request, Response, TaskId,
};

fn one(frame: Result<ClientFrame, Undecodable>) -> Result<Request, Rejection> {
    match frame {
        Ok(Frame::One(message)) => message,
        other => panic!("expected one message, got {other:?}"),
    }
}

fn json(text: &str) -> Result<Request, Rejection> {
    one(decode_client(Encoding::Json, text.as_bytes()))
}

/// A refusal by `bad_request`: its `ref` as text, and its words.
fn refused(result: Result<Request, Rejection>) -> (String, String) {
    let rejection = result.expect_err("a refusal");
    assert_eq!(rejection.error.code, ErrorCode::BadRequest);
    (format!("{:?}", rejection.id), rejection.error.message.as_str().to_owned())
}

fn message_pack_text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short text");
    [&[0xd9, length], text.as_bytes()].concat()
}

/// A map whose values are given as MessagePack.
fn message_pack_map(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = vec![0x80 | u8::try_from(entries.len()).expect("a small map")];
    for (key, value) in entries {
        out.extend(message_pack_text(key));
        out.extend_from_slice(value);
    }
    out
}

fn submit(payload: &[u8]) -> Vec<u8> {
    message_pack_map(&[
        ("type", &message_pack_text("submit")),
        ("queue", &message_pack_text("q")),
        ("payload", payload),
    ])
}

/// The payload of a MessagePack submit, as a JSON peer gets it.
fn as_json(payload: &[u8]) -> String {
    match one(decode_client(Encoding::MessagePack, &submit(payload))) {
        Ok(Request { message: ClientMessage::Submit(submit), .. }) => submit.payload().to_json(),
        other => panic!("expected a submit, got {other:?}"),
    }
}

/// The items of an array frame were walked a second time as values of the array, so that their depth
/// was counted from the message. A payload of 64 containers was one too many there, and the whole
/// batch was taken for an empty one: no answer, no task.
#[test]
fn a_batch_with_a_payload_as_deep_as_allowed_was_taken_for_empty() {
    let payload = [vec![0x91; 63], vec![0x90]].concat();
    let frame = [vec![0x92], submit(&payload), submit(&[1])].concat();
    let Ok(Frame::Many(items)) = decode_client(Encoding::MessagePack, &frame) else { panic!("a batch") };
    assert_eq!(items.len(), 2);
    assert!(items.iter().all(Result::is_ok), "{items:?}");
}

/// A container as a map's key became its JSON as text. A key within a key was quoted anew at each
/// level, which doubles the backslashes: 60 levels would have taken 2^60 bytes.
#[test]
fn keys_within_keys_doubled_in_size_at_each_level() {
    let mut payload = vec![0xa1, b'"'];
    for _ in 0..60 {
        payload = [vec![0x81], payload, vec![0xc0]].concat();
    }
    assert!(as_json(&payload).len() < 1000);
}

/// Keys of every kind, now that each has its rule.
#[test]
fn keys_that_are_no_text_become_text() {
    let check = |key: &[u8], expected: &str| {
        let payload = [&[0x81], key, &[1]].concat();
        assert_eq!(as_json(&payload), format!("{{{expected}:1}}"), "{key:x?}");
    };
    check(&[0x05], "\"5\"");
    check(&[0xff], "\"-1\"");
    check(&[0xcf, 255, 255, 255, 255, 255, 255, 255, 255], "\"18446744073709551615\"");
    check(&[0xc3], "\"true\"");
    check(&[0xc0], "\"null\"");
    check(&[0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0], "\"1.5\"");
    check(&[0xc4, 2, 0xff, 0xfe], "\"//4=\"");
    check(&[0xd4, 7, 0x41], "\"QQ==\"");
    check(&[0x92, 1, 2], "\"kgEC\"");
    check(&[0xa3, b'"', b'a', b'"'], "\"\\\"a\\\"\"");
}

/// A converter that looks at each container by itself walks the innermost values once a level: a
/// 16 MiB frame of 64 levels took 64 walks. Deep may cost a little more than flat, not sixty times.
#[test]
fn converting_a_deep_value_walked_it_once_a_level() {
    let wide = vec!["[1,\"a\"]"; 100_000].join(",");
    let time = |depth: usize| {
        let text = format!("{}{wide}{}", "[".repeat(depth), "]".repeat(depth));
        let payload = Payload::json_text(&text).expect("JSON");
        let task = |payload: Payload| Response { reference: None, message: task(payload).into() };
        (0..3)
            .map(|_| {
                let begin = std::time::Instant::now();
                let mut frame = Vec::new();
                encode_server(Encoding::MessagePack, &task(payload.clone()), &mut frame);
                let Ok(Frame::One(response)) = decode_server(Encoding::MessagePack, &frame) else {
                    panic!("a task")
                };
                let mut back = Vec::new();
                encode_server(Encoding::Json, &response, &mut back);
                assert!(back.ends_with(format!("{text}}}").as_bytes()));
                begin.elapsed()
            })
            .min()
            .expect("three runs")
    };
    let (flat, deep) = (time(1), time(63));
    assert!(deep < flat * 10, "flat {flat:?}, deep {deep:?}");
}

fn task(payload: Payload) -> Task {
    Task {
        task: TaskId(1),
        lease: None,
        queue: QueueName::parse("q").expect("a name"),
        attempt: 1,
        max_attempts: 5,
        redelivered: false,
        ack_timeout_ms: 30_000,
        age_ms: 0,
        priority: 4,
        headers: Headers::default(),
        payload,
    }
}

/// The decoder trusted its caller to have checked text frames, and panicked on others.
#[test]
fn json_that_is_not_utf8_panicked() {
    for bytes in [&b"{\"type\":\"\xff\"}"[..], b"\"\xc3\"", b"[\"\xed\xa0\x80\"]", b"\xff"] {
        assert!(decode_client(Encoding::Json, bytes).is_err());
        assert!(decode_server(Encoding::Json, bytes).is_err());
        assert!(decode_body(Encoding::Json, bytes, "submit", &[]).is_err());
        assert!(decode_bulk(Encoding::Json, bytes).is_err());
    }
}

/// An array of more than 1024 messages was reported as a frame that is not JSON, and ten of those
/// close the socket. It is JSON: one `bad_request`.
#[test]
fn too_long_an_array_was_taken_for_a_broken_frame() {
    let pings = |count: usize| format!("[{}]", vec!["{\"type\":\"ping\"}"; count].join(","));
    let ping = message_pack_map(&[("type", &message_pack_text("ping"))]);
    let packed = |count: u16| [&[0xdc], &count.to_be_bytes()[..], &ping.repeat(usize::from(count))].concat();
    for (encoding, fits, long) in [
        (Encoding::Json, pings(1024).into_bytes(), pings(1025).into_bytes()),
        (Encoding::MessagePack, packed(1024), packed(1025)),
    ] {
        let Ok(Frame::Many(items)) = decode_client(encoding, &fits) else { panic!("1024 messages") };
        assert_eq!(items.len(), 1024);
        let (id, text) = refused(one(decode_client(encoding, &long)));
        assert_eq!(id, "None");
        assert!(text.contains("more than 1024 messages"), "{text}");
        assert!(decode_bulk(encoding, &long).is_err());
    }
}

/// `null` means the same as leaving the field out, beside its base64 form too.
#[test]
fn a_null_payload_beside_its_base64_form_was_refused() {
    let ack = r#"{"type":"ack","lease":"x","result":null,"result_b64":"AAH+/w=="}"#;
    match json(ack).map(|request| request.message) {
        Ok(ClientMessage::Ack(Ack { result, .. })) => assert_eq!(result.bytes(), [0, 1, 254, 255]),
        other => panic!("{other:?}"),
    }
    let null = r#"{"type":"ack","lease":"x","result":1,"result_b64":null}"#;
    assert!(json(null).is_ok());
    let both = r#"{"type":"ack","lease":"x","result":1,"result_b64":"AA=="}"#;
    assert!(refused(json(both)).1.contains("both given"));
}

/// A map with a key that is no string is MessagePack, only no message: one `bad_request` with its
/// `ref`. It was reported as a frame that is not MessagePack, and ten of those close the socket.
#[test]
fn a_key_that_is_no_string_was_taken_for_a_broken_frame() {
    let mut frame = message_pack_map(&[("type", &message_pack_text("ping")), ("id", &[9])]);
    frame[0] += 1;
    frame.extend([1, 2]);
    let (id, text) = refused(one(decode_client(Encoding::MessagePack, &frame)));
    assert_eq!(id, "Some(Integer(9))");
    assert!(text.contains("a key is not a string"), "{text}");
}

/// A key that stands twice was refused in the message and in its objects, but not in `headers`, where
/// the last one won.
#[test]
fn a_header_that_stands_twice_was_read_as_the_last() {
    let text = r#"{"type":"submit","queue":"q","headers":{"a":"1","\u0061":"2"}}"#;
    assert_eq!(refused(json(text)).1, "`submit`, field `headers`: the key \"a\" stands twice");
}

/// Each key of an object, and each item of a list, cost some fifty bytes before any was counted: a
/// frame of 16 MiB could take half a gigabyte.
#[test]
fn small_entries_without_end_cost_many_times_their_size() {
    let keys: Vec<String> = (0..5000).map(|i| format!("\"k{i}\":0")).collect();
    let (id, text) = refused(json(&format!("{{\"id\":3,\"type\":\"ping\",{}}}", keys.join(","))));
    assert_eq!((id.as_str(), text.as_str()), ("Some(Integer(3))", "more than 4096 keys in one object"));

    let leases = vec!["\"x\""; 100_000].join(",");
    let (_, text) = refused(json(&format!("{{\"type\":\"ack\",\"leases\":[{leases}]}}")));
    assert_eq!(text, "`ack`, field `leases`: expected at most 1024 items, got more");
}

/// Error texts quoted a key of any length in full before they were cut.
#[test]
fn a_long_key_was_quoted_in_full() {
    let key = "\\u0001".repeat(100_000);
    let (_, text) = refused(json(&format!("{{\"type\":\"ping\",\"{key}\":1,\"{key}\":2}}")));
    assert!(text.len() < 400, "{} bytes", text.len());
}

/// One message of a type that a later version added made a client lose the whole frame, with the tasks
/// in it.
#[test]
fn a_message_of_unknown_type_spoilt_its_whole_frame() {
    let pong = Response { reference: None, message: taskyard_proto::message::Pong {}.into() };
    let frame = br#"[{"type":"pong"},{"type":"later","x":1},{"type":"pong"}]"#;
    assert_eq!(decode_server(Encoding::Json, frame), Ok(Frame::Many(vec![pong.clone(), pong])));
    assert_eq!(decode_server(Encoding::Json, br#"{"type":"later"}"#), Ok(Frame::Many(Vec::new())));
    assert!(decode_server(Encoding::Json, br#"[{"type":"pong"},{"type":7}]"#).is_err());
}
