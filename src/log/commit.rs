//! Commits what was sent to a log, and sees in time to its upkeep.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::clean::Maintenance;
use super::error::LogError;
use super::fetch::Question;
use super::inbox::{Patience, Sent, Wake};
use super::storage::Storage;
use super::thread::Shared;
use super::writer::{Log, Part};

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

/// At most so many bytes are committed past the log's thread: what takes long to write is for that.
const BYPASS_BYTES_MAX: usize = 64 << 10;
/// And only while syncs take less than this, of the latest ones together: whatever else their thread has to do waits
/// meanwhile. With slower ones the two wake-ups that are saved are next to nothing.
const BYPASS_SYNC_MAX: Duration = Duration::from_micros(500);
/// How much the latest sync counts in that, as a divisor. One that took very long counts as if it had been so many times
/// too slow: it is enough for the thread to have the next ones.
const SYNC_WEIGHT: u32 = 16;

/// Watches commits where they are made, e.g. to time them. Must return quickly.
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

/// Has the log, and knows what is owed to it.
pub(super) struct Committer<S: Storage, O> {
    shared: Arc<Shared>,
    log: Log<S>,
    observer: O,
    /// How long a sync takes, of the latest ones together.
    sync_time: Duration,
    /// What the last step of maintenance left to do.
    upkeep: Maintenance,
    /// Bytes and commits since then.
    owed_bytes: u64,
    commits_since_upkeep: u32,
    /// It is written down that the last commit was durable.
    marked: bool,
    /// What is being committed, kept for its memory.
    taken: Vec<Sent>,
    /// Of readers: where records stand.
    questions: Receiver<Question<S::File>>,
}

impl<S: Storage, O: LogObserver> Committer<S, O> {
    pub(super) fn new(
        shared: Arc<Shared>,
        log: Log<S>,
        observer: O,
        questions: Receiver<Question<S::File>>,
    ) -> Self {
        Committer {
            shared,
            log,
            observer,
            // Until the first ones have shown it.
            sync_time: BYPASS_SYNC_MAX,
            upkeep: Maintenance::More,
            owed_bytes: 0,
            commits_since_upkeep: 0,
            marked: true,
            taken: Vec::new(),
            questions,
        }
    }

    /// How long nothing is to be done by itself.
    pub(super) fn patience(&self) -> Patience {
        match self.upkeep {
            Maintenance::More => Patience::None,
            Maintenance::NoRoom => Patience::For(NO_ROOM_RETRY),
            Maintenance::Elsewhere => Patience::For(IDLE_MARK),
            Maintenance::Done if self.marked => Patience::Endless,
            Maintenance::Done => Patience::For(IDLE_MARK),
        }
    }

    /// Does what there is to do; `false` when it is time to stop.
    pub(super) fn turn(&mut self, wake: Wake) -> Result<bool, LogError> {
        match wake {
            Wake::Arrived => {
                let mut taken = std::mem::take(&mut self.taken);
                if let Some(last_ticket) = self.shared.inbox.take(&mut taken) {
                    self.append_all(&taken)?;
                    self.sync(&mut taken, last_ticket)?;
                    self.answer_readers();
                    if self.is_due() {
                        self.maintain()?;
                    }
                }
                self.taken = taken;
            }
            Wake::Asked => self.answer_readers(),
            Wake::Bypassed => {}
            Wake::TimePassed if self.upkeep == Maintenance::Done => self.mark()?,
            Wake::TimePassed => {
                let rested = self.upkeep != Maintenance::More;
                self.maintain()?;
                // Right behind a commit the next one says so too, for nothing.
                if rested && !self.marked {
                    self.mark()?;
                }
            }
            // What could not be appended past the thread may just have been given back.
            Wake::Stop => return Ok(!self.shared.inbox.is_empty()),
        }
        Ok(true)
    }

    /// Commits what was sent, if the thread whose work that is sleeps and it should not take long; says whether it did.
    /// What cannot be appended is left to the thread; upkeep too, also when it cannot wait.
    pub(super) fn bypass(&mut self) -> Result<bool, LogError> {
        if self.sync_time >= BYPASS_SYNC_MAX || self.is_due() {
            return Ok(false);
        }
        let mut taken = std::mem::take(&mut self.taken);
        // Not the next segment: that takes syncs of its own.
        let fit = |bytes| bytes <= BYPASS_BYTES_MAX && self.log.has_room_for(bytes);
        let Some(last_ticket) = self.shared.inbox.take_past_sleeper(&mut taken, fit) else {
            self.taken = taken;
            return Ok(false);
        };
        match self.log.append_some(&parts(&taken)) {
            Ok(count) => assert_eq!(count, taken.len(), "what fits goes into one batch on disk"),
            Err(error) if self.log.is_poisoned() => return Err(error),
            Err(_) => {
                // The thread meets it again, and has the patience for it.
                self.shared.inbox.give_back(taken);
                return Ok(false);
            }
        }
        self.sync(&mut taken, last_ticket)?;
        self.taken = taken;
        Ok(true)
    }

    /// The end, behind the last turn.
    pub(super) fn end(mut self) -> Result<(), LogError> {
        if self.shared.inbox.is_orderly() {
            return self.log.close();
        }
        // Dropped and not stopped, its owner had more to say: what is written is synced, and
        // the next start knows that this was no orderly end.
        self.log.sync().map(drop)
    }

    /// Whether maintenance cannot wait for a pause.
    fn is_due(&self) -> bool {
        self.owed_bytes >= MAINTAIN_EACH_BYTES
            || matches!(self.upkeep, Maintenance::NoRoom | Maintenance::Elsewhere)
                && self.commits_since_upkeep >= RETRY_COMMITS
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

    fn append_all(&mut self, taken: &[Sent]) -> Result<(), LogError> {
        let parts = parts(taken);
        let mut rest = &parts[..];
        while !rest.is_empty() {
            let count = self.append_with_patience(rest)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Syncs what was appended of `taken`, and all before it; says so, and leaves `taken` empty.
    fn sync(&mut self, taken: &mut Vec<Sent>, last_ticket: u64) -> Result<(), LogError> {
        let records = taken.iter().map(|sent| sent.batch.records() as u64).sum();
        self.observer.sync_begins(records);
        let began = Instant::now();
        self.log.sync()?;
        self.synced_in(began.elapsed());
        self.observer.sync_ended(records);
        self.owed_bytes += taken.iter().map(|sent| sent.batch.bytes() as u64).sum::<u64>();
        self.commits_since_upkeep += 1;
        self.marked = false;
        if self.upkeep == Maintenance::Done {
            // It may have ended the last record of a segment.
            self.upkeep = Maintenance::More;
        }
        // Room first: who waits for it is woken by the same call that tells of the ticket.
        self.shared.recycle(taken);
        self.shared.publish(self.log.stats(), last_ticket);
        Ok(())
    }

    /// A sync took so long.
    fn synced_in(&mut self, took: Duration) {
        let took = took.min(BYPASS_SYNC_MAX * SYNC_WEIGHT);
        self.sync_time = (self.sync_time * (SYNC_WEIGHT - 1) + took) / SYNC_WEIGHT;
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
                    self.shared.set_accepts_new(false);
                    if self.shared.inbox.is_stopping() {
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
        self.shared.set_accepts_new(self.log.accepts_new());
        Ok(())
    }
}

fn parts(taken: &[Sent]) -> Vec<Part<'_>> {
    taken.iter().map(|sent| Part { batch: &sent.batch, forget: &sent.forget }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::record::{RecordBatch, RecordKind};
    use super::super::storage::Files;
    use super::super::writer::{Options, SEGMENT_BYTES_MIN};
    use super::*;

    /// One whose thread sleeps lightly, and that knows that the disk is quick.
    fn committer(place: &tempfile::TempDir) -> Committer<Files, ()> {
        let mut options = Options::new(1, 2);
        options.segment_bytes = SEGMENT_BYTES_MIN;
        let (log, _) = Log::open(Files::at(place.path()).unwrap(), options, &mut |_| {}).unwrap();
        let shared = Arc::new(Shared::new(&log, || {}));
        shared.inbox.sleep_lightly();
        let (_, questions) = std::sync::mpsc::channel();
        Committer { sync_time: Duration::ZERO, ..Committer::new(shared, log, (), questions) }
    }

    fn send(committer: &Committer<Files, ()>, bytes: usize) {
        let mut batch = RecordBatch::new();
        batch.push_with(RecordKind::Put, 1, |body| body.resize(bytes, 7));
        committer.shared.inbox.send(Sent { batch, forget: Vec::new() }, false);
    }

    #[test]
    fn what_takes_long_or_needs_upkeep_is_left_to_the_thread() {
        let place = tempfile::tempdir().unwrap();
        let mut committer = committer(&place);
        assert!(!committer.bypass().unwrap(), "there is nothing");
        send(&committer, 100);
        committer.sync_time = BYPASS_SYNC_MAX;
        assert!(!committer.bypass().unwrap(), "the disk is slow");
        committer.sync_time = Duration::ZERO;
        committer.owed_bytes = MAINTAIN_EACH_BYTES;
        assert!(!committer.bypass().unwrap(), "upkeep is due");
        committer.owed_bytes = 0;
        (committer.upkeep, committer.commits_since_upkeep) = (Maintenance::Elsewhere, RETRY_COMMITS);
        assert!(!committer.bypass().unwrap(), "as it is");
        committer.commits_since_upkeep = 0;
        assert!(committer.bypass().unwrap());
        send(&committer, BYPASS_BYTES_MAX);
        assert!(!committer.bypass().unwrap(), "it is much");
        assert!(committer.turn(Wake::Arrived).unwrap());
        assert!(committer.shared.inbox.is_empty());
        let mut rounds = 0;
        loop {
            committer.sync_time = Duration::ZERO;
            committer.owed_bytes = 0;
            send(&committer, 1000);
            if !committer.bypass().unwrap() {
                break;
            }
            rounds += 1;
        }
        assert!(rounds < SEGMENT_BYTES_MIN / 1000, "a segment is full");
        assert!(committer.turn(Wake::Arrived).unwrap());
        committer.owed_bytes = 0;
        send(&committer, 1000);
        assert!(committer.bypass().unwrap(), "the next one has room");
    }

    /// What a commit past the thread gave back while that was told to stop was never written, and the log marked clean.
    #[test]
    fn what_is_given_back_at_the_stop_is_committed_before_it() {
        let place = tempfile::tempdir().unwrap();
        let mut committer = committer(&place);
        committer.shared.inbox.stop(true);
        let wake = committer.shared.inbox.wait(Patience::None);
        assert!(wake == Wake::Stop);
        send(&committer, 100);
        assert!(committer.turn(wake).unwrap(), "it goes on");
        let wake = committer.shared.inbox.wait(Patience::None);
        assert!(wake == Wake::Arrived && committer.turn(wake).unwrap());
        let wake = committer.shared.inbox.wait(Patience::None);
        assert!(wake == Wake::Stop && !committer.turn(wake).unwrap());
    }

    #[test]
    fn one_slow_sync_is_enough_for_the_thread_to_have_the_next_ones() {
        let place = tempfile::tempdir().unwrap();
        let mut committer = committer(&place);
        for quick in [Duration::ZERO, BYPASS_SYNC_MAX / 2] {
            committer.sync_time = quick;
            committer.synced_in(Duration::from_secs(3600));
            assert!(committer.sync_time >= BYPASS_SYNC_MAX);
            let mut quick_ones = 0;
            while committer.sync_time >= BYPASS_SYNC_MAX {
                committer.synced_in(BYPASS_SYNC_MAX / 4);
                quick_ones += 1;
            }
            assert!((1..=SYNC_WEIGHT).contains(&quick_ones), "{quick_ones}");
        }
    }
}
