//! What GET shows, as JSON.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use taskyard_proto::TaskState;
use taskyard_proto::payload::PayloadKind;

use crate::core::record::FailedAttempt;
use crate::core::view::{QueueView, TaskView, WorkerView};

fn raw(text: String) -> Box<RawValue> {
    RawValue::from_string(text).expect("a payload is one JSON value")
}

fn attempt(attempt: &FailedAttempt) -> Value {
    json!({
        "attempt": attempt.attempt,
        "worker": attempt.worker.as_ref().map(ToString::to_string),
        "reason": attempt.reason.as_str(),
        "error": attempt.error.as_ref().map(|error| error.as_str()),
    })
}

/// `GET /v1/tasks/{id}`. The result keeps the text that the worker sent.
pub(super) fn task(view: &TaskView) -> String {
    #[derive(serde::Serialize)]
    struct Body<'a> {
        task: String,
        queue: &'a str,
        state: &'a str,
        attempt: u64,
        max_attempts: u64,
        age_ms: u64,
        worker: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        result: Option<Box<RawValue>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        result_b64: Option<Box<RawValue>>,
        error: Option<&'a str>,
        history: Vec<Value>,
    }
    let binary = view.result.kind() == PayloadKind::Binary;
    let result = raw(view.result.to_json());
    let (result, result_b64) = if binary { (None, Some(result)) } else { (Some(result), None) };
    let body = Body {
        task: view.task.to_string(),
        queue: view.queue.as_str(),
        state: view.state.as_str(),
        attempt: view.attempt,
        max_attempts: view.max_attempts,
        age_ms: view.age_ms,
        worker: view.worker.as_ref().map(|worker| worker.as_str()),
        result,
        result_b64,
        error: view.error.as_ref().map(|error| error.as_str()),
        history: view.history.iter().map(attempt).collect(),
    };
    serde_json::to_string(&body).expect("its keys are text")
}

/// One of `GET /v1/queues`.
pub(super) fn queue(view: &QueueView) -> Value {
    let counts: Map<String, Value> = TaskState::ALL
        .iter()
        .map(|state| (state.as_str().to_owned(), view.counts[*state as usize].into()))
        .collect();
    let [accepted, delivered, settled] = view.rates;
    json!({
        "queue": view.queue.as_str(),
        "counts": counts,
        "oldest_ms": view.oldest_ms,
        "rates": {"accepted": accepted, "delivered": delivered, "settled": settled},
        "workers": view.workers,
        "in_flight": view.unsettled,
        "credit_free": view.credit_free,
        "paused": null,
    })
}

/// One of `GET /v1/workers`.
pub(super) fn worker(view: &WorkerView) -> Value {
    let labels: Map<String, Value> =
        view.labels.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    let subscriptions: Vec<Value> = view
        .subscriptions
        .iter()
        .map(|(queue, credit, unsettled)| {
            json!({"queue": queue.as_str(), "credit": credit, "unsettled": unsettled})
        })
        .collect();
    json!({
        "worker": view.worker.as_str(),
        "session": format!("s{:x}", view.session),
        "groups": view.groups,
        "labels": labels,
        "client": view.client,
        "connected_ms": view.connected_ms,
        "in_flight": view.in_flight,
        "draining": view.draining,
        "silent": view.silent,
        "away": view.away,
        "subscriptions": subscriptions,
    })
}
