//! Queues: what is in them, their settings, pause and purge.

use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use taskyard_proto::message::YEAR_MS;
use taskyard_proto::{Encoding, Error, ErrorCode, QueueName};

use super::fields::Fields;
use super::query::Parameters;
use super::request::{
    Caller, Segment, allowed, answer, count, manage, misfit, no_queue, plain, queue_name, show,
};
use super::{App, body, schema, settings, view};
use crate::auth::Identity;
use crate::core::{Action, Manage, Report};
use crate::metrics::Refused;

/// How many bytes the reason of a pause may have.
const REASON_BYTES_MAX: usize = 256;

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

/// All queues
///
/// Those that the token may see.
#[utoipa::path(
    get,
    path = "/v1/queues",
    operation_id = "list_queues",
    tag = "queues",
    responses((status = 200, description = "The queues.", body = view::Queues)),
)]
pub(super) async fn queues(
    State(app): State<App>,
    Extension(identity): Caller,
    headers: HeaderMap,
) -> Response {
    if let Err(error) = may_list(&app, &identity) {
        return body::refused(body::answer_encoding(&headers), error);
    }
    let encoding = body::answer_encoding(&headers);
    match app.broker.list_queues().await {
        Ok(all) => {
            let seen = all.iter().filter(|view| identity.grants.may(Action::Observe, view.queue.as_str()));
            body::document(StatusCode::OK, encoding, &view::queues(seen))
        }
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

/// A queue
///
/// Its counts, rates, settings, and whether it is paused.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}",
    operation_id = "get_queue",
    tag = "queues",
    params(schema::InQueue),
    responses(
        (status = 200, description = "The queue.", body = view::Queue),
        (status = 404, description = "There is no such queue.", body = schema::Error),
    ),
)]
pub(super) async fn queue(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let checked =
        queue_name(queue).and_then(|name| allowed(&app, &identity, Action::Observe, &name).map(|()| name));
    match checked {
        Ok(name) => show_queue(&app, StatusCode::OK, encoding, name).await,
        Err(error) => body::refused(encoding, error),
    }
}

async fn show_queue(app: &App, status: StatusCode, encoding: Encoding, name: QueueName) -> Response {
    show(app, status, encoding, move |seen| match seen.shard.queue_view(&name, seen.now) {
        Some(found) => Ok(view::queue(&found)),
        None => Err(no_queue(&name)),
    })
    .await
}

/// The queue that a request manages, and what its body says.
pub(super) async fn managed(
    app: &App,
    identity: &Identity,
    (queue, query): (Segment, Option<&str>),
    headers: &HeaderMap,
    body: Body,
) -> Result<(QueueName, Fields), (StatusCode, Error)> {
    let queue = queue_name(queue).map_err(plain)?;
    allowed(app, identity, Action::Manage, &queue).map_err(plain)?;
    // What it says is in its body: a filter in the query would be none, and all would be meant.
    Parameters::of(query).end().map_err(plain)?;
    let bytes = body::read(headers, body, app.sockets.settings.message_bytes).await?;
    Ok((queue, Fields::read(headers, &bytes)?))
}

/// Declare a queue
///
/// Makes the queue if there is none, and changes its settings: a field that is absent keeps what is, null resets it
/// to the default. Fields that are not known are refused.
#[utoipa::path(
    put,
    path = "/v1/queues/{queue}",
    operation_id = "declare_queue",
    tag = "queues",
    params(schema::InQueue),
    request_body(description = "What changes; nothing if it is empty.", content = Option<schema::SettingsGiven>),
    responses(
        (status = 200, description = "The queue, as it is now.", body = view::Queue),
        (status = 201, description = "The queue, which was made.", body = view::Queue),
    ),
)]
pub(super) async fn put(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let declared = async {
        let (queue, fields) = managed(&app, &identity, (queue, query.as_deref()), &headers, body).await?;
        let changes = Box::new(settings::read(fields).map_err(plain)?);
        let declare = Manage::Declare { queue: queue.clone(), changes };
        match manage(&app, &identity, declare).await.map_err(plain)? {
            Report::Created => Ok((queue, StatusCode::CREATED)),
            Report::Done => Ok((queue, StatusCode::OK)),
            other => Err(plain(misfit(&format!("{other:?}")))),
        }
    };
    match declared.await {
        Ok((queue, status)) => show_queue(&app, status, encoding, queue).await,
        Err((status, error)) => body::refused_as(status, encoding, error),
    }
}

/// Pause a queue
///
/// Nothing is delivered from it until the time is over, or somebody ends it; submits are taken, and what is with
/// workers is settled. A queue that is paused already is paused anew. The queue is made if there is none.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/pause",
    operation_id = "pause_queue",
    tag = "queues",
    params(schema::InQueue),
    request_body(description = "For how long, and why.", content = Option<schema::PauseGiven>),
    responses((status = 200, description = "The queue, which is paused.", body = view::Queue)),
)]
pub(super) async fn pause(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let paused = async {
        let (queue, mut fields) = managed(&app, &identity, (queue, query.as_deref()), &headers, body).await?;
        let read = || {
            let for_ms = fields.integer("for_ms", 1..=YEAR_MS)?.flatten();
            let reason = fields.text("reason", 0..=REASON_BYTES_MAX)?;
            fields.end()?;
            Ok((for_ms, reason))
        };
        let (for_ms, reason) = read().map_err(plain)?;
        let pause = Manage::Pause { queue: queue.clone(), for_ms, reason };
        manage(&app, &identity, pause).await.map_err(plain)?;
        Ok(queue)
    };
    match paused.await {
        Ok(queue) => show_queue(&app, StatusCode::OK, encoding, queue).await,
        Err((status, error)) => body::refused_as(status, encoding, error),
    }
}

/// End a pause
///
/// Of a queue that is not paused, too.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/unpause",
    operation_id = "unpause_queue",
    tag = "queues",
    params(schema::InQueue),
    responses(
        (status = 200, description = "The queue, which delivers.", body = view::Queue),
        (status = 404, description = "There is no such queue.", body = schema::Error),
    ),
)]
pub(super) async fn unpause(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let unpaused = async {
        let (queue, fields) = managed(&app, &identity, (queue, query.as_deref()), &headers, body).await?;
        fields.end().map_err(plain)?;
        manage(&app, &identity, Manage::Unpause { queue: queue.clone() }).await.map_err(plain)?;
        Ok(queue)
    };
    match unpaused.await {
        Ok(queue) => show_queue(&app, StatusCode::OK, encoding, queue).await,
        Err((status, error)) => body::refused_as(status, encoding, error),
    }
}

/// Cancel all that waits
///
/// Scheduled, queued and retrying tasks; what is with workers stays, and so do dead letters.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/purge",
    operation_id = "purge_queue",
    tag = "queues",
    params(schema::InQueue),
    responses(
        (status = 200, description = "How many tasks were cancelled.", body = schema::Purged),
        (status = 404, description = "There is no such queue.", body = schema::Error),
    ),
)]
pub(super) async fn purge(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let (queue, fields) = match managed(&app, &identity, (queue, query.as_deref()), &headers, body).await {
        Ok(parts) => parts,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    let purged = async {
        fields.end()?;
        let purged = count(&app, &identity, Manage::Purge { queue }).await?;
        Ok((StatusCode::OK, serde_json::json!({"purged": purged}).to_string()))
    };
    answer(encoding, purged.await)
}
