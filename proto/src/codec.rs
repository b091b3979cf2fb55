//! Frames to messages and back, in both encodings.

use std::fmt;

use crate::code::ErrorCode;
use crate::field::{Field, FieldError, RequestId, Scalar, Text};
use crate::message::{BATCH_MAX, ClientMessage, Error, ServerMessage};
use crate::msgpack::Head;
use crate::raw::{Entries, Raw, SyntaxError, TOO_DEEP, Value, quoted};
use crate::write::{JsonWriter, MessagePackWriter, Name, Write, name};
use crate::{json, msgpack};

/// How messages are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// JSON in text frames.
    Json,
    /// MessagePack in binary frames.
    MessagePack,
}

impl Encoding {
    /// The WebSocket subprotocol that names this encoding.
    pub fn subprotocol(self) -> &'static str {
        match self {
            Encoding::Json => "taskyard.v1.json",
            Encoding::MessagePack => "taskyard.v1.msgpack",
        }
    }
}

/// A message of a client's, and the `id` it wants its answer to repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Without one there is no positive answer.
    pub id: Option<RequestId>,
    /// What is said.
    pub message: ClientMessage,
}

/// A message of the broker's, and the `id` of the message that it answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// None on what the broker sends on its own.
    pub reference: Option<RequestId>,
    /// What is said.
    pub message: ServerMessage,
}

/// A message that was refused before anybody acted on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    /// The message's `id`, where one could be read.
    pub id: Option<RequestId>,
    /// What to answer.
    pub error: Error,
    /// It was to be a `hello`: whoever said it can say it again, and has said nothing else by it.
    pub of_hello: bool,
}

impl Rejection {
    fn new(id: Option<RequestId>, error: Error) -> Rejection {
        Rejection { id, error, of_hello: false }
    }
}

/// What a frame holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame<T> {
    /// One message.
    One(T),
    /// An array of messages, each to be answered by itself.
    Many(Vec<T>),
}

impl<T> IntoIterator for Frame<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        match self {
            Frame::One(message) => Some(message).into_iter().chain(Vec::new()),
            Frame::Many(messages) => None.into_iter().chain(messages),
        }
    }
}

/// A frame that is not of its encoding, or too deep: there is no message to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable(String);

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Undecodable {}

impl Undecodable {
    /// The answer to such a frame.
    pub fn error(&self) -> Error {
        Error::new(ErrorCode::BadRequest, &self.0)
    }
}

/// Why bytes are not a frame.
enum Fault {
    Syntax(SyntaxError),
    TooMany,
}

impl From<SyntaxError> for Fault {
    fn from(error: SyntaxError) -> Fault {
        Fault::Syntax(error)
    }
}

impl Fault {
    /// The fault in words; `what` is the frame or the body.
    fn text(&self, what: &str, encoding: Encoding) -> String {
        match (self, encoding) {
            (Fault::Syntax(error), _) if error.what == TOO_DEEP => {
                format!("the {what} is {error}: put what is deeper into text, or bytes")
            }
            (Fault::Syntax(error), Encoding::Json) => {
                format!("the {what} is not JSON: {error}; send one object, or an array of objects")
            }
            (Fault::Syntax(error), Encoding::MessagePack) => {
                format!("the {what} is not MessagePack: {error}; send one map, or an array of maps")
            }
            (Fault::TooMany, _) => format!("the {what} holds more than {BATCH_MAX} messages: send several"),
        }
    }

    fn of_body(self, encoding: Encoding) -> Error {
        Error::new(ErrorCode::BadRequest, self.text("body", encoding))
    }
}

/// What a client sent in one frame: messages and refused messages, in order.
pub type ClientFrame = Frame<Result<Request, Rejection>>;

/// The body of a frame, or of what else holds messages. JSON is known to be UTF-8: whoever takes in a text
/// frame has to check that, and once is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameBody<'a> {
    /// JSON, of a text frame.
    Json(&'a str),
    /// MessagePack, of a binary frame.
    MessagePack(&'a [u8]),
}

impl<'a> FrameBody<'a> {
    fn checked(encoding: Encoding, bytes: &'a [u8]) -> Result<FrameBody<'a>, SyntaxError> {
        match encoding {
            Encoding::Json => std::str::from_utf8(bytes)
                .map(FrameBody::Json)
                .map_err(|error| SyntaxError::new(error.valid_up_to(), "not UTF-8")),
            Encoding::MessagePack => Ok(FrameBody::MessagePack(bytes)),
        }
    }

    /// How its messages are spelled.
    pub fn encoding(self) -> Encoding {
        match self {
            FrameBody::Json(_) => Encoding::Json,
            FrameBody::MessagePack(_) => Encoding::MessagePack,
        }
    }

    /// The bytes.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            FrameBody::Json(text) => text.as_bytes(),
            FrameBody::MessagePack(bytes) => bytes,
        }
    }
}

/// Reads a client's frame.
pub fn decode_client(encoding: Encoding, bytes: &[u8]) -> Result<ClientFrame, Undecodable> {
    match FrameBody::checked(encoding, bytes) {
        Ok(body) => decode_client_body(body),
        Err(error) => Err(Undecodable(Fault::Syntax(error).text("frame", encoding))),
    }
}

/// The same, of a body that a frame was seen to have.
pub fn decode_client_body(body: FrameBody<'_>) -> Result<ClientFrame, Undecodable> {
    let mut entries = Entries::default();
    // As `decode` does it, but that a message goes straight to where the caller wants it: it is long to move.
    let fault = match top(body, &mut entries) {
        Ok(Top::One(item)) => return Ok(Frame::One(client_message(item))),
        Ok(Top::Many(array)) => match array.read(&mut entries, client_message) {
            Ok(messages) => return Ok(Frame::Many(messages)),
            Err(fault) => fault,
        },
        Err(error) => error.into(),
    };
    let text = fault.text("frame", body.encoding());
    match fault {
        Fault::Syntax(_) => Err(Undecodable(text)),
        // An ordinary bad request: too long an array is well-formed all the same.
        Fault::TooMany => Ok(Frame::One(Err(Rejection::new(None, Error::new(ErrorCode::BadRequest, text))))),
    }
}

/// Reads a frame of the broker's. Messages of unknown types, which later versions may add, are left
/// out: a frame with nothing else is an empty array.
pub fn decode_server(encoding: Encoding, bytes: &[u8]) -> Result<Frame<Response>, Undecodable> {
    let frame =
        decode(encoding, bytes, server_message).map_err(|f| Undecodable(f.text("frame", encoding)))?;
    Ok(match frame {
        Frame::One(message) => message?.map_or(Frame::Many(Vec::new()), Frame::One),
        Frame::Many(messages) => {
            Frame::Many(messages.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?)
        }
    })
}

/// `None` when the message's type is unknown.
fn server_message(item: Item<'_, '_>) -> Result<Option<Response>, Undecodable> {
    let Item::Map(entries) = item else {
        return Err(Undecodable("the broker sent something that is no message".into()));
    };
    let wrong = |error: FieldError| Undecodable(error.message);
    let reference: Option<RequestId> = Field::take(entries, "ref").map_err(wrong)?;
    let type_text: Text<64> = Field::take(entries, "type").map_err(wrong)?;
    let message = ServerMessage::take(type_text.as_str().as_bytes(), entries).transpose().map_err(wrong)?;
    Ok(message.map(|message| Response { reference, message }))
}

/// Reads the body of an HTTP request as the message `type_text`; `extra` are the fields that its
/// path and headers give, as text. A body that contradicts them, or the type, is refused.
pub fn decode_body(
    encoding: Encoding,
    bytes: &[u8],
    type_text: &'static str,
    extra: &[(&'static str, &str)],
) -> Result<ClientMessage, Error> {
    let bad = |message: String| Error::new(ErrorCode::BadRequest, message);
    let empty = match encoding {
        Encoding::Json => json::skip_space(bytes, 0) == bytes.len(),
        Encoding::MessagePack => bytes.is_empty(),
    };
    // Declared before what borrows from it.
    let mut writer = JsonWriter::default();
    let mut entries = if empty {
        Entries::default()
    } else {
        match decode(encoding, bytes, |item| item.into_entries()).map_err(|fault| fault.of_body(encoding))? {
            Frame::One(Some(entries)) => entries,
            _ => return Err(bad(format!("expected one object with the fields of `{type_text}`"))),
        }
    };
    let spans: Vec<_> = extra
        .iter()
        .map(|(_, value)| {
            let start = writer.out.len();
            writer.text(value);
            start..writer.out.len()
        })
        .collect();
    if let Some(fault) = entries.fault() {
        return Err(bad(fault));
    }
    for (name, given) in extra.iter().copied().chain([("type", type_text)]) {
        check_same(&entries, type_text, name, given)?;
    }
    for ((name, _), span) in extra.iter().zip(spans) {
        entries.replace(name, Raw::Json(written(&writer, span)));
    }
    client_fields(type_text.as_bytes(), &mut entries)
}

/// Refuses what says another `name` than the URL it came to.
fn check_same(entries: &Entries<'_>, type_text: &str, name: &'static str, given: &str) -> Result<(), Error> {
    let said = entries.get(name).filter(|said| !said.is_null());
    if said.is_none_or(|said| said.text_bytes().as_deref() == Some(given.as_bytes())) {
        return Ok(());
    }
    let text = format!(
        "`{type_text}`, field `{name}`: this URL is for {} alone: leave it out of the body, or send it elsewhere",
        quoted(given)
    );
    Err(Error::new(ErrorCode::BadRequest, text).field(name))
}

fn written(writer: &JsonWriter, span: std::ops::Range<usize>) -> &str {
    std::str::from_utf8(&writer.out[span]).expect("the JSON writer writes UTF-8")
}

/// Reads a message from pairs of text, as a query string holds them. A value that is a JSON number,
/// `true`, `false` or an object is read as such where `is_text` says no.
pub fn decode_pairs(
    type_text: &'static str,
    pairs: &[(String, String)],
    is_text: impl Fn(&str) -> bool,
) -> Result<ClientMessage, Error> {
    let mut writer = JsonWriter::default();
    let mut spans = Vec::new();
    for (key, value) in pairs {
        let start = writer.out.len();
        let literal = !is_text(key)
            && value.starts_with(|c: char| c.is_ascii_digit() || "-{[tfn".contains(c))
            && json::skip_value(value.as_bytes(), 0) == Ok(value.len());
        if literal {
            writer.out.extend_from_slice(value.as_bytes());
        } else {
            writer.text(value);
        }
        spans.push((key, start..writer.out.len()));
    }
    let mut entries = Entries::default();
    for (key, span) in spans {
        entries.push(key.as_bytes().into(), Raw::Json(written(&writer, span)));
    }
    if let Some(fault) = entries.fault() {
        return Err(Error::new(ErrorCode::BadRequest, fault));
    }
    client_fields(type_text.as_bytes(), &mut entries)
}

/// Splits the body of a bulk submit into its submits: an array.
pub fn decode_bulk(encoding: Encoding, bytes: &[u8]) -> Result<Vec<Result<ClientMessage, Error>>, Error> {
    let frame = decode(encoding, bytes, |item| match item {
        Item::Map(entries) => match entries.fault() {
            Some(fault) => Err(Error::new(ErrorCode::BadRequest, fault)),
            None => check_same(entries, "submit", "type", "submit")
                .and_then(|()| client_fields(b"submit", entries)),
        },
        Item::Other(_) => {
            Err(Error::new(ErrorCode::BadRequest, "expected an object with the fields of `submit`"))
        }
    });
    match frame.map_err(|fault| fault.of_body(encoding))? {
        Frame::Many(items) => Ok(items),
        Frame::One(_) => Err(Error::new(
            ErrorCode::BadRequest,
            "expected an array of submits; for one submit POST to /v1/queues/{queue}/tasks",
        )),
    }
}

/// Something at the top of a frame. The entries of a map are filled in where they stay, one map after the
/// other: they are long to move.
enum Item<'e, 'a> {
    Map(&'e mut Entries<'a>),
    Other(Raw<'a>),
}

impl<'a> Item<'_, 'a> {
    fn into_entries(self) -> Option<Entries<'a>> {
        match self {
            Item::Map(entries) => Some(std::mem::take(entries)),
            Item::Other(_) => None,
        }
    }
}

fn decode<'a, T>(
    encoding: Encoding,
    bytes: &'a [u8],
    mut read: impl FnMut(Item<'_, 'a>) -> T,
) -> Result<Frame<T>, Fault> {
    let mut entries = Entries::default();
    match top(FrameBody::checked(encoding, bytes)?, &mut entries)? {
        Top::One(item) => Ok(Frame::One(read(item))),
        Top::Many(items) => items.read(&mut entries, read).map(Frame::Many),
    }
}

/// What a frame holds, still to be read: one item, of which all was walked over, or several.
enum Top<'e, 'a> {
    One(Item<'e, 'a>),
    Many(Items<'a>),
}

/// An array at the top of a frame, none of whose items was looked at.
enum Items<'a> {
    /// The frame, and where the array begins.
    Json(&'a str, usize),
    /// The frame, how many items it holds, and where they begin.
    MessagePack(&'a [u8], usize, usize),
}

/// Walks over what a frame holds, up to an array's items. `entries` are empty yet.
#[inline(always)]
fn top<'e, 'a>(body: FrameBody<'a>, entries: &'e mut Entries<'a>) -> Result<Top<'e, 'a>, SyntaxError> {
    let bytes = body.bytes();
    let (item, end) = match body {
        FrameBody::Json(text) => {
            let start = json::skip_space(bytes, 0);
            if bytes.get(start) == Some(&b'[') {
                return Ok(Top::Many(Items::Json(text, start)));
            }
            let (item, end) = json_item(text, start, entries)?;
            (item, json::skip_space(bytes, end))
        }
        FrameBody::MessagePack(_) => match msgpack::head(bytes, 0)? {
            (Head::Array(count), first) => return Ok(Top::Many(Items::MessagePack(bytes, count, first))),
            head => msgpack_item(bytes, 0, head, entries)?,
        },
    };
    nothing_after(bytes, end)?;
    Ok(Top::One(item))
}

fn nothing_after(bytes: &[u8], end: usize) -> Result<(), SyntaxError> {
    if end == bytes.len() { Ok(()) } else { Err(SyntaxError::new(end, "bytes after the message")) }
}

impl<'a> Items<'a> {
    /// Reads the items. Each is walked by itself, so that depth is counted from the message and not from the
    /// array around it.
    fn read<T>(
        self,
        entries: &mut Entries<'a>,
        mut read: impl FnMut(Item<'_, 'a>) -> T,
    ) -> Result<Vec<T>, Fault> {
        match self {
            Items::Json(text, start) => {
                let (items, end) = json_array(text, start, entries, &mut read)?;
                nothing_after(text.as_bytes(), json::skip_space(text.as_bytes(), end))?;
                Ok(items)
            }
            Items::MessagePack(bytes, count, mut at) => {
                let mut items = Vec::new();
                for _ in 0..count {
                    entries.clear();
                    let (item, end) = msgpack_item(bytes, at, msgpack::head(bytes, at)?, entries)?;
                    push_item(&mut items, read(item))?;
                    at = end;
                }
                nothing_after(bytes, at)?;
                Ok(items)
            }
        }
    }
}

fn push_item<T>(items: &mut Vec<T>, item: T) -> Result<(), Fault> {
    if items.len() == BATCH_MAX {
        return Err(Fault::TooMany);
    }
    items.push(item);
    Ok(())
}

fn json_array<'a, T>(
    text: &'a str,
    start: usize,
    entries: &mut Entries<'a>,
    read: &mut impl FnMut(Item<'_, 'a>) -> T,
) -> Result<(Vec<T>, usize), Fault> {
    let bytes = text.as_bytes();
    let mut items = Vec::new();
    let mut at = json::skip_space(bytes, start + 1);
    if bytes.get(at) == Some(&b']') {
        return Ok((items, at + 1));
    }
    loop {
        entries.clear();
        let (item, end) = json_item(text, at, entries)?;
        push_item(&mut items, read(item))?;
        at = json::skip_space(bytes, end);
        match bytes.get(at) {
            Some(b',') => at = json::skip_space(bytes, at + 1),
            Some(b']') => return Ok((items, at + 1)),
            _ => return Err(SyntaxError::new(at, "expected ',' or ']' in a JSON array").into()),
        }
    }
}

/// The item at `at`. `entries` are empty yet.
#[inline]
fn json_item<'e, 'a>(
    text: &'a str,
    at: usize,
    entries: &'e mut Entries<'a>,
) -> Result<(Item<'e, 'a>, usize), SyntaxError> {
    if text.as_bytes().get(at) == Some(&b'{') {
        let end = json::object(text, at, entries)?;
        return Ok((Item::Map(entries), end));
    }
    let end = json::skip_value(text.as_bytes(), at)?;
    Ok((Item::Other(Raw::Json(&text[at..end])), end))
}

/// The item at `at`, whose head is known. `entries` are empty yet.
#[inline]
fn msgpack_item<'e, 'a>(
    bytes: &'a [u8],
    at: usize,
    head: (Head, usize),
    entries: &'e mut Entries<'a>,
) -> Result<(Item<'e, 'a>, usize), SyntaxError> {
    if let (Head::Map(count), first) = head {
        let end = msgpack::map(bytes, count, first, entries)?;
        return Ok((Item::Map(entries), end));
    }
    let end = msgpack::skip_value(bytes, at)?;
    Ok((Item::Other(Raw::MessagePack(&bytes[at..end])), end))
}

fn client_message(item: Item<'_, '_>) -> Result<Request, Rejection> {
    let bad = |id: Option<RequestId>, message: String| {
        Rejection::new(id, Error::new(ErrorCode::BadRequest, message))
    };
    let entries = match item {
        Item::Map(entries) => entries,
        Item::Other(raw) => {
            let what = match raw.value() {
                Value::Array => "an array inside the array",
                _ => "not an object",
            };
            return Err(bad(None, format!("expected an object with a string `type`, got {what}")));
        }
    };
    // Which of two was meant cannot be known, be it the `id` itself.
    let fault = entries.fault();
    let twice_id = fault.is_some() && entries.duplicate() == Some("id");
    // In the order in which they mostly stand.
    let (type_text, id) = (entries.take("type"), entries.take("id"));
    let type_text = type_text.and_then(Raw::text_bytes);
    let of_hello = type_text.as_deref() == Some(b"hello");
    let id = match id {
        Some(raw) if !raw.is_null() => match RequestId::read(raw) {
            Ok(id) => Some(id),
            Err(error) => {
                let error = Error::new(ErrorCode::BadRequest, format!("field `id`: {error}")).field("id");
                return Err(Rejection { id: None, error, of_hello });
            }
        },
        _ => None,
    };
    if let Some(fault) = fault {
        return Err(Rejection { of_hello, ..bad(id.filter(|_| !twice_id), fault) });
    }
    let Some(type_text) = type_text else {
        let error = Error::new(ErrorCode::BadRequest, "expected a string `type`, as in {\"type\":\"ping\"}");
        return Err(Rejection::new(id, error.field("type")));
    };
    // Not by way of `client_fields`: a message is long to move.
    match ClientMessage::take(&type_text, entries) {
        Some(Ok(message)) => Ok(Request { id, message }),
        Some(Err(error)) => Err(Rejection { id, error: unfit(&type_text, error), of_hello }),
        None => Err(Rejection::new(id, unknown(&type_text))),
    }
}

/// `type_text` is UTF-8.
fn client_fields(type_text: &[u8], entries: &mut Entries<'_>) -> Result<ClientMessage, Error> {
    match ClientMessage::take(type_text, entries) {
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(unfit(type_text, error)),
        None => Err(unknown(type_text)),
    }
}

/// Refuses a message for one of its fields.
fn unfit(type_text: &[u8], FieldError { field, message }: FieldError) -> Error {
    let type_text = String::from_utf8_lossy(type_text);
    Error::new(ErrorCode::BadRequest, format!("`{type_text}`, {message}")).field(field)
}

/// Refuses a message for its type.
fn unknown(type_text: &[u8]) -> Error {
    let names: Vec<&str> = ClientMessage::TABLE.iter().map(|(name, _)| *name).collect();
    let shown: String = String::from_utf8_lossy(type_text).chars().take(40).collect();
    Error::new(
        ErrorCode::UnknownType,
        format!("there is no message of type {shown:?}; expected one of {}", names.join(", ")),
    )
}

trait Message {
    const TAG: Name;
    fn tag(&self) -> Option<&RequestId>;
    fn type_text(&self) -> &'static str;
    fn count_fields(&self) -> usize;
    fn put_fields(&self, writer: &mut impl Write);

    fn write(&self, writer: &mut impl Write) {
        writer.begin_map(1 + usize::from(self.tag().is_some()) + self.count_fields());
        writer.key(name!("type"));
        writer.plain(self.type_text());
        if let Some(tag) = self.tag() {
            writer.key(Self::TAG);
            tag.write(writer);
        }
        self.put_fields(writer);
        writer.end_map();
    }
}

impl Message for Response {
    const TAG: Name = name!("ref");
    fn tag(&self) -> Option<&RequestId> {
        self.reference.as_ref()
    }
    fn type_text(&self) -> &'static str {
        self.message.type_text()
    }
    fn count_fields(&self) -> usize {
        self.message.count_fields()
    }
    fn put_fields(&self, writer: &mut impl Write) {
        self.message.put_fields(writer);
    }
}

impl Message for Request {
    const TAG: Name = name!("id");
    fn tag(&self) -> Option<&RequestId> {
        self.id.as_ref()
    }
    fn type_text(&self) -> &'static str {
        self.message.type_text()
    }
    fn count_fields(&self) -> usize {
        self.message.count_fields()
    }
    fn put_fields(&self, writer: &mut impl Write) {
        self.message.put_fields(writer);
    }
}

/// Appends to `out` with the writer of `encoding`.
fn append(encoding: Encoding, out: &mut Vec<u8>, write: impl AppendTo) {
    match encoding {
        Encoding::Json => {
            let mut writer = JsonWriter::appending(std::mem::take(out));
            write.append_to(&mut writer);
            *out = writer.out;
        }
        Encoding::MessagePack => {
            let mut writer = MessagePackWriter { out: std::mem::take(out) };
            write.append_to(&mut writer);
            *out = writer.out;
        }
    }
}

/// A closure over "any writer", which Rust's closures cannot be.
trait AppendTo {
    fn append_to(self, writer: &mut impl Write);
}

struct One<'a, M>(&'a M);

impl<M: Message> AppendTo for One<'_, M> {
    fn append_to(self, writer: &mut impl Write) {
        self.0.write(writer);
    }
}

struct Array<I>(I);

impl<'a, M: Message + 'a, I: ExactSizeIterator<Item = &'a M>> AppendTo for Array<I> {
    fn append_to(self, writer: &mut impl Write) {
        writer.begin_array(self.0.len());
        for message in self.0 {
            writer.element();
            message.write(writer);
        }
        writer.end_array();
    }
}

struct Body<'a>(&'a ServerMessage);

impl AppendTo for Body<'_> {
    fn append_to(self, writer: &mut impl Write) {
        writer.begin_map(self.0.count_fields());
        self.0.put_fields(writer);
        writer.end_map();
    }
}

struct Bodies<'a>(&'a [ServerMessage]);

impl AppendTo for Bodies<'_> {
    fn append_to(self, writer: &mut impl Write) {
        writer.begin_array(self.0.len());
        for message in self.0 {
            writer.element();
            Body(message).append_to(writer);
        }
        writer.end_array();
    }
}

/// Appends one message of the broker's.
pub fn encode_server(encoding: Encoding, response: &Response, out: &mut Vec<u8>) {
    append(encoding, out, One(response));
}

/// Appends an array of messages of the broker's.
pub fn encode_server_batch(encoding: Encoding, responses: &[Response], out: &mut Vec<u8>) {
    append(encoding, out, Array(responses.iter()));
}

/// Appends an array of messages of the broker's, wherever each of them is.
pub fn encode_server_array<'a>(
    encoding: Encoding,
    responses: impl ExactSizeIterator<Item = &'a Response>,
    out: &mut Vec<u8>,
) {
    append(encoding, out, Array(responses));
}

/// Appends one message of a client's.
pub fn encode_client(encoding: Encoding, request: &Request, out: &mut Vec<u8>) {
    append(encoding, out, One(request));
}

/// Appends an array of messages of a client's.
pub fn encode_client_batch(encoding: Encoding, requests: &[Request], out: &mut Vec<u8>) {
    append(encoding, out, Array(requests.iter()));
}

/// The body of an HTTP answer: the message without `type` and `ref`.
pub fn encode_body(encoding: Encoding, message: &ServerMessage) -> Vec<u8> {
    let mut out = Vec::new();
    append(encoding, &mut out, Body(message));
    out
}

/// The body of a bulk answer: an array of message bodies.
pub fn encode_bodies(encoding: Encoding, messages: &[ServerMessage]) -> Vec<u8> {
    let mut out = Vec::new();
    append(encoding, &mut out, Bodies(messages));
    out
}
