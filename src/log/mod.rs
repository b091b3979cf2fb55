//! The write-ahead log: keyed records that survive power cuts, in segments on one directory.
//!
//! Knows records, not tasks. FORMAT.md draws the bytes and tells the rules of recovery. What is never done
//! here: reading the clock, rolling dice, knowing what a record means.
//!
//! [`Log`] is the log itself and is driven by its owner; [`LogThread`] owns one on a thread and commits in
//! groups. [`check`] and [`repair`] look after a store that does not open.

mod check;
mod clean;
mod commit;
mod error;
mod fetch;
mod inbox;
mod index;
mod packed;
mod record;
mod recover;
mod segment;
mod storage;
mod store;
mod thread;
mod writer;

pub use check::{CheckReport, Problem, RepairReport, check, repair};
pub use clean::Maintenance;
pub use commit::LogObserver;
pub use error::LogError;
pub use fetch::Fetched;
pub use inbox::UNAWAITED_DELAY;
pub use record::{Key, Lsn, RECORD_BODY_BYTES_MAX, RECORD_HEADER_BYTES, RecordBatch, RecordKind};
pub use recover::{RecoveredRecord, Recovery, TornTail};
pub use storage::{Access, Files, Storage, StorageFile};
pub use thread::{Bypass, LogThread, WAITING_BYTES_MAX};
pub use writer::{Log, LogStats, Options, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN};
