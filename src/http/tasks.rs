//! Tasks by their id, and those of a queue.

use std::time::Duration;

use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use taskyard_proto::{Cancel, Encoding, Error, ErrorCode, Int, QueueName, ServerMessage, TaskId, Watch};

use super::query::Parameters;
use super::request::{
    Caller, Segment, WAIT_MS_MAX, allowed, answer, bad_request, internal, manage, misfit, no_queue, no_task,
    queue_name, seen, task_id,
};
use super::{App, body, schema, view};
use crate::auth::Identity;
use crate::broker::Seen;
use crate::core::view::{Carried, TaskView};
use crate::core::{Action, Manage, Report, TaskFilter};
use crate::metrics::Refused;

/// How long workers may take to stop, where nothing is said.
const GRACE_MS: u64 = 10_000;
/// The longest that they may be given.
const GRACE_MS_MAX: u64 = 3_600_000;

/// Look at a task
///
/// With `wait_ms` the answer waits for the task's end. With `payload=true` it says what the task was submitted with, too,
/// until it is done, cancelled or expired; that takes the permission `observe`.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task}",
    operation_id = "get_task",
    tag = "tasks",
    params(schema::OfTask, schema::Wait, schema::WithPayload),
    responses(
        (status = 200, description = "The task.", body = view::Task),
        (status = 202, description = "The task, which has not ended within `wait_ms`.", body = view::Task),
        (status = 403, description = "The token may see the task, and not its payload.", body = schema::Error),
        (status = 404, description = "There is no such task, or the token may not see it.", body = schema::Error),
    ),
)]
pub(super) async fn task(
    State(app): State<App>,
    Extension(identity): Caller,
    task: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let parts = async {
        let mut parameters = Parameters::of(query.as_deref());
        let limit = parameters.integer("wait_ms", 0..=WAIT_MS_MAX)?.map(Duration::from_millis);
        let with_payload = parameters.flag("payload")?;
        parameters.end()?;
        let task = task_id(task)?;
        seen(&app, &identity, task).await?;
        if with_payload {
            may_read(&app, &identity, task).await?;
        }
        Ok((task, limit, with_payload))
    };
    let (task, limit, with_payload) = match parts.await {
        Ok(parts) => parts,
        Err(error) => return body::refused(encoding, error),
    };
    let mut status = StatusCode::OK;
    if let Some(limit) = limit {
        let call = match app.broker.ask(Watch { task, from_seq: None }).await {
            Ok(call) => call,
            Err(gone) => return body::refused(encoding, gone.error()),
        };
        match call.end_within(&app.broker, task, limit).await {
            Ok(Some(ServerMessage::Error(error))) => return body::refused(encoding, *error),
            Ok(Some(_)) => {}
            Ok(None) => status = StatusCode::ACCEPTED,
            Err(gone) => return body::refused(encoding, gone.error()),
        }
    }
    let found = match with_payload {
        true => look_inside(&app, task).await,
        false => {
            let found = app.broker.inspect(move |seen| seen.shard.task_view(task, seen.now)).await;
            found.map(|found| Some((found?, None))).map_err(|gone| gone.error())
        }
    };
    match found {
        Ok(Some((found, inside))) => {
            body::encoded(status, encoding, view::task(&found, inside.as_ref(), encoding))
        }
        Ok(None) => body::refused(encoding, no_task(task)),
        Err(error) => body::refused(encoding, error),
    }
}

/// A task, and what it was submitted with while that is known: brought back from the store if it is there alone.
async fn look_inside(app: &App, task: TaskId) -> Result<Option<(TaskView, Option<view::Inside>)>, Error> {
    // A second look is for one that ended between the first and its payload's arrival.
    for _ in 0..2 {
        let look =
            move |seen: Seen<'_>| Some((seen.shard.task_view(task, seen.now)?, seen.shard.carried(task)));
        let found = app.broker.inspect(look).await.map_err(|gone| gone.error())?;
        let Some((found, carried)) = found else { return Ok(None) };
        let Some(Carried { headers, payload }) = carried else { return Ok(Some((found, None))) };
        let payload = match payload {
            Some(payload) => Some(payload),
            None => app.broker.stored_payload(task).await.map_err(|gone| gone.error())?,
        };
        if let Some(payload) = payload {
            return Ok(Some((found, Some(view::Inside { payload, headers }))));
        }
    }
    Err(misfit("no payload of a task that waits"))
}

/// Who may observe a task's queue may read what its tasks carry. Who may submit to it may ask how they stand, and does
/// not read what others sent.
async fn may_read(app: &App, identity: &Identity, task: TaskId) -> Result<(), Error> {
    let Some(access) = identity.access() else { return Ok(()) };
    let queue = app.broker.inspect_now(move |seen| seen.shard.queue_of(task).cloned()).await;
    match queue.map_err(|gone| gone.error())? {
        Some(queue) if !access.grants.may(Action::Observe, queue.as_str()) => {
            app.metrics.refused(Refused::Forbidden);
            let text = format!(
                "the token of {} may not read payloads of {queue}: that takes the permission observe:{queue}; \
                 without payload=true the task is shown",
                access.account
            );
            Err(Error::new(ErrorCode::Forbidden, text).task(task))
        }
        Some(_) => Ok(()),
        None => Err(no_task(task)),
    }
}

/// Cancel a task
///
/// One that waits ends at once. A worker that has it is asked to break off; an ack within the grace still makes
/// the task done.
#[utoipa::path(
    delete,
    path = "/v1/tasks/{task}",
    operation_id = "cancel_task",
    tag = "tasks",
    params(schema::OfTask, schema::Grace),
    responses(
        (status = 200, description = "The task is cancelled, now or before.", body = schema::Standing),
        (status = 202, description = "A worker was asked to break off.", body = schema::Standing),
        (status = 404, description = "There is no such task, or the token may not see it.", body = schema::Error),
        (status = 409, description = "The task has ended otherwise.", body = schema::Error),
    ),
)]
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(identity): Caller,
    task: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let asked = async {
        let mut parameters = Parameters::of(query.as_deref());
        let grace_ms = parameters.integer("grace_ms", 0..=GRACE_MS_MAX)?.and_then(Int::new);
        parameters.end()?;
        let task = task_id(task)?;
        may_cancel(&app, &identity, task).await?;
        let mut call = app.broker.ask(Cancel { task, grace_ms }).await.map_err(|gone| gone.error())?;
        let said = call.answer().await.map_err(|gone| gone.error())?;
        Ok((task, said))
    };
    let (task, said) = match asked.await {
        Ok(asked) => asked,
        Err(error) => return body::refused(encoding, error),
    };
    let state = match said {
        ServerMessage::Done(done) if done.state.0.is_some() => done.state.0,
        ServerMessage::Error(error) => return body::refused(encoding, *error),
        other => return internal(encoding, &other),
    };
    let over = state.is_some_and(|state| state.is_final());
    let status = if over { StatusCode::OK } else { StatusCode::ACCEPTED };
    body::document(status, encoding, &view::standing(task, state))
}

/// Who may submit to a task's queue, or manage it, may cancel the task. To who may only look at it that is
/// forbidden; to anybody else the task is none.
async fn may_cancel(app: &App, identity: &Identity, task: TaskId) -> Result<(), Error> {
    let Some(access) = identity.access() else { return Ok(()) };
    let account = access.account.clone();
    let checked = app.broker.inspect_now(move |seen| {
        let queue = seen.shard.queue_of(task).filter(|queue| access.may_see(queue));
        let queue = queue.ok_or_else(|| no_task(task))?;
        let may = |action| access.grants.may(action, queue.as_str());
        if may(Action::Submit) || may(Action::Manage) {
            return Ok(());
        }
        let text = format!(
            "the token of {account} may not cancel tasks of {queue}: that takes the permission submit:{queue} or \
             manage:{queue}"
        );
        Err(Error::new(ErrorCode::Forbidden, text).task(task))
    });
    let checked = checked.await.map_err(|gone| gone.error())?;
    checked.inspect_err(|error| {
        if error.code == ErrorCode::Forbidden {
            app.metrics.refused(Refused::Forbidden);
        }
    })
}

/// Why a task is not with a worker
///
/// All that holds the task up at the moment, most telling first.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task}/explain",
    operation_id = "explain_task",
    tag = "tasks",
    params(schema::OfTask),
    responses(
        (status = 200, description = "What holds the task up.", body = view::Explained),
        (status = 404, description = "There is no such task, or the token may not see it.", body = schema::Error),
    ),
)]
pub(super) async fn explain(
    State(app): State<App>,
    Extension(identity): Caller,
    task: Segment,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let parts = async {
        let task = task_id(task)?;
        seen(&app, &identity, task).await?;
        Ok(task)
    };
    let task = match parts.await {
        Ok(task) => task,
        Err(error) => return body::refused(encoding, error),
    };
    // As it is in memory: what keeps a task from being durable must be seen, too.
    let found = app.broker.inspect_now(move |seen| seen.shard.explain(task, seen.now)).await;
    let found = found.map_err(|gone| gone.error()).and_then(|found| found.ok_or_else(|| no_task(task)));
    answer(encoding, found.map(|found| (StatusCode::OK, view::explained(found))))
}

/// The tasks of a queue
///
/// Those that have not ended, dead letters, and finished ones that are kept; in order of their making.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}/tasks",
    operation_id = "list_tasks",
    tag = "queues",
    params(schema::InQueue, schema::InStates, schema::Page, schema::Filter),
    responses(
        (status = 200, description = "Some of the tasks.", body = view::Tasks),
        (status = 404, description = "There is no such queue.", body = schema::Error),
    ),
)]
pub(super) async fn list(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let parts = || {
        let queue = queue_name(queue)?;
        allowed(&app, &identity, Action::Observe, &queue)?;
        let mut parameters = Parameters::of(query.as_deref());
        let filter = parameters.filter(true)?;
        let page = parameters.page()?;
        parameters.end()?;
        Ok((queue, filter, page))
    };
    match parts() {
        Ok((queue, filter, page)) => show_list(&app, encoding, queue, filter, page).await,
        Err(error) => body::refused(encoding, error),
    }
}

/// Shows a part of a queue's tasks.
pub(super) async fn show_list(
    app: &App,
    encoding: Encoding,
    queue: QueueName,
    filter: TaskFilter,
    (limit, after): (usize, Option<TaskId>),
) -> Response {
    // One more than is shown tells whether there are more.
    match app.broker.list_tasks(queue.clone(), filter, after, limit + 1).await {
        Ok(Some(found)) => body::encoded(StatusCode::OK, encoding, view::tasks(&found, limit, encoding)),
        Ok(None) => body::refused(encoding, no_queue(&queue)),
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

/// Cancel many tasks of a queue
///
/// Those that a filter lets through, wherever they are; without a filter `all=true` must say that all are meant.
#[utoipa::path(
    delete,
    path = "/v1/queues/{queue}/tasks",
    operation_id = "cancel_tasks",
    tag = "queues",
    params(schema::InQueue, schema::InStates, schema::Filter, schema::All, schema::Grace),
    responses(
        (status = 200, description = "How many were cancelled.", body = schema::CancelledMany),
        (status = 404, description = "There is no such queue.", body = schema::Error),
    ),
)]
pub(super) async fn cancel_many(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let done = async {
        let queue = queue_name(queue)?;
        allowed(&app, &identity, Action::Manage, &queue)?;
        let mut parameters = Parameters::of(query.as_deref());
        let grace_ms = parameters.integer("grace_ms", 0..=GRACE_MS_MAX)?.unwrap_or(GRACE_MS);
        let filter = parameters.selection(true)?;
        if filter.states.iter().any(|state| state.is_final()) {
            let text = "parameter `state`: a task that has ended cannot be cancelled; dead letters are deleted \
                        with DELETE /v1/queues/{queue}/dead";
            return Err(bad_request(text).field("state"));
        }
        match manage(&app, &identity, Manage::CancelMany { queue, filter, grace_ms }).await? {
            Report::Cancelled { cancelled, stopping } => {
                let json = serde_json::json!({"cancelled": cancelled, "stopping": stopping});
                Ok((StatusCode::OK, json.to_string()))
            }
            other => Err(misfit(&format!("{other:?}"))),
        }
    };
    answer(body::answer_encoding(&headers), done.await)
}
