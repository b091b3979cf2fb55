//! The product as its users meet it: the real binary, over real sockets.
//!
//! What is depth (schedules, crashes at every step, the whole state machine) is the business of the
//! simulator and of the engines' own suites; here it is the whole that is tested, once each.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod auth;
mod blips;
mod cli;
mod cli_manage;
mod cli_requests;
mod compression;
mod config;
mod crowds;
mod deploy;
mod docs;
mod encodings;
mod examples;
mod frames;
mod grafana;
mod handshake;
mod health;
mod hostile_requests;
mod http;
mod http_leases;
mod http_openapi;
mod http_payload;
mod http_queues;
mod http_tasks;
mod http_workers;
mod kill_nine;
mod messages;
mod metrics;
mod overview;
mod process;
mod proxies;
mod rooms;
mod schedules;
mod sockets;
mod store;
mod support;
mod tasks;
mod tls;
mod token;
mod top;
mod ui;
mod verbs;
mod zero;
mod zero_library;
