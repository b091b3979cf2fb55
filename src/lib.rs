//! Taskyard: a broker that pushes durable tasks to workers over WebSocket.
//!
//! The binary is the product; this library is its rooms, so that tests and benchmarks can enter
//! them. `ARCHITECTURE.md` is the map.

pub mod auth;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod columns;
pub mod config;
pub mod connections;
pub mod core;
pub mod dispatcher;
pub mod engine;
pub mod hops;
pub mod http;
pub mod ids;
pub mod live;
pub mod log;
pub mod metrics;
pub mod outbox;
pub mod overview;
pub mod process;
pub mod reserve;
pub mod server;
pub mod slots;
pub mod standstill;
pub mod transport;
pub mod trim;
pub mod ws;
