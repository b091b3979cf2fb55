//! The upgrade, and the frames after it.

use taskyard_client::proto::code::Advice;
use taskyard_client::proto::codec::{Encoding, Frame, Request, Response};
use taskyard_client::proto::{ClientMessage, Payload, Ping, Pong, RequestId, Secret, ServerMessage};
use taskyard_client::{ConnectError, Connection, Endpoint, Incoming, PushError, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;

use crate::fake::{Heard, Key, Peer, encoded, frame, read_upgrade, submit, upgrade_answer};

fn endpoint() -> Endpoint {
    let mut endpoint = Endpoint::parse("ws://fake:7070").unwrap();
    endpoint.token = Some(Secret::new("secret"));
    endpoint
}

/// Upgrades against a broker whose answer `answer` makes out of the key; gives the connection, the
/// broker's end and what the client asked.
async fn upgrade(
    endpoint: &Endpoint,
    answer: impl FnOnce(&Key) -> Vec<u8>,
) -> (Result<Connection, ConnectError>, DuplexStream, Key) {
    let (ours, mut theirs) = duplex(1 << 20);
    let (read, write) = tokio::io::split(ours);
    let broker = async {
        let key = read_upgrade(&mut theirs).await;
        theirs.write_all(&answer(&key)).await.unwrap();
        key
    };
    let (connection, key) = tokio::join!(Connection::over(read, write, endpoint), broker);
    (connection, theirs, key)
}

async fn connected(endpoint: &Endpoint, glued: &[u8]) -> (Connection, Peer) {
    let (connection, stream, key) = upgrade(endpoint, |key| {
        let mut answer = upgrade_answer(&key.accept, &key.protocol).into_bytes();
        answer.extend_from_slice(glued);
        answer
    })
    .await;
    (connection.unwrap(), Peer::new(stream, &key.protocol))
}

fn pong() -> Incoming {
    Incoming::Messages(Frame::One(Response { reference: None, message: ServerMessage::Pong(Pong {}) }))
}

#[tokio::test]
async fn the_upgrade_says_what_it_must() {
    let (connection, _, key) =
        upgrade(&endpoint(), |key| upgrade_answer(&key.accept, &key.protocol).into()).await;
    connection.unwrap();
    assert!(key.head.starts_with("GET /ws HTTP/1.1\r\nHost: fake:7070\r\n"), "{}", key.head);
    for line in [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: taskyard.v1.msgpack",
        "Authorization: Bearer secret",
    ] {
        assert!(key.head.lines().any(|given| given == line), "{line} in {}", key.head);
    }
}

#[tokio::test]
async fn a_wrong_answer_to_the_upgrade_is_refused() {
    type Answer = fn(&Key) -> String;
    let cases: [(&str, Answer); 7] = [
        ("Sec-WebSocket-Accept", |key| upgrade_answer("c29tZWJvZHkgZWxzZSdzIGtleQ==", &key.protocol)),
        ("is missing", |key| upgrade_answer(&key.accept, &key.protocol).replace("sec-websocket-accept", "x")),
        ("subprotocol", |key| upgrade_answer(&key.accept, "taskyard.v1.json")),
        ("did not agree", |key| {
            upgrade_answer(&key.accept, &key.protocol).replace("sec-websocket-protocol", "x")
        }),
        ("Upgrade: websocket", |key| upgrade_answer(&key.accept, &key.protocol).replace("WebSocket", "h2c")),
        ("Connection: Upgrade", |key| upgrade_answer(&key.accept, &key.protocol).replace(", Upgrade", "")),
        ("extension", |key| {
            upgrade_answer(&key.accept, &key.protocol).replace(
                "upgrade: WebSocket",
                "upgrade: websocket\r\nsec-websocket-extensions: permessage-deflate",
            )
        }),
    ];
    for (problem, answer) in cases {
        let (connection, ..) = upgrade(&endpoint(), |key| answer(key).into()).await;
        let error = connection.unwrap_err();
        assert!(matches!(error, ConnectError::Handshake(_)), "{problem}: {error}");
        assert!(error.to_string().contains(problem), "{problem}: {error}");
        assert_eq!(error.advice(), Advice::Stop);
    }
}

#[tokio::test]
async fn a_refusal_tells_its_status_and_its_text() {
    let body = r#"{"code":"unauthorized","message":"the token is unknown","retryable":false}"#;
    let answer = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    for (bytes, status, message, advice) in [
        (answer("401 Unauthorized", body), 401, "unauthorized: the token is unknown", Advice::Stop),
        (answer("503 Service Unavailable", "try later"), 503, "try later", Advice::BackOff),
        (answer("403 Forbidden", ""), 403, "it gave no reason", Advice::Stop),
        (answer("429 Too Many Requests", "{}"), 429, "{}", Advice::BackOff),
    ] {
        let (connection, ..) = upgrade(&endpoint(), |_| bytes).await;
        let error = connection.unwrap_err();
        assert_eq!(error.advice(), advice, "{status}");
        match error {
            ConnectError::Refused { status: got, message: text } => {
                assert_eq!((got, text.as_str()), (status, message))
            }
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn tokens_that_break_the_header_are_refused() {
    let mut endpoint = endpoint();
    endpoint.token = Some(Secret::new("a\r\nX: y"));
    let (read, write) = tokio::io::split(duplex(64).0);
    let error = Connection::over(read, write, &endpoint).await.unwrap_err();
    assert!(error.to_string().contains("line end"), "{error}");
}

#[tokio::test]
async fn bytes_glued_to_the_upgrade_are_kept() {
    let pong_frame = frame(0x82, &encoded(Encoding::MessagePack, Pong {}));
    // A whole frame and the first byte of the next.
    let (mut connection, mut peer) =
        connected(&endpoint(), &[&pong_frame[..], &pong_frame[..1]].concat()).await;
    assert_eq!(connection.receiver.receive().await, Ok(pong()));
    assert_eq!(connection.receiver.try_receive(), None);
    peer.raw(&pong_frame[1..]).await;
    assert_eq!(connection.receiver.receive().await, Ok(pong()));
}

#[tokio::test]
async fn a_receive_that_is_dropped_half_way_loses_nothing() {
    let (mut connection, mut peer) = connected(&endpoint(), &[]).await;
    for byte in frame(0x82, &encoded(Encoding::MessagePack, Pong {})) {
        assert_eq!(connection.receiver.try_receive(), None);
        peer.raw(&[byte]).await;
        // Polled once and dropped.
        tokio::select! {
            biased;
            incoming = connection.receiver.receive() => {
                assert_eq!(incoming, Ok(pong()));
                return;
            }
            () = std::future::ready(()) => {}
        }
    }
    panic!("the last byte completes the message");
}

#[tokio::test]
async fn all_that_has_arrived_is_there_without_waiting() {
    let (mut connection, mut peer) = connected(&endpoint(), &[]).await;
    let pong_frame = frame(0x82, &encoded(Encoding::MessagePack, Pong {}));
    peer.raw(&pong_frame.repeat(100)).await;
    assert_eq!(connection.receiver.receive().await, Ok(pong()));
    for _ in 1..100 {
        assert_eq!(connection.receiver.try_receive(), Some(Ok(pong())));
    }
    assert_eq!(connection.receiver.try_receive(), None);
}

#[tokio::test]
async fn messages_of_every_length_arrive_masked_and_whole() {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let mut endpoint = endpoint();
        endpoint.encoding = encoding;
        let (mut connection, mut peer) = connected(&endpoint, &[]).await;
        connection.sender.limit_message_bytes(16 << 20);
        let lengths = [
            0, 1, 50, 60, 70, 80, 90, 100, 130, 1000, 65_000, 65_400, 65_450, 65_500, 65_535, 70_000, 200_000,
        ];
        let requests: Vec<Request> = lengths
            .iter()
            .map(|length| {
                let mut submit = submit(0);
                submit.payload = Payload::binary(vec![7; *length]);
                Request { id: Some(RequestId::Integer(*length as i64)), message: submit.into() }
            })
            .collect();
        for request in &requests {
            connection.sender.push(request).unwrap();
        }
        connection.sender.push_batch(&requests[..6]).unwrap();
        connection.sender.ping(b"hi");
        assert!(connection.sender.buffered() > 400_000);
        let flushing = async {
            connection.sender.flush().await.unwrap();
            assert_eq!(connection.sender.buffered(), 0);
            connection.sender.close(1000, "done").await.unwrap();
        };
        let hearing = async {
            for request in &requests {
                assert_eq!(&peer.request().await, request);
                assert_eq!(peer.latest_frame, 1);
            }
            for request in &requests[..6] {
                assert_eq!(&peer.request().await, request);
                assert_eq!(peer.latest_frame, 6);
            }
            assert_eq!(peer.hear().await, Heard::Ping(b"hi".to_vec()));
            assert_eq!(peer.hear().await, Heard::Close(1000));
        };
        tokio::join!(flushing, hearing);
    }
}

#[tokio::test]
async fn a_message_over_the_limit_leaves_nothing_in_the_buffer() {
    let (mut connection, mut peer) = connected(&endpoint(), &[]).await;
    connection.sender.limit_message_bytes(100);
    let mut long = submit(0);
    long.payload = Payload::binary(vec![0; 100]);
    let long = Request { id: None, message: long.into() };
    let error = connection.sender.push(&long).unwrap_err();
    assert!(matches!(error, PushError::TooLarge { bytes, bytes_max: 100 } if bytes > 100), "{error}");
    assert_eq!(connection.sender.buffered(), 0);
    connection.sender.push(&Request { id: None, message: Ping {}.into() }).unwrap();
    connection.sender.flush().await.unwrap();
    assert!(matches!(peer.request().await.message, ClientMessage::Ping(_)));
}

#[tokio::test]
async fn fragments_are_put_together_around_control_frames() {
    let (mut connection, mut peer) = connected(&endpoint(), &[]).await;
    let body = encoded(Encoding::MessagePack, Pong {});
    peer.raw(&frame(0x02, &body[..1])).await;
    peer.raw(&frame(0x89, b"alive?")).await;
    peer.raw(&frame(0x00, &body[1..3])).await;
    peer.raw(&frame(0x00, &[])).await;
    peer.raw(&frame(0x80, &body[3..])).await;
    assert_eq!(connection.receiver.receive().await, Ok(Incoming::Ping("alive?".into())));
    assert_eq!(connection.receiver.receive().await, Ok(pong()));
    connection.sender.pong(b"alive?");
    connection.sender.flush().await.unwrap();
    assert_eq!(peer.hear().await, Heard::Pong(b"alive?".to_vec()));
}

#[tokio::test]
async fn what_no_broker_may_send_ends_the_connection_with_the_right_code() {
    let text = encoded(Encoding::Json, Pong {});
    let cases: [(&str, Vec<u8>, u16); 11] = [
        ("continuation of nothing", frame(0x80, b"x"), 1002),
        ("a message within a message", [frame(0x01, b"{"), frame(0x81, b"{}")].concat(), 1002),
        ("a reserved bit", frame(0xC1, b"{}"), 1002),
        ("an unknown opcode", frame(0x83, b"{}"), 1002),
        ("a long ping", frame(0x89, &[0; 126]), 1002),
        ("a long close", frame(0x88, &[0; 126]), 1002),
        ("a binary frame in JSON", frame(0x82, &text), 1003),
        ("half a letter", frame(0x81, &[b'"', 0xC3]), 1007),
        ("half a letter out of fragments", [frame(0x01, b"\""), frame(0x80, &[0xC3])].concat(), 1007),
        ("no JSON", frame(0x81, b"hello"), 1002),
        ("a frame of 17 MiB", [&[0x81, 127][..], &(17_u64 << 20).to_be_bytes()].concat(), 1009),
    ];
    for (what, bytes, code) in cases {
        let mut endpoint = endpoint();
        endpoint.encoding = Encoding::Json;
        let (mut connection, mut peer) = connected(&endpoint, &[]).await;
        peer.raw(&bytes).await;
        let closed = connection.receiver.receive().await.unwrap_err();
        assert_eq!((closed.code, closed.reply()), (None, code), "{what}: {closed}");
        assert_eq!(connection.receiver.receive().await, Err(closed), "the end stays the end");
    }
}

#[tokio::test]
async fn a_close_tells_its_code_and_what_to_do() {
    for (code, reason, advice) in
        [(1012, "restart", Advice::BackOff), (4001, "token", Advice::Stop), (4201, "", Advice::ReconnectNow)]
    {
        let (mut connection, mut peer) = connected(&endpoint(), &[]).await;
        peer.close(code, reason).await;
        let closed = connection.receiver.receive().await.unwrap_err();
        assert_eq!((closed.code, closed.reason.as_str(), closed.advice), (Some(code), reason, advice));
    }
    let (mut connection, peer) = connected(&endpoint(), &[]).await;
    drop(peer);
    let closed = connection.receiver.receive().await.unwrap_err();
    assert_eq!((closed.code, closed.advice), (None, Advice::BackOff));
}

#[tokio::test]
async fn a_status_is_asked_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]").await.unwrap();
        String::from_utf8(head).unwrap()
    };
    let token = Secret::new("t");
    let (answer, head) = tokio::join!(http::get(&url, "/v1/queues", Some(&token)), answering);
    assert_eq!(answer.unwrap(), (200, b"[]".to_vec()));
    assert!(
        head.starts_with("GET /v1/queues HTTP/1.1\r\n") && head.contains("Authorization: Bearer t\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Connection::open(&Endpoint::parse(&url).unwrap()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Io(_)), "{error}");
    assert!(error.to_string().contains("is the broker running"), "{error}");
}

#[cfg(not(feature = "tls"))]
#[tokio::test]
async fn tls_that_is_not_built_in_says_so() {
    let error = Connection::open(&Endpoint::parse("wss://h").unwrap()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoTls), "{error}");
    let error = http::get("https://h", "/", None).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoTls), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_says_nothing_is_not_waited_for() {
    let (_broker, options) = crate::fake::broker();
    let error = taskyard_client::Client::connect(options).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout(_)), "{error}");
}
