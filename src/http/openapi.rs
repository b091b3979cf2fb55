//! `/openapi.json`: the routes describe themselves; what all of them share is added here.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContactBuilder, Content, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, Required,
    ResponseBuilder, Schema, SecurityRequirement,
};
use utoipa::{PartialSchema as _, ToSchema};

use super::{routes, schema};

const BEARER: &str = "bearer";
const JSON: &str = "application/json";
const MESSAGE_PACK: &str = "application/msgpack";

const ABOUT: &str = "The same verbs as the protocol's over WebSocket (`/ws`), one request each. Bodies are JSON or \
    MessagePack, by `Content-Type` and `Accept`; where a value is bytes, JSON has a field that ends in `_b64` in its \
    place. Errors are one object, whose `code` says what to do. Times are in milliseconds. Fields that are absent \
    and those that are null mean the same, but for the settings of a queue.";

/// What any request may be answered.
const ALWAYS: &[(&str, &str)] = &[
    ("400", "The request is not what the protocol allows; `field` names what is wrong."),
    ("401", "No token, or a wrong one."),
    (
        "403",
        "The token does not allow this; or the page that asks, or the host that it names, is not allowed.",
    ),
    (
        "429",
        "Too many requests, or a limit of the broker or the account is reached: see `code` and `Retry-After`.",
    ),
    ("500", "A fault of the broker."),
    ("503", "Not now: the broker shuts down, or is not ready. See `Retry-After`."),
];
/// What a request that changes something may be answered beside.
const CHANGING: &[(&str, &str)] = &[("507", "The disk is full.")];
/// What is answered before anything is known of the request: without a body.
const BEFORE_ALL: &[(&str, &str)] =
    &[("431", "The head of the request has more than 16 KiB, or more than 64 headers. No body.")];
/// And one with a body.
const WITH_BODY: &[(&str, &str)] = &[
    ("408", "The body did not come in time."),
    ("413", "The body is longer than the broker allows."),
    ("415", "The body is of a type that is not expected here."),
];

/// The description of all routes.
pub(super) fn document() -> OpenApi {
    let mut document = routes::served().into_openapi();
    document.info = InfoBuilder::new()
        .title("Taskyard")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .contact(None::<ContactBuilder>.map(ContactBuilder::build))
        .build();
    let mut components = ComponentsBuilder::from(document.components.take().unwrap_or_default());
    for (status, description) in ALWAYS.iter().chain(BEFORE_ALL).chain(CHANGING).chain(WITH_BODY) {
        let mut response = ResponseBuilder::new().description(*description);
        let kinds: &[&str] =
            if BEFORE_ALL.iter().any(|(bare, _)| bare == status) { &[] } else { &[JSON, MESSAGE_PACK] };
        for kind in kinds {
            response =
                response.content(*kind, Content::new(Some(Ref::from_schema_name(schema::Error::name()))));
        }
        components = components.response(format!("E{status}"), response);
    }
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "A token, as `taskyard token create` prints it. None is asked for until one exists.",
        ))
        .build();
    components = components
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .schema(schema::Error::name(), schema::Error::schema())
        .schema(schema::Event::name(), schema::Event::schema())
        .schema(schema::Finished::name(), schema::Finished::schema());
    document.components = Some(components.build());
    for (path, item) in &mut document.paths.paths {
        let public = super::front::is_public(path);
        let operations =
            [(&mut item.get, false), (&mut item.put, true), (&mut item.post, true), (&mut item.delete, true)];
        for (operation, changes) in operations {
            if let Some(operation) = operation {
                complete(operation, public, changes);
            }
        }
    }
    document
}

/// Adds to an operation what it has in common with others.
fn complete(operation: &mut Operation, public: bool, changes: bool) {
    let mut errors: Vec<_> = BEFORE_ALL.iter().collect();
    if public {
        // Without authentication a foreign page or host name is turned away all the same.
        errors.extend(ALWAYS.iter().filter(|(status, _)| matches!(*status, "400" | "403")));
    } else {
        operation.security = Some(vec![SecurityRequirement::new(BEARER, Vec::<String>::new())]);
        errors.extend(ALWAYS);
    }
    if changes {
        errors.extend(CHANGING);
    }
    if let Some(body) = &mut operation.request_body {
        errors.extend(WITH_BODY);
        for content in body.content.values_mut() {
            // An empty body is not null, but no body.
            if let Some(RefOr::T(Schema::OneOf(one_of))) = &content.schema
                && let Some(wanted @ RefOr::Ref(_)) = one_of.items.last()
            {
                content.schema = Some(wanted.clone());
                body.required = Some(Required::False);
            }
        }
        if let Some(json) = body.content.get(JSON).cloned() {
            body.content.insert(MESSAGE_PACK.to_owned(), json);
        }
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response
            && let Some(json) = response.content.get(JSON).cloned()
        {
            response.content.insert(MESSAGE_PACK.to_owned(), json);
        }
    }
    for (status, _) in errors {
        let shared = RefOr::Ref(Ref::from_response_name(format!("E{status}")));
        operation.responses.responses.entry((*status).to_owned()).or_insert(shared);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use taskyard_proto::{ClientMessage, ServerMessage};

    use super::*;

    fn described() -> Value {
        serde_json::from_str(&document().to_json().unwrap()).unwrap()
    }

    /// The fields of a schema, sorted; those with `_b64` are the others as bytes.
    fn fields(described: &Value, schema: &str) -> Vec<String> {
        let schema = &described["components"]["schemas"][schema];
        let properties = schema["properties"].as_object().unwrap_or_else(|| panic!("no schema {schema}"));
        let mut names: Vec<String> =
            properties.keys().filter(|name| !name.ends_with("_b64")).cloned().collect();
        names.sort();
        names
    }

    #[test]
    fn the_schemas_of_messages_have_their_fields() {
        let described = described();
        // What the path says, and what does not apply over HTTP.
        for (schema, message, without) in [
            ("Submit", "submit", &["queue"][..]),
            ("Ack", "ack", &["leases"]),
            ("Nack", "nack", &["leases"]),
            ("Release", "release", &["leases"]),
            ("Extend", "extend", &["lease"]),
            ("Progress", "progress", &["lease"]),
            ("Start", "start", &["lease"]),
            ("Cancelled", "cancelled", &["lease"]),
            ("Publish", "publish", &["room"]),
            ("Accepted", "accepted", &[]),
            ("Event", "event", &[]),
            ("Finished", "finished", &[]),
            ("Delivery", "task", &[]),
            ("Settled", "settled", &["results"]),
            ("Done", "ok", &["state"]),
            ("Error", "error", &[]),
        ] {
            let tables = ClientMessage::TABLE.iter().chain(ServerMessage::TABLE);
            let (_, names) = tables.clone().find(|(name, _)| *name == message).unwrap();
            let mut expected: Vec<&str> =
                names.iter().copied().filter(|name| !without.contains(name)).collect();
            expected.sort_unstable();
            if schema == "Start" {
                assert!(expected.is_empty());
                continue;
            }
            assert_eq!(fields(&described, schema), expected, "{schema} and {message}");
        }
    }

    #[test]
    fn the_words_of_schemas_are_those_of_the_protocol() {
        use crate::core::record::Failure;
        use taskyard_proto::{Assign, ErrorCode, IfAbsent, SettleOutcome, TaskState};
        let described = described();
        let words = |schema: &str| {
            let list = described["components"]["schemas"][schema]["enum"].as_array();
            let list = list.unwrap_or_else(|| panic!("no words of {schema}"));
            list.iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        fn texts<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
            words.map(str::to_owned).collect()
        }
        let failures = (0..=u8::MAX).map_while(Failure::from_number).map(Failure::as_str);
        assert_eq!(words("Failure"), texts(failures));
        assert_eq!(words("State"), texts(TaskState::ALL.iter().map(|word| word.as_str())));
        assert_eq!(words("Assign"), texts(Assign::ALL.iter().map(|word| word.as_str())));
        assert_eq!(words("IfAbsent"), texts(IfAbsent::ALL.iter().map(|word| word.as_str())));
        assert_eq!(words("SettleOutcome"), texts(SettleOutcome::ALL.iter().map(|word| word.as_str())));
        let mut codes = words("Code");
        codes.sort();
        let mut all: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        all.sort_unstable();
        assert_eq!(codes, all);
    }

    #[test]
    fn everything_is_described() {
        let described = described();
        assert_eq!(described["openapi"], "3.1.0");
        let mut ids = std::collections::BTreeSet::new();
        let mut bare = Vec::new();
        for (path, item) in described["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let name = format!("{method} {path}");
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{name}: there is another {id}");
                if operation["summary"].as_str().is_none_or(str::is_empty) {
                    bare.push(format!("{name}: summary"));
                }
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    if parameter["description"].as_str().is_none_or(str::is_empty) {
                        bare.push(format!("{name}: {}", parameter["name"]));
                    }
                }
                for part in path.split(['{', '}']).skip(1).step_by(2) {
                    let parameters = operation["parameters"].as_array().unwrap();
                    let found = parameters.iter().any(|p| p["name"] == part && p["in"] == "path");
                    assert!(found, "{name}: {part} is not described");
                }
                let has_body = operation.get("requestBody").is_some();
                assert!(!has_body || operation["responses"].get("413").is_some(), "{name}");
                let public = matches!(path.as_str(), "/" | "/healthz" | "/readyz");
                assert_eq!(operation.get("security").is_none(), public, "{name}");
            }
        }
        for (name, schema) in described["components"]["schemas"].as_object().unwrap() {
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                // One that may be null is described beside what it refers to.
                let either = property["oneOf"].as_array().into_iter().flatten();
                let text = either.chain([property]).find_map(|part| part["description"].as_str());
                let state_or_default = matches!(name.as_str(), "Counts" | "DefaultsShown" | "BackoffShown");
                if !state_or_default && text.is_none_or(str::is_empty) {
                    bare.push(format!("{name}.{field}"));
                }
            }
        }
        assert!(bare.is_empty(), "not described: {bare:#?}");
    }

    /// Every `$ref` leads somewhere.
    #[test]
    fn no_reference_leads_nowhere() {
        fn refs<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|value| refs(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| refs(value, found)),
                _ => {}
            }
        }
        let described = described();
        let mut found = Vec::new();
        refs(&described, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(described.pointer(pointer).is_some(), "{reference}");
        }
    }
}
