//! How each engine is opened, opened again, and torn from its process.

use std::path::Path;

use taskyard::core::StoreOp;
use taskyard::engine::{Embedded, Engine, Memory, Opened};
use tempfile::TempDir;

/// One engine's place.
pub trait Rig: Default {
    type Engine: Engine;
    /// Its name in `--engine`.
    const NAME: &str;

    /// Opens what is there; gives what it replayed.
    fn open(&self) -> (Self::Engine, Opened, Vec<StoreOp>);

    /// What the place holds this moment, as if the process had been killed: a place of its own.
    fn as_if_killed(&self) -> Self;
}

#[derive(Default)]
pub struct InMemory;

impl Rig for InMemory {
    type Engine = Memory;
    const NAME: &str = "memory";

    fn open(&self) -> (Memory, Opened, Vec<StoreOp>) {
        // A process that has it begins with nothing: see `Server::start`.
        (Memory::new(), Opened { clean: true, start: 1, operations: 0 }, Vec::new())
    }

    fn as_if_killed(&self) -> InMemory {
        InMemory
    }
}

pub struct OnDisk(TempDir);

impl Default for OnDisk {
    fn default() -> Self {
        OnDisk(tempfile::tempdir().unwrap())
    }
}

/// Small, so that the suite fills and cleans several.
const SEGMENT_BYTES: u64 = 64 << 10;

impl Rig for OnDisk {
    type Engine = Embedded;
    const NAME: &str = "embedded";

    fn open(&self) -> (Embedded, Opened, Vec<StoreOp>) {
        let mut replayed = Vec::new();
        let (engine, opened, _) =
            Embedded::open(self.0.path(), SEGMENT_BYTES, (), &mut |op| replayed.push(op)).unwrap();
        (engine, opened, replayed)
    }

    fn as_if_killed(&self) -> OnDisk {
        let copy = OnDisk::default();
        for entry in std::fs::read_dir(self.0.path()).unwrap() {
            let from = entry.unwrap().path();
            let name: &Path = from.file_name().unwrap().as_ref();
            // The log's thread may take a file away between our looks: a spare, or a cleaned segment.
            if let Err(error) = std::fs::copy(&from, copy.0.path().join(name)) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", from.display());
            }
        }
        copy
    }
}
