//! beanstalkd: `put`, `reserve`, `delete`. It answers one command of a connection after the other, so a
//! worker writes its deletes, one `reserve` that waits, and behind it as many that do not wait as may
//! be needed.

use std::io::Write as _;
use std::path::PathBuf;

use bytes::{Buf as _, BytesMut};

use crate::Failed;
use crate::drivers::server::{Server, Spec};
use crate::drivers::{Appetite, Depth, Dialect, Nth, Place, Producer, Role, Step, Worker, line, number};

/// When its log is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// There is no log.
    No,
    /// At most every 50 ms.
    Every50Ms,
    Always,
}

pub(crate) async fn start(program: PathBuf, place: &Place, sync: Sync) -> Result<Server, Failed> {
    let spec = Spec::new(program, "beanstalkd", &place.dir)?;
    let port = spec.address.port().to_string();
    let directory = spec.directory.clone();
    let spec = spec.args(["-l", "127.0.0.1", "-p", &port]);
    let spec = match sync {
        Sync::No => spec,
        Sync::Every50Ms => spec.arg("-b").arg(directory).arg("-f50"),
        Sync::Always => spec.arg("-b").arg(directory).arg("-f0"),
    };
    Server::start(spec).await
}

pub(crate) struct Beanstalk {
    pub(crate) credit: usize,
}

impl Dialect for Beanstalk {
    fn open(&self, _: Role, _: Nth) -> Vec<Step> {
        Vec::new()
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Putting)
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(Reserving { appetite: Appetite::new(self.credit), asked: 0, taken: 0, acks: Vec::new() })
    }

    fn depth(&self) -> Option<Depth> {
        Some(Depth { before: Vec::new(), ask: b"stats-tube default\r\n".to_vec(), read: ready })
    }
}

/// The jobs that are ready, of the statistics of a tube.
fn ready(input: &mut BytesMut) -> Result<Option<u64>, Failed> {
    let Some((head, used)) = line(input) else { return Ok(None) };
    let length = number(head.strip_prefix(b"OK ").ok_or("no statistics")?)? as usize;
    let Some(body) = input.get(used..used + length) else { return Ok(None) };
    let text = String::from_utf8_lossy(body);
    let ready = text.lines().find_map(|line| line.strip_prefix("current-jobs-ready: "));
    number(ready.ok_or("statistics without current-jobs-ready")?.as_bytes()).map(Some)
}

struct Putting;

impl Producer for Putting {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        // Priority 0, no delay, ten minutes to run.
        let _ = write!(out, "put 0 0 600 {}\r\n", payload.len());
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }

    fn hear(&mut self, input: &mut BytesMut, _: &mut Vec<u8>) -> Result<u64, Failed> {
        let (mut at, mut confirmed) = (0, 0);
        while let Some((text, used)) = line(&input[at..]) {
            if !text.starts_with(b"INSERTED ") {
                return Err(format!("the server says: {}", String::from_utf8_lossy(text)).into());
            }
            at += used;
            confirmed += 1;
        }
        input.advance(at);
        Ok(confirmed)
    }
}

struct Reserving {
    appetite: Appetite,
    /// Reserves that are not answered.
    asked: usize,
    /// Tasks that the answered ones brought.
    taken: usize,
    acks: Vec<u8>,
}

impl Reserving {
    fn ask(&mut self, out: &mut Vec<u8>) {
        self.asked = self.appetite.next(self.taken);
        self.taken = 0;
        out.extend_from_slice(b"reserve\r\n");
        for _ in 1..self.asked {
            out.extend_from_slice(b"reserve-with-timeout 0\r\n");
        }
    }
}

impl Worker for Reserving {
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
        while let Some((text, used)) = line(&input[at..]) {
            if text == b"DELETED" {
                at += used;
                settled += 1;
                continue;
            }
            if let Some(head) = text.strip_prefix(b"RESERVED ") {
                let space = head.iter().position(|byte| *byte == b' ').ok_or("a job without a length")?;
                let (id, length) = (&head[..space], number(&head[space + 1..])? as usize);
                let Some(payload) = input.get(at + used..at + used + length) else { break };
                if input.len() < at + used + length + 2 {
                    break;
                }
                self.acks.extend_from_slice(b"delete ");
                self.acks.extend_from_slice(id);
                self.acks.extend_from_slice(b"\r\n");
                task(payload)?;
                self.taken += 1;
                at += used + length + 2;
            } else if matches!(text, b"TIMED_OUT" | b"DEADLINE_SOON") {
                at += used;
            } else {
                return Err(format!("the server says: {}", String::from_utf8_lossy(text)).into());
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

    #[test]
    fn jobs_are_deleted_before_more_are_reserved() {
        let mut worker = Beanstalk { credit: 64 }.worker(0);
        worker.begin(&mut Vec::new());
        let (mut out, mut tasks) = (Vec::new(), 0);
        let mut input = BytesMut::from("RESERVED 7 4\r\n\r\n\r\n\r");
        for rest in ["", "\n"] {
            input.extend_from_slice(rest.as_bytes());
            let mut count = |payload: &[u8]| {
                assert_eq!(payload, b"\r\n\r\n");
                tasks += 1;
                Ok(())
            };
            assert_eq!(worker.hear(&mut input, &mut out, &mut count).expect("its answers"), 0);
        }
        assert_eq!(tasks, 1);
        assert_eq!(String::from_utf8_lossy(&out), "delete 7\r\nreserve\r\nreserve-with-timeout 0\r\n");
        let mut input = BytesMut::from("DELETED\r\nNOT_FOUND\r\n");
        assert!(worker.hear(&mut input, &mut out, &mut |_| Ok(())).is_err());
    }

    #[test]
    fn the_depth_is_in_the_statistics() {
        let body = "---\nname: default\ncurrent-jobs-ready: 12\n";
        let mut input = BytesMut::from(format!("OK {}\r\n{body}\r\n", body.len()).as_str());
        assert_eq!(ready(&mut input).expect("statistics"), Some(12));
    }
}
