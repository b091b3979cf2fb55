//! From an HTTP request to a socket: RFC 6455, section 4.2, checked in full.

use super::deflate::Agreed;
use super::raw::Target;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Version};
use sha1::{Digest as _, Sha1};
use taskyard_proto::{
    Encoding, Error, ErrorCode, GroupName, Hello, Mode, QueueName, RoomName, Subscribe, WorkerName,
};

use crate::live::Live;

/// What a client asked for with its upgrade.
#[derive(Debug)]
pub struct Opening {
    /// The encoding that was negotiated; none: each frame's kind decides.
    pub encoding: Option<Encoding>,
    /// How messages are compressed, if they are.
    pub compression: Option<Agreed>,
    /// What the URL says, where the client has no library to say it.
    pub implied: Option<Box<Implied>>,
}

/// What the broker agrees to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// permessage-deflate, where it is offered.
    pub compression: bool,
    /// A token in the URL.
    pub query_token: bool,
}

/// A hello, a subscribe and a join said by the URL.
#[derive(Debug)]
pub struct Implied {
    /// Who it is.
    pub hello: Hello,
    /// What it takes.
    pub subscribe: Option<Subscribe>,
    /// What it listens to.
    pub join: Option<RoomName>,
    /// Frames are payloads alone: where those of the client go.
    pub raw: Option<Target>,
}

impl Implied {
    /// What it takes from: rooms are named like queues in rules.
    pub fn consumes(&self) -> impl Iterator<Item = QueueName> {
        let room = self
            .join
            .as_ref()
            .map(|room| QueueName::parse(room.as_str()).expect("names of rooms are of the form of queues'"));
        self.subscribe.as_ref().map(|subscribe| subscribe.queue.clone()).into_iter().chain(room)
    }
}

/// An upgrade that is refused.
#[derive(Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What to say.
    pub error: Error,
    /// A header that the status wants.
    pub header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl AsRef<str>) -> Refusal {
        Refusal { status, error: Error::new(ErrorCode::BadRequest, message), header: None }
    }
}

/// Whether a request wants to be a WebSocket: at `/ws` any does, at `/` one with an upgrade header.
pub fn is_wanted<B>(request: &Request<B>) -> bool {
    match request.uri().path() {
        "/ws" => true,
        "/" => request.headers().contains_key(header::UPGRADE),
        _ => false,
    }
}

/// Checks an upgrade request; gives the answer to send and what was asked for.
pub fn accept<B>(request: &Request<B>, terms: Terms) -> Result<(Response<()>, Opening), Refusal> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let mut refusal =
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket is opened with GET, see RFC 6455");
        refusal.header = Some((header::ALLOW, HeaderValue::from_static("GET")));
        return Err(refusal);
    }
    if request.version() < Version::HTTP_11 {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "a WebSocket is opened with HTTP/1.1"));
    }
    // What follows a body would be taken for frames by one reader, and for the body by another.
    let is_empty = |length: &HeaderValue| length.as_bytes().trim_ascii() == b"0";
    if headers.contains_key(header::TRANSFER_ENCODING)
        || !headers.get_all(header::CONTENT_LENGTH).iter().all(is_empty)
    {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the request that opens a WebSocket has no body"));
    }
    if !has_token(headers, header::UPGRADE, "websocket") || !has_token(headers, header::CONNECTION, "upgrade")
    {
        let text = "this is a WebSocket endpoint: send `Connection: Upgrade` and `Upgrade: websocket`, \
                    or use the HTTP interface under /v1/";
        let mut refusal = Refusal::new(StatusCode::UPGRADE_REQUIRED, text);
        refusal.header = Some((header::UPGRADE, HeaderValue::from_static("websocket")));
        return Err(refusal);
    }
    let has_version = headers.contains_key(header::SEC_WEBSOCKET_VERSION);
    if !has_version || single(headers, header::SEC_WEBSOCKET_VERSION)? != "13" {
        let mut refusal = Refusal::new(
            StatusCode::UPGRADE_REQUIRED,
            "the broker speaks WebSocket version 13, see RFC 6455",
        );
        refusal.header = Some((header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")));
        return Err(refusal);
    }
    let key = single(headers, header::SEC_WEBSOCKET_KEY)?;
    if STANDARD.decode(key).ok().is_none_or(|nonce| nonce.len() != 16) {
        let text = "`Sec-WebSocket-Key` must be 16 random bytes in base64";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    }
    let encoding = negotiate(headers)?;
    let compression = terms.compression.then(|| offered_compression(headers)).flatten();
    let implied = implied(request.uri().query().unwrap_or_default(), terms.query_token)?;

    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept_key(key));
    if let Some(encoding) = encoding {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, encoding.subprotocol());
    }
    if let Some(agreed) = compression {
        response = response.header(header::SEC_WEBSOCKET_EXTENSIONS, agreed.answer());
    }
    let response = response.body(()).expect("each header is valid");
    Ok((response, Opening { encoding, compression, implied }))
}

fn offered_compression(headers: &HeaderMap) -> Option<Agreed> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
    lines.filter_map(|line| line.to_str().ok()).find_map(Agreed::choose)
}

/// The answer to a key: RFC 6455, section 1.3.
fn accept_key(key: &str) -> String {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    STANDARD.encode(hash.finalize())
}

/// The one value of a header that must stand exactly once.
fn single(headers: &HeaderMap, name: HeaderName) -> Result<&str, Refusal> {
    let mut values = headers.get_all(&name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (Some(Ok(value)), None) => Ok(value.trim()),
        _ => {
            let text = format!("the upgrade must have exactly one `{name}` header, see RFC 6455");
            Err(Refusal::new(StatusCode::BAD_REQUEST, text))
        }
    }
}

/// The comma-separated words of a header, over all its lines.
fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(token))
}

fn negotiate(headers: &HeaderMap) -> Result<Option<Encoding>, Refusal> {
    let ours = [Encoding::Json, Encoding::MessagePack];
    let mut offered = words(headers, header::SEC_WEBSOCKET_PROTOCOL).peekable();
    if offered.peek().is_none() {
        return Ok(None);
    }
    // The first that we know: the client names them in its order of preference.
    let found = offered.find_map(|word| ours.into_iter().find(|encoding| encoding.subprotocol() == word));
    match found {
        Some(encoding) => Ok(Some(encoding)),
        None => {
            let text = "none of the offered subprotocols is known: offer taskyard.v1.json, taskyard.v1.msgpack, or none";
            Err(Refusal::new(StatusCode::BAD_REQUEST, text))
        }
    }
}

/// A page of a foreign origin must not use a visitor's access to this broker. What sends no origin is no
/// browser.
pub fn check_origin(headers: &HeaderMap, live: &Live, auth_on: bool) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        if !live.admits(origin, host, auth_on) {
            let text = format!(
                "a page of origin {origin:?} may not connect to {host:?}: serve it from there, or add its origin to \
                 allow_origins in the broker's configuration"
            );
            let mut refusal = Refusal::new(StatusCode::FORBIDDEN, &text);
            refusal.error = Error::new(ErrorCode::Forbidden, text);
            return Err(refusal);
        }
    }
    Ok(())
}

/// Reads the URL of a client without a library.
fn implied(query: &str, query_token: bool) -> Result<Option<Box<Implied>>, Refusal> {
    let bad = |text: String| Err(Refusal::new(StatusCode::BAD_REQUEST, text));
    let mut hello = Hello::empty();
    let (mut queue, mut credit, mut mode, mut room) = (None, None, None, None);
    let mut raw = false;
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in crate::http::query::pairs(query) {
        if key == "token" {
            if query_token {
                continue;
            }
            let text = "parameter `token`: tokens are not taken from URLs, which end up in logs: send it in `hello`, or \
                        have allow_query_token set";
            return bad(text.into());
        }
        if seen.contains(&key) {
            return bad(format!(
                "parameter `{key}` stands twice: a URL asks for one queue and one room at most"
            ));
        }
        let wrong = |error: &dyn std::fmt::Display| {
            Refusal::new(StatusCode::BAD_REQUEST, format!("parameter `{key}`: {error}"))
        };
        match key.as_str() {
            "queue" => queue = Some(QueueName::parse(&value).map_err(|e| wrong(&e))?),
            "room" => room = Some(RoomName::parse(&value).map_err(|e| wrong(&e))?),
            "worker" => hello.worker = Some(WorkerName::parse(&value).map_err(|e| wrong(&e))?),
            "groups" => {
                hello.groups = value
                    .split(',')
                    .map(GroupName::parse)
                    .collect::<Result<_, _>>()
                    .map_err(|e| wrong(&e))?;
            }
            "credit" => match value.parse().ok().and_then(taskyard_proto::message::Credit::new) {
                Some(number) => credit = Some(number),
                None => {
                    return bad(format!(
                        "parameter `credit`: expected an integer of 0 to 1024, got {value:?}"
                    ));
                }
            },
            "mode" => match Mode::parse(&value) {
                Some(found) => mode = Some(found),
                None => return bad(format!("parameter `mode`: expected manual or auto, got {value:?}")),
            },
            "raw" => match value.as_str() {
                "1" => raw = true,
                _ => {
                    return bad(format!(
                        "parameter `raw`: expected 1, got {value:?}: leave it out otherwise"
                    ));
                }
            },
            // A mistyped name would leave a worker that waits for ever.
            _ => {
                let text = "known are queue, credit, mode, groups, worker, room and raw";
                return bad(format!("unknown parameter {key:?}: {text}"));
            }
        }
        seen.push(key);
    }
    if queue.is_none() && (credit.is_some() || mode.is_some()) {
        return bad("`credit` and `mode` are of a subscription: give `queue` too".into());
    }
    let raw = match (raw, &queue, &room) {
        (false, ..) => None,
        (true, Some(queue), None) => Some(Target::Queue(queue.clone())),
        (true, None, Some(room)) => Some(Target::Room(room.clone())),
        (true, ..) => return bad("parameter `raw`: give either one `queue` or one `room` with it".into()),
    };
    if raw.is_some() {
        if mode == Some(Mode::Manual) {
            let text = "parameter `raw`: tasks that come as payloads alone cannot be settled: leave `mode` out, it is auto";
            return bad(text.into());
        }
        mode = Some(Mode::Auto);
    }
    let subscribe = queue.map(|queue| Subscribe { queue, credit, mode, explicit_start: false });
    let implied = Implied { hello, subscribe, join: room, raw };
    Ok((!seen.is_empty()).then(|| Box::new(implied)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_rfc() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
