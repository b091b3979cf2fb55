//! The frames in `golden/` are what the codec writes and reads, byte for byte.
//! `TASKYARD_BLESS=1 cargo test -p taskyard-proto` writes them anew.

mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use taskyard_proto::codec::{Frame, decode_client, decode_server, encode_client, encode_server};
use taskyard_proto::{ClientMessage, Encoding, ServerMessage};

const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::MessagePack];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn file_name(name: &str, encoding: Encoding) -> String {
    match encoding {
        Encoding::Json => format!("{name}.json"),
        Encoding::MessagePack => format!("{name}.msgpack.hex"),
    }
}

/// A frame as its file holds it: JSON as it is, MessagePack in hex; a newline ends the file.
fn to_file(encoding: Encoding, frame: &[u8]) -> String {
    let text = match encoding {
        Encoding::Json => String::from_utf8(frame.to_vec()).expect("JSON is UTF-8"),
        Encoding::MessagePack => frame.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    text + "\n"
}

fn from_file(encoding: Encoding, text: &str) -> Vec<u8> {
    let line = text.strip_suffix('\n').expect("a newline ends the file");
    match encoding {
        Encoding::Json => line.as_bytes().to_vec(),
        Encoding::MessagePack => (0..line.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&line[at..at + 2], 16).expect("two hex digits"))
            .collect(),
    }
}

/// Compares a frame with its file, or writes the file; the frame that the file holds.
fn check(name: &str, encoding: Encoding, frame: &[u8]) -> Vec<u8> {
    let path = directory().join(file_name(name, encoding));
    let text = to_file(encoding, frame);
    if std::env::var_os("TASKYARD_BLESS").is_some() {
        std::fs::write(&path, &text).expect("write a golden file");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, stored, "{name}: TASKYARD_BLESS=1 rewrites the file if this change is meant");
    from_file(encoding, &stored)
}

#[test]
fn requests_are_spelled_as_in_the_golden_files() {
    for encoding in ENCODINGS {
        for (name, request) in samples::requests(encoding) {
            let mut frame = Vec::new();
            encode_client(encoding, &request, &mut frame);
            let stored = check(name, encoding, &frame);
            assert_eq!(decode_client(encoding, &stored), Ok(Frame::One(Ok(request))), "{name}");
        }
    }
}

#[test]
fn responses_are_spelled_as_in_the_golden_files() {
    for encoding in ENCODINGS {
        for (name, response) in samples::responses(encoding) {
            let mut frame = Vec::new();
            encode_server(encoding, &response, &mut frame);
            let stored = check(name, encoding, &frame);
            assert_eq!(decode_server(encoding, &stored), Ok(Frame::One(response)), "{name}");
        }
    }
}

#[test]
fn a_payload_of_the_other_encoding_is_converted_to_the_same_frame() {
    for (from, to) in [(ENCODINGS[0], ENCODINGS[1]), (ENCODINGS[1], ENCODINGS[0])] {
        for ((name, converted), (_, native)) in samples::requests(from).into_iter().zip(samples::requests(to))
        {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            encode_client(to, &converted, &mut left);
            encode_client(to, &native, &mut right);
            assert_eq!(to_file(to, &left), to_file(to, &right), "{name}");
        }
        for ((name, converted), (_, native)) in
            samples::responses(from).into_iter().zip(samples::responses(to))
        {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            encode_server(to, &converted, &mut left);
            encode_server(to, &native, &mut right);
            assert_eq!(to_file(to, &left), to_file(to, &right), "{name}");
        }
    }
}

#[test]
fn every_field_of_every_message_is_in_a_golden_frame() {
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut note = |frame: &[u8]| {
        let object: serde_json::Map<_, _> = serde_json::from_slice(frame).expect("a JSON object");
        let message = object["type"].as_str().expect("a string type").to_owned();
        seen.entry(message).or_default().extend(object.keys().cloned());
    };
    for (_, request) in samples::requests(Encoding::Json) {
        let mut frame = Vec::new();
        encode_client(Encoding::Json, &request, &mut frame);
        note(&frame);
    }
    for (_, response) in samples::responses(Encoding::Json) {
        let mut frame = Vec::new();
        encode_server(Encoding::Json, &response, &mut frame);
        note(&frame);
    }
    for (message, fields) in ClientMessage::TABLE.iter().chain(ServerMessage::TABLE) {
        for field in *fields {
            assert!(seen.get(*message).is_some_and(|keys| keys.contains(*field)), "{message}.{field}");
        }
    }
}

#[test]
fn no_golden_file_is_without_its_value() {
    let known: BTreeSet<String> = ENCODINGS
        .into_iter()
        .flat_map(|encoding| {
            let requests = samples::requests(encoding).into_iter().map(|(name, _)| name);
            let responses = samples::responses(encoding).into_iter().map(|(name, _)| name);
            requests.chain(responses).map(|name| file_name(name, encoding)).collect::<Vec<_>>()
        })
        .chain(["README.md".to_owned()])
        .collect();
    for entry in std::fs::read_dir(directory()).expect("the golden directory") {
        let name = entry.expect("a directory entry").file_name().to_string_lossy().into_owned();
        assert!(known.contains(&name), "golden/{name} belongs to no value in tests/samples");
    }
}
