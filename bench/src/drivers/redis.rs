//! Redis as a queue, in the two ways that are in use. *Streams*: `XADD`; a group whose workers take up
//! to their credit with one blocking `XREADGROUP`, and settle with one `XACK` and one `XDEL` for all.
//! *List*: `LPUSH`; a worker moves tasks to a list of its own, the first with a blocking `BLMOVE` and
//! what more there is with `LMOVE` behind it in the same write, and settles each with `LREM`.

use bytes::{Buf as _, BytesMut};

use crate::Failed;
use crate::drivers::resp::{self, Reply};
use crate::drivers::server::{Server, Spec};
use crate::drivers::{Appetite, Depth, Dialect, Nth, Place, Producer, QUEUE, Role, Step, Worker};

/// When the append-only file is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// There is none.
    No,
    EverySecond,
    Always,
}

pub(crate) async fn start(program: std::path::PathBuf, place: &Place, sync: Sync) -> Result<Server, Failed> {
    let spec = Spec::new(program, "redis", &place.dir)?;
    let port = spec.address.port().to_string();
    let dir = spec.directory.clone();
    let (appendonly, fsync) = match sync {
        Sync::No => ("no", "no"),
        Sync::EverySecond => ("yes", "everysec"),
        Sync::Always => ("yes", "always"),
    };
    let spec = spec.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(dir);
    // Its file is not written anew meanwhile: that would cost it a core.
    let spec = spec
        .args(["--appendonly", appendonly, "--appendfsync", fsync])
        .args(["--auto-aof-rewrite-percentage", "0"]);
    Server::start(spec).await
}

fn finished(input: &mut BytesMut) -> Result<bool, Failed> {
    let Some(length) = resp::reply(input)?.map(|(_, length)| length) else { return Ok(false) };
    input.advance(length);
    Ok(true)
}

/// The question for the length of the stream or list.
fn length(command: &str) -> Depth {
    let mut ask = Vec::new();
    resp::command(&mut ask, [command, QUEUE].map(str::as_bytes));
    Depth { before: Vec::new(), ask, read: integer }
}

fn integer(input: &mut BytesMut) -> Result<Option<u64>, Failed> {
    let Some((reply, length)) = resp::reply(input)? else { return Ok(None) };
    let Reply::Integer(found) = reply else { return Err("a number was expected".into()) };
    input.advance(length);
    Ok(Some(u64::try_from(found)?))
}

/// A producer of either kind: one command a task, and one reply.
struct Adding {
    before: Vec<u8>,
}

impl Adding {
    fn new(words: &[&str]) -> Adding {
        let mut before = Vec::new();
        resp::begin(&mut before, words.len() + 1);
        words.iter().for_each(|one| resp::word(&mut before, one.as_bytes()));
        Adding { before }
    }
}

impl Producer for Adding {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.before);
        resp::word(out, payload);
    }

    fn hear(&mut self, input: &mut BytesMut, _: &mut Vec<u8>) -> Result<u64, Failed> {
        let (mut at, mut confirmed) = (0, 0);
        while let Some((_, length)) = resp::reply(&input[at..])? {
            at += length;
            confirmed += 1;
        }
        input.advance(at);
        Ok(confirmed)
    }
}

/// A stream with a group.
pub(crate) struct Streams {
    pub(crate) credit: usize,
}

const GROUP: &str = "workers";

impl Dialect for Streams {
    fn prepare(&self) -> Vec<Step> {
        let mut create = Vec::new();
        let words = ["XGROUP", "CREATE", QUEUE, GROUP, "0", "MKSTREAM"];
        resp::command(&mut create, words.map(str::as_bytes));
        vec![Step::new(create, finished)]
    }

    fn open(&self, _: Role, _: Nth) -> Vec<Step> {
        Vec::new()
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Adding::new(&["XADD", QUEUE, "*", "p"]))
    }

    fn worker(&self, nth: Nth) -> Box<dyn Worker> {
        let (name, credit) = (format!("w{nth}"), self.credit.to_string());
        let mut take = Vec::new();
        let words =
            ["XREADGROUP", "GROUP", GROUP, &name, "COUNT", &credit, "BLOCK", "0", "STREAMS", QUEUE, ">"];
        resp::command(&mut take, words.map(str::as_bytes));
        Box::new(Reading { take, settling: None, acked: false })
    }

    fn depth(&self) -> Option<Depth> {
        Some(length("XLEN"))
    }
}

/// A worker of the group.
struct Reading {
    take: Vec<u8>,
    /// Tasks whose `XACK` and `XDEL` are not answered.
    settling: Option<u64>,
    /// `XACK` is answered, `XDEL` not yet.
    acked: bool,
}

impl Worker for Reading {
    fn begin(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.take);
    }

    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed> {
        let (mut at, mut settled) = (0, 0);
        while let Some((reply, length)) = resp::reply(&input[at..])? {
            at += length;
            match &reply {
                Reply::Integer(_) if !self.acked => self.acked = true,
                Reply::Integer(_) => {
                    self.acked = false;
                    settled += self.settling.take().unwrap_or(0);
                }
                Reply::Array(streams) => {
                    let entries = streams.first().and_then(|stream| stream.items().get(1));
                    let entries = entries.ok_or("a stream without entries")?.items();
                    for (verb, words) in
                        [(["XACK", QUEUE, GROUP].as_slice(), 3), (["XDEL", QUEUE].as_slice(), 2)]
                    {
                        resp::begin(out, words + entries.len());
                        verb.iter().for_each(|one| resp::word(out, one.as_bytes()));
                        for entry in entries {
                            resp::word(out, entry.items().first().ok_or("an entry without an id")?.bulk()?);
                        }
                    }
                    out.extend_from_slice(&self.take);
                    self.settling = Some(entries.len() as u64);
                    for entry in entries {
                        let fields = entry.items().get(1).ok_or("an entry without fields")?.items();
                        task(fields.get(1).ok_or("a field without a value")?.bulk()?)?;
                    }
                }
                other => return Err(format!("an answer that was not expected: {other:?}").into()),
            }
        }
        input.advance(at);
        Ok(settled)
    }
}

/// A list, and one more for each worker.
pub(crate) struct List {
    pub(crate) credit: usize,
}

impl Dialect for List {
    fn open(&self, _: Role, _: Nth) -> Vec<Step> {
        Vec::new()
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Adding::new(&["LPUSH", QUEUE]))
    }

    fn worker(&self, nth: Nth) -> Box<dyn Worker> {
        let own = format!("taken-{nth}");
        let (mut wait, mut more, mut remove) = (Vec::new(), Vec::new(), Vec::new());
        resp::command(&mut wait, ["BLMOVE", QUEUE, &own, "RIGHT", "LEFT", "0"].map(str::as_bytes));
        resp::command(&mut more, ["LMOVE", QUEUE, &own, "RIGHT", "LEFT"].map(str::as_bytes));
        // From its end: the oldest is there, so that it is found at once.
        resp::begin(&mut remove, 4);
        ["LREM", own.as_str(), "-1"].iter().for_each(|one| resp::word(&mut remove, one.as_bytes()));
        Box::new(Moving {
            wait,
            more,
            remove,
            appetite: Appetite::new(self.credit),
            asked: 0,
            taken: 0,
            acks: Vec::new(),
        })
    }

    fn depth(&self) -> Option<Depth> {
        Some(length("LLEN"))
    }
}

/// A worker with a list of its own.
struct Moving {
    wait: Vec<u8>,
    more: Vec<u8>,
    remove: Vec<u8>,
    appetite: Appetite,
    /// Moves that are not answered.
    asked: usize,
    /// Tasks that the answered ones brought.
    taken: usize,
    acks: Vec<u8>,
}

impl Moving {
    fn ask(&mut self, out: &mut Vec<u8>) {
        self.asked = self.appetite.next(self.taken);
        self.taken = 0;
        out.extend_from_slice(&self.wait);
        for _ in 1..self.asked {
            out.extend_from_slice(&self.more);
        }
    }
}

impl Worker for Moving {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.ask(out);
    }

    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed> {
        let (mut at, mut settled) = (0, 0);
        while let Some((reply, length)) = resp::reply(&input[at..])? {
            at += length;
            match reply {
                Reply::Integer(_) => {
                    settled += 1;
                    continue;
                }
                Reply::Bulk(payload) => {
                    self.taken += 1;
                    self.acks.extend_from_slice(&self.remove);
                    resp::word(&mut self.acks, payload);
                    task(payload)?;
                }
                _ => {}
            }
            self.asked -= 1;
            if self.asked == 0 {
                out.append(&mut self.acks);
                self.ask(out);
            }
        }
        input.advance(at);
        Ok(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(worker: &mut dyn Worker, input: &[u8]) -> (u64, Vec<Vec<u8>>, String) {
        let (mut tasks, mut out) = (Vec::new(), Vec::new());
        let settled = worker
            .hear(&mut BytesMut::from(input), &mut out, &mut |payload| {
                tasks.push(payload.to_vec());
                Ok(())
            })
            .expect("replies of a server");
        (settled, tasks, String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn a_stream_is_settled_by_one_command_for_all() {
        let mut worker = Streams { credit: 64 }.worker(0);
        let reply = b"*1\r\n*2\r\n$5\r\nbench\r\n*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\np\r\n$1\r\na\r\n\
                      *2\r\n$3\r\n2-0\r\n*2\r\n$1\r\np\r\n$1\r\nb\r\n";
        let (settled, tasks, out) = heard(worker.as_mut(), reply);
        assert_eq!((settled, tasks), (0, vec![b"a".to_vec(), b"b".to_vec()]));
        assert!(out.starts_with("*5\r\n$4\r\nXACK\r\n") && out.contains("*4\r\n$4\r\nXDEL\r\n"), "{out}");
        assert!(out.contains("XREADGROUP"));
        assert_eq!(heard(worker.as_mut(), b":2\r\n:2\r\n").0, 2);
    }

    #[test]
    fn a_list_asks_for_more_while_more_comes() {
        let mut worker = List { credit: 64 }.worker(3);
        worker.begin(&mut Vec::new());
        let (_, tasks, out) = heard(worker.as_mut(), b"$1\r\na\r\n");
        assert_eq!(tasks, [b"a".to_vec()]);
        assert!(out.contains("LREM") && out.contains("taken-3"));
        assert_eq!(out.matches("LMOVE").count(), 2, "one that waits, and one behind it: {out}");
        let (settled, tasks, out) = heard(worker.as_mut(), b":1\r\n$1\r\nb\r\n$-1\r\n");
        assert_eq!((settled, tasks), (1, vec![b"b".to_vec()]));
        assert_eq!(out.matches("LMOVE").count(), 2, "{out}");
    }
}
