//! `PROTOCOL.md` and the source say the same.

use std::collections::{BTreeMap, BTreeSet};

use taskyard_proto::codec::{decode_client, decode_server};
use taskyard_proto::message::TaskState;
use taskyard_proto::{ClientMessage, CloseCode, Encoding, ErrorCode, ServerMessage};

const DOCUMENT: &str = include_str!("../PROTOCOL.md");

/// The cells of a table's row; `None` when the line is none.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The words in `backticks`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the tables in `text` whose first column is headed `head`, without head and rule.
fn rows<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let mut rows = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if cells(line).is_some_and(|cells| cells[0] == head) {
            rows.extend(lines.by_ref().skip(1).map_while(cells));
        }
    }
    rows
}

/// The messages of one direction with their fields, as the document has them.
fn documented(direction: &str) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut messages = BTreeMap::new();
    for section in DOCUMENT.split("\n#### ").skip(1) {
        // A section ends where any other heading begins.
        let section = section.split("\n## ").next().and_then(|text| text.split("\n### ").next());
        let section = section.expect("a split has a first part");
        let (heading, body) = section.split_once('\n').expect("a section has a body");
        let Some(name) = heading.strip_prefix(direction) else { continue };
        let name = quoted(name).next().expect("a heading names its message");
        let fields = rows(body, "field").iter().flat_map(|row| quoted(row[0])).map(str::to_owned).collect();
        assert!(messages.insert(name, fields).is_none(), "{name} is documented twice");
    }
    messages
}

/// The messages of one direction with their fields, as they stand on the wire.
fn declared(table: &'static [(&str, &[&str])]) -> BTreeMap<&'static str, BTreeSet<String>> {
    let on_wire = |field: &str| match field {
        "leases" => vec!["lease".to_owned(), "leases".to_owned()],
        "payload" | "result" | "data" => vec![field.to_owned(), format!("{field}_b64")],
        _ => vec![field.to_owned()],
    };
    table
        .iter()
        .map(|(name, fields)| (*name, fields.iter().flat_map(|field| on_wire(field)).collect()))
        .collect()
}

#[test]
fn each_message_and_field_is_documented_and_no_other() {
    assert_eq!(documented("C→B "), declared(ClientMessage::TABLE));
    assert_eq!(documented("B→C "), declared(ServerMessage::TABLE));
}

#[test]
fn the_error_codes_are_those_of_the_source() {
    let documented: Vec<(String, u16, bool)> = rows(DOCUMENT, "code")
        .iter()
        .map(|row| {
            let status = row[1].parse().expect("an HTTP status");
            assert!(["yes", "no"].contains(&row[2]), "{row:?}");
            (row[0].trim_matches('`').to_owned(), status, row[2] == "yes")
        })
        .collect();
    let declared: Vec<_> = ErrorCode::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), code.http_status(), code.retryable()))
        .collect();
    assert_eq!(documented, declared);
}

#[test]
fn the_close_codes_are_those_of_the_source() {
    use taskyard_proto::code::Advice;

    let rows = rows(DOCUMENT, "close");
    let documented: Vec<CloseCode> =
        rows.iter().map(|row| CloseCode(row[0].parse().expect("a close code"))).collect();
    assert_eq!(documented, CloseCode::ALL);
    for (row, code) in rows.iter().zip(CloseCode::ALL) {
        let advice = code.advice();
        match row[2] {
            "do not reconnect" => assert_eq!(advice, Advice::Stop, "{code:?}"),
            "back off" => assert_eq!(advice, Advice::BackOff, "{code:?}"),
            "reconnect now" | "reconnect now, with a new one" => {
                assert_eq!(advice, Advice::ReconnectNow, "{code:?}")
            }
            "" | "mend the client" => {}
            other => panic!("{code:?}: {other}"),
        }
    }
}

#[test]
fn the_states_are_those_of_the_source() {
    let documented: Vec<(&str, bool)> =
        rows(DOCUMENT, "state").iter().map(|row| (row[0].trim_matches('`'), row[2] == "yes")).collect();
    let declared: Vec<_> = TaskState::ALL.iter().map(|state| (state.as_str(), state.is_final())).collect();
    assert_eq!(documented, declared);
}

#[test]
fn every_example_is_a_frame() {
    let blocks = DOCUMENT.split("```json\n").skip(1).map(|text| text.split("```").next().unwrap_or_default());
    let mut seen = BTreeSet::new();
    for line in blocks.flat_map(str::lines) {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        let first = if value.is_array() { &value[0] } else { &value };
        let kind = first["type"].as_str().expect(line).to_owned();
        if ClientMessage::TABLE.iter().any(|(name, _)| *name == kind) {
            let frame = decode_client(Encoding::Json, line.as_bytes()).expect(line);
            for message in frame {
                assert!(message.is_ok(), "{line}: {message:?}");
            }
        } else {
            let frame = decode_server(Encoding::Json, line.as_bytes());
            assert!(frame.is_ok(), "{line}: {frame:?}");
        }
        check_fields(line, first, &kind);
        seen.insert(kind);
    }
    assert!(seen.len() > 25, "the examples were found: {seen:?}");
}

/// The decoder ignores unknown fields, so that a misspelt one in an example would pass it; and it takes
/// what is missing for null, while the broker always sends all but what does not apply.
fn check_fields(line: &str, message: &serde_json::Value, kind: &str) {
    let (table, tag) = match ServerMessage::TABLE.iter().any(|(name, _)| *name == kind) {
        true => (declared(ServerMessage::TABLE), "ref"),
        false => (declared(ClientMessage::TABLE), "id"),
    };
    for key in message.as_object().expect(line).keys() {
        assert!(key == "type" || key == tag || table[kind].contains(key), "{line}: {key}");
    }
    if tag == "ref" {
        let mut again = Vec::new();
        let frame = decode_server(Encoding::Json, line.as_bytes()).expect(line);
        for response in frame {
            taskyard_proto::codec::encode_server(Encoding::Json, &response, &mut again);
        }
        assert_eq!(line, String::from_utf8(again).expect("JSON"), "as the broker spells it");
    }
}

#[test]
fn the_links_within_the_document_lead_somewhere() {
    let anchors: BTreeSet<String> = DOCUMENT
        .lines()
        .filter_map(|line| line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#')))
        .map(|heading| {
            let kept = heading.to_lowercase().replace(' ', "-");
            kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
        })
        .collect();
    let mut links = 0;
    for link in DOCUMENT.split("](#").skip(1) {
        let anchor = link.split(')').next().unwrap_or_default();
        assert!(anchors.contains(anchor), "#{anchor}");
        links += 1;
    }
    assert!(links > 5);
}
