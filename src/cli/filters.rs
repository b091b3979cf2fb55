//! Which tasks of a queue: the filters that lists, cancels and redrives share.

use clap::ValueEnum;
use serde_json::{Map, Value};
use taskyard_proto::TaskId;
use taskyard_proto::message::Key;

use super::api::Path;
use super::options::{key, pair};
use super::{Failed, span};

#[derive(Debug, Default, clap::Args)]
pub(super) struct Filters {
    /// With this header; may be given several times
    #[arg(long = "header", value_name = "KEY=VALUE", help_heading = "Which tasks")]
    headers: Vec<String>,

    /// Accepted at least so long ago, as 10m
    #[arg(long, value_name = "TIME", value_parser = span::within_a_year, help_heading = "Which tasks")]
    older_than: Option<u64>,

    /// With this order key
    #[arg(long, value_name = "KEY", value_parser = key, help_heading = "Which tasks")]
    order_key: Option<Key>,

    /// With this fair key
    #[arg(long, value_name = "KEY", value_parser = key, help_heading = "Which tasks")]
    fair_key: Option<Key>,

    /// Whose last attempt failed for this reason
    #[arg(long, value_enum, help_heading = "Which tasks")]
    reason: Option<Reason>,

    /// Whose last error has this text in it
    #[arg(long, value_name = "TEXT", help_heading = "Which tasks")]
    error_contains: Option<String>,
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Reason {
    /// The worker said so
    Nack,
    /// The worker kept silent for the ack timeout
    AckTimeout,
    /// It ran longer than allowed
    RunLimit,
    /// The worker's socket ended
    WorkerLost,
    /// It was returned unharmed too often in a row
    Returned,
    /// The recipient of a task to all was absent
    Absent,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Reason::Nack => "nack",
            Reason::AckTimeout => "ack_timeout",
            Reason::RunLimit => "run_limit",
            Reason::WorkerLost => "worker_lost",
            Reason::Returned => "returned",
            Reason::Absent => "absent",
        }
    }
}

impl Filters {
    /// Whether all tasks are let through.
    pub(super) fn is_empty(&self) -> bool {
        let Filters { headers, older_than, order_key, fair_key, reason, error_contains } = self;
        headers.is_empty()
            && older_than.is_none()
            && order_key.is_none()
            && fair_key.is_none()
            && reason.is_none()
            && error_contains.is_none()
    }

    /// As the parameters of a query.
    pub(super) fn query(&self, mut path: Path) -> Result<Path, Failed> {
        for header in &self.headers {
            let (name, value) = pair(header)?;
            path = path.with(&format!("header.{name}"), value);
        }
        Ok(path
            .with_some("older_than_ms", self.older_than)
            .with_some("order_key", self.order_key.as_ref().map(Key::as_str))
            .with_some("fair_key", self.fair_key.as_ref().map(Key::as_str))
            .with_some("reason", self.reason.map(Reason::as_str))
            .with_some("error_contains", self.error_contains.as_ref()))
    }

    /// As the fields of a body.
    pub(super) fn body(&self) -> Result<Map<String, Value>, Failed> {
        let mut body = Map::new();
        let headers =
            self.headers.iter().map(|text| pair(text).map(|(name, value)| (name.into(), value.into())));
        let headers = headers.collect::<Result<Map<String, Value>, Failed>>()?;
        if !headers.is_empty() {
            body.insert("headers".into(), headers.into());
        }
        let fields = [
            ("older_than_ms", self.older_than.map(Value::from)),
            ("order_key", self.order_key.as_ref().map(|key| key.as_str().into())),
            ("fair_key", self.fair_key.as_ref().map(|key| key.as_str().into())),
            ("reason", self.reason.map(|reason| reason.as_str().into())),
            ("error_contains", self.error_contains.as_deref().map(Value::from)),
        ];
        body.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        Ok(body)
    }
}

/// A task's id.
pub(super) fn task_id(text: &str) -> Result<TaskId, String> {
    TaskId::parse(text)
        .ok_or_else(|| "expected a task's id, as 0198c0de-0000-7000-8000-000000000001".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        filters: Filters,
    }

    #[test]
    fn filters_are_a_query_or_a_body() {
        let line = [
            "x",
            "--header",
            "a=1=2",
            "--header",
            "b=ü",
            "--older-than",
            "10m",
            "--order-key",
            "o",
            "--fair-key",
            "f",
            "--reason",
            "ack_timeout",
            "--error-contains",
            "a b",
        ];
        let filters = Line::try_parse_from(line).expect("good usage").filters;
        assert!(!filters.is_empty() && Filters::default().is_empty());
        assert_eq!(
            filters.query(Path::new("/x")).expect("good headers").build(),
            "/x?header.a=1%3D2&header.b=%C3%BC&older_than_ms=600000&order_key=o&fair_key=f&reason=ack_timeout\
             &error_contains=a+b"
        );
        assert_eq!(
            Value::from(filters.body().expect("good headers")),
            serde_json::json!({"headers": {"a": "1=2", "b": "ü"}, "older_than_ms": 600_000, "order_key": "o",
                "fair_key": "f", "reason": "ack_timeout", "error_contains": "a b"})
        );
        let bad = Filters { headers: vec!["nonsense".into()], ..Filters::default() };
        assert!(bad.query(Path::new("/x")).is_err_and(|failed| failed.code == 2));
        assert!(bad.body().is_err_and(|failed| failed.message.contains("KEY=VALUE")));
    }
}
