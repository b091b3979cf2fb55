//! Query strings: pairs of text, each read as what it is; and which tasks a request is about.

use std::ops::RangeInclusive;
use std::str::FromStr;

use taskyard_proto::{Error, Key, TaskId, TaskState};

use super::request::bad_request;
use crate::core::TaskFilter;
use crate::core::record::Failure;

/// How many tasks a list has at most.
pub const LIMIT_MAX: u64 = 1000;
/// How many it has where none is said.
pub const LIMIT: u64 = 100;
/// How many headers a filter may name.
const HEADERS_MAX: usize = 32;
/// The largest number that every client can say (2^53 − 1).
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// The pairs of a query string (`application/x-www-form-urlencoded`).
pub fn pairs(query: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// The parameters of a query string, to be taken one by one. What is left over in the end is a mistake: a
/// misspelled filter must not let all through.
#[derive(Debug)]
pub struct Parameters {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Parameters {
    /// Those of a query string.
    pub fn of(query: Option<&str>) -> Parameters {
        let mut pairs = pairs(query.unwrap_or_default());
        // A page that cannot set headers says here who it is: it was read before.
        pairs.retain(|(key, _)| key != "token");
        Parameters { pairs, known: Vec::new() }
    }

    /// The text of a parameter.
    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, Error> {
        self.known.push(name);
        let Some(at) = self.pairs.iter().position(|(key, _)| key == name) else { return Ok(None) };
        let (_, value) = self.pairs.remove(at);
        if self.pairs.iter().any(|(key, _)| key == name) {
            return Err(wrong(name, "is given twice: give it once"));
        }
        Ok(Some(value))
    }

    /// A parameter that is an integer.
    pub fn integer(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match u64::from_str(&text) {
            // No sign and no blanks, which `from_str` would take.
            Ok(value) if range.contains(&value) && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Some(value))
            }
            _ => {
                let (least, most) = range.into_inner();
                Err(wrong(name, &format!("expected an integer of {least} to {most}, got {text:?}")))
            }
        }
    }

    /// A parameter that is true or false; false where it is missing.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, Error> {
        match self.text(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(wrong(name, &format!("expected true or false, got {other:?}"))),
        }
    }

    /// A parameter that is a key.
    pub fn key(&mut self, name: &'static str) -> Result<Option<Key>, Error> {
        self.text(name)?.map(|text| key(name, &text)).transpose()
    }

    /// A parameter that is a task's id.
    pub fn task(&mut self, name: &'static str) -> Result<Option<TaskId>, Error> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match TaskId::parse(&text) {
            Some(task) => Ok(Some(task)),
            None => Err(wrong(name, &format!("expected a task's id, a UUID of 36 characters, got {text:?}"))),
        }
    }

    /// How many tasks to list, and behind which.
    pub fn page(&mut self) -> Result<(usize, Option<TaskId>), Error> {
        let limit = self.integer("limit", 1..=LIMIT_MAX)?.unwrap_or(LIMIT);
        Ok((usize::try_from(limit).expect("the limit is small"), self.task("after")?))
    }

    /// Which tasks: `state`, `header.KEY` and whatever else says it.
    pub fn filter(&mut self, with_state: bool) -> Result<TaskFilter, Error> {
        let mut filter = TaskFilter::default();
        if with_state && let Some(list) = self.text("state")? {
            filter.states = list.split(',').map(state).collect::<Result<_, _>>()?;
        }
        filter.older_than_ms = self.integer("older_than_ms", 0..=INTEGER_MAX)?;
        filter.order_key = self.key("order_key")?;
        filter.fair_key = self.key("fair_key")?;
        filter.reason = self.text("reason")?.map(|text| reason(&text)).transpose()?;
        filter.error_contains = self.text("error_contains")?.map(error_text).transpose()?;
        self.known.push("header.KEY");
        self.pairs.retain_mut(|(name, value)| match name.strip_prefix("header.") {
            None => true,
            Some(key) => {
                filter.headers.push((key.to_owned(), std::mem::take(value)));
                false
            }
        });
        headers_fit(&filter.headers)?;
        Ok(filter)
    }

    /// The last of the parameters: a filter that lets some through and stops others, unless `all=true` says that all
    /// are meant.
    pub fn selection(mut self, with_state: bool) -> Result<TaskFilter, Error> {
        let (all, filter) = (self.flag("all")?, self.filter(with_state)?);
        self.end()?;
        match (all, filter == TaskFilter::default()) {
            (true, true) | (false, false) => Ok(filter),
            (true, false) => {
                Err(wrong("all", "is given together with a filter: give one of them, or all=false"))
            }
            (false, true) => {
                Err(wrong("all", "is missing: say which tasks by a filter, or all=true for all"))
            }
        }
    }

    /// That nothing is left over.
    pub fn end(self) -> Result<(), Error> {
        let Some((name, _)) = self.pairs.first() else { return Ok(()) };
        let text = match self.known.as_slice() {
            [] => format!("there is no parameter {name:?} here: this request takes none"),
            known => format!("there is no parameter {name:?} here: expected one of {}", known.join(", ")),
        };
        Err(bad_request(text).field(name))
    }
}

fn wrong(name: &str, what: &str) -> Error {
    bad_request(format!("parameter `{name}`: {what}")).field(name)
}

fn state(text: &str) -> Result<TaskState, Error> {
    TaskState::parse(text).ok_or_else(|| {
        let known: Vec<&str> = TaskState::ALL.iter().map(|state| state.as_str()).collect();
        wrong("state", &format!("expected states out of {}, got {text:?}", known.join(", ")))
    })
}

/// A key, in a query or a body.
pub fn key(name: &str, text: &str) -> Result<Key, Error> {
    Key::parse(text).ok_or_else(|| {
        bad_request(format!("`{name}`: expected a key of 1 to 256 bytes, got {}", text.len())).field(name)
    })
}

/// Why an attempt failed, in a query or a body.
pub fn reason(text: &str) -> Result<Failure, Error> {
    let known = (0..=u8::MAX).map_while(Failure::from_number);
    known.clone().find(|failure| failure.as_str() == text).ok_or_else(|| {
        let known: Vec<&str> = known.map(Failure::as_str).collect();
        bad_request(format!("`reason`: expected one of {}, got {text:?}", known.join(", "))).field("reason")
    })
}

/// What an error must have in it.
pub fn error_text(text: String) -> Result<String, Error> {
    if (1..=taskyard_proto::ERROR_BYTES_MAX).contains(&text.len()) {
        return Ok(text);
    }
    let what = format!("expected 1 to {} bytes, got {}", taskyard_proto::ERROR_BYTES_MAX, text.len());
    Err(bad_request(format!("`error_contains`: {what}")).field("error_contains"))
}

/// Refuses a filter of so many headers that a look would take long.
pub fn headers_fit(headers: &[(String, String)]) -> Result<(), Error> {
    if headers.len() <= HEADERS_MAX {
        return Ok(());
    }
    let text = format!("the filter names {} headers: at most {HEADERS_MAX} are looked for", headers.len());
    Err(bad_request(text).field("headers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(query: &str) -> Result<TaskFilter, Error> {
        Parameters::of(Some(query)).selection(true)
    }

    #[test]
    fn a_filter_is_all_that_the_query_says() {
        let filter = selection(
            "state=queued,dead&older_than_ms=5&order_key=o&fair_key=f&reason=worker_lost&error_contains=time%20out\
             &header.a=1&header.b.c=",
        );
        let filter = filter.unwrap();
        assert_eq!(filter.states, [TaskState::Queued, TaskState::Dead]);
        assert_eq!(filter.older_than_ms, Some(5));
        assert_eq!((filter.order_key, filter.fair_key), (Key::parse("o"), Key::parse("f")));
        assert_eq!(filter.reason, Some(Failure::WorkerLost));
        assert_eq!(filter.error_contains.as_deref(), Some("time out"));
        assert_eq!(filter.headers, [("a".into(), "1".into()), ("b.c".into(), String::new())]);
    }

    #[test]
    fn what_would_mean_all_by_mistake_is_refused() {
        for (query, field) in [
            ("", "all"),
            ("all=false", "all"),
            ("all=yes", "all"),
            ("all=true&state=dead", "all"),
            ("state=", "state"),
            ("state=dead,", "state"),
            ("state=dead&state=queued", "state"),
            ("older_than_ms=+5", "older_than_ms"),
            ("older_than_ms=5.0", "older_than_ms"),
            ("older_then_ms=5&all=true", "older_then_ms"),
            ("reason=bored", "reason"),
            ("error_contains=", "error_contains"),
            ("order_key=", "order_key"),
        ] {
            let error = selection(query).unwrap_err();
            assert_eq!(error.field.0.as_ref().map(|text| text.as_str()), Some(field), "{query}: {error:?}");
        }
        assert_eq!(selection("all=true"), Ok(TaskFilter::default()));
    }
}
