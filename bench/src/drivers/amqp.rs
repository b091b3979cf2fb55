//! AMQP 0-9-1, as far as a queue needs it. Without I/O: a client library's task per message would cost the
//! generator more than the rest of it, on the cores that the server needs.

use std::collections::BTreeSet;

use bytes::{Buf as _, BufMut as _, BytesMut};

use crate::Failed;
use crate::drivers::{Producer, QUEUE, Step, Worker};

/// A method: its class and its number there.
pub(crate) type Method = (u16, u16);

pub(crate) const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CLOSE: Method = (10, 50);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CHANNEL_CLOSE: Method = (20, 40);
const DECLARE: Method = (50, 10);
pub(crate) const DECLARE_OK: Method = (50, 11);
const QOS: Method = (60, 10);
const QOS_OK: Method = (60, 11);
const CONSUME: Method = (60, 20);
const CONSUME_OK: Method = (60, 21);
const PUBLISH: Method = (60, 40);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);
const SELECT: Method = (85, 10);
const SELECT_OK: Method = (85, 11);

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xCE;
const HEAD_BYTES: usize = 7;
const FRAME_BYTES_MAX: u32 = 128 << 10;

/// A frame, still in the buffer.
#[derive(Debug)]
struct Frame<'a> {
    kind: u8,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame and its length, if it is whole.
    fn first(input: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>, Failed> {
        let Some(head) = input.get(..HEAD_BYTES) else { return Ok(None) };
        if head.starts_with(b"AMQP") {
            return Err("the server does not speak AMQP 0-9-1".into());
        }
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let Some(body) = input.get(HEAD_BYTES..HEAD_BYTES + length) else { return Ok(None) };
        match input.get(HEAD_BYTES + length) {
            None => Ok(None),
            Some(&END) => Ok(Some((Frame { kind: head[0], body }, HEAD_BYTES + length + 1))),
            Some(_) => Err("a frame that does not end where it says".into()),
        }
    }

    /// The method and its arguments. The server's refusals are errors here.
    fn method(&self) -> Result<Option<(Method, &'a [u8])>, Failed> {
        if self.kind != METHOD {
            return Ok(None);
        }
        let mut rest = self.body;
        let method = (rest.try_get_u16()?, rest.try_get_u16()?);
        if method == CLOSE || method == CHANNEL_CLOSE {
            let code = rest.try_get_u16()?;
            return Err(
                format!("the server says {code}: {}", String::from_utf8_lossy(short(&mut rest)?)).into()
            );
        }
        Ok(Some((method, rest)))
    }
}

/// Takes a text of up to 255 bytes.
fn short<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Failed> {
    let length = usize::from(rest.try_get_u8()?);
    let Some((text, after)) = rest.split_at_checked(length) else {
        return Err("a text that is cut off".into());
    };
    *rest = after;
    Ok(text)
}

fn put_short(out: &mut Vec<u8>, text: &str) {
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

fn put_frame(out: &mut Vec<u8>, kind: u8, channel: u16, body: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(kind);
    out.put_u16(channel);
    let at = out.len();
    out.put_u32(0);
    body(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    out.put_u8(END);
}

fn put_method(out: &mut Vec<u8>, channel: u16, method: Method, arguments: impl FnOnce(&mut Vec<u8>)) {
    put_frame(out, METHOD, channel, |out| {
        out.put_u16(method.0);
        out.put_u16(method.1);
        arguments(out);
    });
}

/// Takes frames until this method; gives what `read` makes of its arguments.
pub(crate) fn wait<T>(
    input: &mut BytesMut,
    method: Method,
    read: impl FnOnce(&[u8]) -> Result<T, Failed>,
) -> Result<Option<T>, Failed> {
    loop {
        let Some((frame, length)) = Frame::first(input)? else { return Ok(None) };
        if let Some((found, arguments)) = frame.method()?
            && found == method
        {
            let value = read(arguments)?;
            input.advance(length);
            return Ok(Some(value));
        }
        input.advance(length);
    }
}

/// Says a method on the channel, and waits for its answer.
fn call(method: Method, answer: Method, arguments: impl FnOnce(&mut Vec<u8>)) -> Step {
    call_on(1, method, answer, arguments)
}

fn call_on(channel: u16, method: Method, answer: Method, arguments: impl FnOnce(&mut Vec<u8>)) -> Step {
    let mut out = Vec::new();
    put_method(&mut out, channel, method, arguments);
    Step::new(out, move |input| Ok(wait(input, answer, |_| Ok(()))?.is_some()))
}

/// Logs in as `guest`, and opens a channel.
pub(crate) fn connect() -> Vec<Step> {
    let mut tuned = Vec::new();
    put_method(&mut tuned, 0, TUNE_OK, |out| {
        out.put_u16(16);
        out.put_u32(FRAME_BYTES_MAX);
        // No heartbeats.
        out.put_u16(0);
    });
    vec![
        Step::new(*b"AMQP\0\0\x09\x01", |input| Ok(wait(input, START, |_| Ok(()))?.is_some())),
        call_on(0, START_OK, TUNE, |out| {
            out.put_u32(0);
            put_short(out, "PLAIN");
            out.put_u32(12);
            out.put_slice(b"\0guest\0guest");
            put_short(out, "en_US");
        }),
        Step::say(tuned),
        call_on(0, OPEN, OPEN_OK, |out| {
            put_short(out, "/");
            put_short(out, "");
            out.put_u8(0);
        }),
        call(CHANNEL_OPEN, CHANNEL_OPEN_OK, |out| put_short(out, "")),
    ]
}

const PASSIVE: u8 = 1;
const DURABLE: u8 = 2;

fn put_declare(out: &mut Vec<u8>, flags: u8, queue_type: &str) {
    out.put_u16(0);
    put_short(out, QUEUE);
    out.put_u8(flags);
    let mut table = Vec::new();
    if !queue_type.is_empty() {
        put_short(&mut table, "x-queue-type");
        table.put_u8(b'S');
        table.put_u32(queue_type.len() as u32);
        table.put_slice(queue_type.as_bytes());
    }
    out.put_u32(table.len() as u32);
    out.put_slice(&table);
}

pub(crate) fn declare(durable: bool, queue_type: &str) -> Step {
    call(DECLARE, DECLARE_OK, |out| put_declare(out, if durable { DURABLE } else { 0 }, queue_type))
}

/// Asks what the queue has.
pub(crate) fn ask_depth() -> Step {
    call(DECLARE, DECLARE_OK, |out| put_declare(out, PASSIVE, ""))
}

/// The tasks that are ready, of the answer to a declare.
pub(crate) fn depth(input: &mut BytesMut) -> Result<Option<u64>, Failed> {
    wait(input, DECLARE_OK, |mut arguments| {
        short(&mut arguments)?;
        Ok(u64::from(arguments.try_get_u32()?))
    })
}

/// Has publishes confirmed.
pub(crate) fn select() -> Step {
    call(SELECT, SELECT_OK, |out| out.put_u8(0))
}

/// Consumes, with so many unacknowledged deliveries.
pub(crate) fn consume(credit: usize) -> Vec<Step> {
    let qos = call(QOS, QOS_OK, |out| {
        out.put_u32(0);
        out.put_u16(credit as u16);
        out.put_u8(0);
    });
    let consume = call(CONSUME, CONSUME_OK, |out| {
        out.put_u16(0);
        put_short(out, QUEUE);
        put_short(out, "");
        out.put_u8(0);
        out.put_u32(0);
    });
    vec![qos, consume]
}

/// A channel that publishes.
pub(crate) struct Publishing {
    method: Vec<u8>,
    properties: u8,
    /// All up to this tag are confirmed,
    low: u64,
    /// and these above it.
    above: BTreeSet<u64>,
}

impl Publishing {
    pub(crate) fn new(persistent: bool) -> Publishing {
        let mut method = Vec::new();
        put_method(&mut method, 1, PUBLISH, |out| {
            out.put_u16(0);
            put_short(out, "");
            put_short(out, QUEUE);
            out.put_u8(0);
        });
        Publishing { method, properties: if persistent { 2 } else { 1 }, low: 0, above: BTreeSet::new() }
    }

    fn confirm(&mut self, tag: u64, multiple: bool) -> u64 {
        let before = self.low + self.above.len() as u64;
        if multiple && tag > self.low {
            self.above = self.above.split_off(&(tag + 1));
            self.low = tag;
        } else if tag > self.low {
            self.above.insert(tag);
        }
        while self.above.remove(&(self.low + 1)) {
            self.low += 1;
        }
        self.low + self.above.len() as u64 - before
    }
}

impl Producer for Publishing {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.method);
        put_frame(out, HEADER, 1, |out| {
            out.put_u16(60);
            out.put_u16(0);
            out.put_u64(payload.len() as u64);
            // Only the delivery mode is there.
            out.put_u16(0x1000);
            out.put_u8(self.properties);
        });
        put_frame(out, BODY, 1, |out| out.put_slice(payload));
    }

    fn hear(&mut self, input: &mut BytesMut, _: &mut Vec<u8>) -> Result<u64, Failed> {
        let (mut at, mut confirmed) = (0, 0);
        while let Some((frame, length)) = Frame::first(&input[at..])? {
            if let Some((method, mut arguments)) = frame.method()? {
                if method == NACK {
                    return Err("the server did not take a task".into());
                }
                if method == ACK {
                    let tag = arguments.try_get_u64()?;
                    confirmed += self.confirm(tag, arguments.try_get_u8()? != 0);
                }
            }
            at += length;
        }
        input.advance(at);
        Ok(confirmed)
    }
}

/// A channel that consumes. All that came together is acknowledged by one method.
#[derive(Default)]
pub(crate) struct Consuming {
    tag: u64,
    /// Of the last delivery that was whole: only those are acknowledged.
    whole: u64,
    /// Bytes of the body that are still to come; a body of more than one frame is put together.
    left: u64,
    body: Vec<u8>,
}

impl Worker for Consuming {
    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed> {
        let (mut at, mut settled) = (0, 0);
        while let Some((frame, length)) = Frame::first(&input[at..])? {
            at += length;
            match frame.kind {
                METHOD => {
                    let Some((method, mut arguments)) = frame.method()? else { continue };
                    if method == DELIVER {
                        short(&mut arguments)?;
                        self.tag = arguments.try_get_u64()?;
                    }
                }
                HEADER => {
                    let mut rest = frame.body;
                    rest.try_get_u32()?;
                    self.left = rest.try_get_u64()?;
                    self.body.clear();
                }
                BODY => {
                    self.left = self.left.saturating_sub(frame.body.len() as u64);
                    if self.left == 0 && self.body.is_empty() {
                        task(frame.body)?;
                        settled += 1;
                        self.whole = self.tag;
                        continue;
                    }
                    self.body.extend_from_slice(frame.body);
                    if self.left == 0 {
                        task(&self.body)?;
                        settled += 1;
                        self.whole = self.tag;
                    }
                }
                _ => {}
            }
        }
        if settled > 0 {
            put_method(out, 1, ACK, |out| {
                out.put_u64(self.whole);
                out.put_u8(1);
            });
        }
        input.advance(at);
        Ok(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirms_are_counted_once_in_any_order() {
        let mut channel = Publishing::new(true);
        let counted = [(2, false), (1, false), (5, false), (4, true), (3, true), (5, true), (9, true)]
            .map(|(tag, all)| channel.confirm(tag, all));
        assert_eq!(counted, [1, 1, 1, 2, 0, 0, 4]);
        assert!(channel.above.is_empty());
    }

    fn delivery(tag: u64, bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        put_method(&mut out, 1, DELIVER, |out| {
            put_short(out, "consumer");
            out.put_u64(tag);
            out.put_u8(0);
            put_short(out, "");
            put_short(out, QUEUE);
        });
        put_frame(&mut out, HEADER, 1, |out| {
            out.put_u32(60 << 16);
            out.put_u64(bodies.iter().map(|body| body.len() as u64).sum());
            out.put_u16(0);
        });
        bodies.iter().for_each(|body| put_frame(&mut out, BODY, 1, |out| out.put_slice(body)));
        out
    }

    #[test]
    fn what_came_whole_is_acknowledged_at_once() {
        let bytes = [delivery(1, &[b"a"]), delivery(2, &[b"b", b"c"]), delivery(3, &[b"d"])].concat();
        let (mut tasks, mut acks) = (Vec::new(), Vec::new());
        // In two parts, cut anywhere.
        for cut in 0..bytes.len() {
            let mut channel = Consuming::default();
            tasks.clear();
            acks.clear();
            let mut input = BytesMut::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                input.extend_from_slice(part);
                let mut keep = |payload: &[u8]| {
                    tasks.push(payload.to_vec());
                    Ok(())
                };
                let mut out = Vec::new();
                let settled = channel.hear(&mut input, &mut out, &mut keep).expect("deliveries");
                if settled > 0 {
                    let (frame, _) = Frame::first(&out).expect("a frame").expect("whole");
                    let (method, mut arguments) = frame.method().expect("a method").expect("one");
                    assert_eq!(method, ACK);
                    acks.push((arguments.get_u64(), settled));
                }
            }
            assert_eq!(tasks, [b"a".to_vec(), b"bc".to_vec(), b"d".to_vec()], "cut at {cut}");
            assert_eq!(acks.last().map(|(tag, _)| *tag), Some(3), "cut at {cut}");
            // Never more than what was seen.
            let mut seen = 0;
            for (tag, settled) in &acks {
                seen += settled;
                assert_eq!(*tag, seen, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_close_says_why() {
        let mut out = Vec::new();
        put_method(&mut out, 1, CHANNEL_CLOSE, |out| {
            out.put_u16(404);
            put_short(out, "NOT_FOUND");
        });
        let error = Publishing::new(false).hear(&mut BytesMut::from(out.as_slice()), &mut Vec::new());
        assert!(error.expect_err("a refusal").to_string().contains("404: NOT_FOUND"));
    }
}
