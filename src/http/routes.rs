//! Which path is which verb.

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode, Uri};
use taskyard_proto::{Error, ErrorCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::request::bad_request;
use super::{
    App, body, dead, events, leases, overview, queues, rooms, schedules, service, submit, tasks, ui, workers,
};

/// All routes that describe themselves.
pub(super) fn served() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(submit::submit, tasks::list, tasks::cancel_many))
        .routes(routes!(submit::submit_many))
        .routes(routes!(tasks::task, tasks::cancel))
        .routes(routes!(events::events))
        .routes(routes!(tasks::explain))
        .routes(routes!(leases::pull))
        .routes(routes!(leases::ack))
        .routes(routes!(leases::nack))
        .routes(routes!(leases::release))
        .routes(routes!(leases::extend))
        .routes(routes!(leases::progress))
        .routes(routes!(leases::start))
        .routes(routes!(leases::cancelled))
        .routes(routes!(queues::queues))
        .routes(routes!(queues::queue, queues::put))
        .routes(routes!(queues::pause))
        .routes(routes!(queues::unpause))
        .routes(routes!(queues::purge))
        .routes(routes!(dead::list, dead::delete_many))
        .routes(routes!(dead::redrive))
        .routes(routes!(dead::delete_one))
        .routes(routes!(workers::workers))
        .routes(routes!(workers::drain))
        .routes(routes!(workers::remove))
        .routes(routes!(rooms::publish))
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::show, schedules::put, schedules::delete))
        .routes(routes!(overview::overview))
        .routes(routes!(service::me))
        .routes(routes!(service::openapi))
        .routes(routes!(service::metrics))
        .routes(routes!(service::healthz))
        .routes(routes!(service::readyz))
        .routes(routes!(service::welcome))
}

/// All routes.
pub fn router(app: App) -> Router {
    // Files are no verbs, and describe nothing.
    let router = Router::from(served()).route("/ui/{file}", get(ui::file));
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).with_state(app)
}

async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let text = format!(
        "there is nothing at {}: tasks are submitted to /v1/queues/{{queue}}/tasks, sockets opened at /ws, and \
         /openapi.json has the rest",
        uri.path()
    );
    body::refused(body::answer_encoding(&headers), Error::new(ErrorCode::NotFound, text))
}

async fn method_not_allowed(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let error = bad_request(format!("{method} is not a verb of {}: see `Allow`", uri.path()));
    body::refused_as(StatusCode::METHOD_NOT_ALLOWED, body::answer_encoding(&headers), error)
}
