//! Talks HTTP: the same verbs as the socket, through the same broker handle.
//!
//! * [`server`]: connections and their limits.
//! * `front`: what every request must pass before its route.
//! * [`guard`]: requests that say their length twice.
//! * [`routes`]: which path is which verb; `submit`, `tasks`, `events`, `queues`, `dead`, `leases`, `workers`,
//!   `rooms`, `schedules`, `overview` and `service` are the verbs, by what they are about.
//! * [`body`]: bodies and answers in JSON and MessagePack; [`fields`] and [`query`]: what is checked to the letter.
//! * `ui`: the files of the web UI.
//! * `openapi`: the description of it all; [`schema`] and [`view`]: what bodies look like.

pub mod body;
mod dead;
mod events;
pub mod fields;
pub mod front;
pub mod guard;
mod leases;
mod openapi;
pub mod overview;
pub mod query;
mod queues;
mod request;
mod rooms;
pub mod routes;
mod schedules;
pub mod schema;
pub mod server;
mod service;
mod settings;
mod submit;
mod tasks;
mod ui;
pub mod view;
mod workers;

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
