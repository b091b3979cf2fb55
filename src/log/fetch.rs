//! Reading records back while the log goes on: on a thread of its own, which asks the log only where they stand.
//!
//! Cleaning may free and overwrite a segment between the answer and the reading. Then what is read is not the record
//! that was meant, which its checksum and key tell, and it is asked for again: cleaning has moved it before.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use super::error::LogError;
use super::index::Location;
use super::record::{Key, Record, RecordKind};
use super::segment::{Sequence, segment_name};
use super::storage::{Storage, StorageFile};
use super::writer::Log;

/// What was read of a key: the body of its living `Put`; none: it has none.
pub type Fetched = (Key, Option<Vec<u8>>);

/// What becomes of what was read.
type Then = Box<dyn FnOnce(Vec<Fetched>) + Send>;

/// Records to read.
pub(super) struct Request {
    pub keys: Vec<Key>,
    pub then: Then,
}

/// A question to the log: where these stand.
pub(super) struct Question<F> {
    keys: Vec<Key>,
    answer: SyncSender<Result<Answer<F>, LogError>>,
}

/// Where some stand, and which are to be asked for again when these are read.
struct Answer<F> {
    stands: Vec<Stand<F>>,
    later: Vec<Key>,
}

/// Where a key's `Put` stands, if it has one.
type Stand<F> = (Key, Option<(Location, Arc<F>)>);

/// Records that lie so close behind each other are read at once, with what is between them.
const GAP_BYTES_MAX: u64 = 16 << 10;

/// How much is read at once, but for a single record that is longer.
const READ_BYTES_MAX: u64 = 1 << 20;

/// Files that the log keeps open for readers, and that one answer names at most: together they are what descriptors
/// are kept for.
const OPEN_MAX: usize = 8;

/// What is read is allocated here, freed by other threads, and only this one can give it back to the system: it does so
/// when nobody has asked for so long, then for twice as long, until it is more than a worker mostly takes for a task.
const REST: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(64);

/// How often a record is asked for again that is not where it was: cleaning comes by once a lap.
const TRIES: usize = 4;

impl<S: Storage> Log<S> {
    /// The body of the living `Put` of `key`; none if it has none.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Corrupt`].
    pub fn fetch(&mut self, key: Key) -> Result<Option<Vec<u8>>, LogError> {
        let Some(location) = self.index.locations(key).next() else { return Ok(None) };
        let bytes = self.read_record(location, key)?;
        Ok(Record::parse(&bytes).map(|record| record.body.to_vec()))
    }

    /// Says where records stand, in files that stay readable.
    pub(super) fn answer(&mut self, question: Question<S::File>) {
        let Question { keys, answer } = question;
        // A reader that is gone needs no answer.
        let _ = answer.send(self.stands(keys));
    }

    fn stands(&mut self, keys: Vec<Key>) -> Result<Answer<S::File>, LogError> {
        let (mut stands, mut later) = (Vec::with_capacity(keys.len()), Vec::new());
        let mut files: Vec<(Sequence, Arc<S::File>)> = Vec::with_capacity(OPEN_MAX);
        for key in keys {
            let Some(location) = self.index.locations(key).next() else {
                stands.push((key, None));
                continue;
            };
            let file = match files.iter().find(|(segment, _)| *segment == location.segment) {
                Some((_, file)) => file.clone(),
                None if files.len() == OPEN_MAX => {
                    later.push(key);
                    continue;
                }
                None => {
                    let file = self.open_for_readers(location.segment)?;
                    files.push((location.segment, file.clone()));
                    file
                }
            };
            stands.push((key, Some((location, file))));
        }
        Ok(Answer { stands, later })
    }

    fn open_for_readers(&mut self, segment: Sequence) -> Result<Arc<S::File>, LogError> {
        if let Some((_, file)) = self.lent.iter().find(|(sequence, _)| *sequence == segment) {
            return Ok(file.clone());
        }
        let name = segment_name(segment);
        let file = Arc::new(self.storage.open(&name).map_err(LogError::io("open", &name))?);
        if self.lent.len() == OPEN_MAX {
            self.lent.remove(0);
        }
        self.lent.push((segment, file.clone()));
        Ok(file)
    }
}

/// What runs on the reader's thread: ends when nobody can ask any more, or the log is gone.
pub(super) struct Reader<F> {
    requests: Receiver<Request>,
    questions: Sender<Question<F>>,
    /// Tells the log that there is a question.
    wake: Box<dyn Fn() + Send>,
}

/// Why a reader has no answer.
enum Unread {
    /// The log has ended.
    Gone,
    Failed(LogError),
}

impl<F: StorageFile + Sync> Reader<F> {
    pub(super) fn new(wake: Box<dyn Fn() + Send>) -> (Self, Sender<Request>, Receiver<Question<F>>) {
        let (ask, requests) = channel();
        let (questions, asked) = channel();
        (Self { requests, questions, wake }, ask, asked)
    }

    /// Reads what is asked for until nobody asks; the failure that ended it, if one did.
    pub(super) fn run(self) -> Option<LogError> {
        let mut rest = None;
        loop {
            let request = match rest {
                Some(rest) => self.requests.recv_timeout(rest),
                None => self.requests.recv().map_err(RecvTimeoutError::from),
            };
            match request {
                Ok(Request { keys, then }) => match self.read(keys) {
                    Ok(fetched) => {
                        then(fetched);
                        rest = Some(REST);
                    }
                    Err(Unread::Gone) => return None,
                    Err(Unread::Failed(error)) => return Some(error),
                },
                Err(RecvTimeoutError::Timeout) => {
                    taskyard_allocator::collect();
                    rest = rest.map(|rest| rest * 2).filter(|rest| *rest <= REST_MAX);
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn ask(&self, keys: Vec<Key>) -> Result<Answer<F>, Unread> {
        let (answer, answered) = sync_channel(1);
        self.questions.send(Question { keys, answer }).map_err(|_| Unread::Gone)?;
        (self.wake)();
        answered.recv().map_err(|_| Unread::Gone)?.map_err(Unread::Failed)
    }

    fn read(&self, mut keys: Vec<Key>) -> Result<Vec<Fetched>, Unread> {
        let mut fetched = Vec::with_capacity(keys.len());
        let mut tries = 0;
        while !keys.is_empty() {
            let Answer { stands, later } = self.ask(std::mem::take(&mut keys))?;
            let (mut there, mut failed) = (Vec::with_capacity(stands.len()), None);
            for (key, stand) in stands {
                match stand {
                    Some((location, file)) => there.push((location, key, file)),
                    None => fetched.push((key, None)),
                }
            }
            there.sort_unstable_by_key(|(location, ..)| (location.segment, location.offset));
            let mut rest = &there[..];
            while !rest.is_empty() {
                let (run, behind) = rest.split_at(run_of(rest));
                rest = behind;
                if let Err(error) = read_run(run, &mut fetched, &mut keys) {
                    failed = Some(error);
                }
            }
            // What was not where it was goes first: it is read, or ends this, before others fail.
            keys.extend(later);
            match failed {
                Some(error) if tries + 1 == TRIES => return Err(Unread::Failed(error)),
                Some(_) => tries += 1,
                None => tries = 0,
            }
        }
        Ok(fetched)
    }
}

/// How many of the first records are read at once.
fn run_of<F>(sorted: &[(Location, Key, Arc<F>)]) -> usize {
    let first = sorted[0].0;
    let near = |pair: &&[(Location, Key, Arc<F>)]| {
        let (before, next) = (pair[0].0, pair[1].0);
        let gap = u64::from(next.offset).saturating_sub(end(before));
        next.segment == first.segment
            && gap <= GAP_BYTES_MAX
            && end(next) - u64::from(first.offset) <= READ_BYTES_MAX
    };
    1 + sorted.windows(2).take_while(near).count()
}

fn end(location: Location) -> u64 {
    u64::from(location.offset) + u64::from(location.bytes)
}

/// Reads records that lie side by side. Keys of which something else was found go into `again`.
fn read_run<F: StorageFile>(
    run: &[(Location, Key, Arc<F>)],
    fetched: &mut Vec<Fetched>,
    again: &mut Vec<Key>,
) -> Result<(), LogError> {
    let (first, last) = (run[0].0, run[run.len() - 1].0);
    let name = segment_name(first.segment);
    let mut bytes = vec![0; super::segment::index(end(last) - u64::from(first.offset))];
    if let Err(source) = run[0].2.read_at(&mut bytes, u64::from(first.offset)) {
        // A file that was cut, or the disk's own error: the last try tells.
        again.extend(run.iter().map(|(_, key, _)| *key));
        return Err(LogError::io("read", &name)(source));
    }
    let mut damaged = None;
    for (location, key, _) in run {
        let begin = (location.offset - first.offset) as usize;
        let encoded = &bytes[begin..begin + location.bytes as usize];
        match Record::parse(encoded) {
            Some(record)
                if record.kind == RecordKind::Put
                    && record.key == *key
                    && record.encoded.len() == encoded.len() =>
            {
                fetched.push((*key, Some(record.body.to_vec())));
            }
            _ => {
                again.push(*key);
                damaged = Some(LogError::Corrupt {
                    file: name.clone(),
                    offset: u64::from(location.offset),
                    lsns: None,
                    what: "a record that was whole before can no longer be read".to_owned(),
                });
            }
        }
    }
    damaged.map_or(Ok(()), Err)
}
