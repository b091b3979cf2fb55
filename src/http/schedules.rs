//! `/v1/schedules`: tasks that are submitted again and again.

use std::collections::BTreeMap;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use hyper::StatusCode;
use hyper::header::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use taskyard_proto::payload::PayloadKind;
use taskyard_proto::{ClientMessage, Encoding, Error, ErrorCode, Payload, Request, Submit, codec};

use super::body::{self, Kind};
use super::queues::may_list;
use super::request::{Caller, Segment, bad_request};
use super::{App, schema};
use crate::core::schedule::{Missed, Rhythm, ScheduleName, ScheduleView, check_template};
use crate::core::{Access, Action, Manage, Report, Time};
use crate::metrics::Refused;

/// What a schedule says besides its submit.
const OWN: [&str; 4] = ["cron", "tz", "every_ms", "missed"];
/// What its submit cannot say.
const NOT_ITS: [&str; 4] = ["run_at", "dedup_id", "watch", "confirm"];
/// The zone of a pattern that names none.
const ZONE: &str = "UTC";

/// All schedules
///
/// Those whose queues the token may see. Payloads are left out, so that the answer stays readable.
#[utoipa::path(
    get,
    path = "/v1/schedules",
    operation_id = "list_schedules",
    tag = "schedules",
    responses((status = 200, description = "The schedules, by name.", body = schema::Schedules)),
)]
pub(super) async fn list(
    State(app): State<App>,
    Extension(identity): Caller,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    if let Err(error) = may_list(&app, &identity) {
        return body::refused(encoding, error);
    }
    // Documents are made outside of the core, which does not wait for them.
    let (mut views, now) = match app.broker.inspect(|seen| (seen.shard.schedules(), seen.now)).await {
        Ok(found) => found,
        Err(gone) => return body::refused(encoding, gone.error()),
    };
    views.retain(|view| identity.grants.may(Action::Observe, view.record.submit.queue.as_str()));
    let documents: Vec<String> = views.iter().map(|view| document(view, now, false)).collect();
    body::document(StatusCode::OK, encoding, &format!(r#"{{"schedules":[{}]}}"#, documents.join(",")))
}

/// A schedule
#[utoipa::path(
    get,
    path = "/v1/schedules/{name}",
    operation_id = "get_schedule",
    tag = "schedules",
    params(schema::OfSchedule),
    responses(
        (status = 200, description = "The schedule.", body = schema::Schedule),
        (status = 404, description = "There is no such schedule, or the token may not see it.", body = schema::Error),
    ),
)]
pub(super) async fn show(
    State(app): State<App>,
    Extension(identity): Caller,
    name: Segment,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    match schedule_name(name) {
        Ok(name) => answer(&app, identity.access().as_deref(), name, StatusCode::OK, encoding).await,
        Err(error) => body::refused(encoding, error),
    }
}

/// Make or replace a schedule
///
/// Either `cron`, with `tz`, or `every_ms`; and what is submitted each time.
#[utoipa::path(
    put,
    path = "/v1/schedules/{name}",
    operation_id = "put_schedule",
    tag = "schedules",
    params(schema::OfSchedule),
    request_body(description = "When, and what.", content = schema::ScheduleGiven),
    responses(
        (status = 200, description = "The schedule, which was replaced.", body = schema::Schedule),
        (status = 201, description = "The schedule, which was made.", body = schema::Schedule,
            headers(("location" = String, description = "Where the schedule is shown."))),
    ),
)]
pub(super) async fn put(
    State(app): State<App>,
    Extension(identity): Caller,
    name: Segment,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let name = match schedule_name(name) {
        Ok(name) => name,
        Err(error) => return body::refused(encoding, error),
    };
    let bytes = match body::read(&headers, body, app.sockets.settings.message_bytes).await {
        Ok(bytes) => bytes,
        Err((status, error)) => return body::refused_as(status, encoding, error),
    };
    let Kind::Message(of) = body::kind(&headers, bytes.is_empty()) else {
        let text = "a schedule is put as application/json or application/msgpack: send JSON with \
                    `curl -X PUT --json`";
        return body::refused_as(StatusCode::UNSUPPORTED_MEDIA_TYPE, encoding, bad_request(text));
    };
    let wanted = match read(of, &bytes) {
        Ok(wanted) => wanted,
        Err(error) => return body::refused(encoding, error),
    };
    let access = identity.access();
    if let Some(access) = &access
        && let Err(error) = access.check(Action::Manage, &wanted.submit.queue)
    {
        app.metrics.refused(Refused::Forbidden);
        return body::refused(encoding, error);
    }
    // Here, where it holds up nobody else: the search for a day that never comes takes its time.
    if let Err(error) = wanted.rhythm.check(app.broker.clock().now()) {
        return body::refused(encoding, error);
    }
    let Wanted { rhythm, missed, submit } = wanted;
    let manage = Manage::PutSchedule { name: name.clone(), rhythm, missed, submit };
    let status = match app.broker.manage(manage, access.clone()).await {
        Ok(Report::Created) => StatusCode::CREATED,
        Ok(Report::Refused(error)) => return body::refused(encoding, *error),
        Ok(_) => StatusCode::OK,
        Err(gone) => return body::refused(encoding, gone.error()),
    };
    answer(&app, access.as_deref(), name, status, encoding).await
}

/// End a schedule
///
/// What it has submitted stays.
#[utoipa::path(
    delete,
    path = "/v1/schedules/{name}",
    operation_id = "delete_schedule",
    tag = "schedules",
    params(schema::OfSchedule),
    responses(
        (status = 200, description = "It was ended.", body = schema::Nothing),
        (status = 404, description = "There is no such schedule, or the token may not see it.", body = schema::Error),
    ),
)]
pub(super) async fn delete(
    State(app): State<App>,
    Extension(identity): Caller,
    name: Segment,
    headers: HeaderMap,
) -> Response {
    let encoding = body::answer_encoding(&headers);
    let name = match schedule_name(name) {
        Ok(name) => name,
        Err(error) => return body::refused(encoding, error),
    };
    match app.broker.manage(Manage::DeleteSchedule { name }, identity.access()).await {
        Ok(Report::Refused(error)) => body::refused(encoding, *error),
        Ok(_) => body::document(StatusCode::OK, encoding, "{}"),
        Err(gone) => body::refused(encoding, gone.error()),
    }
}

fn schedule_name(segment: Segment) -> Result<ScheduleName, Error> {
    let Path(text) = segment.map_err(|error| bad_request(error.body_text()))?;
    ScheduleName::parse(&text).map_err(bad_request)
}

/// Shows a schedule as it is now, to who may see it.
async fn answer(
    app: &App,
    access: Option<&Access>,
    name: ScheduleName,
    status: StatusCode,
    encoding: Encoding,
) -> Response {
    let asked = name.clone();
    let (view, now) = match app.broker.inspect(move |seen| (seen.shard.schedule(&asked), seen.now)).await {
        Ok(found) => found,
        Err(gone) => return body::refused(encoding, gone.error()),
    };
    let seen = |view: &ScheduleView| {
        let queue = view.record.submit.queue.as_str();
        access.is_none_or(|access| access.grants.may(Action::Observe, queue))
    };
    let Some(view) = view.filter(seen) else {
        let text = format!("there is no schedule {name}: PUT /v1/schedules/{name} makes one");
        return body::refused(encoding, Error::new(ErrorCode::NotFound, text));
    };
    let mut response = body::document(status, encoding, &document(&view, now, true));
    if status == StatusCode::CREATED {
        let place = HeaderValue::try_from(format!("/v1/schedules/{name}")).expect("a name is plain ASCII");
        body::add_header(response.headers_mut(), hyper::header::LOCATION, place);
    }
    response
}

/// What a PUT says.
struct Wanted {
    rhythm: Rhythm,
    missed: Missed,
    submit: Box<Submit>,
}

fn read(encoding: Encoding, bytes: &Bytes) -> Result<Wanted, Error> {
    // Syntax, depth and keys that stand twice are judged here; what is below is left with reading.
    let message = codec::decode_body(encoding, bytes, "submit", &[])?;
    let ClientMessage::Submit(submit) = message else {
        return Err(bad_request("the body is no schedule"));
    };
    let submit = Box::<Submit>::from(submit);
    let text = match encoding {
        Encoding::Json => std::str::from_utf8(bytes).map(str::to_owned).unwrap_or_default(),
        Encoding::MessagePack => Payload::from_parts(PayloadKind::MessagePack, bytes).to_json(),
    };
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&text).map_err(|error| {
        bad_request(format!("expected one object with the fields of a schedule: {error}"))
    })?;
    // As everywhere, null is the same as not given.
    fields
        .retain(|name, value| value.get() != "null" || !is_known(name) && !NOT_ITS.contains(&name.as_str()));
    for name in fields.keys() {
        if NOT_ITS.contains(&name.as_str()) {
            check_template(&submit)?;
            let text = format!("schedule, field `{name}`: leave it out: a schedule's submit does not say it");
            return Err(bad_request(text).field(name));
        }
        if !is_known(name) {
            let shown: String = name.chars().take(40).collect();
            let known = known().collect::<Vec<_>>().join(", ");
            let text = format!("schedule: there is no field `{shown}`; there are {known}");
            return Err(bad_request(text).field(&shown));
        }
    }
    let own = |name: &str| fields.get(name).map(|value| value.get());
    let rhythm = match (own("every_ms"), own("cron"), own("tz")) {
        (Some(ms), None, None) => {
            // What is too long for the number is so for the schedule.
            let digits = !ms.is_empty() && ms.bytes().all(|byte| byte.is_ascii_digit());
            match ms.parse().ok().or(digits.then_some(u64::MAX)) {
                Some(ms) => Rhythm::Every { ms },
                None => return Err(expected("every_ms", "an integer of milliseconds", ms)),
            }
        }
        (Some(_), None, Some(_)) => {
            let text = "schedule, field `tz`: `every_ms` has no zone: leave `tz` out, or give `cron`";
            return Err(bad_request(text).field("tz"));
        }
        (None, Some(pattern), tz) => Rhythm::Cron {
            pattern: string("cron", "a cron pattern, like \"30 2 * * 1-5\"", pattern)?.into(),
            tz: match tz {
                Some(tz) => string("tz", "a time zone's name, like \"Europe/Zurich\"", tz)?.into(),
                None => ZONE.into(),
            },
        },
        (every, ..) => {
            let which = if every.is_some() { "both were given" } else { "neither was given" };
            let text = format!(
                "schedule: expected either `cron`, like \"30 2 * * 1-5\" with `tz`, or `every_ms`: {which}"
            );
            return Err(bad_request(text).field("cron"));
        }
    };
    let missed = match own("missed").map(|text| string("missed", "\"one\" or \"none\"", text)).transpose()? {
        None => Missed::default(),
        Some(word) => match word.as_str() {
            "one" => Missed::One,
            "none" => Missed::None,
            _ => return Err(expected("missed", "\"one\" or \"none\"", &format!("{word:?}"))),
        },
    };
    Ok(Wanted { rhythm, missed, submit })
}

fn expected(field: &str, what: &str, got: &str) -> Error {
    let shown: String = got.chars().take(40).collect();
    bad_request(format!("schedule, field `{field}`: expected {what}, got {shown}")).field(field)
}

fn string(field: &str, what: &str, raw: &str) -> Result<String, Error> {
    serde_json::from_str(raw).map_err(|_| expected(field, what, raw))
}

/// The fields that a schedule may have: its own, and those of `submit` that make sense.
fn known() -> impl Iterator<Item = &'static str> {
    let submit = ClientMessage::TABLE.iter().find(|(name, _)| *name == "submit");
    let (_, fields) = submit.expect("the protocol has submits");
    let inherited = fields.iter().copied().filter(|field| !NOT_ITS.contains(field));
    OWN.into_iter().chain(inherited).chain(["payload_b64"])
}

fn is_known(name: &str) -> bool {
    known().any(|known| known == name)
}

fn raw(value: impl Serialize) -> Box<RawValue> {
    to_raw_value(&value).expect("text, numbers and null are JSON")
}

fn wall(at: Time) -> Option<String> {
    let at = DateTime::<Utc>::from_timestamp_micros(i64::try_from(at.0).ok()?)?;
    Some(at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// A schedule as it is shown: what was put, as it was put, and what has come of it.
fn document(view: &ScheduleView, now: Time, with_payload: bool) -> String {
    let record = &view.record;
    let mut submit = (*record.submit).clone();
    if !with_payload {
        submit.payload = Payload::NULL;
    }
    let mut put = Vec::new();
    let message = submit.into();
    codec::encode_client(Encoding::Json, &Request { id: None, message }, &mut put);
    let mut put: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&put).expect("we write objects");
    put.remove("type");
    let mut entries = vec![("name".to_owned(), raw(record.name.as_str()))];
    entries.extend(put.remove_entry("queue"));
    match &record.rhythm {
        Rhythm::Every { ms } => entries.push(("every_ms".into(), raw(ms))),
        Rhythm::Cron { pattern, tz } => {
            entries.push(("cron".into(), raw(pattern.as_str())));
            entries.push(("tz".into(), raw(tz.as_str())));
        }
    }
    let missed = match record.missed {
        Missed::One => "one",
        Missed::None => "none",
    };
    let last = record.last.map(|(at, task)| json!({"run_at": wall(at), "task": task.to_string()}));
    let error =
        view.last_error.as_ref().map(|e| json!({"code": e.code.as_str(), "message": e.message.as_str()}));
    entries.extend([
        ("missed".into(), raw(missed)),
        ("next_run_at".into(), raw(record.next.and_then(wall))),
        ("next_in_ms".into(), raw(record.next.map(|next| next.ms_since(now)))),
        ("fired".into(), raw(record.fired)),
        ("last".into(), raw(last)),
        ("last_error".into(), raw(error)),
    ]);
    entries.extend(put);
    let entries: Vec<String> =
        entries.iter().map(|(name, value)| format!("{}:{}", raw(name).get(), value.get())).collect();
    format!("{{{}}}", entries.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Error {
        read(Encoding::Json, &Bytes::copy_from_slice(body.as_bytes())).err().expect("it is refused")
    }

    #[test]
    fn what_is_put_is_read_in_both_encodings() {
        let json = r#"{"queue":"q","payload":{ "a" : 1.0 },"cron":"0 3 * * *","tz":"Asia/Tokyo","missed":"none",
                       "priority":7,"watch":null,"every_ms":null}"#;
        let wanted = read(Encoding::Json, &Bytes::from(json)).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(wanted.rhythm, Rhythm::Cron { pattern: "0 3 * * *".into(), tz: "Asia/Tokyo".into() });
        assert_eq!(wanted.missed, Missed::None);
        assert_eq!(wanted.submit.payload.bytes(), br#"{ "a" : 1.0 }"#);
        assert_eq!(wanted.submit.priority.map(|p| p.get()), Some(7));
        let packed =
            rmp_serde::to_vec_named(&json!({"queue": "q", "every_ms": 500, "payload": [1]})).unwrap();
        let wanted = read(Encoding::MessagePack, &packed.into()).unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((wanted.rhythm, wanted.missed), (Rhythm::Every { ms: 500 }, Missed::One));
        assert_eq!(wanted.submit.payload.kind(), PayloadKind::MessagePack);
        let minimal = read(Encoding::Json, &Bytes::from(r#"{"queue":"q","cron":"@daily"}"#)).ok().unwrap();
        assert_eq!(minimal.rhythm, Rhythm::Cron { pattern: "@daily".into(), tz: "UTC".into() });
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        for (body, field, part) in [
            (
                r#"{"queue":"q","cron":"* * * * *","priorty":1}"#,
                "priorty",
                "no field `priorty`; there are cron, tz",
            ),
            (r#"{"queue":"q","cron":"* * * * *","crontab":null}"#, "crontab", "payload_b64"),
            (r#"{"queue":"q"}"#, "cron", "neither"),
            (r#"{"queue":"q","cron":"* * * * *","every_ms":1000}"#, "cron", "both"),
            (r#"{"queue":"q","every_ms":1000,"tz":"UTC"}"#, "tz", "no zone"),
            (r#"{"queue":"q","every_ms":"1000"}"#, "every_ms", "an integer"),
            (r#"{"queue":"q","every_ms":1.5}"#, "every_ms", "an integer"),
            (r#"{"queue":"q","every_ms":-5}"#, "every_ms", "an integer"),
            (r#"{"queue":"q","cron":5}"#, "cron", "a cron pattern"),
            (
                r#"{"queue":"q","cron":"* * * * *","missed":"all"}"#,
                "missed",
                "\"one\" or \"none\", got \"all\"",
            ),
            (r#"{"queue":"q","every_ms":1000,"watch":false}"#, "watch", "leave it out"),
            (r#"{"queue":"q","every_ms":1000,"watch":true}"#, "watch", "nobody waits"),
            (r#"{"queue":"q","every_ms":1000,"run_at":"2030-01-01T00:00:00Z"}"#, "run_at", "says when"),
            (r#"{"queue":"q","every_ms":1000,"dedup_id":"x"}"#, "dedup_id", "leave it out"),
            (r#"{"queue":"q","every_ms":1000,"confirm":"durable"}"#, "confirm", "leave it out"),
            (r#"{"every_ms":1000}"#, "queue", "queue"),
            (r#"{"queue":"q","every_ms":1000,"priority":10}"#, "priority", "0 to 9"),
        ] {
            let error = refused(body);
            assert_eq!(error.code, ErrorCode::BadRequest, "{body}");
            assert!(error.message.as_str().contains(part), "{body}: {}", error.message.as_str());
            assert_eq!(error.field.0.as_ref().map(|field| field.as_str()), Some(field), "{body}");
        }
        for body in ["", "[]", "{", "5", r#"{"queue":"q","queue":"q","every_ms":1000}"#, "[[1]]"] {
            assert_eq!(refused(body).code, ErrorCode::BadRequest, "{body}");
        }
        assert!(read(Encoding::MessagePack, &Bytes::from_static(&[0x81, 0x01, 0x02])).is_err());
    }
}
