//! Talks HTTP: the same verbs as the socket, through the same broker handle.
//!
//! * [`server`]: connections, upgrades, limits.
//! * [`guard`]: requests that say their length twice.
//! * [`routes`]: which path is which verb.
//! * [`body`]: bodies and answers in JSON and MessagePack.

pub mod body;
pub mod guard;
pub mod query;
pub mod routes;
pub mod server;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::broker::Broker;
use crate::dispatcher::Phase;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::ws::Settings;

/// What every request may need.
#[derive(Clone)]
pub struct App {
    /// The broker.
    pub broker: Broker,
    /// Its metrics.
    pub metrics: Metrics,
    /// Limits of sockets and bodies.
    pub settings: Arc<Settings>,
    /// What a reload can change.
    pub live: Arc<ArcSwap<Live>>,
    /// Whether clients must say who they are.
    pub auth_on: bool,
    /// Whether the broker works, drains or stops.
    pub phase: watch::Receiver<Phase>,
}

impl App {
    /// Whether new work is taken.
    pub fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Run
    }
}
