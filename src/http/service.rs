//! For machines: health, metrics, who asks, the description of all this; and the UI, or a word, for whoever comes by.

use std::sync::LazyLock;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap};
use taskyard_proto::{Encoding, Error, ErrorCode};

use super::request::{Caller, allowed_everywhere};
use super::{App, body, openapi, schema, ui, view};
use crate::core::Action;

/// The description, which is the same for everybody.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let text = openapi::document().to_json().expect("a description is JSON");
    Bytes::from(text)
});

/// The web UI, or a word
///
/// The page for who takes `text/html`. For all others what this is, and how to begin.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "welcome",
    tag = "service",
    responses((status = 200, description = "Plain text.", body = String, content_type = "text/plain; charset=utf-8")),
)]
pub(super) async fn welcome(headers: HeaderMap) -> Response {
    if ui::is_wanted(&headers) {
        return ui::page(&headers);
    }
    let text = concat!(
        "Taskyard ",
        env!("CARGO_PKG_VERSION"),
        "\n\nSubmit:  curl --json '{\"payload\":{\"hello\":\"world\"}}' HOST/v1/queues/demo/tasks\n",
        "Work:    ws = new WebSocket(\"ws://HOST/ws?queue=demo\")\n",
        "         ws.onmessage = e => JSON.parse(e.data).type === \"task\" && ws.send(\"ack\")\n",
        "Look:    /v1/queues  /v1/workers  /metrics  /openapi.json, or here in a browser\n"
    );
    ([(header::VARY, "accept")], text).into_response()
}

/// Who asks
///
/// Whose token it is and what it allows, so that a program offers nothing that would be refused.
#[utoipa::path(
    get,
    path = "/v1/me",
    operation_id = "me",
    tag = "service",
    responses((status = 200, description = "The account.", body = view::Me)),
)]
pub(super) async fn me(State(app): State<App>, Extension(identity): Caller, headers: HeaderMap) -> Response {
    let auth = app.sockets.authority.is_on();
    let json = view::me(&identity, auth, crate::clock::wall());
    body::document(StatusCode::OK, body::answer_encoding(&headers), &json)
}

/// Whether the broker lives
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "health",
    tag = "service",
    responses((status = 200, description = "It does.", body = String, content_type = "text/plain; charset=utf-8")),
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the broker takes work
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "readiness",
    tag = "service",
    responses(
        (status = 200, description = "It does.", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 503, description = "It shuts down.", body = schema::Error),
    ),
)]
pub(super) async fn readyz(State(app): State<App>) -> Response {
    if app.is_ready() {
        return "ready\n".into_response();
    }
    let error = Error::new(ErrorCode::Draining, "the broker is shutting down");
    body::refused(Encoding::Json, error)
}

/// Metrics
///
/// For Prometheus, of all queues: takes `observe:*`.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "metrics",
    tag = "service",
    responses((status = 200, description = "Prometheus' text format.", body = String,
        content_type = "text/plain; version=0.0.4; charset=utf-8")),
)]
pub(super) async fn metrics(State(app): State<App>, Extension(identity): Caller) -> Response {
    if let Err(error) = allowed_everywhere(&app, &identity, Action::Observe, "read metrics") {
        return body::refused(Encoding::Json, error);
    }
    // As whoever observes looks, so that many who scrape at once are one look.
    match app.sockets.overviews.fresh().await {
        Ok(look) => {
            let text = app.metrics.text(&app.broker, &look.counted, look.process).await;
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(gone) => body::refused(Encoding::Json, gone.error()),
    }
}

/// This description
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "description",
    tag = "service",
    responses((status = 200, description = "All routes, as OpenAPI 3.1.", body = serde_json::Value)),
)]
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}
