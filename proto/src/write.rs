//! Writes messages: one trait, a JSON and a MessagePack writer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::payload::{Payload, PayloadKind, json_to_message_pack, message_pack_to_json};

/// A key of the protocol's own, made by [`name!`]: as JSON spells it behind another entry, for one copy writes it so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name(pub(crate) &'static str);

impl Name {
    /// The key itself.
    pub(crate) fn as_str(self) -> &'static str {
        &self.0[2..self.0.len() - 2]
    }
}

/// The [`Name`] of a literal, which needs no escaping.
macro_rules! name {
    ($text:expr) => {
        $crate::write::Name(concat!(",\"", $text, "\":"))
    };
}
pub(crate) use name;

/// Writes one message, value by value. Appending to memory does not fail.
pub(crate) trait Write {
    /// A map of exactly `entries` entries follows, each a key and a value.
    fn begin_map(&mut self, entries: usize);
    fn end_map(&mut self);
    fn key(&mut self, key: Name);
    /// A key that somebody else chose.
    fn any_key(&mut self, key: &str);
    /// An array of exactly `items` items follows, each after [`Write::element`].
    fn begin_array(&mut self, items: usize);
    fn element(&mut self);
    fn end_array(&mut self);
    fn null(&mut self);
    fn bool(&mut self, value: bool);
    fn uint(&mut self, value: u64);
    fn int(&mut self, value: i64);
    fn float(&mut self, value: f64);
    fn text(&mut self, value: &str);
    /// Text that is known to hold nothing that JSON escapes.
    fn plain(&mut self, value: &str);
    /// A payload-like field, under `name` or `name_b64` as its kind and the encoding want.
    fn payload_field(&mut self, name: Name, name_b64: Name, payload: &Payload);
}

/// Writes JSON text.
#[derive(Default)]
pub(crate) struct JsonWriter {
    pub(crate) out: Vec<u8>,
    /// Whether something stands before the next key or element of the open container.
    comma: bool,
}

impl JsonWriter {
    pub(crate) fn appending(out: Vec<u8>) -> JsonWriter {
        JsonWriter { out, comma: false }
    }

    pub(crate) fn base64(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        let start = self.out.len();
        let length =
            base64::encoded_len(bytes.len(), true).expect("a frame's length is far below usize::MAX");
        self.out.resize(start + length, 0);
        STANDARD.encode_slice(bytes, &mut self.out[start..]).expect("the room was measured");
        self.out.push(b'"');
    }

    pub(crate) fn payload(&mut self, payload: &Payload) {
        match payload.kind() {
            PayloadKind::Null => self.null(),
            PayloadKind::Json => self.out.extend_from_slice(payload.bytes()),
            PayloadKind::MessagePack => message_pack_to_json(payload.bytes(), self),
            PayloadKind::Binary => self.base64(payload.bytes()),
        }
    }

    fn separate(&mut self) {
        if self.comma {
            self.out.push(b',');
        }
        self.comma = true;
    }
}

impl Write for JsonWriter {
    fn begin_map(&mut self, _: usize) {
        self.out.push(b'{');
        self.comma = false;
    }

    fn end_map(&mut self) {
        self.out.push(b'}');
        self.comma = true;
    }

    fn key(&mut self, key: Name) {
        self.out.extend_from_slice(&key.0.as_bytes()[usize::from(!self.comma)..]);
        self.comma = true;
    }

    fn any_key(&mut self, key: &str) {
        self.separate();
        self.text(key);
        self.out.push(b':');
    }

    fn begin_array(&mut self, _: usize) {
        self.out.push(b'[');
        self.comma = false;
    }

    fn element(&mut self) {
        self.separate();
    }

    fn end_array(&mut self) {
        self.out.push(b']');
        self.comma = true;
    }

    fn null(&mut self) {
        self.out.extend_from_slice(b"null");
    }

    fn bool(&mut self, value: bool) {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn uint(&mut self, value: u64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn int(&mut self, value: i64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn float(&mut self, value: f64) {
        // serde_json writes the shortest form that reads back, and null for what JSON cannot say.
        serde_json::to_writer(&mut self.out, &value).expect("writing to memory does not fail");
    }

    fn text(&mut self, value: &str) {
        let escaped = value.bytes().fold(false, |any, b| any | (b < 0x20) | (b == b'"') | (b == b'\\'));
        if escaped {
            serde_json::to_writer(&mut self.out, value).expect("writing to memory does not fail");
        } else {
            self.plain(value);
        }
    }

    fn plain(&mut self, value: &str) {
        self.out.push(b'"');
        self.out.extend_from_slice(value.as_bytes());
        self.out.push(b'"');
    }

    fn payload_field(&mut self, name: Name, name_b64: Name, payload: &Payload) {
        self.key(if payload.kind() == PayloadKind::Binary { name_b64 } else { name });
        self.payload(payload);
        self.comma = true;
    }
}

/// Writes MessagePack.
#[derive(Default)]
pub(crate) struct MessagePackWriter {
    pub(crate) out: Vec<u8>,
}

const MEMORY: &str = "writing to memory does not fail";

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("a frame is far below 4 GiB")
}

impl Write for MessagePackWriter {
    fn begin_map(&mut self, entries: usize) {
        rmp::encode::write_map_len(&mut self.out, length(entries)).expect(MEMORY);
    }

    fn end_map(&mut self) {}

    fn key(&mut self, key: Name) {
        self.text(key.as_str());
    }

    fn any_key(&mut self, key: &str) {
        self.text(key);
    }

    fn begin_array(&mut self, items: usize) {
        rmp::encode::write_array_len(&mut self.out, length(items)).expect(MEMORY);
    }

    fn element(&mut self) {}

    fn end_array(&mut self) {}

    fn null(&mut self) {
        self.out.push(crate::msgpack::NIL);
    }

    fn bool(&mut self, value: bool) {
        rmp::encode::write_bool(&mut self.out, value).expect(MEMORY);
    }

    fn uint(&mut self, value: u64) {
        rmp::encode::write_uint(&mut self.out, value).expect(MEMORY);
    }

    fn int(&mut self, value: i64) {
        rmp::encode::write_sint(&mut self.out, value).expect(MEMORY);
    }

    fn float(&mut self, value: f64) {
        rmp::encode::write_f64(&mut self.out, value).expect(MEMORY);
    }

    fn text(&mut self, value: &str) {
        // Keys and most values.
        if value.len() < 32 {
            self.out.reserve(1 + value.len());
            self.out.push(0xa0 | value.len() as u8);
        } else {
            rmp::encode::write_str_len(&mut self.out, length(value.len())).expect(MEMORY);
        }
        self.out.extend_from_slice(value.as_bytes());
    }

    fn plain(&mut self, value: &str) {
        self.text(value);
    }

    fn payload_field(&mut self, name: Name, _: Name, payload: &Payload) {
        self.key(name);
        self.payload(payload);
    }
}

impl MessagePackWriter {
    pub(crate) fn payload(&mut self, payload: &Payload) {
        let bytes = payload.bytes();
        match payload.kind() {
            PayloadKind::Null => self.null(),
            PayloadKind::MessagePack => self.out.extend_from_slice(bytes),
            PayloadKind::Json => json_to_message_pack(bytes, self),
            PayloadKind::Binary => {
                rmp::encode::write_bin_len(&mut self.out, length(bytes.len())).expect(MEMORY);
                self.out.extend_from_slice(bytes);
            }
        }
    }
}
