//! Remembers: tasks that survive.
//!
//! An engine takes the operations that the core wants stored, in order, and says how many of them
//! it holds. What it held is replayed at the next start. Leases, attempts, back-off, order and the
//! choice of a worker are the core's, whatever the engine.
//!
//! Every engine keeps three promises, and one suite (`tests/engine`) holds them all to it:
//!
//! 1. `Stored` is said only when losing this process cannot lose the operation (as far as
//!    [`Capabilities`] say the engine outlives the process at all).
//! 2. What is stored is replayed at the next start, each task's operations in their order.
//! 3. A task whose end is stored is never replayed as one that has not ended.
//!
//! And one that is durable gives back the payload of any stored task that has not ended, when it is asked for.

mod embedded;
mod memory;
pub mod records;
mod rows;

use std::fmt;
use std::future::Future;

use taskyard_proto::TaskId;

use crate::core::{Fetched, StoreOp};

pub use embedded::{Embedded, Observer};
pub use memory::Memory;

/// Something an engine has to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// All operations up to this one, counted from the start of the process, are stored.
    Stored {
        /// How many.
        through: u64,
    },
    /// Payloads that [`Engine::fetch`] was asked for.
    Fetched(Vec<Fetched>),
    /// New tasks can no longer be stored, or can again. Settles of old ones still are.
    Full(bool),
    /// The engine is broken; nothing more will be stored. The process must end.
    Failed(EngineError),
}

/// What an engine does, as users are told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name in `--engine`.
    pub name: &'static str,
    /// Whether a confirmed task survives the process, and a power cut.
    pub durable: bool,
}

/// What was found at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Whether the process before stopped in order.
    pub clean: bool,
    /// Grows with every start of the store.
    pub start: u32,
    /// How many operations were replayed.
    pub operations: u64,
}

/// Why an engine cannot be opened, or stopped working.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineError {
    /// For operators: what happened, what was expected, what to do.
    pub message: String,
    /// The process's exit code: 3 corrupt store, 4 directory locked, 5 storage failed.
    pub exit_code: u8,
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EngineError {}

/// Tasks that survive.
pub trait Engine: Send + 'static {
    /// What this engine does.
    fn capabilities(&self) -> Capabilities;

    /// Takes operations, leaving `ops` empty. They are stored as one batch, in order, after those of
    /// all earlier calls, within some milliseconds. Never waits: ask [`Engine::has_room`] before taking work in that
    /// needs it.
    fn commit(&mut self, ops: &mut Vec<StoreOp>);

    /// Somebody waits for what was committed: it is stored as soon as can be.
    fn hurry(&mut self);

    /// As [`Engine::hurry`], for a caller who has a thread to spare: what this gives, if anything, is still to be called. It
    /// stores on the thread that calls it, and blocks that for as long as the medium likes.
    fn hurry_blocking(&mut self) -> Option<Box<dyn FnOnce() + Send>> {
        self.hurry();
        None
    }

    /// Brings payloads of stored tasks back; each is told by `Fetched`, in any order. Never waits.
    fn fetch(&mut self, tasks: &mut Vec<TaskId>);

    /// The next event. May be dropped at any time without losing one.
    fn next_event(&mut self) -> impl Future<Output = Event> + Send;

    /// Whether what waits to be stored is below its bound.
    fn has_room(&self) -> bool;

    /// What the engine takes on its medium, for metrics.
    fn footprint(&self) -> Footprint;

    /// Stores what is left, marks the stop as orderly, and lets go of everything.
    fn stop(self) -> impl Future<Output = Result<(), EngineError>> + Send;
}

/// What an engine takes on its medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Bytes in files.
    pub bytes: u64,
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
    /// Files.
    pub segments: u64,
    /// Bytes of records that are not stored yet.
    pub waiting_bytes: u64,
}
