//! The systems that are measured, one file each. A driver says how a server is started, and speaks its
//! protocol without I/O, so that the loops that load it are the same for all: writes are pipelined,
//! reads take all that has come.

pub(crate) mod amqp;
pub(crate) mod bare_floor;
pub(crate) mod beanstalkd;
pub(crate) mod frames;
pub(crate) mod gearman;
pub(crate) mod load;
pub(crate) mod nats;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod resp;
pub(crate) mod server;
pub(crate) mod taskyard;
pub(crate) mod taskyard_wire;

use std::path::PathBuf;

use bytes::BytesMut;

use crate::Failed;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Producer,
    Worker,
}

/// Which connection this is: from 0, among those of its role.
pub(crate) type Nth = usize;

/// How tasks are named to all systems.
pub(crate) const QUEUE: &str = "bench";

/// How a server is to be set up for the load.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Where its store goes.
    pub(crate) dir: PathBuf,
    /// Tasks that one worker may have without an ack.
    pub(crate) credit: usize,
    pub(crate) workers: usize,
    /// Where the protocol leaves it to the worker: each ack is answered, once it is durable.
    pub(crate) acks_answered: bool,
}

/// Looks for the end of an answer; takes it if it is whole.
pub(crate) type Until = Box<dyn Fn(&mut BytesMut) -> Result<bool, Failed> + Send>;

/// Something said, and what to wait for before one goes on.
pub(crate) struct Step {
    pub(crate) send: Vec<u8>,
    pub(crate) until: Until,
}

impl Step {
    pub(crate) fn new(
        send: impl Into<Vec<u8>>,
        until: impl Fn(&mut BytesMut) -> Result<bool, Failed> + Send + 'static,
    ) -> Step {
        Step { send: send.into(), until: Box::new(until) }
    }

    /// Waits for nothing.
    pub(crate) fn say(send: impl Into<Vec<u8>>) -> Step {
        Step::new(send, |_| Ok(true))
    }
}

/// A question for the number of tasks that a server has.
pub(crate) struct Depth {
    pub(crate) before: Vec<Step>,
    pub(crate) ask: Vec<u8>,
    /// The number, once the answer is whole.
    pub(crate) read: fn(&mut BytesMut) -> Result<Option<u64>, Failed>,
}

/// A protocol, as its clients speak it.
pub(crate) trait Dialect: Send + Sync {
    /// What is said once, to a server that is new.
    fn prepare(&self) -> Vec<Step> {
        Vec::new()
    }

    /// What is said first on each connection. A worker that is done with it may be given tasks.
    fn open(&self, role: Role, nth: Nth) -> Vec<Step>;

    /// Two of the same `nth` may share a connection: one submits, the other hears.
    fn producer(&self, nth: Nth) -> Box<dyn Producer>;

    fn worker(&self, nth: Nth) -> Box<dyn Worker>;

    /// None: it cannot be asked.
    fn depth(&self) -> Option<Depth> {
        None
    }
}

/// The submitting side of a connection.
pub(crate) trait Producer: Send {
    fn submit(&mut self, payload: &[u8], out: &mut Vec<u8>);

    /// Called before what was submitted is written.
    fn flush(&mut self, _out: &mut Vec<u8>) {}

    /// Takes what is whole; says how many submits were confirmed.
    fn hear(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Result<u64, Failed>;
}

/// The working side of a connection.
pub(crate) trait Worker: Send {
    /// Asks for the first tasks, where tasks are asked for.
    fn begin(&mut self, _out: &mut Vec<u8>) {}

    /// Takes what is whole; calls `task` with each payload, and writes its ack to `out`. Says how many
    /// acks were answered; where the protocol has no answer, how many are in `out`.
    fn hear(
        &mut self,
        input: &mut BytesMut,
        out: &mut Vec<u8>,
        task: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<u64, Failed>;
}

/// How many tasks a worker asks for that has to ask for each: twice what it got last, within its credit.
/// So it asks for one while little comes, and for all it may have while there is much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appetite {
    credit: usize,
    got: usize,
}

impl Appetite {
    pub(crate) fn new(credit: usize) -> Appetite {
        Appetite { credit, got: 0 }
    }

    pub(crate) fn next(&mut self, got: usize) -> usize {
        self.got = got;
        (self.got * 2).clamp(1, self.credit.max(1))
    }
}

/// The text up to the end of a line, and where the next begins.
pub(crate) fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = input.windows(2).position(|two| two == b"\r\n")?;
    Some((&input[..end], end + 2))
}

/// A number in a server's text.
pub(crate) fn number(text: &[u8]) -> Result<u64, Failed> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("{:?} is no number", String::from_utf8_lossy(text)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appetite_grows_with_what_comes_and_stays_within_the_credit() {
        let mut appetite = Appetite::new(64);
        let asked: Vec<usize> = [0, 1, 2, 4, 64, 3, 0].map(|got| appetite.next(got)).to_vec();
        assert_eq!(asked, [1, 2, 4, 8, 64, 6, 1]);
    }
}
