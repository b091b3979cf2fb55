//! The thread that owns a log: takes what has arrived, writes it as one batch, syncs once, says so, repeats.
//!
//! There is no timer in the way of a commit that somebody waits for. While one sync runs the next batch gathers by
//! itself: the slower the disk, the larger the groups. What nobody waits for goes along with the next commit, or
//! makes one of its own after a moment: at a modest rate it would cost as many syncs and wake-ups again.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::clean::Maintenance;
use super::error::LogError;
use super::fetch::{Fetched, Question, Reader, Request};
use super::record::{Key, RecordBatch};
use super::storage::Storage;
use super::writer::{Log, LogStats, Part};

/// Bytes that may wait in memory until they are durable. Enough to keep a disk busy during one sync at 1 GB/s
/// and 8 ms; with a disk that stalls, it is what a stall costs.
pub const WAITING_BYTES_MAX: u64 = 8 << 20;

/// So long at most what nobody waits for stays in memory before it is written and synced. A crash meanwhile is like
/// one before it was said: it was answered to nobody. Long enough that at 1,000 tasks a second most acks share the
/// sync of a later submit.
pub const UNAWAITED_DELAY: Duration = Duration::from_millis(5);

/// After this long without work it is written down that the last batch was durable. Nothing waits for it.
const IDLE_MARK: Duration = Duration::from_millis(50);

/// How often a full disk is asked again: submits resume well within 5 s of room.
const NO_ROOM_RETRY: Duration = Duration::from_millis(500);

/// The same when commits come so often that the time never passes without one: at more than 2 in a second, 8
/// are there within 4 s.
const RETRY_COMMITS: u32 = 8;

/// While commits come without a pause, one step of maintenance is done per this many bytes: a step looks at up
/// to 4 MiB or zeroes 256 KiB, so that cleaning keeps up with any rate of writing.
const MAINTAIN_EACH_BYTES: u64 = 512 << 10;

/// Buffers that go back to senders; each keeps at most `SPARE_BUFFER_BYTES`.
const SPARE_BUFFERS: usize = 16;
const SPARE_BUFFER_BYTES: usize = 256 << 10;

/// Watches commits from the log's thread, e.g. to time them. Must return quickly.
pub trait LogObserver: Send + 'static {
    /// `records` are written and the sync begins.
    fn sync_begins(&mut self, records: u64);
    /// The sync ended well: these `records` are durable.
    fn sync_ended(&mut self, records: u64);
}

impl LogObserver for () {
    fn sync_begins(&mut self, _records: u64) {}
    fn sync_ended(&mut self, _records: u64) {}
}

/// A log on a thread of its own. Dropping it writes what was sent, but does not mark the log as closed in
/// order: only [`stop`](Self::stop) does.
pub struct LogThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Reads records back; dropped first, which ends it.
    fetches: Option<Sender<Request>>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    /// A lock and not a channel: the log takes everything at once with one swap, and a sender learns in the same
    /// moment whether the thread sleeps and needs a wake-up, which costs a system call. Held for a push or a
    /// swap, never during I/O.
    inbox: Mutex<Inbox>,
    arrived: Condvar,
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

#[derive(Default)]
struct Inbox {
    sent: Vec<Sent>,
    /// The ticket of the last batch in `sent`.
    last_ticket: u64,
    /// A reader asks where records stand.
    asked: bool,
    stopping: bool,
    /// The stop is in order: the log may be marked so.
    orderly: bool,
    /// Somebody waits for what is in `sent`.
    awaited: bool,
    /// When the first of `sent` came.
    since: Option<Instant>,
    sleep: Sleep,
}

/// Whether the thread needs a wake-up, which costs a system call.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sleep {
    #[default]
    Awake,
    /// It looks again by itself within [`UNAWAITED_DELAY`].
    Light,
    /// Until it is woken.
    Deep,
}

impl Inbox {
    /// Whether to wake the thread: it sleeps, or sleeps too deeply for what waits to be in time.
    fn needs_wake(&mut self) -> bool {
        let needs = match self.sleep {
            Sleep::Awake => false,
            Sleep::Light => self.awaited || self.asked || self.stopping,
            Sleep::Deep => true,
        };
        if needs {
            self.sleep = Sleep::Awake;
        }
        needs
    }
}

struct Sent {
    batch: RecordBatch,
    forget: Vec<Key>,
}

impl LogThread {
    /// Starts the thread. `notify` is called on it after [`durable`](Self::durable),
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
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            arrived: Condvar::new(),
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
        });
        shared.publish_stats(log.stats());
        let waker = Arc::clone(&shared);
        let wake = move || {
            let mut inbox = waker.inbox();
            inbox.asked = true;
            waker.wake(inbox);
        };
        let (reader, fetches, questions) = Reader::new(Box::new(wake));
        let of_reader = Arc::clone(&shared);
        let reader = std::thread::Builder::new().name("taskyard-fetch".to_owned()).spawn(move || {
            let _guard = PanicGuard(Arc::clone(&of_reader));
            if let Some(error) = reader.run() {
                of_reader.fail(error);
            }
        })?;
        let runner = Runner {
            shared: Arc::clone(&shared),
            log,
            observer,
            upkeep: Maintenance::More,
            owed_bytes: 0,
            commits_since_upkeep: 0,
            marked: true,
            questions,
        };
        let thread =
            std::thread::Builder::new().name("taskyard-log".to_owned()).spawn(move || runner.run())?;
        Ok(Self { shared, thread: Some(thread), fetches: Some(fetches), reader: Some(reader) })
    }

    /// Hands over a batch, and the keys that are not needed any more once it is appended. Returns a ticket: 1
    /// for the first call, then 2, …; see [`durable`](Self::durable). It is committed within [`UNAWAITED_DELAY`], or
    /// at once if [`hurry`](Self::hurry) is called. Never blocks; ask [`has_room`](Self::has_room) before. After a
    /// failure, what is sent goes nowhere.
    pub fn send(&self, batch: RecordBatch, forget: Vec<Key>) -> u64 {
        let bytes = batch.bytes() as u64;
        let waiting = self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut inbox = self.shared.inbox();
        inbox.last_ticket += 1;
        let ticket = inbox.last_ticket;
        if inbox.sent.is_empty() {
            inbox.since = Some(Instant::now());
        }
        inbox.sent.push(Sent { batch, forget });
        // Whoever finds no room waits for it.
        inbox.awaited |= waiting >= WAITING_BYTES_MAX / 2;
        self.shared.wake(inbox);
        ticket
    }

    /// Somebody waits for what was sent: it is committed now.
    pub fn hurry(&self) {
        let mut inbox = self.shared.inbox();
        if !inbox.sent.is_empty() {
            inbox.awaited = true;
            self.shared.wake(inbox);
        }
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
        {
            let mut inbox = self.shared.inbox();
            inbox.stopping = true;
            inbox.orderly = orderly;
        }
        self.shared.arrived.notify_one();
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
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Wakes the thread if what has just been put into the inbox needs that.
    fn wake(&self, mut inbox: MutexGuard<'_, Inbox>) {
        let needs_wake = inbox.needs_wake();
        drop(inbox);
        if needs_wake {
            self.arrived.notify_one();
        }
    }

    fn fail(&self, error: LogError) {
        // The first failure is the one that tells something.
        let _ = self.failure.set(Arc::new(error));
        self.accepts_new.store(false, Ordering::Relaxed);
        (self.notify)();
    }

    fn publish_stats(&self, stats: LogStats) {
        self.segments.store(stats.segments, Ordering::Relaxed);
        self.bytes.store(stats.bytes, Ordering::Relaxed);
        self.live_bytes.store(stats.live_bytes, Ordering::Relaxed);
        self.live_records.store(stats.live_records, Ordering::Relaxed);
    }
}

/// No code panics while it holds one of these locks half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What runs on the thread.
struct Runner<S: Storage, O> {
    shared: Arc<Shared>,
    log: Log<S>,
    observer: O,
    /// What the last step of maintenance left to do.
    upkeep: Maintenance,
    /// Bytes and commits since then.
    owed_bytes: u64,
    commits_since_upkeep: u32,
    /// It is written down that the last commit was durable.
    marked: bool,
    /// Of readers: where records stand.
    questions: Receiver<Question<S::File>>,
}

/// What woke the thread up.
enum Wake {
    Arrived {
        last_ticket: u64,
    },
    /// Only a reader's question.
    Asked,
    TimePassed,
    Stop,
}

/// How long to wait when nothing arrives.
#[derive(Clone, Copy)]
enum Patience {
    None,
    For(Duration),
    Endless,
}

/// Tells the others if the thread ends by a panic: otherwise they would wait for ever.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(LogError::Poisoned { why: "the log's thread panicked".to_owned() });
        }
    }
}

impl<S: Storage, O: LogObserver> Runner<S, O> {
    fn run(mut self) {
        let _guard = PanicGuard(Arc::clone(&self.shared));
        let mut taken = Vec::new();
        let failed = loop {
            match self.turn(&mut taken) {
                Ok(true) => {}
                // Dropped and not stopped, its owner had more to say: what is written is synced, and
                // the next start knows that this was no orderly end.
                Ok(false) if !self.shared.inbox().orderly => break self.log.sync().err(),
                Ok(false) => break self.log.close().err(),
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = failed {
            self.shared.fail(error);
        }
    }

    /// Waits for work and does it; `false` when it is time to stop. `taken` is what senders sent, kept for its
    /// memory.
    fn turn(&mut self, taken: &mut Vec<Sent>) -> Result<bool, LogError> {
        let patience = match self.upkeep {
            Maintenance::More => Patience::None,
            Maintenance::NoRoom => Patience::For(NO_ROOM_RETRY),
            Maintenance::Elsewhere => Patience::For(IDLE_MARK),
            Maintenance::Done if self.marked => Patience::Endless,
            Maintenance::Done => Patience::For(IDLE_MARK),
        };
        match self.wait(patience, taken) {
            Wake::Arrived { last_ticket } => {
                self.commit(taken)?;
                // Room first: who waits for it is woken by the same call that tells of the ticket.
                self.recycle(taken);
                self.publish(last_ticket);
                self.answer_readers();
                self.after_commit()?;
            }
            Wake::Asked => self.answer_readers(),
            Wake::TimePassed if self.upkeep == Maintenance::Done => self.mark()?,
            Wake::TimePassed => {
                let rested = self.upkeep != Maintenance::More;
                self.maintain()?;
                // Right behind a commit the next one says so too, for nothing.
                if rested && !self.marked {
                    self.mark()?;
                }
            }
            Wake::Stop => return Ok(false),
        }
        Ok(true)
    }

    /// Does maintenance that cannot wait for a pause.
    fn after_commit(&mut self) -> Result<(), LogError> {
        self.marked = false;
        self.commits_since_upkeep += 1;
        let due = match self.upkeep {
            Maintenance::NoRoom | Maintenance::Elsewhere => {
                self.commits_since_upkeep >= RETRY_COMMITS || self.owed_bytes >= MAINTAIN_EACH_BYTES
            }
            Maintenance::More | Maintenance::Done => self.owed_bytes >= MAINTAIN_EACH_BYTES,
        };
        if due {
            return self.maintain();
        }
        if self.upkeep == Maintenance::Done {
            // The commit may have ended the last record of a segment.
            self.upkeep = Maintenance::More;
        }
        Ok(())
    }

    fn answer_readers(&mut self) {
        while let Ok(question) = self.questions.try_recv() {
            self.log.answer(question);
        }
    }

    fn mark(&mut self) -> Result<(), LogError> {
        self.marked = true;
        self.log.mark()
    }

    /// Waits until something was sent that is to be committed, time has passed or it is time to stop; takes what was
    /// sent.
    fn wait(&mut self, patience: Patience, taken: &mut Vec<Sent>) -> Wake {
        let until = match patience {
            Patience::For(duration) => Some(Instant::now() + duration),
            Patience::None | Patience::Endless => None,
        };
        let mut inbox = self.shared.inbox();
        loop {
            let now = Instant::now();
            let commit_at = inbox.since.map(|since| since + UNAWAITED_DELAY);
            let due = inbox.awaited || inbox.stopping || commit_at.is_some_and(|at| at <= now);
            if due && !inbox.sent.is_empty() {
                std::mem::swap(&mut inbox.sent, taken);
                (inbox.awaited, inbox.since) = (false, None);
                return Wake::Arrived { last_ticket: inbox.last_ticket };
            }
            if inbox.stopping {
                return Wake::Stop;
            }
            if std::mem::take(&mut inbox.asked) {
                return Wake::Asked;
            }
            if matches!(patience, Patience::None) || until.is_some_and(|until| until <= now) {
                return Wake::TimePassed;
            }
            // While it may soon have to look again, it does so by itself: a sleeper that each ack must wake to tell
            // it of the next time would cost what is to be saved.
            let look_at = match (commit_at, until) {
                (Some(at), _) => Some(at),
                (None, Some(until)) => Some(until.min(now + UNAWAITED_DELAY)),
                (None, None) => None,
            };
            inbox = match look_at {
                Some(at) => {
                    inbox.sleep = Sleep::Light;
                    let waited = self.shared.arrived.wait_timeout(inbox, at.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    inbox.sleep = Sleep::Deep;
                    self.shared.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner)
                }
            };
            inbox.sleep = Sleep::Awake;
        }
    }

    /// Appends and syncs everything in `taken`.
    fn commit(&mut self, taken: &[Sent]) -> Result<(), LogError> {
        let parts: Vec<Part<'_>> =
            taken.iter().map(|sent| Part { batch: &sent.batch, forget: &sent.forget }).collect();
        let mut rest = &parts[..];
        while !rest.is_empty() {
            let count = self.append_with_patience(rest)?;
            rest = &rest[count..];
        }
        let records = taken.iter().map(|sent| sent.batch.records() as u64).sum();
        self.observer.sync_begins(records);
        self.log.sync()?;
        self.observer.sync_ended(records);
        self.owed_bytes += taken.iter().map(|sent| sent.batch.bytes() as u64).sum::<u64>();
        Ok(())
    }

    /// Appends, and waits for room as long as the disk is full: what was sent was promised a place, and senders
    /// hold back by themselves because nothing becomes durable.
    #[expect(
        clippy::disallowed_methods,
        reason = "a full disk gives no sign when it has room: one can only ask again"
    )]
    fn append_with_patience(&mut self, parts: &[Part<'_>]) -> Result<usize, LogError> {
        let mut tried_again = false;
        loop {
            match self.log.append_some(parts) {
                Err(error) if error.is_full() => {
                    self.set_accepts_new(false);
                    if self.shared.inbox().stopping {
                        return Err(error);
                    }
                    std::thread::sleep(NO_ROOM_RETRY);
                    self.answer_readers();
                    self.maintain()?;
                }
                // A write may fail once, as a short write does; the log put its end back in order.
                Err(LogError::Io { doing: "write", .. }) if !tried_again && !self.log.is_poisoned() => {
                    tried_again = true;
                }
                other => return other,
            }
        }
    }

    fn maintain(&mut self) -> Result<(), LogError> {
        self.commits_since_upkeep = 0;
        self.owed_bytes = 0;
        self.upkeep = self.log.maintain()?;
        self.shared.publish_stats(self.log.stats());
        self.set_accepts_new(self.log.accepts_new());
        Ok(())
    }

    fn set_accepts_new(&self, accepts_new: bool) {
        if self.shared.accepts_new.swap(accepts_new, Ordering::Relaxed) != accepts_new {
            (self.shared.notify)();
        }
    }

    fn publish(&self, last_ticket: u64) {
        self.shared.publish_stats(self.log.stats());
        self.shared.durable.store(last_ticket, Ordering::Release);
        (self.shared.notify)();
    }

    fn recycle(&self, taken: &mut Vec<Sent>) {
        let bytes: u64 = taken.iter().map(|sent| sent.batch.bytes() as u64).sum();
        self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut buffers = lock(&self.shared.spare_buffers);
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
