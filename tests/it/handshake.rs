//! Upgrades, good and bad.

use serde_json::json;

use crate::support::{Broker, Ws, handshake, http, upgrade_request};

#[test]
fn upgrades_that_are_none_are_told_what_they_lack() {
    let broker = Broker::in_memory();
    let good = upgrade_request(broker.address, "/ws", "");
    let check = |request: &str, status: u16, header: Option<(&str, &str)>| {
        let answer = http::exchange(broker.address, request.as_bytes());
        answer.is_error(status, "bad_request");
        if let Some((name, value)) = header {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
    };
    let without = |line: &str| {
        assert!(good.contains(line), "{line}");
        good.replace(line, "")
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    check(&good.replace("GET", "POST"), 405, Some(("Allow", "GET")));
    check(&good.replace("HTTP/1.1", "HTTP/1.0"), 400, None);
    check(&without("Upgrade: WebSocket\r\n"), 426, Some(("Upgrade", "websocket")));
    check(&without("Connection: keep-alive, Upgrade\r\n"), 426, Some(("Upgrade", "websocket")));
    check(&without(key), 400, None);
    check(&good.replace(key, &key.repeat(2)), 400, None);
    check(&good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400, None);
    check(&good.replace("dGhlIHNhbXBsZSBub25jZQ==", "%%%"), 400, None);
    check(&good.replace("Version: 13", "Version: 8"), 426, Some(("Sec-WebSocket-Version", "13")));
    check(&without("Sec-WebSocket-Version: 13\r\n"), 400, None);
}

#[test]
fn only_unknown_subprotocols_are_refused_with_the_names_of_ours() {
    let broker = Broker::in_memory();
    let request =
        upgrade_request(broker.address, "/ws", "Sec-WebSocket-Protocol: mqtt, taskyard.v2.json\r\n");
    let error = http::exchange(broker.address, request.as_bytes()).is_error(400, "bad_request");
    let text = error["message"].as_str().unwrap();
    assert!(text.contains("taskyard.v1.json") && text.contains("taskyard.v1.msgpack"), "{text}");
}

#[test]
fn the_client_s_first_subprotocol_that_we_know_is_taken() {
    let broker = Broker::in_memory();
    let headers =
        "Sec-WebSocket-Protocol: chat, taskyard.v1.msgpack\r\nSec-WebSocket-Protocol: taskyard.v1.json\r\n";
    let (answer, _connection) =
        handshake(broker.address, upgrade_request(broker.address, "/ws", headers).as_bytes());
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("sec-websocket-protocol"), Some("taskyard.v1.msgpack"));
    let (answer, _connection) =
        handshake(broker.address, upgrade_request(broker.address, "/ws", "").as_bytes());
    assert_eq!(answer.header("sec-websocket-protocol"), None);
}

#[test]
fn a_page_of_a_foreign_origin_is_refused() {
    let broker = Broker::in_memory();
    let status = |origin: &str| {
        let request = upgrade_request(broker.address, "/ws", &format!("Origin: {origin}\r\n"));
        handshake(broker.address, request.as_bytes()).0.status
    };
    assert_eq!(status("https://evil.example"), 403);
    assert_eq!(status("http://127.0.0.1:1"), 403);
    assert_eq!(status(&broker.url()), 101);
    assert_eq!(status("null"), 101);
}

#[test]
fn the_root_is_a_socket_too_and_a_greeting_otherwise() {
    let broker = Broker::in_memory();
    let mut ws = Ws::open(broker.address, "/", &[]);
    ws.gets("welcome", json!({"type": "hello"}));
    let greeting = broker.get("/");
    assert_eq!(greeting.status, 200);
    assert!(greeting.text().starts_with("Taskyard "), "{greeting:?}");
}

#[test]
fn what_is_sent_before_the_answer_arrives_is_kept() {
    let broker = Broker::in_memory();
    let mut bytes = upgrade_request(broker.address, "/ws", "").into_bytes();
    bytes.extend(Ws::masked(0x81, br#"{"type":"hello","id":1}"#));
    bytes.extend(&Ws::masked(0x81, br#"{"type":"ping","id":2}"#)[..9]);
    let (answer, connection) = handshake(broker.address, &bytes);
    assert_eq!(answer.status, 101);
    let mut ws = Ws::over(connection);
    assert_eq!(ws.next()["ref"], 1);
    ws.raw(&Ws::masked(0x81, br#"{"type":"ping","id":2}"#)[9..]);
    assert_eq!(ws.next(), json!({"type": "pong", "ref": 2}));
}
