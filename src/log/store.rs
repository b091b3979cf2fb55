//! The file `STORE`: whose directory this is, and what must be in it at least.

use super::error::LogError;
use super::record::{u32_at, u64_at};
use super::segment::{FORMAT_VERSION, Sequence, block_crc};
use super::storage::{Storage, StorageFile};

/// The content of `STORE`. Replaced as a whole, by rename: it is never torn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Store {
    pub uuid: u128,
    /// Grows with every start.
    pub starts: u64,
    /// Every record up to this number was durable.
    pub durable_floor: u64,
    /// The newest segment that was made at least; 0 before the first.
    pub last_segment: Sequence,
    /// The oldest segment that still counts.
    pub oldest_segment: Sequence,
    /// The log was closed, and nothing was written since.
    pub clean: bool,
    /// A repair is decided but its files may not have their final names yet.
    pub repaired: bool,
}

pub(super) const STORE_NAME: &str = "STORE";
const STORE_NEW_NAME: &str = "STORE.tmp";
const STORE_MAGIC: [u8; 8] = *b"TASKYARD";
const STORE_BYTES: usize = 128;

impl Store {
    /// Reads `STORE`; `None` if there is none.
    pub(super) fn read<S: Storage>(storage: &S, names: &[String]) -> Result<Option<Self>, LogError> {
        if !names.iter().any(|name| name == STORE_NAME) {
            return Ok(None);
        }
        let file = storage.open(STORE_NAME).map_err(LogError::io("open", STORE_NAME))?;
        let file_bytes = file.length().map_err(LogError::io("measure", STORE_NAME))?;
        if file_bytes != STORE_BYTES as u64 {
            return Err(corrupt(format!("the file has {file_bytes} bytes, not {STORE_BYTES}")));
        }
        let mut bytes = [0; STORE_BYTES];
        file.read_at(&mut bytes, 0).map_err(LogError::io("read", STORE_NAME))?;
        Self::parse(&bytes).map(Some)
    }

    /// Replaces `STORE`, durably.
    pub(super) fn write<S: Storage>(&self, storage: &S) -> Result<(), LogError> {
        let file = storage.create(STORE_NEW_NAME).map_err(LogError::io("create", STORE_NEW_NAME))?;
        file.write_at(&self.encode(), 0).map_err(LogError::io("write", STORE_NEW_NAME))?;
        file.sync_data().map_err(LogError::io("sync", STORE_NEW_NAME))?;
        storage.rename(STORE_NEW_NAME, STORE_NAME).map_err(LogError::io("rename", STORE_NEW_NAME))?;
        storage.sync_dir().map_err(LogError::io("sync the directory of", STORE_NAME))
    }

    fn encode(&self) -> [u8; STORE_BYTES] {
        let mut bytes = [0; STORE_BYTES];
        bytes[0..8].copy_from_slice(&STORE_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.uuid.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.starts.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.durable_floor.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.last_segment.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.oldest_segment.to_le_bytes());
        let flags = u32::from(self.clean) | u32::from(self.repaired) << 1;
        bytes[56..60].copy_from_slice(&flags.to_le_bytes());
        let crc = block_crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; STORE_BYTES]) -> Result<Self, LogError> {
        if bytes[0..8] != STORE_MAGIC {
            return Err(corrupt("the file does not begin as it should".to_owned()));
        }
        if u32_at(bytes, 12) != block_crc(bytes) {
            return Err(corrupt("the checksum is wrong".to_owned()));
        }
        let version = u32_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(LogError::Newer {
                file: STORE_NAME.to_owned(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let flags = u32_at(bytes, 56);
        Ok(Self {
            uuid: u128::from_le_bytes(bytes[16..32].try_into().expect("16 bytes")),
            starts: u64_at(bytes, 32),
            durable_floor: u64_at(bytes, 40),
            last_segment: u32_at(bytes, 48),
            oldest_segment: u32_at(bytes, 52),
            clean: flags & 1 != 0,
            repaired: flags & 2 != 0,
        })
    }
}

fn corrupt(what: String) -> LogError {
    LogError::Corrupt { file: STORE_NAME.to_owned(), offset: 0, lsns: None, what }
}
