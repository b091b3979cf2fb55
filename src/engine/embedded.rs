//! The engine on this machine's disk: operations become records of the log.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use taskyard_proto::TaskId;
use tokio::sync::Notify;

use super::{Capabilities, Engine, EngineError, Event, Footprint, Opened, records};
use crate::core::{Fetched, StoreOp};
use crate::log::{Bypass, Files, Key, Log, LogError, LogObserver, LogThread, Options, RecordKind, Recovery};

pub use crate::log::LogObserver as Observer;

/// Tasks in a directory. One process at a time has it.
pub struct Embedded {
    thread: LogThread,
    bypass: Bypass,
    changed: Arc<Notify>,
    /// Batches under way: their ticket, and how many operations were committed with them.
    tickets: VecDeque<(u64, u64)>,
    committed: u64,
    told: u64,
    told_full: bool,
    told_failure: bool,
    /// Keys that are no longer needed, until a batch takes them along.
    forget: Vec<Key>,
    /// What the log's reader has brought; the lock is held for a push or a swap.
    fetched: Arc<Mutex<Vec<Result<Fetched, EngineError>>>>,
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
        let (opened, unreadable) = read_all(files, options, visit);
        let (log, recovery) = opened.map_err(|e| at(e.to_string(), e.exit_code()))?;
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
            bypass: thread.bypass(),
            thread,
            changed,
            tickets: VecDeque::new(),
            committed: 0,
            told: 0,
            told_full: false,
            told_failure: false,
            forget: Vec::new(),
            fetched: Arc::default(),
        };
        Ok((engine, opened, recovery))
    }

    fn poll_event(&mut self) -> Option<Event> {
        if let Some(failure) = self.thread.failure()
            && !std::mem::replace(&mut self.told_failure, true)
        {
            // What is damaged now was whole at the start: the store must be looked after before the next one.
            let exit_code = if failure.exit_code() == 3 { 3 } else { 5 };
            return Some(Event::Failed(EngineError { exit_code, ..EngineError::from(&*failure) }));
        }
        let fetched = std::mem::take(&mut *self.fetched.lock().unwrap_or_else(PoisonError::into_inner));
        if !fetched.is_empty() {
            return Some(match fetched.into_iter().collect() {
                Ok(fetched) => Event::Fetched(fetched),
                Err(error) => Event::Failed(error),
            });
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

/// Records on their way from the thread that reads and checks them to the one that understands them.
#[derive(Default)]
struct Chunk {
    bodies: Vec<u8>,
    /// Of each record its key, its number, and where its body ends.
    records: Vec<(Key, u64, usize)>,
}

/// An open log, and what was found.
type Found = (Log<Files>, Recovery);

/// What is handed over at once, and how many of these may wait: enough that neither thread waits for the other at each.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 8;

/// Opens the log; shows `visit` what it holds, and says what it could not.
///
/// Half of a start is reading, sums and the log's own index, the other half is for the core: each has a thread.
fn read_all(
    files: Files,
    options: Options,
    visit: &mut dyn FnMut(StoreOp),
) -> (Result<Found, LogError>, Option<String>) {
    let (chunks, read) = std::sync::mpsc::sync_channel::<Chunk>(CHUNKS);
    std::thread::scope(|scope| {
        let opening = scope.spawn(move || {
            let mut chunk = Chunk::default();
            let opened = Log::open(files, options, &mut |record| {
                if record.kind == RecordKind::Remove {
                    return;
                }
                chunk.bodies.extend_from_slice(record.body);
                chunk.records.push((record.key, record.lsn.0, chunk.bodies.len()));
                if chunk.bodies.len() >= CHUNK_BYTES {
                    // Whoever takes them does so to the end.
                    let _ = chunks.send(std::mem::take(&mut chunk));
                }
            });
            let _ = chunks.send(chunk);
            opened
        });
        let (mut decoder, mut unreadable) = (records::Decoder::default(), None);
        for chunk in read {
            let mut begin = 0;
            for (key, lsn, end) in chunk.records {
                match decoder.decode(key, &chunk.bodies[begin..end]) {
                    Ok(op) => visit(op),
                    Err(error) => {
                        unreadable.get_or_insert_with(|| format!("{error} (record {lsn})"));
                    }
                }
                begin = end;
            }
        }
        (opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), unreadable)
    })
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

    fn hurry(&mut self) {
        self.thread.hurry();
    }

    fn hurry_blocking(&mut self) -> Option<Box<dyn FnOnce() + Send>> {
        let bypass = self.bypass.clone();
        Some(Box::new(move || bypass.hurry()))
    }

    fn fetch(&mut self, tasks: &mut Vec<TaskId>) {
        let (changed, to) = (self.changed.clone(), self.fetched.clone());
        self.thread.fetch(tasks.drain(..).map(|task| task.0).collect(), move |records| {
            let payload = |(key, body): (Key, Option<Vec<u8>>)| {
                let payload = match body.map(|body| records::decode_payload(&body)) {
                    None | Some(Ok(None)) => None,
                    Some(Ok(Some(payload))) => Some(payload),
                    Some(Err(error)) => {
                        return Err(EngineError { message: error.to_string(), exit_code: 3 });
                    }
                };
                Ok(Fetched { task: TaskId(key), payload })
            };
            let some: Vec<_> = records.into_iter().map(payload).collect();
            to.lock().unwrap_or_else(PoisonError::into_inner).extend(some);
            changed.notify_one();
        });
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
        Footprint {
            bytes: stats.bytes,
            live_bytes: stats.live_bytes,
            segments: stats.segments,
            waiting_bytes: self.thread.waiting_bytes(),
        }
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
