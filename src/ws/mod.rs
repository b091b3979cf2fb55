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

use taskyard_proto::CloseCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::broker::{Broker, Item};
use crate::core::{Command, SessionId};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use handshake::Opening;

/// How long the leases of a socket that is no longer read wait for its writer.
const LAST_WRITE: Duration = Duration::from_millis(50);

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

/// A socket's place in the switchboard; it goes with whatever serves the socket, however that ends.
struct Registered<'a> {
    broker: &'a Broker,
    session: SessionId,
}

impl Registered<'_> {
    fn new(broker: &Broker, outbox: Arc<Outbox>) -> Registered<'_> {
        Registered { broker, session: broker.connections().register(outbox) }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.broker.connections().remove(self.session);
    }
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
    let registered = Registered::new(&broker, outbox.clone());
    let session = registered.session;
    let mut writer =
        tokio::spawn(writer::run(write, session, outbox.clone(), broker.clone(), settings.clone()));
    // Tasks of their own, so that a panic in one ends this socket (1011) and nothing else.
    let reader = reader::Reader::new(session, outbox.clone(), broker.clone(), settings, opening);
    let mut reader = tokio::spawn(reader.run(read));
    let end = async || {
        let mut end = vec![Item::Command(Command::End { session })];
        // A broker that is gone has no leases to return.
        let _ = broker.send(&mut end, 0).await;
    };
    // The peer may still answer our close frame; nothing else that it says is heard.
    let cut_off = async |reader: &mut JoinHandle<()>| {
        if tokio::time::timeout(reader::CLOSE_ANSWER, &mut *reader).await.is_err() {
            reader.abort();
            // Only then it has certainly handed over its last.
            let _ = reader.await;
        }
        // What it handed over meanwhile may have opened the session that was ended before.
        end().await;
    };
    // Whatever ends it, the leases go on at once; only then the others may take their time.
    let closed = tokio::select! {
        ended = &mut reader => {
            if let Err(error) = ended {
                tracing::error!(session = session.0, "a connection's reader panicked: {error}");
                outbox.close(CloseCode::INTERNAL, "a fault in the broker ended this connection");
            }
            // What is being written settles what it delivers in mode auto; but a dead peer waits for nobody.
            let written = tokio::time::timeout(LAST_WRITE, &mut writer).await;
            end().await;
            match written {
                Ok(closed) => closed,
                Err(_) => writer.await,
            }
        }
        closed = &mut writer => {
            end().await;
            cut_off(&mut reader).await;
            closed
        }
        () = outbox.closing() => {
            end().await;
            let closed = writer.await;
            cut_off(&mut reader).await;
            closed
        }
    };
    if let Ok(Some(code)) = closed {
        metrics.closed(code);
    }
    drop(registered);
    tracing::debug!(session = session.0, "connection ended");
}
