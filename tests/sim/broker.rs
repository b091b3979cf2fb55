//! One life of the broker's process: the real core over the real log, on a disk that forgets.
//!
//! The glue does what the dispatcher, the embedded engine and the log's thread do, one step at a time: a turn
//! applies what has arrived, then expires, then hands what is to be stored to the disk; a write takes all that
//! was handed over meanwhile; its sync ends later. Who drives it decides when each step happens.

use std::collections::VecDeque;

use taskyard::core::shard::Config;
use taskyard::core::{Command, Effects, Fetched, Output, Replay, Shard, Time};
use taskyard::engine::records;
use taskyard::log::{Key, Log, LogError, Maintenance, Options, RecordBatch, RecordKind, SEGMENT_BYTES_MIN};
use taskyard_proto::TaskId;

use crate::disk::SimDisk;
use crate::oracle::Oracle;

pub(crate) struct Broker {
    pub(crate) shard: Shard,
    log: Log<SimDisk>,
    inbox: VecDeque<(u64, Command)>,
    events: VecDeque<Event>,
    fx: Effects,
    /// Handed over, not yet written.
    commits: VecDeque<Commit>,
    /// Written, not yet synced.
    writing: Option<Upto>,
    forget: Vec<Key>,
    /// Whose payloads the core wants back.
    wanted: Vec<TaskId>,
    full: bool,
}

/// All operations up to this one, all of which were handed over up to this turn.
#[derive(Clone, Copy)]
struct Upto {
    through: u64,
    turn: u64,
}

struct Commit {
    batch: RecordBatch,
    forget: Vec<Key>,
    upto: Upto,
}

enum Event {
    Stored(Upto),
    Fetched(Fetched),
    Full(bool),
}

/// What became of an attempt to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Nothing was there to write, or a sync is under way.
    Nothing,
    /// A sync may begin.
    Yes,
    /// There is no room: try again later.
    NoRoom,
}

impl Broker {
    /// Starts the process on what the disk holds.
    pub(crate) fn start(
        disk: SimDisk,
        config: Config,
        now: u64,
        oracle: &mut Oracle,
    ) -> Result<Broker, LogError> {
        let mut options = Options::new(0x7a5c, 0x5eed);
        options.segment_bytes = SEGMENT_BYTES_MIN;
        let mut replay = Replay::new(Shard::new(config));
        let (log, recovery) = Log::open(disk, options, &mut |record| {
            if record.kind != RecordKind::Remove {
                let op = records::decode(record.key, record.body).expect("we wrote it ourselves");
                replay.operation(op);
            }
        })?;
        let mut fx = Effects::default();
        let start = (recovery.start % (1 << 24)) as u32;
        let shard = replay.begin(Time(now), recovery.clean, start, &mut fx);
        let mut broker = Broker {
            shard,
            log,
            inbox: VecDeque::new(),
            events: VecDeque::new(),
            fx,
            commits: VecDeque::new(),
            writing: None,
            forget: Vec::new(),
            wanted: Vec::new(),
            full: false,
        };
        oracle.started(now, recovery.clean, &broker.shard);
        oracle.begin_turn(now);
        // To sessions that wait to be resumed something may be said; they have no socket.
        for output in broker.fx.outputs.drain(..) {
            let to_nobody = matches!(&output, Output::Send { session, .. } if session.0 >= 1 << 63);
            assert!(to_nobody, "at a start there is nobody to talk to: {output:?}");
        }
        broker.hand_over(oracle);
        Ok(broker)
    }

    /// Something reached the process at `now`.
    pub(crate) fn arrive(&mut self, now: u64, command: Command) {
        self.inbox.push_back((now, command));
    }

    pub(crate) fn has_work(&self) -> bool {
        !self.inbox.is_empty() || !self.events.is_empty()
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.shard.next_deadline().map(|at| at.0)
    }

    /// One turn, with at most `limit` of the commands that have arrived.
    pub(crate) fn turn(&mut self, now: u64, limit: usize, oracle: &mut Oracle, outputs: &mut Vec<Output>) {
        oracle.begin_turn(now);
        while let Some(event) = self.events.pop_front() {
            let command = match event {
                Event::Stored(upto) => {
                    oracle.stored(upto.turn);
                    Command::Stored { through: upto.through }
                }
                Event::Fetched(fetched) => Command::Fetched(vec![fetched]),
                Event::Full(full) => Command::StorageFull(full),
            };
            self.apply(now, now, command, oracle, outputs);
        }
        let mut horizon = now;
        for _ in 0..limit {
            let Some((arrived, command)) = self.inbox.pop_front() else { break };
            horizon = arrived;
            self.apply(now, arrived, command, oracle, outputs);
        }
        // What has not been applied yet may be an ack that came in time.
        if self.inbox.is_empty() {
            horizon = now;
        }
        if self.next_deadline().is_some_and(|at| at <= horizon) {
            oracle.expiring(horizon);
            self.shard.expire(Time(horizon), &mut self.fx);
            Self::show(&mut self.fx, oracle, outputs);
        }
        oracle.expired(horizon);
        self.hand_over(oracle);
        oracle.turn_done(&self.shard);
    }

    fn apply(
        &mut self,
        now: u64,
        arrived: u64,
        command: Command,
        oracle: &mut Oracle,
        outputs: &mut Vec<Output>,
    ) {
        self.shard.apply(Time(now), command.clone(), &mut self.fx);
        oracle.input(now, arrived, &command, &self.shard);
        Self::show(&mut self.fx, oracle, outputs);
        oracle.input_done();
    }

    fn show(fx: &mut Effects, oracle: &mut Oracle, outputs: &mut Vec<Output>) {
        for output in fx.outputs.drain(..) {
            oracle.output(&output);
            outputs.push(output);
        }
        fx.hops.clear();
        assert_eq!(fx.missing, None, "the store has what waits");
    }

    /// Hands what is to be stored to the disk.
    fn hand_over(&mut self, oracle: &mut Oracle) {
        self.wanted.append(&mut self.fx.fetch);
        let upto = Upto { through: self.shard.operations(), turn: oracle.turn() };
        let mut batch = RecordBatch::new();
        let any = !self.fx.store.is_empty();
        for op in self.fx.store.drain(..) {
            self.forget.extend(records::encode(&op, &mut batch));
        }
        if !batch.is_empty() {
            return self.commits.push_back(Commit { batch, forget: std::mem::take(&mut self.forget), upto });
        }
        // Nothing to write: it is as durable as what went before it.
        if let Some(last) = self.commits.back_mut() {
            last.upto = upto;
        } else if let Some(writing) = &mut self.writing {
            *writing = upto;
        } else {
            oracle.all_durable();
            if any {
                self.events.push_back(Event::Stored(upto));
            }
        }
    }

    /// Begins to write what was handed over.
    pub(crate) fn write(&mut self) -> Result<Written, LogError> {
        if self.writing.is_some() || self.commits.is_empty() {
            return Ok(Written::Nothing);
        }
        while let Some(commit) = self.commits.front() {
            // A write may fail once; the log puts its end back in order.
            let tried = match self.log.append(&commit.batch) {
                Err(LogError::Io { doing: "write", .. }) => self.log.append(&commit.batch),
                other => other,
            };
            match tried {
                Ok(_) => {}
                Err(LogError::Full) if self.writing.is_some() => break,
                Err(LogError::Full) => {
                    self.set_full(true);
                    return Ok(Written::NoRoom);
                }
                Err(error) => return Err(error),
            }
            let commit = self.commits.pop_front().expect("it is in front");
            for key in commit.forget {
                self.log.forget(key);
            }
            self.writing = Some(commit.upto);
        }
        Ok(Written::Yes)
    }

    /// The sync that began after [`Broker::write`] ends.
    pub(crate) fn sync(&mut self) -> Result<(), LogError> {
        self.log.sync()?;
        if let Some(upto) = self.writing.take() {
            self.events.push_back(Event::Stored(upto));
        }
        Ok(())
    }

    /// How many payloads the core waits for.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Reads a payload that the core waits for, whichever is the `nth`; it comes with a later turn.
    pub(crate) fn fetch(&mut self, nth: usize) -> Result<(), LogError> {
        let task = self.wanted.swap_remove(nth);
        let body = self.log.fetch(task.0)?;
        let payload = body.and_then(|body| records::decode_payload(&body).expect("we wrote it ourselves"));
        self.events.push_back(Event::Fetched(Fetched { task, payload }));
        Ok(())
    }

    /// A step of the work behind the scenes; whether there is more.
    pub(crate) fn maintain(&mut self) -> Result<bool, LogError> {
        let more = self.log.maintain()? == Maintenance::More;
        self.set_full(!self.log.accepts_new());
        Ok(more)
    }

    pub(crate) fn mark(&mut self) -> Result<(), LogError> {
        self.log.mark()
    }

    fn set_full(&mut self, full: bool) {
        if std::mem::replace(&mut self.full, full) != full {
            self.events.push_back(Event::Full(full));
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    /// Stops in order.
    pub(crate) fn stop(
        mut self,
        now: u64,
        oracle: &mut Oracle,
        outputs: &mut Vec<Output>,
    ) -> Result<(), LogError> {
        oracle.begin_turn(now);
        self.shard.last_words(&mut self.fx);
        Self::show(&mut self.fx, oracle, outputs);
        self.hand_over(oracle);
        let wanted = self.shard.operations();
        loop {
            if self.writing.is_none() && self.write()? == Written::NoRoom {
                return Err(LogError::Full);
            }
            self.sync()?;
            while let Some(event) = self.events.pop_front() {
                if let Event::Stored(upto) = event {
                    oracle.stored(upto.turn);
                    let command = Command::Stored { through: upto.through };
                    self.apply(now, now, command, oracle, outputs);
                    self.hand_over(oracle);
                }
            }
            if self.commits.is_empty() {
                break;
            }
        }
        assert!(self.shard.operations() >= wanted, "operations are counted up");
        self.log.close()?;
        oracle.all_durable();
        Ok(())
    }

    /// What the log's index says is alive.
    pub(crate) fn live_records(&mut self) -> u64 {
        // What is only forgotten goes with the next write.
        for key in self.forget.drain(..) {
            self.log.forget(key);
        }
        self.log.stats().live_records
    }

    pub(crate) fn segments(&self) -> u64 {
        self.log.stats().segments
    }
}
