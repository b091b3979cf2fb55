//! The thread that owns a log: takes what has arrived, writes it as one batch, syncs once, says so, repeats.
//!
//! There is no timer in the way of a commit that somebody waits for. While one sync runs the next batch gathers by
//! itself: the slower the disk, the larger the groups. What nobody waits for goes along with the next commit, or
//! makes one of its own after a moment: at a modest rate it would cost as many syncs and wake-ups again.
//!
//! Whoever may block can commit past the thread while that sleeps lightly: [`Bypass`].

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::commit::{Committer, LogObserver};
use super::error::LogError;
use super::fetch::{Fetched, Reader, Request};
use super::inbox::{Inbox, Patience, Sent};
use super::record::{Key, RecordBatch};
use super::storage::Storage;
use super::writer::{Log, LogStats};

/// Bytes that may wait in memory until they are durable. Enough to keep a disk busy during one sync at 1 GB/s
/// and 8 ms; with a disk that stalls, it is what a stall costs.
pub const WAITING_BYTES_MAX: u64 = 8 << 20;

/// Buffers that go back to senders; each keeps at most `SPARE_BUFFER_BYTES`.
const SPARE_BUFFERS: usize = 16;
const SPARE_BUFFER_BYTES: usize = 256 << 10;

/// A log on a thread of its own. Dropping it writes what was sent, but does not mark the log as closed in
/// order: only [`stop`](Self::stop) does.
pub struct LogThread {
    shared: Arc<Shared>,
    desk: Arc<dyn Commit>,
    thread: Option<JoinHandle<()>>,
    /// Reads records back; dropped first, which ends it.
    fetches: Option<Sender<Request>>,
    reader: Option<JoinHandle<()>>,
}

pub(super) struct Shared {
    pub(super) inbox: Inbox,
    waiting_bytes: AtomicU64,
    durable: AtomicU64,
    accepts_new: AtomicBool,
    failure: OnceLock<Arc<LogError>>,
    segments: AtomicU64,
    bytes: AtomicU64,
    live_bytes: AtomicU64,
    live_records: AtomicU64,
    spare_buffers: Mutex<Vec<RecordBatch>>,
    notify: Box<dyn Fn() + Send + Sync>,
}

impl LogThread {
    /// Starts the thread. `notify` is called, there or where a [`Bypass`] commits, after [`durable`](Self::durable),
    /// [`has_room`](Self::has_room), [`accepts_new`](Self::accepts_new) or [`failure`](Self::failure) changed; it
    /// must not block.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start<S: Storage>(log: Log<S>, notify: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        Self::start_observed(log, notify, ())
    }

    /// As [`start`](Self::start), with somebody who watches.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn start_observed<S: Storage>(
        mut log: Log<S>,
        notify: impl Fn() + Send + Sync + 'static,
        observer: impl LogObserver,
    ) -> io::Result<Self> {
        log.prepare_elsewhere();
        let shared = Arc::new(Shared::new(&log, notify));
        let waker = Arc::clone(&shared);
        let (reader, fetches, questions) = Reader::new(Box::new(move || waker.inbox.ask()));
        let of_reader = Arc::clone(&shared);
        let reader = std::thread::Builder::new().name("taskyard-fetch".to_owned()).spawn(move || {
            let _guard = PanicGuard(&of_reader);
            if let Some(error) = reader.run() {
                of_reader.fail(error);
            }
        })?;
        let committer = Committer::new(Arc::clone(&shared), log, observer, questions);
        let desk = Arc::new(Desk { shared: Arc::clone(&shared), committer: Mutex::new(Some(committer)) });
        let of_thread = Arc::clone(&desk);
        let thread =
            std::thread::Builder::new().name("taskyard-log".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, desk, thread: Some(thread), fetches: Some(fetches), reader: Some(reader) })
    }

    /// Hands over a batch, and the keys that are not needed any more once it is appended. Returns a ticket: 1
    /// for the first call, then 2, …; see [`durable`](Self::durable). It is committed within
    /// [`UNAWAITED_DELAY`](super::UNAWAITED_DELAY), or at once if [`hurry`](Self::hurry) is called. Never blocks; ask
    /// [`has_room`](Self::has_room) before. After a failure, what is sent goes nowhere.
    pub fn send(&self, batch: RecordBatch, forget: Vec<Key>) -> u64 {
        let bytes = batch.bytes() as u64;
        let waiting = self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever finds no room waits for it.
        self.shared.inbox.send(Sent { batch, forget }, waiting >= WAITING_BYTES_MAX / 2)
    }

    /// Somebody waits for what was sent: it is committed now.
    pub fn hurry(&self) {
        self.shared.inbox.hurry();
    }

    /// A way past the thread.
    #[must_use]
    pub fn bypass(&self) -> Bypass {
        Bypass { shared: Arc::clone(&self.shared), desk: Arc::clone(&self.desk) }
    }

    /// Reads the living `Put`s of some keys, which must be durable, on a thread for that: `then` is called there with
    /// each of them, in any order. Never blocks; after a failure, nothing is called.
    pub fn fetch(&self, keys: Vec<Key>, then: impl FnOnce(Vec<Fetched>) + Send + 'static) {
        if let Some(fetches) = &self.fetches {
            // A reader that is gone has told why.
            let _ = fetches.send(Request { keys, then: Box::new(then) });
        }
    }

    /// An empty batch, with the memory of one that was written if there is any.
    #[must_use]
    pub fn buffer(&self) -> RecordBatch {
        lock(&self.shared.spare_buffers).pop().unwrap_or_default()
    }

    /// Whether fewer than [`WAITING_BYTES_MAX`] bytes wait for the disk.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.shared.waiting_bytes.load(Ordering::Relaxed) < WAITING_BYTES_MAX
    }

    /// The highest ticket that is on disk, and with it all lower ones.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// As [`Log::accepts_new`].
    #[must_use]
    pub fn accepts_new(&self) -> bool {
        self.shared.accepts_new.load(Ordering::Relaxed)
    }

    /// Why the log stopped, if it did: the process should end with its exit code.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<LogError>> {
        self.shared.failure.get().cloned()
    }

    /// How many bytes wait for the disk.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes.load(Ordering::Relaxed)
    }

    /// How big the log was after the last commit.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        LogStats {
            segments: self.shared.segments.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
            live_bytes: self.shared.live_bytes.load(Ordering::Relaxed),
            live_records: self.shared.live_records.load(Ordering::Relaxed),
        }
    }

    /// Writes what has been sent, closes the log and ends the thread.
    ///
    /// # Errors
    /// What made the log fail, now or before. After an earlier failure it is [`LogError::Poisoned`], with
    /// [`failure`](Self::failure) for the full story.
    pub fn stop(mut self) -> Result<(), Arc<LogError>> {
        self.shut_down(true);
        match self.failure() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn shut_down(&mut self, orderly: bool) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.shared.inbox.stop(orderly);
        self.fetches = None;
        // A panic over there was told by its guard.
        let _ = thread.join();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.shut_down(false);
    }
}

impl Shared {
    pub(super) fn new(log: &Log<impl Storage>, notify: impl Fn() + Send + Sync + 'static) -> Shared {
        let shared = Shared {
            inbox: Inbox::default(),
            waiting_bytes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            accepts_new: AtomicBool::new(log.accepts_new()),
            failure: OnceLock::new(),
            segments: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            live_records: AtomicU64::new(0),
            spare_buffers: Mutex::default(),
            notify: Box::new(notify),
        };
        shared.publish_stats(log.stats());
        shared
    }

    fn fail(&self, error: LogError) {
        // The first failure is the one that tells something.
        let _ = self.failure.set(Arc::new(error));
        self.accepts_new.store(false, Ordering::Relaxed);
        (self.notify)();
    }

    pub(super) fn publish_stats(&self, stats: LogStats) {
        self.segments.store(stats.segments, Ordering::Relaxed);
        self.bytes.store(stats.bytes, Ordering::Relaxed);
        self.live_bytes.store(stats.live_bytes, Ordering::Relaxed);
        self.live_records.store(stats.live_records, Ordering::Relaxed);
    }

    /// All up to `last_ticket` is durable, and the log is this big.
    pub(super) fn publish(&self, stats: LogStats, last_ticket: u64) {
        self.publish_stats(stats);
        self.durable.store(last_ticket, Ordering::Release);
        (self.notify)();
    }

    pub(super) fn set_accepts_new(&self, accepts_new: bool) {
        if self.accepts_new.swap(accepts_new, Ordering::Relaxed) != accepts_new {
            (self.notify)();
        }
    }

    /// What was committed waits no more; its memory goes back to senders.
    pub(super) fn recycle(&self, taken: &mut Vec<Sent>) {
        let bytes: u64 = taken.iter().map(|sent| sent.batch.bytes() as u64).sum();
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut buffers = lock(&self.spare_buffers);
        for sent in taken.drain(..) {
            if buffers.len() < SPARE_BUFFERS {
                let mut batch = sent.batch;
                batch.clear();
                batch.shrink_to(SPARE_BUFFER_BYTES);
                buffers.push(batch);
            }
        }
    }
}

/// No code panics while it holds one of these locks half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the others of a panic with the log: otherwise they would wait for ever.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(LogError::Poisoned { why: "a thread panicked with the log".to_owned() });
        }
    }
}

/// Where the log is, for its thread, and for whoever commits past that.
struct Desk<S: Storage, O> {
    shared: Arc<Shared>,
    /// Whoever has the lock has the log, also while it is written and synced, and puts it back. None once it is closed, or
    /// has failed; after a panic nobody finds it here, and whoever waits for an answer of it does not wait for ever.
    committer: Mutex<Option<Committer<S, O>>>,
}

impl<S: Storage, O: LogObserver> Desk<S, O> {
    fn run(&self) {
        let _guard = PanicGuard(&self.shared);
        let mut patience = Patience::None;
        loop {
            let wake = self.shared.inbox.wait(patience);
            // Whoever panicked with it has told so.
            let Ok(mut desk) = self.committer.lock() else { return };
            let Some(mut committer) = desk.take() else { return };
            let ended = match committer.turn(wake) {
                Ok(true) => {
                    patience = committer.patience();
                    *desk = Some(committer);
                    continue;
                }
                Ok(false) => committer.end(),
                Err(error) => {
                    drop(committer);
                    Err(error)
                }
            };
            if let Err(error) = ended {
                self.shared.fail(error);
            }
            return;
        }
    }
}

/// A desk with any storage.
trait Commit: Send + Sync {
    /// As [`Committer::bypass`].
    fn commit(&self) -> bool;
}

impl<S: Storage, O: LogObserver> Commit for Desk<S, O> {
    fn commit(&self) -> bool {
        // Somebody has it, and looks at what was sent once more before the thread sleeps.
        let Ok(mut desk) = self.committer.try_lock() else { return false };
        let _guard = PanicGuard(&self.shared);
        let Some(mut committer) = desk.take() else { return false };
        match committer.bypass() {
            Ok(committed) => {
                *desk = Some(committer);
                committed
            }
            Err(error) => {
                drop(committer);
                self.shared.fail(error);
                false
            }
        }
    }
}

/// A way past a log's thread: two wake-ups fewer, each of which may take as long as a sync. Clones are of the same log.
#[derive(Clone)]
pub struct Bypass {
    shared: Arc<Shared>,
    desk: Arc<dyn Commit>,
}

impl Bypass {
    /// As [`LogThread::hurry`], for whoever may block for a sync, which may take as long as the disk likes: what was sent is
    /// committed here and now, if the thread sleeps lightly and the latest syncs were quick.
    pub fn hurry(&self) {
        if !self.desk.commit() {
            self.shared.inbox.hurry();
        }
    }
}
