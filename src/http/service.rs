//! For machines: health, metrics, the description of all this; and a word for whoever comes by.

use std::sync::LazyLock;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header;
use taskyard_proto::{Encoding, Error, ErrorCode};

use super::request::{Caller, allowed_everywhere};
use super::{App, body, openapi, schema};
use crate::core::Action;

/// The description, which is the same for everybody.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let text = openapi::document().to_json().expect("a description is JSON");
    Bytes::from(text)
});

/// A word
///
/// What this is, and how to begin.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "welcome",
    tag = "service",
    responses((status = 200, description = "Plain text.", body = String, content_type = "text/plain; charset=utf-8")),
)]
pub(super) async fn welcome() -> &'static str {
    concat!(
        "Taskyard ",
        env!("CARGO_PKG_VERSION"),
        "\n\nSubmit:  curl --json '{\"payload\":{\"hello\":\"world\"}}' HOST/v1/queues/demo/tasks\n",
        "Work:    ws = new WebSocket(\"ws://HOST/ws?queue=demo\")\n",
        "         ws.onmessage = e => JSON.parse(e.data).type === \"task\" && ws.send(\"ack\")\n",
        "Look:    /v1/queues  /v1/workers  /metrics  /openapi.json\n"
    )
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
    match app.metrics.text(&app.broker).await {
        Ok(text) => {
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
