//! Gearman's background jobs: a submit is confirmed by `JOB_CREATED`, a job is settled by
//! `WORK_COMPLETE`, which has no answer. A worker grabs as many as came last time, and twice that; when
//! none came it sleeps until the server wakes it.

use std::path::PathBuf;

use bytes::{Buf as _, BytesMut};

use crate::Failed;
use crate::drivers::server::{Server, Spec};
use crate::drivers::{Appetite, Dialect, Nth, Place, Producer, QUEUE, Role, Step, Worker};

const CAN_DO: u32 = 1;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_COMPLETE: u32 = 13;
const SUBMIT_JOB_BG: u32 = 18;

const HEAD_BYTES: usize = 12;

pub(crate) async fn start(program: PathBuf, place: &Place) -> Result<Server, Failed> {
    let spec = Spec::new(program, "gearmand", &place.dir)?;
    let port = spec.address.port().to_string();
    let pid = spec.directory.join("pid");
    let spec = spec.args(["-L", "127.0.0.1", "-p", &port, "-q", "builtin", "-l", "stderr", "-P"]).arg(pid);
    Server::start(spec).await
}

pub(crate) struct Gearman {
    pub(crate) credit: usize,
}

/// Appends a request.
fn request(out: &mut Vec<u8>, kind: u32, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>() + parts.len().saturating_sub(1);
    out.extend_from_slice(b"\0REQ");
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(length as u32).to_be_bytes());
    for (nth, part) in parts.iter().enumerate() {
        if nth > 0 {
            out.push(0);
        }
        out.extend_from_slice(part);
    }
}

/// The first response, if it is whole: its kind, and what it says.
fn response(input: &[u8]) -> Result<Option<(u32, &[u8])>, Failed> {
    let Some(head) = input.get(..HEAD_BYTES) else { return Ok(None) };
    if !head.starts_with(b"\0RES") {
        return Err("the server does not speak Gearman's binary protocol".into());
    }
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = word(8) as usize;
    Ok(input.get(HEAD_BYTES..HEAD_BYTES + length).map(|body| (word(4), body)))
}

fn unexpected(kind: u32, body: &[u8]) -> Failed {
    format!("the server sent {kind}: {}", String::from_utf8_lossy(body)).into()
}

impl Dialect for Gearman {
    fn open(&self, role: Role, _: Nth) -> Vec<Step> {
        let mut can_do = Vec::new();
        if role == Role::Worker {
            request(&mut can_do, CAN_DO, &[QUEUE.as_bytes()]);
        }
        vec![Step::say(can_do)]
    }

    fn producer(&self, _: Nth) -> Box<dyn Producer> {
        Box::new(Submitting)
    }

    fn worker(&self, _: Nth) -> Box<dyn Worker> {
        Box::new(Grabbing { appetite: Appetite::new(self.credit), asked: 0, taken: 0, acks: Vec::new() })
    }
}

struct Submitting;

impl Producer for Submitting {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        request(out, SUBMIT_JOB_BG, &[QUEUE.as_bytes(), b"", payload]);
    }

    fn hear(&mut self, input: &mut BytesMut, _: &mut Vec<u8>) -> Result<u64, Failed> {
        let (mut at, mut confirmed) = (0, 0);
        while let Some((kind, body)) = response(&input[at..])? {
            if kind != JOB_CREATED {
                return Err(unexpected(kind, body));
            }
            at += HEAD_BYTES + body.len();
            confirmed += 1;
        }
        input.advance(at);
        Ok(confirmed)
    }
}

struct Grabbing {
    appetite: Appetite,
    /// Grabs that are not answered.
    asked: usize,
    /// Tasks that the answered ones brought.
    taken: usize,
    acks: Vec<u8>,
}

impl Grabbing {
    fn ask(&mut self, out: &mut Vec<u8>) {
        self.asked = self.appetite.next(self.taken);
        self.taken = 0;
        for _ in 0..self.asked {
            request(out, GRAB_JOB, &[]);
        }
    }
}

impl Worker for Grabbing {
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
        while let Some((kind, body)) = response(&input[at..])? {
            at += HEAD_BYTES + body.len();
            match kind {
                // It may come while jobs are still asked for: they tell the same.
                NOOP if self.asked > 0 => continue,
                NOOP => {
                    self.ask(out);
                    continue;
                }
                JOB_ASSIGN => {
                    let mut parts = body.splitn(3, |byte| *byte == 0);
                    let handle = parts.next().unwrap_or_default();
                    let payload = parts.nth(1).ok_or("a job without a payload")?;
                    request(&mut self.acks, WORK_COMPLETE, &[handle, b""]);
                    task(payload)?;
                    self.taken += 1;
                }
                NO_JOB => {}
                _ => return Err(unexpected(kind, body)),
            }
            self.asked -= 1;
            if self.asked == 0 {
                settled += self.taken as u64;
                out.append(&mut self.acks);
                match self.taken {
                    0 => request(out, PRE_SLEEP, &[]),
                    _ => self.ask(out),
                }
            }
        }
        input.advance(at);
        Ok(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        request(&mut out, kind, &[body]);
        out[..4].copy_from_slice(b"\0RES");
        out
    }

    fn kinds(out: &[u8]) -> Vec<u32> {
        let (mut at, mut kinds) = (0, Vec::new());
        while let Some(head) = out.get(at..at + HEAD_BYTES) {
            let word = |from: usize| u32::from_be_bytes(head[from..from + 4].try_into().expect("four bytes"));
            kinds.push(word(4));
            at += HEAD_BYTES + word(8) as usize;
        }
        kinds
    }

    #[test]
    fn a_worker_completes_and_grabs_twice_as_many_or_sleeps() {
        let mut worker = Gearman { credit: 64 }.worker(0);
        worker.begin(&mut Vec::new());
        let mut input = BytesMut::from(said(JOB_ASSIGN, b"H:x:1\0bench\0a\0b").as_slice());
        let mut out = Vec::new();
        let mut task = |payload: &[u8]| {
            assert_eq!(payload, b"a\0b");
            Ok(())
        };
        assert_eq!(worker.hear(&mut input, &mut out, &mut task).expect("a job"), 1);
        assert_eq!(kinds(&out), [WORK_COMPLETE, GRAB_JOB, GRAB_JOB]);
        for (answers, expected) in [
            (vec![said(NO_JOB, b""), said(NOOP, b""), said(NO_JOB, b"")], vec![PRE_SLEEP]),
            (vec![said(NOOP, b"")], vec![GRAB_JOB]),
        ] {
            out.clear();
            let mut input = BytesMut::from(answers.concat().as_slice());
            assert_eq!(worker.hear(&mut input, &mut out, &mut |_| Ok(())).expect("answers"), 0);
            assert_eq!(kinds(&out), expected);
        }
    }
}
