//! Taskyard: a broker that pushes durable tasks to workers over WebSocket.
//!
//! The binary is the product; this library is its rooms, so that tests and benchmarks can enter
//! them. `ARCHITECTURE.md` is the map.

pub mod core;
pub mod engine;
pub mod log;
pub mod broker;
pub mod clock;
pub mod connections;
pub mod dispatcher;
pub mod metrics;
pub mod http;
pub mod outbox;
pub mod ws;
pub mod cli;
pub mod config;
pub mod server;
