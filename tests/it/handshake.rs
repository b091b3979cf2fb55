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
    check(&without("Sec-WebSocket-Version: 13\r\n"), 426, Some(("Sec-WebSocket-Version", "13")));
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

#[test]
fn a_version_is_said_once_and_is_13() {
    let broker = Broker::in_memory();
    let good = upgrade_request(broker.address, "/ws", "");
    for version in ["12", "14", "0", "-13", "x", "13, 8", "013"] {
        let request = good.replace("Version: 13", &format!("Version: {version}"));
        let answer = http::exchange(broker.address, request.as_bytes());
        answer.is_error(426, "bad_request");
        assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{version}: {answer:?}");
    }
    for versions in [["13", "13"], ["13", "8"]] {
        let lines = versions.map(|version| format!("Sec-WebSocket-Version: {version}\r\n")).concat();
        let request = good.replace("Sec-WebSocket-Version: 13\r\n", &lines);
        http::exchange(broker.address, request.as_bytes()).is_error(400, "bad_request");
    }
}

#[test]
fn a_key_is_sixteen_bytes() {
    let broker = Broker::in_memory();
    let good = upgrade_request(broker.address, "/ws", "");
    for key in [
        "",
        "AAAAAAAAAAAAAAAAAAAA",
        "AAAAAAAAAAAAAAAAAAAAAAA=",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==",
        "dGhlIHNhbXBsZSBu b25jZQ==",
        "dGhlIHNhbXBsZSBub25jZ\u{51}==x",
    ] {
        let request = good.replace("dGhlIHNhbXBsZSBub25jZQ==", key);
        http::exchange(broker.address, request.as_bytes()).is_error(400, "bad_request");
    }
}

#[test]
fn the_words_of_an_upgrade_come_in_any_case_and_company() {
    let broker = Broker::in_memory();
    let good = upgrade_request(broker.address, "/ws", "");
    let (connection, upgrade) = ("Connection: keep-alive, Upgrade\r\n", "Upgrade: WebSocket\r\n");
    for (connection_lines, upgrade_lines, status) in [
        ("Connection: keep-alive, Upgrade\r\n", "Upgrade: websocket\r\n", 101),
        ("connection: UPGRADE\r\n", "upgrade: WEBSOCKET\r\n", 101),
        ("Connection:upgrade,keep-alive\r\n", "Upgrade:\twebsocket\t\r\n", 101),
        ("Connection: , ,Upgrade,\r\n", "Upgrade: h2c, websocket\r\n", 101),
        ("Connection: keep-alive\r\nConnection: Upgrade\r\n", "Upgrade: h2c\r\nUpgrade: websocket\r\n", 101),
        ("Connection: keep-alive\r\n", "Upgrade: websocket\r\n", 426),
        ("Connection: keep-alive Upgrade\r\n", "Upgrade: websocket\r\n", 426),
        ("Connection: Upgrades\r\n", "Upgrade: websocket\r\n", 426),
        ("Connection: Upgrade\r\n", "Upgrade: h2c\r\n", 426),
        ("Connection: Upgrade\r\n", "Upgrade: websockets\r\n", 426),
    ] {
        let request = good.replace(connection, connection_lines).replace(upgrade, upgrade_lines);
        let (answer, _connection) = handshake(broker.address, request.as_bytes());
        assert_eq!(answer.status, status, "{connection_lines:?} {upgrade_lines:?}: {answer:?}");
    }
}

/// The body was never read, and the socket never opened: it was answered 101, then nothing, and stayed
/// for as long as its peer pleased.
#[test]
fn an_upgrade_has_no_body() {
    let broker = Broker::in_memory();
    let submit = Ws::masked(0x81, br#"{"type":"submit","queue":"q"}"#);
    let length = format!("Content-Length: {}\r\n", submit.len());
    let chunk = format!("{:x}\r\n", submit.len()).into_bytes();
    let chunked = [&chunk[..], &submit, b"\r\n0\r\n\r\n"].concat();
    for (header, body) in [
        (length.as_str(), submit.as_slice()),
        ("Content-Length: 5\r\n", b"hello"),
        ("Content-Length: 5\r\n", b""),
        ("Transfer-Encoding: chunked\r\n", &chunked),
        ("Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    ] {
        let head = upgrade_request(broker.address, "/ws", header).into_bytes();
        http::exchange(broker.address, &[&head, body].concat()).is_error(400, "bad_request");
    }
    let head = upgrade_request(broker.address, "/ws", "Content-Length: 0\r\n").into_bytes();
    let (answer, connection) = handshake(broker.address, &[&head[..], &Ws::masked(0x89, b"?")].concat());
    assert_eq!(answer.status, 101, "{answer:?}");
    assert!(matches!(Ws::over(connection).hear(), crate::support::Heard::Frame(pong) if pong.body == b"?"));
    broker.get("/v1/queues/q").is_error(404, "not_found");
}

#[test]
fn much_may_be_sent_before_the_answer_arrives() {
    let broker = Broker::in_memory();
    // More than a head may have, and more than one read takes.
    let payload = "x".repeat(30_000);
    let frames: Vec<Vec<u8>> = (0..6)
        .map(|id| json!({"type": "submit", "id": id, "queue": "q", "payload": payload}).to_string())
        .map(|text| Ws::masked(0x81, text.as_bytes()))
        .collect();
    let said = frames.concat();
    for cut in [said.len(), said.len() - 1, frames[0].len(), frames[0].len() + 3, 1, 16_000] {
        let mut bytes = upgrade_request(broker.address, "/ws", "").into_bytes();
        bytes.extend(&said[..cut]);
        let (answer, connection) = handshake(broker.address, &bytes);
        assert_eq!(answer.status, 101);
        let mut ws = Ws::over(connection);
        ws.raw(&said[cut..]);
        ws.wait_for("welcome");
        for id in 0..6 {
            assert_eq!(ws.wait_for("accepted")["ref"], id, "cut at {cut}");
        }
    }
    // A broken one among them is told before the answer was read.
    let mut bytes = upgrade_request(broker.address, "/ws", "").into_bytes();
    bytes.extend([Ws::masked(0x89, b"1"), vec![0xff; 40_000]].concat());
    let (_, connection) = handshake(broker.address, &bytes);
    Ws::over(connection).closes(1002);
}

#[test]
fn one_foreign_origin_among_several_is_enough() {
    let broker = Broker::in_memory();
    let own = broker.url();
    for (origins, status) in [
        (vec![own.as_str()], 101),
        (vec![own.as_str(), "https://evil.example"], 403),
        (vec!["https://evil.example", own.as_str()], 403),
        (vec![""], 403),
        (vec!["http://127.0.0.1"], 403),
    ] {
        let lines: String = origins.iter().map(|origin| format!("Origin: {origin}\r\n")).collect();
        let request = upgrade_request(broker.address, "/ws", &lines);
        assert_eq!(handshake(broker.address, request.as_bytes()).0.status, status, "{origins:?}");
    }
}
