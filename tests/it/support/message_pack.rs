//! MessagePack to JSON values, enough to look at what the broker sends.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// One value, and that nothing follows it. Bytes become `{"bin": base64}`, a float that JSON has no word
/// for its name.
pub fn decode(bytes: &[u8]) -> Value {
    let mut reader = Reader(bytes);
    let value = reader.value();
    assert!(reader.0.is_empty(), "{} bytes follow the value", reader.0.len());
    value
}

/// JSON values have no bytes and no odd floats; what needs those is written by hand.
pub fn encode(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap()
}

/// A map of text to what is already encoded.
pub fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0x80 | u8::try_from(entries.len()).unwrap()];
    for (key, value) in entries {
        out.extend(encode(&json!(key)));
        out.extend(value);
    }
    out
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn signed(&mut self, bytes: usize) -> i64 {
        let unused = 64 - 8 * bytes as u32;
        (self.number(bytes) << unused).cast_signed() >> unused
    }

    fn text(&mut self, length: usize) -> Value {
        std::str::from_utf8(self.take(length)).unwrap().into()
    }

    fn list(&mut self, count: u64) -> Value {
        (0..count).map(|_| self.value()).collect()
    }

    fn object(&mut self, count: u64) -> Value {
        let mut map = Map::new();
        for _ in 0..count {
            let key = match self.value() {
                Value::String(text) => text,
                other => other.to_string(),
            };
            map.insert(key, self.value());
        }
        map.into()
    }

    fn value(&mut self) -> Value {
        let float = |number: f64| {
            serde_json::Number::from_f64(number).map_or_else(|| Value::from(number.to_string()), Value::from)
        };
        match self.take(1)[0] {
            byte @ 0x00..=0x7f => byte.into(),
            byte @ 0x80..=0x8f => self.object(u64::from(byte & 0x0f)),
            byte @ 0x90..=0x9f => self.list(u64::from(byte & 0x0f)),
            byte @ 0xa0..=0xbf => self.text(usize::from(byte & 0x1f)),
            0xc0 => Value::Null,
            0xc2 => false.into(),
            0xc3 => true.into(),
            byte @ 0xc4..=0xc6 => {
                let length = self.number(1 << (byte - 0xc4)) as usize;
                json!({"bin": STANDARD.encode(self.take(length))})
            }
            0xca => float(f64::from(f32::from_bits(self.number(4) as u32))),
            0xcb => float(f64::from_bits(self.number(8))),
            byte @ 0xcc..=0xcf => self.number(1 << (byte - 0xcc)).into(),
            byte @ 0xd0..=0xd3 => self.signed(1 << (byte - 0xd0)).into(),
            byte @ 0xd9..=0xdb => {
                let length = self.number(1 << (byte - 0xd9)) as usize;
                self.text(length)
            }
            byte @ 0xdc..=0xdd => {
                let count = self.number(2 << (byte - 0xdc));
                self.list(count)
            }
            byte @ 0xde..=0xdf => {
                let count = self.number(2 << (byte - 0xde));
                self.object(count)
            }
            byte => panic!("an unexpected byte {byte:#x}"),
        }
    }
}
