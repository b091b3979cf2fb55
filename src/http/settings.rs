//! What `PUT /v1/queues/{queue}` changes.

use serde_json::Value;
use taskyard_proto::message::YEAR_MS;
use taskyard_proto::{Assign, Backoff, Error, Int, Number};

use super::fields::Fields;
use super::query::INTEGER_MAX;
use crate::core::RetryPolicy;
use crate::core::settings::{Changes, Deliver, HEADSTART_MS, Order};

/// How many tasks a limit may say at most.
const TASKS_MAX: u64 = 1_000_000_000;
/// The highest rate, in tasks a second.
const RATE_MAX: u32 = 1_000_000;
/// How long finished tasks may be kept: 30 days.
const KEEP_MS_MAX: u64 = 30 * 86_400_000;
/// The longest timeout, and the longest wait of a back-off: a day.
const DAY_MS: u64 = 86_400_000;

/// Reads the changes.
pub(super) fn read(mut fields: Fields) -> Result<Changes, Error> {
    let mut changes = Changes {
        assign: fields.with("assign", "\"round_robin\", \"least_loaded\" or \"sticky\"", |value| {
            value.as_str().and_then(Assign::parse)
        })?,
        deliver: fields.with("deliver", "\"durable\" or \"early\"", deliver)?.map(Option::unwrap_or_default),
        order: order(&mut fields)?.map(Option::unwrap_or_default),
        max_tasks: fields.integer("max_tasks", 1..=TASKS_MAX)?,
        max_bytes: fields.integer("max_bytes", 1..=INTEGER_MAX)?,
        max_leased: fields.integer("max_leased", 1..=TASKS_MAX)?,
        rate_per_s: fields.rate("rate_per_s", RATE_MAX)?,
        keep_result_ms: fields.integer("keep_result_ms", 0..=KEEP_MS_MAX)?,
        ..Changes::default()
    };
    match fields.object("defaults")? {
        None => {}
        Some(None) => {
            changes.priority = Some(None);
            changes.ttl_ms = Some(None);
            changes.ack_timeout_ms = Some(None);
            changes.timeout_ms = Some(None);
            changes.max_attempts = Some(None);
            changes.backoff = Some(None);
        }
        Some(Some(mut defaults)) => {
            changes.priority = defaults.integer("priority", 0..=9)?;
            changes.ttl_ms = defaults.integer("ttl_ms", 1..=YEAR_MS)?;
            changes.ack_timeout_ms = defaults.integer("ack_timeout_ms", 100..=DAY_MS)?;
            changes.timeout_ms = defaults.integer("timeout_ms", 100..=DAY_MS)?;
            changes.max_attempts = defaults.integer("max_attempts", 1..=1000)?;
            changes.backoff = match defaults.object("backoff")? {
                None => None,
                Some(None) => Some(None),
                Some(Some(backoff)) => Some(Some(retry(backoff)?)),
            };
            defaults.end()?;
        }
    }
    fields.end()?;
    Ok(changes)
}

fn deliver(value: &Value) -> Option<Deliver> {
    match value.as_str()? {
        "durable" => Some(Deliver::Durable),
        "early" => Some(Deliver::Early),
        _ => None,
    }
}

fn order(fields: &mut Fields) -> Result<Option<Option<Order>>, Error> {
    const WHAT: &str = "\"strict\", \"aged\" or {\"aged\":{\"headstart_ms\":…}}";
    // An object has fields of its own to name; anything else is a word.
    match fields.get("order") {
        Some(Value::Object(_)) => {}
        _ => {
            return fields.with("order", WHAT, |value| match value.as_str()? {
                "strict" => Some(Order::Strict),
                "aged" => Some(Order::Aged { headstart_ms: HEADSTART_MS }),
                _ => None,
            });
        }
    }
    let Some(Some(mut outer)) = fields.object("order")? else { return Ok(None) };
    let headstart = match outer.object("aged")? {
        Some(Some(mut aged)) => {
            let headstart = aged.integer("headstart_ms", 1..=YEAR_MS)?.flatten();
            aged.end()?;
            headstart
        }
        Some(None) => None,
        None => {
            outer.end()?;
            return Err(fields.missing("order.aged", WHAT));
        }
    };
    outer.end()?;
    Ok(Some(Some(Order::Aged { headstart_ms: headstart.unwrap_or(HEADSTART_MS) })))
}

fn retry(mut fields: Fields) -> Result<RetryPolicy, Error> {
    let initial_ms = fields.integer::<u64>("initial_ms", 0..=DAY_MS)?.flatten();
    let max_ms = fields.integer::<u64>("max_ms", 0..=DAY_MS)?.flatten();
    let factor = fields.with("factor", "a number of 1 to 10", |value| Number::new(value.as_f64()?))?;
    fields.end()?;
    Ok(RetryPolicy::from(&Backoff {
        initial_ms: initial_ms.and_then(Int::new),
        max_ms: max_ms.and_then(Int::new),
        factor: factor.flatten(),
    }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::HeaderMap;
    use serde_json::json;

    use super::*;

    fn given(json: &Value) -> Result<Changes, Error> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/json".parse().unwrap());
        read(Fields::read(&headers, &Bytes::from(json.to_string())).unwrap())
    }

    #[test]
    fn what_is_absent_stays_and_null_is_the_default() {
        assert_eq!(given(&json!({})), Ok(Changes::default()));
        let all = json!({
            "assign": null, "deliver": null, "order": null, "max_tasks": null, "max_bytes": null,
            "max_leased": null, "rate_per_s": null, "keep_result_ms": null, "defaults": null,
        });
        let reset = given(&all).unwrap();
        assert_eq!((reset.deliver, reset.order), (Some(Deliver::Durable), Some(Order::Strict)));
        assert_eq!((reset.assign, reset.max_tasks, reset.backoff), (Some(None), Some(None), Some(None)));
        let some = given(&json!({"defaults": {"priority": null, "max_attempts": 3}})).unwrap();
        assert_eq!(some, Changes { priority: Some(None), max_attempts: Some(Some(3)), ..Changes::default() });
    }

    #[test]
    fn every_setting_is_read() {
        let changes = given(&json!({
            "assign": "sticky", "deliver": "early", "order": {"aged": {"headstart_ms": 5}}, "max_tasks": 1,
            "max_bytes": 2, "max_leased": 3, "rate_per_s": 0.5, "keep_result_ms": 0,
            "defaults": {"priority": 9, "ttl_ms": 1, "ack_timeout_ms": 100, "timeout_ms": 200, "max_attempts": 7,
                         "backoff": {"factor": 1.5}},
        }));
        let backoff = RetryPolicy { factor: 1.5, ..RetryPolicy::default() };
        let expected = Changes {
            assign: Some(Some(Assign::Sticky)),
            deliver: Some(Deliver::Early),
            order: Some(Order::Aged { headstart_ms: 5 }),
            max_tasks: Some(Some(1)),
            max_bytes: Some(Some(2)),
            max_leased: Some(Some(3)),
            rate_per_s: Some(Some(0.5)),
            keep_result_ms: Some(Some(0)),
            priority: Some(Some(9)),
            ttl_ms: Some(Some(1)),
            ack_timeout_ms: Some(Some(100)),
            timeout_ms: Some(Some(200)),
            max_attempts: Some(Some(7)),
            backoff: Some(Some(backoff)),
        };
        assert_eq!(changes, Ok(expected));
        let aged = |order| given(&json!({"order": order})).unwrap().order;
        let minute = Some(Order::Aged { headstart_ms: HEADSTART_MS });
        assert_eq!((aged(json!("aged")), aged(json!({"aged": {}}))), (minute, minute));
        assert_eq!(aged(json!("strict")), Some(Order::Strict));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, field) in [
            (json!({"max_task": 1}), "max_task"),
            (json!({"max_tasks": 0}), "max_tasks"),
            (json!({"max_tasks": 1.0}), "max_tasks"),
            (json!({"max_bytes": -1}), "max_bytes"),
            (json!({"assign": "random"}), "assign"),
            (json!({"deliver": true}), "deliver"),
            (json!({"order": "random"}), "order"),
            (json!({"order": {}}), "order.aged"),
            (json!({"order": {"strict": {}}}), "order.strict"),
            (json!({"order": {"aged": {"headstart": 1}}}), "order.aged.headstart"),
            (json!({"order": {"aged": {"headstart_ms": 0}}}), "order.aged.headstart_ms"),
            (json!({"rate_per_s": 0}), "rate_per_s"),
            (json!({"rate_per_s": 1_000_001}), "rate_per_s"),
            (json!({"keep_result_ms": 2_592_000_001_u64}), "keep_result_ms"),
            (json!({"defaults": {"priority": 10}}), "defaults.priority"),
            (json!({"defaults": {"prio": 1}}), "defaults.prio"),
            (json!({"defaults": {"backoff": {"factor": 0.5}}}), "defaults.backoff.factor"),
            (json!({"defaults": 1}), "defaults"),
        ] {
            let error = given(&json).unwrap_err();
            assert_eq!(error.field.0.as_ref().map(|text| text.as_str()), Some(field), "{json}: {error:?}");
        }
    }
}
