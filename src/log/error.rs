//! What can go wrong with the log, told to someone who did not write it.

use std::{fmt, io};

/// Why the log cannot do what it was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum LogError {
    /// The disk failed.
    Io {
        /// What was being done: "sync", "open", …
        doing: &'static str,
        /// The file's name in the data directory.
        file: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Records that were durable are damaged or missing. Nothing was modified.
    Corrupt {
        /// The file's name in the data directory.
        file: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// The first and the last record number concerned, as far as they are known; `None` when no record
        /// can be named.
        lsns: Option<(u64, u64)>,
        /// What was found and what was expected.
        what: String,
    },
    /// The data was written by a newer Taskyard.
    Newer {
        /// The file's name in the data directory.
        file: String,
        /// The version of its format.
        found: u32,
        /// The newest version that this program reads.
        supported: u32,
    },
    /// Another process has the data directory.
    Locked,
    /// The disk is full and the preallocated reserve is used up. Nothing was written; try again when there is
    /// room.
    Full,
    /// More bytes in one batch than a segment can ever hold.
    TooBig {
        /// The bytes of the batch.
        bytes: u64,
        /// The most that can be.
        bytes_max: u64,
    },
    /// An option that cannot work.
    Options {
        /// Which, and what is allowed.
        what: String,
    },
    /// An earlier failure left it unknown what is on disk; only a restart can find out.
    Poisoned {
        /// That failure.
        why: String,
    },
}

impl LogError {
    /// The exit code of a process that ends because of this: 2 it is not the program, or not the options, for this store,
    /// 3 the data is damaged, 4 another process has it, 5 the disk failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Corrupt { .. } => 3,
            Self::Newer { .. } | Self::Options { .. } | Self::TooBig { .. } => 2,
            Self::Locked => 4,
            Self::Io { .. } | Self::Full | Self::Poisoned { .. } => 5,
        }
    }

    pub(super) fn io(doing: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { doing, file, source }
    }

    /// Whether this says that the disk has no room, which passes; everything else does not.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Full => true,
            Self::Io { source, .. } => is_full(source),
            _ => false,
        }
    }
}

/// Whether the disk, or the user's share of it, has no room left.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the place, or the user, is one that may not write.
fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // While it is opened: of what is written already there may be something to lose.
            Self::Io { doing: "lock", file, source } if is_closed(source) => write!(
                f,
                "cannot lock {file}: {source}. A store must be writable: mount it so, give it to the user that \
                 the broker runs as, or name another directory with --data-dir"
            ),
            Self::Io { doing, file, source } => write!(
                f,
                "disk failure: {doing} {file}: {source}. What was not confirmed may be lost; check the disk, \
                 then start again"
            ),
            Self::Corrupt { file, offset, lsns, what } => {
                write!(f, "the store is damaged: {file} at byte {offset}")?;
                match lsns {
                    Some((first, last)) if first == last => write!(f, ", record {first}")?,
                    Some((first, last)) => write!(f, ", records {first} to {last}")?,
                    None => {}
                }
                write!(
                    f,
                    ": {what}. Nothing was modified. See `taskyard store check`; restore a backup, or keep what \
                     is whole with `taskyard store repair --quarantine`"
                )
            }
            Self::Newer { file, found, supported } => write!(
                f,
                "{file} has format version {found}, this program reads up to {supported}. Start the newer \
                 Taskyard that wrote it"
            ),
            Self::Locked => f.write_str(
                "data directory is locked by another broker: stop that one first, or name another directory with \
                 --data-dir",
            ),
            Self::Full => f.write_str(
                "the disk is full and the reserve is used up: make room on the disk of the data directory, the \
                 broker goes on by itself",
            ),
            Self::TooBig { bytes, bytes_max } => {
                write!(f, "a batch of {bytes} bytes is more than the {bytes_max} bytes that a segment can hold")
            }
            Self::Options { what } => write!(f, "log options: {what}"),
            Self::Poisoned { why } => {
                write!(f, "the log stopped after an earlier failure and needs a restart: {why}")
            }
        }
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
