//! Talks HTTP: the same verbs as the socket, through the same broker handle.
//!
//! * [`server`]: connections and their limits.
//! * `front`: what every request must pass before its route.
//! * [`guard`]: requests that say their length twice.
//! * [`routes`]: which path is which verb; `schedules`: those of schedules.
//! * [`body`]: bodies and answers in JSON and MessagePack.

pub mod body;
pub mod front;
pub mod guard;
pub mod query;
pub mod routes;
mod schedules;
pub mod server;
mod view;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::dispatcher::Phase;
use crate::metrics::Metrics;
use crate::ws::Context;

/// What every request may need.
#[derive(Clone)]
pub struct App {
    /// The broker.
    pub broker: Broker,
    /// Its metrics.
    pub metrics: Metrics,
    /// What sockets need; requests are judged by the same.
    pub sockets: Arc<Context>,
    /// Whether the broker works, drains or stops.
    pub phase: watch::Receiver<Phase>,
    /// Who was not let in, for the log.
    pub denials: Arc<front::Denials>,
    /// Counts connections and sockets, for whoever waits for their end.
    pub tracker: TaskTracker,
}

impl App {
    /// Whether new work is taken.
    pub fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Run
    }
}
