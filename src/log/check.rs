//! Looking after a store that does not open: finding all that is wrong with it, and keeping what is whole.

use super::error::LogError;
use super::index::Index;
use super::record::{BATCH_HEADER_BYTES, BatchHeader, Record, RecordBatch, Records, batch_bytes};
use super::recover::{Directory, REPAIR_SUFFIX, TornTail, list, open_segment, take_lock, visit_all};
use super::segment::{
    FIRST_BATCH_OFFSET, Place, Salt, SegmentHeader, SegmentReader, Sequence, parse_numbered,
    parse_segment_name, segment_name,
};
use super::storage::{Access, Storage, StorageFile};
use super::store::{STORE_NAME, Store};
use super::writer::Options;

/// What [`check`] found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CheckReport {
    /// The store's name; `None` if neither `STORE` nor any segment says it.
    pub store_uuid: Option<u128>,
    /// Segments that count.
    pub segments: u64,
    /// Whole records in them.
    pub records: u64,
    /// Everything because of which the store does not open. Empty: it does.
    pub problems: Vec<Problem>,
    /// An unfinished end that the next start will cut: no problem, nothing in it was confirmed.
    pub torn_tail: Option<TornTail>,
}

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The file's name in the data directory.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// The first and last record that are missing because of it, if they can be named.
    pub lsns: Option<(u64, u64)>,
    /// What was found.
    pub what: String,
}

/// What [`repair`] did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// What was wrong. Empty: then nothing was done.
    pub problems: Vec<Problem>,
    /// Files that were set aside, by their new names. The store no longer needs them.
    pub quarantined: Vec<String>,
    /// Whole records that were written to fresh segments.
    pub records: u64,
    /// Records that are gone, as ranges of their numbers, first and last. The first is none where the oldest segment is
    /// missing, and cleaning had taken others before: nothing else says where it began. A gone `Remove` means that what it
    /// ended is back.
    pub gone: Vec<(Option<u64>, u64)>,
}

/// Reads the whole store and says everything that is wrong with it. Changes nothing.
///
/// # Errors
/// [`LogError::Locked`] while a broker runs on it, [`LogError::Newer`], [`LogError::Io`].
pub fn check<S: Storage>(storage: &S) -> Result<CheckReport, LogError> {
    let _lock = take_lock(storage, Access::Read)?;
    examine(storage).map(|examined| examined.report)
}

/// Makes a damaged store usable again: writes all whole records into fresh segments and sets the old ones aside
/// as `*.quarantined`. Needs as much room as the records take. Does nothing to a store that opens. If it is
/// interrupted, the next start or repair finishes it, or begins anew.
///
/// # Errors
/// [`LogError::Locked`] while a broker runs on it, [`LogError::Newer`], [`LogError::Io`], and
/// [`LogError::Corrupt`] when there is nothing at all to begin with.
pub fn repair<S: Storage>(storage: &S, options: &Options) -> Result<RepairReport, LogError> {
    options.validate()?;
    let _lock = take_lock(storage, Access::Write)?;
    let names = list(storage)?;
    if let Ok(Some(store)) = Store::read(storage, &names)
        && store.repaired
    {
        finish_repair(storage, &store, &names)?;
    }
    let mut examined = examine(storage)?;
    if examined.report.problems.is_empty() {
        return Ok(RepairReport::default());
    }
    let names = list(storage)?;
    for name in names.iter().filter(|name| parse_numbered(name, REPAIR_SUFFIX).is_some()) {
        storage.remove(name).map_err(LogError::io("remove", name))?;
    }

    let mut report =
        RepairReport { problems: std::mem::take(&mut examined.report.problems), ..RepairReport::default() };
    let last = names.iter().filter_map(|name| parse_segment_name(name)).max().unwrap_or(0);
    let oldest_segment = last.max(examined.store.last_segment).saturating_add(1);
    let mut fresh = Fresh::new(storage, options, &examined, oldest_segment)?;
    let survey = Survey::run(storage, &examined.store, &examined.segments, &mut |batch| {
        report.records += batch.records() as u64;
        fresh.write(batch)
    })?;
    report.gone = survey.gone();
    let (last_segment, last_lsn) = fresh.finish()?;
    storage.sync_dir().map_err(LogError::io("sync the directory of", "the fresh segments"))?;

    if names.iter().any(|name| name == STORE_NAME) && examined.store_is_damaged {
        let aside = format!("{STORE_NAME}{QUARANTINE_SUFFIX}");
        storage.rename(STORE_NAME, &aside).map_err(LogError::io("rename", STORE_NAME))?;
        report.quarantined.push(aside);
    }
    let store = Store {
        durable_floor: last_lsn,
        last_segment,
        oldest_segment,
        clean: false,
        repaired: true,
        ..examined.store
    };
    // From this moment on the fresh segments count and the old ones do not.
    store.write(storage)?;
    report.quarantined.extend(finish_repair(storage, &store, &list(storage)?)?);
    Ok(report)
}

const QUARANTINE_SUFFIX: &str = ".quarantined";

/// Gives the files of a decided repair their final names. Returns the names of those set aside.
pub(super) fn finish_repair<S: Storage>(
    storage: &S,
    store: &Store,
    names: &[String],
) -> Result<Vec<String>, LogError> {
    let rename =
        |from: &str, to: &str| storage.rename(from, to).map_err(LogError::io("rename", from.to_owned()));
    for name in names {
        if let Some(sequence) = parse_numbered(name, REPAIR_SUFFIX)
            && sequence >= store.oldest_segment
        {
            rename(name, &segment_name(sequence))?;
        }
    }
    storage.sync_dir().map_err(LogError::io("sync the directory of", "the fresh segments"))?;
    let mut quarantined = Vec::new();
    for name in names {
        if parse_segment_name(name).is_some_and(|sequence| sequence < store.oldest_segment) {
            let aside = format!("{name}{QUARANTINE_SUFFIX}");
            rename(name, &aside)?;
            quarantined.push(aside);
        }
    }
    storage.sync_dir().map_err(LogError::io("sync the directory of", "the quarantined segments"))?;
    Ok(quarantined)
}

struct Examined {
    report: CheckReport,
    /// From `STORE`, or put together from the segments if that is damaged.
    store: Store,
    store_is_damaged: bool,
    segments: Vec<Sequence>,
}

/// Judges the store as `open` does; only if that refuses, looks for everything that is wrong.
fn examine<S: Storage>(storage: &S) -> Result<Examined, LogError> {
    let names = list(storage)?;
    let mut problems = Vec::new();
    let read = match Store::read(storage, &names) {
        Err(error) => {
            problems.push(Problem::from_error(error)?);
            None
        }
        Ok(store) => store,
    };
    let directory = Directory::sort(&names, read.map_or(0, |store| store.oldest_segment));
    let store_is_damaged = !problems.is_empty();
    if !store_is_damaged && let Err(error) = directory.check_against(read.as_ref()) {
        problems.push(Problem::from_error(error)?);
    }
    if let Some(store) = &read
        && store.repaired
        && names.iter().any(|name| parse_numbered(name, REPAIR_SUFFIX).is_some())
    {
        problems.clear();
        problems.push(Problem {
            file: STORE_NAME.to_owned(),
            offset: 0,
            lsns: None,
            what: "a repair was interrupted: the next start, or another repair, finishes it".to_owned(),
        });
    }
    let Some(store) = read.or_else(|| guess_store(storage, &directory)) else {
        let report = CheckReport { problems, ..CheckReport::default() };
        let store = Store {
            uuid: 0,
            starts: 0,
            durable_floor: 0,
            last_segment: 0,
            oldest_segment: 1,
            clean: false,
            repaired: false,
        };
        return Ok(Examined { report, store, store_is_damaged, segments: Vec::new() });
    };
    let mut report = CheckReport {
        store_uuid: Some(store.uuid),
        segments: directory.segments.len() as u64,
        ..CheckReport::default()
    };
    match visit_all(storage, &store, &directory, &mut Index::default(), &mut |_| {}) {
        Ok(found) => {
            report.records = found.records;
            report.torn_tail = found.torn;
        }
        Err(error) => {
            let first = Problem::from_error(error)?;
            let survey = Survey::run(storage, &store, &directory.segments, &mut |batch| {
                report.records += batch.records() as u64;
                Ok(())
            })?;
            // The reading of all stops at the first, and knows less of it: it cannot look behind.
            let known = |problem: &Problem| problem.file == first.file && problem.offset == first.offset;
            if !survey.problems.iter().any(known) {
                problems.push(first);
            }
            problems.extend(survey.problems);
        }
    }
    report.problems = problems;
    Ok(Examined { report, store, store_is_damaged, segments: directory.segments })
}

/// What `STORE` said as far as the segments tell: the first one that can be read names the store.
fn guess_store<S: Storage>(storage: &S, directory: &Directory) -> Option<Store> {
    let header = directory.segments.iter().find_map(|&sequence| {
        let name = segment_name(sequence);
        let file = storage.open(&name).ok()?;
        SegmentReader::new(file, name).ok().map(|reader| reader.header)
    })?;
    Some(Store {
        uuid: header.store_uuid,
        // The number must only ever grow; nobody starts a store this often.
        starts: 1 << 32,
        durable_floor: 0,
        last_segment: *directory.segments.last()?,
        oldest_segment: 1,
        clean: false,
        repaired: false,
    })
}

impl Problem {
    /// Damage is a problem to report; any other error ends the looking.
    fn from_error(error: LogError) -> Result<Self, LogError> {
        match error {
            LogError::Corrupt { file, offset, lsns, what } => Ok(Self { file, offset, lsns, what }),
            other => Err(other),
        }
    }
}

/// Everything in the segments, whole or not.
struct Survey {
    problems: Vec<Problem>,
    /// Missing ranges and where they were missed.
    gaps: Vec<Gap>,
    next_lsn: Option<u64>,
    durable_upto: u64,
}

/// A segment and whether its header may be believed.
type Believed<F> = (SegmentReader<F>, bool);

struct Gap {
    file: String,
    offset: u64,
    first: Option<u64>,
    last: u64,
    what: String,
}

impl Survey {
    fn run<S: Storage>(
        storage: &S,
        store: &Store,
        segments: &[Sequence],
        keep: &mut dyn FnMut(&RecordBatch) -> Result<(), LogError>,
    ) -> Result<Self, LogError> {
        let mut survey = Self {
            problems: Vec::new(),
            gaps: Vec::new(),
            next_lsn: None,
            durable_upto: store.durable_floor,
        };
        let mut oldest = store.oldest_segment;
        // What a torn end holds is known only when all was read: so first the highest durable number.
        for &sequence in segments {
            if let Some((mut reader, is_verified)) = survey.open(storage, store, sequence)? {
                let mut offset = FIRST_BATCH_OFFSET;
                if is_verified {
                    let first = reader.header.first_lsn;
                    survey.durable_upto = survey.durable_upto.max(first.saturating_sub(1));
                    oldest = oldest.max(reader.header.oldest_segment);
                }
                while let Some((place, header)) = reader.next_header(offset)? {
                    survey.durable_upto = survey.durable_upto.max(header.durable_upto);
                    oldest = oldest.max(header.oldest_segment);
                    offset = place + 8;
                }
            }
        }
        survey.problems.clear();
        // Nothing was before the first.
        survey.next_lsn = (oldest == 1).then_some(1);
        let mut expected = oldest;
        for (place, &sequence) in segments.iter().enumerate() {
            let absent = (expected < sequence).then_some(expected);
            expected = sequence + 1;
            let mut opened = survey.open(storage, store, sequence)?;
            let begins_with = match &mut opened {
                Some((reader, true)) => Some(reader.header.first_lsn),
                // Its header cannot be believed, its batches can; what is before them in it counts as missing, too.
                Some((reader, false)) if survey.next_lsn.is_none() && sequence > oldest => {
                    reader.next_header(FIRST_BATCH_OFFSET)?.map(|(_, first)| first.first_lsn)
                }
                _ => None,
            };
            survey.begin_at(sequence, begins_with, absent, sequence > oldest);
            let Some((mut reader, _)) = opened else {
                continue;
            };
            let end_lsn = segments.get(place + 1).filter(|&&next| next == expected).and_then(|&next| {
                let reader = open_segment(storage, store, next).ok()?;
                Some(reader.header.first_lsn)
            });
            survey.read_segment(&mut reader, end_lsn, keep)?;
        }
        survey.end_with_durable(segments);
        survey.report_gaps();
        Ok(survey)
    }

    fn gone(&self) -> Vec<(Option<u64>, u64)> {
        self.gaps.iter().map(|gap| (gap.first, gap.last)).collect()
    }

    /// Notes what is missing between the segments read so far and this one, which begins with the record `first`, if that
    /// is known. `absent` is the first of the segments before it that are not there, `is_later` whether one must have been.
    fn begin_at(&mut self, sequence: Sequence, first: Option<u64>, absent: Option<Sequence>, is_later: bool) {
        let file = segment_name(absent.unwrap_or(sequence - 1));
        let what = match absent {
            Some(_) => format!("the segment is missing; there is {}", segment_name(sequence)),
            None => "the segment that held these records cannot be read".to_owned(),
        };
        let last = first.map(|first| first.saturating_sub(1));
        match (self.next_lsn, last) {
            (Some(next), Some(last)) if next <= last => {
                self.gaps.push(Gap { file, offset: 0, first: Some(next), last, what });
                self.next_lsn = first;
            }
            (None, Some(last)) if is_later && last > 0 => {
                self.gaps.push(Gap { file, offset: 0, first: None, last, what });
                self.next_lsn = first;
            }
            _ => {
                // Nothing was in it, or the next whole batch tells what is missing.
                if absent.is_some() {
                    self.problems.push(Problem { file, offset: 0, lsns: None, what });
                }
                self.next_lsn = self.next_lsn.or(first);
            }
        }
    }

    /// Opens a segment even if its header is damaged, unless it is not one of this store's; the header may be
    /// believed if the second value is true.
    fn open<S: Storage>(
        &mut self,
        storage: &S,
        store: &Store,
        sequence: Sequence,
    ) -> Result<Option<Believed<S::File>>, LogError> {
        match open_segment(storage, store, sequence) {
            Ok(reader) => Ok(Some((reader, true))),
            Err(error) => {
                self.problems.push(Problem::from_error(error)?);
                let name = segment_name(sequence);
                let file = storage.open(&name).map_err(LogError::io("open", &name))?;
                let reader = match SegmentReader::new_unverified(file, name) {
                    Ok(reader) => reader,
                    // Shorter than a header: nothing to read.
                    Err(LogError::Corrupt { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                };
                let is_ours = reader.header.store_uuid == store.uuid && reader.header.sequence == sequence;
                Ok(is_ours.then_some((reader, false)))
            }
        }
    }

    fn read_segment<F: StorageFile>(
        &mut self,
        reader: &mut SegmentReader<F>,
        end_lsn: Option<u64>,
        keep: &mut dyn FnMut(&RecordBatch) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let name = reader.name.clone();
        // None: the oldest segment, whose own word for where it begins cannot be believed.
        let mut next_lsn = self.next_lsn;
        let mut fault: Option<(u64, String)> = None;
        let mut offset = FIRST_BATCH_OFFSET;
        let mut kept = RecordBatch::new();
        // Which of a batch's records are whole, by their places in it.
        let mut whole: Vec<u64> = Vec::new();
        loop {
            kept.clear();
            whole.clear();
            let seen = match reader.place(offset)? {
                Place::Batch(header, body) => {
                    Records::new(body).for_each(|record| kept.push_encoded(record.encoded));
                    Some(header)
                }
                Place::BadBody(header, body) => {
                    let what = format!("the checksum of batch {} is wrong", header.number);
                    fault.get_or_insert((offset, what));
                    // Each record has a checksum of its own.
                    let records = (0..).zip(Records::new(body));
                    for (nth, record) in records.filter(|(_, record)| Record::parse(record.encoded).is_some())
                    {
                        kept.push_encoded(record.encoded);
                        whole.push(nth);
                    }
                    Some(header)
                }
                Place::BadHeader => {
                    let what = "what stands here is no batch of this segment".to_owned();
                    fault.get_or_insert((offset, what));
                    None
                }
                Place::End => None,
            };
            let Some(header) = seen else {
                // Behind damage, or behind zeros that should not be there, more may be whole.
                match reader.next_header(offset + 8)? {
                    Some((place, _)) => offset = place,
                    None => break,
                }
                continue;
            };
            let is_stale = end_lsn.is_some_and(|end| header.first_lsn >= end && header.records > 0)
                || next_lsn.is_some_and(|next| header.first_lsn < next);
            let begins_gap_after_end =
                next_lsn.is_some_and(|next| header.first_lsn > next && next > self.durable_upto);
            if is_stale || begins_gap_after_end {
                break;
            }
            if let Some(next) = next_lsn
                && header.first_lsn > next
            {
                let (offset, what) = fault.take().unwrap_or((offset, "records are missing here".to_owned()));
                self.gap(&name, offset, next, header.first_lsn - 1, what);
            }
            let lost = u64::from(header.records) - (kept.records() as u64).min(u64::from(header.records));
            if lost > 0 && header.first_lsn <= self.durable_upto.max(end_lsn.unwrap_or(0)) {
                let what = format!(
                    "the checksum of batch {} is wrong; {} of its {} records are whole",
                    header.number,
                    kept.records(),
                    header.records
                );
                for (first, last) in missing(&whole, u64::from(header.records)) {
                    self.gap(&name, offset, header.first_lsn + first, header.first_lsn + last, what.clone());
                }
                fault = None;
            } else if lost > 0 {
                // Cut off by a crash, and never confirmed.
                break;
            }
            if !kept.is_empty() {
                keep(&kept)?;
            }
            next_lsn = Some(header.last_lsn().saturating_add(1));
            offset = (offset + header.total_bytes()).min(reader.file_bytes.next_multiple_of(8));
        }
        if let (Some(end), Some(next)) = (end_lsn, next_lsn)
            && next < end
        {
            let (offset, what) = fault.unwrap_or((offset, "the records end here too early".to_owned()));
            self.gap(&name, offset, next, end - 1, what);
            next_lsn = Some(end);
        }
        self.next_lsn = next_lsn;
        Ok(())
    }

    fn gap(&mut self, file: &str, offset: u64, first: u64, last: u64, what: String) {
        self.gaps.push(Gap { file: file.to_owned(), offset, first: Some(first), last, what });
    }

    fn end_with_durable(&mut self, segments: &[Sequence]) {
        let next = self.next_lsn.unwrap_or(1);
        if next <= self.durable_upto {
            let file = segments.last().map_or(STORE_NAME.to_owned(), |&last| segment_name(last));
            let what = "the records end before these, which were confirmed as durable".to_owned();
            self.gap(&file, 0, next, self.durable_upto, what);
        }
    }

    fn report_gaps(&mut self) {
        self.problems.extend(self.gaps.iter().map(|gap| Problem {
            file: gap.file.clone(),
            offset: gap.offset,
            lsns: gap.first.map(|first| (first, gap.last)),
            what: gap.what.clone(),
        }));
    }
}

/// The ranges, first and last, that `whole`, in order, leaves out of the numbers below `count`.
fn missing(whole: &[u64], count: u64) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut next = 0;
    for &nth in whole.iter().chain([&count]) {
        if next < nth {
            ranges.push((next, nth - 1));
        }
        next = nth + 1;
    }
    ranges
}

/// The most that records and batches may be counted to for a repair to go on from there. No broker gets so far;
/// who finds more in a store finds what no broker wrote.
const NUMBER_MAX: u64 = u64::MAX / 2;
const SEQUENCE_MAX: Sequence = Sequence::MAX / 2;

/// Segments written by a repair: their records get new numbers, above all that were given before.
struct Fresh<'a, S: Storage> {
    storage: &'a S,
    options: &'a Options,
    store: Store,
    oldest_segment: Sequence,
    next_segment: Sequence,
    next_lsn: u64,
    next_batch: u64,
    writing: Option<Writing<S::File>>,
}

struct Writing<F> {
    file: F,
    name: String,
    salt: Salt,
    offset: u64,
}

impl<'a, S: Storage> Fresh<'a, S> {
    fn new(
        storage: &'a S,
        options: &'a Options,
        examined: &Examined,
        oldest_segment: Sequence,
    ) -> Result<Self, LogError> {
        let (next_lsn, next_batch) = above_all(storage, &examined.segments);
        let next_lsn = next_lsn.max(examined.store.durable_floor.saturating_add(1));
        if next_lsn.max(next_batch) > NUMBER_MAX || oldest_segment > SEQUENCE_MAX {
            return Err(LogError::Corrupt {
                file: STORE_NAME.to_owned(),
                offset: 0,
                lsns: None,
                what: format!(
                    "a repair would go on from record {next_lsn}, batch {next_batch} and segment \
                     {oldest_segment}, which no broker gets to"
                ),
            });
        }
        Ok(Self {
            storage,
            options,
            store: examined.store,
            oldest_segment,
            next_segment: oldest_segment,
            next_lsn,
            next_batch,
            writing: None,
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), LogError> {
        let total = batch_bytes(batch.bytes());
        let is_full = self.writing.as_ref().is_none_or(|writing| {
            writing.offset > FIRST_BATCH_OFFSET && writing.offset + total > self.options.segment_bytes
        });
        if is_full {
            self.begin_segment()?;
        }
        let writing = self.writing.as_mut().expect("it was just begun");
        let header = BatchHeader {
            body_bytes: 0,
            body_crc: 0,
            number: self.next_batch,
            first_lsn: self.next_lsn,
            durable_upto: self.next_lsn - 1,
            records: u32::try_from(batch.records()).expect("as many as one batch had before"),
            oldest_segment: self.oldest_segment,
        };
        let mut bytes = header.seal(writing.salt, batch.encoded()).encode(writing.salt).to_vec();
        debug_assert_eq!(bytes.len(), BATCH_HEADER_BYTES);
        bytes.extend_from_slice(batch.encoded());
        bytes.resize(super::segment::index(total), 0);
        writing.file.write_at(&bytes, writing.offset).map_err(LogError::io("write", &writing.name))?;
        writing.offset += total;
        self.next_lsn += batch.records() as u64;
        self.next_batch += 1;
        Ok(())
    }

    /// Syncs the last segment; the numbers of that and of the last record.
    fn finish(mut self) -> Result<(Sequence, u64), LogError> {
        if self.writing.is_none() {
            // Nothing was whole: an empty segment says at least that this is so.
            self.begin_segment()?;
        }
        self.sync()?;
        Ok((self.next_segment - 1, self.next_lsn - 1))
    }

    fn begin_segment(&mut self) -> Result<(), LogError> {
        self.sync()?;
        let sequence = self.next_segment;
        let name = format!("{sequence:08}{REPAIR_SUFFIX}");
        let file = self.storage.create(&name).map_err(LogError::io("create", &name))?;
        // Unlike any salt of the writer, whose starts are counted from 1.
        let salt = super::writer::salt(self.options.salt_seed, sequence, 0);
        let header = SegmentHeader {
            store_uuid: self.store.uuid,
            sequence,
            first_lsn: self.next_lsn,
            first_batch: self.next_batch,
            oldest_segment: self.oldest_segment,
            salt,
            recycled: false,
        };
        file.write_at(&header.encode(), 0).map_err(LogError::io("write", &name))?;
        self.next_segment += 1;
        self.writing = Some(Writing { file, name, salt, offset: FIRST_BATCH_OFFSET });
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        match self.writing.take() {
            Some(writing) => writing.file.sync_data().map_err(LogError::io("sync", &writing.name)),
            None => Ok(()),
        }
    }
}

/// Numbers for records and batches that no valid header has used.
fn above_all<S: Storage>(storage: &S, segments: &[Sequence]) -> (u64, u64) {
    let (mut next_lsn, mut next_batch) = (1, 1);
    for &sequence in segments {
        let name = segment_name(sequence);
        let Ok(file) = storage.open(&name) else {
            continue;
        };
        let Ok(mut reader) = SegmentReader::new(file, name) else {
            continue;
        };
        next_lsn = next_lsn.max(reader.header.first_lsn);
        next_batch = next_batch.max(reader.header.first_batch);
        let mut offset = FIRST_BATCH_OFFSET;
        while let Ok(Some((place, header))) = reader.next_header(offset) {
            next_lsn = next_lsn.max(header.last_lsn().max(header.durable_upto).saturating_add(1));
            next_batch = next_batch.max(header.number.saturating_add(1));
            offset = place + 8;
        }
    }
    (next_lsn, next_batch)
}
