//! Opening a log: visiting what is there, telling a torn end from damage, and leaving everything ready to write.
//!
//! Nothing is modified before all of it was judged. FORMAT.md tells the rules and why.

use super::check::finish_repair;
use super::error::LogError;
use super::index::Index;
use super::record::{BatchHeader, Key, Lsn, RecordKind};
use super::segment::{
    FIRST_BATCH_OFFSET, Place, SegmentReader, Sequence, parse_numbered, parse_segment_name, segment_name,
};
use super::storage::{Access, Storage, StorageFile};
use super::store::{STORE_NAME, Store};
use super::writer::{Current, Log, NEW_SEGMENT_SUFFIX, Options, Spare, note_records};

/// One record, as `open` finds it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RecoveredRecord<'a> {
    /// What it does to its key.
    pub kind: RecordKind,
    /// What it is about.
    pub key: Key,
    /// Its number. A record that cleaning moved has a new one.
    pub lsn: Lsn,
    /// What was appended.
    pub body: &'a [u8],
}

/// What `open` found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recovery {
    /// The log was closed before, rather than cut off.
    pub clean: bool,
    /// The unfinished end that was cut off. It held nothing that was confirmed as durable.
    pub torn_tail: Option<TornTail>,
    /// Records that were read.
    pub records: u64,
    /// Bytes of those records, with their headers.
    pub bytes: u64,
    /// Segments that were read.
    pub segments: u64,
    /// Grows with every start of this store.
    pub start: u64,
    /// The name that the store got when it was made.
    pub store_uuid: u128,
}

/// The end of the last segment that a crash left unfinished.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TornTail {
    /// The segment's file.
    pub file: String,
    /// Where the unfinished part begins.
    pub offset: u64,
    /// How many bytes were cut.
    pub bytes: u64,
    /// What is wrong with them.
    pub what: String,
    /// The file with a copy of them; `None` if there was no room for it, then they stay where they were.
    pub kept: Option<String>,
}

/// Copies of torn ends that are kept: enough to look into a bad night, little enough to forget about.
const TORN_COPIES_MAX: usize = 8;

const LOCK_NAME: &str = "LOCK";

impl<S: Storage> Log<S> {
    /// Opens the log in `storage`, or makes a new one in an empty directory. Shows every record that it holds to
    /// `visit`, oldest first, also those that a later one ended or replaced: the caller folds them. All that is
    /// visited is durable when this returns.
    ///
    /// # Errors
    /// [`LogError::Locked`], [`LogError::Corrupt`], [`LogError::Newer`], [`LogError::Options`] before anything was
    /// modified; [`LogError::Io`] and [`LogError::Full`] when the disk refuses. After an error, what was visited
    /// counts for nothing.
    pub fn open(
        storage: S,
        options: Options,
        visit: &mut dyn FnMut(RecoveredRecord<'_>),
    ) -> Result<(Self, Recovery), LogError> {
        options.validate()?;
        let lock = take_lock(&storage, Access::Write)?;
        let mut names = list(&storage)?;
        let mut store = Store::read(&storage, &names)?;
        if let Some(store) = store.filter(|store| store.repaired) {
            finish_repair(&storage, &store, &names)?;
            names = list(&storage)?;
        }
        let directory = Directory::sort(&names, store.map_or(0, |store| store.oldest_segment));
        directory.check_against(store.as_ref())?;
        let is_new = store.is_none();
        let store = store.get_or_insert(Store {
            uuid: options.store_uuid,
            starts: 0,
            durable_floor: 0,
            last_segment: 0,
            oldest_segment: 1,
            clean: false,
            repaired: false,
        });

        let mut index = Index::default();
        let found = visit_all(&storage, store, &directory, &mut index, visit)?;

        // From here on things are changed.
        let mut log = Self {
            storage,
            _lock: lock,
            options,
            store: *store,
            index,
            current: None,
            spares: Vec::new(),
            no_better: false,
            unfilled: None,
            next_spare: 1,
            preparing: None,
            zeroer: None,
            cleaning: None,
            reading: None,
            lent: Vec::new(),
            next_lsn: found.walk.next_lsn,
            next_batch: found.walk.next_batch,
            durable: found.walk.next_lsn - 1,
            announced: found.walk.next_lsn - 1,
            oldest_segment: found.walk.oldest_segment,
            no_room: false,
            poison: None,
            buffer: Vec::new(),
        };
        let clean = is_new || (log.store.clean && found.torn.is_none());
        let segments = directory.segments.len() as u64;
        let torn_tail = log.settle_end(found.last, found.torn, clean)?;
        log.clear_away(&directory)?;
        log.store.starts += 1;
        log.store.clean = false;
        log.store.repaired = false;
        log.write_store_making_room()?;
        if log.current.is_none() {
            log.begin_first_segment()?;
        }
        let recovery = Recovery {
            clean,
            torn_tail,
            records: found.records,
            bytes: found.bytes,
            segments,
            start: log.store.starts,
            store_uuid: log.store.uuid,
        };
        Ok((log, recovery))
    }

    /// Removes what an interrupted change of segments or cleaning left, and takes over the spares.
    fn clear_away(&mut self, directory: &Directory) -> Result<(), LogError> {
        for name in &directory.leftovers {
            self.storage.remove(name).map_err(LogError::io("remove", name))?;
        }
        if !directory.leftovers.is_empty() {
            // A file system without a journal could else keep the rename of a new file of that name, and not that
            // it is a new one.
            self.storage.sync_dir().map_err(LogError::io("sync the directory of", "what was left over"))?;
        }
        for (number, name) in &directory.spares {
            let file = self.storage.open(name).map_err(LogError::io("open", name))?;
            let bytes = file.length().map_err(LogError::io("measure", name))?;
            if bytes == self.options.segment_bytes {
                // It may have held a segment once; assuming so is safe.
                self.spares.push(Spare { name: name.clone(), recycled: true, untouched: false });
            } else {
                self.storage.remove(name).map_err(LogError::io("remove", name))?;
            }
            self.next_spare = self.next_spare.max(number + 1);
        }
        while self.index.segments().front().is_some_and(|front| front.sequence < self.oldest_segment) {
            // Its living records were moved and its end was announced; only the file was left.
            let front = self.index.segments()[0];
            if front.live_records > 0 {
                // Forgotten records, which were visited just now: from here on the segment counts again, until
                // their owner forgets them again and cleaning gets there.
                self.oldest_segment = front.sequence;
                break;
            }
            let name = segment_name(front.sequence);
            self.storage.remove(&name).map_err(LogError::io("remove", &name))?;
            self.storage.sync_dir().map_err(LogError::io("sync the directory of", &name))?;
            self.index.end_segment();
        }
        Ok(())
    }

    /// Makes durable what was visited, cuts a torn end, and after a clean stop goes on in the last segment.
    fn settle_end(
        &mut self,
        last: Option<LastSegment<S::File>>,
        torn: Option<TornTail>,
        clean: bool,
    ) -> Result<Option<TornTail>, LogError> {
        let Some(mut last) = last else {
            return Ok(None);
        };
        // What only the process's death left unsynced was visited: it must not vanish in a later power cut.
        let name = last.reader.name.clone();
        last.reader.file.sync_data().map_err(LogError::io("sync", &name))?;
        self.storage.sync_dir().map_err(LogError::io("sync the directory of", &name))?;
        let torn = match torn {
            Some(torn) => Some(self.keep_torn(&mut last.reader, torn)?),
            None => None,
        };
        let file_bytes = last.reader.file_bytes;
        if clean {
            self.current = Some(Current {
                name,
                sequence: last.reader.header.sequence,
                salt: last.reader.header.salt,
                offset: last.end,
                file_bytes,
                dirty: false,
                untouched: false,
                file: last.reader.file,
            });
        } else if torn.as_ref().is_none_or(|torn| torn.kept.is_some()) && file_bytes > last.end {
            // Nothing is ever written behind an end that a crash left; its room is given back.
            last.reader.file.set_length(last.end).map_err(LogError::io("cut", &name))?;
            last.reader.file.sync_data().map_err(LogError::io("sync", &name))?;
            if let Some(newest) = self.index.newest_mut() {
                newest.file_bytes = last.end;
            }
        }
        Ok(torn)
    }

    /// Copies the torn end into a file of its own, if there is room.
    fn keep_torn(
        &self,
        reader: &mut SegmentReader<S::File>,
        mut torn: TornTail,
    ) -> Result<TornTail, LogError> {
        let name = format!("torn-{:08}-{:010}.bin", reader.header.sequence, torn.offset);
        match copy_bytes(&self.storage, reader, torn.offset, torn.bytes, &name) {
            Ok(()) => torn.kept = Some(name),
            Err(error) if error.is_full() => {
                let _ = self.storage.remove(&name);
                return Ok(torn);
            }
            Err(error) => return Err(error),
        }
        let mut copies: Vec<String> = list(&self.storage)?;
        copies.retain(|name| name.starts_with("torn-") && name.ends_with(".bin"));
        // Segments only ever count up, so the oldest copy sorts first.
        copies.sort();
        for name in &copies[..copies.len().saturating_sub(TORN_COPIES_MAX)] {
            self.storage.remove(name).map_err(LogError::io("remove", name))?;
        }
        self.storage.sync_dir().map_err(LogError::io("sync the directory of", "torn-*.bin"))?;
        Ok(torn)
    }

    fn begin_first_segment(&mut self) -> Result<(), LogError> {
        match self.begin_segment(0) {
            Err(error) if error.is_full() => {
                self.no_room = true;
                Ok(())
            }
            other => other,
        }
    }
}

/// The files of the directory, by what they are.
pub(super) struct Directory {
    /// Segments that count, oldest first.
    pub segments: Vec<Sequence>,
    spares: Vec<(u32, String)>,
    /// Files of ours that no longer mean anything.
    leftovers: Vec<String>,
}

impl Directory {
    pub(super) fn sort(names: &[String], oldest_segment: Sequence) -> Self {
        let mut directory = Self { segments: Vec::new(), spares: Vec::new(), leftovers: Vec::new() };
        for name in names {
            if let Some(sequence) = parse_segment_name(name) {
                if sequence < oldest_segment {
                    directory.leftovers.push(name.clone());
                } else {
                    directory.segments.push(sequence);
                }
            } else if let Some(number) = parse_numbered(name, SPARE_SUFFIX) {
                directory.spares.push((number, name.clone()));
            } else if name == "STORE.tmp"
                || parse_numbered(name, ".tmp").is_some()
                || parse_numbered(name, NEW_SEGMENT_SUFFIX).is_some()
                || parse_numbered(name, REPAIR_SUFFIX).is_some()
            {
                directory.leftovers.push(name.clone());
            }
        }
        directory.segments.sort_unstable();
        directory.spares.sort_unstable();
        directory
    }

    /// Finds what is missing by the names alone.
    pub(super) fn check_against(&self, store: Option<&Store>) -> Result<(), LogError> {
        let missing = |file: &str, what: String| {
            Err(LogError::Corrupt { file: file.to_owned(), offset: 0, lsns: None, what })
        };
        let Some(store) = store else {
            let Some(first) = self.segments.first() else {
                return Ok(());
            };
            return missing(
                STORE_NAME,
                format!("the file is missing, but there is {}", segment_name(*first)),
            );
        };
        let last = self.segments.last().copied().unwrap_or(0);
        if last < store.last_segment {
            let what = format!("the segment is missing; {STORE_NAME} says that it was made");
            return missing(&segment_name(store.last_segment), what);
        }
        Ok(())
    }
}

/// Files that are ready to become segments, and fresh segments of a repair.
pub(super) const SPARE_SUFFIX: &str = ".spare";
pub(super) const REPAIR_SUFFIX: &str = ".repair";

/// How far the reading of all segments came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub next_lsn: u64,
    pub next_batch: u64,
    /// D: the highest record number that anything valid says was durable.
    pub durable_upto: u64,
    pub oldest_segment: Sequence,
}

impl Walk {
    pub(super) fn begin(store: &Store) -> Self {
        Self {
            next_lsn: 1,
            next_batch: 1,
            durable_upto: store.durable_floor,
            oldest_segment: store.oldest_segment,
        }
    }

    pub(super) fn believe(&mut self, header: &BatchHeader) {
        self.durable_upto = self.durable_upto.max(header.durable_upto);
        self.oldest_segment = self.oldest_segment.max(header.oldest_segment);
    }

    /// Reads batches of one segment from `offset` on, as long as each is whole and the next in order.
    pub(super) fn read_on<F: StorageFile>(
        &mut self,
        reader: &mut SegmentReader<F>,
        mut offset: u64,
        read_batch: &mut dyn FnMut(u64, &BatchHeader, &[u8]) -> bool,
    ) -> Result<Stop, LogError> {
        loop {
            let fault = match reader.place(offset)? {
                Place::End => return Ok(Stop { offset, fault: None }),
                Place::BadHeader => "what stands here is no batch of this segment".to_owned(),
                Place::BadBody(header, _) => {
                    format!("the checksum of batch {} is wrong", header.number)
                }
                Place::Batch(header, body) => {
                    if header.number != self.next_batch || header.first_lsn != self.next_lsn {
                        format!(
                            "batch {} with record {} stands where batch {} with record {} should",
                            header.number, header.first_lsn, self.next_batch, self.next_lsn
                        )
                    } else if read_batch(offset, &header, body) {
                        self.believe(&header);
                        self.next_lsn = header.last_lsn().saturating_add(1);
                        self.next_batch = header.number.saturating_add(1);
                        offset += header.total_bytes();
                        continue;
                    } else {
                        format!("batch {} does not hold the records that it says", header.number)
                    }
                }
            };
            return Ok(Stop { offset, fault: Some(fault) });
        }
    }

    /// Looks at all valid headers from `offset` to the end of the segment, for what they say was durable.
    /// Returns the place of the batch that goes on without a gap in the records: then only empty batches, which
    /// carry nothing but their header, were damaged between.
    pub(super) fn look_ahead<F: StorageFile>(
        &mut self,
        reader: &mut SegmentReader<F>,
        mut offset: u64,
    ) -> Result<Option<u64>, LogError> {
        let mut resume = None;
        while let Some((place, header)) = reader.next_header(offset)? {
            self.believe(&header);
            if resume.is_none() && header.first_lsn == self.next_lsn && header.number > self.next_batch {
                resume = Some((place, header.number));
            }
            offset = place + 8;
        }
        if let Some((_, number)) = resume {
            self.next_batch = number;
        }
        Ok(resume.map(|(place, _)| place))
    }
}

/// Where the reading of a segment stopped, and what is wrong there; `None` at a proper end.
pub(super) struct Stop {
    pub offset: u64,
    pub fault: Option<String>,
}

pub(super) struct LastSegment<F> {
    reader: SegmentReader<F>,
    /// Behind the last valid batch.
    end: u64,
}

pub(super) struct Found<F> {
    pub walk: Walk,
    last: Option<LastSegment<F>>,
    pub torn: Option<TornTail>,
    pub records: u64,
    pub bytes: u64,
}

/// Reads all segments and judges them; changes nothing but `index`.
pub(super) fn visit_all<S: Storage>(
    storage: &S,
    store: &Store,
    directory: &Directory,
    index: &mut Index,
    visit: &mut dyn FnMut(RecoveredRecord<'_>),
) -> Result<Found<S::File>, LogError> {
    let mut walk = Walk::begin(store);
    let mut found = Found { walk, last: None, torn: None, records: 0, bytes: 0 };
    let mut sequences = directory.segments.iter().copied();
    let mut next = sequences.next().map(|sequence| open_segment(storage, store, sequence)).transpose()?;
    let Some(first) = &next else {
        return Ok(found);
    };
    let first_header = first.header;
    walk.next_lsn = first_header.first_lsn;
    walk.next_batch = first_header.first_batch;
    while let Some(mut reader) = next.take() {
        let header = reader.header;
        next = sequences.next().map(|sequence| open_segment(storage, store, sequence)).transpose()?;
        walk.durable_upto = walk.durable_upto.max(header.first_lsn.saturating_sub(1));
        walk.oldest_segment = walk.oldest_segment.max(header.oldest_segment);
        index.begin_segment(header.sequence, FIRST_BATCH_OFFSET, reader.file_bytes);
        let mut read_batch = |offset: u64, batch: &BatchHeader, body: &[u8]| {
            let first_record = offset + super::record::BATCH_HEADER_BYTES as u64;
            let (count, whole) =
                note_records(index, header.sequence, first_record, body, |place, kind, key, body| {
                    visit(RecoveredRecord { kind, key, lsn: Lsn(batch.first_lsn + place), body });
                });
            found.records += count;
            found.bytes += body.len() as u64;
            whole && count == u64::from(batch.records)
        };
        let mut stop = walk.read_on(&mut reader, FIRST_BATCH_OFFSET, &mut read_batch)?;
        loop {
            let goes_on = match &next {
                Some(next) => next.header.first_lsn == walk.next_lsn,
                None => store.clean && stop.fault.is_none() && store.durable_floor == walk.next_lsn - 1,
            };
            if goes_on {
                break;
            }
            let Some(resume) = walk.look_ahead(&mut reader, stop.offset)? else {
                break;
            };
            stop = walk.read_on(&mut reader, resume, &mut read_batch)?;
        }
        if let Some(newest) = index.newest_mut() {
            newest.used_bytes = stop.offset;
        }
        match &next {
            Some(next) => walk.step_to(&reader, &next.header, stop)?,
            None => {
                found.torn = judge_end(&mut walk, store, &mut reader, &stop)?;
                found.last = Some(LastSegment { reader, end: stop.offset });
            }
        }
    }
    if first_header.sequence > walk.oldest_segment {
        return Err(LogError::Corrupt {
            file: segment_name(walk.oldest_segment),
            offset: 0,
            lsns: None,
            what: format!(
                "the segment is missing, with records before {}; a later one says that it counts",
                first_header.first_lsn
            ),
        });
    }
    found.walk = walk;
    Ok(found)
}

impl Walk {
    /// Goes on to the next segment, if it begins where this one ends.
    fn step_to<F>(
        &mut self,
        reader: &SegmentReader<F>,
        next: &super::segment::SegmentHeader,
        stop: Stop,
    ) -> Result<(), LogError> {
        let sequence = reader.header.sequence;
        let gap = (self.next_lsn < next.first_lsn).then(|| (self.next_lsn, next.first_lsn - 1));
        if next.sequence != sequence + 1 {
            return Err(LogError::Corrupt {
                file: segment_name(sequence + 1),
                offset: 0,
                lsns: gap,
                what: format!("the segment is missing; there is {}", segment_name(next.sequence)),
            });
        }
        if next.first_lsn != self.next_lsn || next.first_batch < self.next_batch {
            let ends = || {
                format!(
                    "the records end before {}, but the next segment begins with {}",
                    self.next_lsn, next.first_lsn
                )
            };
            return Err(LogError::Corrupt {
                file: reader.name.clone(),
                offset: stop.offset,
                lsns: gap,
                what: stop.fault.unwrap_or_else(ends),
            });
        }
        self.next_batch = next.first_batch;
        Ok(())
    }
}

/// Torn end or damage? Where the last segment's valid batches stop, all that anything valid calls durable must
/// have been read.
fn judge_end<F: StorageFile>(
    walk: &mut Walk,
    store: &Store,
    reader: &mut SegmentReader<F>,
    stop: &Stop,
) -> Result<Option<TornTail>, LogError> {
    if walk.durable_upto >= walk.next_lsn {
        let what = match &stop.fault {
            Some(fault) => format!("{fault}, and these records were confirmed as durable"),
            None => "the records end here, but these were confirmed as durable".to_owned(),
        };
        return Err(LogError::Corrupt {
            file: reader.name.clone(),
            offset: stop.offset,
            lsns: Some((walk.next_lsn, walk.durable_upto)),
            what,
        });
    }
    if store.clean && stop.fault.is_none() {
        return Ok(None);
    }
    // In a recycled file, old bytes behind an end mark are no sign of an unfinished write.
    let suspicious = stop.fault.is_some() || !reader.header.recycled;
    if !suspicious && reader.next_header(stop.offset)?.is_none() {
        return Ok(None);
    }
    let end = reader.last_nonzero(stop.offset)?;
    if end == stop.offset {
        return Ok(None);
    }
    Ok(Some(TornTail {
        file: reader.name.clone(),
        offset: stop.offset,
        bytes: end - stop.offset,
        what: stop.fault.clone().unwrap_or_else(|| "the last write was not finished".to_owned()),
        kept: None,
    }))
}

/// Opens a segment and checks that it is the one that its name says, of this store.
pub(super) fn open_segment<S: Storage>(
    storage: &S,
    store: &Store,
    sequence: Sequence,
) -> Result<SegmentReader<S::File>, LogError> {
    let name = segment_name(sequence);
    let file = storage.open(&name).map_err(LogError::io("open", &name))?;
    let reader = SegmentReader::new(file, name)?;
    let header = &reader.header;
    let what = if header.store_uuid != store.uuid {
        format!(
            "the segment belongs to another store, {:032x}; this one is {:032x}",
            header.store_uuid, store.uuid
        )
    } else if header.sequence != sequence {
        format!("the file is a copy of {}: its header says so", segment_name(header.sequence))
    } else {
        return Ok(reader);
    };
    Err(LogError::Corrupt { file: reader.name, offset: 0, lsns: None, what })
}

pub(super) fn take_lock<S: Storage>(storage: &S, access: Access) -> Result<S::File, LogError> {
    storage.lock(LOCK_NAME, access).map_err(LogError::io("lock", LOCK_NAME))?.ok_or(LogError::Locked)
}

pub(super) fn list<S: Storage>(storage: &S) -> Result<Vec<String>, LogError> {
    storage.list().map_err(LogError::io("list", "the data directory"))
}

fn copy_bytes<S: Storage>(
    storage: &S,
    reader: &mut SegmentReader<S::File>,
    offset: u64,
    bytes: u64,
    name: &str,
) -> Result<(), LogError> {
    let copy = storage.create(name).map_err(LogError::io("create", name))?;
    let mut done = 0;
    while done < bytes {
        let step = (bytes - done).min(1 << 20);
        let chunk = reader.bytes_at(offset + done, step)?.expect("the torn end is in the file");
        copy.write_at(chunk, done).map_err(LogError::io("write", name))?;
        done += step;
    }
    copy.sync_data().map_err(LogError::io("sync", name))
}
