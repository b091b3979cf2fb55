//! `asyncapi.yaml`, the codec and the messages of the source say the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use taskyard_proto::codec::{decode_client, decode_server, encode_client, encode_server};
use taskyard_proto::message::TaskState;
use taskyard_proto::{ClientMessage, Encoding, ErrorCode, ServerMessage};

/// The document, read once a test.
fn document() -> Value {
    let text = include_str!("../asyncapi.yaml");
    serde_saphyr::from_str(text).expect("it is YAML")
}

/// What a reference within the document leads to; anything else is itself.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        None => value,
        Some(path) => {
            let path = path.strip_prefix('#').expect("references stay within the document");
            resolve(document, document.pointer(path).unwrap_or_else(|| panic!("{path} leads nowhere")))
        }
    }
}

/// The schema itself, where it is said beside a description, or beside null.
fn plain<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let schema = resolve(document, schema);
    match schema.get("allOf").or_else(|| schema.get("anyOf")) {
        Some(inner) => plain(document, &inner[0]),
        None => schema,
    }
}

/// One direction of the conversation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    const BOTH: [Side; 2] = [Side::Client, Side::Server];

    fn table(self) -> &'static [(&'static str, &'static [&'static str])] {
        match self {
            Side::Client => ClientMessage::TABLE,
            Side::Server => ServerMessage::TABLE,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Side::Client => "client-",
            Side::Server => "server-",
        }
    }

    /// What stands beside the fields: the tag that ties answers to questions.
    fn tag(self) -> &'static str {
        match self {
            Side::Client => "id",
            Side::Server => "ref",
        }
    }

    /// Reads a message with the project's own codec, in JSON, and writes it again.
    fn decode(self, message: &Value) -> Result<Value, String> {
        let text = message.to_string();
        let mut again = Vec::new();
        match self {
            Side::Client => {
                let frame = decode_client(Encoding::Json, text.as_bytes()).map_err(|e| format!("{e:?}"))?;
                for request in frame {
                    encode_client(Encoding::Json, &request.map_err(|e| format!("{e:?}"))?, &mut again);
                }
            }
            Side::Server => {
                let frame = decode_server(Encoding::Json, text.as_bytes()).map_err(|e| format!("{e:?}"))?;
                for response in frame {
                    encode_server(Encoding::Json, &response, &mut again);
                }
            }
        }
        serde_json::from_slice(&again).map_err(|error| format!("{text} was taken for no message: {error}"))
    }

    /// The same by way of MessagePack.
    fn transcode(self, message: &Value) -> Value {
        let text = message.to_string();
        let (mut packed, mut again) = (Vec::new(), Vec::new());
        match self {
            Side::Client => {
                for request in decode_client(Encoding::Json, text.as_bytes()).expect("it was read before") {
                    let request = request.expect("it was read before");
                    encode_client(Encoding::MessagePack, &request, &mut packed);
                }
                for request in decode_client(Encoding::MessagePack, &packed).expect("we wrote it") {
                    encode_client(Encoding::Json, &request.expect("we wrote it"), &mut again);
                }
            }
            Side::Server => {
                for response in decode_server(Encoding::Json, text.as_bytes()).expect("it was read before") {
                    encode_server(Encoding::MessagePack, &response, &mut packed);
                }
                for response in decode_server(Encoding::MessagePack, &packed).expect("we wrote it") {
                    encode_server(Encoding::Json, &response, &mut again);
                }
            }
        }
        serde_json::from_slice(&again).expect("we wrote it")
    }
}

/// The messages of one direction: their names and what is said of them.
fn messages(document: &Value, side: Side) -> Vec<(&str, &Value)> {
    let all = document["components"]["messages"].as_object().expect("messages");
    all.iter().filter_map(|(key, message)| Some((key.strip_prefix(side.prefix())?, message))).collect()
}

fn properties(message: &Value) -> &Map<String, Value> {
    message["payload"]["properties"].as_object().expect("a message has properties")
}

fn required(message: &Value) -> BTreeSet<&str> {
    let list = message["payload"]["required"].as_array().expect("a message requires at least its type");
    list.iter().map(|name| name.as_str().expect("a name")).collect()
}

fn examples(message: &Value) -> impl Iterator<Item = &Value> {
    message["examples"].as_array().into_iter().flatten().map(|example| &example["payload"])
}

/// The fields of a message as they stand on the wire.
fn on_wire(fields: &[&str]) -> BTreeSet<String> {
    fields
        .iter()
        .flat_map(|field| match *field {
            "leases" => vec!["lease".to_owned(), "leases".to_owned()],
            "payload" | "result" | "data" => vec![(*field).to_owned(), format!("{field}_b64")],
            field => vec![field.to_owned()],
        })
        .collect()
}

#[test]
fn each_message_and_field_is_described_and_no_other() {
    let document = document();
    for side in Side::BOTH {
        let described: BTreeMap<&str, BTreeSet<String>> = messages(&document, side)
            .into_iter()
            .map(|(name, message)| {
                assert_eq!(message["name"], name);
                assert!(message["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{name}");
                let mut properties = properties(message).clone();
                assert_eq!(properties.remove("type"), Some(json!({"const": name})));
                let tag = properties.remove(side.tag()).unwrap_or_else(|| panic!("{name} has no tag"));
                assert_eq!(plain(&document, &tag), &document["components"]["schemas"]["RequestId"]);
                (name, properties.into_iter().map(|(field, _)| field).collect())
            })
            .collect();
        let declared: BTreeMap<&str, BTreeSet<String>> =
            side.table().iter().map(|(name, fields)| (*name, on_wire(fields))).collect();
        assert_eq!(described, declared);
    }
    let all = document["components"]["messages"].as_object().expect("messages");
    assert_eq!(all.len(), ClientMessage::TABLE.len() + ServerMessage::TABLE.len());
    let in_channel = document["channels"]["socket"]["messages"].as_object().expect("messages");
    assert!(in_channel.keys().eq(all.keys()));
}

#[test]
fn every_example_is_a_message() {
    let document = document();
    for side in Side::BOTH {
        for (name, message) in messages(&document, side) {
            assert!(examples(message).count() > 0, "{name} has no example");
            for example in examples(message) {
                let again = side.decode(example).unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(again["type"], name);
                let sent = |value: &Value| {
                    let mut value = value.clone();
                    // What a client leaves out is the same as null, and as its default.
                    if side == Side::Client {
                        let default =
                            |field: &String| plain(&document, &properties(message)[field])["default"].clone();
                        let fields = value.as_object_mut().expect("an object");
                        fields.retain(|field, value| !value.is_null() && *value != default(field));
                    }
                    value
                };
                assert_eq!(sent(&again), sent(example), "{name}: nothing is lost, and nothing comes to it");
                assert_eq!(sent(&side.transcode(example)), sent(example), "{name}, by way of MessagePack");
            }
        }
    }
}

/// A message of this kind in which `field` may stand.
fn with_field<'a>(message: &'a Value, field: &str) -> &'a Value {
    let has = |example: &&Value| example.get(field).is_some();
    examples(message).find(has).or_else(|| examples(message).next()).expect("every message has an example")
}

fn set(example: &Value, field: &str, value: Value) -> Value {
    let mut changed = example.clone();
    changed[field] = value;
    // Of two that exclude each other only the one that is looked at.
    let other = match field {
        "lease" => "leases",
        "leases" => "lease",
        "run_at" => "delay_ms",
        "delay_ms" => "run_at",
        _ => return changed,
    };
    changed.as_object_mut().expect("an object").remove(other);
    changed
}

/// Values at the borders of a schema, and such as lie just outside.
fn borders(document: &Value, schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let schema = plain(document, schema);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if let Some(words) = schema["enum"].as_array() {
        good.extend(words.iter().cloned());
        bad.push(json!("nonsense"));
    }
    for (limit, step) in [("minimum", -1), ("maximum", 1)] {
        if let Some(border) = schema[limit].as_i64() {
            good.push(json!(border));
            bad.push(json!(border + step));
        }
    }
    if kinds.contains(&"integer") {
        bad.extend([json!(1.5), json!("1")]);
    }
    if kinds == ["boolean"] {
        good.extend([json!(true), json!(false)]);
        bad.push(json!("true"));
    }
    if kinds.contains(&"string") && schema.get("enum").is_none() {
        bad.push(json!(["text"]));
        // A time is no time if it is only long, and an id no id.
        if let (Some(most), None) = (schema["maxLength"].as_u64(), schema["format"].as_str()) {
            let most = usize::try_from(most).expect("a length");
            good.push(json!("a".repeat(most)));
            bad.push(json!("a".repeat(most + 1)));
        }
        if schema["minLength"] == 1 {
            bad.push(json!(""));
        }
        if let Some(pattern) = schema["pattern"].as_str() {
            assert_eq!(pattern, "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$", "the only pattern there is");
            good.extend([json!("-a.b_C9"), json!("_")]);
            bad.extend([json!(""), json!(".a"), json!("a b"), json!("ä")]);
        }
        if schema["format"] == "uuid" {
            bad.extend([json!("0198c0de000070008000000000000001"), json!("")]);
        }
    }
    if let (true, Some(most)) = (kinds.contains(&"array"), schema["maxItems"].as_u64()) {
        let most = usize::try_from(most).expect("a length");
        good.push(json!(vec!["a"; most]));
        bad.extend([json!(vec!["a"; most + 1]), json!("a"), json!({})]);
    }
    (good, bad)
}

/// Leases are opaque: any text may be one, and what is none is answered `lease_lost`, not refused.
fn is_lease(document: &Value, schema: &Value) -> bool {
    let schemas = &document["components"]["schemas"];
    let schema = plain(document, schema);
    schema == &schemas["Lease"] || schema == &schemas["LeaseAsGiven"]
}

#[test]
fn the_ranges_are_those_that_the_codec_holds_a_client_to() {
    let document = document();
    let mut looked_at = 0;
    for (name, message) in messages(&document, Side::Client) {
        for (field, schema) in properties(message) {
            if field == "type" || is_lease(&document, schema) {
                continue;
            }
            let example = with_field(message, field);
            let (good, bad) = borders(&document, schema);
            for value in good {
                let given = set(example, field, value);
                assert!(Side::Client.decode(&given).is_ok(), "{name}.{field}: {given} is refused");
                looked_at += 1;
            }
            for value in bad {
                let given = set(example, field, value);
                assert!(Side::Client.decode(&given).is_err(), "{name}.{field}: {given} is taken");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 200, "{looked_at}");
}

#[test]
fn the_ranges_within_objects_are_those_of_the_codec() {
    let document = document();
    let submit = |field: &str, value: Value| {
        Side::Client.decode(&json!({"type": "submit", "queue": "q", field: value})).is_ok()
    };
    let schemas = &document["components"]["schemas"];
    for (field, inner, schema) in [
        ("backoff", "initial_ms", &schemas["Backoff"]["properties"]["initial_ms"]),
        ("backoff", "max_ms", &schemas["Backoff"]["properties"]["max_ms"]),
        ("backoff", "factor", &schemas["Backoff"]["properties"]["factor"]),
        ("complete", "quorum", &schemas["Complete"]["oneOf"][1]["properties"]["quorum"]),
    ] {
        let (good, bad) = borders(&document, schema);
        assert!(good.len() > 1 && bad.len() > 1, "{field}.{inner}");
        for value in good {
            assert!(submit(field, json!({inner: value})), "{field}.{inner}: {value} is refused");
        }
        for value in bad {
            assert!(!submit(field, json!({inner: value})), "{field}.{inner}: {value} is taken");
        }
    }
    for word in schemas["Complete"]["oneOf"][0]["enum"].as_array().expect("words") {
        assert!(submit("complete", word.clone()));
    }
    for target in schemas["Target"]["oneOf"].as_array().expect("kinds of targets") {
        let mut given = Map::new();
        for (field, schema) in target["properties"].as_object().into_iter().flatten() {
            let schema = plain(&document, schema);
            let value = schema.get("const").cloned().unwrap_or_else(|| schema["enum"][0].clone());
            given.insert(field.clone(), if value.is_null() { json!("name") } else { value });
        }
        assert!(submit("to", given.clone().into()), "{given:?}");
    }
    assert!(!submit("to", json!({"worker": "w", "group": "g"})));
    assert!(submit("backoff", json!({})) && submit("to", json!({})));
}

#[test]
fn what_is_required_is_what_the_codec_misses() {
    let document = document();
    for (name, message) in messages(&document, Side::Client) {
        for field in properties(message).keys().filter(|field| *field != "type") {
            // One of `lease` and `leases` is required: the schema says so beside.
            let one_of_two =
                matches!(field.as_str(), "lease" | "leases") && message["payload"].get("oneOf").is_some();
            let mut without = with_field(message, field).clone();
            without.as_object_mut().expect("an object").remove(field);
            let taken = Side::Client.decode(&without).is_ok();
            let was_there = with_field(message, field).get(field).is_some();
            let needed = required(message).contains(field.as_str()) || (one_of_two && was_there);
            assert_eq!(taken, !needed, "{name}.{field}");
        }
    }
    for (name, message) in messages(&document, Side::Server) {
        let required = required(message);
        for field in properties(message).keys().filter(|field| *field != "type" && *field != "ref") {
            let mut without = with_field(message, field).clone();
            without.as_object_mut().expect("an object").remove(field);
            // What the broker always sends comes back, as null, or cannot be read without.
            let always = Side::Server.decode(&without).map_or(true, |again| again.get(field).is_some());
            let pair =
                ["payload", "result", "data"].iter().any(|pair| field.trim_end_matches("_b64") == *pair);
            assert!(pair || always == required.contains(field.as_str()), "{name}.{field}");
        }
        for example in examples(message) {
            for field in &required {
                assert!(example.get(field).is_some(), "{name}: {field} is missing in {example}");
            }
        }
    }
}

#[test]
fn the_words_are_those_of_the_source() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(schemas["ErrorCode"]["enum"], json!(codes));
    let states: Vec<&str> = TaskState::ALL.iter().map(|state| state.as_str()).collect();
    assert_eq!(schemas["State"]["enum"], json!(states));
    // What the broker says in words is read in all of them, and in no others.
    let mut looked_at = 0;
    for (name, message) in messages(&document, Side::Server) {
        for (field, schema) in properties(message) {
            let schema = plain(&document, schema);
            for word in schema["enum"].as_array().into_iter().flatten() {
                let mut given = with_field(message, field).clone();
                given[field.as_str()] = word.clone();
                assert!(Side::Server.decode(&given).is_ok(), "{name}.{field}: {word}");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 30, "{looked_at}");
}

#[test]
fn every_message_is_of_an_operation_and_every_reference_leads_somewhere() {
    fn walk(document: &Value, value: &Value, used: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(path) = fields.get("$ref").and_then(Value::as_str) {
                    resolve(document, value);
                    used.insert(path.to_owned());
                }
                fields.values().for_each(|value| walk(document, value, used));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(document, value, used)),
            _ => {}
        }
    }
    let document = document();
    assert_eq!(document["asyncapi"], "3.0.0");
    let mut used = BTreeSet::new();
    walk(&document, &document["operations"], &mut used);
    for side in Side::BOTH {
        for (name, _) in messages(&document, side) {
            let path = format!("#/channels/socket/messages/{}{name}", side.prefix());
            assert!(used.contains(&path), "{path} belongs to no operation");
        }
    }
    walk(&document, &document, &mut used);
    for name in document["components"]["schemas"].as_object().expect("schemas").keys() {
        assert!(used.contains(&format!("#/components/schemas/{name}")), "{name} is used by nothing");
    }
    let description = document["channels"]["socket"]["description"].as_str().expect("a description");
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        assert!(description.contains(encoding.subprotocol()), "{encoding:?}");
    }
}
