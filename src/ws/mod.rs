//! Talks WebSocket: one task serves one socket, and keeps no buffer for it while it is idle.
//!
//! * [`handshake`]: from an HTTP request to a socket.
//! * [`frames`]: bytes to messages, by the rules of RFC 6455.
//! * [`deflate`]: messages that travel compressed.
//! * [`inbound`]: what arrives, to the frames.
//! * [`caller`]: whose a socket is, and how much it may say.
//! * [`reader`]: messages to commands.
//! * `observe`: how the broker is, again and again.
//! * [`raw`]: frames that are payloads alone.
//! * [`writer`]: the outbox to one write.

pub mod caller;
pub mod deflate;
pub mod frames;
pub mod handshake;
pub mod inbound;
mod observe;
pub mod raw;
pub mod reader;
mod text;
pub mod writer;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use taskyard_proto::CloseCode;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::auth::Authority;
use crate::broker::{Broker, Item};
use crate::core::{Command, SessionId};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::overview::Overviews;
use caller::Caller;
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
    /// Whether permessage-deflate is agreed to, where a client offers it.
    pub compression: bool,
    /// Where it was: messages of at least so many bytes are sent compressed.
    pub compression_min_bytes: usize,
}

/// What every socket needs.
pub struct Context {
    /// The broker.
    pub broker: Broker,
    /// What sockets are told once.
    pub settings: Settings,
    /// Its metrics.
    pub metrics: Metrics,
    /// Who looks at the broker for those who observe.
    pub overviews: Overviews,
    /// Who knows who is who.
    pub authority: Arc<Authority>,
    /// What a reload may change.
    pub live: Arc<ArcSwap<Live>>,
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

/// Serves one socket until it ends. `early` is what came before the upgrade was answered.
pub async fn serve<R, W>(
    read: R,
    mut write: W,
    early: Bytes,
    opening: Opening,
    mut caller: Caller,
    context: Arc<Context>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let broker = &context.broker;
    let outbox = Arc::new(Outbox::new(broker.connections().losses().clone()));
    if let Some(encoding) = opening.encoding {
        outbox.set_encoding(encoding);
    }
    let registered = Registered::new(broker, outbox.clone());
    let session = registered.session;
    let compression = opening.compression;
    caller.count_deliveries_of(outbox.clone());
    let mut reader = reader::Reader::new(session, outbox.clone(), context.clone(), opening, caller);
    let mut reader = pin!(reader.run(read, early));
    let mut writer = pin!(writer::run(&mut write, session, &outbox, &context, compression));
    // A panic ends this socket (1011, if it can still be said) and nothing else.
    let panicked = || {
        tracing::error!(session = session.0, "a fault ended a connection: its panic is told above");
        outbox.close(CloseCode::INTERNAL, "a fault in the broker ended this connection");
    };
    let mut reader = contained(reader.as_mut(), panicked);
    let mut writer = contained(writer.as_mut(), || {
        panicked();
        None
    });
    let end = async || {
        let mut end = vec![Item::Command(Command::End { session })];
        // A broker that is gone has no leases to return.
        let _ = broker.send(&mut end, 0).await;
    };
    // Whatever ends it, the leases go on at once; only then the others may take their time.
    let closed = tokio::select! {
        () = &mut reader => {
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
            // The peer may still answer our close frame; nothing else that it says is heard.
            let _ = tokio::time::timeout(reader::CLOSE_ANSWER, &mut reader).await;
            // What it handed over meanwhile may have opened the session that was ended before.
            end().await;
            closed
        }
        () = outbox.closing() => {
            end().await;
            let mut read = false;
            let closed = loop {
                tokio::select! {
                    closed = &mut writer => break closed,
                    () = &mut reader, if !read => read = true,
                }
            };
            if !read {
                let _ = tokio::time::timeout(reader::CLOSE_ANSWER, &mut reader).await;
            }
            end().await;
            closed
        }
    };
    if let Some(code) = closed {
        context.metrics.closed(code);
    }
    drop(registered);
    tracing::debug!(session = session.0, "connection ended");
}

/// Runs one half of a socket, which `run` only points to: a future that is moved into another is there
/// twice. What a half shares with others is the outbox, whose lock is never left half-way, and channels.
fn contained<T>(
    mut run: Pin<&mut impl Future<Output = T>>,
    panicked: impl Fn() -> T + Unpin,
) -> impl Future<Output = T> + Unpin {
    poll_fn(move |context| {
        catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(panicked()))
    })
}
