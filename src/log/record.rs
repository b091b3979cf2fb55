//! Records and batches as bytes: how they are encoded, how they are read back and what makes them valid.
//!
//! Nothing here knows files. FORMAT.md draws what this file does.

use std::fmt;

use super::segment::Salt;

/// Names what a record is about; the caller's task id (a UUIDv7) or any other 128-bit name.
pub type Key = u128;

/// The number of a record, counted from 1 over the whole life of a log. 0 means "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a record does to all that is known of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Begins, or replaces, all that is known of the key.
    Put = 1,
    /// Adds to what is known, in order. An `Amend` of a key without a living `Put` is dead at birth.
    Amend = 2,
    /// Ends the key: everything before it is dead.
    Remove = 3,
}

impl RecordKind {
    fn parse(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Put),
            2 => Some(Self::Amend),
            3 => Some(Self::Remove),
            _ => None,
        }
    }
}

/// The longest body of one record. A payload of 16 MiB and its envelope fit; whatever is longer was not
/// written by us, so a reader can refuse it before it allocates.
pub const RECORD_BODY_BYTES_MAX: usize = 17 << 20;

/// The bytes before each record's body: length, CRC, kind, key.
pub const RECORD_HEADER_BYTES: usize = 28;

/// The bytes before each batch's records.
pub(super) const BATCH_HEADER_BYTES: usize = 64;

/// Records in their on-disk form, waiting to be appended: encoded and checksummed on the caller's thread, so
/// that the log's own thread only copies them.
///
/// A batch is atomic: after a crash either all of its records are there or none.
#[derive(Clone, Debug, Default)]
pub struct RecordBatch {
    encoded: Vec<u8>,
    records: usize,
}

impl RecordBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one record.
    ///
    /// # Panics
    /// If `body` is longer than [`RECORD_BODY_BYTES_MAX`]: payloads are limited where they enter.
    pub fn push(&mut self, kind: RecordKind, key: Key, body: &[u8]) {
        self.push_with(kind, key, |encoded| encoded.extend_from_slice(body));
    }

    /// Adds one record whose body `write` appends to the buffer it is given; it must not touch what is there.
    ///
    /// # Panics
    /// If the body is longer than [`RECORD_BODY_BYTES_MAX`], or `write` shortened the buffer.
    pub fn push_with(&mut self, kind: RecordKind, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.encoded.len();
        self.encoded.extend_from_slice(&[0; RECORD_HEADER_BYTES]);
        write(&mut self.encoded);
        let body_bytes = self
            .encoded
            .len()
            .checked_sub(start + RECORD_HEADER_BYTES)
            .expect("the writer of a body only appends");
        assert!(body_bytes <= RECORD_BODY_BYTES_MAX, "a record of {body_bytes} bytes: the door let it in");
        let record = &mut self.encoded[start..];
        let length = u32::try_from(body_bytes).expect("at most 17 MiB");
        record[0..4].copy_from_slice(&length.to_le_bytes());
        record[8] = kind as u8;
        record[12..28].copy_from_slice(&key.to_le_bytes());
        let crc = record_crc(record);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
        self.records += 1;
    }

    /// Adds a record that already has its on-disk form: cleaning and repair move bytes, they do not re-encode.
    pub(super) fn push_encoded(&mut self, record: &[u8]) {
        self.encoded.extend_from_slice(record);
        self.records += 1;
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records
    }

    /// The bytes that the records will take on disk, without the header of their batch.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.encoded.len()
    }

    /// Takes all records out and keeps the buffer.
    pub fn clear(&mut self) {
        self.encoded.clear();
        self.records = 0;
    }

    pub(super) fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Gives back memory that one huge batch took, so that a recycled buffer does not keep it for ever.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        self.encoded.shrink_to(bytes);
    }
}

/// One record, as read from bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub kind: RecordKind,
    pub key: Key,
    pub body: &'a [u8],
    /// Header and body, as on disk.
    pub encoded: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads the record at the start of `bytes`; `None` if it is not whole and valid.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let record = Self::parse_trusted(bytes)?;
        (record_crc(record.encoded) == u32_at(bytes, 4)).then_some(record)
    }

    /// As `parse`, for bytes whose batch was verified or encoded by us: does not sum them a second time.
    pub(super) fn parse_trusted(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < RECORD_HEADER_BYTES {
            return None;
        }
        let body_bytes = u32_at(bytes, 0) as usize;
        if body_bytes > RECORD_BODY_BYTES_MAX {
            return None;
        }
        let encoded = bytes.get(..RECORD_HEADER_BYTES + body_bytes)?;
        let key = Key::from_le_bytes(bytes[12..28].try_into().expect("16 bytes"));
        let kind = RecordKind::parse(bytes[8])?;
        Some(Self { kind, key, body: &encoded[RECORD_HEADER_BYTES..], encoded })
    }
}

fn record_crc(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[0..4]), &record[8..])
}

/// Walks records that stand one behind the other; stops before the first byte that is not a record.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Records<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Where the walk stands: after the walk ended, the end of the last whole record.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let record = Record::parse_trusted(&self.bytes[self.offset..])?;
        self.offset += record.encoded.len();
        Some(record)
    }
}

/// What stands before the records of one batch on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Bytes of all records, without the zeros that fill up to a multiple of 8.
    pub body_bytes: u32,
    pub body_crc: u32,
    /// Counts batches from 1 over the log's life; tells a batch from an older one at the same place.
    pub number: u64,
    /// The first record's number; in an empty batch, the number that the next record will have.
    pub first_lsn: u64,
    /// Everything up to here was durable before this batch was written.
    pub durable_upto: u64,
    pub records: u32,
    /// The oldest segment that still counts; whatever is older is a leftover of cleaning.
    pub oldest_segment: u32,
}

const BATCH_MAGIC: [u8; 4] = *b"TYB1";

impl BatchHeader {
    /// Seals a batch: the header for `body`.
    pub(super) fn seal(self, salt: Salt, body: &[u8]) -> Self {
        Self {
            body_bytes: u32::try_from(body.len()).expect("a segment is smaller than 4 GiB"),
            body_crc: body_crc(salt, body),
            ..self
        }
    }

    pub(super) fn encode(&self, salt: Salt) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&BATCH_MAGIC);
        bytes[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_lsn.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable_upto.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.records.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.oldest_segment.to_le_bytes());
        let crc = header_crc(salt, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` if these bytes are not one that was written to this very segment.
    pub(super) fn parse(salt: Salt, bytes: &[u8; BATCH_HEADER_BYTES]) -> Option<Self> {
        if bytes[0..4] != BATCH_MAGIC || u32_at(bytes, 4) != header_crc(salt, bytes) {
            return None;
        }
        Some(Self {
            body_bytes: u32_at(bytes, 8),
            body_crc: u32_at(bytes, 12),
            number: u64_at(bytes, 16),
            first_lsn: u64_at(bytes, 24),
            durable_upto: u64_at(bytes, 32),
            records: u32_at(bytes, 40),
            oldest_segment: u32_at(bytes, 44),
        })
    }

    /// Whether `body` is what this header was sealed with.
    pub(super) fn matches(&self, salt: Salt, body: &[u8]) -> bool {
        body.len() == self.body_bytes as usize && body_crc(salt, body) == self.body_crc
    }

    /// Header, records and fill: what the batch takes in its segment.
    pub(super) fn total_bytes(&self) -> u64 {
        batch_bytes(self.body_bytes as usize)
    }

    /// The last record's number; one less than the first in an empty batch.
    pub(super) fn last_lsn(&self) -> u64 {
        self.first_lsn.saturating_add(u64::from(self.records)).saturating_sub(1)
    }

    /// Whether the first bytes of a place say that no batch was written there: the mark behind the last batch.
    pub(super) fn is_end_mark(bytes: &[u8; BATCH_HEADER_BYTES]) -> bool {
        bytes[..END_MARK_BYTES] == [0; END_MARK_BYTES]
    }

    /// Whether a header can begin here; a cheap test while scanning ahead.
    pub(super) fn may_begin(bytes: &[u8]) -> bool {
        u32_at(bytes, 0) == u32::from_le_bytes(BATCH_MAGIC)
    }
}

/// Zeros written behind each batch, so that in a recycled segment the old bytes there do not look like a torn
/// batch. The next batch overwrites them.
pub(super) const END_MARK_BYTES: usize = 8;

/// What a batch of `body_bytes` of records takes in a segment.
pub(super) fn batch_bytes(body_bytes: usize) -> u64 {
    (BATCH_HEADER_BYTES + body_bytes).next_multiple_of(8) as u64
}

fn header_crc(salt: Salt, bytes: &[u8; BATCH_HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.0.to_le_bytes()), &bytes[8..])
}

fn body_crc(salt: Salt, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.0.to_le_bytes()), body)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("4 bytes"))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("8 bytes"))
}
