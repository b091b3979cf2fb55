//! How one field of a message is read and written, whatever the encoding.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;
use smol_str::SmolStr;

use crate::name::{GroupName, LeaseId, QueueName, RoomName, TaskId, WorkerName};
use crate::payload::Payload;
use crate::raw::{Entries, Raw, Value, quoted};
use crate::write::{Name, Write, name};

/// A field that is not what its message allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) field: &'static str,
    pub(crate) message: String,
}

impl FieldError {
    pub(crate) fn new(field: &'static str, message: impl fmt::Display) -> FieldError {
        FieldError { field, message: format!("field `{field}`: {message}") }
    }
}

/// One field of a message: taken out of the entries by name, or put behind its key.
pub(crate) trait Field: Sized {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError>;

    /// What [`Field::take`] gives where nothing was said. Apart from it, because most fields of most messages are
    /// absent: once all that was said is taken, nobody looks for the rest.
    fn absent(name: &'static str) -> Result<Self, FieldError>;

    fn put(&self, name: Name, writer: &mut impl Write);

    /// Whether the field is left out. `lean` messages leave out what says nothing new.
    fn omit(&self, lean: bool) -> bool;
}

/// A single value: all that a required field, an optional field and a list need.
pub(crate) trait Scalar: Sized {
    /// Reads the value, which is not null. The error tells what was expected.
    fn read(raw: Raw<'_>) -> Result<Self, String>;

    fn write(&self, writer: &mut impl Write);
}

fn take_some<T: Scalar>(entries: &mut Entries<'_>, name: &'static str) -> Result<Option<T>, FieldError> {
    match entries.take(name) {
        Some(raw) if !raw.is_null() => T::read(raw).map(Some).map_err(|e| FieldError::new(name, e)),
        _ => Ok(None),
    }
}

impl<T: Scalar> Field for T {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<T, FieldError> {
        take_some(entries, name)?.map_or_else(|| Self::absent(name), Ok)
    }

    fn absent(name: &'static str) -> Result<T, FieldError> {
        Err(FieldError::new(name, "is missing"))
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        writer.key(name);
        self.write(writer);
    }

    fn omit(&self, _: bool) -> bool {
        false
    }
}

impl<T: Scalar> Field for Option<T> {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        take_some(entries, name)
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(None)
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        writer.key(name);
        match self {
            Some(value) => value.write(writer),
            None => writer.null(),
        }
    }

    fn omit(&self, lean: bool) -> bool {
        lean && self.is_none()
    }
}

impl<T: Scalar> Field for Vec<T> {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        match entries.take(name) {
            Some(raw) if !raw.is_null() => read_list(raw).map_err(|e| FieldError::new(name, e)),
            _ => Self::absent(name),
        }
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Vec::new())
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        writer.key(name);
        write_list(self, writer);
    }

    fn omit(&self, lean: bool) -> bool {
        lean && self.is_empty()
    }
}

/// The most items a list in a message may have.
pub(crate) const LIST_MAX: usize = 1024;

pub(crate) fn read_list<T: Scalar>(raw: Raw<'_>) -> Result<Vec<T>, String> {
    let items = raw.items(LIST_MAX + 1).ok_or_else(|| expected("an array", raw))?;
    if items.len() > LIST_MAX {
        return Err(format!("expected at most {LIST_MAX} items, got more"));
    }
    items.into_iter().map(T::read).collect()
}

pub(crate) fn write_list<T: Scalar>(list: &[T], writer: &mut impl Write) {
    writer.begin_array(list.len());
    for item in list {
        writer.element();
        item.write(writer);
    }
    writer.end_array();
}

/// A field of a broker's message that is left out where it does not apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Applies<T>(pub Option<T>);

impl<T> Default for Applies<T> {
    fn default() -> Self {
        Applies(None)
    }
}

impl<T> From<T> for Applies<T> {
    fn from(value: T) -> Self {
        Applies(Some(value))
    }
}

impl<T: Scalar> Field for Applies<T> {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        take_some(entries, name).map(Applies)
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Applies(None))
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        self.0.put(name, writer);
    }

    fn omit(&self, _: bool) -> bool {
        self.0.is_none()
    }
}

impl<T: Scalar> Field for Applies<Vec<T>> {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        match entries.take(name) {
            Some(raw) if !raw.is_null() => {
                read_list(raw).map(|list| Applies(Some(list))).map_err(|e| FieldError::new(name, e))
            }
            _ => Self::absent(name),
        }
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Applies(None))
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        writer.key(name);
        write_list(self.0.as_deref().unwrap_or_default(), writer);
    }

    fn omit(&self, _: bool) -> bool {
        self.0.is_none()
    }
}

/// Null is said here, and is not the same as left out.
impl<T: Scalar> Field for Applies<Option<T>> {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        match entries.take(name) {
            None => Self::absent(name),
            Some(raw) if raw.is_null() => Ok(Applies(Some(None))),
            Some(raw) => {
                T::read(raw).map(|value| Applies(Some(Some(value)))).map_err(|e| FieldError::new(name, e))
            }
        }
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Applies(None))
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        self.0.as_ref().unwrap_or(&None).put(name, writer);
    }

    fn omit(&self, _: bool) -> bool {
        self.0.is_none()
    }
}

/// A short picture of a value that is not what was expected.
fn got(raw: Raw<'_>) -> String {
    match raw.value() {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Integer(integer) => integer.to_string(),
        Value::Float(float) => format!("{float:?}"),
        Value::Text(text) => quoted(&text),
        Value::Binary(bytes) => format!("{} bytes", bytes.len()),
        Value::Array => "an array".into(),
        Value::Map => "an object".into(),
        Value::Extension => "a MessagePack extension".into(),
    }
}

pub(crate) fn expected(what: impl fmt::Display, raw: Raw<'_>) -> String {
    format!("expected {what}, got {}", got(raw))
}

impl Field for bool {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<bool, FieldError> {
        Ok(take_some::<Flag>(entries, name)?.is_some_and(|flag| flag.0))
    }

    #[inline]
    fn absent(_: &'static str) -> Result<bool, FieldError> {
        Ok(false)
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        writer.key(name);
        writer.bool(*self);
    }

    fn omit(&self, lean: bool) -> bool {
        lean && !self
    }
}

/// A truth value in an optional field, whose default is not `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag(pub bool);

impl Scalar for Flag {
    fn read(raw: Raw<'_>) -> Result<Flag, String> {
        match raw.value() {
            Value::Bool(flag) => Ok(Flag(flag)),
            _ => Err(expected("true or false", raw)),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        writer.bool(self.0);
    }
}

fn read_unsigned(raw: Raw<'_>) -> Option<u64> {
    raw.plain_unsigned().or_else(|| match raw.value() {
        Value::Integer(integer) => u64::try_from(integer).ok(),
        _ => None,
    })
}

/// An integer of `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Int<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Int<MIN, MAX> {
    /// `value`, if it is in the range.
    pub fn new(value: u64) -> Option<Self> {
        (MIN..=MAX).contains(&value).then_some(Int(value))
    }

    /// `value`, or the end of the range that is nearest: for what the program itself computes.
    pub fn nearest(value: u64) -> Self {
        Int(value.clamp(MIN, MAX))
    }

    /// The integer.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Scalar for Int<MIN, MAX> {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        read_unsigned(raw)
            .and_then(Self::new)
            .ok_or_else(|| expected(format_args!("an integer of {MIN} to {MAX}"), raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.uint(self.0);
    }
}

impl Scalar for u64 {
    fn read(raw: Raw<'_>) -> Result<u64, String> {
        read_unsigned(raw).ok_or_else(|| expected("an integer that is not negative", raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.uint(*self);
    }
}

/// A number, which may be fractional.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number<const MIN: i64, const MAX: i64>(f64);

impl<const MIN: i64, const MAX: i64> Number<MIN, MAX> {
    /// `value`, if it is in the range.
    pub fn new(value: f64) -> Option<Self> {
        (value >= MIN as f64 && value <= MAX as f64).then_some(Number(value))
    }

    /// `value`, or the end of the range that is nearest: for what the program itself computes.
    pub fn nearest(value: f64) -> Self {
        Number(value.clamp(MIN as f64, MAX as f64))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<const MIN: i64, const MAX: i64> Scalar for Number<MIN, MAX> {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Integer(integer) => Self::new(integer as f64),
            Value::Float(float) => Self::new(float),
            _ => None,
        }
        .ok_or_else(|| expected(format_args!("a number of {MIN} to {MAX}"), raw))
    }

    fn write(&self, writer: &mut impl Write) {
        // A whole number is written as an integer, as people write it.
        if self.0.fract() == 0.0 { writer.int(self.0 as i64) } else { writer.float(self.0) }
    }
}

/// Text of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Text<const MAX: usize>(SmolStr);

impl<const MAX: usize> Text<MAX> {
    /// `text`, cut at a character's border if it is too long.
    pub fn cut(text: &str) -> Self {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Text(SmolStr::new(&text[..end]))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MAX: usize> Scalar for Text<MAX> {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) if text.len() <= MAX => Ok(Text(SmolStr::new(text))),
            Value::Text(text) => Err(format!("expected at most {MAX} bytes of text, got {}", text.len())),
            _ => Err(expected("text", raw)),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        writer.text(&self.0);
    }
}

/// The longest error text that is kept, in bytes; longer ones are cut.
pub const ERROR_BYTES_MAX: usize = 4096;

/// What went wrong, in the worker's words: at most 4 KiB, longer text is cut.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorText(SmolStr);

impl ErrorText {
    /// `text`, cut to 4 KiB.
    pub fn new(text: &str) -> ErrorText {
        ErrorText(Text::<ERROR_BYTES_MAX>::cut(text).0)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for ErrorText {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) => Ok(ErrorText::new(&text)),
            _ => Err(expected("text", raw)),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        writer.text(&self.0);
    }
}

/// A key that tasks are ordered, spread or told apart by: 1 to 256 bytes of text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(SmolStr);

impl Key {
    /// `text`, if it is 1 to 256 bytes.
    pub fn parse(text: &str) -> Option<Key> {
        (1..=256).contains(&text.len()).then(|| Key(SmolStr::new(text)))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for Key {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) => Key::parse(&text),
            _ => None,
        }
        .ok_or_else(|| expected("text of 1 to 256 bytes", raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.text(&self.0);
    }
}

/// A token. It is never shown in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(SmolStr);

impl Secret {
    /// Wraps a token.
    pub fn new(token: &str) -> Secret {
        Secret(SmolStr::new(token))
    }

    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Scalar for Secret {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) => Ok(Secret(SmolStr::new(text))),
            // Not shown: it may be the token all the same.
            _ => Err("expected text".into()),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        writer.text(&self.0);
    }
}

macro_rules! parsed_names {
    ($($name:ident),*) => {$(
        impl Scalar for $name {
            fn read(raw: Raw<'_>) -> Result<Self, String> {
                match raw.value() {
                    Value::Text(text) => $name::parse(&text).map_err(|e| e.to_string()),
                    _ => Err(expected("text", raw)),
                }
            }

            fn write(&self, writer: &mut impl Write) {
                writer.plain(self.as_str());
            }
        }
    )*};
}

parsed_names!(QueueName, WorkerName, GroupName, RoomName);

impl Scalar for TaskId {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) => TaskId::parse(&text),
            _ => None,
        }
        .ok_or_else(|| expected("a task id (a UUID)", raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.plain(self.encode(&mut [0; 36]));
    }
}

impl Scalar for LeaseId {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Text(text) => LeaseId::parse(&text),
            _ => None,
        }
        .ok_or_else(|| expected("a lease", raw))
    }

    fn write(&self, writer: &mut impl Write) {
        writer.plain(self.encode(&mut [0; 22]));
    }
}

/// A lease as a client gave it. Text that is no lease is nobody's lease, not a malformed message:
/// it gets the same answer as one that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenLease {
    /// Text of a lease's form.
    Lease(LeaseId),
    /// Any other text, cut to 48 characters for the answer.
    Garbled(Text<48>),
}

impl From<LeaseId> for GivenLease {
    fn from(lease: LeaseId) -> Self {
        GivenLease::Lease(lease)
    }
}

impl GivenLease {
    /// Reads the text form, as an HTTP path holds it.
    pub fn parse(text: &str) -> GivenLease {
        LeaseId::parse(text).map_or_else(|| GivenLease::Garbled(Text::cut(text)), GivenLease::Lease)
    }

    /// The lease, if it has a lease's form.
    pub fn id(&self) -> Option<LeaseId> {
        match self {
            GivenLease::Lease(id) => Some(*id),
            GivenLease::Garbled(_) => None,
        }
    }
}

impl Scalar for GivenLease {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        let text = raw.text_bytes().ok_or_else(|| expected("a lease as text", raw))?;
        match LeaseId::parse_bytes(&text) {
            Some(lease) => Ok(GivenLease::Lease(lease)),
            None => Ok(GivenLease::parse(&String::from_utf8_lossy(&text))),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        match self {
            GivenLease::Lease(id) => id.write(writer),
            GivenLease::Garbled(text) => text.write(writer),
        }
    }
}

/// The leases that a settle names: `lease` for one, `leases` for several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseList {
    /// `lease`
    One(GivenLease),
    /// `leases`: at most 1024.
    Many(Vec<GivenLease>),
}

impl From<LeaseId> for LeaseList {
    fn from(lease: LeaseId) -> Self {
        LeaseList::One(lease.into())
    }
}

impl Field for LeaseList {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        let one: Option<GivenLease> = take_some(entries, "lease")?;
        let many = entries.take("leases").filter(|raw| !raw.is_null());
        match (one, many) {
            (Some(one), None) => Ok(LeaseList::One(one)),
            (None, Some(raw)) => {
                read_list(raw).map(LeaseList::Many).map_err(|e| FieldError::new("leases", e))
            }
            (None, None) => Self::absent(name),
            (Some(_), Some(_)) => {
                Err(FieldError::new("leases", "both `lease` and `leases` were given: give one of them"))
            }
        }
    }

    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Err(FieldError::new("lease", "is missing: give `lease`, or `leases`"))
    }

    fn put(&self, _: Name, writer: &mut impl Write) {
        match self {
            LeaseList::One(lease) => lease.put(name!("lease"), writer),
            LeaseList::Many(leases) => leases.put(name!("leases"), writer),
        }
    }

    fn omit(&self, _: bool) -> bool {
        false
    }
}

fn base64_name(name: &'static str) -> &'static str {
    match name {
        "payload" => "payload_b64",
        "result" => "result_b64",
        "data" => "data_b64",
        _ => unreachable!("the protocol has three payload-like fields"),
    }
}

impl Field for Payload {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        let value = entries.take(name).filter(|raw| !raw.is_null());
        if entries.is_empty() {
            return Ok(value.map(Payload::from_raw).unwrap_or_default());
        }
        let base64_name = base64_name(name);
        let bytes = entries.take(base64_name).filter(|raw| !raw.is_null());
        match (value, bytes) {
            (value, None) => Ok(value.map(Payload::from_raw).unwrap_or_default()),
            (Some(_), Some(_)) => Err(FieldError::new(
                name,
                format_args!("`{name}` and `{base64_name}` were both given: give one"),
            )),
            (None, Some(raw)) => match raw.value() {
                Value::Text(text) => STANDARD.decode(text.as_bytes()).map(Payload::binary).map_err(|e| {
                    FieldError::new(base64_name, format_args!("expected standard base64 with padding: {e}"))
                }),
                _ => Err(FieldError::new(base64_name, expected("base64 text", raw))),
            },
        }
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Payload::NULL)
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        let name_b64 = match name.as_str() {
            "payload" => name!("payload_b64"),
            "result" => name!("result_b64"),
            "data" => name!("data_b64"),
            _ => unreachable!("the protocol has three payload-like fields"),
        };
        writer.payload_field(name, name_b64, self);
    }

    fn omit(&self, lean: bool) -> bool {
        lean && self.is_null()
    }
}

/// The most bytes that the keys and values of `headers` may have together.
const HEADERS_BYTES_MAX: usize = 4096;

/// Text by text, for the tasks' own use: at most 4 KiB in all.
///
/// Boxed if there are any: most messages have none, and are moved and dropped many times.
#[derive(Clone, PartialEq, Eq, Default)]
#[expect(
    clippy::box_collection,
    reason = "a word in each message, and nothing to drop, where there are none"
)]
pub struct Headers(Option<Box<BTreeMap<SmolStr, SmolStr>>>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Headers").field(self.0.as_deref().unwrap_or(&BTreeMap::new())).finish()
    }
}

impl Headers {
    /// Builds headers from pairs; a later pair of the same key wins.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Headers, String> {
        let map: BTreeMap<SmolStr, SmolStr> =
            pairs.into_iter().map(|(key, value)| (SmolStr::new(key), SmolStr::new(value))).collect();
        let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > HEADERS_BYTES_MAX {
            return Err(format!(
                "expected at most {HEADERS_BYTES_MAX} bytes of keys and values, got {bytes}"
            ));
        }
        Ok(Headers((!map.is_empty()).then(|| Box::new(map))))
    }

    /// The pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|map| map.iter()).map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.as_ref()?.get(key).map(SmolStr::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Field for Headers {
    fn take(entries: &mut Entries<'_>, name: &'static str) -> Result<Self, FieldError> {
        let Some(raw) = entries.take(name).filter(|raw| !raw.is_null()) else {
            return Self::absent(name);
        };
        let pairs = read_map(raw)
            .map_err(|e| FieldError::new(name, e))?
            .into_pairs()
            .map(|(key, value)| match value.value() {
                Value::Text(text) => Ok((key, text)),
                _ => Err(FieldError::new(name, expected(format_args!("text for {}", quoted(&key)), value))),
            })
            .collect::<Result<SmallVec<[_; 8]>, _>>()?;
        Headers::from_pairs(pairs.iter().map(|(key, value)| (&**key, &**value)))
            .map_err(|e| FieldError::new(name, e))
    }

    #[inline]
    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(Headers::default())
    }

    fn put(&self, name: Name, writer: &mut impl Write) {
        writer.key(name);
        writer.begin_map(self.0.as_ref().map_or(0, |map| map.len()));
        for (key, value) in self.iter() {
            writer.any_key(key);
            writer.text(value);
        }
        writer.end_map();
    }

    fn omit(&self, lean: bool) -> bool {
        lean && self.is_empty()
    }
}

/// A point in wall-clock time: RFC 3339 text, kept as written. Who knows the calendar parses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAt(pub Text<64>);

impl Scalar for RunAt {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        Text::read(raw).map(RunAt)
    }

    fn write(&self, writer: &mut impl Write) {
        self.0.write(writer);
    }
}

/// What an answer's `ref` repeats: the `id` of the message that is answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RequestId {
    /// An integer of −(2^53−1) to 2^53−1.
    Integer(i64),
    /// Text of at most 128 bytes.
    Text(SmolStr),
}

/// The largest integer that every JSON implementation reads back.
const SAFE_INTEGER_MAX: i64 = (1 << 53) - 1;

impl Scalar for RequestId {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        // Most ids, read without a detour.
        if let Some(integer) = raw.plain_unsigned()
            && let Ok(integer) = i64::try_from(integer)
            && integer <= SAFE_INTEGER_MAX
        {
            return Ok(RequestId::Integer(integer));
        }
        match raw.value() {
            Value::Integer(integer) if integer.abs() <= SAFE_INTEGER_MAX.into() => {
                Ok(RequestId::Integer(i64::try_from(integer).expect("2^53 is far below 2^63")))
            }
            Value::Text(text) if text.len() <= 128 => Ok(RequestId::Text(SmolStr::new(text))),
            _ => Err(expected("text of at most 128 bytes, or an integer of at most 2^53-1", raw)),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        match self {
            RequestId::Integer(integer) => writer.int(*integer),
            RequestId::Text(text) => writer.text(text),
        }
    }
}

/// Whether a session may be resumed: `false`, `true`, or the token of the session to take up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Asks for a resumable session, or declines one.
    Wanted(bool),
    /// Takes up the session with this token.
    Token(Secret),
}

impl Scalar for Resume {
    fn read(raw: Raw<'_>) -> Result<Self, String> {
        match raw.value() {
            Value::Bool(wanted) => Ok(Resume::Wanted(wanted)),
            Value::Text(_) => Secret::read(raw).map(Resume::Token),
            _ => Err("expected true, false or a resume token".into()),
        }
    }

    fn write(&self, writer: &mut impl Write) {
        match self {
            Resume::Wanted(wanted) => writer.bool(*wanted),
            Resume::Token(token) => token.write(writer),
        }
    }
}

/// Implements [`Scalar`] for an enum whose variants are words.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $text:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$word_doc])* $variant,)* }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            /// The value of a word.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)* _ => None }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Scalar for $name {
            fn read(raw: Raw<'_>) -> Result<Self, String> {
                match raw.value() {
                    Value::Text(text) => $name::parse(&text),
                    _ => None,
                }
                .ok_or_else(|| $crate::field::expected(concat!("one of ", $("\"", $text, "\" ",)*).trim_end(), raw))
            }

            fn write(&self, writer: &mut impl Write) {
                writer.plain(self.as_str());
            }
        }
    )*};
}
pub(crate) use words;

pub(crate) fn read_map<'a>(raw: Raw<'a>) -> Result<Entries<'a>, String> {
    let entries = raw.entries().ok_or_else(|| expected("an object", raw))?;
    match entries.fault() {
        Some(fault) => Err(fault),
        None => Ok(entries),
    }
}
