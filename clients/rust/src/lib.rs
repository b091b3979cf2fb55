//! Async client for the Taskyard task broker.
//!
//! * [`Client`] submits tasks and asks questions; it reconnects by itself.
//! * [`Worker`] takes tasks from a queue and gives each to a handler.
//! * [`Connection`] is what both stand on: one socket as a [`Sender`] and a [`Receiver`], for
//!   programs that want to write their own loop.
//! * [`http::get`] asks a broker for its status, [`http::send`] whatever else it serves over HTTP.
//!
//! `wss://` and `https://` work with the cargo feature `tls`, which is on by default.
//!
//! The messages themselves are those of [`proto`].

pub mod client;
pub mod connection;
pub mod delivery;
mod driver;
pub mod endpoint;
mod held;
pub mod http;
pub mod options;
pub mod receiver;
pub mod reconnect;
pub mod sender;
#[cfg(feature = "tls")]
pub mod tls;
pub mod worker;

pub use client::{Client, Receipt, RequestError, SubmitError};
pub use connection::{ConnectError, Connection, Dialer, Halves};
pub use delivery::{Delivery, Ending};
pub use endpoint::{Endpoint, UrlError};
pub use options::{ClientEvent, ClientOptions};
pub use receiver::{Closed, Incoming, Receiver};
pub use reconnect::Reconnect;
pub use sender::{PushError, Sender};
pub use taskyard_proto as proto;
#[cfg(feature = "tls")]
pub use tls::{TlsError, TlsErrorKind, TlsOptions};
pub use worker::{Failure, Settle, Worker, WorkerError, WorkerEvent};

/// The examples of the README are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
