//! A WebSocket whose every bit is the test's.

use std::collections::VecDeque;
use std::io::{BufRead as _, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use super::http::{Answer, Connection, Wire};
use super::{PATIENCE, message_pack};

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, RSV and the opcode.
    pub first: u8,
    pub body: Vec<u8>,
}

/// What came next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Frame(Frame),
    /// The stream ended.
    End,
}

/// One client's end of a socket.
pub struct Ws {
    connection: Connection,
    /// Messages that came while another was waited for.
    early: VecDeque<Value>,
    next_id: u64,
    /// It says binary frames of MessagePack, or else text frames of JSON.
    pub packs: bool,
    /// What the latest message was decoded from.
    pub latest: Vec<u8>,
}

/// An upgrade request with these further header lines, each with its line end.
pub fn upgrade_request(address: SocketAddr, target: &str, headers: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

/// Sends a request and gives its answer, with the connection that it came on.
pub fn handshake(address: SocketAddr, request: &[u8]) -> (Answer, Connection) {
    let mut connection = Connection::open(address);
    connection.send(request);
    let head = connection.head();
    (head, connection)
}

impl Ws {
    /// A socket whose upgrade has these further headers.
    pub fn open(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Ws {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (answer, connection) = handshake(address, upgrade_request(address, target, &headers).as_bytes());
        assert_eq!(answer.status, 101, "{answer:?}");
        assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        Ws::over(connection)
    }

    /// A socket without subprotocol, if there is a broker that takes it.
    pub fn try_open(address: SocketAddr) -> Option<Ws> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.write_all(upgrade_request(address, "/ws", "").as_bytes()).ok()?;
        let mut connection = Connection::over(Wire::Plain(stream));
        // A head that is cut short is no answer.
        connection.stream.fill_buf().ok().filter(|bytes| !bytes.is_empty())?;
        (connection.head().status == 101).then(|| Ws::over(connection))
    }

    /// A socket that negotiates MessagePack.
    pub fn packing(address: SocketAddr) -> Ws {
        let mut ws = Ws::open(address, "/ws", &[("Sec-WebSocket-Protocol", "taskyard.v1.msgpack")]);
        ws.packs = true;
        ws
    }

    /// A socket on a connection whose handshake is done.
    pub fn over(connection: Connection) -> Ws {
        Ws { connection, early: VecDeque::new(), next_id: 1, packs: false, latest: Vec::new() }
    }

    // --- Out ----------------------------------------------------------------------------------

    /// Any bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.connection.send(bytes);
    }

    /// The same, from a peer that may have gone.
    pub fn raw_if_open(&mut self, bytes: &[u8]) -> bool {
        self.connection.send_if_open(bytes)
    }

    /// The bytes of a masked frame.
    pub fn masked(first: u8, body: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![first];
        match body.len() {
            length @ 0..=125 => frame.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    pub fn frame(&mut self, first: u8, body: &[u8]) {
        self.raw(&Ws::masked(first, body));
    }

    pub fn text(&mut self, text: &str) {
        self.frame(0x81, text.as_bytes());
    }

    pub fn binary(&mut self, bytes: &[u8]) {
        self.frame(0x82, bytes);
    }

    pub fn say(&mut self, message: Value) {
        if self.packs {
            self.binary(&message_pack::encode(&message));
        } else {
            self.text(&message.to_string());
        }
    }

    /// Says a message with an id of its own, and gives the answer to it.
    #[track_caller]
    pub fn ask(&mut self, mut message: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        message["id"] = json!(id);
        self.say(message);
        self.wait(&format!("the answer to {id}"), |message| message["ref"] == id)
    }

    /// The same, of what must succeed with a message of this type.
    #[track_caller]
    pub fn gets(&mut self, kind: &str, message: Value) -> Value {
        let answer = self.ask(message);
        assert_eq!(answer["type"], kind, "{answer}");
        answer
    }

    /// Sends the first half of the connection's end.
    pub fn hang_up(&mut self) {
        self.connection.shut_down();
    }

    /// No more bytes from here; those from there still come.
    pub fn finish_writing(&mut self) {
        self.connection.finish_writing();
    }

    // --- In -----------------------------------------------------------------------------------

    /// The next frame, whatever it is.
    pub fn hear(&mut self) -> Heard {
        let mut head = [0; 2];
        match self.connection.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return Heard::End;
            }
            Err(error) => panic!("heard nothing: {error}; before that came {:?}", self.early),
        }
        assert_eq!(head[1] & 0x80, 0, "a server's frames are not masked");
        let length = match head[1] {
            126 => u64::from(u16::from_be_bytes(self.bytes())),
            127 => u64::from_be_bytes(self.bytes()),
            length => u64::from(length),
        };
        let mut body = vec![0; length as usize];
        if self.connection.stream.read_exact(&mut body).is_err() {
            // Cut off in the middle: whoever was killed says no more.
            return Heard::End;
        }
        Heard::Frame(Frame { first: head[0], body })
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.connection.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads the next frame of messages; answers pings by the way. None: the socket is closing.
    fn read(&mut self) -> Result<(), Heard> {
        loop {
            let heard = self.hear();
            let Heard::Frame(frame) = &heard else { return Err(heard) };
            let value: Value = match frame.first {
                0x81 => serde_json::from_slice(&frame.body).unwrap(),
                0x82 => message_pack::decode(&frame.body),
                0x89 => {
                    let _ = self.raw_if_open(&Ws::masked(0x8a, &frame.body));
                    continue;
                }
                0x8a => continue,
                _ => return Err(heard),
            };
            self.latest = frame.body.clone();
            match value {
                Value::Array(items) => self.early.extend(items),
                one => self.early.push_back(one),
            }
            return Ok(());
        }
    }

    /// The next message.
    #[track_caller]
    pub fn next(&mut self) -> Value {
        while self.early.is_empty() {
            if let Err(heard) = self.read() {
                panic!("expected a message, heard {heard:?}");
            }
        }
        self.early.pop_front().unwrap()
    }

    /// The next message that is so; those before it stay for later.
    #[track_caller]
    pub fn wait(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut looked_at = 0;
        loop {
            if let Some(at) = self.early.range(looked_at..).position(&is_it) {
                return self.early.remove(looked_at + at).unwrap();
            }
            looked_at = self.early.len();
            if let Err(heard) = self.read() {
                panic!("waited for {what}, heard {heard:?}; before that came {:?}", self.early);
            }
        }
    }

    /// The next message that is so; others are passed over. None: the socket ended, in whatever way.
    pub fn next_unless_it_ends(&mut self, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
        loop {
            if let Some(message) = self.early.pop_front() {
                if is_it(&message) {
                    return Some(message);
                }
                continue;
            }
            self.read().ok()?;
        }
    }

    /// The next message of a type.
    #[track_caller]
    pub fn wait_for(&mut self, kind: &str) -> Value {
        self.wait(kind, |message| message["type"] == kind)
    }

    /// The next task.
    #[track_caller]
    pub fn task(&mut self) -> Value {
        self.wait_for("task")
    }

    /// What has come by the time that the broker has dealt with all that was said here before.
    pub fn so_far(&mut self) -> Vec<Value> {
        self.ask(json!({"type": "unwatch", "task": "0198c0de-0000-7000-8000-000000000000"}));
        self.early.drain(..).collect()
    }

    /// That the socket closes now: a close frame of this code, then the end of the stream. Messages
    /// before it are passed over. Gives the reason.
    #[track_caller]
    pub fn closes(&mut self, code: u16) -> String {
        let frame = loop {
            match self.read() {
                Ok(()) => {}
                Err(Heard::Frame(frame)) => break frame,
                Err(Heard::End) => panic!("the socket ended without a close frame, expected {code}"),
            }
        };
        assert_eq!(frame.first, 0x88, "{frame:?}");
        assert!(frame.body.len() >= 2, "a close frame without a code");
        let reason = String::from_utf8(frame.body[2..].to_vec()).unwrap();
        assert_eq!(u16::from_be_bytes([frame.body[0], frame.body[1]]), code, "{reason}");
        assert_eq!(self.hear(), Heard::End, "after the close frame the stream must end");
        reason
    }

    // --- What is said often -------------------------------------------------------------------

    #[track_caller]
    pub fn subscribe(&mut self, queue: &str, credit: u64) {
        self.gets("subscribed", json!({"type": "subscribe", "queue": queue, "credit": credit}));
    }

    /// Submits; gives the task's id.
    #[track_caller]
    pub fn submit(&mut self, mut message: Value) -> String {
        message["type"] = json!("submit");
        self.gets("accepted", message)["task"].as_str().unwrap().to_owned()
    }

    /// Acknowledges a delivery, and waits until that is durable.
    #[track_caller]
    pub fn ack(&mut self, task: &Value) {
        let settled = self.gets("settled", json!({"type": "ack", "lease": task["lease"]}));
        assert_eq!(settled["outcome"], "ok");
    }

    /// Asks what must be refused; gives the error.
    #[track_caller]
    pub fn refused(&mut self, code: &str, message: Value) -> Value {
        let error = self.gets("error", message);
        assert_eq!(error["code"], code, "{error}");
        error
    }
}
