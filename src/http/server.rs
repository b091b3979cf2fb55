//! Connections: accepts them, gives each its limits, and hands over what they ask.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::guard::{Ambiguous, Guarded};
use super::{App, body, front, routes};
use crate::metrics::Refused;
use crate::standstill;
use crate::transport::{ReadHalf, Stream, Tls, WriteHalf, proxy};

/// How long a request's head may take, and how long a connection may say nothing, at first and between
/// two requests.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How many headers a request may have.
const HEADERS_MAX: usize = 64;
/// How long a request's head may be, in bytes.
const HEAD_BYTES: usize = 16 << 10;
/// After a failed accept (descriptors used up, most likely) no further one for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors that are not for connections: the store's above all, which cannot do without.
const DESCRIPTORS_KEPT: u64 = 40;
/// What a connection is told that is one too many, whatever it was going to ask.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n\
    Content-Type: text/plain\r\nContent-Length: 51\r\n\r\n\
    the broker has as many connections as it may have.\n";

/// How connections reach the broker.
#[derive(Debug, Clone, Default)]
pub struct Entrance {
    /// TLS of the broker's own.
    pub tls: Option<Tls>,
    /// Whether connections from trusted proxies begin with a PROXY protocol header.
    pub proxy_protocol: bool,
}

/// Connections that are open, sockets included: each holds one permit.
struct Places {
    free: Arc<Semaphore>,
    taken: usize,
}

impl Places {
    /// One place more, if there are fewer than `max`, which may change.
    fn take(&mut self, max: usize) -> Option<OwnedSemaphorePermit> {
        self.taken = Semaphore::MAX_PERMITS - self.free.available_permits();
        if self.taken >= max {
            return None;
        }
        self.free.clone().try_acquire_owned().ok()
    }
}

/// Serves until `stop`; then no connection is accepted, and those that are open end by themselves.
/// Sockets are the tracker's to wait for.
pub async fn run(listener: TcpListener, entrance: Entrance, app: App, stop: CancellationToken) {
    let router = routes::router(app.clone());
    let mut places = Places { free: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)), taken: 0 };
    let descriptors_max = descriptors_for_connections();
    if descriptors_max < app.sockets.live.load().connections_max {
        tracing::info!(
            "{descriptors_max} connections may be open at a time: the system gives descriptors for no more"
        );
    }
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let Some(place) = places.take(app.sockets.live.load().connections_max.min(descriptors_max))
                else {
                    app.metrics.refused(Refused::Full);
                    if entrance.tls.is_none() {
                        // Whatever fits at once: nobody waits for one that is too many.
                        let _ = stream.try_write(FULL);
                    }
                    continue;
                };
                let connection = enter(
                    stream,
                    peer.ip(),
                    entrance.clone(),
                    place,
                    app.clone(),
                    router.clone(),
                    stop.clone(),
                );
                app.tracker.spawn(connection);
            }
            Err(error) => {
                if !is_of_one_connection(&error) {
                    // Once, not ten times a second for as long as it lasts.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!("cannot accept connections: {error}; trying again until it is over");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// How many connections there are descriptors for, of as many as the process may have at all. One more, and
/// the store may lack the one for its next file, which ends the broker.
fn descriptors_for_connections() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let all = rustix::process::Rlimit { current: limit.maximum, ..limit };
        if setrlimit(Resource::Nofile, all).is_ok() {
            limit = all;
        }
    }
    match limit.current {
        None => usize::MAX,
        // Of very few, half: fewer connections rather than none.
        Some(all) => usize::try_from(all.saturating_sub(DESCRIPTORS_KEPT).max(all / 2)).unwrap_or(usize::MAX),
    }
}

/// Whether an accept failed because of the connection that it was to accept.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// From a TCP connection to one that speaks HTTP: what a proxy says of it, then TLS.
async fn enter(
    mut stream: TcpStream,
    mut peer: IpAddr,
    entrance: Entrance,
    place: OwnedSemaphorePermit,
    app: App,
    router: Router,
    stop: CancellationToken,
) {
    // Small messages must not wait for each other's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
    let entered = async {
        if entrance.proxy_protocol && app.sockets.live.load().trusted_proxies.contains(peer) {
            match Box::pin(proxy::read_header(&mut stream)).await {
                Ok(Some(client)) => peer = client.ip(),
                Ok(None) => {}
                Err(error) => {
                    tracing::info!(proxy = %peer, "a connection was ended: {error}");
                    return None;
                }
            }
        }
        match &entrance.tls {
            None => {
                // hyper takes 16 KiB for a connection: one that says nothing gets none.
                match standstill::timeout(HEAD_TIME, stream.readable()).await {
                    Ok(Ok(())) => Some((Stream::from(stream), peer)),
                    _ => None,
                }
            }
            // Boxed, so that a connection without TLS has no room for a handshake.
            Some(tls) => match Box::pin(tls.accept(stream)).await {
                Ok(stream) => Some((Stream::from(stream), peer)),
                Err(error) => {
                    tracing::debug!(client = %peer, "a connection was ended: {error}");
                    None
                }
            },
        }
    };
    // Who has not come in by the end of it all is not waited for.
    let entered = tokio::select! {
        entered = entered => entered,
        () = stop.cancelled() => None,
    };
    let Some((stream, peer)) = entered else { return };
    connection(stream, peer, place, app, router, stop).await;
}

async fn connection(
    stream: Stream,
    peer: IpAddr,
    place: OwnedSemaphorePermit,
    app: App,
    router: Router,
    stop: CancellationToken,
) {
    let ambiguous = Ambiguous::default();
    // The place goes with the stream, into the socket that the connection may become.
    let stream = Guarded::new(stream, Some(place), &ambiguous);
    let service = service_fn(|request: Request<Incoming>| {
        let (app, router) = (app.clone(), router.clone());
        let ambiguous = ambiguous.is_set();
        // Behind a body of chunks nothing was watched, so the connection serves no other request.
        let last = request.headers().contains_key(header::TRANSFER_ENCODING) || ambiguous;
        // Boxed, so that a connection that waits has no room for an answer.
        Box::pin(async move {
            let mut response = front::answer(request, &app, router, peer, ambiguous).await;
            if last {
                body::add_header(
                    response.headers_mut(),
                    header::CONNECTION,
                    HeaderValue::from_static("close"),
                );
            }
            if response.extensions().get::<body::Unanswered>().is_some() {
                return Err(io::Error::other("the broker ended before it knew what to answer"));
            }
            app.metrics.answered(response.status().as_u16());
            Ok(response)
        })
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES)
        .half_close(false);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = result {
        tracing::debug!("an HTTP connection ended: {error}");
    }
}

/// The halves of an upgraded connection, what came before the upgrade was answered, and the connection's
/// place: nothing of HTTP is kept. None: it is no connection of this listener's.
pub fn take_over(upgraded: Upgraded) -> Option<(ReadHalf, WriteHalf, Bytes, Option<OwnedSemaphorePermit>)> {
    let parts = upgraded.downcast::<TokioIo<Guarded<Stream>>>().ok()?;
    let (stream, place) = parts.io.into_inner().into_inner();
    let (read, write) = stream.into_split();
    Some((read, write, parts.read_buf, place))
}
