//! `taskyard explain`: why a task is not with a worker.

use std::process::ExitCode;

use serde_json::Value;
use taskyard_proto::TaskId;

use super::api::Api;
use super::filters::task_id;
use super::output::{Output, Shown, clean, print_line, text};
use super::{Failed, Remote, span};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task
    #[arg(value_parser = task_id, value_name = "TASK")]
    task: TaskId,

    #[command(flatten)]
    shown: Shown,

    #[command(flatten)]
    remote: Remote,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let answer = Api::at(&args.remote)?.get(&format!("/v1/tasks/{}/explain", args.task)).await?;
    match args.shown.output {
        Output::Json => answer.print()?,
        Output::Table => print_line(&explain(&answer.value))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A time that is told in milliseconds, as people say it.
fn time(value: &Value) -> String {
    value.as_u64().map_or_else(|| "an unknown time".into(), span::short)
}

/// One thing that holds a task up, in words.
fn reason(reason: &Value) -> String {
    let in_ms = || time(&reason["in_ms"]);
    let name = |field: &str| text(&reason[field]);
    let words = match reason["code"].as_str().unwrap_or_default() {
        "no_worker" => "nobody is subscribed to its queue: start a worker".into(),
        "no_credit" => {
            let count = |field: &str| reason[field].as_u64().unwrap_or(0);
            let who = match count("busy") {
                1 => "the one worker that may take it is".into(),
                all => format!("all {all} workers that may take it are"),
            };
            let parts = [(count("silent"), "silent behind an ack timeout"), (count("draining"), "draining")];
            let told = parts.into_iter().filter(|(count, _)| *count > 0);
            let parts: Vec<String> = told.map(|(count, words)| format!("{count} {words}")).collect();
            let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
            let (busy, other) = (count("busy"), count("silent") + count("draining"));
            match busy > other {
                true => format!("{who} busy{parts}: wait, or start more of them"),
                false => format!("{who} not taking any more{parts}: start others"),
            }
        }
        "worker_absent" => {
            format!("it is for worker {}, which is not subscribed to its queue", name("worker"))
        }
        "group_empty" => {
            format!("it is for group {}, of which nobody is subscribed to its queue", name("group"))
        }
        "paused" => {
            let by = reason["by"].as_str().map(|by| format!(" by {by}")).unwrap_or_default();
            let until = match reason["in_ms"].as_u64() {
                Some(ms) => format!("for {} more", span::short(ms)),
                None => "until `taskyard unpause`".into(),
            };
            let why = reason["reason"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
            format!("its queue is paused{by} {until}{why}")
        }
        "order_blocked" => format!("task {} of the same order key goes first", name("by")),
        "rate_limited" => format!("its queue hands out only so many a second: the next in {}", in_ms()),
        "backoff" => format!("an attempt failed: the next one is in {}", in_ms()),
        "scheduled" => format!("its time has not come: it is queued in {}", in_ms()),
        "queue_limit" => format!(
            "as many tasks of its queue are with workers as may be ({})",
            super::output::number(&reason["max_leased"])
        ),
        "released" => {
            format!("its last worker gave it back a moment ago, and gets it again in {}", in_ms())
        }
        "not_durable" => "the disk does not hold it yet".into(),
        "payload_away" => "the payload of its queue's next task is on its way from the disk".into(),
        "draining" => "the broker shuts down: it is delivered after the next start".into(),
        // What a later broker knows: its own words.
        code => match reason["message"].as_str() {
            Some(message) => format!("{code}: {message}"),
            None => reason.to_string(),
        },
    };
    clean(&words)
}

/// What holds a task up, most telling first.
fn explain(answer: &Value) -> String {
    let reasons: Vec<String> =
        answer["reasons"].as_array().into_iter().flatten().map(|of| format!("- {}", reason(of))).collect();
    let state = clean(&text(&answer["state"]));
    if !reasons.is_empty() {
        return format!("the task is {state}:\n{}", reasons.join("\n"));
    }
    match state.as_str() {
        "leased" => "the task is leased: a worker has it".into(),
        "queued" => "the task is queued, and nothing holds it up: it is about to be delivered".into(),
        state => format!("the task is {state}: nothing holds it up"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_reason_is_told_with_its_numbers() {
        for (of, words) in [
            (json!({"code": "no_worker"}), "start a worker"),
            (json!({"code": "no_credit", "busy": 3}), "all 3 workers"),
            (json!({"code": "no_credit", "busy": 1}), "the one worker that may take it is busy:"),
            (
                json!({"code": "no_credit", "busy": 3, "silent": 1, "draining": 1}),
                "busy (1 silent behind an ack timeout, 1 draining): wait",
            ),
            (
                json!({"code": "no_credit", "busy": 1, "silent": 1}),
                "may take it is not taking any more (1 silent behind an ack timeout): start others",
            ),
            (json!({"code": "worker_absent", "worker": "gpu-1"}), "worker gpu-1, which"),
            (json!({"code": "group_empty", "group": "europe"}), "group europe, of which"),
            (
                json!({"code": "paused", "in_ms": 59_000, "by": "ops", "reason": "provider down"}),
                "paused by ops for 59.0 s more: provider down",
            ),
            (
                json!({"code": "paused", "in_ms": null, "by": null, "reason": null}),
                "until `taskyard unpause`",
            ),
            (json!({"code": "order_blocked", "by": "0198"}), "task 0198 of the same order key"),
            (json!({"code": "rate_limited", "in_ms": 250}), "the next in 250 ms"),
            (json!({"code": "backoff", "in_ms": 1500}), "in 1.5 s"),
            (json!({"code": "scheduled", "in_ms": 7_200_000}), "in 2 h"),
            (json!({"code": "queue_limit", "max_leased": 10}), "as may be (10)"),
            (json!({"code": "released", "in_ms": 90}), "again in 90 ms"),
            (json!({"code": "not_durable"}), "the disk"),
            (json!({"code": "payload_away"}), "on its way from the disk"),
            (json!({"code": "draining"}), "shuts down"),
            (json!({"code": "moon", "message": "it is full\u{7}"}), "moon: it is full\\u{7}"),
            (json!({"code": "moon"}), "{\"code\":\"moon\"}"),
        ] {
            let text = reason(&of);
            assert!(text.contains(words), "{of}: {text}");
        }
        let answer =
            json!({"task": "t", "state": "queued", "reasons": [{"code": "no_worker"}, {"code": "draining"}]});
        assert_eq!(explain(&answer).lines().count(), 3);
        assert!(explain(&json!({"state": "done", "reasons": []})).contains("is done"));
    }
}
