//! Pulled tasks, for workers that cannot hold a socket open, and what is said of their leases.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use taskyard_proto::message::CREDIT_MAX;
use taskyard_proto::{Encoding, Error, GroupName, ServerMessage, WorkerName, codec};

use super::query::Parameters;
use super::request::{
    Caller, Segment, WAIT_MS_MAX, allowed, bad_request, internal, lease, plain, queue_name,
};
use super::{App, body, schema};
use crate::auth::Identity;
use crate::broker::Wanted;
use crate::core::Action;

/// How many groups a pull may name.
const GROUPS_MAX: usize = 1024;

/// Pull tasks
///
/// Waits up to `wait_ms` for the first task, and takes as many as there are then; none is an empty list. Each has a
/// lease, to be settled with the verbs below before its ack timeout. The queue is made if there is none.
#[utoipa::path(
    post,
    path = "/v1/queues/{queue}/lease",
    operation_id = "pull_tasks",
    tag = "work",
    params(schema::InQueue, schema::PullQuery),
    responses((status = 200, description = "The tasks.", body = schema::Pulled)),
)]
pub(super) async fn pull(
    State(app): State<App>,
    Extension(identity): Caller,
    queue: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let given = match body::read(&headers, body, app.sockets.settings.message_bytes).await {
        Ok(given) => given,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    let parts = || {
        let queue = queue_name(queue)?;
        allowed(&app, &identity, Action::Consume, &queue)?;
        let mut parameters = Parameters::of(query.as_deref());
        let credit = parameters.integer("credit", 1..=CREDIT_MAX)?.unwrap_or(1);
        let credit = u32::try_from(credit).expect("the range is small");
        let limit = Duration::from_millis(parameters.integer("wait_ms", 0..=WAIT_MS_MAX)?.unwrap_or(0));
        let worker = parameters.text("worker")?.map(|text| WorkerName::parse(&text)).transpose();
        let worker = worker.map_err(|error| bad_request(error.to_string()).field("worker"))?;
        let groups = parameters.text("groups")?.map(|list| groups(&list)).transpose()?.unwrap_or_default();
        parameters.end()?;
        if !says_nothing(&given) {
            let text = "a pull has no body: `credit`, `wait_ms`, `worker` and `groups` are query parameters";
            return Err(bad_request(text));
        }
        Ok((Wanted { queue, credit, worker, groups }, limit))
    };
    let (wanted, limit) = match parts() {
        Ok(parts) => parts,
        Err(error) => return body::refused(encoding, error),
    };
    match app.broker.pull(wanted, identity.access(), limit).await {
        Ok(Ok(tasks)) => {
            let tasks: Vec<ServerMessage> = tasks.into_iter().map(ServerMessage::from).collect();
            body::encoded(StatusCode::OK, encoding, pulled(encoding, &tasks))
        }
        Ok(Err(error)) => body::refused(encoding, error),
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

/// Whether a body is empty, or what several languages write for that, in either encoding.
fn says_nothing(body: &[u8]) -> bool {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).take(5).collect();
    matches!(text.as_slice(), b"" | b"{}" | b"[]" | b"null" | [0x80] | [0x90] | [0xc0])
}

fn groups(list: &str) -> Result<Vec<GroupName>, Error> {
    if list.split(',').nth(GROUPS_MAX).is_some() {
        let text = format!("parameter `groups`: expected at most {GROUPS_MAX} names");
        return Err(bad_request(text).field("groups"));
    }
    let names = list.split(',').filter(|name| !name.is_empty()).map(GroupName::parse);
    names.collect::<Result<_, _>>().map_err(|error| bad_request(error.to_string()).field("groups"))
}

/// An object with the tasks, each as its message has it: what a producer sent stays byte for byte.
fn pulled(encoding: Encoding, tasks: &[ServerMessage]) -> Vec<u8> {
    let list = codec::encode_bodies(encoding, tasks);
    match encoding {
        Encoding::Json => [b"{\"tasks\":", list.as_slice(), b"}"].concat(),
        // A map of one, a text of five bytes.
        Encoding::MessagePack => [b"\x81\xa5tasks", list.as_slice()].concat(),
    }
}

/// Says something of a lease.
async fn say(
    app: &App,
    identity: &Identity,
    lease_text: Segment,
    verb: &'static str,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(headers);
    let message = async {
        let lease = lease(lease_text).map_err(plain)?;
        let bytes = body::read(headers, body, app.sockets.settings.message_bytes).await?;
        body::decode(headers, &bytes, verb, &[("lease", &lease)])
    };
    let message = match message.await {
        Ok(message) => message,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    match app.broker.settle(message, identity.access()).await {
        Ok(ServerMessage::Error(error)) => body::refused(encoding, *error),
        Ok(said @ (ServerMessage::Settled(_) | ServerMessage::Done(_))) => {
            body::message(StatusCode::OK, encoding, &said)
        }
        Ok(other) => internal(encoding, &other),
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

/// One handler for each verb: they differ in what their bodies are.
macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident, $verb:literal, $path:literal, $given:ty, $said:ty;)*) => {$(
        $(#[$doc])*
        #[utoipa::path(
            post,
            path = $path,
            tag = "work",
            params(schema::OfLease),
            request_body(description = "The fields of the message; an empty body has none.", content = Option<$given>),
            responses(
                (status = 200, description = "It counts.", body = $said),
                (status = 409, description = "The lease is old, foreign, unknown or garbled.", body = schema::Error),
            ),
        )]
        pub(super) async fn $name(
            State(app): State<App>,
            Extension(identity): Caller,
            lease: Segment,
            headers: HeaderMap,
            body: Body,
        ) -> Response {
            say(&app, &identity, lease, $verb, &headers, body).await
        }
    )*};
}

verbs! {
    /// The work is done
    ///
    /// The answer comes when it is durable.
    ack, "ack", "/v1/leases/{lease}/ack", schema::Ack, schema::Settled;
    /// The work failed
    ///
    /// The answer comes when it is durable. The task waits out its back-off, or is dead.
    nack, "nack", "/v1/leases/{lease}/nack", schema::Nack, schema::Settled;
    /// Give a task back
    ///
    /// Free of charge. The answer comes when it is durable.
    release, "release", "/v1/leases/{lease}/release", schema::Release, schema::Settled;
    /// Move the deadline
    extend, "extend", "/v1/leases/{lease}/extend", schema::Extend, schema::Done;
    /// Tell how far the work is
    ///
    /// The deadline moves to at least now + the task's ack timeout.
    progress, "progress", "/v1/leases/{lease}/progress", schema::Progress, schema::Done;
    /// Work has begun
    ///
    /// The ack timeout begins anew.
    start, "start", "/v1/leases/{lease}/start", schema::Start, schema::Done;
    /// The work was broken off
    ///
    /// Of a task that was cancelled meanwhile.
    cancelled, "cancelled", "/v1/leases/{lease}/cancelled", schema::Cancelled, schema::Settled;
}
