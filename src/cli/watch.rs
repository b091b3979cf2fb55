//! `taskyard watch`: what happens to a task, as it happens.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use taskyard_client::http::{Method, Request, Response};
use taskyard_proto::TaskId;

use super::api::Api;
use super::filters::task_id;
use super::output::{Output, Shown, clean, hint, number, print_line, read, text};
use super::sse::{Event, Reader};
use super::{Failed, Remote};

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

/// A stream that is silent for so long is asked for anew: its connection may have died without a word.
const SILENCE: Duration = Duration::from_secs(60);
/// The first wait before a stream is asked for again, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How a stream ended.
enum End {
    /// With the last word on the task: whether it was done.
    Finished(bool),
    /// Too early.
    Lost,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, Failed> {
    let api = Api::at(&args.remote)?;
    let path = format!("/v1/tasks/{}/events", args.task);
    let (mut last, mut wait, mut connected) = (None, WAITS.0, false);
    loop {
        let request = Request::new(Method::GET, path.as_str()).events(last.as_deref());
        match api.open(request).await {
            Ok(response) => {
                connected = true;
                if response.content_type() != Some("text/event-stream") {
                    return Err(Failed::other(format!(
                        "{} answered with something that is no stream of events: is it a Taskyard broker?",
                        args.remote.url
                    )));
                }
                let before = last.clone();
                if let End::Finished(done) = follow(response, &mut last, args.shown.output).await? {
                    return Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
                if last != before {
                    wait = WAITS.0;
                }
            }
            Err(unanswered) if !connected || !unanswered.again => return Err(unanswered.failed),
            Err(_) => {}
        }
        hint("the connection was lost: trying again");
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

/// Prints the events of one stream.
async fn follow(mut response: Response, last: &mut Option<String>, output: Output) -> Result<End, Failed> {
    let mut reader = Reader::default();
    loop {
        let bytes = match tokio::time::timeout(SILENCE, response.chunk()).await {
            Ok(Ok(Some(bytes))) => bytes,
            Ok(Ok(None) | Err(_)) | Err(_) => return Ok(End::Lost),
        };
        for event in reader.take(&bytes)? {
            if !matches!(event.event.as_str(), "event" | "finished") {
                continue;
            }
            let value: Value = read(&event.data).map_err(|error| {
                Failed::other(format!("the broker sent an event that is no JSON: {error}"))
            })?;
            print_line(&match output {
                Output::Json => line_of_json(&event, &value),
                Output::Table => line(&event.event, &value),
            })?;
            if event.event == "finished" {
                return Ok(End::Finished(value["state"] == "done"));
            }
            if event.id.is_some() {
                last.clone_from(&event.id);
            }
        }
    }
}

/// The event as one line of JSON, with its `type` as on the socket. What is in it stays as it came.
fn line_of_json(event: &Event, value: &Value) -> String {
    let data = event.data.replace('\n', " ");
    match data.trim_start().strip_prefix('{') {
        Some(fields)
            if value.get("type").is_none() && value.as_object().is_some_and(|map| !map.is_empty()) =>
        {
            format!("{{\"type\":\"{}\",{}", event.event, fields.trim_end())
        }
        _ => data,
    }
}

/// The event as one line for people.
fn line(kind: &str, event: &Value) -> String {
    let mut words = format!("{:>4}  {:<9}", number(&event["seq"]), text(&event["state"]));
    let mut add = |name: &str, value: String| words += &format!("  {name}{value}");
    if kind == "finished" {
        add("attempts ", number(&event["attempts"]));
        if let (Some(acked), Some(failed)) = (event["acked"].as_u64(), event["failed"].as_u64()) {
            add("", format!("{acked} acknowledged, {failed} failed"));
        }
        if let Some(result) = super::tasks::result(event) {
            add("result: ", result);
        }
    } else {
        add("attempt ", number(&event["attempt"]));
        if let Some(worker) = event["worker"].as_str() {
            add("on ", worker.to_owned());
        }
        if event["started"] == true {
            add("", "started".into());
        }
        if let Some(percent) = event["percent"].as_f64() {
            add("", format!("{percent} %"));
        }
        if let Some(base64) = event["data_b64"].as_str() {
            add("data: ", format!("{base64} (bytes, as base64)"));
        } else if !event["data"].is_null() {
            add("data: ", event["data"].to_string());
        }
    }
    if let Some(error) = event["error"].as_str() {
        add("error: ", error.to_owned());
    }
    clean(words.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_event_is_a_line() {
        let leased = json!({"task": "t", "seq": 2, "state": "leased", "started": true, "worker": "mailer-1",
            "attempt": 1, "percent": 42.5, "data": {"sent": 17}, "error": null});
        assert_eq!(
            line("event", &leased),
            "   2  leased     attempt 1  on mailer-1  started  42.5 %  data: {\"sent\":17}"
        );
        let dead = json!({"task": "t", "seq": 5, "state": "dead", "result": null, "error": "out of\npaper",
            "attempts": 2, "recipients": null, "delivered": 2, "acked": 1, "failed": 1});
        assert_eq!(
            line("finished", &dead),
            "   5  dead       attempts 2  1 acknowledged, 1 failed  error: out of\\npaper"
        );
        let done =
            json!({"seq": 3, "state": "done", "result": [1], "attempts": 1, "acked": null, "failed": null});
        assert_eq!(line("finished", &done), "   3  done       attempts 1  result: [1]");
    }

    #[test]
    fn json_keeps_what_came() {
        let of = |data: &str| {
            let value = read(data).expect("JSON");
            line_of_json(&Event { id: None, event: "event".into(), data: data.into() }, &value)
        };
        assert_eq!(of(r#"{"seq":1,"data":1e999}"#), r#"{"type":"event","seq":1,"data":1e999}"#);
        assert_eq!(of("{\n\"seq\": 1}"), r#"{"type":"event", "seq": 1}"#);
        assert_eq!(of(r#"{"type":"event","seq":1}"#), r#"{"type":"event","seq":1}"#);
        assert_eq!(of("{}"), "{}");
    }
}
