//! The client against a fake broker that says exactly what each test wants.

mod client;
mod connection;
mod fake;
mod worker;
