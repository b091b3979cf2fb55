//! What the routes share: what a path and a query name, who may do what with it, and how answers are shown.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use hyper::StatusCode;
use taskyard_proto::{
    Encoding, Error, ErrorCode, GivenLease, QueueName, RoomName, ServerMessage, TaskId, WorkerName,
};

use super::{App, body};
use crate::auth::Identity;
use crate::broker::Seen;
use crate::core::{Action, Manage, Report};
use crate::metrics::Refused;

/// The longest wait that a request may ask for.
pub(super) const WAIT_MS_MAX: u64 = 60_000;

/// A part of the path, which need not be UTF-8 once its percent signs are resolved.
pub(super) type Segment = Result<Path<String>, PathRejection>;
/// Two parts of it.
pub(super) type Segments = Result<Path<(String, String)>, PathRejection>;

/// What is not as it should be.
pub(super) fn bad_request(message: impl AsRef<str>) -> Error {
    Error::new(ErrorCode::BadRequest, message)
}

/// An error with the status of its code.
pub(super) fn plain(error: Error) -> (StatusCode, Error) {
    (StatusCode::from_u16(error.code.http_status()).expect("the table holds HTTP statuses"), error)
}

fn text_of(segment: Segment) -> Result<String, Error> {
    segment.map(|Path(text)| text).map_err(|error| bad_request(error.body_text()))
}

/// The queue that a path names.
pub(super) fn queue_name(segment: Segment) -> Result<QueueName, Error> {
    QueueName::parse(&text_of(segment)?).map_err(|error| bad_request(error.to_string()))
}

/// The room that a path names.
pub(super) fn room_name(segment: Segment) -> Result<RoomName, Error> {
    RoomName::parse(&text_of(segment)?).map_err(|error| bad_request(error.to_string()))
}

/// The worker that a path names.
pub(super) fn worker_name(segment: Segment) -> Result<WorkerName, Error> {
    WorkerName::parse(&text_of(segment)?).map_err(|error| bad_request(error.to_string()))
}

/// The lease that a path names: any text is one, if only a lost one.
pub(super) fn lease(segment: Segment) -> Result<String, Error> {
    Ok(match GivenLease::parse(&text_of(segment)?) {
        GivenLease::Lease(lease) => lease.to_string(),
        GivenLease::Garbled(text) => text.as_str().to_owned(),
    })
}

/// The task that a path names.
pub(super) fn task_id(segment: Segment) -> Result<TaskId, Error> {
    let text = segment.ok().map(|Path(text)| text);
    parse_task(text.as_deref().unwrap_or_default())
        .ok_or_else(|| bad_request("the path names no task: expected its id, a UUID of 36 characters"))
}

/// The queue and the task that a path names.
pub(super) fn queue_and_task(segments: Segments) -> Result<(QueueName, TaskId), Error> {
    let Path((queue, task)) = segments.map_err(|error| bad_request(error.body_text()))?;
    Ok((queue_name(Ok(Path(queue)))?, task_id(Ok(Path(task)))?))
}

/// A task's id as text.
pub(super) fn parse_task(text: &str) -> Option<TaskId> {
    TaskId::parse(text)
}

/// The `wait_ms` of a query.
pub(super) fn wait(pairs: &[(String, String)]) -> Result<Option<Duration>, Error> {
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

/// The answer that there is no such task.
pub(super) fn no_task(task: TaskId) -> Error {
    let text = "no such task: it never was, or it ended longer ago than finished tasks are kept";
    Error::new(ErrorCode::NotFound, text).task(task)
}

/// The answer that there is no such queue.
pub(super) fn no_queue(queue: &QueueName) -> Error {
    let text = format!("there is no queue {queue}: the first submit, subscribe, pull, pause or PUT makes it");
    Error::new(ErrorCode::NotFound, text)
}

/// Refuses what the account may not do on a queue that it named.
pub(super) fn allowed(
    app: &App,
    identity: &Identity,
    action: Action,
    queue: &QueueName,
) -> Result<(), Error> {
    let Some(access) = identity.access() else { return Ok(()) };
    access.check(action, queue).inspect_err(|_| app.metrics.refused(Refused::Forbidden))
}

/// Refuses what takes a permission on every name.
pub(super) fn allowed_everywhere(
    app: &App,
    identity: &Identity,
    action: Action,
    what: &str,
) -> Result<(), Error> {
    if identity.grants.may_every(action) {
        return Ok(());
    }
    app.metrics.refused(Refused::Forbidden);
    let text = format!(
        "the token of {} may not {what}: that takes the permission {action}:*, since it is of all queues",
        identity.account
    );
    Err(Error::new(ErrorCode::Forbidden, text))
}

/// Refuses a task that is not there, or of which the account may not know. It is asked before anything else is
/// said of the task, how long it takes included.
pub(super) async fn seen(app: &App, identity: &Identity, task: TaskId) -> Result<(), Error> {
    let access = identity.access();
    let seen = move |seen: Seen<'_>| {
        let queue = seen.shard.queue_of(task);
        queue.is_some_and(|queue| access.is_none_or(|access| access.may_see(queue)))
    };
    match app.broker.inspect_now(seen).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(no_task(task)),
        Err(gone) => Err(gone.error()),
    }
}

/// A message that answers something else than what was asked.
pub(super) fn misfit(kind: &str) -> Error {
    tracing::error!(kind, "an answer that does not answer the request");
    Error::new(ErrorCode::Internal, "the broker gave an answer that does not fit: report this")
}

/// The same, as an answer.
pub(super) fn internal(encoding: Encoding, message: &ServerMessage) -> Response {
    body::refused(encoding, misfit(message.type_text()))
}

/// Has something done that an operator asks for.
pub(super) async fn manage(app: &App, identity: &Identity, manage: Manage) -> Result<Report, Error> {
    match app.broker.manage(manage, identity.access()).await {
        Ok(Report::Refused(error)) => Err(*error),
        Ok(report) => Ok(report),
        Err(gone) => Err(gone.error()),
    }
}

/// The number that such a thing is answered with.
pub(super) async fn count(app: &App, identity: &Identity, what: Manage) -> Result<u64, Error> {
    match manage(app, identity, what).await? {
        Report::Count(count) => Ok(count),
        other => Err(misfit(&format!("{other:?}"))),
    }
}

/// Looks at the state and shows a document of it, or says why there is none.
pub(super) async fn show(
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

/// Who asks, as the front found out.
pub(super) type Caller = axum::Extension<Arc<Identity>>;

/// A document, or an error.
pub(super) fn answer(encoding: Encoding, result: Result<(StatusCode, String), Error>) -> Response {
    match result {
        Ok((status, json)) => body::document(status, encoding, &json),
        Err(error) => body::refused(encoding, error),
    }
}
