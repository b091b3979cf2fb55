//! HTTP: the description is of the routes that there are, and of the protocol's.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::http;
use crate::support::{Broker, Tokens};

/// The verbs of each path that is described.
fn described(broker: &Broker) -> BTreeMap<String, BTreeSet<String>> {
    let answer = broker.get("/openapi.json");
    assert_eq!(answer.status, 200);
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let verbs = |item: &Value| {
        let methods = item.as_object().unwrap().keys().map(|key| key.to_uppercase());
        methods.collect::<BTreeSet<_>>()
    };
    document["paths"].as_object().unwrap().iter().map(|(path, item)| (path.clone(), verbs(item))).collect()
}

/// A path with something in its gaps.
fn filled(path: &str) -> String {
    path.replace("{task}", "0198c0de-0000-7000-8000-000000000000").replace(['{', '}'], "")
}

#[test]
fn every_described_route_is_there_with_no_other_verb() {
    let broker = Broker::in_memory();
    let described = described(&broker);
    assert!(described.len() > 25, "{described:?}");
    for (path, verbs) in &described {
        let answer = http::send(broker.address, "BREW", &filled(path), "", b"");
        answer.is_error(405, "bad_request");
        let allowed: BTreeSet<String> =
            answer.header("allow").unwrap().split(',').map(|verb| verb.trim().to_owned()).collect();
        let mut expected = verbs.clone();
        if expected.contains("GET") {
            expected.insert("HEAD".into());
        }
        assert_eq!(allowed, expected, "{path}");
    }
}

/// The protocol's table of routes, as paths and verbs. Its names for what a path names are shorter.
fn table() -> BTreeSet<(String, String)> {
    let protocol =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/proto/PROTOCOL.md")).unwrap();
    let section = protocol.split("\n## 7. HTTP\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut found = BTreeSet::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let mut verbs: Vec<&str> = Vec::new();
        for quoted in row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2) {
            let (said, path) = quoted.split_once(' ').unwrap_or(if quoted.starts_with('/') {
                ("", quoted)
            } else {
                (quoted, "")
            });
            if !said.is_empty() {
                if path.is_empty() || !verbs.is_empty() && !quoted.contains('/') {
                    verbs.push(said);
                    continue;
                }
                verbs.push(said);
            }
            let path = path.split(['?', '&']).next().unwrap();
            // A list and one of it in a row: only GET is a verb of the list.
            let (list, one) = match path.split_once("[/") {
                Some((list, rest)) => (Some(list), format!("{list}/{}", rest.trim_end_matches(']'))),
                None => (None, path.trim_end_matches('[').to_owned()),
            };
            found.extend(list.map(|list| ("GET".to_owned(), list.to_owned())));
            let names = [("{q}", "{queue}"), ("{id}", "{task}"), ("{w}", "{worker}")];
            let one = names.iter().fold(one, |path, (from, to)| path.replace(from, to));
            found.extend(verbs.iter().map(|verb| (verb.to_string(), one.clone())));
        }
    }
    found
}

#[test]
fn every_route_of_the_protocol_is_described() {
    let broker = Broker::in_memory();
    let described = described(&broker);
    let table = table();
    assert!(table.len() > 25, "{table:?}");
    let mut missing = Vec::new();
    for (verb, path) in table {
        let paths = match path.strip_suffix("/VERB") {
            Some(lease) => ["ack", "nack", "release", "extend", "progress", "start", "cancelled"]
                .map(|verb| format!("{lease}/{verb}"))
                .into(),
            None => vec![path],
        };
        for path in paths {
            if !described.get(&path).is_some_and(|verbs| verbs.contains(&verb)) {
                missing.push(format!("{verb} {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_description_is_for_those_with_a_token() {
    let broker = Tokens::new().broker(&[]);
    let answer = broker.get("/openapi.json");
    answer.is_error(401, "unauthorized");
    assert_eq!(broker.admin().get("/openapi.json").status, 200);
    // What is said to need none does.
    let document = broker.admin().get("/openapi.json").json();
    for (path, item) in document["paths"].as_object().unwrap() {
        let open = item["get"].is_object() && item["get"].get("security").is_none();
        let verb = item.as_object().unwrap().keys().next().unwrap().to_uppercase();
        let answer = broker.send(&verb, &filled(path), &Value::Null);
        assert_eq!(answer.status == 401, !open, "{path}: {answer:?}");
    }
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], json!("bearer"));
}
