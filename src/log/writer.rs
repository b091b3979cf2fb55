//! The log as its owner drives it: append, sync, close; and the change from one segment to the next.
//!
//! Opening is in `recover`, cleaning in `clean`, the thread in `thread`.

use std::sync::Arc;

use super::clean::{Cleaning, Preparing, SPARES, Zeroer};
use super::error::{LogError, is_full};
use super::index::{Index, Location, Segment};
use super::record::{
    BATCH_HEADER_BYTES, BatchHeader, END_MARK_BYTES, Key, Lsn, RecordBatch, RecordKind, Records, batch_bytes,
};
use super::segment::{FIRST_BATCH_OFFSET, Salt, SegmentHeader, Sequence, segment_name};
use super::storage::{Storage, StorageFile};
use super::store::Store;
use crate::ids::TOUCHED_TOGETHER;

/// How a log is laid out. Segments that are there keep the size they have.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Bytes of a segment file: a multiple of 4096 between [`SEGMENT_BYTES_MIN`] and 1 GiB.
    pub segment_bytes: u64,
    /// Names a new store. An old store keeps its name.
    pub store_uuid: u128,
    /// Seeds the salts of segments: any number that clients cannot guess.
    pub salt_seed: u64,
}

/// Large enough that changing segments does not show, small enough that cleaning frees room soon.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Small segments are for tests; below this, headers outweigh records.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;

const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// A batch bigger than a segment gets a segment of its own size, but offsets in a segment have 32 bits.
const BATCH_BYTES_MAX: u64 = 1 << 30;

/// Several small batches become one on disk up to this many bytes: beyond, one more write costs nothing, and
/// the buffer that they are gathered in stays small.
const GROUP_BYTES_MAX: usize = 4 << 20;

/// A segment that is made at once, without a spare.
pub(super) const NEW_SEGMENT_SUFFIX: &str = ".seg.tmp";

impl Options {
    /// Default sizes.
    #[must_use]
    pub fn new(store_uuid: u128, salt_seed: u64) -> Self {
        Self { segment_bytes: SEGMENT_BYTES_DEFAULT, store_uuid, salt_seed }
    }

    pub(super) fn validate(&self) -> Result<(), LogError> {
        if (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            && self.segment_bytes.is_multiple_of(4096)
        {
            return Ok(());
        }
        Err(LogError::Options {
            what: format!(
                "segment_bytes is {}, must be a multiple of 4096 from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}",
                self.segment_bytes
            ),
        })
    }
}

/// How big the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogStats {
    /// Segments that hold records, with the one being written.
    pub segments: u64,
    /// Bytes of all files, with those prepared ahead.
    pub bytes: u64,
    /// Bytes of the records that are alive, with their headers.
    pub live_bytes: u64,
    /// Records that are alive: `Put`s, and `Amend`s of those.
    pub live_records: u64,
}

/// One RecordBatch and the keys that its sender no longer needs after it.
pub(super) struct Part<'a> {
    pub batch: &'a RecordBatch,
    pub forget: &'a [Key],
}

/// A segmented write-ahead log of keyed records on one directory.
///
/// Every method that fails leaves the log either as it was or poisoned: then all later calls fail too, and only
/// a restart can tell what is on disk.
pub struct Log<S: Storage> {
    pub(super) storage: S,
    /// Held as long as the log lives.
    pub(super) _lock: S::File,
    pub(super) options: Options,
    pub(super) store: Store,
    pub(super) index: Index,
    /// The segment being written; `None` when there was no room for one at the start.
    pub(super) current: Option<Current<S::File>>,
    pub(super) spares: Vec<Spare>,
    /// There is no room for a spare to leave an untouched segment for.
    pub(super) no_better: bool,
    /// The latest segment that was left for a spare and never written to its end: see [`Current::untouched`].
    pub(super) unfilled: Option<Sequence>,
    pub(super) next_spare: u32,
    pub(super) preparing: Option<Preparing<S::File>>,
    /// Where files are zeroed, if not in steps of maintenance.
    pub(super) zeroer: Option<Zeroer<S::File>>,
    pub(super) cleaning: Option<Cleaning<S::File>>,
    /// The last segment, other than the current and the one being cleaned, that a record was read from.
    pub(super) reading: Option<(Sequence, S::File)>,
    /// Segments that were opened for readers lately.
    pub(super) lent: Vec<(Sequence, Arc<S::File>)>,
    pub(super) next_lsn: u64,
    pub(super) next_batch: u64,
    /// Every record up to here is on disk.
    pub(super) durable: u64,
    /// The `durable_upto` of the last batch that was written.
    pub(super) announced: u64,
    pub(super) oldest_segment: Sequence,
    /// The next segment could not be prepared for want of room.
    pub(super) no_room: bool,
    /// The failure after which nothing is done any more.
    pub(super) poison: Option<String>,
    /// One batch as it goes to disk; kept for its memory.
    pub(super) buffer: Vec<u8>,
}

/// The segment that is written to.
pub(super) struct Current<F> {
    pub file: F,
    pub name: String,
    pub sequence: Sequence,
    pub salt: Salt,
    /// Where the next batch goes.
    pub offset: u64,
    pub file_bytes: u64,
    /// Written since the last sync.
    pub dirty: bool,
    /// Its room is reserved, but nothing was ever written there: the file system writes down with each sync which blocks are
    /// in use now.
    pub untouched: bool,
}

impl<F> Current<F> {
    fn has_room_for(&self, bytes: u64) -> bool {
        self.file_bytes - self.offset >= bytes
    }
}

/// A file of `segment_bytes` bytes that is ready to become a segment.
pub(super) struct Spare {
    pub name: String,
    /// It held a segment before.
    pub recycled: bool,
    /// It is no spare that was zeroed, but was made in a hurry: see [`Current::untouched`].
    pub untouched: bool,
}

impl<S: Storage> Log<S> {
    /// Appends all records of `batch` behind all others, in order, and returns the number of the last one.
    ///
    /// They are readable by the next `open` if only the process dies, and durable after [`sync`](Self::sync).
    /// All or none of them are there after a crash.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room, [`LogError::TooBig`], [`LogError::Io`]: then nothing was
    /// appended. [`LogError::Poisoned`] after a failure that cannot be undone.
    pub fn append(&mut self, batch: &RecordBatch) -> Result<Lsn, LogError> {
        self.append_some(&[Part { batch, forget: &[] }])?;
        Ok(Lsn(self.next_lsn - 1))
    }

    /// Appends as many of `parts`, which are not empty, as go into one batch on disk: at least one. Returns how
    /// many.
    pub(super) fn append_some(&mut self, parts: &[Part<'_>]) -> Result<usize, LogError> {
        self.check_poison()?;
        let room = self.current.as_ref().map_or(0, |current| current.file_bytes - current.offset);
        let mut body_bytes = 0;
        let mut records = 0;
        let mut count = 0;
        for part in parts {
            let with_part = body_bytes + part.batch.bytes();
            let fits = with_part <= GROUP_BYTES_MAX && batch_bytes(with_part) <= room;
            if count > 0 && !fits {
                break;
            }
            body_bytes = with_part;
            records += part.batch.records();
            count += 1;
        }
        let parts = &parts[..count];
        if records > 0 {
            let written = self.write_batch(parts, body_bytes, records);
            self.no_room |= written.as_ref().is_err_and(LogError::is_full);
            written?;
        } else {
            for part in parts {
                self.forget_all(part.forget);
            }
        }
        Ok(count)
    }

    /// Whether so many bytes of records go into the segment that is written now.
    pub(super) fn has_room_for(&self, body_bytes: usize) -> bool {
        self.current.as_ref().is_some_and(|current| current.has_room_for(batch_bytes(body_bytes)))
    }

    /// Makes all that was appended durable, and returns the number of the last durable record.
    ///
    /// # Errors
    /// [`LogError::Io`] when the disk fails: then the log is poisoned, because what the disk kept is unknown and
    /// a second try would only pretend to know. [`LogError::Poisoned`] after that.
    pub fn sync(&mut self) -> Result<Lsn, LogError> {
        self.check_poison()?;
        if let Some(current) = &mut self.current
            && current.dirty
        {
            match current.file.sync_data() {
                Ok(()) => current.dirty = false,
                Err(source) => {
                    let error = LogError::io("sync", &current.name)(source);
                    return Err(self.poison(error));
                }
            }
        }
        self.durable = self.next_lsn - 1;
        Ok(Lsn(self.durable))
    }

    /// Says that nobody needs the records of `key` any more, without writing so. They may be visited again after
    /// a restart; then the owner forgets them again.
    pub fn forget(&mut self, key: Key) {
        self.index.forget(key);
    }

    fn forget_all(&mut self, keys: &[Key]) {
        for some in keys.chunks(TOUCHED_TOGETHER) {
            self.index.touch(some.iter().copied());
            for &key in some {
                self.index.forget(key);
            }
        }
    }

    /// Writes down that everything synced is durable, if no later batch has said so: from then on, damage to
    /// the last records is known for damage, and not taken for the torn end of a crash. Needs no sync.
    ///
    /// # Errors
    /// [`LogError::Io`] when the disk fails, [`LogError::Poisoned`].
    pub fn mark(&mut self) -> Result<(), LogError> {
        self.check_poison()?;
        let has_room = self.current.as_ref().is_some_and(|current| current.has_room_for(batch_bytes(0)));
        if self.announced < self.durable && has_room {
            self.write_batch(&[], 0, 0)?;
        }
        Ok(())
    }

    /// Whether new work may be taken in: `false` from when the next segment cannot be prepared for want of room
    /// until it can. What ends work can be appended still, into the current segment and one kept in reserve.
    #[must_use]
    pub fn accepts_new(&self) -> bool {
        !self.no_room && self.poison.is_none()
    }

    /// The number of the last record that is on disk for good.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable)
    }

    /// Syncs everything and writes down that nothing is missing.
    ///
    /// # Errors
    /// As [`sync`](Self::sync). Whatever was durable still is.
    pub fn close(mut self) -> Result<(), LogError> {
        self.sync()?;
        self.drop_preparing();
        self.store.clean = true;
        match self.write_store_making_room() {
            // Everything is durable. Without room for the mark, the next start is one after a crash.
            Err(error) if error.is_full() => Ok(()),
            other => other,
        }
    }

    /// How big the log is now.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let segments = self.index.segments();
        let spares = self.spares.len() as u64 * self.options.segment_bytes;
        LogStats {
            segments: segments.len() as u64,
            bytes: segments.iter().map(|segment| segment.file_bytes).sum::<u64>() + spares,
            live_bytes: self.index.live_bytes(),
            live_records: self.index.live_records(),
        }
    }

    /// Writes one batch on disk that has all records of `parts`, and notes them in the index.
    pub(super) fn write_batch(
        &mut self,
        parts: &[Part<'_>],
        body_bytes: usize,
        records: usize,
    ) -> Result<(), LogError> {
        let total = batch_bytes(body_bytes);
        if total > BATCH_BYTES_MAX {
            return Err(LogError::TooBig { bytes: total, bytes_max: BATCH_BYTES_MAX });
        }
        let has_room = self.current.as_ref().is_some_and(|current| current.has_room_for(total));
        // The first segment of a store is there before any spare is: what comes next is cheaper to sync. Not at the cost of
        // a spare that there must be.
        let has_better = records > 0 && self.is_untouched() && self.spares.len() > SPARES;
        if !has_room || has_better {
            let left = self.current.as_ref().filter(|_| has_room).map(|current| current.sequence);
            self.begin_segment(total)?;
            self.unfilled = left.or(self.unfilled);
        }
        let current = self.current.as_mut().expect("there is one, or beginning it failed");
        let header = BatchHeader {
            body_bytes: 0,
            body_crc: 0,
            number: self.next_batch,
            first_lsn: self.next_lsn,
            durable_upto: self.durable,
            records: u32::try_from(records).expect("a gigabyte of records is fewer than four billion"),
            oldest_segment: self.oldest_segment,
        };
        self.buffer.clear();
        self.buffer.resize(BATCH_HEADER_BYTES, 0);
        for part in parts {
            self.buffer.extend_from_slice(part.batch.encoded());
        }
        let sealed = header.seal(current.salt, &self.buffer[BATCH_HEADER_BYTES..]);
        self.buffer[..BATCH_HEADER_BYTES].copy_from_slice(&sealed.encode(current.salt));
        let mark_bytes = (current.file_bytes - current.offset - total).min(END_MARK_BYTES as u64);
        self.buffer.resize(usize::try_from(total + mark_bytes).expect("at most a gigabyte"), 0);

        current.dirty = true;
        if let Err(source) = current.file.write_at(&self.buffer, current.offset) {
            return Err(self.undo_write(source));
        }

        let first_record = current.offset + BATCH_HEADER_BYTES as u64;
        current.offset += total;
        let newest = self.index.newest_mut().expect("the current segment");
        newest.used_bytes = current.offset;
        let sequence = current.sequence;
        self.next_lsn += records as u64;
        self.next_batch += 1;
        self.announced = self.durable;
        let mut offset = first_record;
        for part in parts {
            note_records(&mut self.index, sequence, offset, part.batch.encoded(), |_, _, _, _| {});
            offset += part.batch.bytes() as u64;
            // Before the next part: that one may begin a forgotten key anew.
            self.forget_all(part.forget);
        }
        if self.buffer.capacity() > 2 * GROUP_BYTES_MAX {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// After a failed write, which may have left any part of the batch or all of it: puts the end mark back, so
    /// that what was refused is not found after a crash. Returns the error to report.
    fn undo_write(&mut self, source: std::io::Error) -> LogError {
        let current = self.current.as_ref().expect("it was just written to");
        let room = current.file_bytes - current.offset;
        let header = [0; BATCH_HEADER_BYTES];
        let mark = &header[..BATCH_HEADER_BYTES.min(usize::try_from(room).unwrap_or(BATCH_HEADER_BYTES))];
        let undone = current.file.write_at(mark, current.offset);
        let error = LogError::io("write", &current.name)(source);
        match undone {
            Ok(()) if error.is_full() => LogError::Full,
            Ok(()) => error,
            Err(_) => self.poison(error),
        }
    }

    /// Whether nothing was ever written to the room of the segment that is written now: see [`Current::untouched`].
    pub(super) fn is_untouched(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.untouched)
    }

    /// Seals the current segment and begins the next, with room for a batch of `batch_total` bytes.
    ///
    /// The order matters. All of the old segment is durable before the new one exists, so that only the last
    /// segment can have a torn end; and a segment has its final name only with a valid header in it.
    pub(super) fn begin_segment(&mut self, batch_total: u64) -> Result<(), LogError> {
        self.sync()?;
        let sequence = self.newest_sequence() + 1;
        let needed = FIRST_BATCH_OFFSET + batch_total;
        let (file, spare, file_bytes) = if needed <= self.options.segment_bytes {
            let (file, spare) = self.take_spare(sequence)?;
            (file, spare, self.options.segment_bytes)
        } else {
            let file_bytes = needed.next_multiple_of(4096);
            let (file, spare) = self.make_file(sequence, file_bytes)?;
            (file, spare, file_bytes)
        };
        let header = SegmentHeader {
            store_uuid: self.store.uuid,
            sequence,
            first_lsn: self.next_lsn,
            first_batch: self.next_batch,
            oldest_segment: self.oldest_segment,
            salt: salt(self.options.salt_seed, sequence, self.store.starts),
            recycled: spare.recycled,
        };
        file.write_at(&header.encode(), 0).map_err(LogError::io("write", &spare.name))?;
        let name = segment_name(sequence);
        let made_durable = file
            .sync_data()
            .map_err(LogError::io("sync", &spare.name))
            .and_then(|()| {
                self.storage.rename(&spare.name, &name).map_err(LogError::io("rename", &spare.name))
            })
            .and_then(|()| self.storage.sync_dir().map_err(LogError::io("sync the directory of", &name)));
        made_durable.map_err(|error| self.poison(error))?;

        self.index.begin_segment(sequence, FIRST_BATCH_OFFSET, file_bytes);
        self.current = Some(Current {
            file,
            name,
            sequence,
            salt: header.salt,
            offset: FIRST_BATCH_OFFSET,
            file_bytes,
            dirty: false,
            untouched: spare.untouched,
        });
        self.announced = self.durable;
        self.store.last_segment = sequence;
        match self.write_store() {
            // `STORE` helps to notice that the newest segment was taken away. On a full disk that can wait;
            // going on to write what ends tasks cannot.
            Err(error) if error.is_full() => Ok(()),
            other => other,
        }
    }

    /// A file of `segment_bytes`: prepared, being prepared, or made now.
    fn take_spare(&mut self, sequence: Sequence) -> Result<(S::File, Spare), LogError> {
        if let Some(spare) = self.spares.pop() {
            let file = self.storage.open(&spare.name).map_err(LogError::io("open", &spare.name))?;
            return Ok((file, spare));
        }
        if let Some(preparing) = self.preparing.take() {
            return Ok((preparing.file, Spare { name: preparing.name, recycled: false, untouched: true }));
        }
        self.make_file(sequence, self.options.segment_bytes)
    }

    fn make_file(&self, sequence: Sequence, bytes: u64) -> Result<(S::File, Spare), LogError> {
        // Not the name of any spare that may be in the making: creating a file empties the one that is there.
        let name = format!("{sequence:08}{NEW_SEGMENT_SUFFIX}");
        let made = self.storage.create(&name).and_then(|file| file.allocate(bytes).map(|()| file));
        match made {
            Ok(file) => Ok((file, Spare { name, recycled: false, untouched: true })),
            Err(source) => {
                // Whether this works or not, the next start removes it.
                let _ = self.storage.remove(&name);
                Err(if is_full(&source) { LogError::Full } else { LogError::io("allocate", name)(source) })
            }
        }
    }

    pub(super) fn newest_sequence(&self) -> Sequence {
        let newest = self.index.segments().back().map_or(0, |segment| segment.sequence);
        newest.max(self.store.last_segment)
    }

    /// All segments but the one being written.
    pub(super) fn sealed(&self) -> impl Iterator<Item = &Segment> {
        let current = self.current.as_ref().map(|current| current.sequence);
        self.index.segments().iter().filter(move |segment| Some(segment.sequence) != current)
    }

    pub(super) fn write_store(&mut self) -> Result<(), LogError> {
        self.store.durable_floor = self.durable;
        self.store.oldest_segment = self.oldest_segment;
        match self.store.write(&self.storage) {
            Err(error) if !error.is_full() => Err(self.poison(error)),
            other => other,
        }
    }

    /// As `write_store`, and on a full disk takes the room of a spare.
    pub(super) fn write_store_making_room(&mut self) -> Result<(), LogError> {
        loop {
            match self.write_store() {
                Err(error) if error.is_full() => {
                    let Some(spare) = self.spares.pop() else {
                        return Err(error);
                    };
                    self.storage.remove(&spare.name).map_err(LogError::io("remove", &spare.name))?;
                }
                other => return other,
            }
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.is_some()
    }

    pub(super) fn check_poison(&self) -> Result<(), LogError> {
        match &self.poison {
            Some(why) => Err(LogError::Poisoned { why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Stops trusting the disk, because of `error`.
    pub(super) fn poison(&mut self, error: LogError) -> LogError {
        self.poison = Some(error.to_string());
        error
    }
}

/// Notes all records of a valid batch in the index, and shows each to `see`: its place in the batch, kind, key
/// and body.
/// Returns how many there were and whether they filled the body exactly.
pub(super) fn note_records(
    index: &mut Index,
    segment: Sequence,
    first_record: u64,
    body: &[u8],
    mut see: impl FnMut(u64, RecordKind, Key, &[u8]),
) -> (u64, bool) {
    let mut records = Records::new(body);
    let mut ahead = Records::new(body);
    let mut count = 0;
    loop {
        if count % TOUCHED_TOGETHER as u64 == 0 {
            index.touch(ahead.by_ref().take(TOUCHED_TOGETHER).map(|record| record.key));
        }
        let offset = first_record + records.offset() as u64;
        let Some(record) = records.next() else {
            break;
        };
        let location = Location {
            segment,
            offset: u32::try_from(offset).expect("segments are smaller than 4 GiB"),
            bytes: u32::try_from(record.encoded.len()).expect("at most 17 MiB"),
        };
        let lives = index.apply(record.kind, record.key, location);
        // An amendment of nothing is what remains of a key that was forgotten: nobody can use it.
        if lives || record.kind != RecordKind::Amend {
            see(count, record.kind, record.key, record.body);
        }
        count += 1;
    }
    (count, records.offset() == body.len())
}

/// A number for each segment ever made, also when a start made one and crashed before it counted.
pub(super) fn salt(seed: u64, sequence: Sequence, starts: u64) -> Salt {
    let mut mixed = seed ^ u64::from(sequence).rotate_left(32) ^ starts.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    // splitmix64's finish.
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    Salt(mixed ^ (mixed >> 31))
}
