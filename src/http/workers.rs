//! Workers: who is connected, and their drain and removal.

use axum::extract::{Extension, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use taskyard_proto::{Error, WorkerName};

use super::queues::may_list;
use super::request::{Caller, Segment, allowed_everywhere, answer, manage, show, worker_name};
use super::{App, body, schema, view};
use crate::auth::Identity;
use crate::core::{Action, Manage};

/// Who is connected
///
/// Each with the queues that the token may see.
#[utoipa::path(
    get,
    path = "/v1/workers",
    operation_id = "list_workers",
    tag = "workers",
    responses((status = 200, description = "The workers.", body = view::Workers)),
)]
pub(super) async fn workers(
    State(app): State<App>,
    Extension(identity): Caller,
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
        Ok(view::workers(&all))
    })
    .await
}

/// Has something done with a worker: of all its queues, so it takes the permission for all.
async fn done(
    app: &App,
    identity: &Identity,
    worker: Segment,
    what: impl FnOnce(WorkerName) -> Manage,
) -> Result<(StatusCode, String), Error> {
    let worker = worker_name(worker)?;
    allowed_everywhere(app, identity, Action::Manage, "drain and remove workers")?;
    manage(app, identity, what(worker)).await?;
    Ok((StatusCode::OK, "{}".to_owned()))
}

/// Drain a worker
///
/// It is asked to finish what it holds (`going_away`), and is given nothing more.
#[utoipa::path(
    post,
    path = "/v1/workers/{worker}/drain",
    operation_id = "drain_worker",
    tag = "workers",
    params(schema::OfWorker),
    responses(
        (status = 200, description = "It was asked.", body = schema::Nothing),
        (status = 404, description = "No worker of this name is connected.", body = schema::Error),
    ),
)]
pub(super) async fn drain(
    State(app): State<App>,
    Extension(identity): Caller,
    worker: Segment,
    headers: HeaderMap,
) -> Response {
    let drained = done(&app, &identity, worker, |worker| Manage::DrainWorker { worker }).await;
    answer(body::answer_encoding(&headers), drained)
}

/// Remove a worker
///
/// Its socket is closed with 4010, and what it held goes to others.
#[utoipa::path(
    delete,
    path = "/v1/workers/{worker}",
    operation_id = "remove_worker",
    tag = "workers",
    params(schema::OfWorker),
    responses(
        (status = 200, description = "It was removed.", body = schema::Nothing),
        (status = 404, description = "No worker of this name is connected.", body = schema::Error),
    ),
)]
pub(super) async fn remove(
    State(app): State<App>,
    Extension(identity): Caller,
    worker: Segment,
    headers: HeaderMap,
) -> Response {
    let removed = done(&app, &identity, worker, |worker| Manage::RemoveWorker { worker }).await;
    answer(body::answer_encoding(&headers), removed)
}
