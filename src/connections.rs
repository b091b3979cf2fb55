//! The switchboard: which session's outbox is where. Never tasks, leases or credit.
//!
//! No guard of the map leaves this file, and nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use taskyard_proto::CloseCode;

use crate::core::SessionId;
use crate::outbox::{Outbound, Outbox};

/// Every live socket's outbox.
#[derive(Debug, Default)]
pub struct Connections {
    map: DashMap<SessionId, Arc<Outbox>>,
    next: AtomicU64,
}

impl Connections {
    /// Adds a socket under a session number that was never given before.
    pub fn register(&self, outbox: Arc<Outbox>) -> SessionId {
        let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.map.insert(id, outbox);
        id
    }

    /// Takes a socket out.
    pub fn remove(&self, id: SessionId) {
        self.map.remove(&id);
    }

    /// Puts messages into a session's outbox, leaving `messages` empty. What is for a session that is
    /// gone is nobody's: its leases return by its end.
    pub fn push(&self, id: SessionId, messages: &mut Vec<Outbound>) {
        match self.map.get(&id) {
            Some(outbox) => outbox.push(messages),
            None => messages.clear(),
        }
    }

    /// Ends a session's socket, after what is already in its outbox.
    pub fn close(&self, id: SessionId, code: CloseCode, reason: &'static str) {
        if let Some(outbox) = self.map.get(&id) {
            outbox.close(code, reason);
        }
    }

    /// Ends every socket.
    pub fn close_all(&self, code: CloseCode, reason: &'static str) {
        for outbox in &self.map {
            outbox.close(code, reason);
        }
    }

    /// Pings a session's socket; whatever comes next is a sign of life.
    pub fn ping(&self, id: SessionId) {
        if let Some(outbox) = self.map.get(&id) {
            outbox.ask_for_life();
        }
    }

    /// How many sockets there are.
    pub fn count(&self) -> usize {
        self.map.len()
    }
}
