//! The engine that remembers nothing: for tests, and for tasks that may be lost.

use std::future::pending;

use taskyard_proto::TaskId;

use super::{Capabilities, Engine, EngineError, Event, Footprint};
use crate::core::{Fetched, StoreOp};

/// Says `Stored` at once. A restart begins with nothing.
#[derive(Debug, Default)]
pub struct Memory {
    committed: u64,
    told: u64,
    asked: Vec<TaskId>,
}

impl Memory {
    /// An engine that holds nothing.
    pub fn new() -> Memory {
        Memory::default()
    }
}

impl Engine for Memory {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "memory", durable: false }
    }

    fn commit(&mut self, ops: &mut Vec<StoreOp>) {
        self.committed += ops.len() as u64;
        ops.clear();
    }

    fn hurry(&mut self) {}

    fn fetch(&mut self, tasks: &mut Vec<TaskId>) {
        self.asked.append(tasks);
    }

    async fn next_event(&mut self) -> Event {
        if !self.asked.is_empty() {
            // It has nothing but what the core itself holds.
            let nothing = |task| Fetched { task, payload: None };
            return Event::Fetched(self.asked.drain(..).map(nothing).collect());
        }
        if self.told == self.committed {
            pending::<()>().await;
        }
        self.told = self.committed;
        Event::Stored { through: self.committed }
    }

    fn has_room(&self) -> bool {
        true
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    async fn stop(self) -> Result<(), EngineError> {
        Ok(())
    }
}
