//! The other end of a client's connection, in the test's hand: it upgrades, reads masked frames
//! and says whatever the test wants, right or wrong.

use std::collections::VecDeque;

use taskyard_client::proto::codec::{self, Encoding, Request, Response};
use taskyard_client::proto::{
    Accepted, ClientMessage, Hello, LeaseId, Limits, Payload, QueueName, RequestId, ServerMessage, Submit,
    Subscribed, Task, TaskId, Text, Welcome, WorkerName,
};
use taskyard_client::{ClientOptions, Dialer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::sync::mpsc;

/// The streams that clients have opened.
pub(crate) struct Broker {
    streams: mpsc::UnboundedReceiver<DuplexStream>,
}

/// A broker, and the options of a client that reaches it. Streams are pipes in memory: with the
/// clock paused, time passes only when both sides wait for it.
pub(crate) fn broker() -> (Broker, ClientOptions) {
    let (opened, streams) = mpsc::unbounded_channel();
    let dialer = Dialer::new(move |_| {
        let opened = opened.clone();
        async move {
            let (ours, theirs) = duplex(1 << 20);
            opened.send(theirs).map_err(|_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused))?;
            let (read, write) = tokio::io::split(ours);
            Ok((Box::new(read) as _, Box::new(write) as _))
        }
    });
    let options = ClientOptions::new("ws://fake").unwrap().dialer(dialer);
    (Broker { streams }, options)
}

impl Broker {
    /// The next stream, before its upgrade.
    pub(crate) async fn stream(&mut self) -> DuplexStream {
        self.streams.recv().await.expect("a client opens a stream")
    }

    /// The next connection, upgraded.
    pub(crate) async fn upgraded(&mut self) -> Peer {
        let mut stream = self.stream().await;
        let key = read_upgrade(&mut stream).await;
        let answer = upgrade_answer(&key.accept, &key.protocol);
        stream.write_all(answer.as_bytes()).await.unwrap();
        Peer::new(stream, &key.protocol)
    }

    /// The next connection, upgraded and welcomed.
    pub(crate) async fn welcomed(&mut self) -> Peer {
        let (mut peer, _) = self.greeted().await;
        peer.welcome(welcome()).await;
        peer
    }

    /// The next connection that is still there, upgraded, and what it said first.
    pub(crate) async fn greeted(&mut self) -> (Peer, Hello) {
        loop {
            let mut stream = self.stream().await;
            // One that was given up while nobody answered it.
            let Some(key) = try_read_upgrade(&mut stream).await else { continue };
            let answer = upgrade_answer(&key.accept, &key.protocol);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                continue;
            }
            let mut peer = Peer::new(stream, &key.protocol);
            let hello = peer.request().await;
            assert_eq!(hello.id, Some(RequestId::Integer(0)));
            match hello.message {
                ClientMessage::Hello(hello) => return (peer, *hello),
                other => panic!("expected a hello, heard {other:?}"),
            }
        }
    }
}

pub(crate) struct Key {
    pub(crate) accept: String,
    pub(crate) protocol: String,
    pub(crate) head: String,
}

pub(crate) async fn read_upgrade(stream: &mut (impl AsyncRead + Unpin)) -> Key {
    try_read_upgrade(stream).await.expect("a request comes, whole")
}

/// Nothing if the client goes before it has asked.
pub(crate) async fn try_read_upgrade(stream: &mut (impl AsyncRead + Unpin)) -> Option<Key> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
            .unwrap_or_default()
    };
    use base64::Engine as _;
    use sha1::Digest as _;
    let proof = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", header("Sec-WebSocket-Key:"));
    let accept = base64::engine::general_purpose::STANDARD.encode(sha1::Sha1::digest(proof));
    Some(Key { accept, protocol: header("Sec-WebSocket-Protocol:"), head })
}

pub(crate) fn upgrade_answer(accept: &str, protocol: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nconnection: keep-alive, Upgrade\r\n\
         sec-websocket-accept: {accept}\r\nsec-websocket-protocol: {protocol}\r\n\r\n"
    )
}

/// One connection, as the broker sees it.
pub(crate) struct Peer {
    read: ReadHalf<DuplexStream>,
    write: WriteHalf<DuplexStream>,
    encoding: Encoding,
    requests: VecDeque<Request>,
    /// How many messages the latest frame held.
    pub(crate) latest_frame: usize,
}

/// What a client sent.
#[derive(Debug, PartialEq)]
pub(crate) enum Heard {
    Request(Box<Request>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
    Gone,
}

impl Peer {
    pub(crate) fn new(stream: DuplexStream, protocol: &str) -> Peer {
        let encoding = if protocol.ends_with("json") { Encoding::Json } else { Encoding::MessagePack };
        let (read, write) = tokio::io::split(stream);
        Peer { read, write, encoding, requests: VecDeque::new(), latest_frame: 0 }
    }

    pub(crate) async fn hear(&mut self) -> Heard {
        loop {
            if let Some(request) = self.requests.pop_front() {
                return Heard::Request(Box::new(request));
            }
            let Some((opcode, body)) = self.frame().await else { return Heard::Gone };
            match opcode {
                0x1 | 0x2 => {
                    assert_eq!(
                        opcode == 0x1,
                        self.encoding == Encoding::Json,
                        "JSON is text, MessagePack is binary"
                    );
                    let frame = codec::decode_client(self.encoding, &body).unwrap();
                    self.requests.extend(frame.into_iter().map(|request| request.unwrap()));
                    self.latest_frame = self.requests.len();
                }
                0x8 => return Heard::Close(u16::from_be_bytes([body[0], body[1]])),
                0x9 => return Heard::Ping(body),
                0xA => return Heard::Pong(body),
                other => panic!("the client sent a frame of opcode {other}"),
            }
        }
    }

    pub(crate) async fn request(&mut self) -> Request {
        match self.hear().await {
            Heard::Request(request) => *request,
            other => panic!("expected a message, heard {other:?}"),
        }
    }

    /// The next message, which is a submit.
    pub(crate) async fn submit(&mut self) -> (Option<RequestId>, Submit) {
        let request = self.request().await;
        match request.message {
            ClientMessage::Submit(submit) => (request.id, *Box::<Submit>::from(submit)),
            other => panic!("expected a submit, heard {other:?}"),
        }
    }

    /// One frame of the client's: masked, or the test fails.
    async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.read.read_exact(&mut head).await.ok()?;
        assert_eq!(head[0] & 0xF0, 0x80, "whole frames, no reserved bits");
        assert_eq!(head[1] & 0x80, 0x80, "a client masks");
        let length = match head[1] & 0x7F {
            126 => {
                let length = self.read.read_u16().await.ok()?;
                assert!(length >= 126, "the shortest form of the length");
                usize::from(length)
            }
            127 => {
                let length = self.read.read_u64().await.ok()?;
                assert!(length > 65535, "the shortest form of the length");
                length as usize
            }
            short => usize::from(short),
        };
        let mut mask = [0; 4];
        self.read.read_exact(&mut mask).await.ok()?;
        let mut body = vec![0; length];
        self.read.read_exact(&mut body).await.ok()?;
        for (at, byte) in body.iter_mut().enumerate() {
            *byte ^= mask[at % 4];
        }
        Some((head[0] & 0x0F, body))
    }

    /// Answers the hello.
    pub(crate) async fn welcome(&mut self, welcome: Welcome) {
        self.respond(Some(RequestId::Integer(0)), welcome).await;
    }

    pub(crate) async fn say(&mut self, message: impl Into<ServerMessage>) {
        self.respond(None, message).await;
    }

    pub(crate) async fn answer(&mut self, request: &Request, message: impl Into<ServerMessage>) {
        self.respond(request.id.clone(), message).await;
    }

    pub(crate) async fn respond(&mut self, reference: Option<RequestId>, message: impl Into<ServerMessage>) {
        let mut body = Vec::new();
        codec::encode_server(self.encoding, &Response { reference, message: message.into() }, &mut body);
        let opcode = if self.encoding == Encoding::Json { 0x1 } else { 0x2 };
        self.raw(&frame(0x80 | opcode, &body)).await;
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.write.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        let mut body = code.to_be_bytes().to_vec();
        body.extend_from_slice(reason.as_bytes());
        self.raw(&frame(0x88, &body)).await;
    }

    /// Answers a subscribe.
    pub(crate) async fn subscribed(&mut self) -> u64 {
        let request = self.request().await;
        let ClientMessage::Subscribe(subscribe) = &request.message else { panic!("{request:?}") };
        let credit = subscribe.credit.unwrap().get();
        let queue = subscribe.queue.clone();
        self.answer(&request, Subscribed { queue, credit, ack_timeout_ms: 30_000 }).await;
        credit
    }

    pub(crate) async fn task(&mut self, number: u64) -> LeaseId {
        let lease = LeaseId { number, slot: 0, recipient: 0 };
        self.say(task(number)).await;
        lease
    }
}

/// A frame of the broker's, of at most 65535 bytes; `first` is FIN and the opcode.
pub(crate) fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u8::try_from(body.len()) {
        Ok(length) if length < 126 => frame.push(length),
        _ => {
            frame.push(126);
            frame.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        }
    }
    frame.extend_from_slice(body);
    frame
}

pub(crate) fn encoded(encoding: Encoding, message: impl Into<ServerMessage>) -> Vec<u8> {
    let mut body = Vec::new();
    codec::encode_server(encoding, &Response { reference: None, message: message.into() }, &mut body);
    body
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        session: Text::cut("s1"),
        worker: WorkerName::parse("w1").unwrap(),
        version: 1,
        server: Text::cut("fake"),
        resume: None,
        resumed: false,
        kept: Vec::new(),
        lost: Vec::new(),
        ping_ms: 25_000,
        limits: Limits { message_bytes: 1 << 20, credit: 1024, unconfirmed: 1024 },
    }
}

pub(crate) fn accepted(number: u128) -> Accepted {
    Accepted { task: TaskId(number), duplicate: false }
}

/// A task whose id, lease and payload are `number`.
pub(crate) fn task(number: u64) -> Task {
    Task {
        task: TaskId(number.into()),
        lease: Some(LeaseId { number, slot: 0, recipient: 0 }),
        queue: queue(),
        attempt: 1,
        max_attempts: 5,
        redelivered: false,
        ack_timeout_ms: 30_000,
        age_ms: 0,
        priority: 4,
        headers: Default::default(),
        payload: Payload::json(&number).unwrap(),
    }
}

pub(crate) fn queue() -> QueueName {
    QueueName::parse("emails").unwrap()
}

pub(crate) fn submit(number: u64) -> Submit {
    Submit::new(queue(), Payload::json(&number).unwrap())
}
