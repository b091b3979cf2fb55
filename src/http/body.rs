//! Bodies and answers: JSON or MessagePack by the headers; errors are the protocol's `error` object.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{HeaderMap as Headers, StatusCode};
use taskyard_proto::{ClientMessage, Encoding, Error, ErrorCode, Payload, ServerMessage, codec};

use crate::standstill;

/// How long a request's body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Marks what is not to be answered: see [`unanswered`].
#[derive(Debug, Clone, Copy)]
pub struct Unanswered;

/// Ends the connection without an answer, because nobody knows what came of the request: whoever is told an error takes it
/// that nothing did, and submits the task once more.
pub fn unanswered() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Unanswered);
    response
}

/// What a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Message(Encoding),
    /// Messages, one a line.
    Lines,
    /// Nothing said, nothing sent.
    Nothing,
    /// Bytes of any other kind.
    Bytes,
    /// What a form sends: nearly always a client that forgot to say what it sends.
    Form,
}

/// The kind that the `Content-Type` says.
pub fn kind(headers: &Headers, empty: bool) -> Kind {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return if empty { Kind::Nothing } else { Kind::Bytes };
    };
    let essence =
        value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/json" => Kind::Message(Encoding::Json),
        "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
            Kind::Message(Encoding::MessagePack)
        }
        "application/x-ndjson" => Kind::Lines,
        "application/x-www-form-urlencoded" | "multipart/form-data" => Kind::Form,
        _ => Kind::Bytes,
    }
}

/// The encoding of the answer: what `Accept` names, else that of the request, else JSON.
pub fn answer_encoding(headers: &Headers) -> Encoding {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("msgpack") {
        return Encoding::MessagePack;
    }
    match kind(headers, true) {
        Kind::Message(Encoding::MessagePack) if !accept.contains("json") => Encoding::MessagePack,
        _ => Encoding::Json,
    }
}

/// Reads a body, within the limit and in time.
pub async fn read(headers: &Headers, body: Body, bytes_max: usize) -> Result<Bytes, (StatusCode, Error)> {
    let too_large = || {
        let text = format!(
            "the body is longer than the {bytes_max} bytes that this broker allows: send less, or raise `message_bytes`"
        );
        (StatusCode::PAYLOAD_TOO_LARGE, Error::new(ErrorCode::TooLarge, text))
    };
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large());
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        let text = "the broker reads no compressed bodies: send it plain, without `Content-Encoding`";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, Error::new(ErrorCode::BadRequest, text)));
    }
    match standstill::timeout(BODY_TIME, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            let text = format!("the body ended before it was whole: {error}");
            Err((StatusCode::BAD_REQUEST, Error::new(ErrorCode::BadRequest, text)))
        }
        Err(_) => {
            let text = "the body took longer than 30 seconds";
            Err((StatusCode::REQUEST_TIMEOUT, Error::new(ErrorCode::BadRequest, text)))
        }
    }
}

/// The answer to a body that is no message where one is expected.
pub fn not_a_message() -> (StatusCode, Error) {
    let text = "the body is expected as application/json or application/msgpack: with curl, say --json";
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, Error::new(ErrorCode::BadRequest, text))
}

/// Reads a body as a message; `extra` are the fields that the path gives. An empty body has no other.
pub fn decode(
    headers: &Headers,
    bytes: &Bytes,
    type_text: &'static str,
    extra: &[(&'static str, &str)],
) -> Result<ClientMessage, (StatusCode, Error)> {
    let encoding = match kind(headers, bytes.is_empty()) {
        Kind::Message(encoding) => encoding,
        _ if bytes.is_empty() => Encoding::Json,
        _ => return Err(not_a_message()),
    };
    codec::decode_body(encoding, bytes, type_text, extra).map_err(|error| {
        (StatusCode::from_u16(error.code.http_status()).expect("the table holds HTTP statuses"), error)
    })
}

fn content_type(encoding: Encoding) -> HeaderValue {
    HeaderValue::from_static(match encoding {
        Encoding::Json => "application/json",
        Encoding::MessagePack => "application/msgpack",
    })
}

/// An answer with a body of this encoding.
pub fn encoded(status: StatusCode, encoding: Encoding, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, content_type(encoding))], body).into_response()
}

/// An answer that is a message.
pub fn message(status: StatusCode, encoding: Encoding, message: &ServerMessage) -> Response {
    encoded(status, encoding, codec::encode_body(encoding, message))
}

/// An answer that is a JSON document, in the encoding that is wanted.
pub fn document(status: StatusCode, encoding: Encoding, json: &str) -> Response {
    match encoding {
        Encoding::Json => encoded(status, encoding, json.into()),
        Encoding::MessagePack => {
            let whole = Payload::json_text(json).expect("what we write is JSON");
            encoded(status, encoding, whole.to_message_pack())
        }
    }
}

/// An error, with the status of its code.
pub fn refused(encoding: Encoding, error: Error) -> Response {
    let status = StatusCode::from_u16(error.code.http_status()).expect("the table holds HTTP statuses");
    refused_as(status, encoding, error)
}

/// An error, with a status that says more than its code.
pub fn refused_as(status: StatusCode, encoding: Encoding, error: Error) -> Response {
    let retry_after = error.retry_after_ms.0.map(|ms| ms.div_ceil(1000));
    let mut response = message(status, encoding, &error.into());
    if let Some(seconds) = retry_after {
        add_header(response.headers_mut(), header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds a header to an answer.
pub fn add_header(headers: &mut HeaderMap, name: header::HeaderName, value: HeaderValue) {
    headers.insert(name, value);
}
