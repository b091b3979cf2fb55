//! The client against a fake broker that says exactly what each test wants.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod connection;
mod fake;
mod resume;
#[cfg(feature = "tls")]
mod tls;
mod worker;
