//! Submits: one, which may wait for its end, and many at once.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderValue};
use taskyard_proto::message::BATCH_MAX;
use taskyard_proto::{
    ClientMessage, Encoding, Error, Key, Payload, QueueName, ServerMessage, Submit, TaskId, TaskState, codec,
};

use super::body::{self, Kind};
use super::request::{Caller, Segment, bad_request, internal, plain, queue_name, wait};
use super::{App, query, schema, view};
use crate::broker::{Call, Gone, SubmitRefused};
use crate::metrics::Refused;
use crate::ws::caller::too_fast;

/// Where one is submitted.
const PATH: &str = "/v1/queues/{queue}/tasks";

/// Query parameters of a submit whose values are text, whatever they look like.
fn is_text_option(key: &str) -> bool {
    matches!(key, "queue" | "dedup_id" | "order_key" | "fair_key" | "sticky_key" | "run_at")
}

/// Submit a task
///
/// The queue is made if there is none. With `wait_ms` the answer waits for the task's end. A body of any other
/// type than JSON or MessagePack is the payload itself, as bytes: its options are query parameters of the names
/// that `Submit` has, objects among them (`to`, `headers`, `backoff`) as JSON text.
#[utoipa::path(
    post,
    path = PATH,
    operation_id = "submit_task",
    tag = "tasks",
    params(
        schema::InQueue,
        schema::Wait,
        schema::SubmitOptions,
        ("idempotency-key" = Option<String>, Header, description = "The same as `dedup_id`.",
            min_length = 1, max_length = 256, nullable = false),
    ),
    request_body(
        description = "The task, or its payload as bytes.",
        content((schema::Submit = "application/json"), (schema::Bytes = "application/octet-stream")),
    ),
    responses(
        (status = 201, description = "The task was taken in.", body = schema::Accepted,
            headers(("location" = String, description = "Where the task is shown."))),
        (status = 200, description = "An earlier submit with this `dedup_id` made the task; with `wait_ms`, the \
            task has ended.", body = schema::Ended,
            headers(("location" = String, description = "Where the task is shown."))),
        (status = 202, description = "The task was taken in, and has not ended within `wait_ms`.",
            body = schema::Standing,
            headers(("location" = String, description = "Where the task is shown."))),
        (status = 404, description = "The worker that the task is for is absent, and `if_absent` says `fail`.",
            body = schema::Error),
    ),
)]
pub(super) async fn submit(
    State(app): State<App>,
    Extension(identity): Caller,
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
        Ok(ServerMessage::Error(error)) => return body::refused(encoding, *error),
        Ok(other) => return internal(encoding, &other),
        Err(Gone) => return body::unanswered(),
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

/// That each parameter is one, or an option of the task where the body has no room for them.
fn check_options(kind: Kind, queue: &QueueName, pairs: &[(String, String)]) -> Result<(), Error> {
    let fields = ClientMessage::TABLE.iter().find(|(name, _)| *name == "submit").map(|(_, fields)| *fields);
    let mut options = fields.unwrap_or_default().iter().copied().filter(|field| *field != "queue");
    for (nth, (name, value)) in pairs.iter().enumerate() {
        if name == "queue" && value != queue.as_str() {
            let text = format!("parameter `queue`: the path says {queue}: leave it out");
            return Err(bad_request(text).field("queue"));
        }
        if name == "wait_ms" && pairs[..nth].iter().any(|(before, _)| before == name) {
            return Err(bad_request("parameter `wait_ms` stands twice: give it once").field("wait_ms"));
        }
        let is_option = options.clone().any(|option| option == name);
        let text = match kind {
            _ if matches!(name.as_str(), "wait_ms" | "queue" | "token") => continue,
            Kind::Bytes | Kind::Nothing if is_option || name == "payload_b64" => continue,
            Kind::Bytes | Kind::Nothing => {
                let options: Vec<&str> = options.by_ref().collect();
                format!(
                    "there is no parameter {name:?} here: expected wait_ms, or one of {}",
                    options.join(", ")
                )
            }
            _ if is_option => {
                format!("the body is a message, and says what the parameter {name:?} would: put it there")
            }
            _ => format!(
                "there is no parameter {name:?} here: expected wait_ms; options are fields of the body"
            ),
        };
        return Err(bad_request(text).field(name));
    }
    Ok(())
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
    let kind = body::kind(headers, bytes.is_empty());
    check_options(kind, &queue, pairs).map_err(plain)?;
    let message = match kind {
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
            pairs.retain(|(key, _)| !matches!(key.as_str(), "wait_ms" | "queue" | "token"));
            pairs.push(("queue".into(), queue.to_string()));
            codec::decode_pairs("submit", &pairs, is_text_option).map_err(plain)?
        }
    };
    let ClientMessage::Submit(submit) = message else {
        return Err(plain(bad_request("the body is no submit")));
    };
    let mut submit = Box::<Submit>::from(submit);
    if kind == Kind::Bytes {
        if !submit.payload.is_null() {
            return Err(plain(
                bad_request("the body is the payload: leave the parameter `payload` out").field("payload"),
            ));
        }
        submit.payload = Payload::binary(bytes);
    }
    match (key, &submit.dedup_id) {
        (Some(key), Some(id)) if key != id.as_str() => {
            let text = "`Idempotency-Key` and `dedup_id` were given, and differ: give one of them";
            return Err(plain(bad_request(text).field("dedup_id")));
        }
        (Some(key), None) => {
            let Some(key) = Key::parse(key) else {
                let text = "`Idempotency-Key` must have 1 to 256 bytes";
                return Err(plain(bad_request(text).field("dedup_id")));
            };
            submit.dedup_id = Some(key);
        }
        _ => {}
    }
    Ok(*submit)
}

/// Waits for a task's end: 200 with `finished`, or 202 with where it is.
async fn await_end(app: &App, call: Call, task: TaskId, limit: Duration, encoding: Encoding) -> Response {
    match call.end_within(&app.broker, task, limit).await {
        Ok(Some(message @ ServerMessage::Finished(_))) => body::message(StatusCode::OK, encoding, &message),
        Ok(Some(ServerMessage::Error(error))) => body::refused(encoding, *error),
        Ok(Some(other)) => internal(encoding, &other),
        // It was accepted, whatever became of the broker since: an error would say that it was not.
        Err(Gone) => body::document(StatusCode::ACCEPTED, encoding, &view::standing(task, None)),
        Ok(None) => {
            let state = state_of(app, task).await.unwrap_or_default();
            body::document(StatusCode::ACCEPTED, encoding, &view::standing(task, state))
        }
    }
}

async fn state_of(app: &App, task: TaskId) -> Result<Option<TaskState>, Gone> {
    app.broker.inspect(move |seen| seen.shard.task_view(task, seen.now).map(|view| view.state)).await
}

/// Submit many tasks
///
/// At most 1024, in order, each with its own answer; they are not atomic.
#[utoipa::path(
    post,
    path = "/v1/tasks",
    operation_id = "submit_tasks",
    tag = "tasks",
    request_body(
        description = "An array of tasks, each with its `queue`; or one a line, as `application/x-ndjson`.",
        content((Vec<schema::SubmitTo> = "application/json"), (String = "application/x-ndjson")),
    ),
    responses(
        (status = 200, description = "What came of each, in order and in kind.",
            content((Vec<schema::Outcome> = "application/json"), (String = "application/x-ndjson"))),
    ),
)]
pub(super) async fn submit_many(
    State(app): State<App>,
    Extension(identity): Caller,
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
                submit.set_watch(false);
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
            Ok(mut call) => match call.answer().await {
                Ok(answer) => answer,
                Err(Gone) => return body::unanswered(),
            },
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
