//! As little of a WebSocket client as there can be: thousands of them must not slow the server down
//! that is measured. It trusts what the server sends.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, HandshakeKind};

use crate::drivers::frames::{self, Head};
use crate::{Failed, certificate};

/// Addresses that sockets come from, 127.0.0.2 and on: each has some 28,000 ports, and those of sockets
/// that have ended are not free for a minute.
const SOURCES: usize = 250;
/// How long a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;

/// More than anybody here sends in one frame.
const FRAME_BYTES_MAX: u64 = 16 << 20;
/// What is read at once.
const READ_BYTES: usize = 4 << 10;

/// What a client says behind the upgrade, and waits for.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) opcode: u8,
    pub(crate) says: Vec<u8>,
    /// What the answer holds, in whatever comes before it.
    pub(crate) hears: &'static str,
}

/// Where sockets are opened, and with what.
#[derive(Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    token: Option<Arc<str>>,
    request: Arc<str>,
    greeting: Option<Arc<Greeting>>,
    tls: Option<Arc<ClientConfig>>,
}

impl Door {
    pub(crate) fn new(
        address: SocketAddr,
        path: &str,
        token: Option<&str>,
        tls: Option<Arc<ClientConfig>>,
    ) -> Door {
        let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{authorization}\r\n",
            certificate::NAME,
            address.port(),
        );
        Door { address, token: token.map(Into::into), request: request.into(), greeting: None, tls }
    }

    /// The same at another path.
    pub(crate) fn at(&self, path: &str) -> Door {
        let greeting = self.greeting.clone();
        Door { greeting, ..Door::new(self.address, path, self.token.as_deref(), self.tls.clone()) }
    }

    /// The same where each socket says something first.
    pub(crate) fn greeting(self, greeting: Option<Greeting>) -> Door {
        Door { greeting: greeting.map(Arc::new), ..self }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same for a client of its own, which knows other tickets of TLS, or none.
    pub(crate) fn with_tls(&self, tls: Option<Arc<ClientConfig>>) -> Door {
        Door { tls, ..self.clone() }
    }
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An upgraded connection.
pub(crate) struct Socket {
    stream: Box<dyn Io>,
    /// What was read and not yet looked at.
    rest: Vec<u8>,
    /// Whether TLS went on with an earlier session.
    pub(crate) resumed: bool,
}

impl Socket {
    /// Opens the `nth` socket, which decides where it comes from.
    pub(crate) async fn open(door: &Door, nth: usize) -> Result<Socket, Failed> {
        within("the upgrade", Self::opened(door, nth)).await
    }

    async fn opened(door: &Door, nth: usize) -> Result<Socket, Failed> {
        let source = Ipv4Addr::new(127, 0, 0, 2 + (nth % SOURCES) as u8);
        let tcp = TcpSocket::new_v4()?;
        tcp.bind((source, 0).into()).map_err(|error| {
            format!("cannot use the source address {source}: {error} (127.0.0.0/8 is one's own on Linux)")
        })?;
        let stream = tcp.connect(door.address).await?;
        stream.set_nodelay(true)?;
        let mut socket = match &door.tls {
            None => Socket { stream: Box::new(stream), rest: Vec::new(), resumed: false },
            Some(config) => {
                let name = ServerName::try_from(certificate::NAME)?;
                let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                Socket { stream: Box::new(stream), rest: Vec::new(), resumed }
            }
        };
        socket.send(door.request.as_bytes()).await?;
        socket.read_answer().await?;
        if let Some(greeting) = &door.greeting {
            socket.greet(greeting).await?;
        }
        Ok(socket)
    }

    async fn read_answer(&mut self) -> Result<(), Failed> {
        loop {
            self.fill().await?;
            if self.rest.len() > 12 && !self.rest.starts_with(b"HTTP/1.1 101") {
                let text = String::from_utf8_lossy(&self.rest);
                return Err(format!("the server refused the upgrade: {}", text.trim_end()).into());
            }
            if let Some(end) = self.rest.windows(4).position(|end| end == b"\r\n\r\n") {
                // Some servers speak at once.
                self.rest.drain(..end + 4);
                return Ok(());
            }
        }
    }

    /// Reads what there is.
    async fn fill(&mut self) -> Result<(), Failed> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes).await? {
            0 => Err("the server ended the connection".into()),
            count => {
                self.rest.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    async fn frame(&mut self, head: u8, body: &[u8]) -> Result<(), Failed> {
        self.send(&client_frame(head, body)).await
    }

    /// Reads a frame.
    async fn read(&mut self) -> Result<(u8, Vec<u8>), Failed> {
        loop {
            if let Some((head, body, rest)) = split_frame(&self.rest)? {
                let (body, used) = (body.to_vec(), self.rest.len() - rest.len());
                self.rest.drain(..used);
                if self.rest.is_empty() {
                    self.rest = Vec::new();
                }
                return Ok((head, body));
            }
            self.fill().await?;
        }
    }

    /// The connection, and what was read of it and not looked at.
    pub(crate) fn into_parts(self) -> (Box<dyn Io>, Vec<u8>) {
        (self.stream, self.rest)
    }

    /// Says something, and waits for what is to be heard.
    pub(crate) async fn greet(&mut self, greeting: &Greeting) -> Result<(), Failed> {
        within("an answer", async {
            self.frame(greeting.opcode, &greeting.says).await?;
            loop {
                let (head, body) = self.read().await?;
                let text = String::from_utf8_lossy(&body);
                if head == CLOSE {
                    return Err(closed(&body));
                }
                if text.contains(greeting.hears) {
                    return Ok(());
                }
                if text.contains("\"error\"") || text.starts_with("-ERR") {
                    let says = String::from_utf8_lossy(&greeting.says);
                    return Err(format!("the server answered {says} with {text}").into());
                }
            }
        })
        .await
    }

    /// Pings, and waits for the pong.
    pub(crate) async fn ping(&mut self) -> Result<(), Failed> {
        within("a pong", async {
            self.frame(PING, b"taskyard").await?;
            loop {
                match self.read().await? {
                    (PONG, body) if body == b"taskyard" => return Ok(()),
                    (CLOSE, body) => return Err(closed(&body)),
                    _ => {}
                }
            }
        })
        .await
    }

    /// Says something in JSON, and waits for an answer of this type.
    pub(crate) async fn say(&mut self, message: &str, answer: &'static str) -> Result<(), Failed> {
        self.greet(&Greeting { opcode: TEXT, says: message.into(), hears: answer }).await
    }

    /// Closes as RFC 6455 wants it: the server says goodbye too, and ends the connection.
    pub(crate) async fn close(mut self) -> Result<(), Failed> {
        within("the server's goodbye", async {
            self.frame(CLOSE, &1000u16.to_be_bytes()).await?;
            let mut rest = [0; 256];
            // However the connection ends: with TLS not every server says so.
            while !matches!(self.stream.read(&mut rest).await, Ok(0) | Err(_)) {}
            Ok(())
        })
        .await
    }
}

/// A frame as a client sends it, masked with nothing.
pub(crate) fn client_frame(head: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frames::put_client(&mut frame, head, [0; 4], body);
    frame
}

/// A frame's first byte, its body, and what follows it; none while it is not whole.
pub(crate) type Split<'a> = Option<(u8, &'a [u8], &'a [u8])>;

/// Takes a frame of the server's from the front of `bytes`.
pub(crate) fn split_frame(bytes: &[u8]) -> Result<Split<'_>, Failed> {
    let (Some(head), Some(kind)) = (Head::first(bytes), bytes.first()) else { return Ok(None) };
    if head.mask.is_some() {
        return Err("the server masks its frames, which none may".into());
    }
    if head.length > FRAME_BYTES_MAX {
        return Err(format!(
            "the server sends a frame of {} bytes, and {FRAME_BYTES_MAX} are expected at most",
            head.length
        )
        .into());
    }
    Ok(head.end(bytes).map(|end| (*kind, &bytes[head.begin..end], &bytes[end..])))
}

pub(crate) fn closed(body: &[u8]) -> Failed {
    let code = body.get(..2).map_or(0, |code| u16::from_be_bytes([code[0], code[1]]));
    let reason = String::from_utf8_lossy(body.get(2..).unwrap_or_default()).into_owned();
    format!("the server closed a socket: {code} {reason}").into()
}

async fn within<T>(what: &str, run: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    match tokio::time::timeout(PATIENCE, run).await {
        Ok(result) => result,
        Err(_) => Err(format!("the server took longer than {PATIENCE:?} for {what}").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_split_wherever_they_end() {
        let long = vec![7; 300];
        let mut bytes = vec![TEXT, 2, b'h', b'i', BINARY, 126];
        bytes.extend_from_slice(&300u16.to_be_bytes());
        bytes.extend_from_slice(&long);
        bytes.extend_from_slice(&[PONG, 0]);
        for end in 0..bytes.len() {
            let mut rest = &bytes[..end];
            let mut seen = 0;
            while let Some((_, _, after)) = split_frame(rest).unwrap() {
                (rest, seen) = (after, seen + 1);
            }
            assert_eq!(seen, usize::from(end >= 4) + usize::from(end >= 308));
        }
        let (head, body, rest) = split_frame(&bytes).unwrap().unwrap();
        assert_eq!((head, body), (TEXT, &b"hi"[..]));
        let (head, body, rest) = split_frame(rest).unwrap().unwrap();
        assert_eq!((head, body), (BINARY, &long[..]));
        assert_eq!(split_frame(rest).unwrap().unwrap(), (PONG, &[][..], &[][..]));
    }

    #[test]
    fn no_frame_is_masked_or_endless() {
        assert!(split_frame(&[TEXT, 0x81, 0, 0, 0, 0, 1]).is_err());
        assert!(split_frame(&[TEXT, 127, 0xFF, 0, 0, 0, 0, 0, 0, 0]).is_err());
        let frame = client_frame(TEXT, &[1; 200]);
        assert_eq!((&frame[..4], frame.len()), (&[TEXT, 0xFE, 0, 200][..], 208));
    }
}
