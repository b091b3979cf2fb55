//! Values that travel through the broker without being looked at: payloads, results, data.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use triomphe::ThinArc;

use crate::msgpack::Head;
use crate::raw::{Raw, SyntaxError, Value};
use crate::write::{JsonWriter, MessagePackWriter, Write};
use crate::{json, msgpack};

/// A payload-like field as it came: a value in its sender's encoding, or bytes, or nothing.
///
/// A value keeps the exact bytes of its sender. It is converted once, when a peer of the other
/// encoding reads it; `PROTOCOL.md` section 2 has the rules.
///
/// One pointer; clones share what it points to.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(Option<ThinArc<PayloadKind, u8>>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payload")
            .field("kind", &self.kind())
            .field("bytes", &format_args!("b\"{}\"", self.bytes().escape_ascii()))
            .finish()
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// How the bytes of a [`Payload`] are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum PayloadKind {
    /// Nothing was given, or null.
    #[default]
    Null = 0,
    /// One JSON value, UTF-8.
    Json = 1,
    /// One MessagePack value.
    MessagePack = 2,
    /// Plain bytes of no encoding.
    Binary = 3,
}

impl PayloadKind {
    /// The kind with this number, as records of the store hold it.
    pub fn from_number(number: u8) -> Option<PayloadKind> {
        [PayloadKind::Null, PayloadKind::Json, PayloadKind::MessagePack, PayloadKind::Binary]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// Why a payload cannot be made or read.
#[derive(Debug)]
pub struct PayloadError(String);

impl fmt::Display for PayloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PayloadError {}

impl Payload {
    /// Null, the same as a field that was not given.
    pub const NULL: Payload = Payload(None);

    /// Plain bytes, which are copied.
    pub fn binary(bytes: impl AsRef<[u8]>) -> Payload {
        Self::from_parts(PayloadKind::Binary, bytes.as_ref())
    }

    /// JSON text, checked for syntax and depth.
    pub fn json_text(text: &str) -> Result<Payload, PayloadError> {
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        match json::skip_value(text.as_bytes(), 0) {
            Ok(end) if end == text.len() => Ok(Self::from_raw(Raw::Json(text))),
            Ok(end) => Err(PayloadError(format!("more than one JSON value, the second at byte {end}"))),
            Err(error) => Err(PayloadError(format!("not JSON: {error}"))),
        }
    }

    /// `value` as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Payload, PayloadError> {
        let text = serde_json::to_string(value).map_err(|e| PayloadError(e.to_string()))?;
        Self::json_text(&text)
    }

    /// `value` as MessagePack.
    pub fn message_pack<T: Serialize + ?Sized>(value: &T) -> Result<Payload, PayloadError> {
        let bytes = rmp_serde::to_vec_named(value).map_err(|e| PayloadError(e.to_string()))?;
        msgpack::skip_value(&bytes, 0).map_err(|e| PayloadError(e.to_string()))?;
        Ok(Self::from_raw(Raw::MessagePack(&bytes)))
    }

    /// Puts together what [`Payload::kind`] and [`Payload::bytes`] gave: for the store, which holds
    /// what was checked when it came in.
    pub fn from_parts(kind: PayloadKind, bytes: &[u8]) -> Payload {
        Payload((kind != PayloadKind::Null).then(|| ThinArc::from_header_and_slice(kind, bytes)))
    }

    /// Copies the value: the frame's buffer is shared and goes back to the reader.
    pub(crate) fn from_raw(raw: Raw<'_>) -> Payload {
        if raw.is_null() {
            return Payload::NULL;
        }
        // JSON is not looked into: that would check, and perhaps unescape, all of it once more.
        let (kind, bytes) = match raw {
            Raw::Json(text) | Raw::JsonPlain(text) => (PayloadKind::Json, text.as_bytes()),
            Raw::MessagePack(bytes) => match msgpack::binary(bytes) {
                Some(body) => (PayloadKind::Binary, body),
                None => (PayloadKind::MessagePack, bytes),
            },
        };
        Self::from_parts(kind, bytes)
    }

    /// How [`Payload::bytes`] are to be read.
    pub fn kind(&self) -> PayloadKind {
        self.0.as_ref().map_or(PayloadKind::Null, |shared| shared.header.header)
    }

    /// The bytes as they came; empty for null.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |shared| &shared.slice)
    }

    /// The same, as what shares them.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// The value decoded into `T`. Plain bytes are no value: ask [`Payload::bytes`].
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        match self.kind() {
            PayloadKind::Null => serde_json::from_str("null").map_err(|e| PayloadError(e.to_string())),
            PayloadKind::Json => {
                serde_json::from_slice(self.bytes()).map_err(|e| PayloadError(e.to_string()))
            }
            PayloadKind::MessagePack => {
                rmp_serde::from_slice(self.bytes()).map_err(|e| PayloadError(e.to_string()))
            }
            PayloadKind::Binary => Err(PayloadError("the payload is plain bytes, not a value".into())),
        }
    }

    /// The payload as one JSON value; bytes become a base64 text.
    pub fn to_json(&self) -> String {
        let mut writer = JsonWriter::default();
        match self.kind() {
            PayloadKind::Binary => writer.base64(self.bytes()),
            _ => writer.payload(self),
        }
        String::from_utf8(writer.out).expect("the JSON writer writes UTF-8")
    }

    /// The payload as one MessagePack value; bytes become `bin`.
    pub fn to_message_pack(&self) -> Vec<u8> {
        let mut writer = MessagePackWriter::default();
        writer.payload(self);
        writer.out
    }

    /// What a program reading standard input expects: bytes and JSON strings as they are, other
    /// values as JSON text, nothing for null.
    pub fn to_plain_bytes(&self) -> Bytes {
        let text = |raw: Raw<'_>| match raw.value() {
            Value::Text(text) => Some(Bytes::from(text.into_owned())),
            _ => None,
        };
        match self.kind() {
            PayloadKind::Null => Bytes::new(),
            PayloadKind::Binary => self.to_bytes(),
            PayloadKind::Json => std::str::from_utf8(self.bytes())
                .ok()
                .and_then(|json| text(Raw::Json(json)))
                .unwrap_or_else(|| self.to_bytes()),
            PayloadKind::MessagePack => {
                text(Raw::MessagePack(self.bytes())).unwrap_or_else(|| Bytes::from(self.to_json()))
            }
        }
    }
}

/// Writes a checked JSON value as MessagePack, in two walks: MessagePack tells a container's size
/// before its items, JSON after them. Counting each container by itself would walk the innermost
/// items once a level.
pub(crate) fn json_to_message_pack(bytes: &[u8], out: &mut MessagePackWriter) {
    let mut count = Count::default();
    let start = out.out.len();
    let written = std::str::from_utf8(bytes).is_ok_and(|text| {
        let counted = json::walk(bytes, 0, &mut count);
        let mut convert = Convert { text, counts: count.counts.into_iter(), out: &mut *out };
        counted.and_then(|_| json::walk(bytes, 0, &mut convert)).is_ok()
    });
    if !written {
        // A damaged record of the store is the only way to here: rather null than a broken frame.
        out.out.truncate(start);
        out.null();
    }
}

/// Counts what each container holds, in the order in which they open.
#[derive(Default)]
struct Count {
    counts: Vec<u32>,
    /// The open containers: their place in `counts`, and whether they are objects.
    open: Vec<(usize, bool)>,
}

impl Count {
    /// A value begins. In an object its key was counted.
    fn value(&mut self) {
        if let Some((place, false)) = self.open.last() {
            self.counts[*place] += 1;
        }
    }
}

impl json::Visit for Count {
    fn open(&mut self, object: bool) {
        self.value();
        self.open.push((self.counts.len(), object));
        self.counts.push(0);
    }

    fn close(&mut self) {
        self.open.pop();
    }

    fn key(&mut self, _: usize, _: usize) {
        if let Some((place, _)) = self.open.last() {
            self.counts[*place] += 1;
        }
    }

    fn scalar(&mut self, _: usize, _: usize) {
        self.value();
    }
}

struct Convert<'a> {
    text: &'a str,
    counts: std::vec::IntoIter<u32>,
    out: &'a mut MessagePackWriter,
}

impl json::Visit for Convert<'_> {
    fn open(&mut self, object: bool) {
        let count = self.counts.next().unwrap_or_default() as usize;
        if object { self.out.begin_map(count) } else { self.out.begin_array(count) }
    }

    fn close(&mut self) {}

    fn key(&mut self, start: usize, end: usize) {
        self.out.text(&json::unescape(&self.text[start + 1..end - 1]));
    }

    fn scalar(&mut self, start: usize, end: usize) {
        write_scalar(json::value(&self.text[start..end]), self.out);
    }
}

/// Writes a checked MessagePack value as JSON, in one walk.
pub(crate) fn message_pack_to_json(bytes: &[u8], out: &mut JsonWriter) {
    let start = out.out.len();
    if write_json(bytes, 0, out).is_err() {
        // As above: rather null than a broken frame.
        out.out.truncate(start);
        out.null();
    }
}

/// Writes the value at `at`; its end. Recursion is bounded: the value's depth was checked.
fn write_json(bytes: &[u8], at: usize, out: &mut JsonWriter) -> Result<usize, SyntaxError> {
    let (head, mut next) = msgpack::head(bytes, at)?;
    match head {
        Head::Array(count) => {
            out.begin_array(count);
            for _ in 0..count {
                out.element();
                next = write_json(bytes, next, out)?;
            }
            out.end_array();
        }
        Head::Map(count) => {
            out.begin_map(count);
            for _ in 0..count {
                let value = msgpack::skip_value(bytes, next)?;
                write_key(&bytes[next..value], out);
                next = write_json(bytes, value, out)?;
            }
            out.end_map();
        }
        Head::Scalar(_) => {
            next = msgpack::skip_value(bytes, at)?;
            write_json_scalar(&bytes[at..next], out);
        }
    }
    Ok(next)
}

fn write_json_scalar(bytes: &[u8], out: &mut JsonWriter) {
    match msgpack::value(bytes) {
        Value::Binary(body) => out.base64(body),
        Value::Extension => out.base64(msgpack::extension(bytes).unwrap_or_default()),
        scalar => write_scalar(scalar, out),
    }
}

/// JSON has only text for keys: a scalar becomes its own JSON as text, a container the base64 of its
/// MessagePack. Its JSON would not do: quoted anew at each level of keys in keys, it doubles each time.
fn write_key(bytes: &[u8], out: &mut JsonWriter) {
    match msgpack::value(bytes) {
        Value::Text(text) => out.any_key(&text),
        Value::Array | Value::Map => out.any_key(&STANDARD.encode(bytes)),
        _ => {
            let mut inner = JsonWriter::default();
            write_json_scalar(bytes, &mut inner);
            let text = String::from_utf8(inner.out).expect("the JSON writer writes UTF-8");
            out.any_key(text.trim_matches('"'));
        }
    }
}

fn write_scalar(value: Value<'_>, out: &mut impl Write) {
    match value {
        Value::Bool(flag) => out.bool(flag),
        Value::Integer(integer) => match u64::try_from(integer) {
            Ok(unsigned) => out.uint(unsigned),
            Err(_) => out.int(i64::try_from(integer).expect("a wire integer is in −2^63 … 2^64−1")),
        },
        Value::Float(float) => out.float(float),
        Value::Text(text) => out.text(&text),
        _ => out.null(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_put_together_as_it_was_taken_apart() {
        let payloads = [
            Payload::NULL,
            Payload::binary([]),
            Payload::binary([0, 255]),
            Payload::json(&[1, 2]).unwrap(),
            Payload::message_pack("hi").unwrap(),
        ];
        for payload in payloads {
            let again = Payload::from_parts(payload.kind(), payload.bytes());
            assert_eq!(again, payload);
            assert_eq!(again.is_null(), payload.kind() == PayloadKind::Null, "{payload:?}");
            assert_eq!(again.to_bytes(), payload.bytes());
        }
        assert_eq!(size_of::<Payload>(), size_of::<usize>(), "the row of a waiting task has room for that");
    }
}
