//! NATS. *Core*: subjects and a queue group, nothing is kept or acknowledged; a `PING` behind each burst
//! tells that the server has taken it. *JetStream*: a stream that forgets what is acknowledged, publishes
//! answered on an inbox without waiting for each, and one push consumer with explicit acks, shared by the
//! workers through a group; an ack has no answer.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::PathBuf;

use bytes::{Buf as _, BytesMut};
use serde_json::{Value, json};

use crate::Failed;
use crate::drivers::server::{Server, Spec};
use crate::drivers::{Depth, Dialect, Nth, Place, Producer, QUEUE, Role, Step, Worker, line, number};

/// Where a stream is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Memory,
    /// Synced every two minutes, which is the server's default.
    File,
    /// Synced before a publish is answered.
    SyncedFile,
}

/// Starts a server; with JetStream if a store is named.
pub(crate) async fn start(program: PathBuf, place: &Place, store: Option<Store>) -> Result<Server, Failed> {
    let spec = Spec::new(program, "nats", &place.dir)?;
    let jetstream = store.map_or(String::new(), |store| {
        let sync = if store == Store::SyncedFile { "sync_interval: always" } else { "" };
        format!(
            "jetstream {{ store_dir: {:?}, max_memory_store: 16GB, max_file_store: 64GB\n {sync}\n }}\n",
            spec.directory.display().to_string()
        )
    });
    let config =
        format!("listen: \"{}\"\nwrite_deadline: \"60s\"\nmax_pending: 1GB\n{jetstream}", spec.address);
    let file = spec.directory.join("nats.conf");
    std::fs::write(&file, config)?;
    Server::start(spec.arg("-c").arg(file)).await
}

const STREAM: &str = "BENCH";
const GROUP: &str = "workers";
const INBOX: &str = "inbox";

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
enum Said<'a> {
    Message {
        reply: Option<&'a [u8]>,
        body: &'a [u8],
    },
    Ping,
    Pong,
    /// `INFO` and `+OK`: nobody here needs them.
    Other,
}

/// The first thing said and its length, if it is whole.
fn said(input: &[u8]) -> Result<Option<(Said<'_>, usize)>, Failed> {
    let Some((text, used)) = line(input) else { return Ok(None) };
    let (headers, head) = match (text.strip_prefix(b"MSG "), text.strip_prefix(b"HMSG ")) {
        (Some(head), _) => (false, head),
        (_, Some(head)) => (true, head),
        _ if text == b"PING" => return Ok(Some((Said::Ping, used))),
        _ if text == b"PONG" => return Ok(Some((Said::Pong, used))),
        _ if text.starts_with(b"-ERR") => {
            return Err(format!("the server says: {}", String::from_utf8_lossy(text)).into());
        }
        _ => return Ok(Some((Said::Other, used))),
    };
    // subject, subscription, perhaps a subject to reply to, perhaps the bytes of the headers, all bytes
    let mut words: VecDeque<&[u8]> = head.split(|byte| *byte == b' ').skip(2).collect();
    let length = number(words.pop_back().ok_or("a message without a length")?)? as usize;
    let skip = match headers {
        true => number(words.pop_back().ok_or("headers without a length")?)? as usize,
        false => 0,
    };
    if input.len() < used + length + 2 {
        return Ok(None);
    }
    let body = input.get(used + skip..used + length).ok_or("headers that are longer than their message")?;
    Ok(Some((Said::Message { reply: words.pop_front(), body }, used + length + 2)))
}

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";

fn pong(input: &mut BytesMut) -> Result<bool, Failed> {
    while let Some((what, length)) = said(input)? {
        let done = what == Said::Pong;
        input.advance(length);
        if done {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open(role: Role, subject: &str, nth: Nth) -> Vec<Step> {
    let subscribe = match role {
        Role::Producer => format!("SUB {INBOX}.{nth} 1\r\n"),
        Role::Worker => format!("SUB {subject} {GROUP} 1\r\n"),
    };
    vec![Step::new(format!("{CONNECT}{subscribe}PING\r\n"), pong)]
}

fn publish(out: &mut Vec<u8>, before: &[u8], payload: &[u8]) {
    out.extend_from_slice(before);
    let _ = write!(out, "{}\r\n", payload.len());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Without acks.
pub(crate) struct Core;

impl Dialect for Core {
    fn open(&self, role: Role, nth: Nth) -> Vec<Step> {
        open(role, QUEUE, nth)
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Publishing { burst: 0, bursts: VecDeque::new() })
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(Taking { acks: false })
    }
}

struct Publishing {
    burst: u64,
    /// Publishes before each `PING` that is not answered.
    bursts: VecDeque<u64>,
}

impl Producer for Publishing {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        publish(out, b"PUB bench ", payload);
        self.burst += 1;
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        if self.burst > 0 {
            out.extend_from_slice(b"PING\r\n");
            self.bursts.push_back(std::mem::take(&mut self.burst));
        }
    }

    fn hear(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<u64, Failed> {
        let (mut at, mut confirmed) = (0, 0);
        while let Some((what, length)) = said(&input[at..])? {
            match what {
                Said::Pong => confirmed += self.bursts.pop_front().unwrap_or(0),
                Said::Ping => out.extend_from_slice(b"PONG\r\n"),
                _ => {}
            }
            at += length;
        }
        input.advance(at);
        Ok(confirmed)
    }
}

struct Taking {
    acks: bool,
}

impl Worker for Taking {
    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed> {
        let (mut at, mut settled) = (0, 0);
        while let Some((what, length)) = said(&input[at..])? {
            match what {
                Said::Message { reply, body } => {
                    task(body)?;
                    if self.acks {
                        out.extend_from_slice(b"PUB ");
                        out.extend_from_slice(reply.ok_or("a delivery that cannot be acknowledged")?);
                        out.extend_from_slice(b" 0\r\n\r\n");
                    }
                    settled += 1;
                }
                Said::Ping => out.extend_from_slice(b"PONG\r\n"),
                _ => {}
            }
            at += length;
        }
        input.advance(at);
        Ok(settled)
    }
}

/// With a stream.
pub(crate) struct JetStream {
    pub(crate) store: Store,
    /// Tasks that all workers together may have without an ack.
    pub(crate) credit: usize,
}

/// The answer of JetStream's API, once it is there.
fn answer(input: &mut BytesMut) -> Result<Option<Value>, Failed> {
    while let Some((what, length)) = said(input)? {
        let found = match what {
            Said::Message { body, .. } => Some(serde_json::from_slice::<Value>(body)?),
            _ => None,
        };
        input.advance(length);
        let Some(found) = found else { continue };
        return match found.get("error") {
            Some(error) => Err(format!("the server says: {error}").into()),
            None => Ok(Some(found)),
        };
    }
    Ok(None)
}

fn messages(input: &mut BytesMut) -> Result<Option<u64>, Failed> {
    Ok(answer(input)?.and_then(|found| found.pointer("/state/messages")?.as_u64()))
}

impl Dialect for JetStream {
    fn prepare(&self) -> Vec<Step> {
        let storage = if self.store == Store::Memory { "memory" } else { "file" };
        let stream = json!({
            "name": STREAM, "subjects": [QUEUE], "retention": "workqueue", "storage": storage,
            "num_replicas": 1, "discard": "old", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1,
        });
        let consumer = json!({
            "stream_name": STREAM,
            "config": {
                "durable_name": GROUP, "deliver_subject": "deliver", "deliver_group": GROUP,
                "ack_policy": "explicit", "ack_wait": 600_000_000_000_u64, "deliver_policy": "all",
                "max_ack_pending": self.credit, "mem_storage": self.store == Store::Memory,
            },
        });
        let ask = |subject: &str, body: &Value| {
            let mut out = Vec::new();
            publish(&mut out, format!("PUB $JS.API.{subject} api ").as_bytes(), body.to_string().as_bytes());
            Step::new(out, |input| Ok(answer(input)?.is_some()))
        };
        vec![
            Step::new(format!("{CONNECT}SUB api 1\r\nPING\r\n"), pong),
            ask(&format!("STREAM.CREATE.{STREAM}"), &stream),
            ask(&format!("CONSUMER.DURABLE.CREATE.{STREAM}.{GROUP}"), &consumer),
        ]
    }

    fn open(&self, role: Role, nth: Nth) -> Vec<Step> {
        open(role, "deliver", nth)
    }

    fn producer(&self, nth: Nth) -> Box<dyn Producer> {
        Box::new(Storing { before: format!("PUB {QUEUE} {INBOX}.{nth} ").into_bytes() })
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(Taking { acks: true })
    }

    fn depth(&self) -> Option<Depth> {
        let ask = format!("{CONNECT}SUB api 1\r\nPUB $JS.API.STREAM.INFO.{STREAM} api 0\r\n\r\n");
        Some(Depth { before: Vec::new(), ask: ask.into_bytes(), read: messages })
    }
}

struct Storing {
    before: Vec<u8>,
}

impl Producer for Storing {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        publish(out, &self.before, payload);
    }

    fn hear(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<u64, Failed> {
        let (mut at, mut confirmed) = (0, 0);
        while let Some((what, length)) = said(&input[at..])? {
            match what {
                // Looked at as bytes: a generator that parses a million of them measures itself.
                Said::Message { body, .. } if body.starts_with(b"{\"stream\"") => confirmed += 1,
                Said::Message { body, .. } => {
                    return Err(format!("the server says: {}", String::from_utf8_lossy(body)).into());
                }
                Said::Ping => out.extend_from_slice(b"PONG\r\n"),
                _ => {}
            }
            at += length;
        }
        input.advance(at);
        Ok(confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_read_once_it_is_whole() {
        for (bytes, expected) in [
            ("MSG a 1 3\r\n\r\nx\r\n", Said::Message { reply: None, body: b"\r\nx" }),
            ("MSG a 1 r.1 0\r\n\r\n", Said::Message { reply: Some(b"r.1"), body: b"" }),
            ("HMSG a 1 r 4 6\r\nHEADhi\r\n", Said::Message { reply: Some(b"r"), body: b"hi" }),
            ("PONG\r\n", Said::Pong),
            ("INFO {}\r\n", Said::Other),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(said(&bytes.as_bytes()[..end]).expect("no error"), None, "{bytes} {end}");
            }
            assert_eq!(said(bytes.as_bytes()).expect("no error"), Some((expected, bytes.len())));
        }
        assert!(said(b"-ERR 'no'\r\n").is_err());
    }

    #[test]
    fn a_burst_is_confirmed_by_its_pong() {
        let (mut producer, mut out) = (Core.producer(0), Vec::new());
        producer.submit(b"a", &mut out);
        producer.submit(b"b", &mut out);
        producer.flush(&mut out);
        assert_eq!(out, b"PUB bench 1\r\na\r\nPUB bench 1\r\nb\r\nPING\r\n");
        assert_eq!(producer.hear(&mut BytesMut::from("PONG\r\n"), &mut out).expect("a pong"), 2);
    }

    #[test]
    fn a_publish_that_is_refused_ends_the_round() {
        let mut producer = JetStream { store: Store::File, credit: 1 }.producer(0);
        let mut input = BytesMut::from("MSG inbox.0 1 26\r\n{\"stream\":\"BENCH\",\"seq\":1}\r\n");
        assert_eq!(producer.hear(&mut input, &mut Vec::new()).expect("an answer"), 1);
        let mut input = BytesMut::from("MSG inbox.0 1 12\r\n{\"error\":{}}\r\n");
        assert!(producer.hear(&mut input, &mut Vec::new()).is_err());
    }
}
