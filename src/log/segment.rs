//! One segment file: its name, its header, and reading what stands in it, valid or not.
//!
//! A reader judges bytes one place at a time; what a bad place means for the store is decided in `recover`.

use super::error::LogError;
use super::record::{BATCH_HEADER_BYTES, BatchHeader, END_MARK_BYTES, u32_at, u64_at};
use super::storage::StorageFile;

/// A random number of one segment, part of every checksum in it: bytes that an earlier segment left in a
/// recycled file, or that a client sent in a payload, are never taken for batches of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(pub u64);

/// Counts segments from 1. Four billion segments of 64 MiB are more than any disk outlives.
pub(super) type Sequence = u32;

/// The format of everything in the directory. A new version reads the old one: see "Upgrades" in FORMAT.md.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Batches begin here: the header has a page of its own, which is never written again, so that a torn write
/// of the first batch cannot take the header with it.
pub(super) const FIRST_BATCH_OFFSET: u64 = 4096;

/// Where and how a segment stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub store_uuid: u128,
    pub sequence: Sequence,
    /// The number of its first record. All before it was durable when the segment was made.
    pub first_lsn: u64,
    pub first_batch: u64,
    pub oldest_segment: Sequence,
    pub salt: Salt,
    /// The file held other bytes before: what stands behind the last batch means nothing.
    pub recycled: bool,
}

const SEGMENT_MAGIC: [u8; 8] = *b"TYSEGMNT";
const HEADER_BLOCK_BYTES: usize = FIRST_BATCH_OFFSET as usize;

impl SegmentHeader {
    /// The header's page, and the end mark where the first batch will be.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; HEADER_BLOCK_BYTES];
        block[0..8].copy_from_slice(&SEGMENT_MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&self.store_uuid.to_le_bytes());
        block[32..36].copy_from_slice(&self.sequence.to_le_bytes());
        block[36..40].copy_from_slice(&u32::from(self.recycled).to_le_bytes());
        block[40..48].copy_from_slice(&self.first_lsn.to_le_bytes());
        block[48..56].copy_from_slice(&self.first_batch.to_le_bytes());
        block[56..64].copy_from_slice(&self.salt.0.to_le_bytes());
        block[64..68].copy_from_slice(&self.oldest_segment.to_le_bytes());
        let crc = block_crc(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        block.resize(HEADER_BLOCK_BYTES + END_MARK_BYTES, 0);
        block
    }

    fn parse(file: &str, block: &[u8]) -> Result<Self, LogError> {
        let corrupt = |what: &str| LogError::Corrupt {
            file: file.to_owned(),
            offset: 0,
            lsns: None,
            what: what.to_owned(),
        };
        if block[0..8] != SEGMENT_MAGIC {
            return Err(corrupt("the segment does not begin as a segment does"));
        }
        if u32_at(block, 12) != block_crc(block) {
            return Err(corrupt("the checksum of the segment's header is wrong"));
        }
        let version = u32_at(block, 8);
        if version > FORMAT_VERSION {
            return Err(LogError::Newer { file: file.to_owned(), found: version, supported: FORMAT_VERSION });
        }
        Ok(Self::read(block))
    }

    /// What the bytes say, whether they are valid or not.
    fn read(block: &[u8]) -> Self {
        Self {
            store_uuid: u128::from_le_bytes(block[16..32].try_into().expect("16 bytes")),
            sequence: u32_at(block, 32),
            recycled: u32_at(block, 36) & 1 != 0,
            first_lsn: u64_at(block, 40),
            first_batch: u64_at(block, 48),
            salt: Salt(u64_at(block, 56)),
            oldest_segment: u32_at(block, 64),
        }
    }
}

/// The checksum of a header's page or of `STORE`, in both at byte 12 and not part of itself.
pub(super) fn block_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..])
}

/// The file name of a segment.
pub(super) fn segment_name(sequence: Sequence) -> String {
    format!("{sequence:08}.seg")
}

/// The sequence in a segment's file name; `None` for every other file.
pub(super) fn parse_segment_name(name: &str) -> Option<Sequence> {
    parse_numbered(name, ".seg")
}

/// The number in names like `00000007.seg`; only of those that we would write so ourselves.
pub(super) fn parse_numbered(name: &str, suffix: &str) -> Option<u32> {
    let number = name.strip_suffix(suffix)?.parse().ok()?;
    (format!("{number:08}{suffix}") == name).then_some(number)
}

/// What stands at one place of a segment.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// A whole, valid batch.
    Batch(BatchHeader, &'a [u8]),
    /// A valid header whose records are cut off or do not match it; the bytes that there are.
    BadBody(BatchHeader, &'a [u8]),
    /// Bytes that are no header of this segment.
    BadHeader,
    /// The mark behind the last batch, or no room for another one.
    End,
}

/// Reads one segment through a window of memory.
pub(super) struct SegmentReader<F> {
    pub file: F,
    pub name: String,
    pub header: SegmentHeader,
    pub file_bytes: u64,
    window: Vec<u8>,
    window_offset: u64,
}

/// Bytes read from a segment at once: small batches cost no system call each, and a step of cleaning stays
/// short.
const WINDOW_BYTES: u64 = 1 << 20;

impl<F: StorageFile> SegmentReader<F> {
    /// Reads and verifies the header of an open file.
    pub(super) fn new(file: F, name: String) -> Result<Self, LogError> {
        let (mut reader, block) = Self::read_block(file, name)?;
        reader.header = SegmentHeader::parse(&reader.name, &block)?;
        Ok(reader)
    }

    /// As `new`, but takes the header for what it says: the salt in it may well be whole.
    pub(super) fn new_unverified(file: F, name: String) -> Result<Self, LogError> {
        Self::read_block(file, name).map(|(reader, _)| reader)
    }

    fn read_block(file: F, name: String) -> Result<(Self, Vec<u8>), LogError> {
        let file_bytes = file.length().map_err(LogError::io("measure", &name))?;
        if file_bytes < FIRST_BATCH_OFFSET {
            return Err(LogError::Corrupt {
                file: name,
                offset: file_bytes,
                lsns: None,
                what: "the file is shorter than the header of a segment".to_owned(),
            });
        }
        let mut block = vec![0; HEADER_BLOCK_BYTES];
        file.read_at(&mut block, 0).map_err(LogError::io("read", &name))?;
        let header = SegmentHeader::read(&block);
        Ok((Self { file, name, header, file_bytes, window: Vec::new(), window_offset: 0 }, block))
    }

    /// Judges what stands at `offset`.
    pub(super) fn place(&mut self, offset: u64) -> Result<Place<'_>, LogError> {
        let salt = self.header.salt;
        let Some(bytes) = self.bytes_at(offset, BATCH_HEADER_BYTES as u64)? else {
            return Ok(Place::End);
        };
        let bytes: &[u8; BATCH_HEADER_BYTES] = bytes.try_into().expect("as long as asked");
        if BatchHeader::is_end_mark(bytes) {
            return Ok(Place::End);
        }
        let Some(header) = BatchHeader::parse(salt, bytes) else {
            return Ok(Place::BadHeader);
        };
        // The length came from the disk: never more memory than the file has bytes.
        let body_offset = offset + BATCH_HEADER_BYTES as u64;
        let body_bytes = u64::from(header.body_bytes).min(self.file_bytes - body_offset);
        let body = self.bytes_at(body_offset, body_bytes)?.expect("clamped to the file");
        if header.matches(salt, body) {
            Ok(Place::Batch(header, body))
        } else {
            Ok(Place::BadBody(header, body))
        }
    }

    /// The next valid batch header at or after `from`, and where it is.
    pub(super) fn next_header(&mut self, from: u64) -> Result<Option<(u64, BatchHeader)>, LogError> {
        let salt = self.header.salt;
        let mut offset = from.next_multiple_of(8).max(FIRST_BATCH_OFFSET);
        while offset + BATCH_HEADER_BYTES as u64 <= self.file_bytes {
            let step = WINDOW_BYTES.min(self.file_bytes - offset);
            let bytes = self.bytes_at(offset, step)?.expect("clamped to the file");
            for (index, begin) in bytes.windows(BATCH_HEADER_BYTES).enumerate().step_by(8) {
                if !BatchHeader::may_begin(begin) {
                    continue;
                }
                if let Some(header) = BatchHeader::parse(salt, begin.try_into().expect("a window")) {
                    return Ok(Some((offset + index as u64, header)));
                }
            }
            // The windows overlap, so that no header between two of them is missed.
            offset += (step - BATCH_HEADER_BYTES as u64 + 8) & !7;
        }
        Ok(None)
    }

    /// The end of the last byte at or after `from` that is not zero; `from` if there is none.
    pub(super) fn last_nonzero(&mut self, from: u64) -> Result<u64, LogError> {
        let mut end = from;
        let mut offset = from;
        while offset < self.file_bytes {
            let step = WINDOW_BYTES.min(self.file_bytes - offset);
            let bytes = self.bytes_at(offset, step)?.expect("clamped to the file");
            if let Some(last) = bytes.iter().rposition(|&byte| byte != 0) {
                end = offset + last as u64 + 1;
            }
            offset += step;
        }
        Ok(end)
    }

    /// `bytes` bytes at `offset`; `None` if the file ends before.
    pub(super) fn bytes_at(&mut self, offset: u64, bytes: u64) -> Result<Option<&[u8]>, LogError> {
        if offset + bytes > self.file_bytes {
            return Ok(None);
        }
        let window_end = self.window_offset + self.window.len() as u64;
        if offset < self.window_offset || offset + bytes > window_end {
            let fill = bytes.max(WINDOW_BYTES).min(self.file_bytes - offset);
            self.window.resize(index(fill), 0);
            self.window_offset = offset;
            if let Err(source) = self.file.read_at(&mut self.window, offset) {
                self.window.clear();
                return Err(LogError::io("read", &self.name)(source));
            }
        }
        let start = index(offset - self.window_offset);
        Ok(Some(&self.window[start..start + index(bytes)]))
    }
}

/// A file offset as an index into memory.
pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("segments are smaller than 4 GiB")
}
