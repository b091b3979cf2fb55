//! Connections: accepts them, gives each its limits, and turns those that ask for it into sockets.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode, Version, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use taskyard_proto::{Encoding, Error, ErrorCode};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::guard::{Ambiguous, Guarded};
use super::{App, body, routes};
use crate::ws::{self, handshake};

/// How long a request's head may take, and how long a connection may say nothing at first.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How many headers a request may have.
const HEADERS_MAX: usize = 64;
/// How long a request's head may be, in bytes.
const HEAD_BYTES: usize = 16 << 10;
/// After a failed accept (descriptors used up, most likely) no further one for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`; then no connection is accepted, and those that are open end by themselves.
/// Sockets are `tracker`'s to wait for.
pub async fn run(listener: TcpListener, app: App, stop: CancellationToken, tracker: TaskTracker) {
    let router = routes::router(app.clone());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tracker.spawn(connection(stream, app.clone(), router.clone(), stop.clone(), tracker.clone()));
            }
            Err(error) => {
                if !is_of_one_connection(&error) {
                    tracing::warn!("cannot accept connections: {error}; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether an accept failed because of the connection that it was to accept.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    app: App,
    router: Router,
    stop: CancellationToken,
    tracker: TaskTracker,
) {
    // Small messages must not wait for each other's acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("cannot set TCP_NODELAY: {error}");
    }
    let ambiguous = Ambiguous::default();
    let stream = Guarded::new(stream, &ambiguous);
    let service = service_fn(|request: Request<Incoming>| {
        let (app, mut router, tracker) = (app.clone(), router.clone(), tracker.clone());
        // Behind a body of chunks nothing was watched, so the connection serves no other request.
        let last = request.headers().contains_key(header::TRANSFER_ENCODING) || ambiguous.is_set();
        let ambiguous = ambiguous.is_set();
        async move {
            let mut response = if ambiguous {
                let text = "a request must have one length: `Content-Length` once, or `Transfer-Encoding`, see RFC 9112";
                body::refused(Encoding::Json, Error::new(ErrorCode::BadRequest, text))
            } else if !has_one_host(&request) {
                let text = "a request of HTTP/1.1 must have exactly one `Host` header, see RFC 9112";
                body::refused(Encoding::Json, Error::new(ErrorCode::BadRequest, text))
            } else if handshake::is_wanted(&request) {
                upgrade(request, &app, &tracker)
            } else {
                match router.call(request.map(Body::new)).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            };
            if last {
                body::add_header(
                    response.headers_mut(),
                    header::CONNECTION,
                    HeaderValue::from_static("close"),
                );
            }
            app.metrics.answered(response.status().as_u16());
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES)
        .half_close(false);
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("an HTTP connection ended: {error}");
    }
}

/// RFC 9112, section 3.2: anything else is a request that two readers may understand differently.
fn has_one_host(request: &Request<Incoming>) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11)
}

/// Answers an upgrade request, and serves the socket that it becomes.
fn upgrade(mut request: Request<Incoming>, app: &App, tracker: &TaskTracker) -> Response {
    if !app.is_ready() {
        let error =
            Error::new(ErrorCode::Draining, "the broker is shutting down: connect again after it is back");
        return body::refused(Encoding::Json, error);
    }
    let (answer, opening) =
        match handshake::accept(&request, &app.live.load(), app.auth_on, app.settings.compression) {
            Ok(accepted) => accepted,
            Err(refusal) => {
                let mut response = body::refused_as(refusal.status, Encoding::Json, refusal.error);
                if let Some((name, value)) = refusal.header {
                    body::add_header(response.headers_mut(), name, value);
                }
                return response;
            }
        };
    let upgraded = hyper::upgrade::on(&mut request);
    let app = app.clone();
    tracker.spawn(async move {
        let upgraded = match upgraded.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!("an upgrade came to nothing: {error}"),
        };
        let Some((read, write, early)) = take_over(upgraded) else {
            return tracing::error!("an upgraded connection is of an unknown kind");
        };
        ws::serve(read, write, early, opening, app.broker, app.settings, app.metrics).await;
    });
    let (parts, ()) = answer.into_parts();
    debug_assert_eq!(parts.status, StatusCode::SWITCHING_PROTOCOLS);
    Response::from_parts(parts, Body::empty()).into_response()
}

/// The halves of an upgraded connection and what came before the upgrade was answered: no lock between
/// reading and writing, and nothing of HTTP is kept. None: it is no connection of this listener's.
pub fn take_over(upgraded: Upgraded) -> Option<(OwnedReadHalf, OwnedWriteHalf, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<Guarded<TcpStream>>>().ok()?;
    let (read, write) = parts.io.into_inner().into_inner().into_split();
    Some((read, write, parts.read_buf))
}
