//! Work that is not urgent, in small steps: preparing the next segments, and freeing the oldest.
//!
//! Only the oldest segment is ever freed, and what lives in it is appended again at the head before. So a
//! `Remove` always stands behind everything that it ends, and can simply be dropped when its turn comes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::error::{LogError, is_full};
use super::index::Location;
use super::record::{BATCH_HEADER_BYTES, Key, Record, RecordBatch, RecordKind, Records, batch_bytes};
use super::segment::{FIRST_BATCH_OFFSET, Place, SegmentReader, Sequence, segment_name};
use super::storage::{Storage, StorageFile};
use super::writer::{Log, Part, Spare};

/// What a step of [`Log::maintain`] left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// Nothing.
    Done,
    /// Another step, now or later.
    More,
    /// A segment that is being prepared on another thread: try again after a while.
    Elsewhere,
    /// The next segment, for which there is no room: try again after a while.
    NoRoom,
}

/// The segment after the current one, and a reserve after that for what ends tasks when the disk is full.
///
/// One more is kept of those that are freed: in a steady flow a segment is freed about when the next begins, and if that
/// was just before, its file would be removed, and another one made and zeroed.
pub(super) const SPARES: usize = 2;

/// Zeros written and synced at once. Blocks that were written once make the later fdatasync about twice as fast, as
/// no metadata changes then. Small, so that a commit's own sync never queues behind much of it.
const ZERO_STEP_BYTES: u64 = 256 << 10;

/// Living records moved by one step.
const MOVE_STEP_BYTES: usize = 1 << 20;

/// Bytes of the oldest segment looked at in one step, dead ones included.
const SCAN_STEP_BYTES: u64 = 4 << 20;

/// A file on its way to being a spare: its room is reserved.
pub(super) struct Preparing<F> {
    pub(super) file: F,
    pub(super) name: String,
    number: u32,
    bytes: u64,
    zeroed_bytes: u64,
}

impl<F: StorageFile> Preparing<F> {
    /// Zeroes and syncs the next few bytes; whether that was all.
    fn zero_step(&mut self) -> Result<bool, LogError> {
        static ZEROS: [u8; ZERO_STEP_BYTES as usize] = [0; ZERO_STEP_BYTES as usize];
        let step = ZERO_STEP_BYTES.min(self.bytes - self.zeroed_bytes);
        let zeros = &ZEROS[..super::segment::index(step)];
        self.file.write_at(zeros, self.zeroed_bytes).map_err(LogError::io("write", &self.name))?;
        self.file.sync_data().map_err(LogError::io("sync", &self.name))?;
        self.zeroed_bytes += step;
        Ok(self.zeroed_bytes >= self.bytes)
    }
}

/// A thread that zeroes files. A step of it takes some milliseconds, because the file system writes down each time
/// which blocks are in use now: measured beside commits of 30 us, these would wait for 4 ms.
///
/// It only ever touches the open file that it was given: names are the log's. It ends when the log does.
pub(super) struct Zeroer<F> {
    jobs: SyncSender<Preparing<F>>,
    done: Receiver<(Preparing<F>, Result<(), LogError>)>,
    is_busy: bool,
    /// Dropped with the log; the thread looks after it between steps.
    _log_lives: Arc<()>,
}

impl<F: StorageFile> Zeroer<F> {
    fn start() -> std::io::Result<Self> {
        // One file at a time, so neither side ever waits for room in these.
        let (jobs, work) = sync_channel::<Preparing<F>>(1);
        let (results, done) = sync_channel(1);
        let log_lives = Arc::new(());
        let still_needed = Arc::downgrade(&log_lives);
        let run = move || {
            for mut preparing in work {
                let zeroed = loop {
                    match preparing.zero_step() {
                        Ok(true) => break Ok(()),
                        Ok(false) if still_needed.strong_count() == 0 => return,
                        Ok(false) => {}
                        Err(error) => break Err(error),
                    }
                };
                if results.send((preparing, zeroed)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("taskyard-prepare".to_owned()).spawn(run)?;
        Ok(Self { jobs, done, is_busy: false, _log_lives: log_lives })
    }
}

/// The oldest segment while its living records are moved.
pub(super) struct Cleaning<F> {
    sequence: Sequence,
    reader: SegmentReader<F>,
    /// All batches before are done with.
    offset: u64,
}

impl<S: Storage> Log<S> {
    /// Does one bounded step of the work behind the scenes: prepares the next segment, moves living records out
    /// of the oldest one, or frees that. Takes a few milliseconds at most. To be called between commits, and
    /// until it says [`Maintenance::Done`] when there is nothing else to do.
    ///
    /// # Errors
    /// [`LogError::Io`] when the disk fails, [`LogError::Corrupt`] when a record that should be moved is damaged,
    /// [`LogError::Poisoned`].
    pub fn maintain(&mut self) -> Result<Maintenance, LogError> {
        self.check_poison()?;
        let mut outcome = Maintenance::Done;
        for step in [Self::free_step, Self::prepare_step, Self::move_step] {
            match step(self) {
                Ok(Maintenance::Done) => {}
                Ok(Maintenance::More) => return Ok(Maintenance::More),
                Ok(waits) => outcome = waits,
                Err(error) if error.is_full() && self.poison.is_none() => outcome = Maintenance::NoRoom,
                Err(error) => return Err(error),
            }
        }
        Ok(outcome)
    }

    /// Frees the oldest segment if nothing in it lives.
    fn free_step(&mut self) -> Result<Maintenance, LogError> {
        let Some(oldest) = self.sealed().next().copied() else {
            return Ok(Maintenance::Done);
        };
        if oldest.live_records > 0 {
            return Ok(Maintenance::Done);
        }
        // First it is announced, durably, that the segment no longer counts: a segment that is missing without
        // that was lost. The same sync covers the records that were moved, and those that ended the others.
        self.oldest_segment = oldest.sequence + 1;
        self.write_batch(&[], 0, 0)?;
        self.sync()?;

        self.cleaning = None;
        self.reading = None;
        self.lent.retain(|(sequence, _)| *sequence != oldest.sequence);
        let name = segment_name(oldest.sequence);
        let recycle = self.spares.len() <= SPARES
            && oldest.file_bytes == self.options.segment_bytes
            && self.unfilled != Some(oldest.sequence);
        let freed = if recycle {
            let spare = self.next_spare_name();
            let renamed = self.storage.rename(&name, &spare).map_err(LogError::io("rename", &name));
            self.spares.push(Spare { name: spare, recycled: true, untouched: false });
            renamed
        } else {
            self.storage.remove(&name).map_err(LogError::io("remove", &name))
        };
        // Before anything is written over it, and before the next one goes, so that no gap can appear.
        freed
            .and_then(|()| self.storage.sync_dir().map_err(LogError::io("sync the directory of", &name)))
            .map_err(|error| self.poison(error))?;
        self.index.end_segment();
        self.no_room &= self.spares.len() < SPARES;
        Ok(Maintenance::More)
    }

    /// Brings the next spare segment a step closer.
    fn prepare_step(&mut self) -> Result<Maintenance, LogError> {
        // One more to go on in, where nothing was ever written to what is written now.
        let wanted = SPARES + usize::from(self.is_untouched() && !self.no_better);
        if self.spares.len() >= wanted {
            self.drop_preparing();
            self.no_room = false;
            return Ok(Maintenance::Done);
        }
        if let Some(zeroer) = &mut self.zeroer
            && zeroer.is_busy
        {
            let Ok((preparing, zeroed)) = zeroer.done.try_recv() else {
                return Ok(Maintenance::Elsewhere);
            };
            zeroer.is_busy = false;
            return self.finish_preparing(preparing, zeroed);
        }
        if let Some(zeroer) = &mut self.zeroer
            && let Some(preparing) = self.preparing.take()
        {
            zeroer.is_busy = true;
            if let Err(refused) = zeroer.jobs.try_send(preparing) {
                // That thread is gone; then it is done here.
                let (TrySendError::Full(preparing) | TrySendError::Disconnected(preparing)) = refused;
                self.preparing = Some(preparing);
                self.zeroer = None;
                return Ok(Maintenance::More);
            }
            return Ok(Maintenance::Elsewhere);
        }
        let Some(mut preparing) = self.preparing.take() else {
            return self.begin_preparing();
        };
        match preparing.zero_step() {
            Ok(false) => {
                self.preparing = Some(preparing);
                Ok(Maintenance::More)
            }
            Ok(true) => self.finish_preparing(preparing, Ok(())),
            Err(error) => self.finish_preparing(preparing, Err(error)),
        }
    }

    /// Zeroes files on a thread of its own from now on. If there is none to be had, nothing changes.
    pub(super) fn prepare_elsewhere(&mut self) {
        self.zeroer = Zeroer::start().ok();
    }

    /// Makes a spare of a file that was zeroed, or gives it up.
    fn finish_preparing(
        &mut self,
        preparing: Preparing<S::File>,
        zeroed: Result<(), LogError>,
    ) -> Result<Maintenance, LogError> {
        match zeroed {
            Ok(()) => {}
            // Some file systems reserve room and yet have none when it comes to it.
            Err(error) if error.is_full() => {
                self.preparing = Some(preparing);
                self.drop_preparing();
                return Ok(self.found_no_room());
            }
            Err(error) => return Err(self.poison(error)),
        }
        let spare = spare_name(preparing.number);
        self.storage
            .rename(&preparing.name, &spare)
            .map_err(LogError::io("rename", &preparing.name))
            .and_then(|()| self.storage.sync_dir().map_err(LogError::io("sync the directory of", &spare)))
            .map_err(|error| self.poison(error))?;
        self.spares.push(Spare { name: spare, recycled: false, untouched: false });
        Ok(Maintenance::More)
    }

    fn begin_preparing(&mut self) -> Result<Maintenance, LogError> {
        let number = self.next_spare;
        let name = format!("{number:08}.tmp");
        let made = self
            .storage
            .create(&name)
            .and_then(|file| file.allocate(self.options.segment_bytes).map(|()| file));
        match made {
            Ok(file) => {
                self.next_spare += 1;
                let bytes = self.options.segment_bytes;
                self.preparing = Some(Preparing { file, name, number, bytes, zeroed_bytes: 0 });
                // The room is ours from here on; zeroing it is only for speed.
                self.no_room = false;
                Ok(Maintenance::More)
            }
            Err(source) => {
                // Whether this works or not, the next start removes it.
                let _ = self.storage.remove(&name);
                if is_full(&source) {
                    return Ok(self.found_no_room());
                }
                Err(LogError::io("allocate", name)(source))
            }
        }
    }

    /// The disk has no room for another spare: for one that there must be, or for one that there had better be.
    fn found_no_room(&mut self) -> Maintenance {
        if self.spares.len() >= SPARES {
            self.no_better = true;
            return Maintenance::Done;
        }
        self.no_room = true;
        Maintenance::NoRoom
    }

    /// Gives up the spare that is being prepared; the next start removes what cannot be removed now.
    pub(super) fn drop_preparing(&mut self) {
        if let Some(preparing) = self.preparing.take() {
            let _ = self.storage.remove(&preparing.name);
        }
    }

    fn next_spare_name(&mut self) -> String {
        self.next_spare += 1;
        spare_name(self.next_spare - 1)
    }

    /// Moves some of what lives in the oldest segment to the head, if more than half of the log is dead: then
    /// all moving together writes at most as much again as was written in the first place.
    fn move_step(&mut self) -> Result<Maintenance, LogError> {
        let Some(oldest) = self.sealed().next().copied() else {
            return Ok(Maintenance::Done);
        };
        if !self.cleaning_is_due() {
            return Ok(Maintenance::Done);
        }
        if self.no_room && self.spares.is_empty() {
            // The last room is for what ends tasks.
            return Ok(Maintenance::NoRoom);
        }
        let mut cleaning = match self.cleaning.take() {
            Some(cleaning) if cleaning.sequence == oldest.sequence => cleaning,
            _ => self.begin_cleaning(oldest.sequence)?,
        };
        let moved = self.collect_living(&mut cleaning, oldest.used_bytes)?;
        if moved.is_empty() && cleaning.offset >= oldest.used_bytes {
            return Err(LogError::Corrupt {
                file: cleaning.reader.name,
                offset: cleaning.offset,
                lsns: None,
                what: format!("{} records that should be in this segment are not", oldest.live_records),
            });
        }
        self.cleaning = Some(cleaning);
        if !moved.is_empty() {
            self.append_some(&[Part { batch: &moved, forget: &[] }])?;
        }
        Ok(Maintenance::More)
    }

    /// Whether so much of the log is dead that what lives in its oldest segment is to be moved.
    fn cleaning_is_due(&self) -> bool {
        let sealed_bytes: u64 = self.sealed().map(|segment| segment.used_bytes).sum();
        sealed_bytes > 2 * self.index.live_bytes() + 2 * self.options.segment_bytes
    }

    fn begin_cleaning(&mut self, sequence: Sequence) -> Result<Cleaning<S::File>, LogError> {
        let reader = super::recover::open_segment(&self.storage, &self.store, sequence)?;
        Ok(Cleaning { sequence, reader, offset: FIRST_BATCH_OFFSET })
    }

    /// Gathers the next keys whose `Put` is in the segment, each with all of its `Amend`s wherever they are: only
    /// so do they stay behind it and in order.
    fn collect_living(
        &mut self,
        cleaning: &mut Cleaning<S::File>,
        used_bytes: u64,
    ) -> Result<RecordBatch, LogError> {
        let mut moved = RecordBatch::new();
        let moved_bytes_max = MOVE_STEP_BYTES.min(super::segment::index(self.options.segment_bytes / 4));
        let scan_end = used_bytes.min(cleaning.offset.saturating_add(SCAN_STEP_BYTES));
        while cleaning.offset < scan_end {
            let name = cleaning.reader.name.clone();
            let damaged = |offset, lsns| LogError::Corrupt {
                file: name,
                offset,
                lsns,
                what: "a batch that was whole before can no longer be read".to_owned(),
            };
            let (header, body) = match cleaning.reader.place(cleaning.offset)? {
                Place::Batch(header, body) => (header, body),
                Place::BadBody(header, _) => {
                    return Err(damaged(cleaning.offset, Some((header.first_lsn, header.last_lsn()))));
                }
                Place::BadHeader | Place::End => return Err(damaged(cleaning.offset, None)),
            };
            let mut amended = Vec::new();
            let mut records = Records::new(body);
            loop {
                let offset = cleaning.offset + BATCH_HEADER_BYTES as u64 + records.offset() as u64;
                let Some(record) = records.next() else {
                    break;
                };
                let mut locations = self.index.locations(record.key);
                let lives_here = record.kind == RecordKind::Put
                    && locations.next().is_some_and(|put| {
                        put.segment == cleaning.sequence && u64::from(put.offset) == offset
                    });
                if !lives_here {
                    continue;
                }
                if moved.bytes() >= moved_bytes_max {
                    // The rest of this batch is for the next step, which will pass over what was moved.
                    return Ok(moved);
                }
                amended.clear();
                amended.extend(locations);
                moved.push_encoded(record.encoded);
                for &location in &amended {
                    let bytes = self.read_record(location, record.key)?;
                    moved.push_encoded(&bytes);
                }
            }
            cleaning.offset += batch_bytes(header.body_bytes as usize);
        }
        Ok(moved)
    }

    /// Reads one record and checks that it is the one that the index means.
    pub(super) fn read_record(&mut self, location: Location, key: Key) -> Result<Vec<u8>, LogError> {
        let name = segment_name(location.segment);
        let mut bytes = vec![0; location.bytes as usize];
        let offset = u64::from(location.offset);
        let read = match &self.current {
            Some(current) if current.sequence == location.segment => current.file.read_at(&mut bytes, offset),
            _ => {
                if self.reading.as_ref().is_none_or(|(sequence, _)| *sequence != location.segment) {
                    let file = self.storage.open(&name).map_err(LogError::io("open", &name))?;
                    self.reading = Some((location.segment, file));
                }
                let (_, file) = self.reading.as_ref().expect("it was just opened");
                file.read_at(&mut bytes, offset)
            }
        };
        read.map_err(LogError::io("read", &name))?;
        match Record::parse(&bytes) {
            Some(record) if record.key == key && record.encoded.len() == bytes.len() => Ok(bytes),
            _ => Err(LogError::Corrupt {
                file: name,
                offset,
                lsns: None,
                what: "a record that was whole before can no longer be read".to_owned(),
            }),
        }
    }
}

fn spare_name(number: u32) -> String {
    format!("{number:08}{}", super::recover::SPARE_SUFFIX)
}
