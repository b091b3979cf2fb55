//! What a task may be given on its way, for `submit` and for schedules.

use clap::ValueEnum;
use serde_json::{Map, Value};
use taskyard_proto::message::{
    Attempts, Backoff, Complete, DelayMs, Int, Key, Number, Priority, RunAt, Text, TimeoutMs, TtlMs,
};
use taskyard_proto::{GroupName, Headers, Submit, Target, WorkerName};

use super::queues::Assign;
use super::{Failed, span};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Only for the worker of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["group", "all"])]
    worker: Option<WorkerName>,

    /// What to do while that worker is absent: wait, refuse the task, or take any worker
    #[arg(long, value_enum, requires = "worker")]
    if_absent: Option<IfAbsent>,

    /// Only for a worker of this group; with --all for each of them
    #[arg(long, value_name = "NAME")]
    group: Option<GroupName>,

    /// For every worker that is subscribed now
    #[arg(long)]
    all: bool,

    /// With --all: when the task is complete; a number is that of the acks it takes
    #[arg(long, value_name = "all|any|N", requires = "all", value_parser = complete)]
    complete: Option<Complete>,

    /// How a worker is chosen [default: the queue's]
    #[arg(long, value_enum)]
    assign: Option<Assign>,

    /// With --assign sticky: tasks of one key go to one worker
    #[arg(long, value_name = "KEY", value_parser = key)]
    sticky_key: Option<Key>,

    /// Tasks of one key run one at a time, in order
    #[arg(long, value_name = "KEY", value_parser = key)]
    order_key: Option<Key>,

    /// Keys take turns, so that none keeps the others waiting
    #[arg(long, value_name = "KEY", value_parser = key)]
    fair_key: Option<Key>,

    /// 0 to 9, higher first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=9))]
    priority: Option<u64>,

    /// Not before this time has passed, as 30s, 10m, 2h or 7d
    #[arg(long, value_name = "TIME", value_parser = span::up_to_a_year)]
    delay: Option<u64>,

    /// The same in milliseconds
    #[arg(long, value_name = "MS", hide = true, conflicts_with = "delay")]
    delay_ms: Option<u64>,

    /// Of no more use after this time, as 30s or 1h
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    ttl: Option<u64>,

    /// The same in milliseconds
    #[arg(long, value_name = "MS", hide = true, conflicts_with = "ttl")]
    ttl_ms: Option<u64>,

    /// How long a worker may keep silent, as 30s
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    ack_timeout: Option<u64>,

    /// The same in milliseconds
    #[arg(long, value_name = "MS", hide = true, conflicts_with = "ack_timeout")]
    ack_timeout_ms: Option<u64>,

    /// How long one attempt may run, whatever its worker says
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    timeout: Option<u64>,

    /// How many attempts
    #[arg(long, value_name = "N")]
    max_attempts: Option<u64>,

    /// How long to wait between attempts: the first wait, the longest, and by what it grows, as 1s,5m,2
    #[arg(long, value_name = "FIRST[,LONGEST[,FACTOR]]", value_parser = backoff)]
    backoff: Option<Wait>,

    /// A header for the worker; may be given several times
    #[arg(long = "header", value_name = "KEY=VALUE")]
    headers: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IfAbsent {
    /// Wait for it
    Wait,
    /// Refuse the task
    Fail,
    /// Take any worker
    Any,
}

/// How long to wait between attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wait {
    initial_ms: Int<0, 86_400_000>,
    max_ms: Option<Int<0, 86_400_000>>,
    factor: Option<Number<1, 10>>,
}

impl Wait {
    pub(super) fn to_json(self) -> Value {
        let mut fields = Map::new();
        fields.insert("initial_ms".into(), self.initial_ms.get().into());
        if let Some(max) = self.max_ms {
            fields.insert("max_ms".into(), max.get().into());
        }
        if let Some(factor) = self.factor {
            fields.insert("factor".into(), factor.get().into());
        }
        fields.into()
    }
}

/// A back-off as it is given: `1s`, `1s,5m` or `1s,5m,2`.
pub(super) fn backoff(text: &str) -> Result<Wait, String> {
    let mut parts = text.split(',');
    let day =
        |text: &str| Int::new(span::parse(text)?).ok_or_else(|| "expected waits of at most 1d".to_owned());
    let initial_ms = parts.next().map_or_else(|| Err("expected a time".to_owned()), day)?;
    let max_ms = parts.next().map(day).transpose()?;
    let factor = parts
        .next()
        .map(|text| {
            let factor = text.parse().ok().and_then(Number::new);
            factor.ok_or_else(|| format!("expected a factor of 1 to 10, got {text:?}"))
        })
        .transpose()?;
    match parts.next() {
        None => Ok(Wait { initial_ms, max_ms, factor }),
        Some(_) => Err("expected at most a first wait, a longest, and a factor".into()),
    }
}

/// A key of a task's.
pub(super) fn key(text: &str) -> Result<Key, String> {
    Key::parse(text).ok_or_else(|| "expected 1 to 256 bytes".into())
}

fn complete(text: &str) -> Result<Complete, String> {
    match text {
        "all" => Ok(Complete::All),
        "any" => Ok(Complete::Any),
        number => match number.parse() {
            Ok(quorum @ 1..=1_000_000) => Ok(Complete::Quorum(quorum)),
            _ => Err("expected all, any, or a number of 1 to 1000000".into()),
        },
    }
}

/// A point in time, for the protocol to judge.
pub(super) fn run_at(text: &str) -> Result<RunAt, String> {
    if text.len() > 64 || chrono::DateTime::parse_from_rfc3339(text).is_err() {
        return Err("expected a point in time, as 2030-01-31T08:00:00Z or 2030-01-31T09:00:00+01:00".into());
    }
    Ok(RunAt(Text::cut(text)))
}

/// A number of the command line, if it is in the protocol's range.
fn ranged<T>(
    name: &str,
    value: Option<u64>,
    new: impl Fn(u64) -> Option<T>,
    range: &str,
) -> Result<Option<T>, Failed> {
    match value {
        None => Ok(None),
        Some(value) => match new(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Failed::usage(format!("--{name}: expected {range}, got {value}"))),
        },
    }
}

impl Options {
    /// Puts them into a submit.
    pub(super) fn apply(&self, submit: &mut Submit) -> Result<(), Failed> {
        let year = "0 to 31536000000 milliseconds (365 days)";
        let day = "100 to 86400000 milliseconds (a day)";
        submit.priority = self.priority.and_then(Priority::new);
        submit.delay_ms = ranged("delay", self.delay.or(self.delay_ms), DelayMs::new, year)?;
        let ttl = self.ttl.or(self.ttl_ms);
        submit.ttl_ms = ranged("ttl", ttl, TtlMs::new, "1 to 31536000000 milliseconds (365 days)")?;
        let silent = self.ack_timeout.or(self.ack_timeout_ms);
        submit.ack_timeout_ms = ranged("ack-timeout", silent, TimeoutMs::new, day)?;
        submit.timeout_ms = ranged("timeout", self.timeout, TimeoutMs::new, day)?;
        submit.max_attempts = ranged("max-attempts", self.max_attempts, Attempts::new, "1 to 1000")?;
        submit.backoff = self.backoff.map(|wait| Backoff {
            initial_ms: Some(wait.initial_ms),
            max_ms: wait.max_ms,
            factor: wait.factor,
        });
        submit.headers = headers(&self.headers)?;
        submit.assign = self.assign.map(Into::into);
        submit.sticky_key = self.sticky_key.clone();
        submit.order_key = self.order_key.clone();
        submit.fair_key = self.fair_key.clone();
        submit.complete = self.complete;
        let if_absent = match self.if_absent {
            None | Some(IfAbsent::Wait) => taskyard_proto::IfAbsent::Wait,
            Some(IfAbsent::Fail) => taskyard_proto::IfAbsent::Fail,
            Some(IfAbsent::Any) => taskyard_proto::IfAbsent::Any,
        };
        submit.to = match (self.worker.clone(), self.group.clone(), self.all) {
            (Some(worker), _, _) => Some(Target::Worker { worker, if_absent }),
            (None, group, true) => Some(Target::All(group)),
            (None, Some(group), false) => Some(Target::Group(group)),
            (None, None, false) => None,
        };
        Ok(())
    }
}

/// `KEY=VALUE`
pub(super) fn pair(text: &str) -> Result<(&str, &str), Failed> {
    text.split_once('=').ok_or_else(|| Failed::usage(format!("--header {text:?}: expected KEY=VALUE")))
}

fn headers(pairs: &[String]) -> Result<Headers, Failed> {
    let pairs = pairs.iter().map(|text| pair(text)).collect::<Result<Vec<_>, _>>()?;
    Headers::from_pairs(pairs).map_err(|error| Failed::usage(format!("--header: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use taskyard_proto::codec::encode_client;
    use taskyard_proto::{Encoding, Payload, QueueName, Request};

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn submit(line: &str) -> Result<Value, String> {
        let words = std::iter::once("submit").chain(line.split(' ').filter(|word| !word.is_empty()));
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut submit = Submit::new(QueueName::parse("q").expect("a name"), Payload::NULL);
        line.options.apply(&mut submit).map_err(|failed| failed.message)?;
        let mut bytes = Vec::new();
        encode_client(Encoding::Json, &Request { id: None, message: submit.into() }, &mut bytes);
        let mut value: Value = serde_json::from_slice(&bytes).expect("JSON");
        let fields = value.as_object_mut().expect("an object");
        fields.retain(|name, _| !matches!(name.as_str(), "type" | "queue" | "payload"));
        Ok(value)
    }

    #[test]
    fn options_become_fields() {
        for (line, expected) in [
            ("", serde_json::json!({})),
            (
                "--delay 10m --ttl 1h --ack-timeout 30s --timeout 1d",
                serde_json::json!({"delay_ms": 600_000, "ttl_ms": 3_600_000, "ack_timeout_ms": 30_000,
                    "timeout_ms": 86_400_000}),
            ),
            ("--delay-ms 5 --ttl-ms 6", serde_json::json!({"delay_ms": 5, "ttl_ms": 6})),
            (
                "--assign sticky --sticky-key a --order-key b --fair-key c",
                serde_json::json!({"assign": "sticky", "sticky_key": "a", "order_key": "b", "fair_key": "c"}),
            ),
            ("--worker w --if-absent any", serde_json::json!({"to": {"worker": "w", "if_absent": "any"}})),
            (
                "--all --group g --complete 2",
                serde_json::json!({"to": {"group": "g", "all": true}, "complete": {"quorum": 2}}),
            ),
            ("--backoff 250ms,1m", serde_json::json!({"backoff": {"initial_ms": 250, "max_ms": 60_000}})),
            ("--header a=b=c", serde_json::json!({"headers": {"a": "b=c"}})),
        ] {
            assert_eq!(submit(line), Ok(expected), "{line}");
        }
        for (line, problem) in [
            ("--ttl 0s", "1 to 31536000000"),
            ("--timeout 2d", "a day"),
            ("--delay 1", "500ms, 30s"),
            ("--backoff 1s,5m,11", "1 to 10"),
            ("--backoff 1s,5m,2,3", "at most"),
            ("--complete 2", "--all"),
            ("--if-absent any", "--worker"),
            ("--all --complete 0", "1 to 1000000"),
        ] {
            let error = submit(line).unwrap_err();
            assert!(error.contains(problem), "{line}: {error}");
        }
        assert!(run_at("2030-01-31T08:00:00Z").is_ok());
        assert!(run_at("tomorrow").is_err_and(|error| error.contains("2030-01-31")));
    }
}
