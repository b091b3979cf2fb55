//! Before the routes: what every request must pass, whoever answers it.
//!
//! In this order: it has one length and one host; no page of a foreign origin speaks; its token is
//! good; its account does not ask too often. Sockets are opened here too, by the same rules.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, Version};
use taskyard_proto::{Encoding, Error, ErrorCode};
use tower_service::Service as _;

use super::{App, body, server};
use crate::auth::{Denied, Identity, carried};
use crate::core::Action;
use crate::metrics::Refused;
use crate::ws::caller::{Caller, too_fast};
use crate::ws::handshake::Terms;
use crate::ws::{self, handshake};

/// What a page of an allowed origin may send and ask, beside what any page may.
const CORS_METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, DELETE");
const CORS_HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-type, idempotency-key, last-event-id");
/// How much of a path a log shows: whoever is not let in must not fill the disk.
const PATH_SHOWN: usize = 64;
/// Lines a second that tell of those who were not let in.
const DENIALS_PER_SECOND: u32 = 10;
/// For how many seconds a page need not ask again.
const CORS_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// Answers one request of a connection from `peer`. With `ambiguous` its length was said twice.
pub async fn answer(
    mut request: Request<Incoming>,
    app: &App,
    mut router: Router,
    peer: IpAddr,
    ambiguous: bool,
) -> Response {
    let encoding = body::answer_encoding(request.headers());
    if ambiguous {
        let text =
            "a request must have one length: `Content-Length` once, or `Transfer-Encoding`, see RFC 9112";
        return body::refused(encoding, Error::new(ErrorCode::BadRequest, text));
    }
    let codings = request.headers().get_all(header::TRANSFER_ENCODING);
    if codings.iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
        let text = "of all transfer codings the broker knows `chunked` alone: send the body plain, with that or with \
                    `Content-Length`";
        return body::refused(encoding, Error::new(ErrorCode::BadRequest, text));
    }
    if !has_one_host(&request) {
        let text = "a request of HTTP/1.1 must have exactly one `Host` header, see RFC 9112";
        return body::refused(encoding, Error::new(ErrorCode::BadRequest, text));
    }
    let auth_on = app.sockets.authority.is_on();
    if !auth_on
        && let Some(host) = request.headers().get(header::HOST)
        && !host.to_str().is_ok_and(|host| app.sockets.live.load().admits_host(host))
    {
        app.metrics.refused(Refused::Origin);
        let text = format!(
            "{host:?} is no name that this broker goes by: without authentication any page could come by a name of \
             its own. Call it localhost or by its address, create a token, or add the name's origin to allow_origins"
        );
        return body::refused(encoding, Error::new(ErrorCode::Forbidden, text));
    }
    let origin = match handshake::check_origin(request.headers(), &app.sockets.live.load(), auth_on) {
        Ok(()) => {
            let origin = request.headers().get(header::ORIGIN).cloned();
            if origin.as_ref().is_some_and(|origin| origin == "null") && app.denials.may_tell().is_some() {
                tracing::warn!(
                    "a page without an origin of its own was let in: a local file, or a sandboxed frame of any site. \
                     Create a token to refuse such pages"
                );
            }
            origin
        }
        Err(refusal) => {
            app.metrics.refused(Refused::Origin);
            return body::refused_as(refusal.status, encoding, refusal.error);
        }
    };
    if handshake::is_wanted(&request) {
        return upgrade(request, app, peer);
    }
    if request.method() == Method::OPTIONS && origin.is_some() {
        return allow_page(StatusCode::NO_CONTENT.into_response(), origin);
    }
    if !is_public(request.uri().path()) {
        match identify(&request, app, peer) {
            Ok(Some(identity)) => {
                request.extensions_mut().insert(identity);
            }
            Ok(None) => return allow_page(unauthorized(encoding, app), origin),
            Err(error) => return allow_page(body::refused(encoding, error), origin),
        }
    }
    let response = match router.call(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    allow_page(response, origin)
}

/// Lets the page that asked read the answer: its origin was checked before.
fn allow_page(mut response: Response, origin: Option<HeaderValue>) -> Response {
    let Some(origin) = origin else { return response };
    let is_preflight = response.status() == StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if is_preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, CORS_METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, CORS_HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, CORS_SECONDS);
    } else {
        let shown = HeaderValue::from_static("location, retry-after");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, shown);
    }
    response
}

/// RFC 9112, section 3.2: anything else is a request that two readers may understand differently.
fn has_one_host(request: &Request<Incoming>) -> bool {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    hosts == 1 || (hosts == 0 && request.version() < Version::HTTP_11)
}

/// What is answered without a token: it says nothing of anybody's tasks.
pub(super) fn is_public(path: &str) -> bool {
    matches!(path, "/" | "/healthz" | "/readyz") || path.starts_with("/ui/")
}

/// Whose a request is; none: nobody's, and somebody is asked for. An account that asks too often is an
/// error.
fn identify(request: &Request<Incoming>, app: &App, peer: IpAddr) -> Result<Option<Arc<Identity>>, Error> {
    let found = token_of(request, app, peer)?;
    if let Some(identity) = &found
        && let Err(wait) = identity.meter.message()
    {
        app.metrics.refused(Refused::Messages);
        let per_s = identity.limits.messages_per_s.unwrap_or(1);
        return Err(too_fast(&identity.account, per_s, wait));
    }
    Ok(found)
}

fn token_of(request: &Request<Incoming>, app: &App, peer: IpAddr) -> Result<Option<Arc<Identity>>, Error> {
    let authority = &app.sockets.authority;
    if !authority.is_on() {
        return Ok(Some(authority.anyone()));
    }
    let live = app.sockets.live.load();
    let found = carried(request.headers(), request.uri().query(), live.allow_query_token);
    let denied = match found {
        Ok(None) => return Ok(None),
        Ok(Some(token)) => match authority.authenticate(token.expose(), crate::clock::wall()) {
            Ok(identity) => return Ok(Some(identity)),
            Err(denied) if denied.is_temporary() => {
                let text = "tokens cannot be checked at the moment: try again later";
                return Err(Error::new(ErrorCode::Unavailable, text));
            }
            Err(denied) => denied.to_string(),
        },
        Err(unreadable) => unreadable.to_string(),
    };
    let client = client_address(request.headers(), app, peer);
    if let Some(untold) = app.denials.may_tell() {
        let path = request.uri().path();
        let path = path.get(..PATH_SHOWN).unwrap_or(path);
        tracing::info!(%client, path, untold, "a request was not let in: {denied}");
    }
    Ok(None)
}

/// Where a client is: what trusted proxies say of it, else where its connection comes from.
fn client_address(headers: &HeaderMap, app: &App, peer: IpAddr) -> IpAddr {
    let live = app.sockets.live.load();
    live.trusted_proxies.client_address(peer, headers.get_all("x-forwarded-for").iter())
}

/// One answer to no token, an unknown one and a wrong one.
fn unauthorized(encoding: Encoding, app: &App) -> Response {
    app.metrics.refused(Refused::Unauthorized);
    let mut response = body::refused(encoding, Error::new(ErrorCode::Unauthorized, Denied::OUTSIDE));
    let scheme = HeaderValue::from_static("Bearer realm=\"taskyard\"");
    body::add_header(response.headers_mut(), header::WWW_AUTHENTICATE, scheme);
    response
}

/// Answers an upgrade request, and serves the socket that it becomes.
fn upgrade(mut request: Request<Incoming>, app: &App, peer: IpAddr) -> Response {
    if !app.is_ready() {
        let error =
            Error::new(ErrorCode::Draining, "the broker is shutting down: connect again after it is back");
        return body::refused(Encoding::Json, error);
    }
    let context = &app.sockets;
    let terms = Terms {
        compression: context.settings.compression,
        query_token: context.live.load().allow_query_token,
    };
    let (answer, opening) = match handshake::accept(&request, terms) {
        Ok(accepted) => accepted,
        Err(refusal) => {
            let mut response = body::refused_as(refusal.status, Encoding::Json, refusal.error);
            if let Some((name, value)) = refusal.header {
                body::add_header(response.headers_mut(), name, value);
            }
            return response;
        }
    };
    let caller = match token_of(&request, app, peer) {
        Err(error) => return body::refused(Encoding::Json, error),
        // It may say who it is in its hello, if it is going to say one.
        Ok(None) if opening.implied.is_none() && !shows_token(&request, app) => Caller::unknown(),
        Ok(None) => return unauthorized(Encoding::Json, app),
        Ok(Some(identity)) => {
            let mut named = opening.implied.iter().flat_map(|implied| implied.consumes());
            if let Some(access) = identity.access()
                && let Err(error) = named.try_for_each(|name| access.check(Action::Consume, &name))
            {
                app.metrics.refused(Refused::Forbidden);
                return body::refused(Encoding::Json, error);
            }
            match Caller::known(identity) {
                Ok(caller) => caller,
                Err(full) => {
                    app.metrics.refused(Refused::Connections);
                    return body::refused(
                        Encoding::Json,
                        Error::new(ErrorCode::RateLimited, full.to_string()),
                    );
                }
            }
        }
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let context = context.clone();
    app.tracker.spawn(async move {
        let upgraded = match upgraded.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!("an upgrade came to nothing: {error}"),
        };
        // Its place is kept for as long as the socket is open.
        let Some((read, write, early, _place)) = server::take_over(upgraded) else {
            return tracing::error!("an upgraded connection is of an unknown kind");
        };
        ws::serve(read, write, early, opening, caller, context).await;
    });
    let (parts, ()) = answer.into_parts();
    debug_assert_eq!(parts.status, StatusCode::SWITCHING_PROTOCOLS);
    Response::from_parts(parts, Body::empty())
}

/// Whether a request carries what means to be a token: then a wrong one is refused at once.
fn shows_token(request: &Request<Incoming>, app: &App) -> bool {
    let live = app.sockets.live.load();
    !matches!(carried(request.headers(), request.uri().query(), live.allow_query_token), Ok(None))
}

/// Those who were not let in, as far as the log tells of them.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    since: Option<Instant>,
    told: u32,
    untold: u32,
}

impl Denials {
    /// Whether there is room for one line more in this second, and how many went without since the last.
    fn may_tell(&self) -> Option<u32> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.since.is_none_or(|since| since.elapsed() > Duration::from_secs(1)) {
            (told.since, told.told) = (Some(Instant::now()), 0);
        }
        told.told += 1;
        if told.told > DENIALS_PER_SECOND {
            told.untold += 1;
            return None;
        }
        Some(std::mem::take(&mut told.untold))
    }
}
