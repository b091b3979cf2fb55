//! The engine on this machine's disk: operations become records of the log.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Notify;

use super::{Capabilities, Engine, EngineError, Event, Footprint, Opened, records};
use crate::core::StoreOp;
use crate::log::{Files, Key, Log, LogError, LogObserver, LogThread, Options, Recovery};

pub use crate::log::LogObserver as Observer;

/// Tasks in a directory. One process at a time has it.
pub struct Embedded {
    thread: LogThread,
    changed: Arc<Notify>,
    /// Batches under way: their ticket, and how many operations were committed with them.
    tickets: VecDeque<(u64, u64)>,
    committed: u64,
    told: u64,
    told_full: bool,
    told_failure: bool,
    /// Keys that are no longer needed, until a batch takes them along.
    forget: Vec<Key>,
}

/// So many keys to forget are worth a batch of their own.
const FORGET_MAX: usize = 1024;

impl From<&LogError> for EngineError {
    fn from(error: &LogError) -> Self {
        EngineError { message: error.to_string(), exit_code: error.exit_code() }
    }
}

impl Embedded {
    /// Opens the store in `directory`, or makes one, and shows `visit` every operation that it holds,
    /// in order.
    pub fn open(
        directory: &Path,
        segment_bytes: u64,
        observer: impl LogObserver,
        visit: &mut dyn FnMut(StoreOp),
    ) -> Result<(Embedded, Opened, Recovery), EngineError> {
        let at = |message: String, exit_code| EngineError {
            message: format!("{}: {message}", directory.display()),
            exit_code,
        };
        let files = Files::at(directory)
            .map_err(|e| at(format!("{e}: choose one that can be written, with --data-dir"), 5))?;
        let mut options = Options::new(rand::random(), rand::random());
        options.segment_bytes = segment_bytes;
        let mut unreadable = None;
        let (log, recovery) = Log::open(files, options, &mut |record| {
            if record.kind == crate::log::RecordKind::Remove {
                return;
            }
            match records::decode(record.key, record.body) {
                Ok(op) => visit(op),
                Err(error) => {
                    unreadable.get_or_insert_with(|| format!("{error} (record {})", record.lsn.0));
                }
            }
        })
        .map_err(|e| at(e.to_string(), e.exit_code()))?;
        if let Some(message) = unreadable {
            return Err(at(message, 3));
        }
        let opened = Opened {
            clean: recovery.clean,
            // Lease numbers keep 24 bits for it; a store that started 16 million times begins again.
            start: (recovery.start % (1 << 24)) as u32,
            operations: recovery.records,
        };
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        let thread = LogThread::start_observed(log, move || notify.notify_one(), observer)
            .map_err(|e| at(format!("cannot start the log's thread: {e}"), 5))?;
        let engine = Embedded {
            thread,
            changed,
            tickets: VecDeque::new(),
            committed: 0,
            told: 0,
            told_full: false,
            told_failure: false,
            forget: Vec::new(),
        };
        Ok((engine, opened, recovery))
    }

    fn poll_event(&mut self) -> Option<Event> {
        if let Some(failure) = self.thread.failure()
            && !std::mem::replace(&mut self.told_failure, true)
        {
            return Some(Event::Failed(EngineError { exit_code: 5, ..EngineError::from(&*failure) }));
        }
        let durable = self.thread.durable();
        while let Some((ticket, operations)) = self.tickets.front()
            && *ticket <= durable
        {
            self.told = *operations;
            self.tickets.pop_front();
            // Only the last of those that are durable is worth an event.
            if self.tickets.front().is_none_or(|(next, _)| *next > durable) {
                return Some(Event::Stored { through: self.told });
            }
        }
        let full = !self.thread.accepts_new();
        (full != self.told_full).then(|| {
            self.told_full = full;
            Event::Full(full)
        })
    }
}

impl Engine for Embedded {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "embedded", durable: true }
    }

    fn commit(&mut self, ops: &mut Vec<StoreOp>) {
        if ops.is_empty() {
            return;
        }
        let mut batch = self.thread.buffer();
        self.committed += ops.len() as u64;
        for op in ops.drain(..) {
            self.forget.extend(records::encode(&op, &mut batch));
        }
        if batch.is_empty() && self.forget.len() < FORGET_MAX {
            // Nothing to write, so what was committed is as durable as what went before it.
            match self.tickets.back_mut() {
                Some((_, operations)) => *operations = self.committed,
                None => {
                    self.tickets.push_back((self.thread.durable(), self.committed));
                    self.changed.notify_one();
                }
            }
            return;
        }
        let ticket = self.thread.send(batch, std::mem::take(&mut self.forget));
        self.tickets.push_back((ticket, self.committed));
    }

    async fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.poll_event() {
                return event;
            }
            self.changed.notified().await;
        }
    }

    fn has_room(&self) -> bool {
        self.thread.has_room()
    }

    fn footprint(&self) -> Footprint {
        let stats = self.thread.stats();
        Footprint { bytes: stats.bytes, live_bytes: stats.live_bytes, segments: stats.segments }
    }

    async fn stop(self) -> Result<(), EngineError> {
        let stop = tokio::task::spawn_blocking(move || self.thread.stop());
        match stop.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(EngineError { exit_code: 5, ..EngineError::from(&*error) }),
            Err(error) => {
                Err(EngineError { message: format!("the log's thread died: {error}"), exit_code: 5 })
            }
        }
    }
}
