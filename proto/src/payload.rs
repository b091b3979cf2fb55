//! Values that travel through the broker without being looked at: payloads, results, data.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Encoding;
use crate::raw::{Raw, Value};
use crate::write::{JsonWriter, MessagePackWriter, Write};
use crate::{json, msgpack};

/// A payload-like field as it came: a value in its sender's encoding, or bytes, or nothing.
///
/// A value keeps the exact bytes of its sender. It is converted once, when a peer of the other
/// encoding reads it; `PROTOCOL.md` section 2 has the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload {
    kind: PayloadKind,
    bytes: Bytes,
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

impl std::fmt::Display for PayloadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PayloadError {}

impl Payload {
    /// Null, the same as a field that was not given.
    pub const NULL: Payload = Payload { kind: PayloadKind::Null, bytes: Bytes::new() };

    /// Plain bytes.
    pub fn binary(bytes: impl Into<Bytes>) -> Payload {
        Payload { kind: PayloadKind::Binary, bytes: bytes.into() }
    }

    /// JSON text, checked for syntax and depth.
    pub fn json_text(text: &str) -> Result<Payload, PayloadError> {
        let bytes = text.trim_matches([' ', '\t', '\r', '\n']).as_bytes();
        match json::skip_value(bytes, 0) {
            Ok(end) if end == bytes.len() => Ok(Self::from_raw(Raw { encoding: Encoding::Json, bytes })),
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
        Ok(Self::from_raw(Raw { encoding: Encoding::MessagePack, bytes: &bytes }))
    }

    /// Puts together what [`Payload::kind`] and [`Payload::bytes`] gave: for the store, which holds
    /// what was checked when it came in.
    pub fn from_parts(kind: PayloadKind, bytes: Bytes) -> Payload {
        Payload { kind, bytes }
    }

    /// Copies the value: the frame's buffer is shared and goes back to the reader.
    pub(crate) fn from_raw(raw: Raw<'_>) -> Payload {
        if raw.is_null() {
            return Payload::NULL;
        }
        match (raw.encoding, raw.value()) {
            (Encoding::MessagePack, Value::Binary(bytes)) => Payload::binary(Bytes::copy_from_slice(bytes)),
            (Encoding::Json, _) => {
                Payload { kind: PayloadKind::Json, bytes: Bytes::copy_from_slice(raw.bytes) }
            }
            (Encoding::MessagePack, _) => {
                Payload { kind: PayloadKind::MessagePack, bytes: Bytes::copy_from_slice(raw.bytes) }
            }
        }
    }

    /// How [`Payload::bytes`] are to be read.
    pub fn kind(&self) -> PayloadKind {
        self.kind
    }

    /// The bytes as they came; empty for null.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        self.kind == PayloadKind::Null
    }

    /// The value decoded into `T`. Plain bytes are no value: ask [`Payload::bytes`].
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        match self.kind {
            PayloadKind::Null => serde_json::from_str("null").map_err(|e| PayloadError(e.to_string())),
            PayloadKind::Json => serde_json::from_slice(&self.bytes).map_err(|e| PayloadError(e.to_string())),
            PayloadKind::MessagePack => {
                rmp_serde::from_slice(&self.bytes).map_err(|e| PayloadError(e.to_string()))
            }
            PayloadKind::Binary => Err(PayloadError("the payload is plain bytes, not a value".into())),
        }
    }

    /// The payload as one JSON value; bytes become a base64 text.
    pub fn to_json(&self) -> String {
        let mut writer = JsonWriter::default();
        match self.kind {
            PayloadKind::Binary => writer.base64(&self.bytes),
            _ => writer.payload(self),
        }
        String::from_utf8(writer.out).expect("the JSON writer writes UTF-8")
    }

    /// What a program reading standard input expects: bytes and JSON strings as they are, other
    /// values as JSON text, nothing for null.
    pub fn to_plain_bytes(&self) -> Bytes {
        let text = |raw: Raw<'_>| match raw.value() {
            Value::Text(text) => Some(Bytes::from(text.into_owned())),
            _ => None,
        };
        match self.kind {
            PayloadKind::Null => Bytes::new(),
            PayloadKind::Binary => self.bytes.clone(),
            PayloadKind::Json => text(Raw { encoding: Encoding::Json, bytes: &self.bytes })
                .unwrap_or_else(|| self.bytes.clone()),
            PayloadKind::MessagePack => text(Raw { encoding: Encoding::MessagePack, bytes: &self.bytes })
                .unwrap_or_else(|| Bytes::from(self.to_json())),
        }
    }
}

/// Writes a JSON value as MessagePack. Recursion is bounded: the value's depth was checked.
pub(crate) fn json_to_message_pack(bytes: &[u8], out: &mut MessagePackWriter) {
    let raw = Raw { encoding: Encoding::Json, bytes };
    match raw.value() {
        Value::Array => {
            let items = raw.items().unwrap_or_default();
            out.begin_array(items.len());
            for item in items {
                json_to_message_pack(item.bytes, out);
            }
        }
        Value::Map => {
            let entries = raw.entries().and_then(Result::ok).unwrap_or_default().into_list();
            out.begin_map(entries.len());
            for (key, value) in entries {
                out.text(&key);
                json_to_message_pack(value.bytes, out);
            }
        }
        scalar => write_scalar(scalar, out),
    }
}

/// Writes a MessagePack value as JSON. Recursion is bounded: the value's depth was checked.
pub(crate) fn message_pack_to_json(bytes: &[u8], out: &mut JsonWriter) {
    let raw = Raw { encoding: Encoding::MessagePack, bytes };
    match raw.value() {
        Value::Array => {
            let items = raw.items().unwrap_or_default();
            out.begin_array(items.len());
            for item in items {
                out.element();
                message_pack_to_json(item.bytes, out);
            }
            out.end_array();
        }
        Value::Map => {
            let pairs = msgpack::pairs(bytes).unwrap_or_default();
            out.begin_map(pairs.len());
            for (key, value) in pairs {
                match key.value() {
                    Value::Text(text) => out.any_key(&text),
                    // JSON has only text for keys: any other key is written as its own JSON.
                    _ => {
                        let mut inner = JsonWriter::default();
                        message_pack_to_json(key.bytes, &mut inner);
                        let text = String::from_utf8(inner.out).expect("the JSON writer writes UTF-8");
                        out.any_key(text.trim_matches('"'));
                    }
                }
                message_pack_to_json(value.bytes, out);
            }
            out.end_map();
        }
        Value::Binary(body) => out.base64(body),
        Value::Extension => out.base64(msgpack::extension(bytes).unwrap_or_default()),
        scalar => write_scalar(scalar, out),
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
