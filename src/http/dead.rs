//! Dead letters: looked at, given new attempts, forgotten.

use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde_json::Value;
use taskyard_proto::{Error, TaskId, TaskState};

use super::fields::Fields;
use super::query::{self, INTEGER_MAX, Parameters};
use super::queues::managed;
use super::request::{
    Caller, Segment, Segments, allowed, answer, bad_request, count, parse_task, plain, queue_and_task,
    queue_name,
};
use super::tasks::show_list;
use super::{App, body, schema, view};
use crate::core::{Action, Manage, TaskFilter, Which};

/// How many dead letters can be named at once.
const TASKS_MAX: usize = 1024;
/// The highest rate, in tasks a second.
const RATE_MAX: u32 = 1_000_000;

/// The dead letters of a queue
///
/// In order of their making. The same filters as for tasks hold.
#[utoipa::path(
    get,
    path = "/v1/queues/{queue}/dead",
    operation_id = "list_dead",
    tag = "dead letters",
    params(schema::InQueue, schema::Page, schema::Filter),
    responses(
        (status = 200, description = "Some of the dead letters.", body = view::Tasks),
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
        let filter = of_the_dead(parameters.filter(false)?);
        let page = parameters.page()?;
        parameters.end()?;
        Ok((queue, filter, page))
    };
    match parts() {
        Ok((queue, filter, page)) => show_list(&app, encoding, queue, filter, page).await,
        Err(error) => body::refused(encoding, error),
    }
}

fn of_the_dead(filter: TaskFilter) -> TaskFilter {
    TaskFilter { states: vec![TaskState::Dead], ..filter }
}

/// Give dead letters new attempts
///
/// They keep their ids, and their attempts are counted anew. With `rate_per_s` the answer comes at once, and says how
/// many it will be.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/dead/redrive",
    operation_id = "redrive_dead",
    tag = "dead letters",
    params(schema::InQueue),
    request_body(description = "Which, and how fast; all at once if it is empty.", content = Option<schema::RedriveGiven>),
    responses(
        (status = 200, description = "How many were redriven.", body = schema::Redriven),
        (status = 404, description = "There is no such queue, or one of `tasks` is no dead letter of it: nothing was \
            done.", body = schema::Error),
    ),
)]
pub(super) async fn redrive(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let redriven = async {
        let (queue, fields) = managed(&app, &identity, (queue, query.as_deref()), &headers, body).await?;
        let (which, rate_per_s) = which(fields).map_err(plain)?;
        count(&app, &identity, Manage::Redrive { queue, which, rate_per_s }).await.map_err(plain)
    };
    match redriven.await {
        Ok(redriven) => {
            let json = serde_json::json!({"redriven": redriven});
            body::document(StatusCode::OK, encoding, &json.to_string())
        }
        Err((status, error)) => body::refused_as(status, encoding, error),
    }
}

fn which(mut fields: Fields) -> Result<(Which, Option<f64>), Error> {
    let rate_per_s = fields.rate("rate_per_s", RATE_MAX)?.flatten();
    let named = fields.with("tasks", format_args!("a list of at most {TASKS_MAX} tasks' ids"), tasks)?;
    let headers = fields.with("headers", "an object of texts", texts)?;
    let filter = TaskFilter {
        states: Vec::new(),
        older_than_ms: fields.integer("older_than_ms", 0..=INTEGER_MAX)?.flatten(),
        headers: headers.flatten().unwrap_or_default(),
        order_key: fields
            .text("order_key", 1..=256)?
            .map(|text| query::key("order_key", &text))
            .transpose()?,
        fair_key: fields.text("fair_key", 1..=256)?.map(|text| query::key("fair_key", &text)).transpose()?,
        reason: fields.text("reason", 1..=64)?.map(|text| query::reason(&text)).transpose()?,
        error_contains: fields
            .text("error_contains", 1..=taskyard_proto::ERROR_BYTES_MAX)?
            .map(query::error_text)
            .transpose()?,
    };
    fields.end()?;
    query::headers_fit(&filter.headers)?;
    match named.flatten() {
        None => Ok((Which::Filter(of_the_dead(filter)), rate_per_s)),
        Some(tasks) if filter == TaskFilter::default() => Ok((Which::Tasks(tasks), rate_per_s)),
        Some(_) => {
            let text =
                "field `tasks`: was given together with a filter: name the tasks, or say which they are";
            Err(bad_request(text).field("tasks"))
        }
    }
}

fn tasks(value: &Value) -> Option<Vec<TaskId>> {
    let list = value.as_array().filter(|list| list.len() <= TASKS_MAX)?;
    list.iter().map(|item| parse_task(item.as_str()?)).collect()
}

fn texts(value: &Value) -> Option<Vec<(String, String)>> {
    value.as_object()?.iter().map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned()))).collect()
}

/// Forget a dead letter
#[utoipa::path(
    delete,
    path = "/v1/queues/{queue}/dead/{task}",
    operation_id = "delete_dead",
    tag = "dead letters",
    params(schema::InQueue, schema::OfTask),
    responses(
        (status = 200, description = "It was forgotten.", body = schema::Deleted),
        (status = 404, description = "There is no such dead letter in the queue.", body = schema::Error),
    ),
)]
pub(super) async fn delete_one(
    State(app): State<App>,
    Extension(identity): Caller,
    segments: Segments,
    headers: HeaderMap,
) -> Response {
    let deleted = async {
        let (queue, task) = queue_and_task(segments)?;
        allowed(&app, &identity, Action::Manage, &queue)?;
        let which = Which::Tasks(vec![task]);
        let deleted = count(&app, &identity, Manage::DeleteDead { queue, which }).await?;
        Ok((StatusCode::OK, serde_json::json!({"deleted": deleted}).to_string()))
    };
    answer(body::answer_encoding(&headers), deleted.await)
}

/// Forget dead letters
///
/// Those that a filter lets through; without a filter `all=true` must say that all are meant.
#[utoipa::path(
    delete,
    path = "/v1/queues/{queue}/dead",
    operation_id = "delete_all_dead",
    tag = "dead letters",
    params(schema::InQueue, schema::Filter, schema::All),
    responses(
        (status = 200, description = "How many were forgotten.", body = schema::Deleted),
        (status = 404, description = "There is no such queue.", body = schema::Error),
    ),
)]
pub(super) async fn delete_many(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let deleted = async {
        let queue = queue_name(queue)?;
        allowed(&app, &identity, Action::Manage, &queue)?;
        let which = Which::Filter(of_the_dead(Parameters::of(query.as_deref()).selection(false)?));
        let deleted = count(&app, &identity, Manage::DeleteDead { queue, which }).await?;
        Ok((StatusCode::OK, serde_json::json!({"deleted": deleted}).to_string()))
    };
    answer(body::answer_encoding(&headers), deleted.await)
}
