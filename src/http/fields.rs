//! Bodies that are no message of the protocol: objects whose every field is known, of a known kind and range.
//!
//! A message ignores fields that it does not know, since later versions add some. What an operator sets is
//! checked to the letter: a misspelled limit must not pass for a limit.

use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use hyper::{HeaderMap, StatusCode};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use taskyard_proto::{Encoding, Error};

use super::body::{self, Kind};
use super::request::{bad_request, plain};

/// How deep objects may be within each other.
const DEPTH_MAX: usize = 64;

/// The fields of an object, to be taken one by one.
#[derive(Debug, Default)]
pub struct Fields {
    map: Map<String, Value>,
    /// Where the object is, with a dot behind it; empty: at the top.
    place: String,
    known: Vec<&'static str>,
}

/// A value whose objects name no key twice.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Unambiguous(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::Array(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("the field {key:?} stands twice")));
                    }
                    let Unambiguous(value) = entries.next_value()?;
                    map.insert(key, value);
                }
                Ok(Value::Object(map))
            }
        }
        from.deserialize_any(Reader).map(Unambiguous)
    }
}

impl Fields {
    /// Those of a body. An empty one is an object without fields.
    pub fn read(headers: &HeaderMap, bytes: &Bytes) -> Result<Fields, (StatusCode, Error)> {
        if bytes.is_empty() {
            return Ok(Fields::default());
        }
        let read = match body::kind(headers, false) {
            Kind::Message(Encoding::Json) => {
                serde_json::from_slice(bytes).map_err(|error| format!("the body is not JSON: {error}"))
            }
            Kind::Message(Encoding::MessagePack) => {
                let mut reader = rmp_serde::Deserializer::new(bytes.as_ref());
                reader.set_max_depth(DEPTH_MAX);
                let read = Unambiguous::deserialize(&mut reader).map_err(|error| error.to_string());
                let read = match reader.get_ref() {
                    [] => read,
                    _ => Err("there are bytes behind the object".into()),
                };
                read.map_err(|error| format!("the body is not MessagePack: {error}"))
            }
            _ => return Err(body::not_a_message()),
        };
        match read {
            Ok(Unambiguous(Value::Object(map))) => Ok(Fields { map, ..Fields::default() }),
            Ok(_) => Err(plain(bad_request("expected the body to be one object"))),
            Err(text) => Err(plain(bad_request(text))),
        }
    }

    fn wrong(&self, name: &str, what: impl fmt::Display) -> Error {
        let name = format!("{}{name}", self.place);
        bad_request(format!("field `{name}`: {what}")).field(&name)
    }

    /// The error of a field that is of another kind.
    fn expected(&self, name: &str, what: impl fmt::Display, got: &Value) -> Error {
        let mut got = got.to_string();
        if got.chars().count() > 40 {
            got = got.chars().take(40).chain("…".chars()).collect();
        }
        self.wrong(name, format_args!("expected {what}, got {got}"))
    }

    /// Takes a field: none: it was not given.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name)
    }

    /// A field that stays.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name)
    }

    /// The error that a field is missing.
    pub fn missing(&self, name: &str, what: &str) -> Error {
        self.wrong(name, format_args!("is missing, expected {what}"))
    }

    /// A field that `read` makes sense of; the outer none: it was not given, the inner one: it is null.
    pub fn with<T>(
        &mut self,
        name: &'static str,
        what: impl fmt::Display,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<Option<T>>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(Some(read))),
                None => Err(self.expected(name, what, &value)),
            },
        }
    }

    /// An integer.
    pub fn integer<T: TryFrom<u64>>(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<Option<T>>, Error> {
        let what = format!("an integer of {} to {}", range.start(), range.end());
        self.with(name, what, |value| {
            value.as_u64().filter(|value| range.contains(value)).and_then(|value| T::try_from(value).ok())
        })
    }

    /// Text of so many bytes.
    pub fn text(
        &mut self,
        name: &'static str,
        bytes: RangeInclusive<usize>,
    ) -> Result<Option<String>, Error> {
        let what = format!("text of {} to {} bytes", bytes.start(), bytes.end());
        let text = self.with(name, what, |value| {
            value.as_str().filter(|text| bytes.contains(&text.len())).map(str::to_owned)
        })?;
        Ok(text.flatten())
    }

    /// A number above 0.
    pub fn rate(&mut self, name: &'static str, most: u32) -> Result<Option<Option<f64>>, Error> {
        self.with(name, format_args!("a number above 0, at most {most}"), |value| {
            value.as_f64().filter(|value| *value > 0.0 && *value <= f64::from(most))
        })
    }

    /// An object within this one.
    pub fn object(&mut self, name: &'static str) -> Result<Option<Option<Fields>>, Error> {
        let place = format!("{}{name}.", self.place);
        self.with(name, "an object", |value| {
            let map = value.as_object()?.clone();
            Some(Fields { map, place, known: Vec::new() })
        })
    }

    /// Whether fields are left that nobody took yet.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// That nothing is left over.
    pub fn end(self) -> Result<(), Error> {
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        if self.known.is_empty() {
            return Err(self.wrong(name, "is not known: no field is expected here"));
        }
        Err(self.wrong(name, format_args!("is not known, expected {}", self.known.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, bytes: &[u8]) -> Result<Fields, String> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", kind.parse().unwrap());
        Fields::read(&headers, &Bytes::copy_from_slice(bytes))
            .map_err(|(_, error)| error.message.as_str().to_owned())
    }

    #[test]
    fn an_object_is_read_in_both_encodings_and_nothing_else_is() {
        let mut fields = read("application/json", br#"{"a":1,"b":null,"c":{"d":"e"}}"#).unwrap();
        assert_eq!(fields.integer::<u32>("a", 0..=1).unwrap(), Some(Some(1)));
        assert_eq!(fields.integer::<u32>("b", 0..=1).unwrap(), Some(None));
        assert_eq!(fields.integer::<u32>("x", 0..=1).unwrap(), None);
        let mut inner = fields.object("c").unwrap().unwrap().unwrap();
        assert_eq!(inner.text("d", 1..=1).unwrap().as_deref(), Some("e"));
        inner.end().unwrap();
        fields.end().unwrap();
        let mut fields = read("application/msgpack", b"\x82\xa1a\x01\xa1b\xcb\x3f\xe0\0\0\0\0\0\0").unwrap();
        assert_eq!(fields.integer::<u32>("a", 0..=1).unwrap(), Some(Some(1)));
        assert_eq!(fields.rate("b", 1).unwrap(), Some(Some(0.5)));
        assert!(read("application/json", b"").unwrap().is_empty());
        for (kind, bytes) in [
            ("application/json", &b"[]"[..]),
            ("application/json", b"{} {}"),
            ("application/json", br#"{"a":1,"a":1}"#),
            ("application/json", br#"{"a":{"b":1,"b":1}}"#),
            ("application/json", b"{\"a\":\"\xff\"}"),
            ("application/msgpack", b"\x80\x80"),
            ("application/msgpack", b"\x82\xa1a\x01\xa1a\x01"),
            ("application/msgpack", &[[0x91; 100].as_slice(), b"\x01"].concat()),
            ("text/plain", b"{}"),
            ("application/x-www-form-urlencoded", b"{}"),
        ] {
            assert!(read(kind, bytes).is_err(), "{kind} {bytes:?}");
        }
        let deep = [b"{\"a\":".repeat(200), b"1".to_vec(), b"}".repeat(200)].concat();
        assert!(read("application/json", &deep).is_err());
    }

    #[test]
    fn what_is_of_another_kind_or_unknown_is_named() {
        for (json, field) in [
            (r#"{"n":1.0}"#, "n"),
            (r#"{"n":-0}"#, "n"),
            (r#"{"n":11}"#, "n"),
            (r#"{"n":"1"}"#, "n"),
            (r#"{"m":1}"#, "m"),
            (r#"{"o":{"p":1}}"#, "o.p"),
            (r#"{"o":[]}"#, "o"),
        ] {
            let mut fields = read("application/json", json.as_bytes()).unwrap();
            let all = fields.integer::<u64>("n", 0..=10).and_then(|_| {
                if let Some(Some(inner)) = fields.object("o")? {
                    inner.end()?;
                }
                fields.end()
            });
            let error = all.unwrap_err();
            assert_eq!(error.field.0.as_ref().map(|text| text.as_str()), Some(field), "{json}: {error:?}");
        }
    }
}
