//! HTTP requests to a broker: [`get`] for its status, [`send`] for any verb, [`open`] for an answer that is
//! read as it comes. They go over hyper; the upgrade to WebSocket, which needs the two halves of a stream,
//! writes its one request and reads its one answer by itself, with what else is here.

use std::error::Error as _;
use std::io;
use std::pin::pin;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

pub use hyper::Method;
use taskyard_proto::Secret;

use crate::connection::ConnectError;
use crate::endpoint::Endpoint;

/// The longest body that [`get`] and [`send`] read, in bytes: as long as the longest message.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// The longest head of an answer, in bytes; brokers send a few hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What is asked of a broker.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    path: String,
    accept: &'static str,
    body: Option<(&'static str, Bytes)>,
    last_event_id: Option<String>,
}

impl Request {
    /// A request without a body. The path begins with `/`, and may have a query.
    pub fn new(method: Method, path: impl Into<String>) -> Request {
        Request { method, path: path.into(), accept: "application/json", body: None, last_event_id: None }
    }

    /// The same with a body of JSON.
    pub fn json(self, body: impl Into<Bytes>) -> Request {
        Request { body: Some(("application/json", body.into())), ..self }
    }

    /// Asks for server-sent events, for those behind the one with this id if there is one.
    pub fn events(self, after: Option<&str>) -> Request {
        Request { accept: "text/event-stream", last_event_id: after.map(str::to_owned), ..self }
    }
}

/// An answer whose body is still to come. Dropped, it ends its connection.
#[derive(Debug)]
pub struct Response {
    status: u16,
    content_type: Option<String>,
    body: Incoming,
    /// What reads the connection.
    _driver: JoinSet<()>,
}

impl Response {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The media type of the body, without parameters.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// The next part of the body, of whatever length, once it is here; none at the end. Nothing is lost when
    /// this is dropped while it waits.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ConnectError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(failed(&error)),
                // Trailers are passed over.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole body, of at most so many bytes.
    pub async fn body(mut self, bytes_max: usize) -> Result<Vec<u8>, ConnectError> {
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            if bytes.len() > bytes_max - body.len() {
                return Err(too_long(bytes_max));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }
}

/// Asks the broker at `url` for `path` and gives the answer's status and body. A body of more than
/// [`BODY_BYTES_MAX`] bytes is an error.
pub async fn get(url: &str, path: &str, token: Option<&Secret>) -> Result<(u16, Vec<u8>), ConnectError> {
    let mut endpoint = Endpoint::parse(url)?;
    endpoint.token = token.cloned();
    get_from(&endpoint, path).await
}

/// As [`get`], on the endpoint's terms; its own path is not used.
pub async fn get_from(endpoint: &Endpoint, path: &str) -> Result<(u16, Vec<u8>), ConnectError> {
    send(endpoint, Request::new(Method::GET, path)).await
}

/// Sends a request and gives the answer's status and body, all within the endpoint's time to connect. A body of
/// more than [`BODY_BYTES_MAX`] bytes is an error.
pub async fn send(endpoint: &Endpoint, request: Request) -> Result<(u16, Vec<u8>), ConnectError> {
    within(endpoint, async {
        let response = connect_and_send(endpoint, request).await?;
        Ok((response.status(), response.body(BODY_BYTES_MAX).await?))
    })
    .await
}

/// Sends a request and gives the answer as soon as its head is here, which has to be within the endpoint's time to
/// connect. Its body may take as long as it likes.
pub async fn open(endpoint: &Endpoint, request: Request) -> Result<Response, ConnectError> {
    within(endpoint, connect_and_send(endpoint, request)).await
}

/// The same over a stream that is open already, on which nothing was said yet; nothing bounds its time.
pub async fn send_over<S>(
    stream: S,
    endpoint: &Endpoint,
    request: Request,
) -> Result<(u16, Vec<u8>), ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let response = exchange(stream, made_out_to(endpoint, request)?).await?;
    Ok((response.status(), response.body(BODY_BYTES_MAX).await?))
}

async fn within<T>(
    endpoint: &Endpoint,
    asking: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let limit = endpoint.connect_timeout;
    match tokio::time::timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

async fn connect_and_send(endpoint: &Endpoint, request: Request) -> Result<Response, ConnectError> {
    let request = made_out_to(endpoint, request)?;
    if endpoint.secure() {
        #[cfg(not(feature = "tls"))]
        return Err(ConnectError::NoTls);
        #[cfg(feature = "tls")]
        return exchange(crate::tls::connect(endpoint).await?, request).await;
    }
    exchange(TcpStream::connect((endpoint.host(), endpoint.port())).await?, request).await
}

fn made_out_to(endpoint: &Endpoint, request: Request) -> Result<hyper::Request<Full<Bytes>>, ConnectError> {
    let path = &request.path;
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ConnectError::Handshake(format!(
            "{path:?} is not the path of a request: begin it with '/', and write what is not ASCII as %xx"
        )));
    }
    let mut made = hyper::Request::builder()
        .method(request.method)
        .uri(path.as_str())
        .header(HOST, endpoint.authority())
        .header(USER_AGENT, concat!("taskyard-client/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, request.accept)
        .header(CONNECTION, "close");
    if let Some(token) = checked_token(endpoint)? {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
            .map_err(|_| ConnectError::Handshake("the token does not fit into a header".into()))?;
        value.set_sensitive(true);
        made = made.header(AUTHORIZATION, value);
    }
    if let Some(id) = &request.last_event_id {
        made = made.header("last-event-id", id.as_str());
    }
    let body = match request.body {
        Some((content_type, body)) => {
            made = made.header(CONTENT_TYPE, content_type);
            body
        }
        None => Bytes::new(),
    };
    made.body(Full::new(body))
        .map_err(|error| ConnectError::Handshake(format!("{path:?} cannot be asked for: {error}")))
}

async fn exchange<S>(stream: S, request: hyper::Request<Full<Bytes>>) -> Result<Response, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let mut connection = Box::pin(connection);
    let mut driver = JoinSet::new();
    let answer = {
        let mut answer = pin!(sender.send_request(request));
        tokio::select! {
            biased;
            answer = &mut answer => {
                driver.spawn(async move {
                    // What goes wrong from here on is told by the body.
                    let _ = connection.await;
                });
                answer
            }
            // It may have ended with the answer; if not, its own error is the one that tells why.
            ended = &mut connection => match (answer.await, ended) {
                (Err(_), Err(error)) => return Err(failed(&error)),
                (answer, _) => answer,
            },
        }
    };
    let (head, body) = answer.map_err(|error| failed(&error))?.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type =
        content_type.and_then(|text| text.split(';').next()).map(|text| text.trim().to_ascii_lowercase());
    Ok(Response { status: head.status.as_u16(), content_type, body, _driver: driver })
}

/// What hyper says, in the words of this crate.
fn failed(error: &hyper::Error) -> ConnectError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            #[cfg(feature = "tls")]
            if let Some(error) = crate::tls::TlsError::within(error) {
                return ConnectError::Tls(error);
            }
            return ConnectError::Io(io::Error::new(error.kind(), error.to_string()));
        }
        source = cause.source();
    }
    if error.is_parse() {
        return not_http(&error.to_string());
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        let text = "it closed the connection before the end of its answer";
        return io::Error::new(io::ErrorKind::UnexpectedEof, text).into();
    }
    io::Error::other(error.to_string()).into()
}

fn too_long(bytes_max: usize) -> ConnectError {
    ConnectError::Handshake(format!("the answer's body is longer than {bytes_max} bytes"))
}

/// The token, if it can stand in a header.
fn checked_token(endpoint: &Endpoint) -> Result<Option<&Secret>, ConnectError> {
    match &endpoint.token {
        Some(token) if !token.expose().bytes().all(|b| b.is_ascii_graphic()) => Err(ConnectError::Handshake(
            "the token holds a space, a line end or a letter that is not ASCII: give it as it was printed"
                .into(),
        )),
        token => Ok(token.as_ref()),
    }
}

/// The upgrade's `GET`; `more` are lines with their ends.
pub(crate) fn request(endpoint: &Endpoint, path: &str, more: &str) -> Result<String, ConnectError> {
    let authorization = match checked_token(endpoint)? {
        None => String::new(),
        Some(token) => format!("Authorization: Bearer {}\r\n", token.expose()),
    };
    Ok(format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: taskyard-client/{}\r\n{authorization}{more}\r\n",
        endpoint.authority(),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// The status line and the headers of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header; several of the same name are joined, as HTTP allows.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> =
            self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// Whether the header's list of words holds `word`, in whatever case.
    pub(crate) fn lists(&self, name: &str, word: &str) -> bool {
        self.header(name)
            .is_some_and(|value| value.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
    }
}

/// Reads an answer's head. What came after it is left in `kept`.
pub(crate) async fn read_head<R>(stream: &mut R, kept: &mut Vec<u8>) -> Result<Head, ConnectError>
where
    R: AsyncRead + Unpin,
{
    let end = loop {
        if let Some(at) = find(kept, b"\r\n\r\n") {
            break at;
        }
        if kept.len() >= HEAD_BYTES_MAX {
            return Err(not_http("its head is longer than 16 KiB"));
        }
        if (&mut *stream).take((HEAD_BYTES_MAX - kept.len()) as u64).read_buf(kept).await? == 0 {
            return Err(match kept.is_empty() {
                true => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer")
                        .into()
                }
                false => not_http("it ended within the head"),
            });
        }
    };
    let rest = kept.split_off(end + 4);
    let head = std::mem::replace(kept, rest);
    parse_head(&head[..end])
}

fn parse_head(head: &[u8]) -> Result<Head, ConnectError> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 ")))
        .and_then(|line| line.get(..3))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| not_http("it does not begin with an HTTP/1.1 status line"))?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| not_http("a header has no colon"))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<Result<_, ConnectError>>()?;
    Ok(Head { status, headers })
}

/// Reads the body that follows `head`, of which `kept` is already here.
pub(crate) async fn read_body<R>(
    stream: &mut R,
    head: &Head,
    mut kept: Vec<u8>,
    bytes_max: usize,
) -> Result<Vec<u8>, ConnectError>
where
    R: AsyncRead + Unpin,
{
    if head.lists("transfer-encoding", "chunked") {
        return read_chunks(stream, kept, bytes_max).await;
    }
    let length = match head.header("content-length") {
        Some(text) => Some(text.parse::<usize>().map_err(|_| not_http("its Content-Length is no number"))?),
        None => None,
    };
    let wanted = length.unwrap_or(bytes_max + 1);
    if length.is_some() && wanted > bytes_max {
        return Err(too_long(bytes_max));
    }
    while kept.len() < wanted {
        if (&mut *stream).take((wanted - kept.len()) as u64).read_buf(&mut kept).await? == 0 {
            break;
        }
    }
    match length {
        Some(length) if kept.len() < length => Err(not_http("it ended within the body")),
        None if kept.len() > bytes_max => Err(too_long(bytes_max)),
        _ => {
            kept.truncate(wanted);
            Ok(kept)
        }
    }
}

async fn read_chunks<R>(stream: &mut R, mut kept: Vec<u8>, bytes_max: usize) -> Result<Vec<u8>, ConnectError>
where
    R: AsyncRead + Unpin,
{
    let mut body = Vec::new();
    // Where the next chunk's size line, or the rest of a chunk, begins in `kept`.
    let mut at = 0;
    loop {
        let line_end = loop {
            match find(&kept[at..], b"\r\n") {
                Some(end) => break at + end,
                None if kept.len() - at > 1024 => {
                    return Err(not_http("the line of a chunk's size is too long"));
                }
                None => more(stream, &mut kept).await?,
            }
        };
        let line = String::from_utf8_lossy(&kept[at..line_end]);
        let size =
            line.split(';').next().map(str::trim).and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.ok_or_else(|| not_http("the size of a chunk is no number"))?;
        at = line_end + 2;
        if size == 0 {
            return Ok(body);
        }
        if size > bytes_max - body.len() {
            return Err(too_long(bytes_max));
        }
        while kept.len() - at < size + 2 {
            more(stream, &mut kept).await?;
        }
        body.extend_from_slice(&kept[at..at + size]);
        kept.drain(..at + size + 2);
        at = 0;
    }
}

async fn more<R: AsyncRead + Unpin>(stream: &mut R, kept: &mut Vec<u8>) -> Result<(), ConnectError> {
    match stream.read_buf(kept).await? {
        0 => Err(not_http("it ended within the body")),
        _ => Ok(()),
    }
}

fn not_http(problem: &str) -> ConnectError {
    ConnectError::Handshake(format!(
        "the answer is not one of an HTTP server: {problem}; is the URL the address of a Taskyard broker?"
    ))
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(bytes: &str) -> Result<(u16, String), ConnectError> {
        let mut stream = bytes.as_bytes();
        let mut kept = Vec::new();
        let head = read_head(&mut stream, &mut kept).await?;
        let body = read_body(&mut stream, &head, kept, 16).await?;
        Ok((head.status, String::from_utf8(body).expect("this works in the test")))
    }

    #[tokio::test]
    async fn bodies_of_every_kind_are_read() {
        for (bytes, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", "abc"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
                "abc",
            ),
            ("HTTP/1.0 200 OK\r\n\r\nabc", "abc"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        ] {
            assert_eq!(
                answer(bytes).await.expect("this works in the test"),
                (200, body.to_owned()),
                "{bytes:?}"
            );
        }
    }

    #[tokio::test]
    async fn broken_and_endless_answers_are_refused() {
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        for (bytes, problem) in [
            ("", "without an answer"),
            ("HTTP/1.1 200 OK\r\nConte", "within the head"),
            ("SSH-2.0-OpenSSH\r\n\r\n", "status line"),
            (endless.as_str(), "16 KiB"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "within the body"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nabc", "longer than 16"),
            ("HTTP/1.1 200 OK\r\n\r\n01234567890123456", "longer than 16"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "longer than 16"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "size of a chunk"),
        ] {
            let error = answer(bytes).await.expect_err("this fails in the test").to_string();
            assert!(error.contains(problem), "{bytes:?}: {error}");
        }
    }
}
