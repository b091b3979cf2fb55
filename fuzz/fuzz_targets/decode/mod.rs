//! What both encodings promise of bytes that anybody may send.

use arbitrary::Arbitrary;
use taskyard_proto::codec::{
    Frame, decode_body, decode_bulk, decode_client, decode_server, encode_client, encode_client_batch,
    encode_server,
};
use taskyard_proto::message::BATCH_MAX;
use taskyard_proto::{ClientMessage, Encoding, Payload, Request, Response};

use crate::meter::Meter;

#[derive(Arbitrary, Debug)]
pub struct Input<'a> {
    /// Which message a body is read as.
    kind: u8,
    /// What its path says.
    extra: Option<&'a str>,
    bytes: &'a [u8],
}

/// What 1024 messages take that are as short as can be, with their refusals in words.
const BATCH_BYTES: usize = 4 << 20;
/// A byte of a frame costs no more: the shortest entries of a map, and the lists that they are put in.
const TIMES: usize = 128;

fn bounded<T>(bytes: &[u8], decode: impl FnOnce() -> T) -> T {
    let meter = Meter::start();
    let decoded = decode();
    let most = meter.most();
    assert!(most <= bytes.len() * TIMES + BATCH_BYTES, "{most} bytes for {}", bytes.len());
    decoded
}

fn other(encoding: Encoding) -> Encoding {
    match encoding {
        Encoding::Json => Encoding::MessagePack,
        Encoding::MessagePack => Encoding::Json,
    }
}

fn write(encoding: Encoding, request: &Request) -> Vec<u8> {
    let mut out = Vec::new();
    encode_client(encoding, request, &mut out);
    out
}

fn read(encoding: Encoding, bytes: &[u8]) -> Request {
    match decode_client(encoding, bytes) {
        Ok(Frame::One(Ok(request))) => request,
        wrong => panic!("what was written is not read: {wrong:?}, {encoding:?} {bytes:?}"),
    }
}

/// The same message after it was written and read in one encoding, and then in the other.
fn comes_back(encoding: Encoding, first: &Request) {
    let again = read(encoding, &write(encoding, first));
    assert_eq!(again, *first, "written and read");
    let there = |request: &Request| read(other(encoding), &write(other(encoding), request));
    let back = |request: &Request| read(encoding, &write(encoding, request));
    // One way there and back may change what only one of them can say (a number beyond float64 is an infinity in
    // MessagePack, and that is null in JSON); what follows may not.
    let home = back(&there(first));
    let foreign = there(&home);
    assert_eq!(back(&foreign), home, "converted there and back, twice");
    assert_eq!(there(&back(&foreign)), foreign, "converted back and there, twice");
}

/// The same for a payload by itself, whatever its encoding; and others read the JSON too.
fn payload_is_stable(payload: &Payload) {
    let json = |payload: &Payload| {
        let text = payload.to_json();
        let read: Result<serde::de::IgnoredAny, _> = serde_json::from_str(&text);
        assert!(read.is_ok(), "others do not read it: {text}");
        Payload::json_text(&text).expect("what is written is JSON")
    };
    json(&pack(payload));
    let home = json(&pack(&json(payload)));
    let foreign = pack(&home);
    assert_eq!(json(&foreign), home, "JSON, MessagePack, JSON");
    assert_eq!(pack(&json(&foreign)), foreign, "MessagePack, JSON, MessagePack");
}

/// The payload as MessagePack has it, read as the result of an ack.
fn pack(payload: &Payload) -> Payload {
    let mut frame = b"\x83\xa4type\xa3ack\xa5lease\xa1x\xa6result".to_vec();
    frame.extend_from_slice(&payload.to_message_pack());
    match read(Encoding::MessagePack, &frame).message {
        ClientMessage::Ack(ack) => ack.result,
        wrong => panic!("an ack is read as {wrong:?}"),
    }
}

fn payload(message: &ClientMessage) -> Option<&Payload> {
    match message {
        ClientMessage::Submit(m) => Some(m.payload()),
        ClientMessage::Ack(m) => Some(&m.result),
        ClientMessage::Progress(m) => Some(&m.data),
        ClientMessage::Publish(m) => Some(&m.payload),
        _ => None,
    }
}

fn message(encoding: Encoding, request: &Request) {
    comes_back(encoding, request);
    if let Some(payload) = payload(&request.message) {
        payload_is_stable(payload);
    }
}

pub fn check(encoding: Encoding, input: &Input<'_>) {
    let bytes = input.bytes;
    let frame = bounded(bytes, || decode_client(encoding, bytes));
    if frame.is_ok() && encoding == Encoding::Json {
        let read: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(bytes);
        // Too many messages are refused at the first one too many, whatever follows.
        let refused = matches!(&frame, Ok(Frame::One(Err(refused))) if refused.id.is_none());
        assert!(read.is_ok() || refused, "nobody else takes it for JSON: {read:?}");
    }
    match frame {
        Err(undecodable) => assert!(!undecodable.error().message.as_str().is_empty()),
        Ok(Frame::One(Ok(request))) => message(encoding, &request),
        Ok(Frame::One(Err(refused))) => assert!(!refused.error.message.as_str().is_empty()),
        Ok(Frame::Many(items)) => {
            assert!(items.len() <= BATCH_MAX);
            let requests: Vec<Request> = items.into_iter().filter_map(Result::ok).collect();
            requests.iter().for_each(|request| message(encoding, request));
            let mut out = Vec::new();
            encode_client_batch(encoding, &requests, &mut out);
            let expected = requests.into_iter().map(Ok).collect();
            assert_eq!(decode_client(encoding, &out), Ok(Frame::Many(expected)));
        }
    }
    if let Ok(items) = bounded(bytes, || decode_bulk(encoding, bytes)) {
        assert!(items.len() <= BATCH_MAX);
        for submit in items.into_iter().flatten() {
            assert_eq!(submit.type_text(), "submit");
            message(encoding, &Request { id: None, message: submit });
        }
    }
    let (kind, fields) = ClientMessage::TABLE[usize::from(input.kind) % ClientMessage::TABLE.len()];
    let extra: Vec<(&'static str, &str)> =
        input.extra.iter().filter_map(|text| Some((*fields.first()?, *text))).collect();
    if let Ok(body) = bounded(bytes, || decode_body(encoding, bytes, kind, &extra)) {
        assert_eq!(body.type_text(), kind);
        message(encoding, &Request { id: None, message: body });
    }
    // The other direction: what a client's library reads.
    if let Ok(frame) = bounded(bytes, || decode_server(encoding, bytes)) {
        for first in frame {
            let mut out = Vec::new();
            encode_server(encoding, &first, &mut out);
            let again: Vec<Response> =
                decode_server(encoding, &out).expect("it was written").into_iter().collect();
            assert_eq!(again, [first]);
        }
    }
}
