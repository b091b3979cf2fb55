//! The broker's HTTP verbs, as commands ask for them.

use serde_json::Value;
use taskyard_client::Endpoint;
use taskyard_client::http::{self, Method, Request};

use super::output::{self, clean, pretty, print_line};
use super::{Failed, Remote};

/// A broker that is asked over HTTP.
#[derive(Debug)]
pub(super) struct Api<'a> {
    remote: &'a Remote,
    endpoint: Endpoint,
}

/// What a broker answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP status: one of success.
    pub(super) status: u16,
    /// As it came.
    pub(super) text: String,
    /// The same, read; null where there was nothing.
    pub(super) value: Value,
}

impl Answer {
    /// Prints it for programs.
    pub(super) fn print(&self) -> Result<(), Failed> {
        print_line(&pretty(if self.text.is_empty() { "{}" } else { &self.text }))
    }

    /// The items of a list.
    pub(super) fn list(&self, name: &str) -> &[Value] {
        self.value[name].as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

impl<'a> Api<'a> {
    /// What is no URL is bad usage, whatever else would fail.
    pub(super) fn at(remote: &'a Remote) -> Result<Api<'a>, Failed> {
        Ok(Api { remote, endpoint: remote.options()?.endpoint().clone() })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Answer, Failed> {
        self.send(Request::new(Method::GET, path)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Answer, Failed> {
        self.send(Request::new(Method::DELETE, path)).await
    }

    pub(super) async fn post(&self, path: &str, body: impl ToString) -> Result<Answer, Failed> {
        self.send(Request::new(Method::POST, path).json(body.to_string())).await
    }

    pub(super) async fn put(&self, path: &str, body: impl ToString) -> Result<Answer, Failed> {
        self.send(Request::new(Method::PUT, path).json(body.to_string())).await
    }

    async fn send(&self, request: Request) -> Result<Answer, Failed> {
        let (status, body) =
            http::send(&self.endpoint, request).await.map_err(|error| self.remote.unreachable(&error))?;
        self.read(status, body)
    }

    /// An answer that is read as it comes. One that is no success is a failure.
    pub(super) async fn open(&self, request: Request) -> Result<http::Response, Unanswered> {
        let response = match http::open(&self.endpoint, request).await {
            Ok(response) => response,
            Err(error) => {
                let again = error.advice() != taskyard_proto::code::Advice::Stop;
                return Err(Unanswered { failed: self.remote.unreachable(&error), again });
            }
        };
        let status = response.status();
        if status == 200 {
            return Ok(response);
        }
        let again = status == 429 || status >= 500;
        let failed = match response.body(http::BODY_BYTES_MAX).await {
            Ok(body) => match self.read(status, body) {
                Err(failed) => failed,
                Ok(_) => Failed::other(format!("the broker answered {status}, where 200 was expected")),
            },
            Err(error) => self.remote.unreachable(&error),
        };
        Err(Unanswered { failed, again })
    }

    fn read(&self, status: u16, body: Vec<u8>) -> Result<Answer, Failed> {
        let success = (200..300).contains(&status);
        let text = String::from_utf8(body)
            .map_err(|error| self.strange(status, &String::from_utf8_lossy(error.as_bytes())))?;
        let value = match output::read(&text) {
            Ok(value) => value,
            Err(_) if success && text.is_empty() => Value::Null,
            Err(_) => return Err(self.strange(status, &text)),
        };
        if success { Ok(Answer { status, text, value }) } else { Err(refusal(status, &value)) }
    }

    /// Something that no broker says. One that expects TLS says so here.
    fn strange(&self, status: u16, text: &str) -> Failed {
        let said: String = text.trim().lines().next().unwrap_or_default().chars().take(100).collect();
        Failed::other(format!(
            "{} answered {status} with something that is no JSON ({said:?}): is it a Taskyard broker?",
            self.remote.url
        ))
    }
}

/// An answer that there was none of, or none of success.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// What to say about it.
    pub(super) failed: Failed,
    /// Whether the same may succeed later.
    pub(super) again: bool,
}

/// The broker's own words, and what kind of refusal it is.
fn refusal(status: u16, error: &Value) -> Failed {
    match (error["message"].as_str(), error["code"].as_str()) {
        (Some(message), Some(code)) => {
            let hint = if status == 401 { super::TOKEN_HINT } else { "" };
            Failed::other(format!("{} ({code}){hint}", clean(message)))
        }
        _ => Failed::other(format!("the broker answered {status}, and gave no reason")),
    }
}

/// A path and its query. Names need no escapes: what a name may hold, a path may.
#[derive(Debug)]
pub(super) struct Path(String);

impl Path {
    pub(super) fn new(path: impl Into<String>) -> Path {
        Path(path.into())
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Path {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        let at = self.0.len();
        let mut query = form_urlencoded::Serializer::for_suffix(self.0, at);
        query.append_pair(name, &value.to_string());
        Path(query.finish())
    }

    pub(super) fn with_some(self, name: &str, value: Option<impl ToString>) -> Path {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    pub(super) fn build(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        let path = Path::new("/v1/x")
            .with("header.a b", "c&d=é")
            .with_some("limit", Some(5))
            .with_some("n", None::<u8>);
        assert_eq!(path.build(), "/v1/x?header.a+b=c%26d%3D%C3%A9&limit=5");
        assert_eq!(Path::new("/v1/x").build(), "/v1/x");
    }

    #[test]
    fn a_refusal_is_told_in_the_broker_s_words() {
        let error = serde_json::json!({"code": "not_found", "message": "there is no queue\u{1b}", "retryable": false});
        assert_eq!(refusal(404, &error).message, "there is no queue\\u{1b} (not_found)");
        assert!(refusal(500, &Value::Null).message.contains("500"));
        let error = serde_json::json!({"code": "unauthorized", "message": "no token", "retryable": false});
        let hinted = "no token (unauthorized): commands take theirs from TASKYARD_TOKEN";
        assert_eq!(refusal(401, &error).message, hinted);
    }
}
