//! Taskyard's protocol, spoken as those of its peers are here: frames are put together and looked through,
//! not encoded and decoded by a client's library. JSON or MessagePack, each message a frame of its own, or in arrays.

use bytes::{Buf as _, BytesMut};
use memchr::memmem;

use crate::drivers::frames::Head;
use crate::drivers::{Depth, Dialect, Nth, Producer, QUEUE, Role, Step, Worker, frames};
use crate::{Failed, Wire};

/// The most messages that are put into one frame: a quarter of what the protocol allows.
const ARRAY_MAX: usize = 256;
/// A lease on the wire, in characters.
const LEASE_CHARS: usize = 22;

/// How the protocol is spoken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskyardWire {
    pub(crate) wire: Wire,
    pub(crate) arrays: bool,
    pub(crate) credit: usize,
    pub(crate) acks_answered: bool,
}

impl TaskyardWire {
    fn put(&self, out: &mut Vec<u8>, body: &[u8]) {
        let kind = if self.wire == Wire::Json { frames::TEXT } else { frames::BINARY };
        frames::put_client(out, kind, frames::MASK, body);
    }

    fn said(&self, json: &serde_json::Value, until: &'static [u8]) -> Step {
        let body = match self.wire {
            Wire::Json => json.to_string().into_bytes(),
            Wire::Msgpack => rmp_serde::to_vec(json).expect("MessagePack says all that JSON does"),
        };
        let mut send = Vec::new();
        self.put(&mut send, &body);
        Step::new(send, move |input| {
            // What comes behind the answer is for later.
            while let Some(end) = frames::websocket_length(input) {
                let mut frame = input.split_to(end);
                let mut found = false;
                hear(&mut frame, |body| {
                    found = memmem::find(body, until).is_some();
                    Ok(())
                })?;
                if found {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }
}

/// Gives the body of each whole frame; an error that the broker tells ends all.
fn hear(input: &mut BytesMut, mut body: impl FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
    let mut at = 0;
    while let Some(Head { begin, .. }) = Head::first(&input[at..])
        && let Some(end) = frames::websocket_length(&input[at..])
    {
        let frame = &input[at + begin..at + end];
        // As `{"type":"error"` in JSON, and as a word of five bytes in MessagePack.
        let told = frame.get(..16).unwrap_or(frame);
        if memmem::find(told, b"error").is_some() {
            return Err(format!("the broker answered {}", String::from_utf8_lossy(frame)).into());
        }
        body(frame)?;
        at += end;
    }
    input.advance(at);
    Ok(())
}

impl Dialect for TaskyardWire {
    fn open(&self, role: Role, _: Nth) -> Vec<Step> {
        let hello = serde_json::json!({"type": "hello", "batch": self.arrays, "id": 1});
        let subscribe =
            serde_json::json!({"type": "subscribe", "queue": QUEUE, "credit": self.credit, "id": 2});
        let request = frames::upgrade_request("/ws");
        let upgrade = Step::new(request, |input: &mut BytesMut| Ok(frames::head(input)));
        let mut steps = vec![upgrade];
        steps.push(self.said(&hello, b"welcome"));
        if role == Role::Worker {
            steps.push(self.said(&subscribe, b"subscribed"));
        }
        steps
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Submits { how: *self, next: 0, array: Array::default(), body: Vec::new() })
    }

    fn depth(&self) -> Option<Depth> {
        let ask = format!("GET /v1/queues/{QUEUE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        Some(Depth { before: Vec::new(), ask: ask.into_bytes(), read: queued })
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(Acks { how: *self, leases: Vec::new(), body: Vec::new() })
    }
}

/// How many tasks wait, of an answer of HTTP.
fn queued(input: &mut BytesMut) -> Result<Option<u64>, Failed> {
    let Some(end) = memmem::find(input, b"\r\n\r\n") else { return Ok(None) };
    let Ok(queue) = serde_json::from_slice::<serde_json::Value>(&input[end + 4..]) else { return Ok(None) };
    Ok(Some(queue.pointer("/counts/queued").and_then(serde_json::Value::as_u64).unwrap_or(0)))
}

/// Messages that go out in one frame.
#[derive(Default)]
struct Array {
    bodies: Vec<u8>,
    count: usize,
}

impl Array {
    fn push(&mut self, wire: Wire, body: &[u8]) {
        if wire == Wire::Json && self.count > 0 {
            self.bodies.push(b',');
        }
        self.bodies.extend_from_slice(body);
        self.count += 1;
    }

    /// Takes all as one array into `body`.
    fn take(&mut self, wire: Wire, body: &mut Vec<u8>) {
        body.clear();
        match wire {
            Wire::Json => {
                body.push(b'[');
                body.append(&mut self.bodies);
                body.push(b']');
            }
            Wire::Msgpack => {
                body.push(0xDC);
                body.extend_from_slice(&(self.count as u16).to_be_bytes());
                body.append(&mut self.bodies);
            }
        }
        self.count = 0;
    }
}

struct Submits {
    how: TaskyardWire,
    next: u64,
    array: Array,
    body: Vec<u8>,
}

impl Submits {
    fn spell(&mut self, payload: &[u8]) {
        let body = &mut self.body;
        body.clear();
        match self.how.wire {
            Wire::Json => {
                body.extend_from_slice(b"{\"type\":\"submit\",\"id\":");
                body.extend_from_slice(itoa::Buffer::new().format(self.next).as_bytes());
                body.extend_from_slice(b",\"queue\":\"");
                body.extend_from_slice(QUEUE.as_bytes());
                // The payloads of this generator have nothing in them that JSON would escape.
                body.extend_from_slice(b"\",\"payload\":\"");
                body.extend_from_slice(payload);
                body.extend_from_slice(b"\"}");
            }
            Wire::Msgpack => {
                body.extend_from_slice(b"\x84\xA4type\xA6submit\xA2id\xCE");
                body.extend_from_slice(&(self.next as u32).to_be_bytes());
                body.extend_from_slice(b"\xA5queue");
                body.push(0xA0 | QUEUE.len() as u8);
                body.extend_from_slice(QUEUE.as_bytes());
                body.extend_from_slice(b"\xA7payload\xC6");
                body.extend_from_slice(&(payload.len() as u32).to_be_bytes());
                body.extend_from_slice(payload);
            }
        }
        self.next += 1;
    }

    fn put_array(&mut self, out: &mut Vec<u8>) {
        self.array.take(self.how.wire, &mut self.body);
        self.how.put(out, &self.body);
    }
}

impl Producer for Submits {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        self.spell(payload);
        if !self.how.arrays {
            return self.how.put(out, &self.body);
        }
        self.array.push(self.how.wire, &self.body);
        if self.array.count == ARRAY_MAX {
            self.put_array(out);
        }
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if self.array.count > 0 {
            self.put_array(out);
        }
    }

    fn hear(&mut self, input: &mut BytesMut, _: &mut Vec<u8>) -> Result<u64, Failed> {
        let accepted = memmem::Finder::new(b"accepted");
        let mut count = 0;
        hear(input, |body| {
            count += accepted.find_iter(body).count() as u64;
            Ok(())
        })?;
        Ok(count)
    }
}

struct Acks {
    how: TaskyardWire,
    /// Those of the tasks that came at once.
    leases: Vec<[u8; LEASE_CHARS]>,
    body: Vec<u8>,
}

impl Acks {
    /// The ack of some leases. Its answer, if one is asked for, comes when it is durable.
    fn spell(&mut self, leases: &[[u8; LEASE_CHARS]]) {
        let body = &mut self.body;
        body.clear();
        match self.how.wire {
            Wire::Json => {
                body.extend_from_slice(b"{\"type\":\"ack\",");
                if self.how.acks_answered {
                    body.extend_from_slice(b"\"id\":1,");
                }
                body.extend_from_slice(b"\"leases\":[");
                for (nth, lease) in leases.iter().enumerate() {
                    body.extend_from_slice(if nth == 0 { b"\"" } else { b",\"" });
                    body.extend_from_slice(lease);
                    body.push(b'"');
                }
                body.extend_from_slice(b"]}");
            }
            Wire::Msgpack => {
                body.extend_from_slice(match self.how.acks_answered {
                    true => b"\x83\xA4type\xA3ack\xA2id\x01\xA6leases\xDC",
                    false => b"\x82\xA4type\xA3ack\xA6leases\xDC",
                });
                body.extend_from_slice(&(leases.len() as u16).to_be_bytes());
                for lease in leases {
                    body.push(0xA0 | LEASE_CHARS as u8);
                    body.extend_from_slice(lease);
                }
            }
        }
    }
}

impl Worker for Acks {
    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed> {
        let json = self.how.wire == Wire::Json;
        let lease_key = memmem::Finder::new(if json { &b"\"lease\":\""[..] } else { b"\xA5lease\xB6" });
        let payload_key = memmem::Finder::new(if json { &b"\"payload\":\""[..] } else { b"\xA7payload" });
        let mut settled = 0;
        let leases = &mut self.leases;
        hear(input, |body| {
            if memmem::find(body.get(..32).unwrap_or(body), b"settled").is_some() {
                settled += memmem::find_iter(body, b"lease_lost").next().map_or_else(
                    || Ok(memmem::find_iter(body, b"outcome").count() as u64),
                    |_| Err(Failed::from("a lease was lost: the machine is too slow for this load")),
                )?;
                return Ok(());
            }
            let mut at = 0;
            while let Some(found) = lease_key.find(&body[at..]) {
                at += found + lease_key.needle().len();
                let lease = body.get(at..at + LEASE_CHARS).ok_or("a task with a short lease")?;
                leases.push(lease.try_into()?);
                let found = payload_key.find(&body[at..]).ok_or("a task without a payload")?;
                at += found + payload_key.needle().len();
                let (begin, length) = match json {
                    true => (0, memchr::memchr(b'"', &body[at..]).ok_or("a payload without an end")?),
                    false => binary(&body[at..]).ok_or("a payload that is no bytes")?,
                };
                at += begin;
                task(body.get(at..at + length).ok_or("a payload that is cut")?)?;
                at += length;
            }
            Ok(())
        })?;
        let leases = std::mem::take(&mut self.leases);
        let most = if self.how.arrays { ARRAY_MAX } else { 1 };
        for some in leases.chunks(most) {
            self.spell(some);
            let how = self.how;
            how.put(out, &self.body);
        }
        self.leases = leases;
        self.leases.clear();
        Ok(settled)
    }
}

/// Where the bytes of a MessagePack `bin` begin, and how many there are.
fn binary(value: &[u8]) -> Option<(usize, usize)> {
    match value.first()? {
        0xC4 => Some((2, usize::from(*value.get(1)?))),
        0xC5 => Some((3, usize::from(u16::from_be_bytes(value.get(1..3)?.try_into().ok()?)))),
        0xC6 => Some((5, u32::from_be_bytes(value.get(1..5)?.try_into().ok()?) as usize)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use fastwebsockets::unmask;
    use taskyard_proto::codec::{ClientFrame, decode_client, encode_server, encode_server_array};
    use taskyard_proto::{
        Accepted, ClientMessage, Error, ErrorCode, GivenLease, Headers, LeaseId, LeaseList, Payload,
        QueueName, Request, Response, ServerMessage, SettleOutcome, SettleResult, Settled, Task, TaskId,
    };

    use super::*;

    const ALL: [(Wire, bool); 4] =
        [(Wire::Json, false), (Wire::Json, true), (Wire::Msgpack, false), (Wire::Msgpack, true)];

    fn wire(wire: Wire, arrays: bool) -> TaskyardWire {
        TaskyardWire { wire, arrays, credit: 64, acks_answered: true }
    }

    /// What the broker reads of frames of ours.
    fn read(how: TaskyardWire, mut out: &[u8]) -> (usize, Vec<Request>) {
        let (mut frames, mut requests) = (0, Vec::new());
        while let Some(head) = Head::first(out) {
            let end = head.end(out).expect("whole frames");
            let mut body = out[head.begin..end].to_vec();
            unmask(&mut body, head.mask.expect("clients mask"));
            let frame: ClientFrame = decode_client(how.wire.encoding(), &body).expect("the protocol");
            requests.extend(frame.into_iter().map(|item| item.expect("a message")));
            (frames, out) = (frames + 1, &out[end..]);
        }
        (frames, requests)
    }

    /// Frames as the broker sends them.
    fn told(how: TaskyardWire, messages: Vec<ServerMessage>) -> BytesMut {
        let responses: Vec<Response> =
            messages.into_iter().map(|message| Response { reference: None, message }).collect();
        let mut bodies = Vec::new();
        if how.arrays {
            let mut body = Vec::new();
            encode_server_array(how.wire.encoding(), responses.iter(), &mut body);
            bodies.push(body);
        } else {
            for response in &responses {
                let mut body = Vec::new();
                encode_server(how.wire.encoding(), response, &mut body);
                bodies.push(body);
            }
        }
        let mut input = BytesMut::new();
        bodies.iter().for_each(|body| frames::put_websocket(&mut input, body));
        input
    }

    fn task(number: u64, payload: &[u8], how: TaskyardWire) -> ServerMessage {
        let payload = match how.wire {
            Wire::Json => Payload::json(std::str::from_utf8(payload).unwrap()).unwrap(),
            Wire::Msgpack => Payload::binary(payload),
        };
        let message = Task {
            task: TaskId(number.into()),
            lease: Some(LeaseId { number, slot: 3, recipient: 0 }),
            queue: QueueName::parse(QUEUE).unwrap(),
            attempt: 1,
            max_attempts: 5,
            redelivered: false,
            ack_timeout_ms: 30_000,
            age_ms: 0,
            priority: 4,
            headers: Headers::default(),
            payload,
        };
        message.into()
    }

    #[test]
    fn submits_are_what_the_broker_reads_and_confirmations_are_counted() {
        for (encoding, arrays) in ALL {
            let how = wire(encoding, arrays);
            let (mut producer, mut out) = (how.producer(0), Vec::new());
            for payload in [&b""[..], b"one", &[b'x'; 70_000]] {
                producer.submit(payload, &mut out);
            }
            producer.flush(&mut out);
            let (frames, requests) = read(how, &out);
            assert_eq!((frames, requests.len()), (if arrays { 1 } else { 3 }, 3), "{how:?}");
            let lengths = requests.iter().map(|request| match &request.message {
                ClientMessage::Submit(submit) => submit.payload().to_plain_bytes().len(),
                other => panic!("{other:?}"),
            });
            assert_eq!(lengths.collect::<Vec<_>>(), [0, 3, 70_000], "{how:?}");
            let accepted = |n| Accepted { task: TaskId(n), duplicate: false }.into();
            let mut input = told(how, (0..3).map(accepted).collect());
            let cut = input.split_off(input.len() - 1);
            let early = producer.hear(&mut input, &mut out).unwrap();
            input.unsplit(cut);
            assert_eq!(early + producer.hear(&mut input, &mut out).unwrap(), 3, "{how:?}");
        }
    }

    #[test]
    fn an_ack_asks_for_an_answer_only_where_it_is_counted() {
        for (encoding, arrays) in ALL {
            let how = TaskyardWire { acks_answered: false, ..wire(encoding, arrays) };
            let (mut worker, mut out) = (how.worker(0), Vec::new());
            let mut tasks = told(how, vec![task(1, b"one", how), task(2, b"two", how)]);
            worker.hear(&mut tasks, &mut out, &mut |_| Ok(())).unwrap();
            let (_, requests) = read(how, &out);
            assert!(requests.iter().all(|request| request.id.is_none()), "{how:?}");
            let leases = requests.iter().map(|request| match &request.message {
                ClientMessage::Ack(ack) => match &ack.leases {
                    LeaseList::Many(leases) => leases.len(),
                    LeaseList::One(_) => 1,
                },
                other => panic!("{other:?}"),
            });
            assert_eq!(leases.sum::<usize>(), 2, "{how:?}");
        }
    }

    #[test]
    fn each_task_is_acked_once_and_settled_acks_are_counted() {
        for (encoding, arrays) in ALL {
            let how = wire(encoding, arrays);
            let (mut worker, mut out, mut payloads) = (how.worker(0), Vec::new(), Vec::new());
            let tasks = vec![task(1, b"one", how), task(2, &[b'y'; 300], how), task(3, b"", how)];
            let mut keep = |payload: &[u8]| -> Result<(), Failed> {
                payloads.push(payload.len());
                Ok(())
            };
            assert_eq!(worker.hear(&mut told(how, tasks), &mut out, &mut keep).unwrap(), 0);
            assert_eq!(payloads, [3, 300, 0], "{how:?}");
            let (_, requests) = read(how, &out);
            assert!(requests.iter().all(|request| request.id.is_some()), "{how:?}");
            let leases = requests.iter().flat_map(|request| match &request.message {
                ClientMessage::Ack(ack) => match &ack.leases {
                    LeaseList::Many(leases) => leases.clone(),
                    LeaseList::One(lease) => vec![lease.clone()],
                },
                other => panic!("{other:?}"),
            });
            let numbers: Vec<u64> =
                leases.map(|lease: GivenLease| lease.id().expect("a lease").number).collect();
            assert_eq!(numbers, [1, 2, 3], "{how:?}");
            let results = |outcome| {
                let lease = |number| LeaseId { number, slot: 3, recipient: 0 };
                let text = |number| taskyard_proto::message::lease_text(&lease(number).into());
                let results = (1..=3).map(|number| SettleResult { lease: text(number), outcome }).collect();
                ServerMessage::from(Settled {
                    lease: Default::default(),
                    outcome: Default::default(),
                    results: Some(results).map_or_else(Default::default, |results: Vec<_>| results.into()),
                })
            };
            let mut settle = |outcomes: &[SettleOutcome]| {
                // As frames of their own, that arrive together.
                let mut input = BytesMut::new();
                outcomes.iter().for_each(|outcome| input.unsplit(told(how, vec![results(*outcome)])));
                worker.hear(&mut input, &mut out, &mut |_| Ok(()))
            };
            assert_eq!(settle(&[SettleOutcome::Ok, SettleOutcome::Ok]).unwrap(), 6, "{how:?}");
            assert!(settle(&[SettleOutcome::LeaseLost]).is_err(), "{how:?}");
            let refused = Error::new(ErrorCode::QueueFull, "full");
            let mut input = told(how, vec![refused.into()]);
            assert!(worker.hear(&mut input, &mut Vec::new(), &mut |_| Ok(())).is_err(), "{how:?}");
        }
    }
}
