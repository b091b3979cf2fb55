//! One WebSocket connection to a broker: the upgrade, and the two halves that come of it. What is
//! said over it, and what to do when it ends, is up to those who hold the halves.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};
use taskyard_proto::Error;
use taskyard_proto::code::Advice;
use taskyard_proto::codec;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::endpoint::{Endpoint, UrlError};
use crate::http;
use crate::receiver::{Closed, Receiver};
use crate::sender::Sender;
#[cfg(feature = "tls")]
use crate::tls::{self, TlsError};

/// What RFC 6455 appends to the key before hashing it.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The longest body of a refusal that is read, in bytes: an error object is a few hundred.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// An open connection, upgraded and silent: the client speaks first.
#[derive(Debug)]
pub struct Connection {
    /// What is said.
    pub sender: Sender,
    /// What is heard.
    pub receiver: Receiver,
}

/// The reading and the writing half of a stream.
pub type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

type Dialing = Pin<Box<dyn Future<Output = io::Result<Halves>> + Send>>;

/// Opens the stream under a connection where neither TCP nor TLS over it will do: a proxy, another
/// library of TLS, a test's pipe.
#[derive(Clone)]
pub struct Dialer(Arc<dyn Fn(Endpoint) -> Dialing + Send + Sync>);

impl Dialer {
    /// A dialer out of a function that opens the stream to an endpoint.
    pub fn new<F, D>(dial: D) -> Dialer
    where
        D: Fn(Endpoint) -> F + Send + Sync + 'static,
        F: Future<Output = io::Result<Halves>> + Send + 'static,
    {
        Dialer(Arc::new(move |endpoint| Box::pin(dial(endpoint))))
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

/// Why there is no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL is none.
    Url(UrlError),
    /// The URL asks for TLS, which is not built in.
    NoTls,
    /// There is no TLS with this server.
    #[cfg(feature = "tls")]
    Tls(TlsError),
    /// The network said no.
    Io(io::Error),
    /// It took longer than this.
    Timeout(Duration),
    /// What answers is no broker, or speaks the protocol wrongly.
    Handshake(String),
    /// The broker answered the upgrade with something else than a connection.
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the broker says about it.
        message: String,
    },
    /// The broker answered `hello` with an error.
    Rejected(Box<Error>),
    /// The connection ended before the broker said `welcome`.
    Closed(Closed),
}

impl ConnectError {
    /// Whether to try again.
    pub fn advice(&self) -> Advice {
        match self {
            ConnectError::Url(_) | ConnectError::NoTls | ConnectError::Handshake(_) => Advice::Stop,
            #[cfg(feature = "tls")]
            ConnectError::Tls(error) => error.advice(),
            ConnectError::Io(_) | ConnectError::Timeout(_) => Advice::BackOff,
            ConnectError::Refused { status, .. } if *status >= 500 || *status == 429 => Advice::BackOff,
            ConnectError::Refused { .. } => Advice::Stop,
            ConnectError::Rejected(error) if error.retryable => Advice::BackOff,
            ConnectError::Rejected(_) => Advice::Stop,
            ConnectError::Closed(closed) => closed.advice,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Url(error) => error.fmt(f),
            ConnectError::NoTls => f.write_str(
                "the URL asks for TLS, which is not built in: build taskyard-client with its feature `tls`, or give \
                 a dialer that speaks TLS; in a trusted network ws:// (or http://) will do",
            ),
            #[cfg(feature = "tls")]
            ConnectError::Tls(error) => error.fmt(f),
            ConnectError::Io(error) => {
                write!(f, "the connection failed: {error}; is the broker running, and is its address right?")
            }
            ConnectError::Timeout(limit) => {
                write!(
                    f,
                    "the broker did not answer within {limit:?}; is its address right, or is it overloaded?"
                )
            }
            ConnectError::Handshake(problem) => f.write_str(problem),
            ConnectError::Refused { status, message } => {
                write!(f, "the broker refused the connection with HTTP status {status}: {message}")
            }
            ConnectError::Rejected(error) => {
                write!(f, "the broker refused this client: {}: {}", error.code, error.message.as_str())
            }
            ConnectError::Closed(closed) => write!(f, "the connection ended before `welcome`: {closed}"),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConnectError::Io(error) => Some(error),
            ConnectError::Url(error) => Some(error),
            #[cfg(feature = "tls")]
            ConnectError::Tls(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> ConnectError {
        #[cfg(feature = "tls")]
        if let Some(error) = TlsError::within(&error) {
            return ConnectError::Tls(error);
        }
        ConnectError::Io(error)
    }
}

#[cfg(feature = "tls")]
impl From<TlsError> for ConnectError {
    fn from(error: TlsError) -> ConnectError {
        ConnectError::Tls(error)
    }
}

impl From<UrlError> for ConnectError {
    fn from(error: UrlError) -> ConnectError {
        ConnectError::Url(error)
    }
}

impl Connection {
    /// Connects over TCP, or TLS if the URL asks for it, and upgrades.
    pub async fn open(endpoint: &Endpoint) -> Result<Connection, ConnectError> {
        within(endpoint.connect_timeout, async {
            if endpoint.secure() {
                #[cfg(not(feature = "tls"))]
                return Err(ConnectError::NoTls);
                #[cfg(feature = "tls")]
                {
                    let (read, write) = tokio::io::split(tls::connect(endpoint).await?);
                    return Self::over(read, write, endpoint).await;
                }
            }
            let stream = TcpStream::connect((endpoint.host(), endpoint.port())).await?;
            // A flush is a whole batch: to hold it back for more would only delay it.
            stream.set_nodelay(true)?;
            let (read, write) = stream.into_split();
            Self::over(read, write, endpoint).await
        })
        .await
    }

    /// Connects with a dialer and upgrades.
    pub async fn dial(dialer: &Dialer, endpoint: &Endpoint) -> Result<Connection, ConnectError> {
        within(endpoint.connect_timeout, async {
            let (read, write) = (dialer.0)(endpoint.clone()).await?;
            Self::over(read, write, endpoint).await
        })
        .await
    }

    /// Upgrades a stream that is already open.
    pub async fn over<R, W>(
        mut read: R,
        mut write: W,
        endpoint: &Endpoint,
    ) -> Result<Connection, ConnectError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let protocol = endpoint.encoding.subprotocol();
        let upgrade = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n"
        );
        let request = http::request(endpoint, endpoint.path(), &upgrade)?;
        write.write_all(request.as_bytes()).await?;
        write.flush().await?;

        let mut kept = Vec::new();
        let head = http::read_head(&mut read, &mut kept).await?;
        if head.status != 101 {
            let body = http::read_body(&mut read, &head, kept, REFUSAL_BYTES_MAX).await.unwrap_or_default();
            return Err(ConnectError::Refused { status: head.status, message: refusal(&body) });
        }
        check_upgrade(&head, &key, protocol)?;
        Ok(Connection {
            sender: Sender::new(Box::new(write), endpoint.encoding),
            receiver: Receiver::new(read, kept, endpoint.encoding),
        })
    }

    /// The two halves: they share nothing and may live in two tasks.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

async fn within(
    limit: Duration,
    connecting: impl Future<Output = Result<Connection, ConnectError>>,
) -> Result<Connection, ConnectError> {
    match tokio::time::timeout(limit, connecting).await {
        Ok(connection) => connection,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

fn check_upgrade(head: &http::Head, key: &str, protocol: &str) -> Result<(), ConnectError> {
    let wrong = |problem: String| {
        Err(ConnectError::Handshake(format!(
            "the answer to the WebSocket upgrade is wrong: {problem}; is a proxy between here and the broker?"
        )))
    };
    if !head.lists("upgrade", "websocket") {
        return wrong("expected `Upgrade: websocket`".into());
    }
    if !head.lists("connection", "upgrade") {
        return wrong("expected `Connection: Upgrade`".into());
    }
    // The proof that the other end read our key, and is no cache that repeats an old answer.
    let expected = STANDARD.encode(Sha1::digest(format!("{key}{WEBSOCKET_GUID}")));
    match head.header("sec-websocket-accept") {
        Some(accept) if accept == expected => {}
        Some(accept) => return wrong(format!("expected `Sec-WebSocket-Accept: {expected}`, got {accept:?}")),
        None => return wrong("`Sec-WebSocket-Accept` is missing".into()),
    }
    match head.header("sec-websocket-protocol") {
        Some(chosen) if chosen == protocol => {}
        Some(chosen) => return wrong(format!("expected the subprotocol {protocol:?}, got {chosen:?}")),
        None => return wrong(format!("the broker did not agree to the subprotocol {protocol:?}")),
    }
    match head.header("sec-websocket-extensions") {
        None => Ok(()),
        Some(extension) => wrong(format!("it turns on the extension {extension:?}, which was not offered")),
    }
}

/// The text of a refusal: that of the error object, or the body as it is.
fn refusal(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    // Over HTTP an error has no `type`; with one it is a message that the codec knows.
    let error = text.strip_prefix('{').and_then(|fields| {
        let message = format!("{{\"type\":\"error\",{fields}");
        match codec::decode_server(codec::Encoding::Json, message.as_bytes()).ok()? {
            codec::Frame::One(codec::Response {
                message: taskyard_proto::ServerMessage::Error(error),
                ..
            }) => Some(format!("{}: {}", error.code, error.message.as_str())),
            _ => None,
        }
    });
    match error {
        Some(error) => error,
        None if text.is_empty() => "it gave no reason".into(),
        None => text.chars().take(1024).collect(),
    }
}
