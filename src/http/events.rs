//! A task's events as they happen: server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Frame;
use hyper::header::{self, HeaderMap};
use taskyard_proto::{Encoding, Error, ErrorCode, ServerMessage, TaskId, codec};
use tokio::sync::mpsc;

use super::query::{INTEGER_MAX, Parameters};
use super::request::{Caller, Segment, bad_request, no_task, seen, task_id};
use super::{App, body, schema};
use crate::auth::{Authority, Identity, Standing};
use crate::broker::Call;
use crate::metrics::Refused;

/// A stream in which nothing happens says so this often: for whoever is on the way, and to find out whether the
/// client is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that may wait for a client to read them, beside those that wait at the broker.
const WAITING: usize = 4;

/// Follow a task
///
/// Server-sent events, from the task's first one on: `id` is `seq`, `event` is `event` or `finished`, `data` is that
/// message as one line of JSON. The stream ends after `finished`. `Last-Event-ID`, which browsers send when they
/// connect again, or `from_seq` leaves out what was told already. Who has heard `finished` gets 204, which tells a
/// browser to stay away. A comment comes every 15 seconds in which nothing happens. A stream that ends without
/// `finished` was cut off: by the end of the broker or of the token, or because it was read too slowly.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task}/events",
    operation_id = "follow_task",
    tag = "tasks",
    params(
        schema::OfTask,
        ("from_seq" = Option<u64>, Query, description = "Only events with a greater `seq`; 0 if absent.",
            maximum = 9_007_199_254_740_991_u64, nullable = false),
        ("last-event-id" = Option<u64>, Header, description = "The same, and goes before it.",
            maximum = 9_007_199_254_740_991_u64, nullable = false),
    ),
    responses(
        (status = 200, description = "The events: the `data` of each is an `Event`, of the last one a `Finished`.",
            body = String, content_type = "text/event-stream"),
        (status = 204, description = "The task has ended, and `Last-Event-ID` says that this was heard."),
        (status = 404, description = "There is no such task, or the token may not see it.", body = schema::Error),
    ),
)]
pub(super) async fn events(
    State(app): State<App>,
    Extension(identity): Caller,
    task: Segment,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let begun = async {
        let from_seq = from_seq(query.as_deref(), &headers)?;
        let task = task_id(task)?;
        seen(&app, &identity, task).await?;
        // A stream is as much as a socket: an account may have so many of both.
        let place = identity.connect().map_err(|full| {
            app.metrics.refused(Refused::Connections);
            Error::new(ErrorCode::RateLimited, full.to_string())
        })?;
        Ok(begin(&app, task, from_seq).await?.map(|call| (call, place)))
    };
    match begun.await {
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Ok(Some((call, place))) => {
            let (sender, receiver) = mpsc::channel(WAITING);
            let authority = app.sockets.authority.clone();
            // The request's own end is seen at the channel; the dispatcher's at the call.
            tokio::spawn(async move {
                tell(call, sender, &authority, &identity).await;
                drop(place);
            });
            let head = [
                (header::CONTENT_TYPE, "text/event-stream"),
                (header::CACHE_CONTROL, "no-cache"),
                // Proxies that gather answers would hold events back.
                (header::HeaderName::from_static("x-accel-buffering"), "no"),
            ];
            (head, Body::new(Lines(receiver))).into_response()
        }
        Err(error) => body::refused(encoding, error),
    }
}

/// Where to go on.
fn from_seq(query: Option<&str>, headers: &HeaderMap) -> Result<u64, Error> {
    let mut parameters = Parameters::of(query);
    let asked = parameters.integer("from_seq", 0..=INTEGER_MAX)?;
    parameters.end()?;
    let Some(last) = headers.get("last-event-id") else { return Ok(asked.unwrap_or(0)) };
    let last = last.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match last.and_then(|text| text.parse::<u64>().ok()).filter(|seq| *seq <= INTEGER_MAX) {
        Some(seq) => Ok(seq),
        None => {
            let text =
                "`Last-Event-ID`: expected the `id` of an event that this stream sent, which is an integer";
            Err(bad_request(text).field("last-event-id"))
        }
    }
}

/// Begins to follow a task; none: it has ended, and that was heard.
async fn begin(app: &App, task: TaskId, from_seq: u64) -> Result<Option<Call>, Error> {
    // What it looks at is durable: nobody is told of a task that a power cut would take.
    let look = app.broker.inspect(move |seen| {
        let known = seen.shard.queue_of(task).is_some();
        (known, seen.shard.finished(task).map(|finished| finished.seq))
    });
    let (known, end) = look.await.map_err(|gone| gone.error())?;
    if !known {
        return Err(no_task(task));
    }
    if from_seq > 0 && end.is_some_and(|seq| seq <= from_seq) {
        return Ok(None);
    }
    app.broker.follow(task, from_seq).await.map(Some).map_err(|gone| gone.error())
}

/// Passes on what happens until the task's end, the client's, its token's or the broker's. Dropped, the call hangs up.
async fn tell(mut call: Call, sender: mpsc::Sender<Bytes>, authority: &Authority, identity: &Identity) {
    let mut changes = authority.changes();
    loop {
        let event = tokio::select! {
            () = sender.closed() => return,
            answer = call.answer() => match answer.ok().as_ref().and_then(event) {
                Some(event) => Some(event),
                // It was there a moment ago: the stream ends, and who asks again is told.
                None => return,
            },
            Ok(()) = changes.changed() => None,
            () = tokio::time::sleep(KEEP_ALIVE) => Some((Bytes::from_static(b":\n\n"), false)),
        };
        // Whose token has ended hears nothing more.
        if authority.standing(identity, crate::clock::wall()) != Standing::Same {
            return;
        }
        let Some((bytes, last)) = event else { continue };
        if sender.send(bytes).await.is_err() || last {
            return;
        }
    }
}

/// An event of the stream, and whether it is the last.
fn event(message: &ServerMessage) -> Option<(Bytes, bool)> {
    let (name, seq, last) = match message {
        ServerMessage::Event(event) => ("event", event.seq, false),
        ServerMessage::Finished(finished) => ("finished", finished.seq, true),
        ServerMessage::Error(error) => {
            tracing::debug!("a stream of events ended: {}", error.message.as_str());
            return None;
        }
        other => {
            tracing::error!(kind = other.type_text(), "no event of a task");
            return None;
        }
    };
    let mut text = format!("id: {seq}\nevent: {name}\ndata: ").into_bytes();
    let from = text.len();
    text.extend(codec::encode_body(Encoding::Json, message));
    // A worker's own JSON may have line ends between its values; within texts they are escaped.
    for byte in &mut text[from..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    text.extend(b"\n\n");
    Some((text.into(), last))
}

/// The body of the answer.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use taskyard_proto::message::Finished;
    use taskyard_proto::{Payload, TaskState};

    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_the_worker_wrote() {
        let finished = Finished {
            task: TaskId(1),
            seq: 7,
            state: TaskState::Done,
            result: Payload::json_text("{\r\n  \"a\":\t[1,\n2], \"b\": \"x\\ny\"\n}").unwrap(),
            error: None,
            attempts: 1,
            recipients: None,
            delivered: None,
            acked: None,
            failed: None,
        };
        let (bytes, last) = event(&finished.into()).unwrap();
        assert!(last);
        let text = std::str::from_utf8(&bytes).unwrap();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!((lines[0], lines[1], &lines[3..]), ("id: 7", "event: finished", &["", ""][..]));
        let data: serde_json::Value = serde_json::from_str(lines[2].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["result"], serde_json::json!({"a": [1, 2], "b": "x\ny"}));
        assert!(!text.contains('\r'));
    }
}
