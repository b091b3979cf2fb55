//! HTTP in raw bytes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::PATIENCE;

/// An answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All of it that is not the time of day: for answers that must not differ.
    pub fn without_date(mut self) -> Answer {
        self.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
        self
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The error that it must be: its status, and its code.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.json();
        assert_eq!(error["code"], code, "{self:?}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        assert_eq!(error["retryable"].as_bool(), Some(error.get("retry_after_ms").is_some()), "{self:?}");
        assert_eq!(error.get("retry_after_ms").is_some(), self.header("retry-after").is_some(), "{self:?}");
        error
    }
}

/// What a connection goes over.
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => &stream.sock,
        }
    }
}

impl std::io::Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read(buffer),
            Wire::Tls(stream) => stream.read(buffer),
        }
    }
}

impl std::io::Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Wire::Plain(stream) => stream.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}

/// A connection.
pub struct Connection {
    pub stream: BufReader<Wire>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection::over(Wire::Plain(stream))
    }

    pub fn over(wire: Wire) -> Connection {
        Connection { stream: BufReader::new(wire) }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
        self.stream.get_mut().flush().unwrap();
    }

    /// The same, to a peer that may have gone, or takes no more.
    pub fn send_if_open(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// No more bytes from here; those from there still come.
    pub fn finish_writing(&self) {
        self.stream.get_ref().tcp().shutdown(Shutdown::Write).unwrap();
    }

    /// The next answer's head, with an empty body.
    pub fn head(&mut self) -> Answer {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let mut words = line.split(' ');
        assert!(matches!(words.next(), Some("HTTP/1.1" | "HTTP/1.0")), "{line:?}");
        let status = words.next().unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Answer { status, headers, body: Vec::new() }
    }

    /// The next answer.
    pub fn answer(&mut self) -> Answer {
        let mut answer = self.head();
        let length = answer.header("content-length").map_or(0, |text| text.parse().unwrap());
        answer.body = vec![0; length];
        self.stream.read_exact(&mut answer.body).unwrap();
        answer
    }

    /// That the broker ends the connection; gives what it says before.
    pub fn ends(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            // A reset ends it too: what we sent was not read.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the broker does not end the connection: {error}"),
        }
        rest
    }

    pub fn shut_down(&self) {
        self.stream.get_ref().tcp().shutdown(Shutdown::Both).unwrap();
    }
}

/// One request, as it stands, and its answer.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut connection = Connection::open(address);
    connection.send(request);
    connection.answer()
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
}

/// A request with these header lines (each with its line end) and this body.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    exchange(address, &[head.as_bytes(), body].concat())
}

pub fn post(address: SocketAddr, path: &str, content_type: &str, body: &[u8]) -> Answer {
    send(address, "POST", path, &format!("Content-Type: {content_type}\r\n"), body)
}

/// The same with a body of JSON; null: with none.
pub fn json(address: SocketAddr, method: &str, path: &str, headers: &str, body: &Value) -> Answer {
    if body.is_null() {
        return send(address, method, path, headers, b"");
    }
    let headers = format!("{headers}Content-Type: application/json\r\n");
    send(address, method, path, &headers, body.to_string().as_bytes())
}
