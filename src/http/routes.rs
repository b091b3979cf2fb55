//! Which path is which verb.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use taskyard_proto::message::BATCH_MAX;
use taskyard_proto::{
    ClientMessage, Encoding, Error, ErrorCode, Payload, QueueName, ServerMessage, Submit, TaskId, TaskState,
    Watch, codec,
};

use super::body::{self, Kind};
use super::{App, query, schedules, view};
use crate::auth::Identity;
use crate::broker::{Call, Gone, Seen, SubmitRefused};
use crate::core::Action;
use crate::metrics::Refused;
use crate::ws::caller::too_fast;

/// The longest wait that a request may ask for.
const WAIT_MS_MAX: u64 = 60_000;

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/v1/queues/{queue}/tasks", post(submit).get(unserved))
        .route("/v1/tasks", post(submit_many))
        .route("/v1/tasks/{task}", get(task).delete(unserved))
        .route("/v1/queues", get(queues))
        .route("/v1/queues/{queue}", get(queue).put(unserved))
        .route("/v1/workers", get(workers))
        // Of the protocol, but scheduled for later versions.
        .route("/v1/tasks/{task}/events", get(unserved))
        .route("/v1/tasks/{task}/explain", get(unserved))
        .route("/v1/queues/{queue}/lease", post(unserved))
        .route("/v1/leases/{lease}/{verb}", post(unserved))
        .route("/v1/queues/{queue}/pause", post(unserved))
        .route("/v1/queues/{queue}/unpause", post(unserved))
        .route("/v1/queues/{queue}/purge", post(unserved))
        .route("/v1/queues/{queue}/dead", get(unserved).delete(unserved))
        .route("/v1/queues/{queue}/dead/redrive", post(unserved))
        .route("/v1/queues/{queue}/dead/{task}", delete(unserved))
        .route("/v1/schedules", get(schedules::list))
        .route("/v1/schedules/{name}", get(schedules::show).put(schedules::put).delete(schedules::delete))
        .route("/v1/rooms/{room}", post(unserved))
        .route("/v1/workers/{worker}", delete(unserved))
        .route("/v1/workers/{worker}/drain", post(unserved))
        .route("/openapi.json", get(unserved))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/", get(welcome))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

/// A part of the path, which need not be UTF-8 once its percent signs are resolved.
pub(super) type Segment = Result<Path<String>, PathRejection>;

pub(super) fn bad_request(message: impl AsRef<str>) -> Error {
    Error::new(ErrorCode::BadRequest, message)
}

async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let text = format!(
        "there is nothing at {}: tasks are submitted to /v1/queues/{{queue}}/tasks, sockets opened at /ws",
        uri.path()
    );
    body::refused(body::answer_encoding(&headers), Error::new(ErrorCode::NotFound, text))
}

/// What the protocol has and this version has not: a client that asks is told which of the two it is.
async fn unserved(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let error = bad_request(format!(
        "{method} {} is not served by this version of the broker ({})",
        uri.path(),
        env!("CARGO_PKG_VERSION")
    ));
    body::refused(body::answer_encoding(&headers), error)
}

async fn method_not_allowed(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let error = bad_request(format!("{method} is not a verb of {}: see `Allow`", uri.path()));
    body::refused_as(StatusCode::METHOD_NOT_ALLOWED, body::answer_encoding(&headers), error)
}

async fn welcome() -> &'static str {
    concat!(
        "Taskyard ",
        env!("CARGO_PKG_VERSION"),
        "\n\nSubmit:  curl --json '{\"payload\":{\"hello\":\"world\"}}' HOST/v1/queues/demo/tasks\n",
        "Work:    ws = new WebSocket(\"ws://HOST/ws?queue=demo\")\n",
        "         ws.onmessage = e => JSON.parse(e.data).type === \"task\" && ws.send(\"ack\")\n",
        "Look:    /v1/queues  /v1/workers  /metrics\n"
    )
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(app): State<App>) -> Response {
    if app.is_ready() {
        return "ready\n".into_response();
    }
    let error = Error::new(ErrorCode::Draining, "the broker is shutting down");
    body::refused(Encoding::Json, error)
}

async fn metrics(State(app): State<App>, Extension(identity): Extension<Arc<Identity>>) -> Response {
    if !identity.grants.may_every(Action::Observe) {
        app.metrics.refused(Refused::Forbidden);
        let text = "metrics are of all queues: they take the permission observe:*";
        return body::refused(Encoding::Json, Error::new(ErrorCode::Forbidden, text));
    }
    match app.metrics.text(&app.broker).await {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(gone) => body::refused(Encoding::Json, gone.error()),
    }
}

fn queue_name(segment: Segment) -> Result<QueueName, Error> {
    let Path(text) = segment.map_err(|error| bad_request(error.body_text()))?;
    QueueName::parse(&text).map_err(|error| bad_request(error.to_string()))
}

/// The `wait_ms` of a query.
fn wait(pairs: &[(String, String)]) -> Result<Option<Duration>, Error> {
    let Some((_, text)) = pairs.iter().find(|(key, _)| key == "wait_ms") else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(ms) if ms <= WAIT_MS_MAX => Ok(Some(Duration::from_millis(ms))),
        _ => {
            let text =
                format!("parameter `wait_ms`: expected an integer of 0 to {WAIT_MS_MAX}, got {text:?}");
            Err(bad_request(text).field("wait_ms"))
        }
    }
}

/// Query parameters of a submit whose values are text, whatever they look like.
fn is_text_option(key: &str) -> bool {
    matches!(key, "queue" | "dedup_id" | "order_key" | "fair_key" | "sticky_key" | "run_at")
}

async fn submit(
    State(app): State<App>,
    Extension(identity): Extension<Arc<Identity>>,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let pairs = query::pairs(query.as_deref().unwrap_or_default());
    let parts = async {
        let queue = queue_name(queue).map_err(plain)?;
        let wait = wait(&pairs).map_err(plain)?;
        let bytes = body::read(&headers, body, app.sockets.settings.message_bytes).await?;
        let submit = read_submit(&headers, queue, &pairs, bytes)?;
        Ok((wait, submit))
    };
    let (wait, mut submit) = match parts.await {
        Ok(parts) => parts,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    submit.watch = wait.is_some();
    let mut call = match app.broker.submit(submit, identity.access()).await {
        Ok(call) => call,
        Err(SubmitRefused(error)) => return body::refused(encoding, error),
    };
    let accepted = match call.answer().await {
        Ok(ServerMessage::Accepted(accepted)) => accepted,
        Ok(ServerMessage::Error(error)) => return body::refused(encoding, error),
        Ok(other) => return internal(encoding, &other),
        Err(gone) => return body::refused(encoding, gone.error()),
    };
    let task = accepted.task;
    let location = HeaderValue::from_str(&format!("/v1/tasks/{task}")).expect("a task id is a header value");
    let mut response = match wait {
        None if accepted.duplicate => body::message(StatusCode::OK, encoding, &accepted.into()),
        None => body::message(StatusCode::CREATED, encoding, &accepted.into()),
        Some(limit) => await_end(&app, call, task, limit, encoding).await,
    };
    body::add_header(response.headers_mut(), header::LOCATION, location);
    response
}

fn plain(error: Error) -> (StatusCode, Error) {
    (StatusCode::from_u16(error.code.http_status()).expect("the table holds HTTP statuses"), error)
}

fn internal(encoding: Encoding, message: &ServerMessage) -> Response {
    tracing::error!(kind = message.type_text(), "an answer that does not answer the request");
    body::refused(
        encoding,
        Error::new(ErrorCode::Internal, "the broker gave an answer that does not fit: report this"),
    )
}

fn read_submit(
    headers: &HeaderMap,
    queue: QueueName,
    pairs: &[(String, String)],
    bytes: bytes::Bytes,
) -> Result<Submit, (StatusCode, Error)> {
    let key = match headers.get("idempotency-key").map(HeaderValue::to_str) {
        None => None,
        Some(Ok(key)) => Some(key),
        Some(Err(_)) => return Err(plain(bad_request("`Idempotency-Key` is not plain text"))),
    };
    let message = match body::kind(headers, bytes.is_empty()) {
        Kind::Message(encoding) => {
            let message = codec::decode_body(encoding, &bytes, "submit", &[("queue", queue.as_str())]);
            message.map_err(plain)?
        }
        Kind::Form => {
            let text = "the body is said to be a form, which a bare `curl -d` does: send JSON with `curl --json`, \
                        or any bytes with a Content-Type of their own, like application/octet-stream";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, bad_request(text)));
        }
        Kind::Lines => {
            let text = "one task is submitted here: POST many as application/x-ndjson to /v1/tasks";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, bad_request(text)));
        }
        Kind::Bytes | Kind::Nothing => {
            let mut pairs = pairs.to_vec();
            pairs.retain(|(key, _)| key != "wait_ms" && key != "queue");
            pairs.push(("queue".into(), queue.to_string()));
            codec::decode_pairs("submit", &pairs, is_text_option).map_err(plain)?
        }
    };
    let ClientMessage::Submit(mut submit) = message else {
        return Err(plain(bad_request("the body is no submit")));
    };
    if body::kind(headers, bytes.is_empty()) == Kind::Bytes {
        if !submit.payload.is_null() {
            return Err(plain(
                bad_request("the body is the payload: leave the parameter `payload` out").field("payload"),
            ));
        }
        submit.payload = Payload::binary(bytes);
    }
    match (key, &submit.dedup_id) {
        (Some(_), Some(_)) => {
            return Err(plain(
                bad_request("both `Idempotency-Key` and `dedup_id` were given: give one").field("dedup_id"),
            ));
        }
        (Some(key), None) => {
            let Some(key) = taskyard_proto::Key::parse(key) else {
                return Err(plain(
                    bad_request("`Idempotency-Key` must have 1 to 256 bytes").field("dedup_id"),
                ));
            };
            submit.dedup_id = Some(key);
        }
        (None, _) => {}
    }
    Ok(*submit)
}

/// Waits for a task's end: 200 with `finished`, or 202 with where it is.
async fn await_end(app: &App, call: Call, task: TaskId, limit: Duration, encoding: Encoding) -> Response {
    match call.end_within(&app.broker, task, limit).await {
        Ok(Some(message @ ServerMessage::Finished(_))) => body::message(StatusCode::OK, encoding, &message),
        Ok(Some(ServerMessage::Error(error))) => body::refused(encoding, error),
        Ok(Some(other)) => internal(encoding, &other),
        Err(gone) => body::refused(encoding, gone.error()),
        Ok(None) => match state_of(app, task).await {
            Ok(state) => {
                let json =
                    serde_json::json!({"task": task.to_string(), "state": state.map(TaskState::as_str)});
                body::document(StatusCode::ACCEPTED, encoding, &json.to_string())
            }
            Err(gone) => body::refused(encoding, gone.error()),
        },
    }
}

async fn state_of(app: &App, task: TaskId) -> Result<Option<TaskState>, Gone> {
    app.broker.inspect(move |seen| seen.shard.task_view(task, seen.now).map(|view| view.state)).await
}

async fn submit_many(
    State(app): State<App>,
    Extension(identity): Extension<Arc<Identity>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let bytes = match body::read(&headers, body, app.sockets.settings.message_bytes).await {
        Ok(bytes) => bytes,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    let kind = body::kind(&headers, bytes.is_empty());
    let items = match kind {
        Kind::Message(of) => match codec::decode_bulk(of, &bytes) {
            Ok(items) => items,
            Err(error) => return body::refused(encoding, error),
        },
        Kind::Lines => {
            let lines = || {
                let all = bytes.split(|byte| *byte == b'\n');
                all.filter(|line| !line.iter().all(u8::is_ascii_whitespace))
            };
            if lines().nth(BATCH_MAX).is_some() {
                let text = format!(
                    "more than {BATCH_MAX} lines: nothing was submitted, send at most so many at once"
                );
                return body::refused(encoding, bad_request(text));
            }
            lines().map(|line| codec::decode_body(Encoding::Json, line, "submit", &[])).collect()
        }
        _ => {
            let text = "many tasks are submitted as application/json, application/msgpack (an array) or \
                        application/x-ndjson (one a line)";
            return body::refused_as(StatusCode::UNSUPPORTED_MEDIA_TYPE, encoding, bad_request(text));
        }
    };
    // The request itself has been counted: it is the first of them.
    let mut counted = true;
    let submits = items
        .into_iter()
        .map(|item| match item? {
            ClientMessage::Submit(mut submit) => {
                submit.watch = false;
                if !std::mem::replace(&mut counted, false)
                    && let Err(wait) = identity.meter.message()
                {
                    app.metrics.refused(Refused::Messages);
                    let per_s = identity.limits.messages_per_s.unwrap_or(1);
                    return Err(too_fast(&identity.account, per_s, wait));
                }
                Ok(submit)
            }
            _ => Err(bad_request("expected an object with the fields of `submit`")),
        })
        .collect();
    let calls = match app.broker.submit_many(submits, identity.access()).await {
        Ok(calls) => calls,
        Err(gone) => return body::refused(encoding, gone.error()),
    };
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        answers.push(match call {
            Err(SubmitRefused(error)) => error.into(),
            Ok(mut call) => call.answer().await.unwrap_or_else(|gone| gone.error().into()),
        });
    }
    if kind != Kind::Lines {
        return body::encoded(StatusCode::OK, encoding, codec::encode_bodies(encoding, &answers));
    }
    let mut lines = Vec::new();
    for answer in &answers {
        lines.extend(codec::encode_body(Encoding::Json, answer));
        lines.push(b'\n');
    }
    ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}

async fn task(
    State(app): State<App>,
    Extension(identity): Extension<Arc<Identity>>,
    task: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let Some(task) = task.ok().and_then(|Path(text)| TaskId::parse(&text)) else {
        return body::refused(
            encoding,
            bad_request("the path names no task: expected its id, a UUID of 36 characters"),
        );
    };
    let limit = match wait(&query::pairs(query.as_deref().unwrap_or_default())) {
        Ok(limit) => limit,
        Err(error) => return body::refused(encoding, error),
    };
    let not_found = move || {
        let text = "no such task: it never was, or it ended longer ago than finished tasks are kept";
        Error::new(ErrorCode::NotFound, text).task(task)
    };
    // Before anything else is said of it, how long it takes included.
    if let Some(access) = identity.access() {
        let seen = app
            .broker
            .inspect_now(move |seen| seen.shard.queue_of(task).is_some_and(|queue| access.may_see(queue)));
        match seen.await {
            Ok(true) => {}
            Ok(false) => return body::refused(encoding, not_found()),
            Err(gone) => return body::refused(encoding, gone.error()),
        }
    }
    let mut status = StatusCode::OK;
    if let Some(limit) = limit {
        let call = match app.broker.ask(Watch { task, from_seq: None }).await {
            Ok(call) => call,
            Err(gone) => return body::refused(encoding, gone.error()),
        };
        match call.end_within(&app.broker, task, limit).await {
            Ok(Some(ServerMessage::Error(error))) => return body::refused(encoding, error),
            Ok(Some(_)) => {}
            Ok(None) => status = StatusCode::ACCEPTED,
            Err(gone) => return body::refused(encoding, gone.error()),
        }
    }
    show(&app, status, encoding, move |seen| match seen.shard.task_view(task, seen.now) {
        Some(found) => Ok(view::task(&found)),
        None => Err(not_found()),
    })
    .await
}

/// Looks at the state and shows a document of it, or says why there is none.
async fn show(
    app: &App,
    status: StatusCode,
    encoding: Encoding,
    look: impl FnOnce(Seen<'_>) -> Result<String, Error> + Send + 'static,
) -> Response {
    match app.broker.inspect(look).await {
        Ok(Ok(json)) => body::document(status, encoding, &json),
        Ok(Err(error)) => body::refused(encoding, error),
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

/// A list leaves out what may not be seen; who may see nothing is told so, instead of an empty list.
pub(super) fn may_list(app: &App, identity: &Identity) -> Result<(), Error> {
    if identity.grants.may_any(Action::Observe) {
        return Ok(());
    }
    app.metrics.refused(Refused::Forbidden);
    let text = format!(
        "the token of {} may not look at queues and workers: that takes the permission observe:QUEUE or observe:*",
        identity.account
    );
    Err(Error::new(ErrorCode::Forbidden, text))
}

async fn queues(
    State(app): State<App>,
    Extension(identity): Extension<Arc<Identity>>,
    headers: HeaderMap,
) -> Response {
    if let Err(error) = may_list(&app, &identity) {
        return body::refused(body::answer_encoding(&headers), error);
    }
    let grants = identity.grants.clone();
    show(&app, StatusCode::OK, body::answer_encoding(&headers), move |seen| {
        let all = seen.shard.queue_views(seen.now);
        let queues: Vec<_> = all
            .iter()
            .filter(|view| grants.may(Action::Observe, view.queue.as_str()))
            .map(view::queue)
            .collect();
        Ok(serde_json::json!({"queues": queues}).to_string())
    })
    .await
}

async fn queue(
    State(app): State<App>,
    Extension(identity): Extension<Arc<Identity>>,
    queue: Segment,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let name = match queue_name(queue) {
        Ok(name) => name,
        Err(error) => return body::refused(encoding, error),
    };
    if let Some(access) = identity.access()
        && let Err(error) = access.check(Action::Observe, &name)
    {
        app.metrics.refused(Refused::Forbidden);
        return body::refused(encoding, error);
    }
    show(&app, StatusCode::OK, encoding, move |seen| match seen.shard.queue_view(&name, seen.now) {
        Some(found) => Ok(view::queue(&found).to_string()),
        None => {
            let text = format!("there is no queue {name}: the first submit or subscribe makes it");
            Err(Error::new(ErrorCode::NotFound, text))
        }
    })
    .await
}

async fn workers(
    State(app): State<App>,
    Extension(identity): Extension<Arc<Identity>>,
    headers: HeaderMap,
) -> Response {
    if let Err(error) = may_list(&app, &identity) {
        return body::refused(body::answer_encoding(&headers), error);
    }
    let grants = identity.grants.clone();
    show(&app, StatusCode::OK, body::answer_encoding(&headers), move |seen| {
        let mut all = seen.shard.worker_views(seen.now);
        // A worker is seen on the queues that may be seen; one on none of them, by who may see all.
        if !grants.may_every(Action::Observe) {
            for worker in &mut all {
                worker.subscriptions.retain(|(queue, ..)| grants.may(Action::Observe, queue.as_str()));
                worker.in_flight = worker.subscriptions.iter().map(|(_, _, unsettled)| unsettled).sum();
            }
            all.retain(|worker| !worker.subscriptions.is_empty());
        }
        let workers: Vec<_> = all.iter().map(view::worker).collect();
        Ok(serde_json::json!({"workers": workers}).to_string())
    })
    .await
}
