//! Which path is which verb.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use hyper::header::HeaderMap;
use hyper::{Method, StatusCode, Uri};
use taskyard_proto::{Error, ErrorCode};
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::query::Parameters;
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
    let (router, described) = served().split_for_parts();
    let router = router.route_layer(from_fn_with_state(Arc::new(Bare::of(&described)), refuse_parameters));
    // Files are no verbs, and describe nothing.
    let router = router.route("/ui/{file}", get(ui::file));
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).with_state(app)
}

/// The verbs of `/v1` that take no query parameters, by path and method, as they describe themselves. The others look
/// themselves for what is left over.
struct Bare(HashSet<(String, &'static str)>);

impl Bare {
    fn of(described: &OpenApi) -> Bare {
        let mut bare = HashSet::new();
        for (path, verbs) in described.paths.paths.iter().filter(|(path, _)| path.starts_with("/v1/")) {
            let verbs =
                [("GET", &verbs.get), ("PUT", &verbs.put), ("POST", &verbs.post), ("DELETE", &verbs.delete)];
            for (method, verb) in verbs {
                let of_query = |parameter: &Parameter| parameter.parameter_in == ParameterIn::Query;
                let takes = |verb: &Operation| verb.parameters.iter().flatten().any(of_query);
                if verb.as_ref().is_some_and(|verb| !takes(verb)) {
                    bare.insert((path.clone(), method));
                }
            }
        }
        Bare(bare)
    }
}

/// Refuses a parameter that is none of the verb's: a misspelled one must not pass for one that was left out.
async fn refuse_parameters(
    State(bare): State<Arc<Bare>>,
    path: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let method = match request.method() {
        // Which is answered as GET is.
        &Method::HEAD => "GET",
        method => method.as_str(),
    };
    if let Some(query) = request.uri().query()
        && bare.0.iter().any(|(of, verb)| of == path.as_str() && *verb == method)
        && let Err(error) = Parameters::of(Some(query)).end()
    {
        return body::refused(body::answer_encoding(request.headers()), error);
    }
    next.run(request).await
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
