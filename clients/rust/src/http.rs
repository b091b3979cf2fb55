//! As much HTTP/1.1 as this crate needs: a request, the head of an answer and its body. The upgrade
//! stands on it, and so does [`get`], with which a program asks a broker for its status.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use taskyard_proto::Secret;

use crate::connection::ConnectError;
use crate::endpoint::Endpoint;

/// The longest body that [`get`] reads, in bytes: as long as the longest message.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// The longest head of an answer, in bytes; brokers send a few hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Asks the broker at `url` for `path` and gives the answer's status and body. A body of more than
/// [`BODY_BYTES_MAX`] bytes is an error.
pub async fn get(url: &str, path: &str, token: Option<&Secret>) -> Result<(u16, Vec<u8>), ConnectError> {
    let mut endpoint = Endpoint::parse(url)?;
    endpoint.token = token.cloned();
    get_from(&endpoint, path).await
}

/// As [`get`], on the endpoint's terms; its own path is not used.
pub async fn get_from(endpoint: &Endpoint, path: &str) -> Result<(u16, Vec<u8>), ConnectError> {
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ConnectError::Handshake(format!(
            "{path:?} is not the path of a request: begin it with '/', and write what is not ASCII as %xx"
        )));
    }
    let limit = endpoint.connect_timeout;
    let answer = async {
        if endpoint.secure() {
            #[cfg(not(feature = "tls"))]
            return Err(ConnectError::NoTls);
            #[cfg(feature = "tls")]
            return exchange(crate::tls::connect(endpoint).await?, endpoint, path).await;
        }
        exchange(TcpStream::connect((endpoint.host(), endpoint.port())).await?, endpoint, path).await
    };
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(ConnectError::Timeout(limit)),
    }
}

async fn exchange<S>(mut stream: S, endpoint: &Endpoint, path: &str) -> Result<(u16, Vec<u8>), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = request(endpoint, path, "Accept: application/json\r\nConnection: close\r\n")?;
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut kept = Vec::new();
    let head = read_head(&mut stream, &mut kept).await?;
    let body = read_body(&mut stream, &head, kept, BODY_BYTES_MAX).await?;
    Ok((head.status, body))
}

/// A `GET` with the headers that every request of ours has; `more` are lines with their ends.
pub(crate) fn request(endpoint: &Endpoint, path: &str, more: &str) -> Result<String, ConnectError> {
    let authorization = match &endpoint.token {
        None => String::new(),
        Some(token) if token.expose().bytes().all(|b| b.is_ascii_graphic()) => {
            format!("Authorization: Bearer {}\r\n", token.expose())
        }
        Some(_) => {
            return Err(ConnectError::Handshake(
                "the token holds a space, a line end or a letter that is not ASCII: give it as it was printed".into(),
            ));
        }
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
    let too_long = || ConnectError::Handshake(format!("the answer's body is longer than {bytes_max} bytes"));
    if head.lists("transfer-encoding", "chunked") {
        return read_chunks(stream, kept, bytes_max).await;
    }
    let length = match head.header("content-length") {
        Some(text) => Some(text.parse::<usize>().map_err(|_| not_http("its Content-Length is no number"))?),
        None => None,
    };
    let wanted = length.unwrap_or(bytes_max + 1);
    if length.is_some() && wanted > bytes_max {
        return Err(too_long());
    }
    while kept.len() < wanted {
        if (&mut *stream).take((wanted - kept.len()) as u64).read_buf(&mut kept).await? == 0 {
            break;
        }
    }
    match length {
        Some(length) if kept.len() < length => Err(not_http("it ended within the body")),
        None if kept.len() > bytes_max => Err(too_long()),
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
            return Err(ConnectError::Handshake(format!(
                "the answer's body is longer than {bytes_max} bytes"
            )));
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
