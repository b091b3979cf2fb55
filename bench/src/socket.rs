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

use crate::{Failed, certificate};

/// Addresses that sockets come from, 127.0.0.2 and on: each has some 28,000 ports, and those of sockets
/// that have ended are not free for a minute.
const SOURCES: usize = 250;
/// How long a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;
const TEXT: u8 = 0x81;

/// Where sockets are opened, and with what.
#[derive(Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    request: Arc<str>,
    tls: Option<Arc<ClientConfig>>,
}

impl Door {
    pub(crate) fn new(address: SocketAddr, token: Option<&str>, tls: Option<Arc<ClientConfig>>) -> Door {
        let token = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {}:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{token}\r\n",
            certificate::NAME,
            address.port(),
        );
        Door { address, request: request.into(), tls }
    }

    /// The same for a client of its own, which knows other tickets of TLS, or none.
    pub(crate) fn with_tls(&self, tls: Option<Arc<ClientConfig>>) -> Door {
        Door { tls, ..self.clone() }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An upgraded connection.
pub(crate) struct Socket {
    stream: Box<dyn Io>,
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
            None => Socket { stream: Box::new(stream), resumed: false },
            Some(config) => {
                let name = ServerName::try_from(certificate::NAME)?;
                let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
                let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
                Socket { stream: Box::new(stream), resumed }
            }
        };
        socket.send(door.request.as_bytes()).await?;
        socket.read_answer().await?;
        Ok(socket)
    }

    async fn read_answer(&mut self) -> Result<(), Failed> {
        // Nobody here speaks before the client does: the head is all there is to read.
        let (mut head, mut length) = ([0; 1024], 0);
        while !head[..length].ends_with(b"\r\n\r\n") {
            match self.stream.read(&mut head[length..]).await? {
                0 => return Err("the server ended the connection, or answered at length".into()),
                count => length += count,
            }
            if length > 12 && !head.starts_with(b"HTTP/1.1 101") {
                let text = String::from_utf8_lossy(&head[..length]);
                return Err(format!("the server refused the upgrade: {}", text.trim_end()).into());
            }
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends a frame, masked with nothing: its body is at most 125 bytes.
    async fn frame(&mut self, head: u8, body: &[u8]) -> Result<(), Failed> {
        let mut frame = vec![head, 0x80 | body.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(body);
        self.send(&frame).await
    }

    /// Reads a frame of at most 64 KiB.
    async fn read(&mut self) -> Result<(u8, Vec<u8>), Failed> {
        let head = self.stream.read_u8().await?;
        let length = match self.stream.read_u8().await? {
            126 => self.stream.read_u16().await?,
            short => u16::from(short),
        };
        let mut body = vec![0; length.into()];
        self.stream.read_exact(&mut body).await?;
        Ok((head, body))
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
    pub(crate) async fn say(&mut self, message: &str, answer: &str) -> Result<(), Failed> {
        within("an answer", async {
            self.frame(TEXT, message.as_bytes()).await?;
            loop {
                match self.read().await? {
                    (TEXT, body) => {
                        let text = String::from_utf8_lossy(&body);
                        if text.contains(&format!("\"{answer}\"")) {
                            return Ok(());
                        }
                        if text.contains("\"error\"") {
                            return Err(format!("the server answered {message} with {text}").into());
                        }
                    }
                    (CLOSE, body) => return Err(closed(&body)),
                    _ => {}
                }
            }
        })
        .await
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

fn closed(body: &[u8]) -> Failed {
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
