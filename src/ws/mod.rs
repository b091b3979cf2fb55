//! Talks WebSocket: one task reads a socket, one writes it.
//!
//! * [`handshake`]: from an HTTP request to a socket.
//! * [`frames`]: our rules over fastwebsockets: whole messages in, a reason to close out.
//! * [`reader`]: messages to commands.
//! * [`writer`]: the outbox to one write.

pub mod frames;
pub mod handshake;
pub mod reader;
mod text;
pub mod writer;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::broker::{Broker, Item};
use crate::core::Command;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use handshake::Opening;

/// What a socket is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The longest message, in bytes.
    pub message_bytes: usize,
    /// After so long without a byte the broker pings.
    pub ping: Duration,
    /// After so much longer it gives up.
    pub ping_timeout: Duration,
}

/// Serves one socket until it ends.
pub async fn serve<R, W>(
    read: R,
    write: W,
    opening: Opening,
    broker: Broker,
    settings: Arc<Settings>,
    metrics: Metrics,
) where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let outbox = Arc::new(Outbox::default());
    if let Some(encoding) = opening.encoding {
        outbox.set_encoding(encoding);
    }
    let session = broker.connections().register(outbox.clone());
    let writer = tokio::spawn(writer::run(write, session, outbox.clone(), broker.clone(), settings.clone()));
    let reader = reader::Reader::new(session, outbox.clone(), broker.clone(), settings, opening);
    // In a task of its own, so that a panic in it ends this socket (1011) and nothing else.
    let ended = tokio::spawn(reader.run(read)).await;
    if let Err(error) = &ended {
        tracing::error!(session = session.0, "a connection's reader panicked: {error}");
        outbox.close(taskyard_proto::CloseCode::INTERNAL, "a fault in the broker ended this connection");
    }
    // The leases go on at once; the writer may still be saying goodbye.
    let mut end = vec![Item::Command(Command::End { session })];
    let stopping = broker.send(&mut end, 0).await.is_err();
    if let Ok(Some(code)) = writer.await {
        metrics.closed(code);
    }
    broker.connections().remove(session);
    tracing::debug!(session = session.0, stopping, "connection ended");
}
