//! Rooms: something said from outside.

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use taskyard_proto::{
    ClientMessage, Error, Payload, Publish, QueueName, RoomName, ServerMessage, WorkerName,
};

use super::body::{self, Kind};
use super::request::{Caller, Segment, allowed, bad_request, internal, plain, room_name};
use super::{App, schema};
use crate::auth::Identity;
use crate::core::Action;

/// Who speaks, where the account's name is none that a worker may have, or there is no account.
const NOBODY: &str = "http";

/// Say something in a room
///
/// All that are in the room hear it, as far as they keep up; nobody may be. `from` is the account's name. A body of
/// any other type than JSON or MessagePack is what is said, as bytes.
#[utoipa::path(
    post,
    path = "/v1/rooms/{room}",
    operation_id = "publish",
    tag = "rooms",
    params(schema::InRoom),
    request_body(
        description = "What is said; null if it is empty.",
        content((schema::Publish = "application/json"), (schema::Bytes = "application/octet-stream")),
    ),
    responses((status = 200, description = "It was said.", body = schema::Nothing)),
)]
pub(super) async fn publish(
    State(app): State<App>,
    Extension(identity): Caller,
    room: Segment,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let publish = async {
        let room = room_name(room).map_err(plain)?;
        // Rooms are named like queues in rules.
        let name = QueueName::parse(room.as_str()).expect("names of rooms and queues are of one form");
        allowed(&app, &identity, Action::Submit, &name).map_err(plain)?;
        let bytes = body::read(&headers, body, app.sockets.settings.message_bytes).await?;
        said(&headers, room, bytes)
    };
    let publish = match publish.await {
        Ok(publish) => publish,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    match app.broker.publish(publish, speaker(&identity)).await {
        Ok(ServerMessage::Done(_)) => body::document(StatusCode::OK, encoding, "{}"),
        Ok(ServerMessage::Error(error)) => body::refused(encoding, *error),
        Ok(other) => internal(encoding, &other),
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

fn said(headers: &HeaderMap, room: RoomName, bytes: bytes::Bytes) -> Result<Publish, (StatusCode, Error)> {
    if body::kind(headers, bytes.is_empty()) == Kind::Bytes {
        return Ok(Publish { room, payload: Payload::binary(bytes), exclude_self: false });
    }
    match body::decode(headers, &bytes, "publish", &[("room", room.as_str())])? {
        ClientMessage::Publish(publish) => Ok(publish),
        _ => Err(plain(bad_request("the body is nothing to say in a room"))),
    }
}

fn speaker(identity: &Identity) -> WorkerName {
    let account = identity.access().and_then(|access| WorkerName::parse(&access.account).ok());
    account.unwrap_or_else(|| WorkerName::parse(NOBODY).expect("four letters are a name"))
}
