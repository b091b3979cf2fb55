//! The switchboard: which session's outbox is where. Never tasks, leases or credit.
//!
//! No guard of the map leaves this file, and nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use taskyard_proto::CloseCode;

use crate::auth::Identity;
use crate::core::SessionId;
use crate::outbox::{Losses, Outbound, Outbox, Shared};

/// One live socket.
#[derive(Debug)]
struct Connection {
    outbox: Arc<Outbox>,
    /// Whose it is, once that is known.
    identity: Option<Arc<Identity>>,
}

/// Every live socket's outbox.
#[derive(Debug, Default)]
pub struct Connections {
    /// The numbers are ours, so nobody makes them collide.
    map: DashMap<SessionId, Connection, foldhash::fast::RandomState>,
    next: AtomicU64,
    /// What was dropped for readers that are too slow, of all sockets there ever were.
    losses: Arc<Losses>,
}

impl Connections {
    /// Adds a socket under a session number that was never given before.
    pub fn register(&self, outbox: Arc<Outbox>) -> SessionId {
        let id = self.number();
        self.map.insert(id, Connection { outbox, identity: None });
        id
    }

    /// A session number that was never given before.
    pub fn number(&self) -> SessionId {
        SessionId(self.next.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Notes whose a socket is.
    pub fn identify(&self, id: SessionId, identity: Arc<Identity>) {
        if let Some(mut connection) = self.map.get_mut(&id) {
            connection.identity = Some(identity);
        }
    }

    /// Ends the sockets that `judge` says must end, by whose they are.
    pub fn close_those(&self, judge: impl Fn(&Identity) -> Option<(CloseCode, &'static str)>) {
        for connection in &self.map {
            if let Some((code, reason)) = connection.identity.as_deref().and_then(&judge) {
                connection.outbox.close(code, reason);
            }
        }
    }

    /// Takes a socket out.
    pub fn remove(&self, id: SessionId) {
        self.map.remove(&id);
    }

    /// Puts messages into a session's outbox, leaving `messages` empty. What is for a session that is
    /// gone is nobody's: its leases return by its end.
    pub fn push(&self, id: SessionId, messages: &mut Vec<Outbound>) {
        match self.map.get(&id) {
            Some(connection) => connection.outbox.push(messages),
            None => messages.clear(),
        }
    }

    /// Puts what is said in a room into the outboxes of all who are in it.
    pub fn publish(&self, members: &[SessionId], said: &[Arc<Shared>]) {
        for id in members {
            if let Some(connection) = self.map.get(id) {
                connection.outbox.publish(said);
            }
        }
    }

    /// Ends a session's socket, after what is already in its outbox.
    pub fn close(&self, id: SessionId, code: CloseCode, reason: &'static str) {
        if let Some(connection) = self.map.get(&id) {
            connection.outbox.close(code, reason);
        }
    }

    /// Ends every socket.
    pub fn close_all(&self, code: CloseCode, reason: &'static str) {
        for connection in &self.map {
            connection.outbox.close(code, reason);
        }
    }

    /// Pings a session's socket; whatever comes next is a sign of life.
    pub fn ping(&self, id: SessionId) {
        if let Some(connection) = self.map.get(&id) {
            connection.outbox.ask_for_life();
        }
    }

    /// Where what is dropped is counted.
    pub fn losses(&self) -> &Arc<Losses> {
        &self.losses
    }

    /// How many bytes wait to be written to all sockets, and how many to the one with most.
    pub fn outbox_bytes(&self) -> (u64, u64) {
        self.map.iter().fold((0, 0), |(all, most), connection| {
            let bytes = connection.outbox.bytes() as u64;
            (all + bytes, most.max(bytes))
        })
    }

    /// How many sockets there are.
    pub fn count(&self) -> usize {
        self.map.len()
    }
}
